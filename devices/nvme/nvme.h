/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The NVMe controller: one namespace, on a struct blk.
 *
 * Threads. Everything runs in the server's thread. All work is done in steps (schedule.c), which
 * the server has done after each of its own: completions of the backend, doorbells, fetching and
 * executing commands, posting completions, interrupts. Callbacks of the server only note what
 * happened. So nothing is re-entered, and each step is bounded.
 *
 * A command's life: fetched into a nvme_cmd of its submission queue, executed (at once, or with a
 * blk_req in flight), concluded with nvme_cmd_done(), posted when its completion queue has room
 * and the client is there, free again.
 */
#ifndef OB_NVME_H
#define OB_NVME_H

#include "devices/device.h"
#include "devices/state.h"
#include "blk.h"
#include "spec.h"

/* ---- Limits -------------------------------------------------------------------------------- */

#define NVME_IO_QUEUES_MAX     64u
#define NVME_QIDS              (NVME_IO_QUEUES_MAX + 1)
#define NVME_QUEUE_ENTRIES_MAX 1024u /* CAP.MQES + 1 */
#define NVME_MDTS              8u    /* log2 of pages: 1 MiB a command */
#define NVME_TRANSFER_MAX      (NVME_PAGE << NVME_MDTS)
#define NVME_SEGS_MAX          ((1u << NVME_MDTS) + 1)
#define NVME_INLINE_SEGS       4u          /* in the command itself; more are allocated */
#define NVME_INFLIGHT_MAX      128u        /* commands fetched from one queue at a time */
#define NVME_BOUNCE_MAX        (64u << 20) /* bytes of data on their way through buffers of ours */
#define NVME_LISTED_MAX        65536u      /* pieces of data, and ranges, in lists: 72 bytes each */
#define NVME_BURST             32u /* commands fetched from one queue before it is another's turn */
#define NVME_AERS_MAX          4u  /* AERL + 1 */
#define NVME_EVENTS_MAX        8u  /* kinds of asynchronous events that may wait */
#define NVME_ERRORS            64u /* ELPE + 1 */
#define NVME_MSI_MAX           32u
#define NVME_BUS_MASTER        0x4u /* in the PCI command register */
#define NVME_NSID              1u
#define NVME_KELVIN            313u /* there is nothing to measure: always 40 degrees C */
#define NVME_KELVIN_WARNING    343u
#define NVME_KELVIN_CRITICAL   353u

#define NVME_BAR_SIZE   0x4000u
#define NVME_DOORBELLS  0x1000u /* in BAR0; a page of their own */
#define NVME_MSIX_TABLE 0x2000u
#define NVME_MSIX_PBA   0x3000u

/* What an execute function returns when the command is concluded later. */
#define NVME_PENDING     0xffffu
/* ... and when the client left in the middle of it: it is executed again for the next one. */
#define NVME_CLIENT_LEFT 0xfffeu

struct nvme_ctrl;
struct nvme_sq;

/* ---- A command and its data ---------------------------------------------------------------- */

struct nvme_seg { /* adjacent in the client's address space */
    uint64_t address;
    uint32_t len;
};

struct nvme_segs {
    struct nvme_seg seg[NVME_SEGS_MAX];
    unsigned n;
};

/* Where a command's data is: guest pages held in place, or a buffer of ours. */
struct nvme_data {
    struct iovec *iov; /* what the backend gets; it changes them */
    struct ob_dma_ref *refs;
    unsigned niov, nrefs;
    unsigned room; /* of iov and refs, where they are allocated */
    void *bounce;
    struct iovec inline_iov[NVME_INLINE_SEGS];
    struct ob_dma_ref inline_refs[NVME_INLINE_SEGS];
};

/* What is left to do with the data when the backend is done. */
enum nvme_after { NVME_AFTER_NOTHING, NVME_AFTER_COPY_OUT, NVME_AFTER_COMPARE };

