/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Clients that send anything: well-formed requests with random contents, random bytes, random fds,
 * and that leave at any moment, against a device that uses what they give it. Whatever they do the
 * server must go on, and take the next client that behaves.
 */
#include "harness.h"
#include "peer.h"

#include "outboard/pci.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAGE 4096u

static uint64_t state;

static uint32_t rnd(uint32_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

/* Mostly small, sometimes at the edges of the type. */
static uint64_t number(void)
{
    static const uint64_t edges[] = { 0, 1, PAGE, UINT32_MAX, INT64_MAX, UINT64_MAX };

    return rnd(4) ? rnd(9) * PAGE >> rnd(13) : edges[rnd(6)] - rnd(2);
}

struct device {
    struct ob_server *server;
    struct ob_dma_ref refs[8];
};

static void put(struct device *device, unsigned i)
{
    if (device->refs[i].map)
        ob_dma_put(device->server, &device->refs[i]);
}

static int on_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct device *device = opaque;
    unsigned i = rnd(8);
    uint8_t buffer[64];

    if (!is_write)
        memset(data, 1, count);
    put(device, i);
    if (ob_dma_get(device->server, number(), rnd(64), 1 + rnd(3), &device->refs[i]) == 0 && rnd(2))
        put(device, i);
    ob_dma_read(device->server, number(), buffer, rnd(64));
    ob_dma_write(device->server, number(), buffer, rnd(64));
    ob_server_irq_trigger(device->server, rnd(6), rnd(9));
    ob_pci_notify(device->server, rnd(9));
    ob_server_intx(device->server, offset & 1);
    return -(int)rnd(3);
}

static int on_reset(void *opaque)
{
    struct device *device = opaque;

    for (unsigned i = 0; i < 8; i++)
        put(device, i);
    return 0;
}

static void on_bell(void *opaque)
{
    on_reset(opaque);
}

static void on_unmap(void *opaque, uint64_t address, uint64_t size)
{
    (void)address, (void)size;
    if (rnd(2))
        on_reset(opaque);
}

static void build(struct device *device, int fd)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops),
                                              .reset = on_reset,
                                              .dma_unmap = on_unmap };
    static const struct ob_pci_id id = { 1, 2, 3, 4, 5, 6 };
    struct ob_region registers = { .size = 2 * PAGE,
                                   .flags = OB_REGION_READ | OB_REGION_WRITE,
                                   .access = on_access,
                                   .opaque = device };
    struct ob_region memory = { .size = 4 * PAGE,
                                .flags = OB_REGION_READ | OB_REGION_WRITE | OB_REGION_MMAP,
                                .fd = fd };
    struct ob_server *server = peer_server_new(&ops, device);

    device->server = server;
    CHECK_INT(ob_pci_init(server, &id, true, true), 0);
    CHECK_INT(ob_server_set_region(server, 0, &registers), 0);
    CHECK_INT(ob_server_set_region(server, 1, &memory), 0);
    CHECK(ob_pci_add_pm(server) > 0 && ob_pci_add_pcie(server) > 0 &&
          ob_pci_add_msi(server, 8) > 0 &&
          ob_pci_add_msix(server, 8, 0, PAGE, 0, 2 * PAGE - 8) > 0);
    CHECK_INT(
        ob_server_add_ioeventfd(server, 0, &(struct ob_ioeventfd){ 8, 4, 0, 0 }, on_bell, device),
        0);
    ob_server_set_timeout(server, 0); /* nobody answers a DMA message in time */
}

static size_t fill_multi(uint8_t *payload)
{
    struct ob_wire_write_multi head = { rnd(9) };

    memcpy(payload, &head, sizeof(head));
    for (uint64_t i = 0; i < head.count; i++) {
        struct ob_wire_write_multi_entry entry = { number(), rnd(9), rnd(10), { 0 } };

        memcpy(payload + sizeof(head) + i * sizeof(entry), &entry, sizeof(entry));
    }
    return sizeof(head) + head.count * sizeof(struct ob_wire_write_multi_entry);
}

