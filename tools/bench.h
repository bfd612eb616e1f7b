/* SPDX-License-Identifier: BSD-3-Clause */
/* The parts of `outboard bench`: what it measures, and the command around that. */
#ifndef OB_TOOLS_BENCH_H
#define OB_TOOLS_BENCH_H

#include <sched.h>

#include "bench/access.h"
#include "bench/edu.h"
#include "bench/floor.h"

struct bench_options {
    const char *path;
    const char *pattern;  /* NULL: everything */
    int timeout_ms;       /* 0: the library's */
    int region;           /* < 0: registers of config space, and no offset or count */
    int offset, count;    /* < 0 and 0: not given */
    int threads, regions; /* the most of them */
    int rounds, round_ms, spin_us;
    struct bench_pace pace; /* from round_ms */
};

/* What one connection is good for: with spinning or without. */
struct bench_pass {
    const struct bench_options *opt;
    bool spin;
    cpu_set_t cpus; /* where the server may run */
    struct bench_target target;
    bool edu;                             /* the device can be told to do DMA */
    int memory;                           /* what is mapped for DMA */
    struct bench_floor access, map, page; /* of an access, a change of the DMA map, 4 KiB */
};

struct bench_case;

/* One line of the result. */
struct bench_measurement {
    const struct bench_case *kind;
    unsigned scale; /* how many threads or regions */
    struct bench_series own, floor;
    char refused[128]; /* why the server did not let it be measured; empty: it did */
};

#define BENCH_MEASUREMENTS_MAX 64u

/* All that the options ask for and a pass of this kind can do. Their number, or -ENOMEM. */
int bench_plan(const struct bench_options *opt, bool spin,
               struct bench_measurement out[BENCH_MEASUREMENTS_MAX]);
/* A round of the floor, and one of the thing. 0 or an error of the library; a refusal is no error
 * where the device may be without the thing. */
int bench_measure(struct bench_pass *pass, struct bench_measurement *m);
const char *bench_says(const struct bench_measurement *m);

/* Calls `each` for every measurement that there can be, its sizes replaced by N. */
void bench_list(void (*each)(const char *name, const char *says));

/* The end of a command line's run. 0, or -ENOMEM. */
int bench_print_json(const struct bench_options *opt, const struct bench_measurement *all,
                     size_t count);
int bench_print_text(const struct bench_measurement *all, size_t count);

#endif
