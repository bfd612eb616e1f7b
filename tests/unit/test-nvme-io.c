/* SPDX-License-Identifier: BSD-3-Clause */
/* I/O commands of the NVMe controller: data integrity, PRPs of any shape, errors. */
#include "nvme_host.h"

#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB  (1u << 20)
#define DISK (16u * MIB)

/* ---- Shapes of PRPs ------------------------------------------------------------------------ */

static uint32_t rnd(uint32_t *state, uint32_t below)
{
    *state = *state * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)*state * below >> 32);
}

/* len bytes in pages of RAM in any order, the first at an offset, the list at an offset too. */
struct shape {
    uint32_t page[257];
    uint32_t npages, offset, len;
};

static void scatter(struct nvme_host *h, uint32_t *state, uint32_t len, struct nvme_sqe *sqe,
                    struct shape *shape)
{
    static uint32_t pool;

    shape->offset = rnd(state, 2) ? 4 * rnd(state, 1024) : 0;
    shape->len = len;
    shape->npages = (shape->offset + len + NVME_PAGE - 1) / NVME_PAGE;
    if (!pool)
        pool = host_pages(h, 1024);
    uint32_t start = rnd(state, 1024), stride = 2 * rnd(state, 512) + 1; /* odd: no page twice */
    for (uint32_t i = 0; i < shape->npages; i++)
        shape->page[i] = pool + (start + i * stride) % 1024 * NVME_PAGE;
    sqe->prp1 = host_addr(shape->page[0] + shape->offset);
    sqe->prp2 = 0;
    if (shape->npages == 2)
        sqe->prp2 = host_addr(shape->page[1]);
    if (shape->npages <= 2)
        return;
    /* a list that begins anywhere, so that some are chained over page ends */
    uint32_t list = h->used, slot = rnd(state, 2) ? 0 : rnd(state, 511), i = 1;
    host_pages(h, 2);
    sqe->prp2 = host_addr(list + 8 * slot);
    while (i < shape->npages) {
        uint64_t *entry = (void *)(h->ram + list + 8 * slot);
        if (slot == 511 && i + 1 < shape->npages) {
            list += NVME_PAGE;
            *entry = host_addr(list);
            slot = 0;
            continue;
        }
        *entry = host_addr(shape->page[i++]);
        slot++;
    }
    h->used -= 2 * NVME_PAGE; /* one command at a time uses it */
}

static void copy(struct nvme_host *h, const struct shape *shape, uint8_t *buf, bool to_ram)
{
    uint32_t at = shape->offset, left = shape->len;

    for (uint32_t i = 0; i < shape->npages; i++) {
        uint32_t n = NVME_PAGE - at < left ? NVME_PAGE - at : left;
        uint8_t *ram = h->ram + shape->page[i] + at;
        memcpy(to_ram ? ram : buf, to_ram ? buf : ram, n);
        buf += n;
        left -= n;
        at = 0;
    }
}

static void random_io(struct nvme_host *h, unsigned rounds, uint32_t lba_size, uint32_t max)
{
    uint8_t *model = calloc(1, DISK), *buf = malloc(max);
    uint32_t state = 12345;
    struct shape shape;

    for (unsigned i = 0; i < rounds; i++) {
        uint32_t blocks = 1 + rnd(&state, rnd(&state, 2) ? 8 : max / lba_size);
        if (blocks * lba_size > max)
            blocks = max / lba_size;
        uint64_t slba = rnd(&state, DISK / lba_size - blocks + 1);
        uint8_t op = rnd(&state, 2) ? NVME_IO_WRITE : NVME_IO_READ;
        struct nvme_sqe sqe = host_io(h, op, slba, 1, 0, lba_size);
        sqe.dw12 = blocks - 1;
        scatter(h, &state, blocks * lba_size, &sqe, &shape);
        host_pattern(buf, shape.len, i);
        copy(h, &shape, buf, true);
        if (op == NVME_IO_WRITE)
            memcpy(model + slba * lba_size, buf, shape.len);
        CHECK_INT(host_do(h, 1, sqe, NULL), 0);
        copy(h, &shape, buf, false);
        if (memcmp(buf, model + slba * lba_size, shape.len) != 0)
            test_fail(__FILE__, __LINE__, "command %u: %u blocks at %llu differ", i, blocks,
                      (unsigned long long)slba);
    }
    free(model);
    free(buf);
}

