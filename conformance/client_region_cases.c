/* SPDX-License-Identifier: BSD-3-Clause */
/* Descriptions of a device that lie: regions, their capabilities, interrupts, config space. */
#include "conformance/client.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#define FIXED ((uint32_t)sizeof(struct ob_wire_region_info))
#define CAP   ((uint32_t)sizeof(struct ob_wire_cap_sparse))
#define AREA  ((uint32_t)sizeof(struct ob_wire_sparse_area))

/* The reply for BAR 0 with room for two areas, or for two capabilities. */
struct description {
    struct ob_wire_region_info info;
    struct ob_wire_cap_sparse sparse;
    struct ob_wire_sparse_area areas[2];
    struct ob_wire_cap_sparse second;
};

static struct answer *until(struct test *t, struct description *d)
{
    struct answer *a = play_until_region(t, sizeof(*d));

    memset(d, 0, sizeof(*d));
    memcpy(&d->info, a->data, FIXED);
    d->info.argsz = FIXED + CAP + AREA;
    d->sparse = (struct ob_wire_cap_sparse){ { OB_CAP_SPARSE_MMAP, 1, 0 }, 1, 0 };
    d->areas[0].size = PAGE;
    return a;
}

static void describe(struct test *t, struct answer *a, const struct description *d)
{
    memcpy(a->data, d, sizeof(*d));
    a->len = d->info.argsz < sizeof(*d) ? d->info.argsz : (uint32_t)sizeof(*d);
    play_send(t, a);
}

#define DESCRIPTION(name, change, then)  \
    static void name(struct test *t)     \
    {                                    \
        struct description d;            \
        struct answer *a = until(t, &d); \
                                         \
        change;                          \
        describe(t, a, &d);              \
        then(t);                         \
    }

/* Two areas in the list. */
static void two_areas(struct description *d, uint64_t offset, uint64_t size)
{
    d->info.argsz += AREA;
    d->sparse.nr_areas = 2;
    d->areas[1] = (struct ob_wire_sparse_area){ offset, size };
}

/* A capability behind an area that is there. */
static void two_caps(struct description *d, uint16_t id)
{
    d->info.argsz = sizeof(*d);
    d->sparse.header.next = FIXED + CAP + 2 * AREA;
    d->second = (struct ob_wire_cap_sparse){ { id, 1, 0 }, 0, 0 };
}

DESCRIPTION(right, (void)a, play_goes_on)
DESCRIPTION(unknown_cap, two_caps(&d, 777), play_goes_on)
DESCRIPTION(empty_area, two_areas(&d, PAGE, 0), play_goes_on)
DESCRIPTION(no_area, (d.sparse.nr_areas = 0, d.info.argsz -= AREA), play_goes_on)
DESCRIPTION(no_caps, (d.info.flags &= ~OB_REGION_CAPS, d.info.cap_offset = 0, d.info.argsz = FIXED),
            play_goes_on)
DESCRIPTION(no_fd, a->nfds = 0, play_goes_on)
DESCRIPTION(unaligned_area, d.areas[0] = ((struct ob_wire_sparse_area){ 100, 1000 }), play_goes_on)
DESCRIPTION(unaligned_offset, d.info.offset = 100, play_goes_on)
DESCRIPTION(offset_outside, d.info.offset = 1ull << 40, play_goes_on)
DESCRIPTION(offset_wraps, d.info.offset = UINT64_MAX - PAGE + 1, play_either)

DESCRIPTION(other_index, d.info.index = 2, play_ends)
DESCRIPTION(argsz_small, (d.info.argsz = FIXED - 1, a->nfds = 0), play_ends)
DESCRIPTION(chain_to_itself, d.sparse.header.next = FIXED, play_ends)
DESCRIPTION(chain_backwards, (two_caps(&d, 777), d.second.header.next = FIXED), play_ends)
DESCRIPTION(chain_into_fixed, d.info.cap_offset = 8, play_ends)
DESCRIPTION(chain_outside, d.info.cap_offset = d.info.argsz, play_ends)
DESCRIPTION(chain_far_outside, d.info.cap_offset = 0xfffffff8, play_ends)
DESCRIPTION(next_outside, d.sparse.header.next = d.info.argsz - 4, play_ends)
DESCRIPTION(next_far_outside, d.sparse.header.next = 0x80000000, play_ends)
DESCRIPTION(second_list, two_caps(&d, OB_CAP_SPARSE_MMAP), play_ends)
DESCRIPTION(list_too_long, d.sparse.nr_areas = 2, play_ends)
DESCRIPTION(list_huge, d.sparse.nr_areas = 0xffffffff, play_ends)
DESCRIPTION(list_wraps, d.sparse.nr_areas = 0x10000001, play_ends)
DESCRIPTION(area_outside, d.areas[0].offset = PLAY_BAR, play_ends)
DESCRIPTION(area_leaves, d.areas[0].size = PLAY_BAR + PAGE, play_ends)
DESCRIPTION(area_wraps,
            d.areas[0] = ((struct ob_wire_sparse_area){ UINT64_MAX - PAGE + 1, 2 * PAGE }),
            play_ends)
