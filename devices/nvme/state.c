/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The state of the controller, as bytes in c->state: a head, then the live completion queues, the
 * live submission queues, the completions that are not posted, oldest first, and the admin commands
 * that are to be executed anew. On its way in all of it is checked before any of it is used.
 *
 * A controller that moves stands still, so there are none of the latter. Saved alive (for a state
 * file) there may be some, and the I/O commands that are under way are in the file's records.
 * A reset that waits for what is in flight is saved as if it were done: in the next process nothing
 * is.
 */
#include "nvme.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define STATE_VERSION 3u
#define ADMIN_ENTRIES 4096u /* at most: a field of AQA */

struct state_head {
    uint32_t version, size;
    /* what the other controller must have too */
    uint64_t blocks;
    uint32_t lba_shift, queues, interrupts, read_only;
    /* who it is */
    char serial[24], model[48], nqn[80];
    uint8_t nguid[16];
    /* registers */
    uint32_t cc, csts, intms, aqa;
    uint64_t asq, acq;
    uint64_t shadow_values, shadow_events; /* the same: no shadow doorbells */
    uint32_t shutting, bus_master_set, warnings, lost;
    uint32_t turn, ncqs, nsqs, ncompletions, ncommands, zero;
    struct nvme_events events; /* but for the requests: their identifiers */
    uint32_t aer_cids[NVME_AERS_MAX];
    struct nvme_features features; /* timestamp_ms is of the time of saving */
    struct nvme_stats stats;       /* start_ns is how long it has been running */
    struct nvme_error_entry errors[NVME_ERRORS];
};

struct cq_state {
    uint64_t base;
    uint32_t qid, entries, head, tail, doorbell, vector, irq, phase;
};

struct sq_state {
    uint64_t base;
    uint32_t qid, cqid, entries, head, tail, doorbell;
};

struct completion {
    uint32_t result;
    uint16_t sq_id, cid, status, zero;
};

/* A state that is being taken in. */
struct incoming {
    struct state_head head;
    struct cq_state cqs[NVME_QIDS];
    struct sq_state sqs[NVME_QIDS];
    struct completion *completions;
    struct nvme_sqe commands[NVME_INFLIGHT_MAX + NVME_AERS_MAX];
};

/* ---- Saving ------------------------------------------------------------------------------- */

static void save_cq(struct nvme_ctrl *c, unsigned qid)
{
    const struct nvme_cq *cq = &c->cq[qid];
    const struct cq_state state = { .base = cq->ring.base,
                                    .qid = qid,
                                    .entries = cq->ring.entries,
                                    .head = cq->head,
                                    .tail = cq->tail,
                                    .doorbell = c->seen[2 * qid + 1],
                                    .vector = cq->vector,
                                    .irq = cq->irq,
                                    .phase = cq->phase };

    ob_state_put(&c->state, &state, sizeof(state));
}

static void save_sq(struct nvme_ctrl *c, unsigned qid)
{
    const struct nvme_sq *sq = &c->sq[qid];
    const struct sq_state state = { .base = sq->ring.base,
                                    .qid = qid,
                                    .cqid = sq->cqid,
                                    .entries = sq->ring.entries,
                                    .head = sq->head,
                                    .tail = sq->tail,
                                    .doorbell = c->seen[2 * qid] };

    ob_state_put(&c->state, &state, sizeof(state));
}

static uint32_t save_completions(struct nvme_ctrl *c, const struct nvme_cq *cq)
{
    uint32_t n = 0;

    for (const struct nvme_cmd *cmd = cq->done.first; cmd; cmd = cmd->next, n++) {
        const struct completion state = { cmd->result, cmd->sq->id, cmd->sqe.cid, cmd->status, 0 };

        ob_state_put(&c->state, &state, sizeof(state));
    }
    return n;
}

