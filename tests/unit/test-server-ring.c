/* SPDX-License-Identifier: BSD-3-Clause */
/* The access ring as a server sees it: a client made of raw messages and raw memory. */
#include "harness.h"
#include "peer.h"
#include "server/internal.h"

#include "channel/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define WITH_RING "{\"capabilities\":{\"max_msg_fds\":8,\"access_ring\":{\"supported\":true}}}"
#define NO_REPLY  OB_HDR_NO_REPLY

struct rig {
    struct memory_device device;
    struct ob_server *server;
    struct peer peer;
    struct ob_ring *ring;
    uint32_t at;
    bool stays;
};

static void begin(struct rig *rig)
{
    int fd;

    memset(rig, 0, sizeof(*rig));
    rig->server = memory_device_listen(&rig->device);
    fd = peer_attach_ring(&rig->peer, rig->server, WITH_RING);
    CHECK(fd >= 0);
    rig->ring = mmap(NULL, sizeof(*rig->ring), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(rig->ring != MAP_FAILED);
    close(fd);
}

static void end(struct rig *rig)
{
    peer_close(&rig->peer);
    munmap(rig->ring, sizeof(*rig->ring));
    ob_server_free(rig->server);
}

/* The next entry, filled in and ready. */
static struct ob_ring_entry *put(struct rig *rig, uint16_t cmd, uint32_t flags, uint64_t offset,
                                 uint32_t count, uint64_t data)
{
    struct ob_ring_entry *e = ob_ring_entry(rig->ring, rig->at);

    CHECK_INT(e->state, ob_ring_turn(rig->at));
    e->flags = flags;
    e->msg_id = (uint16_t)(0x4000 + rig->at);
    e->cmd = cmd;
    e->region = 0;
    e->offset = offset;
    e->count = count;
    e->data = data;
    e->state = ob_ring_turn(rig->at++) + OB_RING_READY;
    return e;
}

/* The server looks; the command that was put last is done. */
static void look(struct rig *rig)
{
    uint32_t done = ob_ring_next_turn(rig->at - 1);

    CHECK_INT(ob_server_step(rig->server), 0);
    CHECK_INT(ob_ring_entry(rig->ring, rig->at - 1)->state, done);
}

static uint64_t result(struct rig *rig)
{
    struct ob_ring_entry *e = ob_ring_entry(rig->ring, rig->at - 1);

    look(rig);
    CHECK_INT(e->done, ob_ring_next_turn(rig->at - 1));
    CHECK_INT(e->error, 0);
    return e->result;
}

static int refusal(struct rig *rig)
{
    look(rig);
    return (int)ob_ring_entry(rig->ring, rig->at - 1)->error;
}

TEST(asked, "is-there-only-for-a-client-that-asked-for-it-and-has-room")
{
    static const struct {
        const char *json;
        bool there;
    } asked[] = {
        { "{\"capabilities\":{\"max_msg_fds\":8}}", false },
        { "{\"capabilities\":{\"max_msg_fds\":8,\"access_ring\":{\"supported\":false}}}", false },
        { "{\"capabilities\":{\"max_msg_fds\":8,\"access_ring\":{}}}", false },
        { "{\"capabilities\":{\"max_msg_fds\":0,\"access_ring\":{\"supported\":true}}}", false },
        { "{\"capabilities\":{\"max_msg_fds\":1,\"access_ring\":{\"supported\":true}}}", true },
        { "{\"capabilities\":{\"max_msg_fds\":1,\"access_ring\":{\"supported\":true},"
          "\"twin_socket\":{\"supported\":true}}}",
          false },
        { "{\"capabilities\":{\"max_msg_fds\":2,\"access_ring\":{\"supported\":true},"
          "\"twin_socket\":{\"supported\":true}}}",
          true },
    };
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct peer peer;

    for (size_t i = 0; i < sizeof(asked) / sizeof(asked[0]); i++) {
        int fd = peer_attach_ring(&peer, server, asked[i].json);

        CHECK_INT(fd >= 0, asked[i].there);
        if (fd >= 0)
            close(fd);
        peer_close(&peer);
    }
    ob_server_set_spin(server, 0); /* who never polls needs none */
    CHECK_INT(peer_attach_ring(&peer, server, WITH_RING), -1);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(sealed, "is-memory-that-keeps-its-size-and-another-one-for-each-connection")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct peer peer;
    struct stat was, is;

    for (int i = 0; i < 2; i++, was = is) {
        int fd = peer_attach_ring(&peer, server, WITH_RING), seals = fcntl(fd, F_GET_SEALS);

        CHECK_INT(seals, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
        CHECK_INT(fstat(fd, &is), 0);
        CHECK_INT(is.st_size, sizeof(struct ob_ring));
        CHECK(i == 0 || is.st_ino != was.st_ino);
        close(fd);
        peer_close(&peer);
    }
    ob_server_free(server);
}

TEST(kept, "a-client-that-keeps-the-ring-keeps-no-memory-of-the-server")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct peer peer;
    struct stat st;
    int fd = peer_attach_ring(&peer, server, WITH_RING);

    CHECK_INT(fstat(fd, &st), 0);
    CHECK(st.st_blocks > 0);
    peer_close(&peer);
    CHECK_INT(device.left, 1);
    CHECK_INT(fstat(fd, &st), 0);
    CHECK_INT(st.st_blocks, 0);
    close(fd);
    ob_server_free(server);
}

TEST(accesses, "accesses-are-what-they-are-as-messages")
{
    struct rig rig;

    begin(&rig);
    put(&rig, OB_CMD_REGION_WRITE, 0, 0x10, 8, 0x1122334455667788);
    CHECK_INT(refusal(&rig), 0);
    put(&rig, OB_CMD_REGION_READ, 0, 0x10, 8, 0);
    CHECK_INT(result(&rig), 0x1122334455667788);
    put(&rig, OB_CMD_REGION_READ, 0, 0x12, 3, ~0ull);
    CHECK_INT(result(&rig), 0x445566);
    put(&rig, OB_CMD_REGION_WRITE, NO_REPLY, 0x10, 1, 0xFFFF);
    look(&rig);
    CHECK_INT(peer_read32(&rig.peer, 0, 0x10), 0x556677FF);
    CHECK_INT(rig.device.writes, 2);
    end(&rig);
}

TEST(refused, "what-is-refused-as-a-message-is-refused-here")
{
    struct rig rig;

    begin(&rig);
    put(&rig, OB_CMD_REGION_READ, 0, 4096, 1, 0);
    CHECK_INT(refusal(&rig), EINVAL);
    put(&rig, OB_CMD_REGION_READ, 0, UINT64_MAX, 8, 0);
    CHECK_INT(refusal(&rig), EINVAL);
    put(&rig, OB_CMD_REGION_WRITE, 0, 0, 0, 0);
    CHECK_INT(refusal(&rig), EINVAL);
    put(&rig, OB_CMD_REGION_WRITE, 0, 0, 9, 0);
    CHECK_INT(refusal(&rig), EINVAL);
    put(&rig, OB_CMD_DEVICE_RESET, 0, 0, 1, 0);
    CHECK_INT(refusal(&rig), EINVAL);
    put(&rig, OB_CMD_REGION_WRITE, OB_HDR_REPLY, 0, 1, 0);
    CHECK_INT(refusal(&rig), EINVAL);
    put(&rig, OB_CMD_REGION_WRITE, 0x40, 0, 1, 0);
    CHECK_INT(refusal(&rig), EINVAL);
    put(&rig, OB_CMD_REGION_READ, 0, 0, 1, 0)->region = 99;
    CHECK_INT(refusal(&rig), EINVAL);
    CHECK_INT(rig.device.writes, 0);
    put(&rig, OB_CMD_REGION_READ, 0, 0, 1, 0);
    CHECK_INT(result(&rig), 0);
    CHECK(peer_silent(&rig.peer));
    end(&rig);
}

TEST(answers, "an-answer-that-is-asked-for-comes-over-the-socket")
{
    struct ob_wire_region_access where;
    struct ob_ring_entry *e;
    struct ob_msg *reply;
    struct rig rig;

    begin(&rig);
    peer_write32(&rig.peer, 0, 8, 0xAABBCCDD);
    for (int i = 0; i < 2; i++) {
        e = put(&rig, OB_CMD_REGION_READ, 0, i ? 5000 : 8, 4, 0);
        e->state |= OB_RING_ASKED;
        look(&rig);
        reply = peer_receive(&rig.peer);
        CHECK_INT(reply->hdr.msg_id, e->msg_id);
        CHECK_INT(reply->hdr.cmd, OB_CMD_REGION_READ);
        CHECK_INT(reply->hdr.error_no, i ? EINVAL : 0);
        CHECK_INT(reply->len, i ? 0 : sizeof(where) + 4);
        if (!i) {
            memcpy(&where, reply->payload, sizeof(where));
            CHECK_INT(where.offset, 8);
            CHECK_INT(where.count, 4);
            CHECK_MEM(reply->payload + sizeof(where), "\xDD\xCC\xBB\xAA", 4);
        }
        ob_msg_free(reply);
    }
    CHECK(peer_silent(&rig.peer));
    end(&rig);
}

TEST(taken_back, "a-command-that-was-taken-back-is-not-executed-and-the-next-one-is")
{
    struct ob_ring_entry *e;
    struct rig rig;

    begin(&rig);
    for (int i = 0; i < 3; i++) {
        e = put(&rig, OB_CMD_REGION_WRITE, NO_REPLY, 0, 1, 9);
        e->state = ob_ring_next_turn(rig.at - 1);
        put(&rig, OB_CMD_REGION_WRITE, NO_REPLY, 1, 1, 1);
    }
    look(&rig);
    CHECK_INT(peer_read32(&rig.peer, 0, 0), 0x100);
    CHECK_INT(rig.device.writes, 3);
    end(&rig);
}

/* As if so many commands had been in the ring. */
static void begin_at(struct rig *rig, uint32_t at)
{
    begin(rig);
    rig->at = rig->server->session->ring_at = at;
    for (uint32_t i = 0; i < OB_RING_ENTRIES; i++, at++)
        ob_ring_entry(rig->ring, at)->state = ob_ring_turn(at);
}

TEST(turns, "entries-are-used-again-and-their-count-begins-again")
{
    static const uint32_t starts[] = { 0, UINT32_MAX - 300 };
    struct rig rig;

    for (size_t i = 0; i < 2; i++) {
        begin_at(&rig, starts[i]);
        for (uint32_t n = 0; n < 700; n++) {
            put(&rig, OB_CMD_REGION_WRITE, NO_REPLY, 0, 4, n);
            look(&rig);
            put(&rig, OB_CMD_REGION_READ, 0, 0, 4, 0);
            CHECK_INT(result(&rig), n);
        }
        end(&rig);
    }
}

TEST(order, "what-was-put-there-before-a-message-was-sent-is-executed-before-it")
{
    struct rig rig;

    begin(&rig);
    for (uint64_t n = 1; n <= OB_RING_ENTRIES; n++)
        put(&rig, OB_CMD_REGION_WRITE, NO_REPLY, 0, 4, n);
    CHECK_INT(peer_read32(&rig.peer, 0, 0), OB_RING_ENTRIES);
    end(&rig);
}

TEST(accepts, "says-how-many-messages-were-executed-while-it-is-looked-at")
{
    struct ob_session *session;
    uint32_t taken;
    struct rig rig;

    begin(&rig);
    session = rig.server->session;
    peer_write32(&rig.peer, 0, 0, 1);
    CHECK_INT(rig.ring->accepts & OB_RING_OPEN, 0);
    taken = session->ntaken;
    CHECK_INT(taken, 1);
    ob_ring_open(session);
    CHECK_INT(rig.ring->accepts, taken << 1 | OB_RING_OPEN);
    peer_post32(&rig.peer, 0, 2); /* the server steps at the read */
    CHECK_INT(peer_read32(&rig.peer, 0, 0), 2);
    CHECK_INT(rig.ring->accepts, (taken + 2) << 1 | OB_RING_OPEN);
    ob_ring_close(session);
    CHECK_INT(rig.ring->accepts, (taken + 2) << 1);
    peer_post32(&rig.peer, 0, 3);
    CHECK_INT(peer_read32(&rig.peer, 0, 0), 3);
    ob_ring_open(session);
    CHECK_INT(rig.ring->accepts, (taken + 4) << 1 | OB_RING_OPEN);
    ob_ring_close(session);
    end(&rig);
}

TEST(caught_up, "a-server-has-caught-up-only-when-the-ring-is-empty")
{
    struct rig rig;

    begin(&rig);
    CHECK(ob_server_caught_up(rig.server));
    put(&rig, OB_CMD_REGION_WRITE, NO_REPLY, 0, 1, 9);
    CHECK(!ob_server_caught_up(rig.server));
    look(&rig);
    CHECK(ob_server_caught_up(rig.server));
    end(&rig);
}

struct asking {
    struct rig *rig;
    bool caught_up[3];
    unsigned n;
};

static int ask(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct asking *asking = opaque;

    (void)offset, (void)data, (void)count, (void)is_write;
    asking->caught_up[asking->n++] = ob_server_caught_up(asking->rig->server);
    return 0;
}

TEST(not_caught_up, "a-device-is-told-of-the-commands-behind-the-one-that-it-executes")
{
    struct rig rig;
    struct asking asking = { .rig = &rig };

    begin(&rig);
    rig.server->regions[0].access = ask;
    rig.server->regions[0].opaque = &asking;
    for (int i = 0; i < 3; i++)
        put(&rig, OB_CMD_REGION_WRITE, NO_REPLY, 0, 1, 9);
    look(&rig);
    CHECK_INT(asking.n, 3);
    CHECK(!asking.caught_up[0] && !asking.caught_up[1] && asking.caught_up[2]);
    end(&rig);
}

/* Called as the server has looked at the ring, and is about to look at the socket. */
static void leave(void *opaque, enum ob_log_level level, const char *line)
{
    struct memory_device *device = opaque;
    struct rig *rig = (struct rig *)((char *)device - offsetof(struct rig, device));

    (void)level;
    if (!strstr(line, "late reply"))
        return;
    put(rig, OB_CMD_REGION_WRITE, NO_REPLY, 0, 4, 9);
    if (rig->stays)
        peer_post32(&rig->peer, 0, 8);
    else
        peer_close(&rig->peer);
}

TEST(leaves, "what-a-client-puts-there-before-it-leaves-is-executed")
{
    struct rig rig;

    begin(&rig);
    rig.server->ops.log = leave;
    ob_ring_open(rig.server->session);
    peer_send(&rig.peer, OB_CMD_DMA_READ, OB_HDR_REPLY, NULL, 0, NULL, 0);
    while (!rig.device.left)
        CHECK_INT(ob_server_step(rig.server), 0);
    CHECK_INT(rig.device.writes, 1);
    munmap(rig.ring, sizeof(*rig.ring));
    ob_server_free(rig.server);
}

/* What a message DMA does that finds the client gone; and counts. */
static int end_connection(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct rig *rig = opaque;

    (void)offset, (void)data, (void)count, (void)is_write;
    rig->device.writes++;
    ob_session_doom(rig->server->session, "it is gone");
    return -ENOTCONN;
}

TEST(doomed, "a-command-that-ends-the-connection-has-no-result")
{
    struct ob_ring_entry *e;
    struct rig rig;

    begin(&rig);
    rig.server->regions[0].access = end_connection;
    rig.server->regions[0].opaque = &rig;
    e = put(&rig, OB_CMD_REGION_READ, 0, 0, 4, 0);
    CHECK(
        ob_ring_take(rig.server->session, false)); /* before the end of the step, and its memory */
    CHECK_INT(e->done, 0);
    CHECK_INT(e->error, 0);
    while (!rig.device.left)
        CHECK_INT(ob_server_step(rig.server), 0);
    munmap(rig.ring, sizeof(*rig.ring));
    ob_channel_fini(&rig.peer.ch);
    ob_server_free(rig.server);
}

TEST(doomed_before, "a-message-behind-a-command-that-ends-the-connection-is-not-executed")
{
    struct rig rig;

    begin(&rig);
    rig.stays = true;
    rig.server->ops.log = leave;
    rig.server->regions[0].access = end_connection;
    rig.server->regions[0].opaque = &rig;
    peer_send(&rig.peer, OB_CMD_DMA_READ, OB_HDR_REPLY, NULL, 0, NULL, 0);
    while (!rig.device.left)
        CHECK_INT(ob_server_step(rig.server), 0);
    CHECK_INT(rig.device.writes, 1);
    munmap(rig.ring, sizeof(*rig.ring));
    ob_channel_fini(&rig.peer.ch);
    ob_server_free(rig.server);
}

/* The server is running; waits until it has slept, in vain if it polls for ever. */
static void *run(void *opaque)
{
    CHECK_INT(ob_server_run(opaque), 0);
    return NULL;
}

TEST(sleeps, "a-server-takes-what-was-put-there-before-it-sleeps")
{
    int64_t until_ms = test_now_ms() + 20000;
    uint32_t open = 0, at;
    pthread_t thread;
    struct rig rig;

    begin(&rig);
    rig.peer.server = NULL;
    CHECK_INT(pthread_create(&thread, NULL, run, rig.server), 0);
    /* It says that it looks once it has something to wait for; then what is put there is its own.
     */
    while (rig.at < 2000) {
        CHECK(test_now_ms() < until_ms);
        if (!(rig.ring->accepts & OB_RING_OPEN)) {
            peer_read32(&rig.peer, 0, 0);
            continue;
        }
        open++;
        at = rig.at;
        put(&rig, OB_CMD_REGION_WRITE, NO_REPLY, 0, 4, at);
        atomic_thread_fence(memory_order_seq_cst);
        if (rig.ring->accepts & OB_RING_OPEN) {
            while (ob_ring_entry(rig.ring, at)->state != ob_ring_next_turn(at))
                CHECK(test_now_ms() < until_ms);
        } else {
            uint32_t ready = ob_ring_turn(at) + OB_RING_READY;

            atomic_compare_exchange_strong(&ob_ring_entry(rig.ring, at)->state, &ready,
                                           ob_ring_next_turn(at));
        }
        if (at % 64 == 0) /* now it has slept */
            while (rig.ring->accepts & OB_RING_OPEN)
                CHECK(test_now_ms() < until_ms);
    }
    CHECK(open > 0);
    ob_server_stop(rig.server);
    CHECK_INT(pthread_join(thread, NULL), 0);
    end(&rig);
}

static int slow_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct rig *rig = opaque;

    (void)offset, (void)data, (void)count, (void)is_write;
    if (++rig->device.writes == 5)
        ob_server_stop(rig->server);
    usleep(4000);
    return 0;
}

