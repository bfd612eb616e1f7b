/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Migration: features, the device's state, and which memory it wrote.
 *
 * Dirty pages are asked for in the page size that logging was started with, and only converted to
 * the caller's here: asked for smaller pages libvfio-user's server hangs, asked for larger ones it
 * sets the wrong bits (L-4).
 */
#include "client/memo.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A bit of a bitmap for each page of [address, address + length). */
struct pages {
    uint64_t address, length, size;
};

static bool pages_ok(const struct pages *p)
{
    return p->length && p->address <= UINT64_MAX - (p->length - 1) && p->size &&
           !(p->size & (p->size - 1));
}

/* ---- Features ----------------------------------------------------------------------------- */

/* Bytes that go out after struct ob_wire_feature, and how many come back at least and at most. */
struct exchange {
    const void *out;
    uint32_t out_len;
    uint32_t min, max;
};

static int feature(struct ob_client *c, uint32_t flags, const struct exchange *x,
                   struct ob_msg **reply)
{
    uint32_t room = x->max > x->out_len ? x->max : x->out_len;
    struct ob_wire_feature wire = { (uint32_t)sizeof(wire) + room, flags };
    struct ob_body body = {
        .fixed = &wire, .fixed_len = sizeof(wire), .data = x->out, .data_len = x->out_len
    };

    if (!ob_client_may_ask(c))
        return -EOPNOTSUPP;
    /* x->min 0: the server may leave everything away, its own header too. */
    return ob_request_call(c, OB_CMD_DEVICE_FEATURE, &body,
                           x->min ? (uint32_t)sizeof(wire) + x->min : 0,
                           (uint32_t)sizeof(wire) + x->max, reply);
}

/* GET of so many bytes. */
static int get(struct ob_client *c, enum ob_feature number, void *out, uint32_t len)
{
    const struct exchange x = { .min = len, .max = len };
    struct ob_msg *reply;
    int rc = feature(c, OB_FEATURE_GET | number, &x, &reply);

    if (rc < 0)
        return rc;
    memcpy(out, reply->payload + sizeof(struct ob_wire_feature), len);
    ob_msg_free(reply);
    return 0;
}

int ob_client_feature_probe(struct ob_client *client, enum ob_feature number, uint32_t methods)
{
    static const struct exchange nothing = { 0 };

    if (methods & ~(OB_FEATURE_GET | OB_FEATURE_SET))
        return -EINVAL;
    return feature(client, OB_FEATURE_PROBE | methods | number, &nothing, NULL);
}

int ob_client_migration_info(struct ob_client *client, uint64_t *flags)
{
    return get(client, OB_FEATURE_MIGRATION, flags, sizeof(*flags));
}

int ob_client_mig_state_get(struct ob_client *client, enum ob_mig_state *out)
{
    struct ob_wire_mig_state wire;
    int rc = get(client, OB_FEATURE_MIG_DEVICE_STATE, &wire, sizeof(wire));

    if (rc < 0)
        return rc;
    if (wire.device_state > OB_MIG_STATE_PRE_COPY)
        return ob_client_die(client, "the server claims to be in migration state %u",
                             wire.device_state);
    *out = (enum ob_mig_state)wire.device_state;
    return 0;
}

static void note_state_set(struct ob_client *c, enum ob_mig_state state)
{
    ob_client_lock(c);
    c->mig_state_set = true;
    c->migrating = state != OB_MIG_STATE_RUNNING;
    ob_client_unlock(c);
}

int ob_client_mig_state_set(struct ob_client *client, enum ob_mig_state state)
{
    const struct ob_wire_mig_state wire = { .device_state = state };
    const struct exchange x = { &wire, sizeof(wire), 0, sizeof(wire) };

    note_state_set(client, state);
    return feature(client, OB_FEATURE_SET | OB_FEATURE_MIG_DEVICE_STATE, &x, NULL);
}

static bool state_is_ours(struct ob_client *c)
{
    bool ours;

    ob_client_lock(c);
    ours = c->mig_state_set;
    ob_client_unlock(c);
    return ours;
}

/* L-13: libvfio-user keeps the state over the loss of a client, and refuses nearly everything in
 * STOP and STOP_COPY. Nobody else is in the middle of a migration then: a server has one client. */
int ob_client_revive(struct ob_client *c, int refusal)
{
    enum ob_mig_state state = OB_MIG_STATE_RUNNING;
    int rc;

    if (!c->caps.migration || !ob_client_may_ask(c) || state_is_ours(c))
        return refusal;
    rc = ob_client_mig_state_get(c, &state);
    if (rc < 0)
        return ob_err_class(rc) == OB_ERR_PEER ? refusal : rc;
    if (state != OB_MIG_STATE_STOP && state != OB_MIG_STATE_STOP_COPY)
        return refusal;
    rc = ob_client_mig_state_set(c, OB_MIG_STATE_RUNNING);
    if (ob_err_class(rc) == OB_ERR_PEER)
        return ob_client_die(c,
                             "an earlier client has left the device stopped in a migration, and "
                             "the server does not let it run again: %s",
                             ob_errno_text(ob_peer_errno(rc)));
    return rc;
}

