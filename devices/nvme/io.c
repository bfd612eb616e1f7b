/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * I/O commands. The write cache is the kernel's page cache: while it is on, Write is done when the
 * kernel has the data, Flush and Force Unit Access mean on stable storage (of a Read: what it reads
 * is there first); while it is off, every command that changes data is done when that is on stable
 * storage.
 */
#include "nvme.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Requests to the backend --------------------------------------------------------------- */

static void log_failure(struct nvme_ctrl *c, const struct blk_req *req, int rc)
{
    static const char *const names[] = { "read", "write", "flush", "write of zeroes", "discard" };
    char line[128];

    if (!nvme_may_say(&c->log_ns))
        return;
    snprintf(line, sizeof(line), "%s at byte %llu of the image: %s", names[req->op],
             (unsigned long long)req->offset,
             rc == -ENODATA ? "the image is shorter than it was" : strerror(-rc));
    c->log(c, OB_LOG_ERROR, line);
}

/*
 * The kernel tells of data that it could not write back once, drops it, and knows nothing of it the
 * next time. The host retries a command that failed: a second Flush must not succeed.
 */
void nvme_cache_lost(struct nvme_ctrl *c)
{
    if (!c->lost)
        c->log(c, OB_LOG_ERROR, "written data may be lost: every flush fails from now on");
    c->lost = true;
    c->dirty = true;
    c->warnings |= NVME_WARN_RELIABILITY;
    if (c->features.async_event & NVME_WARN_RELIABILITY)
        nvme_event(c, NVME_EVENT_RELIABILITY);
}

static uint16_t status_of(struct nvme_ctrl *c, const struct blk_req *req, int rc)
{
    if (rc == 0)
        return req->op == BLK_FLUSH && c->lost ? NVME_WRITE_FAULT : NVME_OK;
    if (rc == -EFAULT) /* the client's memory, not ours */
        return NVME_DATA_TRANSFER_ERROR;
    log_failure(c, req, rc);
    if (rc == -ENOMEM)
        return NVME_INTERNAL_ERROR;
    if (blk_cache_lost(req))
        nvme_cache_lost(c);
    if (rc == -ENOSPC || rc == -EDQUOT || rc == -EFBIG)
        return NVME_CAPACITY_EXCEEDED;
    c->stats.media_errors++;
    return req->op == BLK_READ ? NVME_READ_ERROR : NVME_WRITE_FAULT;
}

static uint16_t compare(struct nvme_cmd *cmd)
{
    uint8_t *host = malloc(cmd->len);
    uint16_t status;

    if (!host)
        return NVME_INTERNAL_ERROR;
    status = nvme_copy_from_host(cmd->ctrl, &cmd->sqe, host, cmd->len);
    if (status == NVME_CLIENT_LEFT) /* the image's side of it is done: too late to begin anew */
        status = NVME_DATA_TRANSFER_ERROR;
    if (status == NVME_OK && memcmp(host, cmd->data.bounce, cmd->len) != 0)
        status = NVME_COMPARE_FAILURE;
    free(host);
    return status;
}

static void count(struct nvme_ctrl *c, const struct nvme_cmd *cmd)
{
    if (cmd->blk.op == BLK_READ) {
        c->stats.reads++;
        c->stats.bytes_read += cmd->len;
    } else if (cmd->blk.op == BLK_WRITE) {
        c->stats.writes++;
        c->stats.bytes_written += cmd->len;
    }
}

static bool next_range(struct nvme_cmd *cmd);

static void blk_done(struct blk_req *req, int rc)
{
    struct nvme_cmd *cmd = (void *)((char *)req - offsetof(struct nvme_cmd, blk));
    struct nvme_ctrl *c = cmd->ctrl;
    struct nvme_sq *sq = cmd->sq;
    uint16_t status = status_of(c, req, rc);

    c->inflight--;
    sq->inflight--;
    if (status == NVME_OK && !c->resetting && next_range(cmd))
        return;
    if (status == NVME_OK)
        count(c, cmd);
    if (status == NVME_OK && cmd->after == NVME_AFTER_COMPARE && !c->resetting)
        status = compare(cmd);
    nvme_cmd_done(cmd, status);
    nvme_delete_settle(c, sq);
}

uint16_t nvme_blk_submit(struct nvme_cmd *cmd)
{
    cmd->blk.done = blk_done;
    cmd->ctrl->inflight++;
    cmd->sq->inflight++;
    cmd->ctrl->blk->ops->submit(cmd->ctrl->blk, &cmd->blk);
    return NVME_PENDING;
}

/* ---- Commands ------------------------------------------------------------------------------ */

static bool in_range(const struct nvme_ctrl *c, uint64_t slba, uint64_t blocks)
{
    return slba <= c->blocks && blocks <= c->blocks - slba;
}

