#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Static analysis finds nothing, in any C source of the tree: clang-tidy, cppcheck, gcc's -fanalyzer.

Each runs on each source with the flags that it is built with. A source in which nothing was found is remembered
in BUILD/static by a hash of all that the verdict depends on, so that only what changed is looked at again.
"""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, OUTBOARD, ROOT, case, main
from tree import closure, sources

HERE = pathlib.Path(__file__).resolve().parent
# What gcc 12 says of leaks is left out: it loses sight of a pointer that is stored through another one, and was
# wrong each time. clang's analyzer looks for the same, and every test runs with LeakSanitizer.
TOOLS = {
    "clang-tidy": ["clang-tidy", "--quiet", f"--config-file={ROOT}/.clang-tidy", f"--header-filter={ROOT}/", "{source}",
                   "--", "-Qunused-arguments", "-Wno-unknown-warning-option"],
    "cppcheck": ["cppcheck", "--quiet", "--enable=warning,style,performance,portability", "--inline-suppr",
                 "--error-exitcode=1", "--library=posix,gnu", f"--library={HERE}/cppcheck.cfg",
                 f"--suppressions-list={HERE}/cppcheck.suppressions", "{source}"],
    "gcc": ["gcc", "-fanalyzer", "-Wno-analyzer-malloc-leak", "-O1", "-c", "-o", "/dev/null", "{source}"],
}
CONFIG = {"clang-tidy": [ROOT / ".clang-tidy"], "cppcheck": [HERE / "cppcheck.cfg", HERE / "cppcheck.suppressions"]}


def meson_flags():
    """{source: (directory, flags)}, as it was built here."""
    flags = {}
    for entry in json.loads((BUILD / "compile_commands.json").read_text()):
        source = (pathlib.Path(entry["directory"]) / entry["file"]).resolve()
        flags.setdefault(source, (entry["directory"], useful(shlex.split(entry["command"]))))
    return flags


def useful(words):
    """Without warnings, outputs and what one compiler has and the other has not."""
    kept, words = [], iter(words)
    for word in words:
        if word in ("-isystem", "-iquote", "-include"):
            kept += [word, next(words)]
        elif re.match(r"-[IDU].|-std=|-m(32|64|cx16)|-ffreestanding$", word):
            kept.append(word)
    return kept


def qemu_flags():
    """Those of the plug-in, in the cache that `outboard qemu` filled when it built it (see qemu/build-plugin)."""
    plugin = subprocess.run([OUTBOARD, "qemu", "--print-plugin"], check=True, stdout=subprocess.PIPE, text=True).stdout
    kept = sorted((pathlib.Path(plugin.strip()).parents[3] / "headers").glob("*/flags"), key=os.path.getmtime)
    assert kept, "QEMU's headers are not in the cache: outboard qemu --build makes them"
    return kept[-1].parent / "build", useful(kept[-1].read_text().split()) + [
        f"-I{ROOT}/include", '-DOB_QEMU_BUILD_ID="00"', '-DOB_QEMU_PACKAGE=""']


def units():
    """(source, directory, flags) of every C source of the tree."""
    built, qemu = meson_flags(), qemu_flags()
    for source in sources(".c"):
        folder = source.relative_to(ROOT).parts
        if folder[0] == "qemu":
            yield source, *qemu
        elif folder[:2] == ("guest", "baremetal"):
            yield source, ROOT, ["-m32", "-ffreestanding"]
        else:  # one that this build leaves out compiles like the others
            yield source, *built.get(source, (ROOT, ["-std=gnu11", "-D_GNU_SOURCE", "-I.", "-Iinclude", "-Itests/lib"]))


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def look(tool, source, directory, flags):
    """What the tool finds in one source, or ""."""
    command = [word.format(source=source) for word in TOOLS[tool]]
    if tool == "cppcheck":  # system headers only slow it down
        flags = [word for word in flags if re.match(r"-[IDU]", word) and not word.startswith("-I/usr/")]
    done = subprocess.run(command + flags, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    found = done.stdout + (done.stderr if tool != "clang-tidy" or done.returncode else "")
    assert done.returncode == 0 or found, f"{tool} ended with {done.returncode} on {source}"
    return found


def findings(tool):
    seen = BUILD / "static"
    seen.mkdir(exist_ok=True)
    version = subprocess.run([tool, "--version"], check=True, stdout=subprocess.PIPE).stdout
    common = digest(version, TOOLS[tool], [file.read_bytes() for file in CONFIG.get(tool, [])])

    def one(unit):
        texts = [file.read_bytes() for file in closure(unit[0])]
        mark = seen / digest(common, [str(part) for part in unit], texts)
        if mark.exists():
            return ""
        found = look(tool, *unit)
        if not found:
            mark.touch()
        return found

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return "\n".join(filter(None, pool.map(one, units())))


def check_nothing(tool):
    found = findings(tool)
    assert not found, f"fix it, or say in place why it is wrong (.clang-tidy, cppcheck.suppressions):\n{found}"


@case("clang-tidy-finds-nothing", timeout_s=1200)
def _(tmp):
    check_nothing("clang-tidy")


@case("cppcheck-finds-nothing", timeout_s=600)
def _(tmp):
    check_nothing("cppcheck")


@case("gcc-analyzer-finds-nothing", timeout_s=600)
def _(tmp):
    check_nothing("gcc")


@case("each-analyzer-finds-a-planted-fault")
def _(tmp):
    source = tmp / "fault.c"
    source.write_text("int fault(int n);\nint fault(int n)\n{\n    int *p = 0;\n    if (n == 5)\n"
                      "        return *p;\n    return n;\n}\n")
    for tool in TOOLS:
        assert "fault.c:6" in look(tool, source, tmp, []), tool


@case("every-suppression-says-why")
def _(tmp):
    marks = r"NOLINT(?:NEXTLINE|BEGIN)?\b(.*)|cppcheck-suppress\b(.*)|#pragma GCC diagnostic ignored(.*)"
    seen = 0
    for source in sources(".c", ".h"):
        for line in source.read_text().splitlines():
            match = re.search(marks, line)
            if match:
                seen += 1
                rest = next(filter(None, match.groups()), "")
                assert re.match(r"\([\w.,-]+\): \w|\s\w+; \w", rest), f"{source.relative_to(ROOT)}: {line}"
    assert seen


main()
