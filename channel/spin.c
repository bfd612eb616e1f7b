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
#define MARGIN_NS      8000
#define FORGET_DIVISOR 128
#define MODE_WORTH_NS  6000  /* what two switches of context cost, with what is done between them */
#define MODE_SETTLE    12u   /* waits of a trial until both ends are placed */
#define MODE_WAITS     16u   /* of a trial that are measured */
#define MODE_WINS      12u   /* that make it succeed */
#define MODE_TRY_MIN   256u  /* waits from one trial of sleeping to the next */
#define MODE_KEEP_MIN  2048u /* of polling, which disturbs more */
#define MODE_EVERY_MAX 4096u
#define MODE_PAID      256u /* waits that a success has to last */
#define MODE_DIVISOR   32

/* Threads of this process that poll now, and the CPUs of the machine. */
static atomic_uint spinners, cpus;
/* Polls that this thread is inside of: what a poll has brought may lead to another one. */
static _Thread_local unsigned depth;

void ob_spin_init(struct ob_spin *spin, unsigned budget_us, unsigned may)
{
    memset(spin, 0, sizeof(*spin));
    spin->may = may;
    spin->mode.until = spin->mode.every[false] = MODE_TRY_MIN;
    spin->mode.every[true] = MODE_KEEP_MIN;
    spin->budget_ns = (int64_t)budget_us * 1000;
    spin->peak_ns = spin->budget_ns;
    spin->score = SCORE_MAX;
    atomic_store_explicit(&cpus, (unsigned)sysconf(_SC_NPROCESSORS_ONLN), memory_order_relaxed);
}

/* ---- Polling or sleeping ------------------------------------------------------------------- */

/* Runs on that CPU, or on any but this one (-1); which ones it may run on stays as it is. False: it
 * may not run there, or does already. */
/* syscalls: getcpu, sched_getaffinity(0=0), sched_setaffinity(0=0) */
static bool move(int to)
{
    cpu_set_t all, some;
    int cpu = sched_getcpu();

    if (cpu < 0 || cpu == to || sched_getaffinity(0, sizeof(all), &all) != 0)
        return false;
    some = all;
    if (to < 0) {
        CPU_CLR(cpu, &some);
    } else {
        CPU_ZERO(&some);
        CPU_SET(to, &some);
        CPU_AND(&some, &some, &all);
    }
    if (CPU_COUNT(&some) == 0 || sched_setaffinity(0, sizeof(some), &some) != 0)
        return false;
    sched_setaffinity(0, sizeof(all), &all);
    return true;
}

static void begin_trial(struct ob_spin *spin)
{
    struct ob_spin_mode *mode = &spin->mode;

    mode->trial = MODE_SETTLE + MODE_WAITS;
    mode->wins = 0;
    mode->trial_ns = 0;
    mode->cpu = sched_getcpu();
    /* Who polls is mostly not where the peer is, and who sleeps should be there. */
    if (spin->may & OB_SPIN_MOVES)
        move(-1);
}

/* The next trial comes later than the last one. */
static void put_off(struct ob_spin_mode *mode)
{
    unsigned *every = &mode->every[mode->sleeps];

    *every = *every * 2 < MODE_EVERY_MAX ? *every * 2 : MODE_EVERY_MAX;
    mode->until = *every;
}

static void end_trial(struct ob_spin *spin)
{
    struct ob_spin_mode *mode = &spin->mode;

    mode->trial = 0;
    if (mode->wins < MODE_WINS) {
        if (spin->may & OB_SPIN_MOVES)
            move(mode->cpu);
        put_off(mode);
        return;
    }
    mode->polled_ns = mode->mean_ns;
    mode->mean_ns = mode->trial_ns / MODE_WAITS;
    mode->sleeps = !mode->sleeps;
    mode->kept = 0;
    mode->every[true] = MODE_KEEP_MIN;
    mode->until = mode->every[mode->sleeps];
}

/* Sleeping has become slower than polling was: the kernel has placed the two ends apart. A trial
 * may bring them together again. */
static void stop_sleeping(struct ob_spin_mode *mode)
{
    mode->sleeps = false;
    if (mode->kept < MODE_PAID) {
        put_off(mode);
        return;
    }
    mode->every[false] = MODE_TRY_MIN;
    mode->until = 0;
}

