/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Each call of the allocator and the kernel that the NVMe controller makes fails once, in each way
 * it can: while the disk is built, it is refused with a sentence, or built; while it works, the
 * command has an error and works the second time, or had none, and no data is lost.
 */
#include "faults.h"
#include "nvme_host.h"

#include <errno.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define BLOCKS 128u
#define BYTES  (BLOCKS * 512)

/* ---- Building ------------------------------------------------------------------------------ */

static void no_log(void *opaque, enum ob_log_level level, const char *line)
{
    (void)opaque, (void)level, (void)line;
}

/* Builds the disk and takes it down. Its status; the sentence is in why. */
static int build_once(const char *const *args, char *why, size_t size)
{
    char *argv[8] = { "nvme" }, banner[256];
    struct ob_server *server;
    void *device;
    int argc = 1, status;

    while (args[argc - 1]) {
        argv[argc] = (char *)args[argc - 1];
        argc++;
    }
    why[0] = '\0';
    optind = 0;
    status = ob_served_nvme.create(argc, argv, no_log, &device, &server, banner, sizeof(banner),
                                   why, size);
    if (status == 0)
        CHECK_INT(ob_served_nvme.destroy(device), 0);
    return status;
}

static void build(void *opaque)
{
    char why[256];
    int status = 1;

    for (unsigned tries = 0; status; tries++) {
        faults_enter();
        status = build_once(opaque, why, sizeof(why));
        faults_leave();
        if (status && (!faults_hit() || tries || status != 1 || !why[0]))
            test_fail(__FILE__, __LINE__, "%d: \"%s\" after: %s", status, why, faults_what());
    }
}

static void try_build(const char *image, const char *option, const char *value)
{
    const char *args[] = { image, option, value, NULL };

    faults_init();
    faults_try_all(FAULTS_MAIN, FAULT_ALL, build, args);
}

TEST(build_memory, "disk-in-memory-is-built-or-refused-with-each-failing-call")
{
    try_build("mem:1M", "--queues", "2");
}

TEST(build_uring, "disk-by-uring-is-built-or-refused-with-each-failing-call")
{
    try_build(host_image("image", 1 << 20, 0), "--aio", "uring");
}

/* What one that failed has left behind must be no obstacle to the next. */
static void build_fresh(void *opaque)
{
    const char *const *args = opaque;

    unlink(args[2]);
    build(opaque);
}

static void build_again(void *opaque)
{
    const char *const *args = opaque;
    char why[256];

    unlink(args[2]);
    CHECK_INT(build_once(args, why, sizeof(why)), 0);
    build(opaque);
}

TEST(build_state, "disk-with-a-state-file-is-built-or-refused-with-each-failing-call")
{
    char state[128];
    const char *args[] = { host_image("image", 1 << 20, 0), "--state", state, NULL };

    snprintf(state, sizeof(state), "%s/state", test_tmpdir());
    faults_init();
    faults_try_all(FAULTS_MAIN, FAULT_ALL, build_fresh, args);
    faults_try_all(FAULTS_MAIN, FAULT_ALL, build_again, args);
}

TEST(build_auto, "disk-by-any-means-is-built-or-refused-with-each-failing-call")
{
    try_build(host_image("image", 1 << 20, 0), "--aio", "auto");
}

TEST(build_threads, "disk-by-threads-is-built-or-refused-with-each-failing-call")
{
    try_build(host_image("image", 1 << 20, 0), "--aio", "threads");
}

/* ---- What a client maps -------------------------------------------------------------------- */

#define VECTORS 17u /* more than one message has fds */

struct mapper {
    struct nvme_host h;
    int fds[VECTORS], none[VECTORS];
};

static int map_all(struct mapper *m)
{
    struct ob_client *c = m->h.client;
    struct ob_region_info info;
    uint64_t size;
    void *page;
    int rc = ob_client_region_info(c, 0, &info);

    if (rc < 0)
        return rc;
    ob_region_can_shrink(&info);
    rc = ob_region_map(&info, 0, &page, &size);
    if (rc >= 0)
        munmap(page, size);
    ob_region_info_fini(&info);
    if (rc >= 0)
        rc = ob_client_irq_eventfds(c, OB_PCI_IRQ_MSIX, 0, VECTORS, m->fds);
    if (rc >= 0)
        rc = ob_client_irq_eventfds(c, OB_PCI_IRQ_MSIX, 1, VECTORS - 1, m->none);
    return rc < 0 ? rc : ob_client_irq_disable(c, OB_PCI_IRQ_MSIX);
}

static void client_maps(void *opaque)
{
    struct mapper *m = opaque;
    int rc;

    m->h = (struct nvme_host){ .trapped = true };
    host_serve(&m->h, "mem:1M", "--doorbells", "mapped", NULL);
    host_connect(&m->h);
    faults_enter();
    rc = map_all(m);
    faults_leave();
    if (rc < 0 && !faults_hit())
        test_fail(__FILE__, __LINE__, "%d without a fault", rc);
    if (ob_client_connected(m->h.client)) {
        rc = map_all(m);
        if (rc < 0)
            test_fail(__FILE__, __LINE__, "%d again after: %s", rc, faults_what());
    }
    CHECK_INT(host_end(&m->h), 0);
}

TEST(maps, "client-maps-the-doorbells-and-sets-eventfds-with-each-failing-call")
{
    struct mapper m;

    faults_init();
    for (unsigned i = 0; i < VECTORS; i++) {
        m.fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        m.none[i] = -1;
    }
    faults_try_all(FAULTS_MAIN, FAULT_ALL, client_maps, &m);
    for (unsigned i = 0; i < VECTORS; i++)
        close(m.fds[i]);
}

