/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The receive role: who reads the socket, and how the role moves. See internal.h for the theory.
 */
#include "client/memo.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

int ob_client_flush_locked(struct ob_client *c, struct ob_socket *s)
{
    int rc = ob_client_dead(c) ? 0 : ob_channel_flush(&s->channel);

    if (rc < 0)
        rc = ob_client_send_failed_locked(c, rc);
    else if (rc == 1 && s == &c->main)
        rc = ob_client_end_batch_locked(c);
    ob_client_want_output_locked(c, s);
    return rc < 0 ? rc : 0;
}

/* adopt() waits until nobody receives, or looks at the ring. */
static void tell_adopt_locked(struct ob_client *c)
{
    if (c->state == OB_CLIENT_INTERRUPTED)
        pthread_cond_broadcast(&c->memo->changed);
}

/* Hands the role to the thread that has slept longest, or lays it down. */
static void release_role_locked(struct ob_client *c)
{
    struct ob_waiter *heir = c->sleepers;

    while (heir && heir->request->done)
        heir = heir->next;
    c->role_taken = heir != NULL;
    tell_adopt_locked(c);
    if (heir) {
        heir->has_role = true;
        pthread_cond_signal(&heir->wake);
    }
}

/* Looks at the main socket between two at the twin, over which mostly little comes. After a command
 * it gets every second one, for so many polls. */
#define SPIN_TWIN_EVERY 16
#define TWIN_BUSY       64
/* Likewise at the ring, before the first at a socket. */
#define RING_LOOKS      32

static void receive_failed(struct ob_client *c, int rc, bool torn)
{
    if (rc == -ECONNRESET)
        ob_client_die(c, torn ? "the server closed the connection in the middle of a message"
                              : "the server closed the connection");
    else if (rc == -EPROTO)
        ob_client_die(c, "the server sent a message that claims to be shorter than its header");
    else if (rc == -ETOOMANYREFS)
        ob_client_die(c, "more than %u descriptors that the server sent are still not closed",
                      OB_DISCARD_MAX);
    else
        ob_client_die(c, "the connection broke while receiving: %s", ob_errno_text(-rc));
}

/* Handles a message that is no reply to us. Takes it. Returns whether the stream goes on. */
static bool take_other(struct ob_client *c, struct ob_socket *s, struct ob_msg *msg)
{
    uint32_t type = msg->hdr.flags & OB_HDR_TYPE_MASK;

    if (type == OB_HDR_COMMAND) {
        ob_client_serve(c, s, msg);
        return true;
    }
    if (type == OB_HDR_REPLY)
        ob_client_die(c, "the server sent a reply over the second socket");
    else
        ob_client_die(c, "the server sent a message that is neither command nor reply (flags 0x%x)",
                      msg->hdr.flags);
    ob_msg_free(msg);
    return false;
}

/* Handles a message, with the lock held after it. The same otherwise. */
static bool take_message_and_lock(struct ob_client *c, struct ob_socket *s, struct ob_msg *msg)
{
    bool goes_on = true;

    /* error replies of the vfio-user crate up to 0.1.3 say that they are commands. */
    if ((msg->hdr.flags & (OB_HDR_TYPE_MASK | OB_HDR_ERROR)) == (OB_HDR_COMMAND | OB_HDR_ERROR))
        msg->hdr.flags |= OB_HDR_REPLY;
    if (s == &c->main && (msg->hdr.flags & OB_HDR_TYPE_MASK) == OB_HDR_REPLY) {
        ob_client_lock(c);
        ob_request_complete_locked(c, msg);
    } else {
        if (s == &c->twin)
            c->twin_busy = TWIN_BUSY;
        goes_on = take_other(c, s, msg);
        ob_client_lock(c);
    }
    return goes_on;
}

/* The end of the twin is the end of the connection: the main socket takes nothing more from the
 * server, and ends when what it has sent before was read. */
static void twin_ended(struct ob_client *c)
{
    epoll_ctl(c->socket_epoll, EPOLL_CTL_DEL, c->twin.channel.fd, NULL);
    shutdown(c->main.channel.fd, SHUT_RD);
}

/* While no reply is under way that may have fds, none are taken. Called while c->reading is odd, so
 * nobody begins to wait for such a reply meanwhile. */
static void choose_fds(struct ob_client *c)
{
    if (atomic_load(&c->fd_replies) > 0)
        c->main.channel.expects = OB_FDS_TAKEN;
    else if (atomic_load_explicit(&c->fds_pass, memory_order_relaxed)) {
        atomic_store_explicit(&c->fds_pass, false, memory_order_relaxed);
        ob_channel_refuse_fds(&c->main.channel);
    }
}

/* Takes one message from the socket; NULL: no whole one is there, or the stream has ended. Called
 * with the role, without the lock. */
static struct ob_msg *next_message(struct ob_client *c, struct ob_socket *s)
{
    bool many = atomic_load_explicit(&c->npending, memory_order_relaxed) >= OB_CLIENT_BULK;
    bool fdless = s == &c->main && c->twin.channel.fd >= 0;
    unsigned reading = atomic_load_explicit(&c->reading, memory_order_relaxed);
    struct ob_msg *msg;
    int rc;

