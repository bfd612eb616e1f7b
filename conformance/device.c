/* SPDX-License-Identifier: BSD-3-Clause */
/* What the device is, and requests that any device takes. */
#include "conformance/test.h"

#include <jansson.h>

/* ---- Learning ------------------------------------------------------------------------------ */

static void learn_number(const json_t *caps, const char *key, uint32_t *out)
{
    const json_t *value = json_object_get(caps, key);

    if (json_is_integer(value) && json_integer_value(value) >= 0 &&
        json_integer_value(value) <= UINT32_MAX)
        *out = (uint32_t)json_integer_value(value);
}

/* What the reply to VERSION says; what it does not, or not rightly, is the default. */
static void learn_caps(const struct msg *reply, struct ob_caps *caps)
{
    json_t *root = NULL;
    const json_t *said;

    *caps = (struct ob_caps){ .max_msg_fds = OB_MSG_FDS_DEFAULT,
                              .max_data_xfer_size = OB_DATA_XFER_DEFAULT,
                              .max_dma_maps = OB_DMA_MAPS_DEFAULT };
    if (reply->len > sizeof(struct ob_wire_version))
        root = json_loadb((const char *)reply->data + sizeof(struct ob_wire_version),
                          reply->len - sizeof(struct ob_wire_version) - 1, 0, NULL);
    said = json_object_get(root, "capabilities");
    learn_number(said, "max_msg_fds", &caps->max_msg_fds);
    learn_number(said, "max_data_xfer_size", &caps->max_data_xfer_size);
    learn_number(said, "max_dma_maps", &caps->max_dma_maps);
    caps->write_multiple = json_is_true(json_object_get(said, "write_multiple"));
    caps->migration = json_is_object(json_object_get(said, "migration"));
    json_decref(root);
}

static void learn_regions(struct test *t, struct device *dev)
{
    for (uint32_t i = 0; i < dev->info.num_regions && i < OB_REGIONS_MAX; i++) {
        struct ob_wire_region_info info = { .argsz = sizeof(info), .index = i };

        if (test_ask(t, OB_CMD_DEVICE_GET_REGION_INFO, &info, sizeof(info)) != 0)
            continue;
        memcpy(&info, t->in.data, sizeof(info));
        dev->regions[i].flags = info.flags;
        dev->regions[i].size = info.size;
    }
}

static void learn_irqs(struct test *t, struct device *dev)
{
    for (uint32_t i = 0; i < dev->info.num_irqs && i < OB_IRQS_MAX; i++) {
        struct ob_wire_irq_info info = { .argsz = sizeof(info), .index = i };

        if (test_ask(t, OB_CMD_DEVICE_GET_IRQ_INFO, &info, sizeof(info)) != 0)
            continue;
        memcpy(&info, t->in.data, sizeof(info));
        dev->irqs[i].flags = info.flags;
        dev->irqs[i].count = info.count;
    }
}

void device_learn(struct test *t, struct device *dev)
{
    struct ob_wire_device_info info = { .argsz = sizeof(info) };

    test_negotiate(t);
    learn_caps(&t->in, &dev->caps);
    memcpy(&dev->info, test_ok(t, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info))->data, sizeof(info));
    learn_regions(t, dev);
    learn_irqs(t, dev);
    dev->known = true;
    if (device_has_config(t)) {
        dev->vendor = (uint16_t)device_read(t, OB_PCI_REGION_CONFIG, 0, 2);
        dev->product = (uint16_t)device_read(t, OB_PCI_REGION_CONFIG, 2, 2);
    }
}

/* ---- Registers ----------------------------------------------------------------------------- */

bool device_has_config(const struct test *t)
{
    return t->dev->regions[OB_PCI_REGION_CONFIG].size >= 64;
}

uint32_t device_read(struct test *t, uint32_t region, uint64_t offset, uint32_t count)
{
    struct ob_wire_region_access access = { offset, region, count }, echo;
    uint32_t value = 0;

    test_ok(t, OB_CMD_REGION_READ, &access, sizeof(access));
    MUST(t, t->in.len == sizeof(access) + count, "the reply to REGION_READ has %u bytes",
         t->in.len);
    memcpy(&echo, t->in.data, sizeof(echo));
    MUST(t, memcmp(&echo, &access, sizeof(echo)) == 0,
         "the reply to REGION_READ does not repeat the request");
    memcpy(&value, t->in.data + sizeof(access), count < sizeof(value) ? count : sizeof(value));
    return value;
}

