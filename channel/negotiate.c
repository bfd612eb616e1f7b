/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The JSON of the VERSION messages. Keys that we do not know are ignored; one that we know must
 * have the right type and a value that we can work with. Numbers are only taken as integers.
 * What is parsed has OB_VERSION_JSON_MAX bytes at most, which also bounds its nesting. Rules:
 * R-VERSION-7, R-CAPS-1 to R-CAPS-5, R-TWIN-3.
 */
#include "channel/channel.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PAGE_MIN 4096u

void ob_caps_default(struct ob_caps *caps)
{
    *caps = (struct ob_caps){
        .max_msg_fds = OB_MSG_FDS_DEFAULT,
        .max_data_xfer_size = OB_DATA_XFER_DEFAULT,
        .max_dma_maps = OB_DMA_MAPS_DEFAULT,
        .pgsizes = OB_PGSIZES_DEFAULT,
        .twin_fd_index = -1,
        .ring_fd_index = -1,
    };
}

void ob_caps_init(void)
{
    json_object_seed(0); /* jansson would open /dev/urandom at the first object */
}

void ob_caps_offer(struct ob_caps *caps)
{
    ob_caps_default(caps);
    caps->max_msg_fds = OB_MSG_FDS_OFFER;
    caps->max_data_xfer_size = OB_DATA_XFER_MAX;
    caps->max_dma_maps = OB_DMA_MAPS_MAX;
    caps->write_multiple = true;
    caps->mapped_order = true;
}

/* The kernel's page size, like all known peers: libvfio-user refuses another one. */
void ob_caps_offer_migration(struct ob_caps *caps)
{
    caps->migration = true;
    caps->migration_pgsize = (uint64_t)sysconf(_SC_PAGESIZE);
    caps->migration_max_bitmap_size = OB_DATA_XFER_MAX;
}

/* ---- Parsing ------------------------------------------------------------------------------ */

static int refuse(const char **why, const char *sentence)
{
    *why = sentence;
    return -EINVAL;
}

/* A number that may be absent (then *out stays as it is). */
static int get_number(const json_t *object, const char *key, uint64_t min, uint64_t max,
                      const char *sentence, uint64_t *out, const char **why)
{
    const json_t *value = json_object_get(object, key);

    if (!value)
        return 0;
    json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < 0 || (uint64_t)number < min || (uint64_t)number > max)
        return refuse(why, sentence);
    *out = (uint64_t)number;
    return 0;
}

static int get_u32(const json_t *object, const char *key, uint32_t min, const char *sentence,
                   uint32_t *out, const char **why)
{
    uint64_t number = *out;
    int rc = get_number(object, key, min, UINT32_MAX, sentence, &number, why);

    *out = (uint32_t)number;
    return rc;
}

static int get_bool(const json_t *object, const char *key, const char *sentence, bool *out,
                    const char **why)
{
    const json_t *value = json_object_get(object, key);

    if (!value)
        return 0;
    if (!json_is_boolean(value))
        return refuse(why, sentence);
    *out = json_is_true(value);
    return 0;
}

/* *out is NULL when the object is absent. */
static int get_object(const json_t *object, const char *key, const char *sentence,
                      const json_t **out, const char **why)
{
    *out = json_object_get(object, key);
    return *out && !json_is_object(*out) ? refuse(why, sentence) : 0;
}

/* Something that comes along with the reply as a file descriptor, and what is wrong with it. */
struct along {
    const char *key, *no_object, *no_boolean, *no_index, *index_missing;
};

#define ALONG(key)                                                       \
    {                                                                    \
        key, key " is not an object", key ".supported is not a boolean", \
            key ".fd_index is not the index of a file descriptor",       \
            key " is on, but has no fd_index"                            \
    }

static int parse_along(const json_t *caps, const struct along *along, bool is_reply,
                       bool *supported, int *fd_index, const char **why)
{
    uint64_t index = UINT64_MAX;
    const json_t *object;
    int rc = get_object(caps, along->key, along->no_object, &object, why);

    if (rc == 0 && object)
        rc = get_bool(object, "supported", along->no_boolean, supported, why);
    if (rc < 0 || !is_reply || !*supported)
        return rc;
    rc = get_number(object, "fd_index", 0, OB_MSG_FDS_MAX - 1, along->no_index, &index, why);
    if (rc < 0)
        return rc;
    if (index == UINT64_MAX)
        return refuse(why, along->index_missing);
    *fd_index = (int)index;
    return 0;
}

static int parse_migration(const json_t *migration, struct ob_caps *caps, const char **why)
{
    int rc;

    caps->migration = true;
    caps->migration_pgsize = PAGE_MIN;
    rc = get_number(migration, "pgsize", PAGE_MIN, INT64_MAX,
                    "migration.pgsize is not a number from 4096", &caps->migration_pgsize, why);
    if (rc < 0)
        return rc;
    if (caps->migration_pgsize % PAGE_MIN)
        return refuse(why, "migration.pgsize is not a multiple of 4096");
    return get_number(migration, "max_bitmap_size", 1, INT64_MAX,
                      "migration.max_bitmap_size is not a positive number",
                      &caps->migration_max_bitmap_size, why);
}

