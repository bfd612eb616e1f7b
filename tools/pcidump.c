/* SPDX-License-Identifier: BSD-3-Clause */
#include "pcidump.h"

#include <stdio.h>
#include <string.h>

#define STATUS          0x06u
#define STATUS_CAP_LIST 0x10u
#define CAP_POINTER     0x34u
#define CAPS_BEGIN      0x40u
#define EXTENDED_BEGIN  0x100u

uint8_t pci_get8(const struct pci_space *space, size_t at)
{
    return at < space->len ? space->data[at] : 0;
}

uint16_t pci_get16(const struct pci_space *space, size_t at)
{
    return (uint16_t)(pci_get8(space, at) | pci_get8(space, at + 1) << 8);
}

uint32_t pci_get32(const struct pci_space *space, size_t at)
{
    return pci_get16(space, at) | (uint32_t)pci_get16(space, at + 2) << 16;
}

/* ---- What each capability says -------------------------------------------------------------- */

static struct pci_field *add_field(struct pci_cap *cap, const char *key, enum pci_field_kind kind,
                                   uint64_t number)
{
    struct pci_field *field = &cap->fields[cap->nfields++];

    *field = (struct pci_field){ .key = key, .kind = kind, .number = number };
    return field;
}

static void add_text(struct pci_cap *cap, const char *key, const char *text)
{
    struct pci_field *field = add_field(cap, key, PCI_TEXT, 0);

    snprintf(field->text, sizeof(field->text), "%s", text);
}

static void decode_pm(const struct pci_space *space, struct pci_cap *cap)
{
    static const char *const states[] = { "D0", "D1", "D2", "D3" };
    uint16_t control = pci_get16(space, cap->offset + 4u);

    add_field(cap, "version", PCI_NUMBER, pci_get16(space, cap->offset + 2u) & 7u);
    add_text(cap, "state", states[control & 3u]);
    add_field(cap, "no_soft_reset", PCI_FLAG, control >> 3 & 1u);
}

static void decode_msi(const struct pci_space *space, struct pci_cap *cap)
{
    uint16_t control = pci_get16(space, cap->offset + 2u);

    add_field(cap, "enabled", PCI_FLAG, control & 1u);
    add_field(cap, "vectors", PCI_NUMBER, 1u << (control >> 1 & 7u));
    add_field(cap, "vectors_enabled", PCI_NUMBER, 1u << (control >> 4 & 7u));
    add_field(cap, "64bit", PCI_FLAG, control >> 7 & 1u);
    add_field(cap, "maskable", PCI_FLAG, control >> 8 & 1u);
}

static void decode_msix(const struct pci_space *space, struct pci_cap *cap)
{
    uint16_t control = pci_get16(space, cap->offset + 2u);
    uint32_t table = pci_get32(space, cap->offset + 4u), pba = pci_get32(space, cap->offset + 8u);

    add_field(cap, "enabled", PCI_FLAG, control >> 15);
    add_field(cap, "masked", PCI_FLAG, control >> 14 & 1u);
    add_field(cap, "vectors", PCI_NUMBER, (control & 0x7ffu) + 1u);
    add_field(cap, "table_bar", PCI_NUMBER, table & 7u);
    add_field(cap, "table_offset", PCI_HEX, table & ~7u);
    add_field(cap, "pba_bar", PCI_NUMBER, pba & 7u);
    add_field(cap, "pba_offset", PCI_HEX, pba & ~7u);
}

static void decode_express(const struct pci_space *space, struct pci_cap *cap)
{
    static const char *const types[16] = {
        "endpoint",
        "legacy endpoint",
        NULL,
        NULL,
        "root port",
        "upstream port",
        "downstream port",
        "PCIe-to-PCI bridge",
        "PCI-to-PCIe bridge",
        "integrated endpoint",
        "event collector",
    };
    uint16_t flags = pci_get16(space, cap->offset + 2u);
    uint32_t device = pci_get32(space, cap->offset + 4u);
    uint16_t link = pci_get16(space, cap->offset + 18u);
    const char *type = types[flags >> 4 & 15u];

    add_field(cap, "version", PCI_NUMBER, flags & 15u);
    add_text(cap, "type", type ? type : "reserved type");
    add_field(cap, "function_reset", PCI_FLAG, device >> 28 & 1u);
    add_field(cap, "max_payload", PCI_NUMBER, 128u << (device & 7u));
    add_field(cap, "link_speed", PCI_NUMBER, link & 15u);
    add_field(cap, "link_width", PCI_NUMBER, link >> 4 & 63u);
}

