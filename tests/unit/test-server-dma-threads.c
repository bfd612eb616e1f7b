/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * References into the client's memory from threads of the device, while the server's thread (this
 * one) maps and unmaps.
 */
#include "harness.h"
#include "peer.h"
#include "server/internal.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define RW    (OB_DMA_READ | OB_DMA_WRITE)
#define PAGE  4096u
#define SLOTS 2000u /* several leaves of the table */
#define APART (4u * PAGE)
#define BASE  (1ull << 40)

enum { READERS = 2, HELD_MAX = 100, RUN_MS = 1500 };

static uint32_t rnd(uint64_t *state, uint32_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % below;
}

/* Where a mapping may be, and what the model says of it. version is odd while that changes. */
struct slot {
    uint32_t version, pages; /* 0 pages: not mapped */
    uint32_t users;          /* that have a reference */
};

struct world {
    struct ob_server *server;
    struct peer peer;
    int fd;
    uint8_t *memory;                       /* of fd */
    struct ob_dma_map *maps[SLOTS], *gone; /* where there is no client */
    struct slot slots[SLOTS];
    bool stop;
};

struct reader {
    struct world *world;
    pthread_t thread;
    uint64_t state;
    struct ob_dma_ref refs[HELD_MAX];
    uint32_t at[HELD_MAX];
    unsigned first, count; /* the refs it holds, a ring */
    uint64_t agreed;       /* look-ups that could be compared with the model */
};

static struct reader readers[READERS];

static uint64_t address_of(uint32_t slot)
{
    return BASE + (uint64_t)slot * APART;
}

/* The other way round, so that nothing is found in the right place by way of the wrong mapping. */
static uint64_t offset_of(uint32_t slot)
{
    return (uint64_t)(SLOTS - 1 - slot) * APART;
}

static uint32_t load(const uint32_t *value)
{
    return __atomic_load_n(value, __ATOMIC_SEQ_CST);
}

static void put_oldest(struct reader *r)
{
    unsigned i = r->first++ % HELD_MAX;

    __atomic_sub_fetch(&r->world->slots[r->at[i]].users, 1, __ATOMIC_SEQ_CST);
    ob_dma_put(r->world->server, &r->refs[i]);
    r->count--;
}

/* Every page of the memory begins with its number, counted along the addresses. */
static void look_up(struct reader *r)
{
    uint32_t at = rnd(&r->state, SLOTS), page = rnd(&r->state, 4);
    struct slot *slot = &r->world->slots[at];
    unsigned i = (r->first + r->count) % HELD_MAX;
    uint32_t before = load(&slot->version), pages = load(&slot->pages);
    int rc = ob_dma_get(r->world->server, address_of(at) + page * PAGE, PAGE,
                        rnd(&r->state, 2) ? RW : OB_DMA_READ, &r->refs[i]);

    if (rc == 0) {
        __atomic_add_fetch(&slot->users, 1, __ATOMIC_SEQ_CST);
        CHECK_INT(*(volatile uint32_t *)r->refs[i].ptr, at * 4 + page);
        r->at[i] = at;
        r->count++;
    }
    if (before % 2 == 0 && load(&slot->version) == before) {
        CHECK_INT(rc, page < pages ? 0 : -EFAULT);
        __atomic_fetch_add(&r->agreed, 1, __ATOMIC_RELAXED);
    } else {
        CHECK(rc == 0 || rc == -EFAULT);
    }
}

static void *read_and_check(void *opaque)
{
    struct reader *r = opaque;

    while (!__atomic_load_n(&r->world->stop, __ATOMIC_RELAXED)) {
        unsigned keep = rnd(&r->state, 200) ? r->count : rnd(&r->state, HELD_MAX);

        look_up(r);
        while (r->count > keep)
            put_oldest(r);
        if (r->count == HELD_MAX)
            put_oldest(r);
    }
    while (r->count > 0)
        put_oldest(r);
    return NULL;
}

static void begin(struct slot *slot)
{
    __atomic_add_fetch(&slot->version, 1, __ATOMIC_SEQ_CST);
}

static void end(struct slot *slot, uint32_t pages)
{
    __atomic_store_n(&slot->pages, pages, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&slot->version, 1, __ATOMIC_SEQ_CST);
}

