/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A server that is killed again and again in the middle of I/O, with a state file: no command is
 * lost, done twice, or done after it was completed, and no block is lost or stale.
 *
 * The disk is in units. Each has at most one command under way, so what it must hold is known: the
 * stamp of the last write that completed. A command's pages are overwritten when it has completed:
 * a write that is executed after that puts this on the disk, and a read that is shows in the pages.
 */
#include "nvme_host.h"
#include "devices/nvme/state_file.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UNIT        4096u
#define UNIT_BLOCKS 8u
#define UNITS       512u
#define UNITS_MAX   8u /* of a command */
#define QUEUES      2u
#define DEPTH       24u /* commands under way in a queue */
#define POISON      0xdb
#define DEADLINE_MS 20000
#define STATE_SIZE  (sizeof(struct nvme_file_map) + 4 * sizeof(struct nvme_sq_record))
#define STEPS_MAX   20000u

struct op {
    bool used;
    uint16_t cid;
    uint8_t opcode;
    uint32_t unit, n;
    uint32_t at, list; /* its pages, and one for a PRP list */
    uint32_t stamp;
};

enum admin_step { IDENTIFY, SET, GET, CREATE_CQ, CREATE_SQ, DELETE_SQ, DELETE_CQ, ADMIN_STEPS };

static struct disk {
    struct nvme_host h;
    struct op ops[QUEUES + 1][DEPTH];
    uint32_t stamp[UNITS]; /* 0: zeroes */
    bool busy[UNITS];
    uint32_t last_stamp;
    uint64_t seed;
    unsigned done;
    const struct nvme_file_map *state; /* work_by_store() looks at it */
    unsigned stores;
    /* the admin queue: one command after the other, and an event request that never completes */
    enum admin_step step;
    bool admin_busy;
    uint16_t admin_cid, aer;
    uint32_t page, extra[2], kelvin;
} disk;

static uint32_t rnd(struct disk *d, uint32_t below)
{
    d->seed = d->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((d->seed >> 33) % below);
}

static int64_t now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

/* ---- Data ---------------------------------------------------------------------------------- */

static void fill(uint8_t *out, uint32_t unit, uint32_t stamp)
{
    uint64_t *words = (void *)out;

    for (uint32_t i = 0; i < UNIT / 8; i++)
        words[i] = stamp ? (uint64_t)stamp << 32 | unit << 12 | i : 0;
}

static void check_unit(const uint8_t *data, uint32_t unit, uint32_t stamp, const char *where)
{
    uint8_t expect[UNIT];
    uint64_t word;

    fill(expect, unit, stamp);
    if (memcmp(data, expect, UNIT) == 0)
        return;
    for (uint32_t i = 0; i < UNIT; i += 8)
        if (memcmp(data + i, expect + i, 8) != 0) {
            memcpy(&word, data + i, 8);
            test_fail(__FILE__, __LINE__, "%s: unit %u, byte %u: %016llx, but stamp %x is due",
                      where, unit, i, (unsigned long long)word, stamp);
        }
}

static void check_poison(struct disk *d, const struct op *op)
{
    for (uint32_t i = 0; i < UNITS_MAX * UNIT; i++)
        if (d->h.ram[op->at + i] != POISON)
            test_fail(__FILE__, __LINE__, "pages of a command were written when it was over");
}

/* ---- Commands ------------------------------------------------------------------------------ */

static bool claim_units(struct disk *d, struct op *op)
{
    op->n = 1 + rnd(d, UNITS_MAX);
    op->unit = rnd(d, UNITS - op->n + 1);
    for (uint32_t i = 0; i < op->n; i++)
        if (d->busy[op->unit + i])
            return false;
    memset(d->busy + op->unit, true, op->n);
    return true;
}

static uint8_t choose_opcode(struct disk *d)
{
    uint32_t dice = rnd(d, 100);

    return dice < 45   ? NVME_IO_WRITE
           : dice < 80 ? NVME_IO_READ
           : dice < 88 ? NVME_IO_FLUSH
           : dice < 94 ? NVME_IO_WRITE_ZEROES
                       : NVME_IO_COMPARE;
}

