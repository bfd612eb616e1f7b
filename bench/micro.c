/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Measurements that take a device of our own, and the floors themselves; bench/run calls it.
 *
 *   micro NAME [ROUNDS [SPIN_US [OTHER_CPU]]]
 *
 * Prints a line of JSON a measurement, as `outboard bench --json` has them. OTHER_CPU is where the
 * other end runs, else where this one may. `micro client SOCKET` connects, reads a little, and
 * prints what the connection took of memory; then it is idle until its stdin ends.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench/floor.h"
#include "bench/own.h"

#define MIB      (1u << 20)
#define STALL_MS 10
#define WRITES   20000u /* posted to a server that lags */

struct job {
    unsigned rounds, spin_us;
    cpu_set_t *other; /* NULL: anywhere */
    struct bench_pace pace;
};

static _Noreturn void die(const char *what, int rc)
{
    char why[128];

    fprintf(stderr, "micro: %s: %s\n", what, ob_strerror(rc, why, sizeof(why)));
    exit(1);
}

static void must(const char *what, int rc)
{
    if (rc < 0)
        die(what, rc);
}

static struct bench_series *series(const struct job *job, const char *name)
{
    struct bench_series *s = malloc(sizeof(*s));

    if (!s || bench_series_init(s, name, "ns", job->rounds) < 0)
        die(name, -ENOMEM);
    return s;
}

/* Prints and frees both. */
static void finish(struct bench_series *own, struct bench_series *floor)
{
    json_t *line = bench_json(own, floor);

    if (!line)
        die(own->name, -ENOMEM);
    json_dumpf(line, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(line);
    if (floor != own) {
        bench_series_fini(floor);
        free(floor);
    }
    bench_series_fini(own);
    free(own);
}

/* ---- The floors ---------------------------------------------------------------------------- */

static void floor_exchange(const struct job *job, const char *name, uint32_t ping, uint32_t pong,
                           unsigned burst)
{
    struct bench_series *s = series(job, name);
    struct bench_floor floor;

    must(name, bench_floor_start(&floor, ping, pong, job->spin_us > 0, job->other));
    for (unsigned i = 0; i < job->rounds; i++)
        must(name, burst ? bench_floor_sends(&floor, s, burst, &job->pace)
                         : bench_floor_round_trips(&floor, s, &job->pace));
    bench_floor_stop(&floor);
    finish(s, s);
}

static void run_ping_pong(const struct job *job)
{
    floor_exchange(job, "ping-pong", 32, 36, 0);
}

static void run_sendmsg(const struct job *job)
{
    floor_exchange(job, "sendmsg", 36, 32, 200);
}

static void run_bulk(const struct job *job)
{
    floor_exchange(job, "bulk", 32, 32 + MIB, 0);
}

static void run_memcpy(const struct job *job)
{
    struct bench_series *s = series(job, "memcpy");
    uint8_t *from = bench_memory(2 * MIB), *to;

    if (!from)
        die("memcpy", -ENOMEM);
    to = from + MIB;
    for (unsigned i = 0; i < job->rounds; i++) {
        for (unsigned k = 0; k < 200; k++) {
            double before = bench_now_ns();

            from[k] = (uint8_t)k;
            memcpy(to, from, MIB);
            __asm__ volatile("" : : "r"(to) : "memory"); /* it is looked at */
            bench_series_add(s, bench_now_ns() - before);
        }
        bench_series_end_round(s);
    }
    free(from);
    finish(s, s);
}

/* What a tick of the time-stamp counter is, for a guest that has no other clock. */
static void run_ticks(const struct job *job)
{
    double begin = bench_now_ns(), now;
    uint64_t first = __builtin_ia32_rdtsc();

    (void)job;
    while ((now = bench_now_ns()) < begin + 50e6)
        ;
    printf("{\"name\": \"ticks\", \"ns\": %.9f}\n",
           (now - begin) / (double)(__builtin_ia32_rdtsc() - first));
}

/* ---- With a device ------------------------------------------------------------------------- */

/* Numbered writes to a device that sleeps first; the time from the first to the last to arrive. */
static void lag_round(struct own *own, struct bench_series *out)
{
    struct own_shared *shared = own->shared;
    uint32_t value;

    shared->last = 0;
    must("lag", own_post(own, OWN_STALL, STALL_MS));
    for (uint32_t i = 1; i <= WRITES; i++)
        must("lag", own_post(own, OWN_NEXT, i));
    must("lag", ob_client_region_read(own->client, 0, 0, &value, sizeof(value)));
    if (shared->last != WRITES || shared->out_of_order)
        die("posted writes came out of order, or not at all", -EPROTO);
    bench_series_add(out, (shared->last_ns - shared->first_ns) / (WRITES - 1));
    bench_series_end_round(out);
}

static void run_lag(const struct job *job)
{
    struct bench_series *s = series(job, "lag"), *f = series(job, "sendmsg");
    struct bench_floor floor;
    struct own own;

    must("lag", bench_floor_start(&floor, 36, 32, false, job->other));
    must("lag", own_start(&own, job->spin_us, job->other));
    for (unsigned i = 0; i < job->rounds; i++) {
        must("lag", bench_floor_sends(&floor, f, 200, &job->pace));
        lag_round(&own, s);
    }
    own_stop(&own);
    bench_floor_stop(&floor);
    finish(s, f);
}

static void message_round(struct own *own, struct bench_series *out, uint32_t kib,
                          const struct bench_pace *pace)
{
    double begin = bench_now_ns();

    own->shared->nvalues = 0;
    while (own->shared->nvalues < pace->values && bench_now_ns() - begin < pace->ns)
        must("DMA by message", own_tell(own, OWN_READ, kib));
    must("DMA by message", own->shared->error);
    for (uint32_t i = 0; i < own->shared->nvalues; i++)
        bench_series_add(out, own->shared->values[i]);
    bench_series_end_round(out);
}

static void run_messages(const struct job *job)
{
    static const struct {
        const char *name;
        uint32_t kib;
    } sizes[] = { { "dma-message/4KiB", 4 }, { "dma-message/1MiB", 1024 } };

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct bench_series *s = series(job, sizes[i].name), *f = series(job, "round trip");
        struct bench_floor floor;
        struct own own;

        must(s->name, bench_floor_start(&floor, 32, 32 + (sizes[i].kib << 10), job->spin_us > 0,
                                        job->other));
        must(s->name, own_start(&own, job->spin_us, job->other));
        for (unsigned k = 0; k < job->rounds; k++) {
            must(s->name, bench_floor_round_trips(&floor, f, &job->pace));
            message_round(&own, s, sizes[i].kib, &job->pace);
        }
        own_stop(&own);
        bench_floor_stop(&floor);
        finish(s, f);
    }
}

