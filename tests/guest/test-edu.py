#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A guest's user space drives `outboard serve edu` (guest/edu-guest.c)."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main  # noqa: E402
from guest import boot, device, pci_address, serve  # noqa: E402

TIMEOUT_S = 120
EDU = "1234:11e8"


@case("registers-dma-and-interrupts", TIMEOUT_S)
def _(tmp):
    with serve(tmp, "edu", "--dma-mask=0xffffffff") as server, boot(tmp, device(server)) as vm:
        vm.run(f"modprobe uio_pci_generic && echo {EDU.replace(':', ' ')} "
               ">/sys/bus/pci/drivers/uio_pci_generic/new_id")
        for check in ("registers", "dma", "interrupts"):
            vm.run(f"edu-guest {pci_address(vm, EDU)} {check}")


@case("dma-into-private-memory", TIMEOUT_S)
def _(tmp):
    with serve(tmp, "edu", "--dma-mask=0xffffffff") as server, \
            boot(tmp, device(server), shared_memory=False) as vm:
        vm.run(f"edu-guest {pci_address(vm, EDU)} dma")


main()