static void decode_vendor(const struct pci_space *space, struct pci_cap *cap)
{
    add_field(cap, "length", PCI_NUMBER, pci_get8(space, cap->offset + 2u));
}

static void decode_serial(const struct pci_space *space, struct pci_cap *cap)
{
    char text[24];

    snprintf(text, sizeof(text), "%08x%08x", pci_get32(space, cap->offset + 8u),
             pci_get32(space, cap->offset + 4u));
    add_text(cap, "serial", text);
}

struct cap_kind {
    uint16_t id;
    const char *name;
    void (*decode)(const struct pci_space *space, struct pci_cap *cap);
};

static const struct cap_kind kinds[] = {
    { 0x01, "Power Management", decode_pm },
    { 0x02, "AGP", NULL },
    { 0x03, "Vital Product Data", NULL },
    { 0x04, "Slot Identification", NULL },
    { 0x05, "MSI", decode_msi },
    { 0x07, "PCI-X", NULL },
    { 0x09, "Vendor Specific", decode_vendor },
    { 0x0a, "Debug Port", NULL },
    { 0x0d, "Subsystem ID", NULL },
    { 0x10, "PCI Express", decode_express },
    { 0x11, "MSI-X", decode_msix },
    { 0x12, "SATA", NULL },
    { 0x13, "Advanced Features", NULL },
    { 0x14, "Enhanced Allocation", NULL },
    { 0, "unknown", NULL },
};

static const struct cap_kind extended_kinds[] = {
    { 0x01, "Advanced Error Reporting", NULL },
    { 0x02, "Virtual Channel", NULL },
    { 0x03, "Device Serial Number", decode_serial },
    { 0x04, "Power Budgeting", NULL },
    { 0x0b, "Vendor Specific", NULL },
    { 0x0d, "Access Control Services", NULL },
    { 0x0e, "Alternative Routing ID", NULL },
    { 0x0f, "Address Translation Services", NULL },
    { 0x10, "Single Root I/O Virtualization", NULL },
    { 0x13, "Page Request Interface", NULL },
    { 0x15, "Resizable BAR", NULL },
    { 0x17, "TPH Requester", NULL },
    { 0x18, "Latency Tolerance Reporting", NULL },
    { 0x19, "Secondary PCI Express", NULL },
    { 0x1b, "Process Address Space ID", NULL },
    { 0x1d, "Downstream Port Containment", NULL },
    { 0x1e, "L1 PM Substates", NULL },
    { 0x1f, "Precision Time Measurement", NULL },
    { 0x23, "Designated Vendor-Specific", NULL },
    { 0x25, "Data Link Feature", NULL },
    { 0, "unknown", NULL },
};

/* ---- The lists ------------------------------------------------------------------------------ */

/* The next capability to fill; NULL, and a sentence, when the list leads nowhere good. */
static struct pci_cap *next_cap(const struct pci_space *space, struct pci_caps *out, size_t at,
                                size_t begin, size_t end)
{
    if (at < begin || at + 4 > end || at + 4 > space->len || at % 4)
        snprintf(out->error, sizeof(out->error), "the capability list leads to 0x%zx", at);
    else if (out->ncaps == PCI_CAPS_MAX)
        snprintf(out->error, sizeof(out->error), "there are more than %u capabilities",
                 PCI_CAPS_MAX);
    for (unsigned i = 0; i < out->ncaps && !out->error[0]; i++)
        if (out->caps[i].offset == at)
            snprintf(out->error, sizeof(out->error), "the capability list loops at 0x%zx", at);
    if (out->error[0])
        return NULL;
    struct pci_cap *cap = &out->caps[out->ncaps++];
    *cap = (struct pci_cap){ .offset = (uint16_t)at };
    return cap;
}

static void describe_cap(const struct pci_space *space, struct pci_cap *cap)
{
    const struct cap_kind *kind = cap->extended ? extended_kinds : kinds;

    while (kind->id && kind->id != cap->id)
        kind++;
    cap->name = kind->name;
    if (kind->decode)
        kind->decode(space, cap);
}