struct nvme_cmd {
    struct nvme_ctrl *ctrl;
    struct nvme_sq *sq;
    struct nvme_cmd *next; /* in the free list, or in its completion queue's list */
    struct nvme_sqe sqe;
    struct blk_req blk;
    struct nvme_data data;
    enum nvme_after after;
    bool pending;                  /* fetched, and not concluded yet */
    struct nvme_dsm_range *ranges; /* of a DSM, allocated */
    unsigned nranges, range;
    uint32_t len; /* bytes it transfers */
    uint32_t result;
    uint16_t status;
};

struct nvme_cmd_list {
    struct nvme_cmd *first, *last;
};

/* ---- Queues -------------------------------------------------------------------------------- */

/* A queue's memory in the client. Mapped lazily; let go when the client wants it back. */
struct nvme_ring {
    uint64_t base;
    uint32_t entries;
    uint32_t entry_size;
    struct ob_dma_ref ref;
    uint8_t *ptr; /* NULL: not mapped here (now) */
};

struct nvme_cq {
    bool live;
    bool irq; /* interrupts enabled */
    bool irq_due;
    unsigned unsignalled; /* posted since the last interrupt */
    int64_t hold_ns;      /* until then the interrupt may wait for more; 0: it does not wait */
    bool phase;
    uint16_t vector;
    uint32_t head, tail;
    unsigned nsqs; /* submission queues that complete here */
    struct nvme_ring ring;
    struct nvme_cmd_list done;     /* concluded, not posted yet */
    uint64_t posted;               /* in all; counted where there is a record */
    struct nvme_cq_record *record; /* in the state file, or NULL */
};

struct nvme_sq {
    bool live;
    uint16_t id, cqid;
    uint32_t head, tail;
    unsigned inflight; /* commands with a blk_req in flight */
    struct nvme_ring ring;
    struct nvme_cmd *cmds, *free;
    unsigned ncmds;
    struct nvme_cmd_list again;    /* to be executed anew: recover.c */
    uint64_t fetched;              /* in all; counted where there is a record */
    struct nvme_sq_record *record; /* in the state file, or NULL */
    struct nvme_cmd *deleter;      /* the Delete command that waits for inflight to become 0 */
};

/* Doorbells of the I/O queues in pages of the client (Doorbell Buffer Config). */
struct nvme_shadow {
    bool on;
    struct nvme_ring values;      /* the host writes them */
    struct nvme_ring events;      /* we write at which value we want a message */
    uint32_t told[2 * NVME_QIDS]; /* what is in events */
};

/* ---- The controller ------------------------------------------------------------------------ */

/* The most capable kind that the disk offers, beside the less capable ones. */
enum nvme_interrupts { NVME_INTX, NVME_MSI, NVME_MSIX };

struct nvme_config {
    const char *image;
    bool read_only;
    bool incoming; /* the image is locked when the disk runs, not from the start */
    bool direct;   /* the image's data goes around the page cache */
    bool mapped;   /* the client can map the doorbells */
    unsigned lba_shift;
    unsigned queues; /* I/O queue pairs */
    enum blk_aio aio;
    enum nvme_interrupts interrupts;
    const char *serial; /* NULL: made from the image */
    const char *model;
    const char *state; /* a file; NULL: the state ends with the process */
    uint16_t pci_vendor, pci_device;
};

struct nvme_stats {
    uint64_t bytes_read, bytes_written, reads, writes;
    uint64_t power_cycles, unsafe_shutdowns, media_errors, errors;
    int64_t start_ns, busy_since_ns, busy_ns;
};

struct nvme_features {
    uint32_t arbitration, over_kelvin, under_kelvin, error_recovery, write_cache, coalescing;
    uint32_t atomicity, async_event;
    uint32_t vector[NVME_QIDS]; /* interrupt vector configuration */
    uint64_t timestamp_ms;      /* at timestamp_ns of our clock */
    int64_t timestamp_ns;
    bool timestamp_set;
};

