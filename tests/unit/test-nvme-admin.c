/* SPDX-License-Identifier: BSD-3-Clause */
/* Admin commands of the NVMe controller. */
#include "nvme_host.h"

#include <stdio.h>
#include <unistd.h>

#define SEL(n) ((uint32_t)(n) << 8)
#define AER    ((struct nvme_sqe){ .opcode = NVME_ADM_ASYNC_EVENT })
#define BLOCKS 2048u

static struct nvme_host h;
static uint32_t at; /* a page, and a second one */

static void start(void)
{
    host_start(&h, "--queues=3", "--serial=S1", "--model=Disk of a test", "mem:1M");
    at = host_pages(&h, 2);
}

/* ---- Identify ------------------------------------------------------------------------------ */

TEST(id_ctrl, "identify-controller-says-what-there-is")
{
    struct nvme_id_ctrl *id;

    start();
    memset(h.ram + at, 0xff, 8192);
    CHECK_INT(host_identify(&h, NVME_CNS_CTRL, 0, at), 0);
    id = (void *)(h.ram + at);
    CHECK_MEM(id->sn, "S1                  ", 20);
    CHECK_MEM(id->mn, "Disk of a test                          ", 40);
    CHECK_MEM(id->fr, "0.1     ", 8);
    CHECK_INT(id->vid, 0x4f42);
    CHECK_INT(id->mdts, 8);
    CHECK_INT(id->ver, 0x00010400);
    CHECK_INT(id->sqes, 0x66);
    CHECK_INT(id->cqes, 0x44);
    CHECK_INT(id->nn, 1);
    CHECK_INT(id->vwc & 1, 1);
    CHECK_INT(id->cntrltype, 1);
    CHECK_MEM(id->subnqn, "nqn.2014-08.org.nvmexpress:uuid:", 32);
    CHECK_INT(strlen(id->subnqn), 68);
    CHECK_INT(h.ram[at + 4096], 0xff); /* one page and no more */
    CHECK_INT(host_end(&h), 0);
}

TEST(id_ns, "identify-namespace-describes-the-disk")
{
    struct nvme_id_ns *id;
    uint8_t nguid[16];

    start();
    CHECK_INT(host_identify(&h, NVME_CNS_NS, 1, at), 0);
    id = (void *)(h.ram + at);
    CHECK_INT(id->nsze, BLOCKS);
    CHECK_INT(id->ncap, BLOCKS);
    CHECK_INT(id->nlbaf, 0);
    CHECK_INT(id->lbaf[0].lbads, 9);
    CHECK_INT(id->dlfeat, 9);
    CHECK_INT(id->nsattr, 0);
    memcpy(nguid, id->nguid, 16);
    CHECK_MEM(id->eui64, nguid + 8, 8);
    CHECK_INT(id->eui64[0] & 2, 2); /* locally administered */
    CHECK_INT(host_identify(&h, NVME_CNS_ALLOCATED_NS_DATA, 1, at), 0);
    CHECK_INT(id->nsze, BLOCKS);
    CHECK_INT(host_identify(&h, NVME_CNS_NS_DESCRIPTORS, 1, at), 0);
    CHECK_MEM(h.ram + at, "\x01\x08\0", 4);
    CHECK_MEM(h.ram + at + 4, nguid + 8, 8);
    CHECK_MEM(h.ram + at + 12, "\x02\x10\0", 4);
    CHECK_MEM(h.ram + at + 16, nguid, 16);
    CHECK_MEM(h.ram + at + 32, "\x03\x10\0", 4);
    CHECK_INT(h.ram[at + 52], 0); /* the end */
    CHECK_INT(host_end(&h), 0);
}

static uint32_t word(unsigned i)
{
    return ((uint32_t *)(void *)(h.ram + at))[i];
}

