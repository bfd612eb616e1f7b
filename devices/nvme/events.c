/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Asynchronous events: what the controller tells without being asked. The host leaves requests
 * open for it. After an event its type is silent until the host has read the log it names.
 */
#include "nvme.h"

static void deliver(struct nvme_ctrl *c)
{
    struct nvme_events *ev = &c->events;
    unsigned kept = 0;

    for (unsigned i = 0; i < ev->nwaiting; i++) {
        uint32_t event = ev->waiting[i], type = NVME_EVENT_TYPE(event);
        if (ev->naers == 0 || (ev->masked >> type & 1)) {
            ev->waiting[kept++] = event;
            continue;
        }
        struct nvme_cmd *aer = ev->aers[--ev->naers];
        ev->masked |= (uint8_t)(1u << type);
        aer->result = event;
        nvme_cmd_done(aer, NVME_OK);
    }
    ev->nwaiting = kept;
}

void nvme_event(struct nvme_ctrl *c, uint32_t event)
{
    struct nvme_events *ev = &c->events;

    if (!(c->csts & NVME_CSTS_RDY) || c->resetting)
        return;
    for (unsigned i = 0; i < ev->nwaiting; i++)
        if (ev->waiting[i] == event)
            return;
    if (ev->nwaiting < NVME_EVENTS_MAX)
        ev->waiting[ev->nwaiting++] = event;
    c->dirty = true;
    deliver(c);
}

void nvme_event_log_read(struct nvme_ctrl *c, uint8_t log)
{
    if (log == NVME_LOG_ERROR)
        c->events.masked &= (uint8_t) ~(1u << NVME_EVENT_ERROR);
    if (log == NVME_LOG_HEALTH)
        c->events.masked &= (uint8_t) ~(1u << NVME_EVENT_HEALTH);
    deliver(c);
}

uint16_t nvme_async_event(struct nvme_cmd *cmd)
{
    struct nvme_events *ev = &cmd->ctrl->events;

    if (ev->naers == NVME_AERS_MAX)
        return NVME_AER_LIMIT_EXCEEDED;
    ev->aers[ev->naers++] = cmd;
    deliver(cmd->ctrl);
    return NVME_PENDING;
}

bool nvme_event_abort(struct nvme_ctrl *c, uint16_t cid)
{
    struct nvme_events *ev = &c->events;

    for (unsigned i = 0; i < ev->naers; i++) {
        struct nvme_cmd *aer = ev->aers[i];
        if (aer->sqe.cid != cid)
            continue;
        ev->aers[i] = ev->aers[--ev->naers];
        nvme_cmd_done(aer, NVME_ABORT_REQUESTED);
        return true;
    }
    return false;
}

void nvme_events_reset(struct nvme_ctrl *c)
{
    c->events = (struct nvme_events){ 0 };
}

void nvme_check_temperature(struct nvme_ctrl *c)
{
    const struct nvme_features *f = &c->features;
    bool beyond = NVME_KELVIN >= f->over_kelvin || NVME_KELVIN <= f->under_kelvin;
    bool was = c->warnings & NVME_WARN_TEMPERATURE;

    if (beyond == was)
        return;
    c->warnings ^= NVME_WARN_TEMPERATURE;
    if (beyond && (f->async_event & NVME_WARN_TEMPERATURE))
        nvme_event(c, NVME_EVENT_TEMPERATURE);
}
