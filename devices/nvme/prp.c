/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Physical Region Pages (section 4.3): from the two words of a command to the client's memory.
 *
 * The first entry may start anywhere in its page, all others at the start of theirs. When there
 * are more than two, the second word points to a list, which may start anywhere in its page too;
 * the last entry of a page full of list points to the next page when there is more to come. Such
 * a page must start at its beginning, so each one brings the walk 511 pages forward: a list that
 * points to itself ends like any other.
 */
#include "nvme.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ENTRIES (NVME_PAGE / 8)

static void add_seg(struct nvme_segs *segs, uint64_t address, uint32_t len)
{
    struct nvme_seg *last = segs->n ? &segs->seg[segs->n - 1] : NULL;

    if (last && last->address + last->len == address)
        last->len += len;
    else
        segs->seg[segs->n++] = (struct nvme_seg){ address, len };
}

static uint32_t min32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Of an access to the client's memory that failed. */
static uint16_t status_of(int rc)
{
    return rc == -ENOTCONN ? NVME_CLIENT_LEFT : NVME_DATA_TRANSFER_ERROR;
}

/* Entries of the list at `list`, which describe the last `left` bytes. */
static uint16_t walk_list(struct nvme_ctrl *c, uint64_t list, uint32_t left, struct nvme_segs *out)
{
    uint64_t entries[ENTRIES];

    while (left > 0) {
        uint32_t pages = (left + NVME_PAGE - 1) / NVME_PAGE;
        uint32_t slots = (NVME_PAGE - (uint32_t)(list % NVME_PAGE)) / 8;
        uint32_t n = min32(pages, slots);
        int rc = ob_dma_read(c->server, list, entries, n * 8u);
        if (rc < 0)
            return status_of(rc);
        if (pages > slots)
            n--; /* the last one points to more list */
        for (uint32_t i = 0; i < n; i++) {
            uint32_t part = min32(left, NVME_PAGE);
            if (entries[i] % NVME_PAGE)
                return NVME_PRP_OFFSET_INVALID;
            add_seg(out, entries[i], part);
            left -= part;
        }
        if (left > 0) {
            list = entries[n];
            if (list % NVME_PAGE)
                return NVME_PRP_OFFSET_INVALID;
        }
    }
    return NVME_OK;
}

uint16_t nvme_prp_walk(struct nvme_ctrl *c, const struct nvme_sqe *sqe, uint32_t len,
                       struct nvme_segs *out)
{
    uint32_t first = min32(len, NVME_PAGE - (uint32_t)(sqe->prp1 % NVME_PAGE));

    out->n = 0;
    if (sqe->prp1 % 4)
        return NVME_PRP_OFFSET_INVALID;
    add_seg(out, sqe->prp1, first);
    len -= first;
    if (len == 0)
        return NVME_OK;
    if (len > NVME_PAGE)
        return sqe->prp2 % 8 ? NVME_PRP_OFFSET_INVALID : walk_list(c, sqe->prp2, len, out);
    if (sqe->prp2 % NVME_PAGE)
        return NVME_PRP_OFFSET_INVALID;
    add_seg(out, sqe->prp2, len);
    return NVME_OK;
}

/* ---- Making it ready for the backend ------------------------------------------------------- */

static void add_piece(struct nvme_cmd *cmd, const struct ob_dma_ref *ref, uint32_t len)
{
    struct nvme_data *data = &cmd->data;
    struct iovec *last = data->niov ? &data->iov[data->niov - 1] : NULL;

    data->refs[data->nrefs++] = *ref;
    if (last && (uint8_t *)last->iov_base + last->iov_len == ref->ptr)
        last->iov_len += len;
    else
        data->iov[data->niov++] = (struct iovec){ ref->ptr, len };
}

/* In one piece; or, where two mappings meet, page by page. */
static int map_seg(struct nvme_cmd *cmd, uint64_t address, uint32_t len, uint32_t prot)
{
    struct ob_server *server = cmd->ctrl->server;
    struct ob_dma_ref ref;
    int rc = ob_dma_get(server, address, len, prot, &ref);

    if (rc == 0) {
        add_piece(cmd, &ref, len);
        return 0;
    }
    if (rc != -EOPNOTSUPP)
        return rc;
    while (len > 0) {
        uint32_t part = min32(len, NVME_PAGE - (uint32_t)(address % NVME_PAGE));
        rc = ob_dma_get(server, address, part, prot, &ref);
        if (rc < 0)
            return rc;
        add_piece(cmd, &ref, part);
        address += part;
        len -= part;
    }
    return 0;
}

