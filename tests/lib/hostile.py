# SPDX-License-Identifier: BSD-3-Clause
"""What a server can do to a client in place of answering a message, as a table.

    with HostileDevice(path, bars={0: 4096}) as device:
        device.arm(Message("reset", RESET), BEHAVIOURS["silence"])
        ...                     # once, at the next such message; device.hit says that it was
"""
import os
import random
import select
import socket
import struct
import tempfile
import threading

from fakedevice import DMA_READ, DMA_WRITE, HEADER, REGION_READ, REGION_WRITE, FakeDevice, Gone

REPLY, ERROR = 0x1, 0x20
FDS_MAX = 253  # the kernel takes no more in a message
OWN_BAR, OTHER_BAR = 0xE0000000, 0xE8000000
UNASKED = HEADER.pack(0, REGION_WRITE, HEADER.size + 16, REPLY, 0) + bytes(16)  # where nothing is to be answered
# address, count: the ends of memory, what wraps, holes, ROM, interrupt controllers, a timer, BARs
WILD = [(0, 4), (0, 0), (0, 1 << 20), (0, (1 << 20) + 1), ((1 << 64) - 1, 1), ((1 << 64) - 1, 2), ((1 << 64) - 8, 64),
        (1, (1 << 64) - 1), (1 << 63, 8), (0x3FFFFFE, 4), (0x4000000, 8),
        (0xA0000, 8), (0xC0000, 8), (0xFFFFFFF0, 16), (0xFEC00000, 4),
        (0xFED00000, 8), (0xFEE00000, 4), (OWN_BAR, 4), (OWN_BAR + 4092, 8), (OTHER_BAR, 8), (0x200000, 65536)]


class Behaviour:
    """act(device, reply, fds) gets what an honest server would send. silent: the client has to wait for its deadline.
    harmless: in the end the message is answered, and a client must not mind what else came."""

    def __init__(self, act, silent=False, harmless=False):
        self.act, self.silent, self.harmless = act, silent, harmless


class Message:
    """A command; of a region, where one is named. tolerated: behaviours that do not break the rules for this one, or
    that a client makes do with."""

    def __init__(self, name, cmd, region=None, tolerated=()):
        self.name, self.cmd, self.region, self.tolerated = name, cmd, region, tolerated

    def matches(self, cmd, payload):
        return cmd == self.cmd and (self.region is None or self._region(cmd, payload) == self.region)

    @staticmethod
    def _region(cmd, payload):
        return struct.unpack_from("<I", payload, 8)[0] if len(payload) >= 12 else None


class HostileDevice(FakeDevice):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.message, self.behaviour, self.hit = None, None, threading.Event()

    def arm(self, message, behaviour):
        self.hit.clear()
        self.message, self.behaviour = message, behaviour

    def disarm(self):
        self.message = None

    def _armed_for(self, cmd, payload):
        return self.message and not self.hit.is_set() and self.message.matches(cmd, payload)

    def _message(self):
        head = self.connection.recv(HEADER.size + 16, socket.MSG_PEEK)
        if self.message and self.behaviour.act is reset and len(head) >= HEADER.size:
            if self._armed_for(HEADER.unpack_from(head)[1], head[HEADER.size:]):
                self.hit.set()
                raise Gone
        return super()._message()

    def _serve(self, msg_id, cmd, flags, error, payload, fds):
        if not self._armed_for(cmd, payload):
            super()._serve(msg_id, cmd, flags, error, payload, fds)
            return
        self.hit.set()
        reply, out_fds = self.reply_to(msg_id, cmd, flags, payload, fds)
        self.behaviour.act(self, reply or UNASKED, out_fds)

    def client_left(self, timeout_s):
        """Whether it does within that time; nothing is read."""
        hangup = select.poll()
        hangup.register(self.connection, select.POLLRDHUP)
        return bool(hangup.poll(timeout_s * 1000))

    def hold(self):
        """Takes whatever comes and says nothing more, until the client leaves."""
        while self.connection.recv(65536):
            pass
        raise Gone

    def answers(self, count):
        """Takes so many messages, whatever they are; what comes besides is served."""
        while count:
            msg_id, cmd, flags, error, payload, fds = self._message()
            if flags & 15 == 0:
                self._serve(msg_id, cmd, flags, error, payload, fds)
            else:
                count -= 1


