#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What users and guests do to a device, in each state that its server can be in: nothing ends the machine."""
import errno
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main  # noqa: E402
from fakedevice import (DMA_MAP, DMA_UNMAP, INTX, MSIX, REGION_READ, REGION_WRITE, RESET, SET_IRQS,  # noqa: E402
                        VERSION, FakeDevice, Gone, Refuse, config_space, msix_cap)
from qtest import MASTER, MEMORY, Qemu, QmpError, wait_for  # noqa: E402

SLOT, BAR, PAM, MSIX_CAP = 4, 0xE0000000, 0x5A, 0x40
DIMMS = ["-m", "64,slots=32,maxmem=4G"]
SHORT_MS, LONG_MS = 300, 20000
ALL = (REGION_READ, REGION_WRITE, RESET, SET_IRQS, DMA_MAP, DMA_UNMAP)


def leave(*_):
    raise Gone


def refuse(*_):
    raise Refuse(errno.EIO)


class Bench:
    """The machine, the server, and how a device is put in and out."""

    def __init__(self, tmp, vm, fake):
        self.vm, self.fake, self.path, self.pci, self.dimms = vm, fake, str(tmp / "s"), vm.pci(SLOT), 0
        self.pci.bars[0] = ("mem", BAR)

    def plug(self, **properties):
        self.vm.qmp("device_add", driver="vfio-user-pci", id="dev", addr=str(SLOT), socket=self.path, **properties)
        self.pci.config_write(0x10, 4, BAR)
        self.pci.command(MEMORY | MASTER)

    def unplug(self):
        self.vm.events.clear()
        self.vm.qmp("device_del", id="dev")
        self.vm.port_write(0xAE08, 4, 1 << SLOT)
        self.vm.wait_event("DEVICE_DELETED", device="dev")

    def lose(self):
        self.fake.drop()
        wait_for(lambda: not self.vm.get("dev", "connected"), "the loss")


# The states: what the device is given, and how it comes there.

def connected(bench):
    bench.plug()


def lost(bench):
    bench.plug()
    bench.lose()


def looked_for(bench):
    bench.plug(reconnect=600)
    bench.fake.on[VERSION] = leave
    bench.lose()


def silent(bench):
    bench.plug(x_msg_timeout=SHORT_MS)
    bench.fake.on.update({command: lambda *_: None for command in ALL})


def refusing(bench):
    bench.plug()
    bench.fake.on.update({command: refuse for command in ALL})


def leaving_a_write_unanswered(bench):
    """The guest has written, and the answer does not come."""
    bench.plug(x_msg_timeout=SHORT_MS, x_no_posted_writes=True)
    bench.fake.on[REGION_WRITE] = lambda *_: None
    bench.vm.qtest_out.sendall(f"writel {BAR:#x} 0x1\n".encode())
    wait_for(lambda: bench.fake.log[-1][0] == REGION_WRITE and bench.fake.log[-1][1][8] == 0, "the write")
    bench.vm.qtest_in.readline()


def in_a_reset(bench):
    bench.plug(x_msg_timeout=SHORT_MS)
    resets = bench.fake.count(RESET)
    bench.fake.on[RESET] = lambda *_: None
    bench.vm.qmp("system_reset")
    wait_for(lambda: bench.fake.count(RESET) > resets, "the reset")


STATES = [connected, lost, looked_for, silent, refusing, leaving_a_write_unanswered, in_a_reset]


# What is done in each.

def nothing(_bench):
    pass


def guest_resets(bench):
    bench.vm.events.clear()
    bench.vm.qmp("system_reset")
    bench.vm.wait_event("RESET")


def guest_changes_the_memory_map(bench):
    host = bench.vm.pci(0)
    host.config_write(PAM, 1, host.config_read(PAM, 1) ^ 0x33)


def guest_arms_msix(bench):
    for value in (0x8000, 0xC000, 0x8000, 0):
        bench.pci.config_write(MSIX_CAP + 2, 2, value)


