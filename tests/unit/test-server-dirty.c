/* SPDX-License-Identifier: BSD-3-Clause */
/* Logging of the memory that a device writes. */
#include "harness.h"
#include "peer.h"

#include <errno.h>
#include <time.h>
#include <unistd.h>

#define PAGE  4096u
#define BASE  0x7fff000ull /* a chunk of the log ends one page on */
#define PAGES 1000u
#define SIZE  ((uint64_t)PAGES * PAGE)

struct fixture {
    struct ob_server *server;
    struct peer peer;
    int fd;
};

static void start(struct fixture *f)
{
    f->server = peer_server_new(NULL, NULL);
    f->fd = peer_memfd(SIZE);
    peer_attach(&f->peer, f->server);
    CHECK_INT(peer_map(&f->peer, BASE, SIZE, OB_DMA_READ | OB_DMA_WRITE, f->fd, 0), 0);
}

static void end(struct fixture *f)
{
    peer_close(&f->peer);
    ob_server_free(f->server);
    close(f->fd);
}

static int logging_start(struct fixture *f, uint64_t page_size, uint64_t *granted)
{
    struct {
        struct ob_wire_feature head;
        struct ob_wire_logging_start start;
        struct ob_dma_range range;
    } wire = { { sizeof(wire), OB_FEATURE_DMA_LOGGING_START | OB_FEATURE_SET },
               { page_size, 1, 0 },
               { BASE, SIZE } };
    struct ob_msg *reply;
    int rc = peer_call(&f->peer, OB_CMD_DEVICE_FEATURE, &wire, sizeof(wire), &reply);

    if (rc < 0)
        return rc;
    CHECK_INT(reply->len, sizeof(wire));
    memcpy(&wire, reply->payload, sizeof(wire));
    CHECK_INT(wire.range.length, SIZE);
    if (granted)
        *granted = wire.start.page_size;
    ob_msg_free(reply);
    return 0;
}

static int logging_stop(struct fixture *f)
{
    struct ob_wire_feature head = { sizeof(head), OB_FEATURE_DMA_LOGGING_STOP | OB_FEATURE_SET };

    return peer_call(&f->peer, OB_CMD_DEVICE_FEATURE, &head, sizeof(head), NULL);
}

static int report_argsz(struct fixture *f, uint64_t iova, uint64_t length, uint64_t page_size,
                        uint8_t *bitmap, uint32_t argsz)
{
    struct {
        struct ob_wire_feature head;
        struct ob_wire_logging_report report;
    } wire = { { argsz, OB_FEATURE_DMA_LOGGING_REPORT | OB_FEATURE_GET },
               { iova, length, page_size } };
    struct ob_msg *reply;
    int rc = peer_call(&f->peer, OB_CMD_DEVICE_FEATURE, &wire, sizeof(wire), &reply);

    if (rc < 0)
        return rc;
    CHECK_INT(reply->len, argsz < sizeof(wire) + ob_bitmap_size(length, page_size)
                              ? argsz
                              : sizeof(wire) + ob_bitmap_size(length, page_size));
    memcpy(bitmap, reply->payload + sizeof(wire), reply->len - sizeof(wire));
    ob_msg_free(reply);
    return 0;
}

static int report(struct fixture *f, uint64_t iova, uint64_t length, uint64_t page_size,
                  uint8_t *bitmap)
{
    return report_argsz(f, iova, length, page_size, bitmap, OB_DATA_XFER_MAX + 32);
}

static bool bit(const uint8_t *bitmap, uint64_t n)
{
    return bitmap[n / 8] >> n % 8 & 1;
}

static unsigned count(const uint8_t *bitmap, uint64_t bits)
{
    unsigned n = 0;

    for (uint64_t i = 0; i < bits; i++)
        n += bit(bitmap, i);
    return n;
}