def altered(reply, body=None, **fields):
    """The reply with other header fields or another payload; the size follows unless it is given."""
    msg_id, cmd, _, flags, error = HEADER.unpack_from(reply)
    body = reply[HEADER.size:] if body is None else body
    header = {"msg_id": msg_id, "cmd": cmd, "size": HEADER.size + len(body), "flags": flags, "error": error, **fields}
    return HEADER.pack(*header.values()) + body


def says(make, **kind):
    """Sends make(reply) in place of the reply."""
    return Behaviour(lambda device, reply, fds: device.send(make(reply), fds), **kind)


def then_waits(make):
    def act(device, reply, _fds):
        device.send(make(reply))
        device.hold()
    return Behaviour(act, silent=True)


def then_leaves(make):
    def act(device, reply, _fds):
        device.send(make(reply))
        raise Gone
    return Behaviour(act)


def late(device, reply, fds):
    """After the deadline, which is when the client says something else, or leaves."""
    device.connection.settimeout(0.4)
    try:
        if not device.connection.recv(1, socket.MSG_PEEK):
            raise Gone
    except TimeoutError:
        pass
    device.connection.settimeout(None)
    device.send(reply, fds)


def trickle(device, reply, _fds):
    """A byte at a time, each sooner than the deadline, all together later."""
    for i in range(len(reply)):
        device.send(reply[i:i + 1])
        if device.client_left(0.03):
            break


def reset(*_):
    """Leaves with the client's message unread, which the client hears of as ECONNRESET: see _message()."""
    raise AssertionError("the message was read")


def oversize(device, reply, _fds):
    """A reply of 2 GiB that really comes, as far as the client takes it."""
    device.send(altered(reply, size=0x7FFFFFFF))
    piece = bytes(1 << 20)
    for _ in range(64):
        device.send(piece)
    device.hold()


def flood(make, count, answered=True):
    """So many other messages come before the reply; whether the client's answers to them are taken."""
    def act(device, reply, fds):
        for start in range(0, count, 64):
            device.send(b"".join(make(start + i) for i in range(64)))
            if answered:
                device.answers(64)
        device.send(reply, fds)
    return act


def command(cmd, payload=b"", flags=0):
    return HEADER.pack(0x4242, cmd, HEADER.size + len(payload), flags, 0) + payload


def dma_flood(address, count):
    return lambda _: command(DMA_READ, struct.pack("<QQ", address, count))


def unread_answers(device, _reply, _fds):
    """Asks for memory again and again, and takes none of it."""
    request = command(DMA_READ, struct.pack("<QQ", 0x200000, 1 << 20))
    device.send(request * 256)
    device.client_left(10)
    raise Gone


def wild(device, reply, fds):
    for address, count in WILD:
        device.send(command(DMA_READ, struct.pack("<QQ", address, count)))
        device.answers(1)
        data = bytes(count) if count <= 1 << 20 else bytes(8)
        device.send(command(DMA_WRITE, struct.pack("<QQ", address, count) + data))
        device.answers(1)
    device.send(reply, fds)


def crossing(device, reply, fds):
    """Commands that are answered while our reply is on its way, and others that cross it."""
    request = command(DMA_READ, struct.pack("<QQ", 0x200000, 64))
    device.send(request * 3 + reply + request * 3, fds)
    device.answers(6)


def with_fds(open_one, count=1):
    def act(device, reply, _fds):
        fds = [open_one() for _ in range(count)]
        try:
            device.send(reply, fds)
        finally:
            for fd in fds:
                os.close(fd)
    return Behaviour(act, harmless=True)


def a_directory():
    return os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY)


def a_pipe():
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def a_socket():
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()


def rubbish(_reply):
    return random.Random(3).randbytes(4096)


def filled(byte):
    return lambda reply: altered(reply, bytes([byte]) * (len(reply) - HEADER.size))


