/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Identify, and what the controller and its namespace are called.
 *
 * The identifiers of the namespace come from the image's path and the serial number: the same disk
 * keeps its names over restarts, and two servers on one read-only image can differ by --serial. No
 * IEEE number is ours, so the generated ones have the "locally administered" bit.
 */
#include "nvme.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define CNTLID 1u

/* FNV-1a, with a final mix so that similar texts differ in all bits. */
static uint64_t hash(uint64_t seed, const char *text)
{
    uint64_t h = 0xcbf29ce484222325u ^ seed;

    for (; *text; text++)
        h = (h ^ (uint8_t)*text) * 0x100000001b3u;
    h = (h ^ h >> 31) * 0x7fb5d329728ea185u;
    h = (h ^ h >> 27) * 0x81dadef4bc2dd44du;
    return h ^ h >> 33;
}

/* Text fields of Identify are padded with spaces. */
static void pad(char *out, size_t size, const char *text)
{
    size_t len = strlen(text);

    memset(out, ' ', size);
    memcpy(out, text, len < size ? len : size);
}

void nvme_identity_init(struct nvme_ctrl *c)
{
    const char *image = c->blk->identity;
    uint64_t salt = 0, half[2];
    const uint8_t *u = c->nguid;

    /* Memory is a new disk each time. */
    if (!image[0] && getrandom(&salt, sizeof(salt), 0) < 0)
        salt = (uint64_t)nvme_now_ns();
    if (c->cfg.serial)
        snprintf(c->serial, sizeof(c->serial), "%s", c->cfg.serial);
    else
        snprintf(c->serial, sizeof(c->serial), "OB%016llX", (unsigned long long)hash(salt, image));
    snprintf(c->model, sizeof(c->model), "%s", c->cfg.model);
    snprintf(c->firmware, sizeof(c->firmware), "0.1     ");
    half[0] = hash(salt + 1, image) ^ hash(1, c->serial);
    half[1] = hash(salt + 2, image) ^ hash(2, c->serial);
    memcpy(c->nguid, half, sizeof(c->nguid));
    c->nguid[6] = (c->nguid[6] & 0x0f) | 0x80; /* also a UUID: version 8, variant 1 */
    c->nguid[8] = (c->nguid[8] & 0x3f) | 0x82; /* and, from here, an EUI-64: bit 1 is "local" */
    snprintf(c->nqn, sizeof(c->nqn),
             "nqn.2014-08.org.nvmexpress:uuid:%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
             "%02x%02x%02x%02x%02x%02x",
             u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13],
             u[14], u[15]);
}

static void fill_controller(const struct nvme_ctrl *c, void *out)
{
    struct nvme_id_ctrl *id = out;

    id->vid = c->cfg.pci_vendor;
    id->ssvid = c->cfg.pci_vendor;
    pad(id->sn, sizeof(id->sn), c->serial);
    pad(id->mn, sizeof(id->mn), c->model);
    pad(id->fr, sizeof(id->fr), c->firmware);
    id->rab = 5;
    id->mdts = NVME_MDTS;
    id->cntlid = CNTLID;
    id->ver = NVME_VS;
    id->cntrltype = 1; /* an I/O controller */
    id->oacs = c->cfg.mapped ? 0 : NVME_OACS_DBBUF;
    id->acl = 3;
    id->aerl = NVME_AERS_MAX - 1;
    id->frmw = 0x03; /* one slot, read-only */
    id->lpa = 0x07;  /* health per namespace, effects log, log offsets */
    id->elpe = NVME_ERRORS - 1;
    id->wctemp = NVME_KELVIN_WARNING;
    id->cctemp = NVME_KELVIN_CRITICAL;
    id->sqes = 0x66;
    id->cqes = 0x44;
    id->nn = 1;
    id->oncs = 0x5d; /* Compare, DSM, Write Zeroes, feature select, Timestamp */
    id->vwc = 0x07;  /* a volatile write cache; Flush for all namespaces */
    snprintf(id->subnqn, sizeof(id->subnqn), "%s", c->nqn);
}

