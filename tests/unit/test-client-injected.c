/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A whole session of the client in which the Nth system call or allocation goes wrong, for every
 * N there is. What the kernel may do at any time (short counts, EINTR, EAGAIN) must not be noticed
 * at all; what breaks the connection or takes memory away must end as an error, with nothing
 * leaked. Only the thread of the client is hit.
 */
#include "harness.h"
#include "scripted.h"

#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum injection { NOTHING, SHORT_SEND, SHORT_RECV, FAIL_SEND, FAIL_RECV, FAIL_WAIT, FAIL_MALLOC };

static _Thread_local enum injection injection;
static _Thread_local int error; /* of the call that fails */
static _Thread_local long left; /* calls until it happens; < 0: it happens at every call */
static _Thread_local bool happened;

static bool hit(enum injection kind)
{
    if (injection != kind || (left > 0 && left--))
        return false;
    if (left == 0)
        injection = NOTHING;
    happened = true;
    return true;
}

/* The message cut to its first 5 bytes; to no more than it has. */
static void cut(struct msghdr *mh, struct iovec *iov, const struct msghdr *from)
{
    *mh = *from;
    *iov = from->msg_iov[0];
    if (iov->iov_len > 5)
        iov->iov_len = 5;
    mh->msg_iov = iov;
    mh->msg_iovlen = 1;
}

ssize_t sendmsg(int fd, const struct msghdr *mh, int flags)
{
    struct msghdr less;
    struct iovec iov;

    if (hit(FAIL_SEND)) {
        errno = error;
        return -1;
    }
    if (hit(SHORT_SEND)) {
        cut(&less, &iov, mh);
        return syscall(SYS_sendmsg, fd, &less, flags);
    }
    return syscall(SYS_sendmsg, fd, mh, flags);
}

ssize_t send(int fd, const void *data, size_t len, int flags)
{
    struct iovec iov = { (void *)data, len };

    return sendmsg(fd, &(struct msghdr){ .msg_iov = &iov, .msg_iovlen = 1 }, flags);
}

ssize_t recvmsg(int fd, struct msghdr *mh, int flags)
{
    struct iovec *all = mh->msg_iov, iov;
    ssize_t rc;

    if (hit(FAIL_RECV)) {
        errno = error;
        return -1;
    }
    if (!hit(SHORT_RECV))
        return syscall(SYS_recvmsg, fd, mh, flags);
    cut(mh, &iov, mh);
    rc = syscall(SYS_recvmsg, fd, mh, flags);
    mh->msg_iov = all;
    return rc;
}

ssize_t recv(int fd, void *data, size_t len, int flags)
{
    struct iovec iov = { data, len };
    struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

    return recvmsg(fd, &mh, flags);
}

int epoll_wait(int fd, struct epoll_event *events, int max, int timeout_ms)
{
    if (hit(FAIL_WAIT)) {
        errno = error;
        return -1;
    }
    return (int)syscall(SYS_epoll_pwait, fd, events, max, timeout_ms, NULL, 8);
}

/* A sanitizer has its own. */
#define OWN_MALLOC (!TEST_ASAN && !TEST_TSAN)

#if OWN_MALLOC
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *old, size_t size);

void *malloc(size_t size)
{
    return hit(FAIL_MALLOC) ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    return hit(FAIL_MALLOC) ? NULL : __libc_calloc(n, size);
}

void *realloc(void *old, size_t size)
{
    return hit(FAIL_MALLOC) ? NULL : __libc_realloc(old, size);
}
#endif

/* ---- The session --------------------------------------------------------------------------- */

#define BIG (600u << 10) /* more than a socket holds */

static const struct ob_wire_region_info mappable = {
    sizeof(mappable), OB_REGION_READ | OB_REGION_WRITE | OB_REGION_MMAP, 2, 0, 4096, 0
};

/* Wants DMA before it answers a read, and leaves when the client does. */
static void serve_with_dma(struct peer *peer)
{
    int fd = memfd_create("bar", MFD_CLOEXEC);

    CHECK_INT(ftruncate(fd, 4096), 0);
    while (peer_recv(peer)) {
        uint16_t cmd = peer->msg->hdr.cmd;
        peer_close_fds(peer);
        if (peer->msg->hdr.flags & OB_HDR_NO_REPLY)
            continue;
        if (cmd == OB_CMD_REGION_READ) {
            struct peer_access request = peer_keep(peer);
            peer_dma(peer, 1, OB_CMD_DMA_READ, 0x1000, 4, NULL, 0);
            if (!peer_recv(peer))
                break;
            /* Without memory for it, the client refuses the DMA and goes on. */
            CHECK(peer->msg->hdr.flags & OB_HDR_ERROR ||
                  memcmp(peer->msg->payload + sizeof(struct ob_wire_dma_access), "dma!", 4) == 0);
            peer_answer(peer, &request, "read");
        } else if (cmd == OB_CMD_REGION_WRITE) {
            for (uint32_t i = 16; i < peer->msg->len; i++)
                CHECK_INT(peer->msg->payload[i], 0x77);
            peer_reply(peer, peer->msg->payload, sizeof(struct ob_wire_region_access));
        } else if (cmd == OB_CMD_DEVICE_GET_REGION_INFO) {
            peer_reply_fds(peer, &mappable, sizeof(mappable), &fd, 1);
        } else {
            peer_reply(peer, peer->msg->payload, ob_msg_type(cmd)->reply.min);
        }
    }
    close(fd);
}

