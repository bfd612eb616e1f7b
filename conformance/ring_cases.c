/* SPDX-License-Identifier: BSD-3-Clause */
/* The access ring: what a server does with what is there. */
#include "conformance/ring.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define CONFIG OB_PCI_REGION_CONFIG
#define ROUNDS 100u

static const struct ring_command read_line = {
    .cmd = OB_CMD_REGION_READ, .region = CONFIG, .offset = CONFIG_LINE, .count = 1
};

static struct ring_command post(uint64_t value)
{
    struct ring_command c = read_line;

    c.cmd = OB_CMD_REGION_WRITE;
    c.flags = OB_HDR_NO_REPLY;
    c.data = value;
    return c;
}

static void ring_line_is(struct test *t, uint8_t value)
{
    uint32_t error = ring_execute(t, &read_line);
    uint8_t line = (uint8_t)ring_entry(ring_use.ring, ring_use.at - 1)->result;

    MUST(t, error == 0, "a read in the ring was refused: %s", strerror((int)error));
    MUST(t, line == value, "the interrupt line reads 0x%02x in the ring, not 0x%02x", line, value);
}

static void line_is(struct test *t, uint8_t value)
{
    uint32_t line = device_read(t, CONFIG, CONFIG_LINE, 1);

    MUST(t, line == value, "the interrupt line reads 0x%02x, not 0x%02x", line, value);
}

/* ---- What comes with VERSION --------------------------------------------------------------- */

static void comes_along(struct test *t)
{
    static const struct ring none;

    ring_use_begin(t);
    MUST(t, ring_use.ring->accepts <= RING_POLLS, "accepts begins as 0x%x", ring_use.ring->accepts);
    MUST(t, memcmp(ring_use.ring->pad, none.pad, sizeof(none) - sizeof(none.accepts)) == 0,
         "the ring is not zeroed");
    test_alive(t);
}

static void not_asked(struct test *t)
{
    MUST(t, ring_ask(t, TEST_CAPS("\"max_msg_fds\":8")) < 0,
         "the server turns access_ring on, which was not proposed");
    MUST(t, t->in.nfds == 0, "%u fds came with VERSION", t->in.nfds);
    test_hang_up(t);
    test_connect(t);
    MUST(t, ring_ask(t, TEST_CAPS("\"access_ring\":{\"supported\":false}")) < 0,
         "the server turns access_ring on, which the client does not support");
}

static void no_room(struct test *t)
{
    static const char ask[] = TEST_CAPS("\"max_msg_fds\":1,\"twin_socket\":{\"supported\":true},"
                                        "\"access_ring\":{\"supported\":true}");

    MUST(t, ring_ask(t, RING_ASK("0")) < 0, "a client that takes no fds got a ring");
    test_hang_up(t);
    test_connect(t);
    ring_ask(t, ask);
    MUST(t, t->in.nfds <= 1, "%u fds came, 1 is taken", t->in.nfds);
    if (t->in.nfds == 1)
        test_keep(t, dup(t->in.fds[0])); /* the end of a twin would be that of the connection */
    test_alive(t);
}

/* A ring of a connection that is over: what is in it is nobody's. */
static void another_one(struct test *t)
{
    struct ring_command c = post(0x77);
    struct ring_entry *e;
    struct ring *old;
    int fd;

    ring_use_begin(t);
    device_write(t, CONFIG, CONFIG_LINE, 0x21, 1);
    old = ring_use.ring;
    t->mapped = NULL;
    test_hang_up(t);
    test_connect(t);
    fd = ring_ask(t, RING_ASK("8"));
    e = ring_entry(old, 0);
    ring_fill(e, &c);
    e->state = ring_before(0) + RING_READY;
    munmap(old, sizeof(*old));
    MUST(t, fd >= 0, "only the first connection got a ring");
    ring_use.ring = test_map(t, fd, sizeof(struct ring));
    MUST(t, ring_entry(ring_use.ring, 0)->count == 0, "the ring is that of the connection before");
    line_is(t, 0x21);
}

static void not_acceptable(struct test *t)
{
    static const char *const wrong[] = { TEST_CAPS("\"access_ring\":true"),
                                         TEST_CAPS("\"access_ring\":{\"supported\":1}") };

    ring_use_begin(t);
    test_hang_up(t);
    for (unsigned i = 0; i < 2; i++) {
        test_connect(t);
        MUST(t, test_version(t, 0, 0, wrong[i], strlen(wrong[i]) + 1) != 0,
             "VERSION was answered with success");
        test_closed(t);
    }
    test_served(t);
}

