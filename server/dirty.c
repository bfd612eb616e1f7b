/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which of the client's memory the device has written: a bit for each granule of 4 KiB, whatever
 * page size the client asked for. The bits lie in chunks, sorted by address, that are made when
 * something in them is written first; so memory that the client claims but the device never
 * touches costs nothing. When there are too many chunks, or no memory for one, everything that is
 * mapped counts as written until logging stops: more than was written is never wrong.
 *
 * A piece of memory that a device holds for writing (ob_dma_get) may be written at any moment
 * without our knowing. It is therefore in each report, and marked once more when it is put.
 */
#include "server/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define GRANULE      4096u
#define CHUNK_BITS   32768u /* 4 KiB of bits: 128 MiB of memory */
#define CHUNK_BYTES  ((uint64_t)CHUNK_BITS * GRANULE)
#define CHUNKS_MAX   4096u
#define WORDS        (CHUNK_BITS / 64)
#define GRANULE_MASK ((uint64_t)GRANULE - 1)

struct ob_dirty_chunk {
    uint64_t number; /* address / CHUNK_BYTES */
    uint64_t bits[WORDS];
};

/* What is reported: a bit for each page of the range. */
struct report {
    uint64_t first, last; /* bytes of the range */
    uint64_t page_size;   /* a power of two */
    unsigned shift;       /* of it */
    uint64_t *bitmap;
};

static void set_bits(uint64_t *bitmap, uint64_t first, uint64_t last)
{
    uint64_t low = first / 64, high = last / 64;
    uint64_t from = ~0ull << first % 64, to = ~0ull >> (63 - last % 64);

    if (low == high) {
        bitmap[low] |= from & to;
        return;
    }
    bitmap[low] |= from;
    memset(bitmap + low + 1, 0xff, (high - low - 1) * sizeof(*bitmap));
    bitmap[high] |= to;
}

/* ---- Chunks ------------------------------------------------------------------------------- */

