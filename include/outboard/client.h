/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The client side of vfio-user: a connection to one device that another process serves.
 *
 * Threads. Every function may be called from any thread at any time between connect and free,
 * except where it says otherwise. There is no I/O thread: a caller that waits for its reply
 * receives for everybody (it completes other callers' requests and serves the server's DMA
 * requests through the callbacks). While nobody waits, the embedder's event loop does that: it
 * watches ob_client_fd() for reading and calls ob_client_step().
 *
 * Results. Functions return >= 0, or a negative number of one of three classes:
 *   OB_ERR_LOCAL      -errno of this process: a wrong argument, no memory
 *   OB_ERR_TRANSPORT  -ENOTCONN: the connection is dead, ob_client_error() says why;
 *                     -ETIMEDOUT: no reply within the deadline. The connection lives on; the
 *                     late reply is dropped when it comes
 *   OB_ERR_PEER       the server refused: ob_peer_errno() gives its errno
 * Outputs are untouched on failure.
 */
#ifndef OUTBOARD_CLIENT_H
#define OUTBOARD_CLIENT_H

#include "proto.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ob_err_class { OB_ERR_NONE, OB_ERR_LOCAL, OB_ERR_TRANSPORT, OB_ERR_PEER };

enum ob_err_class ob_err_class(int rc);
/* The errno of the server's refusal, positive (EINVAL where it sent 0 or nonsense), or 0 when rc
 * is not of class OB_ERR_PEER. */
int ob_peer_errno(int rc);
/* "the server answered: Invalid argument"; into buf, which is returned. */
const char *ob_strerror(int rc, char *buf, size_t size);

struct ob_client;

struct ob_client_options {
    size_t size;    /* sizeof(struct ob_client_options): lets the structure grow */
    int timeout_ms; /* for connecting, negotiating and each request; 0: 5000, < 0: for ever */

    /*
     * The server reads or writes our memory by message (DMA_READ, DMA_WRITE). Called with no lock
     * held from whichever thread receives. Other callers' replies wait until it returns: it must
     * not take a lock that a thread may hold while it calls in here, and a call that would wait
     * for a reply on the same connection returns -EDEADLK. Return 0 or a negative errno, which the
     * server gets. NULL: every such request is refused. While a device is set up again (see
     * "Reconnecting") they may be called for its next connection, from a thread of the client's
     * own, beside a call for the old one in another thread: they must bear several threads then.
     */
    int (*dma_read)(void *opaque, uint64_t address, void *data, uint32_t count);
    int (*dma_write)(void *opaque, uint64_t address, const void *data, uint32_t count);
    /* The connection died (for good, with reconnect_ms); called once, from the thread that found
     * out, with no lock held. why is what ob_client_error() returns from then on. */
    void (*lost)(void *opaque, const char *why);
    void *opaque;
    /* Do not offer the server a second socket for its DMA messages. */
    bool single_socket;
    /*
     * A wait for a reply begins by polling the socket for at most so many microseconds, before the
     * thread sleeps; 0: it sleeps at once. How long it really polls follows what recent replies
     * took; where they take longer, or no CPU is to spare, it does not. Since 0.1.
     */
    unsigned spin_us;
    /*
     * When the connection dies, look for the server again for so many milliseconds, before the
     * client counts as lost; 0: it is lost at once. See "Reconnecting" below. Needs the path of a
     * socket. Since 0.1.
     */
    int reconnect_ms;
    /* The connection died, and the server is looked for. Like lost, but may be called many times,
     * each time before resumed or lost. why is valid in the call. Since 0.1. */
    void (*interrupted)(void *opaque, const char *why);
    /* The server is back: everything is set up as before. Called with no lock held, from a thread
     * of the client's own. Since 0.1. */
    void (*resumed)(void *opaque);
    /*
     * Lends the bytes that a DMA_READ asks for, at least one, so that they are sent from where they
     * are and need not be copied. Returns them, all in one piece; or NULL, and dma_read is called
     * as if there were no dma_lend. *loan, NULL before, is the embedder's to set; dma_return gets
     * it when the bytes were sent, or copied because the socket has no room for them, or are not
     * needed after all: once for each loan, in the same thread. Until then the memory must stay
     * readable; it may change. What is said of dma_read is true of both. dma_return may be NULL
     * where nothing has to be done. Since 0.1.
     */
    const void *(*dma_lend)(void *opaque, uint64_t address, uint32_t count, void **loan);
    void (*dma_return)(void *opaque, void *loan);
    /*
     * Regions may be in files of any kind. Without it only shared memory is taken (memfd, tmpfs,
     * hugetlbfs): whoever runs the file system of another file (FUSE, NFS) can make
     * ob_region_map(), and each access to a mapping, wait for ever. So this trusts the server.
     * Since 0.1.
     */
    bool any_files;
};

