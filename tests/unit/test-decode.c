/* SPDX-License-Identifier: BSD-3-Clause */
/* Every rule of the request decoders at its edge. Payloads live in memory of exactly their length,
 * so that the sanitizers see a read past the end. */
#include "outboard/proto.h"
#include "harness.h"

#include <errno.h>

#define DECODE(function, bytes, len, ...)            \
    ({                                               \
        void *copy_ = malloc((len) ? (len) : 1);     \
        CHECK(copy_);                                \
        memcpy(copy_, bytes, len);                   \
        int rc_ = function(copy_, len, __VA_ARGS__); \
        free(copy_);                                 \
        rc_;                                         \
    })

/* ---- DMA_MAP, DMA_UNMAP -------------------------------------------------------------------- */

static int map(struct ob_wire_dma_map m, unsigned nfds)
{
    struct ob_wire_dma_map out, before;

    memset(&out, 0x5a, sizeof(out));
    before = out;
    int rc = DECODE(ob_decode_dma_map, &m, sizeof(m), nfds, &out);
    if (rc == 0)
        CHECK_MEM(&out, &m, sizeof(out));
    else
        CHECK_MEM(&out, &before, sizeof(out));
    return rc;
}

TEST(dma_map, "dma-map")
{
    const struct ob_wire_dma_map good = { 32, 3, 0x1000, 0x2000, 0x3000 };
    struct ob_wire_dma_map m = good, out;
    char longer[40] = { 0 };

    CHECK_INT(map(m, 0), 0);
    CHECK_INT(map(m, 1), 0);
    CHECK_INT(map(m, 2), -EINVAL);
    memcpy(longer, &m, sizeof(m));
    for (size_t len = 0; len <= sizeof(longer); len++)
        CHECK_INT(DECODE(ob_decode_dma_map, longer, len, 0, &out), len == 32 ? 0 : -EINVAL);
    m.argsz = 31;
    CHECK_INT(map(m, 0), -EINVAL);
    m.argsz = UINT32_MAX;
    CHECK_INT(map(m, 0), 0);

    for (unsigned bit = 0; bit < 32; bit++) {
        m = good;
        m.flags = 1u << bit;
        CHECK_INT(map(m, 1), bit < 4 ? 0 : -EINVAL);
        CHECK_INT(map(m, 0), bit < 2 ? 0 : -EINVAL);
    }
    m.flags = 0;
    CHECK_INT(map(m, 0), 0);
    m.flags = 15;
    CHECK_INT(map(m, 1), 0);

    m = good;
    m.size = 0;
    CHECK_INT(map(m, 0), -EINVAL);
    m = good;
    m.address = UINT64_MAX - m.size + 1; /* ends at 2^64 */
    CHECK_INT(map(m, 0), 0);
    m.address++;
    CHECK_INT(map(m, 0), -EINVAL);
    m.address = 1;
    m.size = UINT64_MAX;
    m.offset = 0;
    CHECK_INT(map(m, 0), 0);
    CHECK_INT(map(m, 1), -EINVAL); /* no file is so large */
    m.address = 2;
    CHECK_INT(map(m, 0), -EINVAL);

    m = good;
    m.offset = INT64_MAX - m.size;
    CHECK_INT(map(m, 1), 0);
    m.offset++;
    CHECK_INT(map(m, 1), -EINVAL);
    CHECK_INT(map(m, 0), 0);
    m.offset = UINT64_MAX;
    CHECK_INT(map(m, 1), -EINVAL);
}

struct unmap_msg {
    struct ob_wire_dma_unmap unmap;
    struct ob_wire_bitmap bitmap;
};

