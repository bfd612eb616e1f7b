/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Listening, and the lobby: connections that have not negotiated yet. The first good VERSION while
 * there is no client makes its sender the client. While there is one the others are told EBUSY,
 * unless the client has already closed its end: then the newcomer waits for what is left of it to
 * be handled, so that a client that reconnects at once always gets in. Rules: R-VERSION-2,
 * R-VERSION-4 to R-VERSION-10.
 */
#include "server/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* Nobody here may make us keep more than a VERSION message. */
#define LOBBY_PAYLOAD_MAX ((uint32_t)sizeof(struct ob_wire_version) + OB_VERSION_JSON_MAX)

/* The owner of the descriptors that they send, none of which is kept: what cannot be closed of it
 * must not count as the client's. */
static const void *strangers(const struct ob_server *server)
{
    return &server->lobby;
}

static void lobby_unlink(struct ob_session *session)
{
    struct ob_session **p = &session->server->lobby;

    while (*p != session)
        p = &(*p)->next;
    *p = session->next;
    session->next = NULL;
}

static void lobby_drop(struct ob_session *session)
{
    struct ob_server *server = session->server;

    lobby_unlink(session);
    ob_session_free(session);
    server->ended = server->adopted;
}

/* Says no and closes. */
static void lobby_refuse(struct ob_session *session, const struct ob_wire_hdr *request, int err,
                         const char *why)
{
    ob_log(session->server, OB_LOG_ERROR, "connection of process %d refused: %s", (int)session->pid,
           why);
    if ((request->flags & OB_HDR_TYPE_MASK) == OB_HDR_COMMAND)
        ob_answer(session, request, -err, NULL);
    lobby_drop(session);
}

/* Puts fd into the reply, if there is one. Its index, or -1. */
static int add_fd(struct ob_reply *reply, int fd)
{
    if (fd < 0)
        return -1;
    reply->fds[reply->nfds] = fd;
    return (int)reply->nfds++;
}

/* What we say of ourselves: nothing to a client that said nothing, and of what both sides must have
 * only what the client has. The reply's fds, the client's end of the twin socket and the ring, are
 * the caller's. */
static void offer(struct ob_session *session, struct ob_reply *reply,
                  const struct ob_wire_version *asked, bool with_json)
{
    struct ob_wire_version version = { .major = OB_VERSION_MAJOR, .minor = asked->minor };
    struct ob_caps caps;
    size_t room;
    int len;

    if (version.minor > OB_VERSION_MINOR)
        version.minor = OB_VERSION_MINOR;
    memcpy(reply->fixed, &version, sizeof(version));
    reply->len = sizeof(version);
    if (!with_json)
        return;
    ob_caps_offer(&caps);
    caps.max_dma_maps = session->server->dma.max_count;
    caps.write_multiple &= session->caps.write_multiple;
    caps.mapped_order = session->caps.mapped_order && session->server->mapped_order;
    if (session->caps.twin_socket && session->caps.max_msg_fds > 0)
        caps.twin_fd_index = add_fd(reply, ob_session_add_twin(session));
    caps.twin_socket = caps.twin_fd_index >= 0;
    if (session->caps.ring && session->caps.max_msg_fds > reply->nfds)
        caps.ring_fd_index = add_fd(reply, ob_ring_make(session));
    caps.ring = caps.ring_fd_index >= 0;
    if (session->caps.migration && session->server->migration)
        ob_caps_offer_migration(&caps);
    /* QEMU's own device is the one that has no room for more, and knows nothing of these. */
    room = session->caps.mapped_order || session->caps.ring ? sizeof(reply->fixed) - reply->len
                                                            : OB_VERSION_JSON_QEMU;
    len = ob_caps_print(&caps, true, (char *)reply->fixed + reply->len, room);
    if (len > 0)
        reply->len += (size_t)len;
}

/* Answers VERSION and lets its sender in, or not. */
static void negotiate(struct ob_session *session, const struct ob_msg *msg)
{
    struct ob_wire_version version;
    const char *why = NULL;
    struct ob_reply reply = { .nfds = 0 };
    struct ob_caps caps;

    memcpy(&version, msg->payload, sizeof(version)); /* the table's minimum is this long */
    if (version.major != OB_VERSION_MAJOR) {
        lobby_refuse(session, &msg->hdr, EINVAL, "it speaks another major version");
        return;
    }
    if (ob_caps_parse(msg->payload + sizeof(version), msg->len - sizeof(version), false, &caps,
                      &why) < 0) {
        lobby_refuse(session, &msg->hdr, EINVAL, why);
        return;
    }
    session->caps = caps;
    lobby_unlink(session);
    session->ch.payload_max = OB_PAYLOAD_MAX;
    session->ch.fds_max = OB_MSG_FDS_MAX;
    session->ch.owner = session->server;
    offer(session, &reply, &version, msg->len > sizeof(version));
    ob_answer(session, &msg->hdr, 0, &reply);
    while (reply.nfds > 0)
        close(reply.fds[--reply.nfds]);
    ob_session_attach(session);
}

