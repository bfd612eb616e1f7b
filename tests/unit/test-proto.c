/* SPDX-License-Identifier: BSD-3-Clause */
/* The message table, against the numbers of the protocol's document written down a second time. */
#include "outboard/proto.h"
#include "harness.h"

#include <errno.h>

#define HDR   sizeof(struct ob_wire_hdr)
#define XFER  1048576u
#define COUNT 18

static const struct expected {
    const char *name;
    char sender; /* Client or Server; 0: the number is retired */
    uint32_t req_min, req_max, req_fds, reply_min, reply_max, reply_fds;
} expected[COUNT + 1] = {
    [1] = { "VERSION", 'C', 4, 4100, 0, 4, 4100, 2 },
    [2] = { "DMA_MAP", 'C', 32, 32, 1, 0, 0, 0 },
    [3] = { "DMA_UNMAP", 'C', 24, 40, 1, 0, 40 + XFER, 0 },
    [4] = { "DEVICE_GET_INFO", 'C', 16, 16, 0, 16, 16, 0 },
    [5] = { "DEVICE_GET_REGION_INFO", 'C', 32, 4096, 0, 32, 4096, 1 },
    [6] = { "DEVICE_GET_REGION_IO_FDS", 'C', 16, 16, 0, 16, 16 + 64 * 48, 128 },
    [7] = { "DEVICE_GET_IRQ_INFO", 'C', 16, 16, 0, 16, 16, 0 },
    [8] = { "DEVICE_SET_IRQS", 'C', 20, 20 + 2048, 253, 0, 0, 0 },
    [9] = { "REGION_READ", 'C', 16, 16, 0, 0, 16 + XFER, 0 },
    [10] = { "REGION_WRITE", 'C', 16, 16 + XFER, 0, 0, 16, 0 },
    [11] = { "DMA_READ", 'S', 16, 16, 0, 16, 16 + XFER, 0 },
    [12] = { "DMA_WRITE", 'S', 16, 16 + XFER, 0, 0, 16, 0 },
    [13] = { "DEVICE_RESET", 'C', 0, 0, 0, 0, 0, 0 },
    [14] = { "DIRTY_PAGES", 0, 0, 0, 0, 0, 0, 0 },
    [15] = { "REGION_WRITE_MULTI", 'C', 8, 8 + 43690 * 24, 0, 8, 8, 0 },
    [16] = { "DEVICE_FEATURE", 'C', 8, 8 + XFER, 0, 0, 32 + XFER, 0 },
    [17] = { "MIG_DATA_READ", 'C', 8, 8, 0, 8, 8 + XFER, 0 },
    [18] = { "MIG_DATA_WRITE", 'C', 8, 8 + XFER, 0, 0, 0, 0 },
};

static enum ob_dir dir_of(const struct expected *e)
{
    return e->sender == 'S' ? OB_SERVER_TO_CLIENT : OB_CLIENT_TO_SERVER;
}

static enum ob_state state_of(uint16_t cmd)
{
    return cmd == 1 ? OB_STATE_NEGOTIATE : OB_STATE_READY;
}

static enum ob_reason command(uint16_t cmd, uint32_t payload, uint32_t flags)
{
    const struct ob_wire_hdr hdr = { .cmd = cmd, .msg_size = HDR + payload, .flags = flags };

    return ob_check_command(&hdr, dir_of(&expected[cmd]), state_of(cmd));
}

static enum ob_reason reply(uint16_t cmd, uint32_t payload, uint32_t flags)
{
    const struct ob_wire_hdr hdr = { .cmd = cmd, .msg_size = HDR + payload, .flags = flags };

    return ob_check_reply(&hdr, cmd);
}

