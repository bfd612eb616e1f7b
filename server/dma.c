/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The client's memory: mapping and unmapping it, and copying from and to it. A mapping is reached
 * in one of three ways: mapped here, by file I/O, or by messages.
 *
 * A mapping that is in use (ob_dma_get) when it has to go leaves the table at once, so that nobody
 * finds it any more, and stays in memory until the last user has put it. A DMA_UNMAP is answered
 * only then; a client that left needs no answer. Rules: R-DMA-5 to R-DMA-17.
 */
#include "server/internal.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* ---- DMA_MAP ------------------------------------------------------------------------------ */

static void map_free(struct ob_server *server, struct ob_dma_map *map)
{
    if (map->file)
        ob_dma_file_close(&server->dma.files, map->file);
    map->file = NULL;
    if (map->counted)
        server->dma.bytes -= map->size;
    map->counted = false;
    ob_dma_map_recycle(&server->dma, map);
}

static enum ob_dma_mode mode_of(const struct ob_wire_dma_map *request, int fd)
{
    if (fd < 0)
        return OB_DMA_BY_MESSAGE;
    if ((request->flags & OB_DMA_ACCESS_FILE) && !(request->flags & OB_DMA_ACCESS_MMAP))
        return OB_DMA_BY_FILE;
    return OB_DMA_BY_MMAP;
}

/* fd is taken. */
static int map_new(struct ob_server *server, const struct ob_wire_dma_map *request, int fd,
                   struct ob_dma_map **out)
{
    struct ob_dma_map *map = ob_dma_map_alloc(&server->dma);
    int rc;

    if (!map) {
        if (fd >= 0)
            ob_fd_discard(fd, server);
        return -ENOMEM;
    }
    /* A reader may still look at what was here before. */
    __atomic_store_n(&map->address, request->address, __ATOMIC_RELAXED);
    __atomic_store_n(&map->size, request->size, __ATOMIC_RELAXED);
    map->offset = request->offset;
    map->session = server->session->serial;
    map->prot = request->flags & (OB_DMA_READ | OB_DMA_WRITE);
    map->mode = mode_of(request, fd);
    rc = fd < 0 ? 0 : ob_dma_file_open(&server->dma.files, map, fd);
    if (rc < 0)
        map_free(server, map);
    else
        *out = map;
    return rc;
}

static bool same_map(const struct ob_dma_map *a, const struct ob_dma_map *b)
{
    return a->address == b->address && a->size == b->size && a->prot == b->prot &&
           a->mode == b->mode && a->offset == b->offset && ob_dma_file_same(a->file, b->file);
}

/* The client's user has to learn of it, and the client may not tell. Once. */
static void say_refused(struct ob_server *server, uint64_t address, int rc)
{
    struct ob_session *session = server->session;
    const char *why = rc == -EPERM    ? "its file is not shared memory (tmpfs, hugetlbfs)"
                      : rc == -EMFILE ? "too many files to read and write"
                      : rc == -ENOSPC ? "it is more than this server keeps"
                                      : NULL;

    if (!why || session->told_refused)
        return;
    session->told_refused = true;
    ob_log(server, OB_LOG_ERROR, "memory of the client at 0x%llx is refused: %s",
           (unsigned long long)address, why);
}

static int insert(struct ob_dma_table *table, struct ob_dma_map *map)
{
    uint64_t bytes = map->file ? map->size : 0;
    int rc = bytes > table->max_bytes - table->bytes ? -ENOSPC : ob_dma_table_insert(table, map);

    if (rc < 0)
        return rc;
    table->bytes += bytes;
    map->counted = bytes > 0;
    return 0;
}

/* A mapping that is there already, the same in everything, is no error: libvfio-user's clients
 * have learned to rely on that. Any other overlap is. */
