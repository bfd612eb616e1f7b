#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A Linux guest uses `outboard serve nvme` through the device in a stock QEMU."""
import hashlib
import json
import os
import pathlib
import sys
import time
import types

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "lib"), str(TESTS / "conformance")]
from broken import WRITE, Unbroken, broken_server  # noqa: E402
from case import case, main  # noqa: E402
from guest import MIB, boot, device, disk, fio_verify, interrupts, serve  # noqa: E402

TIMEOUT_S = 240
PATTERN = "seq 1 400000 | head -c 2097152"  # 2 MiB that the host can make too


def pattern_sum():
    text = "".join(f"{i}\n" for i in range(1, 400001))
    return hashlib.sha256(text[:2 * MIB].encode()).hexdigest()


def sha256_on_disk(vm, disk_name="nvme0n1", size=2 * MIB):
    return vm.run(f"dd if=/dev/{disk_name} bs={size} count=1 iflag=direct 2>/dev/null | sha256sum").split()[0]


@case("parallel-io-keeps-its-data", TIMEOUT_S)
def _(tmp):
    with serve(tmp, "nvme", disk(tmp)) as server, boot(tmp, device(server)) as vm:
        fio_verify(vm)


@case("every-cpu-has-its-queue-and-vector", TIMEOUT_S)
def _(tmp):
    with serve(tmp, "nvme", disk(tmp)) as server, boot(tmp, device(server)) as vm:
        assert vm.run("ls /sys/block/nvme0n1/mq").split() == ["0", "1"]
        for cpu in (0, 1):
            before = interrupts(vm, "nvme0q")
            vm.run(f"taskset {1 << cpu} dd if=/dev/nvme0n1 of=/dev/null bs=4k count=200 iflag=direct")
            used = {name for name, count in interrupts(vm, "nvme0q").items() if count - before[name] >= 100}
            assert used == {f"nvme0q{cpu + 1}"}, used


