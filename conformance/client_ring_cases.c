/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The access ring: what a client makes of one, or of none. A client that never puts a command there
 * keeps the rules, too; what can be seen of its commands only is then not offered.
 */
#include "conformance/client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#define FIRST "{\"supported\":true,\"fd_index\":0}"

/* Times in which a client that polls, or that looks once more, has done so. */
#define OPEN_NS    30000
#define CLOSED_NS  60000
#define NOTICED_NS 500000000
#define HELD_NS    20000000

static struct play_ring *ring_of(const struct test *t)
{
    return &play_of(t)->ring;
}

/* The rest of a session that must go well. */
static void session(struct test *t)
{
    play_out(t);
    play_goes_on(t);
}

/* The same, and the client has put something into the ring. */
static void session_in_ring(struct test *t)
{
    session(t);
    if (!ring_of(t)->used)
        test_not_offered(t, "the client does not use the ring");
}

/* ---- VERSION ------------------------------------------------------------------------------- */

struct row {
    const char *id, *value;
    void (*then)(struct test *t);
};

/* There is a ring, but what is said of it is wrong. */
static const struct row rows[] = {
    { "ring/no-index", "{\"supported\":true}", play_ends },
    { "ring/index-text", "{\"supported\":true,\"fd_index\":\"0\"}", play_ends },
    { "ring/boolean", "true", play_ends },
    { "ring/supported-number", "{\"supported\":1,\"fd_index\":0}", play_ends },
    { "ring/not-supported", "{\"supported\":false,\"fd_index\":0}", session },
    { "ring/index-outside", "{\"supported\":true,\"fd_index\":7}", session },
};

static void wrongly_said(struct test *t)
{
    int fd = ring_file(t, sizeof(struct ring), true);
    const struct row *row = rows;

    while (strcmp(row->id, t->entry->id) != 0)
        row++;
    ring_map(t, fd);
    ring_of(t)->useless = true;
    ring_say(t, row->value, &fd, 1);
    row->then(t);
}

/* ---- Descriptors that are of no use -------------------------------------------------------- */

static void no_descriptor(struct test *t)
{
    ring_say(t, FIRST, NULL, 0);
    session(t);
}

static int pipe_end(struct test *t)
{
    int fds[2];

    MUST(t, pipe2(fds, O_CLOEXEC) == 0, "no pipe: %s", strerror(errno));
    test_keep(t, fds[0]);
    return test_keep(t, fds[1]);
}

static void not_memory(struct test *t)
{
    int fd = pipe_end(t);

    ring_say(t, FIRST, &fd, 1);
    session(t);
}

static void useless_file(struct test *t, size_t size, bool can_be_sealed)
{
    int fd = ring_file(t, size, can_be_sealed);

    ring_map(t, fd);
    ring_of(t)->useless = true;
    ring_say(t, FIRST, &fd, 1);
    session(t);
}

static void too_small(struct test *t)
{
    useless_file(t, sizeof(struct ring) - PAGE, true);
}

static void can_be_cut(struct test *t)
{
    useless_file(t, sizeof(struct ring), false);
}

/* The client may do it. */
static void not_sealed_yet(struct test *t)
{
    int fd = test_memfd(t, sizeof(struct ring));

    ring_map(t, fd);
    ring_say(t, FIRST, &fd, 1);
    session(t);
    MUST(t, !ring_of(t)->used || fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK,
         "the client uses a ring that can be cut");
}

static void second_descriptor(struct test *t)
{
    int fds[2] = { pipe_end(t), ring_file(t, sizeof(struct ring), true) };

    ring_map(t, fds[1]);
    ring_say(t, "{\"supported\":true,\"fd_index\":1}", fds, 2);
    session_in_ring(t);
}

/* ---- What is put there --------------------------------------------------------------------- */

static void used(struct test *t)
{
    struct play_ring *ring = ring_of(t);

    ring_begin(t);
    session_in_ring(t);
    for (uint32_t at = ring->at > RING_ENTRIES ? ring->at - RING_ENTRIES : 0; at < ring->at; at++)
        MUST(t, ring_entry(ring->memory, at)->state == ring_after(at),
             "the client changed the state of a command that is done to 0x%x",
             ring_entry(ring->memory, at)->state);
}

static void turns(struct test *t)
{
    ring_begin(t);
    session(t);
    if (ring_of(t)->at <= RING_ENTRIES)
        test_not_offered(t, "the client does not use the ring so often");
}

/* A session whose accepts say that nothing may be put there. */
static void unused(struct test *t, bool closed, uint32_t lie)
{
    struct play_ring *ring = ring_of(t);

    ring->useless = true;
    ring->closed = closed;
    ring->lie = lie;
    ring_begin(t);
    session(t);
}

