/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The first byte of a request says whether it is answered. A spinning end gives up after SPIN_NS
 * without a message and sleeps: between the rounds it must not take a core from what is measured.
 */
#include "bench/floor.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define SPIN_NS  5e4
#define WARM_UP  20u /* round trips before the first one that counts */
#define PIPELINE 64u /* requests on the way at a time */

enum { SILENT, ANSWER };

/* Closes what came with it: a server has to take descriptors wherever they may come. */
/* NOLINTNEXTLINE(readability-non-const-parameter): recvmsg() writes to buf */
static ssize_t receive_some(int fd, uint8_t *buf, size_t len, int flags)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = { buf, len };
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
    };
    ssize_t got = recvmsg(fd, &msg, flags | MSG_CMSG_CLOEXEC);
    struct cmsghdr *c = got > 0 ? CMSG_FIRSTHDR(&msg) : NULL;

    if (c && c->cmsg_type == SCM_RIGHTS) {
        int received;

        memcpy(&received, CMSG_DATA(c), sizeof(received));
        close(received);
    }
    return got;
}

static int receive(int fd, uint8_t *buf, size_t len, bool spin)
{
    double limit = 0;

    while (len > 0) {
        ssize_t got = receive_some(fd, buf, len, spin ? MSG_DONTWAIT : 0);

        if (got == 0)
            return -ECONNRESET;
        if (got > 0) {
            buf += got;
            len -= (size_t)got;
        } else if (errno == EAGAIN) {
            double now = bench_now_ns();

            if (limit > 0 && now > limit)
                spin = false;
            limit = limit > 0 ? limit : now + SPIN_NS;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

static int send_all(int fd, const uint8_t *buf, size_t len)
{
    while (len > 0) {
        ssize_t sent = send(fd, buf, len, MSG_NOSIGNAL);

        if (sent < 0 && errno != EINTR)
            return -errno;
        if (sent > 0) {
            buf += sent;
            len -= (size_t)sent;
        }
    }
    return 0;
}

static void serve(const struct bench_floor *floor, int fd)
{
    while (receive(fd, floor->buffer, floor->ping, floor->spin) == 0)
        if (floor->buffer[0] == ANSWER && send_all(fd, floor->buffer, floor->pong) < 0)
            break;
}

int bench_floor_start(struct bench_floor *floor, uint32_t ping, uint32_t pong, bool spin,
                      const cpu_set_t *cpus)
{
    int pair[2];

    *floor = (struct bench_floor){ .ping = ping, .pong = pong, .spin = spin };
    floor->buffer = bench_memory(ping > pong ? ping : pong);
    if (!floor->buffer)
        return -ENOMEM;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0 || (floor->pid = fork()) < 0) {
        free(floor->buffer);
        return -errno;
    }
    if (floor->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pair[0]);
        if (cpus)
            sched_setaffinity(0, sizeof(*cpus), cpus);
        floor->buffer = bench_memory(ping > pong ? ping : pong); /* not the parent's */
        if (!floor->buffer)
            _exit(1);
        serve(floor, pair[1]);
        _exit(0);
    }
    close(pair[1]);
    floor->fd = pair[0];
    return 0;
}

void bench_floor_stop(struct bench_floor *floor)
{
    if (floor->pid <= 0)
        return;
    shutdown(floor->fd, SHUT_RDWR); /* children forked later have it open, too */
    close(floor->fd);
    waitpid(floor->pid, NULL, 0);
    free(floor->buffer);
    floor->pid = 0;
}

static int round_trip(struct bench_floor *floor)
{
    int rc;

    floor->buffer[0] = ANSWER;
    rc = send_all(floor->fd, floor->buffer, floor->ping);
    return rc < 0 ? rc : receive(floor->fd, floor->buffer, floor->pong, floor->spin);
}

static int warm_up(struct bench_floor *floor)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < WARM_UP; i++)
        rc = round_trip(floor);
    return rc;
}

int bench_floor_round_trips(struct bench_floor *floor, struct bench_series *out,
                            const struct bench_pace *pace)
{
    int rc = warm_up(floor);
    double begin = bench_now_ns(), before = begin;

    while (rc == 0 && bench_series_open(out) < pace->values && before - begin < pace->ns) {
        double now;

        rc = round_trip(floor);
        now = bench_now_ns();
        bench_series_add(out, now - before);
        before = now;
    }
    bench_series_end_round(out);
    return rc;
}

int bench_floor_sends(struct bench_floor *floor, struct bench_series *out, unsigned burst,
                      const struct bench_pace *pace)
{
    int rc = warm_up(floor);
    double begin = bench_now_ns(), before = begin;

    while (rc == 0 && bench_series_open(out) < pace->values && before - begin < pace->ns) {
        floor->buffer[0] = SILENT;
        before = bench_now_ns();
        for (unsigned i = 0; rc == 0 && i < burst; i++) {
            double now;

            rc = send_all(floor->fd, floor->buffer, floor->ping);
            now = bench_now_ns();
            bench_series_add(out, now - before);
            before = now;
        }
        rc = rc < 0 ? rc : round_trip(floor);
    }
    bench_series_end_round(out);
    return rc;
}

static int send_request(struct bench_floor *floor, int passed)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = { 0 };
    struct iovec iov = { floor->buffer, floor->ping };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    floor->buffer[0] = ANSWER;
    if (passed >= 0) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        control.align = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)),
                                          .cmsg_level = SOL_SOCKET,
                                          .cmsg_type = SCM_RIGHTS };
        memcpy(CMSG_DATA(&control.align), &passed, sizeof(passed));
    }
    return sendmsg(floor->fd, &msg, MSG_NOSIGNAL) == (ssize_t)floor->ping ? 0 : -errno;
}

/* One kind of request, `count` times: with the fd, or without when it is negative. */
static int exchange(struct bench_floor *floor, unsigned count, int passed)
{
    int rc = 0;

    for (unsigned done = 0; rc == 0 && done < count;) {
        unsigned now = count - done < PIPELINE ? count - done : PIPELINE;

        for (unsigned i = 0; rc == 0 && i < now; i++)
            rc = send_request(floor, passed);
        for (unsigned i = 0; rc == 0 && i < now; i++)
            rc = receive(floor->fd, floor->buffer, floor->pong, floor->spin);
        done += now;
    }
    return rc;
}

int bench_floor_pairs(struct bench_floor *floor, struct bench_series *out, int fd, unsigned pairs)
{
    int rc = warm_up(floor);
    double begin = bench_now_ns();

    rc = rc < 0 ? rc : exchange(floor, pairs, fd);
    rc = rc < 0 ? rc : exchange(floor, pairs, -1);
    bench_series_add(out, (bench_now_ns() - begin) / pairs);
    bench_series_end_round(out);
    return rc;
}
