/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client whose server is killed and started again, on the same socket path. The server is a
 * process of its own; what its device has seen, and what it is to be next, is in shared memory.
 */
#include "harness.h"

#include "outboard/client.h"
#include "outboard/pci.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define BAR_SIZE  4096u
#define REG_FIRE  0x10u /* write: triggers that MSI-X vector */
#define REG_FETCH 0x18u /* write: reads the memory at that address into `fetched` */
#define REG_DATA  0x40u /* from here on: registers, logged */
#define VECTORS   4u
#define LOG_MAX   4096u

struct shared {
    /* what the device has seen, over all its lives */
    atomic_uint nlog, resets;
    struct {
        uint32_t offset, value;
    } log[LOG_MAX];
    uint32_t regs[BAR_SIZE / 4];
    _Atomic uint64_t fetched;
    atomic_int fetch_rc;
    /* what it is */
    uint16_t device_id;
    uint32_t bar_size;
    atomic_int die_at_write; /* config writes that it survives; < 0: all */
    bool refuse_reset;
};

struct device {
    struct shared *shared;
    struct ob_server *server;
};

struct rig {
    struct shared *shared;
    char path[128];
    pid_t pid;
    struct ob_client *client;
    char connect_error[512];
    atomic_int interrupted, resumed, lost;
    char why[512];
};

static int access_bar(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct device *d = opaque;
    struct shared *s = d->shared;
    uint64_t value = 0;

    if (!is_write) {
        memcpy(data, (uint8_t *)s->regs + offset, count);
        return 0;
    }
    memcpy(&value, data, count < 8 ? count : 8);
    if (offset == REG_FIRE) {
        ob_server_irq_trigger(d->server, OB_PCI_IRQ_MSIX, (uint32_t)value);
    } else if (offset == REG_FETCH) {
        uint64_t fetched = 0;
        s->fetch_rc = ob_dma_read(d->server, value, &fetched, sizeof(fetched));
        s->fetched = fetched;
    } else {
        unsigned n = s->nlog++;
        if (n < LOG_MAX) {
            s->log[n].offset = (uint32_t)offset;
            s->log[n].value = (uint32_t)value;
        }
        memcpy((uint8_t *)s->regs + offset, data, count);
    }
    return 0;
}

static int reset_device(void *opaque)
{
    struct device *d = opaque;

    d->shared->resets++;
    return d->shared->refuse_reset ? -EIO : 0;
}

/* Ends in the middle of being set up: at the attach, so many times. */
static void client_came(void *opaque, bool attached)
{
    struct device *d = opaque;

    if (attached && d->shared->die_at_write > 0 && d->shared->die_at_write-- > 0)
        _exit(0);
}

/* The child's life. */
_Noreturn static void serve(const struct rig *rig, int ready)
{
    struct device d = { .shared = rig->shared };
    const struct ob_server_ops ops = { .size = sizeof(ops),
                                       .reset = reset_device,
                                       .client = client_came };
    const struct ob_pci_id id = { .vendor = 0x1234, .device = rig->shared->device_id };
    const struct ob_region bar = { .size = rig->shared->bar_size,
                                   .flags = OB_REGION_READ | OB_REGION_WRITE,
                                   .access = access_bar,
                                   .opaque = &d,
                                   .fd = -1 };
    const struct ob_region table = { .size = 4096,
                                     .flags = OB_REGION_READ | OB_REGION_WRITE,
                                     .fd = -1 };

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    d.server = ob_server_new(&ops, &d);
    if (!d.server || ob_pci_init(d.server, &id, true, true) < 0 ||
        ob_pci_add_bar(d.server, 0, rig->shared->bar_size, 0) < 0 ||
        ob_pci_add_bar(d.server, 1, 4096, 0) < 0 || ob_server_set_region(d.server, 0, &bar) < 0 ||
        ob_server_set_region(d.server, 1, &table) < 0 ||
        ob_pci_add_msix(d.server, VECTORS, 1, 0, 1, 2048) < 0 ||
        ob_server_listen(d.server, rig->path, 0) < 0 || write(ready, "", 1) != 1)
        _exit(1);
    close(ready);
    ob_server_run(d.server);
    _exit(0);
}

