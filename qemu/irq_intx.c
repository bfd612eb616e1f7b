/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * INTx: a level, told by a server that can only say "raised".
 *
 * Without KVM's help the line stays asserted until the guest touches a BAR, which is what serving
 * the interrupt takes; then it is lowered and the server told (UNMASK) to raise it again if it
 * still has a reason. An access to a mapped area would not be seen, so the maps are off while the
 * line is asserted, and come back when it has been quiet for x-intx-mmap-timeout-ms.
 *
 * With KVM's resampling irqfd the guest's EOI lowers the line and signals `unmask`: the server
 * listens on it where it says it can (a maskable or automasked interrupt), else we do.
 */
#include "device.h"

static void mmap_timer_cb(void *opaque)
{
    ObPci *d = opaque;

    if (!d->intx.pending && obq_link_alive(d)) {
        obq_bars_set_mapped(d, true);
    }
}

static void raised_cb(EventNotifier *n)
{
    ObPci *d = container_of(n, ObPci, intx.notifier);

    if (!obq_event_take(n)) {
        return;
    }
    qatomic_set(&d->intx.pending, true);
    if (obq_bars_have_maps(d)) {
        timer_del(d->intx.mmap_timer);
        obq_bars_set_mapped(d, false);
    }
    pci_irq_assert(PCI_DEVICE(d));
}

static void eoi_cb(EventNotifier *n)
{
    ObPci *d = container_of(n, ObPci, intx.unmask);

    if (obq_event_take(n)) {
        obq_link_control(d, obq_access_unmask_intx(d, false), "unmasking INTx");
    }
}

static void intx_lower(ObPci *d, bool wait_unlocked)
{
    assert(OB_BQL_HELD());
    qatomic_set(&d->intx.pending, false);
    pci_irq_deassert(PCI_DEVICE(d));
    if (obq_bars_have_maps(d)) {
        timer_mod(d->intx.mmap_timer,
                  qemu_clock_get_ms(QEMU_CLOCK_VIRTUAL) + d->intx_mmap_timeout_ms);
    }
    obq_access_unmask_intx(d, wait_unlocked);
}

void obq_intx_served(ObPci *d, bool wait_unlocked)
{
    bool taken;

    if (!qatomic_read(&d->intx.pending)) {
        return;
    }
    taken = obq_bql_take();
    if (d->intx.pending) { /* no other vCPU was faster */
        intx_lower(d, wait_unlocked);
    }
    obq_bql_give(taken);
}

/* What the server listens on for the unmasking of INTx; NULL: nothing. */
static int set_unmask_fd(ObPci *d, const int *fd)
{
    return obq_link_control(d,
                            ob_client_set_irqs(d->link.client, OB_PCI_IRQ_INTX,
                                               OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_UNMASK,
                                               0, 1, NULL, fd),
                            "handing over the unmasking of INTx");
}

static bool intx_attach_kvm(ObPci *d)
{
    ObIntx *intx = &d->intx;
    int fd;

    if (!kvm_resamplefds_enabled() || intx->route.mode != PCI_INTX_ENABLED ||
        event_notifier_init(&intx->unmask, 0) < 0) {
        return false;
    }
    if (kvm_irqchip_add_irqfd_notifier_gsi(kvm_state, &intx->notifier, &intx->unmask,
                                           intx->route.irq) < 0) {
        event_notifier_cleanup(&intx->unmask);
        return false;
    }
    fd = event_notifier_get_fd(&intx->unmask);
    intx->unmask_by_server =
        (d->irqs[OB_PCI_IRQ_INTX].flags & (OB_IRQ_MASKABLE | OB_IRQ_AUTOMASKED)) &&
        set_unmask_fd(d, &fd) >= 0;
    if (!intx->unmask_by_server) {
        event_notifier_set_handler(&intx->unmask, eoi_cb);
    }
    return true;
}

static void intx_detach_kvm(ObPci *d)
{
    ObIntx *intx = &d->intx;

    kvm_irqchip_remove_irqfd_notifier_gsi(kvm_state, &intx->notifier, intx->route.irq);
    if (!intx->unmask_by_server) {
        event_notifier_set_handler(&intx->unmask, NULL);
    } else if (obq_link_alive(d)) {
        set_unmask_fd(d, NULL);
    }
    event_notifier_cleanup(&intx->unmask);
    intx->kvm = false;
}

static int intx_pin(ObPci *d)
{
    return pci_get_byte(PCI_DEVICE(d)->config + PCI_INTERRUPT_PIN) - 1;
}

void obq_intx_start(ObPci *d)
{
    ObIntx *intx = &d->intx;
    int fd, rc;

    rc = event_notifier_init(&intx->notifier, 0);
    if (rc < 0) {
        obq_link_complain(d, "no eventfd for INTx (%s): the guest will miss its interrupts",
                          strerror(-rc));
        return;
    }
    intx->armed = true;
    if (!intx->mmap_timer) {
        intx->mmap_timer = timer_new_ms(QEMU_CLOCK_VIRTUAL, mmap_timer_cb, d);
    }
    intx->route = pci_device_route_intx_to_irq(PCI_DEVICE(d), intx_pin(d));
    intx->kvm = intx_attach_kvm(d);
    if (!intx->kvm) {
        event_notifier_set_handler(&intx->notifier, raised_cb);
    }
    fd = event_notifier_get_fd(&intx->notifier);
    rc = obq_link_control(d, ob_client_irq_eventfds(d->link.client, OB_PCI_IRQ_INTX, 0, 1, &fd),
                          "arming INTx");
    if (rc < 0 && obq_link_alive(d)) {
        obq_link_complain(d, "the server does not take the eventfd of INTx: the guest will miss "
                             "its interrupts");
    }
    /* it may be masked from before */
    obq_link_control(d, obq_access_unmask_intx(d, false), "unmasking INTx");
}

void obq_intx_stop(ObPci *d)
{
    ObIntx *intx = &d->intx;

    if (!intx->armed) {
        return;
    }
    if (obq_link_alive(d)) {
        obq_link_control(d, ob_client_irq_disable(d->link.client, OB_PCI_IRQ_INTX),
                         "disabling INTx");
    }
    if (intx->kvm) {
        intx_detach_kvm(d);
    } else {
        event_notifier_set_handler(&intx->notifier, NULL);
    }
    event_notifier_cleanup(&intx->notifier);
    intx->armed = false;
    qatomic_set(&intx->pending, false);
    pci_irq_deassert(PCI_DEVICE(d));
    timer_free(intx->mmap_timer);
    intx->mmap_timer = NULL;
    if (obq_link_alive(d)) {
        obq_bars_set_mapped(d, true);
    }
}

void obq_intx_route_changed(PCIDevice *pdev)
{
    ObPci *d = OB_PCI(pdev);
    PCIINTxRoute now;

    if (d->irq_mode != OB_MODE_INTX || !kvm_resamplefds_enabled()) {
        return;
    }
    now = pci_device_route_intx_to_irq(pdev, intx_pin(d));
    if (pci_intx_route_changed(&d->intx.route, &now)) {
        obq_irq_start_intx(d);
    }
}
