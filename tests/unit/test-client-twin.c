/* SPDX-License-Identifier: BSD-3-Clause */
/* The second socket, which the server's DMA messages go over where both sides want that. */
#include "harness.h"
#include "scripted.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define TWIN(index) \
    "{\"capabilities\":{\"twin_socket\":{\"supported\":true,\"fd_index\":" #index "}}}"

static uint8_t ram[0x1000];

static int dma_read(void *opaque, uint64_t address, void *data, uint32_t count)
{
    (void)opaque;
    if (address > sizeof(ram) || count > sizeof(ram) - address)
        return -EFAULT;
    memcpy(data, ram + address, count);
    return 0;
}

static int dma_write(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    (void)opaque;
    if (address > sizeof(ram) || count > sizeof(ram) - address)
        return -EFAULT;
    memcpy(ram + address, data, count);
    return 0;
}

static struct ob_client_options with_ram(void)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;

    opt.dma_read = dma_read;
    opt.dma_write = dma_write;
    return opt;
}

/* A socket pair: the client's end goes with the VERSION reply, ours is in peer->arg. */
struct twin {
    int fds[2]; /* ours, the client's */
};

static int start(struct peer *peer, struct twin *twin, void (*script)(struct peer *peer),
                 const struct ob_client_options *opt)
{
    int rc;

    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, twin->fds), 0);
    peer->version_fds = &twin->fds[1];
    peer->version_nfds = 1;
    peer->arg = twin;
    if (!peer->json)
        peer->json = TWIN(0);
    rc = peer_try_start(peer, script, opt);
    close(twin->fds[1]);
    return rc;
}

static void stop(struct peer *peer)
{
    struct twin *twin = peer->arg;

    peer_stop(peer);
    close(twin->fds[0]);
}

/* From here on the script speaks over the other socket. */
static void change_socket(struct peer *peer)
{
    struct twin *twin = peer->arg;
    int fd = peer->fd;

    peer->fd = twin->fds[0];
    twin->fds[0] = fd;
}

static void expect_error(struct peer *peer, uint16_t cmd, uint16_t id, uint32_t error)
{
    peer_expect_reply(peer, cmd, id);
    CHECK(peer->msg->hdr.flags & OB_HDR_ERROR);
    CHECK_INT(peer->msg->hdr.error_no, error);
}

/* Whether the client says that it can do it: the VERSION message is still there. */
static bool offered(struct peer *peer)
{
    return strstr((char *)peer->msg->payload + 4, "\"twin_socket\":{\"supported\":true}") != NULL;
}

static void dma_within_read(struct peer *peer)
{
    CHECK(offered(peer));
    peer_expect(peer, OB_CMD_REGION_READ);
    struct peer_access kept = peer_keep(peer);
    change_socket(peer);
    peer_dma(peer, 1, OB_CMD_DMA_WRITE, 0x10, 5, "hello", 0);
    peer_expect_reply(peer, OB_CMD_DMA_WRITE, 1);
    CHECK_INT(peer->msg->len, sizeof(struct ob_wire_dma_access));
    peer_dma(peer, 2, OB_CMD_DMA_READ, 0x12, 3, NULL, 0);
    peer_expect_reply(peer, OB_CMD_DMA_READ, 2);
    CHECK_MEM(peer->msg->payload + sizeof(struct ob_wire_dma_access), "llo", 3);
    peer_dma(peer, 3, OB_CMD_DMA_READ, sizeof(ram), 1, NULL, 0);
    expect_error(peer, OB_CMD_DMA_READ, 3, EFAULT);
    change_socket(peer);
    /* R-TWIN-4: DMA over the main socket is refused, and does no harm. */
    peer_dma(peer, 4, OB_CMD_DMA_READ, 0x10, 5, NULL, 0);
    expect_error(peer, OB_CMD_DMA_READ, 4, EINVAL);
    peer_answer(peer, &kept, "done");
    peer_serve(peer);
}

TEST(within_read, "dma-comes-over-the-second-socket-while-a-read-waits")
{
    struct ob_client_options opt = with_ram();
    struct peer peer = { 0 };
    struct twin twin;
    char data[4];

    CHECK_INT(start(&peer, &twin, dma_within_read, &opt), 0);
    CHECK(ob_client_caps(peer.client)->twin_socket);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, data, 4), 0);
    CHECK_MEM(data, "done", 4);
    CHECK_MEM(ram + 0x10, "hello", 5);
    stop(&peer);
}

