/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The client's memory: a table of its mappings by address, none overlapping. A mapping is reached
 * in one of three ways: mapped here, by file I/O, or by messages.
 *
 * A mapping that is in use (ob_dma_get) when it has to go leaves the table at once, so that nobody
 * finds it any more, and stays in memory until the last user has put it. A DMA_UNMAP is answered
 * only then; a client that left needs no answer. Rules: R-DMA-5 to R-DMA-17.
 */
#include "server/internal.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

enum mode { MODE_MMAP, MODE_FILE, MODE_MESSAGE };

struct ob_dma_map {
    uint64_t address, size;
    uint64_t offset; /* in the file */
    uint32_t prot;   /* OB_DMA_READ | OB_DMA_WRITE */
    enum mode mode;
    dev_t dev; /* which file */
    ino_t ino;
    int fd;     /* MODE_FILE, else -1 */
    void *base; /* MODE_MMAP: what was mapped */
    size_t length;
    uint8_t *ptr; /* of address */
    int guard;    /* against the file being cut */
    unsigned refs;
    bool gone;       /* not in the table any more */
    uint64_t waiter; /* serial of the session that waits for it to be free; 0: nobody */
};

static void map_free(struct ob_dma_map *map)
{
    ob_guard_del(map->guard);
    if (map->base)
        munmap(map->base, map->length);
    if (map->fd >= 0)
        close(map->fd);
    free(map);
}

static uint64_t last_of(const struct ob_dma_map *map)
{
    return map->address + (map->size - 1);
}

