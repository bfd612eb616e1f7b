/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The server's DMA by message. The callbacks run in the thread that receives: with the BQL, or
 * without it in a vCPU that waits for the server (access.c). A thread that holds the BQL may be
 * waiting for that vCPU to receive its reply, so nothing here takes the BQL: RAM and ROM need none.
 * While the client library makes a new connection it may also be a thread of the library's, of
 * which QEMU's RCU knows nothing.
 *
 * What the server reads from one region of RAM or ROM is lent to the library for as long as it
 * sends: a MemoryRegionCache holds references to the region and the memory map, so that unplugging
 * waits. What has more pieces is copied.
 *
 * A write to something else (a message-signalled interrupt, another device's register) is handed to
 * the main loop and answered at once, as a posted write on a bus is; a read of something else is
 * refused, as there is nobody who could be asked for the data.
 */
#include "device.h"

#define POSTED_BYTES_MAX 8
#define POSTED_MAX       256 /* on their way at a time */

typedef struct PostedWrite {
    ObPci *d;
    uint64_t address;
    uint8_t data[POSTED_BYTES_MAX];
    uint32_t count;
} PostedWrite;

static MemTxAttrs dma_attrs(ObPci *d)
{
    return (MemTxAttrs){ .requester_id = pci_requester_id(PCI_DEVICE(d)) };
}

static void posted_bh_cb(void *opaque)
{
    PostedWrite *w = opaque;
    ObPci *d = w->d;

    if (obq_link_alive(d)) {
        address_space_write(pci_get_address_space(PCI_DEVICE(d)), w->address, dma_attrs(d), w->data,
                            w->count);
    }
    qatomic_dec(&d->dma.writes_queued);
    object_unref(OBJECT(d));
    g_free(w);
}

static int post_write(ObPci *d, uint64_t address, const void *data, uint32_t count)
{
    PostedWrite *w;

    if (count > POSTED_BYTES_MAX || qatomic_read(&d->dma.writes_queued) >= POSTED_MAX) {
        return -EFAULT;
    }
    qatomic_inc(&d->dma.writes_queued);
    object_ref(OBJECT(d));
    w = g_new(PostedWrite, 1);
    w->d = d;
    w->address = address;
    w->count = count;
    memcpy(w->data, data, count);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), posted_bh_cb, w);
    return 0;
}

/*
 * The part of an access that lies in one memory region; returns its length, or a negative errno.
 * It is translated once, by the cache, which then cannot change: to translate and to access by two
 * calls could meet a device in the second where the first found RAM, and take the BQL for it.
 */
static int64_t dma_piece(AddressSpace *as, ObPci *d, uint64_t address, uint8_t *bytes,
                         uint32_t count, bool is_write)
{
    MemoryRegionCache cache;
    int64_t len = address_space_cache_init(&cache, as, address, count, is_write);
    MemoryRegion *mr = cache.mrs.mr;
    int64_t rc = len;

    if (cache.ptr && is_write) {
        memcpy(cache.ptr, bytes, len);
        address_space_cache_invalidate(&cache, 0, len);
    } else if (cache.ptr) {
        memcpy(bytes, cache.ptr, len);
    } else if (is_write && memory_region_is_mapped(mr) && !memory_region_is_ram(mr)) {
        int error = post_write(d, address, bytes, len);

        rc = error < 0 ? error : len;
    } else {
        rc = -EFAULT;
    }
    address_space_cache_destroy(&cache);
    return rc;
}

/* The device's address space is empty while the guest has not enabled bus mastering. */
static int dma_pieces(ObPci *d, uint64_t address, void *data, uint32_t count, bool is_write)
{
    AddressSpace *as = pci_get_address_space(PCI_DEVICE(d));
    uint8_t *bytes = data;

    if (address + count < address) {
        return -EFAULT;
    }
    while (count) {
        int64_t done = dma_piece(as, d, address, bytes, count, is_write);

        if (done < 0) {
            return (int)done;
        }
        address += done;
        bytes += done;
        count -= done;
    }
    return 0;
}

/* RCU must know the thread. Returns whether it did not. */
static bool rcu_enter(void)
{
    bool foreign = !current_cpu && !OB_BQL_HELD();

    if (foreign) {
        rcu_register_thread();
    }
    return foreign;
}

static void rcu_leave(bool foreign)
{
    if (foreign) {
        rcu_unregister_thread();
    }
}

static int dma_access(ObPci *d, uint64_t address, void *data, uint32_t count, bool is_write)
{
    bool foreign = rcu_enter();
    int rc = dma_pieces(d, address, data, count, is_write);

    rcu_leave(foreign);
    return rc;
}

int obq_dma_read_cb(void *opaque, uint64_t address, void *data, uint32_t count)
{
    return dma_access(opaque, address, data, count, false);
}

int obq_dma_write_cb(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    return dma_access(opaque, address, (void *)data, count, true);
}

const void *obq_dma_lend_cb(void *opaque, uint64_t address, uint32_t count, void **loan)
{
    AddressSpace *as = pci_get_address_space(PCI_DEVICE(opaque));
    MemoryRegionCache *cache = g_new(MemoryRegionCache, 1);
    bool foreign = rcu_enter();
    int64_t len = address_space_cache_init(cache, as, address, count, false);
    const void *bytes = len == count ? cache->ptr : NULL;

    if (bytes) {
        *loan = cache;
    } else {
        address_space_cache_destroy(cache);
        g_free(cache);
    }
    rcu_leave(foreign);
    return bytes;
}

void obq_dma_return_cb(void *opaque, void *loan)
{
    bool foreign = rcu_enter();

    address_space_cache_destroy(loan);
    rcu_leave(foreign);
    g_free(loan);
}
