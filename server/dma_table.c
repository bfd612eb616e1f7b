/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The mappings by address, none overlapping: leaves of up to LEAF_MAX mappings each, and one array
 * of the leaves. A change moves what is in one leaf, and now and then the array.
 *
 * Two leaves side by side have more than LEAF_MAX / 2 mappings together; so there are LEAVES_MAX of
 * them at most, whatever the client does.
 *
 * Readers take no lock. A change makes the version odd and then even again; who finds that it is
 * not what it was looks again. Everything a reader touches is atomic: stores release and loads
 * acquire, so what was loaded before the second look at the version is no younger than that.
 */
#include "server/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LEAF_MAX    64u
#define LEAVES_MAX  (4u * (OB_DMA_MAPS_MAX + 1) / LEAF_MAX)
#define BLOCK_BYTES 16384u
#define RACES_MAX   64 /* lost by a reader before it takes the lock */

struct ob_dma_leaf {
    uint64_t firsts[LEAF_MAX]; /* where the mappings begin */
    struct ob_dma_map *maps[LEAF_MAX];
    uint32_t count;
    struct ob_dma_leaf *next_free;
};

/* A place in the table; where != leaf->count: there is a mapping. */
struct place {
    uint32_t number; /* of the leaf */
    struct ob_dma_leaf *leaf;
    uint32_t at;
};

/* Pages of the client's memory at regular distances, whatever they are, fill the cache evenly. */
#define CACHE_PAGE     4096u
#define CACHE_BITS_MIN 8u
#define CACHE_BITS_MAX 17u
#define GOLDEN_RATIO   0x9e3779b97f4a7c15u

#define LOAD(object)         __atomic_load_n(&(object), __ATOMIC_ACQUIRE)
#define STORE(object, value) __atomic_store_n(&(object), value, __ATOMIC_RELEASE)

void ob_dma_table_init(struct ob_dma_table *table)
{
    pthread_mutex_init(&table->lock, NULL);
    table->wake_fd = -1;
    table->max_count = OB_DMA_MAPS_MAX;
    table->max_bytes = OB_DMA_BYTES_DEFAULT;
}

/* ---- Memory, which stays what it is ------------------------------------------------------- */

struct block {
    void *next;
} __attribute__((aligned(64)));

/* As many objects of that size as fit; they begin behind the block. */
static uint8_t *new_block(struct ob_dma_table *table)
{
    struct block *block = aligned_alloc(64, BLOCK_BYTES);

    if (!block)
        return NULL;
    memset(block, 0, BLOCK_BYTES);
    block->next = table->blocks;
    table->blocks = block;
    return (uint8_t *)(block + 1);
}

struct ob_dma_map *ob_dma_map_alloc(struct ob_dma_table *table)
{
    struct ob_dma_map *map = table->free_maps;

    if (!map) {
        map = (struct ob_dma_map *)new_block(table);
        for (size_t i = 0; map && i < BLOCK_BYTES / sizeof(*map) - 1; i++)
            ob_dma_map_recycle(table, map + i);
        map = table->free_maps;
    }
    if (map)
        table->free_maps = map->next;
    return map;
}

void ob_dma_map_recycle(struct ob_dma_table *table, struct ob_dma_map *map)
{
    map->next = table->free_maps;
    table->free_maps = map;
}

static void recycle_leaf(struct ob_dma_table *table, struct ob_dma_leaf *leaf)
{
    leaf->next_free = table->free_leaves;
    table->free_leaves = leaf;
}

static struct ob_dma_leaf *alloc_leaf(struct ob_dma_table *table)
{
    struct ob_dma_leaf *leaf = table->free_leaves;

    if (!leaf) {
        leaf = (struct ob_dma_leaf *)new_block(table);
        for (size_t i = 0; leaf && i < (BLOCK_BYTES - sizeof(struct block)) / sizeof(*leaf); i++)
            recycle_leaf(table, leaf + i);
        leaf = table->free_leaves;
    }
    if (leaf)
        table->free_leaves = leaf->next_free;
    return leaf;
}

void ob_dma_table_fini(struct ob_dma_table *table)
{
    while (table->blocks) {
        struct block *block = table->blocks;

        table->blocks = block->next;
        free(block);
    }
    free(table->cache);
    free(table->lows);
    free(table->leaves);
    pthread_mutex_destroy(&table->lock);
}

/* ---- Finding ------------------------------------------------------------------------------ */

/* Index of the last of n > 0 numbers that is not above value; 0 also when all are, so the first one
 * is never looked at. No branch to guess wrong. */
static uint32_t last_below(const uint64_t *numbers, uint32_t n, uint64_t value)
{
    uint32_t base = 0;

    while (n > 1) {
        uint32_t half = n / 2;

        base += half & -(uint32_t)(LOAD(numbers[base + half]) <= value);
        n -= half;
    }
    return base;
}

/* The last mapping that begins at or below address. A reader may come upon anything here, but
 * never upon something that is no leaf, or no mapping. */
