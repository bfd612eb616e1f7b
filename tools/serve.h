/* SPDX-License-Identifier: BSD-3-Clause */
/* The parts of `outboard serve`. */
#ifndef OB_TOOLS_SERVE_H
#define OB_TOOLS_SERVE_H

#include <sys/types.h>

#include "devices/device.h"

#define SERVE_NO_ID       ((uid_t)-1) /* no user, or no group, was named */
#define SERVE_ALLOWED_MAX 16u

struct serve_owner {
    uid_t uid;
    gid_t gid;
};

/* Where a server is offered: on a path, or on a file descriptor that the parent passed on. */
struct serve_place {
    const char *path; /* NULL: fd */
    int fd;
    unsigned mode; /* of the socket file; 0: the library's default */
    struct serve_owner owner;
    uid_t allowed[SERVE_ALLOWED_MAX]; /* to connect; none: everybody */
    unsigned nallowed;
};

/* Whether the descriptor is a socket. To be called before this process opens anything, which might
 * get the number of one that is not open. 0, or 1 after it has printed what is wrong. */
int serve_check_place(const char *who, const struct serve_place *place);

/* Offers the server there. 0, or 1 after it has printed what is wrong and what to do. */
int serve_offer(const char *who, struct ob_server *server, const struct serve_place *place);

/* Of the client's memory. */
struct serve_limits {
    uint32_t maps;
    uint64_t bytes;
    enum ob_dma_file_kinds files;
};

enum serve_sandbox { SANDBOX_IF_POSSIBLE, SANDBOX_ON, SANDBOX_OFF };

/* What a command line asks for. */
struct serve_request {
    char who[32];                   /* "serve nvme", for messages */
    const struct ob_served *device; /* NULL: none was named */
    struct serve_place place;
    unsigned spin_us;
    enum serve_sandbox sandbox;
    struct serve_owner user; /* to become */
    struct serve_limits limits;
    bool help, capabilities, verbose;
    int argc; /* what is left for the device; argv is to be freed */
    char **argv;
};

/* 0 with *out filled in, or an exit status after it has printed what is wrong. */
int serve_parse(int argc, char **argv, struct serve_request *out);

/* USER, or the number of one; *gid (may be NULL) is the user's group, or SERVE_NO_ID. USER[:GROUP],
 * each by name or number, also :GROUP. 0, or 2 after they have printed what is wrong. */
int serve_parse_user(const char *who, const char *name, uid_t *uid, gid_t *gid);
int serve_parse_owner(const char *who, const char *text, struct serve_owner *out);

/* Whether this process can become the user that is asked for. 0, or 1 after it has printed why not.
 */
int serve_check_user(const struct serve_request *req);
/* Gives up what is not needed to run the device, and starts its threads. 0, or 1 after it has
 * printed what is wrong. */
int serve_start(const struct serve_request *req, void *device);
/* Says a line on stderr. */
void serve_log(void *opaque, enum ob_log_level level, const char *line);

/* The devices there are; NULL after the last. */
const struct ob_served *serve_device(size_t i);

#endif
