/* SPDX-License-Identifier: BSD-3-Clause */
/* What the server says of its device. */
#include "conformance/test.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define INFO_BYTES ((uint32_t)sizeof(struct ob_wire_region_info))

static uint32_t num_regions(const struct test *t)
{
    uint32_t n = t->dev->info.num_regions;

    return n < OB_REGIONS_MAX ? n : OB_REGIONS_MAX;
}

static uint32_t num_irqs(const struct test *t)
{
    uint32_t n = t->dev->info.num_irqs;

    return n < OB_IRQS_MAX ? n : OB_IRQS_MAX;
}

static struct ob_wire_region_info ask_region(struct test *t, uint32_t index, uint32_t argsz)
{
    struct ob_wire_region_info info = { .argsz = argsz, .index = index };

    memcpy(&info, test_ok(t, OB_CMD_DEVICE_GET_REGION_INFO, &info, sizeof(info))->data,
           sizeof(info));
    return info;
}

/* ---- The device ---------------------------------------------------------------------------- */

static void device_info(struct test *t)
{
    struct ob_wire_device_info info = { .argsz = sizeof(info) };

    memcpy(&info, test_ok(t, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info))->data, sizeof(info));
    MUST(t, info.argsz == sizeof(info), "argsz of the reply is %u", info.argsz);
    MUST(t, info.flags & OB_DEVICE_PCI, "it is no PCI device");
    MUST(t, !(info.flags & ~(OB_DEVICE_PCI | OB_DEVICE_RESET)), "undefined flags 0x%x", info.flags);
    MUST(t, info.num_regions >= OB_PCI_REGION_VGA, "it has only %u regions", info.num_regions);
}

/* Whatever the reply fills is no matter in the request. */
static void device_info_fields_ignored(struct test *t)
{
    struct ob_wire_device_info info = { sizeof(info), UINT32_MAX, UINT32_MAX, UINT32_MAX };

    test_ok(t, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info));
    MUST(t, memcmp(t->in.data, &t->dev->info, sizeof(info)) == 0, "it is answered differently");
}

static void reset(struct test *t)
{
    int got = test_ask(t, OB_CMD_DEVICE_RESET, NULL, 0);

    if (t->dev->info.flags & OB_DEVICE_RESET)
        test_is_ok(t, got, OB_CMD_DEVICE_RESET);
    else
        test_is_refused(t, got, EOPNOTSUPP, OB_CMD_DEVICE_RESET);
    test_alive(t);
}

static void must_reset(struct test *t)
{
    if (!(t->dev->info.flags & OB_DEVICE_RESET))
        test_not_offered(t, "the device cannot be reset");
    test_ok(t, OB_CMD_DEVICE_RESET, NULL, 0);
}

static void reset_keeps_memory(struct test *t)
{
    test_is_ok(t, device_map(t, OB_DMA_READ, -1, 0, PAGE, PAGE), OB_CMD_DMA_MAP);
    must_reset(t);
    test_is_ok(t, device_unmap(t, 0, PAGE, PAGE), OB_CMD_DMA_UNMAP);
}

static void reset_keeps_eventfds(struct test *t)
{
    int fd = test_eventfd(t);
    uint32_t index = device_arm_any(t, fd);

    must_reset(t);
    test_signals(t, fd);
    test_is_ok(t,
               device_set_irqs(t, OB_IRQ_SET_DATA_NONE | OB_IRQ_SET_ACTION_TRIGGER, index, 0, 1,
                               NULL, NULL, 0),
               OB_CMD_DEVICE_SET_IRQS);
    MUST(t, test_signals(t, fd) == 1, "the eventfd is not signalled after a reset");
}

/* ---- Regions ------------------------------------------------------------------------------- */

