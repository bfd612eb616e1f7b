/* SPDX-License-Identifier: BSD-3-Clause */
/* The life of one received message and of the channel around it. */
#include "channel/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "channel/internal.h"

int ob_msg_claim_fd(struct ob_msg *msg, unsigned index)
{
    int fd;

    if (index >= msg->nfds)
        return -1;
    fd = msg->fds[index];
    msg->fds[index] = -1;
    return fd;
}

void ob_msg_free(struct ob_msg *msg)
{
    if (!msg)
        return;
    for (unsigned i = 0; i < msg->nfds; i++)
        if (msg->fds[i] >= 0)
            close(msg->fds[i]);
    free(msg->payload);
    free(msg);
}

int ob_channel_init(struct ob_channel *ch, int fd, uint32_t payload_max)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        int rc = -errno;

        close(fd);
        return rc;
    }
    *ch = (struct ob_channel){ .fd = fd, .payload_max = payload_max };
    return 0;
}

void ob_channel_fini(struct ob_channel *ch)
{
    close(ch->fd);
    ch->fd = -1;
    ob_msg_free(ch->in);
    ch->in = NULL;
    ob_channel_drop_queue(ch);
}
