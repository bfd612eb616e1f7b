/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The sandbox of a server: what a process gives up for good when it has opened all that it needs.
 * docs/sandbox.md says what each part is for. They are called in the order in which they are here.
 * Threads start before the last one: all the others are a thread's own, and inherited; the filter
 * holds for all threads, and has no call in it that starts one.
 */
#ifndef OB_TOOLS_SANDBOX_H
#define OB_TOOLS_SANDBOX_H

/* What the process does nevertheless. */
struct sandbox_needs {
    int keeps_fd;        /* inherited, and used; -1: none */
    int reopens_fd;      /* of a file that it opens again, through /proc/self/fd; -1: none */
    const char *removes; /* the path of a file that it removes at the end; NULL: none */
};

/* All of them return 0 or a negative errno; -ENOSYS: this kernel, or this build, cannot do it. */

/* Closes all descriptors that other programs left open in this one: those from 3 on that are not
 * close-on-exec, as all of ours are. Standard input becomes /dev/null, unless it is keeps_fd. */
int sandbox_close_fds(const struct sandbox_needs *needs);
/* Nobody that this process turns into can have capabilities, if we may decide that: before it
 * becomes another user. */
int sandbox_bound(const struct sandbox_needs *needs);
/* No capabilities, and no new privileges by execve(). */
int sandbox_drop(const struct sandbox_needs *needs);
/* No file is opened, made or removed any more, but what is needed; nor are signals sent to others,
 * abstract sockets connected, or TCP ports used, where the kernel is new enough to refuse that. */
int sandbox_landlock(const struct sandbox_needs *needs);
/* No system calls but the annotated ones (syscalls.py), in any thread: others kill the process. */
int sandbox_seccomp(const struct sandbox_needs *needs);

#endif