TEST(id_lists, "identify-lists-end-where-they-should")
{
    start();
    CHECK_INT(host_identify(&h, NVME_CNS_ACTIVE_NS, 0, at), 0);
    CHECK_INT(word(0), 1);
    CHECK_INT(word(1), 0);
    CHECK_INT(host_identify(&h, NVME_CNS_ALLOCATED_NS, 1, at), 0);
    CHECK_INT(word(0), 0);
    CHECK_INT(host_identify(&h, NVME_CNS_ACTIVE_NS, 0xfffffffe, at), NVME_INVALID_NS);
    CHECK_INT(host_identify(&h, NVME_CNS_CTRLS, 0, at), 0);
    CHECK_INT(word(0), 0x00010001); /* one, number 1 */
    CHECK_INT(host_identify(&h, NVME_CNS_NS_CTRLS, 1, at), 0);
    CHECK_INT(word(0), 0x00010001);
    CHECK_INT(host_do(&h, 0,
                      (struct nvme_sqe){ .opcode = NVME_ADM_IDENTIFY,
                                         .prp1 = host_addr(at),
                                         .dw10 = 2u << 16 | NVME_CNS_CTRLS },
                      NULL),
              0);
    CHECK_INT(word(0), 0); /* none from number 2 on */
    CHECK_INT(host_end(&h), 0);
}

TEST(id_errors, "identify-refuses-what-there-is-not")
{
    struct nvme_sqe csi = { .opcode = NVME_ADM_IDENTIFY, .nsid = 1, .dw10 = NVME_CNS_CSI_NS };

    start();
    for (uint32_t nsid = 0; nsid <= 2; nsid += 2) {
        CHECK_INT(host_identify(&h, NVME_CNS_NS, nsid, at), NVME_INVALID_NS);
        CHECK_INT(host_identify(&h, NVME_CNS_NS_DESCRIPTORS, nsid, at), NVME_INVALID_NS);
    }
    CHECK_INT(host_identify(&h, NVME_CNS_NS, NVME_NSID_ALL, at), NVME_INVALID_NS);
    CHECK_INT(host_identify(&h, 0x04, 1, at), NVME_INVALID_FIELD);
    CHECK_INT(host_identify(&h, 0x08, 1, at), NVME_INVALID_FIELD);
    CHECK_INT(host_identify(&h, 0xff, 0, at), NVME_INVALID_FIELD);
    /* command sets: 0 is the NVM one */
    csi.prp1 = host_addr(at);
    CHECK_INT(host_do(&h, 0, csi, NULL), 0);
    csi.dw10 = NVME_CNS_CSI_CTRL;
    CHECK_INT(host_do(&h, 0, csi, NULL), 0);
    csi.dw11 = 2u << 24;
    CHECK_INT(host_do(&h, 0, csi, NULL), NVME_INVALID_FIELD);
    CHECK_INT(host_do(&h, 0, (struct nvme_sqe){ .opcode = 0x80 }, NULL), NVME_INVALID_OPCODE);
    CHECK_INT(host_do(&h, 0, (struct nvme_sqe){ .opcode = 0x18 }, NULL), NVME_INVALID_OPCODE);
    CHECK_INT(host_end(&h), 0);
}

/* ---- Features ------------------------------------------------------------------------------ */

static uint32_t get(uint32_t dw10, uint32_t dw11)
{
    uint32_t value = 0;

    CHECK_INT(host_feature(&h, NVME_ADM_GET_FEATURES, dw10, dw11, &value), 0);
    return value;
}

static uint16_t set(uint32_t dw10, uint32_t dw11)
{
    return host_feature(&h, NVME_ADM_SET_FEATURES, dw10, dw11, NULL);
}

