/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Coming back: the thread that looks for the server again. See memo.h for the theory. It exists
 * only while the client is INTERRUPTED (and until the embedder was told that this is over).
 *
 * What passes (nobody listens yet, the server is busy, short of memory or descriptors, or dies
 * again) is tried again until reconnect_ms are over. What will not pass (another device, fewer
 * abilities, a refusal of what was set up before: ob_err_is_final()) ends it at once.
 */
#include "client/memo.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DELAY_MIN_MS 5
#define DELAY_MAX_MS 250
/* A connection that lived shorter counts as an attempt that failed: no busy circle. */
#define STABLE_NS    1000000000
/* ob_client_shutdown() waits for one connect() at most. */
#define CONNECT_MS   100

enum outcome { BACK, AGAIN, NEVER };

enum ob_client_state ob_client_state(struct ob_client *c)
{
    return (enum ob_client_state)c->state;
}

static void set_state_locked(struct ob_client *c, enum ob_client_state state)
{
    c->state = state;
    pthread_cond_broadcast(&c->memo->changed);
}

/* Sleeps until something changed, or the time has come. Whether it has not. */
static bool sleep_locked(struct ob_client *c, int64_t until_ns)
{
    struct timespec until = { until_ns / 1000000000, until_ns % 1000000000 };

    if (until_ns == OB_NO_DEADLINE)
        return pthread_cond_wait(&c->memo->changed, &c->lock) == 0;
    return pthread_cond_timedwait(&c->memo->changed, &c->lock, &until) == 0;
}

int ob_client_await(struct ob_client *c, int timeout_ms)
{
    int64_t until_ns = ob_deadline_ns(timeout_ms);
    int rc = 0;

    if (ob_client_in_callback(c))
        return -EDEADLK;
    ob_client_lock(c);
    while (c->state == OB_CLIENT_INTERRUPTED && rc == 0)
        if (!sleep_locked(c, until_ns) && c->state == OB_CLIENT_INTERRUPTED)
            rc = -ETIMEDOUT;
    if (c->state == OB_CLIENT_LOST)
        rc = -ENOTCONN;
    ob_client_unlock(c);
    return rc;
}

void ob_client_disconnect(struct ob_client *c, const char *why)
{
    ob_client_die(c, "%s", why);
}

void ob_client_stats(struct ob_client *c, struct ob_client_stats *out)
{
    ob_client_lock(c);
    *out = (struct ob_client_stats){ c->nrequests, c->nposted, c->memo ? c->memo->reconnects : 0 };
    ob_client_unlock(c);
}

/* ---- One attempt -------------------------------------------------------------------------- */

/* What the client relies on the new server must have as well; its own limits stay in force. */
static const char *lacks(const struct ob_caps *was, const struct ob_caps *is)
{
    if (is->max_msg_fds < was->max_msg_fds)
        return "it takes fewer file descriptors in a message (max_msg_fds)";
    if (is->max_data_xfer_size < was->max_data_xfer_size)
        return "it takes less data in a message (max_data_xfer_size)";
    if (is->max_dma_maps < was->max_dma_maps)
        return "it takes fewer DMA mappings (max_dma_maps)";
    if (is->pgsizes != was->pgsizes)
        return "it maps memory by other page sizes (pgsizes)";
    if (was->write_multiple && !is->write_multiple)
        return "it does not take several writes in a message (write_multiple)";
    if (was->mapped_order && !is->mapped_order)
        return "it does not keep writes and stores in order (mapped_order)";
    if (was->migration && !is->migration)
        return "it cannot migrate (migration)";
    return NULL;
}

/* What this thread asks of n is answered by then, or not at all. */
static void limit(struct ob_client *n, int64_t until_ns)
{
    ob_client_lock(n);
    n->limit_thread = pthread_self();
    if (!n->limit_ns || until_ns < n->limit_ns)
        n->limit_ns = until_ns;
    ob_client_unlock(n);
}