NO_PAYLOAD = ("empty", "one-byte-short", "all-zeroes", "all-ones", "all-0x7f")  # for a reply without: what it should be
REFUSED = ("error-0", "error-negative", "error-unknown")
BEHAVIOURS = {
    "silence": then_waits(lambda reply: b""),
    "late": Behaviour(late, silent=True),
    "trickle": Behaviour(trickle, silent=True),
    "close": then_leaves(lambda reply: b""),
    "reset": Behaviour(reset),
    "half-a-header-then-silence": then_waits(lambda reply: reply[:7]),
    "half-a-header-then-close": then_leaves(lambda reply: reply[:7]),
    "half-a-message-then-silence": then_waits(lambda reply: altered(reply, size=len(reply) + 8)),
    "half-a-message-then-close": then_leaves(lambda reply: altered(reply, size=len(reply) + 8)),
    "answer-then-close": then_leaves(lambda reply: reply),
    "rubbish": then_waits(rubbish),
    "size-0": says(lambda reply: altered(reply, size=0)),
    "size-15": says(lambda reply: altered(reply, size=15)),
    "size-4g": then_waits(lambda reply: altered(reply, size=0xFFFFFFFF)),
    "oversize": Behaviour(oversize, silent=True),
    "other-id": says(lambda reply: altered(reply, msg_id=0xFFFF)),
    "id-0": says(lambda reply: altered(reply, msg_id=0), silent=True),  # is taken for the answer to a posted write
    "other-command": says(lambda reply: altered(reply, cmd=HEADER.unpack_from(reply)[1] % 13 + 1)),
    "unknown-command": says(lambda reply: altered(reply, cmd=0xFFFF)),
    "command-in-place-of-reply": Behaviour(then_waits(lambda reply: altered(reply, flags=0)).act, silent=True),
    "type-2": says(lambda reply: altered(reply, flags=2)),
    "all-flags": says(lambda reply: altered(reply, flags=0xFFFFFFFF)),
    "error-0": says(lambda reply: altered(reply, b"", flags=REPLY | ERROR, error=0)),
    "error-negative": says(lambda reply: altered(reply, b"", flags=REPLY | ERROR, error=0xFFFFFFEA)),
    "error-unknown": says(lambda reply: altered(reply, b"", flags=REPLY | ERROR, error=99999)),
    "empty": says(lambda reply: altered(reply, b"")),
    "one-byte-short": says(lambda reply: altered(reply, reply[HEADER.size:-1])),
    "one-byte-more": says(lambda reply: altered(reply, reply[HEADER.size:] + b"x")),
    "a-mebibyte-more": says(lambda reply: altered(reply, reply[HEADER.size:] + bytes(1 << 20))),
    "all-zeroes": says(filled(0)),
    "all-ones": says(filled(0xFF)),
    "all-0x7f": says(filled(0x7F)),
    "twice": says(lambda reply: reply * 2),
    "stray-replies": Behaviour(flood(lambda i: HEADER.pack(0x8000 + i, REGION_READ, 16, REPLY, 0), 4096, False)),
    "answers-to-posted-writes": Behaviour(flood(lambda i: HEADER.pack(0, REGION_WRITE, 16, REPLY, 0), 4096, False),
                                          harmless=True),
    "unknown-commands": Behaviour(flood(lambda i: command(0x100 + i % 64), 4096), harmless=True),
    "commands-of-the-client": Behaviour(flood(lambda i: command(1 + i % 10), 4096), harmless=True),
    "commands-without-reply": Behaviour(flood(lambda i: command(DMA_READ, struct.pack("<QQ", 0x200000, 8), 0x10), 4096,
                                              False), harmless=True),
    "dma-flood": Behaviour(flood(dma_flood(0x200000, 512), 4096), harmless=True),
    "dma-answers-left-unread": Behaviour(unread_answers, silent=True),
    "wild-addresses": Behaviour(wild, harmless=True),
    "crossing-requests": Behaviour(crossing, harmless=True),
    "a-directory": with_fds(a_directory),
    "a-pipe": with_fds(a_pipe),
    "a-socket": with_fds(a_socket),
    "an-eventfd": with_fds(lambda: os.eventfd(0)),
    "too-many-fds": with_fds(lambda: os.eventfd(0), FDS_MAX),
}
