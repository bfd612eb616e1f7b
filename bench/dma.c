/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the client's memory costs: mapping and unmapping it, and finding it.
 *
 *   dma [--json] [REGIONS]...
 *
 * A server in a child process, a client here. One memfd is mapped in REGIONS pieces and unmapped
 * again, pipelined, in ascending and in shuffled order: microseconds a pair. While all are mapped
 * the server's own thread takes and puts references: to random pieces, and to one: nanoseconds a
 * pair. Medians over RUNS.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "outboard/client.h"
#include "outboard/pci.h"
#include "outboard/server.h"

enum { RUNS = 5, PAGE = 4096, PAIRS_LEAST = 4000, LOOKUPS = 200000 };
enum { RANDOM_READ, RANDOM_WRITE, SAME_READ, KINDS };

static const char *const kinds[KINDS] = { "random read", "random write", "same piece" };

/* What the client asks the server to measure, and the answer. */
struct order {
    uint64_t regions;
    double ns[KINDS];
};

struct device {
    struct ob_server *server;
    struct order order;
    uint64_t addresses[LOOKUPS];
};

static _Noreturn void die(const char *what, int rc)
{
    char why[128];

    fprintf(stderr, "dma: %s: %s\n", what, ob_strerror(rc, why, sizeof(why)));
    exit(1);
}

static double now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

/* The same numbers in every run. */
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *values)
{
    qsort(values, RUNS, sizeof(*values), compare);
    return values[RUNS / 2];
}

/* ---- The server --------------------------------------------------------------------------- */

/* Pieces are two pages apart, so that none is beside another. */
static uint64_t address_of(uint64_t region)
{
    return (1u << 30) + region * 2 * PAGE;
}

static double look_up(struct device *device, uint32_t prot)
{
    struct ob_dma_ref ref;
    double runs[RUNS];

    for (unsigned run = 0; run < RUNS; run++) {
        double start = now_ns();

        for (unsigned i = 0; i < LOOKUPS; i++) {
            int rc = ob_dma_get(device->server, device->addresses[i], 64, prot, &ref);

            if (rc < 0)
                die("look-up", rc);
            ob_dma_put(device->server, &ref);
        }
        runs[run] = (now_ns() - start) / LOOKUPS;
    }
    return median(runs);
}

static int measure(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct device *device = opaque;
    uint64_t state = 88172645463325252u;

    if (offset + count > sizeof(device->order))
        return -EINVAL;
    if (!is_write) {
        memcpy(data, (uint8_t *)&device->order + offset, count);
        return 0;
    }
    memcpy((uint8_t *)&device->order + offset, data, count);
    for (unsigned i = 0; i < LOOKUPS; i++)
        device->addresses[i] = address_of(next_random(&state) % device->order.regions);
    device->order.ns[RANDOM_READ] = look_up(device, OB_DMA_READ);
    device->order.ns[RANDOM_WRITE] = look_up(device, OB_DMA_WRITE);
    for (unsigned i = 0; i < LOOKUPS; i++)
        device->addresses[i] = address_of(0);
    device->order.ns[SAME_READ] = look_up(device, OB_DMA_READ);
    return 0;
}

static void serve(int fd)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops) };
    static const struct ob_pci_id id = { .vendor = 0x1234, .device = 1, .class_code = 0xff0000 };
    static struct device device;
    struct ob_region bar = { .size = PAGE,
                             .flags = OB_REGION_READ | OB_REGION_WRITE,
                             .access = measure,
                             .opaque = &device,
                             .fd = -1 };

    device.server = ob_server_new(&ops, &device);
    if (!device.server || ob_pci_init(device.server, &id, false, false) < 0 ||
        ob_pci_add_bar(device.server, 0, PAGE, 0) < 0 ||
        ob_server_set_region(device.server, 0, &bar) < 0 ||
        ob_server_listen_fd(device.server, fd) < 0)
        die("server", -EIO);
    ob_server_run(device.server);
    ob_server_free(device.server);
}

/* ---- The client --------------------------------------------------------------------------- */

static struct ob_client *connect_child(pid_t *pid)
{
    struct ob_client *client;
    char why[256];
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0 || (*pid = fork()) < 0)
        die("child", -errno);
    if (*pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pair[0]);
        serve(pair[1]);
        _exit(0);
    }
    close(pair[1]);
    if (ob_client_connect_fd(pair[0], NULL, &client, why, sizeof(why)) < 0) {
        fprintf(stderr, "dma: %s\n", why);
        exit(1);
    }
    return client;
}

