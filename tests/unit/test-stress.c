/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threads of one client that read, write, post, map, unmap, have the device do DMA and interrupt,
 * while another one kills the server, resets the device, drops the connection and makes a new
 * client, all at random. What each thread wrote into its own area is there, posted writes arrive
 * in order, DMA meets what is mapped now, interrupts are counted, nothing leaks.
 *
 * What the device knows is in memory that its processes share, and outlives each of them. For hand
 * use, in the environment: SEED=NUMBER, TIME=SECONDS; or `make stress`.
 */
#include "harness.h"

#include "client/internal.h"
#include "outboard/client.h"
#include "outboard/server.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS   4u
#define AREA      1024u  /* of each thread in the device's memory */
#define SLOT      16384u /* of each thread in RAM */
#define RAM_BASE  0x100000ull
#define REGISTERS (THREADS * AREA)
#define RW        (OB_DMA_READ | OB_DMA_WRITE)
#define TIME_S    20
#define GROWTH_MB 128

/* Registers of a thread, behind the memory. */
enum { REG_SEQUENCE = 0, REG_DMA = 8, REG_IRQ = 16, REG_BYTES = 32 };

struct device {
    uint8_t memory[THREADS * AREA];
    uint64_t sequence[THREADS], disorder;
    uint64_t triggered[THREADS];
};

struct owner {
    struct stress *s;
    pthread_t thread;
    unsigned number;
    uint64_t random;
    unsigned generation; /* of the client that it has set up */
    uint8_t shadow[AREA];
    bool unsure[AREA]; /* a write of it had no answer */
    uint64_t posted;
    bool posted_surely; /* by the client that is there, and no reset was under way */
    unsigned resets;    /* that had begun */
    bool mapped;
    uint64_t received;
    int irq;
    unsigned long done[8]; /* of each kind */
};

struct stress {
    struct device *device;
    char path[128];
    int spawner;
    int ram_fd;
    uint8_t *ram;
    pthread_rwlock_t lock; /* for writing: exchanges the client */
    struct ob_client *client;
    atomic_uint generation, order;
    atomic_bool stop;
    unsigned kills, clients, disconnects;
    unsigned long accesses; /* in rings, of which those between two counts and a loss are missing */
    atomic_uint resets, resets_done;
    struct owner owners[THREADS];
};

static uint32_t rnd(uint64_t *state, uint32_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % below;
}

static uint64_t from_environment(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

/* ---- The server's process ------------------------------------------------------------------ */

static struct ob_server *serving;

/* Reads 64 bytes of memory, and writes them behind, inverted. */
static int invert(uint64_t address)
{
    uint8_t data[64];
    int rc = ob_dma_read(serving, address, data, sizeof(data));

    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] ^= 0xff;
    return rc < 0 ? rc : ob_dma_write(serving, address + sizeof(data), data, sizeof(data));
}

static int access_register(struct device *device, uint64_t offset, void *data, bool is_write)
{
    unsigned number = (unsigned)(offset / REG_BYTES);
    uint64_t value;
    int rc;

    if (!is_write) {
        memcpy(data, &device->sequence[number], 8);
        return 0;
    }
    memcpy(&value, data, 8);
    switch (offset % REG_BYTES) {
    case REG_SEQUENCE:
        device->disorder += value < device->sequence[number];
        device->sequence[number] = value;
        return 0;
    case REG_DMA:
        return invert(value);
    default:
        rc = ob_server_irq_trigger(serving, OB_PCI_IRQ_MSIX, number);
        device->triggered[number] += rc == 0;
        return rc;
    }
}

static int on_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct device *device = opaque;

    if (offset >= REGISTERS)
        return count == 8 ? access_register(device, offset - REGISTERS, data, is_write) : -EINVAL;
    memcpy(is_write ? (void *)(device->memory + offset) : data,
           is_write ? data : (void *)(device->memory + offset), count);
    return 0;
}

static int on_reset(void *opaque)
{
    (void)opaque; /* all that it knows is to be found again */
    return 0;
}

static _Noreturn void serve(const struct stress *s)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops), .reset = on_reset };
    const struct ob_region region = { .size = REGISTERS + THREADS * REG_BYTES,
                                      .flags = OB_REGION_READ | OB_REGION_WRITE,
                                      .access = on_access,
                                      .opaque = s->device,
                                      .fd = -1 };

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    serving = ob_server_new(&ops, s->device);
    CHECK(serving);
    CHECK_INT(ob_server_set_region(serving, 0, &region), 0);
    CHECK_INT(ob_server_set_irq(serving, OB_PCI_IRQ_MSIX, THREADS, OB_IRQ_EVENTFD), 0);
    CHECK_INT(ob_server_listen(serving, s->path, 0), 0);
    CHECK_INT(ob_server_run(serving), 0);
    _exit(0);
}

