/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The server side of vfio-user: one device, offered to one client at a time.
 *
 * A device is built once (regions, IRQs, PCI configuration: pci.h), then offered on a socket.
 * It outlives its clients: when one leaves, its DMA mappings and eventfds go, the device stays as
 * it is, and the next client is taken.
 *
 * Threads. A server belongs to the thread that calls ob_server_step() or ob_server_run(); all
 * callbacks run there, and all functions must be called there, except ob_server_stop(),
 * ob_server_irq_trigger(), ob_server_intx(), ob_dma_get() and ob_dma_put(), which any thread may
 * call.
 * Nothing here blocks but ob_server_run() and message DMA (see ob_dma_read()).
 *
 * Functions return >= 0 or a negative errno.
 */
#ifndef OUTBOARD_SERVER_H
#define OUTBOARD_SERVER_H

#include <sys/types.h>

#include "proto.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ob_server;

enum ob_log_level { OB_LOG_ERROR, OB_LOG_INFO, OB_LOG_DEBUG };

struct ob_server_ops {
    size_t size; /* sizeof(struct ob_server_ops): lets the structure grow */
    /* DEVICE_RESET, or a function-level reset through config space. The library has already reset
     * config space and left the client's eventfds in place. Ends a migration: the device runs
     * again. NULL: reset is not supported. */
    int (*reset)(void *opaque);
    /* A client has negotiated (true), or left (false: its mappings and eventfds are still valid
     * during the call, and gone after it). */
    void (*client)(void *opaque, bool attached);
    /* The client wants [address, address + size) back: let go of every ob_dma_ref into it soon.
     * The client gets its answer when the last one was put. */
    void (*dma_unmap)(void *opaque, uint64_t address, uint64_t size);
    /* What the library has to say: one line, without a newline. */
    void (*log)(void *opaque, enum ob_log_level level, const char *line);
    /* The level of the INTx line as it is now, asked before an UNMASK by the client signals it
     * again. For a device that learns of what the client did later than of the UNMASK, because
     * registers of it are mapped. NULL: what ob_server_intx() said last. */
    bool (*intx)(void *opaque);
    /* What the library keeps of the device, and ob_server_save() saves, is another now: config
     * space or the MSI-X table was written, or the device was reset. Called before the client gets
     * its answer. Since 0.1. */
    void (*changed)(void *opaque);
};

/* ops is copied; NULL: none. Returns NULL without memory or file descriptors, or when ops->size was
 * not set (errno says). Since 0.1. */
struct ob_server *ob_server_new(const struct ob_server_ops *ops, void *opaque);
/* Drops the client, removes the socket file if it was created here, frees everything. Every
 * ob_dma_ref has been put, no callback is under way. NULL is allowed. */
void ob_server_free(struct ob_server *server);
/*
 * Starts the thread that is else started when a client sends descriptors that may take long to be
 * closed, which none does by accident: for a process that shall start no thread later. Without it
 * such descriptors stay open, and their clients are let go when they are many. There is one thread
 * for all servers and clients of the process. 0 or a negative errno. Since 0.1.
 */
int ob_server_start_closer(void);

/* ---- Offering it -------------------------------------------------------------------------- */

/*
 * Listens on path with the permissions mode (0: 0600). A socket file that nobody listens on any
 * more is replaced. -EADDRINUSE: a live server has it; -ENOTSOCK: something else is at path.
 */
int ob_server_listen(struct ob_server *server, const char *path, unsigned mode);
/* Before ob_server_listen(), which then makes the socket file that user's and group's, or fails
 * with -EPERM; (uid_t)-1 and (gid_t)-1: as it comes. There is no moment in which others than they
 * may connect. Since 0.1. */
void ob_server_set_socket_owner(struct ob_server *server, uid_t uid, gid_t gid);
/*
 * Takes connections of that user's processes only; called again: of these users'. Others are closed
 * before a byte of them is read. The user is the one that made the connection (SO_PEERCRED), also
 * of a descriptor that is adopted: -EACCES. -ENOSPC: 16 are allowed already. Since 0.1.
 */
