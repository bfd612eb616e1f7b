/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Config space and what else of the library's is behind registers: every width at any offset of the
 * config space, MSI-X table and PBA of the kit (kit.h), together with the interrupts that obey
 * them. The library's functions are called as its dispatcher calls them, without a connection.
 * Operations of one byte and what they need; after each the space is one that software can walk.
 */
#include "kinds.h"
#include "kit.h"
#include "server/internal.h"
#include "tools/pcidump.h"
#include "input.h"
#include "world.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum operation {
    OP_WRITE,   /* region (2 bits: config, config, BAR 0, ROM), offset, value (numbers), bytes (3
                   bits, one more than that) */
    OP_READ,    /* the same, without a value */
    OP_LONG,    /* region, offset, bytes (numbers): written with a pattern, and read */
    OP_IRQS,    /* index, flags, start, count (numbers), fds (1 byte, at most count) */
    OP_TRIGGER, /* index, vector (1 byte each) */
    OP_LEVEL,   /* of INTx */
    OP_RESET,
    OP_STATE, /* saved and set again */
    OP_HOLD,
    OPS
};

static uint32_t take_region(struct input *in)
{
    static const uint32_t regions[4] = { OB_PCI_REGION_CONFIG, OB_PCI_REGION_CONFIG,
                                         OB_PCI_REGION_BAR0, OB_PCI_REGION_ROM };

    return regions[input_u8(in) & 3];
}

/* Most of BAR 0 is the kit's registers; its MSI-X table is what matters here. */
static uint64_t take_offset(struct input *in, uint32_t region)
{
    return input_number(in) + (region == OB_PCI_REGION_BAR0 ? 4096 : 0);
}

static void do_write(struct ob_server *server, struct input *in)
{
    uint32_t region = take_region(in);
    uint64_t offset = take_offset(in, region), value = input_number(in);

    ob_region_access(server, region, offset, &value, 1 + (input_u8(in) & 7), true);
}

static void do_read(struct ob_server *server, struct input *in)
{
    uint32_t region = take_region(in);
    uint64_t offset = take_offset(in, region), value;

    ob_region_access(server, region, offset, &value, 1 + (input_u8(in) & 7), false);
}

static void do_long(struct ob_server *server, struct input *in)
{
    uint32_t region = take_region(in), count;
    uint64_t offset = take_offset(in, region);
    uint8_t *data;

    count = (uint32_t)input_number(in) % 8193;
    data = new_memory(count);
    memset(data, 0x5a, count);
    ob_region_access(server, region, offset, data, count, true);
    ob_region_access(server, region, offset, data, count, false);
    free(data);
}

/* A decoded SET_IRQS, as dispatch.c has it. */
static void do_irqs(struct ob_server *server, struct input *in)
{
    struct ob_wire_set_irqs set = { .argsz = sizeof(set), .index = (uint32_t)input_number(in) };
    static uint8_t payload[sizeof(set) + OB_IRQ_VECTORS_MAX];
    struct ob_msg *msg = new_memory(sizeof(*msg));
    const uint8_t *bools = NULL;
    uint32_t len = sizeof(set);

    set.flags = (uint32_t)input_number(in);
    set.start = (uint32_t)input_number(in);
    set.count = (uint32_t)input_number(in);
    msg->nfds = input_u8(in) % (OB_MSG_FDS_MAX + 1);
    if (set.flags & OB_IRQ_SET_DATA_BOOL)
        len += set.count < OB_IRQ_VECTORS_MAX ? set.count : 0;
    memcpy(payload, &set, sizeof(set));
    if (ob_decode_set_irqs(payload, len, msg->nfds, &set, &bools) < 0)
        msg->nfds = 0;
    for (unsigned i = 0; i < msg->nfds; i++)
        msg->fds[i] = dup(kind_fd(i % 5 == 4 ? KIND_PIPE_WRITE : KIND_EVENTFD2));
    ob_irqs_set(server, &set, bools, msg);
    ob_msg_free(msg);
}

static void do_state(struct ob_server *server)
{
    size_t len = ob_pci_state_size(server);
    uint8_t *state = new_memory(len), *again = new_memory(len);

    ob_pci_state_get(server, state);
    HOLDS(ob_pci_state_ok(server, state, len));
    ob_pci_state_set(server, state);
    ob_pci_state_get(server, again);
    HOLDS(memcmp(state, again, len) == 0);
    free(state);
    free(again);
}

static void operate(struct ob_server *server, struct input *in)
{
    uint8_t byte;

    switch ((enum operation)(input_u8(in) % OPS)) {
    case OP_WRITE:
        do_write(server, in);
        break;
    case OP_READ:
        do_read(server, in);
        break;
    case OP_LONG:
        do_long(server, in);
        break;
    case OP_IRQS:
        do_irqs(server, in);
        break;
    case OP_TRIGGER:
        byte = input_u8(in);
        ob_server_irq_trigger(server, byte, input_u8(in));
        ob_pci_notify(server, byte);
        break;
    case OP_LEVEL:
        ob_server_intx(server, input_u8(in) & 1);
        break;
    case OP_RESET:
        ob_pci_reset(server);
        break;
    case OP_STATE:
        do_state(server);
        break;
    default:
        ob_irqs_hold(server, input_u8(in) & 1);
    }
}

/* Nobody has changed what a device is. */
static void check_space(struct ob_server *server)
{
    uint8_t config[4096];
    const struct pci_space space = { config, sizeof(config) };
    struct pci_caps caps;
    uint32_t id;

    HOLDS(ob_region_access(server, OB_PCI_REGION_CONFIG, 0, config, sizeof(config), false) == 0);
    memcpy(&id, config, sizeof(id));
    pci_decode_caps(&space, &caps);
    HOLDS(id == 0x00020001 && config[8] == 8 && !caps.error[0] && caps.ncaps == 5);
    HOLDS((pci_get32(&space, 0x10) & 0x1fff) == 0 && (pci_get32(&space, 0x14) & 0x3fff) == 8);
    HOLDS((pci_get32(&space, 0x30) & 0x7fe) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size, 0 };
    struct ob_server *server;
    void *kit;

    kinds_open();
    world_begin();
    HOLDS(kit_served.create(0, NULL, NULL, &kit, &server, NULL, 0, NULL, 0) == 0);
    while (input_left(&in)) {
        operate(server, &in);
        check_space(server);
    }
    HOLDS(kit_served.destroy(kit) == 0);
    kinds_reset();
    world_end();
    return 0;
}
