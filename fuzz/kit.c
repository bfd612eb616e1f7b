/* SPDX-License-Identifier: BSD-3-Clause */
#include "kit.h"
#include "devices/state.h"
#include "world.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE  4096u
#define SLOTS 4u

struct kit {
    struct ob_server *server;
    int memory;
    bool stopped;
    uint64_t registers[3]; /* address, length, command */
    struct ob_dma_ref held[SLOTS];
    uint64_t held_len[SLOTS];
    bool held_for_write[SLOTS];
    bool lazy; /* does not let go of what it holds when it is asked to */
    struct ob_state_buffer state;
};

static void put(struct kit *kit, unsigned slot)
{
    if (kit->held[slot].map)
        ob_dma_put(kit->server, &kit->held[slot]);
    kit->held[slot].map = NULL;
}

static void put_all(struct kit *kit)
{
    for (unsigned i = 0; i < SLOTS; i++)
        put(kit, i);
}

static int get(struct kit *kit, unsigned slot, uint32_t prot)
{
    put(kit, slot);
    kit->held_len[slot] = kit->registers[1];
    kit->held_for_write[slot] = prot & OB_DMA_WRITE;
    return ob_dma_get(kit->server, kit->registers[0], kit->registers[1], prot, &kit->held[slot]);
}

static int touch(struct kit *kit, unsigned slot)
{
    uint8_t *bytes = kit->held[slot].ptr;
    volatile uint8_t sum = 0;

    if (!kit->held[slot].map)
        return -ENOENT;
    for (uint64_t i = 0; i < kit->held_len[slot]; i += PAGE / 2)
        sum = (uint8_t)(sum + bytes[i]);
    if (kit->held_for_write[slot] && kit->held_len[slot])
        bytes[kit->held_len[slot] - 1] = sum;
    return 0;
}

static int transfer(struct kit *kit, bool to_client)
{
    uint64_t len = kit->registers[1] % (64 * PAGE);
    uint8_t *buffer = new_memory(len);
    int rc = to_client ? ob_dma_write(kit->server, kit->registers[0], buffer, len)
                       : ob_dma_read(kit->server, kit->registers[0], buffer, len);

    free(buffer);
    return rc;
}

static int execute(struct kit *kit, uint64_t command)
{
    unsigned a = command >> 8 & 0xff, b = command >> 16 & 0xff;

    if (kit->stopped)
        return 0;
    switch ((enum kit_command)((command & 0xff) % KIT_COMMANDS)) {
    case KIT_DMA_READ:
        return transfer(kit, false);
    case KIT_DMA_WRITE:
        return transfer(kit, true);
    case KIT_GET:
        kit->lazy = b & 0x80;
        return get(kit, a % SLOTS, 1 + b % 3);
    case KIT_PUT:
        put(kit, a % SLOTS);
        return 0;
    case KIT_TOUCH:
        return touch(kit, a % SLOTS);
    case KIT_TRIGGER:
        return ob_server_irq_trigger(kit->server, a, b);
    case KIT_NOTIFY:
        return ob_pci_notify(kit->server, a) < 0 ? -ENOENT : 0;
    case KIT_INTX:
        return ob_server_intx(kit->server, a & 1);
    case KIT_FAIL:
        return -(int)(a ? a : EIO);
    default:
        return 0;
    }
}

static int on_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct kit *kit = opaque;
    uint64_t at = offset % sizeof(kit->registers);

    if (offset >= sizeof(kit->registers) || count > sizeof(kit->registers) - at) {
        if (!is_write)
            memset(data, 0xff, count);
        return offset > PAGE / 2 ? -EIO : 0;
    }
    if (!is_write) {
        memcpy(data, (uint8_t *)kit->registers + at, count);
        return 0;
    }
    memcpy((uint8_t *)kit->registers + at, data, count);
    return at + count > 16 ? execute(kit, kit->registers[2]) : 0;
}

static int on_reset(void *opaque)
{
    struct kit *kit = opaque;

    put_all(kit);
    kit->stopped = false;
    ob_state_clear(&kit->state);
    memset(kit->registers, 0, sizeof(kit->registers));
    return 0;
}

static void on_client(void *opaque, bool attached)
{
    if (!attached)
        put_all(opaque);
}

static void on_unmap(void *opaque, uint64_t address, uint64_t size)
{
    struct kit *kit = opaque;

    (void)address, (void)size;
    if (!kit->lazy)
        put_all(kit);
}

static void on_bell(void *opaque)
{
    struct kit *kit = opaque;

    execute(kit, kit->registers[2]);
}

static void no_log(void *opaque, enum ob_log_level level, const char *line)
{
    (void)opaque, (void)level;
    HOLDS(!strchr(line, '\n'));
}

/* ---- Migration ------------------------------------------------------------------------------ */

static int transition(void *opaque, enum ob_mig_state from, enum ob_mig_state to)
{
    struct kit *kit = opaque;

    if (to == OB_MIG_STATE_PRE_COPY || to == OB_MIG_STATE_STOP_COPY) {
        ob_state_clear(&kit->state);
        ob_state_put(&kit->state, kit->registers, sizeof(kit->registers));
    } else if (from == OB_MIG_STATE_RESUMING && kit->state.len) {
        ob_state_take(&kit->state, kit->registers, sizeof(kit->registers));
        if (!ob_state_finished(&kit->state))
            return -EINVAL;
    }
    kit->stopped = to != OB_MIG_STATE_RUNNING && to != OB_MIG_STATE_PRE_COPY;
    if (kit->stopped)
        put_all(kit);
    return 0;
}