class CountRings(Unbroken):
    """What passes by, and how many messages ring doorbells of I/O queues: [submission, completion] queues."""
    def __init__(self):
        self.rings = [0, 0]

    def request(self, link, message):
        if message.cmd == WRITE and message.field(8) == 0 and 0x1008 <= message.field(0) < 0x2000:
            self.rings[message.field(0) // 4 % 2] += 1
        return message


@case("few-commands-are-rung-by-message", TIMEOUT_S)
def _(tmp):
    count = CountRings()
    with broken_server(tmp, f"nvme {disk(tmp)}", count) as path, \
            boot(tmp, device(types.SimpleNamespace(path=path))) as vm:
        before = list(count.rings)
        result = vm.run("fio --name=x --filename=/dev/nvme0n1 --rw=randread --bs=4k --size=16M --ioengine=libaio "
                        "--iodepth=32 --direct=1 --output-format=json", timeout_s=100)
        ios = json.loads(result)["jobs"][0]["read"]["total_ios"]
        submissions, completions = (now - then for now, then in zip(count.rings, before))
        print(f"{ios} commands, messages for doorbells: {submissions} of submissions, {completions} of completions")
        # A guest that is slow finds the disk asleep with each command, but frees no entry that anybody waits for.
        assert ios == 4096 and 0 < submissions <= ios and completions < ios / 100, (submissions, completions)


def status_of(server, field):
    """The sum of a field of /proc/PID/status over the server's threads."""
    tasks = pathlib.Path(f"/proc/{server.process.pid}/task").iterdir()
    return sum(int(line.split()[1]) for task in tasks for line in (task / "status").read_text().splitlines()
               if line.startswith(field + ":"))


@case("an-idle-disk-costs-nothing", TIMEOUT_S)
def _(tmp):
    image = disk(tmp)
    os.truncate(image, 1 << 30)
    with serve(tmp, "nvme", image) as server, boot(tmp, device(server)) as vm:
        fio_verify(vm, jobs=2, size_mib=4)
        deadline = time.monotonic() + 60  # the guest and the kernel's workers have to come to rest
        before = None
        while (now := status_of(server, "voluntary_ctxt_switches")) != before:
            assert time.monotonic() < deadline, f"{now - before} wake-ups in the last second"
            before = now
            time.sleep(1)
        status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
        resident = sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon", "RssFile")))
        print(f"{resident} KiB resident")
        assert resident <= 4096, resident


def check_interrupt_kind(tmp, kinds, server_args=(), append=""):
    with serve(tmp, "nvme", disk(tmp), *server_args) as server, boot(tmp, device(server), append=append) as vm:
        fio_verify(vm, jobs=2, size_mib=4)
        assert vm.run("cat /sys/class/nvme/nvme0/device/msi_irqs/* 2>/dev/null | sort -u").split() == kinds
        counts = interrupts(vm, "nvme0q")
        assert sum(counts.values()) > 50, counts


@case("works-with-intx", TIMEOUT_S)
def _(tmp):
    check_interrupt_kind(tmp, [], ["--interrupts=intx"])


@case("works-with-intx-because-the-guest-has-no-msi", TIMEOUT_S)
def _(tmp):
    check_interrupt_kind(tmp, [], append="pci=nomsi")


@case("works-with-msi", TIMEOUT_S)
def _(tmp):
    check_interrupt_kind(tmp, ["msi"], ["--interrupts=msi"])


@case("works-with-msix", TIMEOUT_S)
def _(tmp):
    check_interrupt_kind(tmp, ["msix"])


@case("private-memory-works-by-messages", TIMEOUT_S)
def _(tmp):
    with serve(tmp, "nvme", disk(tmp)) as server, boot(tmp, device(server), shared_memory=False) as vm:
        fio_verify(vm, jobs=2, size_mib=4)


@case("doorbells-can-be-mapped", TIMEOUT_S)
def _(tmp):
    with serve(tmp, "nvme", disk(tmp), "--doorbells=mapped") as server, boot(tmp, device(server)) as vm:
        fio_verify(vm, jobs=2, size_mib=8)


@case("two-disks-keep-apart", TIMEOUT_S)
def _(tmp):
    images = [disk(tmp, f"{i}.img") for i in (0, 1)]
    with serve(tmp, "nvme", images[0], "--serial=one") as one, serve(tmp, "nvme", images[1], "--serial=two") as two, \
            boot(tmp, device(one), device(two)) as vm:
        vm.run("for i in 0 1; do s=$(tr -d ' ' </sys/block/nvme${i}n1/device/serial); "
               "yes $s | head -c 8388608 | dd of=/dev/nvme${i}n1 bs=1M oflag=direct & done; wait; sync")
        assert vm.power_off() == 0
    for path, serial in zip(images, (b"one\n", b"two\n")):
        data = path.read_bytes()[:8 * MIB]
        assert data == (serial * (2 * MIB))[:8 * MIB], data[:16]


@case("blocks-of-4096-bytes", TIMEOUT_S)
def _(tmp):
    with serve(tmp, "nvme", disk(tmp), "--lba=4096") as server, boot(tmp, device(server)) as vm:
        assert vm.run("blockdev --getss /dev/nvme0n1").strip() == "4096"
        vm.run("sgdisk --clear --new 1:0:0 /dev/nvme0n1 && blockdev --rereadpt /dev/nvme0n1 && "
               "mkfs.ext4 -q /dev/nvme0n1p1 && mount /dev/nvme0n1p1 /mnt")
        fio_verify(vm, "/mnt/file", jobs=2, size_mib=8)
        vm.run("umount /mnt && e2fsck -fn /dev/nvme0n1p1")


@case("read-only-image-refuses-writes", TIMEOUT_S)
def _(tmp):
    image = disk(tmp)
    with open(image, "r+b") as out:
        out.write("".join(f"{i}\n" for i in range(1, 400001)).encode()[:2 * MIB])
    before = image.read_bytes()
    with serve(tmp, "nvme", image, "--read-only") as server, boot(tmp, device(server)) as vm:
        assert sha256_on_disk(vm) == pattern_sum()
        status, _ = vm.run("dd if=/dev/zero of=/dev/nvme0n1 bs=4k count=1 oflag=direct", check=False)
        assert status != 0
        assert sha256_on_disk(vm) == pattern_sum()
    assert image.read_bytes() == before


@case("trim-frees-and-zeroes", TIMEOUT_S)
def _(tmp):
    image = disk(tmp)
    with serve(tmp, "nvme", image) as server, boot(tmp, device(server)) as vm:
        vm.run("yes | head -c 16777216 | dd of=/dev/nvme0n1 bs=1M oflag=direct && sync")
        full = image.stat().st_blocks * 512
        assert full >= 16 * MIB
        vm.run("blkdiscard -o 0 -l 8388608 /dev/nvme0n1")
        assert image.stat().st_blocks * 512 <= full - 8 * MIB
        vm.run("dd if=/dev/nvme0n1 bs=1M count=8 iflag=direct | cmp -n 8388608 - /dev/zero")
        vm.run("yes | head -c 8388608 >/run/yes; dd if=/dev/nvme0n1 bs=1M skip=8 count=8 iflag=direct | cmp - /run/yes")


@case("reset-under-io-loses-nothing", TIMEOUT_S)
def _(tmp):
    with serve(tmp, "nvme", disk(tmp)) as server, boot(tmp, device(server)) as vm:
        reset = "echo 1 >$(readlink -f /sys/class/nvme/nvme0/device)/reset"
        vm.run(f"(for i in 1 2 3; do sleep 0.5; nvme reset /dev/nvme0; sleep 0.5; {reset}; done; "
               "echo $? >/run/resets) >/run/reset.log 2>&1 &")
        fio_verify(vm, jobs=2, size_mib=16, options="--loops=3")
        vm.run("until [ -e /run/resets ]; do usleep 100000; done; cat /run/reset.log; [ $(cat /run/resets) = 0 ]")
        fio_verify(vm, jobs=2, size_mib=4)


@case("machine-reset-boots-again", TIMEOUT_S)
def _(tmp):
    with serve(tmp, "nvme", disk(tmp)) as server, boot(tmp, device(server)) as vm:
        vm.run(f"{PATTERN} | dd of=/dev/nvme0n1 bs=1M iflag=fullblock oflag=direct")
        for _ in range(2):
            vm.reset()
            assert sha256_on_disk(vm) == pattern_sum()


@case("data-outlives-guest-and-server", TIMEOUT_S)
def _(tmp):
    image = disk(tmp)
    with serve(tmp, "nvme", image) as server:
        with boot(tmp, device(server)) as vm:
            vm.run(f"{PATTERN} | dd of=/dev/nvme0n1 bs=1M iflag=fullblock oflag=direct && sync")
            assert vm.power_off() == 0
        with boot(tmp, device(server)) as vm:
            assert sha256_on_disk(vm) == pattern_sum()
        path = server.path
        assert server.close() == 0
    with serve(tmp, "nvme", image, path=path) as server, boot(tmp, device(server)) as vm:
        assert sha256_on_disk(vm) == pattern_sum()


main()
