/* SPDX-License-Identifier: BSD-3-Clause */
#include "channel/spin.h"

#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#define SCORE_MAX      8u
#define TRIAL_EVERY    16u   /* waits, while polling does not pay */
#define CPUS_EVERY     1024u /* uses, between two looks at the CPUs we may run on */
#define MARGIN_NS      2000
#define FORGET_DIVISOR 128

/* Threads of this process that poll now. */
static atomic_uint spinners;

/* Between 1 and what there is: on a single CPU the peer could not answer while we poll. */
static unsigned usable_cpus(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
}

void ob_spin_init(struct ob_spin *spin, unsigned budget_us)
{
    memset(spin, 0, sizeof(*spin));
    spin->budget_ns = (int64_t)budget_us * 1000;
    spin->peak_ns = spin->budget_ns;
    spin->score = SCORE_MAX;
}

int64_t ob_spin_begin(struct ob_spin *spin)
{
    int64_t limit = 2 * spin->peak_ns + MARGIN_NS;

    if (spin->budget_ns == 0)
        return 0;
    if (spin->score == 0) {
        if (++spin->skipped < TRIAL_EVERY)
            return 0;
        limit = spin->budget_ns;
    }
    spin->skipped = 0;
    if (spin->used++ % CPUS_EVERY == 0)
        spin->cpus = usable_cpus();
    if (atomic_fetch_add_explicit(&spinners, 1, memory_order_relaxed) + 1 >= spin->cpus) {
        ob_spin_end();
        return 0;
    }
    return limit < spin->budget_ns ? limit : spin->budget_ns;
}

void ob_spin_end(void)
{
    atomic_fetch_sub_explicit(&spinners, 1, memory_order_relaxed);
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
