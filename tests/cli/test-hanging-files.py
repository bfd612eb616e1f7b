#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A client attaches descriptors that make whoever closes them, or asks what they are, wait: its server does not."""
import contextlib
import errno
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import OUTBOARD, case, main
from fakedevice import DMA_MAP, GET_INFO, HEADER, MSIX, REGION_READ, SET_IRQS, VERSION
from hanging import FuseFiles, lingering, release
from servers import Server

PROMPT_S, UNKNOWN = 10, 99
READ, ACCESS_FILE = 1, 8
PROPOSAL = struct.pack("<HH", 0, 0) + json.dumps({"capabilities": {"max_msg_fds": 8}}).encode() + b"\0"


def mapping(flags):
    return struct.pack("<IIQQQ", 32, flags, 0, 0x100000, 4096)


MESSAGES = [  # command, payload, what becomes of it
    (GET_INFO, struct.pack("<IIII", 16, 0, 0, 0), None),
    (DMA_MAP, mapping(READ), errno.EPERM),
    (DMA_MAP, mapping(READ | ACCESS_FILE), errno.EPERM),
    (SET_IRQS, struct.pack("<IIIII", 20, 0x24, MSIX, 0, 1), errno.EINVAL),
    (REGION_READ, struct.pack("<QII", 0, 7, 4), None),
    (UNKNOWN, b"", errno.EINVAL),
]


class Client:
    def __init__(self, path, open_one):
        self.open_one = open_one
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PROMPT_S)
        self.socket.connect(str(path))
        self.server = struct.unpack("3i", self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    @contextlib.contextmanager
    def server_stopped(self):
        os.kill(self.server, signal.SIGSTOP)
        try:
            while pathlib.Path(f"/proc/{self.server}/stat").read_text().rpartition(")")[2].split()[0] not in "Tt":
                time.sleep(0.001)
            yield
        finally:
            os.kill(self.server, signal.SIGCONT)

    def ask(self, cmd, payload, count=1):
        """The errno of the answer. The server's descriptors are the last ones: ours are closed before it has them."""
        message = HEADER.pack(1, cmd, HEADER.size + len(payload), 0, 0) + payload
        fds = [self.open_one() for _ in range(count)]
        with self.server_stopped():
            socket.send_fds(self.socket, [message], fds)
            for fd in fds:
                os.close(fd)
        _, _, size, _, error = HEADER.unpack(self.socket.recv(HEADER.size, socket.MSG_WAITALL))
        self.socket.recv(size - HEADER.size, socket.MSG_WAITALL)
        return error or None


def info_works(path):
    start = time.monotonic()
    subprocess.run([OUTBOARD, "info", path], check=True, stdout=subprocess.DEVNULL, timeout=PROMPT_S)
    assert time.monotonic() - start < PROMPT_S


def attach_to_every_message(path, open_one):
    with Client(path, open_one) as client:
        assert client.ask(VERSION, PROPOSAL) is None
        for cmd, payload, expected in MESSAGES:
            assert client.ask(cmd, payload) == expected, cmd
        socket.send_fds(client.socket, [b"x"], [one := open_one()])
        os.close(one)
    info_works(path)


def server(kind, tmp):
    if kind == "nvme":
        (tmp / "disk").write_bytes(bytes(1 << 20))
    return Server(kind, tmp / "s", *[tmp / "disk"] * (kind == "nvme"))


for device in ("null", "nvme"):
    @case(f"files-of-a-file-system-that-does-not-answer-do-not-delay-{device}")
    def _(tmp, device=device):
        with server(device, tmp), FuseFiles(tmp) as files:
            attach_to_every_message(tmp / "s", files.open)

    @case(f"sockets-that-linger-do-not-delay-{device}")
    def _(tmp, device=device):
        with server(device, tmp) as served:
            fds = pathlib.Path(f"/proc/{served.process.pid}/fd")
            before = len(list(fds.iterdir()))
            attach_to_every_message(tmp / "s", lingering)
            release()
            deadline = time.monotonic() + PROMPT_S
            while len(list(fds.iterdir())) != before:
                assert time.monotonic() < deadline, "descriptors are left"
                time.sleep(0.01)


@case("a-client-that-sends-them-again-and-again-is-let-go-and-its-successor-served-when-they-are-closed")
def _(tmp):
    with server("null", tmp) as served:
        with FuseFiles(tmp) as files:
            with Client(tmp / "s", files.open) as client:
                client.ask(VERSION, PROPOSAL)
                try:
                    while client.ask(UNKNOWN, b"", 32):
                        pass
                except (ConnectionError, struct.error):
                    pass
            assert "descriptors that it sent are still not closed" in served.wait_for_line("client left")
            assert len(list(pathlib.Path(f"/proc/{served.process.pid}/fd").iterdir())) < 512 + 253 + 32
        info_works(tmp / "s")


main()
