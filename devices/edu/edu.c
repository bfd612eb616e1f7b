/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * QEMU's educational device (its docs/specs/edu.rst), served from outside: registers, INTx or MSI,
 * and DMA between the guest's memory and a buffer on the card. 1 MiB of BAR 0:
 *
 *   0x00  identification             0x60  raise these interrupt bits
 *   0x04  reads as ~what was written 0x64  acknowledge these interrupt bits
 *   0x08  factorial                  0x80  DMA: source
 *   0x20  status                     0x88  DMA: destination
 *   0x24  interrupt status           0x90  DMA: byte count
 *                                    0x98  DMA: command
 *
 * Registers below 0x80 take four bytes at a time, the others four or eight. An access of another
 * kind reads as ones, and writes nothing.
 *
 * A factorial or a transfer is done by a timer, not inside the register write that starts it: so
 * the driver sees a busy bit as on hardware, and a client need not answer DMA requests while it
 * waits for its write to be acknowledged. Everything runs in the server's thread.
 */
#include "devices/device.h"
#include "devices/state.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define BAR_BYTES              0x100000u
#define IDENTIFICATION         0x010000edu
#define DMA_MASK_DEFAULT       0x0fffffffu
#define LATENCY_MS_MAX         60000u
#define PCI_COMMAND_BUS_MASTER 0x4u

#define BUFFER_OFFSET 0x40000u /* where the card's buffer lies for DMA; not visible in the BAR */
#define BUFFER_BYTES  4096u

#define STATUS_COMPUTING     0x01u
#define STATUS_IRQ_WHEN_DONE 0x80u
#define DMA_START            0x1u
#define DMA_TO_RAM           0x2u
#define DMA_IRQ_WHEN_DONE    0x4u
#define IRQ_FACTORIAL        0x001u
#define IRQ_DMA              0x100u

struct edu {
    struct ob_server *server;
    int timer_fd;
    uint64_t latency_ms, dma_mask;
    uint32_t liveness, factorial, status, irq_status;
    uint64_t dma[4]; /* source, destination, count, command */
    uint8_t buffer[BUFFER_BYTES];
    bool stopped;                     /* migration: nothing happens by itself */
    bool loaded;                      /* ... and the state is another card's */
    struct ob_state_buffer migration; /* what is read or written of it */
};
enum { DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND };

static void raise_irq(struct edu *edu, uint32_t bits)
{
    edu->irq_status |= bits;
    /* The driver has set up MSI, or it listens to the line. */
    if (edu->irq_status && ob_pci_notify(edu->server, 0) < 0)
        ob_server_intx(edu->server, true);
}

static void acknowledge_irq(struct edu *edu, uint32_t bits)
{
    edu->irq_status &= ~bits;
    if (!edu->irq_status)
        ob_server_intx(edu->server, false);
}

/* n! modulo 2^32. From 34 on it is a multiple of 2^32: 0, without four billion steps. */
static uint32_t factorial(uint32_t n)
{
    uint32_t product = 1;

    if (n >= 34)
        return 0;
    for (; n > 1; n--)
        product *= n;
    return product;
}

/* A transfer that leaves the buffer or meets no memory moves nothing into the guest; what it
 * would have read is ones, as after a master abort. There is no error bit to tell the driver. */
static void transfer(struct edu *edu)
{
    bool to_ram = edu->dma[DMA_COMMAND] & DMA_TO_RAM;
    uint64_t card = edu->dma[to_ram ? DMA_SOURCE : DMA_DESTINATION];
    uint64_t ram = edu->dma[to_ram ? DMA_DESTINATION : DMA_SOURCE] & edu->dma_mask;
    uint64_t count = edu->dma[DMA_COUNT];
    bool master = ob_pci_command(edu->server) & PCI_COMMAND_BUS_MASTER;

    if (card < BUFFER_OFFSET || count > BUFFER_BYTES || card - BUFFER_OFFSET > BUFFER_BYTES - count)
        return;
    uint8_t *place = edu->buffer + (card - BUFFER_OFFSET);
    if (to_ram) {
        if (master)
            ob_dma_write(edu->server, ram, place, count);
    } else if (!master || ob_dma_read(edu->server, ram, place, count) < 0) {
        memset(place, 0xff, count);
    }
}

