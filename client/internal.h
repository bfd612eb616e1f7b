/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The inside of a client.
 *
 * Theory. A request is an entry in the pending table, found by its message id, and lives on its
 * caller's stack. There is no I/O thread. At most one thread at a time has the receive role: it
 * alone touches the receiving half of the channel and waits for the socket. Who waits for a reply
 * takes the role when it is free, else sleeps on a condition variable of its own. The holder
 * completes the entries of others (waking exactly the thread concerned), serves the server's
 * requests, and when its own reply came hands the role to one sleeper, or lays it down.
 *
 *   role      held by            may
 *   free      nobody             be taken by a waiter or by ob_client_step()
 *   taken     a waiter, or step  receive; nobody else may
 * Every change of the role happens under the lock.
 *
 * Several threads that wait where polling pays (channel/spin.h) do not sleep, either: those without
 * the role look whether they are done, or the role is free, and else give their CPU to the others.
 * So does the holder then: on a machine with few CPUs the next to run may be one of them, with a
 * request to send.
 *
 * Two epoll instances make that visible to poll(): socket_epoll says what there is to do on the
 * sockets (always input; output as long as something is queued), and loop_epoll, which the
 * embedder watches, has socket_epoll in it, armed only while no waiter has the role.
 *
 * To arm and disarm it for each request would cost as much as the request. While waits follow each
 * other within OB_CLIENT_HOT_NS it stays disarmed between them, and a timer in loop_epoll has the
 * embedder look once after as long. What comes in such a pause is late by that much; so nothing of
 * the kind is done for a server that has sent commands of its own lately, nor while output waits.
 *
 * Where the server agrees there are two sockets, and the server's commands and our answers go
 * over the second one, the twin: so neither side ever has to look for the answer to a DMA request
 * between other messages. The role covers both. Over the main socket fds then come with a few kinds
 * of replies only; while none of those is under way, they are refused where the kernel can do that
 * (Linux 6.16), and it is read without looking for fds, which costs less. (Elsewhere the kernel
 * would drop those that came all the same, and could have to wait for that: channel/discard.c.) Who
 * sends the request for one lets a read that has begun come to its end first (fd_replies, reading).
 *
 * Where the server has a ring and polls it, accesses to registers go into that in place of the main
 * socket (ring.c). They are in the pending table like other requests; who waits looks at the entry
 * first, and asks for the answer over the socket before it sleeps. That needs no role.
 *
 * Locking. One lock guards everything in struct ob_client below "guarded"; no callback runs under
 * it. The receiving halves of the channels belong to the role, the sending halves to the lock.
 */
#ifndef OB_CLIENT_INTERNAL_H
#define OB_CLIENT_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "channel/channel.h"
#include "channel/ring.h"
#include "channel/spin.h"
#include "outboard/client.h"

#define OB_CLIENT_TIMEOUT_MS  5000
/* Bytes of the sentence that says why a connection died. */
#define OB_CLIENT_WHY_MAX     512u
/* Requests that timed out and whose reply may still come. One more, and the server counts as
 * dead. */
#define OB_CLIENT_LATE_MAX    1024u
/* Bytes waiting for the socket at which posted writes are refused. */
#define OB_CLIENT_POST_MAX    (4u << 20)
/* Posted writes that go into one message; QEMU's own client sends as many. */
#define OB_CLIENT_BATCH_MAX   200u
/* Requests under way at a time; leaves the id space sparse. */
#define OB_CLIENT_PENDING_MAX 16384u
/* Messages one ob_client_step() handles, so that a flooding server does not keep the embedder's
 * loop. */
#define OB_CLIENT_STEP_MAX    32u
/* Requests under way at which many replies are read at a time. */
#define OB_CLIENT_BULK        4u
/* DMA changes under way at a time. */
#define OB_CLIENT_DMA_WINDOW  128u
/* Calls by one thread after which it counts as the only one. */
#define OB_CLIENT_SHARED      64u
/* Waits, while several threads call, after which the CPU is given to the others. */
#define OB_CLIENT_TURNS       32u
/* Waits in a row that were spent polling, after which the main socket is taken out of its epoll: it
 * would cost the server 0.1 us for each message. */
#define OB_CLIENT_UNHOOK      32u
/* Waits that are closer together leave the loop disarmed. */
#define OB_CLIENT_HOT_NS      1000000
/* Waits for which a server that sent a command is not trusted to be silent. */
#define OB_CLIENT_EAGER       256u

