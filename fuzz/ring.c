/* SPDX-License-Identifier: BSD-3-Clause */
#include "ring.h"
#include "world.h"

#include "outboard/proto.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The byte of a client's RING_NEXT. */
enum {
    NEXT_READ = 0x01,
    NEXT_POSTED = 0x02,
    NEXT_ASKED = 0x04, /* at once */
    NEXT_LIES = 0x08,  /* the command and the flags are numbers, which follow */
};

void end_open(struct end *e, int fd)
{
    end_close(e);
    e->ring = mmap(NULL, sizeof(*e->ring), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (e->ring == MAP_FAILED)
        e->ring = NULL;
}

void end_close(struct end *e)
{
    if (e->ring)
        munmap(e->ring, sizeof(*e->ring));
    *e = (struct end){ 0 };
}

int end_make_file(void)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    HOLDS(fd >= 0 && ftruncate(fd, sizeof(struct ob_ring)) == 0);
    HOLDS(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
    return fd;
}

void end_put(struct end *e, const struct ob_ring_entry *command)
{
    struct ob_ring_entry *to = ob_ring_entry(e->ring, e->at);

    to->flags = command->flags;
    to->msg_id = command->msg_id;
    to->cmd = command->cmd;
    to->region = command->region;
    to->offset = command->offset;
    to->count = command->count;
    to->data = command->data;
    atomic_store(&to->state, ob_ring_turn(e->at++) + OB_RING_READY);
}

static uint32_t step_of(const struct end *e)
{
    return atomic_load(&ob_ring_entry(e->ring, e->at)->state) & ~(uint32_t)OB_RING_ASKED;
}

bool end_has(const struct end *e)
{
    return e->ring && (step_of(e) == ob_ring_turn(e->at) + OB_RING_READY ||
                       step_of(e) == ob_ring_next_turn(e->at));
}

bool end_serve(struct end *e, uint32_t error, uint64_t result, struct ob_ring_entry *command)
{
    struct ob_ring_entry *entry = ob_ring_entry(e->ring, e->at);
    uint32_t done = ob_ring_next_turn(e->at), state = atomic_load(&entry->state);

    e->at++;
    if ((state & ~(uint32_t)OB_RING_ASKED) == done)
        return false;
    memcpy(command, entry, sizeof(*command));
    entry->error = error;
    entry->result = result;
    atomic_store(&entry->done, done);
    atomic_store(&entry->state, done);
    return state & OB_RING_ASKED;
}

static void put_next(struct end *e, struct input *in)
{
    uint8_t how = input_u8(in);
    struct ob_ring_entry command = { .msg_id = (uint16_t)e->at,
                                     .cmd =
                                         how & NEXT_READ ? OB_CMD_REGION_READ : OB_CMD_REGION_WRITE,
                                     .flags = how & NEXT_POSTED ? OB_HDR_NO_REPLY : 0 };

    if (how & NEXT_LIES) {
        command.cmd = (uint16_t)input_number(in);
        command.flags = (uint32_t)input_number(in);
    }
    command.region = (uint32_t)input_number(in);
    command.offset = input_number(in);
    command.count = (uint32_t)input_number(in);
    command.count = command.count ? command.count : 4;
    command.data = input_number(in);
    end_put(e, &command);
    if (how & NEXT_ASKED)
        atomic_fetch_or(&ob_ring_entry(e->ring, e->at - 1)->state, OB_RING_ASKED);
}

static void write_field(struct end *e, struct input *in)
{
    uint64_t at = input_number(in), value = input_number(in);
    struct ob_ring_entry *entry = ob_ring_entry(e->ring, e->at - input_u8(in));
    size_t len = (size_t)1 << (input_u8(in) & 3);

    memcpy((uint8_t *)entry + at % (sizeof(*entry) - len + 1), &value, len);
}

static void write_bytes(struct end *e, struct input *in)
{
    uint64_t at = input_number(in) % sizeof(*e->ring);
    size_t len = input_u8(in);
    const uint8_t *bytes = input_take(in, &len);

    if (len > sizeof(*e->ring) - at)
        len = sizeof(*e->ring) - at;
    if (len)
        memcpy((uint8_t *)e->ring + at, bytes, len);
}

/* The memory of one command of so many ago, in all entries: a ring that seems full. */
static void repeat(struct end *e)
{
    struct ob_ring_entry *from = ob_ring_entry(e->ring, e->at - 1);

    for (uint32_t i = 0; i < OB_RING_ENTRIES - 1; i++) {
        struct ob_ring_entry *to = ob_ring_entry(e->ring, e->at + i);

        memcpy(to, from, sizeof(*to));
        atomic_store(&to->state, ob_ring_turn(e->at + i) + (atomic_load(&from->state) & 7));
    }
}

void end_act(struct end *e, struct input *in, bool client)
{
    enum ring_operation op = (enum ring_operation)(input_u8(in) % RING_OPERATIONS);
    struct ob_ring_entry command, *entry;
    uint32_t at, state;

    if (!e->ring)
        return;
    e->wild |= op != RING_NEXT;
    switch (op) {
    case RING_NEXT:
        if (client) {
            put_next(e, in);
        } else {
            uint32_t error = (uint32_t)input_number(in);

            end_serve(e, error, input_number(in), &command);
        }
        return;
    case RING_FIELD:
        write_field(e, in);
        return;
    case RING_BYTES:
        write_bytes(e, in);
        return;
    case RING_SKIP:
        e->at += (uint32_t)input_number(in);
        return;
    case RING_OPEN:
        atomic_store(&e->ring->accepts, (uint32_t)input_number(in));
        return;
    case RING_AGAIN:
        repeat(e);
        return;
    default:
        break;
    }
    at = e->at - 1 - input_u8(in);
    entry = ob_ring_entry(e->ring, at);
    state = ob_ring_turn(at) + OB_RING_READY;
    if (op == RING_ASK)
        atomic_fetch_or(&entry->state, OB_RING_ASKED);
    else if (op == RING_BACK)
        atomic_compare_exchange_strong(&entry->state, &state, ob_ring_next_turn(at));
    else
        atomic_store(&entry->state, ob_ring_turn(at) + (uint32_t)input_number(in));
}
