/* SPDX-License-Identifier: BSD-3-Clause */
/* What a client may do to the stream; offering a server, running it, watching fds with it. */
#include "harness.h"
#include "peer.h"

#include <errno.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- The stream --------------------------------------------------------------------------- */

TEST(split, "message-in-single-bytes-is-one-message")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct {
        struct ob_wire_hdr hdr;
        struct ob_wire_device_info info;
    } message = { { 7, OB_CMD_DEVICE_GET_INFO, sizeof(message), 0, 0 }, { 16, 0, 0, 0 } };
    struct ob_msg *reply;
    struct peer peer;

    peer_attach(&peer, server);
    for (size_t i = 0; i < sizeof(message); i++) {
        peer_settle(server);
        peer_send_raw(&peer, (const char *)&message + i, 1);
    }
    reply = peer_receive(&peer);
    CHECK_INT(reply->hdr.msg_id, 7);
    CHECK_INT(reply->hdr.flags, OB_HDR_REPLY);
    CHECK_INT(reply->len, 16);
    ob_msg_free(reply);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(refused, "refused-messages-leave-the-stream-in-step")
{
    static const uint16_t cmds[] = {
        0,
        OB_CMD_DMA_READ,
        OB_CMD_DMA_WRITE,
        OB_CMD_DIRTY_PAGES,
        OB_CMD_REGION_WRITE_MULTI,
        OB_CMD_DEVICE_FEATURE,
        OB_CMD_MIG_DATA_READ,
        OB_CMD_MIG_DATA_WRITE,
        19,
        0xffff,
    };
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    uint8_t payload[64] = { 16 };
    struct peer peer;

    peer_attach(&peer, server);
    for (size_t i = 0; i < sizeof(cmds) / sizeof(cmds[0]); i++) {
        CHECK(peer_call(&peer, cmds[i], payload, sizeof(payload), NULL) < 0);
        CHECK_INT(peer_read32(&peer, 0, 0), 0);
    }
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), -EOPNOTSUPP);
    for (uint16_t cmd = 0; cmd < 20; cmd++) /* one byte is too short for everything */
        CHECK(peer_call(&peer, cmd, payload, 1, NULL) < 0);
    CHECK_INT(peer_read32(&peer, 0, 0), 0);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(oversize, "oversize-message-is-drained-and-refused")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct ob_wire_hdr hdr = { 3, OB_CMD_REGION_WRITE, 16 + 3000000, 0, 0 };
    static uint8_t block[100000];
    struct ob_msg *reply;
    struct peer peer;

    peer_attach(&peer, server);
    peer_send_raw(&peer, &hdr, sizeof(hdr));
    for (int i = 0; i < 30; i++) {
        peer_send_raw(&peer, block, sizeof(block));
        peer_settle(server);
    }
    reply = peer_receive(&peer);
    CHECK_INT(reply->hdr.msg_id, 3);
    CHECK_INT(reply->hdr.flags, OB_HDR_REPLY | OB_HDR_ERROR);
    CHECK_INT(reply->hdr.error_no, EINVAL);
    ob_msg_free(reply);
    CHECK_INT(peer_read32(&peer, 0, 0), 0);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(short_header, "message-shorter-than-its-header-ends-the-client")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct ob_wire_hdr hdr = { 3, OB_CMD_DEVICE_GET_INFO, 15, 0, 0 };
    struct peer peer;

    peer_attach(&peer, server);
    peer_send_raw(&peer, &hdr, sizeof(hdr));
    peer_expect_close(&peer);
    CHECK_STR(device.log, "client left: a message shorter than its header");
    peer_close(&peer);
    ob_server_free(server);
}

