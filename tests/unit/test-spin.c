/* SPDX-License-Identifier: BSD-3-Clause */
/* When a wait polls before it sleeps. */
#include "channel/spin.h"
#include "harness.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

enum { BUDGET_US = 50, BUDGET_NS = BUDGET_US * 1000 };

static void need_two_cpus(void)
{
    if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
        test_skip("there is only one CPU");
}

/* A wait of so many nanoseconds; how long it polls. */
static int64_t wait_of(struct ob_spin *spin, int64_t ns)
{
    int64_t limit = ob_spin_begin(spin);

    if (limit)
        ob_spin_end();
    ob_spin_learn(spin, ns);
    return limit;
}

TEST(short_waits, "short-waits-are-polled-for-as-long-as-they-took")
{
    struct ob_spin spin;

    need_two_cpus();
    ob_spin_init(&spin, BUDGET_US, 0);
    for (int i = 0; i < 5000; i++) {
        int64_t limit = wait_of(&spin, 4000);
        CHECK(limit > 4000 && limit <= BUDGET_NS);
    }
    CHECK(wait_of(&spin, 4000) < 18000);
    /* One that took longer is remembered. */
    wait_of(&spin, 20000);
    CHECK(wait_of(&spin, 4000) > 20000);
}

TEST(long_waits, "long-waits-are-slept-for-but-for-a-trial-now-and-then")
{
    struct ob_spin spin;
    int polled = 0;

    need_two_cpus();
    ob_spin_init(&spin, BUDGET_US, 0);
    for (int i = 0; i < 16; i++)
        wait_of(&spin, 2 * BUDGET_NS);
    for (int i = 0; i < 1600; i++)
        polled += wait_of(&spin, 2 * BUDGET_NS) > 0;
    CHECK(polled > 50 && polled < 200);
    /* Once they are short it polls again, also when the waits were slept through. */
    for (int i = 0; i < 3; i++)
        wait_of(&spin, BUDGET_NS - 1);
    CHECK(wait_of(&spin, 4000) > 0);
}

/* So many waits, each as long as the way says that it is done; how many of them polled. */
static int waits_of(struct ob_spin *spin, int count, int64_t polled_ns, int64_t slept_ns)
{
    int polled = 0;

    for (int i = 0; i < count; i++) {
        bool polls = ob_spin_begin(spin) > 0;

        if (polls)
            ob_spin_end();
        polled += polls;
        ob_spin_learn(spin, polls ? polled_ns : slept_ns);
    }
    return polled;
}

TEST(mode_sleeps, "mode-that-sleeps-is-found-where-it-is-faster")
{
    struct ob_spin spin;

    need_two_cpus();
    ob_spin_init(&spin, BUDGET_US, OB_SPIN_COMPARES);
    waits_of(&spin, 400, 19000, 9000);
    CHECK_INT(waits_of(&spin, 1000, 19000, 9000), 0);
    /* Polling is tried again, seldom; and is back as soon as the waits have become longer. */
    CHECK(waits_of(&spin, 50000, 19000, 9000) < 1000);
    waits_of(&spin, 100, 19000, 45000);
    CHECK(waits_of(&spin, 1000, 19000, 45000) > 950);
}

TEST(mode_polls, "mode-that-sleeps-is-tried-seldom-where-it-is-slower")
{
    struct ob_spin spin;

    need_two_cpus();
    ob_spin_init(&spin, BUDGET_US, OB_SPIN_COMPARES);
    CHECK(waits_of(&spin, 50000, 19000, 45000) > 49000);
    ob_spin_init(&spin, BUDGET_US, OB_SPIN_COMPARES);
    CHECK(waits_of(&spin, 50000, 9000, 8500) > 49000);
}

TEST(mode_short, "mode-that-sleeps-is-never-tried-where-waits-are-short")
{
    struct ob_spin spin;

    need_two_cpus();
    ob_spin_init(&spin, BUDGET_US, OB_SPIN_COMPARES);
    CHECK_INT(waits_of(&spin, 50000, 4000, 1000), 50000);
}

TEST(mode_idle, "mode-that-sleeps-is-not-tried-because-the-peer-rests-now-and-then")
{
    struct ob_spin spin;

    need_two_cpus();
    ob_spin_init(&spin, BUDGET_US, OB_SPIN_COMPARES);
    for (int i = 0; i < 1000; i++) {
        CHECK_INT(waits_of(&spin, 20, 4000, 1000), 20);
        waits_of(&spin, 1, 20000000, 20000000);
    }
    /* Nor is one that was found given up for that. */
    ob_spin_init(&spin, BUDGET_US, OB_SPIN_COMPARES);
    waits_of(&spin, 400, 19000, 9000);
    for (int i = 0; i < 100; i++) {
        waits_of(&spin, 1, 20000000, 20000000);
        CHECK_INT(waits_of(&spin, 2, 19000, 9000), 0);
    }
}

