/* SPDX-License-Identifier: BSD-3-Clause */
/* Resets, shutdown, and clients that leave, in the middle of I/O. */
#include "nvme_host.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#define DISK (32u << 20)
#define DEEP 60u
#define EACH 64u /* pages of a command of the flood */

static const char *const backends[] = { "--aio=uring", "--aio=threads" };

/* Large reads, more than one step can do, each into pages of its own. */
static uint32_t flood(struct nvme_host *h)
{
    uint32_t at = host_pages(h, DEEP * EACH);

    for (unsigned i = 0; i < DEEP; i++)
        host_put(h, 1,
                 host_io(h, NVME_IO_READ, 1024ull * i, EACH * 8, at + i * EACH * NVME_PAGE, 512));
    host_ring(h, 1);
    return at;
}

static void expect_works(struct nvme_host *h)
{
    uint32_t at = host_pages(h, 16), used = h->used;
    uint8_t expect[65536];

    CHECK_INT(host_do(h, 1, host_io(h, NVME_IO_READ, 128, 128, at, 512), NULL), 0);
    host_pattern(expect, sizeof(expect), 1 + 65536);
    CHECK_MEM(h->ram + at, expect, sizeof(expect));
    h->used = used - 16 * NVME_PAGE;
}

TEST(reset, "a-controller-reset-ends-all-io")
{
    for (unsigned b = 0; b < 2; b++) {
        struct nvme_host h = { 0 };
        host_start(&h, backends[b], host_image(backends[b] + 6, DISK, 1));
        for (unsigned round = 0; round < 10; round++) {
            uint32_t used = h.used, at = flood(&h);
            host_disable(&h);
            /* disabled: no page of ours is written any more */
            memset(h.ram + at, 0xa5, DEEP * EACH * NVME_PAGE);
            usleep(2000);
            for (unsigned i = 0; i < DEEP * EACH * NVME_PAGE; i++)
                if (h.ram[at + i] != 0xa5)
                    test_fail(__FILE__, __LINE__, "byte %u was written", i);
            h.used = used;
            host_enable(&h);
            host_add_queue(&h, 1, 64, 1);
            expect_works(&h);
        }
        CHECK_INT(host_end(&h), 0);
    }
}

TEST(device_reset, "a-device-reset-ends-all-io-before-it-is-answered")
{
    for (unsigned b = 0; b < 2; b++) {
        struct nvme_host h = { 0 };
        host_start(&h, backends[b], host_image(backends[b] + 6, DISK, 1));
        for (unsigned round = 0; round < 10; round++) {
            uint32_t used = h.used;
            uint16_t command = 6;
            flood(&h);
            CHECK_INT(ob_client_reset(h.client), 0);
            CHECK_INT(host_read32(&h, NVME_REG_CC), 0);
            CHECK_INT(host_read32(&h, NVME_REG_CSTS), 0);
            CHECK_INT(host_read32(&h, NVME_REG_ASQ), 0);
            CHECK_INT(ob_client_region_write(h.client, OB_PCI_REGION_CONFIG, 4, &command, 2), 0);
            h.used = used;
            host_enable(&h);
            host_add_queue(&h, 1, 64, 1);
            expect_works(&h);
        }
        CHECK_INT(host_end(&h), 0);
    }
}

TEST(delete_sq, "deleting-a-queue-waits-for-its-commands")
{
    struct nvme_host h = { 0 };
    struct nvme_cqe cqe;

    host_start(&h, host_image("disk.img", DISK, 1));
    for (unsigned round = 0; round < 10; round++) {
        uint32_t used = h.used, at = flood(&h);
        CHECK_INT(
            host_do(&h, 0, (struct nvme_sqe){ .opcode = NVME_ADM_DELETE_SQ, .dw10 = 1 }, NULL), 0);
        memset(h.ram + at, 0xa5, NVME_PAGE);
        while (host_poll(&h, 1, 0, &cqe))
            CHECK_INT(cqe.status >> 1, 0);
        CHECK_INT(
            host_do(&h, 0, (struct nvme_sqe){ .opcode = NVME_ADM_DELETE_CQ, .dw10 = 1 }, NULL), 0);
        CHECK_INT(h.ram[at], 0xa5);
        h.used = used;
        host_add_queue(&h, 1, 64, 1);
        expect_works(&h);
    }
    CHECK_INT(host_end(&h), 0);
}

