/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A reference model of what a client sees of a server: regions, DMA table, dirty memory, interrupts
 * and migration states; and the server itself beside it. A command is carried out on both, and the
 * two are compared: the reply, what eventfds were signalled, the memory of client and device, and
 * what the device finds at each address.
 */
#ifndef OB_TESTS_MODEL_H
#define OB_TESTS_MODEL_H

#include <stdbool.h>
#include <stdint.h>

/* What a, b, c and d of a command mean. Numbers that are too large are reduced, so that any
 * command can be carried out. */
#define MODEL_OPS(X)                                                      \
    X(map)   /* page, pages, protection and mode, page of RAM */          \
    X(unmap) /* page, pages; or, d: the mapping of that number; c: how */ \
    X(unmap_all)                                                          \
    X(dma)      /* page, offset, bytes, direction and seed */             \
    X(hold)     /* page, offset, bytes, protection */                     \
    X(put)      /* number */                                              \
    X(read)     /* region, offset, bytes, how (model_regions.c) */        \
    X(write)    /* region, offset, bytes, how and seed */                 \
    X(post)     /* the same, at most 8 bytes */                           \
    X(multi)    /* region, offset, bytes, seed, twice */                  \
    X(eventfds) /* index, start, count, whether to take them back */      \
    X(disable)  /* index */                                               \
    X(mask)     /* index, start, count, how and which */                  \
    X(fire)     /* index, start, count, which */                          \
    X(trigger)  /* index, vector */                                       \
    X(level)    /* of the line */                                         \
    X(state)    /* to go to */                                            \
    X(stream)   /* bytes, whether one of them is changed */               \
    X(reset)                                                              \
    X(log)    /* whether to begin, page size */                           \
    X(report) /* page, pages, page size */                                \
    X(leave)                                                              \
    X(poll) /* whether the server polls */

#define MODEL_NAME(name) OP_##name,
enum model_op { MODEL_OPS(MODEL_NAME) MODEL_OP_COUNT };
#undef MODEL_NAME

struct model_command {
    uint32_t op, a, b, c, d;
};

const char *model_op_name(uint32_t op);

/* The model believes that a reset leaves the device's memory as it is. */
extern bool model_lies;

/* A new server and a client of it go through the commands; *at is the number of the one that is
 * carried out. Ends the process with a sentence on stderr and the status 1 where server and model
 * differ. */
void model_run(const struct model_command *commands, unsigned count, volatile unsigned *at);

#endif