/* ---- Accesses ------------------------------------------------------------------------------ */

static void reads(struct test *t)
{
    ring_use_begin(t);
    for (uint32_t count = 1; count <= RING_DATA; count *= 2) {
        struct ob_wire_region_access access = { 0, CONFIG, count };
        struct ring_command c = { .cmd = OB_CMD_REGION_READ, .region = CONFIG, .count = count };
        uint32_t error = ring_execute(t, &c);
        uint64_t result = ring_entry(ring_use.ring, ring_use.at - 1)->result;
        int got = test_ask(t, OB_CMD_REGION_READ, &access, sizeof(access));

        MUST(t, (int)error == got, "errno %u in the ring, %d in a message", error, got);
        MUST(t, got || memcmp(t->in.data + sizeof(access), &result, count) == 0,
             "%u bytes read in the ring are others than in a message", count);
    }
    test_alive(t);
}

static void writes(struct test *t)
{
    ring_use_begin(t);
    for (uint8_t i = 0; i < 20; i++) {
        struct ring_command c = post(0xffffff00u | i);

        c.flags = 0;
        MUST(t, ring_execute(t, &c) == 0, "a write in the ring was refused");
        line_is(t, i);
        ring_line_is(t, i);
    }
    test_alive(t);
}

static void posted(struct test *t)
{
    struct ring_command c = post(0x41), bad = c;
    struct ring_entry *e;

    ring_use_begin(t);
    bad.region = UINT32_MAX;
    for (unsigned i = 0; i < 2; i++) {
        e = ring_entry(ring_use.ring, ring_use.at);
        e->error = 0x7fff;
        e->result = 0x7fff;
        ring_put(t, i ? &c : &bad);
        ring_wait(t);
        MUST(t, e->error == 0x7fff && e->result == 0x7fff, "a posted write has a result");
    }
    line_is(t, 0x41);
}

/* ---- Order --------------------------------------------------------------------------------- */

static void ring_first(struct test *t)
{
    ring_use_begin(t);
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct ring_command c = post(i);

        ring_put(t, &c);
        line_is(t, (uint8_t)i);
    }
}

static void socket_first(struct test *t)
{
    struct ob_wire_region_access access = { CONFIG_LINE, CONFIG, 1 };
    uint8_t payload[sizeof(access) + 1];

    ring_use_begin(t);
    memcpy(payload, &access, sizeof(access));
    for (unsigned i = 0; i < ROUNDS; i++) {
        payload[sizeof(access)] = (uint8_t)i;
        test_send_all(t, OB_CMD_REGION_WRITE, OB_HDR_NO_REPLY, payload, sizeof(payload), NULL, 0);
        ring_line_is(t, (uint8_t)i);
    }
}

/* The second command is ready first. */
static void in_order(struct test *t)
{
    struct ring_command first = post(0x11), second = post(0x22);
    bool was_in;

    ring_use_begin(t);
    do {
        struct ring_entry *e = ring_entry(ring_use.ring, ring_use.at + 1);

        device_write(t, CONFIG, CONFIG_LINE, 0, 1);
        ring_fill(e, &second);
        e->state = ring_before(ring_use.at + 1) + RING_READY;
        line_is(t, 0);
        ring_open(t);
        was_in = ring_try(t, &first);
        ring_use.at++;
        ring_wake(t);
        ring_hear(t);
        ring_wait(t);
    } while (!was_in);
    line_is(t, 0x22);
}

static void taken_back(struct test *t)
{
    struct ring_command c = post(0x33);
    struct ring_entry *e;

    ring_use_begin(t);
    device_write(t, CONFIG, CONFIG_LINE, 0x21, 1);
    e = ring_entry(ring_use.ring, ring_use.at);
    ring_fill(e, &c);
    e->state = ring_after(ring_use.at++);
    ring_line_is(t, 0x21);
}

static void turns(struct test *t)
{
    ring_use_begin(t);
    for (unsigned i = 0; i < 2 * RING_ENTRIES; i++) {
        struct ring_command c = post(i);

        ring_put(t, &c);
        ring_line_is(t, (uint8_t)i);
    }
    test_alive(t);
}

