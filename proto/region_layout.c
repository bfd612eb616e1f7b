/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * GET_REGION_INFO replies: a fixed part and a chain of capabilities.
 *
 * A client maps memory by what is said here, so nothing is believed: offsets are followed through
 * a cursor only, the chain must run forward (so it ends), and areas must lie in the region. Rules:
 * R-REGION-4 to R-REGION-16.
 */
#include "outboard/proto.h"

#include <errno.h>

static int broken(const char **why, const char *sentence)
{
    *why = sentence;
    return -EPROTO;
}

/* Adds an area that is inside the region and overlaps none of those before it. */
static int add_area(struct ob_region_layout *layout, const struct ob_wire_sparse_area *area,
                    const char **why)
{
    if (area->size == 0)
        return 0;
    if (area->offset > layout->size || area->size > layout->size - area->offset)
        return broken(why, "a mappable area lies outside its region");
    for (uint32_t i = 0; i < layout->nareas; i++) {
        const struct ob_sparse_area *other = &layout->areas[i];
        if (area->offset < other->offset + other->size && other->offset < area->offset + area->size)
            return broken(why, "two mappable areas overlap");
    }
    layout->areas[layout->nareas++] =
        (struct ob_sparse_area){ .offset = area->offset, .size = area->size };
    return 0;
}

/* The cursor stands at the capability. */
static int parse_sparse(struct ob_cursor *cur, struct ob_region_layout *layout, const char **why)
{
    struct ob_wire_cap_sparse cap;
    struct ob_wire_sparse_area area;

    if (!ob_cursor_get(cur, &cap, sizeof(cap)) || cap.nr_areas > ob_cursor_left(cur) / sizeof(area))
        return broken(why, "the list of mappable areas is longer than the reply");
    if (cap.nr_areas > OB_SPARSE_AREAS_MAX)
        return broken(why, "a region has too many mappable areas");
    for (uint32_t i = 0; i < cap.nr_areas; i++) {
        ob_cursor_get(cur, &area, sizeof(area));
        int rc = add_area(layout, &area, why);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* The cursor stands at the capability. */
static int parse_type(struct ob_cursor *cur, struct ob_region_layout *layout, const char **why)
{
    struct ob_wire_cap_type cap;

    if (!ob_cursor_get(cur, &cap, sizeof(cap)))
        return broken(why, "the type capability leaves the reply");
    layout->type = cap.type;
    layout->subtype = cap.subtype;
    return 0;
}

/* *sparse is set when the chain has a list of areas. */
static int parse_caps(struct ob_cursor *cur, uint32_t offset, struct ob_region_layout *layout,
                      bool *sparse, const char **why)
{
    struct ob_wire_cap cap;
    int rc = 0;

    for (size_t end = sizeof(struct ob_wire_region_info); offset && rc == 0; offset = cap.next) {
        if (offset < end)
            return broken(why, "the capability chain runs backwards");
        if (!ob_cursor_seek(cur, offset) || !ob_cursor_get(cur, &cap, sizeof(cap)))
            return broken(why, "the capability chain leaves the reply");
        end = (size_t)offset + sizeof(cap);
        ob_cursor_seek(cur, offset);
        if (cap.id == OB_CAP_SPARSE_MMAP) {
            if (*sparse)
                return broken(why, "a region has two lists of mappable areas");
            *sparse = true;
            rc = parse_sparse(cur, layout, why);
        } else if (cap.id == OB_CAP_TYPE) {
            rc = parse_type(cur, layout, why);
        }
    }
    return rc;
}

int ob_decode_region_layout(const void *payload, size_t len, uint32_t index,
                            struct ob_region_layout *out, const char **why)
{
    struct ob_cursor cur;
    struct ob_wire_region_info info;
    struct ob_region_layout layout = { 0 };
    bool sparse = false;

    ob_cursor_init(&cur, payload, len);
    if (!ob_cursor_get(&cur, &info, sizeof(info)))
        return broken(why, "a region info reply is too short");
    if (len > OB_REGION_INFO_MAX)
        return broken(why, "a region info reply is too long");
    if (info.argsz < sizeof(info))
        return broken(why, "a region info reply gives an argsz below its own structure");
    if (info.index != index)
        return broken(why, "a region info reply is about another region");

    layout.flags = info.flags & (OB_REGION_READ | OB_REGION_WRITE | OB_REGION_MMAP);
    layout.size = info.size;
    layout.fd_offset = info.offset;
    /* argsz is what the server would have sent. When that did not fit, some servers set the CAPS
     * flag and an offset all the same. */
    bool whole = info.argsz <= len;
    if (whole && (info.flags & OB_REGION_CAPS)) {
        int rc = parse_caps(&cur, info.cap_offset, &layout, &sparse, why);
        if (rc < 0)
            return rc;
    }
    if (!whole || layout.size == 0 || (sparse && layout.nareas == 0))
        layout.flags &= ~OB_REGION_MMAP;
    if (!(layout.flags & OB_REGION_MMAP))
        layout.nareas = 0;
    else if (layout.fd_offset > INT64_MAX || layout.size > INT64_MAX - layout.fd_offset)
        return broken(why, "a mappable region is larger than any file");
    *out = layout;
    return 0;
}

static void put_sparse(struct ob_writer *w, const struct ob_region_layout *layout, uint32_t nareas,
                       uint32_t next)
{
    const struct ob_wire_cap_sparse cap = {
        .header = { .id = OB_CAP_SPARSE_MMAP, .version = 1, .next = next }, .nr_areas = nareas
    };
    const struct ob_wire_sparse_area all = { 0, layout->size };

    ob_writer_put(w, &cap, sizeof(cap));
    for (uint32_t i = 0; i < layout->nareas; i++) {
        const struct ob_wire_sparse_area area = { layout->areas[i].offset, layout->areas[i].size };
        ob_writer_put(w, &area, sizeof(area));
    }
    if (layout->nareas == 0)
        ob_writer_put(w, &all, sizeof(all));
}

bool ob_encode_region_layout(struct ob_writer *w, uint32_t index, uint32_t argsz,
                             const struct ob_region_layout *layout)
{
    const struct ob_wire_cap_type type = { { OB_CAP_TYPE, 1, 0 }, layout->type, layout->subtype };
    struct ob_wire_region_info info = { .argsz = sizeof(info),
                                        .flags = layout->flags & ~OB_REGION_CAPS,
                                        .index = index,
                                        .size = layout->size,
                                        .offset = layout->fd_offset };
    bool has_type = layout->type || layout->subtype;
    uint32_t nareas = 0;

    if (layout->flags & OB_REGION_MMAP)
        nareas = layout->nareas ? layout->nareas : 1;
    if (nareas)
        info.argsz += sizeof(struct ob_wire_cap_sparse) +
                      nareas * (uint32_t)sizeof(struct ob_wire_sparse_area);
    uint32_t type_at = info.argsz;
    if (has_type)
        info.argsz += sizeof(type);
    bool whole = info.argsz <= argsz;
    if (whole && info.argsz > sizeof(info)) {
        info.flags |= OB_REGION_CAPS;
        info.cap_offset = sizeof(info);
    }
    ob_writer_put(w, &info, sizeof(info));
    if (whole && nareas)
        put_sparse(w, layout, nareas, has_type ? type_at : 0);
    if (whole && has_type)
        ob_writer_put(w, &type, sizeof(type));
    return whole && !w->failed;
}