/* syscalls: read */
static void work_done(void *opaque, uint32_t events)
{
    struct edu *edu = opaque;
    uint64_t expirations;

    (void)events;
    if (read(edu->timer_fd, &expirations, sizeof(expirations)) != sizeof(expirations))
        return;
    if (edu->status & STATUS_COMPUTING) {
        edu->factorial = factorial(edu->factorial);
        edu->status &= ~STATUS_COMPUTING;
        if (edu->status & STATUS_IRQ_WHEN_DONE)
            raise_irq(edu, IRQ_FACTORIAL);
    }
    if (edu->dma[DMA_COMMAND] & DMA_START) {
        transfer(edu);
        edu->dma[DMA_COMMAND] &= ~(uint64_t)DMA_START;
        if (edu->dma[DMA_COMMAND] & DMA_IRQ_WHEN_DONE)
            raise_irq(edu, IRQ_DMA);
    }
}

/* Work that starts while other work is under way is done along with it. */
/* syscalls: timerfd_gettime, timerfd_settime */
static void start_work(struct edu *edu)
{
    struct itimerspec spec;

    if (edu->stopped)
        return; /* resume() does it */
    timerfd_gettime(edu->timer_fd, &spec);
    if (spec.it_value.tv_sec || spec.it_value.tv_nsec)
        return;
    spec.it_value.tv_sec = (time_t)(edu->latency_ms / 1000);
    spec.it_value.tv_nsec = (long)(edu->latency_ms % 1000) * 1000000 + 1; /* 0 would disarm it */
    timerfd_settime(edu->timer_fd, 0, &spec, NULL);
}

static uint32_t read_register(const struct edu *edu, uint64_t offset)
{
    switch (offset) {
    case 0x00:
        return IDENTIFICATION;
    case 0x04:
        return edu->liveness;
    case 0x08:
        return edu->factorial;
    case 0x20:
        return edu->status;
    case 0x24:
        return edu->irq_status;
    default:
        return UINT32_MAX;
    }
}

static void write_register(struct edu *edu, uint64_t offset, uint32_t value)
{
    switch (offset) {
    case 0x04:
        edu->liveness = ~value;
        break;
    case 0x08:
        if (edu->status & STATUS_COMPUTING)
            break;
        edu->factorial = value;
        edu->status |= STATUS_COMPUTING;
        start_work(edu);
        break;
    case 0x20:
        edu->status = (edu->status & STATUS_COMPUTING) | (value & STATUS_IRQ_WHEN_DONE);
        break;
    case 0x60:
        raise_irq(edu, value);
        break;
    case 0x64:
        acknowledge_irq(edu, value);
        break;
    default:
        break;
    }
}

/* Four bytes at a register's start are all of it, zero-extended; at its middle, the upper half. */
static void write_dma(struct edu *edu, uint64_t offset, uint64_t value)
{
    uint64_t *reg = &edu->dma[(offset - 0x80) / 8];

    if (edu->dma[DMA_COMMAND] & DMA_START)
        return; /* a transfer under way is not disturbed */
    *reg = offset % 8 ? (*reg & UINT32_MAX) | value << 32 : value;
    if (edu->dma[DMA_COMMAND] & DMA_START)
        start_work(edu);
}

/* The library has checked that offset + count lies in the region. */
static int access_bar(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct edu *edu = opaque;
    bool is_dma = offset >= 0x80 && offset < 0xa0;
    uint64_t value = 0;

    if (!(count == 4 || (count == 8 && is_dma)) || offset % count) {
        if (!is_write)
            memset(data, 0xff, count);
        return 0;
    }
    if (is_write) {
        memcpy(&value, data, count);
        if (is_dma)
            write_dma(edu, offset, le64toh(value));
        else
            write_register(edu, offset, (uint32_t)le64toh(value));
        return 0;
    }
    value = is_dma ? edu->dma[(offset - 0x80) / 8] >> offset % 8 * 8 : read_register(edu, offset);
    value = htole64(value);
    memcpy(data, &value, count);
    return 0;
}