/* From the device's trigger until the thread that sleeps on the eventfd runs. */
static void irq_round(struct own *own, int fd, struct bench_series *out,
                      const struct bench_pace *pace)
{
    double begin = bench_now_ns(), now = begin;

    while (bench_series_open(out) < pace->values && now - begin < pace->ns) {
        uint64_t count;

        must("interrupt", own_post(own, OWN_TRIGGER, 0));
        if (read(fd, &count, sizeof(count)) != sizeof(count))
            die("interrupt", -errno);
        now = bench_now_ns();
        bench_series_add(out, now - own->shared->triggered_ns);
    }
    bench_series_end_round(out);
}

static void run_interrupt(const struct job *job)
{
    struct bench_series *s = series(job, "interrupt"), *f = series(job, "ping-pong");
    struct bench_floor floor;
    struct own own;
    int fd = eventfd(0, EFD_CLOEXEC);

    must("interrupt", bench_floor_start(&floor, 32, 36, false, job->other));
    must("interrupt", own_start(&own, 0, job->other));
    must("interrupt", ob_client_irq_eventfds(own.client, OB_PCI_IRQ_MSI, 0, 1, &fd));
    for (unsigned i = 0; i < job->rounds; i++) {
        must("interrupt", bench_floor_round_trips(&floor, f, &job->pace));
        irq_round(&own, fd, s, &job->pace);
    }
    own_stop(&own);
    bench_floor_stop(&floor);
    close(fd);
    finish(s, f);
}

/* ---- A client that does nothing ------------------------------------------------------------ */

static long resident_kib(void)
{
    char line[128];
    long kib = 0;
    FILE *status = fopen("/proc/self/status", "re");

    while (status && fgets(line, sizeof(line), status))
        if (strncmp(line, "VmRSS:", 6) == 0)
            kib = strtol(line + 6, NULL, 10);
    if (status)
        fclose(status);
    return kib;
}

static void some_reads(struct ob_client *client)
{
    uint32_t value;

    for (unsigned i = 0; i < 1000; i++)
        must("client", ob_client_region_read(client, OB_PCI_REGION_CONFIG, 0, &value, 4));
}

static int idle_client(const char *path)
{
    struct ob_client *client;
    struct own first; /* what any connection takes but once in a process is no cost of the second */
    char why[256], byte;
    long before;

    must("client", own_start(&first, 0, NULL));
    some_reads(first.client);
    before = resident_kib();
    if (ob_client_connect(path, NULL, &client, why, sizeof(why)) < 0) {
        fprintf(stderr, "micro: %s\n", why);
        return 1;
    }
    some_reads(client);
    printf("{\"connection_kib\": %ld}\n", resident_kib() - before);
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
    ob_client_free(client);
    own_stop(&first);
    return 0;
}

static const struct {
    const char *name;
    void (*run)(const struct job *job);
} jobs[] = {
    { "ping-pong", run_ping_pong }, { "sendmsg", run_sendmsg }, { "bulk", run_bulk },
    { "memcpy", run_memcpy },       { "lag", run_lag },         { "dma-message", run_messages },
    { "interrupt", run_interrupt }, { "ticks", run_ticks },
};

int main(int argc, char **argv)
{
    struct job job = { .pace = { BENCH_BATCH_MAX, 20e6 } };
    cpu_set_t other;

    if (argc == 3 && strcmp(argv[1], "client") == 0)
        return idle_client(argv[2]);
    job.rounds = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 9;
    job.spin_us = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 0;
    if (argc > 4) {
        CPU_ZERO(&other);
        CPU_SET(strtoul(argv[4], NULL, 10), &other);
        job.other = &other;
    }
    for (size_t i = 0; argc > 1 && i < sizeof(jobs) / sizeof(jobs[0]); i++) {
        if (strcmp(argv[1], jobs[i].name) == 0 && job.rounds > 0 && job.rounds < BENCH_ROUNDS_MAX) {
            jobs[i].run(&job);
            return 0;
        }
    }
    fprintf(stderr, "micro: wrong arguments\n");
    return 2;
}
