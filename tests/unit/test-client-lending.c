/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Memory that the embedder lends for the answers to DMA_READ: it is what the server gets, and comes
 * back once, whatever becomes of the answer.
 */
#include "harness.h"
#include "scripted.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>

#define RAM_SIZE (2u << 20)
#define LOANS    128

/* The first half is lent, the second is not. */
static uint8_t ram[RAM_SIZE];

/* Each loan has a number. */
static struct loan {
    unsigned lent, returned;
} loans[LOANS];
static atomic_uint nlent, nreturned;

static const void *lend(void *opaque, uint64_t address, uint32_t count, void **loan)
{
    (void)opaque;
    CHECK(count > 0);
    CHECK(!*loan);
    if (address > RAM_SIZE / 2 || count > RAM_SIZE / 2 - address)
        return NULL;
    CHECK(nlent < LOANS);
    loans[nlent].lent++;
    *loan = &loans[nlent++];
    return ram + address;
}

static void take_back(void *opaque, void *loan)
{
    struct loan *l = loan;

    (void)opaque;
    CHECK_INT(l->lent, 1);
    CHECK_INT(l->returned++, 0);
    nreturned++;
}

static int copy(void *opaque, uint64_t address, void *data, uint32_t count)
{
    (void)opaque;
    if (address > RAM_SIZE || count > RAM_SIZE - address)
        return -EFAULT;
    CHECK(count == 0 || address + count > RAM_SIZE / 2);
    memcpy(data, ram + address, count);
    return 0;
}

static struct ob_client_options lending(void)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;

    for (uint32_t i = 0; i < RAM_SIZE; i++)
        ram[i] = (uint8_t)(i % 251);
    opt.dma_read = copy;
    opt.dma_lend = lend;
    opt.dma_return = take_back;
    return opt;
}

static void expect_memory(struct peer *peer, uint16_t id, uint64_t address, uint32_t count)
{
    uint32_t fixed = sizeof(struct ob_wire_dma_access);

    peer_expect_reply(peer, OB_CMD_DMA_READ, id);
    CHECK_INT(peer->msg->hdr.flags, OB_HDR_REPLY);
    CHECK_INT(peer->msg->len, fixed + count);
    CHECK_INT(PEER_GET(peer, struct ob_wire_dma_access).address, address);
    for (uint32_t i = 0; i < count; i++)
        CHECK_INT(peer->msg->payload[fixed + i], (address + i) % 251);
}

static void read_memory(struct peer *peer, uint64_t address, uint32_t count)
{
    peer_dma(peer, 1, OB_CMD_DMA_READ, address, count, NULL, 0);
    expect_memory(peer, 1, address, count);
}

/* ---- What the server gets ------------------------------------------------------------------ */

static void read_sizes(struct peer *peer)
{
    static const uint32_t sizes[] = { 1, 4, 200, 256, 257, 4096, 65536, OB_DATA_XFER_MAX };

    peer_expect(peer, OB_CMD_REGION_READ);
    struct peer_access request = peer_keep(peer);
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
        read_memory(peer, RAM_SIZE / 2 - sizes[i], sizes[i]);
    CHECK_INT(nlent, sizeof(sizes) / sizeof(*sizes));
    peer_answer(peer, &request, "done");
    peer_serve(peer);
}

TEST(lent, "lent-memory-is-what-the-server-gets")
{
    struct ob_client_options opt = lending();
    struct peer peer = { 0 };
    uint32_t value;

    opt.dma_read = NULL;
    peer_start(&peer, read_sizes, &opt);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), 0);
    CHECK_INT(nreturned, nlent);
    peer_stop(&peer);
}

static void read_elsewhere(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    struct peer_access request = peer_keep(peer);
    read_memory(peer, RAM_SIZE / 2, 4096);
    read_memory(peer, RAM_SIZE / 2 - 1, 2);
    read_memory(peer, 4096, 0);
    peer_dma(peer, 2, OB_CMD_DMA_READ, RAM_SIZE, 4, NULL, 0);
    peer_expect_reply(peer, OB_CMD_DMA_READ, 2);
    CHECK_INT(peer->msg->hdr.flags, OB_HDR_REPLY | OB_HDR_ERROR);
    CHECK_INT(peer->msg->hdr.error_no, EFAULT);
    CHECK_INT(nlent, 0);
    peer_answer(peer, &request, "done");
    peer_serve(peer);
}