/* A connection to whoever is there now. end_ns: of all attempts. */
static int connect_attempt(struct ob_client *c, int64_t end_ns, struct ob_client **out, char *why,
                           size_t size)
{
    int64_t timeout_ns = ob_deadline_ns(c->opt.timeout_ms);
    int64_t deadline_ns = timeout_ns < end_ns ? timeout_ns : end_ns;
    struct ob_client_options opt = c->opt;
    int64_t soon_ns = ob_deadline_ns(CONNECT_MS);
    int fd, rc;

    if (ob_discard_is_full(c))
        return ob_client_refuse(
            why, size, -ETOOMANYREFS,
            "more than %u descriptors that the server sent are still not closed", OB_DISCARD_MAX);
    fd = ob_socket_connect(c->memo->path, soon_ns < deadline_ns ? soon_ns : deadline_ns);
    if (fd < 0)
        return ob_client_connect_failed(c->memo->path, fd, why, size);
    opt.lost = NULL;
    opt.reconnect_ms = 0;
    opt.single_socket = !c->caps.twin_socket;
    rc = ob_client_new(fd, &opt, out);
    if (rc < 0)
        return ob_client_refuse(why, size, rc, "cannot set up the connection: %s",
                                ob_errno_text(-rc));
    (*out)->owner = c;
    (*out)->main.channel.owner = c;
    limit(*out, end_ns);
    ob_client_lock(c);
    if (c->state == OB_CLIENT_INTERRUPTED)
        c->memo->attempt = *out;
    else
        rc = -ENOTCONN;
    ob_client_unlock(c);
    return rc < 0 ? rc : ob_client_negotiate(*out, deadline_ns, why, size);
}

/* Whether it is the device that was there; id is filled in. */
static enum outcome recognise(struct ob_client *c, struct ob_client *n, struct ob_identity *id,
                              char *why, size_t size)
{
    const char *lacking = lacks(&c->caps, &n->caps), *differs;
    char text[160];
    int rc = ob_identity_ask(n, id);

    if (rc < 0) {
        ob_client_refuse(why, size, rc, "it does not say what device it is: %s",
                         ob_client_dead(n) ? n->why : ob_strerror(rc, text, sizeof(text)));
        return ob_err_is_final(rc) ? NEVER : AGAIN;
    }
    differs = ob_identity_differs(&c->memo->identity, id, text, sizeof(text));
    if (differs) {
        ob_client_refuse(why, size, 0, "another device answers: %s", differs);
        return NEVER;
    }
    if (lacking) {
        ob_client_refuse(why, size, 0, "it cannot take over: %s", lacking);
        return NEVER;
    }
    if (c->caps.twin_socket && !n->caps.twin_socket) { /* it may be short of descriptors for now */
        ob_client_refuse(why, size, 0, "it cannot take over: it makes no second socket");
        return AGAIN;
    }
    return BACK;
}

/* The sockets of n become those of c, and what the old ones left under way is forgotten. */
static int take_sockets_locked(struct ob_client *c, struct ob_client *n)
{
    int rc = ob_client_rewatch(c, n);

    if (rc < 0)
        return rc;
    ob_channel_move(&c->main.channel, &n->main.channel);
    if (n->twin.channel.fd >= 0)
        ob_channel_move(&c->twin.channel, &n->twin.channel);
    ob_ring_move_locked(c, n);
    c->main.wants_output = c->twin.wants_output = false;
    ob_client_want_output_locked(c, &c->main);
    ob_client_want_output_locked(c, &c->twin);
    c->nlate = c->nbatch = 0;
    c->fd_replies = 0;
    c->fds_pass = atomic_load(&n->fds_pass); /* the socket is as n has left it */
    c->dma_maps = n->dma_maps;
    c->eager = OB_CLIENT_EAGER;
    return 0;
}

/* Should this fail, the client is INTERRUPTED again, and they are still there. */
static void repeat_posted_locked(struct ob_client *c)
{
    const struct ob_memo *s = c->memo;

    for (unsigned i = 0; i < s->nwrites && !ob_client_dead(c); i++) {
        const struct ob_memo_write *w = &s->writes[i];
        const struct ob_wire_region_access wire = { w->offset, w->region, w->count };

        if (w->number > s->taken)
            ob_client_post_locked(c, &wire, w->data);
    }
}

