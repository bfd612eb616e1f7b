/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The files behind the client's memory. A file of shared memory (tmpfs, huge pages) is mapped once,
 * as a whole, and shared by all mappings of it; so they may be many, each costs little, and the
 * process does not run out of areas (vm.max_map_count). Where that cannot be, what one mapping
 * needs is mapped for it alone: on other file systems, which do not all tell their files apart by
 * device and inode number; and where the whole is too large to be had.
 *
 * A file is one client's: it is found by the session, too. A file that has grown is mapped anew.
 * Where the client wants file I/O, the descriptor is kept; that of a file of shared memory once.
 * All of this is the server's thread's.
 *
 * What is not shared memory is refused, unless the embedder takes it: a page of it may be a file
 * system's of the client's own making (FUSE), whose answer a touch of it would wait for, for ever.
 * So would already fstat(), and close(): see channel/discard.c.
 */
#include "server/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define WHOLE_BYTES_MAX ((uint64_t)16 << 40) /* of the 128 TiB that a process has */

struct ob_dma_file {
    dev_t dev;
    ino_t ino;
    uint64_t session;
    uint32_t prot;
    uint32_t refs;
    uint8_t *base; /* what is mapped; NULL: nothing */
    size_t length;
    uint64_t start; /* where in the file */
    int guard;      /* against its being cut */
    int fd;         /* OB_DMA_BY_FILE, else -1 */
    bool memory;    /* shared memory */
    bool whole;     /* all of it is mapped */
    bool shared;    /* it is in the table of files: the largest that there is of it */
    struct ob_dma_file *next;
};

static struct ob_dma_file **chain_of(struct ob_dma_files *files, ino_t ino)
{
    return &files->chains[ino % OB_DMA_FILE_CHAINS];
}

static bool is_of(const struct ob_dma_file *file, const struct stat *st,
                  const struct ob_dma_map *map)
{
    return file->ino == st->st_ino && file->dev == st->st_dev && file->prot == map->prot &&
           file->session == map->session && (file->fd >= 0) == (map->mode == OB_DMA_BY_FILE);
}

/* A file that is mapped already as far as the mapping needs, or kept. */
static struct ob_dma_file *find(struct ob_dma_files *files, const struct stat *st,
                                const struct ob_dma_map *map)
{
    struct ob_dma_file *file = *chain_of(files, st->st_ino);

    for (; file; file = file->next)
        if (is_of(file, st, map) && (file->fd >= 0 || map->offset + map->size <= file->length))
            return file;
    return NULL;
}

static void unlist(struct ob_dma_files *files, struct ob_dma_file *file)
{
    struct ob_dma_file **link = chain_of(files, file->ino);

    while (*link != file)
        link = &(*link)->next;
    *link = file->next;
    file->shared = false;
}

/* In the place of a smaller one, which stays for the mappings that it has: a client that lets its
 * file grow all the time must not make the list long. */
static void list(struct ob_dma_files *files, struct ob_dma_file *file, const struct stat *st,
                 const struct ob_dma_map *map)
{
    struct ob_dma_file **chain = chain_of(files, file->ino), *old = *chain;

    while (old && !is_of(old, st, map))
        old = old->next;
    if (old)
        unlist(files, old);
    file->shared = true;
    file->next = *chain;
    *chain = file;
}

/* Whether the descriptor itself allows what the mapping is for; mmap() would say so. */
/* syscalls: fcntl(1=F_GETFL) */
static int check_access(int fd, uint32_t prot)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || (flags & O_PATH))
        return -EBADF;
    if ((flags & O_ACCMODE) == O_WRONLY)
        return -EACCES;
    return (prot & OB_DMA_WRITE) && (flags & O_ACCMODE) != O_RDWR ? -EACCES : 0;
}

/* syscalls: mmap(2&PROT_EXEC=0), munmap, madvise */
static int map_range(struct ob_dma_file *file, int fd, uint64_t start, uint64_t end, uint64_t page)
{
    int prot =
        (file->prot & OB_DMA_READ ? PROT_READ : 0) | (file->prot & OB_DMA_WRITE ? PROT_WRITE : 0);
    size_t length;
    void *base;

    start -= start % page;
    length = (size_t)((end - start + page - 1) / page * page);
    base = mmap(NULL, length, prot, MAP_SHARED, fd, (off_t)start);
    if (base == MAP_FAILED)
        return -errno;
    madvise(base, length, MADV_DONTDUMP);
    file->base = base;
    file->length = length;
    file->start = start;
    file->guard = ob_guard_add(base, length);
    if (file->guard < 0) { /* other servers of the process have them all */
        munmap(base, length);
        file->base = NULL;
        return -ENOMEM;
    }
    return 0;
}

