/* SPDX-License-Identifier: BSD-3-Clause */
/* A client that reconnects, where its server, or its own process, makes that hard. */
#include "harness.h"
#include "restarted.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static bool readable(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };

    return poll(&pfd, 1, 0) == 1;
}

/* The servers here are such processes: they have the client's sockets of the time of their fork. */
TEST(forked, "a-process-that-was-forked-meanwhile-does-not-keep-the-loop-busy")
{
    int64_t until_ms;
    struct rig rig;

    rig_begin(&rig, 20000);
    rig_restart(&rig);
    rig_check_back(&rig, 1);
    CHECK_INT(rig_put(&rig, REG_DATA, 1), 0);
    until_ms = test_now_ms() + 20000;
    while (readable(ob_client_fd(rig.client)) && test_now_ms() < until_ms)
        CHECK_INT(ob_client_step(rig.client), 0);
    CHECK(!readable(ob_client_fd(rig.client)));
    rig_end(&rig);
}

/* A reset that the server does not answer in time, as it is stopped. */
static void reset_stopped(struct rig *rig)
{
    kill(rig->pid, SIGSTOP);
    ob_client_limit(rig->client, 200);
    CHECK_INT(ob_client_reset(rig->client), -ETIMEDOUT);
    ob_client_limit(rig->client, 0);
}

TEST(reset_timeout, "a-reset-that-was-not-answered-is-repeated-after-the-return")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    reset_stopped(&rig);
    ob_client_disconnect(rig.client, "it does not answer");
    rig_restart(&rig);
    CHECK_INT(ob_client_await(rig.client, 10000), 0);
    CHECK_INT(rig.shared->resets, 1);
    rig_end(&rig);
}

TEST(reset_late, "a-reset-that-was-answered-late-is-not-repeated")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    reset_stopped(&rig);
    kill(rig.pid, SIGCONT);
    rig_get(&rig, REG_DATA);
    CHECK_INT(rig.shared->resets, 1);
    rig_restart(&rig);
    rig_check_back(&rig, 1);
    CHECK_INT(rig.shared->resets, 1);
    rig_end(&rig);
}

/* The client is in the middle of setting the device up, at a server that does not go on. */
static void begin_hanging(struct rig *rig, int reconnect_ms)
{
    rig_begin(rig, reconnect_ms);
    rig_kill(rig);
    rig_check_interrupted(rig);
    CHECK_INT(ob_client_reset(rig->client), 0);
    rig->shared->hang_in_reset = true;
    rig_start(rig);
    rig_wait_for((atomic_int *)&rig->shared->resets, 1);
}

TEST(hangs, "what-is-set-up-does-not-wait-for-a-server-that-hangs-while-it-is-set-up")
{
    int fd = rig_memory(0x55);
    int64_t began_ms;
    struct rig rig;

    begin_hanging(&rig, 20000);
    began_ms = test_now_ms();
    CHECK_INT(ob_client_dma_map(rig.client, 0x100000, 4096, OB_DMA_READ, fd, 4096), 0);
    CHECK(test_now_ms() - began_ms < 2500);
    rig.shared->hang_in_reset = false;
    rig_kill(&rig);
    rig_start(&rig);
    rig_check_back(&rig, 1);
    rig_check_fetch(&rig, 0x100000, 0x55);
    rig_end(&rig);
    close(fd);
}

TEST(late, "a-server-that-hangs-while-it-is-set-up-is-given-up-when-the-time-is-over")
{
    int64_t began_ms = test_now_ms();
    struct rig rig;

    begin_hanging(&rig, 1000);
    CHECK_INT(ob_client_await(rig.client, 20000), -ENOTCONN);
    CHECK(test_now_ms() - began_ms < 4000);
    CHECK(strstr(ob_client_error(rig.client), "it did not come back within 1000 ms: it does not "
                                              "take a reset again: the server did not answer"));
    rig_wait_for(&rig.lost, 1);
    rig_end(&rig);
}

/* Writes another value again and again until the server is back; returns the last. */
static uint8_t write_until_back(struct rig *rig)
{
    uint8_t line = 0;

    do {
        line++;
        CHECK_INT(
            ob_client_region_post(rig->client, OB_PCI_REGION_CONFIG, PCI_INTERRUPT_LINE, &line, 1),
            0);
    } while (ob_client_state(rig->client) == OB_CLIENT_INTERRUPTED);
    return line;
}

