/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a client makes of a device that can migrate: sessions of which one thing is looked at, and
 * answers that are wrong.
 */
#include "conformance/client.h"

#include <errno.h>

#define DATA_AT sizeof(struct ob_wire_feature) /* of a feature's data in a reply */

static struct play_migration *begin(struct test *t)
{
    struct play_migration *m = &play_of(t)->migration;

    m->offered = true;
    m->state = OB_MIG_STATE_RUNNING;
    return m;
}

/* The answer to this method of a feature, not sent. */
static struct answer *until_feature(struct test *t, uint32_t flags)
{
    for (;;) {
        struct answer *a = play_until(t, OB_CMD_DEVICE_FEATURE);
        struct ob_wire_feature head;

        memcpy(&head, t->in.data, sizeof(head));
        if (head.flags == flags)
            return a;
        play_send(t, a);
    }
}

/* ---- Whole sessions ------------------------------------------------------------------------ */

static void session(struct test *t, void (*look)(struct test *t))
{
    begin(t);
    play_of(t)->look = look;
    play_out(t);
    if (!play_of(t)->looked)
        test_not_offered(t, "the client did not send what this is about");
}

/* The DEVICE_FEATURE in t->in, if it is one. */
static bool is_feature(struct test *t, struct ob_wire_feature *head, struct ob_cursor *data)
{
    if (t->in.hdr.cmd != OB_CMD_DEVICE_FEATURE)
        return false;
    ob_cursor_init(data, t->in.data, t->in.len);
    MUST(t, ob_cursor_get(data, head, sizeof(*head)), "DEVICE_FEATURE has %u bytes", t->in.len);
    return true;
}

static void look_at_methods(struct test *t)
{
    struct ob_wire_feature head;
    struct ob_cursor data;

    if (!is_feature(t, &head, &data))
        return;
    MUST(t, ob_decode_feature(t->in.data, t->in.len, &head, &data) == 0,
         "DEVICE_FEATURE has the flags 0x%x", head.flags);
    play_of(t)->looked++;
}

static void methods(struct test *t)
{
    session(t, look_at_methods);
}

static void look_at_argsz(struct test *t)
{
    struct ob_wire_feature head;
    struct ob_wire_logging_report wire;
    struct ob_cursor data;
    uint64_t need, size;

    if (!is_feature(t, &head, &data))
        return;
    need = t->in.len;
    if (head.flags == (OB_FEATURE_GET | OB_FEATURE_DMA_LOGGING_REPORT) &&
        ob_decode_logging_report(data, UINT32_MAX, &wire, &size) == 0)
        need = DATA_AT + sizeof(wire) + size;
    else if (head.flags & OB_FEATURE_GET && !(head.flags & OB_FEATURE_PROBE))
        need = DATA_AT + sizeof(uint64_t);
    MUST(t, head.argsz >= need, "DEVICE_FEATURE 0x%x has room for %u bytes, its reply has %llu",
         head.flags, head.argsz, (unsigned long long)need);
    play_of(t)->looked++;
}

static void argsz(struct test *t)
{
    session(t, look_at_argsz);
}

static void look_at_states(struct test *t)
{
    struct ob_wire_feature head;
    struct ob_wire_mig_state to;
    struct ob_cursor data;

    if (!is_feature(t, &head, &data) ||
        head.flags != (OB_FEATURE_SET | OB_FEATURE_MIG_DEVICE_STATE))
        return;
    MUST(t, ob_cursor_get(&data, &to, sizeof(to)), "the state has %u bytes", t->in.len);
    MUST(t,
         (to.device_state >= OB_MIG_STATE_STOP && to.device_state <= OB_MIG_STATE_RESUMING) ||
             to.device_state == OB_MIG_STATE_PRE_COPY,
         "the state is set to %u", to.device_state);
    MUST(t, to.data_fd == 0, "data_fd is %u", to.data_fd);
    play_of(t)->looked++;
}

static void states(struct test *t)
{
    session(t, look_at_states);
}

static void look_at_data(struct test *t)
{
    const struct play_migration *m = &play_of(t)->migration;
    bool is_read = t->in.hdr.cmd == OB_CMD_MIG_DATA_READ;
    struct ob_wire_mig_data wire;

    if (!is_read && t->in.hdr.cmd != OB_CMD_MIG_DATA_WRITE)
        return;
    MUST(t,
         is_read ? m->state == OB_MIG_STATE_PRE_COPY || m->state == OB_MIG_STATE_STOP_COPY
                 : m->state == OB_MIG_STATE_RESUMING,
         "%s comes in state %u", ob_strcmd(t->in.hdr.cmd), m->state);
    MUST(t, t->in.len >= sizeof(wire), "%s has %u bytes", ob_strcmd(t->in.hdr.cmd), t->in.len);
    memcpy(&wire, t->in.data, sizeof(wire));
    MUST(t, wire.argsz >= sizeof(wire) && wire.argsz - sizeof(wire) >= wire.size,
         "argsz is %u for %u bytes of data", wire.argsz, wire.size);
    MUST(t, is_read || t->in.len >= sizeof(wire) + wire.size, "%u bytes of %u come",
         t->in.len - (uint32_t)sizeof(wire), wire.size);
    MUST(t, wire.size <= m->most, "%u bytes in one %s, %u are taken", wire.size,
         ob_strcmd(t->in.hdr.cmd), m->most);
    play_of(t)->looked++;
}