TEST(features, "features-are-set-got-and-reset")
{
    static const struct {
        uint8_t id;
        uint32_t value;
    } rows[] = { { NVME_FEAT_ARBITRATION, 0x01020303 },
                 { NVME_FEAT_WRITE_CACHE, 0 },
                 { NVME_FEAT_COALESCING, 0x0a05 },
                 { NVME_FEAT_ATOMICITY, 1 },
                 { NVME_FEAT_ASYNC_EVENT, 0x1f } };

    start();
    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        uint8_t id = rows[i].id;
        uint32_t before = get(id, 0);
        CHECK(before != rows[i].value);
        CHECK_INT(set(id, rows[i].value), 0);
        CHECK_INT(get(id, 0), rows[i].value);
        CHECK_INT(get(id | SEL(1), 0), before); /* default */
        CHECK_INT(get(id | SEL(2), 0), before); /* saved: nothing is */
        CHECK_INT(get(id | SEL(3), 0), 4);      /* changeable, not saveable */
        CHECK_INT(set(id | 1u << 31, rows[i].value), NVME_NOT_SAVEABLE);
    }
    host_disable(&h);
    host_enable(&h);
    CHECK_INT(get(NVME_FEAT_WRITE_CACHE, 0), 1);
    CHECK_INT(get(NVME_FEAT_COALESCING, 0), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(feature_queues, "number-of-queues-is-set-before-there-are-any")
{
    uint32_t value;

    start();
    CHECK_INT(get(NVME_FEAT_QUEUES, 0), 0x00020002);
    CHECK_INT(set(NVME_FEAT_QUEUES, 0x00070007), NVME_COMMAND_SEQUENCE_ERROR);
    host_disable(&h);
    host_enable(&h);
    CHECK_INT(host_feature(&h, NVME_ADM_SET_FEATURES, NVME_FEAT_QUEUES, 0x003f003f, &value), 0);
    CHECK_INT(value, 0x00020002);
    CHECK_INT(set(NVME_FEAT_QUEUES, 0xffff), NVME_INVALID_FIELD);
    CHECK_INT(set(NVME_FEAT_QUEUES, 0xffff0000), NVME_INVALID_FIELD);
    CHECK_INT(host_end(&h), 0);
}

TEST(feature_errors, "features-refuse-what-they-have-not")
{
    start();
    CHECK_INT(set(0x7f, 0), NVME_INVALID_FIELD);
    CHECK_INT(host_feature(&h, NVME_ADM_GET_FEATURES, 0x0c, 0, NULL), NVME_INVALID_FIELD);
    CHECK_INT(host_feature(&h, NVME_ADM_GET_FEATURES, 0x0c | SEL(3), 0, NULL), NVME_INVALID_FIELD);
    CHECK_INT(host_feature(&h, NVME_ADM_GET_FEATURES, 1 | SEL(4), 0, NULL), NVME_INVALID_FIELD);
    CHECK_INT(set(NVME_FEAT_WRITE_CACHE, 2), NVME_INVALID_FIELD);
    CHECK_INT(set(NVME_FEAT_POWER, 1), NVME_INVALID_FIELD);
    CHECK_INT(set(NVME_FEAT_POWER, 0), 0);
    CHECK_INT(set(NVME_FEAT_VECTOR, 4), NVME_INVALID_FIELD);
    CHECK_INT(set(NVME_FEAT_VECTOR, 0x10003), 0);
    CHECK_INT(get(NVME_FEAT_VECTOR, 3), 0x10003);
    CHECK_INT(get(NVME_FEAT_VECTOR | SEL(1), 3), 3);
    CHECK_INT(set(NVME_FEAT_TEMPERATURE, 1 << 16 | 300), NVME_INVALID_FIELD); /* no sensor 1 */
    /* of the namespace, and not of it */
    struct nvme_sqe sqe = { .opcode = NVME_ADM_SET_FEATURES, .nsid = 1, .dw10 = 0x06, .dw11 = 1 };
    CHECK_INT(host_do(&h, 0, sqe, NULL), NVME_NOT_NS_SPECIFIC);
    sqe.dw10 = NVME_FEAT_ERROR_RECOVERY;
    CHECK_INT(host_do(&h, 0, sqe, NULL), 0);
    sqe.nsid = 0;
    CHECK_INT(host_do(&h, 0, sqe, NULL), NVME_INVALID_NS);
    sqe.nsid = 1;
    sqe.dw11 = 1 << 16; /* DULBE, which the namespace has not */
    CHECK_INT(host_do(&h, 0, sqe, NULL), NVME_INVALID_FIELD);
    CHECK_INT(host_end(&h), 0);
}

TEST(timestamp, "the-timestamp-goes-on-from-what-was-set")
{
    struct nvme_sqe sqe = { .opcode = NVME_ADM_SET_FEATURES, .dw10 = NVME_FEAT_TIMESTAMP };
    uint64_t then = 1700000000000, now = 0;

    start();
    sqe.prp1 = host_addr(at);
    memcpy(h.ram + at, &then, 8);
    CHECK_INT(host_do(&h, 0, sqe, NULL), 0);
    sqe.opcode = NVME_ADM_GET_FEATURES;
    CHECK_INT(host_do(&h, 0, sqe, NULL), 0);
    memcpy(&now, h.ram + at, 6);
    CHECK(now >= then && now < then + 10000);
    CHECK_INT(h.ram[at + 6], 2);
    host_disable(&h);
    host_enable(&h);
    CHECK_INT(host_do(&h, 0, sqe, NULL), 0);
    now = 0;
    memcpy(&now, h.ram + at, 6);
    CHECK(now < 10000);
    CHECK_INT(h.ram[at + 6], 0);
    CHECK_INT(host_end(&h), 0);
}

/* ---- Logs ---------------------------------------------------------------------------------- */

TEST(health, "the-health-log-counts")
{
    struct nvme_health_log *log;
    uint32_t data;

    start();
    data = host_pages(&h, 256);
    for (unsigned i = 0; i < 3; i++)
        CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 0, 2000, data, 512), NULL), 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 0, 1, data, 512), NULL), 0);
    CHECK_INT(host_log(&h, NVME_LOG_HEALTH, 512, 0, at), 0);
    log = (void *)(h.ram + at);
    CHECK_INT(log->critical_warning, 0);
    CHECK_INT(log->temperature[0] | log->temperature[1] << 8, 313);
    CHECK_INT(log->spare, 100);
    CHECK_INT(log->writes.low, 3);
    CHECK_INT(log->units_written.low, 6);
    CHECK_INT(log->reads.low, 1);
    CHECK_INT(log->units_read.low, 1);
    CHECK_INT(log->power_cycles.low, 1);
    CHECK_INT(log->unsafe_shutdowns.low, 0);
    host_leave(&h); /* without a word */
    host_connect(&h);
    host_disable(&h);
    host_enable(&h);
    CHECK_INT(host_log(&h, NVME_LOG_HEALTH, 512, 0, at), 0);
    CHECK_INT(log->power_cycles.low, 2);
    CHECK_INT(log->unsafe_shutdowns.low, 1);
    host_write32(&h, NVME_REG_CC, 0x00464001);
    host_wait_reg(&h, NVME_REG_CSTS, NVME_CSTS_SHST_MASK, NVME_CSTS_SHST_COMPLETE);
    host_leave(&h);
    host_connect(&h);
    host_disable(&h);
    host_enable(&h);
    CHECK_INT(host_log(&h, NVME_LOG_HEALTH, 512, 0, at), 0);
    CHECK_INT(log->unsafe_shutdowns.low, 1);
    CHECK_INT(host_end(&h), 0);
}

