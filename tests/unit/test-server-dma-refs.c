/* SPDX-License-Identifier: BSD-3-Clause */
/* References into the client's memory: it stays as long as the device uses it. */
#include "harness.h"
#include "peer.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RW   (OB_DMA_READ | OB_DMA_WRITE)
#define PAGE 4096u

struct device {
    struct ob_server *server;
    struct ob_dma_ref ref;
    unsigned unmaps;
    int done; /* an eventfd */
    bool put_at_once;
    bool seen_at_leave; /* the mapping was still valid */
};

static void on_unmap(void *opaque, uint64_t address, uint64_t size)
{
    struct device *device = opaque;
    struct ob_dma_ref ref;

    (void)size;
    device->unmaps++;
    CHECK_INT(ob_dma_get(device->server, address, 1, OB_DMA_READ, &ref), -EFAULT);
    if (device->put_at_once && device->ref.map)
        ob_dma_put(device->server, &device->ref);
}

static void on_client(void *opaque, bool attached)
{
    struct device *device = opaque;
    uint8_t byte;

    if (!attached)
        device->seen_at_leave = ob_dma_read(device->server, 0x10000, &byte, 1) == 0;
}

static struct ob_server *new_server(struct device *device)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops),
                                              .client = on_client,
                                              .dma_unmap = on_unmap };

    *device = (struct device){ 0 };
    device->server = peer_server_new(&ops, device);
    return device->server;
}

TEST(pinned, "unmap-is-answered-when-the-last-user-let-go")
{
    struct ob_wire_dma_unmap unmap = { sizeof(unmap), 0, 0x10000, PAGE };
    struct device device;
    struct ob_server *server = new_server(&device);
    struct ob_dma_ref second;
    int fd = peer_memfd(PAGE);
    struct ob_msg *reply;
    struct peer peer;

    peer_attach(&peer, server);
    CHECK_INT(peer_map(&peer, 0x10000, PAGE, RW, fd, 0), 0);
    CHECK_INT(ob_dma_get(server, 0x10000, PAGE, RW, &device.ref), 0);
    CHECK_INT(ob_dma_get(server, 0x10008, 8, RW, &second), 0);
    peer_send(&peer, OB_CMD_DMA_UNMAP, 0, &unmap, sizeof(unmap), NULL, 0);
    peer_send(&peer, OB_CMD_DEVICE_RESET, 0, NULL, 0, NULL, 0); /* waits its turn */
    CHECK(peer_silent(&peer));
    CHECK_INT(device.unmaps, 1);
    memset(device.ref.ptr, 1, PAGE);
    ob_dma_put(server, &device.ref);
    CHECK(peer_silent(&peer));
    memset(second.ptr, 2, 8);
    ob_dma_put(server, &second);
    reply = peer_receive(&peer);
    CHECK_INT(reply->hdr.cmd, OB_CMD_DMA_UNMAP);
    CHECK_INT(reply->hdr.flags, OB_HDR_REPLY);
    CHECK_MEM(reply->payload, &unmap, sizeof(unmap));
    ob_msg_free(reply);
    reply = peer_receive(&peer);
    CHECK_INT(reply->hdr.cmd, OB_CMD_DEVICE_RESET);
    ob_msg_free(reply);
    peer_close(&peer);
    close(fd);
    ob_server_free(server);
}

TEST(put_in_callback, "user-that-lets-go-in-the-callback-delays-nothing")
{
    struct device device;
    struct ob_server *server = new_server(&device);
    int fd = peer_memfd(PAGE);
    struct peer peer;

    peer_attach(&peer, server);
    device.put_at_once = true;
    for (int i = 0; i < 3; i++) {
        CHECK_INT(peer_map(&peer, 0x10000, PAGE, RW, fd, 0), 0);
        CHECK_INT(ob_dma_get(server, 0x10000, PAGE, RW, &device.ref), 0);
        CHECK_INT(peer_unmap(&peer, i ? 0x10000 : 0, i ? PAGE : 0, i ? 0 : OB_DMA_UNMAP_ALL), 0);
    }
    peer_close(&peer);
    close(fd);
    ob_server_free(server);
}

TEST(leaves_pinned, "memory-in-use-outlives-the-client")
{
    struct ob_wire_dma_unmap unmap = { sizeof(unmap), 0, 0x20000, PAGE };
    struct device device;
    struct ob_server *server = new_server(&device);
    struct ob_dma_ref waiting;
    int fd = peer_memfd(2 * PAGE);
    struct peer peer, next;

    peer_attach(&peer, server);
    CHECK_INT(peer_map(&peer, 0x10000, PAGE, RW, fd, 0), 0);
    CHECK_INT(peer_map(&peer, 0x20000, PAGE, RW, fd, PAGE), 0);
    CHECK_INT(ob_dma_get(server, 0x10000, PAGE, RW, &device.ref), 0);
    CHECK_INT(ob_dma_get(server, 0x20000, PAGE, RW, &waiting), 0);
    peer_send(&peer, OB_CMD_DMA_UNMAP, 0, &unmap, sizeof(unmap), NULL, 0);
    CHECK(peer_silent(&peer));
    ob_channel_fini(&peer.ch);
    peer_attach(&next, server);
    CHECK(device.seen_at_leave);
    memset(device.ref.ptr, 5, PAGE);
    memset(waiting.ptr, 6, PAGE);
    CHECK_INT(peer_map(&next, 0x10000, PAGE, RW, fd, 0), 0);
    ob_dma_put(server, &waiting);
    ob_dma_put(server, &device.ref);
    CHECK(peer_silent(&next)); /* nobody's answer came to the wrong client */
    CHECK_INT(peer_unmap(&next, 0x10000, PAGE, 0), 0);
    peer_close(&next);
    close(fd);
    ob_server_free(server);
}

/* A device whose work is done by somebody else, who reports it by an eventfd. */
static void on_done(void *opaque, uint32_t events)
{
    struct device *device = opaque;

    (void)events;
    ob_dma_put(device->server, &device->ref);
    CHECK_INT(ob_server_watch(device->server, device->done, 0, NULL, NULL), 0);
}

TEST(put_in_watch, "unmap-is-answered-from-a-completion")
{
    struct device device;
    struct ob_server *server = new_server(&device);
    int fd = peer_memfd(PAGE), done = eventfd(1, EFD_CLOEXEC);
    struct ob_wire_dma_unmap unmap = { sizeof(unmap), 0, 0x10000, PAGE };
    struct ob_msg *reply;
    struct peer peer;

    peer_attach(&peer, server);
    CHECK_INT(peer_map(&peer, 0x10000, PAGE, RW, fd, 0), 0);
    CHECK_INT(ob_dma_get(server, 0x10000, PAGE, RW, &device.ref), 0);
    peer_send(&peer, OB_CMD_DMA_UNMAP, 0, &unmap, sizeof(unmap), NULL, 0);
    CHECK(peer_silent(&peer));
    device.done = done;
    CHECK_INT(ob_server_watch(server, done, EPOLLIN, on_done, &device), 0);
    reply = peer_receive(&peer);
    CHECK_INT(reply->hdr.cmd, OB_CMD_DMA_UNMAP);
    ob_msg_free(reply);
    peer_close(&peer);
    close(fd);
    close(done);
    ob_server_free(server);
}
