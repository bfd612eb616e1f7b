/* SPDX-License-Identifier: BSD-3-Clause */
/* The second socket of a client that wants one: the server's DMA messages go over it. */
#include "harness.h"
#include "peer.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#define TWIN(fds) \
    "{\"capabilities\":{\"max_msg_fds\":" #fds ",\"twin_socket\":{\"supported\":true}}}"
#define RW   (OB_DMA_READ | OB_DMA_WRITE)
#define BASE 0x10000u
#define SIZE 0x1000u

/* A write to register 0 makes the device read that many bytes at BASE, register 4 tells how that
 * ended, register 8 counts the writes to it. */
static struct {
    struct ob_server *server;
    pthread_t thread;
    uint8_t buffer[SIZE];
    int32_t result;
    uint32_t counter;
    int attached;
    char log[256];
} device;

static void on_client(void *opaque, bool attached)
{
    (void)opaque;
    __atomic_fetch_add(&device.attached, attached ? 1 : -1, __ATOMIC_SEQ_CST);
}

static void on_log(void *opaque, enum ob_log_level level, const char *line)
{
    (void)opaque;
    if (level == OB_LOG_INFO)
        snprintf(device.log, sizeof(device.log), "%s", line);
}

static int on_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    uint32_t value;

    (void)opaque;
    CHECK_INT(count, 4);
    if (is_write && offset == 0) {
        memcpy(&value, data, 4);
        device.result = ob_dma_read(device.server, BASE, device.buffer, value);
    } else if (is_write && offset == 8) {
        device.counter++;
    } else {
        memcpy(data, offset == 4 ? (void *)&device.result : (void *)&device.counter, 4);
    }
    return 0;
}

/* The device saves something elsewhere before memory goes. */
static void on_unmap(void *opaque, uint64_t address, uint64_t size)
{
    (void)opaque, (void)size;
    if (address != BASE)
        device.result = ob_dma_read(device.server, BASE, device.buffer, 8);
}

static void *run(void *opaque)
{
    (void)opaque;
    CHECK_INT(ob_server_run(device.server), 0);
    return NULL;
}

/* VERSION with this JSON; adopts the second socket if one comes. */
static bool attach(struct peer *peer, struct peer *twin, const char *json)
{
    uint8_t payload[256] = { 0 };
    struct ob_caps caps;
    const char *why;
    struct ob_msg *reply;
    bool has_twin;

    CHECK(strlen(json) < sizeof(payload) - 4);
    memcpy(payload + 4, json, strlen(json) + 1);
    peer_connect(peer, NULL);
    CHECK_INT(peer_call(peer, OB_CMD_VERSION, payload, 4 + strlen(json) + 1, &reply), 0);
    CHECK(reply->len - 4 <= OB_VERSION_JSON_QEMU);
    CHECK_INT(ob_caps_parse(reply->payload + 4, reply->len - 4, true, &caps, &why), 0);
    CHECK_INT(reply->nfds, caps.twin_socket);
    has_twin = caps.twin_socket;
    if (has_twin)
        peer_adopt(twin, NULL, ob_msg_claim_fd(reply, (unsigned)caps.twin_fd_index));
    ob_msg_free(reply);
    CHECK_INT(peer_map(peer, BASE, SIZE, RW, -1, 0), 0);
    return has_twin;
}

static void set_up(struct peer *peer, struct peer *twin, int timeout_ms)
{
    static const struct ob_server_ops ops = {
        .size = sizeof(ops), .dma_unmap = on_unmap, .client = on_client, .log = on_log
    };
    struct ob_region region = { .size = 12,
                                .flags = OB_REGION_READ | OB_REGION_WRITE,
                                .access = on_access };

    device.server = peer_server_new(&ops, NULL);
    CHECK_INT(ob_server_set_region(device.server, 0, &region), 0);
    ob_server_set_timeout(device.server, timeout_ms);
    CHECK_INT(pthread_create(&device.thread, NULL, run, NULL), 0);
    CHECK(attach(peer, twin, TWIN(1)));
}

static void tear_down(struct peer *peer, struct peer *twin)
{
    peer_close(peer);
    peer_close(twin);
    ob_server_stop(device.server);
    CHECK_INT(pthread_join(device.thread, NULL), 0);
    ob_server_free(device.server);
}

/* A write to a register whose answer is not waited for. */
static uint16_t write_later(struct peer *peer, uint64_t offset, uint32_t value, uint32_t flags)
{
    struct {
        struct ob_wire_region_access access;
        uint32_t value;
    } message = { { offset, 0, 4 }, value };

    return peer_send(peer, OB_CMD_REGION_WRITE, flags, &message, 20, NULL, 0);
}

static void expect_answer(struct peer *peer, uint16_t id)
{
    struct ob_msg *reply = peer_receive(peer);

    CHECK_INT(reply->hdr.msg_id, id);
    CHECK_INT(reply->hdr.flags, OB_HDR_REPLY);
    ob_msg_free(reply);
}

/* The server's DMA_READ, answered with a pattern. */
static void answer_dma(struct peer *twin, uint64_t count)
{
    struct ob_msg *msg = peer_receive(twin);
    struct ob_wire_hdr hdr = { msg->hdr.msg_id, OB_CMD_DMA_READ, 0, OB_HDR_REPLY, 0 };
    struct ob_wire_dma_access access;
    uint8_t data[SIZE];
    struct iovec iov[2] = { { &access, sizeof(access) }, { data, count } };

    CHECK_INT(msg->hdr.cmd, OB_CMD_DMA_READ);
    memcpy(&access, msg->payload, sizeof(access));
    CHECK_INT(access.address, BASE);
    CHECK_INT(access.count, count);
    memset(data, 0x5a, count);
    CHECK_INT(ob_channel_send(&twin->ch, &hdr, iov, 2, NULL, 0, OB_NO_DEADLINE), 0);
    ob_msg_free(msg);
}

