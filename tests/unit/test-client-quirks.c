/* SPDX-License-Identifier: BSD-3-Clause */
/* Servers that exist, played byte by byte where they are not what one would expect. */
#include "harness.h"
#include "scripted.h"

#include <errno.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- libvfio-user --------------------------------------------------------------------------- */

static const char libvfio_user[] =
    "{ \"capabilities\": { \"max_msg_fds\": 8, \"max_data_xfer_size\": 1048576, \"migration\": { "
    "\"pgsize\": 4096 } } }";

/* Two entries as they are on the wire: an eventfd for writes of 4 bytes at 0x10 whose value is 7,
 * and one whose value goes into shared memory as well. */
static const uint8_t io_fds[112] = {
    112, 0, 0, 0,           0,        0,        0,        0,           0,        0,
    0,   0, 2, [16] = 0x10, [24] = 4, [40] = 1, [56] = 7, [64] = 0x20, [72] = 4, [84] = 2,
};

static void play_libvfio_user(struct peer *peer)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    /* L-1: the answer that would have been comes with the error. */
    peer_expect(peer, OB_CMD_REGION_READ);
    struct ob_wire_hdr hdr = { peer->msg->hdr.msg_id, OB_CMD_REGION_READ, 0,
                               OB_HDR_REPLY | OB_HDR_ERROR, ENOTSUP };
    peer_send(peer, &hdr, "123456789012345678901234", 24, NULL, 0);
    /* L-12: an unmap for a device without DMA is answered without its 24 bytes. */
    peer_expect(peer, OB_CMD_DMA_MAP);
    peer_reply(peer, NULL, 0);
    peer_expect(peer, OB_CMD_DMA_UNMAP);
    peer_reply(peer, NULL, 0);
    /* L-5: entries of 48 bytes. */
    peer_expect(peer, OB_CMD_DEVICE_GET_REGION_IO_FDS);
    CHECK_INT(peer->msg->len, 16);
    peer_reply_fds(peer, io_fds, sizeof(io_fds), &fd, 1);
    close(fd);
    peer_serve(peer);
}

TEST(libvfio_user_server, "libvfio-user")
{
    struct peer peer = { .json = libvfio_user };
    struct ob_region_io_fds list;
    uint64_t value = 5;

    peer_start(&peer, play_libvfio_user, NULL);
    CHECK_INT(ob_peer_errno(ob_client_region_read(peer.client, 0, 0, &value, 8)), ENOTSUP);
    CHECK_INT(value, 5);
    CHECK_INT(ob_client_dma_map(peer.client, 0, 4096, OB_DMA_READ, -1, 0), 0);
    CHECK_INT(ob_client_dma_unmap(peer.client, 0, 4096), 0);
    CHECK_INT(ob_client_region_io_fds(peer.client, 0, &list), 0);
    CHECK_INT(list.count, 1); /* nobody can make use of the other one */
    CHECK_INT(list.entries[0].match.offset, 0x10);
    CHECK_INT(list.entries[0].match.size, 4);
    CHECK_INT(list.entries[0].match.flags, OB_IOEVENTFD_DATAMATCH);
    CHECK_INT(list.entries[0].match.datamatch, 7);
    CHECK_INT(eventfd_write(list.entries[0].fd, 1), 0);
    ob_region_io_fds_fini(&list);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 8), 0);
    peer_stop(&peer);
}

/* What it cannot take is not sent. */

static void expect_irqs(struct peer *peer, uint32_t start, uint32_t count, unsigned nfds)
{
    struct ob_wire_set_irqs set;

    peer_expect(peer, OB_CMD_DEVICE_SET_IRQS);
    set = PEER_GET(peer, struct ob_wire_set_irqs);
    CHECK_INT(set.start, start);
    CHECK_INT(set.count, count);
    CHECK_INT(peer->msg->nfds, nfds);
    peer_close_fds(peer);
    peer_reply(peer, NULL, 0);
}

