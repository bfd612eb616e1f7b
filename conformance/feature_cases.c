/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * DEVICE_FEATURE, the states of migration, and its data. A case leaves the device in
 * RUNNING, and a client that is gone does too; so a failure in one does not fail the next.
 */
#include "conformance/test.h"

#include <errno.h>

#define GET   OB_FEATURE_GET
#define SET   OB_FEATURE_SET
#define PROBE OB_FEATURE_PROBE
#define STATE OB_FEATURE_MIG_DEVICE_STATE
#define BASE  EDU_BASE
#define RW    (OB_DMA_READ | OB_DMA_WRITE)

#define STOP_COPY_BIT 1u
#define PRE_COPY_BIT  4u

enum state { ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P };

static int feature(struct test *t, uint32_t flags, const void *data, size_t len)
{
    return device_feature(t, flags, data, len, 64);
}

static void feature_refused(struct test *t, uint32_t flags, const void *data, size_t len)
{
    test_is_refused(t, feature(t, flags, data, len), 0, OB_CMD_DEVICE_FEATURE);
}

static uint64_t reply_number(struct test *t)
{
    uint64_t number;

    MUST(t, t->in.len == sizeof(struct ob_wire_feature) + sizeof(number),
         "the reply to DEVICE_FEATURE has %u bytes", t->in.len);
    memcpy(&number, t->in.data + sizeof(struct ob_wire_feature), sizeof(number));
    return number;
}

/* What MIGRATION says. */
static uint64_t migration_flags(struct test *t)
{
    if (feature(t, GET | OB_FEATURE_MIGRATION, NULL, 0) != 0)
        test_not_offered(t, "the device cannot migrate");
    return reply_number(t);
}

static int set_state(struct test *t, uint32_t state)
{
    uint32_t data[2] = { state, 0 };

    return feature(t, SET | STATE, data, sizeof(data));
}

static void must_set_state(struct test *t, uint32_t state)
{
    int got = set_state(t, state);

    MUST(t, got == 0, "state %u was refused: %s", state, strerror(got));
}

/* Some servers keep the state that a case before this one left behind when it failed. */
static uint64_t need_migration(struct test *t)
{
    uint64_t has = migration_flags(t);

    set_state(t, RUNNING);
    return has;
}

static uint32_t get_state(struct test *t)
{
    test_is_ok(t, feature(t, GET | STATE, NULL, 0), OB_CMD_DEVICE_FEATURE);
    return (uint32_t)reply_number(t);
}

static void state_is(struct test *t, uint32_t state)
{
    uint32_t got = get_state(t);

    MUST(t, got == state, "the state is %u, not %u", got, state);
}

/* ---- DEVICE_FEATURE ------------------------------------------------------------------------ */

static void methods(struct test *t)
{
    uint32_t data[2] = { RUNNING, 0 };

    feature_refused(t, STATE, NULL, 0);
    feature_refused(t, GET | SET | STATE, data, sizeof(data));
    for (unsigned bit = 19; bit < 32; bit++)
        feature_refused(t, 1u << bit | GET | OB_FEATURE_MIGRATION, NULL, 0);
    test_alive(t);
}

static void unknown(struct test *t)
{
    static const uint32_t numbers[] = { 0, 3, 4, 5, 9, 10, 255, 0xffff };
    static const uint64_t data[3] = { 1, PAGE, PAGE };

    for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        feature_refused(t, GET | numbers[i], NULL, 0);
        feature_refused(t, SET | numbers[i], NULL, 0);
        feature_refused(t, PROBE | GET | numbers[i], NULL, 0);
    }
    feature_refused(t, SET | OB_FEATURE_MIGRATION, data, sizeof(data));
    feature_refused(t, GET | OB_FEATURE_DMA_LOGGING_START, data, sizeof(data));
    feature_refused(t, SET | OB_FEATURE_DMA_LOGGING_REPORT, data, sizeof(data));
    test_alive(t);
}

static void probe(struct test *t)
{
    struct ob_wire_feature ask = { sizeof(ask), PROBE | GET | SET | STATE };

    need_migration(t);
    test_ok(t, OB_CMD_DEVICE_FEATURE, &ask, sizeof(ask));
    MUST(t, t->in.len == sizeof(ask) && memcmp(t->in.data, &ask, sizeof(ask)) == 0,
         "the reply to PROBE is not the request");
    feature_refused(t, PROBE | SET | OB_FEATURE_MIGRATION, NULL, 0);
    feature_refused(t, PROBE | GET | SET | OB_FEATURE_MIGRATION, NULL, 0);
    test_is_ok(t, feature(t, PROBE | OB_FEATURE_MIGRATION, NULL, 0), OB_CMD_DEVICE_FEATURE);
    state_is(t, RUNNING);
}

