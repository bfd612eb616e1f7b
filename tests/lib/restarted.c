/* SPDX-License-Identifier: BSD-3-Clause */
#include "restarted.h"
#include "harness.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

struct device {
    struct shared *shared;
    struct ob_server *server;
    struct ob_dma_ref held;
};

atomic_int rig_failing_maps;

void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);

void *__wrap_calloc(size_t count, size_t size)
{
    if (size == sizeof(struct ob_dma_change) && rig_failing_maps > 0) {
        rig_failing_maps--;
        return NULL;
    }
    return __real_calloc(count, size);
}

/* The server's process, where it is one. */
static struct shared *serving;

void *__real_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size);

void *__wrap_realloc(void *old, size_t size)
{
    if (serving && serving->failing_reallocs > 0) {
        serving->failing_reallocs--;
        return NULL;
    }
    return __real_realloc(old, size);
}

enum { NOT_HELD = -1, HELD = -2 };

static atomic_int calls_to_hold = NOT_HELD;
static atomic_bool hold_free; /* the calls are those that free a client */

void rig_hold_at_socket(int others)
{
    atomic_store_explicit(&hold_free, false, memory_order_relaxed);
    atomic_store_explicit(&calls_to_hold, others, memory_order_relaxed);
}

void rig_hold_at_free(void)
{
    atomic_store_explicit(&hold_free, true, memory_order_relaxed);
    atomic_store_explicit(&calls_to_hold, 0, memory_order_relaxed);
}

void rig_release(void)
{
    atomic_store_explicit(&calls_to_hold, NOT_HELD, memory_order_relaxed);
}

/* Until that is so, or is so no more. */
static void await_held(bool held)
{
    int64_t until_ms = test_now_ms() + 10000;

    while ((atomic_load_explicit(&calls_to_hold, memory_order_relaxed) == HELD) != held) {
        CHECK(test_now_ms() < until_ms);
        sched_yield();
    }
}

void rig_await_held(void)
{
    await_held(true);
}

static void hold(bool at_free)
{
    if (atomic_load_explicit(&hold_free, memory_order_relaxed) == at_free &&
        atomic_load_explicit(&calls_to_hold, memory_order_relaxed) != NOT_HELD &&
        atomic_fetch_sub_explicit(&calls_to_hold, 1, memory_order_relaxed) == 0) {
        atomic_store_explicit(&calls_to_hold, HELD, memory_order_relaxed);
        await_held(false);
    }
}

int __real_getsockopt(int fd, int level, int name, void *value, socklen_t *len);
int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *len);

int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
    if (name == SO_TYPE)
        hold(false);
    return __real_getsockopt(fd, level, name, value, len);
}

int __real_pthread_condattr_destroy(pthread_condattr_t *attr);
int __wrap_pthread_condattr_destroy(pthread_condattr_t *attr);

