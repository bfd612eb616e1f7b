/* SPDX-License-Identifier: BSD-3-Clause */
/* A client whose server is killed and started again: what it goes on with, and what it does not. */
#include "harness.h"
#include "restarted.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- Coming back --------------------------------------------------------------------------- */

TEST(everything, "memory-interrupts-and-config-are-set-up-again")
{
    int efds[VECTORS], fd = rig_memory(0x1122334455667788), gone = rig_memory(1);
    struct rig rig;

    rig_begin(&rig, 20000);
    for (unsigned i = 0; i < VECTORS; i++)
        efds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK_INT(ob_client_dma_map(rig.client, 0x100000, 4096, OB_DMA_READ, fd, 4096), 0);
    CHECK_INT(ob_client_dma_map(rig.client, 0x200000, 4096, OB_DMA_READ, gone, 0), 0);
    CHECK_INT(ob_client_dma_unmap(rig.client, 0x200000, 4096), 0);
    CHECK_INT(ob_client_irq_eventfds(rig.client, OB_PCI_IRQ_MSIX, 0, VECTORS, efds), 0);
    CHECK_INT(ob_client_irq_mask(rig.client, OB_PCI_IRQ_MSIX, 2, true), 0);
    rig_config_put16(&rig, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    rig_config_put16(&rig, PCI_BASE_ADDRESS_0 + 2, 0xfebc);
    CHECK_INT(rig_put(&rig, REG_DATA, 7), 0);
    for (int i = 1; i <= 3; i++) {
        rig_restart(&rig);
        rig_check_back(&rig, i);
        CHECK_INT(rig_get(&rig, REG_DATA), 7);
        rig_check_fetch(&rig, 0x100000, 0x1122334455667788);
        CHECK_INT(rig_put(&rig, REG_FETCH, 0x200000), 0);
        CHECK_INT(rig.shared->fetch_rc, -EFAULT);
        CHECK_INT(rig_put(&rig, REG_FIRE, 2), 0);
        CHECK_INT(rig_put(&rig, REG_FIRE, 1), 0);
        CHECK(rig_fired(efds[1]));
        CHECK(rig_silent(efds[2]));
        CHECK_INT(rig_config16(&rig, PCI_COMMAND), PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
        CHECK_INT(rig_config16(&rig, PCI_BASE_ADDRESS_0 + 2), 0xfebc);
    }
    rig_end(&rig);
    for (unsigned i = 0; i < VECTORS; i++)
        close(efds[i]);
    close(fd);
    close(gone);
}

TEST(descriptors, "an-answer-with-descriptors-can-be-the-first-when-the-server-is-back")
{
    struct ob_region_io_fds list;
    struct rig rig;

    rig_begin(&rig, 20000);
    rig_restart(&rig);
    CHECK_INT(ob_client_await(rig.client, 20000), 0);
    CHECK_INT(ob_client_region_io_fds(rig.client, 0, &list), 0);
    CHECK_INT(list.count, 1);
    ob_region_io_fds_fini(&list);
    rig_check_back(&rig, 1);
    rig_end(&rig);
}

TEST(meanwhile, "what-is-set-up-while-the-server-is-away-is-there-when-it-is-back")
{
    int fd = rig_memory(0xabcdef), other = rig_memory(0x42),
        efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int old = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct rig rig;

    rig_begin(&rig, 20000);
    CHECK_INT(ob_client_dma_map(rig.client, 0x300000, 4096, OB_DMA_READ, fd, 4096), 0);
    CHECK_INT(ob_client_irq_eventfds(rig.client, OB_PCI_IRQ_MSIX, 0, 1, &old), 0);
    rig_kill(&rig);
    rig_check_interrupted(&rig);
    CHECK_INT(ob_client_dma_unmap(rig.client, 0x300000, 4096), 0);
    CHECK_INT(ob_client_dma_map(rig.client, 0x300000, 4096, OB_DMA_READ, other, 4096), 0);
    CHECK_INT(ob_client_irq_disable(rig.client, OB_PCI_IRQ_MSIX), 0);
    CHECK_INT(ob_client_irq_eventfds(rig.client, OB_PCI_IRQ_MSIX, 3, 1, &efd), 0);
    CHECK_INT(rig_post(&rig, REG_DATA, 99), 0);
    rig_start(&rig);
    rig_check_back(&rig, 1);
    CHECK_INT(rig_get(&rig, REG_DATA), 99);
    rig_check_fetch(&rig, 0x300000, 0x42);
    CHECK_INT(rig_put(&rig, REG_FIRE, 0), 0);
    CHECK_INT(rig_put(&rig, REG_FIRE, 3), 0);
    CHECK(rig_fired(efd));
    CHECK(rig_silent(old));
    rig_end(&rig);
    close(fd);
    close(other);
    close(efd);
    close(old);
}

TEST(posted, "posted-writes-that-nobody-read-are-repeated-the-last-of-each-register-in-order")
{
    struct rig rig;
    unsigned n;

    rig_begin(&rig, 20000);
    CHECK_INT(rig_post(&rig, REG_DATA, 1), 0);
    CHECK_INT(rig_get(&rig, REG_DATA), 1); /* the server has that one, and it is not repeated */
    n = rig.shared->nlog;
    CHECK_INT(n, 1);
    kill(rig.pid, SIGSTOP);
    for (uint32_t i = 0; i < 10; i++)
        CHECK_INT(rig_post(&rig, REG_DATA + 4, i), 0);
    CHECK_INT(rig_post(&rig, REG_DATA + 8, 20), 0);
    CHECK_INT(rig_post(&rig, REG_DATA + 12, 30), 0);
    CHECK_INT(rig_post(&rig, REG_DATA + 8, 21), 0);
    rig_restart(&rig);
    rig_check_back(&rig, 1);
    CHECK_INT(rig_get(&rig, REG_DATA + 4), 9);
    CHECK_INT(rig.shared->nlog, n + 3);
    CHECK_INT(rig.shared->log[n].offset, REG_DATA + 4);
    CHECK_INT(rig.shared->log[n + 1].offset, REG_DATA + 12);
    CHECK_INT(rig.shared->log[n + 2].offset, REG_DATA + 8);
    CHECK_INT(rig.shared->log[n + 2].value, 21);
    rig_end(&rig);
}

TEST(many_registers, "of-more-registers-than-are-kept-the-oldest-writes-go")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    kill(rig.pid, SIGSTOP);
    for (uint32_t i = 0; i < 600; i++)
        CHECK_INT(rig_post(&rig, REG_DATA + 4 * i, i), 0);
    rig_restart(&rig);
    rig_check_back(&rig, 1);
    CHECK_INT(rig_get(&rig, REG_DATA + 4 * 599), 599);
    CHECK_INT(rig.shared->nlog, 512);
    CHECK_INT(rig.shared->log[0].value, 88);
    CHECK_INT(rig.shared->log[511].value, 599);
    rig_end(&rig);
}

TEST(reset_due, "a-reset-while-the-server-is-away-is-carried-out-and-forgets-older-writes")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    rig_config_put16(&rig, PCI_COMMAND, PCI_COMMAND_MASTER);
    kill(rig.pid, SIGSTOP);
    CHECK_INT(rig_post(&rig, REG_DATA, 5), 0);
    rig_kill(&rig);
    rig_check_interrupted(&rig);
    CHECK_INT(ob_client_reset(rig.client), 0);
    CHECK_INT(rig_post(&rig, REG_DATA + 4, 6), 0);
    rig_start(&rig);
    rig_check_back(&rig, 1);
    CHECK_INT(rig.shared->resets, 1);
    CHECK_INT(rig_get(&rig, REG_DATA), 0);
    CHECK_INT(rig_get(&rig, REG_DATA + 4), 6);
    CHECK_INT(rig_config16(&rig, PCI_COMMAND), 0);
    rig_restart(&rig);
    rig_check_back(&rig, 2);
    CHECK_INT(rig.shared->resets, 1);
    rig_end(&rig);
}

