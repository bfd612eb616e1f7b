/* SPDX-License-Identifier: BSD-3-Clause */
/* A card moves from one server to another while it works, client to server. */
#include "harness.h"
#include "served.h"

#include <errno.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE        4096u
#define RAM_PAGES   512u
#define RAM_BYTES   (RAM_PAGES * PAGE)
#define RAM_BASE    0x100000ull
#define RAM_SPLIT   (200 * PAGE) /* from here on it is reached by messages */
#define CARD_BUFFER 0x40000u
#define COMMAND     (OB_PCI_REGION_CONFIG)

struct world {
    int fd;
    uint8_t *ram;
    struct served card;
};

static int dma_read(void *opaque, uint64_t address, void *data, uint32_t count)
{
    struct world *w = opaque;

    memcpy(data, w->ram + (address - RAM_BASE), count);
    return 0;
}

static int dma_write(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    struct world *w = opaque;

    memcpy(w->ram + (address - RAM_BASE), data, count);
    return 0;
}

/* The card sees RAM, half of it by messages. from: whose RAM it is; NULL: a new one. */
static void start(struct world *w, const struct world *from, const char *latency_ms)
{
    const char *const args[] = { "--latency-ms", latency_ms, NULL };
    const struct ob_client_options options = {
        .size = sizeof(options), .dma_read = dma_read, .dma_write = dma_write, .opaque = w
    };
    const uint32_t rw = OB_DMA_READ | OB_DMA_WRITE;

    w->fd = from ? dup(from->fd) : memfd_create("ram", MFD_CLOEXEC);
    CHECK_INT(ftruncate(w->fd, RAM_BYTES), 0);
    w->ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, 0);
    CHECK(w->ram != MAP_FAILED);
    served_start(&w->card, &ob_served_edu, args, &options);
    CHECK_INT(ob_client_dma_map(w->card.client, RAM_BASE, RAM_SPLIT, rw, w->fd, 0), 0);
    CHECK_INT(
        ob_client_dma_map(w->card.client, RAM_BASE + RAM_SPLIT, RAM_BYTES - RAM_SPLIT, rw, -1, 0),
        0);
}

static void end(struct world *w)
{
    served_stop(&w->card);
    munmap(w->ram, RAM_BYTES);
    close(w->fd);
}

static void start_dma(struct world *w, uint64_t ram, uint32_t card, uint32_t count, bool to_ram)
{
    served_write(&w->card, 0, 0x80, 8, to_ram ? CARD_BUFFER + card : RAM_BASE + ram);
    served_write(&w->card, 0, 0x88, 8, to_ram ? RAM_BASE + ram : CARD_BUFFER + card);
    served_write(&w->card, 0, 0x90, 8, count);
    served_write(&w->card, 0, 0x98, 8, 1u | (to_ram ? 2u : 0) | 4u);
}

static void finish_dma(struct world *w)
{
    int64_t deadline = test_now_ms() + 10000;

    while (served_read(&w->card, 0, 0x98, 8) & 1)
        CHECK(test_now_ms() < deadline);
}

/* The whole stream, from where it is. */
static uint32_t read_stream(struct world *w, uint8_t *stream, uint32_t room)
{
    int64_t n = ob_client_mig_read(w->card.client, stream, room);

    CHECK(n >= 0 && n < room);
    return (uint32_t)n;
}

static bool bit(const uint64_t *bitmap, uint64_t n)
{
    return bitmap[n / 64] >> n % 64 & 1;
}

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* Random transfers; the pages that they wrote are entered into expected. */
static void random_io(struct world *w, uint32_t *seed, unsigned rounds, uint64_t *expected)
{
    for (unsigned i = 0; i < rounds; i++) {
        uint32_t count = 1 + next_random(seed) % PAGE;
        uint32_t ram = next_random(seed) % (RAM_BYTES - count);
        uint32_t card = next_random(seed) % (PAGE - count + 1);
        bool to_ram = next_random(seed) & 1;

        start_dma(w, ram, card, count, to_ram);
        finish_dma(w);
        for (uint32_t page = ram / PAGE; to_ram && page <= (ram + count - 1) / PAGE; page++)
            expected[page / 64] |= 1ull << page % 64;
    }
}

