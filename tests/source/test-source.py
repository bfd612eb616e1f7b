#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Rules that the source keeps: who includes whom, licences, format, public headers."""
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, ROOT, case, main
from tree import includes, our_include, sources

CODE = (".c", ".h", ".py", ".sh")
PUBLIC = sorted((ROOT / "include/outboard").glob("*.h"))

# The layers of docs/architecture.md: what a folder may include besides itself and the system.
# Folders that are not here stand above them all.
MAY_INCLUDE = {
    "include": set(),
    "proto": {"include"},
    "channel": {"include", "proto"},
    "client": {"include", "proto", "channel"},
    "server": {"include", "proto", "channel"},
    "devices": {"include"},
    "conformance": {"include", "proto"},
    "bench": {"include", "devices"},
    "tools": {"include", "devices", "conformance", "bench"},
    "qemu": {"include"},
}


@case("folders-include-only-the-layers-below")
def _(tmp):
    seen = set()
    for source in sources(".c", ".h"):
        folder = source.relative_to(ROOT).parts[0]
        if folder not in MAY_INCLUDE:
            continue
        for include in includes(source):
            found = our_include(include, source)
            used = found.relative_to(ROOT).parts[0] if found else folder
            if used != folder:
                seen.add((folder, used))
                assert used in MAY_INCLUDE[folder], f"{source.relative_to(ROOT)} includes {include}"
    assert ("server", "channel") in seen and ("devices", "include") in seen, "nothing was looked at"


@case("every-source-names-its-licence")
def _(tmp):
    for source in sources(*CODE):
        licence = "GPL-2.0-or-later" if source.relative_to(ROOT).parts[0] == "qemu" else "BSD-3-Clause"
        head = source.read_text().splitlines()[:3]
        assert any(f"SPDX-License-Identifier: {licence}" in line for line in head), source


@case("c-sources-are-formatted")
def _(tmp):
    done = subprocess.run(["clang-format", "--dry-run", "-Werror", *sources(".c", ".h")], cwd=ROOT,
                          stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, "run clang-format -i on these:\n" + done.stderr


@case("public-headers-compile-alone-as-c99-and-as-c++")
def _(tmp):
    assert PUBLIC
    for header in PUBLIC:
        for language in (("c", "c99"), ("c++", "c++11")):
            subprocess.run(["clang", "-x", language[0], f"-std={language[1]}", "-Wall", "-Wextra", "-Wpedantic",
                            "-Werror", "-fsyntax-only", "-I", ROOT / "include", header], check=True)


@case("symbols-of-the-libraries-keep-to-their-prefix")
def _(tmp):
    text = "".join(header.read_text() for header in PUBLIC)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    names = re.findall(r"^#define (\w+)", text, re.MULTILINE) + re.findall(r"\b(?:struct|enum) (\w+) \{", text)
    names += re.findall(r"^[\w ]+?\W\*?(\w+)\([^)]*\)?;?", text, re.MULTILINE)
    wrong = [name for name in names if not re.match(r"(?i)ob_|OUTBOARD_\w+_H$|sizeof", name)]
    assert len(names) > 100 and not wrong, wrong


@case("library-exports-what-the-public-headers-declare")
def _(tmp):
    text = "".join(header.read_text() for header in PUBLIC)
    text = re.sub(r"/\*.*?\*/|^#[^\n]*(\\\n[^\n]*)*", "", text, flags=re.DOTALL | re.MULTILINE)
    declared = set(re.findall(r"\b(ob_\w+)\s*\(", text))
    listed = subprocess.run(["nm", "-D", "--defined-only", BUILD / "liboutboard.so"], check=True,
                            stdout=subprocess.PIPE, text=True).stdout
    exported = {line.split()[-1].split("@")[0] for line in listed.splitlines() if " T " in line}
    assert len(declared) > 50
    assert exported == declared, f"only declared: {declared - exported}; only exported: {exported - declared}"


main()
