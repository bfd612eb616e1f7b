#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Whatever a server shares as a BAR, or does to it later, no access of the guest ends QEMU (SIGBUS)."""
import fcntl
import os
import pathlib
import socket
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main  # noqa: E402
from fakedevice import GET_REGION_INFO, REGION_READ, FakeDevice  # noqa: E402
from qtest import Qemu, device, wait_for  # noqa: E402

SIZE = 8192
SHRINK, GROW, WRITE, SEAL = fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SEAL


def memory(size=SIZE, seals=0):
    fd = os.memfd_create("bar", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def cut(fd):
    """What a server can do to a file that it has shared, as far as the kernel lets it."""
    for act in (lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0), lambda: os.ftruncate(fd, 0),
                lambda: os.ftruncate(fd, 2 * SIZE), lambda: os.posix_fallocate(fd, 0, SIZE)):
        try:
            act()
        except OSError:
            pass


def file_in(tmp, size=SIZE, flags=os.O_RDWR):
    path = tmp / "bar"
    with open(path, "wb") as out:
        out.truncate(size)
    return os.open(path, flags)


def read_only_memory():
    fd = memory()
    other = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    return other


def one_of(pair):
    os.close(pair[1])
    return pair[0]


# What is shared, and whether it may be mapped.
SHARED = {
    "memory": (lambda _: memory(), True),
    "memory-sealed": (lambda _: memory(seals=SHRINK | GROW | SEAL), True),
    "memory-that-cannot-be-sealed": (lambda _: memory(seals=SEAL), False),
    "memory-that-cannot-be-sealed-or-grow": (lambda _: memory(seals=GROW | SEAL), False),
    "memory-that-cannot-be-written": (lambda _: memory(seals=WRITE), False),
    "memory-opened-read-only": (lambda _: read_only_memory(), False),
    "memory-too-small": (lambda _: memory(4096), False),
    "memory-that-is-empty": (lambda _: memory(0), False),
    "file": (file_in, False),
    "file-without-access": (lambda tmp: file_in(tmp, flags=os.O_PATH), False),
    "directory": (lambda tmp: os.open(tmp, os.O_RDONLY | os.O_DIRECTORY), False),
    "pipe": (lambda _: one_of(os.pipe()), False),
    "eventfd": (lambda _: os.eventfd(0), False),
    "socket": (lambda _: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach(), False),
    "zero-device": (lambda _: os.open("/dev/zero", os.O_RDWR), False),
    "null-device": (lambda _: os.open("/dev/null", os.O_RDWR), False),
}


def sharing(fd):
    """A handler of GET_REGION_INFO: BAR 0 is in the file."""
    def region_info(device, payload):
        if payload[8]:
            return device.cmd_5(payload, [])
        return struct.pack("<IIIIQQ", 32, 7, 0, 0, SIZE, 0), [fd]
    return region_info


def check_shared(vm, tmp, fake, fd, mapped):
    fake.on[GET_REGION_INFO] = sharing(fd)
    vm.qmp("device_add", driver="vfio-user-pci", id="dev", addr="4", socket=str(tmp / "s"))
    pci = vm.pci(4)
    vm.base["mem"] = 0xE0000000
    pci.assign(0)
    cut(fd)
    before = fake.count(REGION_READ)
    for offset in (0, SIZE - 4):
        pci.bar_write(0, offset, 4, 0xA0 + offset)
        assert pci.bar_read(0, offset, 4) == 0xA0 + offset
    assert (fake.count(REGION_READ) == before) == mapped
    if mapped:
        assert os.pread(fd, 1, 0) == b"\xa0", "not the server's memory"
    vm.events.clear()
    vm.qmp("device_del", id="dev")
    vm.port_write(0xAE08, 4, 1 << 4)
    vm.wait_event("DEVICE_DELETED", device="dev")


@case("only-what-cannot-shrink-is-mapped-and-nothing-ends-the-machine", timeout_s=120)
def _(tmp):
    with FakeDevice(tmp / "s", bars={0: SIZE}) as fake, Qemu(tmp) as vm:
        for name, (make, mapped) in SHARED.items():
            fd = make(tmp)
            try:
                check_shared(vm, tmp, fake, fd, mapped)
            except BaseException:
                print(f"shared: {name}")
                raise
            finally:
                os.close(fd)
        assert vm.qmp("query-status")["running"]


@case("a-server-that-comes-back-with-a-file-it-can-cut-is-reached-by-message")
def _(tmp):
    files = [memory(), file_in(tmp), memory(4096)]
    with FakeDevice(tmp / "s", bars={0: SIZE}) as fake:
        fake.on[GET_REGION_INFO] = sharing(files[0])
        with Qemu(tmp, *device(tmp / "s", reconnect=30)) as vm:
            pci = vm.pci(4)
            pci.assign(0)
            for times, fd in enumerate(files[1:], 1):
                fake.on[GET_REGION_INFO] = sharing(fd)
                fake.drop()
                wait_for(lambda: vm.get("dev", "reconnects") == times and vm.get("dev", "connected"))
                vm.wait_said("the server does not share its BARs as before")
                cut(fd)
                before = fake.count(REGION_READ)
                pci.bar_write(0, SIZE - 4, 4, 0x5A)
                assert pci.bar_read(0, SIZE - 4, 4) == 0x5A and fake.count(REGION_READ) == before + 1
    for fd in files:
        os.close(fd)


@case("a-server-that-comes-back-so-again-and-again-fills-no-log")
def _(tmp):
    times = 20
    with FakeDevice(tmp / "s", bars={0: SIZE}) as fake:
        fake.on[GET_REGION_INFO] = sharing(sealed := memory())
        with Qemu(tmp, *device(tmp / "s", reconnect=30)) as vm:
            fake.on[GET_REGION_INFO] = sharing(loose := file_in(tmp))
            for time in range(1, times + 1):
                fake.drop()
                wait_for(lambda: vm.get("dev", "reconnects") == time)
            said = vm.wait_said("accessed by message")
            assert said.count("by message") <= times / 2, said  # one in five seconds is
        os.close(sealed)
        os.close(loose)


main()
