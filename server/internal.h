/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the files of the server library share. Everything here belongs to the thread that steps
 * the server, but what irqs.c keeps under irq_lock.
 *
 * Life of a connection. Accepted, it is a session in the lobby, where it may do nothing but send
 * VERSION; any number of silent ones disturb nobody. The first that negotiates while there is no
 * client becomes server->session. A session is never freed while a callback may be using it: what
 * finds it broken calls ob_session_doom(), and the end of the step lets it go.
 */
#ifndef OB_SERVER_INTERNAL_H
#define OB_SERVER_INTERNAL_H

#include <pthread.h>
#include <sys/types.h>

#include "channel/channel.h"
#include "channel/spin.h"
#include "outboard/pci.h"
#include "outboard/server.h"
#include "server/dma_table.h"

#pragma GCC visibility push(hidden)

#define OB_LOBBY_MAX        8u /* connections that have not negotiated yet */
#define OB_ALLOWED_UIDS_MAX 16u
#define OB_STEP_REQUESTS    64u                /* posted requests handled in one step */
#define OB_STEP_NS          10000000           /* and when another kind was, in that time */
#define OB_BACKLOG_MAX      ((size_t)16 << 20) /* bytes kept while a message DMA is under way */
#define OB_BACKLOG_FD_COST  4096u              /* what a kept fd counts for in it */
#define OB_DMA_TIMEOUT_MS   5000

/* An fd in the loop. */
struct ob_source {
    int fd;
    uint32_t events;
    bool unhooked;                                /* out of the epoll for a while */
    void (*ready)(void *opaque, uint32_t events); /* NULL: taken out, freed after the step */
    void *opaque;
    struct ob_source *next; /* in server->watches or server->buried */
};

/* A DMA_UNMAP whose answer waits until the device has let go. */
struct ob_pending_unmap {
    struct ob_wire_hdr hdr;
    struct ob_wire_dma_unmap request;
    struct ob_wire_bitmap bitmap; /* with GET_DIRTY */
    unsigned left;                /* mappings still in use; 0: nothing is pending */
};

struct ob_session {
    struct ob_server *server;
    struct ob_channel ch;
    struct ob_source *source;
    struct ob_channel
        twin; /* for our DMA messages and their answers; its fd is -1: there is none */
    struct ob_source *twin_source;
    struct ob_ring *ring;    /* NULL: none */
    bool ring_open;          /* the client may put commands into it */
    bool ring_hot;           /* the last command came that way */
    uint32_t ring_at;        /* commands that were in it */
    uint32_t ntaken;         /* commands that came over the main socket and were executed */
    struct ob_session *next; /* in the lobby */
    struct ob_msg *version;  /* in the lobby: came while the client before was still leaving */
    pid_t pid;
    struct ob_caps caps; /* the client's */
    uint64_t serial;     /* unlike any other session's */
    bool told_refused;   /* of memory that was refused */
    bool doomed;
    char why[96]; /* it was */
    /* commands that came while a message DMA waited for its reply */
    struct ob_msg *backlog, **backlog_tail;
    size_t backlog_bytes;
    uint16_t next_id; /* of our DMA messages */
    struct ob_pending_unmap unmap;
};

struct ob_region_slot {
    struct ob_region_layout layout; /* as the client is told */
    ob_region_access_cb access;
    void *opaque;
    int fd;       /* borrowed; -1: none */
    void *memory; /* where the fd is mapped here; NULL before the first access */
};

/* A part of a region that the library serves itself: MSI-X table, PBA. */
struct ob_overlay {
    uint32_t region;
    uint64_t offset, size;
    void (*access)(struct ob_server *server, uint64_t offset, uint8_t *data, uint32_t count,
                   bool is_write);
};

enum ob_irq_mask {
    OB_MASKED_BY_CLIENT = 1, /* SET_IRQS, or automatically when it was signalled */
    OB_MASKED_BY_CONFIG = 2, /* MSI mask bit, INTx disable */
};

struct ob_irq_watch;