/* Index of the first chunk from this number on. */
static size_t chunk_at(const struct ob_dirty *dirty, uint64_t number)
{
    size_t low = 0, high = dirty->nchunks;

    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (dirty->chunks[mid]->number < number)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static int make_room(struct ob_dirty *dirty)
{
    size_t room = dirty->room ? 2 * dirty->room : 16;
    struct ob_dirty_chunk **chunks;

    if (dirty->nchunks == CHUNKS_MAX)
        return -ENOSPC;
    if (dirty->nchunks < dirty->room)
        return 0;
    chunks = realloc(dirty->chunks, room * sizeof(struct ob_dirty_chunk *));
    if (!chunks)
        return -ENOMEM;
    dirty->chunks = chunks;
    dirty->room = room;
    return 0;
}

/* NULL: there is none, and none can be made. */
static struct ob_dirty_chunk *get_chunk(struct ob_dirty *dirty, uint64_t number)
{
    size_t at = chunk_at(dirty, number);
    struct ob_dirty_chunk *chunk;

    if (at < dirty->nchunks && dirty->chunks[at]->number == number)
        return dirty->chunks[at];
    if (make_room(dirty) < 0 || !(chunk = calloc(1, sizeof(*chunk))))
        return NULL;
    chunk->number = number;
    memmove(dirty->chunks + at + 1, dirty->chunks + at,
            (dirty->nchunks - at) * sizeof(struct ob_dirty_chunk *));
    dirty->chunks[at] = chunk;
    dirty->nchunks++;
    return chunk;
}

static void mark_locked(struct ob_dirty *dirty, uint64_t address, uint64_t len)
{
    uint64_t last = address + (len - 1);

    if (dirty->all)
        return;
    for (uint64_t number = address / CHUNK_BYTES; number <= last / CHUNK_BYTES; number++) {
        struct ob_dirty_chunk *chunk = get_chunk(dirty, number);
        uint64_t base = number * CHUNK_BYTES;
        uint64_t from = address > base ? address - base : 0;
        uint64_t to = last - base < CHUNK_BYTES ? last - base : CHUNK_BYTES - 1;

        if (!chunk) {
            dirty->all = true;
            return;
        }
        set_bits(chunk->bits, from / GRANULE, to / GRANULE);
    }
}

static bool is_on(const struct ob_dirty *dirty)
{
    return __atomic_load_n(&dirty->on, __ATOMIC_SEQ_CST);
}

void ob_dirty_mark(struct ob_dirty *dirty, uint64_t address, uint64_t len)
{
    if (!is_on(dirty))
        return;
    pthread_mutex_lock(&dirty->lock);
    mark_locked(dirty, address, len);
    pthread_mutex_unlock(&dirty->lock);
}

bool ob_dirty_put(struct ob_dirty *dirty, uint64_t session, uint64_t address, uint64_t len)
{
    bool on = is_on(dirty);

    if (!on)
        return false;
    pthread_mutex_lock(&dirty->lock);
    on = is_on(dirty); /* it may have ended meanwhile */
    if (on && session == dirty->session)
        mark_locked(dirty, address, len);
    pthread_mutex_unlock(&dirty->lock);
    return on;
}

static void drop_chunks(struct ob_dirty *dirty)
{
    for (size_t i = 0; i < dirty->nchunks; i++)
        free(dirty->chunks[i]);
    free(dirty->chunks);
    dirty->chunks = NULL;
    dirty->nchunks = dirty->room = 0;
    dirty->all = false;
}

/* ---- Start and stop ----------------------------------------------------------------------- */

void ob_dirty_init(struct ob_dirty *dirty)
{
    pthread_mutex_init(&dirty->lock, NULL);
}

/* What is held for writing now is marked: whoever puts it at this moment may not see that logging
 * is on. */
int ob_dirty_start(struct ob_server *server, uint64_t *page_size)
{
    struct ob_dirty *dirty = &server->dirty;
    struct ob_dma_hold hold;

    if (dirty->on)
        return -EINVAL;
    dirty->session = server->session->serial;
    __atomic_store_n(&dirty->on, true, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&dirty->lock);
    for (uint32_t i = 0; ob_dma_hold_get(&server->dma, i, &hold); i++)
        if (hold.map && hold.len && hold.map->session == dirty->session)
            mark_locked(dirty, hold.address, hold.len);
    pthread_mutex_unlock(&dirty->lock);
    if (*page_size < GRANULE)
        *page_size = GRANULE;
    return 0;
}

int ob_dirty_stop(struct ob_dirty *dirty)
{
    if (!dirty->on)
        return -EINVAL;
    pthread_mutex_lock(&dirty->lock);
    __atomic_store_n(&dirty->on, false, __ATOMIC_SEQ_CST);
    drop_chunks(dirty);
    pthread_mutex_unlock(&dirty->lock);
    return 0;
}

void ob_dirty_fini(struct ob_dirty *dirty)
{
    drop_chunks(dirty);
    pthread_mutex_destroy(&dirty->lock);
}

/* ---- Reports ------------------------------------------------------------------------------ */

static struct report make_report(uint64_t first, uint64_t last, uint64_t page_size,
                                 uint64_t *bitmap)
{
    return (struct report){ first, last, page_size, (unsigned)__builtin_ctzll(page_size), bitmap };
}

/* [first, last] was written. What is held may change while it is read, and then be no range. */
static void add(const struct report *r, uint64_t first, uint64_t last)
{
    if (last < first || last < r->first || first > r->last)
        return;
    if (first < r->first)
        first = r->first;
    if (last > r->last)
        last = r->last;
    set_bits(r->bitmap, (first - r->first) >> r->shift, (last - r->first) >> r->shift);
}

/* How many granules from this one on lie wholly in the same page. */
static uint64_t granules_in_page(const struct report *r, uint64_t first)
{
    uint64_t left;

    if (first < r->first)
        return 1;
    left = r->page_size - ((first - r->first) & (r->page_size - 1));
    return left < GRANULE ? 1 : left / GRANULE;
}

/* A bit for each granule that lies wholly in the range, of the 64 from base on. */
static uint64_t granules_in_range(const struct report *r, uint64_t base)
{
    uint64_t skip = base < r->first ? (r->first - base + GRANULE_MASK) / GRANULE : 0, end = 0;

    if (r->last >= base)
        end = (r->last - base) / GRANULE + ((r->last - base) % GRANULE == GRANULE_MASK);
    if (skip >= 64 || end <= skip)
        return 0;
    return ~0ull << skip & (end >= 64 ? ~0ull : ~(~0ull << end));
}

/*
 * A granule that lies in the range is clean from now on; of one that only reaches into it, the
 * other part has not been reported. A page is added once, not once for each of its granules: the
 * client waits for its report, and everybody else for the client's.
 */
static void take_word(struct ob_dirty_chunk *chunk, unsigned word, const struct report *r)
{
    uint64_t base = chunk->number * CHUNK_BYTES + (uint64_t)word * 64 * GRANULE;
    uint64_t left = chunk->bits[word];

    while (left) {
        unsigned bit = (unsigned)__builtin_ctzll(left);
        uint64_t first = base + bit * (uint64_t)GRANULE, n = granules_in_page(r, first);

        add(r, first, first | GRANULE_MASK);
        left &= n < 64 - bit ? ~0ull << (bit + n) : 0;
    }
    chunk->bits[word] &= ~granules_in_range(r, base);
}

static void take_chunks(struct ob_dirty *dirty, const struct report *r)
{
    size_t i = chunk_at(dirty, r->first / CHUNK_BYTES);

    for (; i < dirty->nchunks && dirty->chunks[i]->number <= r->last / CHUNK_BYTES; i++)
        for (unsigned word = 0; word < WORDS; word++)
            if (dirty->chunks[i]->bits[word])
                take_word(dirty->chunks[i], word, r);
}

void ob_dirty_take(struct ob_server *server, uint64_t address, uint64_t len, uint64_t page_size,
                   bool mapped, void *bitmap)
{
    struct ob_dirty *dirty = &server->dirty;
    const struct report r = make_report(address, address + (len - 1), page_size, bitmap);
    const struct ob_dma_map *map;
    struct ob_dma_hold hold;

    memset(bitmap, 0, ob_bitmap_size(len, page_size));
    pthread_mutex_lock(&dirty->lock);
    take_chunks(dirty, &r);
    for (uint32_t i = 0; ob_dma_hold_get(&server->dma, i, &hold); i++)
        if (hold.map && hold.len && hold.map->session == dirty->session)
            add(&r, hold.address, hold.address + (hold.len - 1));
    if (dirty->all && mapped)
        add(&r, r.first, r.last);
    else if (dirty->all)
        for (map = NULL; (map = ob_dma_table_after(&server->dma, map)) != NULL;)
            add(&r, map->address, map->address + (map->size - 1));
    pthread_mutex_unlock(&dirty->lock);
}

void ob_dirty_forget(struct ob_dirty *dirty, uint64_t first, uint64_t last)
{
    uint64_t bits = 0; /* pages as large as this need no more */
    const struct report r = make_report(first, last, (uint64_t)1 << 63, &bits);

    if (!is_on(dirty))
        return;
    pthread_mutex_lock(&dirty->lock);
    take_chunks(dirty, &r);
    pthread_mutex_unlock(&dirty->lock);
}
