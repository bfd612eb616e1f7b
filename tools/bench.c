/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * `outboard bench`: how fast a server answers, beside what the socket between two processes costs.
 * Two connections, one after the other: with a client that sleeps until the reply is there, and
 * with one that may spin for it. On each, rounds of everything, each right after its floor.
 */
#include "bench.h"
#include "tools.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define EDU_ID 0x11e81234u

static void print_help(void)
{
    printf(
        "usage: outboard bench SOCKET [options]\n"
        "       outboard bench --list\n"
        "Measures the vfio-user server on SOCKET, each thing beside its floor: what the same\n"
        "bytes cost between two processes that do nothing with them, taken in turns in the same\n"
        "run, where the server may run. The device is only read, and its register for the\n"
        "interrupt line written with the value it has; pages at 1 TiB are mapped for DMA.\n"
        "\n"
        "  --region N       a register of that region is read and written in place of those in\n"
        "  --offset N       config space (written with the value that is read before),\n"
        "  --count N        at this offset (default 0), of so many bytes (1 to 8, default 4)\n"
        "  --threads N      up to so many threads on the connection (default 4)\n"
        "  --regions N      up to so many pages mapped for DMA (default 1000)\n"
        "  --spin-us N      how long the client may spin for a reply (default %u); 0: measure\n"
        "                   only without spinning, in one connection. The server spins where it\n"
        "                   was told to\n"
        "  --rounds N       of everything (default 9)\n"
        "  --round-ms N     how long a round of one thing takes (default 20)\n"
        "  --only PATTERN   the measurements that match it, like 'dma*'\n"
        "  --list           say which there are, and stop\n"
        "  --timeout MS     give up when an answer takes longer (default 5000)\n"
        "  --json           one JSON object: socket, rounds, and measurements: name, unit,\n"
        "                     median, p99, ratio (to the floor: median of those of the rounds),\n"
        "                     noise (of the ratio: between its quartiles), rounds (the median of\n"
        "                     each), quantiles, floor: name, median, p99; and refused: name, why\n"
        "  -h, --help       this text\n",
        OB_SPIN_US_DEFAULT);
}

/* ---- The command line ---------------------------------------------------------------------- */

struct bench_arguments {
    struct bench_options opt;
    bool json, list, help;
};

/* Options that are a number, each with its place in the options. */
static const struct number {
    const char *name;
    int min, max;
    size_t at;
} numbers[] = {
    { "threads", 1, BENCH_THREADS_MAX, offsetof(struct bench_options, threads) },
    { "regions", 1, OB_DMA_MAPS_MAX, offsetof(struct bench_options, regions) },
    { "rounds", 1, BENCH_ROUNDS_MAX, offsetof(struct bench_options, rounds) },
    { "spin-us", 0, OB_SPIN_US_MAX, offsetof(struct bench_options, spin_us) },
    { "round-ms", 1, 60000, offsetof(struct bench_options, round_ms) },
    { "timeout", 1, INT_MAX, offsetof(struct bench_options, timeout_ms) },
    { "region", 0, OB_REGIONS_MAX - 1, offsetof(struct bench_options, region) },
    { "offset", 0, INT_MAX, offsetof(struct bench_options, offset) },
    { "count", 1, 8, offsetof(struct bench_options, count) },
};
#define NNUMBERS (sizeof(numbers) / sizeof(numbers[0]))

enum { OPT_NUMBER = 256 }; /* and up: an entry of numbers */

static int take_number(const struct number *number, struct bench_options *opt)
{
    long long value;

    if (!parse_number(optarg, 0, number->min, number->max, &value))
        return fail_usage("bench", "--%s takes %d to %d, not '%s'", number->name, number->min,
                          number->max, optarg);
    *(int *)((char *)opt + number->at) = (int)value;
    return 0;
}

static int take_option(int c, struct bench_arguments *args, char **argv)
{
    switch (c) {
    case 'o':
        args->opt.pattern = optarg;
        return 0;
    case 'j':
        args->json = true;
        return 0;
    case 'l':
        args->list = true;
        return 0;
    case 'h':
        args->help = true;
        return 0;
    case ':':
    case '?':
        return fail_option("bench", c, argv);
    default:
        return take_number(&numbers[c - OPT_NUMBER], &args->opt);
    }
}

