/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The receiving half of a channel (see channel.h). Invariant: the socket is never read past the
 * end of the message in ch->in, and ch->in_got counts the bytes of it that were read. Tests:
 * channel-receive/every-split, channel-receive/merged-messages. Rules: R-FRAME-4 to R-FRAME-7,
 * R-FD-3.
 */
#include "channel/channel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A payload gets this much memory at first, and more only as its bytes really come: a header
 * that lies about its size costs nothing. */
#define FIRST_CHUNK 65536u
#define DRAIN_CHUNK 16384u
/* Bytes of an oversize message dropped in one call: it may have 4 GiB, and recv never blocks. */
#define DRAIN_MAX   (1u << 20)

#define HDR_SIZE ((uint32_t)sizeof(struct ob_wire_hdr))

/* Files the fds of one SCM_RIGHTS in the message; those it has no room for are closed. */
static void keep_fds(struct ob_msg *msg, const struct cmsghdr *cmsg)
{
    size_t count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    int fd;

    for (size_t i = 0; i < count; i++) {
        memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(fd), sizeof(fd));
        if (msg->nfds < OB_MSG_FDS_MAX) {
            msg->fds[msg->nfds++] = fd;
        } else {
            close(fd);
            msg->fds_lost = true;
        }
    }
}

/* Reads up to len bytes of the current message. Their number, -EAGAIN, -ECONNRESET at the end of
 * the stream, or another negative errno. */
static ssize_t read_some(struct ob_channel *ch, void *buf, size_t len)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int) * OB_MSG_FDS_MAX)];
    } control;
    struct iovec iov = { buf, len };
    struct msghdr mh = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof(control),
    };
    ssize_t n;

    do
        n = recvmsg(ch->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    /* The kernel cuts the list where our buffer, or our limit of open files, ends. */
    if (mh.msg_flags & MSG_CTRUNC)
        ch->in->fds_lost = true;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&mh); c; c = CMSG_NXTHDR(&mh, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            keep_fds(ch->in, c);
    }
    return n ? n : -ECONNRESET;
}

/* 1 when the header is whole, 0 when it is not yet, or a negative errno. */
static int recv_header(struct ob_channel *ch)
{
    struct ob_msg *msg = ch->in;

    while (ch->in_got < HDR_SIZE) {
        ssize_t n = read_some(ch, (uint8_t *)&msg->hdr + ch->in_got, HDR_SIZE - ch->in_got);
        if (n < 0)
            return n == -EAGAIN ? 0 : (int)n;
        ch->in_got += n;
    }
    if (msg->hdr.msg_size < HDR_SIZE)
        return -EPROTO;
    msg->oversize = msg->hdr.msg_size - HDR_SIZE > ch->payload_max;
    return 1;
}

/* Makes room behind the bytes of the payload that are there; *room gets how much. */
static int grow(struct ob_channel *ch, uint32_t got, uint32_t total, uint32_t *room)
{
    struct ob_msg *msg = ch->in;

    if (got == msg->len) {
        uint32_t len = got ? got * 2 : FIRST_CHUNK;
        if (len > total || len < got)
            len = total;
        uint8_t *payload = realloc(msg->payload, len);
        if (!payload)
            return -ENOMEM;
        msg->payload = payload;
        msg->len = len;
    }
    *room = msg->len - got;
    return 0;
}

/* 1 when the payload is whole, 0 when it is not yet, or a negative errno. */
static int recv_payload(struct ob_channel *ch)
{
    struct ob_msg *msg = ch->in;
    uint32_t total = msg->hdr.msg_size - HDR_SIZE;

    while (ch->in_got - HDR_SIZE < total) {
        uint32_t got = ch->in_got - HDR_SIZE, room;
        int rc = grow(ch, got, total, &room);
        if (rc < 0)
            return rc;
        ssize_t n = read_some(ch, msg->payload + got, room);
        if (n < 0)
            return n == -EAGAIN ? 0 : (int)n;
        ch->in_got += n;
    }
    return 1;
}

/* Drops the payload of an oversize message. Returns like recv_payload(). */
static int drain(struct ob_channel *ch)
{
    uint8_t scratch[DRAIN_CHUNK];

    for (uint32_t done = 0; ch->in_got < ch->in->hdr.msg_size;) {
        uint32_t left = ch->in->hdr.msg_size - ch->in_got;
        if (done >= DRAIN_MAX)
            return 0;
        ssize_t n = read_some(ch, scratch, left < sizeof(scratch) ? left : sizeof(scratch));
        if (n < 0)
            return n == -EAGAIN ? 0 : (int)n;
        ch->in_got += n;
        done += n;
    }
    return 1;
}

int ob_channel_recv(struct ob_channel *ch, struct ob_msg **out)
{
    if (!ch->in) {
        ch->in = calloc(1, sizeof(*ch->in));
        if (!ch->in)
            return -ENOMEM;
        ch->in_got = 0;
    }
    int rc = recv_header(ch);
    if (rc == 1)
        rc = ch->in->oversize ? drain(ch) : recv_payload(ch);
    if (rc == 1) {
        *out = ch->in;
        ch->in = NULL;
    }
    return rc;
}
