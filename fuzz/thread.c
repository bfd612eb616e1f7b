/* SPDX-License-Identifier: BSD-3-Clause */
#include "thread.h"
#include "world.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *),
                          void *arg);
int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex);
int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                                  const struct timespec *until);

static void *(*due)(void *);
static void *due_arg;

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *),
                          void *arg)
{
    (void)attr;
    HOLDS(!due);
    due = start;
    due_arg = arg;
    *thread = pthread_self();
    return 0;
}

bool thread_run(void)
{
    void *(*start)(void *) = due;

    due = NULL;
    if (start)
        start(due_arg);
    return start != NULL;
}

static bool run_unlocked(pthread_mutex_t *mutex)
{
    bool ran;

    pthread_mutex_unlock(mutex);
    ran = thread_run();
    pthread_mutex_lock(mutex);
    return ran;
}

int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
    (void)cond;
    if (!run_unlocked(mutex))
        finding(__FILE__, __LINE__, "somebody waits for ever for another thread");
    return 0;
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                                  const struct timespec *until)
{
    int64_t until_ns = until->tv_sec * INT64_C(1000000000) + until->tv_nsec;

    (void)cond;
    if (run_unlocked(mutex))
        return 0;
    if (until_ns > world.now_ns)
        world.now_ns = until_ns;
    return ETIMEDOUT;
}
