/* SPDX-License-Identifier: BSD-3-Clause */
/* What the inputs of the targets `server` and `nvme` are made of: a byte each, and what they need.
 * New ones go to the end, or the corpora have to be made anew. */
#ifndef OB_FUZZ_OPERATIONS_H
#define OB_FUZZ_OPERATIONS_H

/* server: after the device (1 byte), and the operand of a first OP_CONNECT */
enum server_operation {
    OP_MESSAGE, /* message.h */
    OP_RAW,     /* length (1 byte), bytes as they are */
    OP_STEP,    /* how often (1 byte), after as many milliseconds */
    OP_DRAIN,   /* all read what the server has sent */
    OP_CONNECT, /* which (2 bits), set of CONNECT_* */
    OP_LEAVE,   /* which (2 bits), only the twin (bit 2), only for writing (bit 3) */
    OP_MEMORY,  /* offset (number), length (1 byte), bytes: into RAM */
    OP_CUT,     /* size (number) of the file of KIND_CUT */
    OP_SIGNAL,  /* an eventfd that the server gave away, or one of the kinds (1 byte) */
    OP_ANSWERS, /* how many (1 byte), enum answer each: to DMA requests */
    OP_RING,    /* ring.h, by the current one */
    OP_POLL,    /* how many (1 byte) of the operations that follow while the server polls */
    SERVER_OPS
};

enum {
    CONNECT_GREETED = 4, /* it sends a good VERSION */
    CONNECT_TWIN = 8,    /* which asks for a second socket */
    CONNECT_RING = 16,   /* and for an access ring */
};

/*
 * nvme: after the options (1 byte). An address is a number: below 256 a page of RAM, below 2^24 an
 * offset in RAM, else what it is.
 */
enum nvme_operation {
    NVME_COMMAND,   /* queue (3 bits; bit 6: not waited for), opcode, what follows (set of HAS_*) */
    NVME_QUEUE,     /* which (1 byte), entries (number): made as it should be */
    NVME_LIST,      /* page (1 byte), first entry (number), how many (1 byte), addresses */
    NVME_MEMORY,    /* offset (number), length (1 byte), bytes: into RAM */
    NVME_DOORBELL,  /* index (1 byte), value (number) */
    NVME_REGISTER,  /* offset, value (numbers), bytes of it as a power of two (2 bits) */
    NVME_CONSUME,   /* queue (1 byte) */
    NVME_STEP,      /* how often (1 byte), after as many milliseconds */
    NVME_UNMAP,     /* first page, pages (1 byte each) */
    NVME_MAP,       /* first page, pages, kind of fd (1 byte each; bit 7: none), flags (1 byte) */
    NVME_CUT,       /* size (number) of the file of KIND_CUT */
    NVME_RESET,     /* 0: of the device; 1: function-level; else the controller is enabled anew */
    NVME_RECONNECT, /* without memory (bit 0), without a second socket (bit 1) */
    NVME_MIGRATE,   /* to itself; pieces of so many bytes (number) */
    NVME_ANSWERS,   /* how many (1 byte), enum answer each */
    NVME_OPS
};

enum {
    HAS_NSID = 0x01, /* else 1 */
    HAS_PRP1 = 0x02, /* else the first data page */
    HAS_PRP2 = 0x04, /* else the page after it */
    HAS_DW10 = 0x08,
    HAS_DW11 = 0x10,
    HAS_DW12 = 0x20,
    HAS_DW13 = 0x40,
    HAS_REST = 0x80, /* flags, dw2, dw3, mptr, dw14, dw15 */
};

#endif
