/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The pending table: which requests are under way, and what becomes of them. An id is in use from
 * the sending of the request until its reply is there, also when the caller has given up waiting
 * (then it is in the late table): so no reply can ever be taken for that of another request.
 */
#include "client/memo.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

static struct ob_request **bucket_of(struct ob_client *c, uint16_t id)
{
    return &c->pending[id % OB_PENDING_BUCKETS];
}

/* The link that points to the request with that id, or to NULL. */
static struct ob_request **find_locked(struct ob_client *c, uint16_t id)
{
    struct ob_request **link = bucket_of(c, id);

    while (*link && (*link)->id != id)
        link = &(*link)->next;
    return link;
}

static struct ob_late *find_late_locked(struct ob_client *c, uint16_t id)
{
    for (unsigned i = 0; i < c->nlate; i++)
        if (c->late[i].id == id)
            return &c->late[i];
    return NULL;
}

/* There is a free one: OB_CLIENT_PENDING_MAX and OB_CLIENT_LATE_MAX are small beside 2^16. */
static uint16_t new_id_locked(struct ob_client *c)
{
    do {
        c->last_id++;
    } while (c->last_id == OB_POSTED_ID || *find_locked(c, c->last_id) ||
             find_late_locked(c, c->last_id));
    return c->last_id;
}

static void finish_locked(struct ob_request *req, int result, struct ob_msg *reply)
{
    req->done = true;
    req->result = result;
    req->reply = reply;
    if (req->waiter)
        pthread_cond_signal(&req->waiter->wake);
}

static void take_out_locked(struct ob_client *c, struct ob_request **link)
{
    ob_ring_leave_locked(c, *link);
    *link = (*link)->next;
    c->npending--;
}

/* From now on the main socket is read with fds. */
static void expect_fds_locked(struct ob_client *c)
{
    unsigned reading;

    atomic_fetch_add(&c->fd_replies, 1);
    reading = atomic_load(&c->reading);
    while ((reading & 1) && atomic_load(&c->reading) == reading)
        sched_yield();
    if (!atomic_exchange(&c->fds_pass, true))
        ob_channel_pass_fds(&c->main.channel);
}

/* The reply came, or will not come. */
static void expect_no_fds_locked(struct ob_client *c, uint16_t cmd)
{
    if (ob_reply_takes_fds(cmd))
        atomic_fetch_sub(&c->fd_replies, 1);
}

void ob_request_abort_all_locked(struct ob_client *c)
{
    for (unsigned i = 0; i < OB_PENDING_BUCKETS; i++) {
        while (c->pending[i]) {
            struct ob_request *req = c->pending[i];

            ob_ring_complete_locked(c, req); /* the server may have done it before it went */
            if (req->done)
                continue;
            take_out_locked(c, &c->pending[i]);
            finish_locked(req, -ENOTCONN, NULL);
        }
    }
}

void ob_request_expire_locked(struct ob_client *c, struct ob_request *req)
{
    if (c->nlate == OB_CLIENT_LATE_MAX) {
        ob_client_die_locked(c, "the server has left %u requests unanswered", OB_CLIENT_LATE_MAX);
        return;
    }
    take_out_locked(c, find_locked(c, req->id));
    c->late[c->nlate++] = (struct ob_late){ .id = req->id, .cmd = req->cmd };
    finish_locked(req, -ETIMEDOUT, NULL);
}

/* Whether the message answers something that nobody waits for: a request whose caller has given
 * up, or a posted write. */
static bool drop_stray_locked(struct ob_client *c, const struct ob_wire_hdr *hdr)
{
    struct ob_late *late = find_late_locked(c, hdr->msg_id);

    if (late && late->cmd == hdr->cmd) {
        expect_no_fds_locked(c, late->cmd);
        *late = c->late[--c->nlate];
        return true;
    }
    return hdr->msg_id == OB_POSTED_ID &&
           (hdr->cmd == OB_CMD_REGION_WRITE || hdr->cmd == OB_CMD_REGION_WRITE_MULTI);
}

