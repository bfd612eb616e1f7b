/* SPDX-License-Identifier: BSD-3-Clause */
/* What is measured of a server through the client library. */
#ifndef OB_BENCH_ACCESS_H
#define OB_BENCH_ACCESS_H

#include "bench/measure.h"
#include "outboard/client.h"

#define BENCH_THREADS_MAX 64u
#define BENCH_BURST       200u /* posted writes between two reads: what a socket holds */

/* A register that may be read, and written with the value that it has. */
struct bench_register {
    uint32_t region;
    uint64_t offset;
    uint32_t count; /* bytes, 8 at most */
    uint8_t value[8];
};

struct bench_target {
    struct ob_client *client;
    struct bench_register read, write;
};

/* Each adds a round to the series, of the time one takes. 0 or the library's error. */
int bench_reads(struct bench_target *target, struct bench_series *out,
                const struct bench_pace *pace);
int bench_writes(struct bench_target *target, struct bench_series *out,
                 const struct bench_pace *pace);
int bench_posts(struct bench_target *target, struct bench_series *out,
                const struct bench_pace *pace);
/*
 * Reads from so many threads at once on the one connection, for pace->ns: the time by the number
 * of all reads; or, with share, the reads of the slowest thread by those of the mean one.
 */
int bench_threads(struct bench_target *target, struct bench_series *out, unsigned threads,
                  const struct bench_pace *pace, bool share);
/* Maps so many pages of fd (-1: without memory behind them), and unmaps them: the time by their
 * number. */
int bench_dma_pairs(struct bench_target *target, struct bench_series *out, unsigned regions,
                    int fd);

#endif