static void shuffle(struct ob_dma_change *changes, size_t count)
{
    uint64_t state = 2463534242u;

    for (size_t i = count - 1; i > 0; i--) {
        size_t j = next_random(&state) % (i + 1);
        struct ob_dma_change swap = changes[i];

        changes[i] = changes[j];
        changes[j] = swap;
    }
}

static double apply(struct ob_client *client, struct ob_dma_change *changes, size_t count,
                    bool unmap)
{
    double start;
    int rc;

    for (size_t i = 0; i < count; i++)
        changes[i].unmap = unmap;
    start = now_ns();
    rc = ob_client_dma_apply(client, changes, count);
    if (rc < 0)
        die(unmap ? "unmap" : "map", rc);
    return now_ns() - start;
}

/* Microseconds a pair. */
static double map_and_unmap(struct ob_client *client, struct ob_dma_change *changes, size_t count)
{
    size_t rounds = count < PAIRS_LEAST ? PAIRS_LEAST / count : 1;
    double runs[RUNS];

    for (unsigned run = 0; run < RUNS; run++) {
        double ns = 0;

        for (size_t i = 0; i < rounds; i++) {
            ns += apply(client, changes, count, false);
            ns += apply(client, changes, count, true);
        }
        runs[run] = ns / 1000 / (double)(rounds * count);
    }
    return median(runs);
}

static void measure_regions(struct ob_client *client, int fd, size_t count, bool json)
{
    struct ob_dma_change *changes = calloc(count, sizeof(*changes));
    struct order order = { .regions = count };
    double ascending, shuffled;
    int rc;

    if (!changes)
        die("memory", -ENOMEM);
    for (size_t i = 0; i < count; i++)
        changes[i] = (struct ob_dma_change){ .address = address_of(i),
                                             .size = PAGE,
                                             .flags = OB_DMA_READ | OB_DMA_WRITE,
                                             .fd = fd,
                                             .offset = i * PAGE };
    ascending = map_and_unmap(client, changes, count);
    shuffle(changes, count);
    shuffled = map_and_unmap(client, changes, count);
    apply(client, changes, count, false);
    rc = ob_client_region_write(client, 0, 0, &order.regions, sizeof(order.regions));
    if (rc == 0)
        rc = ob_client_region_read(client, 0, 0, &order, sizeof(order));
    if (rc < 0)
        die("look-ups", rc);
    apply(client, changes, count, true);
    if (json)
        printf("{\"regions\": %zu, \"pair_us\": %.3f, \"pair_shuffled_us\": %.3f, "
               "\"get_ns\": %.1f, \"get_write_ns\": %.1f, \"get_same_ns\": %.1f}\n",
               count, ascending, shuffled, order.ns[RANDOM_READ], order.ns[RANDOM_WRITE],
               order.ns[SAME_READ]);
    else
        printf("%8zu %10.2f us %10.2f us %12.1f ns %12.1f ns %12.1f ns\n", count, ascending,
               shuffled, order.ns[RANDOM_READ], order.ns[RANDOM_WRITE], order.ns[SAME_READ]);
    fflush(stdout);
    free(changes);
}

int main(int argc, char **argv)
{
    static const char *const usual[] = { "1", "10", "100", "1000", "10000", "65535" };
    bool json = argc > 1 && strcmp(argv[1], "--json") == 0;
    int fd = memfd_create("memory", MFD_CLOEXEC);
    pid_t pid = -1;
    struct ob_client *client = connect_child(&pid);
    const char *const *sizes = usual;
    size_t nsizes = sizeof(usual) / sizeof(*usual);

    if (fd < 0 || ftruncate(fd, (off_t)OB_DMA_MAPS_MAX * PAGE) != 0)
        die("memfd", -errno);
    if (argc > 1 + json) {
        sizes = (const char *const *)argv + 1 + json;
        nsizes = (size_t)(argc - 1 - json);
    }
    if (!json)
        printf("%8s %13s %13s %15s %15s %15s\n", "regions", "map + unmap", "shuffled", kinds[0],
               kinds[1], kinds[2]);
    for (size_t i = 0; i < nsizes; i++) {
        unsigned long count = strtoul(sizes[i], NULL, 10);

        if (count == 0 || count > OB_DMA_MAPS_MAX)
            die(sizes[i], -ERANGE);
        measure_regions(client, fd, count, json);
    }
    ob_client_free(client);
    waitpid(pid, NULL, 0);
    return 0;
}