TEST_TIMEOUT(config, "what-was-written-to-config-space-last-before-the-return-is-there-after-it",
             120)
{
    struct ob_region_info info;
    struct rig rig;

    rig_begin(&rig, 60000);
    for (int i = 1; i <= 16; i++) {
        uint8_t written, found;

        rig_restart(&rig);
        written = write_until_back(&rig);
        CHECK_INT(ob_client_region_info(rig.client, 0, &info), 0);
        ob_region_info_fini(&info);
        CHECK_INT(
            ob_client_region_read(rig.client, OB_PCI_REGION_CONFIG, PCI_INTERRUPT_LINE, &found, 1),
            0);
        CHECK_INT(found, written);
        rig_check_back(&rig, i);
    }
    rig_end(&rig);
}

TEST(relative, "a-relative-path-is-that-of-the-directory-at-the-time-of-connecting")
{
    struct ob_client_options opt;
    struct rig rig;

    CHECK_INT(chdir(test_tmpdir()), 0);
    opt = rig_options(&rig, 20000);
    rig_begin_with(&rig, "s", &opt);
    CHECK_INT(chdir("/"), 0);
    snprintf(rig.path, sizeof(rig.path), "%s/s", test_tmpdir());
    rig_restart(&rig);
    rig_check_back(&rig, 1);
    rig_end(&rig);
}

TEST(no_memory, "a-return-for-which-memory-is-short-is-tried-again")
{
    int fd = rig_memory(0x66);
    struct rig rig;

    rig_begin(&rig, 20000);
    CHECK_INT(ob_client_dma_map(rig.client, 0x100000, 4096, OB_DMA_READ, fd, 4096), 0);
    rig_failing_maps = 3;
    rig_restart(&rig);
    rig_check_back(&rig, 1);
    CHECK_INT(rig_failing_maps, 0);
    rig_check_fetch(&rig, 0x100000, 0x66);
    rig_end(&rig);
    close(fd);
}

/* ---- A server that refuses ------------------------------------------------------------------ */

/* So many more attempts have got as far as to be its client: those before them failed. */
static void await_attempts(const struct rig *rig, unsigned more)
{
    int64_t until_ms = test_now_ms() + 10000;

    more += rig->shared->clients;
    while (rig->shared->clients < more && test_now_ms() < until_ms)
        sched_yield();
    CHECK(rig->shared->clients >= more);
}

TEST(busy, "what-a-server-refuses-for-now-while-it-is-set-up-is-tried-again")
{
    static const int errors[] = { EAGAIN, EBUSY, EINTR, EMFILE, ENFILE, ENOMEM, ENOBUFS, ENOSPC };
    struct rig rig;

    rig_begin(&rig, 20000);
    for (int i = 0; i < 8; i++) {
        rig_kill(&rig);
        rig_check_interrupted(&rig);
        CHECK_INT(ob_client_reset(rig.client), 0);
        rig.shared->reset_error = errors[i];
        rig.shared->failing_resets = 2;
        rig_start(&rig);
        rig_check_back(&rig, i + 1);
        CHECK_INT(rig.shared->failing_resets, 0);
    }
    rig_end(&rig);
}

TEST(final, "what-a-server-refuses-for-good-while-it-is-set-up-ends-the-looking-at-once")
{
    static const int errors[] = { EIO, EINVAL, EPERM, EOPNOTSUPP };

    for (int i = 0; i < 4; i++) {
        struct rig rig;

        rig_begin(&rig, 20000);
        rig_kill(&rig);
        rig_check_interrupted(&rig);
        CHECK_INT(ob_client_reset(rig.client), 0);
        rig.shared->reset_error = errors[i];
        rig.shared->failing_resets = 1;
        rig_start(&rig);
        CHECK_INT(ob_client_await(rig.client, 10000), -ENOTCONN);
        rig_wait_for(&rig.lost, 1);
        CHECK(strstr(rig.why, "closed the connection; it does not take a reset again: the server "
                              "answered: "));
        rig_end(&rig);
        unlink(rig.path);
    }
}

/* At first none is left for a second socket, or for the memory. */
static void run_short_of_fds(bool single_socket, int fds_left)
{
    struct ob_client_options opt;
    int fd = rig_memory(0x33);
    struct rlimit usual;
    char path[128];
    struct rig rig;

    CHECK_INT(getrlimit(RLIMIT_NOFILE, &usual), 0);
    opt = rig_options(&rig, 20000);
    opt.single_socket = single_socket;
    snprintf(path, sizeof(path), "%s/s", test_tmpdir());
    rig_begin_with(&rig, path, &opt);
    CHECK_INT(ob_client_dma_map(rig.client, 0x100000, 4096, OB_DMA_READ, fd, 4096), 0);
    rig.shared->fds_left = fds_left;
    rig_restart(&rig);
    await_attempts(&rig, 2);
    CHECK_INT(rig.resumed, 0);
    CHECK_INT(prlimit(rig.pid, RLIMIT_NOFILE, &usual, NULL), 0);
    rig_check_back(&rig, 1);
    rig_check_fetch(&rig, 0x100000, 0x33);
    rig_end(&rig);
    close(fd);
}

