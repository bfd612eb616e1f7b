/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * IMAGE on the command line becomes a struct blk: opened, measured, locked.
 *
 * The lock is one of the open file description, and so lasts as long as what the kernel has not
 * done of it yet, also when the process is gone. A server that writes has the whole file for
 * itself; where it has two descriptions (--cache none), each has a part that nobody can do without.
 * Readers share it: with each other, and with a QEMU that only reads, so they take part in QEMU's
 * own scheme, in which byte 100 + N of the file is locked by who has permission N, and 200 + N by
 * who lets nobody else have it. A block device is also opened with O_EXCL, which refuses one that
 * is mounted; by a descriptor of its own, which can be let go while the device stays open.
 */
#include "blk.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "devices/device.h"

__attribute__((format(printf, 4, 5))) static int fail(char *errbuf, size_t size, int rc,
                                                      const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(errbuf, size, fmt, ap);
    va_end(ap);
    return rc;
}

static int open_volatile(const char *image, bool read_only, struct blk **out, char *errbuf,
                         size_t size)
{
    bool discard = strncmp(image, "null:", 5) == 0;
    struct blk base = { .read_only = read_only,
                        .grain = 4096,
                        .can_punch = true,
                        .fd = -1,
                        .direct_fd = -1,
                        .claim_fd = -1 };
    const char *length = strchr(image, ':') + 1;
    int rc;

    if (ob_parse_size(length, &base.size) < 0)
        return fail(errbuf, size, -EINVAL, "'%s' is not a size: write it like 512M or 4G", length);
    snprintf(base.about, sizeof(base.about), discard ? "discards all data" : "in memory");
    rc = blk_mem_new(&base, discard, out);
    return rc == 0 ? 0 : fail(errbuf, size, rc, "%s: %s", image, strerror(-rc));
}

static int open_file(const char *image, bool read_only, struct stat *st, char *errbuf, size_t size)
{
    int flags = (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    int fd, rc;

    fd = open(image, flags);
    if (fd < 0) {
        rc = -errno;
        const char *hint = rc == -ENOENT ? " (make one with: truncate -s 1G FILE)"
                           : rc == -EACCES || rc == -EROFS
                               ? (read_only ? "" : " (or serve it with --read-only)")
                               : "";
        return fail(errbuf, size, rc, "cannot open %s: %s%s", image, strerror(-rc), hint);
    }
    /* O_NONBLOCK was for opening a pipe by mistake; with io_uring it would mean more. */
    if (fstat(fd, st) == 0 && (S_ISREG(st->st_mode) || S_ISBLK(st->st_mode)) &&
        fcntl(fd, F_SETFL, 0) == 0)
        return fd;
    close(fd);
    return fail(errbuf, size, -EINVAL, "%s is neither a file nor a block device", image);
}

enum { PERM_READ = 100, PERM_WRITE = 101, PERM_RESIZE = 103, ALONE = 100 }; /* as QEMU has it */

/* syscalls: fcntl(1=F_OFD_SETLK) */
static int lock_range(int fd, short type, off_t start, off_t len)
{
    struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };

    return fcntl(fd, F_OFD_SETLK, &lock) == 0 ? 0 : -errno;
}

/* Neither a QEMU that reads nor a server gets along without a byte from each part. */
static int lock_alone(const struct blk *blk)
{
    int rc = lock_range(blk->fd, F_WRLCK, 0, blk->direct_fd < 0 ? 0 : ALONE + PERM_READ);

    return rc == 0 && blk->direct_fd >= 0
               ? lock_range(blk->direct_fd, F_WRLCK, ALONE + PERM_READ, 0)
               : rc;
}

/* -EAGAIN when anybody else has this byte. */
/* syscalls: fcntl(1=F_OFD_GETLK) */
static int check_free(int fd, off_t byte)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        return -errno;
    return lock.l_type == F_UNLCK ? 0 : -EAGAIN;
}

/* First the locks, then the look at others': of two who come at once, one gives way. */
static int lock_shared(int fd)
{
    static const off_t bytes[] = { 0, PERM_READ, ALONE + PERM_WRITE, ALONE + PERM_RESIZE };
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < sizeof(bytes) / sizeof(bytes[0]); i++)
        rc = lock_range(fd, F_RDLCK, bytes[i], 1);
    if (rc == 0)
        rc = check_free(fd, PERM_WRITE);
    if (rc == 0)
        rc = check_free(fd, PERM_RESIZE);
    return rc == 0 ? check_free(fd, ALONE + PERM_READ) : rc;
}

/* syscalls: fstat, newfstatat */
bool blk_claims(const struct blk *blk)
{
    struct stat st;

    return blk->fd >= 0 && !blk->read_only && fstat(blk->fd, &st) == 0 && S_ISBLK(st.st_mode);
}

/* O_EXCL means "not in use" for a block device. */
/* syscalls[reopens]: openat(2&O_ACCMODE=O_RDONLY) */
static int claim_device(struct blk *blk)
{
    char path[32];

    if (blk->claim_fd >= 0 || !blk_claims(blk))
        return 0;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", blk->fd);
    blk->claim_fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
    return blk->claim_fd >= 0 ? 0 : -errno;
}

