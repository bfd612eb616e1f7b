#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A server that dies takes neither the guest nor QEMU with it."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main  # noqa: E402
from guest import boot, device, disk, fio_verify, serve, wait_in_guest  # noqa: E402

TIMEOUT_S = 240


@case("killed-under-io-leaves-guest-and-monitor-alive", TIMEOUT_S)
def _(tmp):
    image = disk(tmp)
    with serve(tmp, "nvme", image) as server, serve(tmp, "nvme", disk(tmp, "other.img")) as other, \
            boot(tmp, device(server, id="lost"), device(other), qemu_args=["-m", "slots=2,maxmem=2G"]) as vm:
        lost = vm.run("for n in 0 1; do nvme id-ctrl /dev/nvme$n >/dev/null && readlink -f /sys/class/nvme/nvme$n; "
                      "done").split()
        assert len(lost) == 2, lost
        vm.run("dd if=/dev/nvme0n1 of=/dev/null bs=64k iflag=direct count=100000 >/run/dd.log 2>&1 &")
        server.kill()
        assert vm.qmp("query-status", timeout_s=5)["running"]
        assert vm.run("echo alive").strip() == "alive"
        fio_verify(vm, "/dev/nvme1n1", jobs=2, size_mib=4)
        # A change of the memory map must not stumble over the dead device.
        vm.qmp("object-add", qom_type="memory-backend-memfd", id="more", size=128 << 20, share=True)
        vm.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more")
        assert vm.run("echo alive").strip() == "alive"
        assert vm.qmp("query-status", timeout_s=5)["running"]


@case("lost-below-a-port-is-said-in-the-guests-log-and-ends-its-requests", TIMEOUT_S)
def _(tmp):
    """By a completion timeout. A fatal error would leave Linux's driver frozen, and dd waiting for ever."""
    with serve(tmp, "nvme", disk(tmp)) as server, \
            boot(tmp, device(server, id="lost", bus="rp0"), qemu_args=["-device", "pcie-root-port,id=rp0,chassis=1"]) as vm:
        vm.run("echo 2000 >/sys/block/nvme0n1/queue/io_timeout; "
               "dd if=/dev/nvme0n1 of=/dev/null bs=64k iflag=direct count=1000000 >/run/dd.log 2>&1 &")
        server.kill()
        wait_in_guest(vm, "dmesg | grep -q 'CmpltTO'")
        wait_in_guest(vm, "! pidof dd >/dev/null", timeout_s=60)
        wait_in_guest(vm, "[ ! -e /dev/nvme0n1 ]", timeout_s=60)
        assert vm.qmp("query-status", timeout_s=5)["running"]


@case("terminated-server-leaves-guest-alive-and-next-boot-works", TIMEOUT_S)
def _(tmp):
    image = disk(tmp)
    with serve(tmp, "nvme", image) as server, boot(tmp, device(server)) as vm:
        vm.run("echo written | dd of=/dev/nvme0n1 bs=512 conv=sync && sync")
        assert server.close() == 0
        assert vm.run("echo alive").strip() == "alive"
        assert vm.qmp("query-status", timeout_s=5)["running"]
    with serve(tmp, "nvme", image, path=server.path) as server, boot(tmp, device(server)) as vm:
        assert vm.run("head -n 1 /dev/nvme0n1").strip() == "written"


main()
