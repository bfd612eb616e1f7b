/* SPDX-License-Identifier: BSD-3-Clause */
/* What is behind the NVMe controller: files, locks, durability, errors, the command line. */
#include "nvme_host.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DISK  (4u << 20)
#define FLUSH ((struct nvme_sqe){ .opcode = NVME_IO_FLUSH, .nsid = 1 })

/* ---- Durability ---------------------------------------------------------------------------- */

TEST(durable, "flush-and-fua-reach-the-file")
{
    struct nvme_host h = { 0 };
    uint32_t at;
    struct nvme_sqe write;
    struct nvme_dsm_range range = { .slba = 8, .blocks = 8 };

    host_start(&h, "--aio=threads", host_image("disk.img", DISK, 0));
    at = host_pages(&h, 1);
    write = host_io(&h, NVME_IO_WRITE, 0, 8, at, 512);
    CHECK_INT(host_do(&h, 1, write, NULL), 0);
    CHECK_INT(host_calls.writes, 1);
    CHECK_INT(host_calls.durable, 0);
    CHECK_INT(host_calls.syncs, 0);
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    CHECK_INT(host_calls.syncs, 1);
    write.dw12 |= NVME_IO_FUA;
    CHECK_INT(host_do(&h, 1, write, NULL), 0);
    CHECK_INT(host_calls.durable, 1);
    write.opcode = NVME_IO_WRITE_ZEROES;
    CHECK_INT(host_do(&h, 1, write, NULL), 0);
    CHECK_INT(host_calls.syncs, 2);
    /* without the write cache all that changes data is durable, and what was before is too */
    CHECK_INT(host_feature(&h, NVME_ADM_SET_FEATURES, NVME_FEAT_WRITE_CACHE, 0, NULL), 0);
    CHECK_INT(host_calls.syncs, 3);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 0, 8, at, 512), NULL), 0);
    CHECK_INT(host_calls.durable, 2);
    memcpy(h.ram + at, &range, sizeof(range));
    CHECK_INT(host_do(&h, 1,
                      (struct nvme_sqe){ .opcode = NVME_IO_DSM,
                                         .nsid = 1,
                                         .prp1 = host_addr(at),
                                         .dw11 = NVME_DSM_DEALLOCATE },
                      NULL),
              0);
    CHECK_INT(host_calls.syncs, 4);
    CHECK_INT(host_feature(&h, NVME_ADM_SET_FEATURES, NVME_FEAT_WRITE_CACHE, 1, NULL), 0);
    CHECK_INT(host_calls.syncs, 4);
    host_write32(&h, NVME_REG_CC, 0x00464001); /* shutdown */
    host_wait_reg(&h, NVME_REG_CSTS, NVME_CSTS_SHST_MASK, NVME_CSTS_SHST_COMPLETE);
    CHECK_INT(host_calls.syncs, 5);
    CHECK_INT(host_end(&h), 0);
    CHECK_INT(host_calls.syncs, 6);
}

static struct nvme_sqe read_with_fua(struct nvme_host *h)
{
    struct nvme_sqe read = host_io(h, NVME_IO_READ, 0, 8, host_pages(h, 1), 512);

    read.dw12 |= NVME_IO_FUA;
    return read;
}

TEST(fua_read, "a-read-with-fua-puts-what-it-reads-on-the-disk-first")
{
    struct nvme_host h = { 0 };
    struct nvme_sqe read;

    host_start(&h, "--aio=threads", host_image("disk.img", DISK, 0));
    read = read_with_fua(&h);
    CHECK_INT(host_do(&h, 1, read, NULL), 0);
    CHECK_INT(host_calls.syncs, 1);
    host_calls.fail_syncs = EIO;
    CHECK_INT(host_do(&h, 1, read, NULL), NVME_READ_ERROR);
    host_calls.fail_syncs = 0;
    read.dw12 &= ~NVME_IO_FUA;
    CHECK_INT(host_do(&h, 1, read, NULL), 0);
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), NVME_WRITE_FAULT);
    CHECK_INT(host_end(&h), -EIO);
}

