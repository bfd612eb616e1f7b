/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who a device is: what the server says of it, and the part of config space that never changes. A
 * server that comes back must be the same device, or what the guest knows of it would be wrong.
 */
#include "client/memo.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void ob_identity_fini(struct ob_identity *id)
{
    for (uint32_t i = 0; id->regions && i < id->info.num_regions; i++)
        ob_region_info_fini(&id->regions[i]);
    free(id->regions);
    free(id->irqs);
    *id = (struct ob_identity){ 0 };
}

/* What a server does not want to talk about it does not have. */
static int ask_regions(struct ob_client *c, struct ob_identity *id)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < id->info.num_regions; i++) {
        rc = ob_client_region_info(c, i, &id->regions[i]);
        if (ob_err_is_final(rc))
            rc = 0;
    }
    for (uint32_t i = 0; rc == 0 && i < id->info.num_irqs; i++) {
        rc = ob_client_irq_info(c, i, &id->irqs[i]);
        if (ob_err_is_final(rc))
            rc = 0;
    }
    return rc;
}

static int ask_config(struct ob_client *c, struct ob_identity *id)
{
    uint64_t size = id->info.num_regions > OB_PCI_REGION_CONFIG
                        ? id->regions[OB_PCI_REGION_CONFIG].layout.size
                        : 0;
    int rc;

    if (!(id->info.flags & OB_DEVICE_PCI) || size == 0)
        return 0;
    rc = ob_client_region_read(c, OB_PCI_REGION_CONFIG, 0, id->config,
                               size < OB_MEMO_CONFIG ? (uint32_t)size : OB_MEMO_CONFIG);
    return ob_err_is_final(rc) ? 0 : rc;
}

int ob_identity_ask(struct ob_client *c, struct ob_identity *out)
{
    struct ob_identity id = { 0 };
    int rc = ob_client_device_info(c, &id.info);

    if (rc < 0)
        return rc;
    id.regions = calloc(id.info.num_regions + 1, sizeof(*id.regions));
    id.irqs = calloc(id.info.num_irqs + 1, sizeof(*id.irqs));
    for (uint32_t i = 0; id.regions && i < id.info.num_regions; i++)
        id.regions[i].fd = -1;
    rc = id.regions && id.irqs ? ask_regions(c, &id) : -ENOMEM;
    if (rc == 0)
        rc = ask_config(c, &id);
    if (rc < 0)
        ob_identity_fini(&id);
    else
        *out = id;
    return rc;
}

static bool same_areas(const struct ob_region_layout *a, const struct ob_region_layout *b)
{
    return a->nareas == b->nareas &&
           memcmp(a->areas, b->areas, a->nareas * sizeof(a->areas[0])) == 0;
}

/* Where the region lies in its file is the server's business. */
static const char *region_differs(uint32_t index, const struct ob_region_layout *was,
                                  const struct ob_region_layout *is, char *buf, size_t size)
{
    if (was->size != is->size)
        snprintf(buf, size, "its region %u (%s) has %llu bytes, not %llu", index,
                 ob_strregion(index), (unsigned long long)is->size, (unsigned long long)was->size);
    else if (was->flags != is->flags || was->type != is->type || was->subtype != is->subtype)
        snprintf(buf, size, "its region %u (%s) is of another kind (flags 0x%x, not 0x%x)", index,
                 ob_strregion(index), is->flags, was->flags);
    else if (!same_areas(was, is))
        snprintf(buf, size, "other parts of its region %u (%s) can be mapped", index,
                 ob_strregion(index));
    else
        return NULL;
    return buf;
}

static const char *config_differs(const uint8_t *was, const uint8_t *is, char *buf, size_t size)
{
    static const struct {
        uint8_t offset, len;
        const char *name;
    } constant[] = {
        { PCI_VENDOR_ID, 2, "vendor ID" },
        { PCI_DEVICE_ID, 2, "device ID" },
        { PCI_REVISION_ID, 1, "revision" },
        { PCI_CLASS_PROG, 3, "class code" },
        { PCI_SUBSYSTEM_VENDOR_ID, 2, "subsystem vendor ID" },
        { PCI_SUBSYSTEM_ID, 2, "subsystem ID" },
    };

    for (size_t i = 0; i < sizeof(constant) / sizeof(constant[0]); i++) {
        unsigned at = constant[i].offset, len = constant[i].len;
        uint32_t a = 0, b = 0;

        memcpy(&a, was + at, len);
        memcpy(&b, is + at, len);
        if (a != b) {
            snprintf(buf, size, "its %s is 0x%0*x, not 0x%0*x", constant[i].name, (int)len * 2, b,
                     (int)len * 2, a);
            return buf;
        }
    }
    return NULL;
}

static bool same_cap(const uint8_t *was, const uint8_t *is)
{
    return was[PCI_CAP_LIST_ID] == is[PCI_CAP_LIST_ID] &&
           was[PCI_CAP_LIST_NEXT] == is[PCI_CAP_LIST_NEXT] &&
           (was[PCI_CAP_LIST_ID] != PCI_CAP_ID_MSIX ||
            (was[PCI_MSIX_FLAGS] == is[PCI_MSIX_FLAGS] &&
             memcmp(was + PCI_MSIX_TABLE, is + PCI_MSIX_TABLE, 8) == 0));
}

/* The list itself, and where MSI-X is, never change; the rest of a capability may. */
static const char *caps_differ(const uint8_t *was, const uint8_t *is, char *buf, size_t size)
{
    unsigned at = PCI_CAPABILITY_LIST, next = was[at];
    bool same = next == is[at];

    for (unsigned i = 0; same && i < OB_MEMO_CONFIG / 4; i++) {
        at = next & ~3u;
        if (at < PCI_STD_HEADER_SIZEOF || at > OB_MEMO_CONFIG - PCI_CAP_MSIX_SIZEOF)
            break;
        same = same_cap(was + at, is + at);
        next = was[at + PCI_CAP_LIST_NEXT];
    }
    if (same)
        return NULL;
    snprintf(buf, size, "it has other capabilities in config space, from 0x%02x on", at);
    return buf;
}

const char *ob_identity_differs(const struct ob_identity *was, const struct ob_identity *is,
                                char *buf, size_t size)
{
    const char *why = NULL;

    if (was->info.flags != is->info.flags || was->info.num_regions != is->info.num_regions ||
        was->info.num_irqs != is->info.num_irqs) {
        snprintf(buf, size,
                 "it has %u regions and %u interrupt indexes (flags 0x%x), not %u and %u (0x%x)",
                 is->info.num_regions, is->info.num_irqs, is->info.flags, was->info.num_regions,
                 was->info.num_irqs, was->info.flags);
        return buf;
    }
    why = config_differs(was->config, is->config, buf, size);
    if (!why)
        why = caps_differ(was->config, is->config, buf, size);
    for (uint32_t i = 0; !why && i < was->info.num_regions; i++)
        why = region_differs(i, &was->regions[i].layout, &is->regions[i].layout, buf, size);
    for (uint32_t i = 0; !why && i < was->info.num_irqs; i++) {
        if (was->irqs[i].count != is->irqs[i].count || was->irqs[i].flags != is->irqs[i].flags) {
            snprintf(buf, size, "it has %u interrupts of index %u (%s; flags 0x%x), not %u (0x%x)",
                     is->irqs[i].count, i, ob_strirq(i), is->irqs[i].flags, was->irqs[i].count,
                     was->irqs[i].flags);
            why = buf;
        }
    }
    return why;
}