TEST(shapes_mapped, "any-shape-of-prps-in-mapped-memory")
{
    struct nvme_host h = { 0 };

    host_start(&h, "mem:16M");
    random_io(&h, 1500, 512, 1 << 20);
    CHECK_INT(host_end(&h), 0);
}

TEST(shapes_file, "any-shape-of-prps-with-a-file-of-4096-byte-blocks")
{
    struct nvme_host h = { 0 };

    host_start(&h, "--lba=4096", host_image("disk.img", DISK, 0));
    random_io(&h, 400, 4096, 1 << 20);
    CHECK_INT(host_end(&h), 0);
}

TEST(shapes_message, "any-shape-of-prps-by-dma-message")
{
    struct nvme_host h = { .by_message = true };

    host_start(&h, "mem:16M");
    random_io(&h, 200, 512, 256 << 10);
    CHECK_INT(host_end(&h), 0);
}

/* Two mappings that meet in the middle of a transfer, the second one without an fd. */
TEST(two_maps, "a-transfer-over-two-mappings")
{
    struct nvme_host h = { 0 };
    uint32_t half = HOST_RAM_SIZE / 2, at = half - 8 * NVME_PAGE;
    uint8_t *expect = malloc(16 * NVME_PAGE);

    CHECK(expect);
    for (int with_fd = 1; with_fd >= 0; with_fd--) {
        memset(&h, 0, sizeof(h));
        host_start(&h, "mem:16M");
        CHECK_INT(ob_client_dma_unmap(h.client, HOST_RAM_BASE, HOST_RAM_SIZE), 0);
        CHECK_INT(ob_client_dma_map(h.client, HOST_RAM_BASE, half, 3, h.ram_fd, 0), 0);
        CHECK_INT(ob_client_dma_map(h.client, HOST_RAM_BASE + half, half, 3,
                                    with_fd ? h.ram_fd : -1, with_fd ? half : 0),
                  0);
        h.by_message = true; /* receive while waiting */
        host_pattern(h.ram + at, 16 * NVME_PAGE, 5);
        memcpy(expect, h.ram + at, 16 * NVME_PAGE);
        CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 0, 128, at, 512), NULL), 0);
        memset(h.ram + at, 0, 16 * NVME_PAGE);
        CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 0, 128, at, 512), NULL), 0);
        CHECK_MEM(h.ram + at, expect, 16 * NVME_PAGE);
        CHECK_INT(host_end(&h), 0);
    }
    free(expect);
}

TEST(bad_prps, "wrong-prps-fail-their-command-only")
{
    struct nvme_host h = { 0 };
    struct nvme_sqe sqe;
    uint64_t *list;
    uint32_t at;

    host_start(&h, "mem:16M");
    at = host_pages(&h, 8);
    sqe = host_io(&h, NVME_IO_READ, 0, 8, at, 512);
    sqe.prp1 += 2;
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_PRP_OFFSET_INVALID);
    sqe = host_io(&h, NVME_IO_READ, 0, 16, at, 512);
    sqe.prp2 += 512;
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_PRP_OFFSET_INVALID);
    sqe = host_io(&h, NVME_IO_READ, 0, 64, at, 512);
    sqe.prp2 += 4;
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_PRP_OFFSET_INVALID);
    sqe = host_io(&h, NVME_IO_READ, 0, 64, at, 512);
    list = (void *)(h.ram + (sqe.prp2 - HOST_RAM_BASE));
    list[3] += 8;
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_PRP_OFFSET_INVALID);
    list[3] = 0x1000; /* not memory */
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_DATA_TRANSFER_ERROR);
    list[3] = UINT64_MAX & ~4095ull;
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_DATA_TRANSFER_ERROR);
    sqe.prp2 = 0x1000;
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_DATA_TRANSFER_ERROR);
    /* a list whose one entry points to itself, and one that is chained to an odd place */
    sqe = host_io(&h, NVME_IO_READ, 0, 2048, at, 512);
    list = (void *)(h.ram + at + 0xff8);
    *list = sqe.prp2 = host_addr(at + 0xff8);
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_PRP_OFFSET_INVALID);
    *list = host_addr(at); /* whose entries are all zero: address 0 is not memory */
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_DATA_TRANSFER_ERROR);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 0, 64, at, 512), NULL), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(read_only_memory, "memory-the-client-gave-for-reading-is-not-written")
{
    struct nvme_host h = { 0 };
    uint64_t other = HOST_RAM_BASE + HOST_RAM_SIZE;
    struct nvme_sqe sqe;

    host_start(&h, "mem:16M");
    CHECK_INT(ob_client_dma_map(h.client, other, 1 << 20, OB_DMA_READ, h.ram_fd, 0), 0);
    sqe = host_io(&h, NVME_IO_READ, 0, 8, 0, 512);
    sqe.prp1 = other;
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_DATA_TRANSFER_ERROR);
    sqe.opcode = NVME_IO_WRITE;
    CHECK_INT(host_do(&h, 1, sqe, NULL), 0);
    CHECK_INT(host_end(&h), 0);
}

