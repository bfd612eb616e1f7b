/* SPDX-License-Identifier: BSD-3-Clause */
/* The NVMe controller's image and the page cache of the kernel. */
#include "nvme_host.h"

#include <fcntl.h>
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
