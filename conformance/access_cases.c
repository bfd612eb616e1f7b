/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * REGION_READ, REGION_WRITE, and config space. What is written is the interrupt line, which means
 * nothing to a device, and BARs, which get their values back.
 */
#include "conformance/test.h"

#include <errno.h>

#define ACCESS_BYTES ((uint32_t)sizeof(struct ob_wire_region_access))
#define CONFIG       OB_PCI_REGION_CONFIG
#define COMMAND      0x04u
#define BUS_MASTER   0x04u

static void need_config(struct test *t)
{
    if (!device_has_config(t))
        test_not_offered(t, "the device has no config space");
}

static uint32_t num_regions(const struct test *t)
{
    uint32_t n = t->dev->info.num_regions;

    return n < OB_REGIONS_MAX ? n : OB_REGIONS_MAX;
}

static int read_raw(struct test *t, uint32_t region, uint64_t offset, uint32_t count)
{
    struct ob_wire_region_access access = { offset, region, count };

    return test_ask(t, OB_CMD_REGION_READ, &access, sizeof(access));
}

static void must_not_read(struct test *t, uint32_t region, uint64_t offset, uint32_t count)
{
    test_is_refused(t, read_raw(t, region, offset, count), 0, OB_CMD_REGION_READ);
}

/* A write that says count and has len bytes of zeros. */
static int write_raw(struct test *t, uint32_t region, uint64_t offset, uint32_t count, size_t len)
{
    static uint8_t payload[OB_PAYLOAD_MAX + PAGE];
    struct ob_wire_region_access access = { offset, region, count };

    MUST(t, len <= sizeof(payload) - sizeof(access), "out of room for a write");
    memcpy(payload, &access, sizeof(access));
    return test_ask(t, OB_CMD_REGION_WRITE, payload, sizeof(access) + len);
}

static void must_not_write(struct test *t, uint32_t region, uint64_t offset, uint32_t count,
                           size_t len)
{
    test_is_refused(t, write_raw(t, region, offset, count, len), 0, OB_CMD_REGION_WRITE);
}

static void set_line(struct test *t, uint8_t value)
{
    device_write(t, CONFIG, CONFIG_LINE, value, 1);
}

static void line_is(struct test *t, uint8_t value)
{
    uint32_t line = device_read(t, CONFIG, CONFIG_LINE, 1);

    MUST(t, line == value, "the interrupt line reads 0x%02x, not 0x%02x", line, value);
}

/* ---- Sizes and bounds ---------------------------------------------------------------------- */

static void sizes_agree(struct test *t)
{
    uint8_t whole[64];

    need_config(t);
    device_read(t, CONFIG, 0, sizeof(whole));
    memcpy(whole, t->in.data + ACCESS_BYTES, sizeof(whole));
    for (uint32_t size = 1; size <= 8; size++)
        for (uint32_t at = 0; at + size <= sizeof(whole); at++) {
            device_read(t, CONFIG, at, size);
            MUST(t, memcmp(t->in.data + ACCESS_BYTES, whole + at, size) == 0,
                 "%u bytes at 0x%x read differently from the whole", size, at);
        }
}

static void whole_config(struct test *t)
{
    uint64_t size = t->dev->regions[CONFIG].size;

    MUST(t, size == 256 || size == 4096, "config space has %llu bytes", (unsigned long long)size);
    device_read(t, CONFIG, 0, (uint32_t)size);
    if (size == 4096)
        device_read(t, CONFIG, 4092, 4);
}

static void last_byte(struct test *t)
{
    for (uint32_t i = 0; i < num_regions(t); i++)
        if (t->dev->regions[i].size && (t->dev->regions[i].flags & OB_REGION_READ))
            device_read(t, i, t->dev->regions[i].size - 1, 1);
}

static void read_past_end(struct test *t)
{
    for (uint32_t i = 0; i < num_regions(t); i++) {
        uint64_t size = t->dev->regions[i].size;

        must_not_read(t, i, size, 1);
        must_not_read(t, i, size + 1, 4);
        must_not_read(t, i, UINT64_MAX, 1);
        must_not_read(t, i, UINT64_MAX - 3, 4);
        must_not_read(t, i, UINT64_MAX - 1, 4);
        if (size)
            must_not_read(t, i, size - 1, 2);
    }
    test_alive(t);
}