struct nvme_events {
    uint32_t waiting[NVME_EVENTS_MAX];
    unsigned nwaiting;
    uint8_t masked; /* types reported, until the host reads the log */
    struct nvme_cmd *aers[NVME_AERS_MAX];
    unsigned naers;
};

struct nvme_ctrl {
    struct ob_server *server;
    struct blk *blk;
    struct nvme_config cfg;
    ob_log_fn log;
    char serial[21], model[41], firmware[9], nqn[80];
    uint8_t nguid[16];
    uint64_t blocks;

    /* registers */
    uint32_t cc, csts, intms, aqa;
    uint64_t asq, acq;
    bool resetting; /* CC.EN was cleared: waiting for what is in flight */
    bool shutting;  /* a shutdown was asked for */
    struct blk_req shutdown_flush;
    bool flushing; /* shutdown_flush is in flight */

    struct nvme_sq sq[NVME_QIDS];
    struct nvme_cq cq[NVME_QIDS];
    unsigned top;      /* no queue above is live */
    unsigned turn;     /* I/O submission queue that is served first next time */
    unsigned inflight; /* requests with the backend */
    uint64_t bounced;  /* bytes of bounce buffers */
    unsigned listed;   /* pieces of data, and ranges, in lists of commands */
    bool intx;         /* level */
    int64_t hold_ns;   /* the first that a completion queue's interrupt waits for, or 0 */

    /* doorbells: 2 * qid for the tail of a submission queue, + 1 for a completion queue's head */
    volatile uint32_t *doorbells; /* a page; shared with the client when mapped */
    int doorbell_fd;
    uint32_t seen[2 * NVME_QIDS]; /* the value already acted upon */
    struct nvme_shadow shadow;

    /* scheduling (schedule.c) */
    int timer_fd;
    int64_t timer_ns;         /* when it expires; 0: never */
    int64_t look_ns, wait_ns; /* when to look, and how long after that again */
    bool polling;             /* ob_server_poll_end() is due */
    unsigned looks;           /* in vain, since then */
    int64_t idle_ns;          /* since then there is nothing to do; 0: there is */
    int64_t spin_ns;          /* for so long it polls */

    /* the client */
    bool paused;         /* a new client found us enabled: not before it is ready */
    int64_t pause_ns;    /* ... or this time */
    int64_t grace_ns;    /* until then queue memory may be missing */
    bool bus_master_set; /* it handles the bus master bit */
    uint32_t armed;      /* the kind of interrupts it has set up: 0, or 1 + enum nvme_interrupts */
    uint32_t narmed;     /* how many of them */

    /* state_file.c, recover.c */
    struct nvme_state_file *file; /* NULL: none, or not in use (any more) */
    bool dirty;                   /* the last checkpoint is not what is here */
    bool recovering;              /* what an earlier process did last is not known yet */
    bool again;                   /* commands of its I/O queues are to be executed anew */
    int64_t state_ns;             /* the time of a state that is loaded, if it is of this machine */

    /* migration.c */
    bool stopped;                 /* no command is fetched, nothing is posted */
    bool loaded;                  /* the state came from elsewhere, and has not run here yet */
    struct ob_state_buffer state; /* on its way in or out */

    struct nvme_features features;
    struct nvme_events events;
    struct nvme_stats stats;
    uint8_t warnings; /* critical warnings of the health log */
    bool lost;        /* a sync failed: no flush succeeds any more, see io.c */
    struct nvme_error_entry errors[NVME_ERRORS];
    /* when a line of that kind was said last */
    int64_t log_ns, fatal_log_ns, claim_log_ns;
    struct nvme_segs segs; /* scratch */
};

/* ---- controller.c -------------------------------------------------------------------------- */

