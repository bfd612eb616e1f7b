/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Framed messages with file descriptors over a stream socket.
 *
 * Theory. A message is a 16-byte header and msg_size - 16 bytes of payload. It is sent with one
 * sendmsg(), its fds attached to the first byte; what the socket does not take is queued, and the
 * queue is always drained before anything newer, so the stream is never torn. Received, a message
 * may come in any pieces, and a small one takes one system call: see receive.c.
 *
 * Threads. No lock here. The receiving half and the sending half share no state: one thread may
 * receive while another sends; two threads in one half is the caller's bug.
 */
#ifndef OB_CHANNEL_H
#define OB_CHANNEL_H

#include <poll.h>
#include <sys/uio.h>

#include "outboard/proto.h"

/* Payloads of this size are kept in the message itself. */
#define OB_MSG_INLINE 256u

/* One received message. */
struct ob_msg {
    struct ob_wire_hdr hdr;
    uint8_t *payload; /* hdr.msg_size - 16 bytes; NULL when there are none */
    uint32_t len;
    bool oversize; /* the payload exceeded the limit: it was drained, payload is NULL, len 0 */
    bool sunk;     /* what follows the fixed part of the payload went into the sink */
    bool fds_lost; /* more fds came than we take: the surplus was closed */
    unsigned nfds;
    struct ob_msg *next; /* for the owner's lists */
    const void *owner;   /* the channel's */
    uint8_t small[OB_MSG_INLINE];
    int fds[OB_MSG_FDS_MAX];
};

/* The fd at index becomes the caller's; -1 when there is none (any more). */
int ob_msg_claim_fd(struct ob_msg *msg, unsigned index);
/* Frees the message and discards the fds nobody claimed. NULL is allowed. */
void ob_msg_free(struct ob_msg *msg);

/* Where the data of a reply goes that is waited for, when it has just that size. */
struct ob_sink {
    uint16_t msg_id, cmd;
    uint32_t fixed; /* bytes of the payload before it, at most OB_MSG_INLINE */
    void *data;
    uint32_t len;
};

/* The most that one read takes beyond a header before it is known how long the payload is. See
 * receive.c for what makes these right. */
#define OB_AHEAD_SERVER 20u
#define OB_AHEAD_CLIENT 32u
#define OB_AHEAD_BULK   1008u

/* Whether fds may come. The receiving half's. */
enum ob_fds {
    OB_FDS_TAKEN,
    OB_FDS_REFUSED, /* by the kernel; some that were sent before may still come */
    OB_FDS_NONE,    /* none of those is left */
};

struct ob_channel {
    int fd;
    uint32_t payload_max;
    unsigned fds_max;  /* of a message that are kept; OB_MSG_FDS_MAX at first */
    const void *owner; /* of what is discarded: see ob_discard_is_full() */
    /* receiving half */
    uint32_t ahead; /* OB_AHEAD_*; 0: nothing is read ahead */
    enum ob_fds expects;
    const struct ob_sink *sink; /* NULL: none */
    struct ob_msg *in;          /* being assembled, or waiting for its first byte; NULL at first */
    uint32_t in_got;            /* bytes of header and payload that are there (or drained) */
    uint32_t own_fds;           /* of ch->in, where a read went beyond it */
    bool own_lost;
    uint32_t nextra;   /* bytes of messages after it, which were read with it */
    uint32_t extra_at; /* where they begin in extra */
    uint8_t extra[sizeof(struct ob_wire_hdr) + OB_AHEAD_BULK];
    /* sending half */
    struct ob_out *out_head, *out_tail;
    size_t out_bytes; /* queued and not sent */
    bool corked;      /* small messages without fds are collected first */
    uint32_t ncorked; /* bytes of those */
    uint8_t cork[2048];
    /* either, and last: ob_channel_move() leaves it where it is */
    struct ob_msg *spare; /* for the next message; exchanged atomically, by any thread */
};

#define OB_CHANNEL_QUEUE_MAX (64u << 20) /* bytes that ob_channel_queue() keeps at most */
#define OB_CHANNEL_IOV_MAX   8u          /* parts of one payload */

/* fd is taken, made non-blocking and CLOEXEC. 0 or a negative errno (fd closed): -ENOTSOCK,
 * -EPROTOTYPE when it is not a stream socket. */
