/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Submission and completion queues: their memory, fetching, posting.
 *
 * Queue memory belongs to the client and may go away at any time. An entry is copied before it is
 * looked at, and its phase bit is written last.
 */
#include "state_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- Memory of a queue --------------------------------------------------------------------- */

void nvme_ring_start(struct nvme_ring *ring, uint64_t base, uint32_t entries, uint32_t entry_size)
{
    *ring = (struct nvme_ring){ .base = base, .entries = entries, .entry_size = entry_size };
}

void nvme_ring_forget(struct nvme_ctrl *c, struct nvme_ring *ring)
{
    if (ring->ptr)
        ob_dma_put(c->server, &ring->ref);
    ring->ptr = NULL;
}

static uint64_t ring_bytes(const struct nvme_ring *ring)
{
    return (uint64_t)ring->entries * ring->entry_size;
}

uint8_t *nvme_ring_map(struct nvme_ctrl *c, struct nvme_ring *ring, uint32_t prot)
{
    if (!ring->ptr && ob_dma_get(c->server, ring->base, ring_bytes(ring), prot, &ring->ref) == 0)
        ring->ptr = ring->ref.ptr;
    return ring->ptr;
}

static bool overlaps(const struct nvme_ring *ring, uint64_t address, uint64_t size)
{
    return ring->base - address < size || address - ring->base < ring_bytes(ring);
}

static void forget_overlap(struct nvme_ctrl *c, struct nvme_ring *ring, uint64_t address,
                           uint64_t size)
{
    if (ring->ptr && overlaps(ring, address, size))
        nvme_ring_forget(c, ring);
}

void nvme_rings_forget(struct nvme_ctrl *c, uint64_t address, uint64_t size)
{
    for (unsigned i = 0; i < NVME_QIDS; i++) {
        struct nvme_ring *rings[] = { &c->sq[i].ring, &c->cq[i].ring };
        for (unsigned k = 0; k < 2; k++)
            forget_overlap(c, rings[k], address, size);
    }
    forget_overlap(c, &c->shadow.values, address, size);
    forget_overlap(c, &c->shadow.events, address, size);
}

bool nvme_unreachable(struct nvme_ctrl *c, int rc, const char *why)
{
    if (rc != -ENOTCONN && ob_server_attached(c->server) && nvme_now_ns() >= c->grace_ns)
        nvme_fatal(c, why);
    return false;
}

static bool read_entry(struct nvme_ctrl *c, struct nvme_sq *sq, struct nvme_sqe *out)
{
    uint8_t *ptr = nvme_ring_map(c, &sq->ring, OB_DMA_READ);
    uint64_t at = (uint64_t)sq->head * NVME_SQE_SIZE;
    int rc;

    if (ptr) {
        memcpy(out, ptr + at, sizeof(*out));
        return true;
    }
    rc = ob_dma_read(c->server, sq->ring.base + at, out, sizeof(*out));
    return rc == 0 || nvme_unreachable(c, rc, "a submission queue is not in memory");
}

static bool write_entry(struct nvme_ctrl *c, struct nvme_cq *cq, const struct nvme_cqe *cqe)
{
    uint8_t *ptr = nvme_ring_map(c, &cq->ring, OB_DMA_WRITE);
    uint64_t at = (uint64_t)cq->tail * NVME_CQE_SIZE, halves[2];
    int rc;

    if (ptr) {
        uint64_t *entry = (uint64_t *)(void *)(ptr + at); /* queues are page-aligned */
        memcpy(halves, cqe, sizeof(halves));
        __atomic_store_n(&entry[0], halves[0], __ATOMIC_RELAXED);
        __atomic_store_n(&entry[1], halves[1], __ATOMIC_RELEASE);
        return true;
    }
    rc = ob_dma_write(c->server, cq->ring.base + at, cqe, sizeof(*cqe));
    return rc == 0 || nvme_unreachable(c, rc, "a completion queue is not in memory");
}

