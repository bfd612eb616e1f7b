/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whether servers answer at all, asked of all of them at once. A reset of the machine, and a change
 * of guest memory, is done with one device after the other, with the BQL: where the servers of
 * several hang, each would cost the machine a deadline of its own. So the first of the devices has
 * all be asked something, each by a thread; those that do not answer count as gone.
 */
#include "device.h"

#include <pthread.h>
#include <signal.h>

/* What was found out is good for so long: the other devices come next. */
#define FRESH_MS 100

typedef struct Probe {
    ObPci *d;
    pthread_t thread;
    bool started;
    int rc;
} Probe;

int obq_probe(struct ob_client *client)
{
    uint8_t id[2];

    return ob_client_region_read(client, OB_PCI_REGION_CONFIG, PCI_VENDOR_ID, id, sizeof(id));
}

/* DMA of the server may be served here, see dma.c. */
static void *probe_thread(void *opaque)
{
    Probe *probe = opaque;

    probe->rc = obq_probe(probe->d->link.client);
    return NULL;
}

static int collect_cb(Object *object, void *opaque)
{
    GArray *probes = opaque;
    ObPci *d = (ObPci *)object_dynamic_cast(object, TYPE_OB_PCI);

    if (d && obq_link_alive(d) && d->dma.listening) {
        Probe probe = { .d = d };

        g_array_append_val(probes, probe);
    }
    return 0;
}

/* A thread that cannot be had is no reason for anything. Signals are for QEMU's. */
static void ask(Probe *probes, unsigned n)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (unsigned i = 0; i < n; i++) {
        probes[i].started = pthread_create(&probes[i].thread, NULL, probe_thread, &probes[i]) == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    for (unsigned i = 0; i < n; i++) {
        if (probes[i].started) {
            pthread_join(probes[i].thread, NULL);
        }
    }
}

void obq_probe_all(const char *what)
{
    static int64_t fresh_until_ms;
    GArray *probes;

    assert(OB_BQL_HELD());
    if (qemu_clock_get_ms(QEMU_CLOCK_REALTIME) < fresh_until_ms) {
        return;
    }
    probes = g_array_new(false, false, sizeof(Probe));
    object_child_foreach_recursive(object_get_root(), collect_cb, probes);
    if (probes->len > 1) {
        ask((Probe *)probes->data, probes->len);
        for (unsigned i = 0; i < probes->len; i++) {
            const Probe *probe = &g_array_index(probes, Probe, i);

            obq_link_control(probe->d, probe->rc, what);
        }
    }
    g_array_free(probes, true);
    fresh_until_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + FRESH_MS;
}