TEST(probe, "the-client-finds-out-what-the-server-can-do")
{
    struct served edu, plain;
    uint64_t flags;

    served_start(&edu, &ob_served_edu, NULL, NULL);
    served_start(&plain, &ob_served_null, NULL, NULL);
    CHECK(ob_client_caps(edu.client)->migration);
    CHECK(!ob_client_caps(plain.client)->migration);
    CHECK_INT(ob_client_migration_info(edu.client, &flags), 0);
    CHECK_INT(flags, OB_MIG_STOP_COPY | OB_MIG_PRE_COPY);
    CHECK_INT(ob_client_feature_probe(edu.client, OB_FEATURE_MIG_DEVICE_STATE,
                                      OB_FEATURE_GET | OB_FEATURE_SET),
              0);
    CHECK_INT(
        ob_peer_errno(ob_client_feature_probe(edu.client, OB_FEATURE_MIGRATION, OB_FEATURE_SET)),
        EINVAL);
    CHECK_INT(ob_peer_errno(ob_client_migration_info(plain.client, &flags)), EINVAL);
    CHECK_INT(ob_client_feature_probe(plain.client, OB_FEATURE_DMA_LOGGING_START, OB_FEATURE_SET),
              0);
    served_stop(&edu);
    served_stop(&plain);
}

TEST_TIMEOUT(dirty, "reports-are-exact-for-mapped-memory-and-for-messages", 60)
{
    static uint64_t expected[RAM_PAGES / 64], found[RAM_PAGES / 64];
    uint32_t seed = 7;
    struct world w;

    start(&w, NULL, "0");
    served_write(&w.card, COMMAND, 4, 2, 6);
    CHECK_INT(ob_client_dirty_report(w.card.client, RAM_BASE, RAM_BYTES, PAGE, found), -EINVAL);
    CHECK_INT(ob_client_dirty_start(w.card.client, PAGE, NULL, 0), 0);
    for (unsigned round = 0; round < 5; round++) {
        memset(expected, 0, sizeof(expected));
        random_io(&w, &seed, 20, expected);
        CHECK_INT(ob_client_dirty_report(w.card.client, RAM_BASE, RAM_BYTES, PAGE, found), 0);
        CHECK_MEM(found, expected, sizeof(found));
    }
    CHECK_INT(ob_client_dirty_stop(w.card.client), 0);
    end(&w);
}

TEST_TIMEOUT(sizes, "reports-are-converted-to-any-page-size", 60)
{
    static const uint64_t sizes[] = { 512, 4096, 8192, 65536, 1 << 20 };
    static uint64_t found[RAM_BYTES / 512 / 64];
    struct world w;

    start(&w, NULL, "0");
    served_write(&w.card, COMMAND, 4, 2, 6);
    for (unsigned log = 0; log < 5; log++) {
        for (unsigned i = 0; i < 5; i++) {
            uint64_t page = sizes[i], start_at = 100 * PAGE, end_at = 101 * PAGE - 1;

            CHECK_INT(ob_client_dirty_start(w.card.client, sizes[log], NULL, 0), 0);
            start_dma(&w, start_at + 7, 0, 5, true);
            finish_dma(&w);
            if (sizes[log] > PAGE) { /* that is how the server tells it */
                start_at -= start_at % sizes[log];
                end_at = start_at + sizes[log] - 1;
            }
            CHECK_INT(ob_client_dirty_report(w.card.client, RAM_BASE, RAM_BYTES, page, found), 0);
            for (uint64_t n = 0; n < RAM_BYTES / page; n++)
                CHECK_INT(bit(found, n), n >= start_at / page && n <= end_at / page);
            CHECK_INT(ob_client_dirty_stop(w.card.client), 0);
        }
    }
    end(&w);
}

TEST(unmap, "unmapping-brings-the-last-report")
{
    uint64_t found[RAM_PAGES / 64 + 1];
    struct world w;

    start(&w, NULL, "0");
    served_write(&w.card, COMMAND, 4, 2, 6);
    CHECK_INT(ob_client_dma_unmap_dirty(w.card.client, RAM_BASE, RAM_SPLIT, PAGE, found), -EINVAL);
    CHECK_INT(ob_client_dirty_start(w.card.client, PAGE, NULL, 0), 0);
    start_dma(&w, 70 * PAGE, 0, 1, true);
    finish_dma(&w);
    CHECK_INT(ob_client_dma_unmap_dirty(w.card.client, RAM_BASE, RAM_SPLIT, 2 * PAGE, found), 0);
    CHECK_INT(found[0], 1ull << 35);
    CHECK_INT(found[1], 0);
    CHECK_INT(
        ob_peer_errno(ob_client_dma_unmap_dirty(w.card.client, RAM_BASE, RAM_SPLIT, PAGE, found)),
        ENOENT);
    end(&w);
}

/* Everything at once: the log, reading while it runs, a transfer and a computation under way when
 * it is stopped, and the other card finishing them. */
