#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""`outboard serve` and clients that leave in the middle of anything, ten thousand times: nothing stays behind.

OUTBOARD_SEED decides at random which client does what; a failure prints it."""
import json
import os
import pathlib
import random
import socket
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import OUTBOARD, case, main
from fakedevice import (CONFIG, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, HEADER, REGION_READ, REGION_WRITE, RESET,
                        SET_IRQS, VERSION)

CLIENTS, WARM_UP, DEADLINE_S = 10000, 1000, 60
WRITE_MULTI, FEATURE, MIG_DATA_READ, MIG_DATA_WRITE = 15, 16, 17, 18
NO_REPLY, GET, SET = 0x10, 1 << 16, 1 << 17
STATE, LOG_START, STOP_COPY, RESUMING, PRE_COPY = 2, 6, 3, 4, 6
BASE, SIZE = 0x100000, 0x10000
EDU_SOURCE, EDU_TARGET, EDU_COUNT, EDU_COMMAND, EDU_BUFFER = 0x80, 0x88, 0x90, 0x98, 0x40000
NVME_CC, NVME_AQA, NVME_ASQ, NVME_ACQ, NVME_DOORBELL = 0x14, 0x24, 0x28, 0x30, 0x1000


class Client:
    """Says what a driver would, and looks at no answer that it does not need."""

    def __init__(self, path, rnd):
        self.random, self.sent = rnd, 0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Python's own timeout would make the socket non-blocking, and a full backlog a failure.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", DEADLINE_S, 0))
        self.socket.connect(path)
        self.socket.settimeout(DEADLINE_S)
        self.twin = None

    def close(self):
        self.socket.close()
        if self.twin:
            self.twin.close()

    def message(self, cmd, payload=b"", flags=0):
        self.sent = self.sent % 0xFFFF + 1
        return HEADER.pack(self.sent, cmd, HEADER.size + len(payload), flags, 0) + payload

    def send(self, cmd, payload=b"", fds=(), flags=0):
        data = self.message(cmd, payload, flags)
        socket.send_fds(self.socket, [data], list(fds)) if fds else self.socket.sendall(data)

    def receive(self, size, where=None):
        data = b""
        while len(data) < size:
            piece, fds, _, _ = socket.recv_fds(where or self.socket, size - len(data), 8)
            if fds:
                self.twin = socket.socket(fileno=fds[0])
                self.twin.settimeout(DEADLINE_S)
            assert piece, "the server left"
            data += piece
        return data

    def take_answer(self):
        _, _, size, _, _ = HEADER.unpack(self.receive(HEADER.size))
        return self.receive(size - HEADER.size)

    def version_message(self, twin):
        said = {"max_msg_fds": 8, "max_data_xfer_size": 1 << 20, "migration": {"pgsize": 4096}}
        if twin:
            said["twin_socket"] = {"supported": True, "fd_index": 0}
        return struct.pack("<HH", 0, 0) + json.dumps({"capabilities": said}).encode() + b"\0"

    def negotiate(self, twin):
        answer = self.ask(VERSION, self.version_message(twin))
        assert b"capabilities" in answer, answer

    def set_up(self):
        if self.random.random() < 0.3:
            with_fd(memory, lambda fd: self.ask(DMA_MAP, map_of(BASE + SIZE), [fd]))
        if self.random.random() < 0.3:
            armed = struct.pack("<IIIII", 20, 0x24, 0, 0, 1)
            with_fd(lambda: os.eventfd(0), lambda fd: self.ask(SET_IRQS, armed, [fd]))

    def ask(self, *words, **options):
        self.send(*words, **options)
        return self.take_answer()

    def write(self, offset, data, region=0, flags=0):
        self.send(REGION_WRITE, struct.pack("<QII", offset, region, len(data)) + data, flags=flags)

    def map(self, fds=()):
        self.send(DMA_MAP, map_of(BASE), fds)


def map_of(address):
    return struct.pack("<IIQQQ", 32, 3, 0, address, SIZE)


def with_fd(make, use):
    fd = make()
    try:
        use(fd)
    finally:
        os.close(fd)


def memory():
    fd = os.memfd_create("memory")
    os.ftruncate(fd, SIZE)
    return fd


# Before the negotiation.

def says_nothing(_client):
    pass


def half_a_header(client):
    client.socket.sendall(client.message(VERSION)[:client.random.randrange(1, HEADER.size)])


def half_a_version(client):
    data = client.message(VERSION, client.version_message(True))
    client.socket.sendall(data[:client.random.randrange(HEADER.size, len(data))])


def version_with_fds(client):
    with_fd(memory, lambda fd: client.send(VERSION, client.version_message(True), [fd] * 8))


def waits_for_no_answer(client):
    client.send(VERSION, client.version_message(True))


def rubbish(client):
    client.socket.sendall(client.random.randbytes(64))


# After it.

def half_a_message(client):
    data = client.message(REGION_WRITE, struct.pack("<QII", 0, 0, 64) + bytes(64))
    client.socket.sendall(data[:client.random.randrange(1, len(data))])


def half_a_message_with_fds(client):
    data = client.message(DMA_MAP, map_of(BASE))
    cut = client.random.randrange(1, len(data))
    with_fd(memory, lambda fd: socket.send_fds(client.socket, [data[:cut]], [fd] * client.random.randrange(1, 9)))


def answers_left_unread(client):
    for _ in range(client.random.randrange(1, 40)):
        client.send(REGION_READ, struct.pack("<QII", 0, CONFIG, 256))


def posted_writes(client):
    for _ in range(client.random.randrange(1, 40)):
        client.write(0x100, bytes(4), flags=NO_REPLY)


def asks_what_it_is(client):
    client.send(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
    for region in range(9):
        client.send(GET_REGION_INFO, struct.pack("<IIIIQQ", 4096, 0, region, 0, 0, 0))


def maps_memory(client):
    with_fd(memory, lambda fd: client.map([fd]))
    if client.random.random() < 0.5:
        client.send(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, BASE, SIZE))


def arms_interrupts(client):
    index, count = client.random.choice(((0, 1), (1, 1), (2, 4), (3, 1), (4, 1)))
    with_fd(lambda: os.eventfd(0), lambda fd: client.send(SET_IRQS, struct.pack("<IIIII", 20, 0x24, index, 0, count),
                                                         [fd] * count))
    if client.random.random() < 0.5:
        client.take_answer()


def resets(client):
    client.send(RESET)


def too_many_fds(client):
    with_fd(memory, lambda fd: client.send(RESET, fds=[fd] * 100))


def feature(client, flags, data):
    client.send(FEATURE, struct.pack("<II", 8 + len(data), flags) + data)


def logs_dirty_memory(client):
    with_fd(memory, lambda fd: client.map([fd]))
    feature(client, SET | LOG_START, struct.pack("<QII", 4096, 0, 0))
    if client.random.random() < 0.5:
        client.take_answer()
        client.take_answer()


def saves_half_of_the_state(client):
    feature(client, SET | STATE, struct.pack("<II", client.random.choice((STOP_COPY, PRE_COPY)), 0))
    client.send(MIG_DATA_READ, struct.pack("<II", 8 + 64, 64))
    if client.random.random() < 0.5:
        client.take_answer()
        client.take_answer()


def loads_half_of_a_state(client):
    feature(client, SET | STATE, struct.pack("<II", RESUMING, 0))
    client.send(MIG_DATA_WRITE, struct.pack("<II", 8 + 64, 64) + client.random.randbytes(64))


def may_master(client):
    client.ask(RESET)  # what the device was told by others is still there
    client.map()
    client.write(4, struct.pack("<H", 6), CONFIG)


def asked_for_memory_by_edu(client):
    """The server wants to read our memory, and we leave it waiting."""
    may_master(client)
    for offset, value in ((EDU_SOURCE, BASE), (EDU_TARGET, EDU_BUFFER), (EDU_COUNT, 4096), (EDU_COMMAND, 1)):
        client.write(offset, struct.pack("<Q", value))
    take_request(client)


def asked_for_memory_by_nvme(client):
    may_master(client)
    for offset, value in ((NVME_AQA, struct.pack("<I", 31 << 16 | 31)), (NVME_ASQ, struct.pack("<Q", BASE)),
                          (NVME_ACQ, struct.pack("<Q", BASE + 0x1000)), (NVME_CC, struct.pack("<I", 0x460001)),
                          (NVME_DOORBELL, struct.pack("<I", 1))):
        client.write(offset, value)
    take_request(client)


def take_request(client):
    """Until the server's command is there; by then it may have got a part of an answer."""
    where = client.twin or client.socket
    while True:
        head = HEADER.unpack(client.receive(HEADER.size, where))
        if not head[3] & 15:
            break
        client.receive(head[2] - HEADER.size, where)
    if client.random.random() < 0.5:
        where.sendall(HEADER.pack(head[0], head[1], 4096, 1, 0)[:client.random.randrange(1, HEADER.size)])


