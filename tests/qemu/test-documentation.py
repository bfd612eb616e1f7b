#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""docs/qemu.md and the device say the same."""
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import ROOT, case, main
from qtest import Qemu

TEXT = (ROOT / "docs/qemu.md").read_text()


@case("every-property-is-documented-and-described")
def _(tmp):
    rows = re.findall(r"^\| (`[^|]*) \|([^|]*)\|", TEXT.partition("## Properties")[2].partition("## ")[0], re.MULTILINE)
    documented = {name: default.strip() for names, default in rows for name in re.findall(r"`([^`]*)`", names)}
    with Qemu(tmp) as vm:
        def properties(typename):
            return {p["name"]: p for p in vm.qmp("device-list-properties", typename=typename)}
        ours = properties("vfio-user-pci")
        for name in properties("edu"):
            ours.pop(name, None)
    assert set(documented) == set(ours), set(documented) ^ set(ours)
    for name, entry in ours.items():
        assert entry.get("description"), f"{name} has no description"
        if documented[name] in ("on", "off") or documented[name].isdigit():
            default = {"False": "off", "True": "on"}.get(str(entry["default-value"]), str(entry["default-value"]))
            assert default == documented[name], (name, default)


@case("every-documented-error-is-in-the-source")
def _(_tmp):
    sources = "".join(p.read_text() for folder in ("qemu", "client", "channel") for p in (ROOT / folder).glob("*.c"))
    sources = re.sub(r'"\s*"', "", re.sub(r'TYPE_OB_PCI\s*"|"\s*PRI\w+\s*"', "", sources)).replace("`", "'")
    table = TEXT.partition("## Errors and their mends")[2]
    for cell in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE):
        for message in re.findall(r"`([^`]*)`", cell):
            for part in filter(None, re.split(r"\s*\.\.\.\s*|vfio-user-pci", message)):
                assert part.strip(" ,():") in sources, part


main()
