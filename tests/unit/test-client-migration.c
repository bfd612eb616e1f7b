/* SPDX-License-Identifier: BSD-3-Clause */
/* Migration against servers that are as libvfio-user's is, small, or wrong. */
#include "harness.h"
#include "scripted.h"

#include <errno.h>
#include <stdio.h>

#define PAGE      4096u
#define BASE      0x10000000ull
#define MIGRATION "{\"capabilities\":{\"max_msg_fds\":8,\"migration\":{\"pgsize\":4096}}}"

/* The next message is this feature with this method; its data, of len bytes. */
static const uint8_t *expect_feature(struct peer *peer, uint32_t flags, uint32_t len)
{
    struct ob_wire_feature head;

    peer_expect(peer, OB_CMD_DEVICE_FEATURE);
    head = PEER_GET(peer, struct ob_wire_feature);
    CHECK_INT(head.flags, flags);
    CHECK_INT(peer->msg->len, sizeof(head) + len);
    return peer->msg->payload + sizeof(head);
}

static void reply_feature(struct peer *peer, uint32_t flags, const void *data, uint32_t len)
{
    struct ob_wire_feature head = { (uint32_t)sizeof(head) + len, flags };
    uint8_t payload[4096];

    memcpy(payload, &head, sizeof(head));
    memcpy(payload + sizeof(head), data, len);
    peer_reply(peer, payload, head.argsz);
}

static void answer_state(struct peer *peer, uint32_t state)
{
    const struct ob_wire_mig_state wire = { .device_state = state };
    const uint32_t flags = OB_FEATURE_GET | OB_FEATURE_MIG_DEVICE_STATE;

    expect_feature(peer, flags, 0);
    reply_feature(peer, flags, &wire, sizeof(wire));
}

static void accept_state(struct peer *peer, uint32_t state)
{
    const uint32_t flags = OB_FEATURE_SET | OB_FEATURE_MIG_DEVICE_STATE;
    struct ob_wire_mig_state wire;

    memcpy(&wire, expect_feature(peer, flags, sizeof(wire)), sizeof(wire));
    CHECK_INT(wire.device_state, state);
    reply_feature(peer, flags, &wire, sizeof(wire));
}

/* Logging begins, in pages of this size. */
static void accept_start(struct peer *peer, uint64_t page_size)
{
    const uint32_t flags = OB_FEATURE_SET | OB_FEATURE_DMA_LOGGING_START;
    struct ob_wire_logging_start wire;

    memcpy(&wire, expect_feature(peer, flags, sizeof(wire)), sizeof(wire));
    wire.page_size = page_size;
    reply_feature(peer, flags, &wire, sizeof(wire));
}

/* A report must be asked for like this; bits are those of its first 64 pages. */
static void answer_report(struct peer *peer, uint64_t iova, uint64_t length, uint64_t page_size,
                          uint64_t bits)
{
    const uint32_t flags = OB_FEATURE_GET | OB_FEATURE_DMA_LOGGING_REPORT;
    uint8_t data[2048] = { 0 };
    struct ob_wire_logging_report wire;

    memcpy(&wire, expect_feature(peer, flags, sizeof(wire)), sizeof(wire));
    CHECK_INT(wire.iova, iova);
    CHECK_INT(wire.length, length);
    CHECK_INT(wire.page_size, page_size);
    memcpy(data, &wire, sizeof(wire));
    memcpy(data + sizeof(wire), &bits, sizeof(bits));
    reply_feature(peer, flags, data, (uint32_t)(sizeof(wire) + ob_bitmap_size(length, page_size)));
}

/* ---- The state ----------------------------------------------------------------------------- */

static void fixed_length(struct peer *peer)
{
    struct ob_wire_mig_data wire = { 18, 10 };
    uint8_t payload[sizeof(wire) + 64] = { 0 };

    memcpy(payload, &wire, sizeof(wire));
    /* NOLINTNEXTLINE(bugprone-not-null-terminated-result): data, no string */
    memcpy(payload + sizeof(wire), "ten bytes.", 10);
    peer_expect(peer, OB_CMD_MIG_DATA_READ);
    CHECK_INT(PEER_GET(peer, struct ob_wire_mig_data).size, 64);
    CHECK_INT(PEER_GET(peer, struct ob_wire_mig_data).argsz, 72);
    peer_reply(peer, payload, sizeof(payload));
    peer_serve(peer);
}

