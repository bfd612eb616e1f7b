#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""With SPDK, both ways: its NVMe target, and its driver. OUTBOARD_SPDK names its build folder, with programs in bin/."""
import contextlib
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main  # noqa: E402
from guest import MIB, boot, fio_verify, serve  # noqa: E402
from peers import check, info, peer_server, program  # noqa: E402
from spdk import MEMORY, NQN, config, target  # noqa: E402

def spdk(name):
    return program("OUTBOARD_SPDK", f"bin/{name}")


@contextlib.contextmanager
def running_target(tmp):
    """Its socket."""
    with peer_server(tmp, target(spdk("nvmf_tgt"), tmp, 64), tmp / "cntrl", start_timeout_s=30):
        yield tmp / "cntrl"


def disk(tmp):
    """Our server, on the name that SPDK's driver looks for in a folder, and with the doorbells that it insists on."""
    return serve(tmp, "nvme", "mem:64M", "--doorbells", "mapped", path=tmp / "cntrl")


def driver(tmp, name, *args):
    done = subprocess.run([spdk(name), *MEMORY, *args], cwd=tmp, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    return done.stdout


def transport(tmp):
    return "-r", f"trtype:VFIOUSER traddr:{tmp} subnqn:{NQN}"


# ---- Its target, our clients


@case("library-describes-its-target", 90)
def _(tmp):
    with running_target(tmp) as path:
        for _ in range(3):
            found = info(path)
            assert found["vendor_id"] == 0x4E58 and found["regions"][0]["mappable"], found


@case("linux-uses-its-target-through-our-device", 240)
def _(tmp):
    with running_target(tmp) as path, boot(tmp, f"vfio-user-pci,socket={path}") as vm:
        fio_verify(vm, jobs=2, size_mib=8)
        assert vm.run("cat /sys/class/nvme/nvme0/serial").strip() == "SPDK0"


@case("conformance-suite-and-its-target-survive-each-other", 260)
def _(tmp):
    with running_target(tmp) as path:
        check(path, 320)
        assert info(path)["vendor_id"] == 0x4E58


# ---- Its driver, our server


@case("its-driver-identifies-our-disk", 60)
def _(tmp):
    with disk(tmp):
        said = driver(tmp, "spdk_nvme_identify", *transport(tmp))
        for line in (r"Model Number: +Outboard NVMe", r"Max Data Transfer Size: +1048576",
                     r"Size \(in LBAs\): +131072 "):
            assert re.search(line, said), (line, said)


@case("its-driver-keeps-our-disk-busy", 90)
def _(tmp):
    with disk(tmp):
        for depth, size in ((1, 512), (32, 4096), (8, 131072)):
            said = driver(tmp, "spdk_nvme_perf", *transport(tmp), "-q", str(depth), "-o", str(size), "-w", "randrw",
                          "-M", "50", "-t", "1", "-c", "0x1")
            total = re.search(r"^Total +: +([\d.]+)", said, re.M)
            assert total and float(total[1]) > 100, said


@case("what-its-driver-writes-is-what-it-reads", 90)
def _(tmp):
    written = b"".join(i.to_bytes(4, "little") for i in range(4 * MIB))
    (tmp / "in").write_bytes(written)
    attach = config(tmp / "driver.json", bdev=[("bdev_nvme_attach_controller", {
        "name": "Nvme0", "trtype": "VFIOUSER", "traddr": str(tmp), "subnqn": NQN})])
    words = ("spdk_dd", "--no-pci", "--disable-cpumask-locks", "-c", attach, "--bs=65536")
    with disk(tmp):
        driver(tmp, *words, f"--if={tmp}/in", "--ob=Nvme0n1")
        driver(tmp, *words, "--ib=Nvme0n1", f"--of={tmp}/out", f"--count={len(written) // 65536}")
    assert (tmp / "out").read_bytes() == written


main()