static int reserve(struct nvme_cmd *cmd, unsigned n)
{
    struct nvme_data *data = &cmd->data;
    void *both;

    data->niov = data->nrefs = 0;
    data->iov = data->inline_iov;
    data->refs = data->inline_refs;
    if (n <= NVME_INLINE_SEGS)
        return 0;
    both = malloc(n * (sizeof(struct iovec) + sizeof(struct ob_dma_ref)));
    if (!both)
        return -ENOMEM;
    data->iov = both;
    data->refs = (struct ob_dma_ref *)(data->iov + n);
    data->room = n;
    cmd->ctrl->listed += n;
    return 0;
}

uint16_t nvme_data_map(struct nvme_cmd *cmd, bool to_host)
{
    struct nvme_ctrl *c = cmd->ctrl;
    struct nvme_segs *segs = &c->segs;
    uint16_t status = nvme_prp_walk(c, &cmd->sqe, cmd->len, segs);
    int rc;

    if (status != NVME_OK)
        return status;
    /* At worst each page is a piece of its own. */
    rc = reserve(cmd, segs->n <= 1 && cmd->len <= NVME_PAGE ? 1 : cmd->len / NVME_PAGE + 2);
    for (unsigned i = 0; rc == 0 && i < segs->n; i++)
        rc = map_seg(cmd, segs->seg[i].address, segs->seg[i].len,
                     to_host ? OB_DMA_WRITE : OB_DMA_READ);
    if (rc == 0)
        return NVME_OK;
    nvme_data_release(cmd);
    if (rc == -ENOMEM)
        return NVME_INTERNAL_ERROR;
    if (rc != -EOPNOTSUPP)
        return NVME_DATA_TRANSFER_ERROR;
    status = nvme_data_bounce(cmd);
    if (status != NVME_OK)
        return status;
    if (to_host) {
        cmd->after = NVME_AFTER_COPY_OUT;
        return NVME_OK;
    }
    return nvme_copy_from_host(c, &cmd->sqe, cmd->data.bounce, cmd->len);
}

uint16_t nvme_data_bounce(struct nvme_cmd *cmd)
{
    struct nvme_data *data = &cmd->data;

    data->bounce = malloc(cmd->len);
    if (!data->bounce)
        return NVME_INTERNAL_ERROR;
    cmd->ctrl->bounced += cmd->len;
    data->iov = data->inline_iov;
    data->iov[0] = (struct iovec){ data->bounce, cmd->len };
    data->niov = 1;
    return NVME_OK;
}

void nvme_data_release(struct nvme_cmd *cmd)
{
    struct nvme_data *data = &cmd->data;

    for (unsigned i = 0; i < data->nrefs; i++)
        ob_dma_put(cmd->ctrl->server, &data->refs[i]);
    if (data->iov != data->inline_iov)
        free(data->iov);
    cmd->ctrl->listed -= data->room;
    data->room = 0;
    if (data->bounce)
        cmd->ctrl->bounced -= cmd->len;
    free(data->bounce);
    data->iov = NULL;
    data->bounce = NULL;
    data->niov = data->nrefs = 0;
}

/* ---- Copying ------------------------------------------------------------------------------- */

uint16_t nvme_copy_to_host(struct nvme_ctrl *c, const struct nvme_sqe *sqe, const void *data,
                           uint32_t len)
{
    uint16_t status = nvme_prp_walk(c, sqe, len, &c->segs);
    const uint8_t *from = data;

    for (unsigned i = 0; status == NVME_OK && i < c->segs.n; i++) {
        const struct nvme_seg *seg = &c->segs.seg[i];
        int rc = ob_dma_write(c->server, seg->address, from, seg->len);
        if (rc < 0)
            status = status_of(rc);
        from += seg->len;
    }
    return status;
}

uint16_t nvme_copy_from_host(struct nvme_ctrl *c, const struct nvme_sqe *sqe, void *data,
                             uint32_t len)
{
    uint16_t status = nvme_prp_walk(c, sqe, len, &c->segs);
    uint8_t *to = data;

    for (unsigned i = 0; status == NVME_OK && i < c->segs.n; i++) {
        const struct nvme_seg *seg = &c->segs.seg[i];
        int rc = ob_dma_read(c->server, seg->address, to, seg->len);
        if (rc < 0)
            status = status_of(rc);
        to += seg->len;
    }
    return status;
}
