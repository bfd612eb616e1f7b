/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The ring: accesses to registers that need no system call while the server polls. Rules: R-RING-1
 * to R-RING-9 in docs/protocol.md.
 *
 * Theory. It is memory of both sides, made by the server for one connection. While the server polls
 * it says in `accepts` how many commands it has executed of those that came over the main socket.
 * As long as that is all that the client has sent, the client may put a command into the next entry
 * in place of the socket; so there is one order of all commands. A server that goes to sleep takes
 * `accepts` back first, and then looks at the ring once more; a client looks at `accepts` once more
 * after it has put a command there. One of both sees what the other did: either the server has the
 * command, or the client takes it back and sends it over the socket. Nobody is ever woken by it.
 *
 * A client that does not want to poll for the result any longer asks for the answer: then it comes
 * over the socket, like that of a message.
 *
 *   state of an entry            set by  leaves for
 *   FREE of its turn             (both)  READY     client, after the rest of the entry
 *   READY                        client  TAKEN     server, which then executes the command
 *                                        FREE      client: of the next turn, it was taken back
 *   TAKEN                        server  FREE      server: of the next turn; it is done
 * OB_RING_ASKED is added by the client while it is READY or TAKEN. An entry's turn is how often it
 * was used, so that nothing of the turn before can be taken for a new command.
 *
 * Either side may find anything there, at any time: each field is read once, nothing in it is an
 * address or an index, and no loop goes on for as long as the other side likes. What a side lies
 * about can only make it lose its own commands, or results. The result has a cache line of its own:
 * the client polls that one, and does not hold up the server in the other. Tests: test-*ring.c.
 */
#ifndef OB_RING_H
#define OB_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define OB_RING_ENTRIES 256u
#define OB_RING_DATA    8u /* bytes that an access may have */

#define OB_RING_OPEN 1u /* in accepts: the server polls; above it the commands it has executed */

enum {
    OB_RING_FREE,
    OB_RING_READY,
    OB_RING_TAKEN,
    OB_RING_STEP_MASK,
    OB_RING_ASKED,
    OB_RING_TURN = 8, /* the unit in which turns are counted */
};

struct ob_ring_entry {
    _Atomic uint32_t state;
    uint32_t flags; /* OB_HDR_NO_REPLY: posted */
    uint16_t msg_id;
    uint16_t cmd; /* REGION_READ or REGION_WRITE */
    uint32_t region;
    uint64_t offset;
    uint32_t count; /* 1 to OB_RING_DATA */
    uint32_t reserved;
    uint64_t data; /* of a write: its first count bytes, in the order of memory */
    uint8_t pad[24];
    /* written by the server */
    _Atomic uint32_t done; /* what state is when the command is done, once the rest is there */
    uint32_t error;        /* 0, or as in a header */
    uint64_t result;       /* of a read, likewise */
    uint8_t pad2[48];
};

struct ob_ring {
    _Atomic uint32_t accepts;
    uint8_t pad[4092];
    struct ob_ring_entry entries[OB_RING_ENTRIES];
};

_Static_assert(sizeof(struct ob_ring_entry) == 128, "two cache lines");
_Static_assert(sizeof(struct ob_ring) == 36864, "whole pages");

/* The entry of the at-th command; its state before that is there, and when it is done. */
static inline struct ob_ring_entry *ob_ring_entry(struct ob_ring *ring, uint32_t at)
{
    return &ring->entries[at % OB_RING_ENTRIES];
}

static inline uint32_t ob_ring_turn(uint32_t at)
{
    return at / OB_RING_ENTRIES * OB_RING_TURN;
}

static inline uint32_t ob_ring_next_turn(uint32_t at)
{
    return ob_ring_turn(at + OB_RING_ENTRIES); /* at may begin again at 0, and so does the turn */
}

/* What can change at any moment is read, or written, once. */
#define OB_RING_GET(field)        __atomic_load_n(&(field), __ATOMIC_RELAXED)
#define OB_RING_PUT(field, value) __atomic_store_n(&(field), value, __ATOMIC_RELAXED)

/* Between two looks. */
static inline void ob_ring_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
