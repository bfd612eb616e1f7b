/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device whose state is a row of bytes, and a client made of raw messages (peer.h) that migrates
 * it.
 */
#ifndef OB_TESTS_MIGRATING_H
#define OB_TESTS_MIGRATING_H

#include "harness.h"
#include "peer.h"

#define MIG_VALUE_BYTES 200000u
#define MIG_STREAM_MAX  (MIG_VALUE_BYTES + 65536u)
#define MIG_CLIENT      "{\"capabilities\":{\"migration\":{\"pgsize\":4096}}}"

struct mig_device {
    struct ob_server *server;
    uint8_t value[MIG_VALUE_BYTES], incoming[MIG_VALUE_BYTES];
    uint32_t pos;     /* of the transfer */
    char arcs[64];    /* that it went, as pairs of digits */
    int fail_to;      /* the transition to this state fails */
    uint32_t pre_len; /* bytes that it gives away while it runs */
    enum ob_mig_state state;
    unsigned rings; /* of its ioeventfd */
};

/* Serves it, and attaches the client. */
void mig_start(struct mig_device *d, struct peer *peer);
void mig_end(struct mig_device *d, struct peer *peer);

/* DEVICE_FEATURE with data of in bytes; the data of the answer, of out bytes. */
int mig_feature(struct peer *peer, uint32_t flags, const void *in, uint32_t in_len, void *out,
                uint32_t out_len);
int mig_set_state(struct peer *peer, uint32_t state);
unsigned mig_get_state(struct peer *peer);
/* Bytes that came, at most count; or the error. */
int64_t mig_read(struct peer *peer, uint8_t *data, uint32_t count);
int mig_write(struct peer *peer, const uint8_t *data, uint32_t count);
/* All of the stream, in pieces of this size. */
uint32_t mig_read_all(struct peer *peer, uint8_t *stream, uint32_t piece);

#endif