/* For each byte that comes it kills the server, and starts another one. */
static _Noreturn void spawn_servers(const struct stress *s, int commands)
{
    pid_t pid = 0;
    char byte;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (read(commands, &byte, 1) == 1) {
        if (pid) {
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
        }
        pid = fork();
        if (pid == 0)
            serve(s);
        if (pid < 0 || write(commands, &byte, 1) != 1)
            break;
    }
    if (pid > 0) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    _exit(0);
}

static void restart_server(struct stress *s)
{
    char byte = 0;

    CHECK_INT(write(s->spawner, &byte, 1), 1);
    CHECK_INT(read(s->spawner, &byte, 1), 1);
}

/* ---- What a thread does -------------------------------------------------------------------- */

/* What one thread did to RAM before it sent a request, another may see when it serves the server's
 * DMA for that. The sockets see to it, and the server between them; a sanitizer of this process
 * sees neither. */
static void keep_order(struct stress *s)
{
    atomic_fetch_add(&s->order, 1);
}

static int dma_read(void *opaque, uint64_t address, void *data, uint32_t count)
{
    struct stress *s = opaque;

    if (address < RAM_BASE || address - RAM_BASE > THREADS * SLOT - count)
        return -EFAULT;
    keep_order(s);
    memcpy(data, s->ram + (address - RAM_BASE), count);
    return 0;
}

static int dma_write(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    struct stress *s = opaque;

    if (address < RAM_BASE || address - RAM_BASE > THREADS * SLOT - count)
        return -EFAULT;
    keep_order(s);
    memcpy(s->ram + (address - RAM_BASE), data, count);
    keep_order(s);
    return 0;
}

static uint64_t slot_of(const struct owner *o)
{
    return RAM_BASE + o->number * SLOT;
}

/* No answer: the server was killed, or the client is to be exchanged. Every other failure is one.
 */
static bool answered(struct owner *o, const char *what, int rc)
{
    if (rc == -ENOTCONN) {
        ob_client_await(o->s->client, 20000);
        return false;
    }
    if (rc < 0)
        test_fail(__FILE__, __LINE__, "thread %u, %s: %d (peer's errno %d)", o->number, what, rc,
                  ob_peer_errno(rc));
    return true;
}

/* Half of them fit into the access ring. */
static uint32_t some_bytes(struct owner *o, uint32_t most)
{
    return 1 + rnd(&o->random, rnd(&o->random, 2) ? OB_RING_DATA : most);
}

static void do_write(struct owner *o)
{
    uint32_t at = rnd(&o->random, AREA), count = some_bytes(o, 64);
    uint8_t data[64];
    int rc;

    if (count > AREA - at)
        count = AREA - at;
    for (uint32_t i = 0; i < count; i++)
        data[i] = (uint8_t)rnd(&o->random, 256);
    rc = ob_client_region_write(o->s->client, 0, o->number * AREA + at, data, count);
    memcpy(o->shadow + at, data, count);
    memset(o->unsure + at, !answered(o, "write", rc), count);
}

static void do_read(struct owner *o)
{
    uint32_t at = rnd(&o->random, AREA), count = some_bytes(o, 256);
    uint8_t data[256];

    if (count > AREA - at)
        count = AREA - at;
    if (!answered(o, "read",
                  ob_client_region_read(o->s->client, 0, o->number * AREA + at, data, count)))
        return;
    for (uint32_t i = 0; i < count; i++)
        if (data[i] != o->shadow[at + i] && !o->unsure[at + i])
            test_fail(__FILE__, __LINE__, "thread %u: byte %u is 0x%x, not 0x%x", o->number, at + i,
                      data[i], o->shadow[at + i]);
}

static uint64_t reg(const struct owner *o, unsigned which)
{
    return REGISTERS + o->number * REG_BYTES + which;
}

static void do_post(struct owner *o)
{
    for (unsigned i = rnd(&o->random, 40); i > 0; i--) {
        uint64_t value = o->posted + 1;
        int rc;

        o->posted_surely = o->s->resets_done == o->s->resets;
        o->resets = o->s->resets;
        rc = ob_client_region_post(o->s->client, 0, reg(o, REG_SEQUENCE), &value, 8);

        if (rc == -ENOBUFS || !answered(o, "post", rc))
            return;
        o->posted = value;
    }
}

/* What was posted is there, also when the server was killed meanwhile; but a reset that had to wait
 * for a server is the end of what was posted before. */