#define OB_CLIENT_OPTIONS_INIT                                                  \
    {                                                                           \
        .size = sizeof(struct ob_client_options), .spin_us = OB_SPIN_US_DEFAULT \
    }

/*
 * Connects to the server that listens on path, negotiates, and returns the client in *out.
 * Blocks for the timeout at most. opt may be NULL. On failure errbuf (may be NULL) gets a sentence
 * that says what was wrong and what to do. Since 0.1.
 */
int ob_client_connect(const char *path, const struct ob_client_options *opt, struct ob_client **out,
                      char *errbuf, size_t errbuf_size);
/* The same on a connected socket; fd is taken, also on failure. */
int ob_client_connect_fd(int fd, const struct ob_client_options *opt, struct ob_client **out,
                         char *errbuf, size_t errbuf_size);
/* Closes the connection and frees everything. No other call may be under way or follow. No
 * callback runs after it returned. NULL is allowed. */
void ob_client_free(struct ob_client *client);
/*
 * Ends the connection from any thread: waiters return -ENOTCONN at once, later calls too. why is
 * copied. The lost callback is not called: the caller knows. No call of interrupted, resumed or
 * lost begins after it has returned; one that another thread is in may still run, and so may the
 * callbacks for DMA requests that had come before. The client must still be freed.
 */
void ob_client_shutdown(struct ob_client *client, const char *why);

/* Whether the connection is alive. */
bool ob_client_connected(const struct ob_client *client);
/* Why the connection died, or NULL while it lives or is to be made again (then the interrupted
 * callback says why). Valid until ob_client_free(). */
const char *ob_client_error(const struct ob_client *client);
/* What the server said in negotiation. */
const struct ob_caps *ob_client_caps(const struct ob_client *client);
/* The smallest page size that the server maps memory by; a power of two, from 4096. */
uint64_t ob_client_page_size(const struct ob_client *client);

/* Readable when ob_client_step() has something to do. Stays quiet while some caller waits and so
 * receives by itself. Never read from or written to by the embedder; owned by the client. */
int ob_client_fd(const struct ob_client *client);
/* Receives and handles what has come, sends what is queued; never blocks (except in the embedder's
 * own callbacks). 0, or -ENOTCONN when the client is lost; ob_client_fd() then is quiet. */
int ob_client_step(struct ob_client *client);

/*
 * From now on all requests of the calling thread together have to be done within total_ms, however
 * long each of them may take; <= 0: no longer. For a thread that must not be held up by a server
 * that answers everything, but slowly. One thread at a time: the last call counts. Never blocks.
 * Since 0.1.
 */
void ob_client_limit(struct ob_client *client, int total_ms);

/* ---- Reconnecting ------------------------------------------------------------------------- */