TEST(dies_again, "a-server-that-dies-while-it-is-set-up-is-tried-again")
{
    int fd = rig_memory(0x77);
    struct rig rig;

    rig_begin(&rig, 20000);
    CHECK_INT(ob_client_dma_map(rig.client, 0x100000, 4096, OB_DMA_READ, fd, 4096), 0);
    rig.shared->die_at_write = 3;
    rig_kill(&rig);
    rig_check_interrupted(&rig);
    for (int i = 0; i < 3; i++) {
        rig_start(&rig);
        CHECK_INT(waitpid(rig.pid, NULL, 0), rig.pid);
    }
    rig_start(&rig);
    rig_check_back(&rig, 1);
    rig_check_fetch(&rig, 0x100000, 0x77);
    rig_end(&rig);
    close(fd);
}

TEST(dies_first, "a-server-that-dies-before-it-has-said-what-it-is-was-no-server-to-lose")
{
    struct rig rig;

    rig_begin_server(&rig);
    rig.shared->die_at_write = 1;
    CHECK_INT(rig_connect_client(&rig, 20000), -ENOTCONN);
    CHECK(!rig.client && *rig.connect_error);
    CHECK_INT(rig.lost + rig.interrupted, 0);
    CHECK_INT(waitpid(rig.pid, NULL, 0), rig.pid);
    rig.pid = -1;
    rig_end(&rig);
}

