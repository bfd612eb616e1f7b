/* SPDX-License-Identifier: BSD-3-Clause */
#include "model.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "harness.h"
#include "model_state.h"
#include "outboard/pci.h"

static const char *const names[] = {
#define MODEL_NAME(name) #name,
    MODEL_OPS(MODEL_NAME)
#undef MODEL_NAME
};

const char *model_op_name(uint32_t op)
{
    return names[op];
}

/* ---- The device ---------------------------------------------------------------------------- */

static int access_memory(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct world *w = opaque;

    if (w->ask)
        atomic_fetch_or(&w->ask->state, OB_RING_ASKED);
    w->ask = NULL;
    if (offset + count > MODEL_FAULTY)
        return -EIO;
    if (is_write)
        memcpy(w->memory + offset, data, count);
    else
        memcpy(data, w->memory + offset, count);
    return 0;
}

static int access_constant(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    (void)opaque, (void)is_write;
    for (uint32_t i = 0; i < count; i++)
        ((uint8_t *)data)[i] = (uint8_t)(offset + i);
    return 0;
}

static int reset(void *opaque)
{
    struct world *w = opaque;

    memset(w->memory, 0, sizeof(w->memory));
    ob_server_intx(w->server, false);
    return 0;
}

static void on_log(void *opaque, enum ob_log_level level, const char *line)
{
    (void)level;
    if (strstr(line, "late reply"))
        model_ring_late(opaque);
}

static int transition(void *opaque, enum ob_mig_state from, enum ob_mig_state to)
{
    struct world *w = opaque;

    if (from == OB_MIG_STATE_RESUMING && w->moved) {
        if (w->moved != MODEL_STATE)
            return -EINVAL;
        memcpy(w->memory, w->incoming, MODEL_STATE);
    }
    w->moved = 0;
    w->arcs = model_arc(w->arcs, from, to);
    return 0;
}

static int64_t read_state(void *opaque, void *data, uint32_t count)
{
    struct world *w = opaque;
    uint32_t left = w->m.state == OB_MIG_STATE_STOP_COPY ? MODEL_STATE - w->moved : 0;
    uint32_t n = left < count ? left : count;

    memcpy(data, w->memory + w->moved, n);
    w->moved += n;
    return n;
}

static int write_state(void *opaque, const void *data, uint32_t count)
{
    struct world *w = opaque;

    if (count > MODEL_STATE - w->moved)
        return -EINVAL;
    memcpy(w->incoming + w->moved, data, count);
    w->moved += count;
    return 0;
}

static void build(struct world *w)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops), .reset = reset, .log = on_log };
    static const struct ob_migration_ops migration = { sizeof(migration), transition, read_state,
                                                       write_state };
    const uint32_t rw = OB_REGION_READ | OB_REGION_WRITE;
    const struct ob_region regions[] = {
        { .size = MODEL_MEMORY, .flags = rw, .access = access_memory, .opaque = w, .fd = -1 },
        { .size = MODEL_FILE, .flags = rw | OB_REGION_MMAP, .fd = w->file_fd },
        { .size = 256, .flags = OB_REGION_READ, .access = access_constant, .fd = -1 },
        { .size = 64, .flags = OB_REGION_WRITE, .access = access_memory, .opaque = w, .fd = -1 },
    };

    w->server = peer_server_new(&ops, w);
    for (uint32_t i = 0; i < 4; i++)
        CHECK_INT(ob_server_set_region(w->server, i, &regions[i]), 0);
    CHECK_INT(ob_server_set_irq(w->server, OB_PCI_IRQ_INTX, 1,
                                OB_IRQ_EVENTFD | OB_IRQ_MASKABLE | OB_IRQ_AUTOMASKED),
              0);
    CHECK_INT(ob_server_set_irq(w->server, OB_PCI_IRQ_MSIX, MODEL_VECTORS,
                                OB_IRQ_EVENTFD | OB_IRQ_MASKABLE),
              0);
    CHECK_INT(ob_server_set_migration(w->server, &migration), 0);
    model_attach(w);
}

/* ---- Comparing ----------------------------------------------------------------------------- */