TEST(exact, "a-report-has-the-pages-that-were-written-and-clears-them")
{
    static uint8_t bitmap[1 << 20];
    struct fixture f;
    uint64_t granted;
    uint8_t byte = 1;

    start(&f);
    CHECK_INT(ob_dma_write(f.server, BASE, &byte, 1), 0); /* before: of no interest */
    CHECK_INT(logging_start(&f, PAGE, &granted), 0);
    CHECK_INT(granted, PAGE);
    CHECK_INT(ob_dma_write(f.server, BASE + 5 * PAGE + 7, &byte, 1), 0);
    CHECK_INT(ob_dma_write(f.server, BASE + 999 * PAGE, &byte, 1), 0);
    CHECK_INT(ob_dma_write(f.server, BASE + 64 * PAGE - 1, "ab", 2), 0);
    CHECK_INT(ob_dma_read(f.server, BASE + 100 * PAGE, &byte, 1), 0);
    CHECK_INT(report(&f, BASE, SIZE, PAGE, bitmap), 0);
    CHECK_INT(count(bitmap, 1024), 4);
    CHECK(bit(bitmap, 5) && bit(bitmap, 63) && bit(bitmap, 64) && bit(bitmap, 999));
    CHECK_INT(report(&f, BASE, SIZE, PAGE, bitmap), 0);
    CHECK_INT(count(bitmap, 1024), 0);
    CHECK_INT(logging_stop(&f), 0);
    end(&f);
}

TEST(sizes, "a-report-takes-any-page-size-and-any-range")
{
    static uint8_t bitmap[1 << 20];
    struct fixture f;

    start(&f);
    for (unsigned shift = 0; shift < 40; shift++) {
        uint64_t page = (uint64_t)1 << shift, first = BASE + 3 * PAGE, len = 500 * PAGE;

        if (ob_bitmap_size(len, page) > OB_DATA_XFER_MAX)
            continue;
        for (unsigned log_shift = 0; log_shift < 64; log_shift += 7) {
            CHECK_INT(logging_start(&f, (uint64_t)1 << log_shift, NULL), 0);
            CHECK_INT(ob_dma_write(f.server, BASE + 10 * PAGE, "abc", 3), 0);
            CHECK_INT(ob_dma_write(f.server, BASE + 400 * PAGE, "abc", 3), 0);
            CHECK_INT(report(&f, first, len, page, bitmap), 0);
            for (uint64_t n = 0; n < ob_bitmap_size(len, page) * 8; n++) {
                uint64_t from = n * page, to = from + page; /* from first */
                bool dirty =
                    (from < 8 * PAGE && to > 7 * PAGE) || (from < 398 * PAGE && to > 397 * PAGE);

                CHECK_INT(bit(bitmap, n), dirty && from < len);
            }
            CHECK_INT(logging_stop(&f), 0);
        }
    }
    end(&f);
}

/* One that begins or ends inside of what is one granule for us must not hide the rest of it. */
TEST(parts, "a-report-of-half-a-page-leaves-the-page-dirty")
{
    static uint8_t bitmap[4096];
    struct fixture f;

    start(&f);
    CHECK_INT(logging_start(&f, PAGE, NULL), 0);
    CHECK_INT(ob_dma_write(f.server, BASE, "abc", 3), 0);
    CHECK_INT(report(&f, BASE, 512, 512, bitmap), 0);
    CHECK_INT(count(bitmap, 64), 1);
    CHECK_INT(report(&f, BASE, PAGE, PAGE, bitmap), 0);
    CHECK_INT(count(bitmap, 64), 1);
    CHECK_INT(report(&f, BASE, PAGE, PAGE, bitmap), 0);
    CHECK_INT(count(bitmap, 64), 0);
    end(&f);
}

