/* SPDX-License-Identifier: BSD-3-Clause */
/* The model's DMA table and dirty memory. */
#include "model_state.h"

#include <errno.h>
#include <unistd.h>

#include "harness.h"

#define RW (OB_DMA_READ | OB_DMA_WRITE)

static uint64_t address_of(uint32_t page)
{
    return MODEL_BASE + (uint64_t)page * MODEL_PAGE;
}

/* ---- What is mapped where ------------------------------------------------------------------ */

static const struct model_map *map_at(const struct model *m, uint64_t address)
{
    for (unsigned i = 0; i < m->nmaps; i++)
        if (address >= address_of(m->maps[i].page) &&
            address < address_of(m->maps[i].page + m->maps[i].pages))
            return &m->maps[i];
    return NULL;
}

uint8_t *model_ram(struct model *m, uint64_t address)
{
    const struct model_map *map = map_at(m, address);

    return m->ram + map->offset + (address - address_of(map->page));
}

/* Of a range of which all must be mapped for prot: 0, or what is wrong first. */
static int check_range(const struct model *m, uint64_t address, uint64_t len, uint32_t prot)
{
    for (uint64_t i = 0; i < len; i++) {
        const struct model_map *map = map_at(m, address + i);

        if (!map)
            return -EFAULT;
        if (prot & ~map->prot)
            return -EACCES;
    }
    return 0;
}

/* Whether some of it is of that mode. */
static bool meets(const struct model *m, uint64_t address, uint64_t len, enum model_mode mode)
{
    for (uint64_t i = 0; i < len; i++)
        if (map_at(m, address + i)->mode == mode)
            return true;
    return false;
}

int model_get(const struct model *m, uint64_t address, uint64_t len, uint32_t prot)
{
    const struct model_map *map = map_at(m, address);
    int rc = check_range(m, address, len, prot);

    if (rc < 0)
        return rc;
    return map && map == map_at(m, address + len - 1) && map->mode == BY_MMAP ? 0 : -EOPNOTSUPP;
}

void model_mark(struct model *m, uint64_t address, uint64_t len)
{
    if (!m->logging)
        return;
    for (uint64_t page = (address - MODEL_BASE) / MODEL_PAGE;
         page <= (address + len - 1 - MODEL_BASE) / MODEL_PAGE; page++)
        m->dirty[page] = true;
}

static bool overlaps(const struct model_map *map, uint32_t page, uint32_t pages)
{
    return map->page < page + pages && page < map->page + map->pages;
}

static int model_map(struct model *m, const struct model_map *map)
{
    const struct model_map *first = NULL;

    if (map->mode != BY_MESSAGE && map->offset + map->pages * MODEL_PAGE > MODEL_RAM)
        return -EINVAL;
    for (unsigned i = 0; i < m->nmaps; i++)
        if (overlaps(&m->maps[i], map->page, map->pages) &&
            (!first || m->maps[i].page < first->page))
            first = &m->maps[i];
    if (first)
        return memcmp(first, map, sizeof(*map)) ? -EEXIST : 0;
    m->maps[m->nmaps++] = *map;
    return 0;
}

static void step_map(struct world *w, const struct model_command *c)
{
    static const uint32_t access[] = { 0, 0, OB_DMA_ACCESS_FILE };
    struct model_map map = { .page = c->a % MODEL_PAGES,
                             .prot = c->c % 4,
                             .mode = c->c / 4 % 3,
                             .offset = c->d % (MODEL_RAM / MODEL_PAGE) * MODEL_PAGE };

    map.pages = 1 + c->b % 4;
    if (map.page + map.pages > MODEL_PAGES || w->m.nmaps == MODEL_MAPS)
        return;
    CHECK_INT(peer_map(&w->peer, address_of(map.page), map.pages * MODEL_PAGE,
                       map.prot | access[map.mode], map.mode == BY_MESSAGE ? -1 : w->ram_fd,
                       map.offset),
              model_map(&w->m, &map));
}

