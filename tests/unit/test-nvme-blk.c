/* SPDX-License-Identifier: BSD-3-Clause */
/* What does the I/O of an image, without a controller around it. */
#include "devices/nvme/blk.h"
#include "nvme_host.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DISK 65536u

static struct blk *open_image(const char *image, bool direct, enum blk_aio aio)
{
    struct blk *blk;
    char why[5000];

    if (blk_open(image, false, direct, aio, &blk, why, sizeof(why)) < 0)
        test_fail(__FILE__, __LINE__, "%s", why);
    return blk;
}

static struct blk *open_blk(enum blk_aio aio)
{
    return open_image(host_image("disk.img", DISK, 0), false, aio);
}

/* ---- The ring ------------------------------------------------------------------------------ */

/* The fd of the one ring of this process. */
static int find_ring(void)
{
    char path[32], link[64];

    for (int fd = 3; fd < 64; fd++) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        ssize_t len = readlink(path, link, sizeof(link) - 1);
        link[len < 0 ? 0 : len] = '\0';
        if (strcmp(link, "anon_inode:[io_uring]") == 0)
            return fd;
    }
    test_fail(__FILE__, __LINE__, "there is no ring");
}

/* Somebody else's view of it: a ring that is made alike tells where everything is in it. */
static void view_ring(int fd, struct io_uring *view)
{
    struct io_uring_params params = { .flags = IORING_SETUP_CQSIZE, .cq_entries = 512 };

    CHECK_INT(io_uring_queue_init_params(256, view, &params), 0);
    io_uring_queue_exit(view);
    CHECK_INT(io_uring_queue_mmap(dup(fd), &params, view), 0);
}

static int ask_ring(struct io_uring *view, const struct io_uring_sqe *what)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(view);
    struct io_uring_cqe *cqe;
    int res;

    CHECK(sqe);
    *sqe = *what;
    CHECK_INT(io_uring_submit_and_wait(view, 1), 1);
    CHECK_INT(io_uring_peek_cqe(view, &cqe), 0);
    res = cqe->res;
    io_uring_cqe_seen(view, cqe);
    return res;
}

TEST(ring, "the-ring-does-block-io-and-nothing-else")
{
    struct blk *blk = open_blk(BLK_AIO_URING);
    char data[16];
    struct iovec iov = { data, sizeof(data) };
    struct io_uring_sqe sqe;
    struct io_uring view;

    view_ring(find_ring(), &view);
    io_uring_prep_readv(&sqe, blk->fd, &iov, 1, 0);
    CHECK_INT(ask_ring(&view, &sqe), sizeof(data));
    io_uring_prep_openat(&sqe, AT_FDCWD, "/dev/null", O_RDONLY, 0);
    CHECK_INT(ask_ring(&view, &sqe), -EACCES);
    io_uring_prep_send(&sqe, blk->fd, data, sizeof(data), 0);
    CHECK_INT(ask_ring(&view, &sqe), -EACCES);
    CHECK_INT(io_uring_register_eventfd(&view, blk->event_fd), -EACCES);
    io_uring_queue_exit(&view);
    blk_close(blk);
}

#define READS 16u

static unsigned ndone;

static void count(struct blk_req *req, int rc)
{
    (void)req;
    CHECK_INT(rc, 0);
    ndone++;
}

/* The kernel copies what is in its cache in the call that asks for it. */
TEST(turns, "a-ring-copies-a-mebibyte-and-then-others-have-their-turn")
{
    static uint8_t data[BLK_POLL_BYTES];
    struct blk *blk = open_image(host_image("disk.img", sizeof(data), 1), false, BLK_AIO_URING);
    struct blk_req reqs[READS];
    struct iovec iov[READS];
    unsigned polls = 0;

    CHECK_INT(pread(blk->fd, data, sizeof(data), 0), sizeof(data));
    for (unsigned i = 0; i < READS; i++) {
        iov[i] = (struct iovec){ data, sizeof(data) };
        reqs[i] = (struct blk_req){
            .op = BLK_READ, .len = sizeof(data), .iov = &iov[i], .niov = 1, .done = count
        };
        blk->ops->submit(blk, &reqs[i]);
    }
    ndone = 0;
    for (int64_t end = test_now_ms() + 10000; ndone < READS && test_now_ms() < end; polls++) {
        blk->ops->poll(blk);
    }
    CHECK_INT(ndone, READS);
    CHECK(polls >= READS);
    blk_close(blk);
}

