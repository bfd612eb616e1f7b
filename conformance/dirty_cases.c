/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which memory the device wrote. Only QEMU's educational device can be told to write some: a case
 * says which bytes it made it write, and each report must have the pages of those, and no others.
 */
#include "conformance/test.h"

#include <errno.h>

#define BASE       EDU_BASE
#define RW         (OB_DMA_READ | OB_DMA_WRITE)
#define BITMAP_MAX 128u /* bytes */

/* More than a word of the bitmap. */
#define PAGES 70u
#define SIZE  ((uint64_t)PAGES * PAGE)

struct start {
    uint64_t page_size;
    uint32_t num_ranges, reserved;
    uint64_t iova, length;
};

struct report {
    uint64_t iova, length, page_size;
};

static uint64_t logged; /* the page size that the server chose */

static int start_logging(struct test *t, uint64_t page_size, uint64_t iova, uint64_t length)
{
    struct start data = { page_size, length ? 1 : 0, 0, iova, length };

    return device_feature(t, OB_FEATURE_SET | OB_FEATURE_DMA_LOGGING_START, &data,
                          length ? sizeof(data) : offsetof(struct start, iova), 0);
}

static int report(struct test *t, uint64_t iova, uint64_t length, uint64_t page_size)
{
    struct report data = { iova, length, page_size };

    return device_feature(t, OB_FEATURE_GET | OB_FEATURE_DMA_LOGGING_REPORT, &data, sizeof(data),
                          BITMAP_MAX);
}

static void need_logging(struct test *t)
{
    if (start_logging(t, PAGE, 0, 0) != 0)
        test_not_offered(t, "the server does not log dirty memory");
    memcpy(&logged, t->in.data + sizeof(struct ob_wire_feature), sizeof(logged));
    MUST(t, logged && !(logged & (logged - 1)), "the server logs pages of %llu bytes",
         (unsigned long long)logged);
}

static int stop_logging(struct test *t)
{
    return device_feature(t, OB_FEATURE_SET | OB_FEATURE_DMA_LOGGING_STOP, NULL, 0, 0);
}

/* ---- Commands ------------------------------------------------------------------------------ */

static void logging_states(struct test *t)
{
    need_logging(t);
    MUST(t, start_logging(t, PAGE, 0, 0) != 0, "logging was started twice");
    test_is_ok(t, stop_logging(t), OB_CMD_DEVICE_FEATURE);
    MUST(t, stop_logging(t) != 0, "logging was stopped twice");
    MUST(t, report(t, BASE, PAGE, PAGE) != 0, "there is a report though logging is off");
    test_is_ok(t, start_logging(t, PAGE, 0, 0), OB_CMD_DEVICE_FEATURE);
}

static void logging_refused(struct test *t)
{
    need_logging(t);
    test_is_ok(t, stop_logging(t), OB_CMD_DEVICE_FEATURE);
    MUST(t, start_logging(t, 0, 0, 0) != 0, "a page size of 0 was taken");
    MUST(t, start_logging(t, 3 * PAGE, 0, 0) != 0, "a page size of 12288 was taken");
    MUST(t, start_logging(t, PAGE, UINT64_MAX, 2) != 0, "a range beyond 2^64 was taken");
    test_alive(t);
}

static void any_report(struct test *t)
{
    static const uint64_t sizes[] = { 512, PAGE / 2, PAGE, 2 * PAGE, 1 << 20 };

    need_logging(t);
    test_is_ok(t, device_map(t, RW, test_memfd(t, 16 * PAGE), 0, BASE, 16 * PAGE), OB_CMD_DMA_MAP);
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        test_is_ok(t, report(t, BASE, 16 * PAGE, sizes[i]), OB_CMD_DEVICE_FEATURE);
        test_is_ok(t, report(t, BASE + PAGE, PAGE, sizes[i]), OB_CMD_DEVICE_FEATURE);
        test_is_ok(t, report(t, BASE - PAGE, 20 * PAGE, sizes[i]), OB_CMD_DEVICE_FEATURE);
        for (uint32_t at = 8 + sizeof(struct report); at < t->in.len; at++)
            MUST(t, t->in.data[at] == 0, "memory is dirty that nobody has written");
    }
    MUST(t, report(t, BASE, PAGE, 0) != 0, "a page size of 0 was taken");
    MUST(t, report(t, BASE, PAGE, 100) != 0, "a page size of 100 was taken");
    MUST(t, report(t, BASE, (uint64_t)1 << 40, PAGE) != 0, "a bitmap beyond argsz was promised");
    test_alive(t);
}

/* ---- What was written ---------------------------------------------------------------------- */

/* Bytes at BASE that the device has written since they were reported. */
struct span {
    uint64_t offset, count;
};
struct written {
    unsigned n;
    struct span spans[4];
};

