/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The JSON of the VERSION messages: what each side can do. Unknown keys are ignored; a known key
 * with a wrong type or value refuses the negotiation, since nothing after it could be trusted.
 */
#include "channel/channel.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

void ob_caps_default(struct ob_caps *caps)
{
    *caps = (struct ob_caps){
        .max_msg_fds = OB_MSG_FDS_DEFAULT,
        .max_data_xfer_size = OB_DATA_XFER_DEFAULT,
        .max_dma_maps = OB_DMA_MAPS_DEFAULT,
        .pgsizes = OB_PGSIZES_DEFAULT,
        .twin_fd_index = -1,
    };
}

/* A number from min; absent, *out keeps its default. */
static bool get_u64(const json_t *object, const char *key, uint64_t min, uint64_t *out)
{
    const json_t *value = json_object_get(object, key);

    if (!value)
        return true;
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        (uint64_t)json_integer_value(value) < min)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

/* The same for a limit: above UINT32_MAX it is as good as none, and cut. */
static bool get_u32(const json_t *object, const char *key, uint32_t min, uint32_t *out)
{
    uint64_t value = *out;

    if (!get_u64(object, key, min, &value))
        return false;
    *out = value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
    return true;
}

static bool get_bool(const json_t *object, const char *key, bool *out)
{
    const json_t *value = json_object_get(object, key);

    if (!value)
        return true;
    if (!json_is_boolean(value))
        return false;
    *out = json_is_true(value);
    return true;
}

static const char *parse_twin_socket(const json_t *caps, bool is_reply, struct ob_caps *out)
{
    const json_t *twin = json_object_get(caps, "twin_socket");
    const json_t *index;

    if (!twin)
        return NULL;
    if (!json_is_object(twin) || !get_bool(twin, "supported", &out->twin_socket))
        return "capability twin_socket is malformed";
    if (!is_reply || !out->twin_socket)
        return NULL;
    index = json_object_get(twin, "fd_index");
    if (!json_is_integer(index) || json_integer_value(index) < 0 ||
        json_integer_value(index) >= OB_MSG_FDS_MAX)
        return "capability twin_socket has no valid fd_index";
    out->twin_fd_index = (int)json_integer_value(index);
    return NULL;
}

static const char *parse_migration(const json_t *caps, struct ob_caps *out)
{
    const json_t *migration = json_object_get(caps, "migration");

    if (!migration)
        return NULL;
    out->migration = true;
    if (!json_is_object(migration) || !get_u64(migration, "pgsize", 1, &out->migration_pgsize) ||
        !get_u64(migration, "max_bitmap_size", 0, &out->migration_max_bitmap_size))
        return "capability migration is malformed";
    return NULL;
}

static const char *parse_capabilities(const json_t *caps, bool is_reply, struct ob_caps *out)
{
    const char *why;

    if (!json_is_object(caps))
        return "\"capabilities\" is not a JSON object";
    if (!get_u32(caps, "max_msg_fds", 0, &out->max_msg_fds))
        return "capability max_msg_fds is not a number from 0";
    if (!get_u32(caps, "max_data_xfer_size", 1, &out->max_data_xfer_size))
        return "capability max_data_xfer_size is not a number from 1";
    if (!get_u32(caps, "max_dma_maps", 1, &out->max_dma_maps))
        return "capability max_dma_maps is not a number from 1";
    if (!get_u64(caps, "pgsizes", 1, &out->pgsizes))
        return "capability pgsizes is not a number from 1";
    if (!get_bool(caps, "write_multiple", &out->write_multiple))
        return "capability write_multiple is not a boolean";
    why = parse_twin_socket(caps, is_reply, out);
    return why ? why : parse_migration(caps, out);
}

int ob_caps_parse(const void *json, size_t len, bool is_reply, struct ob_caps *out,
                  const char **why)
{
    struct ob_caps caps;
    const json_t *object;
    json_t *root;

    ob_caps_default(&caps);
    *why = NULL;
    if (len > OB_VERSION_JSON_MAX) {
        *why = "the capabilities are too long";
        return -EINVAL;
    }
    if (len > 0) {
        const char *end = memchr(json, '\0', len);

        root = end ? json_loadb(json, (size_t)(end - (const char *)json), 0, NULL) : NULL;
        if (!end)
            *why = "the capabilities have no terminating NUL";
        else if (!json_is_object(root))
            *why = "the capabilities are not a JSON object";
        else if ((object = json_object_get(root, "capabilities")))
            *why = parse_capabilities(object, is_reply, &caps);
        json_decref(root);
    }
    if (*why)
        return -EINVAL;
    *out = caps;
    return 0;
}

static json_t *build(const struct ob_caps *caps, bool is_reply)
{
    json_t *object = json_object();

    /* A peer's defaults differ from the specification's (QEMU assumes 8 fds), so these are said. */
    json_object_set_new(object, "max_msg_fds", json_integer(caps->max_msg_fds));
    json_object_set_new(object, "max_data_xfer_size", json_integer(caps->max_data_xfer_size));
    if (caps->max_dma_maps != OB_DMA_MAPS_DEFAULT)
        json_object_set_new(object, "max_dma_maps", json_integer(caps->max_dma_maps));
    if (caps->pgsizes != OB_PGSIZES_DEFAULT)
        json_object_set_new(object, "pgsizes", json_integer((json_int_t)caps->pgsizes));
    if (caps->write_multiple)
        json_object_set_new(object, "write_multiple", json_true());
    if (caps->twin_socket) {
        json_t *twin = json_pack("{sb}", "supported", 1);

        if (is_reply)
            json_object_set_new(twin, "fd_index", json_integer(caps->twin_fd_index));
        json_object_set_new(object, "twin_socket", twin);
    }
    if (caps->migration) {
        json_t *migration = json_pack("{sI}", "pgsize", (json_int_t)caps->migration_pgsize);

        if (caps->migration_max_bitmap_size)
            json_object_set_new(migration, "max_bitmap_size",
                                json_integer((json_int_t)caps->migration_max_bitmap_size));
        json_object_set_new(object, "migration", migration);
    }
    return json_pack("{so}", "capabilities", object);
}

int ob_caps_print(const struct ob_caps *caps, bool is_reply, char *buf, size_t size)
{
    json_t *root = build(caps, is_reply);
    size_t len = root ? json_dumpb(root, buf, size, JSON_COMPACT) : 0;

    json_decref(root);
    if (!root)
        return -ENOMEM;
    if (len >= size)
        return -ENOSPC;
    buf[len] = '\0';
    return (int)len + 1;
}
