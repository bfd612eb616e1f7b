/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The state of a device as a stream: a head that says what this is, then records.
 *
 *   head    "OBSTATE1", and 8 bytes of zero
 *   record  type (4 bytes), length (4), so many bytes
 *     1 DEVICE   the next piece of what the device itself saved
 *     2 PCI      what the library keeps of it: config space, MSI-X, pending interrupts
 *     3 END      a checksum (8 bytes) of everything before it, this record's type and length too
 *
 * Read, the head and DEVICE records may come while the device runs; PCI and END come last, once
 * each, when it stands still. Written, nothing of it is used before END was there and everything
 * in it is right. All in host byte order.
 */
#include "server/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_MAX 65536u /* bytes of a DEVICE record that we write, and of a PCI record we take */

static const struct head {
    char magic[8];
    uint64_t zero;
} head = { .magic = { 'O', 'B', 'S', 'T', 'A', 'T', 'E', '1' } };

struct record {
    uint32_t type, length;
};
enum { NO_RECORD, DEVICE, PCI, END };

enum phase {
    AT_HEAD,
    AT_RECORD, /* a record's type and length are due */
    IN_RECORD,
    AT_END,
    BROKEN /* what was written is no such stream */
};

struct ob_stream {
    struct ob_server *server;
    const struct ob_migration_ops *ops;
    uint64_t sum;
    bool empty;
    enum phase phase;
    struct record record; /* being written */
    uint64_t device_bytes;
    bool has_pci;
    uint32_t pci_len;
    /* Read: made and not given out. Written: what is collected of the thing that is due. */
    uint32_t pos, len;
    uint8_t buffer[sizeof(struct record) + PIECE_MAX];
    uint8_t pci[PIECE_MAX];
};

/* FNV-1a */
static void checksum(struct ob_stream *s, const void *data, size_t len)
{
    const uint8_t *bytes = data;

    for (size_t i = 0; i < len; i++)
        s->sum = (s->sum ^ bytes[i]) * 0x100000001b3u;
}

struct ob_stream *ob_stream_new(struct ob_server *server, const struct ob_migration_ops *ops)
{
    struct ob_stream *s = calloc(1, sizeof(*s));

    if (!s)
        return NULL;
    s->server = server;
    s->ops = ops;
    s->sum = 0xcbf29ce484222325u;
    s->empty = true;
    return s;
}

void ob_stream_free(struct ob_stream *s)
{
    free(s);
}

/* ---- Reading ------------------------------------------------------------------------------ */

/* A record of what is in the buffer behind the record's header. */
static void make_record(struct ob_stream *s, uint32_t type, uint32_t length)
{
    const struct record record = { type, length };

    memcpy(s->buffer, &record, sizeof(record));
    s->pos = 0;
    s->len = (uint32_t)sizeof(record) + length;
}

static void make_end(struct ob_stream *s)
{
    make_record(s, END, sizeof(s->sum));
    checksum(s, s->buffer, sizeof(struct record));
    memcpy(s->buffer + sizeof(struct record), &s->sum, sizeof(s->sum));
    s->phase = AT_END;
}

/* Makes the next part. 0 when there is nothing more for now, else 1, or a negative errno. */
static int make_more(struct ob_stream *s, bool last)
{
    uint8_t *body = s->buffer + sizeof(struct record);
    int64_t n;

    if (s->phase == AT_END)
        return 0;
    if (s->phase == AT_HEAD) {
        memcpy(s->buffer, &head, sizeof(head));
        s->pos = 0;
        s->len = sizeof(head);
        s->phase = AT_RECORD;
    } else if (s->has_pci) {
        make_end(s);
        return 1;
    } else {
        n = s->ops->read(s->server->opaque, body, PIECE_MAX);
        if (n < 0)
            return (int)n;
        if (n == 0 && !last)
            return 0;
        if (n == 0) {
            n = (int64_t)ob_pci_state_size(s->server);
            ob_pci_state_get(s->server, body);
            s->has_pci = true;
        }
        make_record(s, s->has_pci ? PCI : DEVICE, (uint32_t)n);
    }
    checksum(s, s->buffer, s->len);
    return 1;
}

int64_t ob_stream_read(struct ob_stream *s, void *data, uint32_t count, bool last)
{
    uint32_t done = 0, n;

    while (done < count) {
        if (s->pos == s->len) {
            int rc = make_more(s, last);

            if (rc < 0)
                return rc;
            if (rc == 0)
                break;
        }
        n = s->len - s->pos < count - done ? s->len - s->pos : count - done;
        memcpy((uint8_t *)data + done, s->buffer + s->pos, n);
        s->pos += n;
        done += n;
    }
    return done;
}

/* ---- Writing ------------------------------------------------------------------------------ */

bool ob_stream_empty(const struct ob_stream *s)
{
    return s->empty;
}

