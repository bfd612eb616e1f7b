/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The NVMe controller: commands, PRP lists, doorbells and registers of a driver that does anything.
 * The first byte chooses the options; then come operations (operations.h). At the end a reset has
 * to make it a working controller again.
 */
#include "disk.h"
#include "kinds.h"
#include "operations.h"
#include "world.h"

#include <string.h>

static uint64_t take_address(struct input *in)
{
    uint64_t number = input_number(in);

    if (number < 256)
        return DISK_RAM + number * NVME_PAGE;
    return number < 1u << 24 ? DISK_RAM + number : number;
}

static uint32_t number32(struct input *in)
{
    return (uint32_t)input_number(in);
}

static void take_command(struct input *in, struct nvme_sqe *sqe)
{
    uint8_t has;

    *sqe = (struct nvme_sqe){ .opcode = input_u8(in),
                              .nsid = 1,
                              .prp1 = DISK_RAM + DISK_DATA * NVME_PAGE,
                              .prp2 = DISK_RAM + (DISK_DATA + 1) * NVME_PAGE };
    has = input_u8(in);
    if (has & HAS_NSID)
        sqe->nsid = number32(in);
    if (has & HAS_PRP1)
        sqe->prp1 = take_address(in);
    if (has & HAS_PRP2)
        sqe->prp2 = take_address(in);
    sqe->dw10 = has & HAS_DW10 ? number32(in) : 0;
    sqe->dw11 = has & HAS_DW11 ? number32(in) : 0;
    sqe->dw12 = has & HAS_DW12 ? number32(in) : 0;
    sqe->dw13 = has & HAS_DW13 ? number32(in) : 0;
    if (has & HAS_REST) {
        sqe->flags = input_u8(in);
        sqe->dw2 = number32(in);
        sqe->dw3 = number32(in);
        sqe->mptr = input_number(in);
        sqe->dw14 = number32(in);
        sqe->dw15 = number32(in);
    }
}

static void do_command(struct disk *d, struct input *in)
{
    uint8_t queue = input_u8(in);
    struct nvme_sqe sqe;

    take_command(in, &sqe);
    disk_submit(d, (queue & 7) % DISK_QUEUES, &sqe);
    if (!(queue & 0x40))
        visitors_step(d->v, 4);
}

static void do_list(struct input *in)
{
    uint64_t at = (uint64_t)input_u8(in) * NVME_PAGE;

    at += input_number(in) % 512 * sizeof(uint64_t);
    for (unsigned n = input_u8(in); n > 0; n--, at += sizeof(uint64_t)) {
        uint64_t entry = take_address(in);

        ram_write(at, &entry, sizeof(entry));
    }
}

static void do_memory(struct input *in)
{
    uint64_t offset = input_number(in);
    size_t len = input_u8(in);
    const uint8_t *bytes = input_take(in, &len);

    ram_write(offset, bytes, len);
}

static void do_register(struct disk *d, struct input *in)
{
    uint64_t offset = input_number(in), value = input_number(in);

    visitor_write(d->v, 0, offset, value, 1u << (input_u8(in) & 3));
}

static void do_map(struct disk *d, struct input *in)
{
    uint64_t first = input_u8(in), pages = input_u8(in);
    uint8_t kind = input_u8(in);

    visitor_map(d->v, DISK_RAM + first * NVME_PAGE, pages * NVME_PAGE, input_u8(in),
                kind & 0x80 ? -1 : kind_fd(kind), first * NVME_PAGE);
}

/* FLR is in the PCI Express capability, behind PM and MSI. */
static void do_reset(struct disk *d, uint8_t how)
{
    uint64_t at = 0, cap = 0;

    if (how == 0)
        visitor_call(d->v, OB_CMD_DEVICE_RESET, NULL, 0, -1, NULL);
    if (how > 1)
        disk_enable(d);
    if (how != 1 || visitor_read(d->v, OB_PCI_REGION_CONFIG, 0x34, &at, 1) != 0)
        return;
    while (at && visitor_read(d->v, OB_PCI_REGION_CONFIG, at, &cap, 2) == 0 && (cap & 0xff) != 0x10)
        at = cap >> 8;
    visitor_write(d->v, OB_PCI_REGION_CONFIG, at + 8, 0x8000, 2);
}

