/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * PCI configuration space for a device built with server.h. The library keeps all of it: identity,
 * BAR registers and their sizing, capabilities, the bits a client may write. Everything here is
 * called before the device is offered, except where it says otherwise.
 */
#ifndef OUTBOARD_PCI_H
#define OUTBOARD_PCI_H

#include "server.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ob_pci_id {
    uint16_t vendor, device;
    uint16_t subsystem_vendor, subsystem;
    uint32_t class_code; /* 24 bits: class, subclass, programming interface */
    uint8_t revision;
};

/*
 * Gives the device a config space (region 7): 4096 bytes when express, else 256. intx: it has an
 * INTA# pin. It also gets the interrupts by which a device speaks of itself, to be signalled with
 * ob_server_irq_trigger(): OB_PCI_IRQ_ERR, it has failed, and OB_PCI_IRQ_REQ, it wants to be
 * unplugged. Since 0.1.
 */
int ob_pci_init(struct ob_server *server, const struct ob_pci_id *id, bool express, bool intx);

#define OB_PCI_BAR_IO       0x1u
#define OB_PCI_BAR_64       0x2u /* takes the next BAR register too */
#define OB_PCI_BAR_PREFETCH 0x4u

/* BAR register for region `bar` (0-5), whose size must be a power of two (memory: >= 16, I/O:
 * 4 to 256). The region itself is set with ob_server_set_region(). */
int ob_pci_add_bar(struct ob_server *server, unsigned bar, uint64_t size, uint32_t flags);

/* Capabilities. Each returns its offset in config space, or a negative errno. */
int ob_pci_add_pm(struct ob_server *server);
int ob_pci_add_pcie(struct ob_server *server); /* endpoint, with function-level reset */
int ob_pci_add_msi(struct ob_server *server, unsigned vectors); /* 64-bit, per-vector masking */
/* The library serves the table and the PBA inside the given regions. Both offsets are multiples
 * of 8; they may share a region. */
int ob_pci_add_msix(struct ob_server *server, unsigned vectors, unsigned table_bar,
                    uint32_t table_offset, unsigned pba_bar, uint32_t pba_offset);
/* Any other capability: body is what follows the two-byte header, writable a mask of the same
 * length (NULL: read-only). */
int ob_pci_add_cap(struct ob_server *server, uint8_t id, const void *body, size_t len,
                   const void *writable);

/* At run time: the command register (memory, I/O, bus master, INTx disable). */
uint16_t ob_pci_command(const struct ob_server *server);
/*
 * Signals an interrupt by what the client has set up: MSI-X if it is armed, else MSI (vectors
 * wrap to those it armed), else nothing: INTx is a level, see ob_server_intx(). Returns the IRQ
 * index used, or -ENOENT. Any thread.
 */
int ob_pci_notify(struct ob_server *server, unsigned vector);

#ifdef __cplusplus
}
#endif
#endif
