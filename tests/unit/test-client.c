/* SPDX-License-Identifier: BSD-3-Clause */
/* The client against a server that behaves: what goes over the wire, and what comes back. */
#include "harness.h"
#include "scripted.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- Negotiation --------------------------------------------------------------------------- */

static void check_version_then_serve(struct peer *peer)
{
    const char *json = (const char *)peer->msg->payload + sizeof(struct ob_wire_version);

    /* Still the VERSION message: some servers panic without these. */
    CHECK(peer->msg->len > sizeof(struct ob_wire_version));
    CHECK_INT(peer->msg->payload[peer->msg->len - 1], 0);
    CHECK(strstr(json, "\"capabilities\"") != NULL);
    CHECK(strstr(json, "\"max_msg_fds\":16") != NULL);
    CHECK_INT(peer->msg->nfds, 0);
    peer_serve(peer);
}

TEST(negotiates, "negotiates")
{
    struct peer peer = { .json = "{\"capabilities\":{\"max_msg_fds\":8,\"max_dma_maps\":5}}" };

    peer_start(&peer, check_version_then_serve, NULL);
    CHECK_INT(ob_client_caps(peer.client)->max_msg_fds, 8);
    CHECK_INT(ob_client_caps(peer.client)->max_dma_maps, 5);
    CHECK_INT(ob_client_caps(peer.client)->max_data_xfer_size, OB_DATA_XFER_DEFAULT);
    CHECK(ob_client_connected(peer.client));
    CHECK(ob_client_error(peer.client) == NULL);
    peer_stop(&peer);
}

/* ---- Device -------------------------------------------------------------------------------- */

static void describe_device(struct peer *peer)
{
    struct ob_wire_device_info info = { sizeof(info), OB_DEVICE_PCI | OB_DEVICE_RESET, 9, 5 };
    struct ob_wire_irq_info irq = { sizeof(irq), OB_IRQ_EVENTFD, OB_PCI_IRQ_MSIX, 33 };

    peer_expect(peer, OB_CMD_DEVICE_GET_INFO);
    CHECK_INT(PEER_GET(peer, struct ob_wire_device_info).argsz, sizeof(info));
    peer_reply(peer, &info, sizeof(info));
    peer_expect(peer, OB_CMD_DEVICE_GET_IRQ_INFO);
    CHECK_INT(PEER_GET(peer, struct ob_wire_irq_info).index, OB_PCI_IRQ_MSIX);
    peer_reply(peer, &irq, sizeof(irq));
    peer_expect(peer, OB_CMD_DEVICE_RESET);
    CHECK_INT(peer->msg->len, 0);
    peer_reply(peer, NULL, 0);
}

TEST(describes_device, "reads-what-the-device-is-and-resets-it")
{
    struct peer peer = { 0 };
    struct ob_device_info info;
    struct ob_irq_info irq;

    peer_start(&peer, describe_device, NULL);
    CHECK_INT(ob_client_device_info(peer.client, &info), 0);
    CHECK_INT(info.flags, OB_DEVICE_PCI | OB_DEVICE_RESET);
    CHECK_INT(info.num_regions, 9);
    CHECK_INT(info.num_irqs, 5);
    CHECK_INT(ob_client_irq_info(peer.client, OB_PCI_IRQ_MSIX, &irq), 0);
    CHECK_INT(irq.count, 33);
    CHECK_INT(ob_client_reset(peer.client), 0);
    peer_stop(&peer);
}

/* ---- Regions ------------------------------------------------------------------------------- */

struct sparse_reply {
    struct ob_wire_region_info info;
    struct ob_wire_cap_sparse sparse;
    struct ob_wire_sparse_area areas[2];
};

