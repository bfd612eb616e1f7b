/* SPDX-License-Identifier: BSD-3-Clause */
/* The access ring as a client sees it: a server that plays it as a case says. */
#include "harness.h"
#include "scripted.h"

#include "client/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#define WITH_RING "{\"capabilities\":{\"access_ring\":{\"supported\":true,\"fd_index\":0}}}"
#define SIZE      sizeof(struct ob_ring)

/* The server's end. */
struct end {
    struct ob_ring *ring;
    uint32_t at;
    uint64_t value; /* what reads find, and writes leave */
    atomic_uint told;
};

static int make_file(size_t size, int seals)
{
    int fd = memfd_create("ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    CHECK(fd >= 0);
    CHECK_INT(ftruncate(fd, (off_t)size), 0);
    CHECK_INT(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

/* fd is taken. */
static int start_with(struct peer *peer, struct end *end, int fd, void (*script)(struct peer *peer),
                      const struct ob_client_options *opt)
{
    int rc;

    *peer = (struct peer){ .json = WITH_RING, .arg = end };
    if (fd >= 0) {
        peer->version_fds = &fd;
        peer->version_nfds = 1;
    }
    rc = peer_try_start(peer, script, opt);
    if (fd >= 0)
        close(fd);
    return rc;
}

static void start(struct peer *peer, struct end *end, uint32_t accepts,
                  void (*script)(struct peer *peer), const struct ob_client_options *opt)
{
    int fd = make_file(SIZE, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);

    *end = (struct end){ .ring = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) };
    CHECK(end->ring != MAP_FAILED);
    end->ring->accepts = accepts;
    CHECK_INT(start_with(peer, end, fd, script, opt), 0);
    CHECK(peer->client->ring_on);
}

static void stop(struct peer *peer)
{
    struct end *end = peer->arg;

    peer_stop(peer);
    munmap(end->ring, SIZE);
}

/* Waits until the next entry has a command, or one whose answer is asked for. */
static struct ob_ring_entry *await(struct peer *peer, bool asked)
{
    struct end *end = peer->arg;
    struct ob_ring_entry *e = ob_ring_entry(end->ring, end->at);
    int64_t until_ms = test_now_ms() + 10000;

    for (uint32_t state = 0;
         (state & OB_RING_STEP_MASK) == OB_RING_FREE || (asked && !(state & OB_RING_ASKED));) {
        CHECK(test_now_ms() < until_ms);
        sched_yield();
        state = e->state;
        CHECK_INT(state / OB_RING_TURN, ob_ring_turn(end->at) / OB_RING_TURN);
    }
    return e;
}

static void answer(struct peer *peer, const struct ob_ring_entry *e, uint32_t error, uint64_t value)
{
    struct ob_wire_hdr hdr = { .msg_id = e->msg_id,
                               .cmd = e->cmd,
                               .flags = OB_HDR_REPLY | (error ? OB_HDR_ERROR : 0),
                               .error_no = error };
    struct {
        struct ob_wire_region_access access;
        uint64_t data;
    } reply = { { e->offset, e->region, e->count }, value };
    uint32_t len = sizeof(reply.access) + (e->cmd == OB_CMD_REGION_READ ? e->count : 0);

    peer_send(peer, &hdr, &reply, error ? 0 : len, NULL, 0);
}

/* Executes the next command, and returns its offset. */
static uint64_t execute(struct peer *peer, uint32_t error)
{
    struct end *end = peer->arg;
    struct ob_ring_entry *e = await(peer, false);
    uint32_t done = ob_ring_next_turn(end->at++);
    uint64_t offset = e->offset;

    atomic_fetch_add(&e->state, OB_RING_TAKEN - OB_RING_READY);
    if (e->cmd == OB_CMD_REGION_WRITE)
        end->value = e->data;
    e->error = error;
    e->result = end->value;
    e->done = done;
    if (atomic_exchange(&e->state, done) & OB_RING_ASKED)
        answer(peer, e, error, end->value);
    return offset;
}

static void four_commands(struct peer *peer)
{
    CHECK_INT(execute(peer, 0), 0x10);
    CHECK_INT(execute(peer, 0), 0x20);
    CHECK_INT(execute(peer, 0), 0x30);
    CHECK_INT(execute(peer, 0), 0x40);
    peer_serve(peer);
}

TEST(accesses, "accesses-go-there-while-the-server-looks")
{
    struct ob_ring_entry *e;
    struct peer peer;
    struct end end;
    uint64_t value = 0x1122334455667788, back = 0;

    start(&peer, &end, OB_RING_OPEN, four_commands, NULL);
    e = end.ring->entries;
    CHECK_INT(ob_client_region_write(peer.client, 3, 0x10, &value, 8), 0);
    CHECK_INT(e->cmd, OB_CMD_REGION_WRITE);
    CHECK_INT(e->flags | e->reserved, 0);
    CHECK_INT(e->region, 3);
    CHECK_INT(e->count, 8);
    CHECK_INT(ob_client_region_read(peer.client, 2, 0x20, &back, 3), 0);
    CHECK_INT(back, 0x667788);
    CHECK_INT(e[1].cmd, OB_CMD_REGION_READ);
    CHECK_INT(e[1].count, 3);
    CHECK_INT(e[1].data, 0);
    CHECK(e[1].msg_id != e->msg_id);
    CHECK_INT(ob_client_region_post(peer.client, 2, 0x30, &value, 2), 0);
    CHECK_INT(e[2].flags, OB_HDR_NO_REPLY);
    CHECK_INT(e[2].data, 0x7788);
    CHECK_INT(ob_client_region_post_now(peer.client, 2, 0x40, &value, 1), 0);
    CHECK_INT(e[3].flags, OB_HDR_NO_REPLY);
    CHECK_INT(peer.client->nsent, 0);
    stop(&peer);
}

static void one_command(struct peer *peer)
{
    execute(peer, 0);
}

TEST(goes, "what-a-server-has-done-before-it-goes-is-done")
{
    struct ob_wire_region_access where = { 0, 0, 4 };
    struct ob_body body = { .fixed = &where, .fixed_len = sizeof(where) };
    const uint32_t len = sizeof(where) + 4;
    struct ob_request req;
    struct ob_msg *reply;
    struct peer peer;
    struct end end;

    start(&peer, &end, OB_RING_OPEN, one_command, NULL);
    end.value = 0x11223344;
    CHECK_INT(ob_request_start(peer.client, &req, OB_CMD_REGION_READ, &body), 0);
    while (ob_client_step(peer.client) == 0) /* nobody has looked at the ring */
        sched_yield();
    CHECK_INT(ob_request_finish(peer.client, &req, len, len, &reply), 0);
    CHECK_MEM(reply->payload + sizeof(where), "\x44\x33\x22\x11", 4);
    ob_msg_free(reply);
    CHECK(!ob_client_connected(peer.client));
    stop(&peer);
}

/* Everything comes over the socket, and nothing is in the ring. */
static void only_socket(struct peer *peer)
{
    const struct end *end = peer->arg;

    peer_serve(peer);
    for (unsigned i = 0; end->ring && i < OB_RING_ENTRIES; i++)
        CHECK_INT(end->ring->entries[i].state, 0);
}

static void use(struct ob_client *client)
{
    uint8_t data[64] = { 1 };

    CHECK_INT(ob_client_region_read(client, 0, 0, data, 4), 0);
    CHECK_INT(data[0], 0);
    CHECK_INT(ob_client_region_write(client, 0, 0, data, 4), 0);
    CHECK_INT(ob_client_region_post(client, 0, 0, data, 4), 0);
    CHECK_INT(ob_client_region_read(client, 0, 0, data, 8), 0);
}

TEST(closed, "nothing-goes-there-while-the-server-does-not-look-or-has-not-caught-up")
{
    static const uint32_t closed[] = { 0, 2 << 1 | OB_RING_OPEN, UINT32_MAX, 1 << 1 };
    struct peer peer;
    struct end end;

    for (size_t i = 0; i < sizeof(closed) / sizeof(closed[0]); i++) {
        start(&peer, &end, closed[i], only_socket, NULL);
        if (closed[i] == (2 << 1 | OB_RING_OPEN)) /* it would be right after two */
            CHECK_INT(ob_client_region_read(peer.client, 0, 0, &(uint32_t){ 0 }, 4), 0);
        else
            use(peer.client);
        stop(&peer);
    }
}

static void large_ones(struct peer *peer)
{
    struct end *end = peer->arg;

    for (uint32_t taken = 0; peer_recv(peer);) {
        if (!(peer->msg->hdr.flags & OB_HDR_NO_REPLY))
            peer_reply_access(peer, peer->msg->hdr.cmd == OB_CMD_REGION_READ ? peer->msg : NULL);
        end->ring->accepts = ++taken << 1 | OB_RING_OPEN;
        execute(peer, 0);
    }
}

TEST(large, "what-an-entry-has-no-room-for-goes-over-the-socket-and-keeps-its-place")
{
    uint8_t data[64] = { 0 };
    struct peer peer;
    struct end end;

    start(&peer, &end, OB_RING_OPEN, large_ones, NULL);
    for (int i = 0; i < 100; i++) {
        int64_t until_ms = test_now_ms() + 10000;

        if (i % 2)
            CHECK_INT(ob_client_region_read(peer.client, 0, 0, data, 9), 0);
        else
            CHECK_INT(ob_client_region_post(peer.client, 0, 0, data, 64), 0);
        while (end.ring->accepts != (peer.client->nsent << 1 | OB_RING_OPEN))
            CHECK(test_now_ms() < until_ms);
        CHECK_INT(ob_client_region_read(peer.client, 0, 0, data, 8), 0);
    }
    CHECK_INT(peer.client->ring_at, 100);
    CHECK_INT(peer.client->nsent, 100);
    stop(&peer);
}

/* Takes a command, and polls no more: what is not taken by then is taken back. */
static struct ob_ring_entry *take_and_close(struct peer *peer)
{
    struct end *end = peer->arg;
    struct ob_ring_entry *e = await(peer, false);

    atomic_fetch_add(&e->state, OB_RING_TAKEN - OB_RING_READY);
    end->ring->accepts = 0;
    return e;
}

static void answer_late(struct peer *peer)
{
    struct end *end = peer->arg;
    struct ob_ring_entry *e = take_and_close(peer);

    await(peer, true);
    e->state = ob_ring_next_turn(end->at++);
    answer(peer, e, 0, 0x1234);
    peer_serve(peer);
}

TEST(asks, "the-answer-is-asked-for-by-who-does-not-want-to-look-any-longer")
{
    uint32_t spin_us[] = { 0, 50 }, value = 0;
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    struct peer peer;
    struct end end;

    for (size_t i = 0; i < 2; i++, value = 0) {
        opt.spin_us = spin_us[i];
        start(&peer, &end, OB_RING_OPEN, answer_late, &opt);
        CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), 0);
        CHECK_INT(value, 0x1234);
        use(peer.client);
        stop(&peer);
    }
}