static void regions_described(struct test *t)
{
    struct ob_region_layout layout;

    for (uint32_t i = 0; i < num_regions(t); i++) {
        struct ob_wire_region_info info;

        device_region(t, i, OB_REGION_INFO_MAX, &layout);
        memcpy(&info, t->in.data, sizeof(info));
        MUST(t, info.index == i, "region %u is described as region %u", i, info.index);
        MUST(t, info.argsz == t->in.len, "argsz of region %u is %u, the reply has %u bytes", i,
             info.argsz, t->in.len);
        MUST(t, !(info.flags & OB_REGION_CAPS) == !info.cap_offset,
             "the CAPS flag of region %u does not agree with its cap_offset", i);
    }
}

static void absent_regions(struct test *t)
{
    for (uint32_t i = 0; i < num_regions(t); i++) {
        struct ob_wire_region_info info = ask_region(t, i, INFO_BYTES);

        if (info.size == 0)
            MUST(t, !info.flags && !info.cap_offset && !info.offset,
                 "region %u has no size, but flags 0x%x, cap_offset %u, offset 0x%llx", i,
                 info.flags, info.cap_offset, (unsigned long long)info.offset);
    }
}

static void no_such_region(struct test *t)
{
    const uint32_t indexes[] = { t->dev->info.num_regions, t->dev->info.num_regions + 1,
                                 UINT32_MAX };

    for (unsigned i = 0; i < 3; i++) {
        struct ob_wire_region_info info = { .argsz = INFO_BYTES, .index = indexes[i] };

        test_refused(t, 0, OB_CMD_DEVICE_GET_REGION_INFO, &info, sizeof(info));
    }
    test_alive(t);
}

/* With room for less than all of it. */
static void cut_description(struct test *t, uint32_t index, uint32_t argsz, uint32_t full)
{
    struct ob_wire_region_info info = ask_region(t, index, argsz);

    MUST(t, t->in.len == INFO_BYTES && info.argsz == full,
         "region %u with argsz %u: %u bytes, argsz %u, not %u bytes, argsz %u", index, argsz,
         t->in.len, info.argsz, INFO_BYTES, full);
    MUST(t, !(info.flags & OB_REGION_CAPS) && !info.cap_offset,
         "region %u with argsz %u promises capabilities", index, argsz);
    MUST(t, t->in.nfds == 0, "region %u with argsz %u comes with a file descriptor", index, argsz);
}

static void small_argsz(struct test *t)
{
    bool any = false;

    for (uint32_t i = 0; i < num_regions(t); i++) {
        uint32_t full = ask_region(t, i, OB_REGION_INFO_MAX).argsz;

        if (full == INFO_BYTES)
            continue;
        any = true;
        cut_description(t, i, INFO_BYTES, full);
        cut_description(t, i, full - 1, full);
        MUST(t, ask_region(t, i, full).argsz == full && t->in.len == full,
             "region %u with argsz %u is not complete", i, full);
    }
    if (!any)
        test_not_offered(t, "no region has capabilities");
}

static void padded_request(struct test *t)
{
    uint8_t payload[4064] = { 0 };
    struct ob_wire_region_info info = { .argsz = sizeof(payload), .index = OB_PCI_REGION_CONFIG };

    memcpy(payload, &info, sizeof(info));
    test_ok(t, OB_CMD_DEVICE_GET_REGION_INFO, payload, sizeof(payload));
}

static void region_fields_ignored(struct test *t)
{
    struct ob_wire_region_info info = { INFO_BYTES, UINT32_MAX, OB_PCI_REGION_CONFIG,
                                        UINT32_MAX, UINT64_MAX, UINT64_MAX };
    struct ob_wire_region_info plain = ask_region(t, OB_PCI_REGION_CONFIG, INFO_BYTES);

    test_ok(t, OB_CMD_DEVICE_GET_REGION_INFO, &info, sizeof(info));
    MUST(t, memcmp(t->in.data, &plain, sizeof(plain)) == 0, "it is answered differently");
}

