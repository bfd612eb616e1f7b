/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Doorbells. They are words of one page, which the client writes: by messages that end up in
 * nvme_doorbell_access(), or, with --doorbells=mapped, through its mapping of the page. Either way
 * they are taken in nvme_doorbells_poll(), so that there is one place that believes nothing: each
 * word is read once, and checked before it becomes a queue's tail or head.
 *
 * Shadow doorbells. After Doorbell Buffer Config the I/O queues' words are in a page of the client.
 * The host writes there first, then compares with a second page, where we say at which value the
 * next message is wanted: while we look anyway, at the value just behind the one taken, which the
 * host comes to one whole round of the queue later; before we sleep, at the one taken, so that the
 * next command of the host wakes us. Completion queues' heads are wanted only where something waits
 * for them. What the messages say is not used: an older one may come after a newer shadow value.
 * The admin queue has no shadow, drivers ring its doorbells always.
 */
#include "state_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int nvme_doorbells_init(struct nvme_ctrl *c)
{
    void *page = MAP_FAILED;

    c->doorbell_fd = memfd_create("nvme-doorbells", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (c->doorbell_fd < 0)
        return -errno;
    /* A client that could shrink it would take us down with SIGBUS. */
    if (ftruncate(c->doorbell_fd, NVME_BAR_SIZE) == 0 &&
        fcntl(c->doorbell_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
        page = mmap(NULL, NVME_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, c->doorbell_fd,
                    NVME_DOORBELLS);
    if (page == MAP_FAILED) {
        int rc = -errno;
        close(c->doorbell_fd);
        return rc;
    }
    c->doorbells = page;
    return 0;
}

void nvme_doorbells_fini(struct nvme_ctrl *c)
{
    munmap((void *)c->doorbells, NVME_PAGE);
    close(c->doorbell_fd);
}

void nvme_doorbell_clear(struct nvme_ctrl *c, unsigned index)
{
    static const uint32_t zero;

    nvme_doorbell_set(c, index, 0);
    if (c->shadow.on && index >= 2) /* no host relies on it; but the queue's last user left his */
        ob_dma_write(c->server, c->shadow.values.base + 4 * index, &zero, sizeof(zero));
}

void nvme_doorbell_set(struct nvme_ctrl *c, unsigned index, uint32_t value)
{
    c->doorbells[index] = value;
    c->seen[index] = value;
}

void nvme_doorbell_access(struct nvme_ctrl *c, uint32_t index, uint32_t *value, bool is_write)
{
    unsigned qid = index / 2;

    if (!is_write) {
        *value = 0; /* reading a doorbell is undefined */
        return;
    }
    if (qid >= NVME_QIDS || !(index & 1 ? c->cq[qid].live : c->sq[qid].live))
        nvme_event(c, NVME_EVENT_BAD_DOORBELL);
    else
        c->doorbells[index] = *value;
}

/* ---- Taking them --------------------------------------------------------------------------- */

/* The doorbell's value when it is a new one. */
static bool changed(struct nvme_ctrl *c, const volatile uint32_t *words, unsigned index,
                    uint32_t *value)
{
    *value = __atomic_load_n(&words[index], __ATOMIC_ACQUIRE);
    if (*value == c->seen[index])
        return false;
    c->seen[index] = *value;
    return true;
}

static void take_tail(struct nvme_ctrl *c, struct nvme_sq *sq, uint32_t value)
{
    if (value >= sq->ring.entries) {
        nvme_event(c, NVME_EVENT_BAD_DOORBELL_VALUE);
        return;
    }
    sq->tail = value;
    nvme_note_tail(sq);
}

/* The host cannot have taken more than was posted. */
static void take_head(struct nvme_ctrl *c, struct nvme_cq *cq, uint32_t value)
{
    uint32_t entries = cq->ring.entries;
    uint32_t posted = (cq->tail + entries - cq->head) % entries;

    if (value >= entries || (value + entries - cq->head) % entries > posted) {
        nvme_event(c, NVME_EVENT_BAD_DOORBELL_VALUE);
        return;
    }
    cq->head = value;
    nvme_note_head(cq);
}

static bool poll_queue(struct nvme_ctrl *c, const volatile uint32_t *words, unsigned qid)
{
    bool any = false;
    uint32_t value;

    if (c->sq[qid].live && changed(c, words, 2 * qid, &value)) {
        take_tail(c, &c->sq[qid], value);
        any = true;
    }
    if (c->cq[qid].live && changed(c, words, 2 * qid + 1, &value)) {
        take_head(c, &c->cq[qid], value);
        any = true;
    }
    return any;
}

/* Memory that the client has given back, but not to be mapped here, is out of reach for good. */
static bool reach(struct nvme_ctrl *c, struct nvme_ring *page, uint32_t prot)
{
    struct ob_dma_ref ref;
    int rc;

    if (nvme_ring_map(c, page, prot))
        return true;
    rc = ob_dma_get(c->server, page->base, NVME_PAGE, prot, &ref);
    if (rc == 0)
        ob_dma_put(c->server, &ref);
    if (rc == -EOPNOTSUPP && nvme_now_ns() >= c->grace_ns)
        nvme_fatal(c, "the shadow doorbells are not in memory that is mapped here");
    return false;
}

/* Where the I/O queues' words are; NULL while the client has taken that memory back. */
static const volatile uint32_t *io_words(struct nvme_ctrl *c)
{
    struct nvme_shadow *s = &c->shadow;
    bool fresh = !s->events.ptr;

    if (!s->on)
        return c->doorbells;
    if (c->stopped || !reach(c, &s->events, OB_DMA_WRITE) || !reach(c, &s->values, OB_DMA_READ))
        return NULL;
    if (fresh)
        memset(s->told, 0xff, sizeof(s->told)); /* no value of a doorbell */
    return (const volatile uint32_t *)(void *)s->values.ptr;
}

static void tell(struct nvme_ctrl *c, unsigned index, uint32_t value)
{
    uint32_t *events = (uint32_t *)(void *)c->shadow.events.ptr;

    if (c->shadow.told[index] != value)
        __atomic_store_n(&events[index], value, __ATOMIC_RELAXED);
    c->shadow.told[index] = value;
}

static void tell_behind(struct nvme_ctrl *c, unsigned index, uint32_t entries)
{
    tell(c, index, (c->seen[index] + entries - 1) % entries);
}

/* Moves the wanted value on, long before the host comes to it again. */
static void keep_behind(struct nvme_ctrl *c, unsigned index, uint32_t entries)
{
    uint32_t told = c->shadow.told[index];

    if (told >= entries || (c->seen[index] + entries - told) % entries > entries / 2)
        tell_behind(c, index, entries);
}

bool nvme_doorbells_poll(struct nvme_ctrl *c)
{
    const volatile uint32_t *words = io_words(c);
    bool any = poll_queue(c, c->doorbells, 0);

    for (unsigned qid = 1; words && qid <= c->top; qid++) {
        if (!poll_queue(c, words, qid))
            continue;
        any = true;
        if (c->shadow.on && c->sq[qid].live)
            keep_behind(c, 2 * qid, c->sq[qid].ring.entries);
        if (c->shadow.on && c->cq[qid].live)
            keep_behind(c, 2 * qid + 1, c->cq[qid].ring.entries);
    }
    return any;
}

/* ---- Shadow doorbells ---------------------------------------------------------------------- */

bool nvme_doorbells_arm(struct nvme_ctrl *c)
{
    bool pin = c->intx && ob_server_irq_armed(c->server, OB_PCI_IRQ_INTX) > 0;

    if (!c->shadow.on || !io_words(c))
        return false;
    for (unsigned qid = 1; qid <= c->top; qid++) {
        const struct nvme_cq *cq = &c->cq[qid];
        if (c->sq[qid].live)
            tell(c, 2 * qid, c->seen[2 * qid]);
        if (cq->live && (cq->done.first || pin))
            tell(c, 2 * qid + 1, c->seen[2 * qid + 1]);
        else if (cq->live)
            tell_behind(c, 2 * qid + 1, cq->ring.entries);
    }
    /* Either the host sees what is wanted now, or we see what it wrote. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return nvme_doorbells_poll(c);
}

void nvme_shadow_start(struct nvme_ctrl *c, uint64_t values, uint64_t events)
{
    struct nvme_shadow *s = &c->shadow;

    nvme_shadow_stop(c);
    nvme_ring_start(&s->values, values, 1, NVME_PAGE);
    nvme_ring_start(&s->events, events, 1, NVME_PAGE);
    s->on = true;
}

void nvme_shadow_stop(struct nvme_ctrl *c)
{
    nvme_ring_forget(c, &c->shadow.values);
    nvme_ring_forget(c, &c->shadow.events);
    c->shadow.on = false;
}

static bool both_mapped(struct nvme_ctrl *c, uint64_t values, uint64_t events)
{
    struct nvme_ring v, e;
    bool there;

    nvme_ring_start(&v, values, 1, NVME_PAGE);
    nvme_ring_start(&e, events, 1, NVME_PAGE);
    there = nvme_ring_map(c, &v, OB_DMA_READ | OB_DMA_WRITE) && nvme_ring_map(c, &e, OB_DMA_WRITE);
    nvme_ring_forget(c, &v);
    nvme_ring_forget(c, &e);
    return there;
}

/* Memory that is not mapped here would have to be looked at by messages: then the host's own
 * messages are better, and it sends them when this command fails. One that fails changes nothing:
 * the host goes on with the pages that it had. */
uint16_t nvme_dbbuf_config(struct nvme_cmd *cmd)
{
    struct nvme_ctrl *c = cmd->ctrl;
    uint64_t values = cmd->sqe.prp1, events = cmd->sqe.prp2;
    uint32_t *words;

    if (c->cfg.mapped)
        return NVME_INVALID_OPCODE;
    if ((values | events) % NVME_PAGE || values == events || !both_mapped(c, values, events))
        return NVME_INVALID_FIELD;
    nvme_shadow_start(c, values, events);
    if (!nvme_ring_map(c, &c->shadow.values, OB_DMA_READ | OB_DMA_WRITE) || !io_words(c)) {
        nvme_shadow_stop(c);
        return NVME_INTERNAL_ERROR; /* no memory for that */
    }
    words = (uint32_t *)(void *)c->shadow.values.ptr;
    for (unsigned i = 2; i <= 2 * c->cfg.queues + 1; i++)
        __atomic_store_n(&words[i], c->seen[i], __ATOMIC_RELAXED);
    return NVME_OK;
}