static void fill_head(const struct nvme_ctrl *c, struct state_head *head)
{
    int64_t now = nvme_now_ns();

    head->version = STATE_VERSION;
    head->size = sizeof(*head);
    head->blocks = c->blocks;
    head->lba_shift = c->cfg.lba_shift;
    head->queues = c->cfg.queues;
    head->interrupts = c->cfg.interrupts;
    head->read_only = c->cfg.read_only;
    memcpy(head->serial, c->serial, sizeof(c->serial));
    memcpy(head->model, c->model, sizeof(c->model));
    memcpy(head->nqn, c->nqn, sizeof(c->nqn));
    memcpy(head->nguid, c->nguid, sizeof(c->nguid));
    head->cc = c->cc;
    head->csts = !c->resetting ? c->csts : c->shutting ? NVME_CSTS_SHST_OCCURRING : 0;
    head->intms = c->intms;
    head->aqa = c->aqa;
    head->asq = c->asq;
    head->acq = c->acq;
    if (c->shadow.on && !c->resetting) {
        head->shadow_values = c->shadow.values.base;
        head->shadow_events = c->shadow.events.base;
    }
    head->shutting = c->shutting || c->flushing;
    head->bus_master_set = c->bus_master_set;
    head->warnings = c->warnings;
    head->lost = c->lost;
    head->turn = c->turn;
    if (!c->resetting)
        head->events = c->events;
    for (unsigned i = 0; i < NVME_AERS_MAX; i++) {
        head->aer_cids[i] = i < head->events.naers ? c->events.aers[i]->sqe.cid : 0;
        head->events.aers[i] = NULL;
    }
    head->features = c->features;
    head->features.timestamp_ms += (uint64_t)((now - c->features.timestamp_ns) / 1000000);
    head->features.timestamp_ns = 0;
    head->stats = c->stats;
    head->stats.start_ns = now - c->stats.start_ns;
    memcpy(head->errors, c->errors, sizeof(c->errors));
}

/* But for Asynchronous Event Requests, which are in the head. */
static uint32_t save_commands(struct nvme_ctrl *c)
{
    const struct nvme_sq *sq = &c->sq[0];
    uint32_t n = 0;

    for (unsigned i = 0; i < sq->ncmds; i++) {
        const struct nvme_cmd *cmd = &sq->cmds[i];

        if (!cmd->pending || cmd->sqe.opcode == NVME_ADM_ASYNC_EVENT)
            continue;
        ob_state_put(&c->state, &cmd->sqe, sizeof(cmd->sqe));
        n++;
    }
    return n;
}

static void save_queues(struct nvme_ctrl *c, struct state_head *head, bool live)
{
    for (unsigned i = 0; i < NVME_QIDS; i++)
        if (c->cq[i].live) {
            save_cq(c, i);
            head->ncqs++;
        }
    for (unsigned i = 0; i < NVME_QIDS; i++)
        if (c->sq[i].live) {
            save_sq(c, i);
            head->nsqs++;
        }
    for (unsigned i = 0; i < (live ? 1 : NVME_QIDS); i++)
        head->ncompletions += save_completions(c, &c->cq[i]);
    head->ncommands = save_commands(c);
}

static int save(struct nvme_ctrl *c, bool live)
{
    struct state_head *head = calloc(1, sizeof(*head));

    if (!head)
        return -ENOMEM;
    fill_head(c, head);
    ob_state_clear(&c->state);
    ob_state_put(&c->state, head, sizeof(*head)); /* the numbers in it follow */
    if (!c->resetting)
        save_queues(c, head, live);
    if (!c->state.failed)
        memcpy(c->state.data, head, sizeof(*head));
    free(head);
    return c->state.failed ? -ENOMEM : 0;
}

int nvme_state_save(struct nvme_ctrl *c)
{
    nvme_doorbells_poll(c);
    return save(c, false);
}

int nvme_state_save_live(struct nvme_ctrl *c)
{
    return save(c, true);
}

/* ---- Checking ----------------------------------------------------------------------------- */

static bool same_kind(const struct nvme_ctrl *c, const struct state_head *head)
{
    return head->version == STATE_VERSION && head->size == sizeof(*head) &&
           head->blocks == c->blocks && head->lba_shift == c->cfg.lba_shift &&
           head->queues == c->cfg.queues && head->interrupts == c->cfg.interrupts &&
           head->read_only == c->cfg.read_only;
}

static bool text_ok(const char *text, size_t size)
{
    return memchr(text, '\0', size) != NULL;
}

/* Times of this machine can be added to these. */
static bool stats_ok(const struct nvme_stats *st)
{
    return st->start_ns >= 0 && st->start_ns < INT64_MAX / 2 && st->busy_ns >= 0 &&
           st->busy_ns < INT64_MAX / 2;
}