TEST(error_log, "the-error-log-has-the-newest-first")
{
    struct nvme_error_entry *log;

    start();
    log = (void *)(h.ram + at);
    CHECK_INT(host_log(&h, NVME_LOG_ERROR, 4096, 0, at), 0);
    CHECK_INT(log[0].count, 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, BLOCKS, 1, at, 512), NULL),
              NVME_LBA_OUT_OF_RANGE);
    CHECK_INT(host_identify(&h, 0xff, 0, at), NVME_INVALID_FIELD);
    CHECK_INT(host_log(&h, NVME_LOG_ERROR, 4096, 0, at), 0);
    CHECK_INT(log[0].count, 2);
    CHECK_INT(log[0].sq_id, 0);
    CHECK_INT(log[0].status >> 1, NVME_INVALID_FIELD);
    CHECK_INT(log[1].count, 1);
    CHECK_INT(log[1].sq_id, 1);
    CHECK_INT(log[1].status >> 1, NVME_LBA_OUT_OF_RANGE);
    CHECK_INT(log[1].lba, BLOCKS);
    CHECK_INT(log[1].nsid, 1);
    for (unsigned i = 0; i < 80; i++)
        CHECK_INT(host_identify(&h, 0xff, 0, at), NVME_INVALID_FIELD);
    CHECK_INT(host_log(&h, NVME_LOG_ERROR, 4096, 0, at), 0);
    CHECK_INT(log[0].count, 82);
    CHECK_INT(log[63].count, 19);
    CHECK_INT(host_end(&h), 0);
}

