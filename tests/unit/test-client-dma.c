/* SPDX-License-Identifier: BSD-3-Clause */
/* Memory: what the client offers the server, and the server's own accesses by message. */
#include "harness.h"
#include "scripted.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- Mapping ------------------------------------------------------------------------------- */

#define CHANGES 300

/* Takes CHANGES maps, refuses number 150, and all unmaps but with no more than a header. */
static void take_maps(struct peer *peer)
{
    for (unsigned i = 0; i < CHANGES; i++) {
        peer_expect(peer, i % 3 == 2 ? OB_CMD_DMA_UNMAP : OB_CMD_DMA_MAP);
        if (i % 3 == 2) {
            CHECK_INT(PEER_GET(peer, struct ob_wire_dma_unmap).address, 0x1000 * i);
            peer_reply(peer, NULL, 0);
            continue;
        }
        struct ob_wire_dma_map map = PEER_GET(peer, struct ob_wire_dma_map);
        CHECK_INT(map.address, 0x1000 * i);
        CHECK_INT(map.size, 0x1000);
        CHECK_INT(peer->msg->nfds, i % 3 == 1);
        CHECK_INT(map.offset, i % 3 == 1 ? 0x4000 : 0);
        peer_close_fds(peer);
        if (i == 150)
            peer_error(peer, EEXIST);
        else
            peer_reply(peer, NULL, 0);
    }
    peer_serve(peer);
}

TEST(batch, "a-refused-map-in-a-batch-is-the-only-one-that-fails")
{
    struct peer peer = { 0 };
    struct ob_dma_change changes[CHANGES];
    int fd = memfd_create("ram", MFD_CLOEXEC);

    for (unsigned i = 0; i < CHANGES; i++)
        changes[i] = (struct ob_dma_change){ .unmap = i % 3 == 2,
                                             .flags = OB_DMA_READ | OB_DMA_WRITE,
                                             .address = 0x1000 * i,
                                             .size = 0x1000,
                                             .fd = i % 3 == 1 ? fd : -1,
                                             .offset = 0x4000,
                                             .result = 1 };
    peer_start(&peer, take_maps, NULL);
    int rc = ob_client_dma_apply(peer.client, changes, CHANGES);
    CHECK_INT(ob_peer_errno(rc), EEXIST);
    for (unsigned i = 0; i < CHANGES; i++)
        CHECK_INT(changes[i].result, i == 150 ? rc : 0);
    peer_stop(&peer);
    close(fd);
}

TEST(map_limits, "keeps-to-the-limits-of-the-server")
{
    struct peer peer = { .json = "{\"capabilities\":{\"max_dma_maps\":2,\"max_msg_fds\":0}}" };

    peer_start(&peer, peer_serve, NULL);
    CHECK_INT(ob_client_dma_map(peer.client, 0, 0, OB_DMA_READ, -1, 0), -EINVAL);
    CHECK_INT(ob_client_dma_map(peer.client, UINT64_MAX, 2, OB_DMA_READ, -1, 0), -EINVAL);
    CHECK_INT(ob_client_dma_map(peer.client, 0, 4096, 0x100, -1, 0), -EINVAL);
    CHECK_INT(ob_client_dma_map(peer.client, 0, 4096, OB_DMA_READ, 0, 0), -EOPNOTSUPP);
    CHECK_INT(ob_client_dma_map(peer.client, 0, 4096, OB_DMA_READ, -1, 0), 0);
    CHECK_INT(ob_client_dma_map(peer.client, 4096, 4096, OB_DMA_READ, -1, 0), 0);
    CHECK_INT(ob_client_dma_map(peer.client, 8192, 4096, OB_DMA_READ, -1, 0), -ENOSPC);
    CHECK_INT(ob_client_dma_unmap(peer.client, 0, 4096), 0);
    CHECK_INT(ob_client_dma_map(peer.client, 8192, 4096, OB_DMA_READ, -1, 0), 0);
    CHECK_INT(ob_client_irq_eventfds(peer.client, 2, 0, 1, &(int){ 0 }), -EOPNOTSUPP);
    peer_stop(&peer);
}

static void never_answer(struct peer *peer)
{
    while (peer_recv(peer))
        peer_close_fds(peer);
}

