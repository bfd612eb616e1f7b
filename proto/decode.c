/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Decoders of payloads that have rules beyond their size. Each works on a local copy and fills
 * its outputs only when every rule held. A rule stands here when it needs no knowledge of the
 * device. The numbers are those of docs/protocol.md, which also gives the reasons.
 */
#include "outboard/proto.h"

#include <errno.h>
#include <string.h>

/* The largest offset that a file can have (off_t). */
#define FILE_OFFSET_MAX ((uint64_t)INT64_MAX)

static bool power_of_two(uint64_t value)
{
    return value && !(value & (value - 1));
}

/* Whether [start, start + size) exists: it may end at 2^64, not go beyond. */
static bool range_ok(uint64_t start, uint64_t size)
{
    return size && start <= UINT64_MAX - (size - 1);
}

/* Copies a payload that is one structure and nothing else. */
static bool get_exactly(const void *payload, size_t len, void *out, size_t size)
{
    if (len != size)
        return false;
    memcpy(out, payload, size);
    return true;
}

/*
 * An access flag demands an fd. With both of them ACCESS_MMAP wins, as in libvfio-user. Access
 * rights may be empty. The offset means something only with an fd.
 * R-DMA-1 to R-DMA-5.
 */
int ob_decode_dma_map(const void *payload, size_t len, unsigned nfds, struct ob_wire_dma_map *out)
{
    const uint32_t access = OB_DMA_ACCESS_MMAP | OB_DMA_ACCESS_FILE;
    struct ob_wire_dma_map map;

    if (!get_exactly(payload, len, &map, sizeof(map)) || map.argsz < sizeof(map))
        return -EINVAL;
    if (map.flags & ~(OB_DMA_READ | OB_DMA_WRITE | access))
        return -EINVAL;
    if (nfds > 1 || ((map.flags & access) && nfds == 0))
        return -EINVAL;
    if (!range_ok(map.address, map.size))
        return -EINVAL;
    if (nfds && (map.offset > FILE_OFFSET_MAX || map.size > FILE_OFFSET_MAX - map.offset))
        return -EINVAL;
    *out = map;
    return 0;
}

uint64_t ob_bitmap_size(uint64_t length, uint64_t page_size)
{
    uint64_t pages_but_one = (length - 1) / page_size;

    return (pages_but_one / 64 + 1) * 8;
}

/* Whether a dirty bitmap of the range fits what the client has room for. */
static bool bitmap_ok(const struct ob_wire_dma_unmap *unmap, const struct ob_wire_bitmap *bitmap)
{
    return power_of_two(bitmap->pgsize) && bitmap->size <= OB_DATA_XFER_MAX &&
           ob_bitmap_size(unmap->size, bitmap->pgsize) <= bitmap->size &&
           unmap->argsz >= sizeof(*unmap) + sizeof(*bitmap) + bitmap->size;
}

/* R-DMA-12 to R-DMA-14, R-DMA-18. */
int ob_decode_dma_unmap(const void *payload, size_t len, struct ob_wire_dma_unmap *out,
                        struct ob_wire_bitmap *bitmap)
{
    struct ob_cursor cur;
    struct ob_wire_dma_unmap unmap;
    struct ob_wire_bitmap asked;

    ob_cursor_init(&cur, payload, len);
    if (!ob_cursor_get(&cur, &unmap, sizeof(unmap)) || unmap.argsz < sizeof(unmap))
        return -EINVAL;
    switch (unmap.flags) {
    case 0:
    case OB_DMA_UNMAP_GET_DIRTY:
        if (!range_ok(unmap.address, unmap.size))
            return -EINVAL;
        break;
    case OB_DMA_UNMAP_ALL:
        if (unmap.address || unmap.size)
            return -EINVAL;
        break;
    default: /* also both at once: there is no range a bitmap could be of */
        return -EINVAL;
    }
    bool dirty = unmap.flags == OB_DMA_UNMAP_GET_DIRTY;
    if (dirty && (!ob_cursor_get(&cur, &asked, sizeof(asked)) || !bitmap_ok(&unmap, &asked)))
        return -EINVAL;
    if (ob_cursor_left(&cur))
        return -EINVAL;
    if (dirty)
        *bitmap = asked;
    *out = unmap;
    return 0;
}

/* argsz may be larger than the structure: the vfio-user crate sends 32. R-DEVICE-2. */
int ob_decode_device_info(const void *payload, size_t len, struct ob_wire_device_info *out)
{
    struct ob_wire_device_info info;

    if (!get_exactly(payload, len, &info, sizeof(info)) || info.argsz < sizeof(info))
        return -EINVAL;
    *out = info;
    return 0;
}

