/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The device that is played to a client: config space with MSI-X, and one BAR, of which the first
 * page can be mapped. It answers everything that a client may ask, and follows its mappings; wrong
 * answers are made from these right ones by the cases.
 */
#include "conformance/client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define BAR0_REGISTER 0x10u
#define AREA          4096u

static const uint8_t config_start[PLAY_CONFIG] = {
    0x42,
    0x4f,
    0x0c,
    0x0c,
    0,
    0,
    0x10,
    0,
    0,
    0,
    0,
    0xff,          /* class 0xff; has capabilities */
    [0x34] = 0x40, /* the first of them */
    [0x3d] = 1,    /* INTA */
    [0x40] = 0x11,
    0,
    PLAY_VECTORS - 1,
    0, /* MSI-X: table and PBA in BAR 0 */
    [0x45] = 0x10,
    [0x49] = 0x18,
};
static const uint32_t irq_counts[PLAY_IRQS] = { 1, 0, PLAY_VECTORS, 1, 1 };

void device_play_init(struct test *t)
{
    struct play *p = play_of(t);

    memcpy(p->config, config_start, sizeof(p->config));
    p->bar = test_memfd(t, PLAY_BAR);
    p->capabilities = "\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\"max_dma_maps\":1000";
}

void answer_put(struct answer *a, const void *data, size_t len)
{
    memcpy(a->data + a->len, data, len);
    a->len += (uint32_t)len;
}

void answer_refuse(struct answer *a, uint32_t error)
{
    a->hdr.flags |= OB_HDR_ERROR;
    a->hdr.error_no = error;
    a->len = 0;
    a->nfds = 0;
}

/* ---- What it is ---------------------------------------------------------------------------- */

static void version(struct test *t, struct answer *a)
{
    struct ob_wire_version wire = { OB_VERSION_MAJOR, OB_VERSION_MINOR };
    const struct play *p = play_of(t);
    bool proposed;

    answer_put(a, &wire, sizeof(wire));
    if (t->in.len == sizeof(wire))
        return;
    proposed = memmem(t->in.data, t->in.len, "\"migration\"", 11);
    a->len += (uint32_t)snprintf(
                  (char *)a->data + a->len, 1024, "{\"capabilities\":{%s%s}}", p->capabilities,
                  p->migration.offered && proposed ? ",\"migration\":{\"pgsize\":4096}" : "") +
              1;
}

static void device_info(struct answer *a)
{
    struct ob_wire_device_info info = { sizeof(info), OB_DEVICE_RESET | OB_DEVICE_PCI,
                                        OB_PCI_REGIONS, PLAY_IRQS };

    answer_put(a, &info, sizeof(info));
}

void device_describe(const struct play *p, uint32_t index, uint32_t argsz, struct answer *a)
{
    struct ob_region_layout layout = { .flags = 0 };
    struct ob_writer w;

    if (index == OB_PCI_REGION_CONFIG) {
        layout.flags = OB_REGION_READ | OB_REGION_WRITE;
        layout.size = PLAY_CONFIG;
    } else if (index == OB_PCI_REGION_BAR0) {
        layout.flags = OB_REGION_READ | OB_REGION_WRITE | OB_REGION_MMAP;
        layout.size = PLAY_BAR;
        layout.nareas = 1;
        layout.areas[0].size = AREA;
    }
    ob_writer_init(&w, a->data, sizeof(a->data));
    a->nfds = ob_encode_region_layout(&w, index, argsz, &layout) && layout.nareas ? 1 : 0;
    a->fds[0] = p->bar;
    a->len = (uint32_t)w.len;
}

static void region_info(struct test *t, struct answer *a)
{
    struct ob_wire_region_info info;

    memcpy(&info, t->in.data, sizeof(info));
    if (info.argsz < sizeof(info) || info.index >= OB_PCI_REGIONS)
        answer_refuse(a, EINVAL);
    else
        device_describe(play_of(t), info.index, info.argsz, a);
}

static void region_io_fds(struct test *t, struct answer *a)
{
    struct ob_wire_region_io_fds io;

    memcpy(&io, t->in.data, sizeof(io));
    io = (struct ob_wire_region_io_fds){ sizeof(io), 0, io.index, 0 };
    answer_put(a, &io, sizeof(io));
}

static void irq_info(struct test *t, struct answer *a)
{
    struct ob_wire_irq_info info;

    memcpy(&info, t->in.data, sizeof(info));
    if (info.index >= PLAY_IRQS) {
        answer_refuse(a, EINVAL);
        return;
    }
    info.argsz = sizeof(info);
    info.count = irq_counts[info.index];
    info.flags = info.count ? OB_IRQ_EVENTFD : 0;
    if (info.index == OB_PCI_IRQ_INTX)
        info.flags |= OB_IRQ_MASKABLE | OB_IRQ_AUTOMASKED;
    answer_put(a, &info, sizeof(info));
}

/* ---- Regions ------------------------------------------------------------------------------- */

static bool writable(uint64_t offset)
{
    return offset == 0x04 || offset == 0x05 || offset == 0x3c ||
           (offset >= BAR0_REGISTER + 1 && offset < BAR0_REGISTER + 4);
}

static void config_write(struct play *p, uint64_t offset, const uint8_t *data, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (writable(offset + i))
            p->config[offset + i] = data[i];
    p->config[BAR0_REGISTER + 1] &= (uint8_t) ~((PLAY_BAR - 1) >> 8);
}

