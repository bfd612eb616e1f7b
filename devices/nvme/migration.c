/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Migration. To stop, the commands that are under way are brought to an end, and completions are
 * posted as far as there is room; so what is left of a command is a completion, or an Asynchronous
 * Event Request. The blocks are not part of the state: both servers have the same image, or a copy.
 * So the image is flushed and its lock given up before the state can be read whole, and the server
 * that the disk has moved to takes the lock when it lets the disk run. Whoever cannot have the lock
 * does not run.
 */
#include "nvme.h"

#include <errno.h>

#define STOP_TIMEOUT_NS (4 * 1000000000LL) /* a client waits for the answer */
#define STATE_MAX       (1u << 20)

/* ---- Stopping ----------------------------------------------------------------------------- */

static int stop(struct nvme_ctrl *c, int64_t deadline)
{
    do {
        int rc = nvme_drain(c, deadline);

        if (rc < 0)
            return rc;
    } while (nvme_settle(c));
    if (nvme_running(c))
        nvme_post(c);
    nvme_conclude_all(c);
    nvme_count_busy(c, false);
    nvme_rings_forget(c, 0, UINT64_MAX);
    c->stopped = true;
    return 0;
}

/* A state that came from elsewhere goes on like that of a client that has reconnected. Without a
 * client nothing is read or written; the next one is what the image is taken back for. */
static int start(struct nvme_ctrl *c)
{
    int rc = ob_server_attached(c->server) ? nvme_claim_image(c) : 0;

    if (rc < 0)
        return rc;
    c->stopped = false;
    if (c->loaded)
        nvme_take_over(c);
    c->loaded = false;
    return 0;
}

/* Another server may have it now, also on another machine. */
static int hand_over_image(struct nvme_ctrl *c, int64_t deadline)
{
    int rc = nvme_drain(c, deadline);

    if (rc == 0)
        rc = nvme_flush(c, deadline);
    if (rc < 0)
        return rc;
    blk_unlock(c->blk);
    return 0;
}

/* ---- The callbacks ------------------------------------------------------------------------ */

static int transition(void *opaque, enum ob_mig_state from, enum ob_mig_state to)
{
    bool runs = from == OB_MIG_STATE_RUNNING || from == OB_MIG_STATE_PRE_COPY;
    bool stops = to == OB_MIG_STATE_STOP || to == OB_MIG_STATE_STOP_COPY;
    int64_t deadline = nvme_now_ns() + STOP_TIMEOUT_NS;
    struct nvme_ctrl *c = opaque;
    int rc = 0;

    if (runs && stops)
        rc = stop(c, deadline);
    if (rc == 0 && to == OB_MIG_STATE_STOP_COPY) {
        rc = nvme_state_save(c);
        if (rc == 0)
            rc = hand_over_image(c, deadline);
        if (rc < 0 && runs)
            start(c); /* the lock is still ours */
    } else if (from == OB_MIG_STATE_RESUMING && c->state.len) {
        rc = nvme_state_load(c);
    }
    if (rc < 0)
        return rc;
    if (from == OB_MIG_STATE_STOP && to == OB_MIG_STATE_RUNNING)
        rc = start(c);
    if (rc < 0)
        return rc;
    if (to != OB_MIG_STATE_STOP_COPY)
        ob_state_clear(&c->state);
    return 0;
}

static int64_t read_state(void *opaque, void *data, uint32_t count)
{
    struct nvme_ctrl *c = opaque;

    return ob_state_read(&c->state, data, count);
}

static int write_state(void *opaque, const void *data, uint32_t count)
{
    struct nvme_ctrl *c = opaque;

    return ob_state_write(&c->state, data, count, STATE_MAX);
}

void nvme_migration_end(struct nvme_ctrl *c)
{
    c->stopped = c->loaded = false;
    ob_state_clear(&c->state);
}

const struct ob_migration_ops nvme_state_ops = { .size = sizeof(nvme_state_ops),
                                                 .transition = transition,
                                                 .read = read_state,
                                                 .write = write_state };