/* ---- Work ---------------------------------------------------------------------------------- */

struct disk {
    const char *image, *option, *value;
};

/* A command that failed because of the fault works when it comes again. */
static void must(struct nvme_host *h, uint16_t qid, struct nvme_sqe sqe)
{
    uint16_t status = host_do(h, qid, sqe, NULL);

    if (status && faults_hit())
        status = host_do(h, qid, sqe, NULL);
    if (status)
        test_fail(__FILE__, __LINE__, "opcode 0x%x has status 0x%x after: %s", sqe.opcode, status,
                  faults_what());
}

static void read_back(struct nvme_host *h, uint64_t slba, const uint8_t *expected)
{
    uint32_t at = host_pages(h, BYTES / NVME_PAGE);

    must(h, 1, host_io(h, NVME_IO_READ, slba, BLOCKS, at, 512));
    if (memcmp(h->ram + at, expected, BYTES) != 0)
        test_fail(__FILE__, __LINE__, "other data after: %s", faults_what());
    must(h, 1, host_io(h, NVME_IO_COMPARE, slba, BLOCKS, at, 512));
}

static void add_and_delete_queue(struct nvme_host *h)
{
    struct nvme_sqe cq = { .opcode = NVME_ADM_CREATE_CQ,
                           .prp1 = host_addr(host_pages(h, 1)),
                           .dw10 = 15u << 16 | 2,
                           .dw11 = 1 };
    struct nvme_sqe sq = { .opcode = NVME_ADM_CREATE_SQ,
                           .prp1 = host_addr(host_pages(h, 1)),
                           .dw10 = 15u << 16 | 2,
                           .dw11 = 2u << 16 | 1 };

    must(h, 0, cq);
    must(h, 0, sq);
    must(h, 0, (struct nvme_sqe){ .opcode = NVME_ADM_DELETE_SQ, .dw10 = 2 });
    must(h, 0, (struct nvme_sqe){ .opcode = NVME_ADM_DELETE_CQ, .dw10 = 2 });
}

/* Without memory for it the controller has failed, until it is disabled. */
static void enable_again(struct nvme_host *h)
{
    uint32_t status = 0;

    for (unsigned tries = 0; tries < 2 && status != 1; tries++) {
        host_disable(h);
        host_write32(h, NVME_REG_CC, 0x00460001);
        while ((status = host_read32(h, NVME_REG_CSTS) & 3) == 0)
            ;
        if (status != 1 && !faults_hit())
            test_fail(__FILE__, __LINE__, "CSTS is %u without a fault", status);
    }
    CHECK_INT(status, 1);
}

static void work(void *opaque)
{
    static uint8_t data[BYTES];
    static const uint8_t zeros[BYTES];
    const struct disk *disk = opaque;
    struct nvme_host h = { 0 };
    uint32_t at, range;

    faults_hold(true);
    if (strcmp(disk->option, "--state") == 0)
        unlink(disk->value);
    host_start(&h, disk->image, disk->option, disk->value);
    at = host_pages(&h, BYTES / NVME_PAGE);
    range = host_pages(&h, 1);
    host_pattern(data, BYTES, 7);
    memcpy(h.ram + at, data, BYTES);
    ((uint32_t *)(h.ram + range))[1] = BLOCKS;
    faults_hold(false);

    must(&h, 1, host_io(&h, NVME_IO_WRITE, 0, BLOCKS, at, 512));
    must(&h, 1, host_io(&h, NVME_IO_WRITE, 1000, BLOCKS, at, 512));
    read_back(&h, 0, data);
    must(&h, 1, (struct nvme_sqe){ .opcode = NVME_IO_FLUSH, .nsid = 1 });
    must(&h, 1, host_io(&h, NVME_IO_WRITE_ZEROES, 1000, BLOCKS, 0, 512));
    read_back(&h, 1000, zeros);
    must(&h, 1,
         (struct nvme_sqe){
             .opcode = NVME_IO_DSM, .nsid = 1, .prp1 = host_addr(range), .dw10 = 0, .dw11 = 4 });
    add_and_delete_queue(&h);
    must(&h, 0,
         (struct nvme_sqe){
             .opcode = NVME_ADM_IDENTIFY, .prp1 = host_addr(range), .dw10 = NVME_CNS_CTRL });
    enable_again(&h);

    faults_hold(true);
    CHECK_INT(host_end(&h), 0);
    faults_hold(false);
}

static void try_work(const char *image, const char *option, const char *value)
{
    faults_init();
    faults_try_all(FAULTS_OTHERS, FAULT_MEMORY | FAULT_FILE | FAULT_KERNEL, work,
                   &(struct disk){ image, option, value });
}

TEST_TIMEOUT(work_memory, "disk-in-memory-works-on-after-each-failing-call", 120)
{
    try_work("mem:1M", "--aio", "auto");
}

TEST_TIMEOUT(work_uring, "disk-by-uring-works-on-after-each-failing-call", 120)
{
    try_work(host_image("image", 1 << 20, 0), "--aio", "uring");
}

TEST_TIMEOUT(work_threads, "disk-by-threads-works-on-after-each-failing-call", 120)
{
    try_work(host_image("image", 1 << 20, 0), "--aio", "threads");
}

TEST_TIMEOUT(work_state, "disk-with-a-state-file-works-on-after-each-failing-call", 120)
{
    char state[128];

    snprintf(state, sizeof(state), "%s/state", test_tmpdir());
    try_work(host_image("image", 1 << 20, 0), "--state", state);
}
