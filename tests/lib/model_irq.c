/* SPDX-License-Identifier: BSD-3-Clause */
/* The model's interrupts and migration states. */
#include "model_state.h"

#include <errno.h>

#include "harness.h"

#define ERROR     OB_MIG_STATE_ERROR
#define STOP      OB_MIG_STATE_STOP
#define RUNNING   OB_MIG_STATE_RUNNING
#define STOP_COPY OB_MIG_STATE_STOP_COPY
#define RESUMING  OB_MIG_STATE_RESUMING
#define PRE_COPY  OB_MIG_STATE_PRE_COPY

/* What changes while the stream is read is in it, or is not. */
static void spoil(struct model *m)
{
    m->changed |= m->state == STOP_COPY && !m->whole;
}

bool model_lies;

/* ---- Interrupts ---------------------------------------------------------------------------- */

/* Mostly one that there is. */
static uint32_t index_of(const struct model_command *c)
{
    static const uint32_t all[] = { OB_PCI_IRQ_MSIX, OB_PCI_IRQ_INTX, OB_PCI_IRQ_MSIX,
                                    OB_PCI_IRQ_INTX, OB_PCI_IRQ_MSIX, OB_PCI_IRQ_INTX,
                                    OB_PCI_IRQ_MSI,  OB_PCI_IRQS };

    return all[c->a % 8];
}

static struct model_irq *irq_of(struct model *m, uint32_t index)
{
    static struct model_irq none;

    m->intx.count = 1;
    m->intx.automasked = true;
    m->msix.count = MODEL_VECTORS;
    return index == OB_PCI_IRQ_INTX ? &m->intx : index == OB_PCI_IRQ_MSIX ? &m->msix : &none;
}

/* Signals what is due. */
static void deliver(struct model *m, struct model_irq *irq)
{
    for (uint32_t i = 0; i < irq->count; i++) {
        if (!irq->vectors[i].armed || irq->vectors[i].masked || m->held ||
            !(irq->vectors[i].pending || irq->level))
            continue;
        irq->vectors[i].pending = false;
        irq->vectors[i].masked = irq->automasked;
        irq->vectors[i].signals++;
    }
}

static void trigger(struct model *m, struct model_irq *irq, uint32_t vector)
{
    spoil(m);
    if (irq->vectors[vector].armed)
        irq->vectors[vector].pending = true;
    deliver(m, irq);
}

static void disable(struct model_irq *irq)
{
    for (uint32_t i = 0; i < irq->count; i++)
        irq->vectors[i].armed = irq->vectors[i].masked = irq->vectors[i].pending = false;
}

/* Which vectors a command is for: 0, or -EINVAL. */
static int range(struct model *m, const struct model_command *c, uint32_t *index, uint32_t *start,
                 uint32_t *count)
{
    *index = index_of(c);
    *start = c->b % (MODEL_VECTORS + 1);
    *count = 1 + c->c % MODEL_VECTORS;
    return *index < OB_PCI_IRQS && *start + *count <= irq_of(m, *index)->count ? 0 : -EINVAL;
}

void model_step_eventfds(struct world *w, const struct model_command *c)
{
    uint32_t index, start, count;
    int fds[2 * MODEL_VECTORS], rc = range(&w->m, c, &index, &start, &count);
    struct model_irq *irq = irq_of(&w->m, index);
    bool back = c->d % 4 == 0;

    for (uint32_t i = 0; i < 2 * MODEL_VECTORS; i++)
        fds[i] = index == OB_PCI_IRQ_INTX ? w->intx_fd : w->msix_fds[i % MODEL_VECTORS];
    CHECK_INT(peer_set_irqs(&w->peer, index, OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER,
                            start, count, NULL, fds + start, back ? 0 : count),
              rc);
    for (uint32_t i = start; i < start + count && rc == 0; i++) {
        irq->vectors[i].armed = !back;
        irq->vectors[i].pending &= !back;
    }
    if (rc == 0) {
        spoil(&w->m);
        deliver(&w->m, irq);
    }
}

void model_step_disable(struct world *w, const struct model_command *c)
{
    uint32_t index = index_of(c);
    int rc = index < OB_PCI_IRQS ? 0 : -EINVAL;

    CHECK_INT(peer_set_irqs(&w->peer, index, OB_IRQ_SET_DATA_NONE | OB_IRQ_SET_ACTION_TRIGGER, 0, 0,
                            NULL, NULL, 0),
              rc);
    if (rc == 0) {
        spoil(&w->m);
        disable(irq_of(&w->m, index));
    }
}

