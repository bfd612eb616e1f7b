/* SPDX-License-Identifier: BSD-3-Clause */
/* The model's regions, and the access ring: a way to the same registers. */
#include "model_state.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "harness.h"
#include "server/internal.h"

#define FIRST_ID  0x101u              /* of what follows VERSION */
#define FIRST     (UINT32_MAX - 20)   /* as if so many commands had been in the ring */
#define LOOKS     (MODEL_FLIGHTS + 2) /* for each command, and for a late reply */
#define UNTOUCHED OB_RING_ASKED       /* which done never has */

/* d of an access. */
enum {
    BY_RING = 1, /* else over the socket */
    KIND = 6,
    NOW = 0,   /* the server looks at once */
    ASKED = 2, /* the same, and answers over the socket */
    BACK = 4,  /* it is taken back */
    STAYS = 6, /* until the server looks, at the next command */
    LATE = 8,  /* asked for while it is executed; put there after the server has looked at the ring,
                  and before it reads the next message */
};

/* The model's side of an access. */
static int access_region(struct model *m, uint32_t region, uint64_t offset, uint8_t *data,
                         uint32_t count, bool is_write)
{
    static const uint32_t sizes[] = { MODEL_MEMORY, MODEL_FILE, 256, 64 };
    uint8_t *at = region == 1 ? m->file : m->memory;

    if (region > 3 || offset + count > sizes[region] || region == (is_write ? 2 : 3) ||
        (is_write && m->state == OB_MIG_STATE_STOP_COPY))
        return -EINVAL;
    if (region == 0 && offset + count > MODEL_FAULTY)
        return -EIO;
    for (uint32_t i = 0; i < count && region != 2; i++)
        *(is_write ? &at[offset + i] : &data[i]) = is_write ? data[i] : at[offset + i];
    for (uint32_t i = 0; i < count && region == 2; i++)
        data[i] = (uint8_t)(offset + i);
    return 0;
}

/* ---- The ring ------------------------------------------------------------------------------ */

static void put_next(struct world *w)
{
    struct model_flight *f = &w->flights[w->nput++];
    struct ob_ring_entry *e = ob_ring_entry(w->ring, w->ring_at);

    CHECK_INT(e->state, ob_ring_turn(w->ring_at));
    f->at = w->ring_at++;
    f->command.msg_id = (uint16_t)~f->at;
    f->command.state = ob_ring_turn(f->at) + OB_RING_READY;
    *e = f->command;
}

void model_ring_late(struct world *w)
{
    while (w->nput < w->nflights)
        put_next(w);
}

static void check_done(struct world *w, const struct model_flight *f)
{
    const struct ob_ring_entry *e = ob_ring_entry(w->ring, f->at);
    bool posted = f->command.flags & OB_HDR_NO_REPLY;

    CHECK_INT(e->state, ob_ring_next_turn(f->at));
    CHECK_INT(e->done, ob_ring_next_turn(f->at));
    CHECK_INT(e->error, posted ? (int)UNTOUCHED : -f->rc);
    if (posted)
        CHECK_INT(e->result, UNTOUCHED);
    if (f->rc == 0 && f->command.cmd == OB_CMD_REGION_READ)
        CHECK_MEM(&e->result, f->data, f->command.count);
}

static void check_all_done(struct world *w)
{
    for (unsigned i = 0; i < w->nput; i++)
        check_done(w, &w->flights[i]);
}

/* As a server that polls looks at the ring, and one that does not. */
static void look(struct world *w)
{
    struct ob_server *server = w->server;

    if (server->session->ring_open) {
        server->stepping = true;
        ob_session_read(server->session);
        server->stepping = false;
    }
    CHECK_INT(ob_server_step(server), 0);
}

void model_ring_collect(struct world *w)
{
    for (unsigned i = 0; i < LOOKS && w->nflights; i++)
        look(w);
    CHECK_INT(w->nput, w->nflights);
    check_all_done(w);
    w->nput = w->nflights = 0;
}