static void fill_namespace(const struct nvme_ctrl *c, void *out)
{
    struct nvme_id_ns *id = out;
    uint32_t grain = c->blk->grain >> c->cfg.lba_shift;
    uint64_t bytes = c->blocks << c->cfg.lba_shift;

    id->nsze = id->ncap = id->nuse = c->blocks;
    id->nsfeat = 0x10;                         /* NPWG and so on are there */
    id->dlfeat = c->blk->can_punch ? 0x09 : 0; /* reads as zeroes; DEAC in Write Zeroes */
    memcpy(id->nvmcap, &bytes, sizeof(bytes));
    id->npwg = id->npwa = id->npdg = id->npda = (uint16_t)(grain ? grain - 1 : 0);
    id->nsattr = c->cfg.read_only;
    memcpy(id->nguid, c->nguid, sizeof(id->nguid));
    memcpy(id->eui64, c->nguid + 8, sizeof(id->eui64));
    id->lbaf[0].lbads = (uint8_t)c->cfg.lba_shift;
}

static void fill_descriptors(const struct nvme_ctrl *c, uint8_t *out)
{
    struct nvme_id_ns ns = { 0 };
    const struct {
        uint8_t type, len;
        const void *data;
    } ids[] = { { 1, 8, ns.eui64 }, { 2, 16, ns.nguid }, { 3, 16, c->nguid } };

    fill_namespace(c, &ns);
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        out[0] = ids[i].type;
        out[1] = ids[i].len;
        memcpy(out + 4, ids[i].data, ids[i].len);
        out += 4 + ids[i].len;
    }
}

/* Namespaces after nsid; there is only the first. */
static uint16_t fill_ns_list(uint32_t nsid, uint32_t *out)
{
    if (nsid >= NVME_NSID_ALL - 1)
        return NVME_INVALID_NS;
    out[0] = nsid < NVME_NSID ? NVME_NSID : 0;
    return NVME_OK;
}

static void fill_ctrl_list(uint32_t first, uint16_t *out)
{
    out[0] = first <= CNTLID; /* how many */
    out[1] = out[0] ? CNTLID : 0;
}

static uint16_t check_ns(uint32_t nsid)
{
    return nsid == NVME_NSID ? NVME_OK : NVME_INVALID_NS;
}

/* Data of a command set other than the NVM one (CSI 0) does not exist. */
static uint16_t check_csi(const struct nvme_sqe *sqe)
{
    return sqe->dw11 >> 24 == 0 ? NVME_OK : NVME_INVALID_FIELD;
}

static uint16_t fill(const struct nvme_ctrl *c, const struct nvme_sqe *sqe, uint32_t *out)
{
    uint32_t cntid = sqe->dw10 >> 16;
    uint16_t status = NVME_OK;

    switch (sqe->dw10 & 0xff) {
    case NVME_CNS_NS:
    case NVME_CNS_ALLOCATED_NS_DATA:
        status = check_ns(sqe->nsid);
        fill_namespace(c, out);
        break;
    case NVME_CNS_CTRL:
        fill_controller(c, out);
        break;
    case NVME_CNS_ACTIVE_NS:
    case NVME_CNS_ALLOCATED_NS:
        return fill_ns_list(sqe->nsid, out);
    case NVME_CNS_NS_DESCRIPTORS:
        status = check_ns(sqe->nsid);
        fill_descriptors(c, (uint8_t *)out);
        break;
    case NVME_CNS_CSI_NS: /* nothing to add to CNS 0: all zero */
        status = check_ns(sqe->nsid);
        return status == NVME_OK ? check_csi(sqe) : status;
    case NVME_CNS_CSI_CTRL: /* no limits but MDTS: all zero */
        return check_csi(sqe);
    case NVME_CNS_NS_CTRLS:
        status = check_ns(sqe->nsid);
        fill_ctrl_list(cntid, (uint16_t *)out);
        break;
    case NVME_CNS_CTRLS:
        fill_ctrl_list(cntid, (uint16_t *)out);
        break;
    default:
        return NVME_INVALID_FIELD;
    }
    return status;
}

uint16_t nvme_identify(struct nvme_cmd *cmd)
{
    uint64_t data[NVME_PAGE / sizeof(uint64_t)] = { 0 };
    uint16_t status = fill(cmd->ctrl, &cmd->sqe, (uint32_t *)data);

    if (status != NVME_OK)
        return status;
    return nvme_copy_to_host(cmd->ctrl, &cmd->sqe, data, sizeof(data));
}
