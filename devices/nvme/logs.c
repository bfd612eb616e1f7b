/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Get Log Page, and the counters behind it. They count from the start of the process.
 */
#include "nvme.h"

#include <stdlib.h>
#include <string.h>

#define LOG_SIZE_MAX 4096u

static_assert(sizeof(((struct nvme_ctrl *)0)->errors) == LOG_SIZE_MAX, "fits the largest log");

void nvme_count_busy(struct nvme_ctrl *c, bool busy)
{
    struct nvme_stats *st = &c->stats;

    if (busy == (st->busy_since_ns != 0))
        return;
    if (busy)
        st->busy_since_ns = nvme_now_ns();
    else
        st->busy_ns += nvme_now_ns() - st->busy_since_ns;
    if (!busy)
        st->busy_since_ns = 0;
}

/* Newest first. A comparison that failed and an abort that was asked for are not errors. */
void nvme_log_error(struct nvme_ctrl *c, const struct nvme_cmd *cmd)
{
    uint16_t code = cmd->status & 0x7ff;

    if (code == (NVME_COMPARE_FAILURE & 0x7ff) || code == NVME_ABORT_REQUESTED || c->resetting)
        return;
    c->dirty = true;
    memmove(&c->errors[1], &c->errors[0], sizeof(c->errors) - sizeof(c->errors[0]));
    c->errors[0] = (struct nvme_error_entry){
        .count = ++c->stats.errors,
        .sq_id = cmd->sq->id,
        .cid = cmd->sqe.cid,
        .status = (uint16_t)(cmd->status << 1),
        .location = 0xffff, /* no particular parameter */
        .lba = cmd->sq->id ? cmd->sqe.dw10 | (uint64_t)cmd->sqe.dw11 << 32 : 0,
        .nsid = cmd->sqe.nsid,
    };
}

static uint32_t health_log(const struct nvme_ctrl *c, void *out)
{
    const struct nvme_stats *st = &c->stats;
    struct nvme_health_log *log = out;
    int64_t now = nvme_now_ns();
    int64_t busy = st->busy_ns + (st->busy_since_ns ? now - st->busy_since_ns : 0);

    log->critical_warning = c->warnings;
    log->temperature[0] = NVME_KELVIN & 0xff;
    log->temperature[1] = NVME_KELVIN >> 8;
    log->spare = 100;
    log->spare_threshold = 10;
    log->units_read.low = (st->bytes_read + 511999) / 512000;
    log->units_written.low = (st->bytes_written + 511999) / 512000;
    log->reads.low = st->reads;
    log->writes.low = st->writes;
    log->busy_minutes.low = (uint64_t)(busy / 60000000000LL);
    log->power_cycles.low = st->power_cycles;
    log->power_on_hours.low = (uint64_t)((now - st->start_ns) / 3600000000000LL);
    log->unsafe_shutdowns.low = st->unsafe_shutdowns;
    log->media_errors.low = st->media_errors;
    log->error_entries.low = st->errors;
    return sizeof(*log);
}

static uint32_t firmware_log(const struct nvme_ctrl *c, void *out)
{
    struct nvme_firmware_log *log = out;

    log->active = 1;
    memcpy(log->slots[0], c->firmware, sizeof(log->slots[0]));
    return sizeof(*log);
}

static uint32_t effects_log(const struct nvme_ctrl *c, void *out)
{
    static const uint8_t admin[] = { NVME_ADM_DELETE_SQ,    NVME_ADM_CREATE_SQ,
                                     NVME_ADM_GET_LOG_PAGE, NVME_ADM_DELETE_CQ,
                                     NVME_ADM_CREATE_CQ,    NVME_ADM_IDENTIFY,
                                     NVME_ADM_ABORT,        NVME_ADM_SET_FEATURES,
                                     NVME_ADM_GET_FEATURES, NVME_ADM_ASYNC_EVENT };
    static const uint8_t io[] = { NVME_IO_FLUSH, NVME_IO_READ, NVME_IO_COMPARE };
    static const uint8_t changing[] = { NVME_IO_WRITE, NVME_IO_WRITE_ZEROES, NVME_IO_DSM };
    struct nvme_effects_log *log = out;

    for (size_t i = 0; i < sizeof(admin); i++)
        log->admin[admin[i]] = NVME_EFFECT_SUPPORTED;
    if (!c->cfg.mapped)
        log->admin[NVME_ADM_DBBUF_CONFIG] = NVME_EFFECT_SUPPORTED;
    for (size_t i = 0; i < sizeof(io); i++)
        log->io[io[i]] = NVME_EFFECT_SUPPORTED;
    for (size_t i = 0; i < sizeof(changing); i++)
        log->io[changing[i]] = NVME_EFFECT_SUPPORTED | NVME_EFFECT_CONTENT;
    return sizeof(*log);
}

/* The whole log into out, zeroed, of LOG_SIZE_MAX bytes. Its size; 0: there is none such. */
static uint32_t build(const struct nvme_ctrl *c, uint8_t id, void *out)
{
    switch (id) {
    case NVME_LOG_ERROR:
        memcpy(out, c->errors, sizeof(c->errors));
        return sizeof(c->errors);
    case NVME_LOG_HEALTH:
        return health_log(c, out);
    case NVME_LOG_FIRMWARE:
        return firmware_log(c, out);
    case NVME_LOG_CHANGED_NS:
        return LOG_SIZE_MAX; /* no namespace changes: all zero */
    case NVME_LOG_EFFECTS:
        return effects_log(c, out);
    default:
        return 0;
    }
}

uint16_t nvme_get_log(struct nvme_cmd *cmd)
{
    struct nvme_ctrl *c = cmd->ctrl;
    const struct nvme_sqe *sqe = &cmd->sqe;
    uint64_t dwords = (sqe->dw10 >> 16 | (uint64_t)(sqe->dw11 & 0xffff) << 16) + 1;
    uint64_t offset = sqe->dw12 | (uint64_t)sqe->dw13 << 32;
    bool keep_event = sqe->dw10 & 0x8000;
    uint8_t log[LOG_SIZE_MAX] = { 0 }, id = (uint8_t)sqe->dw10;
    uint32_t size = build(c, id, log);
    uint16_t status;
    uint8_t *out;

    if (size == 0)
        return NVME_INVALID_LOG_PAGE;
    if (sqe->nsid > NVME_NSID && sqe->nsid != NVME_NSID_ALL)
        return NVME_INVALID_NS;
    if (offset % 4 || offset >= size || dwords * 4 > NVME_TRANSFER_MAX)
        return NVME_INVALID_FIELD;
    out = calloc(dwords, 4);
    if (!out)
        return NVME_INTERNAL_ERROR;
    memcpy(out, log + offset, dwords * 4 < size - offset ? dwords * 4 : size - offset);
    status = nvme_copy_to_host(c, sqe, out, (uint32_t)dwords * 4);
    free(out);
    if (status == NVME_OK && !keep_event)
        nvme_event_log_read(c, id);
    return status;
}