/* Takes a command, and answers, if at all, when it is too late. */
static void answer_never(struct peer *peer)
{
    struct end *end = peer->arg;
    struct ob_ring_entry *e = take_and_close(peer);

    while (!end->told)
        sched_yield();
    if (e->state & OB_RING_ASKED)
        answer(peer, e, EIO, 0);
    peer_serve(peer);
}

TEST(deadline, "a-command-that-is-never-executed-has-a-deadline-and-the-connection-goes-on")
{
    uint32_t value;
    struct peer peer;
    struct end end;

    start(&peer, &end, OB_RING_OPEN, answer_never, NULL);
    peer.client->opt.timeout_ms = 50;
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), -ETIMEDOUT);
    peer.client->opt.timeout_ms = 5000;
    end.told = 1;
    use(peer.client);
    CHECK(ob_client_connected(peer.client));
    stop(&peer);
}

static void fail_twice(struct peer *peer)
{
    execute(peer, ENXIO);
    execute(peer, UINT32_MAX);
    execute(peer, 0);
    peer_serve(peer);
}

TEST(errors, "an-error-is-that-of-the-server")
{
    uint32_t value = 7;
    struct peer peer;
    struct end end;
    int rc;

    start(&peer, &end, OB_RING_OPEN, fail_twice, NULL);
    rc = ob_client_region_read(peer.client, 0, 0, &value, 4);
    CHECK_INT(ob_err_class(rc), OB_ERR_PEER);
    CHECK_INT(ob_peer_errno(rc), ENXIO);
    rc = ob_client_region_read(peer.client, 0, 0, &value, 4);
    CHECK_INT(ob_err_class(rc), OB_ERR_PEER);
    CHECK_INT(value, 7);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), 0);
    CHECK_INT(value, 0);
    stop(&peer);
}