/* The id of all posted writes, never that of a request: some servers answer them all the same. */
#define OB_POSTED_ID 0u

#define OB_PENDING_BUCKETS 256u

struct ob_waiter;

/* A request under way. */
struct ob_request {
    uint16_t id, cmd;
    atomic_bool done;
    int result; /* when done: 0 and reply is set, or a negative number */
    struct ob_msg *reply;
    int64_t start_ns, deadline_ns;
    uint64_t posted;             /* writes before it, for a memo */
    bool after_reset;            /* one of which nobody knows whether it was carried out */
    struct ob_ring_entry *entry; /* where the result may be found; NULL: over the socket. The
                                  * caller's, as what follows */
    uint32_t ring_at, ring_count;
    struct ob_waiter *waiter; /* the thread that sleeps until this is done, if one does */
    struct ob_request *next;  /* in its bucket */
};

/* A thread that sleeps because another one has the receive role. */
struct ob_waiter {
    pthread_cond_t wake;
    const struct ob_request *request;
    bool has_role; /* the role was handed to it */
    struct ob_waiter *next;
};

struct ob_late {
    uint16_t id, cmd;
};

/* One of the sockets of a connection. */
struct ob_socket {
    struct ob_channel channel; /* its fd is -1: there is no such socket */
    bool wants_output;         /* EPOLLOUT is set in socket_epoll */
};

struct ob_client {
    struct ob_client_options opt;
    struct ob_caps caps;           /* the server's; constant once connected */
    bool ready;                    /* negotiated; constant once connected */
    struct ob_memo *memo;          /* NULL: it does not reconnect; constant once connected */
    const struct ob_client *owner; /* the client that this one is to continue, or NULL */
    struct ob_spin spin;           /* belongs to the role */
    unsigned twin_busy;            /* belongs to the role; > 0 while commands come over the twin */
    atomic_uint fd_replies;        /* under way, or late, that may have fds */
    atomic_bool fds_pass;          /* the kernel takes them of the main socket */
    atomic_uint reading;           /* odd while the main socket is read; written by the role */
    struct ob_socket main, twin;
    struct ob_ring *ring; /* NULL: none; changes only while nobody is looking */
    int socket_epoll, loop_epoll, timer_fd;
    pthread_condattr_t monotonic;
    atomic_int state;                /* enum ob_client_state; set under the lock */
    char why[3 * OB_CLIENT_WHY_MAX]; /* written once, before the state is LOST */

    pthread_mutex_t lock;
    /* guarded */
    bool made;     /* the embedder has it, and is told when the connection dies */
    bool lost_due; /* the thread that unlocks next tells that the connection died */
    bool told;     /* ob_client_step() has reported the death */
    atomic_bool role_taken;
    bool spin_pays;   /* what the last holder of the role found */
    int64_t limit_ns; /* when the requests of limit_thread have to be done; 0: no such limit */
    pthread_t limit_thread;
    unsigned shared;    /* > 0: several threads call; counted down by calls of one */
    pthread_t caller;   /* the last */
    unsigned turns;     /* waits while several call, in which the CPU was not given to others */
    bool armed;         /* socket_epoll is armed in loop_epoll */
    bool unhooked;      /* the main socket is out of socket_epoll for a while; never while armed */
    unsigned polled;    /* waits in a row that were spent polling */
    bool ticking;       /* timer_fd will expire */
    int64_t waited_ns;  /* when the last wait ended */
    unsigned ncommands; /* of the server, that were served */
    unsigned eager;     /* waits during which the loop is not left disarmed */
    bool ring_on;       /* commands may be put into the ring */
    uint32_t ring_at;   /* commands that were */
    unsigned looking;   /* threads without the role that look at the ring without the lock */
    struct ob_request *ring_owners[OB_RING_ENTRIES]; /* whose result is, or will be, in an entry */
    uint32_t nsent; /* commands that were sent over the main socket */
    uint16_t last_id;
    atomic_uint npending; /* written under the lock */
    unsigned nlate;
    struct ob_request *pending[OB_PENDING_BUCKETS];
    struct ob_late late[OB_CLIENT_LATE_MAX];
    struct ob_waiter *sleepers; /* oldest first */
    uint32_t dma_maps;
    uint64_t log_page_size; /* that dirty memory is logged in; 0: it is not logged */
    bool mig_state_set;     /* this client has set the migration state, to whatever it is */
    bool migrating;         /* and not to RUNNING */
    uint64_t nrequests, nposted;
    uint32_t nbatch; /* posted writes behind what the channel has queued */
    struct ob_wire_write_multi_entry batch[OB_CLIENT_BATCH_MAX];
};