static void stop_timer(struct edu *edu)
{
    const struct itimerspec disarm = { 0 };

    timerfd_settime(edu->timer_fd, 0, &disarm, NULL);
}

static int reset(void *opaque)
{
    struct edu *edu = opaque;

    stop_timer(edu);
    edu->stopped = edu->loaded = false;
    ob_state_clear(&edu->migration);
    edu->liveness = edu->factorial = edu->status = 0;
    acknowledge_irq(edu, UINT32_MAX);
    memset(edu->dma, 0, sizeof(edu->dma));
    memset(edu->buffer, 0, sizeof(edu->buffer));
    return 0;
}

/* ---- Migration ---------------------------------------------------------------------------- */

/* Work that has been started and is not done is in the registers, and is done after the move. */
struct edu_state {
    uint32_t version;
    uint32_t liveness, factorial, status, irq_status, zero;
    uint64_t dma_mask;
    uint64_t dma[4];
    uint8_t buffer[BUFFER_BYTES];
};
#define STATE_VERSION 1u

static int save(struct edu *edu)
{
    struct edu_state state = { .version = STATE_VERSION,
                               .liveness = edu->liveness,
                               .factorial = edu->factorial,
                               .status = edu->status,
                               .irq_status = edu->irq_status,
                               .dma_mask = edu->dma_mask };

    memcpy(state.dma, edu->dma, sizeof(state.dma));
    memcpy(state.buffer, edu->buffer, sizeof(state.buffer));
    ob_state_clear(&edu->migration);
    ob_state_put(&edu->migration, &state, sizeof(state));
    return edu->migration.failed ? -ENOMEM : 0;
}

/* The mask is how the card was built: it must be the same. */
static int load(struct edu *edu)
{
    struct edu_state state;

    ob_state_take(&edu->migration, &state, sizeof(state));
    if (!ob_state_finished(&edu->migration) || state.version != STATE_VERSION || state.zero ||
        state.dma_mask != edu->dma_mask ||
        (state.status & ~(STATUS_COMPUTING | STATUS_IRQ_WHEN_DONE)))
        return -EINVAL;
    edu->liveness = state.liveness;
    edu->factorial = state.factorial;
    edu->status = state.status;
    edu->irq_status = state.irq_status;
    memcpy(edu->dma, state.dma, sizeof(edu->dma));
    memcpy(edu->buffer, state.buffer, sizeof(edu->buffer));
    edu->loaded = true;
    return 0;
}

/* A driver that waits for an interrupt that came just before the move gets it once more. */
static void resume(struct edu *edu)
{
    edu->stopped = false;
    if (edu->loaded) {
        raise_irq(edu, 0);
        acknowledge_irq(edu, 0); /* the line was this card's */
    }
    edu->loaded = false;
    if ((edu->status & STATUS_COMPUTING) || (edu->dma[DMA_COMMAND] & DMA_START))
        start_work(edu);
}

static int transition(void *opaque, enum ob_mig_state from, enum ob_mig_state to)
{
    struct edu *edu = opaque;
    int rc = 0;

    if (from == OB_MIG_STATE_RESUMING && edu->migration.len)
        rc = load(edu);
    else if (to == OB_MIG_STATE_STOP_COPY)
        rc = save(edu);
    if (rc < 0)
        return rc;
    if (to == OB_MIG_STATE_STOP || to == OB_MIG_STATE_STOP_COPY) {
        stop_timer(edu);
        edu->stopped = true;
    } else if (edu->stopped && to == OB_MIG_STATE_RUNNING) {
        resume(edu);
    }
    if (to != OB_MIG_STATE_STOP_COPY)
        ob_state_clear(&edu->migration);
    return 0;
}

static int64_t read_state(void *opaque, void *data, uint32_t count)
{
    struct edu *edu = opaque;

    return ob_state_read(&edu->migration, data, count);
}

