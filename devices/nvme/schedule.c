/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * When the controller works.
 *
 * nvme_step() runs after each step of the server. Doorbells by message, completions of the backend
 * and everything else make some file descriptor readable; then nothing has to be looked at in
 * between. Shadow doorbells are armed before the server sleeps. Stores into the mapped doorbell
 * page are silent: a timer looks, at WAIT_MIN_NS first and half as often each time, down to every
 * WAIT_MAX_NS. While the controller is disabled, or no client is there, nobody looks. The same
 * timer ends the wait of an interrupt that is coalesced.
 *
 * Waking a thread costs more than most commands do. So when there is nothing to do, the controller
 * polls before it sleeps, where that has paid lately, by the server's rules and budget
 * (ob_server_poll_begin(), --spin-us). While it polls it takes many looks for each step of the
 * server, which costs system calls.
 */
#include "nvme.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define WAIT_MIN_NS 50000
#define WAIT_MAX_NS 1600000
#define LOOKS       32u /* in vain, before the server has its turn */
#define WORK_MAX    64u /* commands, likewise */
/* A client that takes over an enabled controller: how long we wait for it to set up interrupts,
 * and how long after that its memory may be incomplete. */
#define PAUSE_NS    1000000000LL
#define GRACE_NS    2000000000LL

int64_t nvme_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* The best kind of interrupts that is set up, as c->armed, and how many there are. */
static uint32_t armed(const struct nvme_ctrl *c, uint32_t *count)
{
    static const uint32_t index[] = {
        [NVME_INTX] = OB_PCI_IRQ_INTX, [NVME_MSI] = OB_PCI_IRQ_MSI, [NVME_MSIX] = OB_PCI_IRQ_MSIX
    };
    uint32_t kind = NVME_MSIX + 1;

    while (kind > 0 && (*count = ob_server_irq_armed(c->server, index[kind - 1])) == 0)
        kind--;
    return kind;
}

static void signal_all(struct nvme_ctrl *c)
{
    for (unsigned i = 0; i <= c->cfg.queues; i++)
        c->cq[i].irq_due = c->cq[i].live && c->cq[i].irq;
}

/*
 * A client that found the controller enabled continues it: after a reconnection the driver knows
 * nothing of what happened, and waits for its interrupts. They are the last that a client sets up
 * again, after its memory; and of the kind that the driver uses, while a new machine, whose memory
 * must be left alone, begins with the pin.
 */
static void resume(struct nvme_ctrl *c)
{
    uint32_t count, kind = armed(c, &count);
    bool ready = c->armed ? kind == c->armed : kind > 0;
    int64_t now = nvme_now_ns();

    if (!ready && (now < c->pause_ns || (c->recovering && c->armed)))
        return;
    c->paused = false;
    c->grace_ns = now + GRACE_NS;
    signal_all(c);
}

/* Keeps in mind what the client has set up. While it is new that may come in several pieces, and an
 * interrupt before the last one be lost. */
static void look_at_interrupts(struct nvme_ctrl *c)
{
    uint32_t count, kind = armed(c, &count);

    if (c->grace_ns && nvme_now_ns() >= c->grace_ns)
        c->grace_ns = 0;
    if (c->grace_ns && count != c->narmed)
        signal_all(c);
    c->narmed = count;
    if (kind == c->armed)
        return;
    c->armed = kind;
    nvme_file_note_armed(c);
}

void nvme_client_changed(void *opaque, bool attached)
{
    struct nvme_ctrl *c = opaque;

    if (!attached) {
        nvme_rings_forget(c, 0, UINT64_MAX);
        ob_server_intx(c->server, false);
        c->intx = false;
        if ((c->csts & NVME_CSTS_RDY) && (c->csts & NVME_CSTS_SHST_MASK) != NVME_CSTS_SHST_COMPLETE)
            c->stats.unsafe_shutdowns++;
        return;
    }
    c->stats.power_cycles++;
    c->bus_master_set = false;
    nvme_take_over(c);
    /* It was handed over in a migration, and the client of that has left. */
    if ((c->csts & NVME_CSTS_RDY) && !c->stopped && nvme_claim_image(c) < 0)
        nvme_fatal(c, "the image is not this server's any more");
}

void nvme_take_over(struct nvme_ctrl *c)
{
    c->paused = c->csts & NVME_CSTS_RDY;
    c->narmed = 0;
    c->pause_ns = nvme_now_ns() + PAUSE_NS;
    c->grace_ns = c->pause_ns + GRACE_NS;
}

/* How much was done: commands that were fetched or posted, and other things. */
static unsigned step(struct nvme_ctrl *c)
{
    unsigned n = 0;

    if (ob_pci_command(c->server) & NVME_BUS_MASTER)
        c->bus_master_set = true;
    if (c->paused && ob_server_attached(c->server))
        resume(c);
    if (!c->paused && ob_server_attached(c->server))
        look_at_interrupts(c);
    if (c->recovering && nvme_may_run(c))
        nvme_recover(c);
    if (nvme_running(c)) {
        n += nvme_doorbells_poll(c);
        n += nvme_fetch(c);
    }
    n += c->blk->ops->poll(c->blk);
    n += nvme_settle(c);
    nvme_file_sync(c); /* before the client or the host can learn of what has changed */
    if (nvme_running(c))
        n += nvme_post(c);
    nvme_count_busy(c, c->inflight > 0);
    return n;
}

