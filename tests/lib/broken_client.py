#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A client with one thing wrong: broken_client.py WRONG SOCKET. With "nothing" it keeps the rules that it knows.

For the test of `outboard check --client`, which must find out."""
import array
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import time

import ring

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, IRQ_INFO, SET_IRQS, REGION_READ, RESET = 1, 2, 3, 4, 5, 7, 8, 9, 13
DMA_READ, DMA_WRITE = 11, 12
FEATURE, MIG_DATA_READ, MIG_DATA_WRITE = 16, 17, 18
GET, SET = 1 << 16, 1 << 17
MIGRATION, STATE, LOG_START, LOG_STOP, LOG_REPORT = 1, 2, 6, 7, 8
RUNNING, STOP_COPY, RESUMING = 2, 3, 4
REGION_WRITE, NO_REPLY, LINE = 10, 0x10, 0x3c
HEADER = struct.Struct("<HHIII")
ADDRESS, SIZE = 0x100000, 0x200000
WRONG, PATH = sys.argv[1:]


class Broken(Exception):
    """The server broke a rule, or left."""


def wait(for_what, seconds):
    until = time.monotonic() + seconds
    while not (so := for_what()) and time.monotonic() < until:
        time.sleep(0)
    return so


class Client:
    wants_fds = False

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(PATH)
        self.next_id = 1
        self.kept = []
        self.memory = memoryview(bytearray(SIZE))
        self.fds_taken = 1
        self.largest = 1 << 20
        self.migrates = False
        self.ring = None
        self.ring_at = self.sent = 0
        self.came = []

    def receive(self, size):
        data = b""
        while len(data) < size:
            piece, ancillary, _, _ = self.socket.recvmsg(size - len(data), socket.CMSG_SPACE(253 * 4))
            for _, _, body in ancillary:
                fds = array.array("i")
                fds.frombytes(body[:len(body) - len(body) % 4])
                if WRONG == "keeps-fds":
                    self.kept += fds
                elif self.wants_fds:
                    self.came = list(fds)
                else:
                    for fd in fds:
                        os.close(fd)
                self.fds_came = len(fds)
            if not piece:
                raise Broken("the server left")
            data += piece
            if WRONG == "expects-whole-messages" and len(data) < size:
                raise Broken("a message in pieces")
        return data

    def message(self):
        self.fds_came = 0
        msg_id, cmd, size, flags, error = HEADER.unpack(self.receive(HEADER.size))
        if size < HEADER.size:
            raise Broken("a short message")
        return msg_id, cmd, flags, error, self.receive(size - HEADER.size)

    def ask(self, cmd, payload=b"", fds=(), flags=0, least=0, most=1 << 20):
        """The reply's payload, or None after a refusal."""
        self.next_id = msg_id = self.next_id + 1
        error = 7 if WRONG == "sets-error-number" else 0
        if WRONG == "sets-flags":
            flags |= 0x100
        if self.ring and cmd in (REGION_READ, REGION_WRITE) and (got := self.try_ring(msg_id, cmd, payload, flags)):
            return got[0]
        self.sent += cmd != VERSION
        self.wants_fds = cmd == VERSION
        header = HEADER.pack(msg_id, cmd, HEADER.size + len(payload), flags, error)
        socket.send_fds(self.socket, [header + payload], list(fds)) if fds else self.socket.sendall(header + payload)
        return None if flags & NO_REPLY else self.reply(msg_id, cmd, least, most)

    def reply(self, msg_id, cmd, least=0, most=1 << 20):
        while True:
            got_id, got_cmd, got_flags, error, reply = self.message()
            if got_flags & 15 != 0:
                break
            self.serve(got_id, got_cmd, got_flags, reply)
        if got_flags & 15 != 1 and WRONG != "ignores-types" or got_flags & ~0x21 & ~15 and WRONG != "ignores-flags":
            raise Broken("undefined flags")
        if got_id != msg_id and WRONG != "ignores-ids" or got_cmd != cmd and WRONG != "ignores-commands":
            raise Broken("another command's reply")
        if got_flags & 0x20:
            if WRONG == "dies-of-refusals":
                os.kill(os.getpid(), signal.SIGABRT)
            return None
        if not least <= len(reply) <= most and WRONG not in ("ignores-sizes", "ignores-commands"):
            raise Broken("a reply of the wrong size")
        return reply

    def serve(self, msg_id, cmd, flags, payload):
        if WRONG == "leaves-at-commands" and cmd not in (DMA_READ, DMA_WRITE):
            raise Broken("a command")
        reply = self.transfer(cmd, payload) if cmd in (DMA_READ, DMA_WRITE) and not self.fds_came else None
        if cmd not in (DMA_READ, DMA_WRITE) and WRONG == "answers-unknown":
            reply = b""
        if flags & 0x10 and WRONG != "answers-no-reply":
            return
        if flags & ~0x10:
            reply = None
        error = 22 if reply is None else 0
        reply = reply or b""
        self.socket.sendall(HEADER.pack(msg_id, cmd, HEADER.size + len(reply), 0x21 if error else 1, error) + reply)

    def transfer(self, cmd, payload):
        if len(payload) < 16 or cmd == DMA_READ and len(payload) != 16:
            return None
        address, count = struct.unpack_from("<QQ", payload)
        start = address - ADDRESS
        if not 0 <= start <= SIZE or count > min(SIZE - start, 1 << 20):
            return payload[:16] + bytes(count) if WRONG == "reads-anything" and count <= 1 << 20 else None
        if cmd == DMA_WRITE:
            if len(payload) != 16 + count:
                return None
            if WRONG != "wrong-data":
                self.memory[start:start + count] = payload[16:]
            return payload[:16]
        return payload + bytes(self.memory[start:start + count])

    # the access ring

    def take_ring(self, said):
        if not isinstance(said, dict) or not isinstance(said.get("supported", False), bool):
            raise Broken("no ring")
        if not said.get("supported"):
            return
        index = said.get("fd_index", 0 if WRONG == "ring-without-index" else None)
        if not isinstance(index, int):
            raise Broken("a ring without an index")
        fd = self.came[index] if index < len(self.came) else None
        with contextlib.suppress(OSError):
            if fd is not None and (WRONG == "ring-of-anything" or fcntl.fcntl(fd, fcntl.F_GET_SEALS)
                                   & fcntl.F_SEAL_SHRINK and os.fstat(fd).st_size >= ring.SIZE):
                self.ring = ring.Ring(fd)

    def is_open(self):
        accepts = self.ring.accepts
        return (accepts & ring.POLLS or WRONG == "ring-closed-or-not") and (
            accepts >> 1 == self.sent or WRONG == "ring-at-any-count")

    def try_ring(self, msg_id, cmd, payload, flags):
        """[the reply's payload, or None], if it could be put there."""
        shared, number = self.ring, self.ring_at
        offset, region, count = struct.unpack_from("<QII", payload)
        ready, free = ring.before(number) + ring.READY, ring.after(number)
        if count > 8 or not self.is_open() or shared.state(number) != free - ring.TURN and WRONG != "ring-of-any-state":
            return None
        if WRONG == "ring-looked-at-once":
            wait(lambda: not self.is_open(), 0.01)
        if WRONG == "ring-ready-first":
            shared.change_state(number, shared.state(number), ready)
            time.sleep(0.005)
        for field, value in ((ring.FLAGS, flags | (1 << 8 if WRONG == "ring-with-flags" else 0)), (ring.ID, msg_id),
                             (ring.CMD, RESET if WRONG == "ring-for-resets" else cmd), (ring.REGION, region),
                             (ring.OFFSET, offset), (ring.COUNT, count), (ring.DATA, payload[16:].ljust(8, b"\0"))):
            shared.put(number, field, value)
        if WRONG != "ring-ready-first":
            shared.change_state(number, shared.state(number), ready)
        self.ring_at += 1
        if WRONG != "ring-looked-at-once" and not self.is_open() and shared.change_state(number, ready, free):
            return None
        return [None] if flags & NO_REPLY else [self.result(number, msg_id, cmd, payload)]

    def is_done(self, number):
        done = self.ring.get(number, ring.DONE)
        return done == ring.after(number) or WRONG == "ring-of-any-turn" and done != 0

    def result(self, number, msg_id, cmd, payload):
        patience = 3600 if WRONG == "ring-waited-for-for-ever" else 0.002
        if not wait(lambda: self.is_done(number), patience):
            state = self.ring.state(number)
            while state & ring.STEPS and not self.ring.change_state(number, state, state | ring.ASKED):
                state = self.ring.state(number)
            if state & ring.STEPS and WRONG != "ring-asked-for-nothing":
                self.socket.settimeout(2)
                return self.reply(msg_id, cmd)
            wait(lambda: self.is_done(number), 1)
        if self.ring.get(number, ring.ERROR):
            if WRONG == "ring-refusals-are-deadly":
                os.kill(os.getpid(), signal.SIGABRT)
            return None
        return payload[:16] + self.ring.get(number, ring.RESULT)[:struct.unpack_from("<I", payload, 12)[0]]

    def use_registers(self):
        for i in range(300):
            where = struct.pack("<QII", LINE, 7, 1)
            self.ask(REGION_WRITE, where + bytes([i & 0xff]), flags=NO_REPLY)
            got = self.ask(REGION_READ, where)
            if got is not None and got[16:] != bytes([i & 0xff]):
                raise Broken("not what was written")

    # what it uses

    def version(self):
        if WRONG == "skips-version":
            return
        nul = b"" if WRONG == "version-without-nul" else b"\0"
        migration = b"" if WRONG == "never-migrates" else b',"migration":{"pgsize":4096}'
        ask = b',"access_ring":{"supported":true}'
        proposal = b'{"capabilities":{"max_msg_fds":8' + ask + migration + b"}}" + nul
        reply = self.ask(VERSION, struct.pack("<HH", 0, 0) + proposal, least=4)
        if reply is None:
            raise Broken("refused")
        if reply[:2] != b"\0\0" and WRONG != "ignores-major":
            raise Broken("another version")
        try:
            said = json.loads(reply[4:].split(b"\0")[0] or b"{}").get("capabilities", {})
        except ValueError as why:
            if WRONG != "ignores-json":
                raise Broken("no JSON") from why
            said = {}
        self.fds_taken = said.get("max_msg_fds", 1)
        self.largest = said.get("max_data_xfer_size", 1 << 20)
        self.migrates = "migration" in said
        if "access_ring" in said:
            self.take_ring(said["access_ring"])
        for fd in self.came:
            os.close(fd)

    def info(self):
        request = struct.pack("<IIII", 8 if WRONG == "small-argsz" else 16, 0, 9 if WRONG == "fills-reserved" else 0, 0)
        if WRONG == "short-request":
            request = request[:8]
        self.ask(GET_INFO, request, [0] if WRONG == "fd-on-request" else [], least=16, most=16)

    def map(self, address, size, fd, fd_offset=0):
        fds = [fd] if self.fds_taken or WRONG == "fds-to-none" else []
        self.ask(DMA_MAP, struct.pack("<IIQQQ", 32, 3, fd_offset, address, size), fds, most=0)

    def unmap(self, address, size):
        self.ask(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, address, size), most=24)

    def use_memory(self):
        fd = os.memfd_create("memory")
        os.ftruncate(fd, SIZE)
        self.map(ADDRESS, 0 if WRONG == "empty-mapping" else SIZE, fd, 4096 if WRONG == "mapping-beyond-file" else 0)
        if WRONG == "overlapping-mapping":
            self.map(ADDRESS + 4096, 4096, fd)
        os.close(fd)

    def use_irqs(self):
        self.ask(IRQ_INFO, struct.pack("<IIII", 16, 0, 2, 0), least=16, most=16)
        fd = os.memfd_create("no") if WRONG == "no-eventfd" else os.eventfd(0)
        flags, count = 0x34 if WRONG == "two-irq-actions" else 0x24, 9 if WRONG == "too-many-vectors" else 1
        if self.fds_taken:
            self.ask(SET_IRQS, struct.pack("<IIIII", 20, flags, 2, 0, count), [fd] * count)
        os.close(fd)

    def read(self, region, offset, count):
        piece = count if WRONG == "large-transfers" else min(count, self.largest)
        for at in range(offset, offset + count, piece):
            wanted = min(piece, offset + count - at)
            reply = self.ask(REGION_READ, struct.pack("<QII", at, region, wanted))
            if reply is not None and len(reply) != 16 + wanted:
                raise Broken("not what was asked for")

    def feature(self, flags, data=b"", reply=None):
        """reply: how many bytes of data come back; None: those that were sent."""
        size = len(data) if reply is None else reply
        argsz = 8 if WRONG == "feature-argsz-too-small" else 8 + max(size, len(data))
        if WRONG == "feature-with-two-methods":
            flags |= GET | SET
        got = self.ask(FEATURE, struct.pack("<II", argsz, flags) + data)
        if got is not None and len(got) != 8 + size and WRONG != "ignores-feature-sizes":
            raise Broken("another feature than was asked for")
        return got and got[8:]

    def log_dirty(self):
        for _ in range(2 if WRONG == "logs-twice" else 1):
            if self.feature(SET | LOG_START, struct.pack("<QII", 4096, 0, 0)) is None:
                return
        asked = struct.pack("<QQQ", ADDRESS, 64 * 4096, 4096)
        got = self.feature(GET | LOG_REPORT, asked, 32)
        if got is not None and got[:24] != asked and WRONG != "ignores-range-of-reports":
            raise Broken("a report of other memory")
        self.feature(SET | LOG_STOP)

    def set_state(self, state):
        if WRONG == "sets-unknown-states":
            state = 5
        return self.feature(SET | STATE, struct.pack("<II", state, 0)) is not None or WRONG == "ignores-refused-states"

    def save(self):
        asked = 500 if WRONG == "large-migration-data" else min(500, self.largest)
        state = b""
        while True:
            got = self.ask(MIG_DATA_READ, struct.pack("<II", 8 + asked, asked), least=8)
            if got is None:
                return None
            size, = struct.unpack_from("<I", got, 4)
            if (size > asked or size > len(got) - 8) and WRONG != "ignores-size-of-migration-data":
                raise Broken("more data than was asked for, or than came")
            state += got[8:] if WRONG == "takes-padding-for-data" else got[8:8 + size]
            if size < asked or len(state) > 1 << 20 or WRONG == "reads-half-of-the-state":
                return state

    def migrate(self):
        got = self.feature(GET | MIGRATION, reply=8)
        if got is None:
            return
        self.log_dirty()
        if self.set_state(RUNNING if WRONG == "reads-while-running" else STOP_COPY):
            state = self.save()
            piece = min(700, self.largest)
            if self.set_state(RESUMING):
                for at in range(0, len(state or b""), piece):
                    data = state[at:at + piece]
                    self.ask(MIG_DATA_WRITE, struct.pack("<II", 8 + len(data), len(data)) + data, most=0)
        self.set_state(RUNNING)
        got = self.feature(GET | STATE, reply=8)
        if got and got[0] > 6 and WRONG != "ignores-unknown-states":
            raise Broken("an unknown state")

    def use(self):
        self.version()
        self.info()
        self.use_memory()
        self.ask(REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 7, 0, 0, 0), least=32, most=32)
        self.use_irqs()
        self.read(7, 0, 64)
        if self.ring:
            self.use_registers()
        if self.migrates:
            self.migrate()
        self.ask(RESET)
        self.unmap(ADDRESS + (4096 if WRONG == "unmaps-nothing" else 0), SIZE)
        self.info()


def main():
    client = Client()
    try:
        client.use()
    except (Broken, OSError) as why:
        if WRONG == "hangs-at-the-end":
            time.sleep(3600)
        client.socket.close()
        sys.exit(f"{why}")


main()
