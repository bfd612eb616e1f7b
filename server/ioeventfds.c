/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Eventfds in place of writes (GET_REGION_IO_FDS). An eventfd is made when a client asks for it
 * and goes with the client, so that none can signal for its successor.
 */
#include "server/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* One eventfd: entries with the same callback share it. */
struct io_event {
    struct ob_server *server;
    void (*ready)(void *opaque);
    void *opaque;
    int fd; /* -1: nobody has asked for it */
    struct ob_source *source;
    bool due; /* it was signalled while the device must not change */
};

struct ob_io_table {
    struct ob_server *server;
    unsigned count, nevents;
    struct {
        uint32_t region;
        struct ob_ioeventfd match;
        unsigned event;
    } entries[OB_IOEVENTFDS_MAX];
    struct io_event events[OB_IOEVENTFDS_MAX];
};

/* There is one for each entry at most. */
static unsigned event_for(struct ob_io_table *io, void (*ready)(void *opaque), void *opaque)
{
    for (unsigned i = 0; i < io->nevents; i++)
        if (io->events[i].ready == ready && io->events[i].opaque == opaque)
            return i;
    io->events[io->nevents] = (struct io_event){ io->server, ready, opaque, -1, NULL, false };
    return io->nevents++;
}

int ob_server_add_ioeventfd(struct ob_server *server, uint32_t region,
                            const struct ob_ioeventfd *match, void (*ready)(void *opaque),
                            void *opaque)
{
    struct ob_io_table *io = server->io;

    if (region >= server->num_regions || server->session || !ready ||
        !(server->regions[region].layout.flags & OB_REGION_WRITE) ||
        !ob_ioeventfd_valid(match, server->regions[region].layout.size))
        return -EINVAL;
    if (!io)
        io = server->io = calloc(1, sizeof(*io));
    if (!io)
        return -ENOMEM;
    io->server = server;
    for (unsigned i = 0; i < io->count; i++)
        if (io->entries[i].region == region && ob_ioeventfds_clash(&io->entries[i].match, match))
            return -EEXIST;
    if (io->count == OB_IOEVENTFDS_MAX)
        return -ENOSPC;
    io->entries[io->count].region = region;
    io->entries[io->count].match = *match;
    io->entries[io->count++].event = event_for(io, ready, opaque);
    return 0;
}

static void event_ready(void *opaque, uint32_t events)
{
    struct io_event *event = opaque;

    (void)events;
    if (ob_migration_frozen(event->server))
        event->due = true;
    else
        event->ready(event->opaque);
}

void ob_io_release(struct ob_server *server)
{
    struct ob_io_table *io = server->io;

    for (unsigned i = 0; io && i < io->nevents; i++) {
        if (!io->events[i].due)
            continue;
        io->events[i].due = false;
        io->events[i].ready(io->events[i].opaque);
    }
}

/* Edge-triggered, and never read: see add_watch() in irqs.c. */
/* syscalls: eventfd2, close */
static int event_open(struct ob_server *server, struct io_event *event)
{
    if (event->fd >= 0)
        return 0;
    event->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (event->fd < 0)
        return -errno;
    event->source = ob_source_add(server, event->fd, EPOLLIN | EPOLLET, event_ready, event);
    if (event->source)
        return 0;
    close(event->fd);
    event->fd = -1;
    return -ENOMEM;
}

/* Index of the event's fd among those of the reply; negative when the client takes no more. */
static int fd_index(struct ob_session *session, struct ob_reply *reply, struct io_event *event)
{
    int rc = event_open(session->server, event);

    if (rc < 0)
        return rc;
    for (unsigned i = 0; i < reply->nfds; i++)
        if (reply->fds[i] == event->fd)
            return (int)i;
    if (reply->nfds >= session->caps.max_msg_fds)
        return -ENOSPC;
    reply->fds[reply->nfds] = event->fd;
    return (int)reply->nfds++;
}

/* What the client cannot take comes by message: an entry is an offer. */
void ob_io_describe(struct ob_session *session, struct ob_wire_region_io_fds *info,
                    struct ob_reply *reply)
{
    struct ob_io_table *io = session->server->io;
    uint32_t room = info->argsz;
    struct ob_writer w;

    info->count = 0;
    ob_writer_init(&w, reply->fixed + sizeof(*info), sizeof(reply->fixed) - sizeof(*info));
    for (unsigned i = 0; io && i < io->count; i++) {
        const struct ob_ioeventfd *match = &io->entries[i].match;
        struct ob_wire_ioeventfd wire = { match->offset,    match->size,  0,
                                          OB_IO_FD_EVENTFD, match->flags, 0,
                                          match->datamatch };
        int index = -1;

        if (io->entries[i].region == info->index)
            index = fd_index(session, reply, &io->events[io->entries[i].event]);
        if (index < 0)
            continue;
        wire.fd_index = (uint32_t)index;
        ob_writer_put(&w, &wire, sizeof(wire));
        info->count++;
    }
    info->argsz = (uint32_t)(sizeof(*info) + w.len);
    memcpy(reply->fixed, info, sizeof(*info));
    reply->len = info->argsz;
    if (info->argsz > room) {
        reply->len = sizeof(*info);
        reply->nfds = 0;
    }
}

void ob_io_detach(struct ob_server *server)
{
    struct ob_io_table *io = server->io;

    for (unsigned i = 0; io && i < io->nevents; i++) {
        ob_source_del(server, io->events[i].source);
        if (io->events[i].fd >= 0)
            close(io->events[i].fd);
        io->events[i].source = NULL;
        io->events[i].due = false;
        io->events[i].fd = -1;
    }
}

void ob_io_fini(struct ob_server *server)
{
    ob_io_detach(server);
    free(server->io);
}