static inline bool ob_client_dead(const struct ob_client *c)
{
    return c->state != OB_CLIENT_CONNECTED;
}

/* ---- connection.c ------------------------------------------------------------------------- */

void ob_client_lock(struct ob_client *c);
/* Also calls opt.lost or opt.interrupted when this thread has found out that the connection is
 * dead. */
void ob_client_unlock(struct ob_client *c);
/* A client on a connected socket, not negotiated. opt is complete. fd is taken. */
int ob_client_new(int fd, const struct ob_client_options *opt, struct ob_client **out);
/* On failure errbuf gets the sentence. */
int ob_client_negotiate(struct ob_client *c, int64_t deadline_ns, char *errbuf, size_t size);
/* Puts a sentence into errbuf (may be NULL) and returns rc. */
int ob_client_refuse(char *errbuf, size_t size, int rc, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The sentence for a connect() to path that failed with rc; returns it. */
int ob_client_connect_failed(const char *path, int rc, char *errbuf, size_t size);
/* The connection is dead, unless it was before: ends all waits. Returns -ENOTCONN. */
int ob_client_die_locked(struct ob_client *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
int ob_client_die(struct ob_client *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The connection is dead because sending failed with the negative errno rc. */
int ob_client_send_failed_locked(struct ob_client *c, int rc);
/* Whether the server may be sent commands that not all servers know. */
bool ob_client_may_ask(const struct ob_client *c);
/* Most bytes of data that may go in one message, in either direction. */
uint32_t ob_client_xfer_max(const struct ob_client *c);

/* ---- request.c ---------------------------------------------------------------------------- */

/* What goes out with a request. */
struct ob_body {
    const void *fixed;
    uint32_t fixed_len;
    const void *data; /* behind it */
    uint32_t data_len;
    const int *fds; /* borrowed */
    unsigned nfds;
};

/* Sends a request without waiting. 0: it is under way, and ob_request_finish() must follow before
 * *req goes; else a negative number. */
int ob_request_start(struct ob_client *c, struct ob_request *req, uint16_t cmd,
                     const struct ob_body *body);
/*
 * Waits for the reply. 0 with *reply the caller's to free, its payload min to max bytes long; or
 * a negative number. A reply of another size is the end of the connection.
 */
int ob_request_finish(struct ob_client *c, struct ob_request *req, uint32_t min, uint32_t max,
                      struct ob_msg **reply);
/* Both. reply may be NULL. */
int ob_request_call(struct ob_client *c, uint16_t cmd, const struct ob_body *body, uint32_t min,
                    uint32_t max, struct ob_msg **reply);
/* Ends every request: with -ENOTCONN, unless its result is in the ring. */
void ob_request_abort_all_locked(struct ob_client *c);
/* Takes a reply that came in. */
void ob_request_complete_locked(struct ob_client *c, struct ob_msg *msg);
/* Sends, or queues, a message behind all that was posted, and keeps socket_epoll right. */
int ob_client_send_locked(struct ob_client *c, struct ob_socket *s, struct ob_wire_hdr *hdr,
                          const struct ob_body *body);
/* The same, but before the writes of the batch. */
int ob_client_queue_locked(struct ob_client *c, struct ob_socket *s, struct ob_wire_hdr *hdr,
                           const struct ob_body *body);

/* ---- posted.c ----------------------------------------------------------------------------- */

/* Sends, queues or collects a write that fits in a message. */
int ob_client_post_locked(struct ob_client *c, const struct ob_wire_region_access *wire,
                          const void *data);
/* Sends, or queues, the writes that were collected. After a failure they are kept. */
int ob_client_end_batch_locked(struct ob_client *c);

/* ---- ring.c: accesses without system calls ------------------------------------------------- */

/* Takes the ring that came with the reply to VERSION, if it is of use. */
void ob_ring_map(struct ob_client *c, struct ob_msg *msg);
void ob_ring_unmap(struct ob_client *c);
/* That of n becomes c's, as its sockets do, and the old one n's. Nobody looks at either. */
void ob_ring_move_locked(struct ob_client *c, struct ob_client *n);
/* Puts the command into the ring, where it is an access that can be and the server will look.
 * False: it has to go over the socket. req: NULL for a posted write. */
bool ob_ring_put_locked(struct ob_client *c, const struct ob_wire_hdr *hdr,
                        const struct ob_body *body, struct ob_request *req);
/* Whether the ring has the result. By the thread whose request it is, without the lock. */
bool ob_ring_done(const struct ob_request *req);
/* Completes the request if so. */
void ob_ring_complete_locked(struct ob_client *c, struct ob_request *req);
/* The same, else has the answer sent over the socket: nobody looks at the ring any more. */
void ob_ring_ask_locked(struct ob_client *c, struct ob_request *req);
/* The request does not look for its result there any more. */
void ob_ring_leave_locked(struct ob_client *c, const struct ob_request *req);

/* ---- receive.c ---------------------------------------------------------------------------- */

/* Waits until the request is done, receiving if nobody else does, or its deadline has come. */
void ob_client_wait_locked(struct ob_client *c, struct ob_request *req);
/* The deadline of a request has come. */
void ob_request_expire_locked(struct ob_client *c, struct ob_request *req);
/* Sends what is queued on the socket, as far as it takes it. 0 or a negative errno. */
int ob_client_flush_locked(struct ob_client *c, struct ob_socket *s);

/* ---- loop.c: what the embedder's loop is told of ------------------------------------------- */

/* 0 or a negative errno. */
int ob_client_loop_init(struct ob_client *c);
/* Lets socket_epoll hear of the socket. 0 or a negative errno. */
int ob_client_watch(struct ob_client *c, struct ob_socket *s);
/* Lets it hear of the sockets of n, which are to become those of c, in place of c's. 0 or a
 * negative errno. */
int ob_client_rewatch(struct ob_client *c, const struct ob_client *n);
/* Keeps the embedder's loop asleep until ob_client_rearm_locked(), for a caller that sends and is
 * going to wait: else the reply could wake both. */
void ob_client_quiet_locked(struct ob_client *c);
/* A wait of the holder of the role is over, in which it slept or did not. */
void ob_client_unhook_locked(struct ob_client *c, bool slept);
/* Before anybody waits for socket_epoll, or changes what is in it. */
void ob_client_hook_locked(struct ob_client *c);
/* Lets the loop hear of the sockets again, unless somebody has the role. */
void ob_client_rearm_locked(struct ob_client *c);
/* The same at the end of a wait, after which the next one may follow soon. */
void ob_client_wait_ended_locked(struct ob_client *c, int64_t now_ns);
/* The loop called: the timer may have expired. */
void ob_client_tick_locked(struct ob_client *c);
/* Keeps EPOLLOUT in socket_epoll right after something was sent or queued. */
void ob_client_want_output_locked(struct ob_client *c, struct ob_socket *s);

/* ---- region.c ----------------------------------------------------------------------------- */

/* Whether a file that has seals, and so is the kernel's own, can lose what is mapped of it. */
bool ob_fd_can_shrink(int fd);

/* ---- dma.c -------------------------------------------------------------------------------- */

/* Takes one of the mappings that the server allows, or gives it back. */
bool ob_client_reserve_map(struct ob_client *c, bool take);

/* ---- migration.c -------------------------------------------------------------------------- */

/* The server has refused to say what the device is. Lets a device run that an earlier client has
 * left stopped. 0: it runs now, ask again; refusal: that was not the reason; or another failure. */
int ob_client_revive(struct ob_client *c, int refusal);

/* ---- inbound.c ---------------------------------------------------------------------------- */

/* Answers a command of the server on the socket it came over. Takes msg. Called with the role,
 * without the lock. */
void ob_client_serve(struct ob_client *c, struct ob_socket *s, struct ob_msg *msg);
/* Whether this thread is inside a callback of this client: it must not wait then. */
bool ob_client_in_callback(const struct ob_client *c);

/* ---- error.c ------------------------------------------------------------------------------ */

/* The result for an error reply that carries error_no. */
int ob_peer_error(uint32_t error_no);
/* What an errno means; never NULL, static storage. */
const char *ob_errno_text(int error);
/* Whether the server refused in a way that another attempt will not change: not as it is short of
 * something, or busy. */
bool ob_err_is_final(int rc);

#endif
