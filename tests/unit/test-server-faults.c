/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Each call of the allocator and of the kernel fails once, in each way it can, while a server is
 * built that has everything a server can have, and while a client sets up and takes back all of it
 * by raw messages: a request that was refused works the second time, or the connection is closed,
 * and nothing is left behind.
 */
#include "channel/ring.h"
#include "faults.h"
#include "harness.h"
#include "outboard/pci.h"
#include "peer.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAGE    4096u
#define VECTORS 4u
#define MAPS    40u

struct setting {
    int memory, ram, eventfds[VECTORS];
    struct ob_server *server;
    struct peer peer;
    bool closed; /* the connection, because of the fault */
    bool failed; /* a request has, and was repeated */
};

/* ---- Building ------------------------------------------------------------------------------ */

static int access_nothing(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    (void)opaque, (void)offset;
    if (!is_write)
        memset(data, 0, count);
    return 0;
}

static int reset(void *opaque)
{
    (void)opaque;
    return 0;
}

static void ring(void *opaque)
{
    (void)opaque;
}

static void ready(void *opaque, uint32_t events)
{
    (void)opaque, (void)events;
}

static int transition(void *opaque, enum ob_mig_state from, enum ob_mig_state to)
{
    (void)opaque, (void)from, (void)to;
    return 0;
}

static int64_t read_state(void *opaque, void *data, uint32_t count)
{
    (void)opaque, (void)data, (void)count;
    return 0;
}

static int write_state(void *opaque, const void *data, uint32_t count)
{
    (void)opaque, (void)data, (void)count;
    return 0;
}

static int furnish(struct setting *s, struct ob_server *server)
{
    static const struct ob_migration_ops migration = { sizeof(migration), transition, read_state,
                                                       write_state };
    static const struct ob_pci_id id = { .vendor = 0x1234, .device = 1 };
    static const struct ob_ioeventfd bells[] = { { 0x100, 4, 0, 0 }, { 0x104, 4, 0, 0 } };
    const struct ob_region registers = {
        .size = PAGE, .flags = OB_REGION_READ | OB_REGION_WRITE, .access = access_nothing, .fd = -1
    };
    const struct ob_region memory = { .size = PAGE,
                                      .flags = OB_REGION_READ | OB_REGION_WRITE | OB_REGION_MMAP,
                                      .fd = s->memory };
    int rc;

    if ((rc = ob_pci_init(server, &id, true, true)) < 0 ||
        (rc = ob_pci_add_msi(server, VECTORS)) < 0 ||
        (rc = ob_pci_add_msix(server, VECTORS, 0, 0x800, 0, 0xc00)) < 0 ||
        (rc = ob_pci_add_bar(server, 0, PAGE, 0)) < 0 ||
        (rc = ob_server_set_region(server, 0, &registers)) < 0 ||
        (rc = ob_server_set_region(server, 1, &memory)) < 0 ||
        (rc = ob_server_add_ioeventfd(server, 0, &bells[0], ring, s)) < 0 ||
        (rc = ob_server_add_ioeventfd(server, 0, &bells[1], ring, server)) < 0 ||
        (rc = ob_server_set_migration(server, &migration)) < 0)
        return rc;
    return ob_server_watch(server, s->eventfds[0], EPOLLIN, ready, s);
}

/* With the connection that it adopts; the other end is *end. NULL: a call has failed. */
static struct ob_server *build(struct setting *s, int *end)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops), .reset = reset };
    struct ob_server *server;
    int fds[2];

    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    faults_enter();
    server = ob_server_new(&ops, s);
    if (server && furnish(s, server) == 0) {
        if (ob_server_listen_fd(server, fds[0]) == 0) {
            faults_leave();
            *end = fds[1];
            return server;
        }
    } else {
        close(fds[0]);
    }
    ob_server_free(server);
    faults_leave();
    close(fds[1]);
    return NULL;
}

/* ---- What the client does ------------------------------------------------------------------ */

/* Steps the server until it has nothing to do; only this may fail. */
static void serve(struct setting *s)
{

    faults_enter();
    while (ob_server_step(s->server) == 0) {
        faults_leave();
        struct pollfd p = { .fd = ob_server_fd(s->server), .events = POLLIN };
        bool more = poll(&p, 1, 0) == 1;
        faults_enter();
        if (!more)
            break;
    }
    faults_leave();
}