TEST(l8, "data-ends-where-its-size-says-however-long-the-answer-is-l-8")
{
    struct peer peer = { .json = MIGRATION };
    char data[64] = "";

    peer_start(&peer, fixed_length, NULL);
    CHECK_INT(ob_client_mig_read(peer.client, data, sizeof(data)), 10);
    CHECK_STR(data, "ten bytes.");
    peer_stop(&peer);
}

static const struct ob_wire_mig_data wrong_sizes[] = {
    { 8 + 65, 65 },    /* more than was asked for */
    { 8 + 64, 64 },    /* more than there is */
    { 8 + 9, 10 },     /* more than argsz says */
    { 7, 0 },          /* less than the head */
    { 8, UINT32_MAX }, /* nonsense */
};

static void wrong_size(struct peer *peer)
{
    const struct ob_wire_mig_data *wire = peer->arg;
    uint8_t payload[sizeof(*wire) + 32] = { 0 };

    memcpy(payload, wire, sizeof(*wire));
    peer_expect(peer, OB_CMD_MIG_DATA_READ);
    peer_reply(peer, payload, sizeof(payload));
    CHECK(!peer_recv(peer));
}

TEST(wrong, "an-answer-of-another-size-ends-the-connection")
{
    for (size_t i = 0; i < sizeof(wrong_sizes) / sizeof(wrong_sizes[0]); i++) {
        struct peer peer = { .json = MIGRATION, .arg = (void *)&wrong_sizes[i] };
        char data[64] = "untouched";

        peer_start(&peer, wrong_size, NULL);
        CHECK_INT(ob_client_mig_read(peer.client, data, sizeof(data)), -ENOTCONN);
        CHECK_STR(data, "untouched");
        peer_stop(&peer);
    }
}

static void small_pieces(struct peer *peer)
{
    static const uint32_t sizes[] = { 100, 100, 50 };
    uint8_t payload[8 + 100] = { 0 };

    for (unsigned i = 0; i < 3; i++) {
        peer_expect(peer, OB_CMD_MIG_DATA_WRITE);
        CHECK_INT(PEER_GET(peer, struct ob_wire_mig_data).size, sizes[i]);
        CHECK_INT(PEER_GET(peer, struct ob_wire_mig_data).argsz, 8 + sizes[i]);
        CHECK_INT(peer->msg->len, 8 + sizes[i]);
        CHECK_INT(peer->msg->payload[8], i * 100);
        peer_reply(peer, NULL, 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        struct ob_wire_mig_data wire = { i ? 8 + 30 : 8 + 100, i ? 30 : 100 };

        peer_expect(peer, OB_CMD_MIG_DATA_READ);
        CHECK_INT(PEER_GET(peer, struct ob_wire_mig_data).size, 100);
        memcpy(payload, &wire, sizeof(wire));
        peer_reply(peer, payload, wire.argsz);
    }
    peer_serve(peer);
}

TEST(pieces, "the-stream-is-split-to-what-the-server-takes")
{
    struct peer peer = { .json =
                             "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":100}}" };
    uint8_t data[250];

    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)i;
    peer_start(&peer, small_pieces, NULL);
    CHECK_INT(ob_client_mig_write(peer.client, data, sizeof(data)), 0);
    CHECK_INT(ob_client_mig_read(peer.client, data, sizeof(data)), 130);
    peer_stop(&peer);
}

/* ---- Reset --------------------------------------------------------------------------------- */

static void refuse_when_stopped(struct peer *peer)
{
    peer_expect(peer, OB_CMD_DEVICE_RESET);
    peer_error(peer, EINVAL);
    answer_state(peer, OB_MIG_STATE_STOP_COPY);
    accept_state(peer, OB_MIG_STATE_RUNNING);
    peer_expect(peer, OB_CMD_DEVICE_RESET);
    peer_reply(peer, NULL, 0);
}