static void one_fd_with_mmap(struct test *t)
{
    struct ob_region_layout layout;

    for (uint32_t i = 0; i < num_regions(t); i++) {
        device_region(t, i, OB_REGION_INFO_MAX, &layout);
        MUST(t, t->in.nfds == (layout.flags & OB_REGION_MMAP ? 1 : 0),
             "region %u with flags 0x%x comes with %u file descriptors", i, layout.flags,
             t->in.nfds);
        if ((layout.flags & OB_REGION_MMAP) && !layout.nareas)
            test_deviates(t, "region %u is mappable, but has no list of areas", i);
    }
}

static void map_area(struct test *t, uint32_t index, const struct ob_region_layout *layout,
                     const struct ob_sparse_area *area)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct stat st;
    void *at;

    MUST(t, (area->offset | area->size | layout->fd_offset) % page == 0,
         "the area 0x%llx-0x%llx of region %u is not page-aligned",
         (unsigned long long)area->offset, (unsigned long long)(area->offset + area->size), index);
    MUST(t, fstat(t->in.fds[0], &st) == 0, "the file descriptor of region %u is no file", index);
    if (S_ISREG(st.st_mode))
        MUST(t, layout->fd_offset + area->offset + area->size <= (uint64_t)st.st_size,
             "the file behind region %u is too short for its area", index);
    at = mmap(NULL, area->size, PROT_READ, MAP_SHARED, t->in.fds[0],
              (off_t)(layout->fd_offset + area->offset));
    MUST(t, at != MAP_FAILED, "an area of region %u cannot be mapped: %s", index, strerror(errno));
    munmap(at, area->size);
}

static void areas_mappable(struct test *t)
{
    bool any = false;

    for (uint32_t i = 0; i < num_regions(t); i++) {
        struct ob_region_layout layout;

        device_region(t, i, OB_REGION_INFO_MAX, &layout);
        if (!(layout.flags & OB_REGION_MMAP) || t->in.nfds != 1)
            continue;
        any = true;
        if (!layout.nareas)
            map_area(t, i, &layout, &(struct ob_sparse_area){ 0, layout.size });
        for (uint32_t k = 0; k < layout.nareas; k++)
            map_area(t, i, &layout, &layout.areas[k]);
    }
    if (!any)
        test_not_offered(t, "no region is mappable");
}

/* What a message reads in a mappable area is what the file holds. */
static void mapped_and_read_agree(struct test *t)
{
    bool any = false;

    for (uint32_t i = 0; i < num_regions(t); i++) {
        struct ob_region_layout layout;
        uint32_t in_file = 0;

        device_region(t, i, OB_REGION_INFO_MAX, &layout);
        if (!(layout.flags & OB_REGION_MMAP) || !(layout.flags & OB_REGION_READ) ||
            t->in.nfds != 1 || !layout.nareas)
            continue;
        if (pread(t->in.fds[0], &in_file, sizeof(in_file),
                  (off_t)(layout.fd_offset + layout.areas[0].offset)) != sizeof(in_file))
            continue;
        any = true;
        MUST(t, device_read(t, i, layout.areas[0].offset, sizeof(in_file)) == in_file,
             "region %u does not read as what is mapped of it", i);
    }
    if (!any)
        test_not_offered(t, "no region is mappable");
}

/* A client that takes no fds. */
static void without_fds(struct test *t)
{
    static const char json[] = "{\"capabilities\":{\"max_msg_fds\":0}}";
    struct ob_region_layout layout;

    test_is_ok(t, test_version(t, 0, 0, json, sizeof(json)), OB_CMD_VERSION);
    for (uint32_t i = 0; i < num_regions(t); i++) {
        device_region(t, i, OB_REGION_INFO_MAX, &layout);
        MUST(t, t->in.nfds == 0 && !(layout.flags & OB_REGION_MMAP),
             "region %u is mappable for a client that takes no file descriptors", i);
    }
}

static void own_regions_typed(struct test *t)
{
    struct ob_region_layout layout;

    if (num_regions(t) <= OB_PCI_REGIONS)
        test_not_offered(t, "the device has no regions of its own");
    for (uint32_t i = OB_PCI_REGIONS; i < num_regions(t); i++) {
        device_region(t, i, OB_REGION_INFO_MAX, &layout);
        MUST(t, !layout.size || layout.type || layout.subtype, "region %u has no type", i);
    }
}

