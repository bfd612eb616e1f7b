/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The state file (--state): what a process that was killed leaves to the next one.
 *
 * It is mapped, so each store is there when the process is gone, without a system call; it has all
 * the room it will need from the start, as a full disk would be a SIGBUS later. Its parts:
 *
 * - Checkpoints: everything that changes rarely, in the format of a migration: registers, config
 *   space, queues, all of the admin queue. Two, of which one counts: a new one is made beside it,
 *   before the client, or the host, can learn of what has changed.
 *
 * - Records of each I/O queue: where it is, and the commands that are under way. They change with
 *   each command (state_file.h).
 *
 * - Doorbells: what the client wrote into them, in place of the page of doorbells.c.
 *
 * A record counts when its queue lives in the checkpoint. So a queue is not started anew before
 * there is a checkpoint without it.
 *
 * It is written by us, and never read but at the start. Only what is below counts there, and
 * nothing of it is believed.
 */
#include "state_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_VERSION 1u
static const char magic[8] = { 'O', 'B', 'N', 'V', 'M', 'E', 'S', 'F' };

__attribute__((format(printf, 3, 4))) static int fail(char *errbuf, size_t size, const char *fmt,
                                                      ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(errbuf, size, fmt, ap);
    va_end(ap);
    return 1;
}

/* ---- What it is of ------------------------------------------------------------------------- */

static uint64_t sum_of(const struct nvme_file_head *head)
{
    const uint8_t *bytes = (const uint8_t *)head->boot;
    uint64_t sum = 0xcbf29ce484222325u; /* FNV-1a */

    for (size_t i = 0; i < sizeof(*head) - offsetof(struct nvme_file_head, boot); i++)
        sum = (sum ^ bytes[i]) * 0x100000001b3u;
    return sum;
}

/* Empty where the kernel does not tell: then all is of the same boot. */
static void read_boot(char *out, size_t size)
{
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, out, size - 1);

    out[n > 0 ? n : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
    if (fd >= 0)
        close(fd);
}

static void fill_head(const struct nvme_ctrl *c, uint64_t size, struct nvme_file_head *head)
{
    static const char *const interrupts[] = { "intx", "msi", "msix" };

    *head = (struct nvme_file_head){ .version = FILE_VERSION, .size = size };
    memcpy(head->magic, magic, sizeof(magic));
    read_boot(head->boot, sizeof(head->boot));
    snprintf(
        head->about, sizeof(head->about),
        "image %s\nfile %llu\nblocks %llu\nlba %u\naccess %s\nqueues %u\ninterrupts %s\nserial %s\n"
        "model %s\npci-id %04x:%04x\n",
        c->blk->identity, (unsigned long long)c->blk->inode, (unsigned long long)c->blocks,
        1u << c->cfg.lba_shift, c->cfg.read_only ? "read-only" : "read-write", c->cfg.queues,
        interrupts[c->cfg.interrupts], c->serial, c->model, c->cfg.pci_vendor, c->cfg.pci_device);
    head->sum = sum_of(head);
}

/* Says in which line they differ. */
static int other_disk(const char *path, const char *there, const char *here, char *errbuf,
                      size_t size)
{
    size_t n, m;

    while ((n = strcspn(there, "\n")) == (m = strcspn(here, "\n")) && n > 0 &&
           memcmp(there, here, n) == 0) {
        there += n + 1;
        here += n + 1;
    }
    return fail(errbuf, size,
                "%s is the state of another disk ('%.*s' there, '%.*s' here): give the options it "
                "was made with, or another file",
                path, (int)n, there, (int)m, here);
}

/* ---- Opening ------------------------------------------------------------------------------- */

/* What a parent keeps open for us comes as /dev/fd/N. A new description of it is needed: a lock of
 * the parent's would not end with us. */
static int open_path(const char *path)
{
    bool inherited = strncmp(path, "/dev/fd/", 8) == 0 || strncmp(path, "/proc/self/fd/", 14) == 0;

    return open(path,
                O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (inherited ? 0 : O_NOFOLLOW),
                0600);
}