TEST(posted, "posted-requests-are-executed-and-never-answered")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    uint8_t payload[64] = { 0 };
    struct peer peer;

    peer_attach(&peer, server);
    for (uint16_t cmd = 0; cmd < 20; cmd++)
        peer_send(&peer, cmd, OB_HDR_NO_REPLY, payload, sizeof(payload), NULL, 0);
    peer_post32(&peer, 8, 0x1234);
    peer_post32(&peer, 4096, 1); /* beyond the region */
    CHECK(peer_silent(&peer));
    CHECK_INT(peer_read32(&peer, 0, 8), 0x1234);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(caught_up, "device-can-tell-whether-commands-are-on-their-way")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct ob_wire_hdr hdr = { 0, OB_CMD_DEVICE_RESET, sizeof(hdr), OB_HDR_NO_REPLY, 0 };
    uint8_t posted[sizeof(hdr) + sizeof(struct ob_wire_region_access) + 4];
    struct peer peer;
    unsigned steps = 0;

    CHECK(ob_server_caught_up(server)); /* with nobody there */
    peer_attach(&peer, server);
    peer_settle(server);
    CHECK(ob_server_caught_up(server));
    for (unsigned i = 0; i < 200; i++)
        peer_send_raw(&peer, &hdr, sizeof(hdr));
    for (; !ob_server_caught_up(server); steps++)
        CHECK_INT(ob_server_step(server), 0);
    CHECK(steps > 1);
    /* The last of what was sent is what it says. */
    memset(posted, 0, sizeof(posted));
    memcpy(posted,
           &(struct ob_wire_hdr){ 0, OB_CMD_REGION_WRITE, sizeof(posted),
                                  OB_HDR_COMMAND | OB_HDR_NO_REPLY, 0 },
           sizeof(hdr));
    memcpy(posted + sizeof(hdr), &(struct ob_wire_region_access){ 16, 0, 4 },
           sizeof(struct ob_wire_region_access));
    posted[sizeof(posted) - 4] = 0x77;
    peer_send_raw(&peer, &hdr, sizeof(hdr));
    peer_send_raw(&peer, posted, sizeof(posted));
    while (!ob_server_caught_up(server))
        CHECK_INT(ob_server_step(server), 0);
    CHECK_INT(device.memory[16], 0x77);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(stray_reply, "reply-to-nothing-is-dropped")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    uint8_t payload[16] = { 0 };
    struct peer peer;

    peer_attach(&peer, server);
    peer_send(&peer, OB_CMD_DMA_READ, OB_HDR_REPLY, payload, sizeof(payload), NULL, 0);
    CHECK(peer_silent(&peer));
    CHECK_INT(peer_read32(&peer, 0, 0), 0);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(never_reads, "client-that-reads-no-answers-is-not-read-from")
{
    struct {
        struct ob_wire_hdr hdr;
        struct ob_wire_region_access access;
    } message = { { 0, OB_CMD_REGION_READ, sizeof(message), 0, 0 }, { 0, 0, 4096 } };
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    uint16_t sent = 0;
    struct peer peer;

    peer_attach(&peer, server);
    peer_settle(server);
    while (sent < 50000) {
        message.hdr.msg_id = sent;
        if (send(peer.ch.fd, &message, sizeof(message), MSG_DONTWAIT) != sizeof(message))
            break;
        sent++;
        peer_settle(server);
    }
    CHECK(sent < 50000);
    for (uint16_t i = 0; i < sent; i++) {
        struct ob_msg *reply = peer_receive(&peer);

        CHECK_INT(reply->hdr.msg_id, i);
        CHECK_INT(reply->len, 16 + 4096);
        ob_msg_free(reply);
    }
    CHECK_INT(peer_read32(&peer, 0, 0), 0);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(dies_unread, "client-that-dies-with-unread-answers-is-let-go")
{
    struct ob_wire_region_access access = { 0, 0, 4096 };
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct peer peer;

    peer_attach(&peer, server);
    for (int i = 0; i < 1000; i++)
        peer_send(&peer, OB_CMD_REGION_READ, 0, &access, sizeof(access), NULL, 0);
    peer_settle(server);
    CHECK_INT(device.left, 0);
    peer_close(&peer);
    CHECK_INT(device.left, 1);
    CHECK_STR(device.log, "client left: it closed the connection");
    peer_attach(&peer, server);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(flood, "flood-of-posted-writes-leaves-room-for-the-loop")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct peer peer;

    peer_attach(&peer, server);
    peer_settle(server);
    for (int i = 0; i < 200; i++)
        peer_post32(&peer, 0, 1);
    CHECK_INT(ob_server_step(server), 0);
    CHECK(device.writes > 1 && device.writes <= 64);
    peer_settle(server);
    CHECK_INT(device.writes, 200);
    peer_close(&peer);
    ob_server_free(server);
}

/* ---- Offering, running -------------------------------------------------------------------- */

TEST(adopted, "adopted-connection-ends-the-run")
{
    struct memory_device device;
    struct ob_server *server = memory_device_server(&device);
    struct peer peer;
    int pair[2];

    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    CHECK_INT(ob_server_listen_fd(server, pair[0]), 0);
    peer_adopt(&peer, server, pair[1]);
    CHECK_INT(peer_negotiate(&peer, NULL), 0);
    CHECK_INT(peer_read32(&peer, 0, 0), 0);
    ob_channel_fini(&peer.ch);
    CHECK_INT(ob_server_run(server), 0);
    CHECK_INT(ob_server_step(server), 1);
    CHECK_INT(ob_server_run(server), 0); /* does not wait for a client that cannot come */
    ob_server_free(server);
}

TEST(adopted_listener, "adopted-listener-takes-clients")
{
    struct memory_device device;
    struct ob_server *server = memory_device_server(&device);
    struct peer peer;
    int pipefd[2];

    CHECK_INT(ob_server_listen_fd(server, ob_socket_listen(peer_socket_path(), 0600, 4)), 0);
    for (int i = 0; i < 3; i++) {
        peer_attach(&peer, server);
        CHECK_INT(peer_read32(&peer, 0, 0), 0);
        peer_close(&peer);
    }
    ob_server_free(server);
    server = memory_device_server(&device);
    CHECK_INT(pipe(pipefd), 0);
    CHECK_INT(ob_server_listen_fd(server, pipefd[0]), -ENOTSOCK);
    close(pipefd[1]);
    ob_server_free(server);
}

TEST(socket_file, "socket-file-is-removed-replaced-and-respected")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device),
                     *other = memory_device_server(&device);

    CHECK_INT(ob_server_listen(other, peer_socket_path(), 0), -EADDRINUSE);
    ob_server_free(server);
    CHECK(access(peer_socket_path(), F_OK) != 0);
    close(ob_socket_listen(peer_socket_path(), 0600, 1)); /* stale */
    CHECK_INT(ob_server_listen(other, peer_socket_path(), 0), 0);
    unlink(peer_socket_path());
    server = memory_device_listen(&device); /* took the path over: its file must survive */
    ob_server_free(other);
    CHECK(access(peer_socket_path(), F_OK) == 0);
    ob_server_free(server);
}

