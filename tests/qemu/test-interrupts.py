#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The vfio-user-pci device's interrupts. A message-signalled one is pointed at RAM, where it shows."""
import os
import pathlib
import signal
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main, skip
from fakedevice import INTX, MSI, MSIX, REQ, SET_IRQS, FakeDevice, config_space, msix_cap
from qtest import INTX_DISABLE, IO, MASTER, MEMORY, Qemu, Serve, device, wait_for

LANDING = 0x100000  # in guest RAM: where messages are written
TABLE, PBA = 0x800, 0xC00
MSI_CAP, MSIX_CAP = 0x50, 0x60


def msi_cap(order, following=0):
    """64-bit, with masks."""
    return struct.pack("<BBH", 5, following, order << 1 | 0x180) + bytes(20)


def interrupting(tmp, vectors=4):
    caps = [(0x40, b"\x09\x50\x04\x00"), (MSI_CAP, msi_cap(2, 0x70)), (0x70, msix_cap(vectors, TABLE, PBA))]
    return FakeDevice(tmp / "s", config_space(caps=caps, pin=1), {0: 4096}, {INTX: 1, MSI: 4, MSIX: vectors})


class Msix:
    """The guest's side of MSI-X."""

    def __init__(self, vm, pci, table=TABLE, pba=PBA):
        self.vm, self.pci, self.table, self.pba, self.cap = vm, pci, table, pba, pci.capabilities()[0x11]
        for vector in range((pci.config_read(self.cap + 2, 2) & 0x7FF) + 1):
            for i, value in enumerate((LANDING + 4 * vector, 0, 0xA000 + vector, 1)):
                pci.bar_write(0, table + 16 * vector + 4 * i, 4, value)

    def control(self, enable, masked=False):
        self.pci.config_write(self.cap + 2, 2, enable << 15 | masked << 14)

    def mask(self, vector, masked):
        self.pci.bar_write(0, self.table + 16 * vector + 12, 4, masked)

    def pending(self):
        return self.pci.bar_read(0, self.pba, 4)

    def take(self, vector):
        """Whether the message has come; takes it away."""
        value = self.vm.read(LANDING + 4 * vector, 4)
        if value:  # else it may come between the two
            self.vm.write(LANDING + 4 * vector, 4, 0)
        assert value in (0, 0xA000 + vector), hex(value)
        return bool(value)


@case("msix-messages-are-delivered")
def _(tmp):
    with interrupting(tmp) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        msix = Msix(vm, pci)
        for vector in range(4):
            msix.mask(vector, 0)
        before = fake.count(SET_IRQS)
        msix.control(True)
        assert fake.count(SET_IRQS) - before <= 2, "one message for INTx to go, one for all vectors to come"
        assert sorted(fake.eventfds) == [(MSIX, i) for i in range(4)]
        for vector in (2, 0, 3, 2):
            fake.trigger(MSIX, vector)
            wait_for(lambda: msix.take(vector))
        msix.control(False)
        assert not [key for key in fake.eventfds if key[0] == MSIX]


@case("msix-masks-hold-back-and-pending-bits-are-true")
def _(tmp):
    with interrupting(tmp) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        msix = Msix(vm, pci)
        msix.control(True)
        msix.mask(1, 0)
        fake.trigger(MSIX, 3)
        assert msix.pending() == 8, "the bit was not there at the first look"
        assert not msix.take(3)
        before = fake.count(SET_IRQS)
        msix.mask(3, 0)
        assert msix.take(3) and msix.pending() == 0
        msix.control(True, masked=True)
        fake.trigger(MSIX, 1)
        assert msix.pending() == 2 and not msix.take(1)
        msix.control(True)
        assert msix.take(1) and msix.pending() == 0
        assert fake.count(SET_IRQS) == before, "masks are ours"


@case("msix-of-many-vectors")
def _(tmp):
    caps = [(0x40, msix_cap(2048, 0, 0xA000))]
    with FakeDevice(tmp / "s", config_space(caps=caps), {0: 0x10000}, {MSIX: 2048}) as fake, \
            Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        msix = Msix(vm, pci, 0, 0xA000)
        msix.control(True)
        assert len(fake.eventfds) == 256
        msix.mask(2000, 0)
        fake.trigger(MSIX, 2000)
        wait_for(lambda: msix.take(2000))