static void closed(struct test *t)
{
    unused(t, true, 0);
}

static void counts_more(struct test *t)
{
    unused(t, false, 1000); /* more than may be under way */
}

static void counts_less(struct test *t)
{
    unused(t, false, UINT32_MAX);
}

static bool look_at_states(struct test *t)
{
    for (uint32_t at = 0; at < RING_ENTRIES; at++)
        MUST(t, ring_entry(ring_of(t)->memory, at)->state == RING_TURN,
             "the client uses an entry that is not free in its turn");
    return false;
}

static void not_free(struct test *t)
{
    int fd = ring_file(t, sizeof(struct ring), true);

    ring_map(t, fd);
    for (uint32_t at = 0; at < RING_ENTRIES; at++)
        ring_entry(ring_of(t)->memory, at)->state = RING_TURN;
    ring_of(t)->look = look_at_states;
    ring_say(t, FIRST, &fd, 1);
    session(t);
}

/* ---- A server that stops polling ----------------------------------------------------------- */

/* What is there when it has looked once more has been taken back, or will be. */
static bool look_closed(struct test *t)
{
    struct play_ring *ring = ring_of(t);
    int64_t start_ns = test_now_ns(), now_ns = start_ns;
    bool any;

    ring->closed = true;
    ring_publish(play_of(t));
    any = ring_look(t);
    while (now_ns - start_ns < CLOSED_NS) {
        const struct ring_entry *e = ring_entry(ring->memory, ring->at);

        while (e->state == ring_before(ring->at) + RING_READY) {
            MUST(t, test_now_ns() - start_ns < NOTICED_NS,
                 "a command was put there when nobody looked any more, and not taken back");
            sched_yield();
        }
        now_ns = test_now_ns();
    }
    ring->closed = false;
    return any;
}

static bool look_now_and_then(struct test *t)
{
    bool any = look_closed(t);
    int64_t start_ns = test_now_ns();

    ring_publish(play_of(t));
    while (test_now_ns() - start_ns < OPEN_NS)
        any |= ring_look(t);
    return any;
}

static void closing(struct test *t)
{
    int fd = ring_file(t, sizeof(struct ring), true);

    ring_map(t, fd);
    ring_of(t)->look = look_now_and_then;
    ring_say(t, FIRST, &fd, 1);
    session_in_ring(t);
}

/* ---- What becomes of a command -------------------------------------------------------------- */

/* Who has not asked by then looks at the ring. */
static void when_asked(struct test *t, struct ring_entry *e, uint32_t after, struct answer *a)
{
    bool posted = t->in.hdr.flags & OB_HDR_NO_REPLY;
    int64_t start_ns = test_now_ns();

    while (!posted && !(e->state & RING_ASKED) && test_now_ns() - start_ns < HELD_NS)
        sched_yield();
    ring_finish(t, e, after, a);
}

static void asked(struct test *t)
{
    ring_begin(t);
    ring_of(t)->finish = when_asked;
    session_in_ring(t);
}

static void with_error(struct test *t, struct ring_entry *e, uint32_t after, struct answer *a)
{
    answer_refuse(a, EIO);
    ring_finish(t, e, after, a);
}

static void errors(struct test *t)
{
    ring_begin(t);
    ring_of(t)->finish = with_error;
    session_in_ring(t);
}

static void with_error_of_ones(struct test *t, struct ring_entry *e, uint32_t after,
                               struct answer *a)
{
    answer_refuse(a, UINT32_MAX);
    ring_finish(t, e, after, a);
}

static void error_of_ones(struct test *t)
{
    ring_begin(t);
    ring_of(t)->finish = with_error_of_ones;
    play_out(t);
    play_either(t);
}

/* Other data, as the result of another turn; the right one comes later. */
static void with_other_turn(struct test *t, struct ring_entry *e, uint32_t after, struct answer *a)
{
    uint8_t *first = a->data + sizeof(struct ob_wire_region_access);

    *first ^= 0xff;
    ring_leave(t, e, after + RING_TURN, a);
    *first ^= 0xff;
    when_asked(t, e, after, a);
}

static void other_turn(struct test *t)
{
    ring_begin(t);
    ring_of(t)->finish = with_other_turn;
    session_in_ring(t);
}

/* ---- Nobody waits for ever ------------------------------------------------------------------ */

/* Takes one, and is not done with it. */
static void hang(struct test *t, struct ring_entry *e, uint32_t after, struct answer *a)
{
    if (t->in.hdr.flags & OB_HDR_NO_REPLY) {
        ring_finish(t, e, after, a);
        return;
    }
    play_of(t)->looked++;
    ring_of(t)->finish = ring_finish;
}