static void write_past_end(struct test *t)
{
    for (uint32_t i = 0; i < num_regions(t); i++) {
        uint64_t size = t->dev->regions[i].size;

        must_not_write(t, i, size, 1, 1);
        must_not_write(t, i, UINT64_MAX, 1, 1);
        must_not_write(t, i, UINT64_MAX - 3, 4, 4);
        must_not_write(t, i, UINT64_MAX - 1, 4, 4);
    }
    test_alive(t);
}

static void no_such_region(struct test *t)
{
    const uint32_t indexes[] = { t->dev->info.num_regions, 0x80000000u, UINT32_MAX };

    for (unsigned i = 0; i < 3; i++) {
        must_not_read(t, indexes[i], 0, 4);
        must_not_read(t, indexes[i], 0, 0);
        must_not_write(t, indexes[i], 0, 4, 4);
    }
    test_alive(t);
}

/* A region that cannot be read, or not written. */
static void direction(struct test *t)
{
    bool any = false;

    for (uint32_t i = 0; i < num_regions(t); i++) {
        uint32_t flags = t->dev->regions[i].flags;

        if (!t->dev->regions[i].size)
            continue;
        if (!(flags & OB_REGION_READ))
            must_not_read(t, i, 0, 1);
        if (!(flags & OB_REGION_WRITE))
            must_not_write(t, i, 0, 1, 1);
        any |= (flags & 3) != 3;
    }
    if (!any)
        test_not_offered(t, "all regions can be read and written");
}

static void count_zero(struct test *t)
{
    need_config(t);
    test_is_ok(t, read_raw(t, CONFIG, 0, 0), OB_CMD_REGION_READ);
    if (t->in.len == 0)
        test_deviates(t, "an access of no bytes is answered by a header, as by libvfio-user");
    test_is_ok(t, write_raw(t, CONFIG, 0, 0, 0), OB_CMD_REGION_WRITE);
    test_alive(t);
}

static void read_over_limit(struct test *t)
{
    uint32_t limit = t->dev->caps.max_data_xfer_size;

    if (limit == UINT32_MAX)
        test_not_offered(t, "the server has no limit");
    for (uint32_t i = 0; i < num_regions(t); i++)
        must_not_read(t, i, 0, limit + 1);
    must_not_read(t, CONFIG, 0, UINT32_MAX);
    test_alive(t);
}

static void write_over_limit(struct test *t)
{
    uint32_t limit = t->dev->caps.max_data_xfer_size;

    if (limit > OB_DATA_XFER_MAX)
        test_not_offered(t, "the server takes more than this suite sends");
    must_not_write(t, CONFIG, 0, limit + 1, limit + 1);
    must_not_write(t, CONFIG, 0, UINT32_MAX, 16);
    test_alive(t);
}

/* As much as one message may have, where a region is memory. */
static void largest_read(struct test *t)
{
    uint32_t limit = t->dev->caps.max_data_xfer_size;

    if (limit > OB_DATA_XFER_MAX)
        limit = OB_DATA_XFER_MAX;
    for (uint32_t i = 0; i < num_regions(t); i++) {
        uint64_t size = t->dev->regions[i].size;

        if (!device_maps(t, i) || !(t->dev->regions[i].flags & OB_REGION_READ))
            continue;
        device_read(t, i, 0, size < limit ? (uint32_t)size : limit);
        return;
    }
    test_not_offered(t, "no region is memory");
}

static void data_differs(struct test *t)
{
    static const struct {
        uint32_t count;
        size_t len;
    } bad[] = { { 1, 0 }, { 1, 2 }, { 2, 1 }, { 4, 3 }, { 4, 8 }, { 0, 1 }, { 64, 63 } };

    need_config(t);
    set_line(t, 0x5a);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        must_not_write(t, CONFIG, CONFIG_LINE, bad[i].count, bad[i].len);
    line_is(t, 0x5a);
}

/* ---- Writes -------------------------------------------------------------------------------- */

static void written_is_read(struct test *t)
{
    static const uint8_t values[] = { 0x00, 0x01, 0x80, 0xa5, 0xff };

    need_config(t);
    for (unsigned i = 0; i < sizeof(values); i++) {
        set_line(t, values[i]);
        MUST(t, t->in.len == ACCESS_BYTES, "the reply to REGION_WRITE has %u bytes", t->in.len);
        line_is(t, values[i]);
    }
}

