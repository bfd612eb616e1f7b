/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The client's end of the access ring. A server polls when it likes, mostly for a moment after a
 * request: so a command is put there right after one, is taken back when the moment was over, and
 * tried again. A server that never polls cannot be told more of.
 */
#include "conformance/ring.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>

#define WAKES_NS 200000

struct ring_use ring_use;

/* The descriptor that comes with the reply to a VERSION that asks for the ring; -1: none. */
int ring_ask(struct test *t, const char *json)
{
    int at;

    test_is_ok(t, test_version(t, 0, 0, json, strlen(json) + 1), OB_CMD_VERSION);
    at = test_came_along(t, "access_ring");
    return at < 0 ? -1 : t->in.fds[at];
}

void ring_use_begin(struct test *t)
{
    int fd = ring_ask(t, RING_ASK("8"));
    struct stat st;

    if (fd < 0)
        test_not_offered(t, "the server has no access ring");
    if (!device_has_config(t))
        test_not_offered(t, "the device has no config space");
    MUST(t, fstat(fd, &st) == 0 && fcntl(fd, F_GET_SEALS) >= 0, "the ring is no memory");
    MUST(t, fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK, "the ring can be cut");
    MUST(t, fcntl(fd, F_GET_SEALS) & F_SEAL_GROW, "the ring can grow");
    MUST(t, st.st_size == (off_t)sizeof(struct ring), "the ring has %lld bytes",
         (long long)st.st_size);
    memset(&ring_use, 0, sizeof(ring_use));
    ring_use.base = t->sent;
    ring_use.until_ns = test_now_ns() + (t->deadline_ns - test_now_ns()) / 2;
    ring_use.ring = test_map(t, fd, sizeof(struct ring));
}

/* ---- Commands ------------------------------------------------------------------------------ */

/* Whether the server polls and has executed all that was sent. */
bool ring_is_open(const struct test *t)
{
    return ring_use.ring->accepts == ((t->sent - ring_use.base) << 1 | RING_POLLS);
}

void ring_fill(struct ring_entry *e, const struct ring_command *c)
{
    e->flags = c->flags;
    e->msg_id = RING_ID;
    e->cmd = c->cmd;
    e->region = c->region;
    e->offset = c->offset;
    e->count = c->count;
    e->data = c->data;
}

/* False: it was taken back, since the server did not poll any more. */
bool ring_try(struct test *t, const struct ring_command *c)
{
    struct ring_entry *e = ring_entry(ring_use.ring, ring_use.at);
    uint32_t ready = ring_before(ring_use.at) + RING_READY + c->asked, state = e->state;

    MUST(t, state == ring_before(ring_use.at), "the state of a free entry is 0x%x, not 0x%x", state,
         ring_before(ring_use.at));
    ring_fill(e, c);
    e->state = ready;
    ring_use.at++;
    return ring_is_open(t) ||
           !atomic_compare_exchange_strong(&e->state, &ready, ring_after(ring_use.at - 1));
}

void ring_hear(struct test *t)
{
    if (ring_use.woken)
        test_is_ok(t, test_reply(t, OB_CMD_DEVICE_GET_INFO, ring_use.id), OB_CMD_DEVICE_GET_INFO);
    ring_use.woken = false;
}

/* Returns when the server polls, or does not in spite of a request. ring_hear() has the reply. */
void ring_wake(struct test *t)
{
    struct ob_wire_device_info info = { .argsz = sizeof(info) };
    int64_t until_ns;

    ring_hear(t);
    ring_use.id = test_send(t, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info));
    ring_use.woken = true;
    until_ns = test_now_ns() + WAKES_NS;
    while (!ring_is_open(t) && test_now_ns() < until_ns)
        sched_yield();
}

/* A command may be taken back again and again. */
static void may_go_on(struct test *t)
{
    uint32_t accepts = ring_use.ring->accepts, sent = t->sent - ring_use.base;

    if (test_now_ns() < ring_use.until_ns)
        return;
    MUST(t, !(accepts & RING_POLLS) || accepts >> 1 == sent,
         "accepts says %u commands, %u were sent", accepts >> 1, sent);
    test_not_offered(t, "the server does not poll, or not for long");
}

void ring_open(struct test *t)
{
    while (!ring_is_open(t)) {
        may_go_on(t);
        ring_wake(t);
    }
}

void ring_put(struct test *t, const struct ring_command *c)
{
    ring_open(t);
    while (!ring_try(t, c)) {
        may_go_on(t);
        ring_open(t);
    }
    ring_hear(t);
}

/* Waits until the last command is done. */
struct ring_entry *ring_wait(struct test *t)
{
    struct ring_entry *e = ring_entry(ring_use.ring, ring_use.at - 1);
    uint32_t after = ring_after(ring_use.at - 1), seen;

    while (e->state != after) {
        MUST(t, test_now_ns() < t->deadline_ns, "a command in the ring is not executed");
        sched_yield();
    }
    seen = e->done;
    MUST(t, seen == after, "the entry is free, and done is 0x%x, not 0x%x", seen, after);
    return e;
}

/* Its errno. */
uint32_t ring_execute(struct test *t, const struct ring_command *c)
{
    uint32_t error;

    ring_put(t, c);
    error = ring_wait(t)->error;
    MUST(t, error <= 4095, "the error in the ring is %d", (int)error);
    return error;
}
