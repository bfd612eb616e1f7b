/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The server's end of the ring (channel/ring.h). It is looked at while the server polls, before
 * each command that came over the main socket, and once more before the server sleeps. An access
 * from it is like one from the socket: it waits while answers are queued or a DMA_UNMAP is pending.
 */
#include "channel/ring.h"
#include "server/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/*
 * The size of the file is sealed: the client must not be able to cut it under our feet. Its memory
 * is there before anybody looks at it. ftruncate() would do for the size, but would let a process
 * that was taken over cut the memory of its client.
 */
/* syscalls: memfd_create(1=3), fallocate */
/* syscalls: fcntl(1=F_ADD_SEALS) */
static int make_file(void)
{
    int fd = memfd_create("vfio-user-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING); /* 3 */

    if (fd < 0)
        return -1;
    if (fallocate(fd, 0, 0, sizeof(struct ob_ring)) == 0 &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
        return fd;
    close(fd);
    return -1;
}

int ob_ring_make(struct ob_session *session)
{
    int fd = session->server->spin.budget_ns > 0 ? make_file() : -1;
    void *ring = MAP_FAILED;

    if (fd >= 0)
        ring = mmap(NULL, sizeof(struct ob_ring), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ring == MAP_FAILED) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    session->ring = ring;
    return fd;
}

void ob_ring_free(struct ob_session *session)
{
    if (session->ring)
        munmap(session->ring, sizeof(*session->ring));
}

/* Not when it is the server that ends: then the client may still look for its last results. */
/* syscalls: madvise */
void ob_ring_drop(struct ob_session *session)
{
    if (session->ring)
        madvise(session->ring, sizeof(*session->ring), MADV_REMOVE);
}

/* ---- Whether it is polled ------------------------------------------------------------------ */

void ob_ring_open(struct ob_session *session)
{
    if (!session->ring || session->ring_open)
        return;
    session->ring_open = true;
    atomic_store(&session->ring->accepts, session->ntaken << 1 | OB_RING_OPEN);
}

/* Whoever looks at the ring next sees what a client put there that has not seen this. */
void ob_ring_close(struct ob_session *session)
{
    if (!session->ring_open)
        return;
    session->ring_open = false;
    atomic_store(&session->ring->accepts, session->ntaken << 1);
    atomic_thread_fence(memory_order_seq_cst);
}

void ob_ring_note_taken(struct ob_session *session)
{
    session->ntaken++;
    if (session->ring_open)
        atomic_store_explicit(&session->ring->accepts, session->ntaken << 1 | OB_RING_OPEN,
                              memory_order_release);
}

/* ---- What is in it ------------------------------------------------------------------------- */

static uint32_t state_of(struct ob_ring_entry *e)
{
    return atomic_load_explicit(&e->state, memory_order_acquire) & ~(uint32_t)OB_RING_ASKED;
}

bool ob_ring_has(const struct ob_session *session)
{
    uint32_t at = session->ring_at, state;

    if (!session->ring)
        return false;
    state = state_of(ob_ring_entry(session->ring, at));
    return state == ob_ring_turn(at) + OB_RING_READY || state == ob_ring_next_turn(at);
}

/* From READY to TAKEN. The client changes it twice meanwhile, at most: then it was taken back. */
static bool claim(struct ob_ring_entry *e, uint32_t ready)
{
    for (unsigned i = 0; i < 3; i++) {
        uint32_t state = atomic_load_explicit(&e->state, memory_order_acquire);

        if ((state & ~(uint32_t)OB_RING_ASKED) != ready)
            return false;
        if (atomic_compare_exchange_strong(&e->state, &state,
                                           state + (OB_RING_TAKEN - OB_RING_READY)))
            return true;
    }
    return false;
}

/* What a message would be refused for by its header and size; the rest knows the region. */
static int check(const struct ob_session *session, struct ob_wire_hdr *hdr,
                 const struct ob_wire_region_access *where)
{
    bool is_write = hdr->cmd == OB_CMD_REGION_WRITE;
    enum ob_reason reason;

    if ((!is_write && hdr->cmd != OB_CMD_REGION_READ) || where->count == 0 ||
        where->count > OB_RING_DATA)
        return -EINVAL;
    if (!is_write && where->count > session->caps.max_data_xfer_size)
        return -EINVAL;
    hdr->msg_size = sizeof(*hdr) + sizeof(*where) + (is_write ? where->count : 0);
    reason = ob_check_command(hdr, OB_CLIENT_TO_SERVER, OB_STATE_READY);
    return reason == OB_OK ? 0 : -ob_reason_errno(reason);
}

/* Sends the result that was asked for. Apart, as a reply is large, and most are not sent. */
static __attribute__((noinline)) void answer(struct ob_session *session,
                                             const struct ob_wire_hdr *hdr, int rc,
                                             const struct ob_wire_region_access *where,
                                             const uint64_t *data)
{
    struct ob_reply reply = { .len = sizeof(*where),
                              .data = data,
                              .data_len = hdr->cmd == OB_CMD_REGION_READ ? where->count : 0 };

    memcpy(reply.fixed, where, sizeof(*where));
    ob_answer(session, hdr, rc, &reply);
}

/* Whether it was answered. */
static bool execute(struct ob_session *session, struct ob_ring_entry *e, uint32_t done)
{
    struct ob_wire_hdr hdr = { .msg_id = OB_RING_GET(e->msg_id),
                               .cmd = OB_RING_GET(e->cmd),
                               .flags = OB_RING_GET(e->flags) };
    struct ob_wire_region_access where = { OB_RING_GET(e->offset), OB_RING_GET(e->region),
                                           OB_RING_GET(e->count) };
    bool is_write = hdr.cmd == OB_CMD_REGION_WRITE;
    uint64_t data = is_write ? OB_RING_GET(e->data) : 0;
    int rc = check(session, &hdr, &where);

    if (rc == 0)
        rc = ob_region_access(session->server, where.region, where.offset, &data, where.count,
                              is_write);
    if (rc < 0)
        ob_log(session->server, OB_LOG_DEBUG, "%s refused: %s", ob_strcmd(hdr.cmd), strerror(-rc));
    if (session->doomed) /* what came of it is the end of the connection: no message would answer */
        return true;
    if (!(hdr.flags & OB_HDR_NO_REPLY)) {
        OB_RING_PUT(e->error, (uint32_t)-rc);
        OB_RING_PUT(e->result, data);
    }
    atomic_store_explicit(&e->done, done, memory_order_release);
    if (atomic_exchange(&e->state, done) & OB_RING_ASKED)
        answer(session, &hdr, rc, &where, &data);
    return !(hdr.flags & OB_HDR_NO_REPLY);
}

bool ob_ring_take(struct ob_session *session, bool all)
{
    unsigned i, most = all ? OB_RING_ENTRIES : OB_STEP_REQUESTS;
    bool enough = !session->ring;

    for (i = 0; i < most && !enough && !session->doomed; i++) {
        uint32_t at = session->ring_at, done = ob_ring_next_turn(at);
        struct ob_ring_entry *e = ob_ring_entry(session->ring, at);
        bool taken_back = state_of(e) == done;

        if (!taken_back && !claim(e, ob_ring_turn(at) + OB_RING_READY))
            break;
        session->ring_at++; /* the device may ask whether there are more */
        enough = !taken_back && execute(session, e, done) && !all;
    }
    return i > 0;
}