TEST(logs, "logs-honour-length-and-offset")
{
    struct nvme_sqe sqe = { .opcode = NVME_ADM_GET_LOG_PAGE, .nsid = NVME_NSID_ALL };

    start();
    CHECK_INT(host_log(&h, NVME_LOG_FIRMWARE, 16, 0, at), 0);
    CHECK_INT(h.ram[at], 1);
    CHECK_MEM(h.ram + at + 8, "0.1     ", 8);
    memset(h.ram + at, 0xff, 8192);
    CHECK_INT(host_log(&h, NVME_LOG_FIRMWARE, 8, 8, at), 0);
    CHECK_MEM(h.ram + at, "0.1     \xff", 9);
    CHECK_INT(host_log(&h, NVME_LOG_FIRMWARE, 8192, 508, at), 0); /* past its end: zeroes */
    CHECK_INT(h.ram[at + 8191], 0);
    CHECK_INT(host_log(&h, NVME_LOG_FIRMWARE, 8, 6, at), NVME_INVALID_FIELD);
    CHECK_INT(host_log(&h, NVME_LOG_FIRMWARE, 8, 512, at), NVME_INVALID_FIELD);
    CHECK_INT(host_log(&h, NVME_LOG_FIRMWARE, 8, 1ull << 40, at), NVME_INVALID_FIELD);
    CHECK_INT(host_log(&h, NVME_LOG_CHANGED_NS, 4096, 0, at), 0);
    CHECK_INT(word(0), 0);
    CHECK_INT(host_log(&h, NVME_LOG_EFFECTS, 4096, 0, at), 0);
    CHECK_INT(word(NVME_ADM_IDENTIFY), 1);
    CHECK_INT(word(256 + NVME_IO_WRITE), 3);
    CHECK_INT(word(256 + 0x7f), 0);
    CHECK_INT(host_log(&h, 0x00, 4096, 0, at), NVME_INVALID_LOG_PAGE);
    CHECK_INT(host_log(&h, 0x06, 4096, 0, at), NVME_INVALID_LOG_PAGE);
    CHECK_INT(host_log(&h, 0xc0, 4096, 0, at), NVME_INVALID_LOG_PAGE);
    sqe.dw10 = 0xffff0000 | NVME_LOG_HEALTH; /* as long as can be said */
    sqe.dw11 = 0xffff;
    CHECK_INT(host_do(&h, 0, sqe, NULL), NVME_INVALID_FIELD);
    sqe.nsid = 2;
    CHECK_INT(host_do(&h, 0, sqe, NULL), NVME_INVALID_NS);
    CHECK_INT(host_end(&h), 0);
}

/* ---- Events and Abort ---------------------------------------------------------------------- */

