/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the model share: the model itself, and the server beside it. */
#ifndef OB_TESTS_MODEL_STATE_H
#define OB_TESTS_MODEL_STATE_H

#include "channel/ring.h"
#include "model.h"
#include "peer.h"

#define MODEL_PAGE    4096u
#define MODEL_PAGES   24u          /* of addresses, from here on */
#define MODEL_BASE    0x7ff8000ull /* a chunk of the server's log ends in between */
#define MODEL_RAM     (12 * MODEL_PAGE)
#define MODEL_MAPS    16u
#define MODEL_HOLDS   4u
#define MODEL_VECTORS 4u
#define MODEL_MEMORY  512u
#define MODEL_FAULTY  480u /* from here on accesses fail */
#define MODEL_FILE    (2 * MODEL_PAGE)
#define MODEL_STATE   64u /* bytes of the memory that migrate */
#define MODEL_STREAM  4096u
#define MODEL_FLIGHTS 8u

/* By message, by mmap() and by file I/O. */
enum model_mode { BY_MESSAGE, BY_MMAP, BY_FILE };

struct model_map {
    uint32_t page, pages, prot, mode;
    uint64_t offset;
};

struct model_hold {
    uint64_t address, len;
    uint32_t prot;
    bool mine; /* of the client that is there */
};

struct model_irq {
    uint32_t count;
    bool automasked, level;
    struct {
        bool armed, masked, pending;
        uint64_t signals; /* since they were compared */
    } vectors[MODEL_VECTORS];
};

struct model {
    struct model_map maps[MODEL_MAPS];
    unsigned nmaps;
    struct model_hold holds[MODEL_HOLDS]; /* len 0: none */
    uint8_t ram[MODEL_RAM], memory[MODEL_MEMORY], file[MODEL_FILE];
    struct model_irq intx, msix;
    bool held; /* no interrupt gets out */
    bool logging, dirty[MODEL_PAGES];
    enum ob_mig_state state;
    uint64_t arcs; /* that led there; see model_arc() */
    /* the stream that was read last, and how much of it was written again */
    uint8_t stream[MODEL_STREAM];
    uint32_t stream_len, written;
    bool whole;   /* ... and it is all of it */
    bool changed; /* a byte of what was written is wrong */
    uint8_t saved[MODEL_STATE];
    bool saved_intx, saved_msix[MODEL_VECTORS]; /* pending */
};

/* A command of the ring that may still be executed, and what will have become of it. */
struct model_flight {
    struct ob_ring_entry command;
    uint32_t at;
    int rc;
    uint8_t data[OB_RING_DATA]; /* that is read */
};

struct world {
    struct model m;
    struct ob_server *server;
    struct peer peer;
    struct ob_ring *ring;
    uint32_t ring_at; /* of the next command */
    struct model_flight flights[MODEL_FLIGHTS];
    unsigned nflights, nput;   /* so many of them are in the ring already, the others are late */
    bool stays;                /* the last command: nothing is compared before the next one */
    bool polls;                /* the server */
    uint16_t strays;           /* messages of the client that are no commands */
    struct ob_ring_entry *ask; /* the device's next access is when its answer is asked for */
    struct ob_dma_ref refs[MODEL_HOLDS];
    int ram_fd, file_fd, intx_fd, msix_fds[MODEL_VECTORS];
    uint8_t *ram;
    /* the device's */
    uint8_t memory[MODEL_MEMORY], incoming[MODEL_STATE];
    uint32_t moved;
    uint64_t arcs;
};

/* A number for all arcs that were taken, in their order. */
static inline uint64_t model_arc(uint64_t before, enum ob_mig_state from, enum ob_mig_state to)
{
    return before * 67 + from * 8 + to + 1;
}

extern void (*const model_steps[])(struct world *w, const struct model_command *c);

/* Where the address lies in RAM; it is mapped by mmap() or file. */
uint8_t *model_ram(struct model *m, uint64_t address);
/* What ob_dma_get() returns. */
int model_get(const struct model *m, uint64_t address, uint64_t len, uint32_t prot);
/* [address, address + len) is written by the device. */
void model_mark(struct model *m, uint64_t address, uint64_t len);

/* model_regions.c */
void model_step_read(struct world *w, const struct model_command *c);
void model_step_write(struct world *w, const struct model_command *c);
void model_step_post(struct world *w, const struct model_command *c);
void model_step_multi(struct world *w, const struct model_command *c);
void model_step_poll(struct world *w, const struct model_command *c);
/* A client comes, with a ring, and leaves. */
void model_attach(struct world *w);
void model_detach(struct world *w);
/* The server has read a late reply: what is late goes into the ring. */
void model_ring_late(struct world *w);
/* The server executes what is in the ring. */
void model_ring_collect(struct world *w);
/* If an unmap is pending: what is put into the ring now waits. */
void model_ring_waits(struct world *w);
void model_ring_compare(struct world *w);
/* model_irq.c */
void model_step_eventfds(struct world *w, const struct model_command *c);
void model_step_disable(struct world *w, const struct model_command *c);
void model_step_mask(struct world *w, const struct model_command *c);
void model_step_fire(struct world *w, const struct model_command *c);
void model_step_trigger(struct world *w, const struct model_command *c);
void model_step_level(struct world *w, const struct model_command *c);
void model_step_state(struct world *w, const struct model_command *c);
void model_step_stream(struct world *w, const struct model_command *c);
void model_step_reset(struct world *w, const struct model_command *c);
/* The client leaves: what becomes of interrupts and migration. */
void model_irq_leave(struct model *m);

#endif
