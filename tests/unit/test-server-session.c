/* SPDX-License-Identifier: BSD-3-Clause */
/* Connections: who becomes the client, what a client may do to the stream, how it leaves. */
#include "harness.h"
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

struct device {
    uint8_t memory[4096];
    int attached, left;
    unsigned writes;
    char log[1024];
};

static void on_client(void *opaque, bool attached)
{
    struct device *device = opaque;

    *(attached ? &device->attached : &device->left) += 1;
}

static void on_log(void *opaque, enum ob_log_level level, const char *line)
{
    struct device *device = opaque;

    if (level != OB_LOG_DEBUG)
        snprintf(device->log, sizeof(device->log), "%s", line);
}

static int on_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct device *device = opaque;

    if (is_write)
        memcpy(device->memory + offset, data, count);
    else
        memcpy(data, device->memory + offset, count);
    device->writes += is_write;
    return 0;
}

static struct ob_server *new_server(struct device *device)
{
    static const struct ob_server_ops ops = { sizeof(ops), NULL, on_client, NULL, on_log };
    struct ob_region region = { .size = sizeof(device->memory),
                                .flags = OB_REGION_READ | OB_REGION_WRITE,
                                .access = on_access,
                                .opaque = device };
    struct ob_server *server = ob_server_new(&ops, device);

    memset(device, 0, sizeof(*device));
    CHECK(server);
    CHECK_INT(ob_server_set_region(server, 0, &region), 0);
    return server;
}

static struct ob_server *listening_server(struct device *device)
{
    struct ob_server *server = new_server(device);

    CHECK_INT(ob_server_listen(server, peer_socket_path(), 0), 0);
    return server;
}

static void post_write(struct peer *peer, uint64_t offset, uint32_t value)
{
    struct {
        struct ob_wire_region_access access;
        uint32_t value;
    } message = { { offset, 0, sizeof(value) }, value };

    peer_send(peer, OB_CMD_REGION_WRITE, OB_HDR_NO_REPLY, &message, 20, NULL, 0);
}

/* ---- Negotiation -------------------------------------------------------------------------- */

TEST(version_reply, "version-is-answered-within-what-qemu-takes")
{
    static const char qemu[] =
        "{\"capabilities\": {\"migration\": {\"max_bitmap_size\": 268435456, \"pgsize\": 4096}, "
        "\"max_msg_fds\": 16, \"max_data_xfer_size\": 1048576, \"max_dma_maps\": 65535, "
        "\"pgsizes\": 4096, \"write_multiple\": true}}";
    uint8_t payload[4 + sizeof(qemu)] = { 0, 0, 7, 0 }; /* version 0.7 */
    struct device device;
    struct ob_server *server = listening_server(&device);
    struct ob_wire_version version;
    struct ob_caps caps;
    const char *why;
    struct ob_msg *reply;
    struct peer peer;

    memcpy(payload + 4, qemu, sizeof(qemu));
    peer_connect(&peer, server);
    CHECK_INT(peer_call(&peer, OB_CMD_VERSION, payload, sizeof(payload), &reply), 0);
    memcpy(&version, reply->payload, sizeof(version));
    CHECK_INT(version.major, 0);
    CHECK_INT(version.minor, 0);
    CHECK(reply->len - 4 <= OB_VERSION_JSON_QEMU);
    CHECK_INT(ob_caps_parse(reply->payload + 4, reply->len - 4, true, &caps, &why), 0);
    CHECK_INT(caps.max_msg_fds, 16);
    CHECK_INT(caps.max_data_xfer_size, 1048576);
    CHECK(!caps.write_multiple && !caps.migration && !caps.twin_socket);
    ob_msg_free(reply);
    CHECK_INT(device.attached, 1);
    CHECK(ob_server_attached(server));
    peer_close(&peer);
    CHECK_INT(device.left, 1);
    CHECK(!ob_server_attached(server));
    ob_server_free(server);
}

TEST(version_bare, "version-without-json-is-answered-without")
{
    struct device device;
    struct ob_server *server = listening_server(&device);
    uint8_t payload[4] = { 0, 0, 1, 0 };
    struct ob_msg *reply;
    struct peer peer;

    peer_connect(&peer, server);
    CHECK_INT(peer_call(&peer, OB_CMD_VERSION, payload, 4, &reply), 0);
    CHECK_INT(reply->len, 4);
    ob_msg_free(reply);
    CHECK(ob_server_attached(server));
    peer_close(&peer);
    ob_server_free(server);
}

TEST(version_fd, "version-with-fds-is-answered-and-they-are-closed")
{
    struct device device;
    struct ob_server *server = listening_server(&device);
    uint8_t payload[4] = { 0 };
    int fds[2] = { 0, 1 };
    struct peer peer;

    peer_connect(&peer, server);
    CHECK_INT(peer_call_fds(&peer, OB_CMD_VERSION, payload, 4, fds, 2, NULL), 0);
    CHECK(ob_server_attached(server));
    peer_close(&peer);
    ob_server_free(server);
}

