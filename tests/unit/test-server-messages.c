/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * DMA by message, while the device answers a register access: the server waits, so it runs in a
 * thread, and the case plays the client.
 */
#include "harness.h"
#include "peer.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define RW   (OB_DMA_READ | OB_DMA_WRITE)
#define BASE 0x10000u
#define SIZE 0x400000u

/*
 * The device: a write to register 0 starts a DMA of that many bytes (from buffer to BASE, or the
 * other way when bit 31 is set), register 4 tells how the last one ended, register 8 counts
 * accesses to itself.
 */
struct device {
    struct ob_server *server;
    pthread_t thread;
    uint8_t buffer[SIZE];
    int32_t result;
    uint32_t counter;
    int left;
    char log[256];
};

static struct device device;

static void on_client(void *opaque, bool attached)
{
    (void)opaque;
    if (!attached)
        __atomic_fetch_add(&device.left, 1, __ATOMIC_SEQ_CST);
}

static void on_log(void *opaque, enum ob_log_level level, const char *line)
{
    (void)opaque;
    if (level == OB_LOG_INFO)
        snprintf(device.log, sizeof(device.log), "%s", line);
}

static int on_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    uint32_t value = 0;

    (void)opaque;
    CHECK_INT(count, 4);
    if (is_write && offset == 0) {
        memcpy(&value, data, 4);
        if (value >> 31)
            device.result = ob_dma_read(device.server, BASE, device.buffer, value & 0x7fffffff);
        else
            device.result = ob_dma_write(device.server, BASE, device.buffer, value);
    } else if (offset == 4) {
        memcpy(data, &device.result, 4);
    } else if (offset == 8) {
        device.counter++;
        memcpy(data, &device.counter, 4);
    }
    return 0;
}

static void *run(void *opaque)
{
    (void)opaque;
    CHECK_INT(ob_server_run(device.server), 0);
    return NULL;
}

static void join(struct peer *peer, const char *json)
{
    peer_connect(peer, NULL);
    CHECK_INT(peer_negotiate(peer, json), 0);
    CHECK_INT(peer_map(peer, BASE, SIZE, RW, -1, 0), 0);
}

static void set_up(struct peer *peer, const char *json, int timeout_ms)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops),
                                              .client = on_client,
                                              .log = on_log };
    struct ob_region region = { .size = 16,
                                .flags = OB_REGION_READ | OB_REGION_WRITE,
                                .access = on_access };

    device.server = peer_server_new(&ops, NULL);
    CHECK_INT(ob_server_set_region(device.server, 0, &region), 0);
    ob_server_set_timeout(device.server, timeout_ms);
    CHECK_INT(pthread_create(&device.thread, NULL, run, NULL), 0);
    join(peer, json);
}

static void tear_down(struct peer *peer)
{
    peer_close(peer);
    ob_server_stop(device.server);
    CHECK_INT(pthread_join(device.thread, NULL), 0);
    ob_server_free(device.server);
}

/* Starts a DMA; its REGION_WRITE is answered when it is over. */
static uint16_t start(struct peer *peer, uint32_t value)
{
    struct {
        struct ob_wire_region_access access;
        uint32_t value;
    } message = { { 0, 0, 4 }, value };

    return peer_send(peer, OB_CMD_REGION_WRITE, 0, &message, 20, NULL, 0);
}

static void expect_end(struct peer *peer, uint16_t id, int result)
{
    struct ob_msg *reply = peer_receive(peer);

    CHECK_INT(reply->hdr.cmd, OB_CMD_REGION_WRITE);
    CHECK_INT(reply->hdr.msg_id, id);
    ob_msg_free(reply);
    CHECK_INT((int32_t)peer_read32(peer, 0, 4), result);
}

/* The server's next request, which must be this one. */
static struct ob_msg *expect_request(struct peer *peer, uint16_t cmd, uint64_t address,
                                     uint64_t count)
{
    struct ob_msg *msg = peer_receive(peer);
    struct ob_wire_dma_access access;

    CHECK_INT(msg->hdr.cmd, cmd);
    CHECK_INT(msg->hdr.flags, OB_HDR_COMMAND);
    CHECK_INT(msg->nfds, 0); /* */
    memcpy(&access, msg->payload, sizeof(access));
    CHECK_INT(access.address, address);
    CHECK_INT(access.count, count);
    CHECK_INT(msg->len, sizeof(access) + (cmd == OB_CMD_DMA_WRITE ? count : 0));
    return msg;
}

