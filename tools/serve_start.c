/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The last steps of a server before it serves: it becomes another user, goes into its sandbox
 * (sandbox.h), and starts its threads in there.
 */
#include "sandbox.h"
#include "serve.h"
#include "tools.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
/* Sanitizers stop threads, read /proc and map code whenever they like. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HAS_SANITIZER true
#else
#define HAS_SANITIZER false
#endif

struct starting {
    const struct serve_request *req;
    struct sandbox_needs needs;
    char missing[160]; /* "landlock (Function not implemented)" */
};

/* ---- Another user ------------------------------------------------------------------------- */

int serve_check_user(const struct serve_request *req)
{
    const struct serve_owner *user = &req->user;

    if (user->uid == SERVE_NO_ID || geteuid() == 0 ||
        (user->uid == geteuid() && user->gid == getegid()))
        return 0;
    return fail(req->who, "only root can become another user; start it as root, or without --user");
}

static int become_user(const struct serve_request *req)
{
    const struct serve_owner *user = &req->user;

    if (user->uid == SERVE_NO_ID || geteuid() != 0)
        return 0;
    if (setgroups(0, NULL) < 0 || setresgid(user->gid, user->gid, user->gid) < 0 ||
        setresuid(user->uid, user->uid, user->uid) < 0)
        return fail(req->who, "cannot become user %u, group %u: %s", (unsigned)user->uid,
                    (unsigned)user->gid, strerror(errno));
    /* The kernel has made our /proc/self/fd root's. It is needed, and there are no secrets. */
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    return 0;
}

/* Whether the socket can be removed at the end by who we are now. */
static bool can_remove(const char *path)
{
    const char *slash = strrchr(path, '/');
    char dir[PATH_MAX];
    struct stat file, st;

    snprintf(dir, sizeof(dir), "%.*s.", slash ? (int)(slash + 1 - path) : 0, path);
    if (stat(dir, &st) < 0 || lstat(path, &file) < 0 ||
        faccessat(AT_FDCWD, dir, W_OK | X_OK, AT_EACCESS) < 0)
        return false;
    return !(st.st_mode & S_ISVTX) || file.st_uid == geteuid() || st.st_uid == geteuid();
}

/* ---- The sandbox -------------------------------------------------------------------------- */

/* Takes a step into it. What cannot be had is missed, or is the end where all of it is wanted. */
static int step(struct starting *s, const char *name, int (*take)(const struct sandbox_needs *))
{
    size_t len = strlen(s->missing);
    int rc;

    if (s->req->sandbox == SANDBOX_OFF)
        return 0;
    rc = take(&s->needs);
    if (rc == 0)
        return 0;
    if (s->req->sandbox == SANDBOX_ON)
        return fail(s->req->who,
                    "--sandbox=on: %s: %s (without the option the server does without it)", name,
                    strerror(-rc));
    snprintf(s->missing + len, sizeof(s->missing) - len, "%s%s (%s)", len ? ", " : "", name,
             strerror(-rc));
    return 0;
}

static int confine(struct starting *s)
{
    int status = step(s, "inherited files", sandbox_close_fds);

    if (!status)
        status = step(s, "capability bounds", sandbox_bound);
    if (!status)
        status = become_user(s->req);
    if (!status)
        status = step(s, "capabilities", sandbox_drop);
    if (!status && s->needs.removes && !can_remove(s->needs.removes))
        serve_log(NULL, OB_LOG_INFO,
                  "the socket will stay behind at the end: this user may not remove it");
    if (!status && !HAS_SANITIZER)
        status = step(s, "landlock", sandbox_landlock);
    return status;
}

int serve_start(const struct serve_request *req, void *device)
{
    struct starting s = {
        .req = req,
        .needs = { .keeps_fd = req->place.fd,
                   .reopens_fd = req->device->reopens ? req->device->reopens(device) : -1,
                   .removes = req->place.path },
    };
    int status = confine(&s), rc;

    if (status)
        return status;
    rc = req->device->start ? req->device->start(device) : 0;
    if (rc == 0)
        rc = ob_server_start_closer();
    if (rc < 0)
        return fail(req->who, "cannot start threads: %s", strerror(-rc));
    if (!HAS_SANITIZER)
        status = step(&s, "seccomp", sandbox_seccomp);
    else if (req->sandbox == SANDBOX_ON)
        return fail(req->who, "--sandbox=on: this build has a sanitizer in it, for which a sandbox "
                              "has no room");
    if (*s.missing)
        fprintf(stderr, "outboard %s: warning: the sandbox is without %s\n", req->who, s.missing);
    return status;
}
