/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device of our own in a child process, for what only a device can measure: it shares memory
 * with us, and does as its one register is told. Our memory is not shared with it for DMA.
 */
#ifndef OB_BENCH_OWN_H
#define OB_BENCH_OWN_H

#include <sched.h>
#include <stdint.h>
#include <sys/types.h>

#include "outboard/client.h"

#define OWN_VALUES 4096u

/* What a write to the register makes the device do; the value is 4 bytes, argument << 8 | this. */
enum own_command {
    OWN_STALL,   /* sleep for so many milliseconds, as a server that lags */
    OWN_NEXT,    /* take it in: the argument is one more than the last time */
    OWN_READ,    /* DMA of so many KiB from the client, OWN_READ and back */
    OWN_TRIGGER, /* interrupt */
};

/* Written by the device's process. */
struct own_shared {
    double values[OWN_VALUES]; /* OWN_READ: ns each took */
    uint32_t nvalues;
    int error;                   /* the first failure of DMA */
    uint32_t last, out_of_order; /* OWN_NEXT */
    double first_ns, last_ns;    /* ... when the first and last came since OWN_STALL */
    volatile double triggered_ns;
};

struct own {
    struct ob_client *client;
    struct own_shared *shared;
    uint8_t *ram; /* of the client */
    pid_t pid;
};

/* Both ends may spin for spin_us. server_cpus may be NULL. 0, or the library's error. */
int own_start(struct own *own, unsigned spin_us, const cpu_set_t *server_cpus);
void own_stop(struct own *own);
int own_tell(struct own *own, enum own_command command, uint32_t argument);
int own_post(struct own *own, enum own_command command, uint32_t argument);

#endif
