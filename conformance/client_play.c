/* SPDX-License-Identifier: BSD-3-Clause */
/* Serving the client up to what a case is about, and seeing what it does then. */
#include "conformance/client.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

/* A client that has said nothing for so long has nothing more to say. */
#define SILENCE_MS 1500

struct play *play_of(const struct test *t)
{
    return t->opaque;
}

/* ---- Answers ------------------------------------------------------------------------------- */

/* Behind an answer that is held back the others wait: they go out in the order of the commands. */
static void keep(struct test *t, const uint8_t *bytes, size_t len, unsigned nfds)
{
    struct play *p = play_of(t);

    MUST(t, nfds == 0 && len <= sizeof(p->backlog) - p->backlog_len,
         "the client goes on and on without an answer");
    memcpy(p->backlog + p->backlog_len, bytes, len);
    p->backlog_len += len;
}

static void finish(const struct answer *a, uint8_t *bytes, size_t *len)
{
    struct ob_wire_hdr hdr = a->hdr;

    if (!hdr.msg_size)
        hdr.msg_size = (uint32_t)sizeof(hdr) + a->len;
    memcpy(bytes, &hdr, sizeof(hdr));
    memcpy(bytes + sizeof(hdr), a->data, a->len);
    *len = sizeof(hdr) + a->len;
}

void play_send(struct test *t, struct answer *a)
{
    static uint8_t bytes[OB_MSG_MAX];
    struct play *p = play_of(t);
    size_t len;

    finish(a, bytes, &len);
    if (p->hold) {
        keep(t, bytes, len, a->nfds);
        return;
    }
    test_put(t, bytes, len, a->fds, a->nfds);
}

void play_send_split(struct test *t, struct answer *a)
{
    static uint8_t bytes[OB_MSG_MAX];
    size_t len;

    finish(a, bytes, &len);
    test_put(t, bytes, 1, a->fds, a->nfds);
    test_settle(t);
    for (size_t i = 1; i < len; i++)
        test_put(t, bytes + i, 1, NULL, 0);
}

void play_release(struct test *t, struct answer *a)
{
    struct play *p = play_of(t);

    p->hold = false;
    play_send(t, a);
    if (p->backlog_len)
        test_put(t, p->backlog, p->backlog_len, NULL, 0);
    p->backlog_len = 0;
}

/* ---- Serving ------------------------------------------------------------------------------- */

static bool is_command(const struct test *t)
{
    return (t->in.hdr.flags & OB_HDR_TYPE_MASK) == OB_HDR_COMMAND;
}

void play_answer(struct test *t, struct answer *a)
{
    struct play *p = play_of(t);

    if (p->look)
        p->look(t);
    device_answer(t, a);
    if (t->in.hdr.cmd < 32)
        p->commands |= 1u << t->in.hdr.cmd;
}

/* The same for what came over the main socket. */
static void make_answer(struct test *t, struct answer *a)
{
    struct play *p = play_of(t);

    play_answer(t, a);
    p->executed += t->in.hdr.cmd != OB_CMD_VERSION;
    ring_publish(p);
}

static void serve(struct test *t)
{
    static struct answer a;
    bool silent = t->in.hdr.flags & OB_HDR_NO_REPLY;

    make_answer(t, &a);
    if (!silent)
        play_send(t, &a);
}

static bool readable(const struct test *t, int timeout_ms)
{
    struct pollfd in = { .fd = t->links[t->at], .events = POLLIN };

    return poll(&in, 1, timeout_ms) > 0;
}

/* The same where commands come through a ring as well: all of them before the next message. */
static bool comes_by_ring(struct test *t)
{
    int64_t start_ns = test_now_ns(), now_ns = start_ns;
    bool ready = false;

    while (!ready && now_ns - start_ns < (int64_t)SILENCE_MS * 1000000) {
        MUST(t, now_ns < t->deadline_ns, "the client goes on and on");
        ready = readable(t, 0);
        if (play_of(t)->ring.look(t))
            start_ns = test_now_ns();
        else
            sched_yield();
        now_ns = test_now_ns();
    }
    return ready;
}

/* Whether something comes before the client has been silent for long. */
static bool comes(struct test *t)
{
    int64_t left_ms = (t->deadline_ns - test_now_ns()) / 1000000;

    MUST(t, left_ms > 0, "the client goes on and on");
    if (play_of(t)->ring.memory)
        return comes_by_ring(t);
    return readable(t, left_ms < SILENCE_MS ? (int)left_ms : SILENCE_MS);
}

struct answer *play_until(struct test *t, uint16_t cmd)
{
    struct answer *a = &play_of(t)->answer;

