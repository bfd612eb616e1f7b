/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The smallest device: what a device author starts from, and what benchmarks measure against.
 *   BAR 0: 4 KiB of registers that keep what is written; each access is a message. With
 *          --ioeventfds some writes also come through eventfds.
 *   BAR 1: 64 KiB of memory that the client maps, so that no access is a message.
 * It has no interrupt and does no DMA. Its PCI id 4f42:0002 is ours ("OB", not assigned by the
 * PCI-SIG), so no driver binds to it.
 */
#include "devices/device.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define REGISTERS_BYTES 4096u
#define MEMORY_BYTES    65536u

/* Writes that are offered to come through an eventfd. It carries no data, so that a register can
 * only keep what is written when the one value to match is known. */
static const struct ob_ioeventfd ioeventfds[] = {
    { 0xfe0, 1, 0x11, OB_IOEVENTFD_DATAMATCH },
    { 0xfe2, 2, 0x2222, OB_IOEVENTFD_DATAMATCH },
    { 0xfe8, 4, 0x44444444, OB_IOEVENTFD_DATAMATCH },
    { 0xfe8, 4, 0x55555555, OB_IOEVENTFD_DATAMATCH },
    { 0xff0, 8, 0x8888888888888888, OB_IOEVENTFD_DATAMATCH },
};
#define NIOEVENTFDS (sizeof(ioeventfds) / sizeof(ioeventfds[0]))

struct null {
    struct ob_server *server;
    int memory_fd;
    bool ioeventfds; /* they are offered */
    struct write_event {
        struct null *null;
        const struct ob_ioeventfd *match;
    } events[NIOEVENTFDS];
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

static void written_by_eventfd(void *opaque)
{
    const struct write_event *event = opaque;
    uint64_t value = htole64(event->match->datamatch);

    memcpy(event->null->registers + event->match->offset, &value, event->match->size);
}

static int offer_ioeventfds(struct null *null)
{
    int rc = 0;

    for (size_t i = 0; i < NIOEVENTFDS && rc == 0; i++) {
        null->events[i] = (struct write_event){ null, &ioeventfds[i] };
        rc = ob_server_add_ioeventfd(null->server, 0, &ioeventfds[i], written_by_eventfd,
                                     &null->events[i]);
    }
    return rc;
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
    return null->ioeventfds ? offer_ioeventfds(null) : 0;
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

static const struct option long_options[] = { { "ioeventfds", no_argument, NULL, 'i' }, { 0 } };

static int create(int argc, char **argv, ob_log_fn log, void **opaque, struct ob_server **server,
                  char *banner, size_t banner_size, char *errbuf, size_t errbuf_size)
{
    struct null *null = calloc(1, sizeof(*null));
    int rc = -ENOMEM;

    if (null) {
        null->ioeventfds = getopt_long(argc, argv, "", long_options, NULL) != -1;
        rc = build(null, log);
    }
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
    .options = "  --ioeventfds            offer eventfds for some writes to BAR 0\n",
    .long_options = long_options,
    .create = create,
    .destroy = destroy,
};
