/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The expansion ROM: the server's region 6 is read once, when the device is plugged in, and served
 * from memory. romfile= and rombar=0 have their usual meaning and win over it.
 */
#include "device.h"

#define ROM_MAX (16 * MiB)
#define ROM_MIN 2048 /* the address register has no lower bits */

bool obq_rom_init(ObPci *d, Error **errp)
{
    ERRP_GUARD();
    PCIDevice *pdev = PCI_DEVICE(d);
    struct ob_region_info info;
    uint64_t size;
    int rc;

    if (!pdev->rom_bar || pdev->romfile) {
        return true;
    }
    rc = ob_client_region_info(d->link.client, OB_PCI_REGION_ROM, &info);
    if (rc < 0) {
        obq_link_error(d, errp, rc, "the server does not describe its expansion ROM");
        return false;
    }
    ob_region_info_fini(&info);
    if (!info.layout.size || !(info.layout.flags & OB_REGION_READ)) {
        return true;
    }
    if (info.layout.size > ROM_MAX) {
        error_setg(errp,
                   "%s: the expansion ROM has %" PRIu64 " bytes, more than %" PRIu64
                   ": use rombar=0 to do without it",
                   d->link.name, info.layout.size, (uint64_t)ROM_MAX);
        return false;
    }
    size = pow2ceil(MAX(info.layout.size, ROM_MIN));
    memory_region_init_rom_nomigrate(&d->rom, OBJECT(d), TYPE_OB_PCI "-rom", size, errp);
    if (*errp) {
        return false;
    }
    rc = ob_client_region_read(d->link.client, OB_PCI_REGION_ROM, 0,
                               memory_region_get_ram_ptr(&d->rom), info.layout.size);
    if (rc < 0) {
        obq_link_error(d, errp, rc, "the expansion ROM cannot be read (rombar=0 does without it)");
        return false;
    }
    pci_register_bar(pdev, PCI_ROM_SLOT, 0, &d->rom);
    return true;
}
