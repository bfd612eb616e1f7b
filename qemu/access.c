/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Accesses that wait for the server, without the BQL, so that other vCPUs, the monitor and other
 * devices go on. There are three kinds:
 *
 *   without the BQL     to a BAR, since QEMU 10.2: from a vCPU under KVM, or to a port under TCG,
 *                       and from a thread that does another device's DMA
 *   that give it up     a vCPU's to configuration space, and to a BAR where QEMU has taken the BQL:
 *                       before 10.2, and under TCG to memory
 *   that keep it        the main loop's (reset, the monitor, qtest, DMA): they wait for the
 *                       deadline at most
 *
 * Meanwhile the device may be reset, unplugged, or lose its server. The client: an access counts
 * itself as `waiting` and only then looks for the client, obq_link_fini() takes the client away and
 * only then waits for the count (obq_access_drain()), having waked who is inside: so either sees
 * the other. The object: QEMU finds a BAR's region in the memory map and uses it within one section
 * of RCU, and the map's reference to the device outlasts that; configuration space is found through
 * the bus, so that an access to it takes a reference. The memory map may change as well (a mapped
 * area, switched off for INTx), while the vCPU is in the middle of translated code.
 *
 * So what an access to a BAR runs without the BQL (bars.c, here, and the first lines of
 * obq_intx_served() and obq_ioeventfds_signal()) uses only what does not change between realize and
 * the object's end, what is atomic, and the client between access_enter() and access_leave(). For
 * all else it takes the BQL with obq_bql_take(), after access_leave(): obq_access_drain() holds it,
 * and waits for who is inside. What it finds then may have been torn down.
 */
#include "device.h"

/* Deadlines in which accesses were left unanswered, and none was answered, until the server counts
 * as gone: else each further access would cost the guest one more. */
#define SILENT_DEADLINES 3

/* What an access must put back. */
typedef struct Wait {
    bool counted;
    bool unlocked; /* it gave the BQL up */
    MemReentrancyGuard *guard;
    bool engaged;
    const FlatView *view; /* the vCPU's memory map */
} Wait;

static void unref_bh_cb(void *opaque)
{
    object_unref(OBJECT(opaque));
}

/*
 * The host bridge's guard against re-entrance is engaged while a vCPU is inside a configuration
 * access. It belongs to whoever holds the BQL, so it is put aside with the BQL: else the next
 * vCPU's access to the configuration of any device would be refused. An expander bridge has a root
 * bus of its own, but its configuration is reached through the machine's host bridge as well.
 */
static MemReentrancyGuard *config_guard(ObPci *d)
{
    PCIBus *bus = pci_get_bus(PCI_DEVICE(d));

    while (bus->parent_dev) {
        bus = pci_get_bus(bus->parent_dev);
    }
    return &bus->qbus.parent->mem_reentrancy_guard;
}

static struct ob_client *access_enter(ObPci *d, bool may_unlock, Wait *wait)
{
    bool held = OB_BQL_HELD();
    struct ob_client *client = held ? d->link.client : NULL;

    wait->unlocked = client && may_unlock;
    wait->counted = wait->unlocked || !held;
    if (wait->counted) {
        qatomic_inc(&d->link.waiting);
    }
    if (!held) {
        smp_mb(); /* the other half of obq_access_drain()'s */
        /* NOLINTNEXTLINE(bugprone-sizeof-expression): a pointer's size is what the macro wants */
        return qatomic_read(&d->link.client);
    }
    if (!wait->unlocked) {
        return client;
    }
    wait->guard = config_guard(d);
    wait->engaged = wait->guard->engaged_in_io;
    wait->guard->engaged_in_io = false;
    wait->view = current_cpu ? current_cpu->as->current_map : NULL;
    object_ref(OBJECT(d));
    OB_BQL_UNLOCK();
    return client;
}

static void access_leave(ObPci *d, Wait *wait)
{
    bool last;

    if (!wait->counted) {
        return;
    }
    last = qatomic_fetch_dec(&d->link.waiting) == 1;
    smp_mb(); /* the other half of obq_access_drain()'s */
    if (last && qatomic_read(&d->link.closing)) {
        qemu_mutex_lock(&d->link.lock);
        qemu_cond_signal(&d->link.idle);
        qemu_mutex_unlock(&d->link.lock);
    }
    if (!wait->unlocked) {
        return;
    }
    OB_BQL_LOCK();
    if (current_cpu && current_cpu->as->current_map != wait->view) {
        OB_TLB_FLUSH(current_cpu); /* or the next access in this translation goes elsewhere */
    }
    wait->guard->engaged_in_io = wait->engaged;
    if (d->link.client) {
        object_unref(OBJECT(d));
    } else {
        /* Unplugged meanwhile: our callers still look at the device, so it goes after them. */
        aio_bh_schedule_oneshot(qemu_get_aio_context(), unref_bh_cb, d);
    }
}

