#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Servers that break one rule of eventfds, memory, or of what a client leaves behind: `outboard check` finds them."""
import os
import pathlib
import socket
import struct
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parents[1] / "lib")]
from broken import DMA_MAP, DMA_READ, DMA_UNMAP, DMA_WRITE, IO_FDS, Message, NO_REPLY, RESET, Unbroken, VERSION
from case import main
from mutants import mutant, on_reply, on_request


# ---- Eventfds in place of writes

def io_fds(rule, name, cases):
    """Of a function(request, reply) that sees the answers with entries of BAR 0."""
    return lambda function: on_reply(rule, name, cases, "null --ioeventfds")(
        lambda request, m: function(request, m) if m.cmd == IO_FDS and m.ok and len(m.payload) > 16 else m)


@on_reply("R-IOFD-1", "flags-and-count-ignored", "io-fds/refused")
def _(request, m):
    return request.success(request.payload) if m.cmd == IO_FDS and request.field(8) == 7 and not m.ok else m


@io_fds("R-IOFD-3", "argsz-as-upstreams-formula-has-it", "io-fds/of-regions")
def _(request, m):
    return m.with_field(0, m.field(0) + 16)


@io_fds("R-IOFD-3", "a-count-of-more-than-comes", "io-fds/of-regions")
def _(request, m):
    return m.with_field(12, m.field(12) + 1)


@on_reply("R-IOFD-3", "need-not-told", "io-fds/small-argsz", "null --ioeventfds")
def _(request, m):
    return m.with_field(0, 16) if m.cmd == IO_FDS and m.ok and len(m.payload) == 16 else m


@mutant("R-IOFD-3", "entries-beyond-argsz", "io-fds/small-argsz", "null --ioeventfds")
class _(Unbroken):
    def request(self, link, m):
        return m.with_field(0, 4096) if m.cmd == IO_FDS else m


@io_fds("R-IOFD-4", "fd-that-does-not-come", "io-fds/entries")
def _(request, m):
    return m.with_field(16 + 40 + 16, len(m.fds))


@io_fds("R-IOFD-4", "entry-outside-its-region", "io-fds/entries")
def _(request, m):
    return m.with_field(16, 4096, "<Q")


@mutant("R-FD-2", "more-descriptors-than-the-client-takes", "io-fds/few-fds", "null --ioeventfds")
class _(Unbroken):
    def request(self, link, m):
        return m.but(payload=m.payload.replace(b'fds":1}', b'fds":8}')) if m.cmd == VERSION else m


@io_fds("R-IOFD-7", "odd-size", "io-fds/entries")
def _(request, m):
    return m.with_field(24, 3, "<Q")


@io_fds("R-IOFD-7", "an-entry-twice", "io-fds/entries")
def _(request, m):
    return m.but(payload=m.payload[:56] + m.payload[16:56] + m.payload[96:])


@io_fds("R-IOFD-7", "socket-for-an-eventfd", "io-fds/entries")
def _(request, m):
    with socket.socket() as other:
        os.dup2(other.fileno(), m.fds[0])
    return m


@mutant("R-IOFD-6", "signals-lost", "io-fds/signals-write", "null --ioeventfds")
class _(Unbroken):
    def reply(self, link, request, m):
        if m.cmd == IO_FDS and m.fds:
            link.kept.append(os.eventfd(0))
            os.dup2(link.kept[-1], m.fds[0])
        return m


# ---- Memory

def dma(rule, name, cases, device="null"):
    """Of a function(link, message) that sees DMA_MAP on its way."""
    return lambda function: on_request(rule, name, cases, device)(
        lambda link, m: function(link, m) if m.cmd == DMA_MAP and len(m.payload) == 32 else m)


@dma("R-DMA-1", "undefined-flags-taken", "dma/undefined-flags")
def _(link, m):
    return m.with_field(4, m.field(4) & 0xF)


@dma("R-DMA-2", "nothing-mapped", "dma/nothing")
def _(link, m):
    return m if m.field(24, "<Q") else m.with_field(24, 4096, "<Q")


@dma("R-DMA-2", "end-of-memory-refused", "dma/at-the-end")
def _(link, m):
    end = m.field(16, "<Q") + m.field(24, "<Q")
    return m.with_field(24, 0, "<Q") if end == 1 << 64 else m


@dma("R-DMA-3", "access-without-descriptor", "dma/access-without-fd")
def _(link, m):
    return m if m.fds else m.with_field(4, m.field(4) & 3)


@dma("R-DMA-4", "first-of-two-descriptors", "dma/two-fds")
def _(link, m):
    return m.but(fds=m.fds[:1])


