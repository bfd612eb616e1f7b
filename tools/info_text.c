/* SPDX-License-Identifier: BSD-3-Clause */
/* `outboard info` for people. */
#include "info.h"

#include <inttypes.h>

static const char *size_text(uint64_t size, char *buf, size_t len)
{
    static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    unsigned unit = 0;

    while (size >= 1024 && size % 1024 == 0) {
        size /= 1024;
        unit++;
    }
    snprintf(buf, len, "%" PRIu64 " %s", size, units[unit]);
    return buf;
}

static void print_identity(const struct info_report *report, FILE *out)
{
    const struct pci_space *space = &report->space;
    uint32_t class_code = pci_get32(space, 8) >> 8;
    char text[128];

    if (space->len == 0 && report->config_error)
        fprintf(out, "config     cannot be read: %s\n",
                ob_strerror(report->config_error, text, sizeof(text)));
    else if (space->len == 0)
        fprintf(out, "config     none: this is no PCI device\n");
    if (space->len == 0)
        return;
    fprintf(out, "device     %04x:%04x (rev %02x)\n", pci_get16(space, 0), pci_get16(space, 2),
            pci_get8(space, 8));
    fprintf(out, "subsystem  %04x:%04x\n", pci_get16(space, 0x2c), pci_get16(space, 0x2e));
    fprintf(out, "class      %06x %s\n", class_code, pci_class_name(class_code));
}

static void print_kind(const struct info_report *report, unsigned index, FILE *out)
{
    static const char *const kinds[] = { "", "I/O ports, ", "32-bit memory, ", "64-bit memory, " };
    struct pci_bar bar;

    if (index > OB_PCI_REGION_BAR5 || report->space.len == 0)
        return;
    bar = pci_decode_bar(&report->space, index);
    fprintf(out, "%s%s", kinds[bar.kind], bar.prefetch ? "prefetchable, " : "");
}

static void print_region(const struct info_report *report, unsigned index, FILE *out)
{
    const struct info_region *region = &report->regions[index];
    const struct ob_region_layout *layout = &region->layout;
    struct ob_sparse_area area;
    char text[128], name[24];

    snprintf(name, sizeof(name), "%s", ob_strregion(index));
    if (index >= OB_PCI_REGIONS)
        snprintf(name, sizeof(name), "region %u", index);
    fprintf(out, "  %-9s ", name);
    if (!region->known) {
        fprintf(out, "not described: %s\n", ob_strerror(region->error, text, sizeof(text)));
        return;
    }
    print_kind(report, index, out);
    fprintf(out, "%s%s%s", size_text(layout->size, text, sizeof(text)),
            layout->flags & OB_REGION_READ ? "" : ", not readable",
            layout->flags & OB_REGION_WRITE ? "" : ", not writable");
    if (layout->type || layout->subtype)
        fprintf(out, ", type 0x%x subtype 0x%x", layout->type, layout->subtype);
    for (uint32_t i = 0; info_area(region, i, &area); i++)
        fprintf(out, "%s 0x%" PRIx64 "-0x%" PRIx64, i ? "," : ", mappable at", area.offset,
                area.offset + area.size - 1);
    if (info_area(region, 0, &area) && !region->sealed)
        fprintf(out, " (of a file that can shrink)");
    fprintf(out, "\n");
}

static void print_regions(const struct info_report *report, FILE *out)
{
    fprintf(out, "regions\n");
    for (unsigned i = 0; i < report->device.num_regions; i++)
        if (info_region_exists(&report->regions[i]))
            print_region(report, i, out);
}

static void print_irqs(const struct info_report *report, FILE *out)
{
    bool any = false;
    char text[128];

    fprintf(out, "interrupts\n");
    for (unsigned i = 0; i < report->device.num_irqs; i++) {
        const struct info_irq *irq = &report->irqs[i];
        uint32_t flags = irq->info.flags;

        any |= !irq->known || irq->info.count > 0;
        if (!irq->known)
            fprintf(out, "  %-9s not described: %s\n", ob_strirq(i),
                    ob_strerror(irq->error, text, sizeof(text)));
        else if (irq->info.count > 0)
            fprintf(out, "  %-9s %u%s%s%s\n", ob_strirq(i), irq->info.count,
                    flags & OB_IRQ_EVENTFD ? "" : ", without eventfd",
                    flags & OB_IRQ_MASKABLE ? ", maskable" : "",
                    flags & OB_IRQ_AUTOMASKED ? ", automasked" : "");
    }
    if (!any)
        fprintf(out, "  none\n");
}

static void print_field(const struct pci_field *field, FILE *out)
{
    switch (field->kind) {
    case PCI_NUMBER:
        fprintf(out, " %s %" PRIu64, field->key, field->number);
        break;
    case PCI_HEX:
        fprintf(out, " %s 0x%" PRIx64, field->key, field->number);
        break;
    case PCI_FLAG:
        fprintf(out, " %s%c", field->key, field->number ? '+' : '-');
        break;
    case PCI_TEXT:
        fprintf(out, " %s %s", field->key, field->text);
        break;
    }
}

static void print_caps(const struct info_report *report, FILE *out)
{
    fprintf(out, "capabilities\n");
    for (unsigned i = 0; i < report->pci_caps.ncaps; i++) {
        const struct pci_cap *cap = &report->pci_caps.caps[i];
        char where[16];

        snprintf(where, sizeof(where), "[%02x]", cap->offset);
        fprintf(out, "  %-9s %s", where, cap->name);
        if (cap->extended)
            fprintf(out, " v%u", cap->version);
        fprintf(out, "%s", cap->nfields ? ":" : "");
        for (unsigned f = 0; f < cap->nfields; f++)
            print_field(&cap->fields[f], out);
        fprintf(out, "\n");
    }
    if (report->pci_caps.error[0])
        fprintf(out, "  broken    %s\n", report->pci_caps.error);
    else if (report->pci_caps.ncaps == 0)
        fprintf(out, "  none\n");
}

static void print_limits(const struct info_report *report, FILE *out)
{
    const struct ob_caps *caps = &report->caps;
    char text[64];

    fprintf(out, "server takes\n");
    fprintf(out, "  messages  %s of data, %u file descriptors%s\n",
            size_text(caps->max_data_xfer_size, text, sizeof(text)), caps->max_msg_fds,
            caps->write_multiple ? ", several writes in one" : "");
    fprintf(out, "  DMA maps  %u, page sizes 0x%" PRIx64 "\n", caps->max_dma_maps, caps->pgsizes);
    fprintf(out, "  reset     %s\n", report->device.flags & OB_DEVICE_RESET ? "yes" : "no");
    fprintf(out, "  migration %s\n", caps->migration ? "yes" : "no");
}

void info_print_text(const struct info_report *report, FILE *out)
{
    print_identity(report, out);
    print_regions(report, out);
    print_irqs(report, out);
    if (report->space.len > 0)
        print_caps(report, out);
    print_limits(report, out);
}
