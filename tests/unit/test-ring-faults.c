/* SPDX-License-Identifier: BSD-3-Clause */
/* A client whose memory runs out while it takes a result out of the access ring. */
#include "faults.h"
#include "harness.h"
#include "scripted.h"

#include "client/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define SLOW 3u /* requests: the first may find memory that was kept */
#define JSON "{\"capabilities\":{\"access_ring\":{\"supported\":true,\"fd_index\":0}}}"

/* Executes what comes until the client has gone round, or away. */
static void execute(struct peer *peer)
{
    struct ob_ring *ring = peer->arg;
    char byte;

    for (uint32_t at = 0; at < OB_RING_ENTRIES + SLOW; at++) {
        struct ob_ring_entry *e = ob_ring_entry(ring, at);

        while ((e->state & ~(uint32_t)OB_RING_ASKED) != ob_ring_turn(at) + OB_RING_READY) {
            if (recv(peer->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
                return;
            sched_yield();
        }
        e->done = ob_ring_next_turn(at);
        if (atomic_exchange(&e->state, ob_ring_next_turn(at)) & OB_RING_ASKED)
            peer_send(peer, &(struct ob_wire_hdr){ e->msg_id, e->cmd, 0, OB_HDR_REPLY, 0 },
                      (uint64_t[3]){ 0, 4ull << 32 }, 20, NULL, 0);
    }
    peer_serve(peer);
}

/* The entry of a thread that is slow is used again by another one, which has to take the result out
 * for it. What neither of them gets, neither of them waits for. */
static void go_round(void *opaque)
{
    static const struct ob_client_options opt = { .size = sizeof(opt), .timeout_ms = -1 };
    struct ob_wire_region_access where = { 0, 0, 4 };
    struct ob_body body = { .fixed = &where, .fixed_len = sizeof(where) };
    uint32_t len = sizeof(where) + 4, value;
    int fd = memfd_create("ring", MFD_CLOEXEC | MFD_ALLOW_SEALING), rc;
    struct peer peer = { .json = JSON, .version_fds = &fd, .version_nfds = 1 };
    struct ob_request slow[SLOW];
    struct ob_msg *reply;

    (void)opaque;
    CHECK_INT(ftruncate(fd, sizeof(struct ob_ring)), 0);
    CHECK_INT(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    peer.arg = mmap(NULL, sizeof(struct ob_ring), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(peer.arg != MAP_FAILED);
    ((struct ob_ring *)peer.arg)->accepts = OB_RING_OPEN;
    peer_start(&peer, execute, &opt);
    CHECK(peer.client->ring_on);
    for (unsigned i = 0; i < SLOW; i++)
        CHECK_INT(ob_request_start(peer.client, &slow[i], OB_CMD_REGION_READ, &body), 0);
    for (uint32_t i = SLOW; i < OB_RING_ENTRIES; i++)
        CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), 0);
    for (unsigned i = 0; i < SLOW; i++) {
        faults_enter();
        rc = i < SLOW - 1 ? ob_client_region_post(peer.client, 0, 0, "x", 1)
                          : ob_client_region_read(peer.client, 0, 0, &value, 4);
        faults_leave();
        CHECK(ob_client_connected(peer.client) == !faults_hit());
        if (i < SLOW - 1 || rc < 0) /* its own result is looked for once more, at the end */
            CHECK_INT(rc, faults_hit() ? -ENOTCONN : 0);
    }
    for (unsigned i = 0; i < SLOW; i++) {
        rc = ob_request_finish(peer.client, &slow[i], len, len, &reply);
        CHECK(rc == 0 || (faults_hit() && rc == -ENOTCONN));
        if (rc == 0)
            ob_msg_free(reply);
    }
    peer_stop(&peer);
    munmap(peer.arg, sizeof(struct ob_ring));
    close(fd);
}

TEST(memory, "who-has-no-memory-for-anothers-result-ends-both-waits")
{
    faults_init();
    faults_try_all(FAULTS_MAIN, FAULT_MEMORY, go_round, NULL);
}