static size_t fill(uint16_t cmd, uint8_t *payload)
{
    struct ob_wire_set_irqs set = { 20, 1u << rnd(3) | 8u << rnd(3), rnd(4), rnd(9), rnd(9) };
    struct ob_wire_region_access access = { number(), rnd(9), rnd(80) };
    struct ob_wire_dma_map map = { 32, rnd(16), number(), number(), number() };
    struct ob_wire_dma_unmap unmap = { 24, rnd(3), map.address, map.size };
    uint32_t info[8] = { 16u << rnd(8), 0, cmd == OB_CMD_DEVICE_GET_INFO ? 0 : rnd(12) };

    for (size_t i = 0; i < 256; i++)
        payload[i] = (uint8_t)rnd(256);
    switch (cmd) {
    case OB_CMD_DMA_MAP:
        memcpy(payload, &map, sizeof(map));
        return sizeof(map);
    case OB_CMD_DMA_UNMAP:
        memcpy(payload, &unmap, sizeof(unmap));
        return sizeof(unmap);
    case OB_CMD_DEVICE_SET_IRQS:
        memcpy(payload, &set, sizeof(set));
        return sizeof(set) + (set.flags & OB_IRQ_SET_DATA_BOOL ? set.count : 0);
    case OB_CMD_REGION_READ:
    case OB_CMD_REGION_WRITE:
        memcpy(payload, &access, sizeof(access));
        return sizeof(access) + (cmd == OB_CMD_REGION_WRITE ? access.count : 0);
    case OB_CMD_DEVICE_GET_REGION_INFO:
        memcpy(payload, info, 32);
        return 32;
    case OB_CMD_DEVICE_GET_INFO:
    case OB_CMD_DEVICE_GET_IRQ_INFO:
    case OB_CMD_DEVICE_GET_REGION_IO_FDS:
        memcpy(payload, info, 16);
        return 16;
    case OB_CMD_REGION_WRITE_MULTI:
        return fill_multi(payload);
    case OB_CMD_DEVICE_RESET:
        return 0;
    default:
        return rnd(256);
    }
}

/* Up to four fds of one of the kinds that clients have; the caller closes *made. */
static unsigned choose_fds(int *fds, int memory, int *made)
{
    unsigned n = rnd(5);

    *made = rnd(2) ? eventfd(rnd(2), EFD_CLOEXEC) : -1;
    for (unsigned i = 0; i < n; i++)
        fds[i] = *made >= 0 ? *made : memory;
    return n;
}

static void send_something(struct peer *peer, int memory)
{
    uint8_t bytes[16 + 256];
    struct ob_wire_hdr hdr = { (uint16_t)rnd(3), (uint16_t)rnd(20), 0, 0, 0 };
    size_t len = fill(hdr.cmd, bytes + sizeof(hdr));
    struct iovec iov = { bytes, 0 };
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    int fds[4], made;
    unsigned nfds = choose_fds(fds, memory, &made);

    if (rnd(8) == 0)
        len = rnd(256);
    hdr.msg_size = (uint32_t)(sizeof(hdr) + len);
    hdr.flags = rnd(6) ? 0 : rnd(64);
    if (rnd(300) == 0)
        hdr.msg_size = rnd(2) ? rnd(40) : (uint32_t)number();
    memcpy(bytes, &hdr, sizeof(hdr));
    iov.iov_len = sizeof(hdr) + len;
    if (nfds) {
        msg.msg_control = &control;
        msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(&control.head), fds, nfds * sizeof(int));
    }
    /* A jammed socket or a connection that the server ended is nothing to worry about. */
    sendmsg(peer->ch.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (made >= 0)
        close(made);
}

static void drain(struct peer *peer)
{
    uint8_t bytes[4096];

    while (recv(peer->ch.fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
        ;
}

/* Steps, but not until quiet: memory in use may keep the server waiting. */
static void step(struct ob_server *server)
{
    for (unsigned i = rnd(8); i > 0; i--)
        CHECK_INT(ob_server_step(server), 0);
}

/* With a second socket, which this client closes at once, the connection is short. */
static const char *greeting(void)
{
    static const char both[] = "{\"capabilities\":{\"max_msg_fds\":8,\"write_multiple\":true}}";
    static const char twin[] = "{\"capabilities\":{\"twin_socket\":{\"supported\":true}}}";
    uint32_t choice = rnd(6);

    return choice < 3 ? NULL : choice < 5 ? both : twin;
}

TEST_TIMEOUT(random_clients, "clients-that-send-anything-do-no-harm", 120)
{
    struct device device = { 0 };
    int memory = peer_memfd(8 * PAGE);
    struct peer peer;

    build(&device, memory);
    for (uint32_t round = 1; round <= 300; round++) {
        state = round;
        peer_connect(&peer, device.server);
        if (round % 10)
            CHECK_INT(peer_negotiate(&peer, greeting()), 0);
        for (unsigned i = rnd(200); i > 0; i--) {
            send_something(&peer, memory);
            step(device.server);
            if (rnd(3))
                drain(&peer);
        }
        peer_close(&peer);
        if (round % 30 == 0) {
            peer_attach(&peer, device.server);
            peer_read32(&peer, 1, 0);
            peer_close(&peer);
        }
    }
    on_reset(&device);
    ob_server_free(device.server);
    close(memory);
}