void device_write(struct test *t, uint32_t region, uint64_t offset, uint32_t value, uint32_t count)
{
    struct ob_wire_region_access access = { offset, region, count };
    uint8_t payload[sizeof(access) + sizeof(value)];

    memcpy(payload, &access, sizeof(access));
    memcpy(payload + sizeof(access), &value, count);
    test_ok(t, OB_CMD_REGION_WRITE, payload, sizeof(access) + count);
}

bool device_maps(const struct test *t, uint32_t region)
{
    return t->dev->regions[region].flags & OB_REGION_MMAP;
}

void device_region(struct test *t, uint32_t index, uint32_t argsz, struct ob_region_layout *out)
{
    struct ob_wire_region_info info = { .argsz = argsz, .index = index };
    const char *why = NULL;

    test_ok(t, OB_CMD_DEVICE_GET_REGION_INFO, &info, sizeof(info));
    MUST(t, ob_decode_region_layout(t->in.data, t->in.len, index, out, &why) == 0,
         "the description of region %u: %s", index, why);
}

int device_map(struct test *t, uint32_t flags, int fd, uint64_t offset, uint64_t address,
               uint64_t size)
{
    struct ob_wire_dma_map map = { sizeof(map), flags, offset, address, size };

    return test_ask_fds(t, OB_CMD_DMA_MAP, &map, sizeof(map), &fd, fd >= 0);
}

int device_unmap(struct test *t, uint32_t flags, uint64_t address, uint64_t size)
{
    struct ob_wire_dma_unmap unmap = { sizeof(unmap), flags, address, size };
    int got = test_ask(t, OB_CMD_DMA_UNMAP, &unmap, sizeof(unmap));

    if (got == 0 && t->in.len == 0)
        test_deviates(t, "the reply to DMA_UNMAP is empty, as libvfio-user's without DMA");
    else if (got == 0)
        MUST(t, t->in.len == sizeof(unmap) && memcmp(t->in.data, &unmap, sizeof(unmap)) == 0,
             "the reply to DMA_UNMAP does not repeat the request");
    return got;
}

int device_set_irqs(struct test *t, uint32_t flags, uint32_t index, uint32_t start, uint32_t count,
                    const uint8_t *bools, const int *fds, unsigned nfds)
{
    uint8_t payload[sizeof(struct ob_wire_set_irqs) + OB_IRQ_VECTORS_MAX];
    struct ob_wire_set_irqs set = { sizeof(set) + (bools ? count : 0), flags, index, start, count };

    memcpy(payload, &set, sizeof(set));
    if (bools)
        memcpy(payload + sizeof(set), bools, count);
    return test_ask_fds(t, OB_CMD_DEVICE_SET_IRQS, payload, set.argsz, fds, nfds);
}

uint32_t device_arm_any(struct test *t, int fd)
{
    uint32_t index = 0;

    while (index < OB_IRQS_MAX && !t->dev->irqs[index].count)
        index++;
    if (index == OB_IRQS_MAX)
        test_not_offered(t, "the device has no interrupts");
    test_is_ok(t,
               device_set_irqs(t, OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER, index, 0, 1,
                               NULL, &fd, 1),
               OB_CMD_DEVICE_SET_IRQS);
    return index;
}

int device_feature(struct test *t, uint32_t flags, const void *data, size_t len, int room)
{
    uint8_t payload[256];
    struct ob_wire_feature head = { (uint32_t)(sizeof(head) + len) + (uint32_t)room, flags };

    memcpy(payload, &head, sizeof(head));
    if (len)
        memcpy(payload + sizeof(head), data, len);
    return test_ask(t, OB_CMD_DEVICE_FEATURE, payload, sizeof(head) + len);
}

/* ---- Requests ------------------------------------------------------------------------------ */

static const char small_proposal[] = "{\"capabilities\":{\"max_msg_fds\":16}}";

static uint64_t range(unsigned n)
{
    return ((uint64_t)n + 1) * 16 * PAGE;
}

/* An index that has interrupts, or that at least exists. */
static uint32_t some_irq(const struct test *t)
{
    for (uint32_t i = 0; i < OB_IRQS_MAX; i++)
        if (t->dev->irqs[i].count)
            return i;
    return 0;
}

/* The register with what is in it; a device without config space gets its first readable region
 * read, and a write of no bytes. */
static size_t access_request(const struct test *t, uint16_t cmd, uint8_t *payload)
{
    struct ob_wire_region_access access = { CONFIG_LINE, OB_PCI_REGION_CONFIG, 1 };

    if (!device_has_config(t))
        access = (struct ob_wire_region_access){ 0, 0, 0 };
    memcpy(payload, &access, sizeof(access));
    if (cmd == OB_CMD_REGION_READ)
        return sizeof(access);
    payload[sizeof(access)] = 0xff; /* "not connected" */
    return sizeof(access) + access.count;
}

