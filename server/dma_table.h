/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the client's memory is kept in: mappings by address (dma_table.c), the references that a
 * device has into them (dma_refs.c), and the files behind them (dma_files.c). dma.c puts the three
 * together.
 *
 * Mappings change in the server's thread only. Any thread may look one up and hold it, without a
 * lock: memory for mappings is never given back before the server ends, so what a reader meets is
 * always a mapping, if perhaps not the one that it looks for, and it looks again after it has hold
 * of it.
 */
#ifndef OB_SERVER_DMA_TABLE_H
#define OB_SERVER_DMA_TABLE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "outboard/proto.h"

#pragma GCC visibility push(hidden)

enum ob_dma_mode { OB_DMA_BY_MMAP, OB_DMA_BY_FILE, OB_DMA_BY_MESSAGE };

/* One mapping: a cache line. It does not change while it is live. */
struct ob_dma_map {
    uint64_t address, size; /* readers look at these before they hold it: atomic */
    uint8_t *ptr;           /* OB_DMA_BY_MMAP: of address */
    struct ob_dma_file *file;
    uint64_t offset;         /* in the file */
    uint64_t session;        /* serial of the client's session */
    bool live;               /* atomic; it can be found */
    bool held;               /* the server's thread, while it sweeps */
    bool counted;            /* in the bytes of the table */
    uint8_t prot;            /* OB_DMA_READ | OB_DMA_WRITE */
    uint8_t mode;            /* enum ob_dma_mode */
    struct ob_dma_map *next; /* free ones, leaving ones */
} __attribute__((aligned(64)));

/* A reference, in a slot that is free while map is NULL. All of it is atomic. */
struct ob_dma_hold {
    struct ob_dma_map *map;
    uint64_t address, len; /* what may be written through it; len 0: nothing */
    uint64_t unused;       /* two to a cache line */
};

#define OB_DMA_HOLD_BLOCKS 21u /* 64 slots, and each time as many as there were: 2^26 at most */
#define OB_DMA_FILE_CHAINS 1024u
#define OB_DMA_FILES_MAX   4096u /* behind the client's memory: each takes time to let go */
#define OB_DMA_FDS_MAX     512u  /* of which so many are kept open: 1024 is a usual limit */

struct ob_dma_files {
    struct ob_dma_file *chains[OB_DMA_FILE_CHAINS]; /* those that mappings can share */
    uint32_t count, nfds;                           /* files; descriptors that are kept */
    uint64_t whole_bytes;                           /* address space they take */
    bool any;                                       /* not only of shared memory */
    const void *owner;                              /* of what is discarded */
};

struct ob_dma_leaf;

struct ob_dma_table {
    pthread_mutex_t lock; /* changes, and readers that have lost too many races */
    uint64_t version;     /* odd while a change is under way */
    uint32_t nleaves;
    uint64_t *lows; /* by address: no mapping of the leaf begins below, but in the first */
    struct ob_dma_leaf **leaves; /* as many */
    struct ob_dma_leaf *free_leaves;
    struct ob_dma_map *free_maps;
    void *blocks; /* what leaves and mappings are made of, chained */
    uint32_t count, max_count;
    uint64_t bytes, max_bytes; /* of the mappings that have a file, until they are let go */
    struct ob_dma_map **cache; /* by page: where it was found last; may point to any mapping */
    uint32_t cache_bits;       /* 0: not used, as few mappings are found faster without */

    struct ob_dma_hold *holds[OB_DMA_HOLD_BLOCKS];
    uint32_t nholds;

    struct ob_dma_map *leaving; /* not found any more, but maybe held */
    bool check;                 /* one of them may be free: the server's thread will look */
    int wake_fd;                /* of which this tells it */
    struct ob_source *wake;

    struct ob_dma_files files;
};

/* ---- dma_table.c -------------------------------------------------------------------------- */

void ob_dma_table_init(struct ob_dma_table *table);
void ob_dma_table_fini(struct ob_dma_table *table);
/* A mapping, not live; NULL without memory. It goes back when nobody holds it. */
struct ob_dma_map *ob_dma_map_alloc(struct ob_dma_table *table);
void ob_dma_map_recycle(struct ob_dma_table *table, struct ob_dma_map *map);
/* The mapping that holds address, or NULL. Any thread; it is only sure to stay in the server's. */
struct ob_dma_map *ob_dma_table_find(struct ob_dma_table *table, uint64_t address);
/* The first mapping that ends at or after address, the one after map (NULL: the first), the last of
 * all; NULL: there is none. The server's thread. */
struct ob_dma_map *ob_dma_table_from(const struct ob_dma_table *table, uint64_t address);
struct ob_dma_map *ob_dma_table_after(const struct ob_dma_table *table,
                                      const struct ob_dma_map *map);
struct ob_dma_map *ob_dma_table_last(const struct ob_dma_table *table);
/* It overlaps no other one. -ENOMEM, -ENOSPC. */
int ob_dma_table_insert(struct ob_dma_table *table, struct ob_dma_map *map);
void ob_dma_table_take_out(struct ob_dma_table *table, struct ob_dma_map *map);

/* ---- dma_refs.c --------------------------------------------------------------------------- */

/* Slot number i of those that are held for writing or will be; false: there are not so many. */
bool ob_dma_hold_get(struct ob_dma_table *table, uint32_t i, struct ob_dma_hold *out);
/* Which mappings are held: sets that in all of them. */
void ob_dma_holds_mark(struct ob_dma_table *table);
void ob_dma_holds_fini(struct ob_dma_table *table);

/* ---- dma_files.c -------------------------------------------------------------------------- */

/*
 * The file behind a mapping, for as long as there is the mapping. fd is taken, also on failure.
 * Sets what the mapping has of it. The session, address, size, offset, prot and mode are set.
 */
int ob_dma_file_open(struct ob_dma_files *files, struct ob_dma_map *map, int fd);
void ob_dma_file_close(struct ob_dma_files *files, struct ob_dma_file *file);
bool ob_dma_file_same(const struct ob_dma_file *a, const struct ob_dma_file *b);
/* OB_DMA_BY_FILE. */
int ob_dma_file_io(const struct ob_dma_map *map, uint64_t at, uint8_t *data, uint64_t len,
                   bool is_write);
/* The client has cut it. */
bool ob_dma_file_cut(const struct ob_dma_file *file);

#pragma GCC visibility pop
#endif
