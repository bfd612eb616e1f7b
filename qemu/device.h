/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * vfio-user-pci: what its files share. One ObPci is one device of one server.
 *
 * Threads. Everything runs under QEMU's big lock (BQL), except the guest's accesses to BARs and
 * where a vCPU waits for the server (access.c says what such code may do), and except the client
 * library's callbacks (dma.c, link.c), which run in whichever thread receives.
 *
 * Names. Functions are obq_*, because the library linked in here has all of ob_*.
 *
 * Lifetime. Every ob_*_fini() may be called whatever of its ob_*_init() was done, also when
 * nothing was, so that exit and each failure of realize are one path: obq_pci_teardown().
 */
#ifndef OUTBOARD_QEMU_DEVICE_H
#define OUTBOARD_QEMU_DEVICE_H

#include "compat.h"

#include "outboard/client.h"
#include "qapi/qapi-types-sockets.h"

/* Registered in every QEMU, and below it the name that QEMU gives its own device since 10.1. */
#define TYPE_OB_PCI        "outboard-pci"
#define TYPE_VFIO_USER_PCI "vfio-user-pci"
OBJECT_DECLARE_SIMPLE_TYPE(ObPci, OB_PCI)

#define OB_BARS        6
#define OB_CONFIG_SIZE 4096 /* of an express device */

/* A part of a BAR that the guest reaches without a message. */
typedef struct ObBarMap {
    MemoryRegion mr;
    unsigned area; /* of the region, as the server numbers them */
    void *ptr;
    uint64_t size;
} ObBarMap;

/* Writes that are signalled instead of sent. */
typedef struct ObIoEvent {
    struct ob_ioeventfd match;
    EventNotifier notifier; /* its fd belongs to ObBar.io_fds */
} ObIoEvent;

typedef struct ObBar {
    ObPci *d;
    unsigned index;
    uint64_t size;   /* 0: there is no such BAR */
    uint8_t type;    /* PCI_BASE_ADDRESS_* */
    bool posted;     /* writes need no answer */
    MemoryRegion mr; /* the BAR: trapped, below the maps and the MSI-X table */
    MemoryRegion trapped;
    ObBarMap *maps;
    unsigned nmaps;
    struct ob_region_io_fds *io_fds; /* NULL: there are none */
    ObIoEvent *events;
    unsigned nevents;
    bool had_events; /* before the server went */
} ObBar;

/* One MSI or MSI-X vector while its interrupt is armed. */
typedef struct ObVector {
    EventNotifier notifier; /* what the server signals */
    ObPci *d;
    unsigned nr;
    bool armed;     /* notifier exists */
    int virq;       /* KVM route, or -1 */
    MSIMessage msg; /* what the route says */
    bool irqfd;     /* KVM takes the notifier's signals; else our handler does */
} ObVector;

typedef enum ObIrqMode { OB_MODE_NONE, OB_MODE_INTX, OB_MODE_MSI, OB_MODE_MSIX } ObIrqMode;

typedef struct ObIntx {
    EventNotifier notifier; /* the server raised the line */
    EventNotifier unmask;   /* with KVM: the guest's EOI */
    bool armed;
    bool pending;          /* asserted by us, waiting for the guest to have served it; atomic */
    bool kvm;              /* KVM takes notifier and signals unmask */
    bool unmask_by_server; /* the server listens on unmask by itself */
    PCIINTxRoute route;
    QEMUTimer *mmap_timer; /* maps come back when the line has been quiet */
} ObIntx;

/* Changes to the server's view of guest memory, collected between begin and commit. */
typedef struct ObDma {
    MemoryListener listener;
    bool listening;
    bool discard_disabled;
    uint64_t page_size; /* the server's */
    GArray *changes;    /* struct ob_dma_change */
    Error *error;       /* the first failure while realizing */
    int writes_queued;  /* of the server to MMIO, on their way to the main loop */
} ObDma;

/* The connection; see link.c. */
typedef struct ObLink {
    struct ob_client *client; /* NULL: not connected yet, or torn down; see access.c */
    char *name;               /* of the server, for messages */
    QEMUBH *changed_bh;
    bool lost;              /* reported */
    bool away;              /* the same, and the server is looked for */
    int64_t went_ms;        /* since when */
    bool gone;              /* the connection died since changed_bh ran; atomic */
    int64_t quiet_until_ms; /* no further error line before */
    int64_t minute_ms;      /* when the minute began in which so many lines were said */
    unsigned said;
    bool silent;             /* the last access was not answered; atomic */
    int64_t silent_since_ms; /* nor any other since */
    QemuMutex lock;
    char *why; /* it died last; under lock */
    QemuCond idle;
    unsigned waiting; /* accesses without the BQL that are, or look, inside the client; atomic */
    bool closing;     /* obq_access_drain() waits for those; atomic */
} ObLink;