static void until_hung(struct test *t)
{
    ring_begin(t);
    ring_of(t)->finish = hang;
    while (!play_of(t)->looked && play_next(t))
        ;
    if (!play_of(t)->looked)
        test_not_offered(t, "the client does not use the ring");
}

static void never_done(struct test *t)
{
    struct pollfd in = { .fd = t->links[t->at], .events = POLLIN };

    until_hung(t);
    while (poll(&in, 1, 0) == 0 && !ring_look(t)) {
        MUST(t, test_now_ns() < t->deadline_ns, "the client waits for ever");
        sched_yield();
    }
    play_out(t);
    play_either(t);
}

static void dies(struct test *t)
{
    until_hung(t);
    shutdown(t->links[t->at], SHUT_WR);
    while (test_get(t))
        ;
}

/* Nonsense as soon as a command is there, small numbers mostly. */
static bool scribble(struct test *t)
{
    uint32_t *words = t->mapped;

    if (ring_entry(ring_of(t)->memory, 0)->state == ring_before(0))
        return false;
    for (size_t i = 0; i < sizeof(struct ring) / sizeof(*words); i++) {
        uint64_t random = test_random(t);

        __atomic_store_n(&words[i], (uint32_t)(random >> 32) & (random & 3 ? 0x1f : UINT32_MAX),
                         __ATOMIC_RELAXED);
    }
    return false;
}

static void garbage(struct test *t)
{
    int fd = ring_file(t, sizeof(struct ring), true);

    ring_map(t, fd);
    ring_of(t)->look = scribble;
    ring_say(t, FIRST, &fd, 1);
    play_out(t);
    play_either(t);
}

/* Longer than a client waits for an answer. */
#define LONG(id, rules, says, run)             \
    {                                          \
        id, rules, says, run, true, 2, 0, NULL \
    }

static const struct entry entries[] = {
    RAW("ring/no-index", "R-RING-2", "a ring without an index ends the connection", wrongly_said),
    RAW("ring/index-text", "R-CAPS-4", "the index of the ring is a number", wrongly_said),
    RAW("ring/boolean", "R-CAPS-4", "access_ring is an object", wrongly_said),
    RAW("ring/supported-number", "R-CAPS-4", "supported is a boolean", wrongly_said),
    RAW("ring/not-supported", "R-RING-2", "a ring that is not supported is none", wrongly_said),
    RAW("ring/no-descriptor", "R-RING-2", "a ring that does not come is none", no_descriptor),
    RAW("ring/index-outside", "R-RING-2", "a ring of another index is none", wrongly_said),
    RAW("ring/not-memory", "R-RING-2", "a ring that is no memory is not used", not_memory),
    RAW("ring/too-small", "R-RING-2", "a ring that is too small is not used", too_small),
    RAW("ring/can-be-cut", "R-RING-2", "a ring that can become too small is not used", can_be_cut),
    RAW("ring/not-sealed-yet", "R-RING-2", "a ring is sealed by one of both, or not used",
        not_sealed_yet),
    RAW("ring/second-descriptor", "R-RING-2", "the ring is the descriptor with its index",
        second_descriptor),
    RAW("ring/used", "R-RING-3 R-RING-4 R-RING-7 R-RING-8",
        "accesses are put into the ring, whole and in order", used),
    RAW("ring/turns", "R-RING-3", "entries are used again in their turn", turns),
    RAW("ring/closed", "R-RING-3", "nothing is put there while the server does not poll", closed),
    RAW("ring/counts-more", "R-RING-3", "nothing is put there while accepts counts too many",
        counts_more),
    RAW("ring/counts-less", "R-RING-3", "nothing is put there before all was executed",
        counts_less),
    RAW("ring/not-free", "R-RING-3 R-RING-9", "nothing is put where it is not free", not_free),
    RAW("ring/closing", "R-RING-4", "what was put there too late is taken back", closing),
    RAW("ring/asked", "R-RING-7", "an answer over the socket is taken by who asked for it", asked),
    RAW("ring/errors", "R-RING-6 R-RING-8", "an error in the ring is that of the access", errors),
    RAW("ring/error-of-ones", "R-RING-9", "no error does any harm", error_of_ones),
    RAW("ring/other-turn", "R-RING-9", "what another turn has left is no result", other_turn),
    LONG("ring/never-done", "R-RING-9 R-ORDER-7", "a command that is never done is given up",
         never_done),
    RAW("ring/dies", "R-LOSS-4 R-LOSS-5", "a server may die with a command in the ring", dies),
    LONG("ring/garbage", "R-RING-9", "nothing in the ring does any harm", garbage),
};
CASES(client_ring_cases, entries);
