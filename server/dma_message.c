/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * DMA by message: DMA_READ and DMA_WRITE, split to what the client takes, each waiting for its
 * reply. They go over the twin socket where there is one. On the main socket whatever else the
 * client sends meanwhile is kept for later, so a device may do this while it answers a register
 * access. A reply that comes after its deadline is dropped by whoever meets it.
 *
 * Nobody else is served meanwhile. One transfer may wait for the deadline, but a device may have
 * any number of them to make: all that the client lets us wait for in one step has a limit as well,
 * and it is let go then. Rules: R-XFER-2, R-XFER-7 to R-XFER-9, R-TWIN-4.
 */
#include "server/internal.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#define STEP_TIMEOUTS 2        /* for which a step waits */
#define LONG_NS       50000000 /* what others notice */

static bool is_reply(const struct ob_msg *msg, const struct ob_wire_hdr *hdr)
{
    return (msg->hdr.flags & OB_HDR_TYPE_MASK) == OB_HDR_REPLY && msg->hdr.cmd == hdr->cmd &&
           msg->hdr.msg_id == hdr->msg_id;
}

static bool has_twin(const struct ob_session *session)
{
    return session->twin.fd >= 0;
}

static struct ob_channel *dma_channel(struct ob_session *session)
{
    return has_twin(session) ? &session->twin : &session->ch;
}

static int broken(struct ob_session *session, int rc)
{
    if (has_twin(session))
        ob_session_twin_broken(session, rc);
    else
        ob_session_broken(session, rc);
    return -ENOTCONN;
}

/* What to wait for on a socket, once as much as it takes was sent; or a negative errno. */
static int wanted(struct ob_channel *ch, short in)
{
    int rc = ch->out_head ? ob_channel_flush(ch) : 1;

    return rc < 0 ? rc : in | (rc == 0 ? POLLOUT : 0);
}

/*
 * Sends what is queued and waits for something to come. Behind a twin the main socket is not read,
 * but answers go on being sent: a client may want one before it looks at the twin.
 */
static int wait_for_client(struct ob_session *session, int64_t deadline)
{
    struct pollfd p[2] = { { .fd = dma_channel(session)->fd }, { .fd = session->ch.fd } };
    int dma = wanted(dma_channel(session), POLLIN);
    int other = has_twin(session) ? wanted(&session->ch, POLLRDHUP) : 0;
    int rc = dma < 0 ? dma : other;

    p[0].events = (short)dma;
    p[1].events = (short)other;
    if (rc >= 0)
        rc = ob_poll_until(p, has_twin(session) ? 2 : 1, deadline);
    if (rc < 0 && rc != -ETIMEDOUT)
        return broken(session, rc);
    if (rc > 0 && !p[0].revents && (p[1].revents & ~POLLOUT))
        return -ENOTCONN; /* it has left; what it left behind is handled later */
    return rc < 0 ? rc : 0;
}

/* The next message on the socket of DMA messages; polls for it before it says that there is none,
 * once for each reply. Results as of ob_channel_recv(). */
static int next_message(struct ob_session *session, int64_t start_ns, bool *polled,
                        struct ob_msg **out)
{
    struct ob_channel *ch = dma_channel(session);
    int rc = ob_channel_recv(ch, out);
    int64_t limit_ns;

    if (rc != 0 || *polled || ch->out_head || session->ch.out_head)
        return rc;
    *polled = true;
    limit_ns = ob_spin_begin(&session->server->dma_spin);
    if (limit_ns == 0)
        return 0;
    for (unsigned i = 0; rc == 0 && ob_now_ns() - start_ns < limit_ns; i++) {
        ob_spin_relax(&session->server->dma_spin, i, false);
        rc = ob_channel_recv(ch, out);
    }
    ob_spin_end();
    return rc;
}

/* The reply to hdr, the caller's. */
static int await_reply(struct ob_session *session, const struct ob_wire_hdr *hdr, int64_t start_ns,
                       int64_t deadline, struct ob_msg **out)
{
    bool polled = false;

    while (!session->doomed) {
        struct ob_msg *msg;
        int rc = next_message(session, start_ns, &polled, &msg);

        if (rc < 0)
            return broken(session, rc);
        if (rc == 0) {
            rc = wait_for_client(session, deadline);
            if (rc < 0)
                return rc;
        } else if (is_reply(msg, hdr)) {
            ob_spin_learn(&session->server->dma_spin, ob_now_ns() - start_ns);
            *out = msg;
            return 0;
        } else if (has_twin(session)) {
            ob_session_twin_message(session, msg);
        } else if ((msg->hdr.flags & OB_HDR_TYPE_MASK) != OB_HDR_REPLY) {
            ob_session_defer(session, msg);
        } else {
            ob_msg_free(msg); /* of a request that we gave up */
        }
        if (ob_now_ns() > deadline) /* also of a client that never stops sending */
            return -ETIMEDOUT;
    }
    return -ENOTCONN;
}

