/* SPDX-License-Identifier: BSD-3-Clause */
/* Verdicts of a case, and what it opens. */
#include "conformance/test.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- Verdicts ------------------------------------------------------------------------------ */

/* What a server said may be quoted, and ends up on terminals and in XML. */
static void say(struct test *t, enum check_verdict verdict, const char *fmt, va_list ap)
{
    t->verdict = verdict;
    vsnprintf(t->why, sizeof(t->why), fmt, ap);
    for (char *c = t->why; *c; c++)
        if (*c < ' ' || *c > '~')
            *c = '?';
}

void test_fail(struct test *t, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    say(t, CHECK_FAIL, fmt, ap);
    va_end(ap);
    longjmp(t->end, 1);
}

void test_not_offered(struct test *t, const char *why)
{
    snprintf(t->why, sizeof(t->why), "%s", why);
    t->verdict = CHECK_NOT_OFFERED;
    longjmp(t->end, 1);
}

void test_deviates(struct test *t, const char *fmt, ...)
{
    va_list ap;

    if (t->verdict == CHECK_DEVIATION)
        return;
    va_start(ap, fmt);
    say(t, CHECK_DEVIATION, fmt, ap);
    va_end(ap);
}

/* ---- Resources ----------------------------------------------------------------------------- */

int test_keep(struct test *t, int fd)
{
    MUST(t, fd >= 0, "no file descriptor: %s", strerror(errno));
    if (t->nfds == TEST_FDS) {
        close(fd);
        test_fail(t, "out of file descriptors");
    }
    t->fds[t->nfds++] = fd;
    return fd;
}

void test_close(struct test *t, int fd)
{
    for (unsigned i = 0; i < t->nfds; i++)
        if (t->fds[i] == fd) {
            t->fds[i] = t->fds[--t->nfds];
            close(fd);
            return;
        }
}

void test_close_all(struct test *t)
{
    while (t->in.nfds)
        close(t->in.fds[--t->in.nfds]);
    while (t->nfds) {
        struct pollfd p = { .fd = t->fds[--t->nfds], .events = POLLIN };
        uint64_t count;

        /* A server that waits for room in a full eventfd goes on, and the next case has it. */
        if (poll(&p, 1, 0) == 1 && (p.revents & POLLIN))
            (void)!read(p.fd, &count, sizeof(count));
        close(p.fd);
    }
    if (t->mapped)
        munmap(t->mapped, t->mapped_len);
    t->mapped = NULL;
    for (unsigned i = 0; i < t->nlinks; i++)
        if (t->links[i] >= 0)
            close(t->links[i]);
    test_let_end(t);
}

int test_eventfd(struct test *t)
{
    return test_keep(t, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

int test_memfd(struct test *t, size_t size)
{
    int fd = test_keep(t, memfd_create("outboard-check", MFD_CLOEXEC | MFD_ALLOW_SEALING));

    MUST(t, ftruncate(fd, (off_t)size) == 0, "no memory: %s", strerror(errno));
    return fd;
}

uint64_t test_signals(struct test *t, int eventfd)
{
    uint64_t count;
    ssize_t n = read(eventfd, &count, sizeof(count));

    MUST(t, n > 0 || errno == EAGAIN, "an eventfd cannot be read any more: %s", strerror(errno));
    return n > 0 ? count : 0;
}

void test_await_signal(struct test *t, int eventfd)
{
    struct pollfd p = { .fd = eventfd, .events = POLLIN };
    int left_ms = (int)((t->deadline_ns - test_now_ns()) / 1000000);

    MUST(t, left_ms > 0 && poll(&p, 1, left_ms) == 1, "the eventfd is not signalled");
    test_signals(t, eventfd);
}

void *test_map(struct test *t, int fd, size_t len)
{
    if (t->mapped)
        munmap(t->mapped, t->mapped_len);
    t->mapped = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    t->mapped_len = len;
    if (t->mapped == MAP_FAILED) {
        t->mapped = NULL;
        test_fail(t, "a descriptor cannot be mapped: %s", strerror(errno));
    }
    return t->mapped;
}

bool test_is_eventfd(int fd)
{
    char link[64], target[64] = "";

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    return readlink(link, target, sizeof(target) - 1) > 0 &&
           strcmp(target, "anon_inode:[eventfd]") == 0;
}

/* splitmix64. */
uint64_t test_random(struct test *t)
{
    uint64_t z = t->random += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint32_t test_below(struct test *t, uint32_t limit)
{
    return (uint32_t)(test_random(t) % limit);
}