static void lobby_message(struct ob_session *session, struct ob_msg *msg)
{
    struct ob_server *server = session->server;
    enum ob_reason reason = ob_check_command(&msg->hdr, OB_CLIENT_TO_SERVER, OB_STATE_NEGOTIATE);

    if (reason != OB_OK) {
        lobby_refuse(session, &msg->hdr, ob_reason_errno(reason), ob_strreason(reason));
    } else if (!server->session) {
        negotiate(session, msg);
    } else if (server->session->doomed || ob_session_hung_up(server->session)) {
        session->version = msg;
        ob_source_mod(server, session->source, 0);
        return;
    } else {
        lobby_refuse(session, &msg->hdr, EBUSY, "there is a client already");
    }
    ob_msg_free(msg);
}

static void lobby_ready(void *opaque, uint32_t events)
{
    struct ob_session *session = opaque;
    struct ob_msg *msg;
    int rc;

    if (session->version) { /* it waits to be admitted, and only a hang-up is of interest */
        if (events & (EPOLLHUP | EPOLLERR))
            lobby_drop(session);
        return;
    }
    rc = ob_channel_recv(&session->ch, &msg);
    if (rc < 0) {
        ob_log(session->server, OB_LOG_DEBUG, "process %d left without negotiating",
               (int)session->pid);
        lobby_drop(session);
    } else if (rc > 0) {
        lobby_message(session, msg);
    }
}

/* The first of those who waited gets in, the others have waited in vain. */
void ob_lobby_admit(struct ob_server *server)
{
    struct ob_session *session = server->lobby, *next;

    for (; session; session = next) {
        struct ob_msg *msg = session->version;

        next = session->next;
        if (!msg)
            continue;
        session->version = NULL;
        if (server->session)
            lobby_refuse(session, &msg->hdr, EBUSY, "there is a client already");
        else
            negotiate(session, msg);
        ob_msg_free(msg);
    }
}

static unsigned count_silent(const struct ob_server *server, pid_t pid)
{
    unsigned count = 0;

    for (const struct ob_session *s = server->lobby; s; s = s->next)
        count += !s->version && s->pid == pid;
    return count;
}

/* Room for one more: of those that have not said anything one has to go, the oldest of the process
 * that has the most. So a process that connects all the time is in nobody's way but its own. */
static bool lobby_make_room(struct ob_server *server)
{
    struct ob_session *silent = NULL;
    unsigned count = 0, most = 0;

    for (struct ob_session *s = server->lobby; s; s = s->next) {
        unsigned n = s->version ? 0 : count_silent(server, s->pid);

        count++;
        if (n > most) {
            most = n;
            silent = s;
        }
    }
    if (count < OB_LOBBY_MAX)
        return true;
    if (!silent)
        return false;
    ob_log(server, OB_LOG_INFO, "process %d dropped: it never negotiated", (int)silent->pid);
    lobby_drop(silent);
    return true;
}

/* Before a byte of it is read, and before it takes anybody's place. */
static bool is_allowed(struct ob_server *server, int fd)
{
    struct ucred peer = { .pid = 0, .uid = (uid_t)-1 };
    socklen_t len = sizeof(peer);

    if (server->nallowed == 0)
        return true;
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len);
    for (unsigned i = 0; i < server->nallowed; i++)
        if (server->allowed[i] == peer.uid)
            return true;
    ob_log(server, OB_LOG_ERROR, "process %d refused: its user %u is not allowed", (int)peer.pid,
           (unsigned)peer.uid);
    return false;
}

/* fd is taken. */
static int lobby_enter(struct ob_server *server, int fd)
{
    struct ob_session *session, **end = &server->lobby;

    if (!is_allowed(server, fd)) {
        ob_socket_discard(fd, strangers(server));
        return -EACCES;
    }
    if (!lobby_make_room(server)) {
        ob_socket_discard(fd, strangers(server));
        return -EBUSY;
    }
    session = ob_session_new(server, fd);
    if (!session)
        return -ENOMEM;
    session->ch.payload_max = LOBBY_PAYLOAD_MAX;
    session->ch.fds_max = 0;
    session->ch.owner = strangers(server);
    session->source = ob_source_add(server, session->ch.fd, EPOLLIN, lobby_ready, session);
    if (!session->source) {
        ob_session_free(session);
        return -ENOMEM;
    }
    while (*end)
        end = &(*end)->next;
    *end = session;
    return 0;
}

/*
 * Without a free descriptor the connection could not be taken off the queue, and the loop would
 * spin on it: the spare one is given up to close it.
 */
