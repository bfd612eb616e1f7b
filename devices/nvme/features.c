/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Get and Set Features. Nothing is saved over a restart, so "saved" is the default; and a
 * controller reset brings all defaults back.
 */
#include "nvme.h"

#include <string.h>

enum { SELECT_CURRENT, SELECT_DEFAULT, SELECT_SAVED, SELECT_CAPABILITIES };

#define CAP_NS_SPECIFIC 0x2u
#define CAP_CHANGEABLE  0x4u

#define VECTOR_VALID      0x1ffffu /* number, and coalescing disable */
#define TEMP_SELECT(dw11) ((dw11) >> 16 & 0xfu)
#define TEMP_TYPE(dw11)   ((dw11) >> 20 & 0x3u)

/* A feature whose value is what was set. */
struct plain {
    uint8_t id, caps;
    uint16_t where; /* in struct nvme_features */
    uint32_t initial;
    uint32_t valid; /* bits that may be set */
};

#define AT(field) offsetof(struct nvme_features, field)
static const struct plain plain[] = {
    { NVME_FEAT_ARBITRATION, CAP_CHANGEABLE, AT(arbitration), 0x5, 0xffffff07 },
    { NVME_FEAT_ERROR_RECOVERY, CAP_CHANGEABLE | CAP_NS_SPECIFIC, AT(error_recovery), 0, 0xffff },
    { NVME_FEAT_WRITE_CACHE, CAP_CHANGEABLE, AT(write_cache), 1, 0x1 },
    { NVME_FEAT_COALESCING, CAP_CHANGEABLE, AT(coalescing), 0, 0xffff },
    { NVME_FEAT_ATOMICITY, CAP_CHANGEABLE, AT(atomicity), 0, 0x1 },
    { NVME_FEAT_ASYNC_EVENT, CAP_CHANGEABLE, AT(async_event), 0, 0xffffffff },
};

static const struct plain *find_plain(uint8_t id)
{
    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
        if (plain[i].id == id)
            return &plain[i];
    return NULL;
}

static uint32_t *value_of(struct nvme_features *f, const struct plain *feature)
{
    return (uint32_t *)(void *)((char *)f + feature->where);
}

void nvme_features_reset(struct nvme_ctrl *c)
{
    struct nvme_features *f = &c->features;

    *f =
        (struct nvme_features){ .over_kelvin = NVME_KELVIN_WARNING, .timestamp_ns = nvme_now_ns() };
    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
        *value_of(f, &plain[i]) = plain[i].initial;
    for (uint32_t i = 0; i < NVME_QIDS; i++)
        f->vector[i] = i;
}

bool nvme_features_ok(const struct nvme_ctrl *c, const struct nvme_features *f)
{
    uint8_t truth;

    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
        if (*value_of((struct nvme_features *)f, &plain[i]) & ~plain[i].valid)
            return false;
    for (uint32_t i = 0; i <= c->cfg.queues; i++)
        if (f->vector[i] & ~VECTOR_VALID)
            return false;
    /* A bool that is neither must not even be looked at. */
    memcpy(&truth, &f->timestamp_set, sizeof(truth));
    return (f->over_kelvin | f->under_kelvin) <= 0xffff && truth <= 1;
}

/* ---- Those with rules of their own --------------------------------------------------------- */

static uint32_t queue_counts(const struct nvme_ctrl *c)
{
    return (c->cfg.queues - 1) | (c->cfg.queues - 1) << 16;
}

/* The temperature threshold that dword 11 speaks of, or NULL. Sensor 0 is the composite one. */
static uint32_t *threshold(struct nvme_features *f, uint32_t dw11)
{
    if (TEMP_SELECT(dw11) != 0 && TEMP_SELECT(dw11) != 0xf)
        return NULL;
    if (TEMP_TYPE(dw11) > 1)
        return NULL;
    return TEMP_TYPE(dw11) == 0 ? &f->over_kelvin : &f->under_kelvin;
}