DESCRIPTION(areas_overlap, two_areas(&d, 0, PAGE), play_ends)

/* ---- Its descriptors ----------------------------------------------------------------------- */

/* The region cannot be mapped, and the descriptors are not kept. */
static void bad_fds(struct test *t, unsigned nfds)
{
    struct description d;
    struct answer *a = until(t, &d);
    int pair[2];

    MUST(t, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "no sockets");
    test_keep(t, pair[0]);
    test_keep(t, pair[1]);
    for (a->nfds = 0; a->nfds < nfds; a->nfds++)
        a->fds[a->nfds] = pair[1];
    describe(t, a, &d);
    test_close(t, pair[1]);
    play_goes_on(t);
    if (nfds > 1)
        test_await_hang_up(t, pair[0], "descriptors of which nothing says what they are for");
}

static void two_fds(struct test *t)
{
    bad_fds(t, 2);
}

static void many_fds(struct test *t)
{
    bad_fds(t, OB_MSG_FDS_MAX);
}

static void fd_of_a_socket(struct test *t)
{
    bad_fds(t, 1);
}

static void file_too_small(struct test *t)
{
    struct description d;
    struct answer *a = until(t, &d);

    a->fds[0] = test_memfd(t, 100);
    describe(t, a, &d);
    play_goes_on(t);
}

/* The file is cut once the client has mapped it. */
static void file_cut(struct test *t)
{
    struct description d;
    struct answer *a = until(t, &d);

    describe(t, a, &d);
    play_goes_on(t);
    if (ftruncate(play_of(t)->bar, 0) == 0)
        play_either(t);
}

/* It wants more room than any client has. */
static void argsz_huge(struct test *t)
{
    struct description d;
    struct answer *a = until(t, &d);

    d.info.argsz = 0xffffffff;
    d.info.flags &= ~OB_REGION_CAPS;
    memcpy(a->data, &d.info, FIXED);
    a->len = FIXED;
    a->nfds = 0;
    play_send(t, a);
    play_either(t);
}

/* A client asks anew with what it is told; told something else each time, it stops. */
static void argsz_grows(struct test *t)
{
    struct ob_wire_region_info info;

    for (uint32_t argsz = 64; argsz < 128; argsz++) {
        struct answer *a = play_until(t, OB_CMD_DEVICE_GET_REGION_INFO);

        memcpy(&info, t->in.data, sizeof(info));
        if (argsz > 64 && info.index != 0)
            break;
        device_describe(play_of(t), info.index, FIXED, a);
        memcpy(&info, a->data, sizeof(info));
        info.argsz = argsz + 32 * (argsz - 64);
        memcpy(a->data, &info, sizeof(info));
        play_send(t, a);
        MUST(t, argsz < 127, "the client asks and asks");
    }
}

/* ---- The device ---------------------------------------------------------------------------- */

static void device(struct test *t, uint32_t num_regions, uint32_t num_irqs)
{
    struct answer *a = play_until(t, OB_CMD_DEVICE_GET_INFO);
    struct ob_wire_device_info info = { sizeof(info), OB_DEVICE_RESET | OB_DEVICE_PCI, num_regions,
                                        num_irqs };

    memcpy(a->data, &info, sizeof(info));
    play_send(t, a);
    play_ends(t);
}

static void regions_huge(struct test *t)
{
    device(t, 0xffffffff, PLAY_IRQS);
}

static void irqs_huge(struct test *t)
{
    device(t, OB_PCI_REGIONS, 0xffffffff);
}

static void irq(struct test *t, uint32_t index, uint32_t count)
{
    struct answer *a = play_until(t, OB_CMD_DEVICE_GET_IRQ_INFO);
    struct ob_wire_irq_info info;

    memcpy(&info, a->data, sizeof(info));
    info.index += index;
    info.count = count;
    memcpy(a->data, &info, sizeof(info));
    play_send(t, a);
    play_ends(t);
}

static void irq_other_index(struct test *t)
{
    irq(t, 1, 1);
}

static void irq_count_huge(struct test *t)
{
    irq(t, 0, 0xffffffff);
}

static void irq_count_one_over(struct test *t)
{
    irq(t, 0, OB_IRQ_VECTORS_MAX + 1);
}

/* ---- Config space -------------------------------------------------------------------------- */

/* With this in config space the device may be refused; the client survives it. */
static void with_config(struct test *t)
{
    play_out(t);
}

static void config_ones(struct test *t)
{
    memset(play_of(t)->config, 0xff, PLAY_CONFIG);
    with_config(t);
}

static void config_zeros(struct test *t)
{
    memset(play_of(t)->config, 0, PLAY_CONFIG);
    with_config(t);
}

static void config_loop(struct test *t)
{
    play_of(t)->config[0x41] = 0x40;
    with_config(t);
}

static void config_msix_bar(struct test *t)
{
    play_of(t)->config[0x44] = 7; /* the table's BAR: there is no such one */
    with_config(t);
}

static void config_msix_outside(struct test *t)
{
    play_of(t)->config[0x46] = 0xff; /* the table's offset */
    with_config(t);
}