/* A call that sets up has waited for a while: if for an attempt that restores, that one ends. */
static void disturb_locked(struct ob_client *c)
{
    struct ob_memo *s = c->memo;

    if (!s->restoring || ob_client_dead(s->attempt))
        return;
    ob_client_shutdown(s->attempt, "it took too long");
    pthread_cond_broadcast(&s->changed); /* adopt() may be waiting */
    s->patience_ms *= 2;
    if (s->patience_ms > OB_MEMO_PATIENCE_MAX_MS)
        s->patience_ms = OB_MEMO_PATIENCE_MAX_MS;
}

/*
 * Whoever finds the device being set up again waits a moment, as that mostly takes no longer; then
 * the server counts as hanging, and what is to be changed is noted for the next attempt. The moment
 * grows, so that the attempt that needs more time gets it.
 */
void ob_setup_take(struct ob_client *c)
{
    struct ob_memo *s = c->memo;

    ob_client_lock(c);
    for (int64_t until_ns = 0; s->setup;) {
        if (!until_ns)
            until_ns = ob_deadline_ns((int)s->patience_ms);
        if (!sleep_locked(c, until_ns)) {
            disturb_locked(c);
            until_ns = 0;
        }
    }
    s->setup = true;
    ob_client_unlock(c);
}

void ob_setup_give(struct ob_client *c)
{
    ob_client_lock(c);
    c->memo->setup = false;
    pthread_cond_broadcast(&c->memo->changed);
    ob_client_unlock(c);
}

static void set_restoring(struct ob_client *c, bool restoring)
{
    ob_client_lock(c);
    c->memo->restoring = restoring;
    ob_client_unlock(c);
}

/* The client goes on with n's connection, once nobody receives on the old one, or looks at its
 * ring. */
static enum outcome adopt(struct ob_client *c, struct ob_client *n, char *why, size_t size)
{
    enum outcome outcome = NEVER;
    int rc = 0;

    ob_client_lock(c);
    while (c->state == OB_CLIENT_INTERRUPTED && (c->role_taken || c->looking > 0) &&
           !ob_client_dead(n))
        sleep_locked(c, OB_NO_DEADLINE);
    if (c->state == OB_CLIENT_INTERRUPTED) {
        rc = ob_client_dead(n) ? -ENOTCONN : take_sockets_locked(c, n);
        if (rc < 0)
            ob_client_refuse(why, size, rc, "the connection broke again: %s", ob_errno_text(-rc));
        outcome = rc < 0 ? AGAIN : BACK;
    }
    if (outcome == BACK) {
        c->memo->reconnects++;
        c->memo->reset_due = false;
        c->memo->patience_ms = OB_MEMO_PATIENCE_MS;
        c->memo->resumed_ns = ob_now_ns();
        c->told = false;
        set_state_locked(c, OB_CLIENT_CONNECTED);
        ob_memo_catch_up_locked(c);
        repeat_posted_locked(c);
        ob_client_rearm_locked(c);
    }
    ob_client_unlock(c);
    return outcome;
}

static enum outcome set_up(struct ob_client *c, struct ob_client *n, char *why, size_t size)
{
    struct ob_memo *s = c->memo;
    struct ob_identity id = { 0 };
    enum outcome outcome = recognise(c, n, &id, why, size);
    int rc;

    if (outcome == BACK) {
        ob_setup_take(c);
        set_restoring(c, true);
        limit(n, ob_deadline_ns(c->opt.timeout_ms));
        rc = ob_memo_restore(c, n, why, size);
        if (rc < 0)
            outcome = s->broken || ob_err_is_final(rc) ? NEVER : AGAIN;
        else
            outcome = adopt(c, n, why, size);
        if (outcome == BACK) {
            struct ob_region_info *old = s->identity.regions;
            s->identity.regions = id.regions;
            id.regions = old;
        }
        set_restoring(c, false);
        ob_setup_give(c);
    }
    ob_identity_fini(&id);
    return outcome;
}

static enum outcome attempt(struct ob_client *c, int64_t deadline_ns, char *why, size_t size)
{
    struct ob_client *n = NULL;
    enum outcome outcome = AGAIN;

    if (connect_attempt(c, deadline_ns, &n, why, size) == 0 && n)
        outcome = set_up(c, n, why, size);
    ob_client_lock(c);
    c->memo->attempt = NULL;
    ob_client_unlock(c);
    ob_client_free(n);
    return outcome;
}

/* ---- The thread --------------------------------------------------------------------------- */