/*
 * With reconnect_ms a client survives its server: when the connection dies it is INTERRUPTED, and a
 * thread of its own looks for a server on the same path. That one must be the same device: the same
 * regions and interrupts, the same IDs in config space, and no fewer abilities than the first had;
 * anything else is refused, and the client is LOST. A server that is busy or short of something (an
 * errno such as ENOMEM or EMFILE) is tried again. Then the client sets up what was set up, DMA
 * mappings, eventfds and masks of interrupts, the registers of config space that hold what a driver
 * wrote (command, BARs, interrupt line, MSI, MSI-X), and is CONNECTED again. What the device knew
 * beyond that is up to the server (for `outboard serve nvme`: --state).
 *
 * What becomes of requests:
 *   - those that set up (DMA, interrupts, reset) succeed while INTERRUPTED, and are carried out
 *     when the server is back; so are posted writes of up to 8 bytes, and a reset that was not
 *     answered in time;
 *   - all others end with -ENOTCONN. Whether to repeat them the caller decides, after
 *     ob_client_await(): the server may or may not have carried them out;
 *   - posted writes that the server may not have read are repeated: of each register (region,
 *     offset, size) the last one, of 512 registers at most, in the order they were written. A
 * device may thus see a write twice, and not see one that was followed by another of the same
 * register.
 *
 * A device that is migrating or whose dirty memory is logged is not continued: the client is LOST.
 * Mappings of regions are the caller's: resumed is the time to map them anew, with the fds that
 * ob_client_region_info() then returns; it does not ask the server.
 */
enum ob_client_state {
    OB_CLIENT_CONNECTED,
    OB_CLIENT_INTERRUPTED, /* the server is being looked for */
    OB_CLIENT_LOST,
};

enum ob_client_state ob_client_state(struct ob_client *client);
/* Waits while INTERRUPTED. 0: CONNECTED; -ENOTCONN: LOST; -ETIMEDOUT: still INTERRUPTED after
 * timeout_ms (< 0: never). -EDEADLK in a callback. Since 0.1. */
int ob_client_await(struct ob_client *client, int timeout_ms);
/* Ends the connection as if the server had: with reconnect_ms it is made again, else the client is
 * lost. For a server that does not do what it should. Since 0.1. */
void ob_client_disconnect(struct ob_client *client, const char *why);

struct ob_client_stats {
    uint64_t requests;   /* sent that want a reply */
    uint64_t posted;     /* posted writes */
    uint64_t reconnects; /* times the server came back */
};

/* Since 0.1. */
void ob_client_stats(struct ob_client *client, struct ob_client_stats *out);

/* ---- Device ------------------------------------------------------------------------------- */

struct ob_device_info {
    uint32_t flags; /* OB_DEVICE_RESET, OB_DEVICE_PCI */
    uint32_t num_regions;
    uint32_t num_irqs;
};

struct ob_irq_info {
    uint32_t flags; /* OB_IRQ_* */
    uint32_t count;
};

/* A region and, when it is mappable, its fd. */
struct ob_region_info {
    struct ob_region_layout layout;
    int fd; /* -1: none. Owned by the caller: ob_region_info_fini() closes it, and never waits */
};

int ob_client_device_info(struct ob_client *client, struct ob_device_info *out);
/* out->layout was checked: every area lies in the region and in no other area. A region that says
 * OB_REGION_MMAP without sending an fd comes back without that flag; one whose file is not taken
 * (see any_files) with it, but no fd. */
int ob_client_region_info(struct ob_client *client, uint32_t index, struct ob_region_info *out);
void ob_region_info_fini(struct ob_region_info *info);
/*
 * Maps area number `area` of the region (0 when the whole region is mappable) into this process.
 * The file behind it is checked to be large enough. *size gets the area's size. Unmap with
 * munmap(). -ENOENT: no such area; -EINVAL: not page-aligned, or the file is too small.
 */
int ob_region_map(const struct ob_region_info *info, uint32_t area, void **out, uint64_t *size);
/* Whether the server could cut the file behind the region later, or take pages out of it that the
 * kernel may not be able to replace (huge pages), so that an access through a mapping ends this
 * process with SIGBUS. Seals the file against that where it can be sealed.
 * Waits for 0.1 s at most. Since 0.1. */
