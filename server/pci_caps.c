/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Capabilities in PCI config space, one behind the other from 0x40 on, chained in the order they
 * were added; and what writing to them does.
 *
 * Mask bits. Those of MSI, which are in config space, are obeyed here. Those of the MSI-X table
 * are kept but not obeyed: clients that emulate MSI-X (QEMU, cloud-hypervisor) never forward
 * writes to the table, and all its vectors come out of reset masked.
 */
#include "server/internal.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <stdlib.h>
#include <string.h>

#define CAP_HEADER  2 /* bytes: id and link */
#define PM_SIZE     8
#define PCIE_SIZE   0x3c
#define MSI_SIZE    24
#define MSIX_SIZE   12
#define MSI_MASK    PCI_MSI_MASK_64
#define MSI_PENDING PCI_MSI_PENDING_64

static bool touches(uint32_t offset, uint32_t count, uint32_t at, uint32_t len)
{
    return offset < at + len && at < offset + count;
}

static void set16(uint8_t *cap, uint32_t offset, uint16_t value)
{
    memcpy(cap + offset, &value, sizeof(value));
}

static void set32(uint8_t *cap, uint32_t offset, uint32_t value)
{
    memcpy(cap + offset, &value, sizeof(value));
}

static uint32_t get32(const uint8_t *config, uint32_t offset)
{
    uint32_t value;

    memcpy(&value, config + offset, sizeof(value));
    return value;
}

/* cap has the two header bytes, whose contents are set here. Returns where it was put. */
static int add_cap(struct ob_server *server, uint8_t id, uint8_t *cap, const uint8_t *writable,
                   size_t len)
{
    struct ob_pci *pci = &server->pci;
    size_t size = (len + 3) / 4 * 4;
    uint8_t at = pci->end,
            link = pci->last_cap ? pci->last_cap + PCI_CAP_LIST_NEXT : PCI_CAPABILITY_LIST;
    uint8_t status = PCI_STATUS_CAP_LIST;

    if (!pci->present || server->session)
        return -EINVAL;
    if (at == 0 || size > 256u - at) /* 0: the last one ended at 256 */
        return -ENOSPC;
    cap[PCI_CAP_LIST_ID] = id;
    cap[PCI_CAP_LIST_NEXT] = 0;
    ob_pci_put(pci, at, cap, writable, len);
    ob_pci_put(pci, link, &at, NULL, 1);
    ob_pci_put(pci, PCI_STATUS, &status, NULL, 1);
    pci->last_cap = at;
    pci->end = (uint8_t)(at + size);
    return at;
}

int ob_pci_add_cap(struct ob_server *server, uint8_t id, const void *body, size_t len,
                   const void *writable)
{
    uint8_t cap[256] = { 0 }, mask[256] = { 0 };

    if (len > sizeof(cap) - CAP_HEADER)
        return -ENOSPC;
    memcpy(cap + CAP_HEADER, body, len);
    if (writable)
        memcpy(mask + CAP_HEADER, writable, len);
    return add_cap(server, id, cap, mask, CAP_HEADER + len);
}

/* D0 and D3hot; no reset on the way back. */
int ob_pci_add_pm(struct ob_server *server)
{
    uint8_t cap[PM_SIZE] = { 0 }, mask[PM_SIZE] = { 0 };
    int at;

    set16(cap, PCI_PM_PMC, 3);
    set16(cap, PCI_PM_CTRL, PCI_PM_CTRL_NO_SOFT_RESET);
    set16(mask, PCI_PM_CTRL, PCI_PM_CTRL_STATE_MASK);
    at = add_cap(server, PCI_CAP_ID_PM, cap, mask, sizeof(cap));
    if (at > 0)
        server->pci.pm = (uint8_t)at;
    return at;
}

