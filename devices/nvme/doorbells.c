/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Doorbells. They are words of one page, which the client writes: through its mapping of the page,
 * or, with --doorbells=trapped, by messages that end up in nvme_doorbell_access(). Either way they
 * are taken in nvme_doorbells_poll(), so that there is one place that believes nothing: each word
 * is read once, and checked before it becomes a queue's tail or head.
 */
#include "nvme.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
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
    nvme_doorbell_set(c, index, 0);
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

/* The doorbell's value when it is a new one. */
static bool changed(struct nvme_ctrl *c, unsigned index, uint32_t *value)
{
    *value = __atomic_load_n(&c->doorbells[index], __ATOMIC_ACQUIRE);
    if (*value == c->seen[index])
        return false;
    c->seen[index] = *value;
    return true;
}

static void take_tail(struct nvme_ctrl *c, struct nvme_sq *sq, uint32_t value)
{
    if (value < sq->ring.entries)
        sq->tail = value;
    else
        nvme_event(c, NVME_EVENT_BAD_DOORBELL_VALUE);
}

/* The host cannot have taken more than was posted. */
static void take_head(struct nvme_ctrl *c, struct nvme_cq *cq, uint32_t value)
{
    uint32_t entries = cq->ring.entries;
    uint32_t posted = (cq->tail + entries - cq->head) % entries;

    if (value < entries && (value + entries - cq->head) % entries <= posted)
        cq->head = value;
    else
        nvme_event(c, NVME_EVENT_BAD_DOORBELL_VALUE);
}

bool nvme_doorbells_poll(struct nvme_ctrl *c)
{
    bool any = false;
    uint32_t value;

    for (unsigned qid = 0; qid <= c->cfg.queues; qid++) {
        if (c->sq[qid].live && changed(c, 2 * qid, &value)) {
            take_tail(c, &c->sq[qid], value);
            any = true;
        }
        if (c->cq[qid].live && changed(c, 2 * qid + 1, &value)) {
            take_head(c, &c->cq[qid], value);
            any = true;
        }
    }
    return any;
}
