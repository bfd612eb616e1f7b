/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a client that reconnects knows beyond its connection, so that it can go on with the next
 * one. There is none without reconnect_ms.
 *
 * Theory. When the connection dies the client is INTERRUPTED, and one thread (reconnect.c) tries
 * to make a new one: connect, negotiate, compare who answers with who was there (identity), set up
 * what was set up (restore), and only then exchange the sockets under the lock of the client
 * (adopt), while nobody has the receive role or looks at the ring. All of it is done on a client of
 * its own, the attempt; so a server that fails in the middle of it is one attempt that failed.
 *
 *   state         left for        by
 *   CONNECTED     INTERRUPTED     whoever finds the connection dead
 *   INTERRUPTED   CONNECTED       the thread: the server is back
 *   INTERRUPTED   LOST            the thread: too late, or another device; ob_client_shutdown()
 *
 * Calls that change what the device is told to keep (DMA maps, eventfds and masks of interrupts,
 * reset) hold `setup` from begin to end, and so does restore to adopt: each of those calls is
 * carried out on one connection, or noted and restored on the next. While the client is
 * INTERRUPTED they only note, and succeed; an attempt that keeps them from it for long is ended, so
 * that no server can make them wait (test: client-reconnect-rough/what-is-set-up-does-not-wait...).
 *
 * Locks: `setup` (a flag, as who waits for it has a deadline) before the lock of the client;
 * neither is held across a callback of the client, except that restore serves DMA requests of the
 * attempt with `setup` held: a callback must not call into its client and wait (client.h), and
 * setup calls are refused there.
 */
#ifndef OB_CLIENT_MEMO_H
#define OB_CLIENT_MEMO_H

#include "client/internal.h"

/* Registers whose last posted write is kept until the server is known to have it. */
#define OB_MEMO_POSTED_MAX      512u
/* How long a call that sets up waits for the device being set up again, at first and at most. */
#define OB_MEMO_PATIENCE_MS     20u
#define OB_MEMO_PATIENCE_MAX_MS 1000u
/* Config space in which what was written is kept. */
#define OB_MEMO_CONFIG          256u

/* Who the device is. */
struct ob_identity {
    struct ob_device_info info;
    struct ob_region_info *regions; /* info.num_regions; size 0 where there is none */
    struct ob_irq_info *irqs;       /* info.num_irqs; count 0 where there is none */
    uint8_t config[OB_MEMO_CONFIG]; /* at the time; zeroes where it is not PCI */
};

/* The eventfds of one IRQ index; see the order in memo.c. */
struct ob_memo_irqs {
    int *fds[3]; /* of each vector, -1: none; NULL: none at all */
    uint8_t *masked;
};

struct ob_memo_write {
    uint64_t offset, number; /* number: of all posted writes */
    uint32_t region, count;
    uint8_t data[8];
};

struct ob_memo_config {
    uint8_t bytes[OB_MEMO_CONFIG];
    bool set[OB_MEMO_CONFIG];
};

/* How it was when a reset began. */
struct ob_memo_past {
    uint64_t posted;
    struct ob_memo_config config;
};

struct ob_memo {
    char *path;
    struct ob_identity identity; /* constant but for the fds in regions: guarded by setup */
    /* guarded by setup */
    void *maps; /* a tree (search.h) of struct map by address */
    size_t nmaps;
    struct file *files;        /* that maps are of, each once */
    struct ob_memo_irqs *irqs; /* identity.info.num_irqs */
    const char *broken;        /* why what was set up cannot be restored; NULL: it can */
    /* guarded by the client's lock */
    pthread_cond_t changed; /* the state, running, setup, or the role laid down while INTERRUPTED */
    bool setup;             /* somebody has it */
    char why[OB_CLIENT_WHY_MAX]; /* the connection died last */
    bool running;                /* there is a thread */
    bool again;                  /* the connection died once more before it ended */
    unsigned delay_ms;           /* before the next attempt */
    int64_t resumed_ns;
    uint64_t reconnects;
    bool reset_due; /* before anything else is set up again */
    struct ob_client *attempt;
    bool restoring; /* it holds `setup` */
    unsigned patience_ms;
    struct ob_memo_config config;     /* as last written */
    struct ob_memo_config restored;   /* what of it the attempt has restored */
    bool config_kept[OB_MEMO_CONFIG]; /* it is to be restored if it was written; constant */
    unsigned flr_at;                  /* a bit there resets the device; 0: none does; constant */
    uint8_t flr_bit;
    uint64_t posted, taken; /* posted writes, and up to which the server has them */
    unsigned nwrites;
    struct ob_memo_write writes[OB_MEMO_POSTED_MAX];
};