static void submit(struct disk *d, uint16_t q, struct op *op)
{
    struct nvme_host *h = &d->h;
    uint32_t used = h->used;
    struct nvme_sqe sqe;

    op->opcode = choose_opcode(d);
    if (op->opcode != NVME_IO_FLUSH && !claim_units(d, op))
        return;
    check_poison(d, op);
    op->used = true;
    op->stamp = op->opcode == NVME_IO_WRITE ? ++d->last_stamp : 0;
    for (uint32_t i = 0; i < op->n; i++) {
        uint32_t stamp = op->opcode == NVME_IO_WRITE ? op->stamp : d->stamp[op->unit + i];
        if (op->opcode == NVME_IO_WRITE || op->opcode == NVME_IO_COMPARE)
            fill(h->ram + op->at + i * UNIT, op->unit + i, stamp);
    }
    h->used = op->list; /* host_io() takes a page for the list from there */
    sqe =
        host_io(h, op->opcode, (uint64_t)op->unit * UNIT_BLOCKS, op->n * UNIT_BLOCKS, op->at, 512);
    h->used = used;
    if (op->opcode == NVME_IO_FLUSH)
        sqe = (struct nvme_sqe){ .opcode = NVME_IO_FLUSH, .nsid = 1 };
    if (op->opcode == NVME_IO_WRITE && rnd(d, 8) == 0)
        sqe.dw12 |= NVME_IO_FUA;
    op->cid = host_put(h, q, sqe);
}

static void complete(struct disk *d, uint16_t q, const struct nvme_cqe *cqe)
{
    struct op *op = NULL;

    for (unsigned i = 0; i < DEPTH; i++)
        if (d->ops[q][i].used && d->ops[q][i].cid == cqe->cid)
            op = &d->ops[q][i];
    if (!op)
        test_fail(__FILE__, __LINE__, "queue %u: command %u completed twice", q, cqe->cid);
    CHECK_INT(cqe->status >> 1, 0);
    for (uint32_t i = 0; op->opcode != NVME_IO_FLUSH && i < op->n; i++) {
        uint32_t unit = op->unit + i;
        if (op->opcode == NVME_IO_READ)
            check_unit(d->h.ram + op->at + i * UNIT, unit, d->stamp[unit], "read");
        if (op->opcode == NVME_IO_WRITE || op->opcode == NVME_IO_WRITE_ZEROES)
            d->stamp[unit] = op->stamp;
        d->busy[unit] = false;
    }
    memset(d->h.ram + op->at, POISON, UNITS_MAX * UNIT);
    op->used = false;
    d->done++;
}

/* ---- The admin queue ----------------------------------------------------------------------- */

static void submit_admin(struct disk *d)
{
    uint32_t third = (DEPTH - 1) << 16 | (QUEUES + 1);
    struct nvme_sqe sqes[ADMIN_STEPS] = {
        [IDENTIFY] = { .opcode = NVME_ADM_IDENTIFY, .prp1 = host_addr(d->page), .dw10 = 1 },
        [SET] = { .opcode = NVME_ADM_SET_FEATURES, .dw10 = NVME_FEAT_TEMPERATURE },
        [GET] = { .opcode = NVME_ADM_GET_FEATURES, .dw10 = NVME_FEAT_TEMPERATURE },
        [CREATE_CQ] = { .opcode = NVME_ADM_CREATE_CQ, .prp1 = host_addr(d->extra[0]), .dw11 = 1 },
        [CREATE_SQ] = { .opcode = NVME_ADM_CREATE_SQ,
                        .prp1 = host_addr(d->extra[1]),
                        .dw11 = (QUEUES + 1) << 16 | 1 },
        [DELETE_SQ] = { .opcode = NVME_ADM_DELETE_SQ },
        [DELETE_CQ] = { .opcode = NVME_ADM_DELETE_CQ },
    };
    struct nvme_sqe *sqe = &sqes[d->step];

    if (d->step == SET)
        sqe->dw11 = d->kelvin = 350 + rnd(d, 100);
    if (d->step >= CREATE_CQ)
        sqe->dw10 = third;
    memset(d->h.ram + d->page, POISON, 4096);
    d->admin_cid = host_submit(&d->h, 0, *sqe);
    d->admin_busy = true;
}

static void complete_admin(struct disk *d, const struct nvme_cqe *cqe)
{
    CHECK(cqe->cid != d->aer);
    CHECK(d->admin_busy);
    CHECK_INT(cqe->cid, d->admin_cid);
    if (cqe->status >> 1)
        test_fail(__FILE__, __LINE__, "admin step %d: status %x", d->step, cqe->status >> 1);
    if (d->step == GET)
        CHECK_INT(cqe->result, d->kelvin);
    if (d->step == IDENTIFY)
        CHECK_MEM(d->h.ram + d->page + 4, "KILLED  ", 8);
    d->admin_busy = false;
    d->step = (d->step + 1) % ADMIN_STEPS;
}