static int open_locked(const char *path, struct stat *st, char *errbuf, size_t size)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    int fd = open_path(path);

    if (fd < 0)
        return -fail(errbuf, size, "cannot open the state file %s: %s%s", path, strerror(errno),
                     errno == ELOOP ? " (it must not be a symbolic link)" : "");
    if (fstat(fd, st) < 0 || !S_ISREG(st->st_mode)) {
        close(fd);
        return -fail(errbuf, size, "%s is no file: --state takes one that is new, or that it made",
                     path);
    }
    if (fcntl(fd, F_OFD_SETLK, &lock) < 0) {
        fail(errbuf, size,
             errno == EAGAIN || errno == EACCES
                 ? "%s is in use by another server: each disk has a state file of its own"
                 : "%s cannot be locked: %s",
             path, strerror(errno));
        close(fd);
        return -1;
    }
    return fd;
}

/* All of it, on the disk: later there is no way to say that it is full. */
static int make_room(struct nvme_state_file *file, const char *path, char *errbuf, size_t size)
{
    int rc = posix_fallocate(file->fd, 0, (off_t)file->size);

    if (rc == 0)
        return 0;
    if (file->fresh && ftruncate(file->fd, 0) < 0)
        rc = errno;
    return fail(errbuf, size, "there is no room for the state file %s (%zu bytes): %s", path,
                file->size, strerror(rc));
}

static int map_file(struct nvme_state_file *file, const char *path, char *errbuf, size_t size)
{
    void *map = mmap(NULL, file->size, PROT_READ | PROT_WRITE, MAP_SHARED, file->fd, 0);

    if (map != MAP_FAILED) {
        file->map = map;
        return 0;
    }
    fail(errbuf, size, "cannot map the state file %s: %s", path, strerror(errno));
    return 1;
}

static bool all_zero(const void *data, size_t len)
{
    const uint8_t *bytes = data;

    return len == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, len - 1) == 0);
}

/* Whether what is there is a state of this disk. */
static int check_head(struct nvme_state_file *file, const struct nvme_file_head *ours,
                      const char *path, char *errbuf, size_t size)
{
    const struct nvme_file_head *head = &file->map->head;

    if (memcmp(head->magic, magic, sizeof(magic)) != 0) {
        /* A server was killed in the middle of making it. */
        file->fresh = all_zero(head->magic, sizeof(head->magic));
        return file->fresh
                   ? 0
                   : fail(errbuf, size, "%s is not a state file: it is left as it is", path);
    }
    if (head->version != FILE_VERSION)
        return fail(errbuf, size,
                    "%s was made by another version of this program (format %u, not %u): shut the "
                    "virtual machine down, then remove it",
                    path, head->version, FILE_VERSION);
    if (head->sum != sum_of(head) || !memchr(head->about, '\0', sizeof(head->about)))
        return fail(errbuf, size, "%s is damaged: shut the virtual machine down, then remove it",
                    path);
    /* The machine was started anew: nobody is left to go on with that, whatever it is of. */
    file->fresh = strcmp(head->boot, ours->boot) != 0;
    if (!file->fresh && strcmp(head->about, ours->about) != 0)
        return other_disk(path, head->about, ours->about, errbuf, size);
    return 0;
}

/* The file has its head, and the size of another disk's, or is cut. */
static int wrong_size(struct nvme_state_file *file, const struct nvme_file_head *ours,
                      const char *path, char *errbuf, size_t size)
{
    struct nvme_file_head head = { 0 };

    if (pread(file->fd, &head, sizeof(head), 0) != sizeof(head) ||
        memcmp(head.magic, magic, sizeof(magic)) != 0)
        return fail(errbuf, size, "%s is not a state file: it is left as it is", path);
    if (head.version == FILE_VERSION && head.sum == sum_of(&head) &&
        memchr(head.about, '\0', sizeof(head.about)) && strcmp(head.about, ours->about) != 0)
        return other_disk(path, head.about, ours->about, errbuf, size);
    return fail(errbuf, size,
                "%s is damaged (it does not have its %llu bytes): shut the virtual machine down, "
                "then remove it",
                path, (unsigned long long)ours->size);
}

static int begin(struct nvme_ctrl *c, struct nvme_state_file *file, char *errbuf, size_t size)
{
    const char *path = c->cfg.state;
    struct nvme_file_head ours;
    struct stat st = { 0 };
    int rc;

    file->fd = open_locked(path, &st, errbuf, size);
    if (file->fd < 0)
        return 1;
    file->size = sizeof(struct nvme_file_map) + c->cfg.queues * sizeof(struct nvme_sq_record);
    fill_head(c, file->size, &ours);
    file->fresh = st.st_size == 0;
    if (!file->fresh && (uint64_t)st.st_size != file->size)
        return wrong_size(file, &ours, path, errbuf, size);
    rc = make_room(file, path, errbuf, size);
    if (rc == 0)
        rc = map_file(file, path, errbuf, size);
    if (rc == 0 && !file->fresh)
        rc = check_head(file, &ours, path, errbuf, size);
    if (rc != 0 || !file->fresh)
        return rc;
    memset(file->map->head.magic, 0, sizeof(magic));
    memset(file->map->doorbells, 0, file->size - offsetof(struct nvme_file_map, doorbells));
    file->map->current = NVME_CHECKPOINT_NONE;
    memset(ours.magic, 0, sizeof(magic));
    file->map->head = ours;
    return 0;
}