struct ob_irq_vector {
    int fd;         /* the client's eventfd, or -1 */
    uint8_t masked; /* set of enum ob_irq_mask */
    bool pending;   /* triggered while masked */
    struct ob_irq_watch *mask_by, *unmask_by;
};

struct ob_irq {
    uint32_t flags, count;
    uint32_t armed; /* vectors with an eventfd; read without the lock */
    bool level;     /* of the INTx line */
    bool held;      /* the device stands still: nothing is signalled */
    struct ob_irq_vector *vectors;
};

struct ob_pci {
    bool present;
    uint32_t size; /* 256 or 4096 */
    uint8_t config[4096], initial[4096], writable[4096];
    uint8_t last_cap, end;       /* where the newest capability starts, where the next one goes */
    uint8_t pm, pcie, msi, msix; /* offsets; 0: none */
    unsigned msi_vectors;
    unsigned msix_vectors;
    uint8_t *msix_table;
};

/* on is read without the lock; session and on change in the server's thread. */
struct ob_dirty {
    pthread_mutex_t lock; /* guards the rest */
    bool on;
    uint64_t session;               /* that it is on for */
    bool all;                       /* too much was written to keep account of it */
    struct ob_dirty_chunk **chunks; /* by address */
    size_t nchunks, room;
};

/* What was said within a second. */
struct ob_lines {
    int64_t since_ns;
    unsigned count;
};

struct ob_server {
    struct ob_server_ops ops;
    void *opaque;
    struct ob_lines lines[OB_LOG_DEBUG]; /* by level */

    int epoll_fd, stop_fd, wake_fd, spare_fd;
    struct ob_source *wake; /* its fd is always readable: watched while there is work left */
    bool awake, stepping, stop;
    bool has_read;              /* in this step, from the client */
    int64_t looked_ns;          /* when everything was looked at while polling */
    unsigned spun;              /* waits by polling; where the next one is in its rounds */
    struct ob_spin spin;        /* for requests */
    struct ob_spin dma_spin;    /* for answers to message DMA */
    struct ob_spin poller_spin; /* what the embedder's poller waits for */
    struct ob_source *watches, *buried;
    bool (*poller)(void *opaque);
    void *poller_opaque;

    int listen_fd;
    struct ob_source *listener;
    struct ob_discard_watch room; /* on while nobody is let in */
    uid_t socket_uid;             /* who shall have the socket file; -1: as it comes */
    gid_t socket_gid;
    uid_t allowed[OB_ALLOWED_UIDS_MAX]; /* to connect; none: everybody */
    unsigned nallowed;
    char *path; /* of the socket file made here */
    dev_t path_dev;
    ino_t path_ino;
    bool adopted, ended;      /* one connection was handed in; it is over */
    struct ob_session *lobby; /* oldest first */
    struct ob_session *session;
    uint64_t serials;

    struct ob_region_slot regions[OB_REGIONS_MAX];
    uint32_t num_regions;
    struct ob_overlay overlays[2];
    unsigned num_overlays;
    struct ob_io_table *io; /* NULL: no ioeventfds */
    /* What a REGION_READ is answered with: small, so that registers need no memory, or scratch. */
    _Alignas(8) uint8_t small[64];
    uint8_t *scratch;
    size_t scratch_size;

    pthread_mutex_t irq_lock; /* guards what irqs[] holds, but the mask_by and unmask_by */
    struct ob_irq irqs[OB_IRQS_MAX];
    uint32_t num_irqs;

    struct ob_pci pci;
    struct ob_dma_table dma;
    struct ob_dirty dirty;
    struct ob_migration *migration; /* NULL: the device has none */
    unsigned guard_hits;            /* those that were dealt with */
    int timeout_ms;
    int64_t waited_ns; /* for answers to message DMA, since the last step */
    bool mapped_order;
};

/* ---- server.c: the loop ------------------------------------------------------------------- */

/* NULL without memory or when the fd cannot be watched. fd is borrowed. */
struct ob_source *ob_source_add(struct ob_server *server, int fd, uint32_t events,
                                void (*ready)(void *opaque, uint32_t events), void *opaque);
