/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The message table: the one place that says what each command looks like on the wire.
 *
 * Every layout is written down once, as a list of (member, offset, size) from the protocol's
 * document. The list becomes the rows that programs print, and static assertions that the C
 * structure lies in memory exactly like that. Constant data: any thread may use it.
 */
#include "outboard/proto.h"

#include <errno.h>

#define LAYOUT_HDR(F, S) \
    F(S, msg_id, 0, 2)   \
    F(S, cmd, 2, 2) F(S, msg_size, 4, 4) F(S, flags, 8, 4) F(S, error_no, 12, 4)
#define LAYOUT_VERSION(F, S) F(S, major, 0, 2) F(S, minor, 2, 2)
#define LAYOUT_DMA_MAP(F, S) \
    F(S, argsz, 0, 4)        \
    F(S, flags, 4, 4) F(S, offset, 8, 8) F(S, address, 16, 8) F(S, size, 24, 8)
#define LAYOUT_DMA_UNMAP(F, S) \
    F(S, argsz, 0, 4) F(S, flags, 4, 4) F(S, address, 8, 8) F(S, size, 16, 8)
#define LAYOUT_BITMAP(F, S) F(S, pgsize, 0, 8) F(S, size, 8, 8)
#define LAYOUT_DEVICE_INFO(F, S) \
    F(S, argsz, 0, 4) F(S, flags, 4, 4) F(S, num_regions, 8, 4) F(S, num_irqs, 12, 4)
#define LAYOUT_REGION_INFO(F, S) \
    F(S, argsz, 0, 4)            \
    F(S, flags, 4, 4)            \
    F(S, index, 8, 4) F(S, cap_offset, 12, 4) F(S, size, 16, 8) F(S, offset, 24, 8)
#define LAYOUT_CAP(F, S)         F(S, id, 0, 2) F(S, version, 2, 2) F(S, next, 4, 4)
#define LAYOUT_CAP_SPARSE(F, S)  F(S, header, 0, 8) F(S, nr_areas, 8, 4) F(S, reserved, 12, 4)
#define LAYOUT_SPARSE_AREA(F, S) F(S, offset, 0, 8) F(S, size, 8, 8)
#define LAYOUT_CAP_TYPE(F, S)    F(S, header, 0, 8) F(S, type, 8, 4) F(S, subtype, 12, 4)
#define LAYOUT_INDEXED(F, S) \
    F(S, argsz, 0, 4) F(S, flags, 4, 4) F(S, index, 8, 4) F(S, count, 12, 4)
#define LAYOUT_IOEVENTFD(F, S) \
    F(S, offset, 0, 8)         \
    F(S, size, 8, 8)           \
    F(S, fd_index, 16, 4)      \
    F(S, type, 20, 4) F(S, flags, 24, 4) F(S, padding, 28, 4) F(S, datamatch, 32, 8)
#define LAYOUT_SHADOW(F, S) \
    F(S, offset, 0, 8)      \
    F(S, size, 8, 8)        \
    F(S, fd_index, 16, 4)   \
    F(S, type, 20, 4)       \
    F(S, flags, 24, 4)      \
    F(S, shadow_mem_fd_index, 28, 4) F(S, shadow_offset, 32, 8) F(S, datamatch, 40, 8)
#define LAYOUT_SET_IRQS(F, S) \
    F(S, argsz, 0, 4)         \
    F(S, flags, 4, 4) F(S, index, 8, 4) F(S, start, 12, 4) F(S, count, 16, 4)
#define LAYOUT_REGION_ACCESS(F, S) F(S, offset, 0, 8) F(S, region, 8, 4) F(S, count, 12, 4)
#define LAYOUT_DMA_ACCESS(F, S)    F(S, address, 0, 8) F(S, count, 8, 8)
#define LAYOUT_WRITE_MULTI(F, S)   F(S, count, 0, 8)
#define LAYOUT_MULTI_ENTRY(F, S) \
    F(S, offset, 0, 8) F(S, region, 8, 4) F(S, count, 12, 4) F(S, data, 16, 8)
