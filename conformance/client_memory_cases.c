/* SPDX-License-Identifier: BSD-3-Clause */
/* The client's memory by messages, accesses of it to the device, and the end of the server. */
#include "conformance/client.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#define RW     (OB_DMA_READ | OB_DMA_WRITE)
#define ACCESS sizeof(struct ob_wire_dma_access)

/* ---- Memory that is mapped ----------------------------------------------------------------- */

/* A message of which the reply must repeat address and count. */
static int transfer(struct test *t, uint16_t cmd, uint64_t address, const void *data,
                    uint32_t count)
{
    static uint8_t payload[ACCESS + PLAY_DATA];
    const struct ob_wire_dma_access access = { address, count };
    bool write = cmd == OB_CMD_DMA_WRITE;
    size_t len = write ? ACCESS + count : ACCESS;
    int got;

    memcpy(payload, &access, sizeof(access));
    if (write)
        memcpy(payload + ACCESS, data, count);
    got = play_reply(t, cmd, test_send_all(t, cmd, 0, payload, len, NULL, 0));
    MUST(t, got >= 0, "the client ended the connection");
    if (got > 0)
        return got;
    if (write && t->in.len != ACCESS && t->in.len <= 12)
        test_deviates(t, "the reply to DMA_WRITE has %u bytes, as that of QEMU 10", t->in.len);
    else
        MUST(t,
             t->in.len == (write ? ACCESS : ACCESS + count) &&
                 memcmp(t->in.data, &access, sizeof(access)) == 0,
             "the reply does not say what was asked");
    return 0;
}

/* Serves until the client has offered such memory, and lets the device reach it: the client of a
 * guest refuses all of it until the guest makes the device bus master. */
static struct mapping mapped(struct test *t, uint32_t flags, uint64_t size)
{
    struct play *p = play_of(t);
    bool refused = false;

    do {
        const struct mapping *found = device_mapping(p, flags, size);
        struct mapping m;

        if (!found)
            continue;
        if (!p->probes)
            test_not_offered(t, "the client takes no commands");
        m = *found;
        if (transfer(t, OB_CMD_DMA_READ, m.address, NULL, 1) == 0)
            return m;
        refused = true;
    } while (play_next(t));
    test_not_offered(t, refused ? "the memory is refused; may the device be bus master?"
                                : "the client maps no such memory");
}

static void works(struct test *t, uint16_t cmd, uint64_t address, const void *data, uint32_t count)
{
    int got = transfer(t, cmd, address, data, count);

    MUST(t, got == 0, "%s was refused: %s", ob_strcmd(cmd), strerror(got));
}

static void there_and_back(struct test *t, uint64_t address, uint32_t count)
{
    static uint8_t before[PLAY_DATA], data[PLAY_DATA];

    works(t, OB_CMD_DMA_READ, address, NULL, count);
    memcpy(before, t->in.data + ACCESS, count);
    for (uint32_t i = 0; i < count; i++)
        data[i] = (uint8_t)(before[i] ^ (i * 7 + 1));
    works(t, OB_CMD_DMA_WRITE, address, data, count);
    works(t, OB_CMD_DMA_READ, address, NULL, count);
    MUST(t, memcmp(t->in.data + ACCESS, data, count) == 0, "what is read is not what was written");
    works(t, OB_CMD_DMA_WRITE, address, before, count);
}

static void read_and_write(struct test *t)
{
    struct mapping m = mapped(t, RW, PAGE);

    there_and_back(t, m.address + 100, 1000);
    play_goes_on(t);
}

static void ends_of_it(struct test *t)
{
    struct mapping m = mapped(t, RW, PAGE);

    there_and_back(t, m.address, 1);
    there_and_back(t, m.address + m.size - 1, 1);
    play_goes_on(t);
}

static void largest(struct test *t)
{
    struct mapping m = mapped(t, RW, PLAY_DATA);

    there_and_back(t, m.address, PLAY_DATA);
    play_goes_on(t);
}

static void seen_in_file(struct test *t)
{
    struct mapping m = mapped(t, RW, PAGE);
    uint8_t seen;

    if (m.fd < 0)
        test_not_offered(t, "the memory has no descriptor");
    works(t, OB_CMD_DMA_READ, m.address + 7, NULL, 1);
    MUST(t, pread(m.fd, &seen, 1, (off_t)m.offset + 7) == 1, "the file of the memory is not there");
    MUST(t, t->in.data[ACCESS] == seen, "the memory's descriptor shows other bytes");
    play_goes_on(t);
}

static bool begins(const struct play *p, uint64_t address)
{
    for (unsigned i = 0; i < p->nmaps; i++)
        if (p->maps[i].address == address)
            return true;
    return false;
}

