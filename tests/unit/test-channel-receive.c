/* SPDX-License-Identifier: BSD-3-Clause */
/* The receiving half of a channel against a plain socket. */
#include "wire.h"

#include <errno.h>
#include <stddef.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

TEST(every_split, "every-split")
{
    const int fds[2] = { open_memory(), open_memory() };
    uint8_t buf[64];
    struct pair p;

    open_pair(&p, 64);
    for (uint32_t payload = 0; payload <= 24; payload += 12) {
        size_t len = make_msg(buf, (uint16_t)payload, payload);
        for (size_t at = 1; at < len; at++) {
            send_raw(p.raw, buf, at, fds, 2);
            expect_nothing(&p);
            send_raw(p.raw, buf + at, len - at, NULL, 0);
            expect(&p, (uint16_t)payload, payload, 2);
            expect_nothing(&p);
        }
    }
    close_pair(&p);
    close(fds[0]);
    close(fds[1]);
}

TEST(every_two_splits, "every-two-splits")
{
    const int fd = open_memory();
    uint8_t buf[64];
    size_t len = make_msg(buf, 9, 10);
    struct pair p;

    open_pair(&p, 64);
    for (size_t one = 1; one < len - 1; one++) {
        for (size_t two = one + 1; two < len; two++) {
            send_raw(p.raw, buf, one, &fd, 1);
            expect_nothing(&p);
            send_raw(p.raw, buf + one, two - one, NULL, 0);
            expect_nothing(&p);
            send_raw(p.raw, buf + two, len - two, NULL, 0);
            expect(&p, 9, 10, 1);
        }
    }
    close_pair(&p);
    close(fd);
}

TEST(byte_by_byte, "byte-by-byte")
{
    uint8_t buf[64];
    size_t len = make_msg(buf, 3, 40);
    struct pair p;

    open_pair(&p, 64);
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < len; i++) {
            expect_nothing(&p);
            send_raw(p.raw, buf + i, 1, NULL, 0);
        }
        expect(&p, 3, 40, 0);
    }
    close_pair(&p);
}

TEST(merged, "merged-messages")
{
    const int fds[2] = { open_memory(), open_memory() };
    uint8_t buf[256];
    size_t len = make_msg(buf, 1, 20);
    struct pair p;

    len += make_msg(buf + len, 2, 0);
    len += make_msg(buf + len, 3, 7);
    open_pair(&p, 64);
    /* Three messages in one piece, and then a piece with the end of one and two more. */
    send_raw(p.raw, buf, len, fds, 2);
    send_raw(p.raw, buf, 21, fds, 1);
    expect(&p, 1, 20, 2);
    expect(&p, 2, 0, 0);
    expect(&p, 3, 7, 0);
    expect_nothing(&p);
    send_raw(p.raw, buf + 21, len - 21, NULL, 0);
    expect(&p, 1, 20, 1);
    expect(&p, 2, 0, 0);
    expect(&p, 3, 7, 0);
    /* Pieces that wait in the socket together keep their fds apart. */
    send_raw(p.raw, buf, 36, fds, 1);
    send_raw(p.raw, buf + 36, 16, NULL, 0);
    send_raw(p.raw, buf + 52, 23, fds, 2);
    expect(&p, 1, 20, 1);
    expect(&p, 2, 0, 0);
    expect(&p, 3, 7, 2);
    close_pair(&p);
    close(fds[0]);
    close(fds[1]);
}

