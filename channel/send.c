/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The sending half of a channel, and waiting (see channel.h). Invariants: nothing is sent past a
 * message that is queued; a message whose first byte was sent is sent to its end, or the
 * connection is shut down; fds go with the first byte, and our duplicates are closed as soon as it
 * is gone. Tests: channel-send/queue-keeps-order, channel-send/send-fails-at-every-call. Rules:
 * R-FRAME-3, R-FD-1.
 */
#include "channel/channel.h"
#include "channel/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* A queued message, or the rest of one. */
struct ob_out {
    struct ob_out *next;
    uint8_t *data; /* in this allocation, behind fds */
    size_t len;    /* bytes to send */
    size_t sent;   /* of them */
    unsigned nfds; /* duplicates, to go with the first byte; 0 once that is gone */
    int fds[];
};

static void close_fds(struct ob_out *out)
{
    for (unsigned i = 0; i < out->nfds; i++)
        close(out->fds[i]);
    out->nfds = 0;
}

static void out_free(struct ob_out *out)
{
    close_fds(out);
    free(out);
}

void ob_channel_drop_queue(struct ob_channel *ch)
{
    while (ch->out_head) {
        struct ob_out *out = ch->out_head;
        ch->out_head = out->next;
        out_free(out);
    }
    ch->out_tail = NULL;
    ch->out_bytes = 0;
}