/* An action on all vectors of the range, or on those whose bit is set. */
static void act(struct world *w, const struct model_command *c, uint32_t action, uint32_t which,
                bool by_bools)
{
    uint32_t index, start, count;
    int rc = range(&w->m, c, &index, &start, &count);
    struct model_irq *irq = irq_of(&w->m, index);
    uint8_t bools[MODEL_VECTORS];

    for (uint32_t i = 0; i < MODEL_VECTORS; i++)
        bools[i] = by_bools ? which >> i & 1 : 1;
    CHECK_INT(peer_set_irqs(&w->peer, index,
                            (by_bools ? OB_IRQ_SET_DATA_BOOL : OB_IRQ_SET_DATA_NONE) | action,
                            start, count, by_bools ? bools : NULL, NULL, 0),
              rc);
    for (uint32_t i = 0; i < count && rc == 0; i++) {
        if (!bools[i])
            continue;
        if (action == OB_IRQ_SET_ACTION_TRIGGER)
            trigger(&w->m, irq, start + i);
        else
            irq->vectors[start + i].masked = action == OB_IRQ_SET_ACTION_MASK;
        deliver(&w->m, irq);
    }
}

void model_step_mask(struct world *w, const struct model_command *c)
{
    act(w, c, c->d & 1 ? OB_IRQ_SET_ACTION_MASK : OB_IRQ_SET_ACTION_UNMASK, c->d >> 2, c->d & 2);
}

void model_step_fire(struct world *w, const struct model_command *c)
{
    act(w, c, OB_IRQ_SET_ACTION_TRIGGER, c->d >> 1, c->d & 1);
}

void model_step_trigger(struct world *w, const struct model_command *c)
{
    uint32_t index = index_of(c), vector = c->b % (MODEL_VECTORS + 1);
    struct model_irq *irq = irq_of(&w->m, index);
    int rc = index >= OB_PCI_IRQS || vector >= irq->count ? -EINVAL
             : irq->vectors[vector].armed                 ? 0
                                                          : -ENOENT;

    CHECK_INT(ob_server_irq_trigger(w->server, index, vector), rc);
    if (rc == 0)
        trigger(&w->m, irq, vector);
}

void model_step_level(struct world *w, const struct model_command *c)
{
    struct model_irq *irq = irq_of(&w->m, OB_PCI_IRQ_INTX);
    bool rises = (c->a & 1) && !irq->level;

    CHECK_INT(ob_server_intx(w->server, c->a & 1), 0);
    irq->level = c->a & 1;
    if (rises)
        deliver(&w->m, irq);
}

/* ---- Migration ----------------------------------------------------------------------------- */

static void hold(struct model *m, bool held)
{
    m->held = held;
    deliver(m, &m->intx);
    deliver(m, &m->msix);
}

/* What was written becomes the state, all or nothing of it. */
static int load(struct model *m)
{
    if (m->written == 0)
        return 0;
    if (m->written != m->stream_len || m->changed)
        return -EINVAL;
    memcpy(m->memory, m->saved, MODEL_STATE);
    m->intx.vectors[0].pending = m->saved_intx;
    for (uint32_t i = 0; i < MODEL_VECTORS; i++)
        m->msix.vectors[i].pending = m->saved_msix[i];
    return 0;
}

/* One arc of the diagram. */
static int arc(struct model *m, enum ob_mig_state to)
{
    bool reads = to == PRE_COPY || (to == STOP_COPY && m->state != PRE_COPY);

    if (m->state == RESUMING && load(m) < 0) {
        m->state = ERROR;
        return -EINVAL;
    }
    if (reads) {
        m->stream_len = 0;
        m->whole = m->changed = false;
    } else if (to == RESUMING) {
        m->written = 0;
        m->changed = false;
    }
    m->arcs = model_arc(m->arcs, m->state, to);
    m->state = to;
    hold(m, to != RUNNING && to != PRE_COPY);
    return 0;
}

/* The next state on the way from one to another; ERROR: there is none. */
static enum ob_mig_state next(enum ob_mig_state from, enum ob_mig_state to)
{
    switch (from) {
    case STOP:
        return to == PRE_COPY ? RUNNING : to;
    case RUNNING:
        return to == PRE_COPY ? to : STOP;
    case PRE_COPY:
        return to == STOP_COPY ? to : RUNNING;
    case STOP_COPY:
        return to == PRE_COPY ? ERROR : STOP;
    case RESUMING:
        return STOP;
    default:
        return ERROR;
    }
}

static bool exists(uint32_t state)
{
    return (state >= STOP && state <= RESUMING) || state == PRE_COPY; /* without P2P */
}

