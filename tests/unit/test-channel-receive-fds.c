/* SPDX-License-Identifier: BSD-3-Clause */
/* The receiving half of a channel against a plain socket: the fds that come with messages. */
#include "wire.h"

#include <fcntl.h>
#include <stddef.h>
#include <sys/resource.h>
#include <unistd.h>

/* Reads go beyond the end of messages that are shorter than what they take. */
TEST(merged_fds, "merged-fds")
{
    const int fds[3] = { open_memory(), open_memory(), open_memory() };
    uint8_t buf[256];
    size_t one = make_msg(buf, 1, 0), two = one + make_msg(buf + one, 2, 0), three;
    struct pair p;

    three = two + make_msg(buf + two, 3, 24);
    open_pair(&p, 64);
    /* The last of three that wait in the socket has them; the read of the first brings them. */
    send_raw(p.raw, buf, two, NULL, 0);
    send_raw(p.raw, buf + two, three - two, fds, 3);
    expect(&p, 1, 0, 0);
    CHECK(ob_channel_ready(&p.ch));
    expect(&p, 2, 0, 0);
    CHECK(!ob_channel_ready(&p.ch));
    expect(&p, 3, 24, 3);
    /* Each has some. */
    send_raw(p.raw, buf, one, fds, 1);
    send_raw(p.raw, buf + one, two - one, fds, 2);
    send_raw(p.raw, buf + two, three - two, fds, 3);
    expect(&p, 1, 0, 1);
    expect(&p, 2, 0, 2);
    expect(&p, 3, 24, 3);
    expect_nothing(&p);
    /* The first came in pieces, with a fd; the read of its end brings those of the third. */
    send_raw(p.raw, buf, 5, fds, 1);
    expect_nothing(&p);
    send_raw(p.raw, buf + 5, two - 5, NULL, 0);
    send_raw(p.raw, buf + two, three - two, fds, 2);
    expect(&p, 1, 0, 1);
    expect(&p, 2, 0, 0);
    expect(&p, 3, 24, 2);
    close_pair(&p);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
}

/* Reads that take many messages: each that may have fds has its own, merged or not. */
TEST(bulk_fds, "bulk-fds")
{
    static const uint16_t cmds[5] = { OB_CMD_REGION_WRITE, OB_CMD_DMA_MAP, OB_CMD_REGION_WRITE,
                                      OB_CMD_DMA_UNMAP, OB_CMD_DMA_MAP };
    const int fd = open_memory();
    uint8_t buf[512];
    size_t at[6] = { 0 };
    struct pair p;

    for (unsigned i = 0; i < 5; i++) {
        at[i + 1] = at[i] + make_msg(buf + at[i], (uint16_t)(i + 1), 32);
        memcpy(buf + at[i] + offsetof(struct ob_wire_hdr, cmd), &cmds[i], sizeof(cmds[i]));
    }
    open_pair(&p, 64);
    p.ch.ahead = OB_AHEAD_BULK;
    for (unsigned i = 0; i < 5; i++) /* each by itself */
        send_raw(p.raw, buf + at[i], at[i + 1] - at[i], &fd, cmds[i] == OB_CMD_DMA_MAP);
    for (unsigned i = 0; i < 5; i++)
        expect(&p, (uint16_t)(i + 1), 32, cmds[i] == OB_CMD_DMA_MAP);
    expect_nothing(&p);
    for (unsigned cut = 0; cut < 48; cut += 5) { /* a map and what follows it, cut somewhere */
        send_raw(p.raw, buf, at[1], NULL, 0);
        send_raw(p.raw, buf + at[1], at[3] - at[1] + cut, &fd, 1);
        if (cut % 2)
            expect(&p, 1, 32, 0);
        send_raw(p.raw, buf + at[3] + cut, at[4] - at[3] - cut, NULL, 0);
        if (cut % 2 == 0)
            expect(&p, 1, 32, 0);
        expect(&p, 2, 32, cut == 0 || cut >= 16);
        expect(&p, 3, 32, 0);
        expect(&p, 4, 32, cut > 0 && cut < 16);
    }
    close_pair(&p);
    close(fd);
}

/* Replies with fds keep them behind replies to commands that take some; and what was read in bulk
 * stays so when the next reads are short. */
