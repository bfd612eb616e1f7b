/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The connection to the server.
 *
 * Losing the server is noticed in any thread; all that follows is done by changed_bh_cb() in the
 * main loop. With `reconnect` the client library looks for the server again (client.h), and what
 * the guest does meanwhile is done later: memory, interrupts, resets and posted writes by the
 * library, what a vCPU waits for by access.c, which repeats it. For the rest the device stays
 * plugged and silent: `away`, from the first loss that the main loop has seen to the return.
 */
#include "device.h"

#define COMPLAIN_EVERY_MS 5000
#define SAID_MAX          40 /* lines a minute on the server's coming and going */

bool obq_link_alive(const ObPci *d)
{
    return d->link.client && ob_client_state(d->link.client) != OB_CLIENT_LOST;
}

static void complain(ObPci *d, const char *text)
{
    const char *id = DEVICE(d)->id;

    error_report("%s%s%s (%s): %s", obq_type_name(d), id ? " " : "", id ? id : "", d->link.name,
                 text);
}

void obq_link_complain(ObPci *d, const char *format, ...)
{
    int64_t now_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    va_list args;
    char *text;

    assert(OB_BQL_HELD());
    if (now_ms < d->link.quiet_until_ms) {
        return;
    }
    d->link.quiet_until_ms = now_ms + COMPLAIN_EVERY_MS;
    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    complain(d, text);
    g_free(text);
}

void obq_link_error(ObPci *d, Error **errp, int rc, const char *what)
{
    const char *why = ob_client_error(d->link.client);
    char text[128];

    error_setg(errp, "%s: %s: %s", d->link.name, what,
               why ? why : ob_strerror(rc, text, sizeof(text)));
}

static void ready_cb(void *opaque)
{
    ObPci *d = opaque;

    ob_client_step(d->link.client); /* a failure comes as lost_cb() */
}

char *obq_link_why(ObPci *d)
{
    char *why;

    qemu_mutex_lock(&d->link.lock);
    why = g_strdup(d->link.why ? d->link.why : "");
    qemu_mutex_unlock(&d->link.lock);
    return why;
}

/* A server that comes and goes for ever fills no log. */
static bool link_may_say(ObPci *d)
{
    int64_t now_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);

    if (now_ms - d->link.minute_ms >= 60000) {
        d->link.minute_ms = now_ms;
        d->link.said = 0;
    }
    return d->link.said++ < SAID_MAX;
}

/* What the device looks like to the guest while its server is not there. */
static void link_went(ObPci *d)
{
    char *why = obq_link_why(d), *text;

    text = g_strdup_printf("lost the server: %s; looking for it for %" PRIu32 " s (reconnect)", why,
                           d->reconnect_s);
    if (link_may_say(d)) {
        complain(d, text);
    }
    g_free(text);
    d->link.away = true;
    obq_event_send(d, OBQ_EVENT_LOST, why);
    g_free(why);
    d->link.went_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    obq_bars_block(d);
}

static void link_returned(ObPci *d)
{
    const char *id = DEVICE(d)->id;

    d->link.away = false;
    obq_link_limit(d, true);
    obq_bars_unblock(d);
    obq_link_limit(d, false);
    obq_event_send(d, OBQ_EVENT_REGAIN, NULL);
    if (link_may_say(d)) {
        info_report("%s%s%s (%s): the server is back after %" PRId64 " ms", obq_type_name(d),
                    id ? " " : "", id ? id : "", d->link.name,
                    qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - d->link.went_ms);
    }
}

static void link_lost(ObPci *d)
{
    char *text = g_strdup_printf("lost the server: %s; the guest reads all-ones until the device "
                                 "is unplugged",
                                 ob_client_error(d->link.client));

    d->link.lost = true;
    d->link.away = false;
    qemu_set_fd_handler(ob_client_fd(d->link.client), NULL, NULL, NULL);
    complain(d, text);
    g_free(text);
    obq_event_send(d, OBQ_EVENT_LOST, ob_client_error(d->link.client));
    obq_aer_report_loss(d);
    obq_bars_block(d);
    obq_irq_stop(d);
}

/* The connection may have gone and come several times since the last call. */
static void changed_bh_cb(void *opaque)
{
    ObPci *d = opaque;
    bool gone;

    if (d->link.lost || !d->link.client) {
        return;
    }
    gone = qatomic_xchg(&d->link.gone, false);
    if (ob_client_state(d->link.client) == OB_CLIENT_LOST) {
        link_lost(d);
        return;
    }
    if (gone && !d->link.away) {
        link_went(d);
    }
    if (d->link.away && ob_client_connected(d->link.client)) {
        link_returned(d);
    }
}

static void set_why(ObPci *d, const char *why)
{
    qemu_mutex_lock(&d->link.lock);
    g_free(d->link.why);
    d->link.why = g_strdup(why);
    qemu_mutex_unlock(&d->link.lock);
}

static void lost_cb(void *opaque, const char *why)
{
    ObPci *d = opaque;

    set_why(d, why);
    qemu_bh_schedule(d->link.changed_bh);
}

static void interrupted_cb(void *opaque, const char *why)
{
    ObPci *d = opaque;

    qatomic_set(&d->link.gone, true);
    lost_cb(d, why);
}

static void resumed_cb(void *opaque)
{
    ObPci *d = opaque;

    qemu_bh_schedule(d->link.changed_bh);
}

void obq_link_shutdown(ObPci *d)
{
    if (d->link.client) {
        ob_client_shutdown(d->link.client, "the device was unplugged");
    }
}

