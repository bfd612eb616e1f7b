/* SPDX-License-Identifier: BSD-3-Clause */
/* The life of a received message, and of a channel. */
#include "channel/channel.h"
#include "channel/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

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
            close(msg->fds[i]);
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

/* syscalls: readlink, readlinkat */
bool ob_fd_is_eventfd(int fd)
{
    static const char eventfd_link[] = "anon_inode:[eventfd]";
    char path[32], link[sizeof(eventfd_link)];
    ssize_t len;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    len = readlink(path, link, sizeof(link));
    return len == sizeof(eventfd_link) - 1 && memcmp(link, eventfd_link, (size_t)len) == 0;
}

/* syscalls: fcntl(1=F_GETFL), fcntl(1=F_SETFL), fcntl(1=F_SETFD), getsockopt */
static int prepare(int fd)
{
    int type, flags = fcntl(fd, F_GETFL);
    socklen_t len = sizeof(type);

    if (flags < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
        return -errno;
    if (type != SOCK_STREAM)
        return -EPROTOTYPE;
    if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return -errno;
    return 0;
}

int ob_channel_init(struct ob_channel *ch, int fd, uint32_t payload_max)
{
    int rc = prepare(fd);

    if (rc < 0) {
        if (fd >= 0)
            close(fd);
        return rc;
    }
    *ch = (struct ob_channel){ .fd = fd, .payload_max = payload_max };
    return 0;
}

/* syscalls: close */
static void drop_all(struct ob_channel *ch)
{
    if (ch->fd >= 0)
        close(ch->fd);
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
