/* SPDX-License-Identifier: BSD-3-Clause */
/* The migration of a device: its states, and its state as a stream. */
#include "harness.h"
#include "peer.h"

#include <errno.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "outboard/pci.h"

#define VALUE_BYTES 200000u
#define NEW_CLIENT  "{\"capabilities\":{\"migration\":{\"pgsize\":4096}}}"

/* A device whose state is a row of bytes. */
struct device {
    struct ob_server *server;
    uint8_t value[VALUE_BYTES], incoming[VALUE_BYTES];
    uint32_t pos;     /* of the transfer */
    char arcs[64];    /* that it went, as pairs of digits */
    int fail_to;      /* the transition to this state fails */
    uint32_t pre_len; /* bytes that it gives away while it runs */
    enum ob_mig_state state;
    unsigned rings; /* of its ioeventfd */
};

static int transition(void *opaque, enum ob_mig_state from, enum ob_mig_state to)
{
    struct device *d = opaque;
    size_t len = strlen(d->arcs);

    snprintf(d->arcs + len, sizeof(d->arcs) - len, "%d%d ", from, to);
    if (d->fail_to == (int)to)
        return -EIO;
    if (from == OB_MIG_STATE_RESUMING && d->pos && d->pos != VALUE_BYTES)
        return -EINVAL;
    if (from == OB_MIG_STATE_RESUMING && d->pos)
        memcpy(d->value, d->incoming, VALUE_BYTES);
    if (from != OB_MIG_STATE_PRE_COPY)
        d->pos = 0;
    d->state = to;
    return 0;
}

static int64_t read_state(void *opaque, void *data, uint32_t count)
{
    struct device *d = opaque;
    uint32_t end = d->state == OB_MIG_STATE_PRE_COPY ? d->pre_len : VALUE_BYTES;
    uint32_t n = end - d->pos < count ? end - d->pos : count;

    memcpy(data, d->value + d->pos, n);
    d->pos += n;
    return n;
}

static int write_state(void *opaque, const void *data, uint32_t count)
{
    struct device *d = opaque;

    if (count > VALUE_BYTES - d->pos)
        return -EINVAL;
    memcpy(d->incoming + d->pos, data, count);
    d->pos += count;
    return 0;
}

static int reset(void *opaque)
{
    struct device *d = opaque;

    memset(d->value, 0, VALUE_BYTES);
    d->pos = 0;
    return 0;
}

static int access_bar(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct device *d = opaque;

    if (is_write)
        memcpy(d->value + offset, data, count);
    else
        memcpy(data, d->value + offset, count);
    return 0;
}

static void ring(void *opaque)
{
    struct device *d = opaque;

    d->rings++;
}

static void start(struct device *d, struct peer *peer)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops), .reset = reset };
    static const struct ob_migration_ops migration = { sizeof(migration), transition, read_state,
                                                       write_state };
    static const struct ob_pci_id id = { .vendor = 0x1234, .device = 1 };
    static const struct ob_ioeventfd bell = { .offset = 0x100, .size = 4 };
    struct ob_region bar = { .size = 0x1000,
                             .flags = OB_REGION_READ | OB_REGION_WRITE,
                             .access = access_bar,
                             .opaque = d,
                             .fd = -1 };

    *d = (struct device){ .fail_to = -1 };
    d->server = ob_server_new(&ops, d);
    CHECK_INT(ob_pci_init(d->server, &id, true, true), 0);
    CHECK(ob_pci_add_pm(d->server) > 0);
    CHECK(ob_pci_add_msi(d->server, 4) > 0);
    CHECK(ob_pci_add_pcie(d->server) > 0);
    CHECK(ob_pci_add_msix(d->server, 20, 0, 0x800, 0, 0xc00) > 0);
    CHECK_INT(ob_pci_add_bar(d->server, 0, 0x1000, 0), 0);
    CHECK_INT(ob_server_set_region(d->server, 0, &bar), 0);
    CHECK_INT(ob_server_add_ioeventfd(d->server, 0, &bell, ring, d), 0);
    CHECK_INT(ob_server_set_migration(d->server, &migration), 0);
    CHECK_INT(ob_server_set_migration(d->server, &migration), -EINVAL);
    snprintf((char *)d->value, VALUE_BYTES, "state of a device");
    CHECK_INT(ob_server_listen(d->server, peer_socket_path(), 0), 0);
    peer_connect(peer, d->server);
    CHECK_INT(peer_negotiate(peer, NEW_CLIENT), 0);
}