TEST(shutdown, "shutdown-completes-and-a-reset-starts-again")
{
    struct nvme_host h = { 0 };

    host_start(&h, host_image("disk.img", DISK, 1));
    for (uint32_t shn = 1; shn <= 2; shn++) { /* normal and abrupt */
        flood(&h);
        host_write32(&h, NVME_REG_CC, 0x00460001 | shn << 14);
        host_wait_reg(&h, NVME_REG_CSTS, NVME_CSTS_SHST_MASK, NVME_CSTS_SHST_COMPLETE);
        host_disable(&h);
        CHECK_INT(host_read32(&h, NVME_REG_CSTS), 0);
        host_enable(&h);
        host_add_queue(&h, 1, 64, 1);
        expect_works(&h);
    }
    /* reset and shutdown in one write */
    host_write32(&h, NVME_REG_CC, 0x00464000);
    host_wait_reg(&h, NVME_REG_CSTS, NVME_CSTS_SHST_MASK | 1, NVME_CSTS_SHST_COMPLETE);
    CHECK_INT(host_end(&h), 0);
}

/* The driver goes on where it was: its commands complete as if nothing had happened. */
static void reconnect(struct nvme_host *h)
{
    struct nvme_cqe cqe;
    bool seen[DEEP] = { 0 };
    uint32_t used = h->used;
    uint16_t first = h->q[1].next_cid;

    flood(h);
    host_leave(h);
    host_connect(h);
    host_arm(h, OB_PCI_IRQ_MSIX, 2);
    for (unsigned i = 0; i < DEEP; i++) {
        CHECK_INT(host_wait(h, 1, &cqe), 0);
        uint16_t which = (uint16_t)(cqe.cid - first);
        CHECK(which < DEEP && !seen[which]);
        seen[which] = true;
    }
    h->used = used;
    expect_works(h);
}

TEST(reconnect_mapped, "a-client-that-comes-back-goes-on-with-its-commands")
{
    struct nvme_host h = { 0 };

    host_start(&h, host_image("disk.img", DISK, 1));
    for (unsigned round = 0; round < 10; round++)
        reconnect(&h);
    CHECK_INT(host_end(&h), 0);
}

TEST(reconnect_message, "so-does-one-whose-memory-is-reached-by-messages")
{
    struct nvme_host h = { .by_message = true, .trapped = true };

    host_start(&h, host_image("disk.img", DISK, 1));
    for (unsigned round = 0; round < 3; round++)
        reconnect(&h);
    CHECK_INT(host_end(&h), 0);
}

TEST(stranger, "another-client-starts-from-a-reset")
{
    struct nvme_host h = { 0 };

    host_start(&h, host_image("disk.img", DISK, 1));
    for (unsigned round = 0; round < 10; round++) {
        flood(&h);
        host_leave(&h);
        h.used = 0;
        host_connect(&h);
        host_disable(&h);
        host_enable(&h);
        host_add_queue(&h, 1, 64, 1);
        expect_works(&h);
    }
    CHECK_INT(host_end(&h), 0);
}

/* An unmap is answered when no command uses the memory any more. */
TEST(unmap, "memory-taken-back-in-mid-io-is-not-written-afterwards")
{
    struct nvme_host h = { 0 };
    uint64_t other = HOST_RAM_BASE + HOST_RAM_SIZE;
    struct nvme_cqe cqe;

    host_start(&h, host_image("disk.img", DISK, 1));
    for (unsigned round = 0; round < 10; round++) {
        uint32_t used = h.used, at = host_pages(&h, 256);
        CHECK_INT(ob_client_dma_map(h.client, other, 1 << 20, 3, h.ram_fd, at), 0);
        for (unsigned i = 0; i < DEEP; i++) {
            struct nvme_sqe sqe = host_io(&h, NVME_IO_READ, 8, 8, 0, 512);
            sqe.prp1 = other + (uint64_t)i * NVME_PAGE;
            host_put(&h, 1, sqe);
        }
        host_ring(&h, 1);
        CHECK_INT(ob_client_dma_unmap(h.client, other, 1 << 20), 0);
        memset(h.ram + at, 0xa5, 1 << 20);
        for (unsigned i = 0; i < DEEP; i++) {
            uint16_t status = host_wait(&h, 1, &cqe);
            CHECK(status == NVME_OK || status == NVME_DATA_TRANSFER_ERROR);
        }
        for (unsigned i = 0; i < 1 << 20; i++)
            CHECK_INT(h.ram[at + i], 0xa5);
        h.used = used;
    }
    CHECK_INT(host_end(&h), 0);
}

