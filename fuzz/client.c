/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The client library against a server that the input plays (player.h). The first byte says how the
 * server greets, the second what the client's options are; then come calls, a byte each and their
 * arguments, and in between the operations of the server. All of the library's functions are
 * called, whatever became of those before.
 */
#include "kinds.h"
#include "player.h"
#include "thread.h"
#include "world.h"

#include "outboard/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define BYTES_MAX  (OB_DATA_XFER_MAX + 64u)
#define BITMAP_MAX (1u << 20)
#define CHANGES    8u

/* A result is of the three classes, and nothing else. */
static void check_result(int64_t rc)
{
    char text[128];

    if (rc >= 0)
        return;
    HOLDS(rc >= INT32_MIN && ob_err_class((int)rc) != OB_ERR_NONE);
    HOLDS(ob_strerror((int)rc, text, sizeof(text)) == text && text[0]);
    HOLDS((ob_err_class((int)rc) == OB_ERR_PEER) == (ob_peer_errno((int)rc) > 0));
}

struct run {
    struct ob_client *client;
    struct input *in;
    struct player player;
    unsigned lost, interrupted, resumed;
    bool reluctant; /* the client's thread runs only when somebody waits for it */
    int dma_result; /* what the callbacks return next */
    unsigned lent;
};

static uint32_t number32(struct run *r)
{
    return (uint32_t)input_number(r->in);
}

/* ---- The callbacks -------------------------------------------------------------------------- */

static int on_dma_read(void *opaque, uint64_t address, void *data, uint32_t count)
{
    struct run *r = opaque;

    (void)address;
    memset(data, 0x11, count);
    if (r->client && (count & 1)) /* nothing waits in here */
        HOLDS(ob_client_reset(r->client) < 0);
    return r->dma_result;
}

static int on_dma_write(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    struct run *r = opaque;
    volatile uint8_t sum = 0;

    (void)address;
    for (uint32_t i = 0; i < count; i += 64)
        sum = (uint8_t)(sum + ((const uint8_t *)data)[i]);
    return r->dma_result;
}

static const void *on_dma_lend(void *opaque, uint64_t address, uint32_t count, void **loan)
{
    static const uint8_t memory[OB_DATA_XFER_MAX];
    struct run *r = opaque;

    HOLDS(count > 0 && count <= sizeof(memory));
    if (address & 1)
        return NULL;
    r->lent++;
    *loan = malloc(1); /* returned by nobody, it is a leak; by two, a use of what is free */
    return memory;
}

static void on_dma_return(void *opaque, void *loan)
{
    struct run *r = opaque;

    HOLDS(r->lent > 0);
    r->lent--;
    free(loan);
}

static void on_lost(void *opaque, const char *why)
{
    struct run *r = opaque;

    HOLDS(why && why[0] && !strchr(why, '\n'));
    r->lost++;
}

static void on_interrupted(void *opaque, const char *why)
{
    struct run *r = opaque;

    HOLDS(why && why[0] && r->lost == 0 && r->interrupted == r->resumed);
    r->interrupted++;
}

static void on_resumed(void *opaque)
{
    struct run *r = opaque;

    HOLDS(r->lost == 0);
    r->resumed++;
}

/* ---- The calls ------------------------------------------------------------------------------ */

static void call_info(struct run *r)
{
    struct ob_device_info device;
    struct ob_irq_info irq;

    check_result(ob_client_device_info(r->client, &device));
    check_result(ob_client_irq_info(r->client, number32(r), &irq));
}

static void call_region_info(struct run *r)
{
    struct ob_region_info info;
    int rc = ob_client_region_info(r->client, number32(r), &info);

    check_result(rc);
    if (rc < 0)
        return;
    HOLDS(!(info.layout.flags & OB_REGION_MMAP) || info.fd >= 0);
    for (uint32_t i = 0; i < info.layout.nareas + 1; i++) {
        uint64_t size;
        void *at;

        rc = ob_region_map(&info, i, &at, &size);
        check_result(rc);
        if (rc == 0)
            HOLDS(munmap(at, size) == 0);
    }
    if (info.fd >= 0)
        ob_region_can_shrink(&info);
    ob_region_info_fini(&info);
}

static void call_io_fds(struct run *r)
{
    struct ob_region_io_fds *list = new_memory(sizeof(*list));
    int rc = ob_client_region_io_fds(r->client, number32(r), list);

    check_result(rc);
    for (uint32_t i = 0; rc == 0 && i < list->count; i++)
        HOLDS(ob_fd_is_eventfd(list->entries[i].fd));
    if (rc == 0)
        ob_region_io_fds_fini(list);
    free(list);
}

