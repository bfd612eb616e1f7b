/* SPDX-License-Identifier: BSD-3-Clause */
/* DMA_MAP and DMA_UNMAP: the table of mappings. What the device does with them: transfer_cases.c.
 */
#include "conformance/test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define RW   (OB_DMA_READ | OB_DMA_WRITE)
#define BASE ((uint64_t)0x100000)
#define SIZE ((uint64_t)4 * PAGE)

static void must_map(struct test *t, uint32_t flags, int fd, uint64_t offset, uint64_t address,
                     uint64_t size)
{
    test_is_ok(t, device_map(t, flags, fd, offset, address, size), OB_CMD_DMA_MAP);
}

static void must_not_map(struct test *t, int err, uint32_t flags, int fd, uint64_t offset,
                         uint64_t address, uint64_t size)
{
    test_is_refused(t, device_map(t, flags, fd, offset, address, size), err, OB_CMD_DMA_MAP);
}

static void must_unmap(struct test *t, uint32_t flags, uint64_t address, uint64_t size)
{
    test_is_ok(t, device_unmap(t, flags, address, size), OB_CMD_DMA_UNMAP);
}

static void must_not_unmap(struct test *t, int err, uint32_t flags, uint64_t address, uint64_t size)
{
    test_is_refused(t, device_unmap(t, flags, address, size), err, OB_CMD_DMA_UNMAP);
}

/* ---- What can be mapped -------------------------------------------------------------------- */

/* Mapped, and there: it can be unmapped. */
static void map_and_unmap(struct test *t, uint32_t flags, int fd, uint64_t offset, uint64_t address,
                          uint64_t size)
{
    must_map(t, flags, fd, offset, address, size);
    must_unmap(t, 0, address, size);
    test_alive(t);
}

static void without_fd(struct test *t)
{
    map_and_unmap(t, RW, -1, 0, BASE, SIZE);
}

static void with_fd(struct test *t)
{
    map_and_unmap(t, RW, test_memfd(t, SIZE), 0, BASE, SIZE);
}

/* Servers that are older than the flags refuse them; libvfio-user's refuses both together. */
static void map_with_access(struct test *t, uint32_t access, int fd, uint64_t offset, uint64_t size)
{
    if (device_map(t, RW | access, fd, offset, BASE, size) == 0)
        return;
    test_deviates(t, "access flags 0x%x are refused, as where they are not known", access);
    must_map(t, RW, fd, offset, BASE, size);
}

static void access_flags(struct test *t, uint32_t access)
{
    int fd = test_memfd(t, SIZE);

    map_with_access(t, access, fd, 0, SIZE);
    must_unmap(t, 0, BASE, SIZE);
    map_with_access(t, access, fd, SIZE - 1, 1);
    must_unmap(t, 0, BASE, 1);
    test_alive(t);
}

static void mapped(struct test *t)
{
    access_flags(t, OB_DMA_ACCESS_MMAP);
}

static void by_file(struct test *t)
{
    access_flags(t, OB_DMA_ACCESS_FILE);
}

static void both_ways(struct test *t)
{
    access_flags(t, OB_DMA_ACCESS_MMAP | OB_DMA_ACCESS_FILE);
}

static void any_rights(struct test *t)
{
    int fd = test_memfd(t, SIZE);

    for (uint32_t rights = 0; rights <= RW; rights++) {
        map_and_unmap(t, rights, -1, 0, BASE, SIZE);
        map_and_unmap(t, rights, fd, 0, BASE, SIZE);
    }
}

static void unaligned(struct test *t)
{
    int fd = test_memfd(t, SIZE);

    map_and_unmap(t, RW, -1, 0, BASE + 1, 1);
    map_and_unmap(t, RW, -1, 0, BASE + 511, 4097);
    map_and_unmap(t, RW, fd, 0, BASE + 512, 512);
    map_and_unmap(t, RW, fd, 100, BASE + 7, PAGE);
}