static int take_head(struct ob_stream *s)
{
    s->phase = AT_RECORD;
    return memcmp(s->buffer, &head, sizeof(head)) ? -EINVAL : 0;
}

/* PCI comes once, behind DEVICE; END behind both. */
static int take_record(struct ob_stream *s)
{
    memcpy(&s->record, s->buffer, sizeof(s->record));
    s->phase = IN_RECORD;
    switch (s->record.type) {
    case DEVICE:
        return s->has_pci || s->record.length == 0 ? -EINVAL : 0;
    case PCI:
        return s->has_pci || !s->device_bytes || s->record.length == 0 ||
                       s->record.length > PIECE_MAX
                   ? -EINVAL
                   : 0;
    case END:
        return s->has_pci && s->record.length == sizeof(s->sum) ? 0 : -EINVAL;
    default:
        return -EINVAL;
    }
}

/* A record's body is whole. */
static int take_body(struct ob_stream *s)
{
    s->phase = AT_RECORD;
    if (s->record.type == PCI) {
        memcpy(s->pci, s->buffer, s->record.length);
        s->pci_len = s->record.length;
        s->has_pci = true;
    } else if (s->record.type == END) {
        s->phase = AT_END;
        return memcmp(s->buffer, &s->sum, sizeof(s->sum)) ? -EINVAL : 0;
    }
    return 0;
}

static int take_whole(struct ob_stream *s)
{
    switch (s->phase) {
    case AT_HEAD:
        return take_head(s);
    case AT_RECORD:
        return take_record(s);
    default:
        return take_body(s);
    }
}

/* Bytes of the thing that is due. */
static uint32_t due(const struct ob_stream *s)
{
    switch (s->phase) {
    case AT_HEAD:
        return sizeof(head);
    case AT_RECORD:
        return sizeof(struct record);
    default:
        return s->record.length;
    }
}

/* Takes some of data, at least a byte. Returns how many, or a negative errno. */
static int64_t take_some(struct ob_stream *s, const uint8_t *data, uint32_t count)
{
    bool to_device = s->phase == IN_RECORD && s->record.type == DEVICE;
    bool is_sum = s->phase == IN_RECORD && s->record.type == END;
    uint32_t n = due(s) - s->len < count ? due(s) - s->len : count;
    int rc = 0;

    if (!is_sum)
        checksum(s, data, n);
    if (to_device) {
        s->device_bytes += n;
        rc = s->ops->write(s->server->opaque, data, n);
    } else {
        memcpy(s->buffer + s->len, data, n);
    }
    s->len += n;
    if (rc == 0 && s->len == due(s)) {
        s->len = 0;
        rc = take_whole(s);
    }
    return rc < 0 ? rc : (int64_t)n;
}

int ob_stream_write(struct ob_stream *s, const void *data, uint32_t count)
{
    const uint8_t *bytes = data;

    while (count > 0) {
        int64_t n = s->phase == AT_END || s->phase == BROKEN ? -EINVAL : take_some(s, bytes, count);

        s->empty = false;
        if (n < 0) {
            s->phase = BROKEN;
            return (int)n;
        }
        bytes += n;
        count -= (uint32_t)n;
    }
    return 0;
}

int ob_stream_check(const struct ob_stream *s)
{
    return s->phase == AT_END && ob_pci_state_ok(s->server, s->pci, s->pci_len) ? 0 : -EINVAL;
}

void ob_stream_apply(const struct ob_stream *s)
{
    ob_pci_state_set(s->server, s->pci);
}

/* ---- Without a client --------------------------------------------------------------------- */

int64_t ob_server_save(struct ob_server *server, const struct ob_migration_ops *ops, void *data,
                       uint32_t size)
{
    struct ob_stream *s = ob_stream_new(server, ops);
    int64_t n = s ? ob_stream_read(s, data, size, true) : -ENOMEM;

    if (n == size && (s->phase != AT_END || s->pos != s->len))
        n = -ENOSPC;
    ob_stream_free(s);
    return n;
}

int ob_server_load(struct ob_server *server, const struct ob_migration_ops *ops, const void *data,
                   uint32_t len)
{
    struct ob_stream *s = server->session ? NULL : ob_stream_new(server, ops);
    int rc;

    if (!s)
        return server->session ? -EBUSY : -ENOMEM;
    rc = ob_stream_write(s, data, len);
    if (rc == 0)
        rc = ob_stream_check(s);
    if (rc == 0)
        rc = ops->transition(server->opaque, OB_MIG_STATE_RESUMING, OB_MIG_STATE_STOP);
    if (rc == 0) {
        ob_stream_apply(s);
        rc = ops->transition(server->opaque, OB_MIG_STATE_STOP, OB_MIG_STATE_RUNNING);
    }
    ob_stream_free(s);
    return rc;
}
