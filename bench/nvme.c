/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver for NVMe controllers behind a vfio-user socket, made to measure them: random reads or
 * writes at a queue depth on one queue, completions polled in memory; with --interrupts it sleeps
 * until the controller sends one.
 *
 *   nvme-driver SOCKET [--rw randread|randwrite] [--depth N] [--block BYTES] [--seconds S]
 *               [--doorbells auto|mapped|shadow|trapped] [--hugepages] [--interrupts]
 *
 * It rings by a store to the mapped page where the server offers one, else through shadow doorbells
 * (Doorbell Buffer Config) where the controller has them, else each time by a posted write. One
 * line of JSON says what came out: latencies in ns, and `rings`, the doorbell writes that were
 * messages. It runs for the time after a tenth of it to warm up.
 */
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "devices/nvme/spec.h"
#include "outboard/client.h"

enum { ADMIN_ENTRIES = 32, ENTRIES = 256, DEPTH_MAX = 128, BLOCK_MAX = 131072 };
enum { PAGE = 4096, RAM_SIZE = 64 << 20, DEADLINE_S = 10 };
enum { BUCKETS_PER_OCTAVE = 32, OCTAVES = 40 };
#define RAM_BASE 0x100000000ull

struct queue {
    unsigned id;
    uint32_t entries, tail, head;
    uint16_t phase;
    struct nvme_sqe *sq;
    volatile struct nvme_cqe *cq;
};

struct driver {
    struct ob_client *client;
    uint8_t *ram;
    uint32_t used; /* bytes of it */
    volatile uint32_t *mapped;
    volatile uint32_t *shadow, *event_idx; /* NULL: not used */
    struct queue admin, io;
    uint64_t blocks, rings;
    unsigned lba_shift;
    int irq_fd; /* -1: completions are polled for */
};

struct job {
    const char *path, *doorbells;
    bool write, hugepages, interrupts;
    unsigned depth, block;
    double seconds;
};

struct slot {
    uint64_t start_ns;
    struct nvme_sqe sqe; /* but for the place on the disk */
};

static uint64_t counts[OCTAVES * BUCKETS_PER_OCTAVE];

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "nvme-driver: %s: %s\n", what, why);
    exit(1);
}