static void keep_state(struct peer *peer)
{
    peer_expect(peer, OB_CMD_DEVICE_RESET);
    peer_reply(peer, NULL, 0);
    answer_state(peer, OB_MIG_STATE_RESUMING);
    accept_state(peer, OB_MIG_STATE_RUNNING);
}

static void plain_reset(struct peer *peer)
{
    peer_expect(peer, OB_CMD_DEVICE_RESET);
    peer_reply(peer, NULL, 0);
    answer_state(peer, OB_MIG_STATE_RUNNING);
}

TEST(l13, "a-reset-leads-to-running-where-the-server-does-not-see-to-it-l-13")
{
    void (*const scripts[])(struct peer * peer) = { refuse_when_stopped, keep_state, plain_reset };

    for (unsigned i = 0; i < 3; i++) {
        struct peer peer = { .json = MIGRATION };

        peer_start(&peer, scripts[i], NULL);
        CHECK_INT(ob_client_reset(peer.client), 0);
        peer_stop(&peer);
    }
}

/* ---- A device that was left stopped ---------------------------------------------------------- */

static void answer_info(struct peer *peer)
{
    const struct ob_wire_device_info info = { sizeof(info), OB_DEVICE_PCI, 9, 5 };

    peer_expect(peer, OB_CMD_DEVICE_GET_INFO);
    peer_reply(peer, &info, sizeof(info));
}

static void refuse_info(struct peer *peer)
{
    peer_expect(peer, OB_CMD_DEVICE_GET_INFO);
    peer_error(peer, EINVAL);
}

static void left_stopped(struct peer *peer)
{
    refuse_info(peer);
    answer_state(peer, *(const uint32_t *)peer->arg);
    accept_state(peer, OB_MIG_STATE_RUNNING);
    answer_info(peer);
    peer_serve(peer);
}

TEST(stuck, "a-device-that-was-left-stopped-runs-again-l-13")
{
    static const uint32_t states[] = { OB_MIG_STATE_STOP, OB_MIG_STATE_STOP_COPY };

    for (unsigned i = 0; i < 2; i++) {
        struct peer peer = { .json = MIGRATION, .arg = (void *)&states[i] };
        struct ob_device_info info;

        peer_start(&peer, left_stopped, NULL);
        CHECK_INT(ob_client_device_info(peer.client, &info), 0);
        CHECK_INT(info.num_regions, 9);
        peer_stop(&peer);
    }
}

static void stays_stopped(struct peer *peer)
{
    refuse_info(peer);
    answer_state(peer, OB_MIG_STATE_STOP_COPY);
    expect_feature(peer, OB_FEATURE_SET | OB_FEATURE_MIG_DEVICE_STATE, 8);
    peer_error(peer, EIO);
    CHECK(!peer_recv(peer));
}

TEST(stays, "a-device-that-stays-stopped-is-an-error-that-says-so")
{
    struct peer peer = { .json = MIGRATION };
    struct ob_device_info info;

    peer_start(&peer, stays_stopped, NULL);
    CHECK_INT(ob_client_device_info(peer.client, &info), -ENOTCONN);
    CHECK_STR(ob_client_error(peer.client),
              "an earlier client has left the device stopped in a migration, and the server does "
              "not let it run again: Input/output error");
    peer_stop(&peer);
}

static void refuses_all(struct peer *peer)
{
    refuse_info(peer);
    answer_state(peer, OB_MIG_STATE_RUNNING);
    refuse_info(peer);
    expect_feature(peer, OB_FEATURE_GET | OB_FEATURE_MIG_DEVICE_STATE, 0);
    peer_error(peer, EINVAL);
    /* What this client has stopped it does not let run by itself. */
    accept_state(peer, OB_MIG_STATE_STOP);
    refuse_info(peer);
    peer_serve(peer);
}

