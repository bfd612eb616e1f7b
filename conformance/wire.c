/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bytes and fds in and out, with the case's deadline over everything. Nothing that the server does
 * makes this block past it or grow: a message longer than any that the protocol knows fails the
 * case.
 */
#include "conformance/test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_MS 1000000
#define SETTLE_MS 10

int64_t test_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 * NS_PER_MS + now.tv_nsec;
}

/* False when the deadline is over. */
static bool wait_for(const struct test *t, int fd, short events)
{
    int64_t left = t->deadline_ns - test_now_ns();
    struct timespec timeout = { left / 1000 / NS_PER_MS, left % (1000 * NS_PER_MS) };
    struct pollfd p = { .fd = fd, .events = events };

    return left > 0 && ppoll(&p, 1, &timeout, NULL) != 0;
}

/* ---- Connections --------------------------------------------------------------------------- */

/* A full backlog is told by EAGAIN, which poll() does not wait for. A server that was there may be
 * on its way back: something may start it anew. */
static bool may_come(const struct test *t, int err)
{
    return err == EAGAIN || err == EINTR || (t->patient && (err == ECONNREFUSED || err == ENOENT));
}

static int connect_to(struct test *t, int fd, const struct sockaddr_un *address)
{
    while (connect(fd, (const struct sockaddr *)address, sizeof(*address)) != 0) {
        if (!may_come(t, errno) || t->deadline_ns <= test_now_ns())
            return -errno;
        poll(NULL, 0, 1);
    }
    return 0;
}

/* The socket says who listened on it. */
static void know_listener(struct test *t)
{
    struct ucred peer = { 0 };
    socklen_t len = sizeof(peer);

    if (t->listener->pidfd >= 0)
        close(t->listener->pidfd);
    t->listener->pidfd = -1;
    if (getsockopt(t->links[t->at], SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && peer.pid > 0)
        t->listener->pidfd = (int)syscall(SYS_pidfd_open, peer.pid, 0);
}

bool test_server_ends(const struct test *t, int wait_ms)
{
    struct pollfd p = { .fd = t->listener->pidfd, .events = POLLIN };

    return p.fd >= 0 && poll(&p, 1, wait_ms) == 1;
}

bool test_server_died(const struct test *t, int wait_ms)
{
    return !t->listener->mortal && test_server_ends(t, wait_ms);
}

void test_let_end(const struct test *t)
{
    if (t->listener && t->listener->mortal)
        test_server_ends(t, END_MS);
}

void test_connect(struct test *t)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    unsigned at = 0;
    int rc;

    while (at < t->nlinks && t->links[at] >= 0)
        at++;
    MUST(t, at < TEST_LINKS, "out of connections");
    MUST(t, strlen(t->path) < sizeof(address.sun_path), "the path is too long for a socket");
    memcpy(address.sun_path, t->path, strlen(t->path) + 1);
    t->links[at] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (at == t->nlinks)
        t->nlinks++;
    t->at = at;
    MUST(t, t->links[at] >= 0, "no socket: %s", strerror(errno));
    rc = connect_to(t, t->links[at], &address);
    MUST(t, rc == 0, "cannot connect: %s", strerror(-rc));
    MUST(t, !t->connections || !test_server_died(t, 0), "%s has ended", t->peer);
    t->connections++;
    know_listener(t);
    test_trace(t, TRACE_EVENT, "connected", 9, 0);
}

void test_hang_up(struct test *t)
{
    test_trace(t, TRACE_EVENT, "closed by us", 12, 0);
    close(t->links[t->at]);
    t->links[t->at] = -1;
    test_let_end(t);
}

/* ---- Sending ------------------------------------------------------------------------------- */

union control {
    struct cmsghdr head;
    char space[CMSG_SPACE(OB_MSG_FDS_MAX * sizeof(int))];
};

static void attach(struct msghdr *msg, union control *control, const int *fds, unsigned nfds)
{
    struct cmsghdr *c = &control->head;

    memset(control, 0, sizeof(*control));
    msg->msg_control = control;
    msg->msg_controllen = CMSG_SPACE(nfds * sizeof(int));
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
    memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
}

void test_put(struct test *t, const void *bytes, size_t len, const int *fds, unsigned nfds)
{
    int fd = t->links[t->at];
    struct iovec iov = { (void *)bytes, len };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    union control control;

    test_trace(t, TRACE_SENT, bytes, len, nfds);
    if (nfds)
        attach(&msg, &control, fds, nfds);
    while (iov.iov_len > 0) {
        ssize_t n = sendmsg(fd, &msg, MSG_NOSIGNAL);

        if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
            return;
        MUST(t, n >= 0 || errno == EAGAIN || errno == EINTR, "cannot send: %s", strerror(errno));
        if (n < 0) {
            MUST(t, wait_for(t, fd, POLLOUT), "%s does not read what it is sent", t->peer);
            continue;
        }
        iov.iov_base = (char *)iov.iov_base + n;
        iov.iov_len -= (size_t)n;
        msg.msg_control = NULL;
        msg.msg_controllen = 0;
    }
}

void test_settle(struct test *t)
{
    int unread;

    for (int ms = 0; ms < SETTLE_MS; ms++) {
        if (ioctl(t->links[t->at], SIOCOUTQ, &unread) != 0 || unread == 0)
            return;
        poll(NULL, 0, 1);
    }
}

/* ---- Receiving ----------------------------------------------------------------------------- */

static void collect(struct test *t, struct msghdr *msg)
{
    struct msg *in = &t->in;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            if (in->nfds < OB_MSG_FDS_MAX)
                in->fds[in->nfds++] = fd;
            else
                close(fd);
        }
    }
}

