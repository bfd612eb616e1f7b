/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fills the tables of docs/protocol.md from the message table and the headers: copies the document
 * from stdin to stdout, and puts the block called NAME between each pair of lines
 * `<!-- generated: NAME -->` and `<!-- end -->`. Exits with 1 for a name that it does not know and
 * for a pair that is not complete. `make docs` runs it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "outboard/proto.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- Structures that are parts of payloads ------------------------------------------------- */

struct layout {
    const char *name;
    const struct ob_field *fields;
    unsigned nfields;
};

#define F(S, member)                                                                             \
    {                                                                                            \
#member, offsetof(struct ob_wire_##S, member), sizeof(((struct ob_wire_##S *)0)->member) \
    }
#define FIELDS(name, ...) static const struct ob_field name[] = { __VA_ARGS__ }
#define LAYOUT(name, fields)        \
    {                               \
        name, fields, COUNT(fields) \
    }

FIELDS(header, F(hdr, msg_id), F(hdr, cmd), F(hdr, msg_size), F(hdr, flags), F(hdr, error_no));
FIELDS(bitmap, F(bitmap, pgsize), F(bitmap, size));
FIELDS(cap, F(cap, id), F(cap, version), F(cap, next));
FIELDS(sparse, F(cap_sparse, header), F(cap_sparse, nr_areas), F(cap_sparse, reserved));
FIELDS(area, F(sparse_area, offset), F(sparse_area, size));
FIELDS(type, F(cap_type, header), F(cap_type, type), F(cap_type, subtype));
FIELDS(ioeventfd, F(ioeventfd, offset), F(ioeventfd, size), F(ioeventfd, fd_index),
       F(ioeventfd, type), F(ioeventfd, flags), F(ioeventfd, padding), F(ioeventfd, datamatch));
FIELDS(shadow, F(ioeventfd_shadow, offset), F(ioeventfd_shadow, size),
       F(ioeventfd_shadow, fd_index), F(ioeventfd_shadow, type), F(ioeventfd_shadow, flags),
       F(ioeventfd_shadow, shadow_mem_fd_index), F(ioeventfd_shadow, shadow_offset),
       F(ioeventfd_shadow, datamatch));
FIELDS(entry, F(write_multi_entry, offset), F(write_multi_entry, region),
       F(write_multi_entry, count), F(write_multi_entry, data));

static const struct layout layouts[] = {
    LAYOUT("header", header),       LAYOUT("bitmap", bitmap),
    LAYOUT("capability", cap),      LAYOUT("SPARSE_MMAP", sparse),
    LAYOUT("sparse area", area),    LAYOUT("TYPE", type),
    LAYOUT("ioeventfd", ioeventfd), LAYOUT("shadow ioeventfd", shadow),
    LAYOUT("write entry", entry),
};

static void print_fields(const struct ob_field *fields, unsigned count, const char *where)
{
    for (unsigned i = 0; i < count; i++)
        printf("| %u | %u | `%s` |%s\n", fields[i].offset, fields[i].size, fields[i].name, where);
}

/* ---- Numbers with names --------------------------------------------------------------------- */

struct constant {
    const char *list; /* which table it is in */
    const char *name;
    uint64_t value;
    const char *meaning;
};

