/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What all targets have in common: a clock of their own, waits that do not wait, and a look at what
 * a run has left behind. The linker brings these calls of the code under test here (meson.build):
 *
 *   clock_gettime()               goes on by a microsecond with each call, after world.tick
 *   ppoll(), poll(), epoll_wait() first the fds as they are; then what world.hook does about it;
 *                                 then the clock is put on by all of the timeout. A wait for ever
 *                                 that nothing can end is a finding
 *   timerfd_*()                   fire by that clock, until close()
 *   mmap(), munmap()              are counted
 *   ob_fd_discard() and the like  close at once, as no descriptor here can hang (kinds.h)
 *
 * So a run depends on its input alone, and takes no time.
 */
#ifndef OB_FUZZ_WORLD_H
#define OB_FUZZ_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct world {
    /* The other side's turn, while the code under test waits. Whether it did something. */
    bool (*hook)(void *opaque);
    void *opaque;
    /* The same while it polls: whenever it looks at the clock. NULL: nothing happens. */
    void (*tick)(void *opaque);
    int64_t now_ns;
};
extern struct world world;

/* Around a run: afterwards the same fds are open, and as much is mapped, as before. */
void world_begin(void);
void world_end(void);

/* Memory of just that size, zeroed; it cannot fail. */
void *new_memory(size_t len);

/* A finding: says what was wrong, and ends the process. */
_Noreturn void finding(const char *file, int line, const char *what);

#define HOLDS(cond)                             \
    do {                                        \
        if (!(cond))                            \
            finding(__FILE__, __LINE__, #cond); \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
