/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The smallest device: what a device author starts from, and what benchmarks measure against.
 *   BAR 0: 4 KiB of registers that keep what is written; each access is a message.
 *   BAR 1: 64 KiB of memory that the client maps, so that no access is a message.
 * It has no interrupt and does no DMA. Its PCI id 4f42:0002 is ours ("OB", not assigned by the
 * PCI-SIG), so no driver binds to it.
 */
#include "devices/device.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define REGISTERS_BYTES 4096u
#define MEMORY_BYTES    65536u

struct null {
    struct ob_server *server;
    int memory_fd;
    uint8_t registers[REGISTERS_BYTES];
};

/* The library has checked that offset + count lies in the region. */
static int access_registers(void *opaque, uint64_t offset, void *data, uint32_t count,
                            bool is_write)
{
    struct null *null = opaque;

    if (is_write)
        memcpy(null->registers + offset, data, count);
    else
        memcpy(data, null->registers + offset, count);
    return 0;
}

static int reset(void *opaque)
{
    struct null *null = opaque;

    memset(null->registers, 0, sizeof(null->registers));
    return 0;
}

/* Memory that can be mapped by the client. Its size is sealed: a file that can shrink under a
 * mapping would let us kill the client with SIGBUS, so a careful client does not map one. */
static int memory_new(void)
{
    int fd = memfd_create("outboard-null", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return -errno;
    if (ftruncate(fd, MEMORY_BYTES) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    return fd;
}

static int build(struct null *null, ob_log_fn log)
{
    const struct ob_server_ops ops = { .size = sizeof(ops), .reset = reset, .log = log };
    const struct ob_pci_id id = { .vendor = 0x4f42, .device = 0x0002, .class_code = 0xff0000 };
    const struct ob_region registers = { .size = REGISTERS_BYTES,
                                         .flags = OB_REGION_READ | OB_REGION_WRITE,
                                         .access = access_registers,
                                         .opaque = null,
                                         .fd = -1 };
    struct ob_region memory = { .size = MEMORY_BYTES,
                                .flags = OB_REGION_READ | OB_REGION_WRITE | OB_REGION_MMAP };
    int rc;

    null->memory_fd = memory_new();
    if (null->memory_fd < 0)
        return null->memory_fd;
    memory.fd = null->memory_fd;
    null->server = ob_server_new(&ops, null);
    if (!null->server)
        return -errno;
    if ((rc = ob_pci_init(null->server, &id, false, false)) < 0 ||
        (rc = ob_pci_add_bar(null->server, 0, REGISTERS_BYTES, 0)) < 0 ||
        (rc = ob_pci_add_bar(null->server, 1, MEMORY_BYTES, OB_PCI_BAR_PREFETCH)) < 0 ||
        (rc = ob_server_set_region(null->server, 0, &registers)) < 0 ||
        (rc = ob_server_set_region(null->server, 1, &memory)) < 0)
        return rc;
    ob_server_set_mapped_order(null->server); /* it does not look at its memory */
    return 0;
}

static int destroy(void *opaque)
{
    struct null *null = opaque;

    ob_server_free(null->server);
    if (null->memory_fd >= 0)
        close(null->memory_fd);
    free(null);
    return 0;
}

static int create(int argc, char **argv, ob_log_fn log, void **opaque, struct ob_server **server,
                  char *banner, size_t banner_size, char *errbuf, size_t errbuf_size)
{
    struct null *null = calloc(1, sizeof(*null));
    int rc = null ? build(null, log) : -ENOMEM;

    (void)argc, (void)argv; /* it has no options */
    if (rc < 0) {
        if (null)
            destroy(null);
        return ob_create_failed(rc, errbuf, errbuf_size);
    }
    snprintf(banner, banner_size, "4 KiB of registers, 64 KiB of mappable memory");
    *opaque = null;
    *server = null->server;
    return 0;
}

const struct ob_served ob_served_null = {
    .name = "null",
    .operands = "",
    .summary = "the smallest device: registers and memory that keep what is written",
    .options = "",
    .create = create,
    .destroy = destroy,
};