static void start(struct rig *rig)
{
    int ready[2];
    char byte;

    CHECK_INT(pipe(ready), 0);
    rig->pid = fork();
    CHECK(rig->pid >= 0);
    if (rig->pid == 0)
        serve(rig, ready[1]);
    close(ready[1]);
    CHECK_INT(read(ready[0], &byte, 1), 1);
    close(ready[0]);
}

static void kill_server(struct rig *rig)
{
    kill(rig->pid, SIGKILL);
    CHECK_INT(waitpid(rig->pid, NULL, 0), rig->pid);
}

static void on_interrupted(void *opaque, const char *why)
{
    struct rig *rig = opaque;

    snprintf(rig->why, sizeof(rig->why), "%s", why);
    rig->interrupted++;
}

static void on_resumed(void *opaque)
{
    ((struct rig *)opaque)->resumed++;
}

static void on_lost(void *opaque, const char *why)
{
    struct rig *rig = opaque;

    snprintf(rig->why, sizeof(rig->why), "%s", why);
    rig->lost++;
}

static struct ob_client_options options(struct rig *rig, int reconnect_ms)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;

    opt.reconnect_ms = reconnect_ms;
    opt.interrupted = on_interrupted;
    opt.resumed = on_resumed;
    opt.lost = on_lost;
    opt.opaque = rig;
    return opt;
}

static void begin_server(struct rig *rig)
{
    *rig = (struct rig){ .pid = -1 };
    rig->shared =
        mmap(NULL, sizeof(*rig->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(rig->shared != MAP_FAILED);
    rig->shared->device_id = 0x5678;
    rig->shared->bar_size = BAR_SIZE;
    snprintf(rig->path, sizeof(rig->path), "%s/s", test_tmpdir());
    start(rig);
}

static int connect_client(struct rig *rig, int reconnect_ms)
{
    struct ob_client_options opt = options(rig, reconnect_ms);

    return ob_client_connect(rig->path, &opt, &rig->client, rig->connect_error,
                             sizeof(rig->connect_error));
}

static void begin(struct rig *rig, int reconnect_ms)
{
    begin_server(rig);
    if (connect_client(rig, reconnect_ms) < 0)
        test_fail(__FILE__, __LINE__, "%s", rig->connect_error);
}

static void end(struct rig *rig)
{
    ob_client_free(rig->client);
    if (rig->pid > 0)
        kill_server(rig);
    munmap(rig->shared, sizeof(*rig->shared));
}

/* Waits for what a callback counts, after ob_client_await() has returned. */
static void wait_for(atomic_int *count, int value)
{
    int64_t until_ms = test_now_ms() + 5000;

    while (*count < value && test_now_ms() < until_ms)
        sched_yield();
    CHECK_INT(*count, value);
}

static void check_back(struct rig *rig, int times)
{
    struct ob_client_stats stats;

    CHECK_INT(ob_client_await(rig->client, 10000), 0);
    wait_for(&rig->resumed, times);
    CHECK_INT(rig->interrupted, times);
    CHECK(*rig->why);
    CHECK_INT(rig->lost, 0);
    ob_client_stats(rig->client, &stats);
    CHECK_INT(stats.reconnects, times);
    CHECK(ob_client_connected(rig->client));
    CHECK(!ob_client_error(rig->client));
}

static uint32_t get(struct rig *rig, uint32_t offset)
{
    uint32_t value = 0;

    CHECK_INT(ob_client_region_read(rig->client, 0, offset, &value, sizeof(value)), 0);
    return value;
}

static int put(struct rig *rig, uint32_t offset, uint64_t value)
{
    return ob_client_region_write(rig->client, 0, offset, &value, sizeof(value));
}

static int post(struct rig *rig, uint32_t offset, uint32_t value)
{
    return ob_client_region_post(rig->client, 0, offset, &value, sizeof(value));
}

/* The client has found out; a request that was under way then says so as well. */
static void check_interrupted(struct rig *rig)
{
    uint32_t value;
    int64_t until_ms = test_now_ms() + 5000;

    while (ob_client_state(rig->client) == OB_CLIENT_CONNECTED && test_now_ms() < until_ms)
        ob_client_region_read(rig->client, 0, REG_DATA, &value, sizeof(value));
    CHECK_INT(ob_client_state(rig->client), OB_CLIENT_INTERRUPTED);
    CHECK_INT(ob_client_region_read(rig->client, 0, REG_DATA, &value, sizeof(value)), -ENOTCONN);
    CHECK(!ob_client_error(rig->client));
}

static void die_and_return(struct rig *rig)
{
    kill_server(rig);
    check_interrupted(rig);
    start(rig);
}

static int memory(uint64_t first)
{
    int fd = memfd_create("memory", MFD_CLOEXEC);

    CHECK(fd >= 0);
    CHECK_INT(ftruncate(fd, 8192), 0);
    CHECK_INT(pwrite(fd, &first, sizeof(first), 4096), sizeof(first));
    return fd;
}

static bool fired(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };
    eventfd_t count;

    return poll(&pfd, 1, 5000) == 1 && eventfd_read(fd, &count) == 0;
}

static bool silent(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };

    return poll(&pfd, 1, 0) == 0;
}