/* Sends the request, and again when the fault was why it failed. The reply, or NULL when the
 * connection was closed. */
static struct ob_msg *ask(struct setting *s, uint16_t cmd, const void *payload, size_t len,
                          const int *fds, unsigned nfds)
{
    const struct iovec iov = { (void *)payload, len };

    while (!s->closed) {
        struct ob_wire_hdr hdr = { .msg_id = s->peer.next_id++, .cmd = cmd };
        int64_t deadline = test_now_ms() + 20000;
        struct ob_msg *msg = NULL;
        int rc = ob_channel_queue(&s->peer.ch, &hdr, &iov, len ? 1 : 0, fds, nfds);

        while (rc == 0) {
            serve(s);
            rc = ob_channel_recv(&s->peer.ch, &msg);
            if (test_now_ms() > deadline)
                test_fail(__FILE__, __LINE__, "no answer to %u after: %s", cmd, faults_what());
        }
        if (rc > 0 && msg && !(msg->hdr.flags & OB_HDR_ERROR))
            return msg;
        if (!faults_hit() || (rc > 0 && s->failed))
            test_fail(__FILE__, __LINE__, "command %u: %d, errno %u, after: %s", cmd, rc,
                      msg ? msg->hdr.error_no : 0, faults_what());
        s->closed = rc < 0;
        s->failed = true;
        if (rc > 0)
            ob_msg_free(msg);
    }
    return NULL;
}

static void must(struct setting *s, uint16_t cmd, const void *payload, size_t len, const int *fds,
                 unsigned nfds)
{
    ob_msg_free(ask(s, cmd, payload, len, fds, nfds));
}

static void set_irqs(struct setting *s, uint32_t index, uint32_t action)
{
    struct ob_wire_set_irqs set = { sizeof(set), OB_IRQ_SET_DATA_EVENTFD | action, index, 0,
                                    index == OB_PCI_IRQ_INTX ? 1 : VECTORS };

    must(s, OB_CMD_DEVICE_SET_IRQS, &set, sizeof(set), s->eventfds, set.count);
}

static void map_and_unmap(struct setting *s)
{
    struct ob_wire_dma_unmap all = { sizeof(all), OB_DMA_UNMAP_ALL, 0, 0 };
    struct {
        struct ob_wire_feature head;
        struct ob_wire_logging_start start;
    } log = { { sizeof(log), OB_FEATURE_SET | OB_FEATURE_DMA_LOGGING_START }, { PAGE, 0, 0 } };
    struct ob_dma_ref ref;

    must(s, OB_CMD_DEVICE_FEATURE, &log, sizeof(log), NULL, 0);
    for (uint32_t i = 0; i < MAPS; i++) {
        struct ob_wire_dma_map map = { sizeof(map), OB_DMA_READ | OB_DMA_WRITE, i * PAGE,
                                       (uint64_t)i * 256 * PAGE, PAGE };

        map.flags |= i % 4 == 3 ? OB_DMA_ACCESS_FILE : 0;
        must(s, OB_CMD_DMA_MAP, &map, sizeof(map), &s->ram, i % 4 != 2);
    }
    for (uint32_t i = 0; i < MAPS && !s->closed; i += 4) {
        uint64_t address = (uint64_t)i * 256 * PAGE;
        int rc;

        faults_enter();
        rc = ob_dma_get(s->server, address, PAGE, OB_DMA_WRITE, &ref);
        if (rc == 0)
            ob_dma_put(s->server, &ref);
        faults_leave();
        CHECK(rc == 0 || faults_hit()); /* the client may have been let go */
    }
    must(s, OB_CMD_DMA_UNMAP, &all, sizeof(all), NULL, 0);
}

/* What came with the reply to VERSION, and goes when all is done: a twin that goes ends the
 * connection. */
struct along {
    int twin;
    struct ob_ring *ring;
};

static struct along take_along(struct ob_msg *msg)
{
    const uint32_t head = sizeof(struct ob_wire_version);
    struct along along = { .twin = -1 };
    struct ob_caps caps;
    const char *why;
    int fd;

