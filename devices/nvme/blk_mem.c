/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mem: and null:, which never wait and so are done in poll(). Memory is our own, data is copied
 * between it and the client's pages; a client that has cut those is let go by the library, which
 * gives us zeros in their place. Blocks that were never written take no memory.
 */
#include "blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct blk_mem {
    struct blk base;
    uint8_t *bytes; /* NULL: writes go nowhere, and zeros are read */
    struct blk_fifo fifo;
};

static void mem_submit(struct blk *blk, struct blk_req *req)
{
    blk_fifo_push(&((struct blk_mem *)blk)->fifo, req);
}

static void transfer(const struct blk_mem *m, const struct blk_req *req)
{
    uint64_t at = req->offset;

    for (unsigned i = 0; i < req->niov; i++) {
        void *data = req->iov[i].iov_base;
        size_t len = req->iov[i].iov_len;

        if (req->op == BLK_READ && m->bytes)
            memcpy(data, m->bytes + at, len);
        else if (req->op == BLK_READ)
            memset(data, 0, len);
        else if (m->bytes)
            memcpy(m->bytes + at, data, len);
        at += len;
    }
}

/* Whole pages are given back. */
/* syscalls: madvise */
static void clear(const struct blk_mem *m, uint64_t offset, uint64_t len)
{
    uint64_t mask = (uint64_t)sysconf(_SC_PAGESIZE) - 1;
    uint64_t first = (offset + mask) & ~mask, last = (offset + len) & ~mask;

    if (first >= last || madvise(m->bytes + first, last - first, MADV_DONTNEED) != 0) {
        memset(m->bytes + offset, 0, len);
        return;
    }
    memset(m->bytes + offset, 0, first - offset);
    memset(m->bytes + last, 0, offset + len - last);
}

static void run(const struct blk_mem *m, struct blk_req *req)
{
    if (req->op == BLK_READ || req->op == BLK_WRITE)
        transfer(m, req);
    else if (req->op != BLK_FLUSH && m->bytes)
        clear(m, req->offset, req->len);
    req->rc = 0;
    req->done(req, 0);
}

/* Requests until these are so many bytes: the client waits for the server meanwhile. */
static bool mem_poll(struct blk *blk)
{
    struct blk_mem *m = (struct blk_mem *)blk;
    struct blk_fifo work = m->fifo, later; /* done() may submit: that is for the next call */
    struct blk_req *req;
    uint64_t bytes = 0;

    m->fifo.first = NULL;
    if (!work.first)
        return false;
    while (bytes < BLK_POLL_BYTES && (req = blk_fifo_pop(&work))) {
        bytes += req->len;
        run(m, req);
    }
    if (!work.first)
        return true;
    later = m->fifo;
    m->fifo = work;
    while ((req = blk_fifo_pop(&later)))
        blk_fifo_push(&m->fifo, req);
    return true;
}

static bool mem_arm(struct blk *blk, bool on)
{
    (void)on;
    return ((struct blk_mem *)blk)->fifo.first != NULL;
}

static void mem_free(struct blk *blk)
{
    struct blk_mem *m = (struct blk_mem *)blk;

    if (m->bytes)
        munmap(m->bytes, m->base.size);
    free(m);
}

static const struct blk_ops mem_ops = {
    .submit = mem_submit,
    .poll = mem_poll,
    .arm = mem_arm,
    .free = mem_free,
};

int blk_mem_new(const struct blk *base, bool discard, struct blk **out)
{
    struct blk_mem *m = calloc(1, sizeof(*m));
    void *bytes;

    if (!m)
        return -ENOMEM;
    m->base = *base;
    m->base.ops = &mem_ops;
    m->base.event_fd = -1;
    if (!discard && base->size > 0) {
        bytes = mmap(NULL, base->size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (bytes == MAP_FAILED) {
            free(m);
            return -ENOMEM;
        }
        m->bytes = bytes;
    }
    *out = &m->base;
    return 0;
}
