#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""`outboard check`: our servers pass it, every rule it cites is written down."""
import contextlib
import json
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import OUTBOARD, ROOT, case, main

DEVICES = {"null": [], "gpio": [], "edu": [], "nvme": ["mem:16M"]}


@contextlib.contextmanager
def serving(device, path):
    with open(f"{path}.log", "w") as log:
        process = subprocess.Popen([OUTBOARD, "serve", device, path, *DEVICES[device]], stdout=subprocess.PIPE,
                                   stderr=log, text=True)
    try:
        assert process.stdout.readline(), "it did not start"
        yield
        assert process.poll() is None, "the server did not survive"
    finally:
        process.terminate()
        process.communicate()


def check(*words):
    return subprocess.run([OUTBOARD, "check", *map(str, words)], capture_output=True, text=True, errors="replace")


def passes(device, tmp):
    with serving(device, tmp / "s"):
        done = check(tmp / "s", "--json", "--timeout", 20000)
    report = json.loads(done.stdout)
    bad = [c for c in report["cases"] if c["verdict"] in ("fail", "deviation")]
    assert (done.returncode, bad, done.stderr) == (0, [], ""), (done.returncode, bad, done.stderr)
    return report


for name in DEVICES:
    @case(f"{name}-passes-all", timeout_s=300)
    def _(tmp, name=name):
        report = passes(name, tmp)
        assert report["summary"]["pass"] >= 250, report["summary"]


@case("every-case-is-tied-to-rules-that-are-written-down")
def _(tmp):
    written = set(re.findall(r"^\*\*(R-[A-Z]+-\d+)\*\*", (ROOT / "docs/protocol.md").read_text(), re.M))
    lines = check("--list").stdout.splitlines()
    ids = [line.split()[0] for line in lines]
    assert len(ids) >= 250 and len(set(ids)) == len(ids), [i for i in ids if ids.count(i) > 1]
    for line in lines:
        rules = re.search(r" \((R-[^()]*)\)$", line)
        assert rules and set(rules.group(1).split()) <= written, line


main()
