/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Each call of the allocator and of the kernel fails once, in each way it can, through a whole
 * session of client and server: nothing crashes, leaks or hangs, a call that failed works when it
 * is repeated, or the connection is dead and says why; and the server serves the next client.
 */
#include "client/internal.h"
#include "faults.h"
#include "harness.h"
#include "served.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE        4096u
#define RAM_BASE    0x100000ull
#define RAM_BYTES   (8 * PAGE)
#define RAM_SPLIT   (4 * PAGE) /* from here on it is reached by messages */
#define RAM_LENT    (7 * PAGE) /* and from here on it is lent */
#define CARD_BUFFER 0x40000u
#define RW          (OB_DMA_READ | OB_DMA_WRITE)

struct session {
    struct served card;
    bool single_socket;     /* no second one for DMA messages */
    bool reconnect;         /* a connection that dies is made again */
    bool ring;              /* the server polls, and registers are in the access ring */
    unsigned long accesses; /* in rings */
    char path[100];
    int ram_fd, irq;
    uint8_t *ram;
    unsigned failures; /* calls that failed in a connection that lives on */
    atomic_int lent;
};

/* ---- What is done, and how its failure is judged ------------------------------------------- */

/* How a failure of this process, or of the server, may be called. */
static bool is_sensible(int error)
{
    static const int all[] = { ENOMEM, EMFILE, ENFILE, ENOBUFS, ENOSPC, ETOOMANYREFS, EAGAIN, EIO };

    for (unsigned i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (error == all[i])
            return true;
    /* What a descriptor is, can be unknown, too. */
    return error == faults_errno() || (error == EINVAL && strstr(faults_what(), "readlink"));
}

static const uint32_t command = 6; /* memory space, bus master */

/* As at the start: what a step that failed has left half done is gone. */
static void recover(struct session *s)
{
    struct ob_client *c = s->card.client;

    CHECK_INT(ob_client_reset(c), 0);
    CHECK_INT(ob_client_irq_eventfds(c, OB_PCI_IRQ_INTX, 0, 1, &s->irq), 0);
    CHECK_INT(ob_client_irq_mask(c, OB_PCI_IRQ_INTX, 0, false), 0);
    CHECK_INT(ob_client_region_write(c, OB_PCI_REGION_CONFIG, 4, &command, 2), 0);
    served_signalled(s->irq, 0);
}

/* A failure is the fault's, and its only one. False: the connection is dead. */
static bool may_repeat(struct session *s, const char *call, int rc)
{
    enum ob_err_class class = ob_err_class(rc);

    if (!faults_hit())
        test_fail(__FILE__, __LINE__, "%s: %d without a fault", call, rc);
    if (s->reconnect && ob_client_await(s->card.client, 20000) == 0 && class == OB_ERR_TRANSPORT)
        return s->failures++ == 0;
    if (!ob_client_connected(s->card.client)) {
        CHECK(ob_client_error(s->card.client) && *ob_client_error(s->card.client));
        return false;
    }
    if (s->failures++ || class == OB_ERR_TRANSPORT ||
        !is_sensible(class == OB_ERR_PEER ? ob_peer_errno(rc) : -rc))
        test_fail(__FILE__, __LINE__, "%s: %d (peer's errno %d), the %u. failure, after: %s", call,
                  rc, ob_peer_errno(rc), s->failures, faults_what());
    return true;
}

/* Does it, and again when it failed; false: the connection is dead. */
#define DO(s, call)                                              \
    ({                                                           \
        faults_enter();                                          \
        int rc_ = (call);                                        \
        faults_leave();                                          \
        bool goes_on_ = rc_ >= 0 || may_repeat((s), #call, rc_); \
        if (rc_ < 0 && goes_on_) {                               \
            recover(s);                                          \
            faults_enter();                                      \
            rc_ = (call);                                        \
            faults_leave();                                      \
            goes_on_ = rc_ >= 0 || may_repeat((s), #call, rc_);  \
        }                                                        \
        goes_on_;                                                \
    })

static int read_reg(struct session *s, uint64_t offset, uint32_t count, uint64_t *value)
{
    *value = 0;
    return ob_client_region_read(s->card.client, 0, offset, value, count);
}

static int write_reg(struct session *s, uint64_t offset, uint32_t count, uint64_t value)
{
    return ob_client_region_write(s->card.client, 0, offset, &value, count);
}

/* -EIO where something else came out: an effect may be lost with the fault. */
static int expect_reg(struct session *s, uint64_t offset, uint32_t count, uint64_t expected)
{
    uint64_t value;
    int rc = read_reg(s, offset, count, &value);

    return rc < 0 || value == expected ? rc : -EIO;
}

/* The client before may have left the card in the middle of something. */
static int start(struct session *s)
{
    int rc = ob_client_reset(s->card.client);

    served_signalled(s->irq, 0);
    return rc;
}

static int describe(struct session *s)
{
    struct ob_client *c = s->card.client;
    struct ob_device_info info;
    struct ob_region_info region;
    struct ob_irq_info irq;
    int rc = ob_client_device_info(c, &info);

    for (uint32_t i = 0; rc >= 0 && i < info.num_regions; i++) {
        rc = ob_client_region_info(c, i, &region);
        if (rc >= 0)
            ob_region_info_fini(&region);
    }
    for (uint32_t i = 0; rc >= 0 && i < info.num_irqs; i++)
        rc = ob_client_irq_info(c, i, &irq);
    return rc;
}

static int registers(struct session *s)
{
    static uint8_t config[256];
    uint32_t posted = 0x1234;
    int rc = ob_client_region_read(s->card.client, OB_PCI_REGION_CONFIG, 0, config, 256);

    if (rc >= 0)
        rc = expect_reg(s, 0, 4, 0x010000ed);
    if (rc >= 0)
        rc = write_reg(s, 4, 4, 7);
    if (rc >= 0)
        rc = expect_reg(s, 4, 4, (uint32_t)~7);
    for (unsigned i = 0; rc >= 0 && i < 4; i++)
        rc = ob_client_region_post(s->card.client, 0, 4, &posted, 4);
    return rc < 0 ? rc : expect_reg(s, 4, 4, (uint32_t)~posted);
}

/* Waits for the interrupt; the embedder's loop meanwhile, which answers DMA messages. */
static int await(struct session *s)
{
    struct pollfd p[2] = { { s->irq, POLLIN, 0 }, { ob_client_fd(s->card.client), POLLIN, 0 } };
    int64_t deadline = test_now_ms() + 20000;
    uint64_t count;

    faults_leave();
    while (read(s->irq, &count, sizeof(count)) != sizeof(count)) {
        if (test_now_ms() > deadline)
            test_fail(__FILE__, __LINE__, "no interrupt after: %s", faults_what());
        poll(p, 2, 1000);
        faults_enter();
        int rc = ob_client_step(s->card.client);
        if (rc < 0)
            return rc;
        faults_leave();
    }
    faults_enter();
    return 0;
}

/* Starts work and waits for its interrupt. */
static int await_irq(struct session *s, uint64_t offset, uint32_t count, uint64_t value,
                     uint32_t status)
{
    int rc = write_reg(s, offset, count, value);

    if (rc < 0)
        return rc;
    rc = await(s);
    if (rc >= 0)
        rc = expect_reg(s, 0x24, 4, status);
    if (rc >= 0)
        rc = write_reg(s, 0x64, 4, status);
    return rc < 0 ? rc : ob_client_irq_mask(s->card.client, OB_PCI_IRQ_INTX, 0, false);
}

/* What was set up is found again, and a ring with it. */
static int come_back(struct session *s)
{
    int rc;

    if (!s->ring || !s->reconnect)
        return 0;
    s->accesses += s->card.client->ring_at;
    ob_client_disconnect(s->card.client, "it comes back");
    rc = ob_client_await(s->card.client, 20000);
    return rc < 0 ? rc : registers(s);
}

static int interrupts(struct session *s)
{
    int rc = ob_client_irq_eventfds(s->card.client, OB_PCI_IRQ_INTX, 0, 1, &s->irq);

    if (rc >= 0)
        rc = write_reg(s, 0x20, 4, 0x80);
    if (rc >= 0)
        rc = await_irq(s, 0x08, 4, 5, 1);
    return rc < 0 ? rc : expect_reg(s, 0x08, 4, 120);
}

static int map(struct session *s)
{
    struct ob_dma_change changes[] = {
        { .flags = RW, .address = RAM_BASE, .size = RAM_SPLIT, .fd = s->ram_fd },
        { .flags = RW, .address = RAM_BASE + RAM_SPLIT, .size = RAM_BYTES - RAM_SPLIT, .fd = -1 },
    };
    int rc = ob_client_dma_apply(s->card.client, changes, 2);

    return rc < 0 ? rc
                  : ob_client_region_write(s->card.client, OB_PCI_REGION_CONFIG, 4, &command, 2);
}

static int start_transfer(struct session *s, uint64_t at, uint32_t count, bool to_ram)
{
    const uint64_t ram = RAM_BASE + at;
    int rc = write_reg(s, 0x80, 8, to_ram ? CARD_BUFFER : ram);

    if (rc >= 0)
        rc = write_reg(s, 0x88, 8, to_ram ? ram : CARD_BUFFER);
    if (rc >= 0)
        rc = write_reg(s, 0x90, 8, count);
    return rc < 0 ? rc : await_irq(s, 0x98, 8, to_ram ? 7 : 5, 0x100);
}

/* From RAM at one place to the card, and from there to another place. */
static int transfer(struct session *s, uint32_t from, uint32_t to, uint32_t count)
{
    int rc;

    for (uint32_t i = 0; i < count; i++)
        s->ram[from + i] = (uint8_t)(from + i * 7);
    memset(s->ram + to, 0xee, count);
    rc = start_transfer(s, from, count, false);
    if (rc >= 0)
        rc = start_transfer(s, to, count, true);
    return rc < 0 ? rc : memcmp(s->ram + from, s->ram + to, count) ? -EIO : 0;
}

static int unmap(struct session *s)
{
    struct ob_dma_change changes[] = {
        { .unmap = true, .address = RAM_BASE, .size = RAM_SPLIT },
        { .unmap = true, .address = RAM_BASE + RAM_SPLIT, .size = RAM_BYTES - RAM_SPLIT },
    };
    int rc = ob_client_dma_apply(s->card.client, changes, 2);

    /* Of one that was repeated a part had been done. */
    return ob_peer_errno(rc) == ENOENT && s->failures ? 0 : rc;
}

static int log_writes(struct session *s)
{
    uint64_t bitmap = 0;
    int rc = ob_client_dirty_start(s->card.client, PAGE, NULL, 0);

    if (rc >= 0)
        rc = transfer(s, 0, RAM_SPLIT + PAGE, 64);
    if (rc >= 0)
        rc = ob_client_dirty_report(s->card.client, RAM_BASE, RAM_BYTES, PAGE, &bitmap);
    if (rc >= 0 && !(bitmap & 1u << 5))
        rc = -EIO;
    /* Also after a failure: else it could not be started again. */
    int stopped = ob_client_dirty_stop(s->card.client);
    if (stopped < 0)
        ob_client_dirty_stop(s->card.client);
    return rc < 0 ? rc : stopped;
}

static int migrate(struct session *s)
{
    static uint8_t stream[1 << 16];
    struct ob_client *c = s->card.client;
    int64_t len = 0;
    int rc = ob_client_reset(c); /* a failure may have left it in any state */

    if (rc >= 0)
        rc = write_reg(s, 4, 4, 77);
    if (rc >= 0)
        rc = ob_client_mig_state_set(c, OB_MIG_STATE_STOP_COPY);
    if (rc >= 0)
        len = rc = (int)ob_client_mig_read(c, stream, sizeof(stream));
    if (rc >= 0)
        rc = ob_client_reset(c);
    if (rc >= 0)
        rc = ob_client_mig_state_set(c, OB_MIG_STATE_RESUMING);
    if (rc >= 0)
        rc = ob_client_mig_write(c, stream, (uint32_t)len);
    if (rc >= 0)
        rc = ob_client_mig_state_set(c, OB_MIG_STATE_RUNNING);
    return rc < 0 ? rc : expect_reg(s, 4, 4, (uint32_t)~77);
}

/* ---- A session ----------------------------------------------------------------------------- */

static int dma_read(void *opaque, uint64_t address, void *data, uint32_t count)
{
    const struct session *s = opaque;

    memcpy(data, s->ram + (address - RAM_BASE), count);
    return 0;
}

static int dma_write(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    const struct session *s = opaque;

    memcpy(s->ram + (address - RAM_BASE), data, count);
    return 0;
}

static const void *dma_lend(void *opaque, uint64_t address, uint32_t count, void **loan)
{
    struct session *s = opaque;

    (void)count;
    if (address < RAM_BASE + RAM_LENT)
        return NULL;
    s->lent++;
    return *loan = s->ram + (address - RAM_BASE);
}

static void dma_return(void *opaque, void *loan)
{
    struct session *s = opaque;

    CHECK((uint8_t *)loan >= s->ram + RAM_LENT);
    s->lent--;
}

static void connect_client(struct session *s)
{
    const struct ob_client_options options = { .size = sizeof(options),
                                               .timeout_ms = 20000,
                                               .dma_read = dma_read,
                                               .dma_write = dma_write,
                                               .dma_lend = dma_lend,
                                               .dma_return = dma_return,
                                               .single_socket = s->single_socket,
                                               .reconnect_ms = s->reconnect ? 20000 : 0,
                                               .opaque = s };

    for (unsigned tries = 0;; tries++) {
        char sentence[256] = "";
        faults_enter();
        int rc = ob_client_connect(s->path, &options, &s->card.client, sentence, sizeof(sentence));
        faults_leave();
        if (rc >= 0)
            return;
        if (!faults_hit() || tries || !sentence[0])
            test_fail(__FILE__, __LINE__, "%d: \"%s\" after: %s", rc, sentence, faults_what());
    }
}

static void use(struct session *s)
{
    if (DO(s, start(s)) && DO(s, describe(s)) && DO(s, registers(s)) && DO(s, come_back(s)) &&
        DO(s, interrupts(s)) && DO(s, map(s)) && DO(s, transfer(s, 0, PAGE, 64)) &&
        DO(s, transfer(s, RAM_SPLIT, RAM_SPLIT + 2 * PAGE, 300)) &&
        DO(s, transfer(s, RAM_LENT, RAM_LENT + PAGE / 2, 300)) && DO(s, log_writes(s)) &&
        DO(s, unmap(s)) && DO(s, migrate(s)) &&
        DO(s, ob_client_irq_disable(s->card.client, OB_PCI_IRQ_INTX)))
        DO(s, ob_client_reset(s->card.client));
}

/* Without a ring everything goes over the socket. */
static void check_without_ring(const struct session *s)
{
    static const char *const calls[] = { "memfd_create", "fallocate", "F_ADD_SEALS" };

    for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
        if (strstr(faults_what(), calls[i]))
            CHECK(s->failures == 0 && ob_client_connected(s->card.client));
}

static void no_log(void *opaque, enum ob_log_level level, const char *line)
{
    (void)opaque, (void)level, (void)line;
}

static void build(struct session *s)
{
    for (unsigned tries = 0;; tries++) {
        char *argv[] = { "edu", NULL }, banner[100], sentence[256] = "";

        optind = 0;
        faults_enter();
        int status = ob_served_edu.create(1, argv, no_log, &s->card.device, &s->card.server, banner,
                                          sizeof(banner), sentence, sizeof(sentence));
        faults_leave();
        if (!status)
            break;
        if (!faults_hit() || tries || status != 1 || !sentence[0])
            test_fail(__FILE__, __LINE__, "\"%s\" after: %s", sentence, faults_what());
    }
    for (unsigned tries = 0;; tries++) {
        faults_enter();
        int rc = ob_server_listen(s->card.server, s->path, 0);
        faults_leave();
        if (rc == 0)
            break;
        if (!faults_hit() || tries)
            test_fail(__FILE__, __LINE__, "listen: %d after: %s", rc, faults_what());
        CHECK(access(s->path, F_OK) < 0);
    }
}

static void *serve(void *opaque)
{
    struct session *s = opaque;

    CHECK_INT(ob_server_run(s->card.server), 0);
    return NULL;
}

static void leave(struct session *s)
{
    s->accesses += s->card.client->ring_at;
    faults_enter();
    ob_client_free(s->card.client);
    faults_leave();
    CHECK_INT(s->lent, 0);
}

static void run_session(void *opaque)
{
    struct session *s = opaque;

    s->failures = 0;
    build(s);
    if (!s->ring)
        ob_server_set_spin(s->card.server, 0);
    ob_server_set_timeout(s->card.server, 20000);
    CHECK_INT(pthread_create(&s->card.thread, NULL, serve, s), 0);
    connect_client(s);
    use(s);
    check_without_ring(s);
    leave(s);
    if (faults_hit()) {
        s->failures = 0;
        connect_client(s);
        use(s);
        CHECK(ob_client_connected(s->card.client));
        CHECK_INT(s->failures, 0);
        leave(s);
    }
    ob_server_stop(s->card.server);
    CHECK_INT(pthread_join(s->card.thread, NULL), 0);
    faults_enter();
    CHECK_INT(ob_served_edu.destroy(s->card.device), 0);
    faults_leave();
    CHECK(access(s->path, F_OK) < 0);
}

static void try_session(enum fault_side side, unsigned classes, struct session s)
{
    faults_init();
    snprintf(s.path, sizeof(s.path), "%s/edu.sock", test_tmpdir());
    s.ram_fd = memfd_create("ram", MFD_CLOEXEC);
    CHECK_INT(ftruncate(s.ram_fd, RAM_BYTES), 0);
    s.ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, s.ram_fd, 0);
    CHECK(s.ram != MAP_FAILED);
    s.irq = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(s.irq >= 0);
    faults_try_all(side, classes, run_session, &s);
    close(s.irq);
    munmap(s.ram, RAM_BYTES);
    close(s.ram_fd);
    printf("%lu accesses in rings\n", s.accesses);
    CHECK(s.ring == (s.accesses > 0));
}

static void try_all(enum fault_side side, bool single_socket, bool reconnect)
{
    try_session(side, FAULT_ALL,
                (struct session){ .single_socket = single_socket, .reconnect = reconnect });
}

/* How often who polls asks the socket is a matter of chance. */
static void try_ring(enum fault_side side, bool reconnect)
{
    try_session(side, FAULT_MEMORY | FAULT_KERNEL | FAULT_FILE,
                (struct session){ .reconnect = reconnect, .ring = true });
}

TEST_TIMEOUT(client, "client-survives-each-failing-call", 120)
{
    try_all(FAULTS_MAIN, false, false);
}

TEST_TIMEOUT(client_single, "client-with-one-socket-survives-each-failing-call", 120)
{
    try_all(FAULTS_MAIN, true, false);
}

TEST_TIMEOUT(server, "server-survives-each-failing-call", 120)
{
    try_all(FAULTS_OTHERS, false, false);
}

TEST_TIMEOUT(server_single, "server-with-one-socket-survives-each-failing-call", 120)
{
    try_all(FAULTS_OTHERS, true, false);
}

TEST_TIMEOUT(client_reconnects, "client-that-reconnects-survives-each-failing-call", 120)
{
    try_all(FAULTS_MAIN, false, true);
}

TEST_TIMEOUT(server_reconnects, "server-of-one-that-reconnects-survives-each-failing-call", 120)
{
    try_all(FAULTS_OTHERS, false, true);
}

TEST_TIMEOUT(client_ring, "client-with-a-ring-survives-each-failing-call", 120)
{
    try_ring(FAULTS_MAIN, false);
}

TEST_TIMEOUT(server_ring, "server-with-a-ring-survives-each-failing-call", 120)
{
    try_ring(FAULTS_OTHERS, false);
}

TEST_TIMEOUT(ring_reconnects, "a-ring-that-comes-back-survives-each-failing-call", 120)
{
    try_ring(FAULTS_OTHERS, true);
}
