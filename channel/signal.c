/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Signalling an eventfd that the peer has as well. It is one open file in both processes: the
 * peer may fill the counter at any moment and clear O_NONBLOCK, so a write() can block for good,
 * whatever was looked at before. AIO can have the kernel signal an eventfd when a request is done,
 * and that never blocks. The request is a poll of the same eventfd, which is done at once: it is
 * always readable, writable or full.
 *
 * One AIO context serves all of the process; `lock` guards it. It stays, since to end one takes the
 * kernel some milliseconds.
 */
#include "channel/channel.h"

#include <linux/aio_abi.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ROOM       8
#define RING_MAGIC 0xa10a10a1

/* How what io_setup() maps begins. Completions lie from head to tail, and are gone when head, which
 * belongs to us, is tail: that spares io_getevents(). */
struct ring {
    uint32_t id, nr, head, tail, magic, compatible, incompatible;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ring *ring; /* NULL: there is no AIO, or not as we know it */

static void set_up(void)
{
    aio_context_t context = 0;

    if (syscall(SYS_io_setup, ROOM, &context) < 0)
        return;
    ring = (struct ring *)context;
    if (ring->magic != RING_MAGIC || ring->incompatible)
        ring = NULL;
}

void ob_signal_init(void)
{
    pthread_once(&once, set_up);
}

/* syscalls: io_submit */
bool ob_signal_try(int fd)
{
    struct iocb poll = { .aio_lio_opcode = IOCB_CMD_POLL,
                         .aio_fildes = (uint32_t)fd,
                         .aio_buf = POLLIN | POLLOUT,
                         .aio_flags = IOCB_FLAG_RESFD,
                         .aio_resfd = (uint32_t)fd };
    struct iocb *one = &poll;
    bool done;

    ob_signal_init();
    if (!ring)
        return false;
    pthread_mutex_lock(&lock);
    done = syscall(SYS_io_submit, (aio_context_t)ring, 1, &one) == 1;
    if (done)
        __atomic_store_n(&ring->head, __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE),
                         __ATOMIC_RELEASE);
    pthread_mutex_unlock(&lock);
    return done;
}

/* Without AIO (also in a child that was forked) what can be done is done: a counter that is full
 * before is left alone, and an interrupted write is not repeated. */
/* syscalls: poll, ppoll, write */
void ob_signal_eventfd(int fd)
{
    static const uint64_t one = 1;
    struct pollfd p = { .fd = fd, .events = POLLOUT };

    if (ob_signal_try(fd))
        return;
    if (poll(&p, 1, 0) == 1 && (p.revents & POLLOUT))
        (void)!write(fd, &one, sizeof(one));
}