TEST(everywhere, "a-report-may-span-mappings-and-gaps-up-to-the-end-of-memory")
{
    static uint8_t bitmap[4096];
    const uint64_t top = 0ull - 16 * PAGE;
    struct fixture f;

    start(&f);
    CHECK_INT(peer_map(&f.peer, top, 16 * PAGE, OB_DMA_WRITE, f.fd, 0), 0);
    CHECK_INT(logging_start(&f, PAGE, NULL), 0);
    CHECK_INT(ob_dma_write(f.server, 0ull - 1, "a", 1), 0);
    CHECK_INT(ob_dma_write(f.server, BASE + 3, "a", 1), 0);
    CHECK_INT(report(&f, 1ull << 50, 0ull - (1ull << 50), 1ull << 50, bitmap), 0);
    CHECK_INT(count(bitmap, 16384), 1);
    CHECK(bit(bitmap, 16382));
    CHECK_INT(report(&f, 0, UINT64_MAX, 1ull << 63, bitmap), 0);
    CHECK_INT(bitmap[0], 1);
    end(&f);
}

TEST(refused, "what-is-wrong-or-out-of-turn-is-refused")
{
    static uint8_t bitmap[1 << 20];
    struct fixture f;

    start(&f);
    CHECK_INT(report(&f, BASE, SIZE, PAGE, bitmap), -EINVAL);
    CHECK_INT(logging_stop(&f), -EINVAL);
    CHECK_INT(logging_start(&f, 0, NULL), -EINVAL);
    CHECK_INT(logging_start(&f, 3 * PAGE, NULL), -EINVAL);
    CHECK_INT(logging_start(&f, PAGE, NULL), 0);
    CHECK_INT(logging_start(&f, PAGE, NULL), -EINVAL);
    CHECK_INT(ob_dma_write(f.server, BASE, "a", 1), 0);
    CHECK_INT(report(&f, BASE, 0, PAGE, bitmap), -EINVAL);
    CHECK_INT(report(&f, BASE, SIZE, 0, bitmap), -EINVAL);
    CHECK_INT(report(&f, BASE, SIZE, 5000, bitmap), -EINVAL);
    CHECK_INT(report(&f, UINT64_MAX, 2, PAGE, bitmap), -EINVAL);
    CHECK_INT(report(&f, 0, (uint64_t)OB_DATA_XFER_MAX * 8 + 1, 1, bitmap), -EINVAL);
    CHECK_INT(report_argsz(&f, BASE, SIZE, PAGE, bitmap, 32 + 124), -EINVAL);
    CHECK_INT(report_argsz(&f, BASE, SIZE, PAGE, bitmap, 32 + 128), 0);
    CHECK_INT(bitmap[0], 1); /* refusals have cleared nothing */
    CHECK_INT(report(&f, 0, (uint64_t)OB_DATA_XFER_MAX * 8, 1, bitmap), 0);
    end(&f);
}

TEST(bytes, "a-bitmap-of-whole-bytes-is-enough-for-the-crate-r-14")
{
    uint8_t bitmap[16];
    struct fixture f;

    start(&f);
    CHECK_INT(logging_start(&f, PAGE, NULL), 0);
    CHECK_INT(ob_dma_write(f.server, BASE + 68 * PAGE, "a", 1), 0);
    CHECK_INT(report_argsz(&f, BASE, 70 * PAGE, PAGE, bitmap, 32 + 8), -EINVAL);
    CHECK_INT(report_argsz(&f, BASE, 70 * PAGE, PAGE, bitmap, 32 + 9), 0); /* 70 bits */
    CHECK_INT(bitmap[8], 1 << 4);
    CHECK_INT(report_argsz(&f, BASE, 70 * PAGE, PAGE, bitmap, 32 + 16), 0);
    CHECK_INT(bitmap[8], 0);
    end(&f);
}

