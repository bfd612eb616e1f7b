/* SPDX-License-Identifier: BSD-3-Clause */
/* The client against servers that die, hang or lie: nothing crashes, nobody waits too long, and
 * the reason is told. */
#include "harness.h"
#include "scripted.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

static struct ob_client_options timeout_of(int timeout_ms)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;

    opt.timeout_ms = timeout_ms;
    return opt;
}

static int read_word(struct peer *peer, uint32_t *value)
{
    return ob_client_region_read(peer->client, 0, 0x40, value, sizeof(*value));
}

/* The connection is dead, for this reason, told once; calls fail at once. */
static void check_dead(struct peer *peer, const char *why)
{
    uint32_t value;

    CHECK(!ob_client_connected(peer->client));
    CHECK_STR(ob_client_error(peer->client), why);
    CHECK_INT(read_word(peer, &value), -ENOTCONN);
    CHECK_INT(ob_client_region_post(peer->client, 0, 0, "x", 1), -ENOTCONN);
    CHECK_INT(ob_client_dma_map(peer->client, 0, 4096, OB_DMA_READ, -1, 0), -ENOTCONN);
    CHECK_INT(ob_client_step(peer->client), -ENOTCONN);
    CHECK_INT(peer->lost, 1);
    CHECK_STR(peer->why, why);
}

/* ---- The server dies ----------------------------------------------------------------------- */

static void expect_read(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
}

TEST(closes, "server-closes-during-a-read")
{
    struct peer peer = { 0 };
    uint32_t value = 0x11223344;

    peer_start(&peer, expect_read, NULL);
    CHECK_INT(read_word(&peer, &value), -ENOTCONN);
    CHECK_INT(value, 0x11223344);
    check_dead(&peer, "the server closed the connection");
    peer_stop(&peer);
}

static void die_within_reply(struct peer *peer)
{
    struct {
        struct ob_wire_hdr hdr;
        struct ob_wire_region_access access;
        uint32_t value;
    } reply;

    peer_expect(peer, OB_CMD_REGION_READ);
    reply.hdr = peer->msg->hdr;
    reply.hdr.msg_size = sizeof(reply);
    reply.hdr.flags = OB_HDR_REPLY;
    reply.access = PEER_GET(peer, struct ob_wire_region_access);
    peer_write(peer, &reply, *(size_t *)peer->arg);
}

TEST(dies_mid_reply, "server-dies-mid-reply")
{
    for (size_t len = 1; len < 36; len++) {
        struct peer peer = { .arg = &len };
        uint32_t value;

        peer_start(&peer, die_within_reply, NULL);
        CHECK_INT(read_word(&peer, &value), -ENOTCONN);
        check_dead(&peer, "the server closed the connection in the middle of a message");
        peer_stop(&peer);
    }
}

static void die_with_unread_posts(struct peer *peer)
{
    char byte;

    CHECK_INT(recv(peer->fd, &byte, 1, MSG_PEEK), 1);
}

TEST(dies_unread, "server-dies-with-unread-posted-writes")
{
    struct peer peer = { 0 };
    int rc;

    peer_start(&peer, die_with_unread_posts, NULL);
    while ((rc = ob_client_region_post(peer.client, 0, 0, "x", 1)) == 0 || rc == -ENOBUFS)
        ;
    CHECK_INT(rc, -ENOTCONN);
    check_dead(&peer, "the server closed the connection");
    peer_stop(&peer);
}

static void answer_and_leave(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    peer_reply_access(peer, "\1\2\3\4");
}

TEST(last_words, "what-the-server-sent-before-it-left-counts")
{
    struct peer peer = { 0 };
    uint32_t value;

    peer_start(&peer, answer_and_leave, NULL);
    CHECK_INT(read_word(&peer, &value), 0);
    CHECK_INT(read_word(&peer, &value), -ENOTCONN);
    peer_stop(&peer);
}

#define WAITERS 8

struct waiter {
    struct peer *peer;
    pthread_t thread;
    int rc;
};

static void *wait_for_answer(void *opaque)
{
    struct waiter *waiter = opaque;
    uint32_t value;

    waiter->rc = read_word(waiter->peer, &value);
    return NULL;
}

