/* SPDX-License-Identifier: BSD-3-Clause */
/* The running of the cases of a client. As in run.c, a case leaves by returning or by longjmp(). */
#include "conformance/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "conformance/list.h"

/* After so many cases in a row for which nobody connected the client is given up. */
#define STRIKES 3

struct runner {
    const struct check_options *opt;
    struct play play; /* of the case that runs, but for what lasts */
    struct test test;
    struct device nothing; /* what a test of servers would know */
    unsigned strikes;
};

static int make_list(struct list *list, const char *pattern)
{
    static const struct family_table *const families[] = { &client_reply_families,
                                                           &client_command_families };
    static const struct case_table *const tables[] = {
        &client_sent_cases,   &client_version_cases,   &client_region_cases, &client_command_cases,
        &client_memory_cases, &client_migration_cases, &client_ring_cases,
    };

    return list_make(list, pattern, families, sizeof(families) / sizeof(families[0]), tables,
                     sizeof(tables) / sizeof(tables[0]));
}

int check_client_list(const char *pattern, void (*each)(void *opaque, const struct check_case *c),
                      void *opaque)
{
    struct list list;
    int rc = make_list(&list, pattern);

    return rc < 0 ? rc : list_tell(&list, each, opaque);
}

/* ---- The socket ---------------------------------------------------------------------------- */

/* A socket file that nobody listens on any more is in the way. */
static void remove_stale(const struct sockaddr_un *address)
{
    struct stat st;
    int fd;

    if (lstat(address->sun_path, &st) != 0 || !S_ISSOCK(st.st_mode))
        return;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return;
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) != 0 &&
        errno == ECONNREFUSED)
        unlink(address->sun_path);
    close(fd);
}

static int listen_on(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd, error;

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) != 0 && errno == EADDRINUSE)
        remove_stale(&address);
    else if (listen(fd, 16) == 0)
        return fd;
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) == 0 && listen(fd, 16) == 0)
        return fd;
    error = errno;
    close(fd);
    return -error;
}

/* Connections that the client of an earlier case has left behind. */
static void drop_pending(int listener)
{
    int fd;

    while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0)
        close(fd);
}

/* ---- One case ------------------------------------------------------------------------------ */

static void begin(struct runner *r, const struct entry *entry)
{
    struct test *t = &r->test;
    struct play *p = &r->play;
    int listener = p->listener;
    bool probes = p->probes;

    memset(t, 0, sizeof(*t));
    memset(p, 0, sizeof(*p));
    *p = (struct play){ .opt = r->opt, .listener = listener, .probes = probes };
    t->entry = entry;
    t->dev = &r->nothing;
    t->path = r->opt->path;
    t->peer = "the client";
    t->opaque = p;
    t->deadline_ns = test_now_ns() + (int64_t)r->opt->timeout_ms * 1000000;
}

/* Runs it; *bytes gets what was exchanged and printed, if it failed. */
static void run_entry(struct runner *r, const struct entry *entry, char **bytes)
{
    struct test *t = &r->test;
    struct play *p = &r->play;

    if (r->opt->run)
        drop_pending(p->listener);
    begin(r, entry);
    if (setjmp(t->end) == 0) {
        device_play_init(t);
        process_start(t);
        process_accept(t);
        entry->run(t);
    }
    for (unsigned i = 0; i < t->nlinks; i++)
        if (t->links[i] >= 0)
            close(t->links[i]);
    t->nlinks = 0;
    if (setjmp(t->end) == 0)
        process_stop(t);
    if (t->verdict == CHECK_FAIL && bytes)
        *bytes = process_output(p, test_trace_text(t));
    device_play_fini(p);
    test_close_all(t);
    r->strikes = t->connections ? 0 : r->strikes + 1;
}

/* ---- All of them --------------------------------------------------------------------------- */

static void learn(struct test *t)
{
    struct answer *a = play_until(t, OB_CMD_DEVICE_GET_INFO);
    struct play *p = play_of(t);

    play_send(t, a);
    p->probes = true;
    play_goes_on(t);
    p->probes = t->in.hdr.cmd == OB_CMD_DMA_READ;
}

static void run_case(struct runner *r, const struct entry *e,
                     void (*done)(void *opaque, const struct check_result *result), void *opaque)
{
    struct check_result result = { e->id, e->rules, e->says, CHECK_PASS, NULL, NULL, 0 };
    int64_t start = test_now_ns();
    char *bytes = NULL;

    if (r->strikes < STRIKES) {
        run_entry(r, e, &bytes);
    } else {
        r->test.verdict = CHECK_FAIL;
        snprintf(r->test.why, sizeof(r->test.why), "not run: the client does not connect any more");
    }
    result.verdict = r->test.verdict;
    result.why = r->test.verdict == CHECK_PASS ? NULL : r->test.why;
    result.bytes = bytes;
    result.seconds = (double)(test_now_ns() - start) / 1e9;
    done(opaque, &result);
    free(bytes);
}

static int run_all(struct runner *r, struct list *list, void (*listening)(void *opaque),
                   void (*done)(void *opaque, const struct check_result *result), void *opaque,
                   char *why, size_t why_size)
{
    static const struct entry learning = { .id = "learning", .run = learn, .raw = true };
    bool reached;

    r->play.listener = listen_on(r->opt->path);
    if (r->play.listener < 0) {
        snprintf(why, why_size, "cannot listen there: %s", strerror(-r->play.listener));
        return -ENOTCONN;
    }
    listening(opaque);
    run_entry(r, &learning, NULL);
    if (r->test.verdict == CHECK_FAIL)
        r->play.probes = false;
    reached = r->test.connections > 0;
    if (!reached)
        snprintf(why, why_size, "%s", r->test.why);
    for (size_t i = 0; reached && i < list->count; i++)
        run_case(r, &list->entries[i], done, opaque);
    close(r->play.listener);
    unlink(r->opt->path);
    return reached ? 0 : -ENOTCONN;
}

int check_client_run(const struct check_options *opt, void (*listening)(void *opaque),
                     void (*done)(void *opaque, const struct check_result *result), void *opaque,
                     char *why, size_t why_size)
{
    struct runner *r = calloc(1, sizeof(*r));
    struct list list;
    int rc = r ? make_list(&list, opt->pattern) : -ENOMEM;

    if (rc < 0) {
        free(r);
        return rc;
    }
    r->opt = opt;
    rc = run_all(r, &list, listening, done, opaque, why, why_size);
    if (rc == 0)
        rc = (int)list.count;
    list_free(&list);
    free(r);
    return rc;
}