static void at_the_end(struct test *t)
{
    map_and_unmap(t, RW, -1, 0, 0, PAGE);
    map_and_unmap(t, RW, -1, 0, UINT64_MAX - (PAGE - 1), PAGE);
    map_and_unmap(t, RW, test_memfd(t, PAGE), 0, UINT64_MAX - (PAGE - 1), PAGE);
    map_and_unmap(t, RW, -1, 0, UINT64_MAX, 1);
}

static void adjacent(struct test *t)
{
    must_map(t, RW, -1, 0, BASE, SIZE);
    must_map(t, RW, -1, 0, BASE - SIZE, SIZE);
    must_map(t, RW, -1, 0, BASE + SIZE, SIZE);
    must_unmap(t, 0, BASE, SIZE);
    must_unmap(t, 0, BASE - SIZE, SIZE);
    must_unmap(t, 0, BASE + SIZE, SIZE);
}

static void thousand(struct test *t)
{
    enum { MAPS = 1000 };
    uint32_t limit = t->dev->caps.max_dma_maps, n = limit < MAPS ? limit : MAPS;

    for (uint32_t i = 0; i < n; i++) /* in an order that is none */
        must_map(t, RW, -1, 0, BASE + (uint64_t)(i * 7919 % n) * 2 * PAGE, PAGE);
    for (uint32_t i = 0; i < n; i++)
        must_unmap(t, 0, BASE + (uint64_t)i * 2 * PAGE, PAGE);
    must_unmap(t, OB_DMA_UNMAP_ALL, 0, 0);
}

static void to_the_limit(struct test *t)
{
    enum { BATCH = 64 };
    uint32_t limit = t->dev->caps.max_dma_maps;
    uint16_t ids[BATCH];

    if (limit > OB_DMA_MAPS_DEFAULT)
        test_not_offered(t, "the server takes more mappings than this suite makes");
    for (uint32_t done = 0; done < limit;) {
        uint32_t n = limit - done < BATCH ? limit - done : BATCH;

        for (uint32_t i = 0; i < n; i++) {
            struct ob_wire_dma_map map = { sizeof(map), RW, 0, BASE + (done + i) * PAGE, PAGE };

            ids[i] = test_send(t, OB_CMD_DMA_MAP, &map, sizeof(map));
        }
        for (uint32_t i = 0; i < n; i++)
            test_is_ok(t, test_reply(t, OB_CMD_DMA_MAP, ids[i]), OB_CMD_DMA_MAP);
        done += n;
    }
    must_not_map(t, ENOSPC, RW, -1, 0, BASE + (uint64_t)limit * PAGE, PAGE);
    must_unmap(t, 0, BASE, PAGE);
    must_map(t, RW, -1, 0, BASE, PAGE);
    must_unmap(t, OB_DMA_UNMAP_ALL, 0, 0);
}

/* ---- What cannot be mapped ----------------------------------------------------------------- */

static void nothing(struct test *t)
{
    must_not_map(t, 0, RW, -1, 0, BASE, 0);
    must_not_map(t, 0, RW, test_memfd(t, SIZE), 0, BASE, 0);
    test_alive(t);
}

static void wraps(struct test *t)
{
    must_not_map(t, 0, RW, -1, 0, UINT64_MAX, 2);
    must_not_map(t, 0, RW, -1, 0, UINT64_MAX - PAGE + 1, PAGE + 1);
    must_not_map(t, 0, RW, -1, 0, 2, UINT64_MAX);
    must_map(t, RW, -1, 0, BASE, PAGE);
}

static void undefined_flags(struct test *t)
{
    for (unsigned bit = 4; bit < 32; bit++)
        must_not_map(t, 0, RW | 1u << bit, -1, 0, BASE, PAGE);
    must_map(t, RW, -1, 0, BASE, PAGE);
}

