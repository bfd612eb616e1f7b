/* SPDX-License-Identifier: BSD-3-Clause */
#include "bench/access.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define WARM_UP   20u
#define DMA_BASE  0x10000000000ull
#define DMA_BYTES 4096u

static int read_once(struct bench_target *t)
{
    uint8_t value[8];

    return ob_client_region_read(t->client, t->read.region, t->read.offset, value, t->read.count);
}

static int write_once(struct bench_target *t)
{
    return ob_client_region_write(t->client, t->write.region, t->write.offset, t->write.value,
                                  t->write.count);
}

static int one_by_one(struct bench_target *t, int (*once)(struct bench_target *t),
                      struct bench_series *out, const struct bench_pace *pace)
{
    double begin = bench_now_ns(), before;
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < WARM_UP && bench_now_ns() - begin < pace->ns; i++)
        rc = once(t);
    begin = before = bench_now_ns();
    while (rc == 0 && bench_series_open(out) < pace->values && before - begin < pace->ns) {
        double now;

        rc = once(t);
        now = bench_now_ns();
        bench_series_add(out, now - before);
        before = now;
    }
    bench_series_end_round(out);
    return rc;
}

int bench_reads(struct bench_target *target, struct bench_series *out,
                const struct bench_pace *pace)
{
    return one_by_one(target, read_once, out, pace);
}

int bench_writes(struct bench_target *target, struct bench_series *out,
                 const struct bench_pace *pace)
{
    return one_by_one(target, write_once, out, pace);
}

int bench_posts(struct bench_target *target, struct bench_series *out,
                const struct bench_pace *pace)
{
    const struct bench_register *reg = &target->write;
    double begin = bench_now_ns(), before = begin;
    int rc = read_once(target);

    while (rc == 0 && bench_series_open(out) < pace->values && before - begin < pace->ns) {
        before = bench_now_ns();
        for (unsigned i = 0; rc == 0 && i < BENCH_BURST; i++) {
            double now;

            rc = ob_client_region_post(target->client, reg->region, reg->offset, reg->value,
                                       reg->count);
            now = bench_now_ns();
            bench_series_add(out, now - before);
            before = now;
        }
        rc = rc < 0 ? rc : read_once(target);
    }
    bench_series_end_round(out);
    return rc;
}

/* ---- Threads ------------------------------------------------------------------------------- */

struct reader {
    struct bench_target *target;
    pthread_t thread;
    pthread_rwlock_t *start; /* held for writing until all are there */
    atomic_bool *stop;
    double ns;
    unsigned long reads;
    int rc;
};

static void *read_until_told(void *opaque)
{
    struct reader *me = opaque;
    double begin;

    pthread_rwlock_rdlock(me->start);
    pthread_rwlock_unlock(me->start);
    begin = bench_now_ns();
    while (me->rc == 0 && !atomic_load_explicit(me->stop, memory_order_relaxed)) {
        me->rc = read_once(me->target);
        me->reads++;
        if (me->rc < 0 || bench_now_ns() - begin >= me->ns)
            atomic_store(me->stop, true);
    }
    return NULL;
}

static void count_reads(const struct reader *readers, unsigned threads, double ns,
                        struct bench_series *out, bool share)
{
    unsigned long all = 0, least = readers[0].reads;

    for (unsigned i = 0; i < threads; i++) {
        all += readers[i].reads;
        least = readers[i].reads < least ? readers[i].reads : least;
    }
    bench_series_add(out, share ? (double)least * threads / (double)all : ns / (double)all);
    bench_series_end_round(out);
}

int bench_threads(struct bench_target *target, struct bench_series *out, unsigned threads,
                  const struct bench_pace *pace, bool share)
{
    struct reader readers[BENCH_THREADS_MAX] = { 0 };
    pthread_rwlock_t start = PTHREAD_RWLOCK_INITIALIZER;
    atomic_bool stop = false;
    unsigned started = 0;
    double begin;
    int rc = 0;

    pthread_rwlock_wrlock(&start);
    for (; rc == 0 && started < threads; started += rc == 0) {
        readers[started] = (struct reader){ target, 0, &start, &stop, pace->ns, 0, 0 };
        rc = -pthread_create(&readers[started].thread, NULL, read_until_told, &readers[started]);
    }
    atomic_store(&stop, rc < 0);
    pthread_rwlock_unlock(&start);
    begin = bench_now_ns();
    for (unsigned i = 0; i < started; i++) {
        pthread_join(readers[i].thread, NULL);
        rc = rc < 0 ? rc : readers[i].rc;
    }
    if (rc == 0)
        count_reads(readers, threads, bench_now_ns() - begin, out, share);
    pthread_rwlock_destroy(&start);
    return rc;
}

/* ---- DMA ----------------------------------------------------------------------------------- */

int bench_dma_pairs(struct bench_target *target, struct bench_series *out, unsigned regions, int fd)
{
    struct ob_dma_change *changes = calloc(regions, sizeof(*changes));
    double begin;
    int rc;

    if (!changes)
        return -ENOMEM;
    for (unsigned i = 0; i < regions; i++) /* with gaps: adjacent ones could be one mapping */
        changes[i] = (struct ob_dma_change){ .flags = OB_DMA_READ | OB_DMA_WRITE,
                                             .address = DMA_BASE + 2ull * i * DMA_BYTES,
                                             .size = DMA_BYTES,
                                             .fd = fd,
                                             .offset = fd < 0 ? 0 : (uint64_t)i * DMA_BYTES };
    begin = bench_now_ns();
    rc = ob_client_dma_apply(target->client, changes, regions);
    for (unsigned i = 0; i < regions; i++)
        changes[i].unmap = true;
    if (rc == 0)
        rc = ob_client_dma_apply(target->client, changes, regions);
    bench_series_add(out, (bench_now_ns() - begin) / regions);
    bench_series_end_round(out);
    free(changes);
    return rc;
}
