#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The vfio-user-pci device on PCI Express: its place in the tree, function-level reset, plugging below a port."""
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main
from fakedevice import INTX, MSIX, REGION_WRITE, RESET, FakeDevice, config_space, msix_cap
from qtest import MASTER, MEMORY, Qemu, device, wait_for

EXP, FLR_CAPABLE, DEVCTL_FLR = 0x70, 1 << 28, 0x8000
ENDPOINT, INTEGRATED = 0, 9
SERIAL, SRIOV, VENDOR_EXT, AER = 3, 0x10, 0x0B, 1
COMPLETION_TIMEOUT = 1 << 14


def express_cap():
    """Version 2, of an endpoint with a x4 link at 8 GT/s."""
    return struct.pack("<BBHIHHIHH", 0x10, 0, 2, FLR_CAPABLE, 0, 0, 0x43, 0, 0x43) + bytes(0x28)


def express_space():
    space = config_space(bars={0: 0}, caps=[(0x40, msix_cap(4, 0x800, 0xC00, EXP)), (EXP, express_cap())], pin=1,
                         size=4096)
    for offset, capability, following in ((0x100, SRIOV, 0x140), (0x140, SERIAL, 0x180), (0x180, VENDOR_EXT, 0x140)):
        struct.pack_into("<I", space, offset, capability | 1 << 16 | following << 20)
    struct.pack_into("<Q", space, 0x144, 0x1122334455667788)
    return space


def express_device(tmp):
    return FakeDevice(tmp / "s", express_space(), {0: 4096}, {INTX: 1, MSIX: 4})


class Ecam:
    """Config space of 00:04.0 by way of q35's memory-mapped window, past the first 256 bytes too."""

    def __init__(self, vm):
        self.vm = vm
        host = vm.pci(0)
        host.config_write(0x60, 4, 0xB0000001)
        self.base = 0xB0000000 + (4 << 15)

    def read(self, offset, size):
        return self.vm.read(self.base + offset, size)


@case("integrated-endpoint-on-the-root-complex")
def _(tmp):
    with express_device(tmp), Qemu(tmp, *device(tmp / "s"), machine="q35") as vm:
        pci = vm.pci(4)
        cap = pci.capabilities()[0x10]
        assert pci.config_read(cap + 2, 2) >> 4 & 15 == INTEGRATED
        assert pci.config_read(cap + 0x0C, 4) == 0


@case("endpoint-with-a-link-below-a-port")
def _(tmp):
    with express_device(tmp), Qemu(tmp, "-device", "pcie-root-port,id=rp,addr=5", "-device",
                                   f"vfio-user-pci,id=dev,bus=rp,socket={tmp / 's'}", machine="q35") as vm:
        vm.pci(5).config_write(0x18, 4, 0x010100)  # the bus below is number 1
        pci = vm.pci(0, bus=1)
        cap = pci.capabilities()[0x10]
        assert pci.config_read(cap + 2, 2) >> 4 & 15 == ENDPOINT
        assert pci.config_read(cap + 0x12, 2) == 0x43


@case("no-express-capability-on-a-conventional-bus")
def _(tmp):
    with express_device(tmp), Qemu(tmp, *device(tmp / "s")) as vm:
        assert set(vm.pci(4).capabilities()) == {0x11}


@case("extended-capabilities-are-filtered-and-bounded")
def _(tmp):
    with express_device(tmp), Qemu(tmp, *device(tmp / "s"), machine="q35") as vm:
        ecam = Ecam(vm)
        found, at = [], 0x100
        while at:
            header = ecam.read(at, 4)
            found.append(header & 0xFFFF)
            at = header >> 20
            assert len(found) < 10
        assert found == [0xFFFF, SERIAL, VENDOR_EXT], found
        assert ecam.read(0x144, 4) == 0x55667788


@case("function-level-reset-is-one-reset")
def _(tmp):
    with express_device(tmp) as fake, Qemu(tmp, *device(tmp / "s"), machine="q35") as vm:
        pci = vm.pci(4)
        pci.assign(0)
        caps = pci.capabilities()
        pci.config_write(caps[0x11] + 2, 2, 0x8000)
        assert {index for index, _ in fake.eventfds} == {MSIX}
        fake.log.clear()
        pci.config_write(caps[0x10] + 8, 2, DEVCTL_FLR)
        written = [p for c, p in fake.log if c == REGION_WRITE]
        assert len(written) == 1 and written[0][16:] == b"\x00\x80", written
        assert fake.count(RESET) == 0
        assert pci.config_read(4, 2) & (MEMORY | MASTER) == 0 and pci.config_read(0x10, 4) == 0
        assert pci.config_read(caps[0x11] + 2, 2) & 0x8000 == 0
        assert {index for index, _ in fake.eventfds} == {INTX}


@case("port-reports-a-completion-timeout-when-the-server-is-lost")
def _(tmp):
    with express_device(tmp) as fake, Qemu(tmp, "-device", "pcie-root-port,id=rp,addr=4", "-device",
                                           f"vfio-user-pci,id=dev,bus=rp,socket={tmp / 's'}", machine="q35") as vm:
        port = Ecam(vm)
        assert port.read(0x100, 4) & 0xFFFF == AER
        assert port.read(0x104, 4) == 0
        fake.drop()
        wait_for(lambda: port.read(0x104, 4) == COMPLETION_TIMEOUT, "the error in the port")
        assert vm.get("dev", "connected") is False


@case("server-that-is-looked-for-is-no-error-of-the-port")
def _(tmp):
    with express_device(tmp) as fake, Qemu(
            tmp, "-device", "pcie-root-port,id=rp,addr=4", "-device",
            f"vfio-user-pci,id=dev,bus=rp,reconnect=60,socket={tmp / 's'}", machine="q35") as vm:
        fake.drop()
        wait_for(lambda: vm.get("dev", "reconnects") == 1 and vm.get("dev", "connected"))
        assert Ecam(vm).read(0x104, 4) == 0


@case("unplugging-below-a-port")
def _(tmp):
    native = ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
    with express_device(tmp), Qemu(tmp, *native, "-device", "pcie-root-port,id=rp,addr=5", machine="q35") as vm:
        vm.pci(5).config_write(0x18, 4, 0x010100)
        for _ in range(3):
            vm.qmp("device_add", driver="vfio-user-pci", id="dev", bus="rp", socket=str(tmp / "s"))
            port = vm.pci(5)
            slot_control = port.capabilities()[0x10] + 0x18
            port.config_write(slot_control, 2, port.config_read(slot_control, 2) & ~0x0700 | 0x0100)  # power on
            wait_for(lambda: vm.pci(0, bus=1).config_read(0, 4) == 0x77774F42)
            vm.qmp("device_del", id="dev")
            port.config_write(slot_control, 2, port.config_read(slot_control, 2) & ~0x0700 | 0x0700)  # power off
            vm.wait_event("DEVICE_DELETED", device="dev")
            vm.events.clear()


main()
