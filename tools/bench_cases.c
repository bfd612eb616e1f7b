/* SPDX-License-Identifier: BSD-3-Clause */
/* What `outboard bench` measures: a line of the table for each kind of thing. */
#include "bench.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SETTLE_NS 1000000

enum scale { NO_SCALE, BY_THREADS, BY_REGIONS };

struct bench_case {
    const char *name, *unit, *says;
    enum scale scale;
    bool spinning; /* measured with spinning, too */
    bool optional; /* the server may refuse it, and be a good server */
    int (*run)(struct bench_pass *pass, struct bench_measurement *m);
    int (*floor)(struct bench_pass *pass, struct bench_measurement *m);
};

static int run_reads(struct bench_pass *pass, struct bench_measurement *m)
{
    return bench_reads(&pass->target, &m->own, &pass->opt->pace);
}

static int run_writes(struct bench_pass *pass, struct bench_measurement *m)
{
    return bench_writes(&pass->target, &m->own, &pass->opt->pace);
}

static int run_posts(struct bench_pass *pass, struct bench_measurement *m)
{
    return bench_posts(&pass->target, &m->own, &pass->opt->pace);
}

static int run_threads(struct bench_pass *pass, struct bench_measurement *m)
{
    return bench_threads(&pass->target, &m->own, m->scale, &pass->opt->pace, false);
}

static int run_shares(struct bench_pass *pass, struct bench_measurement *m)
{
    return bench_threads(&pass->target, &m->own, m->scale, &pass->opt->pace, true);
}

static int run_dma(struct bench_pass *pass, struct bench_measurement *m)
{
    return bench_dma_pairs(&pass->target, &m->own, m->scale, pass->memory);
}

static int run_message(struct bench_pass *pass, struct bench_measurement *m)
{
    if (!pass->edu)
        return -EOPNOTSUPP;
    return bench_edu_dma(&pass->target, &m->own, &pass->opt->pace);
}

static int floor_round_trips(struct bench_pass *pass, struct bench_measurement *m)
{
    return bench_floor_round_trips(&pass->access, &m->floor, &pass->opt->pace);
}

/* What is fair needs no measuring. */
static int floor_one(struct bench_pass *pass, struct bench_measurement *m)
{
    (void)pass;
    bench_series_add(&m->floor, 1);
    bench_series_end_round(&m->floor);
    return 0;
}

static int floor_sends(struct bench_pass *pass, struct bench_measurement *m)
{
    return bench_floor_sends(&pass->access, &m->floor, BENCH_BURST, &pass->opt->pace);
}

static int floor_pairs(struct bench_pass *pass, struct bench_measurement *m)
{
    return bench_floor_pairs(&pass->map, &m->floor, pass->memory, m->scale);
}

static int floor_pages(struct bench_pass *pass, struct bench_measurement *m)
{
    return bench_floor_round_trips(&pass->page, &m->floor, &pass->opt->pace);
}

static const struct bench_case cases[] = {
    { "read", "ns", "a register is read", NO_SCALE, true, false, run_reads, floor_round_trips },
    { "write", "ns", "a register is written, and that acknowledged", NO_SCALE, true, false,
      run_writes, floor_round_trips },
    { "post", "ns", "a register is written, and nothing waited for", NO_SCALE, true, false,
      run_posts, floor_sends },
    { "threads", "ns", "a read, when N threads read on the connection", BY_THREADS, true, false,
      run_threads, floor_round_trips },
    { "share", "of fair", "what the slowest of N threads gets of its share", BY_THREADS, true,
      false, run_shares, floor_one },
    { "dma-map", "ns", "a page is mapped for DMA and unmapped, N of them at once", BY_REGIONS, true,
      true, run_dma, floor_pairs },
    { "dma-message", "ns", "4 KiB moved by DMA message, from the command until it is done (edu)",
      NO_SCALE, true, true, run_message, floor_pages },
};
#define NCASES (sizeof(cases) / sizeof(cases[0]))

static const char *name_of(const struct bench_case *c, bool spin, unsigned scale, char *buf,
                           size_t size)
{
    char number[16] = "";

    if (scale)
        snprintf(number, sizeof(number), "/%u", scale);
    snprintf(buf, size, "%s%s%s", c->name, spin ? "-spinning" : "", number);
    return buf;
}

static int plan_one(const struct bench_options *opt, bool spin, const struct bench_case *c,
                    unsigned scale, struct bench_measurement *out)
{
    char name[sizeof(out->own.name)];

    name_of(c, spin, scale, name, sizeof(name));
    if (opt->pattern && fnmatch(opt->pattern, name, 0) != 0)
        return 0;
    *out = (struct bench_measurement){ .kind = c, .scale = scale };
    if (bench_series_init(&out->own, name, c->unit, (unsigned)opt->rounds) < 0 ||
        bench_series_init(&out->floor, "socket", c->unit, (unsigned)opt->rounds) < 0) {
        bench_series_fini(&out->own);
        return -ENOMEM;
    }
    return 1;
}

int bench_plan(const struct bench_options *opt, bool spin,
               struct bench_measurement out[BENCH_MEASUREMENTS_MAX])
{
    int count = 0, rc = 0;

    for (size_t i = 0; i < NCASES && rc >= 0; i++) {
        const struct bench_case *c = &cases[i];
        unsigned step = c->scale == BY_REGIONS ? 10 : 2;
        unsigned most = (unsigned)(c->scale == BY_REGIONS ? opt->regions : opt->threads);

        if (spin && !c->spinning)
            continue;
        if (c->scale == NO_SCALE) {
            rc = plan_one(opt, spin, c, 0, &out[count]);
            count += rc > 0;
            continue;
        }
        for (uint64_t n = 1, last = 0; rc >= 0 && last < most; n *= step) {
            last = n < most ? n : most; /* the largest is always among them */
            rc = plan_one(opt, spin, c, (unsigned)last, &out[count]);
            count += rc > 0;
        }
    }
    return rc < 0 ? rc : count;
}

/* What a server may say to something that it need not have. */
static bool is_refusal(int rc)
{
    return ob_err_class(rc) == OB_ERR_PEER || rc == -EOPNOTSUPP || rc == -ENOSPC || rc == -EINVAL;
}

/* Whoever polled for the last measurement sleeps by then: it may have the same CPU as who is
 * measured next, who would find it busy, and not poll for a while. */
static void settle(void)
{
    nanosleep(&(struct timespec){ .tv_nsec = SETTLE_NS }, NULL);
}

int bench_measure(struct bench_pass *pass, struct bench_measurement *m)
{
    int rc;

    if (*m->refused)
        return 0;
    settle();
    rc = m->kind->floor(pass, m);
    if (rc < 0)
        return rc;
    settle();
    rc = m->kind->run(pass, m);
    if (rc < 0 && m->kind->optional && is_refusal(rc)) {
        ob_strerror(rc, m->refused, sizeof(m->refused));
        return 0;
    }
    return rc;
}

const char *bench_says(const struct bench_measurement *m)
{
    return m->kind->says;
}

void bench_list(void (*each)(const char *name, const char *says))
{
    for (size_t i = 0; i < NCASES; i++) {
        char name[64];

        for (int spin = 0; spin <= cases[i].spinning; spin++) {
            snprintf(name, sizeof(name), "%s%s%s", cases[i].name, spin ? "-spinning" : "",
                     cases[i].scale ? "/N" : "");
            each(name, cases[i].says);
        }
    }
}