static void start_waiters(struct peer *peer, struct waiter *waiters)
{
    for (int i = 0; i < WAITERS; i++) {
        waiters[i].peer = peer;
        CHECK_INT(pthread_create(&waiters[i].thread, NULL, wait_for_answer, &waiters[i]), 0);
    }
}

static void join_waiters(struct waiter *waiters, int rc)
{
    for (int i = 0; i < WAITERS; i++) {
        CHECK_INT(pthread_join(waiters[i].thread, NULL), 0);
        CHECK_INT(waiters[i].rc, rc);
    }
}

static void take_all_reads(struct peer *peer)
{
    for (int i = 0; i < WAITERS; i++)
        peer_expect(peer, OB_CMD_REGION_READ);
    if (peer->arg) {
        CHECK_INT(eventfd_write(*(int *)peer->arg, 1), 0);
        CHECK(!peer_recv(peer));
    }
}

TEST(all_wake, "all-waiters-learn-at-once-that-the-server-died")
{
    struct ob_client_options opt = timeout_of(-1);
    struct waiter waiters[WAITERS];
    struct peer peer = { 0 };

    peer_start(&peer, take_all_reads, &opt);
    start_waiters(&peer, waiters);
    join_waiters(waiters, -ENOTCONN);
    check_dead(&peer, "the server closed the connection");
    peer_stop(&peer);
}

TEST(shut_down, "shutdown-from-another-thread-ends-all-waits")
{
    struct ob_client_options opt = timeout_of(-1);
    int event = eventfd(0, EFD_CLOEXEC);
    struct waiter waiters[WAITERS];
    struct peer peer = { .arg = &event };
    eventfd_t count;

    peer_start(&peer, take_all_reads, &opt);
    start_waiters(&peer, waiters);
    CHECK_INT(eventfd_read(event, &count), 0);
    ob_client_shutdown(peer.client, "the device was unplugged");
    ob_client_shutdown(peer.client, "another reason, too late");
    join_waiters(waiters, -ENOTCONN);
    CHECK_STR(ob_client_error(peer.client), "the device was unplugged");
    CHECK_INT(peer.lost, 0);
    peer_stop(&peer);
    close(event);
}

/* ---- The server hangs ---------------------------------------------------------------------- */

static void answer_late(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    struct peer_access first = peer_keep(peer);
    peer_expect(peer, OB_CMD_REGION_READ);
    struct peer_access second = peer_keep(peer);
    CHECK(first.hdr.msg_id != second.hdr.msg_id);
    peer_answer(peer, &first, "late");
    peer_answer(peer, &second, "good");
    peer_serve(peer);
}

TEST(late_reply, "a-late-reply-is-dropped")
{
    struct ob_client_options opt = timeout_of(400);
    struct peer peer = { 0 };
    uint32_t value = 0x11223344;

    peer_start(&peer, answer_late, &opt);
    int64_t start = test_now_ms();
    CHECK_INT(read_word(&peer, &value), -ETIMEDOUT);
    CHECK(test_now_ms() - start >= 399);
    CHECK_INT(value, 0x11223344);
    CHECK(ob_client_connected(peer.client));
    CHECK_INT(read_word(&peer, &value), 0);
    CHECK_MEM(&value, "good", 4);
    CHECK_INT(read_word(&peer, &value), 0);
    peer_stop(&peer);
}

/* Two readers time out, though only one of them can receive. */
TEST(all_time_out, "every-waiter-keeps-its-own-deadline")
{
    struct ob_client_options opt = timeout_of(400);
    int event = eventfd(0, EFD_CLOEXEC);
    struct waiter waiters[WAITERS];
    struct peer peer = { .arg = &event };

    peer_start(&peer, take_all_reads, &opt);
    int64_t start = test_now_ms();
    start_waiters(&peer, waiters);
    join_waiters(waiters, -ETIMEDOUT);
    CHECK(test_now_ms() - start < 3000);
    CHECK(ob_client_connected(peer.client));
    peer_stop(&peer);
    close(event);
}

static void stall_within_reply(struct peer *peer)
{
    die_within_reply(peer);
    CHECK(!peer_recv(peer));
}