/* Mappings of huge pages begin and end at huge pages. */
/* syscalls: fstatfs */
static int map_file(struct ob_dma_files *files, struct ob_dma_file *file,
                    const struct ob_dma_map *map, int fd, const struct stat *st)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), size = (uint64_t)st->st_size;
    struct statfs fs;

    if (fstatfs(fd, &fs) != 0)
        return -errno;
    if (fs.f_type == HUGETLBFS_MAGIC)
        page = (uint64_t)fs.f_bsize;
    if (file->memory && size <= WHOLE_BYTES_MAX - files->whole_bytes &&
        map_range(file, fd, 0, size, page) == 0) {
        files->whole_bytes += file->length;
        file->whole = true;
        list(files, file, st, map);
        return 0;
    }
    return map_range(file, fd, map->offset, map->offset + map->size, page);
}

/* Whether there may be one more. */
static int check_room(const struct ob_dma_files *files, const struct ob_dma_map *map)
{
    if (files->count == OB_DMA_FILES_MAX)
        return -ENOSPC;
    return map->mode == OB_DMA_BY_FILE && files->nfds == OB_DMA_FDS_MAX ? -EMFILE : 0;
}

/* Takes the descriptor where it is needed on. */
static int new_file(struct ob_dma_files *files, const struct ob_dma_map *map, int *fd,
                    const struct stat *st, struct ob_dma_file **out)
{
    struct ob_dma_file *file;
    int rc = check_room(files, map);

    if (rc < 0)
        return rc;
    file = calloc(1, sizeof(*file));
    if (!file)
        return -ENOMEM;
    file->dev = st->st_dev;
    file->ino = st->st_ino;
    file->session = map->session;
    file->prot = map->prot;
    file->guard = -1;
    file->fd = -1;
    file->memory = ob_fd_is_memory(*fd);
    if (map->mode == OB_DMA_BY_MMAP)
        rc = map_file(files, file, map, *fd, st);
    if (rc < 0) {
        free(file);
        return rc;
    }
    if (map->mode == OB_DMA_BY_FILE) {
        file->fd = *fd;
        *fd = -1;
        files->nfds++;
        if (file->memory)
            list(files, file, st, map);
    }
    files->count++;
    *out = file;
    return 0;
}

/* syscalls: fstat, newfstatat */
static int open_file(struct ob_dma_files *files, struct ob_dma_map *map, int *fd)
{
    struct ob_dma_file *file;
    struct stat st;
    int rc;

    if (!files->any && !ob_fd_is_memory(*fd))
        return errno == EBADF ? -EBADF : -EPERM;
    if (fstat(*fd, &st) != 0)
        return -errno;
    /* The file must have the memory: it would be a SIGBUS later. */
    if (!S_ISREG(st.st_mode) || map->offset > (uint64_t)st.st_size ||
        map->size > (uint64_t)st.st_size - map->offset)
        return -EINVAL;
    rc = check_access(*fd, map->prot);
    if (rc < 0)
        return rc;
    file = find(files, &st, map);
    if (!file)
        rc = new_file(files, map, fd, &st, &file);
    if (rc < 0)
        return rc;
    file->refs++;
    map->file = file;
    if (file->base)
        map->ptr = file->base + (map->offset - file->start);
    return 0;
}

int ob_dma_file_open(struct ob_dma_files *files, struct ob_dma_map *map, int fd)
{
    int rc = open_file(files, map, &fd);

    if (rc == 0 && fd >= 0 && map->file->memory)
        close(fd); /* not the last reference: it is mapped */
    else if (fd >= 0)
        ob_fd_discard(fd, files->owner);
    return rc;
}

void ob_dma_file_close(struct ob_dma_files *files, struct ob_dma_file *file)
{
    if (--file->refs > 0)
        return;
    if (file->shared)
        unlist(files, file);
    if (file->whole)
        files->whole_bytes -= file->length;
    ob_guard_del(file->guard);
    if (file->base)
        munmap(file->base, file->length);
    if (file->fd >= 0) {
        ob_fd_discard(file->fd, files->owner);
        files->nfds--;
    }
    files->count--;
    free(file);
}

bool ob_dma_file_same(const struct ob_dma_file *a, const struct ob_dma_file *b)
{
    return a == b || (a && b && a->dev == b->dev && a->ino == b->ino);
}

bool ob_dma_file_cut(const struct ob_dma_file *file)
{
    return file && ob_guard_hit(file->guard);
}

/* syscalls: pread64, pwrite64 */
int ob_dma_file_io(const struct ob_dma_map *map, uint64_t at, uint8_t *data, uint64_t len,
                   bool is_write)
{
    int fd = map->file->fd;

    while (len > 0) {
        off_t pos = (off_t)(map->offset + at);
        ssize_t n = is_write ? pwrite(fd, data, len, pos) : pread(fd, data, len, pos);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO; /* the file was cut */
        at += (uint64_t)n;
        data += n;
        len -= (uint64_t)n;
    }
    return 0;
}