/* ---- Commands ------------------------------------------------------------------------------ */

TEST(errors, "wrong-commands-get-the-right-status")
{
    struct nvme_host h = { 0 };
    uint32_t at;
    struct nvme_sqe sqe;

    host_start(&h, "mem:16M"); /* 32768 blocks */
    at = host_pages(&h, 1);
    CHECK_INT(host_do(&h, 1, (struct nvme_sqe){ .opcode = 0x7f, .nsid = 1 }, NULL),
              NVME_INVALID_OPCODE);
    CHECK_INT(host_do(&h, 1, (struct nvme_sqe){ .opcode = 0x04, .nsid = 1 }, NULL),
              NVME_INVALID_OPCODE);
    sqe = host_io(&h, NVME_IO_READ, 0, 1, at, 512);
    for (uint32_t nsid = 0; nsid <= 2; nsid += 2) {
        sqe.nsid = nsid;
        CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_INVALID_NS);
    }
    sqe.nsid = NVME_NSID_ALL;
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_INVALID_NS);
    sqe.opcode = NVME_IO_FLUSH;
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_OK);
    sqe = host_io(&h, NVME_IO_READ, 32768, 1, at, 512);
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_LBA_OUT_OF_RANGE);
    sqe = host_io(&h, NVME_IO_WRITE, 32767, 2, at, 512);
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_LBA_OUT_OF_RANGE);
    sqe = host_io(&h, NVME_IO_READ, UINT64_MAX, 8, at, 512);
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_LBA_OUT_OF_RANGE);
    sqe = host_io(&h, NVME_IO_WRITE_ZEROES, UINT64_MAX - 3, 8, at, 512);
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_LBA_OUT_OF_RANGE);
    sqe = host_io(&h, NVME_IO_READ, 0, 1, at, 512);
    sqe.dw12 = 2048; /* one block more than MDTS says */
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_INVALID_FIELD);
    sqe.dw12 = 0;
    sqe.flags = 0x40; /* SGL */
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_INVALID_FIELD);
    sqe.flags = 0x01; /* fused */
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_INVALID_FIELD);
    sqe.flags = 0;
    CHECK_INT(host_do(&h, 1, sqe, NULL), NVME_OK);
    CHECK_INT(host_end(&h), 0);
}

TEST(compare, "compare-tells-equal-from-different")
{
    struct nvme_host h = { 0 };
    uint32_t at;

    host_start(&h, host_image("disk.img", DISK, 9));
    at = host_pages(&h, 16);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 100, 128, at, 512), NULL), 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_COMPARE, 100, 128, at, 512), NULL), 0);
    h.ram[at + 65535] ^= 1;
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_COMPARE, 100, 128, at, 512), NULL),
              NVME_COMPARE_FAILURE);
    CHECK_INT(host_end(&h), 0);
}