/* What begins in a mapping, and ends behind it where no other one is. */
static void beyond(struct test *t)
{
    const struct play *p = play_of(t);
    uint64_t end = 0;

    mapped(t, RW, PAGE);
    for (unsigned i = 0; i < p->nmaps; i++)
        if ((p->maps[i].flags & RW) == RW && !begins(p, p->maps[i].address + p->maps[i].size))
            end = p->maps[i].address + p->maps[i].size;
    if (!end)
        test_not_offered(t, "mappings touch each other");
    MUST(t, transfer(t, OB_CMD_DMA_READ, end - 4, NULL, 8) != 0,
         "memory behind a mapping can be read");
    play_goes_on(t);
}

/* The first mapping without this right; NULL: none so far. */
static const struct mapping *lacking(const struct play *p, uint32_t right)
{
    for (unsigned i = 0; i < p->nmaps; i++)
        if (!(p->maps[i].flags & right))
            return &p->maps[i];
    return NULL;
}

static void read_only(struct test *t)
{
    static const uint8_t data[8];
    struct play *p = play_of(t);
    const struct mapping *m;

    while (!(m = lacking(p, OB_DMA_WRITE)))
        play_send(t, play_until(t, OB_CMD_DMA_MAP));
    if (!p->probes)
        test_not_offered(t, "the client takes no commands");
    MUST(t, transfer(t, OB_CMD_DMA_WRITE, m->address, data, sizeof(data)) != 0,
         "memory that may only be read was written");
    play_goes_on(t);
}

/* While a command of the client is unanswered. */
static void during(struct test *t, uint16_t cmd)
{
    struct mapping m = mapped(t, RW, PAGE);
    struct answer *a = play_until(t, cmd);

    play_of(t)->hold = true;
    there_and_back(t, m.address + 8, 64);
    play_release(t, a);
    play_goes_on(t);
}

static void during_read(struct test *t)
{
    during(t, OB_CMD_REGION_READ);
}

static void during_write(struct test *t)
{
    during(t, OB_CMD_REGION_WRITE);
}

static void during_reset(struct test *t)
{
    during(t, OB_CMD_DEVICE_RESET);
}

static void no_reply_write(struct test *t)
{
    struct mapping m = mapped(t, RW, PAGE);
    uint8_t payload[ACCESS + 8] = { 0 };
    const struct ob_wire_dma_access access = { m.address, 8 };

    works(t, OB_CMD_DMA_READ, m.address, NULL, 8);
    memcpy(payload + ACCESS, t->in.data + ACCESS, 8);
    memcpy(payload, &access, sizeof(access));
    payload[ACCESS] ^= 0xff;
    test_send_all(t, OB_CMD_DMA_WRITE, OB_HDR_NO_REPLY, payload, sizeof(payload), NULL, 0);
    works(t, OB_CMD_DMA_READ, m.address, NULL, 8);
    MUST(t, memcmp(t->in.data + ACCESS, payload + ACCESS, 8) == 0, "the write was not done");
    payload[ACCESS] ^= 0xff;
    works(t, OB_CMD_DMA_WRITE, m.address, payload + ACCESS, 8);
    play_goes_on(t);
}

/* ---- Replies to accesses ------------------------------------------------------------------- */

static void access_reply(struct test *t, uint16_t cmd, uint32_t count, uint32_t len)
{
    struct answer *a = play_until(t, cmd);
    struct ob_wire_region_access access;

    memcpy(&access, a->data, sizeof(access));
    access.count += count;
    memcpy(a->data, &access, sizeof(access));
    a->len += len;
    play_send(t, a);
    play_ends(t);
}

static void read_count_wrong(struct test *t)
{
    access_reply(t, OB_CMD_REGION_READ, 1, 0);
}

static void read_more(struct test *t)
{
    access_reply(t, OB_CMD_REGION_READ, 1, 1);
}

static void read_less(struct test *t)
{
    access_reply(t, OB_CMD_REGION_READ, (uint32_t)-1, (uint32_t)-1);
}

static void read_cut(struct test *t)
{
    access_reply(t, OB_CMD_REGION_READ, 0, (uint32_t)-1);
}

static void read_without_data(struct test *t)
{
    struct answer *a = play_until(t, OB_CMD_REGION_READ);

    a->len = sizeof(struct ob_wire_region_access);
    play_send(t, a);
    play_ends(t);
}

static void write_count_wrong(struct test *t)
{
    access_reply(t, OB_CMD_REGION_WRITE, 1, 0);
}

/* ---- The end, and what is late -------------------------------------------------------------- */

/* An access to BAR 0: a client may have no use for a device whose config space it cannot read. */
static struct answer *until_bar(struct test *t, uint16_t cmd)
{
    for (;;) {
        struct answer *a = play_until(t, cmd);
        struct ob_wire_region_access access;

        memcpy(&access, t->in.data, sizeof(access));
        if (access.region == OB_PCI_REGION_BAR0)
            return a;
        play_send(t, a);
    }
}

