/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A message in an input: its fixed part by the message table, a number for each field, so that what
 * is changed about it is a message still; and everything that can be wrong about one.
 *
 *   command (1 byte), how (1 byte, set of MESSAGE_*), then as how says
 *     LIES   type and flags (number), id (number), what is added to msg_size (number)
 *     FDS    how many (number), the kinds of the first four (1 byte each, see kinds.h)
 *     SPLIT  the bytes that go first (number)
 *     RAW    the payload: length (number), bytes; else a number for each field, and then
 *     MORE   what follows the fixed part: length (number), bytes
 *
 * A field that is 0 gets the value that fits: argsz the length, count and size that of what
 * follows; in a reply, what the request had there.
 */
#ifndef OB_FUZZ_MESSAGE_H
#define OB_FUZZ_MESSAGE_H

#include "input.h"
#include "outboard/proto.h"

enum {
    MESSAGE_POSTED = 0x01,
    MESSAGE_LIES = 0x02,
    MESSAGE_FDS = 0x04,
    MESSAGE_SPLIT = 0x08,
    MESSAGE_MORE = 0x10,
    MESSAGE_RAW = 0x20,
    MESSAGE_AT_ONCE = 0x40, /* nobody else has a turn after it */
    MESSAGE_TWIN = 0x80,    /* over the second socket */
};

#define MESSAGE_KINDS 4u

struct message {
    uint8_t how;
    struct ob_wire_hdr hdr;
    uint32_t len; /* of the payload; hdr.msg_size may say otherwise */
    uint32_t split;
    unsigned nfds;
    uint8_t kinds[MESSAGE_KINDS];
    uint8_t payload[OB_PAYLOAD_MAX + 4096];
};

/* request: what it answers; NULL: it is a command. */
void message_take(struct input *in, const struct message *request, struct message *out);
/* Writes a message so that message_take() reads it, after what is in w; the fds are of that kind.
 * What does not fit the table is written RAW. */
void message_put(struct ob_writer *w, const struct ob_wire_hdr *hdr, const uint8_t *payload,
                 uint32_t len, unsigned nfds, uint8_t kind, uint8_t how);
/* Sends it, as far as the socket takes it, each half with one call; fds (those of the message)
 * along with the first. turn() is the other side's, between the halves. */
void message_send(int sock, struct message *msg, const int *fds, void (*turn)(void *opaque),
                  void *opaque);

#endif
