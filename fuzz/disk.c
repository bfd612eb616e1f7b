/* SPDX-License-Identifier: BSD-3-Clause */
#include "disk.h"
#include "kinds.h"
#include "world.h"

#include <string.h>

uint64_t disk_sq(unsigned qid)
{
    return DISK_RAM + 2u * qid * NVME_PAGE;
}

uint64_t disk_cq(unsigned qid)
{
    return disk_sq(qid) + NVME_PAGE;
}

static void arm(struct disk *d)
{
    const uint32_t flags = OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER;
    const struct ob_wire_set_irqs set = { sizeof(set), flags, OB_PCI_IRQ_MSIX, 0, 1 };

    visitor_call(d->v, OB_CMD_DEVICE_SET_IRQS, &set, sizeof(set), kind_fd(KIND_EVENTFD2), NULL);
}

void disk_attach(struct disk *d, struct visitors *v)
{
    const uint32_t both = OB_DMA_READ | OB_DMA_WRITE;

    memset(d, 0, sizeof(*d));
    d->v = v;
    visitor_map(v, DISK_RAM, RAM_BYTES, both, kind_fd(KIND_RAM), 0);
    visitor_map(v, DISK_REMOTE, 16 * NVME_PAGE, both, -1, 0);
    visitor_post(v, OB_PCI_REGION_CONFIG, 4, 0x6, 2);
    arm(d);
}

void disk_enable(struct disk *d)
{
    memset(d->tail, 0, sizeof(d->tail));
    memset(d->head, 0, sizeof(d->head));
    memset(ram, 0, DISK_DATA * NVME_PAGE);
    visitor_post(d->v, 0, NVME_REG_CC, 0x00460000, 4);
    visitors_step(d->v, 16);
    visitor_post(d->v, 0, NVME_REG_AQA, (DISK_ENTRIES - 1) << 16 | (DISK_ENTRIES - 1), 4);
    visitor_post(d->v, 0, NVME_REG_ASQ, disk_sq(0), 8);
    visitor_post(d->v, 0, NVME_REG_ACQ, disk_cq(0), 8);
    visitor_post(d->v, 0, NVME_REG_CC, 0x00460001, 4);
    visitors_step(d->v, 16);
}

void disk_ring(struct disk *d, unsigned index, uint32_t value)
{
    visitor_post(d->v, 0, 0x1000 + 4 * index, value, 4);
}

void disk_submit(struct disk *d, unsigned qid, const struct nvme_sqe *sqe)
{
    struct nvme_sqe entry = *sqe;

    entry.cid = (uint16_t)(qid << 8 | d->tail[qid]);
    memcpy(ram + (disk_sq(qid) - DISK_RAM) + d->tail[qid] * sizeof(entry), &entry, sizeof(entry));
    d->tail[qid] = (d->tail[qid] + 1) % DISK_ENTRIES;
    disk_ring(d, 2 * qid, d->tail[qid]);
}

void disk_add_queue(struct disk *d, unsigned qid, uint32_t entries)
{
    struct nvme_sqe create = { .opcode = NVME_ADM_CREATE_CQ,
                               .prp1 = disk_cq(qid),
                               .dw10 = (entries - 1) << 16 | qid,
                               .dw11 = 3 };

    disk_submit(d, 0, &create);
    create.opcode = NVME_ADM_CREATE_SQ;
    create.prp1 = disk_sq(qid);
    create.dw11 = qid << 16 | 1;
    disk_submit(d, 0, &create);
    d->tail[qid] = d->head[qid] = 0;
}

/* The phase is not looked at: what has a command's identifier of this queue was posted. */
int disk_consume(struct disk *d, unsigned qid)
{
    int status = -1;

    for (unsigned i = 0; i < DISK_ENTRIES; i++) {
        uint8_t *at = ram + (disk_cq(qid) - DISK_RAM) + d->head[qid] * sizeof(struct nvme_cqe);
        struct nvme_cqe cqe;

        memcpy(&cqe, at, sizeof(cqe));
        if (cqe.status == 0)
            break;
        memset(at, 0, sizeof(cqe));
        status = cqe.status >> 1;
        d->head[qid] = (d->head[qid] + 1) % DISK_ENTRIES;
    }
    disk_ring(d, 2 * qid + 1, d->head[qid]);
    return status;
}

void disk_check(struct visitors *v)
{
    const struct nvme_sqe identify = { .opcode = NVME_ADM_IDENTIFY,
                                       .prp1 = DISK_RAM + DISK_DATA * NVME_PAGE,
                                       .dw10 = 1 };
    struct disk disk;

    HOLDS(visitor_call(v, OB_CMD_DEVICE_RESET, NULL, 0, -1, NULL) == 0);
    disk_attach(&disk, v);
    disk_enable(&disk);
    disk_submit(&disk, 0, &identify);
    visitors_step(v, 64);
    HOLDS(disk_consume(&disk, 0) == NVME_OK);
    HOLDS(ram[DISK_DATA * NVME_PAGE] == 0x42 && ram[DISK_DATA * NVME_PAGE + 1] == 0x4f);
}
