/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A request on a file, as a sequence of stages. Each stage is one system call or one io_uring
 * operation; what comes after it depends on its result. So io_uring and the threads do the
 * same things in the same order:
 *   READ            SYNC when durable, then IO until all bytes are through
 *   WRITE           IO likewise (with RWF_DSYNC when durable)
 *   FLUSH           SYNC
 *   DISCARD         PUNCH, then SYNC when durable
 *   ZERO            PUNCH if it may, else ZERO_RANGE, else FILL; then SYNC when durable
 */
#include "blk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

#define FILL_MAX (256u << 10)
static const uint8_t zeroes[FILL_MAX];

static bool finished(struct blk_req *req, int rc)
{
    req->rc = rc;
    return false;
}

/* The next piece of a FILL: as much as is left, from the one buffer of zeroes. */
static bool fill_more(struct blk_req *req)
{
    req->stage = STAGE_FILL;
    req->fill.iov_base = (void *)(uintptr_t)zeroes;
    req->fill.iov_len = req->len < FILL_MAX ? req->len : FILL_MAX;
    req->iov = &req->fill;
    req->niov = 1;
    return true;
}

bool blk_stage_begin(const struct blk *blk, struct blk_req *req)
{
    switch (req->op) {
    case BLK_READ:
        req->stage = req->durable ? STAGE_SYNC : STAGE_IO;
        break;
    case BLK_WRITE:
        req->stage = STAGE_IO;
        break;
    case BLK_FLUSH:
        req->stage = STAGE_SYNC;
        break;
    case BLK_ZERO:
        req->stage = req->punch && blk->can_punch ? STAGE_PUNCH : STAGE_ZERO_RANGE;
        break;
    case BLK_DISCARD:
        if (!blk->can_punch)
            return finished(req, 0);
        req->stage = STAGE_PUNCH;
        break;
    }
    return req->len > 0 || req->op == BLK_FLUSH || finished(req, 0);
}

/* Drops the first done bytes of what is to be transferred. */
static void consume(struct blk_req *req, uint64_t done)
{
    req->offset += done;
    req->len -= done;
    while (done > 0) {
        uint64_t part = done < req->iov->iov_len ? done : req->iov->iov_len;
        req->iov->iov_base = (uint8_t *)req->iov->iov_base + part;
        req->iov->iov_len -= part;
        done -= part;
        if (req->iov->iov_len == 0) {
            req->iov++;
            req->niov--;
        }
    }
}

static bool after_range(struct blk_req *req)
{
    if (!req->durable)
        return finished(req, 0);
    req->stage = STAGE_SYNC;
    return true;
}

static bool after_fallocate(struct blk_req *req, int64_t res)
{
    if (res == 0)
        return after_range(req);
    /* EINVAL: a block device with larger sectors than ours */
    if (res != -EOPNOTSUPP && res != -ENOSYS && res != -ENODEV && res != -EINVAL)
        return finished(req, (int)res);
    if (req->op == BLK_DISCARD)
        return finished(req, 0); /* a hint that this file cannot take */
    if (req->stage == STAGE_PUNCH) {
        req->stage = STAGE_ZERO_RANGE;
        return true;
    }
    return fill_more(req);
}

bool blk_stage_next(struct blk_req *req, int64_t res)
{
    if (res == -EINTR)
        return true;
    switch (req->stage) {
    case STAGE_IO:
    case STAGE_FILL:
        if (res < 0)
            return finished(req, (int)res);
        if (res == 0) /* a file that became shorter than the image was */
            return finished(req, req->op == BLK_READ ? -ENODATA : -EIO);
        consume(req, (uint64_t)res);
        if (req->stage == STAGE_FILL)
            return req->len > 0 ? fill_more(req) : after_range(req);
        return req->len > 0 || finished(req, 0);
    case STAGE_PUNCH:
    case STAGE_ZERO_RANGE:
        return after_fallocate(req, res);
    case STAGE_SYNC:
        if (req->op != BLK_READ || res < 0)
            break;
        req->stage = STAGE_IO;
        return true;
    }
    return finished(req, (int)res);
}

/* A durable WRITE that failed with EIO did so before or while its data was synced. */
bool blk_cache_lost(const struct blk_req *req)
{
    return req->rc < 0 &&
           (req->stage == STAGE_SYNC || (req->op == BLK_WRITE && req->durable && req->rc == -EIO));
}

int blk_stage_fallocate_mode(const struct blk_req *req)
{
    return req->stage == STAGE_PUNCH ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
                                     : FALLOC_FL_ZERO_RANGE;
}

bool blk_stage_direct(const struct blk *blk, const struct blk_req *req)
{
    uint64_t memory = 0, offset = req->offset;

    if (blk->direct_fd < 0 || req->stage != STAGE_IO)
        return false;
    for (unsigned i = 0; i < req->niov; i++) {
        memory |= (uintptr_t)req->iov[i].iov_base;
        offset |= req->iov[i].iov_len;
    }
    return memory % blk->direct_memory == 0 && offset % blk->direct_offset == 0;
}

/* syscalls: preadv, pwritev, pwritev2, fallocate, fdatasync */
int64_t blk_stage_run(const struct blk *blk, int fd, const struct blk_req *req)
{
    off_t at = (off_t)req->offset;
    ssize_t res = 0;

    if (blk_stage_direct(blk, req))
        fd = blk->direct_fd;
    switch (req->stage) {
    case STAGE_IO:
        if (req->op == BLK_READ) {
            res = preadv(fd, req->iov, (int)req->niov, at);
            break;
        }
        res = pwritev2(fd, req->iov, (int)req->niov, at, req->durable ? RWF_DSYNC : 0);
        break;
    case STAGE_FILL:
        res = pwritev(fd, req->iov, (int)req->niov, at);
        break;
    case STAGE_PUNCH:
    case STAGE_ZERO_RANGE:
        res = fallocate(fd, blk_stage_fallocate_mode(req), at, (off_t)req->len);
        break;
    case STAGE_SYNC:
        res = fdatasync(fd);
        break;
    }
    return res < 0 ? -errno : res;
}
