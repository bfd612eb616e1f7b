/* SPDX-License-Identifier: BSD-3-Clause */
#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <search.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "channel/channel.h"
#include "harness.h"

#define ROUND_S    10 /* of milliseconds that it takes */
#define PLACES_MAX 1024

/* What is no errno. */
enum { SHORT = -1, FDS_LOST = -2 };

static struct {
    atomic_bool active;
    atomic_bool held;
    enum fault_side side;
    unsigned classes, nth, outcome;
    atomic_uint calls;
    atomic_bool hit;
    bool last; /* the call can fail in no further way */
    int error;
    char what[96];
} plan;

static _Thread_local bool is_main, inside;
static atomic_llong allocations, mapped_bytes;
static struct {
    const void *at;
    int error;
} places[PLACES_MAX];
static unsigned nplaces;

void faults_enter(void)
{
    inside = true;
}

void faults_leave(void)
{
    inside = false;
}

void faults_hold(bool hold)
{
    plan.held = hold;
}

bool faults_hit(void)
{
    return plan.hit;
}

const char *faults_what(void)
{
    return plan.hit ? plan.what : "no fault";
}

int faults_errno(void)
{
    return plan.error > 0 ? plan.error : 0;
}

static const char *outcome_name(int error)
{
    return error == SHORT ? "short" : error == FDS_LOST ? "fds lost" : strerrorname_np(error);
}

static void note_place(const void *at, int error)
{
    for (unsigned i = 0; i < nplaces; i++)
        if (places[i].at == at && places[i].error == error)
            return;
    if (nplaces < PLACES_MAX) {
        places[nplaces].at = at;
        places[nplaces++].error = error;
    }
}

/* What becomes of this call: 0, or one of its outcomes, which end with 0. */
static int next(const char *name, unsigned class, const int *outcomes, const void *at)
{
    unsigned n = 0;

    if (!plan.active || !(class & plan.classes) ||
        (plan.side == FAULTS_MAIN ? !is_main || !inside : is_main || plan.held))
        return 0;
    if (atomic_fetch_add(&plan.calls, 1) + 1 != plan.nth)
        return 0;
    while (n < plan.outcome && outcomes[n])
        n++;
    plan.last = !outcomes[n] || !outcomes[n + 1];
    if (!outcomes[n])
        return 0;
    plan.error = outcomes[n];
    snprintf(plan.what, sizeof(plan.what), "call %u of the %s, %s(): %s", plan.nth,
             plan.side == FAULTS_MAIN ? "main thread" : "other threads", name,
             outcome_name(plan.error));
    note_place(at, plan.error);
    plan.hit = true;
    return plan.error;
}

#define NEXT(name, class, ...)                                     \
    ({                                                             \
        static const int outcomes_[] = { __VA_ARGS__, 0 };         \
        next(name, class, outcomes_, __builtin_return_address(0)); \
    })

/* Whether there is an error, which is said. */
static bool fails(int error)
{
    if (error)
        errno = error;
    return error != 0;
}

/* ---- The table: each call with the ways in which it can fail -------------------------------- */

#define REPLACE(type, name, parameters) \
    type __real_##name parameters;      \
    type __wrap_##name parameters;      \
    type __wrap_##name parameters

