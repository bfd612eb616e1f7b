/* SPDX-License-Identifier: BSD-3-Clause */
/* Threads of the library's own. */
#include "channel/channel.h"

#include <pthread.h>
#include <signal.h>

#define STACK_SIZE (256u << 10)

/* Signals are for the embedder's threads. */
int ob_thread_start(void *(*run)(void *), void *arg)
{
    sigset_t all, before;
    pthread_attr_t attr;
    pthread_t thread;
    int rc;

    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&thread, &attr, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return -rc;
}