static void change(struct world *w, uint64_t *state, bool growing)
{
    uint32_t at = rnd(state, SLOTS), pages = 1 + rnd(state, 4);
    struct slot *slot = &w->slots[at];

    if (slot->pages == 0 && (growing || rnd(state, 4) == 0)) {
        begin(slot);
        CHECK_INT(peer_map(&w->peer, address_of(at), pages * PAGE, RW, w->fd, offset_of(at)), 0);
        end(slot, pages);
    } else if (slot->pages > 0 && (!growing || rnd(state, 4) == 0)) {
        begin(slot);
        CHECK_INT(peer_unmap(&w->peer, address_of(at), slot->pages * PAGE, 0), 0);
        CHECK_INT(load(&slot->users), 0); /* the answer waited for them */
        end(slot, 0);
    } else if (slot->pages > 0) {
        CHECK_INT(peer_map(&w->peer, address_of(at) + (slot->pages - 1) * PAGE, PAGE, RW, -1, 0),
                  -EEXIST);
    }
}

/* The model and the table, all of them. */
static void compare(struct world *w)
{
    for (uint32_t at = 0; at < SLOTS; at++)
        for (uint32_t page = 0; page < 4; page++) {
            uint32_t number = 0;
            int rc = ob_dma_read(w->server, address_of(at) + page * PAGE, &number, sizeof(number));

            CHECK_INT(rc, page < w->slots[at].pages ? 0 : -EFAULT);
            CHECK_INT(number, rc == 0 ? at * 4 + page : 0);
        }
}

/* The client leaves, with memory in use, and another one comes. */
static void change_client(struct world *w)
{
    int64_t deadline = test_now_ms() + 20000;

    for (uint32_t at = 0; at < SLOTS; at++)
        begin(&w->slots[at]);
    peer_close(&w->peer);
    peer_attach(&w->peer, w->server);
    for (uint32_t at = 0; at < SLOTS; at++) {
        while (load(&w->slots[at].users) > 0 && test_now_ms() < deadline)
            sched_yield();
        CHECK_INT(load(&w->slots[at].users), 0);
        end(&w->slots[at], 0);
    }
}

static void toggle_logging(struct peer *peer, bool on)
{
    struct {
        struct ob_wire_feature head;
        struct ob_wire_logging_start start;
    } wire = { { on ? sizeof(wire) : sizeof(wire.head),
                 OB_FEATURE_SET |
                     (on ? OB_FEATURE_DMA_LOGGING_START : OB_FEATURE_DMA_LOGGING_STOP) },
               { PAGE, 0, 0 } };

    CHECK_INT(peer_call(peer, OB_CMD_DEVICE_FEATURE, &wire, wire.head.argsz, NULL), 0);
}

/* Everything is decided by the seed but how the threads meet. */
static void run_client(struct world *w, uint64_t *state)
{
    int64_t end_ms = test_now_ms() + RUN_MS;
    bool logging = false;

    peer_attach(&w->peer, w->server);
    for (uint32_t i = 1; test_now_ms() < end_ms; i++) {
        change(w, state, i / 4000 % 2 == 0);
        if (i % 300 == 0)
            toggle_logging(&w->peer, logging = !logging);
        if (i % 1000 == 0)
            compare(w);
        if (i % 10000 == 0) {
            change_client(w);
            logging = false;
        }
    }
}

/* Mappings that are gone go back as soon as nobody holds them, to become others. */
static void recycle(struct world *w)
{
    struct ob_dma_map **link = &w->gone, *map;

    for (map = *link; map; map = map->next)
        map->held = false;
    ob_dma_holds_mark(&w->server->dma);
    while ((map = *link) != NULL) {
        if (map->held) {
            link = &map->next;
            continue;
        }
        *link = map->next;
        map->ptr = NULL; /* who has a reference nevertheless will notice */
        ob_dma_map_recycle(&w->server->dma, map);
    }
}

