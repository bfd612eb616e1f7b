/* SPDX-License-Identifier: BSD-3-Clause */
/* The sending half of a channel, and waiting. */
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* Queues a message like make_msg()'s in three parts. */
static int queue(struct ob_channel *ch, uint16_t id, uint32_t payload, const int *fds,
                 unsigned nfds)
{
    struct ob_wire_hdr hdr = { .msg_id = id, .cmd = OB_CMD_REGION_WRITE };
    static uint8_t bytes[1u << 20];
    uint32_t third = payload / 3;

    for (uint32_t i = 0; i < payload; i++)
        bytes[i] = pattern(id, i);
    const struct iovec iov[3] = { { bytes, third },
                                  { bytes + third, third },
                                  { bytes + 2 * third, payload - 2 * third } };
    return ob_channel_queue(ch, &hdr, iov, 3, fds, nfds);
}

/* A pair of channels. */
static void open_channels(struct ob_channel *a, struct ob_channel *b)
{
    int fds[2];

    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_INT(ob_channel_init(a, fds[0], OB_PAYLOAD_MAX), 0);
    CHECK_INT(ob_channel_init(b, fds[1], OB_PAYLOAD_MAX), 0);
}

/* Flushes one end and receives at the other until a message is there. */
static struct ob_msg *pump(struct ob_channel *from, struct ob_channel *to)
{
    struct ob_msg *msg = NULL;

    while (!msg) {
        CHECK(ob_channel_flush(from) >= 0);
        CHECK(ob_channel_recv(to, &msg) >= 0);
    }
    return msg;
}

/* L-11 and others take header and payload only in one piece each. */
TEST(one_sendmsg, "one-message-is-one-sendmsg")
{
    const int fd = open_memory();
    struct pair p;
    uint8_t want[64], got[64];

    open_pair(&p, 64);
    for (uint32_t payload = 0; payload < 30; payload++) {
        size_t len = make_msg(want, (uint16_t)payload, payload);
        send_plan = (struct plan){ 0 };
        CHECK_INT(queue(&p.ch, (uint16_t)payload, payload, &fd, 1), 0);
        CHECK_INT(send_plan.calls, 1);
        CHECK_INT(recv(p.raw, got, sizeof(got), 0), len);
        CHECK_MEM(want, got, len);
    }
    close_pair(&p);
    close(fd);
}

