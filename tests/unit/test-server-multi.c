/* SPDX-License-Identifier: BSD-3-Clause */
/* REGION_WRITE_MULTI. */
#include "harness.h"
#include "peer.h"

#include <errno.h>

#define BOTH "{\"capabilities\":{\"write_multiple\":true}}"

struct message {
    struct ob_wire_write_multi head;
    struct ob_wire_write_multi_entry entries[8];
};

static struct ob_wire_write_multi_entry entry(uint32_t region, uint64_t offset, uint32_t count,
                                              const char *data)
{
    struct ob_wire_write_multi_entry e = { offset, region, count, { 0 } };

    memcpy(e.data, data, strlen(data));
    return e;
}

static size_t length(const struct message *m)
{
    return sizeof(m->head) + m->head.count * sizeof(m->entries[0]);
}

/* How many entries the server says it did, or the error. */
static int64_t call(struct peer *peer, const struct message *m)
{
    struct ob_wire_write_multi done;
    struct ob_msg *reply;
    int rc = peer_call(peer, OB_CMD_REGION_WRITE_MULTI, m, length(m), &reply);

    if (rc < 0)
        return rc;
    CHECK_INT(reply->len, sizeof(done));
    memcpy(&done, reply->payload, sizeof(done));
    ob_msg_free(reply);
    return (int64_t)done.count;
}

static void attach(struct peer *peer, struct ob_server *server, const char *json)
{
    peer_connect(peer, server);
    CHECK_INT(peer_negotiate(peer, json), 0);
}

TEST(ordered, "entries-are-executed-in-order")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct message m = { { 4 },
                         { entry(0, 0, 8, "abcdefgh"), entry(0, 2, 1, "X......."),
                           entry(0, 4, 0, ""), entry(0, 1, 4, "12345678") } };
    struct peer peer;

    attach(&peer, server, BOTH);
    CHECK_INT(call(&peer, &m), 4);
    CHECK_MEM(device.memory, "a1234fgh", 8);
    m.head.count = 0;
    CHECK_INT(call(&peer, &m), 0);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(failing, "a-client-that-waits-is-told-how-many-came-before-the-failure")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct message m = { { 3 },
                         { entry(0, 0, 1, "a"), entry(0, 4096, 1, "b"), entry(0, 2, 1, "c") } };
    struct peer peer;

    attach(&peer, server, BOTH);
    CHECK_INT(call(&peer, &m), 1);
    CHECK_MEM(device.memory, "a\0\0", 3);
    m.entries[0].region = 9;
    CHECK_INT(call(&peer, &m), -EINVAL);
    m.entries[0] = entry(0, 0, 1, "z");
    m.entries[2].count = 9; /* malformed: nothing of it is executed */
    CHECK_INT(call(&peer, &m), -EINVAL);
    CHECK_MEM(device.memory, "a\0\0", 3);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(posted, "a-posted-entry-that-fails-takes-no-other-with-it")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct message m = { { 3 },
                         { entry(0, 0, 1, "a"), entry(0, 4096, 1, "b"), entry(0, 2, 1, "c") } };
    struct peer peer;

    attach(&peer, server, BOTH);
    peer_send(&peer, OB_CMD_REGION_WRITE_MULTI, OB_HDR_NO_REPLY, &m, length(&m), NULL, 0);
    CHECK(peer_silent(&peer));
    CHECK_MEM(device.memory, "a\0c", 3);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(not_negotiated, "without-negotiation-only-posted-ones-are-executed")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct message m = { { 1 }, { entry(0, 0, 1, "a") } };
    struct peer peer;

    attach(&peer, server, "{\"capabilities\":{}}");
    CHECK_INT(call(&peer, &m), -EINVAL);
    CHECK_INT(device.writes, 0);
    /* QEMU 10.1 and 10.2 with x-send-queued=on */
    peer_send(&peer, OB_CMD_REGION_WRITE_MULTI, OB_HDR_NO_REPLY, &m, length(&m), NULL, 0);
    CHECK(peer_silent(&peer));
    CHECK_INT(device.writes, 1);
    peer_close(&peer);
    ob_server_free(server);
}
