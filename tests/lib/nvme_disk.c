/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk whose server comes and goes, and what is left of it in between. */
#include "nvme_disk.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct nvme_disk disk;

static struct nvme_host *const h = &disk.h;

void disk_serve(void)
{
    const char *const args[] = { disk.image,      "--state",  disk.path, "--queues", "2",
                                 "--aio=threads", "--serial", "S",       NULL };

    disk.pid = host_fork(h, args);
}

void disk_map_state(void)
{
    int fd = open(disk.path, O_RDWR | O_CLOEXEC);

    disk.map = mmap(NULL, DISK_STATE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(disk.map != MAP_FAILED);
    close(fd);
}

void disk_start(uint32_t entries)
{
    disk.image = host_image("disk.img", DISK_SIZE, 1);
    snprintf(disk.path, sizeof(disk.path), "%s/state", test_tmpdir());
    disk_serve();
    disk_map_state();
    host_connect(h);
    host_arm(h, OB_PCI_IRQ_MSIX, DISK_QUEUES + 1);
    host_enable(h);
    host_add_queue(h, 1, entries, 1);
    for (unsigned i = 0; i < 5; i++)
        CHECK_INT(host_do(h, 1, (struct nvme_sqe){ .opcode = NVME_IO_FLUSH, .nsid = 1 }, NULL), 0);
}

void disk_kill(void)
{
    CHECK(WIFSIGNALED(host_kill(h, disk.pid, SIGKILL)));
}

void disk_revive(void)
{
    disk_serve();
    host_return(h, DISK_QUEUES + 1);
}

void disk_forget(void)
{
    munmap(disk.map, DISK_STATE_SIZE);
    host_forget(h);
}

void disk_end(void)
{
    CHECK_INT(host_kill(h, disk.pid, SIGTERM), 0);
    disk_forget();
}

void disk_note_again(void)
{
    struct nvme_sq_record *record = &disk.map->sq[0];
    const struct host_queue *q = &h->q[1];

    record->sqe[1] = q->sq[(q->tail + q->entries - 1) % q->entries];
    record->number[1] = record->fetched;
}

void disk_unpost(void)
{
    struct host_queue *q = &h->q[1];

    disk.map->cq[1].posted--;
    q->cq_head = (q->cq_head + q->cq_entries - 1) % q->cq_entries;
    if (q->cq_head == q->cq_entries - 1)
        q->phase = !q->phase;
    q->cq[q->cq_head] = (struct nvme_cqe){ .status = !q->phase };
    disk.map->cq[1].head = q->cq_head;
}
