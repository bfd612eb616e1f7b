/* SPDX-License-Identifier: BSD-3-Clause */
/* Both ends have polled for so long that their sockets are out of their epolls: what comes next. */
#include "harness.h"
#include "restarted.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#define READS 4000

/* Only one socket can tell of the server. */
static void begin_single(struct rig *rig)
{
    struct ob_client_options opt = rig_options(rig, 20000);
    char path[sizeof(rig->path)];

    opt.single_socket = true;
    snprintf(path, sizeof(path), "%s/s", test_tmpdir());
    rig_begin_with(rig, path, &opt);
}

static void poll_long(struct rig *rig)
{
    for (int i = 0; i < READS; i++)
        rig_get(rig, 0);
}

/* One turn of the embedder's loop. Whether there was something to do. */
static bool loop_once(struct rig *rig, int timeout_ms)
{
    struct pollfd pfd = { .fd = ob_client_fd(rig->client), .events = POLLIN };
    bool ready = poll(&pfd, 1, timeout_ms) == 1;

    if (ready)
        CHECK_INT(ob_client_step(rig->client), 0);
    return ready;
}

/* The loop, until *count is that value. */
static void loop_until(struct rig *rig, const atomic_uint *count, unsigned value)
{
    int64_t until_ms = test_now_ms() + 20000;

    while (*count != value) {
        CHECK(test_now_ms() < until_ms);
        loop_once(rig, 10);
    }
}

static void check_next_server(struct rig *rig, int times)
{
    rig_start(rig);
    rig_check_back(rig, times);
}

TEST(ends, "a-loop-hears-of-the-end-of-a-server-that-was-polled-and-of-the-next-one")
{
    struct rig rig;

    begin_single(&rig);
    for (int i = 1; i <= 3; i++) {
        poll_long(&rig);
        while (loop_once(&rig, 20)) /* it looks by the clock for a while, and then listens */
            ;
        rig_kill(&rig);
        loop_until(&rig, (const atomic_uint *)&rig.interrupted, (unsigned)i);
        check_next_server(&rig, i);
    }
    rig_end(&rig);
}

TEST(found_out, "a-post-finds-that-a-server-that-was-polled-has-ended-and-the-next-one-is-polled")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    for (int i = 1; i <= 3; i++) {
        poll_long(&rig);
        rig_kill(&rig);
        while (ob_client_state(rig.client) == OB_CLIENT_CONNECTED)
            CHECK_INT(rig_post(&rig, REG_DATA, 1), 0);
        check_next_server(&rig, i);
    }
    rig_end(&rig);
}

TEST(leaves, "a-server-hears-that-a-client-it-polled-has-left")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    for (int i = 0; i < 3; i++) {
        poll_long(&rig);
        ob_client_free(rig.client);
        CHECK_INT(rig_connect_client(&rig, 20000), 0);
    }
    rig_end(&rig);
}

TEST(posts, "a-loop-sends-what-was-posted-to-a-server-that-was-polled-and-stopped")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    poll_long(&rig);
    kill(rig.pid, SIGSTOP);
    for (unsigned i = 0; i < 3000; i++)
        CHECK_INT(rig_post(&rig, REG_DATA, i), 0);
    kill(rig.pid, SIGCONT);
    loop_until(&rig, &rig.shared->nlog, 3000);
    poll_long(&rig);
    rig_end(&rig);
}

/* Waits until that thread, or process, sleeps. */
static void await_asleep(pid_t tid)
{
    int64_t until_ms = test_now_ms() + 10000;
    char path[64], state = 0;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)tid);
    while (state != 'S') {
        FILE *stat = fopen(path, "re");

        CHECK(stat && fscanf(stat, "%*d (%*[^)]) %c", &state) == 1);
        fclose(stat);
        CHECK(test_now_ms() < until_ms);
        sched_yield();
    }
}

struct reader {
    struct rig *rig;
    atomic_int tid;
};

static void *read_once(void *opaque)
{
    struct reader *reader = opaque;

    reader->tid = gettid();
    rig_get(reader->rig, 0);
    return NULL;
}

/* Both ends of a connection that is polled go to sleep, one after the other. */
TEST(sleeps, "a-read-is-answered-by-a-server-that-was-polled-and-slept-to-a-client-that-sleeps")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    for (int i = 0; i < 10; i++) {
        struct reader reader = { &rig, 0 };
        pthread_t thread;

        poll_long(&rig);
        await_asleep(rig.pid);
        rig_get(&rig, 0);
        poll_long(&rig);
        kill(rig.pid, SIGSTOP);
        CHECK_INT(pthread_create(&thread, NULL, read_once, &reader), 0);
        while (!reader.tid)
            sched_yield();
        await_asleep(reader.tid);
        kill(rig.pid, SIGCONT);
        CHECK_INT(pthread_join(thread, NULL), 0);
    }
    rig_end(&rig);
}

/* How often the process has been put off its CPU: not at all while it sleeps. */
static long switches_of(pid_t pid)
{
    long sum = test_process_status(pid, "voluntary_ctxt_switches") +
               test_process_status(pid, "nonvoluntary_ctxt_switches");

    CHECK(sum > 0);
    return sum;
}

TEST(idle, "after-the-last-request-neither-end-runs-again")
{
    int64_t until_ms = test_now_ms() + 20000;
    long before;
    struct rig rig;

    begin_single(&rig);
    poll_long(&rig);
    do {
        CHECK(test_now_ms() < until_ms);
        before = switches_of(rig.pid);
    } while (loop_once(&rig, 400) || switches_of(rig.pid) != before);
    CHECK_INT(rig_get(&rig, 0), 0);
    rig_end(&rig);
}
