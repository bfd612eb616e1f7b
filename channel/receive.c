/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The receiving half: reads to the end of the header, then to the end of the message, and never
 * past it. Memory for a payload grows with what has come, so a header that lies costs nothing.
 */
#include "channel/channel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HDR_SIZE    ((uint32_t)sizeof(struct ob_wire_hdr))
#define FIRST_PIECE 65536u /* payload bytes that are allocated before any of them came */

static void keep_fds(struct ob_msg *msg, struct msghdr *mh)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        for (size_t i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            if (msg->nfds < OB_MSG_FDS_MAX) {
                msg->fds[msg->nfds++] = fd;
            } else {
                close(fd);
                msg->fds_lost = true;
            }
        }
    }
    if (mh->msg_flags & MSG_CTRUNC)
        msg->fds_lost = true;
}

/* recvmsg() of at most len bytes. > 0: bytes; 0: nothing there now; negative errno. */
static ssize_t receive_some(struct ob_channel *ch, void *data, size_t len)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(OB_MSG_FDS_MAX * sizeof(int))];
    } control;
    struct iovec iov = { .iov_base = data, .iov_len = len };
    struct msghdr mh = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
    };
    ssize_t got;

    do {
        got = recvmsg(ch->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
    keep_fds(ch->in, &mh);
    return got == 0 ? -ECONNRESET : got;
}

/* Where the next payload bytes go, and how many fit there. */
static int payload_room(struct ob_channel *ch, uint8_t **data, size_t *room)
{
    static uint8_t discard[16384]; /* written by many, read by none */
    struct ob_msg *msg = ch->in;
    uint32_t total = msg->hdr.msg_size - HDR_SIZE;
    uint32_t at = ch->in_got - HDR_SIZE;

    if (msg->oversize) {
        *data = discard;
        *room = total - at < sizeof(discard) ? total - at : sizeof(discard);
        return 0;
    }
    if (at == msg->len) { /* full, or not begun */
        uint32_t size = at == 0 ? FIRST_PIECE : at * 4;
        uint8_t *grown;

        if (size > total)
            size = total;
        grown = realloc(msg->payload, size);
        if (!grown)
            return -ENOMEM;
        msg->payload = grown;
        msg->len = size;
    }
    *data = msg->payload + at;
    *room = msg->len - at;
    return 0;
}

int ob_channel_recv(struct ob_channel *ch, struct ob_msg **out)
{
    if (!ch->in) {
        ch->in = calloc(1, sizeof(*ch->in));
        if (!ch->in)
            return -ENOMEM;
        ch->in_got = 0;
    }
    for (;;) {
        struct ob_msg *msg = ch->in;
        uint8_t *data;
        size_t room;
        ssize_t got;

        if (ch->in_got < HDR_SIZE) {
            data = (uint8_t *)&msg->hdr + ch->in_got;
            room = HDR_SIZE - ch->in_got;
        } else {
            int rc = payload_room(ch, &data, &room);

            if (rc < 0)
                return rc;
        }
        got = receive_some(ch, data, room);
        if (got <= 0)
            return (int)got;
        ch->in_got += (uint32_t)got;
        if (ch->in_got < HDR_SIZE)
            continue;
        if (ch->in_got == HDR_SIZE) {
            if (msg->hdr.msg_size < HDR_SIZE)
                return -EPROTO;
            msg->oversize = msg->hdr.msg_size - HDR_SIZE > ch->payload_max;
        }
        if (ch->in_got == msg->hdr.msg_size) {
            ch->in = NULL;
            *out = msg;
            return 1;
        }
    }
}