static void access_without_fd(struct test *t)
{
    must_not_map(t, 0, RW | OB_DMA_ACCESS_MMAP, -1, 0, BASE, PAGE);
    must_not_map(t, 0, RW | OB_DMA_ACCESS_FILE, -1, 0, BASE, PAGE);
    must_map(t, RW, -1, 0, BASE, PAGE);
}

static void two_fds(struct test *t)
{
    struct ob_wire_dma_map map = { sizeof(map), RW, 0, BASE, PAGE };
    int fds[2] = { test_memfd(t, PAGE), test_memfd(t, PAGE) };

    test_is_refused(t, test_ask_fds(t, OB_CMD_DMA_MAP, &map, sizeof(map), fds, 2), 0,
                    OB_CMD_DMA_MAP);
    must_map(t, RW, fds[0], 0, BASE, PAGE);
}

static void not_a_file(struct test *t)
{
    int ends[2];

    MUST(t, pipe2(ends, O_CLOEXEC) == 0, "no pipe");
    test_keep(t, ends[0]);
    test_keep(t, ends[1]);
    must_not_map(t, 0, RW, ends[1], 0, BASE, PAGE);
    must_not_map(t, 0, RW, test_eventfd(t), 0, BASE, PAGE);
    test_close(t, ends[1]);
    test_await_hang_up(t, ends[0], "a file descriptor that it refused");
}

static void file_too_short(struct test *t)
{
    int fd = test_memfd(t, SIZE);

    must_not_map(t, 0, RW, fd, 0, BASE, SIZE + 1);
    must_not_map(t, 0, RW, fd, SIZE, BASE, 1);
    must_not_map(t, 0, RW, fd, 1, BASE, SIZE);
    must_not_map(t, 0, RW, fd, UINT64_MAX, BASE, PAGE);
    must_not_map(t, 0, RW, fd, (uint64_t)INT64_MAX, BASE, PAGE);
    must_not_map(t, 0, RW, fd, UINT64_MAX - PAGE + 1, BASE, PAGE);
    must_map(t, RW, fd, 0, BASE, SIZE);
}

static void overlap(struct test *t, uint64_t address, uint64_t size)
{
    must_map(t, RW, -1, 0, BASE, SIZE);
    must_not_map(t, EEXIST, RW, -1, 0, address, size);
    must_not_map(t, EEXIST, RW, test_memfd(t, 4 * SIZE), 0, address, size);
    must_unmap(t, 0, BASE, SIZE);
    must_map(t, RW, -1, 0, address, size);
}

#define OVERLAP(name, address, size) \
    static void name(struct test *t) \
    {                                \
        overlap(t, address, size);   \
    }
OVERLAP(overlap_head, BASE - PAGE, 2 * PAGE)
OVERLAP(overlap_first_byte, BASE - PAGE, PAGE + 1)
OVERLAP(overlap_tail, BASE + SIZE - PAGE, 2 * PAGE)
OVERLAP(overlap_last_byte, BASE + SIZE - 1, PAGE)
OVERLAP(overlap_inside, BASE + PAGE, PAGE)
OVERLAP(overlap_around, BASE - PAGE, SIZE + 2 * PAGE)
OVERLAP(overlap_same_start, BASE, PAGE)

static void same_again(struct test *t)
{
    int fd = test_memfd(t, SIZE), got;

    must_map(t, RW, fd, 0, BASE, SIZE);
    got = device_map(t, RW, fd, 0, BASE, SIZE);
    if (got != 0)
        test_deviates(t, "the same mapping again is refused, as the document upstream has it");
    must_unmap(t, 0, BASE, SIZE);
    must_not_unmap(t, ENOENT, 0, BASE, SIZE);
}

static void same_range_otherwise(struct test *t)
{
    int fd = test_memfd(t, 2 * SIZE), other = test_memfd(t, 2 * SIZE);

    must_map(t, RW, fd, 0, BASE, SIZE);
    must_not_map(t, EEXIST, OB_DMA_READ, fd, 0, BASE, SIZE);
    must_not_map(t, EEXIST, RW, fd, PAGE, BASE, SIZE);
    must_not_map(t, EEXIST, RW, other, 0, BASE, SIZE);
    must_not_map(t, EEXIST, RW, -1, 0, BASE, SIZE);
    must_unmap(t, 0, BASE, SIZE);
}