int ob_channel_init(struct ob_channel *ch, int fd, uint32_t payload_max);
/* Shuts down and closes the socket, drops what was queued or half received. */
void ob_channel_fini(struct ob_channel *ch);
/* `to` goes on with the socket of `from`, and all that is under way there; its own is closed, and
 * what was under way dropped. `from` then has none. */
void ob_channel_move(struct ob_channel *to, struct ob_channel *from);

/*
 * Never blocks. 1: *out is a whole message, the caller's; 0: nothing whole yet (that the socket is
 * readable all the same is possible: long oversize messages are drained in several calls);
 * -ECONNRESET: the peer closed (*between messages* too); -EPROTO: a msg_size below 16, the stream
 * is lost; -ETOOMANYREFS: ob_discard_is_full(); other negative errno of recvmsg() or malloc().
 */
int ob_channel_recv(struct ob_channel *ch, struct ob_msg **out);
/* The sink goes; the rest of a message that was going into it is dropped. */
void ob_channel_unsink(struct ob_channel *ch);
/* Whether a whole message is at hand that poll() may know nothing of. */
bool ob_channel_ready(const struct ob_channel *ch);
/*
 * None are of use from now on: where the kernel is new enough, it refuses what the peer sends with
 * fds. The receiving thread's.
 */
void ob_channel_refuse_fds(struct ob_channel *ch);
/* It takes them again. Any thread; whoever receives has to put ch->expects to OB_FDS_TAKEN. */
void ob_channel_pass_fds(const struct ob_channel *ch);
/* Whether fds may come with a reply to that command. */
bool ob_reply_takes_fds(uint16_t cmd);
/* A message without a byte, or NULL without memory. Any thread. */
struct ob_msg *ob_channel_new_message(struct ob_channel *ch);
/* ob_msg_free(), but its memory is kept for a message to come. Any thread. */
void ob_channel_recycle(struct ob_channel *ch, struct ob_msg *msg);

/*
 * Never blocks: sends the message, or queues what the socket does not take. hdr->msg_size is set
 * here. fds are borrowed. 0; -ENOBUFS: the queue is full; -EMSGSIZE, -EINVAL: more bytes, parts or
 * fds than one message can have; -ENOMEM, -EBADF, -EMFILE, -ENFILE, -ETOOMANYREFS: as they say.
 * After all those nothing was sent and the stream is whole. -EPIPE and other negative errno: the
 * connection is gone.
 */
int ob_channel_queue(struct ob_channel *ch, struct ob_wire_hdr *hdr, const struct iovec *iov,
                     unsigned niov, const int *fds, unsigned nfds);
/* The same, but sends it at once or not at all: -EAGAIN when something is queued, or the socket has
 * no room. */
int ob_channel_try(struct ob_channel *ch, struct ob_wire_hdr *hdr, const struct iovec *iov,
                   unsigned niov, const int *fds, unsigned nfds);
/*
 * From now on small messages without fds go out together: before anything else, when they are many,
 * or with ob_channel_uncork(), which returns what ob_channel_queue() would. Nothing of them is in
 * out_bytes until then.
 */
void ob_channel_cork(struct ob_channel *ch);
int ob_channel_uncork(struct ob_channel *ch);
/* 1: the queue is empty; 0: the socket takes no more now; negative errno. Never blocks. */
int ob_channel_flush(struct ob_channel *ch);
/* ob_channel_queue(), then waits until all of the queue is sent. -ETIMEDOUT leaves the rest
 * queued: the stream stays whole. */
int ob_channel_send(struct ob_channel *ch, struct ob_wire_hdr *hdr, const struct iovec *iov,
                    unsigned niov, const int *fds, unsigned nfds, int64_t deadline_ns);

/* Waits for poll() events on the socket. Returns the events that are there (POLLHUP and POLLERR
 * also unasked), or -ETIMEDOUT. */
int ob_channel_wait(const struct ob_channel *ch, short events, int64_t deadline_ns);
/* Whether what a call here returned means that the peer is gone. Other errors may pass (ENOBUFS):
 * the stream is as whole as before. */
bool ob_channel_is_gone(ssize_t rc);
/* poll() with a deadline: how many of fds are ready, or -ETIMEDOUT, or another negative errno. */
int ob_poll_until(struct pollfd *fds, unsigned count, int64_t deadline_ns);

/* Deadlines are CLOCK_MONOTONIC nanoseconds. timeout_ms < 0: OB_NO_DEADLINE. */
#define OB_NO_DEADLINE INT64_MAX
int64_t ob_now_ns(void);
int64_t ob_deadline_ns(int timeout_ms);

