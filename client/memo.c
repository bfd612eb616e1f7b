/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What was set up at the device, noted so that it can be set up again: DMA maps, the eventfds and
 * masks of interrupts, a reset that is due, the registers of config space that a driver sets once,
 * and posted writes that the server may never have read. See memo.h for the theory.
 *
 * A change whose reply did not come (-ETIMEDOUT) counts as made: the embedder ends the connection
 * then, or lives with it. Only a reset is due until a later request was answered: to carry it out
 * twice does no harm then, and not at all would. What cannot be noted (no memory, no fd) is
 * remembered as `broken`: the device works on, and its next loss is the last.
 */
#include "client/memo.h"

#include <errno.h>
#include <fcntl.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* A file that memory is mapped from, held once whatever number of mappings it has. */
struct file {
    dev_t dev;
    ino_t ino;
    int fd, mode;
    size_t users;
    struct file *next;
};

struct map {
    uint64_t address, size, offset;
    uint32_t flags;
    struct file *file; /* NULL: the server uses messages */
};

enum { TRIGGER, MASK, UNMASK };

static const uint32_t actions[] = {
    [TRIGGER] = OB_IRQ_SET_ACTION_TRIGGER,
    [MASK] = OB_IRQ_SET_ACTION_MASK,
    [UNMASK] = OB_IRQ_SET_ACTION_UNMASK,
};
#define NACTIONS (sizeof(actions) / sizeof(actions[0]))

bool ob_memo_enter(struct ob_client *c)
{
    if (ob_client_in_callback(c))
        return false;
    if (c->memo)
        ob_setup_take(c);
    return true;
}

void ob_memo_leave(struct ob_client *c)
{
    if (c->memo)
        ob_setup_give(c);
}

/* Whether a change whose request ended so is to be noted; *rc becomes what the caller gets. */
static bool to_note(struct ob_client *c, int *rc)
{
    if (*rc == -ENOTCONN && c->state == OB_CLIENT_INTERRUPTED)
        *rc = 0;
    return *rc == 0 || *rc == -ETIMEDOUT;
}

static void give_up(struct ob_memo *s, const char *why)
{
    if (!s->broken)
        s->broken = why;
}

/* ---- DMA ---------------------------------------------------------------------------------- */

static int compare_maps(const void *a, const void *b)
{
    const struct map *x = a, *y = b;

    return x->address < y->address ? -1 : x->address > y->address;
}

/* The last one used comes first: a memory map has few files. */
static struct file *get_file(struct ob_memo *s, int fd)
{
    int mode = fcntl(fd, F_GETFL) & O_ACCMODE;
    struct file **link = &s->files, *f;
    struct stat st;

    if (fstat(fd, &st) < 0)
        return NULL;
    while ((f = *link) && (f->dev != st.st_dev || f->ino != st.st_ino || f->mode != mode))
        link = &f->next;
    if (f) {
        *link = f->next;
    } else {
        f = malloc(sizeof(*f));
        if (!f)
            return NULL;
        *f = (struct file){ st.st_dev, st.st_ino, fcntl(fd, F_DUPFD_CLOEXEC, 0), mode, 0, NULL };
        if (f->fd < 0) {
            free(f);
            return NULL;
        }
    }
    f->next = s->files;
    s->files = f;
    f->users++;
    return f;
}

static void put_file(struct ob_memo *s, struct file *f)
{
    struct file **link = &s->files;

    if (!f || --f->users > 0)
        return;
    while (*link != f)
        link = &(*link)->next;
    *link = f->next;
    close(f->fd);
    free(f);
}

static void note_map(struct ob_memo *s, const struct ob_dma_change *change)
{
    struct map *m = malloc(sizeof(*m)), **found = NULL;

    if (m)
        *m = (struct map){ change->address, change->size, change->offset, change->flags,
                           change->fd >= 0 ? get_file(s, change->fd) : NULL };
    if (m && (change->fd < 0 || m->file))
        found = tsearch(m, &s->maps, compare_maps);
    if (found && *found == m) {
        s->nmaps++;
        return;
    }
    if (m)
        put_file(s, m->file);
    free(m);
    if (!found)
        give_up(s, "its memory map could not be kept: no memory, or no file descriptor");
    /* Else it is there already: only after a timeout can a server have taken it twice. */
}