/* ---- Lists of commands --------------------------------------------------------------------- */

void nvme_cmd_push(struct nvme_cmd_list *list, struct nvme_cmd *cmd)
{
    cmd->next = NULL;
    if (list->first)
        list->last->next = cmd;
    else
        list->first = cmd;
    list->last = cmd;
}

struct nvme_cmd *nvme_cmd_pop(struct nvme_cmd_list *list)
{
    struct nvme_cmd *cmd = list->first;

    if (cmd)
        list->first = cmd->next;
    return cmd;
}

static void cmd_clear(struct nvme_cmd *cmd)
{
    nvme_data_release(cmd);
    if (cmd->ranges)
        cmd->ctrl->listed -= cmd->nranges;
    free(cmd->ranges);
    cmd->ranges = NULL;
}

void nvme_cmd_free(struct nvme_cmd *cmd)
{
    cmd_clear(cmd);
    cmd->pending = false;
    nvme_note_gone(cmd);
    cmd->next = cmd->sq->free;
    cmd->sq->free = cmd;
}

void nvme_cmd_done(struct nvme_cmd *cmd, uint16_t status)
{
    struct nvme_ctrl *c = cmd->ctrl;

    cmd->status = status;
    cmd->pending = false;
    c->dirty |= cmd->sq->id == 0;
    if (status != NVME_OK)
        nvme_log_error(c, cmd);
    if (!cmd->data.bounce)
        cmd_clear(cmd); /* the client may want its pages back before this is posted */
    if (c->resetting)
        nvme_cmd_free(cmd);
    else
        nvme_cmd_push(&c->cq[cmd->sq->cqid].done, cmd);
}

struct nvme_cmd *nvme_cmd_take(struct nvme_sq *sq)
{
    struct nvme_cmd *cmd = sq->free;

    if (!cmd)
        return NULL;
    sq->free = cmd->next;
    cmd->after = NVME_AFTER_NOTHING;
    cmd->pending = true;
    cmd->result = 0;
    return cmd;
}

bool nvme_cmd_restore(struct nvme_ctrl *c, struct nvme_sq *sq, uint16_t cid, uint16_t status,
                      uint32_t result)
{
    struct nvme_cmd *cmd = nvme_cmd_take(sq);

    if (!cmd)
        return false;
    cmd->sqe = (struct nvme_sqe){ .cid = cid };
    cmd->pending = false;
    cmd->status = status;
    cmd->result = result;
    nvme_cmd_push(&c->cq[sq->cqid].done, cmd);
    return true;
}

/* ---- Starting and stopping ----------------------------------------------------------------- */

static void find_top(struct nvme_ctrl *c)
{
    for (c->top = c->cfg.queues; c->top > 0 && !c->sq[c->top].live && !c->cq[c->top].live;)
        c->top--;
}

int nvme_sq_start(struct nvme_ctrl *c, unsigned qid, unsigned cqid, uint64_t base, uint32_t entries)
{
    unsigned n = entries < NVME_INFLIGHT_MAX ? entries : NVME_INFLIGHT_MAX;
    struct nvme_sq *sq = &c->sq[qid];
    struct nvme_cmd *cmds;

    if (qid == 0)
        n += NVME_AERS_MAX; /* these stay for long, and must not stop the others */
    cmds = calloc(n, sizeof(*cmds));
    if (!cmds)
        return -ENOMEM;
    *sq = (struct nvme_sq){ .live = true, .id = (uint16_t)qid, .cqid = (uint16_t)cqid };
    nvme_ring_start(&sq->ring, base, entries, NVME_SQE_SIZE);
    sq->cmds = cmds;
    sq->ncmds = n;
    for (unsigned i = 0; i < n; i++) {
        cmds[i].ctrl = c;
        cmds[i].sq = sq;
        nvme_cmd_free(&cmds[i]);
    }
    c->cq[cqid].nsqs++;
    find_top(c);
    nvme_record_sq(c, sq);
    nvme_doorbell_clear(c, 2 * qid);
    return 0;
}

