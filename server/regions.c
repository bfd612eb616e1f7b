/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Regions, and where an access of the client ends up: in a part that the library serves (MSI-X),
 * in the device's callback, in the memory of the region's fd, or, where a region has neither,
 * nowhere: it reads as zeros. Rules: R-ACCESS-1 to R-ACCESS-7.
 */
#include "server/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static bool areas_overlap(const struct ob_sparse_area *a, const struct ob_sparse_area *b)
{
    return a->offset < b->offset + b->size && b->offset < a->offset + a->size;
}

static bool areas_valid(const struct ob_region *region)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

    if (region->nareas > OB_SPARSE_AREAS_MAX || (region->nareas && !region->areas))
        return false;
    for (uint32_t i = 0; i < region->nareas; i++) {
        const struct ob_sparse_area *area = &region->areas[i];

        if (area->size == 0 || (area->offset | area->size) & (page - 1) ||
            area->offset > region->size || area->size > region->size - area->offset)
            return false;
        for (uint32_t k = 0; k < i; k++)
            if (areas_overlap(area, &region->areas[k]))
                return false;
    }
    return true;
}

/* A region that is mappable as a whole is told as one area: that way the fd goes where every
 * client looks for it. */
static void describe(struct ob_region_layout *layout, const struct ob_region *region)
{
    *layout = (struct ob_region_layout){
        .flags = region->flags,
        .size = region->size,
        .type = region->type,
        .subtype = region->subtype,
    };
    if (!(region->flags & OB_REGION_MMAP))
        return;
    layout->fd_offset = region->fd_offset;
    if (region->nareas) {
        layout->nareas = region->nareas;
        memcpy(layout->areas, region->areas, region->nareas * sizeof(*region->areas));
    } else {
        layout->nareas = 1;
        layout->areas[0] = (struct ob_sparse_area){ 0, region->size };
    }
}

int ob_server_set_region(struct ob_server *server, uint32_t index, const struct ob_region *region)
{
    const uint32_t known = OB_REGION_READ | OB_REGION_WRITE | OB_REGION_MMAP;
    bool mappable = region->flags & OB_REGION_MMAP;
    struct ob_region_slot *slot;

    if (index >= OB_REGIONS_MAX || (region->flags & ~known) || server->session)
        return -EINVAL;
    if (mappable && (region->fd < 0 || region->size == 0 || !areas_valid(region)))
        return -EINVAL;
    if (index == OB_PCI_REGION_ROM && server->pci.present) {
        int rc = ob_pci_set_rom(server, region->size);

        if (rc < 0)
            return rc;
    }
    slot = &server->regions[index];
    describe(&slot->layout, region);
    slot->access = region->access;
    slot->opaque = region->opaque;
    slot->fd = mappable ? region->fd : -1;
    if (index >= server->num_regions)
        server->num_regions = index + 1;
    return 0;
}

void ob_region_overlay(struct ob_server *server, const struct ob_overlay *overlay)
{
    server->overlays[server->num_overlays++] = *overlay;
}

void ob_regions_fini(struct ob_server *server)
{
    for (uint32_t i = 0; i < server->num_regions; i++)
        if (server->regions[i].memory)
            munmap(server->regions[i].memory, server->regions[i].layout.size);
    free(server->scratch);
}

/* A register of natural size is moved in one piece: the other side may be mapping it. */
static void copy_register(void *to, const void *from, uint32_t count)
{
    uint64_t both = (uintptr_t)to | (uintptr_t)from;

    if (count == 8 && both % 8 == 0)
        __atomic_store_n((uint64_t *)to, __atomic_load_n((const uint64_t *)from, __ATOMIC_ACQUIRE),
                         __ATOMIC_RELEASE);
    else if (count == 4 && both % 4 == 0)
        __atomic_store_n((uint32_t *)to, __atomic_load_n((const uint32_t *)from, __ATOMIC_ACQUIRE),
                         __ATOMIC_RELEASE);
    else if (count == 2 && both % 2 == 0)
        __atomic_store_n((uint16_t *)to, __atomic_load_n((const uint16_t *)from, __ATOMIC_ACQUIRE),
                         __ATOMIC_RELEASE);
    else
        memcpy(to, from, count);
}

/* syscalls: mmap(2&PROT_EXEC=0), munmap */
static int access_memory(struct ob_region_slot *slot, uint64_t offset, void *data, uint32_t count,
                         bool is_write)
{
    uint8_t *at;

    if (!slot->memory) {
        int prot = PROT_READ | (slot->layout.flags & OB_REGION_WRITE ? PROT_WRITE : 0);
        void *memory = mmap(NULL, slot->layout.size, prot, MAP_SHARED, slot->fd,
                            (off_t)slot->layout.fd_offset);

        if (memory == MAP_FAILED)
            return -errno;
        slot->memory = memory;
    }
    at = (uint8_t *)slot->memory + offset;
    copy_register(is_write ? (void *)at : data, is_write ? data : (const void *)at, count);
    return 0;
}

static int access_device(struct ob_region_slot *slot, uint64_t offset, void *data, uint32_t count,
                         bool is_write)
{
    if (slot->access) {
        int rc = slot->access(slot->opaque, offset, data, count, is_write);

        return rc < 0 ? rc : 0;
    }
    return slot->fd >= 0 ? access_memory(slot, offset, data, count, is_write) : 0;
}

/* The overlay at offset, or NULL; *count is cut to what lies on one side of its border. */
static const struct ob_overlay *overlay_at(const struct ob_server *server, uint32_t index,
                                           uint64_t offset, uint32_t *count)
{
    for (unsigned i = 0; i < server->num_overlays; i++) {
        const struct ob_overlay *o = &server->overlays[i];
        uint64_t border = offset < o->offset ? o->offset : o->offset + o->size;

        if (o->region != index || offset >= o->offset + o->size)
            continue;
        if (border - offset < *count)
            *count = (uint32_t)(border - offset);
        if (offset >= o->offset)
            return o;
    }
    return NULL;
}

int ob_region_access(struct ob_server *server, uint32_t index, uint64_t offset, void *data,
                     uint32_t count, bool is_write)
{
    struct ob_region_slot *slot;
    uint8_t *at = data;

    if (index >= server->num_regions)
        return -EINVAL;
    slot = &server->regions[index];
    if (!(slot->layout.flags & (is_write ? OB_REGION_WRITE : OB_REGION_READ)) ||
        offset > slot->layout.size || count > slot->layout.size - offset)
        return -EINVAL;
    if (is_write && ob_migration_frozen(server))
        return -EINVAL;
    while (count > 0) {
        uint32_t piece = count;
        const struct ob_overlay *overlay = overlay_at(server, index, offset, &piece);
        int rc = 0;

        if (overlay)
            overlay->access(server, offset - overlay->offset, at, piece, is_write);
        else
            rc = access_device(slot, offset, at, piece, is_write);
        if (rc < 0)
            return rc;
        offset += piece;
        at += piece;
        count -= piece;
    }
    return 0;
}
