#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes to a BAR that the server wants to hear of by eventfd."""
import contextlib
import os
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main, skip
from fakedevice import GET_REGION_IO_FDS, REGION_WRITE, Bells, take
from qtest import Qemu, device

DATAMATCH = 1


@case("matching-writes-signal-and-others-are-messages")
def _(tmp):
    with Bells(tmp / "s", (0x10, 4, 0, 0), (0x20, 4, DATAMATCH, 7), (0x20, 4, DATAMATCH, 8)) as fake:
        with Qemu(tmp, *device(tmp / "s")) as vm:
            pci = vm.pci(4)
            pci.assign(0)
            before = fake.count(REGION_WRITE)
            pci.bar_write(0, 0x10, 4, 0x1234)
            pci.bar_write(0, 0x10, 4, 0x1235)
            assert fake.rung() == [2, 0, 0]
            pci.bar_write(0, 0x20, 4, 8)
            assert fake.rung() == [0, 0, 1]
            pci.bar_write(0, 0x20, 4, 7)
            assert fake.rung() == [0, 1, 0]
            assert fake.count(REGION_WRITE) == before and pci.bar_read(0, 0x10, 4) == 0
            pci.bar_write(0, 0x20, 4, 9)
            pci.bar_write(0, 0x10, 2, 0x5678)
            pci.bar_write(0, 0x12, 4, 0x9ABC)
            assert fake.rung() == [0, 0, 0] and fake.count(REGION_WRITE) == before + 3
            assert pci.bar_read(0, 0x20, 4) == 9 and pci.bar_read(0, 0x10, 2) == 0x5678


@case("full-counter-does-not-block-the-machine")
def _(tmp):
    with Bells(tmp / "s", (0x10, 4, 0, 0)) as fake:
        os.set_blocking(fake.bells[0], True)
        os.eventfd_write(fake.bells[0], 0xFFFFFFFFFFFFFFFE)
        with Qemu(tmp, *device(tmp / "s")) as vm:
            pci = vm.pci(4)
            pci.assign(0)
            pci.bar_write(0, 0x10, 4, 1)
            assert vm.qmp("query-status")["running"]


@case("server-that-makes-its-eventfd-block-does-not-stop-the-machine")
def _(tmp):
    """It is one open file here and there: O_NONBLOCK is what either side says."""
    with Bells(tmp / "s", (0x10, 4, 0, 0)) as fake:
        with Qemu(tmp, *device(tmp / "s")) as vm:
            pci = vm.pci(4)
            pci.assign(0)
            os.set_blocking(fake.bells[0], True)
            os.eventfd_write(fake.bells[0], 0xFFFFFFFFFFFFFFFE)
            for value in range(3):
                pci.bar_write(0, 0x10, 4, value)
            assert vm.qmp("query-status")["running"]
            assert fake.rung()[0] > 0


@case("many-devices-share-what-kvm-has-room-for")
def _(tmp):
    entries = [(4 * i, 4, 0, 0) for i in range(16)]
    with contextlib.ExitStack() as stack:
        fakes = [stack.enter_context(Bells(tmp / f"s{i}", *entries)) for i in range(17)]
        options = [word for i in range(17) for word in ("-device", f"vfio-user-pci,addr={i + 4:x},socket={tmp}/s{i}")]
        with Qemu(tmp, *options) as vm:
            for slot, signalled in ((19, 1), (20, 0)):
                pci = vm.pci(slot)
                pci.assign(0)
                pci.bar_write(0, 0, 4, 5)
                assert pci.bar_read(0, 0, 4) == (0 if signalled else 5)
                assert fakes[slot - 4].rung()[0] == signalled


@case("what-kvm-would-not-take-does-no-harm")
def _(tmp):
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        skip("no KVM")
    entries = [(0x10, 4, 0, 0), (0x10, 4, DATAMATCH, 1), (0x20, 3, 0, 0), (0x30, 0, 0, 0), (0xFFE, 4, 0, 0),
               (1 << 63, 8, 0, 0), (0x40, 4, 8, 0), *((0x100 + 4 * i, 4, 0, 0) for i in range(40))]
    with Bells(tmp / "s", *entries) as fake:
        with Qemu(tmp, *device(tmp / "s"), accel="kvm") as vm:
            pci = vm.pci(4)
            pci.assign(0)
            pci.bar_write(0, 0x800, 4, 5)
            assert pci.bar_read(0, 0x800, 4) == 5
            vm.qmp("device_del", id="dev")
            vm.port_write(0xAE08, 4, 1 << 4)
            vm.wait_event("DEVICE_DELETED", device="dev")
            assert vm.qmp("query-status")["running"]
    assert fake.count(GET_REGION_IO_FDS) == 1  # of the one BAR that there is


main()
