/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which of INTx, MSI and MSI-X is armed at the server: one at a time, what the guest has enabled
 * last. (Servers exist that keep one table for all three.) And the two events that concern the
 * device as a whole: ERR and REQ.
 */
#include "device.h"

#include <poll.h>
#include <sys/uio.h>

/* The server has the same open file: it can make it a blocking one, and empty it before us. */
bool obq_event_take(EventNotifier *n)
{
    struct pollfd signalled = { .fd = event_notifier_get_fd(n), .events = POLLIN };
    uint64_t count;
    struct iovec iov = { &count, sizeof(count) };
    ssize_t got = preadv2(signalled.fd, &iov, 1, -1, RWF_NOWAIT);

    if (got < 0 && errno == EOPNOTSUPP && poll(&signalled, 1, 0) == 1) { /* before Linux 5.8 */
        got = read(signalled.fd, &count, sizeof(count));
    }
    return got == sizeof(count);
}

static void irq_start(ObPci *d, ObIrqMode mode)
{
    d->irq_mode = mode;
    if (mode == OB_MODE_INTX) {
        obq_intx_start(d);
    } else if (mode != OB_MODE_NONE) {
        obq_msi_start(d, mode);
    }
}

static ObIrqMode intx_mode(ObPci *d)
{
    return pci_get_byte(PCI_DEVICE(d)->config + PCI_INTERRUPT_PIN) ? OB_MODE_INTX : OB_MODE_NONE;
}

void obq_irq_stop(ObPci *d)
{
    ObIrqMode mode = d->irq_mode;

    d->irq_mode = OB_MODE_NONE;
    if (mode == OB_MODE_INTX) {
        obq_intx_stop(d);
    } else if (mode != OB_MODE_NONE) {
        obq_msi_stop(d, mode);
    }
}

void obq_irq_start_intx(ObPci *d)
{
    obq_irq_stop(d);
    if (obq_link_alive(d)) {
        irq_start(d, intx_mode(d));
    }
}

void obq_irq_update(ObPci *d)
{
    PCIDevice *pdev = PCI_DEVICE(d);
    ObIrqMode mode;

    if (!obq_link_alive(d)) {
        return;
    }
    mode = msix_enabled(pdev) ? OB_MODE_MSIX : msi_enabled(pdev) ? OB_MODE_MSI : intx_mode(d);
    if (mode != d->irq_mode ||
        (mode == OB_MODE_MSI && d->nvectors != msi_nr_vectors_allocated(pdev))) {
        obq_irq_stop(d);
        if (obq_link_alive(d)) {
            irq_start(d, mode);
        }
    } else if (mode == OB_MODE_MSI) {
        obq_msi_update(d);
    }
}

static void err_cb(EventNotifier *n)
{
    ObPci *d = container_of(n, ObPci, events[0]);

    if (obq_event_take(n)) {
        obq_link_complain(d, "the server reports an unrecoverable error of the device");
    }
}

static void req_cb(EventNotifier *n)
{
    ObPci *d = container_of(n, ObPci, events[1]);
    Error *err = NULL;

    if (!obq_event_take(n)) {
        return;
    }
    qdev_unplug(DEVICE(d), &err);
    if (err) {
        obq_link_complain(d, "the server asks for the device to be unplugged, which failed: %s",
                          error_get_pretty(err));
        error_free(err);
    }
}

/* A server without them, or that refuses, is as good as one that never signals them. */
static void event_arm(ObPci *d, unsigned which)
{
    EventNotifier *n = &d->events[which];
    int fd;

    if (!d->irqs[OB_PCI_IRQ_ERR + which].count || event_notifier_init(n, 0) < 0) {
        return;
    }
    d->event_armed[which] = true;
    event_notifier_set_handler(n, which ? req_cb : err_cb);
    fd = event_notifier_get_fd(n);
    obq_link_control(d, ob_client_irq_eventfds(d->link.client, OB_PCI_IRQ_ERR + which, 0, 1, &fd),
                     "arming ERR or REQ");
}

void obq_irq_init(ObPci *d)
{
    PCIDevice *pdev = PCI_DEVICE(d);
    uint8_t pin = d->server_config[PCI_INTERRUPT_PIN];

    pci_config_set_interrupt_pin(pdev->config,
                                 pin <= PCI_NUM_PINS && d->irqs[OB_PCI_IRQ_INTX].count ? pin : 0);
    pci_device_set_intx_routing_notifier(pdev, obq_intx_route_changed);
    obq_irq_update(d);
    for (unsigned i = 0; i < ARRAY_SIZE(d->events); i++) {
        event_arm(d, i);
    }
}

void obq_irq_fini(ObPci *d)
{
    pci_device_set_intx_routing_notifier(PCI_DEVICE(d), NULL);
    obq_irq_stop(d);
    for (unsigned i = 0; i < ARRAY_SIZE(d->events); i++) {
        if (d->event_armed[i]) {
            event_notifier_set_handler(&d->events[i], NULL);
            event_notifier_cleanup(&d->events[i]);
            d->event_armed[i] = false;
        }
    }
}