/* syscalls: timerfd_settime */
static void set_timer(struct nvme_ctrl *c, int64_t at_ns)
{
    struct itimerspec when = { .it_value = { at_ns / 1000000000, at_ns % 1000000000 } };

    if (c->timer_ns != at_ns)
        timerfd_settime(c->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
    c->timer_ns = at_ns;
}

/* Whether the doorbell page (or, while a client is new, the clock) has to be looked at. */
static bool must_look(const struct nvme_ctrl *c)
{
    return ((c->paused || c->recovering) && ob_server_attached(c->server)) ||
           (c->cfg.mapped && nvme_running(c));
}

/* A time without work begins. */
static void begin_idle(struct nvme_ctrl *c, int64_t now)
{
    if (c->polling)
        ob_server_poll_end(c->server);
    c->idle_ns = now;
    c->spin_ns = nvme_running(c) ? ob_server_poll_begin(c->server) : 0;
    c->polling = c->spin_ns > 0;
    c->looks = 0;
}

static void end_idle(struct nvme_ctrl *c)
{
    if (c->idle_ns == 0)
        return;
    ob_server_poll_learn(c->server, nvme_now_ns() - c->idle_ns);
    c->idle_ns = 0;
    c->look_ns = 0;
    c->wait_ns = WAIT_MIN_NS;
    c->blk->ops->arm(c->blk, false);
}

/* The next time that only a clock tells of, or 0. */
static int64_t next_time(struct nvme_ctrl *c, int64_t now)
{
    int64_t hold_ns = nvme_running(c) ? c->hold_ns : 0;

    if (!must_look(c)) {
        c->look_ns = 0;
        return hold_ns;
    }
    if (now >= c->look_ns) {
        c->look_ns = now + c->wait_ns;
        c->wait_ns = c->wait_ns * 2 < WAIT_MAX_NS ? c->wait_ns * 2 : WAIT_MAX_NS;
    }
    return hold_ns && hold_ns < c->look_ns ? hold_ns : c->look_ns;
}

/* Nothing to do now. True: look again at once; else something will wake us. */
static bool idle(struct nvme_ctrl *c)
{
    int64_t now = nvme_now_ns();

    if (c->idle_ns == 0)
        begin_idle(c, now);
    if (c->polling && nvme_running(c) && now - c->idle_ns < c->spin_ns) {
        ob_server_poll_relax(c->server, c->looks++);
        return true;
    }
    if (c->polling)
        ob_server_poll_end(c->server);
    c->polling = false;
    set_timer(c, next_time(c, now));
    if (c->blk->ops->arm(c->blk, true))
        return true;
    return nvme_running(c) && nvme_doorbells_arm(c);
}

static bool poll_cb(void *opaque)
{
    struct nvme_ctrl *c = opaque;
    unsigned done = 0, vain = 0;

    do {
        unsigned n = step(c);
        done += n;
        vain = n > 0 ? 0 : vain + 1;
    } while (done < WORK_MAX && vain < (c->polling ? LOOKS : 1) &&
             !ob_server_kept_waiting(c->server));
    if (done > 0)
        end_idle(c);
    return (done > 0 && (vain == 0 || c->polling)) || idle(c);
}

/* The work is done in poll_cb(), which follows. */
/* syscalls: read */
static void timer_cb(void *opaque, uint32_t events)
{
    struct nvme_ctrl *c = opaque;
    uint64_t count;

    (void)events;
    if (read(c->timer_fd, &count, sizeof(count)) == sizeof(count))
        c->timer_ns = 0;
}

/* syscalls: read */
static void backend_cb(void *opaque, uint32_t events)
{
    struct nvme_ctrl *c = opaque;
    uint64_t count;

    (void)events;
    if (read(c->blk->event_fd, &count, sizeof(count)) < 0)
        return; /* somebody drained it */
}

int nvme_schedule_init(struct nvme_ctrl *c)
{
    int rc;

    c->wait_ns = WAIT_MIN_NS;
    c->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (c->timer_fd < 0)
        return -errno;
    rc = ob_server_watch(c->server, c->timer_fd, EPOLLIN, timer_cb, c);
    if (rc == 0 && c->blk->event_fd >= 0)
        rc = ob_server_watch(c->server, c->blk->event_fd, EPOLLIN, backend_cb, c);
    if (rc < 0) {
        nvme_schedule_fini(c);
        return rc;
    }
    ob_server_set_poller(c->server, poll_cb, c);
    return 0;
}

void nvme_schedule_fini(struct nvme_ctrl *c)
{
    if (c->polling)
        ob_server_poll_end(c->server);
    ob_server_set_poller(c->server, NULL, NULL);
    if (c->blk->event_fd >= 0)
        ob_server_watch(c->server, c->blk->event_fd, 0, NULL, NULL);
    ob_server_watch(c->server, c->timer_fd, 0, NULL, NULL);
    close(c->timer_fd);
}
