/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * References into the client's memory. Any thread takes and puts them, without a lock.
 *
 * A reference is a slot that names the mapping (a hazard pointer): nothing is counted in the
 * mapping, so threads that use the same memory write nothing in common. Who takes one names the
 * mapping first, and then looks whether it is still live; who takes a mapping out of the table
 * makes it not live first, and then looks through the slots. Whoever is later sees the other, as
 * both are sequentially consistent.
 *
 * A put that finds the mapping gone cannot tell whether it was the last. It wakes the server's
 * thread, which looks through the slots again (ob_dma_sweep).
 */
#include "server/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#define SLOTS_FIRST 64u
#define SLOTS_APART 8u /* where threads begin to look for a free one */
#define RACES_MAX   64 /* lost before the lock is taken */

/* ---- Slots -------------------------------------------------------------------------------- */

/* Block 0 has SLOTS_FIRST of them, each later one as many as all before it. */
static unsigned block_of(uint32_t i)
{
    return i < SLOTS_FIRST ? 0 : 32 - (unsigned)__builtin_clz(i / SLOTS_FIRST);
}

static struct ob_dma_hold *slot_at(const struct ob_dma_table *table, uint32_t i)
{
    unsigned block = block_of(i);
    uint32_t first = block ? SLOTS_FIRST << (block - 1) : 0;

    return __atomic_load_n(&table->holds[block], __ATOMIC_ACQUIRE) + (i - first);
}

