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
 * Threads. One thread at a time uses a struct ob_spin.
 */
#ifndef OB_SPIN_H
#define OB_SPIN_H

#include <stdbool.h>
#include <stdint.h>

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
};

void ob_spin_init(struct ob_spin *spin, unsigned budget_us);
/* A wait begins. How long to poll, in nanoseconds; 0: not at all. Else ob_spin_end() must follow
 * when the polling has ended, whatever it has brought. */
int64_t ob_spin_begin(struct ob_spin *spin);
void ob_spin_end(void);
/*
 * Between two looks at the socket; i counts them. yield: others of this process wait for a CPU.
 *
 * The kernel wakes a thread on the CPU of who woke it when the machine has few, and leaves it
 * there; two that poll on one CPU get little done. When the CPU turns out to be shared again and
 * again, a thread that may choose (can_move) goes to another one that it may run on; else it polls
 * no more for a while.
 */
void ob_spin_relax(struct ob_spin *spin, unsigned i, bool yield, bool can_move);
/* How long the wait took in the end, sleep included. */
void ob_spin_learn(struct ob_spin *spin, int64_t waited_ns);

#endif
