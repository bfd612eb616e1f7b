/* SPDX-License-Identifier: BSD-3-Clause */
#include "peer.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"

#define PATIENCE_MS 10000

static bool readable(int fd, int timeout_ms)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };

    return poll(&p, 1, timeout_ms) == 1;
}

void peer_settle(struct ob_server *server)
{
    while (readable(ob_server_fd(server), 0) && ob_server_step(server) == 0)
        ;
}

const char *peer_socket_path(void)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/socket", test_tmpdir());
    return path;
}

struct ob_server *peer_server_new(const struct ob_server_ops *ops, void *opaque)
{
    struct ob_server *server = ob_server_new(ops, opaque);

    CHECK(server);
    CHECK_INT(ob_server_listen(server, peer_socket_path(), 0), 0);
    return server;
}

void peer_adopt(struct peer *peer, struct ob_server *server, int fd)
{
    memset(peer, 0, sizeof(*peer));
    peer->server = server;
    peer->next_id = 0x100;
    CHECK_INT(ob_channel_init(&peer->ch, fd, OB_PAYLOAD_MAX), 0);
}

void peer_connect(struct peer *peer, struct ob_server *server)
{
    int fd = ob_socket_connect(peer_socket_path(), ob_deadline_ns(PATIENCE_MS));

    CHECK(fd >= 0);
    peer_adopt(peer, server, fd);
}

int peer_negotiate(struct peer *peer, const char *json)
{
    uint8_t payload[512] = { 0 }; /* version 0.0 */
    size_t len = sizeof(struct ob_wire_version);

    if (json) {
        CHECK(strlen(json) < sizeof(payload) - len);
        memcpy(payload + len, json, strlen(json) + 1);
        len += strlen(json) + 1;
    }
    return peer_call(peer, OB_CMD_VERSION, payload, len, NULL);
}

void peer_attach(struct peer *peer, struct ob_server *server)
{
    peer_connect(peer, server);
    CHECK_INT(peer_negotiate(peer, "{\"capabilities\":{\"max_msg_fds\":16}}"), 0);
}

int peer_attach_ring(struct peer *peer, struct ob_server *server, const char *json)
{
    uint8_t payload[256] = { 0 };
    size_t len = 4 + strlen(json) + 1;
    struct ob_caps caps;
    struct ob_msg *reply;
    const char *why;
    int fd;

    CHECK(len <= sizeof(payload));
    memcpy(payload + 4, json, len - 4);
    peer_connect(peer, server);
    CHECK_INT(peer_call(peer, OB_CMD_VERSION, payload, len, &reply), 0);
    CHECK_INT(ob_caps_parse(reply->payload + 4, reply->len - 4, true, &caps, &why), 0);
    CHECK_INT(reply->nfds, caps.twin_socket + caps.ring);
    CHECK(reply->nfds <= ob_msg_type(OB_CMD_VERSION)->reply.fds_max);
    CHECK_INT(caps.ring_fd_index >= 0, caps.ring);
    fd = caps.ring ? ob_msg_claim_fd(reply, (unsigned)caps.ring_fd_index) : -1;
    CHECK_INT(fd >= 0, caps.ring);
    ob_msg_free(reply);
    return fd;
}

void peer_close(struct peer *peer)
{
    ob_channel_fini(&peer->ch);
    if (peer->server)
        peer_settle(peer->server);
}

uint16_t peer_send(struct peer *peer, uint16_t cmd, uint32_t flags, const void *payload, size_t len,
                   const int *fds, unsigned nfds)
{
    struct ob_wire_hdr hdr = { .msg_id = peer->next_id++, .cmd = cmd, .flags = flags };
    struct iovec iov = { (void *)payload, len };

    CHECK_INT(ob_channel_queue(&peer->ch, &hdr, &iov, len ? 1 : 0, fds, nfds), 0);
    return hdr.msg_id;
}

void peer_send_raw(struct peer *peer, const void *data, size_t len)
{
    CHECK_INT(send(peer->ch.fd, data, len, MSG_NOSIGNAL), (ssize_t)len);
}

