/* SPDX-License-Identifier: BSD-3-Clause */
/* The player's end of the access ring. */
#include "player.h"
#include "kinds.h"
#include "world.h"

#include <string.h>
#include <unistd.h>

/* As a server counts. */
static void say_accepts(struct player *p)
{
    if (p->ring.ring)
        atomic_store(&p->ring.ring->accepts, p->taken << 1 | p->polls);
}

void player_note_taken(struct player *p)
{
    p->taken++;
    if (p->polls)
        say_accepts(p);
}

unsigned player_add_ring(struct player *p, struct ob_caps *caps, int *fds, unsigned nfds)
{
    uint8_t how = input_u8(p->in);
    int fd = end_make_file();

    end_open(&p->ring, fd);
    HOLDS(p->ring.ring);
    if ((how & RING_KIND) < KINDS) {
        close(fd);
        fd = dup(kind_fd(how & RING_KIND));
    }
    fds[nfds] = fd;
    caps->ring = true;
    caps->ring_fd_index = (int)nfds + ((how & RING_INDEX) != 0);
    p->polls = how & RING_POLLS;
    say_accepts(p);
    return nfds + 1;
}

void player_serve_ring(struct player *p, uint32_t error, const uint64_t *result)
{
    static struct message reply;
    struct ob_ring_entry command = { .cmd = 0 };
    const struct ob_ring_entry *e = ob_ring_entry(p->ring.ring, p->ring.at);
    struct ob_wire_region_access where = { 0 };
    bool asked = end_serve(&p->ring, error, result ? *result : OB_RING_GET(e->offset), &command);

    if (command.cmd == 0) /* it was taken back */
        return;
    where = (struct ob_wire_region_access){ command.offset, command.region, command.count };
    if (!p->ring.wild) {
        HOLDS(command.cmd == OB_CMD_REGION_READ || command.cmd == OB_CMD_REGION_WRITE);
        HOLDS(command.count > 0 && command.count <= OB_RING_DATA);
        HOLDS((command.flags & ~(uint32_t)OB_HDR_NO_REPLY) == OB_HDR_COMMAND);
    }
    if (!asked || (command.flags & OB_HDR_NO_REPLY) || p->main.fd < 0)
        return;
    reply.hdr = (struct ob_wire_hdr){ .msg_id = command.msg_id,
                                      .cmd = command.cmd,
                                      .flags = OB_HDR_REPLY | (error ? OB_HDR_ERROR : 0),
                                      .error_no = error };
    memset(reply.payload, 0, sizeof(where) + OB_RING_DATA);
    memcpy(reply.payload, &where, sizeof(where));
    reply.len = error ? 0 : sizeof(where);
    if (!error && command.cmd == OB_CMD_REGION_READ)
        reply.len += command.count % (OB_RING_DATA + 1);
    reply.hdr.msg_size = (uint32_t)sizeof(reply.hdr) + reply.len;
    player_send(p, &reply);
}

void player_change_polls(struct player *p, bool polls)
{
    p->polls = polls;
    say_accepts(p);
}

void player_tick(void *opaque)
{
    struct player *p = opaque;
    uint64_t result;
    uint32_t error;

    if (!end_has(&p->ring) || !input_left(p->in))
        return;
    switch ((enum player_access)(input_u8(p->in) % ACCESSES)) {
    case ACCESS_LATER:
        break;
    case ACCESS_WITH:
        error = (uint32_t)input_number(p->in);
        result = input_number(p->in);
        player_serve_ring(p, error, &result);
        break;
    case ACCESS_SHUT:
        player_change_polls(p, false);
        player_serve_ring(p, 0, NULL);
        break;
    case ACCESS_RING:
        end_act(&p->ring, p->in, false);
        break;
    case ACCESS_TURN:
        player_turn(p);
        break;
    default:
        player_serve_ring(p, 0, NULL);
    }
}