TEST(bulk_fds_changed, "bulk-fds-of-replies-and-after-bulk")
{
    static const uint16_t commands[3] = { OB_CMD_REGION_READ, OB_CMD_DMA_MAP, OB_CMD_REGION_WRITE };
    static const uint16_t replies[3] = { OB_CMD_DMA_MAP, OB_CMD_DMA_MAP,
                                         OB_CMD_DEVICE_GET_REGION_INFO };
    const uint32_t reply = OB_HDR_REPLY;
    const int fd = open_memory();
    uint8_t buf[512];
    size_t at[4] = { 0 };
    struct pair p;

    for (unsigned i = 0; i < 3; i++) {
        at[i + 1] = at[i] + make_msg(buf + at[i], (uint16_t)(i + 1), i == 2 ? 32 : 0);
        memcpy(buf + at[i] + offsetof(struct ob_wire_hdr, cmd), &replies[i], sizeof(replies[i]));
        memcpy(buf + at[i] + offsetof(struct ob_wire_hdr, flags), &reply, sizeof(reply));
    }
    open_pair(&p, 64);
    for (unsigned i = 0; i < 2; i++) {
        p.ch.ahead = i ? OB_AHEAD_CLIENT : OB_AHEAD_BULK;
        send_raw(p.raw, buf, at[2], NULL, 0);
        send_raw(p.raw, buf + at[2], at[3] - at[2], &fd, 1);
        expect(&p, 1, 0, 0);
        expect(&p, 2, 0, 0);
        expect(&p, 3, 32, 1);
    }
    close_pair(&p);
    for (unsigned i = 0; i < 3; i++) {
        at[i + 1] = at[i] + make_msg(buf + at[i], (uint16_t)(i + 1), 32);
        memcpy(buf + at[i] + offsetof(struct ob_wire_hdr, cmd), &commands[i], sizeof(commands[i]));
    }
    open_pair(&p, 64);
    p.ch.ahead = OB_AHEAD_BULK;
    send_raw(p.raw, buf, at[1], NULL, 0);
    send_raw(p.raw, buf + at[1], at[3] - at[1], &fd, 1); /* merged */
    expect(&p, 1, 32, 0);
    p.ch.ahead = OB_AHEAD_SERVER; /* as after a request that was answered */
    expect(&p, 2, 32, 1);
    expect(&p, 3, 32, 0);
    close_pair(&p);
    close(fd);
}

TEST(late_fds, "fds-on-a-later-byte")
{
    const int fd = open_memory();
    uint8_t buf[64];
    size_t len = make_msg(buf, 5, 24);
    struct pair p;

    open_pair(&p, 64);
    for (size_t at = 1; at < len; at++) {
        send_raw(p.raw, buf, at, NULL, 0);
        expect_nothing(&p);
        send_raw(p.raw, buf + at, len - at, &fd, 1);
        expect(&p, 5, 24, 1);
    }
    close_pair(&p);
    close(fd);
}

TEST(fd_ownership, "claimed-fds-stay-others-are-closed")
{
    const int fds[3] = { open_memory(), open_memory(), open_memory() };
    uint8_t buf[64];
    size_t len = make_msg(buf, 5, 8);
    struct ob_msg *msg;
    struct pair p;

    open_pair(&p, 64);
    send_raw(p.raw, buf, len, fds, 3);
    int before = test_count_fds();
    CHECK_INT(ob_channel_recv(&p.ch, &msg), 1);
    CHECK_INT(test_count_fds(), before + 3);
    for (int i = 0; i < 3; i++)
        CHECK_INT(fcntl(msg->fds[i], F_GETFD), FD_CLOEXEC);
    int claimed = ob_msg_claim_fd(msg, 1);
    CHECK(claimed >= 0);
    CHECK_INT(ob_msg_claim_fd(msg, 1), -1);
    CHECK_INT(ob_msg_claim_fd(msg, 3), -1);
    ob_msg_free(msg);
    ob_msg_free(NULL);
    CHECK_INT(test_settle_fds(before + 1), before + 1);
    close(claimed);
    /* Those of a message that never becomes whole. */
    send_raw(p.raw, buf, 20, fds, 3);
    expect_nothing(&p);
    close_pair(&p);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
}

TEST(too_many_fds, "fds-are-bounded")
{
    int fds[OB_MSG_FDS_MAX], fd = open_memory();
    uint8_t buf[64];
    size_t len = make_msg(buf, 5, 8);
    struct ob_msg *msg;
    struct pair p;

    open_pair(&p, 64);
    for (int i = 0; i < OB_MSG_FDS_MAX; i++)
        fds[i] = fd;
    send_raw(p.raw, buf, len, fds, OB_MSG_FDS_MAX);
    expect(&p, 5, 8, OB_MSG_FDS_MAX);
    send_raw(p.raw, buf, 4, fds, OB_MSG_FDS_MAX);
    send_raw(p.raw, buf + 4, 16, fds, 2);
    send_raw(p.raw, buf + 20, len - 20, fds, OB_MSG_FDS_MAX);
    int before = test_count_fds();
    CHECK_INT(ob_channel_recv(&p.ch, &msg), 1);
    check_msg(msg, 5, 8, OB_MSG_FDS_MAX);
    CHECK(msg->fds_lost);
    CHECK_INT(test_count_fds(), before + OB_MSG_FDS_MAX);
    ob_msg_free(msg);
    close_pair(&p);
    close(fd);
}

TEST(fd_limit, "fds-beyond-the-process-limit-are-lost-and-said")
{
    struct rlimit old, low;
    uint8_t buf[64];
    size_t len = make_msg(buf, 5, 8);
    struct ob_msg *msg;
    struct pair p;
    int fds[5];

    open_pair(&p, 64);
    for (int i = 0; i < 5; i++)
        fds[i] = p.raw;
    send_raw(p.raw, buf, len, fds, 5);
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &old), 0);
    low = old;
    low.rlim_cur = (rlim_t)p.raw + 3; /* room for two */
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &low), 0);
    CHECK_INT(ob_channel_recv(&p.ch, &msg), 1);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &old), 0);
    check_msg(msg, 5, 8, 2);
    CHECK(msg->fds_lost);
    ob_msg_free(msg);
    close_pair(&p);
}