TEST(batch_timeout, "a-hanging-server-costs-a-batch-one-timeout")
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    struct peer peer = { 0 };
    static struct ob_dma_change changes[1000];

    for (unsigned i = 0; i < 1000; i++)
        changes[i] = (struct ob_dma_change){ .address = 4096 * i, .size = 4096, .fd = -1 };
    opt.timeout_ms = 400;
    peer_start(&peer, never_answer, &opt);
    int64_t start = test_now_ms();
    CHECK_INT(ob_client_dma_apply(peer.client, changes, 1000), -ETIMEDOUT);
    CHECK(test_now_ms() - start < 5000);
    for (unsigned i = 0; i < 1000; i++)
        CHECK_INT(changes[i].result, -ETIMEDOUT);
    CHECK(ob_client_connected(peer.client));
    peer_stop(&peer);
}

/* ---- The server's accesses ----------------------------------------------------------------- */

#define RAM_SIZE (2u << 20)

static uint8_t ram[RAM_SIZE];
static _Atomic(uint32_t) nserved;

static int ram_read(void *opaque, uint64_t address, void *data, uint32_t count)
{
    (void)opaque;
    if (address > RAM_SIZE || count > RAM_SIZE - address)
        return -EFAULT;
    memcpy(data, ram + address, count);
    nserved++;
    return 0;
}

static int ram_write(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    (void)opaque;
    if (address > RAM_SIZE || count > RAM_SIZE - address)
        return -EFAULT;
    memcpy(ram + address, data, count);
    nserved++;
    return 0;
}

static struct ob_client_options with_ram(void)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;

    opt.dma_read = ram_read;
    opt.dma_write = ram_write;
    return opt;
}

/* The reply to a DMA request; a read of another thread that comes first is kept. */
static void dma_reply(struct peer *peer, uint16_t cmd, uint16_t id, struct peer_access *kept,
                      unsigned *nkept)
{
    while (peer_recv(peer) && peer->msg->hdr.cmd == OB_CMD_REGION_READ)
        kept[(*nkept)++] = peer_keep(peer);
    CHECK_INT(peer->msg->hdr.cmd, cmd);
    CHECK_INT(peer->msg->hdr.msg_id, id);
    CHECK_INT(peer->msg->hdr.flags, OB_HDR_REPLY);
}

/* Reads our memory, changes it and writes it back before it answers the access. */
static void dma_before_answer(struct peer *peer)
{
    struct peer_access kept[3];
    unsigned nkept = 0;
    uint32_t word;

    while (nkept > 0 || peer_recv(peer)) {
        if (nkept == 0)
            kept[nkept++] = peer_keep(peer);
        peer_dma(peer, 77, OB_CMD_DMA_READ, 0x1000, sizeof(word), NULL, 0);
        dma_reply(peer, OB_CMD_DMA_READ, 77, kept, &nkept);
        CHECK_INT(peer->msg->len, sizeof(struct ob_wire_dma_access) + sizeof(word));
        memcpy(&word, peer->msg->payload + sizeof(struct ob_wire_dma_access), sizeof(word));
        word++;
        peer_dma(peer, 78, OB_CMD_DMA_WRITE, 0x1000, sizeof(word), &word, 0);
        dma_reply(peer, OB_CMD_DMA_WRITE, 78, kept, &nkept);
        CHECK_INT(peer->msg->len, sizeof(struct ob_wire_dma_access));
        CHECK_INT(PEER_GET(peer, struct ob_wire_dma_access).address, 0x1000);
        CHECK_INT(PEER_GET(peer, struct ob_wire_dma_access).count, sizeof(word));
        peer_answer(peer, &kept[0], &word);
        kept[0] = kept[--nkept];
    }
}

static void *read_increasing(void *opaque)
{
    struct peer *peer = opaque;
    uint32_t before = 0, value;

    for (int i = 0; i < 500; i++) {
        CHECK_INT(ob_client_region_read(peer->client, 0, 0, &value, sizeof(value)), 0);
        CHECK(value > before);
        before = value;
    }
    return NULL;
}

