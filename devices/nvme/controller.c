/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The registers, and what they start: enabling, reset, shutdown.
 *
 * States, by CC.EN, CSTS.RDY and `resetting`:
 *   0 0 -     disabled: no queue is live
 *   1 1 -     enabled; nvme_running() unless CSTS.CFS is set or the client is not ready
 *   0 1 yes   a reset waits for what is in flight; no queue is served
 *   1 0 -     the host asked for something we cannot do: CSTS.CFS is set
 */
#include "nvme.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define RESET_TIMEOUT_NS (5 * 1000000000LL)
#define TIMEOUT_500MS    60u /* CAP.TO: a reset waits for the backend */

static uint64_t capabilities(void)
{
    return (NVME_QUEUE_ENTRIES_MAX - 1) | 1ull << 16 /* CQR: queues are contiguous */ |
           (uint64_t)TIMEOUT_500MS << 24 | 1ull << 37 /* CSS: the NVM command set */;
}

void nvme_fatal(struct nvme_ctrl *c, const char *why)
{
    char line[128];

    if (c->csts & NVME_CSTS_CFS)
        return;
    c->csts |= NVME_CSTS_CFS;
    c->dirty = true;
    if (!nvme_may_say(&c->fatal_log_ns))
        return;
    snprintf(line, sizeof(line), "controller fatal status: %s", why);
    c->log(c, OB_LOG_ERROR, line);
}

bool nvme_may_run(const struct nvme_ctrl *c)
{
    return (c->csts & (NVME_CSTS_RDY | NVME_CSTS_CFS)) == NVME_CSTS_RDY && !c->resetting &&
           !c->paused && !c->stopped && ob_server_attached(c->server) &&
           (!c->bus_master_set || (ob_pci_command(c->server) & NVME_BUS_MASTER));
}

bool nvme_running(const struct nvme_ctrl *c)
{
    return !c->recovering && nvme_may_run(c);
}

/* ---- Enable and reset ---------------------------------------------------------------------- */

static void enable(struct nvme_ctrl *c)
{
    uint32_t sq_entries = (c->aqa & 0xfff) + 1, cq_entries = (c->aqa >> 16 & 0xfff) + 1;

    c->grace_ns = 0; /* the client that is here set this up */
    if (NVME_CC_CSS(c->cc) || NVME_CC_MPS(c->cc) || NVME_CC_AMS(c->cc)) {
        nvme_fatal(c, "CC asks for a command set, page size or arbitration that CAP has not");
        return;
    }
    if (sq_entries < 2 || cq_entries < 2 || c->asq % NVME_PAGE || c->acq % NVME_PAGE) {
        nvme_fatal(c, "AQA, ASQ or ACQ is not valid");
        return;
    }
    if (nvme_claim_image(c) < 0) {
        nvme_fatal(c, "the image is not this server's");
        return;
    }
    nvme_cq_start(c, 0, c->acq, cq_entries, true, 0);
    if (nvme_sq_start(c, 0, 0, c->asq, sq_entries) < 0) {
        nvme_cq_stop(c, &c->cq[0]);
        nvme_fatal(c, "no memory for the admin queue");
        return;
    }
    c->csts |= NVME_CSTS_RDY;
    c->dirty = true;
    nvme_check_temperature(c);
}

/* Nothing is in flight: all queues go, and what a controller level reset resets. */
static void finish_reset(struct nvme_ctrl *c)
{
    nvme_events_reset(c);
    for (unsigned i = 0; i < NVME_QIDS; i++)
        if (c->sq[i].live)
            nvme_sq_stop(c, &c->sq[i]);
    for (unsigned i = 0; i < NVME_QIDS; i++)
        if (c->cq[i].live)
            nvme_cq_stop(c, &c->cq[i]);
    nvme_shadow_stop(c);
    nvme_features_reset(c);
    c->resetting = c->paused = c->recovering = false;
    c->dirty = true;
    c->csts = c->shutting ? NVME_CSTS_SHST_OCCURRING : 0;
    c->intms = 0;
    if (c->intx)
        ob_server_intx(c->server, false);
    c->intx = false;
}

static void shutdown_flushed(struct blk_req *req, int rc)
{
    struct nvme_ctrl *c = (void *)((char *)req - offsetof(struct nvme_ctrl, shutdown_flush));

    c->flushing = false;
    c->inflight--;
    if (rc < 0)
        nvme_cache_lost(c);
    if (c->lost)
        nvme_fatal(c, "the image could not be flushed");
    c->csts = (c->csts & ~NVME_CSTS_SHST_MASK) | NVME_CSTS_SHST_COMPLETE;
    c->dirty = true;
}

bool nvme_settle(struct nvme_ctrl *c)
{
    if (c->inflight > 0)
        return false;
    if (c->resetting) {
        finish_reset(c);
        if (c->cc & NVME_CC_EN)
            enable(c);
        return true;
    }
    if (!c->shutting || c->stopped)
        return false;
    c->shutting = false;
    c->shutdown_flush = (struct blk_req){ .op = BLK_FLUSH, .done = shutdown_flushed };
    c->flushing = true;
    c->inflight++;
    c->blk->ops->submit(c->blk, &c->shutdown_flush);
    return true;
}

