/* SPDX-License-Identifier: BSD-3-Clause */
/* The JSON of the VERSION messages. */
#include "channel/channel.h"
#include "harness.h"

#include <errno.h>
#include <stdio.h>

#define CAPS(text) "{\"capabilities\":{" text "}}"

/* What the text says, as a request and as a reply. */
static void accept_as(const char *json, bool is_reply, struct ob_caps *caps)
{
    const char *why = NULL;
    int rc = ob_caps_parse(json, strlen(json) + 1, is_reply, caps, &why);

    if (rc != 0)
        test_fail(__FILE__, __LINE__, "refused: %s: %s", json, why);
}

static void refuse_as(const char *json, bool is_reply, const char *why_part)
{
    struct ob_caps caps, before;
    const char *why = NULL;

    memset(&caps, 0x5a, sizeof(caps));
    before = caps;
    if (ob_caps_parse(json, strlen(json) + 1, is_reply, &caps, &why) != -EINVAL)
        test_fail(__FILE__, __LINE__, "not refused: %s", json);
    if (!why || !strstr(why, why_part))
        test_fail(__FILE__, __LINE__, "%s: refused with: %s", json, why ? why : "nothing");
    /* NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): untouched means its padding, too */
    CHECK_MEM(&caps, &before, sizeof(caps));
}

static void refuse(const char *json, const char *why_part)
{
    refuse_as(json, false, why_part);
    refuse_as(json, true, why_part);
}

static void check_default(const struct ob_caps *caps)
{
    CHECK_INT(caps->max_msg_fds, 1);
    CHECK_INT(caps->max_data_xfer_size, 1048576);
    CHECK_INT(caps->max_dma_maps, 65535);
    CHECK_INT(caps->pgsizes, 4096);
    CHECK(!caps->write_multiple && !caps->twin_socket && !caps->migration);
    CHECK_INT(caps->twin_fd_index, -1);
}

TEST(defaults, "silence-means-defaults")
{
    static const char *const silent[] = {
        "",         "{}", CAPS(""), "{\"x\":[1,2]}", CAPS("\"unknown\":{\"max_msg_fds\":\"x\"}"),
        " \n{ } \t"
    };
    struct ob_caps caps;
    const char *why;

    CHECK_INT(ob_caps_parse(NULL, 0, false, &caps, &why), 0);
    check_default(&caps);
    for (size_t i = 0; i < sizeof(silent) / sizeof(silent[0]); i++) {
        memset(&caps, 0x5a, sizeof(caps));
        accept_as(silent[i], i % 2, &caps);
        check_default(&caps);
    }
    ob_caps_offer(&caps);
    CHECK_INT(caps.max_msg_fds, OB_MSG_FDS_OFFER);
    CHECK_INT(caps.max_data_xfer_size, OB_DATA_XFER_MAX);
    CHECK(caps.write_multiple);
}

/* Texts as the known peers send them. */
TEST(peers, "known-peers-are-understood")
{
    struct ob_caps caps;

    accept_as(CAPS("\"max_msg_fds\": 16, \"max_data_xfer_size\": 1048576, \"max_dma_maps\": 65535, "
                   "\"pgsizes\": 4096, \"write_multiple\": true, "
                   "\"migration\": {\"pgsize\": 4096, \"max_bitmap_size\": 268435456}"),
              false, &caps);
    CHECK_INT(caps.max_msg_fds, 16);
    CHECK(caps.write_multiple && caps.migration);
    CHECK_INT(caps.migration_pgsize, 4096);
    CHECK_INT(caps.migration_max_bitmap_size, 268435456);
    accept_as(CAPS("\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,"
                   "\"twin_socket\":{\"supported\":true,\"fd_index\":0},"
                   "\"migration\":{\"pgsize\":4096}"),
              true, &caps);
    CHECK_INT(caps.max_msg_fds, 8);
    CHECK(caps.twin_socket);
    CHECK_INT(caps.twin_fd_index, 0);
    CHECK_INT(caps.migration_max_bitmap_size, 0);
    accept_as(
        CAPS("\"max_msg_fds\":1,\"max_data_xfer_size\":1048576,\"migration\":{\"pgsize\":65536}"),
        true, &caps);
    CHECK_INT(caps.migration_pgsize, 65536);
    accept_as(CAPS("\"twin_socket\":{\"supported\":true}"), false, &caps);
    CHECK(caps.twin_socket);
    accept_as(CAPS("\"twin_socket\":{}"), true, &caps);
    CHECK(!caps.twin_socket);
    accept_as(CAPS("\"migration\":{}"), true, &caps);
    CHECK(caps.migration);
    CHECK_INT(caps.migration_pgsize, 4096);
}

