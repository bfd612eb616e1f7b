/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The state file: what a server that was killed leaves to the next one. The moments between two
 * stores are made by hand here, in the file and in the queues, of a server that is gone.
 */
#include "nvme_host.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "devices/nvme/state_file.h"

#define DISK    (4u << 20)
#define BLOCK   512u
#define QUEUES  2u
#define SIZE    (sizeof(struct nvme_file_map) + QUEUES * sizeof(struct nvme_sq_record))
#define DAMAGED "is damaged: shut the virtual machine down, then remove it"

/* A disk whose server comes and goes. */
static struct disk {
    struct nvme_host h;
    pid_t pid;
    const char *image;
    char path[128];
    struct nvme_file_map *map; /* of the state file */
} disk;

static struct nvme_host *const h = &disk.h;

static void serve(const char *aio)
{
    const char *const args[] = { disk.image, "--state",  disk.path, "--queues", "2",
                                 aio,        "--serial", "S",       NULL };

    disk.pid = host_fork(h, args);
}

static void map_state(void)
{
    int fd = open(disk.path, O_RDWR | O_CLOEXEC);

    disk.map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(disk.map != MAP_FAILED);
    close(fd);
}

/* An enabled controller with queue 1, that has done some commands in each queue. */
static void start(uint32_t entries)
{
    disk.image = host_image("disk.img", DISK, 1);
    snprintf(disk.path, sizeof(disk.path), "%s/state", test_tmpdir());
    serve("--aio=threads");
    map_state();
    host_connect(h);
    host_arm(h, OB_PCI_IRQ_MSIX, QUEUES + 1);
    host_enable(h);
    host_add_queue(h, 1, entries, 1);
    for (unsigned i = 0; i < 5; i++)
        CHECK_INT(host_do(h, 1, (struct nvme_sqe){ .opcode = NVME_IO_FLUSH, .nsid = 1 }, NULL), 0);
}

static void revive(void)
{
    serve("--aio=threads");
    host_return(h, QUEUES + 1);
}

static void end(void)
{
    CHECK_INT(host_kill(h, disk.pid, SIGTERM), 0);
    munmap(disk.map, SIZE);
    host_forget(h);
}

static void expect_block(uint64_t block, uint8_t byte)
{
    int fd = open(disk.image, O_RDONLY | O_CLOEXEC);
    uint8_t data[BLOCK], expect[BLOCK];

    memset(expect, byte, BLOCK);
    CHECK_INT(pread(fd, data, BLOCK, (off_t)(block * BLOCK)), BLOCK);
    CHECK_MEM(data, expect, BLOCK);
    close(fd);
}

/* ---- The moments between two stores -------------------------------------------------------- */

/* The last command of queue 1 was a write of block 0, from a page that is the host's again. */
static uint32_t write_and_kill(void)
{
    uint32_t at = host_pages(h, 1);

    memset(h->ram + at, 0x11, BLOCK);
    CHECK_INT(host_do(h, 1, host_io(h, NVME_IO_WRITE, 0, 1, at, BLOCK), NULL), 0);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    memset(h->ram + at, 0x22, BLOCK);
    return at;
}

/* Notes the last command of queue 1 as under way. */
static void note_again(void)
{
    struct nvme_sq_record *record = &disk.map->sq[0];
    const struct host_queue *q = &h->q[1];

    record->sqe[1] = q->sq[(q->tail + q->entries - 1) % q->entries];
    record->number[1] = record->fetched;
}

/* Takes its completion back. */
static void unpost(void)
{
    struct host_queue *q = &h->q[1];

    disk.map->cq[1].posted--;
    q->cq_head = (q->cq_head + q->cq_entries - 1) % q->cq_entries;
    if (q->cq_head == q->cq_entries - 1)
        q->phase = !q->phase;
    q->cq[q->cq_head] = (struct nvme_cqe){ .status = !q->phase };
    disk.map->cq[1].head = q->cq_head;
}

/* The next command is the only one that completes. */
static void expect_next(uint32_t at)
{
    struct nvme_cqe cqe;

    CHECK_INT(host_do(h, 1, host_io(h, NVME_IO_READ, 8, 1, at, BLOCK), NULL), 0);
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
        start(entries);
        moment();
        end();
        unlink(disk.path);
        unlink(disk.image);
        memset(&disk, 0, sizeof(disk));
    }
}