TEST(dma_within_read, "serves-dma-while-reads-are-outstanding")
{
    struct ob_client_options opt = with_ram();
    struct peer peer = { 0 };
    pthread_t threads[2];
    uint32_t value;

    peer_start(&peer, dma_before_answer, &opt);
    CHECK_INT(pthread_create(&threads[0], NULL, read_increasing, &peer), 0);
    CHECK_INT(pthread_create(&threads[1], NULL, read_increasing, &peer), 0);
    CHECK_INT(pthread_join(threads[0], NULL), 0);
    CHECK_INT(pthread_join(threads[1], NULL), 0);
    memcpy(&value, ram + 0x1000, sizeof(value));
    CHECK_INT(value, 1000);
    peer_stop(&peer);
}

/* Asks for a megabyte before it reads the megabyte that the client is sending. */
static void dma_across(struct peer *peer)
{
    uint8_t *data = malloc(OB_DATA_XFER_MAX);

    CHECK(data);
    memset(data, 0x5a, OB_DATA_XFER_MAX);
    peer_dma(peer, 1, OB_CMD_DMA_WRITE, 0, OB_DATA_XFER_MAX, data, 0);
    peer_dma(peer, 2, OB_CMD_DMA_READ, 0, OB_DATA_XFER_MAX, NULL, 0);
    peer_expect(peer, OB_CMD_REGION_WRITE);
    CHECK_INT(peer->msg->payload[peer->msg->len - 1], 0xa5);
    struct peer_access request = peer_keep(peer);
    peer_expect_reply(peer, OB_CMD_DMA_WRITE, 1);
    peer_expect_reply(peer, OB_CMD_DMA_READ, 2);
    CHECK_INT(peer->msg->len, sizeof(struct ob_wire_dma_access) + OB_DATA_XFER_MAX);
    CHECK_MEM(peer->msg->payload + sizeof(struct ob_wire_dma_access), data, OB_DATA_XFER_MAX);
    peer_answer(peer, &request, NULL);
    free(data);
}

TEST(dma_crossing, "a-large-write-may-cross-with-large-dma")
{
    struct ob_client_options opt = with_ram();
    struct peer peer = { 0 };
    uint8_t *data = malloc(OB_DATA_XFER_MAX);

    CHECK(data);
    memset(data, 0xa5, OB_DATA_XFER_MAX);
    peer_start(&peer, dma_across, &opt);
    CHECK_INT(ob_client_region_write(peer.client, 0, 0, data, OB_DATA_XFER_MAX), 0);
    peer_stop(&peer);
    free(data);
}

static void dma_unasked(struct peer *peer)
{
    uint32_t word = 0x12345678;

    peer_dma(peer, 5, OB_CMD_DMA_WRITE, 0x20, sizeof(word), &word, 0);
    peer_expect_reply(peer, OB_CMD_DMA_WRITE, 5);
    CHECK_INT(peer->msg->hdr.flags, OB_HDR_REPLY);
    peer_expect(peer, OB_CMD_REGION_WRITE); /* the sign to leave */
}

TEST(dma_from_loop, "the-loop-serves-dma-when-nobody-waits")
{
    struct ob_client_options opt = with_ram();
    struct peer peer = { 0 };

    peer_start(&peer, dma_unasked, &opt);
    struct pollfd pfd = { ob_client_fd(peer.client), POLLIN, 0 };
    while (!nserved) {
        CHECK_INT(poll(&pfd, 1, 20000), 1);
        CHECK_INT(ob_client_step(peer.client), 0);
    }
    CHECK_INT(ram[0x20], 0x78);
    /* The server leaves: that is an event too, and told once. */
    CHECK_INT(ob_client_region_post(peer.client, 0, 0, "bye", 3), 0);
    CHECK_INT(poll(&pfd, 1, 20000), 1);
    CHECK_INT(ob_client_step(peer.client), -ENOTCONN);
    CHECK_INT(poll(&pfd, 1, 0), 0);
    CHECK_INT(ob_client_step(peer.client), -ENOTCONN);
    CHECK_INT(peer.lost, 1);
    CHECK_STR(peer.why, "the server closed the connection");
    peer_stop(&peer);
}

static void dma_after_a_burst(struct peer *peer)
{
    uint32_t word = 0x12345678;

    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 50; i++) {
            peer_expect(peer, OB_CMD_REGION_READ);
            peer_reply_access(peer, "\1\2\3\4");
        }
        peer_dma(peer, 5, OB_CMD_DMA_WRITE, 0x20, sizeof(word), &word, 0);
        peer_expect_reply(peer, OB_CMD_DMA_WRITE, 5);
    }
    CHECK(!peer_recv(peer));
}