static void check_answer(struct world *w, const struct model_flight *f)
{
    const struct ob_ring_entry *c = &f->command;
    struct ob_wire_region_access where = { c->offset, c->region, c->count };
    bool read = c->cmd == OB_CMD_REGION_READ;
    struct ob_msg *reply;

    if (c->flags & OB_HDR_NO_REPLY)
        return;
    reply = peer_receive(&w->peer);
    CHECK_INT(reply->hdr.msg_id, c->msg_id);
    CHECK_INT(reply->hdr.cmd, c->cmd);
    CHECK_INT(reply->hdr.flags, OB_HDR_REPLY | (f->rc ? OB_HDR_ERROR : 0));
    CHECK_INT(reply->hdr.error_no, -f->rc);
    CHECK_INT(reply->len, f->rc ? 0 : sizeof(where) + (read ? c->count : 0));
    if (f->rc == 0)
        CHECK_MEM(reply->payload, &where, sizeof(where));
    if (f->rc == 0 && read)
        CHECK_MEM(reply->payload + sizeof(where), f->data, c->count);
    ob_msg_free(reply);
}

static void take_back(struct world *w)
{
    w->nflights++;
    put_next(w);
    ob_ring_entry(w->ring, w->ring_at - 1)->state = ob_ring_next_turn(w->ring_at - 1);
    w->nflights = --w->nput;
}

/* It stays, behind those that are late if there are any. */
static void stay(struct world *w, bool late)
{
    bool first = w->nput + 1 == w->nflights;

    w->stays = true;
    if (first && !late)
        put_next(w);
    if (!first || !late)
        return;
    peer_send(&w->peer, OB_CMD_DMA_READ, OB_HDR_REPLY, NULL, 0, NULL, 0);
    w->strays++;
}

static void carry_out(struct world *w, struct model_flight *f, bool asked, bool late)
{
    struct ob_ring_entry *e = ob_ring_entry(w->ring, w->ring_at);

    put_next(w);
    if (asked && late)
        w->ask = e;
    else if (asked)
        e->state |= OB_RING_ASKED;
    model_ring_collect(w);
    if (asked && !w->ask) /* the device may have had no part in it */
        check_answer(w, f);
    w->ask = NULL;
    CHECK(peer_silent(&w->peer));
}

/* False: it goes over the socket. */
static bool through_ring(struct world *w, uint32_t how, uint16_t cmd, uint32_t flags,
                         const struct ob_wire_region_access *where, const uint8_t *data)
{
    struct model_flight *f;
    uint32_t kind = how & KIND;

    if (!(how & BY_RING))
        return false;
    if (w->nflights == MODEL_FLIGHTS || (kind != STAYS && w->nput < w->nflights))
        model_ring_collect(w);
    f = &w->flights[w->nflights];
    *f = (struct model_flight){ .command = { .flags = flags,
                                             .cmd = cmd,
                                             .region = where->region,
                                             .offset = where->offset,
                                             .count = where->count,
                                             .done = UNTOUCHED,
                                             .error = UNTOUCHED,
                                             .result = UNTOUCHED } };
    memcpy(&f->command.data, data, where->count);
    if (kind == BACK) {
        take_back(w);
        return true;
    }
    memcpy(f->data, data, where->count);
    f->rc = access_region(&w->m, where->region, where->offset, f->data, where->count,
                          cmd == OB_CMD_REGION_WRITE);
    w->nflights++;
    if (kind == STAYS)
        stay(w, how & LATE);
    else
        carry_out(w, f, kind == ASKED, how & LATE);
    return true;
}

static void set_polling(struct world *w, bool polls)
{
    w->polls = polls;
    (polls ? ob_ring_open : ob_ring_close)(w->server->session);
}

/* As the server's loop. Nothing that was put there stays when it sleeps. */
void model_step_poll(struct world *w, const struct model_command *c)
{
    set_polling(w, c->a & 1);
    if (w->polls)
        return;
    for (unsigned i = 0; i < LOOKS && ob_session_has_work(w->server->session); i++)
        CHECK_INT(ob_server_step(w->server), 0);
    check_all_done(w);
}

void model_ring_waits(struct world *w)
{
    static const struct ob_wire_region_access where = { 8, 0, 4 };
    static const uint8_t none[OB_RING_DATA];

    if (w->server->session->unmap.left == 0)
        return;
    model_ring_collect(w);
    through_ring(w, BY_RING | STAYS, OB_CMD_REGION_READ, 0, &where, none);
    w->stays = false;
    set_polling(w, w->ring_at & 1);
    look(w);
    CHECK_INT(ob_ring_entry(w->ring, w->ring_at - 1)->state, w->flights[0].command.state);
}