@on_reply("R-DMA-5", "file-not-looked-at", "dma/file-too-short")
def _(request, m):
    return request.success() if m.cmd == DMA_MAP else m


@on_reply("R-DMA-6", "overlap-taken", "dma/overlap-*-byte")
def _(request, m):
    return request.success() if m.cmd == DMA_MAP else m


@on_reply("R-DMA-7", "no-limit", "dma/to-the-limit")
def _(request, m):
    return request.success() if m.cmd == DMA_MAP and m.error == 28 else m


@dma("R-DMA-8", "aligned-only", "dma/unaligned")
def _(link, m):
    return m if m.field(16, "<Q") % 512 == 0 else m.with_field(24, 0, "<Q")


@dma("R-DMA-9", "rights-not-kept", "transfer/*-only", "edu")
def _(link, m):
    return m.with_field(4, m.field(4) | 3)


@on_reply("R-DMA-12", "part-of-a-mapping-unmapped", "unmap/other-range")
def _(request, m):
    return request.success(request.payload) if m.cmd == DMA_UNMAP else m


@on_reply("R-DMA-13", "all-with-a-range", "unmap/all-of-range")
def _(request, m):
    return request.success(request.payload) if m.cmd == DMA_UNMAP and request.field(4) == 2 else m


@on_reply("R-DMA-14", "undefined-unmap-flags-taken", "unmap/undefined-flags")
def _(request, m):
    return request.success(request.payload) if m.cmd == DMA_UNMAP and request.field(4) > 3 else m


@dma("R-DMA-15", "memory-kept", "unmap/lets-go")
def _(link, m):
    link.kept += [os.dup(fd) for fd in m.fds]
    return m


@on_reply("R-DMA-16", "request-not-repeated", "unmap/all")
def _(request, m):
    return m.with_field(4, 0) if m.cmd == DMA_UNMAP else m


@on_request("R-XFER-2", "clients-limit-forgotten", "transfer/split", "edu")
def _(link, m):
    return m.but(payload=m.payload.replace(b'size":100}', b'size":4096}')) if m.cmd == VERSION else m


@mutant("R-XFER-7", "less-is-a-failure", "transfer/short-answers", "edu")
class _(Unbroken):
    def stray(self, link, m):
        return m.refusal() if m.cmd in (DMA_READ, DMA_WRITE) and m.field(8) < 2048 else m


@mutant("R-XFER-8", "old-replies-not-taken", "transfer/old-write-answers", "edu")
class _(Unbroken):
    def stray(self, link, m):
        return m.refusal() if m.cmd == DMA_WRITE and len(m.payload) == 12 else m


# ---- Dirty memory

FEATURE, START, STOP, REPORT = 16, 6, 7, 8


def logs(m, feature):
    return m.cmd == FEATURE and m.field(4) & 0xFFFF == feature


def on_report(rule, name, cases):
    """Of a function(request, bitmap, page_size) that changes the bitmaps of good reports."""
    def change(function):
        def hook(request, m):
            if not m.ok or not logs(m, REPORT):
                return m
            bits = bytearray(m.payload[32:])
            function(request, bits, m.field(24, "<Q"))
            return m.but(payload=m.payload[:32] + bytes(bits))
        return on_reply(rule, name, cases, "edu")(hook)
    return change


def everything(m):
    """A report of more than any case has, with another id."""
    return m.but(number=m.number ^ 0x8000, cmd=FEATURE,
                 payload=struct.pack("<IIQQQ", 4096, REPORT | 0x10000, 0, 1 << 22, 4096))


class Reporter(Unbroken):
    """For mutants that send commands of their own: their replies are dropped."""
    def reply(self, link, request, m):
        return m if m.number == request.number else None


@mutant("R-LOG-1", "logging-never-stops", "dirty/started-anew", "edu")
class _(Unbroken):
    def request(self, link, m):
        if logs(m, START) and not link.state.setdefault("on", False):
            link.state["on"] = True
        elif logs(m, START) or logs(m, STOP):
            link.send(link.client, m.success(m.payload))
            return None
        return m


@on_reply("R-LOG-3", "stopped-twice", "dirty/states", "edu")
def _(request, m):
    return request.success(request.payload) if logs(request, STOP) else m


@mutant("R-LOG-4", "message-dma-not-logged", "dirty/written", "edu")
class _(Unbroken):
    def request(self, link, m):
        if m.cmd == DMA_MAP:
            link.state["messages"] = not m.fds
        return m

    def reply(self, link, request, m):
        silent = logs(m, REPORT) and m.ok and link.state.get("messages")
        return m.but(payload=m.payload[:32] + bytes(len(m.payload) - 32)) if silent else m