TEST(used, "dma-messages-go-over-the-second-socket-only")
{
    struct peer peer, twin;
    uint16_t id, next;

    set_up(&peer, &twin, 5000);
    id = write_later(&peer, 0, 100, 0);
    next = write_later(&peer, 8, 1, 0); /* crosses, and waits where it is */
    answer_dma(&twin, 100);
    expect_answer(&peer, id);
    expect_answer(&peer, next);
    CHECK_INT((int32_t)peer_read32(&peer, 0, 4), 0);
    CHECK_INT(device.buffer[99], 0x5a);
    CHECK_INT(peer_read32(&peer, 0, 8), 1);
    tear_down(&peer, &twin);
}

TEST(collected, "answers-that-were-collected-are-not-kept-for-the-end-of-dma")
{
    struct {
        struct ob_wire_hdr hdr;
        struct ob_wire_dma_map body;
    } map = { { 100, OB_CMD_DMA_MAP, sizeof(map), 0, 0 },
              { sizeof(map.body), RW, 0, 2 * BASE, SIZE } };
    struct {
        struct ob_wire_hdr hdr;
        struct ob_wire_dma_unmap body;
    } unmap = { { 101, OB_CMD_DMA_UNMAP, sizeof(unmap), 0, 0 },
                { sizeof(unmap.body), 0, 2 * BASE, SIZE } };
    uint8_t both[sizeof(map) + sizeof(unmap)];
    struct peer peer, twin;

    memcpy(both, &map, sizeof(map));
    memcpy(both + sizeof(map), &unmap, sizeof(unmap));
    set_up(&peer, &twin, 60000);
    peer_send_raw(&peer, both, sizeof(both));
    expect_answer(&peer, 100);
    answer_dma(&twin, 8);
    expect_answer(&peer, 101);
    CHECK_INT(device.result, 0);
    tear_down(&peer, &twin);
}

TEST(not_asked, "a-client-that-cannot-gets-none")
{
    struct peer peer, twin;

    set_up(&peer, &twin, 5000);
    peer_close(&peer);
    peer_close(&twin);
    CHECK(!attach(&peer, &twin, TWIN(0)));
    peer_close(&peer);
    CHECK(!attach(&peer, &twin, "{\"capabilities\":{\"twin_socket\":{\"supported\":false}}}"));
    peer_close(&peer);
    CHECK(attach(&peer, &twin, "{\"capabilities\":{\"twin_socket\":{\"supported\":true}}}"));
    tear_down(&peer, &twin);
}

TEST(late, "a-late-answer-is-dropped-and-a-command-there-refused")
{
    struct ob_wire_region_access access = { 8, 0, 4 };
    struct peer peer, twin;
    uint16_t id;

    set_up(&peer, &twin, 1000);
    id = write_later(&peer, 0, 8, 0);
    expect_answer(&peer, id); /* nobody answered the DMA_READ */
    CHECK_INT((int32_t)peer_read32(&peer, 0, 4), -ETIMEDOUT);
    answer_dma(&twin, 8);
    CHECK_INT(peer_call(&twin, OB_CMD_REGION_READ, &access, sizeof(access), NULL), -EINVAL);
    peer_send(&twin, OB_CMD_REGION_READ, OB_HDR_NO_REPLY, &access, sizeof(access), NULL, 0);
    id = write_later(&peer, 0, 9, 0);
    answer_dma(&twin, 9);
    expect_answer(&peer, id);
    CHECK_INT((int32_t)peer_read32(&peer, 0, 4), 0);
    tear_down(&peer, &twin);
}

TEST(closed, "the-end-of-the-second-socket-ends-the-client")
{
    struct peer peer, twin;

    set_up(&peer, &twin, 5000);
    peer_close(&twin);
    peer_expect_close(&peer);
    peer_close(&peer);
    CHECK(attach(&peer, &twin, TWIN(1)));
    tear_down(&peer, &twin);
    CHECK_STR(device.log, "client left: it closed the connection");
}

TEST(leaves, "what-a-client-posted-before-it-left-is-executed")
{
    struct peer peer, twin;

    set_up(&peer, &twin, 5000);
    for (uint32_t i = 0; i < 200; i++) /* what the socket holds */
        write_later(&peer, 8, i, OB_HDR_NO_REPLY);
    peer_close(&twin);
    peer_close(&peer);
    CHECK(attach(&peer, &twin, TWIN(1)));
    CHECK_INT(peer_read32(&peer, 0, 8), 200);
    tear_down(&peer, &twin);
}

TEST(leaves_in_dma, "client-that-leaves-during-a-transfer-is-let-go")
{
    struct peer peer, twin;
    struct ob_msg *msg;

    set_up(&peer, &twin, 60000);
    write_later(&peer, 0, 8, 0);
    msg = peer_receive(&twin);
    ob_msg_free(msg);
    peer_close(&peer); /* and the second one stays open */
    peer_expect_close(&twin);
    peer_close(&twin);
    CHECK(attach(&peer, &twin, TWIN(1)));
    tear_down(&peer, &twin);
    CHECK_INT(device.result, -ENOTCONN);
}