/* Sets the upper temperature threshold; event: that this tells of it at once. */
static void set_threshold(uint32_t kelvin, bool event)
{
    struct nvme_sqe sqe = { .opcode = NVME_ADM_SET_FEATURES,
                            .dw10 = NVME_FEAT_TEMPERATURE,
                            .dw11 = kelvin };
    uint16_t cid = host_submit(&h, 0, sqe);
    bool told = false, answered = false;
    struct nvme_cqe cqe;

    for (int i = 0; i <= event; i++) {
        CHECK_INT(host_wait(&h, 0, &cqe), 0);
        if (cqe.cid == cid) {
            answered = true;
            continue;
        }
        CHECK_INT(cqe.result, NVME_EVENT_TEMPERATURE);
        told = true;
    }
    CHECK(answered && told == event);
}

TEST(aer, "an-event-is-told-once-until-its-log-is-read")
{
    struct nvme_cqe cqe;

    start();
    set_threshold(300, false); /* below what it is; but the host has not asked for such events */
    set_threshold(343, false);
    CHECK_INT(set(NVME_FEAT_ASYNC_EVENT, 0x1f), 0);
    host_submit(&h, 0, AER);
    host_submit(&h, 0, AER);
    set_threshold(300, true);
    set_threshold(343, false);
    set_threshold(300, false); /* again, but the log was not read */
    CHECK_INT(host_do(&h, 0,
                      (struct nvme_sqe){ .opcode = NVME_ADM_GET_LOG_PAGE,
                                         .nsid = NVME_NSID_ALL,
                                         .prp1 = host_addr(at),
                                         .dw10 = 127u << 16 | 0x8000 | NVME_LOG_HEALTH },
                      NULL),
              0); /* RAE: not read for this purpose */
    CHECK_INT(h.ram[at], NVME_WARN_TEMPERATURE);
    CHECK(!host_poll(&h, 0, 20, &cqe));
    host_submit(&h, 0,
                (struct nvme_sqe){ .opcode = NVME_ADM_GET_LOG_PAGE,
                                   .nsid = NVME_NSID_ALL,
                                   .prp1 = host_addr(at),
                                   .dw10 = 127u << 16 | NVME_LOG_HEALTH });
    CHECK_INT(host_wait(&h, 0, &cqe), 0);
    CHECK_INT(cqe.result, NVME_EVENT_TEMPERATURE);
    CHECK_INT(host_wait(&h, 0, &cqe), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(aer_limit, "event-requests-have-a-limit-and-can-be-aborted")
{
    struct nvme_sqe abort = { .opcode = NVME_ADM_ABORT };
    struct nvme_cqe cqe;
    uint16_t cid[4];

    start();
    for (unsigned i = 0; i < 4; i++)
        cid[i] = host_submit(&h, 0, AER);
    CHECK_INT(host_do(&h, 0, AER, NULL), NVME_AER_LIMIT_EXCEEDED);
    abort.dw10 = (uint32_t)cid[1] << 16;
    uint16_t abort_cid = host_submit(&h, 0, abort);
    CHECK_INT(host_wait(&h, 0, &cqe), NVME_ABORT_REQUESTED);
    CHECK_INT(cqe.cid, cid[1]);
    CHECK_INT(host_wait(&h, 0, &cqe), 0);
    CHECK_INT(cqe.cid, abort_cid);
    CHECK_INT(cqe.result, 0);
    CHECK_INT(host_do(&h, 0, abort, &cqe), 0); /* it is not there any more */
    CHECK_INT(cqe.result, 1);
    abort.dw10 = 77u << 16 | 1;
    CHECK_INT(host_do(&h, 0, abort, &cqe), 0);
    CHECK_INT(cqe.result, 1);
    host_submit(&h, 0, AER); /* there is room for one again */
    CHECK(!host_poll(&h, 0, 20, &cqe));
    host_disable(&h); /* forgets them without an answer */
    host_enable(&h);
    for (unsigned i = 0; i < 4; i++)
        host_submit(&h, 0, AER);
    CHECK(!host_poll(&h, 0, 20, &cqe));
    CHECK_INT(host_end(&h), 0);
}
