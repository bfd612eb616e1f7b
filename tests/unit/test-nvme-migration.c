/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk moves from one server to another in the middle of its work, client to server. */
#include "nvme_host.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define IMAGE_SIZE (8u << 20)
#define BLOCK      512u
#define STREAM_MAX (1u << 20)
#define PAGES      (HOST_RAM_SIZE / NVME_PAGE)

static uint8_t stream[STREAM_MAX];

/* ---- Two disks, one RAM -------------------------------------------------------------------- */

/* b goes on with what a's driver knows, in a's RAM. */
static void share(struct nvme_host *a, struct nvme_host *b)
{
    munmap(b->ram, HOST_RAM_SIZE);
    close(b->ram_fd);
    b->ram = a->ram;
    b->ram_fd = dup(a->ram_fd);
    b->used = a->used;
    b->shadow = a->shadow;
    b->events = a->events;
    memcpy(b->q, a->q, sizeof(b->q));
    a->ram = mmap(NULL, HOST_RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, a->ram_fd, 0);
    CHECK(a->ram != MAP_FAILED);
}

static void copy_image(const char *from, const char *to)
{
    static uint8_t bytes[IMAGE_SIZE];
    int fd = open(from, O_RDONLY | O_CLOEXEC);

    CHECK_INT(pread(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
    close(fd);
    fd = open(to, O_WRONLY | O_CLOEXEC);
    CHECK_INT(pwrite(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
    close(fd);
}

static void set_state(struct nvme_host *h, enum ob_mig_state state)
{
    enum ob_mig_state now;

    CHECK_INT(ob_client_mig_state_set(h->client, state), 0);
    CHECK_INT(ob_client_mig_state_get(h->client, &now), 0);
    CHECK_INT(now, state);
}

static uint32_t save(struct nvme_host *h)
{
    int64_t before, n;

    set_state(h, OB_MIG_STATE_PRE_COPY);
    before = ob_client_mig_read(h->client, stream, STREAM_MAX);
    CHECK(before > 0);
    set_state(h, OB_MIG_STATE_STOP_COPY);
    n = ob_client_mig_read(h->client, stream + before, STREAM_MAX - (uint32_t)before);
    CHECK(n > 4096 && before + n < STREAM_MAX);
    return (uint32_t)(before + n);
}

static void load(struct nvme_host *h, uint32_t len)
{
    set_state(h, OB_MIG_STATE_RESUMING);
    for (uint32_t at = 0, n; at < len; at += n) {
        n = len - at < 10000 ? len - at : 10000;
        CHECK_INT(ob_client_mig_write(h->client, stream + at, n), 0);
    }
    set_state(h, OB_MIG_STATE_STOP);
}

/* Lets the message DMA of a waiting server through, and the others wait. */
static void expect_all(struct nvme_host *h, uint16_t qid, uint16_t first_cid, unsigned count)
{
    bool seen[64] = { false };

    for (unsigned i = 0; i < count; i++) {
        struct nvme_cqe cqe;

        CHECK_INT(host_wait(h, qid, &cqe), 0);
        CHECK((uint16_t)(cqe.cid - first_cid) < count && !seen[(uint16_t)(cqe.cid - first_cid)]);
        seen[(uint16_t)(cqe.cid - first_cid)] = true;
    }
}

/* ---- Under load ---------------------------------------------------------------------------- */

#define COMMANDS 48u
#define PIECE    16384u

/* Reads and writes that do not meet each other; what was written is in a pattern of its own. */
static uint16_t put_commands(struct nvme_host *h, uint16_t qid, uint32_t at)
{
    uint16_t first = h->q[qid].next_cid;

    for (uint32_t i = 0; i < COMMANDS; i++) {
        bool write = i % 2;
        uint64_t slba = (uint64_t)(qid * COMMANDS + i) * (PIECE / BLOCK);

        if (write)
            host_pattern(h->ram + at + i * PIECE, PIECE, slba);
        host_put(h, qid,
                 host_io(h, write ? NVME_IO_WRITE : NVME_IO_READ, slba, PIECE / BLOCK,
                         at + i * PIECE, BLOCK));
    }
    return first;
}

static void check_reads(struct nvme_host *h, const char *image, uint16_t qid, uint32_t at)
{
    static uint8_t bytes[PIECE];
    int fd = open(image, O_RDONLY | O_CLOEXEC);

    for (uint32_t i = 0; i < COMMANDS; i++) {
        CHECK_INT(pread(fd, bytes, PIECE, (off_t)(qid * COMMANDS + i) * PIECE), PIECE);
        CHECK_MEM(h->ram + at + i * PIECE, bytes, PIECE);
    }
    close(fd);
}

/* Whatever differs from shadow is in a report. */
static void check_dirty(struct nvme_host *h, const uint8_t *shadow)
{
    static uint64_t dirty[PAGES / 64];
    unsigned changed = 0, reported = 0;

    CHECK_INT(ob_client_dirty_report(h->client, HOST_RAM_BASE, HOST_RAM_SIZE, NVME_PAGE, dirty), 0);
    for (uint32_t page = 0; page < PAGES; page++) {
        bool differs = memcmp(shadow + page * NVME_PAGE, h->ram + page * NVME_PAGE, NVME_PAGE);
        bool is_dirty = dirty[page / 64] >> page % 64 & 1;

        CHECK(is_dirty || !differs);
        changed += differs;
        reported += is_dirty;
    }
    CHECK(changed > 0);
    CHECK(reported <= changed + 32); /* queues are reported whole */
}

enum doorbells { BY_MESSAGE, MAPPED, SHADOW };

/* from and to: the images; the same when the disk is handed over. */
static void move_under_load(struct nvme_host *disks, const char *from, const char *to,
                            enum doorbells kind)
{
    const char *doorbells = kind == MAPPED ? "--doorbells=mapped" : "--doorbells=trapped";
    struct nvme_host *a = &disks[0], *b = &disks[1];
    bool handed_over = strcmp(from, to) == 0;
    uint8_t *shadow = malloc(HOST_RAM_SIZE);
    uint32_t at[3], len, page;
    uint16_t first[3];
    char why[512];

    CHECK(shadow);
    host_start(a, from, "--aio=threads", doorbells);
    host_add_queue(a, 2, 64, 2);
    if (kind == SHADOW)
        CHECK_INT(host_shadow(a), 0);
    unlink(a->path);
    host_serve(b, to, "--aio=threads", doorbells, handed_over ? "--incoming" : NULL, NULL);
    host_connect(b);

    for (uint16_t q = 1; q <= 2; q++) {
        at[q] = host_pages(a, COMMANDS * PIECE / NVME_PAGE);
        first[q] = put_commands(a, q, at[q]);
    }
    memcpy(shadow, a->ram, HOST_RAM_SIZE);
    CHECK_INT(ob_client_dirty_start(a->client, NVME_PAGE, NULL, 0), 0);
    host_ring(a, 1);
    host_ring(a, 2);
    len = save(a);
    check_dirty(a, shadow);
    if (!handed_over)
        copy_image(from, to);
    host_leave(a);

    share(a, b);
    host_leave(b); /* the RAM behind the mapping is another one now */
    host_connect(b);
    load(b, len);
    set_state(b, OB_MIG_STATE_RUNNING);
    if (handed_over)
        CHECK_INT(host_try(why, sizeof(why), to, NULL), 1); /* locked again */
    host_arm(b, OB_PCI_IRQ_MSIX, 3);
    for (uint16_t q = 1; q <= 2; q++) {
        struct pollfd signal = { .fd = b->irq_fds[q], .events = POLLIN };

        CHECK_INT(poll(&signal, 1, 10000), 1);
        expect_all(b, q, first[q], COMMANDS);
    }
    for (uint16_t q = 1; q <= 2; q++)
        check_reads(b, to, q, at[q]);
    page = host_pages(b, 1);
    for (unsigned i = 0; i < 100; i++)
        CHECK_INT(host_do(b, 1, host_io(b, NVME_IO_WRITE, 1, 1, page, BLOCK), NULL), 0);
    CHECK_INT(host_identify(b, 1, 0, page), 0);
    CHECK_INT(host_end(b), 0);
    CHECK_INT(host_end(a), 0);
    free(shadow);
}

static void moves_under_load(bool by_message, bool hand_over, enum doorbells kind)
{
    static struct nvme_host disks[2];
    char from[256], to[256];

    snprintf(from, sizeof(from), "%s", host_image("from.img", IMAGE_SIZE, 1));
    snprintf(to, sizeof(to), "%s", hand_over ? from : host_image("to.img", IMAGE_SIZE, 2));
    disks[0].by_message = disks[1].by_message = by_message;
    move_under_load(disks, from, to, kind);
}

TEST_TIMEOUT(mapped, "a-disk-moves-under-load", 120)
{
    moves_under_load(false, false, BY_MESSAGE);
}

TEST_TIMEOUT(mapped_doorbells, "a-disk-moves-under-load-with-its-mapped-doorbells", 120)
{
    moves_under_load(false, false, MAPPED);
}

TEST_TIMEOUT(shadow_doorbells, "a-disk-moves-under-load-with-its-shadow-doorbells", 120)
{
    moves_under_load(false, false, SHADOW);
}

TEST_TIMEOUT(messages, "a-disk-moves-under-load-whose-client-is-reached-by-messages", 120)
{
    moves_under_load(true, false, BY_MESSAGE);
}

TEST_TIMEOUT(handed_over, "a-disk-moves-under-load-to-a-server-with-the-same-image", 120)
{
    moves_under_load(false, true, SHADOW);
}

/* ---- Who has the image --------------------------------------------------------------------- */

TEST_TIMEOUT(image_lock, "one-image-has-one-server-that-runs", 60)
{
    static struct nvme_host a, b;
    char image[256], path[sizeof(a.path)], why[512];
    uint32_t len;

    snprintf(image, sizeof(image), "%s", host_image("disk.img", IMAGE_SIZE, 1));
    host_start(&a, image, "--aio=threads");
    snprintf(path, sizeof(path), "%s/a.sock", test_tmpdir()); /* the other one's is where a's was */
    CHECK_INT(rename(a.path, path), 0);
    memcpy(a.path, path, sizeof(path));
    host_serve(&b, "--incoming", "--aio=threads", image, NULL);
    host_connect(&b);
    /* A driver that enables the disk too early. */
    host_write32(&b, NVME_REG_AQA, 0x001f001f);
    host_write32(&b, NVME_REG_CC, NVME_CC_EN | 6 << 16 | 4 << 20);
    CHECK(host_read32(&b, NVME_REG_CSTS) & NVME_CSTS_CFS);
    CHECK_INT(ob_client_reset(b.client), 0);

    len = save(&a);
    CHECK_INT(host_try(why, sizeof(why), image, NULL), 0); /* free, and then taken by nobody */
    load(&b, len);
    set_state(&a, OB_MIG_STATE_RUNNING); /* the move is called off */
    CHECK_INT(ob_peer_errno(ob_client_mig_state_set(b.client, OB_MIG_STATE_RUNNING)), EBUSY);
    set_state(&a, OB_MIG_STATE_STOP_COPY);
    set_state(&b, OB_MIG_STATE_RUNNING); /* the second attempt */
    CHECK_INT(ob_peer_errno(ob_client_mig_state_set(a.client, OB_MIG_STATE_RUNNING)), EBUSY);

    /* Left by its client, the first one runs without the image, and fails for the next one. */
    host_leave(&a);
    host_connect(&a);
    CHECK(host_read32(&a, NVME_REG_CSTS) & NVME_CSTS_CFS);
    CHECK_INT(host_end(&b), 0);
    CHECK_INT(ob_client_reset(a.client), 0);
    CHECK(!(host_read32(&a, NVME_REG_CSTS) & NVME_CSTS_CFS));
    CHECK_INT(host_end(&a), 0);
}

/* ---- What waits ---------------------------------------------------------------------------- */

TEST_TIMEOUT(waiting, "completions-without-room-event-requests-and-identity-move", 60)
{
    static struct nvme_host a, b;
    const struct nvme_sqe flush = { .opcode = NVME_IO_FLUSH, .nsid = 1 };
    uint8_t name[2][20];
    struct nvme_cqe cqe;
    uint32_t len, page;
    uint16_t first, aer;

    host_serve(&a, "mem:4M", NULL);
    host_connect(&a);
    host_enable(&a);
    host_add_queue(&a, 1, 4, 1);
    unlink(a.path);
    host_serve(&b, "mem:4M", NULL);
    host_connect(&b);
    page = host_pages(&a, 1);
    CHECK_INT(host_identify(&a, 1, 0, page), 0);
    memcpy(name[0], a.ram + page + 4, 20);
    CHECK_INT(host_feature(&a, NVME_ADM_SET_FEATURES, NVME_FEAT_COALESCING, 0x0507, NULL), 0);
    aer = host_submit(&a, 0, (struct nvme_sqe){ .opcode = NVME_ADM_ASYNC_EVENT });
    first = a.q[1].next_cid;
    for (unsigned i = 0; i < 6; i++) {
        host_submit(&a, 1, flush);
        if (i == 2) /* three are posted, and not taken: the queue is full */
            for (int64_t end = test_now_ms() + 10000; !(a.q[1].cq[2].status & 1);)
                CHECK(test_now_ms() < end);
    }
    len = save(&a);
    host_leave(&a);
    share(&a, &b);
    host_leave(&b);
    host_connect(&b);
    load(&b, len);
    set_state(&b, OB_MIG_STATE_RUNNING);
    host_arm(&b, OB_PCI_IRQ_MSIX, 2);
    expect_all(&b, 1, first, 6);
    CHECK_INT(host_identify(&b, 1, 0, page), 0);
    memcpy(name[1], b.ram + page + 4, 20);
    CHECK_MEM(name[0], name[1], 20);
    CHECK_INT(host_feature(&b, NVME_ADM_GET_FEATURES, NVME_FEAT_COALESCING, 0, &len), 0);
    CHECK_INT(len, 0x0507);
    CHECK(!host_poll(&b, 0, 0, &cqe));
    /* A doorbell of no queue: an event. */
    host_write32(&b, 0x1000 + 4 * 20, 1);
    CHECK_INT(host_wait(&b, 0, &cqe), 0);
    CHECK_INT(cqe.cid, aer);
    CHECK_INT(host_end(&b), 0);
    CHECK_INT(host_end(&a), 0);
}

TEST(stopped, "a-stopped-disk-does-nothing-until-it-runs-again")
{
    static struct nvme_host h;
    struct nvme_cqe cqe;
    uint32_t page;

    host_start(&h, "mem:4M");
    page = host_pages(&h, 1);
    set_state(&h, OB_MIG_STATE_STOP);
    host_submit(&h, 1, host_io(&h, NVME_IO_READ, 0, 1, page, BLOCK));
    CHECK(!host_poll(&h, 1, 50, &cqe));
    CHECK_INT(ob_client_dma_unmap(h.client, HOST_RAM_BASE, HOST_RAM_SIZE), 0); /* nothing is held */
    CHECK_INT(ob_client_dma_map(h.client, HOST_RAM_BASE, HOST_RAM_SIZE, OB_DMA_READ | OB_DMA_WRITE,
                                h.ram_fd, 0),
              0);
    set_state(&h, OB_MIG_STATE_RUNNING);
    CHECK_INT(host_wait(&h, 1, &cqe), 0);
    set_state(&h, OB_MIG_STATE_STOP);
    host_write32(&h, NVME_REG_CC, 0x00460000 | 1u << 14); /* reset and shutdown */
    CHECK_INT(host_read32(&h, NVME_REG_CSTS), NVME_CSTS_SHST_OCCURRING);
    set_state(&h, OB_MIG_STATE_RUNNING);
    host_wait_reg(&h, NVME_REG_CSTS, NVME_CSTS_SHST_MASK, NVME_CSTS_SHST_COMPLETE);
    CHECK_INT(host_end(&h), 0);
}

/* The kernel says once that it has lost something: to the flush before the image is given away. */
TEST(lost, "a-move-that-fails-as-data-was-lost-is-not-forgotten")
{
    const struct nvme_sqe flush = { .opcode = NVME_IO_FLUSH, .nsid = 1 };
    struct nvme_host h = { 0 };

    host_start(&h, "--aio=threads", host_image("disk.img", IMAGE_SIZE, 0));
    CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_WRITE, 0, 8, host_pages(&h, 1), BLOCK), NULL), 0);
    host_calls.fail_syncs = EIO;
    CHECK(ob_client_mig_state_set(h.client, OB_MIG_STATE_STOP_COPY) < 0);
    host_calls.fail_syncs = 0;
    set_state(&h, OB_MIG_STATE_RUNNING);
    CHECK_INT(host_do(&h, 1, flush, NULL), NVME_WRITE_FAULT);
    CHECK_INT(host_end(&h), -EIO);
}

TEST(left, "a-client-that-leaves-in-between-finds-a-disk-that-runs-or-wants-a-reset")
{
    static const enum ob_mig_state states[] = { OB_MIG_STATE_STOP, OB_MIG_STATE_STOP_COPY,
                                                OB_MIG_STATE_PRE_COPY, OB_MIG_STATE_RESUMING };
    static struct nvme_host h;
    const uint16_t command = 6; /* memory, bus master */
    enum ob_mig_state state;
    uint32_t page;

    host_start(&h, "mem:4M");
    page = host_pages(&h, 1);
    for (unsigned i = 0; i < 4; i++) {
        CHECK_INT(host_do(&h, 1, host_io(&h, NVME_IO_READ, 0, 1, page, BLOCK), NULL), 0);
        set_state(&h, states[i]);
        host_leave(&h);
        host_connect(&h);
        CHECK_INT(ob_client_mig_state_get(h.client, &state), 0);
        CHECK_INT(state, i < 3 ? OB_MIG_STATE_RUNNING : OB_MIG_STATE_ERROR);
        host_arm(&h, OB_PCI_IRQ_MSIX, 2); /* which the controller waits for */
    }
    CHECK_INT(ob_client_reset(h.client), 0);
    CHECK_INT(ob_client_region_write(h.client, OB_PCI_REGION_CONFIG, 4, &command, 2), 0);
    host_enable(&h);
    CHECK_INT(host_identify(&h, 1, 0, page), 0);
    CHECK_INT(host_end(&h), 0);
}

/* ---- Wrong states -------------------------------------------------------------------------- */

TEST(other, "the-state-of-another-disk-is-refused")
{
    static const char *const others[][3] = {
        { "mem:8M", NULL, NULL },
        { "mem:4M", "--lba=4096", NULL },
        { "mem:4M", "--queues=3", NULL },
        { "mem:4M", "--interrupts=msi", NULL },
    };
    static struct nvme_host a;
    uint32_t len;

    host_start(&a, "mem:4M");
    len = save(&a);
    unlink(a.path);
    for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        struct nvme_host b = { 0 };
        enum ob_mig_state state;

        host_serve(&b, others[i][0], others[i][1], NULL);
        host_connect(&b);
        set_state(&b, OB_MIG_STATE_RESUMING);
        CHECK_INT(ob_client_mig_write(b.client, stream, len), 0);
        CHECK_INT(ob_peer_errno(ob_client_mig_state_set(b.client, OB_MIG_STATE_STOP)), EINVAL);
        CHECK_INT(ob_client_mig_state_get(b.client, &state), 0);
        CHECK_INT(state, OB_MIG_STATE_ERROR);
        CHECK_INT(ob_client_reset(b.client), 0);
        host_enable(&b);
        CHECK_INT(host_end(&b), 0);
    }
    CHECK_INT(host_end(&a), 0);
}