TEST(fua_uncached, "a-read-with-fua-works-where-there-is-nothing-to-sync")
{
    const char *images[] = { "mem:4M", "null:4M", host_image("disk.img", DISK, 0) };

    for (unsigned i = 0; i < 3; i++) {
        struct nvme_host h = { 0 };

        host_start(&h, "--read-only", images[i]);
        CHECK_INT(host_do(&h, 1, read_with_fua(&h), NULL), 0);
        CHECK_INT(host_end(&h), 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        struct nvme_host h = { 0 };

        host_start(&h, images[i]);
        CHECK_INT(host_do(&h, 1, read_with_fua(&h), NULL), 0);
        CHECK_INT(host_end(&h), 0);
    }
}

/* Pages of the file that are not on disk yet. */
static uint64_t dirty_pages(const char *path)
{
    struct {
        uint64_t off, len;
    } range = { 0, DISK };
    uint64_t counts[5]; /* cached, dirty, in writeback, evicted, recently evicted */
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    CHECK(fd >= 0);
    long rc = syscall(451 /* cachestat */, fd, &range, counts, 0);
    close(fd);
    if (rc != 0)
        test_skip("this kernel has no cachestat()");
    return counts[1] + counts[2];
}

TEST(durable_uring, "flush-and-fua-leave-no-dirty-page-through-io_uring")
{
    struct nvme_host h = { 0 };
    const char *image = host_image("disk.img", DISK, 0);
    uint32_t at;
    struct nvme_sqe write;

    host_start(&h, "--aio=uring", image);
    at = host_pages(&h, 1);
    write = host_io(&h, NVME_IO_WRITE, 0, 8, at, 512);
    CHECK_INT(host_do(&h, 1, write, NULL), 0);
    if (dirty_pages(image) == 0)
        test_skip("the temporary directory is not on a disk");
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    CHECK_INT(dirty_pages(image), 0);
    write.dw12 |= NVME_IO_FUA;
    CHECK_INT(host_do(&h, 1, write, NULL), 0);
    CHECK_INT(dirty_pages(image), 0);
    write.dw12 &= ~NVME_IO_FUA;
    CHECK_INT(host_do(&h, 1, write, NULL), 0);
    CHECK(dirty_pages(image) > 0);
    CHECK_INT(host_feature(&h, NVME_ADM_SET_FEATURES, NVME_FEAT_WRITE_CACHE, 0, NULL), 0);
    CHECK_INT(dirty_pages(image), 0);
    CHECK_INT(host_do(&h, 1, write, NULL), 0);
    CHECK_INT(dirty_pages(image), 0);
    CHECK_INT(host_end(&h), 0);
}

/* ---- Errors of the file -------------------------------------------------------------------- */

TEST(io_errors, "errors-of-the-file-become-statuses")
{
    struct nvme_host h = { 0 };
    struct nvme_cqe cqe;
    uint32_t at;

    host_start(&h, "--aio=threads", host_image("disk.img", DISK, 0));
    at = host_pages(&h, 1);
    host_submit(&h, 0, (struct nvme_sqe){ .opcode = NVME_ADM_ASYNC_EVENT });
    host_calls.fail_writes = EIO;
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 0, 8, at, 512), NULL), NVME_WRITE_FAULT);
    host_calls.fail_writes = ENOSPC;
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 0, 8, at, 512), NULL),
              NVME_CAPACITY_EXCEEDED);
    host_calls.fail_writes = ENOMEM;
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 0, 8, at, 512), NULL), NVME_INTERNAL_ERROR);
    host_calls.fail_writes = 0;
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 0, 8, at, 512), NULL), 0);
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0); /* nothing that was done is lost so far */
    host_calls.fail_syncs = EIO;
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), NVME_WRITE_FAULT);
    CHECK(!host_poll(&h, 0, 20, &cqe)); /* the host has not asked for such events */
    CHECK_INT(
        host_feature(&h, NVME_ADM_SET_FEATURES, NVME_FEAT_ASYNC_EVENT, NVME_WARN_RELIABILITY, NULL),
        0);
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), NVME_WRITE_FAULT);
    CHECK_INT(host_wait(&h, 0, &cqe), 0);
    CHECK_INT(cqe.result, NVME_EVENT_RELIABILITY);
    CHECK_INT(host_log(&h, NVME_LOG_HEALTH, 512, 0, at), 0);
    CHECK_INT(h.ram[at], NVME_WARN_RELIABILITY);
    CHECK_INT(((struct nvme_health_log *)(void *)(h.ram + at))->media_errors.low, 3);
    CHECK_INT(host_end(&h), -EIO); /* the last flush failed too */
}

