/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the device does with the client's memory. That takes a device which can be told to do DMA:
 * QEMU's educational device, with a buffer of 4096 bytes and four registers for it (see
 * devices/edu/). It does its work after the register write was answered, or before.
 */
#include "conformance/test.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define BAR    OB_PCI_REGION_BAR0
#define BUFFER 0x40000u
#define SOURCE 0x80u
#define TARGET 0x88u
#define COUNT  0x90u
#define START  0x98u
#define TO_RAM 2u
#define BASE   EDU_BASE
#define SIZE   EDU_SIZE
#define HALF   ((uint64_t)PAGE / 2)
#define RW     (OB_DMA_READ | OB_DMA_WRITE)

/* How the client answers, wrongly mostly. */
enum manner {
    HONEST,
    HALF_OF_IT,  /* moves a part, and says so */
    NOTHING,     /* says that 0 bytes were moved */
    TOO_MUCH,    /* says that more than asked was moved */
    TORN,        /* one byte less than it says; 15 bytes for a write */
    EMPTY,       /* a header alone */
    OLD_WRITE,   /* 12 bytes for a write, as the older text has it */
    REFUSES,     /* an error reply */
    REFUSES_BY_0 /* an error reply with the errno 0 */
};

/* The client's memory at BASE, and what the server wants of it. */
struct memory {
    uint8_t bytes[2 * PAGE];
    enum manner manner;
    uint64_t most; /* bytes of one message */
    unsigned reads, writes;
    /* Called at the first message, before it is answered. */
    void (*meanwhile)(struct test *t);
};

static struct memory memory;
static int twin_fd; /* that came with the reply to VERSION; -1: none */

static void answer_read(struct test *t, const struct msg *msg, struct ob_wire_dma_access access)
{
    uint8_t payload[sizeof(access) + SIZE + 1] = { 0 };
    size_t len;

    memcpy(payload + sizeof(access), memory.bytes + (access.address - BASE), access.count);
    if (memory.manner == HALF_OF_IT && access.count > 1)
        access.count /= 2;
    else if (memory.manner == NOTHING)
        access.count = 0;
    else if (memory.manner == TOO_MUCH)
        access.count++;
    memcpy(payload, &access, sizeof(access));
    len = sizeof(access) + access.count;
    if (memory.manner == TORN)
        len--;
    test_answer(t, msg, 0, payload, memory.manner == EMPTY ? 0 : len);
}

static void answer_write(struct test *t, const struct msg *msg, struct ob_wire_dma_access access,
                         const void *data)
{
    static const size_t lengths[] = { [TORN] = 15, [EMPTY] = 0, [OLD_WRITE] = 12 };
    bool odd = memory.manner == TORN || memory.manner == EMPTY || memory.manner == OLD_WRITE;

    if (memory.manner == HALF_OF_IT && access.count > 1)
        access.count /= 2;
    memcpy(memory.bytes + (access.address - BASE), data, access.count);
    if (memory.manner == NOTHING)
        access.count = 0;
    else if (memory.manner == TOO_MUCH)
        access.count++;
    test_answer(t, msg, 0, &access, odd ? lengths[memory.manner] : sizeof(access));
}