static void region_access(struct test *t, struct answer *a, bool write)
{
    struct play *p = play_of(t);
    struct ob_wire_region_access access;
    uint64_t size;

    memcpy(&access, t->in.data, sizeof(access));
    size = access.region == OB_PCI_REGION_CONFIG ? PLAY_CONFIG
           : access.region == OB_PCI_REGION_BAR0 ? PLAY_BAR
                                                 : 0;
    if (access.offset > size || access.count > size - access.offset ||
        (write && t->in.len != sizeof(access) + access.count)) {
        answer_refuse(a, EINVAL);
        return;
    }
    answer_put(a, &access, sizeof(access));
    if (write && access.region == OB_PCI_REGION_CONFIG) {
        config_write(p, access.offset, t->in.data + sizeof(access), access.count);
    } else if (write) {
        MUST(t,
             pwrite(p->bar, t->in.data + sizeof(access), access.count, (off_t)access.offset) >= 0,
             "no memory: %s", strerror(errno));
    } else if (access.region == OB_PCI_REGION_CONFIG) {
        answer_put(a, p->config + access.offset, access.count);
    } else {
        MUST(t, pread(p->bar, a->data + a->len, access.count, (off_t)access.offset) >= 0,
             "no memory: %s", strerror(errno));
        a->len += access.count;
    }
}

static void write_multi(struct test *t, struct answer *a)
{
    answer_put(a, t->in.data, sizeof(struct ob_wire_write_multi));
}

/* ---- Memory -------------------------------------------------------------------------------- */

static void dma_map(struct test *t, struct answer *a)
{
    struct play *p = play_of(t);
    struct ob_wire_dma_map map;
    int fd = -1;

    memcpy(&map, t->in.data, sizeof(map));
    if (p->nmaps == PLAY_MAPS) {
        answer_refuse(a, ENOSPC);
        return;
    }
    if (t->in.nfds)
        fd = fcntl(t->in.fds[0], F_DUPFD_CLOEXEC, 0);
    MUST(t, !t->in.nfds || fd >= 0, "no file descriptor: %s", strerror(errno));
    p->maps[p->nmaps++] = (struct mapping){ map.flags, map.address, map.size, map.offset, fd };
}

static void forget(struct play *p, unsigned i)
{
    if (p->maps[i].fd >= 0)
        close(p->maps[i].fd);
    p->maps[i] = p->maps[--p->nmaps];
}

void device_play_fini(struct play *p)
{
    while (p->nmaps)
        forget(p, 0);
}

static void dma_unmap(struct test *t, struct answer *a)
{
    struct play *p = play_of(t);
    struct ob_wire_dma_unmap unmap;
    unsigned i = 0;

    memcpy(&unmap, t->in.data, sizeof(unmap));
    answer_put(a, &unmap, sizeof(unmap));
    if (unmap.flags & OB_DMA_UNMAP_ALL) {
        device_play_fini(p);
        return;
    }
    while (i < p->nmaps && (p->maps[i].address != unmap.address || p->maps[i].size != unmap.size))
        i++;
    if (i == p->nmaps)
        answer_refuse(a, ENOENT);
    else if (unmap.flags)
        answer_refuse(a, EINVAL);
    else
        forget(p, i);
}

const struct mapping *device_mapping(const struct play *p, uint32_t flags, uint64_t size)
{
    for (unsigned i = 0; i < p->nmaps; i++)
        if ((p->maps[i].flags & flags) == flags && p->maps[i].size >= size)
            return &p->maps[i];
    return NULL;
}

/* ---- All of it ----------------------------------------------------------------------------- */

void device_answer(struct test *t, struct answer *a)
{
    const struct ob_wire_hdr *hdr = &t->in.hdr;
    enum ob_state state =
        play_of(t)->commands & 1u << OB_CMD_VERSION ? OB_STATE_READY : OB_STATE_NEGOTIATE;

    a->hdr = (struct ob_wire_hdr){ .msg_id = hdr->msg_id, .cmd = hdr->cmd, .flags = OB_HDR_REPLY };
    a->len = a->nfds = 0;
    if (ob_check_command(hdr, OB_CLIENT_TO_SERVER, state) != OB_OK) {
        answer_refuse(a, EINVAL);
        return;
    }
    switch (hdr->cmd) {
    case OB_CMD_VERSION:
        version(t, a);
        break;
    case OB_CMD_DMA_MAP:
        dma_map(t, a);
        break;
    case OB_CMD_DMA_UNMAP:
        dma_unmap(t, a);
        break;
    case OB_CMD_DEVICE_GET_INFO:
        device_info(a);
        break;
    case OB_CMD_DEVICE_GET_REGION_INFO:
        region_info(t, a);
        break;
    case OB_CMD_DEVICE_GET_REGION_IO_FDS:
        region_io_fds(t, a);
        break;
    case OB_CMD_DEVICE_GET_IRQ_INFO:
        irq_info(t, a);
        break;
    case OB_CMD_REGION_READ:
    case OB_CMD_REGION_WRITE:
        region_access(t, a, hdr->cmd == OB_CMD_REGION_WRITE);
        break;
    case OB_CMD_REGION_WRITE_MULTI:
        write_multi(t, a);
        break;
    case OB_CMD_DEVICE_SET_IRQS:
        break;
    case OB_CMD_DEVICE_RESET:
        play_of(t)->migration.state = OB_MIG_STATE_RUNNING;
        break;
    default:
        migration_answer(t, a);
    }
}