static struct sparse_reply sparse_reply(uint32_t index)
{
    return (struct sparse_reply){
        .info = { sizeof(struct sparse_reply),
                  OB_REGION_READ | OB_REGION_WRITE | OB_REGION_MMAP | OB_REGION_CAPS, index,
                  sizeof(struct ob_wire_region_info), 0x10000, 0x2000 },
        .sparse = { { OB_CAP_SPARSE_MMAP, 1, 0 }, 2, 0 },
        .areas = { { 0x1000, 0x1000 }, { 0x4000, 0x2000 } },
    };
}

static int file_of_size(off_t size)
{
    int fd = memfd_create("region", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    CHECK(fd >= 0);
    CHECK_INT(ftruncate(fd, size), 0);
    return fd;
}

/* Region 2 with areas and an fd, in two steps; then region 3, with a file that is too small. */
static void describe_regions(struct peer *peer)
{
    int fd = file_of_size(0x8000), small = file_of_size(0x7000), fds[2] = { fd, fd };
    struct sparse_reply full = sparse_reply(2);
    struct ob_wire_region_info brief = full.info;

    brief.flags = OB_REGION_READ | OB_REGION_WRITE | OB_REGION_MMAP;
    brief.cap_offset = 0;
    CHECK_INT(pwrite(fd, "first", 6, 0x3000), 6);
    CHECK_INT(pwrite(fd, "second", 7, 0x6000), 7);
    peer_expect(peer, OB_CMD_DEVICE_GET_REGION_INFO);
    CHECK_INT(PEER_GET(peer, struct ob_wire_region_info).argsz, sizeof(brief));
    peer_reply(peer, &brief, sizeof(brief));
    peer_expect(peer, OB_CMD_DEVICE_GET_REGION_INFO);
    CHECK_INT(PEER_GET(peer, struct ob_wire_region_info).argsz, sizeof(full));
    peer_reply_fds(peer, &full, sizeof(full), &fd, 1);

    full = sparse_reply(3);
    for (int i = 0; i < 2; i++) { /* an fd already with the first: it must not leak */
        peer_expect(peer, OB_CMD_DEVICE_GET_REGION_INFO);
        peer_reply_fds(peer, &full, i ? sizeof(full) : sizeof(full.info), &small, 1);
    }

    full = sparse_reply(4);
    for (int i = 0; i < 2; i++) {
        peer_expect(peer, OB_CMD_DEVICE_GET_REGION_INFO);
        peer_reply_fds(peer, &full, i ? sizeof(full) : sizeof(full.info), fds, 2);
    }
    close(fd);
    close(small);
    peer_serve(peer);
}

TEST(maps_regions, "maps-the-areas-of-a-region")
{
    struct peer peer = { 0 };
    struct ob_region_info info;
    uint64_t size;
    void *ptr;

    peer_start(&peer, describe_regions, NULL);
    CHECK_INT(ob_client_region_info(peer.client, 2, &info), 0);
    CHECK_INT(info.layout.size, 0x10000);
    CHECK_INT(info.layout.nareas, 2);
    CHECK_INT(ob_region_map(&info, 0, &ptr, &size), 0);
    CHECK_INT(size, 0x1000);
    CHECK_STR((char *)ptr, "first");
    CHECK_INT(munmap(ptr, size), 0);
    CHECK_INT(ob_region_map(&info, 1, &ptr, &size), 0);
    CHECK_INT(size, 0x2000);
    CHECK_STR((char *)ptr, "second");
    CHECK_INT(munmap(ptr, size), 0);
    CHECK_INT(ob_region_map(&info, 2, &ptr, &size), -ENOENT);
    CHECK(!ob_region_can_shrink(&info));
    CHECK(ftruncate(info.fd, 0) < 0);
    ob_region_info_fini(&info);

    CHECK_INT(ob_client_region_info(peer.client, 3, &info), 0);
    CHECK_INT(ob_region_map(&info, 0, &ptr, &size), 0);
    CHECK_INT(munmap(ptr, size), 0);
    CHECK_INT(ob_region_map(&info, 1, &ptr, &size), -EINVAL);
    ob_region_info_fini(&info);

    /* Two fds: which is whose? Neither is used. */
    CHECK_INT(ob_client_region_info(peer.client, 4, &info), 0);
    CHECK_INT(info.fd, -1);
    CHECK_INT(info.layout.flags, OB_REGION_READ | OB_REGION_WRITE);
    CHECK_INT(ob_region_map(&info, 0, &ptr, &size), -ENOENT);
    ob_region_info_fini(&info);
    peer_stop(&peer);
}

TEST(can_shrink, "files-that-could-be-cut-or-not-filled-again-are-told-from-others")
{
    static const struct {
        unsigned flags;
        int seals;
        bool can_shrink;
    } files[] = {
        { MFD_ALLOW_SEALING, 0, false }, /* is sealed by us */
        { MFD_ALLOW_SEALING, F_SEAL_SHRINK | F_SEAL_SEAL, false },
        { 0, 0, true },
        { MFD_ALLOW_SEALING, F_SEAL_GROW | F_SEAL_SEAL, true },
        { MFD_ALLOW_SEALING | MFD_HUGETLB, F_SEAL_SHRINK, true },
    };
    struct ob_region_info info = { .fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC) };

    CHECK(ob_region_can_shrink(&info));
    close(info.fd);
    for (unsigned i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        info.fd = memfd_create("file", MFD_CLOEXEC | files[i].flags);
        if (info.fd < 0 && (files[i].flags & MFD_HUGETLB))
            continue; /* a kernel without */
        if (files[i].seals)
            CHECK_INT(fcntl(info.fd, F_ADD_SEALS, files[i].seals), 0);
        CHECK_INT(ob_region_can_shrink(&info), files[i].can_shrink);
        close(info.fd);
    }
}