struct ObPci {
    PCIDevice parent_obj;

    /* properties */
    SocketAddress *socket;
    char *socket_type, *socket_path; /* of the flat form socket.type=,socket.path= */
    uint32_t timeout_ms;
    uint32_t spin_us;
    uint32_t reconnect_s;
    bool send_queued;
    bool no_posted_writes;
    bool mmap_unsealed;
    uint32_t vendor_id, device_id, sub_vendor_id, sub_device_id, class_code;
    uint32_t intx_mmap_timeout_ms;
    int32_t bootindex;

    ObLink link;
    struct ob_device_info info;
    struct ob_irq_info irqs[OB_PCI_IRQS];
    bool flr; /* the reset under way came from the guest's function-level reset */

    /* config.c: for each byte of config space, the bits QEMU answers, and whether a write also
     * goes to the server */
    uint8_t emulated[OB_CONFIG_SIZE];
    bool forward[OB_CONFIG_SIZE];
    uint8_t server_config[OB_CONFIG_SIZE]; /* as read at realize */
    uint32_t config_size;
    uint8_t flr_offset, flr_bit; /* where the guest asks for a function-level reset; 0: nowhere */

    ObBar bars[OB_BARS];
    MemoryRegion rom;
    bool have_maps, maps_enabled, maps_blocked;

    ObIrqMode irq_mode;
    ObIntx intx;
    ObVector *vectors;
    unsigned nvectors;
    unsigned msix_table_bar, msix_pba_bar; /* of the capability laid out */
    EventNotifier events[2];               /* ERR and REQ */
    bool event_armed[2];

    ObDma dma;
    Error *migration_blocker;
};

#define OB_ID_ANY UINT32_MAX

/* device.c */
void obq_pci_register(void);

/* socket.c: the property `socket` in its forms. */
void obq_socket_class_init(ObjectClass *klass);
/* Connects as `socket` says; 0 and d->link.client, or -1 and an error. */
int obq_socket_connect(ObPci *d, const struct ob_client_options *opt, struct ob_client **out,
                       Error **errp);
bool obq_socket_settle(ObPci *d, Error **errp);
char *obq_socket_name(const SocketAddress *addr);

/* link.c */
bool obq_link_init(ObPci *d, Error **errp);
/* After obq_link_shutdown(). */
void obq_link_fini(ObPci *d);
/* Whether the server is there, or is looked for. */
bool obq_link_alive(const ObPci *d);
/* Why the connection died last, or ""; the caller frees it. */
char *obq_link_why(ObPci *d);
/* Ends the connection because a request that sets the device up failed with rc; BQL. For good, but
 * for one that was only not answered: the next server may answer it (reconnect). */
void obq_link_give_up(ObPci *d, int rc, const char *why);
/* The result of a request that sets the device up, made with the BQL: a server that leaves it
 * unanswered loses the connection, so that the machine never waits for it twice. Returns rc. */
int obq_link_control(ObPci *d, int rc, const char *what);
/* While limited, all that this thread asks of the server together takes x-msg-timeout at most: for
 * what is done with the BQL in several requests. */