/* The server handles commands in order: it has had all that was sent before, too. */
static void note_answered_locked(struct ob_memo *s, const struct ob_request *req)
{
    if (req->posted > s->taken)
        s->taken = req->posted;
    if (req->after_reset)
        s->reset_due = false;
}

void ob_request_complete_locked(struct ob_client *c, struct ob_msg *msg)
{
    struct ob_request **link = find_locked(c, msg->hdr.msg_id);
    struct ob_request *req = *link;
    enum ob_reason reason;

    if (!req) {
        if (!drop_stray_locked(c, &msg->hdr))
            ob_client_die_locked(c,
                                 "the server sent a reply (%s, id %u) that belongs to no request",
                                 ob_strcmd(msg->hdr.cmd), msg->hdr.msg_id);
    } else if (msg->hdr.cmd != req->cmd) {
        ob_client_die_locked(c, "the server answered %s with a reply to %s (%u)",
                             ob_strcmd(req->cmd), ob_strcmd(msg->hdr.cmd), msg->hdr.cmd);
    } else if ((reason = ob_check_reply(&msg->hdr, req->cmd)) != OB_OK) {
        ob_client_die_locked(c, "the server sent a bad reply to %s (%u bytes, flags 0x%x): %s",
                             ob_strcmd(req->cmd), msg->hdr.msg_size, msg->hdr.flags,
                             ob_strreason(reason));
    } else {
        take_out_locked(c, link);
        expect_no_fds_locked(c, req->cmd);
        if (c->memo)
            note_answered_locked(c->memo, req);
        finish_locked(req, 0, msg);
        return;
    }
    ob_msg_free(msg);
}

/* Whether a failure to send came from what was to be sent; the stream is whole then. */
static bool is_local_failure(int rc)
{
    return rc == -ENOBUFS || rc == -ENOMEM || rc == -EBADF || rc == -EMFILE || rc == -ENFILE ||
           rc == -ETOOMANYREFS;
}

int ob_client_queue_locked(struct ob_client *c, struct ob_socket *s, struct ob_wire_hdr *hdr,
                           const struct ob_body *body)
{
    struct iovec iov[2] = {
        { (void *)body->fixed, body->fixed_len },
        { (void *)body->data, body->data_len },
    };
    int rc;

    if (ob_client_dead(c))
        return -ENOTCONN;
    rc = ob_channel_queue(&s->channel, hdr, iov,
                          body->data_len    ? 2
                          : body->fixed_len ? 1
                                            : 0,
                          body->fds, body->nfds);
    if (rc < 0 && !is_local_failure(rc))
        return ob_client_send_failed_locked(c, rc);
    if (rc == 0 && s == &c->main && c->ready)
        c->nsent += (hdr->flags & OB_HDR_TYPE_MASK) == OB_HDR_COMMAND;
    ob_client_want_output_locked(c, s);
    return rc;
}

int ob_client_send_locked(struct ob_client *c, struct ob_socket *s, struct ob_wire_hdr *hdr,
                          const struct ob_body *body)
{
    int rc = s == &c->main ? ob_client_end_batch_locked(c) : 0;

    return rc < 0 ? rc : ob_client_queue_locked(c, s, hdr, body);
}

static void note_caller_locked(struct ob_client *c)
{
    pthread_t self = pthread_self();

    if (!pthread_equal(c->caller, self)) {
        c->caller = self;
        c->shared = OB_CLIENT_SHARED;
    } else if (c->shared) {
        c->shared--;
    }
}

void ob_client_limit(struct ob_client *c, int total_ms)
{
    ob_client_lock(c);
    c->limit_ns = total_ms > 0 ? ob_deadline_ns(total_ms) : 0;
    c->limit_thread = pthread_self();
    ob_client_unlock(c);
}

static int64_t deadline_locked(const struct ob_client *c, int64_t start_ns)
{
    int64_t deadline_ns =
        c->opt.timeout_ms < 0 ? OB_NO_DEADLINE : start_ns + (int64_t)c->opt.timeout_ms * 1000000;

    if (c->limit_ns && c->limit_ns < deadline_ns && pthread_equal(c->limit_thread, pthread_self()))
        deadline_ns = c->limit_ns;
    return deadline_ns;
}

