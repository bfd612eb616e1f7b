/* SPDX-License-Identifier: BSD-3-Clause */
/* `outboard serve nvme`: builds the controller and its PCI device, and takes them down. */
#include "nvme.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LOCK_TIMEOUT_NS (5 * 1000000000LL)
#define LOG_INTERVAL_NS 1000000000LL

bool nvme_may_say(int64_t *said_ns)
{
    int64_t now_ns = nvme_now_ns();

    if (*said_ns && now_ns - *said_ns <= LOG_INTERVAL_NS)
        return false;
    *said_ns = now_ns;
    return true;
}

static int reset(void *opaque)
{
    nvme_migration_end(opaque);
    return nvme_hard_reset(opaque);
}

static void dma_unmap(void *opaque, uint64_t address, uint64_t size)
{
    nvme_rings_forget(opaque, address, size); /* data pages go when their commands are done */
}

static void changed(void *opaque)
{
    struct nvme_ctrl *c = opaque;

    c->dirty = true;
    nvme_file_sync(c);
}

static unsigned msi_vectors(unsigned wanted)
{
    unsigned n = 1;

    while (n < wanted && n < NVME_MSI_MAX)
        n *= 2;
    return n;
}

/* Config space and BAR 0: registers, then a page of doorbells, one of MSI-X table, one of PBA. */
static int build_pci(struct nvme_ctrl *c)
{
    const struct ob_pci_id id = {
        .vendor = c->cfg.pci_vendor,
        .device = c->cfg.pci_device,
        .subsystem_vendor = c->cfg.pci_vendor,
        .subsystem = c->cfg.pci_device,
        .class_code = 0x010802, /* mass storage, non-volatile memory, NVM Express */
        .revision = 1,
    };
    const struct ob_sparse_area doorbells = { .offset = NVME_DOORBELLS, .size = NVME_PAGE };
    const struct ob_region bar = {
        .size = NVME_BAR_SIZE,
        .flags = OB_REGION_READ | OB_REGION_WRITE | (c->cfg.mapped ? OB_REGION_MMAP : 0),
        .access = nvme_reg_access,
        .opaque = c,
        .fd = c->cfg.mapped ? c->doorbell_fd : -1,
        .areas = c->cfg.mapped ? &doorbells : NULL,
        .nareas = c->cfg.mapped ? 1 : 0,
    };
    unsigned vectors = c->cfg.queues + 1;
    struct ob_server *s = c->server;
    int rc;

    if ((rc = ob_pci_init(s, &id, true, true)) < 0 ||
        (rc = ob_pci_add_bar(s, 0, NVME_BAR_SIZE, OB_PCI_BAR_64)) < 0 ||
        (rc = ob_server_set_region(s, OB_PCI_REGION_BAR0, &bar)) < 0 || (rc = ob_pci_add_pm(s)) < 0)
        return rc;
    /* A driver that changes a register waits for CSTS, or needs no order, before it rings. */
    ob_server_set_mapped_order(s);
    if (c->cfg.interrupts >= NVME_MSI && (rc = ob_pci_add_msi(s, msi_vectors(vectors))) < 0)
        return rc;
    if ((rc = ob_pci_add_pcie(s)) < 0)
        return rc;
    if (c->cfg.interrupts >= NVME_MSIX &&
        (rc = ob_pci_add_msix(s, vectors, 0, NVME_MSIX_TABLE, 0, NVME_MSIX_PBA)) < 0)
        return rc;
    return 0;
}

static int build(struct nvme_ctrl *c)
{
    const struct ob_server_ops ops = { .size = sizeof(ops),
                                       .reset = reset,
                                       .client = nvme_client_changed,
                                       .dma_unmap = dma_unmap,
                                       .log = c->log,
                                       .changed = changed,
                                       .intx = nvme_intx };
    int rc;

    c->server = ob_server_new(&ops, c);
    if (!c->server)
        return -errno;
    rc = nvme_doorbells_init(c);
    if (rc < 0)
        goto no_doorbells;
    rc = nvme_schedule_init(c);
    if (rc < 0)
        goto no_schedule;
    rc = build_pci(c);
    if (rc == 0 && !c->cfg.state) /* the file would not know of it */
        rc = ob_server_set_migration(c->server, &nvme_state_ops);
    if (rc == 0)
        return 0;
    nvme_schedule_fini(c);
no_schedule:
    nvme_doorbells_fini(c);
no_doorbells:
    ob_server_free(c->server);
    return rc;
}

static int check_size(struct nvme_ctrl *c, char *errbuf, size_t size)
{
    unsigned lba = 1u << c->cfg.lba_shift;

    c->blocks = c->blk->size >> c->cfg.lba_shift;
    if (c->blocks > 0 && c->blk->size % lba == 0)
        return 0;
    if (c->blk->size == 0)
        snprintf(errbuf, size, "%s has no room: give it a size, like %s", c->cfg.image,
                 c->blk->identity[0] ? "truncate -s 1G FILE" : "mem:1G");
    else
        snprintf(errbuf, size, "%s has %llu bytes, which is not a multiple of %u (--lba)",
                 c->cfg.image, (unsigned long long)c->blk->size, lba);
    return 1;
}

static void print_banner(const struct nvme_ctrl *c, char *banner, size_t size)
{
    snprintf(banner, size, "%s, %llu blocks of %u bytes%s, %s, %u queues, doorbells %s",
             c->cfg.image, (unsigned long long)c->blocks, 1u << c->cfg.lba_shift,
             c->cfg.read_only ? ", read-only" : "", c->blk->about, c->cfg.queues,
             c->cfg.mapped ? "mapped" : "trapped");
}