static int go(struct model *m, uint32_t goal)
{
    int rc = 0;

    if (!exists(goal) || m->state == ERROR)
        return -EINVAL;
    while (rc == 0 && m->state != goal) {
        enum ob_mig_state to = next(m->state, (enum ob_mig_state)goal);

        rc = to == ERROR ? -EINVAL : arc(m, to);
    }
    return rc;
}

void model_irq_leave(struct model *m)
{
    disable(irq_of(m, OB_PCI_IRQ_INTX));
    disable(irq_of(m, OB_PCI_IRQ_MSIX));
    if (m->state == RESUMING)
        m->state = ERROR;
    else
        go(m, RUNNING);
}

void model_step_state(struct world *w, const struct model_command *c)
{
    struct {
        struct ob_wire_feature head;
        struct ob_wire_mig_state state;
    } wire = { { sizeof(wire), OB_FEATURE_SET | OB_FEATURE_MIG_DEVICE_STATE }, { 0 } };
    /* Mostly one that there is. */
    static const uint32_t goals[] = { STOP,     RUNNING,   STOP_COPY, RESUMING, PRE_COPY, STOP_COPY,
                                      RESUMING, STOP_COPY, RESUMING,  ERROR,    5,        8 };
    uint32_t goal = goals[c->a % 12];

    wire.state.device_state = goal;
    CHECK_INT(peer_call(&w->peer, OB_CMD_DEVICE_FEATURE, &wire, sizeof(wire), NULL),
              go(&w->m, goal));
}

static void read_stream(struct world *w, uint32_t count)
{
    struct ob_wire_mig_data wire = { sizeof(wire) + count, count };
    struct model *m = &w->m;
    struct ob_msg *reply;

    CHECK_INT(peer_call(&w->peer, OB_CMD_MIG_DATA_READ, &wire, sizeof(wire), &reply), 0);
    memcpy(&wire, reply->payload, sizeof(wire));
    CHECK(wire.size <= count && m->stream_len + wire.size <= MODEL_STREAM);
    CHECK_INT(reply->len, sizeof(wire) + wire.size);
    memcpy(m->stream + m->stream_len, reply->payload + sizeof(wire), wire.size);
    m->stream_len += wire.size;
    ob_msg_free(reply);
    if (m->whole) {
        CHECK_INT(wire.size, 0);
        return;
    }
    m->whole = m->state == STOP_COPY && wire.size < count && !m->changed;
    memcpy(m->saved, m->memory, MODEL_STATE);
    m->saved_intx = m->intx.vectors[0].pending;
    for (uint32_t i = 0; i < MODEL_VECTORS; i++)
        m->saved_msix[i] = m->msix.vectors[i].pending;
}

/* What is not known to be all of a stream is not written again. */
static void write_stream(struct world *w, uint32_t count, bool change)
{
    struct {
        struct ob_wire_mig_data head;
        uint8_t data[MODEL_STREAM];
    } wire;
    struct model *m = &w->m;
    int rc;

    if (count > m->stream_len - m->written)
        count = m->stream_len - m->written;
    if (!m->whole || count == 0)
        return;
    wire.head = (struct ob_wire_mig_data){ sizeof(wire.head) + count, count };
    memcpy(wire.data, m->stream + m->written, count);
    if (change)
        wire.data[count / 2] ^= 0x10;
    rc = peer_call(&w->peer, OB_CMD_MIG_DATA_WRITE, &wire, sizeof(wire.head) + count, NULL);
    m->changed |= change;
    m->written += count;
    if (!m->changed || rc != -EINVAL) /* it is noticed at once, or later */
        CHECK_INT(rc, 0);
}

void model_step_stream(struct world *w, const struct model_command *c)
{
    uint32_t count = 1 + c->a % 400;
    struct ob_wire_mig_data wire = { sizeof(wire) + count, count };

    if (w->m.state == STOP_COPY || w->m.state == PRE_COPY)
        read_stream(w, count);
    else if (w->m.state == RESUMING)
        write_stream(w, count, c->b % 8 == 7);
    else
        CHECK_INT(peer_call(&w->peer, OB_CMD_MIG_DATA_READ, &wire, sizeof(wire), NULL), -EINVAL);
}

void model_step_reset(struct world *w, const struct model_command *c)
{
    struct model *m = &w->m;

    (void)c;
    CHECK_INT(peer_call(&w->peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
    memset(m->memory, 0, model_lies ? 0 : sizeof(m->memory));
    m->intx.level = m->intx.vectors[0].pending = false;
    for (uint32_t i = 0; i < MODEL_VECTORS; i++)
        m->msix.vectors[i].pending = false;
    m->state = RUNNING;
    m->stream_len = m->stream_len * m->whole;
    hold(m, false);
}
