/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The list of all cases, and their running. A case leaves by returning or by longjmp(): so it keeps
 * nothing of its own that would have to be freed, and what it opened is closed here.
 */
#include "conformance/test.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* After so many failures in a row in which the server did not say a word it is given up, or a dead
 * one would cost a timeout for each case. */
#define STRIKES 3

/* ---- The list ------------------------------------------------------------------------------ */

struct list {
    struct entry *entries;
    size_t count, room;
    const char *pattern;
    bool failed;
};

static void list_add(struct list *list, const struct entry *entry)
{
    if (list->pattern && fnmatch(list->pattern, entry->id, 0) != 0) {
        free(entry->owned);
        return;
    }
    if (list->count == list->room) {
        size_t room = list->room ? 2 * list->room : 256;
        struct entry *grown = realloc(list->entries, room * sizeof(*grown));

        if (!grown) {
            free(entry->owned);
            list->failed = true;
            return;
        }
        list->entries = grown;
        list->room = room;
    }
    list->entries[list->count++] = *entry;
}

/* The id with the name in it. */
static char *expand(const char *id, const char *name)
{
    const char *mark = strstr(id, "%s");
    char *text = NULL;

    if (asprintf(&text, "%.*s%s%s", (int)(mark - id), id, name, mark + 2) < 0)
        return NULL;
    return text;
}

static void list_family(struct list *list, const struct family_table *table)
{
    const char *name;

    for (size_t i = 0; i < table->count; i++) {
        const struct family *f = &table->families[i];

        for (uint32_t arg = table->first; (name = table->name(arg)); arg++) {
            char *id;

            if (!*name || !f->applies(arg))
                continue;
            id = expand(f->id, name);
            if (!id)
                list->failed = true;
            else
                list_add(list, &(struct entry){ id, f->rules, f->says, f->run, f->raw, f->slow, arg,
                                                id });
        }
    }
}

static void list_free(struct list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->entries[i].owned);
    free(list->entries);
}

static int list_make(struct list *list, const char *pattern)
{
    static const struct case_table *const tables[] = {
        &version_cases, &session_cases,  &info_cases,  &access_cases, &irq_cases,
        &dma_cases,     &transfer_cases, &multi_cases, &random_cases,
    };

    *list = (struct list){ .pattern = pattern };
    list_family(list, &message_families);
    list_family(list, &irq_families);
    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
        for (size_t k = 0; k < tables[i]->count; k++)
            list_add(list, &tables[i]->entries[k]);
    if (!list->failed)
        return 0;
    list_free(list);
    return -ENOMEM;
}

int check_list(const char *pattern, void (*each)(void *opaque, const struct check_case *c),
               void *opaque)
{
    struct list list;
    int rc = list_make(&list, pattern);

    if (rc < 0)
        return rc;
    for (size_t i = 0; i < list.count; i++) {
        const struct entry *e = &list.entries[i];

        each(opaque, &(struct check_case){ e->id, e->rules, e->says });
    }
    rc = (int)list.count;
    list_free(&list);
    return rc;
}

/* ---- One case ------------------------------------------------------------------------------ */

struct runner {
    const struct check_options *opt;
    struct device dev;
    struct test test; /* of the case that runs */
    unsigned strikes;
};

static void close_all(struct test *t)
{
    while (t->in.nfds)
        close(t->in.fds[--t->in.nfds]);
    while (t->nfds)
        close(t->fds[--t->nfds]);
    for (unsigned i = 0; i < t->nlinks; i++)
        if (t->links[i] >= 0)
            close(t->links[i]);
}

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
    t->opaque = opaque;
    t->random = seed_of(r->opt->seed, entry->id);
    t->deadline_ns =
        test_now_ns() + (int64_t)r->opt->timeout_ms * 1000000 * (entry->slow ? entry->slow : 1);
    if (setjmp(t->end) == 0) {
        test_connect(t);
        if (!entry->raw)
            test_negotiate(t);
        entry->run(t);
    }
    close_all(t);
    r->strikes = t->verdict == CHECK_FAIL && !t->heard ? r->strikes + 1 : 0;
}

/* ---- All of them --------------------------------------------------------------------------- */

static void run_case(struct runner *r, const struct entry *entry, struct check_result *result)
{
    int64_t start = test_now_ns();

    if (r->strikes < STRIKES) {
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
    int rc = r ? list_make(&list, opt->pattern) : -ENOMEM;

    if (rc < 0) {
        free(r);
        return rc;
    }
    r->opt = opt;
    run_entry(r, &learning, &r->dev);
    if (!r->test.connected) {
        snprintf(why, why_size, "%s", r->test.why);
        list_free(&list);
        free(r);
        return -ENOTCONN;
    }
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
    list_free(&list);
    free(r);
    return rc;
}