/* Between reads that follow each other closely the loop is not told of the socket at once. */
TEST(dma_after_burst, "the-loop-serves-dma-after-a-burst-of-reads")
{
    struct ob_client_options opt = with_ram();
    struct peer peer = { 0 };
    uint32_t value;

    peer_start(&peer, dma_after_a_burst, &opt);
    struct pollfd pfd = { ob_client_fd(peer.client), POLLIN, 0 };
    for (unsigned round = 1; round <= 2; round++) {
        for (unsigned i = 0; i < 50; i++)
            CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, sizeof(value)), 0);
        while (nserved < round) {
            CHECK_INT(poll(&pfd, 1, 20000), 1);
            CHECK_INT(ob_client_step(peer.client), 0);
        }
    }
    while (poll(&pfd, 1, 50) > 0) /* and then the loop is left in peace */
        CHECK_INT(ob_client_step(peer.client), 0);
    peer_stop(&peer);
}

static struct peer *loop_peer;

/* More is in the socket already, and still the loop's fd must not fire: this thread has the role.
 */
static int check_quiet(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    struct pollfd pfd = { ob_client_fd(loop_peer->client), POLLIN, 0 };

    (void)opaque, (void)address, (void)data, (void)count;
    CHECK_INT(poll(&pfd, 1, 0), 0);
    nserved++;
    return 0;
}

static void dma_twice_before_answer(struct peer *peer)
{
    struct ob_wire_hdr hdr = { .cmd = OB_CMD_DMA_WRITE, .flags = OB_HDR_COMMAND };
    struct {
        struct ob_wire_hdr hdr;
        struct ob_wire_dma_access access;
        uint8_t data[4];
    } __attribute__((packed)) two[2];

    peer_expect(peer, OB_CMD_REGION_READ);
    hdr.msg_size = sizeof(two[0]);
    hdr.flags |= OB_HDR_NO_REPLY;
    for (int i = 0; i < 2; i++) {
        two[i].hdr = hdr;
        two[i].access = (struct ob_wire_dma_access){ 0, 4 };
        memset(two[i].data, 0, 4);
    }
    peer_write(peer, two, sizeof(two));
    peer_reply_access(peer, "\1\2\3\4");
    peer_dma(peer, 9, OB_CMD_DMA_WRITE, 0, 4, "abcd", 0);
    CHECK(!peer_recv(peer) || peer->msg->hdr.msg_id == 9);
}

TEST(fd_quiet, "the-fd-of-the-loop-is-quiet-while-a-caller-receives")
{
    struct ob_client_options opt = with_ram();
    struct peer peer = { 0 };
    uint32_t value;

    loop_peer = &peer;
    opt.dma_write = check_quiet;
    peer_start(&peer, dma_twice_before_answer, &opt);
    struct pollfd pfd = { ob_client_fd(peer.client), POLLIN, 0 };
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, sizeof(value)), 0);
    CHECK_INT(nserved, 2);
    CHECK_INT(poll(&pfd, 1, 20000), 1); /* and now it is the loop's turn */
    peer_stop(&peer);
}

/* ---- What is refused ----------------------------------------------------------------------- */

static void expect_refusal(struct peer *peer, uint16_t cmd, uint16_t id, int error)
{
    peer_expect_reply(peer, cmd, id);
    CHECK_INT(peer->msg->hdr.flags, OB_HDR_REPLY | OB_HDR_ERROR);
    CHECK_INT(peer->msg->hdr.error_no, error);
    CHECK_INT(peer->msg->len, 0);
}