/* ---- memo.c: life -------------------------------------------------------------------------- */

/* Finds out who the device is and prepares to reconnect. On failure errbuf says why. */
int ob_memo_begin(struct ob_client *c, const char *path, char *errbuf, size_t size);
/* NULL is allowed. */
void ob_memo_free(struct ob_memo *s);

/* ---- identity.c --------------------------------------------------------------------------- */

/* Asks who the device behind c is. 0 or a negative number. */
int ob_identity_ask(struct ob_client *c, struct ob_identity *out);
void ob_identity_fini(struct ob_identity *id);
/* NULL: it is the same device; else in words (into buf) what differs. */
const char *ob_identity_differs(const struct ob_identity *was, const struct ob_identity *is,
                                char *buf, size_t size);

/* ---- memo.c: what is noted ---------------------------------------------------------------- */

/* Around a call that changes what is set up. False: this thread must not wait (-EDEADLK). */
bool ob_memo_enter(struct ob_client *c);
void ob_memo_leave(struct ob_client *c);
/*
 * What became of a change: rc of the request. Notes it where it is, or may be, or will be in force;
 * returns rc, or 0 where the change was only noted. With ob_memo_enter().
 */
int ob_memo_note_dma(struct ob_client *c, const struct ob_dma_change *change, int rc);
int ob_memo_note_irqs(struct ob_client *c, uint32_t index, uint32_t flags, uint32_t start,
                      uint32_t count, const uint8_t *bools, const int *fds, int rc);
/* Around a reset: what was written before it began says nothing any more when it is done. Other
 * threads may write meanwhile. */
void ob_memo_begin_reset(struct ob_client *c, struct ob_memo_past *past);
int ob_memo_note_reset(struct ob_client *c, const struct ob_memo_past *past, int rc);
/* A region is about to be written. */
void ob_memo_note_write(struct ob_client *c, uint32_t region, uint64_t offset, const void *data,
                        uint32_t count);
/* What became of a posted write: rc of sending it. The same otherwise. */
int ob_memo_note_posted_locked(struct ob_client *c, const struct ob_wire_region_access *wire,
                               const void *data, int rc);
/* The region as it was described; the fd is the caller's. */
int ob_memo_region_info(struct ob_client *c, uint32_t index, struct ob_region_info *out);
/* Sets up at n what was set up at c; with `setup`. 0, or a negative number and a sentence. */
int ob_memo_restore(struct ob_client *c, struct ob_client *n, char *errbuf, size_t size);
/* The device was reset: what was written before says nothing any more. */
void ob_memo_forget_locked(struct ob_memo *s);

/* ---- memo_config.c ------------------------------------------------------------------------- */

bool ob_memo_is_config(const struct ob_memo *s, uint32_t region);
/* Finds out, once, which registers are to be kept. */
void ob_memo_keep_config(struct ob_memo *s);
/* Writes them at n. 0 or a negative number. */
int ob_memo_restore_config(struct ob_client *c, struct ob_client *n);
/* Sends what was written to config space after that, as posted writes. */
void ob_memo_catch_up_locked(struct ob_client *c);

/* ---- reconnect.c -------------------------------------------------------------------------- */

/* The connection died, and who was to be told was told: begins to try. */
void ob_reconnect_start(struct ob_client *c);
/* The lock `setup`; ends an attempt that keeps it for long. */
void ob_setup_take(struct ob_client *c);
void ob_setup_give(struct ob_client *c);
/* Waits for the end of the thread, which ob_client_shutdown() has told to. */
void ob_reconnect_end(struct ob_client *c);

#endif