TEST(sink, "data-that-is-waited-for-goes-where-it-belongs")
{
    enum { FIXED = 16, LEN = 40000 };
    static uint8_t buf[HDR + FIXED + LEN + 1], data[LEN];
    const struct ob_sink sink = { 7, OB_CMD_DMA_READ, FIXED, data, LEN };
    const uint32_t reply = OB_HDR_REPLY;
    const uint16_t cmd = OB_CMD_DMA_READ;
    struct ob_msg *msg;
    struct pair p;

    for (uint32_t extra = 0; extra < 2; extra++) { /* of its size, and not */
        size_t len = make_msg(buf, 7, FIXED + LEN + extra);
        memcpy(buf + offsetof(struct ob_wire_hdr, flags), &reply, sizeof(reply));
        memcpy(buf + offsetof(struct ob_wire_hdr, cmd), &cmd, sizeof(cmd));
        for (size_t cut = 0; cut < len; cut += cut < 40 ? 1 : 9973) {
            open_pair(&p, OB_PAYLOAD_MAX);
            p.ch.sink = &sink;
            memset(data, 0, sizeof(data));
            send_raw(p.raw, buf, cut, NULL, 0);
            if (cut)
                expect_nothing(&p);
            send_raw(p.raw, buf + cut, len - cut, NULL, 0);
            CHECK_INT(ob_channel_recv(&p.ch, &msg), 1);
            CHECK_INT(msg->sunk, extra == 0);
            CHECK_INT(msg->len, FIXED + LEN + extra);
            CHECK_MEM(msg->payload, buf + HDR, FIXED);
            if (msg->sunk)
                CHECK_MEM(data, buf + HDR + FIXED, LEN);
            else
                CHECK_INT(data[0] | data[LEN - 1], 0);
            ob_msg_free(msg);
            close_pair(&p);
        }
    }
    /* Given up half-way: the rest goes nowhere, and the stream goes on. */
    make_msg(buf, 7, FIXED + LEN);
    memcpy(buf + offsetof(struct ob_wire_hdr, flags), &reply, sizeof(reply));
    memcpy(buf + offsetof(struct ob_wire_hdr, cmd), &cmd, sizeof(cmd));
    open_pair(&p, OB_PAYLOAD_MAX);
    p.ch.sink = &sink;
    send_raw(p.raw, buf, HDR + FIXED + 100, NULL, 0);
    expect_nothing(&p);
    ob_channel_unsink(&p.ch);
    memset(data, 0, sizeof(data));
    send_raw(p.raw, buf + HDR + FIXED + 100, LEN - 100, NULL, 0);
    CHECK_INT(ob_channel_recv(&p.ch, &msg), 1);
    CHECK(msg->oversize && !msg->payload);
    ob_msg_free(msg);
    for (int i = 0; i < LEN; i++)
        CHECK_INT(data[i], 0);
    make_msg(buf, 8, 20);
    send_raw(p.raw, buf, HDR + 20, NULL, 0);
    expect(&p, 8, 20, 0);
    close_pair(&p);
    /* Its header came before anybody waited for it, and it has memory already. */
    make_msg(buf, 7, FIXED + LEN);
    memcpy(buf + offsetof(struct ob_wire_hdr, flags), &reply, sizeof(reply));
    memcpy(buf + offsetof(struct ob_wire_hdr, cmd), &cmd, sizeof(cmd));
    open_pair(&p, OB_PAYLOAD_MAX);
    send_raw(p.raw, buf, HDR, NULL, 0);
    expect_nothing(&p);
    p.ch.sink = &sink;
    send_raw(p.raw, buf + HDR, FIXED + LEN, NULL, 0);
    CHECK_INT(ob_channel_recv(&p.ch, &msg), 1);
    CHECK_MEM(msg->payload, buf + HDR, FIXED);
    CHECK_INT(msg->sunk, false);
    ob_msg_free(msg);
    close_pair(&p);
}

TEST(oversize, "oversize-is-drained-and-the-stream-goes-on")
{
    static uint8_t buf[8192];
    const int fd = open_memory();
    struct ob_msg *msg;
    struct pair p;

    open_pair(&p, 100);
    for (uint32_t payload = 99; payload <= 102; payload++) {
        size_t len = make_msg(buf, 7, payload);
        len += make_msg(buf + len, 8, 5);
        send_raw(p.raw, buf, len, &fd, 1);
        CHECK_INT(ob_channel_recv(&p.ch, &msg), 1);
        CHECK_INT(msg->oversize, payload > 100);
        CHECK_INT(msg->hdr.msg_size, HDR + payload);
        CHECK_INT(msg->len, payload > 100 ? 0 : payload);
        CHECK((msg->payload == NULL) == (payload > 100));
        CHECK_INT(msg->nfds, 1);
        ob_msg_free(msg);
        expect(&p, 8, 5, 0);
    }
    close_pair(&p);
    close(fd);
}