static int send_request_locked(struct ob_client *c, struct ob_wire_hdr *hdr,
                               const struct ob_body *body)
{
    int rc;

    ob_client_quiet_locked(c);
    if (ob_reply_takes_fds(hdr->cmd))
        expect_fds_locked(c);
    rc = ob_client_send_locked(c, &c->main, hdr, body);
    if (rc < 0)
        expect_no_fds_locked(c, hdr->cmd);
    return rc;
}

static int start_locked(struct ob_client *c, struct ob_request *req, uint16_t cmd,
                        const struct ob_body *body)
{
    struct ob_wire_hdr hdr = { .cmd = cmd, .flags = OB_HDR_COMMAND };
    int rc;

    memset(req, 0, sizeof(*req));
    req->cmd = cmd;
    req->start_ns = ob_now_ns();
    req->deadline_ns = deadline_locked(c, req->start_ns);
    note_caller_locked(c);
    if (c->npending >= OB_CLIENT_PENDING_MAX) {
        rc = -EBUSY;
    } else {
        req->id = hdr.msg_id = new_id_locked(c);
        rc = ob_client_dead(c) ? -ENOTCONN : 0;
        if (rc == 0 && !ob_ring_put_locked(c, &hdr, body, req))
            rc = send_request_locked(c, &hdr, body);
    }
    if (rc < 0) {
        ob_client_rearm_locked(c);
    } else {
        struct ob_request **bucket = bucket_of(c, req->id);
        req->next = *bucket;
        *bucket = req;
        c->npending++;
        c->nrequests++;
        if (c->memo) {
            req->posted = c->memo->posted;
            req->after_reset = c->memo->reset_due;
        }
    }
    return rc;
}

int ob_request_start(struct ob_client *c, struct ob_request *req, uint16_t cmd,
                     const struct ob_body *body)
{
    int rc;

    if (ob_client_in_callback(c))
        return -EDEADLK;
    ob_client_lock(c);
    rc = start_locked(c, req, cmd, body);
    ob_client_unlock(c);
    return rc;
}

/* What became of a request that is done. */
static int take_result(struct ob_client *c, struct ob_request *req, uint32_t min, uint32_t max,
                       struct ob_msg **reply)
{
    struct ob_msg *msg = req->reply;
    int rc;

    if (req->result < 0)
        return req->result;
    if (msg->hdr.flags & OB_HDR_ERROR)
        rc = ob_peer_error(msg->hdr.error_no);
    else if (msg->len < min || msg->len > max)
        rc = ob_client_die(c, "the server answered %s with %u bytes instead of %u",
                           ob_strcmd(req->cmd), msg->len, msg->len < min ? min : max);
    else {
        *reply = msg;
        return 0;
    }
    ob_msg_free(msg);
    return rc;
}

int ob_request_finish(struct ob_client *c, struct ob_request *req, uint32_t min, uint32_t max,
                      struct ob_msg **reply)
{
    ob_client_lock(c);
    ob_client_wait_locked(c, req);
    ob_client_unlock(c);
    return take_result(c, req, min, max, reply);
}

int ob_request_call(struct ob_client *c, uint16_t cmd, const struct ob_body *body, uint32_t min,
                    uint32_t max, struct ob_msg **reply)
{
    struct ob_request req;
    struct ob_msg *msg = NULL;
    int rc;

    if (ob_client_in_callback(c))
        return -EDEADLK;
    ob_client_lock(c);
    rc = start_locked(c, &req, cmd, body);
    if (rc == 0)
        ob_client_wait_locked(c, &req);
    ob_client_unlock(c);
    if (rc == 0)
        rc = take_result(c, &req, min, max, &msg);
    if (rc == 0 && reply)
        *reply = msg;
    else if (rc == 0)
        ob_msg_free(msg);
    return rc;
}
