/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where the blocks are: a file or block device (io_uring or threads), memory, or nothing at all.
 *
 * Threads. Everything here is called from one thread, and done() runs only inside ops->poll():
 * submitting never completes anything, so a caller is never re-entered.
 */
#ifndef OB_NVME_BLK_H
#define OB_NVME_BLK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Data that poll() copies, or has the kernel copy, before others have their turn. */
#define BLK_POLL_BYTES (1u << 20)

enum blk_op { BLK_READ, BLK_WRITE, BLK_FLUSH, BLK_ZERO, BLK_DISCARD };

/* What a request of a file does next; see blk_file.c. */
enum blk_stage { STAGE_IO, STAGE_PUNCH, STAGE_ZERO_RANGE, STAGE_FILL, STAGE_SYNC };

struct blk_req {
    enum blk_op op;
    bool durable;         /* on stable storage when done; READ: what is read is, before */
    bool punch;           /* ZERO: the range may be deallocated */
    uint64_t offset, len; /* inside the image */
    struct iovec *iov;    /* READ, WRITE: len bytes; the backend changes it */
    unsigned niov;
    void (*done)(struct blk_req *req, int rc); /* 0 or a negative errno */
    /* the backend's */
    struct blk_req *next;
    enum blk_stage stage;
    struct iovec fill;
    int rc;
};

struct blk;

struct blk_ops {
    /* Starts threads; until then poll() does everything itself. NULL: there are none. 0 or a
     * negative errno. */
    int (*start)(struct blk *blk);
    void (*submit)(struct blk *blk, struct blk_req *req);
    /* Starts what was submitted and calls done() for what has finished. Whether there was any. */
    bool (*poll)(struct blk *blk);
    /* Whether event_fd shall tell of completions. When switched on: whether poll() has something
     * to do right now, of which event_fd may say nothing. */
    bool (*arm)(struct blk *blk, bool on);
    /* Nothing may be in flight. */
    void (*free)(struct blk *blk);
};

struct blk {
    const struct blk_ops *ops;
    uint64_t size;  /* bytes */
    uint32_t grain; /* bytes; the file system's block, a hint */
    bool read_only;
    bool can_punch; /* DISCARD frees space and leaves zeroes; else it does nothing */
    int direct_fd;  /* opened with O_DIRECT, or -1 */
    uint32_t direct_memory,
        direct_offset;   /* what it wants addresses and offsets to be multiples of */
    int event_fd;        /* -1: poll() never leaves anything unfinished */
    int fd;              /* of the file or device: the backend's; -1: none */
    int claim_fd;        /* of a block device that is locked for writing: nobody else has it */
    char about[32];      /* for people: "io_uring" */
    char identity[4096]; /* the same for the same image; empty: there never is the same again */
    uint64_t inode;      /* of a file: whether it is that one at the same path */
};

enum blk_aio { BLK_AIO_AUTO, BLK_AIO_URING, BLK_AIO_THREADS };

/* Opens image, without a lock; a file around the page cache, where direct says so. 0; or a negative
 * errno and a sentence in errbuf. */
int blk_open(const char *image, bool read_only, bool direct, enum blk_aio aio, struct blk **out,
             char *errbuf, size_t errbuf_size);
/* Nothing may be in flight. */
void blk_close(struct blk *blk);
/* Without the lock nothing may be read or written. To lock again what is locked succeeds. 0; or a
 * negative errno and a sentence in errbuf: -EBUSY, somebody else has it. */
int blk_lock(struct blk *blk, char *errbuf, size_t errbuf_size);
void blk_unlock(struct blk *blk);
/* Whether the lock is also the kernel's claim on a block device, for which that is opened again. */
bool blk_claims(const struct blk *blk);

/* A list in order of arrival. */
struct blk_fifo {
    struct blk_req *first, *last;
};

static inline void blk_fifo_push(struct blk_fifo *fifo, struct blk_req *req)
{
    req->next = NULL;
    if (fifo->first)
        fifo->last->next = req;
    else
        fifo->first = req;
    fifo->last = req;
}

static inline struct blk_req *blk_fifo_pop(struct blk_fifo *fifo)
{
    struct blk_req *req = fifo->first;

    if (req)
        fifo->first = req->next;
    return req;
}

/* ---- blk_file.c: what all backends with a file descriptor share ---------------------------- */

/* Puts a request at its first stage. False: it is finished already, with req->rc. */
bool blk_stage_begin(const struct blk *blk, struct blk_req *req);
/* Takes the result of the stage just done (bytes or a negative errno). The same return. */
bool blk_stage_next(struct blk_req *req, int64_t res);
/* Whether with a request that failed, WRITEs that were done may be lost from the kernel's cache. */
bool blk_cache_lost(const struct blk_req *req);
/* Whether it is for direct_fd: data that lies as the kernel wants it there. */
bool blk_stage_direct(const struct blk *blk, const struct blk_req *req);
/* Does the request's stage with a system call. */
int64_t blk_stage_run(const struct blk *blk, int fd, const struct blk_req *req);
/* fallocate()'s mode of a PUNCH or ZERO_RANGE stage. */
int blk_stage_fallocate_mode(const struct blk_req *req);

/* Each copies *base, and takes fd and direct_fd when it succeeds. 0 or a negative errno. */
int blk_uring_new(const struct blk *base, int fd, struct blk **out);
int blk_threads_new(const struct blk *base, int fd, struct blk **out);
/* Does everything in poll(). discard: writes go nowhere, and zeroes are read (null:). */
int blk_mem_new(const struct blk *base, bool discard, struct blk **out);

#endif