static int unmap(struct unmap_msg m, size_t len)
{
    struct ob_wire_dma_unmap out;
    struct ob_wire_bitmap bitmap;

    memset(&out, 0x5a, sizeof(out));
    memset(&bitmap, 0x5a, sizeof(bitmap));
    int rc = DECODE(ob_decode_dma_unmap, &m, len, &out, &bitmap);
    CHECK_INT(out.argsz == 0x5a5a5a5a, rc < 0);
    CHECK_INT(bitmap.size == 0x5a5a5a5a5a5a5a5a, rc < 0 || m.unmap.flags != 1);
    if (rc == 0)
        CHECK_MEM(&out, &m.unmap, sizeof(out));
    return rc;
}

TEST(dma_unmap, "dma-unmap")
{
    const struct unmap_msg good = { { 24, 0, 0x1000, 0x2000 }, { 0 } };
    struct unmap_msg m = good;

    for (size_t len = 0; len <= sizeof(m); len++)
        CHECK_INT(unmap(m, len), len == 24 ? 0 : -EINVAL);
    m.unmap.argsz = 23;
    CHECK_INT(unmap(m, 24), -EINVAL);
    m = good;
    m.unmap.size = 0;
    CHECK_INT(unmap(m, 24), -EINVAL);
    m.unmap.address = UINT64_MAX;
    m.unmap.size = 1;
    CHECK_INT(unmap(m, 24), 0);
    m.unmap.size = 2;
    CHECK_INT(unmap(m, 24), -EINVAL);
    for (uint32_t flags = 2; flags < 256; flags++) {
        m = good;
        m.unmap.flags = flags;
        CHECK_INT(unmap(m, 24), -EINVAL); /* ALL with a range, and what is not defined */
        m.unmap.address = m.unmap.size = 0;
        CHECK_INT(unmap(m, 24), flags == OB_DMA_UNMAP_ALL ? 0 : -EINVAL);
    }
    m.unmap = (struct ob_wire_dma_unmap){ 24, OB_DMA_UNMAP_ALL, 1, 0 };
    CHECK_INT(unmap(m, 24), -EINVAL);
    m.unmap = (struct ob_wire_dma_unmap){ 24, OB_DMA_UNMAP_ALL, 0, 1 };
    CHECK_INT(unmap(m, 24), -EINVAL);
}

TEST(dirty_bitmap, "dma-unmap-with-a-dirty-bitmap")
{
    /* 65 pages: two words. */
    const struct unmap_msg good = { { 56, 1, 0x1000, 65 * 4096 }, { 4096, 16 } };
    struct unmap_msg m = good;

    for (size_t len = 0; len <= sizeof(m); len++)
        CHECK_INT(unmap(m, len), len == 40 ? 0 : -EINVAL);
    m.unmap.argsz = 55;
    CHECK_INT(unmap(m, 40), -EINVAL);
    m = good;
    m.bitmap.size = 15;
    CHECK_INT(unmap(m, 40), -EINVAL);
    m.bitmap.size = 8;
    CHECK_INT(unmap(m, 40), -EINVAL);
    m.unmap.size = 64 * 4096;
    CHECK_INT(unmap(m, 40), 0);
    m.unmap.size++;
    CHECK_INT(unmap(m, 40), -EINVAL);
    for (unsigned bit = 0; bit < 64; bit++) {
        m = good;
        m.bitmap.pgsize = 1ull << bit;
        CHECK_INT(unmap(m, 40), bit >= 12 ? 0 : -EINVAL);
        m.bitmap.pgsize |= 1ull << 12;
        CHECK_INT(unmap(m, 40), bit == 12 ? 0 : -EINVAL);
    }
    m = good;
    m.bitmap.pgsize = 0;
    CHECK_INT(unmap(m, 40), -EINVAL);
    m = good;
    m.unmap.argsz = UINT32_MAX;
    m.bitmap.size = OB_DATA_XFER_MAX;
    CHECK_INT(unmap(m, 40), 0);
    m.bitmap.size++;
    CHECK_INT(unmap(m, 40), -EINVAL);
    m.bitmap.size = UINT64_MAX - 39; /* 40 + size wraps to 0 */
    CHECK_INT(unmap(m, 40), -EINVAL);
    m = good;
    m.unmap.address = 0;
    m.unmap.size = UINT64_MAX;
    m.bitmap.pgsize = 1;
    CHECK_INT(unmap(m, 40), -EINVAL);
}