static void spare_libvfio_user(struct peer *peer)
{
    const char *json = (const char *)peer->msg->payload + sizeof(struct ob_wire_version);
    char pgsize[64];
    struct peer_access kept;

    /* L-17: VERSION has no fds. */
    CHECK_INT(peer->msg->nfds, 0);
    /* it says something. L-9: two sockets, so that commands do not cross. L-19: this page size
     * or none. */
    snprintf(pgsize, sizeof(pgsize), "\"migration\":{\"pgsize\":%ld", sysconf(_SC_PAGESIZE));
    CHECK(strstr(json, "\"capabilities\":{"));
    CHECK(strstr(json, "\"twin_socket\":{\"supported\":true"));
    CHECK(strstr(json, pgsize));
    /* L-15: it has said 8. */
    expect_irqs(peer, 0, 8, 8);
    expect_irqs(peer, 8, 4, 4);
    /* L-6: eventfds behind the first vector are not taken back, but others can be put in place. */
    expect_irqs(peer, 9, 2, 2);
    expect_irqs(peer, 9, 2, 0);
    /* L-2: nothing is asked for no bytes. L-3: nor is nothing mapped, nor more than there is. */
    peer_expect(peer, OB_CMD_REGION_READ);
    kept = peer_keep(peer);
    /* L-10: answers are whole, with a count of 8 bytes. */
    peer_dma(peer, 1, OB_CMD_DMA_READ, 0x1000, 16, NULL, 0);
    peer_expect_reply(peer, OB_CMD_DMA_READ, 1);
    CHECK_INT(peer->msg->len, 32);
    CHECK_INT(PEER_GET(peer, struct ob_wire_dma_access).count, 16);
    peer_dma(peer, 2, OB_CMD_DMA_WRITE, 0x1000, 16, "sixteen bytes...", 0);
    peer_expect_reply(peer, OB_CMD_DMA_WRITE, 2);
    CHECK_INT(peer->msg->len, 16);
    CHECK_INT(PEER_GET(peer, struct ob_wire_dma_access).count, 16);
    peer_answer(peer, &kept, "data");
    /* L-14: an unmap that it cannot do is not answered at all. */
    peer_expect(peer, OB_CMD_DMA_UNMAP);
    peer_serve(peer);
}

static int take_any(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    (void)opaque, (void)address, (void)data, (void)count;
    return 0;
}

static int give_any(void *opaque, uint64_t address, void *data, uint32_t count)
{
    (void)opaque, (void)address;
    memset(data, 1, count);
    return 0;
}

TEST(spared, "libvfio-user-gets-nothing-that-it-cannot-take")
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    struct peer peer = { .json = libvfio_user };
    int event = eventfd(0, EFD_CLOEXEC), fds[12];
    char data[4] = "";

    for (unsigned i = 0; i < 12; i++)
        fds[i] = event;
    opt.dma_read = give_any;
    opt.dma_write = take_any;
    opt.timeout_ms = 500;
    peer_start(&peer, spare_libvfio_user, &opt);
    CHECK_INT(ob_client_irq_eventfds(peer.client, OB_PCI_IRQ_MSIX, 0, 12, fds), 0);
    fds[9] = fds[10] = -1;
    CHECK_INT(ob_client_irq_eventfds(peer.client, OB_PCI_IRQ_MSIX, 9, 2, fds + 9), 0);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, data, 0), 0);
    CHECK_INT(ob_client_dma_map(peer.client, 4096, 0, OB_DMA_READ, -1, 0), -EINVAL);
    CHECK_INT(ob_client_dma_map(peer.client, UINT64_MAX - 4095, 8192, OB_DMA_READ, -1, 0), -EINVAL);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, data, 4), 0);
    CHECK_MEM(data, "data", 4);
    CHECK_INT(ob_client_dma_unmap(peer.client, 4096, 4096), -ETIMEDOUT);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, data, 4), 0);
    peer_stop(&peer);
    close(event);
}

/* ---- The vfio-user crate ------------------------------------------------------------------- */

static const char crate[] = "{\"capabilities\":{\"max_msg_fds\":1,\"max_data_xfer_size\":1048576,"
                            "\"migration\":{\"pgsize\":4096}}}";

/* The answer to a request of that id, with these flags and nothing else. */
static void answer_bare(struct peer *peer, uint16_t id, uint16_t cmd, uint32_t flags)
{
    peer_send(peer, &(struct ob_wire_hdr){ .msg_id = id, .cmd = cmd, .flags = flags }, NULL, 0,
              NULL, 0);
}

/* what has no room is announced all the same, with an offset. The fd comes with the rest. */
static void describe_region(struct peer *peer)
{
    struct {
        struct ob_wire_region_info info;
        struct ob_wire_cap_sparse cap;
        struct ob_wire_sparse_area area;
    } reply = { { sizeof(reply), 15, 2, 32, 0x2000, 0 },
                { { OB_CAP_SPARSE_MMAP, 1, 0 }, 1, 0 },
                { 0x1000, 0x1000 } };
    int fd = memfd_create("bar", MFD_CLOEXEC);

    CHECK_INT(ftruncate(fd, 0x2000), 0);
    peer_expect(peer, OB_CMD_DEVICE_GET_REGION_INFO);
    peer_reply(peer, &reply.info, sizeof(reply.info));
    peer_expect(peer, OB_CMD_DEVICE_GET_REGION_INFO);
    peer_reply_fds(peer, &reply, sizeof(reply), &fd, 1);
    close(fd);
}

