#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Devices and memory that come and go under a running guest."""
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main  # noqa: E402
from guest import boot, device, disk, fio_verify, serve, wait_in_guest  # noqa: E402
from qtest import DRIVER  # noqa: E402

TIMEOUT_S = 240


def plug(vm, server, bus):
    vm.qmp("device_add", driver=DRIVER, socket=str(server.path), id="disk", **bus)
    wait_in_guest(vm, "[ -b /dev/nvme0n1 ]")


def unplug(vm):
    vm.events.clear()
    vm.qmp("device_del", id="disk")
    vm.wait_event("DEVICE_DELETED", 60)
    wait_in_guest(vm, "[ ! -e /dev/nvme0 ]")


def check_plug_and_unplug(tmp, bus, **options):
    with serve(tmp, "nvme", disk(tmp)) as server, boot(tmp, **options) as vm:
        for _ in range(3):
            plug(vm, server, bus)
            fio_verify(vm, jobs=2, size_mib=2)
            unplug(vm)


@case("nvme-comes-and-goes-on-pcie", TIMEOUT_S)
def _(tmp):
    check_plug_and_unplug(tmp, {"bus": "rp0"}, qemu_args=["-device", "pcie-root-port,id=rp0,chassis=1"])


@case("nvme-comes-and-goes-on-acpi", TIMEOUT_S)
def _(tmp):
    check_plug_and_unplug(tmp, {}, machine="pc")


@case("unplug-under-io-leaves-the-guest-alive", TIMEOUT_S)
def _(tmp):
    with serve(tmp, "nvme", disk(tmp)) as server, boot(tmp, machine="pc") as vm:
        plug(vm, server, {})
        vm.run("dd if=/dev/nvme0n1 of=/dev/null bs=64k iflag=direct count=100000 >/run/dd.log 2>&1 &")
        unplug(vm)
        wait_in_guest(vm, "! pidof dd >/dev/null")
        plug(vm, server, {})
        fio_verify(vm, jobs=2, size_mib=2)


@case("server-asks-to-be-unplugged-and-the-guest-does-it", TIMEOUT_S)
def _(tmp):
    with serve(tmp, "nvme", disk(tmp)) as server, boot(tmp, machine="pc") as vm:
        for _ in range(2):
            plug(vm, server, {})
            fio_verify(vm, jobs=2, size_mib=2)
            vm.events.clear()
            server.process.send_signal(signal.SIGUSR1)
            vm.wait_event("DEVICE_DELETED", 60)
            wait_in_guest(vm, "[ ! -e /dev/nvme0 ]")


@case("memory-plugged-later-is-reached-by-dma", TIMEOUT_S)
def _(tmp):
    # Movable memory is what Linux takes first for the files' pages.
    with serve(tmp, "nvme", disk(tmp)) as server, \
            boot(tmp, device(server), qemu_args=["-m", "slots=2,maxmem=2G"]) as vm:
        before = int(vm.run("awk '/MemTotal/ { print $2 }' /proc/meminfo"))
        vm.qmp("object-add", qom_type="memory-backend-memfd", id="more", size=256 << 20, share=True)
        vm.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more")
        wait_in_guest(vm, "for m in /sys/devices/system/memory/memory*; do "
                      "grep -q online $m/state || echo online_movable >$m/state; done; "
                      f"[ $(awk '/MemTotal/ {{ print $2 }}' /proc/meminfo) -gt {before + 200000} ]")
        vm.run("dd if=/dev/urandom of=/dev/nvme0n1 bs=1M count=48 && sync && sha256sum </dev/nvme0n1 >/run/cached && "
               "echo 3 >/proc/sys/vm/drop_caches && sha256sum </dev/nvme0n1 | cmp - /run/cached")


main()
