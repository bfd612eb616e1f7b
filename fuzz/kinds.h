/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * File descriptors of the kinds that a peer may attach to a message. They are opened once; sent,
 * they are duplicated by the kernel. What the other side may have done to them is undone after each
 * run, and what it must not have done is looked for.
 */
#ifndef OB_FUZZ_KINDS_H
#define OB_FUZZ_KINDS_H

#include <stdint.h>
#include <sys/types.h>

#define RAM_BYTES (128u * 4096u)

enum kind {
    KIND_RAM,    /* a memfd of RAM_BYTES, mapped here as ram */
    KIND_SEALED, /* the same size, sealed against shrinking */
    KIND_CUT,    /* the same size, until the input cuts it */
    KIND_EVENTFD,
    KIND_EVENTFD2, /* non-blocking, unlike the first */
    KIND_READ_ONLY,
    KIND_EMPTY,
    KIND_PIPE_READ,
    KIND_PIPE_WRITE,
    KIND_DIRECTORY,
    KIND_SOCKET,
    KIND_NULL,
    KIND_ZERO,
    KIND_EPOLL,
    KIND_PATH, /* O_PATH */
    KIND_TIMER,
    KINDS
};

extern uint8_t *ram;

/* Opens them, the first time. */
void kinds_open(void);
int kind_fd(uint8_t kind);
/* Cuts or grows the file of KIND_CUT. */
void kind_cut(uint64_t size);
/* Writes into RAM, as far as it goes. */
void ram_write(uint64_t offset, const void *data, size_t len);
/* As new: afterwards. Nothing was written where nobody may write. */
void kinds_reset(void);

#endif