/* ---- Dirty memory -------------------------------------------------------------------------- */

/* What a report of the range says, and clears. */
static void take(struct model *m, uint32_t page, uint32_t pages, uint64_t page_size,
                 uint64_t *bitmap)
{
    uint64_t first = address_of(page), last = address_of(page + pages) - 1;

    *bitmap = 0;
    for (uint64_t at = first; at < last; at += MODEL_PAGE) {
        bool *dirty = &m->dirty[(at - MODEL_BASE) / MODEL_PAGE];

        if (*dirty)
            *bitmap |= 1ull << (at - first) / page_size;
        *dirty = false;
    }
    for (unsigned i = 0; i < MODEL_HOLDS; i++) {
        const struct model_hold *hold = &m->holds[i];

        for (uint64_t at = hold->address; at < hold->address + hold->len; at++)
            if (hold->mine && (hold->prot & OB_DMA_WRITE) && at >= first && at <= last)
                *bitmap |= 1ull << (at - first) / page_size;
    }
}

static void step_log(struct world *w, const struct model_command *c)
{
    struct {
        struct ob_wire_feature head;
        struct ob_wire_logging_start start;
    } wire = { { sizeof(wire), OB_FEATURE_SET | OB_FEATURE_DMA_LOGGING_START },
               { 512u << c->b % 10, 0, 0 } };
    struct model *m = &w->m;
    bool start = c->a % 4;
    size_t len = start ? sizeof(wire) : sizeof(wire.head);

    if (!start)
        wire.head.flags = OB_FEATURE_SET | OB_FEATURE_DMA_LOGGING_STOP;
    CHECK_INT(peer_call(&w->peer, OB_CMD_DEVICE_FEATURE, &wire, len, NULL),
              start == m->logging ? -EINVAL : 0);
    if (start == m->logging)
        return;
    m->logging = start;
    memset(m->dirty, 0, sizeof(m->dirty));
    for (unsigned i = 0; i < MODEL_HOLDS && start; i++)
        if (m->holds[i].len && m->holds[i].mine && (m->holds[i].prot & OB_DMA_WRITE))
            model_mark(m, m->holds[i].address, m->holds[i].len);
}

static void step_report(struct world *w, const struct model_command *c)
{
    uint32_t page = c->a % MODEL_PAGES, pages = 1 + c->b % (MODEL_PAGES - page);
    struct {
        struct ob_wire_feature head;
        struct ob_wire_logging_report report;
        uint64_t bitmap;
    } wire = { { sizeof(wire), OB_FEATURE_GET | OB_FEATURE_DMA_LOGGING_REPORT },
               { address_of(page), (uint64_t)pages * MODEL_PAGE, MODEL_PAGE << c->c % 4 },
               0 };
    uint64_t expected;
    struct ob_msg *reply;
    int rc = peer_call(&w->peer, OB_CMD_DEVICE_FEATURE, &wire, sizeof(wire) - 8, &reply);

    CHECK_INT(rc, w->m.logging ? 0 : -EINVAL);
    if (rc < 0)
        return;
    CHECK_INT(reply->len, sizeof(wire));
    take(&w->m, page, pages, wire.report.page_size, &expected);
    memcpy(&wire, reply->payload, sizeof(wire));
    CHECK_INT(wire.bitmap, expected);
    ob_msg_free(reply);
}

/* ---- The device's use of it ---------------------------------------------------------------- */