static void drop_map(struct ob_memo *s, struct map *m)
{
    tdelete(m, &s->maps, compare_maps);
    s->nmaps--;
    put_file(s, m->file);
    free(m);
}

/* For a walk: a map in the range, if there is one. */
struct within {
    uint64_t address, last;
    struct map *found;
};

static void find_within(const void *node, VISIT visit, void *closure)
{
    struct map *m = *(struct map *const *)node;
    struct within *w = closure;

    if ((visit == postorder || visit == leaf) && m->address >= w->address && m->address <= w->last)
        w->found = m;
}

/* Mostly it is one mapping; a range of several is looked for one by one. */
static void note_unmap(struct ob_memo *s, const struct ob_dma_change *change)
{
    struct map key = { .address = change->address };
    struct map **exact = tfind(&key, &s->maps, compare_maps);
    bool whole = exact && (*exact)->size == change->size;

    if (exact)
        drop_map(s, *exact);
    while (!whole) {
        struct within w = { change->address, change->address + (change->size - 1), NULL };

        twalk_r(s->maps, find_within, &w);
        if (!w.found)
            break;
        drop_map(s, w.found);
    }
}

int ob_memo_note_dma(struct ob_client *c, const struct ob_dma_change *change, int rc)
{
    struct ob_memo *s = c->memo;

    if (!s || !to_note(c, &rc))
        return rc;
    if (change->unmap)
        note_unmap(s, change);
    else if (s->nmaps >= c->caps.max_dma_maps)
        return -ENOSPC;
    else
        note_map(s, change);
    return rc;
}

/* ---- Interrupts --------------------------------------------------------------------------- */

static void clear_vectors(struct ob_memo_irqs *irqs, uint32_t count)
{
    for (size_t a = 0; a < NACTIONS; a++) {
        for (uint32_t i = 0; irqs->fds[a] && i < count; i++)
            if (irqs->fds[a][i] >= 0)
                close(irqs->fds[a][i]);
        free(irqs->fds[a]);
        irqs->fds[a] = NULL;
    }
    free(irqs->masked);
    irqs->masked = NULL;
}

static int *vector_table(struct ob_memo_irqs *irqs, size_t action, uint32_t count)
{
    if (!irqs->fds[action]) {
        irqs->fds[action] = malloc(count * sizeof(int));
        for (uint32_t i = 0; irqs->fds[action] && i < count; i++)
            irqs->fds[action][i] = -1;
    }
    return irqs->fds[action];
}

static bool set_fds(int *table, const int *fds, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (table[i] >= 0)
            close(table[i]);
        table[i] = fds && fds[i] >= 0 ? fcntl(fds[i], F_DUPFD_CLOEXEC, 0) : -1;
        if (table[i] < 0 && fds && fds[i] >= 0)
            return false;
    }
    return true;
}

static bool set_masks(struct ob_memo_irqs *irqs, uint32_t vectors, uint32_t start, uint32_t count,
                      const uint8_t *bools, bool mask)
{
    if (!irqs->masked)
        irqs->masked = calloc(vectors, 1);
    for (uint32_t i = 0; irqs->masked && i < count; i++)
        if (!bools || bools[i])
            irqs->masked[start + i] = mask;
    return irqs->masked;
}

int ob_memo_note_irqs(struct ob_client *c, uint32_t index, uint32_t flags, uint32_t start,
                      uint32_t count, const uint8_t *bools, const int *fds, int rc)
{
    struct ob_memo *s = c->memo;
    uint32_t vectors = s && index < s->identity.info.num_irqs ? s->identity.irqs[index].count : 0;
    struct ob_memo_irqs *irqs = vectors ? &s->irqs[index] : NULL;
    size_t a = 0;
    bool good = true;

    if (!irqs || start > vectors || count > vectors - start || !to_note(c, &rc))
        return rc;
    while (a < NACTIONS - 1 && !(flags & actions[a]))
        a++;
    if ((flags & OB_IRQ_SET_DATA_NONE) && a == TRIGGER && count == 0)
        clear_vectors(irqs, vectors);
    else if (flags & OB_IRQ_SET_DATA_EVENTFD)
        good = vector_table(irqs, a, vectors) && set_fds(irqs->fds[a] + start, fds, count);
    else if (a != TRIGGER)
        good = set_masks(irqs, vectors, start, count, bools, a == MASK);
    if (!good)
        give_up(s, "its interrupts could not be kept: no memory, or no file descriptor");
    return rc;
}

