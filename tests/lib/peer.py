# SPDX-License-Identifier: BSD-3-Clause
"""A vfio-user client in a few lines, for tests that need one to come and go."""
import json
import socket
import struct

VERSION, DMA_MAP, SET_IRQS, REGION_READ, REGION_WRITE, DMA_WRITE = 1, 2, 8, 9, 10, 12
HEADER = struct.Struct("<HHIII")
FLAG_REPLY, FLAG_ERROR = 0x1, 0x20


class Refused(Exception):
    """The server answered with this errno."""

    def __init__(self, errno):
        super().__init__(f"errno {errno}")
        self.errno = errno


class Peer:
    """A negotiated connection, to a path or over a connected socket."""

    def __init__(self, where, timeout_s=10):
        if isinstance(where, socket.socket):
            self.socket = where
        else:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        self.next_id = 0
        try:
            if self.socket is not where:
                self.socket.connect(str(where))
            capabilities = json.dumps({"capabilities": {"max_msg_fds": 8, "write_multiple": True}}).encode() + b"\0"
            reply = self.ask(VERSION, struct.pack("<HH", 0, 0) + capabilities)
            self.capabilities = json.loads(reply[4:].rstrip(b"\0"))["capabilities"]
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def receive(self, size):
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise ConnectionError("the server closed the connection")
            data += piece
        return data

    def ask(self, command, payload, fds=()):
        """Sends a command, and returns the payload of its reply."""
        self.next_id += 1
        message = HEADER.pack(self.next_id, command, HEADER.size + len(payload), 0, 0) + payload
        if fds:
            socket.send_fds(self.socket, [message], fds)
        else:
            self.socket.sendall(message)
        msg_id, cmd, size, flags, errno = HEADER.unpack(self.receive(HEADER.size))
        reply = self.receive(size - HEADER.size)
        assert (msg_id, cmd, flags & 0xF) == (self.next_id, command, FLAG_REPLY), (msg_id, cmd, flags)
        if flags & FLAG_ERROR:
            raise Refused(errno)
        return reply

    def read(self, region, offset, count):
        return self.ask(REGION_READ, struct.pack("<QII", offset, region, count))[16:]

    def write(self, region, offset, data):
        self.ask(REGION_WRITE, struct.pack("<QII", offset, region, len(data)) + data)
