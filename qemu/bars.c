/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * BARs. Each is a container: at the bottom the trapped region, whose accesses are messages; over it
 * the areas that the server lets us map; on top MSI-X table and pending bits (caps.c). All of it
 * leaves the container in obq_bars_fini(), and is freed with the object, when no vCPU can be inside
 * any more.
 *
 * A map is file memory of the server. Only files that cannot shrink are mapped: a guest's access
 * beyond the end of one would end the VM. And only shared memory, which no file system can make us
 * wait for. Other accesses go by message, unless the user trusts the server (x-mmap-unsealed).
 */
#include "device.h"

#include <sys/mman.h>

#define BAR_ORDER_MAX_32 31
#define BAR_ORDER_MAX_64 51
#define BAR_ORDER_MAX_IO 16

static uint64_t all_ones(unsigned size)
{
    return size < 8 ? (UINT64_C(1) << (8 * size)) - 1 : UINT64_MAX;
}

/* This and bar_write() may run without the BQL, in several threads at once: see access.c. */
static MemTxResult bar_read(void *opaque, hwaddr addr, uint64_t *data, unsigned size,
                            MemTxAttrs attrs)
{
    ObBar *bar = opaque;
    bool vcpu = obq_vcpu_access(attrs);
    uint8_t bytes[8];

    *data = all_ones(size);
    if (obq_access_read(bar->d, bar->index, addr, bytes, size, vcpu) >= 0) {
        *data = ldn_le_p(bytes, (int)size);
    }
    obq_intx_served(bar->d, vcpu);
    return MEMTX_OK;
}

static MemTxResult bar_write(void *opaque, hwaddr addr, uint64_t data, unsigned size,
                             MemTxAttrs attrs)
{
    ObBar *bar = opaque;
    ObPci *d = bar->d;
    bool vcpu = obq_vcpu_access(attrs);
    uint8_t bytes[8];
    int rc = -ENOTCONN;

    if (obq_ioeventfds_signal(bar, addr, data, size)) {
        return MEMTX_OK;
    }
    stn_le_p(bytes, (int)size, data);
    if (attrs.requester_id) {
        /* From a server's device, by way of dma.c: the main loop must not wait for another server,
         * or for the same, on a server's behalf. Nor is an interrupt served by it. */
        obq_access_post(d, bar->index, addr, bytes, size, false);
        return MEMTX_OK;
    }
    if (bar->posted) {
        rc = obq_access_post(d, bar->index, addr, bytes, size, d->have_maps);
    }
    if (rc < 0) { /* what cannot be posted, because of its size or what is queued, is waited for */
        obq_access_write(d, bar->index, addr, bytes, size, vcpu);
    }
    obq_intx_served(d, vcpu);
    return MEMTX_OK;
}

static const MemoryRegionOps bar_ops = {
    .read_with_attrs = bar_read,
    .write_with_attrs = bar_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min_access_size = 1, .max_access_size = 8, .unaligned = true },
    .impl = { .min_access_size = 1, .max_access_size = 8, .unaligned = true },
};

/* The BAR's kind, from the server's register; 64-bit BARs take the next register. */
static bool bar_check(ObPci *d, unsigned i, uint64_t size, Error **errp)
{
    ObBar *bar = &d->bars[i];
    uint32_t reg = ldl_le_p(d->server_config + PCI_BASE_ADDRESS_0 + 4 * i);
    unsigned order_min = 4, order_max = BAR_ORDER_MAX_32;

    if (reg & PCI_BASE_ADDRESS_SPACE_IO) {
        bar->type = PCI_BASE_ADDRESS_SPACE_IO;
        order_min = 2;
        order_max = BAR_ORDER_MAX_IO;
    } else {
        bar->type = reg & (PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH);
        order_max = reg & PCI_BASE_ADDRESS_MEM_TYPE_64 ? BAR_ORDER_MAX_64 : BAR_ORDER_MAX_32;
    }
    if (!is_power_of_2(size) || size < 1ull << order_min || size > 1ull << order_max) {
        error_setg(errp,
                   "%s: BAR%u has 0x%" PRIx64 " bytes: its size must be a power of two, "
                   "from 2^%u to 2^%u",
                   d->link.name, i, size, order_min, order_max);
        return false;
    }
    if ((bar->type & PCI_BASE_ADDRESS_MEM_TYPE_64) && (i + 1 == OB_BARS || d->bars[i + 1].size)) {
        error_setg(errp, "%s: BAR%u is a 64-bit BAR, and its upper half is not free", d->link.name,
                   i);
        return false;
    }
    bar->size = size;
    return true;
}

