/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The state file of the NVMe controller (--state). A controller works for a while; what is in its
 * file then, as after a SIGKILL, is changed, and a second controller starts with it. It may refuse
 * it with a sentence; what it takes it must work with, and a file that was not changed it must
 * take.
 *
 * The first byte says what the first one does. Then come changes: where (1 byte, enum part), offset
 * there (number), length (1 byte), bytes. Checksums are made right again, unless bit 7 of the first
 * byte is set.
 */
#include "devices/nvme/state_file.h"
#include "disk.h"
#include "kinds.h"
#include "world.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define QUEUES 4u
#define SIZE   (sizeof(struct nvme_file_map) + QUEUES * sizeof(struct nvme_sq_record))
#define IMAGE  "/of/the/fuzz/target"

enum part { PART_HEAD, PART_NOTES, PART_CQ, PART_CHECKPOINT, PART_SQ, PART_SIZE, PARTS };

/* The image is memory here: it is not what is looked at, and is always done at once. */
int __real_blk_open(const char *image, bool read_only, bool direct, enum blk_aio aio,
                    struct blk **out, char *errbuf, size_t errbuf_size);
int __wrap_blk_open(const char *image, bool read_only, bool direct, enum blk_aio aio,
                    struct blk **out, char *errbuf, size_t errbuf_size);

int __wrap_blk_open(const char *image, bool read_only, bool direct, enum blk_aio aio,
                    struct blk **out, char *errbuf, size_t errbuf_size)
{
    (void)image;
    return __real_blk_open("mem:1M", read_only, direct, aio, out, errbuf, errbuf_size);
}

/* ---- The file ------------------------------------------------------------------------------- */

static union {
    struct nvme_file_map map;
    uint8_t bytes[SIZE];
} file;

static uint64_t checksum(const void *data, size_t len)
{
    const uint8_t *bytes = data;
    uint64_t sum = 0xcbf29ce484222325u;

    for (size_t i = 0; i < len; i++)
        sum = (sum ^ bytes[i]) * 0x100000001b3u;
    return sum;
}

static void make_sums_right(void)
{
    const size_t head = offsetof(struct nvme_file_head, boot);
    uint64_t sum;

    file.map.head.sum = checksum(&file.bytes[head], sizeof(file.map.head) - head);
    for (unsigned i = 0; i < 2; i++) {
        struct nvme_checkpoint *c = &file.map.checkpoints[i];

        if (c->len < sizeof(sum) || c->len > sizeof(c->data))
            continue;
        sum = checksum(c->data, c->len - sizeof(sum));
        memcpy(c->data + c->len - sizeof(sum), &sum, sizeof(sum));
    }
}

/* Where a part begins, and how long it is. */
static size_t part_at(enum part part, size_t *len)
{
    const struct nvme_checkpoint *last = &file.map.checkpoints[file.map.current & 1];

    switch (part) {
    case PART_HEAD:
        *len = sizeof(file.map.head);
        return 0;
    case PART_NOTES:
        *len = offsetof(struct nvme_file_map, cq) - offsetof(struct nvme_file_map, doorbells);
        return offsetof(struct nvme_file_map, doorbells);
    case PART_CQ:
        *len = (QUEUES + 1) * sizeof(file.map.cq[0]);
        return offsetof(struct nvme_file_map, cq);
    case PART_CHECKPOINT:
        *len = offsetof(struct nvme_checkpoint, data) +
               (last->len < sizeof(last->data) ? last->len : sizeof(last->data));
        return (size_t)((const uint8_t *)last - file.bytes);
    default:
        *len = QUEUES * sizeof(struct nvme_sq_record);
        return sizeof(struct nvme_file_map);
    }
}

/* Returns the size of the file, which may be changed too. */
static size_t change_file(struct input *in)
{
    size_t size = SIZE;

    while (input_left(in)) {
        enum part part = (enum part)(input_u8(in) % PARTS);
        uint64_t offset = input_number(in);
        size_t room, at = part_at(part, &room), len;
        const uint8_t *bytes;

        if (part == PART_SIZE) {
            size = offset % (SIZE + 4096);
            continue;
        }
        offset %= room;
        len = input_u8(in);
        bytes = input_take(in, &len);
        if (len > room - offset)
            len = room - offset;
        if (len)
            memcpy(&file.bytes[at + offset], bytes, len);
    }
    return size;
}

/* ---- The controllers ------------------------------------------------------------------------ */

static bool begin(struct visitors *v, int fd)
{
    char path[32];
    const char *const args[] = { IMAGE, "--queues", "4", "--serial", "1", "--state", path, NULL };

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return visitors_try(v, &ob_served_nvme, args);
}

/* Some commands have completed, some are in a queue, and perhaps one is in between. */
static void work(struct visitors *v, uint8_t how)
{
    const struct nvme_sqe event = { .opcode = NVME_ADM_ASYNC_EVENT }, write = {
        .opcode = NVME_IO_WRITE, .nsid = 1, .prp1 = DISK_RAM + DISK_DATA * NVME_PAGE, .dw12 = 7
    };
    struct disk disk;

    visitor_connect(v, 0);
    visitor_greet(v, true, false);
    disk_attach(&disk, v);
    if (how & 0x40)
        return;
    disk_enable(&disk);
    disk_submit(&disk, 0, &event);
    for (unsigned qid = 1; qid <= (how & 3); qid++) {
        disk_add_queue(&disk, qid, DISK_ENTRIES);
        visitors_step(v, 16);
        for (unsigned i = 0; i < (how >> 2 & 7); i++)
            disk_submit(&disk, qid, &write);
    }
    visitors_step(v, how >> 5 & 1 ? 1 : 16);
}

/* Beyond the file it has zeros. */
static int memory_of(size_t size)
{
    size_t known = size < SIZE ? size : SIZE;
    int fd = memfd_create("state", MFD_CLOEXEC);

    HOLDS(fd >= 0 && pwrite(fd, file.bytes, known, 0) == (ssize_t)known);
    HOLDS(ftruncate(fd, (off_t)size) == 0);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size, 0 };
    uint8_t how = input_u8(&in);
    bool changed = input_left(&in) > 0;
    static struct visitors v;
    size_t len;
    int fd;

    kinds_open();
    world_begin();
    fd = memory_of(0);
    HOLDS(begin(&v, fd));
    work(&v, how);
    HOLDS(pread(fd, file.bytes, SIZE, 0) == (ssize_t)SIZE);
    visitors_end(&v, NULL);
    close(fd);
    len = change_file(&in);
    if (!(how & 0x80))
        make_sums_right();
    fd = memory_of(len);
    if (begin(&v, fd)) {
        work(&v, 0x40);
        visitors_step(&v, 64);
        visitors_end(&v, disk_check);
    } else {
        HOLDS(changed);
    }
    close(fd);
    kinds_reset();
    world_end();
    return 0;
}