/* clang-format off */
static const struct constant constants[] = {
    { "device flags", "RESET", OB_DEVICE_RESET, "DEVICE_RESET works" },
    { "device flags", "PCI", OB_DEVICE_PCI, "a PCI device" },
    { "region flags", "READ", OB_REGION_READ, "can be read" },
    { "region flags", "WRITE", OB_REGION_WRITE, "can be written" },
    { "region flags", "MMAP", OB_REGION_MMAP, "can be mapped, in whole or in part" },
    { "region flags", "CAPS", OB_REGION_CAPS, "capabilities follow" },
    { "capability ids", "SPARSE_MMAP", OB_CAP_SPARSE_MMAP, "the areas that can be mapped" },
    { "capability ids", "TYPE", OB_CAP_TYPE, "what a device-specific region is" },
    { "capability ids", "MSIX_MAPPABLE", OB_CAP_MSIX_MAPPABLE,
      "no body: areas with the MSI-X table may be mapped too" },
    { "io fd types", "EVENTFD", OB_IO_FD_EVENTFD, "an eventfd, signalled by a write" },
    { "io fd types", "REGIONFD", OB_IO_FD_REGIONFD,
      "a socket that gets accesses; not in any kernel" },
    { "io fd types", "SHADOW", OB_IO_FD_SHADOW,
      "libvfio-user's own: the value is also stored in shared memory" },
    { "irq flags", "EVENTFD", OB_IRQ_EVENTFD, "signalled by eventfd" },
    { "irq flags", "MASKABLE", OB_IRQ_MASKABLE, "MASK and UNMASK reach the device" },
    { "irq flags", "AUTOMASKED", OB_IRQ_AUTOMASKED, "a level: masked by being signalled" },
    { "irq flags", "NORESIZE", OB_IRQ_NORESIZE,
      "all vectors must be set up at once, or all be taken back first" },
    { "set irqs flags", "DATA_NONE", OB_IRQ_SET_DATA_NONE, "no data" },
    { "set irqs flags", "DATA_BOOL", OB_IRQ_SET_DATA_BOOL, "a byte for each vector" },
    { "set irqs flags", "DATA_EVENTFD", OB_IRQ_SET_DATA_EVENTFD, "an eventfd for each vector" },
    { "set irqs flags", "ACTION_MASK", OB_IRQ_SET_ACTION_MASK, "mask" },
    { "set irqs flags", "ACTION_UNMASK", OB_IRQ_SET_ACTION_UNMASK, "unmask" },
    { "set irqs flags", "ACTION_TRIGGER", OB_IRQ_SET_ACTION_TRIGGER, "trigger" },
    { "dma flags", "READ", OB_DMA_READ, "the server may read" },
    { "dma flags", "WRITE", OB_DMA_WRITE, "the server may write" },
    { "dma flags", "ACCESS_MMAP", OB_DMA_ACCESS_MMAP, "by mapping the file" },
    { "dma flags", "ACCESS_FILE", OB_DMA_ACCESS_FILE, "by reading and writing the file" },
    { "unmap flags", "GET_DIRTY", OB_DMA_UNMAP_GET_DIRTY, "return a bitmap of what was written" },
    { "unmap flags", "ALL", OB_DMA_UNMAP_ALL, "every mapping" },
    { "feature flags", "GET", OB_FEATURE_GET, "return the feature's data" },
    { "feature flags", "SET", OB_FEATURE_SET, "set it" },
    { "feature flags", "PROBE", OB_FEATURE_PROBE, "say whether that is possible" },
    { "limits", "descriptors in one message", OB_MSG_FDS_MAX, "what the kernel carries" },
    { "limits", "`max_msg_fds` offered", OB_MSG_FDS_OFFER, "QEMU's client refuses more" },
    { "limits", "`max_data_xfer_size` offered", OB_DATA_XFER_MAX, "" },
    { "limits", "payload of a message", OB_PAYLOAD_MAX, "" },
    { "limits", "JSON of a VERSION", OB_VERSION_JSON_MAX, "with its NUL" },
    { "limits", "JSON of a VERSION reply", OB_VERSION_JSON_QEMU, "room in QEMU's client" },
    { "limits", "DMA mappings", OB_DMA_MAPS_MAX, "" },
    { "limits", "regions", OB_REGIONS_MAX, "" },
    { "limits", "reply of DEVICE_GET_REGION_INFO", OB_REGION_INFO_MAX, "" },
    { "limits", "areas of a region", OB_SPARSE_AREAS_MAX, "" },
    { "limits", "entries of DEVICE_GET_REGION_IO_FDS", OB_IOEVENTFDS_MAX, "" },
    { "limits", "entries of REGION_WRITE_MULTI", OB_WRITE_MULTI_MAX, "" },
    { "limits", "IRQ indexes", OB_IRQS_MAX, "" },
    { "limits", "vectors of an index", OB_IRQ_VECTORS_MAX, "what MSI-X can have" },
};
/* clang-format on */

static bool print_constants(const char *name)
{
    bool bits = strstr(name, "flags") != NULL, found = false;

    for (unsigned i = 0; i < COUNT(constants); i++) {
        const struct constant *c = &constants[i];

        if (strcmp(c->list, name) != 0)
            continue;
        if (!found)
            printf("| %s | name | meaning |\n|---|---|---|\n", bits ? "bit" : "number");
        found = true;
        printf("| %" PRIu64 " | %s | %s |\n", bits ? (uint64_t)__builtin_ctzll(c->value) : c->value,
               c->name, c->meaning);
    }
    return found;
}

/* Numbers for which the library has a function: [0, end), those without a name left out. */
static bool print_names(const char *name)
{
    static const struct {
        const char *list, *unnamed;
        unsigned end;
        const char *(*get)(unsigned number);
    } lists[] = {
        { "region indexes", "region", OB_PCI_REGIONS, ob_strregion },
        { "irq indexes", "IRQ", OB_PCI_IRQS, ob_strirq },
        { "features", "feature", OB_FEATURE_DMA_LOGGING_REPORT + 1, ob_strfeature },
    };

    for (unsigned i = 0; i < COUNT(lists); i++) {
        if (strcmp(lists[i].list, name) != 0)
            continue;
        printf("| number | name |\n|---|---|\n");
        for (unsigned n = 0; n < lists[i].end; n++)
            if (strcmp(lists[i].get(n), lists[i].unnamed) != 0)
                printf("| %u | %s |\n", n, lists[i].get(n));
        return true;
    }
    return false;
}

/* ---- Commands ------------------------------------------------------------------------------- */

