/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The JSON of the negotiation. The first byte says whether it is a reply's (bit 0); a NUL is added,
 * unless it says not to (bit 1). Each other byte is a word of such JSON (bit 2; bit 3: within
 * "capabilities"), or else itself. What was understood and printed is understood the same again.
 */
#include "channel/channel.h"
#include "input.h"
#include "world.h"

#include <stdlib.h>
#include <string.h>

static const char *const words[] = {
    "{",
    "}",
    ":",
    ",",
    "[",
    "]",
    "true",
    "false",
    "null",
    "0",
    "1",
    "-1",
    "252",
    "253",
    "4095",
    "4096",
    "12288",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "1e400",
    "1.5",
    "\"\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"capabilities\":",
    "\"max_msg_fds\":",
    "\"max_data_xfer_size\":",
    "\"max_dma_maps\":",
    "\"pgsizes\":",
    "\"write_multiple\":",
    "\"mapped_order\":",
    "\"twin_socket\":{",
    "\"supported\":true",
    "\"fd_index\":",
    "\"migration\":{",
    "\"pgsize\":",
    "\"max_bitmap_size\":",
    "\"access_ring\":{",
};
#define NWORDS   (sizeof(words) / sizeof(words[0]))
#define WORD_MAX 24u

static size_t put_word(char *json, const char *word)
{
    size_t len = 0;

    for (; word[len]; len++)
        json[len] = word[len];
    return len;
}

/* Returns its length; there is room for all of it. */
static size_t make_json(struct input *in, uint8_t how, char *json)
{
    size_t len = 0;

    if (!(how & 4)) {
        len = input_left(in);
        return len ? (memcpy(json, in->data + in->pos, len), len) : 0;
    }
    if (how & 8)
        len += put_word(json, "{\"capabilities\":{");
    while (input_left(in))
        len += put_word(json + len, words[input_u8(in) % NWORDS]);
    if (how & 8)
        len += put_word(json + len, "}}");
    return len;
}

static void check_printed(const struct ob_caps *caps, bool is_reply)
{
    struct ob_caps again;
    const char *why;
    char json[1024];
    int len = ob_caps_print(caps, is_reply, json, sizeof(json));

    HOLDS(len > 0 && (size_t)len == strlen(json) + 1);
    HOLDS(ob_caps_parse(json, (size_t)len, is_reply, &again, &why) == 0);
    HOLDS(again.max_msg_fds == caps->max_msg_fds && again.max_dma_maps == caps->max_dma_maps &&
          again.max_data_xfer_size == caps->max_data_xfer_size && again.pgsizes == caps->pgsizes &&
          again.write_multiple == caps->write_multiple &&
          again.mapped_order == caps->mapped_order && again.twin_socket == caps->twin_socket &&
          again.twin_fd_index == caps->twin_fd_index && again.ring == caps->ring &&
          again.ring_fd_index == caps->ring_fd_index && again.migration == caps->migration &&
          again.migration_max_bitmap_size == caps->migration_max_bitmap_size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size, 0 };
    uint8_t how = input_u8(&in);
    bool is_reply = how & 1, has_nul = !(how & 2);
    size_t room = (input_left(&in) + 2) * WORD_MAX, len;
    char *made = new_memory(room), *json;
    struct ob_caps caps;
    const char *why = NULL;

    len = make_json(&in, how, made);
    json = new_memory(len + has_nul);
    if (len)
        memcpy(json, made, len);
    free(made);
    if (has_nul)
        json[len] = '\0';
    if (ob_caps_parse(json, len + has_nul, is_reply, &caps, &why) < 0)
        HOLDS(why);
    else
        check_printed(&caps, is_reply);
    free(json);
    return 0;
}