/* The server may be about to sleep. */
static void never_lost(struct test *t)
{
    ring_use_begin(t);
    for (unsigned done = 0; done < 2 * ROUNDS;) {
        struct ring_command c = post(done);
        int64_t until_ns;

        ring_open(t);
        until_ns = test_now_ns() + test_below(t, 70000);
        while (test_now_ns() < until_ns && ring_is_open(t))
            ;
        if (ring_is_open(t) && ring_try(t, &c)) {
            ring_wait(t);
            done++;
        }
        ring_hear(t);
    }
}

/* ---- Asking -------------------------------------------------------------------------------- */

static void asked(struct test *t)
{
    struct ring_command c = read_line, silent = post(0x5b);
    struct ob_wire_region_access echo;

    ring_use_begin(t);
    device_write(t, CONFIG, CONFIG_LINE, 0x5a, 1);
    c.asked = silent.asked = RING_ASKED;
    ring_put(t, &c);
    test_is_ok(t, test_reply(t, OB_CMD_REGION_READ, RING_ID), OB_CMD_REGION_READ);
    MUST(t, t->in.len == sizeof(echo) + 1, "the reply has %u bytes", t->in.len);
    memcpy(&echo, t->in.data, sizeof(echo));
    MUST(t, echo.offset == CONFIG_LINE && echo.region == CONFIG && echo.count == 1,
         "the reply does not repeat the request");
    MUST(t, t->in.data[sizeof(echo)] == 0x5a, "the reply has other data");
    ring_wait(t);
    ring_put(t, &silent);
    ring_wait(t);
    c.region = UINT32_MAX;
    ring_put(t, &c);
    test_is_refused(t, test_reply(t, OB_CMD_REGION_READ, RING_ID), EINVAL, OB_CMD_REGION_READ);
    ring_wait(t);
    line_is(t, 0x5b);
}

/* ---- What is refused, or nothing at all ---------------------------------------------------- */

static void refused(struct test *t)
{
    static const struct {
        const char *what;
        struct ring_command c;
    } bad[] = {
        { "an unknown region", { 0, 4096, 1, OB_CMD_REGION_WRITE, CONFIG_LINE, 1, 0 } },
        { "what is past the end", { 0, CONFIG, 1, OB_CMD_REGION_WRITE, 1u << 20, 1, 0 } },
        { "no bytes", { 0, CONFIG, 0, OB_CMD_REGION_WRITE, CONFIG_LINE, 1, 0 } },
        { "nine bytes", { 0, CONFIG, RING_DATA + 1, OB_CMD_REGION_READ, 0, 1, 0 } },
        { "4 GiB", { 0, CONFIG, UINT32_MAX, OB_CMD_REGION_WRITE, CONFIG_LINE, 1, 0 } },
        { "another command", { 0, CONFIG, 1, OB_CMD_DEVICE_RESET, CONFIG_LINE, 1, 0 } },
        { "no command", { 0, CONFIG, 1, 0, CONFIG_LINE, 1, 0 } },
        { "an undefined flag", { 0x100, CONFIG, 1, OB_CMD_REGION_WRITE, CONFIG_LINE, 1, 0 } },
        { "a reply", { OB_HDR_REPLY, CONFIG, 1, OB_CMD_REGION_WRITE, CONFIG_LINE, 1, 0 } },
    };

    ring_use_begin(t);
    device_write(t, CONFIG, CONFIG_LINE, 0x21, 1);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        uint32_t error = ring_execute(t, &bad[i].c);

        MUST(t, error, "%s was taken in the ring", bad[i].what);
        if (error != EINVAL)
            test_deviates(t, "%s was refused in the ring with \"%s\"", bad[i].what,
                          strerror((int)error));
        ring_line_is(t, 0x21);
    }
    test_alive(t);
}

/* The states that are no command, with one in the entry that would be seen. */
static void no_command(struct test *t)
{
    static const uint32_t states[] = { RING_TURN + RING_READY,
                                       0u - RING_TURN + RING_READY,
                                       2 * RING_TURN + RING_READY,
                                       RING_TAKEN,
                                       RING_STEPS,
                                       RING_ASKED,
                                       2 * RING_TURN,
                                       UINT32_MAX };
    struct ring_command c = post(0x33);

    ring_use_begin(t);
    device_write(t, CONFIG, CONFIG_LINE, 0x21, 1);
    for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++) {
        struct ring_entry *e = ring_entry(ring_use.ring, ring_use.at);

        ring_fill(e, &c);
        e->state = states[i];
        for (unsigned round = 0; round < 5; round++) {
            ring_wake(t);
            ring_hear(t);
            line_is(t, 0x21);
        }
        MUST(t, e->state == states[i], "the state 0x%x, which says nothing, became 0x%x", states[i],
             e->state);
    }
    ring_entry(ring_use.ring, ring_use.at)->state = ring_before(ring_use.at);
    ring_line_is(t, 0x21);
}

