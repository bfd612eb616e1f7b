/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a case is written with. A case is a function that talks to the server and returns when all
 * was as it must be. Every helper here ends the case, by not returning, when something is not
 * (test_fail) or when the deadline of the case is over; so a case has no error handling. What a
 * case opens through these helpers is closed after it.
 */
#ifndef OB_CONFORMANCE_TEST_H
#define OB_CONFORMANCE_TEST_H

#include <setjmp.h>
#include <string.h>

#include "conformance/conformance.h"
#include "outboard/proto.h"

#define TEST_LINKS 12u /* connections of one case at a time */
#define TEST_FDS   64u /* other fds of one case */
#define TEST_TRACE 24u /* the last messages, kept for a failure */
#define TRACE_HEAD 96u /* bytes kept of each */

/* The page that cases map, unaligned sizes aside. */
#define PAGE 4096u

/* What the device is, learned before the first case. */
struct device {
    bool known; /* learning ended well */
    struct ob_caps caps;
    struct ob_wire_device_info info;
    struct {
        uint32_t flags;
        uint64_t size;
    } regions[OB_REGIONS_MAX];
    struct {
        uint32_t flags, count;
    } irqs[OB_IRQS_MAX];
    uint16_t vendor, product;
};

struct msg {
    struct ob_wire_hdr hdr;
    uint8_t *data;
    uint32_t len;
    unsigned nfds;
    int fds[OB_MSG_FDS_MAX]; /* closed when the next message is received */
};

enum trace_kind { TRACE_SENT, TRACE_RECEIVED, TRACE_EVENT };

struct trace {
    enum trace_kind kind;
    unsigned link, nfds;
    size_t len;
    uint8_t head[TRACE_HEAD]; /* TRACE_EVENT: a text */
};

/* The process that listens. */
struct listener {
    int pidfd;   /* -1: not known */
    bool mortal; /* it ends when its client leaves, and something starts it anew */
};

struct test;
struct entry;

struct test {
    const struct entry *entry;
    const struct device *dev;
    const char *path;
    const char *peer;    /* "the server": who is tested */
    uint64_t random;     /* state of test_random() */
    int64_t deadline_ns; /* of the case */
    bool patient;        /* the server has been reached before: it is worth waiting for */
    struct listener *listener;

    int links[TEST_LINKS]; /* -1: closed */
    unsigned nlinks, at;   /* at: the one that the helpers talk through */
    uint16_t next_id;
    uint32_t sent; /* commands, by test_send_all() */
    int fds[TEST_FDS];
    unsigned nfds;
    void *mapped; /* by test_map(); NULL: nothing */
    size_t mapped_len;
    struct msg in;        /* the message received last */
    unsigned connections; /* ever made */
    bool heard;           /* there was a message */
    /* A command of the server that comes while a reply is awaited; NULL: EFAULT is answered. */
    void (*serve)(struct test *t, const struct msg *msg);
    void *opaque;

    enum check_verdict verdict;
    char why[256];
    jmp_buf end;
    struct trace trace[TEST_TRACE];
    unsigned ntrace; /* ever made */
};

/* A case, as the list has it. */
struct entry {
    const char *id, *rules, *says;
    void (*run)(struct test *t);
    bool raw;      /* the connection has not been negotiated */
    unsigned slow; /* takes so many timeouts; 0: one */
    uint32_t arg;  /* of a family: the command, the IRQ index */
    void *owned;   /* allocation that holds the strings; NULL: they are constant */
};

/* ---- Verdicts (test.c) --------------------------------------------------------------------- */