struct timestamp {
    uint8_t ms[6];
    uint8_t origin; /* 1 << 1: set by the host */
    uint8_t reserved;
};
static_assert(sizeof(struct timestamp) == 8, "Timestamp data");

static uint16_t get_timestamp(struct nvme_cmd *cmd, bool initial)
{
    const struct nvme_features *f = &cmd->ctrl->features;
    uint64_t ms = f->timestamp_ms + (uint64_t)((nvme_now_ns() - f->timestamp_ns) / 1000000);
    struct timestamp ts = { .origin = f->timestamp_set && !initial ? 1 << 1 : 0 };

    if (!initial)
        memcpy(ts.ms, &ms, sizeof(ts.ms));
    return nvme_copy_to_host(cmd->ctrl, &cmd->sqe, &ts, sizeof(ts));
}

static uint16_t set_timestamp(struct nvme_cmd *cmd)
{
    struct nvme_features *f = &cmd->ctrl->features;
    struct timestamp ts;
    uint16_t status = nvme_copy_from_host(cmd->ctrl, &cmd->sqe, &ts, sizeof(ts));

    if (status != NVME_OK)
        return status;
    f->timestamp_ms = 0;
    memcpy(&f->timestamp_ms, ts.ms, sizeof(ts.ms));
    f->timestamp_ns = nvme_now_ns();
    f->timestamp_set = true;
    return NVME_OK;
}

/* ---- Get Features -------------------------------------------------------------------------- */

static uint16_t capabilities(struct nvme_cmd *cmd, uint8_t id)
{
    const struct plain *feature = find_plain(id);

    switch (id) {
    case NVME_FEAT_POWER:
    case NVME_FEAT_TEMPERATURE:
    case NVME_FEAT_QUEUES:
    case NVME_FEAT_VECTOR:
    case NVME_FEAT_TIMESTAMP:
        cmd->result = CAP_CHANGEABLE;
        return NVME_OK;
    default:
        if (!feature)
            return NVME_INVALID_FIELD;
        cmd->result = feature->caps;
        return NVME_OK;
    }
}

static uint16_t get_value(struct nvme_cmd *cmd, uint8_t id, bool initial)
{
    struct nvme_ctrl *c = cmd->ctrl;
    const struct plain *feature = find_plain(id);
    uint32_t dw11 = cmd->sqe.dw11;
    uint32_t *kelvin;

    if (feature) {
        cmd->result = initial ? feature->initial : *value_of(&c->features, feature);
        return NVME_OK;
    }
    switch (id) {
    case NVME_FEAT_POWER: /* the only power state */
        return NVME_OK;
    case NVME_FEAT_TEMPERATURE:
        kelvin = threshold(&c->features, dw11);
        if (!kelvin)
            return NVME_INVALID_FIELD;
        cmd->result = !initial ? *kelvin : TEMP_TYPE(dw11) == 0 ? NVME_KELVIN_WARNING : 0;
        return NVME_OK;
    case NVME_FEAT_QUEUES:
        cmd->result = queue_counts(c);
        return NVME_OK;
    case NVME_FEAT_VECTOR:
        if ((dw11 & 0xffff) > c->cfg.queues)
            return NVME_INVALID_FIELD;
        cmd->result = initial ? dw11 & 0xffff : c->features.vector[dw11 & 0xffff];
        return NVME_OK;
    case NVME_FEAT_TIMESTAMP:
        return get_timestamp(cmd, initial);
    default:
        return NVME_INVALID_FIELD;
    }
}

uint16_t nvme_get_feature(struct nvme_cmd *cmd)
{
    uint8_t id = (uint8_t)cmd->sqe.dw10;
    const struct plain *feature = find_plain(id);
    uint32_t nsid = cmd->sqe.nsid;

    if (feature && (feature->caps & CAP_NS_SPECIFIC) && nsid != NVME_NSID)
        return NVME_INVALID_NS;
    switch (cmd->sqe.dw10 >> 8 & 0x7) {
    case SELECT_CURRENT:
        return get_value(cmd, id, false);
    case SELECT_DEFAULT:
    case SELECT_SAVED:
        return get_value(cmd, id, true);
    case SELECT_CAPABILITIES:
        return capabilities(cmd, id);
    default:
        return NVME_INVALID_FIELD;
    }
}

