#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What the vfio-user-pci device says when it cannot be plugged in; the machine goes on as it was."""
import errno
import json
import pathlib
import socket
import struct
import subprocess
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main
from fakedevice import (CONFIG, DMA_MAP, GET_INFO, GET_REGION_INFO, INTX, MSIX, REGION_READ, VERSION, FakeDevice, Gone,
                        Refuse, config_space, msix_cap)
from qtest import Qemu, QmpError, device, firmware, plugin, qemu, qemu_command, wait_for


def refusal(vm, **properties):
    """Plugs the device in, which must fail; the error's text."""
    try:
        vm.qmp("device_add", driver="vfio-user-pci", id="bad", addr="6", **properties)
    except QmpError as why:
        assert vm.qmp("query-status")["running"]
        assert vm.pci(6).config_read(0, 4) == 0xFFFFFFFF
        return str(why)
    raise AssertionError("the device was plugged in")


def works(vm, path):
    """A good server is taken after all the bad ones, in the same slot."""
    vm.qmp("device_add", driver="vfio-user-pci", id="good", addr="6", socket=str(path))
    assert vm.pci(6).config_read(0, 4) == 0x77774F42


@case("nobody-there")
def _(tmp):
    (tmp / "file").write_text("")
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stale.bind(str(tmp / "stale"))
    stale.close()
    with Qemu(tmp) as vm, FakeDevice(tmp / "s"):
        for name, words in (("missing", "is the server running"), ("file", "socket"), ("stale", "server")):
            text = refusal(vm, socket=str(tmp / name))
            assert name in text and words in text, text
        works(vm, tmp / "s")


@case("property-mistakes")
def _(tmp):
    with Qemu(tmp) as vm, FakeDevice(tmp / "s") as fake:
        good = str(tmp / "s")
        for properties, words in (
                ({}, "socket=PATH"), ({"socket": ""}, "is empty"),
                ({"socket.path": ""}, "is empty"), ({"socket.type": "inet"}, "use socket.type=unix"),
                ({"socket": good, "socket.path": good}, "twice"), ({"socket": good, "x-msg-timeout": 0}, "at least 1"),
                ({"socket": good, "spin-us": 10001}, "at most 10000"),
                ({"socket": good, "x-pci-device-id": 0x10000}, "16 bits"), ({"socket": good, "nonsense": 1}, "nonsense")):
            text = refusal(vm, **properties)
            assert words in text, (properties, text)
        fake.log.clear()
        works(vm, tmp / "s")


@case("socket-addresses-that-cannot-be")
def _(tmp):
    for address, words in (({"type": "inet", "host": "localhost", "port": "1"}, "use unix"), ({"type": "unix"}, "path"),
                           ({"type": "unix", "path": "x", "abstract": True}, "abstract"), (7, "socket"),
                           ({"type": "fd", "str": "1000"}, "socket"), ({"type": "fd", "str": "name"}, "name")):
        run = subprocess.run(qemu_command("-device", json.dumps({"driver": "vfio-user-pci", "socket": address})),
                             capture_output=True, text=True, timeout=30)
        assert run.returncode == 1 and words in run.stderr, (address, run.stderr)


@case("silent-server")
def _(tmp):
    with Qemu(tmp) as vm, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(tmp / "s"))
        silent.listen(1)
        text = refusal(vm, socket=str(tmp / "s"), x_msg_timeout=200)
        assert "200 ms" in text or "timed out" in text or "answer" in text, text


@case("server-that-talks-rubbish")
def _(tmp):
    def rubbish(listener):
        for answer in (b"HTTP/1.0 400 Bad Request\r\n\r\n" * 10, b"", b"\x01\x00\x01\x00\x00\x00\x00\x80\x01\x00\x00\x00"):
            connection, _ = listener.accept()
            with connection:
                connection.recv(16)
                connection.sendall(answer)
    with Qemu(tmp) as vm, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp / "s"))
        listener.listen(1)
        thread = threading.Thread(target=rubbish, args=(listener,))
        thread.start()
        for _ in range(3):
            assert refusal(vm, socket=str(tmp / "s"), x_msg_timeout=1000)
        thread.join()


def region_of(size, flags=3):
    def answer(device, payload):
        if payload[8] != CONFIG:
            return device.cmd_5(payload, [])
        return struct.pack("<IIIIQQ", 32, flags, CONFIG, 0, size, 0)
    return answer


def refused(number):
    def answer(*_):
        raise Refuse(number)
    return answer