@case("msi-messages-masks-and-pending-bits")
def _(tmp):
    with interrupting(tmp) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        cap = pci.capabilities()[5]
        pci.config_write(cap + 4, 4, LANDING)
        pci.config_write(cap + 12, 2, 0xA000)
        pci.config_write(cap + 2, 2, 1 | 2 << 4)  # four vectors
        assert sorted(fake.eventfds) == [(MSI, i) for i in range(4)]
        for vector in range(4):
            fake.trigger(MSI, vector)
            wait_for(lambda: vm.read(LANDING, 4) == 0xA000 + vector)
        vm.write(LANDING, 4, 0)
        pci.config_write(cap + 0x10, 4, 4)
        fake.trigger(MSI, 2)
        assert pci.config_read(cap + 0x14, 4) == 4 and vm.read(LANDING, 4) == 0
        pci.config_write(cap + 0x10, 4, 0)
        assert vm.read(LANDING, 4) == 0xA002 and pci.config_read(cap + 0x14, 4) == 0


@case("one-kind-of-interrupt-at-a-time")
def _(tmp):
    with interrupting(tmp) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        caps = pci.capabilities()

        def kinds():
            return {index for index, _ in fake.eventfds}
        assert kinds() == {INTX}
        pci.config_write(caps[5] + 2, 2, 1)
        assert kinds() == {MSI}
        pci.config_write(caps[5] + 2, 2, 0)
        assert kinds() == {INTX}
        pci.config_write(caps[0x11] + 2, 2, 0x8000)
        assert kinds() == {MSIX}
        vm.qmp("system_reset")
        wait_for(lambda: kinds() == {INTX}, "INTx after the reset")


@case("intx-is-a-level-until-served")
def _(tmp):
    with Serve("edu", tmp / "s"), Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        assert not pci.intx()
        pci.bar_write(0, 0x60, 4, 0x11)
        wait_for(pci.intx)
        pci.bar_write(0, 0x64, 4, 0x01)  # one reason is left
        wait_for(pci.intx)
        assert pci.bar_read(0, 0x24, 4) == 0x10
        wait_for(pci.intx)
        pci.bar_write(0, 0x64, 4, 0x10)
        wait_for(lambda: not pci.intx() and not pci.bar_read(0, 0x24, 4))
        assert not pci.intx()


@case("intx-of-libvfio-user-is-unmasked-by-message")
def _(tmp):
    """L-20: its INTx is not marked as AUTOMASKED, but is unmasked all the same. L-7: it drops eventfds for that."""
    with interrupting(tmp) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        fake.log.clear()
        fake.trigger(INTX)
        wait_for(pci.intx)
        pci.bar_read(0, 0, 4)
        wait_for(lambda: (SET_IRQS, struct.pack("<5I", 20, 0x11, INTX, 0, 1)) in fake.log, "UNMASK")
        assert not [p for c, p in fake.log if c == SET_IRQS and p[4] & 4], fake.log


@case("edu-signals-msi")
def _(tmp):
    with Serve("edu", tmp / "s"), Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        cap = pci.capabilities()[5]
        pci.config_write(cap + 4, 4, LANDING)
        pci.config_write(cap + 12, 2, 0xA000)
        pci.config_write(cap + 2, 2, 1)
        pci.bar_write(0, 0x60, 4, 1)
        wait_for(lambda: vm.read(LANDING, 4) == 0xA000)
        assert not pci.intx()


@case("disabled-intx-does-not-reach-the-line")
def _(tmp):
    with interrupting(tmp) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        pci.command(IO | MEMORY | MASTER | INTX_DISABLE)
        fake.trigger(INTX)
        wait_for(pci.intx)  # the status bit shows it all the same
        pci.command(IO | MEMORY | MASTER)
        assert pci.intx()
        pci.bar_read(0, 0, 4)
        assert not pci.intx()


@case("server-asks-to-be-unplugged")
def _(tmp):
    with FakeDevice(tmp / "s", irqs={REQ: 1}) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        fake.trigger(REQ)
        wait_for(lambda: vm.port_read(0xAE04, 4) & 1 << 4, "the guest's eject request")
        vm.port_write(0xAE08, 4, 1 << 4)
        vm.wait_event("DEVICE_DELETED", device="dev")