static struct ob_dma_map *search(const struct ob_dma_table *table, uint64_t address)
{
    uint32_t n = LOAD(table->nleaves), at;
    const struct ob_dma_leaf *leaf;

    if (n == 0)
        return NULL;
    leaf = LOAD(table->leaves[last_below(table->lows, n, address)]);
    n = LOAD(leaf->count);
    if (n == 0)
        return NULL;
    at = last_below(leaf->firsts, n, address);
    return LOAD(leaf->firsts[at]) <= address ? LOAD(leaf->maps[at]) : NULL;
}

static struct ob_dma_map *search_racing(struct ob_dma_table *table, uint64_t address)
{
    struct ob_dma_map *map;

    for (unsigned i = 0; i < RACES_MAX; i++) {
        uint64_t version = LOAD(table->version);

        if (version % 2)
            continue;
        map = search(table, address);
        if (__atomic_load_n(&table->version, __ATOMIC_RELAXED) == version)
            return map;
    }
    pthread_mutex_lock(&table->lock);
    map = search(table, address);
    pthread_mutex_unlock(&table->lock);
    return map;
}

static bool is_hit(const struct ob_dma_map *map, uint64_t address)
{
    return map && LOAD(map->live) && address - LOAD(map->address) < LOAD(map->size);
}

struct ob_dma_map *ob_dma_table_find(struct ob_dma_table *table, uint64_t address)
{
    uint32_t bits = LOAD(table->cache_bits);
    struct ob_dma_map *map, **line = NULL;

    if (bits > 0) {
        line = &table->cache[(address / CACHE_PAGE) * GOLDEN_RATIO >> (64 - bits)];
        map = LOAD(*line);
        if (is_hit(map, address))
            return map;
    }
    map = search_racing(table, address);
    if (!is_hit(map, address))
        return NULL;
    if (line)
        STORE(*line, map);
    return map;
}

/* Where the last mapping is that begins at or below address; if none does, the first one. The
 * table is not empty. */
static struct place place_of(const struct ob_dma_table *table, uint64_t address)
{
    struct place p = { .number = last_below(table->lows, table->nleaves, address) };

    p.leaf = table->leaves[p.number];
    p.at = last_below(p.leaf->firsts, p.leaf->count, address);
    return p;
}

static struct ob_dma_map *map_after(const struct ob_dma_table *table, const struct place *p)
{
    if (p->at + 1 < p->leaf->count)
        return p->leaf->maps[p->at + 1];
    return p->number + 1 < table->nleaves ? table->leaves[p->number + 1]->maps[0] : NULL;
}

struct ob_dma_map *ob_dma_table_from(const struct ob_dma_table *table, uint64_t address)
{
    struct ob_dma_map *map;
    struct place p;

    if (table->count == 0)
        return NULL;
    p = place_of(table, address);
    map = p.leaf->maps[p.at];
    return map->address + (map->size - 1) >= address ? map : map_after(table, &p);
}

struct ob_dma_map *ob_dma_table_after(const struct ob_dma_table *table,
                                      const struct ob_dma_map *map)
{
    struct place p;

    if (!map)
        return ob_dma_table_from(table, 0);
    p = place_of(table, map->address);
    return map_after(table, &p);
}

struct ob_dma_map *ob_dma_table_last(const struct ob_dma_table *table)
{
    const struct ob_dma_leaf *leaf;

    if (table->count == 0)
        return NULL;
    leaf = table->leaves[table->nleaves - 1];
    return leaf->maps[leaf->count - 1];
}

/* ---- Changing ----------------------------------------------------------------------------- */

static void begin_change(struct ob_dma_table *table)
{
    pthread_mutex_lock(&table->lock);
    __atomic_store_n(&table->version, table->version + 1, __ATOMIC_RELAXED);
}

static void end_change(struct ob_dma_table *table)
{
    STORE(table->version, table->version + 1);
    pthread_mutex_unlock(&table->lock);
}

static void leaf_set(struct ob_dma_leaf *leaf, uint32_t at, struct ob_dma_map *map)
{
    STORE(leaf->firsts[at], map->address);
    STORE(leaf->maps[at], map);
}

static void leaf_insert(struct ob_dma_leaf *leaf, uint32_t at, struct ob_dma_map *map)
{
    for (uint32_t i = leaf->count; i > at; i--)
        leaf_set(leaf, i, leaf->maps[i - 1]);
    leaf_set(leaf, at, map);
    STORE(leaf->count, leaf->count + 1);
}

static void leaf_remove(struct ob_dma_leaf *leaf, uint32_t at)
{
    for (uint32_t i = at + 1; i < leaf->count; i++)
        leaf_set(leaf, i - 1, leaf->maps[i]);
    STORE(leaf->count, leaf->count - 1);
}

static void add_leaf(struct ob_dma_table *table, uint32_t number, uint64_t low,
                     struct ob_dma_leaf *leaf)
{
    for (uint32_t i = table->nleaves; i > number; i--) {
        STORE(table->lows[i], table->lows[i - 1]);
        STORE(table->leaves[i], table->leaves[i - 1]);
    }
    STORE(table->lows[number], low);
    STORE(table->leaves[number], leaf);
    STORE(table->nleaves, table->nleaves + 1);
}

