/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client whose server is killed and started again, on the same socket path. The server is a
 * process of its own; what its device has seen, and what it is to be next, is in shared memory.
 */
#ifndef OB_TESTS_RESTARTED_H
#define OB_TESTS_RESTARTED_H

#include <stdatomic.h>
#include <sys/types.h>

#include "outboard/client.h"
#include "outboard/pci.h"

#define BAR_SIZE  4096u
#define REG_FIRE  0x10u /* write: triggers that MSI-X vector */
#define REG_FETCH 0x18u /* write: reads the memory at that address into `fetched` */
#define REG_HOLD  0x20u /* write: uses the memory at that address from now on */
#define REG_EVENT 0x28u /* write: by eventfd */
#define REG_DATA  0x40u /* from here on: registers, logged */
#define VECTORS   4u
#define LOG_MAX   4096u

struct shared {
    /* what the device has seen, over all its lives */
    atomic_uint nlog, resets, clients;
    struct {
        uint32_t offset, value;
    } log[LOG_MAX];
    uint32_t regs[BAR_SIZE / 4];
    _Atomic uint64_t fetched;
    atomic_int fetch_rc;
    /* what it is */
    uint16_t device_id;
    uint32_t bar_size;
    uint32_t msix_at;        /* its table in BAR 1 */
    atomic_int die_at_write; /* clients at whose coming it ends */
    int reset_error;         /* what it answers to so many resets: */
    atomic_int failing_resets;
    atomic_bool hang_in_reset;   /* for ever */
    atomic_int failing_reallocs; /* so many find no memory */
    int fds_left;                /* descriptors that it can open; 0: as usual */
    uint64_t dma_bytes;          /* it lets a client map at most; 0: as usual */
    atomic_uint let_go_at;       /* the client at whose coming it lets go what REG_HOLD held */
};

struct rig {
    struct shared *shared;
    char path[128];
    pid_t pid;
    struct ob_client *client;
    char connect_error[512];
    atomic_int interrupted, resumed, lost;
    char why[512];
};

/* So many attempts to restore DMA mappings find no memory. */
extern atomic_int rig_failing_maps;
/*
 * Holds the thread that makes a channel of the socket which comes after so many others, until
 * rig_release(). Both do it by relaxed atomics, so that the thread sanitizer learns nothing of the
 * order of what the threads do.
 */
void rig_hold_at_socket(int others);
/* The same for the thread that frees a client next: an attempt, when it is over. */
void rig_hold_at_free(void);
void rig_await_held(void);
void rig_release(void);

struct ob_client_options rig_options(struct rig *rig, int reconnect_ms);
/* A server, and a client of it. path: where; opt: rig_options(), and what a case makes of them. */
void rig_begin(struct rig *rig, int reconnect_ms);
void rig_begin_server(struct rig *rig);
/* The same, one after the other. */
int rig_connect_client(struct rig *rig, int reconnect_ms);
void rig_begin_with(struct rig *rig, const char *path, const struct ob_client_options *opt);
void rig_end(struct rig *rig);
/* A server as rig->shared says now. */
void rig_start(struct rig *rig);
void rig_kill(struct rig *rig);
/* The client has found out that the connection ended: it may be lost already. */
void rig_notice(struct rig *rig);
/* The client has found out and waits for a server; a request that was under way then says so as
 * well. */
void rig_check_interrupted(struct rig *rig);
/* All three. */
void rig_restart(struct rig *rig);
/* The client is connected again, and has been told so, so many times. */
void rig_check_back(struct rig *rig, int times);
/* Waits for what a callback counts, after ob_client_await() has returned. */
void rig_wait_for(atomic_int *count, int value);

/* Registers of the device. */
uint32_t rig_get(struct rig *rig, uint32_t offset);
int rig_put(struct rig *rig, uint32_t offset, uint64_t value);
int rig_post(struct rig *rig, uint32_t offset, uint32_t value);
uint16_t rig_config16(struct rig *rig, uint32_t offset);
void rig_config_put16(struct rig *rig, uint32_t offset, uint16_t value);

/* A file of two pages, the second of which begins with `first`. */
int rig_memory(uint64_t first);
/* The device finds that value at that address. */
void rig_check_fetch(struct rig *rig, uint64_t address, uint64_t value);
/* Whether an eventfd is signalled, which is waited for; or is not. */
bool rig_fired(int fd);
bool rig_silent(int fd);

#endif
