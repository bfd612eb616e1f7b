/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests and their answers. What can be refused by looking at the message alone is refused by
 * proto (ob_check_command and the decoders); what is here knows the device.
 */
#include "server/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of SPDK's request for a region's description. */
#define SPDK_REGION_INFO 4064u

typedef int (*handler)(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply);

static void reply_set(struct ob_reply *reply, const void *data, size_t len)
{
    memcpy(reply->fixed, data, len);
    reply->len = len;
}

static int do_version(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    (void)session, (void)msg, (void)reply;
    return -EINVAL; /* it was negotiated */
}

static int do_dma_map(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    struct ob_wire_dma_map request;
    int rc = ob_decode_dma_map(msg->payload, msg->len, msg->nfds, &request);

    (void)reply;
    if (rc < 0)
        return rc;
    return ob_dma_add(session->server, &request, ob_msg_claim_fd(msg, 0));
}

static int do_dma_unmap(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    struct ob_wire_dma_unmap request;
    struct ob_wire_bitmap bitmap;
    int rc = ob_decode_dma_unmap(msg->payload, msg->len, &request, &bitmap);

    if (rc < 0)
        return rc;
    reply_set(reply, &request, sizeof(request));
    return ob_dma_remove(session, &msg->hdr, &request, &bitmap);
}

static int do_device_info(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    const struct ob_server *server = session->server;
    struct ob_wire_device_info info;
    int rc = ob_decode_device_info(msg->payload, msg->len, &info);

    if (rc < 0)
        return rc;
    info.argsz = sizeof(info);
    info.flags = OB_DEVICE_PCI | (server->ops.reset ? OB_DEVICE_RESET : 0);
    info.num_regions = server->num_regions;
    info.num_irqs = server->num_irqs;
    reply_set(reply, &info, sizeof(info));
    return 0;
}

/*
 * How often the region's fd is sent: once. But K-4: SPDK's client, known by its request as long as
 * its reply buffer (K-3), wants one for each of its up to 8 areas, and else maps standard input.
 */
static unsigned fds_of(const struct ob_msg *request, const struct ob_region_layout *layout)
{
    bool is_spdk = request->len == SPDK_REGION_INFO && layout->nareas <= 8;

    return is_spdk ? layout->nareas : 1;
}

/* The fd goes along with the capabilities only: every client takes it there, and some know no
 * other place for it. */
static int do_region_info(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    const struct ob_server *server = session->server;
    struct ob_wire_region_info request;
    struct ob_region_layout layout;
    struct ob_writer w;
    int rc = ob_decode_region_info(msg->payload, msg->len, &request);

    if (rc < 0)
        return rc;
    if (request.index >= server->num_regions)
        return -EINVAL;
    layout = server->regions[request.index].layout;
    if (session->caps.max_msg_fds == 0) { /* it cannot take one */
        layout.flags &= ~OB_REGION_MMAP;
        layout.nareas = 0;
    }
    ob_writer_init(&w, reply->fixed, sizeof(reply->fixed));
    if (ob_encode_region_layout(&w, request.index, request.argsz, &layout) &&
        (layout.flags & OB_REGION_MMAP))
        while (reply->nfds < fds_of(msg, &layout))
            reply->fds[reply->nfds++] = server->regions[request.index].fd;
    reply->len = w.len;
    return w.failed ? -ENOSPC : 0;
}

static int do_region_io_fds(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    const struct ob_server *server = session->server;
    struct ob_wire_region_io_fds info;
    int rc = ob_decode_region_io_fds(msg->payload, msg->len, &info);

    if (rc < 0)
        return rc;
    if (info.index >= server->num_regions || server->regions[info.index].layout.size == 0)
        return -EINVAL;
    ob_io_describe(session, &info, reply);
    return 0;
}

