/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What Advanced Error Reporting says of a device that answers no more: the port at the root has
 * waited for completions that do not come. The error is a non-fatal one, on purpose: the guest
 * logs it, and its driver finds out about the device by itself, as without AER. A fatal one
 * (Surprise Down) has Linux freeze the driver and reset the link, and when the device does not come
 * back, leaves it frozen: its requests then hang for ever instead of failing.
 *
 * QEMU keeps the functions for this to itself, except for the monitor's command.
 */
#include "device.h"

#include "qapi/qapi-commands-misc.h"

/* The port between us and the root complex; NULL: there is none. */
static PCIDevice *root_port(ObPci *d)
{
    PCIDevice *port = NULL;

    for (PCIBus *bus = pci_get_bus(PCI_DEVICE(d)); !pci_bus_is_root(bus); bus = pci_get_bus(port)) {
        port = bus->parent_dev;
    }
    return port;
}

void obq_aer_report_loss(ObPci *d)
{
    PCIDevice *port = root_port(d);
    char *command, *said;

    if (!port || !port->exp.aer_cap || !DEVICE(port)->id) {
        return;
    }
    command = g_strdup_printf("pcie_aer_inject_error %s COMP_TIME", DEVICE(port)->id);
    said = qmp_human_monitor_command(command, false, 0, NULL);
    g_free(said);
    g_free(command);
}
