/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mem: and null:, which never wait and so are done in poll(). Memory is a memfd rather than plain
 * memory: the kernel then copies between it and the client's pages, and answers a page that the
 * client took away with EFAULT where a memcpy() here would be a SIGBUS.
 */
#include "blk.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

struct blk_sync {
    struct blk base;
    int fd;
    bool discard;
    struct blk_fifo fifo;
};

static void sync_submit(struct blk *blk, struct blk_req *req)
{
    blk_fifo_push(&((struct blk_sync *)blk)->fifo, req);
}

static bool sync_poll(struct blk *blk)
{
    struct blk_sync *s = (struct blk_sync *)blk;
    struct blk_fifo work = s->fifo; /* done() may submit: that is for the next call */
    struct blk_req *req;

    s->fifo.first = NULL;
    if (!work.first)
        return false;
    while ((req = blk_fifo_pop(&work))) {
        bool more = blk_stage_begin(blk, req);
        while (more) {
            bool skip = s->discard && req->stage != STAGE_IO;
            more = blk_stage_next(req, skip ? 0 : blk_stage_run(s->fd, req));
        }
        req->done(req, req->rc);
    }
    return true;
}

static bool sync_arm(struct blk *blk, bool on)
{
    (void)on;
    return ((struct blk_sync *)blk)->fifo.first != NULL;
}

static void sync_free(struct blk *blk)
{
    close(((struct blk_sync *)blk)->fd);
    free(blk);
}

static const struct blk_ops sync_ops = {
    .submit = sync_submit,
    .poll = sync_poll,
    .arm = sync_arm,
    .free = sync_free,
};

int blk_sync_new(const struct blk *base, int fd, bool discard, struct blk **out)
{
    struct blk_sync *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    s->base = *base;
    s->base.ops = &sync_ops;
    s->base.event_fd = -1;
    s->fd = fd;
    s->discard = discard;
    *out = &s->base;
    return 0;
}