/* ---- Unmapping ----------------------------------------------------------------------------- */

static void unmap_not_there(struct test *t)
{
    must_not_unmap(t, ENOENT, 0, BASE, SIZE);
    must_map(t, RW, -1, 0, BASE, SIZE);
    must_not_unmap(t, ENOENT, 0, BASE + SIZE, SIZE);
    must_unmap(t, 0, BASE, SIZE);
    must_not_unmap(t, ENOENT, 0, BASE, SIZE);
}

static void unmap_other_range(struct test *t)
{
    must_map(t, RW, -1, 0, BASE, SIZE);
    must_map(t, RW, -1, 0, BASE + SIZE, SIZE);
    must_not_unmap(t, ENOENT, 0, BASE, PAGE);
    must_not_unmap(t, ENOENT, 0, BASE + PAGE, SIZE - PAGE);
    must_not_unmap(t, ENOENT, 0, BASE, 2 * SIZE);
    must_not_unmap(t, ENOENT, 0, BASE - PAGE, SIZE + PAGE);
    must_unmap(t, 0, BASE, SIZE);
    must_unmap(t, 0, BASE + SIZE, SIZE);
}

static void unmap_nothing(struct test *t)
{
    must_map(t, RW, -1, 0, BASE, SIZE);
    must_not_unmap(t, 0, 0, BASE, 0);
    must_not_unmap(t, 0, 0, UINT64_MAX, 2);
    must_unmap(t, 0, BASE, SIZE);
}

static void unmap_all(struct test *t)
{
    for (uint64_t i = 0; i < 20; i++)
        must_map(t, RW, -1, 0, BASE + 2 * i * PAGE, PAGE);
    must_unmap(t, OB_DMA_UNMAP_ALL, 0, 0);
    for (uint64_t i = 0; i < 20; i++)
        must_not_unmap(t, ENOENT, 0, BASE + 2 * i * PAGE, PAGE);
    must_unmap(t, OB_DMA_UNMAP_ALL, 0, 0);
}

static void unmap_all_of_range(struct test *t)
{
    must_map(t, RW, -1, 0, BASE, SIZE);
    must_not_unmap(t, 0, OB_DMA_UNMAP_ALL, BASE, SIZE);
    must_not_unmap(t, 0, OB_DMA_UNMAP_ALL, 0, SIZE);
    must_not_unmap(t, 0, OB_DMA_UNMAP_ALL, BASE, 0);
    must_unmap(t, 0, BASE, SIZE);
}

static void unmap_undefined_flags(struct test *t)
{
    must_map(t, RW, -1, 0, BASE, SIZE);
    for (unsigned bit = 2; bit < 32; bit++)
        must_not_unmap(t, 0, 1u << bit, BASE, SIZE);
    must_not_unmap(t, 0, OB_DMA_UNMAP_GET_DIRTY | OB_DMA_UNMAP_ALL, 0, 0);
    must_unmap(t, 0, BASE, SIZE);
}

static void dirty_not_logged(struct test *t)
{
    struct {
        struct ob_wire_dma_unmap unmap;
        struct ob_wire_bitmap bitmap;
    } ask = { { 48, OB_DMA_UNMAP_GET_DIRTY, BASE, SIZE }, { PAGE, 8 } };

    must_map(t, RW, -1, 0, BASE, SIZE);
    test_refused(t, 0, OB_CMD_DMA_UNMAP, &ask, sizeof(ask));
    must_not_unmap(t, 0, OB_DMA_UNMAP_GET_DIRTY, BASE, SIZE); /* and without its bitmap header */
    must_unmap(t, 0, BASE, SIZE);
}