/* Queue memory that moves in the client's mapping table is found again. */
TEST(remap, "queues-survive-a-remapping-of-memory")
{
    struct nvme_host h = { 0 };

    host_start(&h, host_image("disk.img", DISK, 1));
    for (unsigned round = 0; round < 10; round++) {
        expect_works(&h);
        CHECK_INT(ob_client_dma_unmap(h.client, HOST_RAM_BASE, HOST_RAM_SIZE), 0);
        CHECK_INT(ob_client_dma_map(h.client, HOST_RAM_BASE, HOST_RAM_SIZE, 3,
                                    round % 2 ? h.ram_fd : -1, 0),
                  0);
        h.by_message = round % 2 == 0;
    }
    CHECK_INT(host_end(&h), 0);
}

TEST(end_in_mid_io, "the-device-ends-cleanly-in-mid-io")
{
    for (unsigned b = 0; b < 2; b++) {
        struct nvme_host h = { 0 };
        host_start(&h, backends[b], host_image(backends[b] + 6, DISK, 1));
        flood(&h);
        CHECK_INT(host_end(&h), 0);
    }
}

/* ---- Nonsense -------------------------------------------------------------------------------- */

static uint32_t rnd(uint32_t *state)
{
    *state = *state * 1664525 + 1013904223;
    return *state >> 8 ^ *state << 13;
}

/* Fields that are plausible about as often as not. */
static struct nvme_sqe nonsense(uint32_t *state, bool admin)
{
    static const uint8_t admin_ops[] = { 0, 1, 2, 4, 5, 6, 8, 9, 0xa, 0xc, 0x7f };
    static const uint8_t io_ops[] = { 0, 1, 2, 5, 8, 9, 0x7f };
    const uint64_t where[] = { HOST_RAM_BASE + rnd(state) % HOST_RAM_SIZE,
                               (HOST_RAM_BASE + rnd(state) % HOST_RAM_SIZE) & ~4095ull,
                               (uint64_t)rnd(state) << 32 | rnd(state), 0 };
    uint32_t dw[] = { 0, 1, 2, 5, 0x10001, 0xffff, 0x3f0002, UINT32_MAX };
    struct nvme_sqe sqe = {
        .opcode =
            admin ? admin_ops[rnd(state) % sizeof(admin_ops)] : io_ops[rnd(state) % sizeof(io_ops)],
        .flags = rnd(state) % 16 == 0 ? (uint8_t)rnd(state) : 0,
        .nsid = rnd(state) % 4 ? 1 : dw[rnd(state) % 8],
        .prp1 = where[rnd(state) % 4],
        .prp2 = where[rnd(state) % 4],
        .dw10 = rnd(state) % 2 ? dw[rnd(state) % 8] : rnd(state) % 65536,
        .dw11 = rnd(state) % 2 ? dw[rnd(state) % 8] : 0,
        .dw12 = rnd(state) % 2 ? dw[rnd(state) % 8] : rnd(state) % 4096,
        .dw13 = rnd(state) % 4 ? 0 : rnd(state),
    };
    return sqe;
}

/* Everything the device writes goes to RAM, its own queues too: so anything may happen to them. */
TEST(random_commands, "no-command-does-harm")
{
    for (uint32_t seed = 1; seed <= 6; seed++) {
        struct nvme_host h = { 0 };
        uint32_t state = seed;
        struct nvme_cqe cqe;
        host_start(&h, seed % 2 ? "mem:1M"
                                : host_image(seed == 2   ? "a"
                                             : seed == 4 ? "b"
                                                         : "c",
                                             1 << 20, 0));
        for (unsigned i = 0; i < 600; i++) {
            bool admin = rnd(&state) % 2;
            host_submit(&h, !admin, nonsense(&state, admin));
            if (rnd(&state) % 64 == 0)
                host_write32(&h, 4 * (rnd(&state) % 2048), rnd(&state));
            if (rnd(&state) % 4 == 0)
                host_poll(&h, !admin, 1, &cqe);
            if (rnd(&state) % 100 == 0 || (host_read32(&h, NVME_REG_CSTS) & 3) != 1) {
                h.used = 0;
                host_disable(&h);
                host_enable(&h);
                host_add_queue(&h, 1, 64, 1);
            }
        }
        host_disable(&h);
        h.used = 0;
        host_enable(&h);
        CHECK_INT(host_identify(&h, NVME_CNS_CTRL, 0, host_pages(&h, 1)), 0);
        CHECK_INT(host_end(&h), 0);
    }
}