/* Answers with the first len bytes of {address, count, data}. Frees msg. */
static void answer(struct peer *peer, struct ob_msg *msg, uint64_t count, const void *data,
                   size_t len)
{
    static uint8_t payload[OB_PAYLOAD_MAX];
    struct ob_wire_dma_access access;
    struct ob_wire_hdr hdr = { .msg_id = msg->hdr.msg_id,
                               .cmd = msg->hdr.cmd,
                               .flags = OB_HDR_REPLY };
    struct iovec iov = { payload, len };

    memcpy(&access, msg->payload, sizeof(access));
    access.count = count;
    memcpy(payload, &access, sizeof(access));
    if (data)
        memcpy(payload + sizeof(access), data, len - sizeof(access));
    CHECK_INT(ob_channel_send(&peer->ch, &hdr, &iov, 1, NULL, 0, OB_NO_DEADLINE), 0);
    ob_msg_free(msg);
}

static void answer_error(struct peer *peer, struct ob_msg *msg, uint32_t err)
{
    struct ob_wire_hdr hdr = { .msg_id = msg->hdr.msg_id,
                               .cmd = msg->hdr.cmd,
                               .flags = OB_HDR_REPLY | OB_HDR_ERROR,
                               .error_no = err };

    CHECK_INT(ob_channel_send(&peer->ch, &hdr, NULL, 0, NULL, 0, OB_NO_DEADLINE), 0);
    ob_msg_free(msg);
}

TEST(split, "transfers-are-split-to-what-the-client-takes")
{
    static uint8_t data[1000];
    struct peer peer;
    struct ob_msg *msg;
    uint16_t id;

    set_up(&peer, "{\"capabilities\":{\"max_data_xfer_size\":400}}", 5000);
    for (int i = 0; i < 1000; i++)
        data[i] = device.buffer[i] = (uint8_t)(i * 13);
    id = start(&peer, 1000);
    for (uint32_t done = 0; done < 1000; done += 400) {
        uint32_t count = done + 400 <= 1000 ? 400 : 200;

        msg = expect_request(&peer, OB_CMD_DMA_WRITE, BASE + done, count);
        CHECK_MEM(msg->payload + 16, data + done, count);
        answer(&peer, msg, count, NULL, done ? 16 : 12); /* the old reply and the new */
    }
    expect_end(&peer, id, 0);
    memset(device.buffer, 0, 1000);
    id = start(&peer, 1u << 31 | 500);
    answer(&peer, expect_request(&peer, OB_CMD_DMA_READ, BASE, 400), 150, data,
           16 + 150); /* less */
    answer(&peer, expect_request(&peer, OB_CMD_DMA_READ, BASE + 150, 350), 350, data + 150,
           16 + 350);
    expect_end(&peer, id, 0);
    CHECK_MEM(device.buffer, data, 500);
    tear_down(&peer);
}

TEST(large, "megabytes-go-both-ways")
{
    static uint8_t data[SIZE];
    struct peer peer;
    uint16_t id;

    set_up(&peer, NULL, 5000);
    for (uint32_t i = 0; i < SIZE; i++)
        data[i] = (uint8_t)(i ^ i >> 8 ^ i >> 16);
    id = start(&peer, 1u << 31 | SIZE);
    for (uint32_t done = 0; done < SIZE; done += OB_DATA_XFER_MAX)
        answer(&peer, expect_request(&peer, OB_CMD_DMA_READ, BASE + done, OB_DATA_XFER_MAX),
               OB_DATA_XFER_MAX, data + done, 16 + OB_DATA_XFER_MAX);
    expect_end(&peer, id, 0);
    CHECK_MEM(device.buffer, data, SIZE);
    id = start(&peer, SIZE);
    for (uint32_t done = 0; done < SIZE; done += OB_DATA_XFER_MAX) {
        struct ob_msg *msg = expect_request(&peer, OB_CMD_DMA_WRITE, BASE + done, OB_DATA_XFER_MAX);

        CHECK_MEM(msg->payload + 16, data + done, OB_DATA_XFER_MAX);
        answer(&peer, msg, OB_DATA_XFER_MAX, NULL, 16);
    }
    expect_end(&peer, id, 0);
    tear_down(&peer);
}