TEST(refuses, "another-refusal-to-say-what-the-device-is-stays-one")
{
    struct peer peer = { .json = MIGRATION };
    struct ob_device_info info;

    peer_start(&peer, refuses_all, NULL);
    for (unsigned i = 0; i < 2; i++)
        CHECK_INT(ob_peer_errno(ob_client_device_info(peer.client, &info)), EINVAL);
    CHECK_INT(ob_client_mig_state_set(peer.client, OB_MIG_STATE_STOP), 0);
    CHECK_INT(ob_peer_errno(ob_client_device_info(peer.client, &info)), EINVAL);
    peer_stop(&peer);
}

/* ---- Dirty memory -------------------------------------------------------------------------- */

static void one_page_size(struct peer *peer)
{
    accept_start(peer, PAGE);
    answer_report(peer, BASE, 16 * PAGE, PAGE, 0x8001);
    answer_report(peer, BASE, 16 * PAGE, PAGE, 0x8002);
    answer_report(peer, BASE, 16 * PAGE, PAGE, 0x8002);
    peer_serve(peer);
}

TEST(l4, "reports-are-asked-in-the-page-size-of-the-start-only-l-4")
{
    struct peer peer = { .json = MIGRATION };
    uint64_t bits[2] = { 0 };

    peer_start(&peer, one_page_size, NULL);
    CHECK_INT(ob_client_dirty_start(peer.client, PAGE, NULL, 0), 0);
    CHECK_INT(ob_client_dirty_report(peer.client, BASE, 16 * PAGE, PAGE, bits), 0);
    CHECK_INT(bits[0], 0x8001);
    CHECK_INT(ob_client_dirty_report(peer.client, BASE, 16 * PAGE, 4 * PAGE, bits), 0);
    CHECK_INT(bits[0], 0x9);
    CHECK_INT(ob_client_dirty_report(peer.client, BASE, 16 * PAGE, PAGE / 8, bits), 0);
    CHECK_INT(bits[0], 0xff00);
    CHECK_INT(bits[1], 0xff00000000000000u);
    CHECK_INT(ob_client_dirty_report(peer.client, BASE, 16 * PAGE, PAGE + 1, bits), -EINVAL);
    CHECK_INT(ob_client_dirty_report(peer.client, BASE, 0, PAGE, bits), -EINVAL);
    peer_stop(&peer);
}

static void empty_report(struct peer *peer)
{
    accept_start(peer, PAGE);
    expect_feature(peer, OB_FEATURE_GET | OB_FEATURE_DMA_LOGGING_REPORT, 24);
    peer_reply(peer, NULL, 0);
    expect_feature(peer, OB_FEATURE_GET | OB_FEATURE_DMA_LOGGING_REPORT, 24);
    peer_error(peer, EOPNOTSUPP);
    answer_report(peer, BASE, PAGE, PAGE, 1);
    peer_serve(peer);
}

TEST(l16, "an-empty-report-is-an-error-and-not-a-clean-one-l-16")
{
    struct peer peer = { .json = MIGRATION };
    uint64_t bits;

    peer_start(&peer, empty_report, NULL);
    CHECK_INT(ob_client_dirty_start(peer.client, PAGE, NULL, 0), 0);
    CHECK_INT(ob_client_dirty_report(peer.client, BASE, 2 * PAGE, PAGE, &bits), -EOPNOTSUPP);
    CHECK_INT(ob_peer_errno(ob_client_dirty_report(peer.client, BASE, PAGE, PAGE, &bits)),
              EOPNOTSUPP);
    CHECK_INT(ob_client_dirty_report(peer.client, BASE, PAGE, PAGE, &bits), 0);
    CHECK_INT(bits, 1);
    peer_stop(&peer);
}

static void small_reports(struct peer *peer)
{
    accept_start(peer, PAGE);
    answer_report(peer, BASE, 512 * PAGE, PAGE, 1);
    answer_report(peer, BASE + 512 * PAGE, 512 * PAGE, PAGE, 2);
    answer_report(peer, BASE + 1024 * PAGE, 10 * PAGE + 1, PAGE, 1 << 10);
    peer_serve(peer);
}