/* As change(), but without a client, many times faster. */
static void change_table(struct world *w, uint64_t *state, bool growing)
{
    uint32_t at = rnd(state, SLOTS), pages = 1 + rnd(state, 4);
    struct ob_dma_table *table = &w->server->dma;
    struct slot *slot = &w->slots[at];
    struct ob_dma_map *map = w->maps[at];

    if (slot->pages == 0 && (growing || rnd(state, 4) == 0)) {
        begin(slot);
        w->maps[at] = map = ob_dma_map_alloc(table);
        CHECK(map);
        __atomic_store_n(&map->address, address_of(at), __ATOMIC_RELAXED);
        __atomic_store_n(&map->size, pages * PAGE, __ATOMIC_RELAXED);
        map->ptr = w->memory + offset_of(at);
        map->prot = RW;
        map->mode = OB_DMA_BY_MMAP;
        CHECK_INT(ob_dma_table_insert(table, map), 0);
        end(slot, pages);
    } else if (slot->pages > 0 && (!growing || rnd(state, 4) == 0)) {
        begin(slot);
        ob_dma_table_take_out(table, map);
        map->next = w->gone;
        w->gone = map;
        end(slot, 0);
    }
}

/* A reader stands still wherever it is, until mappings have become others; or not so long, as it
 * may have the lock. */
static uint32_t changes;

static void on_pause(int sig)
{
    uint32_t from = load(&changes);

    (void)sig;
    for (unsigned i = 0; load(&changes) - from < 1000 && i < 100; i++)
        sched_yield();
}

static void run_table(struct world *w, uint64_t *state)
{
    const struct sigaction action = { .sa_handler = on_pause, .sa_flags = SA_RESTART };
    int64_t end_ms = test_now_ms() + RUN_MS;

    CHECK_INT(sigaction(SIGUSR1, &action, NULL), 0);
    for (uint32_t i = 1; i % 1000 || test_now_ms() < end_ms; i++) {
        change_table(w, state, i / 8000 % 2 == 0);
        if (i % 16 == 0)
            recycle(w);
        if (i % 5000 == 0)
            CHECK_INT(pthread_kill(readers[rnd(state, READERS)].thread, SIGUSR1), 0);
        __atomic_store_n(&changes, i, __ATOMIC_SEQ_CST);
    }
}

static void number_pages(struct world *w)
{
    const size_t size = (size_t)SLOTS * APART;

    w->fd = peer_memfd(size);
    w->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, 0);
    CHECK(w->memory != MAP_FAILED);
    for (uint32_t i = 0; i < SLOTS * 4; i++)
        memcpy(w->memory + offset_of(i / 4) + i % 4 * PAGE, &i, sizeof(i));
}

/* It may have had no CPU until now. */
static void await_agreement(const struct reader *r)
{
    int64_t until_ms = test_now_ms() + 20000;

    while (__atomic_load_n(&r->agreed, __ATOMIC_RELAXED) == 0) {
        CHECK(test_now_ms() < until_ms);
        sched_yield();
    }
}

static void run_readers(struct world *w, void (*run)(struct world *w, uint64_t *state))
{
    const char *seed = getenv("OUTBOARD_SEED");
    uint64_t state = seed ? strtoull(seed, NULL, 10) : (uint64_t)test_now_ms();

    printf("OUTBOARD_SEED=%llu\n", (unsigned long long)state);
    number_pages(w);
    w->server = peer_server_new(NULL, NULL);
    for (unsigned i = 0; i < READERS; i++) {
        readers[i] = (struct reader){ .world = w, .state = state + i + 1 };
        CHECK_INT(pthread_create(&readers[i].thread, NULL, read_and_check, &readers[i]), 0);
    }
    run(w, &state);
    for (unsigned i = 0; i < READERS; i++)
        await_agreement(&readers[i]);
    __atomic_store_n(&w->stop, true, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < READERS; i++)
        CHECK_INT(pthread_join(readers[i].thread, NULL), 0);
}

static void end_world(struct world *w)
{
    ob_server_free(w->server);
    munmap(w->memory, (size_t)SLOTS * APART);
    close(w->fd);
}

TEST(random_changes, "threads-find-what-is-mapped-while-that-changes")
{
    static struct world w;

    run_readers(&w, run_client);
    compare(&w);
    peer_close(&w.peer);
    end_world(&w);
}

TEST(fast_changes, "threads-find-what-is-in-the-table-while-that-changes")
{
    static struct world w;

    run_readers(&w, run_table);
    end_world(&w);
}

/* ---- One thing at a time ------------------------------------------------------------------ */