static int do_irq_info(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    const struct ob_server *server = session->server;
    struct ob_wire_irq_info info;
    int rc = ob_decode_irq_info(msg->payload, msg->len, &info);

    if (rc < 0)
        return rc;
    if (info.index >= server->num_irqs)
        return -EINVAL;
    info.argsz = sizeof(info);
    info.flags = server->irqs[info.index].flags;
    info.count = server->irqs[info.index].count;
    reply_set(reply, &info, sizeof(info));
    return 0;
}

static int do_set_irqs(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    struct ob_wire_set_irqs request;
    const uint8_t *bools = NULL;
    int rc = ob_decode_set_irqs(msg->payload, msg->len, msg->nfds, &request, &bools);

    (void)reply;
    return rc < 0 ? rc : ob_irqs_set(session->server, &request, bools, msg);
}

uint8_t *ob_scratch(struct ob_server *server, size_t count)
{
    if (count <= sizeof(server->small))
        return memset(server->small, 0, sizeof(server->small));
    if (count > server->scratch_size) {
        uint8_t *grown = realloc(server->scratch, count);

        if (!grown)
            return NULL;
        server->scratch = grown;
        server->scratch_size = count;
    }
    return memset(server->scratch, 0, count);
}

/* Most bytes of data that the client takes, and we send. */
static uint32_t xfer_max(const struct ob_session *session)
{
    uint32_t max = session->caps.max_data_xfer_size;

    return max < OB_DATA_XFER_MAX ? max : OB_DATA_XFER_MAX;
}

static int do_region_read(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    struct ob_server *server = session->server;
    struct ob_wire_region_access request;
    uint8_t *data;
    int rc =
        ob_decode_region_access(msg->payload, msg->len, false, xfer_max(session), &request, NULL);

    if (rc < 0)
        return rc;
    data = ob_scratch(server, request.count);
    if (!data)
        return -ENOMEM;
    rc = ob_region_access(server, request.region, request.offset, data, request.count, false);
    reply_set(reply, &request, sizeof(request));
    reply->data = data;
    reply->data_len = request.count;
    return rc;
}

static int do_region_write(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    struct ob_wire_region_access request;
    const void *data;
    int rc =
        ob_decode_region_access(msg->payload, msg->len, true, OB_DATA_XFER_MAX, &request, &data);

    if (rc < 0)
        return rc;
    reply_set(reply, &request, sizeof(request));
    return ob_region_access(session->server, request.region, request.offset, (void *)data,
                            request.count, true);
}

/*
 * Each entry of a posted message stands for a posted write of its own, so a failed one takes none
 * of the others with it. A client that waits is told how many went well before the first failure.
 * QEMU 10.1 and 10.2 post these to servers that never offered it; refused, they would be lost.
 */
static int do_write_multi(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    bool posted = msg->hdr.flags & OB_HDR_NO_REPLY;
    struct ob_wire_write_multi done = { 0 };
    struct ob_cursor entries;
    uint64_t count;
    int rc = ob_decode_write_multi(msg->payload, msg->len, &count, &entries);

    if (rc == 0 && !session->caps.write_multiple && !posted)
        rc = -EINVAL;
    while (rc == 0 && count-- > 0) {
        struct ob_wire_write_multi_entry entry;

        ob_cursor_get(&entries, &entry, sizeof(entry));
        rc = ob_region_access(session->server, entry.region, entry.offset, entry.data, entry.count,
                              true);
        done.count += rc == 0;
        if (posted)
            rc = 0;
    }
    reply_set(reply, &done, sizeof(done));
    return done.count ? 0 : rc;
}

static int do_device_reset(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    (void)msg, (void)reply;
    return session->server->ops.reset ? ob_pci_reset(session->server) : -EOPNOTSUPP;
}

static int do_feature(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    return ob_feature(session, msg->payload, msg->len, reply);
}

static int do_mig_data_read(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    return ob_migration_read(session, msg->payload, msg->len, reply);
}

static int do_mig_data_write(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    (void)reply;
    return ob_migration_write(session, msg->payload, msg->len);
}