/* The kernel reports a lost page once; hosts retry. What is lost stays lost. */
static void stays_lost(bool by_fua_write)
{
    struct nvme_host h = { 0 };
    struct nvme_sqe write;

    host_start(&h, "--aio=threads", host_image("disk.img", DISK, 0));
    write = host_io(&h, NVME_IO_WRITE, 0, 8, host_pages(&h, 1), 512);
    CHECK_INT(host_do(&h, 1, write, NULL), 0);
    if (by_fua_write) {
        host_calls.fail_writes = EIO;
        write.dw12 |= NVME_IO_FUA;
        CHECK_INT(host_do(&h, 1, write, NULL), NVME_WRITE_FAULT);
    } else {
        host_calls.fail_syncs = EIO;
        CHECK_INT(host_do(&h, 1, FLUSH, NULL), NVME_WRITE_FAULT);
    }
    host_calls.fail_writes = host_calls.fail_syncs = 0;
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), NVME_WRITE_FAULT);
    CHECK_INT(host_do(&h, 1, write, NULL), 0);
    CHECK_INT(host_feature(&h, NVME_ADM_SET_FEATURES, NVME_FEAT_WRITE_CACHE, 0, NULL),
              NVME_WRITE_FAULT);
    host_disable(&h);
    host_enable(&h);
    host_add_queue(&h, 1, 64, 1);
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), NVME_WRITE_FAULT);
    host_write32(&h, NVME_REG_CC, 0x00464001); /* shutdown */
    host_wait_reg(&h, NVME_REG_CSTS, NVME_CSTS_SHST_MASK, NVME_CSTS_SHST_COMPLETE);
    CHECK(host_read32(&h, NVME_REG_CSTS) & NVME_CSTS_CFS);
    CHECK_INT(host_end(&h), -EIO);
}

TEST(lost_flush, "after-a-failed-flush-no-flush-succeeds")
{
    stays_lost(false);
}

TEST(lost_fua, "after-a-failed-fua-write-no-flush-succeeds")
{
    stays_lost(true);
}

static void cut(const char *aio)
{
    struct nvme_host h = { 0 };
    const char *image = host_image("disk.img", DISK, 1);
    uint32_t at;

    host_start(&h, aio, image);
    at = host_pages(&h, 16);
    CHECK_INT(truncate(image, DISK / 2 + 1024), 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 5000, 8, at, 512), NULL), NVME_READ_ERROR);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 4096, 8, at, 512), NULL), NVME_READ_ERROR);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 4096, 2, at, 512), NULL), 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_COMPARE, 5000, 8, at, 512), NULL),
              NVME_READ_ERROR);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 8184, 8, at, 512), NULL), 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 8184, 8, at, 512), NULL), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(cut_uring, "a-file-that-was-cut-short-gives-read-errors")
{
    cut("--aio=uring");
}

TEST(cut_threads, "the-same-with-threads")
{
    cut("--aio=threads");
}

/* The client maps memory, cuts it, and reads blocks into it. */
static void submit_to_cut_ram(struct nvme_host *h)
{
    uint64_t other = HOST_RAM_BASE + HOST_RAM_SIZE;
    int fd = memfd_create("other", MFD_CLOEXEC);
    struct nvme_sqe sqe = host_io(h, NVME_IO_READ, 0, 8, 0, 512);

    CHECK_INT(ftruncate(fd, 1 << 20), 0);
    CHECK_INT(ob_client_dma_map(h->client, other, 1 << 20, 3, fd, 0), 0);
    CHECK_INT(ftruncate(fd, 0), 0);
    close(fd);
    sqe.prp1 = other;
    host_submit(h, 1, sqe);
}

/* The kernel notices, in mid-copy. */
TEST(cut_ram, "memory-the-client-has-cut-is-a-transfer-error")
{
    struct nvme_host h = { 0 };
    struct nvme_cqe cqe;

    host_start(&h, host_image("disk.img", DISK, 1));
    submit_to_cut_ram(&h);
    CHECK_INT(host_wait(&h, 1, &cqe), NVME_DATA_TRANSFER_ERROR);
    CHECK_INT(host_end(&h), 0);
}