static void begin(struct test *t)
{
    edu_begin(t);
    need_logging(t);
}

static void write_at(struct test *t, struct written *w, uint64_t offset, uint64_t count)
{
    edu_move(t, BASE + offset, count, true);
    w->spans[w->n++] = (struct span){ offset, count };
}

/* The pages of [address, address + length) that hold a part of a page, as it is logged, of which
 * something was written. */
static void expect(const struct written *w, uint64_t address, uint64_t length, uint64_t page_size,
                   uint8_t *bits)
{
    for (unsigned i = 0; i < w->n; i++) {
        uint64_t first = (BASE + w->spans[i].offset) & ~(logged - 1);
        uint64_t end = ((BASE + w->spans[i].offset + w->spans[i].count - 1) | (logged - 1)) + 1;

        for (uint64_t page = 0; page * page_size < length; page++) {
            uint64_t start = address + page * page_size;

            if (start < end && first < start + page_size)
                bits[page / 8] |= (uint8_t)(1u << page % 8);
        }
    }
}

static void check_bits(struct test *t, const uint8_t *bits, const struct written *w,
                       const struct report *r)
{
    uint8_t wanted[BITMAP_MAX] = { 0 };

    expect(w, r->iova, r->length, r->page_size, wanted);
    for (uint64_t page = 0; page < ob_bitmap_size(r->length, r->page_size) * 8; page++) {
        bool is = bits[page / 8] >> page % 8 & 1;

        MUST(t, is == (wanted[page / 8] >> page % 8 & 1), "page %llu of %llu bytes is %s",
             (unsigned long long)page, (unsigned long long)r->page_size,
             is ? "dirty, and was not written" : "clean, and was written");
    }
}

/* A report of these pages shows what was written. */
static void shows(struct test *t, const struct written *w, uint64_t address, uint64_t length,
                  uint64_t page_size)
{
    const struct report r = { address, length, page_size };
    const uint8_t *data;

    test_is_ok(t, report(t, address, length, page_size), OB_CMD_DEVICE_FEATURE);
    data = t->in.data + sizeof(struct ob_wire_feature);
    MUST(t,
         t->in.len ==
             sizeof(struct ob_wire_feature) + sizeof(r) + ob_bitmap_size(length, page_size),
         "the report has %u bytes", t->in.len);
    MUST(t, memcmp(data, &r, sizeof(r)) == 0, "the report does not repeat the request");
    check_bits(t, data + sizeof(r), w, &r);
}

static const struct written nothing;

static void map(struct test *t, bool by_message, uint64_t offset, uint64_t size)
{
    int fd = by_message ? -1 : test_memfd(t, size);

    test_is_ok(t, device_map(t, RW, fd, 0, BASE + offset, size), OB_CMD_DMA_MAP);
}

static void written_is_dirty(struct test *t)
{
    begin(t);
    for (unsigned by_message = 0; by_message < 2; by_message++) {
        struct written w = { 0 };

        map(t, by_message, 0, EDU_SIZE);
        shows(t, &w, BASE, EDU_SIZE, PAGE);
        edu_move(t, BASE, 100, false);
        shows(t, &w, BASE, EDU_SIZE, PAGE); /* it was only read */
        write_at(t, &w, PAGE + 100, 100);
        shows(t, &w, BASE, EDU_SIZE, PAGE);
        shows(t, &nothing, BASE, EDU_SIZE, PAGE);
        w.n = 0;
        write_at(t, &w, PAGE - 1, 2);
        shows(t, &w, BASE, EDU_SIZE, PAGE);
        test_is_ok(t, device_unmap(t, 0, BASE, EDU_SIZE), OB_CMD_DMA_UNMAP);
    }
}

/* Pages on both sides of the border between two words of a bitmap of PAGE. */
static void write_some(struct test *t, struct written *w)
{
    w->n = 0;
    write_at(t, w, PAGE + 100, 100);
    write_at(t, w, 64 * PAGE - 1, 2);
    write_at(t, w, SIZE - 1, 1);
}

static const uint64_t page_sizes[] = { 512, PAGE, 2 * PAGE, 16 * PAGE, 1 << 20 };
#define NPAGE_SIZES (sizeof(page_sizes) / sizeof(page_sizes[0]))

static void other_page_sizes(struct test *t)
{
    begin(t);
    map(t, false, 0, SIZE);
    for (size_t i = 0; i < NPAGE_SIZES; i++) {
        struct written w;

        write_some(t, &w);
        shows(t, &w, BASE, SIZE, page_sizes[i]);
        shows(t, &nothing, BASE, SIZE, page_sizes[i]);
    }
}