/* A link of one lane at the first speed: nothing is carried over it. */
int ob_pci_add_pcie(struct ob_server *server)
{
    uint8_t cap[PCIE_SIZE] = { 0 }, mask[PCIE_SIZE] = { 0 };
    int at;

    if (server->pci.size != 4096)
        return -EINVAL;
    set16(cap, PCI_EXP_FLAGS, 2 | PCI_EXP_TYPE_ENDPOINT << 4);
    set32(cap, PCI_EXP_DEVCAP, PCI_EXP_DEVCAP_RBER | (server->ops.reset ? PCI_EXP_DEVCAP_FLR : 0));
    set16(cap, PCI_EXP_DEVCTL,
          PCI_EXP_DEVCTL_RELAX_EN | PCI_EXP_DEVCTL_NOSNOOP_EN | PCI_EXP_DEVCTL_READRQ_512B);
    set16(mask, PCI_EXP_DEVCTL, 0xffff);
    set32(cap, PCI_EXP_LNKCAP, PCI_EXP_LNKCAP_SLS_2_5GB | 1 << 4);
    set16(mask, PCI_EXP_LNKCTL,
          PCI_EXP_LNKCTL_ASPMC | PCI_EXP_LNKCTL_RCB | PCI_EXP_LNKCTL_CCC | PCI_EXP_LNKCTL_ES);
    set16(cap, PCI_EXP_LNKSTA, PCI_EXP_LNKSTA_CLS_2_5GB | PCI_EXP_LNKSTA_NLW_X1);
    set32(cap, PCI_EXP_LNKCAP2, PCI_EXP_LNKCAP2_SLS_2_5GB);
    set16(cap, PCI_EXP_LNKCTL2, PCI_EXP_LNKCTL2_TLS_2_5GT);
    at = add_cap(server, PCI_CAP_ID_EXP, cap, mask, sizeof(cap));
    if (at > 0)
        server->pci.pcie = (uint8_t)at;
    return at;
}

int ob_pci_add_msi(struct ob_server *server, unsigned vectors)
{
    uint8_t cap[MSI_SIZE] = { 0 }, mask[MSI_SIZE] = { 0 };
    int at, rc;

    if (vectors == 0 || vectors > 32 || (vectors & (vectors - 1)) || server->pci.msi)
        return -EINVAL;
    set16(cap, PCI_MSI_FLAGS,
          (uint16_t)(PCI_MSI_FLAGS_64BIT | PCI_MSI_FLAGS_MASKBIT | __builtin_ctz(vectors) << 1));
    set16(mask, PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE);
    set32(mask, PCI_MSI_ADDRESS_LO, ~3u);
    set32(mask, PCI_MSI_ADDRESS_HI, ~0u);
    set16(mask, PCI_MSI_DATA_64, 0xffff);
    set32(mask, MSI_MASK, vectors == 32 ? ~0u : (1u << vectors) - 1);
    rc = ob_server_set_irq(server, OB_PCI_IRQ_MSI, vectors, OB_IRQ_EVENTFD | OB_IRQ_MASKABLE);
    if (rc < 0)
        return rc;
    at = add_cap(server, PCI_CAP_ID_MSI, cap, mask, sizeof(cap));
    if (at > 0) {
        server->pci.msi = (uint8_t)at;
        server->pci.msi_vectors = vectors;
    }
    return at;
}

/* ---- MSI-X -------------------------------------------------------------------------------- */

static void access_table(struct ob_server *server, uint64_t offset, uint8_t *data, uint32_t count,
                         bool is_write)
{
    uint8_t *at = server->pci.msix_table + offset;

    if (!is_write) {
        memcpy(data, at, count);
        return;
    }
    memcpy(at, data, count);
    ob_pci_changed(server);
}

static void access_pba(struct ob_server *server, uint64_t offset, uint8_t *data, uint32_t count,
                       bool is_write)
{
    if (is_write)
        return; /* read-only */
    memset(data, 0, count);
    for (uint64_t bit = 0; bit < (uint64_t)count * 8; bit++)
        if (ob_irq_pending(server, OB_PCI_IRQ_MSIX, (uint32_t)(offset * 8 + bit)))
            data[bit / 8] |= (uint8_t)(1u << bit % 8);
}

