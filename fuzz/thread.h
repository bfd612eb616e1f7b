/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The thread that the client starts to reconnect, as a function that is called: by the target
 * between two calls, or while a call waits for what only that thread can bring about. The linker
 * brings pthread_create() and the waits for a condition here. All else is one thread's, so no
 * condition is ever signalled while somebody waits; what is waited for in vain takes all the time
 * there is.
 */
#ifndef OB_FUZZ_THREAD_H
#define OB_FUZZ_THREAD_H

#include <stdbool.h>

/* Runs the thread to its end, if there is one. */
bool thread_run(void);

#endif
