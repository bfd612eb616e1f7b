/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reads a PCI config space that somebody else wrote. Nothing in it is believed: lists that loop or
 * lead nowhere end with a sentence, and what lies past the end reads as zero.
 */
#ifndef OB_TOOLS_PCIDUMP_H
#define OB_TOOLS_PCIDUMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pci_space {
    const uint8_t *data;
    size_t len;
};

uint8_t pci_get8(const struct pci_space *space, size_t at);
uint16_t pci_get16(const struct pci_space *space, size_t at);
uint32_t pci_get32(const struct pci_space *space, size_t at);

#define PCI_CAPS_MAX   64u /* capabilities we list */
#define PCI_FIELDS_MAX 8u  /* what we say about one */

enum pci_field_kind { PCI_NUMBER, PCI_HEX, PCI_FLAG, PCI_TEXT };

/* Something that is known about a capability: a key of the JSON output, a word of the other. */
struct pci_field {
    const char *key;
    enum pci_field_kind kind;
    uint64_t number;
    char text[24];
};

struct pci_cap {
    uint16_t offset, id;
    uint8_t version; /* extended ones */
    bool extended;
    const char *name;
    unsigned nfields;
    struct pci_field fields[PCI_FIELDS_MAX];
};

struct pci_caps {
    unsigned ncaps;
    struct pci_cap caps[PCI_CAPS_MAX];
    char error[80]; /* what is wrong with the lists; empty: nothing */
};

void pci_decode_caps(const struct pci_space *space, struct pci_caps *out);

/* "NVM Express controller"; class_code is class, subclass, programming interface. Never NULL. */
const char *pci_class_name(uint32_t class_code);

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO_PORTS, PCI_BAR_MEM32, PCI_BAR_MEM64 };

struct pci_bar {
    enum pci_bar_kind kind; /* NONE: the upper half of the one before */
    bool prefetch;
};

/* What the register of BAR n (0-5) says. */
struct pci_bar pci_decode_bar(const struct pci_space *space, unsigned n);

#endif