static void posted_then_read(struct test *t)
{
    struct ob_wire_region_access access = { CONFIG_LINE, CONFIG, 1 };
    uint8_t payload[sizeof(access) + 1];

    need_config(t);
    memcpy(payload, &access, sizeof(access));
    for (unsigned i = 0; i < 3000; i++) {
        payload[sizeof(access)] = (uint8_t)i;
        test_send_all(t, OB_CMD_REGION_WRITE, OB_HDR_NO_REPLY, payload, sizeof(payload), NULL, 0);
        if (i % 500 == 499)
            line_is(t, (uint8_t)i);
    }
}

static void write_reply_repeats(struct test *t)
{
    struct ob_wire_region_access access = { CONFIG_LINE, CONFIG, 1 };

    need_config(t);
    set_line(t, 0x11);
    MUST(t, memcmp(t->in.data, &access, sizeof(access)) == 0,
         "the reply to REGION_WRITE does not repeat the request");
}

/* ---- Config space -------------------------------------------------------------------------- */

static void read_only_bits(struct test *t)
{
    uint32_t id, class;

    need_config(t);
    id = device_read(t, CONFIG, 0, 4);
    class = device_read(t, CONFIG, 8, 4);
    device_write(t, CONFIG, 0, ~id, 4);
    device_write(t, CONFIG, 0, 0, 2);
    device_write(t, CONFIG, 8, ~class, 4);
    MUST(t, device_read(t, CONFIG, 0, 4) == id && device_read(t, CONFIG, 8, 4) == class,
         "the device's identity can be written");
    MUST(t, (id & 0xffff) != 0xffff && (id & 0xffff) != 0, "the vendor id is 0x%04x", id & 0xffff);
}

/* Writes of every size up to the line's neighbours, which are read-only or of no meaning. */
static void write_sizes(struct test *t)
{
    uint32_t pin;

    need_config(t);
    pin = device_read(t, CONFIG, 0x3d, 1);
    for (uint32_t size = 1; size <= 4; size++) {
        device_write(t, CONFIG, CONFIG_LINE, 0x70 + size, size);
        line_is(t, (uint8_t)(0x70 + size));
    }
    device_write(t, CONFIG, CONFIG_LINE - 1, 0x7700, 2);
    line_is(t, 0x77);
    MUST(t, device_read(t, CONFIG, 0x3d, 1) == pin, "the interrupt pin can be written");
}

static uint64_t bar_size(struct test *t, unsigned bar, bool *is_64)
{
    uint32_t at = 0x10 + 4 * bar, low = device_read(t, CONFIG, at, 4), high = 0;
    uint64_t mask;

    *is_64 = bar < 5 && !(low & 1) && (low & 6) == 4;
    device_write(t, CONFIG, at, UINT32_MAX, 4);
    mask = device_read(t, CONFIG, at, 4);
    if (*is_64) {
        uint32_t kept = device_read(t, CONFIG, at + 4, 4);
        device_write(t, CONFIG, at + 4, UINT32_MAX, 4);
        high = device_read(t, CONFIG, at + 4, 4);
        device_write(t, CONFIG, at + 4, kept, 4);
    }
    device_write(t, CONFIG, at, low, 4);
    MUST(t, device_read(t, CONFIG, at, 4) == low, "BAR%u does not keep what is written", bar);
    mask &= mask & 1 ? ~(uint64_t)3 : ~(uint64_t)15;
    if (*is_64)
        mask |= (uint64_t)high << 32;
    else if (mask)
        mask |= (uint64_t)UINT32_MAX << 32;
    return mask ? ~mask + 1 : 0;
}

static void bars_size_regions(struct test *t)
{
    need_config(t);
    for (unsigned bar = 0; bar < 6; bar++) {
        bool is_64;
        uint64_t size = bar_size(t, bar, &is_64), region = t->dev->regions[bar].size;

        MUST(t, !(size & (size - 1)), "BAR%u has 0x%llx bytes", bar, (unsigned long long)size);
        MUST(t, size == region, "BAR%u has 0x%llx bytes, its region 0x%llx", bar,
             (unsigned long long)size, (unsigned long long)region);
        if (!is_64)
            continue;
        bar++;
        MUST(t, t->dev->regions[bar].size == 0, "BAR%u is the upper half of a BAR and a region",
             bar);
    }
}

static void capabilities_chain(struct test *t)
{
    uint32_t at;

    need_config(t);
    if (!(device_read(t, CONFIG, 0x06, 2) & 0x10))
        test_not_offered(t, "the device has no capabilities");
    at = device_read(t, CONFIG, 0x34, 1);
    for (unsigned n = 0; at; n++) {
        MUST(t, at >= 0x40 && at % 4 == 0, "the capability list leads to 0x%x", at);
        MUST(t, n < 48, "the capability list has no end");
        at = device_read(t, CONFIG, at + 1, 1);
    }
}

