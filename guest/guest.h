/* SPDX-License-Identifier: BSD-3-Clause */
/* What the programs that run in the test guest have in common. */
#ifndef OB_GUEST_H
#define OB_GUEST_H

#include <stdio.h>
#include <stdlib.h>

/* Ends the program with a line that says what was found instead of what should be. */
#define EXPECT(value, wanted)                                                               \
    do {                                                                                    \
        unsigned long long value_ = (value), wanted_ = (wanted);                            \
        if (value_ != wanted_) {                                                            \
            printf("%s:%d: %s is 0x%llx, not 0x%llx\n", __FILE__, __LINE__, #value, value_, \
                   wanted_);                                                                \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

/* For system calls: ends the program with errno's text when NOT_OK holds. */
#define FAIL_IF(not_ok)                                         \
    do {                                                        \
        if (not_ok) {                                           \
            printf("%s:%d: %s: ", __FILE__, __LINE__, #not_ok); \
            fflush(stdout);                                     \
            perror("");                                         \
            exit(1);                                            \
        }                                                       \
    } while (0)

#endif
