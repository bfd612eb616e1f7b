/* SPDX-License-Identifier: BSD-3-Clause */
/* Puts a server on its socket, and says what to do where that fails. */
#include "serve.h"
#include "tools.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PATH_BYTES_MAX (sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1)

/* The process that listens on path, or 0 when it cannot be told. */
static pid_t listener_pid(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct ucred peer = { 0 };
    socklen_t len = sizeof(peer);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return 0;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
        peer.pid = 0;
    close(fd);
    return peer.pid;
}

static void process_name(pid_t pid, char *name, size_t size)
{
    char path[32];

    snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file || !fgets(name, (int)size, file))
        snprintf(name, size, "?");
    name[strcspn(name, "\n")] = '\0';
    if (file)
        fclose(file);
}

static int say_in_use(const char *who, const char *path)
{
    pid_t pid = listener_pid(path);
    char name[32];

    if (pid <= 0)
        return fail(who, "another server listens on '%s'; stop it, or choose another path", path);
    process_name(pid, name, sizeof(name));
    return fail(who, "process %d (%s) listens on '%s'; stop it, or choose another path", (int)pid,
                name, path);
}

static int say_path_failure(const char *who, const char *path, int rc)
{
    const char *slash = strrchr(path, '/');
    int dir_len = slash ? (int)(slash - path) : 1;
    const char *dir = slash ? path : ".";

    if (slash == path)
        dir_len = 1; /* the root */
    switch (-rc) {
    case EADDRINUSE:
        return say_in_use(who, path);
    case ENOTSOCK:
        return fail(who, "'%s' is there and not a socket; remove it, or choose another path", path);
    case ENAMETOOLONG:
        return fail(who, "the path of a socket has at most %zu bytes, not %zu; use a shorter one",
                    PATH_BYTES_MAX, strlen(path));
    case ENOENT:
        return fail(who, "there is no directory '%.*s'; make it first: mkdir -p '%.*s'", dir_len,
                    dir, dir_len, dir);
    case ENOTDIR:
        return fail(who, "'%.*s' is not a directory; choose another path", dir_len, dir);
    case EACCES:
    case EPERM:
        return fail(who, "you may not make a socket in '%.*s'; choose a directory of yours",
                    dir_len, dir);
    case EROFS:
        return fail(who, "'%.*s' is on a read-only file system; choose another path", dir_len, dir);
    default:
        return fail(who, "cannot listen on '%s': %s", path, strerror(-rc));
    }
}

int serve_check_place(const char *who, const struct serve_place *place)
{
    int type;
    socklen_t len = sizeof(type);

    if (place->path || getsockopt(place->fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0)
        return 0;
    if (errno == EBADF)
        return fail(who, "file descriptor %d is not open; who starts the server must pass it on",
                    place->fd);
    return fail(who, "file descriptor %d is not a socket", place->fd);
}

int serve_offer(const char *who, struct ob_server *server, const struct serve_place *place)
{
    bool owned = place->owner.uid != SERVE_NO_ID || place->owner.gid != SERVE_NO_ID;
    int rc;

    for (unsigned i = 0; i < place->nallowed; i++)
        ob_server_allow_uid(server, place->allowed[i]); /* there is room for them all */
    ob_server_set_socket_owner(server, place->owner.uid, place->owner.gid);
    if (!place->path) {
        rc = ob_server_listen_fd(server, place->fd);
        return rc < 0
                   ? fail(who, "cannot serve on file descriptor %d: %s", place->fd, strerror(-rc))
                   : 0;
    }
    rc = ob_server_listen(server, place->path, place->mode);
    if (rc == -EPERM && owned)
        return fail(who, "you may not give a socket to that user or group: only root may, or to a "
                         "group that you are in");
    return rc < 0 ? say_path_failure(who, place->path, rc) : 0;
}