static void posted_not_noted(void)
{
    uint32_t at = write_and_kill();

    note_again();
    disk.map->cq[1].posted--;
    revive();
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
    revive();
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

    note_again();
    unpost();
    revive();
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

    note_again();
    unpost();
    disk.map->sq[0].fetched--;
    revive();
    expect_completion();
    expect_block(0, 0x22);
    memset(h->ram + at, 0x33, BLOCK);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL))); /* before anything else is fetched */
    revive();
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

    unpost();
    disk.map->sq[0].fetched--;
    revive();
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

    start(8);
    at = host_pages(h, 1);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    host_put(h, 1, host_io(h, NVME_IO_READ, 8, 1, at, BLOCK));
    disk.map->doorbells[2] = h->q[1].tail;
    serve("--aio=threads");
    h->kept = true;
    host_connect(h);
    host_arm(h, OB_PCI_IRQ_MSIX, QUEUES + 1);
    expect_completion();
    end();
}

/* ---- The admin queue ----------------------------------------------------------------------- */

TEST(admin_posted, "an-admin-command-that-was-posted-before-that-was-noted-is-not-executed-again")
{
    struct nvme_cqe cqe;

    start(8);
    for (unsigned i = 0; i < 40; i++) { /* more than the queue has entries */
        CHECK_INT(host_feature(h, NVME_ADM_SET_FEATURES, NVME_FEAT_TEMPERATURE, 350 + i, NULL), 0);
        CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
        revive();
    }
    host_add_queue(h, 2, 8, 2); /* would fail the second time */
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    revive();
    CHECK(!host_poll(h, 0, 0, &cqe));
    CHECK_INT(host_do(h, 2, (struct nvme_sqe){ .opcode = NVME_IO_FLUSH, .nsid = 1 }, NULL), 0);
    end();
}

/* Killed before the checkpoint in which the queue is there: in the one before it is not. */
TEST(admin_again, "an-admin-command-whose-effect-was-not-saved-is-executed-again")
{
    struct host_queue *q = &h->q[0];
    struct nvme_cqe cqe;

    start(8);
    host_add_queue(h, 2, 8, 2);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    disk.map->current ^= 1;
    q->cq_head--;
    q->cq[q->cq_head] = (struct nvme_cqe){ .status = !q->phase };
    revive();
    CHECK_INT(host_wait(h, 0, &cqe), 0);
    CHECK_INT(cqe.cid, (uint16_t)(q->next_cid - 1));
    CHECK_INT(host_do(h, 2, (struct nvme_sqe){ .opcode = NVME_IO_FLUSH, .nsid = 1 }, NULL), 0);
    end();
}

TEST(aer, "event-requests-stay-open-and-are-answered-once")
{
    struct nvme_cqe cqe;
    uint16_t aer;

    start(8);
    aer = host_submit(h, 0, (struct nvme_sqe){ .opcode = NVME_ADM_ASYNC_EVENT });
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    for (unsigned i = 0; i < 3; i++) {
        CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
        revive();
    }
    CHECK(!host_poll(h, 0, 0, &cqe));
    host_ring_message(h, 9, 1); /* of no queue */
    CHECK_INT(host_wait(h, 0, &cqe), 0);
    CHECK_INT(cqe.cid, aer);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    revive();
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    end();
}

/* ---- Registers, config space, interrupts --------------------------------------------------- */

