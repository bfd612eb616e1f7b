/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The server's view of guest memory. Every change of one memory transaction is collected and sent
 * in one go. Memory that is shared (a file, mapped MAP_SHARED) is handed out by its fd; all other
 * memory without one: the server then reads and writes it by message (dma.c), so that it never
 * sees a private copy of its own.
 *
 * Only whole pages are mapped. MMIO and other devices' mapped BARs are not: a server that reaches
 * for them by message is served by dma.c. A change that the server refuses ends the connection,
 * because from then on its view would be wrong.
 */
#include "device.h"

static bool section_shared(MemoryRegion *mr)
{
    return qemu_ram_is_shared(mr->ram_block) && memory_region_get_fd(mr) >= 0;
}

static bool fd_keeps_size(int fd)
{
    int seals = fcntl(fd, F_GET_SEALS);

    return seals >= 0 && (seals & F_SEAL_SHRINK);
}

/* The part of a section that the server gets, in whole pages of it. */
static bool section_change(const ObPci *d, const MemoryRegionSection *section,
                           struct ob_dma_change *out)
{
    MemoryRegion *mr = section->mr;
    uint64_t start = section->offset_within_address_space;
    uint64_t aligned = ROUND_UP(start, d->dma.page_size);
    uint64_t size, skip = aligned - start;

    if (!memory_region_is_ram(mr) || memory_region_is_ram_device(mr) ||
        memory_region_is_protected(mr) || int128_gethi(section->size) ||
        int128_getlo(section->size) < skip) {
        return false;
    }
    size = QEMU_ALIGN_DOWN(int128_getlo(section->size) - skip, d->dma.page_size);
    if (!size) {
        return false;
    }
    *out = (struct ob_dma_change){
        .flags = OB_DMA_READ | (section->readonly ? 0 : OB_DMA_WRITE),
        .address = aligned,
        .size = size,
        .fd = -1,
    };
    if (section_shared(mr)) {
        out->fd = memory_region_get_fd(mr);
        out->offset = obq_ram_fd_offset(mr->ram_block) + section->offset_within_region + skip;
    }
    return true;
}

/* Only guest RAM is worth a word: firmware, video memory and the like are always private. A file of
 * it that can be cut is handed out all the same, as SPDK and huge pages of a mount need it. */
static void warn_ram(ObPci *d, MemoryRegion *mr)
{
    Object *owner = memory_region_owner(mr);

    if (!owner || !object_dynamic_cast(owner, "memory-backend")) {
        return;
    }
    if (!section_shared(mr)) {
        warn_report_once(
            "%s (%s): guest RAM is not shared memory, so DMA goes by messages, which is "
            "slow. To share it: -object memory-backend-memfd,id=ram,size=SIZE,share=on "
            "-machine memory-backend=ram (SIZE as in -m)",
            obq_type_name(d), d->link.name);
    } else if (!fd_keeps_size(memory_region_get_fd(mr))) {
        warn_report_once("%s (%s): guest RAM is in a file that the server could cut, which would "
                         "end the machine: memory-backend-memfd seals it",
                         obq_type_name(d), d->link.name);
    }
}

static void region_add_cb(MemoryListener *listener, MemoryRegionSection *section)
{
    ObPci *d = container_of(listener, ObPci, dma.listener);
    struct ob_dma_change change;

    if (memory_region_is_iommu(section->mr)) {
        obq_link_complain(d, "a vIOMMU appeared on the device's bus, which is not supported");
        return;
    }
    if (section_change(d, section, &change)) {
        warn_ram(d, section->mr);
        g_array_append_val(d->dma.changes, change);
    }
}

static void region_del_cb(MemoryListener *listener, MemoryRegionSection *section)
{
    ObPci *d = container_of(listener, ObPci, dma.listener);
    struct ob_dma_change change;

    if (section_change(d, section, &change)) {
        change.unmap = true;
        change.flags = 0;
        change.fd = -1;
        change.offset = 0;
        g_array_append_val(d->dma.changes, change);
    }
}

static char *failure_text(ObPci *d, const struct ob_dma_change *change)
{
    const char *why = ob_client_error(d->link.client);
    char text[128];

    return g_strdup_printf("the server does not %s guest memory 0x%" PRIx64 "+0x%" PRIx64 ": %s",
                           change->unmap ? "unmap" : "map", change->address, change->size,
                           why ? why : ob_strerror(change->result, text, sizeof(text)));
}

static void apply_changes(ObPci *d)
{
    struct ob_dma_change *changes = (struct ob_dma_change *)d->dma.changes->data;
    unsigned n = d->dma.changes->len;
    char *text;

    if (ob_client_dma_apply(d->link.client, changes, n) >= 0) {
        return;
    }
    while (changes->result >= 0 && n-- > 1) {
        changes++;
    }
    text = failure_text(d, changes);
    if (!d->dma.listening) {
        error_setg(&d->dma.error, "%s: %s", d->link.name, text);
    } else {
        obq_link_give_up(d, changes->result, text);
    }
    g_free(text);
}

static void commit_cb(MemoryListener *listener)
{
    ObPci *d = container_of(listener, ObPci, dma.listener);

    if (d->dma.changes->len && d->dma.listening) {
        obq_probe_all("a change of guest memory");
    }
    if (d->dma.changes->len && !d->dma.error && obq_link_alive(d)) {
        apply_changes(d);
    }
    g_array_set_size(d->dma.changes, 0);
}

bool obq_memory_init(ObPci *d, Error **errp)
{
    AddressSpace *as = pci_device_iommu_address_space(PCI_DEVICE(d));

    if (as != &address_space_memory) {
        error_setg(errp, "the device cannot be behind a vIOMMU: put it on a bus that bypasses it "
                         "(-machine default_bus_bypass_iommu=on), or leave the vIOMMU out");
        return false;
    }
    if (ram_block_discard_disable(true) < 0) {
        error_setg(
            errp,
            "memory that comes and goes (virtio-mem) cannot be used together with %s: the server "
            "would keep it",
            obq_type_name(d));
        return false;
    }
    d->dma.discard_disabled = true;
    d->dma.page_size = ob_client_page_size(d->link.client);
    d->dma.changes = g_array_new(false, false, sizeof(struct ob_dma_change));
    d->dma.listener = (MemoryListener){
        .name = TYPE_OB_PCI,
        .region_add = region_add_cb,
        .region_del = region_del_cb,
        .commit = commit_cb,
    };
    memory_listener_register(&d->dma.listener, as);
    if (d->dma.error) {
        memory_listener_unregister(&d->dma.listener);
        error_propagate(errp, d->dma.error);
        d->dma.error = NULL;
        return false;
    }
    d->dma.listening = true;
    return true;
}

/* The connection is closed by now, and with it all mappings of the server: nothing is sent. */
void obq_memory_fini(ObPci *d)
{
    if (d->dma.listening) {
        memory_listener_unregister(&d->dma.listener);
        d->dma.listening = false;
    }
    if (d->dma.changes) {
        g_array_free(d->dma.changes, true);
        d->dma.changes = NULL;
    }
    if (d->dma.discard_disabled) {
        ram_block_discard_disable(false);
        d->dma.discard_disabled = false;
    }
}