static void walk_standard(const struct pci_space *space, struct pci_caps *out)
{
    size_t at = pci_get8(space, CAP_POINTER) & ~3u;
    struct pci_cap *cap;

    if (!(pci_get16(space, STATUS) & STATUS_CAP_LIST))
        return;
    for (; at; at = pci_get8(space, at + 1) & ~3u) {
        cap = next_cap(space, out, at, CAPS_BEGIN, EXTENDED_BEGIN);
        if (!cap)
            return;
        cap->id = pci_get8(space, at);
        describe_cap(space, cap);
    }
}

static void walk_extended(const struct pci_space *space, struct pci_caps *out)
{
    uint32_t header = pci_get32(space, EXTENDED_BEGIN);
    size_t at = EXTENDED_BEGIN;
    struct pci_cap *cap;

    if (header == 0 || header == UINT32_MAX)
        return;
    for (; at; at = header >> 20) {
        cap = next_cap(space, out, at, EXTENDED_BEGIN, space->len);
        if (!cap)
            return;
        header = pci_get32(space, at);
        cap->extended = true;
        cap->id = (uint16_t)header;
        cap->version = header >> 16 & 15u;
        describe_cap(space, cap);
    }
}

void pci_decode_caps(const struct pci_space *space, struct pci_caps *out)
{
    out->ncaps = 0;
    out->error[0] = 0;
    walk_standard(space, out);
    if (!out->error[0])
        walk_extended(space, out);
}

/* ---- Header --------------------------------------------------------------------------------- */

struct pci_bar pci_decode_bar(const struct pci_space *space, unsigned n)
{
    for (unsigned i = 0;; i++) {
        uint32_t reg = pci_get32(space, 0x10 + 4 * i);
        bool wide = (reg & 7u) == 4;

        if (i == n && (reg & 1u))
            return (struct pci_bar){ PCI_BAR_IO_PORTS, false };
        if (i == n)
            return (struct pci_bar){ wide ? PCI_BAR_MEM64 : PCI_BAR_MEM32, reg >> 3 & 1u };
        if (wide && ++i == n)
            return (struct pci_bar){ PCI_BAR_NONE, false };
    }
}

/* Class and subclass first, then a class alone (subclass 0xff). */
static const struct {
    uint8_t class, subclass;
    const char *name;
} class_names[] = {
    { 0x01, 0x00, "SCSI controller" },
    { 0x01, 0x06, "SATA controller" },
    { 0x01, 0x08, "NVM Express controller" },
    { 0x02, 0x00, "Ethernet controller" },
    { 0x03, 0x00, "VGA controller" },
    { 0x06, 0x04, "PCI bridge" },
    { 0x07, 0x00, "serial controller" },
    { 0x0c, 0x03, "USB controller" },
    { 0x01, 0xff, "mass storage controller" },
    { 0x02, 0xff, "network controller" },
    { 0x03, 0xff, "display controller" },
    { 0x04, 0xff, "multimedia controller" },
    { 0x05, 0xff, "memory controller" },
    { 0x06, 0xff, "bridge" },
    { 0x07, 0xff, "communication controller" },
    { 0x08, 0xff, "system peripheral" },
    { 0x09, 0xff, "input device" },
    { 0x0a, 0xff, "docking station" },
    { 0x0b, 0xff, "processor" },
    { 0x0c, 0xff, "serial bus controller" },
    { 0x0d, 0xff, "wireless controller" },
    { 0x0e, 0xff, "intelligent controller" },
    { 0x0f, 0xff, "satellite controller" },
    { 0x10, 0xff, "encryption controller" },
    { 0x11, 0xff, "signal processing controller" },
    { 0x12, 0xff, "processing accelerator" },
    { 0x13, 0xff, "instrumentation" },
    { 0x00, 0xff, "unclassified device" },
    { 0xff, 0xff, "unassigned class" },
};

const char *pci_class_name(uint32_t class_code)
{
    uint8_t class = class_code >> 16 & 0xff, subclass = class_code >> 8 & 0xff;

    for (size_t i = 0; i < sizeof(class_names) / sizeof(class_names[0]); i++)
        if (class_names[i].class == class &&
            (class_names[i].subclass == subclass || class_names[i].subclass == 0xff))
            return class_names[i].name;
    return "reserved class";
}
