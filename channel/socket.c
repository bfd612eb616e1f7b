/* SPDX-License-Identifier: BSD-3-Clause */
/* UNIX sockets by path: connecting within a deadline, and taking over what a dead server left. */
#include "channel/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static int fill_address(const char *path, struct sockaddr_un *addr)
{
    size_t len = strlen(path);

    if (len == 0)
        return -ENOENT;
    if (len >= sizeof(addr->sun_path))
        return -ENAMETOOLONG;
    memset(addr, 0, sizeof(*addr));
    addr->sun_family = AF_UNIX;
    memcpy(addr->sun_path, path, len);
    return 0;
}

/* A blocking connect() waits for room in the backlog as long as SO_SNDTIMEO says; poll() on a
 * non-blocking one would not. */
static int connect_until(int fd, const struct sockaddr_un *addr, int64_t deadline_ns)
{
    for (;;) {
        if (deadline_ns != OB_NO_DEADLINE) {
            int64_t left = deadline_ns - ob_now_ns();
            struct timeval tv = { left / 1000000000, left % 1000000000 / 1000 };

            if (left < 1000)
                return -ETIMEDOUT;
            if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) < 0)
                return -errno;
        }
        if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0)
            return 0;
        if (errno == EAGAIN)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
    }
}

int ob_socket_connect(const char *path, int64_t deadline_ns)
{
    struct sockaddr_un addr;
    int rc = fill_address(path, &addr);
    int fd;

    if (rc < 0)
        return rc;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    rc = connect_until(fd, &addr, deadline_ns);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    return fd;
}

/* 0: path is free, or a socket file that nobody serves; else why it can't be taken. */
static int probe_path(const char *path, const struct sockaddr_un *addr)
{
    struct stat st;
    int fd, rc;

    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : -errno;
    if (!S_ISSOCK(st.st_mode))
        return -ENOTSOCK;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    rc = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 ? -EADDRINUSE : -errno;
    close(fd);
    if (rc == -EAGAIN) /* its backlog is full: it lives */
        return -EADDRINUSE;
    return rc == -ECONNREFUSED || rc == -ENOENT ? 0 : rc;
}

/* Binds and listens under a temporary name beside path, with its mode set, and renames it over
 * path: whoever connects to path meets a server that is ready. The directory is named through its
 * fd, so that the temporary name fits whenever path does. */
static int bind_beside(int dir, const char *base, unsigned mode, int backlog)
{
    struct sockaddr_un addr;
    char name[32], full[64];
    int fd, rc;

    snprintf(name, sizeof(name), ".ob-%x", (unsigned)getpid());
    snprintf(full, sizeof(full), "/proc/self/fd/%d/%s", dir, name);
    rc = fill_address(full, &addr);
    if (rc < 0)
        return rc;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    unlinkat(dir, name, 0); /* of a process with our number that died right here */
    if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        rc = -errno;
        close(fd);
        return rc;
    }
    if (fchmodat(dir, name, mode, 0) < 0 || listen(fd, backlog) < 0 ||
        renameat(dir, name, dir, base) < 0) {
        rc = -errno;
        unlinkat(dir, name, 0);
        close(fd);
        return rc;
    }
    return fd;
}

/* Opens and locks the directory of path: two servers that start at once come one after the other. A
 * directory that we may use but not read can't be locked, and is used without. */
static int open_directory(const char *path, const char *base)
{
    char name[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
    int fd;

    if (base == path)
        strcpy(name, ".");
    else
        snprintf(name, sizeof(name), "%.*s", base - path > 1 ? (int)(base - path) - 1 : 1, path);
    fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == EACCES)
        fd = open(name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    flock(fd, LOCK_EX);
    return fd;
}

int ob_socket_listen(const char *path, unsigned mode, int backlog)
{
    struct sockaddr_un addr;
    int rc = fill_address(path, &addr);
    const char *slash = strrchr(path, '/');
    const char *base = slash ? slash + 1 : path;
    int dir;

    if (rc < 0)
        return rc;
    if (!*base)
        return -EISDIR;
    dir = open_directory(path, base);
    if (dir < 0)
        return dir;
    rc = probe_path(path, &addr);
    if (rc == 0)
        rc = bind_beside(dir, base, mode, backlog);
    close(dir);
    return rc;
}