static void no_room_for_reply(struct test *t)
{
    struct ob_wire_feature ask = { sizeof(ask) + 7, GET | OB_FEATURE_MIGRATION };

    need_migration(t);
    test_refused(t, 0, OB_CMD_DEVICE_FEATURE, &ask, sizeof(ask));
    ask.argsz = sizeof(ask) + 8;
    test_ok(t, OB_CMD_DEVICE_FEATURE, &ask, sizeof(ask));
    memcpy(&ask, t->in.data, sizeof(ask));
    MUST(t, ask.argsz == t->in.len, "argsz of the reply is %u, it has %u bytes", ask.argsz,
         t->in.len);
}

/* The reply to a SET is as long as its request. */
static void no_room_for_echo(struct test *t)
{
    uint32_t data[2] = { STOP };

    need_migration(t);
    test_is_refused(t, device_feature(t, SET | STATE, data, sizeof(data), -8), 0,
                    OB_CMD_DEVICE_FEATURE);
    test_is_refused(t, device_feature(t, SET | STATE, data, sizeof(data), -1), 0,
                    OB_CMD_DEVICE_FEATURE);
    state_is(t, RUNNING);
    test_is_ok(t, device_feature(t, SET | STATE, data, sizeof(data), 0), OB_CMD_DEVICE_FEATURE);
    state_is(t, STOP);
    must_set_state(t, RUNNING);
}

static void data_differs(struct test *t)
{
    uint32_t data[3] = { STOP };

    need_migration(t);
    feature_refused(t, SET | STATE, data, 0);
    feature_refused(t, SET | STATE, data, 7);
    state_is(t, RUNNING);
    test_is_ok(t, feature(t, SET | STATE, data, sizeof(data)), OB_CMD_DEVICE_FEATURE);
    state_is(t, STOP);
    must_set_state(t, RUNNING);
}

/* ---- States -------------------------------------------------------------------------------- */

static void flags(struct test *t)
{
    uint64_t has = migration_flags(t);

    MUST(t, (has & STOP_COPY_BIT) && !(has & ~(uint64_t)(STOP_COPY_BIT | PRE_COPY_BIT)),
         "MIGRATION says 0x%llx", (unsigned long long)has);
    state_is(t, RUNNING);
}

/* Every way from one state to another, as the table has it. */
static void all_ways(struct test *t)
{
    static const uint32_t states[] = { STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY };
    unsigned n = need_migration(t) & PRE_COPY_BIT ? 5 : 4;

    for (unsigned from = 0; from < n; from++)
        for (unsigned to = 0; to < n; to++) {
            must_set_state(t, RUNNING);
            must_set_state(t, states[from]);
            state_is(t, states[from]);
            if (states[from] == STOP_COPY && states[to] == PRE_COPY) {
                MUST(t, set_state(t, PRE_COPY) != 0, "STOP_COPY went to PRE_COPY");
                state_is(t, STOP_COPY);
            } else {
                must_set_state(t, states[to]);
                state_is(t, states[to]);
            }
        }
    must_set_state(t, RUNNING);
}

static void no_such_state(struct test *t)
{
    static const uint32_t bad[] = { ERROR, RUNNING_P2P, PRE_COPY_P2P, 8, UINT32_MAX };
    bool pre_copy = need_migration(t) & PRE_COPY_BIT;

    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        MUST(t, set_state(t, bad[i]) != 0, "state %u was taken", bad[i]);
    if (!pre_copy)
        MUST(t, set_state(t, PRE_COPY) != 0, "PRE_COPY was taken, which MIGRATION has not got");
    state_is(t, RUNNING);
}

static void reset_runs(struct test *t)
{
    static const uint32_t states[] = { STOP, STOP_COPY, RESUMING };

    need_migration(t);
    for (unsigned i = 0; i < 3; i++) {
        must_set_state(t, states[i]);
        test_ok(t, OB_CMD_DEVICE_RESET, NULL, 0);
        state_is(t, RUNNING);
    }
}

static void leaving_runs(struct test *t)
{
    need_migration(t);
    must_set_state(t, STOP_COPY);
    test_hang_up(t);
    test_served(t);
    state_is(t, RUNNING);
}

static void commands_while_stopped(struct test *t)
{
    need_migration(t);
    for (uint32_t state = STOP; state <= STOP_COPY; state += STOP_COPY - STOP) {
        must_set_state(t, state);
        test_alive(t);
        test_is_ok(t, device_map(t, RW, -1, 0, BASE, PAGE), OB_CMD_DMA_MAP);
        test_is_ok(t, device_unmap(t, 0, BASE, PAGE), OB_CMD_DMA_UNMAP);
        if (device_has_config(t))
            device_read(t, OB_PCI_REGION_CONFIG, 0, 4);
    }
    must_set_state(t, RUNNING);
}

/* ---- Data ---------------------------------------------------------------------------------- */