void nvme_cq_start(struct nvme_ctrl *c, unsigned qid, uint64_t base, uint32_t entries, bool irq,
                   uint16_t vector)
{
    struct nvme_cq *cq = &c->cq[qid];

    *cq = (struct nvme_cq){ .live = true, .irq = irq, .vector = vector, .phase = true };
    nvme_ring_start(&cq->ring, base, entries, NVME_CQE_SIZE);
    find_top(c);
    nvme_record_cq(c, cq);
    nvme_doorbell_clear(c, 2 * qid + 1);
}

static void drop_done(struct nvme_cq *cq, const struct nvme_sq *sq)
{
    struct nvme_cmd *cmd = cq->done.first;

    cq->done.first = NULL;
    while (cmd) {
        struct nvme_cmd *next = cmd->next;
        if (cmd->sq == sq)
            nvme_cmd_free(cmd);
        else
            nvme_cmd_push(&cq->done, cmd);
        cmd = next;
    }
}

void nvme_sq_stop(struct nvme_ctrl *c, struct nvme_sq *sq)
{
    drop_done(&c->cq[sq->cqid], sq);
    nvme_ring_forget(c, &sq->ring);
    c->cq[sq->cqid].nsqs--;
    free(sq->cmds);
    *sq = (struct nvme_sq){ 0 };
    find_top(c);
}

void nvme_cq_stop(struct nvme_ctrl *c, struct nvme_cq *cq)
{
    nvme_ring_forget(c, &cq->ring);
    *cq = (struct nvme_cq){ 0 };
    find_top(c);
}

/* ---- Fetching ------------------------------------------------------------------------------ */

bool nvme_execute(struct nvme_cmd *cmd)
{
    uint16_t status = cmd->sq->id == 0 ? nvme_admin(cmd) : nvme_io(cmd);

    if (status == NVME_CLIENT_LEFT) {
        cmd_clear(cmd);
        return false;
    }
    if (status != NVME_PENDING)
        nvme_cmd_done(cmd, status);
    return true;
}

/* A command that would have to wait for one before it stays in its queue. */
static bool has_work(const struct nvme_ctrl *c, const struct nvme_sq *sq)
{
    bool any = sq->again.first || (sq->free && sq->head != sq->tail);

    return sq->live && !sq->deleter && any &&
           (sq->id == 0 || (c->bounced < NVME_BOUNCE_MAX && c->listed < NVME_LISTED_MAX));
}

/* The next of an earlier process. False: the client left. */
static bool execute_again(struct nvme_sq *sq)
{
    struct nvme_cmd *cmd = nvme_cmd_pop(&sq->again);

    if (nvme_execute(cmd))
        return true;
    cmd->next = sq->again.first;
    if (!sq->again.first)
        sq->again.last = cmd;
    sq->again.first = cmd;
    return false;
}

/* The next in the queue. False: it cannot be read, or the client left. */
static bool execute_next(struct nvme_ctrl *c, struct nvme_sq *sq)
{
    uint32_t head = sq->head;
    struct nvme_sqe sqe;
    struct nvme_cmd *cmd;

    if (!read_entry(c, sq, &sqe) || !(cmd = nvme_cmd_take(sq)))
        return false;
    sq->head = (head + 1) % sq->ring.entries;
    cmd->sqe = sqe;
    nvme_note_fetched(cmd);
    c->dirty |= sq->id == 0;
    if (nvme_execute(cmd))
        return true;
    sq->head = head;
    nvme_note_unfetched(cmd);
    nvme_cmd_free(cmd);
    return false;
}