TEST(held, "memory-that-is-held-for-writing-stays-dirty-until-it-is-put")
{
    static uint8_t bitmap[4096];
    struct ob_dma_ref refs[100], reader;
    struct fixture f;

    start(&f);
    for (unsigned i = 0; i < 100; i++)
        CHECK_INT(
            ob_dma_get(f.server, BASE + (uint64_t)i * 3 * PAGE, PAGE + 1, OB_DMA_WRITE, &refs[i]),
            0);
    CHECK_INT(ob_dma_get(f.server, BASE + 600 * PAGE, PAGE, OB_DMA_READ, &reader), 0);
    CHECK_INT(logging_start(&f, PAGE, NULL), 0);
    for (unsigned round = 0; round < 3; round++) {
        CHECK_INT(report(&f, BASE, SIZE, PAGE, bitmap), 0);
        CHECK_INT(count(bitmap, 1024), 200);
    }
    for (unsigned i = 1; i < 100; i++)
        ob_dma_put(f.server, &refs[i]);
    CHECK_INT(report(&f, BASE, SIZE, PAGE, bitmap), 0);
    CHECK_INT(count(bitmap, 1024), 200); /* they may have been written after the last report */
    CHECK_INT(report(&f, BASE, SIZE, PAGE, bitmap), 0);
    CHECK_INT(count(bitmap, 1024), 2);
    CHECK(bit(bitmap, 0) && bit(bitmap, 1));
    ob_dma_put(f.server, &refs[0]);
    ob_dma_put(f.server, &reader);
    end(&f);
}

static int unmap_dirty(struct fixture *f, uint64_t address, uint64_t size, uint64_t room,
                       uint8_t *bitmap)
{
    struct {
        struct ob_wire_dma_unmap unmap;
        struct ob_wire_bitmap bitmap;
    } wire = { { (uint32_t)(sizeof(wire) + room), OB_DMA_UNMAP_GET_DIRTY, address, size },
               { PAGE, room } };
    struct ob_msg *reply;
    int rc = peer_call(&f->peer, OB_CMD_DMA_UNMAP, &wire, sizeof(wire), &reply);

    if (rc < 0)
        return rc;
    memcpy(&wire, reply->payload, sizeof(wire));
    CHECK_INT(wire.unmap.address, address);
    CHECK_INT(wire.bitmap.size, ob_bitmap_size(size, PAGE));
    CHECK_INT(reply->len, sizeof(wire) + wire.bitmap.size);
    memcpy(bitmap, reply->payload + sizeof(wire), wire.bitmap.size);
    ob_msg_free(reply);
    return 0;
}

TEST(unmap, "unmapping-returns-the-dirty-pages-or-forgets-them")
{
    static uint8_t bitmap[4096];
    struct fixture f;

    start(&f);
    CHECK_INT(unmap_dirty(&f, BASE, SIZE, 128, bitmap), -EINVAL); /* nothing is logged */
    CHECK_INT(logging_start(&f, PAGE, NULL), 0);
    CHECK_INT(ob_dma_write(f.server, BASE + 7 * PAGE, "a", 1), 0);
    CHECK_INT(unmap_dirty(&f, BASE, SIZE, 120, bitmap), -EINVAL);
    CHECK_INT(unmap_dirty(&f, BASE, SIZE - PAGE, 128, bitmap), -ENOENT);
    CHECK_INT(unmap_dirty(&f, BASE, SIZE, 4096, bitmap), 0);
    CHECK_INT(count(bitmap, 1024), 1);
    CHECK(bit(bitmap, 7));
    for (unsigned all = 0; all < 2; all++) {
        CHECK_INT(peer_map(&f.peer, BASE, SIZE, OB_DMA_WRITE, f.fd, 0), 0);
        CHECK_INT(ob_dma_write(f.server, BASE + 8 * PAGE, "a", 1), 0);
        CHECK_INT(all ? peer_unmap(&f.peer, 0, 0, OB_DMA_UNMAP_ALL)
                      : peer_unmap(&f.peer, BASE, SIZE, 0),
                  0);
        CHECK_INT(report(&f, BASE, SIZE, PAGE, bitmap), 0);
        CHECK_INT(count(bitmap, 1024), 0);
    }
    end(&f);
}