static void step_dma(struct world *w, const struct model_command *c)
{
    uint64_t address = address_of(c->a % (MODEL_PAGES - 2)) + c->b % MODEL_PAGE;
    uint64_t len = c->c % 6000;
    bool is_write = c->d & 1;
    uint8_t data[6000], expected[6000];
    int rc = check_range(&w->m, address, len, is_write ? OB_DMA_WRITE : OB_DMA_READ);

    if (rc == 0 && meets(&w->m, address, len, BY_MESSAGE))
        return; /* who would answer? */
    for (uint64_t i = 0; i < len; i++) {
        data[i] = (uint8_t)(c->d + i);
        if (rc == 0)
            expected[i] = *model_ram(&w->m, address + i);
    }
    if (is_write) {
        CHECK_INT(ob_dma_write(w->server, address, data, len), rc);
        for (uint64_t i = 0; i < len && rc == 0; i++)
            *model_ram(&w->m, address + i) = data[i];
        if (rc == 0 && len)
            model_mark(&w->m, address, len);
    } else {
        CHECK_INT(ob_dma_read(w->server, address, data, len), rc);
        if (rc == 0)
            CHECK_MEM(data, expected, len);
    }
}

static void step_hold(struct world *w, const struct model_command *c)
{
    struct model_hold hold = { address_of(c->a % (MODEL_PAGES - 2)) + c->b % MODEL_PAGE,
                               1 + c->c % 5000, c->d & RW, true };
    unsigned i = 0;
    int rc = model_get(&w->m, hold.address, hold.len, hold.prot);

    while (i < MODEL_HOLDS && w->m.holds[i].len)
        i++;
    if (i == MODEL_HOLDS)
        return;
    CHECK_INT(ob_dma_get(w->server, hold.address, hold.len, hold.prot, &w->refs[i]), rc);
    if (rc < 0)
        return;
    w->m.holds[i] = hold;
    if (hold.prot & OB_DMA_WRITE) {
        memset(w->refs[i].ptr, (int)c->d, hold.len);
        memset(model_ram(&w->m, hold.address), (int)c->d, hold.len);
    }
}

static void put(struct world *w, unsigned i)
{
    struct model_hold *hold = &w->m.holds[i];

    if (!hold->len)
        return;
    ob_dma_put(w->server, &w->refs[i]);
    if (hold->mine && (hold->prot & OB_DMA_WRITE))
        model_mark(&w->m, hold->address, hold->len);
    *hold = (struct model_hold){ 0 };
}

static void step_put(struct world *w, const struct model_command *c)
{
    put(w, c->a % MODEL_HOLDS);
}

/* ---- Unmapping ----------------------------------------------------------------------------- */

static void remove_map(struct model *m, uint32_t page, uint32_t pages)
{
    for (unsigned i = 0; i < m->nmaps; i++)
        if (overlaps(&m->maps[i], page, pages))
            m->maps[i--] = m->maps[--m->nmaps];
}

/* Puts what is held of these pages; before that there is no answer, and nobody finds them. */
static void let_go(struct world *w, uint32_t page, uint32_t pages)
{
    for (unsigned i = 0; i < MODEL_HOLDS; i++) {
        const struct model_hold *hold = &w->m.holds[i];
        struct ob_dma_ref ref;

        if (!hold->len || !hold->mine || hold->address < address_of(page) ||
            hold->address >= address_of(page + pages))
            continue;
        CHECK(peer_silent(&w->peer));
        CHECK_INT(ob_dma_get(w->server, hold->address, 1, OB_DMA_READ, &ref), -EFAULT);
        put(w, i);
    }
}

/* Sends it, lets go, and receives what is returned. */
static struct ob_msg *unmap(struct world *w, const void *payload, size_t len, uint32_t page,
                            uint32_t pages)
{
    uint16_t id = peer_send(&w->peer, OB_CMD_DMA_UNMAP, OB_HDR_COMMAND, payload, len, NULL, 0);
    struct ob_msg *reply;

    peer_settle(w->server);
    model_ring_waits(w);
    let_go(w, page, pages);
    reply = peer_receive(&w->peer);
    CHECK_INT(reply->hdr.msg_id, id);
    return reply;
}