int ob_dma_add(struct ob_server *server, const struct ob_wire_dma_map *request, int fd)
{
    struct ob_dma_table *table = &server->dma;
    struct ob_dma_map *map, *there;
    int rc = map_new(server, request, fd, &map);

    if (rc < 0) {
        say_refused(server, request->address, rc);
        return rc;
    }
    there = ob_dma_table_from(table, map->address);
    if (there && there->address <= map->address + (map->size - 1))
        rc = same_map(there, map) ? 1 : -EEXIST;
    if (rc == 0)
        rc = insert(table, map);
    if (rc != 0)
        map_free(server, map);
    say_refused(server, request->address, rc);
    return rc < 0 ? rc : 0;
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
        uint8_t *bits = ob_scratch(server, bitmap->size); /* as large as before */

        ob_dirty_take(server, request->address, request->size, bitmap->pgsize, true, bits);
        memcpy(reply.fixed + reply.len, bitmap, sizeof(*bitmap));
        reply.len += sizeof(*bitmap);
        reply.data = bits;
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

/* Frees the mappings that have left the table and that nobody holds any more. */
static void sweep(struct ob_server *server)
{
    struct ob_dma_map **link = &server->dma.leaving, *map;
    unsigned freed = 0;

    /* Who lets go from here on wakes us again. */
    __atomic_store_n(&server->dma.check, false, __ATOMIC_SEQ_CST);
    for (map = *link; map; map = map->next)
        map->held = false;
    ob_dma_holds_mark(&server->dma);
    while ((map = *link) != NULL) {
        if (map->held) {
            link = &map->next;
            continue;
        }
        *link = map->next;
        freed += server->session && map->session == server->session->serial;
        map_free(server, map);
    }
    while (freed-- > 0 && server->session->unmap.left > 0)
        unmap_progress(server->session);
}

/* Another thread has let memory go, or closed what keeps newcomers out. */
/* syscalls: read */
static void on_wake(void *opaque, uint32_t events)
{
    struct ob_server *server = opaque;
    uint64_t count;

    (void)events;
    if (read(server->dma.wake_fd, &count, sizeof(count)) == sizeof(count)) {
        sweep(server);
        ob_lobby_reopen(server);
    }
}

/* The mapping is found no more. It goes at the next sweep, if nobody holds it then. */
static void retire(struct ob_dma_table *table, struct ob_dma_map *map)
{
    __atomic_store_n(&table->check, true, __ATOMIC_SEQ_CST); /* nobody need wake us */
    ob_dma_table_take_out(table, map);
    map->next = table->leaving;
    table->leaving = map;
}

static void release(struct ob_session *session, struct ob_dma_map *map)
{
    struct ob_server *server = session->server;

    retire(&server->dma, map);
    session->unmap.left++;
    if (server->ops.dma_unmap)
        server->ops.dma_unmap(server->opaque, map->address, map->size);
}

int ob_dma_remove(struct ob_session *session, const struct ob_wire_hdr *hdr,
                  const struct ob_wire_dma_unmap *request, const struct ob_wire_bitmap *bitmap)
{
    struct ob_server *server = session->server;
    struct ob_pending_unmap unmap = { .hdr = *hdr, .request = *request, .left = 1 };
    struct ob_dma_map *map = NULL;

    if (!(request->flags & OB_DMA_UNMAP_ALL)) {
        map = ob_dma_table_from(&server->dma, request->address);
        if (!map || map->address != request->address || map->size != request->size)
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
    if (map)
        release(session, map);
    else
        while ((map = ob_dma_table_last(&server->dma)) != NULL)
            release(session, map);
    sweep(server);
    unmap_progress(session);
    return OB_ANSWER_LATER;
}

/* ---- Limits ------------------------------------------------------------------------------- */

int ob_server_set_dma_limits(struct ob_server *server, uint32_t max_maps, uint64_t max_bytes)
{
    if (max_maps == 0 || max_maps > OB_DMA_MAPS_MAX || server->session)
        return -EINVAL;
    server->dma.max_count = max_maps;
    server->dma.max_bytes = max_bytes;
    return 0;
}

void ob_server_set_dma_files(struct ob_server *server, enum ob_dma_file_kinds kinds)
{
    server->dma.files.any = kinds == OB_DMA_FILES_ANY;
}

/* ---- The life of it ----------------------------------------------------------------------- */

int ob_dma_init(struct ob_server *server)
{
    struct ob_dma_table *table = &server->dma;

    table->files.owner = server;
    table->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (table->wake_fd >= 0)
        table->wake = ob_source_add(server, table->wake_fd, EPOLLIN, on_wake, server);
    return table->wake ? 0 : -errno;
}

void ob_dma_detach(struct ob_server *server)
{
    struct ob_dma_map *map;

    if (server->session)
        server->session->unmap.left = 0; /* nobody waits for the answer */
    while ((map = ob_dma_table_last(&server->dma)) != NULL)
        retire(&server->dma, map);
    sweep(server);
}

void ob_dma_fini(struct ob_server *server)
{
    ob_dma_detach(server);
    ob_dirty_fini(&server->dirty);
    ob_dma_holds_fini(&server->dma);
    ob_dma_table_fini(&server->dma);
    ob_source_del(server, server->dma.wake);
    if (server->dma.wake_fd >= 0)
        close(server->dma.wake_fd);
}

void ob_dma_check_guards(struct ob_session *session)
{
    const struct ob_dma_table *table = &session->server->dma;
    const struct ob_dma_map *map = NULL;

    while ((map = ob_dma_table_after(table, map)) != NULL)
        if (ob_dma_file_cut(map->file))
            ob_session_doom(session, "it cut the file behind its memory at 0x%llx",
                            (unsigned long long)map->address);
}

/* ---- Copying ------------------------------------------------------------------------------ */

/* Whether all of it is mapped for prot. len > 0. */
static int check_range(struct ob_dma_table *table, uint64_t address, uint64_t len, uint32_t prot)
{
    if (address + (len - 1) < address)
        return -EFAULT;
    for (;;) {
        const struct ob_dma_map *map = ob_dma_table_find(table, address);
        uint64_t there;

        if (!map)
            return -EFAULT;
        if (prot & ~(uint32_t)map->prot)
            return -EACCES;
        there = map->size - (address - map->address);
        if (there >= len)
            return 0;
        address += there;
        len -= there;
    }
}

static int copy_piece(struct ob_server *server, const struct ob_dma_map *map, uint64_t address,
                      uint8_t *data, uint64_t len, bool is_write, int64_t deadline)
{
    uint64_t at = address - map->address;

    switch ((enum ob_dma_mode)map->mode) {
    case OB_DMA_BY_MMAP:
        if (is_write)
            memcpy(map->ptr + at, data, len);
        else
            memcpy(data, map->ptr + at, len);
        return ob_dma_file_cut(map->file) ? -EFAULT : 0;
    case OB_DMA_BY_FILE:
        return ob_dma_file_io(map, at, data, len, is_write);
    case OB_DMA_BY_MESSAGE:
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
        const struct ob_dma_map *map = ob_dma_table_find(&server->dma, address);
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

int ob_dma_read(struct ob_server *server, uint64_t address, void *data, uint64_t len)
{
    return transfer(server, address, data, len, false);
}

int ob_dma_write(struct ob_server *server, uint64_t address, const void *data, uint64_t len)
{
    return transfer(server, address, (void *)data, len, true);
}
