# SPDX-License-Identifier: BSD-3-Clause
"""The Python side of the test contract (see tests/run).

    from case import case, main, skip, BUILD
    @case("name-of-the-behaviour", timeout_s=60)
    def _(tmp):            # tmp: a pathlib.Path, a directory removed afterwards
        assert ...
    main()
"""
import os
import pathlib
import shutil
import sys
import tempfile
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("OUTBOARD_BUILD", ROOT / "build")).resolve()
OUTBOARD = BUILD / "tools" / "outboard"

_cases = {}


class Skip(Exception):
    pass


def skip(why):
    raise Skip(why)


def case(name, timeout_s=None):
    def register(function):
        assert name not in _cases, name
        _cases[name] = (function, timeout_s)
        return function
    return register


def main():
    if sys.argv[1:] == ["--list"]:
        for name, (_, timeout_s) in _cases.items():
            print(name if timeout_s is None else f"{name} {timeout_s}")
        sys.exit(0)
    if len(sys.argv) != 2 or sys.argv[1] not in _cases:
        sys.exit(f"usage: {sys.argv[0]} --list | CASE")
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="outboard-test-"))
    try:
        _cases[sys.argv[1]][0](tmp)
        status = 0
    except Skip as why:
        print(why)
        status = 77
    except BaseException:  # a failed assertion, or SIGINT
        traceback.print_exc()
        status = 1
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    sys.stdout.flush()
    sys.exit(status)