static void step_unmap(struct world *w, const struct model_command *c)
{
    struct model *m = &w->m;
    uint32_t page = c->a % MODEL_PAGES, pages = 1 + c->b % 4;
    bool dirty = c->c % 3 == 0, there = false;
    struct {
        struct ob_wire_dma_unmap unmap;
        struct ob_wire_bitmap bitmap;
        uint64_t bits;
    } wire = { .bitmap = { MODEL_PAGE << c->c % 5 % 2, 8 } };
    uint64_t expected;
    struct ob_msg *reply;
    int rc;

    if (c->d % 8 && m->nmaps) { /* mostly one that is there */
        page = m->maps[c->d % m->nmaps].page;
        pages = m->maps[c->d % m->nmaps].pages;
    }
    for (unsigned i = 0; i < m->nmaps; i++)
        there |= m->maps[i].page == page && m->maps[i].pages == pages;
    wire.unmap = (struct ob_wire_dma_unmap){ dirty ? sizeof(wire) : sizeof(wire.unmap),
                                             dirty ? OB_DMA_UNMAP_GET_DIRTY : 0, address_of(page),
                                             pages * MODEL_PAGE };
    rc = !there ? -ENOENT : dirty && !m->logging ? -EINVAL : 0;
    if (rc < 0) {
        CHECK_INT(peer_call(&w->peer, OB_CMD_DMA_UNMAP, &wire,
                            dirty ? sizeof(wire) - 8 : sizeof(wire.unmap), NULL),
                  rc);
        return;
    }
    reply = unmap(w, &wire, dirty ? sizeof(wire) - 8 : sizeof(wire.unmap), page, pages);
    CHECK_INT(reply->hdr.flags, OB_HDR_REPLY);
    CHECK_INT(reply->len, dirty ? sizeof(wire) : sizeof(wire.unmap));
    take(m, page, pages, wire.bitmap.pgsize, &expected);
    memcpy(&wire, reply->payload, reply->len);
    if (dirty)
        CHECK_INT(wire.bits, expected);
    ob_msg_free(reply);
    remove_map(m, page, pages);
}

static void step_unmap_all(struct world *w, const struct model_command *c)
{
    struct ob_wire_dma_unmap wire = { sizeof(wire), OB_DMA_UNMAP_ALL, 0, 0 };
    struct ob_msg *reply = unmap(w, &wire, sizeof(wire), 0, MODEL_PAGES);

    (void)c;
    CHECK_INT(reply->hdr.flags, OB_HDR_REPLY);
    ob_msg_free(reply);
    w->m.nmaps = 0;
    memset(w->m.dirty, 0, sizeof(w->m.dirty));
}

static void step_leave(struct world *w, const struct model_command *c)
{
    (void)c;
    model_detach(w);
    w->m.nmaps = 0;
    w->m.logging = false;
    for (unsigned i = 0; i < MODEL_HOLDS; i++)
        w->m.holds[i].mine = false; /* it stays, but is nothing to the next client */
    model_irq_leave(&w->m);
    model_attach(w);
}

void (*const model_steps[])(struct world *w, const struct model_command *c) = {
    [OP_map] = step_map,
    [OP_unmap] = step_unmap,
    [OP_unmap_all] = step_unmap_all,
    [OP_dma] = step_dma,
    [OP_hold] = step_hold,
    [OP_put] = step_put,
    [OP_read] = model_step_read,
    [OP_write] = model_step_write,
    [OP_post] = model_step_post,
    [OP_multi] = model_step_multi,
    [OP_eventfds] = model_step_eventfds,
    [OP_disable] = model_step_disable,
    [OP_mask] = model_step_mask,
    [OP_fire] = model_step_fire,
    [OP_trigger] = model_step_trigger,
    [OP_level] = model_step_level,
    [OP_state] = model_step_state,
    [OP_stream] = model_step_stream,
    [OP_reset] = model_step_reset,
    [OP_log] = step_log,
    [OP_report] = step_report,
    [OP_leave] = step_leave,
    [OP_poll] = model_step_poll,
};