TEST(limits, "limits-of-each-number")
{
    struct ob_caps caps;

    accept_as(
        CAPS("\"max_msg_fds\":0,\"max_data_xfer_size\":1,\"max_dma_maps\":1,\"pgsizes\":4096"),
        false, &caps);
    CHECK_INT(caps.max_msg_fds, 0);
    CHECK_INT(caps.max_data_xfer_size, 1);
    accept_as(CAPS("\"max_msg_fds\":4294967295,\"max_data_xfer_size\":4294967295,"
                   "\"max_dma_maps\":4294967295,\"pgsizes\":9223372036854771712"),
              false, &caps);
    CHECK_INT(caps.max_msg_fds, UINT32_MAX);
    CHECK_INT(caps.max_data_xfer_size, UINT32_MAX);
    CHECK_INT(caps.max_dma_maps, UINT32_MAX);
    CHECK_INT(caps.pgsizes, INT64_MAX - 4095);
    refuse(CAPS("\"max_msg_fds\":-1"), "max_msg_fds");
    refuse(CAPS("\"max_msg_fds\":4294967296"), "max_msg_fds");
    refuse(CAPS("\"max_data_xfer_size\":0"), "max_data_xfer_size");
    refuse(CAPS("\"max_data_xfer_size\":-4096"), "max_data_xfer_size");
    refuse(CAPS("\"max_data_xfer_size\":4294967296"), "max_data_xfer_size");
    refuse(CAPS("\"max_dma_maps\":0"), "max_dma_maps");
    refuse(CAPS("\"max_dma_maps\":4294967296"), "max_dma_maps");
    refuse(CAPS("\"pgsizes\":0"), "pgsizes");
    refuse(CAPS("\"pgsizes\":2048"), "pgsizes");
    refuse(CAPS("\"pgsizes\":6144"), "pgsizes");
    refuse(CAPS("\"pgsizes\":99999999999999999999"), "JSON");
    refuse(CAPS("\"migration\":{\"pgsize\":0}"), "pgsize");
    refuse(CAPS("\"migration\":{\"pgsize\":5000}"), "pgsize");
    refuse(CAPS("\"migration\":{\"max_bitmap_size\":0}"), "max_bitmap_size");
}

TEST(types, "wrong-types-are-refused-by-name")
{
    static const char *const numbers[] = { "max_msg_fds", "max_data_xfer_size", "max_dma_maps",
                                           "pgsizes" };
    static const char *const not_numbers[] = { "\"8\"", "8.0", "true", "null", "[8]", "{}", "1e3" };
    char json[200];

    for (size_t i = 0; i < 4; i++) {
        for (size_t k = 0; k < sizeof(not_numbers) / sizeof(not_numbers[0]); k++) {
            snprintf(json, sizeof(json), CAPS("\"%s\":%s"), numbers[i], not_numbers[k]);
            refuse(json, numbers[i]);
        }
    }
    refuse(CAPS("\"write_multiple\":1"), "write_multiple");
    refuse(CAPS("\"write_multiple\":null"), "write_multiple");
    refuse(CAPS("\"mapped_order\":1"), "mapped_order");
    refuse(CAPS("\"twin_socket\":true"), "twin_socket");
    refuse(CAPS("\"twin_socket\":{\"supported\":1}"), "supported");
    refuse(CAPS("\"migration\":true"), "migration");
    refuse(CAPS("\"migration\":{\"pgsize\":\"4096\"}"), "pgsize");
    refuse("{\"capabilities\":[]}", "capabilities");
    refuse("{\"capabilities\":null}", "capabilities");
    refuse("[]", "object");
    refuse("7", "JSON");
    refuse("{", "JSON");
    refuse("{} x", "JSON");
    refuse("{\"capabilities\":{}", "JSON");
    refuse("{\"\xff\":1}", "JSON");
}

TEST(twin_index, "twin-socket-of-a-reply-needs-its-fd")
{
    refuse_as(CAPS("\"twin_socket\":{\"supported\":true}"), true, "fd_index");
    refuse_as(CAPS("\"twin_socket\":{\"supported\":true,\"fd_index\":-1}"), true, "fd_index");
    refuse_as(CAPS("\"twin_socket\":{\"supported\":true,\"fd_index\":253}"), true, "fd_index");
    refuse_as(CAPS("\"twin_socket\":{\"supported\":true,\"fd_index\":\"0\"}"), true, "fd_index");
}

