/* SPDX-License-Identifier: BSD-3-Clause */
/* Posted writes that have to queue: what becomes of them where the server knows WRITE_MULTI. */
#include "harness.h"
#include "scripted.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

static const char multi[] = "{\"capabilities\":{\"write_multiple\":true}}";

/* What has arrived. A write's bytes say the how-manieth it is. */
struct arrived {
    int go;
    uint64_t writes, multis, largest;
};

static void take_write(struct arrived *arrived, const struct ob_wire_region_access *access,
                       const void *data)
{
    uint64_t number = 0;

    memcpy(&number, data, access->count < 8 ? access->count : 8);
    CHECK_INT(number, arrived->writes);
    CHECK_INT(access->region, number % 3);
    CHECK_INT(access->offset, 8 * number);
    arrived->writes++;
}

static void take_multi(struct arrived *arrived, const struct peer_msg *msg)
{
    struct ob_wire_write_multi head;
    struct ob_wire_write_multi_entry entry;

    memcpy(&head, msg->payload, sizeof(head));
    CHECK(head.count > 1);
    CHECK_INT(msg->len, sizeof(head) + head.count * sizeof(entry));
    for (uint64_t i = 0; i < head.count; i++) {
        memcpy(&entry, msg->payload + sizeof(head) + i * sizeof(entry), sizeof(entry));
        CHECK_INT(entry.count, 8);
        take_write(arrived,
                   &(struct ob_wire_region_access){ entry.offset, entry.region, entry.count },
                   entry.data);
    }
    arrived->multis++;
    if (head.count > arrived->largest)
        arrived->largest = head.count;
}

/* Takes what was posted, once it may, and answers a read with how many writes that were. */
static void take_posts(struct peer *peer)
{
    struct arrived *arrived = peer->arg;
    eventfd_t go;

    CHECK_INT(eventfd_read(arrived->go, &go), 0);
    while (peer_recv(peer)) {
        struct ob_wire_region_access access;

        memcpy(&access, peer->msg->payload, sizeof(access));
        switch (peer->msg->hdr.cmd) {
        case OB_CMD_REGION_WRITE:
            CHECK(peer->msg->hdr.flags & OB_HDR_NO_REPLY);
            take_write(arrived, &access, peer->msg->payload + sizeof(access));
            break;
        case OB_CMD_REGION_WRITE_MULTI:
            CHECK(peer->msg->hdr.flags & OB_HDR_NO_REPLY);
            take_multi(arrived, peer->msg);
            break;
        default:
            CHECK_INT(peer->msg->hdr.cmd, OB_CMD_REGION_READ);
            peer_reply_access(peer, &arrived->writes);
        }
    }
}

static void set_up(struct peer *peer, struct arrived *arrived, const char *json)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;

    opt.timeout_ms = 30000; /* the answer to a read is behind all that was posted */
    *arrived = (struct arrived){ .go = eventfd(0, EFD_CLOEXEC) };
    *peer = (struct peer){ .arg = arrived, .json = json };
    peer_start(peer, take_posts, &opt);
}

static void tear_down(struct peer *peer)
{
    struct arrived *arrived = peer->arg;

    peer_stop(peer);
    close(arrived->go);
}

/* The next write; every 1000th has 16 bytes, too many for a batch. */
static int post(struct peer *peer, uint64_t number)
{
    uint64_t data[2] = { number };

    return ob_client_region_post(peer->client, number % 3, 8 * number, data,
                                 number % 1000 == 999 ? 16 : 8);
}

/* Posts until no more is taken; how many writes that were. */
static uint64_t fill(struct peer *peer)
{
    uint64_t number = 0;
    int rc;

    while ((rc = post(peer, number)) == 0)
        number++;
    CHECK_INT(rc, -ENOBUFS);
    return number;
}

static uint64_t let_go_and_count(struct peer *peer)
{
    struct arrived *arrived = peer->arg;
    uint64_t counted;

    CHECK_INT(eventfd_write(arrived->go, 1), 0);
    CHECK_INT(ob_client_region_read(peer->client, 0, 0, &counted, sizeof(counted)), 0);
    return counted;
}