def vanish(*_):
    raise Gone


@case("devices-that-cannot-be")
def _(tmp):
    """Each is tried in the same machine, one after another."""
    bridge = config_space()
    bridge[0x0E] = 1
    for_bar = [
        (config_space(vendor=0xFFFF), {}, "no device"),
        (bridge, {}, "type 1"),
        (bytearray(16), {}, "256 or 4096"),
        (config_space(), {0: 4097}, "power of two"),
        (config_space(), {1: 8}, "power of two"),
        (config_space(bars={0: 1}), {0: 1 << 20}, "power of two"),
        (config_space(bars={5: 4}), {5: 4096}, "64-bit"),
        (config_space(bars={2: 4}), {2: 4096, 3: 4096}, "64-bit"),
    ]
    with Qemu(tmp) as vm:
        for space, bars, words in for_bar:
            with FakeDevice(tmp / "s", space, bars):
                text = refusal(vm, socket=str(tmp / "s"))
                assert words in text, text
        with FakeDevice(tmp / "s", info_flags=1):
            assert "not a PCI device" in refusal(vm, socket=str(tmp / "s"))
        for command, handler, words in (
                (VERSION, refused(errno.EINVAL), ""), (GET_INFO, refused(errno.EIO), "what device it is"),
                (GET_INFO, lambda *_: struct.pack("<IIII", 16, 2, 3, 5), "no config space"),
                (GET_INFO, lambda *_: b"\x10", ""), (GET_REGION_INFO, region_of(0), "256 or 4096"),
                (GET_REGION_INFO, region_of(4096, 0), "256 or 4096"), (GET_REGION_INFO, vanish, ""),
                (REGION_READ, refused(errno.EIO), "cannot be read"), (REGION_READ, vanish, ""),
                (DMA_MAP, refused(errno.ENOSPC), "does not map guest memory"), (DMA_MAP, vanish, "")):
            with FakeDevice(tmp / "s") as fake:
                fake.on[command] = handler
                text = refusal(vm, socket=str(tmp / "s"))
                assert words in text, (command, text)
        with FakeDevice(tmp / "s"):
            works(vm, tmp / "s")


@case("failed-plugging-leaves-nothing-behind", timeout_s=180)
def _(tmp):
    """It fails at the last step, with BARs, MSI-X and a ROM set up, a thousand times."""
    space = config_space(bars={0: 0}, caps=[(0x40, msix_cap(4, 0x800, 0xC00))], pin=1)
    with Qemu(tmp) as vm, FakeDevice(tmp / "s", space, {0: 4096, 6: 2048}, {INTX: 1, MSIX: 4}) as fake:
        fake.on[DMA_MAP] = refused(errno.ENOSPC)
        fds = pathlib.Path(f"/proc/{vm.process.pid}/fd")

        def rss_kib():
            status = pathlib.Path(f"/proc/{vm.process.pid}/status").read_text()
            return int(status.split("VmRSS:")[1].split()[0])
        for _ in range(100):
            refusal(vm, socket=str(tmp / "s"))
        before, memory = len(list(fds.iterdir())), rss_kib()
        for _ in range(900):
            refusal(vm, socket=str(tmp / "s"))
        wait_for(lambda: len(list(fds.iterdir())) <= before + 1, "the number of open files")
        assert rss_kib() - memory < 8192, f"{rss_kib() - memory} KiB more"
        del fake.on[DMA_MAP]
        works(vm, tmp / "s")


@case("viommu-is-refused")
def _(tmp):
    with FakeDevice(tmp / "s"):
        run = subprocess.run(qemu_command("-machine", "q35", "-device", "intel-iommu", *device(tmp / "s")),
                             capture_output=True, text=True, timeout=30)
        assert run.returncode == 1 and "bypass" in run.stderr, run.stderr


@case("only-migratable-is-refused")
def _(tmp):
    with FakeDevice(tmp / "s"):
        run = subprocess.run(qemu_command("-only-migratable", *device(tmp / "s")),
                             capture_output=True, text=True, timeout=30)
        assert run.returncode == 1 and "server's process" in run.stderr, run.stderr


@case("plug-in-takes-no-arguments")
def _(tmp):
    run = subprocess.run([qemu(), "-plugin", f"{plugin()},x=1", "-nodefaults", "-display", "none"],
                         capture_output=True, text=True, timeout=30)
    assert run.returncode == 1 and "takes no arguments" in run.stderr, run.stderr


main()