#define DATA_MAX ((size_t)4 << 20)
#define CHUNK    1000u

static int read_data(struct test *t, uint32_t size, uint32_t argsz)
{
    struct ob_wire_mig_data ask = { argsz, size };

    return test_ask(t, OB_CMD_MIG_DATA_READ, &ask, sizeof(ask));
}

static int write_data(struct test *t, const uint8_t *data, uint32_t size)
{
    uint8_t payload[sizeof(struct ob_wire_mig_data) + CHUNK];
    struct ob_wire_mig_data ask = { (uint32_t)sizeof(ask) + size, size };

    memcpy(payload, &ask, sizeof(ask));
    memcpy(payload + sizeof(ask), data, size);
    return test_ask(t, OB_CMD_MIG_DATA_WRITE, payload, sizeof(ask) + size);
}

/* All there is in STOP_COPY. Returns its length. */
static size_t save(struct test *t, uint8_t *data)
{
    size_t len = 0;

    for (;;) {
        struct ob_wire_mig_data got;

        test_is_ok(t, read_data(t, CHUNK, CHUNK + sizeof(got)), OB_CMD_MIG_DATA_READ);
        memcpy(&got, t->in.data, sizeof(got));
        MUST(t, got.size <= CHUNK && got.argsz == sizeof(got) + got.size && t->in.len >= got.argsz,
             "MIG_DATA_READ: size %u, argsz %u, %u bytes", got.size, got.argsz, t->in.len);
        if (t->in.len != got.argsz)
            test_deviates(t, "MIG_DATA_READ has bytes behind its data, as libvfio-user's");
        if (len + got.size > DATA_MAX)
            test_not_offered(t, "the device has more state than this suite reads");
        memcpy(data + len, t->in.data + sizeof(got), got.size);
        len += got.size;
        if (got.size < CHUNK)
            return len;
    }
}

static void load(struct test *t, const uint8_t *data, size_t len)
{
    for (size_t at = 0; at < len; at += CHUNK)
        test_is_ok(t, write_data(t, data + at, len - at < CHUNK ? (uint32_t)(len - at) : CHUNK),
                   OB_CMD_MIG_DATA_WRITE);
}

static uint8_t saved[DATA_MAX];

static void save_and_restore(struct test *t)
{
    size_t len;

    need_migration(t);
    if (device_has_config(t))
        device_write(t, OB_PCI_REGION_CONFIG, CONFIG_LINE, 0x6b, 1);
    must_set_state(t, STOP_COPY);
    len = save(t, saved);
    MUST(t, len > 0, "the device has no state");
    must_set_state(t, RUNNING);
    if (device_has_config(t))
        device_write(t, OB_PCI_REGION_CONFIG, CONFIG_LINE, 0, 1);
    must_set_state(t, RESUMING);
    load(t, saved, len);
    must_set_state(t, RUNNING);
    if (device_has_config(t))
        MUST(t, device_read(t, OB_PCI_REGION_CONFIG, CONFIG_LINE, 1) == 0x6b,
             "the interrupt line is not restored");
}

static void torn_data(struct test *t)
{
    size_t len;

    need_migration(t);
    must_set_state(t, STOP_COPY);
    len = save(t, saved);
    must_set_state(t, RESUMING);
    load(t, saved, len / 2);
    MUST(t, set_state(t, STOP) != 0, "half of the state was taken for all of it");
    state_is(t, ERROR);
    MUST(t, set_state(t, RUNNING) != 0, "the state ERROR was left without a reset");
    test_ok(t, OB_CMD_DEVICE_RESET, NULL, 0);
    state_is(t, RUNNING);
}

static void data_out_of_state(struct test *t)
{
    static const uint8_t none[8];
    static const struct {
        uint32_t state;
        bool read, write;
    } ways[] = { { STOP, false, false },
                 { STOP_COPY, true, false },
                 { RESUMING, false, true },
                 { PRE_COPY, true, false } };
    unsigned n;

    test_is_refused(t, read_data(t, 8, 16), 0, OB_CMD_MIG_DATA_READ);
    test_is_refused(t, write_data(t, none, 8), 0, OB_CMD_MIG_DATA_WRITE);
    n = need_migration(t) & PRE_COPY_BIT ? 4 : 3;
    for (unsigned i = 0; i < n; i++) {
        must_set_state(t, ways[i].state);
        if (!ways[i].read)
            test_is_refused(t, read_data(t, 8, 16), 0, OB_CMD_MIG_DATA_READ);
        if (!ways[i].write)
            test_is_refused(t, write_data(t, none, 8), 0, OB_CMD_MIG_DATA_WRITE);
        must_set_state(t, RUNNING);
    }
}

