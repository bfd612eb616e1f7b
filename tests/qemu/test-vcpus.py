#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Two virtual processors access a device at the same time (guest/baremetal/vcpus.S), whatever becomes of it meanwhile.

Under TCG they use ports and under KVM memory, which is where QEMU comes without its big lock from 10.2 on. Under TCG
it takes that lock for memory.
"""
import contextlib
import os
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, case, main, skip  # noqa: E402
from fakedevice import (CONFIG, INTX, REGION_READ, RESET, SET_IRQS, Bells, FakeDevice, config_space)  # noqa: E402
from qtest import Qemu, device, wait_for  # noqa: E402

PROGRAM = BUILD / "guest" / "vcpus.bin"
JOBS, RUNS = 0x1000, 20  # as in vcpus.S
WRITES, READS, MEMORY = 1, 2, 4
REGISTER = 0x40, 0x80  # of each processor
AF_CAP, AF_FLR = 0x40, b"\x13\x00\x06\x03\x00\x00"  # Advanced Features: function-level reset
UNMASK = 0x10


class Held(FakeDevice):
    """A device with one BAR, of ports or of memory, that keeps its answers to reads of it while it is told to."""

    def __init__(self, path, ports):
        super().__init__(path, config_space(bars={0: int(ports)}, caps=[(AF_CAP, AF_FLR)], pin=1), {0: 256}, {INTX: 1})
        self.holding, self.held = False, []

    def reply_to(self, msg_id, cmd, flags, payload, fds):
        reply = super().reply_to(msg_id, cmd, flags, payload, fds)
        if self.holding and cmd == REGION_READ and payload[8] != CONFIG:
            self.held.append(reply[0])
            return b"", []
        return reply

    def hold(self):
        self.held.clear()
        self.holding = True
        wait_for(lambda: len(self.held) == 2, "both processors' waiting")

    def release(self):
        self.holding = False
        self.send(b"".join(self.held))


class Processors:
    """What the two do, and the device in slot 4 to which they do it."""

    def __init__(self, vm, ports):
        self.vm, self.ports, self.pci = vm, ports, vm.pci(4)
        wait_for(lambda: all(vm.read(JOBS + 32 * i + RUNS, 4) for i in (0, 1)), "two processors")

    def job(self, number):
        """The round, what was read last, and how often it was not what had been written."""
        return struct.unpack("<III", self.vm.read_bytes(JOBS + 32 * number + 8, 12))

    def start(self, *what, registers=REGISTER):
        self.vm.base.update(mem=0xE0000000, io=0xC000)
        self.pci.assign(0)
        for i, (bits, register) in enumerate(zip(what, registers)):
            self.vm.write(JOBS + 32 * i + 4, 4, self.pci.bars[0][1] + register)
            self.vm.write(JOBS + 32 * i, 4, bits if self.ports else bits | MEMORY)
        self.wait_rounds(2)  # what was begun before may have gone elsewhere
        for i in (0, 1):
            self.vm.write(JOBS + 32 * i + 16, 4, 0)

    def stop(self):
        for i in (0, 1):
            self.vm.write(JOBS + 32 * i, 4, 0)

    def wait_rounds(self, count=50):
        """Until each has done so many more."""
        before = [self.job(i)[0] for i in (0, 1)]
        wait_for(lambda: all(self.job(i)[0] >= before[i] + count for i in (0, 1)), "the processors' progress")

    def mistakes(self):
        return [self.job(i)[2] for i in (0, 1)]


@contextlib.contextmanager
def machine(tmp, accel, make=Held, more=(), **properties):
    """A server, and a QEMU in which two processors wait for work."""
    if not PROGRAM.exists():
        skip("the guest is for x86 machines")
    if accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        skip("no KVM")
    ports = accel == "tcg"
    with make(tmp / "s", ports) as fake, \
            Qemu(tmp, "-smp", "2", *device(tmp / "s", **properties), *more, accel=accel, code=PROGRAM) as vm:
        yield fake, vm, Processors(vm, ports)


def without_the_big_lock(vm):
    version = vm.qmp("query-version")["qemu"]
    return (version["major"], version["minor"]) >= (10, 2)


def unplug(vm):
    vm.events.clear()
    vm.qmp("device_del", id="dev")
    vm.port_write(0xAE08, 4, 1 << 4)


def each_accelerator(name, timeout_s=90):
    """Registers a test for both."""
    def register(function):
        for accel in ("tcg", "kvm"):
            case(f"{name}-under-{accel}", timeout_s)(lambda tmp, accel=accel: function(tmp, accel))
        return function
    return register


@each_accelerator("registers-keep-what-each-writes-and-interrupts-are-served")
def _(tmp, accel):
    with machine(tmp, accel) as (fake, vm, cpus):
        cpus.start(WRITES | READS, WRITES | READS)
        cpus.wait_rounds(200)

        def unmasked():
            return sum(1 for cmd, payload in fake.log if cmd == SET_IRQS and payload[4] & UNMASK)
        if accel == "tcg":  # KVM takes the line by itself
            for _ in range(20):
                before = unmasked()
                fake.trigger(INTX)
                wait_for(lambda: unmasked() > before, "word that the interrupt was served")
                wait_for(lambda: not cpus.pci.intx(), "the line's going down")
        cpus.wait_rounds()
        assert cpus.mistakes() == [0, 0]
        cpus.stop()


@each_accelerator("unplugging-wakes-those-that-wait")
def _(tmp, accel):
    with machine(tmp, accel, x_msg_timeout=60000) as (fake, vm, cpus):
        for what in (READS, WRITES | READS):
            cpus.start(what, what)
            cpus.wait_rounds()
            fake.hold()
            unplug(vm)
            cpus.wait_rounds()  # where nothing is any more
            cpus.stop()  # and QEMU's RCU waits for who looks
            vm.qmp("stop")
            vm.wait_event("DEVICE_DELETED", device="dev")
            vm.qmp("cont")
            fake.holding = False
            vm.qmp("device_add", driver="vfio-user-pci", id="dev", addr="4", socket=str(tmp / "s"), x_msg_timeout=60000)


@each_accelerator("unplugging-under-load-leaves-the-machine-running", 180)
def _(tmp, accel):
    with machine(tmp, accel) as (fake, vm, cpus):
        for i in range(15):
            cpus.start(WRITES if i % 3 else READS, WRITES | READS)
            cpus.wait_rounds(20)
            unplug(vm)
            cpus.wait_rounds()
            cpus.stop()
            vm.qmp("stop")
            vm.wait_event("DEVICE_DELETED", device="dev")
            vm.qmp("cont")
            vm.qmp("device_add", driver="vfio-user-pci", id="dev", addr="4", socket=str(tmp / "s"))


@each_accelerator("function-level-reset-does-not-wait-for-those-that-wait")
def _(tmp, accel):
    with machine(tmp, accel, x_msg_timeout=60000) as (fake, vm, cpus):
        cpus.start(WRITES | READS, WRITES | READS)
        for _ in range(5):
            cpus.wait_rounds()
            fake.hold()
            flr_reaches_the_server(fake, cpus.pci)
            fake.release()
            cpus.start(WRITES | READS, WRITES | READS)
        cpus.wait_rounds()
        assert cpus.mistakes() == [0, 0] and vm.get("dev", "connected")
        cpus.stop()


def flr_reaches_the_server(fake, pci):
    """It is one write to the server's configuration, and takes the BARs away."""
    fake.log.clear()
    pci.config_write(AF_CAP + 4, 1, 1)
    written = [payload for cmd, payload in fake.log if payload[8:9] == bytes([CONFIG]) and payload[0] == AF_CAP + 4]
    assert written and fake.count(RESET) == 0, fake.log
    assert pci.config_read(4, 2) & 3 == 0