static bool head_ok(const struct nvme_ctrl *c, const struct state_head *head)
{
    const struct nvme_events *ev = &head->events;
    bool ready = head->csts & NVME_CSTS_RDY;

    if (!same_kind(c, head) || !text_ok(head->serial, sizeof(c->serial)) ||
        !text_ok(head->model, sizeof(c->model)) || !text_ok(head->nqn, sizeof(c->nqn)))
        return false;
    if ((head->csts & ~(NVME_CSTS_RDY | NVME_CSTS_CFS | NVME_CSTS_SHST_MASK)) ||
        (head->csts & NVME_CSTS_SHST_MASK) == NVME_CSTS_SHST_MASK ||
        (head->shutting | head->bus_master_set | head->lost) > 1 || head->warnings > UINT8_MAX ||
        (head->aqa & ~0x0fff0fffu) ||
        (head->asq | head->acq | head->shadow_values | head->shadow_events) % NVME_PAGE ||
        (!ready && (head->shadow_values | head->shadow_events)))
        return false;
    if (ready && (!(head->cc & NVME_CC_EN) || NVME_CC_CSS(head->cc) || NVME_CC_MPS(head->cc) ||
                  NVME_CC_AMS(head->cc)))
        return false;
    if (ready ? !head->ncqs || !head->nsqs
              : head->ncqs || head->nsqs || ev->naers || head->ncommands)
        return false;
    return head->turn < c->cfg.queues && head->ncqs <= c->cfg.queues + 1 &&
           head->nsqs <= c->cfg.queues + 1 && ev->nwaiting <= NVME_EVENTS_MAX &&
           ev->naers <= NVME_AERS_MAX && head->ncommands <= NVME_INFLIGHT_MAX + NVME_AERS_MAX &&
           stats_ok(&head->stats) && nvme_features_ok(c, &head->features);
}

/* Queues come in order of their number, so none comes twice and the admin queue is the first. */
static bool ring_ok(const struct nvme_ctrl *c, uint32_t index, uint32_t qid, uint32_t before,
                    uint64_t base, uint32_t entries)
{
    if (index == 0 ? qid != 0 : qid <= before)
        return false;
    return qid <= c->cfg.queues && base % NVME_PAGE == 0 && entries >= 2 &&
           entries <= (qid == 0 ? ADMIN_ENTRIES : NVME_QUEUE_ENTRIES_MAX);
}

static bool cqs_ok(const struct nvme_ctrl *c, const struct incoming *in)
{
    for (uint32_t i = 0; i < in->head.ncqs; i++) {
        const struct cq_state *cq = &in->cqs[i];

        if (!ring_ok(c, i, cq->qid, i ? cq[-1].qid : 0, cq->base, cq->entries) ||
            cq->head >= cq->entries || cq->tail >= cq->entries || cq->vector > c->cfg.queues ||
            cq->irq > 1 || cq->phase > 1)
            return false;
    }
    return true;
}

static bool has_cq(const struct incoming *in, uint32_t qid)
{
    for (uint32_t i = 0; i < in->head.ncqs; i++)
        if (in->cqs[i].qid == qid)
            return true;
    return false;
}

static bool sqs_ok(const struct nvme_ctrl *c, const struct incoming *in)
{
    for (uint32_t i = 0; i < in->head.nsqs; i++) {
        const struct sq_state *sq = &in->sqs[i];

        if (!ring_ok(c, i, sq->qid, i ? sq[-1].qid : 0, sq->base, sq->entries) ||
            sq->head >= sq->entries || sq->tail >= sq->entries || !has_cq(in, sq->cqid) ||
            (sq->qid == 0) != (sq->cqid == 0))
            return false;
    }
    return true;
}

/* Takes all of the state apart. 0 or a negative errno; in->completions is to be freed anyway. */
static int parse(struct nvme_ctrl *c, struct incoming *in)
{
    struct ob_state_buffer *state = &c->state;
    size_t size;

    ob_state_take(state, &in->head, sizeof(in->head));
    if (state->failed || !head_ok(c, &in->head))
        return -EINVAL;
    ob_state_take(state, in->cqs, in->head.ncqs * sizeof(in->cqs[0]));
    ob_state_take(state, in->sqs, in->head.nsqs * sizeof(in->sqs[0]));
    size = in->head.ncompletions * sizeof(*in->completions);
    if (state->failed ||
        size + in->head.ncommands * sizeof(in->commands[0]) != state->len - state->pos)
        return -EINVAL;
    in->completions = malloc(size + 1);
    if (!in->completions)
        return -ENOMEM;
    ob_state_take(state, in->completions, size);
    ob_state_take(state, in->commands, in->head.ncommands * sizeof(in->commands[0]));
    return cqs_ok(c, in) && sqs_ok(c, in) ? 0 : -EINVAL;
}

/* ---- Loading ------------------------------------------------------------------------------ */