/* syscalls: poll, ppoll, read */
int nvme_drain(struct nvme_ctrl *c, int64_t deadline_ns)
{
    struct pollfd pfd = { .fd = c->blk->event_fd, .events = POLLIN };

    while (c->inflight > 0) {
        if (c->blk->ops->poll(c->blk) || c->blk->ops->arm(c->blk, true))
            continue;
        int64_t left_ns = deadline_ns - nvme_now_ns();
        if (left_ns <= 0)
            return -ETIMEDOUT;
        /* event_fd may stay readable: never a reason to look less than once a millisecond */
        if (poll(&pfd, 1, (int)(left_ns / 1000000 < 1000 ? left_ns / 1000000 + 1 : 1000)) > 0) {
            uint64_t count;
            if (read(pfd.fd, &count, sizeof(count)) < 0)
                continue;
        }
    }
    return 0;
}

int nvme_hard_reset(struct nvme_ctrl *c)
{
    int rc;

    c->cc = 0;
    c->aqa = 0;
    c->asq = c->acq = 0;
    c->resetting = true;
    c->shutting = false;
    rc = nvme_drain(c, nvme_now_ns() + RESET_TIMEOUT_NS);
    if (rc == 0)
        finish_reset(c);
    return rc; /* else nvme_settle() ends it */
}

/* ---- Registers ----------------------------------------------------------------------------- */

static void write_cc(struct nvme_ctrl *c, uint32_t value)
{
    uint32_t before = c->cc;

    if (before & value & NVME_CC_EN)
        value = (value & ~NVME_CC_FIXED) | (before & NVME_CC_FIXED);
    c->cc = value;
    c->paused = false; /* a client that does this knows what it is doing */
    if (NVME_CC_SHN(value) && !NVME_CC_SHN(before) && !c->flushing) {
        c->csts = (c->csts & ~NVME_CSTS_SHST_MASK) | NVME_CSTS_SHST_OCCURRING;
        c->shutting = true;
    }
    if ((before & NVME_CC_EN) && !(value & NVME_CC_EN))
        c->resetting = true;
    else if (!(before & NVME_CC_EN) && (value & NVME_CC_EN) && !c->resetting)
        enable(c);
    nvme_settle(c);
}

static void set_half(uint64_t *reg, bool high, uint32_t value)
{
    if (high)
        *reg = (*reg & 0xffffffffu) | (uint64_t)value << 32;
    else
        *reg = (*reg & ~0xffffffffull) | value;
}

static void write_reg(struct nvme_ctrl *c, uint32_t offset, uint32_t value)
{
    bool high = offset & 4;

    switch (offset) {
    case NVME_REG_INTMS:
        c->intms |= value;
        nvme_file_note_intms(c); /* some drivers write it at each interrupt */
        return;
    case NVME_REG_INTMC:
        c->intms &= ~value;
        nvme_file_note_intms(c);
        return;
    case NVME_REG_CC:
        write_cc(c, value);
        break;
    case NVME_REG_AQA:
        c->aqa = value & 0x0fff0fff;
        break;
    case NVME_REG_ASQ:
        set_half(&c->asq, high, value & ~(NVME_PAGE - 1));
        break;
    case NVME_REG_ACQ:
        set_half(&c->acq, high, value & ~(NVME_PAGE - 1));
        break;
    case NVME_REG_ASQ + 4:
        set_half(&c->asq, high, value);
        break;
    case NVME_REG_ACQ + 4:
        set_half(&c->acq, high, value);
        break;
    default:
        return; /* read-only or reserved */
    }
    c->dirty = true;
}

static uint32_t read_reg(const struct nvme_ctrl *c, uint32_t offset)
{
    switch (offset) {
    case NVME_REG_CAP:
        return (uint32_t)capabilities();
    case NVME_REG_CAP + 4:
        return (uint32_t)(capabilities() >> 32);
    case NVME_REG_VS:
        return NVME_VS;
    case NVME_REG_INTMS:
    case NVME_REG_INTMC:
        return c->intms;
    case NVME_REG_CC:
        return c->cc;
    case NVME_REG_CSTS:
        return c->csts;
    case NVME_REG_AQA:
        return c->aqa;
    case NVME_REG_ASQ:
        return (uint32_t)c->asq;
    case NVME_REG_ASQ + 4:
        return (uint32_t)(c->asq >> 32);
    case NVME_REG_ACQ:
        return (uint32_t)c->acq;
    case NVME_REG_ACQ + 4:
        return (uint32_t)(c->acq >> 32);
    default:
        return 0;
    }
}

static void access_word(struct nvme_ctrl *c, uint32_t offset, uint32_t *word, bool is_write)
{
    if (offset >= NVME_DOORBELLS && offset < NVME_DOORBELLS + NVME_PAGE)
        nvme_doorbell_access(c, (offset - NVME_DOORBELLS) / 4, word, is_write);
    else if (is_write)
        write_reg(c, offset, *word);
    else
        *word = read_reg(c, offset);
}

/* Registers are words of four bytes. Reads may be of any size and place; a write that is not made
 * of whole words has no effect. */
int nvme_reg_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct nvme_ctrl *c = opaque;
    uint8_t *bytes = data;
    uint32_t word;

    if (is_write && (offset % 4 || count % 4))
        return 0;
    while (count > 0) {
        uint32_t at = (uint32_t)offset % 4;
        uint32_t part = count < 4 - at ? count : 4 - at;
        if (is_write)
            memcpy(&word, bytes, 4);
        access_word(c, (uint32_t)offset & ~3u, &word, is_write);
        if (!is_write)
            memcpy(bytes, (uint8_t *)&word + at, part);
        bytes += part;
        offset += part;
        count -= part;
    }
    nvme_file_sync(c);
    return 0;
}
