/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The receiving half of a channel (see channel.h).
 *
 * Theory. Nearly all messages are small, and each system call counts, so the first read of a
 * message takes a header and up to ch->ahead bytes more. Of a longer message the rest is read to
 * its very end; of a shorter one, what followed it (ch->extra) begins the next message.
 *
 * Fds that come with a read belong to the message in which the read ended. The kernel ends a read
 * behind the sendmsg() that brought fds, so this is right for senders that send each message by
 * itself. For those that merge several it is right as long as no read goes beyond the end of a
 * message that may have fds: no well-formed command with fds is shorter than 36 bytes (SET_IRQS),
 * no such reply shorter than 48. OB_AHEAD_SERVER and OB_AHEAD_CLIENT are what makes those with a
 * header. VERSION may be shorter: until it is through, ch->ahead is 0. With OB_AHEAD_BULK, for
 * messages that follow each other without pause, a read may go beyond such a message; then the fds
 * are those of the last command in it that takes any.
 *
 * A descriptor that comes is always taken, if only to be discarded: what the kernel drops because
 * there is no room for it, or because nobody asked, it lets go of in the middle of our read, and
 * that may wait (see discard.c). So recv() is used only where none can come (enum ob_fds).
 *
 * Invariant: ch->in_got counts the bytes of the message in ch->in that are there, and ch->nextra
 * is 0 unless that message is whole or has no byte yet. Tests: channel-receive/every-split,
 * channel-receive/merged-messages, channel-receive-fds/merged-fds, channel-receive-fds/bulk-fds.
 * Rules: R-FRAME-4 to R-FRAME-7, R-FD-3.
 */
#include "channel/channel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* A payload gets this much memory at first, and more only as its bytes really come: a header
 * that lies about its size costs nothing. */
#define FIRST_CHUNK 65536u
#define DRAIN_CHUNK 16384u
/* Bytes of an oversize message dropped in one call: it may have 4 GiB, and recv never blocks. */
#define DRAIN_MAX   (1u << 20)

/* Since Linux 6.16; headers may be older, and the other architectures have other numbers. */
#if !defined(SO_PASSRIGHTS) && (defined(__x86_64__) || defined(__aarch64__))
#define SO_PASSRIGHTS 83
#endif

#define HDR_SIZE ((uint32_t)sizeof(struct ob_wire_hdr))

/* Files the fds of one SCM_RIGHTS in the message; those it has no room for are closed. */
static void keep_fds(const struct ob_channel *ch, const struct cmsghdr *cmsg)
{
    struct ob_msg *msg = ch->in;
    size_t count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    int fd;

    for (size_t i = 0; i < count; i++) {
        memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(fd), sizeof(fd));
        if (msg->nfds < ch->fds_max) {
            msg->fds[msg->nfds++] = fd;
        } else {
            ob_fd_discard(fd, msg->owner);
            msg->fds_lost = true;
        }
    }
}

/* The number of bytes read, -EAGAIN, -ECONNRESET at the end of the stream, or another negative
 * errno. */
/* syscalls: recvfrom, recvmsg */
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
    int unread;

    if (ob_discard_is_full(ch->owner))
        return -ETOOMANYREFS;
    if (ch->expects == OB_FDS_NONE) { /* a third less than recvmsg() costs */
        do
            n = recv(ch->fd, buf, len, MSG_DONTWAIT);
        while (n < 0 && errno == EINTR);
        return n > 0 ? n : n < 0 ? -errno : -ECONNRESET;
    }
    do
        n = recvmsg(ch->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        n = -errno;
    if (ch->expects == OB_FDS_REFUSED && ioctl(ch->fd, FIONREAD, &unread) == 0 && unread == 0)
        ch->expects = OB_FDS_NONE;
    if (n < 0)
        return n;
    /* The kernel cuts the list where our buffer, or our limit of open files, ends. */
    if (mh.msg_flags & MSG_CTRUNC)
        ch->in->fds_lost = true;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&mh); c; c = CMSG_NXTHDR(&mh, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            keep_fds(ch, c);
    }
    return n ? n : -ECONNRESET;
}

/* Bytes that are there, as far as they go. */
static uint32_t take_extra(struct ob_channel *ch, void *buf, uint32_t len)
{
    uint32_t n = ch->nextra < len ? ch->nextra : len;

    memcpy(buf, ch->extra + ch->extra_at, n);
    ch->extra_at += n;
    ch->nextra -= n;
    return n;
}