_Noreturn void test_fail(struct test *t, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
_Noreturn void test_not_offered(struct test *t, const char *why);
/* The case goes on; the first one counts, unless a failure follows. */
void test_deviates(struct test *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define MUST(t, cond, ...)             \
    do {                               \
        if (!(cond))                   \
            test_fail(t, __VA_ARGS__); \
    } while (0)

/* ---- Resources ----------------------------------------------------------------------------- */

int test_keep(struct test *t, int fd); /* closed after the case; fails it when fd is negative */
/* Closes it now. */
void test_close(struct test *t, int fd);
/* Everything that the case opened. */
void test_close_all(struct test *t);
int test_eventfd(struct test *t);
int test_memfd(struct test *t, size_t size);
/* Maps so much of a file, shared, in place of what was mapped before. */
void *test_map(struct test *t, int fd, size_t len);
bool test_is_eventfd(int fd);
/* Times it was signalled since; the counter is then zero. */
uint64_t test_signals(struct test *t, int eventfd);
/* Waits for the first signal. */
void test_await_signal(struct test *t, int eventfd);
uint64_t test_random(struct test *t);
uint32_t test_below(struct test *t, uint32_t limit);

/* ---- The wire (wire.c) --------------------------------------------------------------------- */

int64_t test_now_ns(void);
/* Another connection, from now on the one that is talked through. */
void test_connect(struct test *t);
/* Closes the connection that is talked through. */
void test_hang_up(struct test *t);
/* Whether the server's process has ended, or does so in this time. */
bool test_server_ends(const struct test *t, int wait_ms);
#define END_MS 500
/* ... and is not a mortal one. */
bool test_server_died(const struct test *t, int wait_ms);
/* A client has left: a mortal server is let end, or the next connection would be to one that dies.
 */
void test_let_end(const struct test *t);
/* These bytes in one sendmsg(). That the server has closed is left for the receiver to find. */
void test_put(struct test *t, const void *bytes, size_t len, const int *fds, unsigned nfds);
/* Gives the peer the time to read what there is, so that it sees a message in pieces. It is free to
 * wait for more without reading. */
void test_settle(struct test *t);
/* The next whole message in t->in, or false when the server has closed the connection. */
bool test_get(struct test *t);
/* Waits until the server has let go of the other end of this pipe or socket. */
void test_await_hang_up(struct test *t, int fd, const char *what);
void test_trace(struct test *t, enum trace_kind kind, const void *bytes, size_t len, unsigned nfds);
/* What was exchanged, as text; free() it. NULL without memory. */
char *test_trace_text(const struct test *t);

/* ---- Messages (message.c) ------------------------------------------------------------------ */

/* Sends a command; returns its id. */
uint16_t test_send_all(struct test *t, uint16_t cmd, uint32_t flags, const void *payload,
                       size_t len, const int *fds, unsigned nfds);
uint16_t test_send(struct test *t, uint16_t cmd, const void *payload, size_t len);
void test_answer(struct test *t, const struct msg *to, uint32_t error, const void *payload,
                 size_t len);
/* Waits for the reply, and checks what holds for all replies. Returns the errno that it carries, 0
 * after a success, or -1 when the connection was closed instead. */
int test_reply_or_end(struct test *t, uint16_t cmd, uint16_t id);
/* The same, but the connection must live. */
int test_reply(struct test *t, uint16_t cmd, uint16_t id);
/* Sends the command, waits for its reply. */
int test_ask(struct test *t, uint16_t cmd, const void *payload, size_t len);
int test_ask_fds(struct test *t, uint16_t cmd, const void *payload, size_t len, const int *fds,
                 unsigned nfds);
/* ... which must be a success / this errno (0: any). */
const struct msg *test_ok(struct test *t, uint16_t cmd, const void *payload, size_t len);
void test_refused(struct test *t, int err, uint16_t cmd, const void *payload, size_t len);
/* What an errno of test_ask() must have been. */
void test_is_ok(struct test *t, int got, uint16_t cmd);
void test_is_refused(struct test *t, int got, int err, uint16_t cmd);
/* The connection works, and no reply is left on it. */
void test_alive(struct test *t);
/* The server has closed the connection, or does so now. Replies that come before are let pass. */
void test_closed(struct test *t);
/* A new connection works. */
void test_served(struct test *t);
/* VERSION with these bytes of JSON (NULL: none); returns what test_reply_or_end() does. */
int test_version(struct test *t, uint16_t major, uint16_t minor, const char *json, size_t len);
/* An object of capabilities that nobody should mind: rust-vmm's crate does without them, but not
 * without the key. */
#define TEST_CAPS(inside) "{\"capabilities\":{" inside "}}"
#define TEST_PLAIN        TEST_CAPS("")
/* The index of the descriptor that came with the reply to VERSION for this capability (key); -1:
 * the server does not turn it on. */
int test_came_along(struct test *t, const char *key);
/* VERSION as the suite mostly sends it. */
void test_negotiate(struct test *t);

/* ---- Requests that every device takes (device.c) -------------------------------------------- */

/* Fills *dev through t, which is a case of its own. */
void device_learn(struct test *t, struct device *dev);
/* A good request of this command in payload (at least REQUEST_MAX bytes); returns its length. n
 * sets DMA ranges apart. What it does leaves the device as it was, but DEVICE_RESET. */
#define REQUEST_MAX 512u
size_t device_request(const struct test *t, uint16_t cmd, unsigned n, uint8_t *payload);
/* What must come before it, so that it succeeds. */
void device_prepare(struct test *t, uint16_t cmd, unsigned n);
/* Whether every server of this device takes it. */
bool device_takes(const struct test *t, uint16_t cmd);
/* The config space register that every client may write: the interrupt line. */
#define CONFIG_LINE 0x3cu
bool device_has_config(const struct test *t);
bool device_maps(const struct test *t, uint32_t region);
/* DMA_MAP and DMA_UNMAP; fd -1: none. Return the errno, 0 after a success. */
int device_map(struct test *t, uint32_t flags, int fd, uint64_t offset, uint64_t address,
               uint64_t size);
int device_unmap(struct test *t, uint32_t flags, uint64_t address, uint64_t size);
/* SET_IRQS; fds and bools may be NULL. Returns the errno, 0 after a success. */
int device_set_irqs(struct test *t, uint32_t flags, uint32_t index, uint32_t start, uint32_t count,
                    const uint8_t *bools, const int *fds, unsigned nfds);
/* DEVICE_FEATURE with so many bytes of data, and room for them and so many more in the reply, or
 * for fewer: room may be negative. */
int device_feature(struct test *t, uint32_t flags, const void *data, size_t len, int room);
/* Gives vector 0 of the first IRQ index that the device has the eventfd, and returns the index. A
 * device without interrupts ends the case: not offered. */
uint32_t device_arm_any(struct test *t, int fd);
/* GET_REGION_INFO with this argsz, checked against itself. The reply, fds included, is in t->in. */
void device_region(struct test *t, uint32_t index, uint32_t argsz, struct ob_region_layout *out);
/* A register in config space or a BAR, up to 4 bytes. */
uint32_t device_read(struct test *t, uint32_t region, uint64_t offset, uint32_t count);
void device_write(struct test *t, uint32_t region, uint64_t offset, uint32_t value, uint32_t count);

/* ---- QEMU's educational device, which can be told to do DMA (transfer_cases.c) --------------- */

/* Where the client has its memory for it: what comes by message is served. */
#define EDU_BASE ((uint64_t)0x100000)
#define EDU_SIZE ((uint64_t)2 * PAGE)
/* Negotiates and resets the device; another device is not offered. */
void edu_begin(struct test *t);
/* Between its buffer and the memory at address; returns when it is done. */
void edu_move(struct test *t, uint64_t address, uint64_t count, bool to_ram);

/* ---- The cases, a table a file --------------------------------------------------------------- */

struct case_table {
    const struct entry *entries;
    size_t count;
};
/* A case on a negotiated connection, one on a fresh connection, and one that takes longer. */
#define CASE(id, rules, says, run)              \
    {                                           \
        id, rules, says, run, false, 0, 0, NULL \
    }
#define RAW(id, rules, says, run)              \
    {                                          \
        id, rules, says, run, true, 0, 0, NULL \
    }
#define SLOW(id, rules, says, run)              \
    {                                           \
        id, rules, says, run, false, 6, 0, NULL \
    }
#define CASES(name, array) \
    const struct case_table name = { array, sizeof(array) / sizeof((array)[0]) }

/* A family runs once for each command (or IRQ index) that it applies to; arg tells which. Its id
 * has a %s for the name. */
struct family {
    const char *id, *rules, *says;
    void (*run)(struct test *t);
    bool (*applies)(uint32_t arg);
    bool raw;
    unsigned slow;
};
struct family_table {
    const struct family *families;
    size_t count;
    const char *(*name)(uint32_t arg); /* NULL past the last */
    uint32_t first;
};

extern const struct case_table version_cases, session_cases, stream_cases, info_cases, io_fds_cases,
    access_cases, irq_cases, dma_cases, transfer_cases, feature_cases, dirty_cases, multi_cases,
    ring_cases, random_cases;
extern const struct family_table message_families, irq_families;

#endif
