/* SPDX-License-Identifier: BSD-3-Clause */
#include "world.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define FDS_MAX    256 /* a leak takes the lowest that is free */
#define TIMERS_MAX 4
#define TURNS_MAX  10000 /* of the hook in one wait: more would be a loop of ours */

struct world world;

static int64_t mapped;
static unsigned ntimers;
static uint8_t open_before[FDS_MAX]; /* libFuzzer opens some of its own between two runs */

void finding(const char *file, int line, const char *what)
{
    fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
    abort();
}

void *new_memory(size_t len)
{
    void *p = calloc(1, len + !len);

    HOLDS(p);
    return p;
}

/* ---- What is left behind -------------------------------------------------------------------- */

int __real_poll(struct pollfd *fds, nfds_t n, int timeout_ms);

/* One system call for all of them: what is not open is told as POLLNVAL. */
static void look_at_fds(uint8_t *open)
{
    static struct pollfd fds[FDS_MAX];

    for (int i = 0; i < FDS_MAX; i++)
        fds[i] = (struct pollfd){ .fd = i };
    __real_poll(fds, FDS_MAX, 0);
    for (int i = 0; i < FDS_MAX; i++)
        open[i] = !(fds[i].revents & POLLNVAL);
}

void world_begin(void)
{
    world.now_ns = 1000000000;
    mapped = 0;
    ntimers = 0;
    look_at_fds(open_before);
}

void world_end(void)
{
    uint8_t open_now[FDS_MAX];

    look_at_fds(open_now);
    for (int i = 0; i < FDS_MAX; i++)
        if (open_now[i] != open_before[i]) {
            fprintf(stderr, "fd %d was %s\n", i, open_now[i] ? "left open" : "closed");
            abort();
        }
    if (mapped != 0) {
        fprintf(stderr, "%lld bytes are still mapped\n", (long long)mapped);
        abort();
    }
}

void *__real_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset);
int __real_munmap(void *addr, size_t len);
int __wrap_munmap(void *addr, size_t len);

static int64_t whole_pages(size_t len)
{
    return (int64_t)((len + 4095) & ~(size_t)4095);
}

void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
    void *p = __real_mmap64(addr, len, prot, flags, fd, offset);

    if (p != MAP_FAILED && !(flags & MAP_FIXED))
        mapped += whole_pages(len);
    return p;
}

int __wrap_munmap(void *addr, size_t len)
{
    int rc = __real_munmap(addr, len);

    if (rc == 0)
        mapped -= whole_pages(len);
    return rc;
}

/* ---- Descriptors that the peer sent --------------------------------------------------------- */

void __wrap_ob_fd_discard(int fd, const void *owner);
void __wrap_ob_socket_discard(int fd, const void *owner);
void __wrap_ob_fd_seal(int fd);

void __wrap_ob_fd_discard(int fd, const void *owner)
{
    (void)owner;
    close(fd);
}

void __wrap_ob_socket_discard(int fd, const void *owner)
{
    shutdown(fd, SHUT_RDWR);
    __wrap_ob_fd_discard(fd, owner);
}

void __wrap_ob_fd_seal(int fd)
{
    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
}

/* ---- Time ----------------------------------------------------------------------------------- */

int __wrap_clock_gettime(clockid_t clock, struct timespec *ts);
int __wrap_timerfd_create(int clock, int flags);
int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *when,
                           struct itimerspec *before);

int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
    static bool ticks;

    (void)clock;
    if (world.tick && !ticks) {
        ticks = true;
        world.tick(world.opaque);
        ticks = false;
    }
    world.now_ns += 1000;
    ts->tv_sec = world.now_ns / 1000000000;
    ts->tv_nsec = world.now_ns % 1000000000;
    return 0;
}

/* Eventfds, which are signalled when a wait finds that their time has come. */
static struct timer {
    int fd;
    int64_t at_ns, every_ns; /* at_ns 0: not set */
} timers[TIMERS_MAX];

int __wrap_timerfd_create(int clock, int flags)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    (void)clock, (void)flags;
    HOLDS(fd >= 0 && ntimers < TIMERS_MAX);
    timers[ntimers++] = (struct timer){ .fd = fd };
    return fd;
}

int __real_close(int fd);
int __wrap_close(int fd);

int __wrap_close(int fd)
{
    for (unsigned i = 0; i < ntimers; i++)
        if (timers[i].fd == fd)
            timers[i] = timers[--ntimers];
    return __real_close(fd);
}

static int64_t ns_of(const struct timespec *ts)
{
    return ts->tv_sec * INT64_C(1000000000) + ts->tv_nsec;
}

int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *when,
                           struct itimerspec *before)
{
    uint64_t count;
    unsigned i = 0;

    (void)before;
    while (timers[i].fd != fd)
        HOLDS(++i < ntimers);
    timers[i].at_ns = ns_of(&when->it_value);
    timers[i].every_ns = ns_of(&when->it_interval);
    if (timers[i].at_ns && !(flags & TFD_TIMER_ABSTIME))
        timers[i].at_ns += world.now_ns;
    return read(fd, &count, sizeof(count)) > 0 || errno == EAGAIN ? 0 : -1;
}

static void fire_timers(void)
{
    const uint64_t one = 1;

    for (unsigned i = 0; i < ntimers; i++)
        if (timers[i].at_ns && timers[i].at_ns <= world.now_ns) {
            timers[i].at_ns = timers[i].every_ns ? world.now_ns + timers[i].every_ns : 0;
            HOLDS(write(timers[i].fd, &one, sizeof(one)) == sizeof(one));
        }
}

/* ---- Waiting -------------------------------------------------------------------------------- */

int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms);
int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *ts, const sigset_t *set);
int __real_epoll_wait(int fd, struct epoll_event *events, int max, int timeout_ms);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int max, int timeout_ms);

/* Nothing is there. True: the other side has done something about it, look again. */
static bool somebody_acts(unsigned *turns, int64_t timeout_ns)
{
    if (timeout_ns == 0)
        return false;
    if (world.hook && (*turns)++ < TURNS_MAX && world.hook(world.opaque))
        return true;
    if (timeout_ns < 0)
        finding(__FILE__, __LINE__, "somebody waits for ever, and nothing comes");
    world.now_ns += timeout_ns;
    return false;
}

static int wait_fds(struct pollfd *fds, nfds_t n, int64_t timeout_ns)
{
    unsigned turns = 0;
    int rc;

    fire_timers();
    do
        rc = __real_poll(fds, n, 0);
    while (rc == 0 && somebody_acts(&turns, timeout_ns));
    return rc;
}

int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms)
{
    return wait_fds(fds, n, timeout_ms * INT64_C(1000000));
}

int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *ts, const sigset_t *set)
{
    (void)set;
    return wait_fds(fds, n, ts ? ts->tv_sec * INT64_C(1000000000) + ts->tv_nsec : -1);
}

int __wrap_epoll_wait(int fd, struct epoll_event *events, int max, int timeout_ms)
{
    unsigned turns = 0;
    int rc;

    fire_timers();
    do
        rc = __real_epoll_wait(fd, events, max, 0);
    while (rc == 0 && somebody_acts(&turns, timeout_ms * INT64_C(1000000)));
    return rc;
}
