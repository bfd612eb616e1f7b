# SPDX-License-Identifier: BSD-3-Clause
"""Descriptors that make whoever closes them, or asks what they are, wait.

    with FuseFiles(tmp) as files:  # leave it before what hangs in one of them is to end
        fd = files.open()          # only the test itself, and who made it, get an answer of this file system
    lingering()                    # a TCP socket whose last close() takes LINGER_S; release() lets all go
"""
import contextlib
import ctypes
import mmap
import os
import pathlib
import socket
import struct
import subprocess
import sys
import threading

from case import skip

LINGER_S = 60
_others = []


def lingering():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    _others.append(other)
    ours.setblocking(False)
    try:
        while True:
            ours.send(bytes(65536))
    except BlockingIOError:
        pass
    ours.setblocking(True)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_S))
    return ours.detach()


def release():
    while _others:
        _others.pop().close()


class FuseFiles:
    def __init__(self, tmp):
        self.where = tmp / "fuse"

    def __enter__(self):
        self.where.mkdir()
        self.socket, other = socket.socketpair()
        with other:
            self.process = subprocess.Popen([sys.executable, __file__, self.where, str(other.fileno()), str(os.getpid())],
                                            pass_fds=[other.fileno()])
        why = self.socket.recv(200)
        if why != b"ready":
            self.__exit__()
            skip(f"no file system can be mounted here: {why.decode()}")
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.kill()  # whatever waits for it is told that it has gone
        self.process.wait()
        self.where.rmdir()

    def hold(self, fd):
        """Begins to write to the file what never comes."""
        def write():
            with contextlib.suppress(OSError):
                os.write(fd, memory)

        file = self.open()
        memory = mmap.mmap(file, SIZE)
        os.close(file)
        threading.Thread(target=write, daemon=True).start()

    def open(self):
        self.socket.send(b"x")
        _, fds, _, _ = socket.recv_fds(self.socket, 1, 1)
        self.socket.recv(1)
        return fds[0]


# ---- The process that serves the file system ------------------------------------------------------------------------

(LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, INTERRUPT, BATCH_FORGET) = \
    (1, 2, 3, 14, 15, 18, 25, 26, 36, 42)
IN, OUT = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")
ENOSYS, SIZE, CLONE_NEWNS, MS_PRIVATE, MS_REC = 38, 8192, 0x20000, 1 << 18, 1 << 14


def attributes(node):
    mode, size = (0o40777, 0) if node == 1 else (0o100666, SIZE)
    return struct.pack("<6Q10I", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(opcode, node):
    """The payload of a reply."""
    if opcode == INIT:
        return struct.pack("<4I2H2I2HI28x", 7, 31, 65536, 0, 16, 12, 65536, 1, 16, 0, 0)
    if opcode == LOOKUP:
        return struct.pack("<4Q2I", 2, 0, 0, 0, 0, 0) + attributes(2)
    if opcode == GETATTR:
        return struct.pack("<Q2I", 0, 0, 0) + attributes(node)
    return struct.pack("<Q2I", 0, 0, 0) if opcode == OPEN else b""


def is_of(pid, thread):
    return pathlib.Path(f"/proc/{pid}/task/{thread}").exists()


def serve(device, friends):
    while True:
        _, opcode, unique, node, _, _, caller, _ = IN.unpack_from(os.read(device, 1 << 17))
        if opcode in (READ, FORGET, BATCH_FORGET, INTERRUPT) or \
                (caller and not any(is_of(pid, caller) for pid in friends)):
            continue
        known = opcode in (INIT, LOOKUP, GETATTR, OPEN, RELEASE, FLUSH)
        payload = answer(opcode, node) if known else b""
        with contextlib.suppress(FileNotFoundError):  # who asked was killed
            os.write(device, OUT.pack(OUT.size + len(payload), 0 if known else -ENOSYS, unique) + payload)


def mount(where):
    """In a name space of its own, so that it goes with the process."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other".encode()
    for done in (lambda: libc.unshare(CLONE_NEWNS), lambda: libc.mount(b"none", b"/", None, MS_PRIVATE | MS_REC, None),
                 lambda: libc.mount(b"fuse", where.encode(), b"fuse", 0, options)):
        if done():
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return device


def run(where, fd, test):
    with socket.socket(fileno=int(fd)) as asked:
        try:
            device = mount(where)
        except OSError as why:
            asked.send(str(why).encode())
            return
        threading.Thread(target=serve, args=[device, (os.getpid(), int(test))], daemon=True).start()
        asked.send(b"ready")
        while asked.recv(1):
            file = os.open(f"{where}/file", os.O_RDWR)
            socket.send_fds(asked, [b"x"], [file])
            os.close(file)
            asked.send(b"x")  # killed in the middle of that it would wait for an answer of its own


if __name__ == "__main__":
    run(*sys.argv[1:])