struct fixture {
    struct ob_server *server;
    struct peer peer;
    struct ob_dma_ref ref;
    int fd;
};

static void start(struct fixture *f)
{
    f->server = peer_server_new(NULL, NULL);
    f->fd = peer_memfd(16 * PAGE);
    peer_attach(&f->peer, f->server);
    CHECK_INT(peer_map(&f->peer, BASE, 16 * PAGE, RW, f->fd, 0), 0);
}

static void finish(struct fixture *f)
{
    peer_close(&f->peer);
    ob_server_free(f->server);
    close(f->fd);
}

static void *get_and_write(void *opaque)
{
    struct fixture *f = opaque;

    CHECK_INT(ob_dma_get(f->server, BASE + 3 * PAGE, 2 * PAGE, RW, &f->ref), 0);
    memset(f->ref.ptr, 1, 2 * PAGE);
    return NULL;
}

static void *put(void *opaque)
{
    struct fixture *f = opaque;

    ob_dma_put(f->server, &f->ref);
    return NULL;
}

static void in_thread(struct fixture *f, void *(*body)(void *opaque))
{
    pthread_t thread;

    CHECK_INT(pthread_create(&thread, NULL, body, f), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
}

TEST(put_elsewhere, "unmap-is-answered-when-a-thread-let-go")
{
    struct ob_wire_dma_unmap unmap = { sizeof(unmap), 0, BASE, 16 * PAGE };
    struct ob_msg *reply;
    struct fixture f;

    start(&f);
    in_thread(&f, get_and_write);
    peer_send(&f.peer, OB_CMD_DMA_UNMAP, 0, &unmap, sizeof(unmap), NULL, 0);
    CHECK(peer_silent(&f.peer));
    in_thread(&f, put);
    reply = peer_receive(&f.peer);
    CHECK_INT(reply->hdr.cmd, OB_CMD_DMA_UNMAP);
    CHECK_MEM(reply->payload, &unmap, sizeof(unmap));
    ob_msg_free(reply);
    finish(&f);
}

TEST(logged_elsewhere, "unmap-reports-what-a-thread-wrote")
{
    struct {
        struct ob_wire_dma_unmap unmap;
        struct ob_wire_bitmap bitmap;
    } wire = { { sizeof(wire), OB_DMA_UNMAP_GET_DIRTY, BASE, 16 * PAGE }, { PAGE, 8 } };
    struct ob_msg *reply;
    struct fixture f;
    uint64_t bits;

    start(&f);
    in_thread(&f, get_and_write); /* before logging begins */
    toggle_logging(&f.peer, true);
    wire.unmap.argsz += 8;
    peer_send(&f.peer, OB_CMD_DMA_UNMAP, 0, &wire, sizeof(wire), NULL, 0);
    CHECK(peer_silent(&f.peer));
    in_thread(&f, put);
    reply = peer_receive(&f.peer);
    CHECK_INT(reply->len, sizeof(wire) + sizeof(bits));
    memcpy(&bits, reply->payload + sizeof(wire), sizeof(bits));
    CHECK_INT(bits, 3u << 3);
    ob_msg_free(reply);
    finish(&f);
}

/* More at a time than there are slots at first, from two threads. */
static void *get_many(void *opaque)
{
    struct fixture *f = opaque;
    struct ob_dma_ref *refs = calloc(1000, sizeof(*refs));

    CHECK(refs);
    for (unsigned i = 0; i < 1000; i++)
        CHECK_INT(ob_dma_get(f->server, BASE + i, 1, RW, &refs[i]), 0);
    for (unsigned i = 0; i < 1000; i++)
        CHECK((uint8_t *)refs[i].ptr == (uint8_t *)refs[0].ptr + i);
    for (unsigned i = 0; i < 1000; i++)
        ob_dma_put(f->server, &refs[i * 7 % 1000]);
    free(refs);
    return NULL;
}

TEST(many, "threads-hold-any-number-of-references")
{
    pthread_t threads[2];
    struct fixture f;

    start(&f);
    for (unsigned i = 0; i < 2; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, get_many, &f), 0);
    for (unsigned i = 0; i < 2; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    CHECK_INT(peer_unmap(&f.peer, BASE, 16 * PAGE, 0), 0);
    finish(&f);
}