/* A number below n. */
static uint32_t any(uint32_t *seed, uint32_t n)
{
    *seed = *seed * 1664525 + 1013904223;
    return (*seed >> 8) % n;
}

/* Into any entry: another step, or whatever comes to hand behind that. No command that was never
 * given, or this server would not know any more where the client is. */
static void lie_somewhere(struct ob_ring *ring, uint32_t *seed)
{
    struct ob_ring_entry *e = &ring->entries[any(seed, OB_RING_ENTRIES)];

    if (any(seed, 2))
        atomic_fetch_or(&e->state, OB_RING_STEP_MASK);
    else
        OB_RING_PUT(((uint32_t *)e)[1 + any(seed, sizeof(*e) / 4 - 1)], *seed);
}

static bool is_ready(const struct end *end, uint32_t at)
{
    return (ob_ring_entry(end->ring, at)->state & ~(uint32_t)OB_RING_ASKED) ==
           ob_ring_turn(at) + OB_RING_READY;
}

/* What a server does with the next entry, more or less. One that makes no sense is made free of
 * the turn that the client is in. */
static void lie_in_turn(struct peer *peer, uint32_t *seed)
{
    struct end *end = peer->arg;
    uint32_t at = end->at, done = ob_ring_next_turn(at), state;
    struct ob_ring_entry *e = ob_ring_entry(end->ring, at);

    if (is_ready(end, at)) {
        OB_RING_PUT(e->result, any(seed, 100));
        OB_RING_PUT(e->error, any(seed, 8) ? 0 : *seed);
        if (any(seed, 16))
            e->done = done;
        state = atomic_exchange(&e->state, done);
        if ((state & OB_RING_ASKED) && e->msg_id && any(seed, 64))
            answer(peer, e, 0, 7);
        end->at++;
    } else if (e->state == done || is_ready(end, at + 1)) {
        e->state = done;
        end->at++;
    } else if (!any(seed, 64)) {
        e->state = ob_ring_turn(at);
        ob_ring_entry(end->ring, at + 1)->state = ob_ring_turn(at + 1);
    }
}