/* ---- socket.c ----------------------------------------------------------------------------- */

/* Connects to a listening socket; returns the fd, -ETIMEDOUT, or connect()'s negative errno.
 * -ENAMETOOLONG: path does not fit a socket address. */
int ob_socket_connect(const char *path, int64_t deadline_ns);
/* Listens on path; replaces a socket file that nobody serves. Returns the fd, non-blocking;
 * -EADDRINUSE: a live server has it; -ENOTSOCK: something else is there; or a negative errno. */
int ob_socket_listen(const char *path, unsigned mode, int backlog);
/* The file belongs to that user and group; -1: as it would anyway. -EPERM: we may not do that. */
int ob_socket_listen_owned(const char *path, unsigned mode, uid_t uid, gid_t gid, int backlog);

/* ---- discard.c: descriptors that came from the peer --------------------------------------- */

/* What may wait to be closed of one owner, when that hangs, before its peer can send no more. */
#define OB_DISCARD_MAX 64u

/*
 * What a descriptor is. None of these asks a file system, or waits for anything. Before one of them
 * has said yes every other call may: fstat(), mmap(), read() of a FUSE file for its daemon, that of
 * a pipe for whoever is in the middle of another.
 */

/* Of the kernel's own file systems in memory: a memfd, a file on tmpfs or hugetlbfs. */
bool ob_fd_is_memory(int fd);
/* It is safe to signal: writing to anything else could block, or do something. */
bool ob_fd_is_eventfd(int fd);
bool ob_fd_is_unix_socket(int fd);

/* Closes fd, which is taken, and never waits. owner: whose peer sent it; NULL: nobody's. Any
 * thread. */
void ob_fd_discard(int fd, const void *owner);
/* The same for a UNIX socket, which is shut down: so is its other end at once. */
void ob_socket_discard(int fd, const void *owner);
/* Tries to have a memory file keep its size, at least. Waits for 0.1 s at most; F_GET_SEALS says
 * what came of it. fd is borrowed. */
void ob_fd_seal(int fd);
/* Whether too many of the owner's wait to be closed for its peer to be given more to send. Any
 * thread, cheap. */
bool ob_discard_is_full(const void *owner);
/* Who waits for that to change. fd is an eventfd that does not block; 1 is added to it whenever
 * something was closed. Changed and asked for by one thread, which looks again once it is on. */
struct ob_discard_watch {
    int fd;
    bool on;
    struct ob_discard_watch *next;
};
void ob_discard_watch(struct ob_discard_watch *watch);
/* One that is not on is left alone. */
void ob_discard_unwatch(struct ob_discard_watch *watch);
/* Starts the thread for those that may make it wait, in a process that shall start none later. 0 or
 * a negative errno. */
int ob_discard_init(void);

/* A detached thread without signals. 0 or a negative errno. */
int ob_thread_start(void *(*run)(void *), void *arg);

/* ---- signal.c: eventfds that the peer has as well ------------------------------------------ */

/* Before the others, in a process that shall make no system call for it later; may be repeated. */
void ob_signal_init(void);
/* Adds one to the eventfd's counter, or leaves it full. Never blocks. False: that cannot be done
 * here. Any thread. */
bool ob_signal_try(int fd);
/* The same; where it cannot be done, by a write that a peer who is quick could make block. */
void ob_signal_eventfd(int fd);

/* ---- negotiate.c: the JSON of the VERSION messages ------------------------------------------ */

/* Opens what the first negotiation would: after it a process may be one that opens nothing. */
void ob_caps_init(void);
/* What is assumed of a side that says nothing. */
void ob_caps_default(struct ob_caps *caps);
/* What this library can do, before the device or the program adds to it. */
void ob_caps_offer(struct ob_caps *caps);
/* The same for the part of it that is about migration. */
void ob_caps_offer_migration(struct ob_caps *caps);
/* Parses the JSON after struct ob_wire_version (len may be 0: all defaults). 0; -EINVAL with *why
 * set to a static sentence. is_reply: twin_socket must then have a valid fd_index. */
int ob_caps_parse(const void *json, size_t len, bool is_reply, struct ob_caps *out,
                  const char **why);
/* Prints compact JSON with its NUL into buf. Returns its length with the NUL, or -ENOSPC. Only
 * max_msg_fds and max_data_xfer_size are said always, the others where they are not the default. */
int ob_caps_print(const struct ob_caps *caps, bool is_reply, char *buf, size_t size);

#endif
