/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a server that was killed leaves to the next one, in the state file: event requests,
 * registers, config space, interrupts; and what it must not leave to another machine.
 */
#include "nvme_disk.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

static struct nvme_host *const h = &disk.h;

TEST(aer, "event-requests-stay-open-and-are-answered-once")
{
    struct nvme_cqe cqe;
    uint16_t aer;

    disk_start(8);
    aer = host_submit(h, 0, (struct nvme_sqe){ .opcode = NVME_ADM_ASYNC_EVENT });
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    for (unsigned i = 0; i < 3; i++) {
        disk_kill();
        disk_revive();
    }
    CHECK(!host_poll(h, 0, 0, &cqe));
    host_ring_message(h, 9, 1); /* of no queue */
    CHECK_INT(host_wait(h, 0, &cqe), 0);
    CHECK_INT(cqe.cid, aer);
    disk_kill();
    disk_revive();
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    disk_end();
}

/* ---- Registers, config space, interrupts --------------------------------------------------- */

TEST(registers, "registers-and-config-space-are-as-they-were")
{
    static const uint32_t regs[] = { NVME_REG_CC,  NVME_REG_CSTS, NVME_REG_AQA,
                                     NVME_REG_ASQ, NVME_REG_ACQ,  NVME_REG_INTMS };
    const uint32_t bar = 0xfebf0000;
    uint32_t before[6], word;

    disk_start(8);
    CHECK_INT(ob_client_region_write(h->client, OB_PCI_REGION_CONFIG, 0x10, &bar, 4), 0);
    host_write32(h, NVME_REG_INTMS, 0x30);
    for (unsigned i = 0; i < 6; i++)
        before[i] = host_read32(h, regs[i]);
    CHECK_INT(before[5], 0x30);
    for (unsigned round = 0; round < 2; round++) {
        CHECK_INT(host_kill(h, disk.pid, round ? SIGTERM : SIGKILL), round ? 0 : SIGKILL);
        disk_revive();
        for (unsigned i = 0; i < 6; i++)
            CHECK_INT(host_read32(h, regs[i]), before[i]);
        CHECK_INT(ob_client_region_read(h->client, OB_PCI_REGION_CONFIG, 0x10, &word, 4), 0);
        CHECK_INT(word & ~0xfu, bar);
        CHECK_INT(ob_client_region_read(h->client, OB_PCI_REGION_CONFIG, 4, &word, 2), 0);
        CHECK_INT(word & 0xffff, 6);
    }
    disk_end();
}

TEST(answered, "a-write-that-was-answered-is-kept")
{
    uint32_t bar;

    disk_start(8);
    for (uint32_t i = 1; i <= 6; i++) {
        host_kill_after_answer();
        if (i % 2) {
            host_write32(h, NVME_REG_AQA, i);
        } else {
            bar = i << 20;
            CHECK_INT(ob_client_region_write(h->client, OB_PCI_REGION_CONFIG, 0x10, &bar, 4), 0);
        }
        disk_kill();
        disk_serve();
        h->kept = true;
        host_connect(h);
        CHECK_INT(ob_client_region_read(h->client, OB_PCI_REGION_CONFIG, 0x10, &bar, 4), 0);
        if (i % 2)
            CHECK_INT(host_read32(h, NVME_REG_AQA), i);
        else
            CHECK_INT(bar & ~0xfu, i << 20);
    }
    disk_end();
}

TEST(interrupts, "completions-that-the-host-has-not-taken-are-signalled-once-more")
{
    struct pollfd signal;
    struct nvme_cqe cqe;
    uint64_t count;

    disk_start(8);
    host_submit(h, 1, host_io(h, NVME_IO_READ, 8, 1, host_pages(h, 1), DISK_BLOCK));
    signal = (struct pollfd){ .fd = h->irq_fds[1], .events = POLLIN };
    CHECK_INT(poll(&signal, 1, 10000), 1);
    CHECK_INT(read(h->irq_fds[1], &count, sizeof(count)), 8);
    disk_kill();
    /* Vectors come one by one; the one that counts is the last. */
    disk_serve();
    h->kept = true;
    host_connect(h);
    h->nirqs = DISK_QUEUES + 1;
    for (unsigned i = 0; i <= DISK_QUEUES; i++) {
        unsigned vector = i == 0 ? 2 : i - 1;
        h->irq_fds[vector] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        CHECK_INT(
            ob_client_irq_eventfds(h->client, OB_PCI_IRQ_MSIX, vector, 1, &h->irq_fds[vector]), 0);
        host_read32(h, NVME_REG_CSTS);
    }
    signal.fd = h->irq_fds[1];
    CHECK_INT(poll(&signal, 1, 10000), 1);
    CHECK_INT(host_wait(h, 1, &cqe), 0);
    disk_end();
}

