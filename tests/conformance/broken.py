# SPDX-License-Identifier: BSD-3-Clause
"""A server that breaks one rule: ours, behind a man in the middle who changes messages.

A mutant has up to three hooks, all taking the connection (a Link) first:
    request(link, message)           what goes to the server in its place: a message, a list, or None
    reply(link, request, message)    the same for a reply to the client
    leave(link)                      the client is gone, the server has not been told yet
"""
import array
import contextlib
import os
import select
import socket
import struct
import subprocess
import threading

from case import OUTBOARD

HEADER = struct.Struct("<HHIII")
REPLY, NO_REPLY, ERROR = 1, 0x10, 0x20
(VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, IO_FDS, IRQ_INFO, SET_IRQS, READ, WRITE, DMA_READ, DMA_WRITE,
 RESET) = range(1, 14)


class Message:
    def __init__(self, number, cmd, flags=0, error=0, payload=b"", fds=()):
        self.number, self.cmd, self.flags, self.error = number, cmd, flags, error
        self.payload, self.fds, self.size = payload, list(fds), None

    def but(self, **changes):
        """A copy with some attributes changed."""
        copy = Message(self.number, self.cmd, self.flags, self.error, self.payload, self.fds)
        vars(copy).update(changes)
        return copy

    def field(self, offset, form="<I"):
        return struct.unpack_from(form, self.payload, offset)[0] if len(self.payload) >= offset + 4 else 0

    def with_field(self, offset, value, form="<I"):
        payload = bytearray(self.payload)
        if len(payload) >= offset + struct.calcsize(form):
            struct.pack_into(form, payload, offset, value)
        return self.but(payload=bytes(payload))

    def success(self, payload=b""):
        return Message(self.number, self.cmd, REPLY, 0, payload)

    def refusal(self, error=22):
        return Message(self.number, self.cmd, REPLY | ERROR, error)

    @property
    def ok(self):
        return not self.flags & ERROR

    def bytes(self):
        size = self.size if self.size is not None else HEADER.size + len(self.payload)
        return HEADER.pack(self.number, self.cmd, size, self.flags, self.error) + self.payload


class Closed(Exception):
    pass


class Link(threading.Thread):
    """A client's connection and the one to the real server that belongs to it."""

    def __init__(self, client, path, mutant):
        super().__init__(daemon=True)
        self.client, self.mutant = client, mutant
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.connect(str(path))
        self.waiting = []   # (number, command) of what the server was sent and has not replied to yet
        self.asked = 0      # commands of the server without a reply yet
        self.kept = []      # file descriptors that a mutant holds on to
        self.state = {}     # a mutant's own

    def hung_up(self):
        poll = select.poll()
        with contextlib.suppress(ValueError):  # it is closed here, too
            poll.register(self.client, select.POLLRDHUP)
        return poll.poll(0)

    def receive(self, source):
        data, fds = b"", []
        need = HEADER.size
        while len(data) < need:
            piece, control, _, _ = source.recvmsg(need - len(data), socket.CMSG_SPACE(253 * 4))
            for level, kind, body in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    received = array.array("i")
                    received.frombytes(body[:len(body) - len(body) % 4])
                    fds += received
            if not piece:
                raise Closed
            if source is self.client:
                self.mutant.piece(self, need, data, piece)
            data += piece
            if len(data) == HEADER.size:
                need = self.mutant.size(struct.unpack_from("<I", data, 4)[0])
                if need < HEADER.size or need > 1 << 22:
                    raise Closed
        number, cmd, _, flags, error = HEADER.unpack_from(data)
        return Message(number, cmd, flags, error, data[HEADER.size:], fds)

    def send(self, target, messages):
        for message in messages if isinstance(messages, list) else [messages]:
            if message is None:
                continue
            fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", message.fds))] if message.fds else []
            data = message.bytes()
            if (sent := target.sendmsg([data], fds)) < len(data):
                target.sendall(data[sent:])

    def close_fds(self, message):
        for fd in message.fds:
            os.close(fd)

    def from_client(self):
        message = self.receive(self.client)
        if message.flags & 0xF == REPLY:
            self.asked -= 1
            forward = self.mutant.stray(self, message)
        else:
            forward = self.mutant.request(self, message)
            for m in forward if isinstance(forward, list) else [forward]:
                if m is not None and m.flags & 0xF != REPLY and not m.flags & NO_REPLY:
                    self.waiting.append((m.number, message))
        self.send(self.server, forward)
        self.close_fds(message)

    def reply_to_client(self, message):
        for i, (number, command) in enumerate(self.waiting):
            if number == message.number:
                del self.waiting[i]
                return self.mutant.reply(self, command, message)
        return message  # to a command that did not come this way, but through the access ring

    def from_server(self):
        message = self.receive(self.server)
        if message.flags & 0xF == REPLY:
            self.send(self.client, self.reply_to_client(message))
        else:
            self.asked += 1
            self.send(self.client, self.mutant.command(self, message))
        self.close_fds(message)

    def run(self):
        with contextlib.suppress(Closed, OSError, ValueError):
            while True:
                for ready in select.select([self.client, self.server], [], [], self.mutant.idle(self))[0]:
                    if ready is self.client:
                        self.from_client()
                    else:
                        self.from_server()
        with contextlib.suppress(Closed, OSError):
            self.mutant.leave(self)
        self.server.close()
        self.client.close()
        for fd in self.kept:
            os.close(fd)


class Unbroken:
    """The hooks that change nothing."""
    serial = False  # one connection at a time

    def request(self, link, message):
        return message

    def reply(self, link, request, message):
        return message

    def command(self, link, message):
        return message

    def stray(self, link, message):
        return message

    def leave(self, link):
        pass

    def idle(self, link):
        """Called before it waits: for so many seconds at most."""
        return None

    def size(self, size):
        return size

    def piece(self, link, need, before, piece):
        pass


@contextlib.contextmanager
def broken_server(tmp, device, mutant):
    """Serves on tmp/s, and yields that path."""
    name, *operands = device.split()
    with open(tmp / "log", "w") as log:
        real = subprocess.Popen([OUTBOARD, "serve", name, tmp / "real", *operands], stdout=subprocess.PIPE, stderr=log)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp / "s"))
    listener.listen(64)
    errors, links = [], []
    threading.excepthook = errors.append

    def accept():
        with contextlib.suppress(OSError):
            while True:
                client = listener.accept()[0]
                for link in links:
                    if mutant.serial or link.hung_up():
                        link.join()  # so that the server sees one client leave before the next comes
                links[:] = [link for link in links if link.is_alive()]
                links.append(Link(client, tmp / "real", mutant))
                links[-1].start()
    try:
        assert real.stdout.readline(), "the server did not start"
        threading.Thread(target=accept, daemon=True).start()
        yield tmp / "s"
        assert not errors, errors
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        real.terminate()
        real.communicate()