static void check_fetch(struct rig *rig, uint64_t address, uint64_t value)
{
    CHECK_INT(put(rig, REG_FETCH, address), 0);
    CHECK_INT(rig->shared->fetch_rc, 0);
    CHECK_INT(rig->shared->fetched, value);
}

static uint16_t config16(struct rig *rig, uint32_t offset)
{
    uint16_t value;

    CHECK_INT(ob_client_region_read(rig->client, OB_PCI_REGION_CONFIG, offset, &value, 2), 0);
    return value;
}

static void config_put16(struct rig *rig, uint32_t offset, uint16_t value)
{
    CHECK_INT(ob_client_region_write(rig->client, OB_PCI_REGION_CONFIG, offset, &value, 2), 0);
}

/* ---- Coming back --------------------------------------------------------------------------- */

TEST(everything, "memory-interrupts-and-config-are-set-up-again")
{
    int efds[VECTORS], fd = memory(0x1122334455667788), gone = memory(1);
    struct rig rig;

    begin(&rig, 20000);
    for (unsigned i = 0; i < VECTORS; i++)
        efds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK_INT(ob_client_dma_map(rig.client, 0x100000, 4096, OB_DMA_READ, fd, 4096), 0);
    CHECK_INT(ob_client_dma_map(rig.client, 0x200000, 4096, OB_DMA_READ, gone, 0), 0);
    CHECK_INT(ob_client_dma_unmap(rig.client, 0x200000, 4096), 0);
    CHECK_INT(ob_client_irq_eventfds(rig.client, OB_PCI_IRQ_MSIX, 0, VECTORS, efds), 0);
    CHECK_INT(ob_client_irq_mask(rig.client, OB_PCI_IRQ_MSIX, 2, true), 0);
    config_put16(&rig, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    config_put16(&rig, PCI_BASE_ADDRESS_0 + 2, 0xfebc);
    CHECK_INT(put(&rig, REG_DATA, 7), 0);
    for (int i = 1; i <= 3; i++) {
        die_and_return(&rig);
        check_back(&rig, i);
        CHECK_INT(get(&rig, REG_DATA), 7);
        check_fetch(&rig, 0x100000, 0x1122334455667788);
        CHECK_INT(put(&rig, REG_FETCH, 0x200000), 0);
        CHECK_INT(rig.shared->fetch_rc, -EFAULT);
        CHECK_INT(put(&rig, REG_FIRE, 2), 0);
        CHECK_INT(put(&rig, REG_FIRE, 1), 0);
        CHECK(fired(efds[1]));
        CHECK(silent(efds[2]));
        CHECK_INT(config16(&rig, PCI_COMMAND), PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
        CHECK_INT(config16(&rig, PCI_BASE_ADDRESS_0 + 2), 0xfebc);
    }
    end(&rig);
    for (unsigned i = 0; i < VECTORS; i++)
        close(efds[i]);
    close(fd);
    close(gone);
}

TEST(meanwhile, "what-is-set-up-while-the-server-is-away-is-there-when-it-is-back")
{
    int fd = memory(0xabcdef), other = memory(0x42), efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int old = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct rig rig;

    begin(&rig, 20000);
    CHECK_INT(ob_client_dma_map(rig.client, 0x300000, 4096, OB_DMA_READ, fd, 4096), 0);
    CHECK_INT(ob_client_irq_eventfds(rig.client, OB_PCI_IRQ_MSIX, 0, 1, &old), 0);
    kill_server(&rig);
    check_interrupted(&rig);
    CHECK_INT(ob_client_dma_unmap(rig.client, 0x300000, 4096), 0);
    CHECK_INT(ob_client_dma_map(rig.client, 0x300000, 4096, OB_DMA_READ, other, 4096), 0);
    CHECK_INT(ob_client_irq_disable(rig.client, OB_PCI_IRQ_MSIX), 0);
    CHECK_INT(ob_client_irq_eventfds(rig.client, OB_PCI_IRQ_MSIX, 3, 1, &efd), 0);
    CHECK_INT(post(&rig, REG_DATA, 99), 0);
    start(&rig);
    check_back(&rig, 1);
    CHECK_INT(get(&rig, REG_DATA), 99);
    check_fetch(&rig, 0x300000, 0x42);
    CHECK_INT(put(&rig, REG_FIRE, 0), 0);
    CHECK_INT(put(&rig, REG_FIRE, 3), 0);
    CHECK(fired(efd));
    CHECK(silent(old));
    end(&rig);
    close(fd);
    close(other);
    close(efd);
    close(old);
}

TEST(posted, "posted-writes-that-nobody-read-are-repeated-the-last-of-each-register-in-order")
{
    struct rig rig;
    unsigned n;

    begin(&rig, 20000);
    CHECK_INT(post(&rig, REG_DATA, 1), 0);
    CHECK_INT(get(&rig, REG_DATA), 1); /* the server has that one, and it is not repeated */
    n = rig.shared->nlog;
    CHECK_INT(n, 1);
    kill(rig.pid, SIGSTOP);
    for (uint32_t i = 0; i < 10; i++)
        CHECK_INT(post(&rig, REG_DATA + 4, i), 0);
    CHECK_INT(post(&rig, REG_DATA + 8, 20), 0);
    CHECK_INT(post(&rig, REG_DATA + 12, 30), 0);
    CHECK_INT(post(&rig, REG_DATA + 8, 21), 0);
    die_and_return(&rig);
    check_back(&rig, 1);
    CHECK_INT(get(&rig, REG_DATA + 4), 9);
    CHECK_INT(rig.shared->nlog, n + 3);
    CHECK_INT(rig.shared->log[n].offset, REG_DATA + 4);
    CHECK_INT(rig.shared->log[n + 1].offset, REG_DATA + 12);
    CHECK_INT(rig.shared->log[n + 2].offset, REG_DATA + 8);
    CHECK_INT(rig.shared->log[n + 2].value, 21);
    end(&rig);
}

TEST(many_registers, "of-more-registers-than-are-kept-the-oldest-writes-go")
{
    struct rig rig;

    begin(&rig, 20000);
    kill(rig.pid, SIGSTOP);
    for (uint32_t i = 0; i < 600; i++)
        CHECK_INT(post(&rig, REG_DATA + 4 * i, i), 0);
    die_and_return(&rig);
    check_back(&rig, 1);
    CHECK_INT(get(&rig, REG_DATA + 4 * 599), 599);
    CHECK_INT(rig.shared->nlog, 512);
    CHECK_INT(rig.shared->log[0].value, 88);
    CHECK_INT(rig.shared->log[511].value, 599);
    end(&rig);
}

TEST(reset_due, "a-reset-while-the-server-is-away-is-carried-out-and-forgets-older-writes")
{
    struct rig rig;

    begin(&rig, 20000);
    config_put16(&rig, PCI_COMMAND, PCI_COMMAND_MASTER);
    kill(rig.pid, SIGSTOP);
    CHECK_INT(post(&rig, REG_DATA, 5), 0);
    kill_server(&rig);
    check_interrupted(&rig);
    CHECK_INT(ob_client_reset(rig.client), 0);
    CHECK_INT(post(&rig, REG_DATA + 4, 6), 0);
    start(&rig);
    check_back(&rig, 1);
    CHECK_INT(rig.shared->resets, 1);
    CHECK_INT(get(&rig, REG_DATA), 0);
    CHECK_INT(get(&rig, REG_DATA + 4), 6);
    CHECK_INT(config16(&rig, PCI_COMMAND), 0);
    die_and_return(&rig);
    check_back(&rig, 2);
    CHECK_INT(rig.shared->resets, 1);
    end(&rig);
}

TEST(dies_again, "a-server-that-dies-while-it-is-set-up-is-tried-again")
{
    int fd = memory(0x77);
    struct rig rig;

    begin(&rig, 20000);
    CHECK_INT(ob_client_dma_map(rig.client, 0x100000, 4096, OB_DMA_READ, fd, 4096), 0);
    rig.shared->die_at_write = 3;
    kill_server(&rig);
    check_interrupted(&rig);
    for (int i = 0; i < 3; i++) {
        start(&rig);
        CHECK_INT(waitpid(rig.pid, NULL, 0), rig.pid);
    }
    start(&rig);
    check_back(&rig, 1);
    check_fetch(&rig, 0x100000, 0x77);
    end(&rig);
    close(fd);
}

TEST(dies_first, "a-server-that-dies-before-it-has-said-what-it-is-was-no-server-to-lose")
{
    struct rig rig;

    begin_server(&rig);
    rig.shared->die_at_write = 1;
    CHECK_INT(connect_client(&rig, 20000), -ENOTCONN);
    CHECK(!rig.client && *rig.connect_error);
    CHECK_INT(rig.lost + rig.interrupted, 0);
    CHECK_INT(waitpid(rig.pid, NULL, 0), rig.pid);
    rig.pid = -1;
    end(&rig);
}

TEST(regions, "regions-are-described-anew-with-the-fds-of-the-server-that-is-there")
{
    struct ob_region_info info;
    struct rig rig;

    begin(&rig, 20000);
    die_and_return(&rig);
    check_back(&rig, 1);
    CHECK_INT(ob_client_region_info(rig.client, 0, &info), 0);
    CHECK_INT(info.layout.size, BAR_SIZE);
    CHECK_INT(info.fd, -1);
    ob_region_info_fini(&info);
    CHECK(ob_client_region_info(rig.client, 60, &info) < 0);
    end(&rig);
}

/* ---- Not coming back ------------------------------------------------------------------------ */

static void check_lost(struct rig *rig, const char *why)
{
    uint32_t value;

    CHECK_INT(ob_client_await(rig->client, 20000), -ENOTCONN);
    wait_for(&rig->lost, 1);
    CHECK_STR(rig->why, why);
    CHECK_STR(ob_client_error(rig->client), why);
    CHECK_INT(rig->resumed, 0);
    CHECK_INT(ob_client_region_read(rig->client, 0, 0, &value, 4), -ENOTCONN);
    CHECK_INT(post(rig, REG_DATA, 1), -ENOTCONN);
    CHECK_INT(ob_client_dma_map(rig->client, 0, 4096, OB_DMA_READ, -1, 0), -ENOTCONN);
    CHECK_INT(ob_client_reset(rig->client), -ENOTCONN);
    CHECK_INT(ob_client_irq_disable(rig->client, OB_PCI_IRQ_MSIX), -ENOTCONN);
    CHECK_INT(ob_client_step(rig->client), -ENOTCONN);
}

TEST(other_id, "another-device-is-refused")
{
    struct rig rig;

    begin(&rig, 20000);
    rig.shared->device_id = 0x5679;
    die_and_return(&rig);
    check_lost(&rig, "the server closed the connection; another device answers: its device ID is "
                     "0x5679, not 0x5678");
    end(&rig);
}

TEST(other_bar, "a-device-with-another-layout-is-refused")
{
    struct rig rig;

    begin(&rig, 20000);
    rig.shared->bar_size = 2 * BAR_SIZE;
    die_and_return(&rig);
    check_lost(&rig, "the server closed the connection; another device answers: its region 0 "
                     "(BAR0) has 8192 bytes, not 4096");
    end(&rig);
}

TEST(never, "a-server-that-stays-away-is-given-up-when-the-time-is-over")
{
    int64_t began_ms = test_now_ms();
    struct rig rig;
    char why[512];

    begin(&rig, 300);
    kill_server(&rig);
    rig.pid = -1;
    check_interrupted(&rig);
    snprintf(why, sizeof(why),
             "the server closed the connection; it did not come back within 300 ms: nobody listens "
             "on %s any more; its server has ended, start it again",
             rig.path);
    check_lost(&rig, why);
    CHECK(test_now_ms() - began_ms >= 300);
    end(&rig);
}

/* Accepts, or not even that. */
static void check_hanging(bool accepts)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    struct rig rig;
    int fd;

    begin(&rig, 400);
    kill_server(&rig);
    rig.pid = -1;
    unlink(rig.path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memcpy(addr.sun_path, rig.path, strlen(rig.path) + 1);
    CHECK_INT(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    if (accepts)
        CHECK_INT(listen(fd, 1), 0);
    check_interrupted(&rig);
    CHECK_INT(ob_client_await(rig.client, 20000), -ENOTCONN);
    CHECK(strstr(ob_client_error(rig.client), "it did not come back within 400 ms: "));
    CHECK(!accepts || strstr(ob_client_error(rig.client), "the server did not answer within"));
    wait_for(&rig.lost, 1);
    close(fd);
    end(&rig);
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

    begin(&rig, 600000);
    kill_server(&rig);
    rig.pid = -1;
    check_interrupted(&rig);
    began_ms = test_now_ms();
    end(&rig);
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

    begin(&rig, 600000);
    kill_server(&rig);
    rig.pid = -1;
    check_interrupted(&rig);
    CHECK_INT(ob_client_await(rig.client, 1), -ETIMEDOUT);
    CHECK_INT(pthread_create(&thread, NULL, await, &rig), 0);
    ob_client_shutdown(rig.client, "enough");
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_STR(ob_client_error(rig.client), "enough");
    CHECK_INT(rig.lost, 0);
    end(&rig);
}

TEST(disconnect, "disconnecting-makes-a-new-connection")
{
    struct rig rig;

    begin(&rig, 20000);
    CHECK_INT(put(&rig, REG_DATA, 3), 0);
    ob_client_disconnect(rig.client, "it is slow");
    check_back(&rig, 1);
    CHECK_STR(rig.why, "it is slow");
    CHECK_INT(get(&rig, REG_DATA), 3);
    end(&rig);
}

TEST(needs_path, "a-connection-without-a-path-cannot-be-made-again")
{
    struct rig rig = { .pid = -1 };
    struct ob_client_options opt = options(&rig, 1000);
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

    begin(&rig, 20000);
    CHECK_INT(ob_client_dirty_start(rig.client, 4096, NULL, 0), 0);
    die_and_return(&rig);
    check_lost(&rig, "the server closed the connection; the device was migrating");
    end(&rig);
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
        CHECK_INT(post(rig, load->offset, i), 0);
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
    int fd = memory(0x5a);

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
    int fd = memory(0x99);
    struct rig rig;

    begin(&rig, 60000);
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
        kill_server(&rig);
        start(&rig);
        wait_for(&rig.resumed, i);
    }
    for (unsigned i = 0; i < 3; i++) {
        loads[i].stop = true;
        CHECK_INT(pthread_join(loads[i].thread, NULL), 0);
        CHECK(loads[i].last > 0);
    }
    check_fetch(&rig, 0x100000, 0x99);
    check_back(&rig, 30);
    end(&rig);
    close(fd);
}
