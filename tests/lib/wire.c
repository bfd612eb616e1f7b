/* SPDX-License-Identifier: BSD-3-Clause */
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

ssize_t __real_sendmsg(int fd, const struct msghdr *mh, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *mh, int flags);
ssize_t __wrap_send(int fd, const void *data, size_t len, int flags);
ssize_t __real_recvmsg(int fd, struct msghdr *mh, int flags);
ssize_t __wrap_send(int fd, const void *data, size_t len, int flags)
{
    struct iovec iov = { (void *)data, len };

    return __wrap_sendmsg(fd, &(struct msghdr){ .msg_iov = &iov, .msg_iovlen = 1 }, flags);
}

ssize_t __wrap_recvmsg(int fd, struct msghdr *mh, int flags);
int __real_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *ts, const sigset_t *set);
int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *ts, const sigset_t *set);
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size);

struct plan send_plan, recv_plan, poll_plan, alloc_plan;

static enum fault next(struct plan *plan)
{
    plan->calls++;
    return plan->countdown && --plan->countdown == 0 ? plan->fault : NO_FAULT;
}

static int fault_errno(enum fault fault)
{
    return fault == FAULT_EINTR    ? EINTR
           : fault == FAULT_EAGAIN ? EAGAIN
           : fault == FAULT_NOBUFS ? ENOBUFS
                                   : ECONNRESET;
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *mh, int flags)
{
    enum fault fault = next(&send_plan);
    struct msghdr cut = *mh;
    struct iovec one = { mh->msg_iov[0].iov_base, 1 };

    if (fault == NO_FAULT)
        return __real_sendmsg(fd, mh, flags);
    if (fault == FAULT_SHORT) {
        cut.msg_iov = &one;
        cut.msg_iovlen = 1;
        return __real_sendmsg(fd, &cut, flags);
    }
    errno = fault_errno(fault);
    return -1;
}

ssize_t __wrap_recvmsg(int fd, struct msghdr *mh, int flags)
{
    enum fault fault = next(&recv_plan);

    if (fault == NO_FAULT)
        return __real_recvmsg(fd, mh, flags);
    if (fault == FAULT_SHORT) {
        mh->msg_iov[0].iov_len = 1;
        return __real_recvmsg(fd, mh, flags);
    }
    if (fault == FAULT_ENDLESS) {
        recv_plan.countdown = 1;
        mh->msg_controllen = 0;
        mh->msg_flags = 0;
        return (ssize_t)mh->msg_iov[0].iov_len;
    }
    errno = fault_errno(fault);
    return -1;
}

int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *ts, const sigset_t *set)
{
    if (next(&poll_plan) == NO_FAULT)
        return __real_ppoll(fds, n, ts, set);
    errno = EINTR;
    return -1;
}

static bool alloc_fails(void)
{
    if (next(&alloc_plan) == NO_FAULT)
        return false;
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t size)
{
    return alloc_fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return alloc_fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
    return alloc_fails() ? NULL : __real_realloc(p, size);
}

void open_pair(struct pair *p, uint32_t payload_max)
{
    int fds[2];

    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_INT(ob_channel_init(&p->ch, fds[0], payload_max), 0);
    p->ch.ahead = OB_AHEAD_SERVER;
    p->raw = fds[1];
}

void close_pair(struct pair *p)
{
    ob_channel_fini(&p->ch);
    close(p->raw);
}

uint8_t pattern(unsigned id, size_t i)
{
    return (uint8_t)(id * 31 + i * 7 + (i >> 8));
}

size_t make_msg(uint8_t *buf, uint16_t id, uint32_t payload)
{
    const struct ob_wire_hdr hdr = { .msg_id = id,
                                     .cmd = OB_CMD_REGION_WRITE,
                                     .msg_size = (uint32_t)HDR + payload };

    memcpy(buf, &hdr, HDR);
    for (uint32_t i = 0; i < payload; i++)
        buf[HDR + i] = pattern(id, i);
    return HDR + payload;
}

void send_raw(int sock, const void *data, size_t len, const int *fds, unsigned nfds)
{
    struct iovec iov = { (void *)data, len };
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int) * OB_MSG_FDS_MAX)];
    } control = { 0 };
    struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

    if (nfds) {
        mh.msg_control = &control;
        mh.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
        control.align.cmsg_len = CMSG_LEN(sizeof(int) * nfds);
        control.align.cmsg_level = SOL_SOCKET;
        control.align.cmsg_type = SCM_RIGHTS;
        memcpy(CMSG_DATA(&control.align), fds, sizeof(int) * nfds);
    }
    CHECK_INT(__real_sendmsg(sock, &mh, MSG_NOSIGNAL), len);
}

void check_msg(const struct ob_msg *msg, uint16_t id, uint32_t payload, unsigned nfds)
{
    CHECK_INT(msg->hdr.msg_id, id);
    CHECK_INT(msg->hdr.msg_size, HDR + payload);
    CHECK_INT(msg->len, payload);
    CHECK_INT(msg->nfds, nfds);
    CHECK(!msg->oversize);
    CHECK((msg->payload != NULL) == (payload > 0));
    for (uint32_t i = 0; i < payload; i++)
        CHECK_INT(msg->payload[i], pattern(id, i));
}

void expect(struct pair *p, uint16_t id, uint32_t payload, unsigned nfds)
{
    struct ob_msg *msg;

    CHECK_INT(ob_channel_recv(&p->ch, &msg), 1);
    check_msg(msg, id, payload, nfds);
    CHECK(!msg->fds_lost);
    ob_msg_free(msg);
}

void expect_nothing(struct pair *p)
{
    struct ob_msg *msg = NULL;

    CHECK_INT(ob_channel_recv(&p->ch, &msg), 0);
    CHECK(!msg);
}

int open_memory(void)
{
    int fd = memfd_create("test", MFD_CLOEXEC);

    CHECK(fd >= 0);
    return fd;
}
