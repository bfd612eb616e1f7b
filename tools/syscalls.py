#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""usage: syscalls.py SOURCE... >syscalls.inc

Collects the system calls that the sources say they make into the table of the sandbox's filter
(sandbox_seccomp.c). They say it in comments beside the code:

    /* syscalls: read, fcntl(1=F_GETFL), mmap(2&PROT_EXEC=0) */
    /* syscalls[reopens]: openat */

NAME(N=VALUE) is the call with just that value of argument N, counted from 0; NAME(N&MASK=VALUE)
with that in the bits of MASK; NAME(N=VALUE M=VALUE) with both. A call that is named more than once
may be made in any of the ways. In brackets is what the process must need for it, a member of enum
sandbox_need.
"""
import re
import sys

COMMENT = re.compile(r"/\*\s*syscalls(?:\[(\w+)\])?:(.*?)\*/", re.DOTALL)
CONDITION = r"(\d)(?:&(\w+))?=(\w+(?:\(\))?)"
CALL = re.compile(rf"(\w+)(?:\(({CONDITION}(?: {CONDITION})?)\))?")


def calls_of(path):
    """(call, need, conditions) of each annotation; a condition is (argument, mask, value)."""
    with open(path, encoding="utf-8") as source:
        text = source.read()
    for need, names in COMMENT.findall(text):
        for word in re.sub(r"\n\s*\*", " ", names).split(","):
            found = CALL.fullmatch(word.strip())
            if not found:
                sys.exit(f"{path}: no system call: '{word.strip()}'")
            conditions = re.findall(CONDITION, found[2] or "")
            yield found[1], need or "always", tuple((n, mask or "UINT64_MAX", value) for n, mask, value in conditions)


def collect(paths):
    calls = {}
    for path in paths:
        for call in calls_of(path):
            calls.setdefault(call, path)
    for name, need, conditions in calls:
        if conditions and (name, need, ()) in calls:
            sys.exit(f"{name} is named with a condition and without one, which is then all that counts")
    return calls


def main():
    print("/* Made by tools/syscalls.py from the comments of the sources named here. */")
    for (name, need, conditions), path in sorted(collect(sys.argv[1:]).items(), key=str):
        where = re.sub(r"^(\.\./)*", "", path)
        arguments = "".join(f", ARG({', '.join(condition)})" for condition in conditions)
        print(f"CALL({name}, NEED_{need.upper()}, {len(conditions)}{arguments}) /* {where} */")


main()