static void compare_memory(struct world *w)
{
    uint8_t file[MODEL_FILE];

    CHECK_MEM(w->ram, w->m.ram, MODEL_RAM);
    CHECK_MEM(w->memory, w->m.memory, MODEL_MEMORY);
    CHECK_INT(pread(w->file_fd, file, MODEL_FILE, 0), MODEL_FILE);
    CHECK_MEM(file, w->m.file, MODEL_FILE);
}

static void compare_irqs(struct world *w)
{
    uint32_t armed = 0;

    for (unsigned i = 0; i < MODEL_VECTORS; i++)
        armed += w->m.msix.vectors[i].armed;
    CHECK_INT(ob_server_irq_armed(w->server, OB_PCI_IRQ_MSIX), armed);
    CHECK_INT(ob_server_irq_armed(w->server, OB_PCI_IRQ_INTX), w->m.intx.vectors[0].armed);
    CHECK_INT(peer_eventfd_take(w->intx_fd), w->m.intx.vectors[0].signals);
    w->m.intx.vectors[0].signals = 0;
    for (unsigned i = 0; i < MODEL_VECTORS; i++) {
        CHECK_INT(peer_eventfd_take(w->msix_fds[i]), w->m.msix.vectors[i].signals);
        w->m.msix.vectors[i].signals = 0;
    }
}

/* For reading only: what might be written counts as written. */
static void compare_addresses(struct world *w)
{
    for (uint32_t page = 0; page < MODEL_PAGES; page++) {
        uint64_t address = MODEL_BASE + page * MODEL_PAGE + page;
        struct ob_dma_ref ref;
        int rc = ob_dma_get(w->server, address, 1, OB_DMA_READ, &ref);

        CHECK_INT(rc, model_get(&w->m, address, 1, OB_DMA_READ));
        if (rc == 0) {
            CHECK_INT(*(uint8_t *)ref.ptr, *model_ram(&w->m, address));
            ob_dma_put(w->server, &ref);
        }
    }
}

static void compare_state(struct world *w)
{
    struct {
        struct ob_wire_feature head;
        struct ob_wire_mig_state state;
    } wire = { { sizeof(wire), OB_FEATURE_MIG_DEVICE_STATE | OB_FEATURE_GET }, { 0 } };
    struct ob_msg *reply;

    CHECK_INT(peer_call(&w->peer, OB_CMD_DEVICE_FEATURE, &wire.head, sizeof(wire.head), &reply), 0);
    CHECK_INT(reply->len, sizeof(wire));
    memcpy(&wire, reply->payload, sizeof(wire));
    CHECK_INT(wire.state.device_state, w->m.state);
    CHECK_INT(w->arcs, w->m.arcs);
    ob_msg_free(reply);
}

void model_run(const struct model_command *commands, unsigned count, volatile unsigned *at)
{
    static struct world world;
    struct world *w = &world;

    w->m.state = OB_MIG_STATE_RUNNING;
    w->ram_fd = peer_memfd(MODEL_RAM);
    w->file_fd = peer_memfd(MODEL_FILE);
    w->ram = mmap(NULL, MODEL_RAM, PROT_READ | PROT_WRITE, MAP_SHARED, w->ram_fd, 0);
    CHECK(w->ram != MAP_FAILED);
    w->intx_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (unsigned i = 0; i < MODEL_VECTORS; i++)
        w->msix_fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    build(w);
    for (unsigned i = 0; i < count; i++) {
        *at = i;
        w->stays = false;
        model_steps[commands[i].op](w, &commands[i]);
        if (w->stays)
            continue;
        model_ring_collect(w);
        peer_settle(w->server);
        compare_state(w);
        model_ring_compare(w);
        compare_irqs(w);
        compare_addresses(w);
        compare_memory(w);
    }
    for (unsigned i = 0; i < MODEL_HOLDS; i++)
        if (w->refs[i].map)
            ob_dma_put(w->server, &w->refs[i]);
    model_detach(w);
    ob_server_free(w->server);
    munmap(w->ram, MODEL_RAM);
    close(w->ram_fd);
    close(w->file_fd);
    close(w->intx_fd);
    for (unsigned i = 0; i < MODEL_VECTORS; i++)
        close(w->msix_fds[i]);
}