TEST(long_oversize, "long-oversize-message-is-drained-piece-by-piece")
{
    static uint8_t buf[65536];
    const uint32_t total = 3u << 20;
    struct ob_msg *msg = NULL;
    size_t left = total, len;
    struct pair p;

    make_msg(buf, 7, 0);
    memcpy(buf + offsetof(struct ob_wire_hdr, msg_size), &total, sizeof(total));
    open_pair(&p, 1000);
    while (!msg) {
        size_t part = left < sizeof(buf) ? left : sizeof(buf);
        ssize_t n = send(p.raw, buf, part, MSG_DONTWAIT);
        if (n > 0)
            left -= (size_t)n;
        CHECK(ob_channel_recv(&p.ch, &msg) >= 0);
        CHECK(left == 0 || !msg);
    }
    CHECK(msg->oversize);
    ob_msg_free(msg);
    len = make_msg(buf, 8, 0);
    send_raw(p.raw, buf, len, NULL, 0);
    expect(&p, 8, 0, 0);
    close_pair(&p);
}

TEST(endless_oversize, "endless-oversize-message-does-not-hold-the-receiver")
{
    const struct ob_wire_hdr hdr = { .msg_size = UINT32_MAX };
    struct pair p;

    open_pair(&p, 1000);
    send_raw(p.raw, &hdr, HDR, NULL, 0);
    recv_plan = (struct plan){ 2, FAULT_ENDLESS, 0 };
    expect_nothing(&p);
    CHECK(recv_plan.calls < 200);
    uint32_t got = p.ch.in_got;
    expect_nothing(&p);
    CHECK(p.ch.in_got > got);
    recv_plan = (struct plan){ 0 };
    close_pair(&p);
}

TEST(lying_header, "header-that-lies-costs-no-memory")
{
    const struct ob_wire_hdr hdr = { .msg_size = OB_MSG_MAX };
    struct ob_msg *msg;
    struct pair p;

    open_pair(&p, OB_PAYLOAD_MAX);
    send_raw(p.raw, &hdr, HDR, NULL, 0);
    send_raw(p.raw, "0123456789", 10, NULL, 0);
    expect_nothing(&p);
    CHECK(p.ch.in->len <= 65536);
    CHECK_INT(shutdown(p.raw, SHUT_WR), 0);
    CHECK_INT(ob_channel_recv(&p.ch, &msg), -ECONNRESET);
    close_pair(&p);
}

TEST(largest, "largest-message-comes-whole")
{
    static uint8_t buf[OB_PAYLOAD_MAX + 16];
    size_t done = 0, len = make_msg(buf, 77, OB_PAYLOAD_MAX);
    struct ob_msg *msg = NULL;
    struct pair p;

    open_pair(&p, OB_PAYLOAD_MAX);
    while (!msg) {
        ssize_t n = send(p.raw, buf + done, len - done, MSG_DONTWAIT);
        done += n > 0 ? (size_t)n : 0;
        CHECK(ob_channel_recv(&p.ch, &msg) >= 0);
    }
    check_msg(msg, 77, OB_PAYLOAD_MAX, 0);
    ob_msg_free(msg);
    close_pair(&p);
}

/* Who shares the socket (a parent that passed it on) can change its flags. */
TEST(flags_changed, "never-blocks-when-the-socket-was-made-blocking")
{
    struct pair p;

    open_pair(&p, 64);
    CHECK_INT(fcntl(p.ch.fd, F_SETFL, fcntl(p.ch.fd, F_GETFL) & ~O_NONBLOCK), 0);
    expect_nothing(&p);
    struct ob_wire_hdr hdr = { 0 };
    while (!p.ch.out_head)
        CHECK_INT(ob_channel_queue(&p.ch, &hdr, NULL, 0, NULL, 0), 0);
    close_pair(&p);
}

