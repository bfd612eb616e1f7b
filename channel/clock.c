/* SPDX-License-Identifier: BSD-3-Clause */
/* Deadlines. */
#include "channel/channel.h"

#include <time.h>

int64_t ob_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int64_t ob_deadline_ns(int timeout_ms)
{
    return timeout_ms < 0 ? OB_NO_DEADLINE : ob_now_ns() + (int64_t)timeout_ms * 1000000;
}