bool ob_region_can_shrink(const struct ob_region_info *info);
/* Eventfds that the server wants signalled in place of writes to a region. */
struct ob_region_io_fds {
    uint32_t count;
    struct {
        struct ob_ioeventfd match;
        int fd; /* one of fds */
    } entries[OB_IOEVENTFDS_MAX];
    uint32_t nfds;
    int fds[OB_IOEVENTFDS_MAX]; /* -1: not usable. Owned by the caller: ob_region_io_fds_fini() */
};

/*
 * Only what KVM would take is returned: valid entries that do not clash, with real eventfds. The
 * caller checks them against the region's size. A message does the same in place of any of them.
 * -EOPNOTSUPP: the server takes one fd at most, and so is not asked; a refusal means none, too.
 */
int ob_client_region_io_fds(struct ob_client *client, uint32_t index, struct ob_region_io_fds *out);
void ob_region_io_fds_fini(struct ob_region_io_fds *list);
/* Signals one of these eventfds, in place of a message. Never blocks, whatever the server has done
 * to the eventfd, as a write() would. -EOPNOTSUPP: not in this process; send the message. Since
 * 0.1. */
int ob_region_io_fd_signal(int fd);
int ob_client_irq_info(struct ob_client *client, uint32_t index, struct ob_irq_info *out);
/* DEVICE_RESET. */
int ob_client_reset(struct ob_client *client);

/* ---- Regions ------------------------------------------------------------------------------ */

/* Reads or writes count bytes; split where it exceeds what the server takes in one message (after
 * a failure then, some of the pieces may be done). */
int ob_client_region_read(struct ob_client *client, uint32_t region, uint64_t offset, void *data,
                          uint32_t count);
int ob_client_region_write(struct ob_client *client, uint32_t region, uint64_t offset,
                           const void *data, uint32_t count);
/*
 * A posted write (No_reply): sent or queued, never blocks, its failure is never known. Executed
 * in order, before any later request of this client. -ENOBUFS when too much is queued already;
 * -EMSGSIZE when the server does not take so much in one message. That the server has ended is
 * found by whoever waits, or steps; until then writes (256, in the access ring) may return 0.
 */
int ob_client_region_post(struct ob_client *client, uint32_t region, uint64_t offset,
                          const void *data, uint32_t count);
/*
 * The same, but -EAGAIN where it would be queued: it is in the socket, or in the access ring, when
 * this returns 0. So a store to a mapped area that follows it cannot overtake it where the server
 * says mapped_order (R-CAPS-9). At most 8 bytes, which the socket takes whole. Since 0.1.
 */
int ob_client_region_post_now(struct ob_client *client, uint32_t region, uint64_t offset,
                              const void *data, uint32_t count);

/* ---- DMA ---------------------------------------------------------------------------------- */

struct ob_dma_change {
    bool unmap;
    uint32_t flags; /* map: OB_DMA_READ | OB_DMA_WRITE | OB_DMA_ACCESS_* */
    uint64_t address;
    uint64_t size;
    int fd;          /* map: borrowed; -1: the server uses DMA messages */
    uint64_t offset; /* map: in the fd */
    int result;      /* filled in: 0 or a negative number */
};

/*
 * Applies the changes in order, pipelined, and waits for all replies. Every change gets its
 * result; returns the first failure, or 0. A change that failed does not stop the later ones,
 * except that after a timeout nothing more is sent (-ETIMEDOUT for the rest). -ENOSPC: more
 * mappings than the server keeps; -EINVAL: a mapping is not of whole
 * pages of ob_client_page_size(), though that is above 4096; -EOPNOTSUPP: the server takes no fds.
 */