/* As ob_channel_recv(), but waits; the server goes on meanwhile. */
static int receive(struct peer *peer, struct ob_msg **out)
{
    int64_t end = test_now_ms() + PATIENCE_MS;

    while (test_now_ms() < end) {
        int rc;

        if (peer->ch.out_head)
            ob_channel_flush(&peer->ch);
        rc = ob_channel_recv(&peer->ch, out);
        if (rc != 0)
            return rc;
        if (peer->server) {
            struct pollfd p[2] = { { peer->ch.fd, POLLIN, 0 },
                                   { ob_server_fd(peer->server), POLLIN, 0 } };

            poll(p, 2, 10);
            ob_server_step(peer->server);
        } else {
            readable(peer->ch.fd, 10);
        }
    }
    return 0;
}

struct ob_msg *peer_receive(struct peer *peer)
{
    struct ob_msg *msg = NULL;
    int rc = receive(peer, &msg);

    if (rc <= 0)
        test_fail(__FILE__, __LINE__, "no message: %s", rc ? strerror(-rc) : "none came");
    return msg;
}

bool peer_silent(struct peer *peer)
{
    struct ob_msg *msg;

    while (peer->ch.out_head && ob_channel_flush(&peer->ch) == 0)
        peer_settle(peer->server);
    peer_settle(peer->server);
    return ob_channel_recv(&peer->ch, &msg) == 0;
}

void peer_expect_close(struct peer *peer)
{
    struct ob_msg *msg;
    int rc;

    while ((rc = receive(peer, &msg)) > 0)
        ob_msg_free(msg);
    CHECK_INT(rc, -ECONNRESET);
}

int peer_call_fds(struct peer *peer, uint16_t cmd, const void *payload, size_t len, const int *fds,
                  unsigned nfds, struct ob_msg **reply)
{
    uint16_t id = peer_send(peer, cmd, OB_HDR_COMMAND, payload, len, fds, nfds);
    struct ob_msg *msg = peer_receive(peer);
    int rc = 0;

    CHECK_INT(msg->hdr.msg_id, id);
    CHECK_INT(msg->hdr.cmd, cmd);
    CHECK_INT(msg->hdr.flags & OB_HDR_TYPE_MASK, OB_HDR_REPLY);
    if (msg->hdr.flags & OB_HDR_ERROR) {
        CHECK_INT(msg->len, 0);
        CHECK(msg->hdr.error_no > 0);
        rc = -(int)msg->hdr.error_no;
    }
    if (reply && rc == 0)
        *reply = msg;
    else
        ob_msg_free(msg);
    return rc;
}

int peer_call(struct peer *peer, uint16_t cmd, const void *payload, size_t len,
              struct ob_msg **reply)
{
    return peer_call_fds(peer, cmd, payload, len, NULL, 0, reply);
}

int peer_read(struct peer *peer, uint32_t region, uint64_t offset, void *data, uint32_t count)
{
    struct ob_wire_region_access access = { offset, region, count };
    struct ob_msg *reply;
    int rc = peer_call(peer, OB_CMD_REGION_READ, &access, sizeof(access), &reply);

    if (rc != 0)
        return rc;
    CHECK_INT(reply->len, sizeof(access) + count);
    CHECK_MEM(reply->payload, &access, sizeof(access));
    memcpy(data, reply->payload + sizeof(access), count);
    ob_msg_free(reply);
    return 0;
}

int peer_write(struct peer *peer, uint32_t region, uint64_t offset, const void *data,
               uint32_t count)
{
    struct ob_wire_region_access access = { offset, region, count };
    uint8_t *payload = malloc(sizeof(access) + count);
    struct ob_msg *reply;
    int rc;

    CHECK(payload);
    memcpy(payload, &access, sizeof(access));
    memcpy(payload + sizeof(access), data, count);
    rc = peer_call(peer, OB_CMD_REGION_WRITE, payload, sizeof(access) + count, &reply);
    free(payload);
    if (rc != 0)
        return rc;
    CHECK_INT(reply->len, sizeof(access));
    CHECK_MEM(reply->payload, &access, sizeof(access));
    ob_msg_free(reply);
    return 0;
}