static void access_split(struct peer *peer)
{
    static const uint32_t counts[] = { 8, 8, 4 };
    static const char text[] = "0123456789abcdefghij";

    for (unsigned i = 0; i < 3; i++) {
        peer_expect(peer, OB_CMD_REGION_READ);
        struct ob_wire_region_access access = PEER_GET(peer, struct ob_wire_region_access);
        CHECK_INT(access.region, 7);
        CHECK_INT(access.offset, 0x100 + 8 * i);
        CHECK_INT(access.count, counts[i]);
        CHECK_INT(peer->msg->len, sizeof(access));
        peer_reply_access(peer, text + 8 * i);
    }
    for (unsigned i = 0; i < 3; i++) {
        peer_expect(peer, OB_CMD_REGION_WRITE);
        struct ob_wire_region_access access = PEER_GET(peer, struct ob_wire_region_access);
        CHECK_INT(access.offset, 0x200 + 8 * i);
        CHECK_INT(access.count, counts[i]);
        CHECK_INT(peer->msg->len, sizeof(access) + counts[i]);
        CHECK_MEM(peer->msg->payload + sizeof(access), text + 8 * i, counts[i]);
        peer_reply_access(peer, NULL);
    }
    CHECK(!peer_recv(peer)); /* nothing for the accesses of no bytes and of too many */
}

TEST(splits_accesses, "splits-accesses-by-what-the-server-takes")
{
    struct peer peer = { .json = "{\"capabilities\":{\"max_data_xfer_size\":8}}" };
    char data[20];

    peer_start(&peer, access_split, NULL);
    CHECK_INT(ob_client_region_read(peer.client, 7, 0x100, data, 20), 0);
    CHECK_MEM(data, "0123456789abcdefghij", 20);
    CHECK_INT(ob_client_region_write(peer.client, 7, 0x200, data, 20), 0);
    CHECK_INT(ob_client_region_read(peer.client, 7, 0, data, 0), 0);
    CHECK_INT(ob_client_region_write(peer.client, 7, 0, data, 0), 0);
    CHECK_INT(ob_client_region_post(peer.client, 7, 0, data, 0), 0);
    CHECK_INT(ob_client_region_post(peer.client, 7, 0, data, 9), -EMSGSIZE);
    CHECK_INT(ob_client_region_read(peer.client, 7, UINT64_MAX - 3, data, 5), -EINVAL);
    peer_stop(&peer);
}

