/* SPDX-License-Identifier: BSD-3-Clause */
#include "nvme_host.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define DEADLINE_MS   20000
#define ADMIN_ENTRIES 32
#define ARGS_MAX      16

/* ---- The device ---------------------------------------------------------------------------- */

static void log_line(void *opaque, enum ob_log_level level, const char *line)
{
    (void)opaque;
    if (level != OB_LOG_DEBUG)
        printf("server: %s\n", line);
}

static int collect(char **argv, va_list ap)
{
    int argc = 1;

    argv[0] = "nvme";
    while (argc < ARGS_MAX && (argv[argc] = va_arg(ap, char *)))
        argc++;
    optind = 0;
    opterr = 0;
    return argc;
}

static void *serve(void *opaque)
{
    struct nvme_host *h = opaque;

    CHECK_INT(ob_server_run(h->server), 0);
    return NULL;
}

void host_serve(struct nvme_host *h, ...)
{
    char *argv[ARGS_MAX + 1], why[256] = "";
    va_list ap;
    int argc;

    va_start(ap, h);
    argc = collect(argv, ap);
    va_end(ap);
    if (ob_served_nvme.create(argc, argv, log_line, &h->device, &h->server, h->banner,
                              sizeof(h->banner), why, sizeof(why)) != 0)
        test_fail(__FILE__, __LINE__, "create: %s", why);
    snprintf(h->path, sizeof(h->path), "%s/nvme.sock", test_tmpdir());
    CHECK_INT(ob_server_listen(h->server, h->path, 0), 0);
    CHECK_INT(ob_served_nvme.start(h->device), 0);
    CHECK_INT(pthread_create(&h->thread, NULL, serve, h), 0);
    host_ram(h);
}

void host_ram(struct nvme_host *h)
{
    h->ram_fd = memfd_create("ram", MFD_CLOEXEC);
    CHECK_INT(ftruncate(h->ram_fd, HOST_RAM_SIZE), 0);
    h->ram = mmap(NULL, HOST_RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, h->ram_fd, 0);
    CHECK(h->ram != MAP_FAILED);
}

int host_try(char *why, size_t size, ...)
{
    char *argv[ARGS_MAX + 1], banner[256];
    struct ob_server *server;
    void *device;
    va_list ap;
    int argc, rc;

    va_start(ap, size);
    argc = collect(argv, ap);
    va_end(ap);
    why[0] = '\0';
    rc = ob_served_nvme.create(argc, argv, log_line, &device, &server, banner, sizeof(banner), why,
                               size);
    if (rc == 0)
        CHECK_INT(ob_served_nvme.destroy(device), 0);
    return rc;
}

/* ---- Calls that the linker brings here (--wrap) -------------------------------------------- */

struct host_calls host_calls;

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
ssize_t __real_pwritev64v2(int fd, const struct iovec *iov, int n, off_t at, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *iov, int n, off_t at, int flags);

int __wrap_fdatasync(int fd)
{
    uint64_t before = host_calls.syncing ? host_calls.syncing() : 0;
    int rc;

    host_calls.syncs++;
    errno = host_calls.fail_syncs;
    rc = errno ? -1 : __real_fdatasync(fd);
    if (rc == 0 && host_calls.synced)
        host_calls.synced(before);
    return rc;
}

ssize_t __wrap_pwritev64v2(int fd, const struct iovec *iov, int n, off_t at, int flags)
{
    ssize_t rc;

    host_calls.writes++;
    host_calls.durable += flags == RWF_DSYNC;
    errno = host_calls.fail_writes;
    rc = errno ? -1 : __real_pwritev64v2(fd, iov, n, at, flags);
    if (rc > 0 && host_calls.wrote)
        host_calls.wrote(iov, at, rc, flags == RWF_DSYNC);
    return rc;
}

/* ---- The client ---------------------------------------------------------------------------- */

static int dma_read(void *opaque, uint64_t address, void *data, uint32_t count)
{
    struct nvme_host *h = opaque;

    if (address < HOST_RAM_BASE || address - HOST_RAM_BASE > HOST_RAM_SIZE - count)
        return -EFAULT;
    memcpy(data, h->ram + (address - HOST_RAM_BASE), count);
    return 0;
}

static int dma_write(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    struct nvme_host *h = opaque;

    if (address < HOST_RAM_BASE || address - HOST_RAM_BASE > HOST_RAM_SIZE - count)
        return -EFAULT;
    memcpy(h->ram + (address - HOST_RAM_BASE), data, count);
    return 0;
}