def guest_masks_vectors(bench):
    bench.pci.config_write(MSIX_CAP + 2, 2, 0x8000)
    for control in (1, 0, 1):
        for vector in range(4):
            bench.pci.bar_write(0, 0x800 + 16 * vector + 12, 4, control)
    bench.pci.bar_read(0, 0xC00, 4)


def guest_moves_the_bar(bench):
    bench.pci.command(0)
    bench.pci.config_write(0x10, 4, BAR + 0x100000)
    bench.pci.command(MEMORY | MASTER)
    bench.vm.read(BAR + 0x100000, 4)


def memory_is_plugged_in(bench):
    bench.dimms += 1
    bench.vm.qmp("object-add", qom_type="memory-backend-memfd", id=f"more{bench.dimms}", size=128 << 20, share=True)
    bench.vm.qmp("device_add", driver="pc-dimm", id=f"dimm{bench.dimms}", memdev=f"more{bench.dimms}")


def the_machine_stops_and_goes_on(bench):
    bench.vm.qmp("stop")
    bench.vm.qmp("cont")


def it_is_to_be_saved(bench):
    assert "server's process" in bench.vm.hmp("savevm a")
    try:
        bench.vm.qmp("migrate", uri="exec:cat >/dev/null")
        assert False, "migration started"
    except QmpError as why:
        assert "server's process" in str(why), why


def another_of_that_name_is_plugged_in(bench):
    try:
        bench.plug()
        assert False, "it was plugged in twice"
    except QmpError as why:
        assert "dev" in str(why) or "in use" in str(why), why


def properties_are_read(bench):
    for name in ("connected", "last-error", "requests", "reconnects", "socket"):
        bench.vm.get("dev", name)


ACTS = [nothing, guest_resets, guest_changes_the_memory_map, guest_arms_msix, guest_masks_vectors, guest_moves_the_bar,
        memory_is_plugged_in, the_machine_stops_and_goes_on, it_is_to_be_saved, another_of_that_name_is_plugged_in,
        properties_are_read]


def check(bench, enter, act):
    enter(bench)
    act(bench)
    assert bench.vm.qmp("query-status")["running"]
    bench.unplug()
    bench.fake.on.clear()
    bench.plug(x_msg_timeout=LONG_MS)
    bench.pci.bar_write(0, 0x10, 4, 0x5A5A)
    assert bench.pci.bar_read(0, 0x10, 4) == 0x5A5A and bench.vm.get("dev", "connected")
    bench.unplug()


def state_case(enter):
    @case(f"whatever-is-done-to-a-device-{enter.__name__.replace('_', '-')}-it-can-be-replaced", timeout_s=120)
    def _(tmp):
        config = config_space(bars={0: 0}, caps=[(MSIX_CAP, msix_cap(4, 0x800, 0xC00))], pin=1)
        with FakeDevice(tmp / "s", config, {0: 4096}, {INTX: 1, MSIX: 4}) as fake, Qemu(tmp, ram=DIMMS) as vm:
            bench = Bench(tmp, vm, fake)
            for act in ACTS:
                try:
                    check(bench, enter, act)
                except BaseException:
                    print(f"{enter.__name__}: {act.__name__}")
                    raise


for each in STATES:
    state_case(each)


@case("device-that-never-came-cannot-be-unplugged-and-can-be-plugged-in-later")
def _(tmp):
    with Qemu(tmp) as vm:
        for _ in range(2):
            for attempt in (lambda: vm.qmp("device_add", driver="vfio-user-pci", id="dev", socket=str(tmp / "s")),
                            lambda: vm.qmp("device_del", id="dev")):
                try:
                    attempt()
                    assert False, "it worked"
                except QmpError as why:
                    assert "there is no socket" in str(why) or "not found" in str(why), why
        with FakeDevice(tmp / "s", bars={0: 4096}) as fake:
            bench = Bench(tmp, vm, fake)
            bench.plug()
            bench.unplug()


main()
