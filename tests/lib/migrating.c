/* SPDX-License-Identifier: BSD-3-Clause */
/* A device with a state to migrate, and the requests of a client that does it. */
#include "migrating.h"

#include <errno.h>
#include <stdio.h>

#include "outboard/pci.h"

static int transition(void *opaque, enum ob_mig_state from, enum ob_mig_state to)
{
    struct mig_device *d = opaque;
    size_t len = strlen(d->arcs);

    snprintf(d->arcs + len, sizeof(d->arcs) - len, "%d%d ", from, to);
    if (d->fail_to == (int)to)
        return -EIO;
    if (from == OB_MIG_STATE_RESUMING && d->pos && d->pos != MIG_VALUE_BYTES)
        return -EINVAL;
    if (from == OB_MIG_STATE_RESUMING && d->pos)
        memcpy(d->value, d->incoming, MIG_VALUE_BYTES);
    if (from != OB_MIG_STATE_PRE_COPY)
        d->pos = 0;
    d->state = to;
    return 0;
}

static int64_t read_state(void *opaque, void *data, uint32_t count)
{
    struct mig_device *d = opaque;
    uint32_t end = d->state == OB_MIG_STATE_PRE_COPY ? d->pre_len : MIG_VALUE_BYTES;
    uint32_t n = end - d->pos < count ? end - d->pos : count;

    memcpy(data, d->value + d->pos, n);
    d->pos += n;
    return n;
}

static int write_state(void *opaque, const void *data, uint32_t count)
{
    struct mig_device *d = opaque;

    if (count > MIG_VALUE_BYTES - d->pos)
        return -EINVAL;
    memcpy(d->incoming + d->pos, data, count);
    d->pos += count;
    return 0;
}

static int reset(void *opaque)
{
    struct mig_device *d = opaque;

    memset(d->value, 0, MIG_VALUE_BYTES);
    d->pos = 0;
    return 0;
}

static int access_bar(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct mig_device *d = opaque;

    if (is_write)
        memcpy(d->value + offset, data, count);
    else
        memcpy(data, d->value + offset, count);
    return 0;
}

static void ring(void *opaque)
{
    struct mig_device *d = opaque;

    d->rings++;
}

void mig_start(struct mig_device *d, struct peer *peer)
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

    *d = (struct mig_device){ .fail_to = -1 };
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
    snprintf((char *)d->value, MIG_VALUE_BYTES, "state of a device");
    CHECK_INT(ob_server_listen(d->server, peer_socket_path(), 0), 0);
    peer_connect(peer, d->server);
    CHECK_INT(peer_negotiate(peer, MIG_CLIENT), 0);
}

void mig_end(struct mig_device *d, struct peer *peer)
{
    peer_close(peer);
    ob_server_free(d->server);
}

int mig_feature(struct peer *peer, uint32_t flags, const void *in, uint32_t in_len, void *out,
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

int mig_set_state(struct peer *peer, uint32_t state)
{
    struct ob_wire_mig_state wire = { state, 0 }, back;

    return mig_feature(peer, OB_FEATURE_SET | OB_FEATURE_MIG_DEVICE_STATE, &wire, sizeof(wire),
                       &back, sizeof(back));
}

unsigned mig_get_state(struct peer *peer)
{
    struct ob_wire_mig_state wire;

    CHECK_INT(
        mig_feature(peer, OB_FEATURE_GET | OB_FEATURE_MIG_DEVICE_STATE, "", 0, &wire, sizeof(wire)),
        0);
    return wire.device_state;
}

int64_t mig_read(struct peer *peer, uint8_t *data, uint32_t count)
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

int mig_write(struct peer *peer, const uint8_t *data, uint32_t count)
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

uint32_t mig_read_all(struct peer *peer, uint8_t *stream, uint32_t piece)
{
    uint32_t len = 0;
    int64_t n;

    do {
        CHECK(len + piece <= MIG_STREAM_MAX);
        n = mig_read(peer, stream + len, piece);
        CHECK(n >= 0);
        len += (uint32_t)n;
    } while (n == piece);
    CHECK_INT(mig_read(peer, stream + len, 1), 0);
    return len;
}