TEST(stalls_mid_reply, "server-stalls-mid-reply")
{
    struct ob_client_options opt = timeout_of(400);
    size_t len = 20;
    struct peer peer = { .arg = &len };
    uint32_t value;

    peer_start(&peer, stall_within_reply, &opt);
    CHECK_INT(read_word(&peer, &value), -ETIMEDOUT);
    ob_client_shutdown(peer.client, "enough");
    peer_stop(&peer);
}

static void never_answer(struct peer *peer)
{
    while (peer_recv(peer))
        ;
}

TEST(too_many_late, "a-server-that-answers-nothing-is-given-up")
{
    static struct ob_dma_change changes[128]; /* all of them are sent, and time out together */
    struct ob_client_options opt = timeout_of(250);
    struct peer peer = { 0 };
    int rounds = 0;

    for (unsigned i = 0; i < 128; i++)
        changes[i] = (struct ob_dma_change){ .unmap = true, .size = 4096, .fd = -1 };
    peer_start(&peer, never_answer, &opt);
    while (ob_client_dma_apply(peer.client, changes, 128) == -ETIMEDOUT)
        rounds++;
    CHECK_INT(rounds, 1024 / 128);
    check_dead(&peer, "the server has left 1024 requests unanswered");
    peer_stop(&peer);
}

TEST(limit, "a-limit-holds-for-all-requests-of-its-thread-together")
{
    struct ob_client_options opt = timeout_of(60000);
    struct peer peer = { 0 };
    uint32_t value;

    peer_start(&peer, never_answer, &opt);
    ob_client_limit(peer.client, 300);
    int64_t start = test_now_ms();
    CHECK_INT(read_word(&peer, &value), -ETIMEDOUT);
    CHECK(test_now_ms() - start >= 299 && test_now_ms() - start < 30000);
    CHECK_INT(ob_client_dma_map(peer.client, 0, 4096, OB_DMA_READ, -1, 0), -ETIMEDOUT);
    ob_client_limit(peer.client, 0);
    CHECK(ob_client_connected(peer.client));
    ob_client_shutdown(peer.client, "enough");
    peer_stop(&peer);
}

/* ---- The server lies ----------------------------------------------------------------------- */

/* How the reply to a REGION_READ of 4 bytes differs from a right one. */
struct lie {
    int id_delta, cmd_delta;
    uint32_t flags; /* instead of OB_HDR_REPLY */
    int32_t len;    /* of the payload, instead of 20 */
    uint32_t size;  /* msg_size, instead of the truth */
    uint32_t count; /* instead of 4 */
    const char *why;
};

static const struct lie lies[] = {
    { .id_delta = 1,
      .why = "the server sent a reply (REGION_READ, id 3) that belongs to no request" },
    { .cmd_delta = 1, .why = "the server answered REGION_READ with a reply to REGION_WRITE (10)" },
    { .flags = 2,
      .why = "the server sent a message that is neither command nor reply (flags 0x2)" },
    { .len = -1, .why = "the server answered REGION_READ with 0 bytes instead of 20" },
    { .len = 19, .why = "the server answered REGION_READ with 19 bytes instead of 20" },
    { .len = 21, .why = "the server answered REGION_READ with 21 bytes instead of 20" },
    { .size = 15, .why = "the server sent a message that claims to be shorter than its header" },
    { .count = 5, .why = "the server answered REGION_READ of 4 bytes with a count of 5" },
};

static void tell_lie(struct peer *peer)
{
    const struct lie *lie = peer->arg;
    uint32_t len = lie->len < 0 ? 0 : lie->len > 0 ? (uint32_t)lie->len : 20;

    peer_expect(peer, OB_CMD_REGION_READ);
    struct ob_wire_hdr hdr = {
        .msg_id = (uint16_t)(peer->msg->hdr.msg_id + lie->id_delta),
        .cmd = (uint16_t)(OB_CMD_REGION_READ + lie->cmd_delta),
        .msg_size = lie->size ? lie->size : (uint32_t)sizeof(hdr) + len,
        .flags = lie->flags ? lie->flags : OB_HDR_REPLY,
    };
    struct ob_wire_region_access access = PEER_GET(peer, struct ob_wire_region_access);
    if (lie->count)
        access.count = lie->count;
    memset(peer->msg->payload, 0, 64);
    memcpy(peer->msg->payload, &access, sizeof(access));
    peer_write(peer, &hdr, sizeof(hdr));
    peer_write(peer, peer->msg->payload, len);
    while (peer_recv(peer))
        ;
}

