/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Migration: features of the device, its migration state, and the commands that move its state as
 * a stream (migration_stream.c). Logging of dirty memory works on any device.
 *
 * A device knows single arcs of the state diagram; the longer ways are walked here. While the
 * device stands still its interrupts are held (ob_irqs_hold), so that none gets out even where
 * the device triggers one.
 */
#include "server/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct ob_migration {
    struct ob_migration_ops ops;
    enum ob_mig_state state;
    struct ob_stream *stream; /* of the transfer that is under way, or NULL */
};

#define STATES 8

/* By state and goal: where to go first. 0: there is no way. */
#define STOP      OB_MIG_STATE_STOP
#define RUNNING   OB_MIG_STATE_RUNNING
#define STOP_COPY OB_MIG_STATE_STOP_COPY
#define RESUMING  OB_MIG_STATE_RESUMING
#define PRE_COPY  OB_MIG_STATE_PRE_COPY
static const uint8_t first_step[STATES][STATES] = {
    [STOP] = { [RUNNING] = RUNNING,
               [STOP_COPY] = STOP_COPY,
               [RESUMING] = RESUMING,
               [PRE_COPY] = RUNNING },
    [RUNNING] = { [STOP] = STOP, [STOP_COPY] = STOP, [RESUMING] = STOP, [PRE_COPY] = PRE_COPY },
    [STOP_COPY] = { [STOP] = STOP, [RUNNING] = STOP, [RESUMING] = STOP },
    [RESUMING] = { [STOP] = STOP, [RUNNING] = STOP, [STOP_COPY] = STOP, [PRE_COPY] = STOP },
    [PRE_COPY] = { [STOP] = RUNNING,
                   [RUNNING] = RUNNING,
                   [STOP_COPY] = STOP_COPY,
                   [RESUMING] = RUNNING },
};

static bool runs(enum ob_mig_state state)
{
    return state == RUNNING || state == PRE_COPY;
}

int ob_server_set_migration(struct ob_server *server, const struct ob_migration_ops *ops)
{
    struct ob_migration *m;

    if (ops->size == 0 || server->migration || server->session || !server->ops.reset)
        return -EINVAL;
    m = calloc(1, sizeof(*m));
    if (!m)
        return -ENOMEM;
    memcpy(&m->ops, ops, ops->size < sizeof(m->ops) ? ops->size : sizeof(m->ops));
    if (!m->ops.transition || !m->ops.read || !m->ops.write) {
        free(m);
        return -EINVAL;
    }
    m->state = RUNNING;
    server->migration = m;
    return 0;
}

/* ---- Transitions -------------------------------------------------------------------------- */

static void drop_stream(struct ob_migration *m)
{
    ob_stream_free(m->stream);
    m->stream = NULL;
}

/* What was written becomes the state, all of it or nothing. Nothing written leaves it as it is. */
static int load(struct ob_server *server, struct ob_migration *m)
{
    bool empty = ob_stream_empty(m->stream);
    int rc = empty ? 0 : ob_stream_check(m->stream);

    if (rc == 0)
        rc = m->ops.transition(server->opaque, RESUMING, STOP);
    if (rc == 0 && !empty)
        ob_stream_apply(m->stream);
    return rc;
}

static int step(struct ob_server *server, struct ob_migration *m, enum ob_mig_state to)
{
    enum ob_mig_state from = m->state;
    struct ob_stream *stream = m->stream;
    int rc;

    if (!stream && (to == STOP_COPY || to == PRE_COPY || to == RESUMING)) {
        stream = ob_stream_new(server, &m->ops);
        if (!stream)
            return -ENOMEM;
    }
    rc = from == RESUMING ? load(server, m) : m->ops.transition(server->opaque, from, to);
    if (rc < 0) {
        ob_log(server, OB_LOG_ERROR, "migration: from state %d to %d: %s", from, to, strerror(-rc));
        if (stream != m->stream)
            ob_stream_free(stream);
        if (from == RESUMING)
            m->state = OB_MIG_STATE_ERROR;
        return rc;
    }
    m->stream = stream;
    if (to == STOP || to == RUNNING)
        drop_stream(m);
    m->state = to;
    if (runs(from) != runs(to))
        ob_irqs_hold(server, !runs(to));
    ob_io_release(server);
    return 0;
}

