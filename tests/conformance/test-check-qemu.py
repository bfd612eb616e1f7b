#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The device in QEMU passes all of `outboard check --client`.

Each case has a machine of its own, whose guest uses the device as a driver does (guest/baremetal/touch.S). Most of a case
is waiting for silence, so several suites run side by side.
"""
import concurrent.futures
import json
import pathlib
import re
import shlex
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, OUTBOARD, case, main, skip
from qtest import qemu_command, shared_ram

FIRMWARE = BUILD / "guest" / "touch.bin"
# of about the same length
BATCHES = ["sent/[a-l]*", "sent/[m-z]*", "reply/[a-d]*", "reply/[e-z]*", "re[!p]*/*", "r[!e]*/*", "[!rs]*/*"]
# The device in QEMU does not migrate: it sends nothing that these are about.
MIGRATION = re.compile("migration/|logging/|.*/mig-data-")
# Nor does it take a second socket: its server could hold the lock of that (SECURITY.md).
NOT_OFFERED = {"late/get-irq-info": "the client does not use a device that does not describe itself",
               "ring/turns": "the client does not use the ring so often",  # its guest has little to do
               **{f"twin/{name}": "the client did not ask for a second socket"
                  for name in ("used", "wrong-socket", "not-a-socket", "ends")}}


def command(ram):
    if not FIRMWARE.exists():
        skip("the bare-metal guest is for x86 machines")
    return shlex.join(qemu_command("-machine", "q35", "-accel", "tcg", "-bios", FIRMWARE, *ram,
                                   "-device", "vfio-user-pci,addr=4,socket={}"))


def check(path, ram, pattern):
    """{id: case of the report}"""
    done = subprocess.run([OUTBOARD, "check", "--client", path, "--run", f"exec {command(ram)}", "--timeout", "20000",
                           "--json", "--only", pattern], capture_output=True, text=True)
    assert done.returncode in (0, 1) and done.stdout, done
    return {c["id"]: c for c in json.loads(done.stdout)["cases"]}


def passes(cases, not_offered):
    bad = [c for c in cases.values() if c["verdict"] not in ("pass", "not_offered")]
    assert not bad, json.dumps(bad, indent=2)
    absent = {c["id"]: c["why"] for c in cases.values() if c["verdict"] != "pass" and not MIGRATION.match(c["id"])}
    assert absent == not_offered, absent


@case("device-passes-all", timeout_s=600)
def _(tmp):
    ram = shared_ram(8)
    command(ram)  # builds the plug-in once, if it must be
    with concurrent.futures.ThreadPoolExecutor(len(BATCHES)) as pool:
        parts = list(pool.map(lambda n: check(tmp / f"s{n}", ram, BATCHES[n]), range(len(BATCHES))))
    cases = {id: c for part in parts for id, c in part.items()}
    assert len(cases) == sum(map(len, parts)), "batches overlap"
    listed = subprocess.run([OUTBOARD, "check", "--list", "--client"], capture_output=True, text=True).stdout
    missed = {line.split()[0] for line in listed.splitlines()} - cases.keys()
    assert not missed, missed
    passes(cases, NOT_OFFERED)


@case("private-memory-is-reached-by-messages", timeout_s=120)
def _(tmp):
    cases = check(tmp / "s", ["-m", "8"], "memory/*")
    passes(cases, {"memory/same-as-in-file": "the memory has no descriptor"})


main()