/* ---- The four infos ------------------------------------------------------------------------ */

TEST(infos, "infos-want-their-length-and-argsz")
{
    static uint8_t buf[5000];
    const uint32_t argsz[] = { 0, 15, 16, 31, 32, 4064, UINT32_MAX };

    for (size_t i = 0; i < sizeof(argsz) / sizeof(argsz[0]); i++) {
        memcpy(buf, &argsz[i], 4);
        for (size_t len = 0; len <= 40; len++) {
            int want = len == 16 && argsz[i] >= 16 ? 0 : -EINVAL;
            CHECK_INT(DECODE(ob_decode_device_info, buf, len, &(struct ob_wire_device_info){ 0 }),
                      want);
            CHECK_INT(DECODE(ob_decode_irq_info, buf, len, &(struct ob_wire_irq_info){ 0 }), want);
            CHECK_INT(
                DECODE(ob_decode_region_io_fds, buf, len, &(struct ob_wire_region_io_fds){ 0 }),
                want);
            want = len >= 32 && argsz[i] >= 32 ? 0 : -EINVAL;
            CHECK_INT(DECODE(ob_decode_region_info, buf, len, &(struct ob_wire_region_info){ 0 }),
                      want);
        }
    }
    /* SPDK's 4064 bytes; the most, and one more. */
    struct ob_wire_region_info info = { .argsz = 4064, .index = 3 };
    memcpy(buf, &info, sizeof(info));
    CHECK_INT(DECODE(ob_decode_region_info, buf, 4064, &info), 0);
    CHECK_INT(info.index, 3);
    CHECK_INT(DECODE(ob_decode_region_info, buf, 4096, &info), 0);
    CHECK_INT(DECODE(ob_decode_region_info, buf, 4097, &info), -EINVAL);
    struct ob_wire_region_io_fds fds = { 16, 1, 2, 0 };
    CHECK_INT(DECODE(ob_decode_region_io_fds, &fds, sizeof(fds), &fds), -EINVAL);
    fds = (struct ob_wire_region_io_fds){ 16, 0, 2, 1 };
    CHECK_INT(DECODE(ob_decode_region_io_fds, &fds, sizeof(fds), &fds), -EINVAL);
}

/* ---- SET_IRQS ------------------------------------------------------------------------------ */

/* With data bytes behind the structure. */
static int set_irqs(struct ob_wire_set_irqs set, size_t data, unsigned nfds)
{
    static uint8_t buf[20 + 3000];
    struct ob_wire_set_irqs out;
    const uint8_t *bools = buf;

    memset(&out, 0x5a, sizeof(out));
    memcpy(buf, &set, sizeof(set));
    int rc = DECODE(ob_decode_set_irqs, buf, sizeof(set) + data, nfds, &out, &bools);
    if (rc < 0)
        CHECK(bools == buf && out.argsz == 0x5a5a5a5a);
    else
        CHECK_INT(bools != NULL, (set.flags & OB_IRQ_SET_DATA_BOOL) != 0);
    return rc;
}

static unsigned bits(uint32_t value)
{
    return (unsigned)__builtin_popcount(value);
}