static void data_limits(struct test *t)
{
    need_migration(t);
    must_set_state(t, STOP_COPY);
    test_is_refused(t, read_data(t, 16, 23), 0, OB_CMD_MIG_DATA_READ);
    test_is_refused(t, read_data(t, OB_DATA_XFER_DEFAULT + 1, UINT32_MAX), 0, OB_CMD_MIG_DATA_READ);
    test_is_refused(t, read_data(t, UINT32_MAX, UINT32_MAX), 0, OB_CMD_MIG_DATA_READ);
    must_set_state(t, RUNNING);
}

/* What a WRITE says and has may differ. */
static int write_says(struct test *t, uint32_t argsz, uint32_t size, uint32_t has)
{
    static uint8_t payload[sizeof(struct ob_wire_mig_data) + OB_DATA_XFER_MAX + 1];
    struct ob_wire_mig_data ask = { argsz, size };

    memcpy(payload, &ask, sizeof(ask));
    return test_ask(t, OB_CMD_MIG_DATA_WRITE, payload, sizeof(ask) + has);
}

static void write_limits(struct test *t)
{
    uint32_t limit = t->dev->caps.max_data_xfer_size;

    need_migration(t);
    must_set_state(t, RESUMING);
    test_is_refused(t, write_says(t, 24, 16, 15), 0, OB_CMD_MIG_DATA_WRITE);
    test_is_refused(t, write_says(t, 24, 16, 0), 0, OB_CMD_MIG_DATA_WRITE);
    test_is_refused(t, write_says(t, 23, 16, 16), 0, OB_CMD_MIG_DATA_WRITE);
    test_is_refused(t, write_says(t, UINT32_MAX, UINT32_MAX, 16), 0, OB_CMD_MIG_DATA_WRITE);
    if (limit <= OB_DATA_XFER_MAX)
        test_is_refused(t, write_says(t, limit + 9, limit + 1, limit + 1), 0,
                        OB_CMD_MIG_DATA_WRITE);
    must_set_state(t, RUNNING); /* nothing was written: it keeps what it had */
}

static void clients_limit(struct test *t)
{
    static const char json[] = "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":4096,"
                               "\"migration\":{\"pgsize\":4096}}}";

    test_is_ok(t, test_version(t, 0, 0, json, sizeof(json)), OB_CMD_VERSION);
    need_migration(t);
    must_set_state(t, STOP_COPY);
    test_is_refused(t, read_data(t, 4097, 4105), 0, OB_CMD_MIG_DATA_READ);
    test_is_ok(t, read_data(t, 4096, 4104), OB_CMD_MIG_DATA_READ);
    must_set_state(t, RUNNING);
}

static const struct entry entries[] = {
    CASE("feature/methods", "R-FEATURE-1", "one method, and no undefined flag", methods),
    CASE("feature/unknown", "R-FEATURE-2", "features that nobody knows are refused", unknown),
    CASE("feature/probe", "R-FEATURE-3 R-FEATURE-4", "PROBE tells which methods there are", probe),
    CASE("feature/no-room-for-reply", "R-FEATURE-5", "a GET without room for its data is refused",
         no_room_for_reply),
    CASE("feature/no-room-for-echo", "R-FEATURE-4",
         "a SET without room for its reply is refused and does nothing", no_room_for_echo),
    CASE("feature/data-differs", "R-FEATURE-6",
         "less data than the feature's is refused, more is not", data_differs),
    CASE("migration/flags", "R-MIG-1 R-MIG-2", "MIGRATION has STOP_COPY, the device is RUNNING",
         flags),
    SLOW("migration/all-ways", "R-MIG-3 R-MIG-4 R-MIG-5",
         "states follow each other as in the table", all_ways),
    CASE("migration/no-such-state", "R-MIG-5", "states that cannot be set are refused",
         no_such_state),
    CASE("migration/reset-runs", "R-MIG-10 R-DEVICE-7", "a reset goes to RUNNING", reset_runs),
    CASE("migration/leaving-runs", "R-MIG-11", "when the client is lost the device runs",
         leaving_runs),
    CASE("migration/commands-while-stopped", "R-MIG-9", "commands work in every state",
         commands_while_stopped),
    SLOW("migration/save-and-restore", "R-MIG-13 R-MIG-14 R-MIG-17",
         "what was saved can be restored", save_and_restore),
    SLOW("migration/torn-data", "R-MIG-5 R-MIG-7", "half of a state is refused, and an error",
         torn_data),
    CASE("migration/data-out-of-state", "R-MIG-12", "data moves only in its states",
         data_out_of_state),
    CASE("migration/data-limits", "R-MIG-16", "a size above argsz or the limit is refused",
         data_limits),
    CASE("migration/write-limits", "R-MIG-16 R-MIG-17",
         "data that is shorter than it says, or longer than can be, is refused", write_limits),
    RAW("migration/clients-limit", "R-MIG-16", "no read is larger than the client takes",
        clients_limit),
};

CASES(feature_cases, entries);