/* Counts what comes over the socket, and answers most of it. */
static void lie(struct peer *peer)
{
    struct pollfd p = { .fd = peer->fd, .events = POLLIN };
    struct end *end = peer->arg;
    uint32_t seed = 1126, sent = 0, seen = 1;

    while (!end->told) {
        if (seen != sent + end->at) {
            seen = sent + end->at;
            if (!any(&seed, 8))
                lie_somewhere(end->ring, &seed);
            end->ring->accepts =
                (sent + !any(&seed, 64)) << 1 | (any(&seed, 64) ? OB_RING_OPEN : 0);
        }
        lie_in_turn(peer, &seed);
        if (poll(&p, 1, 0) == 0)
            continue;
        if (!peer_recv(peer))
            return;
        sent++;
        if (!(peer->msg->hdr.flags & OB_HDR_NO_REPLY) && any(&seed, 64))
            peer_reply_access(peer, &seed);
    }
    peer_serve(peer);
}

static void *use_liar(void *opaque)
{
    int64_t until_ms = test_now_ms() + 250;
    struct peer *peer = opaque;
    uint32_t value = 0;

    for (unsigned i = 0; test_now_ms() < until_ms && ob_client_connected(peer->client); i++) {
        ob_client_region_read(peer->client, 0, 0, &value, 4);
        if (i % 8 == 0)
            ob_client_region_post(peer->client, 0, 0, &value, 4);
    }
    return NULL;
}