static void serve(struct test *t, const struct msg *msg)
{
    bool is_read = msg->hdr.cmd == OB_CMD_DMA_READ;
    struct ob_wire_dma_access access;
    struct msg kept = *msg;
    const void *data = NULL;
    uint8_t copy[SIZE];

    MUST(t,
         ob_decode_dma_access(msg->data, msg->len, !is_read, OB_DATA_XFER_MAX, &access, &data) == 0,
         "a malformed %s", ob_strcmd(msg->hdr.cmd));
    MUST(t, msg->nfds == 0, "a %s with a file descriptor", ob_strcmd(msg->hdr.cmd));
    MUST(t,
         access.count && access.address >= BASE && access.address - BASE < SIZE &&
             access.count <= SIZE - (access.address - BASE),
         "%s of 0x%llx bytes at 0x%llx, which are not mapped", ob_strcmd(msg->hdr.cmd),
         (unsigned long long)access.count, (unsigned long long)access.address);
    MUST(t, access.count <= memory.most, "%s of %llu bytes, %llu are taken",
         ob_strcmd(msg->hdr.cmd), (unsigned long long)access.count,
         (unsigned long long)memory.most);
    if (data)
        memcpy(copy, data, access.count);
    if (memory.meanwhile && memory.reads + memory.writes == 0)
        memory.meanwhile(t);
    *(is_read ? &memory.reads : &memory.writes) += 1;
    if (memory.manner == REFUSES || memory.manner == REFUSES_BY_0) {
        struct ob_wire_hdr no = { kept.hdr.msg_id, kept.hdr.cmd, sizeof(no), 0x21,
                                  memory.manner == REFUSES ? EACCES : 0 };

        test_put(t, &no, sizeof(no), NULL, 0);
    } else if (is_read) {
        answer_read(t, &kept, access);
    } else {
        answer_write(t, &kept, access, copy);
    }
}

/* ---- The device ---------------------------------------------------------------------------- */

/* A connection on which the client takes so many bytes in a message. */
static void begin(struct test *t, const char *json, uint64_t most)
{
    uint32_t command;

    if (t->dev->vendor != 0x1234 || t->dev->product != 0x11e8 ||
        t->dev->regions[BAR].size != 0x100000)
        test_not_offered(t, "only QEMU's educational device can be told to do DMA");
    test_is_ok(t, test_version(t, 0, 0, json, strlen(json) + 1), OB_CMD_VERSION);
    twin_fd = t->in.nfds ? test_keep(t, fcntl(t->in.fds[0], F_DUPFD_CLOEXEC, 0)) : -1;
    test_ok(t, OB_CMD_DEVICE_RESET, NULL, 0);
    command = device_read(t, OB_PCI_REGION_CONFIG, 4, 2);
    device_write(t, OB_PCI_REGION_CONFIG, 4, command | 4, 2); /* bus master */
    memory = (struct memory){ .most = most };
    for (size_t i = 0; i < SIZE; i++)
        memory.bytes[i] = (uint8_t)test_random(t);
    t->serve = serve;
}

void edu_begin(struct test *t)
{
    begin(t, "{\"capabilities\":{\"max_msg_fds\":8}}", OB_DATA_XFER_DEFAULT);
}

static void map(struct test *t, uint32_t flags, int fd, uint64_t address, uint64_t size)
{
    test_is_ok(t, device_map(t, flags, fd, 0, address, size), OB_CMD_DMA_MAP);
}

static void start(struct test *t, uint64_t address, uint64_t count, bool to_ram)
{
    device_write(t, BAR, SOURCE, to_ram ? BUFFER : (uint32_t)address, 4);
    device_write(t, BAR, TARGET, to_ram ? (uint32_t)address : BUFFER, 4);
    device_write(t, BAR, COUNT, (uint32_t)count, 4);
    device_write(t, BAR, START, 1 | (to_ram ? TO_RAM : 0), 4);
}

static void finish(struct test *t)
{
    while (device_read(t, BAR, START, 4) & 1)
        ;
}

void edu_move(struct test *t, uint64_t address, uint64_t count, bool to_ram)
{
    start(t, address, count, to_ram);
    finish(t);
}

/* The first half page through the card into the second page. */
static void round_trip(struct test *t, const uint8_t *bytes)
{
    edu_move(t, BASE, HALF, false);
    edu_move(t, BASE + PAGE, HALF, true);
    MUST(t, memcmp(bytes, bytes + PAGE, HALF) == 0, "other data came back from the device");
}

/* ---- Ways to the memory -------------------------------------------------------------------- */

static void by_message(struct test *t)
{
    edu_begin(t);
    map(t, RW, -1, BASE, SIZE);
    round_trip(t, memory.bytes);
    MUST(t, memory.reads == 1 && memory.writes == 1, "%u DMA_READ and %u DMA_WRITE came",
         memory.reads, memory.writes);
}