static void garbage(struct test *t)
{
    uint32_t *words;

    ring_use_begin(t);
    words = t->mapped;
    device_write(t, CONFIG, CONFIG_LINE, 0x21, 1);
    for (unsigned round = 0; round < 20; round++) {
        for (size_t i = 0; i < sizeof(struct ring) / sizeof(*words); i++)
            __atomic_store_n(&words[i], (uint32_t)test_random(t) | RING_STEPS, __ATOMIC_RELAXED);
        line_is(t, 0x21);
        test_alive(t);
    }
    test_hang_up(t);
    test_served(t);
    line_is(t, 0x21);
}

static void garbage_commands(struct test *t)
{
    ring_use_begin(t);
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t random = test_random(t);
        struct ring_command c = { .flags = random & 1 ? 0 : (uint32_t)(random & 0xffcf),
                                  .region = (uint32_t)test_below(t, 12),
                                  .count = (uint32_t)test_below(t, 12),
                                  .cmd = (uint16_t)(random & 2 ? OB_CMD_REGION_READ : random >> 48),
                                  .offset = random & 4 ? test_random(t) : test_below(t, 512) };

        c.cmd = c.cmd == OB_CMD_REGION_WRITE ? OB_CMD_REGION_READ : c.cmd;
        ring_execute(t, &c);
    }
    test_alive(t);
}

static void left_behind(struct test *t)
{
    struct ring_command c = post(0x33);

    ring_use_begin(t);
    ring_open(t);
    for (unsigned i = 0; i < RING_ENTRIES; i++) {
        ring_fill(ring_entry(ring_use.ring, i), &c);
        ring_entry(ring_use.ring, i)->state = ring_before(i) + RING_READY;
    }
    ring_use.woken = false;
    test_hang_up(t);
    test_served(t);
}

static const struct entry entries[] = {
    RAW("ring/comes-along", "R-RING-1", "a ring that is on comes along, sealed and zeroed",
        comes_along),
    RAW("ring/not-asked", "R-RING-1 R-CAPS-6", "there is none for a client that did not ask",
        not_asked),
    RAW("ring/no-room", "R-RING-1 R-CAPS-7", "there is none for a client that takes no more fds",
        no_room),
    RAW("ring/another-one", "R-RING-1", "each connection has its own", another_one),
    RAW("ring/not-acceptable", "R-CAPS-4", "an access_ring of the wrong type ends the connection",
        not_acceptable),
    RAW("ring/reads", "R-RING-5 R-RING-6 R-RING-7", "a read does what a message does, unanswered",
        reads),
    RAW("ring/writes", "R-RING-5 R-RING-6", "a write does what a message does", writes),
    RAW("ring/posted", "R-RING-6 R-RING-8 R-HDR-7", "a posted write is executed and says nothing",
        posted),
    RAW("ring/before-the-socket", "R-RING-5", "what is in the ring comes before what is sent next",
        ring_first),
    RAW("ring/behind-the-socket", "R-RING-3", "accepts counts what was executed, posted or not",
        socket_first),
    RAW("ring/in-order", "R-RING-5", "a command waits for the one before", in_order),
    RAW("ring/taken-back", "R-RING-4 R-RING-5", "a command that was taken back is not executed",
        taken_back),
    RAW("ring/turns", "R-RING-5", "entries are used again and again", turns),
    RAW("ring/never-lost", "R-RING-5", "no command is lost when the server stops polling",
        never_lost),
    RAW("ring/asked", "R-RING-7", "who asks is answered over the socket, once", asked),
    RAW("ring/refused", "R-RING-8", "what a message would be refused for is refused", refused),
    RAW("ring/no-command", "R-RING-9", "other states and other turns mean no command", no_command),
    RAW("ring/garbage", "R-RING-9", "nothing in the ring harms what goes over the socket", garbage),
    RAW("ring/garbage-commands", "R-RING-8 R-RING-9", "commands of nonsense have an end",
        garbage_commands),
    RAW("ring/left-behind", "R-RING-9", "a client may leave with its ring full", left_behind),
};

CASES(ring_cases, entries);