TEST(registers, "registers-and-config-space-are-as-they-were")
{
    static const uint32_t regs[] = { NVME_REG_CC,  NVME_REG_CSTS, NVME_REG_AQA,
                                     NVME_REG_ASQ, NVME_REG_ACQ,  NVME_REG_INTMS };
    const uint32_t bar = 0xfebf0000;
    uint32_t before[6], word;

    start(8);
    CHECK_INT(ob_client_region_write(h->client, OB_PCI_REGION_CONFIG, 0x10, &bar, 4), 0);
    host_write32(h, NVME_REG_INTMS, 0x30);
    for (unsigned i = 0; i < 6; i++)
        before[i] = host_read32(h, regs[i]);
    CHECK_INT(before[5], 0x30);
    for (unsigned round = 0; round < 2; round++) {
        CHECK_INT(host_kill(h, disk.pid, round ? SIGTERM : SIGKILL), round ? 0 : SIGKILL);
        revive();
        for (unsigned i = 0; i < 6; i++)
            CHECK_INT(host_read32(h, regs[i]), before[i]);
        CHECK_INT(ob_client_region_read(h->client, OB_PCI_REGION_CONFIG, 0x10, &word, 4), 0);
        CHECK_INT(word & ~0xfu, bar);
        CHECK_INT(ob_client_region_read(h->client, OB_PCI_REGION_CONFIG, 4, &word, 2), 0);
        CHECK_INT(word & 0xffff, 6);
    }
    end();
}

TEST(answered, "a-write-that-was-answered-is-kept")
{
    uint32_t bar;

    start(8);
    for (uint32_t i = 1; i <= 6; i++) {
        host_kill_after_answer();
        if (i % 2) {
            host_write32(h, NVME_REG_AQA, i);
        } else {
            bar = i << 20;
            CHECK_INT(ob_client_region_write(h->client, OB_PCI_REGION_CONFIG, 0x10, &bar, 4), 0);
        }
        CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
        serve("--aio=threads");
        h->kept = true;
        host_connect(h);
        CHECK_INT(ob_client_region_read(h->client, OB_PCI_REGION_CONFIG, 0x10, &bar, 4), 0);
        if (i % 2)
            CHECK_INT(host_read32(h, NVME_REG_AQA), i);
        else
            CHECK_INT(bar & ~0xfu, i << 20);
    }
    end();
}

TEST(interrupts, "completions-that-the-host-has-not-taken-are-signalled-once-more")
{
    struct pollfd signal;
    struct nvme_cqe cqe;
    uint64_t count;

    start(8);
    host_submit(h, 1, host_io(h, NVME_IO_READ, 8, 1, host_pages(h, 1), BLOCK));
    signal = (struct pollfd){ .fd = h->irq_fds[1], .events = POLLIN };
    CHECK_INT(poll(&signal, 1, 10000), 1);
    CHECK_INT(read(h->irq_fds[1], &count, sizeof(count)), 8);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    /* Vectors come one by one; the one that counts is the last. */
    serve("--aio=threads");
    h->kept = true;
    host_connect(h);
    h->nirqs = QUEUES + 1;
    for (unsigned i = 0; i <= QUEUES; i++) {
        unsigned vector = i == 0 ? 2 : i - 1;
        h->irq_fds[vector] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        CHECK_INT(
            ob_client_irq_eventfds(h->client, OB_PCI_IRQ_MSIX, vector, 1, &h->irq_fds[vector]), 0);
        host_read32(h, NVME_REG_CSTS);
    }
    signal.fd = h->irq_fds[1];
    CHECK_INT(poll(&signal, 1, 10000), 1);
    CHECK_INT(host_wait(h, 1, &cqe), 0);
    end();
}

/* ---- Another machine ----------------------------------------------------------------------- */

/* Its memory is where that of the old one was. It begins with the pin, and a reset. */
TEST(stranger, "a-new-machine-is-left-alone-and-starts-from-a-reset")
{
    uint32_t at;

    start(8);
    at = host_pages(h, 1);
    memset(h->ram + at, 0x44, BLOCK);
    CHECK_INT(host_do(h, 1, host_io(h, NVME_IO_READ, 8, 1, at, BLOCK), NULL), 0);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    note_again();
    unpost();
    memset(h->ram + at, 0x44, BLOCK);
    serve("--aio=threads");
    h->kept = false;
    host_connect(h);
    host_arm(h, OB_PCI_IRQ_INTX, 1);
    for (unsigned i = 0; i < 100; i++)
        host_read32(h, NVME_REG_CSTS);
    CHECK_INT(ob_client_reset(h->client), 0);
    CHECK_INT(host_read32(h, NVME_REG_CC), 0);
    for (unsigned i = 0; i < BLOCK; i++)
        CHECK_INT(h->ram[at + i], 0x44);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    serve("--aio=threads");
    host_connect(h);
    CHECK_INT(host_read32(h, NVME_REG_CC), 0);
    CHECK_INT(host_read32(h, NVME_REG_CSTS), 0);
    end();
}

