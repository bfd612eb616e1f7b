/* SPDX-License-Identifier: BSD-3-Clause */
/* Connections: who becomes the client, who is refused, who waits. */
#include "harness.h"
#include "peer.h"

#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- Negotiation -------------------------------------------------------------------------- */

TEST(version_reply, "version-is-answered-within-what-qemu-takes")
{
    static const char qemu[] =
        "{\"capabilities\": {\"migration\": {\"max_bitmap_size\": 268435456, \"pgsize\": 4096}, "
        "\"max_msg_fds\": 16, \"max_data_xfer_size\": 1048576, \"max_dma_maps\": 65535, "
        "\"pgsizes\": 4096, \"write_multiple\": true}}";
    uint8_t payload[4 + sizeof(qemu)] = { 0, 0, 7, 0 }; /* version 0.7 */
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
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
    CHECK_INT(version.minor, 0);                                     /* */
    CHECK(reply->len - 4 <= OB_VERSION_JSON_QEMU);                   /* */
    CHECK(strstr((char *)reply->payload + 4, "\"capabilities\":{")); /* */
    CHECK_INT(ob_caps_parse(reply->payload + 4, reply->len - 4, true, &caps, &why), 0);
    /* no more than it takes, and not left out. Q-14: no page size of 0. */
    CHECK_INT(caps.max_msg_fds, 16);
    CHECK_INT(caps.max_data_xfer_size, 1048576);
    CHECK(caps.max_dma_maps <= 65535);
    CHECK_INT(caps.pgsizes, 4096);
    /* it says `migration`, but this device has none. */
    CHECK(caps.write_multiple && !caps.migration && !caps.twin_socket);
    ob_msg_free(reply);
    CHECK_INT(device.attached, 1);
    CHECK(ob_server_attached(server));
    peer_close(&peer);
    CHECK_INT(device.left, 1);
    CHECK(!ob_server_attached(server));
    ob_server_free(server);
}