TEST(unmap_small, "unmapping-a-few-pages-returns-those-that-are-dirty")
{
    uint8_t bitmap[8];
    struct fixture f;

    start(&f);
    CHECK_INT(peer_unmap(&f.peer, BASE, SIZE, 0), 0);
    CHECK_INT(peer_map(&f.peer, BASE, 64 * PAGE, OB_DMA_WRITE, f.fd, 0), 0);
    CHECK_INT(logging_start(&f, PAGE, NULL), 0);
    CHECK_INT(ob_dma_write(f.server, BASE + 7 * PAGE, "a", 1), 0);
    CHECK_INT(unmap_dirty(&f, BASE, 64 * PAGE, sizeof(bitmap), bitmap), 0);
    CHECK_INT(count(bitmap, 64), 1);
    CHECK(bit(bitmap, 7));
    end(&f);
}

TEST(late, "what-is-written-until-the-memory-is-put-is-in-the-answer-to-the-unmap")
{
    struct {
        struct ob_wire_dma_unmap unmap;
        struct ob_wire_bitmap bitmap;
    } wire = { { 40 + 128, OB_DMA_UNMAP_GET_DIRTY, BASE, SIZE }, { PAGE, 128 } };
    struct ob_dma_ref ref;
    struct ob_msg *reply;
    struct fixture f;

    start(&f);
    CHECK_INT(ob_dma_get(f.server, BASE + 9 * PAGE, PAGE, OB_DMA_WRITE, &ref), 0);
    CHECK_INT(logging_start(&f, PAGE, NULL), 0);
    peer_send(&f.peer, OB_CMD_DMA_UNMAP, 0, &wire, sizeof(wire), NULL, 0);
    CHECK(peer_silent(&f.peer));
    ob_dma_put(f.server, &ref);
    reply = peer_receive(&f.peer);
    CHECK_INT(reply->len, 40 + 128);
    CHECK_INT(count(reply->payload + 40, 1024), 1);
    CHECK(bit(reply->payload + 40, 9));
    ob_msg_free(reply);
    end(&f);
}

/* 600 GiB of address space, a page here and there of each 128 MiB. */
TEST(bounded, "more-than-can-be-accounted-for-is-all-dirty")
{
    static uint8_t bitmap[4096];
    const uint64_t chunk = 128u << 20;
    struct fixture f;

    start(&f);
    CHECK_INT(logging_start(&f, PAGE, NULL), 0);
    for (uint64_t i = 0; i < 4800; i++) {
        uint64_t at = (1ull << 40) + i * chunk;

        CHECK_INT(peer_map(&f.peer, at, PAGE, OB_DMA_WRITE, f.fd, 0), 0);
        CHECK_INT(ob_dma_write(f.server, at, "a", 1), 0);
    }
    CHECK_INT(report(&f, BASE, SIZE, PAGE, bitmap), 0);
    CHECK_INT(count(bitmap, 1024), PAGES);
    CHECK_INT(report(&f, (1ull << 40) + 4799 * chunk, 2 * PAGE, PAGE, bitmap), 0);
    CHECK_INT(bitmap[0], 1);
    CHECK_INT(unmap_dirty(&f, BASE, SIZE, 128, bitmap), 0);
    CHECK_INT(count(bitmap, 1024), PAGES);
    CHECK_INT(logging_stop(&f), 0);
    CHECK_INT(logging_start(&f, PAGE, NULL), 0);
    CHECK_INT(report(&f, BASE, SIZE, PAGE, bitmap), 0);
    CHECK_INT(count(bitmap, 1024), 0);
    end(&f);
}

/* ---- Against a model ---------------------------------------------------------------------- */

static uint32_t state_of_random;

static uint64_t random_below(uint64_t n)
{
    state_of_random = state_of_random * 1664525u + 1013904223u;
    return (state_of_random >> 8) % n;
}

/* Which bytes of the memory were written, a flag for each granule of 4 KiB of addresses. */
static bool model[PAGES + 1];

