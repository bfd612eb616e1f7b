/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The conformance suite behind `outboard check`: cases that a vfio-user server, or a client, is put
 * through, each tied to numbered rules of docs/protocol.md, each on a connection of its own. One
 * thread.
 */
#ifndef OB_CONFORMANCE_H
#define OB_CONFORMANCE_H

#include <stddef.h>
#include <stdint.h>

enum check_verdict {
    CHECK_PASS,
    CHECK_FAIL,
    CHECK_NOT_OFFERED, /* the server, or its device, has not got what the case is about */
    CHECK_DEVIATION,   /* a rule is not kept, in a way that peers are known for and others bear */
    CHECK_VERDICTS
};

struct check_options {
    const char *path;    /* of the server's socket; of the one to listen on, for a client */
    const char *run;     /* shell command that starts the client, {} for the path; NULL: it is
                            started by someone else */
    const char *pattern; /* shell pattern that the ids of the cases match; NULL: all */
    int timeout_ms;      /* for one case */
    uint64_t seed;       /* of what is random */
};

struct check_result {
    const char *id;    /* "dma/overlap-head" */
    const char *rules; /* "R-DMA-4 R-DMA-5" */
    const char *says;  /* what must be so, half a sentence */
    enum check_verdict verdict;
    const char *why;   /* NULL after a pass */
    const char *bytes; /* after a failure: what was exchanged, lines of text; else NULL */
    double seconds;
};

struct check_case {
    const char *id, *rules, *says;
};

/* Calls each(opaque, case) for every case that matches pattern (NULL: all), in their order. Returns
 * their number, or -ENOMEM. What is given to the callback is valid during the call. */
int check_list(const char *pattern, void (*each)(void *opaque, const struct check_case *c),
               void *opaque);
/* The same, but runs them. Survives any server. -ENOTCONN: nobody could be reached at path, and no
 * case was run; why gets the reason. */
int check_run(const struct check_options *opt,
              void (*done)(void *opaque, const struct check_result *result), void *opaque,
              char *why, size_t why_size);

/* The same for clients. A client connects anew for each case; listening is called when the suite
 * first waits for it. why also says what is wrong with the path. */
int check_client_list(const char *pattern, void (*each)(void *opaque, const struct check_case *c),
                      void *opaque);
int check_client_run(const struct check_options *opt, void (*listening)(void *opaque),
                     void (*done)(void *opaque, const struct check_result *result), void *opaque,
                     char *why, size_t why_size);

#endif