TEST(regions, "regions-are-described-anew-with-the-fds-of-the-server-that-is-there")
{
    struct ob_region_info info;
    struct rig rig;

    rig_begin(&rig, 20000);
    rig_restart(&rig);
    rig_check_back(&rig, 1);
    CHECK_INT(ob_client_region_info(rig.client, 0, &info), 0);
    CHECK_INT(info.layout.size, BAR_SIZE);
    CHECK_INT(info.fd, -1);
    ob_region_info_fini(&info);
    CHECK(ob_client_region_info(rig.client, 60, &info) < 0);
    rig_end(&rig);
}

/* ---- Not coming back ------------------------------------------------------------------------ */

static void check_lost(struct rig *rig, const char *why)
{
    uint32_t value;

    CHECK_INT(ob_client_await(rig->client, 20000), -ENOTCONN);
    rig_wait_for(&rig->lost, 1);
    CHECK_STR(rig->why, why);
    CHECK_STR(ob_client_error(rig->client), why);
    CHECK_INT(rig->resumed, 0);
    CHECK_INT(ob_client_region_read(rig->client, 0, 0, &value, 4), -ENOTCONN);
    CHECK_INT(rig_post(rig, REG_DATA, 1), -ENOTCONN);
    CHECK_INT(ob_client_dma_map(rig->client, 0, 4096, OB_DMA_READ, -1, 0), -ENOTCONN);
    CHECK_INT(ob_client_reset(rig->client), -ENOTCONN);
    CHECK_INT(ob_client_irq_disable(rig->client, OB_PCI_IRQ_MSIX), -ENOTCONN);
    CHECK_INT(ob_client_step(rig->client), -ENOTCONN);
}

TEST(other_id, "another-device-is-refused")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    rig.shared->device_id = 0x5679;
    rig_restart(&rig);
    check_lost(&rig, "the server closed the connection; another device answers: its device ID is "
                     "0x5679, not 0x5678");
    rig_end(&rig);
}

TEST(other_bar, "a-device-with-another-layout-is-refused")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    rig.shared->bar_size = 2 * BAR_SIZE;
    rig_restart(&rig);
    check_lost(&rig, "the server closed the connection; another device answers: its region 0 "
                     "(BAR0) has 8192 bytes, not 4096");
    rig_end(&rig);
}