TEST(mode_back, "mode-that-polls-is-found-again-when-the-peer-polls")
{
    struct ob_spin spin;

    need_two_cpus();
    ob_spin_init(&spin, BUDGET_US, OB_SPIN_COMPARES);
    waits_of(&spin, 1000, 19000, 9000);
    waits_of(&spin, 4096, 3000, 9000);
    CHECK_INT(waits_of(&spin, 1000, 3000, 9000), 1000);
}

TEST(mode_flows, "mode-that-sleeps-is-not-kept-for-what-has-gathered-meanwhile")
{
    struct ob_spin spin;
    int polled = 0;

    need_two_cpus();
    ob_spin_init(&spin, BUDGET_US, OB_SPIN_COMPARES);
    for (int i = 0; i < 50000; i++) {
        bool polls = ob_spin_begin(&spin) > 0;

        if (polls)
            ob_spin_end();
        else /* a second message came while it slept */
            ob_spin_flows(&spin);
        polled += polls;
        ob_spin_learn(&spin, polls ? 19000 : 45000);
    }
    CHECK(polled > 49000);
}

TEST(mode_affinity, "mode-trials-leave-the-CPUs-that-a-thread-may-run-on")
{
    cpu_set_t before, after;
    struct ob_spin spin;

    need_two_cpus();
    CHECK_INT(sched_getaffinity(0, sizeof(before), &before), 0);
    ob_spin_init(&spin, BUDGET_US, OB_SPIN_COMPARES | OB_SPIN_MOVES);
    CHECK(waits_of(&spin, 3000, 19000, 45000) < 3000);
    CHECK_INT(sched_getaffinity(0, sizeof(after), &after), 0);
    CHECK(CPU_EQUAL(&before, &after));
}

TEST(off, "a-budget-of-0-never-polls")
{
    struct ob_spin spin;

    ob_spin_init(&spin, 0, 0);
    for (int i = 0; i < 100; i++)
        CHECK_INT(wait_of(&spin, 100), 0);
}

static void *poll_once(void *opaque)
{
    int *limit = opaque;
    struct ob_spin spin;

    ob_spin_init(&spin, BUDGET_US, 0);
    *limit = ob_spin_begin(&spin) > 0;
    return NULL; /* and is still at it */
}

TEST(spare_cpus, "no-more-threads-poll-than-there-are-cpus-to-spare")
{
    int cpus = (int)sysconf(_SC_NPROCESSORS_ONLN), polling = 0;
    struct ob_spin spin;

    need_two_cpus();
    for (int i = 0; i < cpus; i++) {
        pthread_t thread;
        int polls;

        CHECK_INT(pthread_create(&thread, NULL, poll_once, &polls), 0);
        CHECK_INT(pthread_join(thread, NULL), 0);
        polling += polls;
    }
    CHECK_INT(polling, cpus - 1);
    ob_spin_init(&spin, BUDGET_US, 0);
    CHECK_INT(ob_spin_begin(&spin), 0);
}

TEST(nested, "thread-that-polls-may-poll-for-what-that-led-to")
{
    struct ob_spin outer, inner;

    need_two_cpus();
    ob_spin_init(&outer, BUDGET_US, 0);
    ob_spin_init(&inner, BUDGET_US, 0);
    for (int i = 0; i < 3; i++) {
        CHECK(ob_spin_begin(&outer) > 0);
        CHECK(ob_spin_begin(&inner) > 0);
        ob_spin_end();
        ob_spin_end();
    }
}

static atomic_bool hog_ends;

static void *compute(void *opaque)
{
    while (!hog_ends)
        ;
    return opaque;
}

/* Each time that it is offered the CPU it keeps it for milliseconds. */
TEST(hog, "cpu-that-another-keeps-is-offered-to-it-seldom")
{
    cpu_set_t here;

    need_two_cpus();
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    CHECK_INT(sched_setaffinity(0, sizeof(here), &here), 0);
    for (int yield = 0; yield < 2; yield++) {
        struct ob_spin spin;
        pthread_t thread;
        unsigned polled = 0;

        hog_ends = false;
        CHECK_INT(pthread_create(&thread, NULL, compute, NULL), 0);
        ob_spin_init(&spin, BUDGET_US, 0);
        for (int i = 0; i < 2000; i++) {
            if (ob_spin_begin(&spin) == 0)
                continue;
            polled++;
            for (unsigned look = 0; look < 16; look++)
                ob_spin_relax(&spin, look, yield);
            ob_spin_end();
        }
        hog_ends = true;
        CHECK_INT(pthread_join(thread, NULL), 0);
        CHECK(polled < 200);
    }
}
