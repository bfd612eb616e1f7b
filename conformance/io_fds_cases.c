/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Eventfds in place of writes. What a write does is the device's own affair, so that only a device
 * known to have registers which keep what is written (devices/null/ with --ioeventfds) shows that
 * a signal does it too.
 */
#include "conformance/test.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define HEAD      ((uint32_t)sizeof(struct ob_wire_region_io_fds))
#define SPECIFIED ((uint32_t)sizeof(struct ob_wire_ioeventfd))
#define SHADOW    ((uint32_t)sizeof(struct ob_wire_ioeventfd_shadow))
#define ROOM      ((uint32_t)PAGE) /* for more entries than anybody takes */

/* The list of a region; its fds are in t->in. */
struct list {
    uint32_t argsz, count;
    struct ob_wire_ioeventfd entries[OB_IOEVENTFDS_MAX];
};

/* The head of the answer; false when the command is refused. */
static bool ask(struct test *t, uint32_t region, uint32_t argsz, struct ob_wire_region_io_fds *head)
{
    struct ob_wire_region_io_fds request = { argsz, 0, region, 0 };

    if (test_ask(t, OB_CMD_DEVICE_GET_REGION_IO_FDS, &request, sizeof(request)) != 0)
        return false;
    memcpy(head, t->in.data, sizeof(*head));
    MUST(t, head->index == region && head->flags == 0,
         "region %u is answered as region %u, with flags 0x%x", region, head->index, head->flags);
    return true;
}

static void take_entries(struct test *t, struct list *list, uint32_t size)
{
    for (uint32_t i = 0; i < list->count; i++) {
        const uint8_t *at = t->in.data + HEAD + (size_t)i * size;

        memcpy(&list->entries[i], at, SPECIFIED);
        memcpy(&list->entries[i].datamatch, at + size - 8, 8);
    }
}

/* Checks the list as a whole. A region without eventfds, or a server that does not know the
 * command, has none. */
static void get_list(struct test *t, uint32_t region, struct list *list)
{
    struct ob_wire_region_io_fds head;

    *list = (struct list){ .argsz = HEAD };
    if (!ask(t, region, ROOM, &head)) {
        test_deviates(t, "DEVICE_GET_REGION_IO_FDS is refused, as where it is unknown");
        return;
    }
    list->argsz = head.argsz;
    list->count = head.count;
    MUST(t, head.count <= OB_IOEVENTFDS_MAX, "region %u has %u entries", region, head.count);
    MUST(t, t->in.len == head.argsz, "region %u: argsz %u, but %u bytes", region, head.argsz,
         t->in.len);
    if (head.argsz == HEAD + head.count * SPECIFIED) {
        take_entries(t, list, SPECIFIED);
    } else {
        MUST(t, head.argsz == HEAD + head.count * SHADOW, "region %u: argsz %u for %u entries",
             region, head.argsz, head.count);
        test_deviates(t, "entries have 48 bytes, as libvfio-user's");
        take_entries(t, list, SHADOW);
    }
    MUST(t, head.count || !t->in.nfds, "region %u has no entries, but %u fds", region, t->in.nfds);
}

static struct ob_ioeventfd match_of(const struct ob_wire_ioeventfd *e)
{
    return (struct ob_ioeventfd){ e->offset, e->size, e->datamatch, e->flags };
}

/* Which fd of the reply it is for; -1: of none, in a way that is known. */
static int check_entry(struct test *t, uint32_t region, const struct ob_wire_ioeventfd *e)
{
    struct ob_ioeventfd match = match_of(e);

    if (e->type == OB_IO_FD_SHADOW)
        test_deviates(t, "an entry has a shadow in memory, as libvfio-user's");
    else
        MUST(t, e->type == OB_IO_FD_EVENTFD || e->type == OB_IO_FD_REGIONFD,
             "region %u: an entry of type %u", region, e->type);
    MUST(t,
         e->type == OB_IO_FD_REGIONFD || ob_ioeventfd_valid(&match, t->dev->regions[region].size),
         "region %u: no eventfd can be for %llu bytes at 0x%llx, flags 0x%x", region,
         (unsigned long long)e->size, (unsigned long long)e->offset, e->flags);
    if (e->fd_index == UINT32_MAX) {
        test_deviates(t, "an entry has no descriptor, as libvfio-user's may have");
        return -1;
    }
    MUST(t, e->fd_index < t->in.nfds, "region %u: an entry for fd %u, there are %u", region,
         e->fd_index, t->in.nfds);
    MUST(t, e->type == OB_IO_FD_REGIONFD || test_is_eventfd(t->in.fds[e->fd_index]),
         "region %u: fd %u is no eventfd", region, e->fd_index);
    return (int)e->fd_index;
}

