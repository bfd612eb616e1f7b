/* SPDX-License-Identifier: BSD-3-Clause */
/* SET_IRQS in all its forms, masking, the INTx level, threads that trigger. */
#include "harness.h"
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define NONE    OB_IRQ_SET_DATA_NONE
#define BOOL    OB_IRQ_SET_DATA_BOOL
#define EVENTFD OB_IRQ_SET_DATA_EVENTFD
#define MASK    OB_IRQ_SET_ACTION_MASK
#define UNMASK  OB_IRQ_SET_ACTION_UNMASK
#define TRIGGER OB_IRQ_SET_ACTION_TRIGGER
#define MSIX    OB_PCI_IRQ_MSIX
#define INTX    OB_PCI_IRQ_INTX

#define VECTORS 8

struct setup {
    struct ob_server *server;
    struct peer peer;
    int fds[VECTORS];
};

static void set_up(struct setup *s)
{
    s->server = peer_server_new(NULL, NULL);
    CHECK_INT(ob_server_set_irq(s->server, MSIX, VECTORS, OB_IRQ_EVENTFD | OB_IRQ_MASKABLE), 0);
    CHECK_INT(
        ob_server_set_irq(s->server, INTX, 1, OB_IRQ_EVENTFD | OB_IRQ_MASKABLE | OB_IRQ_AUTOMASKED),
        0);
    peer_attach(&s->peer, s->server);
    for (int i = 0; i < VECTORS; i++)
        s->fds[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
}

static void tear_down(struct setup *s)
{
    peer_close(&s->peer);
    ob_server_free(s->server);
    for (int i = 0; i < VECTORS; i++)
        close(s->fds[i]);
}

static int set(struct setup *s, uint32_t index, uint32_t flags, uint32_t start, uint32_t count)
{
    return peer_set_irqs(&s->peer, index, flags, start, count, NULL, NULL, 0);
}

static int assign(struct setup *s, uint32_t index, uint32_t flags, uint32_t start, uint32_t count)
{
    return peer_set_irqs(&s->peer, index, EVENTFD | flags, start, count, NULL, s->fds + start,
                         count);
}

static void check_signals(struct setup *s, const char *expected)
{
    for (int i = 0; expected[i]; i++)
        CHECK_INT(peer_eventfd_take(s->fds[i]), expected[i] - '0');
}

TEST(info, "irq-info-tells-count-and-flags")
{
    static const uint32_t counts[OB_PCI_IRQS] = { 1, 0, VECTORS, 0, 0 };
    struct setup s;

    set_up(&s);
    for (uint32_t i = 0; i < OB_PCI_IRQS; i++) {
        struct ob_wire_irq_info info = { sizeof(info), 0, i, 0 };
        struct ob_msg *reply;

        CHECK_INT(peer_call(&s.peer, OB_CMD_DEVICE_GET_IRQ_INFO, &info, sizeof(info), &reply), 0);
        CHECK_INT(reply->len, sizeof(info));
        memcpy(&info, reply->payload, sizeof(info));
        CHECK_INT(info.argsz, sizeof(info));
        CHECK_INT(info.index, i);
        CHECK_INT(info.count, counts[i]);
        ob_msg_free(reply);
        info.index = OB_PCI_IRQS;
        CHECK_INT(peer_call(&s.peer, OB_CMD_DEVICE_GET_IRQ_INFO, &info, sizeof(info), NULL),
                  -EINVAL);
    }
    tear_down(&s);
}

TEST(assigned, "eventfds-are-assigned-changed-and-taken-back-in-parts")
{
    struct setup s;

    set_up(&s);
    CHECK_INT(ob_server_irq_trigger(s.server, MSIX, 0), -ENOENT);
    CHECK_INT(assign(&s, MSIX, TRIGGER, 0, 4), 0);
    CHECK_INT(assign(&s, MSIX, TRIGGER, 6, 2), 0);
    CHECK_INT(ob_server_irq_armed(s.server, MSIX), 6);
    for (uint32_t i = 0; i < VECTORS; i++)
        CHECK_INT(ob_server_irq_trigger(s.server, MSIX, i), i == 4 || i == 5 ? -ENOENT : 0);
    CHECK_INT(ob_server_irq_trigger(s.server, MSIX, VECTORS), -EINVAL);
    check_signals(&s, "11110011");
    CHECK_INT(set(&s, MSIX, EVENTFD | TRIGGER, 1, 2), 0); /* takes two back */
    CHECK_INT(ob_server_irq_armed(s.server, MSIX), 4);
    CHECK_INT(ob_server_irq_trigger(s.server, MSIX, 1), -ENOENT);
    CHECK_INT(ob_server_irq_trigger(s.server, MSIX, 3), 0);
    check_signals(&s, "00010000");
    CHECK_INT(set(&s, MSIX, NONE | TRIGGER, 0, 0), 0); /* all */
    CHECK_INT(ob_server_irq_armed(s.server, MSIX), 0);
    tear_down(&s);
}

TEST(loopback, "client-fires-vectors-itself")
{
    static const uint8_t some[4] = { 1, 0, 0xff, 0 };
    struct setup s;

    set_up(&s);
    CHECK_INT(assign(&s, MSIX, TRIGGER, 0, 6), 0);
    CHECK_INT(set(&s, MSIX, NONE | TRIGGER, 1, 3), 0);
    check_signals(&s, "01110000");
    CHECK_INT(peer_set_irqs(&s.peer, MSIX, BOOL | TRIGGER, 2, 4, some, NULL, 0), 0);
    check_signals(&s, "00101000");
    tear_down(&s);
}

TEST(masked, "masked-vector-remembers-one-trigger")
{
    static const uint8_t some[3] = { 0, 1, 0 };
    struct setup s;

    set_up(&s);
    CHECK_INT(assign(&s, MSIX, TRIGGER, 0, 3), 0);
    CHECK_INT(set(&s, MSIX, NONE | MASK, 0, 3), 0);
    for (uint32_t i = 0; i < 6; i++)
        CHECK_INT(ob_server_irq_trigger(s.server, MSIX, i % 2), 0);
    check_signals(&s, "000");
    CHECK_INT(peer_set_irqs(&s.peer, MSIX, BOOL | UNMASK, 0, 3, some, NULL, 0), 0);
    check_signals(&s, "010");
    CHECK_INT(set(&s, MSIX, NONE | UNMASK, 0, 3), 0);
    check_signals(&s, "100");
    CHECK_INT(peer_set_irqs(&s.peer, MSIX, BOOL | MASK, 0, 3, some, NULL, 0), 0);
    for (uint32_t i = 0; i < 3; i++)
        CHECK_INT(ob_server_irq_trigger(s.server, MSIX, i), 0);
    check_signals(&s, "101");
    tear_down(&s);
}

static void poke(struct setup *s, int fd)
{
    uint64_t one = 1;

    CHECK_INT(write(fd, &one, sizeof(one)), sizeof(one));
    peer_settle(s->server);
}

TEST(mask_by_eventfd, "eventfds-mask-and-unmask")
{
    struct setup s;
    int mask, unmask;

    set_up(&s);
    mask = eventfd(0, 0); /* blocking ones: the server must not care */
    unmask = eventfd(0, 0);
    CHECK_INT(assign(&s, MSIX, TRIGGER, 0, 2), 0);
    CHECK_INT(peer_set_irqs(&s.peer, MSIX, EVENTFD | MASK, 1, 1, NULL, &mask, 1), 0);
    CHECK_INT(peer_set_irqs(&s.peer, MSIX, EVENTFD | UNMASK, 1, 1, NULL, &unmask, 1), 0);
    for (int round = 0; round < 3; round++) {
        poke(&s, mask);
        CHECK_INT(ob_server_irq_trigger(s.server, MSIX, 0), 0);
        CHECK_INT(ob_server_irq_trigger(s.server, MSIX, 1), 0);
        check_signals(&s, "10");
        poke(&s, unmask);
        check_signals(&s, "01");
    }
    CHECK_INT(set(&s, MSIX, EVENTFD | MASK, 1, 1), 0); /* taken back */
    poke(&s, mask);
    CHECK_INT(ob_server_irq_trigger(s.server, MSIX, 1), 0);
    check_signals(&s, "01");
    tear_down(&s); /* with unmask still assigned */
    close(mask);
    close(unmask);
}

TEST(refused, "bad-requests-change-nothing")
{
    struct setup s;
    int pipes[2], fds[2];

    set_up(&s);
    CHECK_INT(pipe(pipes), 0);
    fds[0] = s.fds[0];
    fds[1] = pipes[1];
    CHECK_INT(peer_set_irqs(&s.peer, MSIX, EVENTFD | TRIGGER, 0, 2, NULL, fds, 2), -EINVAL);
    CHECK_INT(peer_set_irqs(&s.peer, MSIX, EVENTFD | UNMASK, 0, 2, NULL, fds, 2), -EINVAL);
    CHECK_INT(peer_set_irqs(&s.peer, MSIX, EVENTFD | TRIGGER, 0, 3, NULL, fds, 1), -EINVAL);
    CHECK_INT(peer_set_irqs(&s.peer, MSIX, NONE | TRIGGER, 0, 1, NULL, fds, 1), -EINVAL);
    CHECK_INT(assign(&s, MSIX, TRIGGER, 7, 1), 0);
    CHECK_INT(set(&s, MSIX, NONE | TRIGGER, 7, 2), -EINVAL);
    CHECK_INT(set(&s, MSIX, NONE | TRIGGER, 0xffffffff, 2), -EINVAL);
    CHECK_INT(set(&s, OB_PCI_IRQS, NONE | TRIGGER, 0, 0), -EINVAL);
    CHECK_INT(set(&s, MSIX, NONE | BOOL | TRIGGER, 0, 1), -EINVAL);
    CHECK_INT(set(&s, MSIX, NONE | MASK | TRIGGER, 0, 1), -EINVAL);
    CHECK_INT(set(&s, MSIX, NONE, 0, 1), -EINVAL);
    CHECK_INT(ob_server_irq_armed(s.server, MSIX), 1);
    close(pipes[0]);
    close(pipes[1]);
    tear_down(&s);
}

TEST(intx, "intx-is-signalled-once-and-again-at-unmask-while-asserted")
{
    struct setup s;

    set_up(&s);
    CHECK_INT(ob_server_intx(s.server, true), 0); /* before there is an eventfd */
    CHECK_INT(assign(&s, INTX, TRIGGER, 0, 1), 0);
    check_signals(&s, "1");
    CHECK_INT(ob_server_intx(s.server, false), 0);
    CHECK_INT(ob_server_intx(s.server, true), 0);
    check_signals(&s, "0"); /* masked by the signal before */
    CHECK_INT(set(&s, INTX, NONE | UNMASK, 0, 1), 0);
    check_signals(&s, "1");
    CHECK_INT(set(&s, INTX, NONE | UNMASK, 0, 1), 0);
    check_signals(&s, "1");
    CHECK_INT(ob_server_intx(s.server, false), 0);
    CHECK_INT(set(&s, INTX, NONE | UNMASK, 0, 1), 0);
    check_signals(&s, "0");
    CHECK_INT(ob_server_intx(s.server, true), 0);
    check_signals(&s, "1");
    tear_down(&s);
}

TEST(separate, "indexes-do-not-share-vectors")
{
    struct setup s;

    set_up(&s);
    CHECK_INT(assign(&s, INTX, TRIGGER, 0, 1), 0);
    CHECK_INT(peer_set_irqs(&s.peer, MSIX, EVENTFD | TRIGGER, 0, 1, NULL, s.fds + 1, 1), 0);
    CHECK_INT(ob_server_irq_trigger(s.server, MSIX, 0), 0);
    check_signals(&s, "01");
    CHECK_INT(set(&s, MSIX, NONE | TRIGGER, 0, 0), 0);
    CHECK_INT(ob_server_intx(s.server, true), 0);
    check_signals(&s, "10");
    tear_down(&s);
}

TEST(left, "eventfds-go-with-the-client")
{
    struct setup s;

    set_up(&s);
    CHECK_INT(assign(&s, MSIX, TRIGGER, 0, 8), 0);
    CHECK_INT(assign(&s, MSIX, UNMASK, 0, 8), 0);
    CHECK_INT(set(&s, MSIX, NONE | MASK, 0, 1), 0);
    CHECK_INT(ob_server_irq_trigger(s.server, MSIX, 0), 0);
    peer_close(&s.peer);
    CHECK_INT(ob_server_irq_armed(s.server, MSIX), 0);
    CHECK_INT(ob_server_irq_trigger(s.server, MSIX, 0), -ENOENT);
    peer_attach(&s.peer, s.server);
    CHECK_INT(assign(&s, MSIX, TRIGGER, 0, 1), 0); /* neither masked nor pending */
    check_signals(&s, "0");
    CHECK_INT(ob_server_irq_trigger(s.server, MSIX, 0), 0);
    check_signals(&s, "1");
    tear_down(&s);
}

TEST(full_counter, "full-eventfd-does-not-block")
{
    uint64_t brim = 0xfffffffffffffffe;
    struct setup s;
    int fd = eventfd(0, EFD_CLOEXEC);

    set_up(&s);
    CHECK_INT(write(fd, &brim, sizeof(brim)), sizeof(brim));
    CHECK_INT(peer_set_irqs(&s.peer, MSIX, EVENTFD | TRIGGER, 0, 1, NULL, &fd, 1), 0);
    CHECK_INT(ob_server_irq_trigger(s.server, MSIX, 0), 0);
    tear_down(&s);
    close(fd);
}

/* Fills the counter again and again; ends when nothing was signalled for a while, or it was told.
 */
struct filler {
    int fd;
    uint32_t signalled; /* by the device, so far */
    bool stop, blocked;
};

static void *keep_full(void *opaque)
{
    static const uint64_t brim = 0xfffffffffffffffe;
    struct filler *f = opaque;
    uint64_t count;

    while (!__atomic_load_n(&f->stop, __ATOMIC_RELAXED) && !f->blocked) {
        uint32_t before = __atomic_load_n(&f->signalled, __ATOMIC_RELAXED);
        int64_t until_ms = test_now_ms() + 20000;

        if (read(f->fd, &count, sizeof(count)) != sizeof(count) ||
            write(f->fd, &brim, sizeof(brim)) != sizeof(brim))
            continue;
        while (__atomic_load_n(&f->signalled, __ATOMIC_RELAXED) - before < 3 && !f->blocked &&
               !__atomic_load_n(&f->stop, __ATOMIC_RELAXED))
            f->blocked = test_now_ms() > until_ms;
    }
    (void)!read(f->fd, &count, sizeof(count));
    return NULL;
}

TEST(filled_counter, "client-that-fills-an-eventfd-meanwhile-does-not-stop-the-server")
{
    struct filler f = { .fd = eventfd(1, EFD_CLOEXEC) };
    int64_t until_ms = test_now_ms() + 3000;
    struct setup s;
    pthread_t thread;
    uint64_t count;

    set_up(&s);
    CHECK_INT(peer_set_irqs(&s.peer, MSIX, EVENTFD | TRIGGER, 0, 1, NULL, &f.fd, 1), 0);
    CHECK_INT(pthread_create(&thread, NULL, keep_full, &f), 0);
    while (test_now_ms() < until_ms) {
        CHECK_INT(ob_server_irq_trigger(s.server, MSIX, 0), 0);
        __atomic_fetch_add(&f.signalled, 1, __ATOMIC_RELAXED);
    }
    __atomic_store_n(&f.stop, true, __ATOMIC_RELAXED);
    CHECK_INT(fcntl(f.fd, F_SETFL, O_NONBLOCK), 0); /* its thread must not block, either */
    (void)!read(f.fd, &count, sizeof(count));
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK(!f.blocked);
    tear_down(&s);
    close(f.fd);
}

struct trigger {
    struct ob_server *server;
    bool stop;
};

static void *keep_triggering(void *opaque)
{
    struct trigger *trigger = opaque;

    for (uint32_t i = 0; !__atomic_load_n(&trigger->stop, __ATOMIC_RELAXED); i++) {
        ob_server_irq_trigger(trigger->server, MSIX, i % VECTORS);
        ob_server_intx(trigger->server, i & 1);
    }
    return NULL;
}

TEST(threads, "threads-trigger-while-the-client-changes-everything")
{
    struct trigger trigger;
    struct setup s;
    pthread_t thread;

    set_up(&s);
    trigger = (struct trigger){ s.server, false };
    CHECK_INT(pthread_create(&thread, NULL, keep_triggering, &trigger), 0);
    for (int i = 0; i < 100; i++) {
        CHECK_INT(assign(&s, MSIX, TRIGGER, 0, 8), 0);
        CHECK_INT(assign(&s, INTX, TRIGGER, 0, 1), 0);
        CHECK_INT(set(&s, MSIX, NONE | MASK, 0, 4), 0);
        CHECK_INT(set(&s, MSIX, NONE | UNMASK, 2, 2), 0);
        CHECK_INT(set(&s, MSIX, EVENTFD | TRIGGER, 3, 2), 0);
        if (i % 10 == 0) {
            peer_close(&s.peer);
            peer_attach(&s.peer, s.server);
        }
    }
    __atomic_store_n(&trigger.stop, true, __ATOMIC_RELAXED);
    CHECK_INT(pthread_join(thread, NULL), 0);
    tear_down(&s);
}
