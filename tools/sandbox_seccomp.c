/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The filter of system calls (see sandbox.h). What may be called is said beside the code that calls
 * it, and collected by syscalls.py; what is here is what libc calls unasked.
 */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <seccomp.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* Memory, locks, and the end of a thread and of the process: */
/* syscalls: brk, mmap(2&PROT_EXEC=0), mremap, munmap, madvise, futex, exit, exit_group */
/* Signals, abort(), its last words, and where the kernel has no vDSO: */
/* syscalls: rt_sigprocmask, rt_sigaction, rt_sigreturn, restart_syscall, getpid, gettid,
 * tgkill(0=getpid()), writev, clock_gettime, getcpu */

#define API_WITH_KILL_PROCESS 3u /* as libseccomp counts: Linux 4.14 */

enum sandbox_need { NEED_ALWAYS, NEED_REOPENS, NEED_REMOVES };

struct call {
    int number;
    enum sandbox_need need;
    unsigned nargs;
    struct scmp_arg_cmp args[2];
};

static bool is_needed(const struct sandbox_needs *needs, enum sandbox_need need)
{
    switch (need) {
    case NEED_REOPENS:
        return needs->reopens_fd >= 0;
    case NEED_REMOVES:
        return needs->removes;
    case NEED_ALWAYS:
        break;
    }
    return true;
}

static int add_calls(scmp_filter_ctx filter, const struct sandbox_needs *needs)
{
#define CALL(name, need, nargs, ...) { SCMP_SYS(name), need, nargs, { __VA_ARGS__ } },
#define ARG(n, mask, value)          SCMP_CMP64(n, SCMP_CMP_MASKED_EQ, mask, (scmp_datum_t)(value))
    const struct call calls[] = {
#include "syscalls.inc"
    };
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < sizeof(calls) / sizeof(calls[0]); i++)
        if (is_needed(needs, calls[i].need))
            rc = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, calls[i].number, calls[i].nargs,
                                        calls[i].args);
    return rc;
}

static int load_filter(scmp_filter_ctx filter, const struct sandbox_needs *needs)
{
    int rc = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);

    if (rc == 0)
        rc = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    if (rc == 0)
        rc = seccomp_attr_set(filter, SCMP_FLTATR_API_SYSRAWRC, 1);
    if (rc == 0)
        rc = add_calls(filter, needs);
    /* Kernels before 5.16 take a filter for a sign of foreign code, and slow everything down. */
    seccomp_attr_set(filter, SCMP_FLTATR_CTL_SSB, 1);
    return rc == 0 ? seccomp_load(filter) : rc;
}

int sandbox_seccomp(const struct sandbox_needs *needs)
{
    scmp_filter_ctx filter;
    int rc;

    if (seccomp_api_get() < API_WITH_KILL_PROCESS)
        return -ENOSYS;
    /* A thread's first allocation would look in /sys for the number of CPUs. */
    mallopt(M_ARENA_MAX, 1);
    filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!filter)
        return -ENOMEM;
    rc = load_filter(filter, needs);
    seccomp_release(filter);
    return rc;
}