TEST(bounds, "text-is-bounded")
{
    static char text[OB_VERSION_JSON_MAX + 1];
    struct ob_caps caps;
    const char *why;

    /* No NUL; the NUL first; and what follows a NUL does not count. */
    CHECK_INT(ob_caps_parse("{}", 2, false, &caps, &why), -EINVAL);
    CHECK(strstr(why, "NUL"));
    CHECK_INT(ob_caps_parse("\0{", 2, false, &caps, &why), 0);
    CHECK_INT(ob_caps_parse("{}\0garbage", 10, false, &caps, &why), 0);

    memset(text, ' ', sizeof(text));
    memcpy(text, "{}", 2);
    text[sizeof(text) - 2] = '\0';
    CHECK_INT(ob_caps_parse(text, sizeof(text) - 1, false, &caps, &why), 0);
    CHECK_INT(ob_caps_parse(text, sizeof(text), false, &caps, &why), -EINVAL);
    CHECK(strstr(why, "long"));
    /* As deeply nested as it can get. */
    memset(text, '[', sizeof(text) - 2);
    CHECK_INT(ob_caps_parse(text, sizeof(text) - 1, false, &caps, &why), -EINVAL);
    for (size_t i = 0; i + 6 < sizeof(text) - 2; i += 5)
        memcpy(text + i, "{\"a\":", 5);
    CHECK_INT(ob_caps_parse(text, sizeof(text) - 1, false, &caps, &why), -EINVAL);
}

TEST(round_trip, "printed-text-is-parsed-to-the-same")
{
    char buf[OB_VERSION_JSON_MAX];
    struct ob_caps caps, back;

    for (unsigned bits = 0; bits < 256; bits++) {
        bool is_reply = bits & 1;
        ob_caps_offer(&caps);
        caps.write_multiple = bits & 2;
        caps.twin_socket = bits & 4;
        caps.twin_fd_index = is_reply && caps.twin_socket ? 3 : -1;
        caps.migration = bits & 8;
        caps.migration_pgsize = caps.migration ? 65536 : 0;
        caps.migration_max_bitmap_size = caps.migration && (bits & 16) ? 268435456 : 0;
        if (bits & 32)
            caps.max_dma_maps = 7;
        if (bits & 64)
            caps.pgsizes = 4096 | 1u << 21;
        caps.mapped_order = bits & 128;
        int len = ob_caps_print(&caps, is_reply, buf, sizeof(buf));
        CHECK(len > 0);
        CHECK_INT(len, strlen(buf) + 1);
        accept_as(buf, is_reply, &back);
        CHECK_INT(back.max_msg_fds, caps.max_msg_fds);
        CHECK_INT(back.max_data_xfer_size, caps.max_data_xfer_size);
        CHECK_INT(back.max_dma_maps, caps.max_dma_maps);
        CHECK_INT(back.pgsizes, caps.pgsizes);
        CHECK_INT(back.write_multiple, caps.write_multiple);
        CHECK_INT(back.mapped_order, caps.mapped_order);
        CHECK_INT(back.twin_socket, caps.twin_socket);
        CHECK_INT(back.twin_fd_index, caps.twin_fd_index);
        CHECK_INT(back.migration, caps.migration);
        CHECK_INT(back.migration_pgsize, caps.migration_pgsize);
        CHECK_INT(back.migration_max_bitmap_size, caps.migration_max_bitmap_size);
    }
}

TEST(fits, "our-texts-fit-and-one-byte-less-is-an-error")
{
    char buf[OB_VERSION_JSON_QEMU + 1];
    struct ob_caps caps;

    ob_caps_offer(&caps);
    caps.write_multiple = caps.twin_socket = caps.migration = true;
    caps.twin_fd_index = 0;
    caps.migration_pgsize = 4096;
    int len = ob_caps_print(&caps, true, buf, OB_VERSION_JSON_QEMU);
    CHECK(len > 0); /* QEMU's client takes it with everything on */
    for (int size = 0; size < len; size++) {
        memset(buf, 'x', sizeof(buf));
        CHECK_INT(ob_caps_print(&caps, true, buf, (size_t)size), -ENOSPC);
        CHECK_INT(buf[size], 'x');
    }
    CHECK_INT(ob_caps_print(&caps, true, buf, (size_t)len), len);
}