TEST(irq_flags, "set-irqs-every-combination-of-flags")
{
    for (uint32_t flags = 0; flags < 256; flags++) {
        const struct ob_wire_set_irqs set = { 20, flags, 2, 0, 4 };
        bool legal = bits(flags & 7) == 1 && bits(flags & 0x38) == 1 && flags < 0x40;
        bool is_bool = flags & 2, is_fd = flags & 4;
        CHECK_INT(set_irqs(set, 0, 0), legal && !is_bool ? 0 : -EINVAL);
        CHECK_INT(set_irqs(set, 4, 0), legal && is_bool ? 0 : -EINVAL);
        CHECK_INT(set_irqs(set, 0, 4), legal && is_fd ? 0 : -EINVAL);
        CHECK_INT(set_irqs(set, 4, 4), -EINVAL);
        CHECK_INT(set_irqs(set, 0, 3), -EINVAL);
        CHECK_INT(set_irqs(set, 0, 5), -EINVAL);
        CHECK_INT(set_irqs(set, 3, 0), -EINVAL);
        CHECK_INT(set_irqs(set, 5, 0), -EINVAL);
    }
    for (unsigned bit = 6; bit < 32; bit++) {
        const struct ob_wire_set_irqs set = { 20, 0x21 | 1u << bit, 2, 0, 4 };
        CHECK_INT(set_irqs(set, 0, 0), -EINVAL);
    }
}

TEST(irq_ranges, "set-irqs-ranges")
{
    struct ob_wire_set_irqs set = { 20, 0x21, 2, 0, 0 };

    CHECK_INT(set_irqs(set, 0, 0), 0); /* take everything back */
    CHECK_INT(set_irqs(set, 0, 1), -EINVAL);
    set.start = 1;
    CHECK_INT(set_irqs(set, 0, 0), -EINVAL);
    set.start = 0;
    for (uint32_t flags = 0; flags < 64; flags++) {
        set.flags = flags;
        CHECK_INT(set_irqs(set, 0, 0), flags == 0x21 ? 0 : -EINVAL);
    }
    set = (struct ob_wire_set_irqs){ 20, 0x21, 2, OB_IRQ_VECTORS_MAX - 1, 1 };
    CHECK_INT(set_irqs(set, 0, 0), 0);
    set.count = 2;
    CHECK_INT(set_irqs(set, 0, 0), -EINVAL);
    set.start = UINT32_MAX;
    CHECK_INT(set_irqs(set, 0, 0), -EINVAL);
    set.start = 1;
    set.count = UINT32_MAX;
    CHECK_INT(set_irqs(set, 0, 0), -EINVAL);
    set = (struct ob_wire_set_irqs){ 20, 0x22, 2, 0, OB_IRQ_VECTORS_MAX };
    CHECK_INT(set_irqs(set, OB_IRQ_VECTORS_MAX, 0), 0);
    set.argsz = 19;
    CHECK_INT(set_irqs(set, OB_IRQ_VECTORS_MAX, 0), -EINVAL);
    for (size_t len = 0; len < sizeof(set); len++) {
        const uint8_t *bools;
        CHECK_INT(DECODE(ob_decode_set_irqs, &set, len, 0, &set, &bools), -EINVAL);
    }
}

/* ---- Accesses ------------------------------------------------------------------------------ */

