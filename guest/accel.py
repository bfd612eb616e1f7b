# SPDX-License-Identifier: BSD-3-Clause
"""Which accelerator the test guest gets: KVM where it can run the guest, else TCG.

/dev/kvm says little: nested in another hypervisor it may hang or crash a 64-bit guest. So the guest is booted with it
once, with a deadline. The verdict is kept in the build directory, for this boot of the machine, this QEMU and this
kernel. The environment variable OUTBOARD_ACCEL=kvm|tcg overrides it.
"""
import fcntl
import json
import os
import pathlib
import resource
import shutil

from vm import KVM, TCG, GuestError, Vm

PROBE_TIMEOUT_S = 8


def identity(image_dir):
    qemu = os.stat(shutil.which("qemu-system-x86_64"))
    return [pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            qemu.st_mtime_ns, (image_dir.parent / f"kernel-{image_dir.name}").stat().st_mtime_ns]


def kvm_works(image_dir, log):
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, limits[1]))  # the attempt may abort
    try:
        with Vm(image_dir, accel=KVM, log=log, boot_timeout_s=PROBE_TIMEOUT_S) as vm:
            return vm.run("uname -m", timeout_s=PROBE_TIMEOUT_S).strip() == "x86_64"
    except GuestError:
        return False
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)


def accelerator(image_dir):
    """QEMU's options for the accelerator to use, and its name with the reason."""
    forced = os.environ.get("OUTBOARD_ACCEL")
    if forced:
        return {"kvm": KVM, "tcg": TCG}[forced], f"{forced.upper()}, as OUTBOARD_ACCEL says"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG, "TCG, without /dev/kvm"
    verdict_file = image_dir / "kvm-verdict"
    with open(image_dir / "kvm-verdict.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        key = identity(image_dir)
        try:
            verdict = json.loads(verdict_file.read_text())
        except (OSError, ValueError):
            verdict = {}
        if verdict.get("key") != key:
            verdict = {"key": key, "works": kvm_works(image_dir, image_dir / "kvm-probe.log")}
            verdict_file.write_text(json.dumps(verdict))
    if verdict["works"]:
        return KVM, "KVM"
    return TCG, "TCG, as KVM cannot run the guest here"