static void end(struct device *d, struct peer *peer)
{
    peer_close(peer);
    ob_server_free(d->server);
}

/* DEVICE_FEATURE with data of in bytes; the data of the answer, of out bytes. */
static int feature(struct peer *peer, uint32_t flags, const void *in, uint32_t in_len, void *out,
                   uint32_t out_len)
{
    struct ob_wire_feature head = { .flags = flags };
    uint8_t payload[64];
    struct ob_msg *reply;
    int rc;

    head.argsz = (uint32_t)sizeof(head) + (in_len > out_len ? in_len : out_len);
    memcpy(payload, &head, sizeof(head));
    memcpy(payload + sizeof(head), in, in_len);
    rc = peer_call(peer, OB_CMD_DEVICE_FEATURE, payload, sizeof(head) + in_len, &reply);
    if (rc < 0)
        return rc;
    CHECK_INT(reply->len, sizeof(head) + out_len);
    memcpy(&head, reply->payload, sizeof(head));
    CHECK_INT(head.flags, flags);
    if (flags & OB_FEATURE_GET && !(flags & OB_FEATURE_PROBE))
        CHECK_INT(head.argsz, reply->len);
    memcpy(out, reply->payload + sizeof(head), out_len);
    ob_msg_free(reply);
    return 0;
}

static int set_state(struct peer *peer, uint32_t state)
{
    struct ob_wire_mig_state wire = { state, 0 }, back;

    return feature(peer, OB_FEATURE_SET | OB_FEATURE_MIG_DEVICE_STATE, &wire, sizeof(wire), &back,
                   sizeof(back));
}

static unsigned get_state(struct peer *peer)
{
    struct ob_wire_mig_state wire;

    CHECK_INT(
        feature(peer, OB_FEATURE_GET | OB_FEATURE_MIG_DEVICE_STATE, "", 0, &wire, sizeof(wire)), 0);
    return wire.device_state;
}

/* Bytes that came, at most count; or the error. */
static int64_t mig_read(struct peer *peer, uint8_t *data, uint32_t count)
{
    struct ob_wire_mig_data wire = { (uint32_t)sizeof(wire) + count, count };
    struct ob_msg *reply;
    int rc = peer_call(peer, OB_CMD_MIG_DATA_READ, &wire, sizeof(wire), &reply);

    if (rc < 0)
        return rc;
    memcpy(&wire, reply->payload, sizeof(wire));
    CHECK_INT(reply->len, sizeof(wire) + wire.size);
    CHECK_INT(wire.argsz, reply->len);
    CHECK(wire.size <= count);
    memcpy(data, reply->payload + sizeof(wire), wire.size);
    ob_msg_free(reply);
    return wire.size;
}

static int mig_write(struct peer *peer, const uint8_t *data, uint32_t count)
{
    struct ob_wire_mig_data wire = { (uint32_t)sizeof(wire) + count, count };
    uint8_t *payload = malloc(wire.argsz);
    int rc;

    CHECK(payload);
    memcpy(payload, &wire, sizeof(wire));
    memcpy(payload + sizeof(wire), data, count);
    rc = peer_call(peer, OB_CMD_MIG_DATA_WRITE, payload, wire.argsz, NULL);
    free(payload);
    return rc;
}

#define STREAM_MAX (VALUE_BYTES + 65536u)

/* All of the stream, in pieces of this size. */
static uint32_t read_all(struct peer *peer, uint8_t *stream, uint32_t piece)
{
    uint32_t len = 0;
    int64_t n;

    do {
        CHECK(len + piece <= STREAM_MAX);
        n = mig_read(peer, stream + len, piece);
        CHECK(n >= 0);
        len += (uint32_t)n;
    } while (n == piece);
    CHECK_INT(mig_read(peer, stream + len, 1), 0);
    return len;
}

/* ---- States ------------------------------------------------------------------------------- */

/* By state and goal: the arcs on the way, "" nothing to do, NULL refused. */
static const char *const ways[8][8] = {
    [1] = { [1] = "", [2] = "12 ", [3] = "13 ", [4] = "14 ", [6] = "12 26 " },
    [2] = { [1] = "21 ", [2] = "", [3] = "21 13 ", [4] = "21 14 ", [6] = "26 " },
    [3] = { [1] = "31 ", [2] = "31 12 ", [3] = "", [4] = "31 14 " },
    [4] = { [1] = "41 ", [2] = "41 12 ", [3] = "41 13 ", [4] = "", [6] = "41 12 26 " },
    [6] = { [1] = "62 21 ", [2] = "62 ", [3] = "63 ", [4] = "62 21 14 ", [6] = "" },
};

