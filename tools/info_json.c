/* SPDX-License-Identifier: BSD-3-Clause */
/* `outboard info --json`. The keys are a contract: `outboard info --help` lists them. */
#include "info.h"

#include <inttypes.h>
#include <jansson.h>

/* Jansson reports a failed allocation by a NULL or by a failed set; each is remembered, so that
 * an object with holes is never printed. */
static bool failed;

static void put(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) < 0)
        failed = true;
}

static void put_number(json_t *object, const char *key, uint64_t value)
{
    put(object, key, json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value));
}

static void put_flag(json_t *object, const char *key, bool value)
{
    put(object, key, json_boolean(value));
}

static void append(json_t *array, json_t *value)
{
    if (json_array_append_new(array, value) < 0)
        failed = true;
}

static void put_identity(const struct info_report *report, json_t *root)
{
    const struct pci_space *space = &report->space;
    uint32_t class_code = pci_get32(space, 8) >> 8;
    char text[128];

    put_number(root, "config_size", space->len);
    if (report->config_error)
        put(root, "config_error",
            json_string(ob_strerror(report->config_error, text, sizeof(text))));
    if (space->len == 0)
        return;
    put_number(root, "vendor_id", pci_get16(space, 0));
    put_number(root, "device_id", pci_get16(space, 2));
    put_number(root, "subsystem_vendor_id", pci_get16(space, 0x2c));
    put_number(root, "subsystem_id", pci_get16(space, 0x2e));
    put_number(root, "class", class_code);
    put(root, "class_name", json_string(pci_class_name(class_code)));
    put_number(root, "revision", pci_get8(space, 8));
}

static json_t *areas_of(const struct info_region *region)
{
    json_t *array = json_array();
    struct ob_sparse_area area;

    for (uint32_t i = 0; info_area(region, i, &area); i++) {
        json_t *object = json_object();
        put_number(object, "offset", area.offset);
        put_number(object, "size", area.size);
        append(array, object);
    }
    return array;
}

static void put_bar(const struct info_report *report, unsigned index, json_t *object)
{
    static const char *const types[] = { NULL, "io", "memory32", "memory64" };
    struct pci_bar bar;

    if (index > OB_PCI_REGION_BAR5 || report->space.len == 0)
        return;
    bar = pci_decode_bar(&report->space, index);
    if (types[bar.kind])
        put(object, "type", json_string(types[bar.kind]));
    put_flag(object, "prefetchable", bar.prefetch);
}

static json_t *regions_of(const struct info_report *report)
{
    json_t *array = json_array();
    char text[128];

    for (unsigned i = 0; i < report->device.num_regions; i++) {
        const struct info_region *region = &report->regions[i];
        const struct ob_region_layout *layout = &region->layout;
        if (!info_region_exists(region))
            continue;
        json_t *object = json_object();
        put_number(object, "index", i);
        put(object, "name", json_string(ob_strregion(i)));
        if (!region->known) {
            put(object, "error", json_string(ob_strerror(region->error, text, sizeof(text))));
        } else {
            put_number(object, "size", layout->size);
            put_flag(object, "read", layout->flags & OB_REGION_READ);
            put_flag(object, "write", layout->flags & OB_REGION_WRITE);
            put_bar(report, i, object);
            put(object, "mappable", areas_of(region));
            put_flag(object, "sealed", region->sealed);
        }
        append(array, object);
    }
    return array;
}

static json_t *irqs_of(const struct info_report *report)
{
    json_t *array = json_array();
    char text[128];

    for (unsigned i = 0; i < report->device.num_irqs; i++) {
        const struct info_irq *irq = &report->irqs[i];
        if (irq->known && irq->info.count == 0)
            continue;
        json_t *object = json_object();
        put_number(object, "index", i);
        put(object, "name", json_string(ob_strirq(i)));
        if (!irq->known) {
            put(object, "error", json_string(ob_strerror(irq->error, text, sizeof(text))));
        } else {
            put_number(object, "count", irq->info.count);
            put_flag(object, "eventfd", irq->info.flags & OB_IRQ_EVENTFD);
            put_flag(object, "maskable", irq->info.flags & OB_IRQ_MASKABLE);
            put_flag(object, "automasked", irq->info.flags & OB_IRQ_AUTOMASKED);
        }
        append(array, object);
    }
    return array;
}

static json_t *cap_of(const struct pci_cap *cap)
{
    json_t *object = json_object();

    put_number(object, "offset", cap->offset);
    put_number(object, "id", cap->id);
    put(object, "name", json_string(cap->name));
    put_flag(object, "extended", cap->extended);
    if (cap->extended)
        put_number(object, "version", cap->version);
    for (unsigned i = 0; i < cap->nfields; i++) {
        const struct pci_field *field = &cap->fields[i];
        if (field->kind == PCI_TEXT)
            put(object, field->key, json_string(field->text));
        else if (field->kind == PCI_FLAG)
            put_flag(object, field->key, field->number != 0);
        else
            put_number(object, field->key, field->number);
    }
    return object;
}

static void put_caps(const struct info_report *report, json_t *root)
{
    json_t *array = json_array();

    for (unsigned i = 0; i < report->pci_caps.ncaps; i++)
        append(array, cap_of(&report->pci_caps.caps[i]));
    put(root, "capabilities", array);
    if (report->pci_caps.error[0])
        put(root, "capability_error", json_string(report->pci_caps.error));
}

static json_t *limits_of(const struct ob_caps *caps)
{
    json_t *object = json_object();
    char pgsizes[24]; /* a set of bits, of which JSON's numbers lose some */

    snprintf(pgsizes, sizeof(pgsizes), "0x%" PRIx64, caps->pgsizes);
    put_number(object, "max_msg_fds", caps->max_msg_fds);
    put_number(object, "max_data_xfer_size", caps->max_data_xfer_size);
    put_number(object, "max_dma_maps", caps->max_dma_maps);
    put(object, "pgsizes", json_string(pgsizes));
    put_flag(object, "write_multiple", caps->write_multiple);
    put_flag(object, "migration", caps->migration);
    return object;
}

int info_print_json(const struct info_report *report, FILE *out)
{
    json_t *root = json_object();

    failed = false;
    put_flag(root, "resettable", report->device.flags & OB_DEVICE_RESET);
    put_identity(report, root);
    put(root, "regions", regions_of(report));
    put(root, "interrupts", irqs_of(report));
    put_caps(report, root);
    put(root, "limits", limits_of(&report->caps));
    if (!failed) {
        json_dumpf(root, out, JSON_INDENT(2));
        fputc('\n', out);
    }
    json_decref(root);
    return failed ? -1 : 0;
}