static void expect_refused(struct ob_server *server, struct device *device, uint16_t cmd,
                           const void *payload, size_t len)
{
    struct peer peer;

    device->log[0] = 0;
    peer_connect(&peer, server);
    CHECK_INT(peer_call(&peer, cmd, payload, len, NULL), -EINVAL);
    peer_expect_close(&peer);
    CHECK(strstr(device->log, "refused"));
    CHECK(!ob_server_attached(server));
    peer_close(&peer);
}

TEST(version_bad, "bad-version-is-refused-and-closed")
{
    struct device device;
    struct ob_server *server = listening_server(&device);
    struct ob_wire_device_info info = { sizeof(info), 0, 0, 0 };

    expect_refused(server, &device, OB_CMD_VERSION, "\1\0\0\0", 4);
    expect_refused(server, &device, OB_CMD_VERSION, "\0\0\0\0{\"capabilities\":[]}", 24);
    expect_refused(server, &device, OB_CMD_VERSION, "\0\0\0\0{\"capab", 12);
    expect_refused(server, &device, OB_CMD_VERSION, "\0\0\0\0{}", 6); /* no NUL */
    expect_refused(server, &device, OB_CMD_VERSION, "\0\0", 2);
    expect_refused(server, &device, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info));
    CHECK_INT(device.attached, 0);
    ob_server_free(server);
}

TEST(version_twice, "second-version-is-refused-and-the-client-stays")
{
    struct device device;
    struct ob_server *server = listening_server(&device);
    struct peer peer;

    peer_attach(&peer, server);
    CHECK_INT(peer_negotiate(&peer, NULL), -EINVAL);
    CHECK_INT(peer_read32(&peer, 0, 0), 0);
    peer_close(&peer);
    ob_server_free(server);
}

/* ---- The lobby ---------------------------------------------------------------------------- */

TEST(silent, "silent-connections-block-nobody")
{
    struct device device;
    struct ob_server *server = listening_server(&device);
    struct peer silent[3], peer;

    for (int i = 0; i < 3; i++)
        peer_connect(&silent[i], server);
    peer_send_raw(&silent[2], "\1\0", 2); /* a piece of a header */
    peer_attach(&peer, server);
    CHECK_INT(peer_read32(&peer, 0, 0), 0);
    for (int i = 0; i < 3; i++)
        peer_close(&silent[i]);
    CHECK_INT(peer_read32(&peer, 0, 0), 0);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(lobby_full, "oldest-silent-connection-makes-room")
{
    struct device device;
    struct ob_server *server = listening_server(&device);
    struct peer silent[9], peer;

    for (int i = 0; i < 9; i++) {
        peer_connect(&silent[i], server);
        peer_settle(server);
    }
    peer_expect_close(&silent[0]);
    peer_attach(&peer, server);
    peer_expect_close(&silent[1]);
    CHECK(peer_silent(&silent[2]));
    for (int i = 0; i < 9; i++)
        peer_close(&silent[i]);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(second_client, "second-client-is-told-busy")
{
    struct device device;
    struct ob_server *server = listening_server(&device);
    struct peer first, second;

    peer_attach(&first, server);
    peer_connect(&second, server);
    CHECK_INT(peer_negotiate(&second, NULL), -EBUSY);
    peer_expect_close(&second);
    CHECK_INT(peer_read32(&first, 0, 0), 0);
    peer_close(&second);
    peer_close(&first);
    ob_server_free(server);
}

TEST(reconnect, "client-that-reconnects-at-once-gets-in-after-its-last-writes")
{
    struct device device;
    struct ob_server *server = listening_server(&device);
    struct peer peer;

    for (uint32_t round = 1; round <= 50; round++) {
        peer_attach(&peer, server);
        CHECK_INT(device.attached, (int)round);
        CHECK_INT(peer_read32(&peer, 0, 4), round - 1);
        for (unsigned i = 0; i < 100; i++)
            post_write(&peer, 0, i);
        post_write(&peer, 4, round);
        ob_channel_fini(&peer.ch); /* and no step before the next one connects */
    }
    peer_settle(server);
    CHECK_INT(device.left, 50);
    CHECK_INT(device.writes, 50 * 101);
    ob_server_free(server);
}

TEST(waiting_gone, "newcomer-that-leaves-while-it-waits-is-forgotten")
{
    struct device device;
    struct ob_server *server = listening_server(&device);
    uint8_t payload[4] = { 0 };
    struct peer first, second, third;

    peer_attach(&first, server);
    peer_connect(&second, server);
    CHECK(peer_silent(&second)); /* it is in the lobby */
    ob_channel_fini(&first.ch);
    peer_send(&second, OB_CMD_VERSION, 0, payload, 4, NULL, 0);
    ob_channel_fini(&second.ch);
    peer_attach(&third, server);
    CHECK_INT(peer_read32(&third, 0, 0), 0);
    peer_close(&third);
    ob_server_free(server);
}

TEST(two_waiting, "first-of-two-that-wait-gets-in-and-the-other-is-told-busy")
{
    struct device device;
    struct ob_server *server = listening_server(&device);
    uint8_t payload[4] = { 0 };
    struct peer first, second, third;
    struct ob_msg *reply;

    peer_attach(&first, server);
    peer_connect(&second, server);
    CHECK(peer_silent(&second));
    peer_connect(&third, server);
    CHECK(peer_silent(&third));
    ob_channel_fini(&first.ch);
    peer_send(&second, OB_CMD_VERSION, 0, payload, 4, NULL, 0);
    peer_send(&third, OB_CMD_VERSION, 0, payload, 4, NULL, 0);
    reply = peer_receive(&second);
    CHECK_INT(reply->hdr.flags, OB_HDR_REPLY);
    ob_msg_free(reply);
    reply = peer_receive(&third);
    CHECK_INT(reply->hdr.error_no, EBUSY);
    ob_msg_free(reply);
    peer_expect_close(&third);
    CHECK_INT(peer_read32(&second, 0, 0), 0);
    peer_close(&third);
    peer_close(&second);
    ob_server_free(server);
}

TEST(no_fds, "out-of-descriptors-turns-connections-away-without-spinning")
{
    struct device device;
    struct ob_server *server = listening_server(&device);
    int used[64], n = 0, fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct rlimit old, tight;
    struct peer late, peer;

    CHECK_INT(getrlimit(RLIMIT_NOFILE, &old), 0);
    close(fd);
    fd = ob_socket_connect(peer_socket_path(), ob_deadline_ns(1000));
    CHECK(fd >= 0);
    peer_adopt(&late, server, fd);
    tight = old;
    tight.rlim_cur = (rlim_t)fd + 1;
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &tight), 0);
    while (n < 64 && (used[n] = dup(0)) >= 0)
        n++;
    peer_expect_close(&late);
    CHECK(strstr(device.log, "descriptor"));
    while (n > 0)
        close(used[--n]);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &old), 0);
    peer_close(&late);
    peer_attach(&peer, server);
    peer_close(&peer);
    ob_server_free(server);
}