TEST(corked, "corked-messages-go-out-together-and-are-not-overtaken")
{
    struct ob_wire_hdr hdr = { .cmd = 9 };
    char bytes[3000] = { 0 };
    struct iovec small = { bytes, 100 }, large = { bytes, sizeof(bytes) };
    const int fd = open_memory();
    struct pair p;

    open_pair(&p, 64);
    ob_channel_cork(&p.ch);
    for (unsigned i = 0; i < 10; i++)
        CHECK_INT(ob_channel_queue(&p.ch, &hdr, &small, 1, NULL, 0), 0);
    CHECK_INT(recv(p.raw, bytes, sizeof(bytes), MSG_DONTWAIT), -1);
    send_plan.calls = 0;
    CHECK_INT(ob_channel_uncork(&p.ch), 0);
    CHECK_INT(send_plan.calls, 1);
    CHECK_INT(recv(p.raw, bytes, sizeof(bytes), MSG_DONTWAIT), 10 * (HDR + 100));
    /* Before a large one, before one with fds, before one that must go at once; and when they are
     * many. */
    for (unsigned i = 0; i < 3; i++) {
        ob_channel_cork(&p.ch);
        hdr.msg_id = 1;
        CHECK_INT(ob_channel_queue(&p.ch, &hdr, &small, 1, NULL, 0), 0);
        hdr.msg_id = 2;
        if (i == 2)
            CHECK_INT(ob_channel_try(&p.ch, &hdr, &small, 1, NULL, 0), 0);
        else
            CHECK_INT(ob_channel_queue(&p.ch, &hdr, i ? &small : &large, 1, &fd, i), 0);
        CHECK_INT(recv(p.raw, bytes, HDR + 100, MSG_DONTWAIT), HDR + 100);
        CHECK_INT(((struct ob_wire_hdr *)(void *)bytes)->msg_id, 1);
        CHECK(recv(p.raw, bytes, sizeof(bytes), MSG_DONTWAIT) >= (ssize_t)HDR + 100);
        CHECK_INT(((struct ob_wire_hdr *)(void *)bytes)->msg_id, 2);
        while (recv(p.raw, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
            ;
    }
    for (unsigned i = 0; i < 100; i++)
        CHECK_INT(ob_channel_queue(&p.ch, &hdr, &small, 1, NULL, 0), 0);
    CHECK(recv(p.raw, bytes, sizeof(bytes), MSG_DONTWAIT) > 1000);
    CHECK_INT(ob_channel_uncork(&p.ch), 0);
    close_pair(&p);
    close(fd);
}

TEST(queue_order, "queue-keeps-order")
{
    const int fd = open_memory();
    struct ob_channel a, b;
    uint16_t id = 0;

    open_channels(&a, &b);
    while (!a.out_head)
        CHECK_INT(queue(&a, id++, 5000, NULL, 0), 0);
    for (int i = 0; i < 50; i++)
        CHECK_INT(queue(&a, id++, 100, &fd, 1), 0);
    CHECK_INT(ob_channel_flush(&a), 0);
    int last_small = id - 50;
    for (uint16_t i = 0; i < id; i++) {
        struct ob_msg *msg = pump(&a, &b);
        bool small = i >= last_small;
        check_msg(msg, i, small ? 100 : 5000, small ? 1 : 0);
        ob_msg_free(msg);
    }
    CHECK_INT(ob_channel_flush(&a), 1);
    CHECK(!a.out_head && !a.out_tail);
    CHECK_INT(a.out_bytes, 0);
    ob_channel_fini(&a);
    ob_channel_fini(&b);
    close(fd);
}

TEST(nothing_overtakes, "nothing-overtakes-the-queue-when-the-socket-has-room-again")
{
    struct ob_channel a, b;

    open_channels(&a, &b);
    for (uint16_t id = 0; id < 3; id++) {
        send_plan = (struct plan){ 1, FAULT_EAGAIN, 0 };
        CHECK_INT(queue(&a, id, 30, NULL, 0), 0);
        CHECK_INT(send_plan.calls, 1);
    }
    for (uint16_t id = 0; id < 3; id++) {
        struct ob_msg *msg = pump(&a, &b);
        check_msg(msg, id, 30, 0);
        ob_msg_free(msg);
    }
    ob_channel_fini(&a);
    ob_channel_fini(&b);
}

TEST(queue_bounded, "queue-is-bounded")
{
    struct ob_channel a, b;
    uint16_t id = 0, got = 0;
    int rc;

    open_channels(&a, &b);
    while ((rc = queue(&a, id, 1u << 20, NULL, 0)) == 0)
        id++;
    CHECK_INT(rc, -ENOBUFS);
    CHECK(a.out_bytes <= OB_CHANNEL_QUEUE_MAX);
    CHECK(a.out_bytes > OB_CHANNEL_QUEUE_MAX - (2u << 20));
    for (; got < id; got++) {
        struct ob_msg *msg = pump(&a, &b);
        CHECK_INT(msg->hdr.msg_id, got);
        ob_msg_free(msg);
    }
    CHECK_INT(ob_channel_flush(&a), 1);
    CHECK_INT(queue(&a, id, 10, NULL, 0), 0);
    ob_channel_fini(&a);
    ob_channel_fini(&b);
}

TEST(impossible, "impossible-messages-are-refused-and-nothing-is-sent")
{
    struct ob_wire_hdr hdr = { 0 };
    struct iovec iov[OB_CHANNEL_IOV_MAX + 1] = { 0 };
    int fds[OB_MSG_FDS_MAX + 1] = { 0 };
    int closed = -1;
    struct pair p;

    open_pair(&p, 64);
    CHECK_INT(ob_channel_queue(&p.ch, &hdr, iov, OB_CHANNEL_IOV_MAX + 1, NULL, 0), -EINVAL);
    CHECK_INT(ob_channel_queue(&p.ch, &hdr, NULL, 0, fds, OB_MSG_FDS_MAX + 1), -EINVAL);
    iov[0] = (struct iovec){ fds, SIZE_MAX };
    iov[1] = iov[0];
    CHECK_INT(ob_channel_queue(&p.ch, &hdr, iov, 2, NULL, 0), -EMSGSIZE);
    CHECK_INT(ob_channel_queue(&p.ch, &hdr, NULL, 0, &closed, 1), -EBADF);
    CHECK_INT(recv(p.raw, fds, sizeof(fds), MSG_DONTWAIT), -1);
    CHECK_INT(ob_channel_queue(&p.ch, &hdr, iov, 0, NULL, 0), 0);
    CHECK_INT(recv(p.raw, fds, sizeof(fds), MSG_DONTWAIT), HDR);
    close_pair(&p);
}

TEST(send_faults, "send-fails-at-every-call")
{
    static const uint32_t sizes[4] = { 40, 0, 3000, 1 };
    const int fd = open_memory();

    for (enum fault fault = FAULT_EINTR; fault < FAULTS; fault++) {
        unsigned nth = 1;
        for (bool done = false; !done; nth++) {
            struct ob_channel a, b;
            int rc = 0;
            open_channels(&a, &b);
            send_plan = (struct plan){ nth, fault, 0 };
            for (uint16_t i = 0; i < 4 && rc == 0; i++)
                rc = queue(&a, i, sizes[i], &fd, 1);
            done = send_plan.countdown > 0;
            CHECK_INT(rc, fault == FAULT_RESET && !done ? -ECONNRESET : 0);
            for (uint16_t i = 0; i < 4 && rc == 0; i++) {
                struct ob_msg *msg = pump(&a, &b);
                check_msg(msg, i, sizes[i], 1);
                ob_msg_free(msg);
            }
            send_plan = (struct plan){ 0 };
            ob_channel_fini(&a);
            ob_channel_fini(&b);
        }
        CHECK(nth > 4);
    }
    close(fd);
}

TEST(short_sends, "sends-of-one-byte-at-a-time")
{
    const int fd = open_memory();
    struct ob_channel a, b;

    open_channels(&a, &b);
    send_plan = (struct plan){ 1, FAULT_SHORT, 0 };
    CHECK_INT(queue(&a, 4, 60, &fd, 1), 0);
    while (a.out_head) {
        send_plan = (struct plan){ 1, FAULT_SHORT, 0 };
        size_t before = a.out_bytes;
        CHECK(ob_channel_flush(&a) >= 0);
        CHECK(a.out_bytes < before);
    }
    struct ob_msg *msg = pump(&a, &b);
    check_msg(msg, 4, 60, 1);
    ob_msg_free(msg);
    ob_channel_fini(&a);
    ob_channel_fini(&b);
    close(fd);
}

TEST(no_memory_to_queue, "no-memory-to-queue-never-tears-the-stream")
{
    const int fd = open_memory();
    struct ob_channel a, b;
    struct ob_msg *msg;

    /* Nothing of the message is out: it can be sent later. */
    open_channels(&a, &b);
    send_plan = (struct plan){ 1, FAULT_EAGAIN, 0 };
    alloc_plan = (struct plan){ 1, FAULT_RESET, 0 };
    CHECK_INT(queue(&a, 1, 30, &fd, 1), -ENOMEM);
    CHECK_INT(queue(&a, 2, 30, &fd, 1), 0);
    msg = pump(&a, &b);
    check_msg(msg, 2, 30, 1);
    ob_msg_free(msg);
    /* A part is out, and the socket is full: the connection ends, and the peer sees that. */
    alloc_plan = (struct plan){ 1, FAULT_RESET, 0 };
    CHECK_INT(queue(&a, 3, 1u << 20, &fd, 1), -EPIPE);
    alloc_plan = (struct plan){ 0 };
    CHECK_INT(queue(&a, 4, 30, &fd, 1), -EPIPE);
    CHECK_INT(ob_channel_recv(&b, &msg), -ECONNRESET);
    ob_channel_fini(&a);
    ob_channel_fini(&b);
    close(fd);
}

TEST(kernel_without_memory, "kernel-without-memory-neither-tears-the-stream-nor-loses-messages")
{
    struct ob_wire_hdr hdr = { .msg_id = 4, .cmd = OB_CMD_REGION_WRITE };
    struct ob_channel a, b;
    struct ob_msg *msg;

    /* A part of a large message is out. */
    open_channels(&a, &b);
    send_plan = (struct plan){ 2, FAULT_NOBUFS, 0 };
    CHECK_INT(queue(&a, 1, 1u << 20, NULL, 0), 0);
    CHECK_INT(send_plan.countdown, 0);
    CHECK_INT(queue(&a, 2, 30, NULL, 0), 0);
    msg = pump(&a, &b);
    check_msg(msg, 1, 1u << 20, 0);
    ob_msg_free(msg);
    msg = pump(&a, &b);
    check_msg(msg, 2, 30, 0);
    ob_msg_free(msg);
    /* Others were collected, and said to be on their way. */
    ob_channel_cork(&a);
    CHECK_INT(ob_channel_queue(&a, &hdr, NULL, 0, NULL, 0), 0);
    send_plan = (struct plan){ 1, FAULT_NOBUFS, 0 };
    CHECK_INT(queue(&a, 5, 3000, NULL, 0), 0);
    CHECK_INT(ob_channel_uncork(&a), 0);
    msg = pump(&a, &b);
    check_msg(msg, 4, 0, 0);
    ob_msg_free(msg);
    msg = pump(&a, &b);
    check_msg(msg, 5, 3000, 0);
    ob_msg_free(msg);
    ob_channel_fini(&a);
    ob_channel_fini(&b);
}

TEST(no_fds_to_queue, "no-fd-to-queue-never-tears-the-stream")
{
    struct rlimit old, low;
    struct ob_channel a, b;
    int fds[3];

    open_channels(&a, &b);
    for (int i = 0; i < 3; i++)
        fds[i] = b.fd;
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &old), 0);
    low = old;
    low.rlim_cur = (rlim_t)b.fd + 2; /* room for one */
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &low), 0);
    send_plan = (struct plan){ 1, FAULT_EAGAIN, 0 };
    CHECK_INT(queue(&a, 1, 30, fds, 3), -EMFILE);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &old), 0);
    CHECK_INT(queue(&a, 2, 30, fds, 3), 0);
    struct ob_msg *msg = pump(&a, &b);
    check_msg(msg, 2, 30, 3);
    ob_msg_free(msg);
    ob_channel_fini(&a);
    ob_channel_fini(&b);
}

