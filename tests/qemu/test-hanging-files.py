#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A server attaches descriptors that make whoever closes them, or asks what they are, wait: the machine does not."""
import contextlib
import os
import pathlib
import struct
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main
from fakedevice import (DMA_READ, GET_INFO, GET_IRQ_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, HEADER, REGION_READ,
                        REGION_WRITE, RESET, SET_IRQS, VERSION, FakeDevice)
from hanging import FuseFiles, lingering, release
from hostile import Behaviour, HostileDevice, Message
from qtest import MEMORY, Qemu, QmpError, wait_for

NO_REPLY = 0x10
PROMPT_S, MANY, KEPT_FDS = 10, 16, 512 + 253 + 8
MESSAGES = [Message("version", VERSION), Message("info", GET_INFO), Message("bar-info", GET_REGION_INFO, 0),
            Message("io-fds", GET_REGION_IO_FDS), Message("irq-info", GET_IRQ_INFO), Message("bar", REGION_READ, 0),
            Message("write", REGION_WRITE, 0), Message("reset", RESET), Message("irqs", SET_IRQS)]


def attaches(open_one, count=MANY):
    """With the reply, and with commands before and behind it. Ours are closed before the last byte is sent, so that the
    receiver has the last ones."""
    def act(device, reply, _fds):
        command = HEADER.pack(9, DMA_READ, HEADER.size + 16, NO_REPLY, 0) + struct.pack("<QQ", 0, 4)
        for message in (command, reply, command):
            fds = [open_one() for _ in range(count)]
            try:
                device.send(message[:1], fds)
            finally:
                for fd in fds:
                    os.close(fd)
            device.send(message[1:])
    return Behaviour(act, harmless=True)


@contextlib.contextmanager
def prompt(what):
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    assert took < PROMPT_S, f"{what}: {took:.1f} s"


class Machine:
    """A hostile device comes and goes beside one that is honest."""

    def __init__(self, tmp, vm):
        self.tmp, self.vm, self.other = tmp, vm, vm.pci(5)
        self.other.bars[0] = ("mem", 0xE8000000)

    def works(self):
        with prompt("the rest of the machine"):
            assert self.vm.qmp("query-status")["running"]
            self.other.config_write(0x10, 4, 0xE8000000)
            self.other.command(MEMORY)
            self.other.bar_write(0, 0, 4, 0x12345678)
            assert self.other.bar_read(0, 0, 4) == 0x12345678

    def fds(self):
        return len(list(pathlib.Path(f"/proc/{self.vm.process.pid}/fd").iterdir()))

    def plug(self, **options):
        with contextlib.suppress(QmpError):
            self.vm.qmp("device_add", driver="vfio-user-pci", id="dev", addr="6", socket=str(self.tmp / "s"),
                        x_msg_timeout=20000, **options)
            return True
        return False

    def use(self):
        pci = self.vm.pci(6)
        pci.bars[0] = ("mem", 0xE0000000)
        pci.config_write(0x10, 4, 0xE0000000)
        pci.command(MEMORY)
        pci.bar_write(0, 0, 4, 1)
        pci.bar_read(0, 0, 4)
        self.vm.events.clear()
        self.vm.qmp("system_reset")
        self.vm.wait_event("RESET")

    def unplug(self):
        self.vm.events.clear()
        self.vm.qmp("device_del", id="dev")
        self.vm.port_write(0xAE08, 4, 1 << 6)
        self.vm.wait_event("DEVICE_DELETED", device="dev")


def no_io_fds(_device, payload):
    return struct.pack("<IIII", 16, 0, payload[8], 0)


@contextlib.contextmanager
def machine(tmp):
    with HostileDevice(tmp / "s", bars={0: 4096}) as fake, FakeDevice(tmp / "other", bars={0: 4096}) as other, \
            Qemu(tmp, "-device", f"vfio-user-pci,addr=5,socket={tmp}/other") as vm:
        fake.on[GET_REGION_IO_FDS] = other.on[GET_REGION_IO_FDS] = no_io_fds
        yield fake, Machine(tmp, vm)


def at_every_message(fake, m, open_one):
    for message in MESSAGES:
        print(message.name)
        fake.arm(message, attaches(open_one, 4))
        with prompt("plug, use, unplug"):
            if m.plug():
                m.works()
                m.use()
                m.works()
                m.unplug()
        m.works()
        fake.disarm()


@case("files-of-a-file-system-that-does-not-answer-delay-nothing", timeout_s=120)
def _(tmp):
    with machine(tmp) as (fake, m), FuseFiles(tmp) as files:
        at_every_message(fake, m, files.open)
        assert m.fds() < 100 + KEPT_FDS


@case("sockets-that-linger-delay-nothing", timeout_s=120)
def _(tmp):
    with machine(tmp) as (fake, m):
        before = m.fds()
        at_every_message(fake, m, lingering)
        release()
        wait_for(lambda: m.fds() == before)


@case("a-server-that-sends-them-again-and-again-is-lost-for-that-reason-and-others-are-not", timeout_s=120)
def _(tmp):
    with machine(tmp) as (fake, m), FuseFiles(tmp) as files:
        before = m.fds()
        fake.on[RESET] = lambda *_: b""
        assert m.plug(reconnect=2)
        for _ in range(40):
            fake.arm(Message("reset", RESET), attaches(files.open))
            with prompt("reset"):
                m.vm.events.clear()
                m.vm.qmp("system_reset")
                m.vm.wait_event("RESET")
            m.works()
            if m.vm.get("dev", "last-error"):
                break
        m.vm.wait_said("descriptors that the server sent are still not closed")
        wait_for(lambda: not m.vm.get("dev", "connected"))
        m.works()
        assert m.fds() - before < KEPT_FDS
        m.unplug()


@case("a-bar-whose-file-is-being-written-for-ever-is-reached-by-message")
def _(tmp):
    memory = os.memfd_create("bar", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, 4096)

    def region_info(device, payload):
        if payload[8]:
            return device.cmd_5(payload, [])
        return struct.pack("<IIIIQQ", 32, 7, 0, 0, 4096, 0), [memory]

    with machine(tmp) as (fake, m), FuseFiles(tmp) as files:
        fake.on[GET_REGION_INFO] = region_info
        files.hold(memory)
        with prompt("plug"):
            assert m.plug()
        m.vm.wait_said("BAR0 is not mapped")
        m.works()
        m.unplug()
    os.close(memory)


main()