static void write_somewhere(struct fixture *f)
{
    static const uint8_t data[70000];
    uint64_t at = random_below(SIZE - sizeof(data)), len = 1 + random_below(sizeof(data));

    CHECK_INT(ob_dma_write(f->server, BASE + at, data, len), 0);
    for (uint64_t i = (BASE + at) / PAGE; i <= (BASE + at + len - 1) / PAGE; i++)
        model[i - BASE / PAGE] = true;
}

/* What is reported of a range that begins and ends anywhere, and what is clean then. */
static void compare_report(struct fixture *f)
{
    static uint8_t bitmap[1 << 20];
    uint64_t page_size = 1ull << (9 + random_below(13)), at = random_below(SIZE);
    uint64_t first = BASE + at, len = 1 + random_below(SIZE - at);
    bool expected[SIZE / 512 + 1] = { false };

    CHECK_INT(report(f, first, len, page_size, bitmap), 0);
    for (uint64_t g = first / PAGE; g <= (first + len - 1) / PAGE; g++) {
        uint64_t from = g * PAGE < first ? first : g * PAGE;
        uint64_t to = (g + 1) * PAGE > first + len ? first + len : (g + 1) * PAGE;

        if (!model[g - BASE / PAGE])
            continue;
        for (uint64_t i = (from - first) / page_size; i <= (to - 1 - first) / page_size; i++)
            expected[i] = true;
        if (from == g * PAGE && to == (g + 1) * PAGE)
            model[g - BASE / PAGE] = false;
    }
    for (uint64_t i = 0; i <= (len - 1) / page_size; i++)
        if (bit(bitmap, i) != expected[i])
            test_fail(__FILE__, __LINE__, "page %u of %u bytes from 0x%llx on is %d", (unsigned)i,
                      (unsigned)page_size, (unsigned long long)first, bit(bitmap, i));
}

TEST(random_reports, "reports-of-random-ranges-and-page-sizes-have-what-was-written")
{
    struct fixture f;

    start(&f);
    CHECK_INT(logging_start(&f, PAGE, NULL), 0);
    for (unsigned i = 0; i < 2000; i++) {
        if (random_below(3))
            write_somewhere(&f);
        compare_report(&f);
    }
    end(&f);
}

/* ---- Time --------------------------------------------------------------------------------- */

static int64_t cpu_us(void)
{
    struct timespec ts;

    CHECK_INT(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts), 0);
    return ts.tv_sec * INT64_C(1000000) + ts.tv_nsec / 1000;
}

/* Half a tebibyte, all that can be accounted for, is marked; what the report of len takes. */
static int64_t time_report(struct fixture *f, uint64_t len, uint64_t page_size)
{
    static uint8_t bitmap[1 << 20];
    struct ob_dma_ref ref;
    int64_t start_us;

    CHECK_INT(ob_dma_get(f->server, 1ull << 40, 1ull << 39, OB_DMA_WRITE, &ref), 0);
    ob_dma_put(f->server, &ref);
    start_us = cpu_us();
    CHECK_INT(report(f, 1ull << 40, len, page_size, bitmap), 0);
    return cpu_us() - start_us;
}

/* The more a report is about, the coarser it has to be: that may not take longer than a fine one.
 */
TEST(takes_no_longer, "a-report-of-everything-takes-no-longer-than-the-finest-one")
{
    int fd = peer_memfd(1ull << 39);
    struct fixture f;
    int64_t fine_us;

    start(&f);
    CHECK_INT(peer_map(&f.peer, 1ull << 40, 1ull << 39, OB_DMA_READ | OB_DMA_WRITE, fd, 0), 0);
    CHECK_INT(logging_start(&f, PAGE, NULL), 0);
    fine_us = time_report(&f, 8ull * OB_DATA_XFER_MAX / 2 * PAGE, PAGE);
    for (unsigned shift = 17; shift < 63; shift += 15)
        CHECK(time_report(&f, 1ull << 39, 1ull << shift) < 5 * fine_us);
    end(&f);
    close(fd);
}
