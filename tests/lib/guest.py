# SPDX-License-Identifier: BSD-3-Clause
"""For tests that boot the Linux guest of guest/ with devices of `outboard serve`.

    with serve(tmp, "nvme", disk(tmp)) as server, boot(tmp, device(server)) as vm:
        vm.run("nvme list")
"""
import itertools
import os
import pathlib
import re
import sys

from case import BUILD, OUTBOARD, ROOT
from qtest import launcher, named

sys.path.insert(0, str(ROOT / "guest"))
import image  # noqa: E402
from accel import accelerator  # noqa: E402
from vm import GuestError, Server, Vm  # noqa: E402,F401

MIB = 1 << 20
_numbers = itertools.count()


def disk(tmp, name="disk.img", size_mib=64):
    """An empty image file."""
    path = pathlib.Path(tmp, name)
    path.touch()
    os.truncate(path, size_mib * MIB)
    return path


def serve(tmp, name, *args, path=None):
    """A server, with a socket of its own unless PATH says where."""
    number = next(_numbers)
    return Server(OUTBOARD, name, path or tmp / f"{name}{number}.sock", *args, log=tmp / f"{name}{number}.log")


def device(server, **properties):
    """The -device option for it."""
    extra = "".join(f",{name.replace('_', '-')}={value}" for name, value in properties.items())
    return f"vfio-user-pci,socket={server.path}{extra}"


def boot(tmp, *devices, qemu_args=(), kernel="cloud", **options):
    """A running guest with the devices; options as for Vm."""
    guest_dir = image.build_image(kernel, BUILD)
    accel, _ = accelerator(guest_dir)
    args = [word for text in devices for word in ("-device", text)]
    return Vm(guest_dir, list(map(named, [*qemu_args, *args])), accel=accel, command=launcher(),
              log=tmp / f"guest{next(_numbers)}.log", **options)


def pci_address(vm, vendor_and_device):
    """Where in the guest the device "vendor:device" is, as in 0000:00:03.0."""
    vendor, product = vendor_and_device.split(":")
    return vm.run(f"cd /sys/bus/pci/devices && for d in *; do [ $(cat $d/vendor) = 0x{vendor} ] && "
                  f"[ $(cat $d/device) = 0x{product} ] && echo $d; done; true").strip()


def wait_in_guest(vm, condition, timeout_s=30):
    """Until the shell CONDITION holds in the guest."""
    vm.run(f"i=0; until {condition}; do i=$((i + 1)); [ $i -lt {timeout_s * 10} ] || exit 1; usleep 100000; done",
           timeout_s=timeout_s * 2)


def interrupts(vm, pattern):
    """{name: count over all CPUs} of the guest's interrupts whose line in /proc/interrupts matches."""
    found = {}
    for line in vm.run("cat /proc/interrupts").splitlines():
        counts = re.match(r"\s*\d+:((?:\s+\d+)+)\s", line)
        if counts and re.search(pattern, line):
            found[line.split()[-1]] = sum(map(int, counts[1].split()))
    return found


def fio_verify(vm, target="/dev/nvme0n1", *, jobs=4, size_mib=12, options=""):
    """Writes in parallel, random in order and size, and checks every block by its CRC."""
    vm.run(f"fio --name=verify --filename={target} --numjobs={jobs} --size={size_mib}M --offset_increment={size_mib}M "
           "--rw=randwrite --bsrange=4k-128k --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c "
           f"--verify_fatal=1 --verify_backlog=64 --group_reporting {options}", timeout_s=150)