int nvme_file_open(struct nvme_ctrl *c, struct nvme_state_file **out, char *errbuf, size_t size)
{
    struct nvme_state_file *file = calloc(1, sizeof(*file));

    if (!file)
        return fail(errbuf, size, "out of memory");
    if (begin(c, file, errbuf, size) == 0) {
        *out = file;
        return 0;
    }
    nvme_file_close(file);
    return 1;
}

bool nvme_file_continues(const struct nvme_state_file *file)
{
    return !file->fresh;
}

void nvme_file_close(struct nvme_state_file *file)
{
    if (!file)
        return;
    if (file->map)
        munmap(file->map, file->size);
    if (file->fd >= 0)
        close(file->fd);
    free(file);
}

/* ---- Records ------------------------------------------------------------------------------- */

static struct nvme_sq_record *record_of(const struct nvme_state_file *file, unsigned qid)
{
    return &file->map->sq[qid - 1];
}

void nvme_record_sq(struct nvme_ctrl *c, struct nvme_sq *sq)
{
    if (!c->file || sq->id == 0)
        return;
    sq->record = record_of(c->file, sq->id);
    memset(sq->record->number, 0, sizeof(sq->record->number));
    sq->record->tail = 0;
    sq->record->fetched = 0;
}

void nvme_record_cq(struct nvme_ctrl *c, struct nvme_cq *cq)
{
    size_t qid = (size_t)(cq - c->cq);

    if (!c->file || qid == 0)
        return;
    cq->record = &c->file->map->cq[qid];
    *cq->record = (struct nvme_cq_record){ 0 };
}

static bool take_cq(struct nvme_ctrl *c, unsigned qid, struct nvme_cq_record *record)
{
    struct nvme_cq *cq = &c->cq[qid];

    if (record->head >= cq->ring.entries)
        return false;
    cq->record = record;
    cq->posted = record->posted;
    cq->tail = (uint32_t)(record->posted % cq->ring.entries);
    cq->phase = !(record->posted / cq->ring.entries & 1);
    cq->head = record->head;
    c->seen[2 * qid + 1] = cq->head;
    return true;
}

/* The commands that are under way, in the order in which they were fetched. */
static bool take_commands(struct nvme_sq *sq)
{
    const struct nvme_sq_record *record = sq->record;
    unsigned busy = 0;
    uint64_t last = 0;

    sq->free = NULL;
    for (unsigned i = 0; i < NVME_INFLIGHT_MAX; i++) {
        if (record->number[i] > record->fetched + 1 || (record->number[i] && i >= sq->ncmds))
            return false;
        if (record->number[i] > sq->fetched)
            sq->fetched = record->number[i];
        busy += record->number[i] > 0;
        if (i < sq->ncmds && !record->number[i])
            nvme_cmd_free(&sq->cmds[i]);
    }
    for (;;) {
        struct nvme_cmd *next = NULL;
        uint64_t number = UINT64_MAX;

        for (unsigned i = 0; i < sq->ncmds; i++)
            if (record->number[i] > last && record->number[i] < number) {
                number = record->number[i];
                next = &sq->cmds[i];
            }
        if (!next)
            return busy == 0; /* no two have one number */
        busy--;
        next->sqe = record->sqe[next - sq->cmds];
        next->pending = true;
        nvme_cmd_push(&sq->again, next);
        last = number;
    }
}

static bool take_sq(struct nvme_ctrl *c, unsigned qid, struct nvme_sq_record *record)
{
    struct nvme_sq *sq = &c->sq[qid];

    if (record->tail >= sq->ring.entries)
        return false;
    sq->record = record;
    sq->fetched = record->fetched;
    if (!take_commands(sq))
        return false;
    nvme_note64(&record->fetched, sq->fetched); /* before the last of them is over, and free */
    sq->head = (uint32_t)(sq->fetched % sq->ring.entries);
    sq->tail = record->tail;
    c->seen[2 * qid] = sq->tail;
    return true;
}