/* After an access that may wait: whether it failed because the server went, and is to be repeated,
 * because the server is back in time. *until_ms is 0 before the first failure. */
static bool access_again(ObPci *d, struct ob_client *client, int rc, int64_t *until_ms)
{
    int64_t now_ms;

    if (rc != -ENOTCONN || !client || !d->reconnect_s) {
        return false;
    }
    now_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    if (!*until_ms) {
        *until_ms = now_ms + d->timeout_ms;
    }
    return now_ms < *until_ms && ob_client_await(client, (int)(*until_ms - now_ms)) == 0;
}

static void access_silent(ObPci *d)
{
    int64_t now_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    char *why;

    if (!d->link.silent) {
        d->link.silent_since_ms = now_ms - d->timeout_ms;
        qatomic_set(&d->link.silent, true);
    }
    if (now_ms - d->link.silent_since_ms < (int64_t)SILENT_DEADLINES * d->timeout_ms) {
        return;
    }
    qatomic_set(&d->link.silent, false);
    why = g_strdup_printf("it has answered no access for %u times %" PRIu32 " ms (x-msg-timeout "
                          "gives it more time)",
                          SILENT_DEADLINES, d->timeout_ms);
    obq_link_give_up(d, -ETIMEDOUT, why);
    g_free(why);
}

static int access_result(ObPci *d, int rc, const char *what, uint32_t region, uint64_t offset)
{
    bool late = rc == -ETIMEDOUT, taken;

    if (!late && !qatomic_read(&d->link.silent)) {
        return rc;
    }
    taken = obq_bql_take();
    if (late && d->link.client) {
        obq_link_complain(d, "no answer within %" PRIu32 " ms to a %s of %s at 0x%" PRIx64,
                          d->timeout_ms, what, ob_strregion(region), offset);
        access_silent(d);
    } else {
        qatomic_set(&d->link.silent, false);
    }
    obq_bql_give(taken);
    return rc;
}

static int access_region(ObPci *d, bool is_write, uint32_t region, uint64_t offset, void *data,
                         uint32_t count, bool wait_unlocked)
{
    Wait wait;
    struct ob_client *client = access_enter(d, wait_unlocked, &wait);
    int64_t until_ms = 0;
    int rc;

    do {
        rc = !client    ? -ENOTCONN
             : is_write ? ob_client_region_write(client, region, offset, data, count)
                        : ob_client_region_read(client, region, offset, data, count);
    } while (wait_unlocked && access_again(d, client, rc, &until_ms));
    access_leave(d, &wait);
    return access_result(d, rc, is_write ? "write" : "read", region, offset);
}

int obq_access_read(ObPci *d, uint32_t region, uint64_t offset, void *data, uint32_t count,
                    bool wait_unlocked)
{
    return access_region(d, false, region, offset, data, count, wait_unlocked);
}

int obq_access_write(ObPci *d, uint32_t region, uint64_t offset, const void *data, uint32_t count,
                     bool wait_unlocked)
{
    return access_region(d, true, region, offset, (void *)data, count, wait_unlocked);
}

int obq_access_post(ObPci *d, uint32_t region, uint64_t offset, const void *data, uint32_t count,
                    bool now)
{
    Wait wait;
    struct ob_client *client = access_enter(d, false, &wait);
    int rc = -ENOTCONN;

    if (client) {
        rc = now ? ob_client_region_post_now(client, region, offset, data, count)
                 : ob_client_region_post(client, region, offset, data, count);
    }
    access_leave(d, &wait);
    return rc;
}

int obq_access_unmask_intx(ObPci *d, bool wait_unlocked)
{
    Wait wait;
    struct ob_client *client = access_enter(d, wait_unlocked, &wait);
    int rc = client ? ob_client_irq_mask(client, OB_PCI_IRQ_INTX, 0, false) : -ENOTCONN;

    access_leave(d, &wait);
    return rc;
}

int obq_access_probe(ObPci *d)
{
    Wait wait;
    struct ob_client *client = access_enter(d, true, &wait);
    int rc = client ? obq_probe(client) : -ENOTCONN;

    access_leave(d, &wait);
    return rc;
}

void obq_access_drain(ObPci *d)
{
    qatomic_set(&d->link.closing, true);
    smp_mb(); /* either we see that it waits, or it sees that we close, and no client */
    qemu_mutex_lock(&d->link.lock);
    while (qatomic_read(&d->link.waiting)) {
        qemu_cond_wait(&d->link.idle, &d->link.lock);
    }
    qemu_mutex_unlock(&d->link.lock);
}