STRANGERS = [says_nothing, half_a_header, half_a_version, version_with_fds, waits_for_no_answer, rubbish]
KNOWN = [says_nothing, half_a_message, half_a_message_with_fds, answers_left_unread, posted_writes, asks_what_it_is,
         maps_memory, arms_interrupts, resets, too_many_fds, rubbish]
MIGRATING = [logs_dirty_memory, saves_half_of_the_state, loads_half_of_a_state]


class Served:
    def __init__(self, words):
        self.process = subprocess.Popen([OUTBOARD, "serve", *map(str, words)], stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout.readline(), "it did not start"

    def holds(self):
        """What it has of the system's things."""
        proc = pathlib.Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
        return {"files": len(list((proc / "fd").iterdir())), "maps": (proc / "maps").read_text().count("\n"),
                "threads": int(status["Threads"]), "KiB": int(status["VmRSS"].split()[0])}

    def holds_for_one(self, path, rnd, most=None):
        """The same while it has one quiet client, and has come to what others left, so that it holds no more than most
        (where that is given)."""
        one = Client(path, rnd)
        try:
            one.negotiate(False)
            end = time.monotonic() + DEADLINE_S
            while more_than(most, now := self.holds()) and time.monotonic() < end:
                time.sleep(0.01)
            return now
        finally:
            one.close()


def more_than(most, now):
    return [what for what in ("files", "maps", "threads") if most and now[what] > most[what]]


def come_and_go(path, rnd, count, acts):
    for _ in range(count):
        client = Client(path, rnd)
        try:
            if rnd.random() < 0.3:
                rnd.choice(STRANGERS)(client)
            else:
                client.negotiate(rnd.random() < 0.5)
                client.set_up()
                rnd.choice(acts)(client)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a client that breaks the rules may be left by the server first
        finally:
            client.close()


def check_vanishing(tmp, words, acts):
    seed = int(os.environ.get("OUTBOARD_SEED", "0")) or random.randrange(1, 1 << 32)
    print(f"OUTBOARD_SEED={seed}")
    rnd, path = random.Random(seed), str(tmp / "s")
    served = Served([words[0], path, *words[1:]])
    try:
        before = served.holds_for_one(path, rnd)
        come_and_go(path, rnd, WARM_UP, acts)
        memory = served.holds_for_one(path, rnd)["KiB"]
        come_and_go(path, rnd, CLIENTS, acts)
        now = served.holds_for_one(path, rnd, before)
        print(before, now, memory)
        assert not more_than(before, now) and now["KiB"] < memory + 512, "something stayed behind"
    finally:
        served.process.terminate()
        assert served.process.wait(DEADLINE_S) == 0
        served.process.stdout.close()


@case("null-is-left-with-nothing-by-ten-thousand-clients", timeout_s=120)
def _(tmp):
    check_vanishing(tmp, ["null"], KNOWN)


@case("gpio-is-left-with-nothing-by-ten-thousand-clients", timeout_s=120)
def _(tmp):
    check_vanishing(tmp, ["gpio"], KNOWN)


@case("edu-is-left-with-nothing-by-ten-thousand-clients", timeout_s=120)
def _(tmp):
    check_vanishing(tmp, ["edu"], [*KNOWN, *MIGRATING, asked_for_memory_by_edu])


@case("nvme-is-left-with-nothing-by-ten-thousand-clients", timeout_s=120)
def _(tmp):
    check_vanishing(tmp, ["nvme", "mem:8M"], [*KNOWN, *MIGRATING, asked_for_memory_by_nvme])


main()