/* ---- Interrupts ---------------------------------------------------------------------------- */

static void irqs_described(struct test *t)
{
    for (uint32_t i = 0; i < num_irqs(t); i++) {
        struct ob_wire_irq_info info = { .argsz = sizeof(info), .index = i };

        memcpy(&info, test_ok(t, OB_CMD_DEVICE_GET_IRQ_INFO, &info, sizeof(info))->data,
               sizeof(info));
        MUST(t, info.argsz == sizeof(info) && info.index == i,
             "IRQ index %u is answered with argsz %u, index %u", i, info.argsz, info.index);
        MUST(t, !info.count || (info.flags & OB_IRQ_EVENTFD), "IRQ index %u has no eventfds", i);
        MUST(t, info.count <= OB_IRQ_VECTORS_MAX, "IRQ index %u has %u vectors", i, info.count);
        MUST(t, i != OB_PCI_IRQ_INTX || info.count <= 1, "INTx has %u vectors", info.count);
        MUST(t, !(info.flags & ~0xfu), "IRQ index %u has undefined flags 0x%x", i, info.flags);
    }
}

static void no_such_irq(struct test *t)
{
    const uint32_t indexes[] = { t->dev->info.num_irqs, UINT32_MAX };

    for (unsigned i = 0; i < 2; i++) {
        struct ob_wire_irq_info info = { .argsz = sizeof(info), .index = indexes[i] };

        test_refused(t, 0, OB_CMD_DEVICE_GET_IRQ_INFO, &info, sizeof(info));
    }
    test_alive(t);
}

static const struct entry entries[] = {
    CASE("device/info", "R-DEVICE-1 R-DEVICE-2", "it is a PCI device", device_info),
    CASE("device/info-fields-ignored", "R-HDR-15", "what a reply fills is ignored in the request",
         device_info_fields_ignored),
    CASE("device/reset", "R-DEVICE-5 R-DEVICE-6", "DEVICE_RESET works where the device says so",
         reset),
    CASE("device/reset-keeps-memory", "R-DEVICE-5", "a reset leaves the mappings",
         reset_keeps_memory),
    CASE("device/reset-keeps-eventfds", "R-DEVICE-5", "a reset leaves the eventfds",
         reset_keeps_eventfds),
    CASE("region/described", "R-REGION-1 R-REGION-12 R-REGION-14",
         "each region has a description that agrees with itself", regions_described),
    CASE("region/absent", "R-REGION-2", "a region that is not there is described with zeros",
         absent_regions),
    CASE("region/no-such", "R-REGION-1", "an index past the regions is refused", no_such_region),
    CASE("region/small-argsz", "R-REGION-4", "capabilities come whole or not at all", small_argsz),
    CASE("region/padded-request", "R-REGION-3", "a request of 4064 bytes is taken", padded_request),
    CASE("region/fields-ignored", "R-HDR-15 R-REGION-3", "only argsz and index count",
         region_fields_ignored),
    CASE("region/one-fd-with-mmap", "R-REGION-5", "one file descriptor comes with MMAP, else none",
         one_fd_with_mmap),
    CASE("region/areas-mappable", "R-REGION-14", "areas can be mapped", areas_mappable),
    CASE("region/mapped-and-read-agree", "R-REGION-11", "what is mapped can be read by message",
         mapped_and_read_agree),
    RAW("region/client-without-fds", "R-CAPS-7", "nothing is mappable for who takes no fds",
        without_fds),
    CASE("region/own-have-types", "R-REGION-17", "regions of the device's own have a type",
         own_regions_typed),
    CASE("irq/described", "R-IRQ-1 R-IRQ-2", "each IRQ index is described", irqs_described),
    CASE("irq/no-such", "R-IRQ-1", "an index past the IRQs is refused", no_such_irq),
};

CASES(info_cases, entries);