#define WRAP(class, type, name, failed, parameters, arguments, ...) \
    REPLACE(type, name, parameters)                                 \
    {                                                               \
        int error = NEXT(#name, class, __VA_ARGS__);                \
                                                                    \
        return fails(error) ? failed : __real_##name arguments;     \
    }

/* Returns memory, which is counted. */
#define WRAP_ALLOC(name, parameters, arguments)        \
    REPLACE(void *, name, parameters)                  \
    {                                                  \
        void *got = NULL;                              \
                                                       \
        if (!fails(NEXT(#name, FAULT_MEMORY, ENOMEM))) \
            got = __real_##name arguments;             \
        allocations += got != NULL;                    \
        return got;                                    \
    }

/* Returns a negative errno or, pthread_create(), a positive one. */
#define WRAP_RC(class, name, sign, parameters, arguments, ...) \
    REPLACE(int, name, parameters)                             \
    {                                                          \
        int error = NEXT(#name, class, __VA_ARGS__);           \
                                                               \
        return error ? sign error : __real_##name arguments;   \
    }

/* Reads or writes; SHORT is half of the first part. */
#define WRAP_IOV(name, parameters, arguments, one, ...)         \
    REPLACE(ssize_t, name, parameters)                          \
    {                                                           \
        int error = NEXT(#name, FAULT_FILE, __VA_ARGS__);       \
        struct iovec cut = { iov->iov_base, iov->iov_len / 2 }; \
                                                                \
        if (!error)                                             \
            return __real_##name arguments;                     \
        if (error == SHORT)                                     \
            return __real_##name one;                           \
        errno = error;                                          \
        return -1;                                              \
    }

WRAP_ALLOC(malloc, (size_t size), (size))
WRAP_ALLOC(calloc, (size_t count, size_t size), (count, size))
WRAP_ALLOC(aligned_alloc, (size_t alignment, size_t size), (alignment, size))

/* What a tree allocates is its own. */
WRAP(FAULT_MEMORY, void *, tsearch, NULL,
     (const void *key, void **root, int (*compare)(const void *, const void *)),
     (key, root, compare), ENOMEM)

REPLACE(void *, realloc, (void *old, size_t size))
{
    void *got = NULL;

    if (!fails(NEXT("realloc", FAULT_MEMORY, ENOMEM)))
        got = __real_realloc(old, size);
    allocations += got && !old;
    return got;
}

REPLACE(char *, strdup, (const char *text))
{
    char *got = NULL;

    if (!fails(NEXT("strdup", FAULT_MEMORY, ENOMEM)))
        got = __real_strdup(text);
    allocations += got != NULL;
    return got;
}

REPLACE(char *, realpath, (const char *path, char *resolved))
{
    char *got = NULL;

    if (!fails(NEXT("realpath", FAULT_MEMORY, ENOMEM, EACCES)))
        got = __real_realpath(path, resolved);
    allocations += got && !resolved;
    return got;
}

REPLACE(void, free, (void *memory))
{
    allocations -= memory != NULL;
    __real_free(memory);
}

REPLACE(void *, mmap64, (void *at, size_t size, int prot, int flags, int fd, off_t offset))
{
    void *got = MAP_FAILED;

    if (!fails(NEXT("mmap", FAULT_KERNEL, ENOMEM, EACCES)))
        got = __real_mmap64(at, size, prot, flags, fd, offset);
    if (got != MAP_FAILED && !(flags & MAP_FIXED))
        mapped_bytes += (long long)size;
    return got;
}

REPLACE(int, munmap, (void *at, size_t size))
{
    mapped_bytes -= (long long)size;
    return __real_munmap(at, size);
}

WRAP(FAULT_KERNEL, int, eventfd, -1, (unsigned value, int flags), (value, flags), EMFILE, ENOMEM)
WRAP(FAULT_KERNEL, int, timerfd_create, -1, (int clock, int flags), (clock, flags), EMFILE)
WRAP(FAULT_KERNEL, int, memfd_create, -1, (const char *name, unsigned flags), (name, flags), EMFILE,
     ENOMEM)
WRAP(FAULT_KERNEL, int, epoll_create1, -1, (int flags), (flags), EMFILE, ENOMEM)
WRAP(FAULT_KERNEL, int, epoll_wait, -1, (int fd, struct epoll_event *events, int n, int timeout),
     (fd, events, n, timeout), EINTR)
WRAP(FAULT_KERNEL, int, ppoll, -1,
     (struct pollfd * fds, nfds_t n, const struct timespec *timeout, const sigset_t *set),
     (fds, n, timeout, set), EINTR, ENOMEM)
WRAP(FAULT_KERNEL, ssize_t, read, -1, (int fd, void *data, size_t len), (fd, data, len), EINTR,
     EAGAIN)
WRAP(FAULT_KERNEL, ssize_t, readlink, -1, (const char *path, char *out, size_t size),
     (path, out, size), ENOENT, ENOMEM)
WRAP(FAULT_KERNEL, ssize_t, getrandom, -1, (void *out, size_t size, unsigned flags),
     (out, size, flags), EAGAIN)
WRAP_RC(FAULT_KERNEL, pthread_create, +,
        (pthread_t * thread, const pthread_attr_t *attr, void *(*run)(void *), void *opaque),
        (thread, attr, run, opaque), EAGAIN)

/* One that does not wait cannot fail. */
REPLACE(int, poll, (struct pollfd * fds, nfds_t n, int timeout))
{
    int error = timeout ? NEXT("poll", FAULT_KERNEL, EINTR, ENOMEM) : 0;

    return fails(error) ? -1 : __real_poll(fds, n, timeout);
}

/* What takes a descriptor out, or changes it, cannot fail. */
REPLACE(int, epoll_ctl, (int fd, int op, int target, struct epoll_event *event))
{
    int error = op == EPOLL_CTL_ADD ? NEXT("epoll_ctl", FAULT_KERNEL, ENOMEM, ENOSPC) : 0;

    return fails(error) ? -1 : __real_epoll_ctl(fd, op, target, event);
}

/* The same, but for adding seals; and what a command has besides fits a pointer. */
int __real_fcntl64(int fd, int cmd, ...);
int __wrap_fcntl64(int fd, int cmd, ...);
int __wrap_fcntl64(int fd, int cmd, ...)
{
    va_list ap;
    int error = 0;
    void *value;

    va_start(ap, cmd);
    value = va_arg(ap, void *);
    va_end(ap);
    if (cmd == F_DUPFD_CLOEXEC)
        error = NEXT("fcntl", FAULT_KERNEL, EMFILE);
    else if (cmd == F_ADD_SEALS)
        error = NEXT("fcntl(F_ADD_SEALS)", FAULT_KERNEL, EPERM);
    return fails(error) ? -1 : __real_fcntl64(fd, cmd, value);
}

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
    va_list ap;
    int mode;

    va_start(ap, flags);
    mode = va_arg(ap, int);
    va_end(ap);
    return fails(NEXT("open", FAULT_KERNEL, EMFILE, EINTR, ENOMEM))
               ? -1
               : __real_open64(path, flags, mode);
}

int __real_openat64(int dir, const char *path, int flags, ...);
int __wrap_openat64(int dir, const char *path, int flags, ...);
int __wrap_openat64(int dir, const char *path, int flags, ...)
{
    va_list ap;
    int mode;

    va_start(ap, flags);
    mode = va_arg(ap, int);
    va_end(ap);
    return fails(NEXT("openat", FAULT_KERNEL, EMFILE, ENOMEM))
               ? -1
               : __real_openat64(dir, path, flags, mode);
}

WRAP(FAULT_SOCKET, int, socket, -1, (int domain, int type, int protocol), (domain, type, protocol),
     EMFILE, ENOBUFS)
WRAP(FAULT_SOCKET, int, socketpair, -1, (int domain, int type, int protocol, int *fds),
     (domain, type, protocol, fds), EMFILE, ENOBUFS)
WRAP(FAULT_SOCKET, int, bind, -1, (int fd, const struct sockaddr *address, socklen_t len),
     (fd, address, len), ENOSPC)
WRAP(FAULT_SOCKET, int, listen, -1, (int fd, int backlog), (fd, backlog), ENOBUFS)
WRAP(FAULT_SOCKET, int, connect, -1, (int fd, const struct sockaddr *address, socklen_t len),
     (fd, address, len), EINTR, EAGAIN, ECONNREFUSED, ENOMEM)
WRAP(FAULT_SOCKET, int, accept4, -1, (int fd, struct sockaddr *address, socklen_t *len, int flags),
     (fd, address, len, flags), EMFILE, ENFILE, EINTR, EAGAIN, ECONNABORTED, ENOBUFS)

REPLACE(ssize_t, send, (int fd, const void *data, size_t len, int flags))
{
    int error = NEXT("send", FAULT_SOCKET, SHORT, EINTR, EAGAIN, EPIPE, ENOBUFS);

    if (error > 0)
        errno = error;
    return error > 0 ? -1 : __real_send(fd, data, error == SHORT ? 1 : len, flags);
}

REPLACE(ssize_t, sendmsg, (int fd, const struct msghdr *mh, int flags))
{
    struct msghdr cut = *mh;
    struct iovec one = { mh->msg_iov[0].iov_base, 1 };
    int error = mh->msg_controllen
                    ? NEXT("sendmsg with fds", FAULT_SOCKET, SHORT, EINTR, EAGAIN, ECONNRESET,
                           ENOMEM, ETOOMANYREFS)
                    : NEXT("sendmsg", FAULT_SOCKET, SHORT, EINTR, EAGAIN, ECONNRESET, ENOMEM);

    if (error == SHORT) {
        cut.msg_iov = &one;
        cut.msg_iovlen = 1;
    } else if (error) {
        errno = error;
        return -1;
    }
    return __real_sendmsg(fd, &cut, flags);
}

REPLACE(ssize_t, recv, (int fd, void *data, size_t len, int flags))
{
    int error = NEXT("recv", FAULT_SOCKET, SHORT, EINTR, EAGAIN, ECONNRESET, ENOMEM);

    if (error > 0)
        errno = error;
    return error > 0 ? -1 : __real_recv(fd, data, error == SHORT ? 1 : len, flags);
}

/* Without a free descriptor the kernel gives those that came to nobody. */
REPLACE(ssize_t, recvmsg, (int fd, struct msghdr *mh, int flags))
{
    int error = NEXT("recvmsg", FAULT_SOCKET, SHORT, EINTR, EAGAIN, ECONNRESET, ENOMEM, FDS_LOST);

    if (error == SHORT)
        mh->msg_iov[0].iov_len = 1;
    if (error == FDS_LOST)
        mh->msg_controllen = 0;
    if (error > 0)
        errno = error;
    return error > 0 ? -1 : __real_recvmsg(fd, mh, flags);
}

WRAP(FAULT_FILE, int, ftruncate64, -1, (int fd, off_t size), (fd, size), ENOSPC)
WRAP(FAULT_FILE, int, fallocate64, -1, (int fd, int mode, off_t at, off_t size),
     (fd, mode, at, size), EOPNOTSUPP, ENOSPC, EINTR)
WRAP(FAULT_FILE, ssize_t, pread64, -1, (int fd, void *data, size_t len, off_t at),
     (fd, data, len, at), EIO, EINTR)
WRAP(FAULT_FILE, ssize_t, pwrite64, -1, (int fd, const void *data, size_t len, off_t at),
     (fd, data, len, at), EIO, ENOSPC, EINTR)
WRAP_RC(FAULT_FILE, posix_fallocate64, +, (int fd, off_t at, off_t size), (fd, at, size), ENOSPC,
        EINTR, ENODEV)
WRAP_IOV(preadv64, (int fd, const struct iovec *iov, int n, off_t at), (fd, iov, n, at),
         (fd, &cut, 1, at), SHORT, EIO, EINTR)
WRAP_IOV(pwritev64, (int fd, const struct iovec *iov, int n, off_t at), (fd, iov, n, at),
         (fd, &cut, 1, at), SHORT, EIO, ENOSPC, EINTR)
WRAP_IOV(preadv64v2, (int fd, const struct iovec *iov, int n, off_t at, int flags),
         (fd, iov, n, at, flags), (fd, &cut, 1, at, flags), SHORT, EAGAIN, EOPNOTSUPP, EIO)
WRAP_RC(FAULT_FILE, io_uring_queue_init_params, -,
        (unsigned entries, struct io_uring *ring, struct io_uring_params *params),
        (entries, ring, params), ENOMEM, ENOSYS, EPERM)
WRAP_RC(FAULT_FILE, io_uring_register_eventfd, -, (struct io_uring * ring, int fd), (ring, fd),
        ENOMEM)
WRAP_RC(FAULT_FILE, io_uring_submit, -, (struct io_uring * ring), (ring), EAGAIN, EINTR)

/* ---- Rounds --------------------------------------------------------------------------------- */

static void say_fault(int signal)
{
    static const char during[] = "\nduring: ", late[] = " (no end)";
    const char *what = faults_what();

    if (write(2, during, sizeof(during) - 1) < 0 || write(2, what, strlen(what)) < 0 ||
        (signal == SIGALRM && write(2, late, sizeof(late) - 1) < 0) || write(2, "\n", 1) < 0)
        _exit(1);
    if (signal == SIGALRM)
        _exit(1);
    raise(signal); /* SA_RESETHAND */
}

static void *json_malloc(size_t size)
{
    return __wrap_malloc(size);
}

static void json_free(void *memory)
{
    __wrap_free(memory);
}

void faults_init(void)
{
    struct sigaction action = { .sa_handler = say_fault, .sa_flags = SA_RESETHAND | SA_NODEFER };

    is_main = true;
    CHECK_INT(ob_discard_init(), 0);              /* is started once, and stays */
    json_set_alloc_funcs(json_malloc, json_free); /* the linker does not reach into it */
    sigaction(SIGALRM, &action, NULL);
    sigaction(SIGABRT, &action, NULL);
}

static void try_one(unsigned nth, unsigned outcome, void (*round)(void *opaque), void *opaque)
{
    int fds = test_count_fds(), fds_left;
    long long memory = allocations, bytes = mapped_bytes;

    plan.nth = nth;
    plan.outcome = outcome;
    plan.calls = 0;
    plan.hit = plan.last = false;
    plan.error = 0;
    alarm(ROUND_S);
    plan.active = true;
    round(opaque);
    plan.active = false;
    alarm(0);
    fds_left = test_settle_fds(fds) - fds;
    if (fds_left || allocations != memory || mapped_bytes != bytes)
        test_fail(__FILE__, __LINE__,
                  "%s: %d descriptors, %lld allocations, %lld mapped bytes are left", faults_what(),
                  fds_left, allocations - memory, mapped_bytes - bytes);
}

void faults_try_all(enum fault_side side, unsigned classes, void (*round)(void *opaque),
                    void *opaque)
{
    unsigned rounds = 0, nth = 0;

    plan.side = side;
    plan.classes = classes;
    nplaces = 0;
    round(opaque); /* what is allocated once, stays */
    try_one(0, 0, round, opaque);
    do {
        nth++;
        for (unsigned outcome = 0; outcome == 0 || (plan.hit && !plan.last); outcome++, rounds++)
            try_one(nth, outcome, round, opaque);
    } while (plan.calls >= nth);
    printf("%u rounds, %u calls, %u failures of calls by place and kind\n", rounds, nth - 1,
           nplaces);
}