static void map_doorbells(struct nvme_host *h)
{
    struct ob_region_info info;
    uint64_t size;
    void *page;

    CHECK_INT(ob_client_region_info(h->client, 0, &info), 0);
    if (!h->trapped && (info.layout.flags & OB_REGION_MMAP)) {
        CHECK_INT(ob_region_map(&info, 0, &page, &size), 0);
        CHECK_INT(size, 4096);
        h->doorbells = page;
    }
    ob_region_info_fini(&info);
}

void host_connect(struct nvme_host *h)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    char why[256] = "";
    uint16_t command = 0x6;

    opt.timeout_ms = 20000;
    opt.dma_read = dma_read;
    opt.dma_write = dma_write;
    opt.opaque = h;
    if (ob_client_connect(h->path, &opt, &h->client, why, sizeof(why)) < 0)
        test_fail(__FILE__, __LINE__, "connect: %s", why);
    CHECK_INT(ob_client_dma_map(h->client, HOST_RAM_BASE, HOST_RAM_SIZE, OB_DMA_READ | OB_DMA_WRITE,
                                h->by_message ? -1 : h->ram_fd, 0),
              0);
    if (!h->kept)
        CHECK_INT(ob_client_region_write(h->client, OB_PCI_REGION_CONFIG, 4, &command, 2), 0);
    map_doorbells(h);
}

void host_leave(struct nvme_host *h)
{
    if (h->doorbells)
        munmap((void *)h->doorbells, 4096);
    h->doorbells = NULL;
    ob_client_free(h->client);
    h->client = NULL;
    for (unsigned i = 0; i < h->nirqs; i++)
        close(h->irq_fds[i]);
    h->nirqs = 0;
}

int host_end(struct nvme_host *h)
{
    int rc;

    if (h->client)
        host_leave(h);
    ob_server_stop(h->server);
    pthread_join(h->thread, NULL);
    rc = ob_served_nvme.destroy(h->device);
    munmap(h->ram, HOST_RAM_SIZE);
    close(h->ram_fd);
    return rc;
}

void host_arm(struct nvme_host *h, uint32_t index, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        h->irq_fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    h->nirqs = count;
    CHECK_INT(ob_client_irq_eventfds(h->client, index, 0, count, h->irq_fds), 0);
}

/* ---- Registers and memory ------------------------------------------------------------------ */

uint32_t host_read32(struct nvme_host *h, uint32_t reg)
{
    uint32_t value;

    CHECK_INT(ob_client_region_read(h->client, 0, reg, &value, 4), 0);
    return value;
}

void host_write32(struct nvme_host *h, uint32_t reg, uint32_t value)
{
    CHECK_INT(ob_client_region_write(h->client, 0, reg, &value, 4), 0);
}

void host_wait_reg(struct nvme_host *h, uint32_t reg, uint32_t mask, uint32_t value)
{
    int64_t deadline = test_now_ms() + DEADLINE_MS;

    while ((host_read32(h, reg) & mask) != value)
        if (test_now_ms() > deadline)
            test_fail(__FILE__, __LINE__, "register 0x%x is 0x%x, never 0x%x", reg,
                      host_read32(h, reg), value);
}

uint32_t host_pages(struct nvme_host *h, uint32_t count)
{
    uint32_t at = h->used;

    h->used += count * NVME_PAGE;
    CHECK(h->used <= HOST_RAM_SIZE);
    memset(h->ram + at, 0, count * NVME_PAGE);
    return at;
}

/* ---- Queues -------------------------------------------------------------------------------- */

static uint64_t queue_memory(struct nvme_host *h, struct host_queue *q, uint32_t entries)
{
    uint32_t sq = host_pages(h, (entries * NVME_SQE_SIZE + NVME_PAGE - 1) / NVME_PAGE);
    uint32_t cq = host_pages(h, (entries * NVME_CQE_SIZE + NVME_PAGE - 1) / NVME_PAGE);

    *q = (struct host_queue){ .entries = entries, .cq_entries = entries, .phase = true };
    q->sq = (void *)(h->ram + sq);
    q->cq = (void *)(h->ram + cq);
    return host_addr(sq);
}

static uint64_t cq_addr(const struct nvme_host *h, const struct host_queue *q)
{
    return HOST_RAM_BASE + (uint64_t)((const uint8_t *)q->cq - h->ram);
}

