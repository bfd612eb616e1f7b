/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The client's end of the ring (channel/ring.h). A command goes into it when the server polls and
 * has executed all that was sent over the socket, else over the socket; nobody above this file sees
 * a difference. A request that is in the ring is in the pending table as well, with an id: whoever
 * waits for it looks at its entry while polling, and asks for the answer before it sleeps.
 *
 * Locking. Commands are put there under the lock, so their order is that of the socket. To look
 * whether one is done needs no lock, only the role or a place among those who are `looking`: while
 * there are any the memory stays.
 */
#include "client/memo.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define CATCH_UP_LOOKS 128 /* some microseconds, as CPUs that are far apart need for a message */

/* Whether the file is memory, of the size that it has to be, and stays so. One that is larger, or
 * may grow, could be given so much memory that to punch a hole into it takes seconds, and whoever
 * touches the ring meanwhile has to wait. */
static bool is_usable(int fd)
{
    struct stat st;

    return fd >= 0 && ob_fd_is_memory(fd) && !ob_fd_can_shrink(fd) &&
           (fcntl(fd, F_GET_SEALS) & F_SEAL_GROW) && fstat(fd, &st) == 0 &&
           st.st_size == (off_t)sizeof(struct ob_ring);
}

/* A ring that is of no use is not used: the server does not wait for anything to be there. */
void ob_ring_map(struct ob_client *c, struct ob_msg *msg)
{
    int fd = ob_msg_claim_fd(msg, (unsigned)c->caps.ring_fd_index);
    void *ring;

    if (is_usable(fd)) {
        ring = mmap(NULL, sizeof(struct ob_ring), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (ring != MAP_FAILED) {
            c->ring = ring;
            c->ring_on = true;
        }
    }
    if (fd >= 0)
        ob_fd_discard(fd, msg->owner);
}

void ob_ring_unmap(struct ob_client *c)
{
    if (c->ring)
        munmap(c->ring, sizeof(*c->ring));
}

void ob_ring_move_locked(struct ob_client *c, struct ob_client *n)
{
    struct ob_ring *old = c->ring;

    c->ring = n->ring;
    n->ring = old;
    c->ring_on = n->ring_on;
    c->ring_at = n->ring_at;
    c->nsent = n->nsent;
}

/* Whether the server polls, and has executed all that it was sent. */
static bool is_open(const struct ob_client *c)
{
    return atomic_load(&c->ring->accepts) == (c->nsent << 1 | OB_RING_OPEN);
}

/* The same for a command to come. A server that polls and has but one left takes that sooner than
 * another one could be sent; else a stream of posted writes would stay on the socket. */
static bool opens(const struct ob_client *c)
{
    uint32_t last = (c->nsent - 1) << 1 | OB_RING_OPEN;

    for (unsigned i = 0; i < CATCH_UP_LOOKS && atomic_load(&c->ring->accepts) == last; i++)
        ob_ring_relax();
    return is_open(c);
}

/* Who waits for a result in the entry of the at-th command. */
static struct ob_request **owner_of(struct ob_client *c, uint32_t at)
{
    return &c->ring_owners[at % OB_RING_ENTRIES];
}

/* Takes a result out that is there. */
static void complete_locked(struct ob_client *c, struct ob_request *req)
{
    struct ob_ring_entry *e = req->entry;
    struct ob_wire_region_access where = { .count = req->ring_count };
    uint32_t error = OB_RING_GET(e->error);
    uint64_t data = OB_RING_GET(e->result);
    uint32_t count = req->cmd == OB_CMD_REGION_READ ? where.count : 0;
    struct ob_msg *msg = ob_channel_new_message(&c->main.channel);

    if (!msg) {
        ob_client_die_locked(c, "there is no memory for an answer");
        return;
    }
    msg->hdr = (struct ob_wire_hdr){ .msg_id = req->id,
                                     .cmd = req->cmd,
                                     .flags = OB_HDR_REPLY | (error ? OB_HDR_ERROR : 0),
                                     .error_no = error };
    msg->payload = msg->small;
    msg->len = error ? 0 : (uint32_t)sizeof(where) + count;
    msg->hdr.msg_size = (uint32_t)sizeof(msg->hdr) + msg->len;
    memcpy(msg->payload, &where, sizeof(where));
    memcpy(msg->payload + sizeof(where), &data, count);
    ob_request_complete_locked(c, msg);
}

/* Puts it into the entry, which is free; whoever sees it ready sees the rest, and what is stored
 * after this is seen later. */
static void fill(struct ob_ring_entry *e, uint32_t ready, const struct ob_wire_hdr *hdr,
                 const struct ob_wire_region_access *where, const void *bytes)
{
    uint64_t data = 0;

    if (bytes)
        memcpy(&data, bytes, where->count);
    OB_RING_PUT(e->flags, hdr->flags);
    OB_RING_PUT(e->msg_id, hdr->msg_id);
    OB_RING_PUT(e->cmd, hdr->cmd);
    OB_RING_PUT(e->region, where->region);
    OB_RING_PUT(e->offset, where->offset);
    OB_RING_PUT(e->count, where->count);
    OB_RING_PUT(e->data, data);
    atomic_store_explicit(&e->state, ready, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
}

/* Whether the entry of the next command is free, also of what somebody waits for. Where the ring is
 * full, and the server gets on, one is sooner than a message could be sent. */
static bool make_free_locked(struct ob_client *c, struct ob_ring_entry *e)
{
    struct ob_request *owner = *owner_of(c, c->ring_at);
    uint32_t free = ob_ring_turn(c->ring_at);

    for (unsigned i = 1; atomic_load_explicit(&e->state, memory_order_acquire) != free; i++) {
        if (i == CATCH_UP_LOOKS)
            return false;
        ob_ring_relax();
    }
    if (owner) /* its thread has not come to it yet */
        complete_locked(c, owner);
    return !ob_client_dead(c);
}

bool ob_ring_put_locked(struct ob_client *c, const struct ob_wire_hdr *hdr,
                        const struct ob_body *body, struct ob_request *req)
{
    struct ob_wire_region_access where;
    struct ob_ring_entry *e;
    uint32_t at = c->ring_at, ready = ob_ring_turn(at) + OB_RING_READY;

    if (!c->ring_on || (hdr->cmd != OB_CMD_REGION_READ && hdr->cmd != OB_CMD_REGION_WRITE))
        return false;
    memcpy(&where, body->fixed, sizeof(where));
    e = ob_ring_entry(c->ring, at);
    if (where.count - 1 >= OB_RING_DATA || c->nbatch > 0 || !opens(c) || !make_free_locked(c, e))
        return false;
    fill(e, ready, hdr, &where, body->data);
    c->ring_at++;
    __builtin_prefetch(ob_ring_entry(c->ring, c->ring_at), 1);
    if (!is_open(c) && atomic_compare_exchange_strong(&e->state, &ready, ob_ring_next_turn(at)))
        return false;
    if (req) {
        req->entry = e;
        req->ring_at = at;
        req->ring_count = where.count;
        *owner_of(c, at) = req;
    }
    return true;
}

bool ob_ring_done(const struct ob_request *req)
{
    return req->entry && atomic_load_explicit(&req->entry->done, memory_order_acquire) ==
                             ob_ring_next_turn(req->ring_at);
}

void ob_ring_leave_locked(struct ob_client *c, const struct ob_request *req)
{
    if (req->entry && *owner_of(c, req->ring_at) == req)
        *owner_of(c, req->ring_at) = NULL;
}

void ob_ring_complete_locked(struct ob_client *c, struct ob_request *req)
{
    if (!req->done && ob_ring_done(req))
        complete_locked(c, req);
}

void ob_ring_ask_locked(struct ob_client *c, struct ob_request *req)
{
    struct ob_ring_entry *e = req->entry;

    if (req->done)
        return;
    for (unsigned i = 0; i < 3; i++) {
        uint32_t state = atomic_load_explicit(&e->state, memory_order_acquire);

        if (state == ob_ring_next_turn(req->ring_at)) {
            complete_locked(c, req);
            return;
        }
        if (atomic_compare_exchange_strong(&e->state, &state, state | OB_RING_ASKED))
            break;
    }
    ob_ring_leave_locked(c, req);
    req->entry = NULL;
}
