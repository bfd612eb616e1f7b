/* SPDX-License-Identifier: BSD-3-Clause */
/* The NVMe controller: starting, queues, reset, shutdown, interrupts, doorbells. */
#include "nvme_host.h"

#include <stdio.h>
#include <unistd.h>

TEST(first, "identifies-and-moves-data")
{
    struct nvme_host h = { 0 };
    uint32_t at, back;

    host_start(&h, "mem:16M");
    at = host_pages(&h, 4);
    back = host_pages(&h, 4);
    CHECK_INT(host_identify(&h, NVME_CNS_CTRL, 0, at), 0);
    CHECK_INT(((struct nvme_id_ctrl *)(void *)(h.ram + at))->nn, 1);
    host_pattern(h.ram + at, 16384, 7);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 8, 32, at, 512), NULL), 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 8, 32, back, 512), NULL), 0);
    CHECK_MEM(h.ram + at, h.ram + back, 16384);
    CHECK_INT(host_end(&h), 0);
}

static void roundtrip(const char *aio, const char *doorbells, const char *lba, uint32_t lba_size)
{
    struct nvme_host h = { 0 };
    const char *image = host_image("disk.img", 8u << 20, 3);
    uint32_t at, back;
    uint8_t expect[65536];

    host_start(&h, aio, doorbells, lba, image);
    at = host_pages(&h, 16);
    back = host_pages(&h, 16);
    CHECK_INT(host_do(&h, 1,
                      host_io(&h, NVME_IO_READ, 65536 / lba_size, 65536 / lba_size, at, lba_size),
                      NULL),
              0);
    host_pattern(expect, sizeof(expect), 3 + 65536);
    CHECK_MEM(h.ram + at, expect, sizeof(expect));
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 0, 65536 / lba_size, at, lba_size), NULL),
              0);
    CHECK_INT(host_do(&h, 1, (struct nvme_sqe){ .opcode = NVME_IO_FLUSH, .nsid = 1 }, NULL), 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 0, 65536 / lba_size, back, lba_size), NULL),
              0);
    CHECK_MEM(h.ram + at, h.ram + back, sizeof(expect));
    CHECK_INT(host_end(&h), 0);
}

TEST(uring_mapped, "file-through-io_uring")
{
    roundtrip("--aio=uring", "--doorbells=mapped", "--lba=512", 512);
}

TEST(threads_trapped, "file-through-threads-with-trapped-doorbells")
{
    roundtrip("--aio=threads", "--doorbells=trapped", "--lba=4096", 4096);
}