/* The client, which gave the command up, has sent another one; now the reply comes. */
static void late(struct test *t, struct answer *a)
{
    static struct answer next;

    MUST(t, (t->in.hdr.flags & OB_HDR_TYPE_MASK) == OB_HDR_COMMAND, "a reply to nothing comes");
    device_answer(t, &next);
    play_send(t, a);
    if (!(t->in.hdr.flags & OB_HDR_NO_REPLY))
        play_send(t, &next);
    play_goes_on(t);
}

static void late_access(struct test *t, uint16_t cmd)
{
    struct answer *a = until_bar(t, cmd);

    MUST(t, test_get(t), "the client ended the connection");
    late(t, a);
}

static void late_read(struct test *t)
{
    late_access(t, OB_CMD_REGION_READ);
}

static void late_write(struct test *t)
{
    late_access(t, OB_CMD_REGION_WRITE);
}

static void late_irq_info(struct test *t)
{
    struct answer *a = play_until(t, OB_CMD_DEVICE_GET_IRQ_INFO);

    if (!test_get(t))
        test_not_offered(t, "the client does not use a device that does not describe itself");
    late(t, a);
}

static void close_at_once(struct test *t)
{
    test_hang_up(t);
}

static void close_after_version(struct test *t)
{
    play_send(t, play_until(t, OB_CMD_VERSION));
    test_hang_up(t);
}

static void close_at_the_end(struct test *t)
{
    play_out(t);
    if (t->links[0] >= 0)
        test_hang_up(t);
}

/* With bytes of the client unread: its socket says that it was reset. */
static void close_unread(struct test *t)
{
    play_until(t, OB_CMD_REGION_READ);
    shutdown(t->links[0], SHUT_RD);
    test_hang_up(t);
}

#define SLOW_RAW(id, rules, says, run)         \
    {                                          \
        id, rules, says, run, true, 6, 0, NULL \
    }
#define DURING "R-ORDER-4 R-XFER-5"
static const struct entry entries[] = {
    RAW("memory/read-and-write", "R-XFER-5", "memory that is mapped is read and written",
        read_and_write),
    RAW("memory/first-and-last-byte", "R-XFER-5", "so are the first and the last byte of it",
        ends_of_it),
    RAW("memory/largest", "R-XFER-5 R-CAPS-8", "so is 1 MiB in one message", largest),
    RAW("memory/same-as-in-file", "R-DMA-10", "the descriptor and the messages show the same",
        seen_in_file),
    RAW("memory/beyond", "R-XFER-3", "memory behind a mapping is refused", beyond),
    RAW("memory/read-only", "R-XFER-3", "writing memory that may be read is refused", read_only),
    RAW("memory/no-reply", "R-HDR-7", "a write with No_reply is done, and not answered",
        no_reply_write),
    RAW("memory/during-read", DURING, "memory is reached while a read is unanswered", during_read),
    RAW("memory/during-write", DURING, "memory is reached while a write is unanswered",
        during_write),
    RAW("memory/during-reset", DURING, "memory is reached while a reset is unanswered",
        during_reset),
    RAW("access/read-count-wrong", "R-ACCESS-8", "another count ends the connection",
        read_count_wrong),
    RAW("access/read-more", "R-ACCESS-8", "more data than asked for ends it", read_more),
    RAW("access/read-less", "R-ACCESS-8", "less data than asked for ends it", read_less),
    RAW("access/read-cut", "R-ACCESS-8", "less data than count says ends it", read_cut),
    RAW("access/read-without-data", "R-ACCESS-8", "no data ends it", read_without_data),
    RAW("access/write-count-wrong", "R-ACCESS-8", "another count ends the connection",
        write_count_wrong),
    SLOW_RAW("late/region-read", "R-HDR-12 R-ORDER-7", "the reply to what was given up is dropped",
             late_read),
    SLOW_RAW("late/region-write", "R-HDR-12 R-ORDER-7", "the reply to what was given up is dropped",
             late_write),
    SLOW_RAW("late/get-irq-info", "R-HDR-12 R-ORDER-7", "the reply to what was given up is dropped",
             late_irq_info),
    RAW("loss/at-once", "R-LOSS-5", "a server may die before VERSION", close_at_once),
    RAW("loss/after-version", "R-LOSS-5", "a server may die after VERSION", close_after_version),
    RAW("loss/later", "R-LOSS-5", "a server may die when nothing is asked of it", close_at_the_end),
    RAW("loss/unread", "R-LOSS-6", "a server may die with commands unread", close_unread),
};
CASES(client_memory_cases, entries);