TEST(peer_closes, "peer-closes-at-every-byte")
{
    const int fd = open_memory();
    uint8_t buf[64];
    size_t len = make_msg(buf, 1, 12);
    struct ob_msg *msg;

    for (size_t at = 0; at <= len; at++) {
        struct pair p;
        open_pair(&p, 64);
        if (at)
            send_raw(p.raw, buf, at, &fd, 1);
        CHECK_INT(shutdown(p.raw, SHUT_WR), 0);
        if (at == len)
            expect(&p, 1, 12, 1);
        CHECK_INT(ob_channel_recv(&p.ch, &msg), -ECONNRESET);
        CHECK_INT(ob_channel_recv(&p.ch, &msg), -ECONNRESET);
        close_pair(&p);
    }
    close(fd);
}

TEST(size_below_header, "size-below-the-header-ends-the-stream")
{
    for (uint32_t size = 0; size < HDR; size++) {
        const struct ob_wire_hdr hdr = { .msg_size = size };
        struct ob_msg *msg;
        struct pair p;
        open_pair(&p, 64);
        send_raw(p.raw, &hdr, HDR, NULL, 0);
        send_raw(p.raw, &hdr, HDR, NULL, 0);
        CHECK_INT(ob_channel_recv(&p.ch, &msg), -EPROTO);
        CHECK_INT(ob_channel_recv(&p.ch, &msg), -EPROTO);
        close_pair(&p);
    }
}

TEST(recv_faults, "receive-fails-at-every-call")
{
    const int fd = open_memory();
    uint8_t buf[256];
    size_t len = make_msg(buf, 1, 50);

    len += make_msg(buf + len, 2, 0);
    for (enum fault fault = FAULT_EINTR; fault < FAULTS; fault++) {
        unsigned nth = 1;
        for (bool done = false; !done; nth++) {
            struct ob_msg *msg = NULL;
            struct pair p;
            int got = 0, rc = 0;
            open_pair(&p, 64);
            send_raw(p.raw, buf, len, &fd, 1);
            recv_plan = (struct plan){ nth, fault, 0 };
            while (got < 2) {
                rc = ob_channel_recv(&p.ch, &msg);
                if (rc < 0)
                    break;
                if (rc == 0)
                    continue;
                check_msg(msg, got == 0 ? 1 : 2, got == 0 ? 50 : 0, got == 0 ? 1 : 0);
                ob_msg_free(msg);
                got++;
            }
            done = recv_plan.countdown > 0;
            CHECK_INT(rc, fault == FAULT_RESET && !done ? -ECONNRESET : 1);
            recv_plan = (struct plan){ 0 };
            close_pair(&p);
        }
        CHECK(nth > 3);
    }
    close(fd);
}

TEST(no_memory_to_receive, "no-memory-to-receive-can-be-tried-again")
{
    static uint8_t buf[200000 + 16];
    size_t len = make_msg(buf, 6, 200000);

    for (unsigned nth = 1;; nth++) {
        struct ob_msg *msg = NULL;
        struct pair p;
        size_t done = 0;
        bool failed = false;
        open_pair(&p, OB_PAYLOAD_MAX);
        alloc_plan = (struct plan){ nth, FAULT_RESET, 0 };
        while (!msg) {
            ssize_t n = send(p.raw, buf + done, len - done, MSG_DONTWAIT);
            done += n > 0 ? (size_t)n : 0;
            int rc = ob_channel_recv(&p.ch, &msg);
            CHECK(rc >= 0 || (rc == -ENOMEM && !failed));
            failed = failed || rc < 0;
        }
        alloc_plan = (struct plan){ 0 };
        check_msg(msg, 6, 200000, 0);
        ob_msg_free(msg);
        close_pair(&p);
        if (!failed)
            break;
    }
}
