/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the socket itself costs: the same bytes, sent and received by the same system calls, with
 * nobody looking into them. The other end is a child process, which may run where the server may,
 * and ends with this process.
 */
#ifndef OB_BENCH_FLOOR_H
#define OB_BENCH_FLOOR_H

#include <sched.h>
#include <stdint.h>
#include <sys/types.h>

#include "bench/measure.h"

struct bench_floor {
    int fd;
    pid_t pid;
    uint32_t ping, pong; /* bytes of a request, and of its reply */
    bool spin;           /* neither end sleeps while messages are exchanged */
    uint8_t *buffer;
};

/* cpus: where the child may run, NULL: where we may. 0 or a negative errno. */
int bench_floor_start(struct bench_floor *floor, uint32_t ping, uint32_t pong, bool spin,
                      const cpu_set_t *cpus);
void bench_floor_stop(struct bench_floor *floor);

/* Each adds a round to the series. 0, or a negative errno when the child is gone. */
int bench_floor_round_trips(struct bench_floor *floor, struct bench_series *out,
                            const struct bench_pace *pace);
/* A sendmsg() that nobody answers, `burst` of them between two round trips. */
int bench_floor_sends(struct bench_floor *floor, struct bench_series *out, unsigned burst,
                      const struct bench_pace *pace);
/*
 * Pairs of a request with an fd and one without, answered each; many on the way at a time. The
 * value is the time of all by their number.
 */
int bench_floor_pairs(struct bench_floor *floor, struct bench_series *out, int fd, unsigned pairs);

#endif