static int parse(int argc, char **argv, struct bench_arguments *args)
{
    struct option options[NNUMBERS + 5] = {
        { "json", no_argument, NULL, 'j' },
        { "list", no_argument, NULL, 'l' },
        { "only", required_argument, NULL, 'o' },
        { "help", no_argument, NULL, 'h' },
    };
    int c, status;

    for (size_t i = 0; i < NNUMBERS; i++)
        options[4 + i] =
            (struct option){ numbers[i].name, required_argument, NULL, OPT_NUMBER + (int)i };
    opterr = 0;
    while ((c = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        status = take_option(c, args, argv);
        if (status || args->help)
            return status;
    }
    if (args->list)
        return optind == argc ? 0 : fail_usage("bench", "--list only, not also '%s'", argv[optind]);
    if (args->opt.region < 0 && (args->opt.offset >= 0 || args->opt.count > 0))
        return fail_usage("bench", "--offset and --count are for --region");
    return take_socket("bench", argc, argv, &args->opt.path);
}

/* ---- A connection -------------------------------------------------------------------------- */

/* A socket of our own, whose other end can be asked for. -1: the library says what is wrong. */
static int connect_path(const char *path)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd;

    if (strlen(path) >= sizeof(addr.sun_path))
        return -1;
    memcpy(addr.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* The floor runs where the server may, so far as that can be known. */
static void find_cpus(int fd, cpu_set_t *cpus)
{
    struct ucred peer = { 0 };
    socklen_t len = sizeof(peer);

    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || peer.pid <= 0 ||
        sched_getaffinity(peer.pid, sizeof(*cpus), cpus) < 0)
        sched_getaffinity(0, sizeof(*cpus), cpus);
}

static int connect_client(struct bench_pass *pass, char *why, size_t size)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    int fd = connect_path(pass->opt->path);

    opt.timeout_ms = pass->opt->timeout_ms;
    opt.any_files = true; /* who is measured is trusted: SPDK keeps its doorbells on a disk */
    opt.spin_us = pass->spin ? (unsigned)pass->opt->spin_us : 0;
    opt.dma_read = bench_edu_read;
    opt.dma_write = bench_edu_write;
    find_cpus(fd, &pass->cpus);
    if (fd < 0)
        return ob_client_connect(pass->opt->path, &opt, &pass->target.client, why, size);
    return ob_client_connect_fd(fd, &opt, &pass->target.client, why, size);
}

/* Which registers are read and written; the value of the latter. */
static int choose_registers(struct bench_pass *pass)
{
    const struct bench_options *opt = pass->opt;
    struct bench_target *t = &pass->target;
    uint32_t id = 0;
    int rc;

    t->read = (struct bench_register){ .region = OB_PCI_REGION_CONFIG, .count = 4 };
    t->write =
        (struct bench_register){ .region = OB_PCI_REGION_CONFIG, .offset = 0x3c, .count = 1 };
    if (opt->region >= 0) {
        t->read = (struct bench_register){ .region = (uint32_t)opt->region,
                                           .offset = opt->offset < 0 ? 0 : (uint64_t)opt->offset,
                                           .count = opt->count ? (uint32_t)opt->count : 4 };
        t->write = t->read;
    }
    rc = ob_client_region_read(t->client, t->write.region, t->write.offset, t->write.value,
                               t->write.count);
    if (rc == 0 && ob_client_region_read(t->client, OB_PCI_REGION_CONFIG, 0, &id, 4) == 0)
        pass->edu = id == EDU_ID;
    return rc;
}

static int start_floors(struct bench_pass *pass)
{
    uint32_t count = pass->target.read.count;
    int rc = bench_floor_start(&pass->access, 32, 32 + count, pass->spin, &pass->cpus);

    if (rc == 0)
        rc = bench_floor_start(&pass->map, 48, 16, pass->spin, &pass->cpus);
    if (rc == 0)
        rc = bench_floor_start(&pass->page, 32, 32 + 4096, pass->spin, &pass->cpus);
    return rc;
}

