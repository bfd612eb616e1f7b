/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The running of the cases. A case leaves by returning or by longjmp(): so it keeps nothing of its
 * own that would have to be freed, and what it opened is closed here.
 */
#include "conformance/list.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* After so many failures in a row in which the server did not say a word it is asked once more, and
 * given up, or a dead one would cost a timeout for each case. */
#define STRIKES 3

/* How soon a server that ends with its client does. */
#define MORTAL_MS 100

static int make_list(struct list *list, const char *pattern)
{
    static const struct family_table *const families[] = { &message_families, &irq_families };
    static const struct case_table *const tables[] = {
        &version_cases, &session_cases, &info_cases,     &io_fds_cases, &access_cases,
        &irq_cases,     &dma_cases,     &transfer_cases, &multi_cases,  &feature_cases,
        &dirty_cases,   &ring_cases,    &random_cases,
    };

    return list_make(list, pattern, families, sizeof(families) / sizeof(families[0]), tables,
                     sizeof(tables) / sizeof(tables[0]));
}

int check_list(const char *pattern, void (*each)(void *opaque, const struct check_case *c),
               void *opaque)
{
    struct list list;
    int rc = make_list(&list, pattern);

    return rc < 0 ? rc : list_tell(&list, each, opaque);
}

/* ---- One case ------------------------------------------------------------------------------ */

struct runner {
    const struct check_options *opt;
    struct device dev;
    struct test test; /* of the case that runs */
    struct listener listener;
    bool reached; /* the server, once */
    unsigned strikes;
};

/* The same random numbers for a case whichever others run. */
static uint64_t seed_of(uint64_t seed, const char *id)
{
    for (; *id; id++)
        seed = (seed ^ (uint8_t)*id) * 0x100000001b3u;
    return seed;
}

static void learn(struct test *t)
{
    device_learn(t, t->opaque);
}

static void run_entry(struct runner *r, const struct entry *entry, void *opaque)
{
    struct test *t = &r->test;

    memset(t, 0, sizeof(*t));
    t->entry = entry;
    t->dev = &r->dev;
    t->path = r->opt->path;
    t->peer = "the server";
    t->opaque = opaque;
    t->patient = r->reached;
    t->listener = &r->listener;
    t->random = seed_of(r->opt->seed, entry->id);
    t->deadline_ns =
        test_now_ns() + (int64_t)r->opt->timeout_ms * 1000000 * (entry->slow ? entry->slow : 1);
    if (setjmp(t->end) == 0) {
        test_connect(t);
        if (!entry->raw)
            test_negotiate(t);
        entry->run(t);
    }
    test_close_all(t);
    r->reached |= t->connections > 0;
    r->strikes = t->verdict == CHECK_FAIL && !t->heard ? r->strikes + 1 : 0;
}

/* ---- All of them --------------------------------------------------------------------------- */

/* Cases in which the server has nothing to say may follow each other: it is asked before it is
 * given up. */
static bool given_up(struct runner *r)
{
    static const struct entry asking = { .id = "asking", .run = test_alive };

    if (r->strikes == STRIKES)
        run_entry(r, &asking, NULL);
    return r->strikes > STRIKES;
}

static void run_case(struct runner *r, const struct entry *entry, struct check_result *result)
{
    int64_t start = test_now_ns();

    if (!given_up(r)) {
        run_entry(r, entry, NULL);
    } else {
        r->test.verdict = CHECK_FAIL;
        r->test.ntrace = 0;
        snprintf(r->test.why, sizeof(r->test.why), "not run: the server does not answer any more");
    }
    result->verdict = r->test.verdict;
    result->why = r->test.verdict == CHECK_PASS ? NULL : r->test.why;
    result->seconds = (double)(test_now_ns() - start) / 1e9;
}

int check_run(const struct check_options *opt,
              void (*done)(void *opaque, const struct check_result *result), void *opaque,
              char *why, size_t why_size)
{
    static const struct entry learning = { .id = "learning", .run = learn, .raw = true };
    struct runner *r = calloc(1, sizeof(*r));
    struct list list;
    int rc = r ? make_list(&list, opt->pattern) : -ENOMEM;

    if (rc < 0) {
        free(r);
        return rc;
    }
    r->opt = opt;
    r->listener.pidfd = -1;
    run_entry(r, &learning, &r->dev);
    if (!r->test.connections) {
        snprintf(why, why_size, "%s", r->test.why);
        list_free(&list);
        free(r);
        return -ENOTCONN;
    }
    r->listener.mortal = test_server_ends(&r->test, MORTAL_MS);
    for (size_t i = 0; i < list.count; i++) {
        const struct entry *e = &list.entries[i];
        struct check_result result = { e->id, e->rules, e->says, CHECK_PASS, NULL, NULL, 0 };
        char *bytes = NULL;

        run_case(r, e, &result);
        if (result.verdict == CHECK_FAIL)
            result.bytes = bytes = test_trace_text(&r->test);
        done(opaque, &result);
        free(bytes);
    }
    rc = (int)list.count;
    if (r->listener.pidfd >= 0)
        close(r->listener.pidfd);
    list_free(&list);
    free(r);
    return rc;
}
