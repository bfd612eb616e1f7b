/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A vfio-user server that does what a test says, byte by byte. It runs in a thread of its own and
 * reads and writes its socket without any code of the library, so that it can also lie.
 */
#ifndef OB_TESTS_SCRIPTED_H
#define OB_TESTS_SCRIPTED_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "outboard/client.h"

#define PEER_FDS_MAX 32

struct peer_msg {
    struct ob_wire_hdr hdr;
    uint8_t payload[OB_PAYLOAD_MAX];
    uint32_t len;
    int fds[PEER_FDS_MAX];
    unsigned nfds;
};

struct peer {
    int fd;
    struct ob_client *client;
    void (*script)(struct peer *peer);
    void (*before_connect)(struct peer *peer); /* called in the client's thread; may be NULL */
    const char *json;                          /* of the negotiation; NULL: "{}" */
    const int *version_fds;                    /* sent along with it */
    unsigned version_nfds;
    atomic_int lost; /* how often the client's lost callback ran */
    char why[256];   /* what it was told */
    void *arg;
    struct peer_msg *msg; /* the last one received */
    pthread_t thread;
};

/*
 * Connects a client to a server that negotiates and then runs script. opt may be NULL; its lost
 * and opaque are set here (opaque is the peer). The script's end closes the connection.
 */
void peer_start(struct peer *peer, void (*script)(struct peer *peer),
                const struct ob_client_options *opt);
/* The same, but returns what ob_client_connect_fd() does; peer->client is NULL on failure. */
int peer_try_start(struct peer *peer, void (*script)(struct peer *peer),
                   const struct ob_client_options *opt);
/* Waits for the script's end, frees the client. */
void peer_stop(struct peer *peer);
/* Waits until the script has ended, so that the connection is closed; the client stays. */
void peer_join(struct peer *peer);

/* Receives the next message into peer->msg; false when the client has closed the connection. */
bool peer_recv(struct peer *peer);
/* The same, and it must be this command (or reply). */
void peer_expect(struct peer *peer, uint16_t cmd);
void peer_expect_reply(struct peer *peer, uint16_t cmd, uint16_t id);
/* Closes the fds of peer->msg. */
void peer_close_fds(struct peer *peer);
/* Serves until the client closes the connection: answers everything with zeroes. */
void peer_serve(struct peer *peer);

void peer_write(struct peer *peer, const void *data, size_t len);
void peer_send(struct peer *peer, const struct ob_wire_hdr *hdr, const void *data, uint32_t len,
               const int *fds, unsigned nfds);
/* Answers peer->msg. */
void peer_reply(struct peer *peer, const void *data, uint32_t len);
void peer_reply_fds(struct peer *peer, const void *data, uint32_t len, const int *fds,
                    unsigned nfds);
void peer_error(struct peer *peer, uint32_t error_no);
/* Answers a REGION_READ with these bytes, or a REGION_WRITE. */
void peer_reply_access(struct peer *peer, const void *data);

/* A REGION_READ or REGION_WRITE to answer later, when peer->msg is another message. */
struct peer_access {
    struct ob_wire_hdr hdr;
    struct ob_wire_region_access access;
};

struct peer_access peer_keep(struct peer *peer);
void peer_answer(struct peer *peer, const struct peer_access *kept, const void *data);

/* Sends DMA_READ or DMA_WRITE (data). */
void peer_dma(struct peer *peer, uint16_t id, uint16_t cmd, uint64_t address, uint64_t count,
              const void *data, uint32_t flags);

/* A script: a REGION_READ is answered with DMA_READs of all that can be asked for, until the
 * client, whose answers nobody reads, hangs up. */
void peer_take_no_answers(struct peer *peer);

/* The fixed part of the payload of peer->msg, as type. */
#define PEER_GET(peer, type)                               \
    ({                                                     \
        type got_;                                         \
        CHECK((peer)->msg->len >= sizeof(got_));           \
        memcpy(&got_, (peer)->msg->payload, sizeof(got_)); \
        got_;                                              \
    })

#endif