/* Only argsz and index matter. SPDK sends its whole reply buffer, so what follows is ignored.
 * R-REGION-3. */
int ob_decode_region_info(const void *payload, size_t len, struct ob_wire_region_info *out)
{
    struct ob_wire_region_info info;

    if (len < sizeof(info) || len > OB_REGION_INFO_MAX)
        return -EINVAL;
    memcpy(&info, payload, sizeof(info));
    if (info.argsz < sizeof(info))
        return -EINVAL;
    *out = info;
    return 0;
}

/* R-IOFD-1. */
int ob_decode_region_io_fds(const void *payload, size_t len, struct ob_wire_region_io_fds *out)
{
    struct ob_wire_region_io_fds fds;

    if (!get_exactly(payload, len, &fds, sizeof(fds)) || fds.argsz < sizeof(fds))
        return -EINVAL;
    if (fds.flags || fds.count)
        return -EINVAL;
    *out = fds;
    return 0;
}

/* R-HDR-16. */
int ob_decode_irq_info(const void *payload, size_t len, struct ob_wire_irq_info *out)
{
    struct ob_wire_irq_info info;

    if (!get_exactly(payload, len, &info, sizeof(info)) || info.argsz < sizeof(info))
        return -EINVAL;
    *out = info;
    return 0;
}

static bool set_irqs_flags_ok(uint32_t flags)
{
    return !(flags & ~(OB_IRQ_SET_DATA_MASK | OB_IRQ_SET_ACTIONS)) &&
           power_of_two(flags & OB_IRQ_SET_DATA_MASK) && power_of_two(flags & OB_IRQ_SET_ACTIONS);
}

/*
 * DATA_EVENTFD comes with an fd for each vector, or with none at all, which takes the eventfds of
 * these vectors back: a message cannot hold the -1 that an ioctl would. A range without vectors
 * has one meaning only, TRIGGER with DATA_NONE from 0: take all eventfds of the index back.
 * R-IRQ-4 to R-IRQ-7, R-IRQ-11.
 */
int ob_decode_set_irqs(const void *payload, size_t len, unsigned nfds, struct ob_wire_set_irqs *out,
                       const uint8_t **bools)
{
    struct ob_cursor cur;
    struct ob_wire_set_irqs set;

    ob_cursor_init(&cur, payload, len);
    if (!ob_cursor_get(&cur, &set, sizeof(set)) || set.argsz < sizeof(set))
        return -EINVAL;
    if (!set_irqs_flags_ok(set.flags))
        return -EINVAL;
    if (set.start > OB_IRQ_VECTORS_MAX || set.count > OB_IRQ_VECTORS_MAX - set.start)
        return -EINVAL;
    if (set.count == 0 &&
        (set.start || set.flags != (OB_IRQ_SET_DATA_NONE | OB_IRQ_SET_ACTION_TRIGGER)))
        return -EINVAL;
    if (nfds && (!(set.flags & OB_IRQ_SET_DATA_EVENTFD) || nfds != set.count))
        return -EINVAL;

    const uint8_t *data = NULL;
    if (set.flags & OB_IRQ_SET_DATA_BOOL)
        data = ob_cursor_take(&cur, set.count);
    if (cur.failed || ob_cursor_left(&cur))
        return -EINVAL;
    *out = set;
    *bools = data;
    return 0;
}

/* count bytes where data goes, and nothing after them. */
static bool take_data(struct ob_cursor *cur, bool has_data, uint64_t count, const void **data)
{
    if (has_data)
        *data = ob_cursor_take(cur, count);
    return !cur->failed && ob_cursor_left(cur) == 0;
}

/* R-ACCESS-2 to R-ACCESS-5. */
int ob_decode_region_access(const void *payload, size_t len, bool has_data, uint32_t max_count,
                            struct ob_wire_region_access *out, const void **data)
{
    struct ob_cursor cur;
    struct ob_wire_region_access access;
    const void *at = NULL;

    ob_cursor_init(&cur, payload, len);
    if (!ob_cursor_get(&cur, &access, sizeof(access)))
        return -EINVAL;
    if (access.count > max_count || access.offset > UINT64_MAX - access.count)
        return -EINVAL;
    if (!take_data(&cur, has_data, access.count, &at))
        return -EINVAL;
    if (has_data)
        *data = at;
    *out = access;
    return 0;
}

/* R-XFER-2, R-XFER-4. */
int ob_decode_dma_access(const void *payload, size_t len, bool has_data, uint32_t max_count,
                         struct ob_wire_dma_access *out, const void **data)
{
    struct ob_cursor cur;
    struct ob_wire_dma_access access;
    const void *at = NULL;

