/* SPDX-License-Identifier: BSD-3-Clause */
#include "bench/measure.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void *bench_memory(size_t size)
{
    void *memory = malloc(size);

    return memory ? memset(memory, 0x5a, size) : NULL;
}

double bench_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

int bench_series_init(struct bench_series *series, const char *name, const char *unit,
                      unsigned rounds)
{
    *series = (struct bench_series){ .unit = unit };
    snprintf(series->name, sizeof(series->name), "%s", name);
    series->values = calloc((size_t)rounds * BENCH_BATCH_MAX, sizeof(*series->values));
    return series->values ? 0 : -ENOMEM;
}

void bench_series_fini(struct bench_series *series)
{
    free(series->values);
    series->values = NULL;
}

size_t bench_series_open(const struct bench_series *series)
{
    return series->count - (series->rounds ? series->ends[series->rounds - 1] : 0);
}

void bench_series_add(struct bench_series *series, double value)
{
    if (bench_series_open(series) < BENCH_BATCH_MAX)
        series->values[series->count++] = value;
}

void bench_series_end_round(struct bench_series *series)
{
    series->ends[series->rounds++] = series->count;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double at_part(const double *sorted, size_t count, double part)
{
    return count ? sorted[(size_t)(part * (double)(count - 1) + 0.5)] : 0;
}

double bench_quantile(double *values, size_t count, double part)
{
    qsort(values, count, sizeof(*values), compare);
    return at_part(values, count, part);
}

/* A sorted copy of the values of one round, or of all (round < 0); NULL without memory. */
static double *sorted_copy(const struct bench_series *series, int round, size_t *count)
{
    size_t begin = round > 0 ? series->ends[round - 1] : 0;
    size_t end = round < 0 ? series->count : series->ends[round];
    double *copy = malloc((end - begin + 1) * sizeof(*copy));

    *count = end - begin;
    if (!copy)
        return NULL;
    memcpy(copy, series->values + begin, *count * sizeof(*copy));
    qsort(copy, *count, sizeof(*copy), compare);
    return copy;
}

static int round_medians(const struct bench_series *series, double out[BENCH_ROUNDS_MAX])
{
    for (unsigned r = 0; r < series->rounds; r++) {
        size_t count;
        double *sorted = sorted_copy(series, (int)r, &count);

        if (!sorted)
            return -ENOMEM;
        out[r] = at_part(sorted, count, 0.5);
        free(sorted);
    }
    return 0;
}

int bench_summarise(const struct bench_series *series, const struct bench_series *floor,
                    struct bench_summary *out)
{
    double ratios[BENCH_ROUNDS_MAX] = { 0 }, floors[BENCH_ROUNDS_MAX] = { 0 };
    size_t count;
    double *sorted = sorted_copy(series, -1, &count);

    if (!sorted || round_medians(series, ratios) < 0 || round_medians(floor, floors) < 0) {
        free(sorted);
        return -ENOMEM;
    }
    for (unsigned r = 0; r < series->rounds; r++)
        ratios[r] = floors[r] > 0 ? ratios[r] / floors[r] : 0;
    out->median = at_part(sorted, count, 0.5);
    out->p99 = at_part(sorted, count, 0.99);
    out->ratio = bench_quantile(ratios, series->rounds, 0.5);
    out->noise = at_part(ratios, series->rounds, 0.75) - at_part(ratios, series->rounds, 0.25);
    free(sorted);
    return 0;
}

static json_t *quantiles_json(const struct bench_series *series)
{
    static const double parts[] = { 0, .01, .05, .1, .25, .5, .75, .9, .95, .99, .999, 1 };
    json_t *list = json_array();
    size_t count;
    double *sorted = sorted_copy(series, -1, &count);

    for (size_t i = 0; sorted && i < sizeof(parts) / sizeof(parts[0]); i++)
        json_array_append_new(list,
                              json_pack("[f, f]", parts[i], at_part(sorted, count, parts[i])));
    free(sorted);
    return list;
}

json_t *bench_json(const struct bench_series *series, const struct bench_series *floor)
{
    double medians[BENCH_ROUNDS_MAX];
    struct bench_summary own, under;
    json_t *rounds = json_array();

    if (bench_summarise(series, floor, &own) < 0 || bench_summarise(floor, floor, &under) < 0 ||
        round_medians(series, medians) < 0) {
        json_decref(rounds);
        return NULL;
    }
    for (unsigned r = 0; r < series->rounds; r++)
        json_array_append_new(rounds, json_real(medians[r]));
    return json_pack("{s:s, s:s, s:f, s:f, s:f, s:f, s:o, s:o, s:{s:s, s:f, s:f}}", "name",
                     series->name, "unit", series->unit, "median", own.median, "p99", own.p99,
                     "ratio", own.ratio, "noise", own.noise, "rounds", rounds, "quantiles",
                     quantiles_json(series), "floor", "name", floor->name, "median", under.median,
                     "p99", under.p99);
}