int ob_pci_add_msix(struct ob_server *server, unsigned vectors, unsigned table_bar,
                    uint32_t table_offset, unsigned pba_bar, uint32_t pba_offset)
{
    struct ob_overlay table = { table_bar, table_offset, vectors * PCI_MSIX_ENTRY_SIZE,
                                access_table };
    struct ob_overlay pba = { pba_bar, pba_offset, (vectors + 63) / 64 * 8, access_pba };
    uint8_t cap[MSIX_SIZE] = { 0 }, mask[MSIX_SIZE] = { 0 };
    struct ob_pci *pci = &server->pci;
    int at, rc;

    if (vectors == 0 || vectors > OB_IRQ_VECTORS_MAX || table_bar > 5 || pba_bar > 5 ||
        (table_offset | pba_offset) % 8 || pci->msix)
        return -EINVAL;
    if (table_bar == pba_bar && table.offset < pba.offset + pba.size &&
        pba.offset < table.offset + table.size)
        return -EINVAL;
    set16(cap, PCI_MSIX_FLAGS, (uint16_t)(vectors - 1));
    set16(mask, PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    set32(cap, PCI_MSIX_TABLE, table_offset | table_bar);
    set32(cap, PCI_MSIX_PBA, pba_offset | pba_bar);
    pci->msix_table = calloc(vectors, PCI_MSIX_ENTRY_SIZE);
    if (!pci->msix_table)
        return -ENOMEM;
    rc = ob_server_set_irq(server, OB_PCI_IRQ_MSIX, vectors, OB_IRQ_EVENTFD | OB_IRQ_MASKABLE);
    at = rc < 0 ? rc : add_cap(server, PCI_CAP_ID_MSIX, cap, mask, sizeof(cap));
    if (at < 0) {
        free(pci->msix_table);
        pci->msix_table = NULL;
        return at;
    }
    pci->msix = (uint8_t)at;
    pci->msix_vectors = vectors;
    ob_pci_reset_msix(pci);
    ob_region_overlay(server, &table);
    ob_region_overlay(server, &pba);
    return at;
}

void ob_pci_reset_msix(struct ob_pci *pci)
{
    for (unsigned i = 0; i < pci->msix_vectors; i++) {
        uint8_t *entry = pci->msix_table + i * PCI_MSIX_ENTRY_SIZE;

        memset(entry, 0, PCI_MSIX_ENTRY_SIZE);
        entry[PCI_MSIX_ENTRY_VECTOR_CTRL] = PCI_MSIX_ENTRY_CTRL_MASKBIT;
    }
}

/* ---- At run time -------------------------------------------------------------------------- */

void ob_pci_caps_refresh(struct ob_server *server)
{
    struct ob_pci *pci = &server->pci;
    uint32_t pending = 0;

    if (!pci->msi)
        return;
    for (unsigned i = 0; i < pci->msi_vectors; i++)
        if (ob_irq_pending(server, OB_PCI_IRQ_MSI, i))
            pending |= 1u << i;
    set32(pci->config, pci->msi + MSI_PENDING, pending);
}

void ob_pci_mask_msi(struct ob_server *server)
{
    struct ob_pci *pci = &server->pci;
    uint32_t masks = get32(pci->config, pci->msi + MSI_MASK);

    for (unsigned i = 0; i < pci->msi_vectors; i++)
        ob_irq_config_mask(server, OB_PCI_IRQ_MSI, i, masks >> i & 1);
}

void ob_pci_caps_written(struct ob_server *server, uint32_t offset, uint32_t count,
                         const uint8_t *before)
{
    struct ob_pci *pci = &server->pci;
    uint32_t pm = pci->pm + PCI_PM_CTRL, flr = pci->pcie + PCI_EXP_DEVCTL + 1;
    uint8_t state = pci->config[pm] & PCI_PM_CTRL_STATE_MASK;

    /* D1 and D2 are not there: the state stays. */
    if (pci->pm && touches(offset, count, pm, 1) && (state == 1 || state == 2))
        pci->config[pm] = before[pm];
    if (pci->msi && touches(offset, count, pci->msi + MSI_MASK, 4))
        ob_pci_mask_msi(server);
    if (pci->pcie && touches(offset, count, flr, 1) &&
        (pci->config[flr] & PCI_EXP_DEVCTL_BCR_FLR >> 8)) {
        pci->config[flr] &= (uint8_t) ~(PCI_EXP_DEVCTL_BCR_FLR >> 8); /* always reads 0 */
        if (server->ops.reset)
            ob_pci_reset(server);
    }
}

int ob_pci_notify(struct ob_server *server, unsigned vector)
{
    uint32_t armed;
    int rc;

    if (ob_server_irq_armed(server, OB_PCI_IRQ_MSIX)) {
        rc = ob_server_irq_trigger(server, OB_PCI_IRQ_MSIX, vector);
        return rc < 0 ? rc : OB_PCI_IRQ_MSIX;
    }
    armed = ob_server_irq_armed(server, OB_PCI_IRQ_MSI);
    if (armed == 0)
        return -ENOENT;
    rc = ob_server_irq_trigger(server, OB_PCI_IRQ_MSI, vector % armed);
    return rc < 0 ? rc : OB_PCI_IRQ_MSI;
}