static bool bar_may_map(const ObBar *bar, const struct ob_region_info *info)
{
    return info->fd >= 0 && (bar->d->mmap_unsealed || !ob_region_can_shrink(info));
}

static void bar_map_areas(ObBar *bar, const struct ob_region_info *info)
{
    ObPci *d = bar->d;
    unsigned areas = info->layout.nareas ? info->layout.nareas : 1;

    if (!(info->layout.flags & OB_REGION_MMAP) || (bar->type & PCI_BASE_ADDRESS_SPACE_IO)) {
        return;
    }
    if (!bar_may_map(bar, info)) {
        info_report(
            "%s (%s): BAR%u is not mapped but accessed by message: the server's "
            "file could shrink or stall under the guest (x-mmap-unsealed=on trusts it not to)",
            obq_type_name(d), d->link.name, bar->index);
        return;
    }
    bar->maps = g_new0(ObBarMap, areas);
    for (unsigned i = 0; i < areas; i++) {
        ObBarMap *map = &bar->maps[bar->nmaps];
        uint64_t offset = info->layout.nareas ? info->layout.areas[i].offset : 0;
        char *name;

        if (ob_region_map(info, i, &map->ptr, &map->size) < 0) {
            continue; /* by message, then */
        }
        map->area = i;
        name = g_strdup_printf(TYPE_OB_PCI "-bar%u-map%u", bar->index, i);
        memory_region_init_ram_device_ptr(&map->mr, OBJECT(d), name, map->size, map->ptr);
        g_free(name);
        memory_region_add_subregion(&bar->mr, offset, &map->mr);
        bar->nmaps++;
    }
}

static void bar_register(ObBar *bar, const struct ob_region_info *info)
{
    ObPci *d = bar->d;
    char *name = g_strdup_printf(TYPE_OB_PCI "-bar%u", bar->index);

    memory_region_init(&bar->mr, OBJECT(d), name, bar->size);
    memory_region_init_io(&bar->trapped, OBJECT(d), &bar_ops, bar, name, bar->size);
    obq_region_allow_concurrent(&bar->trapped);
    g_free(name);
    memory_region_add_subregion(&bar->mr, 0, &bar->trapped);
    bar_map_areas(bar, info);
    pci_register_bar(PCI_DEVICE(d), (int)bar->index, bar->type, &bar->mr);
}

bool obq_bars_have_maps(const ObPci *d)
{
    for (unsigned i = 0; i < OB_BARS; i++) {
        if (d->bars[i].nmaps) {
            return true;
        }
    }
    return false;
}

/* What is signalled would overtake posted writes; so would what the guest does to a mapped area,
 * but where the server looks for them first. */
static void bars_choose_posting(ObPci *d)
{
    bool posted = !d->no_posted_writes;

    d->have_maps = obq_bars_have_maps(d);
    posted = posted && (!d->have_maps || ob_client_caps(d->link.client)->mapped_order);
    for (unsigned i = 0; i < OB_BARS; i++) {
        posted = posted && !d->bars[i].nevents;
    }
    for (unsigned i = 0; i < OB_BARS; i++) {
        d->bars[i].posted = posted && !(d->bars[i].type & PCI_BASE_ADDRESS_SPACE_IO);
    }
}