/* ---- The state as a stream ---------------------------------------------------------------- */

/* Bytes that came, or a negative number. libvfio-user's answer is always as long as was asked for
 * (L-8): only its size field says how much of it counts. */
static int64_t read_piece(struct ob_client *c, uint8_t *data, uint32_t count)
{
    struct ob_wire_mig_data wire = { (uint32_t)sizeof(wire) + count, count };
    struct ob_body body = { .fixed = &wire, .fixed_len = sizeof(wire) };
    struct ob_msg *reply;
    const void *bytes;
    int rc;

    if (!ob_client_may_ask(c))
        return -EOPNOTSUPP;
    rc = ob_request_call(c, OB_CMD_MIG_DATA_READ, &body, sizeof(wire),
                         (uint32_t)sizeof(wire) + count, &reply);
    if (rc < 0)
        return rc;
    if (ob_decode_mig_data(reply->payload, reply->len, true, count, &wire, &bytes) < 0) {
        ob_msg_free(reply);
        return ob_client_die(c, "the server answered MIG_DATA_READ of %u bytes with another size",
                             count);
    }
    memcpy(data, bytes, wire.size);
    ob_msg_free(reply);
    return wire.size;
}

int64_t ob_client_mig_read(struct ob_client *client, void *data, uint32_t count)
{
    uint32_t max = ob_client_xfer_max(client), done = 0;

    while (done < count) {
        uint32_t asked = count - done < max ? count - done : max;
        int64_t n = read_piece(client, (uint8_t *)data + done, asked);

        if (n < 0)
            return n;
        done += (uint32_t)n;
        if (n < asked)
            break;
    }
    return done;
}

int ob_client_mig_write(struct ob_client *client, const void *data, uint32_t count)
{
    uint32_t max = ob_client_xfer_max(client);
    const uint8_t *bytes = data;

    if (!ob_client_may_ask(client))
        return -EOPNOTSUPP;
    while (count > 0) {
        uint32_t n = count < max ? count : max;
        struct ob_wire_mig_data wire = { (uint32_t)sizeof(wire) + n, n };
        struct ob_body body = {
            .fixed = &wire, .fixed_len = sizeof(wire), .data = bytes, .data_len = n
        };
        int rc = ob_request_call(client, OB_CMD_MIG_DATA_WRITE, &body, 0, 0, NULL);

        if (rc < 0)
            return rc;
        bytes += n;
        count -= n;
    }
    return 0;
}

/* ---- Dirty memory ------------------------------------------------------------------------- */

static uint64_t logging_page(struct ob_client *c)
{
    uint64_t size;

    ob_client_lock(c);
    size = c->log_page_size;
    ob_client_unlock(c);
    return size;
}

static void set_logging_page(struct ob_client *c, uint64_t size)
{
    ob_client_lock(c);
    c->log_page_size = size;
    ob_client_unlock(c);
}

int ob_client_dirty_start(struct ob_client *client, uint64_t page_size,
                          const struct ob_dma_range *ranges, uint32_t count)
{
    struct ob_wire_logging_start wire = { .page_size = page_size, .num_ranges = count };
    size_t len = sizeof(wire) + (size_t)count * sizeof(*ranges);
    struct ob_msg *reply;
    struct exchange x;
    uint8_t *out;
    int rc;

    if (!page_size || (page_size & (page_size - 1)) || len > ob_client_xfer_max(client))
        return -EINVAL;
    out = malloc(len);
    if (!out)
        return -ENOMEM;
    memcpy(out, &wire, sizeof(wire));
    if (count)
        memcpy(out + sizeof(wire), ranges, (size_t)count * sizeof(*ranges));
    x = (struct exchange){ out, (uint32_t)len, sizeof(wire), (uint32_t)len };
    rc = feature(client, OB_FEATURE_SET | OB_FEATURE_DMA_LOGGING_START, &x, &reply);
    free(out);
    if (rc < 0)
        return rc;
    memcpy(&wire, reply->payload + sizeof(struct ob_wire_feature), sizeof(wire));
    ob_msg_free(reply);
    if (!wire.page_size || (wire.page_size & (wire.page_size - 1)))
        return ob_client_die(client, "the server logs in pages of %llu bytes",
                             (unsigned long long)wire.page_size);
    set_logging_page(client, wire.page_size);
    return 0;
}

int ob_client_dirty_stop(struct ob_client *client)
{
    static const struct exchange nothing = { 0 };
    int rc = feature(client, OB_FEATURE_SET | OB_FEATURE_DMA_LOGGING_STOP, &nothing, NULL);

    if (rc == 0)
        set_logging_page(client, 0);
    return rc;
}

/* Enters the pages that `from` says are dirty into bitmap. The range of `from` lies in `to`. */
static void convert(const struct pages *from, const uint8_t *bits, const struct pages *to,
                    uint64_t *bitmap)
{
    uint64_t start = from->address - to->address, count = (from->length - 1) / from->size + 1;

    for (uint64_t n = 0; n < count; n++) {
        uint64_t first = n * from->size, last = first + (from->size - 1);

        if (!(bits[n / 8] >> n % 8 & 1))
            continue;
        if (last > from->length - 1)
            last = from->length - 1;
        last = (start + last) / to->size;
        for (uint64_t page = (start + first) / to->size; page <= last; page++)
            bitmap[page / 64] |= 1ull << page % 64;
    }
}

