/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The access ring as docs/protocol.md lays it out. Not the library's own description of it: so a
 * mistake in one shows against the other. Every field may change at any moment.
 */
#ifndef OB_CONFORMANCE_RING_H
#define OB_CONFORMANCE_RING_H

#include <stdatomic.h>

#include "conformance/test.h"

#define RING_ENTRIES 256u
#define RING_DATA    8u
#define RING_POLLS   1u /* in accepts, whose other bits count */

/* Steps in a state, and what is added to them. */
enum { RING_FREE, RING_READY, RING_TAKEN, RING_STEPS, RING_ASKED, RING_TURN = 8 };

struct ring_entry {
    _Atomic uint32_t state, flags;
    _Atomic uint16_t msg_id, cmd;
    _Atomic uint32_t region;
    _Atomic uint64_t offset;
    _Atomic uint32_t count, reserved;
    _Atomic uint64_t data;
    uint64_t pad[3];
    _Atomic uint32_t done, error;
    _Atomic uint64_t result;
    uint64_t pad2[6];
};

struct ring {
    _Atomic uint32_t accepts;
    uint8_t pad[4092];
    struct ring_entry entries[RING_ENTRIES];
};

_Static_assert(sizeof(struct ring) == 36864, "as in the document");

static inline struct ring_entry *ring_entry(struct ring *ring, uint32_t at)
{
    return &ring->entries[at % RING_ENTRIES];
}

/* The state of the entry of command number at before it is there, and when it is done. */
static inline uint32_t ring_before(uint32_t at)
{
    return at / RING_ENTRIES * RING_TURN;
}

static inline uint32_t ring_after(uint32_t at)
{
    return ring_before(at + RING_ENTRIES);
}

/* ---- The client's end (ring.c) -------------------------------------------------------------- */

#define RING_ID       0x7ead /* of all commands there */
#define RING_ASK(fds) TEST_CAPS("\"max_msg_fds\":" fds ",\"access_ring\":{\"supported\":true}")

struct ring_command {
    uint32_t flags, region, count;
    uint16_t cmd;
    uint64_t offset, data;
    uint32_t asked; /* RING_ASKED */
};

/* The ring of the case. */
extern struct ring_use {
    struct ring *ring;
    uint32_t base, at; /* commands sent before it was there; those that were put into it */
    bool woken;        /* the reply to this request has not been received */
    uint16_t id;
    int64_t until_ns; /* a server that does not poll until then never does */
} ring_use;

/* The descriptor that comes with the reply to a VERSION that asks for the ring; -1: none. */
int ring_ask(struct test *t, const char *json);
/* Negotiates for it, and checks what it is. A server, or device, without is not offered. */
void ring_use_begin(struct test *t);
/* Whether the server polls and has executed all that was sent. */
bool ring_is_open(const struct test *t);
/* Has it poll; that a server never does is not offered. ring_hear() is due. */
void ring_open(struct test *t);
/* Sends a request, and returns when the server polls, or does not in spite of that. */
void ring_wake(struct test *t);
/* Receives the reply to it. */
void ring_hear(struct test *t);
/* All of an entry but its state. */
void ring_fill(struct ring_entry *e, const struct ring_command *c);
/* False: it was taken back, since the server did not poll any more. */
bool ring_try(struct test *t, const struct ring_command *c);
/* The same until it is there, and heard. */
void ring_put(struct test *t, const struct ring_command *c);
/* Waits until the last command is done, which leaves what it must. */
struct ring_entry *ring_wait(struct test *t);
/* Both; returns the errno. */
uint32_t ring_execute(struct test *t, const struct ring_command *c);

#endif