int ob_server_allow_uid(struct ob_server *server, uid_t uid);
/* Adopts fd: a listening socket, or one that is connected to the client. Taken, also on failure. */
int ob_server_listen_fd(struct ob_server *server, int fd);

/* Readable when ob_server_step() has something to do. Owned by the server. */
int ob_server_fd(const struct ob_server *server);
/* Handles what has come; never waits. 0; 1 when an adopted connection ended (there will be no
 * other client); negative on a failure of this process. */
int ob_server_step(struct ob_server *server);
/* Steps until ob_server_stop(), or until an adopted connection ended. 0 or a negative errno. */
int ob_server_run(struct ob_server *server);
/* Makes ob_server_run() return. Any thread, and signal handlers. */
void ob_server_stop(struct ob_server *server);

/*
 * Lets the server's loop watch another fd (a timer, an eventfd of a worker). events: EPOLLIN and
 * so on; 0 takes the fd out. fd is borrowed, and must be taken out before it is closed.
 */
int ob_server_watch(struct ob_server *server, int fd, uint32_t events,
                    void (*ready)(void *opaque, uint32_t events), void *opaque);
/* Called after each step as long as it is set; while it returns true the next step does not wait
 * (a busy poller). NULL takes it out. */
void ob_server_set_poller(struct ob_server *server, bool (*poll)(void *opaque), void *opaque);

/*
 * Before ob_server_run() sleeps it polls the client's socket for at most so many microseconds,
 * as long as requests have come in such intervals lately; 0: it sleeps at once. Default:
 * OB_SPIN_US_DEFAULT, at most OB_SPIN_US_MAX. Waiting for the answer to a message DMA the server
 * does the same. Since 0.1.
 */
void ob_server_set_spin(struct ob_server *server, unsigned us);

/*
 * The same for a poller that looks at things of its own before it lets the server sleep. Begin: it
 * has found nothing to do. Returns for how many nanoseconds it may go on looking, by the same rules
 * and budget; 0: not at all, else an end must follow, from the same thread, when the looking has
 * ended. Relax: after each look in vain, which it counts; so that others get the CPU. Learn: there
 * is something to do again, after so long, sleep included. Since 0.1.
 */
int64_t ob_server_poll_begin(struct ob_server *server);
void ob_server_poll_relax(struct ob_server *server, unsigned looks);
void ob_server_poll_end(struct ob_server *server);
void ob_server_poll_learn(struct ob_server *server, int64_t idle_ns);

/*
 * Whether everything that the client had sent before this call has been handled. A device that
 * finds something new in memory which the client maps, and that must not see it before the posted
 * writes that came earlier, looks at it again after the next step when this is false.
 */
bool ob_server_caught_up(const struct ob_server *server);

/* Whether a client has negotiated and is there. */
bool ob_server_attached(const struct ob_server *server);

/* ---- Building the device (before it is offered) ------------------------------------------- */

/*
 * One access of the client. offset + count lies in the region. Return 0 or a negative errno. The
 * client of a write with No_reply never learns of a failure.
 */
typedef int (*ob_region_access_cb)(void *opaque, uint64_t offset, void *data, uint32_t count,
                                   bool is_write);

struct ob_region {
    uint64_t size;
    uint32_t flags; /* OB_REGION_READ | WRITE | MMAP */
    /* NULL: the region is the memory of its fd, and the library serves accesses by message;
     * without MMAP it reads as zeros, but where ob_pci_add_msix() put something. */
    ob_region_access_cb access;
    void *opaque;
    int fd;             /* with MMAP: what the client maps; borrowed for the server's life */
    uint64_t fd_offset; /* where the region starts in it */
    const struct ob_sparse_area *areas; /* copied; NULL with MMAP: all of it is mappable */
    uint32_t nareas;
    uint32_t type, subtype; /* of a device-specific region (index >= OB_PCI_REGIONS) */
};

