/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Prints a dictionary for libFuzzer, made from the message table: the header of each command and
 * reply at its bounds, the edges of the limits, and the words of the negotiation's JSON.
 */
#include "channel/channel.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

static void print_entry(const char *name, const char *what, const void *data, size_t len)
{
    printf("%s_%s=\"", name, what);
    for (const uint8_t *at = data; len > 0; at++, len--)
        printf("\\x%02x", *at);
    puts("\"");
}

static void print_header(const struct ob_msg_type *type, const char *what, uint32_t flags,
                         uint32_t payload)
{
    struct ob_wire_hdr hdr = { .cmd = type->cmd,
                               .msg_size = (uint32_t)sizeof(hdr) + payload,
                               .flags = flags };

    uint8_t bytes[sizeof(hdr)];
    struct ob_writer w;

    ob_writer_init(&w, bytes, sizeof(bytes));
    ob_writer_put(&w, &hdr, sizeof(hdr));
    print_entry(type->name, what, bytes, w.len);
}

static void print_message(const struct ob_msg_type *type)
{
    print_header(type, "request", OB_HDR_COMMAND, type->request.min);
    print_header(type, "posted", OB_HDR_COMMAND | OB_HDR_NO_REPLY, type->request.min);
    print_header(type, "reply", OB_HDR_REPLY, type->reply.min);
    print_header(type, "error", OB_HDR_REPLY | OB_HDR_ERROR, 0);
    if (type->request.max > type->request.min)
        print_header(type, "longest", OB_HDR_COMMAND, type->request.max);
}

static void print_limits(void)
{
    static const uint64_t limits[] = {
        OB_MSG_FDS_MAX, OB_DATA_XFER_MAX,   OB_DMA_MAPS_MAX,     OB_REGIONS_MAX,
        OB_IRQS_MAX,    OB_IRQ_VECTORS_MAX, OB_SPARSE_AREAS_MAX, OB_IOEVENTFDS_MAX,
        OB_PAYLOAD_MAX, OB_REGION_INFO_MAX, OB_WRITE_MULTI_MAX,  UINT32_MAX,
    };
    char name[32];

    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        uint64_t past = limits[i] + 1;

        snprintf(name, sizeof(name), "limit%zu", i);
        print_entry(name, "is", &limits[i], 4);
        print_entry(name, "past", &past, 8);
    }
}

/* Everything that is quoted in what we ourselves would say. */
static void print_words(void)
{
    struct ob_caps caps;
    char json[512], *at = json;
    unsigned n = 0;

    ob_caps_offer(&caps);
    ob_caps_offer_migration(&caps);
    caps.twin_socket = true;
    caps.ring = true;
    caps.max_dma_maps--;
    caps.pgsizes *= 3;
    if (ob_caps_print(&caps, true, json, sizeof(json)) < 0)
        return;
    while ((at = strchr(at, '"'))) {
        char *end = strchr(at + 1, '"');

        if (!end)
            return;
        printf("word%u=\"\\\"%.*s\\\":\"\n", n++, (int)(end - at - 1), at + 1);
        at = end + 1;
    }
}

int main(void)
{
    for (unsigned cmd = 0; cmd <= OB_CMD_LAST; cmd++)
        if (ob_msg_type((uint16_t)cmd) && ob_msg_type((uint16_t)cmd)->live)
            print_message(ob_msg_type((uint16_t)cmd));
    print_limits();
    print_words();
    return 0;
}
