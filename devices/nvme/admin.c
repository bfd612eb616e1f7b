/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Admin commands: dispatch, creating and deleting queues, Abort.
 */
#include "nvme.h"

/* Common to both kinds of Create: queue identifier and size in dword 10, flags in dword 11. */
static uint16_t check_create(const struct nvme_ctrl *c, const struct nvme_sqe *sqe, bool live)
{
    uint32_t qid = sqe->dw10 & 0xffff, entries = (sqe->dw10 >> 16) + 1;

    if (qid == 0 || qid > c->cfg.queues || live)
        return NVME_INVALID_QID;
    if (entries < 2 || entries > NVME_QUEUE_ENTRIES_MAX)
        return NVME_INVALID_QUEUE_SIZE;
    if (!(sqe->dw11 & 1)) /* PC: CAP.CQR says that queues must be contiguous */
        return NVME_INVALID_FIELD;
    if (sqe->prp1 % NVME_PAGE)
        return NVME_PRP_OFFSET_INVALID;
    return NVME_OK;
}

static uint16_t create_cq(struct nvme_cmd *cmd)
{
    struct nvme_ctrl *c = cmd->ctrl;
    const struct nvme_sqe *sqe = &cmd->sqe;
    uint32_t qid = sqe->dw10 & 0xffff, vector = sqe->dw11 >> 16;
    uint16_t status;

    status = check_create(c, sqe, qid <= c->cfg.queues && c->cq[qid].live);
    if (status != NVME_OK)
        return status;
    if (NVME_CC_IOCQES(c->cc) != 4)
        return NVME_INVALID_FIELD;
    if (vector > c->cfg.queues)
        return NVME_INVALID_VECTOR;
    nvme_cq_start(c, qid, sqe->prp1, (sqe->dw10 >> 16) + 1, sqe->dw11 & 2, (uint16_t)vector);
    return NVME_OK;
}

static uint16_t create_sq(struct nvme_cmd *cmd)
{
    struct nvme_ctrl *c = cmd->ctrl;
    const struct nvme_sqe *sqe = &cmd->sqe;
    uint32_t qid = sqe->dw10 & 0xffff, cqid = sqe->dw11 >> 16;
    uint16_t status;

    status = check_create(c, sqe, qid <= c->cfg.queues && c->sq[qid].live);
    if (status != NVME_OK)
        return status;
    if (NVME_CC_IOSQES(c->cc) != 6)
        return NVME_INVALID_FIELD;
    if (cqid == 0 || cqid > c->cfg.queues || !c->cq[cqid].live)
        return NVME_CQ_INVALID;
    if (nvme_sq_start(c, qid, cqid, sqe->prp1, (sqe->dw10 >> 16) + 1) < 0)
        return NVME_INTERNAL_ERROR;
    return NVME_OK;
}

/* Done at once, or when the last of its commands is: those cannot be stopped half way. */
static uint16_t delete_sq(struct nvme_cmd *cmd)
{
    struct nvme_ctrl *c = cmd->ctrl;
    uint32_t qid = cmd->sqe.dw10 & 0xffff;

    if (qid == 0 || qid > c->cfg.queues || !c->sq[qid].live || c->sq[qid].deleter)
        return NVME_INVALID_QID;
    c->sq[qid].deleter = cmd;
    nvme_delete_settle(c, &c->sq[qid]);
    return NVME_PENDING;
}

void nvme_delete_settle(struct nvme_ctrl *c, struct nvme_sq *sq)
{
    struct nvme_cmd *deleter = sq->deleter;

    if (!deleter || sq->inflight > 0 || c->resetting)
        return;
    nvme_sq_stop(c, sq);
    nvme_cmd_done(deleter, NVME_OK);
}

static uint16_t delete_cq(struct nvme_cmd *cmd)
{
    struct nvme_ctrl *c = cmd->ctrl;
    uint32_t qid = cmd->sqe.dw10 & 0xffff;

    if (qid == 0 || qid > c->cfg.queues || !c->cq[qid].live)
        return NVME_INVALID_QID;
    if (c->cq[qid].nsqs > 0)
        return NVME_INVALID_QUEUE_DELETION;
    nvme_cq_stop(c, &c->cq[qid]);
    return NVME_OK;
}

/* Only Asynchronous Event Requests wait long enough to be aborted. Result 0: aborted. */
static uint16_t abort_command(struct nvme_cmd *cmd)
{
    uint32_t sqid = cmd->sqe.dw10 & 0xffff, cid = cmd->sqe.dw10 >> 16;

    cmd->result = !(sqid == 0 && nvme_event_abort(cmd->ctrl, (uint16_t)cid));
    return NVME_OK;
}

uint16_t nvme_admin(struct nvme_cmd *cmd)
{
    if (cmd->sqe.flags) /* no fused commands, no SGLs */
        return NVME_INVALID_FIELD;
    switch (cmd->sqe.opcode) {
    case NVME_ADM_DELETE_SQ:
        return delete_sq(cmd);
    case NVME_ADM_CREATE_SQ:
        return create_sq(cmd);
    case NVME_ADM_GET_LOG_PAGE:
        return nvme_get_log(cmd);
    case NVME_ADM_DELETE_CQ:
        return delete_cq(cmd);
    case NVME_ADM_CREATE_CQ:
        return create_cq(cmd);
    case NVME_ADM_IDENTIFY:
        return nvme_identify(cmd);
    case NVME_ADM_ABORT:
        return abort_command(cmd);
    case NVME_ADM_SET_FEATURES:
        return nvme_set_feature(cmd);
    case NVME_ADM_GET_FEATURES:
        return nvme_get_feature(cmd);
    case NVME_ADM_ASYNC_EVENT:
        return nvme_async_event(cmd);
    case NVME_ADM_DBBUF_CONFIG:
        return nvme_dbbuf_config(cmd);
    default:
        return NVME_INVALID_OPCODE;
    }
}