int ob_server_set_region(struct ob_server *server, uint32_t index, const struct ob_region *region);
/*
 * The device keeps the order between commands and stores to what it lets the client map
 * (ob_server_caught_up() is how), or has no use for that order. Clients then post writes also
 * where regions are mapped: R-CAPS-9. Since 0.1.
 */
void ob_server_set_mapped_order(struct ob_server *server);
/* An IRQ index with its number of vectors. flags: OB_IRQ_*. */
int ob_server_set_irq(struct ob_server *server, uint32_t index, uint32_t count, uint32_t flags);

/*
 * Offers the client an eventfd in place of these writes; ready is called after one or more of
 * them. It is an offer: the same writes may also come as messages. What was added with the same
 * ready and opaque shares an eventfd, whose fd the client has to have room for. The region was
 * set before. -EEXIST: clashes with another one; -ENOSPC: more than OB_IOEVENTFDS_MAX in all.
 */
int ob_server_add_ioeventfd(struct ob_server *server, uint32_t region,
                            const struct ob_ioeventfd *match, void (*ready)(void *opaque),
                            void *opaque);

/* ---- Interrupts --------------------------------------------------------------------------- */

/* Signals a vector once; remembered while it is masked. 0; -ENOENT when the client has set no
 * eventfd for it. Any thread. */
int ob_server_irq_trigger(struct ob_server *server, uint32_t index, uint32_t vector);
/* The level of the INTx line. Asserted, it is signalled again at every UNMASK. Any thread. */
int ob_server_intx(struct ob_server *server, bool asserted);
/* How many vectors of the index have an eventfd. */
uint32_t ob_server_irq_armed(const struct ob_server *server, uint32_t index);

/* ---- The client's memory ------------------------------------------------------------------ */

/*
 * A client may cut the file behind its memory at any time. The first mapping installs a handler of
 * SIGBUS in this process, which puts zeros where the memory was; the client is then let go. A
 * SIGBUS from elsewhere is left to the handler that was there before.
 */

struct ob_dma_map; /* one mapping of the client */

/* A piece of the client's memory that is mapped here, kept in place until it is put. */
struct ob_dma_ref {
    void *ptr;
    struct ob_dma_map *map;
    struct ob_dma_hold *slot; /* the library's */
};

/*
 * Direct access to [address, address + len). prot: OB_DMA_READ | OB_DMA_WRITE, what we mean to do.
 * -EFAULT: not mapped; -EACCES: mapped, but not for that; -EOPNOTSUPP: mapped, but not as one
 * piece of memory here: use ob_dma_read() and ob_dma_write(); -ENOMEM. Any thread, without a lock,
 * and not on behalf of a client that has left: what it mapped is not found any more. The reference
 * may be put by another thread. Since 0.1.
 */
int ob_dma_get(struct ob_server *server, uint64_t address, uint64_t len, uint32_t prot,
               struct ob_dma_ref *out);
void ob_dma_put(struct ob_server *server, struct ob_dma_ref *ref);

/*
 * Copies from or to the client's memory, however it is mapped, over any number of adjacent
 * mappings. Where it is not mapped here this sends DMA_READ or DMA_WRITE and waits for the answer
 * (up to the timeout); requests of the client that come meanwhile are kept and handled later, in
 * order. -EFAULT, -EACCES; -ENOTCONN: the client is gone; -ETIMEDOUT; or the client's errno. What
 * was copied before a failure stays copied: data, or the client's memory, is then partly new.
 */
int ob_dma_read(struct ob_server *server, uint64_t address, void *data, uint64_t len);
int ob_dma_write(struct ob_server *server, uint64_t address, const void *data, uint64_t len);
/*
 * What the client may map at a time: mappings (1 to OB_DMA_MAPS_MAX, which is the default; the
 * client is told), and bytes of those that come with a file. For more it gets ENOSPC. Before the
 * server is offered, else -EINVAL. Since 0.1.
 */
#define OB_DMA_BYTES_DEFAULT ((uint64_t)64 << 40)
int ob_server_set_dma_limits(struct ob_server *server, uint32_t max_maps, uint64_t max_bytes);

