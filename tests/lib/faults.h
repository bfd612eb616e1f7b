/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Makes each call of the allocator and of the kernel fail that the libraries and devices of a test
 * program make: the Nth one, in each way in which that call can fail (faults.c has the table;
 * tests/meson.build has the linker do it). And counts what is allocated, so that what a failure
 * leaks is seen.
 *
 * Calls count that are made in the main thread between faults_enter() and faults_leave(), or those
 * of all other threads. So the test's own calls never fail, and one of two ends in one process is
 * tried at a time.
 */
#ifndef OB_TESTS_FAULTS_H
#define OB_TESTS_FAULTS_H

#include <stdbool.h>
#include <stdint.h>

enum fault_side { FAULTS_MAIN, FAULTS_OTHERS };

enum fault_class {
    FAULT_MEMORY = 1, /* malloc() and the like */
    FAULT_SOCKET = 2, /* messages and connections */
    FAULT_FILE = 4,   /* file I/O */
    FAULT_KERNEL = 8, /* descriptors, mappings and waits */
    FAULT_ALL = 15,
};

/* The first call of a test program, from its main thread. */
void faults_init(void);
void faults_enter(void);
void faults_leave(void);
/* Calls of the other threads do not count meanwhile. */
void faults_hold(bool hold);

/*
 * Runs round() without a fault, then for each call of these classes that a round makes, and each
 * way in which it can fail, until a round has fewer calls. After each round as many descriptors,
 * allocations and mapped bytes must be there as before. A round may take 10 s: waits that a fault
 * makes longer should have longer deadlines than that, so that they are found.
 */
void faults_try_all(enum fault_side side, unsigned classes, void (*round)(void *opaque),
                    void *opaque);

/* Whether this round's fault has happened by now; which it was, for messages; and its errno (0 for
 * a short read or write, or lost descriptors). */
bool faults_hit(void);
const char *faults_what(void);
int faults_errno(void);

#endif