TEST(states, "every-pair-of-states-goes-its-way-or-is-refused")
{
    static struct device d;
    struct peer peer;

    start(&d, &peer);
    for (unsigned from = 1; from < 8; from++) {
        for (unsigned to = 0; to < 9; to++) {
            if (from == 5 || from == 7)
                continue;
            CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
            CHECK_INT(get_state(&peer), OB_MIG_STATE_RUNNING);
            CHECK_INT(set_state(&peer, from), 0);
            d.arcs[0] = '\0';
            if (to < 8 && ways[from][to]) {
                CHECK_INT(set_state(&peer, to), 0);
                CHECK_STR(d.arcs, ways[from][to]);
                CHECK_INT(get_state(&peer), to);
            } else {
                CHECK_INT(set_state(&peer, to), -EINVAL);
                CHECK_STR(d.arcs, "");
                CHECK_INT(get_state(&peer), from);
            }
        }
    }
    end(&d, &peer);
}

TEST(fails, "a-transition-that-fails-leaves-the-last-state-that-was-reached")
{
    static struct device d;
    struct peer peer;
    uint8_t byte;

    start(&d, &peer);
    d.fail_to = OB_MIG_STATE_STOP_COPY;
    CHECK_INT(set_state(&peer, OB_MIG_STATE_STOP_COPY), -EIO);
    CHECK_INT(get_state(&peer), OB_MIG_STATE_STOP);
    CHECK_INT(mig_read(&peer, &byte, 1), -EINVAL);
    d.fail_to = -1;
    CHECK_INT(set_state(&peer, OB_MIG_STATE_STOP_COPY), 0);
    CHECK_INT(mig_read(&peer, &byte, 1), 1);
    end(&d, &peer);
}

TEST(error, "only-a-reset-leads-out-of-error")
{
    static struct device d;
    struct peer peer;

    start(&d, &peer);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_RESUMING), 0);
    CHECK_INT(mig_write(&peer, (const uint8_t *)"no such stream..", 16), -EINVAL);
    CHECK_INT(mig_write(&peer, (const uint8_t *)"OBSTATE1\0\0\0\0\0\0\0\0", 16), -EINVAL);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_STOP), -EINVAL);
    CHECK_INT(get_state(&peer), OB_MIG_STATE_ERROR);
    for (unsigned to = 0; to < 8; to++)
        CHECK_INT(set_state(&peer, to), -EINVAL);
    CHECK_STR((char *)d.value, "state of a device");
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
    CHECK_INT(get_state(&peer), OB_MIG_STATE_RUNNING);
    end(&d, &peer);
}

TEST(commands, "all-commands-work-in-all-states-but-writes-in-stop-copy")
{
    static const unsigned states[] = { 1, 2, 3, 4, 6 };
    static struct device d;
    struct peer peer;

    start(&d, &peer);
    for (unsigned i = 0; i < 5; i++) {
        struct ob_wire_device_info info = { .argsz = sizeof(info) };
        uint32_t value = 7;

        CHECK_INT(set_state(&peer, states[i]), 0);
        CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info), NULL), 0);
        CHECK_INT(peer_map(&peer, 0x1000, 0x1000, OB_DMA_READ, -1, 0), 0);
        CHECK_INT(peer_unmap(&peer, 0x1000, 0x1000, 0), 0);
        CHECK_INT(peer_read(&peer, 0, 0, &value, 4), 0);
        CHECK_INT(peer_write(&peer, 0, 0, &value, 4), states[i] == 3 ? -EINVAL : 0);
        CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
    }
    end(&d, &peer);
}

TEST(lost, "a-client-that-leaves-takes-the-transfer-along")
{
    static const struct {
        unsigned before, after;
    } cases[] = { { 1, 2 }, { 2, 2 }, { 3, 2 }, { 6, 2 }, { 4, 0 } };
    static struct device d;

    for (unsigned i = 0; i < 5; i++) {
        struct peer peer;

        start(&d, &peer);
        CHECK_INT(set_state(&peer, cases[i].before), 0);
        peer_close(&peer);
        peer_connect(&peer, d.server);
        CHECK_INT(peer_negotiate(&peer, NEW_CLIENT), 0);
        CHECK_INT(get_state(&peer), cases[i].after);
        CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
        CHECK_INT(get_state(&peer), OB_MIG_STATE_RUNNING);
        end(&d, &peer);
    }
}