/* ---- Another machine ----------------------------------------------------------------------- */

/* Its memory is where that of the old one was. It begins with the pin, and a reset. */
TEST(stranger, "a-new-machine-is-left-alone-and-starts-from-a-reset")
{
    uint32_t at;

    disk_start(8);
    at = host_pages(h, 1);
    memset(h->ram + at, 0x44, DISK_BLOCK);
    CHECK_INT(host_do(h, 1, host_io(h, NVME_IO_READ, 8, 1, at, DISK_BLOCK), NULL), 0);
    disk_kill();
    disk_note_again();
    disk_unpost();
    memset(h->ram + at, 0x44, DISK_BLOCK);
    disk_serve();
    h->kept = false;
    host_connect(h);
    host_arm(h, OB_PCI_IRQ_INTX, 1);
    for (unsigned i = 0; i < 100; i++)
        host_read32(h, NVME_REG_CSTS);
    CHECK_INT(ob_client_reset(h->client), 0);
    CHECK_INT(host_read32(h, NVME_REG_CC), 0);
    for (unsigned i = 0; i < DISK_BLOCK; i++)
        CHECK_INT(h->ram[at + i], 0x44);
    disk_kill();
    disk_serve();
    host_connect(h);
    CHECK_INT(host_read32(h, NVME_REG_CC), 0);
    CHECK_INT(host_read32(h, NVME_REG_CSTS), 0);
    disk_end();
}

TEST(lost, "a-sync-that-failed-is-remembered-as-long-as-a-guest-uses-the-disk")
{
    const struct nvme_sqe flush = { .opcode = NVME_IO_FLUSH, .nsid = 1 };
    const uint16_t command = 6;

    disk_start(8);
    disk_kill();
    host_calls.fail_syncs = EIO; /* the next process has it too */
    disk_revive();
    CHECK_INT(host_do(h, 1, flush, NULL), NVME_WRITE_FAULT);
    host_calls.fail_syncs = 0;
    disk_kill();
    disk_revive();
    CHECK_INT(host_do(h, 1, flush, NULL), NVME_WRITE_FAULT);
    CHECK_INT(ob_client_reset(h->client), 0);
    disk_kill();
    disk_serve();
    host_connect(h);
    CHECK_INT(ob_client_region_write(h->client, OB_PCI_REGION_CONFIG, 4, &command, 2), 0);
    h->used = 0;
    host_enable(h);
    host_add_queue(h, 1, 8, 1);
    CHECK_INT(host_do(h, 1, flush, NULL), 0);
    disk_end();
}

/* ---- A client that lies -------------------------------------------------------------------- */

/* What was under way needed no buffers, as the memory was mapped; it does if that is not. */
TEST(bounded, "what-is-executed-again-by-message-takes-so-much-memory-and-no-more")
{
    const struct nvme_sqe flush = { .opcode = NVME_IO_FLUSH, .nsid = 1 };
    struct nvme_sq_record *record;
    struct nvme_sqe read;
    struct nvme_cqe cqe;
    long before_kib;

    disk_start(2 * NVME_INFLIGHT_MAX);
    for (unsigned i = 0; i < NVME_INFLIGHT_MAX; i++)
        CHECK_INT(host_do(h, 1, flush, NULL), 0);
    disk_kill();
    record = &disk.map->sq[0];
    read = host_io(h, NVME_IO_READ, 0, (1u << 20) / DISK_BLOCK, host_pages(h, 256), DISK_BLOCK);
    for (unsigned i = 0; i < NVME_INFLIGHT_MAX; i++) {
        read.cid = (uint16_t)(0x1000 + i);
        record->sqe[i] = read;
        record->number[i] = i + 1;
    }
    h->by_message = true;
    disk_serve();
    before_kib = test_process_status(disk.pid, "VmHWM");
    host_return(h, DISK_QUEUES + 1);
    for (unsigned i = 0; i < NVME_INFLIGHT_MAX; i++)
        CHECK_INT(host_wait(h, 1, &cqe), 0);
    CHECK(test_process_status(disk.pid, "VmHWM") - before_kib < (100 + TEST_KEPT_MIB) * 1024);
    disk_end();
}