static unsigned fetch_from(struct nvme_ctrl *c, struct nvme_sq *sq)
{
    unsigned n = 0;

    while (n < NVME_BURST && has_work(c, sq) && !ob_server_kept_waiting(c->server)) {
        if (sq->id == 0)
            nvme_file_sync(c); /* of what the one before did: it may be about the same queue */
        if (!(sq->again.first ? execute_again(sq) : execute_next(c, sq)))
            break;
        n++;
    }
    return n;
}

static bool any_again(const struct nvme_ctrl *c)
{
    for (unsigned i = 1; i < NVME_QIDS; i++)
        if (c->sq[i].again.first)
            return true;
    return false;
}

unsigned nvme_fetch(struct nvme_ctrl *c)
{
    unsigned n = 0, top = c->top;

    /* Admin commands may delete a queue: they wait while one has commands of an earlier process. */
    c->again = c->again && any_again(c);
    if (!c->again)
        n = fetch_from(c, &c->sq[0]);
    for (unsigned i = 0; i < top; i++) {
        struct nvme_sq *sq = &c->sq[1 + (c->turn + i) % top];
        if (sq->live && nvme_running(c))
            n += fetch_from(c, sq);
    }
    c->turn = (c->turn + 1) % c->cfg.queues;
    return n;
}

/* ---- Posting ------------------------------------------------------------------------------- */

/* The last step of a command, which needs the client to be there: data from a bounce buffer.
 * Whether it was done. */
static bool conclude(struct nvme_ctrl *c, struct nvme_cmd *cmd)
{
    uint16_t status;

    if (cmd->status != NVME_OK || cmd->after != NVME_AFTER_COPY_OUT)
        return true;
    status = nvme_copy_to_host(c, &cmd->sqe, cmd->data.bounce, cmd->len);
    if (status == NVME_CLIENT_LEFT)
        return false;
    cmd->after = NVME_AFTER_NOTHING;
    cmd->status = status;
    if (cmd->status != NVME_OK)
        nvme_log_error(c, cmd);
    return true;
}

void nvme_conclude_all(struct nvme_ctrl *c)
{
    for (unsigned i = 0; i < NVME_QIDS; i++)
        for (struct nvme_cmd *cmd = c->cq[i].done.first; cmd; cmd = cmd->next)
            conclude(c, cmd);
}

void nvme_cq_advance(struct nvme_cq *cq)
{
    cq->tail = (cq->tail + 1) % cq->ring.entries;
    if (cq->tail == 0)
        cq->phase = !cq->phase;
    cq->irq_due |= cq->irq;
    nvme_note_posted(cq);
}

static unsigned post_to(struct nvme_ctrl *c, struct nvme_cq *cq)
{
    struct nvme_cmd *cmd;
    unsigned n = 0;

    while ((cmd = cq->done.first) && (cq->tail + 1) % cq->ring.entries != cq->head) {
        struct nvme_sq *sq = cmd->sq;
        if (cmd->after == NVME_AFTER_COPY_OUT && !ob_server_attached(c->server))
            break;
        if (!conclude(c, cmd))
            break;
        struct nvme_cqe cqe = {
            .result = cmd->result,
            .sq_head = (uint16_t)sq->head,
            .sq_id = sq->id,
            .cid = cmd->sqe.cid,
            .status = (uint16_t)(cmd->status << 1 | cq->phase),
        };
        if (!write_entry(c, cq, &cqe))
            break;
        cq->done.first = cmd->next;
        nvme_cmd_free(cmd);
        nvme_cq_advance(cq);
        n++;
        if (ob_server_kept_waiting(c->server)) /* after one, so that something is posted */
            break;
    }
    cq->unsignalled += n;
    return n;
}

unsigned nvme_post(struct nvme_ctrl *c)
{
    unsigned n = 0;

    for (unsigned i = 0; i <= c->top && nvme_running(c); i++) {
        if (c->cq[i].live)
            n += post_to(c, &c->cq[i]);
        if (n > 0 && ob_server_kept_waiting(c->server))
            break;
    }
    nvme_interrupt(c);
    return n;
}