int ob_client_dma_apply(struct ob_client *client, struct ob_dma_change *changes, size_t count);
int ob_client_dma_map(struct ob_client *client, uint64_t address, uint64_t size, uint32_t flags,
                      int fd, uint64_t offset);
int ob_client_dma_unmap(struct ob_client *client, uint64_t address, uint64_t size);

/* ---- Migration ---------------------------------------------------------------------------- */

/*
 * A server that takes one fd at most is not asked for any of this (-EOPNOTSUPP): that of the
 * vfio-user crate is one, does not know the commands, and loses its place in the stream by them.
 */

/* Whether the server has the feature with these methods (OB_FEATURE_GET | OB_FEATURE_SET). 0, or
 * an error of class OB_ERR_PEER: it has not. */
int ob_client_feature_probe(struct ob_client *client, enum ob_feature number, uint32_t methods);
/* What the device can do: OB_MIG_*. An error of class OB_ERR_PEER: it cannot migrate. */
int ob_client_migration_info(struct ob_client *client, uint64_t *flags);
int ob_client_mig_state_get(struct ob_client *client, enum ob_mig_state *out);
/* Returns when the device is in that state. After a refusal it may be in another one than before:
 * ask. In STOP and STOP_COPY libvfio-user's server refuses nearly everything else. */
int ob_client_mig_state_set(struct ob_client *client, enum ob_mig_state state);
/* In PRE_COPY and STOP_COPY: the next bytes of the device's state. Returns how many; fewer than
 * asked is the end of what there is in this state. */
int64_t ob_client_mig_read(struct ob_client *client, void *data, uint32_t count);
/* In RESUMING. After a failure some of it may have been taken. */
int ob_client_mig_write(struct ob_client *client, const void *data, uint32_t count);

/*
 * Logs the memory that the device writes, in these ranges at least (none: everywhere). page_size: a
 * power of two, best the one that reports will be asked in.
 */
int ob_client_dirty_start(struct ob_client *client, uint64_t page_size,
                          const struct ob_dma_range *ranges, uint32_t count);
int ob_client_dirty_stop(struct ob_client *client);
/*
 * Which pages of [address, address + length) were written since logging began or since the last
 * report of them. bitmap has ob_bitmap_size() bytes; bit n is the page at address + n * page_size.
 * After a failure all of it counts as written. Ask for each mapping by itself: libvfio-user's
 * server reports no other range (-EOPNOTSUPP, or that errno from the server).
 */
int ob_client_dirty_report(struct ob_client *client, uint64_t address, uint64_t length,
                           uint64_t page_size, uint64_t *bitmap);
/* ob_client_dma_unmap() of one mapping, with the last report of it. -EMSGSIZE: its bitmap does not
 * fit in a message. */
int ob_client_dma_unmap_dirty(struct ob_client *client, uint64_t address, uint64_t size,
                              uint64_t page_size, uint64_t *bitmap);

/* ---- Interrupts --------------------------------------------------------------------------- */

/*
 * SET_IRQS as it is. flags: OB_IRQ_SET_DATA_* | OB_IRQ_SET_ACTION_*. bools (count bytes) with
 * DATA_BOOL, fds (count, borrowed) with DATA_EVENTFD, else NULL. More fds than the server takes
 * in one message are sent in several.
 */
int ob_client_set_irqs(struct ob_client *client, uint32_t index, uint32_t flags, uint32_t start,
                       uint32_t count, const uint8_t *bools, const int *fds);
/* Signal these eventfds for vectors start...; -1 leaves one without. */
int ob_client_irq_eventfds(struct ob_client *client, uint32_t index, uint32_t start, uint32_t count,
                           const int *fds);
/* Takes all eventfds of the index back. */
int ob_client_irq_disable(struct ob_client *client, uint32_t index);
int ob_client_irq_mask(struct ob_client *client, uint32_t index, uint32_t vector, bool mask);

#ifdef __cplusplus
}
#endif
#endif
