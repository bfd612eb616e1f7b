/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The state of a device in memory, on its way to or from a migration stream. Building and taking
 * apart need one check at the end.
 */
#ifndef OB_DEVICES_STATE_H
#define OB_DEVICES_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ob_state_buffer {
    uint8_t *data;
    size_t len, room;
    size_t pos;  /* of what is read or taken next */
    bool failed; /* no memory; or more was taken than there is */
};

/* Empty again, without memory. */
void ob_state_clear(struct ob_state_buffer *state);
void ob_state_put(struct ob_state_buffer *state, const void *data, size_t len);
/* On failure out is zeroed. */
void ob_state_take(struct ob_state_buffer *state, void *out, size_t len);
/* All was taken, and nothing is left. */
bool ob_state_finished(const struct ob_state_buffer *state);

/* ob_migration_ops.read and write, of this buffer. A write beyond max bytes is refused. */
int64_t ob_state_read(struct ob_state_buffer *state, void *data, uint32_t count);
int ob_state_write(struct ob_state_buffer *state, const void *data, uint32_t count, size_t max);

#endif
