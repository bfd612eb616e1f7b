/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Messages with a pattern in them, sent and received byte by byte or through a channel, and
 * faults: a program that is linked with this one can make each call of sendmsg(), recvmsg(),
 * ppoll() and of the allocator fail (tests/meson.build has the linker do that).
 */
#ifndef OB_TESTS_WIRE_H
#define OB_TESTS_WIRE_H

#include "channel/channel.h"
#include "harness.h"

enum fault {
    NO_FAULT,
    FAULT_EINTR,
    FAULT_EAGAIN,
    FAULT_SHORT,
    FAULT_RESET,
    FAULTS,
    FAULT_NOBUFS, /* the kernel has no memory for it */
    FAULT_ENDLESS /* of recvmsg(): from then on a peer that always has more */
};

/* The countdown-th call from now has the fault; 0: none has. */
struct plan {
    unsigned countdown;
    enum fault fault;
    unsigned calls;
};
extern struct plan send_plan, recv_plan, poll_plan, alloc_plan;

#define HDR sizeof(struct ob_wire_hdr)

/* A channel, and the plain socket at its other end. */
struct pair {
    struct ob_channel ch;
    int raw;
};

void open_pair(struct pair *p, uint32_t payload_max);
void close_pair(struct pair *p);
/* A descriptor to be sent. */
int open_memory(void);

/* Byte i of the payload of message id. */
uint8_t pattern(unsigned id, size_t i);
/* A whole message in buf; returns its length. */
size_t make_msg(uint8_t *buf, uint16_t id, uint32_t payload);
void check_msg(const struct ob_msg *msg, uint16_t id, uint32_t payload, unsigned nfds);

/* One sendmsg() without faults. */
void send_raw(int sock, const void *data, size_t len, const int *fds, unsigned nfds);
/* The next message is that one; there is none. */
void expect(struct pair *p, uint16_t id, uint32_t payload, unsigned nfds);
void expect_nothing(struct pair *p);

#endif