/* Without the others: DMA_READ and DMA_WRITE are the wrong way round. */
static const handler handlers[OB_CMD_LAST + 1] = {
    [OB_CMD_VERSION] = do_version,
    [OB_CMD_DMA_MAP] = do_dma_map,
    [OB_CMD_DMA_UNMAP] = do_dma_unmap,
    [OB_CMD_DEVICE_GET_INFO] = do_device_info,
    [OB_CMD_DEVICE_GET_REGION_INFO] = do_region_info,
    [OB_CMD_DEVICE_GET_REGION_IO_FDS] = do_region_io_fds,
    [OB_CMD_DEVICE_GET_IRQ_INFO] = do_irq_info,
    [OB_CMD_DEVICE_SET_IRQS] = do_set_irqs,
    [OB_CMD_REGION_READ] = do_region_read,
    [OB_CMD_REGION_WRITE] = do_region_write,
    [OB_CMD_DEVICE_RESET] = do_device_reset,
    [OB_CMD_REGION_WRITE_MULTI] = do_write_multi,
    [OB_CMD_DEVICE_FEATURE] = do_feature,
    [OB_CMD_MIG_DATA_READ] = do_mig_data_read,
    [OB_CMD_MIG_DATA_WRITE] = do_mig_data_write,
};

/* A message whose fds were not all received is refused: without its fd a DMA_MAP would mean
 * something else. */
static int handle(struct ob_session *session, struct ob_msg *msg, struct ob_reply *reply)
{
    enum ob_reason reason = ob_check_command(&msg->hdr, OB_CLIENT_TO_SERVER, OB_STATE_READY);

    if (reason != OB_OK)
        return -ob_reason_errno(reason);
    if (msg->oversize)
        return -EINVAL;
    if (msg->fds_lost)
        return -EMFILE;
    return handlers[msg->hdr.cmd] ? handlers[msg->hdr.cmd](session, msg, reply) : -EINVAL;
}

void ob_answer(struct ob_session *session, const struct ob_wire_hdr *request, int rc,
               const struct ob_reply *reply)
{
    struct ob_wire_hdr hdr = { .msg_id = request->msg_id,
                               .cmd = request->cmd,
                               .flags = OB_HDR_REPLY };
    struct iovec iov[2];
    unsigned niov = 0;
    unsigned nfds = 0;

    if (session->doomed || (request->flags & OB_HDR_NO_REPLY))
        return;
    if (rc < 0) {
        hdr.flags |= OB_HDR_ERROR;
        hdr.error_no = (uint32_t)-rc;
    } else if (reply) {
        if (reply->len)
            iov[niov++] = (struct iovec){ (void *)reply->fixed, reply->len };
        if (reply->data_len)
            iov[niov++] = (struct iovec){ (void *)reply->data, reply->data_len };
        nfds = reply->nfds;
    }
    rc = ob_channel_queue(&session->ch, &hdr, iov, niov, nfds ? reply->fds : NULL, nfds);
    if (rc < 0)
        ob_session_broken(session, rc);
}

bool ob_dispatch(struct ob_session *session, struct ob_msg *msg)
{
    struct ob_reply reply;
    int rc;

    if ((msg->hdr.flags & OB_HDR_TYPE_MASK) == OB_HDR_REPLY) {
        ob_log(session->server, OB_LOG_DEBUG, "late reply to %s dropped", ob_strcmd(msg->hdr.cmd));
        return false;
    }
    reply.len = reply.data_len = 0;
    reply.nfds = 0;
    rc = handle(session, msg, &reply);
    if (rc < 0)
        ob_log(session->server, OB_LOG_DEBUG, "%s refused: %s", ob_strcmd(msg->hdr.cmd),
               strerror(-rc));
    if (rc != OB_ANSWER_LATER)
        ob_answer(session, &msg->hdr, rc, &reply);
    return !(msg->hdr.flags & OB_HDR_NO_REPLY);
}