static void do_look(struct owner *o)
{
    uint64_t value;
    int rc = ob_client_region_read(o->s->client, 0, reg(o, REG_SEQUENCE), &value, 8);

    if (!answered(o, "look", rc))
        return;
    if (value > o->posted || (value < o->posted && o->posted_surely && o->resets == o->s->resets))
        test_fail(__FILE__, __LINE__, "thread %u posted %llu, but the last is %llu", o->number,
                  (unsigned long long)o->posted, (unsigned long long)value);
}

static void do_map(struct owner *o)
{
    int rc;

    if (o->mapped)
        rc = ob_client_dma_unmap(o->s->client, slot_of(o), SLOT);
    else
        rc = ob_client_dma_map(o->s->client, slot_of(o), SLOT, RW,
                               rnd(&o->random, 2) ? o->s->ram_fd : -1, o->number * SLOT);
    if (answered(o, "map", rc))
        o->mapped = !o->mapped;
}

/* The device finds what is mapped, and nothing else. */
static void do_dma(struct owner *o)
{
    uint64_t address = slot_of(o) + 128 * rnd(&o->random, SLOT / 128);
    uint8_t *ram = o->s->ram + (address - RAM_BASE);
    int rc;

    for (unsigned i = 0; i < 128; i++)
        ram[i] = (uint8_t)rnd(&o->random, 256);
    keep_order(o->s);
    rc = ob_client_region_write(o->s->client, 0, reg(o, REG_DMA), &address, 8);
    keep_order(o->s);
    if (!o->mapped && ob_peer_errno(rc) == EFAULT)
        return;
    if (!answered(o, "dma", rc))
        return;
    CHECK(o->mapped);
    for (unsigned i = 0; i < 64; i++)
        if ((ram[64 + i] ^ ram[i]) != 0xff)
            test_fail(__FILE__, __LINE__, "thread %u: byte %u of DMA differs", o->number, i);
}

static void take_irqs(struct owner *o)
{
    uint64_t count;

    if (read(o->irq, &count, sizeof(count)) == sizeof(count))
        o->received += count;
}

static void do_irq(struct owner *o)
{
    struct pollfd p = { .fd = o->irq, .events = POLLIN };
    uint64_t value = 0;
    int rc;

    take_irqs(o);
    rc = ob_client_region_write(o->s->client, 0, reg(o, REG_IRQ), &value, 8);
    if (!answered(o, "irq", rc))
        return;
    CHECK_INT(poll(&p, 1, 10000), 1);
    take_irqs(o);
}

/* With a new client nothing is set up. */
static void set_up(struct owner *o)
{
    unsigned generation = o->s->generation;

    if (o->generation == generation)
        return;
    o->mapped = false;
    if (answered(o, "eventfd",
                 ob_client_irq_eventfds(o->s->client, OB_PCI_IRQ_MSIX, o->number, 1, &o->irq)))
        o->generation = generation;
}

static void *own(void *opaque)
{
    static void (*const kinds[])(struct owner *) = { do_read, do_write, do_post, do_look,
                                                     do_map,  do_dma,   do_irq };
    struct owner *o = opaque;

    while (!o->s->stop) {
        unsigned kind = rnd(&o->random, 7);

        pthread_rwlock_rdlock(&o->s->lock);
        set_up(o);
        if (o->generation == o->s->generation) {
            kinds[kind](o);
            o->done[kind]++;
        }
        pthread_rwlock_unlock(&o->s->lock);
    }
    return NULL;
}

/* ---- What happens to them ------------------------------------------------------------------ */

static void connect_client(struct stress *s)
{
    struct ob_client_options options = OB_CLIENT_OPTIONS_INIT;
    int64_t deadline = test_now_ms() + 20000;
    char why[256];

    options.timeout_ms = 20000;
    options.dma_read = dma_read;
    options.dma_write = dma_write;
    options.opaque = s;
    options.reconnect_ms = 20000;
    options.single_socket = s->clients % 2;
    while (ob_client_connect(s->path, &options, &s->client, why, sizeof(why)) < 0)
        if (test_now_ms() > deadline)
            test_fail(__FILE__, __LINE__, "connect: %s", why);
    s->generation++;
    s->clients++;
}

/* Before its connection ends. */
static void count_accesses(struct stress *s)
{
    ob_client_lock(s->client);
    s->accesses += s->client->ring_at;
    ob_client_unlock(s->client);
}

static void exchange_client(struct stress *s)
{
    ob_client_shutdown(s->client, "a new one is made");
    pthread_rwlock_wrlock(&s->lock);
    ob_client_free(s->client);
    for (unsigned i = 0; i < THREADS; i++)
        s->owners[i].posted_surely = false;
    connect_client(s);
    pthread_rwlock_unlock(&s->lock);
}

