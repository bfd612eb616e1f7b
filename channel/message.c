/* SPDX-License-Identifier: BSD-3-Clause */
/* The life of a received message, and of a channel. */
#include "channel/channel.h"
#include "channel/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int ob_msg_claim_fd(struct ob_msg *msg, unsigned index)
{
    if (index >= msg->nfds)
        return -1;
    int fd = msg->fds[index];
    msg->fds[index] = -1;
    return fd;
}

/* All that it has but its own memory. */
static void drop_contents(struct ob_msg *msg)
{
    for (unsigned i = 0; i < msg->nfds; i++) {
        if (msg->fds[i] >= 0)
            ob_fd_discard(msg->fds[i], msg->owner);
    }
    if (msg->payload != msg->small)
        free(msg->payload);
}

void ob_msg_free(struct ob_msg *msg)
{
    if (!msg)
        return;
    drop_contents(msg);
    free(msg);
}

void ob_channel_recycle(struct ob_channel *ch, struct ob_msg *msg)
{
    drop_contents(msg);
    free(__atomic_exchange_n(&ch->spare, msg, __ATOMIC_ACQ_REL));
}

/* A byte that is urgent comes in its turn: else the kernel would drop it, and what is attached to
 * it, in the middle of a read. */
/* syscalls: fcntl(1=F_GETFL), fcntl(1=F_SETFL), fcntl(1=F_SETFD), getsockopt */
/* syscalls: setsockopt(2=SO_OOBINLINE) */
static int prepare(int fd)
{
    static const int inlined = 1;
    int type, flags = fcntl(fd, F_GETFL);
    socklen_t len = sizeof(type);

    if (flags < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
        return -errno;
    if (type != SOCK_STREAM)
        return -EPROTOTYPE;
    if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &inlined, sizeof(inlined)) < 0)
        return -errno;
    return 0;
}

int ob_channel_init(struct ob_channel *ch, int fd, uint32_t payload_max)
{
    int rc = prepare(fd);

    if (rc < 0) {
        if (fd >= 0)
            ob_socket_discard(fd, NULL);
        return rc;
    }
    *ch = (struct ob_channel){ .fd = fd, .payload_max = payload_max, .fds_max = OB_MSG_FDS_MAX };
    return 0;
}

static void drop_all(struct ob_channel *ch)
{
    if (ch->fd >= 0)
        ob_socket_discard(ch->fd, ch->owner);
    ob_msg_free(ch->in);
    ob_channel_drop_queue(ch);
}

void ob_channel_fini(struct ob_channel *ch)
{
    drop_all(ch);
    free(ch->spare);
    *ch = (struct ob_channel){ .fd = -1 };
}

void ob_channel_move(struct ob_channel *to, struct ob_channel *from)
{
    drop_all(to);
    memcpy(to, from, offsetof(struct ob_channel, spare));
    free(from->spare);
    *from = (struct ob_channel){ .fd = -1 };
}