static void call_read(struct run *r)
{
    uint32_t region = number32(r), count;
    uint64_t offset = input_number(r->in);
    uint8_t *data;

    count = number32(r) % BYTES_MAX;
    data = new_memory(count);
    check_result(ob_client_region_read(r->client, region, offset, data, count));
    free(data);
}

static void call_write(struct run *r)
{
    uint32_t region = number32(r), count;
    uint64_t offset = input_number(r->in);
    uint8_t *data;

    count = number32(r) % BYTES_MAX;
    data = new_memory(count);
    check_result(ob_client_region_write(r->client, region, offset, data, count));
    free(data);
}

/* So many posted writes in a row. */
static void call_post(struct run *r)
{
    static uint8_t data[BYTES_MAX];
    uint32_t times = input_u8(r->in), region = number32(r), count = number32(r) % BYTES_MAX;
    uint64_t offset = input_number(r->in);

    for (uint32_t i = 0; i <= times; i++) {
        int rc = times & 1 ? ob_client_region_post(r->client, region, offset, data, count)
                           : ob_client_region_post_now(r->client, region, offset, data, count);

        check_result(rc);
        if (rc < 0)
            break;
    }
}

static void call_dma(struct run *r)
{
    struct ob_dma_change changes[CHANGES];
    unsigned count = 1 + input_u8(r->in) % CHANGES;

    for (unsigned i = 0; i < count; i++) {
        uint8_t how = input_u8(r->in);

        changes[i] = (struct ob_dma_change){ .unmap = how & 1,
                                             .flags = how >> 1 & 15u,
                                             .fd = how & 0x80 ? -1 : kind_fd(how >> 5 & 3) };
        changes[i].address = input_number(r->in);
        changes[i].size = input_number(r->in);
        changes[i].offset = input_number(r->in);
        changes[i].result = 1;
    }
    check_result(ob_client_dma_apply(r->client, changes, count));
    for (unsigned i = 0; i < count; i++) {
        HOLDS(changes[i].result <= 0);
        check_result(changes[i].result);
    }
}

static void call_irqs(struct run *r)
{
    uint32_t index = number32(r), flags = number32(r), start = number32(r),
             count = number32(r) % (OB_IRQ_VECTORS_MAX + 2);
    uint8_t *bools = new_memory(count);
    int *fds = new_memory((count + 1) * sizeof(*fds));

    for (uint32_t i = 0; i < count; i++)
        fds[i] = i % 7 == 6 ? -1 : kind_fd(KIND_EVENTFD);
    check_result(ob_client_set_irqs(r->client, index, flags, start, count,
                                    flags & OB_IRQ_SET_DATA_BOOL ? bools : NULL,
                                    flags & OB_IRQ_SET_DATA_EVENTFD ? fds : NULL));
    check_result(ob_client_irq_eventfds(r->client, index, start, count, fds));
    check_result(ob_client_irq_mask(r->client, index, start, flags & 1));
    check_result(ob_client_irq_disable(r->client, index));
    free(bools);
    free(fds);
}

static void call_migration(struct run *r)
{
    enum ob_mig_state state;
    uint32_t count = number32(r) % BYTES_MAX;
    uint8_t *data = new_memory(count);
    uint64_t flags;
    int64_t n;

    check_result(ob_client_migration_info(r->client, &flags));
    check_result(ob_client_mig_state_set(r->client, (enum ob_mig_state)(input_u8(r->in) % 8)));
    check_result(ob_client_mig_state_get(r->client, &state));
    n = ob_client_mig_read(r->client, data, count);
    check_result(n);
    HOLDS(n <= count);
    check_result(ob_client_mig_write(r->client, data, count));
    check_result(
        ob_client_feature_probe(r->client, (enum ob_feature)input_u8(r->in), OB_FEATURE_GET));
    free(data);
}

static void call_dirty(struct run *r)
{
    uint64_t page_size = (uint64_t)1 << (input_u8(r->in) & 63), address = input_number(r->in),
             length = input_number(r->in);
    struct ob_dma_range ranges[4];
    uint32_t count = input_u8(r->in) % 5;
    uint64_t bytes;
    uint64_t *bitmap;

    for (uint32_t i = 0; i < count; i++)
        ranges[i] = (struct ob_dma_range){ address, length };
    check_result(ob_client_dirty_start(r->client, page_size, ranges, count));
    page_size = (uint64_t)1 << (input_u8(r->in) & 63);
    bytes = length ? ob_bitmap_size(length, page_size) : 8;
    if (bytes > BITMAP_MAX)
        return;
    bitmap = new_memory(bytes);
    check_result(ob_client_dirty_report(r->client, address, length, page_size, bitmap));
    check_result(ob_client_dma_unmap_dirty(r->client, address, length, page_size, bitmap));
    check_result(ob_client_dirty_stop(r->client));
    free(bitmap);
}