/* We copy ourselves, and the library notices. */
TEST(cut_ram_memory, "a-client-that-has-cut-memory-is-let-go-where-the-disk-is-memory")
{
    static const char *const images[] = { "mem:4M", "null:4M" };

    for (unsigned i = 0; i < 2; i++) {
        struct nvme_host h = { 0 };
        uint32_t csts;

        host_start(&h, images[i]);
        submit_to_cut_ram(&h);
        for (int64_t end = test_now_ms() + 10000; ob_client_connected(h.client);) {
            ob_client_region_read(h.client, 0, NVME_REG_CSTS, &csts, 4);
            CHECK(test_now_ms() < end);
        }
        host_leave(&h);
        host_connect(&h);
        host_disable(&h);
        host_enable(&h);
        host_add_queue(&h, 1, 64, 1);
        CHECK_INT(host_do(&h, 1, (struct nvme_sqe){ .opcode = NVME_IO_FLUSH, .nsid = 1 }, NULL), 0);
        CHECK_INT(host_end(&h), 0);
    }
}

TEST(full, "a-full-file-system-is-a-capacity-error")
{
    struct nvme_host h = { 0 };
    char dir[100], image[128];
    uint32_t at;
    int fd;

    snprintf(dir, sizeof(dir), "%s/small", test_tmpdir());
    CHECK_INT(mkdir(dir, 0700), 0);
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", dir, "tmpfs", 0, "size=1m") != 0)
        test_skip("only root may mount");
    snprintf(image, sizeof(image), "%s/disk.img", dir);
    fd = open(image, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK_INT(ftruncate(fd, DISK), 0);
    close(fd);
    host_start(&h, image);
    at = host_pages(&h, 128);
    memset(h.ram + at, 1, 512 << 10);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 0, 1024, at, 512), NULL), 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 2048, 1024, at, 512), NULL), 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 4096, 1024, at, 512), NULL),
              NVME_CAPACITY_EXCEEDED);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 0, 1024, at, 512), NULL), 0);
    CHECK_INT(host_end(&h), 0);
    umount(dir);
}

/* ---- Read-only images, locks --------------------------------------------------------------- */

TEST(read_only, "a-read-only-image-is-read-and-never-written")
{
    struct nvme_host h = { 0 };
    const char *image = host_image("disk.img", DISK, 4);
    uint8_t expect[4096];
    struct stat before, after;
    uint32_t at;

    CHECK_INT(chmod(image, 0400), 0);
    CHECK_INT(stat(image, &before), 0);
    host_start(&h, "--read-only", image);
    at = host_pages(&h, 1);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 0, 8, at, 512), NULL), 0);
    host_pattern(expect, sizeof(expect), 4);
    CHECK_MEM(h.ram + at, expect, sizeof(expect));
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_COMPARE, 0, 8, at, 512), NULL), 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 0, 8, at, 512), NULL),
              NVME_READ_ONLY_RANGE);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE_ZEROES, 0, 8, at, 512), NULL),
              NVME_READ_ONLY_RANGE);
    CHECK_INT(host_do(&h, 1,
                      (struct nvme_sqe){ .opcode = NVME_IO_DSM,
                                         .nsid = 1,
                                         .prp1 = host_addr(at),
                                         .dw11 = NVME_DSM_DEALLOCATE },
                      NULL),
              NVME_READ_ONLY_RANGE);
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    CHECK_INT(host_identify(&h, NVME_CNS_NS, 1, at), 0);
    CHECK_INT(((struct nvme_id_ns *)(void *)(h.ram + at))->nsattr, 1);
    CHECK_INT(host_end(&h), 0);
    CHECK_INT(stat(image, &after), 0);
    CHECK_INT(after.st_mtim.tv_nsec, before.st_mtim.tv_nsec);
}

