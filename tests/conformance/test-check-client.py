#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""`outboard check --client`: our library passes it, broken clients are caught. The device in QEMU: test-check-qemu.py."""
import json
import pathlib
import re
import shlex
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, OUTBOARD, ROOT, case, main

BROKEN = ROOT / "tests/lib/broken_client.py"


def check(tmp, run, *words):
    done = subprocess.run([OUTBOARD, "check", "--client", tmp / "s", "--run", run, "--json", *map(str, words)],
                          capture_output=True, text=True)
    assert done.returncode in (0, 1) and done.stdout, done
    assert not (tmp / "s").exists()
    return done, json.loads(done.stdout)


def passes(tmp, run, *words):
    done, report = check(tmp, run, "--timeout", 20000, *words)
    bad = [c for c in report["cases"] if c["verdict"] in ("fail", "deviation")]
    assert (done.returncode, bad, done.stderr) == (0, [], ""), (done.returncode, bad, done.stderr)
    return report["summary"]


@case("library-passes-all", timeout_s=300)
def _(tmp):
    summary = passes(tmp, f"exec {shlex.quote(str(BUILD))}/tests/conformance-client {{}}")
    assert summary["pass"] >= 300 and summary["not_offered"] == 0, summary


@case("every-case-is-tied-to-rules-that-are-written-down")
def _(tmp):
    written = set(re.findall(r"^\*\*(R-[A-Z]+-\d+)\*\*", (ROOT / "docs/protocol.md").read_text(), re.M))
    lines = subprocess.run([OUTBOARD, "check", "--list", "--client"], capture_output=True, text=True).stdout.splitlines()
    ids = [line.split()[0] for line in lines]
    assert len(ids) >= 300 and len(set(ids)) == len(ids), [i for i in ids if ids.count(i) > 1]
    for line in lines:
        rules = re.search(r" \((R-[^()]*)\)$", line)
        assert rules and set(rules.group(1).split()) <= written, line


# what a client does wrong, and the case that says so
BREAKAGES = {
    "nothing": None,
    "skips-version": "sent/version-first",
    "version-without-nul": "sent/version-json",
    "sets-error-number": "sent/error-number",
    "sets-flags": "sent/header-flags",
    "fills-reserved": "sent/device-info-reserved",
    "short-request": "sent/sizes",
    "fd-on-request": "sent/fds-where-used",
    "small-argsz": "sent/argsz",
    "empty-mapping": "sent/map-range",
    "mapping-beyond-file": "sent/map-file",
    "overlapping-mapping": "sent/map-overlap",
    "unmaps-nothing": "sent/unmap-exact",
    "large-transfers": "sent/small-transfers",
    "two-irq-actions": "sent/irq-flags",
    "too-many-vectors": "sent/irq-vectors",
    "no-eventfd": "sent/irq-eventfds",
    "fds-to-none": "sent/no-fd",
    "ignores-ids": "reply/device-get-info-wrong-id",
    "ignores-commands": "reply/device-get-info-wrong-command",
    "ignores-sizes": "reply/device-get-info-one-byte-short",
    "ignores-flags": "reply/device-get-info-undefined-flags",
    "ignores-types": "reply/device-get-info-undefined-type",
    "ignores-major": "version/major",
    "ignores-json": "version/not-json",
    "keeps-fds": "reply/device-get-info-closes-fds",
    "expects-whole-messages": "reply/device-get-info-split",
    "answers-unknown": "command/19-is-refused",
    "dies-of-refusals": "refusal/device-get-info-refused",
    "hangs-at-the-end": "loss/device-get-info-unanswered",
    "leaves-at-commands": "command/4-is-refused",
    "reads-anything": "dma-read/nowhere",
    "wrong-data": "memory/read-and-write",
    "answers-no-reply": "command/no-reply",
    "feature-with-two-methods": "migration/methods",
    "feature-argsz-too-small": "migration/argsz",
    "sets-unknown-states": "migration/states",
    "reads-while-running": "migration/data",
    "large-migration-data": "migration/small-data",
    "reads-half-of-the-state": "migration/whole",
    "takes-padding-for-data": "migration/padded",
    "ignores-size-of-migration-data": "migration/more-than-asked",
    "ignores-feature-sizes": "migration/short-feature",
    "ignores-unknown-states": "migration/unknown-state",
    "ignores-refused-states": "migration/transition-refused",
    "logs-twice": "logging/order",
    "ignores-range-of-reports": "logging/other-memory",
    "ring-without-index": "ring/no-index",
    "ring-of-anything": "ring/can-be-cut",
    "ring-closed-or-not": "ring/closed",
    "ring-at-any-count": "ring/counts-more",
    "ring-of-any-state": "ring/not-free",
    "ring-ready-first": "ring/used",
    "ring-with-flags": "ring/second-descriptor",
    "ring-for-resets": "ring/turns",
    "ring-looked-at-once": "ring/closing",
    "ring-asked-for-nothing": "ring/asked",
    "ring-refusals-are-deadly": "ring/errors",
    "ring-of-any-turn": "ring/other-turn",
    "ring-waited-for-for-ever": "ring/never-done",
}


for breakage, caught in BREAKAGES.items():
    @case(f"broken-client-{breakage}")
    def _(tmp, breakage=breakage, caught=caught):
        run = f"exec {shlex.quote(str(BROKEN))} {breakage} {{}}"
        if caught is None:
            for name in filter(None, BREAKAGES.values()):
                passes(tmp, run, "--only", name)
            return
        done, report = check(tmp, run, "--only", caught, "--timeout", 4000)
        verdicts = [c["verdict"] for c in report["cases"]]
        assert (done.returncode, verdicts) == (1, ["fail"]), (done.stdout, done.stderr)
        assert report["cases"][0]["why"] and report["cases"][0]["bytes"], report


@case("client-without-migration-is-not-offered-its-cases", timeout_s=120)
def _(tmp):
    run = f"exec {shlex.quote(str(BROKEN))} never-migrates {{}}"
    for pattern in ("migration/[mw]*", "logging/o*", "reply/mig-data-read-twice"):
        summary = passes(tmp, run, "--only", pattern)
        assert summary["pass"] == 0 < summary["not_offered"], summary


@case("client-started-by-somebody-else")
def _(tmp):
    suite = subprocess.Popen([OUTBOARD, "check", "--client", tmp / "s", "--only", "irq/*"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    try:
        assert "waiting for the client" in suite.stderr.readline()
        while suite.poll() is None:
            subprocess.run([BUILD / "tests/conformance-client", tmp / "s"], stderr=subprocess.DEVNULL)
        assert suite.returncode == 0 and "0 failed, 0 not offered" in suite.stdout.read()
    finally:
        suite.kill()
        suite.communicate()


@case("client-that-never-connects")
def _(tmp):
    done = subprocess.run([OUTBOARD, "check", "--client", tmp / "s", "--run", "exit 3"], capture_output=True, text=True)
    assert done.returncode == 1 and "ended without having connected" in done.stderr, done


@case("path-in-use-is-left-alone")
def _(tmp):
    (tmp / "s").write_text("mine")
    done = subprocess.run([OUTBOARD, "check", "--client", tmp / "s"], capture_output=True, text=True)
    assert done.returncode == 1 and "cannot listen" in done.stderr, done
    assert (tmp / "s").read_text() == "mine"


main()