static void call_step(struct run *r)
{
    uint8_t times = input_u8(r->in) % 32;

    for (unsigned i = 0; i < times && player_turn(&r->player); i++)
        ;
    check_result(ob_client_step(r->client));
}

static void call_others(struct run *r)
{
    struct ob_client_stats stats;
    uint8_t what = input_u8(r->in);

    if (what == 0xff)
        ob_client_shutdown(r->client, "the input says so");
    else if (what & 0x80)
        r->dma_result = -(int)(number32(r) % 4200);
    else
        check_result(ob_client_reset(r->client));
    if (what & 1)
        r->reluctant = !r->reluctant;
    if (what & 2)
        check_result(ob_client_await(r->client, 50));
    if (what & 8)
        ob_client_limit(r->client, what >> 4);
    if (what & 4)
        ob_client_disconnect(r->client, "so the input says");
    ob_client_stats(r->client, &stats);
    HOLDS(stats.reconnects >= r->resumed);
    HOLDS((ob_client_state(r->client) == OB_CLIENT_LOST) == (ob_client_error(r->client) != NULL));
    HOLDS(ob_client_connected(r->client) == (ob_client_state(r->client) == OB_CLIENT_CONNECTED));
    HOLDS(ob_client_page_size(r->client) >= 4096 && ob_client_fd(r->client) >= 0);
}

static void call(struct run *r)
{
    static void (*const calls[])(struct run * r) = {
        call_read, call_write,     call_post,  call_dma,  call_region_info, call_io_fds,
        call_irqs, call_migration, call_dirty, call_step, call_others,      call_info,
    };

    calls[input_u8(r->in) % (sizeof(calls) / sizeof(calls[0]))](r);
}

/* The client connects to a path, at first or again: the input may say that nobody listens. */
int __wrap_ob_socket_connect(const char *path, int64_t deadline_ns);

static struct run run;

int __wrap_ob_socket_connect(const char *path, int64_t deadline_ns)
{
    (void)path, (void)deadline_ns;
    if (run.client && (!input_left(run.in) || input_u8(run.in) % 4 == 3))
        return -ECONNREFUSED;
    return player_connect(&run.player);
}

static void connect_client(struct run *r, uint8_t greeting, uint8_t how)
{
    struct ob_client_options options = OB_CLIENT_OPTIONS_INIT;
    char why[256] = "";
    int rc;

    options.timeout_ms = 20;
    options.dma_read = how & 1 ? NULL : on_dma_read;
    options.dma_write = how & 2 ? NULL : on_dma_write;
    options.dma_lend = how & 64 ? on_dma_lend : NULL;
    options.dma_return = on_dma_return;
    options.lost = how & 4 ? NULL : on_lost;
    options.single_socket = how & 8;
    options.spin_us = how & 16 ? 0 : 20;
    options.reconnect_ms = how & 32 ? 100 : 0;
    options.interrupted = how & 4 ? NULL : on_interrupted;
    options.resumed = how & 4 ? NULL : on_resumed;
    options.opaque = r;
    player_begin(&r->player, r->in, greeting);
    r->player.eager = greeting & GREET_DEVICE;
    r->player.offers_ring = how & 128;
    rc = how & 32 ? ob_client_connect("fuzz", &options, &r->client, why, sizeof(why))
                  : ob_client_connect_fd(player_connect(&r->player), &options, &r->client, why,
                                         sizeof(why));
    r->player.eager = false;
    if (rc < 0) {
        HOLDS(!r->client && why[0] && !strchr(why, '\n'));
        HOLDS(r->lost == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size, 0 };
    struct run *r = &run;
    uint8_t greeting;

    kinds_open();
    world_begin();
    memset(r, 0, sizeof(*r));
    r->in = &in;
    greeting = input_u8(&in);
    connect_client(r, greeting, input_u8(&in));
    while (r->client && input_left(&in)) {
        call(r);
        if (!r->reluctant)
            thread_run();
    }
    HOLDS(r->lost <= 1 && r->resumed <= r->interrupted);
    ob_client_free(r->client);
    HOLDS(r->lent == 0);
    HOLDS(!thread_run());
    player_end(&r->player);
    kinds_reset();
    world_end();
    return 0;
}