static void upset(struct stress *s, uint64_t *random)
{
    int rc;

    switch (rnd(random, 8)) {
    case 0:
    case 1:
        count_accesses(s);
        s->kills++;
        restart_server(s);
        break;
    case 2:
        count_accesses(s);
        s->disconnects++;
        ob_client_disconnect(s->client, "just so");
        break;
    case 3:
        count_accesses(s);
        exchange_client(s);
        break;
    default:
        s->resets++;
        rc = ob_client_reset(s->client);
        s->resets_done++;
        if (rc < 0 && rc != -ENOTCONN)
            test_fail(__FILE__, __LINE__, "reset: %d", rc);
    }
}

static long resident_mb(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    long pages = 0;

    /* NOLINTNEXTLINE(cert-err34-c): the kernel writes numbers there */
    CHECK(file && fscanf(file, "%*s %ld", &pages) == 1);
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE) >> 20;
}

static void begin(struct stress *s)
{
    pthread_rwlockattr_t attr;
    int fds[2];
    pid_t pid;

    s->device =
        mmap(NULL, sizeof(*s->device), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(s->device != MAP_FAILED);
    snprintf(s->path, sizeof(s->path), "%s/stress.sock", test_tmpdir());
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    pid = fork(); /* while there is one thread */
    CHECK(pid >= 0);
    if (pid == 0) {
        close(fds[0]);
        spawn_servers(s, fds[1]);
    }
    close(fds[1]);
    s->spawner = fds[0];
    s->ram_fd = memfd_create("ram", MFD_CLOEXEC);
    CHECK_INT(ftruncate(s->ram_fd, THREADS * SLOT), 0);
    s->ram = mmap(NULL, THREADS * SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, s->ram_fd, 0);
    CHECK(s->ram != MAP_FAILED);
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&s->lock, &attr);
    pthread_rwlockattr_destroy(&attr);
    restart_server(s);
    connect_client(s);
}

static void start_threads(struct stress *s, uint64_t seed)
{
    for (unsigned i = 0; i < THREADS; i++) {
        struct owner *o = &s->owners[i];

        *o = (struct owner){ .s = s, .number = i, .random = seed * THREADS + i };
        o->irq = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        CHECK_INT(pthread_create(&o->thread, NULL, own, o), 0);
    }
}

/* The client is gone, and the server with it. */
static void end(struct stress *s)
{
    static const char *const kinds[] = { "reads", "writes", "posts",     "looks",
                                         "maps",  "dmas",   "interrupts" };

    for (unsigned kind = 0; kind < 7; kind++) {
        unsigned long sum = 0;

        for (unsigned i = 0; i < THREADS; i++)
            sum += s->owners[i].done[kind];
        printf("%lu %s, ", sum, kinds[kind]);
        CHECK(sum > 0);
    }
    printf("%lu accesses in rings, %u kills, %u resets, %u disconnects, %u clients\n", s->accesses,
           s->kills, s->resets, s->disconnects, s->clients);
    CHECK(s->accesses > 0 || sysconf(_SC_NPROCESSORS_ONLN) < 2);
    CHECK_INT(s->device->disorder, 0);
    for (unsigned i = 0; i < THREADS; i++) {
        struct owner *o = &s->owners[i];

        take_irqs(o);
        CHECK(o->received >= s->device->triggered[i]);
        CHECK(o->received <= s->device->triggered[i] + s->kills);
        close(o->irq);
    }
    pthread_rwlock_destroy(&s->lock);
    munmap(s->ram, THREADS * SLOT);
    munmap(s->device, sizeof(*s->device));
    close(s->ram_fd);
}

TEST_TIMEOUT(stress, "threads-go-on-while-server-and-client-come-and-go", 7200)
{
    static struct stress stress;
    struct stress *s = &stress;
    uint64_t seed = from_environment("SEED", (uint64_t)test_now_ms()), random = seed;
    int64_t time_ms = 1000 * (int64_t)from_environment("TIME", TIME_S), start_ms = test_now_ms();
    long resident = 0;

    printf("SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
    begin(s);
    start_threads(s, seed);
    while (test_now_ms() < start_ms + time_ms) {
        usleep(rnd(&random, 30000)); /* what passes in between is the test */
        upset(s, &random);
        if (!resident && test_now_ms() > start_ms + time_ms / 4)
            resident = resident_mb();
    }
    CHECK(resident_mb() < resident + GROWTH_MB + TEST_KEPT_MIB);
    s->stop = true;
    for (unsigned i = 0; i < THREADS; i++)
        CHECK_INT(pthread_join(s->owners[i].thread, NULL), 0);
    ob_client_free(s->client);
    close(s->spawner);
    CHECK(wait(NULL) > 0);
    end(s);
}