/* Id and next of a capability, and the whole header of an extended one. */
static void header_stays(struct test *t, uint32_t at, uint32_t size)
{
    uint32_t header = device_read(t, CONFIG, at, size);

    device_write(t, CONFIG, at, ~header, size);
    MUST(t, device_read(t, CONFIG, at, size) == header,
         "the header of the capability at 0x%x can be written", at);
}

static void capability_headers(struct test *t)
{
    uint32_t at = 0;

    need_config(t);
    if (device_read(t, CONFIG, 0x06, 2) & 0x10)
        at = device_read(t, CONFIG, 0x34, 1);
    if (!at)
        test_not_offered(t, "the device has no capabilities");
    for (unsigned n = 0; at >= 0x40 && n < 48; n++) {
        header_stays(t, at, 2);
        at = device_read(t, CONFIG, at + 1, 1);
    }
    if (t->dev->regions[CONFIG].size > 256)
        header_stays(t, 256, 4);
}

static void reset_clears_command(struct test *t)
{
    need_config(t);
    if (!(t->dev->info.flags & OB_DEVICE_RESET))
        test_not_offered(t, "the device cannot be reset");
    device_write(t, CONFIG, COMMAND, BUS_MASTER, 2);
    MUST(t, device_read(t, CONFIG, COMMAND, 2) & BUS_MASTER, "bus mastering cannot be turned on");
    test_ok(t, OB_CMD_DEVICE_RESET, NULL, 0);
    MUST(t, !(device_read(t, CONFIG, COMMAND, 2) & BUS_MASTER),
         "bus mastering is still on after a reset");
}

static const struct entry entries[] = {
    CASE("access/sizes-agree", "R-ACCESS-1 R-ACCESS-6 R-REGION-18",
         "reads of 1 to 8 bytes, at any offset, agree", sizes_agree),
    CASE("access/last-byte", "R-ACCESS-3", "the last byte of a region can be read", last_byte),
    CASE("access/read-past-end", "R-ACCESS-3", "a read that leaves its region is refused",
         read_past_end),
    CASE("access/write-past-end", "R-ACCESS-3", "a write outside its region is refused",
         write_past_end),
    CASE("access/no-such-region", "R-ACCESS-3", "a region that is not there is refused",
         no_such_region),
    CASE("access/direction", "R-ACCESS-3", "READ and WRITE of a region are kept", direction),
    CASE("access/count-zero", "R-ACCESS-5", "an access of no bytes succeeds", count_zero),
    CASE("access/read-over-limit", "R-ACCESS-4", "a read above max_data_xfer_size is refused",
         read_over_limit),
    CASE("access/write-over-limit", "R-ACCESS-4 R-FRAME-6",
         "a write above max_data_xfer_size is refused, its data dropped", write_over_limit),
    CASE("access/largest-read", "R-ACCESS-4 R-CAPS-8", "as much as max_data_xfer_size is read",
         largest_read),
    CASE("access/data-differs-from-count", "R-ACCESS-2 R-HDR-14",
         "a write with other data than it says is refused and changes nothing", data_differs),
    CASE("access/written-is-read", "R-ACCESS-6", "what was written is read", written_is_read),
    CASE("access/write-reply-repeats", "R-ACCESS-1", "the reply to a write repeats the request",
         write_reply_repeats),
    CASE("access/posted-then-read", "R-HDR-7 R-ORDER-1", "a read sees all posted writes before it",
         posted_then_read),
    CASE("config/whole", "R-REGION-18", "config space has 256 or 4096 bytes", whole_config),
    CASE("config/read-only-bits", "R-REGION-18", "writes to read-only bits are ignored",
         read_only_bits),
    CASE("config/write-sizes", "R-REGION-18", "writes of 1 to 4 bytes work", write_sizes),
    CASE("config/bars-size-regions", "R-REGION-19", "a BAR is as large as its region",
         bars_size_regions),
    CASE("config/capability-list", "R-REGION-18", "the capability list is sound",
         capabilities_chain),
    CASE("config/capability-headers", "R-REGION-18",
         "writes to the headers of capabilities are ignored", capability_headers),
    CASE("config/reset-clears-command", "R-DEVICE-5", "a reset includes config space",
         reset_clears_command),
};

CASES(access_cases, entries);