@each_accelerator("reset-of-the-machine-lets-those-that-wait-finish")
def _(tmp, accel):
    with machine(tmp, accel, x_msg_timeout=500) as (fake, vm, cpus):
        for _ in range(2):
            cpus.start(WRITES | READS, WRITES | READS)
            cpus.wait_rounds()
            resets = fake.count(RESET)
            fake.hold()
            vm.qmp("system_reset")
            vm.wait_event("RESET")
            vm.events.clear()
            fake.holding = False
            assert fake.count(RESET) == resets + 1
        cpus.start(WRITES | READS, WRITES | READS)
        cpus.wait_rounds()
        assert cpus.mistakes() == [0, 0] and vm.get("dev", "connected")
        cpus.stop()


def bells(path, ports):
    fake = Bells(path, (0x10, 4, 0, 0))
    fake.config[0x10] = int(ports)
    return fake


@each_accelerator("server-that-goes-and-comes-back-is-waited-for", 180)
def _(tmp, accel):
    """One of them rings a doorbell, which is an eventfd of each server."""
    with machine(tmp, accel, bells, reconnect=60, x_msg_timeout=60000) as (fake, vm, cpus):
        cpus.start(WRITES, WRITES | READS, registers=(0x10, 0x80))
        for times in range(1, 16):
            cpus.wait_rounds(20)
            fake.renew()
            fake.drop()
            wait_for(lambda: vm.get("dev", "reconnects") == times and vm.get("dev", "connected"), f"reconnect {times}")
        cpus.wait_rounds()
        assert cpus.mistakes() == [0, 0]
        assert fake.rung()[0] > 0
        cpus.stop()


@each_accelerator("server-that-answers-neither-is-given-up")
def _(tmp, accel):
    with machine(tmp, accel, x_msg_timeout=300) as (fake, vm, cpus):
        cpus.start(READS, READS)
        cpus.wait_rounds()
        fake.hold()
        assert "no answer within 300 ms to a read of BAR0" in vm.wait_said("it has answered no access for 3 times 300 ms")
        assert vm.get("dev", "connected") is False
        cpus.wait_rounds()
        assert [cpus.job(i)[1] for i in (0, 1)] == [0xFFFFFFFF, 0xFFFFFFFF]
        cpus.stop()


@each_accelerator("accesses-go-on-while-the-main-loop-waits-for-another-server")
def _(tmp, accel):
    with FakeDevice(tmp / "other") as other, \
            machine(tmp, accel, more=["-device", f"vfio-user-pci,addr=5,x-msg-timeout=60000,socket={tmp}/other"]) as (fake, vm, cpus):
        if not without_the_big_lock(vm):
            skip("this QEMU takes its big lock for each access")
        cpus.start(WRITES | READS, READS)
        cpus.wait_rounds()
        other.on[REGION_READ] = lambda *_: None
        vm.port_write(0xCF8, 4, 0x80002880)  # a register of it that is the server's
        asked, before = other.count(REGION_READ), fake.count(REGION_READ)
        vm.qtest_out.sendall(b"inl 0xcfc\n")
        wait_for(lambda: other.count(REGION_READ) > asked, "the question")
        wait_for(lambda: fake.count(REGION_READ) > before + 500, "accesses meanwhile")
        other.drop()
        assert vm.qtest_in.readline() == b"OK 0xffffffff\n"
        cpus.wait_rounds()
        assert cpus.mistakes()[0] == 0
        cpus.stop()


main()
