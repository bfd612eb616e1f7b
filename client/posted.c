/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Posted writes. One that the socket takes at once goes out as it is. While others are queued,
 * small ones are collected in a batch, which stands behind the queue and goes out as one
 * REGION_WRITE_MULTI, where the server knows that: when it is full, when the queue has run empty,
 * or before anything else is sent, so that order never changes.
 */
#include "client/memo.h"

#include <errno.h>
#include <string.h>

#define FLUSH_EVERY 32 /* writes that are collected */

/* Writes that go into a message: as many as fit, and as the server takes bytes. */
static uint32_t batch_max(const struct ob_client *c)
{
    const uint32_t head = sizeof(struct ob_wire_write_multi), bytes = ob_client_xfer_max(c);
    uint32_t fit = bytes > head ? (bytes - head) / (uint32_t)sizeof(c->batch[0]) : 0;

    return fit < OB_CLIENT_BATCH_MAX ? fit : OB_CLIENT_BATCH_MAX;
}

static int post_locked(struct ob_client *c, uint16_t cmd, const struct ob_body *body)
{
    struct ob_wire_hdr hdr = { .msg_id = OB_POSTED_ID,
                               .cmd = cmd,
                               .flags = OB_HDR_COMMAND | OB_HDR_NO_REPLY };

    if (ob_ring_put_locked(c, &hdr, body, NULL))
        return 0;
    return ob_client_queue_locked(c, &c->main, &hdr, body);
}

int ob_client_end_batch_locked(struct ob_client *c)
{
    const struct ob_wire_write_multi_entry *only = c->batch;
    const struct ob_wire_write_multi multi = { c->nbatch };
    const struct ob_wire_region_access wire = { only->offset, only->region, only->count };
    int rc;

    if (c->nbatch == 0 || ob_client_dead(c))
        return 0;
    if (c->nbatch == 1)
        rc =
            post_locked(c, OB_CMD_REGION_WRITE,
                        &(struct ob_body){ &wire, sizeof(wire), only->data, only->count, NULL, 0 });
    else
        rc = post_locked(c, OB_CMD_REGION_WRITE_MULTI,
                         &(struct ob_body){ &multi, sizeof(multi), c->batch,
                                            c->nbatch * (uint32_t)sizeof(c->batch[0]), NULL, 0 });
    if (rc == 0)
        c->nbatch = 0;
    return rc;
}

/* Behind what is queued already. */
static int add_to_batch_locked(struct ob_client *c, const struct ob_wire_region_access *wire,
                               const void *data)
{
    struct ob_wire_write_multi_entry *entry;
    int rc = c->nbatch == batch_max(c) ? ob_client_end_batch_locked(c) : 0;

    if (rc < 0)
        return rc;
    entry = &c->batch[c->nbatch++];
    *entry = (struct ob_wire_write_multi_entry){ wire->offset, wire->region, wire->count, { 0 } };
    memcpy(entry->data, data, wire->count);
    return 0;
}

int ob_client_post_locked(struct ob_client *c, const struct ob_wire_region_access *wire,
                          const void *data)
{
    const struct ob_body body = { wire, sizeof(*wire), data, wire->count, NULL, 0 };
    int rc;

    if (c->main.channel.out_bytes >= OB_CLIENT_POST_MAX)
        return -ENOBUFS;
    if (c->main.channel.out_head && c->caps.write_multiple && wire->count <= OB_WRITE_MULTI_DATA &&
        batch_max(c) > 1) {
        /* To ask the socket each time would cost more than the write. */
        rc = c->nbatch % FLUSH_EVERY == 0 ? ob_client_flush_locked(c, &c->main) : 0;
        if (rc < 0)
            return rc;
        if (c->main.channel.out_head)
            return add_to_batch_locked(c, wire, data);
    }
    rc = ob_client_end_batch_locked(c);
    return rc < 0 ? rc : post_locked(c, OB_CMD_REGION_WRITE, &body);
}

static int write_now_locked(struct ob_client *c, const struct ob_wire_region_access *wire,
                            const void *data)
{
    struct ob_wire_hdr hdr = { .msg_id = OB_POSTED_ID,
                               .cmd = OB_CMD_REGION_WRITE,
                               .flags = OB_HDR_COMMAND | OB_HDR_NO_REPLY };
    const struct iovec iov[2] = { { (void *)wire, sizeof(*wire) }, { (void *)data, wire->count } };
    int rc;

    if (wire->count > OB_WRITE_MULTI_DATA)
        return -EMSGSIZE;
    if (ob_ring_put_locked(
            c, &hdr, &(struct ob_body){ wire, sizeof(*wire), data, wire->count, NULL, 0 }, NULL))
        return 0;
    rc = c->main.wants_output ? ob_client_flush_locked(c, &c->main) : 0;
    if (rc == 0 && c->nbatch > 0) /* the channel knows nothing of those */
        rc = -EAGAIN;
    if (rc == 0)
        rc = ob_channel_try(&c->main.channel, &hdr, iov, 2, NULL, 0);
    c->nsent += rc == 0;
    if (c->main.channel.out_head || c->main.wants_output)
        ob_client_want_output_locked(c, &c->main);
    return ob_channel_is_gone(rc) ? ob_client_send_failed_locked(c, rc) : rc;
}

static int post(struct ob_client *c, struct ob_wire_region_access wire, const void *data,
                int (*write)(struct ob_client *c, const struct ob_wire_region_access *wire,
                             const void *data))
{
    int rc;

    if (wire.count == 0)
        return 0;
    if (wire.offset > UINT64_MAX - (wire.count - 1))
        return -EINVAL;
    if (wire.count > ob_client_xfer_max(c))
        return -EMSGSIZE;
    ob_memo_note_write(c, wire.region, wire.offset, data, wire.count);
    ob_client_lock(c);
    rc = ob_client_dead(c) ? -ENOTCONN : write(c, &wire, data);
    rc = ob_memo_note_posted_locked(c, &wire, data, rc);
    c->nposted += rc == 0;
    ob_client_unlock(c);
    return rc;
}

int ob_client_region_post(struct ob_client *client, uint32_t region, uint64_t offset,
                          const void *data, uint32_t count)
{
    return post(client, (struct ob_wire_region_access){ offset, region, count }, data,
                ob_client_post_locked);
}

int ob_client_region_post_now(struct ob_client *client, uint32_t region, uint64_t offset,
                              const void *data, uint32_t count)
{
    return post(client, (struct ob_wire_region_access){ offset, region, count }, data,
                write_now_locked);
}
