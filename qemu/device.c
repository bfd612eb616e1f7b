/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The device type: properties, plugging in, resetting, unplugging. */
#include "device.h"

#include "qapi/visitor.h"

/* Also undoes a realize that failed half way, so it asks nothing about how far that came. The
 * connection ends first, which takes everything back at the server: nothing is sent any more. */
static void obq_pci_teardown(ObPci *d)
{
    obq_unblock_migration(&d->migration_blocker);
    obq_link_shutdown(d);
    obq_irq_fini(d);
    obq_link_fini(d);
    obq_memory_fini(d);
    obq_caps_fini(d);
    obq_bars_fini(d);
}

static bool block_migration(ObPci *d, Error **errp)
{
    error_setg(&d->migration_blocker,
               "%s (%s): migration and snapshots are not supported: "
               "the device's state is in the server's process",
               obq_type_name(d), d->link.name);
    return obq_block_migration(&d->migration_blocker, errp) >= 0;
}

static bool obq_pci_setup(ObPci *d, Error **errp)
{
    if (!obq_socket_settle(d, errp) || !obq_link_init(d, errp) || !block_migration(d, errp) ||
        !obq_config_init(d, errp) || !obq_bars_init(d, errp)) {
        return false;
    }
    obq_caps_init(d);
    if (!obq_rom_init(d, errp) || !obq_memory_init(d, errp)) {
        return false;
    }
    obq_irq_init(d);
    return true;
}

static void obq_pci_realize(PCIDevice *pdev, Error **errp)
{
    ObPci *d = OB_PCI(pdev);

    if (!obq_pci_setup(d, errp)) {
        obq_pci_teardown(d);
    }
    obq_link_limit(d, false);
}

static void obq_pci_exit(PCIDevice *pdev)
{
    obq_pci_teardown(OB_PCI(pdev));
}

static void reset_server(ObPci *d)
{
    int rc;

    obq_link_control(d, obq_config_quiesce(d), "a reset");
    if (!(d->info.flags & OB_DEVICE_RESET) || !obq_link_alive(d)) {
        return;
    }
    rc = obq_link_control(d, ob_client_reset(d->link.client), "a reset");
    if (rc < 0 && obq_link_alive(d)) {
        char text[128];

        obq_link_complain(d, "reset failed: %s", ob_strerror(rc, text, sizeof(text)));
    }
}

/*
 * The device is quiet before the server resets it: no interrupt armed, no bus mastering. QEMU's
 * core clears what it keeps (command, BARs, MSI) afterwards.
 */
static void obq_pci_reset(DeviceState *dev)
{
    ObPci *d = OB_PCI(dev);

    if (!d->flr) { /* before which a vCPU has asked: config.c */
        obq_probe_all("a reset");
    }
    if (!obq_link_alive(d)) {
        return;
    }
    obq_link_limit(d, true);
    obq_irq_stop(d);
    if (!d->flr) {
        reset_server(d);
    }
    obq_irq_start_intx(d);
    obq_link_limit(d, false);
}

static bool get_connected(Object *obj, Error **errp)
{
    ObPci *d = OB_PCI(obj);

    return d->link.client && ob_client_connected(d->link.client);
}

static char *get_last_error(Object *obj, Error **errp)
{
    return obq_link_why(OB_PCI(obj));
}

/* opaque: NULL for the requests, else the reconnects. */
static void get_number(Object *obj, Visitor *v, const char *name, void *opaque, Error **errp)
{
    ObPci *d = OB_PCI(obj);
    struct ob_client_stats stats = { 0 };
    uint64_t value;

    if (d->link.client) {
        ob_client_stats(d->link.client, &stats);
    }
    value = opaque ? stats.reconnects : stats.requests + stats.posted;
    visit_type_uint64(v, name, &value, errp);
}

OB_PROPERTIES obq_pci_properties[] = {
    DEFINE_PROP_UINT32("x-msg-timeout", ObPci, timeout_ms, 5000),
    DEFINE_PROP_UINT32("spin-us", ObPci, spin_us, OB_SPIN_US_DEFAULT),
    DEFINE_PROP_UINT32("reconnect", ObPci, reconnect_s, 0),
    DEFINE_PROP_BOOL("x-send-queued", ObPci, send_queued, false),
    DEFINE_PROP_BOOL("x-no-posted-writes", ObPci, no_posted_writes, false),
    DEFINE_PROP_BOOL("x-mmap-unsealed", ObPci, mmap_unsealed, false),
    DEFINE_PROP_UINT32("x-intx-mmap-timeout-ms", ObPci, intx_mmap_timeout_ms, 1100),
    DEFINE_PROP_UINT32("x-pci-vendor-id", ObPci, vendor_id, OB_ID_ANY),
    DEFINE_PROP_UINT32("x-pci-device-id", ObPci, device_id, OB_ID_ANY),
    DEFINE_PROP_UINT32("x-pci-sub-vendor-id", ObPci, sub_vendor_id, OB_ID_ANY),
    DEFINE_PROP_UINT32("x-pci-sub-device-id", ObPci, sub_device_id, OB_ID_ANY),
    DEFINE_PROP_UINT32("x-pci-class-code", ObPci, class_code, OB_ID_ANY),
    OB_PROPERTIES_END
};