static void play_crate(struct peer *peer)
{
    /* error_no is 0; R-7: up to 0.1.3 an error reply says that it is a command. */
    peer_expect(peer, OB_CMD_REGION_READ);
    answer_bare(peer, peer->msg->hdr.msg_id, OB_CMD_REGION_READ, OB_HDR_REPLY | OB_HDR_ERROR);
    peer_expect(peer, OB_CMD_REGION_READ);
    answer_bare(peer, peer->msg->hdr.msg_id, OB_CMD_REGION_READ, OB_HDR_COMMAND | OB_HDR_ERROR);
    /* posted writes are answered. */
    peer_expect(peer, OB_CMD_REGION_WRITE);
    peer_reply(peer, peer->msg->payload, 16);
    peer_expect(peer, OB_CMD_REGION_WRITE);
    answer_bare(peer, peer->msg->hdr.msg_id, OB_CMD_REGION_WRITE, OB_HDR_COMMAND | OB_HDR_ERROR);
    describe_region(peer);
    /* the next messages are these, and none that it does not know: not even behind a reset,
     * and what is refused is not looked into, although it says `migration` (L-13). */
    peer_expect(peer, OB_CMD_DEVICE_RESET);
    peer_reply(peer, NULL, 0);
    peer_expect(peer, OB_CMD_DEVICE_RESET);
    answer_bare(peer, peer->msg->hdr.msg_id, OB_CMD_DEVICE_RESET, OB_HDR_REPLY | OB_HDR_ERROR);
    peer_expect(peer, OB_CMD_DEVICE_GET_INFO);
    answer_bare(peer, peer->msg->hdr.msg_id, OB_CMD_DEVICE_GET_INFO, OB_HDR_REPLY | OB_HDR_ERROR);
    /* bit 1 is not "all" there. Every mapping goes by itself, and without flags. */
    peer_expect(peer, OB_CMD_DMA_UNMAP);
    CHECK_INT(PEER_GET(peer, struct ob_wire_dma_unmap).flags, 0);
    peer_reply(peer, peer->msg->payload, 24);
    /* the answer to a read comes in two pieces. */
    peer_expect(peer, OB_CMD_REGION_READ);
    peer->msg->hdr.flags = OB_HDR_REPLY;
    peer->msg->hdr.msg_size = 36;
    peer_write(peer, &peer->msg->hdr, 16);
    peer_write(peer, peer->msg->payload, 16);
    peer_write(peer, "data", 4);
    peer_serve(peer);
}

/* What only some servers know is not sent. */
static void ask_for_what_it_does_not_know(struct ob_client *client)
{
    struct ob_region_io_fds list;
    enum ob_mig_state state;
    uint64_t flags;
    char data[4];

    CHECK_INT(ob_client_region_io_fds(client, 0, &list), -EOPNOTSUPP);
    CHECK_INT(ob_client_feature_probe(client, OB_FEATURE_MIGRATION, 0), -EOPNOTSUPP);
    CHECK_INT(ob_client_migration_info(client, &flags), -EOPNOTSUPP);
    CHECK_INT(ob_client_mig_state_get(client, &state), -EOPNOTSUPP);
    CHECK_INT(ob_client_mig_state_set(client, OB_MIG_STATE_STOP), -EOPNOTSUPP);
    CHECK_INT(ob_client_mig_read(client, data, 4), -EOPNOTSUPP);
    CHECK_INT(ob_client_mig_write(client, data, 4), -EOPNOTSUPP);
    CHECK_INT(ob_client_dirty_start(client, 4096, NULL, 0), -EOPNOTSUPP);
    CHECK_INT(ob_client_dirty_stop(client), -EOPNOTSUPP);
}

TEST(crate_server, "vfio-user-crate")
{
    struct peer peer = { .json = crate };
    struct ob_region_info info;
    struct ob_device_info device;
    char data[4] = "none";

    peer_start(&peer, play_crate, NULL);
    for (int i = 0; i < 2; i++)
        CHECK_INT(ob_peer_errno(ob_client_region_read(peer.client, 0, 0, data, 4)), EINVAL);
    CHECK_MEM(data, "none", 4);
    for (int i = 0; i < 2; i++)
        CHECK_INT(ob_client_region_post(peer.client, 0, 0, data, 4), 0);
    CHECK_INT(ob_client_region_info(peer.client, 2, &info), 0);
    CHECK_INT(info.layout.nareas, 1);
    CHECK(info.fd >= 0);
    ob_region_info_fini(&info);
    ask_for_what_it_does_not_know(peer.client);
    CHECK_INT(ob_client_reset(peer.client), 0);
    CHECK_INT(ob_peer_errno(ob_client_reset(peer.client)), EINVAL);
    CHECK_INT(ob_peer_errno(ob_client_device_info(peer.client, &device)), EINVAL);
    CHECK_INT(ob_client_dma_unmap(peer.client, 0, 4096), 0);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, data, 4), 0);
    CHECK_MEM(data, "data", 4);
    peer_stop(&peer);
}

