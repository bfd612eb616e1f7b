/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The client: reading its requests in order, and letting it go.
 *
 * Requests are not read while an answer is still queued (a client that does not read its answers
 * makes nothing grow here) nor while a DMA_UNMAP waits for the device. Commands that a message DMA
 * met on its way are in the backlog and come first.
 *
 * A client that wants it has a second socket, the twin. Only our DMA messages and their answers go
 * over it, so a message DMA meets nothing else on its way.
 */
#include "server/internal.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* syscalls: getsockopt */
struct ob_session *ob_session_new(struct ob_server *server, int fd)
{
    struct ob_session *session = calloc(1, sizeof(*session));
    struct ucred peer;
    socklen_t len = sizeof(peer);

    if (!session) {
        ob_socket_discard(fd, server);
        return NULL;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0)
        session->pid = peer.pid;
    if (ob_channel_init(&session->ch, fd, OB_PAYLOAD_MAX) < 0) {
        free(session);
        return NULL;
    }
    session->ch.owner = server;
    session->twin.fd = -1;
    session->server = server;
    session->serial = ++server->serials;
    session->backlog_tail = &session->backlog;
    return session;
}

void ob_session_free(struct ob_session *session)
{
    ob_source_del(session->server, session->source);
    ob_channel_fini(&session->ch);
    ob_source_del(session->server, session->twin_source);
    if (session->twin.fd >= 0)
        ob_channel_fini(&session->twin);
    ob_ring_free(session);
    ob_msg_free(session->version);
    while (session->backlog) {
        struct ob_msg *msg = session->backlog;

        session->backlog = msg->next;
        ob_msg_free(msg);
    }
    free(session);
}

void ob_session_doom(struct ob_session *session, const char *fmt, ...)
{
    va_list ap;

    if (session->doomed)
        return;
    session->doomed = true;
    va_start(ap, fmt);
    vsnprintf(session->why, sizeof(session->why), fmt, ap);
    va_end(ap);
    ob_server_kick(session->server);
}

void ob_session_broken(struct ob_session *session, int rc)
{
    if (ob_channel_is_gone(rc))
        ob_session_doom(session, "it closed the connection");
    else if (rc == -EPROTO)
        ob_session_doom(session, "a message shorter than its header");
    else if (rc == -ETOOMANYREFS)
        ob_session_doom(session, "more than %u descriptors that it sent are still not closed",
                        OB_DISCARD_MAX);
    else
        ob_session_doom(session, "%s", strerror(-rc));
}