/* ---- Registers ---------------------------------------------------------------------------- */

int ob_memo_note_posted_locked(struct ob_client *c, const struct ob_wire_region_access *wire,
                               const void *data, int rc)
{
    struct ob_memo *s = c->memo;
    struct ob_memo_write *w = s ? s->writes : NULL;
    unsigned kept = 0;

    if (!s || (rc < 0 && c->state != OB_CLIENT_INTERRUPTED))
        return rc;
    if (ob_memo_is_config(s, wire->region))
        return 0;
    if (wire->count > sizeof(w->data))
        return rc;
    s->posted++;
    for (unsigned i = 0; i < s->nwrites; i++)
        if (s->writes[i].number > s->taken &&
            (s->writes[i].offset != wire->offset || s->writes[i].region != wire->region ||
             s->writes[i].count != wire->count))
            s->writes[kept++] = s->writes[i];
    if (kept == OB_MEMO_POSTED_MAX)
        memmove(w, w + 1, --kept * sizeof(*w));
    w[kept] = (struct ob_memo_write){ wire->offset, s->posted, wire->region, wire->count, { 0 } };
    memcpy(w[kept].data, data, wire->count);
    s->nwrites = kept + 1;
    return 0;
}

void ob_memo_forget_locked(struct ob_memo *s)
{
    memset(s->config.set, 0, sizeof(s->config.set));
    s->taken = s->posted;
}

void ob_memo_begin_reset(struct ob_client *c, struct ob_memo_past *past)
{
    struct ob_memo *s = c->memo;

    if (!s)
        return;
    ob_client_lock(c);
    past->posted = s->posted;
    past->config = s->config;
    memset(s->config.set, 0, sizeof(s->config.set));
    ob_client_unlock(c);
}

/* A device that refused keeps what it had, but for what was written meanwhile. */
static void unforget_locked(struct ob_memo *s, const struct ob_memo_past *past)
{
    for (unsigned i = 0; i < OB_MEMO_CONFIG; i++)
        if (past->config.set[i] && !s->config.set[i]) {
            s->config.bytes[i] = past->config.bytes[i];
            s->config.set[i] = true;
        }
}

int ob_memo_note_reset(struct ob_client *c, const struct ob_memo_past *past, int rc)
{
    struct ob_memo *s = c->memo;
    bool due = rc == -ETIMEDOUT || rc == -ENOTCONN, noted;

    if (!s)
        return rc;
    noted = to_note(c, &rc);
    ob_client_lock(c);
    if (!noted) {
        unforget_locked(s, past);
    } else {
        s->reset_due = due;
        if (due && past->posted > s->taken)
            s->taken = past->posted;
    }
    ob_client_unlock(c);
    return rc;
}

int ob_memo_region_info(struct ob_client *c, uint32_t index, struct ob_region_info *out)
{
    struct ob_memo *s = c->memo;
    int fd, rc = 0;

    ob_setup_take(c);
    fd = s->identity.regions[index].fd;
    if (fd >= 0 && (fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)) < 0)
        rc = -errno;
    if (rc == 0) {
        *out = s->identity.regions[index];
        out->fd = fd;
    }
    ob_setup_give(c);
    return rc;
}

/* ---- Setting up again --------------------------------------------------------------------- */

struct change_list {
    struct ob_dma_change *changes;
    size_t n;
};

static void add_change(const void *node, VISIT visit, void *closure)
{
    const struct map *m = *(struct map *const *)node;
    struct change_list *list = closure;

    if (visit == postorder || visit == leaf)
        list->changes[list->n++] = (struct ob_dma_change){
            .flags = m->flags,
            .address = m->address,
            .size = m->size,
            .fd = m->file ? m->file->fd : -1,
            .offset = m->offset,
        };
}

static int restore_maps(const struct ob_memo *s, struct ob_client *n)
{
    struct change_list list = { .changes = calloc(s->nmaps + 1, sizeof(*list.changes)) };
    int rc = -ENOMEM;

    if (list.changes) {
        twalk_r(s->maps, add_change, &list);
        rc = ob_client_dma_apply(n, list.changes, list.n);
    }
    free(list.changes);
    return rc;
}