static int set_state(struct ob_server *server, struct ob_migration *m, uint32_t goal)
{
    int rc = 0;

    if (m->state == OB_MIG_STATE_ERROR || goal >= STATES)
        return -EINVAL;
    if (m->state != goal && !first_step[m->state][goal])
        return -EINVAL;
    while (rc == 0 && m->state != goal)
        rc = step(server, m, first_step[m->state][goal]);
    return rc;
}

void ob_migration_reset(struct ob_server *server)
{
    struct ob_migration *m = server->migration;

    if (!m)
        return;
    drop_stream(m);
    m->state = RUNNING;
    ob_irqs_hold(server, false);
    ob_io_release(server);
}

/* Half a state is none. */
void ob_migration_detach(struct ob_server *server)
{
    struct ob_migration *m = server->migration;

    if (!m || m->state == RUNNING)
        return;
    if (m->state == RESUMING || set_state(server, m, RUNNING) < 0) {
        m->state = OB_MIG_STATE_ERROR;
        ob_log(server, OB_LOG_ERROR, "migration was not finished: the device needs a reset");
    }
    drop_stream(m);
}

void ob_migration_fini(struct ob_server *server)
{
    if (server->migration)
        drop_stream(server->migration);
    free(server->migration);
}

bool ob_migration_frozen(const struct ob_server *server)
{
    return server->migration && server->migration->state == STOP_COPY;
}

/* ---- Features ----------------------------------------------------------------------------- */

/* A request for a feature, and where the answer goes. */
struct feature {
    struct ob_session *session;
    struct ob_wire_feature head;
    struct ob_cursor data; /* what came after head */
    struct ob_reply *reply;
};

/* GET: bytes that were asked for must have been sent, and have room in what is sent back. */
static int answer_get(const struct feature *f, const void *data, size_t len, const void *more,
                      size_t more_len)
{
    struct ob_wire_feature head = { .argsz = (uint32_t)(sizeof(head) + len + more_len),
                                    .flags = f->head.flags };

    if (f->head.argsz < head.argsz)
        return -EINVAL;
    memcpy(f->reply->fixed, &head, sizeof(head));
    memcpy(f->reply->fixed + sizeof(head), data, len);
    f->reply->len = sizeof(head) + len;
    f->reply->data = more;
    f->reply->data_len = more_len;
    return 0;
}

static int get_migration(struct feature *f)
{
    static const uint64_t flags = OB_MIG_STOP_COPY | OB_MIG_PRE_COPY;

    return answer_get(f, &flags, sizeof(flags), NULL, 0);
}

static int get_state(struct feature *f)
{
    struct ob_wire_mig_state state = { .device_state = f->session->server->migration->state };

    return answer_get(f, &state, sizeof(state), NULL, 0);
}

static int put_state(struct feature *f)
{
    struct ob_server *server = f->session->server;
    struct ob_wire_mig_state state;

    if (!ob_cursor_get(&f->data, &state, sizeof(state)))
        return -EINVAL;
    return set_state(server, server->migration, state.device_state);
}

/* Which ranges were asked for does not matter: everything is logged. */
static int logging_start(struct feature *f)
{
    struct ob_wire_logging_start start;
    int rc = ob_decode_logging_start(f->data, &start);

    if (rc == 0)
        rc = ob_dirty_start(f->session->server, &start.page_size);
    if (rc == 0)
        memcpy(f->reply->fixed + sizeof(f->head), &start, sizeof(start));
    return rc;
}

static int logging_stop(struct feature *f)
{
    return ob_dirty_stop(&f->session->server->dirty);
}

/* a client with room for the bits, but not for whole words of them, gets whole bytes. Behind
 * the range all bits are 0. */
static uint64_t sent_bytes(const struct feature *f, const struct ob_wire_logging_report *report,
                           uint64_t size)
{
    uint64_t bytes = (report->length - 1) / report->page_size / 8 + 1;
    uint64_t head = sizeof(f->head) + sizeof(*report);

    return f->head.argsz < head + size && f->head.argsz >= head + bytes ? bytes : size;
}

