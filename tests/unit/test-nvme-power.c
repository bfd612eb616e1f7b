/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Power cuts: what the host was told is on stable storage is there, whatever else is lost; also
 * when servers were killed before, and the next ones went on with their commands.
 *
 * Stable storage is a model. The server's writes and syncs are noted, in memory that outlives it: a
 * write is stable when it was durable itself, or had returned before a sync began that succeeded.
 * All other writes may be lost in a power cut. Each sector says by which write it was made.
 */
#include "nvme_host.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define UNIT    4096u
#define SECTOR  512u
#define UNITS   128u
#define DEPTH   24u /* commands under way */
#define ENTRIES 32u
#define WRITES  400000u
#define KILLS   60u

struct sector { /* at the start of each */
    uint32_t unit, stamp;
};

struct write {
    uint32_t sector, sectors, unit, stamp;
    bool durable;
};

static struct medium {
    atomic_uint_fast64_t writes, synced; /* so many; so many of them by a sync */
    struct write write[WRITES];
} * medium;

struct op {
    bool used;
    uint16_t cid;
    uint8_t opcode;
    bool durable;
    uint32_t unit, stamp, at;
    uint32_t before[UNITS]; /* of a flush: what had completed */
};

static struct disk {
    struct nvme_host h;
    struct op ops[DEPTH];
    bool busy[UNITS];
    uint32_t done[UNITS], stable[UNITS]; /* stamps that completed, and that must be stable */
    uint32_t last_stamp;
    uint64_t seed;
    uint64_t seen;                                /* writes that are in: */
    uint32_t on_medium[UNITS * (UNIT / SECTOR)];  /* stamps */
    struct write *loose[UNITS * (UNIT / SECTOR)]; /* and the last write that is not there */
    unsigned flushes;
} disk;

static uint32_t rnd(struct disk *d, uint32_t below)
{
    d->seed = d->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((d->seed >> 33) % below);
}

static int64_t now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

/* ---- In the server ------------------------------------------------------------------------- */

static uint64_t syncing(void)
{
    return medium->writes;
}

static void synced(uint64_t before)
{
    uint64_t now = medium->synced;

    while (now < before && !atomic_compare_exchange_weak(&medium->synced, &now, before))
        ;
}

static void wrote(const struct iovec *iov, off_t at, ssize_t len, bool durable)
{
    const struct sector *first = iov->iov_base;
    uint64_t i = medium->writes++;

    CHECK(i < WRITES);
    medium->write[i] = (struct write){ .sector = (uint32_t)(at / SECTOR),
                                       .sectors = (uint32_t)(len / SECTOR),
                                       .unit = first->unit,
                                       .stamp = first->stamp,
                                       .durable = durable };
}

/* ---- The host ------------------------------------------------------------------------------ */

static void submit(struct disk *d, struct op *op)
{
    struct nvme_host *h = &d->h;
    struct nvme_sqe sqe = { .opcode = NVME_IO_FLUSH, .nsid = 1 };

    op->opcode = rnd(d, 12) == 0 ? NVME_IO_FLUSH : NVME_IO_WRITE;
    op->unit = rnd(d, UNITS);
    if (op->opcode == NVME_IO_FLUSH) {
        memcpy(op->before, d->done, sizeof(op->before));
    } else {
        if (d->busy[op->unit])
            return;
        d->busy[op->unit] = true;
        op->durable = rnd(d, 16) == 0;
        op->stamp = ++d->last_stamp;
        for (uint32_t i = 0; i < UNIT; i += SECTOR)
            *(struct sector *)(void *)(h->ram + op->at + i) =
                (struct sector){ op->unit, op->stamp };
        sqe = host_io(h, NVME_IO_WRITE, op->unit * (UNIT / SECTOR), UNIT / SECTOR, op->at, SECTOR);
        sqe.dw12 |= op->durable ? NVME_IO_FUA : 0;
    }
    op->used = true;
    op->cid = host_put(h, 1, sqe);
}