int nvme_reg_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write);
/* Carries a reset or shutdown on as far as it goes now. Whether something happened. */
bool nvme_settle(struct nvme_ctrl *c);
/* Something the controller cannot go on with: CSTS.CFS, until it is reset. */
void nvme_fatal(struct nvme_ctrl *c, const char *why);
/* Reset by the bus: returns with nothing in flight. 0 or -ETIMEDOUT. */
int nvme_hard_reset(struct nvme_ctrl *c);
/* Whether the host and the client are ready for that. */
bool nvme_may_run(const struct nvme_ctrl *c);
/* Whether commands are fetched and completions posted. */
bool nvme_running(const struct nvme_ctrl *c);
/* Runs the backend until nothing is in flight, or the deadline has passed. */
int nvme_drain(struct nvme_ctrl *c, int64_t deadline_ns);

/* ---- nvme.c ------------------------------------------------------------------------------- */

/* Everything written is on stable storage. Nothing may be in flight. 0 or a negative errno. */
int nvme_flush(struct nvme_ctrl *c, int64_t deadline_ns);
/* Takes the lock of the image, if it is not ours already; logs why that fails. */
int nvme_claim_image(struct nvme_ctrl *c);
/* Whether a line may be said again, of which a guest can cause as many as it likes: once a second.
 * *said_ns, 0 at first, is when that was. */
bool nvme_may_say(int64_t *said_ns);

/* ---- schedule.c ---------------------------------------------------------------------------- */

int nvme_schedule_init(struct nvme_ctrl *c);
void nvme_schedule_fini(struct nvme_ctrl *c);
void nvme_client_changed(void *opaque, bool attached);
/* There is a new client for a controller that may be enabled. */
void nvme_take_over(struct nvme_ctrl *c);
int64_t nvme_now_ns(void);

/* ---- doorbells.c --------------------------------------------------------------------------- */

int nvme_doorbells_init(struct nvme_ctrl *c);
void nvme_doorbells_fini(struct nvme_ctrl *c);
/* One access by message. */
void nvme_doorbell_access(struct nvme_ctrl *c, uint32_t index, uint32_t *value, bool is_write);
/* Forgets what was written so far: the queue is new. */
void nvme_doorbell_clear(struct nvme_ctrl *c, unsigned index);
/* As if that had been written and acted upon. */
void nvme_doorbell_set(struct nvme_ctrl *c, unsigned index, uint32_t value);
/* Takes new tails and heads of all live queues. Whether any changed. */
bool nvme_doorbells_poll(struct nvme_ctrl *c);
/* Before a sleep: from now on the host rings by message. Whether there is something new already. */
bool nvme_doorbells_arm(struct nvme_ctrl *c);
uint16_t nvme_dbbuf_config(struct nvme_cmd *cmd);
/* Takes these pages as shadow doorbells. What is in them stays as it is. */
void nvme_shadow_start(struct nvme_ctrl *c, uint64_t values, uint64_t events);
void nvme_shadow_stop(struct nvme_ctrl *c);

/* ---- queues.c ------------------------------------------------------------------------------ */

int nvme_sq_start(struct nvme_ctrl *c, unsigned qid, unsigned cqid, uint64_t base,
                  uint32_t entries);
void nvme_cq_start(struct nvme_ctrl *c, unsigned qid, uint64_t base, uint32_t entries, bool irq,
                   uint16_t vector);
/* No command of the queue may be in flight; those that wait to be posted are dropped. */
void nvme_sq_stop(struct nvme_ctrl *c, struct nvme_sq *sq);
void nvme_cq_stop(struct nvme_ctrl *c, struct nvme_cq *cq);
/* Memory of the client, mapped when it is needed and as long as the client leaves it to us. */
void nvme_ring_start(struct nvme_ring *ring, uint64_t base, uint32_t entries, uint32_t entry_size);
uint8_t *nvme_ring_map(struct nvme_ctrl *c, struct nvme_ring *ring, uint32_t prot);
void nvme_ring_forget(struct nvme_ctrl *c, struct nvme_ring *ring);
/* Lets go of queue memory in [address, address + size). */
void nvme_rings_forget(struct nvme_ctrl *c, uint64_t address, uint64_t size);
/* Fetches and executes new commands, all queues in turn. How many. */
unsigned nvme_fetch(struct nvme_ctrl *c);
/* Posts concluded commands where there is room, and interrupts. How many. */
unsigned nvme_post(struct nvme_ctrl *c);