/* ---- The stream --------------------------------------------------------------------------- */

TEST(split, "message-in-single-bytes-is-one-message")
{
    struct device device;
    struct ob_server *server = listening_server(&device);
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
    struct device device;
    struct ob_server *server = listening_server(&device);
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
    struct device device;
    struct ob_server *server = listening_server(&device);
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
    struct device device;
    struct ob_server *server = listening_server(&device);
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
    struct device device;
    struct ob_server *server = listening_server(&device);
    uint8_t payload[64] = { 0 };
    struct peer peer;

    peer_attach(&peer, server);
    for (uint16_t cmd = 0; cmd < 20; cmd++)
        peer_send(&peer, cmd, OB_HDR_NO_REPLY, payload, sizeof(payload), NULL, 0);
    post_write(&peer, 8, 0x1234);
    post_write(&peer, 4096, 1); /* beyond the region */
    CHECK(peer_silent(&peer));
    CHECK_INT(peer_read32(&peer, 0, 8), 0x1234);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(stray_reply, "reply-to-nothing-is-dropped")
{
    struct device device;
    struct ob_server *server = listening_server(&device);
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
    struct device device;
    struct ob_server *server = listening_server(&device);
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
    struct device device;
    struct ob_server *server = listening_server(&device);
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
    struct device device;
    struct ob_server *server = listening_server(&device);
    struct peer peer;

    peer_attach(&peer, server);
    peer_settle(server);
    for (int i = 0; i < 200; i++)
        post_write(&peer, 0, 1);
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
    struct device device;
    struct ob_server *server = new_server(&device);
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
    ob_server_free(server);
}

TEST(adopted_listener, "adopted-listener-takes-clients")
{
    struct device device;
    struct ob_server *server = new_server(&device);
    struct peer peer;
    int pipefd[2];

    CHECK_INT(ob_server_listen_fd(server, ob_socket_listen(peer_socket_path(), 0600, 4)), 0);
    for (int i = 0; i < 3; i++) {
        peer_attach(&peer, server);
        CHECK_INT(peer_read32(&peer, 0, 0), 0);
        peer_close(&peer);
    }
    ob_server_free(server);
    server = new_server(&device);
    CHECK_INT(pipe(pipefd), 0);
    CHECK_INT(ob_server_listen_fd(server, pipefd[0]), -ENOTSOCK);
    close(pipefd[1]);
    ob_server_free(server);
}

TEST(socket_file, "socket-file-is-removed-replaced-and-respected")
{
    struct device device;
    struct ob_server *server = listening_server(&device), *other = new_server(&device);

    CHECK_INT(ob_server_listen(other, peer_socket_path(), 0), -EADDRINUSE);
    ob_server_free(server);
    CHECK(access(peer_socket_path(), F_OK) != 0);
    close(ob_socket_listen(peer_socket_path(), 0600, 1)); /* stale */
    CHECK_INT(ob_server_listen(other, peer_socket_path(), 0), 0);
    unlink(peer_socket_path());
    server = listening_server(&device); /* took the path over: its file must survive */
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
    struct device device;
    struct ob_server *server = listening_server(&device);
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
    struct device device;
    struct ob_server *server = listening_server(&device);
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
