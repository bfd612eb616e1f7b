/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * PCI config space: bytes, and a mask of the bits that a client may write. That alone does the
 * sizing of BARs. An access may begin anywhere and be of any length; bits that cannot be written
 * keep their value, and nobody is told off for trying.
 */
#include "server/internal.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <stdlib.h>
#include <string.h>

void ob_pci_put(struct ob_pci *pci, uint32_t offset, const void *value, const void *writable,
                size_t len)
{
    memcpy(pci->config + offset, value, len);
    memcpy(pci->initial + offset, value, len);
    if (writable)
        memcpy(pci->writable + offset, writable, len);
}

static void put16(struct ob_pci *pci, uint32_t offset, uint16_t value, uint16_t writable)
{
    ob_pci_put(pci, offset, &value, &writable, sizeof(value));
}

static void put32(struct ob_pci *pci, uint32_t offset, uint32_t value, uint32_t writable)
{
    ob_pci_put(pci, offset, &value, &writable, sizeof(value));
}

static uint16_t get16(const struct ob_pci *pci, uint32_t offset)
{
    uint16_t value;

    memcpy(&value, pci->config + offset, sizeof(value));
    return value;
}

/* ---- Access ------------------------------------------------------------------------------- */

static void mask_intx(struct ob_server *server)
{
    ob_irq_config_mask(server, OB_PCI_IRQ_INTX, 0,
                       ob_pci_command(server) & PCI_COMMAND_INTX_DISABLE);
}

void ob_pci_config_masks(struct ob_server *server)
{
    mask_intx(server);
    if (server->pci.msi)
        ob_pci_mask_msi(server);
}

/* The line is masked by config space, and a function-level reset may be asked for. */
static void written(struct ob_server *server, uint32_t offset, uint32_t count,
                    const uint8_t *before)
{
    if (offset <= PCI_COMMAND + 1 && offset + count > PCI_COMMAND)
        mask_intx(server);
    ob_pci_caps_written(server, offset, count, before);
}

static int access_config(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct ob_server *server = opaque;
    struct ob_pci *pci = &server->pci;
    uint8_t before[sizeof(pci->config)];
    const uint8_t *bytes = data;

    if (!is_write) {
        pci->config[PCI_STATUS] &= (uint8_t)~PCI_STATUS_INTERRUPT;
        if (ob_irq_level(server))
            pci->config[PCI_STATUS] |= PCI_STATUS_INTERRUPT;
        ob_pci_caps_refresh(server);
        memcpy(data, pci->config + offset, count);
        return 0;
    }
    memcpy(before, pci->config, pci->size);
    for (uint32_t i = 0; i < count; i++) {
        uint8_t mask = pci->writable[offset + i];

        pci->config[offset + i] = (uint8_t)((before[offset + i] & ~mask) | (bytes[i] & mask));
    }
    written(server, (uint32_t)offset, count, before);
    ob_pci_changed(server);
    return 0;
}

void ob_pci_changed(struct ob_server *server)
{
    if (server->ops.changed)
        server->ops.changed(server->opaque);
}

uint16_t ob_pci_command(const struct ob_server *server)
{
    return get16(&server->pci, PCI_COMMAND);
}

int ob_pci_reset(struct ob_server *server)
{
    struct ob_pci *pci = &server->pci;
    int rc;

    memcpy(pci->config, pci->initial, sizeof(pci->config));
    ob_pci_reset_msix(pci);
    ob_irqs_reset(server);
    rc = server->ops.reset ? server->ops.reset(server->opaque) : 0;
    if (rc == 0)
        ob_migration_reset(server);
    ob_pci_changed(server);
    return rc;
}

/* ---- Building ----------------------------------------------------------------------------- */

