/* SPDX-License-Identifier: BSD-3-Clause */
/* The two ways to print what `outboard bench` measured. */
#include "bench.h"

#include <stdio.h>
#include <string.h>

static const char *quantity(const char *unit, double ns, char *buf, size_t size)
{
    if (strcmp(unit, "ns") != 0)
        snprintf(buf, size, "%.2f", ns);
    else if (ns < 1e4)
        snprintf(buf, size, "%.0f ns", ns);
    else if (ns < 1e7)
        snprintf(buf, size, "%.1f us", ns / 1e3);
    else
        snprintf(buf, size, "%.1f ms", ns / 1e6);
    return buf;
}

int bench_print_text(const struct bench_measurement *all, size_t count)
{
    printf("%-24s %10s %10s %12s %8s %6s\n", "", "median", "p99", "floor", "ratio", "noise");
    for (size_t i = 0; i < count; i++) {
        const struct bench_measurement *m = &all[i];
        struct bench_summary own, floor;
        char median[24], p99[24], under[24];

        if (*m->refused) {
            printf("%-24s not offered: %s\n", m->own.name, m->refused);
            continue;
        }
        if (bench_summarise(&m->own, &m->floor, &own) < 0 ||
            bench_summarise(&m->floor, &m->floor, &floor) < 0)
            return -1;
        printf("%-24s %10s %10s %12s %6.2f x %6.2f\n", m->own.name,
               quantity(m->own.unit, own.median, median, sizeof(median)),
               quantity(m->own.unit, own.p99, p99, sizeof(p99)),
               quantity(m->own.unit, floor.median, under, sizeof(under)), own.ratio, own.noise);
    }
    return 0;
}

int bench_print_json(const struct bench_options *opt, const struct bench_measurement *all,
                     size_t count)
{
    json_t *measured = json_array(), *refused = json_array(), *report;

    for (size_t i = 0; i < count; i++) {
        const struct bench_measurement *m = &all[i];

        if (*m->refused)
            json_array_append_new(refused,
                                  json_pack("{s:s, s:s}", "name", m->own.name, "why", m->refused));
        else
            json_array_append_new(measured, bench_json(&m->own, &m->floor));
    }
    report = json_pack("{s:s, s:i, s:o, s:o}", "socket", opt->path, "rounds", opt->rounds,
                       "measurements", measured, "refused", refused);
    if (!report)
        return -1;
    json_dumpf(report, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(report);
    return 0;
}