static void complete(struct disk *d, const struct nvme_cqe *cqe)
{
    struct op *op = d->ops;

    while (op < d->ops + DEPTH && !(op->used && op->cid == cqe->cid))
        op++;
    CHECK(op < d->ops + DEPTH);
    CHECK_INT(cqe->status >> 1, 0);
    op->used = false;
    if (op->opcode == NVME_IO_FLUSH) {
        d->flushes++;
        for (uint32_t i = 0; i < UNITS; i++)
            if (op->before[i] > d->stable[i])
                d->stable[i] = op->before[i];
        return;
    }
    d->busy[op->unit] = false;
    d->done[op->unit] = op->stamp;
    if (op->durable)
        d->stable[op->unit] = op->stamp;
}

static void work(struct disk *d, bool more)
{
    struct nvme_cqe cqe;

    for (unsigned i = 0; more && i < DEPTH; i++)
        if (!d->ops[i].used && rnd(d, 3) == 0)
            submit(d, &d->ops[i]);
    host_ring(&d->h, 1);
    while (host_poll(&d->h, 1, 0, &cqe))
        complete(d, &cqe);
}

/* ---- The cut ------------------------------------------------------------------------------- */

/* What the medium has now, of all that was written. */
static void cut_power(struct disk *d)
{
    uint64_t writes = medium->writes, stable = medium->synced;

    for (; d->seen < writes; d->seen++) {
        struct write *w = &medium->write[d->seen];
        for (uint32_t i = w->sector; i < w->sector + w->sectors; i++) {
            struct write *before = d->loose[i];
            if (before && (uint64_t)(before - medium->write) < stable)
                d->on_medium[i] = before->stamp;
            d->loose[i] = w;
            if (w->durable)
                d->on_medium[i] = w->stamp;
        }
    }
    for (uint32_t i = 0; i < UNITS * (UNIT / SECTOR); i++) {
        uint32_t unit = i / (UNIT / SECTOR);
        struct write *last = d->loose[i];
        if (last && (uint64_t)(last - medium->write) < stable)
            d->on_medium[i] = last->stamp;
        if (last)
            CHECK_INT(last->unit, unit);
        if (d->on_medium[i] < d->stable[unit])
            test_fail(__FILE__, __LINE__, "unit %u has the data of write %u, %u was promised", unit,
                      d->on_medium[i], d->stable[unit]);
    }
}

TEST_TIMEOUT(power, "what-was-flushed-survives-a-power-cut-also-after-kills", 90)
{
    const char *image = host_image("disk.img", (uint64_t)UNITS * UNIT, 0);
    char state[128];
    const char *const args[] = { image, "--state", state, "--aio=threads", "--queues=2", NULL };
    const char *seed = getenv("SEED");
    struct disk *d = &disk;
    pid_t pid;

    snprintf(state, sizeof(state), "%s/state", test_tmpdir());
    medium = mmap(NULL, sizeof(*medium), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(medium != MAP_FAILED);
    host_calls.syncing = syncing;
    host_calls.synced = synced;
    host_calls.wrote = wrote;
    d->seed = seed ? strtoull(seed, NULL, 0) : (uint64_t)now_us();
    printf("SEED=%llu\n", (unsigned long long)d->seed);
    pid = host_fork(&d->h, args);
    host_connect(&d->h);
    host_arm(&d->h, OB_PCI_IRQ_MSIX, 2);
    host_enable(&d->h);
    host_add_queue(&d->h, 1, ENTRIES, 1);
    for (unsigned i = 0; i < DEPTH; i++)
        d->ops[i].at = host_pages(&d->h, 1);
    for (unsigned i = 0; i < KILLS; i++) {
        for (int64_t end = now_us() + rnd(d, 20000); now_us() < end; work(d, true))
            ;
        host_kill(&d->h, pid, SIGKILL);
        cut_power(d);
        pid = host_fork(&d->h, args);
        host_return(&d->h, 2);
    }
    work(d, false);
    printf("%u writes, %llu of the server, %u flushes\n", d->last_stamp,
           (unsigned long long)medium->writes, d->flushes);
    CHECK(d->flushes > 0);
    CHECK_INT(host_kill(&d->h, pid, SIGTERM), 0);
    munmap(medium, sizeof(*medium));
    host_forget(&d->h);
}