/* Waits before an attempt, longer each time. Whether there is to be one. */
static bool pause_locked(struct ob_client *c, int64_t deadline_ns)
{
    struct ob_memo *s = c->memo;
    int64_t until_ns = ob_deadline_ns((int)s->delay_ms);

    s->delay_ms = s->delay_ms ? s->delay_ms * 2 : DELAY_MIN_MS;
    if (s->delay_ms > DELAY_MAX_MS)
        s->delay_ms = DELAY_MAX_MS;
    if (until_ns > deadline_ns)
        until_ns = deadline_ns;
    while (c->state == OB_CLIENT_INTERRUPTED && ob_now_ns() < until_ns)
        sleep_locked(c, until_ns);
    return c->state == OB_CLIENT_INTERRUPTED;
}

/* Why this connection cannot be continued at all, or NULL. */
static const char *hopeless_locked(const struct ob_client *c)
{
    if (c->log_page_size || c->migrating)
        return "the device was migrating";
    return NULL;
}

static void give_up(struct ob_client *c, const char *why)
{
    ob_client_lock(c);
    if (c->state == OB_CLIENT_INTERRUPTED) {
        snprintf(c->why, sizeof(c->why), "%s; %s", c->memo->why, why);
        set_state_locked(c, OB_CLIENT_LOST);
        c->lost_due = c->opt.lost != NULL;
        c->told = false; /* the embedder's loop ends as well */
        ob_client_rearm_locked(c);
    }
    ob_client_unlock(c);
}

/* Tries until the server is back, or will not be. */
static void come_back(struct ob_client *c)
{
    int64_t deadline_ns = ob_deadline_ns(c->opt.reconnect_ms);
    char why[OB_CLIENT_WHY_MAX + 64] = "", last[OB_CLIENT_WHY_MAX] = "";
    enum outcome outcome = AGAIN;
    const char *hopeless;
    bool shut_down;

    ob_client_lock(c);
    if (ob_now_ns() - c->memo->resumed_ns > STABLE_NS)
        c->memo->delay_ms = 0;
    hopeless = hopeless_locked(c);
    while (!hopeless && outcome == AGAIN && pause_locked(c, deadline_ns) &&
           (ob_now_ns() < deadline_ns || !*last)) {
        ob_client_unlock(c);
        outcome = attempt(c, deadline_ns, last, sizeof(last));
        ob_client_lock(c);
    }
    shut_down = c->state == OB_CLIENT_LOST;
    ob_client_unlock(c);
    if (outcome == BACK) {
        if (c->opt.resumed && !shut_down)
            c->opt.resumed(c->opt.opaque);
        return;
    }
    if (outcome == AGAIN && !hopeless)
        snprintf(why, sizeof(why), "it did not come back within %d ms: %s", c->opt.reconnect_ms,
                 last);
    give_up(c, hopeless ? hopeless : outcome == AGAIN ? why : last);
}

static void *run(void *opaque)
{
    struct ob_client *c = opaque;
    struct ob_memo *s = c->memo;
    char why[OB_CLIENT_WHY_MAX];

    ob_client_lock(c);
    do {
        bool untold = s->again;

        s->again = false;
        memcpy(why, s->why, sizeof(why));
        ob_client_unlock(c);
        if (untold && c->opt.interrupted)
            c->opt.interrupted(c->opt.opaque, why);
        come_back(c);
        ob_client_lock(c);
    } while (s->again);
    s->running = false;
    pthread_cond_broadcast(&s->changed);
    ob_client_unlock(c);
    return NULL;
}

void ob_reconnect_start(struct ob_client *c)
{
    char why[128];
    int rc = 0;

    ob_client_lock(c);
    if (c->state == OB_CLIENT_INTERRUPTED && !c->memo->running) {
        rc = ob_thread_start(run, c);
        c->memo->running = rc == 0;
    }
    ob_client_unlock(c);
    if (rc != 0) {
        snprintf(why, sizeof(why), "there is no thread to reconnect: %s", ob_errno_text(-rc));
        give_up(c, why);
    }
}

void ob_reconnect_end(struct ob_client *c)
{
    ob_client_lock(c);
    while (c->memo->running)
        sleep_locked(c, OB_NO_DEADLINE);
    ob_client_unlock(c);
}