static uint64_t allocated(const char *path)
{
    struct stat st;

    CHECK_INT(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static uint16_t deallocate(struct nvme_host *h, const struct nvme_dsm_range *ranges, unsigned n)
{
    uint32_t at = host_pages(h, 1);

    memcpy(h->ram + at, ranges, n * sizeof(*ranges));
    return host_do(h, 1,
                   (struct nvme_sqe){ .opcode = NVME_IO_DSM,
                                      .nsid = 1,
                                      .prp1 = host_addr(at),
                                      .dw10 = n - 1,
                                      .dw11 = NVME_DSM_DEALLOCATE },
                   NULL);
}

static void expect_bytes(struct nvme_host *h, uint64_t slba, uint32_t blocks, const uint8_t *bytes)
{
    uint32_t at = h->used;

    CHECK(blocks <= 2048);
    host_pages(h, 256);
    memset(h->ram + at, 0xa5, blocks * 512);
    CHECK_INT(host_do(h, 1, host_io(h, NVME_IO_READ, slba, blocks, at, 512), NULL), 0);
    for (uint32_t i = 0; i < blocks * 512; i++)
        CHECK_INT(h->ram[at + i], bytes ? bytes[i] : 0);
    h->used = at;
}

static void discard(const char *aio)
{
    struct nvme_host h = { 0 };
    const char *image = host_image("disk.img", DISK, 1);
    struct nvme_dsm_range ranges[3] = { { .slba = 2048, .blocks = 8192 },
                                        { .slba = 5, .blocks = 0 },
                                        { .slba = 16384, .blocks = 3 } };
    uint64_t before = allocated(image);
    uint8_t expect[4096];

    CHECK(before >= DISK);
    host_start(&h, aio, image);
    CHECK_INT(deallocate(&h, ranges, 3), 0);
    CHECK(allocated(image) <= before - (4u << 20) + 65536); /* the file system may need some */
    expect_bytes(&h, 2048, 2048, NULL);
    expect_bytes(&h, 2048 + 8192 - 8, 8, NULL);
    expect_bytes(&h, 16384, 3, NULL);
    host_pattern(expect, sizeof(expect), 1);
    expect_bytes(&h, 0, 8, expect);
    ranges[1] = (struct nvme_dsm_range){ .slba = 32760, .blocks = 9 };
    CHECK_INT(deallocate(&h, ranges, 2), NVME_LBA_OUT_OF_RANGE);
    ranges[1].slba = UINT64_MAX - 2;
    CHECK_INT(deallocate(&h, ranges, 2), NVME_LBA_OUT_OF_RANGE);
    CHECK_INT(host_end(&h), 0);
}

TEST(dsm_uring, "deallocated-blocks-read-as-zeroes-and-free-space")
{
    discard("--aio=uring");
}

TEST(dsm_threads, "the-same-through-threads")
{
    discard("--aio=threads");
}

static void zeroes(const char *aio)
{
    struct nvme_host h = { 0 };
    const char *image = host_image("disk.img", DISK, 1);
    uint64_t before = allocated(image);
    struct nvme_sqe sqe;

    host_start(&h, aio, image);
    sqe = host_io(&h, NVME_IO_WRITE_ZEROES, 1001, 4000, 0, 512);
    CHECK_INT(host_do(&h, 1, sqe, NULL), 0);
    expect_bytes(&h, 1001, 2048, NULL);
    expect_bytes(&h, 1001 + 4000 - 8, 8, NULL);
    CHECK(allocated(image) >= before - 65536); /* without DEAC the space is kept */
    sqe = host_io(&h, NVME_IO_WRITE_ZEROES, 8192, 8192, 0, 512);
    sqe.dw12 |= NVME_IO_DEAC | NVME_IO_FUA;
    CHECK_INT(host_do(&h, 1, sqe, NULL), 0);
    expect_bytes(&h, 8192, 2048, NULL);
    CHECK(allocated(image) <= before - (4u << 20) + 65536); /* the file system may need some */
    CHECK_INT(host_end(&h), 0);
}

TEST(zeroes_uring, "write-zeroes-with-and-without-deallocation")
{
    zeroes("--aio=uring");
}

TEST(zeroes_threads, "write-zeroes-through-threads")
{
    zeroes("--aio=threads");
}

/* A memfd has no ZERO_RANGE: the zeroes are written. */
TEST(zeroes_memory, "write-zeroes-where-the-file-cannot-do-it-itself")
{
    struct nvme_host h = { 0 };
    struct nvme_sqe sqe;
    uint32_t at;

    host_start(&h, "mem:16M");
    at = host_pages(&h, 256);
    host_pattern(h.ram + at, 1 << 20, 2);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 0, 2048, at, 512), NULL), 0);
    sqe = host_io(&h, NVME_IO_WRITE_ZEROES, 1, 2046, 0, 512);
    CHECK_INT(host_do(&h, 1, sqe, NULL), 0);
    expect_bytes(&h, 1, 2046, NULL);
    expect_bytes(&h, 0, 1, h.ram + at);
    expect_bytes(&h, 2047, 1, h.ram + at + 2047 * 512);
    CHECK_INT(host_end(&h), 0);
}

TEST(null_image, "null-reads-as-zeroes-and-takes-everything")
{
    struct nvme_host h = { 0 };
    uint32_t at;

    host_start(&h, "--lba=4096", "null:8T");
    at = host_pages(&h, 2);
    memset(h.ram + at, 0xff, 8192);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 1ull << 30, 2, at, 4096), NULL), 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE_ZEROES, 0, 65536, at, 4096), NULL), 0);
    CHECK_INT(host_do(&h, 1, (struct nvme_sqe){ .opcode = NVME_IO_FLUSH, .nsid = 1 }, NULL), 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 1ull << 30, 2, at, 4096), NULL), 0);
    for (unsigned i = 0; i < 8192; i++)
        CHECK_INT(h.ram[at + i], 0);
    CHECK_INT(host_end(&h), 0);
}

