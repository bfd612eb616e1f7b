/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client that uses all of a device once, for `outboard check --client`: conformance-client
 * SOCKET. Exit status 0: the device could be used (it may refuse what it likes); 1: the connection
 * died.
 */
#include "outboard/client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEMORY_ADDRESS 0x100000u
#define MEMORY_SIZE    (2u << 20)
#define SECOND_ADDRESS 0x20000000u
#define SHADOW_ADDRESS 0x40000000u
#define SHADOW_SIZE    65536u
#define TIMEOUT_MS     3000

/* What the device may use: by descriptor, and by messages, for reading only. */
static uint8_t *memory;
static uint8_t shadow[SHADOW_SIZE];

static void *find(uint64_t address, uint32_t count)
{
    if (address >= MEMORY_ADDRESS && address - MEMORY_ADDRESS <= MEMORY_SIZE &&
        count <= MEMORY_SIZE - (address - MEMORY_ADDRESS))
        return memory + (address - MEMORY_ADDRESS);
    if (address >= SHADOW_ADDRESS && address - SHADOW_ADDRESS <= SHADOW_SIZE &&
        count <= SHADOW_SIZE - (address - SHADOW_ADDRESS))
        return shadow + (address - SHADOW_ADDRESS);
    return NULL;
}

static int dma_read(void *opaque, uint64_t address, void *data, uint32_t count)
{
    const void *from = find(address, count);

    (void)opaque;
    if (!from)
        return -EFAULT;
    memcpy(data, from, count);
    return 0;
}

static int dma_write(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    void *to = find(address, count);

    (void)opaque;
    if (!to || address >= SHADOW_ADDRESS)
        return -EFAULT;
    memcpy(to, data, count);
    return 0;
}

/* ---- What it does -------------------------------------------------------------------------- */

static void touch(const struct ob_region_info *info)
{
    uint32_t areas = info->layout.nareas ? info->layout.nareas : 1;

    for (uint32_t i = 0; i < areas; i++) {
        void *area;
        uint64_t size;

        if (ob_region_map(info, i, &area, &size) == 0)
            munmap(area, size);
    }
}

static void use_region(struct ob_client *client, uint32_t index)
{
    struct ob_region_info info;
    uint8_t bytes[256];
    uint32_t size;

    if (ob_client_region_info(client, index, &info) < 0)
        return;
    size = info.layout.size < sizeof(bytes) ? (uint32_t)info.layout.size : sizeof(bytes);
    if (info.layout.flags & OB_REGION_MMAP)
        touch(&info);
    if (size && ob_client_region_read(client, index, 0, bytes, size) == 0) {
        ob_client_region_write(client, index, 0, bytes, size);
        ob_client_region_post(client, index, 0, bytes, 4);
        ob_client_region_read(client, index, 0, bytes, 4);
    }
    ob_region_info_fini(&info);
}

static void use_irq(struct ob_client *client, uint32_t index)
{
    struct ob_irq_info info;
    int fds[8];
    uint32_t count;

    if (ob_client_irq_info(client, index, &info) < 0 || info.count == 0)
        return;
    count = info.count < 8 ? info.count : 8;
    for (uint32_t i = 0; i < count; i++)
        fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ob_client_irq_eventfds(client, index, 0, count, fds);
    ob_client_irq_mask(client, index, 0, true);
    ob_client_irq_mask(client, index, 0, false);
    ob_client_irq_disable(client, index);
    for (uint32_t i = 0; i < count; i++)
        close(fds[i]);
}

static void offer_memory(struct ob_client *client, int fd)
{
    struct ob_dma_change changes[] = {
        { false, OB_DMA_READ | OB_DMA_WRITE, MEMORY_ADDRESS, MEMORY_SIZE, fd, 0, 0 },
        { false, OB_DMA_READ, SECOND_ADDRESS, 4096, fd, 4096, 0 },
        { false, OB_DMA_READ, SHADOW_ADDRESS, SHADOW_SIZE, -1, 0, 0 },
    };

    ob_client_dma_apply(client, changes, 3);
    if (changes[1].result == 0)
        ob_client_dma_unmap(client, SECOND_ADDRESS, 4096);
}

/* ---- Migration ----------------------------------------------------------------------------- */

#define PIECE 500u

static uint8_t state[65536];

