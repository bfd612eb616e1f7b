/* SPDX-License-Identifier: BSD-3-Clause */
/* The only code that walks through a peer's bytes, and the one that writes ours. */
#include "outboard/proto.h"

#include <string.h>

void ob_cursor_init(struct ob_cursor *cur, const void *data, size_t len)
{
    *cur = (struct ob_cursor){ .data = data, .len = len };
}

const void *ob_cursor_take(struct ob_cursor *cur, size_t len)
{
    if (cur->failed || len > cur->len - cur->pos) {
        cur->failed = true;
        return NULL;
    }
    /* Never NULL on success, also where there is no byte at all. */
    const void *at = cur->data ? cur->data + cur->pos : (const uint8_t *)"";
    cur->pos += len;
    return at;
}

bool ob_cursor_get(struct ob_cursor *cur, void *out, size_t len)
{
    const void *at = ob_cursor_take(cur, len);

    if (!at) {
        memset(out, 0, len);
        return false;
    }
    memcpy(out, at, len);
    return true;
}

bool ob_cursor_seek(struct ob_cursor *cur, size_t pos)
{
    if (cur->failed || pos > cur->len) {
        cur->failed = true;
        return false;
    }
    cur->pos = pos;
    return true;
}

size_t ob_cursor_left(const struct ob_cursor *cur)
{
    return cur->failed ? 0 : cur->len - cur->pos;
}

void ob_writer_init(struct ob_writer *w, void *data, size_t size)
{
    *w = (struct ob_writer){ .data = data, .size = size };
}

void ob_writer_put(struct ob_writer *w, const void *data, size_t len)
{
    if (w->failed || len > w->size - w->len) {
        w->failed = true;
        return;
    }
    if (len)
        memcpy(w->data + w->len, data, len);
    w->len += len;
}