    ob_cursor_init(&cur, payload, len);
    if (!ob_cursor_get(&cur, &access, sizeof(access)))
        return -EINVAL;
    if (access.count > max_count || (access.count && !range_ok(access.address, access.count)))
        return -EINVAL;
    if (!take_data(&cur, has_data, access.count, &at))
        return -EINVAL;
    if (has_data)
        *data = at;
    *out = access;
    return 0;
}

/* Every entry is checked before any is executed. R-MULTI-2. */
int ob_decode_write_multi(const void *payload, size_t len, uint64_t *count,
                          struct ob_cursor *entries)
{
    struct ob_cursor cur;
    struct ob_wire_write_multi head;
    struct ob_wire_write_multi_entry entry;

    ob_cursor_init(&cur, payload, len);
    if (!ob_cursor_get(&cur, &head, sizeof(head)) || head.count > OB_WRITE_MULTI_MAX ||
        ob_cursor_left(&cur) != head.count * sizeof(entry))
        return -EINVAL;
    struct ob_cursor first = cur;
    while (ob_cursor_left(&cur)) {
        ob_cursor_get(&cur, &entry, sizeof(entry));
        if (entry.count > OB_WRITE_MULTI_DATA || entry.offset > UINT64_MAX - entry.count)
            return -EINVAL;
    }
    *count = head.count;
    *entries = first;
    return 0;
}

/* R-FEATURE-1, R-FEATURE-4. */
int ob_decode_feature(const void *payload, size_t len, struct ob_wire_feature *out,
                      struct ob_cursor *data)
{
    const uint32_t methods = OB_FEATURE_GET | OB_FEATURE_SET;
    struct ob_cursor cur;
    struct ob_wire_feature feature;

    ob_cursor_init(&cur, payload, len);
    if (!ob_cursor_get(&cur, &feature, sizeof(feature)) || feature.argsz < sizeof(feature))
        return -EINVAL;
    if (feature.flags & ~(OB_FEATURE_MASK | methods | OB_FEATURE_PROBE))
        return -EINVAL;
    if (!(feature.flags & OB_FEATURE_PROBE) && !power_of_two(feature.flags & methods))
        return -EINVAL;
    /* SET and PROBE are answered with the request's own payload: there must be room for it. */
    if ((feature.flags & (OB_FEATURE_SET | OB_FEATURE_PROBE)) && feature.argsz < len)
        return -EINVAL;
    *out = feature;
    *data = cur;
    return 0;
}

int ob_decode_logging_start(struct ob_cursor data, struct ob_wire_logging_start *out)
{
    struct ob_wire_logging_start start;
    struct ob_dma_range range;

    if (!ob_cursor_get(&data, &start, sizeof(start)) || !power_of_two(start.page_size) ||
        ob_cursor_left(&data) / sizeof(range) < start.num_ranges)
        return -EINVAL;
    for (uint32_t i = 0; i < start.num_ranges; i++)
        if (!ob_cursor_get(&data, &range, sizeof(range)) || !range_ok(range.iova, range.length))
            return -EINVAL;
    *out = start;
    return 0;
}

int ob_decode_logging_report(struct ob_cursor data, uint64_t max_bitmap,
                             struct ob_wire_logging_report *out, uint64_t *bitmap_size)
{
    struct ob_wire_logging_report report;

    if (!ob_cursor_get(&data, &report, sizeof(report)) || !power_of_two(report.page_size) ||
        !range_ok(report.iova, report.length))
        return -EINVAL;
    if (ob_bitmap_size(report.length, report.page_size) > max_bitmap)
        return -EINVAL;
    *out = report;
    *bitmap_size = ob_bitmap_size(report.length, report.page_size);
    return 0;
}

/* Where data goes it may be longer than size: libvfio-user's READ reply is as long as the
 * request asked for, and only size says how much of it counts. R-MIG-15 to R-MIG-17. */
int ob_decode_mig_data(const void *payload, size_t len, bool has_data, uint32_t max_size,
                       struct ob_wire_mig_data *out, const void **data)
{
    struct ob_cursor cur;
    struct ob_wire_mig_data mig;
    const void *at = NULL;

    ob_cursor_init(&cur, payload, len);
    if (!ob_cursor_get(&cur, &mig, sizeof(mig)) || mig.argsz < sizeof(mig))
        return -EINVAL;
    if (mig.size > max_size || mig.argsz - sizeof(mig) < mig.size)
        return -EINVAL;
    if (has_data)
        at = ob_cursor_take(&cur, mig.size);
    if (cur.failed || (!has_data && ob_cursor_left(&cur)))
        return -EINVAL;
    if (has_data)
        *data = at;
    *out = mig;
    return 0;
}