@on_report("R-LOG-5", "one-bit-for-larger-pages", "dirty/other-page-sizes")
def _(request, bits, page_size):
    if page_size > 4096 and any(bits):
        bits[:] = b"\1" + bytes(len(bits) - 1)


@on_report("R-LOG-5", "one-bit-of-smaller-pages", "dirty/other-page-sizes")
def _(request, bits, page_size):
    if page_size < 4096:
        bits[:] = bytes(1 if b else 0 for b in bits)


@on_report("R-LOG-5", "one-mapping-only", "dirty/over-mappings")
def _(request, bits, page_size):
    bits[:] = bytes([bits[0] & 0x0F]) + bits[1:]


@mutant("R-LOG-6", "reported-again", "dirty/written", "edu")
class _(Unbroken):
    def reply(self, link, request, m):
        if m.ok and logs(m, REPORT):
            link.state["bits"] = m.field(32, "<Q") | link.state.get("bits", 0)
            return m.with_field(32, link.state["bits"], "<Q")
        return m


@mutant("R-LOG-6", "a-part-reported-and-all-cleared", "dirty/sub-ranges", "edu")
class _(Reporter):
    def request(self, link, m):
        return [m, everything(m)] if logs(m, REPORT) else m


@on_report("R-LOG-7", "highest-bit-first", "dirty/other-page-sizes")
def _(request, bits, page_size):
    bits[:] = bytes(int(f"{b:08b}"[::-1], 2) for b in bits)


@mutant("R-LOG-8", "a-refusal-clears", "dirty/refused-clears-nothing", "edu")
class _(Reporter):
    def request(self, link, m):
        return [everything(m), m] if logs(m, REPORT) and m.field(0) < 48 else m


@mutant("R-LOG-9", "pages-of-the-mapping-before", "dirty/unmap-forgets", "edu")
class _(Unbroken):
    def request(self, link, m):
        link.state["unmapped"] = link.state.get("unmapped") or m.cmd == DMA_UNMAP and not m.field(4)
        return m

    def reply(self, link, request, m):
        stale = m.cmd == DMA_UNMAP and m.ok and len(m.payload) > 40 and link.state["unmapped"]
        return m.with_field(40, 2, "<Q") if stale else m


@mutant("R-LOG-4", "an-unmap-clears-all", "dirty/unmap-forgets", "edu")
class _(Reporter):
    def request(self, link, m):
        return [everything(m), m] if m.cmd == DMA_UNMAP and not m.field(4) else m


@on_reply("R-MIG-11", "logging-outlives-its-client", "dirty/leaving-stops", "edu")
def _(request, m):
    return request.success(request.payload + bytes(8)) if logs(request, REPORT) and not m.ok else m


def on_dirty_unmap(rule, name, cases, device="edu"):
    """Of a function(request, reply) that sees the answers to GET_DIRTY."""
    return lambda function: on_reply(rule, name, cases, device)(
        lambda request, m: function(request, m) if m.cmd == DMA_UNMAP and request.field(4) == 1 else m)


@on_dirty_unmap("R-DMA-18", "always-clean", "dirty/unmap-shows-written")
def _(request, m):
    return m.but(payload=m.payload[:40] + bytes(len(m.payload) - 40)) if m.ok else m


@on_dirty_unmap("R-DMA-18", "always-dirty", "dirty/unmap-shows-written")
def _(request, m):
    return m.but(payload=m.payload[:40] + b"\xff" * (len(m.payload) - 40)) if m.ok else m


@on_dirty_unmap("R-DMA-18", "no-bitmap", "dirty/unmap-shows-written")
def _(request, m):
    return m.but(payload=m.payload[:24])


@on_dirty_unmap("R-DMA-18", "answered-while-off", "dirty/unmap-while-off")
def _(request, m):
    return request.success(request.payload + bytes(request.field(32, "<Q")))


@on_dirty_unmap("R-DMA-18", "bitmap-of-any-size", "dirty/unmap", "null")
def _(request, m):
    return request.success(request.payload) if request.field(32, "<Q") > 1 << 20 else m


# ---- Leaving

@mutant("R-LOSS-1", "state-lost-with-the-client", "session/state-stays")
class _(Unbroken):
    def leave(self, link):
        link.send(link.server, Message(0, RESET, NO_REPLY))


@mutant("R-LOSS-2", "posted-writes-lost-with-the-client", "session/last-words")
class _(Unbroken):
    def request(self, link, m):
        posted = link.state.setdefault("posted", [])
        if m.flags & NO_REPLY:
            posted.append(m)
            return None
        ready, link.state["posted"] = posted, []
        return [*ready, m]


main()