void host_enable(struct nvme_host *h)
{
    uint64_t asq = queue_memory(h, &h->q[0], ADMIN_ENTRIES), acq = cq_addr(h, &h->q[0]);

    h->shadow = NULL;
    host_write32(h, NVME_REG_AQA, (ADMIN_ENTRIES - 1) << 16 | (ADMIN_ENTRIES - 1));
    CHECK_INT(ob_client_region_write(h->client, 0, NVME_REG_ASQ, &asq, 8), 0);
    CHECK_INT(ob_client_region_write(h->client, 0, NVME_REG_ACQ, &acq, 8), 0);
    host_write32(h, NVME_REG_CC, 0x00460001);
    host_wait_reg(h, NVME_REG_CSTS, 3, 1);
}

void host_disable(struct nvme_host *h)
{
    host_write32(h, NVME_REG_CC, 0x00460000);
    host_wait_reg(h, NVME_REG_CSTS, 1, 0);
}

void host_add_queue(struct nvme_host *h, uint16_t qid, uint32_t entries, uint16_t vector)
{
    struct host_queue *q = &h->q[qid];
    uint64_t sq = queue_memory(h, q, entries);
    struct nvme_sqe create = { .opcode = NVME_ADM_CREATE_CQ,
                               .prp1 = cq_addr(h, q),
                               .dw10 = (entries - 1) << 16 | qid,
                               .dw11 = (uint32_t)vector << 16 | 3 };

    CHECK_INT(host_do(h, 0, create, NULL), 0);
    create.opcode = NVME_ADM_CREATE_SQ;
    create.prp1 = sq;
    create.dw11 = (uint32_t)qid << 16 | 1;
    CHECK_INT(host_do(h, 0, create, NULL), 0);
}

void host_ring_message(struct nvme_host *h, unsigned index, uint32_t value)
{
    if (h->posts)
        CHECK_INT(ob_client_region_post(h->client, 0, 0x1000 + 4 * index, &value, 4), 0);
    else
        host_write32(h, 0x1000 + 4 * index, value);
    h->rings++;
}

