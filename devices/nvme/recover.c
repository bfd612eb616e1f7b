/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Going on where a process ended that was killed (--state), when its client is back.
 *
 * What that process did last may not be noted. Between two stores a command is one of these:
 *
 * - In the queue and not noted: it is fetched again.
 *
 * - Noted, whether or not it was executed: it is executed (again). The host has not seen it
 *   complete, so for the host it is under way, in any order with the others.
 *
 * - In the host's completion queue, and not noted as posted: it must not be executed, its pages are
 *   the host's again. An entry there with the phase that is next says so.
 *
 * - Posted: its record is free before the queue's tail moves. So an entry with the next phase
 *   counts as posted also when no command is found for it.
 *
 * An I/O queue is at most one entry ahead of its record, as each is noted before the next. The
 * admin queue is in checkpoints, from which several entries may have been posted.
 *
 * Nothing new is fetched, and nothing executed or posted, before all this was found out.
 */
#include "state_file.h"

/* Takes the command with this identifier out of the list, and frees it. */
static void drop(struct nvme_cmd_list *list, uint16_t cid)
{
    struct nvme_cmd_list all = *list;
    struct nvme_cmd *cmd;
    bool found = false;

    list->first = NULL;
    while ((cmd = nvme_cmd_pop(&all))) {
        if (!found && cmd->sqe.cid == cid) {
            found = true;
            nvme_cmd_free(cmd);
        } else {
            nvme_cmd_push(list, cmd);
        }
    }
}

/* Whether this entry of an I/O queue is one more than was noted; at most one is. */
static bool posted_io(struct nvme_ctrl *c, const struct nvme_cq *cq, const struct nvme_cqe *cqe)
{
    struct nvme_sq *sq = cqe->sq_id < NVME_QIDS ? &c->sq[cqe->sq_id] : NULL;

    if (sq && sq->live && &c->cq[sq->cqid] == cq)
        drop(&sq->again, cqe->cid);
    return true;
}

static bool posted_admin(struct nvme_cq *cq, const struct nvme_cqe *cqe)
{
    if (!cq->done.first || cq->done.first->sqe.cid != cqe->cid)
        return false;
    nvme_cmd_free(nvme_cmd_pop(&cq->done));
    return true;
}

/* False: the queue cannot be read now. */
static bool find_posted(struct nvme_ctrl *c, struct nvme_cq *cq)
{
    bool admin = cq == &c->cq[0], more;
    struct nvme_cqe cqe;

    do {
        int rc = ob_dma_read(c->server, cq->ring.base + (uint64_t)cq->tail * NVME_CQE_SIZE, &cqe,
                             sizeof(cqe));
        if (rc < 0)
            return nvme_unreachable(c, rc, "a completion queue is not in memory");
        more = (cqe.status & 1) == cq->phase &&
               (admin ? posted_admin(cq, &cqe) : posted_io(c, cq, &cqe));
        if (more)
            nvme_cq_advance(cq);
    } while (more && admin);
    return true;
}

/* From then on what is to be executed anew is like what is in the queues: nvme_fetch() takes it. */
void nvme_recover(struct nvme_ctrl *c)
{
    for (unsigned i = 0; i < NVME_QIDS; i++)
        if (c->cq[i].live && !find_posted(c, &c->cq[i]))
            return;
    c->recovering = false;
    c->again = true;
}