static int parse_numbers(const json_t *object, struct ob_caps *caps, const char **why)
{
    int rc = get_u32(object, "max_msg_fds", 0, "max_msg_fds is not a number from 0 to 4294967295",
                     &caps->max_msg_fds, why);

    if (rc == 0)
        rc = get_u32(object, "max_data_xfer_size", 1,
                     "max_data_xfer_size is not a number from 1 to 4294967295",
                     &caps->max_data_xfer_size, why);
    if (rc == 0)
        rc = get_u32(object, "max_dma_maps", 1, "max_dma_maps is not a number from 1 to 4294967295",
                     &caps->max_dma_maps, why);
    if (rc == 0)
        rc = get_number(object, "pgsizes", PAGE_MIN, INT64_MAX,
                        "pgsizes is not a sum of page sizes from 4096", &caps->pgsizes, why);
    if (rc == 0 && caps->pgsizes % PAGE_MIN)
        rc = refuse(why, "pgsizes has a page size below 4096");
    return rc;
}

static int parse_caps(const json_t *root, bool is_reply, struct ob_caps *caps, const char **why)
{
    static const struct along twin = ALONG("twin_socket"), ring = ALONG("access_ring");
    const json_t *object, *migration;

    if (!json_is_object(root))
        return refuse(why, "the version data is not a JSON object");
    int rc = get_object(root, "capabilities", "capabilities is not an object", &object, why);
    if (rc < 0 || !object)
        return rc;
    rc = parse_numbers(object, caps, why);
    if (rc == 0)
        rc = get_bool(object, "write_multiple", "write_multiple is not a boolean",
                      &caps->write_multiple, why);
    if (rc == 0)
        rc = get_bool(object, "mapped_order", "mapped_order is not a boolean", &caps->mapped_order,
                      why);
    if (rc == 0)
        rc = parse_along(object, &twin, is_reply, &caps->twin_socket, &caps->twin_fd_index, why);
    if (rc == 0)
        rc = parse_along(object, &ring, is_reply, &caps->ring, &caps->ring_fd_index, why);
    if (rc == 0)
        rc = get_object(object, "migration", "migration is not an object", &migration, why);
    if (rc == 0 && migration)
        rc = parse_migration(migration, caps, why);
    return rc;
}

int ob_caps_parse(const void *json, size_t len, bool is_reply, struct ob_caps *out,
                  const char **why)
{
    struct ob_caps caps;

    ob_caps_default(&caps);
    if (len > OB_VERSION_JSON_MAX)
        return refuse(why, "the version data is too long");
    const char *end = len ? memchr(json, '\0', len) : NULL;
    if (len && !end)
        return refuse(why, "the version data does not end with a NUL");
    if (len && end != json) {
        json_t *root = json_loadb(json, (size_t)(end - (const char *)json), 0, NULL);
        if (!root)
            return refuse(why, "the version data is not valid JSON");
        int rc = parse_caps(root, is_reply, &caps, why);
        json_decref(root);
        if (rc < 0)
            return rc;
    }
    *out = caps;
    return 0;
}

/* ---- Printing ----------------------------------------------------------------------------- */

struct printer {
    char *buf;
    size_t size, len; /* len past size: it did not fit */
};

__attribute__((format(printf, 2, 3))) static void put(struct printer *p, const char *fmt, ...)
{
    size_t room = p->len < p->size ? p->size - p->len : 0;
    va_list ap;

    va_start(ap, fmt);
    p->len += (size_t)vsnprintf(room ? p->buf + p->len : NULL, room, fmt, ap);
    va_end(ap);
}

/* A further member of the object that is being printed. */
static void put_number(struct printer *p, const char *key, uint64_t value, uint64_t absent)
{
    if (value != absent)
        put(p, ",\"%s\":%" PRIu64, key, value);
}

static void put_along(struct printer *p, const char *key, bool is_reply, int fd_index)
{
    put(p, ",\"%s\":{\"supported\":true", key);
    if (is_reply)
        put(p, ",\"fd_index\":%d", fd_index);
    put(p, "}");
}

/* NOLINTNEXTLINE(readability-non-const-parameter): it is written through the printer */
int ob_caps_print(const struct ob_caps *caps, bool is_reply, char *buf, size_t size)
{
    struct printer p = { .buf = buf, .size = size };

    /* These two are always said: what a peer assumes instead differs (QEMU: 8 fds). */
    put(&p, "{\"capabilities\":{\"max_msg_fds\":%" PRIu32 ",\"max_data_xfer_size\":%" PRIu32,
        caps->max_msg_fds, caps->max_data_xfer_size);
    put_number(&p, "max_dma_maps", caps->max_dma_maps, OB_DMA_MAPS_DEFAULT);
    put_number(&p, "pgsizes", caps->pgsizes, OB_PGSIZES_DEFAULT);
    if (caps->write_multiple)
        put(&p, ",\"write_multiple\":true");
    if (caps->mapped_order)
        put(&p, ",\"mapped_order\":true");
    if (caps->twin_socket)
        put_along(&p, "twin_socket", is_reply, caps->twin_fd_index);
    if (caps->ring)
        put_along(&p, "access_ring", is_reply, caps->ring_fd_index);
    if (caps->migration) {
        put(&p, ",\"migration\":{\"pgsize\":%" PRIu64, caps->migration_pgsize);
        put_number(&p, "max_bitmap_size", caps->migration_max_bitmap_size, 0);
        put(&p, "}");
    }
    put(&p, "}}");
    return p.len < size ? (int)p.len + 1 : -ENOSPC;
}