/* ---- The work ------------------------------------------------------------------------------ */

static bool all_done(const struct disk *d)
{
    for (unsigned q = 1; q <= QUEUES; q++)
        for (unsigned i = 0; i < DEPTH; i++)
            if (d->ops[q][i].used)
                return false;
    return !d->admin_busy;
}

static void submit_some(struct disk *d)
{
    for (uint16_t q = 1; q <= QUEUES; q++) {
        unsigned put = 0;
        for (unsigned i = 0; i < DEPTH; i++)
            if (!d->ops[q][i].used && rnd(d, 4) == 0) {
                submit(d, q, &d->ops[q][i]);
                put += d->ops[q][i].used;
            }
        if (put)
            host_ring(&d->h, q);
    }
    if (!d->admin_busy && rnd(d, 8) == 0)
        submit_admin(d);
}

static void work(struct disk *d, bool more)
{
    struct nvme_cqe cqe;

    if (more)
        submit_some(d);
    for (uint16_t q = 1; q <= QUEUES; q++)
        while (host_poll(&d->h, q, 0, &cqe))
            complete(d, q, &cqe);
    if (host_poll(&d->h, 0, 0, &cqe))
        complete_admin(d, &cqe);
    if (d->h.by_message)
        ob_client_step(d->h.client);
}

static void check_image(const struct disk *d, const char *image)
{
    int fd = open(image, O_RDONLY | O_CLOEXEC);
    uint8_t data[UNIT];

    for (uint32_t i = 0; i < UNITS; i++) {
        CHECK_INT(pread(fd, data, UNIT, (off_t)i * UNIT), UNIT);
        check_unit(data, i, d->stamp[i], "image");
    }
    close(fd);
}

static void begin(struct disk *d)
{
    struct nvme_host *h = &d->h;

    host_connect(h);
    host_arm(h, OB_PCI_IRQ_MSIX, QUEUES + 1);
    host_enable(h);
    for (uint16_t q = 1; q <= QUEUES; q++) {
        host_add_queue(h, q, 32, q);
        for (unsigned i = 0; i < DEPTH; i++) {
            d->ops[q][i].at = host_pages(h, UNITS_MAX);
            d->ops[q][i].list = host_pages(h, 1);
            memset(h->ram + d->ops[q][i].at, POISON, UNITS_MAX * UNIT);
        }
    }
    d->page = host_pages(h, 1);
    d->extra[0] = host_pages(h, 1);
    d->extra[1] = host_pages(h, 1);
    d->aer = host_submit(h, 0, (struct nvme_sqe){ .opcode = NVME_ADM_ASYNC_EVENT });
}

/* ---- Killing ------------------------------------------------------------------------------- */

/* In the middle of whatever it does. */
static void work_a_while(struct disk *d, pid_t pid)
{
    int64_t end = now_us() + rnd(d, 4000);

    (void)pid;
    while (now_us() < end)
        work(d, true);
}

/* What is noted of queues, and what is posted: the stores between which it matters to be killed. */
struct notes {
    uint64_t current;
    struct nvme_cq_record cq[QUEUES + 2];
    uint64_t sq[QUEUES][1 + DEPTH];
    struct nvme_cqe posted[QUEUES + 1][DEPTH];
};

static void read_notes(const struct disk *d, struct notes *out)
{
    const struct nvme_file_map *map = d->state;

    memset(out, 0, sizeof(*out));
    out->current = map->current;
    memcpy(out->cq, map->cq, sizeof(out->cq));
    for (unsigned i = 0; i < QUEUES; i++) {
        out->sq[i][0] = map->sq[i].fetched;
        memcpy(out->sq[i] + 1, map->sq[i].number, sizeof(uint64_t) * DEPTH);
    }
    for (unsigned q = 0; q <= QUEUES; q++)
        memcpy(out->posted[q], (const void *)d->h.q[q].cq, sizeof(out->posted[q]));
}

static bool sleeps(pid_t pid)
{
    char path[32], state = '?';
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    file = fopen(path, "r");
    CHECK(file && fscanf(file, "%*d (%*[^)]) %c", &state) == 1);
    fclose(file);
    return state == 'S';
}

static void interrupt(int signal)
{
    (void)signal;
}

/* So that no call blocks for long; 0: as usual. */
static void interrupt_every(unsigned us)
{
    const struct sigaction action = { .sa_handler = interrupt };
    const struct itimerval timer = { { .tv_usec = us }, { .tv_usec = us } };

    CHECK_INT(sigaction(SIGALRM, &action, NULL), 0);
    CHECK_INT(setitimer(ITIMER_REAL, &timer, NULL), 0);
}