static int dma_read(void *opaque, uint64_t address, void *data, uint32_t count)
{
    (void)opaque;
    CHECK_INT(address, 0x1000);
    CHECK_INT(count, 4);
    memcpy(data, "dma!", 4);
    return 0;
}

static int use_client(struct ob_client *client, const uint8_t *big, int ram, int event)
{
    struct ob_dma_change changes[] = {
        { .flags = OB_DMA_READ, .address = 0, .size = 4096, .fd = ram },
        { .flags = OB_DMA_READ, .address = 4096, .size = 4096, .fd = -1 },
        { .unmap = true, .address = 0, .size = 4096, .fd = -1 },
    };
    struct ob_region_info info;
    char word[5] = "";
    int rc = ob_client_region_info(client, 2, &info);

    if (rc == 0) {
        CHECK(info.fd >= 0 && info.layout.size == 4096);
        ob_region_info_fini(&info);
        rc = ob_client_region_write(client, 0, 0, big, BIG);
    }
    if (rc == 0)
        rc = ob_client_irq_eventfds(client, OB_PCI_IRQ_MSIX, 0, 1, &event);
    if (rc == 0)
        rc = ob_client_dma_apply(client, changes, 3);
    if (rc == 0)
        rc = ob_client_region_post(client, 0, 0, "posted", 6);
    if (rc == 0)
        rc = ob_client_region_read(client, 0, 0, word, 4);
    if (rc == 0)
        CHECK_STR(word, "read");
    return rc;
}

/* The test's own preparations are not hit, nor is the server's thread. */
static void start_injecting(struct peer *peer)
{
    injection = *(enum injection *)peer->arg;
}

/* Without polling the calls are the same each time; with it, they are more. */
static unsigned spin_us;

/* The session with this call going wrong; returns how it ended. */
static int session(enum injection kind, long n, int with_error)
{
    static uint8_t big[BIG];
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    int ram = memfd_create("ram", MFD_CLOEXEC), event = eventfd(0, EFD_CLOEXEC);
    struct peer peer = { 0 };
    int rc;

    memset(big, 0x77, sizeof(big));
    opt.dma_read = dma_read;
    opt.spin_us = spin_us;
    error = with_error;
    left = n;
    happened = false;
    peer.before_connect = start_injecting;
    peer.arg = &kind;
    rc = peer_try_start(&peer, serve_with_dma, &opt);
    if (rc == 0)
        rc = use_client(peer.client, big, ram, event);
    injection = NOTHING;
    peer_stop(&peer);
    close(ram);
    close(event);
    return rc;
}

static void run_all(enum injection kind, int with_error, bool transparent)
{
    int fds = test_count_fds();

    for (long n = 0;; n++) {
        int rc = session(kind, n, with_error);
        if (rc != 0 && (transparent || !happened || rc > 0))
            test_fail(__FILE__, __LINE__, "call %ld: %d", n, rc);
        CHECK_INT(test_settle_fds(fds), fds);
        if (!happened) {
            CHECK(n > 3); /* such calls there were */
            break;
        }
    }
}

TEST(short_sends, "a-short-send-anywhere-goes-unnoticed")
{
    run_all(SHORT_SEND, 0, true);
}

TEST_TIMEOUT(all_short_sends, "short-sends-everywhere-go-unnoticed", 120)
{
    CHECK_INT(session(SHORT_SEND, -1, 0), 0);
}

TEST(short_recvs, "a-short-receive-anywhere-goes-unnoticed")
{
    run_all(SHORT_RECV, 0, true);
    CHECK_INT(session(SHORT_RECV, -1, 0), 0);
}

TEST(interrupts, "interrupted-calls-go-unnoticed")
{
    run_all(FAIL_SEND, EINTR, true);
    run_all(FAIL_RECV, EINTR, true);
    run_all(FAIL_WAIT, EINTR, true);
}

TEST(try_again, "a-socket-that-is-not-ready-after-all-goes-unnoticed")
{
    run_all(FAIL_SEND, EAGAIN, true);
    run_all(FAIL_RECV, EAGAIN, true);
}

