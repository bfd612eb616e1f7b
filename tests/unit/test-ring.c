/* SPDX-License-Identifier: BSD-3-Clause */
/* The access ring between a client and a server of ours: one order, whichever way a command goes.
 */
#include "harness.h"
#include "restarted.h"

#include "client/memo.h"
#include "outboard/server.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define WRITES  60000
#define THREADS 8
#define READS   4000

/* A device that wants what is written to it to be numbered. A write of more than 8 bytes has its
 * number in the first of them. */
static struct {
    struct ob_server *server;
    pthread_t thread;
    struct ob_client *client;
    uint64_t writes, misplaced;
    unsigned pause_us; /* a write takes so long, now and then */
} device;

static void pause_for(unsigned us)
{
    nanosleep(&(struct timespec){ .tv_nsec = us * 1000L }, NULL);
}

static int on_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    uint64_t value = offset;

    (void)opaque;
    if (!is_write) {
        memset(data, 0, count);
        memcpy(data, offset ? &value : &device.writes, count < 8 ? count : 8);
        return 0;
    }
    memcpy(&value, data, 8);
    device.misplaced += value != device.writes++;
    if (device.pause_us && device.writes % 512 == 0)
        pause_for(device.pause_us);
    return 0;
}

static void *run(void *opaque)
{
    (void)opaque;
    CHECK_INT(ob_server_run(device.server), 0);
    return NULL;
}

static void begin(const struct ob_client_options *opt)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops) };
    struct ob_region region = { .size = 1 << 20,
                                .flags = OB_REGION_READ | OB_REGION_WRITE,
                                .access = on_access };
    char why[256] = "";
    int fds[2];

    device.server = ob_server_new(&ops, NULL);
    CHECK(device.server);
    CHECK_INT(ob_server_set_region(device.server, 0, &region), 0);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_INT(ob_server_listen_fd(device.server, fds[0]), 0);
    CHECK_INT(pthread_create(&device.thread, NULL, run, NULL), 0);
    if (ob_client_connect_fd(fds[1], opt, &device.client, why, sizeof(why)) < 0)
        test_fail(__FILE__, __LINE__, "%s", why);
    CHECK(device.client->ring_on);
}

static void end(void)
{
    ob_client_free(device.client);
    CHECK_INT(pthread_join(device.thread, NULL), 0);
    ob_server_free(device.server);
}

static uint64_t written(void)
{
    uint64_t value;

    CHECK_INT(ob_client_region_read(device.client, 0, 0, &value, 8), 0);
    return value;
}

static int write_number(uint64_t number, unsigned kind)
{
    uint64_t data[2] = { number };

    switch (kind % 8) {
    case 0:
        return ob_client_region_post(device.client, 0, 0, data, 16);
    case 1:
        return ob_client_region_write(device.client, 0, 0, data, 8);
    case 2:
        return ob_client_region_write(device.client, 0, 0, data, 16);
    default:
        return ob_client_region_post(device.client, 0, 0, data, 8);
    }
}

/* The client pauses for so long at most, now and then, and the device does. */
static void check_order(unsigned client_us, unsigned device_us, unsigned spin_us)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    uint32_t seed = 1 + client_us + device_us;

    opt.spin_us = spin_us;
    device.pause_us = device_us;
    device.writes = device.misplaced = 0;
    begin(&opt);
    for (uint64_t i = 0; i < WRITES; i++) {
        seed = seed * 1664525 + 1013904223;
        CHECK_INT(write_number(i, seed >> 27 ? 7 : seed >> 8), 0);
        if (client_us && seed >> 24 == 0)
            pause_for(seed % client_us);
        if (seed >> 20 == 1)
            CHECK_INT(written(), i + 1);
    }
    CHECK_INT(written(), WRITES);
    printf("%u by the ring, %u by the socket\n", device.client->ring_at, device.client->nsent);
    end();
    CHECK_INT(device.misplaced, 0);
}