TEST(wait_deadline, "wait-keeps-its-deadline")
{
    struct pair p;
    int64_t start = test_now_ms();

    open_pair(&p, 64);
    CHECK_INT(ob_channel_wait(&p.ch, POLLIN, ob_deadline_ns(0)), -ETIMEDOUT);
    CHECK(test_now_ms() - start < 1000);
    poll_plan = (struct plan){ 2, FAULT_EINTR, 0 };
    CHECK_INT(ob_channel_wait(&p.ch, POLLIN, ob_deadline_ns(60)), -ETIMEDOUT);
    CHECK(test_now_ms() - start >= 60);
    poll_plan = (struct plan){ 1, FAULT_EINTR, 0 };
    CHECK_INT(ob_channel_wait(&p.ch, POLLIN, ob_deadline_ns(60)), -ETIMEDOUT);
    CHECK_INT(poll_plan.calls, 2);
    CHECK(test_now_ms() - start >= 120);
    CHECK(test_now_ms() - start < 10000);
    CHECK_INT(ob_channel_wait(&p.ch, POLLOUT, OB_NO_DEADLINE), POLLOUT);
    send_raw(p.raw, "x", 1, NULL, 0);
    /* What is there is found also when the deadline has passed. */
    CHECK_INT(ob_channel_wait(&p.ch, POLLIN, ob_now_ns() - 1), POLLIN);
    close_pair(&p);
}

