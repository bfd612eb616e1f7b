/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A server that does what the input says. It has its turn when the client waits, or is told to, and
 * takes an operation from the input for it: so requests, replies and the server's own commands
 * cross in whatever way the input wants. When the input has ended it is silent.
 */
#ifndef OB_FUZZ_PLAYER_H
#define OB_FUZZ_PLAYER_H

#include "channel/channel.h"
#include "message.h"
#include "ring.h"

#define PENDING_MAX 8u

/* Of the server's VERSION reply, when it makes a good one itself. */
enum {
    GREET_ITSELF = 0x01,
    GREET_TWIN = 0x02,
    GREET_MULTI = 0x04,
    GREET_MIGRATION = 0x08,
    GREET_FEW_FDS = 0x10,
    GREET_SMALL = 0x20, /* takes 100 bytes in a message */
    GREET_PAGES = 0x40, /* of 64 KiB */
    GREET_DEVICE =
        0x80, /* the reply that fits to a question for the device is that of one device */
};

/* What the server does about a command in the ring, while the client polls: a byte each. */
enum player_access {
    ACCESS_DONE, /* its result is its offset */
    ACCESS_LATER,
    ACCESS_WITH, /* errno, result (numbers) */
    ACCESS_SHUT, /* it polls no more, when this is done */
    ACCESS_RING, /* ring.h */
    ACCESS_TURN, /* as when the client waits */
    ACCESSES
};

enum player_operation {
    PLAY_RIGHT,  /* the reply that fits, to the oldest request */
    PLAY_REPLY,  /* message.h, to the oldest */
    PLAY_NEWEST, /* the same, to the newest */
    PLAY_ALL,    /* the reply that fits, to all of them */
    PLAY_ERROR,  /* errno (number), to the oldest */
    PLAY_COMMAND,
    PLAY_RAW,     /* length (1 byte), bytes; bit 7 of the length: over the twin */
    PLAY_SILENCE, /* until the client's deadline */
    PLAY_CLOSE,   /* the twin (bit 0), only for writing (bit 1) */
    PLAY_REGION,  /* the reply to GET_REGION_INFO: flags, size, offset in the fd, number of areas,
                     their offsets and sizes (numbers), kind of fd (1 byte) */
    PLAY_IO_FDS,  /* the reply to GET_REGION_IO_FDS: count, offset, size, fd index, type, flags,
                     datamatch for each (numbers), how many fds (number), their kind (1 byte) */
    PLAY_ACCESS,  /* executes a command of the ring */
    PLAY_RING,    /* ring.h */
    PLAY_OPEN,    /* whether the server polls (bit 0), from now on */
    PLAY_OPERATIONS
};

struct player {
    struct input *in;
    struct ob_channel main, twin; /* fd -1: there is none (any more) */
    uint8_t greeting;
    bool eager; /* it answers rightly by itself, without the input */
    bool offers_ring;
    uint8_t ring_how; /* set of RING_* */
    struct end ring;
    bool polls;
    uint32_t taken; /* commands that came over the main socket, after VERSION */
    unsigned npending;
    struct {
        struct ob_wire_hdr hdr;
        uint8_t payload[64]; /* the start of it */
    } pending[PENDING_MAX];
};

/* The byte that a server that offers a ring takes from the input with each VERSION. */
enum {
    RING_KIND = 0x1f,  /* that kind of fd in its place; from KINDS on: the ring */
    RING_INDEX = 0x20, /* the index is one too many */
    RING_POLLS = 0x40, /* it polls from the start */
};

void player_begin(struct player *p, struct input *in, uint8_t greeting);
/* The client's end of a new connection, in place of the one before. */
int player_connect(struct player *p);
void player_end(struct player *p);
/* Whether it did anything. */
bool player_turn(void *opaque);
/* Over the socket that the message wants. */
void player_send(struct player *p, struct message *msg);

/* Its end of the ring (player_ring.c). The server counts a command of the main socket. */
void player_note_taken(struct player *p);
/* What comes with the reply to VERSION. How many fds there are now. */
unsigned player_add_ring(struct player *p, struct ob_caps *caps, int *fds, unsigned nfds);
/* Executes the next command. The reply goes over the socket if that was asked for.
 * result NULL: its offset. */
void player_serve_ring(struct player *p, uint32_t error, const uint64_t *result);
void player_change_polls(struct player *p, bool polls);
/* The client looks at the clock. */
void player_tick(void *opaque);

#endif
