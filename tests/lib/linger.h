/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A descriptor whose last close() waits, for much longer than a test may take: a TCP socket that
 * lingers, with data that its peer does not read. And the kernel's calls that can be made to fail.
 */
#ifndef OB_TESTS_LINGER_H
#define OB_TESTS_LINGER_H

#include <stdbool.h>
#include <stddef.h>

#include "harness.h"

/* Does something that must not wait: a close() that waits takes 60 s. */
#define AT_ONCE(what)                             \
    do {                                          \
        int64_t start_ms_ = test_now_ms();        \
        what;                                     \
        CHECK(test_now_ms() - start_ms_ < 10000); \
    } while (0)

/* The descriptor. All of them are let go with linger_release(), for close() to come to its end. */
int linger_open(void);
void linger_release(void);
/* Sends so many of them, which nobody else has, with the first byte of the data, and then the rest.
 * False: the receiver's kernel took none, and the data went alone. */
bool linger_send(int sock, const void *data, size_t len, unsigned count, int flags);

/* Threads of this process. */
unsigned linger_threads(void);

extern bool linger_no_thread;     /* pthread_create() fails */
extern bool linger_no_passrights; /* a kernel before SO_PASSRIGHTS */

#endif