TEST_TIMEOUT(moves, "a-card-moves-in-the-middle-of-its-work", 60)
{
    static uint8_t stream[1 << 17], shadow[RAM_BYTES];
    static uint64_t expected[RAM_PAGES / 64], found[RAM_PAGES / 64];
    struct world from, to;
    uint32_t seed = 99, len;
    int irq;

    start(&from, NULL, "200");
    start(&to, &from, "0");
    for (uint32_t i = 0; i < RAM_BYTES; i++)
        from.ram[i] = (uint8_t)(i * 31 >> 7);
    served_write(&from.card, COMMAND, 4, 2, 6);
    served_write(&from.card, 0, 0x04, 4, 0x12345678);
    start_dma(&from, 0, 0, PAGE, false);
    finish_dma(&from);
    memcpy(shadow, from.ram, RAM_BYTES);
    CHECK_INT(ob_client_dirty_start(from.card.client, PAGE, NULL, 0), 0);
    CHECK_INT(ob_client_mig_state_set(from.card.client, OB_MIG_STATE_PRE_COPY), 0);
    len = read_stream(&from, stream, sizeof(stream));
    random_io(&from, &seed, 10, expected);

    served_write(&from.card, 0, 0x20, 4, 0x80);
    served_write(&from.card, 0, 0x08, 4, 10);
    start_dma(&from, 300 * PAGE, 0, PAGE, true);
    CHECK_INT(ob_client_mig_state_set(from.card.client, OB_MIG_STATE_STOP_COPY), 0);
    CHECK_INT(served_read(&from.card, 0, 0x98, 8) & 1, 1);
    CHECK_INT(served_read(&from.card, 0, 0x20, 4), 0x81);
    len += read_stream(&from, stream + len, (uint32_t)sizeof(stream) - len);
    CHECK_INT(ob_client_dirty_report(from.card.client, RAM_BASE, RAM_BYTES, PAGE, found), 0);
    CHECK_MEM(found, expected, sizeof(found));
    for (uint32_t page = 0; page < RAM_PAGES; page++)
        CHECK(bit(found, page) || memcmp(shadow + page * PAGE, from.ram + page * PAGE, PAGE) == 0);

    CHECK_INT(ob_client_mig_state_set(to.card.client, OB_MIG_STATE_RESUMING), 0);
    CHECK_INT(ob_client_mig_write(to.card.client, stream, len), 0);
    CHECK_INT(ob_client_mig_state_set(to.card.client, OB_MIG_STATE_STOP), 0);
    irq = served_irq(&to.card, OB_PCI_IRQ_INTX);
    CHECK_INT(served_read(&to.card, 0, 0x04, 4), ~0x12345678u);
    CHECK(!served_signalled(irq, 0));
    CHECK_INT(ob_client_mig_state_set(to.card.client, OB_MIG_STATE_RUNNING), 0);
    finish_dma(&to);
    CHECK_INT(served_read(&to.card, 0, 0x08, 4), 3628800);
    CHECK_INT(served_read(&to.card, 0, 0x24, 4), 0x101);
    CHECK(served_signalled(irq, 10000));
    start_dma(&to, 301 * PAGE, 0, PAGE, true);
    finish_dma(&to);
    CHECK_MEM(to.ram + 300 * PAGE, to.ram + 301 * PAGE, PAGE);
    CHECK_INT(ob_client_mig_state_set(from.card.client, OB_MIG_STATE_STOP), 0);
    end(&from);
    end(&to);
    close(irq);
}

TEST(refused, "the-state-of-another-card-or-version-is-refused")
{
    static uint8_t stream[1 << 17];
    const char *const mask[] = { "--dma-mask", "0xffff", NULL };
    enum ob_mig_state state;
    struct served from, to;
    int64_t len;

    served_start(&from, &ob_served_edu, NULL, NULL);
    served_start(&to, &ob_served_edu, mask, NULL);
    CHECK_INT(ob_client_mig_state_set(from.client, OB_MIG_STATE_STOP_COPY), 0);
    len = ob_client_mig_read(from.client, stream, sizeof(stream));
    CHECK(len > 0);
    CHECK_INT(ob_client_mig_state_set(to.client, OB_MIG_STATE_RESUMING), 0);
    CHECK_INT(ob_client_mig_write(to.client, stream, (uint32_t)len), 0);
    CHECK_INT(ob_peer_errno(ob_client_mig_state_set(to.client, OB_MIG_STATE_RUNNING)), EINVAL);
    CHECK_INT(ob_client_mig_state_get(to.client, &state), 0);
    CHECK_INT(state, OB_MIG_STATE_ERROR);
    CHECK_INT(ob_client_reset(to.client), 0);
    CHECK_INT(ob_client_mig_state_get(to.client, &state), 0);
    CHECK_INT(state, OB_MIG_STATE_RUNNING);
    served_stop(&from);
    served_stop(&to);
}
