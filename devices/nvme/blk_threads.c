/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A file through a pool of threads, for where io_uring is forbidden or missing.
 *
 * Threads. They start when the process has given up its privileges, which they would keep; what
 * comes before that (a flush, when the server could not be offered) is done by the caller.
 * Workers take from `todo` and put to `done`, both under the lock; the first to put into
 * an empty `done` writes event_fd. Requests that are neither there nor there belong to a worker.
 */
#include "blk.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define WORKERS 8u

struct blk_threads {
    struct blk base;
    int fd;
    struct blk_fifo fresh; /* submitted since the last poll(): no lock */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct blk_fifo todo, done; /* under the lock */
    bool stop;                  /* under the lock */
    sem_t ready;                /* posted by each worker when it has begun */
    pthread_t workers[WORKERS];
    unsigned nworkers;
};

static void run(struct blk_threads *t, struct blk_req *req)
{
    bool more = blk_stage_begin(&t->base, req);

    while (more)
        more = blk_stage_next(req, blk_stage_run(&t->base, t->fd, req));
}

/* syscalls: write */
static void *work(void *opaque)
{
    struct blk_threads *t = opaque;
    struct blk_req *req;

    sem_post(&t->ready);
    pthread_mutex_lock(&t->lock);
    for (;;) {
        while (!t->todo.first && !t->stop)
            pthread_cond_wait(&t->wake, &t->lock);
        req = blk_fifo_pop(&t->todo);
        if (!req)
            break;
        pthread_mutex_unlock(&t->lock);
        run(t, req);
        pthread_mutex_lock(&t->lock);
        bool first = !t->done.first;
        blk_fifo_push(&t->done, req);
        if (first)
            eventfd_write(t->base.event_fd, 1);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

static void threads_submit(struct blk *blk, struct blk_req *req)
{
    blk_fifo_push(&((struct blk_threads *)blk)->fresh, req);
}

static bool threads_poll(struct blk *blk)
{
    struct blk_threads *t = (struct blk_threads *)blk;
    struct blk_fifo finished;
    struct blk_req *req;

    pthread_mutex_lock(&t->lock);
    bool started = t->fresh.first;
    while ((req = blk_fifo_pop(&t->fresh))) {
        if (t->nworkers == 0)
            run(t, req);
        blk_fifo_push(t->nworkers ? &t->todo : &t->done, req);
        pthread_cond_signal(&t->wake);
    }
    finished = t->done;
    t->done.first = NULL;
    pthread_mutex_unlock(&t->lock);
    bool any = finished.first;
    while ((req = blk_fifo_pop(&finished)))
        req->done(req, req->rc);
    return any || started;
}

/* event_fd always tells; only what was submitted and not started yet is unknown to it. */
static bool threads_arm(struct blk *blk, bool on)
{
    (void)on;
    return ((struct blk_threads *)blk)->fresh.first != NULL;
}

static void threads_free(struct blk *blk)
{
    struct blk_threads *t = (struct blk_threads *)blk;

    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->lock);
    for (unsigned i = 0; i < t->nworkers; i++)
        pthread_join(t->workers[i], NULL);
    pthread_cond_destroy(&t->wake);
    sem_destroy(&t->ready);
    pthread_mutex_destroy(&t->lock);
    close(t->base.event_fd);
    close(t->fd);
    if (t->base.direct_fd >= 0)
        close(t->base.direct_fd);
    free(t);
}

/* Workers take no signals: those are for the thread that serves. What libc does to begin a thread
 * is over when this returns: a filter of system calls may come next. */
static int threads_start(struct blk *blk)
{
    struct blk_threads *t = (struct blk_threads *)blk;
    sigset_t all, before;
    int rc = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (t->nworkers < WORKERS && rc == 0) {
        rc = pthread_create(&t->workers[t->nworkers], NULL, work, t);
        t->nworkers += rc == 0;
    }
    for (unsigned i = 0; i < t->nworkers; i++)
        while (sem_wait(&t->ready) < 0)
            ;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return t->nworkers > 0 ? 0 : -rc;
}

static const struct blk_ops threads_ops = {
    .start = threads_start,
    .submit = threads_submit,
    .poll = threads_poll,
    .arm = threads_arm,
    .free = threads_free,
};

int blk_threads_new(const struct blk *base, int fd, struct blk **out)
{
    struct blk_threads *t = calloc(1, sizeof(*t));
    int event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    if (!t || event_fd < 0) {
        int rc = t ? -errno : -ENOMEM;

        if (event_fd >= 0)
            close(event_fd);
        free(t);
        return rc;
    }
    t->base = *base;
    t->base.ops = &threads_ops;
    t->base.event_fd = event_fd;
    t->fd = fd;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wake, NULL);
    sem_init(&t->ready, 0, 0);
    *out = &t->base;
    return 0;
}
