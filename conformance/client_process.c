/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The client's process, where one is started for each case: a shell command in a process group of
 * its own, which is ended with the case. What it prints goes to a file in memory, and is shown
 * when the case fails.
 */
#include "conformance/client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SHOWN    1500 /* bytes of what it printed */
#define GRACE_MS 300  /* to notice that the connection is closed, and crash or end */

/* The command, with the path of the socket in place of {}. */
static char *expand(const char *command, const char *path)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    const char *mark;

    if (!out)
        return NULL;
    while ((mark = strstr(command, "{}"))) {
        fprintf(out, "%.*s%s", (int)(mark - command), command, path);
        command = mark + 2;
    }
    fputs(command, out);
    return fclose(out) == 0 ? text : NULL;
}

_Noreturn static void become(const struct play *p, const char *command)
{
    int null = open("/dev/null", O_RDONLY);

    setenv("OUTBOARD_SOCKET", p->opt->path, 1);
    setpgid(0, 0);
    if (null >= 0)
        dup2(null, STDIN_FILENO);
    dup2(p->output, STDOUT_FILENO);
    dup2(p->output, STDERR_FILENO);
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(127);
}

void process_start(struct test *t)
{
    struct play *p = play_of(t);
    char *command;

    if (!p->opt->run)
        return;
    p->output = test_keep(t, memfd_create("output", MFD_CLOEXEC));
    command = expand(p->opt->run, t->path);
    MUST(t, command, "out of memory");
    p->pid = fork();
    if (p->pid == 0)
        become(p, command);
    free(command);
    MUST(t, p->pid > 0, "cannot start the client: %s", strerror(errno));
    setpgid(p->pid, p->pid);
    p->pidfd = test_keep(t, (int)syscall(SYS_pidfd_open, p->pid, 0));
}

void process_accept(struct test *t)
{
    struct play *p = play_of(t);
    struct pollfd fds[2] = { { .fd = p->listener, .events = POLLIN },
                             { .fd = p->pid > 0 ? p->pidfd : -1, .events = POLLIN } };
    /* A person is given all the time. */
    int left_ms = p->pid > 0 ? (int)((t->deadline_ns - test_now_ns()) / 1000000) : -1;

    MUST(t, poll(fds, 2, left_ms) > 0, "the client does not connect");
    MUST(t, fds[0].revents, "the client ended without having connected");
    t->links[0] = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    MUST(t, t->links[0] >= 0, "cannot accept the connection: %s", strerror(errno));
    t->nlinks = 1;
    t->connections++;
    t->deadline_ns = test_now_ns() +
                     (int64_t)p->opt->timeout_ms * 1000000 * (t->entry->slow ? t->entry->slow : 1);
    test_trace(t, TRACE_EVENT, "connected", 9, 0);
}

bool process_ended(struct play *p, int timeout_ms)
{
    struct pollfd end = { .fd = p->pidfd, .events = POLLIN };

    if (p->pid <= 0)
        return false;
    if (!p->exited && poll(&end, 1, timeout_ms) > 0)
        p->exited = waitpid(p->pid, &p->status, 0) == p->pid;
    return p->exited;
}

/* The signal that it died of; a shell tells it in this way. */
static int death(int status)
{
    if (WIFSIGNALED(status))
        return WTERMSIG(status);
    return WEXITSTATUS(status) > 128 ? WEXITSTATUS(status) - 128 : 0;
}

void process_stop(struct test *t)
{
    struct play *p = play_of(t);
    bool by_itself;

    if (p->pid <= 0)
        return;
    by_itself = process_ended(p, GRACE_MS);
    kill(-p->pid, SIGKILL);
    if (!by_itself)
        waitpid(p->pid, &p->status, 0);
    else if (death(p->status))
        test_fail(t, "the client died of signal %d (%s)", death(p->status),
                  strsignal(death(p->status)));
}

char *process_output(const struct play *p, char *bytes)
{
    char tail[SHOWN + 1], *text = NULL;
    off_t end = p->pid > 0 ? lseek(p->output, 0, SEEK_END) : 0;
    ssize_t n = end > 0 ? pread(p->output, tail, SHOWN, end > SHOWN ? end - SHOWN : 0) : 0;

    if (n <= 0)
        return bytes;
    for (ssize_t i = 0; i < n; i++)
        if ((tail[i] < ' ' && tail[i] != '\n') || tail[i] > '~')
            tail[i] = '?';
    tail[n] = '\0';
    if (asprintf(&text, "%s-- the client printed:\n%s\n", bytes ? bytes : "", tail) < 0)
        return bytes;
    free(bytes);
    return text;
}