void obq_link_limit(ObPci *d, bool limited);
/* Wakes whoever waits for the server, and lets nobody wait from now on. */
void obq_link_shutdown(ObPci *d);
/* "TYPE ID (NAME): ...", at most one line a few seconds. */
void obq_link_complain(ObPci *d, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* The device's failure as an Error: what was tried, and why it failed. */
void obq_link_error(ObPci *d, Error **errp, int rc, const char *what);

/* access.c */
/* Accesses to a region. wait_unlocked: the BQL is dropped while waiting; only for a vCPU's own
 * access, with nothing half done. Results as in client.h; -ENOTCONN after teardown. */
int obq_access_read(ObPci *d, uint32_t region, uint64_t offset, void *data, uint32_t count,
                    bool wait_unlocked);
int obq_access_write(ObPci *d, uint32_t region, uint64_t offset, const void *data, uint32_t count,
                     bool wait_unlocked);
/* A posted write; now: -EAGAIN rather than queued. */
int obq_access_post(ObPci *d, uint32_t region, uint64_t offset, const void *data, uint32_t count,
                    bool now);
int obq_access_unmask_intx(ObPci *d, bool wait_unlocked);
/* Waits, without the BQL, until the server has answered all that it was sent; for a vCPU's own
 * access, with nothing half done. -ETIMEDOUT: it did not. The device may be torn down then. */
int obq_access_probe(ObPci *d);
/* Waits until nobody is inside the client. BQL; after obq_link_shutdown(). */
void obq_access_drain(ObPci *d);

/* probe.c: waits until the server has answered a read, and so all that it was sent before. */
int obq_probe(struct ob_client *client);
/* Before something is asked of one server after the other, with the BQL: those that answer
 * nothing at all count as gone, all within one deadline. BQL. */
void obq_probe_all(const char *what);

/* event.c: sends an event of QMP, OBQ_EVENT_*; reason is NULL, or why the server is not there. */
#define OBQ_EVENT_LOST   "__outboard_SERVER_LOST"
#define OBQ_EVENT_REGAIN "__outboard_SERVER_REGAINED"
void obq_event_send(ObPci *d, const char *name, const char *reason);

/* aer.c: the device answers nothing any more; the guest hears of it where its port can say so. */
void obq_aer_report_loss(ObPci *d);

/* config.c */
bool obq_config_init(ObPci *d, Error **errp);
uint32_t obq_config_read(PCIDevice *pdev, uint32_t addr, int len);
void obq_config_write(PCIDevice *pdev, uint32_t addr, uint32_t val, int len);
/* Clears the command register on the server's side. */
int obq_config_quiesce(ObPci *d);

/* caps.c: after the BARs */
void obq_caps_init(ObPci *d);
void obq_caps_fini(ObPci *d);

/* bars.c */
bool obq_bars_init(ObPci *d, Error **errp);
void obq_bars_fini(ObPci *d);
void obq_bars_free(ObPci *d);
bool obq_bars_have_maps(const ObPci *d);
void obq_bars_set_mapped(ObPci *d, bool mapped);
/* The server is not there: what it shares is out of reach, until it is back and shares it anew. */
void obq_bars_block(ObPci *d);
void obq_bars_unblock(ObPci *d);

/* ioeventfd.c: after the BAR was registered and mapped */
bool obq_ioeventfds_init(ObBar *bar, Error **errp);
/* A write that did not stay in KVM. Whether it was signalled, and so is done. */
bool obq_ioeventfds_signal(ObBar *bar, hwaddr addr, uint64_t data, unsigned size);
void obq_ioeventfds_fini(ObBar *bar);

/* rom.c */
bool obq_rom_init(ObPci *d, Error **errp);

/* irq.c */
void obq_irq_init(ObPci *d);
void obq_irq_fini(ObPci *d);
/* Follows what the guest enabled in config space: INTx, MSI or MSI-X. */
void obq_irq_update(ObPci *d);
void obq_irq_stop(ObPci *d);
/* INTx, whatever config space still says: the state after a reset. */
void obq_irq_start_intx(ObPci *d);
/* Whether an eventfd that the server has was signalled; takes the signal. Never blocks, which
 * event_notifier_test_and_clear() does if the server wants it. */
bool obq_event_take(EventNotifier *n);

/* irq_intx.c */
void obq_intx_start(ObPci *d);
void obq_intx_stop(ObPci *d);
/* The guest touched a BAR: it may have served the interrupt. */
void obq_intx_served(ObPci *d, bool wait_unlocked);
void obq_intx_route_changed(PCIDevice *pdev);

/* irq_msi.c */
void obq_msi_start(ObPci *d, ObIrqMode mode);
void obq_msi_stop(ObPci *d, ObIrqMode mode);
/* MSI: masks or messages may have changed; MSI-X tells us by itself. */
void obq_msi_update(ObPci *d);
/* Takes in what the server has signalled, so that pending bits read now are true. */
void obq_msi_poll(ObPci *d, unsigned start, unsigned end);

/* memory.c */
bool obq_memory_init(ObPci *d, Error **errp);
void obq_memory_fini(ObPci *d);

/* dma.c: the client's callbacks; opaque is the ObPci */
int obq_dma_read_cb(void *opaque, uint64_t address, void *data, uint32_t count);
int obq_dma_write_cb(void *opaque, uint64_t address, const void *data, uint32_t count);
const void *obq_dma_lend_cb(void *opaque, uint64_t address, uint32_t count, void **loan);
void obq_dma_return_cb(void *opaque, void *loan);

/* What the user calls the device, for messages. */
static inline const char *obq_type_name(ObPci *d)
{
    return object_get_typename(OBJECT(d));
}

/* Takes the BQL where an access has come without it; returns whether it did, for obq_bql_give(). */
static inline bool obq_bql_take(void)
{
    bool held = OB_BQL_HELD();

    if (!held) {
        OB_BQL_LOCK();
    }
    return !held;
}

static inline void obq_bql_give(bool taken)
{
    if (taken) {
        OB_BQL_UNLOCK();
    }
}

/* Whether the access under way is a vCPU's own, so that its wait may drop the BQL. */
static inline bool obq_vcpu_access(MemTxAttrs attrs)
{
    return current_cpu && !attrs.unspecified && !attrs.requester_id;
}

#endif
