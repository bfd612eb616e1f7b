# SPDX-License-Identifier: BSD-3-Clause
"""A vfio-user server in Python that does what a test tells it, lies included.

    device = FakeDevice(path, config=config_space(...), bars={0: 4096}, irqs={2: 4})
    device.on[REGION_READ] = lambda device, payload: ...   # bytes: the reply; raise Refuse(errno); None: no reply
    with device: ...
"""
import array
import errno
import json
import os
import socket
import struct
import threading

(VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO, SET_IRQS, REGION_READ,
 REGION_WRITE, DMA_READ, DMA_WRITE, RESET) = range(1, 14)
HEADER = struct.Struct("<HHIII")
CONFIG = 7
INTX, MSI, MSIX, ERR, REQ = range(5)


class Refuse(Exception):
    """Raised in a handler: an error reply with this errno."""


class Gone(Exception):
    """Raised in a handler: the connection is dropped."""


def config_space(vendor=0x4F42, device=0x7777, bars=None, caps=(), pin=0, size=256):
    """bars: {index: low bits of its register}; caps: (offset, bytes with id and next)."""
    space = bytearray(size)
    struct.pack_into("<HHHH", space, 0, vendor, device, 0, 0x10 if caps else 0)
    space[0x09:0x0C] = b"\x00\x00\xff"
    for bar, bits in (bars or {}).items():
        struct.pack_into("<I", space, 0x10 + 4 * bar, bits)
    space[0x3D] = pin
    if caps:
        space[0x34] = caps[0][0]
    for offset, body in caps:
        space[offset:offset + len(body)] = body
    return space


def msix_cap(entries, table, pba, following=0):
    """table and pba: offset | BAR."""
    return struct.pack("<BBHII", 0x11, following, entries - 1, table, pba)


