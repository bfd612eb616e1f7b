/* SPDX-License-Identifier: BSD-3-Clause */
/* GET_REGION_INFO replies: what we write is read back, and what no server should send is refused.
 */
#include "outboard/proto.h"
#include "harness.h"

#include <errno.h>

#define FIXED   sizeof(struct ob_wire_region_info)
#define R_W_MAP (OB_REGION_READ | OB_REGION_WRITE | OB_REGION_MMAP)

/* A reply under construction: region 2, 0x10000 bytes, mappable, capabilities from offset 32. */
struct reply {
    uint8_t bytes[OB_REGION_INFO_MAX + 8];
    size_t len;
};

static struct ob_wire_region_info *begin(struct reply *r)
{
    static struct ob_wire_region_info info;

    memset(r, 0, sizeof(*r));
    r->len = FIXED;
    info = (struct ob_wire_region_info){ .argsz = FIXED,
                                         .flags = R_W_MAP | OB_REGION_CAPS,
                                         .index = 2,
                                         .cap_offset = FIXED,
                                         .size = 0x10000,
                                         .offset = 0x1000 };
    return &info;
}

static void finish(struct reply *r, struct ob_wire_region_info *info)
{
    info->argsz = (uint32_t)r->len;
    memcpy(r->bytes, info, sizeof(*info));
}

static void add(struct reply *r, const void *data, size_t len)
{
    CHECK(r->len + len <= sizeof(r->bytes));
    memcpy(r->bytes + r->len, data, len);
    r->len += len;
}

static void add_sparse(struct reply *r, uint32_t next, uint32_t nr_areas)
{
    const struct ob_wire_cap_sparse cap = { { OB_CAP_SPARSE_MMAP, 1, next }, nr_areas, 0 };

    add(r, &cap, sizeof(cap));
}

static void add_area(struct reply *r, uint64_t offset, uint64_t size)
{
    const struct ob_wire_sparse_area area = { offset, size };

    add(r, &area, sizeof(area));
}

/* In memory of exactly its length. */
static int decode(const struct reply *r, struct ob_region_layout *out, const char **why)
{
    void *copy = malloc(r->len ? r->len : 1);

    CHECK(copy);
    memcpy(copy, r->bytes, r->len);
    int rc = ob_decode_region_layout(copy, r->len, 2, out, why);
    free(copy);
    return rc;
}

static struct ob_region_layout accepted(const struct reply *r)
{
    struct ob_region_layout layout;
    const char *why = NULL;

    if (decode(r, &layout, &why) != 0)
        test_fail(__FILE__, __LINE__, "refused: %s", why);
    return layout;
}

static void refused(const struct reply *r, const char *part)
{
    struct ob_region_layout layout, before;
    const char *why = NULL;

    memset(&layout, 0x5a, sizeof(layout));
    before = layout;
    CHECK_INT(decode(r, &layout, &why), -EPROTO);
    if (!why || !strstr(why, part))
        test_fail(__FILE__, __LINE__, "refused with \"%s\", not \"%s\"", why ? why : "", part);
    /* NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): untouched means its padding, too */
    CHECK_MEM(&layout, &before, sizeof(layout));
}

/* ---- Round trips --------------------------------------------------------------------------- */

static void check_same(const struct ob_region_layout *a, const struct ob_region_layout *b)
{
    CHECK_INT(a->flags, b->flags);
    CHECK_INT(a->size, b->size);
    CHECK_INT(a->fd_offset, b->fd_offset);
    CHECK_INT(a->type, b->type);
    CHECK_INT(a->subtype, b->subtype);
    CHECK_INT(a->nareas, b->nareas);
    CHECK_MEM(a->areas, b->areas, a->nareas * sizeof(a->areas[0]));
}

TEST(round_trip, "what-is-written-is-read-back")
{
    static const uint32_t counts[] = { 0, 1, 2, OB_SPARSE_AREAS_MAX };

    for (unsigned variant = 0; variant < 4 * 2 * 2; variant++) {
        struct ob_region_layout layout = { .flags = R_W_MAP, .size = 1 << 20, .fd_offset = 0x3000 };
        struct reply r = { 0 };
        struct ob_writer w;
        uint32_t count = counts[variant / 4];
        bool mapped = variant & 1;
        if (!mapped)
            layout.flags &= ~OB_REGION_MMAP;
        if (variant & 2) {
            layout.type = 7;
            layout.subtype = 9;
        }
        for (uint32_t i = 0; mapped && i < count; i++)
            layout.areas[layout.nareas++] = (struct ob_sparse_area){ i * 0x2000, 0x1000 };
        uint32_t areas = mapped ? (count ? count : 1) : 0;
        uint32_t full = 32 + (areas ? 16 + areas * 16 : 0) + (variant & 2 ? 16 : 0);

        /* Room for one byte less than all of it: the fixed part alone, and what would be needed. */
        ob_writer_init(&w, r.bytes, sizeof(r.bytes));
        if (full > 32) {
            struct ob_wire_region_info info;
            CHECK(!ob_encode_region_layout(&w, 2, full - 1, &layout));
            CHECK(!w.failed);
            CHECK_INT(w.len, 32);
            memcpy(&info, r.bytes, sizeof(info));
            CHECK_INT(info.argsz, full);
            CHECK_INT(info.flags, layout.flags);
            CHECK_INT(info.cap_offset, 0);
            r.len = w.len;
            struct ob_region_layout alone = accepted(&r);
            CHECK(!(alone.flags & OB_REGION_MMAP));
            ob_writer_init(&w, r.bytes, sizeof(r.bytes));
        }
        CHECK(ob_encode_region_layout(&w, 2, full, &layout));
        CHECK_INT(w.len, full);
        r.len = w.len;
        struct ob_region_layout back = accepted(&r);
        if (mapped && count == 0) { /* all of it is one area */
            layout.nareas = 1;
            layout.areas[0] = (struct ob_sparse_area){ 0, layout.size };
        }
        check_same(&back, &layout);

        ob_writer_init(&w, r.bytes, full - 1);
        CHECK(!ob_encode_region_layout(&w, 2, full, &layout));
        CHECK(w.failed);
    }
}

