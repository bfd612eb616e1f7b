#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The edu device driven by a guest without an operating system (guest/baremetal), under TCG and under KVM.

It is a 32-bit program, so that it runs where nested KVM hangs 64-bit guests: here is where KVM takes the device's
interrupts from the server without QEMU in between (irqfd).
"""
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, case, main, skip  # noqa: E402
from qtest import DRIVER, Serve, launcher, plugin, shared_ram  # noqa: E402

PROGRAM = BUILD / "guest" / "edu.elf"
PASSED = 33  # see end() in guest/baremetal/machine.h
STEPS = ["bar-moves", "registers", "dma", "intx", "intx-is-a-level", "msi"]
QEMU = "qemu-system-x86_64"
PRIVATE_RAM = ["-m", "64"]
BOOT_TIMEOUT_S = 100  # 5 on an idle machine, even with a KVM that emulates every instruction


def boot(command, accel, device, ram=None, *more):
    """Returns the exit status and the steps that went well."""
    if not PROGRAM.exists():
        skip("the bare-metal guest is for x86 machines")
    args = [*command, "-machine", "pc", "-accel", accel, *(ram or shared_ram()), "-nodefaults", "-no-reboot",
            "-display", "none", "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
            "-kernel", PROGRAM, "-device", device, *more]
    try:
        done = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=BOOT_TIMEOUT_S, text=True)
    except subprocess.TimeoutExpired as late:
        print(f"no end after: {late.stdout}")
        return None, []
    print(done.stdout)
    return done.returncode, [line.removeprefix("ok ") for line in done.stdout.splitlines() if line.startswith("ok ")]


def need_kvm():
    """KVM is good enough where it runs this very guest with the edu device that QEMU itself has."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        skip("no /dev/kvm")
    if boot([QEMU], "kvm", "edu")[0] != PASSED:
        skip("KVM does not run the bare-metal guest on this machine")


def check(tmp, accel, *args):
    plugin()  # before the deadline runs
    with Serve("edu", tmp / "edu.sock"):
        status, steps = boot(launcher(), accel, f"{DRIVER},socket={tmp}/edu.sock", *args)
    assert status == PASSED, status
    assert steps == [*STEPS, "msi-mask"], steps


@case("guest-passes-with-the-edu-of-qemu", timeout_s=240)
def _(tmp):
    assert boot([QEMU], "tcg", "edu") == (PASSED, STEPS)


@case("registers-dma-and-interrupts-under-tcg", timeout_s=240)
def _(tmp):
    check(tmp, "tcg")


@case("private-ram-under-tcg", timeout_s=240)
def _(tmp):
    check(tmp, "tcg", PRIVATE_RAM)


@case("registers-dma-and-interrupts-under-kvm", timeout_s=300)
def _(tmp):
    need_kvm()
    check(tmp, "kvm", None, "-trace", "kvm_irqchip_add_msi_route", "-D", tmp / "trace")
    assert f"dev {DRIVER} vector 0" in (tmp / "trace").read_text(), "KVM was not given a route for MSI"


main()