TEST(lost, "a-sync-that-failed-is-remembered-as-long-as-a-guest-uses-the-disk")
{
    const struct nvme_sqe flush = { .opcode = NVME_IO_FLUSH, .nsid = 1 };
    const uint16_t command = 6;

    start(8);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    host_calls.fail_syncs = EIO; /* the next process has it too */
    revive();
    CHECK_INT(host_do(h, 1, flush, NULL), NVME_WRITE_FAULT);
    host_calls.fail_syncs = 0;
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    revive();
    CHECK_INT(host_do(h, 1, flush, NULL), NVME_WRITE_FAULT);
    CHECK_INT(ob_client_reset(h->client), 0);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    serve("--aio=threads");
    host_connect(h);
    CHECK_INT(ob_client_region_write(h->client, OB_PCI_REGION_CONFIG, 4, &command, 2), 0);
    h->used = 0;
    host_enable(h);
    host_add_queue(h, 1, 8, 1);
    CHECK_INT(host_do(h, 1, flush, NULL), 0);
    end();
}

/* ---- Files --------------------------------------------------------------------------------- */

/* create() with the disk's options and this state file says that. */
static void refused(const char *path, const char *sentence)
{
    char why[1024];

    CHECK_INT(host_try(why, sizeof(why), disk.image, "--state", path, "--queues", "2", "--serial",
                       "S", "--aio=threads", NULL),
              sentence ? 1 : 0);
    if (sentence && !strstr(why, sentence))
        test_fail(__FILE__, __LINE__, "'%s' is not in '%s'", sentence, why);
}

TEST(options, "the-state-of-another-disk-is-refused-and-says-what-differs")
{
    static const char *const others[][3] = {
        { "--queues=3", "", "'queues 2' there, 'queues 3' here" },
        { "--queues=2", "--lba=4096", "'blocks 8192' there, 'blocks 1024' here" },
        { "--queues=2", "--interrupts=msi", "'interrupts msix' there, 'interrupts msi' here" },
        { "--queues=2", "--read-only", "'access read-write' there, 'access read-only' here" },
        { "--queues=2", "--model=M", "'model Outboard NVMe' there, 'model M' here" },
        { "--queues=2", "--pci-id=1:2", "'pci-id 4f42:0001' there, 'pci-id 0001:0002' here" },
        { "--queues=2", "--serial=T", "'serial S' there, 'serial T' here" },
    };
    const char *image;
    char why[1024];

    start(8);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        CHECK_INT(host_try(why, sizeof(why), disk.image, "--state", disk.path, "--serial", "S",
                           others[i][0], *others[i][1] ? others[i][1] : "--lba=512", NULL),
                  1);
        if (!strstr(why, others[i][2]))
            test_fail(__FILE__, __LINE__, "'%s' is not in '%s'", others[i][2], why);
    }
    image = disk.image;
    disk.image = host_image("other.img", DISK, 1);
    refused(disk.path, "is the state of another disk ('image ");
    disk.image = image;
    revive(); /* nothing was lost */
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    end();
}

TEST(usage, "options-that-a-state-file-cannot-go-with-are-a-usage-error")
{
    static const char *const wrong[][2] = {
        { "--doorbells=mapped", "--state and --doorbells mapped exclude each other" },
        { "--incoming", "--state and --incoming exclude each other" },
        { "--state=", "--state takes a file, not ''" },
    };
    char why[1024], path[128];

    disk.image = host_image("disk.img", DISK, 1);
    snprintf(path, sizeof(path), "%s/state", test_tmpdir());
    for (unsigned i = 0; i < 3; i++) {
        CHECK_INT(host_try(why, sizeof(why), "--state", path, wrong[i][0], disk.image, NULL), 2);
        CHECK(strstr(why, wrong[i][1]));
    }
    CHECK_INT(host_try(why, sizeof(why), "--state", path, "mem:1M", NULL), 2);
    CHECK_STR(why, "--state is for an IMAGE that outlives the server, not mem:1M");
    CHECK_INT(
        host_try(why, sizeof(why), "--state", path, "--read-only", "--aio=uring", disk.image, NULL),
        2);
    CHECK_STR(why, "--state and --read-only need --aio threads");
    CHECK(access(path, F_OK) < 0);
}