TEST(not_lent, "what-is-not-lent-is-copied")
{
    struct ob_client_options opt = lending();
    struct peer peer = { 0 };
    uint32_t value;

    peer_start(&peer, read_elsewhere, &opt);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), 0);
    peer_stop(&peer);
    CHECK_INT(nreturned, 0);
}

static void read_refused(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    struct peer_access request = peer_keep(peer);
    peer_dma(peer, 1, OB_CMD_DMA_READ, RAM_SIZE / 2, 4096, NULL, 0);
    peer_expect_reply(peer, OB_CMD_DMA_READ, 1);
    CHECK_INT(peer->msg->hdr.error_no, EOPNOTSUPP);
    read_memory(peer, 0, 4096);
    peer_answer(peer, &request, "done");
    peer_serve(peer);
}

TEST(no_return, "who-lends-need-not-copy-nor-take-back")
{
    struct ob_client_options opt = lending();
    struct peer peer = { 0 };
    uint32_t value;

    opt.dma_read = NULL;
    opt.dma_return = NULL;
    peer_start(&peer, read_refused, &opt);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), 0);
    CHECK_INT(nlent, 1);
    peer_stop(&peer);
}

static void read_copied(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    struct peer_access request = peer_keep(peer);
    read_memory(peer, RAM_SIZE - 4096, 4096);
    peer_answer(peer, &request, "done");
    peer_serve(peer);
}

TEST(old_options, "options-that-end-before-lending-have-none")
{
    struct ob_client_options opt = lending();
    struct peer peer = { 0 };
    uint32_t value;

    opt.size = offsetof(struct ob_client_options, dma_lend);
    opt.dma_lend = (const void *(*)(void *, uint64_t, uint32_t, void **))abort;
    peer_start(&peer, read_copied, &opt);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), 0);
    peer_stop(&peer);
}

/* ---- When it comes back -------------------------------------------------------------------- */

/* Handles what comes until so many loans have come back. */
static void step_until_returned(struct peer *peer, unsigned count)
{
    struct pollfd pfd = { ob_client_fd(peer->client), POLLIN, 0 };

    while (nreturned < count) {
        CHECK_INT(poll(&pfd, 1, 20000), 1);
        CHECK_INT(ob_client_step(peer->client), 0);
    }
}

/* Reads the answers only when the memory has changed. */
static void read_when_told(struct peer *peer)
{
    atomic_bool *told = peer->arg;

    for (uint16_t id = 1; id <= 10; id++)
        peer_dma(peer, id, OB_CMD_DMA_READ, id, RAM_SIZE / 4, NULL, 0);
    while (!*told)
        poll(NULL, 0, 1);
    for (uint16_t id = 1; id <= 10; id++)
        expect_memory(peer, id, id, RAM_SIZE / 4);
}

TEST(not_read, "a-server-that-does-not-read-keeps-nothing-lent")
{
    struct ob_client_options opt = lending();
    atomic_bool told = false;
    struct peer peer = { .arg = &told };

    peer_start(&peer, read_when_told, &opt);
    step_until_returned(&peer, 10);
    memset(ram, 0xff, sizeof(ram));
    told = true;
    struct pollfd pfd = { ob_client_fd(peer.client), POLLIN, 0 };
    do
        CHECK_INT(poll(&pfd, 1, 20000), 1);
    while (ob_client_step(peer.client) == 0);
    CHECK_INT(nlent, 10);
    CHECK_STR(peer.why, "the server closed the connection");
    peer_stop(&peer);
}

/* What is answered when the queue is full, too. */
TEST(queue_full, "lent-memory-comes-back-once-when-no-answers-are-taken")
{
    struct ob_client_options opt = lending();
    struct peer peer = { 0 };
    uint8_t value[4];

    opt.timeout_ms = 40000;
    peer_start(&peer, peer_take_no_answers, &opt);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, value, 4), -ENOTCONN);
    CHECK_STR(ob_client_error(peer.client),
              "the server does not take the answers to its DMA requests");
    CHECK(nlent > 60);
    CHECK_INT(nreturned, nlent);
    peer_stop(&peer);
    CHECK_INT(nreturned, nlent);
}