/* ---- Lists of eventfds that cannot be ------------------------------------------------------- */

struct list {
    struct ob_wire_region_io_fds head;
    struct ob_wire_ioeventfd entries[9];
};

/* All but the first two are to be left out. */
static const struct list odd = { { sizeof(odd), 0, 0, 9 },
                                 { { 0, 4, 0, 0, 0, 0, 0 },
                                   { 8, 0, 0, 0, 0, 0, 0 },
                                   { 0, 4, 0, 0, OB_IOEVENTFD_DATAMATCH, 0,
                                     9 },                    /* clashes with the first */
                                   { 16, 4, 1, 0, 0, 0, 0 }, /* no eventfd */
                                   { 24, 4, 2, 0, 0, 0, 0 }, /* no fd */
                                   { 32, 4, UINT32_MAX, 0, 0, 0, 0 },
                                   { 40, 4, 0, OB_IO_FD_REGIONFD, 0, 0, 0 },
                                   { 48, 3, 0, 0, 0, 0, 0 },
                                   { 56, 4, 0, 0, 8, 0, 0 } } };

static void send_odd_lists(struct peer *peer)
{
    struct list list = odd;
    int fds[2] = { eventfd(0, EFD_CLOEXEC), peer->fd };

    peer_expect(peer, OB_CMD_DEVICE_GET_REGION_IO_FDS);
    peer_reply_fds(peer, &list, sizeof(list), fds, 2);
    list.head.count = 8; /* not what the length says */
    peer_expect(peer, OB_CMD_DEVICE_GET_REGION_IO_FDS);
    peer_reply_fds(peer, &list, sizeof(list), fds, 1);
    list.head.count = UINT32_MAX;
    peer_expect(peer, OB_CMD_DEVICE_GET_REGION_IO_FDS);
    peer_reply_fds(peer, &list, sizeof(list), fds, 1);
    list.head = (struct ob_wire_region_io_fds){ 99999, 0, 0, 9 }; /* more than there was room */
    peer_expect(peer, OB_CMD_DEVICE_GET_REGION_IO_FDS);
    peer_reply_fds(peer, &list, sizeof(list.head), fds, 1);
    list.head.index = 1;
    peer_expect(peer, OB_CMD_DEVICE_GET_REGION_IO_FDS);
    peer_reply_fds(peer, &list, sizeof(list.head), fds, 1);
    close(fds[0]);
    CHECK(!peer_recv(peer));
}

TEST(odd_lists, "eventfds-that-cannot-be-used-are-left-out")
{
    struct peer peer = { .json = libvfio_user };
    struct ob_region_io_fds list;

    peer_start(&peer, send_odd_lists, NULL);
    CHECK_INT(ob_client_region_io_fds(peer.client, 0, &list), 0);
    CHECK_INT(list.count, 2);
    CHECK_INT(list.entries[1].match.offset, 8);
    CHECK_INT(list.entries[1].fd, list.fds[0]);
    CHECK_INT(list.nfds, 2);
    CHECK_INT(list.fds[1], -1);
    ob_region_io_fds_fini(&list);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(ob_client_region_io_fds(peer.client, 0, &list), 0);
        CHECK_INT(list.count, 0);
        ob_region_io_fds_fini(&list);
    }
    CHECK_INT(ob_client_region_io_fds(peer.client, 0, &list), -ENOTCONN);
    CHECK_STR(ob_client_error(peer.client), "the server describes the eventfds of region 1, not of "
                                            "0");
    peer_stop(&peer);
}

/* ---- Limits --------------------------------------------------------------------------------- */

TEST(page_size, "memory-is-offered-in-pages-of-the-server")
{
    struct peer peer = { .json = "{\"capabilities\":{\"pgsizes\":2162688}}" }; /* 64 KiB, 2 MiB */

    peer_start(&peer, peer_serve, NULL);
    CHECK_INT(ob_client_page_size(peer.client), 65536);
    CHECK_INT(ob_client_dma_map(peer.client, 65536, 4096, OB_DMA_READ, -1, 0), -EINVAL);
    CHECK_INT(ob_client_dma_map(peer.client, 4096, 65536, OB_DMA_READ, -1, 0), -EINVAL);
    CHECK_INT(ob_client_dma_map(peer.client, 65536, 65536, OB_DMA_READ, -1, 0), 0);
    peer_stop(&peer);
}