/* ---- interrupts.c -------------------------------------------------------------------------- */

/* Interrupts for what was posted. */
void nvme_interrupt(struct nvme_ctrl *c);
/* The level of the INTx line as it is now. */
bool nvme_intx(void *opaque);
/* Goes one entry on. */
void nvme_cq_advance(struct nvme_cq *cq);
/* Executes a command that was fetched. False: the client left, it is to be done again. */
bool nvme_execute(struct nvme_cmd *cmd);
void nvme_cmd_push(struct nvme_cmd_list *list, struct nvme_cmd *cmd);
/* The first one, which leaves the list, or NULL. */
struct nvme_cmd *nvme_cmd_pop(struct nvme_cmd_list *list);
/* The command is over for the host. */
void nvme_cmd_free(struct nvme_cmd *cmd);
/* A failed access to queue memory: fatal, except when the client has just left, or is new and still
 * setting up. Returns false. */
bool nvme_unreachable(struct nvme_ctrl *c, int rc, const char *why);
/* Gives the data of commands that wait to be posted to the client. */
void nvme_conclude_all(struct nvme_ctrl *c);
/* An unused command of the queue; NULL: there is none, or no such queue. */
struct nvme_cmd *nvme_cmd_take(struct nvme_sq *sq);
/* Puts a concluded command among those that wait to be posted. False: there is no room. */
bool nvme_cmd_restore(struct nvme_ctrl *c, struct nvme_sq *sq, uint16_t cid, uint16_t status,
                      uint32_t result);
/* Concludes a command. */
void nvme_cmd_done(struct nvme_cmd *cmd, uint16_t status);

/* ---- prp.c --------------------------------------------------------------------------------- */

/* Lists the len bytes of the command's PRPs. A status. */
uint16_t nvme_prp_walk(struct nvme_ctrl *c, const struct nvme_sqe *sqe, uint32_t len,
                       struct nvme_segs *out);
/* The same, made ready for the backend: pages in place, or a bounce buffer. to_host: the command
 * writes the client's memory. A status. */
uint16_t nvme_data_map(struct nvme_cmd *cmd, bool to_host);
/* A bounce buffer of cmd->len bytes. A status. */
uint16_t nvme_data_bounce(struct nvme_cmd *cmd);
void nvme_data_release(struct nvme_cmd *cmd);
/* Copies between a buffer and the command's PRPs. A status or NVME_CLIENT_LEFT. */
uint16_t nvme_copy_to_host(struct nvme_ctrl *c, const struct nvme_sqe *sqe, const void *data,
                           uint32_t len);
uint16_t nvme_copy_from_host(struct nvme_ctrl *c, const struct nvme_sqe *sqe, void *data,
                             uint32_t len);

/* ---- The commands: a status, NVME_PENDING or NVME_CLIENT_LEFT -------------------------------- */

uint16_t nvme_admin(struct nvme_cmd *cmd);       /* admin.c */
uint16_t nvme_io(struct nvme_cmd *cmd);          /* io.c */
uint16_t nvme_identify(struct nvme_cmd *cmd);    /* identify.c */
uint16_t nvme_get_log(struct nvme_cmd *cmd);     /* logs.c */
uint16_t nvme_get_feature(struct nvme_cmd *cmd); /* features.c */
uint16_t nvme_set_feature(struct nvme_cmd *cmd);
uint16_t nvme_async_event(struct nvme_cmd *cmd); /* events.c */