TEST(others_wait, "other-events-do-not-wait-for-all-that-is-there")
{
    struct rig rig;

    begin(&rig);
    rig.server->regions[0].access = slow_access;
    rig.server->regions[0].opaque = &rig;
    for (int i = 0; i < 100; i++)
        put(&rig, OB_CMD_REGION_READ, 0, 0, 4, 0);
    CHECK_INT(ob_server_run(rig.server), 0);
    CHECK(rig.device.writes >= 5 && rig.device.writes <= 10);
    end(&rig);
}

TEST(garbage, "whatever-is-there-harms-nobody-and-keeps-nobody-busy")
{
    uint32_t seed = 20261126;
    struct ob_msg *answer;
    struct rig rig;

    begin(&rig);
    for (int round = 0; round < 300; round++) {
        uint32_t *words = (uint32_t *)rig.ring;

        for (size_t i = 0; i < sizeof(*rig.ring) / 4; i += (seed >> 8) % 40 + 1) {
            seed = seed * 1664525 + 1013904223;
            words[i] = seed >> 4 & 1 ? seed : seed >> 28;
        }
        for (int i = 0; i < 2 * (int)OB_RING_ENTRIES; i++)
            CHECK_INT(ob_server_step(rig.server), 0);
        CHECK(!ob_ring_has(rig.server->session));
        while (ob_channel_recv(&rig.peer.ch, &answer) > 0) /* that was asked for */
            ob_msg_free(answer);
        peer_write32(&rig.peer, 0, 64, (uint32_t)round);
        CHECK_INT(peer_read32(&rig.peer, 0, 64), round);
    }
    end(&rig);
}