static void by_descriptor(struct test *t, uint32_t access)
{
    uint8_t bytes[SIZE];
    int fd;

    edu_begin(t);
    fd = test_memfd(t, SIZE);
    MUST(t, pwrite(fd, memory.bytes, SIZE, 0) == SIZE, "a memfd cannot be written");
    map(t, RW | access, fd, BASE, SIZE);
    edu_move(t, BASE, HALF, false);
    edu_move(t, BASE + PAGE, HALF, true);
    MUST(t, pread(fd, bytes, SIZE, 0) == SIZE, "a memfd cannot be read");
    MUST(t, memcmp(bytes, bytes + PAGE, HALF) == 0, "other data came back from the device");
    if (memory.reads + memory.writes)
        test_deviates(t, "memory with a descriptor is used by message");
}

static void by_mmap(struct test *t)
{
    by_descriptor(t, OB_DMA_ACCESS_MMAP);
}

static void by_file(struct test *t)
{
    by_descriptor(t, OB_DMA_ACCESS_FILE);
}

static void over_two_mappings(struct test *t)
{
    edu_begin(t);
    map(t, RW, -1, BASE, HALF / 2);
    map(t, RW, -1, BASE + HALF / 2, SIZE - HALF / 2);
    round_trip(t, memory.bytes);
}

static void split(struct test *t)
{
    begin(t, "{\"capabilities\":{\"max_data_xfer_size\":100}}", 100);
    map(t, RW, -1, BASE, SIZE);
    round_trip(t, memory.bytes);
}

/* ---- What the device may not ---------------------------------------------------------------- */

static void nothing_came(struct test *t)
{
    test_alive(t);
    MUST(t, memory.reads + memory.writes == 0, "%u DMA_READ and %u DMA_WRITE came", memory.reads,
         memory.writes);
}

static void not_mapped(struct test *t)
{
    edu_begin(t);
    edu_move(t, BASE, HALF, false);
    edu_move(t, BASE, HALF, true);
    nothing_came(t);
}

static void beyond_mapping(struct test *t)
{
    edu_begin(t);
    map(t, RW, -1, BASE + SIZE - PAGE, PAGE);
    edu_move(t, BASE + SIZE - PAGE + 1, PAGE, true);
    edu_move(t, BASE + SIZE - PAGE - 1, PAGE, true);
    nothing_came(t);
}

static void read_only(struct test *t)
{
    edu_begin(t);
    map(t, OB_DMA_READ, -1, BASE, SIZE);
    edu_move(t, BASE, HALF, true);
    nothing_came(t);
}

static void write_only(struct test *t)
{
    edu_begin(t);
    map(t, OB_DMA_WRITE, -1, BASE, SIZE);
    edu_move(t, BASE, HALF, false);
    nothing_came(t);
}

static void after_unmap(struct test *t)
{
    edu_begin(t);
    map(t, RW, -1, BASE, SIZE);
    round_trip(t, memory.bytes);
    memory.reads = memory.writes = 0;
    test_is_ok(t, device_unmap(t, 0, BASE, SIZE), OB_CMD_DMA_UNMAP);
    edu_move(t, BASE, HALF, true);
    nothing_came(t);
}

/* ---- Answers ------------------------------------------------------------------------------- */

static void short_answers(struct test *t)
{
    edu_begin(t);
    map(t, RW, -1, BASE, SIZE);
    memory.manner = HALF_OF_IT;
    round_trip(t, memory.bytes);
    MUST(t, memory.reads > 1 && memory.writes > 1, "the rest was not asked for");
}

static void old_write_answers(struct test *t)
{
    begin(t, "{\"capabilities\":{\"max_data_xfer_size\":64}}", 64);
    map(t, RW, -1, BASE, SIZE);
    memory.manner = OLD_WRITE;
    round_trip(t, memory.bytes);
}