/* Data that was written may be lost: warns of it, and fails every Flush from now on. */
void nvme_cache_lost(struct nvme_ctrl *c);
/* The work of a blk_req in a command: submits it, later concludes the command. */
uint16_t nvme_blk_submit(struct nvme_cmd *cmd);
/* The Delete that waits for this queue's last command, if it was that. */
void nvme_delete_settle(struct nvme_ctrl *c, struct nvme_sq *sq);

/* ---- What the others keep ------------------------------------------------------------------ */

void nvme_identity_init(struct nvme_ctrl *c);
void nvme_features_reset(struct nvme_ctrl *c);
/* Whether Set Features could have led to this. */
bool nvme_features_ok(const struct nvme_ctrl *c, const struct nvme_features *f);
/* Reports an event to the host, unless it has not read of the last one of this type yet. */
void nvme_event(struct nvme_ctrl *c, uint32_t event);
/* The host has read a log: events of that kind may come again. */
void nvme_event_log_read(struct nvme_ctrl *c, uint8_t log);
/* Takes back an Asynchronous Event Request. Whether there was one with this identifier. */
bool nvme_event_abort(struct nvme_ctrl *c, uint16_t cid);
void nvme_events_reset(struct nvme_ctrl *c);
/* Compares the temperature with its thresholds. */
void nvme_check_temperature(struct nvme_ctrl *c);
/* Enters a failed command into the error log. */
void nvme_log_error(struct nvme_ctrl *c, const struct nvme_cmd *cmd);
/* Counts the time in which I/O is under way. */
void nvme_count_busy(struct nvme_ctrl *c, bool busy);

/* ---- migration.c --------------------------------------------------------------------------- */

extern const struct ob_migration_ops nvme_state_ops;
/* The device was reset, or ends. */
void nvme_migration_end(struct nvme_ctrl *c);

/* ---- state.c ------------------------------------------------------------------------------- */

/* Puts the state into c->state. The doorbells have been written until now; from here on they are
 * part of it. 0 or -ENOMEM. */
int nvme_state_save(struct nvme_ctrl *c);
/* The same of a controller that goes on: commands that are under way are in it. Of I/O queues what
 * is in their records is not. */
int nvme_state_save_live(struct nvme_ctrl *c);
/* Makes what is in c->state the state, when it is that of a controller like this one. What fails
 * half way leaves a controller that was reset. 0 or a negative errno. */
int nvme_state_load(struct nvme_ctrl *c);

/* ---- state_file.c --------------------------------------------------------------------------- */

/* Opens and locks the state file, and finds out whether it is one of this disk. 0, or 1 and a
 * sentence in errbuf. */
int nvme_file_open(struct nvme_ctrl *c, struct nvme_state_file **out, char *errbuf, size_t size);
/* Whether there is the state of a server that has ended. */
bool nvme_file_continues(const struct nvme_state_file *file);
/* Goes on with the state in it, if there is one. From here on it is c->file. 0, or 1 and a sentence
 * in errbuf. */
int nvme_file_start(struct nvme_ctrl *c, struct nvme_state_file *file, char *errbuf, size_t size);
/* What follows is not noted any more: the state stays for the next process. */
void nvme_file_stop(struct nvme_ctrl *c);
void nvme_file_close(struct nvme_state_file *file);
/* A checkpoint, if the last one is not up to date. Before anybody learns of what has changed. */
void nvme_file_sync(struct nvme_ctrl *c);
void nvme_file_note_armed(struct nvme_ctrl *c);
void nvme_file_note_intms(struct nvme_ctrl *c);

/* ---- recover.c ------------------------------------------------------------------------------ */

/* Finds out which commands of an earlier process were posted; the others are executed again. It has
 * to be called again while c->recovering stays set. */
void nvme_recover(struct nvme_ctrl *c);

/* ---- options.c ----------------------------------------------------------------------------- */

extern const struct option nvme_long_options[];
extern const char nvme_options_help[];
/* 0; or -EINVAL and a sentence in errbuf. Strings stay in argv. */
int nvme_parse_options(int argc, char **argv, struct nvme_config *cfg, char *errbuf, size_t size);

#endif
