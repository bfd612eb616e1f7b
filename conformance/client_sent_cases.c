/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a client sends to a device that keeps every rule. Each case is a whole session, of which it
 * looks at one thing; a session in which that does not occur does not offer the case.
 */
#include "conformance/client.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define LIMITS "\"max_msg_fds\":16,\"max_dma_maps\":1000"

static uint16_t cmd_of(const struct test *t)
{
    return t->in.hdr.cmd;
}

/* Whether the command in t->in is cmd, and has its structure, which is then copied. */
static bool is(struct test *t, uint16_t cmd, void *out, size_t len)
{
    if (cmd_of(t) != cmd || t->in.len < len)
        return false;
    memcpy(out, t->in.data, len);
    play_of(t)->looked++;
    return true;
}

/* ---- Every command ------------------------------------------------------------------------- */

static void known(struct test *t)
{
    const struct ob_msg_type *type = ob_msg_type(cmd_of(t));

    MUST(t, type && type->live && type->dir == OB_CLIENT_TO_SERVER, "the command %u comes",
         cmd_of(t));
    play_of(t)->looked++;
}

static void flags(struct test *t)
{
    MUST(t, !(t->in.hdr.flags & ~OB_HDR_NO_REPLY), "%s has the flags 0x%x", ob_strcmd(cmd_of(t)),
         t->in.hdr.flags);
    play_of(t)->looked++;
}

static void error_number(struct test *t)
{
    MUST(t, t->in.hdr.error_no == 0, "%s has the error_no %u", ob_strcmd(cmd_of(t)),
         t->in.hdr.error_no);
    play_of(t)->looked++;
}

static void sizes(struct test *t)
{
    const struct ob_msg_type *type = ob_msg_type(cmd_of(t));

    MUST(t, type && t->in.len >= type->request.min && t->in.len <= type->request.max,
         "%s has %u bytes of payload", ob_strcmd(cmd_of(t)), t->in.len);
    play_of(t)->looked++;
}

static void fds_where_used(struct test *t)
{
    const struct ob_msg_type *type = ob_msg_type(cmd_of(t));

    if (cmd_of(t) == OB_CMD_DMA_UNMAP && t->in.nfds == 1)
        test_deviates(t, "DMA_UNMAP has a descriptor, as that of SPDK");
    else
        MUST(t, type && t->in.nfds <= type->request.fds_max, "%s has %u descriptors",
             ob_strcmd(cmd_of(t)), t->in.nfds);
    play_of(t)->looked++;
}

static void order(struct test *t)
{
    MUST(t, (cmd_of(t) == OB_CMD_VERSION) == !play_of(t)->commands, "%s comes %s VERSION",
         ob_strcmd(cmd_of(t)), play_of(t)->commands ? "after" : "instead of");
    MUST(t, cmd_of(t) != OB_CMD_VERSION || !(t->in.hdr.flags & OB_HDR_NO_REPLY),
         "VERSION has No_reply");
    play_of(t)->looked++;
}

static void argsz(struct test *t)
{
    const struct ob_msg_type *type = ob_msg_type(cmd_of(t));
    uint32_t size;

    if (!type || !type->request.nfields || strcmp(type->request.fields[0].name, "argsz") != 0 ||
        !is(t, cmd_of(t), &size, sizeof(size)))
        return;
    MUST(t, size >= type->request.min, "argsz of %s is %u", ob_strcmd(cmd_of(t)), size);
}

/* ---- VERSION ------------------------------------------------------------------------------- */

static void major(struct test *t)
{
    struct ob_wire_version version;

    if (is(t, OB_CMD_VERSION, &version, sizeof(version)))
        MUST(t, version.major == OB_VERSION_MAJOR, "the major version is %u", version.major);
}

static void version_json(struct test *t)
{
    const char *json = (const char *)t->in.data + sizeof(struct ob_wire_version);
    size_t len = t->in.len - sizeof(struct ob_wire_version);
    struct ob_wire_version version;

    if (!is(t, OB_CMD_VERSION, &version, sizeof(version)) || len == 0)
        return;
    MUST(t, memchr(json, '\0', len), "the JSON has no NUL");
    json += strspn(json, " \t\r\n");
    MUST(t, !*json || *json == '{', "the JSON is not an object");
}

/* ---- Requests ------------------------------------------------------------------------------ */

static void reserved_info(struct test *t)
{
    struct ob_wire_device_info info;

    if (is(t, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info)))
        MUST(t, !info.flags && !info.num_regions && !info.num_irqs,
             "fields of DEVICE_GET_INFO that only the reply fills are not 0");
}