TEST(told_lies, "a-reply-that-is-not-what-was-asked-ends-the-connection")
{
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        struct peer peer = { .arg = (void *)&lies[i] };
        uint32_t value = 0x11223344;

        peer_start(&peer, tell_lie, NULL);
        CHECK_INT(read_word(&peer, &value), -ENOTCONN);
        CHECK_INT(value, 0x11223344);
        check_dead(&peer, lies[i].why);
        peer_stop(&peer);
    }
}

static void send_oversize(struct peer *peer)
{
    static uint8_t data[OB_PAYLOAD_MAX + 1];

    peer_expect(peer, OB_CMD_REGION_READ);
    peer_reply(peer, data, sizeof(data));
    CHECK(!peer_recv(peer));
}

TEST(oversize, "an-oversize-reply-ends-the-connection")
{
    struct peer peer = { 0 };
    uint32_t value;

    peer_start(&peer, send_oversize, NULL);
    CHECK_INT(read_word(&peer, &value), -ENOTCONN);
    CHECK(strstr(ob_client_error(peer.client), "a bad reply to REGION_READ") != NULL);
    peer_stop(&peer);
}

static void late_lie(struct peer *peer)
{
    peer_expect(peer, OB_CMD_REGION_READ);
    struct ob_wire_hdr first = peer->msg->hdr;
    peer_expect(peer, OB_CMD_REGION_READ);
    first.cmd = OB_CMD_DEVICE_RESET;
    first.flags = OB_HDR_REPLY;
    peer_send(peer, &first, NULL, 0, NULL, 0);
    CHECK(!peer_recv(peer));
}

TEST(late_other_command, "a-late-reply-must-be-of-the-right-command")
{
    struct ob_client_options opt = timeout_of(400);
    struct peer peer = { 0 };
    uint32_t value;

    peer_start(&peer, late_lie, &opt);
    CHECK_INT(read_word(&peer, &value), -ETIMEDOUT);
    CHECK_INT(read_word(&peer, &value), -ENOTCONN);
    check_dead(&peer, "the server sent a reply (DEVICE_RESET, id 2) that belongs to no request");
    peer_stop(&peer);
}

static const uint32_t odd_errors[] = { 0, EIO, 4095, 4096, 0x80000000u, (uint32_t)-EIO };
static const int seen_errors[] = { EINVAL, EIO, 4095, EINVAL, EINVAL, EINVAL };

static void refuse_oddly(struct peer *peer)
{
    static const char filler[20] = "more than a header";

    for (unsigned i = 0; i < 6; i++) {
        peer_expect(peer, OB_CMD_REGION_READ);
        peer_error(peer, odd_errors[i]);
    }
    /* Some servers attach the reply that would have been. */
    peer_expect(peer, OB_CMD_REGION_READ);
    struct ob_wire_hdr hdr = peer->msg->hdr;
    hdr.flags = OB_HDR_REPLY | OB_HDR_ERROR;
    hdr.error_no = EPERM;
    peer_send(peer, &hdr, filler, sizeof(filler), NULL, 0);
    peer_serve(peer);
}

TEST(odd_refusals, "an-error-reply-is-never-success")
{
    struct peer peer = { 0 };
    uint32_t value = 0x11223344;
    char text[100];

    peer_start(&peer, refuse_oddly, NULL);
    for (unsigned i = 0; i < 6; i++) {
        int rc = read_word(&peer, &value);
        CHECK_INT(ob_err_class(rc), OB_ERR_PEER);
        CHECK_INT(ob_peer_errno(rc), seen_errors[i]);
        CHECK_INT(value, 0x11223344);
    }
    CHECK_STR(ob_strerror(read_word(&peer, &value), text, sizeof(text)),
              "the server answered: Operation not permitted");
    CHECK_INT(read_word(&peer, &value), 0);
    peer_stop(&peer);
}

static void attach_fds(struct peer *peer)
{
    int fds[3] = { peer->fd, peer->fd, peer->fd };

    while (peer_recv(peer)) {
        memset(peer->msg->payload + 16, 0, 4);
        peer_reply_fds(peer, peer->msg->payload, 20, fds, 3);
    }
}