/* Makes a file with these bytes, at path. */
static void make_file(const char *path, const void *data, size_t len)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    CHECK_INT(write(fd, data, len), len);
    close(fd);
}

TEST(places, "what-is-no-state-file-is-left-as-it-is")
{
    static const char text[] = "somebody's letter", zeroes[100000];
    struct rlimit limit = { 100000, RLIM_INFINITY }, none = { RLIM_INFINITY, RLIM_INFINITY };
    char path[160], other[160], data[100];
    struct stat st;
    int fd;

    disk.image = host_image("disk.img", DISK, 1);
    snprintf(path, sizeof(path), "%s/state", test_tmpdir());
    refused(test_tmpdir(), "Is a directory");
    refused("/dev/null", "is no file: --state takes one that is new, or that it made");
    refused("/nowhere/state", "No such file or directory");
    make_file(path, text, sizeof(text));
    refused(path, "is not a state file: it is left as it is");
    fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK_INT(read(fd, data, sizeof(data)), sizeof(text));
    CHECK_STR(data, text);
    close(fd);
    make_file(path, zeroes, sizeof(zeroes)); /* like an image that nothing was written to */
    refused(path, "is not a state file: it is left as it is");
    snprintf(other, sizeof(other), "%s/link", test_tmpdir());
    CHECK_INT(symlink(path, other), 0);
    refused(other, "it must not be a symbolic link");
    signal(SIGXFSZ, SIG_IGN);
    CHECK_INT(unlink(path), 0);
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &limit), 0);
    refused(path, "there is no room for the state file");
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &none), 0);
    CHECK_INT(stat(path, &st), 0);
    CHECK_INT(st.st_size, 0);
    refused(path, NULL); /* an empty one will do */
    refused(path, NULL);
}

TEST(lock, "a-state-file-has-one-server")
{
    start(8);
    refused(disk.path, "is in use by another server: each disk has a state file of its own");
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    refused(disk.path, NULL);
    revive();
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    end();
}

TEST(memfd, "a-parent-can-keep-the-state-in-a-memfd")
{
    int fd = memfd_create("state", MFD_CLOEXEC);

    disk.image = host_image("disk.img", DISK, 1);
    snprintf(disk.path, sizeof(disk.path), "/dev/fd/%d", fd);
    serve("--aio=threads");
    map_state();
    refused(disk.path, "is in use by another server");
    host_connect(h);
    host_arm(h, OB_PCI_IRQ_MSIX, QUEUES + 1);
    host_enable(h);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    revive();
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    end();
    close(fd);
}

/* Nobody survives the end of the machine, whatever the file says. */
TEST(boot, "a-state-of-before-the-machine-was-started-begins-anew")
{
    struct nvme_file_head *head;
    const uint8_t *bytes;
    uint64_t sum = 0xcbf29ce484222325u;

    start(8);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    head = &disk.map->head;
    head->boot[0] ^= 1;
    bytes = (const uint8_t *)head->boot;
    for (size_t i = 0; i < sizeof(*head) - offsetof(struct nvme_file_head, boot); i++)
        sum = (sum ^ bytes[i]) * 0x100000001b3u;
    head->sum = sum;
    memset(disk.map->checkpoints, 0xff, sizeof(disk.map->checkpoints)); /* lost with the power */
    serve("--aio=threads");
    h->kept = false;
    host_connect(h);
    CHECK_INT(host_read32(h, NVME_REG_CC), 0);
    end();
}

/* ---- Damage -------------------------------------------------------------------------------- */

