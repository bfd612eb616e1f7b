/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A small NVMe driver on the client library, and the device it drives, served by a thread of this
 * process. Commands are built by the test; everything is polled and has a deadline.
 */
#ifndef OB_TESTS_NVME_HOST_H
#define OB_TESTS_NVME_HOST_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/uio.h>

#include "devices/device.h"
#include "devices/nvme/spec.h"
#include "harness.h"
#include "outboard/client.h"

#define HOST_RAM_BASE 0x100000000ull
#define HOST_RAM_SIZE (48u << 20)
#define HOST_QUEUES   65

struct host_queue {
    uint32_t entries, tail, cq_entries, cq_head;
    bool phase;
    struct nvme_sqe *sq;
    volatile struct nvme_cqe *cq;
    uint16_t next_cid;
};

struct nvme_host {
    /* set before host_start() */
    bool by_message; /* RAM without an fd: the server uses DMA messages */
    bool trapped;    /* ring by message although the page could be mapped */
    bool posts;      /* a message to ring is not waited for */
    bool kept;       /* the server knows config space from the last connection */

    /* the device */
    char path[100];
    void *device;
    struct ob_server *server;
    pthread_t thread;
    char banner[256];

    /* the client */
    struct ob_client *client;
    int ram_fd;
    uint8_t *ram;
    uint32_t used;
    volatile uint32_t *doorbells;
    volatile uint32_t *shadow, *events; /* host_shadow() */
    unsigned rings;                     /* doorbell writes by message */
    struct host_queue q[HOST_QUEUES];
    int irq_fds[HOST_QUEUES]; /* host_arm() */
    unsigned nirqs;
};

/* A device with these arguments ("nvme" is added in front), ended by NULL; and its server. */
void host_serve(struct nvme_host *h, ...) __attribute__((sentinel));
/* Its RAM; host_serve() makes it. */
void host_ram(struct nvme_host *h);
/* What create() says to these arguments. Its return; on success the device is freed. */
int host_try(char *why, size_t size, ...) __attribute__((sentinel));
/* Connects, maps RAM and doorbells. */
void host_connect(struct nvme_host *h);
/* Enables the controller with admin queues of 32 entries. */
void host_enable(struct nvme_host *h);
/* Clears CC.EN and waits for CSTS.RDY to follow. */
void host_disable(struct nvme_host *h);
/* The client goes; its RAM stays. */
void host_leave(struct nvme_host *h);
/* The client goes, the device too; destroy()'s return. */
int host_end(struct nvme_host *h);

/* host_serve(), host_connect() and host_enable(), and an I/O queue pair 1 of 64 entries. */
#define host_start(h, ...)                \
    do {                                  \
        host_serve(h, __VA_ARGS__, NULL); \
        host_connect(h);                  \
        host_enable(h);                   \
        host_add_queue(h, 1, 64, 1);      \
    } while (0)

uint32_t host_read32(struct nvme_host *h, uint32_t reg);
void host_write32(struct nvme_host *h, uint32_t reg, uint32_t value);
/* Waits until register & mask == value. */
void host_wait_reg(struct nvme_host *h, uint32_t reg, uint32_t mask, uint32_t value);

/* Pages of RAM, zeroed; offset of the first one. They are not given back. */
uint32_t host_pages(struct nvme_host *h, uint32_t count);
static inline uint64_t host_addr(uint32_t offset)
{
    return HOST_RAM_BASE + offset;
}

void host_add_queue(struct nvme_host *h, uint16_t qid, uint32_t entries, uint16_t vector);
/* Doorbell Buffer Config; its status. When it is 0 the I/O queues ring that way from now on. */
uint16_t host_shadow(struct nvme_host *h);
/* Eventfds for vectors 0 to count - 1 of this IRQ index. */
void host_arm(struct nvme_host *h, uint32_t index, unsigned count);

/* Puts a command into the queue, rings for all that were put, or both. Its identifier. */
uint16_t host_put(struct nvme_host *h, uint16_t qid, struct nvme_sqe sqe);
void host_ring(struct nvme_host *h, uint16_t qid);
/* The same by a message, whatever the doorbells are. */
void host_ring_message(struct nvme_host *h, unsigned index, uint32_t value);
uint16_t host_submit(struct nvme_host *h, uint16_t qid, struct nvme_sqe sqe);
/* The next completion, or false when there is none within the time. */
bool host_poll(struct nvme_host *h, uint16_t qid, int timeout_ms, struct nvme_cqe *out);
/* The next completion; its status without the phase. */
uint16_t host_wait(struct nvme_host *h, uint16_t qid, struct nvme_cqe *out);
/* Submits one and waits for it. out may be NULL. */
uint16_t host_do(struct nvme_host *h, uint16_t qid, struct nvme_sqe sqe, struct nvme_cqe *out);

/* Read, Write or Compare of whole pages or less at RAM offset `at` (page-aligned): PRP list built.
 */
struct nvme_sqe host_io(struct nvme_host *h, uint8_t opcode, uint64_t slba, uint32_t blocks,
                        uint32_t at, uint32_t lba_size);
/* Admin commands with one page of data at `at`. */
uint16_t host_identify(struct nvme_host *h, uint8_t cns, uint32_t nsid, uint32_t at);
uint16_t host_feature(struct nvme_host *h, uint8_t opcode, uint32_t dw10, uint32_t dw11,
                      uint32_t *result);
uint16_t host_log(struct nvme_host *h, uint8_t lid, uint32_t bytes, uint64_t offset, uint32_t at);

/* nvme_process.c: the device in a process of its own, which can be killed. Socket and RAM are those
 * of the first time. Whatever becomes of the test, the process ends with it. */
pid_t host_fork(struct nvme_host *h, const char *const *args);
/* Ends it with this signal and lets the client go. What waitpid() says of it. */
int host_kill(struct nvme_host *h, pid_t pid, int signal);
/* It kills itself when it has sent its next message, before it does anything else; host_kill() then
 * only collects it. */
void host_kill_after_answer(void);
/* Connects to the next one as a client does that goes on: maps memory, sets up MSI-X vectors, rings
 * all doorbells once more. */
void host_return(struct nvme_host *h, unsigned vectors);
/* Lets RAM go, after the last host_kill(). */
void host_forget(struct nvme_host *h);

/* How often the device called these, and the errno it gets from them instead of their work. */
struct host_calls {
    atomic_int syncs;   /* fdatasync() */
    atomic_int writes;  /* pwritev2() */
    atomic_int durable; /* of these: with RWF_DSYNC */
    atomic_int fail_syncs, fail_writes;
    /* They may be watched, by any thread: before a fdatasync(); after one that succeeded, with what
     * was returned before it; and after a write. */
    uint64_t (*syncing)(void);
    void (*synced)(uint64_t before);
    void (*wrote)(const struct iovec *iov, off_t at, ssize_t len, bool durable);
};
extern struct host_calls host_calls;

/* A file of this size in the test's directory, of bytes that depend on their place and seed. */
const char *host_image(const char *name, uint64_t size, uint32_t seed);
void host_pattern(void *out, size_t len, uint64_t seed);

#endif
