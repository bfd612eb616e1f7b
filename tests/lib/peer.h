/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client made of raw messages, for tests of the server. It steps the server itself while it
 * waits, all in one thread, so that a case decides what happens when. Where the server waits too
 * (message DMA) it runs in a thread of its own, and the peer has no server to step.
 */
#ifndef OB_TESTS_PEER_H
#define OB_TESTS_PEER_H

#include "channel/channel.h"
#include "outboard/server.h"

struct peer {
    struct ob_server *server; /* stepped while waiting; NULL: it runs elsewhere */
    struct ob_channel ch;
    uint16_t next_id;
};

/* Steps the server until it has nothing to do. */
void peer_settle(struct ob_server *server);
/* A server that listens in test_tmpdir(). */
struct ob_server *peer_server_new(const struct ob_server_ops *ops, void *opaque);
const char *peer_socket_path(void);

/* Connects to that server. */
void peer_connect(struct peer *peer, struct ob_server *server);
void peer_adopt(struct peer *peer, struct ob_server *server, int fd);
/* VERSION with this JSON (NULL: none); returns what peer_call() returns. */
int peer_negotiate(struct peer *peer, const char *json);
/* Both, and it must succeed. */
void peer_attach(struct peer *peer, struct ob_server *server);
/* The same with this JSON; returns the access ring's file, or -1 where the server gives none. */
int peer_attach_ring(struct peer *peer, struct ob_server *server, const char *json);
void peer_close(struct peer *peer);

/* Queues a message; returns its id. */
uint16_t peer_send(struct peer *peer, uint16_t cmd, uint32_t flags, const void *payload, size_t len,
                   const int *fds, unsigned nfds);
/* Bytes as they are, at once. */
void peer_send_raw(struct peer *peer, const void *data, size_t len);
/* The next message, which must come within a few seconds. */
struct ob_msg *peer_receive(struct peer *peer);
/* There is no message, and none comes while the server still has something to do. */
bool peer_silent(struct peer *peer);
/* The server closes the connection; messages before that are dropped. */
void peer_expect_close(struct peer *peer);

/*
 * A request and its reply: 0, or the error as a negative errno. The reply is returned in *reply,
 * the caller's, when that is not NULL.
 */
int peer_call_fds(struct peer *peer, uint16_t cmd, const void *payload, size_t len, const int *fds,
                  unsigned nfds, struct ob_msg **reply);
int peer_call(struct peer *peer, uint16_t cmd, const void *payload, size_t len,
              struct ob_msg **reply);

/* Common requests. */
int peer_read(struct peer *peer, uint32_t region, uint64_t offset, void *data, uint32_t count);
int peer_write(struct peer *peer, uint32_t region, uint64_t offset, const void *data,
               uint32_t count);
uint32_t peer_read32(struct peer *peer, uint32_t region, uint64_t offset);
void peer_write32(struct peer *peer, uint32_t region, uint64_t offset, uint32_t value);
int peer_map(struct peer *peer, uint64_t address, uint64_t size, uint32_t flags, int fd,
             uint64_t offset);
int peer_unmap(struct peer *peer, uint64_t address, uint64_t size, uint32_t flags);
int peer_set_irqs(struct peer *peer, uint32_t index, uint32_t flags, uint32_t start, uint32_t count,
                  const uint8_t *bools, const int *fds, unsigned nfds);

/* A posted write of 4 bytes to region 0. */
void peer_post32(struct peer *peer, uint64_t offset, uint32_t value);

/* A device that is nothing but memory (region 0), for cases that need any device. */
struct memory_device {
    uint8_t memory[4096];
    int attached, left; /* how often a client has */
    unsigned writes;
    char log[256]; /* the last line */
};

/* The server of it, not offered yet; and one that listens as peer_server_new()'s does. */
struct ob_server *memory_device_server(struct memory_device *device);
struct ob_server *memory_device_listen(struct memory_device *device);

/* A memory file of that size. */
int peer_memfd(uint64_t size);
/* The counter of a non-blocking eventfd, taken; 0 when it was not signalled. */
uint64_t peer_eventfd_take(int fd);

#endif
