/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the library keeps of a device, as bytes: config space, the MSI-X table, which interrupts are
 * pending. Only a device that looks the same takes it: the bits of config space that a client
 * cannot write, and the numbers of interrupts, must be equal.
 */
#include "server/internal.h"

#include <linux/pci_regs.h>
#include <string.h>

struct state_head { /* then config space, MSI-X table, a bit for each vector of each IRQ index */
    uint32_t config_size;
    uint32_t msix_vectors;
    uint32_t num_irqs;
    uint32_t total;
};

static size_t table_size(const struct ob_server *server)
{
    return (size_t)server->pci.msix_vectors * PCI_MSIX_ENTRY_SIZE;
}

static size_t pending_size(const struct ob_server *server)
{
    size_t vectors = 0;

    for (uint32_t i = 0; i < server->num_irqs; i++)
        vectors += server->irqs[i].count;
    return (vectors + 7) / 8;
}

size_t ob_pci_state_size(const struct ob_server *server)
{
    return sizeof(struct state_head) + server->pci.size + table_size(server) + pending_size(server);
}

static struct state_head head_of(const struct ob_server *server)
{
    return (struct state_head){ server->pci.size, server->pci.msix_vectors, server->num_irqs,
                                (uint32_t)ob_pci_state_size(server) };
}

/* Config space without what follows from the state of interrupts. */
static void get_config(const struct ob_pci *pci, uint8_t *out)
{
    memcpy(out, pci->config, pci->size);
    out[PCI_STATUS] &= (uint8_t)~PCI_STATUS_INTERRUPT;
    if (pci->msi)
        memset(out + pci->msi + PCI_MSI_PENDING_64, 0, 4);
}

/* Calls back for every vector, with the number of its bit. */
static void each_vector(struct ob_server *server, uint8_t *bits,
                        void (*visit)(struct ob_server *server, uint32_t index, uint32_t vector,
                                      uint8_t *byte, uint8_t bit))
{
    size_t n = 0;

    for (uint32_t i = 0; i < server->num_irqs; i++)
        for (uint32_t k = 0; k < server->irqs[i].count; k++, n++)
            visit(server, i, k, &bits[n / 8], (uint8_t)(1u << n % 8));
}

static void save_pending(struct ob_server *server, uint32_t index, uint32_t vector, uint8_t *byte,
                         uint8_t bit)
{
    if (ob_irq_pending(server, index, vector))
        *byte |= bit;
}

/* NOLINTNEXTLINE(readability-non-const-parameter): one of each_vector()'s callbacks */
static void load_pending(struct ob_server *server, uint32_t index, uint32_t vector, uint8_t *byte,
                         uint8_t bit)
{
    ob_irq_set_pending(server, index, vector, *byte & bit);
}

void ob_pci_state_get(struct ob_server *server, void *out)
{
    const struct state_head head = head_of(server);
    uint8_t *at = out;

    memset(out, 0, head.total);
    memcpy(at, &head, sizeof(head));
    at += sizeof(head);
    get_config(&server->pci, at);
    at += server->pci.size;
    if (server->pci.msix_table)
        memcpy(at, server->pci.msix_table, table_size(server));
    each_vector(server, at + table_size(server), save_pending);
}

bool ob_pci_state_ok(struct ob_server *server, const void *state, size_t len)
{
    const struct ob_pci *pci = &server->pci;
    const struct state_head head = head_of(server);
    const uint8_t *config = (const uint8_t *)state + sizeof(head);
    uint8_t ours[sizeof(pci->config)];

    if (len != head.total || memcmp(state, &head, sizeof(head)) != 0)
        return false;
    get_config(pci, ours);
    for (uint32_t i = 0; i < pci->size; i++)
        if ((config[i] ^ ours[i]) & ~pci->writable[i])
            return false;
    if (pci->pm) { /* D1 and D2 are not there */
        uint8_t power = config[pci->pm + PCI_PM_CTRL] & PCI_PM_CTRL_STATE_MASK;

        return power == 0 || power == 3;
    }
    return true;
}

void ob_pci_state_set(struct ob_server *server, const void *state)
{
    struct ob_pci *pci = &server->pci;
    const uint8_t *at = (const uint8_t *)state + sizeof(struct state_head);

    memcpy(pci->config, at, pci->size);
    at += pci->size;
    if (pci->msix_table)
        memcpy(pci->msix_table, at, table_size(server));
    each_vector(server, (uint8_t *)at + table_size(server), load_pending);
    ob_pci_config_masks(server);
}