TEST(split, "reports-are-split-to-what-the-server-sends")
{
    struct peer peer = { .json =
                             "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":65}}" };
    uint64_t bits[17];

    peer_start(&peer, small_reports, NULL);
    CHECK_INT(ob_client_dirty_start(peer.client, PAGE, NULL, 0), 0);
    CHECK_INT(ob_client_dirty_report(peer.client, BASE, 1034 * PAGE + 1, PAGE, bits), 0);
    CHECK_INT(bits[0], 1);
    CHECK_INT(bits[8], 2);
    CHECK_INT(bits[16], 1 << 10);
    CHECK_INT(ob_client_dma_unmap_dirty(peer.client, BASE, 1024 * PAGE, PAGE, bits), -EMSGSIZE);
    peer_stop(&peer);
}

static void other_report(struct peer *peer)
{
    struct ob_wire_logging_report wire = { BASE + PAGE, PAGE, PAGE };
    uint8_t data[sizeof(wire) + 8] = { 0 };

    accept_start(peer, PAGE);
    expect_feature(peer, OB_FEATURE_GET | OB_FEATURE_DMA_LOGGING_REPORT, 24);
    memcpy(data, &wire, sizeof(wire));
    reply_feature(peer, OB_FEATURE_GET | OB_FEATURE_DMA_LOGGING_REPORT, data, sizeof(data));
    CHECK(!peer_recv(peer));
}

TEST(other, "a-report-of-other-memory-ends-the-connection")
{
    struct peer peer = { .json = MIGRATION };
    uint64_t bits;

    peer_start(&peer, other_report, NULL);
    CHECK_INT(ob_client_dirty_start(peer.client, PAGE, NULL, 0), 0);
    CHECK_INT(ob_client_dirty_report(peer.client, BASE, PAGE, PAGE, &bits), -ENOTCONN);
    peer_stop(&peer);
}

static void unmaps(struct peer *peer)
{
    struct {
        struct ob_wire_dma_unmap unmap;
        struct ob_wire_bitmap bitmap;
        uint64_t bits;
    } wire;

    accept_start(peer, PAGE);
    peer_expect(peer, OB_CMD_DMA_UNMAP);
    CHECK_INT(peer->msg->len, 40);
    memcpy(&wire, peer->msg->payload, 40);
    CHECK_INT(wire.unmap.argsz, 48);
    CHECK_INT(wire.unmap.flags, OB_DMA_UNMAP_GET_DIRTY);
    CHECK_INT(wire.bitmap.pgsize, PAGE);
    CHECK_INT(wire.bitmap.size, 8);
    wire.bits = 0x30;
    peer_reply(peer, &wire, sizeof(wire));
    peer_expect(peer, OB_CMD_DMA_UNMAP);
    peer_reply(peer, NULL, 0);
    peer_expect(peer, OB_CMD_DMA_UNMAP);
    peer_reply(peer, &wire, 40);
    CHECK(!peer_recv(peer));
}

TEST(unmap, "an-unmap-brings-its-bitmap-or-none-from-a-server-without-dma")
{
    struct peer peer = { .json = MIGRATION };
    uint64_t bits = 77;

    peer_start(&peer, unmaps, NULL);
    CHECK_INT(ob_client_dma_unmap_dirty(peer.client, BASE, 8 * PAGE, PAGE, &bits), -EINVAL);
    CHECK_INT(ob_client_dirty_start(peer.client, PAGE, NULL, 0), 0);
    CHECK_INT(ob_client_dma_unmap_dirty(peer.client, BASE, 8 * PAGE, 2 * PAGE, &bits), 0);
    CHECK_INT(bits, 4);
    CHECK_INT(ob_client_dma_unmap_dirty(peer.client, BASE, 8 * PAGE, PAGE, &bits), 0);
    CHECK_INT(bits, 0);
    CHECK_INT(ob_client_dma_unmap_dirty(peer.client, BASE, 8 * PAGE, PAGE, &bits), -ENOTCONN);
    peer_stop(&peer);
}