TEST(rows, "rows-are-those-of-the-protocol")
{
    for (uint16_t cmd = 1; cmd <= COUNT; cmd++) {
        const struct ob_msg_type *type = ob_msg_type(cmd);
        const struct expected *e = &expected[cmd];
        CHECK(type);
        CHECK_INT(type->cmd, cmd);
        CHECK_STR(type->name, e->name);
        CHECK_INT(type->live, e->sender != 0);
        CHECK_INT(type->dir, dir_of(e));
        CHECK_INT(type->states, state_of(cmd));
        CHECK_INT(type->request.min, e->req_min);
        CHECK_INT(type->request.max, e->req_max);
        CHECK_INT(type->request.fds_max, e->req_fds);
        CHECK_INT(type->reply.min, e->reply_min);
        CHECK_INT(type->reply.max, e->reply_max);
        CHECK_INT(type->reply.fds_max, e->reply_fds);
        CHECK(type->request.max <= OB_PAYLOAD_MAX);
        CHECK(type->reply.max <= OB_PAYLOAD_MAX);
    }
    CHECK(!ob_msg_type(0));
    CHECK(!ob_msg_type(COUNT + 1));
    CHECK(!ob_msg_type(UINT16_MAX));
}

static void check_fields(const struct ob_shape *shape)
{
    uint32_t end = 0;

    CHECK((shape->fields == NULL) == (shape->nfields == 0));
    for (unsigned i = 0; i < shape->nfields; i++) {
        CHECK(shape->fields[i].name && shape->fields[i].name[0]);
        CHECK_INT(shape->fields[i].offset, end);
        CHECK(shape->fields[i].size);
        end += shape->fields[i].size;
    }
    if (shape->min)
        CHECK_INT(end, shape->min);
    CHECK(end <= shape->max);
}

TEST(fields, "fields-cover-the-fixed-part-without-gaps")
{
    for (uint16_t cmd = 1; cmd <= COUNT; cmd++) {
        check_fields(&ob_msg_type(cmd)->request);
        check_fields(&ob_msg_type(cmd)->reply);
    }
}

TEST(command_sizes, "commands-shortest-longest-and-one-beyond")
{
    for (uint16_t cmd = 1; cmd <= COUNT; cmd++) {
        const struct expected *e = &expected[cmd];
        if (!e->sender)
            continue;
        CHECK_INT(command(cmd, e->req_min, 0), OB_OK);
        CHECK_INT(command(cmd, e->req_max, 0), OB_OK);
        CHECK_INT(command(cmd, e->req_min, OB_HDR_NO_REPLY), OB_OK);
        CHECK_INT(command(cmd, e->req_min - 1, 0), OB_TOO_SHORT);
        CHECK_INT(command(cmd, e->req_max + 1, 0), OB_TOO_LONG);
        CHECK_INT(command(cmd, UINT32_MAX - HDR, 0), OB_TOO_LONG);
    }
}

TEST(reply_sizes, "replies-shortest-longest-and-one-beyond")
{
    for (uint16_t cmd = 1; cmd <= COUNT; cmd++) {
        const struct expected *e = &expected[cmd];
        if (!e->sender)
            continue;
        CHECK_INT(reply(cmd, e->reply_min, OB_HDR_REPLY), OB_OK);
        CHECK_INT(reply(cmd, e->reply_max, OB_HDR_REPLY), OB_OK);
        CHECK_INT(reply(cmd, e->reply_min - 1, OB_HDR_REPLY), OB_TOO_SHORT);
        CHECK_INT(reply(cmd, e->reply_max + 1, OB_HDR_REPLY), OB_TOO_LONG);
    }
}

TEST(error_replies, "error-replies-may-have-any-payload")
{
    const uint32_t error = OB_HDR_REPLY | OB_HDR_ERROR;

    for (uint16_t cmd = 0; cmd <= COUNT + 1; cmd++) {
        CHECK_INT(reply(cmd, 0, error), OB_OK);
        CHECK_INT(reply(cmd, 1, error), OB_OK);
        CHECK_INT(reply(cmd, OB_PAYLOAD_MAX, error), OB_OK);
        CHECK_INT(reply(cmd, OB_PAYLOAD_MAX + 1, error), OB_TOO_LONG);
        CHECK_INT(reply(cmd, UINT32_MAX, error), OB_TOO_SHORT); /* msg_size 15 */
    }
}