/* First block and number of blocks, of Read, Write, Compare and Write Zeroes. */
static uint16_t take_lbas(struct nvme_cmd *cmd, enum blk_op op)
{
    struct nvme_ctrl *c = cmd->ctrl;
    const struct nvme_sqe *sqe = &cmd->sqe;
    uint64_t slba = sqe->dw10 | (uint64_t)sqe->dw11 << 32;
    uint64_t blocks = (sqe->dw12 & 0xffff) + 1;

    cmd->blk = (struct blk_req){ .op = op };
    if (!in_range(c, slba, blocks))
        return NVME_LBA_OUT_OF_RANGE;
    cmd->blk.offset = slba << c->cfg.lba_shift;
    cmd->blk.len = blocks << c->cfg.lba_shift;
    cmd->blk.durable = sqe->dw12 & NVME_IO_FUA;
    if (op == BLK_READ)
        cmd->blk.durable &= !c->cfg.read_only; /* nothing there can be in a cache */
    else
        cmd->blk.durable |= !c->features.write_cache;
    return NVME_OK;
}

static uint16_t transfer(struct nvme_cmd *cmd, enum blk_op op)
{
    uint16_t status = take_lbas(cmd, op);

    if (status != NVME_OK)
        return status;
    if (cmd->blk.len > NVME_TRANSFER_MAX)
        return NVME_INVALID_FIELD;
    cmd->len = (uint32_t)cmd->blk.len;
    if (cmd->sqe.opcode == NVME_IO_COMPARE) {
        cmd->after = NVME_AFTER_COMPARE;
        status = nvme_data_bounce(cmd);
    } else {
        status = nvme_data_map(cmd, op == BLK_READ);
    }
    if (status != NVME_OK)
        return status;
    cmd->blk.iov = cmd->data.iov;
    cmd->blk.niov = cmd->data.niov;
    return nvme_blk_submit(cmd);
}

static uint16_t write_zeroes(struct nvme_cmd *cmd)
{
    uint16_t status = take_lbas(cmd, BLK_ZERO);

    if (status != NVME_OK)
        return status;
    cmd->blk.punch = cmd->sqe.dw12 & NVME_IO_DEAC;
    return nvme_blk_submit(cmd);
}

/* Submits the next range of a Dataset Management that has blocks in it. */
static bool next_range(struct nvme_cmd *cmd)
{
    const struct nvme_ctrl *c = cmd->ctrl;

    while (cmd->ranges && cmd->range < cmd->nranges) {
        const struct nvme_dsm_range *range = &cmd->ranges[cmd->range++];
        if (range->blocks == 0)
            continue;
        cmd->blk = (struct blk_req){
            .op = BLK_DISCARD,
            .durable = !c->features.write_cache,
            .offset = range->slba << c->cfg.lba_shift,
            .len = (uint64_t)range->blocks << c->cfg.lba_shift,
        };
        nvme_blk_submit(cmd);
        return true;
    }
    return false;
}

static uint16_t dataset_management(struct nvme_cmd *cmd)
{
    struct nvme_ctrl *c = cmd->ctrl;
    uint32_t n = (cmd->sqe.dw10 & 0xff) + 1;
    uint16_t status;

    if (!(cmd->sqe.dw11 & NVME_DSM_DEALLOCATE))
        return NVME_OK; /* hints about future accesses */
    if (c->cfg.read_only)
        return NVME_READ_ONLY_RANGE;
    cmd->ranges = calloc(n, sizeof(*cmd->ranges));
    if (!cmd->ranges)
        return NVME_INTERNAL_ERROR;
    c->listed += n;
    cmd->nranges = n;
    cmd->range = 0;
    status = nvme_copy_from_host(c, &cmd->sqe, cmd->ranges, n * (uint32_t)sizeof(*cmd->ranges));
    for (uint32_t i = 0; status == NVME_OK && i < n; i++)
        if (!in_range(c, cmd->ranges[i].slba, cmd->ranges[i].blocks))
            status = NVME_LBA_OUT_OF_RANGE;
    if (status != NVME_OK)
        return status;
    return next_range(cmd) ? NVME_PENDING : NVME_OK;
}

static uint16_t flush(struct nvme_cmd *cmd)
{
    cmd->blk = (struct blk_req){ .op = BLK_FLUSH };
    return cmd->ctrl->cfg.read_only ? NVME_OK : nvme_blk_submit(cmd);
}

static bool changes_data(uint8_t opcode)
{
    return opcode == NVME_IO_WRITE || opcode == NVME_IO_WRITE_ZEROES;
}

uint16_t nvme_io(struct nvme_cmd *cmd)
{
    const struct nvme_sqe *sqe = &cmd->sqe;

    if (sqe->flags) /* no fused commands, no SGLs */
        return NVME_INVALID_FIELD;
    if (sqe->nsid != NVME_NSID && !(sqe->nsid == NVME_NSID_ALL && sqe->opcode == NVME_IO_FLUSH))
        return NVME_INVALID_NS;
    if (cmd->ctrl->cfg.read_only && changes_data(sqe->opcode))
        return NVME_READ_ONLY_RANGE;
    switch (sqe->opcode) {
    case NVME_IO_FLUSH:
        return flush(cmd);
    case NVME_IO_WRITE:
        return transfer(cmd, BLK_WRITE);
    case NVME_IO_READ:
    case NVME_IO_COMPARE:
        return transfer(cmd, BLK_READ);
    case NVME_IO_WRITE_ZEROES:
        return write_zeroes(cmd);
    case NVME_IO_DSM:
        return dataset_management(cmd);
    default:
        return NVME_INVALID_OPCODE;
    }
}