TEST(few_fds, "a-server-that-is-short-of-descriptors-is-tried-again-until-it-has-them")
{
    run_short_of_fds(false, 2);
    run_short_of_fds(true, 1);
}

TEST(no_memory_there, "a-server-without-memory-to-say-what-it-is-is-tried-again")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    rig.shared->failing_reallocs = 2;
    rig_restart(&rig);
    rig_check_back(&rig, 1);
    CHECK_INT(rig.shared->failing_reallocs, 0);
    rig_end(&rig);
}

TEST(no_memory_first, "a-server-without-memory-to-say-what-it-is-is-not-taken-for-another-device")
{
    struct rig rig;

    rig_begin_server(&rig);
    rig.shared->failing_reallocs = 1;
    CHECK_INT(ob_peer_errno(rig_connect_client(&rig, 20000)), ENOMEM);
    CHECK_STR(rig.connect_error, "the server does not say what device it is: the server answered: "
                                 "Cannot allocate memory");
    CHECK_INT(rig_connect_client(&rig, 20000), 0);
    rig_restart(&rig);
    rig_check_back(&rig, 1);
    rig_end(&rig);
}

/* As when a connection is given up while the device does I/O. */
TEST(held, "memory-that-the-device-uses-from-before-may-be-more-than-it-takes-until-it-is-let-go")
{
    int fd = rig_memory(0x44);
    struct rig rig;

    rig_begin_server(&rig);
    rig_kill(&rig);
    rig.shared->dma_bytes = 4096;
    rig_start(&rig);
    CHECK_INT(rig_connect_client(&rig, 20000), 0);
    CHECK_INT(ob_client_dma_map(rig.client, 0x100000, 4096, OB_DMA_READ, fd, 4096), 0);
    CHECK_INT(rig_put(&rig, REG_HOLD, 0x100000), 0);
    rig.shared->let_go_at = rig.shared->clients + 3;
    ob_client_disconnect(rig.client, "it takes too long");
    rig_check_back(&rig, 1);
    CHECK(rig.shared->clients >= rig.shared->let_go_at);
    rig_check_fetch(&rig, 0x100000, 0x44);
    rig_end(&rig);
    close(fd);
}

/* ---- Two threads ---------------------------------------------------------------------------- */

TEST(twin_race, "a-client-is-shut-down-while-its-next-connection-gets-a-second-socket")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    rig_kill(&rig);
    rig_check_interrupted(&rig);
    rig_hold_at_socket(1);
    rig_start(&rig);
    rig_await_held();
    ob_client_shutdown(rig.client, "enough");
    rig_release();
    CHECK_STR(ob_client_error(rig.client), "enough");
    rig_end(&rig);
}

/* The device is back, and the client's thread has not yet said so. */
TEST(quiet_resumed, "after-a-client-was-shut-down-it-does-not-say-that-its-server-is-back")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    rig_kill(&rig);
    rig_check_interrupted(&rig);
    rig_hold_at_free();
    rig_start(&rig);
    rig_await_held();
    CHECK_INT(ob_client_state(rig.client), OB_CLIENT_CONNECTED);
    ob_client_shutdown(rig.client, "enough");
    rig_release();
    rig_end(&rig);
    CHECK_INT(rig.resumed, 0);
    CHECK_INT(rig.lost, 0);
}

static atomic_bool let_resume;

/* Takes its time. */
static void resume_slowly(void *opaque)
{
    int64_t until_ms = test_now_ms() + 10000;

    ((struct rig *)opaque)->resumed++;
    while (!let_resume && test_now_ms() < until_ms)
        sched_yield();
}

/* The connection died again while the client's thread was saying that the server is back. */
TEST(quiet_interrupted, "after-a-client-was-shut-down-it-does-not-say-that-its-server-is-gone")
{
    struct ob_client_options opt;
    char path[128];
    struct rig rig;

    opt = rig_options(&rig, 20000);
    opt.resumed = resume_slowly;
    snprintf(path, sizeof(path), "%s/s", test_tmpdir());
    rig_begin_with(&rig, path, &opt);
    rig_restart(&rig);
    rig_wait_for(&rig.resumed, 1);
    rig_kill(&rig);
    rig.pid = -1;
    rig_check_interrupted(&rig);
    ob_client_shutdown(rig.client, "enough");
    let_resume = true;
    rig_end(&rig);
    CHECK_INT(rig.interrupted, 1);
    CHECK_INT(rig.lost, 0);
}