TEST(resets, "a-reset-anywhere-is-an-error")
{
    run_all(FAIL_SEND, ECONNRESET, false);
    run_all(FAIL_RECV, ECONNRESET, false);
}

/* The failure hits what is polled as well as what was waited for. */
TEST(resets_polling, "a-reset-anywhere-is-an-error-while-polling")
{
    spin_us = OB_SPIN_US_DEFAULT;
    for (long n = 0; n < 200; n++) {
        int rc = session(FAIL_RECV, n, ECONNRESET);
        CHECK(rc < 0 || !happened);
    }
    CHECK_INT(session(FAIL_RECV, -1, EAGAIN), -ETIMEDOUT);
}

TEST(kernel_memory, "a-kernel-without-memory-anywhere-is-an-error")
{
    run_all(FAIL_SEND, ENOMEM, false);
    run_all(FAIL_SEND, ETOOMANYREFS, false);
    run_all(FAIL_RECV, ENOMEM, false);
}

#if OWN_MALLOC /* else it belongs to the sanitizer */
TEST(no_memory, "no-memory-anywhere-is-an-error")
{
    run_all(FAIL_MALLOC, 0, false);
}
#endif

/* ---- Order -------------------------------------------------------------------------------- */

static void check_number(uint64_t *next, const void *data)
{
    uint64_t number;

    memcpy(&number, data, sizeof(number));
    CHECK_INT(number, *next);
    ++*next;
}

/* Once it may: takes writes, which are numbered, and answers a read with how many they were. */
static void count_writes(struct peer *peer)
{
    const size_t access = sizeof(struct ob_wire_region_access);
    uint64_t next = 0;
    eventfd_t go;

    CHECK_INT(eventfd_read(*(int *)peer->arg, &go), 0);
    while (peer_recv(peer)) {
        struct ob_wire_write_multi multi;

        if (peer->msg->hdr.cmd == OB_CMD_REGION_READ) {
            peer_reply_access(peer, &next);
        } else if (peer->msg->hdr.cmd == OB_CMD_REGION_WRITE) {
            check_number(&next, peer->msg->payload + access);
        } else {
            memcpy(&multi, peer->msg->payload, sizeof(multi));
            for (uint64_t i = 0; i < multi.count; i++) {
                struct ob_wire_write_multi_entry entry;

                memcpy(&entry, peer->msg->payload + sizeof(multi) + i * sizeof(entry),
                       sizeof(entry));
                check_number(&next, entry.data);
            }
        }
    }
}

TEST(batch_not_overtaken, "a-write-that-goes-at-once-overtakes-no-batch")
{
    int go = eventfd(0, EFD_CLOEXEC), rc;
    struct peer peer = { .arg = &go, .json = "{\"capabilities\":{\"write_multiple\":true}}" };
    uint64_t number = 0, counted;

    peer_start(&peer, count_writes, NULL);
    for (; number < 1000; number++)
        CHECK_INT(ob_client_region_post(peer.client, 0, 0, &number, 8), 0);
    CHECK_INT(eventfd_write(go, 1), 0);
    usleep(200000);        /* what the socket had is read, and there is room again */
    injection = FAIL_SEND; /* for the first look, but not for the second one */
    error = EAGAIN;
    left = 0;
    rc = ob_client_region_post_now(peer.client, 0, 0, &number, 8);
    injection = NOTHING;
    CHECK(rc == 0 || rc == -EAGAIN);
    number += rc == 0;
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &counted, sizeof(counted)), 0);
    CHECK_INT(counted, number);
    peer_stop(&peer);
    close(go);
}

TEST(rest_is_sent, "the-loop-sends-the-rest-of-a-write-that-was-cut-short")
{
    int go = eventfd(1, EFD_CLOEXEC);
    struct peer peer = { .arg = &go };
    uint64_t number = 0, counted;
    struct epoll_event event;

    peer_start(&peer, count_writes, NULL);
    usleep(10000); /* the loop is told of output at once, also when it was left alone for a while */
    injection = SHORT_SEND;
    left = 0;
    CHECK_INT(ob_client_region_post_now(peer.client, 0, 0, &number, 8), 0);
    CHECK_INT(epoll_wait(ob_client_fd(peer.client), &event, 1, 20000), 1);
    CHECK_INT(ob_client_step(peer.client), 0);
    CHECK_INT(epoll_wait(ob_client_fd(peer.client), &event, 1, 10), 0);
    CHECK_INT(ob_client_region_read(peer.client, 0, 0, &counted, sizeof(counted)), 0);
    CHECK_INT(counted, 1);
    peer_stop(&peer);
    close(go);
}