/* syscalls: accept4, close, fcntl(1=F_DUPFD_CLOEXEC) */
static void turn_away(struct ob_server *server)
{
    int fd;

    ob_log(server, OB_LOG_ERROR, "a connection was closed: no file descriptor left");
    if (server->spare_fd >= 0)
        close(server->spare_fd);
    fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        ob_socket_discard(fd, strangers(server));
    server->spare_fd = fcntl(server->wake_fd, F_DUPFD_CLOEXEC, 0);
}

static bool is_full(const struct ob_server *server)
{
    return ob_discard_is_full(server) || ob_discard_is_full(strangers(server));
}

/*
 * As long as clients have left too much behind that cannot be closed, nobody is let in: each
 * connection could leave more. Then newcomers are not watched for, but what is closed; the last of
 * it may have been just before that.
 */
static bool is_closed(struct ob_server *server)
{
    bool closed = is_full(server);

    if (closed && !server->room.on) {
        ob_log(server, OB_LOG_ERROR,
               "nobody can connect: more than %u descriptors that clients sent are still not "
               "closed",
               OB_DISCARD_MAX);
        server->room.fd = server->dma.wake_fd;
        ob_discard_watch(&server->room);
        closed = is_full(server);
    }
    if (!closed)
        ob_discard_unwatch(&server->room);
    ob_source_mod(server, server->listener, closed ? 0 : EPOLLIN);
    return closed;
}

void ob_lobby_reopen(struct ob_server *server)
{
    if (server->room.on)
        is_closed(server);
}

static void listener_ready(void *opaque, uint32_t events)
{
    struct ob_server *server = opaque;
    int fd;

    (void)events;
    if (is_closed(server))
        return;
    fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        lobby_enter(server, fd);
    else if (errno == EMFILE || errno == ENFILE)
        turn_away(server);
}

/* fd is taken. */
static int add_listener(struct ob_server *server, int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (server->listen_fd >= 0 || server->adopted) {
        close(fd);
        return -EBUSY;
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    if (flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0)
        server->listener = ob_source_add(server, fd, EPOLLIN, listener_ready, server);
    if (!server->listener) {
        int err = errno;

        close(fd);
        return -err;
    }
    server->listen_fd = fd;
    return 0;
}

void ob_server_set_socket_owner(struct ob_server *server, uid_t uid, gid_t gid)
{
    server->socket_uid = uid;
    server->socket_gid = gid;
}

int ob_server_allow_uid(struct ob_server *server, uid_t uid)
{
    if (server->nallowed == OB_ALLOWED_UIDS_MAX)
        return -ENOSPC;
    server->allowed[server->nallowed++] = uid;
    return 0;
}

int ob_server_listen(struct ob_server *server, const char *path, unsigned mode)
{
    char *copy = strdup(path);
    struct stat st;
    int rc;

    if (!copy)
        return -ENOMEM;
    rc = ob_socket_listen_owned(path, mode ? mode : 0600, server->socket_uid, server->socket_gid,
                                (int)OB_LOBBY_MAX);
    if (rc >= 0) {
        rc = add_listener(server, rc);
        if (rc < 0)
            unlink(path);
    }
    if (rc < 0) {
        free(copy);
        return rc;
    }
    server->path = copy;
    if (stat(path, &st) == 0) {
        server->path_dev = st.st_dev;
        server->path_ino = st.st_ino;
    }
    return 0;
}

int ob_server_listen_fd(struct ob_server *server, int fd)
{
    int listening = 0, rc;
    socklen_t len = sizeof(listening);

    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) != 0) {
        rc = -errno;
        close(fd);
        return rc;
    }
    if (listening)
        return add_listener(server, fd);
    if (server->listen_fd >= 0 || server->adopted) {
        close(fd);
        return -EBUSY;
    }
    rc = lobby_enter(server, fd);
    server->adopted = rc == 0;
    return rc;
}

/* A listening socket takes along who has connected and was not accepted, and what they sent. One
 * that the embedder gave us may still be listened to by others: it is not emptied. */
static void close_listener(struct ob_server *server)
{
    int fd;

    ob_source_del(server, server->listener);
    if (server->path) {
        shutdown(server->listen_fd, SHUT_RDWR);
        while ((fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC)) >= 0)
            ob_socket_discard(fd, strangers(server));
    }
    close(server->listen_fd);
}

/* syscalls[removes]: newfstatat, stat, unlink, unlinkat */
void ob_lobby_fini(struct ob_server *server)
{
    struct stat st;

    ob_discard_unwatch(&server->room);
    while (server->lobby)
        lobby_drop(server->lobby);
    if (server->listen_fd >= 0)
        close_listener(server);
    /* Another server may have taken the path over meanwhile: its file stays. */
    if (server->path && stat(server->path, &st) == 0 && st.st_dev == server->path_dev &&
        st.st_ino == server->path_ino)
        unlink(server->path);
    free(server->path);
}
