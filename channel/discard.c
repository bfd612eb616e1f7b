/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Letting go of descriptors that a peer sent, without waiting for the peer.
 *
 * Theory. close() asks the file system behind a file to flush it (FUSE, NFS), and the last
 * reference to a file that goes may linger (TCP with SO_LINGER), drain (a terminal) or free
 * gigabytes. The peer chooses the file, so each of these can take for ever. What is known to go at
 * once is closed at once: an eventfd, and memory files that are not large. Nobody can pass anything
 * else off as these: only the kernel's own memory file systems have seals, and only it names
 * anonymous inodes; and to ask for the one or the other waits for nobody. Everything else is closed
 * by the closer, a thread that is made when it is first needed.
 *
 * A UNIX socket takes what is unread in it along, descriptors too, and theirs. When it was shut
 * down nothing is added any more, so it is closed at once if it is empty then.
 *
 * To add a seal waits for who is writing to the file, and who is in the middle of that may wait for
 * a page fault that is never served (FUSE, userfaultfd). So the closer adds seals, too, and is not
 * waited for as long as that.
 *
 * The closer may hang in one of them, and all others then wait behind it. Each has an owner, and an
 * owner with more than OB_DISCARD_MAX of them takes nothing more from its peer:
 * ob_discard_is_full(). Many that are closed in their turn do no harm. Who waits for room is told
 * of each that was closed: ob_discard_watch().
 * Should there be no room at all, descriptors stay open until the process ends.
 *
 * The end of the process closes descriptors as well, and there the kernel waits.
 *
 * Invariant: a descriptor in `waiting` is nobody else's. Tests: test-discard.c,
 * test-client-discard.c, test-server-discard.c, cli/hanging-files, qemu/hanging-files.
 */
#include "channel/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define ROOM       1024u
/* So many may wait as long as the closer gets on; it hangs when it has not for so long, which is
 * longer than a machine under load keeps a thread from its CPU. */
#define BUSY_MAX   (8 * OB_DISCARD_MAX)
#define HANGS_NS   200000000
/* A seal takes a few microseconds, and a thread that wakes up. */
#define SEAL_NS    100000000
/* Blocks of 512 bytes that a file may have to be freed at once: 16 MiB, a millisecond. */
#define BLOCKS_MAX (16 << 11)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER, changed = PTHREAD_COND_INITIALIZER;
/* guarded */
static struct {
    int fd;
    const void *owner;
    bool seal; /* it is to be sealed before */
} waiting[ROOM];
static uint64_t given, done; /* to the closer, and by it, which works in order */
static int64_t progress_ns;  /* when it closed the last one, or began */
static struct ob_discard_watch *watches;
static pid_t closer_of; /* the process that has the thread: none is inherited by fork() */
static pid_t runs_in;   /* the process in which it runs */
/* written under the lock */
static unsigned nwaiting;

/* syscalls: write */
static void tell_locked(void)
{
    for (const struct ob_discard_watch *watch = watches; watch; watch = watch->next)
        eventfd_write(watch->fd, 1);
}

/* syscalls: close */
static void *closer(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&lock);
    runs_in = getpid();
    done = given - nwaiting;
    pthread_cond_broadcast(&changed);
    for (;;) {
        bool seal;
        int fd;

        while (nwaiting == 0)
            pthread_cond_wait(&more, &lock);
        fd = waiting[0].fd;
        seal = waiting[0].seal;
        __atomic_store_n(&nwaiting, nwaiting - 1, __ATOMIC_RELAXED);
        memmove(waiting, waiting + 1, nwaiting * sizeof(waiting[0]));
        pthread_mutex_unlock(&lock);
        if (seal)
            fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
        close(fd);
        pthread_mutex_lock(&lock);
        progress_ns = ob_now_ns();
        done++;
        tell_locked();
        pthread_cond_broadcast(&changed);
    }
    return NULL;
}

static int start_locked(void)
{
    pid_t self = getpid();
    int rc = 0;

    if (closer_of != self)
        rc = ob_thread_start(closer, NULL);
    if (rc == 0)
        closer_of = self;
    return rc;
}

int ob_discard_init(void)
{
    int rc;

    pthread_mutex_lock(&lock);
    rc = start_locked();
    while (rc == 0 && runs_in != closer_of) /* until then it calls what a sandbox forbids */
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return rc;
}

