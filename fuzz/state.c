/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The migration stream, and the loader of each device's state. The first byte chooses the device,
 * the second the pieces in which it is written, the third what:
 *   0  the input as it is
 *   1  records from the input: type, length (numbers), bytes; the last has the right checksum
 *   2  the state that a device like it has saved, with changes: offset (number), length (1 byte),
 *      bytes; with the right checksum again
 * A state that was taken is used for a while; and what the device then saves is taken again.
 */
#include "disk.h"
#include "kinds.h"
#include "kit.h"
#include "world.h"

#include <string.h>

#define STATE_MAX (256u * 1024u)
#define HEAD      16u /* of a stream */
#define RECORD    8u  /* head of one */

enum { RECORD_DEVICE = 1, RECORD_PCI, RECORD_END };

static uint8_t state[STATE_MAX + 4096];

static uint64_t checksum(const uint8_t *bytes, size_t len)
{
    uint64_t sum = 0xcbf29ce484222325u;

    for (size_t i = 0; i < len; i++)
        sum = (sum ^ bytes[i]) * 0x100000001b3u;
    return sum;
}

static size_t put_record(size_t at, uint32_t type, uint32_t len)
{
    memcpy(state + at, &type, sizeof(type));
    memcpy(state + at + 4, &len, sizeof(len));
    return at + RECORD;
}

static size_t put_end(size_t at)
{
    uint64_t sum;

    at = put_record(at, RECORD_END, sizeof(sum));
    sum = checksum(state, at);
    memcpy(state + at, &sum, sizeof(sum));
    return at + sizeof(sum);
}

static size_t take_bytes(struct input *in, size_t at, size_t len)
{
    const uint8_t *bytes = input_take(in, &len);

    if (len > STATE_MAX - at)
        len = STATE_MAX - at;
    if (len)
        memcpy(state + at, bytes, len);
    return len;
}

static size_t make_records(struct input *in)
{
    static const char head[HEAD] = "OBSTATE1";
    size_t at = HEAD;

    memcpy(state, head, HEAD);
    while (input_left(in) && at < STATE_MAX - RECORD) {
        uint32_t type = (uint32_t)input_number(in), said = (uint32_t)input_number(in);
        size_t len;

        at = put_record(at, type, said);
        len = said < 4096 ? said : 4096;
        at += take_bytes(in, at, len);
    }
    return put_end(at);
}

/* The checksum follows in the last 8 bytes. */
static size_t change(struct input *in, size_t len)
{
    while (input_left(in)) {
        size_t at = input_number(in) % (len - 16);

        take_bytes(in, at, input_u8(in));
    }
    return put_end(len - RECORD - 8);
}

static void prepare(struct visitors *v, struct disk *disk, bool is_disk, uint8_t how)
{
    const struct nvme_sqe event = { .opcode = NVME_ADM_ASYNC_EVENT };

    if (!is_disk)
        return;
    disk_attach(disk, v);
    if (how & 0x10)
        return;
    disk_enable(disk);
    for (unsigned qid = 1; qid <= (how >> 5 & 3); qid++)
        disk_add_queue(disk, qid, DISK_ENTRIES);
    disk_submit(disk, 0, &event);
    visitors_step(v, 16);
}

static size_t make_state(struct visitors *v, struct input *in)
{
    uint8_t what = input_u8(in) % 3;
    int64_t len;

    if (what == 0)
        return take_bytes(in, 0, input_left(in));
    if (what == 1)
        return make_records(in);
    len = visitor_save(v, state, STATE_MAX);
    HOLDS(len > HEAD + 2 * RECORD);
    return change(in, (size_t)len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const disk_args[] = { "mem:1M", "--queues", "4", NULL };
    static const struct ob_served *const types[] = { &ob_served_nvme, &kit_served, &ob_served_edu };
    struct input in = { data, size, 0 };
    uint8_t how = input_u8(&in);
    const struct ob_served *type = types[(how & 15) % 3];
    bool is_disk = type == &ob_served_nvme;
    static struct visitors v;
    struct disk disk;
    uint32_t piece;
    size_t len;

    kinds_open();
    world_begin();
    visitors_begin(&v, type, is_disk ? disk_args : NULL);
    visitor_connect(&v, 0);
    visitor_greet(&v, true, false);
    prepare(&v, &disk, is_disk, how);
    piece = 1 + input_u8(&in) * 16u;
    len = make_state(&v, &in);
    if (visitor_load(&v, state, len, piece) == 0) {
        int64_t saved;

        visitors_step(&v, 32);
        saved = visitor_save(&v, state, STATE_MAX);
        HOLDS(saved > 0);
        HOLDS(visitor_load(&v, state, (size_t)saved, 0) == 0);
    }
    visitors_end(&v, is_disk ? disk_check : NULL);
    kinds_reset();
    world_end();
    return 0;
}