TEST(send_deadline, "send-keeps-its-deadline-and-the-stream-whole")
{
    static uint8_t bytes[600000];
    struct ob_wire_hdr hdr = { .msg_id = 1 };
    const struct iovec iov = { bytes, sizeof(bytes) };
    struct ob_channel a, b;
    int64_t start = test_now_ms();

    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = pattern(1, i);
    open_channels(&a, &b);
    CHECK_INT(ob_channel_send(&a, &hdr, &iov, 1, NULL, 0, ob_deadline_ns(50)), -ETIMEDOUT);
    CHECK(test_now_ms() - start >= 50);
    CHECK(test_now_ms() - start < 10000);
    struct ob_msg *msg = pump(&a, &b);
    check_msg(msg, 1, sizeof(bytes), 0);
    ob_msg_free(msg);
    CHECK_INT(ob_channel_send(&a, &hdr, NULL, 0, NULL, 0, ob_deadline_ns(50)), 0);
    msg = pump(&a, &b);
    CHECK_INT(msg->len, 0);
    ob_msg_free(msg);
    ob_channel_fini(&a);
    ob_channel_fini(&b);
}

TEST(dead_peer, "send-to-a-dead-peer-is-an-error-not-a-signal")
{
    struct ob_wire_hdr hdr = { 0 };
    struct pair p;

    open_pair(&p, 64);
    close(p.raw);
    CHECK_INT(ob_channel_queue(&p.ch, &hdr, NULL, 0, NULL, 0), -EPIPE);
    CHECK_INT(ob_channel_send(&p.ch, &hdr, NULL, 0, NULL, 0, OB_NO_DEADLINE), -EPIPE);
    ob_channel_fini(&p.ch);
}

TEST(init, "only-a-stream-socket-becomes-a-channel")
{
    struct ob_channel ch;
    int fds[2];

    CHECK_INT(ob_channel_init(&ch, open_memory(), 64), -ENOTSOCK);
    CHECK_INT(ob_channel_init(&ch, -1, 64), -EBADF);
    CHECK_INT(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
    CHECK_INT(ob_channel_init(&ch, fds[0], 64), -EPROTOTYPE);
    CHECK_INT(fcntl(fds[0], F_GETFD), -1); /* taken, also on failure */
    close(fds[1]);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    CHECK_INT(ob_channel_init(&ch, fds[0], 64), 0);
    CHECK_INT(fcntl(fds[0], F_GETFD), FD_CLOEXEC);
    CHECK(fcntl(fds[0], F_GETFL) & O_NONBLOCK);
    ob_channel_fini(&ch);
    close(fds[1]);
}