    if (c->ready)
        s->channel.ahead = many ? OB_AHEAD_BULK : OB_AHEAD_CLIENT;
    if (fdless) {
        atomic_store(&c->reading, reading + 1);
        choose_fds(c);
    }
    rc = ob_channel_recv(&s->channel, &msg);
    if (fdless)
        atomic_store_explicit(&c->reading, reading + 2, memory_order_release);
    if (rc == -ECONNRESET && s == &c->twin)
        twin_ended(c);
    else if (rc < 0)
        receive_failed(c, rc, s->channel.in_got > 0);
    return rc > 0 ? msg : NULL;
}

/* Takes one message, and handles it. Returns whether there was one, and the stream goes on. */
static bool receive_one(struct ob_client *c, struct ob_socket *s)
{
    struct ob_msg *msg = next_message(c, s);
    bool goes_on = false;

    if (msg) {
        goes_on = take_message_and_lock(c, s, msg);
        ob_client_unlock(c);
    }
    return goes_on;
}

static int ms_until(int64_t deadline_ns)
{
    int64_t ms;

    if (deadline_ns == OB_NO_DEADLINE)
        return -1;
    ms = (deadline_ns - ob_now_ns() + 999999) / 1000000;
    return ms < 0 ? 0 : ms > INT_MAX ? INT_MAX : (int)ms;
}

static bool is_ready(const struct ob_client *c)
{
    return ob_channel_ready(&c->main.channel) || ob_channel_ready(&c->twin.channel);
}

/* Handles messages that were read along with others: no epoll tells of them. */
static void take_ready(struct ob_client *c)
{
    while (!ob_client_dead(c) && ob_channel_ready(&c->main.channel) && receive_one(c, &c->main))
        ;
    while (!ob_client_dead(c) && ob_channel_ready(&c->twin.channel) && receive_one(c, &c->twin))
        ;
}

/* Waits for the sockets and handles one message. The lock is dropped meanwhile. */
static void receive_locked(struct ob_client *c, int64_t deadline_ns)
{
    struct epoll_event event = { .events = 0 };

    ob_client_hook_locked(c);
    if (ob_client_dead(c))
        return;
    ob_client_unlock(c);
    if (epoll_wait(c->socket_epoll, &event, 1, ms_until(deadline_ns)) == 1 &&
        (event.events & ~(uint32_t)EPOLLOUT))
        receive_one(c, event.data.ptr);
    take_ready(c);
    ob_client_lock(c);
    if (event.events & EPOLLOUT)
        ob_client_flush_locked(c, event.data.ptr);
}

/* Whether the result is there, if it is to be looked for in the ring: longer at first, as it comes
 * soon; what does not may be waiting for the answer to a command of the server. */
static bool look_at_ring(const struct ob_request *req, bool first)
{
    for (unsigned i = first ? 0 : RING_LOOKS - 1; i < RING_LOOKS && req->entry; i++) {
        if (ob_ring_done(req) || req->done)
            return true;
        ob_ring_relax();
    }
    return false;
}

/* The next message by polling, until then; *s says over which socket. NULL: none came, but perhaps
 * the result. */
static struct ob_msg *poll_message(struct ob_client *c, const struct ob_request *req,
                                   struct ob_socket **s, int64_t until_ns, bool shared)
{
    bool has_twin = c->twin.channel.fd >= 0;
    unsigned every = c->twin_busy ? 2 : SPIN_TWIN_EVERY;

    if (c->twin_busy)
        c->twin_busy--;
    for (unsigned i = 1; !ob_client_dead(c) && !look_at_ring(req, i == 1); i++) {
        struct ob_msg *msg;

        *s = has_twin && i % every == 0 ? &c->twin : &c->main;
        msg = next_message(c, *s);
        if (msg)
            return msg;
        if (ob_now_ns() >= until_ns)
            break;
        ob_spin_relax(&c->spin, i, shared);
    }
    return NULL;
}

/* The start of a wait: polls the sockets for a while, and handles what comes, until the request is
 * done. The lock is dropped meanwhile. */
static void spin_locked(struct ob_client *c, struct ob_request *req)
{
    int64_t limit_ns = c->main.wants_output ? 0 : ob_spin_begin(&c->spin);
    int64_t until_ns = req->start_ns + limit_ns;
    bool shared = c->shared > 0, goes_on = true;

    if (limit_ns == 0)
        return;
    if (until_ns > req->deadline_ns)
        until_ns = req->deadline_ns;
    while (!req->done && goes_on) {
        struct ob_socket *s;
        struct ob_msg *msg;

        ob_client_unlock(c);
        msg = poll_message(c, req, &s, until_ns, shared);
        if (msg)
            goes_on = take_message_and_lock(c, s, msg);
        else
            ob_client_lock(c);
        ob_ring_complete_locked(c, req);
        /* Who always has more for us must not keep us from our deadline. */
        if (!msg || (!req->done && ob_now_ns() >= until_ns))
            goes_on = false;
    }
    if (is_ready(c)) {
        ob_client_unlock(c);
        take_ready(c);
        ob_client_lock(c);
    }
    ob_spin_end();
}

