/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The access ring of the device that is played. What the client puts there is executed while the
 * next message is waited for, and before it is looked at: like a message, so that what a case looks
 * for in commands is looked for in these, too.
 */
#include "conformance/client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

void ring_say(struct test *t, const char *value, const int *fds, unsigned nfds)
{
    struct answer *a = play_until(t, OB_CMD_VERSION);

    if (!memmem(t->in.data, t->in.len, "\"access_ring\"", 13))
        test_not_offered(t, "the client did not ask for an access ring");
    a->len = (uint32_t)sizeof(struct ob_wire_version);
    a->len += (uint32_t)snprintf((char *)a->data + a->len, 1024,
                                 "{\"capabilities\":{%s,\"access_ring\":%s}}",
                                 play_of(t)->capabilities, value) +
              1;
    for (unsigned i = 0; i < nfds; i++)
        a->fds[a->nfds++] = fds[i];
    play_send(t, a);
}

int ring_file(struct test *t, size_t size, bool can_be_sealed)
{
    int fd =
        test_keep(t, memfd_create("ring", MFD_CLOEXEC | (can_be_sealed ? MFD_ALLOW_SEALING : 0)));

    MUST(t, ftruncate(fd, (off_t)size) == 0, "no memory: %s", strerror(errno));
    if (can_be_sealed)
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
    return fd;
}

void ring_publish(struct play *p)
{
    if (p->ring.memory)
        p->ring.memory->accepts =
            (p->executed + p->ring.lie) << 1 | (p->ring.closed ? 0 : RING_POLLS);
}

void ring_map(struct test *t, int fd)
{
    struct play *p = play_of(t);

    p->ring.memory = test_map(t, fd, sizeof(struct ring));
    p->ring.look = ring_look;
    p->ring.finish = ring_finish;
    ring_publish(p);
}

void ring_begin(struct test *t)
{
    int fd = ring_file(t, sizeof(struct ring), true);

    ring_map(t, fd);
    ring_say(t, "{\"supported\":true,\"fd_index\":0}", &fd, 1);
}

/* ---- Commands ------------------------------------------------------------------------------ */

/* The command in t->in, as if it had come in a message. */
static void take(struct test *t, const struct ring_entry *e)
{
    static uint8_t payload[sizeof(struct ob_wire_region_access) + RING_DATA];
    struct ob_wire_region_access access = { e->offset, e->region, e->count };
    struct msg *in = &t->in;
    uint64_t data = e->data;

    while (in->nfds)
        close(in->fds[--in->nfds]);
    in->hdr = (struct ob_wire_hdr){ .msg_id = e->msg_id, .cmd = e->cmd, .flags = e->flags };
    MUST(t, in->hdr.cmd == OB_CMD_REGION_READ || in->hdr.cmd == OB_CMD_REGION_WRITE,
         "the command %u is in the ring", in->hdr.cmd);
    MUST(t, access.count >= 1 && access.count <= RING_DATA, "an access of %u bytes is in the ring",
         access.count);
    MUST(t, !(in->hdr.flags & ~OB_HDR_NO_REPLY), "a command in the ring has the flags 0x%x",
         in->hdr.flags);
    memcpy(payload, &access, sizeof(access));
    memcpy(payload + sizeof(access), &data, sizeof(data));
    in->data = payload;
    in->len = sizeof(access) + (in->hdr.cmd == OB_CMD_REGION_WRITE ? access.count : 0);
    in->hdr.msg_size = (uint32_t)sizeof(in->hdr) + in->len;
    test_trace(t, TRACE_EVENT, "a command in the ring", 21, 0);
}

void ring_leave(const struct test *t, struct ring_entry *e, uint32_t done, const struct answer *a)
{
    uint64_t data = 0;

    if (t->in.hdr.flags & OB_HDR_NO_REPLY)
        return;
    if (t->in.hdr.cmd == OB_CMD_REGION_READ && !a->hdr.error_no)
        memcpy(&data, a->data + sizeof(struct ob_wire_region_access), e->count % (RING_DATA + 1));
    e->error = a->hdr.error_no;
    e->result = data;
    e->done = done;
}

void ring_finish(struct test *t, struct ring_entry *e, uint32_t after, struct answer *a)
{
    bool posted = t->in.hdr.flags & OB_HDR_NO_REPLY;
    uint32_t state;

    ring_leave(t, e, after, a);
    state = atomic_exchange(&e->state, after);
    MUST(t, (state & ~(uint32_t)RING_ASKED) == after - RING_TURN + RING_TAKEN || after == 0,
         "the state of a command that was taken became 0x%x", state);
    if ((state & RING_ASKED) && !posted)
        play_send(t, a);
}

/* Whether there was a command, which is executed if the client has not taken it back. */
static bool look_once(struct test *t)
{
    static struct answer a;
    struct play_ring *ring = &play_of(t)->ring;
    uint32_t before = ring_before(ring->at), after = ring_after(ring->at);
    struct ring_entry *e = ring_entry(ring->memory, ring->at);
    uint32_t state = e->state, plain = state & ~(uint32_t)RING_ASKED;

    if (state == before || plain == before - RING_TURN + RING_TAKEN) /* or of one never done */
        return false;
    MUST(t, !ring->useless, "the client uses a ring that it must not use");
    MUST(t, state == after || plain == before + RING_READY,
         "the client made the state of an entry 0x%x, from 0x%x", state, before);
    if (state == after ||
        !atomic_compare_exchange_strong(&e->state, &state, state + (RING_TAKEN - RING_READY))) {
        ring->at += state == after;
        return true;
    }
    take(t, e);
    play_answer(t, &a);
    ring->at++;
    ring->used++;
    ring->finish(t, e, after, &a);
    return true;
}

bool ring_look(struct test *t)
{
    bool any = false;

    while (look_once(t)) {
        MUST(t, test_now_ns() < t->deadline_ns, "the client goes on and on");
        any = true;
    }
    return any;
}