/*
 * Which files the client's memory may be in: those of shared memory only (memfd, tmpfs, huge pages;
 * the default), or of any file system. A file system that is the client's own, or that waits for a
 * network, makes this process wait for as long as it likes. Since 0.1.
 */
enum ob_dma_file_kinds { OB_DMA_FILES_MEMORY, OB_DMA_FILES_ANY };
void ob_server_set_dma_files(struct ob_server *server, enum ob_dma_file_kinds kinds);

/* Deadline of a message DMA; default 5000. A client that keeps the server waiting for twice as long
 * in one step, all its answers together, is let go. */
void ob_server_set_timeout(struct ob_server *server, int timeout_ms);
/*
 * Whether the client has kept this step of the server waiting for 50 ms or more with its answers to
 * message DMA. A device that has more to do leaves it to the next step then (see
 * ob_server_set_poller()): the embedder's descriptors and other connections wait meanwhile. Since
 * 0.1.
 */
bool ob_server_kept_waiting(const struct ob_server *server);

/* ---- Migration ---------------------------------------------------------------------------- */

/*
 * How the state of a device is carried to another one of the same kind. Config space, MSI-X and
 * pending interrupts are the library's, and travel along; the rest is the device's. Which memory
 * the device writes is logged for every device, without its help.
 *
 * The states are those of enum ob_mig_state. In STOP, STOP_COPY and RESUMING the device starts no
 * DMA, and has no ob_dma_ref; its interrupts are held back and triggered when it runs again.
 */
struct ob_migration_ops {
    size_t size; /* sizeof(struct ob_migration_ops): lets the structure grow */
    /*
     * One arc of the diagram: RUNNING to STOP and back, STOP to STOP_COPY and back, STOP to
     * RESUMING and back, RUNNING to PRE_COPY and back, PRE_COPY to STOP_COPY. The arc is done when
     * this returns 0; with a negative errno the device stays where it was, but for RESUMING to
     * STOP, after which only a reset helps.
     * RESUMING to STOP: what was written since STOP to RESUMING becomes the state, after it was
     * checked; if that was nothing the device keeps the state it has.
     * When a client leaves in the middle of it, the device is taken back to RUNNING, from
     * RESUMING only by ob_server_ops.reset, which always leads to RUNNING.
     */
    int (*transition)(void *opaque, enum ob_mig_state from, enum ob_mig_state to);
    /* In PRE_COPY and STOP_COPY: the next bytes of the state, at most count. Returns how many; 0:
     * no more in this state; or a negative errno. */
    int64_t (*read)(void *opaque, void *data, uint32_t count);
    /* In RESUMING: the next bytes, all of which are taken. 0 or a negative errno. */
    int (*write)(void *opaque, const void *data, uint32_t count);
};

/* The device can migrate. Before it is offered; it must have ob_server_ops.reset. opaque is that of
 * ob_server_new(). Since 0.1. */
int ob_server_set_migration(struct ob_server *server, const struct ob_migration_ops *ops);

/*
 * For a device that keeps its state itself, to go on with it in another process: the same bytes
 * that a client would read, from ops->read and of what the library keeps. At any time, also while
 * the device runs; the migration that a client may have under way is not touched. Never blocks.
 * Returns how many bytes; -ENOSPC: they do not fit in size; -ENOMEM; or what ops->read returned.
 * Since 0.1.
 */
int64_t ob_server_save(struct ob_server *server, const struct ob_migration_ops *ops, void *data,
                       uint32_t size);
/*
 * Makes that the state of this device, before it is offered: ops->write gets the device's part, and
 * when all of it is right ops->transition goes from RESUMING to STOP, and to RUNNING. -EINVAL: no
 * such state, or that of another device; or what the callbacks returned. After a failure the device
 * can only be freed. Never blocks, but in the callbacks. Since 0.1.
 */
int ob_server_load(struct ob_server *server, const struct ob_migration_ops *ops, const void *data,
                   uint32_t len);

#ifdef __cplusplus
}
#endif
#endif
