/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The server's commands: DMA_READ and DMA_WRITE, served through the embedder's callbacks by
 * whichever thread has the receive role. Memory that the embedder lends for an answer is returned
 * by that thread as soon as the answer is in the socket or the channel's queue, which has a copy: a
 * server that does not read keeps none of it
 * (client-lending/a-server-that-does-not-read-keeps-nothing-lent). Everything else is refused, and
 * the stream goes on; so is a command on the main socket where there is a twin.
 */
#include "client/internal.h"

#include <errno.h>
#include <stdlib.h>

/* The clients whose callbacks this thread is inside of, innermost first: serving one client can
 * make the embedder call another one, whose server wants DMA in turn. */
struct serving {
    const struct ob_client *client;
    const struct serving *outer;
};

static _Thread_local const struct serving *innermost;

bool ob_client_in_callback(const struct ob_client *c)
{
    for (const struct serving *s = innermost; s; s = s->outer)
        if (s->client == c || s->client->owner == c)
            return true;
    return false;
}

/* What an answer to DMA_READ sends: a copy, or what is lent. */
struct data {
    const void *bytes; /* NULL: nothing */
    void *copy;
    void *loan;
    bool lent;
};

static void enter(struct serving *here, const struct ob_client *c)
{
    *here = (struct serving){ .client = c, .outer = innermost };
    innermost = here;
}

static void leave(const struct serving *here)
{
    innermost = here->outer;
}

/* Nothing of it is needed any more: what the socket did not take was copied. */
static void give_back(struct ob_client *c, struct data *data)
{
    struct serving here;

    free(data->copy);
    if (!data->lent || !c->opt.dma_return)
        return;
    enter(&here, c);
    c->opt.dma_return(c->opt.opaque, data->loan);
    leave(&here);
}

/* What a callback returned, as the errno that goes to the server (0: none). */
static uint32_t callback_errno(int rc)
{
    if (rc == 0)
        return 0;
    return rc < 0 && rc > -4096 ? (uint32_t)-rc : EIO;
}

/* Both serve functions return the errno that goes to the server, or 0 and fill the reply. */

static uint32_t serve_dma_read(struct ob_client *c, const struct ob_msg *msg,
                               struct ob_wire_dma_access *access, struct data *data)
{
    int rc = ob_decode_dma_access(msg->payload, msg->len, false, OB_DATA_XFER_MAX, access, NULL);
    uint32_t count;

    if (rc < 0)
        return (uint32_t)-rc;
    count = (uint32_t)access->count;
    if (c->opt.dma_lend && count)
        data->bytes = c->opt.dma_lend(c->opt.opaque, access->address, count, &data->loan);
    data->lent = data->bytes != NULL;
    if (data->lent)
        return 0;
    if (!c->opt.dma_read)
        return EOPNOTSUPP;
    data->copy = malloc(count ? count : 1);
    if (!data->copy)
        return ENOMEM;
    rc = c->opt.dma_read(c->opt.opaque, access->address, data->copy, count);
    if (rc == 0)
        data->bytes = data->copy;
    return callback_errno(rc);
}

static uint32_t serve_dma_write(struct ob_client *c, const struct ob_msg *msg,
                                struct ob_wire_dma_access *access)
{
    const void *data;
    int rc = ob_decode_dma_access(msg->payload, msg->len, true, OB_DATA_XFER_MAX, access, &data);

    if (rc < 0)
        return (uint32_t)-rc;
    if (!c->opt.dma_write)
        return EOPNOTSUPP;
    rc = c->opt.dma_write(c->opt.opaque, access->address, data, (uint32_t)access->count);
    return callback_errno(rc);
}

static uint32_t serve(struct ob_client *c, const struct ob_socket *s, const struct ob_msg *msg,
                      struct ob_wire_dma_access *access, struct data *data)
{
    struct serving here;
    enum ob_state state = c->ready ? OB_STATE_READY : OB_STATE_NEGOTIATE;
    enum ob_reason reason = ob_check_command(&msg->hdr, OB_SERVER_TO_CLIENT, state);
    uint32_t error;

    if (reason == OB_OK && c->caps.twin_socket != (s == &c->twin))
        reason = OB_BAD_STATE;
    if (reason == OB_OK && msg->nfds > 0)
        reason = OB_TOO_MANY_FDS;
    if (reason != OB_OK)
        return (uint32_t)ob_reason_errno(reason);
    enter(&here, c);
    error = msg->hdr.cmd == OB_CMD_DMA_READ ? serve_dma_read(c, msg, access, data)
                                            : serve_dma_write(c, msg, access);
    leave(&here);
    return error;
}

void ob_client_serve(struct ob_client *c, struct ob_socket *s, struct ob_msg *msg)
{
    struct ob_wire_dma_access access;
    struct data data = { 0 };
    uint32_t error = serve(c, s, msg, &access, &data);
    struct ob_wire_hdr hdr = { .msg_id = msg->hdr.msg_id,
                               .cmd = msg->hdr.cmd,
                               .flags = OB_HDR_REPLY | (error ? OB_HDR_ERROR : 0),
                               .error_no = error };
    struct ob_body body = { 0 };
    int rc;

    if (!error) {
        body.fixed = &access;
        body.fixed_len = sizeof(access);
        body.data = data.bytes;
        body.data_len = data.bytes ? (uint32_t)access.count : 0;
    }
    if (!(msg->hdr.flags & OB_HDR_NO_REPLY)) {
        ob_client_lock(c);
        c->ncommands++;
        /* A server that is left without an answer would wait for ever. */
        rc = ob_client_send_locked(c, s, &hdr, &body);
        if (rc == -ENOBUFS)
            ob_client_die_locked(c, "the server does not take the answers to its DMA requests");
        else if (rc < 0)
            ob_client_die_locked(c, "cannot answer the server's DMA request: %s",
                                 ob_errno_text(-rc));
        ob_client_unlock(c);
    }
    give_back(c, &data);
    ob_msg_free(msg);
}
