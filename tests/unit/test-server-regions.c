/* SPDX-License-Identifier: BSD-3-Clause */
/* Describing regions, and where accesses to them end up. */
#include "harness.h"
#include "peer.h"

#include <errno.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#define RW   (OB_REGION_READ | OB_REGION_WRITE)
#define PAGE 4096u

struct device {
    uint64_t offset;
    uint32_t count;
    unsigned calls;
    int rc;
};

static int on_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct device *device = opaque;

    device->calls++;
    device->offset = offset;
    device->count = count;
    if (!is_write && count > 1)
        ((uint8_t *)data)[0] = 0xee; /* and leaves the rest */
    return device->rc;
}

static struct ob_msg *region_info(struct peer *peer, uint32_t index, uint32_t argsz)
{
    struct ob_wire_region_info info = { .argsz = argsz, .index = index };
    struct ob_msg *reply;

    CHECK_INT(peer_call(peer, OB_CMD_DEVICE_GET_REGION_INFO, &info, sizeof(info), &reply), 0);
    return reply;
}

TEST(device_info, "device-info-counts-regions-and-irqs")
{
    struct ob_wire_device_info info = { .argsz = 32 };
    struct ob_region region = { .size = PAGE, .flags = RW, .type = 5, .subtype = 6 };
    struct ob_server *server = peer_server_new(NULL, NULL);
    struct ob_msg *reply;
    struct peer peer;

    CHECK_INT(ob_server_set_region(server, 11, &region), 0);
    peer_attach(&peer, server);
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info), &reply), 0);
    memcpy(&info, reply->payload, sizeof(info));
    CHECK_INT(reply->len, sizeof(info));
    CHECK_INT(info.argsz, sizeof(info));
    CHECK_INT(info.flags, OB_DEVICE_PCI); /* and no reset */
    CHECK_INT(info.num_regions, 12);
    CHECK_INT(info.num_irqs, 5);
    ob_msg_free(reply);
    info.argsz = 15;
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info), NULL), -EINVAL);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(plain, "region-info-of-plain-unused-and-typed-regions")
{
    struct ob_region region = { .size = 0x1234, .flags = RW };
    struct ob_region typed = { .size = PAGE, .flags = OB_REGION_READ, .type = 5, .subtype = 6 };
    struct ob_server *server = peer_server_new(NULL, NULL);
    struct ob_wire_region_info info = { .argsz = 32, .index = 12 };
    struct ob_region_layout layout;
    struct ob_msg *reply;
    const char *why;
    struct peer peer;

    CHECK_INT(ob_server_set_region(server, 0, &region), 0);
    CHECK_INT(ob_server_set_region(server, 11, &typed), 0);
    peer_attach(&peer, server);
    reply = region_info(&peer, 0, 32);
    CHECK_INT(reply->nfds, 0);
    CHECK_INT(ob_decode_region_layout(reply->payload, reply->len, 0, &layout, &why), 0);
    CHECK_INT(layout.size, 0x1234);
    CHECK_INT(layout.flags, RW);
    ob_msg_free(reply);
    reply = region_info(&peer, 3, 4096);
    CHECK_INT(reply->len, sizeof(info));
    CHECK_INT(ob_decode_region_layout(reply->payload, reply->len, 3, &layout, &why), 0);
    CHECK(layout.size == 0 && layout.flags == 0);
    ob_msg_free(reply);
    reply = region_info(&peer, 11, 4096);
    CHECK_INT(ob_decode_region_layout(reply->payload, reply->len, 11, &layout, &why), 0);
    CHECK(layout.type == 5 && layout.subtype == 6);
    ob_msg_free(reply);
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_REGION_INFO, &info, sizeof(info), NULL), -EINVAL);
    info = (struct ob_wire_region_info){ .argsz = 31 };
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_REGION_INFO, &info, sizeof(info), NULL), -EINVAL);
    peer_close(&peer);
    ob_server_free(server);
}

/* Asks as QEMU does, in two steps, and checks that the fd is that of the region. */
static void check_mappable(struct peer *peer, uint32_t index, int fd, uint64_t fd_offset,
                           uint32_t nareas)
{
    struct ob_wire_region_info info;
    struct ob_region_layout layout;
    const char *why;
    struct ob_msg *reply = region_info(peer, index, 32);
    uint32_t *there, *here;

    memcpy(&info, reply->payload, sizeof(info));
    CHECK_INT(reply->len, 32);
    CHECK_INT(reply->nfds, 0);
    CHECK_INT(info.argsz, 32 + 16 + nareas * 16);
    CHECK_INT(info.cap_offset, 0);
    CHECK_INT(info.flags, RW | OB_REGION_MMAP);
    ob_msg_free(reply);
    reply = region_info(peer, index, info.argsz);
    CHECK_INT(reply->len, info.argsz);
    CHECK_INT(reply->nfds, 1);
    CHECK_INT(ob_decode_region_layout(reply->payload, reply->len, index, &layout, &why), 0);
    CHECK_INT(layout.nareas, nareas);
    CHECK_INT(layout.fd_offset, fd_offset);
    there = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, reply->fds[0],
                 (off_t)layout.fd_offset);
    here = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)fd_offset);
    CHECK(there != MAP_FAILED && here != MAP_FAILED);
    *here = 0x1000 + index;
    CHECK_INT(*there, 0x1000 + index);
    munmap(there, PAGE);
    munmap(here, PAGE);
    ob_msg_free(reply);
}

