/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * UNIX sockets by path: connecting with a deadline, and listening in place of a dead server.
 *
 * A listening socket is made under a temporary name beside path, gets its owner and permissions
 * (until then it has none at all), listens, and only then takes its name. So whatever socket stands
 * at path either answers or is dead, and nobody can reach ours earlier or with other permissions. A
 * dead one is exchanged for ours in one step and looked at again afterwards: if another server was
 * faster, it gets its name back. Of any number of servers that start at once, one stays. Test:
 * socket/one-of-many-takes-over.
 */
#include "channel/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define TAKE_OVER_MS 1000 /* to wait for others who listen in the same directory */

static int set_path(struct sockaddr_un *addr, const char *path)
{
    *addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
    if (path[0] == '\0')
        return -ENOENT;
    if (strlen(path) >= sizeof(addr->sun_path))
        return -ENAMETOOLONG;
    memcpy(addr->sun_path, path, strlen(path));
    return 0;
}

/* How long connect() may wait from now on; a deadline that has passed leaves it one moment. */
static int limit_connect(int fd, int64_t deadline_ns)
{
    struct timeval tv = { 0, 0 }; /* for ever */

    if (deadline_ns != OB_NO_DEADLINE) {
        int64_t left_us = (deadline_ns - ob_now_ns()) / 1000;
        if (left_us < 1)
            left_us = 1;
        tv.tv_sec = left_us / 1000000;
        tv.tv_usec = left_us % 1000000;
    }
    return setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) < 0 ? -errno : 0;
}

/*
 * A blocking connect(): where a server's backlog is full, only that waits (a non-blocking one
 * fails with EAGAIN, and poll() knows nothing about it). EINTR leaves the socket unconnected.
 */
static int connect_by(int fd, const struct sockaddr_un *addr, int64_t deadline_ns)
{
    for (;;) {
        int rc = limit_connect(fd, deadline_ns);
        if (rc < 0)
            return rc;
        if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0)
            return limit_connect(fd, OB_NO_DEADLINE);
        if (errno == EAGAIN)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
        if (ob_now_ns() >= deadline_ns)
            return -ETIMEDOUT;
    }
}

int ob_socket_connect(const char *path, int64_t deadline_ns)
{
    struct sockaddr_un addr;
    int rc = set_path(&addr, path);

    if (rc < 0)
        return rc;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    rc = connect_by(fd, &addr, deadline_ns);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    return fd;
}

/* A socket to be offered: its directory, its name there, and the one it has until it is ready. */
struct place {
    int dir;
    const char *name;
    char tmp[24];
    struct sockaddr_un name_addr, tmp_addr;
};

static int place_open(const char *path, struct place *place)
{
    char dir[sizeof(place->name_addr.sun_path) + 2];
    uint64_t number;
    int rc = set_path(&place->name_addr, path);

    if (rc < 0)
        return rc;
    const char *slash = strrchr(path, '/');
    place->name = slash ? slash + 1 : path;
    if (place->name[0] == '\0')
        return -EISDIR;
    int dir_len = (int)(place->name - path);
    snprintf(dir, sizeof(dir), "%.*s.", dir_len, path);
    place->dir = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (place->dir < 0)
        return -errno;
    if (getrandom(&number, sizeof(number), GRND_NONBLOCK) != sizeof(number))
        number = (uint64_t)ob_now_ns(); /* a taken name is refused by bind() */
    snprintf(place->tmp, sizeof(place->tmp), ".%016llx", (unsigned long long)number);
    /* A socket address is short. Where the longer name does not fit, go through the directory. */
    place->tmp_addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
    if (dir_len + strlen(place->tmp) < sizeof(place->tmp_addr.sun_path))
        snprintf(place->tmp_addr.sun_path, sizeof(place->tmp_addr.sun_path), "%.*s%s", dir_len,
                 path, place->tmp);
    else
        snprintf(place->tmp_addr.sun_path, sizeof(place->tmp_addr.sun_path), "/proc/self/fd/%d/%s",
                 place->dir, place->tmp);
    return 0;
}