#define LAYOUT_FEATURE(F, S)  F(S, argsz, 0, 4) F(S, flags, 4, 4)
#define LAYOUT_MIG_DATA(F, S) F(S, argsz, 0, 4) F(S, size, 4, 4)

#define ASSERT_FIELD(S, member, at, len)                                                           \
    _Static_assert(offsetof(struct S, member) == (at) && sizeof(((struct S *)0)->member) == (len), \
                   #S "." #member " is not where the protocol has it");
#define FIELD_ROW(S, member, at, len) { #member, at, len },

#define ASSERT_LAYOUT(S, LAYOUT, len) \
    LAYOUT(ASSERT_FIELD, S)           \
    _Static_assert(sizeof(struct S) == (len), #S " is not as long as the protocol has it")
/* The assertions, and the rows S_fields. */
#define DEFINE_FIELDS(S, LAYOUT, len) \
    ASSERT_LAYOUT(S, LAYOUT, len);    \
    static const struct ob_field S##_fields[] = { LAYOUT(FIELD_ROW, S) }

/* clang-format off */
ASSERT_LAYOUT(ob_wire_hdr, LAYOUT_HDR, 16);
ASSERT_LAYOUT(ob_wire_bitmap, LAYOUT_BITMAP, 16);
ASSERT_LAYOUT(ob_wire_cap, LAYOUT_CAP, 8);
ASSERT_LAYOUT(ob_wire_cap_sparse, LAYOUT_CAP_SPARSE, 16);
ASSERT_LAYOUT(ob_wire_sparse_area, LAYOUT_SPARSE_AREA, 16);
ASSERT_LAYOUT(ob_wire_cap_type, LAYOUT_CAP_TYPE, 16);
ASSERT_LAYOUT(ob_wire_ioeventfd, LAYOUT_IOEVENTFD, 40);
ASSERT_LAYOUT(ob_wire_ioeventfd_shadow, LAYOUT_SHADOW, 48);
ASSERT_LAYOUT(ob_wire_write_multi_entry, LAYOUT_MULTI_ENTRY, 24);
DEFINE_FIELDS(ob_wire_version, LAYOUT_VERSION, 4);
DEFINE_FIELDS(ob_wire_dma_map, LAYOUT_DMA_MAP, 32);
DEFINE_FIELDS(ob_wire_dma_unmap, LAYOUT_DMA_UNMAP, 24);
DEFINE_FIELDS(ob_wire_device_info, LAYOUT_DEVICE_INFO, 16);
DEFINE_FIELDS(ob_wire_region_info, LAYOUT_REGION_INFO, 32);
DEFINE_FIELDS(ob_wire_region_io_fds, LAYOUT_INDEXED, 16);
DEFINE_FIELDS(ob_wire_irq_info, LAYOUT_INDEXED, 16);
DEFINE_FIELDS(ob_wire_set_irqs, LAYOUT_SET_IRQS, 20);
DEFINE_FIELDS(ob_wire_region_access, LAYOUT_REGION_ACCESS, 16);
DEFINE_FIELDS(ob_wire_dma_access, LAYOUT_DMA_ACCESS, 16);
DEFINE_FIELDS(ob_wire_write_multi, LAYOUT_WRITE_MULTI, 8);
DEFINE_FIELDS(ob_wire_feature, LAYOUT_FEATURE, 8);
DEFINE_FIELDS(ob_wire_mig_data, LAYOUT_MIG_DATA, 8);
/* clang-format on */

#define BITMAP      ((uint32_t)sizeof(struct ob_wire_bitmap))
#define IO_FDS      (OB_IOEVENTFDS_MAX * (uint32_t)sizeof(struct ob_wire_ioeventfd_shadow))
#define MULTI       (OB_WRITE_MULTI_MAX * (uint32_t)sizeof(struct ob_wire_write_multi_entry))
#define REPORT      ((uint32_t)sizeof(struct ob_wire_logging_report))
#define REGION_CAPS (OB_REGION_INFO_MAX - (uint32_t)sizeof(struct ob_wire_region_info))

/* min to sizeof(struct S) + variable bytes; the fixed part is S. */
#define SHAPE_MIN(least, S, variable, fds)                     \
    {                                                          \
        least, sizeof(struct S) + (variable), fds, S##_fields, \
            sizeof(S##_fields) / sizeof(S##_fields[0])         \
    }
#define SHAPE(S, variable, fds) SHAPE_MIN(sizeof(struct S), S, variable, fds)
#define EMPTY \
    {         \
        0     \
    }

/* Sender, states, live; then the request's shape and the reply's. */
#define ROW(name, ...) [OB_CMD_##name] = { OB_CMD_##name, #name, __VA_ARGS__ }
#define OPEN           OB_CLIENT_TO_SERVER, OB_STATE_NEGOTIATE, true
#define C2S            OB_CLIENT_TO_SERVER, OB_STATE_READY, true
#define S2C            OB_SERVER_TO_CLIENT, OB_STATE_READY, true
#define GONE           OB_CLIENT_TO_SERVER, OB_STATE_READY, false

/*
 * Where a row takes more than the protocol says, a peer in the field sends it:
 *   DMA_UNMAP        SPDK attaches the mapping's fd; libvfio-user without DMA leaves the reply
 *                    empty
 *   GET_REGION_INFO  SPDK sends a request of 4064 bytes
 *   REGION_READ, REGION_WRITE  libvfio-user answers an access of no bytes with the header alone
 *   DEVICE_FEATURE   libvfio-user answers a REPORT over several mappings with the header alone
 *   DMA_WRITE        QEMU up to 10.2 answers with the header alone, the old document had 12 bytes
 */
static const struct ob_msg_type table[OB_CMD_LAST + 1] = {
    ROW(VERSION, OPEN, SHAPE(ob_wire_version, OB_VERSION_JSON_MAX, 0),
        SHAPE(ob_wire_version, OB_VERSION_JSON_MAX, 2)), /* the second socket, the ring */
    ROW(DMA_MAP, C2S, SHAPE(ob_wire_dma_map, 0, 1), EMPTY),
    ROW(DMA_UNMAP, C2S, SHAPE(ob_wire_dma_unmap, BITMAP, 1),
        SHAPE_MIN(0, ob_wire_dma_unmap, BITMAP + OB_DATA_XFER_MAX, 0)),
    ROW(DEVICE_GET_INFO, C2S, SHAPE(ob_wire_device_info, 0, 0), SHAPE(ob_wire_device_info, 0, 0)),
    ROW(DEVICE_GET_REGION_INFO, C2S, SHAPE(ob_wire_region_info, REGION_CAPS, 0),
        SHAPE(ob_wire_region_info, REGION_CAPS, 1)),
    ROW(DEVICE_GET_REGION_IO_FDS, C2S, SHAPE(ob_wire_region_io_fds, 0, 0),
        SHAPE(ob_wire_region_io_fds, IO_FDS, 2 * OB_IOEVENTFDS_MAX)),
    ROW(DEVICE_GET_IRQ_INFO, C2S, SHAPE(ob_wire_irq_info, 0, 0), SHAPE(ob_wire_irq_info, 0, 0)),
    ROW(DEVICE_SET_IRQS, C2S, SHAPE(ob_wire_set_irqs, OB_IRQ_VECTORS_MAX, OB_MSG_FDS_MAX), EMPTY),
    ROW(REGION_READ, C2S, SHAPE(ob_wire_region_access, 0, 0),
        SHAPE_MIN(0, ob_wire_region_access, OB_DATA_XFER_MAX, 0)),
    ROW(REGION_WRITE, C2S, SHAPE(ob_wire_region_access, OB_DATA_XFER_MAX, 0),
        SHAPE_MIN(0, ob_wire_region_access, 0, 0)),
    ROW(DMA_READ, S2C, SHAPE(ob_wire_dma_access, 0, 0),
        SHAPE(ob_wire_dma_access, OB_DATA_XFER_MAX, 0)),
    ROW(DMA_WRITE, S2C, SHAPE(ob_wire_dma_access, OB_DATA_XFER_MAX, 0),
        SHAPE_MIN(0, ob_wire_dma_access, 0, 0)),
    ROW(DEVICE_RESET, C2S, EMPTY, EMPTY),
    ROW(DIRTY_PAGES, GONE, EMPTY, EMPTY),
    ROW(REGION_WRITE_MULTI, C2S, SHAPE(ob_wire_write_multi, MULTI, 0),
        SHAPE(ob_wire_write_multi, 0, 0)),
    ROW(DEVICE_FEATURE, C2S, SHAPE(ob_wire_feature, OB_DATA_XFER_MAX, 0),
        SHAPE_MIN(0, ob_wire_feature, REPORT + OB_DATA_XFER_MAX, 0)),
    ROW(MIG_DATA_READ, C2S, SHAPE(ob_wire_mig_data, 0, 0),
        SHAPE(ob_wire_mig_data, OB_DATA_XFER_MAX, 0)),
    ROW(MIG_DATA_WRITE, C2S, SHAPE(ob_wire_mig_data, OB_DATA_XFER_MAX, 0), EMPTY),
};

const struct ob_msg_type *ob_msg_type(uint16_t cmd)
{
    return cmd >= OB_CMD_VERSION && cmd <= OB_CMD_LAST ? &table[cmd] : NULL;
}

static enum ob_reason check_size(const struct ob_wire_hdr *hdr, uint32_t min, uint32_t max)
{
    if (hdr->msg_size < sizeof(*hdr) || hdr->msg_size - sizeof(*hdr) < min)
        return OB_TOO_SHORT;
    return hdr->msg_size - sizeof(*hdr) > max ? OB_TOO_LONG : OB_OK;
}

enum ob_reason ob_check_command(const struct ob_wire_hdr *hdr, enum ob_dir dir, enum ob_state state)
{
    const struct ob_msg_type *type = ob_msg_type(hdr->cmd);

    if ((hdr->flags & OB_HDR_TYPE_MASK) != OB_HDR_COMMAND)
        return OB_BAD_TYPE;
    if (hdr->flags & ~(OB_HDR_TYPE_MASK | OB_HDR_NO_REPLY))
        return OB_BAD_FLAGS;
    if (!type || !type->live)
        return OB_BAD_CMD;
    if (type->dir != dir)
        return OB_BAD_DIRECTION;
    if (!(type->states & state))
        return OB_BAD_STATE;
    return check_size(hdr, type->request.min, type->request.max);
}

enum ob_reason ob_check_reply(const struct ob_wire_hdr *hdr, uint16_t cmd)
{
    const struct ob_msg_type *type = ob_msg_type(cmd);

    if ((hdr->flags & OB_HDR_TYPE_MASK) != OB_HDR_REPLY)
        return OB_BAD_TYPE;
    if (hdr->flags & ~(OB_HDR_TYPE_MASK | OB_HDR_ERROR))
        return OB_BAD_FLAGS;
    if (hdr->cmd != cmd)
        return OB_BAD_CMD;
    /* Also to a command that nobody knows: that is how a peer refuses it. */
    if (hdr->flags & OB_HDR_ERROR)
        return check_size(hdr, 0, OB_PAYLOAD_MAX);
    if (!type || !type->live)
        return OB_BAD_CMD;
    return check_size(hdr, type->reply.min, type->reply.max);
}

int ob_reason_errno(enum ob_reason reason)
{
    return reason == OB_OK ? 0 : EINVAL;
}