static size_t multi_request(uint8_t *payload)
{
    struct ob_wire_write_multi head = { 1 };
    struct ob_wire_write_multi_entry one = { CONFIG_LINE, OB_PCI_REGION_CONFIG, 1, { 0xff } };

    memcpy(payload, &head, sizeof(head));
    memcpy(payload + sizeof(head), &one, sizeof(one));
    return sizeof(head) + sizeof(one);
}

size_t device_request(const struct test *t, uint16_t cmd, unsigned n, uint8_t *payload)
{
    struct ob_wire_dma_map map = { 32, OB_DMA_READ | OB_DMA_WRITE, 0, range(n), PAGE };
    struct ob_wire_dma_unmap unmap = { 24, 0, range(n), PAGE };
    struct ob_wire_region_info region = { .argsz = 32, .index = OB_PCI_REGION_CONFIG };
    struct ob_wire_irq_info indexed = {
        .argsz = 16, .index = cmd == OB_CMD_DEVICE_GET_IRQ_INFO ? some_irq(t) : OB_PCI_REGION_CONFIG
    };
    struct ob_wire_device_info info = { .argsz = 16 };
    struct ob_wire_set_irqs irqs = { 20, OB_IRQ_SET_DATA_NONE | OB_IRQ_SET_ACTION_TRIGGER,
                                     some_irq(t), 0, 0 };
    struct ob_wire_feature feature = { 8,
                                       OB_FEATURE_PROBE | OB_FEATURE_GET | OB_FEATURE_MIGRATION };
    struct ob_wire_mig_data mig = { 8, 0 };
    struct ob_wire_version version = { OB_VERSION_MAJOR, OB_VERSION_MINOR };

#define REQUEST(structure) (memcpy(payload, &(structure), sizeof(structure)), sizeof(structure))
    switch (cmd) {
    case OB_CMD_VERSION:
        memcpy(payload + sizeof(version), small_proposal, sizeof(small_proposal));
        return REQUEST(version) + sizeof(small_proposal);
    case OB_CMD_DMA_MAP:
        return REQUEST(map);
    case OB_CMD_DMA_UNMAP:
        return REQUEST(unmap);
    case OB_CMD_DEVICE_GET_INFO:
        return REQUEST(info);
    case OB_CMD_DEVICE_GET_REGION_INFO:
        return REQUEST(region);
    case OB_CMD_DEVICE_GET_REGION_IO_FDS:
    case OB_CMD_DEVICE_GET_IRQ_INFO:
        return REQUEST(indexed);
    case OB_CMD_DEVICE_SET_IRQS:
        return REQUEST(irqs);
    case OB_CMD_REGION_READ:
    case OB_CMD_REGION_WRITE:
        return access_request(t, cmd, payload);
    case OB_CMD_REGION_WRITE_MULTI:
        return multi_request(payload);
    case OB_CMD_DEVICE_FEATURE:
        return REQUEST(feature);
    case OB_CMD_MIG_DATA_READ:
    case OB_CMD_MIG_DATA_WRITE:
        return REQUEST(mig);
    default:
        return 0;
    }
#undef REQUEST
}

void device_prepare(struct test *t, uint16_t cmd, unsigned n)
{
    uint8_t payload[REQUEST_MAX];

    if (cmd == OB_CMD_DMA_UNMAP)
        test_ok(t, OB_CMD_DMA_MAP, payload, device_request(t, OB_CMD_DMA_MAP, n, payload));
}

bool device_takes(const struct test *t, uint16_t cmd)
{
    switch (cmd) {
    case OB_CMD_DMA_MAP:
    case OB_CMD_DMA_UNMAP:
    case OB_CMD_DEVICE_GET_INFO:
        return true;
    case OB_CMD_DEVICE_GET_IRQ_INFO:
        return t->dev->info.num_irqs > 0;
    case OB_CMD_DEVICE_SET_IRQS:
        return t->dev->irqs[some_irq(t)].count > 0;
    case OB_CMD_DEVICE_GET_REGION_INFO:
    case OB_CMD_REGION_READ:
    case OB_CMD_REGION_WRITE:
        return device_has_config(t);
    case OB_CMD_DEVICE_RESET:
        return t->dev->info.flags & OB_DEVICE_RESET;
    case OB_CMD_REGION_WRITE_MULTI:
        return t->dev->caps.write_multiple && device_has_config(t);
    default:
        return false;
    }
}