/* Appends what there is in this state of the device; false when it cannot be read. */
static bool save(struct ob_client *client, uint32_t *len)
{
    int64_t n;

    do {
        n = ob_client_mig_read(client, state + *len, PIECE);
        if (n > 0)
            *len += (uint32_t)n;
    } while (n == PIECE && *len <= sizeof(state) - PIECE);
    return n >= 0;
}

static bool load(struct ob_client *client, uint32_t len)
{
    int rc = 0;

    for (uint32_t at = 0; rc == 0 && at < len; at += PIECE)
        rc = ob_client_mig_write(client, state + at, len - at < PIECE ? len - at : PIECE);
    return rc == 0;
}

static bool go_to(struct ob_client *client, enum ob_mig_state to)
{
    enum ob_mig_state now;

    return ob_client_mig_state_set(client, to) == 0 && ob_client_mig_state_get(client, &now) == 0 &&
           now == to;
}

static void log_dirty(struct ob_client *client)
{
    static uint64_t bitmap[MEMORY_SIZE / 4096 / 64];

    if (ob_client_dirty_start(client, 4096, NULL, 0) < 0)
        return;
    ob_client_dirty_report(client, MEMORY_ADDRESS, MEMORY_SIZE, 4096, bitmap);
    ob_client_dirty_report(client, MEMORY_ADDRESS + 4096, 4096, 65536, bitmap);
    ob_client_dirty_stop(client);
}

/* Moves the device to itself. */
static void migrate(struct ob_client *client)
{
    uint64_t flags;
    uint32_t len = 0;

    if (!ob_client_caps(client)->migration || ob_client_migration_info(client, &flags) < 0)
        return;
    log_dirty(client);
    if (go_to(client, OB_MIG_STATE_PRE_COPY) && save(client, &len) &&
        go_to(client, OB_MIG_STATE_STOP_COPY) && save(client, &len) &&
        go_to(client, OB_MIG_STATE_RESUMING))
        load(client, len);
    ob_client_mig_state_set(client, OB_MIG_STATE_RUNNING);
}

/* So often that what the accesses are put into is used again. */
static void use_registers(struct ob_client *client)
{
    uint8_t line = 0;
    int rc = 0;

    if (!ob_client_caps(client)->ring)
        return;
    for (unsigned i = 0; rc == 0 && i < 300; i++) {
        ob_client_region_post(client, OB_PCI_REGION_CONFIG, 0x3c, &line, 1);
        rc = ob_client_region_read(client, OB_PCI_REGION_CONFIG, 0x3c, &line, 1);
    }
}

/* Whether the server has sent something that nobody has looked at. */
static bool pending(const struct ob_client *client)
{
    struct pollfd in = { .fd = ob_client_fd(client), .events = POLLIN };

    return poll(&in, 1, 0) > 0;
}

static void use(struct ob_client *client, int fd)
{
    struct ob_device_info info;
    uint8_t line;

    if (ob_client_device_info(client, &info) < 0)
        return;
    offer_memory(client, fd);
    for (uint32_t i = 0; i < info.num_regions; i++)
        use_region(client, i);
    for (uint32_t i = 0; i < info.num_irqs; i++)
        use_irq(client, i);
    use_registers(client);
    migrate(client);
    ob_client_reset(client);
    ob_client_region_read(client, OB_PCI_REGION_CONFIG, 0x3c, &line, 1);
    ob_client_dma_unmap(client, MEMORY_ADDRESS, MEMORY_SIZE);
    /* Whatever came before is dealt with once this is answered. */
    ob_client_device_info(client, &info);
    while (ob_client_connected(client) && pending(client))
        ob_client_step(client);
}

int main(int argc, char **argv)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    int fd = memfd_create("memory", MFD_CLOEXEC), status = 0;
    struct ob_client *client;
    char why[256];

    opt.timeout_ms = TIMEOUT_MS;
    opt.dma_read = dma_read;
    opt.dma_write = dma_write;
    if (argc != 2 || fd < 0 || ftruncate(fd, MEMORY_SIZE) < 0)
        return 2;
    memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return 2;
    if (ob_client_connect(argv[1], &opt, &client, why, sizeof(why)) < 0) {
        fprintf(stderr, "%s\n", why);
        return 1;
    }
    use(client, fd);
    if (!ob_client_connected(client)) {
        fprintf(stderr, "%s\n", ob_client_error(client));
        status = 1;
    }
    ob_client_free(client);
    return status;
}