/* A mask comes before the eventfd: between the two the vector would be heard. */
static int restore_irqs(const struct ob_memo_irqs *irqs, uint32_t index, uint32_t vectors,
                        struct ob_client *n)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && irqs->masked && i < vectors; i++)
        if (irqs->masked[i])
            rc = ob_client_irq_mask(n, index, i, true);
    for (size_t a = 0; a < NACTIONS; a++) {
        const int *fds = irqs->fds[a];

        for (uint32_t from = 0, to; rc == 0 && fds && from < vectors; from = to) {
            to = from + 1;
            while (to < vectors && (fds[to] >= 0) == (fds[from] >= 0))
                to++;
            if (fds[from] >= 0)
                rc = ob_client_set_irqs(n, index, OB_IRQ_SET_DATA_EVENTFD | actions[a], from,
                                        to - from, NULL, fds + from);
        }
    }
    return rc;
}

int ob_memo_restore(struct ob_client *c, struct ob_client *n, char *errbuf, size_t size)
{
    struct ob_memo *s = c->memo;
    const char *what = "a reset";
    char text[128];
    int rc = s->reset_due ? ob_client_reset(n) : 0;

    if (s->broken)
        return ob_client_refuse(errbuf, size, -ENOMEM, "%s", s->broken);
    if (rc == 0) {
        what = "its DMA mappings";
        rc = restore_maps(s, n);
    }
    if (rc == 0)
        what = "its interrupts";
    for (uint32_t i = 0; rc == 0 && i < s->identity.info.num_irqs; i++)
        rc = restore_irqs(&s->irqs[i], i, s->identity.irqs[i].count, n);
    if (rc == 0) {
        what = "its registers";
        rc = ob_memo_restore_config(c, n);
    }
    return rc == 0 ? 0
                   : ob_client_refuse(errbuf, size, rc, "it does not take %s again: %s", what,
                                      ob_strerror(rc, text, sizeof(text)));
}

/* ---- Life --------------------------------------------------------------------------------- */

static void free_map(void *node)
{
    free(node);
}

void ob_memo_free(struct ob_memo *s)
{
    if (!s)
        return;
    tdestroy(s->maps, free_map);
    while (s->files) {
        struct file *next = s->files->next;
        close(s->files->fd);
        free(s->files);
        s->files = next;
    }
    for (uint32_t i = 0; s->irqs && i < s->identity.info.num_irqs; i++)
        clear_vectors(&s->irqs[i], s->identity.irqs[i].count);
    free(s->irqs);
    ob_identity_fini(&s->identity);
    pthread_cond_destroy(&s->changed);
    free(s->path);
    free(s);
}

/* The process may go to another directory (QEMU does, with -daemonize). A path that would be too
 * long for a socket with its directory stays as it is. */
static char *lasting_path(const char *path)
{
    char dir[sizeof(((struct sockaddr_un *)NULL)->sun_path)], *whole = NULL;

    if (path[0] == '/' || !getcwd(dir, sizeof(dir)) || dir[0] != '/' ||
        strlen(dir) + 1 + strlen(path) >= sizeof(dir))
        return strdup(path);
    return asprintf(&whole, "%s/%s", dir, path) < 0 ? NULL : whole;
}

int ob_memo_begin(struct ob_client *c, const char *path, char *errbuf, size_t size)
{
    struct ob_memo *s = calloc(1, sizeof(*s));
    char text[128];
    int rc;

    if (!s)
        return ob_client_refuse(errbuf, size, -ENOMEM, "out of memory");
    pthread_cond_init(&s->changed, &c->monotonic);
    s->patience_ms = OB_MEMO_PATIENCE_MS;
    s->path = lasting_path(path);
    rc = s->path ? ob_identity_ask(c, &s->identity) : -ENOMEM;
    if (rc == 0) {
        s->irqs = calloc(s->identity.info.num_irqs + 1, sizeof(*s->irqs));
        rc = s->irqs ? 0 : -ENOMEM;
    }
    if (rc < 0) {
        ob_memo_free(s);
        return ob_client_refuse(errbuf, size, rc, "the server does not say what device it is: %s",
                                ob_client_dead(c) ? c->why : ob_strerror(rc, text, sizeof(text)));
    }
    ob_memo_keep_config(s);
    ob_client_lock(c);
    c->memo = s;
    ob_client_unlock(c);
    return 0;
}
