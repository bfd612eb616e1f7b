#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""usage: syscalls.py SOURCE... >syscalls.inc

Collects the system calls that the sources say they make into the table of the sandbox's filter
(sandbox_seccomp.c). They say it in comments beside the code:

    /* syscalls: read, fcntl(1=F_GETFL), mmap(2&PROT_EXEC=0) */
    /* syscalls[reopens]: openat */

NAME(N=VALUE) is the call with just that value of argument N, counted from 0; NAME(N&MASK=VALUE)
with that in the bits of MASK. A call that is named more than once may be made in any of the ways.
In brackets is what the process must need for it, a member of enum sandbox_need.
"""
import re
import sys

COMMENT = re.compile(r"/\*\s*syscalls(?:\[(\w+)\])?:(.*?)\*/", re.DOTALL)
CALL = re.compile(r"(\w+)(?:\((\d)(?:&(\w+))?=(\w+(?:\(\))?)\))?")


def calls_of(path):
    """(call, need, argument, mask, value) of each annotation; argument is None without a condition."""
    with open(path, encoding="utf-8") as source:
        text = source.read()
    for need, names in COMMENT.findall(text):
        for word in re.sub(r"\n\s*\*", " ", names).split(","):
            found = CALL.fullmatch(word.strip())
            if not found:
                sys.exit(f"{path}: no system call: '{word.strip()}'")
            name, argument, mask, value = found.groups()
            yield name, need or "always", argument, mask or "UINT64_MAX", value


def collect(paths):
    calls = {}
    for path in paths:
        for call in calls_of(path):
            calls.setdefault(call, path)
    for name, need, argument, *_ in calls:
        if argument is not None and any(other[:3] == (name, need, None) for other in calls):
            sys.exit(f"{name} is named with a condition and without one, which is then all that counts")
    return calls


def main():
    print("/* Made by tools/syscalls.py from the comments of the sources named here. */")
    for (name, need, argument, mask, value), path in sorted(collect(sys.argv[1:]).items(), key=str):
        where = re.sub(r"^(\.\./)*", "", path)
        if argument is None:
            print(f"CALL({name}, NEED_{need.upper()}) /* {where} */")
        else:
            print(f"CALL_IF({name}, NEED_{need.upper()}, {argument}, {mask}, {value}) /* {where} */")


main()