static void remove_leaf(struct ob_dma_table *table, uint32_t number)
{
    recycle_leaf(table, table->leaves[number]);
    for (uint32_t i = number + 1; i < table->nleaves; i++) {
        STORE(table->lows[i - 1], table->lows[i]);
        STORE(table->leaves[i - 1], table->leaves[i]);
    }
    STORE(table->nleaves, table->nleaves - 1);
}

/* Moves all from this mapping on, of a full leaf, to a fresh leaf behind it. */
static void split(struct ob_dma_table *table, uint32_t number, uint32_t from,
                  struct ob_dma_leaf *fresh)
{
    struct ob_dma_leaf *leaf = table->leaves[number];

    STORE(fresh->count, 0);
    for (uint32_t i = from; i < leaf->count; i++)
        leaf_insert(fresh, i - from, leaf->maps[i]);
    STORE(leaf->count, from);
    add_leaf(table, number + 1, fresh->firsts[0], fresh);
}

static void insert_locked(struct ob_dma_table *table, struct ob_dma_map *map,
                          struct ob_dma_leaf *fresh)
{
    struct place p = { 0 };

    if (table->nleaves > 0) {
        p = place_of(table, map->address);
        p.at += p.leaf->firsts[p.at] < map->address;
    }
    if (fresh && p.number + 1 >= table->nleaves && (!p.leaf || p.at == LEAF_MAX)) {
        /* Who maps in ascending order gets full leaves. */
        STORE(fresh->count, 0);
        leaf_insert(fresh, 0, map);
        add_leaf(table, table->nleaves, map->address, fresh);
        return;
    }
    if (fresh) {
        split(table, p.number, LEAF_MAX / 2, fresh);
        if (p.at > LEAF_MAX / 2) {
            p.leaf = fresh;
            p.at -= LEAF_MAX / 2;
        }
    }
    assert(p.leaf); /* who inserts the first mapping brings a leaf */
    leaf_insert(p.leaf, p.at, map);
}

/* Without memory it stays as small as it is. */
static void grow_cache(struct ob_dma_table *table)
{
    if (!table->cache)
        table->cache = calloc((size_t)1 << CACHE_BITS_MAX, sizeof(struct ob_dma_map *));
    if (table->cache)
        STORE(table->cache_bits, table->cache_bits ? table->cache_bits + 1 : CACHE_BITS_MIN);
}

static int make_arrays(struct ob_dma_table *table)
{
    if (!table->lows)
        table->lows = calloc(LEAVES_MAX, sizeof(*table->lows));
    if (!table->leaves)
        table->leaves = calloc(LEAVES_MAX, sizeof(struct ob_dma_leaf *));
    return table->lows && table->leaves ? 0 : -ENOMEM;
}

int ob_dma_table_insert(struct ob_dma_table *table, struct ob_dma_map *map)
{
    struct ob_dma_leaf *fresh = NULL;

    if (table->count >= table->max_count)
        return -ENOSPC;
    if (table->nleaves == 0 && make_arrays(table) < 0)
        return -ENOMEM;
    if (table->nleaves == 0 || place_of(table, map->address).leaf->count == LEAF_MAX) {
        fresh = alloc_leaf(table);
        if (!fresh)
            return -ENOMEM;
    }
    begin_change(table);
    /* The one that was here before may still be in some reader's hands. */
    __atomic_store_n(&map->live, true, __ATOMIC_SEQ_CST);
    insert_locked(table, map, fresh);
    end_change(table);
    table->count++;
    if (table->nleaves > 1 && table->count > 1u << table->cache_bits >> 1)
        grow_cache(table);
    return 0;
}

/* The leaf after this one goes into it if the two are small enough. */
static void merge(struct ob_dma_table *table, uint32_t number)
{
    struct ob_dma_leaf *leaf, *next;

    if (number + 1 >= table->nleaves)
        return;
    leaf = table->leaves[number];
    next = table->leaves[number + 1];
    if (leaf->count + next->count > LEAF_MAX / 2)
        return;
    for (uint32_t i = 0; i < next->count; i++)
        leaf_insert(leaf, leaf->count, next->maps[i]);
    remove_leaf(table, number + 1);
}

void ob_dma_table_take_out(struct ob_dma_table *table, struct ob_dma_map *map)
{
    struct place p = place_of(table, map->address);

    begin_change(table);
    leaf_remove(p.leaf, p.at);
    if (p.leaf->count == 0) {
        remove_leaf(table, p.number);
    } else {
        /* A mapping that comes in the leaf before may end beyond where this one began. */
        STORE(table->lows[p.number], p.leaf->firsts[0]);
        merge(table, p.number);
        if (p.number > 0)
            merge(table, p.number - 1);
    }
    __atomic_store_n(&map->live, false, __ATOMIC_SEQ_CST);
    end_change(table);
    table->count--;
}