/* ---- Posted writes ------------------------------------------------------------------------- */

static void count_posts(struct peer *peer)
{
    eventfd_t go;
    uint32_t next = 0, posted;

    CHECK_INT(eventfd_read(*(int *)peer->arg, &go), 0);
    for (;;) {
        peer_recv(peer);
        if (peer->msg->hdr.cmd != OB_CMD_REGION_WRITE)
            break;
        CHECK(peer->msg->hdr.flags & OB_HDR_NO_REPLY);
        memcpy(&posted, peer->msg->payload + sizeof(struct ob_wire_region_access), sizeof(posted));
        CHECK_INT(posted, next);
        next++;
    }
    CHECK_INT(peer->msg->hdr.cmd, OB_CMD_REGION_READ);
    peer_reply_access(peer, &next);
    /* Some servers answer posted writes, with an error or without: to no effect. */
    struct ob_wire_hdr stray = { .cmd = OB_CMD_REGION_WRITE, .flags = OB_HDR_REPLY | OB_HDR_ERROR };
    peer_send(peer, &stray, NULL, 0, NULL, 0);
    peer_serve(peer);
}

TEST(posts_in_order, "posted-writes-keep-their-order-when-the-socket-is-full")
{
    int go = eventfd(0, EFD_CLOEXEC);
    struct peer peer = { .arg = &go };
    uint32_t posted = 0, counted = 0;
    int rc;

    peer_start(&peer, count_posts, NULL);
    while ((rc = ob_client_region_post(peer.client, 0, 0x10, &posted, sizeof(posted))) == 0)
        posted++;
    CHECK_INT(rc, -ENOBUFS);
    CHECK(posted > 10000); /* far more than the socket holds */
    CHECK_INT(eventfd_write(go, 1), 0);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &counted, sizeof(counted)), 0);
    CHECK_INT(counted, posted);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &counted, sizeof(counted)), 0);
    CHECK_INT(ob_client_region_post(peer.client, 0, 0x10, &posted, sizeof(posted)), 0);
    peer_stop(&peer);
    close(go);
}

TEST(posts_flushed_by_step, "the-loop-sends-queued-posted-writes")
{
    int go = eventfd(0, EFD_CLOEXEC);
    struct peer peer = { .arg = &go };
    uint32_t posted = 0;

    peer_start(&peer, count_posts, NULL);
    struct pollfd pfd = { ob_client_fd(peer.client), POLLIN, 0 };
    while (ob_client_region_post(peer.client, 0, 0x10, &posted, sizeof(posted)) == 0)
        posted++;
    CHECK_INT(poll(&pfd, 1, 0), 0);
    CHECK_INT(eventfd_write(go, 1), 0);
    /* The queue has run empty when a post is taken that once was refused, and another, and
     * nothing is left to do. */
    while (poll(&pfd, 1, 0) > 0 || ob_client_region_post(peer.client, 0, 0x10, &posted, 4) < 0) {
        CHECK_INT(poll(&pfd, 1, 20000), 1);
        CHECK_INT(ob_client_step(peer.client), 0);
    }
    posted++;
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &posted, sizeof(posted)), 0);
    peer_stop(&peer);
    close(go);
}

/* ---- Many threads -------------------------------------------------------------------------- */

#define THREADS 8
#define READS   2000

/* Answers in an order that has nothing to do with that of the requests. */
static void shuffle_answers(struct peer *peer)
{
    struct peer_access kept[THREADS] = { 0 };
    unsigned nkept = 0, random = 1, left = THREADS * READS;
    struct pollfd pfd = { peer->fd, POLLIN, 0 };

    while (left > 0) {
        if (nkept < THREADS && poll(&pfd, 1, nkept ? 0 : -1) > 0) {
            peer_expect(peer, OB_CMD_REGION_READ);
            kept[nkept++] = peer_keep(peer);
            continue;
        }
        CHECK(nkept > 0);
        random = random * 1103515245 + 12345;
        unsigned i = (random >> 16) % nkept;
        uint64_t value = ~kept[i].access.offset;
        peer_answer(peer, &kept[i], &value);
        kept[i] = kept[--nkept];
        left--;
    }
    peer_serve(peer);
}