/* Requests of a server that was killed may be under way for a little longer, and hold the lock. */
static int lock_image(struct nvme_ctrl *c, bool wait, char *errbuf, size_t size)
{
    static const struct timespec pause = { .tv_nsec = 10000000 };
    int64_t deadline = nvme_now_ns() + (wait ? LOCK_TIMEOUT_NS : 0);
    int rc;

    while ((rc = blk_lock(c->blk, errbuf, size)) == -EBUSY && nvme_now_ns() < deadline)
        nanosleep(&pause, NULL);
    return rc < 0 ? 1 : 0;
}

/* What can be made only where the server is, or ends with it. */
static void take_down(struct nvme_ctrl *c, struct nvme_state_file *file)
{
    nvme_migration_end(c);
    nvme_hard_reset(c);
    nvme_schedule_fini(c);
    ob_server_free(c->server);
    nvme_doorbells_fini(c);
    blk_close(c->blk);
    nvme_file_close(file);
    free(c);
}

/* 0, or 1 and a sentence in errbuf. */
static int set_up(struct nvme_ctrl *c, struct nvme_state_file **file, char *errbuf, size_t size)
{
    int rc = check_size(c, errbuf, size);

    if (rc != 0)
        return rc;
    c->stats.start_ns = nvme_now_ns();
    nvme_identity_init(c);
    nvme_features_reset(c);
    if (c->cfg.state && nvme_file_open(c, file, errbuf, size) != 0)
        return 1;
    if (!c->cfg.incoming && lock_image(c, *file && nvme_file_continues(*file), errbuf, size) != 0)
        return 1;
    rc = build(c);
    return rc < 0 ? ob_create_failed(rc, errbuf, size) : 0;
}

static int create(int argc, char **argv, ob_log_fn log, void **opaque, struct ob_server **server,
                  char *banner, size_t banner_size, char *errbuf, size_t errbuf_size)
{
    struct nvme_ctrl *c = calloc(1, sizeof(*c));
    struct nvme_state_file *file = NULL;
    int rc;

    if (!c)
        return ob_create_failed(-ENOMEM, errbuf, errbuf_size);
    c->log = log;
    rc = nvme_parse_options(argc, argv, &c->cfg, errbuf, errbuf_size);
    if (rc == 0)
        rc = blk_open(c->cfg.image, c->cfg.read_only, c->cfg.direct, c->cfg.aio, &c->blk, errbuf,
                      errbuf_size);
    if (rc != 0) {
        free(c);
        return rc == 2 ? 2 : 1;
    }
    rc = set_up(c, &file, errbuf, errbuf_size);
    if (rc != 0) {
        blk_close(c->blk);
        nvme_file_close(file);
        free(c);
        return rc;
    }
    if (file && nvme_file_start(c, file, errbuf, errbuf_size) != 0) {
        take_down(c, file);
        return 1;
    }
    print_banner(c, banner, banner_size);
    *opaque = c;
    *server = c->server;
    return 0;
}

/* A block device, to lock it again after the disk moved here, or did not move away. */
static int reopens(const void *opaque)
{
    const struct nvme_ctrl *c = opaque;

    return blk_claims(c->blk) ? c->blk->fd : -1;
}

static int start(void *opaque)
{
    const struct nvme_ctrl *c = opaque;

    return c->blk->ops->start ? c->blk->ops->start(c->blk) : 0;
}

/* ---- The image ----------------------------------------------------------------------------- */

static void flushed(struct blk_req *req, int rc)
{
    struct nvme_ctrl *c = (void *)((char *)req - offsetof(struct nvme_ctrl, shutdown_flush));

    c->inflight--; /* rc stays in req */
    if (rc < 0)
        nvme_cache_lost(c);
}

int nvme_flush(struct nvme_ctrl *c, int64_t deadline_ns)
{
    int rc;

    if (c->cfg.read_only)
        return 0;
    c->shutdown_flush = (struct blk_req){ .op = BLK_FLUSH, .done = flushed };
    c->inflight++;
    c->blk->ops->submit(c->blk, &c->shutdown_flush);
    rc = nvme_drain(c, deadline_ns);
    return rc < 0 ? rc : c->shutdown_flush.rc;
}

int nvme_claim_image(struct nvme_ctrl *c)
{
    char why[PATH_MAX + 256];
    int rc = blk_lock(c->blk, why, sizeof(why));

    if (rc < 0 && nvme_may_say(&c->claim_log_ns))
        c->log(c, OB_LOG_ERROR, why);
    return rc;
}

/* What is in flight ends as it will; then everything goes to stable storage. */
static int destroy(void *opaque)
{
    struct nvme_ctrl *c = opaque;
    struct nvme_state_file *file = c->file;
    int rc;

    nvme_drain(c, INT64_MAX);
    rc = nvme_flush(c, INT64_MAX);
    if (rc == 0 && c->lost)
        rc = -EIO;
    nvme_file_stop(c); /* with a guest that will go on, and what it must know of the flush */
    take_down(c, file);
    return rc;
}

const struct ob_served ob_served_nvme = {
    .name = "nvme",
    .operands = "IMAGE",
    .summary = "an NVMe disk: IMAGE is a file, a block device, mem:SIZE or null:SIZE",
    .options = nvme_options_help,
    .long_options = nvme_long_options,
    .create = create,
    .start = start,
    .reopens = reopens,
    .destroy = destroy,
};
