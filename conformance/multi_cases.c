/* SPDX-License-Identifier: BSD-3-Clause */
/* REGION_WRITE_MULTI. */
#include "conformance/test.h"

#define CONFIG      OB_PCI_REGION_CONFIG
#define ENTRIES_MAX 300u

struct multi {
    uint64_t count;
    struct ob_wire_write_multi_entry entries[ENTRIES_MAX];
};

static struct multi multi;

static void begin(struct test *t)
{
    if (!t->dev->caps.write_multiple)
        test_not_offered(t, "the server has no write_multiple");
    if (!device_has_config(t))
        test_not_offered(t, "the device has no config space");
    test_negotiate(t);
    multi.count = 0;
    device_write(t, CONFIG, CONFIG_LINE, 0x21, 1);
}

static struct ob_wire_write_multi_entry *add(uint8_t value)
{
    struct ob_wire_write_multi_entry *entry = &multi.entries[multi.count++];

    *entry = (struct ob_wire_write_multi_entry){ CONFIG_LINE, CONFIG, 1, { value } };
    return entry;
}

static size_t length(void)
{
    return sizeof(multi.count) + multi.count * sizeof(multi.entries[0]);
}

static void line_is(struct test *t, uint8_t value)
{
    uint32_t line = device_read(t, CONFIG, CONFIG_LINE, 1);

    MUST(t, line == value, "the interrupt line reads 0x%02x, not 0x%02x", line, value);
}

static void done(struct test *t, uint64_t count)
{
    uint64_t got;

    memcpy(&got, test_ok(t, OB_CMD_REGION_WRITE_MULTI, &multi, length())->data, sizeof(got));
    MUST(t, got == count, "the reply says that %llu entries were done, not %llu",
         (unsigned long long)got, (unsigned long long)count);
}

static void in_order(struct test *t)
{
    begin(t);
    for (unsigned i = 0; i < ENTRIES_MAX; i++)
        add((uint8_t)i);
    done(t, ENTRIES_MAX);
    line_is(t, (uint8_t)(ENTRIES_MAX - 1));
}

static void none(struct test *t)
{
    begin(t);
    done(t, 0);
    line_is(t, 0x21);
}

static void posted(struct test *t)
{
    begin(t);
    for (unsigned i = 0; i < 200; i++)
        add((uint8_t)i);
    test_send_all(t, OB_CMD_REGION_WRITE_MULTI, OB_HDR_NO_REPLY, &multi, length(), NULL, 0);
    line_is(t, 199);
}

static void refused_whole(struct test *t, size_t len)
{
    test_refused(t, 0, OB_CMD_REGION_WRITE_MULTI, &multi, len);
    line_is(t, 0x21);
}

static void entry_too_long(struct test *t)
{
    begin(t);
    add(1);
    add(2)->count = OB_WRITE_MULTI_DATA + 1;
    refused_whole(t, length());
}

static void length_differs(struct test *t)
{
    begin(t);
    add(1);
    refused_whole(t, length() - 1);
    refused_whole(t, length() + 1);
    multi.count = 2;
    refused_whole(t, length() - sizeof(multi.entries[0]));
    multi.count = UINT64_MAX / sizeof(multi.entries[0]) + 2;
    refused_whole(t, sizeof(multi.count) + sizeof(multi.entries[0]));
}

static void first_fails(struct test *t)
{
    begin(t);
    add(1)->region = UINT32_MAX;
    add(2);
    refused_whole(t, length());
}

static void third_fails(struct test *t)
{
    begin(t);
    add(1);
    add(2);
    add(3)->offset = t->dev->regions[CONFIG].size;
    add(4);
    done(t, 2);
    line_is(t, 2);
}

/* A client that did not say so. */
static void not_negotiated(struct test *t)
{
    test_is_ok(t, test_version(t, 0, 0, TEST_PLAIN, sizeof(TEST_PLAIN)), OB_CMD_VERSION);
    multi.count = 0;
    add(1);
    test_refused(t, 0, OB_CMD_REGION_WRITE_MULTI, &multi, length());
    test_alive(t);
}

static const struct entry entries[] = {
    RAW("multi/in-order", "R-MULTI-3 R-MULTI-4", "entries are executed in order", in_order),
    RAW("multi/none", "R-MULTI-4", "no entries are done", none),
    RAW("multi/posted", "R-MULTI-3 R-HDR-7", "it works without a reply", posted),
    RAW("multi/entry-too-long", "R-MULTI-2", "an entry above 8 bytes is refused with all others",
        entry_too_long),
    RAW("multi/length-differs", "R-MULTI-2", "another length than its entries have is refused",
        length_differs),
    RAW("multi/first-fails", "R-MULTI-4", "nothing is done when the first entry fails",
        first_fails),
    RAW("multi/third-fails", "R-MULTI-4", "the entries before one that fails are done",
        third_fails),
    RAW("multi/not-negotiated", "R-MULTI-1", "it is refused when it was not negotiated",
        not_negotiated),
};

CASES(multi_cases, entries);
