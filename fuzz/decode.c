/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Every decoder of proto/, and those of config space in tools/. The first byte chooses the decoder,
 * the second what else it is given. The rest is copied to where it ends with its allocation, so
 * that a byte read beyond it is found.
 */
#include "input.h"
#include "outboard/proto.h"
#include "tools/pcidump.h"
#include "world.h"

#include <stdlib.h>
#include <string.h>

struct payload {
    const uint8_t *data;
    size_t len;
    unsigned more; /* the second byte */
};

/* Pointers in what was decoded lie within the payload. */
static void check_inside(const struct payload *p, const void *at, uint64_t len)
{
    if (!at)
        return;
    HOLDS((const uint8_t *)at >= p->data && (const uint8_t *)at <= p->data + p->len);
    HOLDS(len <= p->len - (size_t)((const uint8_t *)at - p->data));
}

static void decode_dma(const struct payload *p)
{
    struct ob_wire_dma_map map;
    struct ob_wire_dma_unmap unmap;
    struct ob_wire_bitmap bitmap;
    struct ob_wire_dma_access access;
    const void *data = NULL;
    bool has_data = p->more & 1;

    if (ob_decode_dma_map(p->data, p->len, p->more % 3, &map) == 0)
        HOLDS(map.size > 0 && map.address + (map.size - 1) >= map.address);
    if (ob_decode_dma_unmap(p->data, p->len, &unmap, &bitmap) == 0 &&
        (unmap.flags & OB_DMA_UNMAP_GET_DIRTY))
        HOLDS(ob_bitmap_size(unmap.size, bitmap.pgsize) <= OB_DATA_XFER_MAX);
    if (ob_decode_dma_access(p->data, p->len, has_data, OB_DATA_XFER_MAX, &access, &data) == 0)
        check_inside(p, data, access.count);
}

static void decode_info(const struct payload *p)
{
    struct ob_wire_device_info device;
    struct ob_wire_region_info region;
    struct ob_wire_region_io_fds fds;
    struct ob_wire_irq_info irq;

    ob_decode_device_info(p->data, p->len, &device);
    ob_decode_region_info(p->data, p->len, &region);
    ob_decode_region_io_fds(p->data, p->len, &fds);
    ob_decode_irq_info(p->data, p->len, &irq);
}

static void decode_irqs(const struct payload *p)
{
    struct ob_wire_set_irqs set;
    const uint8_t *bools = NULL;

    if (ob_decode_set_irqs(p->data, p->len, p->more, &set, &bools) == 0) {
        HOLDS(set.start + (uint64_t)set.count <= OB_IRQ_VECTORS_MAX);
        check_inside(p, bools, set.count);
    }
}

static void decode_access(const struct payload *p)
{
    struct ob_wire_region_access access;
    struct ob_wire_write_multi_entry entry;
    struct ob_cursor entries;
    const void *data = NULL;
    uint64_t count, seen = 0;

    if (ob_decode_region_access(p->data, p->len, p->more & 1, OB_DATA_XFER_MAX, &access, &data) ==
        0) {
        HOLDS(access.offset + access.count >= access.offset);
        check_inside(p, data, access.count);
    }
    if (ob_decode_write_multi(p->data, p->len, &count, &entries) < 0)
        return;
    while (ob_cursor_left(&entries)) {
        HOLDS(ob_cursor_get(&entries, &entry, sizeof(entry)) && entry.count <= OB_WRITE_MULTI_DATA);
        seen++;
    }
    HOLDS(seen == count);
}

static void decode_feature(const struct payload *p)
{
    struct ob_wire_feature feature;
    struct ob_wire_logging_start start;
    struct ob_wire_logging_report report;
    struct ob_wire_mig_data mig;
    struct ob_cursor cur;
    const void *data = NULL;
    uint64_t size;

    if (ob_decode_feature(p->data, p->len, &feature, &cur) == 0) {
        ob_decode_logging_start(cur, &start);
        if (ob_decode_logging_report(cur, OB_DATA_XFER_MAX, &report, &size) == 0)
            HOLDS(size % 8 == 0 && size > 0 && size <= OB_DATA_XFER_MAX);
    }
    if (ob_decode_mig_data(p->data, p->len, p->more & 1, OB_DATA_XFER_MAX, &mig, &data) == 0)
        check_inside(p, data, mig.size);
}

