/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Random sequences of commands, good, bad and nonsense, whose framing is right: so it is known
 * which of them are answered, and in which order. Ten cases of a thousand sequences each; a
 * sequence is seeded by the run's seed and its case, so that a failure can be repeated. Nothing is
 * written but the interrupt line.
 */
#include "conformance/test.h"

#include <sys/eventfd.h>
#include <unistd.h>

#define SEQUENCES 1000u
#define COMMANDS  8u

/* A number that lies at an edge, more often than not. */
static uint64_t number(struct test *t)
{
    static const uint64_t edges[] = { 0,
                                      1,
                                      2,
                                      8,
                                      16,
                                      31,
                                      32,
                                      255,
                                      256,
                                      4095,
                                      4096,
                                      4097,
                                      65536,
                                      0x100000,
                                      INT32_MAX,
                                      UINT32_MAX,
                                      (uint64_t)UINT32_MAX + 1,
                                      INT64_MAX,
                                      UINT64_MAX - 4095,
                                      UINT64_MAX };

    if (test_below(t, 4) == 0)
        return test_random(t) >> test_below(t, 64);
    return edges[test_below(t, sizeof(edges) / sizeof(edges[0]))];
}

/* Nothing that changes the device in a way that matters, and no reset but seldom. */
static bool harmless(struct test *t, uint16_t cmd, const uint8_t *payload, size_t len)
{
    struct ob_wire_region_access access;

    if (cmd == OB_CMD_REGION_WRITE_MULTI || cmd == OB_CMD_DEVICE_FEATURE ||
        cmd == OB_CMD_MIG_DATA_WRITE || cmd == OB_CMD_MIG_DATA_READ)
        return false;
    if (cmd == OB_CMD_DEVICE_RESET)
        return test_below(t, 20) == 0;
    if (cmd != OB_CMD_REGION_WRITE && cmd != OB_CMD_REGION_READ)
        return true;
    if (len < sizeof(access))
        return true;
    memcpy(&access, payload, sizeof(access));
    return access.region != OB_PCI_REGION_CONFIG ? access.count == 0 || access.region > 63
           : cmd == OB_CMD_REGION_READ           ? true
                                                 : access.offset == CONFIG_LINE && len == 17;
}

/* A good request, of which some bytes are then other ones. */
static size_t fill(struct test *t, uint16_t cmd, uint8_t *payload)
{
    size_t len = device_request(t, cmd, test_below(t, 4), payload);

    for (unsigned i = test_below(t, 3); i && len >= 8; i--) {
        uint64_t value = number(t);
        size_t size = test_below(t, 2) ? 4 : 8;

        memcpy(payload + test_below(t, (uint32_t)(len / size)) * size, &value, size);
    }
    if (test_below(t, 10) == 0)
        len = test_below(t, 64);
    return len;
}

static unsigned choose_fds(struct test *t, int memory, int event, int *fds)
{
    unsigned n = test_below(t, 4) ? 0 : 1 + test_below(t, 3);

    for (unsigned i = 0; i < n; i++)
        fds[i] = test_below(t, 2) ? memory : event;
    return n;
}

static void sequence(struct test *t, int memory, int event)
{
    uint16_t cmds[COMMANDS], ids[COMMANDS];
    unsigned expected = 0;

    for (unsigned i = 1 + test_below(t, COMMANDS); i; i--) {
        uint8_t payload[REQUEST_MAX] = { 0 };
        uint16_t cmd = (uint16_t)(1 + test_below(t, OB_CMD_LAST + 2)), id;
        uint32_t flags = test_below(t, 6) ? 0 : test_below(t, 64);
        size_t len = fill(t, cmd, payload);
        int fds[3];
        unsigned nfds = choose_fds(t, memory, event, fds);

        if (!harmless(t, cmd, payload, len))
            continue;
        id = test_send_all(t, cmd, flags, payload, len, fds, nfds);
        if ((flags & OB_HDR_TYPE_MASK) == OB_HDR_REPLY || (flags & OB_HDR_NO_REPLY))
            continue;
        cmds[expected] = cmd;
        ids[expected++] = id;
    }
    for (unsigned i = 0; i < expected; i++)
        test_reply(t, cmds[i], ids[i]);
}

static void sequences(struct test *t)
{
    int memory = test_memfd(t, 16 * PAGE), event = test_eventfd(t);

    for (unsigned i = 0; i < SEQUENCES; i++) {
        sequence(t, memory, event);
        if (i % 10 != 9)
            continue;
        test_alive(t);
        test_hang_up(t);
        test_connect(t);
        test_negotiate(t);
    }
    test_alive(t);
}

/* Bytes of no sense at all, after VERSION or before; only that the server lives is asked for. */
static void noise(struct test *t)
{
    for (unsigned i = 0; i < 200; i++) {
        uint8_t bytes[256];

        test_hang_up(t);
        test_connect(t);
        if (i % 2)
            test_negotiate(t);
        for (size_t k = 0; k < sizeof(bytes); k++)
            bytes[k] = (uint8_t)test_random(t);
        if (test_below(t, 2))
            memset(bytes + 8, 0, 4); /* a command, mostly of gigabytes */
        test_put(t, bytes, 1 + test_below(t, sizeof(bytes)), NULL, 0);
    }
    test_hang_up(t);
    test_served(t);
}

#define RANDOM(n)                                                               \
    SLOW("random/sequences-" #n, "R-HDR-6 R-HDR-7 R-HDR-14 R-ORDER-1 R-LOSS-3", \
         "a thousand random sequences are answered as they should", sequences)

static const struct entry entries[] = {
    RANDOM(0),
    RANDOM(1),
    RANDOM(2),
    RANDOM(3),
    RANDOM(4),
    RANDOM(5),
    RANDOM(6),
    RANDOM(7),
    RANDOM(8),
    RANDOM(9),
    SLOW("random/noise", "R-LOSS-3", "random bytes do the server no harm", noise),
};

CASES(random_cases, entries);
