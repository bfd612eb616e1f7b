#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A Linux guest goes on while the server of its disk is killed, and started again, in the middle of I/O."""
import os
import pathlib
import random
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main  # noqa: E402
from guest import boot, device, disk, serve, wait_in_guest  # noqa: E402
from qtest import wait_for  # noqa: E402

TIMEOUT_S = 400
KILLS = int(os.environ.get("KILLS", 20))
COMPLAINTS = "I/O error|timeout|EXT4-fs (error|warning)|Buffer I/O|controller is down|resetting|Aborting|JBD2.*abort"


def start_fio(vm, target, options):
    """Writes and verifies until /run/stop is there; each round verifies all of the one before."""
    vm.run("cat >/run/job <<'END'\n"
           f"[global]\n{options}\nioengine=libaio\niodepth=16\nverify=crc32c\nverify_fatal=1\nverify_backlog=64\n"
           f"randrepeat=0\nbsrange=4k-64k\nrw=randrw\n[a]\nfilename={target}a\nfsync=32\n[b]\nfilename={target}b\n"
           "direct=1\nEND\n"
           "(while [ ! -e /run/stop ]; do fio /run/job --output=/run/fio.log || { cat /run/fio.log; exit 1; }; "
           "echo x >>/run/rounds; done; echo fine) >/run/result 2>&1 &")


def kill_and_restart(tmp, server, image, state, how):
    server.process.send_signal(how)
    server.process.wait()
    return serve(tmp, "nvme", image, "--state", state, path=server.path)


def reconnects(vm):
    return vm.qmp("qom-get", path="/machine/peripheral/disk", property="reconnects")


@case("io-with-verification-on-a-file-system-survives-20-kills-of-the-server", TIMEOUT_S)
def _(tmp):
    seed = int(os.environ.get("SEED", time.time_ns() % 1000000))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    image, state = disk(tmp), tmp / "state"
    server = serve(tmp, "nvme", image, "--state", state)
    try:
        with boot(tmp, device(server, id="disk", reconnect=30)) as vm:
            vm.run("mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt", timeout_s=60)
            start_fio(vm, "/mnt/", "size=8M")
            for n in range(KILLS):
                time.sleep(chance.random() * 1.5)  # the moment is what varies, nothing is waited for
                how = signal.SIGTERM if n % 5 == 4 else signal.SIGKILL
                before = reconnects(vm)
                server = kill_and_restart(tmp, server, image, state, how)
                if n % 5 != 2:  # that one may be killed again before it is found
                    wait_for(lambda: reconnects(vm) > before, "return of the disk")
            vm.run("touch /run/stop")
            wait_in_guest(vm, "grep -q . /run/result", timeout_s=100)
            assert vm.run("cat /run/result").strip() == "fine", vm.run("cat /run/result; dmesg | tail -20")
            rounds = len(vm.run("cat /run/rounds").split())
            print(f"{rounds} rounds, {reconnects(vm)} reconnections")
            assert KILLS - KILLS // 5 <= reconnects(vm) <= KILLS
            said = vm.run(f"dmesg | grep -E '{COMPLAINTS}'; true").strip()
            assert not said, said
            # What the guest has cached says nothing about the disk.
            vm.run("sync && umount /mnt && e2fsck -fn /dev/nvme0n1 && mount /dev/nvme0n1 /mnt && "
                   "echo 3 >/proc/sys/vm/drop_caches", timeout_s=60)
            vm.run("fio --name=again --ioengine=libaio --iodepth=8 --rw=write --verify=crc32c --verify_fatal=1 "
                   "--size=4M --filename=/mnt/c --direct=1", timeout_s=60)
    finally:
        server.close()


main()