static const struct {
    const char *name, *description;
} descriptions[] = {
    { "x-msg-timeout", "milliseconds that a request to the server may take" },
    { "spin-us", "microseconds to poll for an answer, at most, before a vCPU sleeps; 0: never" },
    { "reconnect", "seconds to look for a server that has gone; 0: the device is lost at once" },
    { "x-send-queued", "accepted for compatibility, without effect" },
    { "x-no-posted-writes", "wait for the server's answer to each write" },
    { "x-mmap-unsealed", "map BARs also from files that the server could cut" },
    { "x-intx-mmap-timeout-ms", "quiet time after INTx before BARs are mapped again" },
    { "x-pci-vendor-id", "vendor id, instead of the server's" },
    { "x-pci-device-id", "device id, instead of the server's" },
    { "x-pci-sub-vendor-id", "subsystem vendor id, instead of the server's" },
    { "x-pci-sub-device-id", "subsystem id, instead of the server's" },
    { "x-pci-class-code", "class code (24 bits), instead of the server's" },
    { "connected", "whether the server is there" },
    { "last-error", "why the connection died last" },
    { "requests", "sent to the server so far, posted writes among them" },
    { "reconnects", "times the server came back" },
};

static void obq_pci_class_init(ObjectClass *klass, OB_CLASS_DATA data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    PCIDeviceClass *pc = PCI_DEVICE_CLASS(klass);

    dc->desc = "PCI device of another process (vfio-user), by Outboard";
    obq_class_set_reset(dc, obq_pci_reset);
    device_class_set_props(dc, obq_pci_properties);
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    pc->realize = obq_pci_realize;
    pc->exit = obq_pci_exit;
    pc->config_read = obq_config_read;
    pc->config_write = obq_config_write;
    obq_socket_class_init(klass);
    object_class_property_add_bool(klass, "connected", get_connected, NULL);
    object_class_property_add_str(klass, "last-error", get_last_error, NULL);
    object_class_property_add(klass, "requests", "uint64", get_number, NULL, NULL, NULL);
    object_class_property_add(klass, "reconnects", "uint64", get_number, NULL, NULL, klass);
    for (unsigned i = 0; i < ARRAY_SIZE(descriptions); i++) {
        object_class_property_set_description(klass, descriptions[i].name,
                                              descriptions[i].description);
    }
}

static void obq_pci_instance_init(Object *obj)
{
    ObPci *d = OB_PCI(obj);

    /* Config space gets its size before realize, where the server is asked what it is. */
    PCI_DEVICE(obj)->cap_present |= QEMU_PCI_CAP_EXPRESS;
    qemu_mutex_init(&d->link.lock);
    qemu_cond_init(&d->link.idle);
    device_add_bootindex_property(obj, &d->bootindex, "bootindex", NULL, DEVICE(obj));
    object_property_set_description(obj, "bootindex", "place in the boot order");
}

static void obq_pci_instance_finalize(Object *obj)
{
    ObPci *d = OB_PCI(obj);

    obq_bars_free(d);
    qapi_free_SocketAddress(d->socket);
    g_free(d->socket_type);
    g_free(d->socket_path);
    qemu_cond_destroy(&d->link.idle);
    qemu_mutex_destroy(&d->link.lock);
}

static const TypeInfo obq_pci_type = {
    .name = TYPE_OB_PCI,
    .parent = TYPE_PCI_DEVICE,
    .instance_size = sizeof(ObPci),
    .instance_init = obq_pci_instance_init,
    .instance_finalize = obq_pci_instance_finalize,
    .class_init = obq_pci_class_init,
    .interfaces =
        (InterfaceInfo[]){ { INTERFACE_PCIE_DEVICE }, { INTERFACE_CONVENTIONAL_PCI_DEVICE }, {} },
};

static const TypeInfo obq_vfio_user_pci_type = {
    .name = TYPE_VFIO_USER_PCI,
    .parent = TYPE_OB_PCI,
};

void obq_pci_register(void)
{
    bool taken = object_class_by_name(TYPE_VFIO_USER_PCI);

    type_register_static(&obq_pci_type);
    if (taken) {
        info_report(TYPE_OB_PCI " is Outboard's device here: this QEMU has a " TYPE_VFIO_USER_PCI
                                " of its own");
    } else {
        type_register_static(&obq_vfio_user_pci_type);
    }
}