static void seal(uint8_t *state, uint32_t len)
{
    uint64_t sum = 0xcbf29ce484222325u;

    for (uint32_t i = 0; i < len - 8; i++)
        sum = (sum ^ state[i]) * 0x100000001b3u;
    memcpy(state + len - 8, &sum, 8);
}

/* With a checksum that is right, so that the device's own checks are all there is. */
TEST_TIMEOUT(wrong, "a-state-with-any-wrong-byte-is-refused-or-harmless", 120)
{
    static uint8_t changed[STREAM_MAX];
    static struct nvme_host h;
    uint32_t seed = 5, len, taken = 0;

    host_start(&h, "mem:4M");
    host_submit(&h, 0, (struct nvme_sqe){ .opcode = NVME_ADM_ASYNC_EVENT });
    len = save(&h);
    for (unsigned round = 0; round < 3000; round++) {
        enum ob_mig_state state;

        memcpy(changed, stream, len);
        for (unsigned i = 0; i <= round % 3; i++) {
            seed = seed * 1664525u + 1013904223u;
            /* most of the state is the error log: it is not interesting */
            uint32_t room = round % 2 ? len - 32 : 1200;
            changed[24 + (seed >> 8) % (room - 24)] = (uint8_t)(seed >> 4);
        }
        seal(changed, len);
        CHECK_INT(ob_client_reset(h.client), 0);
        set_state(&h, OB_MIG_STATE_RESUMING);
        ob_client_mig_write(h.client, changed, len);
        if (ob_client_mig_state_set(h.client, OB_MIG_STATE_RUNNING) == 0)
            taken++;
        CHECK_INT(ob_client_mig_state_get(h.client, &state), 0);
        CHECK(state == OB_MIG_STATE_RUNNING || state == OB_MIG_STATE_ERROR);
    }
    CHECK(taken > 0 && taken < 3000);
    CHECK_INT(ob_client_reset(h.client), 0);
    host_enable(&h);
    CHECK_INT(host_end(&h), 0);
}