/* What is behind the fixed part. */
static const struct {
    const char *request, *reply;
} variable[OB_CMD_LAST + 1] = {
    [OB_CMD_VERSION] = { "JSON", "JSON" },
    [OB_CMD_DMA_UNMAP] = { "with GET_DIRTY: bitmap", "with GET_DIRTY: bitmap and its bits" },
    [OB_CMD_DEVICE_GET_REGION_INFO] = { "ignored", "capabilities" },
    [OB_CMD_DEVICE_GET_REGION_IO_FDS] = { NULL, "entries" },
    [OB_CMD_DEVICE_SET_IRQS] = { "with DATA_BOOL: bytes", NULL },
    [OB_CMD_REGION_READ] = { NULL, "data" },
    [OB_CMD_REGION_WRITE] = { "data", NULL },
    [OB_CMD_DMA_READ] = { NULL, "data" },
    [OB_CMD_DMA_WRITE] = { "data", NULL },
    [OB_CMD_REGION_WRITE_MULTI] = { "entries", NULL },
    [OB_CMD_DEVICE_FEATURE] = { "the feature's data", "the feature's data" },
    [OB_CMD_MIG_DATA_READ] = { NULL, "data" },
    [OB_CMD_MIG_DATA_WRITE] = { "data", NULL },
};

static uint32_t fixed_part(const struct ob_shape *shape)
{
    const struct ob_field *last;

    if (!shape->nfields)
        return 0;
    last = &shape->fields[shape->nfields - 1];
    return (uint32_t)last->offset + last->size;
}

static void print_range(uint32_t min, uint32_t max)
{
    if (min == max)
        printf(" %" PRIu32 " |", max);
    else
        printf(" %" PRIu32 " to %" PRIu32 " |", min, max);
}

static void print_shape(const char *label, const struct ob_shape *shape)
{
    printf("| %s |", label);
    print_range(shape->min, shape->max);
    print_range(0, shape->fds_max);
    printf("\n");
}

static void print_variable(const struct ob_shape *shape, const char *what, const char *where)
{
    uint32_t fixed = fixed_part(shape);

    if (shape->max > fixed)
        printf("| %" PRIu32 " | to %" PRIu32 " | %s | %s |\n", fixed, shape->max - fixed, what,
               where);
}

static bool print_command(const char *name)
{
    const struct ob_msg_type *t = NULL;

    for (uint16_t cmd = OB_CMD_VERSION; cmd <= OB_CMD_LAST && !t; cmd++)
        if (strcmp(ob_strcmd(cmd), name) == 0)
            t = ob_msg_type(cmd);
    if (!t)
        return false;
    printf("| message | payload | descriptors |\n|---|---|---|\n");
    print_shape("request", &t->request);
    print_shape("reply", &t->reply);
    if (!t->request.nfields)
        return true;
    printf("\n| offset | size | field | in |\n|---|---|---|---|\n");
    /* Where a reply has a fixed part it is that of the request. */
    print_fields(t->request.fields, t->request.nfields,
                 t->reply.nfields ? " both |" : " request |");
    print_variable(&t->request, variable[t->cmd].request, "request");
    print_variable(&t->reply, variable[t->cmd].reply, "reply");
    return true;
}

static void print_commands(void)
{
    printf("| number | command | from | legal when |\n|---|---|---|---|\n");
    for (unsigned cmd = OB_CMD_VERSION; cmd <= OB_CMD_LAST; cmd++) {
        const struct ob_msg_type *t = ob_msg_type(cmd);
        const char *from = t->dir == OB_CLIENT_TO_SERVER ? "client" : "server";
        const char *when = t->states & OB_STATE_NEGOTIATE ? "negotiating" : "ready";

        printf("| %u | %s | %s | %s |\n", cmd, t->name, t->live ? from : "nobody",
               t->live ? when : "never: removed from the protocol");
    }
}

/* ---- The document --------------------------------------------------------------------------- */

static bool print_block(const char *name)
{
    if (strcmp(name, "commands") == 0) {
        print_commands();
        return true;
    }
    for (unsigned i = 0; i < COUNT(layouts); i++)
        if (strcmp(layouts[i].name, name) == 0) {
            printf("| offset | size | field |\n|---|---|---|\n");
            print_fields(layouts[i].fields, layouts[i].nfields, "");
            return true;
        }
    return print_command(name) || print_constants(name) || print_names(name);
}

/* Whether the line opens a block; name gets which. */
static bool opens_block(const char *line, char name[64])
{
    if (sscanf(line, "<!-- generated: %63[^-]", name) != 1)
        return false;
    name[strlen(name) - 1] = '\0'; /* the space before --> */
    return true;
}

int main(void)
{
    char line[4096], name[64];
    bool inside = false;

    while (fgets(line, sizeof(line), stdin)) {
        bool opens = opens_block(line, name);

        if (opens && inside) {
            fprintf(stderr, "the block '%s' begins inside another one\n", name);
            return 1;
        }
        if (strcmp(line, "<!-- end -->\n") == 0)
            inside = false;
        if (!inside)
            fputs(line, stdout);
        if (opens && !print_block(name)) {
            fprintf(stderr, "there is no block '%s'\n", name);
            return 1;
        }
        inside |= opens;
    }
    if (inside)
        fprintf(stderr, "the last block has no end\n");
    return inside || ferror(stdin) || fflush(stdout) != 0;
}