struct reader {
    struct ob_client *client;
    unsigned number;
};

static void *read_much(void *opaque)
{
    struct reader *reader = opaque;

    for (uint64_t i = 0; i < READS; i++) {
        uint64_t offset = (uint64_t)reader->number << 32 | i << 3, value = 0;
        CHECK_INT(ob_client_region_read(reader->client, 0, offset, &value, sizeof(value)), 0);
        CHECK(value == ~offset);
    }
    return NULL;
}

TEST(many_threads, "many-threads-get-their-own-answers-in-any-order")
{
    struct peer peer = { 0 };
    struct reader readers[THREADS];
    pthread_t threads[THREADS];

    peer_start(&peer, shuffle_answers, NULL);
    for (unsigned i = 0; i < THREADS; i++) {
        readers[i] = (struct reader){ peer.client, i };
        CHECK_INT(pthread_create(&threads[i], NULL, read_much, &readers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    peer_stop(&peer);
}

/* Writes to our memory unasked and before it answers, and leaves in the middle of it all. */
static void serve_busily_and_leave(struct peer *peer)
{
    for (unsigned n = 0; n < 4000 && peer_recv(peer); n++) {
        struct ob_wire_hdr hdr = peer->msg->hdr;
        if (hdr.flags & OB_HDR_NO_REPLY)
            continue;
        CHECK_INT(hdr.cmd, OB_CMD_REGION_READ);
        struct peer_access request = peer_keep(peer);
        for (unsigned i = n % 3; i > 0; i--)
            peer_dma(peer, 1, OB_CMD_DMA_WRITE, 0, 4, "abcd", OB_HDR_NO_REPLY);
        uint64_t value = ~request.access.offset;
        peer_answer(peer, &request, &value);
        if (n % 5 == 0)
            peer_dma(peer, 1, OB_CMD_DMA_WRITE, 0, 4, "abcd", OB_HDR_NO_REPLY);
    }
}

static int take_dma(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    (void)opaque;
    CHECK_INT(address, 0);
    CHECK_INT(count, 4);
    CHECK_MEM(data, "abcd", 4);
    return 0;
}

static void *read_until_lost(void *opaque)
{
    struct reader *reader = opaque;
    int rc;

    for (uint64_t i = 0;; i++) {
        uint64_t offset = (uint64_t)reader->number << 32 | i << 3, value = 0;
        rc = ob_client_region_read(reader->client, 0, offset, &value, sizeof(value));
        if (rc < 0)
            break;
        CHECK(value == ~offset);
        rc = ob_client_region_post(reader->client, 0, offset, &value, sizeof(value));
        CHECK(rc == 0 || rc == -ENOTCONN);
    }
    CHECK_INT(rc, -ENOTCONN);
    return NULL;
}

TEST(loop_and_threads, "the-loop-and-many-threads-share-a-connection-until-it-dies")
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    struct peer peer = { 0 };
    struct reader readers[THREADS];
    pthread_t threads[THREADS];

    opt.dma_write = take_dma;
    peer_start(&peer, serve_busily_and_leave, &opt);
    for (unsigned i = 0; i < THREADS; i++) {
        readers[i] = (struct reader){ peer.client, i };
        CHECK_INT(pthread_create(&threads[i], NULL, read_until_lost, &readers[i]), 0);
    }
    struct pollfd pfd = { ob_client_fd(peer.client), POLLIN, 0 };
    do
        CHECK_INT(poll(&pfd, 1, 20000), 1);
    while (ob_client_step(peer.client) == 0);
    for (unsigned i = 0; i < THREADS; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    CHECK_INT(peer.lost, 1);
    peer_stop(&peer);
}

/* ---- Interrupts ---------------------------------------------------------------------------- */

static void expect_set(struct peer *peer, uint32_t flags, uint32_t start, uint32_t count,
                       unsigned nfds)
{
    peer_expect(peer, OB_CMD_DEVICE_SET_IRQS);
    struct ob_wire_set_irqs set = PEER_GET(peer, struct ob_wire_set_irqs);
    CHECK_INT(set.argsz, peer->msg->len);
    CHECK_INT(set.flags, flags);
    CHECK_INT(set.index, OB_PCI_IRQ_MSIX);
    CHECK_INT(set.start, start);
    CHECK_INT(set.count, count);
    CHECK_INT(peer->msg->nfds, nfds);
    peer_close_fds(peer);
    peer_reply(peer, NULL, 0);
}

static void take_irqs(struct peer *peer)
{
    const uint32_t eventfds = OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER;

    expect_set(peer, eventfds, 0, 2, 2);
    expect_set(peer, eventfds, 2, 2, 2); /* vectors 2 to 4 get none, 3 at a time twice over */
    expect_set(peer, eventfds, 4, 1, 1);
    expect_set(peer, eventfds, 2, 3, 0);
    expect_set(peer, eventfds, 5, 1, 1);
    expect_set(peer, OB_IRQ_SET_DATA_NONE | OB_IRQ_SET_ACTION_MASK, 3, 1, 0);
    expect_set(peer, OB_IRQ_SET_DATA_NONE | OB_IRQ_SET_ACTION_UNMASK, 3, 1, 0);
    expect_set(peer, OB_IRQ_SET_DATA_BOOL | OB_IRQ_SET_ACTION_TRIGGER, 1, 2, 0);
    CHECK_INT(peer->msg->len, sizeof(struct ob_wire_set_irqs) + 2);
    expect_set(peer, OB_IRQ_SET_DATA_NONE | OB_IRQ_SET_ACTION_TRIGGER, 0, 0, 0);
    CHECK(!peer_recv(peer));
}

TEST(sets_irqs, "sets-interrupts-in-messages-the-server-takes")
{
    struct peer peer = { .json = "{\"capabilities\":{\"max_msg_fds\":2}}" };
    int event = eventfd(0, EFD_CLOEXEC);
    int fds[6] = { event, event, -1, -1, -1, event };
    const uint8_t bools[2] = { 1, 0 };

    peer_start(&peer, take_irqs, NULL);
    CHECK_INT(ob_client_irq_eventfds(peer.client, OB_PCI_IRQ_MSIX, 0, 6, fds), 0);
    CHECK_INT(ob_client_irq_mask(peer.client, OB_PCI_IRQ_MSIX, 3, true), 0);
    CHECK_INT(ob_client_irq_mask(peer.client, OB_PCI_IRQ_MSIX, 3, false), 0);
    CHECK_INT(ob_client_set_irqs(peer.client, OB_PCI_IRQ_MSIX,
                                 OB_IRQ_SET_DATA_BOOL | OB_IRQ_SET_ACTION_TRIGGER, 1, 2, bools,
                                 NULL),
              0);
    CHECK_INT(ob_client_irq_disable(peer.client, OB_PCI_IRQ_MSIX), 0);
    CHECK_INT(ob_client_set_irqs(peer.client, 0, OB_IRQ_SET_DATA_NONE, 0, 1, NULL, NULL), -EINVAL);
    CHECK_INT(ob_client_irq_eventfds(peer.client, 2, OB_IRQ_VECTORS_MAX, 1, fds), -EINVAL);
    fds[0] = 12345; /* not open: our mistake, and the connection lives */
    CHECK_INT(ob_client_irq_eventfds(peer.client, OB_PCI_IRQ_MSIX, 0, 1, fds), -EBADF);
    CHECK(ob_client_connected(peer.client));
    peer_stop(&peer);
    close(event);
}