/* 1 when the header is whole, 0 when it is not yet, or a negative errno. What was read beyond it
 * is in ch->extra. */
static int recv_header(struct ob_channel *ch)
{
    struct ob_msg *msg = ch->in;

    while (ch->in_got < HDR_SIZE) {
        uint32_t missing = HDR_SIZE - ch->in_got;
        if (ch->nextra == 0) {
            unsigned nfds = msg->nfds;
            bool lost = msg->fds_lost;
            ssize_t n = read_some(ch, ch->extra, missing + ch->ahead);
            if (n < 0)
                return n == -EAGAIN ? 0 : (int)n;
            ch->extra_at = 0;
            ch->nextra = (uint32_t)n;
            ch->own_fds = nfds;
            ch->own_lost = lost;
        }
        ch->in_got += take_extra(ch, (uint8_t *)&msg->hdr + ch->in_got, missing);
    }
    if (msg->hdr.msg_size < HDR_SIZE)
        return -EPROTO;
    if (ch->in_got == HDR_SIZE)
        msg->oversize = msg->hdr.msg_size - HDR_SIZE > ch->payload_max;
    return 1;
}

/* Makes room behind the bytes of the payload that are there; *room gets how much. */
static int grow(struct ob_channel *ch, uint32_t got, uint32_t total, uint32_t *room)
{
    struct ob_msg *msg = ch->in;

    if (got == 0 && total <= OB_MSG_INLINE) {
        msg->payload = msg->small;
        msg->len = total;
    } else if (got == msg->len) {
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

static bool goes_into_sink(const struct ob_channel *ch)
{
    const struct ob_wire_hdr *hdr = &ch->in->hdr;
    const struct ob_sink *sink = ch->sink;

    return sink && hdr->flags == OB_HDR_REPLY && hdr->msg_id == sink->msg_id &&
           hdr->cmd == sink->cmd && hdr->msg_size == HDR_SIZE + sink->fixed + sink->len;
}

/* Where the next bytes of the payload go, and how many. */
static int place(struct ob_channel *ch, uint32_t got, uint32_t total, uint8_t **at, uint32_t *room)
{
    struct ob_msg *msg = ch->in;
    int rc = 0;

    /* One that has memory of its own began to come before it was waited for. */
    if (got == 0 && !msg->payload && goes_into_sink(ch)) {
        msg->sunk = true;
        msg->payload = msg->small;
        msg->len = total;
    }
    if (!msg->sunk) {
        rc = grow(ch, got, total, room);
        if (rc == 0)
            *at = msg->payload + got;
    } else if (got < ch->sink->fixed) {
        *at = msg->small + got;
        *room = ch->sink->fixed - got;
    } else {
        *at = (uint8_t *)ch->sink->data + (got - ch->sink->fixed);
        *room = total - got;
    }
    return rc;
}

/* 1 when the payload is whole, 0 when it is not yet, or a negative errno. */
static int recv_payload(struct ob_channel *ch)
{
    struct ob_msg *msg = ch->in;
    uint32_t total = msg->hdr.msg_size - HDR_SIZE;

    while (ch->in_got - HDR_SIZE < total) {
        uint32_t got = ch->in_got - HDR_SIZE, room;
        uint8_t *at = NULL;
        int rc = place(ch, got, total, &at, &room);
        if (rc < 0)
            return rc;
        ssize_t n = ch->nextra ? take_extra(ch, at, room) : read_some(ch, at, room);
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
        left = left < sizeof(scratch) ? left : sizeof(scratch);
        ssize_t n = ch->nextra ? take_extra(ch, scratch, left) : read_some(ch, scratch, left);
        if (n < 0)
            return n == -EAGAIN ? 0 : (int)n;
        ch->in_got += n;
        done += n;
    }
    return 1;
}

void ob_channel_unsink(struct ob_channel *ch)
{
    struct ob_msg *msg = ch->in;

    ch->sink = NULL;
    if (!msg || !msg->sunk)
        return;
    msg->sunk = false;
    msg->oversize = true;
    msg->payload = NULL;
    msg->len = 0;
}

/* Its fds stay unset as long as nfds is 0. */
struct ob_msg *ob_channel_new_message(struct ob_channel *ch)
{
    struct ob_msg *msg = __atomic_exchange_n(&ch->spare, NULL, __ATOMIC_ACQ_REL);

    if (!msg)
        msg = malloc(sizeof(*msg));
    if (msg) {
        msg->payload = NULL;
        msg->len = 0;
        msg->fds_lost = msg->sunk = false;
        msg->nfds = 0;
        msg->next = NULL;
        msg->owner = ch->owner;
    }
    return msg;
}

/* The other end of the socket can, or cannot, send fds from now on. */
static bool set_passing(const struct ob_channel *ch, int on)
{
#ifdef SO_PASSRIGHTS
    return setsockopt(ch->fd, SOL_SOCKET, SO_PASSRIGHTS, &on, sizeof(on)) == 0;
#else
    (void)ch, (void)on;
    return false;
#endif
}

void ob_channel_refuse_fds(struct ob_channel *ch)
{
    ch->expects = set_passing(ch, 0) ? OB_FDS_REFUSED : OB_FDS_TAKEN;
}

void ob_channel_pass_fds(const struct ob_channel *ch)
{
    set_passing(ch, 1);
}

bool ob_reply_takes_fds(uint16_t cmd)
{
    return cmd == OB_CMD_VERSION || cmd == OB_CMD_DEVICE_GET_REGION_INFO ||
           cmd == OB_CMD_DEVICE_GET_REGION_IO_FDS;
}

static bool takes_fds(const struct ob_wire_hdr *hdr)
{
    if ((hdr->flags & OB_HDR_TYPE_MASK) == OB_HDR_REPLY)
        return ob_reply_takes_fds(hdr->cmd);
    return hdr->cmd == OB_CMD_DMA_MAP || hdr->cmd == OB_CMD_DEVICE_SET_IRQS;
}

/* Whether fds that came with the bytes in ch->extra are those of a message that begins in it. */
static bool extra_has_fds(const struct ob_channel *ch)
{
    struct ob_wire_hdr hdr;

    if (!takes_fds(&ch->in->hdr))
        return true;
    for (uint32_t at = 0; at < ch->nextra; at += hdr.msg_size) {
        if (ch->nextra - at < HDR_SIZE) /* nobody knows yet what it is */
            return true;
        memcpy(&hdr, ch->extra + ch->extra_at + at, HDR_SIZE);
        if (takes_fds(&hdr) || hdr.msg_size < HDR_SIZE || hdr.msg_size > ch->nextra - at)
            return takes_fds(&hdr);
    }
    return false;
}

/* A whole message in ch->in leaves; what came with the read that went beyond it stays. */
static int leave_extra(struct ob_channel *ch)
{
    struct ob_msg *from = ch->in, *to = NULL;

    if ((from->nfds > ch->own_fds || from->fds_lost != ch->own_lost) && extra_has_fds(ch)) {
        to = ob_channel_new_message(ch);
        if (!to)
            return -ENOMEM;
        to->nfds = from->nfds - ch->own_fds;
        to->fds_lost = from->fds_lost && !ch->own_lost;
        memcpy(to->fds, from->fds + ch->own_fds, to->nfds * sizeof(to->fds[0]));
        from->nfds = ch->own_fds;
        from->fds_lost = ch->own_lost;
        ch->in_got = 0;
    }
    ch->in = to;
    ch->own_fds = 0;
    ch->own_lost = false;
    return 0;
}

bool ob_channel_ready(const struct ob_channel *ch)
{
    struct ob_wire_hdr hdr;

    if (ch->nextra < HDR_SIZE)
        return false;
    memcpy(&hdr, ch->extra + ch->extra_at, HDR_SIZE);
    return hdr.msg_size <= ch->nextra;
}

int ob_channel_recv(struct ob_channel *ch, struct ob_msg **out)
{
    if (!ch->in) {
        ch->in = ob_channel_new_message(ch);
        if (!ch->in)
            return -ENOMEM;
        ch->in_got = 0;
    }
    int rc = recv_header(ch);
    if (rc == 1)
        rc = ch->in->oversize ? drain(ch) : recv_payload(ch);
    if (rc < 1)
        return rc;
    struct ob_msg *msg = ch->in;
    if (ch->nextra) {
        int failed = leave_extra(ch); /* the message is whole, and found so by the next call */
        if (failed)
            return failed;
    } else {
        ch->in = NULL;
    }
    *out = msg;
    return 1;
}
