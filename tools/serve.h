/* SPDX-License-Identifier: BSD-3-Clause */
/* The parts of `outboard serve`. */
#ifndef OB_TOOLS_SERVE_H
#define OB_TOOLS_SERVE_H

#include "devices/device.h"

/* Where a server is offered: on a path, or on a file descriptor that the parent passed on. */
struct serve_place {
    const char *path; /* NULL: fd */
    int fd;
    unsigned mode; /* of the socket file; 0: the library's default */
};

/* Whether the descriptor is a socket. To be called before this process opens anything, which might
 * get the number of one that is not open. 0, or 1 after it has printed what is wrong. */
int serve_check_place(const char *who, const struct serve_place *place);

/* Offers the server there. 0, or 1 after it has printed what is wrong and what to do. */
int serve_offer(const char *who, struct ob_server *server, const struct serve_place *place);

/* What a command line asks for. */
struct serve_request {
    char who[32];                   /* "serve nvme", for messages */
    const struct ob_served *device; /* NULL: none was named */
    struct serve_place place;
    unsigned spin_us;
    bool help, capabilities, verbose;
    int argc; /* what is left for the device; argv is to be freed */
    char **argv;
};

/* 0 with *out filled in, or an exit status after it has printed what is wrong. */
int serve_parse(int argc, char **argv, struct serve_request *out);

/* The devices there are; NULL after the last. */
const struct ob_served *serve_device(size_t i);

#endif