static void sub_ranges(struct test *t)
{
    struct written w;

    begin(t);
    map(t, false, 0, SIZE);
    write_some(t, &w);
    shows(t, &w, BASE + 60 * PAGE, 4 * PAGE, PAGE); /* of 63 and 64 only the first */
    shows(t, &nothing, BASE + 60 * PAGE, 4 * PAGE, PAGE);
    w.spans[1] = (struct span){ 64 * PAGE, 1 };
    shows(t, &w, BASE, SIZE, PAGE); /* the others are as they were */
    shows(t, &nothing, BASE, SIZE, PAGE);
}

/* One by message, one by descriptor, and another behind a hole. */
static void over_mappings(struct test *t)
{
    struct written w = { 0 };

    begin(t);
    map(t, true, 0, 2 * PAGE);
    map(t, false, 2 * PAGE, 2 * PAGE);
    map(t, false, 6 * PAGE, 2 * PAGE);
    write_at(t, &w, PAGE + PAGE / 2, PAGE);
    edu_move(t, BASE + 4 * PAGE, PAGE, true); /* nobody's */
    write_at(t, &w, 6 * PAGE, 1);
    shows(t, &w, BASE - PAGE, 12 * PAGE, PAGE);
    shows(t, &nothing, BASE - PAGE, 12 * PAGE, PAGE);
}

static void given_range(struct test *t)
{
    struct written w = { 0 };

    begin(t);
    map(t, false, 0, SIZE);
    test_is_ok(t, stop_logging(t), OB_CMD_DEVICE_FEATURE);
    test_is_ok(t, start_logging(t, PAGE, BASE, 8 * PAGE), OB_CMD_DEVICE_FEATURE);
    write_at(t, &w, 2 * PAGE, PAGE);
    shows(t, &w, BASE, 8 * PAGE, PAGE);
}

static void refused_clears_nothing(struct test *t)
{
    const struct report all = { BASE, SIZE, PAGE };
    struct written w;

    begin(t);
    map(t, false, 0, SIZE);
    write_some(t, &w);
    test_is_refused(
        t, device_feature(t, OB_FEATURE_GET | OB_FEATURE_DMA_LOGGING_REPORT, &all, sizeof(all), 8),
        0, OB_CMD_DEVICE_FEATURE);
    shows(t, &w, BASE, SIZE, PAGE);
}

/* What was written before START is no matter. */
static void started_anew(struct test *t)
{
    struct written w;

    begin(t);
    map(t, false, 0, SIZE);
    write_some(t, &w);
    test_is_ok(t, stop_logging(t), OB_CMD_DEVICE_FEATURE);
    edu_move(t, BASE + 9 * PAGE, 1, true);
    need_logging(t);
    shows(t, &nothing, BASE, SIZE, PAGE);
}

static void leaving_stops(struct test *t)
{
    begin(t);
    test_hang_up(t);
    test_served(t);
    MUST(t, report(t, BASE, PAGE, PAGE) != 0, "the logging of a client that has left goes on");
    test_is_ok(t, start_logging(t, PAGE, 0, 0), OB_CMD_DEVICE_FEATURE);
}

/* ---- Dirty memory that is taken back --------------------------------------------------------- */

struct dirty_unmap {
    struct ob_wire_dma_unmap unmap;
    struct ob_wire_bitmap bitmap;
};

/* Takes all back; the reply shows what was written. */
static void unmap_shows(struct test *t, const struct written *w, uint64_t page_size)
{
    const struct report r = { BASE, SIZE, page_size };
    uint64_t size = ob_bitmap_size(SIZE, page_size);
    const struct dirty_unmap ask = {
        { (uint32_t)(sizeof(ask) + size), OB_DMA_UNMAP_GET_DIRTY, BASE, SIZE }, { page_size, size }
    };

    test_ok(t, OB_CMD_DMA_UNMAP, &ask, sizeof(ask));
    MUST(t, t->in.len == sizeof(ask) + size, "the reply with its bitmap has %u bytes", t->in.len);
    MUST(t, memcmp(t->in.data, &ask, sizeof(ask)) == 0,
         "the reply to DMA_UNMAP does not repeat the request");
    check_bits(t, t->in.data + sizeof(ask), w, &r);
    test_is_refused(t, device_unmap(t, 0, BASE, SIZE), ENOENT, OB_CMD_DMA_UNMAP);
}

static void unmap_shows_written(struct test *t)
{
    begin(t);
    for (size_t i = 0; i < 2 * NPAGE_SIZES; i++) {
        bool by_message = i % 2;
        struct written w = { 0 };

        map(t, by_message, 0, SIZE);
        if (by_message)
            write_at(t, &w, PAGE - 1, 2); /* what is served by message is smaller */
        else
            write_some(t, &w);
        unmap_shows(t, &w, page_sizes[i / 2]);
        map(t, by_message, 0, SIZE);
        shows(t, &nothing, BASE, SIZE, PAGE);
        test_is_ok(t, device_unmap(t, 0, BASE, SIZE), OB_CMD_DMA_UNMAP);
    }
}

