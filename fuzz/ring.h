/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The other end of an access ring (channel/ring.h), for a server and for a client under test: what
 * it does rightly, and what a hostile process does to the memory that it shares. Nothing in it is
 * an address, so all of it may be anything.
 */
#ifndef OB_FUZZ_RING_H
#define OB_FUZZ_RING_H

#include "channel/ring.h"
#include "input.h"

struct end {
    struct ob_ring *ring; /* NULL: there is none */
    uint32_t at;          /* of the next command */
    bool wild;            /* this end has written what it must not */
};

/* What a client or a server does, a byte and what follows. */
enum ring_operation {
    RING_NEXT,  /* client: command (1 byte, see ring.c), region, offset, count, data (numbers);
                   server: error, result (numbers) */
    RING_ASK,   /* client: how many commands ago (1 byte) */
    RING_BACK,  /* client: the same: takes it back */
    RING_STATE, /* how many ago (1 byte), what is added to the state it should have (number) */
    RING_FIELD, /* offset in the entry, value (numbers), how many ago (1 byte), bytes as a power
                   of two (2 bits) */
    RING_BYTES, /* offset (number), length (1 byte), bytes */
    RING_SKIP,  /* what is added to at (number) */
    RING_OPEN,  /* accepts (number) */
    RING_AGAIN, /* the state of an entry as it is, once more for all of the others */
    RING_OPERATIONS
};

/* Maps the ring in this file; there is none when it cannot be mapped. */
void end_open(struct end *e, int fd);
void end_close(struct end *e);
/* A file as a server makes it. */
int end_make_file(void);

/* Puts a command into the ring, as a client does it. */
void end_put(struct end *e, const struct ob_ring_entry *command);
/* Whether there is a command for a server. */
bool end_has(const struct end *e);
/* Executes it, with that outcome. Whether it was asked for the answer; *command is what it was. */
bool end_serve(struct end *e, uint32_t error, uint64_t result, struct ob_ring_entry *command);

/* One operation, taken from the input. RING_NEXT is a client's or a server's. */
void end_act(struct end *e, struct input *in, bool client);

#endif
