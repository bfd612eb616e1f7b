#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Linux's gpio-pci-idio-16 drives `outboard serve gpio` (guest/gpio-guest.c)."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main  # noqa: E402
from guest import boot, device, pci_address, serve  # noqa: E402


@case("linux-driver-sees-lines-and-edges", 180)
def _(tmp):
    # The kernel for virtual machines has no GPIO.
    with serve(tmp, "gpio", "--loopback") as server, boot(tmp, device(server), kernel="full") as vm:
        vm.run("modprobe gpio-pci-idio-16")
        for check in ("lines", "interrupts"):
            vm.run(f"gpio-guest {pci_address(vm, '494f:0dc8')} {check}")


main()
