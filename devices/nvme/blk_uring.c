/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A file through io_uring: completions are read from the ring without a system call. While the
 * controller polls anyway, the kernel is told not to write event_fd. No more than BATCH requests
 * are begun with one io_uring_enter(): what begins with a third one the kernel holds back until all
 * of them are made, and the disk, which could be at work, waits.
 *
 * What is in the page cache is read without the ring, by a preadv2() that never waits: half the
 * work for the kernel. After one that had nothing to give, the next reads go to the ring at once,
 * more of them each time in a row.
 *
 * Invariant: at most RING_ENTRIES requests are in the kernel (`busy`), the others wait in `todo`;
 * so the completion ring, which is larger, cannot overflow.
 */
#include "blk.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define RING_ENTRIES 256u
#define BATCH        2u
#define MISSES_MAX   64u /* reads that are not tried, after one that was not in the cache */

struct blk_uring {
    struct blk base;
    int fd;
    struct io_uring ring;
    unsigned busy;
    unsigned misses, untried; /* reads from the cache */
    struct blk_fifo todo;     /* to begin */
    struct blk_fifo finished; /* without any operation */
};

static void uring_submit(struct blk *blk, struct blk_req *req)
{
    struct blk_uring *u = (struct blk_uring *)blk;

    blk_fifo_push(blk_stage_begin(blk, req) ? &u->todo : &u->finished, req);
}

static void prepare(struct blk_uring *u, struct io_uring_sqe *sqe, struct blk_req *req)
{
    int fd = blk_stage_direct(&u->base, req) ? u->base.direct_fd : u->fd;

    switch (req->stage) {
    case STAGE_IO:
        if (req->op == BLK_READ) {
            io_uring_prep_readv(sqe, fd, req->iov, req->niov, req->offset);
            break;
        }
        io_uring_prep_writev2(sqe, fd, req->iov, req->niov, req->offset,
                              req->durable ? RWF_DSYNC : 0);
        break;
    case STAGE_FILL:
        io_uring_prep_writev(sqe, u->fd, req->iov, req->niov, req->offset);
        break;
    case STAGE_PUNCH:
    case STAGE_ZERO_RANGE:
        io_uring_prep_fallocate(sqe, u->fd, blk_stage_fallocate_mode(req), (off_t)req->offset,
                                (off_t)req->len);
        break;
    case STAGE_SYNC:
        io_uring_prep_fsync(sqe, u->fd, IORING_FSYNC_DATASYNC);
        break;
    }
    io_uring_sqe_set_data(sqe, req);
}

/* What the kernel does not take now (EAGAIN, EBUSY) stays in the ring for the next poll(). */
static void enter(struct blk_uring *u, unsigned least)
{
    if (io_uring_sq_ready(&u->ring) >= least)
        io_uring_submit(&u->ring);
}

/* Whether the request is finished. */
/* syscalls: preadv2 */
static bool read_cached(struct blk_uring *u, struct blk_req *req)
{
    ssize_t res;

    if (req->op != BLK_READ || req->stage != STAGE_IO || u->base.direct_fd >= 0)
        return false;
    if (u->untried > 0) {
        u->untried--;
        return false;
    }
    res = preadv2(u->fd, req->iov, (int)req->niov, (off_t)req->offset, RWF_NOWAIT);
    if (res > 0 && !blk_stage_next(req, res)) {
        u->misses = 0;
        return true;
    }
    /* Not there, not all there, not known here; or an error, which will come again. */
    u->misses = u->misses < MISSES_MAX / 2 ? 2 * u->misses + 1 : MISSES_MAX;
    u->untried = u->misses;
    return false;
}

/* What is copied in the call that begins it, or may be. */
static uint64_t copied(const struct blk_uring *u, const struct blk_req *req)
{
    if (req->stage == STAGE_FILL)
        return req->iov->iov_len;
    return req->stage == STAGE_IO && u->base.direct_fd < 0 ? req->len : 0;
}

/* syscalls: io_uring_enter */
static bool start(struct blk_uring *u)
{
    struct io_uring_sqe *sqe;
    uint64_t bytes = 0;
    bool any = false;

    while (u->todo.first && bytes < BLK_POLL_BYTES) {
        bytes += copied(u, u->todo.first);
        if (read_cached(u, u->todo.first)) {
            blk_fifo_push(&u->finished, blk_fifo_pop(&u->todo));
        } else if (u->busy < RING_ENTRIES && (sqe = io_uring_get_sqe(&u->ring))) {
            prepare(u, sqe, blk_fifo_pop(&u->todo));
            u->busy++;
            enter(u, BATCH);
        } else {
            break;
        }
        any = true;
    }
    enter(u, 1);
    return any;
}

