/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Configuration space: the server's bytes, except for the bits that QEMU answers (d->emulated):
 * identity, command, BAR registers, interrupt line, the capability list, MSI and MSI-X.
 *
 * A write is done here first and then sent to the server where it concerns it (d->forward): when
 * the server learns that it may do DMA or signal a vector, all of that works already.
 */
#include "device.h"

/* What a server is told of the command register. The other bits have no meaning for a device
 * without a parallel bus, and some servers refuse a write that has them. */
#define COMMAND_FORWARDED \
    (PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE)

static bool config_fetch(ObPci *d, Error **errp)
{
    struct ob_region_info info;
    int rc = ob_client_region_info(d->link.client, OB_PCI_REGION_CONFIG, &info);

    if (rc < 0) {
        obq_link_error(d, errp, rc, "the server does not describe its config space");
        return false;
    }
    ob_region_info_fini(&info);
    if (info.layout.size < PCI_CONFIG_SPACE_SIZE || !(info.layout.flags & OB_REGION_READ)) {
        error_setg(errp,
                   "%s: the server's config space has %" PRIu64 " readable bytes; a PCI "
                   "device has 256 or 4096",
                   d->link.name, info.layout.flags & OB_REGION_READ ? info.layout.size : 0);
        return false;
    }
    d->config_size =
        info.layout.size >= PCIE_CONFIG_SPACE_SIZE ? PCIE_CONFIG_SPACE_SIZE : PCI_CONFIG_SPACE_SIZE;
    rc = ob_client_region_read(d->link.client, OB_PCI_REGION_CONFIG, 0, d->server_config,
                               d->config_size);
    if (rc < 0) {
        obq_link_error(d, errp, rc, "the server's config space cannot be read");
        return false;
    }
    return true;
}

static bool override_word(ObPci *d, unsigned offset, uint32_t value, const char *property,
                          Error **errp)
{
    if (value == OB_ID_ANY) {
        return true;
    }
    if (value > UINT16_MAX) {
        error_setg(errp, "%s=0x%" PRIx32 " is more than 16 bits", property, value);
        return false;
    }
    stw_le_p(d->server_config + offset, value);
    return true;
}

static bool config_override(ObPci *d, Error **errp)
{
    if (!override_word(d, PCI_VENDOR_ID, d->vendor_id, "x-pci-vendor-id", errp) ||
        !override_word(d, PCI_DEVICE_ID, d->device_id, "x-pci-device-id", errp) ||
        !override_word(d, PCI_SUBSYSTEM_VENDOR_ID, d->sub_vendor_id, "x-pci-sub-vendor-id", errp) ||
        !override_word(d, PCI_SUBSYSTEM_ID, d->sub_device_id, "x-pci-sub-device-id", errp)) {
        return false;
    }
    if (d->class_code != OB_ID_ANY) {
        if (d->class_code > 0xffffff) {
            error_setg(errp, "x-pci-class-code=0x%" PRIx32 " is more than 24 bits", d->class_code);
            return false;
        }
        d->server_config[PCI_CLASS_PROG] = d->class_code;
        stw_le_p(d->server_config + PCI_CLASS_DEVICE, d->class_code >> 8);
    }
    return true;
}

static bool config_check(ObPci *d, Error **errp)
{
    uint16_t vendor = lduw_le_p(d->server_config + PCI_VENDOR_ID);
    uint8_t type = d->server_config[PCI_HEADER_TYPE] & ~PCI_HEADER_TYPE_MULTI_FUNCTION;

    if (vendor == 0 || vendor == 0xffff) {
        error_setg(errp,
                   "%s: there is no device in the server's config space (its vendor id is "
                   "0x%04x); x-pci-vendor-id= can give it one",
                   d->link.name, vendor);
        return false;
    }
    if (type != PCI_HEADER_TYPE_NORMAL) {
        error_setg(errp,
                   "%s: the device's config header is of type %d: only endpoints (type 0) "
                   "are supported",
                   d->link.name, type);
        return false;
    }
    return true;
}

/* The header as QEMU keeps it: identity from the server, everything the guest sets at its reset
 * value. Reading our copy saves a message as well. */
static void config_lay_header(ObPci *d)
{
    static const struct {
        uint8_t offset, len;
    } ours[] = {
        { PCI_VENDOR_ID, 6 }, /* and PCI_COMMAND */
        { PCI_CLASS_REVISION, 8 },      { PCI_BASE_ADDRESS_0, 24 },
        { PCI_SUBSYSTEM_VENDOR_ID, 8 }, /* and PCI_ROM_ADDRESS */
        { PCI_CAPABILITY_LIST, 1 },     { PCI_INTERRUPT_LINE, 2 },
    };
    PCIDevice *pdev = PCI_DEVICE(d);

    memset(d->emulated, 0, sizeof(d->emulated));
    for (unsigned i = 0; i < ARRAY_SIZE(ours); i++) {
        memset(d->emulated + ours[i].offset, 0xff, ours[i].len);
    }
    d->emulated[PCI_STATUS] = PCI_STATUS_CAP_LIST | PCI_STATUS_INTERRUPT;
    for (unsigned i = 0; i < OB_CONFIG_SIZE; i++) {
        d->forward[i] = d->emulated[i] != 0xff;
    }
    memcpy(pdev->config + PCI_VENDOR_ID, d->server_config + PCI_VENDOR_ID, 4);
    memcpy(pdev->config + PCI_CLASS_REVISION, d->server_config + PCI_CLASS_REVISION, 4);
    memcpy(pdev->config + PCI_SUBSYSTEM_VENDOR_ID, d->server_config + PCI_SUBSYSTEM_VENDOR_ID, 4);
}

