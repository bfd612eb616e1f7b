/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * MSI and MSI-X. Masks and pending bits are QEMU's; the server is given one eventfd a vector, all
 * in one go when the guest enables the interrupt, and never hears of a mask. So whoever takes the
 * eventfd's signal decides:
 *
 *   our handler     msi_notify() or msix_notify(): sends the message, or sets the pending bit of a
 *                   masked vector. Always without KVM, and with KVM while the vector is masked.
 *   KVM's irqfd     while the vector is unmasked: the message goes out without waking us.
 *
 * Before the guest reads pending bits what has been signalled is taken in (obq_msi_poll()).
 */
#include "device.h"

/* More vectors than these get their eventfd when the guest first unmasks them: a device with 2048
 * vectors must not use up the process's file descriptors. */
#define ARMED_AT_ONCE 256

static void vector_deliver(ObVector *v)
{
    PCIDevice *pdev = PCI_DEVICE(v->d);

    if (v->d->irq_mode == OB_MODE_MSIX) {
        msix_notify(pdev, v->nr);
    } else if (v->nr < msi_nr_vectors_allocated(pdev)) {
        msi_notify(pdev, v->nr);
    }
}

static void vector_cb(EventNotifier *n)
{
    ObVector *v = container_of(n, ObVector, notifier);

    if (obq_event_take(n)) {
        vector_deliver(v);
    }
}

static int vector_arm(ObVector *v)
{
    int rc = event_notifier_init(&v->notifier, 0);

    if (rc < 0) {
        obq_link_complain(v->d, "no eventfd for interrupt vector %u: %s", v->nr, strerror(-rc));
        return -1;
    }
    v->armed = true;
    event_notifier_set_handler(&v->notifier, vector_cb);
    return event_notifier_get_fd(&v->notifier);
}

/* Lets KVM take the vector's signals. Where it cannot, our handler goes on. */
static void vector_attach(ObVector *v, MSIMessage msg)
{
    PCIDevice *pdev = PCI_DEVICE(v->d);

    if (!v->armed || !kvm_msi_via_irqfd_enabled()) {
        return;
    }
    if (v->virq < 0) {
        v->virq = obq_kvm_add_msi_route(pdev, (int)v->nr);
        if (v->virq < 0) {
            return;
        }
    } else if (v->msg.address != msg.address || v->msg.data != msg.data) {
        kvm_irqchip_update_msi_route(kvm_state, v->virq, msg, pdev);
        kvm_irqchip_commit_routes(kvm_state);
    }
    v->msg = msg;
    if (!v->irqfd) {
        event_notifier_set_handler(&v->notifier, NULL);
        v->irqfd = kvm_irqchip_add_irqfd_notifier_gsi(kvm_state, &v->notifier, NULL, v->virq) >= 0;
        if (!v->irqfd) {
            event_notifier_set_handler(&v->notifier, vector_cb);
        }
    }
}

static void vector_detach(ObVector *v)
{
    if (v->irqfd) {
        kvm_irqchip_remove_irqfd_notifier_gsi(kvm_state, &v->notifier, v->virq);
        v->irqfd = false;
        event_notifier_set_handler(&v->notifier, vector_cb);
    }
}

static void vector_disarm(ObVector *v)
{
    vector_detach(v);
    if (v->virq >= 0) {
        kvm_irqchip_release_virq(kvm_state, v->virq);
    }
    if (v->armed) {
        event_notifier_set_handler(&v->notifier, NULL);
        event_notifier_cleanup(&v->notifier);
    }
}

static uint32_t irq_index(ObIrqMode mode)
{
    return mode == OB_MODE_MSIX ? OB_PCI_IRQ_MSIX : OB_PCI_IRQ_MSI;
}

static void vectors_hand_over(ObPci *d, ObIrqMode mode, unsigned start, unsigned n, const int *fds)
{
    int rc =
        obq_link_control(d, ob_client_irq_eventfds(d->link.client, irq_index(mode), start, n, fds),
                         "arming interrupts");

    if (rc < 0 && obq_link_alive(d)) {
        char text[128];

        obq_link_complain(d,
                          "the server does not take the eventfds of its interrupts (%s): the "
                          "guest will miss them",
                          ob_strerror(rc, text, sizeof(text)));
    }
}

/* Must not fail: msix.c asserts it. */
static int msix_use(PCIDevice *pdev, unsigned nr, MSIMessage msg)
{
    ObPci *d = OB_PCI(pdev);
    ObVector *v = &d->vectors[nr];

    if (!v->armed && obq_link_alive(d)) {
        int fd = vector_arm(v);

        if (fd >= 0) {
            vectors_hand_over(d, OB_MODE_MSIX, nr, 1, &fd);
        }
    }
    vector_attach(v, msg);
    return 0;
}

static void msix_release(PCIDevice *pdev, unsigned nr)
{
    vector_detach(&OB_PCI(pdev)->vectors[nr]);
}

static void msix_poll(PCIDevice *pdev, unsigned start, unsigned end)
{
    obq_msi_poll(OB_PCI(pdev), start, end);
}

void obq_msi_poll(ObPci *d, unsigned start, unsigned end)
{
    for (unsigned i = start; i < end && i < d->nvectors; i++) {
        ObVector *v = &d->vectors[i];

        if (v->armed && !v->irqfd && obq_event_take(&v->notifier)) {
            vector_deliver(v);
        }
    }
}

void obq_msi_update(ObPci *d)
{
    PCIDevice *pdev = PCI_DEVICE(d);

    for (unsigned i = 0; i < d->nvectors; i++) {
        if (msi_is_masked(pdev, i)) {
            vector_detach(&d->vectors[i]);
        } else {
            vector_attach(&d->vectors[i], msi_get_message(pdev, i));
        }
    }
}

void obq_msi_start(ObPci *d, ObIrqMode mode)
{
    PCIDevice *pdev = PCI_DEVICE(d);
    int fds[ARMED_AT_ONCE];
    unsigned armed;

    d->nvectors = mode == OB_MODE_MSIX ? pdev->msix_entries_nr : msi_nr_vectors_allocated(pdev);
    d->vectors = g_new0(ObVector, d->nvectors);
    armed = MIN(d->nvectors, ARMED_AT_ONCE);
    for (unsigned i = 0; i < d->nvectors; i++) {
        d->vectors[i] = (ObVector){ .d = d, .nr = i, .virq = -1 };
        if (i < armed) {
            fds[i] = vector_arm(&d->vectors[i]);
        }
    }
    vectors_hand_over(d, mode, 0, armed, fds);
    if (mode == OB_MODE_MSIX) {
        msix_set_vector_notifiers(pdev, msix_use, msix_release, msix_poll);
    } else {
        obq_msi_update(d);
    }
}

void obq_msi_stop(ObPci *d, ObIrqMode mode)
{
    if (mode == OB_MODE_MSIX) {
        msix_unset_vector_notifiers(PCI_DEVICE(d));
    }
    if (obq_link_alive(d)) {
        obq_link_control(d, ob_client_irq_disable(d->link.client, irq_index(mode)),
                         "disabling interrupts");
    }
    for (unsigned i = 0; i < d->nvectors; i++) {
        vector_disarm(&d->vectors[i]);
    }
    g_free(d->vectors);
    d->vectors = NULL;
    d->nvectors = 0;
}