static void reserved_region(struct test *t)
{
    struct ob_wire_region_info info;

    if (is(t, OB_CMD_DEVICE_GET_REGION_INFO, &info, sizeof(info)))
        MUST(t, !info.flags && !info.cap_offset && !info.size && !info.offset,
             "fields of DEVICE_GET_REGION_INFO that only the reply fills are not 0");
}

static void reserved_irq(struct test *t)
{
    struct ob_wire_irq_info info;

    if (is(t, OB_CMD_DEVICE_GET_IRQ_INFO, &info, sizeof(info)))
        MUST(t, !info.flags && !info.count,
             "fields of DEVICE_GET_IRQ_INFO that only the reply fills are not 0");
}

static void region_room(struct test *t)
{
    struct ob_wire_region_info info;

    if (is(t, OB_CMD_DEVICE_GET_REGION_INFO, &info, sizeof(info)))
        MUST(t, info.index < OB_PCI_REGIONS, "region %u is asked for, of %u", info.index,
             OB_PCI_REGIONS);
}

static void access_size(struct test *t, uint32_t most)
{
    struct ob_wire_region_access access;

    if (cmd_of(t) == OB_CMD_REGION_WRITE && is(t, OB_CMD_REGION_WRITE, &access, sizeof(access)))
        MUST(t, t->in.len == sizeof(access) + access.count,
             "a write of %u bytes has a payload of %u", access.count, t->in.len);
    else if (!is(t, OB_CMD_REGION_READ, &access, sizeof(access)))
        return;
    MUST(t, access.count <= most, "an access has %u bytes, and %u are taken", access.count, most);
}

static void access_exact(struct test *t)
{
    access_size(t, PLAY_DATA);
}

static void access_small(struct test *t)
{
    access_size(t, 16);
}

static void no_multi(struct test *t)
{
    struct ob_wire_region_access access;

    MUST(t, cmd_of(t) != OB_CMD_REGION_WRITE_MULTI, "REGION_WRITE_MULTI comes");
    is(t, OB_CMD_REGION_WRITE, &access, sizeof(access));
}

/* ---- Interrupts ---------------------------------------------------------------------------- */

static void irq_flags(struct test *t)
{
    struct ob_wire_set_irqs set;

    if (is(t, OB_CMD_DEVICE_SET_IRQS, &set, sizeof(set)))
        MUST(t,
             __builtin_popcount(set.flags & OB_IRQ_SET_DATA_MASK) == 1 &&
                 __builtin_popcount(set.flags & OB_IRQ_SET_ACTIONS) == 1 &&
                 !(set.flags & ~(OB_IRQ_SET_DATA_MASK | OB_IRQ_SET_ACTIONS)),
             "SET_IRQS has the flags 0x%x", set.flags);
}

static void irq_vectors(struct test *t)
{
    static const uint32_t counts[PLAY_IRQS] = { 1, 0, PLAY_VECTORS, 1, 1 };
    struct ob_wire_set_irqs set;

    if (!is(t, OB_CMD_DEVICE_SET_IRQS, &set, sizeof(set)))
        return;
    MUST(t, set.index < PLAY_IRQS, "SET_IRQS of the index %u", set.index);
    MUST(t, set.start <= counts[set.index] && set.count <= counts[set.index] - set.start,
         "SET_IRQS of the vectors from %u, %u of them, where there are %u", set.start, set.count,
         counts[set.index]);
    MUST(t, set.count || set.flags == (OB_IRQ_SET_DATA_NONE | OB_IRQ_SET_ACTION_TRIGGER),
         "SET_IRQS of no vector");
}

static void irq_payload(struct test *t)
{
    struct ob_wire_set_irqs set;
    uint32_t bytes;

    if (!is(t, OB_CMD_DEVICE_SET_IRQS, &set, sizeof(set)))
        return;
    bytes = set.flags & OB_IRQ_SET_DATA_BOOL ? set.count : 0;
    MUST(t, t->in.len == sizeof(set) + bytes, "SET_IRQS has %u bytes behind its structure",
         t->in.len - (uint32_t)sizeof(set));
    MUST(t, !t->in.nfds || (t->in.nfds == set.count && (set.flags & OB_IRQ_SET_DATA_EVENTFD)),
         "SET_IRQS of %u vectors has %u descriptors", set.count, t->in.nfds);
}

static void irq_eventfds(struct test *t)
{
    if (cmd_of(t) != OB_CMD_DEVICE_SET_IRQS || !t->in.nfds)
        return;
    for (unsigned i = 0; i < t->in.nfds; i++)
        MUST(t, test_is_eventfd(t->in.fds[i]), "a descriptor of SET_IRQS is no eventfd");
    play_of(t)->looked++;
}