    for (;;) {
        if (!comes(t) || !test_get(t))
            test_not_offered(t, "the client did not send the command that this is about");
        MUST(t, is_command(t), "a reply comes that answers nothing");
        if (t->in.hdr.cmd == cmd && !(t->in.hdr.flags & OB_HDR_NO_REPLY)) {
            make_answer(t, a);
            return a;
        }
        serve(t);
    }
}

struct answer *play_until_region(struct test *t, uint32_t len)
{
    for (;;) {
        struct answer *a = play_until(t, OB_CMD_DEVICE_GET_REGION_INFO);
        struct ob_wire_region_info asked, told;

        memcpy(&asked, t->in.data, sizeof(asked));
        memcpy(&told, a->data, sizeof(told));
        if (asked.index == OB_PCI_REGION_BAR0 && asked.argsz >= len)
            return a;
        if (asked.index == OB_PCI_REGION_BAR0) {
            device_describe(play_of(t), asked.index, sizeof(told), a);
            memcpy(&told, a->data, sizeof(told));
            told.argsz = len;
            memcpy(a->data, &told, sizeof(told));
        }
        play_send(t, a);
    }
}

bool play_next(struct test *t)
{
    if (!comes(t) || !test_get(t))
        return false;
    MUST(t, is_command(t), "a reply comes that answers nothing");
    serve(t);
    return true;
}

void play_out(struct test *t)
{
    while (play_next(t))
        ;
}

/* ---- Commands of the server ---------------------------------------------------------------- */

static void check_reply(struct test *t, uint16_t cmd)
{
    const struct ob_wire_hdr *hdr = &t->in.hdr;
    enum ob_reason reason = ob_check_reply(hdr, cmd);

    MUST(t, reason == OB_OK, "the reply to %s: %s", ob_strcmd(cmd), ob_strreason(reason));
    MUST(t, t->in.nfds == 0, "the reply to %s has file descriptors", ob_strcmd(cmd));
    if (!(hdr->flags & OB_HDR_ERROR))
        return;
    MUST(t, hdr->error_no <= 4095, "the reply to %s says errno %d", ob_strcmd(cmd),
         (int)hdr->error_no);
    if (hdr->error_no == 0)
        test_deviates(t, "an error reply has the errno 0, as those of rust-vmm's crate");
    if (t->in.len)
        test_deviates(t, "an error reply has a payload");
}

int play_reply(struct test *t, uint16_t cmd, uint16_t id)
{
    for (;;) {
        while (play_of(t)->ring.memory && !comes(t))
            ;
        if (!test_get(t))
            return -1;
        if (!is_command(t))
            break;
        serve(t);
    }
    MUST(t, t->in.hdr.msg_id == id && t->in.hdr.cmd == cmd,
         "the reply to %s with id %u comes for %s with id %u", ob_strcmd(cmd), id,
         ob_strcmd(t->in.hdr.cmd), t->in.hdr.msg_id);
    check_reply(t, cmd);
    if (!(t->in.hdr.flags & OB_HDR_ERROR))
        return 0;
    return t->in.hdr.error_no ? (int)t->in.hdr.error_no : EINVAL;
}

/* ---- What becomes of it -------------------------------------------------------------------- */

static uint16_t probe(struct test *t)
{
    const struct ob_wire_dma_access access = { NOWHERE, 8 };

    return test_send_all(t, OB_CMD_DMA_READ, OB_HDR_COMMAND, &access, sizeof(access), NULL, 0);
}

/* Of a client that takes no commands: whether it goes on with its own. Mappings may be under way
 * in numbers, and tell nothing. */
static bool next_command(struct test *t)
{
    while (play_next(t))
        if (t->in.hdr.cmd != OB_CMD_DMA_MAP && t->in.hdr.cmd != OB_CMD_DMA_UNMAP)
            return true;
    return false;
}

static bool in_step(struct test *t)
{
    return play_of(t)->probes ? play_reply(t, OB_CMD_DMA_READ, probe(t)) >= 0 : next_command(t);
}

/* Whether a client that has closed its connection had come to the end of its program. */
static bool content(struct play *p, int timeout_ms)
{
    return process_ended(p, timeout_ms) && p->status == 0;
}

void play_goes_on(struct test *t)
{
    if (!in_step(t))
        MUST(t, content(play_of(t), 2000), "the client ended the connection, or fell silent");
}

void play_ends(struct test *t)
{
    MUST(t, !in_step(t), "the client goes on as if nothing had happened");
    while (test_get(t))
        serve(t);
    MUST(t, !content(play_of(t), 200), "the client takes it for a success");
}

void play_either(struct test *t)
{
    if (!in_step(t))
        while (test_get(t))
            serve(t);
}