TEST(lies, "lies-there-cost-no-more-than-the-results")
{
    uint32_t commands = 0;

    for (int round = 0; round < 4; round++) {
        pthread_t threads[3];
        struct peer peer;
        struct end end;

        start(&peer, &end, OB_RING_OPEN, lie, NULL);
        peer.client->opt.timeout_ms = 5;
        for (int i = 0; i < 3; i++)
            CHECK_INT(pthread_create(&threads[i], NULL, use_liar, &peer), 0);
        for (int i = 0; i < 3; i++)
            CHECK_INT(pthread_join(threads[i], NULL), 0);
        commands += peer.client->ring_at;
        end.told = 1;
        stop(&peer);
    }
    CHECK(commands > 0);
}

TEST(unusable, "a-ring-that-is-of-no-use-is-not-used")
{
    const int size_seals = F_SEAL_SHRINK | F_SEAL_GROW;
    int pipes[2], fds[6];
    struct peer peer;
    struct end end = { .ring = NULL };

    CHECK_INT(pipe2(pipes, O_CLOEXEC), 0);
    fds[0] = pipes[0];
    fds[1] = make_file(SIZE - 1, size_seals);
    fds[2] = make_file(SIZE, F_SEAL_SEAL);   /* it could shrink */
    fds[3] = make_file(SIZE, F_SEAL_SHRINK); /* it could grow */
    fds[4] = make_file(SIZE + 4096, size_seals);
    fds[5] = -1;
    for (size_t i = 0; i < 6; i++) {
        CHECK_INT(start_with(&peer, &end, fds[i], only_socket, NULL), 0);
        CHECK(!peer.client->ring_on);
        use(peer.client);
        peer_stop(&peer);
    }
    close(pipes[1]);
}

static void no_script(struct peer *peer)
{
    peer_serve(peer);
}

TEST(no_index, "a-ring-without-an-index-ends-the-connection")
{
    struct peer peer = { .json = "{\"capabilities\":{\"access_ring\":{\"supported\":true}}}" };

    CHECK(peer_try_start(&peer, no_script, NULL) < 0);
    CHECK(strstr(peer.why, "access_ring is on, but has no fd_index"));
    peer_stop(&peer);
}

static void execute_many(struct peer *peer)
{
    struct end *end = peer->arg;

    while (end->at < 2 * OB_RING_ENTRIES) {
        end->value = end->at;
        execute(peer, 0);
    }
    peer_serve(peer);
}

TEST(overtaken, "the-result-of-a-thread-that-is-slow-is-kept-for-it")
{
    struct ob_wire_region_access where = { 0, 0, 4 };
    struct ob_body body = { .fixed = &where, .fixed_len = sizeof(where) };
    uint32_t len = sizeof(where) + 4, value;
    struct ob_request slow;
    struct ob_msg *reply;
    struct peer peer;
    struct end end;

    start(&peer, &end, OB_RING_OPEN, execute_many, NULL);
    CHECK_INT(ob_request_start(peer.client, &slow, OB_CMD_REGION_READ, &body), 0);
    for (uint32_t i = 1; i < 2 * OB_RING_ENTRIES; i++) {
        CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), 0);
        CHECK_INT(value, i);
    }
    CHECK_INT(peer.client->ring_at, 2 * OB_RING_ENTRIES);
    CHECK_INT(ob_request_finish(peer.client, &slow, len, len, &reply), 0);
    memcpy(&value, reply->payload + sizeof(where), 4);
    CHECK_INT(value, 0);
    ob_msg_free(reply);
    stop(&peer);
}

static void leave(struct peer *peer)
{
    await(peer, false);
}

TEST(leaves, "a-server-that-leaves-ends-a-wait-there-too")
{
    uint32_t value;
    struct peer peer;
    struct end end;

    start(&peer, &end, OB_RING_OPEN, leave, NULL);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), -ENOTCONN);
    stop(&peer);
}