TEST(mappable, "mappable-regions-send-their-fd-with-the-areas")
{
    static const struct ob_sparse_area areas[2] = { { 0, PAGE }, { 2 * PAGE, PAGE } };
    int fd = peer_memfd(16 * PAGE);
    struct ob_region sparse = { .size = 4 * PAGE,
                                .flags = RW | OB_REGION_MMAP,
                                .fd = fd,
                                .fd_offset = 4 * PAGE,
                                .areas = areas,
                                .nareas = 2 };
    struct ob_region whole = { .size = 4 * PAGE, .flags = RW | OB_REGION_MMAP, .fd = fd };
    struct ob_server *server = peer_server_new(NULL, NULL);
    struct ob_msg *reply;
    struct peer peer;

    CHECK_INT(ob_server_set_region(server, 2, &sparse), 0);
    CHECK_INT(ob_server_set_region(server, 4, &whole), 0);
    peer_attach(&peer, server);
    check_mappable(&peer, 2, fd, 4 * PAGE, 2);
    check_mappable(&peer, 4, fd, 0, 1);
    peer_close(&peer);
    peer_connect(&peer, server); /* one that cannot take fds is not told to map */
    CHECK_INT(peer_negotiate(&peer, "{\"capabilities\":{\"max_msg_fds\":0}}"), 0);
    reply = region_info(&peer, 2, 4096);
    CHECK(reply->len == 32 && reply->nfds == 0 && !(reply->payload[4] & OB_REGION_MMAP));
    ob_msg_free(reply);
    peer_close(&peer);
    ob_server_free(server);
    close(fd);
}

TEST(memory, "region-without-callback-is-the-memory-of-its-fd")
{
    int fd = peer_memfd(4 * PAGE);
    struct ob_region region = {
        .size = 2 * PAGE, .flags = RW | OB_REGION_MMAP, .fd = fd, .fd_offset = PAGE
    };
    struct ob_region nothing = { .size = PAGE, .flags = RW };
    struct ob_server *server = peer_server_new(NULL, NULL);
    uint8_t data[300], back[300];
    struct peer peer;

    CHECK_INT(ob_server_set_region(server, 1, &region), 0);
    CHECK_INT(ob_server_set_region(server, 2, &nothing), 0);
    peer_attach(&peer, server);
    for (uint32_t count = 1; count <= sizeof(data); count += count < 16 ? 1 : 71) {
        memset(data, (int)count, sizeof(data));
        CHECK_INT(peer_write(&peer, 1, 64 + count, data, count), 0);
        CHECK_INT(pread(fd, back, count, PAGE + 64 + count), count);
        CHECK_MEM(back, data, count);
        CHECK_INT(peer_read(&peer, 1, 64 + count, back, count), 0);
        CHECK_MEM(back, data, count);
    }
    peer_write32(&peer, 2, 0, 5);
    CHECK_INT(peer_read32(&peer, 2, 0), 0);
    peer_close(&peer);
    ob_server_free(server);
    close(fd);
}