TEST(held, "interrupts-wait-until-the-device-runs-again")
{
    static struct device d;
    struct peer peer;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    start(&d, &peer);
    CHECK_INT(peer_set_irqs(&peer, OB_PCI_IRQ_MSIX,
                            OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER, 3, 1, NULL, &fd,
                            1),
              0);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_PRE_COPY), 0);
    CHECK_INT(ob_server_irq_trigger(d.server, OB_PCI_IRQ_MSIX, 3), 0);
    CHECK_INT(peer_eventfd_take(fd), 1);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_STOP_COPY), 0);
    CHECK_INT(ob_server_irq_trigger(d.server, OB_PCI_IRQ_MSIX, 3), 0);
    CHECK_INT(peer_eventfd_take(fd), 0);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_RUNNING), 0);
    CHECK_INT(peer_eventfd_take(fd), 1);
    end(&d, &peer);
    close(fd);
}

TEST(bell, "an-ioeventfd-waits-while-the-state-is-read")
{
    struct ob_wire_region_io_fds ask = { .argsz = 4096 };
    const uint64_t one = 1;
    static struct device d;
    struct ob_msg *reply;
    struct peer peer;
    int fd;

    start(&d, &peer);
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_REGION_IO_FDS, &ask, sizeof(ask), &reply), 0);
    fd = ob_msg_claim_fd(reply, 0);
    ob_msg_free(reply);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_STOP_COPY), 0);
    CHECK_INT(write(fd, &one, sizeof(one)), sizeof(one));
    peer_settle(d.server);
    CHECK_INT(d.rings, 0);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_STOP), 0);
    CHECK_INT(d.rings, 1);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_RUNNING), 0);
    CHECK_INT(write(fd, &one, sizeof(one)), sizeof(one));
    peer_settle(d.server);
    CHECK_INT(d.rings, 2);
    close(fd);
    end(&d, &peer);
}

/* What QEMU's client can receive is as long as what it sends. */
TEST(negotiated, "migration-is-said-to-a-client-that-said-it-in-what-qemu-can-receive")
{
    static const char all[] = "{\"capabilities\":{\"max_msg_fds\":16,\"write_multiple\":true,"
                              "\"twin_socket\":{\"supported\":true},"
                              "\"migration\":{\"pgsize\":4096,\"max_bitmap_size\":268435456}}}";
    static const char *const said[] = { all, "{\"capabilities\":{}}" };
    static struct device d;
    struct peer peer;

    start(&d, &peer);
    for (unsigned i = 0; i < 2; i++) {
        uint8_t payload[512] = { 0 };
        struct ob_msg *reply;
        const char *json;

        peer_close(&peer);
        peer_connect(&peer, d.server);
        memcpy(payload + 4, said[i], strlen(said[i]));
        CHECK_INT(peer_call(&peer, OB_CMD_VERSION, payload, 4 + strlen(said[i]) + 1, &reply), 0);
        json = (const char *)reply->payload + 4;
        CHECK_INT(reply->payload[reply->len - 1], 0);
        CHECK(reply->hdr.msg_size <= 214);
        CHECK_INT(strstr(json, "\"migration\":{\"pgsize\":4096,\"max_bitmap_size\":1048576}") !=
                      NULL,
                  i == 0);
        CHECK_INT(strstr(json, "migration") != NULL, i == 0);
        ob_msg_free(reply);
    }
    end(&d, &peer);
}

/* ---- Features ----------------------------------------------------------------------------- */

TEST(probe, "probe-tells-which-methods-there-are")
{
    static const uint32_t there[] = {
        OB_FEATURE_MIGRATION | OB_FEATURE_GET,
        OB_FEATURE_MIG_DEVICE_STATE | OB_FEATURE_GET | OB_FEATURE_SET,
        OB_FEATURE_DMA_LOGGING_START | OB_FEATURE_SET,
        OB_FEATURE_DMA_LOGGING_STOP | OB_FEATURE_SET,
        OB_FEATURE_DMA_LOGGING_REPORT | OB_FEATURE_GET,
    };
    static struct device d;
    struct peer peer;
    uint64_t flags = 0;
    uint8_t none;

    start(&d, &peer);
    for (uint32_t f = 0; f < 12; f++)
        for (uint32_t methods = 1; methods < 4; methods++) {
            uint32_t asked = f | methods << 16;
            bool has = false;

            for (unsigned i = 0; i < 5; i++)
                has |= (there[i] & OB_FEATURE_MASK) == f && !(asked & ~there[i]);
            CHECK_INT(feature(&peer, asked | OB_FEATURE_PROBE, "", 0, &none, 0), has ? 0 : -EINVAL);
        }
    CHECK_INT(feature(&peer, OB_FEATURE_MIGRATION | OB_FEATURE_GET, "", 0, &flags, 8), 0);
    CHECK_INT(flags, OB_MIG_STOP_COPY | OB_MIG_PRE_COPY);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_STOP), 0);
    end(&d, &peer);
}