int ob_pci_init(struct ob_server *server, const struct ob_pci_id *id, bool express, bool intx)
{
    struct ob_pci *pci = &server->pci;
    const uint8_t all = 0xff, pin = intx ? 1 : 0;
    struct ob_region config = {
        .size = express ? 4096 : 256,
        .flags = OB_REGION_READ | OB_REGION_WRITE,
        .access = access_config,
        .opaque = server,
        .fd = -1,
    };
    int rc;

    if (pci->present || id->class_code > 0xffffff)
        return -EINVAL;
    rc = ob_server_set_region(server, OB_PCI_REGION_CONFIG, &config);
    if (rc == 0 && intx)
        rc = ob_server_set_irq(server, OB_PCI_IRQ_INTX, 1,
                               OB_IRQ_EVENTFD | OB_IRQ_MASKABLE | OB_IRQ_AUTOMASKED);
    for (uint32_t i = OB_PCI_IRQ_ERR; rc == 0 && i <= OB_PCI_IRQ_REQ; i++)
        rc = ob_server_set_irq(server, i, 1, OB_IRQ_EVENTFD | OB_IRQ_NORESIZE);
    if (rc < 0)
        return rc;
    pci->present = true;
    pci->size = (uint32_t)config.size;
    pci->end = PCI_STD_HEADER_SIZEOF;
    put16(pci, PCI_VENDOR_ID, id->vendor, 0);
    put16(pci, PCI_DEVICE_ID, id->device, 0);
    put16(pci, PCI_COMMAND, 0,
          PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_PARITY |
              PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE);
    put32(pci, PCI_CLASS_REVISION, id->class_code << 8 | id->revision, 0);
    ob_pci_put(pci, PCI_CACHE_LINE_SIZE, "", &all, 1);
    put16(pci, PCI_SUBSYSTEM_VENDOR_ID, id->subsystem_vendor, 0);
    put16(pci, PCI_SUBSYSTEM_ID, id->subsystem, 0);
    ob_pci_put(pci, PCI_INTERRUPT_LINE, "", &all, 1);
    ob_pci_put(pci, PCI_INTERRUPT_PIN, &pin, NULL, 1);
    return ob_pci_set_rom(server, server->regions[OB_PCI_REGION_ROM].layout.size);
}

static bool is_power_of_two(uint64_t n)
{
    return n && !(n & (n - 1));
}

int ob_pci_add_bar(struct ob_server *server, unsigned bar, uint64_t size, uint32_t flags)
{
    struct ob_pci *pci = &server->pci;
    uint32_t offset = PCI_BASE_ADDRESS_0 + 4 * bar;
    uint64_t mask = ~(size - 1);

    if (!pci->present || bar > 5 || !is_power_of_two(size))
        return -EINVAL;
    if (flags & OB_PCI_BAR_IO) {
        if (flags != OB_PCI_BAR_IO || size < 4 || size > 256)
            return -EINVAL;
        put32(pci, offset, PCI_BASE_ADDRESS_SPACE_IO, (uint32_t)mask);
        return 0;
    }
    if (size < 16 || (flags & ~(OB_PCI_BAR_64 | OB_PCI_BAR_PREFETCH)))
        return -EINVAL;
    if (flags & OB_PCI_BAR_64) {
        if (bar == 5)
            return -EINVAL;
        put32(pci, offset + 4, 0, (uint32_t)(mask >> 32));
    } else if (size > (uint64_t)1 << 31) {
        return -EINVAL;
    }
    put32(pci, offset,
          (flags & OB_PCI_BAR_64 ? PCI_BASE_ADDRESS_MEM_TYPE_64 : 0) |
              (flags & OB_PCI_BAR_PREFETCH ? PCI_BASE_ADDRESS_MEM_PREFETCH : 0),
          (uint32_t)mask);
    return 0;
}

int ob_pci_set_rom(struct ob_server *server, uint64_t size)
{
    if (size == 0) {
        put32(&server->pci, PCI_ROM_ADDRESS, 0, 0);
        return 0;
    }
    if (!is_power_of_two(size) || size < 2048 || size > (uint64_t)1 << 31)
        return -EINVAL;
    put32(&server->pci, PCI_ROM_ADDRESS, 0, (uint32_t) ~(size - 1) | PCI_ROM_ADDRESS_ENABLE);
    return 0;
}

void ob_pci_fini(struct ob_server *server)
{
    free(server->pci.msix_table);
}