/* What was decoded comes out again when it is encoded. */
static void decode_layout(const struct payload *p)
{
    struct ob_region_layout layout, again;
    static uint8_t buffer[OB_REGION_INFO_MAX];
    struct ob_writer w;
    const char *why = NULL;

    if (ob_decode_region_layout(p->data, p->len, p->more, &layout, &why) < 0) {
        HOLDS(why);
        return;
    }
    for (uint32_t i = 0; i < layout.nareas; i++) {
        const struct ob_sparse_area *a = &layout.areas[i];

        HOLDS(a->size > 0 && a->offset <= layout.size && a->size <= layout.size - a->offset);
        for (uint32_t j = 0; j < i; j++)
            HOLDS(a->offset >= layout.areas[j].offset + layout.areas[j].size ||
                  layout.areas[j].offset >= a->offset + a->size);
    }
    ob_writer_init(&w, buffer, sizeof(buffer));
    HOLDS(ob_encode_region_layout(&w, p->more, sizeof(buffer), &layout) && !w.failed);
    HOLDS(ob_decode_region_layout(buffer, w.len, p->more, &again, &why) == 0);
    HOLDS(again.size == layout.size && again.flags == layout.flags);
}

static void decode_header(const struct payload *p)
{
    struct ob_wire_hdr hdr;
    const struct ob_msg_type *type;

    if (p->len < sizeof(hdr))
        return;
    memcpy(&hdr, p->data, sizeof(hdr));
    type = ob_msg_type(hdr.cmd);
    HOLDS(ob_strcmd(hdr.cmd) && ob_strfeature(hdr.msg_id) && ob_strirq(hdr.msg_id) &&
          ob_strregion(hdr.msg_id) && ob_strreason((enum ob_reason)p->more));
    for (unsigned dir = 0; dir < 2; dir++)
        if (ob_check_command(&hdr, (enum ob_dir)dir, OB_STATE_READY) == OB_OK)
            HOLDS(type && hdr.msg_size - sizeof(hdr) <= type->request.max);
    if (ob_check_reply(&hdr, (uint16_t)p->more) == OB_OK)
        HOLDS(hdr.cmd == p->more && hdr.msg_size - sizeof(hdr) <= OB_PAYLOAD_MAX);
}

static void decode_ioeventfds(const struct payload *p)
{
    struct ob_ioeventfd e[2];
    uint64_t size = (uint64_t)p->more << 8;

    if (p->len < sizeof(e))
        return;
    memcpy(e, p->data, sizeof(e));
    if (ob_ioeventfd_valid(&e[0], size))
        HOLDS(e[0].offset < size && e[0].size <= 8);
    HOLDS(ob_ioeventfds_clash(&e[0], &e[1]) == ob_ioeventfds_clash(&e[1], &e[0]));
}

static void decode_config_space(const struct payload *p)
{
    const struct pci_space space = { p->data, p->len };
    struct pci_caps caps;

    pci_decode_caps(&space, &caps);
    HOLDS(caps.ncaps <= PCI_CAPS_MAX);
    for (unsigned i = 0; i < caps.ncaps; i++)
        HOLDS(caps.caps[i].name && caps.caps[i].offset + 4u <= p->len);
    for (unsigned i = 0; i < 6; i++)
        pci_decode_bar(&space, i);
    HOLDS(pci_class_name(pci_get32(&space, 8) >> 8));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const decoders[])(const struct payload *p) = {
        decode_dma,    decode_info,   decode_irqs,       decode_access,       decode_feature,
        decode_layout, decode_header, decode_ioeventfds, decode_config_space,
    };
    struct input in = { data, size, 0 };
    unsigned which = input_u8(&in) % (sizeof(decoders) / sizeof(decoders[0]));
    struct payload p = { .more = input_u8(&in) };
    uint8_t *copy;

    p.len = input_left(&in);
    copy = new_memory(p.len);
    if (p.len)
        memcpy(copy, data + in.pos, p.len);
    p.data = copy;
    decoders[which](&p);
    free(copy);
    return 0;
}