int __wrap_pthread_condattr_destroy(pthread_condattr_t *attr)
{
    hold(true);
    return __real_pthread_condattr_destroy(attr);
}

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
    } else if (offset == REG_HOLD) {
        return ob_dma_get(d->server, value, 1, OB_DMA_READ, &d->held);
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

static void event_came(void *opaque)
{
    (void)opaque;
}

static int reset_device(void *opaque)
{
    struct device *d = opaque;

    d->shared->resets++;
    while (d->shared->hang_in_reset)
        pause();
    return d->shared->failing_resets > 0 && d->shared->failing_resets-- > 0
               ? -d->shared->reset_error
               : 0;
}

/* May end in the middle of being set up: at the attach, so many times. */
static void client_came(void *opaque, bool attached)
{
    struct device *d = opaque;

    if (!attached)
        return;
    if (d->shared->die_at_write > 0 && d->shared->die_at_write-- > 0)
        _exit(0);
    if (++d->shared->clients == d->shared->let_go_at)
        ob_dma_put(d->server, &d->held);
}

/* So many descriptors can be opened from now on. */
static void leave_fds(int count)
{
    struct rlimit limit;
    int fds[8] = { 0 };

    getrlimit(RLIMIT_NOFILE, &limit);
    for (int i = 0; i <= count; i++)
        fds[i] = dup(STDIN_FILENO);
    limit.rlim_cur = (rlim_t)fds[count];
    for (int i = 0; i <= count; i++)
        close(fds[i]);
    setrlimit(RLIMIT_NOFILE, &limit);
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
    const struct ob_ioeventfd event = { .offset = REG_EVENT, .size = 4 };

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    d.server = ob_server_new(&ops, &d);
    if (!d.server || ob_pci_init(d.server, &id, true, true) < 0 ||
        ob_pci_add_bar(d.server, 0, rig->shared->bar_size, 0) < 0 ||
        ob_pci_add_bar(d.server, 1, 4096, 0) < 0 || ob_server_set_region(d.server, 0, &bar) < 0 ||
        ob_server_set_region(d.server, 1, &table) < 0 ||
        ob_server_add_ioeventfd(d.server, 0, &event, event_came, NULL) < 0 ||
        ob_pci_add_msix(d.server, VECTORS, 1, rig->shared->msix_at, 1, 2048) < 0 ||
        ob_pci_add_pcie(d.server) < 0 ||
        (rig->shared->dma_bytes &&
         ob_server_set_dma_limits(d.server, OB_DMA_MAPS_MAX, rig->shared->dma_bytes) < 0) ||
        ob_server_listen(d.server, rig->path, 0) < 0 || write(ready, "", 1) != 1)
        _exit(1);
    close(ready);
    if (rig->shared->fds_left)
        leave_fds(rig->shared->fds_left);
    serving = rig->shared;
    ob_server_run(d.server);
    _exit(0);
}

void rig_start(struct rig *rig)
{
    int ready[2];
    char byte;

    CHECK_INT(pipe(ready), 0);
    rig->pid = fork();
    CHECK(rig->pid >= 0);
    if (rig->pid == 0) {
        rig_release(); /* it is the client that is held */
        serve(rig, ready[1]);
    }
    close(ready[1]);
    CHECK_INT(read(ready[0], &byte, 1), 1);
    close(ready[0]);
}

void rig_kill(struct rig *rig)
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

struct ob_client_options rig_options(struct rig *rig, int reconnect_ms)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;

    opt.timeout_ms = 20000;
    opt.reconnect_ms = reconnect_ms;
    opt.interrupted = on_interrupted;
    opt.resumed = on_resumed;
    opt.lost = on_lost;
    opt.opaque = rig;
    return opt;
}