/* ---- Set Features -------------------------------------------------------------------------- */

static uint16_t set_plain(struct nvme_cmd *cmd, const struct plain *feature)
{
    struct nvme_ctrl *c = cmd->ctrl;
    uint32_t dw11 = cmd->sqe.dw11, *value = value_of(&c->features, feature);
    bool flush = feature->id == NVME_FEAT_WRITE_CACHE && !dw11 && !c->cfg.read_only;

    if (dw11 & ~feature->valid)
        return NVME_INVALID_FIELD;
    *value = dw11;
    nvme_check_temperature(c);
    if (!flush)
        return NVME_OK;
    /* What is in the cache now was promised no less than what comes. Also when it is off already:
     * this may be the command of a process that was killed before its flush was done. */
    cmd->blk = (struct blk_req){ .op = BLK_FLUSH };
    return nvme_blk_submit(cmd);
}

static uint16_t set_queues(struct nvme_cmd *cmd)
{
    struct nvme_ctrl *c = cmd->ctrl;
    uint32_t dw11 = cmd->sqe.dw11;

    for (unsigned i = 1; i <= c->cfg.queues; i++)
        if (c->sq[i].live || c->cq[i].live)
            return NVME_COMMAND_SEQUENCE_ERROR;
    if ((dw11 & 0xffff) == 0xffff || dw11 >> 16 == 0xffff)
        return NVME_INVALID_FIELD;
    cmd->result = queue_counts(c);
    return NVME_OK;
}

static uint16_t set_value(struct nvme_cmd *cmd, uint8_t id)
{
    struct nvme_ctrl *c = cmd->ctrl;
    const struct plain *feature = find_plain(id);
    uint32_t dw11 = cmd->sqe.dw11;
    uint32_t *kelvin;

    if (feature)
        return set_plain(cmd, feature);
    switch (id) {
    case NVME_FEAT_POWER:
        return dw11 & 0x1f ? NVME_INVALID_FIELD : NVME_OK;
    case NVME_FEAT_TEMPERATURE:
        kelvin = threshold(&c->features, dw11);
        if (!kelvin)
            return NVME_INVALID_FIELD;
        *kelvin = dw11 & 0xffff;
        nvme_check_temperature(c);
        return NVME_OK;
    case NVME_FEAT_QUEUES:
        return set_queues(cmd);
    case NVME_FEAT_VECTOR:
        if ((dw11 & 0xffff) > c->cfg.queues || (dw11 & ~VECTOR_VALID))
            return NVME_INVALID_FIELD;
        c->features.vector[dw11 & 0xffff] = dw11;
        return NVME_OK;
    case NVME_FEAT_TIMESTAMP:
        return set_timestamp(cmd);
    default:
        return NVME_INVALID_FIELD;
    }
}

uint16_t nvme_set_feature(struct nvme_cmd *cmd)
{
    uint8_t id = (uint8_t)cmd->sqe.dw10;
    const struct plain *feature = find_plain(id);
    uint32_t nsid = cmd->sqe.nsid;
    uint16_t status = capabilities(cmd, id);

    cmd->result = 0;
    if (status != NVME_OK)
        return status;
    if (cmd->sqe.dw10 >> 31)
        return NVME_NOT_SAVEABLE;
    if (feature && (feature->caps & CAP_NS_SPECIFIC)) {
        if (nsid != NVME_NSID && nsid != NVME_NSID_ALL)
            return NVME_INVALID_NS;
    } else if (nsid != 0 && nsid != NVME_NSID_ALL) {
        return nsid == NVME_NSID ? NVME_NOT_NS_SPECIFIC : NVME_INVALID_NS;
    }
    return set_value(cmd, id);
}
