/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The life of a connection: made, negotiated, dead, freed. It dies once, for the first reason
 * that is found; from then on nothing waits any more. The socket is shut down at once, so that
 * the server notices and no thread stays in poll(); it is closed by ob_client_free().
 */
#include "client/memo.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

void ob_client_lock(struct ob_client *c)
{
    pthread_mutex_lock(&c->lock);
}

/* What is called, if anything, is decided with the lock held: ob_client_shutdown() prevents it, or
 * comes too late. */
void ob_client_unlock(struct ob_client *c)
{
    bool lost_due = c->lost_due, again = c->state == OB_CLIENT_INTERRUPTED;
    char why[OB_CLIENT_WHY_MAX];

    c->lost_due = false;
    if (lost_due && again)
        memcpy(why, c->memo->why, sizeof(why));
    pthread_mutex_unlock(&c->lock);
    if (!lost_due)
        return;
    if (again) {
        if (c->opt.interrupted)
            c->opt.interrupted(c->opt.opaque, why);
        ob_reconnect_start(c); /* only now, so that resumed cannot come first */
    } else if (c->opt.lost) {
        c->opt.lost(c->opt.opaque, c->why);
    }
}

/* With a memo and a thread that still reports the last return, that one goes on from here. */
static void report_locked(struct ob_client *c)
{
    if (c->memo && c->memo->running)
        c->memo->again = true;
    else
        c->lost_due = true;
}

static void end_locked(struct ob_client *c, enum ob_client_state state)
{
    c->state = state;
    if (c->memo) {
        c->dma_maps = 0;
        pthread_cond_broadcast(&c->memo->changed);
    }
    /* First, as what a server puts into the ring when it has found the end is no answer. */
    ob_request_abort_all_locked(c);
    shutdown(c->main.channel.fd, SHUT_RDWR);
    if (c->twin.channel.fd >= 0)
        shutdown(c->twin.channel.fd, SHUT_RDWR);
}

int ob_client_die_locked(struct ob_client *c, const char *fmt, ...)
{
    va_list ap;

    if (ob_client_dead(c))
        return -ENOTCONN;
    va_start(ap, fmt);
    vsnprintf(c->memo ? c->memo->why : c->why, OB_CLIENT_WHY_MAX, fmt, ap);
    va_end(ap);
    end_locked(c, c->memo ? OB_CLIENT_INTERRUPTED : OB_CLIENT_LOST);
    if (c->made)
        report_locked(c);
    return -ENOTCONN;
}