static int logging_report(struct feature *f)
{
    struct ob_server *server = f->session->server;
    uint32_t max = f->session->caps.max_data_xfer_size;
    struct ob_wire_logging_report report;
    uint64_t size;
    uint8_t *bitmap;
    int rc;

    if (max > OB_DATA_XFER_MAX)
        max = OB_DATA_XFER_MAX;
    rc = ob_decode_logging_report(f->data, max, &report, &size);
    if (rc < 0)
        return rc;
    if (!server->dirty.on)
        return -EINVAL;
    bitmap = ob_scratch(server, size);
    if (!bitmap)
        return -ENOMEM;
    rc = answer_get(f, &report, sizeof(report), bitmap, sent_bytes(f, &report, size));
    if (rc == 0)
        ob_dirty_take(server, report.iova, report.length, report.page_size, false, bitmap);
    return rc;
}

static const struct method {
    bool of_migration; /* else every device has it */
    int (*get)(struct feature *f);
    int (*set)(struct feature *f);
} methods[] = {
    [OB_FEATURE_MIGRATION] = { .of_migration = true, .get = get_migration },
    [OB_FEATURE_MIG_DEVICE_STATE] = { .of_migration = true, .get = get_state, .set = put_state },
    [OB_FEATURE_DMA_LOGGING_START] = { .set = logging_start },
    [OB_FEATURE_DMA_LOGGING_STOP] = { .set = logging_stop },
    [OB_FEATURE_DMA_LOGGING_REPORT] = { .get = logging_report },
};

static const struct method *find_method(const struct ob_server *server, uint32_t flags)
{
    uint32_t number = flags & OB_FEATURE_MASK;
    const struct method *m;

    if (number >= sizeof(methods) / sizeof(methods[0]))
        return NULL;
    m = &methods[number];
    if ((!m->get && !m->set) || (m->of_migration && !server->migration))
        return NULL;
    if (((flags & OB_FEATURE_GET) && !m->get) || ((flags & OB_FEATURE_SET) && !m->set))
        return NULL;
    return m;
}

int ob_feature(struct ob_session *session, const void *payload, size_t len, struct ob_reply *reply)
{
    struct feature f = { .session = session, .reply = reply };
    size_t copied = sizeof(f.head) + sizeof(struct ob_wire_logging_start);
    int rc = ob_decode_feature(payload, len, &f.head, &f.data);
    const struct method *m = rc < 0 ? NULL : find_method(session->server, f.head.flags);

    if (!m)
        return -EINVAL;
    if ((f.head.flags & OB_FEATURE_GET) && !(f.head.flags & OB_FEATURE_PROBE))
        return m->get(&f);
    /* The answer is the request; what a method may change of it is in the fixed part. */
    reply->len = len < copied ? len : copied;
    memcpy(reply->fixed, payload, reply->len);
    reply->data = (const uint8_t *)payload + reply->len;
    reply->data_len = len - reply->len;
    return f.head.flags & OB_FEATURE_PROBE ? 0 : m->set(&f);
}

/* ---- The stream --------------------------------------------------------------------------- */

int ob_migration_read(struct ob_session *session, const void *payload, size_t len,
                      struct ob_reply *reply)
{
    struct ob_server *server = session->server;
    struct ob_migration *m = server->migration;
    uint32_t max = session->caps.max_data_xfer_size;
    struct ob_wire_mig_data data;
    uint8_t *bytes;
    int64_t n;
    int rc;

    rc = ob_decode_mig_data(payload, len, false, max < OB_DATA_XFER_MAX ? max : OB_DATA_XFER_MAX,
                            &data, NULL);
    if (rc < 0)
        return rc;
    if (!m || (m->state != PRE_COPY && m->state != STOP_COPY))
        return -EINVAL;
    bytes = ob_scratch(server, data.size);
    if (!bytes && data.size)
        return -ENOMEM;
    n = ob_stream_read(m->stream, bytes, data.size, m->state == STOP_COPY);
    if (n < 0)
        return (int)n;
    data.size = (uint32_t)n;
    data.argsz = (uint32_t)sizeof(data) + data.size;
    memcpy(reply->fixed, &data, sizeof(data));
    reply->len = sizeof(data);
    reply->data = bytes;
    reply->data_len = data.size;
    return 0;
}

int ob_migration_write(struct ob_session *session, const void *payload, size_t len)
{
    struct ob_migration *m = session->server->migration;
    struct ob_wire_mig_data data;
    const void *bytes;
    int rc = ob_decode_mig_data(payload, len, true, OB_DATA_XFER_MAX, &data, &bytes);

    if (rc < 0)
        return rc;
    if (!m || m->state != RESUMING)
        return -EINVAL;
    return ob_stream_write(m->stream, bytes, data.size);
}