/* A transfer that fails: the first message is the last, and server and device go on. */
static void failing(struct test *t, enum manner manner)
{
    begin(t, "{\"capabilities\":{\"max_data_xfer_size\":64}}", 64);
    map(t, RW, -1, BASE, SIZE);
    for (unsigned to_ram = 0; to_ram < 2; to_ram++) {
        memory.manner = manner;
        memory.reads = memory.writes = 0;
        edu_move(t, BASE, HALF, to_ram);
        MUST(t, memory.reads + memory.writes == 1, "%u messages came, though the first one failed",
             memory.reads + memory.writes);
    }
    memory.manner = HONEST;
    round_trip(t, memory.bytes);
}

static void refused(struct test *t)
{
    failing(t, REFUSES);
}

static void refused_by_0(struct test *t)
{
    failing(t, REFUSES_BY_0);
}

static void zero_answered(struct test *t)
{
    failing(t, NOTHING);
}

static void more_answered(struct test *t)
{
    failing(t, TOO_MUCH);
}

static void torn_answered(struct test *t)
{
    failing(t, TORN);
}

static void empty_answered(struct test *t)
{
    failing(t, EMPTY);
}

/* ---- Meanwhile ----------------------------------------------------------------------------- */

static uint16_t crossing_id;

static void send_others(struct test *t)
{
    uint8_t payload[REQUEST_MAX];

    crossing_id = t->next_id;
    for (unsigned i = 0; i < 20; i++)
        test_send(t, OB_CMD_DEVICE_GET_INFO, payload,
                  device_request(t, OB_CMD_DEVICE_GET_INFO, 0, payload));
}

static void crossing(struct test *t)
{
    edu_begin(t);
    map(t, RW, -1, BASE, SIZE);
    memory.meanwhile = send_others;
    start(t, BASE, HALF, false);
    MUST(t, memory.reads || test_get(t), "the server closed the connection");
    if (!memory.reads)
        serve(t, &t->in);
    for (unsigned i = 0; i < 20; i++)
        test_is_ok(t, test_reply(t, OB_CMD_DEVICE_GET_INFO, (uint16_t)(crossing_id + i)),
                   OB_CMD_DEVICE_GET_INFO);
    finish(t);
    edu_move(t, BASE + PAGE, HALF, true);
    MUST(t, memcmp(memory.bytes, memory.bytes + PAGE, HALF) == 0,
         "other data came back from the device");
}

static void send_unmap(struct test *t)
{
    struct ob_wire_dma_unmap unmap = { sizeof(unmap), 0, BASE, SIZE };

    crossing_id = test_send(t, OB_CMD_DMA_UNMAP, &unmap, sizeof(unmap));
}

/* The reply comes when the transfer is over, and no message after it. */
static void unmap_meanwhile(struct test *t)
{
    begin(t, "{\"capabilities\":{\"max_data_xfer_size\":64}}", 64);
    map(t, RW, -1, BASE, SIZE);
    memory.meanwhile = send_unmap;
    start(t, BASE, HALF, true);
    while (!memory.writes) {
        MUST(t, test_get(t), "the server closed the connection");
        serve(t, &t->in);
    }
    test_is_ok(t, test_reply(t, OB_CMD_DMA_UNMAP, crossing_id), OB_CMD_DMA_UNMAP);
    memory.reads = memory.writes = 0;
    memory.meanwhile = NULL;
    finish(t);
    nothing_came(t);
}

static void send_stray_replies(struct test *t)
{
    struct ob_wire_hdr stray = { 0x7777, OB_CMD_DMA_READ, sizeof(stray), OB_HDR_REPLY, 0 };

    test_put(t, &stray, sizeof(stray), NULL, 0);
    stray.cmd = OB_CMD_DEVICE_GET_INFO;
    test_put(t, &stray, sizeof(stray), NULL, 0);
}

static void stray_replies(struct test *t)
{
    edu_begin(t);
    map(t, RW, -1, BASE, SIZE);
    memory.meanwhile = send_stray_replies;
    round_trip(t, memory.bytes);
}