static bool take_records(struct nvme_ctrl *c, const struct nvme_state_file *file)
{
    for (unsigned qid = 1; qid <= c->cfg.queues; qid++) {
        if (c->cq[qid].live && !take_cq(c, qid, &file->map->cq[qid]))
            return false;
        if (c->sq[qid].live && !take_sq(c, qid, record_of(file, qid)))
            return false;
    }
    return true;
}

/* ---- Checkpoints --------------------------------------------------------------------------- */

/* One that cannot be made is as bad as none: whoever goes on must learn of it. */
void nvme_file_sync(struct nvme_ctrl *c)
{
    struct nvme_file_map *map = c->file ? c->file->map : NULL;
    struct nvme_checkpoint *next;
    int64_t n;

    if (!map || !c->dirty)
        return;
    next = &map->checkpoints[map->current == 0];
    n = nvme_state_save_live(c);
    if (n == 0)
        n = ob_server_save(c->server, &nvme_state_ops, next->data, sizeof(next->data));
    ob_state_clear(&c->state);
    if (n < 0) {
        if (map->current != NVME_CHECKPOINT_NONE)
            c->log(c, OB_LOG_ERROR, "the state could not be saved: out of memory");
        nvme_note32(&map->current, NVME_CHECKPOINT_NONE);
        return;
    }
    next->ns = nvme_now_ns();
    next->len = (uint32_t)n;
    map->intms = c->intms;
    nvme_note32(&map->current, next == &map->checkpoints[1]);
    c->dirty = false;
}

void nvme_file_note_armed(struct nvme_ctrl *c)
{
    if (c->file)
        nvme_note32(&c->file->map->armed, c->armed);
}

void nvme_file_note_intms(struct nvme_ctrl *c)
{
    if (c->file)
        nvme_note32(&c->file->map->intms, c->intms);
}

static int load(struct nvme_ctrl *c, const struct nvme_state_file *file, char *errbuf, size_t size)
{
    const struct nvme_file_map *map = file->map;
    const struct nvme_checkpoint *last = &map->checkpoints[map->current & 1];
    int rc = -EINVAL;

    if (map->current == NVME_CHECKPOINT_NONE)
        return fail(errbuf, size,
                    "%s has no state, as the server was out of memory: shut the virtual machine "
                    "down, then remove it",
                    c->cfg.state);
    c->state_ns = last->ns;
    if (map->current < 2 && last->len <= sizeof(last->data) && map->armed <= 1 + NVME_MSIX &&
        last->ns >= 0 && last->ns <= nvme_now_ns())
        rc = ob_server_load(c->server, &nvme_state_ops, last->data, last->len);
    if (rc == 0 && !take_records(c, file))
        rc = -EINVAL;
    if (rc == -EINVAL)
        return fail(errbuf, size, "%s is damaged: shut the virtual machine down, then remove it",
                    c->cfg.state);
    if (rc < 0)
        return fail(errbuf, size, "cannot go on with %s: %s", c->cfg.state, strerror(-rc));
    c->intms = map->intms;
    c->armed = map->armed;
    c->recovering = c->csts & NVME_CSTS_RDY;
    if (!c->recovering) { /* no guest uses it: the server was started again */
        c->lost = false;
        c->warnings &= (uint8_t)~NVME_WARN_RELIABILITY;
    }
    return 0;
}

int nvme_file_start(struct nvme_ctrl *c, struct nvme_state_file *file, char *errbuf, size_t size)
{
    if (!file->fresh && load(c, file, errbuf, size) != 0)
        return 1;
    file->own_doorbells = c->doorbells;
    c->doorbells = file->map->doorbells;
    c->file = file;
    c->dirty = true;
    if (!file->fresh)
        return 0; /* its checkpoint will do until something changes */
    nvme_file_sync(c);
    if (c->dirty)
        return fail(errbuf, size, "out of memory");
    memcpy(file->map->head.magic, magic, sizeof(magic));
    return 0;
}

void nvme_file_stop(struct nvme_ctrl *c)
{
    if (!c->file)
        return;
    nvme_file_sync(c);
    c->doorbells = c->file->own_doorbells;
    c->file = NULL;
    for (unsigned i = 0; i < NVME_QIDS; i++) {
        c->sq[i].record = NULL;
        c->cq[i].record = NULL;
    }
}