static void *run(void *opaque)
{
    return (void *)(intptr_t)ob_server_run(opaque);
}

TEST(stopped, "stop-ends-the-run-also-when-it-comes-first")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    pthread_t thread;
    void *rc;

    ob_server_stop(server);
    CHECK_INT(ob_server_run(server), 0);
    CHECK_INT(pthread_create(&thread, NULL, run, server), 0);
    ob_server_stop(server);
    CHECK_INT(pthread_join(thread, &rc), 0);
    CHECK(rc == NULL);
    ob_server_free(server);
}

struct watched {
    struct ob_server *server;
    int fd, count;
};

static void on_ready(void *opaque, uint32_t events)
{
    struct watched *watched = opaque;

    CHECK(events & EPOLLIN);
    if (++watched->count == 3)
        CHECK_INT(ob_server_watch(watched->server, watched->fd, 0, NULL, NULL), 0);
}

static bool on_poll(void *opaque)
{
    return --*(int *)opaque > 0;
}

TEST(watched, "embedder-watches-fds-and-polls")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct watched watched = { server, eventfd(1, EFD_NONBLOCK), 0 };
    int polls = 5;

    CHECK_INT(ob_server_watch(server, watched.fd, EPOLLIN, on_ready, &watched), 0);
    peer_settle(server);
    CHECK_INT(watched.count, 3);
    CHECK_INT(ob_server_watch(server, watched.fd, 0, NULL, NULL), -ENOENT);
    ob_server_set_poller(server, on_poll, &polls);
    peer_settle(server);
    CHECK_INT(polls, 0);
    ob_server_set_poller(server, NULL, NULL);
    close(watched.fd);
    ob_server_free(server);
}