/* Many commands at once on several queues, each on blocks of its own. */
TEST(parallel, "many-commands-at-once-keep-their-data-apart")
{
    struct nvme_host h = { 0 };
    const char *image = host_image("disk.img", DISK, 0);
    uint32_t at, back;
    struct nvme_cqe cqe;

    host_serve(&h, image, NULL);
    host_connect(&h);
    host_enable(&h);
    for (uint16_t q = 1; q <= 4; q++)
        host_add_queue(&h, q, 128, q);
    at = host_pages(&h, 400);
    back = host_pages(&h, 400);
    host_pattern(h.ram + at, 400 * NVME_PAGE, 77);
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 400; i++)
            host_put(&h, (uint16_t)(1 + i % 4),
                     host_io(&h, round ? NVME_IO_READ : NVME_IO_WRITE, 8ull * (399 - i), 8,
                             (round ? back : at) + i * NVME_PAGE, 512));
        for (uint16_t q = 1; q <= 4; q++)
            host_ring(&h, q);
        for (unsigned i = 0; i < 400; i++)
            CHECK_INT(host_wait(&h, (uint16_t)(1 + i % 4), &cqe), 0);
    }
    CHECK_MEM(h.ram + at, h.ram + back, 400 * NVME_PAGE);
    CHECK_INT(host_end(&h), 0);
}

/* A client whose memory is private can have 16 x 60 MiB under way. */
TEST(bounded, "data-that-goes-by-message-takes-so-much-memory-and-no-more")
{
    struct nvme_host h = { .by_message = true };
    const char *image = host_image("disk.img", 2 * MIB, 0);
    struct nvme_sqe read;
    struct nvme_cqe cqe;
    long before_kib;

    host_serve(&h, "--doorbells", "mapped", image, NULL); /* it sees all tails at once */
    host_connect(&h);
    host_enable(&h);
    for (uint16_t q = 1; q <= 16; q++)
        host_add_queue(&h, q, 64, q);
    read = host_io(&h, NVME_IO_READ, 0, MIB / 512, host_pages(&h, MIB / NVME_PAGE), 512);
    CHECK_INT(host_do(&h, 1, read, NULL), 0);
    before_kib = test_process_status(getpid(), "VmHWM");
    for (uint16_t q = 1; q <= 16; q++) {
        for (unsigned i = 0; i < 60; i++)
            host_put(&h, q, read);
        host_ring(&h, q);
    }
    for (uint16_t q = 1; q <= 16; q++)
        for (unsigned i = 0; i < 60; i++)
            CHECK_INT(host_wait(&h, q, &cqe), 0);
    CHECK(test_process_status(getpid(), "VmHWM") - before_kib < (100 + TEST_KEPT_MIB) * 1024);
    CHECK_INT(host_end(&h), 0);
}

/* The kernel refuses when it carries out the write, not before. */
static void limited(const char *aio)
{
    struct rlimit was, half;
    struct nvme_host h = { 0 };
    uint32_t at;

    host_start(&h, aio, host_image("disk.img", DISK, 0));
    at = host_pages(&h, 1);
    CHECK_INT(getrlimit(RLIMIT_FSIZE, &was), 0);
    half = was;
    half.rlim_cur = DISK / 2;
    CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &half), 0);
    for (uint64_t block = DISK / 1024 - 8; block < DISK / 1024 + 32; block += 8) {
        bool refused = block >= DISK / 1024;

        memset(h.ram + at, 0x5a, 4096);
        CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, block, 8, at, 512), NULL),
                  refused ? NVME_CAPACITY_EXCEEDED : 0);
        CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, block, 8, at, 512), NULL), 0);
        CHECK_INT(h.ram[at], refused ? 0 : 0x5a);
    }
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &was), 0);
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, DISK / 1024, 8, at, 512), NULL), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(limited_uring, "a-write-that-fails-in-the-ring-has-a-status-and-the-next-ones-go-on")
{
    limited("--aio=uring");
}

TEST(limited_threads, "a-write-that-fails-in-a-thread-has-a-status-and-the-next-ones-go-on")
{
    limited("--aio=threads");
}