void model_ring_compare(struct world *w)
{
    uint32_t accepts = w->ring->accepts;

    CHECK_INT(accepts & OB_RING_OPEN, w->polls);
    if (w->polls)
        CHECK_INT(accepts >> 1, (uint16_t)(w->peer.next_id - FIRST_ID - w->strays));
    CHECK(ob_server_caught_up(w->server));
}

void model_attach(struct world *w)
{
    int fd = peer_attach_ring(&w->peer, w->server,
                              "{\"capabilities\":{\"max_msg_fds\":16,"
                              "\"access_ring\":{\"supported\":true}}}");

    w->ring = mmap(NULL, sizeof(*w->ring), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(w->ring != MAP_FAILED);
    close(fd);
    w->server->session->ring_at = w->ring_at = FIRST;
    for (uint32_t i = 0; i < OB_RING_ENTRIES; i++)
        ob_ring_entry(w->ring, FIRST + i)->state = ob_ring_turn(FIRST + i);
    w->polls = false;
    w->strays = 0;
}

/* What is in the ring is executed before the server lets the client go, and takes its memory; what
 * was written is compared later. */
void model_detach(struct world *w)
{
    peer_close(&w->peer);
    CHECK_INT(w->nput, w->nflights);
    w->nput = w->nflights = 0;
    munmap(w->ring, sizeof(*w->ring));
}

/* ---- Commands ------------------------------------------------------------------------------ */

static void fill(uint8_t *data, uint32_t count, uint32_t seed)
{
    for (uint32_t i = 0; i < count; i++)
        data[i] = (uint8_t)(seed * 31 + i);
}

/* Through the ring goes less at a time. */
static struct ob_wire_region_access where_of(const struct model_command *c, uint32_t most)
{
    return (struct ob_wire_region_access){ c->b % 9000, c->a % 6,
                                           1 + c->c % (c->d & BY_RING ? OB_RING_DATA : most) };
}

void model_step_read(struct world *w, const struct model_command *c)
{
    struct ob_wire_region_access at = where_of(c, 600);
    uint8_t data[600] = { 0 }, expected[600];
    int rc;

    if (through_ring(w, c->d, OB_CMD_REGION_READ, 0, &at, data))
        return;
    rc = access_region(&w->m, at.region, at.offset, expected, at.count, false);
    CHECK_INT(peer_read(&w->peer, at.region, at.offset, data, at.count), rc);
    if (rc == 0)
        CHECK_MEM(data, expected, at.count);
}

void model_step_write(struct world *w, const struct model_command *c)
{
    struct ob_wire_region_access at = where_of(c, 600);
    uint8_t data[600];

    fill(data, at.count, c->d);
    if (!through_ring(w, c->d, OB_CMD_REGION_WRITE, 0, &at, data))
        CHECK_INT(peer_write(&w->peer, at.region, at.offset, data, at.count),
                  access_region(&w->m, at.region, at.offset, data, at.count, true));
}

void model_step_post(struct world *w, const struct model_command *c)
{
    struct {
        struct ob_wire_region_access access;
        uint8_t data[8];
    } wire = { where_of(c, 8), { 0 } };

    fill(wire.data, wire.access.count, c->d);
    if (through_ring(w, c->d, OB_CMD_REGION_WRITE, OB_HDR_NO_REPLY, &wire.access, wire.data))
        return;
    peer_send(&w->peer, OB_CMD_REGION_WRITE, OB_HDR_NO_REPLY, &wire,
              sizeof(wire.access) + wire.access.count, NULL, 0);
    access_region(&w->m, wire.access.region, wire.access.offset, wire.data, wire.access.count,
                  true);
    CHECK(peer_silent(&w->peer));
}

void model_step_multi(struct world *w, const struct model_command *c)
{
    struct {
        struct ob_wire_write_multi head;
        struct ob_wire_write_multi_entry entries[2];
    } wire = { { 2 },
               { { c->b % 9000, c->a % 6, 1 + c->c % 8, { 0 } },
                 { c->b / 3 % 520, c->a / 6 % 4, 1 + c->c / 8 % 8, { 0 } } } };

    for (unsigned i = 0; i < 2; i++) {
        struct ob_wire_write_multi_entry *e = &wire.entries[i];

        fill(e->data, e->count, c->d + i);
        access_region(&w->m, e->region, e->offset, e->data, e->count, true);
    }
    peer_send(&w->peer, OB_CMD_REGION_WRITE_MULTI, OB_HDR_NO_REPLY, &wire, sizeof(wire), NULL, 0);
    CHECK(peer_silent(&w->peer));
}