TEST(now, "write-that-would-be-queued-is-refused-where-it-must-not-be")
{
    struct arrived arrived;
    struct peer peer;
    uint64_t posted = 0;
    int rc;

    set_up(&peer, &arrived, multi);
    do
        rc = ob_client_region_post_now(peer.client, posted % 3, 8 * posted, &posted, 8);
    while (rc == 0 && ++posted);
    CHECK_INT(rc, -EAGAIN);
    CHECK(posted > 10);
    CHECK_INT(ob_client_region_post_now(peer.client, 0, 0, &rc, 9), -EMSGSIZE);
    CHECK_INT(post(&peer, posted), 0); /* queued; and what is queued is not overtaken */
    posted++;
    CHECK_INT(ob_client_region_post_now(peer.client, 0, 0, &rc, 4), -EAGAIN);
    CHECK_INT(let_go_and_count(&peer), posted);
    CHECK_INT(ob_client_region_post_now(peer.client, posted % 3, 8 * posted, &posted, 8), 0);
    posted++;
    CHECK_INT(let_go_and_count(&peer), posted);
    tear_down(&peer);
}

TEST(coalesced, "queued-writes-go-out-together-in-order")
{
    struct arrived arrived;
    struct peer peer;
    uint64_t posted;

    set_up(&peer, &arrived, multi);
    posted = fill(&peer);
    CHECK_INT(let_go_and_count(&peer), posted);
    CHECK(arrived.multis > 100);
    CHECK_INT(arrived.largest, 200);
    CHECK_INT(post(&peer, posted), 0); /* nothing is queued any more: alone */
    posted++;
    CHECK_INT(let_go_and_count(&peer), posted);
    tear_down(&peer);
}

TEST(not_offered, "a-server-that-does-not-know-them-gets-every-write-alone")
{
    struct arrived arrived;
    struct peer peer;
    uint64_t posted;

    set_up(&peer, &arrived, NULL);
    posted = fill(&peer);
    CHECK_INT(let_go_and_count(&peer), posted);
    CHECK_INT(arrived.multis, 0);
    tear_down(&peer);
}

TEST(fits, "a-batch-keeps-to-what-the-server-takes")
{
    static const struct {
        const char *json;
        uint64_t largest;
    } cases[] = {
        { "{\"capabilities\":{\"write_multiple\":true,\"max_data_xfer_size\":127}}", 4 },
        { "{\"capabilities\":{\"write_multiple\":true,\"max_data_xfer_size\":56}}", 2 },
        { "{\"capabilities\":{\"write_multiple\":true,\"max_data_xfer_size\":55}}", 0 },
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct arrived arrived;
        struct peer peer;
        uint64_t posted;

        set_up(&peer, &arrived, cases[i].json);
        posted = fill(&peer);
        CHECK_INT(let_go_and_count(&peer), posted);
        CHECK_INT(arrived.largest, cases[i].largest);
        tear_down(&peer);
    }
}

TEST(stepped, "the-loop-sends-the-last-batch")
{
    struct arrived arrived;
    struct peer peer;
    uint64_t posted = 0;

    set_up(&peer, &arrived, multi);
    struct pollfd pfd = { ob_client_fd(peer.client), POLLIN, 0 };
    posted = fill(&peer);
    CHECK_INT(poll(&pfd, 1, 0), 0);
    CHECK_INT(eventfd_write(arrived.go, 1), 0);
    /* Until posts are taken, and nothing is left to do. */
    while (poll(&pfd, 1, 0) > 0 || post(&peer, posted) < 0) {
        CHECK_INT(poll(&pfd, 1, 20000), 1);
        CHECK_INT(ob_client_step(peer.client), 0);
    }
    posted++;
    CHECK_INT(let_go_and_count(&peer), posted);
    tear_down(&peer);
}
