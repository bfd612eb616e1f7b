/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Series of measured values and what they say. A series is taken in rounds, each with a round of
 * its floor right before it, so that what the machine does meanwhile hits both: the ratio is the
 * median over the rounds of "median here by median there", and its noise the distance between the
 * quartiles of that.
 */
#ifndef OB_BENCH_MEASURE_H
#define OB_BENCH_MEASURE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define BENCH_ROUNDS_MAX 99u
#define BENCH_BATCH_MAX  2000u /* values of one round */

struct bench_series {
    char name[32];
    const char *unit; /* "ns" */
    double *values;   /* room for every round: nothing is allocated while it is measured */
    size_t count;
    size_t ends[BENCH_ROUNDS_MAX]; /* where each round ends in values */
    unsigned rounds;
};

struct bench_summary {
    double median, p99, ratio, noise;
};

double bench_now_ns(void);
/* Memory with something in it, to be freed: what was never written is one page of zeroes, and is
 * copied from the nearest cache. NULL without memory. */
void *bench_memory(size_t size);

/* How long a round may last: until either is reached, but one value at least. */
struct bench_pace {
    unsigned values;
    double ns;
};

/* 0 or -ENOMEM. name is copied, unit is not. */
int bench_series_init(struct bench_series *series, const char *name, const char *unit,
                      unsigned rounds);
void bench_series_fini(struct bench_series *series);
/* What no longer fits in a round is dropped. */
void bench_series_add(struct bench_series *series, double value);
void bench_series_end_round(struct bench_series *series);
/* How many values the round under way has. */
size_t bench_series_open(const struct bench_series *series);

/* values is sorted by it. part: 0.5 is the median. */
double bench_quantile(double *values, size_t count, double part);
/* floor may be the series itself. Both have the same number of rounds, at least one. 0 or -ENOMEM
 */
int bench_summarise(const struct bench_series *series, const struct bench_series *floor,
                    struct bench_summary *out);
/*
 * {"name", "unit", "median", "p99", "ratio", "noise", "rounds": medians of them, "quantiles":
 * [[part, value]...], "floor": {"name", "median", "p99"}}; NULL without memory.
 */
json_t *bench_json(const struct bench_series *series, const struct bench_series *floor);

#endif