TEST(lock, "an-image-in-use-is-refused")
{
    struct nvme_host h = { 0 };
    const char *image = host_image("disk.img", DISK, 0);
    char why[256];

    host_serve(&h, image, NULL);
    CHECK_INT(host_try(why, sizeof(why), image, NULL), 1);
    CHECK(strstr(why, "disk.img is in use by another process") != NULL);
    CHECK_INT(host_try(why, sizeof(why), "--read-only", image, NULL), 1);
    CHECK_INT(host_try(why, sizeof(why), "--incoming", image, NULL), 0); /* does nothing yet */
    CHECK_INT(host_end(&h), 0);
    CHECK_INT(host_try(why, sizeof(why), image, NULL), 0);
    /* read-only servers share */
    memset(&h, 0, sizeof(h));
    host_serve(&h, "--read-only", image, NULL);
    CHECK_INT(host_try(why, sizeof(why), "--read-only", image, NULL), 0);
    CHECK_INT(host_try(why, sizeof(why), image, NULL), 1);
    CHECK(strstr(why, "--read-only") != NULL);
    CHECK_INT(host_end(&h), 0);
}

/* A QEMU that uses the image: it locks bytes of it (without waiting). */
static int lock_like_qemu(const char *image, bool writes)
{
    static const off_t reader[] = { 100, 201, 203 }, writer[] = { 100, 101, 103, 201 };
    int fd = open(image, O_RDWR | O_CLOEXEC);

    CHECK(fd >= 0);
    for (unsigned i = 0; i < (writes ? 4 : 3); i++) {
        struct flock lock = { .l_type = F_RDLCK,
                              .l_whence = SEEK_SET,
                              .l_start = writes ? writer[i] : reader[i],
                              .l_len = 1 };
        CHECK_INT(fcntl(fd, F_OFD_SETLK, &lock), 0);
    }
    return fd;
}

/* Whether a QEMU that writes would find a reader that wants no writer. */
static bool keeps_writers_away(const char *image)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 201, .l_len = 1 };
    int fd = open(image, O_RDWR | O_CLOEXEC);

    CHECK(fd >= 0);
    CHECK_INT(fcntl(fd, F_OFD_GETLK, &lock), 0);
    close(fd);
    return lock.l_type != F_UNLCK;
}

TEST(lock_qemu, "an-image-is-shared-with-a-qemu-only-when-both-read")
{
    struct nvme_host h = { 0 };
    const char *image = host_image("disk.img", DISK, 0);
    char why[256];

    for (int writes = 0; writes < 2; writes++) {
        int fd = lock_like_qemu(image, writes);
        CHECK_INT(host_try(why, sizeof(why), image, NULL), 1);
        CHECK_INT(host_try(why, sizeof(why), "--read-only", image, NULL), writes);
        close(fd);
    }
    CHECK(!keeps_writers_away(image));
    host_serve(&h, "--read-only", image, NULL);
    CHECK(keeps_writers_away(image));
    CHECK_INT(host_end(&h), 0);
}

/* ---- The command line ---------------------------------------------------------------------- */

static void expect_refusal(int rc, const char *arg, const char *image, const char *words)
{
    char why[256];

    CHECK_INT(host_try(why, sizeof(why), arg, image, NULL), rc);
    if (!strstr(why, words))
        test_fail(__FILE__, __LINE__, "%s: '%s' does not say '%s'", arg, why, words);
}

TEST(options, "wrong-options-are-told-precisely")
{
    expect_refusal(2, "--lba=1024", "mem:1M", "--lba takes 512 or 4096, not '1024'");
    expect_refusal(2, "--queues=0", "mem:1M", "--queues takes a number from 1 to 64, not '0'");
    expect_refusal(2, "--queues=65", "mem:1M", "not '65'");
    expect_refusal(2, "--queues=many", "mem:1M", "not 'many'");
    expect_refusal(2, "--queues=0100", "mem:1M", "not '0100'"); /* a hundred, and not 64 */
    expect_refusal(2, "--doorbells=x", "mem:1M", "--doorbells takes trapped or mapped, not 'x'");
    expect_refusal(2, "--cache=x", "mem:1M", "--cache takes writeback or none, not 'x'");
    expect_refusal(2, "--aio=x", "mem:1M", "--aio takes auto, uring or threads, not 'x'");
    expect_refusal(2, "--interrupts=x", "mem:1M", "--interrupts takes msix, msi or intx, not 'x'");
    expect_refusal(2, "--serial=", "mem:1M", "--serial takes 1 to 20 characters, not ''");
    expect_refusal(2, "--serial=123456789012345678901", "mem:1M", "1 to 20 characters");
    expect_refusal(2, "--model=\xc3\xa4", "mem:1M", "--model takes printable ASCII");
    expect_refusal(2, "--pci-id=1234", "mem:1M", "--pci-id takes VENDOR:DEVICE");
    expect_refusal(2, "--pci-id=12345:1", "mem:1M", "--pci-id takes VENDOR:DEVICE");
    expect_refusal(2, "--pci-id=1234:5678x", "mem:1M", "--pci-id takes VENDOR:DEVICE");
    expect_refusal(2, "--pci-id=-1:2", "mem:1M", "--pci-id takes VENDOR:DEVICE"); /* 0xffff */
    expect_refusal(2, "--pci-id=0x1:2", "mem:1M", "--pci-id takes VENDOR:DEVICE");
    expect_refusal(2, "--pci-id=1: 2", "mem:1M", "--pci-id takes VENDOR:DEVICE");
    expect_refusal(2, "--read-only", NULL, "IMAGE is missing");
    expect_refusal(2, "mem:1M", "mem:2M", "there is one IMAGE, and no 'mem:2M' after it");
}

