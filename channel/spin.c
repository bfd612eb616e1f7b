/* SPDX-License-Identifier: BSD-3-Clause */
#include "channel/spin.h"
#include "channel/channel.h"

#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#define SCORE_MAX      8u
#define TRIAL_EVERY    16u  /* waits, while polling does not pay */
#define YIELD_EVERY    16u  /* looks */
#define OTHERS_RAN_NS  1200 /* a yield to nobody takes a third of that */
#define MOVE_NS        400000
#define STAY_NS        3000000
#define MOVE_AFTER     6u
#define MOVE_EVERY_NS  3000000
#define PAUSE_AFTER    24u
#define PAUSE_WAITS    256u
#define PAUSE_MAX      2048u
#define HOG_NS         300000 /* who polls, or has a request to send, gives the CPU back sooner */
#define HOG_MOVE_NS    100000000
#define MARGIN_NS      2000
#define FORGET_DIVISOR 128

/* Threads of this process that poll now, and the CPUs of the machine. */
static atomic_uint spinners, cpus;
/* Polls that this thread is inside of: what a poll has brought may lead to another one. */
static _Thread_local unsigned depth;

void ob_spin_init(struct ob_spin *spin, unsigned budget_us)
{
    memset(spin, 0, sizeof(*spin));
    spin->budget_ns = (int64_t)budget_us * 1000;
    spin->peak_ns = spin->budget_ns;
    spin->score = SCORE_MAX;
    atomic_store_explicit(&cpus, (unsigned)sysconf(_SC_NPROCESSORS_ONLN), memory_order_relaxed);
}

int64_t ob_spin_begin(struct ob_spin *spin)
{
    int64_t limit = 2 * spin->peak_ns + MARGIN_NS;

    if (spin->budget_ns == 0)
        return 0;
    if (spin->paused) {
        spin->paused--;
        return 0;
    }
    if (spin->score == 0) {
        if (++spin->skipped < TRIAL_EVERY)
            return 0;
        limit = spin->budget_ns;
    }
    spin->skipped = 0;
    if (depth++ == 0 && atomic_fetch_add_explicit(&spinners, 1, memory_order_relaxed) + 1 >=
                            atomic_load_explicit(&cpus, memory_order_relaxed)) {
        ob_spin_end();
        return 0;
    }
    return limit < spin->budget_ns ? limit : spin->budget_ns;
}

void ob_spin_end(void)
{
    if (--depth == 0)
        atomic_fetch_sub_explicit(&spinners, 1, memory_order_relaxed);
}

/* Runs on another CPU than now; which ones it may run on stays as it is. False: there is no other.
 */
static bool move(void)
{
    cpu_set_t all, others;
    int cpu = sched_getcpu();

    if (cpu < 0 || sched_getaffinity(0, sizeof(all), &all) != 0)
        return false;
    others = all;
    CPU_CLR(cpu, &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof(others), &others) != 0)
        return false;
    sched_setaffinity(0, sizeof(all), &all);
    return true;
}

static void find_shared(struct ob_spin *spin, int64_t now_ns, bool can_move)
{
    unsigned enough = can_move ? MOVE_AFTER : PAUSE_AFTER;

    if (spin->shared++ == 0)
        spin->shared_ns = now_ns;
    /* What others do for a moment is no reason; and a peer that can move comes first. */
    if (spin->shared < enough || now_ns - spin->shared_ns < (can_move ? MOVE_NS : STAY_NS) ||
        now_ns - spin->moved_ns < MOVE_EVERY_NS)
        return;
    spin->shared = 0;
    spin->moved_ns = now_ns;
    if (!can_move || !move())
        spin->paused = PAUSE_WAITS;
}

/* The CPU was given to one that computes, and kept it for its whole time slice: a hundred times
 * what polling can save. Where another CPU is as busy, only sleeping helps: who sleeps is preferred
 * when it wakes. */
static void found_hog(struct ob_spin *spin, int64_t now_ns, bool can_move)
{
    spin->shared = 0;
    if (can_move && now_ns - spin->moved_ns >= HOG_MOVE_NS && move()) {
        spin->moved_ns = now_ns;
        return;
    }
    spin->pause = spin->pause < PAUSE_WAITS ? PAUSE_WAITS : 2 * spin->pause;
    if (spin->pause > PAUSE_MAX)
        spin->pause = PAUSE_MAX;
    spin->paused = spin->pause;
}

void ob_spin_relax(struct ob_spin *spin, unsigned i, bool yield, bool can_move)
{
    int64_t before_ns, after_ns;

    if (!yield && i % YIELD_EVERY != YIELD_EVERY - 1)
        return;
    before_ns = ob_now_ns();
    sched_yield();
    after_ns = ob_now_ns();
    if (after_ns - before_ns > HOG_NS) {
        found_hog(spin, after_ns, can_move);
        return;
    }
    spin->pause -= spin->pause / 64;
    if (yield)
        return;
    if (after_ns - before_ns > OTHERS_RAN_NS)
        find_shared(spin, after_ns, can_move);
    else
        spin->shared = 0;
}

void ob_spin_learn(struct ob_spin *spin, int64_t waited_ns)
{
    if (waited_ns > spin->budget_ns) {
        spin->score /= 2;
        return;
    }
    if (spin->score < SCORE_MAX)
        spin->score++;
    if (waited_ns > spin->peak_ns)
        spin->peak_ns = waited_ns;
    else
        spin->peak_ns -= (spin->peak_ns - waited_ns) / FORGET_DIVISOR;
}