/* 0 when the entry is a socket that nobody serves; -ENOENT, -ENOTSOCK, -EADDRINUSE. */
static int examine(int dir, const char *entry, const struct sockaddr_un *addr)
{
    struct stat st;

    if (fstatat(dir, entry, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    if (!S_ISSOCK(st.st_mode))
        return -ENOTSOCK;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    int rc = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 ? -errno : 0;
    close(fd);
    if (rc == -ECONNREFUSED)
        return 0;
    return rc == -ENOENT ? rc : -EADDRINUSE; /* EAGAIN is a full backlog: somebody is there */
}

static int move(const struct place *place, unsigned how)
{
    return renameat2(place->dir, place->tmp, place->dir, place->name, how) < 0 ? -errno : 0;
}

/* Puts our socket in the place of a dead one. -ENOENT: that is gone, try again. */
static int take_over(const struct place *place)
{
    int rc = examine(place->dir, place->name, &place->name_addr);

    if (rc == 0)
        rc = move(place, RENAME_EXCHANGE);
    if (rc < 0)
        return rc;
    rc = examine(place->dir, place->tmp, &place->tmp_addr);
    if (rc == 0) {
        unlinkat(place->dir, place->tmp, 0);
    } else if (move(place, RENAME_EXCHANGE) == -ENOENT) {
        move(place, RENAME_NOREPLACE);
    }
    return rc == -ENOENT ? 0 : rc;
}

/* Who takes over at the same time could exchange ours for one that is dead by then: they wait for
 * each other. Only for a while, since anybody may lock a directory that he can read. -1: without.
 */
static int lock_dir(const struct place *place)
{
    int fd = openat(place->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int64_t until_ns = ob_deadline_ns(TAKE_OVER_MS);

    while (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK &&
           ob_now_ns() < until_ns)
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    return fd;
}

static int publish_locked(const struct place *place)
{
    int rc = -EEXIST;

    /* Ends: only who keeps removing and making the file could make it go on. */
    for (int tries = 0; tries < 16 && rc < 0; tries++) {
        rc = move(place, RENAME_NOREPLACE);
        if (rc == -EEXIST)
            rc = take_over(place);
        else if (rc < 0)
            return rc;
        if (rc < 0 && rc != -ENOENT)
            return rc;
    }
    return rc < 0 ? -EADDRINUSE : 0;
}

static int publish(const struct place *place)
{
    int lock = lock_dir(place), rc = publish_locked(place);

    if (lock >= 0)
        close(lock);
    return rc;
}

/* By a descriptor of the file that is ours: who else may write to the directory could have put
 * something of others under that name. */
static int give(int dir, const char *entry, unsigned mode, uid_t uid, gid_t gid)
{
    int fd = openat(dir, entry, O_PATH | O_NOFOLLOW | O_CLOEXEC), rc = 0;
    struct stat st;
    char path[32];
    bool ours;

    if (fd < 0)
        return -errno;
    ours = fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode) && st.st_uid == geteuid();
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (!ours)
        rc = -EEXIST;
    else if (fchownat(fd, "", uid, gid, AT_EMPTY_PATH) < 0 || chmod(path, mode) < 0)
        rc = -errno;
    close(fd);
    return rc;
}

static int listen_at(int fd, const struct place *place, unsigned mode, uid_t uid, gid_t gid,
                     int backlog)
{
    const struct sockaddr *addr = (const struct sockaddr *)&place->tmp_addr;
    int rc;

    /* The file gets the mode of the socket, less the umask. */
    if (fchmod(fd, 0) < 0 || bind(fd, addr, sizeof(place->tmp_addr)) < 0)
        return -errno;
    rc = give(place->dir, place->tmp, mode, uid, gid);
    if (rc == 0 && listen(fd, backlog) < 0)
        rc = -errno;
    if (rc == 0)
        rc = publish(place);
    if (rc < 0)
        unlinkat(place->dir, place->tmp, 0);
    return rc;
}

int ob_socket_listen(const char *path, unsigned mode, int backlog)
{
    return ob_socket_listen_owned(path, mode, (uid_t)-1, (gid_t)-1, backlog);
}

int ob_socket_listen_owned(const char *path, unsigned mode, uid_t uid, gid_t gid, int backlog)
{
    struct place place;
    int rc = place_open(path, &place);

    if (rc < 0)
        return rc;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    rc = fd < 0 ? -errno : listen_at(fd, &place, mode, uid, gid, backlog);
    close(place.dir);
    if (rc < 0 && fd >= 0)
        close(fd);
    return rc < 0 ? rc : fd;
}