static void check_entries(struct test *t, uint32_t region, const struct list *list)
{
    bool used[OB_MSG_FDS_MAX] = { false };

    for (uint32_t i = 0; i < list->count; i++) {
        struct ob_ioeventfd match = match_of(&list->entries[i]);
        int fd = check_entry(t, region, &list->entries[i]);

        if (fd >= 0)
            used[fd] = true;
        for (uint32_t k = 0; k < i; k++) {
            struct ob_ioeventfd other = match_of(&list->entries[k]);

            MUST(t, !ob_ioeventfds_clash(&match, &other),
                 "region %u: two entries match the same write at 0x%llx", region,
                 (unsigned long long)match.offset);
        }
    }
    for (unsigned i = 0; i < t->in.nfds; i++)
        MUST(t, used[i], "region %u: no entry is for fd %u", region, i);
}

/* The regions that have any. */
static void each_list(struct test *t,
                      void (*each)(struct test *t, uint32_t region, const struct list *list))
{
    bool any = false;

    for (uint32_t i = 0; i < OB_REGIONS_MAX; i++) {
        struct list list = { .count = 0 };

        if (t->dev->regions[i].size)
            get_list(t, i, &list);
        if (!list.count)
            continue;
        any = true;
        each(t, i, &list);
    }
    if (!any)
        test_not_offered(t, "the device has no eventfds in place of writes");
}

/* ---- What is said -------------------------------------------------------------------------- */

static void of_regions(struct test *t)
{
    struct list list;

    for (uint32_t i = 0; i < OB_REGIONS_MAX; i++)
        if (t->dev->regions[i].size)
            get_list(t, i, &list);
}

static void entries_of_regions(struct test *t)
{
    each_list(t, check_entries);
}

static void check_small(struct test *t, uint32_t region, const struct list *list)
{
    const uint32_t small[] = { HEAD, list->argsz - 1 };
    struct ob_wire_region_io_fds head;

    for (unsigned i = 0; i < 2; i++) {
        MUST(t, ask(t, region, small[i], &head), "argsz %u is refused", small[i]);
        MUST(t, head.argsz == list->argsz && head.count == list->count,
             "region %u: argsz %u and %u entries without room, %u and %u with it", region,
             head.argsz, head.count, list->argsz, list->count);
        MUST(t, t->in.len == HEAD, "%u bytes came, there was room for %u", t->in.len, small[i]);
        MUST(t, !t->in.nfds, "%u fds came without their entries", t->in.nfds);
    }
    MUST(t, ask(t, region, list->argsz, &head) && t->in.len == list->argsz,
         "argsz %u, which is what it takes, is not enough", list->argsz);
}

static void small_argsz(struct test *t)
{
    each_list(t, check_small);
}

static void few_fds(struct test *t)
{
    for (unsigned most = 0; most < 2; most++) {
        char json[64];
        int len = snprintf(json, sizeof(json), "{\"capabilities\":{\"max_msg_fds\":%u}}", most);

        test_is_ok(t, test_version(t, 0, 0, json, (size_t)len + 1), OB_CMD_VERSION);
        for (uint32_t i = 0; i < OB_REGIONS_MAX; i++) {
            struct list list;

            if (!t->dev->regions[i].size)
                continue;
            get_list(t, i, &list);
            MUST(t, t->in.nfds <= most, "%u fds came, %u are taken", t->in.nfds, most);
            check_entries(t, i, &list);
        }
        test_hang_up(t);
        if (most == 0)
            test_connect(t);
    }
}

static void refused(struct test *t)
{
    const struct ob_wire_region_io_fds bad[] = {
        { HEAD, 1, OB_PCI_REGION_CONFIG, 0 },
        { HEAD, 0, OB_PCI_REGION_CONFIG, 1 },
        { HEAD, 0, t->dev->info.num_regions, 0 },
        { HEAD, 0, UINT32_MAX, 0 },
    };

    for (unsigned i = 0; i < 4; i++)
        test_refused(t, 0, OB_CMD_DEVICE_GET_REGION_IO_FDS, &bad[i], sizeof(bad[i]));
    test_alive(t);
}