/* ... and another mapping keeps what it has. */
static void unmap_forgets(struct test *t)
{
    struct written w, other = { 0 };

    begin(t);
    map(t, false, 0, SIZE);
    map(t, false, SIZE, PAGE);
    write_some(t, &w);
    write_at(t, &other, SIZE, 1);
    test_is_ok(t, device_unmap(t, 0, BASE, SIZE), OB_CMD_DMA_UNMAP);
    map(t, false, 0, SIZE);
    unmap_shows(t, &nothing, PAGE);
    shows(t, &other, BASE, SIZE + PAGE, PAGE);
}

static void unmap_refused_while_off(struct test *t)
{
    const struct dirty_unmap ask = { { sizeof(ask) + 16, OB_DMA_UNMAP_GET_DIRTY, BASE, SIZE },
                                     { PAGE, 16 } };

    map(t, false, 0, SIZE);
    test_refused(t, 0, OB_CMD_DMA_UNMAP, &ask, sizeof(ask));
    test_is_ok(t, device_unmap(t, 0, BASE, SIZE), OB_CMD_DMA_UNMAP);
}

static void dirty_unmap(struct test *t)
{
    static const uint64_t sizes[] = { 0, 7, (1 << 20) + 8, UINT64_MAX - 47, UINT64_MAX };
    struct dirty_unmap ask = { { 48, OB_DMA_UNMAP_GET_DIRTY, BASE, 16 * PAGE }, { PAGE, 8 } };

    need_logging(t);
    test_is_ok(t, device_map(t, RW, test_memfd(t, 16 * PAGE), 0, BASE, 16 * PAGE), OB_CMD_DMA_MAP);
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        ask.bitmap.size = sizes[i];
        test_refused(t, 0, OB_CMD_DMA_UNMAP, &ask, sizeof(ask));
    }
    ask.bitmap = (struct ob_wire_bitmap){ PAGE + 1, 8 };
    test_refused(t, 0, OB_CMD_DMA_UNMAP, &ask, sizeof(ask));
    ask.bitmap = (struct ob_wire_bitmap){ PAGE, 8 };
    ask.unmap.argsz = 47;
    test_refused(t, 0, OB_CMD_DMA_UNMAP, &ask, sizeof(ask));
    ask.unmap.argsz = 48;
    test_ok(t, OB_CMD_DMA_UNMAP, &ask, sizeof(ask));
    MUST(t, t->in.len == 48, "the reply with its bitmap has %u bytes", t->in.len);
    test_is_refused(t, device_unmap(t, 0, BASE, 16 * PAGE), ENOENT, OB_CMD_DMA_UNMAP);
}

static const struct entry entries[] = {
    CASE("dirty/states", "R-LOG-3", "logging is on or off, and not twice", logging_states),
    CASE("dirty/refused", "R-LOG-2", "page sizes and ranges that cannot be are refused",
         logging_refused),
    CASE("dirty/any-report", "R-LOG-5 R-LOG-7 R-LOG-8", "any range and page size can be asked for",
         any_report),
    RAW("dirty/written", "R-LOG-4 R-LOG-6", "what the device wrote is dirty, once",
        written_is_dirty),
    RAW("dirty/other-page-sizes", "R-LOG-5 R-LOG-7",
        "in larger and smaller pages the same memory is dirty", other_page_sizes),
    RAW("dirty/sub-ranges", "R-LOG-5 R-LOG-6", "a report of a part leaves the rest as it was",
        sub_ranges),
    RAW("dirty/over-mappings", "R-LOG-4 R-LOG-5",
        "a report goes over mappings of any kind, and over holes", over_mappings),
    RAW("dirty/given-range", "R-LOG-1", "a range that was given to START is logged", given_range),
    RAW("dirty/refused-clears-nothing", "R-LOG-8 R-FEATURE-5",
        "a report without room for its bitmap is refused, and clears nothing",
        refused_clears_nothing),
    RAW("dirty/started-anew", "R-LOG-1", "what was written before START is not dirty",
        started_anew),
    RAW("dirty/leaving-stops", "R-MIG-11 R-LOG-3", "logging stops when the client leaves",
        leaving_stops),
    CASE("dirty/unmap", "R-DMA-18", "GET_DIRTY needs room for its bitmap", dirty_unmap),
    RAW("dirty/unmap-shows-written", "R-DMA-18 R-DMA-16 R-LOG-7",
        "what was written is in the bitmap, in pages of any size", unmap_shows_written),
    RAW("dirty/unmap-forgets", "R-LOG-9 R-LOG-4",
        "memory that is mapped anew is clean, and only that", unmap_forgets),
    CASE("dirty/unmap-while-off", "R-DMA-18", "GET_DIRTY is refused while logging is off",
         unmap_refused_while_off),
};

CASES(dirty_cases, entries);