@case("served-device-asks-to-be-unplugged-or-reports-an-error")
def _(tmp):
    with Serve("edu", tmp / "s") as server, Qemu(tmp, *device(tmp / "s")) as vm:
        server.process.send_signal(signal.SIGUSR2)
        vm.wait_said("the server reports an unrecoverable error of the device")
        assert vm.pci(4).config_read(0, 4) == 0x11E81234  # it is there all the same
        server.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: vm.port_read(0xAE04, 4) & 1 << 4, "the guest's eject request")
        vm.port_write(0xAE08, 4, 1 << 4)
        vm.wait_event("DEVICE_DELETED", device="dev")
        vm.qmp("device_add", driver="vfio-user-pci", socket=str(tmp / "s"), id="dev", addr="4")  # it is free again


@case("flood-of-interrupts-leaves-the-monitor-responsive")
def _(tmp):
    with interrupting(tmp) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        msix = Msix(vm, pci)
        msix.mask(0, 0)
        msix.control(True)
        for _ in range(2000):
            fake.trigger(MSIX, 0)
        assert vm.qmp("query-status")["running"]
        wait_for(lambda: msix.take(0))


def need_kvm():
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as why:
        skip(f"no KVM: {why.strerror}")


@case("server-that-makes-the-eventfds-block-does-not-stop-the-machine")
def _(tmp):
    """They are one open file here and there: O_NONBLOCK is what either side says."""
    with interrupting(tmp) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        msix = Msix(vm, pci)
        msix.control(True)
        for fd in fake.eventfds.values():
            os.set_blocking(fd, True)
        assert msix.pending() == 0
        for _ in range(1000):  # signalled, and taken back before QEMU comes to it, or after
            fake.trigger(MSIX, 1)
            os.set_blocking(fake.eventfds[MSIX, 1], False)
            try:
                os.eventfd_read(fake.eventfds[MSIX, 1])
            except BlockingIOError:
                pass
            os.set_blocking(fake.eventfds[MSIX, 1], True)
        assert vm.qmp("query-status")["running"]
        fake.trigger(MSIX, 2)
        wait_for(lambda: msix.pending() & 1 << 2)
        msix.control(False)
        for fd in fake.eventfds.values():
            os.set_blocking(fd, True)
        fake.trigger(INTX)
        wait_for(pci.intx)


@case("kvm-takes-unmasked-vectors-and-we-the-masked")
def _(tmp):
    need_kvm()
    with interrupting(tmp) as fake, Qemu(tmp, *device(tmp / "s"), accel="kvm") as vm:
        pci = vm.pci(4)
        pci.assign(0)
        msix = Msix(vm, pci)
        msix.control(True)
        for _ in range(3):
            msix.mask(1, 0)
            fake.trigger(MSIX, 1)
            fake.trigger(MSIX, 2)
            assert msix.pending() == 4
            msix.mask(1, 1)
            fake.trigger(MSIX, 1)
            assert msix.pending() == 6
            msix.mask(1, 0)
            msix.mask(2, 0)
            assert msix.pending() == 0
            msix.mask(2, 1)
        msix.control(False)
        assert {index for index, _ in fake.eventfds} == {INTX}


@case("kvm-follows-the-routing-of-intx")
def _(tmp):
    need_kvm()
    with interrupting(tmp) as fake, Qemu(tmp, *device(tmp / "s"), accel="kvm") as vm:
        pci = vm.pci(4)
        pci.assign(0)

        def asserted(irq):
            line = next(line for line in vm.hmp("info pic").splitlines() if line.startswith("pic1"))
            return int(line.split("irr=")[1][:2], 16) >> (irq - 8) & 1
        for irq in (11, 10):
            vm.pci(1).config_write(0x63, 1, irq)  # PIIX3: where INTA# of slot 4 goes
            assert not asserted(irq)
            fake.trigger(INTX)
            wait_for(lambda: asserted(irq), f"IRQ {irq}")
        vm.qmp("device_del", id="dev")
        vm.port_write(0xAE08, 4, 1 << 4)
        vm.wait_event("DEVICE_DELETED", device="dev")


main()