TEST(bounds, "accesses-outside-are-refused-before-the-device-sees-them")
{
    struct device device = { 0 };
    struct ob_region region = { .size = PAGE, .flags = RW, .access = on_access, .opaque = &device };
    struct ob_region readonly = region, writeonly = region;
    struct ob_server *server = peer_server_new(NULL, NULL);
    struct peer peer;
    uint32_t value = 0;

    readonly.flags = OB_REGION_READ;
    writeonly.flags = OB_REGION_WRITE;
    CHECK_INT(ob_server_set_region(server, 0, &region), 0);
    CHECK_INT(ob_server_set_region(server, 1, &readonly), 0);
    CHECK_INT(ob_server_set_region(server, 2, &writeonly), 0);
    peer_attach(&peer, server);
    CHECK_INT(peer_read(&peer, 0, PAGE - 3, &value, 4), -EINVAL);
    CHECK_INT(peer_write(&peer, 0, PAGE, &value, 1), -EINVAL);
    CHECK_INT(peer_read(&peer, 0, UINT64_MAX - 1, &value, 4), -EINVAL);
    CHECK_INT(peer_read(&peer, 0, (uint64_t)1 << 32, &value, 4), -EINVAL);
    CHECK_INT(peer_read(&peer, 3, 0, &value, 4), -EINVAL);
    CHECK_INT(peer_read(&peer, 9, 0, &value, 4), -EINVAL);
    CHECK_INT(peer_read(&peer, UINT32_MAX, 0, &value, 4), -EINVAL);
    CHECK_INT(peer_write(&peer, 1, 0, &value, 4), -EINVAL);
    CHECK_INT(peer_read(&peer, 2, 0, &value, 4), -EINVAL);
    CHECK_INT(device.calls, 0);
    CHECK_INT(peer_write(&peer, 2, PAGE - 4, &value, 4), 0);
    CHECK_INT(device.offset, PAGE - 4);
    CHECK_INT(peer_read(&peer, 0, PAGE, &value, 0), 0); /* nothing, at the very end */
    CHECK_INT(peer_write(&peer, 0, 0, &value, 0), 0);
    CHECK_INT(device.calls, 1);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(sizes, "largest-access-works-and-one-more-is-refused")
{
    static uint8_t data[OB_DATA_XFER_MAX + 1];
    struct device device = { 0 };
    struct ob_region region = {
        .size = (uint64_t)1 << 40, .flags = RW, .access = on_access, .opaque = &device
    };
    struct ob_server *server = peer_server_new(NULL, NULL);
    struct ob_wire_region_access huge = { 0, 0, UINT32_MAX };
    struct peer peer;

    CHECK_INT(ob_server_set_region(server, 0, &region), 0);
    peer_attach(&peer, server);
    CHECK_INT(peer_read(&peer, 0, 0, data, OB_DATA_XFER_MAX), 0);
    CHECK_INT(data[0], 0xee);
    CHECK_INT(peer_read(&peer, 0, 0, data, OB_DATA_XFER_MAX + 1), -EINVAL);
    CHECK_INT(peer_write(&peer, 0, (uint64_t)1 << 39, data, OB_DATA_XFER_MAX), 0);
    CHECK_INT(device.count, OB_DATA_XFER_MAX);
    CHECK_INT(peer_write(&peer, 0, 0, data, OB_DATA_XFER_MAX + 1), -EINVAL);
    CHECK_INT(peer_call(&peer, OB_CMD_REGION_READ, &huge, sizeof(huge), NULL), -EINVAL);
    /* Shorter and longer than its count says. */
    huge.count = 8;
    CHECK_INT(peer_call(&peer, OB_CMD_REGION_WRITE, &huge, sizeof(huge), NULL), -EINVAL);
    CHECK_INT(device.calls, 2);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(device_errors, "error-of-the-device-reaches-the-client-without-data")
{
    struct device device = { .rc = -EIO };
    struct ob_region region = { .size = PAGE, .flags = RW, .access = on_access, .opaque = &device };
    struct ob_server *server = peer_server_new(NULL, NULL);
    uint8_t data[8] = { 0 };
    struct peer peer;

    CHECK_INT(ob_server_set_region(server, 0, &region), 0);
    peer_attach(&peer, server);
    CHECK_INT(peer_read(&peer, 0, 0, data, 8), -EIO);
    CHECK_INT(peer_write(&peer, 0, 0, data, 8), -EIO);
    device.rc = 0;
    memset(data, 0xff, sizeof(data));
    CHECK_INT(peer_write(&peer, 0, 0, data, 8), 0);
    CHECK_INT(peer_read(&peer, 0, 0, data, 8), 0); /* what the device left is zero */
    CHECK_MEM(data, "\xee\0\0\0\0\0\0\0", 8);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(io_fds, "regions-have-an-empty-list-of-ioeventfds")
{
    struct ob_region region = { .size = PAGE, .flags = RW };
    struct ob_server *server = peer_server_new(NULL, NULL);
    struct ob_wire_region_io_fds ask = { .argsz = 4096 };
    struct ob_msg *reply;
    struct peer peer;

    CHECK_INT(ob_server_set_region(server, 0, &region), 0);
    peer_attach(&peer, server);
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_REGION_IO_FDS, &ask, sizeof(ask), &reply), 0);
    ask.argsz = sizeof(ask);
    CHECK_INT(reply->len, sizeof(ask));
    CHECK_MEM(reply->payload, &ask, sizeof(ask));
    ob_msg_free(reply);
    ask.index = 1;
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_REGION_IO_FDS, &ask, sizeof(ask), NULL), -EINVAL);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(bad_regions, "regions-that-cannot-be-are-refused")
{
    static const struct ob_sparse_area outside[1] = { { PAGE, PAGE } };
    static const struct ob_sparse_area odd[1] = { { 0, 100 } };
    static const struct ob_sparse_area twice[2] = { { 0, PAGE }, { 0, PAGE } };
    struct ob_server *server = ob_server_new(NULL, NULL);
    struct ob_region region = { .size = PAGE, .flags = RW | OB_REGION_MMAP, .fd = -1 };

    CHECK_INT(ob_server_set_region(server, 0, &region), -EINVAL);
    region.fd = 0;
    region.nareas = 1;
    region.areas = outside;
    CHECK_INT(ob_server_set_region(server, 0, &region), -EINVAL);
    region.areas = odd;
    CHECK_INT(ob_server_set_region(server, 0, &region), -EINVAL);
    region.areas = twice;
    region.nareas = 2;
    CHECK_INT(ob_server_set_region(server, 0, &region), -EINVAL);
    region.flags = RW;
    CHECK_INT(ob_server_set_region(server, OB_REGIONS_MAX, &region), -EINVAL);
    region.flags = OB_REGION_CAPS;
    CHECK_INT(ob_server_set_region(server, 0, &region), -EINVAL);
    ob_server_free(server);
}