static void leave_meanwhile(struct test *t)
{
    edu_begin(t);
    map(t, RW, -1, BASE, SIZE);
    t->serve = NULL;
    start(t, BASE, HALF, false);
    test_hang_up(t);
    test_served(t);
}

/* ---- What goes with it --------------------------------------------------------------------- */

/* The server's messages come over a socket of their own. */
static void twin(struct test *t)
{
    unsigned main_socket = t->at;

    begin(t, "{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{\"supported\":true}}}",
          OB_DATA_XFER_DEFAULT);
    if (twin_fd < 0)
        test_not_offered(t, "the server has no twin socket");
    map(t, RW, -1, BASE, SIZE);
    t->links[t->nlinks] = twin_fd;
    for (unsigned to_ram = 0; to_ram < 2; to_ram++) {
        start(t, BASE + to_ram * PAGE, HALF, to_ram);
        t->at = t->nlinks;
        MUST(t, test_get(t), "the twin socket was closed");
        serve(t, &t->in);
        t->at = main_socket;
        finish(t);
    }
    MUST(t, memcmp(memory.bytes, memory.bytes + PAGE, HALF) == 0,
         "other data came back from the device");
}

static const struct entry entries[] = {
    RAW("transfer/by-message", "R-XFER-1", "memory without a descriptor is used by message",
        by_message),
    RAW("transfer/by-mmap", "R-DMA-3 R-DMA-9", "memory with a descriptor is mapped", by_mmap),
    RAW("transfer/by-file", "R-DMA-3 R-DMA-9", "a descriptor is read and written", by_file),
    RAW("transfer/over-two-mappings", "R-XFER-1", "a transfer may cross from one into the next",
        over_two_mappings),
    RAW("transfer/split", "R-XFER-2 R-CAPS-8", "no message has more than the client takes", split),
    RAW("transfer/not-mapped", "R-DMA-9 R-XFER-1", "memory that is not mapped is left alone",
        not_mapped),
    RAW("transfer/beyond-mapping", "R-DMA-9 R-XFER-1",
        "a transfer that leaves a mapping is not done", beyond_mapping),
    RAW("transfer/read-only", "R-DMA-9", "memory that may be read is not written", read_only),
    RAW("transfer/write-only", "R-DMA-9", "memory that may be written is not read", write_only),
    RAW("transfer/after-unmap", "R-DMA-15", "memory that was taken back is left alone",
        after_unmap),
    RAW("transfer/short-answers", "R-XFER-7", "after a part the rest is asked for", short_answers),
    RAW("transfer/old-write-answers", "R-XFER-8", "a DMA_WRITE reply of 12 bytes is taken",
        old_write_answers),
    RAW("transfer/refused", "R-XFER-7", "a refused transfer fails alone", refused),
    RAW("transfer/refused-by-0", "R-HDR-9", "an error reply with errno 0 is one", refused_by_0),
    RAW("transfer/zero-answered", "R-XFER-7", "a count of 0 is a failure", zero_answered),
    RAW("transfer/more-answered", "R-XFER-7", "more than was asked is a failure", more_answered),
    RAW("transfer/torn-answered", "R-XFER-7", "a reply of the wrong size is a failure",
        torn_answered),
    RAW("transfer/empty-answered", "R-XFER-7 R-XFER-8", "a reply without payload is a failure",
        empty_answered),
    RAW("transfer/crossing", "R-ORDER-3 R-ORDER-5",
        "commands that meet a DMA message are answered after it", crossing),
    RAW("transfer/unmap-meanwhile", "R-DMA-15 R-ORDER-5", "DMA_UNMAP waits for the DMA under way",
        unmap_meanwhile),
    RAW("transfer/stray-replies", "R-HDR-13 R-ORDER-3", "other replies are dropped meanwhile",
        stray_replies),
    RAW("transfer/leave-meanwhile", "R-XFER-9 R-LOSS-3", "a client may leave in the middle of it",
        leave_meanwhile),
    RAW("transfer/twin", "R-TWIN-4", "DMA messages come over the twin socket", twin),
};

CASES(transfer_cases, entries);