/* ---- Threads ------------------------------------------------------------------------------- */

static int result = 1;

static void done(struct blk_req *req, int rc)
{
    (void)req;
    result = rc;
}

static void write_some(struct blk *blk, const char *text)
{
    struct iovec iov = { (void *)text, strlen(text) };
    struct blk_req req = { .op = BLK_WRITE, .len = iov.iov_len, .iov = &iov, .niov = 1 };
    char back[16] = "";

    req.done = done;
    result = 1;
    blk->ops->submit(blk, &req);
    for (int64_t end = test_now_ms() + 10000; result == 1 && test_now_ms() < end;)
        blk->ops->poll(blk);
    CHECK_INT(result, 0);
    CHECK_INT(pread(blk->fd, back, strlen(text), 0), strlen(text));
    CHECK_STR(back, text);
}

/* A server that fails before it has started them still writes back what it has. */
TEST(threads, "threads-start-when-told-and-io-works-before")
{
    struct blk *blk = open_blk(BLK_AIO_THREADS);
    int64_t end_ms = test_now_ms() + 10000;

    CHECK_INT(test_process_status(getpid(), "Threads"), 1);
    write_some(blk, "before");
    CHECK_INT(test_process_status(getpid(), "Threads"), 1);
    CHECK_INT(blk->ops->start(blk), 0);
    CHECK(test_process_status(getpid(), "Threads") > 1);
    write_some(blk, "after!");
    blk_close(blk);
    while (test_process_status(getpid(), "Threads") > 1) /* joined, but the kernel takes a moment */
        CHECK(test_now_ms() < end_ms);
}

/* ---- The lock ------------------------------------------------------------------------------ */

/* A process that has the lock, until it is killed; and one of its two files of the image. */
static pid_t fork_owner(const char *image, bool direct, int *file)
{
    int fds[2], theirs, pidfd;
    pid_t pid;

    CHECK_INT(pipe2(fds, O_CLOEXEC), 0);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        char why[5000];
        struct blk *blk = open_image(image, true, BLK_AIO_URING);
        int rc = blk_lock(blk, why, sizeof(why));

        theirs = direct ? blk->direct_fd : blk->fd;
        if (rc == 0 && write(fds[1], &theirs, sizeof(theirs)) == sizeof(theirs))
            for (;;)
                pause();
        _exit(1);
    }
    close(fds[1]);
    CHECK_INT(read(fds[0], &theirs, sizeof(theirs)), sizeof(theirs));
    close(fds[0]);
    pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    *file = (int)syscall(SYS_pidfd_getfd, pidfd, theirs, 0);
    CHECK(*file >= 0);
    close(pidfd);
    return pid;
}

/* Two servers are refused, and a QEMU that reads would be. */
static void expect_locked(const char *image, int rc)
{
    for (unsigned i = 0; i < 3; i++) {
        struct blk *blk;
        char why[5000];

        CHECK_INT(blk_open(image, i == 2, i == 1, BLK_AIO_URING, &blk, why, sizeof(why)), 0);
        CHECK_INT(blk_lock(blk, why, sizeof(why)), rc);
        blk_close(blk);
    }
}

/* A request that the kernel has not done yet holds the file that it is for, and nothing else. */
TEST(lock, "an-image-stays-locked-while-the-kernel-has-requests-of-a-killed-server")
{
    const char *image = host_image("disk.img", DISK, 0);
    int fd = open(image, O_RDWR | O_DIRECT | O_CLOEXEC);

    if (fd < 0)
        test_skip("this file system has no direct I/O");
    close(fd);
    for (unsigned i = 0; i < 2; i++) {
        pid_t pid = fork_owner(image, i == 0, &fd);

        CHECK_INT(kill(pid, SIGKILL), 0);
        CHECK_INT(waitpid(pid, NULL, 0), pid);
        expect_locked(image, -EBUSY);
        close(fd);
        expect_locked(image, 0);
    }
}
