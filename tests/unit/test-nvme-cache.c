/* SPDX-License-Identifier: BSD-3-Clause */
/* The NVMe controller's image and the page cache of the kernel. */
#include "nvme_host.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define DISK  (4u << 20)
#define PIECE (1u << 20)

/* Pages of the image that are in the page cache, of [offset, offset + PIECE). */
static unsigned cached(int fd, uint32_t offset)
{
    unsigned char in_core[PIECE / NVME_PAGE];
    unsigned n = 0;
    void *at = mmap(NULL, PIECE, PROT_READ, MAP_SHARED, fd, offset);

    CHECK(at != MAP_FAILED);
    CHECK_INT(mincore(at, PIECE, in_core), 0);
    munmap(at, PIECE);
    for (unsigned i = 0; i < PIECE / NVME_PAGE; i++)
        n += in_core[i] & 1;
    return n;
}

TEST(reads, "reads-find-what-is-in-the-page-cache-and-what-is-not")
{
    struct nvme_host h = { 0 };
    const char *image = host_image("disk.img", DISK, 1);
    int fd = open(image, O_RDWR | O_CLOEXEC);
    uint8_t expect[65536];
    unsigned missing = 0;
    uint32_t at;

    CHECK_INT(fsync(fd), 0);
    for (uint32_t offset = 0; offset < DISK; offset += 2 * PIECE)
        CHECK_INT(posix_fadvise(fd, offset, PIECE, POSIX_FADV_DONTNEED), 0);
    for (uint32_t offset = 0; offset < DISK; offset += PIECE)
        missing += PIECE / NVME_PAGE - cached(fd, offset);
    if (missing == 0)
        test_skip("this file system keeps everything in the page cache");
    host_start(&h, image, "--aio=uring");
    at = host_pages(&h, 16);
    /* some are there in part */
    for (uint32_t offset = 0; offset < DISK - sizeof(expect); offset += 3 * sizeof(expect) / 2) {
        struct nvme_sqe sqe = host_io(&h, NVME_IO_READ, offset / 512, 128, at, 512);
        CHECK_INT(host_do(&h, 1, sqe, NULL), 0);
        CHECK_INT(pread(fd, expect, sizeof(expect), offset), sizeof(expect));
        CHECK_MEM(h.ram + at, expect, sizeof(expect));
    }
    CHECK_INT(host_end(&h), 0);
    close(fd);
}

/* An image that can be opened with O_DIRECT, or the test is skipped. */
static const char *direct_image(void)
{
    const char *image = host_image("disk.img", DISK, 1);
    int fd = open(image, O_RDWR | O_DIRECT | O_CLOEXEC);

    if (fd < 0)
        test_skip("this file system has no direct I/O");
    close(fd);
    return image;
}

TEST(none, "without-cache-the-page-cache-stays-empty")
{
    static const char *const caches[] = { "--cache=none", "--cache=writeback" };
    const char *image = direct_image();
    int fd = open(image, O_RDWR | O_CLOEXEC);

    for (unsigned i = 0; i < 2; i++) {
        struct nvme_host h = { 0 };
        uint32_t at;

        CHECK_INT(fsync(fd), 0);
        CHECK_INT(posix_fadvise(fd, 0, DISK, POSIX_FADV_DONTNEED), 0);
        CHECK_INT(cached(fd, 0) + cached(fd, PIECE), 0);
        host_start(&h, image, caches[i]);
        at = host_pages(&h, 16);
        CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 0, 128, at, 512), NULL), 0);
        CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 2048, 128, at, 512), NULL), 0);
        CHECK((cached(fd, 0) == 0) == (i == 0));
        CHECK((cached(fd, PIECE) == 0) == (i == 0));
        CHECK_INT(host_end(&h), 0);
    }
    close(fd);
}

/* What direct I/O would refuse goes through the page cache, and both see the same data. */
static void any_alignment(const char *aio)
{
    struct nvme_host h = { 0 };
    const char *image = direct_image();
    uint8_t *expect = malloc(DISK);
    int fd = open(image, O_RDONLY | O_CLOEXEC);
    uint32_t at, seed = 7;

    CHECK_INT(pread(fd, expect, DISK, 0), DISK);
    host_start(&h, image, "--cache=none", aio);
    at = host_pages(&h, 1);
    for (unsigned i = 0; i < 1000; i++) {
        seed = seed * 1664525u + 1013904223u;
        uint32_t blocks = 1 + (seed >> 8) % 7, skew = (seed >> 11) % 3 ? 0 : (seed >> 13) % 129 * 4;
        uint64_t slba = (seed >> 16) % (i % 2 ? 64 : DISK / 512 - 8);
        bool write = seed >> 31;
        struct nvme_sqe sqe =
            host_io(&h, write ? NVME_IO_WRITE : NVME_IO_READ, slba, blocks, at, 512);
        sqe.prp1 += skew;
        if (write) {
            host_pattern(h.ram + at + skew, blocks * 512, i);
            memcpy(expect + slba * 512, h.ram + at + skew, blocks * 512);
        }
        CHECK_INT(host_do(&h, 1, sqe, NULL), 0);
        CHECK_MEM(h.ram + at + skew, expect + slba * 512, blocks * 512);
    }
    CHECK_INT(host_end(&h), 0);
    uint8_t *found = malloc(DISK);
    CHECK_INT(pread(fd, found, DISK, 0), DISK);
    CHECK_MEM(found, expect, DISK);
    free(found);
    free(expect);
    close(fd);
}

TEST(alignment_uring, "without-cache-any-alignment-works-through-io_uring")
{
    any_alignment("--aio=uring");
}

TEST(alignment_threads, "without-cache-any-alignment-works-through-threads")
{
    any_alignment("--aio=threads");
}