/* There were n of them, all in use. */
static bool more_slots(struct ob_dma_table *table, uint32_t n)
{
    uint32_t size = n ? n : SLOTS_FIRST;
    unsigned block = block_of(n);
    struct ob_dma_hold *none = NULL, *slots;

    if (block == OB_DMA_HOLD_BLOCKS)
        return false;
    if (!__atomic_load_n(&table->holds[block], __ATOMIC_ACQUIRE)) {
        slots = aligned_alloc(64, size * sizeof(*slots));
        if (!slots)
            return false;
        memset(slots, 0, size * sizeof(*slots));
        if (!__atomic_compare_exchange_n(&table->holds[block], &none, slots, false,
                                         __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            free(slots); /* another thread was faster */
    }
    __atomic_compare_exchange_n(&table->nholds, &n, n + size, false, __ATOMIC_SEQ_CST,
                                __ATOMIC_SEQ_CST);
    return true;
}

/* A thread goes on where it took its last slot: mostly that is free again. */
static struct ob_dma_hold *claim(struct ob_dma_table *table, struct ob_dma_map *map)
{
    static _Thread_local uint32_t cursor;
    static uint32_t threads;

    if (cursor == 0)
        cursor = SLOTS_APART * __atomic_add_fetch(&threads, 1, __ATOMIC_RELAXED);
    for (;;) {
        uint32_t n = __atomic_load_n(&table->nholds, __ATOMIC_ACQUIRE);

        for (uint32_t i = 0; i < n; i++, cursor++) {
            struct ob_dma_hold *slot = slot_at(table, cursor & (n - 1));
            struct ob_dma_map *none = NULL;

            if (!__atomic_load_n(&slot->map, __ATOMIC_RELAXED) &&
                __atomic_compare_exchange_n(&slot->map, &none, map, false, __ATOMIC_SEQ_CST,
                                            __ATOMIC_RELAXED))
                return slot;
        }
        if (!more_slots(table, n))
            return NULL;
    }
}

static struct ob_dma_map *map_of(const struct ob_dma_hold *slot)
{
    return __atomic_load_n(&slot->map, __ATOMIC_RELAXED);
}

static bool is_live(const struct ob_dma_map *map)
{
    return __atomic_load_n(&map->live, __ATOMIC_SEQ_CST);
}

/* syscalls: write */
static void let_go(struct ob_dma_table *table, struct ob_dma_hold *slot)
{
    struct ob_dma_map *map = __atomic_exchange_n(&slot->map, NULL, __ATOMIC_SEQ_CST);

    if (is_live(map) || __atomic_exchange_n(&table->check, true, __ATOMIC_SEQ_CST))
        return;
    eventfd_write(table->wake_fd, 1);
}

void ob_dma_holds_mark(struct ob_dma_table *table)
{
    uint32_t n = __atomic_load_n(&table->nholds, __ATOMIC_SEQ_CST);

    for (uint32_t i = 0; i < n; i++) {
        struct ob_dma_map *map = __atomic_load_n(&slot_at(table, i)->map, __ATOMIC_SEQ_CST);

        if (map)
            map->held = true;
    }
}

bool ob_dma_hold_get(struct ob_dma_table *table, uint32_t i, struct ob_dma_hold *out)
{
    const struct ob_dma_hold *slot;

    if (i >= __atomic_load_n(&table->nholds, __ATOMIC_SEQ_CST))
        return false;
    slot = slot_at(table, i);
    out->map = __atomic_load_n(&slot->map, __ATOMIC_SEQ_CST);
    out->len = __atomic_load_n(&slot->len, __ATOMIC_ACQUIRE);
    out->address = __atomic_load_n(&slot->address, __ATOMIC_ACQUIRE);
    return true;
}

void ob_dma_holds_fini(struct ob_dma_table *table)
{
    for (unsigned i = 0; i < OB_DMA_HOLD_BLOCKS; i++)
        free(table->holds[i]);
}

/* ---- References --------------------------------------------------------------------------- */

static bool is_in(const struct ob_dma_map *map, uint64_t address)
{
    return address - __atomic_load_n(&map->address, __ATOMIC_RELAXED) <
           __atomic_load_n(&map->size, __ATOMIC_RELAXED);
}

/* Holds the mapping at address: 0, -EFAULT, -ENOMEM. With the lock, nothing is taken out of the
 * table meanwhile. */
static int try_hold(struct ob_dma_table *table, uint64_t address, struct ob_dma_hold **out)
{
    struct ob_dma_map *map = ob_dma_table_find(table, address);

    if (!map)
        return -EFAULT;
    *out = claim(table, map);
    if (!*out)
        return -ENOMEM;
    if (is_live(map) && is_in(map, address))
        return 0;
    let_go(table, *out);
    return -EAGAIN;
}

static int hold(struct ob_dma_table *table, uint64_t address, struct ob_dma_hold **out)
{
    int rc = -EAGAIN;

    for (unsigned i = 0; i < RACES_MAX && rc == -EAGAIN; i++)
        rc = try_hold(table, address, out);
    if (rc == -EAGAIN) {
        pthread_mutex_lock(&table->lock);
        rc = try_hold(table, address, out);
        pthread_mutex_unlock(&table->lock);
    }
    return rc;
}

/* Why [address, address + len), which goes beyond the mapping at its beginning, cannot be had. */
static int check_rest(struct ob_dma_table *table, uint64_t address, uint64_t len, uint32_t prot)
{
    for (;;) {
        struct ob_dma_hold *slot;
        const struct ob_dma_map *map;
        uint64_t there;
        int rc = hold(table, address, &slot);

        if (rc < 0)
            return rc;
        map = map_of(slot);
        there = map->size - (address - map->address);
        if (prot & ~(uint32_t)map->prot)
            rc = -EACCES;
        let_go(table, slot);
        if (rc < 0)
            return rc;
        if (there >= len)
            return -EOPNOTSUPP;
        address += there;
        len -= there;
    }
}

int ob_dma_get(struct ob_server *server, uint64_t address, uint64_t len, uint32_t prot,
               struct ob_dma_ref *out)
{
    struct ob_dma_table *table = &server->dma;
    const struct ob_dma_map *map;
    struct ob_dma_hold *slot;
    int rc;

    if (len == 0)
        return -EINVAL;
    if (address + (len - 1) < address)
        return -EFAULT;
    rc = hold(table, address, &slot);
    if (rc < 0)
        return rc;
    map = map_of(slot);
    if (prot & ~(uint32_t)map->prot)
        rc = -EACCES;
    else if (map->size - (address - map->address) < len)
        rc = check_rest(table, address, len, prot);
    else if (map->mode != OB_DMA_BY_MMAP)
        rc = -EOPNOTSUPP;
    if (rc < 0) {
        let_go(table, slot);
        return rc;
    }
    if (prot & OB_DMA_WRITE) {
        __atomic_store_n(&slot->address, address, __ATOMIC_RELAXED);
        __atomic_store_n(&slot->len, len, __ATOMIC_RELEASE);
    }
    out->ptr = map->ptr + (address - map->address);
    out->map = map_of(slot);
    out->slot = slot;
    return 0;
}

/*
 * What was written is logged before the mapping is let go, so that the answer to its unmap has it.
 * Where logging began only after we had looked, it may have missed the slot: it is logged late.
 */
void ob_dma_put(struct ob_server *server, struct ob_dma_ref *ref)
{
    struct ob_dma_hold *slot = ref->slot;
    uint64_t address = slot->address, len = slot->len, session = ref->map->session;
    bool logged = len > 0 && ob_dirty_put(&server->dirty, session, address, len);

    *ref = (struct ob_dma_ref){ 0 };
    if (len > 0)
        __atomic_store_n(&slot->len, 0, __ATOMIC_RELAXED);
    let_go(&server->dma, slot);
    if (len > 0 && !logged)
        ob_dirty_put(&server->dirty, session, address, len);
}