static void ask_nonsense(struct peer *peer)
{
    struct ob_wire_hdr hdr = { .msg_id = 3, .cmd = OB_CMD_DMA_READ };
    uint8_t *huge = calloc(1, OB_PAYLOAD_MAX + 1000);

    peer_dma(peer, 1, OB_CMD_DMA_READ, RAM_SIZE - 1, 2, NULL, 0);
    expect_refusal(peer, OB_CMD_DMA_READ, 1, EFAULT);
    peer_dma(peer, 2, OB_CMD_DMA_READ, 0, UINT64_MAX, NULL, 0);
    CHECK(peer_recv(peer) && peer->msg->hdr.flags == (OB_HDR_REPLY | OB_HDR_ERROR));
    peer_dma(peer, 2, OB_CMD_DMA_READ, 0, OB_DATA_XFER_MAX + 1, NULL, 0);
    CHECK(peer_recv(peer) && peer->msg->hdr.flags == (OB_HDR_REPLY | OB_HDR_ERROR));
    peer_send(peer, &hdr, "short", 5, NULL, 0);
    expect_refusal(peer, OB_CMD_DMA_READ, 3, EINVAL);
    peer_dma(peer, 4, OB_CMD_DMA_WRITE, 0, 100, NULL, 0); /* without its data */
    expect_refusal(peer, OB_CMD_DMA_WRITE, 4, EINVAL);
    hdr = (struct ob_wire_hdr){ .msg_id = 5, .cmd = OB_CMD_DMA_WRITE };
    peer_send(peer, &hdr, huge, OB_PAYLOAD_MAX + 1000, NULL, 0);
    CHECK(peer_recv(peer) && peer->msg->hdr.flags == (OB_HDR_REPLY | OB_HDR_ERROR));
    for (uint16_t cmd = 0; cmd < 30; cmd++) {
        if (cmd == OB_CMD_DMA_READ || cmd == OB_CMD_DMA_WRITE)
            continue;
        hdr = (struct ob_wire_hdr){ .msg_id = 6, .cmd = cmd };
        peer_send(peer, &hdr, huge, 40, NULL, 0);
        CHECK(peer_recv(peer) && peer->msg->hdr.flags == (OB_HDR_REPLY | OB_HDR_ERROR));
        CHECK_INT(peer->msg->hdr.cmd, cmd);
        CHECK(peer->msg->hdr.error_no != 0);
    }
    int fds[2] = { peer->fd, peer->fd };
    struct ob_wire_dma_access access = { 0, 4 };
    hdr = (struct ob_wire_hdr){ .msg_id = 7, .cmd = OB_CMD_DMA_READ };
    peer_send(peer, &hdr, &access, sizeof(access), fds, 2);
    expect_refusal(peer, OB_CMD_DMA_READ, 7, EINVAL);
    /* No answer, not even of a refusal, to what wants none. */
    peer_dma(peer, 8, OB_CMD_DMA_READ, RAM_SIZE, 4, NULL, OB_HDR_NO_REPLY);
    peer_dma(peer, 9, OB_CMD_DMA_READ, 0, 4, NULL, 0);
    peer_expect_reply(peer, OB_CMD_DMA_READ, 9);
    CHECK_INT(peer->msg->hdr.flags, OB_HDR_REPLY);
    free(huge);
}

TEST(refuses, "refuses-what-a-server-must-not-ask-and-goes-on")
{
    struct ob_client_options opt = with_ram();
    struct peer peer = { 0 };

    peer_start(&peer, ask_nonsense, &opt);
    struct pollfd pfd = { ob_client_fd(peer.client), POLLIN, 0 };
    do
        CHECK_INT(poll(&pfd, 1, 20000), 1);
    while (ob_client_step(peer.client) == 0);
    CHECK_STR(ob_client_error(peer.client), "the server closed the connection");
    peer_stop(&peer);
}

static void ask_once(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    struct peer_access request = peer_keep(peer);
    peer_dma(peer, 1, OB_CMD_DMA_WRITE, 0, 4, "abcd", 0);
    expect_refusal(peer, OB_CMD_DMA_WRITE, 1, EOPNOTSUPP);
    peer_answer(peer, &request, "abcd");
    peer_serve(peer);
}

static int call_back(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    struct peer *peer = opaque;
    uint32_t value = 0;

    (void)address, (void)data, (void)count;
    CHECK_INT(ob_client_region_post(peer->client, 0, 0, &value, 4), 0);
    return ob_client_region_read(peer->client, 0, 0, &value, 4);
}

TEST(no_callback, "without-callbacks-dma-is-refused")
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    struct peer peer = { 0 };
    uint32_t value;

    peer_start(&peer, ask_once, &opt);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), 0);
    peer_stop(&peer);
}

static void ask_once_after_post(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    struct peer_access request = peer_keep(peer);
    peer_dma(peer, 1, OB_CMD_DMA_WRITE, 0, 4, "abcd", 0);
    peer_expect(peer, OB_CMD_REGION_WRITE);
    expect_refusal(peer, OB_CMD_DMA_WRITE, 1, EDEADLK);
    peer_answer(peer, &request, "abcd");
}