/* One system call. The number of bytes that the socket took, or a negative errno. */
/* syscalls: sendmsg */
static ssize_t send_some(int fd, struct iovec *iov, size_t niov, const int *fds, unsigned nfds)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int) * OB_MSG_FDS_MAX)];
    } control;
    struct msghdr mh = { .msg_iov = iov, .msg_iovlen = niov };
    ssize_t n;

    if (nfds) {
        control.align = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int) * nfds),
                                          .cmsg_level = SOL_SOCKET,
                                          .cmsg_type = SCM_RIGHTS };
        memcpy(CMSG_DATA(&control.align), fds, sizeof(int) * nfds);
        mh.msg_control = &control;
        mh.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
    }
    do
        n = sendmsg(fd, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

bool ob_channel_is_gone(ssize_t rc)
{
    return rc == -EPIPE || rc == -ECONNRESET;
}

int ob_channel_flush(struct ob_channel *ch)
{
    while (ch->out_head) {
        struct ob_out *out = ch->out_head;
        struct iovec iov = { out->data + out->sent, out->len - out->sent };
        ssize_t n = send_some(ch->fd, &iov, 1, out->fds, out->nfds);
        if (n < 0)
            return n == -EAGAIN ? 0 : (int)n;
        close_fds(out);
        out->sent += n;
        ch->out_bytes -= n;
        if (out->sent < out->len)
            continue;
        ch->out_head = out->next;
        if (!ch->out_head)
            ch->out_tail = NULL;
        free(out);
    }
    return 1;
}

/* Copies what follows the first skip bytes of the message; duplicates the fds. NULL with *rc set
 * when there is no memory or no fd for that. */
/* syscalls: fcntl(1=F_DUPFD_CLOEXEC), close */
static struct ob_out *out_new(const struct iovec *iov, unsigned niov, size_t skip, size_t total,
                              const int *fds, unsigned nfds, int *rc)
{
    struct ob_out *out = malloc(sizeof(*out) + nfds * sizeof(int) + total - skip);

    if (!out) {
        *rc = -ENOMEM;
        return NULL;
    }
    *out = (struct ob_out){ .data = (uint8_t *)(out->fds + nfds) };
    for (unsigned i = 0; i < niov; i++) {
        size_t drop = skip < iov[i].iov_len ? skip : iov[i].iov_len;
        skip -= drop;
        if (iov[i].iov_len > drop)
            memcpy(out->data + out->len, (uint8_t *)iov[i].iov_base + drop, iov[i].iov_len - drop);
        out->len += iov[i].iov_len - drop;
    }
    for (; out->nfds < nfds; out->nfds++) {
        int fd = fcntl(fds[out->nfds], F_DUPFD_CLOEXEC, 0);
        if (fd < 0) {
            *rc = -errno;
            out_free(out);
            return NULL;
        }
        out->fds[out->nfds] = fd;
    }
    return out;
}

/* A message on its way out: the header and what follows it. */
struct message {
    struct iovec iov[OB_CHANNEL_IOV_MAX + 1], rest[OB_CHANNEL_IOV_MAX + 1];
    unsigned niov;
    size_t total;
    const int *fds;
    unsigned nfds;
};

/* Queues what follows the first sent bytes of the message. */
/* syscalls: shutdown */
static int queue_rest(struct ob_channel *ch, const struct message *m, size_t sent)
{
    int rc = 0;
    struct ob_out *out = out_new(m->iov, m->niov, sent, m->total, m->fds, sent ? 0 : m->nfds, &rc);

    if (!out) {
        /* Half a message must not be followed by another one. */
        if (sent)
            shutdown(ch->fd, SHUT_RDWR);
        return sent ? -EPIPE : rc;
    }
    if (ch->out_tail)
        ch->out_tail->next = out;
    else
        ch->out_head = out;
    ch->out_tail = out;
    ch->out_bytes += out->len;
    return 0;
}

static int gather(struct message *m, struct ob_wire_hdr *hdr, const struct iovec *iov,
                  unsigned niov, const int *fds, unsigned nfds)
{
    if (niov > OB_CHANNEL_IOV_MAX || nfds > OB_MSG_FDS_MAX)
        return -EINVAL;
    m->iov[0] = (struct iovec){ hdr, sizeof(*hdr) };
    m->niov = niov + 1;
    m->total = sizeof(*hdr);
    for (unsigned i = 0; i < niov; i++) {
        m->iov[i + 1] = iov[i];
        if (iov[i].iov_len > OB_CHANNEL_QUEUE_MAX - m->total)
            return -EMSGSIZE;
        m->total += iov[i].iov_len;
    }
    m->fds = fds;
    m->nfds = nfds;
    hdr->msg_size = (uint32_t)m->total;
    return 0;
}

/* Sends what was collected, or queues it. */
static int send_corked(struct ob_channel *ch)
{
    struct message m = { .iov = { { ch->cork, ch->ncorked } }, .niov = 1, .total = ch->ncorked };
    ssize_t n = 0;

    if (ch->ncorked == 0)
        return 0;
    ch->ncorked = 0;
    if (!ch->out_head)
        n = send_some(ch->fd, m.iov, 1, NULL, 0);
    if (ob_channel_is_gone(n))
        return (int)n;
    if (n == (ssize_t)m.total || queue_rest(ch, &m, n > 0 ? (size_t)n : 0) == 0)
        return 0;
    shutdown(ch->fd, SHUT_RDWR); /* they were said to be on their way */
    return -EPIPE;
}

void ob_channel_cork(struct ob_channel *ch)
{
    ch->corked = true;
}

int ob_channel_uncork(struct ob_channel *ch)
{
    ch->corked = false;
    return send_corked(ch);
}

/* Copies the whole message into one piece. Its length, or 0 when there is not so much room. */
static size_t flatten(uint8_t *to, size_t room, struct ob_wire_hdr *hdr, const struct iovec *iov,
                      unsigned niov)
{
    size_t len = sizeof(*hdr);

    if (len > room)
        return 0;
    for (unsigned i = 0; i < niov; i++) {
        if (iov[i].iov_len > room - len)
            return 0;
        memcpy(to + len, iov[i].iov_base, iov[i].iov_len);
        len += iov[i].iov_len;
    }
    hdr->msg_size = (uint32_t)len;
    memcpy(to, hdr, sizeof(*hdr));
    return len;
}

/* Puts a message behind those collected, which are sent first when there is no room. 0; -E2BIG: it
 * is too large for that; or what sending them returned. */
static int collect(struct ob_channel *ch, struct ob_wire_hdr *hdr, const struct iovec *iov,
                   unsigned niov)
{
    size_t len = flatten(ch->cork + ch->ncorked, sizeof(ch->cork) - ch->ncorked, hdr, iov, niov);

    if (len == 0) {
        int rc = send_corked(ch);
        if (rc < 0)
            return rc;
        len = flatten(ch->cork, sizeof(ch->cork), hdr, iov, niov);
    }
    ch->ncorked += (uint32_t)len;
    return len ? 0 : -E2BIG;
}

/* A message without fds that is not larger is sent from one piece: to copy it costs less than to
 * have the kernel gather it. */
#define FLAT_MAX 256u

/* The number of bytes that the socket took, all of them in *total; a negative errno; -E2BIG: it is
 * larger, and nothing was done. */
/* syscalls: sendto */
static ssize_t send_flat(int fd, struct ob_wire_hdr *hdr, const struct iovec *iov, unsigned niov,
                         size_t *total)
{
    uint8_t flat[FLAT_MAX];
    size_t len = flatten(flat, sizeof(flat), hdr, iov, niov);
    ssize_t n;

    if (len == 0)
        return -E2BIG;
    *total = len;
    do
        n = send(fd, flat, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

/* A receiver that is at it gets this long to make room for more of a large message: to queue the
 * rest would cost a copy. */
#define PATIENCE_NS 20000

/* Sends what follows the first sent bytes, as long as the socket goes on taking it. How many were
 * sent then, or a negative errno: the connection is gone. */
static ssize_t send_on(int fd, struct message *m, ssize_t sent)
{
    int64_t until_ns = ob_now_ns() + PATIENCE_NS;
    size_t skip = (size_t)sent;
    unsigned at = 0;

    while ((size_t)sent < m->total) {
        ssize_t n;

        for (; skip >= m->iov[at].iov_len; at++)
            skip -= m->iov[at].iov_len;
        m->rest[0] =
            (struct iovec){ (uint8_t *)m->iov[at].iov_base + skip, m->iov[at].iov_len - skip };
        for (unsigned i = at + 1; i < m->niov; i++)
            m->rest[i - at] = m->iov[i];
        n = send_some(fd, m->rest, m->niov - at, NULL, 0);
        if (ob_channel_is_gone(n))
            return n;
        if (n < 0 && (n != -EAGAIN || ob_now_ns() >= until_ns))
            break;
        if (n > 0) {
            sent += n;
            skip += (size_t)n;
            until_ns = ob_now_ns() + PATIENCE_NS;
        }
    }
    return sent;
}

/* at_once: not at all, rather than queued from its beginning. */
static int put_message(struct ob_channel *ch, struct ob_wire_hdr *hdr, const struct iovec *iov,
                       unsigned niov, const int *fds, unsigned nfds, bool at_once)
{
    ssize_t n = -E2BIG;
    struct message m;
    size_t total;
    int rc;

    if (ch->corked && !at_once && !ch->out_head && nfds == 0 && niov <= OB_CHANNEL_IOV_MAX) {
        rc = collect(ch, hdr, iov, niov);
        if (rc != -E2BIG)
            return rc;
    }
    if (ch->ncorked) {
        rc = send_corked(ch);
        if (rc < 0)
            return rc;
    }
    if (!ch->out_head && nfds == 0 && niov <= OB_CHANNEL_IOV_MAX) {
        n = send_flat(ch->fd, hdr, iov, niov, &total);
        if (n >= 0 && (size_t)n == total)
            return 0;
    }
    rc = gather(&m, hdr, iov, niov, fds, nfds);
    if (rc < 0)
        return rc;
    if (n == -E2BIG) {
        rc = ob_channel_flush(ch);
        if (rc < 0)
            return rc;
        if (m.total > OB_CHANNEL_QUEUE_MAX - ch->out_bytes)
            return -ENOBUFS;
        n = ch->out_head ? 0 : send_some(ch->fd, m.iov, m.niov, fds, nfds);
        if (n > 0)
            n = send_on(ch->fd, &m, n);
    }
    if (n < 0 && n != -EAGAIN)
        return (int)n;
    if (n > 0 && (size_t)n == m.total)
        return 0;
    return n <= 0 && at_once ? -EAGAIN : queue_rest(ch, &m, n > 0 ? (size_t)n : 0);
}

int ob_channel_queue(struct ob_channel *ch, struct ob_wire_hdr *hdr, const struct iovec *iov,
                     unsigned niov, const int *fds, unsigned nfds)
{
    return put_message(ch, hdr, iov, niov, fds, nfds, false);
}

int ob_channel_try(struct ob_channel *ch, struct ob_wire_hdr *hdr, const struct iovec *iov,
                   unsigned niov, const int *fds, unsigned nfds)
{
    return put_message(ch, hdr, iov, niov, fds, nfds, true);
}

int ob_channel_send(struct ob_channel *ch, struct ob_wire_hdr *hdr, const struct iovec *iov,
                    unsigned niov, const int *fds, unsigned nfds, int64_t deadline_ns)
{
    int rc = ob_channel_queue(ch, hdr, iov, niov, fds, nfds);

    while (rc == 0 && ch->out_head) {
        rc = ob_channel_wait(ch, POLLOUT, deadline_ns);
        if (rc < 0)
            return rc;
        rc = ob_channel_flush(ch);
        if (rc == 1)
            rc = 0;
    }
    return rc;
}

/* syscalls: ppoll */
int ob_poll_until(struct pollfd *fds, unsigned count, int64_t deadline_ns)
{
    bool forever = deadline_ns == OB_NO_DEADLINE;

    for (;;) {
        int64_t left = forever ? 0 : deadline_ns - ob_now_ns();
        struct timespec ts = { 0, 0 };
        if (left > 0)
            ts = (struct timespec){ left / 1000000000, left % 1000000000 };
        int rc = ppoll(fds, count, forever ? NULL : &ts, NULL);
        if (rc > 0)
            return rc;
        if (rc == 0)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
    }
}

int ob_channel_wait(const struct ob_channel *ch, short events, int64_t deadline_ns)
{
    struct pollfd pfd = { .fd = ch->fd, .events = events };
    int rc = ob_poll_until(&pfd, 1, deadline_ns);

    return rc < 0 ? rc : pfd.revents;
}
