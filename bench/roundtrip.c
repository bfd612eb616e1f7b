/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Region access round trips through the client library, beside the socket's own floor.
 *
 *   roundtrip [NAME=SOCKET:REGION:COUNT]...
 *
 * The floor is a ping-pong of messages of the same sizes (32 bytes there, 16 + 16 + 4 back) between
 * two processes. `outboard` is our server library in a child process, behind our client library;
 * each argument adds a server that already listens. All are measured in one run, interleaved, so
 * that ratios hold even where the machine's clock does not. Medians over RUNS of the mean of OPS.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "outboard/client.h"
#include "outboard/pci.h"
#include "outboard/server.h"

enum { RUNS = 7, OPS = 4000, POSTS = 20000, SUBJECTS_MAX = 8 };
enum { PING = 32, PONG = 36 };

struct subject {
    const char *name;
    struct ob_client *client; /* NULL: the floor */
    int floor_fd;
    uint32_t region, count;
    double read_ns[RUNS], write_ns[RUNS], post_ns[RUNS];
};

static struct subject subjects[SUBJECTS_MAX];
static unsigned nsubjects;

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "roundtrip: %s: %s\n", what, why);
    exit(1);
}

static double now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1e9 + ts.tv_nsec;
}

/* "any": leave placement to the kernel; "same": both ends on one core; "two": one core each. */
static void place(const char *mode, bool server)
{
    cpu_set_t set;

    if (strcmp(mode, "any") == 0)
        return;
    CPU_ZERO(&set);
    CPU_SET(server && strcmp(mode, "two") == 0 ? 1 : 0, &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0)
        die("sched_setaffinity", strerror(errno));
}

static void serve_floor(int fd)
{
    char buf[64] = { 0 };

    while (recv(fd, buf, PING, MSG_WAITALL) == PING)
        if (send(fd, buf, PONG, MSG_NOSIGNAL) != PONG)
            break;
}

static int null_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    static uint8_t registers[4096];

    (void)opaque;
    if (is_write)
        memcpy(registers + offset, data, count);
    else
        memcpy(data, registers + offset, count);
    return 0;
}

static void serve_device(int fd)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops) };
    static const struct ob_pci_id id = { .vendor = 0x1234, .device = 1, .class_code = 0xff0000 };
    static const struct ob_region bar = {
        .size = 4096, .flags = OB_REGION_READ | OB_REGION_WRITE, .access = null_access, .fd = -1
    };
    struct ob_server *server = ob_server_new(&ops, NULL);

    if (!server || ob_pci_init(server, &id, false, false) < 0 ||
        ob_pci_add_bar(server, 0, 4096, 0) < 0 || ob_server_set_region(server, 0, &bar) < 0 ||
        ob_server_listen_fd(server, fd) < 0)
        die("server", "cannot be set up");
    ob_server_run(server);
    ob_server_free(server);
}

/* A child process that serves the other end of a socket pair; returns our end. */
static int start_child(void (*serve)(int fd), const char *mode, pid_t *pid)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        die("socketpair", strerror(errno));
    *pid = fork();
    if (*pid < 0)
        die("fork", strerror(errno));
    if (*pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pair[0]);
        place(mode, true);
        serve(pair[1]);
        _exit(0);
    }
    close(pair[1]);
    return pair[0];
}

static void must(const struct subject *s, const char *what, int rc)
{
    char why[128];

    if (rc < 0) {
        fprintf(stderr, "roundtrip: %s of %s: %s\n", what, s->name,
                ob_strerror(rc, why, sizeof(why)));
        exit(1);
    }
}

static void measure_floor(struct subject *s, unsigned run)
{
    char buf[64] = { 0 };
    double start = now_ns();

    for (unsigned i = 0; i < OPS; i++)
        if (send(s->floor_fd, buf, PING, MSG_NOSIGNAL) != PING ||
            recv(s->floor_fd, buf, PONG, MSG_WAITALL) != PONG)
            die("floor", "the child is gone");
    s->read_ns[run] = s->write_ns[run] = (now_ns() - start) / OPS;
}

