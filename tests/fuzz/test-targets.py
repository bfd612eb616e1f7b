#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The fuzz targets: every input of the corpora, and a minute of new ones for all targets together."""
import importlib.machinery
import importlib.util
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, ROOT, case, main, skip

FUZZ_BUILD = BUILD.with_name(BUILD.name + "-fuzz")
SECONDS = 60

loader = importlib.machinery.SourceFileLoader("fuzz_run", str(ROOT / "fuzz/run"))
fuzz = importlib.util.module_from_spec(importlib.util.spec_from_loader("fuzz_run", loader))
loader.exec_module(fuzz)


def target(name):
    if not (FUZZ_BUILD / "fuzz" / f"fuzz-{name}").exists():
        skip(f"{FUZZ_BUILD.name} has no fuzz targets: make check builds them, make fuzz too")
    return fuzz.Target(FUZZ_BUILD, name)


def expect_nothing_found(it, status, output):
    assert status == 0, f"{it.summary(status, output)}\n{output[-8000:]}"
    print(it.summary(status, output))


def register(name, seconds):
    @case(f"{name}-corpus-finds-nothing")
    def _(tmp):
        it = target(name)
        seeds = len(list(it.seeds.iterdir()))
        assert seeds >= 5, f"{it.seeds} has {seeds} inputs"
        expect_nothing_found(it, *it.check_corpus())

    @case(f"{name}-finds-nothing-new-in-{seconds}-s", timeout_s=seconds + 120)
    def _(tmp):
        it = target(name)
        it.corpus = tmp
        expect_nothing_found(it, *it.fuzz(seconds))


for each, share in fuzz.divide(SECONDS, list(fuzz.SHARES)).items():
    register(each, share)


@case("a-finding-is-told-and-kept")
def _(tmp):
    it = target("negotiate")
    it.kept = tmp / "negotiate-"
    status, output = it.run("-runs=1000000", "-rss_limit_mb=1")  # what is found: that it needs more
    assert status != 0, output
    kept, = tmp.iterdir()
    summary = it.summary(status, output)
    assert "FOUND SOMETHING" in summary and f"repeat: {it.program} {kept}" in summary, summary


main()
