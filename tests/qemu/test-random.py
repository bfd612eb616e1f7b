#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Servers that say anything: whatever comes of plugging such a device in, the machine goes on."""
import pathlib
import random
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main
from fakedevice import INTX, MSI, MSIX, REQ, FakeDevice, config_space, msix_cap
from qtest import IO, MASTER, MEMORY, Qemu, QmpError

BARS = {0: 4096, 2: 8192, 6: 2048}
CAPS = [(0x40, msix_cap(4, 0x800, 0xC00, 0x50)),
        (0x50, struct.pack("<BBHQHH", 0x05, 0x70, 0x184, 0, 0, 0) + bytes(8)),  # MSI
        (0x70, struct.pack("<BBH", 0x10, 0xA0, 2) + bytes(0x38)),  # PCI Express
        (0xA0, struct.pack("<BBHI", 0x01, 0, 3, 0))]  # power management
HEADS = [0x34, *(offset + i for offset, _ in CAPS for i in range(6))]


class Liar(FakeDevice):
    """Changes bytes of its replies, or their length, as often as rate says."""

    def __init__(self, *args, **options):
        self.random, self.rate = random.Random(1), 0
        super().__init__(*args, **options)

    def answer(self, cmd, payload, fds):
        reply = super().answer(cmd, payload, fds)
        if not isinstance(reply, bytes) or cmd == 1 or self.random.random() >= self.rate:
            return reply
        reply = bytearray(reply)
        for _ in range(self.random.randint(1, 3) if reply else 0):
            reply[self.random.randrange(len(reply))] = self.random.choice((0, 1, 0x80, 0xFF, self.random.randrange(256)))
        how = self.random.random()
        if how < 0.05:
            return bytes(reply[:self.random.randrange(len(reply) + 1)])
        return bytes(reply) + (bytes(self.random.randint(1, 64)) if how < 0.1 else b"")


def use(vm, rnd):
    """What a guest does to a device, and some that it should not."""
    pci = vm.pci(4)
    for offset in range(0, 256, 4):
        pci.config_read(offset, 4)
    for _ in range(12):
        pci.config_write(rnd.randrange(4, 252) & ~3, 4, rnd.getrandbits(32))
    pci.config_write(0x10, 4, 0xE0000000)
    pci.config_write(0x18, 4, 0xE1000000)
    pci.command(IO | MEMORY | MASTER)
    for offset in (0, 0x800, 0x80C, 0xC00):
        vm.write(0xE0000000 + offset, 4, rnd.getrandbits(32))
        vm.read(0xE0000000 + offset, 4)
    for offset in (0x42, 0x52):  # MSI-X, MSI
        pci.config_write(offset, 2, rnd.choice((0, 1, 0x8000)))
    if rnd.random() < 0.3:
        vm.qmp("system_reset")


@case("servers-that-say-anything-leave-the-machine-running", timeout_s=180)
def _(tmp):
    rnd = random.Random(2)
    config = config_space(bars={0: 0, 2: 4}, caps=CAPS, pin=1, size=4096)
    struct.pack_into("<I", config, 0x100, 0x14010001)
    plugged = 0
    with Liar(tmp / "s", bytearray(config), BARS, {INTX: 1, MSI: 4, MSIX: 4, REQ: 1}) as fake, Qemu(tmp) as vm:
        for _ in range(200):
            fake.config[:] = config
            for _ in range(rnd.randrange(6)):
                fake.config[rnd.choice((rnd.randrange(256), rnd.randrange(4096), rnd.choice(HEADS)))] = rnd.randrange(256)
            fake.rate = rnd.choice((0, 0, 0.03, 0.2))
            try:
                vm.qmp("device_add", driver="vfio-user-pci", id="dev", addr="4", socket=str(tmp / "s"), x_msg_timeout=300)
            except QmpError:
                continue
            plugged += 1
            use(vm, rnd)
            vm.events.clear()
            vm.qmp("device_del", id="dev")
            vm.port_write(0xAE08, 4, 1 << 4)
            vm.wait_event("DEVICE_DELETED", device="dev")
        assert vm.qmp("query-status")["running"]
        assert 20 < plugged < 180, f"{plugged} of 200 could be plugged in: that tells little"


main()