static int64_t read_state(void *opaque, void *data, uint32_t count)
{
    return ob_state_read(&((struct kit *)opaque)->state, data, count);
}

static int write_state(void *opaque, const void *data, uint32_t count)
{
    return ob_state_write(&((struct kit *)opaque)->state, data, count, 2 * PAGE);
}

/* ---- Building it ---------------------------------------------------------------------------- */

static void add_regions(struct kit *kit)
{
    static const struct ob_sparse_area areas[] = { { 0, PAGE }, { 2 * PAGE, PAGE } };
    const uint32_t rw = OB_REGION_READ | OB_REGION_WRITE;
    const struct ob_region registers = {
        .size = 2 * PAGE, .flags = rw, .access = on_access, .opaque = kit, .fd = -1
    };
    const struct ob_region sparse = { .size = 4 * PAGE,
                                      .flags = rw | OB_REGION_MMAP,
                                      .fd = kit->memory,
                                      .areas = areas,
                                      .nareas = 2 };
    const struct ob_region whole = {
        .size = 4 * PAGE, .flags = rw | OB_REGION_MMAP, .fd = kit->memory, .fd_offset = 4 * PAGE
    };
    const struct ob_region rom = { .size = PAGE, .flags = OB_REGION_READ, .fd = -1 };
    const struct ob_region own = { .size = 16,
                                   .flags = OB_REGION_WRITE,
                                   .access = on_access,
                                   .opaque = kit,
                                   .fd = -1,
                                   .type = 7 };

    HOLDS(ob_server_set_region(kit->server, 0, &registers) == 0 &&
          ob_server_set_region(kit->server, 1, &sparse) == 0 &&
          ob_server_set_region(kit->server, 2, &whole) == 0 &&
          ob_server_set_region(kit->server, OB_PCI_REGION_ROM, &rom) == 0 &&
          ob_server_set_region(kit->server, OB_PCI_REGIONS, &own) == 0);
}

static void add_pci(struct kit *kit)
{
    static const struct ob_pci_id id = { 1, 2, 3, 4, 0x050607, 8 };
    static const uint8_t body[6] = { 1, 2, 3, 4, 5, 6 }, writable[6] = { 0, 0xff, 0x0f };

    HOLDS(ob_pci_init(kit->server, &id, true, true) == 0);
    HOLDS(ob_pci_add_bar(kit->server, 0, 2 * PAGE, 0) == 0 &&
          ob_pci_add_bar(kit->server, 1, 4 * PAGE, OB_PCI_BAR_PREFETCH) == 0 &&
          ob_pci_add_bar(kit->server, 2, 4 * PAGE, OB_PCI_BAR_64) == 0);
    HOLDS(ob_pci_add_pm(kit->server) > 0 && ob_pci_add_pcie(kit->server) > 0 &&
          ob_pci_add_msi(kit->server, 8) > 0 &&
          ob_pci_add_msix(kit->server, 8, 0, PAGE, 0, 2 * PAGE - 8) > 0 &&
          ob_pci_add_cap(kit->server, 9, body, sizeof(body), writable) > 0);
}

static void build(struct kit *kit)
{
    static const struct ob_ioeventfd bells[] = { { 0x10, 8, 0, 0 },
                                                 { 0x20, 4, 5, OB_IOEVENTFD_DATAMATCH },
                                                 { 0x28, 0, 0, 0 } };
    const struct ob_server_ops ops = { .size = sizeof(ops),
                                       .reset = on_reset,
                                       .client = on_client,
                                       .dma_unmap = on_unmap,
                                       .log = no_log };
    const struct ob_migration_ops migration = { .size = sizeof(migration),
                                                .transition = transition,
                                                .read = read_state,
                                                .write = write_state };

    kit->server = ob_server_new(&ops, kit);
    HOLDS(kit->server);
    kit->memory = memfd_create("kit", MFD_CLOEXEC);
    HOLDS(kit->memory >= 0 && ftruncate(kit->memory, 8 * PAGE) == 0);
    add_regions(kit);
    add_pci(kit);
    for (unsigned i = 0; i < 3; i++)
        HOLDS(ob_server_add_ioeventfd(kit->server, 0, &bells[i], on_bell, kit) == 0);
    HOLDS(ob_server_set_migration(kit->server, &migration) == 0);
}

static int create(int argc, char **argv, ob_log_fn log, void **opaque, struct ob_server **server,
                  char *banner, size_t banner_size, char *errbuf, size_t errbuf_size)
{
    struct kit *kit = new_memory(sizeof(*kit));

    (void)argc, (void)argv, (void)log;
    if (banner_size)
        banner[0] = '\0';
    if (errbuf_size)
        errbuf[0] = '\0';
    build(kit);
    *opaque = kit;
    *server = kit->server;
    return 0;
}

static int destroy(void *opaque)
{
    struct kit *kit = opaque;

    put_all(kit);
    ob_server_free(kit->server);
    ob_state_clear(&kit->state);
    close(kit->memory);
    free(kit);
    return 0;
}

const struct ob_served kit_served = { .name = "kit", .create = create, .destroy = destroy };