uint32_t peer_read32(struct peer *peer, uint32_t region, uint64_t offset)
{
    uint32_t value;

    CHECK_INT(peer_read(peer, region, offset, &value, sizeof(value)), 0);
    return value;
}

void peer_write32(struct peer *peer, uint32_t region, uint64_t offset, uint32_t value)
{
    CHECK_INT(peer_write(peer, region, offset, &value, sizeof(value)), 0);
}

int peer_map(struct peer *peer, uint64_t address, uint64_t size, uint32_t flags, int fd,
             uint64_t offset)
{
    struct ob_wire_dma_map map = { sizeof(map), flags, offset, address, size };

    return peer_call_fds(peer, OB_CMD_DMA_MAP, &map, sizeof(map), &fd, fd >= 0, NULL);
}

int peer_unmap(struct peer *peer, uint64_t address, uint64_t size, uint32_t flags)
{
    struct ob_wire_dma_unmap unmap = { sizeof(unmap), flags, address, size };
    struct ob_msg *reply;
    int rc = peer_call(peer, OB_CMD_DMA_UNMAP, &unmap, sizeof(unmap), &reply);

    if (rc != 0)
        return rc;
    CHECK_INT(reply->len, sizeof(unmap));
    CHECK_MEM(reply->payload, &unmap, sizeof(unmap));
    ob_msg_free(reply);
    return 0;
}

int peer_set_irqs(struct peer *peer, uint32_t index, uint32_t flags, uint32_t start, uint32_t count,
                  const uint8_t *bools, const int *fds, unsigned nfds)
{
    struct ob_wire_set_irqs *set;
    size_t len = sizeof(*set) + (bools ? count : 0);
    int rc;

    set = malloc(len);
    CHECK(set);
    *set = (struct ob_wire_set_irqs){ (uint32_t)len, flags, index, start, count };
    if (bools)
        memcpy(set + 1, bools, count);
    rc = peer_call_fds(peer, OB_CMD_DEVICE_SET_IRQS, set, len, fds, nfds, NULL);
    free(set);
    return rc;
}

void peer_post32(struct peer *peer, uint64_t offset, uint32_t value)
{
    struct {
        struct ob_wire_region_access access;
        uint32_t value;
    } message = { { offset, 0, sizeof(value) }, value };

    peer_send(peer, OB_CMD_REGION_WRITE, OB_HDR_NO_REPLY, &message, 20, NULL, 0);
}

static void on_client(void *opaque, bool attached)
{
    struct memory_device *device = opaque;

    *(attached ? &device->attached : &device->left) += 1;
}

static void on_log(void *opaque, enum ob_log_level level, const char *line)
{
    struct memory_device *device = opaque;

    if (level != OB_LOG_DEBUG)
        snprintf(device->log, sizeof(device->log), "%s", line);
}

static int on_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct memory_device *device = opaque;

    if (is_write)
        memcpy(device->memory + offset, data, count);
    else
        memcpy(data, device->memory + offset, count);
    device->writes += is_write;
    return 0;
}

struct ob_server *memory_device_server(struct memory_device *device)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops),
                                              .client = on_client,
                                              .log = on_log };
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

struct ob_server *memory_device_listen(struct memory_device *device)
{
    struct ob_server *server = memory_device_server(device);

    CHECK_INT(ob_server_listen(server, peer_socket_path(), 0), 0);
    return server;
}

int peer_memfd(uint64_t size)
{
    int fd = memfd_create("test", MFD_CLOEXEC);

    CHECK(fd >= 0);
    CHECK_INT(ftruncate(fd, (off_t)size), 0);
    return fd;
}

uint64_t peer_eventfd_take(int fd)
{
    uint64_t count = 0;

    return read(fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}