static void data(struct test *t)
{
    play_of(t)->migration.most = PLAY_DATA;
    session(t, look_at_data);
}

static void small_data(struct test *t)
{
    play_of(t)->capabilities = "\"max_msg_fds\":16,\"max_data_xfer_size\":100";
    play_of(t)->migration.most = 100;
    session(t, look_at_data);
}

static void look_at_logging(struct test *t)
{
    bool on = play_of(t)->migration.logging;
    struct ob_wire_logging_start start;
    struct ob_wire_feature head;
    struct ob_cursor data;
    uint32_t number;

    if (!is_feature(t, &head, &data) || (head.flags & OB_FEATURE_PROBE))
        return;
    number = head.flags & OB_FEATURE_MASK;
    if (number < OB_FEATURE_DMA_LOGGING_START || number > OB_FEATURE_DMA_LOGGING_REPORT)
        return;
    MUST(t, on == (number != OB_FEATURE_DMA_LOGGING_START), "feature %u comes while logging is %s",
         number, on ? "on" : "off");
    MUST(t, number != OB_FEATURE_DMA_LOGGING_START || ob_decode_logging_start(data, &start) == 0,
         "DMA_LOGGING_START has a page size or ranges that cannot be");
    play_of(t)->looked++;
}

static void logging_order(struct test *t)
{
    session(t, look_at_logging);
}

/* ---- What is read -------------------------------------------------------------------------- */

/* A client that loads a state loads the one that it has read. */
static void whole(struct test *t)
{
    begin(t)->strict = true;
    play_out(t);
    if (!play_of(t)->migration.loaded)
        test_not_offered(t, "the client loads no state");
}

static void padded(struct test *t)
{
    play_of(t)->migration.padded = true;
    whole(t);
}

static void in_small_pieces(struct test *t)
{
    play_of(t)->capabilities = "\"max_msg_fds\":16,\"max_data_xfer_size\":100";
    whole(t);
}

/* The answer to a MIG_DATA_READ, with these numbers and so many bytes behind them. */
static void answer_data(struct test *t, uint32_t more_argsz, uint32_t more_size, uint32_t len)
{
    struct ob_wire_mig_data wire;
    struct answer *a;

    begin(t);
    a = play_until(t, OB_CMD_MIG_DATA_READ);
    memcpy(&wire, t->in.data, sizeof(wire));
    wire.argsz = (uint32_t)sizeof(wire) + wire.size + more_argsz;
    wire.size += more_size;
    memcpy(a->data, &wire, sizeof(wire));
    a->len = (uint32_t)sizeof(wire) + len;
    play_send(t, a);
}

static void more_than_asked(struct test *t)
{
    answer_data(t, 1, 1, PLAY_STATE);
    play_ends(t);
}

static void more_than_comes(struct test *t)
{
    answer_data(t, 0, 0, 0);
    play_ends(t);
}

static void nonsense_size(struct test *t)
{
    answer_data(t, 0, 0xffff0000, 8);
    play_ends(t);
}

/* ---- Answers of features ------------------------------------------------------------------- */

static void short_feature(struct test *t)
{
    struct answer *a;

    begin(t);
    a = until_feature(t, OB_FEATURE_GET | OB_FEATURE_MIGRATION);
    a->len -= 1;
    play_send(t, a);
    play_ends(t);
}

static void long_feature(struct test *t)
{
    struct answer *a;

    begin(t);
    a = until_feature(t, OB_FEATURE_GET | OB_FEATURE_MIGRATION);
    a->data[a->len++] = 0;
    play_send(t, a);
    play_ends(t);
}

static void unknown_state(struct test *t)
{
    struct answer *a;

    begin(t);
    a = until_feature(t, OB_FEATURE_GET | OB_FEATURE_MIG_DEVICE_STATE);
    a->data[DATA_AT] = 99;
    play_send(t, a);
    play_ends(t);
}