static void one_fd_at_most(struct test *t)
{
    MUST(t, t->in.nfds <= 1, "%s has %u descriptors", ob_strcmd(cmd_of(t)), t->in.nfds);
    play_of(t)->looked += t->in.nfds;
}

static void no_fd(struct test *t)
{
    MUST(t, t->in.nfds == 0, "%s has %u descriptors", ob_strcmd(cmd_of(t)), t->in.nfds);
    play_of(t)->looked++;
}

/* ---- Memory -------------------------------------------------------------------------------- */

static void map_flags(struct test *t)
{
    const uint32_t access = OB_DMA_ACCESS_MMAP | OB_DMA_ACCESS_FILE;
    struct ob_wire_dma_map map;

    if (!is(t, OB_CMD_DMA_MAP, &map, sizeof(map)))
        return;
    MUST(t, !(map.flags & ~(OB_DMA_READ | OB_DMA_WRITE | access)), "DMA_MAP has the flags 0x%x",
         map.flags);
    MUST(t, t->in.nfds || !(map.flags & access), "DMA_MAP has the flags 0x%x, and no descriptor",
         map.flags);
}

static void map_range(struct test *t)
{
    struct ob_wire_dma_map map;

    if (is(t, OB_CMD_DMA_MAP, &map, sizeof(map)))
        MUST(t, map.size && map.address + (map.size - 1) >= map.address,
             "DMA_MAP of %llu bytes at 0x%llx", (unsigned long long)map.size,
             (unsigned long long)map.address);
}

static void map_file(struct test *t)
{
    struct ob_wire_dma_map map;
    struct stat st;

    if (!t->in.nfds || !is(t, OB_CMD_DMA_MAP, &map, sizeof(map)))
        return;
    MUST(t, fstat(t->in.fds[0], &st) == 0 && S_ISREG(st.st_mode),
         "a mapping's descriptor is no file");
    MUST(t, map.offset + map.size >= map.size && map.offset + map.size <= (uint64_t)st.st_size,
         "a mapping reaches beyond the end of its file");
    MUST(t, !(map.flags & OB_DMA_WRITE) || (fcntl(t->in.fds[0], F_GETFL) & O_ACCMODE) != O_RDONLY,
         "memory that may be written has a descriptor that cannot");
}

static void map_overlap(struct test *t)
{
    const struct play *p = play_of(t);
    struct ob_wire_dma_map map;

    if (!is(t, OB_CMD_DMA_MAP, &map, sizeof(map)))
        return;
    for (unsigned i = 0; i < p->nmaps; i++) {
        const struct mapping *m = &p->maps[i];

        if (m->address == map.address && m->size == map.size && m->flags == map.flags &&
            m->offset == map.offset)
            continue;
        MUST(t,
             map.address + (map.size - 1) < m->address || m->address + (m->size - 1) < map.address,
             "DMA_MAP at 0x%llx overlaps a mapping", (unsigned long long)map.address);
    }
}

static void unmap_exact(struct test *t)
{
    const struct play *p = play_of(t);
    struct ob_wire_dma_unmap unmap;
    unsigned i = 0;

    if (!is(t, OB_CMD_DMA_UNMAP, &unmap, sizeof(unmap)))
        return;
    if (unmap.flags & OB_DMA_UNMAP_ALL) {
        MUST(t, !unmap.address && !unmap.size, "DMA_UNMAP of all has a range");
        return;
    }
    while (i < p->nmaps && (p->maps[i].address != unmap.address || p->maps[i].size != unmap.size))
        i++;
    MUST(t, i < p->nmaps, "DMA_UNMAP at 0x%llx is that of no mapping",
         (unsigned long long)unmap.address);
}

static void few_maps(struct test *t)
{
    struct ob_wire_dma_map map;

    if (is(t, OB_CMD_DMA_MAP, &map, sizeof(map)))
        MUST(t, play_of(t)->nmaps < 2, "a third mapping is sent to a server that supports two");
}

/* ---- The table ----------------------------------------------------------------------------- */

#define SENT(id, rules, says, look) \
    X(id, rules, says, LIMITS ",\"max_data_xfer_size\":1048576", look)