TEST(callback_waits, "a-callback-that-would-wait-for-its-own-connection-fails")
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    struct peer peer = { 0 };
    uint32_t value;

    opt.dma_write = call_back;
    peer_start(&peer, ask_once_after_post, &opt);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), 0);
    peer_stop(&peer);
}

/* ---- Floods -------------------------------------------------------------------------------- */

static void flood_then_answer(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    for (int i = 0; i < 20000; i++)
        peer_dma(peer, 1, OB_CMD_DMA_WRITE, 0, 4, "abcd", OB_HDR_NO_REPLY);
    peer_reply_access(peer, "\1\2\3\4");
}

TEST(flood, "a-read-is-answered-after-a-flood-of-dma")
{
    struct ob_client_options opt = with_ram();
    struct peer peer = { 0 };
    uint8_t value[4];

    peer_start(&peer, flood_then_answer, &opt);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, value, 4), 0);
    CHECK_INT(nserved, 20000);
    CHECK_MEM(value, "\1\2\3\4", 4);
    peer_stop(&peer);
}

static void flood_until_closed(struct peer *peer)
{
    struct {
        struct ob_wire_hdr hdr;
        struct ob_wire_dma_access access;
        uint8_t data[4];
    } __attribute__((packed))
    post = { .hdr = { 1, OB_CMD_DMA_WRITE, sizeof(post), OB_HDR_NO_REPLY, 0 }, .access = { 0, 4 } };

    while (send(peer->fd, &post, sizeof(post), MSG_NOSIGNAL) == sizeof(post))
        ;
}

TEST(endless_flood, "an-endless-flood-does-not-outlast-the-deadline")
{
    struct ob_client_options opt = with_ram();
    struct peer peer = { 0 };
    uint8_t value[4];

    opt.timeout_ms = 400;
    peer_start(&peer, flood_until_closed, &opt);
    int64_t start = test_now_ms();
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, value, 4), -ETIMEDOUT);
    CHECK(test_now_ms() - start < 3000);
    start = test_now_ms(); /* a step comes back as well */
    CHECK_INT(ob_client_step(peer.client), 0);
    CHECK(test_now_ms() - start < 3000);
    ob_client_shutdown(peer.client, "enough");
    peer_stop(&peer);
}

static int slow_write_cb(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    (void)opaque, (void)address, (void)data, (void)count;
    usleep(20000);
    return 0;
}

/* More than can be served before the deadline, and all of it is there from the start. */
static void flood_at_once(struct peer *peer)
{
    struct {
        struct ob_wire_hdr hdr;
        struct ob_wire_dma_access access;
        uint8_t data[4];
    } __attribute__((packed)) posts[200];
    uint8_t byte;

    for (int i = 0; i < 200; i++) {
        posts[i].hdr =
            (struct ob_wire_hdr){ 1, OB_CMD_DMA_WRITE, sizeof(posts[i]), OB_HDR_NO_REPLY, 0 };
        posts[i].access = (struct ob_wire_dma_access){ 0, 4 };
    }
    peer_write(peer, posts, sizeof(posts));
    while (recv(peer->fd, &byte, 1, 0) == 1)
        ;
}

TEST(slow_flood, "a-flood-that-is-there-at-once-does-not-outlast-the-deadline")
{
    struct ob_client_options opt = with_ram();
    struct peer peer = { 0 };
    uint8_t value[4];

    opt.timeout_ms = 200;
    opt.dma_write = slow_write_cb;
    peer_start(&peer, flood_at_once, &opt);
    int64_t start = test_now_ms();
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, value, 4), -ETIMEDOUT);
    CHECK(test_now_ms() - start < 2000); /* to serve all takes 4 s */
    ob_client_shutdown(peer.client, "enough");
    peer_stop(&peer);
}

TEST(answers_not_taken, "a-server-that-takes-no-answers-is-cut-off")
{
    struct ob_client_options opt = with_ram();
    struct peer peer = { 0 };
    uint8_t value[4];

    opt.timeout_ms = 40000;
    peer_start(&peer, peer_take_no_answers, &opt);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, value, 4), -ENOTCONN);
    CHECK_STR(ob_client_error(peer.client),
              "the server does not take the answers to its DMA requests");
    peer_stop(&peer);
}
