/* SPDX-License-Identifier: BSD-3-Clause */
#include "bench/own.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench/measure.h"
#include "outboard/pci.h"
#include "outboard/server.h"

#define RAM_BYTES (4u << 20)

struct device {
    struct ob_server *server;
    struct own_shared *shared;
    uint8_t *buffer;
};

static void read_memory(struct device *d, uint32_t kib)
{
    struct own_shared *shared = d->shared;
    double before = bench_now_ns();
    int rc = ob_dma_read(d->server, 0, d->buffer, (uint64_t)kib << 10);

    if (rc < 0 && shared->error == 0)
        shared->error = rc;
    if (shared->nvalues < OWN_VALUES)
        shared->values[shared->nvalues++] = bench_now_ns() - before;
}

static void stall(struct own_shared *shared, uint32_t ms)
{
    const struct timespec ts = { .tv_nsec = (long)ms * 1000000 };

    nanosleep(&ts, NULL);
    shared->first_ns = 0;
}

static void take_next(struct own_shared *shared, uint32_t number)
{
    double now = bench_now_ns();

    shared->first_ns = shared->first_ns > 0 ? shared->first_ns : now;
    shared->last_ns = now;
    shared->out_of_order += number != shared->last + 1;
    shared->last = number;
}

static int access_register(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct device *d = opaque;
    uint32_t value = 0;

    (void)offset;
    if (!is_write || count != sizeof(value)) {
        memset(data, 0, count);
        return 0;
    }
    memcpy(&value, data, count);
    switch ((enum own_command)(value & 0xff)) {
    case OWN_STALL:
        stall(d->shared, value >> 8);
        return 0;
    case OWN_NEXT:
        take_next(d->shared, value >> 8);
        return 0;
    case OWN_READ:
        read_memory(d, value >> 8);
        return 0;
    case OWN_TRIGGER:
        d->shared->triggered_ns = bench_now_ns();
        return ob_server_irq_trigger(d->server, OB_PCI_IRQ_MSI, 0);
    }
    return -EINVAL;
}

static int build(struct device *d, unsigned spin_us)
{
    const struct ob_server_ops ops = { .size = sizeof(ops) };
    const struct ob_pci_id id = { .vendor = 0x4f42, .device = 3, .class_code = 0xff0000 };
    const struct ob_region bar = { .size = 4096,
                                   .flags = OB_REGION_READ | OB_REGION_WRITE,
                                   .access = access_register,
                                   .opaque = d,
                                   .fd = -1 };
    int rc;

    d->buffer = malloc(RAM_BYTES);
    d->server = ob_server_new(&ops, d);
    if (!d->buffer || !d->server)
        return -ENOMEM;
    ob_server_set_spin(d->server, spin_us);
    if ((rc = ob_pci_init(d->server, &id, false, false)) < 0 ||
        (rc = ob_pci_add_bar(d->server, 0, 4096, 0)) < 0 || (rc = ob_pci_add_msi(d->server, 1)) < 0)
        return rc;
    return ob_server_set_region(d->server, 0, &bar);
}

static _Noreturn void serve(struct own_shared *shared, int fd, unsigned spin_us)
{
    struct device d = { .shared = shared };

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (build(&d, spin_us) == 0 && ob_server_listen_fd(d.server, fd) == 0)
        ob_server_run(d.server);
    _exit(0);
}

static const void *lend_ram(void *opaque, uint64_t address, uint32_t count, void **loan)
{
    const struct own *own = opaque;

    (void)loan;
    return count <= RAM_BYTES && address <= RAM_BYTES - count ? own->ram + address : NULL;
}

static int connect_own(struct own *own, int fd, unsigned spin_us)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    int rc;

    own->ram = bench_memory(RAM_BYTES);
    if (!own->ram)
        return -ENOMEM;
    opt.spin_us = spin_us;
    opt.any_files = true;
    opt.dma_lend = lend_ram;
    opt.opaque = own;
    rc = ob_client_connect_fd(fd, &opt, &own->client, NULL, 0);
    return rc < 0 ? rc : ob_client_dma_map(own->client, 0, RAM_BYTES, OB_DMA_READ, -1, 0);
}

int own_start(struct own *own, unsigned spin_us, const cpu_set_t *server_cpus)
{
    int pair[2], rc;

    *own = (struct own){ 0 };
    own->shared =
        mmap(NULL, sizeof(*own->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (own->shared == MAP_FAILED)
        return -errno;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0 || (own->pid = fork()) < 0)
        return -errno;
    if (own->pid == 0) {
        close(pair[0]);
        if (server_cpus)
            sched_setaffinity(0, sizeof(*server_cpus), server_cpus);
        serve(own->shared, pair[1], spin_us);
    }
    close(pair[1]);
    rc = connect_own(own, pair[0], spin_us);
    if (rc < 0)
        own_stop(own);
    return rc;
}

void own_stop(struct own *own)
{
    ob_client_free(own->client);
    waitpid(own->pid, NULL, 0);
    free(own->ram);
    munmap(own->shared, sizeof(*own->shared));
}

int own_tell(struct own *own, enum own_command command, uint32_t argument)
{
    uint32_t value = argument << 8 | command;

    return ob_client_region_write(own->client, 0, 0, &value, sizeof(value));
}

int own_post(struct own *own, enum own_command command, uint32_t argument)
{
    uint32_t value = argument << 8 | command;

    return ob_client_region_post(own->client, 0, 0, &value, sizeof(value));
}