/* SPDK's client sends the fd along. */
static void unmap_with_fd(struct test *t)
{
    struct ob_wire_dma_unmap unmap = { sizeof(unmap), 0, BASE, SIZE };
    int fd = test_memfd(t, SIZE);

    must_map(t, RW, fd, 0, BASE, SIZE);
    test_is_ok(t, test_ask_fds(t, OB_CMD_DMA_UNMAP, &unmap, sizeof(unmap), &fd, 1),
               OB_CMD_DMA_UNMAP);
    test_alive(t);
}

static void map_again(struct test *t)
{
    int fd = test_memfd(t, SIZE);

    for (unsigned i = 0; i < 200; i++) {
        must_map(t, i % 2 ? RW : OB_DMA_READ, i % 3 ? fd : -1, 0, BASE, SIZE);
        must_unmap(t, 0, BASE, SIZE);
    }
}

/* ---- What happens to the file -------------------------------------------------------------- */

/* Another open file of the same memory. */
static int open_again(struct test *t, int memfd)
{
    char path[32];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd);
    return test_keep(t, open(path, O_RDWR | O_CLOEXEC));
}

/* We can have a write lease only while nobody else has the memory open or mapped. A memfd as it is
 * made does not count; what was opened does. */
static bool somebody_has(struct test *t, int ours)
{
    if (fcntl(ours, F_SETLEASE, F_WRLCK) == 0) {
        fcntl(ours, F_SETLEASE, F_UNLCK);
        return false;
    }
    MUST(t, errno == EAGAIN, "no lease: %s", strerror(errno));
    return true;
}

static void map_for_server(struct test *t, uint32_t access, int *ours)
{
    int memfd = test_memfd(t, SIZE), theirs = open_again(t, memfd);

    *ours = open_again(t, memfd);
    map_with_access(t, access, theirs, 0, SIZE);
    test_close(t, theirs);
    if (!somebody_has(t, *ours))
        test_not_offered(t, "the device has no use for memory");
}

static void let_go_by_unmap(struct test *t)
{
    static const uint32_t ways[] = { OB_DMA_ACCESS_MMAP, OB_DMA_ACCESS_FILE };
    int ours;

    for (unsigned i = 0; i < 2; i++) {
        map_for_server(t, ways[i], &ours);
        must_unmap(t, 0, BASE, SIZE);
        MUST(t, !somebody_has(t, ours), "the server keeps memory that was unmapped");
        map_for_server(t, ways[i], &ours);
        must_unmap(t, OB_DMA_UNMAP_ALL, 0, 0);
        MUST(t, !somebody_has(t, ours), "the server keeps memory after all was unmapped");
    }
}

static void let_go_by_leaving(struct test *t)
{
    int ours;

    map_for_server(t, OB_DMA_ACCESS_MMAP, &ours);
    test_hang_up(t);
    test_served(t);
    MUST(t, !somebody_has(t, ours), "the server keeps the memory of a client that left");
    must_map(t, OB_DMA_READ, -1, 0, BASE, PAGE);
}

static void file_cut(struct test *t)
{
    int fd = test_memfd(t, SIZE);

    must_map(t, RW, fd, 0, BASE, SIZE);
    MUST(t, ftruncate(fd, 0) == 0, "a memfd cannot be cut");
    test_alive(t);
    must_unmap(t, 0, BASE, SIZE);
}

