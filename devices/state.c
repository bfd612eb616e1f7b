/* SPDX-License-Identifier: BSD-3-Clause */
#include "devices/state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void ob_state_clear(struct ob_state_buffer *state)
{
    free(state->data);
    *state = (struct ob_state_buffer){ 0 };
}

void ob_state_put(struct ob_state_buffer *state, const void *data, size_t len)
{
    if (!state->failed && len > state->room - state->len) {
        size_t room = 2 * state->room + len + 4096;
        uint8_t *grown = realloc(state->data, room);

        if (grown) {
            state->data = grown;
            state->room = room;
        } else {
            state->failed = true;
        }
    }
    if (state->failed || len == 0)
        return;
    memcpy(state->data + state->len, data, len);
    state->len += len;
}

void ob_state_take(struct ob_state_buffer *state, void *out, size_t len)
{
    if (len == 0)
        return;
    if (state->failed || len > state->len - state->pos) {
        state->failed = true;
        memset(out, 0, len);
        return;
    }
    memcpy(out, state->data + state->pos, len);
    state->pos += len;
}

bool ob_state_finished(const struct ob_state_buffer *state)
{
    return !state->failed && state->pos == state->len;
}

int64_t ob_state_read(struct ob_state_buffer *state, void *data, uint32_t count)
{
    size_t n = state->len - state->pos < count ? state->len - state->pos : count;

    ob_state_take(state, data, n);
    return (int64_t)n;
}

int ob_state_write(struct ob_state_buffer *state, const void *data, uint32_t count, size_t max)
{
    if (count > max || state->len > max - count)
        return -EINVAL;
    ob_state_put(state, data, count);
    return state->failed ? -ENOMEM : 0;
}