TEST(other_caps, "a-device-with-its-msix-table-elsewhere-is-refused")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    rig.shared->msix_at = 1024;
    rig_restart(&rig);
    check_lost(&rig, "the server closed the connection; another device answers: it has other "
                     "capabilities in config space, from 0x40 on");
    rig_end(&rig);
}

/* The capability follows MSI-X, which takes 12 bytes. */
TEST(flr, "a-function-level-reset-forgets-what-was-written-before")
{
    uint16_t devctl = 0x4c + PCI_EXP_DEVCTL;
    struct rig rig;

    rig_begin(&rig, 20000);
    CHECK_INT(rig_config16(&rig, 0x4c) & 0xff, PCI_CAP_ID_EXP);
    rig_config_put16(&rig, PCI_COMMAND, PCI_COMMAND_MASTER);
    rig_config_put16(&rig, devctl, PCI_EXP_DEVCTL_BCR_FLR);
    CHECK_INT(rig.shared->resets, 1);
    CHECK_INT(rig_config16(&rig, PCI_COMMAND), 0);
    rig_restart(&rig);
    rig_check_back(&rig, 1);
    CHECK_INT(rig_config16(&rig, PCI_COMMAND), 0);
    rig_end(&rig);
}

TEST(never, "a-server-that-stays-away-is-given-up-when-the-time-is-over")
{
    int64_t began_ms = test_now_ms();
    struct rig rig;
    char why[512];

    rig_begin(&rig, 300);
    rig_kill(&rig);
    rig.pid = -1;
    rig_notice(&rig);
    snprintf(why, sizeof(why),
             "the server closed the connection; it did not come back within 300 ms: nobody listens "
             "on %s any more; its server has ended, start it again",
             rig.path);
    check_lost(&rig, why);
    CHECK(test_now_ms() - began_ms >= 300);
    rig_end(&rig);
}

/* Accepts, or not even that. */
static void check_hanging(bool accepts)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    struct rig rig;
    int fd;

    rig_begin(&rig, 400);
    rig_kill(&rig);
    rig.pid = -1;
    unlink(rig.path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memcpy(addr.sun_path, rig.path, strlen(rig.path) + 1);
    CHECK_INT(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    if (accepts)
        CHECK_INT(listen(fd, 1), 0);
    rig_notice(&rig);
    CHECK_INT(ob_client_await(rig.client, 20000), -ENOTCONN);
    CHECK(strstr(ob_client_error(rig.client), "it did not come back within 400 ms: "));
    CHECK(!accepts || strstr(ob_client_error(rig.client), "the server did not answer within"));
    rig_wait_for(&rig.lost, 1);
    close(fd);
    rig_end(&rig);
}

TEST(hanging, "a-server-that-comes-back-and-hangs-is-given-up-when-the-time-is-over")
{
    check_hanging(true);
    check_hanging(false);
}

TEST(freed, "a-client-is-freed-at-once-while-it-waits-for-its-server")
{
    int64_t began_ms;
    struct rig rig;

    rig_begin(&rig, 600000);
    rig_kill(&rig);
    rig.pid = -1;
    rig_check_interrupted(&rig);
    began_ms = test_now_ms();
    rig_end(&rig);
    CHECK(test_now_ms() - began_ms < 5000);
    CHECK_INT(rig.lost, 0);
}

static void *await(void *opaque)
{
    struct rig *rig = opaque;

    CHECK_INT(ob_client_await(rig->client, -1), -ENOTCONN);
    return NULL;
}

TEST(shut_down, "shutting-down-ends-the-waiting")
{
    pthread_t thread;
    struct rig rig;

    rig_begin(&rig, 600000);
    rig_kill(&rig);
    rig.pid = -1;
    rig_check_interrupted(&rig);
    CHECK_INT(ob_client_await(rig.client, 1), -ETIMEDOUT);
    CHECK_INT(pthread_create(&thread, NULL, await, &rig), 0);
    ob_client_shutdown(rig.client, "enough");
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_STR(ob_client_error(rig.client), "enough");
    CHECK_INT(rig.lost, 0);
    rig_end(&rig);
}

TEST(disconnect, "disconnecting-makes-a-new-connection")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    CHECK_INT(rig_put(&rig, REG_DATA, 3), 0);
    ob_client_disconnect(rig.client, "it is slow");
    rig_check_back(&rig, 1);
    CHECK_STR(rig.why, "it is slow");
    CHECK_INT(rig_get(&rig, REG_DATA), 3);
    rig_end(&rig);
}