static int write_state(void *opaque, const void *data, uint32_t count)
{
    struct edu *edu = opaque;

    return ob_state_write(&edu->migration, data, count, sizeof(struct edu_state));
}

static int build(struct edu *edu, ob_log_fn log)
{
    const struct ob_server_ops ops = { .size = sizeof(ops), .reset = reset, .log = log };
    const struct ob_pci_id id = {
        .vendor = 0x1234, .device = 0x11e8, .class_code = 0x00ff00, .revision = 0x10
    };
    const struct ob_region bar = { .size = BAR_BYTES,
                                   .flags = OB_REGION_READ | OB_REGION_WRITE,
                                   .access = access_bar,
                                   .opaque = edu,
                                   .fd = -1 };
    const struct ob_migration_ops migration = { .size = sizeof(migration),
                                                .transition = transition,
                                                .read = read_state,
                                                .write = write_state };
    int rc;

    edu->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (edu->timer_fd < 0)
        return -errno;
    edu->server = ob_server_new(&ops, edu);
    if (!edu->server)
        return -errno;
    if ((rc = ob_pci_init(edu->server, &id, false, true)) < 0 ||
        (rc = ob_pci_add_bar(edu->server, 0, BAR_BYTES, 0)) < 0 ||
        (rc = ob_pci_add_msi(edu->server, 1)) < 0 ||
        (rc = ob_server_set_region(edu->server, 0, &bar)) < 0 ||
        (rc = ob_server_set_migration(edu->server, &migration)) < 0)
        return rc;
    return ob_server_watch(edu->server, edu->timer_fd, EPOLLIN, work_done, edu);
}

static int destroy(void *opaque)
{
    struct edu *edu = opaque;

    if (edu->server)
        ob_server_watch(edu->server, edu->timer_fd, 0, NULL, NULL);
    ob_server_free(edu->server);
    ob_state_clear(&edu->migration);
    if (edu->timer_fd >= 0)
        close(edu->timer_fd);
    free(edu);
    return 0;
}

static const struct option long_options[] = { { "dma-mask", required_argument, NULL, 'm' },
                                              { "latency-ms", required_argument, NULL, 'l' },
                                              { 0 } };

static int parse_options(struct edu *edu, int argc, char **argv, char *errbuf, size_t errbuf_size)
{
    int status = 0;

    for (int opt; !status && (opt = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        if (opt == 'm')
            status = ob_option_number("dma-mask", optarg, 0, UINT64_MAX, &edu->dma_mask, errbuf,
                                      errbuf_size);
        else
            status = ob_option_number("latency-ms", optarg, 0, LATENCY_MS_MAX, &edu->latency_ms,
                                      errbuf, errbuf_size);
    }
    return status;
}

static int create(int argc, char **argv, ob_log_fn log, void **opaque, struct ob_server **server,
                  char *banner, size_t banner_size, char *errbuf, size_t errbuf_size)
{
    struct edu *edu = calloc(1, sizeof(*edu));
    int rc, status;

    if (!edu)
        return ob_create_failed(-ENOMEM, errbuf, errbuf_size);
    edu->timer_fd = -1;
    edu->dma_mask = DMA_MASK_DEFAULT;
    status = parse_options(edu, argc, argv, errbuf, errbuf_size);
    if (!status && (rc = build(edu, log)) < 0)
        status = ob_create_failed(rc, errbuf, errbuf_size);
    if (status) {
        destroy(edu);
        return status;
    }
    snprintf(banner, banner_size, "QEMU's educational device, DMA mask 0x%" PRIx64, edu->dma_mask);
    *opaque = edu;
    *server = edu->server;
    return 0;
}

const struct ob_served ob_served_edu = {
    .name = "edu",
    .operands = "",
    .summary = "QEMU's educational device: registers, INTx or MSI, DMA",
    .options = "  --dma-mask MASK         addresses it can reach by DMA (default 0x0fffffff)\n"
               "  --latency-ms MS         how long a factorial or a transfer takes (default 0)\n",
    .long_options = long_options,
    .create = create,
    .destroy = destroy,
};