TEST(region_access, "region-access")
{
    static uint8_t buf[64];
    struct ob_wire_region_access a = { 0x100, 2, 8 }, out;
    const void *data;

    memcpy(buf, &a, sizeof(a));
    for (size_t len = 0; len <= 32; len++) {
        data = buf;
        CHECK_INT(DECODE(ob_decode_region_access, buf, len, false, 64, &out, &data),
                  len == 16 ? 0 : -EINVAL);
        CHECK(data == buf);
        int rc = DECODE(ob_decode_region_access, buf, len, true, 64, &out, &data);
        CHECK_INT(rc, len == 24 ? 0 : -EINVAL);
        CHECK_INT(data == buf, rc < 0);
    }
    CHECK_INT(ob_decode_region_access(buf, 24, true, 8, &out, &data), 0);
    CHECK(data == buf + 16);
    CHECK_INT(ob_decode_region_access(buf, 24, true, 7, &out, &data), -EINVAL);
    CHECK_INT(ob_decode_region_access(buf, 16, false, 7, &out, &data), -EINVAL);
    a.count = 0;
    memcpy(buf, &a, sizeof(a));
    CHECK_INT(ob_decode_region_access(buf, 16, true, 0, &out, &data), 0);
    CHECK_INT(ob_decode_region_access(buf, 16, false, 0, &out, &data), 0);
    a.count = UINT32_MAX; /* 16 + count would wrap in 32 bits */
    memcpy(buf, &a, sizeof(a));
    CHECK_INT(ob_decode_region_access(buf, 15, true, UINT32_MAX, &out, &data), -EINVAL);
    CHECK_INT(ob_decode_region_access(buf, 16, true, UINT32_MAX, &out, &data), -EINVAL);
    a = (struct ob_wire_region_access){ UINT64_MAX - 7, 0, 8 };
    memcpy(buf, &a, sizeof(a));
    CHECK_INT(ob_decode_region_access(buf, 16, false, 64, &out, &data), -EINVAL);
    a.offset--;
    memcpy(buf, &a, sizeof(a));
    CHECK_INT(ob_decode_region_access(buf, 16, false, 64, &out, &data), 0);
}

TEST(dma_access, "dma-access")
{
    static uint8_t buf[64];
    struct ob_wire_dma_access a = { 0x100, 8 }, out;
    const void *data;

    memcpy(buf, &a, sizeof(a));
    for (size_t len = 0; len <= 32; len++) {
        data = buf;
        CHECK_INT(DECODE(ob_decode_dma_access, buf, len, false, 64, &out, &data),
                  len == 16 ? 0 : -EINVAL);
        int rc = DECODE(ob_decode_dma_access, buf, len, true, 64, &out, &data);
        CHECK_INT(rc, len == 24 ? 0 : -EINVAL);
        CHECK_INT(data == buf, rc < 0);
    }
    CHECK_INT(ob_decode_dma_access(buf, 24, true, 7, &out, &data), -EINVAL);
    static const uint64_t huge[] = { 1ull << 32, (1ull << 32) + 8, UINT64_MAX, UINT64_MAX - 15 };
    for (size_t i = 0; i < 4; i++) {
        a.count = huge[i];
        memcpy(buf, &a, sizeof(a));
        CHECK_INT(ob_decode_dma_access(buf, 24, true, UINT32_MAX, &out, &data), -EINVAL);
        CHECK_INT(ob_decode_dma_access(buf, 16, false, UINT32_MAX, &out, &data), -EINVAL);
    }
    a = (struct ob_wire_dma_access){ UINT64_MAX - 7, 8 }; /* ends at 2^64 */
    memcpy(buf, &a, sizeof(a));
    CHECK_INT(ob_decode_dma_access(buf, 16, false, 64, &out, &data), 0);
    a.address++;
    memcpy(buf, &a, sizeof(a));
    CHECK_INT(ob_decode_dma_access(buf, 16, false, 64, &out, &data), -EINVAL);
}

