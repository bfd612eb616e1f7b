/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The sending half: a message goes out with one sendmsg(); what the socket does not take is queued,
 * and nothing overtakes the queue.
 */
#include "channel/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel/internal.h"

#define IOV_MAX_PARTS 8

/* The unsent rest of a message; its fds, if it still has them, go with its next byte. */
struct ob_out {
    struct ob_out *next;
    size_t len, sent;
    unsigned nfds;
    int fds[OB_MSG_FDS_MAX];
    uint8_t data[];
};

static void free_out(struct ob_out *out)
{
    for (unsigned i = 0; i < out->nfds; i++)
        close(out->fds[i]);
    free(out);
}

void ob_channel_drop_queue(struct ob_channel *ch)
{
    while (ch->out_head) {
        struct ob_out *out = ch->out_head;

        ch->out_head = out->next;
        free_out(out);
    }
    ch->out_tail = NULL;
    ch->out_bytes = 0;
}

/* Bytes taken by the socket (0: none now), or a negative errno. */
static ssize_t send_some(int fd, const struct iovec *iov, unsigned niov, const int *fds,
                         unsigned nfds)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(OB_MSG_FDS_MAX * sizeof(int))];
    } control;
    struct msghdr mh = { .msg_iov = (struct iovec *)iov, .msg_iovlen = niov };
    ssize_t sent;

    if (nfds) {
        mh.msg_control = &control;
        mh.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        memset(&control, 0, mh.msg_controllen);
        control.align.cmsg_level = SOL_SOCKET;
        control.align.cmsg_type = SCM_RIGHTS;
        control.align.cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(&control.align), fds, nfds * sizeof(int));
    }
    do {
        sent = sendmsg(fd, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
    return sent;
}

/* Queues what is left of the parts after skip bytes; the fds only when none were sent. */
static int enqueue(struct ob_channel *ch, const struct iovec *iov, unsigned niov, size_t total,
                   size_t skip, const int *fds, unsigned nfds)
{
    size_t left = total - skip;
    struct ob_out *out = malloc(sizeof(*out) + left);
    uint8_t *at;

    if (!out)
        return -ENOMEM;
    *out = (struct ob_out){ .len = left };
    for (unsigned i = 0; skip == 0 && i < nfds; i++) {
        int fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);

        if (fd < 0) {
            int rc = -errno;

            free_out(out);
            return rc;
        }
        out->fds[out->nfds++] = fd;
    }
    at = out->data;
    for (unsigned i = 0; i < niov; i++) {
        size_t drop = skip < iov[i].iov_len ? skip : iov[i].iov_len;

        skip -= drop;
        if (iov[i].iov_len > drop) {
            memcpy(at, (uint8_t *)iov[i].iov_base + drop, iov[i].iov_len - drop);
            at += iov[i].iov_len - drop;
        }
    }
    if (ch->out_tail)
        ch->out_tail->next = out;
    else
        ch->out_head = out;
    ch->out_tail = out;
    ch->out_bytes += left;
    return 0;
}

int ob_channel_queue(struct ob_channel *ch, struct ob_wire_hdr *hdr, const struct iovec *iov,
                     unsigned niov, const int *fds, unsigned nfds)
{
    struct iovec parts[IOV_MAX_PARTS];
    size_t total = sizeof(*hdr);
    ssize_t sent = 0;
    int rc = ob_channel_flush(ch);

    if (rc < 0)
        return rc;
    if (niov > IOV_MAX_PARTS - 1 || nfds > OB_MSG_FDS_MAX)
        return -EINVAL;
    parts[0] = (struct iovec){ hdr, sizeof(*hdr) };
    for (unsigned i = 0; i < niov; i++) {
        parts[i + 1] = iov[i];
        total += iov[i].iov_len;
    }
    if (total > UINT32_MAX)
        return -EMSGSIZE;
    hdr->msg_size = (uint32_t)total;
    if (!ch->out_head) {
        sent = send_some(ch->fd, parts, niov + 1, fds, nfds);
        if (sent < 0)
            return (int)sent;
        if ((size_t)sent == total)
            return 0;
    }
    if (sent == 0 && ch->out_bytes + total > OB_CHANNEL_QUEUE_MAX)
        return -ENOBUFS;
    rc = enqueue(ch, parts, niov + 1, total, (size_t)sent, fds, nfds);
    return rc < 0 && sent > 0 ? -EPIPE : rc; /* half a message is the end of the stream */
}

int ob_channel_flush(struct ob_channel *ch)
{
    while (ch->out_head) {
        struct ob_out *out = ch->out_head;
        struct iovec iov = { out->data + out->sent, out->len - out->sent };
        ssize_t sent = send_some(ch->fd, &iov, 1, out->fds, out->nfds);

        if (sent <= 0)
            return (int)sent;
        while (out->nfds)
            close(out->fds[--out->nfds]);
        out->sent += (size_t)sent;
        ch->out_bytes -= (size_t)sent;
        if (out->sent < out->len)
            continue;
        ch->out_head = out->next;
        if (!ch->out_head)
            ch->out_tail = NULL;
        free_out(out);
    }
    return 1;
}

int ob_channel_send(struct ob_channel *ch, struct ob_wire_hdr *hdr, const struct iovec *iov,
                    unsigned niov, const int *fds, unsigned nfds, int64_t deadline_ns)
{
    int rc = ob_channel_queue(ch, hdr, iov, niov, fds, nfds);

    while (rc >= 0 && (rc = ob_channel_flush(ch)) == 0)
        rc = ob_channel_wait(ch, POLLOUT, deadline_ns);
    return rc < 0 ? rc : 0;
}

int ob_channel_wait(const struct ob_channel *ch, short events, int64_t deadline_ns)
{
    struct pollfd pfd = { .fd = ch->fd, .events = events };

    for (;;) {
        int64_t left = deadline_ns == OB_NO_DEADLINE ? 0 : deadline_ns - ob_now_ns();
        struct timespec ts = { left > 0 ? left / 1000000000 : 0, left > 0 ? left % 1000000000 : 0 };
        int rc = ppoll(&pfd, 1, deadline_ns == OB_NO_DEADLINE ? NULL : &ts, NULL);

        if (rc > 0)
            return pfd.revents;
        if (rc == 0)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
    }
}
