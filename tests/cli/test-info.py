#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""`outboard info`: what it says of our devices, and of servers that describe nonsense."""
import contextlib
import errno
import json
import pathlib
import re
import socket
import struct
import subprocess
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import OUTBOARD, case, main

VERSION, GET_INFO, REGION_INFO, IRQ_INFO, REGION_READ = 1, 4, 5, 7, 9
HEADER = struct.Struct("<HHIII")


@contextlib.contextmanager
def serving(device, path):
    process = subprocess.Popen([OUTBOARD, "serve", device, path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline(), "it did not start"
        yield
    finally:
        process.terminate()
        process.communicate()


class Answering:
    """A server that answers as it is told: answers[command](payload) is a payload or an errno."""

    def __init__(self, path, answers):
        self.answers = {VERSION: lambda payload: payload[:4] + b"{}\0", **answers}
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                with client, client.makefile("rb") as stream:
                    self.serve(client, stream)

    def serve(self, client, stream):
        while head := stream.read(HEADER.size):
            number, command, size, _, _ = HEADER.unpack(head)
            answer = self.answers[command](stream.read(size - HEADER.size))
            if answer is None:
                continue
            if isinstance(answer, int):
                client.sendall(HEADER.pack(number, command, HEADER.size, 0x21, answer))
            else:
                client.sendall(HEADER.pack(number, command, HEADER.size + len(answer), 1, 0) + answer)


def device_with(config, nregions=9, nirqs=0, bars={}):
    """Answers of a device with this config space and these sizes of regions."""
    sizes = {7: len(config), **bars}

    def region(payload):
        index = struct.unpack_from("<I", payload, 8)[0]
        return struct.pack("<IIIIQQ", 32, 3, index, 0, sizes.get(index, 0), 0)

    def read(payload):
        offset, _, count = struct.unpack("<QII", payload)
        return payload + config[offset:offset + count]

    return {GET_INFO: lambda payload: struct.pack("<IIII", 16, 2, nregions, nirqs),
            REGION_INFO: region, REGION_READ: read}


def config_with(*pieces, size=256):
    """Config space of 1234:5678 with a capability list from 0x40, and (offset, bytes) on it."""
    config = bytearray(size)
    struct.pack_into("<HHHHI", config, 0, 0x1234, 0x5678, 0, 0x10, 0x01080201)
    config[0x34] = 0x40
    for offset, data in pieces:
        config[offset:offset + len(data)] = data
    return bytes(config)


def info(*words):
    return subprocess.run([OUTBOARD, "info", *map(str, words)], capture_output=True, text=True, timeout=30)


def described(path):
    """The JSON; and the text must come without complaint too."""
    text, data = info(path), info(path, "--json")
    assert (text.returncode, text.stderr, data.returncode, data.stderr) == (0, "", 0, ""), (text, data)
    assert all(line.isprintable() for line in text.stdout.splitlines())
    return json.loads(data.stdout), text.stdout


def refused(status, sentence, *words):
    done = info(*words)
    assert (done.returncode, done.stdout) == (status, ""), done
    assert done.stderr.startswith("outboard info: ") and done.stderr.count("\n") == 1, done.stderr
    assert sentence in done.stderr, done.stderr


@case("describes-gpio")
def _(tmp):
    with serving("gpio", tmp / "s"):
        data, text = described(tmp / "s")
    assert (data["vendor_id"], data["device_id"], data["resettable"]) == (0x494f, 0x0dc8, True)
    bar = next(region for region in data["regions"] if region["name"] == "BAR2")
    assert bar["type"] == "io" and bar["read"] and bar["write"] and bar["mappable"] == []
    assert [(irq["name"], irq["count"], irq["automasked"]) for irq in data["interrupts"]] == [
        ("INTx", 1, True), ("ERR", 1, False), ("REQ", 1, False)]
    assert data["limits"]["max_msg_fds"] == 16 and data["limits"]["pgsizes"] == "0x1000"
    assert re.search(r"^device +494f:0dc8 ", text, re.M) and re.search(r"^  BAR2 +I/O ports, ", text, re.M), text


@case("describes-edu")
def _(tmp):
    with serving("edu", tmp / "s"):
        data, text = described(tmp / "s")
    msi = next(cap for cap in data["capabilities"] if cap["name"] == "MSI")
    assert msi["vectors"] == 1 and msi["64bit"] and not msi["enabled"] and not msi["extended"]
    assert re.search(r"^  \[40\] +MSI: enabled- vectors 1 ", text, re.M), text


@case("describes-mappable-memory")
def _(tmp):
    with serving("null", tmp / "s"):
        data, text = described(tmp / "s")
    bar = data["regions"][1]
    assert bar["mappable"] == [{"offset": 0, "size": 65536}] and bar["prefetchable"] and bar["sealed"], bar
    assert "64 KiB, mappable at 0x0-0xffff\n" in text, text


@case("decodes-capabilities")
def _(tmp):
    config = config_with(
        (0x40, bytes([0x01, 0x50, 0x03, 0x00, 0x0b, 0x00])),
        (0x50, bytes([0x11, 0x60]) + struct.pack("<HII", 0x8040, 0x2000 | 4, 0x3000 | 4)),
        (0x60, bytes([0x10, 0x90]) + struct.pack("<HIHHIH", 2, 0x10008002, 0, 0, 0x43, 0)),
        (0x90, bytes([0xfe, 0x00])),
        (0x100, struct.pack("<III", 0x14010003, 0x89abcdef, 0x01234567)),
        (0x140, struct.pack("<I", 0x00020001)),
        (0x10, struct.pack("<I", 0xc)), (0x14, b"\1\0\0\0"), (0x18, b"\1\0\0\0"),
        size=4096)
    with Answering(tmp / "s", device_with(config, bars={0: 0x4000, 2: 8, 8: 16})):
        data, text = described(tmp / "s")
    caps = {cap["name"]: cap for cap in data["capabilities"]}
    assert list(caps) == ["Power Management", "MSI-X", "PCI Express", "unknown",
                          "Device Serial Number", "Advanced Error Reporting"], list(caps)
    assert caps["Power Management"]["state"] == "D3" and caps["Power Management"]["no_soft_reset"]
    msix = caps["MSI-X"]
    assert (msix["vectors"], msix["enabled"], msix["masked"]) == (65, True, False)
    assert (msix["table_bar"], msix["table_offset"], msix["pba_bar"], msix["pba_offset"]) == (4, 0x2000, 4, 0x3000)
    assert caps["PCI Express"]["type"] == "endpoint" and caps["PCI Express"]["function_reset"]
    assert caps["Device Serial Number"]["serial"] == "0123456789abcdef"
    assert caps["Advanced Error Reporting"]["version"] == 2 and caps["Advanced Error Reporting"]["extended"]
    assert "capability_error" not in data
    regions = {region["name"]: region for region in data["regions"]}
    assert regions["BAR0"]["type"] == "memory64" and regions["BAR0"]["prefetchable"]
    assert regions["BAR2"]["type"] == "io" and "BAR1" not in regions and "VGA" in regions
    assert data["class_name"] == "NVM Express controller"
    assert "[140]" in text and "table_offset 0x2000" in text, text


@case("survives-broken-capability-lists")
def _(tmp):
    loop = (0x40, bytes([0x05, 0x50])), (0x50, bytes([0x09, 0x40]))
    for number, (config, sentence) in enumerate([
            (config_with(*loop), "loops at 0x40"),
            (config_with((0x40, bytes([0x05, 0x10]))), "leads to 0x10"),
            (config_with((0x34, b"\xff"), (0xfc, b"\x11\x00"), size=254), "leads to 0xfc"),
            (config_with((0x40, bytes(4)), (0x100, struct.pack("<I", 0x10010001)), size=4096), "loops at 0x100"),
            (config_with((0x40, bytes(4)), (0x100, struct.pack("<I", 0x04010001)), size=4096), "leads to 0x40"),
            (config_with((0x40, bytes(4)), (0x100, struct.pack("<I", 0xfff10001)), size=4096), "leads to 0xfff"),
            (config_with((0x40, bytes(4)),
                         *((at, struct.pack("<I", (at + 4) << 20 | 0x10001)) for at in range(0x100, 0xffc, 4)),
                         size=4096), "more than 64")]):
        path = tmp / str(number)
        with Answering(path, device_with(config)):
            data, text = described(path)
        assert sentence in data["capability_error"] and sentence in text, (number, data)


@case("says-what-a-server-refuses-to-describe")
def _(tmp):
    answers = device_with(config_with(), nirqs=1)
    answers[REGION_READ] = lambda payload: errno.EPERM
    answers[IRQ_INFO] = lambda payload: errno.EIO
    with Answering(tmp / "s", answers):
        data, text = described(tmp / "s")
    assert data["config_size"] == 0 and "Operation not permitted" in data["config_error"], data
    assert "Input/output error" in data["interrupts"][0]["error"], data
    assert "vendor_id" not in data and "cannot be read" in text, text


@case("device-without-config-space")
def _(tmp):
    for number, answers in enumerate([device_with(b"", nregions=2, bars={0: 4096}), device_with(bytes(63))]):
        with Answering(tmp / str(number), answers):
            data, text = described(tmp / str(number))
        assert data["config_size"] == 0 and "config_error" not in data and "no PCI device" in text, text


@case("a-server-that-breaks-the-protocol-is-an-error")
def _(tmp):
    answers = device_with(config_with())
    answers[REGION_READ] = lambda payload: payload + b"short"
    with Answering(tmp / "s", answers):
        refused(1, "the server answered REGION_READ with 21 bytes instead of 272", tmp / "s")
        refused(1, "the server answered REGION_READ with 21 bytes instead of 272", tmp / "s", "--json")


@case("a-server-that-hangs-is-an-error")
def _(tmp):
    answers = device_with(config_with())
    answers[REGION_INFO] = lambda payload: None
    with Answering(tmp / "s", answers):
        refused(1, "the server did not answer in time", tmp / "s", "--timeout", 300)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        listener.bind(str(tmp / "silent"))
        listener.listen(1)
        refused(1, "the server did not answer within 300 ms", tmp / "silent", "--timeout", 300)
    refused(1, "nobody listens on", tmp / "silent")


@case("says-what-is-wrong-with-the-command-line")
def _(tmp):
    (tmp / "file").touch()
    refused(1, "there is no socket", tmp / "none")
    refused(1, "is not a socket", tmp / "file")
    refused(2, "which SOCKET?")
    refused(2, "not also 'b'", "a", "b")
    refused(2, "there is no option --jsn", "a", "--jsn")
    refused(2, "--timeout takes milliseconds, not '0'", "a", "--timeout", "0")
    refused(2, "--timeout needs a value", "a", "--timeout")


main()