class FakeDevice:
    def __init__(self, path, config=None, bars=None, irqs=None, info_flags=3, irq_flags=1):
        self.path, self.info_flags, self.irq_flags = str(path), info_flags, irq_flags
        self.config = config if config is not None else config_space()
        self.sizes = {CONFIG: len(self.config), **(bars or {})}
        self.memory = {index: bytearray(size) for index, size in (bars or {}).items()}
        self.memory[CONFIG] = self.config
        self.irqs = irqs or {}
        self.on = {}
        self.log = []
        self.maps = {}
        self.eventfds = {}
        self.version = {"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1048576}}
        self.no_reply = False  # whether the command being served wants none
        self.connections = 0
        self.connection = None
        self.stopping = False
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(4)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping = True
        self.drop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waker:
            waker.connect(self.path)
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.listener.close()
        os.unlink(self.path)

    def drop(self):
        """Closes the connection, from any thread, whatever the server is doing."""
        if self.connection:
            try:
                self.connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def count(self, command):
        return sum(1 for entry in self.log if entry[0] == command)

    def trigger(self, index, vector=0):
        os.write(self.eventfds[index, vector], struct.pack("=Q", 1))

    def _run(self):
        while not self.stopping:
            self.connection, _ = self.listener.accept()
            if self.stopping:
                self.connection.close()
                return
            self.connections += 1
            try:
                while self._step():
                    pass
            except (OSError, Gone):
                pass
            finally:
                self.connection.close()
                for fd in [*self.eventfds.values(), *(m["fd"] for m in self.maps.values() if m["fd"] >= 0)]:
                    os.close(fd)
                self.eventfds.clear()
                self.maps.clear()

    def _receive(self, size):
        data = b""
        while len(data) < size:
            piece = self.connection.recv(size - len(data))
            if not piece:
                raise Gone
            data += piece
        return data

    def _message(self):
        room = socket.CMSG_SPACE(64 * 4)
        data, ancillary, _, _ = self.connection.recvmsg(HEADER.size, room, socket.MSG_CMSG_CLOEXEC)
        if not data:
            raise Gone
        fds = array.array("i")
        for _, _, body in ancillary:
            fds.frombytes(body[:len(body) - len(body) % 4])
        if len(data) < HEADER.size:
            data += self._receive(HEADER.size - len(data))
        msg_id, cmd, size, flags, error = HEADER.unpack(data)
        return msg_id, cmd, flags, error, self._receive(size - HEADER.size), list(fds)

    def _step(self):
        self._serve(*self._message())
        return True

    def _serve(self, msg_id, cmd, flags, _error, payload, fds):
        assert flags & 15 == 0, "an unexpected reply"
        reply, out_fds = self.reply_to(msg_id, cmd, flags, payload, fds)
        if reply:
            self.send(reply, out_fds)

    def reply_to(self, msg_id, cmd, flags, payload, fds):
        """The command done: the reply as bytes (none where none is due), and its fds."""
        self.log.append((cmd, payload))
        self.no_reply = bool(flags & 0x10)
        out_fds, error, reply = [], 0, b""
        try:
            reply = self.answer(cmd, payload, fds)
        except Refuse as why:
            error = why.args[0]
        if isinstance(reply, tuple):
            reply, out_fds = reply
        if reply is None or flags & 0x10:
            return b"", []
        return HEADER.pack(msg_id, cmd, HEADER.size + len(reply), 0x21 if error else 1, error) + reply, out_fds

    def send(self, data, fds=()):
        socket.send_fds(self.connection, [data], fds) if fds else self.connection.sendall(data)

    def answer(self, cmd, payload, fds):
        """The reply's payload, or that and fds, or None for no reply."""
        return self.on[cmd](self, payload) if cmd in self.on else getattr(self, f"cmd_{cmd}")(payload, fds)

    # the commands, done honestly

    def cmd_1(self, payload, _fds):
        return payload[:4] + json.dumps(self.version).encode() + b"\0"

    def cmd_2(self, payload, fds):
        _, flags, offset, address, size = struct.unpack("<IIQQQ", payload)
        if address in self.maps:
            raise Refuse(errno.EEXIST)
        self.maps[address] = {"size": size, "flags": flags, "offset": offset, "fd": fds[0] if fds else -1}
        return b""

    def cmd_3(self, payload, _fds):
        address, = struct.unpack_from("<Q", payload, 8)
        gone = self.maps.pop(address, None)
        if gone is None:
            raise Refuse(errno.ENOENT)
        if gone["fd"] >= 0:
            os.close(gone["fd"])
        return payload

    def cmd_4(self, _payload, _fds):
        return struct.pack("<IIII", 16, self.info_flags, 9, 5)

    def cmd_5(self, payload, _fds):
        index, = struct.unpack_from("<I", payload, 8)
        size = self.sizes.get(index, 0)
        return struct.pack("<IIIIQQ", 32, 3 if size else 0, index, 0, size, 0)

    def cmd_7(self, payload, _fds):
        index, = struct.unpack_from("<I", payload, 8)
        return struct.pack("<IIII", 16, self.irq_flags, index, self.irqs.get(index, 0))

    def cmd_8(self, payload, fds):
        _, flags, index, start, count = struct.unpack_from("<5I", payload)
        if flags & 0x20 and flags & 4 and fds:
            for i, fd in enumerate(fds):
                self._forget(index, start + i)
                self.eventfds[index, start + i] = fd
        elif flags & 0x20 and flags & 5:
            for i, v in [key for key in self.eventfds if key[0] == index]:
                if not count or start <= v < start + count:
                    self._forget(i, v)
        else:
            for fd in fds:
                os.close(fd)
        return b""

    def _forget(self, index, vector):
        fd = self.eventfds.pop((index, vector), None)
        if fd is not None:
            os.close(fd)

    def cmd_9(self, payload, _fds):
        offset, region, count = struct.unpack("<QII", payload)
        if region not in self.memory or offset + count > len(self.memory[region]):
            raise Refuse(errno.EINVAL)
        return payload + bytes(self.memory[region][offset:offset + count])

    def cmd_10(self, payload, _fds):
        offset, region, count = struct.unpack_from("<QII", payload)
        if region not in self.memory or offset + count > len(self.memory[region]):
            raise Refuse(errno.EINVAL)
        if region != CONFIG:
            self.memory[region][offset:offset + count] = payload[16:]
        return payload[:16]

    def cmd_13(self, _payload, _fds):
        return b""

    def __getattr__(self, name):
        if name.startswith("cmd_"):
            raise Refuse(errno.ENOTSUP)
        raise AttributeError(name)

    # the client's memory by message: only inside a handler (this is the server's thread)

    def ask_client(self, cmd, payload):
        """Sends a command of the server; serves the client's until the reply is there."""
        self.connection.sendall(HEADER.pack(0x4242, cmd, HEADER.size + len(payload), 0, 0) + payload)
        while True:
            msg_id, got, flags, error, body, fds = self._message()
            if flags & 15 == 1:
                assert (msg_id, got) == (0x4242, cmd), (msg_id, got)
                return error if flags & 0x20 else body
            self._serve(msg_id, got, flags, error, body, fds)

    def flood(self, stop):
        """Many small DMA_READs at a time, again and again, until the event stop. Returns how many were answered."""
        request = HEADER.pack(0x4242, DMA_READ, HEADER.size + 16, 0, 0) + struct.pack("<QQ", 0x200000, 512)
        answered = 0
        while not stop.is_set():
            self.connection.sendall(request * 64)
            for _ in range(64):
                self._message()
                answered += 1
        return answered

    def dma_read(self, address, count):
        """The data, or an errno."""
        body = self.ask_client(DMA_READ, struct.pack("<QQ", address, count))
        return body if isinstance(body, int) else body[16:]

    def dma_write(self, address, data):
        body = self.ask_client(DMA_WRITE, struct.pack("<QQ", address, len(data)) + data)
        return body if isinstance(body, int) else 0


def take(fd):
    """The eventfd's counter; 0 when it was not signalled."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


class Bells(FakeDevice):
    """A device with BARs of 4 KiB, each with the same eventfds for these writes: (offset, size, flags, datamatch)."""

    def __init__(self, path, *entries, bars=1):
        super().__init__(path, bars={index: 4096 for index in range(bars)})
        self.bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in entries]
        self.entries = entries
        self.on[GET_REGION_IO_FDS] = Bells.describe

    def __exit__(self, *args):
        super().__exit__(*args)
        for fd in self.bells:
            os.close(fd)

    def renew(self):
        """Other eventfds from now on, for whoever asks again."""
        for i, fd in enumerate(self.bells):
            os.close(fd)
            self.bells[i] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def describe(self, payload):
        _, _, index, _ = struct.unpack("<IIII", payload)
        if index not in self.sizes or index == CONFIG:
            raise Refuse(errno.EINVAL)
        body = b"".join(struct.pack("<QQIIIIQ", offset, size, i, 0, flags, 0, match)
                        for i, (offset, size, flags, match) in enumerate(self.entries))
        return struct.pack("<IIII", 16 + len(body), 0, index, len(self.entries)) + body, self.bells

    def rung(self):
        return [take(fd) for fd in self.bells]