static bool uring_poll(struct blk *blk)
{
    struct blk_uring *u = (struct blk_uring *)blk;
    bool any = start(u);
    struct io_uring_cqe *cqe;
    struct blk_req *req;

    for (unsigned left = RING_ENTRIES; left > 0; left--) {
        if (io_uring_peek_cqe(&u->ring, &cqe) != 0)
            break;
        int res = cqe->res;
        req = io_uring_cqe_get_data(cqe);
        io_uring_cqe_seen(&u->ring, cqe);
        u->busy--;
        blk_fifo_push(blk_stage_next(req, res) ? &u->todo : &u->finished, req);
        any = true;
    }
    struct blk_fifo work = u->finished;
    u->finished.first = NULL;
    while ((req = blk_fifo_pop(&work))) {
        req->done(req, req->rc);
        any = true;
    }
    return any;
}

static bool uring_arm(struct blk *blk, bool on)
{
    struct blk_uring *u = (struct blk_uring *)blk;

    io_uring_cq_eventfd_toggle(&u->ring, on);
    /* Either the kernel sees the flag or we see the completion. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return on && (io_uring_cq_ready(&u->ring) > 0 || io_uring_sq_ready(&u->ring) > 0 ||
                  (u->todo.first && u->busy < RING_ENTRIES) || u->finished.first);
}

static void uring_free(struct blk *blk)
{
    struct blk_uring *u = (struct blk_uring *)blk;

    io_uring_queue_exit(&u->ring);
    close(u->base.event_fd);
    close(u->fd);
    if (u->base.direct_fd >= 0)
        close(u->base.direct_fd);
    free(u);
}

static const struct blk_ops uring_ops = {
    .submit = uring_submit,
    .poll = uring_poll,
    .arm = uring_arm,
    .free = uring_free,
};

/* What prepare() has. No seccomp filter sees what goes through a ring, which could also open files
 * and connect sockets: it is up to the ring. */
static int restrict_ring(const struct io_uring *ring)
{
    static const uint8_t ops[] = { IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FALLOCATE,
                                   IORING_OP_FSYNC };
    struct io_uring_restriction allowed[sizeof(ops)] = { 0 };

    for (size_t i = 0; i < sizeof(ops); i++) {
        allowed[i].opcode = IORING_RESTRICTION_SQE_OP;
        allowed[i].sqe_op = ops[i];
    }
    /* liburing 2.3 declares functions for both, and does not have them. */
    if (syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_RESTRICTIONS, allowed,
                sizeof(ops)) < 0 ||
        syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
        return -errno;
    return 0;
}

/* Completions wait for the next system call; before Linux 5.19 they interrupt this thread.
 * Linux 5.6 to 5.9 have rings that cannot be restricted. */
static int init_ring(struct io_uring *ring, bool *restricted)
{
    static const unsigned flags[] = {
        IORING_SETUP_R_DISABLED | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        IORING_SETUP_R_DISABLED,
        0,
    };
    int rc = -EINVAL;

    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]) && rc == -EINVAL; i++) {
        struct io_uring_params params = { .flags = IORING_SETUP_CQSIZE | flags[i],
                                          .cq_entries = 2 * RING_ENTRIES };

        rc = io_uring_queue_init_params(RING_ENTRIES, ring, &params);
        *restricted = flags[i] & IORING_SETUP_R_DISABLED;
    }
    return rc;
}

static int open_ring(struct blk_uring *u)
{
    bool restricted;
    int rc = init_ring(&u->ring, &restricted);

    if (rc < 0)
        return rc;
    u->base.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rc = u->base.event_fd < 0 ? -errno : io_uring_register_eventfd(&u->ring, u->base.event_fd);
    if (rc == 0 && restricted)
        rc = restrict_ring(&u->ring);
    if (rc < 0) {
        if (u->base.event_fd >= 0)
            close(u->base.event_fd);
        io_uring_queue_exit(&u->ring);
    }
    return rc;
}

int blk_uring_new(const struct blk *base, int fd, struct blk **out)
{
    struct blk_uring *u = calloc(1, sizeof(*u));
    int rc = -ENOMEM;

    if (u) {
        u->base = *base;
        u->base.ops = &uring_ops;
        u->fd = fd;
        rc = open_ring(u);
    }
    if (rc < 0) {
        free(u);
        return rc;
    }
    *out = &u->base;
    return 0;
}