TEST(images, "wrong-images-are-told-precisely")
{
    const char *odd = host_image("odd.img", 1000, 0), *empty = host_image("empty.img", 0, 0);

    expect_refusal(1, "--lba=512", odd, "has 1000 bytes, which is not a multiple of 512");
    expect_refusal(1, "--lba=512", empty, "has no room: give it a size");
    expect_refusal(1, "--lba=512", "/nowhere/disk.img", "cannot open /nowhere/disk.img: No such");
    expect_refusal(1, "--lba=512", test_tmpdir(), "Is a directory");
    expect_refusal(1, "--read-only", test_tmpdir(), "is neither a file nor a block device");
    expect_refusal(1, "--lba=512", "/dev/null", "is neither a file nor a block device");
    expect_refusal(1, "--lba=512", "mem:", "'' is not a size: write it like 512M or 4G");
    expect_refusal(1, "--lba=512", "mem:12Q", "'12Q' is not a size");
    expect_refusal(1, "--lba=512", "mem:1GB", "'1GB' is not a size");
    expect_refusal(1, "--lba=512", "mem:-1", "'-1' is not a size");
    expect_refusal(1, "--lba=512", "null:1 ", "'1 ' is not a size");
    expect_refusal(1, "--lba=512", "null:99999999T", "is not a size");
    expect_refusal(1, "--lba=512", "mem:0", "has no room: give it a size, like mem:1G");
    expect_refusal(1, "--lba=4096", "mem:1K", "not a multiple of 4096");
}

/* ---- Identity ------------------------------------------------------------------------------ */

static void names(const char *arg, const char *image, char serial[21], uint8_t nguid[16])
{
    struct nvme_host h = { 0 };
    uint32_t at;

    host_start(&h, arg, image);
    at = host_pages(&h, 1);
    CHECK_INT(host_identify(&h, NVME_CNS_CTRL, 0, at), 0);
    memcpy(serial, ((struct nvme_id_ctrl *)(void *)(h.ram + at))->sn, 20);
    CHECK_INT(host_identify(&h, NVME_CNS_NS, 1, at), 0);
    memcpy(nguid, ((struct nvme_id_ns *)(void *)(h.ram + at))->nguid, 16);
    CHECK_INT(host_end(&h), 0);
}

TEST(identity, "a-disk-keeps-its-names-and-no-two-share-them")
{
    char serial[4][21] = { "", "", "", "" };
    uint8_t nguid[4][16];
    const char *one = host_image("one.img", DISK, 0), *two = host_image("two.img", DISK, 0);

    names("--lba=512", one, serial[0], nguid[0]);
    names("--aio=threads", one, serial[1], nguid[1]);
    CHECK_STR(serial[0], serial[1]);
    CHECK_MEM(nguid[0], nguid[1], 16);
    names("--lba=512", two, serial[1], nguid[1]);
    names("--serial=other", one, serial[2], nguid[2]);
    names("--lba=512", "mem:1M", serial[3], nguid[3]);
    for (unsigned i = 0; i < 4; i++)
        for (unsigned k = 0; k < i; k++) {
            CHECK(strcmp(serial[i], serial[k]) != 0);
            CHECK(memcmp(nguid[i], nguid[k], 16) != 0);
        }
    names("--lba=512", "mem:1M", serial[0], nguid[0]); /* another one */
    CHECK(memcmp(nguid[0], nguid[3], 16) != 0);
}