/* What there is of len bytes; less when the connection ended before. */
/* NOLINTNEXTLINE(readability-non-const-parameter): recvmsg() writes to it */
static size_t receive(struct test *t, uint8_t *to, size_t len)
{
    int fd = t->links[t->at];
    size_t got = 0;

    while (got < len) {
        union control control;
        struct iovec iov = { to + got, len - got };
        struct msghdr msg = { .msg_iov = &iov,
                              .msg_iovlen = 1,
                              .msg_control = &control,
                              .msg_controllen = sizeof(control) };
        ssize_t n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);

        if (n > 0) {
            collect(t, &msg);
            got += (size_t)n;
        } else if (n == 0 || errno == ECONNRESET) {
            break;
        } else if (errno == EAGAIN) {
            MUST(t, wait_for(t, fd, POLLIN), "%s says nothing (any more)", t->peer);
        } else {
            MUST(t, errno == EINTR, "cannot receive: %s", strerror(errno));
        }
        MUST(t, t->deadline_ns > test_now_ns(), "%s goes on and on", t->peer);
    }
    return got;
}

bool test_get(struct test *t)
{
    static uint8_t whole[OB_MSG_MAX];
    struct msg *in = &t->in;
    size_t got;

    while (in->nfds)
        close(in->fds[--in->nfds]);
    in->len = 0;
    got = receive(t, whole, sizeof(in->hdr));
    if (got == 0) {
        test_trace(t, TRACE_EVENT, "closed by the other side", 24, 0);
        return false;
    }
    t->heard = true;
    memcpy(&in->hdr, whole, sizeof(in->hdr));
    if (got == sizeof(in->hdr) && in->hdr.msg_size > got && in->hdr.msg_size <= sizeof(whole))
        got += receive(t, whole + got, in->hdr.msg_size - got);
    test_trace(t, TRACE_RECEIVED, whole, got, in->nfds);
    MUST(t, got >= sizeof(in->hdr), "the connection ended within a header");
    MUST(t, in->hdr.msg_size >= sizeof(in->hdr), "a message says that it has %u bytes",
         in->hdr.msg_size);
    MUST(t, in->hdr.msg_size <= sizeof(whole), "a message says that it has %u bytes",
         in->hdr.msg_size);
    MUST(t, got == in->hdr.msg_size, "the connection ended within a message");
    in->data = whole + sizeof(in->hdr);
    in->len = in->hdr.msg_size - (uint32_t)sizeof(in->hdr);
    return true;
}

void test_await_hang_up(struct test *t, int fd, const char *what)
{
    struct pollfd p = { .fd = fd };

    do
        MUST(t, wait_for(t, fd, 0), "%s keeps %s", t->peer, what);
    while (poll(&p, 1, 0) == 0 || !(p.revents & (POLLHUP | POLLERR)));
}

/* ---- The record of it ---------------------------------------------------------------------- */

void test_trace(struct test *t, enum trace_kind kind, const void *bytes, size_t len, unsigned nfds)
{
    struct trace *trace = &t->trace[t->ntrace++ % TEST_TRACE];

    trace->kind = kind;
    trace->link = t->at;
    trace->len = len;
    trace->nfds = nfds;
    memcpy(trace->head, bytes, len < TRACE_HEAD ? len : TRACE_HEAD);
}

static void print_header(FILE *out, const struct trace *trace)
{
    struct ob_wire_hdr hdr;

    if (trace->len < sizeof(hdr))
        return;
    memcpy(&hdr, trace->head, sizeof(hdr));
    fprintf(out, ": %s %u%s%s, id %u, size %u", ob_strcmd(hdr.cmd), hdr.cmd,
            (hdr.flags & OB_HDR_TYPE_MASK) == OB_HDR_REPLY ? " reply" : "",
            hdr.flags & OB_HDR_NO_REPLY ? " without reply" : "", hdr.msg_id, hdr.msg_size);
    if (hdr.flags & OB_HDR_ERROR)
        fprintf(out, ", error %u (%s)", hdr.error_no, strerror((int)hdr.error_no));
}

static void print_trace(FILE *out, const struct trace *trace)
{
    static const char *const arrows[] = { "-> ", "<- ", "-- " };
    size_t kept = trace->len < TRACE_HEAD ? trace->len : TRACE_HEAD;

    fputs(arrows[trace->kind], out);
    if (trace->link)
        fprintf(out, "(connection %u) ", trace->link + 1);
    if (trace->kind == TRACE_EVENT) {
        fprintf(out, "%.*s\n", (int)kept, (const char *)trace->head);
        return;
    }
    fprintf(out, "%zu bytes", trace->len);
    if (trace->nfds)
        fprintf(out, ", %u fds", trace->nfds);
    print_header(out, trace);
    for (size_t i = 0; i < kept; i++) {
        if (i % 16 == 0)
            fprintf(out, "\n   %04zx ", i);
        fprintf(out, " %02x", trace->head[i]);
    }
    fputs(kept < trace->len ? " ...\n" : "\n", out);
}

char *test_trace_text(const struct test *t)
{
    unsigned first = t->ntrace > TEST_TRACE ? t->ntrace - TEST_TRACE : 0;
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    if (!out)
        return NULL;
    if (first)
        fprintf(out, "-- (%u earlier messages)\n", first);
    for (unsigned i = first; i < t->ntrace; i++)
        print_trace(out, &t->trace[i % TEST_TRACE]);
    return fclose(out) == 0 ? text : NULL;
}