static int load_queues(struct nvme_ctrl *c, const struct incoming *in)
{
    for (uint32_t i = 0; i < in->head.ncqs; i++) {
        const struct cq_state *s = &in->cqs[i];
        struct nvme_cq *cq = &c->cq[s->qid];

        nvme_cq_start(c, s->qid, s->base, s->entries, s->irq, (uint16_t)s->vector);
        cq->head = s->head;
        cq->tail = s->tail;
        cq->phase = s->phase;
        nvme_doorbell_set(c, 2 * s->qid + 1, s->doorbell);
    }
    for (uint32_t i = 0; i < in->head.nsqs; i++) {
        const struct sq_state *s = &in->sqs[i];

        if (nvme_sq_start(c, s->qid, s->cqid, s->base, s->entries) < 0)
            return -ENOMEM;
        c->sq[s->qid].head = s->head;
        c->sq[s->qid].tail = s->tail;
        nvme_doorbell_set(c, 2 * s->qid, s->doorbell);
    }
    return 0;
}

/* There must be a queue that each command came from, with room for it. */
static int load_commands(struct nvme_ctrl *c, const struct incoming *in)
{
    for (uint32_t i = 0; i < in->head.ncompletions; i++) {
        const struct completion *s = &in->completions[i];

        if (s->sq_id > c->cfg.queues || s->status > 0x7fff || s->zero ||
            !nvme_cmd_restore(c, &c->sq[s->sq_id], s->cid, s->status, s->result))
            return -EINVAL;
    }
    c->events = in->head.events;
    c->events.naers = 0;
    memset(c->events.aers, 0, sizeof(c->events.aers));
    for (unsigned i = 0; i < in->head.events.naers; i++) {
        struct nvme_cmd *aer = nvme_cmd_take(&c->sq[0]);

        if (!aer || in->head.aer_cids[i] > UINT16_MAX)
            return -EINVAL;
        aer->sqe = (struct nvme_sqe){ .opcode = NVME_ADM_ASYNC_EVENT,
                                      .cid = (uint16_t)in->head.aer_cids[i] };
        c->events.aers[c->events.naers++] = aer;
    }
    for (uint32_t i = 0; i < in->head.ncommands; i++) {
        struct nvme_cmd *cmd = nvme_cmd_take(&c->sq[0]);

        if (!cmd)
            return -EINVAL;
        cmd->sqe = in->commands[i];
        nvme_cmd_push(&c->sq[0].again, cmd);
        c->recovering = true;
    }
    return 0;
}

static void load_head(struct nvme_ctrl *c, const struct state_head *head)
{
    int64_t then = c->state_ns ? c->state_ns : nvme_now_ns();

    memcpy(c->serial, head->serial, sizeof(c->serial));
    memcpy(c->model, head->model, sizeof(c->model));
    memcpy(c->nqn, head->nqn, sizeof(c->nqn));
    memcpy(c->nguid, head->nguid, sizeof(c->nguid));
    c->cc = head->cc;
    c->csts = head->csts;
    c->intms = head->intms;
    c->aqa = head->aqa;
    c->asq = head->asq;
    c->acq = head->acq;
    if (head->shadow_values != head->shadow_events)
        nvme_shadow_start(c, head->shadow_values, head->shadow_events);
    c->shutting = head->shutting;
    c->bus_master_set = head->bus_master_set;
    c->warnings = (uint8_t)head->warnings;
    c->lost = head->lost;
    c->turn = head->turn;
    c->features = head->features;
    c->features.timestamp_ns = then;
    c->stats = head->stats;
    c->stats.start_ns = then - head->stats.start_ns;
    c->stats.busy_since_ns = 0;
    memcpy(c->errors, head->errors, sizeof(c->errors));
    /* A reset that was to be followed by enabling. */
    c->resetting = (c->cc & NVME_CC_EN) && !(c->csts & (NVME_CSTS_RDY | NVME_CSTS_CFS));
}

/* Nothing is in flight, and the controller is reset; what fails half way leaves it like that. */
static int use(struct nvme_ctrl *c, const struct incoming *in)
{
    int rc = nvme_hard_reset(c);

    if (rc == 0)
        rc = load_queues(c, in);
    if (rc == 0)
        rc = load_commands(c, in);
    if (rc < 0) {
        nvme_hard_reset(c);
        return rc;
    }
    load_head(c, &in->head);
    c->loaded = true;
    return 0;
}

int nvme_state_load(struct nvme_ctrl *c)
{
    struct incoming *in = calloc(1, sizeof(*in));
    int rc;

    if (!in)
        return -ENOMEM;
    rc = parse(c, in);
    if (rc == 0)
        rc = use(c, in);
    free(in->completions);
    free(in);
    return rc;
}
