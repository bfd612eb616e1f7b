#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Servers that break one rule of features or migration: `outboard check` finds them. Dirty memory: test-mutants-memory.py."""
import pathlib
import struct
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parents[1] / "lib")]
from broken import VERSION
from case import main
from mutants import on_reply, on_request

FEATURE, DATA_READ, DATA_WRITE = 16, 17, 18
MIGRATION, STATE = 1, 2
SET, PROBE = 1 << 17, 1 << 18


# ---- Features


def feature(rule, name, cases, wanted, device="edu"):
    """Of a function(link, message) that sees DEVICE_FEATURE with these flags on its way."""
    return lambda function: on_request(rule, name, cases, device)(
        lambda link, m: function(link, m) if m.cmd == FEATURE and m.field(4) == wanted else m)


def answered(link, m, payload):
    """The server does not get to see it."""
    return link.send(link.client, m.success(payload))


@feature("R-FEATURE-2", "set-what-can-only-be-read", "feature/unknown", SET | MIGRATION, "null")
def _(link, m):
    return answered(link, m, m.payload)


@feature("R-FEATURE-3", "probe-needs-a-method", "feature/probe", PROBE | MIGRATION)
def _(link, m):
    return link.send(link.client, m.refusal())


@feature("R-FEATURE-4", "no-room-needed-for-the-echo", "feature/no-room-for-echo", SET | STATE)
def _(link, m):
    return m.with_field(0, 64)


# ---- Migration


@on_reply("R-MIG-12", "reads-in-any-state", "migration/data-out-of-state", "edu")
def _(request, m):
    return request.success(struct.pack("<II", 8, 0)) if m.cmd == DATA_READ and not m.ok else m


@on_reply("R-MIG-12", "writes-in-any-state", "migration/data-out-of-state", "edu")
def _(request, m):
    return request.success() if m.cmd == DATA_WRITE and not m.ok else m


@on_request("R-MIG-16", "clients-limit-forgotten", "migration/clients-limit", "edu")
def _(link, m):
    return m.but(payload=m.payload.replace(b'xfer_size":4096', b'xfer_size":8192')) if m.cmd == VERSION else m


@on_reply("R-MIG-16", "writes-without-limit", "migration/write-limits", "edu")
def _(request, m):
    return request.success() if m.cmd == DATA_WRITE and len(request.payload) > 1 << 20 else m


@on_request("R-MIG-17", "short-data-padded", "migration/write-limits", "edu")
def _(link, m):
    return m.but(payload=m.payload.ljust(8 + min(m.field(4), 64), b"\0")) if m.cmd == DATA_WRITE else m


main()