static void config_random(struct test *t)
{
    for (unsigned i = 0; i < PLAY_CONFIG; i++)
        play_of(t)->config[i] = (uint8_t)test_random(t);
    with_config(t);
}

#define MMAP  "R-REGION-8 R-REGION-10"
#define CHAIN "R-REGION-13"
#define AREAS "R-REGION-15"
static const struct entry entries[] = {
    RAW("region/right", "R-REGION-6", "a region with an area is taken", right),
    RAW("region/unknown-capability", "R-REGION-16", "an unknown capability is skipped",
        unknown_cap),
    RAW("region/empty-area", "R-REGION-15", "an empty area is ignored", empty_area),
    RAW("region/no-area", "R-REGION-9", "an empty list means that nothing is mapped", no_area),
    RAW("region/no-capabilities", "R-REGION-9", "without a list all is mappable", no_caps),
    RAW("region/no-fd", MMAP, "without a descriptor a region works by messages", no_fd),
    RAW("region/two-fds", MMAP " R-FD-5", "two descriptors are one too many", two_fds),
    RAW("region/many-fds", MMAP " R-FD-5", "253 descriptors are too many", many_fds),
    RAW("region/fd-of-a-socket", MMAP, "a descriptor that cannot be mapped is not", fd_of_a_socket),
    RAW("region/file-too-small", MMAP, "an area outside of the file is not mapped", file_too_small),
    RAW("region/file-cut", "R-REGION-10 R-LOSS-5", "a file that is cut kills nobody", file_cut),
    RAW("region/unaligned-area", MMAP, "an unaligned area is not mapped", unaligned_area),
    RAW("region/unaligned-offset", MMAP, "an unaligned offset is not mapped", unaligned_offset),
    RAW("region/offset-outside", MMAP, "an offset outside of the file is not mapped",
        offset_outside),
    RAW("region/offset-wraps", MMAP, "an offset that wraps is not mapped", offset_wraps),
    RAW("region/argsz-huge", "R-REGION-6 R-LOSS-5", "the room that it makes has a limit",
        argsz_huge),
    RAW("region/argsz-grows", "R-REGION-6 R-LOSS-5", "it does not ask for ever", argsz_grows),
    RAW("region/other-index", "R-REGION-7", "another region's reply ends the connection",
        other_index),
    RAW("region/argsz-small", "R-REGION-7", "an argsz below 32 ends the connection", argsz_small),
    RAW("region/chain-to-itself", CHAIN, "a chain that loops ends the connection", chain_to_itself),
    RAW("region/chain-backwards", CHAIN, "a chain that runs backwards ends it", chain_backwards),
    RAW("region/chain-into-fixed", CHAIN, "a chain in the fixed part ends it", chain_into_fixed),
    RAW("region/chain-outside", CHAIN, "a chain behind the reply ends it", chain_outside),
    RAW("region/chain-far-outside", CHAIN, "a chain far behind the reply ends it",
        chain_far_outside),
    RAW("region/next-outside", CHAIN, "a capability that leaves the reply ends it", next_outside),
    RAW("region/next-far-outside", CHAIN, "a capability far behind the reply ends it",
        next_far_outside),
    RAW("region/second-list", AREAS, "a second list of areas ends it", second_list),
    RAW("region/list-too-long", AREAS, "a list longer than the reply ends it", list_too_long),
    RAW("region/list-huge", AREAS, "a list of 2^32 - 1 areas ends it", list_huge),
    RAW("region/list-wraps", AREAS, "a list whose size wraps 2^32 ends it", list_wraps),
    RAW("region/area-outside", AREAS, "an area behind the region ends it", area_outside),
    RAW("region/area-leaves", AREAS, "an area larger than the region ends it", area_leaves),
    RAW("region/area-wraps", AREAS, "an area that wraps 2^64 ends it", area_wraps),
    RAW("region/areas-overlap", AREAS, "areas that overlap end it", areas_overlap),
    RAW("device/regions-huge", "R-DEVICE-3", "2^32 - 1 regions end the connection", regions_huge),
    RAW("device/irqs-huge", "R-DEVICE-3", "2^32 - 1 interrupts end the connection", irqs_huge),
    RAW("irq/other-index", "R-IRQ-3", "another index' reply ends the connection", irq_other_index),
    RAW("irq/count-huge", "R-IRQ-3", "2^32 - 1 vectors end the connection", irq_count_huge),
    RAW("irq/count-one-over", "R-IRQ-3", "2049 vectors end the connection", irq_count_one_over),
    RAW("config/ones", "R-REGION-20", "config space of ones does not kill", config_ones),
    RAW("config/zeros", "R-REGION-20", "config space of zeros does not kill", config_zeros),
    RAW("config/capability-loop", "R-REGION-20", "capabilities in a circle do not hang",
        config_loop),
    RAW("config/msix-bar", "R-REGION-20", "an MSI-X table in no BAR does not kill",
        config_msix_bar),
    RAW("config/msix-outside", "R-REGION-20", "an MSI-X table behind its BAR does not kill",
        config_msix_outside),
    RAW("config/random", "R-REGION-20", "random config space does not kill", config_random),
};
CASES(client_region_cases, entries);