static void trial_learn(struct ob_spin *spin, int64_t waited_ns)
{
    struct ob_spin_mode *mode = &spin->mode;

    if (mode->trial <= MODE_WAITS) {
        mode->wins += waited_ns < mode->mean_ns / 4 * 3;
        mode->trial_ns += waited_ns;
    } else if (!mode->sleeps && mode->trial % 2 && waited_ns > mode->mean_ns &&
               (spin->may & OB_SPIN_MOVES)) {
        move(-1); /* not together yet; the next wait has the cost of the move in it */
    }
    mode->trial--;
    if (mode->trial + mode->wins < MODE_WINS || mode->trial == 0)
        end_trial(spin);
}

/* Whether the wait that begins sleeps at once. */
static bool mode_sleeps(struct ob_spin *spin)
{
    struct ob_spin_mode *mode = &spin->mode;

    mode->counts = (spin->may & OB_SPIN_COMPARES) != 0;
    return mode->sleeps != (mode->trial > 0);
}

static void mode_learn(struct ob_spin *spin, int64_t waited_ns)
{
    struct ob_spin_mode *mode = &spin->mode;
    int64_t longest_ns = mode->sleeps || mode->trial > 0 ? 2 * spin->budget_ns : spin->budget_ns;

    if (!mode->counts)
        return;
    mode->counts = false;
    if (mode->trial > 0) {
        trial_learn(spin, waited_ns < longest_ns ? waited_ns : longest_ns);
        return;
    }
    if (waited_ns > longest_ns) /* the peer wanted nothing */
        return;
    mode->kept++;
    mode->mean_ns += (waited_ns - mode->mean_ns) / MODE_DIVISOR;
    if (mode->sleeps && mode->mean_ns > mode->polled_ns)
        stop_sleeping(mode);
    if (mode->until > 0)
        mode->until--;
    else if (mode->mean_ns > MODE_WORTH_NS)
        begin_trial(spin);
}

/* ---- How long to poll, and where ----------------------------------------------------------- */

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
    } else if (mode_sleeps(spin)) {
        return 0;
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

/* Goes to another CPU, if it may and has not for so long; else polls no more for a while. */
static void give_way(struct ob_spin *spin, int64_t now_ns, int64_t move_every_ns)
{
    spin->shared = 0;
    if ((spin->may & OB_SPIN_MOVES) && now_ns - spin->moved_ns >= move_every_ns && move(-1)) {
        spin->moved_ns = now_ns;
        return;
    }
    spin->pause = spin->pause < PAUSE_WAITS ? PAUSE_WAITS : 2 * spin->pause;
    if (spin->pause > PAUSE_MAX)
        spin->pause = PAUSE_MAX;
    spin->paused = spin->pause;
}

static void find_shared(struct ob_spin *spin, int64_t now_ns)
{
    bool can_move = (spin->may & OB_SPIN_MOVES) != 0;
    unsigned enough = can_move ? MOVE_AFTER : PAUSE_AFTER;

    if (spin->shared++ == 0)
        spin->shared_ns = now_ns;
    /* What others do for a moment is no reason; and a peer that can move comes first. */
    if (spin->shared >= enough && now_ns - spin->shared_ns >= (can_move ? MOVE_NS : STAY_NS) &&
        now_ns - spin->moved_ns >= MOVE_EVERY_NS)
        give_way(spin, now_ns, MOVE_EVERY_NS);
}

/* syscalls: sched_yield */
void ob_spin_relax(struct ob_spin *spin, unsigned i, bool yield)
{
    int64_t before_ns, after_ns;

    if (!yield && i % YIELD_EVERY != YIELD_EVERY - 1)
        return;
    before_ns = ob_now_ns();
    sched_yield();
    after_ns = ob_now_ns();
    if (after_ns - before_ns > HOG_NS) {
        /* The CPU was given to one that computes, and kept it for its whole time slice: a hundred
         * times what polling can save. Where another CPU is as busy, only sleeping helps: who
         * sleeps is preferred when it wakes. */
        give_way(spin, after_ns, HOG_MOVE_NS);
        return;
    }
    spin->pause -= spin->pause / 64;
    if (yield)
        return;
    if (after_ns - before_ns > OTHERS_RAN_NS)
        find_shared(spin, after_ns);
    else
        spin->shared = 0;
}

static void learn(struct ob_spin *spin, int64_t waited_ns)
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

void ob_spin_learn(struct ob_spin *spin, int64_t waited_ns)
{
    mode_learn(spin, waited_ns);
    learn(spin, waited_ns);
}

void ob_spin_flows(struct ob_spin *spin)
{
    learn(spin, 0);
}