static void must(const char *what, int rc)
{
    char why[128];

    if (rc < 0)
        die(what, ob_strerror(rc, why, sizeof(why)));
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- Memory and registers ------------------------------------------------------------------ */

static void *pages(struct driver *d, uint32_t bytes)
{
    void *at = d->ram + d->used;

    d->used += (bytes + PAGE - 1) / PAGE * PAGE;
    if (d->used > RAM_SIZE)
        die("memory", "not enough");
    return at;
}

static uint64_t address(const struct driver *d, const volatile void *at)
{
    return RAM_BASE + (uint64_t)((const volatile uint8_t *)at - d->ram);
}

static void write_reg(struct driver *d, uint32_t reg, uint64_t value, uint32_t size)
{
    must("register write", ob_client_region_write(d->client, 0, reg, &value, size));
}

static void wait_ready(struct driver *d, uint32_t ready)
{
    uint64_t deadline = now_ns() + DEADLINE_S * 1000000000ull;
    uint32_t csts;

    do {
        must("register read", ob_client_region_read(d->client, 0, NVME_REG_CSTS, &csts, 4));
        if (now_ns() > deadline)
            die("controller", "does not become ready");
    } while ((csts & NVME_CSTS_RDY) != ready);
}

/* ---- Queues -------------------------------------------------------------------------------- */

/* Whether the controller wants to be told (section 7.13, Doorbell Buffer Config). */
static bool wants_event(uint16_t event_idx, uint16_t value, uint16_t before)
{
    return (uint16_t)(value - event_idx - 1) < (uint16_t)(value - before);
}

static void ring(struct driver *d, unsigned index, uint32_t value)
{
    if (d->mapped) {
        __atomic_store_n(&d->mapped[index], value, __ATOMIC_RELEASE);
        return;
    }
    if (d->shadow && index >= 2) {
        uint32_t before = d->shadow[index];
        __atomic_store_n(&d->shadow[index], value, __ATOMIC_RELEASE);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (!wants_event((uint16_t)d->event_idx[index], (uint16_t)value, (uint16_t)before))
            return;
    }
    must("doorbell", ob_client_region_post(d->client, 0, 0x1000 + 4 * index, &value, 4));
    d->rings++;
}

static void queue_init(struct driver *d, struct queue *q, unsigned id, uint32_t entries)
{
    *q = (struct queue){ .id = id, .entries = entries, .phase = 1 };
    q->sq = pages(d, entries * NVME_SQE_SIZE);
    q->cq = pages(d, entries * NVME_CQE_SIZE);
}

static void put(struct queue *q, const struct nvme_sqe *sqe)
{
    q->sq[q->tail] = *sqe;
    q->tail = q->tail + 1 == q->entries ? 0 : q->tail + 1;
}

static bool take(struct queue *q, uint16_t *cid, uint32_t *result)
{
    volatile struct nvme_cqe *cqe = &q->cq[q->head];
    uint16_t status = __atomic_load_n(&cqe->status, __ATOMIC_ACQUIRE);

    if ((status & 1) != q->phase)
        return false;
    if (status >> 1) {
        char why[32];
        snprintf(why, sizeof(why), "status 0x%x", status >> 1);
        die("command", why);
    }
    *cid = cqe->cid;
    *result = cqe->result;
    if (++q->head == q->entries) {
        q->head = 0;
        q->phase ^= 1;
    }
    return true;
}

static uint32_t admin(struct driver *d, struct nvme_sqe sqe)
{
    uint64_t deadline = now_ns() + DEADLINE_S * 1000000000ull;
    uint32_t result;
    uint16_t cid;

    put(&d->admin, &sqe);
    ring(d, 0, d->admin.tail);
    while (!take(&d->admin, &cid, &result))
        if (now_ns() > deadline)
            die("admin command", "is not answered");
    ring(d, 1, d->admin.head);
    return result;
}

/* ---- Setting up ---------------------------------------------------------------------------- */

static void map_memory(struct driver *d, bool hugepages)
{
    int fd = memfd_create("ram", MFD_CLOEXEC | (hugepages ? MFD_HUGETLB : 0));

    if (fd < 0 || ftruncate(fd, RAM_SIZE) != 0)
        die("memory", strerror(errno));
    d->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (d->ram == MAP_FAILED)
        die("memory", strerror(errno));
    must("DMA map",
         ob_client_dma_map(d->client, RAM_BASE, RAM_SIZE, OB_DMA_READ | OB_DMA_WRITE, fd, 0));
    close(fd);
}

static void map_doorbells(struct driver *d)
{
    struct ob_region_info info;
    uint64_t size;
    void *page;

    must("region", ob_client_region_info(d->client, 0, &info));
    for (uint32_t i = 0; i < info.layout.nareas; i++)
        if (info.layout.areas[i].offset == 0x1000 && ob_region_map(&info, i, &page, &size) == 0)
            d->mapped = page;
    ob_region_info_fini(&info);
}

static void enable(struct driver *d)
{
    queue_init(d, &d->admin, 0, ADMIN_ENTRIES);
    write_reg(d, NVME_REG_CC, 0, 4);
    wait_ready(d, 0);
    write_reg(d, NVME_REG_AQA, (ADMIN_ENTRIES - 1) << 16 | (ADMIN_ENTRIES - 1), 4);
    write_reg(d, NVME_REG_ASQ, address(d, d->admin.sq), 8);
    write_reg(d, NVME_REG_ACQ, address(d, d->admin.cq), 8);
    write_reg(d, NVME_REG_CC, 0x00460001, 4);
    wait_ready(d, 1);
}

static void identify(struct driver *d, bool *has_shadow)
{
    struct nvme_id_ctrl *ctrl = pages(d, PAGE);
    struct nvme_id_ns *ns = pages(d, PAGE);

    admin(d, (struct nvme_sqe){
                 .opcode = NVME_ADM_IDENTIFY, .prp1 = address(d, ctrl), .dw10 = NVME_CNS_CTRL });
    admin(d, (struct nvme_sqe){ .opcode = NVME_ADM_IDENTIFY, .nsid = 1, .prp1 = address(d, ns) });
    *has_shadow = ctrl->oacs & NVME_OACS_DBBUF;
    d->blocks = ns->nsze;
    d->lba_shift = ns->lbaf[ns->flbas & 0xf].lbads;
}

static void create_queues(struct driver *d)
{
    const int fds[2] = { -1, d->irq_fd };

    queue_init(d, &d->io, 1, ENTRIES);
    if (d->irq_fd >= 0)
        must("interrupts", ob_client_irq_eventfds(d->client, OB_PCI_IRQ_MSIX, 0, 2, fds));
    admin(d, (struct nvme_sqe){ .opcode = NVME_ADM_SET_FEATURES, .dw10 = NVME_FEAT_QUEUES });
    admin(d, (struct nvme_sqe){ .opcode = NVME_ADM_CREATE_CQ,
                                .prp1 = address(d, d->io.cq),
                                .dw10 = (ENTRIES - 1) << 16 | 1,
                                .dw11 = d->irq_fd < 0 ? 1 : 1 << 16 | 3 });
    admin(d, (struct nvme_sqe){ .opcode = NVME_ADM_CREATE_SQ,
                                .prp1 = address(d, d->io.sq),
                                .dw10 = (ENTRIES - 1) << 16 | 1,
                                .dw11 = 1 << 16 | 1 });
}

static void use_shadow(struct driver *d)
{
    uint32_t *shadow = pages(d, PAGE), *event_idx = pages(d, PAGE);

    admin(d, (struct nvme_sqe){ .opcode = NVME_ADM_DBBUF_CONFIG,
                                .prp1 = address(d, shadow),
                                .prp2 = address(d, event_idx) });
    d->shadow = shadow;
    d->event_idx = event_idx;
}

/* The kind of doorbells that is used. */
static const char *start(struct driver *d, const struct job *job)
{
    bool any = strcmp(job->doorbells, "auto") == 0, has_shadow;
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    uint16_t command = 0x6; /* memory space, bus master */
    char why[256];

    opt.any_files = true; /* who is measured is trusted: SPDK keeps its doorbells on a disk */
    if (ob_client_connect(job->path, &opt, &d->client, why, sizeof(why)) < 0)
        die(job->path, why);
    map_memory(d, job->hugepages);
    must("config space",
         ob_client_region_write(d->client, OB_PCI_REGION_CONFIG, 4, &command, sizeof(command)));
    if (any || strcmp(job->doorbells, "mapped") == 0)
        map_doorbells(d);
    enable(d);
    identify(d, &has_shadow);
    create_queues(d);
    if (d->mapped)
        return "mapped";
    if (has_shadow && (any || strcmp(job->doorbells, "shadow") == 0))
        use_shadow(d);
    if (!any && strcmp(job->doorbells, d->shadow ? "shadow" : "trapped") != 0)
        die(job->doorbells, "the controller has no such doorbells");
    return d->shadow ? "shadow" : "trapped";
}

/* ---- Measuring ----------------------------------------------------------------------------- */

static uint64_t random64(void)
{
    static uint64_t x = 88172645463325252ull;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return x;
}

static unsigned bucket_of(uint64_t ns)
{
    unsigned octave = 0;

    while (ns >> octave >= 2 * BUCKETS_PER_OCTAVE)
        octave++;
    return octave * BUCKETS_PER_OCTAVE + (unsigned)(ns >> octave);
}

/* The upper end of the bucket that the quantile is in. */
static double quantile(uint64_t total, double part)
{
    uint64_t below = 0;
    unsigned i = 0;

    while (i < OCTAVES * BUCKETS_PER_OCTAVE - 1 &&
           (double)(below += counts[i]) < part * (double)total)
        i++;
    unsigned octave = i < 2 * BUCKETS_PER_OCTAVE ? 0 : i / BUCKETS_PER_OCTAVE - 1;
    return (double)((uint64_t)(i - octave * BUCKETS_PER_OCTAVE + 1) << octave);
}

static void prepare_slots(struct driver *d, const struct job *job, struct slot *slots)
{
    for (unsigned i = 0; i < job->depth; i++) {
        uint8_t *data = pages(d, job->block);
        uint64_t *list = job->block > 2 * PAGE ? pages(d, PAGE) : NULL;
        struct nvme_sqe *sqe = &slots[i].sqe;

        *sqe = (struct nvme_sqe){ .opcode = job->write ? NVME_IO_WRITE : NVME_IO_READ,
                                  .cid = (uint16_t)i,
                                  .nsid = 1,
                                  .prp1 = address(d, data),
                                  .dw12 = (job->block >> d->lba_shift) - 1 };
        memset(data, (int)i + 1, job->block);
        if (job->block > PAGE)
            sqe->prp2 = address(d, list ? (uint8_t *)list : data + PAGE);
        for (unsigned k = 1; list && k < job->block / PAGE; k++)
            list[k - 1] = address(d, data + k * PAGE);
    }
}

static void submit(struct driver *d, const struct job *job, struct slot *slot)
{
    unsigned per_request = job->block >> d->lba_shift;
    uint64_t slba = random64() % (d->blocks / per_request) * per_request;

    slot->sqe.dw10 = (uint32_t)slba;
    slot->sqe.dw11 = (uint32_t)(slba >> 32);
    slot->start_ns = now_ns();
    put(&d->io, &slot->sqe);
}

static void wait_interrupt(const struct driver *d)
{
    struct pollfd pfd = { .fd = d->irq_fd, .events = POLLIN };
    uint64_t count;

    if (poll(&pfd, 1, DEADLINE_S * 1000) != 1 || read(d->irq_fd, &count, sizeof(count)) < 0)
        die("commands", "are not completed");
}

/* Runs until the time; how many were completed. latency_ns: NULL while warming up. */
static uint64_t run(struct driver *d, const struct job *job, struct slot *slots, uint64_t end_ns,
                    uint64_t *latency_ns)
{
    uint64_t done = 0, now = now_ns(), seen = now;
    unsigned flying = job->depth, n;

    for (unsigned i = 0; i < job->depth; i++)
        submit(d, job, &slots[i]);
    ring(d, 2, d->io.tail);
    while (flying > 0) {
        uint32_t result;
        uint16_t cid;

        now = now_ns();
        for (n = 0; n < job->depth && take(&d->io, &cid, &result); n++) {
            if (cid >= job->depth)
                die("completion", "of a command that was never sent");
            if (latency_ns) {
                *latency_ns += now - slots[cid].start_ns;
                counts[bucket_of(now - slots[cid].start_ns)]++;
            }
            if (now < end_ns)
                submit(d, job, &slots[cid]);
            else
                flying--;
        }
        if (n > 0) {
            ring(d, 3, d->io.head);
            if (now < end_ns)
                ring(d, 2, d->io.tail);
            seen = now;
        } else if (d->irq_fd >= 0) {
            wait_interrupt(d);
        } else if (now - seen > DEADLINE_S * 1000000000ull) {
            die("commands", "are not completed");
        }
        done += n;
    }
    return done;
}

static void measure(struct driver *d, const struct job *job, const char *doorbells)
{
    struct slot *slots = calloc(job->depth, sizeof(*slots));
    uint64_t ns = (uint64_t)(job->seconds * 1e9), latency_ns = 0, start_ns, done;

    if (!slots)
        die("memory", "not enough");
    prepare_slots(d, job, slots);
    run(d, job, slots, now_ns() + ns / 10, NULL);
    d->rings = 0;
    start_ns = now_ns();
    done = run(d, job, slots, start_ns + ns, &latency_ns);
    double took_s = (double)(now_ns() - start_ns) / 1e9;
    printf("{\"rw\": \"%s\", \"block\": %u, \"depth\": %u, \"doorbells\": \"%s\", \"iops\": %.0f, "
           "\"mean_ns\": %.0f, \"p50_ns\": %.0f, \"p99_ns\": %.0f, \"ios\": %llu, "
           "\"rings\": %llu}\n",
           job->write ? "randwrite" : "randread", job->block, job->depth, doorbells,
           (double)done / took_s, (double)latency_ns / (double)done, quantile(done, 0.5),
           quantile(done, 0.99), (unsigned long long)done, (unsigned long long)d->rings);
    free(slots);
}

static void parse(int argc, char **argv, struct job *job)
{
    static const struct option options[] = {
        { "rw", required_argument, NULL, 'r' },        { "depth", required_argument, NULL, 'd' },
        { "block", required_argument, NULL, 'b' },     { "seconds", required_argument, NULL, 's' },
        { "hugepages", no_argument, NULL, 'h' },       { "interrupts", no_argument, NULL, 'i' },
        { "doorbells", required_argument, NULL, 'k' }, { 0 },
    };
    int opt;

    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (opt == 'r')
            job->write = strcmp(optarg, "randwrite") == 0;
        else if (opt == 'd')
            job->depth = (unsigned)strtoul(optarg, NULL, 10);
        else if (opt == 'b')
            job->block = (unsigned)strtoul(optarg, NULL, 10);
        else if (opt == 's')
            job->seconds = strtod(optarg, NULL);
        else if (opt == 'h')
            job->hugepages = true;
        else if (opt == 'i')
            job->interrupts = true;
        else if (opt == 'k')
            job->doorbells = optarg;
        else
            exit(2);
    }
    if (optind != argc - 1 || job->depth < 1 || job->depth > DEPTH_MAX || job->block < 512 ||
        job->block > BLOCK_MAX || (job->block > PAGE && job->block % PAGE) || job->seconds <= 0)
        die("usage", "see the top of bench/nvme.c");
    job->path = argv[optind];
}

int main(int argc, char **argv)
{
    struct job job = { .doorbells = "auto", .depth = 1, .block = PAGE, .seconds = 1 };
    struct driver driver = { 0 };
    const char *doorbells;

    parse(argc, argv, &job);
    driver.irq_fd = job.interrupts ? eventfd(0, EFD_CLOEXEC) : -1;
    doorbells = start(&driver, &job);
    if (driver.blocks < job.block >> driver.lba_shift)
        die("namespace", "is smaller than a request");
    measure(&driver, &job, doorbells);
    write_reg(&driver, NVME_REG_CC, 0, 4);
    wait_ready(&driver, 0);
    ob_client_free(driver.client);
    return 0;
}