/* Whether the controller wants a message for that. */
static bool ring_shadow(struct nvme_host *h, unsigned index, uint32_t value)
{
    uint16_t before = (uint16_t)h->shadow[index];

    __atomic_store_n(&h->shadow[index], value, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return (uint16_t)(value - h->events[index] - 1) < (uint16_t)(value - before);
}

static void ring(struct nvme_host *h, unsigned index, uint32_t value)
{
    if (h->doorbells)
        __atomic_store_n(&h->doorbells[index], value, __ATOMIC_RELEASE);
    else if (!h->shadow || index < 2 || ring_shadow(h, index, value))
        host_ring_message(h, index, value);
}

uint16_t host_shadow(struct nvme_host *h)
{
    uint32_t shadow = host_pages(h, 1), events = host_pages(h, 1);
    struct nvme_sqe config = { .opcode = NVME_ADM_DBBUF_CONFIG,
                               .prp1 = host_addr(shadow),
                               .prp2 = host_addr(events) };
    uint16_t status = host_do(h, 0, config, NULL);

    if (status == 0) {
        h->shadow = (void *)(h->ram + shadow);
        h->events = (void *)(h->ram + events);
    }
    return status;
}

uint16_t host_put(struct nvme_host *h, uint16_t qid, struct nvme_sqe sqe)
{
    struct host_queue *q = &h->q[qid];

    sqe.cid = q->next_cid++;
    q->sq[q->tail] = sqe;
    q->tail = (q->tail + 1) % q->entries;
    return sqe.cid;
}

void host_ring(struct nvme_host *h, uint16_t qid)
{
    ring(h, 2u * qid, h->q[qid].tail);
}

uint16_t host_submit(struct nvme_host *h, uint16_t qid, struct nvme_sqe sqe)
{
    uint16_t cid = host_put(h, qid, sqe);

    host_ring(h, qid);
    return cid;
}

/* With DMA by message the client must receive while it looks. */
static void look(struct nvme_host *h)
{
    static const struct timespec pause = { .tv_nsec = 20000 };

    if (h->by_message && h->client)
        ob_client_step(h->client);
    else
        nanosleep(&pause, NULL);
}

bool host_poll(struct nvme_host *h, uint16_t qid, int timeout_ms, struct nvme_cqe *out)
{
    struct host_queue *q = &h->q[qid];
    volatile struct nvme_cqe *entry = &q->cq[q->cq_head];
    int64_t deadline = test_now_ms() + timeout_ms;

    while ((__atomic_load_n(&entry->status, __ATOMIC_ACQUIRE) & 1) != q->phase) {
        if (test_now_ms() >= deadline)
            return false;
        look(h);
    }
    *out = *entry;
    q->cq_head = (q->cq_head + 1) % q->cq_entries;
    if (q->cq_head == 0)
        q->phase = !q->phase;
    ring(h, 2u * qid + 1, q->cq_head);
    return true;
}

uint16_t host_wait(struct nvme_host *h, uint16_t qid, struct nvme_cqe *out)
{
    if (!host_poll(h, qid, DEADLINE_MS, out))
        test_fail(__FILE__, __LINE__, "no completion in queue %u", qid);
    return out->status >> 1;
}

uint16_t host_do(struct nvme_host *h, uint16_t qid, struct nvme_sqe sqe, struct nvme_cqe *out)
{
    uint16_t cid = host_submit(h, qid, sqe);
    struct nvme_cqe cqe;
    uint16_t status = host_wait(h, qid, &cqe);

    CHECK_INT(cqe.cid, cid);
    CHECK_INT(cqe.sq_id, qid);
    if (out)
        *out = cqe;
    return status;
}

/* ---- Commands ------------------------------------------------------------------------------ */

struct nvme_sqe host_io(struct nvme_host *h, uint8_t opcode, uint64_t slba, uint32_t blocks,
                        uint32_t at, uint32_t lba_size)
{
    struct nvme_sqe sqe = { .opcode = opcode, .nsid = 1, .prp1 = host_addr(at) };
    uint32_t bytes = opcode == NVME_IO_WRITE_ZEROES ? 0 : blocks * lba_size;
    uint32_t pages = (bytes + NVME_PAGE - 1) / NVME_PAGE;

    sqe.dw10 = (uint32_t)slba;
    sqe.dw11 = (uint32_t)(slba >> 32);
    sqe.dw12 = blocks - 1;
    if (pages == 2)
        sqe.prp2 = host_addr(at + NVME_PAGE);
    if (pages > 2) {
        uint32_t list = host_pages(h, (pages + 510) / 511);
        uint64_t *entry = (void *)(h->ram + list);
        CHECK(pages <= 512);
        for (uint32_t i = 1; i < pages; i++)
            *entry++ = host_addr(at + i * NVME_PAGE);
        sqe.prp2 = host_addr(list);
    }
    return sqe;
}

uint16_t host_identify(struct nvme_host *h, uint8_t cns, uint32_t nsid, uint32_t at)
{
    return host_do(
        h, 0,
        (struct nvme_sqe){
            .opcode = NVME_ADM_IDENTIFY, .nsid = nsid, .prp1 = host_addr(at), .dw10 = cns },
        NULL);
}

uint16_t host_feature(struct nvme_host *h, uint8_t opcode, uint32_t dw10, uint32_t dw11,
                      uint32_t *result)
{
    struct nvme_cqe cqe;
    uint16_t status =
        host_do(h, 0, (struct nvme_sqe){ .opcode = opcode, .dw10 = dw10, .dw11 = dw11 }, &cqe);

    if (result)
        *result = cqe.result;
    return status;
}

uint16_t host_log(struct nvme_host *h, uint8_t lid, uint32_t bytes, uint64_t offset, uint32_t at)
{
    uint32_t dwords = bytes / 4 - 1;

    return host_do(h, 0,
                   (struct nvme_sqe){ .opcode = NVME_ADM_GET_LOG_PAGE,
                                      .nsid = NVME_NSID_ALL,
                                      .prp1 = host_addr(at),
                                      .prp2 = host_addr(at + NVME_PAGE),
                                      .dw10 = dwords << 16 | lid,
                                      .dw11 = dwords >> 16,
                                      .dw12 = (uint32_t)offset,
                                      .dw13 = (uint32_t)(offset >> 32) },
                   NULL);
}

/* ---- Data ---------------------------------------------------------------------------------- */

void host_pattern(void *out, size_t len, uint64_t seed)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
    uint8_t *bytes = out;

    for (size_t i = 0; i < len; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        bytes[i] = (uint8_t)(x >> 56);
    }
}

const char *host_image(const char *name, uint64_t size, uint32_t seed)
{
    static char path[2][128];
    static unsigned turn;
    char *out = path[turn++ % 2];
    uint8_t block[65536];
    int fd;

    snprintf(out, sizeof(path[0]), "%s/%s", test_tmpdir(), name);
    fd = open(out, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK_INT(ftruncate(fd, (off_t)size), 0);
    for (uint64_t at = 0; seed && at < size; at += sizeof(block)) {
        size_t n = size - at < sizeof(block) ? size - at : sizeof(block);
        host_pattern(block, n, seed + at);
        CHECK_INT(pwrite(fd, block, n, (off_t)at), n);
    }
    close(fd);
    return out;
}