int ob_client_die(struct ob_client *c, const char *fmt, ...)
{
    char why[OB_CLIENT_WHY_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(why, sizeof(why), fmt, ap);
    va_end(ap);
    ob_client_lock(c);
    ob_client_die_locked(c, "%s", why);
    ob_client_unlock(c);
    return -ENOTCONN;
}

int ob_client_send_failed_locked(struct ob_client *c, int rc)
{
    if (ob_channel_is_gone(rc))
        return ob_client_die_locked(c, "the server closed the connection");
    return ob_client_die_locked(c, "the connection broke while sending: %s", ob_errno_text(-rc));
}

/* NOLINTNEXTLINE(misc-no-recursion): an attempt has no attempt of its own */
void ob_client_shutdown(struct ob_client *c, const char *why)
{
    ob_client_lock(c);
    if (c->state != OB_CLIENT_LOST) {
        snprintf(c->why, sizeof(c->why), "%s", why);
        end_locked(c, OB_CLIENT_LOST);
        c->lost_due = false;
        if (c->memo)
            c->memo->again = false;
        if (c->memo && c->memo->attempt)
            ob_client_shutdown(c->memo->attempt, why);
    }
    ob_client_unlock(c);
}

bool ob_client_connected(const struct ob_client *c)
{
    return !ob_client_dead(c);
}

const char *ob_client_error(const struct ob_client *c)
{
    return c->state == OB_CLIENT_LOST ? c->why : NULL;
}

const struct ob_caps *ob_client_caps(const struct ob_client *c)
{
    return &c->caps;
}

int ob_client_fd(const struct ob_client *c)
{
    return c->loop_epoll;
}

uint32_t ob_client_xfer_max(const struct ob_client *c)
{
    return c->caps.max_data_xfer_size < OB_DATA_XFER_MAX ? c->caps.max_data_xfer_size
                                                         : OB_DATA_XFER_MAX;
}

/* the vfio-user crate's server takes the payload of a command that it does not know for the
 * next message. It says `migration` like others that know these commands, but takes one fd only. */
bool ob_client_may_ask(const struct ob_client *c)
{
    return c->caps.max_msg_fds > 1;
}

uint64_t ob_client_page_size(const struct ob_client *c)
{
    return c->caps.pgsizes & -c->caps.pgsizes;
}

void ob_client_free(struct ob_client *c)
{
    if (!c)
        return;
    if (c->memo) {
        ob_client_shutdown(c, "the client was freed");
        ob_reconnect_end(c);
        ob_memo_free(c->memo);
    }
    ob_channel_fini(&c->main.channel);
    if (c->twin.channel.fd >= 0)
        ob_channel_fini(&c->twin.channel);
    ob_ring_unmap(c);
    if (c->socket_epoll >= 0)
        close(c->socket_epoll);
    if (c->loop_epoll >= 0)
        close(c->loop_epoll);
    if (c->timer_fd >= 0)
        close(c->timer_fd);
    pthread_mutex_destroy(&c->lock);
    pthread_condattr_destroy(&c->monotonic);
    free(c);
}

/* ---- Making one --------------------------------------------------------------------------- */

/* Fills in what opt leaves open. */
static void copy_options(struct ob_client_options *out, const struct ob_client_options *opt)
{
    *out = (struct ob_client_options)OB_CLIENT_OPTIONS_INIT;
    if (opt)
        memcpy(out, opt, opt->size < sizeof(*out) ? opt->size : sizeof(*out));
    if (out->spin_us > OB_SPIN_US_MAX)
        out->spin_us = OB_SPIN_US_MAX;
    if (out->timeout_ms == 0)
        out->timeout_ms = OB_CLIENT_TIMEOUT_MS;
}

int ob_client_new(int fd, const struct ob_client_options *opt, struct ob_client **out)
{
    struct ob_client *c = calloc(1, sizeof(*c));
    int rc;

    if (!c) {
        ob_socket_discard(fd, NULL);
        return -ENOMEM;
    }
    c->twin.channel.fd = c->socket_epoll = c->loop_epoll = c->timer_fd = -1;
    rc = ob_channel_init(&c->main.channel, fd, OB_PAYLOAD_MAX);
    if (rc < 0) {
        free(c);
        return rc;
    }
    c->main.channel.owner = c;
    c->fds_pass = true;
    c->opt = *opt;
    ob_spin_init(&c->spin, opt->spin_us, 0);
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_init(&c->monotonic);
    pthread_condattr_setclock(&c->monotonic, CLOCK_MONOTONIC);
    rc = ob_client_loop_init(c);
    if (rc < 0)
        ob_client_free(c);
    else
        *out = c;
    return rc;
}

/* Takes the second socket that the server sent along; a sentence on failure, else NULL. */
static const char *take_twin(struct ob_client *c, struct ob_msg *msg)
{
    int fd = ob_msg_claim_fd(msg, (unsigned)c->caps.twin_fd_index);
    struct ob_channel twin;

    if (fd < 0)
        return "it speaks of a second socket, and sends none";
    if (!ob_fd_is_unix_socket(fd)) {
        ob_fd_discard(fd, msg->owner);
        return "its second socket is no stream socket";
    }
    if (ob_channel_init(&twin, fd, OB_PAYLOAD_MAX) < 0)
        return "its second socket is no stream socket";
    twin.owner = msg->owner;
    ob_client_lock(c); /* end_locked() looks for it */
    ob_channel_move(&c->twin.channel, &twin);
    ob_client_unlock(c);
    return ob_client_watch(c, &c->twin) < 0 ? "its second socket cannot be watched" : NULL;
}

/* Reads the server's half of the negotiation; a sentence on failure, else NULL. */
static const char *take_version(struct ob_client *c, struct ob_msg *msg)
{
    struct ob_wire_version version;
    struct ob_cursor cur;
    const char *why;

    ob_cursor_init(&cur, msg->payload, msg->len);
    if (!ob_cursor_get(&cur, &version, sizeof(version)))
        return "its version is cut off";
    if (version.major != OB_VERSION_MAJOR || version.minor > OB_VERSION_MINOR)
        return "it speaks another version of the protocol";
    if (ob_caps_parse(cur.data + cur.pos, ob_cursor_left(&cur), true, &c->caps, &why) < 0)
        return why;
    if (c->caps.max_data_xfer_size == 0)
        return "it takes no data (max_data_xfer_size is 0)";
    if (c->caps.twin_socket && c->opt.single_socket)
        return "it insists on a second socket";
    return c->caps.twin_socket ? take_twin(c, msg) : NULL;
}

int ob_client_refuse(char *errbuf, size_t size, int rc, const char *fmt, ...)
{
    va_list ap;

    if (errbuf && size) {
        va_start(ap, fmt);
        vsnprintf(errbuf, size, fmt, ap);
        va_end(ap);
    }
    return rc;
}

/* The sentence for a VERSION request that failed with rc. */
static int negotiation_failed(const struct ob_client *c, int rc, char *errbuf, size_t size)
{
    char text[128];

    if (rc == -ETIMEDOUT)
        return ob_client_refuse(
            errbuf, size, rc,
            "the server did not answer within %d ms; it may be hanging, or be busy with "
            "another client",
            c->opt.timeout_ms);
    if (ob_peer_errno(rc) == EBUSY)
        return ob_client_refuse(
            errbuf, size, rc, "the server refused the connection: it is in use by another client");
    if (ob_err_class(rc) == OB_ERR_PEER)
        return ob_client_refuse(errbuf, size, rc, "the server refused the connection: %s",
                                ob_errno_text(ob_peer_errno(rc)));
    if (rc == -ENOTCONN && ob_client_dead(c))
        return ob_client_refuse(
            errbuf, size, rc,
            "%s while connecting; is it a vfio-user server, and free for a client?", c->why);
    return ob_client_refuse(errbuf, size, rc, "cannot negotiate with the server: %s",
                            ob_strerror(rc, text, sizeof(text)));
}

int ob_client_negotiate(struct ob_client *c, int64_t deadline_ns, char *errbuf, size_t size)
{
    struct ob_wire_version version = { OB_VERSION_MAJOR, OB_VERSION_MINOR };
    struct ob_caps ours;
    char json[512];
    struct ob_body body = { .fixed = &version, .fixed_len = sizeof(version), .data = json };
    struct ob_request req;
    struct ob_msg *reply;
    const char *why;
    int rc;

    ob_caps_offer(&ours);
    ours.twin_socket = !c->opt.single_socket;
    ours.ring = true;
    ob_caps_offer_migration(&ours);
    rc = ob_caps_print(&ours, false, json, sizeof(json));
    if (rc < 0)
        return ob_client_refuse(errbuf, size, rc, "cannot print the capabilities");
    body.data_len = (uint32_t)rc;
    rc = ob_request_start(c, &req, OB_CMD_VERSION, &body);
    if (rc == 0) {
        req.deadline_ns = deadline_ns;
        rc = ob_request_finish(c, &req, 0, OB_PAYLOAD_MAX, &reply);
    }
    if (rc != 0)
        return negotiation_failed(c, rc, errbuf, size);
    why = take_version(c, reply);
    if (!why && c->caps.ring)
        ob_ring_map(c, reply);
    ob_msg_free(reply);
    if (why)
        return ob_client_refuse(errbuf, size, -EPROTONOSUPPORT, "the server cannot be used: %s",
                                why);
    c->ready = true;
    return 0;
}

/* The embedder gets the client. One that has died meanwhile it does not get, nor hear of. */
static int hand_over(struct ob_client *c, char *errbuf, size_t size)
{
    ob_client_lock(c);
    c->made = !ob_client_dead(c);
    ob_client_unlock(c);
    return c->made ? 0 : negotiation_failed(c, -ENOTCONN, errbuf, size);
}

/* path: where to reconnect, or NULL. */
static int connect_on(int fd, const char *path, const struct ob_client_options *opt,
                      int64_t deadline_ns, struct ob_client **out, char *errbuf, size_t errbuf_size)
{
    struct ob_client *c;
    int rc = ob_client_new(fd, opt, &c);

    if (rc < 0)
        return ob_client_refuse(errbuf, errbuf_size, rc, "cannot set up the connection: %s",
                                ob_errno_text(-rc));
    c->limit_ns = deadline_ns; /* of all that is asked here, together */
    c->limit_thread = pthread_self();
    rc = ob_client_negotiate(c, deadline_ns, errbuf, errbuf_size);
    if (rc == 0 && path && opt->reconnect_ms > 0)
        rc = ob_memo_begin(c, path, errbuf, errbuf_size);
    ob_client_limit(c, 0);
    if (rc == 0)
        rc = hand_over(c, errbuf, errbuf_size);
    if (rc < 0)
        ob_client_free(c);
    else
        *out = c;
    return rc;
}

int ob_client_connect_failed(const char *path, int rc, char *errbuf, size_t size)
{
    struct stat st;

    switch (rc) {
    case -ENOENT:
        return ob_client_refuse(errbuf, size, rc, "there is no socket %s; is the server running?",
                                path);
    case -ECONNREFUSED:
        if (stat(path, &st) == 0 && !S_ISSOCK(st.st_mode))
            return ob_client_refuse(errbuf, size, -ENOTSOCK, "%s is not a socket", path);
        return ob_client_refuse(
            errbuf, size, rc, "nobody listens on %s any more; its server has ended, start it again",
            path);
    case -EACCES:
    case -EPERM:
        return ob_client_refuse(errbuf, size, rc, "no permission to connect to %s", path);
    case -ENAMETOOLONG:
        return ob_client_refuse(errbuf, size, rc,
                                "the path %s is too long for a socket (107 bytes at most)", path);
    case -EPROTOTYPE:
        return ob_client_refuse(errbuf, size, rc, "%s is not a stream socket", path);
    case -ETIMEDOUT:
        return ob_client_refuse(
            errbuf, size, rc,
            "the server on %s accepts no connection; it may be hanging, or be busy with "
            "another client",
            path);
    default:
        return ob_client_refuse(errbuf, size, rc, "cannot connect to %s: %s", path,
                                ob_errno_text(-rc));
    }
}

int ob_client_connect_fd(int fd, const struct ob_client_options *opt, struct ob_client **out,
                         char *errbuf, size_t errbuf_size)
{
    struct ob_client_options full;

    copy_options(&full, opt);
    if (full.reconnect_ms > 0) {
        ob_socket_discard(fd, NULL);
        return ob_client_refuse(errbuf, errbuf_size, -EINVAL,
                                "a connection that was made by somebody else cannot be made "
                                "again: reconnect_ms needs the path of a socket");
    }
    return connect_on(fd, NULL, &full, ob_deadline_ns(full.timeout_ms), out, errbuf, errbuf_size);
}

int ob_client_connect(const char *path, const struct ob_client_options *opt, struct ob_client **out,
                      char *errbuf, size_t errbuf_size)
{
    struct ob_client_options full;
    int64_t deadline_ns;
    int fd;

    copy_options(&full, opt);
    deadline_ns = ob_deadline_ns(full.timeout_ms);
    fd = ob_socket_connect(path, deadline_ns);
    if (fd < 0)
        return ob_client_connect_failed(path, fd, errbuf, errbuf_size);
    return connect_on(fd, path, &full, deadline_ns, out, errbuf, errbuf_size);
}
