/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Whether, and for how long, a wait for the peer begins by polling its socket.
 *
 * Waking a thread that sleeps costs ten times a round trip between two that poll. So a wait polls
 * first, where that has paid lately: for twice as long as recent waits took, never longer than
 * the budget, and not while as many threads of this process poll as there are CPUs to spare. What
 * mostly comes later than the budget is slept for at once, but for a trial now and then. Now and
 * then the CPU is offered to others, among whom may be the peer.
 *
 * A peer that sleeps may come sooner to one that sleeps, too: on one CPU waking it is a switch of
 * context, and not the interrupt of an idle core. That cannot be seen from here. So where waits are
 * longer than those switches (OB_SPIN_COMPARES), now and then a few are spent the other way, on
 * another CPU, and what was clearly shorter is kept until it is no more. Tests: spin/mode-*.
 *
 * Threads. One thread at a time uses a struct ob_spin.
 */
#ifndef OB_SPIN_H
#define OB_SPIN_H

#include <stdbool.h>
#include <stdint.h>

/* What a thread that waits may do. */
enum {
    OB_SPIN_MOVES = 1,    /* go to another CPU that it may run on */
    OB_SPIN_COMPARES = 2, /* sleep where that is the faster way */
};

/* Polling or sleeping, as that has turned out faster. */
struct ob_spin_mode {
    bool sleeps;       /* what is kept; a trial does the other */
    bool counts;       /* the wait under way was decided here */
    unsigned trial;    /* waits that are left of a trial */
    unsigned wins;     /* those of it that were clearly shorter */
    unsigned until;    /* waits until the next trial */
    unsigned every[2]; /* what that is at first, by sleeps; doubled by trials in vain */
    unsigned kept;     /* waits since the mode was changed */
    int cpu;           /* where it ran before the trial */
    int64_t mean_ns;   /* of waits in the mode that is kept */
    int64_t trial_ns;  /* sum of those that are measured in a trial */
    int64_t polled_ns; /* mean_ns when polling was given up */
};

struct ob_spin {
    int64_t budget_ns; /* 0: never */
    int64_t peak_ns;   /* the longest of recent waits within the budget, forgotten slowly */
    unsigned score;    /* of recent waits; 0: polling does not pay */
    unsigned skipped;  /* waits since the last trial */
    unsigned shared;   /* times in a row that others ran when the CPU was offered to them */
    int64_t shared_ns; /* when that began */
    unsigned paused;   /* waits that do not poll, because the CPU is shared */
    unsigned pause;    /* how long the last pause was, forgotten slowly */
    int64_t moved_ns;  /* when the CPU was changed last */
    unsigned may;      /* OB_SPIN_* */
    struct ob_spin_mode mode;
};

void ob_spin_init(struct ob_spin *spin, unsigned budget_us, unsigned may);
/* A wait begins. How long to poll, in nanoseconds; 0: not at all. Else ob_spin_end() must follow
 * when the polling has ended, whatever it has brought. */
int64_t ob_spin_begin(struct ob_spin *spin);
void ob_spin_end(void);
/*
 * Between two looks at the socket; i counts them. yield: others of this process wait for a CPU.
 *
 * The kernel wakes a thread on the CPU of who woke it when the machine has few, and leaves it
 * there; two that poll on one CPU get little done. When the CPU turns out to be shared again and
 * again, a thread that may (OB_SPIN_MOVES) goes to another one; else it polls no more for a while.
 */
void ob_spin_relax(struct ob_spin *spin, unsigned i, bool yield);
/* How long the wait took in the end, sleep included. */
void ob_spin_learn(struct ob_spin *spin, int64_t waited_ns);
/* What came was there already: nobody waited. This is not the end of a wait that has begun. */
void ob_spin_flows(struct ob_spin *spin);

#endif
