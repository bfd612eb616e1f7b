/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The migration of the device that is played: a state of PLAY_STATE bytes, of which a part can be
 * read in PRE_COPY, and memory that the device never writes. A session has it when its case says
 * so, and the client did too.
 */
#include "conformance/client.h"

#include <errno.h>

#define IN_PRE_COPY 1000u /* bytes of the state that come in PRE_COPY */

static uint8_t state_byte(uint32_t at)
{
    return (uint8_t)(at * 31 + at / 256);
}

/* ---- Features ------------------------------------------------------------------------------ */

static void set_state(struct test *t, struct answer *a, uint32_t state)
{
    struct play_migration *m = &play_of(t)->migration;
    bool known = (state >= OB_MIG_STATE_STOP && state <= OB_MIG_STATE_RESUMING) ||
                 state == OB_MIG_STATE_PRE_COPY;

    if (!known || (m->state == OB_MIG_STATE_STOP_COPY && state == OB_MIG_STATE_PRE_COPY)) {
        answer_refuse(a, EINVAL);
        return;
    }
    if (m->state == OB_MIG_STATE_RESUMING && state != m->state && m->at) {
        MUST(t, !m->strict || m->at == PLAY_STATE, "the client loads %u bytes, it has read %u",
             m->at, PLAY_STATE);
        m->loaded = m->at == PLAY_STATE;
    }
    if (m->state != OB_MIG_STATE_PRE_COPY || state != OB_MIG_STATE_STOP_COPY)
        m->at = 0;
    m->state = state;
    answer_put(a, t->in.data, t->in.len);
}

static void get(struct answer *a, uint32_t flags, uint64_t value)
{
    const struct ob_wire_feature head = { sizeof(head) + sizeof(value), flags };

    answer_put(a, &head, sizeof(head));
    answer_put(a, &value, sizeof(value));
}

static void report(struct answer *a, const struct ob_wire_feature *asked, struct ob_cursor data)
{
    struct ob_wire_feature head = *asked;
    struct ob_wire_logging_report wire;
    uint64_t size;

    if (ob_decode_logging_report(data, OB_DATA_XFER_MAX, &wire, &size) < 0 ||
        asked->argsz < sizeof(head) + sizeof(wire) + size) {
        answer_refuse(a, EINVAL);
        return;
    }
    head.argsz = (uint32_t)(sizeof(head) + sizeof(wire) + size);
    answer_put(a, &head, sizeof(head));
    answer_put(a, &wire, sizeof(wire));
    memset(a->data + a->len, 0, size);
    a->len += (uint32_t)size;
}

static void logging(struct test *t, struct answer *a, bool on)
{
    struct play_migration *m = &play_of(t)->migration;

    if (m->logging == on) {
        answer_refuse(a, EINVAL);
        return;
    }
    m->logging = on;
    answer_put(a, t->in.data, t->in.len);
}

static void feature(struct test *t, struct answer *a)
{
    struct play_migration *m = &play_of(t)->migration;
    struct ob_wire_feature head;
    struct ob_wire_mig_state state;
    struct ob_cursor data;

    if (ob_decode_feature(t->in.data, t->in.len, &head, &data) < 0) {
        answer_refuse(a, EINVAL);
        return;
    }
    switch (head.flags) {
    case OB_FEATURE_GET | OB_FEATURE_MIGRATION:
        get(a, head.flags, OB_MIG_STOP_COPY | OB_MIG_PRE_COPY);
        break;
    case OB_FEATURE_GET | OB_FEATURE_MIG_DEVICE_STATE:
        get(a, head.flags, m->state);
        break;
    case OB_FEATURE_SET | OB_FEATURE_MIG_DEVICE_STATE:
        if (ob_cursor_get(&data, &state, sizeof(state)))
            set_state(t, a, state.device_state);
        else
            answer_refuse(a, EINVAL);
        break;
    case OB_FEATURE_SET | OB_FEATURE_DMA_LOGGING_START:
        logging(t, a, true);
        break;
    case OB_FEATURE_SET | OB_FEATURE_DMA_LOGGING_STOP:
        logging(t, a, false);
        break;
    case OB_FEATURE_GET | OB_FEATURE_DMA_LOGGING_REPORT:
        report(a, &head, data);
        break;
    default:
        answer_refuse(a, EINVAL);
    }
}

/* ---- The state ----------------------------------------------------------------------------- */

static void data_read(struct test *t, struct answer *a)
{
    struct play_migration *m = &play_of(t)->migration;
    struct ob_wire_mig_data wire;
    uint32_t end = m->state == OB_MIG_STATE_PRE_COPY ? IN_PRE_COPY : PLAY_STATE, asked;

    memcpy(&wire, t->in.data, sizeof(wire));
    if ((m->state != OB_MIG_STATE_PRE_COPY && m->state != OB_MIG_STATE_STOP_COPY) ||
        wire.size > PLAY_DATA) {
        answer_refuse(a, EINVAL);
        return;
    }
    asked = wire.size;
    if (wire.size > end - m->at)
        wire.size = end - m->at;
    wire.argsz = (uint32_t)sizeof(wire) + wire.size;
    answer_put(a, &wire, sizeof(wire));
    memset(a->data + a->len, 0xee, asked);
    for (uint32_t i = 0; i < wire.size; i++)
        a->data[a->len + i] = state_byte(m->at++);
    a->len += m->padded ? asked : wire.size;
}

static void data_write(struct test *t, struct answer *a)
{
    struct play_migration *m = &play_of(t)->migration;
    struct ob_wire_mig_data wire;
    const void *bytes;

    if (m->state != OB_MIG_STATE_RESUMING ||
        ob_decode_mig_data(t->in.data, t->in.len, true, PLAY_DATA, &wire, &bytes) < 0) {
        answer_refuse(a, EINVAL);
        return;
    }
    for (uint32_t i = 0; i < wire.size && m->strict; i++)
        MUST(t, ((const uint8_t *)bytes)[i] == state_byte(m->at + i),
             "byte %u that the client loads is not what it has read", m->at + i);
    m->at += wire.size;
}

/* ---- All of it ----------------------------------------------------------------------------- */

void migration_answer(struct test *t, struct answer *a)
{
    if (!play_of(t)->migration.offered)
        answer_refuse(a, EINVAL);
    else if (t->in.hdr.cmd == OB_CMD_DEVICE_FEATURE)
        feature(t, a);
    else if (t->in.hdr.cmd == OB_CMD_MIG_DATA_READ)
        data_read(t, a);
    else
        data_write(t, a);
}
