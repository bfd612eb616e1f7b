/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device of `outboard serve` and a client of it in one test program: the server runs in a thread,
 * the two talk over a socketpair.
 */
#ifndef OB_TESTS_SERVED_H
#define OB_TESTS_SERVED_H

#include <pthread.h>

#include "devices/device.h"
#include "outboard/client.h"

struct served {
    const struct ob_served *type;
    void *device;
    struct ob_server *server;
    pthread_t thread;
    struct ob_client *client;
};

/* args: the device's own command line, NULL after the last; may be NULL. options: may be NULL. */
void served_start(struct served *served, const struct ob_served *type, const char *const *args,
                  const struct ob_client_options *options);
/* Ends the connection, which ends the server. */
void served_stop(struct served *served);

/* Fails unless create() refuses args with this status and this sentence. */
void served_refuses(const struct ob_served *type, const char *const *args, int status,
                    const char *sentence);

/* A register of 1 to 8 bytes in a BAR. */
uint64_t served_read(struct served *served, uint32_t region, uint64_t offset, uint32_t count);
void served_write(struct served *served, uint32_t region, uint64_t offset, uint32_t count,
                  uint64_t value);

/* An eventfd for vector 0 of the IRQ index; closed by the caller. */
int served_irq(struct served *served, uint32_t index);
/* Whether the eventfd was signalled, and takes the signal; waits up to timeout_ms for it. */
bool served_signalled(int fd, int timeout_ms);

#endif