TEST(crossing, "requests-that-cross-are-handled-later-in-order")
{
    struct ob_wire_region_access counter = { 8, 0, 4 };
    uint16_t ids[50], id;
    struct peer peer;
    struct ob_msg *msg;

    set_up(&peer, NULL, 5000);
    id = start(&peer, 8);
    msg = expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8);
    for (int i = 0; i < 50; i++)
        ids[i] = peer_send(&peer, OB_CMD_REGION_READ, 0, &counter, sizeof(counter), NULL, 0);
    answer(&peer, msg, 8, NULL, 16);
    msg = peer_receive(&peer);
    CHECK_INT(msg->hdr.msg_id, id);
    ob_msg_free(msg);
    for (uint32_t i = 0; i < 50; i++) {
        uint32_t value;

        msg = peer_receive(&peer);
        CHECK_INT(msg->hdr.msg_id, ids[i]);
        memcpy(&value, msg->payload + 16, 4);
        CHECK_INT(value, i + 1);
        ob_msg_free(msg);
    }
    tear_down(&peer);
}

TEST(errors, "errors-and-nonsense-fail-the-transfer-and-keep-the-client")
{
    uint8_t data[64] = { 1 };
    struct peer peer;
    uint16_t id;

    set_up(&peer, NULL, 5000);
    id = start(&peer, 8);
    answer_error(&peer, expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8), EFAULT);
    expect_end(&peer, id, -EFAULT);
    id = start(&peer, 8);
    answer_error(&peer, expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8), 0);
    expect_end(&peer, id, -EIO);
    id = start(&peer, 8);
    answer_error(&peer, expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8), 0x80000001);
    expect_end(&peer, id, -EIO);
    id = start(&peer, 8); /* nothing was written where it should */
    answer(&peer, expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8), 8, NULL, 0);
    expect_end(&peer, id, -EPROTO);
    id = start(&peer, 8); /* neither the old reply nor the new */
    answer(&peer, expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8), 8, NULL, 15);
    expect_end(&peer, id, -EPROTO);
    id = start(&peer, 8);
    answer(&peer, expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8), 9, NULL, 16);
    expect_end(&peer, id, -EPROTO);
    id = start(&peer, 8);
    answer(&peer, expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8), 0, NULL, 16);
    expect_end(&peer, id, -EIO);
    id = start(&peer, 1u << 31 | 8); /* the data, 1 0 0 0, begins within count */
    answer(&peer, expect_request(&peer, OB_CMD_DMA_READ, BASE, 8), 1ull << 32 | 8, data, 24);
    expect_end(&peer, id, -EPROTO);
    id = start(&peer, 1u << 31 | 8); /* shorter, longer than its count; more than asked */
    answer(&peer, expect_request(&peer, OB_CMD_DMA_READ, BASE, 8), 8, data, 20);
    expect_end(&peer, id, -EPROTO);
    id = start(&peer, 1u << 31 | 8);
    answer(&peer, expect_request(&peer, OB_CMD_DMA_READ, BASE, 8), 8, data, 40);
    expect_end(&peer, id, -EPROTO);
    id = start(&peer, 1u << 31 | 8);
    answer(&peer, expect_request(&peer, OB_CMD_DMA_READ, BASE, 8), 48, data, 64);
    expect_end(&peer, id, -EPROTO);
    id = start(&peer, SIZE + 1); /* beyond the mapping: no message at all */
    expect_end(&peer, id, -EFAULT);
    tear_down(&peer);
}

TEST(late, "late-reply-is-dropped-and-the-next-transfer-works")
{
    struct ob_msg *msg;
    struct peer peer;
    uint16_t id;

    for (int before = 0; before < 2; before++) { /* the next one waits, perhaps */
        set_up(&peer, NULL, 1000);
        id = start(&peer, 8);
        msg = expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8);
        /* it answers no message while it waits itself; what it waits for comes still. */
        expect_end(&peer, id, -ETIMEDOUT);
        if (before)
            answer(&peer, msg, 8, NULL, 16);
        id = start(&peer, 8);
        if (!before)
            answer(&peer, msg, 8, NULL, 16);
        answer(&peer, expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8), 8, NULL, 16);
        expect_end(&peer, id, 0);
        tear_down(&peer);
    }
}

static void wait_left(int count)
{
    int64_t end = test_now_ms() + 10000;

    while (__atomic_load_n(&device.left, __ATOMIC_SEQ_CST) < count && test_now_ms() < end)
        poll(NULL, 0, 1);
    CHECK_INT(device.left, count);
}