static int open_memory(struct bench_pass *pass)
{
    pass->memory = memfd_create("outboard-bench", MFD_CLOEXEC);
    if (pass->memory < 0 || ftruncate(pass->memory, (off_t)pass->opt->regions * 4096) < 0)
        return -errno;
    return 0;
}

static int fail_pass(const struct bench_pass *pass, const char *what, int rc)
{
    const char *died = pass->target.client ? ob_client_error(pass->target.client) : NULL;
    char why[160];

    return fail("bench", "%s: %s%s%s", pass->opt->path, what, *what ? ": " : "",
                died ? died : ob_strerror(rc, why, sizeof(why)));
}

static int measure_all(struct bench_pass *pass, struct bench_measurement *all, int count)
{
    for (int round = 0; round < pass->opt->rounds; round++) {
        for (int i = 0; i < count; i++) {
            int rc = bench_measure(pass, &all[i]);

            if (rc < 0)
                return fail_pass(pass, all[i].own.name, rc);
        }
    }
    return 0;
}

static void end_pass(struct bench_pass *pass)
{
    bench_floor_stop(&pass->access);
    bench_floor_stop(&pass->map);
    bench_floor_stop(&pass->page);
    ob_client_free(pass->target.client);
    if (pass->memory >= 0)
        close(pass->memory);
}

static int run_pass(const struct bench_options *opt, bool spin, struct bench_measurement *all,
                    int count)
{
    struct bench_pass pass = { .opt = opt, .spin = spin, .memory = -1 };
    char why[320];
    int status = 0, rc;

    if (connect_client(&pass, why, sizeof(why)) < 0)
        return fail("bench", "%s", why);
    if ((rc = choose_registers(&pass)) < 0)
        status = fail_pass(&pass, "its register cannot be read", rc);
    else if ((rc = open_memory(&pass)) < 0 || (rc = start_floors(&pass)) < 0)
        status = fail_pass(&pass, "", rc);
    else
        status = measure_all(&pass, all, count);
    end_pass(&pass);
    return status;
}

/* ---- The command --------------------------------------------------------------------------- */

static void print_case(const char *name, const char *says)
{
    printf("%-22s %s\n", name, says);
}

static int run(const struct bench_arguments *args)
{
    struct bench_measurement all[2 * BENCH_MEASUREMENTS_MAX];
    const struct bench_options *opt = &args->opt;
    int counts[2] = { 0, 0 }, status = 0;

    for (int spin = 0; spin <= (opt->spin_us > 0); spin++) {
        counts[spin] = bench_plan(opt, spin, all + counts[0]);
        if (counts[spin] < 0)
            return fail("bench", "out of memory");
    }
    if (counts[0] + counts[1] == 0)
        return fail_usage("bench", "no measurement matches '%s'", opt->pattern);
    for (int spin = 0; spin < 2 && status == 0; spin++)
        if (counts[spin] > 0)
            status = run_pass(opt, spin, all + (spin ? counts[0] : 0), counts[spin]);
    if (status == 0 && (args->json ? bench_print_json(opt, all, counts[0] + counts[1])
                                   : bench_print_text(all, counts[0] + counts[1])) < 0)
        status = fail("bench", "out of memory");
    for (int i = 0; i < counts[0] + counts[1]; i++) {
        bench_series_fini(&all[i].own);
        bench_series_fini(&all[i].floor);
    }
    return status;
}

int cmd_bench(int argc, char **argv)
{
    struct bench_arguments args = { .opt = { .threads = 4,
                                             .regions = 1000,
                                             .rounds = 9,
                                             .round_ms = 20,
                                             .region = -1,
                                             .offset = -1,
                                             .spin_us = OB_SPIN_US_DEFAULT } };
    int status = parse(argc, argv, &args);

    if (status)
        return status;
    if (args.help) {
        print_help();
        return 0;
    }
    if (args.list) {
        bench_list(print_case);
        return 0;
    }
    args.opt.pace = (struct bench_pace){ BENCH_BATCH_MAX, args.opt.round_ms * 1e6 };
    return run(&args);
}
