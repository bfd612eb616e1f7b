#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Servers that break one rule each: `outboard check` finds every one, by a case of that rule.

Header, order, sessions, regions and interrupts; memory is in test-mutants-memory.py, and what can migrate in
test-mutants-migration.py."""
import os
import pathlib
import struct
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parents[1] / "lib")]
from broken import (DMA_MAP, DMA_UNMAP, GET_INFO, IRQ_INFO, Message, NO_REPLY, READ, REGION_INFO, RESET, SET_IRQS,
                    Closed, Unbroken, VERSION, WRITE, broken_server)
from case import case, main
from mutants import check, mutant, on_reply, on_request

MASK, UNMASK, TRIGGER = 8, 16, 32
FIXED = {DMA_MAP: 32, DMA_UNMAP: 24, GET_INFO: 16, REGION_INFO: 32, 6: 16, IRQ_INFO: 16, SET_IRQS: 20, READ: 16,
         WRITE: 16, RESET: 0}


@case("unbroken-server-passes-behind-the-man-in-the-middle", timeout_s=240)
def _(tmp):
    with broken_server(tmp, "edu", Unbroken()) as path:
        status, report = check(path, "[!r]*")
    assert status == 0, [c for c in report["cases"] if c["verdict"] == "fail"]


# ---- Header

@on_reply("R-HDR-1", "another-id", "message/device-get-info-is-answered")
def _(request, m):
    return m.but(number=m.number ^ 1)


@on_reply("R-HDR-1", "id-of-15-bits", "header/any-id")
def _(request, m):
    return m.but(number=m.number & 0x7FFF)


@on_reply("R-HDR-2", "another-command", "message/device-get-info-is-answered")
def _(request, m):
    return m.but(cmd=IRQ_INFO) if m.cmd == GET_INFO else m


@on_reply("R-HDR-6", "answers-twice", "message/device-get-irq-info-is-answered")
def _(request, m):
    return [m, m.but(fds=[])]


@on_reply("R-HDR-11", "silent-instead-of-refusing", "message/dma-map-one-byte-short")
def _(request, m):
    return m if m.ok else None


@on_request("R-HDR-3", "other-types-are-commands", "header/region-read-undefined-types")
def _(link, m):
    return m.but(flags=m.flags & ~0xF)


@on_request("R-HDR-4", "undefined-flags-taken", "header/region-read-undefined-flags")
def _(link, m):
    return m.but(flags=m.flags & 0x1F)


@on_reply("R-HDR-4", "undefined-flag-in-replies", "header/device-get-info-undefined-flags")
def _(request, m):
    return m.but(flags=m.flags | 0x80)


@on_request("R-HDR-5", "error-number-of-a-command-counts", "header/region-read-error-number")
def _(link, m):
    return m.but(payload=b"") if m.error else m


@on_request("R-HDR-7", "answers-all-the-same", "header/region-write-no-reply")
def _(link, m):
    return m.but(flags=m.flags & ~NO_REPLY)


@mutant("R-HDR-7", "answers-failures-all-the-same", "header/dma-map-no-reply*")
class _(Unbroken):
    def request(self, link, m):
        link.state[m.number] = m.flags & NO_REPLY
        return m.but(flags=m.flags & ~NO_REPLY)

    def reply(self, link, request, m):
        return None if m.ok and link.state.get(m.number) else m


@on_request("R-HDR-10", "unknown-commands-end-the-connection", "stream/unknown-commands")
def _(link, m):
    if m.cmd not in FIXED and m.cmd > 18:
        raise Closed
    return m


@on_reply("R-HDR-10", "removed-command-succeeds", "stream/removed-command")
def _(request, m):
    return request.success() if request.cmd == 14 else m


@on_request("R-HDR-11", "short-payloads-padded", "message/dma-*-one-byte-short")
def _(link, m):
    return m.but(payload=m.payload.ljust(FIXED.get(m.cmd, 0), b"\0"))


@on_request("R-HDR-11", "long-payloads-cut", "message/device-get-info-one-byte-long")
def _(link, m):
    return m.but(payload=m.payload[:16]) if m.cmd == GET_INFO else m


@mutant("R-HDR-13", "stray-replies-answered", "header/device-get-info-stray-reply")
class _(Unbroken):
    def stray(self, link, m):
        link.send(link.client, m.refusal())


@on_request("R-HDR-14", "writes-what-it-refuses", "access/data-differs-from-count")
def _(link, m):
    if m.cmd != WRITE or len(m.payload) == 16 + m.field(12) or m.field(12) != 1:
        return m
    return [Message(0, WRITE, NO_REPLY, 0, m.payload[:16] + b"\x99"), m]


@on_request("R-HDR-16", "argsz-not-looked-at", "message/device-get-irq-info-argsz-one-short")
def _(link, m):
    return m.with_field(0, 16) if m.cmd == IRQ_INFO else m


@on_request("R-HDR-16", "argsz-must-be-exact", "message/dma-map-argsz-larger")
def _(link, m):
    return m.with_field(0, 0) if m.cmd == DMA_MAP and m.field(0) != 32 else m


@on_reply("R-HDR-16", "argsz-returned-as-it-came", "message/device-get-irq-info-argsz-larger")
def _(request, m):
    return m.with_field(0, request.field(0)) if m.cmd == IRQ_INFO and m.ok else m


# ---- Framing and order

@mutant("R-FRAME-4", "header-must-come-whole", "stream/device-get-info-split")
class _(Unbroken):
    def piece(self, link, need, before, piece):
        if need == 16 and len(piece) < 16:
            raise Closed


@mutant("R-FRAME-4", "payload-must-come-whole", "stream/region-read-split")
class _(Unbroken):
    def piece(self, link, need, before, piece):
        if len(before) >= 16 and len(before) + len(piece) < need:
            raise Closed


@mutant("R-FRAME-5", "size-below-16-taken-for-16", "stream/size-15")
class _(Unbroken):
    def size(self, size):
        return max(size, 16)


@on_request("R-FRAME-6", "large-messages-end-the-connection", "stream/oversize")
def _(link, m):
    if len(m.payload) > 1 << 20:
        raise Closed
    return m


@mutant("R-FRAME-8", "one-connection-at-a-time", "session/stalled-version")
class _(Unbroken):
    serial = True


@mutant("R-VERSION-10", "silence-is-waited-for", "session/silent-ones")
class _(Unbroken):
    serial = True


@mutant("R-ORDER-1", "replies-swapped", "stream/pipelined")
class _(Unbroken):
    def reply(self, link, request, m):
        held = link.state.pop("held", None)
        if held:
            return [m, held]
        if link.waiting and m.cmd == GET_INFO:
            link.state["held"] = m
            return None
        return m


@on_request("R-ORDER-5", "commands-lost-while-it-waits", "transfer/crossing", "edu")
def _(link, m):
    return None if link.asked else m


# ---- Descriptors

@on_request("R-FD-4", "descriptors-kept", "fds/device-get-info-closes-one")
def _(link, m):
    link.kept += [os.dup(fd) for fd in m.fds]
    return m


@on_request("R-FD-4", "descriptors-not-expected", "fds/device-reset-closes-one")
def _(link, m):
    if m.cmd == RESET and m.fds:
        raise Closed
    return m


@mutant("R-FD-3", "descriptors-with-the-first-byte-only", "fds/with-later-byte")
class _(Unbroken):
    def piece(self, link, need, before, piece):
        link.state["late"] = len(before) == 16

    def request(self, link, m):
        return m.but(fds=[]) if link.state.get("late") and m.cmd == DMA_MAP else m


# ---- VERSION

@mutant("R-VERSION-2", "commands-before-version", "header/device-get-info-before-version")
class _(Unbroken):
    def request(self, link, m):
        if m.cmd == VERSION or link.state.get("ready"):
            return m
        link.state["ready"] = True
        link.waiting.append((0, Message(0, VERSION)))
        link.send(link.server, Message(0, VERSION, 0, 0, b"\0\0\0\0"))
        return m

    def reply(self, link, request, m):
        return None if request.payload == b"" and m.cmd == VERSION else m


@on_request("R-VERSION-2", "waits-for-a-version", "version/unknown-command-first")
def _(link, m):
    return link.send(link.client, m.refusal()) if m.cmd == 999 else m


@on_reply("R-VERSION-3", "negotiates-again", "version/twice")
def _(request, m):
    return request.success(request.payload) if m.cmd == VERSION else m


@on_request("R-VERSION-4", "any-major", "version/other-major")
def _(link, m):
    return m.with_field(0, 0, "<H") if m.cmd == VERSION else m


@on_reply("R-VERSION-5", "minor-raised", "version/answers-own-version")
def _(request, m):
    return m.with_field(2, 3, "<H") if m.cmd == VERSION else m


@on_request("R-VERSION-7", "json-needed", "version/only-nul")
def _(link, m):
    return m.but(payload=m.payload[:4] + b"x\0") if m.cmd == VERSION and len(m.payload) == 5 else m


@on_reply("R-VERSION-8", "too-long-for-qemu", "version/reply-fits-qemu")
def _(request, m):
    return m.but(payload=m.payload[:-1] + b" " * 200 + b"\0") if m.cmd == VERSION and m.ok else m


@on_reply("R-VERSION-9", "a-second-client-gets-in", "session/second-client-refused")
def _(request, m):
    return request.success(request.payload) if m.cmd == VERSION else m


@on_request("R-CAPS-3", "unknown-keys-refused", "version/unknown-keys")
def _(link, m):
    return m.but(payload=m.payload[:4] + b"[]\0") if b"x-new" in m.payload else m


@on_request("R-CAPS-4", "types-not-checked", "version/max-msg-fds-string")
def _(link, m):
    return m.but(payload=m.payload.replace(b'"8"', b"8")) if m.cmd == VERSION else m


@on_request("R-CAPS-4", "migration-not-looked-at", "version/migration-*")
def _(link, m):
    return m.but(payload=m.payload[:4] + b"{}\0") if b"migration" in m.payload else m


@on_request("R-CAPS-5", "nul-not-needed", "version/no-nul")
def _(link, m):
    return m.but(payload=m.payload + b"\0") if m.cmd == VERSION else m


@on_reply("R-CAPS-6", "turns-on-what-was-not-proposed", "version/reply-is-subset")
def _(request, m):
    return m.but(payload=m.payload[:4] + b'{"capabilities":{"write_multiple":true}}\0') if m.cmd == VERSION else m


@on_request("R-CAPS-7", "descriptors-to-who-takes-none", "region/client-without-fds")
def _(link, m):
    return m.but(payload=m.payload.replace(b'fds":0', b'fds":8')) if m.cmd == VERSION else m


# ---- Device and regions

@on_reply("R-DEVICE-1", "not-pci", "device/info")
def _(request, m):
    return m.with_field(4, 1) if m.cmd == GET_INFO else m


@on_reply("R-DEVICE-2", "argsz-of-the-request", "device/info")
def _(request, m):
    return m.with_field(0, 32) if m.cmd == GET_INFO else m


@on_request("R-DEVICE-5", "reset-does-nothing", "config/reset-clears-command")
def _(link, m):
    if m.cmd != RESET:
        return m
    return link.send(link.client, m.success())


@on_request("R-REGION-1", "any-index", "region/no-such")
def _(link, m):
    return m.with_field(8, 8) if m.cmd == REGION_INFO and m.field(8) > 8 else m


@on_reply("R-REGION-2", "absent-regions-have-flags", "region/absent")
def _(request, m):
    return m.with_field(4, 3) if m.cmd == REGION_INFO and m.field(16, "<Q") == 0 else m


@on_reply("R-REGION-4", "promises-what-does-not-fit", "region/small-argsz")
def _(request, m):
    return m.with_field(4, m.field(4) | 8).with_field(12, 32) if m.cmd == REGION_INFO and m.field(0) > 32 else m


@on_reply("R-REGION-5", "mappable-without-descriptor", "region/one-fd-with-mmap")
def _(request, m):
    return m.but(fds=[]) if m.cmd == REGION_INFO else m


@on_reply("R-REGION-14", "area-outside-its-region", "region/described")
def _(request, m):
    return m.with_field(56, 1 << 32, "<Q") if m.cmd == REGION_INFO and len(m.payload) > 32 else m


@on_request("R-REGION-18", "writes-of-two-bytes-refused", "config/write-sizes")
def _(link, m):
    return m.with_field(8, 99) if m.cmd == WRITE and m.field(12) == 2 else m


@on_reply("R-REGION-18", "capability-headers-refused", "config/capability-headers", "edu")
def _(request, m):
    return request.refusal(1) if m.cmd == WRITE and request.field(8) == 7 and request.field(0) >= 0x40 else m


@on_reply("R-REGION-19", "bars-of-another-size", "config/bars-size-regions")
def _(request, m):
    return m.with_field(16, 512, "<Q") if m.cmd == REGION_INFO and m.field(8) == 0 else m


@on_reply("R-ACCESS-1", "read-without-its-data", "access/sizes-agree")
def _(request, m):
    return m.but(payload=m.payload[:16]) if m.cmd == READ else m


@on_request("R-ACCESS-2", "data-cut-to-count", "access/data-differs-from-count")
def _(link, m):
    return m.but(payload=m.payload[:16] + m.payload[16:].ljust(m.field(12), b"\0")[:m.field(12)]) if m.cmd == WRITE \
        else m


@on_reply("R-ACCESS-3", "zeros-past-the-end", "access/read-past-end")
def _(request, m):
    return request.success(request.payload + bytes(request.field(12))) if m.cmd == READ and not m.ok else m


@on_reply("R-ACCESS-4", "no-limit", "access/*-over-limit")
def _(request, m):
    return request.success(request.payload[:16]) if m.cmd == WRITE and not m.ok else m


@on_request("R-ACCESS-5", "no-bytes-refused", "access/count-zero")
def _(link, m):
    return m.with_field(8, 99) if m.cmd in (READ, WRITE) and m.field(12) == 0 else m


# ---- Interrupts

def irq(rule, name, cases):
    """Of a function(message, flags) that sees SET_IRQS on its way."""
    def register(function):
        return on_request(rule, name, cases, "edu")(
            lambda link, m: function(m, m.field(4)) if m.cmd == SET_IRQS and len(m.payload) >= 20 else m)
    return register


def nothing(m):
    """A message in place of m that succeeds and does nothing."""
    return m.but(payload=struct.pack("<IIIII", 20, 1 | UNMASK, 1, 0, 1), fds=[])


@on_reply("R-IRQ-1", "any-irq-index", "irq/no-such", "edu")
def _(request, m):
    return request.success(struct.pack("<IIII", 16, 1, request.field(8), 0)) if m.cmd == IRQ_INFO else m


@irq("R-IRQ-4", "both-kinds-of-data", "irq/flag-combinations")
def _(m, flags):
    return m.with_field(4, flags & ~2) if flags & 3 == 3 else m


@irq("R-IRQ-5", "vectors-past-the-last", "irq/intx-past-count")
def _(m, flags):
    return m.with_field(12, 0).with_field(16, 1) if m.field(12) else m


@irq("R-IRQ-6", "all-not-taken-back", "irq/msi-all-taken-back")
def _(m, flags):
    return nothing(m) if m.field(16) == 0 else m


@irq("R-IRQ-7", "bools-padded", "irq/data-differs-from-count")
def _(m, flags):
    return m.but(payload=m.payload.ljust(20 + m.field(16), b"\0")) if flags & 2 else m


@on_request("R-IRQ-8", "only-1-is-true", "irq/msi-x-fires-by-bool", "nvme mem:16M")
def _(link, m):
    return m.but(payload=m.payload[:20] + bytes(b == 1 for b in m.payload[20:])) if m.cmd == SET_IRQS else m


@mutant("R-IRQ-9", "eventfds-not-replaced", "irq/msi-replaced", "edu")
class _(Unbroken):
    def request(self, link, m):
        if m.cmd != SET_IRQS or not m.fds or link.state.setdefault("first", m.number) == m.number:
            return m
        return nothing(m)


@irq("R-IRQ-10", "vectors-not-taken-back", "irq/msi-taken-back")
def _(m, flags):
    return nothing(m) if flags == 4 | TRIGGER and not m.fds else m


@irq("R-IRQ-11", "other-number-of-descriptors", "irq/fds-differ-from-count")
def _(m, flags):
    return m.but(fds=m.fds[:m.field(16)] if flags & 4 else [])


@on_reply("R-IRQ-12", "any-descriptor", "irq/msi-no-eventfd", "edu")
def _(request, m):
    return request.success() if m.cmd == SET_IRQS else m


@irq("R-IRQ-14", "mask-does-nothing", "irq/msi-mask-holds")
def _(m, flags):
    return nothing(m) if flags & MASK else m


@irq("R-IRQ-16", "trigger-does-nothing", "irq/msi-fires")
def _(m, flags):
    return nothing(m) if flags == 1 | TRIGGER and m.field(16) else m


@irq("R-IRQ-17", "eventfds-for-unmask-dropped", "irq/msi-unmask-by-eventfd")
def _(m, flags):
    return nothing(m) if flags == 4 | UNMASK else m


main()