/* syscalls: poll, ppoll */
bool ob_session_hung_up(const struct ob_session *session)
{
    struct pollfd p = { .fd = session->ch.fd, .events = POLLRDHUP };

    return poll(&p, 1, 0) == 1 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

/* ---- Reading ------------------------------------------------------------------------------ */

static bool may_read(const struct ob_session *session)
{
    return !session->doomed && session->unmap.left == 0 && !session->ch.out_head;
}

/* While the ring is open it is polled. */
bool ob_session_has_work(const struct ob_session *session)
{
    return may_read(session) && (session->backlog || ob_channel_ready(&session->ch) ||
                                 (!session->ring_open && ob_ring_has(session)));
}

/* syscalls: ioctl(1=FIONREAD) */
bool ob_session_caught_up(const struct ob_session *session)
{
    int unread;

    /* What the device has found is read before what came before it is looked for. */
    atomic_thread_fence(memory_order_acquire);
    return !session->backlog && session->ch.nextra == 0 && !ob_ring_has(session) &&
           (ioctl(session->ch.fd, FIONREAD, &unread) < 0 || unread == 0);
}

void ob_session_defer(struct ob_session *session, struct ob_msg *msg)
{
    session->backlog_bytes += sizeof(*msg) + msg->len + (size_t)msg->nfds * OB_BACKLOG_FD_COST;
    msg->next = NULL;
    *session->backlog_tail = msg;
    session->backlog_tail = &msg->next;
    if (session->backlog_bytes > OB_BACKLOG_MAX)
        ob_session_doom(session, "too many requests while it owed us the answer to a DMA message");
}

static int next_message(struct ob_session *session, struct ob_msg **out)
{
    struct ob_msg *msg = session->backlog;

    if (!msg)
        return ob_channel_recv(&session->ch, out);
    session->backlog = msg->next;
    if (!session->backlog)
        session->backlog_tail = &session->backlog;
    session->backlog_bytes -= sizeof(*msg) + msg->len + (size_t)msg->nfds * OB_BACKLOG_FD_COST;
    *out = msg;
    return 1;
}

void ob_session_rearm(struct ob_session *session)
{
    ob_source_mod(session->server, session->source,
                  (may_read(session) ? EPOLLIN : 0) | (session->ch.out_head ? EPOLLOUT : 0));
    if (session->twin_source)
        ob_source_mod(session->server, session->twin_source,
                      EPOLLIN | (session->twin.out_head ? EPOLLOUT : 0));
    if (ob_session_has_work(session))
        ob_server_kick(session->server);
}

/* Sends the answers that were collected. */
static void uncork(struct ob_session *session)
{
    int rc = session->ch.corked ? ob_channel_uncork(&session->ch) : 0;

    if (rc < 0)
        ob_session_broken(session, rc);
}

/*
 * Handles one message. Takes it. Whether to look for another at once: the sender of a request that
 * is answered mostly waits for that, and the look would be a system call in vain. But who maps or
 * unmaps memory mostly does it many times: these answers are collected.
 */
static bool handle(struct ob_session *session, struct ob_msg *msg)
{
    struct ob_channel *ch = &session->ch;
    bool bulk = msg->hdr.cmd == OB_CMD_DMA_MAP || msg->hdr.cmd == OB_CMD_DMA_UNMAP;
    bool answered = false, command;

    if (bulk)
        ob_channel_cork(ch);
    else
        uncork(session);
    command = (msg->hdr.flags & OB_HDR_TYPE_MASK) == OB_HDR_COMMAND;
    ob_ring_take(session, true); /* the client put it there before it sent this */
    if (!session->doomed) {
        answered = ob_dispatch(session, msg);
        if (command)
            ob_ring_note_taken(session);
    }
    ob_channel_recycle(ch, msg);
    ch->ahead = bulk || !answered ? OB_AHEAD_BULK : OB_AHEAD_SERVER;
    return bulk || !answered || ob_channel_ready(ch);
}

/* Most posted messages are single writes, and a look at the clock costs as much as one of them; but
 * those of other kinds may take a second each. */
static bool takes_long(const struct ob_msg *msg, int64_t *until_ns)
{
    if (*until_ns == 0 && msg->hdr.cmd != OB_CMD_REGION_WRITE)
        *until_ns = ob_now_ns() + OB_STEP_NS;
    return *until_ns != 0;
}

bool ob_session_read(struct ob_session *session)
{
    int64_t until_ns = 0;
    bool from_ring = may_read(session) && ob_ring_take(session, false), more = !from_ring;
    unsigned i;

    session->server->has_read = true;

    for (i = 0; more && i < OB_STEP_REQUESTS && may_read(session); i++) {
        struct ob_msg *msg;
        int rc = next_message(session, &msg);
        bool timed;

        if (rc < 0) {
            ob_ring_take(session, true); /* the client put it there before it left */
            ob_session_broken(session, rc);
        }
        if (rc <= 0)
            break;
        timed = takes_long(msg, &until_ns);
        more = handle(session, msg) && !(timed && ob_now_ns() > until_ns);
        if (i > 0) /* nobody waited for this one */
            ob_spin_flows(&session->server->spin);
    }
    if (from_ring || i > 0)
        session->ring_hot = from_ring;
    uncork(session);
    ob_session_rearm(session);
    return from_ring || i > 0 || session->doomed;
}

static void session_ready(void *opaque, uint32_t events)
{
    struct ob_session *session = opaque;
    int rc = session->ch.out_head ? ob_channel_flush(&session->ch) : 1;

    if (rc < 0)
        ob_session_broken(session, rc);
    else if (!may_read(session) && (events & (EPOLLHUP | EPOLLERR)))
        ob_session_doom(session, "it closed the connection");
    ob_session_read(session);
}

/* ---- The twin ----------------------------------------------------------------------------- */

/* An answer that comes too late is dropped, a command is in the wrong place. */
void ob_session_twin_message(struct ob_session *session, struct ob_msg *msg)
{
    struct ob_wire_hdr hdr = { .msg_id = msg->hdr.msg_id,
                               .cmd = msg->hdr.cmd,
                               .flags = OB_HDR_REPLY | OB_HDR_ERROR,
                               .error_no = EINVAL };
    bool command = (msg->hdr.flags & OB_HDR_TYPE_MASK) == OB_HDR_COMMAND;
    int rc = 0;

    if (command && session->twin.out_head) /* so that nothing grows */
        ob_session_doom(session, "requests on the second socket");
    else if (command && !(msg->hdr.flags & OB_HDR_NO_REPLY))
        rc = ob_channel_queue(&session->twin, &hdr, NULL, 0, NULL, 0);
    if (rc < 0)
        ob_session_broken(session, rc);
    ob_msg_free(msg);
}

/* syscalls: shutdown */
void ob_session_twin_broken(struct ob_session *session, int rc)
{
    ob_source_del(session->server, session->twin_source);
    session->twin_source = NULL;
    if (ob_channel_is_gone(rc))
        shutdown(session->ch.fd, SHUT_RD);
    else
        ob_session_broken(session, rc);
}

static void twin_ready(void *opaque, uint32_t events)
{
    struct ob_session *session = opaque;
    int rc = session->twin.out_head ? ob_channel_flush(&session->twin) : 0;

    (void)events;
    for (unsigned i = 0; rc >= 0 && !session->twin.out_head; i++) {
        struct ob_msg *msg;

        if (i >= OB_STEP_REQUESTS && !ob_channel_ready(&session->twin))
            break;

        rc = ob_channel_recv(&session->twin, &msg);
        if (rc <= 0)
            break;
        ob_session_twin_message(session, msg);
    }
    if (rc < 0)
        ob_session_twin_broken(session, rc);
    ob_session_rearm(session);
}

/* Of datagram sockets also one of a pair can send to any that has a name. */
/* syscalls: socketpair(0=AF_UNIX 1&0xf=SOCK_STREAM) */
int ob_session_add_twin(struct ob_session *session)
{
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
        return -1;
    if (ob_channel_init(&session->twin, fds[0], OB_PAYLOAD_MAX) == 0) {
        session->twin.owner = session->server;
        session->twin.ahead = OB_AHEAD_SERVER;
        session->twin_source = ob_source_add(session->server, fds[0], EPOLLIN, twin_ready, session);
    }
    if (session->twin_source)
        return fds[1];
    if (session->twin.fd >= 0)
        ob_channel_fini(&session->twin);
    close(fds[1]);
    return -1;
}

/* ---- Coming and going --------------------------------------------------------------------- */

void ob_session_attach(struct ob_session *session)
{
    struct ob_server *server = session->server;

    session->source->ready = session_ready;
    session->source->opaque = session;
    server->session = session;
    ob_session_rearm(session); /* the answer to VERSION may still be queued */
    session->ch.ahead = OB_AHEAD_SERVER;
    ob_log(server, OB_LOG_INFO, "client attached (process %d)", (int)session->pid);
    if (server->ops.client)
        server->ops.client(server->opaque, true);
}

void ob_session_end(struct ob_session *session)
{
    struct ob_server *server = session->server;

    ob_log(server, OB_LOG_INFO, "client left: %s", session->why);
    if (server->ops.client)
        server->ops.client(server->opaque, false);
    ob_dma_detach(server);
    ob_dirty_stop(&server->dirty);
    ob_irqs_detach(server);
    ob_io_detach(server);
    server->session = NULL;
    ob_migration_detach(server);
    ob_session_free(session);
    server->ended = server->adopted;
}