TEST_TIMEOUT(order, "writes-keep-their-order-whichever-way-they-go", 120)
{
    static const unsigned spins[] = { 50, 0 };

    for (size_t i = 0; i < 2; i++) {
        check_order(0, 0, spins[i]);
        check_order(100, 0, spins[i]);
        check_order(20, 0, spins[i]);
        check_order(0, 100, spins[i]);
    }
}

struct reader {
    pthread_t thread;
    uint32_t first;
};

static void *read_own(void *opaque)
{
    const struct reader *me = opaque;
    uint32_t value;

    for (uint32_t i = 1; i <= READS; i++) {
        uint32_t offset = me->first + 4 * (i % 512);

        CHECK_INT(ob_client_region_read(device.client, 0, offset, &value, 4), 0);
        CHECK_INT(value, offset);
    }
    return NULL;
}

TEST_TIMEOUT(threads, "each-thread-gets-what-it-read", 120)
{
    struct reader readers[THREADS];

    begin(NULL);
    for (uint32_t i = 0; i < THREADS; i++) {
        readers[i].first = (i + 1) * 0x10000;
        CHECK_INT(pthread_create(&readers[i].thread, NULL, read_own, &readers[i]), 0);
    }
    for (uint32_t i = 0; i < THREADS; i++)
        CHECK_INT(pthread_join(readers[i].thread, NULL), 0);
    end();
}

/* Until commands have gone through the ring of the server that is there. */
static void use_ring(struct rig *rig)
{
    uint32_t before = rig->client->ring_at;
    int64_t until_ms = test_now_ms() + 20000;

    CHECK(rig->client->ring_on);
    for (uint32_t i = 0; rig->client->ring_at - before < 1000; i++) {
        CHECK(test_now_ms() < until_ms);
        CHECK_INT(rig_put(rig, REG_DATA, i), 0);
        CHECK_INT(rig_get(rig, REG_DATA), i);
    }
}

struct looker {
    pthread_t thread;
    struct rig *rig;
    atomic_bool *over;
};

static void *look_on(void *opaque)
{
    const struct looker *me = opaque;
    uint32_t value;

    while (!*me->over)
        if (ob_client_region_read(me->rig->client, 0, REG_DATA, &value, 4) < 0)
            sched_yield();
    return NULL;
}

/* others: threads that read all the while, and look at the ring as the server goes. */
static void restart_and_use(unsigned others)
{
    struct looker lookers[THREADS];
    atomic_bool over = false;
    struct rig rig;

    rig_begin(&rig, 20000);
    for (unsigned i = 0; i < others; i++) {
        lookers[i] = (struct looker){ .rig = &rig, .over = &over };
        CHECK_INT(pthread_create(&lookers[i].thread, NULL, look_on, &lookers[i]), 0);
    }
    for (int i = 1; i <= 5; i++) {
        if (!others)
            use_ring(&rig);
        rig_restart(&rig);
        rig_check_back(&rig, i);
        CHECK(rig.client->ring_on);
    }
    over = true;
    for (unsigned i = 0; i < others; i++)
        CHECK_INT(pthread_join(lookers[i].thread, NULL), 0);
    use_ring(&rig);
    rig_end(&rig);
}

TEST_TIMEOUT(restarted, "the-ring-of-a-server-that-comes-back-takes-the-place-of-the-last-one", 120)
{
    restart_and_use(0);
    restart_and_use(THREADS);
}

/* As a thread without the role does that has not gone on since the server went. */
static void look(struct ob_client *client, bool looks)
{
    ob_client_lock(client);
    client->looking += looks ? 1 : -1;
    pthread_cond_broadcast(&client->memo->changed);
    ob_client_unlock(client);
}

TEST(looked_at, "a-ring-that-somebody-looks-at-is-not-taken-away")
{
    struct ob_ring *ring;
    struct rig rig;

    rig_begin(&rig, 20000);
    ring = rig.client->ring;
    look(rig.client, true);
    rig_restart(&rig);
    CHECK_INT(ob_client_await(rig.client, 200), -ETIMEDOUT);
    CHECK(rig.client->ring == ring);
    look(rig.client, false);
    rig_check_back(&rig, 1);
    use_ring(&rig);
    rig_end(&rig);
}