TEST(needs_path, "a-connection-without-a-path-cannot-be-made-again")
{
    struct rig rig = { .pid = -1 };
    struct ob_client_options opt = rig_options(&rig, 1000);
    char why[256];
    int fds[2];

    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_INT(ob_client_connect_fd(fds[0], &opt, &rig.client, why, sizeof(why)), -EINVAL);
    CHECK_STR(why, "a connection that was made by somebody else cannot be made again: reconnect_ms "
                   "needs the path of a socket");
    close(fds[1]);
}

TEST(migrating, "a-device-whose-memory-is-logged-is-not-continued")
{
    struct rig rig;

    rig_begin(&rig, 20000);
    CHECK_INT(ob_client_dirty_start(rig.client, 4096, NULL, 0), 0);
    rig_kill(&rig);
    rig_start(&rig);
    rig_notice(&rig);
    check_lost(&rig, "the server closed the connection; the device was migrating");
    rig_end(&rig);
}

/* ---- Under load ----------------------------------------------------------------------------- */

struct load {
    struct rig *rig;
    uint32_t offset, last;
    unsigned repeated;
    pthread_t thread;
    atomic_bool stop;
};

/* Each thread has a register, in which it writes a growing number, and reads it back. */
static void *work(void *opaque)
{
    struct load *load = opaque;
    struct rig *rig = load->rig;
    uint32_t value;

    for (uint32_t i = 1; !load->stop; i++) {
        CHECK_INT(rig_post(rig, load->offset, i), 0);
        load->last = i;
        while (ob_client_region_read(rig->client, 0, load->offset, &value, 4) < 0) {
            load->repeated++;
            CHECK_INT(ob_client_await(rig->client, 20000), 0);
        }
        CHECK_INT(value, i);
    }
    return NULL;
}

static void *remap(void *opaque)
{
    struct load *load = opaque;
    int fd = rig_memory(0x5a);

    while (!load->stop) {
        CHECK_INT(ob_client_dma_map(load->rig->client, 0x700000, 4096, OB_DMA_READ, fd, 4096), 0);
        CHECK_INT(ob_client_dma_unmap(load->rig->client, 0x700000, 4096), 0);
        load->last++;
    }
    close(fd);
    return NULL;
}

TEST_TIMEOUT(kills, "thirty-kills-under-load-lose-no-write", 120)
{
    struct load loads[3] = { 0 };
    int fd = rig_memory(0x99);
    struct rig rig;

    rig_begin(&rig, 60000);
    CHECK_INT(ob_client_dma_map(rig.client, 0x100000, 4096, OB_DMA_READ, fd, 4096), 0);
    for (unsigned i = 0; i < 3; i++) {
        loads[i].rig = &rig;
        loads[i].offset = REG_DATA + 4 * i;
        CHECK_INT(pthread_create(&loads[i].thread, NULL, i < 2 ? work : remap, &loads[i]), 0);
    }
    for (int i = 1; i <= 30; i++) {
        uint32_t seen = rig.shared->nlog;
        while (rig.shared->nlog < seen + 20)
            sched_yield();
        rig_kill(&rig);
        rig_start(&rig);
        rig_wait_for(&rig.resumed, i);
    }
    for (unsigned i = 0; i < 3; i++) {
        loads[i].stop = true;
        CHECK_INT(pthread_join(loads[i].thread, NULL), 0);
        CHECK(loads[i].last > 0);
    }
    rig_check_fetch(&rig, 0x100000, 0x99);
    rig_check_back(&rig, 30);
    rig_end(&rig);
    close(fd);
}