TEST(version_all, "what-came-with-the-answer-to-version-is-said-there")
{
    static const char all[] = "{\"capabilities\":{\"max_msg_fds\":16,\"write_multiple\":true,"
                              "\"twin_socket\":{\"supported\":true},"
                              "\"access_ring\":{\"supported\":true}}}";
    uint8_t payload[4 + sizeof(all)] = { 0 };
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct ob_caps caps;
    const char *why;
    struct ob_msg *reply;
    struct peer peer;

    CHECK_INT(ob_server_set_dma_limits(server, 10000, UINT64_MAX), 0); /* which is said, too */
    memcpy(payload + 4, all, sizeof(all));
    peer_connect(&peer, server);
    CHECK_INT(peer_call(&peer, OB_CMD_VERSION, payload, sizeof(payload), &reply), 0);
    CHECK_INT(reply->nfds, 2);
    CHECK_INT(ob_caps_parse(reply->payload + 4, reply->len - 4, true, &caps, &why), 0);
    CHECK(caps.twin_socket && caps.ring && caps.twin_fd_index + caps.ring_fd_index == 1);
    ob_msg_free(reply);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(version_bare, "version-without-json-is-answered-without")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
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

/* What filled the socket was sent by who handed it over. */
TEST(version_jammed, "version-is-answered-later-where-the-socket-is-full")
{
    const struct ob_wire_version version = { 0 };
    struct memory_device device;
    struct ob_server *server = memory_device_server(&device);
    struct ob_msg *reply;
    struct peer peer;
    char bytes[4096] = { 0 };
    int fds[2];

    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    while (send(fds[0], bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
        ;
    CHECK_INT(ob_server_listen_fd(server, fds[0]), 0);
    peer_adopt(&peer, server, fds[1]);
    peer_send(&peer, OB_CMD_VERSION, OB_HDR_COMMAND, &version, sizeof(version), NULL, 0);
    peer_settle(server);
    CHECK(ob_server_attached(server));
    while (recv(fds[1], bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
        ;
    reply = peer_receive(&peer);
    CHECK_INT(reply->hdr.cmd, OB_CMD_VERSION);
    ob_msg_free(reply);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(version_fd, "version-with-fds-is-answered-and-they-are-closed")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    uint8_t payload[4] = { 0 };
    int fds[2] = { 0, 1 };
    struct peer peer;

    peer_connect(&peer, server);
    CHECK_INT(peer_call_fds(&peer, OB_CMD_VERSION, payload, 4, fds, 2, NULL), 0);
    CHECK(ob_server_attached(server));
    peer_close(&peer);
    ob_server_free(server);
}

static void expect_refused(struct ob_server *server, struct memory_device *device, uint16_t cmd,
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
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct ob_wire_device_info info = { sizeof(info), 0, 0, 0 };

    expect_refused(server, &device, OB_CMD_VERSION, "\1\0\0\0", 4);
    expect_refused(server, &device, OB_CMD_VERSION, "\0\0\0\0{\"capabilities\":[]}", 24);
    expect_refused(server, &device, OB_CMD_VERSION, "\0\0\0\0{\"capab", 12);
    expect_refused(server, &device, OB_CMD_VERSION, "\0\0\0\0{}", 6); /* no NUL */
    expect_refused(server, &device, OB_CMD_VERSION,
                   "\0\0\0\0{\"capabilities\":{\"max_data_xfer_size\":0}}", 45);
    expect_refused(server, &device, OB_CMD_VERSION, "\0\0", 2);
    expect_refused(server, &device, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info));
    CHECK_INT(device.attached, 0);
    ob_server_free(server);
}

TEST(version_twice, "second-version-is-refused-and-the-client-stays")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
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
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
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
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
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

/* ---- Who may connect ---------------------------------------------------------------------- */

TEST(allowed_uid, "only-allowed-users-are-taken")
{
    struct memory_device device;
    struct ob_server *server = memory_device_server(&device);
    char line[100];
    struct peer peer;
    int fds[2];

    CHECK_INT(ob_server_allow_uid(server, geteuid() + 1), 0);
    CHECK_INT(ob_server_listen(server, peer_socket_path(), 0), 0);
    peer_connect(&peer, server);
    peer_expect_close(&peer);
    snprintf(line, sizeof(line), "process %d refused: its user %u is not allowed", getpid(),
             geteuid());
    CHECK_STR(device.log, line);
    peer_close(&peer);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    CHECK_INT(ob_server_allow_uid(server, geteuid()), 0);
    peer_attach(&peer, server);
    CHECK_INT(device.attached, 1);
    peer_close(&peer);
    ob_server_free(server);

    server = memory_device_server(&device);
    CHECK_INT(ob_server_allow_uid(server, geteuid() + 1), 0);
    CHECK_INT(ob_server_listen_fd(server, fds[0]), -EACCES);
    close(fds[1]);
    for (unsigned i = 1; i < 16; i++)
        CHECK_INT(ob_server_allow_uid(server, i), 0);
    CHECK_INT(ob_server_allow_uid(server, 16), -ENOSPC);
    ob_server_free(server);
}

static unsigned lines, left_out;

static void count_lines(void *opaque, enum ob_log_level level, const char *line)
{
    static const char rest[] = " more lines like these were left out";
    char *end;
    unsigned long n = strtoul(line, &end, 10);

    (void)opaque, (void)level;
    lines++;
    if (strcmp(end, rest) == 0)
        left_out += (unsigned)n;
}

static void connect_in_vain(struct peer *peer, struct ob_server *server)
{
    peer_connect(peer, server);
    peer_expect_close(peer);
}

/* Whoever comes and goes like that makes so many lines each time. */
static void flood(uid_t allowed, void (*come)(struct peer *, struct ob_server *), unsigned each)
{
    const struct ob_server_ops ops = { .size = sizeof(ops), .log = count_lines };
    struct ob_server *server = ob_server_new(&ops, NULL);
    int64_t start_ms = test_now_ms();
    unsigned came = 0;
    struct peer peer;

    CHECK(server);
    CHECK_INT(ob_server_allow_uid(server, allowed), 0);
    CHECK_INT(ob_server_listen(server, peer_socket_path(), 0), 0);
    while (left_out == 0 && test_now_ms() - start_ms < 20000) {
        come(&peer, server);
        peer_close(&peer);
        peer_settle(server);
        came++;
    }
    CHECK(left_out > 0);
    CHECK(lines <= (unsigned)((test_now_ms() - start_ms) / 1000 + 1) * 9 + 1);
    CHECK_INT(lines - 1 + left_out, came * each); /* a line for each, or counted */
    ob_server_free(server);
}

TEST(few_lines, "who-is-refused-again-and-again-does-not-fill-the-log")
{
    flood(geteuid() + 1, connect_in_vain, 1);
}

TEST(few_comings, "who-comes-and-goes-again-and-again-does-not-fill-the-log")
{
    flood(geteuid(), peer_attach, 2);
}

TEST(second_client, "second-client-is-told-busy")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
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
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct peer peer;

    for (uint32_t round = 1; round <= 50; round++) {
        peer_attach(&peer, server);
        CHECK_INT(device.attached, (int)round);
        CHECK_INT(peer_read32(&peer, 0, 4), round - 1);
        for (unsigned i = 0; i < 100; i++)
            peer_post32(&peer, 0, i);
        peer_post32(&peer, 4, round);
        ob_channel_fini(&peer.ch); /* and no step before the next one connects */
    }
    peer_settle(server);
    CHECK_INT(device.left, 50);
    CHECK_INT(device.writes, 50 * 101);
    ob_server_free(server);
}

TEST(waiting_gone, "newcomer-that-leaves-while-it-waits-is-forgotten")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
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
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
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
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
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

/* ---- The loop ----------------------------------------------------------------------------- */

static int run_within(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct ob_server **server = opaque;
    int rc = ob_server_run(*server);

    (void)offset, (void)is_write;
    memcpy(data, &rc, count);
    return 0;
}

TEST(run_within_callback, "a-loop-inside-a-callback-is-refused")
{
    static const struct ob_server_ops ops = { .size = sizeof(ops) };
    struct ob_wire_region_access access = { 0, 0, 4 };
    struct ob_server *server;
    struct ob_region region = {
        .size = 4, .flags = OB_REGION_READ, .access = run_within, .opaque = &server
    };
    struct ob_msg *reply;
    struct peer peer;
    uint16_t id;
    int rc;

    server = peer_server_new(&ops, NULL);
    ob_server_set_spin(server, OB_SPIN_US_MAX);
    CHECK_INT(ob_server_set_region(server, 0, &region), 0);
    peer_attach(&peer, server);
    id = peer_send(&peer, OB_CMD_REGION_READ, 0, &access, sizeof(access), NULL, 0);
    reply = peer_receive(&peer);
    CHECK_INT(reply->hdr.msg_id, id);
    memcpy(&rc, reply->payload + sizeof(access), sizeof(rc));
    CHECK_INT(rc, -EBUSY);
    ob_msg_free(reply);
    peer_close(&peer);
    ob_server_free(server);
}

static struct {
    struct ob_server *server;
    int event;
    unsigned accesses;
} slow;

/* Takes its time, but less than the server polls for. */
static int slow_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    (void)opaque, (void)offset, (void)data, (void)count, (void)is_write;
    if (++slow.accesses == 5)
        CHECK_INT(eventfd_write(slow.event, 1), 0);
    usleep(4000);
    return 0;
}

static void slow_event(void *opaque, uint32_t events)
{
    (void)opaque, (void)events;
    ob_server_stop(slow.server);
}

/* The count of such commands, of which one accesses the region so many times. */
static void row_of(uint16_t cmd, uint32_t flags, const void *payload, size_t len, int count,
                   unsigned each)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops) };
    struct ob_region region = { .size = 4,
                                .flags = OB_REGION_READ | OB_REGION_WRITE,
                                .access = slow_access };
    struct peer peer;

    slow.server = peer_server_new(&ops, NULL);
    slow.event = eventfd(0, EFD_CLOEXEC);
    ob_server_set_spin(slow.server, OB_SPIN_US_MAX);
    CHECK_INT(ob_server_set_region(slow.server, 0, &region), 0);
    CHECK_INT(ob_server_watch(slow.server, slow.event, EPOLLIN, slow_event, NULL), 0);
    peer_attach(&peer, slow.server);
    for (int i = 0; i < count; i++)
        peer_send(&peer, cmd, flags, payload, len, NULL, 0);
    CHECK_INT(ob_channel_flush(&peer.ch), 1);
    CHECK_INT(ob_server_run(slow.server), 0);
    CHECK(slow.accesses >= 5 && slow.accesses <= 5 + 5 * each);
    ob_server_watch(slow.server, slow.event, 0, NULL, NULL);
    close(slow.event);
    peer_close(&peer);
    ob_server_free(slow.server);
}

TEST(others_wait, "other-events-do-not-wait-for-a-row-of-slow-requests")
{
    struct ob_wire_region_access access = { 0, 0, 4 };

    row_of(OB_CMD_REGION_READ, 0, &access, sizeof(access), 100, 1);
}

TEST(others_wait_posted, "other-events-do-not-wait-for-a-row-of-slow-posted-writes")
{
    struct {
        struct ob_wire_write_multi head;
        struct ob_wire_write_multi_entry writes[5];
    } message = { .head = { .count = 5 } };

    for (unsigned i = 0; i < 5; i++)
        message.writes[i].count = 4;
    row_of(OB_CMD_REGION_WRITE_MULTI, OB_HDR_NO_REPLY, &message, sizeof(message), 50, 5);
}