void obq_link_give_up(ObPci *d, int rc, const char *why)
{
    if (rc == -ETIMEDOUT && d->reconnect_s) {
        ob_client_disconnect(d->link.client, why);
    } else if (obq_link_alive(d)) { /* else lost_cb() has been told the first reason */
        ob_client_shutdown(d->link.client, why);
        lost_cb(d, why);
    }
}

int obq_link_control(ObPci *d, int rc, const char *what)
{
    if (rc == -ETIMEDOUT && obq_link_alive(d)) {
        char *why = g_strdup_printf("no answer within %" PRIu32 " ms to %s (x-msg-timeout gives it "
                                    "more time)",
                                    d->timeout_ms, what);

        obq_link_give_up(d, rc, why);
        g_free(why);
    }
    return rc;
}

void obq_link_limit(ObPci *d, bool limited)
{
    if (d->link.client) {
        ob_client_limit(d->link.client, limited ? (int)d->timeout_ms : 0);
    }
}

/* Asks what the device is. An IRQ index that the server does not want to talk about is absent. */
static bool link_query(ObPci *d, Error **errp)
{
    int rc = ob_client_device_info(d->link.client, &d->info);

    if (rc < 0) {
        obq_link_error(d, errp, rc, "the server does not say what device it is");
        return false;
    }
    if (!(d->info.flags & OB_DEVICE_PCI)) {
        error_setg(errp, "%s: the device is not a PCI device", d->link.name);
        return false;
    }
    if (d->info.num_regions <= OB_PCI_REGION_CONFIG) {
        error_setg(errp,
                   "%s: the device has %" PRIu32 " regions, and so no config space (region "
                   "%d)",
                   d->link.name, d->info.num_regions, OB_PCI_REGION_CONFIG);
        return false;
    }
    for (unsigned i = 0; i < OB_PCI_IRQS && i < d->info.num_irqs; i++) {
        struct ob_irq_info irq;

        rc = ob_client_irq_info(d->link.client, i, &irq);
        if (rc >= 0) {
            d->irqs[i] = irq;
            d->irqs[i].count = irq.flags & OB_IRQ_EVENTFD ? MIN(irq.count, OB_IRQ_VECTORS_MAX) : 0;
        } else if (ob_err_class(rc) != OB_ERR_PEER) {
            obq_link_error(d, errp, rc, "the server does not say what interrupts it has");
            return false;
        }
    }
    return true;
}

bool obq_link_init(ObPci *d, Error **errp)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    int64_t until_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + d->timeout_ms;

    if (d->timeout_ms == 0 || d->timeout_ms > INT_MAX) {
        error_setg(errp, "x-msg-timeout is %" PRIu32 ": it is milliseconds, at least 1",
                   d->timeout_ms);
        return false;
    }
    if (d->spin_us > OB_SPIN_US_MAX) {
        error_setg(errp, "spin-us is %" PRIu32 ": it is microseconds, at most %u", d->spin_us,
                   OB_SPIN_US_MAX);
        return false;
    }
    if (d->reconnect_s > INT_MAX / 1000) {
        error_setg(errp, "reconnect is %" PRIu32 ": it is seconds, at most %d", d->reconnect_s,
                   INT_MAX / 1000);
        return false;
    }
    opt.timeout_ms = (int)d->timeout_ms;
    opt.reconnect_ms = (int)d->reconnect_s * 1000;
    opt.spin_us = d->spin_us;
    opt.dma_read = obq_dma_read_cb;
    opt.dma_write = obq_dma_write_cb;
    opt.dma_lend = obq_dma_lend_cb;
    opt.dma_return = obq_dma_return_cb;
    opt.lost = lost_cb;
    opt.interrupted = interrupted_cb;
    opt.resumed = resumed_cb;
    opt.any_files = d->mmap_unsealed;
    opt.opaque = d;
    opt.single_socket = true; /* the server can hold the lock of one that it makes (SECURITY.md) */

    d->link.silent = false;
    d->link.lost = d->link.closing = d->link.gone = d->link.away = false;
    d->link.name = obq_socket_name(d->socket);
    d->link.changed_bh = qemu_bh_new(changed_bh_cb, d);
    memset(d->irqs, 0, sizeof(d->irqs));
    if (obq_socket_connect(d, &opt, &d->link.client, errp) < 0) {
        return false;
    }
    qemu_set_fd_handler(ob_client_fd(d->link.client), ready_cb, NULL, d);
    /* Together with what connecting took; obq_pci_realize() ends it. */
    ob_client_limit(d->link.client, (int)MAX(1, until_ms - qemu_clock_get_ms(QEMU_CLOCK_REALTIME)));
    return link_query(d, errp);
}

void obq_link_fini(ObPci *d)
{
    struct ob_client *client = d->link.client;

    if (client) {
        /* For accesses without the BQL, too.
         * NOLINTNEXTLINE(bugprone-sizeof-expression): a pointer's size is what the macro wants */
        qatomic_set(&d->link.client, NULL);
        qemu_set_fd_handler(ob_client_fd(client), NULL, NULL, NULL);
        obq_access_drain(d);
        ob_client_free(client);
    }
    if (d->link.changed_bh) {
        qemu_bh_delete(d->link.changed_bh);
        d->link.changed_bh = NULL;
    }
    g_free(d->link.name);
    g_free(d->link.why);
    d->link.name = d->link.why = NULL;
}