TEST(directions, "commands-of-the-wrong-side")
{
    for (uint16_t cmd = 1; cmd <= COUNT; cmd++) {
        const struct expected *e = &expected[cmd];
        const struct ob_wire_hdr hdr = { .cmd = cmd, .msg_size = HDR + e->req_min };
        if (e->sender)
            CHECK_INT(ob_check_command(&hdr, !dir_of(e), state_of(cmd)), OB_BAD_DIRECTION);
    }
}

TEST(states, "commands-in-the-wrong-state")
{
    for (uint16_t cmd = 1; cmd <= COUNT; cmd++) {
        const struct expected *e = &expected[cmd];
        const struct ob_wire_hdr hdr = { .cmd = cmd, .msg_size = HDR + e->req_min };
        enum ob_state other = cmd == 1 ? OB_STATE_READY : OB_STATE_NEGOTIATE;
        if (e->sender)
            CHECK_INT(ob_check_command(&hdr, dir_of(e), other), OB_BAD_STATE);
    }
}

TEST(unknown, "unknown-and-retired-commands")
{
    static const uint16_t none[] = { 0, 14, 19, 255, 256, UINT16_MAX };

    for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++) {
        struct ob_wire_hdr hdr = { .cmd = none[i], .msg_size = HDR };
        CHECK_INT(ob_check_command(&hdr, OB_CLIENT_TO_SERVER, OB_STATE_READY), OB_BAD_CMD);
        CHECK_INT(ob_check_command(&hdr, OB_SERVER_TO_CLIENT, OB_STATE_READY), OB_BAD_CMD);
        CHECK_INT(ob_check_command(&hdr, OB_CLIENT_TO_SERVER, OB_STATE_NEGOTIATE), OB_BAD_CMD);
        hdr.flags = OB_HDR_REPLY;
        CHECK_INT(ob_check_reply(&hdr, none[i]), OB_BAD_CMD);
    }
}

TEST(header_flags, "undefined-header-flags")
{
    for (uint32_t flags = 0; flags < 256; flags++) {
        uint32_t type = flags & OB_HDR_TYPE_MASK, rest = flags & ~OB_HDR_TYPE_MASK;
        enum ob_reason want = OB_OK;
        if (type != OB_HDR_COMMAND)
            want = OB_BAD_TYPE;
        else if (rest & ~OB_HDR_NO_REPLY)
            want = OB_BAD_FLAGS;
        CHECK_INT(command(OB_CMD_DEVICE_RESET, 0, flags), want);
        want = OB_OK;
        if (type != OB_HDR_REPLY)
            want = OB_BAD_TYPE;
        else if (rest & ~OB_HDR_ERROR)
            want = OB_BAD_FLAGS;
        CHECK_INT(reply(OB_CMD_DEVICE_RESET, 0, flags), want);
    }
    CHECK_INT(command(OB_CMD_DEVICE_RESET, 0, 0x80000000u), OB_BAD_FLAGS);
    /* A reserved error_no is nothing to a command. */
    const struct ob_wire_hdr hdr = { .cmd = 13, .msg_size = HDR, .error_no = 5 };
    CHECK_INT(ob_check_command(&hdr, OB_CLIENT_TO_SERVER, OB_STATE_READY), OB_OK);
}

TEST(wrong_reply, "reply-to-another-command")
{
    const struct ob_wire_hdr hdr = { .cmd = 4, .msg_size = HDR + 16, .flags = OB_HDR_REPLY };

    CHECK_INT(ob_check_reply(&hdr, 4), OB_OK);
    CHECK_INT(ob_check_reply(&hdr, 7), OB_BAD_CMD);
}