TEST(slow, "client-that-answers-nothing-keeps-a-step-waiting-for-two-deadlines-and-is-let-go")
{
    struct {
        struct ob_wire_write_multi head;
        struct ob_wire_write_multi_entry writes[100];
    } message = { .head = { .count = 100 } };
    static const char said[] = "it kept the server waiting for ";
    const char *waited;
    int64_t start_ms;
    struct peer peer;

    for (unsigned i = 0; i < 100; i++)
        message.writes[i] = (struct ob_wire_write_multi_entry){ .count = 4, .data = { 8 } };
    set_up(&peer, NULL, 100);
    start_ms = test_now_ms();
    peer_send(&peer, OB_CMD_REGION_WRITE_MULTI, OB_HDR_NO_REPLY, &message, sizeof(message), NULL,
              0);
    ob_msg_free(expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8));
    peer_expect_close(&peer);
    CHECK(test_now_ms() - start_ms < 100 * 100 / 2);
    wait_left(1);
    CHECK_INT(device.result, -ENOTCONN);
    waited = strstr(device.log, said);
    CHECK(waited && strtol(waited + strlen(said), NULL, 10) >= 200);
    CHECK(strstr(device.log, " ms with its answers to DMA"));
    peer_close(&peer);
    join(&peer, NULL);
    tear_down(&peer);
}

TEST(gone, "client-that-leaves-during-a-transfer-is-let-go-after-the-callback")
{
    struct peer peer;

    set_up(&peer, NULL, 5000);
    for (int i = 1; i <= 3; i++) {
        start(&peer, 8);
        ob_msg_free(expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8));
        peer_close(&peer);
        wait_left(i);
        CHECK_INT(device.result, -ENOTCONN);
        join(&peer, NULL);
    }
    tear_down(&peer);
}

TEST(flood, "client-that-floods-instead-of-answering-is-dropped")
{
    static uint8_t block[100000];
    struct peer peer;

    set_up(&peer, NULL, 5000);
    start(&peer, 8);
    ob_msg_free(expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8));
    while (ob_channel_wait(&peer.ch, POLLOUT, OB_NO_DEADLINE) >= 0) {
        struct ob_wire_hdr hdr = { .cmd = OB_CMD_REGION_WRITE, .flags = OB_HDR_NO_REPLY };
        struct iovec iov = { block, sizeof(block) };

        if (ob_channel_send(&peer.ch, &hdr, &iov, 1, NULL, 0, OB_NO_DEADLINE) < 0)
            break;
    }
    wait_left(1);
    CHECK_INT(device.result, -ENOTCONN);
    CHECK(strstr(device.log, "too many requests"));
    tear_down(&peer);
}

TEST(endless, "message-without-end-does-not-outlast-the-deadline")
{
    static const uint8_t block[65536];
    struct ob_wire_hdr hdr = { .msg_size = UINT32_MAX,
                               .cmd = OB_CMD_REGION_WRITE,
                               .flags = OB_HDR_NO_REPLY };
    int64_t end = test_now_ms() + 10000;
    struct peer peer;

    set_up(&peer, NULL, 100);
    start(&peer, 8);
    ob_msg_free(expect_request(&peer, OB_CMD_DMA_WRITE, BASE, 8));
    peer_send_raw(&peer, &hdr, sizeof(hdr));
    for (;;) {
        struct pollfd p = { .fd = peer.ch.fd, .events = POLLIN | POLLOUT };

        CHECK_INT(poll(&p, 1, 20000), 1);
        if (p.revents & POLLIN)
            break;
        CHECK(test_now_ms() < end);
        send(peer.ch.fd, block, sizeof(block), MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    tear_down(&peer);
    CHECK_INT(device.result, -ETIMEDOUT);
}

TEST(jammed, "data-for-a-client-that-is-busy-sending-does-not-jam")
{
    static uint8_t block[OB_DATA_XFER_MAX];
    struct ob_wire_hdr hdr = { .cmd = OB_CMD_REGION_WRITE, .flags = OB_HDR_NO_REPLY };
    struct iovec iov = { block, sizeof(block) };
    struct ob_msg *msg;
    struct peer peer;
    uint16_t id;

    set_up(&peer, NULL, 5000);
    id = start(&peer, OB_DATA_XFER_MAX);
    for (int i = 0; i < 4; i++) /* and it reads nothing before all is sent */
        CHECK_INT(ob_channel_send(&peer.ch, &hdr, &iov, 1, NULL, 0, ob_deadline_ns(3000)), 0);
    msg = expect_request(&peer, OB_CMD_DMA_WRITE, BASE, OB_DATA_XFER_MAX);
    answer(&peer, msg, OB_DATA_XFER_MAX, NULL, 16);
    expect_end(&peer, id, 0);
    tear_down(&peer);
}