TEST(write_multi, "write-multi")
{
    static uint8_t buf[8 + 3 * 24 + 1];
    struct ob_wire_write_multi_entry entries[3] = { { 0, 1, 8, { 1 } },
                                                    { 8, 1, 0, { 0 } },
                                                    { 4, 2, 1, { 9 } } };
    uint64_t count = 3, got = 77;
    struct ob_cursor cur = { 0 };

    memcpy(buf, &count, 8);
    memcpy(buf + 8, entries, sizeof(entries));
    for (size_t len = 0; len <= sizeof(buf); len++)
        CHECK_INT(DECODE(ob_decode_write_multi, buf, len, &got, &cur), len == 80 ? 0 : -EINVAL);
    CHECK_INT(ob_decode_write_multi(buf, 80, &got, &cur), 0);
    CHECK_INT(got, 3);
    CHECK_INT(ob_cursor_left(&cur), 72);
    CHECK_MEM(ob_cursor_take(&cur, 72), entries, 72);
    /* Counts that lie, those whose product wraps among them. */
    static const uint64_t lies[] = { 0, 2, 4, 43691, 1ull << 61, UINT64_MAX, 0xaaaaaaaaaaaaaab0 };
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        memcpy(buf, &lies[i], 8);
        CHECK_INT(ob_decode_write_multi(buf, 80, &got, &cur), -EINVAL);
    }
    count = 0;
    memcpy(buf, &count, 8);
    CHECK_INT(ob_decode_write_multi(buf, 8, &got, &cur), 0);
    count = 3;
    memcpy(buf, &count, 8);
    entries[2].count = 9;
    memcpy(buf + 8, entries, sizeof(entries));
    got = 77;
    CHECK_INT(ob_decode_write_multi(buf, 80, &got, &cur), -EINVAL);
    CHECK_INT(got, 77);
    entries[2].count = 8;
    entries[2].offset = UINT64_MAX - 7;
    memcpy(buf + 8, entries, sizeof(entries));
    CHECK_INT(ob_decode_write_multi(buf, 80, &got, &cur), -EINVAL);
}

TEST(feature, "device-feature")
{
    struct {
        struct ob_wire_feature f;
        uint8_t data[8];
    } m = { { 16, 0 }, { 0 } };
    struct ob_wire_feature out;
    struct ob_cursor cur;

    for (uint32_t methods = 0; methods < 8; methods++) {
        m.f.flags = methods << 16 | OB_FEATURE_MIG_DEVICE_STATE;
        /* one method, or PROBE with any of them */
        bool legal = methods == 1 || methods == 2 || methods >= 4;
        CHECK_INT(DECODE(ob_decode_feature, &m, 16, &out, &cur), legal ? 0 : -EINVAL);
        CHECK_INT(DECODE(ob_decode_feature, &m, 8, &out, &cur), legal ? 0 : -EINVAL);
        CHECK_INT(DECODE(ob_decode_feature, &m, 7, &out, &cur), -EINVAL);
        m.f.argsz = 15; /* only a GET that has no data needs no room for 16 bytes */
        CHECK_INT(DECODE(ob_decode_feature, &m, 16, &out, &cur), methods == 1 ? 0 : -EINVAL);
        m.f.argsz = 7;
        CHECK_INT(DECODE(ob_decode_feature, &m, 8, &out, &cur), -EINVAL);
        m.f.argsz = 16;
    }
    for (unsigned bit = 19; bit < 32; bit++) {
        m.f.flags = OB_FEATURE_GET | 1u << bit;
        CHECK_INT(DECODE(ob_decode_feature, &m, 8, &out, &cur), -EINVAL);
    }
    m.f.flags = OB_FEATURE_SET | 0xffff;
    CHECK_INT(ob_decode_feature(&m, 16, &out, &cur), 0);
    CHECK_INT(ob_cursor_left(&cur), 8);
}

static int decode_start(const void *data, size_t len, struct ob_wire_logging_start *out)
{
    struct ob_cursor cur;

    ob_cursor_init(&cur, data, len);
    return ob_decode_logging_start(cur, out);
}

TEST(logging_start, "dma-logging-start")
{
    struct {
        struct ob_wire_logging_start s;
        struct ob_dma_range r[2];
    } m = { { 4096, 2, 0 }, { { 0, UINT64_MAX }, { UINT64_MAX, 1 } } };
    struct ob_wire_logging_start out;

    CHECK_INT(decode_start(&m, sizeof(m), &out), 0);
    CHECK_INT(out.num_ranges, 2);
    for (size_t len = 0; len < sizeof(m); len++)
        CHECK_INT(decode_start(&m, len, &out), -EINVAL);
    m.r[1].length = 2; /* beyond the end */
    CHECK_INT(decode_start(&m, sizeof(m), &out), -EINVAL);
    m.r[1].length = 0;
    CHECK_INT(decode_start(&m, sizeof(m), &out), -EINVAL);
    m.s.num_ranges = 1; /* what follows is ignored */
    CHECK_INT(decode_start(&m, sizeof(m), &out), 0);
    m.s.num_ranges = UINT32_MAX;
    CHECK_INT(decode_start(&m, sizeof(m), &out), -EINVAL);
    m.s.num_ranges = 0;
    for (unsigned shift = 0; shift < 64; shift++) {
        m.s.page_size = 1ull << shift;
        CHECK_INT(decode_start(&m, sizeof(m.s), &out), 0);
        m.s.page_size = shift ? m.s.page_size | 1 : 0;
        CHECK_INT(decode_start(&m, sizeof(m.s), &out), -EINVAL);
    }
}

