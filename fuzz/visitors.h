/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device's server, and what is connected to it: all in one thread. Who connects reads what the
 * server sends only when the input says so, and answers its DMA requests while it waits for that.
 */
#ifndef OB_FUZZ_VISITORS_H
#define OB_FUZZ_VISITORS_H

#include "channel/channel.h"
#include "devices/device.h"
#include "input.h"
#include "ring.h"

#define VISITORS    4u
#define IO_FDS      8u
#define ANSWERS_MAX 16u
#define VISITOR_JSON \
    "{\"capabilities\":{\"max_msg_fds\":16,\"write_multiple\":true,\"mapped_order\":true"

/* What becomes of a DMA request of the server. */
enum answer {
    ANSWER_RIGHT,
    ANSWER_ERROR,
    ANSWER_ERROR_0,
    ANSWER_SHORT,
    ANSWER_LONG,
    ANSWER_OTHER_ID,
    ANSWER_OTHER_COUNT,
    ANSWER_SILENCE,
    ANSWER_CLOSE,
    ANSWER_BEHIND_REQUEST, /* a request of our own goes first */
    ANSWER_BEHIND_ACCESS,  /* the same in the ring */
    ANSWERS
};

struct visitor {
    struct ob_channel main, twin; /* fd -1: there is none */
    struct end ring;
};

struct visitors {
    const struct ob_served *type;
    void *device;
    struct ob_server *server;
    struct sockaddr_un *address;
    struct visitor all[VISITORS];
    struct visitor *current;
    int io_fds[IO_FDS]; /* eventfds that the server gave away; -1: none */
    uint8_t answers[ANSWERS_MAX];
    unsigned nanswers, answered;
    /* while the server polls */
    unsigned polls; /* turns that are left; 0: the server does not poll */
    void (*turn)(void *opaque);
    void *turn_opaque;
};

/* Builds the device with this command line (NULL after the last) and has its server listen. */
void visitors_begin(struct visitors *v, const struct ob_served *type, const char *const *args);
/* The same; false when the device cannot be built, and says why. */
bool visitors_try(struct visitors *v, const struct ob_served *type, const char *const *args);
/* All leave; then one comes that behaves, and is served; check (may be NULL) may look at more while
 * it is there. Ends the server. */
void visitors_end(struct visitors *v, void (*check)(struct visitors *v));

/* One more comes, in place of the current one; it is the current one then. */
void visitor_connect(struct visitors *v, unsigned number);
void visitor_leave(struct visitor *visitor);
/* A well-formed VERSION. */
void visitor_greet(struct visitors *v, bool twin, bool ring);
/* Steps the server while it has something to do, so many times at most. */
void visitors_step(struct visitors *v, unsigned most);
/* Lets it run, and poll, until turn() was called so often: whenever the server looks at the clock,
 * or waits. The server is not stepped in there. */
void visitors_poll(struct visitors *v, unsigned turns, void (*turn)(void *opaque), void *opaque);
/* Reads all that the server has sent. The number of messages that were no commands. */
unsigned visitors_drain(struct visitors *v);
/* A request of the current one, and its reply: 0, or the server's errno, negative, or 1 when none
 * came. fd: -1, or sent along. *reply is the caller's to free after 0; reply may be NULL. */
int visitor_call(struct visitors *v, uint16_t cmd, const void *payload, uint32_t len, int fd,
                 struct ob_msg **reply);
/* An access to a region with up to 8 bytes. The same results. */
int visitor_write(struct visitors *v, uint32_t region, uint64_t offset, uint64_t value,
                  uint32_t count);
int visitor_read(struct visitors *v, uint32_t region, uint64_t offset, uint64_t *value,
                 uint32_t count);
/* A posted write of up to 8 bytes; the server is not stepped. */
void visitor_post(struct visitors *v, uint32_t region, uint64_t offset, uint64_t value,
                  uint32_t count);
int visitor_map(struct visitors *v, uint64_t address, uint64_t size, uint32_t flags, int fd,
                uint64_t offset);
int visitor_unmap(struct visitors *v, uint64_t address, uint64_t size);

/* Sets the migration state. */
int visitor_set_state(struct visitors *v, enum ob_mig_state state);
/* Stops the device and reads its state. Returns its bytes, at most size, or -1. */
int64_t visitor_save(struct visitors *v, uint8_t *out, size_t size);
/* Writes it, in pieces of that many bytes, and lets the device run. 0, or what failed. */
int visitor_load(struct visitors *v, const uint8_t *state, size_t len, uint32_t piece);

#endif
