/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * usage: stops COMMAND [ARGUMENT...]
 * Runs the command and stops one of its threads, or of its children's, now and then, as a machine
 * under load does, only far more often: for tests/run --under. STOPS_GAP_US is the mean time
 * between two, STOPS_MAX_US the longest, STOPS_SEED the choice of all. The exit status is the
 * command's.
 *
 * A stop is also seen as what no load does: epoll_wait() is interrupted by it, a time-out of
 * ppoll() begins again with what was left, and who is idle has run. It is traced, so no other
 * tracer can be.
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS 4096

struct thread {
    pid_t tid;
    bool asked;       /* to stop */
    int64_t until_us; /* when it goes on; 0: it runs */
};

static struct thread threads[THREADS];
static unsigned nthreads;

static int64_t now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * INT64_C(1000000) + ts.tv_nsec / 1000;
}

static int64_t number(const char *name, int64_t otherwise)
{
    const char *value = getenv(name);

    return value ? strtoll(value, NULL, 10) : otherwise;
}

static struct thread *find(pid_t tid)
{
    for (unsigned i = 0; i < nthreads; i++)
        if (threads[i].tid == tid)
            return &threads[i];
    if (nthreads == THREADS)
        return NULL;
    threads[nthreads] = (struct thread){ .tid = tid };
    return &threads[nthreads++];
}

static void go_on(struct thread *t, int number)
{
    t->until_us = 0;
    ptrace(PTRACE_CONT, t->tid, NULL, (long)number);
}

/* A thread has stopped. Most stops are short. */
static void stopped(pid_t tid, int status, int64_t max_us)
{
    struct thread *t = find(tid);
    double share = (double)random() / (double)RAND_MAX;
    int event = status >> 16, sig = WSTOPSIG(status);

    if (!t)
        ptrace(PTRACE_CONT, tid, NULL, event ? 0L : (long)sig);
    else if (event == PTRACE_EVENT_STOP && sig != SIGTRAP)
        ptrace(PTRACE_LISTEN, tid, NULL, NULL); /* by SIGSTOP, until SIGCONT */
    else if (event == PTRACE_EVENT_STOP && t->asked)
        t->until_us = now_us() + 1 + (int64_t)((double)max_us * share * share * share);
    else
        go_on(t, event ? 0 : sig);
    if (t && event == PTRACE_EVENT_STOP)
        t->asked = false;
}

/* What the kernel has to tell. True: the command has ended, with this status. */
static bool gather(pid_t command, int64_t max_us, int *exit_status)
{
    struct thread *t;
    int status;
    pid_t tid;

    while ((tid = waitpid(-1, &status, __WALL | WNOHANG)) > 0) {
        if (WIFSTOPPED(status)) {
            stopped(tid, status, max_us);
            continue;
        }
        t = find(tid);
        if (t)
            *t = threads[--nthreads];
        *exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (tid == command)
            return true;
    }
    return false;
}

static int watch(pid_t command)
{
    const int64_t gap_us = number("STOPS_GAP_US", 3000), max_us = number("STOPS_MAX_US", 20000);
    const struct timespec nap = { 0, 100000 };
    int64_t next_us = now_us();
    sigset_t child;
    int status;

    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    while (!gather(command, max_us, &status)) {
        int64_t now = now_us();

        for (unsigned i = 0; i < nthreads; i++)
            if (threads[i].until_us && threads[i].until_us <= now)
                go_on(&threads[i], 0);
        if (nthreads && now >= next_us) {
            struct thread *t = &threads[(unsigned long)random() % nthreads];

            if (!t->until_us && !t->asked)
                t->asked = ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL) == 0;
            next_us = now + random() % (2 * gap_us);
        }
        sigtimedwait(&child, NULL, &nap);
    }
    return status;
}

int main(int argc, char **argv)
{
    const long options =
        PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_EXITKILL;
    sigset_t child, before;
    pid_t command;

    if (argc < 2) {
        fputs("usage: stops COMMAND [ARGUMENT...]\n", stderr);
        return 2;
    }
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, &before);
    srandom((unsigned)number("STOPS_SEED", now_us() ^ getpid()));
    command = fork();
    if (command == 0) {
        sigprocmask(SIG_SETMASK, &before, NULL);
        kill(getpid(), SIGSTOP);
        execvp(argv[1], argv + 1);
        perror(argv[1]);
        _exit(127);
    }
    if (command < 0 || waitpid(command, NULL, WUNTRACED) < 0 ||
        ptrace(PTRACE_SEIZE, command, NULL, options) < 0) {
        perror("stops");
        if (command > 0)
            kill(command, SIGKILL);
        return 1;
    }
    kill(command, SIGCONT);
    return watch(command);
}
