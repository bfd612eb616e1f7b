/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver of the NVMe controller, for targets: its memory is RAM at DISK_RAM, and a small area at
 * DISK_REMOTE that the server reaches by message only.
 */
#ifndef OB_FUZZ_DISK_H
#define OB_FUZZ_DISK_H

#include "devices/nvme/spec.h"
#include "visitors.h"

#define DISK_RAM     0x100000u
#define DISK_REMOTE  0x10000000u
#define DISK_QUEUES  6u  /* with the admin queue */
#define DISK_ENTRIES 16u /* of each queue, unless the input says otherwise */
#define DISK_DATA    16u /* the first page of RAM that is no queue */

struct disk {
    struct visitors *v;
    uint32_t tail[DISK_QUEUES], head[DISK_QUEUES];
};

/* Maps memory, arms an interrupt, sets the bus master bit. */
void disk_attach(struct disk *d, struct visitors *v);
/* Makes the admin queue and enables the controller. */
void disk_enable(struct disk *d);
/* Enters a command, and rings. */
void disk_submit(struct disk *d, unsigned qid, const struct nvme_sqe *sqe);
void disk_ring(struct disk *d, unsigned index, uint32_t value);
/* Creates a pair of I/O queues. */
void disk_add_queue(struct disk *d, unsigned qid, uint32_t entries);
/* Takes what has completed; the status of the last one, or -1. */
int disk_consume(struct disk *d, unsigned qid);
/* Where the pages of a queue are. */
uint64_t disk_sq(unsigned qid);
uint64_t disk_cq(unsigned qid);
/* Reset and set up anew by a client that has just come, it identifies itself. */
void disk_check(struct visitors *v);

#endif