/* ---- The fixed part ------------------------------------------------------------------------ */

TEST(fixed, "fixed-part")
{
    struct reply r;
    struct ob_wire_region_info *info = begin(&r);
    struct ob_region_layout layout;

    info->flags = R_W_MAP | 0xfffffff0; /* flags of the future */
    finish(&r, info);
    layout = accepted(&r);
    CHECK_INT(layout.flags, R_W_MAP);
    CHECK_INT(layout.nareas, 0); /* all of it */
    for (r.len = 0; r.len < FIXED; r.len++)
        refused(&r, "too short");
    r.len = OB_REGION_INFO_MAX + 1;
    refused(&r, "too long");
    info = begin(&r);
    info->index = 3;
    info->flags = 0;
    finish(&r, info);
    refused(&r, "another region");
    info = begin(&r);
    info->argsz = 31;
    memcpy(r.bytes, info, sizeof(*info));
    refused(&r, "argsz");
    /* Without the flag, the offset means nothing. */
    info = begin(&r);
    info->flags = OB_REGION_READ;
    info->cap_offset = 0xffffffff;
    finish(&r, info);
    accepted(&r);
    /* The flag without an offset is an empty chain. */
    info = begin(&r);
    info->cap_offset = 0;
    finish(&r, info);
    CHECK(accepted(&r).flags & OB_REGION_MMAP);
    /* The vfio-user crate's short reply: flag and offset, but nothing there. */
    info = begin(&r);
    info->argsz = 80;
    memcpy(r.bytes, info, sizeof(*info));
    CHECK_INT(accepted(&r).flags, OB_REGION_READ | OB_REGION_WRITE);
}

TEST(file_range, "mappable-region-fits-a-file")
{
    struct reply r;
    struct ob_wire_region_info *info = begin(&r);

    info->flags = R_W_MAP;
    info->offset = INT64_MAX - info->size;
    finish(&r, info);
    accepted(&r);
    info->offset++;
    finish(&r, info);
    refused(&r, "larger than any file");
    info->offset = UINT64_MAX;
    finish(&r, info);
    refused(&r, "larger than any file");
    info->flags = OB_REGION_READ; /* then the offset means nothing */
    finish(&r, info);
    accepted(&r);
    info->flags = R_W_MAP;
    info->size = 0;
    finish(&r, info);
    CHECK(!(accepted(&r).flags & OB_REGION_MMAP));
}

/* ---- The chain ----------------------------------------------------------------------------- */

TEST(chains, "chains-that-loop-or-leave-the-reply")
{
    struct reply r;

    for (uint32_t offset = 1; offset < 200; offset++) {
        struct ob_wire_region_info *info = begin(&r);
        const struct ob_wire_cap cap = { OB_CAP_MSIX_MAPPABLE, 1, 0 };
        info->cap_offset = offset;
        for (int i = 0; i < 4; i++)
            add(&r, &cap, sizeof(cap));
        finish(&r, info);
        if (offset < 32)
            refused(&r, "backwards");
        else if (offset + 8 > r.len)
            refused(&r, "leaves");
    }
    /* The second capability points to: nothing, itself, the first, the header, outside. */
    static const struct {
        uint32_t next;
        const char *why;
    } links[] = { { 0, NULL },         { 40, "backwards" },
                  { 32, "backwards" }, { 1, "backwards" },
                  { 31, "backwards" }, { 47, "backwards" },
                  { 48, "leaves" },    { 49, "leaves" },
                  { 4096, "leaves" },  { UINT32_MAX, "leaves" } };
    for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++) {
        struct ob_wire_region_info *info = begin(&r);
        const struct ob_wire_cap caps[2] = { { 99, 1, 40 }, { 98, 1, links[i].next } };
        add(&r, caps, sizeof(caps));
        finish(&r, info);
        if (links[i].why)
            refused(&r, links[i].why);
        else
            accepted(&r);
    }
}

