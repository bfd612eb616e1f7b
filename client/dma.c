/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the server may see of our memory. The changes of one call are pipelined: up to
 * OB_CLIENT_DMA_WINDOW are under way, so that a memory map of thousands of pieces costs few round
 * trips, and still each change gets its own answer.
 */
#include "client/memo.h"

#include <errno.h>
#include <string.h>

#define MAP_FLAGS (OB_DMA_READ | OB_DMA_WRITE | OB_DMA_ACCESS_MMAP | OB_DMA_ACCESS_FILE)

/* Servers without a wish of their own take any alignment. */
static bool whole_pages(const struct ob_client *c, const struct ob_dma_change *change)
{
    uint64_t page = ob_client_page_size(c);

    return page == OB_PGSIZES_DEFAULT || !((change->address | change->size) & (page - 1));
}

static int check_change(const struct ob_client *c, const struct ob_dma_change *change)
{
    if (change->size == 0 || change->address > UINT64_MAX - (change->size - 1))
        return -EINVAL;
    if (change->unmap)
        return 0;
    if (change->flags & ~MAP_FLAGS)
        return -EINVAL;
    if (!whole_pages(c, change))
        return -EINVAL;
    return change->fd >= 0 && c->caps.max_msg_fds == 0 ? -EOPNOTSUPP : 0;
}

bool ob_client_reserve_map(struct ob_client *c, bool take)
{
    bool ok = true;

    ob_client_lock(c);
    if (take && c->dma_maps >= c->caps.max_dma_maps)
        ok = false;
    else if (take)
        c->dma_maps++;
    else if (c->dma_maps > 0)
        c->dma_maps--;
    ob_client_unlock(c);
    return ok;
}

static int start_map(struct ob_client *c, struct ob_request *req,
                     const struct ob_dma_change *change)
{
    struct ob_wire_dma_map wire = { sizeof(wire), change->flags,
                                    change->fd >= 0 ? change->offset : 0, change->address,
                                    change->size };
    struct ob_body body = { .fixed = &wire, .fixed_len = sizeof(wire) };
    int rc;

    if (change->fd >= 0) {
        body.fds = &change->fd;
        body.nfds = 1;
    }
    if (!ob_client_reserve_map(c, true))
        return -ENOSPC;
    rc = ob_request_start(c, req, OB_CMD_DMA_MAP, &body);
    if (rc < 0)
        ob_client_reserve_map(c, false);
    return rc;
}

static int start_unmap(struct ob_client *c, struct ob_request *req,
                       const struct ob_dma_change *change)
{
    struct ob_wire_dma_unmap wire = { sizeof(wire), 0, change->address, change->size };
    struct ob_body body = { .fixed = &wire, .fixed_len = sizeof(wire) };

    return ob_request_start(c, req, OB_CMD_DMA_UNMAP, &body);
}

static int start_change(struct ob_client *c, struct ob_request *req,
                        const struct ob_dma_change *change)
{
    int rc = check_change(c, change);

    if (rc < 0)
        return rc;
    return change->unmap ? start_unmap(c, req, change) : start_map(c, req, change);
}

/* A server without use for DMA answers an unmap with nothing but a header. */
static int finish_change(struct ob_client *c, struct ob_request *req,
                         const struct ob_dma_change *change)
{
    uint32_t max = change->unmap ? sizeof(struct ob_wire_dma_unmap) : 0;
    struct ob_msg *reply;
    int rc = ob_request_finish(c, req, 0, max, &reply);

    if (rc == 0)
        ob_msg_free(reply);
    /* After a timeout the mapping may or may not be there: it keeps its place. */
    if (change->unmap ? rc == 0 : ob_err_class(rc) == OB_ERR_PEER)
        ob_client_reserve_map(c, false);
    return rc;
}

static void cork(struct ob_client *c, bool on)
{
    int rc = 0;

    ob_client_lock(c);
    if (on)
        ob_channel_cork(&c->main.channel);
    else if (!ob_client_dead(c))
        rc = ob_channel_uncork(&c->main.channel);
    if (rc < 0)
        ob_client_send_failed_locked(c, rc);
    ob_client_want_output_locked(c, &c->main);
    ob_client_unlock(c);
}

/* Starts the changes [from, to) together. */
static void start_changes(struct ob_client *c, struct ob_request *window,
                          struct ob_dma_change *changes, size_t from, size_t to)
{
    if (to - from > 1)
        cork(c, true);
    for (size_t i = from; i < to; i++)
        changes[i].result = start_change(c, &window[i % OB_CLIENT_DMA_WINDOW], &changes[i]);
    if (to - from > 1)
        cork(c, false);
}

static int refuse_all(struct ob_dma_change *changes, size_t count, int rc)
{
    for (size_t i = 0; i < count; i++)
        changes[i].result = rc;
    return count ? rc : 0;
}

int ob_client_dma_apply(struct ob_client *client, struct ob_dma_change *changes, size_t count)
{
    struct ob_request window[OB_CLIENT_DMA_WINDOW];
    size_t started = 0;
    bool hangs = false;
    int first = 0;

    if (!ob_memo_enter(client))
        return refuse_all(changes, count, -EDEADLK);
    for (size_t i = 0; i < count; i++) {
        if (!hangs && started < count && started - i <= OB_CLIENT_DMA_WINDOW / 2) {
            size_t to = count - i < OB_CLIENT_DMA_WINDOW ? count : i + OB_CLIENT_DMA_WINDOW;
            start_changes(client, window, changes, started, to);
            started = to;
        }
        if (i == started) { /* nothing more is sent */
            changes[i].result = -ETIMEDOUT;
            started++;
        }
        if (changes[i].result == 0)
            changes[i].result =
                finish_change(client, &window[i % OB_CLIENT_DMA_WINDOW], &changes[i]);
        changes[i].result = ob_memo_note_dma(client, &changes[i], changes[i].result);
        if (changes[i].result == -ETIMEDOUT)
            hangs = true;
        if (first == 0)
            first = changes[i].result;
    }
    ob_memo_leave(client);
    return first;
}

int ob_client_dma_map(struct ob_client *client, uint64_t address, uint64_t size, uint32_t flags,
                      int fd, uint64_t offset)
{
    struct ob_dma_change change = {
        .address = address, .size = size, .flags = flags, .fd = fd, .offset = offset
    };

    return ob_client_dma_apply(client, &change, 1);
}

int ob_client_dma_unmap(struct ob_client *client, uint64_t address, uint64_t size)
{
    struct ob_dma_change change = { .unmap = true, .address = address, .size = size, .fd = -1 };

    return ob_client_dma_apply(client, &change, 1);
}
