/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The moments between two stores in which a server can be killed, made by hand of a server that is
 * gone, in the state file and in the queues: the next one executes what is open, and nothing twice.
 */
#include "nvme_disk.h"

#include <fcntl.h>
#include <unistd.h>

static struct nvme_host *const h = &disk.h;

static void expect_block(uint64_t block, uint8_t byte)
{
    int fd = open(disk.image, O_RDONLY | O_CLOEXEC);
    uint8_t data[DISK_BLOCK], expect[DISK_BLOCK];

    memset(expect, byte, DISK_BLOCK);
    CHECK_INT(pread(fd, data, DISK_BLOCK, (off_t)(block * DISK_BLOCK)), DISK_BLOCK);
    CHECK_MEM(data, expect, DISK_BLOCK);
    close(fd);
}

/* The last command of queue 1 was a write of block 0, from a page that is the host's again. */
static uint32_t write_and_kill(void)
{
    uint32_t at = host_pages(h, 1);

    memset(h->ram + at, 0x11, DISK_BLOCK);
    CHECK_INT(host_do(h, 1, host_io(h, NVME_IO_WRITE, 0, 1, at, DISK_BLOCK), NULL), 0);
    disk_kill();
    memset(h->ram + at, 0x22, DISK_BLOCK);
    return at;
}

/* The next command is the only one that completes. */
static void expect_next(uint32_t at)
{
    struct nvme_cqe cqe;

    CHECK_INT(host_do(h, 1, host_io(h, NVME_IO_READ, 8, 1, at, DISK_BLOCK), NULL), 0);
    CHECK(!host_poll(h, 1, 0, &cqe));
}

static void expect_completion(void)
{
    struct nvme_cqe cqe;

    CHECK_INT(host_wait(h, 1, &cqe), 0);
    CHECK_INT(cqe.cid, (uint16_t)(h->q[1].next_cid - 1));
}

/* Each moment in rings of these sizes: the last command is then at different places of them. */
static void each_size(void (*moment)(void))
{
    for (uint32_t entries = 2; entries <= 8; entries++) {
        disk_start(entries);
        moment();
        disk_end();
        unlink(disk.path);
        unlink(disk.image);
        memset(&disk, 0, sizeof(disk));
    }
}

static void posted_not_noted(void)
{
    uint32_t at = write_and_kill();

    disk_note_again();
    disk.map->cq[1].posted--;
    disk_revive();
    expect_next(at);
    expect_block(0, 0x11);
}

TEST(posted, "a-command-that-was-posted-before-that-was-noted-is-not-executed-again")
{
    each_size(posted_not_noted);
}

static void freed_not_counted(void)
{
    uint32_t at = write_and_kill();

    disk.map->cq[1].posted--;
    disk_revive();
    expect_next(at);
    expect_block(0, 0x11);
}

TEST(freed, "a-command-that-was-posted-is-counted-before-the-next-one-is-posted")
{
    each_size(freed_not_counted);
}

static void noted_not_posted(void)
{
    uint32_t at = write_and_kill();

    disk_note_again();
    disk_unpost();
    disk_revive();
    expect_completion();
    expect_block(0, 0x22);
    expect_next(at);
}

TEST(noted, "a-command-that-was-not-posted-is-executed-whether-or-not-it-was-before")
{
    each_size(noted_not_posted);
}

static void noted_head_not(void)
{
    uint32_t at = write_and_kill();

    disk_note_again();
    disk_unpost();
    disk.map->sq[0].fetched--;
    disk_revive();
    expect_completion();
    expect_block(0, 0x22);
    memset(h->ram + at, 0x33, DISK_BLOCK);
    disk_kill(); /* before anything else is fetched */
    disk_revive();
    expect_next(at);
    expect_block(0, 0x22);
}

TEST(head, "a-command-that-was-noted-before-the-head-of-its-queue-moved-is-executed-once")
{
    each_size(noted_head_not);
}

static void fetched_not_noted(void)
{
    uint32_t at = write_and_kill();

    disk_unpost();
    disk.map->sq[0].fetched--;
    disk_revive();
    expect_completion();
    expect_block(0, 0x22);
    expect_next(at);
}

TEST(fetched, "a-command-that-was-fetched-and-not-noted-is-fetched-again")
{
    each_size(fetched_not_noted);
}

/* The doorbell message of the host came, the server was killed before it looked. */
TEST(doorbell, "a-doorbell-that-was-rung-and-not-taken-is-not-forgotten")
{
    uint32_t at;

    disk_start(8);
    at = host_pages(h, 1);
    disk_kill();
    host_put(h, 1, host_io(h, NVME_IO_READ, 8, 1, at, DISK_BLOCK));
    disk.map->doorbells[2] = h->q[1].tail;
    disk_serve();
    h->kept = true;
    host_connect(h);
    host_arm(h, OB_PCI_IRQ_MSIX, DISK_QUEUES + 1);
    expect_completion();
    disk_end();
}

/* ---- The admin queue ----------------------------------------------------------------------- */

TEST(admin_posted, "an-admin-command-that-was-posted-before-that-was-noted-is-not-executed-again")
{
    struct nvme_cqe cqe;

    disk_start(8);
    for (unsigned i = 0; i < 40; i++) { /* more than the queue has entries */
        CHECK_INT(host_feature(h, NVME_ADM_SET_FEATURES, NVME_FEAT_TEMPERATURE, 350 + i, NULL), 0);
        disk_kill();
        disk_revive();
    }
    host_add_queue(h, 2, 8, 2); /* would fail the second time */
    disk_kill();
    disk_revive();
    CHECK(!host_poll(h, 0, 0, &cqe));
    CHECK_INT(host_do(h, 2, (struct nvme_sqe){ .opcode = NVME_IO_FLUSH, .nsid = 1 }, NULL), 0);
    disk_end();
}

/* Killed before the checkpoint in which the queue is there: in the one before it is not. */
TEST(admin_again, "an-admin-command-whose-effect-was-not-saved-is-executed-again")
{
    struct host_queue *q = &h->q[0];
    struct nvme_cqe cqe;

    disk_start(8);
    host_add_queue(h, 2, 8, 2);
    disk_kill();
    disk.map->current ^= 1;
    q->cq_head--;
    q->cq[q->cq_head] = (struct nvme_cqe){ .status = !q->phase };
    disk_revive();
    CHECK_INT(host_wait(h, 0, &cqe), 0);
    CHECK_INT(cqe.cid, (uint16_t)(q->next_cid - 1));
    CHECK_INT(host_do(h, 2, (struct nvme_sqe){ .opcode = NVME_IO_FLUSH, .nsid = 1 }, NULL), 0);
    disk_end();
}
