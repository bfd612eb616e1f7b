/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk with a state file, whose server is killed and started again, for tests of what it leaves
 * to the next one. While there is none its file can be changed, to what a moment before would have
 * left.
 */
#ifndef OB_TESTS_NVME_DISK_H
#define OB_TESTS_NVME_DISK_H

#include <sys/types.h>

#include "devices/nvme/state_file.h"
#include "nvme_host.h"

#define DISK_SIZE       (4u << 20)
#define DISK_BLOCK      512u
#define DISK_QUEUES     2u
#define DISK_STATE_SIZE (sizeof(struct nvme_file_map) + DISK_QUEUES * sizeof(struct nvme_sq_record))

extern struct nvme_disk {
    struct nvme_host h;
    pid_t pid;
    const char *image;
    char path[128];            /* of the state file */
    struct nvme_file_map *map; /* of it, too */
} disk;

/* A server of disk.image with the state at disk.path. */
void disk_serve(void);
/* Maps the state file. */
void disk_map_state(void);
/* An enabled controller with queue 1, that has done some commands in each queue. */
void disk_start(uint32_t entries);
/* Kills the server; the client goes. */
void disk_kill(void);
/* Another server, to which the client returns. */
void disk_revive(void);
/* Ends a server that runs, and forgets the disk. */
void disk_end(void);
/* The same without a server. */
void disk_forget(void);

/* Of a server that is gone: notes the last command of queue 1 as under way. */
void disk_note_again(void);
/* Takes its completion back. */
void disk_unpost(void);

#endif