static int decode_report(const void *data, size_t len, struct ob_wire_logging_report *out,
                         uint64_t *size)
{
    struct ob_cursor cur;

    ob_cursor_init(&cur, data, len);
    return ob_decode_logging_report(cur, 64, out, size);
}

TEST(logging_report, "dma-logging-report-and-the-size-of-its-bitmap")
{
    struct ob_wire_logging_report m = { 0x1000, 4096, 4096 }, out;
    uint64_t size = 0;
    uint8_t room[40] = { 0 };

    for (size_t len = 0; len <= sizeof(m); len++)
        CHECK_INT(decode_report(&m, len, &out, &size), len == sizeof(m) ? 0 : -EINVAL);
    CHECK_INT(size, 8);
    memcpy(room, &m, sizeof(m));
    CHECK_INT(decode_report(room, sizeof(room), &out, &size), 0);
    m.length = 64 * 8 * 4096; /* as many pages as 64 bytes have bits */
    CHECK_INT(decode_report(&m, sizeof(m), &out, &size), 0);
    CHECK_INT(size, 64);
    m.length++;
    CHECK_INT(decode_report(&m, sizeof(m), &out, &size), -EINVAL);
    m = (struct ob_wire_logging_report){ 1, UINT64_MAX, 1ull << 63 };
    CHECK_INT(decode_report(&m, sizeof(m), &out, &size), 0);
    m.iova = 2;
    CHECK_INT(decode_report(&m, sizeof(m), &out, &size), -EINVAL);
    CHECK_INT(ob_bitmap_size(1, 4096), 8);
    CHECK_INT(ob_bitmap_size(64 * 4096, 4096), 8);
    CHECK_INT(ob_bitmap_size(64 * 4096 + 1, 4096), 16);
    CHECK_INT(ob_bitmap_size(UINT64_MAX, 1), 1ull << 61);
}

TEST(mig_data, "migration-data")
{
    static uint8_t buf[64];
    struct ob_wire_mig_data m = { 8 + 10, 10 }, out;
    const void *data;

    memcpy(buf, &m, sizeof(m));
    for (size_t len = 0; len <= 32; len++) {
        data = buf;
        CHECK_INT(DECODE(ob_decode_mig_data, buf, len, false, 64, &out, &data),
                  len == 8 ? 0 : -EINVAL);
        CHECK(data == buf);
        int rc = DECODE(ob_decode_mig_data, buf, len, true, 64, &out, &data);
        CHECK_INT(rc, len >= 18 ? 0 : -EINVAL); /* a longer one is libvfio-user's */
        CHECK_INT(data == buf, rc < 0);
    }
    CHECK_INT(ob_decode_mig_data(buf, 18, true, 9, &out, &data), -EINVAL);
    static const struct ob_wire_mig_data bad[] = {
        { 17, 10 }, { 7, 0 }, { 0, 0 }, { 8, UINT32_MAX }, { 7, UINT32_MAX }
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        memcpy(buf, &bad[i], sizeof(m));
        CHECK_INT(ob_decode_mig_data(buf, 8, false, UINT32_MAX, &out, &data), -EINVAL);
    }
}