/* Asks for one piece. A range that is not one mapping libvfio-user answers with nothing at all
 * (L-16). */
static int report_piece(struct ob_client *c, const struct pages *piece, const struct pages *want,
                        uint64_t *bitmap)
{
    const struct ob_wire_logging_report wire = { piece->address, piece->length, piece->size };
    uint32_t len = (uint32_t)(sizeof(wire) + ob_bitmap_size(piece->length, piece->size));
    const struct exchange x = { &wire, sizeof(wire), 0, len };
    struct ob_msg *reply;
    int rc = feature(c, OB_FEATURE_GET | OB_FEATURE_DMA_LOGGING_REPORT, &x, &reply);

    if (rc < 0)
        return rc;
    if (reply->len == 0) {
        rc = -EOPNOTSUPP;
    } else if (reply->len != sizeof(struct ob_wire_feature) + len ||
               memcmp(reply->payload + sizeof(struct ob_wire_feature), &wire, sizeof(wire)) != 0) {
        rc = ob_client_die(c, "the server reported other dirty memory than it was asked for");
    } else {
        convert(piece, reply->payload + sizeof(struct ob_wire_feature) + sizeof(wire), want,
                bitmap);
    }
    ob_msg_free(reply);
    return rc;
}

int ob_client_dirty_report(struct ob_client *client, uint64_t address, uint64_t length,
                           uint64_t page_size, uint64_t *bitmap)
{
    const struct pages want = { address, length, page_size };
    struct pages piece = { .address = address, .size = logging_page(client) };
    uint64_t pages_max = (uint64_t)(ob_client_xfer_max(client) / 8) * 64, left = length;
    int rc = 0;

    if (!pages_ok(&want) || !piece.size || !pages_max)
        return -EINVAL;
    memset(bitmap, 0, ob_bitmap_size(length, page_size));
    while (rc == 0 && left > 0) {
        piece.length = (left - 1) / piece.size < pages_max ? left : pages_max * piece.size;
        rc = report_piece(client, &piece, &want, bitmap);
        piece.address += piece.length;
        left -= piece.length;
    }
    return rc;
}

/* What came with the answer to an unmap. A server without use for DMA answers with nothing. */
static int take_unmapped(struct ob_client *c, const struct ob_msg *reply,
                         const struct pages *logged, const struct pages *want, uint64_t *bitmap)
{
    uint64_t needed = ob_bitmap_size(logged->length, logged->size);
    struct ob_wire_dma_unmap unmap;
    struct ob_wire_bitmap head;
    struct ob_cursor cur;
    const uint8_t *bits;

    memset(bitmap, 0, ob_bitmap_size(want->length, want->size));
    if (reply->len == 0)
        return 0;
    ob_cursor_init(&cur, reply->payload, reply->len);
    ob_cursor_get(&cur, &unmap, sizeof(unmap));
    ob_cursor_get(&cur, &head, sizeof(head));
    bits = ob_cursor_take(&cur, needed);
    if (!bits || head.pgsize != logged->size)
        return ob_client_die(c, "the server unmapped memory without saying what of it is dirty");
    convert(logged, bits, want, bitmap);
    return 0;
}

int ob_client_dma_unmap_dirty(struct ob_client *client, uint64_t address, uint64_t size,
                              uint64_t page_size, uint64_t *bitmap)
{
    const struct pages want = { address, size, page_size };
    struct pages logged = { address, size, logging_page(client) };
    struct {
        struct ob_wire_dma_unmap unmap;
        struct ob_wire_bitmap bitmap;
    } wire = { { sizeof(wire), OB_DMA_UNMAP_GET_DIRTY, address, size }, { logged.size, 0 } };
    struct ob_body body = { .fixed = &wire, .fixed_len = sizeof(wire) };
    const struct ob_dma_change change = {
        .unmap = true, .address = address, .size = size, .fd = -1
    };
    struct ob_msg *reply;
    int rc;

    if (!pages_ok(&want) || !logged.size)
        return -EINVAL;
    wire.bitmap.size = ob_bitmap_size(size, logged.size);
    /* libvfio-user counts what is in front of the bitmap too. */
    if (wire.bitmap.size + sizeof(wire) > ob_client_xfer_max(client))
        return -EMSGSIZE;
    wire.unmap.argsz += (uint32_t)wire.bitmap.size;
    if (!ob_memo_enter(client))
        return -EDEADLK;
    rc = ob_request_call(client, OB_CMD_DMA_UNMAP, &body, 0, wire.unmap.argsz, &reply);
    if (rc == 0 || rc == -ETIMEDOUT)
        ob_memo_note_dma(client, &change, rc);
    ob_memo_leave(client);
    if (rc < 0)
        return rc;
    ob_client_reserve_map(client, false);
    rc = take_unmapped(client, reply, &logged, &want, bitmap);
    ob_msg_free(reply);
    return rc;
}