static void of_absent(struct test *t)
{
    for (uint32_t i = 0; i < t->dev->info.num_regions && i < OB_REGIONS_MAX; i++) {
        struct ob_wire_region_io_fds request = { HEAD, 0, i, 0 };

        if (t->dev->regions[i].size)
            continue;
        test_refused(t, 0, OB_CMD_DEVICE_GET_REGION_IO_FDS, &request, sizeof(request));
        return;
    }
    test_not_offered(t, "the device has all regions");
}

/* ---- What a signal does -------------------------------------------------------------------- */

/* BAR 0 of the device whose registers keep what is written, all 0. */
static void begin_registers(struct test *t, struct list *list)
{
    if (t->dev->vendor != 0x4f42 || t->dev->product != 0x0002)
        test_not_offered(t, "only the device of `outboard serve null` shows what it was written");
    get_list(t, OB_PCI_REGION_BAR0, list);
    if (list->count < 2)
        test_not_offered(t, "the device has no eventfds in place of writes");
}

/* A number of our own for the fd of an entry of the list that came last. */
static int keep_fd(struct test *t, const struct ob_wire_ioeventfd *e)
{
    return test_keep(t, fcntl(t->in.fds[e->fd_index], F_DUPFD_CLOEXEC, 0));
}

/* Whether the register has the value that the entry matches. */
static bool written(struct test *t, const struct ob_wire_ioeventfd *e)
{
    device_read(t, OB_PCI_REGION_BAR0, e->offset, (uint32_t)e->size);
    return memcmp(t->in.data + sizeof(struct ob_wire_region_access), &e->datamatch, e->size) == 0;
}

static void signal_entry(struct test *t, int fd, const struct ob_wire_ioeventfd *e)
{
    int64_t end_ns = test_now_ns() + (t->deadline_ns - test_now_ns()) / 2;

    MUST(t, eventfd_write(fd, 1) == 0, "the eventfd cannot be signalled");
    while (!written(t, e))
        MUST(t, test_now_ns() < end_ns, "a signal does not write %u bytes at 0x%llx",
             (unsigned)e->size, (unsigned long long)e->offset);
}

static void signals_write(struct test *t)
{
    struct list list;
    int fds[OB_IOEVENTFDS_MAX]; /* before other commands let those of the list go */

    begin_registers(t, &list);
    const uint32_t count = list.count;
    for (uint32_t i = 0; i < count; i++)
        fds[i] = keep_fd(t, &list.entries[i]);
    for (uint32_t i = 0; i < count; i++) {
        test_ok(t, OB_CMD_DEVICE_RESET, NULL, 0); /* leaves the eventfds as they are */
        MUST(t, !written(t, &list.entries[i]), "a reset leaves what was written");
        signal_entry(t, fds[i], &list.entries[i]);
    }
}

static void end_with_the_client(struct test *t)
{
    struct list list;
    int old, other;

    begin_registers(t, &list);
    old = keep_fd(t, &list.entries[0]);
    test_hang_up(t);
    test_served(t);
    test_ok(t, OB_CMD_DEVICE_RESET, NULL, 0);
    get_list(t, OB_PCI_REGION_BAR0, &list);
    other = keep_fd(t, &list.entries[1]);
    MUST(t, eventfd_write(old, 1) == 0, "the eventfd cannot be signalled");
    signal_entry(t, other, &list.entries[1]); /* it was signalled later: the first has been seen */
    MUST(t, !written(t, &list.entries[0]), "the eventfd of a client that has left still writes");
}

static const struct entry entries[] = {
    CASE("io-fds/of-regions", "R-IOFD-2 R-IOFD-3", "the list of descriptors agrees with itself",
         of_regions),
    CASE("io-fds/entries", "R-IOFD-4 R-IOFD-7",
         "each entry lies in its region, has an eventfd, and is one that KVM takes",
         entries_of_regions),
    CASE("io-fds/small-argsz", "R-IOFD-3 R-HDR-16", "entries come whole or not at all",
         small_argsz),
    RAW("io-fds/few-fds", "R-FD-2 R-CAPS-7 R-IOFD-4", "no more come than the client takes",
        few_fds),
    CASE("io-fds/refused", "R-IOFD-1", "flags, a count, or no such region are refused", refused),
    CASE("io-fds/of-absent", "R-IOFD-1", "a region of no bytes is refused", of_absent),
    CASE("io-fds/signals-write", "R-IOFD-6 R-DEVICE-5", "a signal does what the write does",
         signals_write),
    CASE("io-fds/end-with-the-client", "R-LOSS-1", "an eventfd does not outlive its client",
         end_with_the_client),
};

CASES(io_fds_cases, entries);