TEST(unaligned, "unaligned-and-distant-capabilities")
{
    struct reply r;
    struct ob_wire_region_info *info = begin(&r);

    info->cap_offset = 37;
    add(&r, "12345", 5);
    add_sparse(&r, 80, 1);
    add_area(&r, 0x1000, 0x1000);
    r.len = 80;
    add(&r, &(struct ob_wire_cap_type){ { OB_CAP_TYPE, 1, 0 }, 5, 6 }, 16);
    finish(&r, info);
    struct ob_region_layout layout = accepted(&r);
    CHECK_INT(layout.nareas, 1);
    CHECK_INT(layout.areas[0].offset, 0x1000);
    CHECK_INT(layout.type, 5);
    CHECK_INT(layout.subtype, 6);
    r.len--;
    finish(&r, info);
    refused(&r, "type capability leaves");
}

/* ---- Areas --------------------------------------------------------------------------------- */

/* One reply with up to two areas. */
static void two_areas(struct reply *r, uint64_t o1, uint64_t s1, uint64_t o2, uint64_t s2)
{
    struct ob_wire_region_info *info = begin(r);

    add_sparse(r, 0, 2);
    add_area(r, o1, s1);
    add_area(r, o2, s2);
    finish(r, info);
}

TEST(areas, "areas-outside-or-overlapping")
{
    struct reply r;

    two_areas(&r, 0, 0x8000, 0x8000, 0x8000);
    CHECK_INT(accepted(&r).nareas, 2);
    two_areas(&r, 0x8000, 0x8000, 0, 0x8000); /* in any order */
    CHECK_INT(accepted(&r).nareas, 2);
    two_areas(&r, 0, 0x8001, 0x8000, 0x1000);
    refused(&r, "overlap");
    two_areas(&r, 0x2000, 0x1000, 0x1000, 0x4000);
    refused(&r, "overlap");
    two_areas(&r, 0x1000, 0x4000, 0x2000, 0x1000);
    refused(&r, "overlap");
    two_areas(&r, 0x1000, 0x1000, 0x1000, 0x1000);
    refused(&r, "overlap");
    two_areas(&r, 0, 0x1000, 0x8000, 0x8001);
    refused(&r, "outside");
    two_areas(&r, 0, 0x1000, 0x10000, 1);
    refused(&r, "outside");
    two_areas(&r, 0, 0x1000, UINT64_MAX, 2); /* wraps to 1 */
    refused(&r, "outside");
    two_areas(&r, 0, 0x1000, 0x2000, UINT64_MAX - 0x1000);
    refused(&r, "outside");
    /* Empty ones are nothing, wherever they are; with no other there is nothing to map. */
    two_areas(&r, 0, 0x1000, UINT64_MAX, 0);
    CHECK_INT(accepted(&r).nareas, 1);
    two_areas(&r, 0, 0, 0x1000, 0);
    CHECK_INT(accepted(&r).nareas, 0);
    CHECK(!(accepted(&r).flags & OB_REGION_MMAP));
}

TEST(area_counts, "area-counts-that-lie")
{
    static const uint32_t lies[] = { 3, 64, 65, 0x10000000, 0x10000002, UINT32_MAX };
    struct reply r;
    struct ob_wire_region_info *info;

    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        info = begin(&r);
        add_sparse(&r, 0, lies[i]);
        add_area(&r, 0, 0x1000);
        add_area(&r, 0x1000, 0x1000);
        finish(&r, info);
        refused(&r, "longer than the reply");
    }
    info = begin(&r);
    add_sparse(&r, 0, 1);
    r.len -= 1;
    finish(&r, info);
    refused(&r, "longer than the reply");
    for (uint32_t count = OB_SPARSE_AREAS_MAX; count <= OB_SPARSE_AREAS_MAX + 1; count++) {
        info = begin(&r);
        add_sparse(&r, 0, count);
        for (uint32_t i = 0; i < count; i++)
            add_area(&r, i * 16, 16);
        finish(&r, info);
        if (count > OB_SPARSE_AREAS_MAX)
            refused(&r, "too many");
        else
            CHECK_INT(accepted(&r).nareas, count);
    }
}

TEST(two_lists, "two-lists-of-areas")
{
    struct reply r;
    struct ob_wire_region_info *info = begin(&r);

    add_sparse(&r, 64, 1);
    add_area(&r, 0, 0x1000);
    add_sparse(&r, 0, 1);
    add_area(&r, 0x2000, 0x1000);
    finish(&r, info);
    refused(&r, "two lists");
}

TEST(areas_without_mmap, "areas-of-a-region-that-is-not-mappable-are-dropped")
{
    struct reply r;
    struct ob_wire_region_info *info = begin(&r);

    info->flags = OB_REGION_READ | OB_REGION_CAPS;
    add_sparse(&r, 0, 1);
    add_area(&r, 0, 0x1000);
    finish(&r, info);
    CHECK_INT(accepted(&r).nareas, 0);
    CHECK_INT(accepted(&r).flags, OB_REGION_READ);
}