static void take_nothing(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    CHECK_INT(shutdown(peer->fd, SHUT_RD), 0);
    peer_dma(peer, 1, OB_CMD_DMA_READ, 0, OB_DATA_XFER_MAX, NULL, 0);
    struct pollfd pfd = { peer->fd, 0, 0 };
    CHECK_INT(poll(&pfd, 1, 20000), 1);
}

static void die_in_the_middle(struct peer *peer)
{
    uint8_t some[1000];

    peer_expect(peer, OB_CMD_REGION_READ);
    for (int i = 0; i < 3; i++)
        peer_dma(peer, 1, OB_CMD_DMA_READ, 0, OB_DATA_XFER_MAX, NULL, 0);
    CHECK_INT(recv(peer->fd, some, sizeof(some), MSG_WAITALL), sizeof(some));
}

static void lose(void (*script)(struct peer *peer), unsigned least)
{
    struct ob_client_options opt = lending();
    struct peer peer = { 0 };
    uint8_t value[4];
    unsigned before = nlent;

    peer_start(&peer, script, &opt);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, value, 4), -ENOTCONN);
    peer_stop(&peer);
    CHECK(nlent >= before + least);
    CHECK_INT(nreturned, nlent);
}

TEST(server_dies, "lent-memory-comes-back-once-when-the-server-dies-in-the-middle")
{
    lose(take_nothing, 1);
    for (int i = 0; i < 20; i++)
        lose(die_in_the_middle, 1);
}

static void ask_without_answer(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    struct peer_access request = peer_keep(peer);
    peer_dma(peer, 1, OB_CMD_DMA_READ, 0, 4096, NULL, OB_HDR_NO_REPLY);
    read_memory(peer, 4096, 16);
    peer_answer(peer, &request, "done");
    peer_serve(peer);
}

TEST(no_reply, "lent-memory-comes-back-once-when-no-answer-is-wanted")
{
    struct ob_client_options opt = lending();
    struct peer peer = { 0 };
    uint8_t value[4];

    peer_start(&peer, ask_without_answer, &opt);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, value, 4), 0);
    CHECK(nlent >= 1);
    CHECK_INT(nreturned, nlent);
    peer_stop(&peer);
}

/* ---- Calls from the callbacks -------------------------------------------------------------- */

static const void *shut_down_and_lend(void *opaque, uint64_t address, uint32_t count, void **loan)
{
    struct peer *peer = opaque;

    ob_client_shutdown(peer->client, "enough");
    return lend(opaque, address, count, loan);
}

static void ask_once(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    peer_dma(peer, 1, OB_CMD_DMA_READ, 0, 4096, NULL, 0);
    CHECK(!peer_recv(peer));
}

TEST(shut_down, "lent-memory-comes-back-once-when-the-client-is-shut-down-meanwhile")
{
    struct ob_client_options opt = lending();
    struct peer peer = { 0 };
    uint8_t value[4];

    opt.dma_lend = shut_down_and_lend;
    peer_start(&peer, ask_once, &opt);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, value, 4), -ENOTCONN);
    CHECK_INT(nlent, 1);
    CHECK_INT(nreturned, 1);
    peer_stop(&peer);
}

static const void *wait_and_lend(void *opaque, uint64_t address, uint32_t count, void **loan)
{
    struct peer *peer = opaque;

    CHECK_INT(ob_client_reset(peer->client), -EDEADLK);
    return lend(opaque, address, count, loan);
}

static void wait_and_take_back(void *opaque, void *loan)
{
    struct peer *peer = opaque;

    CHECK_INT(ob_client_reset(peer->client), -EDEADLK);
    take_back(opaque, loan);
}

static void read_once(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    struct peer_access request = peer_keep(peer);
    read_memory(peer, 0, 4096);
    peer_answer(peer, &request, "done");
    peer_serve(peer);
}

TEST(waits, "lending-and-taking-back-may-not-wait-for-the-connection")
{
    struct ob_client_options opt = lending();
    struct peer peer = { 0 };
    uint8_t value[4];

    opt.dma_lend = wait_and_lend;
    opt.dma_return = wait_and_take_back;
    peer_start(&peer, read_once, &opt);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, value, 4), 0);
    CHECK_INT(nreturned, 1);
    peer_stop(&peer);
}
