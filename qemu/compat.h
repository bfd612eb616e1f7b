/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What differs between the QEMU versions we compile for (from 7.2 to 11.1) and nothing else. Every
 * file here includes this one first; no other file asks for a version. What moved is asked for by
 * its header; for what changed in place the version is named that changed it.
 */
#ifndef OUTBOARD_QEMU_COMPAT_H
#define OUTBOARD_QEMU_COMPAT_H

#include "qemu/osdep.h"

#include "hw/core/cpu.h"
#include "hw/pci/msi.h"
#include "hw/pci/msix.h"
#include "hw/pci/pci.h"
#include "hw/pci/pci_bus.h"
#include "migration/blocker.h"
#include "migration/vmstate.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/event_notifier.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
#include "qemu/timer.h"
#include "qemu/units.h"

#if __has_include("qobject/qdict.h")
#include "qobject/qdict.h"
#else
#include "qapi/qmp/qdict.h"
#endif

#if __has_include("exec/cpu-common.h")
#include "exec/cpu-common.h"
#endif

#if __has_include("hw/pci/pci_device.h")
#include "hw/pci/pci_device.h"
#endif

#if __has_include("hw/core/qdev-properties.h")
#include "hw/core/qdev-properties.h"
#else
#include "hw/qdev-properties.h"
#endif

#if __has_include("qemu/aio.h")
#include "qemu/aio.h"
#else
#include "block/aio.h"
#endif

#if __has_include("system/kvm.h")
#include "system/kvm.h"
#include "system/system.h"
#else
#include "sysemu/kvm.h"
#include "sysemu/sysemu.h"
#endif

#if __has_include("system/memory.h")
#include "system/address-spaces.h"
#include "system/memory.h"
#include "system/ramblock.h"
#else
#include "exec/address-spaces.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#endif

#if __has_include("accel/accel-route.h")
#include "accel/accel-route.h"
#include "system/accel-irq.h"
#define OB_ACCEL_ROUTES
#endif

#if __has_include("plugins/qemu-plugin.h")
#include "plugins/qemu-plugin.h"
#else
#include "qemu/qemu-plugin.h"
#endif

#define OB_QEMU_SINCE(major, minor)  \
    (QEMU_VERSION_MAJOR > (major) || \
     (QEMU_VERSION_MAJOR == (major) && QEMU_VERSION_MINOR >= (minor)))

/* The big lock changed its name. */
#if OB_QEMU_SINCE(9, 0)
#define OB_BQL_LOCK()   bql_lock()
#define OB_BQL_UNLOCK() bql_unlock()
#define OB_BQL_HELD()   bql_locked()
#else
#define OB_BQL_LOCK()   qemu_mutex_lock_iothread()
#define OB_BQL_UNLOCK() qemu_mutex_unlock_iothread()
#define OB_BQL_HELD()   qemu_mutex_iothread_locked()
#endif

/*
 * Until 8.2 a change of the memory map takes effect in a running vCPU's lookups at once, while the
 * TLB that holds indices into it is flushed later: at the end of what was translated.
 */
#if !OB_QEMU_SINCE(9, 0)
extern void tlb_flush(CPUState *cpu) __attribute__((weak)); /* a QEMU may be without TCG */
#define OB_TLB_FLUSH(cpu)                                                             \
    do {                                                                              \
        if (tlb_flush && object_dynamic_cast(OBJECT(current_accel()), "tcg-accel")) { \
            tlb_flush(cpu);                                                           \
        }                                                                             \
    } while (0)
#else
#define OB_TLB_FLUSH(cpu) ((void)(cpu))
#endif

/* class_init's second argument. */
#if OB_QEMU_SINCE(10, 1)
#define OB_CLASS_DATA const void *
#else
#define OB_CLASS_DATA void *
#endif

/* A property array: const, and without an end marker, since 10.0. */
#if OB_QEMU_SINCE(10, 0)
#define OB_PROPERTIES static const Property
#define OB_PROPERTIES_END
#else
#define OB_PROPERTIES     static Property
#define OB_PROPERTIES_END DEFINE_PROP_END_OF_LIST()
#endif

static inline void obq_class_set_reset(DeviceClass *dc, void (*reset)(DeviceState *))
{
#if OB_QEMU_SINCE(9, 2)
    device_class_set_legacy_reset(dc, reset);
#else
    dc->reset = reset;
#endif
}

/* On failure *reason is freed and NULL. */
static inline int obq_block_migration(Error **reason, Error **errp)
{
#if OB_QEMU_SINCE(8, 2)
    return migrate_add_blocker(reason, errp);
#else
    int rc = migrate_add_blocker(*reason, errp);

    if (rc < 0) {
        error_free(*reason);
        *reason = NULL;
    }
    return rc;
#endif
}

static inline void obq_unblock_migration(Error **reason)
{
#if OB_QEMU_SINCE(8, 2)
    migrate_del_blocker(reason);
#else
    if (*reason) {
        migrate_del_blocker(*reason);
        error_free(*reason);
        *reason = NULL;
    }
#endif
}

/* Where a RAM block starts in its file. */
static inline uint64_t obq_ram_fd_offset(RAMBlock *block)
{
#if OB_QEMU_SINCE(10, 1)
    return qemu_ram_get_fd_offset(block);
#elif OB_QEMU_SINCE(8, 1)
    return block->fd_offset;
#else
    return 0;
#endif
}

/* Allocates a KVM route for what the device's MSI or MSI-X vector says; negative: none left. */
static inline int obq_kvm_add_msi_route(PCIDevice *pdev, int vector)
{
#ifdef OB_ACCEL_ROUTES
    AccelRouteChange change = accel_irqchip_begin_route_changes();
    int virq = accel_irqchip_add_msi_route(&change, vector, pdev);

    accel_irqchip_commit_route_changes(&change);
#else
    KVMRouteChange change = kvm_irqchip_begin_route_changes(kvm_state);
    int virq = kvm_irqchip_add_msi_route(&change, vector, pdev);

    kvm_irqchip_commit_route_changes(&change);
#endif
    return virq;
}

/* Accesses of several vCPUs may be inside the region at once: since 10.2 they come without the big
 * lock, before that they give it up while they wait. */
static inline void obq_region_allow_concurrent(MemoryRegion *mr)
{
#if OB_QEMU_SINCE(10, 2)
    memory_region_enable_lockless_io(mr);
#else
    mr->disable_reentrancy_guard = true;
#endif
}

#endif