TEST(unwanted_fds, "fds-that-nobody-asked-for-are-closed")
{
    struct peer peer = { 0 };
    uint32_t value;

    peer_start(&peer, attach_fds, NULL);
    int before = test_count_fds();
    for (int i = 0; i < 10; i++)
        CHECK_INT(read_word(&peer, &value), 0);
    CHECK_INT(test_settle_fds(before), before);
    peer_stop(&peer);
}

/* ---- Descriptions that lie ----------------------------------------------------------------- */

struct description {
    uint16_t cmd;
    uint32_t words[24];
    uint32_t nwords;
};

static const struct description
    descriptions[] = {
        { OB_CMD_DEVICE_GET_INFO, { 16, 2, 0xffffffff, 5 }, 4 },
        { OB_CMD_DEVICE_GET_INFO, { 16, 2, 9, 0x10000 }, 4 },
        { OB_CMD_DEVICE_GET_IRQ_INFO, { 16, 1, 1, 0x80000000 }, 4 },
        { OB_CMD_DEVICE_GET_IRQ_INFO, { 16, 1, 2, 1 }, 4 },
        /* region 1: another index; far too large; a chain outside, a loop, areas that are not
         * there, outside the region, overlapping */
        { OB_CMD_DEVICE_GET_REGION_INFO, { 32, 3, 2, 0, 0x1000 }, 8 },
        { OB_CMD_DEVICE_GET_REGION_INFO, { 0x7fffffff, 3, 1, 0, 0x1000 }, 8 },
        { OB_CMD_DEVICE_GET_REGION_INFO,
          { 40, 15, 1, 0x1000, 0x1000, 0, 0, 0, 1 | 1 << 16, 0 },
          10 },
        { OB_CMD_DEVICE_GET_REGION_INFO, { 40, 15, 1, 32, 0x1000, 0, 0, 0, 3 | 1 << 16, 32 }, 10 },
        { OB_CMD_DEVICE_GET_REGION_INFO,
          { 48, 15, 1, 32, 0x1000, 0, 0, 0, 1 | 1 << 16, 0, 9, 0 },
          12 },
        { OB_CMD_DEVICE_GET_REGION_INFO,
          { 64, 15, 1, 32, 0x1000, 0, 0, 0, 1 | 1 << 16, 0, 1, 0, 0x1000, 0, 0x1000, 0 },
          16 },
        { OB_CMD_DEVICE_GET_REGION_INFO,
          { 80, 15, 1, 32, 0x4000, 0, 0,      0, 1 | 1 << 16, 0,
            2,  0,  0, 0,  0x2000, 0, 0x1000, 0, 0x2000,      0 },
          20 },
    };

static void describe_wrongly(struct peer *peer)
{
    const struct description *d = peer->arg;

    while (peer_recv(peer)) {
        uint32_t room = PEER_GET(peer, struct ob_wire_device_info).argsz;
        peer_reply(peer, d->words, d->nwords * 4 < room ? d->nwords * 4 : room);
    }
}

TEST(wrong_descriptions, "a-description-that-contradicts-itself-ends-the-connection")
{
    for (size_t i = 0; i < sizeof(descriptions) / sizeof(descriptions[0]); i++) {
        struct peer peer = { .arg = (void *)&descriptions[i] };
        struct ob_device_info device = { 0 };
        struct ob_irq_info irq = { 0 };
        struct ob_region_info region = { .fd = -1 };
        int rc;

        peer_start(&peer, describe_wrongly, NULL);
        if (descriptions[i].cmd == OB_CMD_DEVICE_GET_INFO)
            rc = ob_client_device_info(peer.client, &device);
        else if (descriptions[i].cmd == OB_CMD_DEVICE_GET_IRQ_INFO)
            rc = ob_client_irq_info(peer.client, 1, &irq);
        else
            rc = ob_client_region_info(peer.client, 1, &region);
        if (rc != -ENOTCONN || device.num_regions || irq.count || region.layout.size)
            test_fail(__FILE__, __LINE__, "description %zu: %d", i, rc);
        CHECK(strncmp(ob_client_error(peer.client), "the server", 10) == 0);
        peer_stop(&peer);
    }
}
