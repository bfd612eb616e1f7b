/* SPDX-License-Identifier: BSD-3-Clause */
/* Well-formed requests of a visitor. */
#include "visitors.h"

#include <string.h>

int visitor_write(struct visitors *v, uint32_t region, uint64_t offset, uint64_t value,
                  uint32_t count)
{
    struct {
        struct ob_wire_region_access access;
        uint64_t value;
    } request = { { offset, region, count }, value };

    return visitor_call(v, OB_CMD_REGION_WRITE, &request, (uint32_t)sizeof(request.access) + count,
                        -1, NULL);
}

void visitor_post(struct visitors *v, uint32_t region, uint64_t offset, uint64_t value,
                  uint32_t count)
{
    const struct {
        struct ob_wire_region_access access;
        uint64_t value;
    } request = { { offset, region, count }, value };
    struct ob_wire_hdr hdr = { .cmd = OB_CMD_REGION_WRITE, .flags = OB_HDR_NO_REPLY };
    struct iovec iov = { (void *)&request, sizeof(request.access) + count };

    if (v->current->main.fd >= 0)
        ob_channel_try(&v->current->main, &hdr, &iov, 1, NULL, 0);
}

int visitor_read(struct visitors *v, uint32_t region, uint64_t offset, uint64_t *value,
                 uint32_t count)
{
    const struct ob_wire_region_access access = { offset, region, count };
    struct ob_msg *reply;
    int rc = visitor_call(v, OB_CMD_REGION_READ, &access, sizeof(access), -1, &reply);

    if (rc != 0)
        return rc;
    *value = 0;
    if (reply->len == sizeof(access) + count)
        memcpy(value, reply->payload + sizeof(access), count);
    ob_msg_free(reply);
    return 0;
}

int visitor_map(struct visitors *v, uint64_t address, uint64_t size, uint32_t flags, int fd,
                uint64_t offset)
{
    const struct ob_wire_dma_map map = { sizeof(map), flags, offset, address, size };

    return visitor_call(v, OB_CMD_DMA_MAP, &map, sizeof(map), fd, NULL);
}

int visitor_unmap(struct visitors *v, uint64_t address, uint64_t size)
{
    const struct ob_wire_dma_unmap unmap = { sizeof(unmap), size ? 0 : OB_DMA_UNMAP_ALL, address,
                                             size };

    return visitor_call(v, OB_CMD_DMA_UNMAP, &unmap, sizeof(unmap), -1, NULL);
}

/* ---- Migration ------------------------------------------------------------------------------ */

int visitor_set_state(struct visitors *v, enum ob_mig_state state)
{
    const struct {
        struct ob_wire_feature feature;
        struct ob_wire_mig_state state;
    } request = { { sizeof(request), OB_FEATURE_SET | OB_FEATURE_MIG_DEVICE_STATE },
                  { state, UINT32_MAX } };

    return visitor_call(v, OB_CMD_DEVICE_FEATURE, &request, sizeof(request), -1, NULL);
}

int64_t visitor_save(struct visitors *v, uint8_t *out, size_t size)
{
    const struct ob_wire_mig_data request = { sizeof(request) + 4096, 4096 };
    struct ob_wire_mig_data head;
    size_t len = 0;

    if (visitor_set_state(v, OB_MIG_STATE_STOP_COPY) != 0)
        return -1;
    do {
        struct ob_msg *reply;

        if (visitor_call(v, OB_CMD_MIG_DATA_READ, &request, sizeof(request), -1, &reply) != 0)
            return -1;
        memcpy(&head, reply->payload, sizeof(head));
        if (head.size <= size - len)
            memcpy(out + len, reply->payload + sizeof(head), head.size);
        len += head.size;
        ob_msg_free(reply);
    } while (head.size > 0 && len <= size);
    return len <= size ? (int64_t)len : -1;
}

int visitor_load(struct visitors *v, const uint8_t *state, size_t len, uint32_t piece)
{
    static uint8_t request[sizeof(struct ob_wire_mig_data) + 65536];
    int rc = visitor_set_state(v, OB_MIG_STATE_RESUMING);

    if (piece == 0 || piece > 65536)
        piece = 65536;
    while (rc == 0 && len > 0) {
        uint32_t n = len < piece ? (uint32_t)len : piece;
        const struct ob_wire_mig_data head = { (uint32_t)sizeof(head) + n, n };

        memcpy(request, &head, sizeof(head));
        memcpy(request + sizeof(head), state, n);
        rc = visitor_call(v, OB_CMD_MIG_DATA_WRITE, request, (uint32_t)sizeof(head) + n, -1, NULL);
        state += n;
        len -= n;
    }
    return rc == 0 ? visitor_set_state(v, OB_MIG_STATE_RUNNING) : rc;
}