/* Several threads may have one CPU, and results of the ring come sooner than anybody looks up. */
static void take_turns_locked(struct ob_client *c)
{
    if (++c->turns < OB_CLIENT_TURNS)
        return;
    c->turns = 0;
    ob_client_unlock(c);
    sched_yield();
    ob_client_lock(c);
}

/* The same for a thread without the role. */
static void yield_locked(struct ob_client *c, struct ob_request *req)
{
    int64_t until_ns = c->spin_pays ? ob_now_ns() + c->spin.budget_ns : 0;

    if (until_ns > req->deadline_ns)
        until_ns = req->deadline_ns;
    c->looking++;
    ob_client_unlock(c);
    while (!req->done && !ob_ring_done(req) && c->role_taken && ob_now_ns() < until_ns)
        sched_yield();
    ob_client_lock(c);
    if (--c->looking == 0)
        tell_adopt_locked(c);
    ob_ring_complete_locked(c, req);
}

/* Sleeps until another thread has completed the request or handed over the role, or until the
 * deadline. */
static void sleep_locked(struct ob_client *c, struct ob_waiter *w, struct ob_request *req)
{
    struct timespec until = { .tv_sec = req->deadline_ns / 1000000000,
                              .tv_nsec = req->deadline_ns % 1000000000 };
    struct ob_waiter **link = &c->sleepers;
    int rc = 0;

    pthread_cond_init(&w->wake, &c->monotonic);
    while (*link)
        link = &(*link)->next;
    *link = w;
    req->waiter = w;
    while (!req->done && !w->has_role && rc != ETIMEDOUT) {
        if (req->deadline_ns == OB_NO_DEADLINE)
            pthread_cond_wait(&w->wake, &c->lock);
        else
            rc = pthread_cond_timedwait(&w->wake, &c->lock, &until);
    }
    req->waiter = NULL;
    for (link = &c->sleepers; *link != w; link = &(*link)->next)
        ;
    *link = w->next;
    w->next = NULL;
    pthread_cond_destroy(&w->wake);
}

void ob_client_wait_locked(struct ob_client *c, struct ob_request *req)
{
    struct ob_waiter w = { .request = req };
    bool received = false, slept = false, yielded = false;
    int64_t now_ns;

    while (!req->done) {
        if (!c->role_taken) {
            c->role_taken = true;
            w.has_role = true;
        }
        if (!w.has_role && !yielded) {
            yielded = true;
            yield_locked(c, req);
        } else if (w.has_role && !received) {
            received = true;
            ob_client_quiet_locked(c);
            spin_locked(c, req);
        } else if (req->entry) {
            ob_ring_ask_locked(c, req);
        } else if (!w.has_role) {
            sleep_locked(c, &w, req);
        } else {
            slept = true;
            receive_locked(c, req->deadline_ns);
        }
        if (!req->done && !req->entry && ob_now_ns() >= req->deadline_ns)
            ob_request_expire_locked(c, req);
    }
    now_ns = ob_now_ns();
    if (w.has_role) {
        ob_spin_learn(&c->spin, now_ns - req->start_ns);
        c->spin_pays = c->spin.score > 0 && c->spin.paused == 0;
        ob_client_unhook_locked(c, slept);
        release_role_locked(c);
    }
    ob_client_wait_ended_locked(c, now_ns);
    if (c->shared > 0 && !yielded)
        take_turns_locked(c);
}

/* Takes some of what has come over the socket. */
static void step_socket_locked(struct ob_client *c, struct ob_socket *s)
{
    for (unsigned i = 0; (i < OB_CLIENT_STEP_MAX || is_ready(c)) && !ob_client_dead(c); i++) {
        bool more;
        ob_client_unlock(c);
        more = receive_one(c, s);
        ob_client_lock(c);
        if (!more)
            break;
    }
}

int ob_client_step(struct ob_client *c)
{
    bool has_twin, mine;
    unsigned ncommands;
    int rc;

    ob_client_lock(c);
    has_twin = c->twin.channel.fd >= 0;
    ob_client_flush_locked(c, &c->main);
    if (has_twin)
        ob_client_flush_locked(c, &c->twin);
    ob_client_tick_locked(c);
    ncommands = c->ncommands;
    mine = !ob_client_dead(c) && !c->role_taken;
    if (mine) {
        c->role_taken = true;
        step_socket_locked(c, &c->main);
        if (has_twin)
            step_socket_locked(c, &c->twin);
        release_role_locked(c);
    }
    rc = c->state == OB_CLIENT_LOST ? -ENOTCONN : 0;
    if (ob_client_dead(c))
        c->told = true;
    if (c->ncommands != ncommands)
        c->eager = OB_CLIENT_EAGER;
    if (!c->ticking || c->eager || ob_client_dead(c))
        ob_client_rearm_locked(c);
    ob_client_unlock(c);
    return rc;
}