/* Index of the first mapping that ends at or after address; count when there is none. */
static size_t lookup(const struct ob_dma_table *table, uint64_t address)
{
    size_t low = 0, high = table->count;

    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (last_of(table->maps[mid]) < address)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* The mapping that holds address, or NULL. Most look-ups end where the one before did. */
static struct ob_dma_map *find(struct ob_dma_table *table, uint64_t address)
{
    struct ob_dma_map *map;

    if (table->hint < table->count) {
        map = table->maps[table->hint];
        if (address - map->address < map->size)
            return map;
    }
    table->hint = lookup(table, address);
    if (table->hint == table->count)
        return NULL;
    map = table->maps[table->hint];
    return map->address <= address ? map : NULL;
}

/* ---- DMA_MAP ------------------------------------------------------------------------------ */

/* Mappings of huge pages begin and end at huge pages. */
static uint64_t page_size_of(int fd)
{
    struct statfs fs;

    if (fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC)
        return (uint64_t)fs.f_bsize;
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

static int map_memory(struct ob_dma_map *map, int fd)
{
    uint64_t page = page_size_of(fd), slack = map->offset % page;
    int prot =
        (map->prot & OB_DMA_READ ? PROT_READ : 0) | (map->prot & OB_DMA_WRITE ? PROT_WRITE : 0);

    map->length = (size_t)((slack + map->size + page - 1) / page * page);
    map->base = mmap(NULL, map->length, prot, MAP_SHARED, fd, (off_t)(map->offset - slack));
    if (map->base == MAP_FAILED) {
        map->base = NULL;
        return -errno;
    }
    madvise(map->base, map->length, MADV_DONTDUMP);
    map->ptr = (uint8_t *)map->base + slack;
    map->guard = ob_guard_add(map->base, map->length);
    return 0;
}

/* The file must have the memory: it would be a SIGBUS later. */
static int check_file(struct ob_dma_map *map, int fd)
{
    struct stat st;

    if (fstat(fd, &st) != 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || map->offset > (uint64_t)st.st_size ||
        map->size > (uint64_t)st.st_size - map->offset)
        return -EINVAL;
    map->dev = st.st_dev;
    map->ino = st.st_ino;
    return 0;
}

static enum mode mode_of(const struct ob_wire_dma_map *request, int fd)
{
    if (fd < 0)
        return MODE_MESSAGE;
    if ((request->flags & OB_DMA_ACCESS_FILE) && !(request->flags & OB_DMA_ACCESS_MMAP))
        return MODE_FILE;
    return MODE_MMAP;
}

static int map_open(struct ob_dma_map *map, int fd)
{
    int rc = check_file(map, fd);

    if (rc < 0 || map->mode == MODE_FILE)
        return rc;
    return map_memory(map, fd);
}

/* fd is taken. */
static int map_new(const struct ob_wire_dma_map *request, int fd, struct ob_dma_map **out)
{
    struct ob_dma_map *map = calloc(1, sizeof(*map));
    int rc = 0;

    if (!map) {
        if (fd >= 0)
            close(fd);
        return -ENOMEM;
    }
    map->guard = -1;
    map->address = request->address;
    map->size = request->size;
    map->offset = request->offset;
    map->prot = request->flags & (OB_DMA_READ | OB_DMA_WRITE);
    map->mode = mode_of(request, fd);
    map->fd = fd;
    if (fd >= 0)
        rc = map_open(map, fd);
    if (rc < 0) {
        map_free(map);
        return rc;
    }
    if (map->mode == MODE_MMAP) { /* which needs its fd no more */
        close(map->fd);
        map->fd = -1;
    }
    *out = map;
    return 0;
}

static bool same_map(const struct ob_dma_map *a, const struct ob_dma_map *b)
{
    return a->address == b->address && a->size == b->size && a->prot == b->prot &&
           a->mode == b->mode && a->offset == b->offset && a->dev == b->dev && a->ino == b->ino;
}

static int table_insert(struct ob_dma_table *table, size_t at, struct ob_dma_map *map)
{
    if (table->count == OB_DMA_MAPS_MAX)
        return -ENOSPC;
    if (table->count == table->room) {
        size_t room = table->room ? 2 * table->room : 64;
        struct ob_dma_map **maps = realloc(table->maps, room * sizeof(*maps));

        if (!maps)
            return -ENOMEM;
        table->maps = maps;
        table->room = room;
    }
    memmove(table->maps + at + 1, table->maps + at, (table->count - at) * sizeof(*table->maps));
    table->maps[at] = map;
    table->count++;
    return 0;
}

/* A mapping that is there already, the same in everything, is no error: libvfio-user's clients
 * have learned to rely on that. Any other overlap is. */
int ob_dma_table_add(struct ob_server *server, const struct ob_wire_dma_map *request, int fd)
{
    struct ob_dma_table *table = &server->dma;
    struct ob_dma_map *map;
    int rc = map_new(request, fd, &map);
    size_t at;

    if (rc < 0)
        return rc;
    at = lookup(table, map->address);
    if (at < table->count && table->maps[at]->address <= last_of(map)) {
        rc = same_map(table->maps[at], map) ? 0 : -EEXIST;
        map_free(map);
        return rc;
    }
    rc = table_insert(table, at, map);
    if (rc < 0)
        map_free(map);
    return rc;
}

/* ---- DMA_UNMAP ---------------------------------------------------------------------------- */

static void answer_unmap(struct ob_session *session)
{
    struct ob_server *server = session->server;
    const struct ob_wire_dma_unmap *request = &session->unmap.request;
    struct ob_wire_bitmap *bitmap = &session->unmap.bitmap;
    struct ob_reply reply = { .len = sizeof(*request) };

    memcpy(reply.fixed, request, sizeof(*request));
    if (request->flags & OB_DMA_UNMAP_GET_DIRTY) {
        ob_dirty_take(server, request->address, request->size, bitmap->pgsize, server->scratch);
        memcpy(reply.fixed + reply.len, bitmap, sizeof(*bitmap));
        reply.len += sizeof(*bitmap);
        reply.data = server->scratch;
        reply.data_len = bitmap->size;
    } else if (request->flags & OB_DMA_UNMAP_ALL) {
        ob_dirty_forget(&server->dirty, 0, UINT64_MAX);
    } else {
        ob_dirty_forget(&server->dirty, request->address, request->address + (request->size - 1));
    }
    ob_answer(session, &session->unmap.hdr, 0, &reply);
}

/* One mapping is out of the way. */
static void unmap_progress(struct ob_session *session)
{
    if (--session->unmap.left == 0) {
        answer_unmap(session);
        ob_session_rearm(session);
    }
}

/* The mapping, already out of the table, goes when nobody uses it any more. */
static void release(struct ob_session *session, struct ob_dma_map *map)
{
    struct ob_server *server = session->server;
    uint64_t address = map->address, size = map->size;

    map->refs++; /* the device may put its last one in the callback */
    map->gone = true;
    map->waiter = session->serial;
    session->unmap.left++;
    if (server->ops.dma_unmap)
        server->ops.dma_unmap(server->opaque, address, size);
    ob_dma_put(server, &(struct ob_dma_ref){ .map = map });
}

int ob_dma_table_remove(struct ob_session *session, const struct ob_wire_hdr *hdr,
                        const struct ob_wire_dma_unmap *request,
                        const struct ob_wire_bitmap *bitmap)
{
    struct ob_server *server = session->server;
    struct ob_dma_table *table = &server->dma;
    struct ob_pending_unmap unmap = { .hdr = *hdr, .request = *request, .left = 1 };

    if (!(request->flags & OB_DMA_UNMAP_ALL)) {
        size_t at = lookup(table, request->address);

        if (at == table->count || table->maps[at]->address != request->address ||
            table->maps[at]->size != request->size)
            return -ENOENT;
    }
    if (request->flags & OB_DMA_UNMAP_GET_DIRTY) {
        if (!server->dirty.on)
            return -EINVAL;
        unmap.bitmap = *bitmap;
        unmap.bitmap.size = ob_bitmap_size(request->size, bitmap->pgsize);
        if (!ob_scratch(server, unmap.bitmap.size)) /* no request is read before the answer */
            return -ENOMEM;
    }
    session->unmap = unmap;
    if (request->flags & OB_DMA_UNMAP_ALL) {
        while (table->count)
            release(session, table->maps[--table->count]);
    } else {
        size_t at = lookup(table, request->address);
        struct ob_dma_map *map = table->maps[at];

        table->count--;
        memmove(table->maps + at, table->maps + at + 1, (table->count - at) * sizeof(*table->maps));
        release(session, map);
    }
    unmap_progress(session);
    return OB_ANSWER_LATER;
}

bool ob_dma_mapping(const struct ob_server *server, size_t i, uint64_t *first, uint64_t *last)
{
    const struct ob_dma_table *table = &server->dma;

    if (i >= table->count)
        return false;
    *first = table->maps[i]->address;
    *last = last_of(table->maps[i]);
    return true;
}

bool ob_dma_map_lost(const struct ob_server *server, const struct ob_dma_map *map)
{
    return map->gone && !(server->session && map->waiter == server->session->serial);
}

void ob_dma_detach(struct ob_server *server)
{
    struct ob_dma_table *table = &server->dma;

    while (table->count) {
        struct ob_dma_map *map = table->maps[--table->count];

        map->gone = true;
        if (map->refs == 0)
            map_free(map);
    }
}

void ob_dma_fini(struct ob_server *server)
{
    ob_dma_detach(server);
    ob_dirty_fini(&server->dirty);
    free(server->dma.maps);
}

/* ---- Access ------------------------------------------------------------------------------- */

/* Whether all of it is mapped for prot. len > 0. */
static int check_range(struct ob_dma_table *table, uint64_t address, uint64_t len, uint32_t prot)
{
    if (address + (len - 1) < address)
        return -EFAULT;
    for (;;) {
        struct ob_dma_map *map = find(table, address);
        uint64_t there;

        if (!map)
            return -EFAULT;
        if (prot & ~map->prot)
            return -EACCES;
        there = map->size - (address - map->address);
        if (there >= len)
            return 0;
        address += there;
        len -= there;
    }
}

int ob_dma_get(struct ob_server *server, uint64_t address, uint64_t len, uint32_t prot,
               struct ob_dma_ref *out)
{
    struct ob_dma_map *map;
    uint32_t slot = 0;
    int rc;

    if (len == 0)
        return -EINVAL;
    rc = check_range(&server->dma, address, len, prot);
    if (rc < 0)
        return rc;
    map = find(&server->dma, address);
    if (map->mode != MODE_MMAP || map->size - (address - map->address) < len)
        return -EOPNOTSUPP;
    if (prot & OB_DMA_WRITE) {
        rc = ob_dirty_hold(&server->dirty, map, address, len, &slot);
        if (rc < 0)
            return rc;
    }
    map->refs++;
    out->slot = slot;
    out->ptr = map->ptr + (address - map->address);
    out->map = map;
    return 0;
}

void ob_dma_put(struct ob_server *server, struct ob_dma_ref *ref)
{
    struct ob_dma_map *map = ref->map;
    struct ob_session *session = server->session;
    bool waited;

    if (ref->slot)
        ob_dirty_let_go(server, ref->slot);
    *ref = (struct ob_dma_ref){ 0 };
    if (--map->refs > 0 || !map->gone)
        return;
    waited = session && map->waiter == session->serial;
    map_free(map);
    if (waited)
        unmap_progress(session);
}

static int file_io(const struct ob_dma_map *map, uint64_t at, uint8_t *data, uint64_t len,
                   bool is_write)
{
    while (len > 0) {
        off_t pos = (off_t)(map->offset + at);
        ssize_t n = is_write ? pwrite(map->fd, data, len, pos) : pread(map->fd, data, len, pos);

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

static int copy_piece(struct ob_server *server, const struct ob_dma_map *map, uint64_t address,
                      uint8_t *data, uint64_t len, bool is_write, int64_t deadline)
{
    uint64_t at = address - map->address;

    switch (map->mode) {
    case MODE_MMAP:
        if (is_write)
            memcpy(map->ptr + at, data, len);
        else
            memcpy(data, map->ptr + at, len);
        return ob_guard_hit(map->guard) ? -EFAULT : 0;
    case MODE_FILE:
        return file_io(map, at, data, len, is_write);
    case MODE_MESSAGE:
        break;
    }
    return ob_dma_message(server->session, is_write ? OB_CMD_DMA_WRITE : OB_CMD_DMA_READ, address,
                          data, len, deadline);
}

/* Mappings do not change under this: what the client sends while a message waits is kept. */
static int transfer(struct ob_server *server, uint64_t address, uint8_t *data, uint64_t len,
                    bool is_write)
{
    int64_t deadline = ob_deadline_ns(server->timeout_ms);
    int rc;

    if (!server->session)
        return -ENOTCONN;
    if (len == 0)
        return 0;
    rc = check_range(&server->dma, address, len, is_write ? OB_DMA_WRITE : OB_DMA_READ);
    while (rc == 0 && len > 0) {
        struct ob_dma_map *map = find(&server->dma, address);
        uint64_t n = map->size - (address - map->address);

        if (n > len)
            n = len;
        if (is_write)
            ob_dirty_mark(&server->dirty, address, n);
        rc = copy_piece(server, map, address, data, n, is_write, deadline);
        address += n;
        data += n;
        len -= n;
    }
    return rc;
}

void ob_dma_check_guards(struct ob_session *session)
{
    const struct ob_dma_table *table = &session->server->dma;

    for (size_t i = 0; i < table->count; i++)
        if (ob_guard_hit(table->maps[i]->guard))
            ob_session_doom(session, "it cut the file behind its memory at 0x%llx",
                            (unsigned long long)table->maps[i]->address);
}

int ob_dma_read(struct ob_server *server, uint64_t address, void *data, uint64_t len)
{
    return transfer(server, address, data, len, false);
}

int ob_dma_write(struct ob_server *server, uint64_t address, const void *data, uint64_t len)
{
    return transfer(server, address, (void *)data, len, true);
}