static void begin_at(struct rig *rig, const char *path)
{
    *rig = (struct rig){ .pid = -1 };
    rig->shared =
        mmap(NULL, sizeof(*rig->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(rig->shared != MAP_FAILED);
    rig->shared->device_id = 0x5678;
    rig->shared->bar_size = BAR_SIZE;
    snprintf(rig->path, sizeof(rig->path), "%s", path);
    rig_start(rig);
}

void rig_begin_server(struct rig *rig)
{
    char path[sizeof(rig->path)];

    snprintf(path, sizeof(path), "%s/s", test_tmpdir());
    begin_at(rig, path);
}

static int connect_with(struct rig *rig, const struct ob_client_options *opt)
{
    return ob_client_connect(rig->path, opt, &rig->client, rig->connect_error,
                             sizeof(rig->connect_error));
}

int rig_connect_client(struct rig *rig, int reconnect_ms)
{
    struct ob_client_options opt = rig_options(rig, reconnect_ms);

    return connect_with(rig, &opt);
}

void rig_begin(struct rig *rig, int reconnect_ms)
{
    rig_begin_server(rig);
    if (rig_connect_client(rig, reconnect_ms) < 0)
        test_fail(__FILE__, __LINE__, "%s", rig->connect_error);
}

void rig_begin_with(struct rig *rig, const char *path, const struct ob_client_options *opt)
{
    begin_at(rig, path);
    if (connect_with(rig, opt) < 0)
        test_fail(__FILE__, __LINE__, "%s", rig->connect_error);
}

void rig_end(struct rig *rig)
{
    ob_client_free(rig->client);
    if (rig->pid > 0)
        rig_kill(rig);
    munmap(rig->shared, sizeof(*rig->shared));
}

void rig_wait_for(atomic_int *count, int value)
{
    int64_t until_ms = test_now_ms() + 20000;

    while (*count < value && test_now_ms() < until_ms)
        sched_yield();
    CHECK_INT(*count, value);
}

void rig_check_back(struct rig *rig, int times)
{
    struct ob_client_stats stats;

    CHECK_INT(ob_client_await(rig->client, 10000), 0);
    rig_wait_for(&rig->resumed, times);
    CHECK_INT(rig->interrupted, times);
    CHECK(*rig->why);
    CHECK_INT(rig->lost, 0);
    ob_client_stats(rig->client, &stats);
    CHECK_INT(stats.reconnects, times);
    CHECK(ob_client_connected(rig->client));
    CHECK(!ob_client_error(rig->client));
}

uint32_t rig_get(struct rig *rig, uint32_t offset)
{
    uint32_t value = 0;

    CHECK_INT(ob_client_region_read(rig->client, 0, offset, &value, sizeof(value)), 0);
    return value;
}

int rig_put(struct rig *rig, uint32_t offset, uint64_t value)
{
    return ob_client_region_write(rig->client, 0, offset, &value, sizeof(value));
}

int rig_post(struct rig *rig, uint32_t offset, uint32_t value)
{
    return ob_client_region_post(rig->client, 0, offset, &value, sizeof(value));
}

void rig_notice(struct rig *rig)
{
    uint32_t value;
    int64_t until_ms = test_now_ms() + 20000;

    while (ob_client_state(rig->client) == OB_CLIENT_CONNECTED && test_now_ms() < until_ms)
        ob_client_region_read(rig->client, 0, REG_DATA, &value, sizeof(value));
    CHECK(ob_client_state(rig->client) != OB_CLIENT_CONNECTED);
}

void rig_check_interrupted(struct rig *rig)
{
    uint32_t value;

    rig_notice(rig);
    CHECK_INT(ob_client_state(rig->client), OB_CLIENT_INTERRUPTED);
    CHECK_INT(ob_client_region_read(rig->client, 0, REG_DATA, &value, sizeof(value)), -ENOTCONN);
    CHECK(!ob_client_error(rig->client));
}

void rig_restart(struct rig *rig)
{
    rig_kill(rig);
    rig_check_interrupted(rig);
    rig_start(rig);
}

int rig_memory(uint64_t first)
{
    int fd = memfd_create("memory", MFD_CLOEXEC);

    CHECK(fd >= 0);
    CHECK_INT(ftruncate(fd, 8192), 0);
    CHECK_INT(pwrite(fd, &first, sizeof(first), 4096), sizeof(first));
    return fd;
}

bool rig_fired(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };
    eventfd_t count;

    return poll(&pfd, 1, 20000) == 1 && eventfd_read(fd, &count) == 0;
}

bool rig_silent(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };

    return poll(&pfd, 1, 0) == 0;
}

void rig_check_fetch(struct rig *rig, uint64_t address, uint64_t value)
{
    CHECK_INT(rig_put(rig, REG_FETCH, address), 0);
    CHECK_INT(rig->shared->fetch_rc, 0);
    CHECK_INT(rig->shared->fetched, value);
}

uint16_t rig_config16(struct rig *rig, uint32_t offset)
{
    uint16_t value;

    CHECK_INT(ob_client_region_read(rig->client, OB_PCI_REGION_CONFIG, offset, &value, 2), 0);
    return value;
}

void rig_config_put16(struct rig *rig, uint32_t offset, uint16_t value)
{
    CHECK_INT(ob_client_region_write(rig->client, OB_PCI_REGION_CONFIG, offset, &value, 2), 0);
}
