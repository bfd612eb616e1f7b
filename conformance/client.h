/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The cases that a client is put through. The suite is the server: a case is a function that plays
 * an honest device up to the message that it is about, does what it is about, and then looks at
 * what the client makes of it, on the wire. The helpers of test.h hold here too; the connection is
 * the one that the client has made.
 *
 * Whether a client goes on is asked with a probe, a DMA_READ of memory that nobody has: a client
 * whose stream is in step answers it. Some clients take no commands of the server; with those the
 * next command of their own must do (struct play, probes).
 */
#ifndef OB_CONFORMANCE_CLIENT_H
#define OB_CONFORMANCE_CLIENT_H

#include <sys/types.h>

#include "conformance/ring.h"

#define PLAY_MAPS    1024u      /* mappings of the client that are followed */
#define PLAY_BACKLOG 65536u     /* bytes of answers that wait behind one that is held back */
#define PLAY_BAR     8192u      /* BAR 0: a page that can be mapped, and the MSI-X tables */
#define PLAY_DATA    (1u << 20) /* bytes of data that the device takes in one message */
#define PLAY_CONFIG  256u
#define PLAY_IRQS    5u
#define PLAY_VECTORS 4u
#define PLAY_STATE   3000u /* bytes of the device's state */

/* Not an address that any machine has memory at. */
#define NOWHERE (1ull << 62)

struct mapping {
    uint32_t flags;
    uint64_t address, size, offset;
    int fd; /* -1: reached by messages */
};

struct play_migration {
    bool offered;       /* by the case; said to a client that says it too */
    bool padded;        /* replies of MIG_DATA_READ are as long as was asked for */
    bool strict;        /* what is loaded is compared with what was read */
    bool logging;       /* of dirty memory */
    bool loaded;        /* all of the state has been */
    uint32_t state, at; /* at: bytes of the state that were read, or written */
    uint32_t most;      /* for look(): bytes of one message */
};

/* A reply, before it is sent. */
struct answer {
    struct ob_wire_hdr hdr; /* msg_size 0: what it really is */
    uint32_t len, nfds;
    int fds[OB_MSG_FDS_MAX]; /* borrowed */
    uint8_t data[OB_PAYLOAD_MAX];
};

/* The access ring, if the case offers one. */
struct play_ring {
    struct ring *memory; /* NULL: none */
    bool closed;         /* it is not polled, as far as is said */
    bool useless;        /* the client must not use it */
    uint32_t lie;        /* by how much the count in accepts is wrong */
    uint32_t at;         /* commands that were in it, those that were taken back as well */
    uint32_t used;       /* those that were not */
    /* Looks at it while nothing else comes; whether there was something. */
    bool (*look)(struct test *t);
    /* A command that was taken is done; its answer is not sent. */
    void (*finish)(struct test *t, struct ring_entry *e, uint32_t after, struct answer *a);
};

/* The device, and the client at the other end. */
struct play {
    const struct check_options *opt;
    int listener;
    bool probes; /* the client answers commands of the server */

    /* of the case */
    pid_t pid;         /* the client's process; 0: none was started */
    int pidfd, output; /* what it prints goes to a file */
    bool exited;
    int status;               /* then, as waitpid() tells it */
    const char *capabilities; /* said in the VERSION reply */
    bool hold;                /* answers go to the backlog */
    uint8_t backlog[PLAY_BACKLOG];
    size_t backlog_len;
    uint32_t commands; /* set of those that were answered */
    uint32_t executed; /* how many came over the main socket after VERSION */
    struct play_ring ring;
    int bar; /* memory behind BAR 0 */
    uint8_t config[PLAY_CONFIG];
    struct play_migration migration;
    struct mapping maps[PLAY_MAPS];
    unsigned nmaps;
    /* Sees each command before it is answered; may fail the case. */
    void (*look)(struct test *t);
    unsigned looked;      /* for look(): commands that it was about */
    struct answer answer; /* the one that the case works on */
};

struct play *play_of(const struct test *t);

/* ---- An honest device (client_device.c) ---------------------------------------------------- */