void ob_source_mod(struct ob_server *server, struct ob_source *source, uint32_t events);
/* Must come before the fd is closed: the client may hold the same file open. NULL is allowed. */
void ob_source_del(struct ob_server *server, struct ob_source *source);
/* There is work that no fd announces: ob_server_fd() becomes readable. */
void ob_server_kick(struct ob_server *server);

/* ---- log.c -------------------------------------------------------------------------------- */

void ob_log(struct ob_server *server, enum ob_log_level level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- lobby.c: listening, accepting, negotiating ------------------------------------------- */

void ob_lobby_admit(struct ob_server *server); /* those who waited for the last client to leave */
void ob_lobby_reopen(struct ob_server *server);
void ob_lobby_fini(struct ob_server *server);

/* ---- session.c: the client ---------------------------------------------------------------- */

struct ob_session *ob_session_new(struct ob_server *server, int fd);
void ob_session_free(struct ob_session *session);
/* Makes the session the client; it was in the lobby. */
void ob_session_attach(struct ob_session *session);
/* Makes the twin socket. Returns the client's end, the caller's to close, or -1 without one. */
int ob_session_add_twin(struct ob_session *session);
/* A message that came over the twin and that nobody waits for. Takes it. */
void ob_session_twin_message(struct ob_session *session, struct ob_msg *msg);
/* The twin failed. Its end is the end of the client: the main socket takes nothing more, and ends
 * when what came before was handled. */
void ob_session_twin_broken(struct ob_session *session, int rc);
/* To be ended after this step. The first reason counts. */
void ob_session_doom(struct ob_session *session, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* The same for a negative errno of the channel. */
void ob_session_broken(struct ob_session *session, int rc);
/* Handles some of what has come. Whether there was anything. */
bool ob_session_read(struct ob_session *session);
/* What the session waits for may have changed. */
void ob_session_rearm(struct ob_session *session);
/* Commands are at hand that no fd will announce. */
bool ob_session_has_work(const struct ob_session *session);
/* Whether all that it has sent was handled. */
bool ob_session_caught_up(const struct ob_session *session);
/* Lets the client go. */
void ob_session_end(struct ob_session *session);
/* Keeps a command for later. Takes msg. */
void ob_session_defer(struct ob_session *session, struct ob_msg *msg);
/* Whether the peer has closed its end, though there may be unread requests. */
bool ob_session_hung_up(const struct ob_session *session);

/* ---- ring.c: accesses without system calls ------------------------------------------------- */

/* Makes the ring. Returns its file, the caller's to close, or -1 without one. */
int ob_ring_make(struct ob_session *session);
void ob_ring_free(struct ob_session *session);
/* The client is gone, or is to go. It may keep the file for ever, and that is our memory. */
void ob_ring_drop(struct ob_session *session);
/* The server polls from now on; may be repeated. */
void ob_ring_open(struct ob_session *session);
/* It does not any more. Commands may be left: see ob_session_has_work(). */
void ob_ring_close(struct ob_session *session);
/* A command that came over the main socket was executed. */
void ob_ring_note_taken(struct ob_session *session);
/* Whether there is a command in it. */
bool ob_ring_has(const struct ob_session *session);
/* Executes those that are; unless all, no more than of messages in one step. Whether there were
 * any. */
bool ob_ring_take(struct ob_session *session, bool all);

/* ---- dispatch.c: requests and their answers ------------------------------------------------ */

/* What follows the header of an answer. */
struct ob_reply {
    uint8_t fixed[OB_REGION_INFO_MAX];
    size_t len;
    const void *data; /* after it */
    size_t data_len;
    unsigned nfds;
    int fds[OB_IOEVENTFDS_MAX]; /* borrowed */
};

#define OB_ANSWER_LATER 1 /* a handler's third result: the answer is sent by somebody else */

/* Handles one message; it stays the caller's. true: it was answered. */
bool ob_dispatch(struct ob_session *session, struct ob_msg *msg);
/* At least count bytes, zeroed, until the next call: what a device leaves unset must not be
 * another's data. NULL without memory. */
uint8_t *ob_scratch(struct ob_server *server, size_t count);
/* Answers the request unless it is a posted one: rc 0 with reply (may be NULL), else the error. */
void ob_answer(struct ob_session *session, const struct ob_wire_hdr *request, int rc,
               const struct ob_reply *reply);

/* ---- regions.c ---------------------------------------------------------------------------- */

/* Bounds, direction and all. data is read for writes. */
int ob_region_access(struct ob_server *server, uint32_t index, uint64_t offset, void *data,
                     uint32_t count, bool is_write);
/* A part of a region that is served by the library. */
void ob_region_overlay(struct ob_server *server, const struct ob_overlay *overlay);
void ob_regions_fini(struct ob_server *server);

/* ---- ioeventfds.c ------------------------------------------------------------------------- */

/* The reply to GET_REGION_IO_FDS; info is the request. */
void ob_io_describe(struct ob_session *session, struct ob_wire_region_io_fds *info,
                    struct ob_reply *reply);
/* The device may change again: handles what was signalled meanwhile. */
void ob_io_release(struct ob_server *server);
/* The client left: its eventfds go. */
void ob_io_detach(struct ob_server *server);
void ob_io_fini(struct ob_server *server);

/* ---- irqs.c ------------------------------------------------------------------------------- */

void ob_irqs_fini(struct ob_server *server);
/* The client left: its eventfds go, nothing is masked or pending. */
void ob_irqs_detach(struct ob_server *server);
/* SET_IRQS. Fds are claimed from msg. */
int ob_irqs_set(struct ob_server *server, const struct ob_wire_set_irqs *request,
                const uint8_t *bools, struct ob_msg *msg);
/* The mask bits in config space. */
void ob_irq_config_mask(struct ob_server *server, uint32_t index, uint32_t vector, bool mask);
bool ob_irq_pending(struct ob_server *server, uint32_t index, uint32_t vector);
bool ob_irq_level(struct ob_server *server);
/* While held, what is triggered stays pending. */
void ob_irqs_hold(struct ob_server *server, bool hold);
void ob_irq_set_pending(struct ob_server *server, uint32_t index, uint32_t vector, bool pending);
/* The device was reset: nothing is pending. */
void ob_irqs_reset(struct ob_server *server);

/* ---- dma.c, dma_message.c ----------------------------------------------------------------- */

int ob_dma_init(struct ob_server *server);
/* DMA_MAP. fd: -1, or taken, also on failure. */
int ob_dma_add(struct ob_server *server, const struct ob_wire_dma_map *request, int fd);
/* DMA_UNMAP. 0, OB_ANSWER_LATER, or a negative errno. */
int ob_dma_remove(struct ob_session *session, const struct ob_wire_hdr *hdr,
                  const struct ob_wire_dma_unmap *request, const struct ob_wire_bitmap *bitmap);
/* The client left. What is still in use stays mapped until it is put. */
void ob_dma_detach(struct ob_server *server);
void ob_dma_fini(struct ob_server *server);
/* DMA_READ into data or DMA_WRITE from it. Waits. */
int ob_dma_message(struct ob_session *session, uint16_t cmd, uint64_t address, void *data,
                   uint64_t len, int64_t deadline_ns);

/* Memory of the client turned out to be gone: ends the session. */
void ob_dma_check_guards(struct ob_session *session);

/* ---- dirty.c: what the device wrote ------------------------------------------------------- */

void ob_dirty_init(struct ob_dirty *dirty);
/* For the client that is there. *page_size: what was asked for, then what it is. -EINVAL: it is
 * on. */
int ob_dirty_start(struct ob_server *server, uint64_t *page_size);
int ob_dirty_stop(struct ob_dirty *dirty);
/* [address, address + len) was written, if anybody wants to know. len > 0. */
void ob_dirty_mark(struct ob_dirty *dirty, uint64_t address, uint64_t len);
/* The same by whoever held memory of that session; any thread. false: nobody wanted to know. */
bool ob_dirty_put(struct ob_dirty *dirty, uint64_t session, uint64_t address, uint64_t len);
/* Puts the pages of [address, address + len) into bitmap, of ob_bitmap_size() bytes, and clears
 * them. bitmap is aligned to 8. mapped: all of it was, until now. */
void ob_dirty_take(struct ob_server *server, uint64_t address, uint64_t len, uint64_t page_size,
                   bool mapped, void *bitmap);
void ob_dirty_forget(struct ob_dirty *dirty, uint64_t first, uint64_t last);
void ob_dirty_fini(struct ob_dirty *dirty);

/* ---- migration.c, migration_stream.c ------------------------------------------------------ */

/* The commands. */
int ob_feature(struct ob_session *session, const void *payload, size_t len, struct ob_reply *reply);
int ob_migration_read(struct ob_session *session, const void *payload, size_t len,
                      struct ob_reply *reply);
int ob_migration_write(struct ob_session *session, const void *payload, size_t len);
/* Whether the device must not be changed now. */
bool ob_migration_frozen(const struct ob_server *server);
/* The device was reset. */
void ob_migration_reset(struct ob_server *server);
/* The client left. */
void ob_migration_detach(struct ob_server *server);
void ob_migration_fini(struct ob_server *server);

/* The state as a stream of bytes. */
struct ob_stream;

/* NULL without memory. */
struct ob_stream *ob_stream_new(struct ob_server *server, const struct ob_migration_ops *ops);
void ob_stream_free(struct ob_stream *stream);
/* The next bytes, as many as there are; last: the device stands still. Their number, or a negative
 * errno. */
int64_t ob_stream_read(struct ob_stream *stream, void *data, uint32_t count, bool last);
int ob_stream_write(struct ob_stream *stream, const void *data, uint32_t count);
/* Nothing was written. */
bool ob_stream_empty(const struct ob_stream *stream);
/* Whether what was written is whole. 0 or a negative errno. */
int ob_stream_check(const struct ob_stream *stream);
/* What the library itself keeps of the device. */
void ob_stream_apply(const struct ob_stream *stream);

/* ---- guard.c: files that the client cuts --------------------------------------------------- */

/* Guards a mapping. Returns what to give to the others; -1, which they take, when it cannot be
 * guarded. Any thread. */
int ob_guard_add(void *base, size_t length);
void ob_guard_del(int index);
/* The memory is gone; it was replaced with zeros. */
bool ob_guard_hit(int index);
/* How often that happened in this process. */
unsigned ob_guard_hits(void);

/* ---- pci.c, pci_caps.c --------------------------------------------------------------------- */

/* The expansion ROM region has this size. */
int ob_pci_set_rom(struct ob_server *server, uint64_t size);
/* Initial value and writable bits of config space. */
void ob_pci_put(struct ob_pci *pci, uint32_t offset, const void *value, const void *writable,
                size_t len);
/* After config[offset, offset + count) was written; before: what was there. */
void ob_pci_caps_written(struct ob_server *server, uint32_t offset, uint32_t count,
                         const uint8_t *before);
/* Makes the interrupts obey the mask bits of config space. */
void ob_pci_config_masks(struct ob_server *server);
void ob_pci_mask_msi(struct ob_server *server); /* the part of it that is in the MSI capability */
/* All vectors zero, and masked. */
void ob_pci_reset_msix(struct ob_pci *pci);
/* pci_state.c: what config space and MSI-X have to be saved of. Bytes of it, or written to out. */
size_t ob_pci_state_size(const struct ob_server *server);
void ob_pci_state_get(struct ob_server *server, void *out);
/* Whether that is the state of a device like this one; and makes it this one's. */
bool ob_pci_state_ok(struct ob_server *server, const void *state, size_t len);
void ob_pci_state_set(struct ob_server *server, const void *state);
/* Registers of capabilities that follow the device's state. */
void ob_pci_caps_refresh(struct ob_server *server);
/* Tells the device that its config space or MSI-X table is another now. */
void ob_pci_changed(struct ob_server *server);
/* Resets config space, MSI-X table and device. */
int ob_pci_reset(struct ob_server *server);
void ob_pci_fini(struct ob_server *server);

#pragma GCC visibility pop
#endif
