/* SPDX-License-Identifier: BSD-3-Clause */
/* A device that keeps its state over the end of its process: saved and loaded without a client. */
#include "harness.h"
#include "peer.h"

#include <errno.h>
#include <stdio.h>

#include "outboard/pci.h"

#define TABLE  0x800u
#define DEVCTL 8u /* in the PCI Express capability; FLR is bit 15 of it */

struct device {
    struct ob_server *server;
    int pcie;
    char value[8];
    uint32_t pos;
    unsigned changes;
    char arcs[16]; /* that it went, as pairs of digits */
};

static void changed(void *opaque)
{
    ((struct device *)opaque)->changes++;
}

static int reset(void *opaque)
{
    memset(((struct device *)opaque)->value, 0, sizeof(((struct device *)opaque)->value));
    return 0;
}

static int64_t read_value(void *opaque, void *data, uint32_t count)
{
    struct device *d = opaque;
    uint32_t n = (uint32_t)sizeof(d->value) - d->pos;

    n = n < count ? n : count;
    memcpy(data, d->value + d->pos, n);
    d->pos += n;
    return n;
}

static int write_value(void *opaque, const void *data, uint32_t count)
{
    struct device *d = opaque;

    if (count > sizeof(d->value) - d->pos)
        return -EINVAL;
    memcpy(d->value + d->pos, data, count);
    d->pos += count;
    return 0;
}

static int transition(void *opaque, enum ob_mig_state from, enum ob_mig_state to)
{
    struct device *d = opaque;
    size_t len = strlen(d->arcs);

    snprintf(d->arcs + len, sizeof(d->arcs) - len, "%d%d ", from, to);
    return 0;
}

static const struct ob_migration_ops keep = { sizeof(keep), transition, read_value, write_value };

static void build(struct device *d, uint16_t product)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops),
                                              .reset = reset,
                                              .changed = changed };
    const struct ob_pci_id id = { .vendor = 0x1234, .device = product };
    const struct ob_region bar = { .size = 0x1000, .flags = 3, .fd = -1 };

    *d = (struct device){ .value = "value" };
    d->server = ob_server_new(&ops, d);
    CHECK_INT(ob_pci_init(d->server, &id, true, true), 0);
    d->pcie = ob_pci_add_pcie(d->server);
    CHECK(ob_pci_add_msix(d->server, 4, 0, TABLE, 0, 0xc00) > 0);
    CHECK_INT(ob_pci_add_bar(d->server, 0, 0x1000, 0), 0);
    CHECK_INT(ob_server_set_region(d->server, 0, &bar), 0);
    CHECK_INT(ob_server_listen(d->server, peer_socket_path(), 0), 0);
}

static int64_t save(struct device *d, void *data, uint32_t size)
{
    d->pos = 0;
    return ob_server_save(d->server, &keep, data, size);
}

TEST(changed_told, "the-device-learns-of-a-change-before-the-client-gets-its-answer")
{
    const uint16_t command = 6, flr = 0x8000;
    struct device d;
    struct peer peer;
    uint32_t word;

    build(&d, 1);
    peer_attach(&peer, d.server);
    CHECK_INT(peer_write(&peer, OB_PCI_REGION_CONFIG, 4, &command, 2), 0);
    CHECK_INT(d.changes, 1);
    peer_write32(&peer, 0, TABLE, 0xfee00000);
    CHECK_INT(d.changes, 2);
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
    CHECK_INT(d.changes, 3);
    CHECK_INT(peer_write(&peer, OB_PCI_REGION_CONFIG, (uint32_t)d.pcie + DEVCTL, &flr, 2), 0);
    CHECK(d.changes > 3);
    word = d.changes;
    peer_read32(&peer, OB_PCI_REGION_CONFIG, 4);
    peer_read32(&peer, 0, TABLE);
    CHECK_INT(d.changes, word);
    peer_close(&peer);
    ob_server_free(d.server);
}

TEST(saved, "a-device-goes-on-in-another-process-with-the-config-space-it-had")
{
    static uint8_t state[65536], small[65536];
    const uint16_t command = 6;
    struct device a, b;
    struct peer peer;
    int64_t len;

    build(&a, 1);
    peer_attach(&peer, a.server);
    CHECK_INT(peer_write(&peer, OB_PCI_REGION_CONFIG, 4, &command, 2), 0);
    peer_write32(&peer, 0, TABLE, 0xfee00000);
    len = save(&a, state, sizeof(state));
    CHECK(len > 0);
    for (uint32_t size = 0; size < len; size++)
        CHECK_INT(save(&a, small, size), -ENOSPC);
    peer_close(&peer);
    ob_server_free(a.server);

    build(&b, 1);
    memset(b.value, 0, sizeof(b.value));
    CHECK_INT(ob_server_load(b.server, &keep, state, (uint32_t)len), 0);
    CHECK_STR(b.value, "value");
    CHECK_STR(b.arcs, "41 12 ");
    CHECK_INT(ob_pci_command(b.server), 6);
    peer_attach(&peer, b.server);
    CHECK_INT(peer_read32(&peer, 0, TABLE), 0xfee00000);
    CHECK_INT(ob_server_load(b.server, &keep, state, (uint32_t)len), -EBUSY);
    peer_close(&peer);
    ob_server_free(b.server);
}

TEST(refused, "a-saved-state-that-is-cut-changed-or-of-another-device-is-refused")
{
    static uint8_t state[65536];
    struct device d;
    uint32_t len;

    build(&d, 1);
    len = (uint32_t)save(&d, state, sizeof(state));
    ob_server_free(d.server);
    for (uint32_t i = 0; i < len; i += 7) {
        build(&d, 1);
        state[i] ^= 1;
        CHECK_INT(ob_server_load(d.server, &keep, state, len), -EINVAL);
        state[i] ^= 1;
        d.pos = 0;
        CHECK_INT(ob_server_load(d.server, &keep, state, i), -EINVAL);
        CHECK_STR(d.arcs, "");
        ob_server_free(d.server);
    }
    build(&d, 2);
    CHECK_INT(ob_server_load(d.server, &keep, state, len), -EINVAL);
    ob_server_free(d.server);
}