    if (!msg)
        return along;
    CHECK_INT(ob_caps_parse((char *)msg->payload + head, msg->len - head, true, &caps, &why), 0);
    if (caps.twin_socket)
        along.twin = ob_msg_claim_fd(msg, (unsigned)caps.twin_fd_index);
    if (caps.ring) {
        fd = ob_msg_claim_fd(msg, (unsigned)caps.ring_fd_index);
        along.ring = mmap(NULL, sizeof(*along.ring), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(along.ring != MAP_FAILED);
        close(fd);
    }
    CHECK(faults_hit() || (along.twin >= 0 && along.ring));
    ob_msg_free(msg);
    return along;
}

static void close_along(struct along *along)
{
    if (along->twin >= 0)
        close(along->twin);
    if (along->ring)
        munmap(along->ring, sizeof(*along->ring));
}

/* A command in the ring, and one behind it. */
static void use_ring(struct setting *s, struct ob_ring *ring)
{
    struct ob_wire_region_access access = { 0, 1, 4 };

    if (ring) {
        ring->entries[0].cmd = OB_CMD_REGION_READ;
        ring->entries[0].count = 4;
        atomic_store(&ring->entries[0].state, OB_RING_READY);
    }
    must(s, OB_CMD_REGION_READ, &access, sizeof(access), NULL, 0);
    if (ring && !s->closed) {
        CHECK_INT(ring->entries[0].done, OB_RING_TURN);
        CHECK_INT(ring->entries[0].error, 0);
    }
}

static void use(struct setting *s)
{
    static const char json[] = "{\"capabilities\":{\"max_msg_fds\":16,\"migration\":{},"
                               "\"twin_socket\":{\"supported\":true},"
                               "\"access_ring\":{\"supported\":true}}}";
    uint8_t version[sizeof(struct ob_wire_version) + sizeof(json)] = { 0 };
    uint32_t info[8] = { 4096, 0, 0, 0, 0, 0, 0, 0 };
    struct along along;

    memcpy(version + sizeof(struct ob_wire_version), json, sizeof(json));
    along = take_along(ask(s, OB_CMD_VERSION, version, sizeof(version), NULL, 0));
    for (info[2] = 0; info[2] < 9; info[2]++)
        must(s, OB_CMD_DEVICE_GET_REGION_INFO, info, 32, NULL, 0);
    info[2] = 0;
    must(s, OB_CMD_DEVICE_GET_REGION_IO_FDS, info, 16, NULL, 0);
    use_ring(s, along.ring);
    set_irqs(s, OB_PCI_IRQ_MSIX, OB_IRQ_SET_ACTION_TRIGGER);
    set_irqs(s, OB_PCI_IRQ_INTX, OB_IRQ_SET_ACTION_TRIGGER);
    set_irqs(s, OB_PCI_IRQ_INTX, OB_IRQ_SET_ACTION_UNMASK);
    set_irqs(s, OB_PCI_IRQ_INTX, OB_IRQ_SET_ACTION_UNMASK);
    set_irqs(s, OB_PCI_IRQ_INTX, OB_IRQ_SET_ACTION_MASK);
    map_and_unmap(s);
    must(s, OB_CMD_DEVICE_RESET, NULL, 0, NULL, 0);
    close_along(&along);
}

static void run(void *opaque)
{
    struct setting *s = opaque;
    int end = -1;

    s->closed = s->failed = false;
    s->server = build(s, &end);
    if (!s->server) {
        CHECK(faults_hit());
        s->server = build(s, &end);
    }
    CHECK(s->server);
    peer_adopt(&s->peer, NULL, end);
    use(s);
    ob_channel_fini(&s->peer.ch);
    serve(s);
    faults_enter();
    ob_server_free(s->server);
    faults_leave();
}

TEST_TIMEOUT(all, "server-with-everything-survives-each-failing-call", 120)
{
    struct setting s = { .memory = peer_memfd(PAGE), .ram = peer_memfd(MAPS * PAGE) };

    faults_init();
    for (unsigned i = 0; i < VECTORS; i++)
        s.eventfds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    faults_try_all(FAULTS_MAIN, FAULT_ALL, run, &s);
    for (unsigned i = 0; i < VECTORS; i++)
        close(s.eventfds[i]);
    close(s.memory);
    close(s.ram);
}