bool obq_bars_init(ObPci *d, Error **errp)
{
    struct ob_region_info info[OB_BARS];
    bool good = true;
    unsigned n;

    for (n = 0; n < OB_BARS; n++) {
        int rc = ob_client_region_info(d->link.client, n, &info[n]);

        if (rc < 0) {
            obq_link_error(d, errp, rc, "the server does not describe its BARs");
            good = false;
            break;
        }
        d->bars[n].d = d;
        d->bars[n].index = n;
    }
    for (unsigned i = n; good && i-- > 0;) { /* downwards: a 64-bit BAR looks at the next */
        good = !info[i].layout.size || bar_check(d, i, info[i].layout.size, errp);
    }
    for (unsigned i = 0; i < n; i++) {
        if (good && d->bars[i].size) {
            bar_register(&d->bars[i], &info[i]);
            good = obq_ioeventfds_init(&d->bars[i], errp);
        }
        ob_region_info_fini(&info[i]);
    }
    bars_choose_posting(d);
    d->maps_enabled = true;
    return good;
}

/* Lets the guest reach the mapped areas directly, or makes it take the trapped way. */
void obq_bars_set_mapped(ObPci *d, bool mapped)
{
    mapped = mapped && !d->maps_blocked;
    if (mapped == d->maps_enabled) {
        return;
    }
    d->maps_enabled = mapped;
    memory_region_transaction_begin();
    for (unsigned i = 0; i < OB_BARS; i++) {
        for (unsigned j = 0; j < d->bars[i].nmaps; j++) {
            memory_region_set_enabled(&d->bars[i].maps[j].mr, mapped);
        }
    }
    memory_region_transaction_commit();
}

/* Puts what the server shares now where its predecessor's was; memory map and KVM see no change. */
static bool bar_remap(ObBar *bar)
{
    struct ob_region_info info;
    bool good = true;

    if (!bar->nmaps) {
        return true;
    }
    if (ob_client_region_info(bar->d->link.client, bar->index, &info) < 0) {
        return false;
    }
    good = (info.layout.flags & OB_REGION_MMAP) && bar_may_map(bar, &info);
    for (unsigned i = 0; good && i < bar->nmaps; i++) {
        ObBarMap *map = &bar->maps[i];
        uint64_t size;
        void *ptr;

        good = ob_region_map(&info, map->area, &ptr, &size) >= 0;
        if (good && (size != map->size || mremap(ptr, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
                                                 map->ptr) == MAP_FAILED)) {
            munmap(ptr, size);
            good = false;
        }
    }
    ob_region_info_fini(&info);
    return good;
}

void obq_bars_block(ObPci *d)
{
    d->maps_blocked = true;
    obq_bars_set_mapped(d, false);
    for (unsigned i = 0; i < OB_BARS; i++) {
        d->bars[i].had_events = d->bars[i].had_events || d->bars[i].nevents;
        obq_ioeventfds_fini(&d->bars[i]);
    }
}

/* What cannot be shared again is accessed by message from now on. */
void obq_bars_unblock(ObPci *d)
{
    bool good = true;

    for (unsigned i = 0; i < OB_BARS; i++) {
        Error *err = NULL;

        good = bar_remap(&d->bars[i]) && good;
        if (d->bars[i].had_events && !obq_ioeventfds_init(&d->bars[i], &err)) {
            obq_link_complain(d, "%s", error_get_pretty(err));
            error_free(err);
        }
    }
    if (good) {
        d->maps_blocked = false;
        obq_bars_set_mapped(d, true);
    } else {
        obq_link_complain(d, "the server does not share its BARs as before: they are accessed by "
                             "message");
    }
}

void obq_bars_fini(ObPci *d)
{
    for (unsigned i = 0; i < OB_BARS; i++) {
        ObBar *bar = &d->bars[i];

        obq_ioeventfds_fini(bar);
        for (unsigned j = 0; j < bar->nmaps; j++) {
            memory_region_del_subregion(&bar->mr, &bar->maps[j].mr);
        }
        if (memory_region_is_mapped(&bar->trapped)) {
            memory_region_del_subregion(&bar->mr, &bar->trapped);
        }
    }
}

void obq_bars_free(ObPci *d)
{
    for (unsigned i = 0; i < OB_BARS; i++) {
        for (unsigned j = 0; j < d->bars[i].nmaps; j++) {
            munmap(d->bars[i].maps[j].ptr, d->bars[i].maps[j].size);
        }
        g_free(d->bars[i].maps);
    }
}