TEST(damage, "a-damaged-state-file-is-refused-and-says-so")
{
    static const struct {
        size_t at;
        uint32_t value;
        const char *sentence;
    } wrong[] = {
        { 0, 0x12345678, "is not a state file" },
        { offsetof(struct nvme_file_head, version), 2,
          "another version of this program (format 2" },
        { offsetof(struct nvme_file_head, sum), 1, DAMAGED },
        { offsetof(struct nvme_file_head, about), 0x41414141, DAMAGED },
        { offsetof(struct nvme_file_map, current), 2, "as the server was out of memory" },
        { offsetof(struct nvme_file_map, current), 3, DAMAGED },
        { offsetof(struct nvme_file_map, armed), 4, DAMAGED },
        { offsetof(struct nvme_file_map, cq[1].head), 8, DAMAGED },
        { offsetof(struct nvme_file_map, sq[0].tail), 8, DAMAGED },
        { offsetof(struct nvme_file_map, sq[0].number[2]), 1000, DAMAGED },
        { offsetof(struct nvme_file_map, sq[0].number[100]), 1, DAMAGED },
    };
    uint8_t *bytes, before[4];
    const struct nvme_checkpoint *last;
    size_t at;

    start(8);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    bytes = (uint8_t *)disk.map;
    for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        memcpy(before, bytes + wrong[i].at, 4);
        memcpy(bytes + wrong[i].at, &wrong[i].value, 4);
        refused(disk.path, wrong[i].sentence);
        memcpy(bytes + wrong[i].at, before, 4);
    }
    last = &disk.map->checkpoints[disk.map->current];
    at = (size_t)(last->data - bytes);
    for (size_t i = 0; i < last->len; i += 47) {
        bytes[at + i] ^= 4;
        refused(disk.path, DAMAGED);
        bytes[at + i] ^= 4;
    }
    disk.map->sq[0].number[1] = disk.map->sq[0].number[2] = disk.map->sq[0].fetched;
    refused(disk.path, DAMAGED);
    disk.map->sq[0].number[1] = disk.map->sq[0].number[2] = 0;
    CHECK_INT(truncate(disk.path, SIZE - 1), 0);
    refused(disk.path, "is damaged (it does not have its");
    CHECK_INT(truncate(disk.path, SIZE), 0);
    revive();
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    end();
}

/* A server goes on with that, whatever it is, until the host resets it; then all is well. */
static void use_and_reset(void)
{
    const uint16_t command = 6;

    serve("--aio=threads");
    h->kept = true;
    host_connect(h);
    host_arm(h, OB_PCI_IRQ_MSIX, QUEUES + 1);
    for (uint16_t q = 0; q <= QUEUES; q++)
        host_ring_message(h, 2u * q, q);
    for (unsigned i = 0; i < 10; i++)
        host_read32(h, NVME_REG_CSTS);
    CHECK_INT(ob_client_reset(h->client), 0);
    CHECK_INT(ob_client_region_write(h->client, OB_PCI_REGION_CONFIG, 4, &command, 2), 0);
    h->used = 0;
    host_enable(h);
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
}

/* What is noted of commands changes all the time and has no checksum. */
TEST_TIMEOUT(random_damage, "a-state-file-with-any-wrong-bytes-is-refused-or-harmless", 90)
{
    uint8_t *bytes, *good = malloc(SIZE);
    uint32_t seed = 7, taken = 0;
    char why[1024];

    start(8);
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
    bytes = (uint8_t *)disk.map;
    CHECK(good != NULL);
    disk.map->sq[0].number[0] = disk.map->sq[0].fetched; /* with a command that is under way */
    memcpy(good, bytes, SIZE);
    for (unsigned round = 0; round < 300; round++) {
        for (unsigned i = 0; i < 4; i++) {
            size_t from = round % 2 ? offsetof(struct nvme_file_map, sq[0].sqe[0]) : NVME_FILE_HEAD;
            size_t room = round % 2 ? sizeof(struct nvme_sqe) : 4096 + 64;
            seed = seed * 1664525u + 1013904223u;
            bytes[from + (seed >> 8) % room] = (uint8_t)(seed >> 4) % 12;
        }
        if (host_try(why, sizeof(why), disk.image, "--state", disk.path, "--queues", "2",
                     "--serial", "S", "--aio=threads", NULL) == 0) {
            use_and_reset();
            taken++;
        } else {
            CHECK(strstr(why, DAMAGED));
        }
        memcpy(bytes, good, SIZE);
    }
    printf("%u of 300 were taken\n", taken);
    CHECK(taken > 0 && taken < 300);
    free(good);
    munmap(disk.map, SIZE);
    host_forget(h);
}