bool obq_config_init(ObPci *d, Error **errp)
{
    PCIDevice *pdev = PCI_DEVICE(d);

    if (!config_fetch(d, errp) || !config_override(d, errp) || !config_check(d, errp)) {
        return false;
    }
    if (d->config_size < PCIE_CONFIG_SPACE_SIZE || !pci_bus_is_express(pci_get_bus(pdev))) {
        d->config_size = PCI_CONFIG_SPACE_SIZE;
        pdev->cap_present &= ~QEMU_PCI_CAP_EXPRESS;
    }
    config_lay_header(d);
    return true;
}

static bool config_covers(uint32_t addr, int len, uint32_t offset, uint32_t size)
{
    return addr < offset + size && offset < addr + len;
}

uint32_t obq_config_read(PCIDevice *pdev, uint32_t addr, int len)
{
    ObPci *d = OB_PCI(pdev);
    uint8_t theirs[4] = { 0xff, 0xff, 0xff, 0xff }, mask[4] = { 0 };
    uint32_t ours, ours_mask;

    if (!obq_link_alive(d)) {
        return UINT32_MAX >> (32 - 8 * len);
    }
    if (d->irq_mode == OB_MODE_MSI && config_covers(addr, len, pdev->msi_cap, 0x18)) {
        obq_msi_poll(d, 0, d->nvectors);
    }
    ours = pci_default_read_config(pdev, addr, len);
    memcpy(mask, d->emulated + addr, len);
    ours_mask = ldl_le_p(mask);
    if (ours_mask == UINT32_MAX >> (32 - 8 * len)) {
        return ours;
    }
    if (obq_access_read(d, OB_PCI_REGION_CONFIG, addr, theirs, len, current_cpu) < 0) {
        memset(theirs, 0xff, sizeof(theirs));
    }
    return ((ours & ours_mask) | (ldl_le_p(theirs) & ~ours_mask)) & UINT32_MAX >> (32 - 8 * len);
}

/* A server may refuse a write to a register it does not have; the guest need not know. */
static void config_forward(ObPci *d, uint32_t addr, const uint8_t *bytes, int len)
{
    for (int from = 0, to; from < len; from = to) {
        to = from + 1;
        if (!d->forward[addr + from]) {
            continue;
        }
        while (to < len && d->forward[addr + to]) {
            to++;
        }
        obq_access_write(d, OB_PCI_REGION_CONFIG, addr + from, bytes + from, to - from,
                         current_cpu);
    }
}

static int config_forward_command(ObPci *d, uint16_t command, bool wait_unlocked)
{
    uint8_t bytes[2];

    stw_le_p(bytes, command & COMMAND_FORWARDED);
    return obq_access_write(d, OB_PCI_REGION_CONFIG, PCI_COMMAND, bytes, sizeof(bytes),
                            wait_unlocked);
}

int obq_config_quiesce(ObPci *d)
{
    return config_forward_command(d, 0, false);
}

/* What the write makes us ask of the server with the BQL; NULL: nothing. */
static const char *config_controls(const ObPci *d, uint32_t addr, int len)
{
    const PCIDevice *pdev = &d->parent_obj;

    if (d->flr_offset && config_covers(addr, len, d->flr_offset, 1)) {
        return "a reset";
    }
    if ((pdev->msix_cap && config_covers(addr, len, pdev->msix_cap + PCI_MSIX_FLAGS, 2)) ||
        (pdev->msi_cap && config_covers(addr, len, pdev->msi_cap + PCI_MSI_FLAGS, 2))) {
        return "a change of interrupts";
    }
    return NULL;
}

/*
 * That is several requests with something half done, so the BQL stays. Whether the server answers
 * at all is found out before, without it: one that hangs keeps the vCPU waiting, not the machine.
 * False: the device was unplugged meanwhile.
 */
static bool config_await_server(ObPci *d, const char *what)
{
    int rc = obq_access_probe(d);

    if (!d->link.client) {
        return false;
    }
    obq_link_control(d, rc, what);
    return true;
}

void obq_config_write(PCIDevice *pdev, uint32_t addr, uint32_t val, int len)
{
    ObPci *d = OB_PCI(pdev);
    const char *what = current_cpu ? config_controls(d, addr, len) : NULL;
    uint8_t bytes[4];

    if (what && obq_link_alive(d) && !config_await_server(d, what)) {
        return;
    }
    stl_le_p(bytes, val);
    pci_default_write_config(pdev, addr, val, len);
    obq_link_limit(d, true);
    obq_irq_update(d);
    obq_link_limit(d, false);
    if (config_covers(addr, len, PCI_COMMAND, 2)) {
        config_forward_command(d, pci_get_word(pdev->config + PCI_COMMAND), current_cpu);
    }
    config_forward(d, addr, bytes, len);

    if (d->flr_offset && config_covers(addr, len, d->flr_offset, 1) &&
        (bytes[d->flr_offset - addr] & d->flr_bit) && obq_link_alive(d)) {
        d->flr = true;
        pci_device_reset(pdev);
        d->flr = false;
    }
}
