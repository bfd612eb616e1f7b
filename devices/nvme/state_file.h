/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The layout of a state file (--state), which is mapped, and what is noted there of each command.
 * Every note is a store that the end of the process does not undo. The order of stores is what
 * makes each moment of it one that can be continued from; see state_file.c and recover.c.
 */
#ifndef OB_NVME_STATE_FILE_H
#define OB_NVME_STATE_FILE_H

#include "nvme.h"

#define NVME_FILE_HEAD       8192u
#define NVME_CHECKPOINT_MAX  65520u
#define NVME_CHECKPOINT_NONE 2u /* in `current`: the last one could not be made */

struct nvme_cq_record {
    uint64_t posted; /* completions, since the queue is there: where its tail is, and its phase */
    uint32_t head;
    uint32_t zero;
};

struct nvme_sq_record {
    uint64_t fetched; /* commands, since the queue is there: where its head is */
    uint32_t tail;
    uint32_t zero;
    uint64_t number[NVME_INFLIGHT_MAX]; /* of a command that is under way: as many were fetched
                                         * with it; 0: none */
    struct nvme_sqe sqe[NVME_INFLIGHT_MAX];
};

struct nvme_checkpoint {
    int64_t ns; /* when it was made */
    uint32_t len;
    uint32_t zero;
    uint8_t data[NVME_CHECKPOINT_MAX];
};

struct nvme_file_head {
    char magic[8]; /* written last */
    uint32_t version;
    uint32_t zero;
    uint64_t size;                   /* of the file */
    uint64_t sum;                    /* of what follows */
    char boot[40];                   /* of the kernel: no guest survives the next one */
    char about[NVME_FILE_HEAD - 72]; /* what the state is of: NAME VALUE, a line each */
};

struct nvme_file_map {
    struct nvme_file_head head;
    uint32_t doorbells[NVME_PAGE / 4];
    uint32_t current; /* the checkpoint that counts */
    uint32_t intms;
    uint32_t armed; /* the kind of interrupts that the client has set up, as nvme_ctrl.armed */
    uint32_t zero;
    struct nvme_cq_record cq[NVME_QIDS];
    struct nvme_checkpoint checkpoints[2];
    struct nvme_sq_record sq[]; /* of each I/O queue, from number 1 on */
};
static_assert(sizeof(struct nvme_file_head) == NVME_FILE_HEAD, "no padding");

struct nvme_state_file {
    int fd; /* has the lock */
    bool fresh;
    struct nvme_file_map *map;
    size_t size;
    volatile uint32_t *own_doorbells; /* the page that was used before */
};

/* Not moved by the compiler or the CPU in front of an earlier store.
 * NOLINTBEGIN(readability-non-const-parameter): a built-in function writes there, unseen by it. */
static inline void nvme_note32(uint32_t *where, uint32_t value)
{
    __atomic_store_n(where, value, __ATOMIC_RELEASE);
}

static inline void nvme_note64(uint64_t *where, uint64_t value)
{
    __atomic_store_n(where, value, __ATOMIC_RELEASE);
}
/* NOLINTEND(readability-non-const-parameter) */

/* A command is there from the store of its number on; the head follows from it, if need be. */
static inline void nvme_note_fetched(struct nvme_cmd *cmd)
{
    struct nvme_sq *sq = cmd->sq;
    size_t i = (size_t)(cmd - sq->cmds);

    if (!sq->record)
        return;
    sq->record->sqe[i] = cmd->sqe;
    nvme_note64(&sq->record->number[i], ++sq->fetched);
    nvme_note64(&sq->record->fetched, sq->fetched);
}

/* It is posted; or, not executed, in the queue again, whose head must say so first. */
static inline void nvme_note_gone(struct nvme_cmd *cmd)
{
    if (cmd->sq->record)
        nvme_note64(&cmd->sq->record->number[cmd - cmd->sq->cmds], 0);
}

static inline void nvme_note_unfetched(struct nvme_cmd *cmd)
{
    if (cmd->sq->record)
        nvme_note64(&cmd->sq->record->fetched, --cmd->sq->fetched);
}

static inline void nvme_note_posted(struct nvme_cq *cq)
{
    if (cq->record)
        nvme_note64(&cq->record->posted, ++cq->posted);
}

static inline void nvme_note_tail(const struct nvme_sq *sq)
{
    if (sq->record)
        nvme_note32(&sq->record->tail, sq->tail);
}

static inline void nvme_note_head(const struct nvme_cq *cq)
{
    if (cq->record)
        nvme_note32(&cq->record->head, cq->head);
}

/* A new queue: its record begins. There must be no checkpoint in which it lives already. */
void nvme_record_sq(struct nvme_ctrl *c, struct nvme_sq *sq);
void nvme_record_cq(struct nvme_ctrl *c, struct nvme_cq *cq);

#endif