void device_play_init(struct test *t);
void device_play_fini(struct play *p);
/* The right reply to the command in t->in, with what it changes. */
void device_answer(struct test *t, struct answer *a);
void answer_put(struct answer *a, const void *data, size_t len);
void answer_refuse(struct answer *a, uint32_t error);
/* The same for DEVICE_FEATURE, MIG_DATA_READ and MIG_DATA_WRITE (client_migration.c). */
void migration_answer(struct test *t, struct answer *a);
/* A description of a region with these capabilities, that of BAR 0 if the caller changes nothing.
 */
void device_describe(const struct play *p, uint32_t index, uint32_t argsz, struct answer *a);
/* The mapping that has these flags and so many bytes; NULL: none. */
const struct mapping *device_mapping(const struct play *p, uint32_t flags, uint64_t size);

/* ---- The access ring (client_ring.c) ------------------------------------------------------- */

/* Answers VERSION with this for access_ring, and descriptors. A client that did not ask for it is
 * not offered the case. */
void ring_say(struct test *t, const char *value, const int *fds, unsigned nfds);
/* A file for it, of so many bytes, whose size cannot change if it can be sealed. */
int ring_file(struct test *t, size_t size, bool can_be_sealed);
/* Maps it, to be played from now on. */
void ring_map(struct test *t, int fd);
/* An honest one, open all the time. */
void ring_begin(struct test *t);
/* Says in it how many commands were executed. */
void ring_publish(struct play *p);
/* Executes what is in it, strictly. */
bool ring_look(struct test *t);
/* Leaves what is to be found when a command is done. */
void ring_leave(const struct test *t, struct ring_entry *e, uint32_t done, const struct answer *a);
/* ... and frees the entry, answers who asked. */
void ring_finish(struct test *t, struct ring_entry *e, uint32_t after, struct answer *a);

/* ---- What comes next (client_play.c) ------------------------------------------------------- */

/* The right answer to the command in t->in, which the case's look() sees before. */
void play_answer(struct test *t, struct answer *a);
/* Sends the answer; hdr.msg_size is what it says if the case has set it. */
void play_send(struct test *t, struct answer *a);
/* A byte at a time. */
void play_send_split(struct test *t, struct answer *a);
/* The answer that was held back (play->hold), and those behind it. */
void play_release(struct test *t, struct answer *a);
/* Serves until the client sends cmd (without No_reply); its right answer is in play->answer, not
 * sent. A client that leaves or falls silent before does not offer the case. */
struct answer *play_until(struct test *t, uint16_t cmd);
/* The same for a DEVICE_GET_REGION_INFO of BAR 0 with room for len bytes. */
struct answer *play_until_region(struct test *t, uint32_t len);
/* Serves one command, which stays in t->in; false: the client left or fell silent. */
bool play_next(struct test *t);
/* Serves until the client leaves or falls silent, or the case's time is over. */
void play_out(struct test *t);
/* The client's stream must be in step. */
void play_goes_on(struct test *t);
/* The client must end the connection. */
void play_ends(struct test *t);
/* Either of both, but neither hang nor crash. */
void play_either(struct test *t);
/* Waits for the reply to a command of the server (test_send_all()); what the client sends meanwhile
 * is served. The errno that it carries, 0 after a success, -1 when the connection was closed
 * instead. The reply is in t->in. */
int play_reply(struct test *t, uint16_t cmd, uint16_t id);

/* ---- The process (client_process.c) -------------------------------------------------------- */

void process_start(struct test *t);
/* Waits for its connection. */
void process_accept(struct test *t);
/* Whether it has ended, waiting this long for that. */
bool process_ended(struct play *p, int timeout_ms);
/* Ends it. A client that died of a signal before fails the case. */
void process_stop(struct test *t);
/* What it printed last, appended to bytes (taken). */
char *process_output(const struct play *p, char *bytes);

extern const struct case_table client_version_cases, client_region_cases, client_command_cases,
    client_memory_cases, client_migration_cases, client_ring_cases, client_sent_cases;
extern const struct family_table client_reply_families, client_command_families;

#endif