/* QEMU's client sends as much as it wants to receive (Q-7 of its quirks). */
TEST(padded, "a-get-may-come-with-room-for-its-answer")
{
    static struct device d;
    struct peer peer;
    uint64_t flags = 0, room = 0;

    start(&d, &peer);
    CHECK_INT(feature(&peer, OB_FEATURE_MIGRATION | OB_FEATURE_GET, &room, 8, &flags, 8), 0);
    CHECK_INT(flags, OB_MIG_STOP_COPY | OB_MIG_PRE_COPY);
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_FEATURE,
                        &(struct ob_wire_feature){ 15, OB_FEATURE_MIGRATION | OB_FEATURE_GET }, 8,
                        NULL),
              -EINVAL);
    end(&d, &peer);
}

TEST(without, "a-device-that-cannot-migrate-says-so")
{
    struct memory_device memory;
    struct ob_server *server = memory_device_listen(&memory);
    struct ob_wire_mig_data wire = { 9, 1 };
    struct peer peer;
    uint64_t flags;
    uint8_t byte = 0;

    peer_connect(&peer, server);
    CHECK_INT(peer_negotiate(&peer, NEW_CLIENT), 0);
    CHECK_INT(feature(&peer, OB_FEATURE_MIGRATION | OB_FEATURE_GET, "", 0, &flags, 8), -EINVAL);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_STOP), -EINVAL);
    CHECK_INT(peer_call(&peer, OB_CMD_MIG_DATA_READ, &wire, sizeof(wire), NULL), -EINVAL);
    CHECK_INT(mig_write(&peer, &byte, 1), -EINVAL);
    peer_close(&peer);
    ob_server_free(server);
}

/* ---- The stream --------------------------------------------------------------------------- */

static uint8_t stream[STREAM_MAX], copy[STREAM_MAX];

/* Saves d's state into stream. */
static uint32_t save(struct peer *peer, uint32_t piece)
{
    CHECK_INT(set_state(peer, OB_MIG_STATE_STOP_COPY), 0);
    return read_all(peer, stream, piece);
}

TEST_TIMEOUT(carried, "state-config-space-and-pending-interrupts-are-carried-over", 60)
{
    static struct device a, b;
    uint32_t len, command = 6, entry[4] = { 1, 2, 3, 0 };
    struct peer pa, pb;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    start(&a, &pa);
    unlink(peer_socket_path());
    start(&b, &pb);
    memset(a.value + 4096, 0x5a, VALUE_BYTES - 4096);
    CHECK_INT(peer_write(&pa, OB_PCI_REGION_CONFIG, 4, &command, 2), 0);
    CHECK_INT(peer_write(&pa, 0, 0x800 + 16 * 5, entry, 16), 0);
    CHECK_INT(peer_set_irqs(&pa, OB_PCI_IRQ_MSIX,
                            OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER, 5, 1, NULL, &fd,
                            1),
              0);
    CHECK_INT(set_state(&pa, OB_MIG_STATE_STOP), 0);
    CHECK_INT(ob_server_irq_trigger(a.server, OB_PCI_IRQ_MSIX, 5), 0);
    len = save(&pa, 7777);

    CHECK_INT(set_state(&pb, OB_MIG_STATE_RESUMING), 0);
    for (uint32_t at = 0, n; at < len; at += n) {
        n = len - at < 1001 ? len - at : 1001;
        CHECK_INT(mig_write(&pb, stream + at, n), 0);
    }
    CHECK_INT(peer_eventfd_take(fd), 0);
    CHECK_INT(peer_set_irqs(&pb, OB_PCI_IRQ_MSIX,
                            OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER, 5, 1, NULL, &fd,
                            1),
              0);
    CHECK_INT(set_state(&pb, OB_MIG_STATE_STOP), 0);
    CHECK_INT(peer_eventfd_take(fd), 0);
    CHECK_INT(set_state(&pb, OB_MIG_STATE_RUNNING), 0);
    CHECK_INT(peer_eventfd_take(fd), 1);
    CHECK_MEM(a.value, b.value, VALUE_BYTES);
    CHECK_INT(ob_pci_command(b.server), 6);
    memset(entry, 0, sizeof(entry));
    CHECK_INT(peer_read(&pb, 0, 0x800 + 16 * 5, entry, 16), 0);
    CHECK_INT(entry[2], 3);
    end(&a, &pa);
    end(&b, &pb);
    close(fd);
}