static void do_reconnect(struct disk *d, uint8_t how)
{
    uint32_t tail[DISK_QUEUES], head[DISK_QUEUES];

    memcpy(tail, d->tail, sizeof(tail));
    memcpy(head, d->head, sizeof(head));
    visitor_leave(d->v->current);
    visitors_step(d->v, 16);
    visitor_connect(d->v, 0);
    visitor_greet(d->v, !(how & 2), false);
    if (how & 1)
        return;
    disk_attach(d, d->v);
    memcpy(d->tail, tail, sizeof(tail));
    memcpy(d->head, head, sizeof(head));
}

/* A state that it gave away is one that it takes. */
static void do_migrate(struct disk *d, uint32_t piece)
{
    static uint8_t state[1 << 20];
    int64_t len = visitor_save(d->v, state, sizeof(state));

    if (len > 0)
        HOLDS(visitor_load(d->v, state, (size_t)len, piece) == 0);
}

static void do_answers(struct visitors *v, struct input *in)
{
    v->answered = 0;
    v->nanswers = input_u8(in) % (ANSWERS_MAX + 1);
    for (unsigned i = 0; i < v->nanswers; i++)
        v->answers[i] = input_u8(in);
}

static void do_queue(struct disk *d, struct input *in)
{
    unsigned qid = 1 + input_u8(in) % (DISK_QUEUES - 1);
    uint32_t entries = number32(in);

    disk_add_queue(d, qid, entries ? entries : DISK_ENTRIES);
    visitors_step(d->v, 8);
}

static void operate(struct disk *d, struct input *in)
{
    uint8_t byte;

    switch ((enum nvme_operation)(input_u8(in) % NVME_OPS)) {
    case NVME_COMMAND:
        do_command(d, in);
        break;
    case NVME_QUEUE:
        do_queue(d, in);
        break;
    case NVME_LIST:
        do_list(in);
        break;
    case NVME_MEMORY:
        do_memory(in);
        break;
    case NVME_DOORBELL:
        byte = input_u8(in);
        disk_ring(d, byte, number32(in));
        break;
    case NVME_REGISTER:
        do_register(d, in);
        break;
    case NVME_CONSUME:
        disk_consume(d, input_u8(in) % DISK_QUEUES);
        break;
    case NVME_STEP:
        byte = input_u8(in);
        world.now_ns += byte * INT64_C(1000000);
        visitors_step(d->v, byte);
        break;
    case NVME_UNMAP:
        byte = input_u8(in);
        visitor_unmap(d->v, DISK_RAM + byte * NVME_PAGE, input_u8(in) * NVME_PAGE);
        break;
    case NVME_MAP:
        do_map(d, in);
        break;
    case NVME_CUT:
        kind_cut(input_number(in));
        break;
    case NVME_RESET:
        do_reset(d, input_u8(in));
        break;
    case NVME_RECONNECT:
        do_reconnect(d, input_u8(in));
        break;
    case NVME_MIGRATE:
        do_migrate(d, number32(in));
        break;
    default:
        do_answers(d->v, in);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const small[] = { "mem:1M", "--queues", "4", NULL };
    static const char *const large[] = { "mem:64M", "--lba", "4096", "--queues", "4", NULL };
    static const char *const mapped[] = { "mem:1M",       "--doorbells", "mapped",
                                          "--interrupts", "msi",         NULL };
    static const char *const none[] = { "null:1G", "--queues", "4", "--interrupts", "intx", NULL };
    static const char *const *const args[] = { small, large, mapped, none };
    struct input in = { data, size, 0 };
    uint8_t how = input_u8(&in);
    static struct visitors v;
    struct disk disk;

    kinds_open();
    world_begin();
    visitors_begin(&v, &ob_served_nvme, args[how & 3]);
    visitor_connect(&v, 0);
    visitor_greet(&v, how & 4, false);
    disk_attach(&disk, &v);
    if (!(how & 8))
        disk_enable(&disk);
    for (unsigned qid = 1; qid <= (how >> 4 & 3); qid++)
        disk_add_queue(&disk, qid, DISK_ENTRIES);
    visitors_step(&v, 16);
    while (input_left(&in))
        operate(&disk, &in);
    visitors_end(&v, disk_check);
    kinds_reset();
    world_end();
    return 0;
}