TEST(sizes_below_header, "msg-size-below-the-header")
{
    for (uint32_t size = 0; size < HDR; size++) {
        struct ob_wire_hdr hdr = { .cmd = OB_CMD_DEVICE_RESET, .msg_size = size };
        CHECK_INT(ob_check_command(&hdr, OB_CLIENT_TO_SERVER, OB_STATE_READY), OB_TOO_SHORT);
        hdr.flags = OB_HDR_REPLY;
        CHECK_INT(ob_check_reply(&hdr, OB_CMD_DEVICE_RESET), OB_TOO_SHORT);
    }
}

TEST(names, "names-are-never-null")
{
    for (unsigned i = 0; i < 70000; i++) {
        CHECK(ob_strcmd((uint16_t)i)[0]);
        CHECK(ob_strirq(i)[0]);
        CHECK(ob_strregion(i)[0]);
        CHECK(ob_strfeature(i)[0]);
        CHECK(ob_strreason((enum ob_reason)i)[0]);
    }
    CHECK_STR(ob_strcmd(OB_CMD_REGION_READ), "REGION_READ");
    CHECK_STR(ob_strirq(OB_PCI_IRQ_INTX), "INTx");
    CHECK_STR(ob_strirq(OB_PCI_IRQ_REQ), "REQ");
    CHECK_STR(ob_strregion(OB_PCI_REGION_BAR5), "BAR5");
    CHECK_STR(ob_strregion(OB_PCI_REGION_CONFIG), "config");
    CHECK_STR(ob_strregion(OB_PCI_REGION_VGA), "VGA");
    CHECK_STR(ob_strfeature(OB_FEATURE_DMA_LOGGING_REPORT), "DMA_LOGGING_REPORT");
    CHECK_INT(ob_reason_errno(OB_OK), 0);
    for (enum ob_reason reason = OB_BAD_TYPE; reason <= OB_TOO_MANY_FDS; reason++)
        CHECK_INT(ob_reason_errno(reason), EINVAL);
}

TEST(cursor, "cursor-never-passes-the-end")
{
    const uint8_t data[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    uint8_t out[8];

    for (size_t len = 0; len <= 8; len++) {
        for (size_t skip = 0; skip <= 8; skip++) {
            for (size_t want = 0; want <= 8; want++) {
                struct ob_cursor cur;
                ob_cursor_init(&cur, data, len);
                memset(out, 0xff, sizeof(out));
                bool ok = ob_cursor_seek(&cur, skip) && ob_cursor_get(&cur, out, want);
                CHECK_INT(ok, skip <= len && want <= len - skip);
                CHECK_INT(cur.failed, !ok);
                CHECK_INT(ob_cursor_left(&cur), ok ? len - skip - want : 0);
                for (size_t i = 0; ok && i < want; i++)
                    CHECK_INT(out[i], data[skip + i]);
                if (!ok) { /* and nothing succeeds any more */
                    CHECK(!ob_cursor_take(&cur, 0));
                    CHECK(!ob_cursor_seek(&cur, 0));
                    CHECK(!ob_cursor_get(&cur, out, 1));
                    CHECK_INT(out[0], 0);
                }
            }
        }
    }
    struct ob_cursor cur;
    ob_cursor_init(&cur, NULL, 0);
    CHECK(ob_cursor_take(&cur, 0));
    CHECK(!ob_cursor_take(&cur, SIZE_MAX));
}

TEST(writer, "writer-never-passes-the-end")
{
    uint8_t buf[5] = { 0, 0, 0, 0, 0xaa };
    struct ob_writer w;

    ob_writer_init(&w, buf, 4);
    ob_writer_put(&w, "ab", 2);
    ob_writer_put(&w, NULL, 0);
    ob_writer_put(&w, "cd", 2);
    CHECK(!w.failed);
    CHECK_INT(w.len, 4);
    ob_writer_put(&w, "e", 1);
    CHECK(w.failed);
    ob_writer_put(&w, NULL, 0);
    CHECK_INT(w.len, 4);
    CHECK_MEM(buf, "abcd\xaa", 5);
}