static const struct entry entries[] = {
    CASE("dma/without-fd", "R-DMA-1", "memory is mapped without a descriptor", without_fd),
    CASE("dma/with-fd", "R-DMA-1", "memory is mapped with a descriptor", with_fd),
    CASE("dma/access-mmap", "R-DMA-3", "memory is mapped with ACCESS_MMAP", mapped),
    CASE("dma/access-file", "R-DMA-3", "memory is mapped with ACCESS_FILE", by_file),
    CASE("dma/access-both", "R-DMA-3", "both access flags together are taken", both_ways),
    CASE("dma/any-rights", "R-DMA-9", "any rights can be given, none too", any_rights),
    CASE("dma/unaligned", "R-DMA-8", "nothing need be aligned", unaligned),
    CASE("dma/at-the-end", "R-DMA-2", "a range may begin at 0 and end at 2^64", at_the_end),
    CASE("dma/adjacent", "R-DMA-6", "adjacent mappings do not overlap", adjacent),
    SLOW("dma/thousand", "R-DMA-7 R-DMA-13", "a thousand mappings are kept apart", thousand),
    SLOW("dma/to-the-limit", "R-DMA-7", "max_dma_maps mappings are kept, one more is refused",
         to_the_limit),
    CASE("dma/nothing", "R-DMA-2", "a mapping of no bytes is refused", nothing),
    CASE("dma/wraps", "R-DMA-2", "a range beyond 2^64 is refused", wraps),
    CASE("dma/undefined-flags", "R-DMA-1", "undefined flags are refused", undefined_flags),
    CASE("dma/access-without-fd", "R-DMA-3", "an access flag needs a descriptor",
         access_without_fd),
    CASE("dma/two-fds", "R-DMA-4", "two descriptors are refused", two_fds),
    CASE("dma/not-a-file", "R-DMA-5", "what is no file is refused, and closed", not_a_file),
    CASE("dma/file-too-short", "R-DMA-5", "a range past the end of its file is refused",
         file_too_short),
    CASE("dma/overlap-head", "R-DMA-6", "an overlap with the beginning is refused", overlap_head),
    CASE("dma/overlap-first-byte", "R-DMA-6", "an overlap of one byte is refused",
         overlap_first_byte),
    CASE("dma/overlap-tail", "R-DMA-6", "an overlap with the end is refused", overlap_tail),
    CASE("dma/overlap-last-byte", "R-DMA-6", "an overlap of the last byte is refused",
         overlap_last_byte),
    CASE("dma/overlap-inside", "R-DMA-6", "a range inside another is refused", overlap_inside),
    CASE("dma/overlap-around", "R-DMA-6", "a range around another is refused", overlap_around),
    CASE("dma/overlap-same-start", "R-DMA-6", "a shorter range at the same address is refused",
         overlap_same_start),
    CASE("dma/same-again", "R-DMA-6", "the same mapping again succeeds", same_again),
    CASE("dma/same-range-otherwise", "R-DMA-6", "the same range of something else is refused",
         same_range_otherwise),
    CASE("dma/map-again", "R-DMA-12", "what was unmapped can be mapped again", map_again),
    CASE("dma/file-cut", "R-DMA-5", "a client may cut its file", file_cut),
    CASE("unmap/not-there", "R-DMA-12", "what is not mapped cannot be unmapped", unmap_not_there),
    CASE("unmap/other-range", "R-DMA-12", "the range must be that of the mapping",
         unmap_other_range),
    CASE("unmap/nothing", "R-DMA-12", "an empty range, or one beyond 2^64, is refused",
         unmap_nothing),
    CASE("unmap/all", "R-DMA-13 R-DMA-16", "ALL takes every mapping away", unmap_all),
    CASE("unmap/all-of-range", "R-DMA-13", "ALL with a range is refused", unmap_all_of_range),
    CASE("unmap/undefined-flags", "R-DMA-14", "undefined flags, and both at once, are refused",
         unmap_undefined_flags),
    CASE("unmap/dirty-not-logged", "R-DMA-18", "GET_DIRTY without logging is refused",
         dirty_not_logged),
    CASE("unmap/with-fd", "R-DMA-17", "a descriptor is no error", unmap_with_fd),
    CASE("unmap/lets-go", "R-DMA-15", "after the reply the memory is not used any more",
         let_go_by_unmap),
    CASE("session/leaving-lets-memory-go", "R-LOSS-1", "a client's memory goes with it",
         let_go_by_leaving),
};

CASES(dma_cases, entries);