/* One instruction of the traced server. False: it sleeps. */
static bool step(pid_t pid)
{
    int status;

    CHECK_INT(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL), 0);
    while (waitpid(pid, &status, 0) < 0) { /* interrupted, now and then */
        CHECK_INT(errno, EINTR);
        if (sleeps(pid))
            return false;
    }
    CHECK(WIFSTOPPED(status));
    return true;
}

/* With new commands in its queues it is stopped after so many of these stores, not one more. */
static void work_by_store(struct disk *d, pid_t pid)
{
    unsigned stores = 1 + rnd(d, 16);
    struct notes before, after;
    int status;

    for (int64_t end = test_now_ms() + 2; test_now_ms() < end;)
        work(d, false);
    if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) < 0)
        test_skip("processes may not be traced here");
    CHECK_INT(ptrace(PTRACE_INTERRUPT, pid, NULL, NULL), 0);
    CHECK_INT(waitpid(pid, &status, 0), pid);
    submit_some(d);
    read_notes(d, &before);
    interrupt_every(5000);
    for (unsigned i = 0; i < STEPS_MAX && stores > 0 && step(pid); i++) {
        read_notes(d, &after);
        if (memcmp(&before, &after, sizeof(before)) == 0)
            continue;
        before = after;
        stores--;
        d->stores++;
    }
    interrupt_every(0);
    /* The host sees at once what was posted, and has its pages back. */
    work(d, false);
}

static const struct nvme_file_map *map_state(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *map = mmap(NULL, STATE_SIZE, PROT_READ, MAP_SHARED, fd, 0);

    CHECK(map != MAP_FAILED);
    close(fd);
    return map;
}

static void kill_often(const char *aio, bool shadow, bool by_message, unsigned kills,
                       void (*work_till_killed)(struct disk *d, pid_t pid))
{
    const char *image = host_image("disk.img", (uint64_t)UNITS * UNIT, 0);
    char state[128];
    const char *const args[] = { image, "--state",  state,    aio, "--queues",
                                 "4",   "--serial", "KILLED", NULL };
    const char *seed = getenv("SEED");
    struct disk *d = &disk;
    int64_t end;
    pid_t pid;

    snprintf(state, sizeof(state), "%s/state", test_tmpdir());
    d->seed = seed ? strtoull(seed, NULL, 0) : (uint64_t)now_us();
    printf("SEED=%llu\n", (unsigned long long)d->seed);
    d->h.by_message = by_message;
    pid = host_fork(&d->h, args);
    d->state = map_state(state);
    begin(d);
    if (shadow)
        CHECK_INT(host_shadow(&d->h), 0);
    for (unsigned i = 0; i < kills; i++) {
        work_till_killed(d, pid);
        host_kill(&d->h, pid, SIGKILL);
        pid = host_fork(&d->h, args);
        host_return(&d->h, QUEUES + 1);
    }
    for (end = test_now_ms() + DEADLINE_MS; !all_done(d); work(d, false))
        if (test_now_ms() > end)
            test_fail(__FILE__, __LINE__, "a command was lost");
    check_image(d, image);
    printf("%u commands, %u kills, %u stores\n", d->done, kills, d->stores);
    CHECK_INT(host_kill(&d->h, pid, SIGTERM), 0);
    munmap((void *)d->state, STATE_SIZE);
    host_forget(&d->h);
}

/* KILLS: for a longer run by hand. */
static unsigned kills(unsigned usual)
{
    const char *given = getenv("KILLS");

    return given ? (unsigned)strtoul(given, NULL, 0) : usual;
}

TEST_TIMEOUT(uring_shadow, "io-goes-on-over-100-kills-with-shadow-doorbells", 60)
{
    kill_often("--aio=auto", true, false, kills(100), work_a_while);
}

TEST_TIMEOUT(threads, "io-goes-on-over-100-kills-with-doorbells-by-message", 60)
{
    kill_often("--aio=threads", false, false, kills(100), work_a_while);
}

TEST_TIMEOUT(stores, "io-goes-on-over-25-kills-after-any-store-that-counts", 90)
{
    disk.h.posts = true;
    kill_often("--aio=auto", false, false, kills(25), work_by_store);
}

TEST_TIMEOUT(messages, "io-goes-on-over-30-kills-with-memory-by-message", 60)
{
    kill_often("--aio=auto", false, true, kills(30), work_a_while);
}