static void dma_alone(struct peer *peer)
{
    change_socket(peer);
    for (uint16_t i = 0; i < 100; i++) {
        peer_dma(peer, i, OB_CMD_DMA_WRITE, i, 1, "x", 0);
        peer_expect_reply(peer, OB_CMD_DMA_WRITE, i);
    }
    change_socket(peer);
}

TEST(from_loop, "the-loop-serves-the-second-socket")
{
    struct ob_client_options opt = with_ram();
    struct peer peer = { 0 };
    struct twin twin;

    CHECK_INT(start(&peer, &twin, dma_alone, &opt), 0);
    struct pollfd pfd = { ob_client_fd(peer.client), POLLIN, 0 };
    do
        CHECK_INT(poll(&pfd, 1, 20000), 1);
    while (ob_client_step(peer.client) == 0); /* until the script has ended */
    CHECK_INT(ram[0], 'x');
    CHECK_INT(ram[99], 'x');
    CHECK_INT(poll(&pfd, 1, 0), 0);
    stop(&peer);
}

/* An answer, and at once the end of the second socket. */
static void answer_and_end(struct peer *peer)
{
    struct twin *twin = peer->arg;

    peer_expect(peer, OB_CMD_REGION_READ);
    peer_reply_access(peer, "last");
    shutdown(twin->fds[0], SHUT_RDWR);
    while (peer_recv(peer)) /* until the client has closed the other one as well */
        ;
}

TEST(ends, "the-end-of-the-second-socket-ends-the-connection-after-the-last-answer")
{
    struct peer peer = { 0 };
    struct twin twin;
    char data[4];

    CHECK_INT(start(&peer, &twin, answer_and_end, NULL), 0);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, data, 4), 0);
    CHECK_MEM(data, "last", 4);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, data, 4), -ENOTCONN);
    CHECK_STR(ob_client_error(peer.client), "the server closed the connection");
    CHECK_INT(peer.lost, 1);
    stop(&peer);
}

static void reply_on_twin(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    change_socket(peer);
    peer_reply_access(peer, "lies");
    change_socket(peer);
    CHECK(!peer_recv(peer));
}

TEST(wrong_way, "a-reply-over-the-second-socket-ends-the-connection")
{
    struct peer peer = { 0 };
    struct twin twin;
    char data[4];

    CHECK_INT(start(&peer, &twin, reply_on_twin, NULL), 0);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, data, 4), -ENOTCONN);
    CHECK_STR(ob_client_error(peer.client), "the server sent a reply over the second socket");
    stop(&peer);
}

static void expect_goodbye(struct peer *peer)
{
    CHECK(!peer_recv(peer));
}

static void check_refused(const char *json, const struct ob_client_options *opt, const char *why)
{
    struct peer peer = { .json = json };
    struct twin twin;

    CHECK_INT(start(&peer, &twin, expect_goodbye, opt), -EPROTONOSUPPORT);
    CHECK(strstr(peer.why, why));
    stop(&peer);
}

TEST(refused, "a-second-socket-that-cannot-be-is-refused")
{
    struct ob_client_options single = OB_CLIENT_OPTIONS_INIT;
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct peer peer = { .json = TWIN(0), .version_fds = &null_fd, .version_nfds = 1 };

    check_refused(TWIN(1), NULL, "speaks of a second socket, and sends none");
    check_refused("{\"capabilities\":{\"twin_socket\":{\"supported\":true}}}", NULL, "fd_index");
    single.single_socket = true;
    check_refused(TWIN(0), &single, "insists on a second socket");
    CHECK_INT(peer_try_start(&peer, expect_goodbye, NULL), -EPROTONOSUPPORT);
    CHECK(strstr(peer.why, "is no stream socket"));
    peer_stop(&peer);
    close(null_fd);
}

static void check_not_offered(struct peer *peer)
{
    CHECK(!offered(peer));
    peer_expect(peer, OB_CMD_REGION_READ);
    struct peer_access kept = peer_keep(peer);
    peer_dma(peer, 1, OB_CMD_DMA_READ, 0, 1, NULL, 0);
    peer_expect_reply(peer, OB_CMD_DMA_READ, 1);
    CHECK(!(peer->msg->hdr.flags & OB_HDR_ERROR));
    peer_answer(peer, &kept, "done");
    peer_serve(peer);
}

TEST(single, "without-it-dma-goes-over-the-main-socket")
{
    struct ob_client_options opt = with_ram();
    struct peer peer = { 0 };
    char data[4];

    opt.single_socket = true;
    peer_start(&peer, check_not_offered, &opt);
    CHECK(!ob_client_caps(peer.client)->twin_socket);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, data, 4), 0);
    peer_stop(&peer);
}