int blk_lock(struct blk *blk, char *errbuf, size_t errbuf_size)
{
    bool claiming = false;
    int rc;

    if (blk->fd < 0)
        return 0;
    rc = blk->read_only ? lock_shared(blk->fd) : lock_alone(blk);
    if (rc == 0) {
        claiming = true;
        rc = claim_device(blk);
    }
    if (rc == 0)
        return 0;
    blk_unlock(blk); /* what there is of it */
    if (!claiming && (rc == -EAGAIN || rc == -EACCES))
        return fail(errbuf, errbuf_size, -EBUSY,
                    "%s is in use by another process (end that server or virtual machine first%s)",
                    blk->identity,
                    blk->read_only ? "" : "; several can share it only with --read-only");
    return fail(errbuf, errbuf_size, rc, "cannot lock %s: %s%s", blk->identity, strerror(-rc),
                rc == -EBUSY ? " (is it mounted?)" : "");
}

void blk_unlock(struct blk *blk)
{
    if (blk->fd < 0)
        return;
    if (blk->claim_fd >= 0)
        close(blk->claim_fd);
    blk->claim_fd = -1;
    lock_range(blk->fd, F_UNLCK, 0, 0);
    if (blk->direct_fd >= 0)
        lock_range(blk->direct_fd, F_UNLCK, 0, 0);
}

void blk_close(struct blk *blk)
{
    blk_unlock(blk);
    blk->ops->free(blk);
}

/* Whether holes can be punched, found out where there is nothing to lose: past the end. */
static bool probe_punch(int fd, const struct blk *blk, bool is_block)
{
    int rc = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       (off_t)((blk->size + (1u << 20)) & ~(uint64_t)4095), 4096);

    /* A block device refuses any range past its end, but only after it knows the mode. */
    return rc == 0 || (is_block && errno == EINVAL);
}

static int measure(int fd, const char *image, const struct stat *st, struct blk *blk, char *errbuf,
                   size_t size)
{
    bool is_block = S_ISBLK(st->st_mode);

    blk->size = (uint64_t)st->st_size;
    blk->inode = is_block ? 0 : st->st_ino;
    blk->grain = 4096;
    if (is_block && ioctl(fd, BLKGETSIZE64, &blk->size) < 0)
        return fail(errbuf, size, -errno, "cannot get the size of %s: %s", image, strerror(errno));
    if (!is_block && st->st_blksize >= 512 && st->st_blksize <= 65536 &&
        (st->st_blksize & (st->st_blksize - 1)) == 0)
        blk->grain = (uint32_t)st->st_blksize;
    blk->can_punch = !blk->read_only && probe_punch(fd, blk, is_block);
    if (!realpath(image, blk->identity))
        return fail(errbuf, size, -errno, "%s: %s", image, strerror(errno));
    return 0;
}

/* Opens the file once more, around the page cache, and asks what it wants then. */
static int open_direct(int fd, const char *image, struct blk *blk, char *errbuf, size_t size)
{
    char path[32];
    struct statx st;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    blk->direct_fd = open(path, (blk->read_only ? O_RDONLY : O_RDWR) | O_DIRECT | O_CLOEXEC);
    if (blk->direct_fd < 0)
        return fail(errbuf, size, -errno,
                    "%s cannot be used without the page cache: %s (leave "
                    "--cache none out)",
                    image, strerror(errno));
    blk->direct_memory = blk->direct_offset = 4096; /* enough for all that does not tell */
    if (statx(blk->direct_fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 &&
        (st.stx_mask & STATX_DIOALIGN) && st.stx_dio_mem_align && st.stx_dio_offset_align) {
        blk->direct_memory = st.stx_dio_mem_align;
        blk->direct_offset = st.stx_dio_offset_align;
    }
    return 0;
}

static int attach_aio(struct blk *base, int fd, enum blk_aio aio, struct blk **out, char *errbuf,
                      size_t size)
{
    int rc;

    snprintf(base->about, sizeof(base->about), "io_uring");
    rc = aio == BLK_AIO_THREADS ? -ENOSYS : blk_uring_new(base, fd, out);
    if (rc == 0)
        return 0;
    if (aio == BLK_AIO_URING)
        return fail(errbuf, size, rc, "io_uring does not work here: %s (leave --aio=uring out)",
                    strerror(-rc));
    snprintf(base->about, sizeof(base->about), "threads");
    rc = blk_threads_new(base, fd, out);
    return rc == 0 ? 0 : fail(errbuf, size, rc, "cannot start threads: %s", strerror(-rc));
}

int blk_open(const char *image, bool read_only, bool direct, enum blk_aio aio, struct blk **out,
             char *errbuf, size_t errbuf_size)
{
    struct blk base = { .read_only = read_only, .direct_fd = -1, .claim_fd = -1 };
    struct stat st = { 0 };
    int fd, rc;

    _Static_assert(sizeof(base.identity) >= PATH_MAX, "realpath() fits");
    if (strncmp(image, "mem:", 4) == 0 || strncmp(image, "null:", 5) == 0)
        return open_volatile(image, read_only, out, errbuf, errbuf_size);
    fd = open_file(image, read_only, &st, errbuf, errbuf_size);
    if (fd < 0)
        return fd;
    base.fd = fd;
    rc = measure(fd, image, &st, &base, errbuf, errbuf_size);
    if (rc == 0 && direct)
        rc = open_direct(fd, image, &base, errbuf, errbuf_size);
    if (rc == 0)
        rc = attach_aio(&base, fd, aio, out, errbuf, errbuf_size);
    if (rc < 0 && base.direct_fd >= 0)
        close(base.direct_fd);
    if (rc < 0)
        close(fd);
    return rc;
}
