/* SPDX-License-Identifier: BSD-3-Clause */
#include "linger.h"
#include "harness.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECONDS    60
#define MANY       600u
#define FDS_MAX    253u /* the kernel's limit */
#define PASSRIGHTS 83

static int others[MANY];
static unsigned nothers;
bool linger_no_thread, linger_no_passrights;

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg);
int __real_setsockopt(int fd, int level, int name, const void *value, socklen_t len);
int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t len);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg)
{
    return linger_no_thread ? EAGAIN : __real_pthread_create(thread, attr, run, arg);
}

int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
    if (linger_no_passrights && level == SOL_SOCKET && name == PASSRIGHTS) {
        errno = ENOPROTOOPT;
        return -1;
    }
    return __real_setsockopt(fd, level, name, value, len);
}

int linger_open(void)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    const struct linger linger = { 1, SECONDS };
    socklen_t len = sizeof(to);
    char data[65536] = { 0 };
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(listener >= 0 && fd >= 0 && nothers < MANY);
    CHECK_INT(bind(listener, (struct sockaddr *)&to, len), 0);
    CHECK_INT(listen(listener, 1), 0);
    CHECK_INT(getsockname(listener, (struct sockaddr *)&to, &len), 0);
    CHECK_INT(connect(fd, (struct sockaddr *)&to, len), 0);
    others[nothers] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(others[nothers++] >= 0);
    close(listener);
    while (send(fd, data, sizeof(data), MSG_DONTWAIT) > 0)
        ;
    CHECK_INT(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
    return fd;
}

void linger_release(void)
{
    while (nothers)
        close(others[--nothers]);
}

/* 0, or a negative errno. */
static int send_fds(int sock, const void *data, const int *fds, unsigned count, int flags)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * FDS_MAX)];
    } control = { .header = { CMSG_LEN(sizeof(int) * count), SOL_SOCKET, SCM_RIGHTS } };
    struct iovec iov = { (void *)data, 1 };
    struct msghdr mh = { .msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = CMSG_SPACE(sizeof(int) * count) };

    memcpy(CMSG_DATA(&control.header), fds, sizeof(int) * count);
    return sendmsg(sock, &mh, flags | MSG_NOSIGNAL) == 1 ? 0 : -errno;
}

static void interrupt_close(int number)
{
    (void)number;
}

/* A receiver that was quick has closed its own already: then these are the last ones, and would
 * wait here. A signal ends that. */
static void close_all(const int *fds, unsigned count)
{
    const struct sigaction action = { .sa_handler = interrupt_close, .sa_flags = SA_RESTART };
    const struct itimerspec every = { { 0, 10000000 }, { 0, 10000000 } };
    struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR2 };
    timer_t timer;

    event._sigev_un._tid = gettid();
    CHECK_INT(sigaction(SIGUSR2, &action, NULL), 0);
    CHECK_INT(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
    CHECK_INT(timer_settime(timer, 0, &every, NULL), 0);
    for (unsigned i = 0; i < count; i++)
        close(fds[i]);
    CHECK_INT(timer_delete(timer), 0);
}

bool linger_send(int sock, const void *data, size_t len, unsigned count, int flags)
{
    int fds[FDS_MAX] = { 0 }, rc;

    for (unsigned i = 0; i < count; i++)
        fds[i] = linger_open();
    rc = send_fds(sock, data, fds, count, flags);
    close_all(fds, count);
    if (rc == -EPIPE) /* the receiver has left already */
        return false;
    if (rc < 0)
        CHECK_INT(send(sock, data, 1, MSG_NOSIGNAL), 1);
    if (len > 1 && send(sock, (const char *)data + 1, len - 1, MSG_NOSIGNAL) < 0)
        CHECK_INT(errno, EPIPE);
    return rc == 0;
}

unsigned linger_threads(void)
{
    DIR *dir = opendir("/proc/self/task");
    unsigned count = 0;

    CHECK(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count - 2;
}