/* The same, as long as this step of the server may still wait. */
static int receive_reply(struct ob_session *session, const struct ob_wire_hdr *hdr,
                         int64_t deadline, struct ob_msg **out)
{
    struct ob_server *server = session->server;
    int64_t start_ns = ob_now_ns(), end_ns = INT64_MAX, now_ns;
    int rc;

    if (server->timeout_ms > 0)
        end_ns =
            start_ns + (int64_t)server->timeout_ms * 1000000 * STEP_TIMEOUTS - server->waited_ns;
    rc = await_reply(session, hdr, start_ns, deadline < end_ns ? deadline : end_ns, out);
    now_ns = ob_now_ns();
    server->waited_ns += now_ns - start_ns;
    if (rc != -ETIMEDOUT || now_ns < end_ns)
        return rc;
    ob_session_doom(session, "it kept the server waiting for %lld ms with its answers to DMA",
                    (long long)(server->waited_ns / 1000000));
    return -ENOTCONN;
}

bool ob_server_kept_waiting(const struct ob_server *server)
{
    return server->waited_ns >= LONG_NS;
}

/*
 * How many bytes of the request the reply says were moved. A DMA_WRITE is acknowledged with a count
 * of 8 bytes, or of 4 by the older text of the protocol. A bare header is no acknowledgement: only
 * QEMU before 11.1 sends that, and it took the data from the wrong place.
 */
static int64_t check_reply(struct ob_session *session, const struct ob_msg *msg, uint16_t cmd,
                           uint32_t asked)
{
    struct ob_wire_dma_access access = { 0 };
    const uint32_t fixed = sizeof(access), old = sizeof(access) - sizeof(uint32_t);

    if (msg->hdr.flags & OB_HDR_ERROR) {
        uint32_t err = msg->hdr.error_no;

        return err == 0 || err > 4095 ? -EIO : -(int64_t)err;
    }
    if (msg->len >= old) {
        memcpy(&access, msg->payload, msg->len < fixed ? msg->len : fixed);
        if (access.count <= asked &&
            (cmd == OB_CMD_DMA_READ ? msg->len == fixed + access.count
                                    : msg->len == fixed || msg->len == old))
            return (int64_t)access.count;
    }
    ob_log(session->server, OB_LOG_ERROR,
           "%s: the client's answer does not fit (QEMU's own device before 11.1 cannot do DMA by "
           "message: give the guest shared memory)",
           ob_strcmd(cmd));
    return -EPROTO;
}

/* One message there and back. Returns how many bytes were moved, at least one. */
static int64_t exchange(struct ob_session *session, uint16_t cmd, uint64_t address, uint8_t *data,
                        uint32_t len, int64_t deadline)
{
    struct ob_wire_hdr hdr = { .msg_id = session->next_id++, .cmd = cmd, .flags = OB_HDR_COMMAND };
    struct ob_wire_dma_access access = { .address = address, .count = len };
    struct iovec iov[2] = { { &access, sizeof(access) }, { data, len } };
    struct ob_sink sink = { hdr.msg_id, cmd, sizeof(access), data, len };
    struct ob_channel *ch = dma_channel(session);
    struct ob_msg *msg = NULL;
    int64_t moved;
    int rc;

    rc = ob_channel_queue(ch, &hdr, iov, cmd == OB_CMD_DMA_WRITE ? 2 : 1, NULL, 0);
    if (rc == 0)
        rc = ob_channel_uncork(ch);
    if (rc < 0)
        return broken(session, rc);
    /* Answers that were collected: the client may want them before it looks at the twin. */
    rc = has_twin(session) ? ob_channel_uncork(&session->ch) : 0;
    if (rc < 0) {
        ob_session_broken(session, rc);
        return -ENOTCONN;
    }
    if (cmd == OB_CMD_DMA_READ)
        ch->sink = &sink;
    rc = receive_reply(session, &hdr, deadline, &msg);
    ob_channel_unsink(ch);
    if (rc < 0)
        return rc;
    moved = check_reply(session, msg, cmd, len);
    if (moved > 0 && cmd == OB_CMD_DMA_READ && !msg->sunk)
        memcpy(data, msg->payload + sizeof(access), (size_t)moved);
    ob_msg_free(msg);
    return moved == 0 ? -EIO : moved;
}

static int transfer(struct ob_session *session, uint16_t cmd, uint64_t address, uint8_t *data,
                    uint64_t len, int64_t deadline)
{
    uint32_t most = session->caps.max_data_xfer_size; /* at least 1: negotiation saw to that */

    if (most > OB_DATA_XFER_MAX)
        most = OB_DATA_XFER_MAX;
    while (len > 0) {
        int64_t moved;

        if (session->doomed)
            return -ENOTCONN;
        moved = exchange(session, cmd, address, data, len < most ? (uint32_t)len : most, deadline);
        if (moved < 0)
            return (int)moved;
        address += (uint64_t)moved;
        data += moved;
        len -= (uint64_t)moved;
    }
    return 0;
}

int ob_dma_message(struct ob_session *session, uint16_t cmd, uint64_t address, void *data,
                   uint64_t len, int64_t deadline_ns)
{
    int rc = transfer(session, cmd, address, data, len, deadline_ns);

    ob_session_rearm(session); /* requests were kept, or something is still queued */
    return rc;
}
