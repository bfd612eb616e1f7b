/* SPDX-License-Identifier: BSD-3-Clause */
/* The NVMe controller: enabling, queues, doorbells, interrupts. */
#include "nvme_host.h"

#include <poll.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define FLUSH ((struct nvme_sqe){ .opcode = NVME_IO_FLUSH, .nsid = 1 })
#define AER   ((struct nvme_sqe){ .opcode = NVME_ADM_ASYNC_EVENT })

/* ---- Registers ----------------------------------------------------------------------------- */

TEST(registers, "registers-read-in-any-size-and-write-in-words")
{
    struct nvme_host h = { 0 };
    uint64_t cap, asq = 0x123456789000;
    uint8_t bytes[64], byte = 0xff;

    host_serve(&h, "mem:1M", NULL);
    host_connect(&h);
    CHECK_INT(ob_client_region_read(h.client, 0, NVME_REG_CAP, &cap, 8), 0);
    CHECK_INT(cap & 0xffff, 1023);
    CHECK_INT(cap >> 16 & 1, 1);    /* contiguous queues */
    CHECK_INT(cap >> 32 & 0xf, 0);  /* doorbell stride */
    CHECK_INT(cap >> 37 & 1, 1);    /* NVM command set */
    CHECK_INT(cap >> 48 & 0xff, 0); /* pages of 4 KiB only */
    CHECK_INT(host_read32(&h, NVME_REG_VS), 0x00010400);
    CHECK_INT(ob_client_region_read(h.client, 0, 1, bytes, 63), 0);
    CHECK_MEM(bytes, (uint8_t *)&cap + 1, 7);
    CHECK_INT(ob_client_region_write(h.client, 0, NVME_REG_ASQ, &asq, 8), 0);
    CHECK_INT(ob_client_region_write(h.client, 0, NVME_REG_ASQ + 1, &byte, 1), 0); /* no effect */
    CHECK_INT(host_read32(&h, NVME_REG_ASQ), 0x56789000);
    CHECK_INT(host_read32(&h, NVME_REG_ASQ + 4), 0x1234);
    host_write32(&h, NVME_REG_CAP, 0);
    host_write32(&h, NVME_REG_CSTS, 0xff);
    CHECK_INT(host_read32(&h, NVME_REG_CSTS), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(bad_enable, "enabling-with-what-is-not-supported-is-fatal-until-reset")
{
    static const uint32_t bad_cc[] = { 0x00460081, 0x00460011, 0x00460801 };
    struct nvme_host h = { 0 };

    host_serve(&h, "mem:1M", NULL);
    host_connect(&h);
    for (unsigned i = 0; i < 3; i++) { /* page size, command set, arbitration */
        host_write32(&h, NVME_REG_AQA, 0x000f000f);
        host_write32(&h, NVME_REG_CC, bad_cc[i]);
        CHECK_INT(host_read32(&h, NVME_REG_CSTS), NVME_CSTS_CFS);
        host_write32(&h, NVME_REG_CC, 0);
        CHECK_INT(host_read32(&h, NVME_REG_CSTS), 0);
    }
    host_write32(&h, NVME_REG_AQA, 0);
    host_write32(&h, NVME_REG_CC, 0x00460001);
    CHECK_INT(host_read32(&h, NVME_REG_CSTS), NVME_CSTS_CFS);
    host_disable(&h);
    host_enable(&h);
    CHECK_INT(host_identify(&h, NVME_CNS_CTRL, 0, host_pages(&h, 1)), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(lost_queue, "a-queue-outside-of-memory-is-fatal-until-reset")
{
    struct nvme_host h = { 0 };

    host_serve(&h, "mem:1M", NULL);
    host_connect(&h);
    host_enable(&h);
    CHECK_INT(ob_client_dma_unmap(h.client, HOST_RAM_BASE, HOST_RAM_SIZE), 0);
    host_submit(&h, 0, AER);
    host_wait_reg(&h, NVME_REG_CSTS, 3, NVME_CSTS_RDY | NVME_CSTS_CFS);
    CHECK_INT(ob_client_dma_map(h.client, HOST_RAM_BASE, HOST_RAM_SIZE, OB_DMA_READ | OB_DMA_WRITE,
                                h.ram_fd, 0),
              0);
    host_disable(&h);
    host_enable(&h);
    CHECK_INT(host_identify(&h, NVME_CNS_CTRL, 0, host_pages(&h, 1)), 0);
    CHECK_INT(host_end(&h), 0);
}

/* ---- Queues -------------------------------------------------------------------------------- */

static uint16_t create(struct nvme_host *h, uint8_t opcode, uint64_t prp1, uint32_t dw10,
                       uint32_t dw11)
{
    return host_do(h, 0,
                   (struct nvme_sqe){ .opcode = opcode, .prp1 = prp1, .dw10 = dw10, .dw11 = dw11 },
                   NULL);
}

TEST(create_errors, "creating-a-queue-checks-everything")
{
    struct nvme_host h = { 0 };
    uint64_t page;

    host_start(&h, "--queues=4", "mem:1M");
    page = host_addr(host_pages(&h, 4));
    CHECK_INT(create(&h, NVME_ADM_CREATE_CQ, page, 0x003f0000, 3), NVME_INVALID_QID);
    CHECK_INT(create(&h, NVME_ADM_CREATE_CQ, page, 0x003f0001, 3), NVME_INVALID_QID); /* there */
    CHECK_INT(create(&h, NVME_ADM_CREATE_CQ, page, 0x003f0005, 3), NVME_INVALID_QID);
    CHECK_INT(create(&h, NVME_ADM_CREATE_CQ, page, 0x003fffff, 3), NVME_INVALID_QID);
    CHECK_INT(create(&h, NVME_ADM_CREATE_CQ, page, 0x00000002, 3), NVME_INVALID_QUEUE_SIZE);
    CHECK_INT(create(&h, NVME_ADM_CREATE_CQ, page, 0x04000002, 3), NVME_INVALID_QUEUE_SIZE);
    CHECK_INT(create(&h, NVME_ADM_CREATE_CQ, page, 0x003f0002, 2), NVME_INVALID_FIELD);
    CHECK_INT(create(&h, NVME_ADM_CREATE_CQ, page + 64, 0x003f0002, 3), NVME_PRP_OFFSET_INVALID);
    CHECK_INT(create(&h, NVME_ADM_CREATE_CQ, page, 0x003f0002, 0x00050003), NVME_INVALID_VECTOR);
    CHECK_INT(create(&h, NVME_ADM_CREATE_CQ, page, 0x003f0002, 0x00040003), NVME_OK);
    CHECK_INT(create(&h, NVME_ADM_CREATE_SQ, page, 0x003f0001, 0x00010001), NVME_INVALID_QID);
    CHECK_INT(create(&h, NVME_ADM_CREATE_SQ, page, 0x003f0002, 0x00000001), NVME_CQ_INVALID);
    CHECK_INT(create(&h, NVME_ADM_CREATE_SQ, page, 0x003f0002, 0x00030001), NVME_CQ_INVALID);
    CHECK_INT(create(&h, NVME_ADM_CREATE_SQ, page, 0x003f0002, 0xffff0001), NVME_CQ_INVALID);
    CHECK_INT(create(&h, NVME_ADM_CREATE_SQ, page, 0x00000002, 0x00020001),
              NVME_INVALID_QUEUE_SIZE);
    CHECK_INT(create(&h, NVME_ADM_CREATE_SQ, page, 0x003f0002, 0x00020001), NVME_OK);
    CHECK_INT(create(&h, NVME_ADM_DELETE_CQ, 0, 2, 0), NVME_INVALID_QUEUE_DELETION);
    CHECK_INT(create(&h, NVME_ADM_DELETE_CQ, 0, 3, 0), NVME_INVALID_QID);
    CHECK_INT(create(&h, NVME_ADM_DELETE_CQ, 0, 0, 0), NVME_INVALID_QID);
    CHECK_INT(create(&h, NVME_ADM_DELETE_SQ, 0, 0, 0), NVME_INVALID_QID);
    CHECK_INT(create(&h, NVME_ADM_DELETE_SQ, 0, 0xffff, 0), NVME_INVALID_QID);
    CHECK_INT(create(&h, NVME_ADM_DELETE_SQ, 0, 2, 0), NVME_OK);
    CHECK_INT(create(&h, NVME_ADM_DELETE_SQ, 0, 2, 0), NVME_INVALID_QID);
    CHECK_INT(create(&h, NVME_ADM_DELETE_CQ, 0, 2, 0), NVME_OK);
    host_add_queue(&h, 2, 1024, 2); /* the numbers are free again */
    CHECK_INT(host_do(&h, 2, FLUSH, NULL), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(all_queues, "64-queue-pairs-work-at-once")
{
    struct nvme_host h = { 0 };
    struct nvme_cqe cqe;
    uint32_t at;

    host_serve(&h, "--queues=64", "mem:16M", NULL);
    host_connect(&h);
    host_enable(&h);
    at = host_pages(&h, 64);
    for (uint16_t q = 1; q <= 64; q++) {
        host_add_queue(&h, q, 16, q);
        memset(h.ram + at + 4096u * (q - 1), q, 4096);
    }
    for (uint16_t q = 1; q <= 64; q++)
        host_submit(&h, q, host_io(&h, NVME_IO_WRITE, 8u * q, 8, at + 4096u * (q - 1), 512));
    for (uint16_t q = 1; q <= 64; q++)
        CHECK_INT(host_wait(&h, q, &cqe), 0);
    for (uint16_t q = 64; q >= 1; q--) {
        uint32_t back = host_pages(&h, 1);
        CHECK_INT(host_do(&h, q, host_io(&h, NVME_IO_READ, 8u * q, 8, back, 512), NULL), 0);
        CHECK_MEM(h.ram + back, h.ram + at + 4096u * (q - 1), 4096);
    }
    CHECK_INT(host_end(&h), 0);
}

TEST(shared_cq, "two-submission-queues-share-a-completion-queue-and-wrap-it")
{
    struct nvme_host h = { 0 };
    unsigned from[3] = { 0 };

    host_start(&h, "mem:1M");
    CHECK_INT(create(&h, NVME_ADM_CREATE_SQ, host_addr(host_pages(&h, 1)), 0x003f0002, 0x00010001),
              0);
    h.q[2] = (struct host_queue){ .entries = 64, .sq = (void *)(h.ram + h.used - 4096) };
    for (unsigned round = 0; round < 20; round++) {
        for (unsigned i = 0; i < 15; i++) {
            host_put(&h, 1, FLUSH);
            host_put(&h, 2, FLUSH);
        }
        host_ring(&h, 1);
        host_ring(&h, 2);
        for (unsigned i = 0; i < 30; i++) {
            struct nvme_cqe cqe;
            CHECK_INT(host_wait(&h, 1, &cqe), 0);
            CHECK(cqe.sq_id == 1 || cqe.sq_id == 2);
            from[cqe.sq_id]++;
        }
    }
    CHECK_INT(from[1], 300);
    CHECK_INT(from[2], 300);
    CHECK_INT(host_end(&h), 0);
}

TEST(full_cq, "completions-wait-while-their-queue-is-full")
{
    struct nvme_host h = { 0 };
    struct host_queue *q;
    struct nvme_cqe cqe;

    host_start(&h, "mem:1M");
    /* a completion queue of 4 (it holds 3) for a submission queue of 64 */
    CHECK_INT(create(&h, NVME_ADM_CREATE_CQ, host_addr(host_pages(&h, 1)), 0x00030002, 1), 0);
    h.q[2] = (struct host_queue){ .entries = 64, .cq_entries = 4, .phase = true };
    q = &h.q[2];
    q->cq = (void *)(h.ram + h.used - 4096);
    CHECK_INT(create(&h, NVME_ADM_CREATE_SQ, host_addr(host_pages(&h, 1)), 0x003f0002, 0x00020001),
              0);
    q->sq = (void *)(h.ram + h.used - 4096);
    for (unsigned i = 0; i < 40; i++)
        host_put(&h, 2, FLUSH);
    host_ring(&h, 2);
    CHECK_INT(host_identify(&h, NVME_CNS_CTRL, 0, host_pages(&h, 1)), 0); /* others go on */
    CHECK_INT(q->cq[3].status, 0);
    for (unsigned i = 0; i < 40; i++) {
        CHECK_INT(host_wait(&h, 2, &cqe), 0);
        CHECK(cqe.cid < 40);
    }
    CHECK(!host_poll(&h, 2, 20, &cqe));
    CHECK_INT(host_end(&h), 0);
}

TEST(fair, "a-flooded-queue-does-not-starve-another")
{
    struct nvme_host h = { 0 };
    struct nvme_cqe cqe;
    uint32_t at;

    host_serve(&h, "--doorbells=mapped", "mem:64M", NULL); /* a message would wait its turn too */
    host_connect(&h);
    host_enable(&h);
    host_add_queue(&h, 1, 1024, 1);
    host_add_queue(&h, 2, 16, 2);
    at = host_pages(&h, 256);
    struct nvme_sqe big = host_io(&h, NVME_IO_READ, 0, 2048, at, 512);
    for (unsigned i = 0; i < 1000; i++)
        host_put(&h, 1, big);
    host_ring(&h, 1);
    CHECK_INT(host_do(&h, 2, FLUSH, NULL), 0);
    /* 1000 MiB take a while: the other queue's one command did not wait for all of it */
    unsigned left = 1000;
    while (host_poll(&h, 1, 0, &cqe))
        left--;
    CHECK(left > 500);
    while (left > 0) {
        CHECK_INT(host_wait(&h, 1, &cqe), 0);
        left--;
    }
    CHECK_INT(host_end(&h), 0);
}

/* ---- Doorbells ----------------------------------------------------------------------------- */

static void expect_event(struct nvme_host *h, uint32_t event)
{
    struct nvme_cqe cqe;

    CHECK_INT(host_wait(h, 0, &cqe), 0);
    CHECK_INT(cqe.result, event);
}

static void bad_doorbells(bool trapped)
{
    struct nvme_host h = { .trapped = trapped };
    uint32_t at;

    host_start(&h, trapped ? "--doorbells=trapped" : "--doorbells=mapped", "mem:1M");
    CHECK_INT(h.doorbells != NULL, !trapped);
    at = host_pages(&h, 2);
    host_submit(&h, 0, AER);
    h.q[1].tail = 64; /* one past the last entry */
    host_ring(&h, 1);
    expect_event(&h, NVME_EVENT_BAD_DOORBELL_VALUE);
    CHECK_INT(host_log(&h, NVME_LOG_ERROR, 4096, 0, at), 0);
    host_submit(&h, 0, AER);
    host_write32(&h, 0x1000 + 4 * 3, 5); /* head of completion queue 1: nothing was posted */
    expect_event(&h, NVME_EVENT_BAD_DOORBELL_VALUE);
    CHECK_INT(host_log(&h, NVME_LOG_ERROR, 4096, 0, at), 0);
    host_submit(&h, 0, AER);
    host_write32(&h, 0x1000 + 4 * 8, 1); /* no such queue now */
    expect_event(&h, NVME_EVENT_BAD_DOORBELL);
    CHECK_INT(host_log(&h, NVME_LOG_ERROR, 4096, 0, at), 0);
    host_submit(&h, 0, AER);
    host_write32(&h, 0x1ffc, 1); /* no such queue ever */
    expect_event(&h, NVME_EVENT_BAD_DOORBELL);
    h.q[1].tail = 0;
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0); /* no harm was done */
    CHECK_INT(host_end(&h), 0);
}

TEST(bad_mapped, "wrong-doorbells-are-reported-and-ignored-when-mapped")
{
    bad_doorbells(false);
}

TEST(bad_trapped, "wrong-doorbells-are-reported-and-ignored-when-trapped")
{
    bad_doorbells(true);
}

TEST(mixed, "mapped-doorbells-can-be-rung-by-message-too")
{
    struct nvme_host h = { .trapped = true };

    host_start(&h, "--doorbells=mapped", "mem:1M");
    for (unsigned i = 0; i < 100; i++)
        CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    CHECK_INT(host_end(&h), 0);
}

/* CPU time of the server's thread. Reading it does not wake it. */
static int64_t server_cpu_ns(struct nvme_host *h)
{
    struct timespec ts;
    clockid_t clock;

    CHECK_INT(pthread_getcpuclockid(h->thread, &clock), 0);
    CHECK_INT(clock_gettime(clock, &ts), 0);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static int64_t cpu_of(struct nvme_host *h, int ms)
{
    int64_t before = server_cpu_ns(h);

    poll(NULL, 0, ms);
    return server_cpu_ns(h) - before;
}

/* Polling ends, and from then on there is not one instruction of it for a while. */
static void expect_sleep(struct nvme_host *h)
{
    int64_t deadline = test_now_ms() + 10000;

    while (cpu_of(h, 20) > 0)
        CHECK(test_now_ms() < deadline);
    CHECK_INT(cpu_of(h, 500), 0);
}

TEST(idle_mapped, "an-idle-server-with-mapped-doorbells-hardly-runs")
{
    struct nvme_host h = { 0 };

    host_start(&h, "--doorbells=mapped", "mem:1M");
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    CHECK(cpu_of(&h, 300) < 60000000);
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0); /* and is still there */
    host_disable(&h);
    expect_sleep(&h);
    host_enable(&h);
    host_leave(&h);
    expect_sleep(&h);
    CHECK_INT(host_end(&h), 0);
}

TEST(idle, "an-idle-server-does-not-run-at-all")
{
    struct nvme_host h = { 0 };

    host_start(&h, "mem:1M");
    for (unsigned shadow = 0; shadow < 2; shadow++) {
        for (unsigned i = 0; i < 100; i++)
            CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
        expect_sleep(&h);
        CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0); /* and is still there */
        if (!shadow)
            CHECK_INT(host_shadow(&h), 0);
    }
    CHECK_INT(host_end(&h), 0);
}

/* ---- Interrupts ---------------------------------------------------------------------------- */

static bool signalled(struct nvme_host *h, unsigned vector, int timeout_ms)
{
    struct pollfd pfd = { .fd = h->irq_fds[vector], .events = POLLIN };
    uint64_t count;

    return poll(&pfd, 1, timeout_ms) == 1 && read(pfd.fd, &count, sizeof(count)) == sizeof(count);
}

/* The command completes, and exactly this vector fires. */
static void expect_vector(struct nvme_host *h, uint16_t qid, unsigned vector)
{
    CHECK_INT(host_do(h, qid, FLUSH, NULL), 0);
    CHECK(signalled(h, vector, 5000));
    for (unsigned i = 0; i < h->nirqs; i++)
        CHECK(!signalled(h, i, 0));
}

static void enable_msix(struct nvme_host *h, unsigned vectors)
{
    uint8_t config[256], at;
    uint16_t control;
    uint32_t unmasked = 0;

    CHECK_INT(ob_client_region_read(h->client, OB_PCI_REGION_CONFIG, 0, config, 256), 0);
    for (at = config[0x34]; at && config[at] != 0x11; at = config[at + 1])
        ;
    CHECK(at != 0);
    memcpy(&control, config + at + 2, 2);
    control |= 0x8000;
    CHECK_INT(ob_client_region_write(h->client, OB_PCI_REGION_CONFIG, at + 2u, &control, 2), 0);
    for (unsigned i = 0; i < vectors; i++)
        CHECK_INT(ob_client_region_write(h->client, 0, 0x2000 + 16 * i + 12, &unmasked, 4), 0);
}

TEST(msix, "each-completion-queue-signals-its-msi-x-vector")
{
    struct nvme_host h = { 0 };

    host_start(&h, "--queues=4", "mem:1M");
    host_add_queue(&h, 2, 64, 4);
    enable_msix(&h, 5);
    host_arm(&h, OB_PCI_IRQ_MSIX, 5);
    expect_vector(&h, 1, 1);
    expect_vector(&h, 2, 4);
    host_write32(&h, NVME_REG_INTMS, 0xffffffff); /* not for MSI-X */
    expect_vector(&h, 2, 4);
    CHECK_INT(host_end(&h), 0);
}

/* From here on an interrupt stands for up to so many completions, or waits for up to 100 us times.
 */
static void coalesce(struct nvme_host *h, uint32_t completions, uint32_t times)
{
    CHECK_INT(host_feature(h, NVME_ADM_SET_FEATURES, NVME_FEAT_COALESCING,
                           times << 8 | (completions - 1), NULL),
              0);
    CHECK(signalled(h, 0, 20000));
}

/* Five completions are told of after 25.5 ms. False: by more than one interrupt. */
static bool one_for_five(struct nvme_host *h)
{
    int64_t start_ms = test_now_ms();
    struct nvme_cqe cqe;
    bool one = true;

    for (unsigned i = 0; i < 5; i++)
        host_put(h, 1, FLUSH);
    host_ring(h, 1);
    CHECK(signalled(h, 1, 20000));
    CHECK(test_now_ms() - start_ms >= 24);
    while (signalled(h, 1, 50))
        one = false;
    for (unsigned i = 0; i < 5; i++)
        CHECK_INT(host_wait(h, 1, &cqe), 0);
    return one;
}

TEST(coalesced, "interrupts-wait-for-the-threshold-or-the-time")
{
    struct nvme_host h = { 0 };
    unsigned quick = 0;
    int64_t start;

    host_start(&h, "--queues=2", "mem:1M");
    host_add_queue(&h, 2, 64, 2);
    enable_msix(&h, 3);
    host_arm(&h, OB_PCI_IRQ_MSIX, 3);
    CHECK_INT(host_feature(&h, NVME_ADM_SET_FEATURES, NVME_FEAT_VECTOR, 0x10002, NULL), 0);
    CHECK(signalled(&h, 0, 20000)); /* the admin queue does not wait */
    for (unsigned round = 0; round < 20; round++) {
        bool early = false, late;

        coalesce(&h, 4, 255);
        start = test_now_ms();
        for (unsigned i = 0; i < 4; i++) {
            early |= signalled(&h, 1, 0);
            CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
        }
        CHECK(early || signalled(&h, 1, 20000));
        late = test_now_ms() - start >= 25; /* perhaps by the time, and some still wait */
        CHECK(late || !early);
        quick += !late;
        while (signalled(&h, 1, late ? 50 : 0))
            ;
        expect_vector(&h, 2, 2); /* has it disabled */
    }
    CHECK(quick > 0);
    coalesce(&h, 256, 255);
    for (unsigned tries = 0; !one_for_five(&h); tries++)
        CHECK(tries < 20); /* the server may be kept from its CPU */
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    coalesce(&h, 256, 0); /* no time to wait any more */
    CHECK(signalled(&h, 1, 20000));
    CHECK_INT(host_end(&h), 0);
}

TEST(msi, "msi-signals-the-vector-unless-intms-masks-it")
{
    struct nvme_host h = { 0 };

    host_start(&h, "--queues=3", "mem:1M");
    host_add_queue(&h, 2, 64, 3);
    host_arm(&h, OB_PCI_IRQ_MSI, 4);
    expect_vector(&h, 1, 1);
    expect_vector(&h, 2, 3);
    host_write32(&h, NVME_REG_INTMS, 1u << 3);
    CHECK_INT(host_do(&h, 2, FLUSH, NULL), 0);
    CHECK(!signalled(&h, 3, 30));
    expect_vector(&h, 1, 1);
    host_write32(&h, NVME_REG_INTMC, 1u << 3);
    CHECK(signalled(&h, 3, 20000));
    CHECK_INT(host_end(&h), 0);
}

/* Whether the next so many completions of each queue are there; takes none. */
static bool all_posted(const struct nvme_host *h, uint16_t queues, uint32_t count)
{
    for (uint16_t qid = 1; qid <= queues; qid++) {
        const struct host_queue *q = &h->q[qid];
        uint32_t last = q->cq_head + count - 1;
        const volatile struct nvme_cqe *entry = &q->cq[last % q->cq_entries];
        unsigned phase = last < q->cq_entries ? q->phase : !q->phase;

        if ((entry->status & 1u) != phase)
            return false;
    }
    return true;
}

/*
 * What all queues have asked for, 2 GiB, is not done in one step: a register answers before. The
 * first answer may come before any step, the second cannot. More than once, as this process may
 * be held up between the answer and its look.
 */
TEST_TIMEOUT(bounded, "registers-answer-while-memory-is-read", 120)
{
    struct nvme_host h = { 0 };
    struct nvme_sqe read;
    struct nvme_cqe cqe;
    bool between = false;

    host_start(&h, "--queues=64", "mem:4M");
    for (uint16_t qid = 2; qid <= 64; qid++)
        host_add_queue(&h, qid, 64, qid);
    read = host_io(&h, NVME_IO_READ, 0, 2048, host_pages(&h, 256), 512);
    for (unsigned round = 0; round < 20 && !between; round++) {
        for (uint16_t qid = 1; qid <= 64; qid++)
            for (unsigned i = 0; i < 32; i++)
                host_put(&h, qid, read);
        for (uint16_t qid = 1; qid <= 64; qid++)
            host_ring(&h, qid);
        host_read32(&h, NVME_REG_CSTS);
        host_read32(&h, NVME_REG_CSTS);
        between = !all_posted(&h, 64, 32);
        for (uint16_t qid = 1; qid <= 64; qid++)
            for (unsigned i = 0; i < 32; i++)
                CHECK_INT(host_wait(&h, qid, &cqe), 0);
    }
    CHECK(between);
    CHECK_INT(host_end(&h), 0);
}

TEST(intx, "the-pin-is-high-until-the-host-has-taken-all")
{
    struct nvme_host h = { 0 };
    struct nvme_cqe cqe;

    host_start(&h, "mem:1M");
    host_arm(&h, OB_PCI_IRQ_INTX, 1);
    host_submit(&h, 1, FLUSH);
    CHECK(signalled(&h, 0, 20000));
    CHECK(!signalled(&h, 0, 20)); /* masked by signalling */
    CHECK_INT(ob_client_irq_mask(h.client, OB_PCI_IRQ_INTX, 0, false), 0);
    CHECK(signalled(&h, 0, 20000)); /* nothing was taken: still high */
    CHECK_INT(host_wait(&h, 1, &cqe), 0);
    /* the store of the new head was silent, but is seen before the line is */
    CHECK_INT(ob_client_irq_mask(h.client, OB_PCI_IRQ_INTX, 0, false), 0);
    CHECK(!signalled(&h, 0, 50));

    host_write32(&h, NVME_REG_INTMS, 1u << 1); /* the vector of queue 1 */
    CHECK_INT(host_read32(&h, NVME_REG_INTMS), 2);
    host_submit(&h, 1, FLUSH);
    CHECK(!signalled(&h, 0, 50));
    host_write32(&h, NVME_REG_INTMC, 1u << 1);
    CHECK(signalled(&h, 0, 20000));
    CHECK_INT(host_wait(&h, 1, &cqe), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(cc_fixed, "what-needs-a-disabled-controller-stays-while-it-is-enabled")
{
    struct nvme_host h = { 0 };
    uint32_t cc;

    host_start(&h, "mem:1M");
    cc = host_read32(&h, NVME_REG_CC);
    host_write32(&h, NVME_REG_CC, cc | 0x2 << 4 | 0x3 << 7 | 0x1 << 11);
    CHECK_INT(host_read32(&h, NVME_REG_CC), cc);
    host_disable(&h);
    host_write32(&h, NVME_REG_CC, 0x2 << 4);
    CHECK_INT(host_read32(&h, NVME_REG_CC), 0x2 << 4);
    host_write32(&h, NVME_REG_CC, cc | 0x2 << 4); /* commands that it does not have */
    host_wait_reg(&h, NVME_REG_CSTS, NVME_CSTS_CFS, NVME_CSTS_CFS);
    CHECK_INT(host_end(&h), 0);
}
