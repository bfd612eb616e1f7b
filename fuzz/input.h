/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The bytes of one run, taken from front to back. Past their end everything is zero, so that any
 * input is a whole one. What a target reads with these it can also write (record.c), which is how
 * recorded sessions become inputs.
 */
#ifndef OB_FUZZ_INPUT_H
#define OB_FUZZ_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct input {
    const uint8_t *data;
    size_t len, pos;
};

static inline size_t input_left(const struct input *in)
{
    return in->len - in->pos;
}

/* The next bytes in place; *len is cut to what there is. */
const uint8_t *input_take(struct input *in, size_t *len);
uint64_t input_bytes(struct input *in, size_t count); /* little-endian, at most 8 */

static inline uint8_t input_u8(struct input *in)
{
    return in->pos < in->len ? in->data[in->pos++] : 0;
}

/*
 * A number as peers lie about them: one byte for small ones and for the edges of types and sizes,
 * up to nine for the others. The first byte:
 *   0 to 191     the number itself
 *   192 to 223   an edge, see input.c
 *   224 to 239   two bytes follow
 *   240 to 247   four
 *   248 to 251   eight
 *   252 to 255   one follows, and is a number of pages
 */
uint64_t input_number(struct input *in);
/* Writes a number so that input_number() reads it. Returns the bytes, at most 9. */
size_t input_put_number(uint8_t *out, uint64_t number);

#endif