bool ob_discard_is_full(const void *owner)
{
    unsigned mine = 0;
    bool full;

    if (__atomic_load_n(&nwaiting, __ATOMIC_RELAXED) <= OB_DISCARD_MAX)
        return false;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < nwaiting; i++)
        mine += waiting[i].owner == owner;
    full = nwaiting == ROOM || mine > BUSY_MAX ||
           (mine > OB_DISCARD_MAX && ob_now_ns() - progress_ns > HANGS_NS);
    pthread_mutex_unlock(&lock);
    return full;
}

void ob_discard_watch(struct ob_discard_watch *watch)
{
    pthread_mutex_lock(&lock);
    watch->next = watches;
    watches = watch;
    watch->on = true;
    pthread_mutex_unlock(&lock);
}

void ob_discard_unwatch(struct ob_discard_watch *watch)
{
    struct ob_discard_watch **p = &watches;

    if (!watch->on)
        return;
    pthread_mutex_lock(&lock);
    while (*p != watch)
        p = &(*p)->next;
    *p = watch->next;
    watch->on = false;
    pthread_mutex_unlock(&lock);
}

/* A thread that cannot be had now is tried for with the next one. False: no room. */
static bool hand_over_locked(int fd, const void *owner, bool seal)
{
    if (nwaiting == ROOM)
        return false;
    if (nwaiting == 0)
        progress_ns = ob_now_ns();
    waiting[nwaiting].fd = fd;
    waiting[nwaiting].owner = owner;
    waiting[nwaiting].seal = seal;
    __atomic_store_n(&nwaiting, nwaiting + 1, __ATOMIC_RELAXED);
    given++;
    start_locked();
    pthread_cond_signal(&more);
    return true;
}

static void hand_over(int fd, const void *owner)
{
    pthread_mutex_lock(&lock);
    hand_over_locked(fd, owner, false);
    pthread_mutex_unlock(&lock);
}

void ob_fd_seal(int fd)
{
    int64_t until_ns = ob_now_ns() + SEAL_NS;
    struct timespec until = { until_ns / 1000000000, until_ns % 1000000000 };
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0), rc = 0;
    uint64_t mine;

    if (copy < 0)
        return;
    pthread_mutex_lock(&lock);
    /* It would come too late, and there is to be room for what has an owner. */
    if (nwaiting > OB_DISCARD_MAX || !hand_over_locked(copy, NULL, true)) {
        close(copy);
        rc = -EAGAIN;
    }
    mine = given;
    while (done < mine && rc == 0)
        rc = pthread_cond_clockwait(&changed, &lock, CLOCK_MONOTONIC, &until);
    pthread_mutex_unlock(&lock);
}

/* syscalls: fcntl(1=F_GET_SEALS) */
bool ob_fd_is_memory(int fd)
{
    return fcntl(fd, F_GET_SEALS) >= 0;
}

/* syscalls: readlink, readlinkat */
bool ob_fd_is_eventfd(int fd)
{
    static const char eventfd_link[] = "anon_inode:[eventfd]";
    char path[32], link[sizeof(eventfd_link)];
    ssize_t len;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    len = readlink(path, link, sizeof(link));
    return len == sizeof(eventfd_link) - 1 && memcmp(link, eventfd_link, (size_t)len) == 0;
}

/* syscalls: getsockopt */
bool ob_fd_is_unix_socket(int fd)
{
    int domain;
    socklen_t len = sizeof(domain);

    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX;
}

/* syscalls: fstat, newfstatat */
static bool goes_at_once(int fd)
{
    struct stat st;

    if (ob_fd_is_memory(fd))
        return fstat(fd, &st) == 0 && st.st_blocks <= BLOCKS_MAX;
    return ob_fd_is_eventfd(fd);
}

void ob_fd_discard(int fd, const void *owner)
{
    if (goes_at_once(fd))
        close(fd);
    else
        hand_over(fd, owner);
}

/* syscalls: shutdown, ioctl(1=FIONREAD) */
void ob_socket_discard(int fd, const void *owner)
{
    int unread;

    shutdown(fd, SHUT_RDWR);
    if (ioctl(fd, FIONREAD, &unread) == 0 && unread == 0)
        close(fd);
    else
        hand_over(fd, owner);
}