#define ROWS                                                                                       \
    SENT("sent/known-commands", "R-HDR-10", "only commands of a client are sent", known)           \
    SENT("sent/header-flags", "R-HDR-3 R-HDR-4", "a command has no flag but No_reply", flags)      \
    SENT("sent/error-number", "R-HDR-5", "error_no of a command is 0", error_number)               \
    SENT("sent/sizes", "R-HDR-11", "a command is as long as its table says", sizes)                \
    SENT("sent/fds-where-used", "R-FD-2", "descriptors are sent where they have a use",            \
         fds_where_used)                                                                           \
    SENT("sent/version-first", "R-VERSION-1", "VERSION comes first, and once", order)              \
    SENT("sent/argsz", "R-HDR-16", "argsz is at least the size of the structure", argsz)           \
    SENT("sent/version-major", "R-VERSION-4", "the major version is 0", major)                     \
    SENT("sent/version-json", "R-VERSION-7", "the JSON is an object with a NUL", version_json)     \
    SENT("sent/device-info-reserved", "R-HDR-15", "what only the reply fills is 0", reserved_info) \
    SENT("sent/region-info-reserved", "R-HDR-15", "what only the reply fills is 0",                \
         reserved_region)                                                                          \
    SENT("sent/irq-info-reserved", "R-HDR-15", "what only the reply fills is 0", reserved_irq)     \
    SENT("sent/region-index", "R-REGION-1", "only regions that are there are asked for",           \
         region_room)                                                                              \
    SENT("sent/access-exact", "R-ACCESS-2 R-ACCESS-4", "an access has the bytes that it says",     \
         access_exact)                                                                             \
    X("sent/small-transfers", "R-CAPS-2 R-CAPS-8",                                                 \
      "what is larger than the server takes is split", LIMITS ",\"max_data_xfer_size\":16",        \
      access_small)                                                                                \
    SENT("sent/no-write-multi", "R-MULTI-1", "REGION_WRITE_MULTI is sent where it was offered",    \
         no_multi)                                                                                 \
    SENT("sent/irq-flags", "R-IRQ-4", "SET_IRQS has one kind of data and one action", irq_flags)   \
    SENT("sent/irq-vectors", "R-IRQ-5 R-IRQ-6", "SET_IRQS is about vectors that are there",        \
         irq_vectors)                                                                              \
    SENT("sent/irq-payload", "R-IRQ-7 R-IRQ-11", "SET_IRQS has the data that it says",             \
         irq_payload)                                                                              \
    SENT("sent/irq-eventfds", "R-IRQ-12", "the descriptors of SET_IRQS are eventfds",              \
         irq_eventfds)                                                                             \
    X("sent/one-fd", "R-FD-2 R-CAPS-2 R-IRQ-18", "no more descriptors than the server takes",      \
      "\"max_msg_fds\":1", one_fd_at_most)                                                         \
    X("sent/no-fd", "R-CAPS-2 R-CAPS-7", "no descriptor to a server that takes none",              \
      "\"max_msg_fds\":0", no_fd)                                                                  \
    SENT("sent/map-flags", "R-DMA-1 R-DMA-3", "DMA_MAP has flags that are defined", map_flags)     \
    SENT("sent/map-range", "R-DMA-2", "a mapping is neither empty nor beyond 2^64", map_range)     \
    SENT("sent/map-file", "R-DMA-5", "the file of a mapping reaches to its end", map_file)         \
    SENT("sent/map-overlap", "R-DMA-6", "mappings do not overlap", map_overlap)                    \
    SENT("sent/unmap-exact", "R-DMA-12 R-DMA-13", "DMA_UNMAP takes back what was mapped",          \
         unmap_exact)                                                                              \
    X("sent/few-mappings", "R-DMA-11 R-CAPS-2", "no more mappings than the server supports",       \
      "\"max_msg_fds\":16,\"max_dma_maps\":2", few_maps)

static const struct row {
    const char *id, *capabilities;
    void (*look)(struct test *t);
} rows[] = {
#define X(id, rules, says, capabilities, look) { id, capabilities, look },
    ROWS
#undef X
};

static void session(struct test *t)
{
    struct play *p = play_of(t);
    const struct row *row = rows;

    while (strcmp(row->id, t->entry->id) != 0)
        row++;
    p->capabilities = row->capabilities;
    p->look = row->look;
    play_out(t);
    if (!p->looked)
        test_not_offered(t, "nothing of the kind was sent");
}

/* VERSION is held back, and nothing may come meanwhile. */
static void waits_for_version(struct test *t)
{
    struct answer *a = play_until(t, OB_CMD_VERSION);
    struct pollfd in = { .fd = t->links[0], .events = POLLIN };

    MUST(t, poll(&in, 1, 200) == 0, "something comes before VERSION was answered");
    play_send(t, a);
    play_goes_on(t);
}

static const struct entry entries[] = {
#define X(id, rules, says, capabilities, look) RAW(id, rules, says, session),
    ROWS
#undef X
        RAW("sent/nothing-before-version", "R-VERSION-1",
            "nothing is sent before VERSION is answered", waits_for_version),
};
CASES(client_sent_cases, entries);