static void measure_client(struct subject *s, unsigned run)
{
    uint32_t value = 0;
    double start = now_ns();

    for (unsigned i = 0; i < OPS; i++)
        must(s, "read", ob_client_region_read(s->client, s->region, 0, &value, s->count));
    s->read_ns[run] = (now_ns() - start) / OPS;
    start = now_ns();
    for (unsigned i = 0; i < OPS; i++)
        must(s, "write", ob_client_region_write(s->client, s->region, 0, &value, s->count));
    s->write_ns[run] = (now_ns() - start) / OPS;
    start = now_ns();
    for (unsigned i = 0; i < POSTS; i++)
        must(s, "posted write", ob_client_region_post(s->client, s->region, 0, &value, s->count));
    must(s, "read", ob_client_region_read(s->client, s->region, 0, &value, s->count));
    s->post_ns[run] = (now_ns() - start) / POSTS;
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

static void add_peer(char *spec)
{
    struct subject *s = &subjects[nsubjects++];
    char why[256], path[256];

    if (nsubjects > SUBJECTS_MAX - 1)
        die(spec, "too many servers");
    s->name = strsep(&spec, "=");
    if (!spec || sscanf(spec, "%255[^:]:%u:%u", path, &s->region, &s->count) != 3 ||
        s->count > sizeof(uint32_t))
        die(s->name, "expected NAME=SOCKET:REGION:COUNT with COUNT <= 4");
    if (ob_client_connect(path, NULL, &s->client, why, sizeof(why)) < 0)
        die(s->name, why);
}

static void report(const char *mode)
{
    double floor = median(subjects[0].read_ns);

    printf("%s\n  %-24s %10.0f ns   1.00\n", mode, "socket floor", floor);
    for (unsigned i = 1; i < nsubjects; i++) {
        struct subject *s = &subjects[i];
        double read = median(s->read_ns), write = median(s->write_ns), post = median(s->post_ns);

        printf("  %-10s %-13s %10.0f ns %6.2f x floor\n", s->name, "read", read, read / floor);
        printf("  %-10s %-13s %10.0f ns %6.2f x floor\n", s->name, "write", write, write / floor);
        printf("  %-10s %-13s %10.0f ns %6.2f x floor\n", s->name, "posted write", post,
               post / floor);
    }
}

static void run_mode(const char *mode, int argc, char **argv)
{
    char why[256];
    pid_t pids[2];

    memset(subjects, 0, sizeof(subjects));
    subjects[0] =
        (struct subject){ .name = "floor", .floor_fd = start_child(serve_floor, mode, &pids[0]) };
    subjects[1] = (struct subject){ .name = "outboard", .region = 0, .count = 4 };
    if (ob_client_connect_fd(start_child(serve_device, mode, &pids[1]), NULL, &subjects[1].client,
                             why, sizeof(why)) < 0)
        die("outboard", why);
    nsubjects = 2;
    if (strcmp(mode, "any") == 0) /* who placed the peers' processes is not known here */
        for (int i = 1; i < argc; i++)
            add_peer(strdupa(argv[i]));
    for (unsigned run = 0; run < RUNS; run++)
        for (unsigned i = 0; i < nsubjects; i++)
            subjects[i].client ? measure_client(&subjects[i], run)
                               : measure_floor(&subjects[i], run);
    report(strcmp(mode, "any") == 0    ? "placed by the kernel"
           : strcmp(mode, "same") == 0 ? "both ends on one core"
                                       : "one core each");
    close(subjects[0].floor_fd);
    for (unsigned i = 1; i < nsubjects; i++)
        ob_client_free(subjects[i].client);
    for (unsigned i = 0; i < 2; i++)
        waitpid(pids[i], NULL, 0);
}

int main(int argc, char **argv)
{
    cpu_set_t all;

    run_mode("any", argc, argv);
    fflush(stdout); /* or the child would print it again */
    sched_getaffinity(0, sizeof(all), &all);
    if (CPU_ISSET(0, &all) && CPU_ISSET(1, &all)) {
        pid_t pid = fork(); /* pinning would outlive the mode otherwise */

        if (pid == 0) {
            place("same", false);
            run_mode("same", argc, argv);
            run_mode("two", argc, argv);
            exit(0);
        }
        waitpid(pid, NULL, 0);
    }
    return 0;
}
