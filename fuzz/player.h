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
    PLAY_OPERATIONS
};

struct player {
    struct input *in;
    struct ob_channel main, twin; /* fd -1: there is none (any more) */
    uint8_t greeting;
    bool eager; /* it answers rightly by itself, without the input */
    unsigned npending;
    struct {
        struct ob_wire_hdr hdr;
        uint8_t payload[64]; /* the start of it */
    } pending[PENDING_MAX];
};

void player_begin(struct player *p, struct input *in, uint8_t greeting);
/* The client's end of a new connection, in place of the one before. */
int player_connect(struct player *p);
void player_end(struct player *p);
/* Whether it did anything. */
bool player_turn(void *opaque);

#endif