/* The state is then where it was. */
static void transition_refused(struct test *t)
{
    struct play_migration *m = begin(t);
    struct answer *a;
    uint32_t before;

    for (;;) {
        before = m->state;
        a = until_feature(t, OB_FEATURE_SET | OB_FEATURE_MIG_DEVICE_STATE);
        if (m->state != before)
            break;
        play_send(t, a);
    }
    m->state = before;
    a->hdr.flags |= OB_HDR_ERROR;
    a->hdr.error_no = EIO;
    a->len = 0;
    play_send(t, a);
    m->most = PLAY_DATA;
    play_of(t)->look = look_at_data; /* no data is moved as if it had been done */
    play_either(t);
}

/* ---- Dirty memory -------------------------------------------------------------------------- */

static void start_answered(struct test *t, uint64_t page_size, void (*then)(struct test *t))
{
    struct answer *a;

    begin(t);
    a = until_feature(t, OB_FEATURE_SET | OB_FEATURE_DMA_LOGGING_START);
    memcpy(a->data + DATA_AT, &page_size, sizeof(page_size));
    play_send(t, a);
    then(t);
}

static void other_page_size(struct test *t)
{
    start_answered(t, 65536, play_goes_on);
}

static void no_page_size(struct test *t)
{
    start_answered(t, 3000, play_ends);
}

static struct answer *until_report(struct test *t)
{
    begin(t);
    return until_feature(t, OB_FEATURE_GET | OB_FEATURE_DMA_LOGGING_REPORT);
}

static void short_bitmap(struct test *t)
{
    struct answer *a = until_report(t);

    a->len -= 8;
    play_send(t, a);
    play_ends(t);
}

static void long_bitmap(struct test *t)
{
    struct answer *a = until_report(t);

    memset(a->data + a->len, 0, 8);
    a->len += 8;
    play_send(t, a);
    play_ends(t);
}

static void other_memory(struct test *t)
{
    struct answer *a = until_report(t);

    a->data[DATA_AT + 1] ^= 0x10; /* iova */
    play_send(t, a);
    play_ends(t);
}

/* As libvfio-user's of memory that is not one mapping. */
static void no_bitmap(struct test *t)
{
    struct answer *a = until_report(t);

    a->len = 0;
    play_send(t, a);
    play_either(t);
}

static const struct entry entries[] = {
    RAW("migration/methods", "R-FEATURE-1", "a feature is asked for with one method", methods),
    RAW("migration/argsz", "R-FEATURE-4 R-FEATURE-5", "there is room for the reply", argsz),
    RAW("migration/states", "R-MIG-5", "only states that there are are set", states),
    RAW("migration/data", "R-MIG-12 R-MIG-16", "data is moved in its states, with its sizes", data),
    RAW("migration/small-data", "R-MIG-16 R-CAPS-8", "no more is moved than the server takes",
        small_data),
    RAW("migration/whole", "R-MIG-13 R-MIG-14", "what was read can be loaded again", whole),
    RAW("migration/padded", "R-MIG-15", "bytes behind the data are no data", padded),
    RAW("migration/in-small-pieces", "R-MIG-13 R-CAPS-8", "so it can in small pieces",
        in_small_pieces),
    RAW("migration/more-than-asked", "R-MIG-15", "more data than was asked ends the connection",
        more_than_asked),
    RAW("migration/more-than-comes", "R-MIG-15", "a size beyond the payload ends the connection",
        more_than_comes),
    RAW("migration/nonsense-size", "R-MIG-15", "a size of 4 GiB ends the connection",
        nonsense_size),
    RAW("migration/short-feature", "R-HDR-12",
        "a feature shorter than its structure ends the connection", short_feature),
    RAW("migration/long-feature", "R-HDR-12", "a feature longer than asked ends the connection",
        long_feature),
    RAW("migration/unknown-state", "R-MIG-18", "a state that there is not ends the connection",
        unknown_state),
    RAW("migration/transition-refused", "R-MIG-18 R-LOSS-5",
        "no data is moved after a transition was refused", transition_refused),
    RAW("logging/order", "R-LOG-2 R-LOG-3", "START comes first, and once", logging_order),
    RAW("logging/other-page-size", "R-LOG-2", "the server may choose another page size",
        other_page_size),
    RAW("logging/no-page-size", "R-LOG-10", "a page size of 3000 ends the connection",
        no_page_size),
    RAW("logging/short-bitmap", "R-LOG-10 R-HDR-12",
        "a bitmap that is too short ends the connection", short_bitmap),
    RAW("logging/long-bitmap", "R-HDR-12", "a bitmap that is too long ends the connection",
        long_bitmap),
    RAW("logging/other-memory", "R-LOG-10", "a report of other memory ends the connection",
        other_memory),
    RAW("logging/no-bitmap", "R-LOG-10 R-LOSS-5", "no report at all neither hangs nor kills",
        no_bitmap),
};
CASES(client_migration_cases, entries);
