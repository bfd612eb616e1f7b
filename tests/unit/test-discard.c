/* SPDX-License-Identifier: BSD-3-Clause */
/* Descriptors of the peer are closed without waiting for it. */
#include "channel/channel.h"
#include "harness.h"
#include "linger.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int mine, yours; /* owners */

static void make_pair(int pair[2])
{
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
}

static int memory(off_t size)
{
    int fd = memfd_create("test", MFD_CLOEXEC);

    CHECK(fd >= 0);
    CHECK_INT(posix_fallocate(fd, 0, size), 0);
    return fd;
}

TEST(known, "what-is-known-to-go-at-once-is-closed-at-once-and-takes-no-thread")
{
    int fds = test_count_fds(), pair[2];

    ob_fd_discard(eventfd(0, EFD_CLOEXEC), &mine);
    ob_fd_discard(memory(4096), &mine);
    make_pair(pair);
    ob_socket_discard(pair[0], &mine);
    close(pair[1]);
    CHECK_INT(test_count_fds(), fds);
    CHECK_INT(linger_threads(), 1);
}

TEST(lingering, "what-waits-is-closed-by-a-thread-of-its-own")
{
    int fds = test_count_fds(), fd = linger_open();

    AT_ONCE(ob_fd_discard(fd, &mine));
    CHECK(linger_threads() > 1);
    CHECK_INT(test_settle_fds(fds + 1), fds + 1); /* the other end */
    linger_release();
}

TEST(large, "a-large-memory-file-is-freed-by-the-thread")
{
    ob_fd_discard(memory(64 << 20), &mine);
    CHECK(linger_threads() > 1);
}

TEST(lookalikes, "a-file-by-the-name-of-an-eventfd-is-none")
{
    char path[200];
    int fd;

    snprintf(path, sizeof(path), "%s/anon_inode:[eventfd]", test_tmpdir());
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && !ob_fd_is_eventfd(fd));
    close(fd);
    CHECK_INT(chdir(test_tmpdir()), 0);
    fd = open("anon_inode:[eventfd]", O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0 && !ob_fd_is_eventfd(fd));
    close(fd);
    CHECK_INT(chdir("/"), 0);
    fd = memfd_create("anon_inode:[eventfd]", MFD_CLOEXEC);
    CHECK(!ob_fd_is_eventfd(fd) && ob_fd_is_memory(fd));
    close(fd);
}

/* ---- What is in a socket that is closed --------------------------------------------------- */

TEST(nested, "what-is-unread-in-a-socket-does-not-keep-who-closes-it")
{
    int pair[2];

    make_pair(pair);
    linger_send(pair[1], "x", 1, 1, 0);
    AT_ONCE(ob_socket_discard(pair[0], &mine));
    CHECK(send(pair[1], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    close(pair[1]);
    make_pair(pair);
    linger_send(pair[1], "x", 1, 1, 0);
    close(pair[1]);
    AT_ONCE(ob_fd_discard(pair[0], &mine));
    linger_release();
}

TEST(channel_end, "the-end-of-a-channel-does-not-wait-for-what-it-has-not-read")
{
    struct ob_channel ch;
    int pair[2];

    make_pair(pair);
    CHECK_INT(ob_channel_init(&ch, pair[0], 4096), 0);
    linger_send(pair[1], "x", 1, 1, 0);
    AT_ONCE(ob_channel_fini(&ch));
    close(pair[1]);
    linger_release();
}

static void receive_both(bool urgent)
{
    const struct ob_wire_hdr hdr = { .msg_size = sizeof(hdr) };
    struct ob_channel ch;
    struct ob_msg *msg;
    int pair[2];

    make_pair(pair);
    CHECK_INT(ob_channel_init(&ch, pair[0], 4096), 0);
    linger_send(pair[1], &hdr, sizeof(hdr), 1, urgent ? MSG_OOB : 0);
    AT_ONCE({
        CHECK_INT(ob_channel_recv(&ch, &msg), 1);
        CHECK_INT(msg->nfds, 1);
        ob_msg_free(msg);
    });
    AT_ONCE(ob_channel_fini(&ch));
    close(pair[1]);
    linger_release();
}

TEST(message, "what-came-with-a-message-and-is-not-claimed-does-not-keep-anybody")
{
    receive_both(false);
}

TEST(urgent, "nor-what-came-with-an-urgent-byte")
{
    receive_both(true);
}

/* ---- Limits ------------------------------------------------------------------------------- */

/* It soon is. */
static bool is_full(const void *owner)
{
    int64_t end_ms = test_now_ms() + 10000;

    while (!ob_discard_is_full(owner) && test_now_ms() < end_ms)
        poll(NULL, 0, 1);
    return ob_discard_is_full(owner);
}

TEST(bounded, "who-leaves-too-much-to-be-closed-is-read-no-more-and-others-are")
{
    struct ob_channel ch;
    struct ob_msg *msg;
    int pair[2], fds = test_count_fds();

    make_pair(pair);
    CHECK_INT(ob_channel_init(&ch, pair[0], 4096), 0);
    ch.owner = &mine;
    for (unsigned i = 0; i < OB_DISCARD_MAX + 2; i++) { /* one of them is being closed */
        int fd = linger_open();

        CHECK_INT(ob_channel_recv(&ch, &msg), 0);
        AT_ONCE(ob_fd_discard(fd, &mine));
    }
    CHECK(is_full(&mine));
    CHECK(!ob_discard_is_full(&yours));
    CHECK_INT(ob_channel_recv(&ch, &msg), -ETOOMANYREFS);
    ch.owner = &yours;
    CHECK_INT(ob_channel_recv(&ch, &msg), 0);
    linger_release();
    ob_channel_fini(&ch);
    close(pair[1]);
    CHECK_INT(test_settle_fds(fds), fds);
    CHECK(!ob_discard_is_full(&mine));
}

TEST(busy, "many-that-are-closed-in-their-turn-are-not-too-many")
{
    int fds = test_count_fds();

    for (unsigned i = 0; i < 4 * OB_DISCARD_MAX; i++)
        ob_fd_discard(open("/dev/null", O_RDWR | O_CLOEXEC), &mine);
    CHECK(!ob_discard_is_full(&mine));
    CHECK_INT(test_settle_fds(fds), fds);
}

TEST(no_thread, "without-a-thread-they-stay-open-until-there-is-one")
{
    int fds = test_count_fds();

    linger_no_thread = true;
    AT_ONCE(ob_fd_discard(open("/dev/null", O_RDWR | O_CLOEXEC), &mine));
    CHECK(ob_discard_init() == -EAGAIN);
    CHECK_INT(test_count_fds(), fds + 1);
    linger_no_thread = false;
    ob_fd_discard(open("/dev/null", O_RDWR | O_CLOEXEC), &mine);
    CHECK_INT(test_settle_fds(fds), fds);
}

#if !TEST_TSAN /* it knows no threads of a child of a process that had some */
TEST(forked, "a-child-has-a-thread-of-its-own")
{
    int fds, status;
    pid_t pid;

    CHECK_INT(ob_discard_init(), 0);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        fds = test_count_fds();
        ob_fd_discard(open("/dev/null", O_RDWR | O_CLOEXEC), &mine);
        _exit(test_settle_fds(fds) == fds ? 0 : 1);
    }
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
}
#endif
