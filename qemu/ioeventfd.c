/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes that the server wants to hear of by eventfd. KVM signals it without leaving the kernel;
 * without KVM we do. Either way the server is not waited for. Areas that are mapped are left alone:
 * what the guest writes there is nobody's business.
 *
 * QEMU would signal by write(), which a server can make block for good. The client library has a
 * way that never does; where that is not to be had there are messages.
 *
 * QEMU ends itself when KVM refuses an eventfd. So nothing is taken from the server that KVM would
 * not take (the client library sees to that), and not too much of it: KVM has room for 1000 in a
 * VM, other devices' among them, so there is a limit for all of ours together as well.
 */
#include "device.h"

#include "qemu/range.h"

#define PER_BAR_MAX 16
#define TOTAL_MAX   256

static unsigned total; /* under the BQL */

static bool matches(const struct ob_ioeventfd *match, hwaddr addr, uint64_t data, unsigned size)
{
    return match->offset == addr && match->size == size &&
           (!(match->flags & OB_IOEVENTFD_DATAMATCH) || match->datamatch == data);
}

static bool signal_event(ObBar *bar, hwaddr addr, uint64_t data, unsigned size)
{
    assert(OB_BQL_HELD());
    for (unsigned i = 0; i < bar->nevents; i++) {
        ObIoEvent *event = &bar->events[i];

        if (matches(&event->match, addr, data, size)) {
            return ob_region_io_fd_signal(event_notifier_get_fd(&event->notifier)) == 0;
        }
    }
    return false;
}

bool obq_ioeventfds_signal(ObBar *bar, hwaddr addr, uint64_t data, unsigned size)
{
    bool done, taken;

    if (kvm_enabled() || !qatomic_read(&bar->nevents)) {
        return false;
    }
    taken = obq_bql_take(); /* they come and go with the server */
    done = signal_event(bar, addr, data, size);
    obq_bql_give(taken);
    return done;
}

/* Writes of any size are left to messages: not every KVM knows them. */
static bool usable(const ObBar *bar, const struct ob_ioeventfd *match)
{
    if (!match->size || !ob_ioeventfd_valid(match, bar->size)) {
        return false;
    }
    for (unsigned i = 0; i < bar->nmaps; i++) {
        if (ranges_overlap(match->offset, match->size, bar->maps[i].mr.addr, bar->maps[i].size)) {
            return false;
        }
    }
    return true;
}

static void add_event(ObBar *bar, const struct ob_ioeventfd *match, int fd)
{
    ObIoEvent *event = &bar->events[bar->nevents];

    qatomic_set(&bar->nevents, bar->nevents + 1);
    total++;
    event->match = *match;
    event_notifier_init_fd(&event->notifier, fd);
    if (kvm_enabled()) {
        memory_region_add_eventfd(&bar->trapped, match->offset, match->size,
                                  match->flags & OB_IOEVENTFD_DATAMATCH, match->datamatch,
                                  &event->notifier);
    }
}

/* A server that does not know the command, or refuses it, has none. */
bool obq_ioeventfds_init(ObBar *bar, Error **errp)
{
    ObPci *d = bar->d;
    struct ob_region_io_fds *fds = g_new0(struct ob_region_io_fds, 1);
    int rc = ob_client_region_io_fds(d->link.client, bar->index, fds);

    if (ob_err_class(rc) == OB_ERR_TRANSPORT) {
        obq_link_error(d, errp, rc, "the server does not say which writes it wants by eventfd");
    }
    if (rc < 0 || !fds->count) {
        ob_region_io_fds_fini(fds);
        g_free(fds);
        return ob_err_class(rc) != OB_ERR_TRANSPORT;
    }
    bar->io_fds = fds;
    bar->events = g_new0(ObIoEvent, PER_BAR_MAX);
    for (unsigned i = 0; i < fds->count && bar->nevents < PER_BAR_MAX && total < TOTAL_MAX; i++) {
        if (usable(bar, &fds->entries[i].match)) {
            add_event(bar, &fds->entries[i].match, fds->entries[i].fd);
        }
    }
    return true;
}

void obq_ioeventfds_fini(ObBar *bar)
{
    while (bar->nevents) {
        ObIoEvent *event = &bar->events[bar->nevents - 1];

        qatomic_set(&bar->nevents, bar->nevents - 1);
        total--;
        if (kvm_enabled()) {
            memory_region_del_eventfd(&bar->trapped, event->match.offset, event->match.size,
                                      event->match.flags & OB_IOEVENTFD_DATAMATCH,
                                      event->match.datamatch, &event->notifier);
        }
    }
    if (bar->io_fds) {
        ob_region_io_fds_fini(bar->io_fds);
    }
    g_free(bar->io_fds);
    g_free(bar->events);
    bar->io_fds = NULL;
    bar->events = NULL;
}