TEST(precopy, "what-was-read-while-it-ran-is-the-start-of-the-stream")
{
    static struct device d;
    uint32_t len = 0;
    struct peer peer;
    int64_t n;

    start(&d, &peer);
    d.pre_len = 100000;
    CHECK_INT(set_state(&peer, OB_MIG_STATE_PRE_COPY), 0);
    while ((n = mig_read(&peer, stream + len, 3000)) == 3000)
        len += 3000;
    CHECK(n >= 0);
    len += (uint32_t)n;
    CHECK(len > 100000 && len < 101000);
    CHECK_INT(mig_read(&peer, stream + len, 3000), 0);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_STOP_COPY), 0);
    len += read_all(&peer, stream + len, 3000);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_RESUMING), 0);
    memset(d.value, 0, VALUE_BYTES);
    CHECK_INT(mig_write(&peer, stream, len), 0);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_RUNNING), 0);
    CHECK_STR((char *)d.value, "state of a device");
    end(&d, &peer);
}

/* Writes len bytes of copy[], and whether they were taken as a state. */
static bool loads(struct peer *peer, uint32_t len)
{
    int rc;

    CHECK_INT(peer_call(peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
    CHECK_INT(set_state(peer, OB_MIG_STATE_RESUMING), 0);
    rc = mig_write(peer, copy, len);
    if (set_state(peer, OB_MIG_STATE_STOP) == 0)
        return rc == 0;
    CHECK_INT(get_state(peer), OB_MIG_STATE_ERROR);
    return false;
}

TEST_TIMEOUT(damaged, "a-stream-that-is-cut-or-changed-anywhere-is-refused", 60)
{
    static struct device d;
    struct peer peer;
    uint32_t len;

    start(&d, &peer);
    len = save(&peer, 65536);
    memcpy(copy, stream, len);
    CHECK(loads(&peer, len));
    CHECK_STR((char *)d.value, "state of a device");
    for (uint32_t at = 0; at < len; at += at < 100 || at + 5000 > len ? 1 + at / 50 : 997) {
        memcpy(copy, stream, len);
        copy[at] ^= (uint8_t)(1 + at % 255);
        CHECK(!loads(&peer, len));
        CHECK_INT(d.value[0], 0);
        copy[at] = stream[at];
        if (at > 0)
            CHECK(!loads(&peer, at));
    }
    CHECK(!loads(&peer, len + 1));
    CHECK(loads(&peer, len));
    end(&d, &peer);
}

TEST(sizes, "reads-and-writes-obey-the-sizes-that-were-agreed")
{
    static struct device d;
    struct ob_wire_mig_data wire;
    struct peer peer;

    start(&d, &peer);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_STOP_COPY), 0);
    wire = (struct ob_wire_mig_data){ OB_DATA_XFER_MAX + 9, OB_DATA_XFER_MAX + 1 };
    CHECK_INT(peer_call(&peer, OB_CMD_MIG_DATA_READ, &wire, sizeof(wire), NULL), -EINVAL);
    wire = (struct ob_wire_mig_data){ 17, 10 };
    CHECK_INT(peer_call(&peer, OB_CMD_MIG_DATA_READ, &wire, sizeof(wire), NULL), -EINVAL);
    wire = (struct ob_wire_mig_data){ 8, 0 };
    CHECK_INT(peer_call(&peer, OB_CMD_MIG_DATA_READ, &wire, sizeof(wire), NULL), 0);
    CHECK_INT(set_state(&peer, OB_MIG_STATE_RESUMING), 0);
    wire = (struct ob_wire_mig_data){ 9, 1 };
    CHECK_INT(peer_call(&peer, OB_CMD_MIG_DATA_WRITE, &wire, sizeof(wire), NULL), -EINVAL);
    CHECK_INT(peer_call(&peer, OB_CMD_MIG_DATA_READ, &wire, sizeof(wire), NULL), -EINVAL);
    end(&d, &peer);
}
