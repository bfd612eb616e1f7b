/* SPDX-License-Identifier: BSD-3-Clause */
#include "input.h"

#include <string.h>

#define SMALL 192u
#define EDGE  192u
#define TWO   224u
#define FOUR  240u
#define EIGHT 248u
#define PAGES 252u

static const uint64_t edges[TWO - EDGE] = {
    0xff,
    0x100,
    0xfff,
    0x1000,
    0x1001,
    0x2000,
    0x7fff,
    0xffff,
    0x10000,
    0xfffff,
    0x100000,
    0x100001,
    0x100010,
    0x100040, /* the longest payload */
    0x100041,
    INT32_MAX,
    (uint64_t)INT32_MAX + 1,
    UINT32_MAX,
    UINT32_MAX - 7,
    (uint64_t)UINT32_MAX + 1,
    0x10000000,
    INT64_MAX - 0xfff,
    INT64_MAX,
    (uint64_t)INT64_MAX + 1,
    UINT64_MAX - 0x1000,
    UINT64_MAX - 0xfff,
    UINT64_MAX - 63,
    UINT64_MAX - 7,
    UINT64_MAX - 3,
    UINT64_MAX - 1,
    UINT64_MAX,
    0xaaaaaaaaaaaaaaaa,
};

const uint8_t *input_take(struct input *in, size_t *len)
{
    const uint8_t *at = in->data + in->pos;

    if (*len > input_left(in))
        *len = input_left(in);
    in->pos += *len;
    return at;
}

uint64_t input_bytes(struct input *in, size_t count)
{
    uint64_t value = 0;
    size_t len = count;
    const uint8_t *at = input_take(in, &len);

    memcpy(&value, at, len);
    return value;
}

uint64_t input_number(struct input *in)
{
    uint8_t first = input_u8(in);

    if (first < SMALL)
        return first;
    if (first < TWO)
        return edges[first - EDGE];
    if (first < FOUR)
        return input_bytes(in, 2);
    if (first < EIGHT)
        return input_bytes(in, 4);
    if (first < PAGES)
        return input_bytes(in, 8);
    return (uint64_t)input_u8(in) << 12;
}

size_t input_put_number(uint8_t *out, uint64_t number)
{
    size_t len = number <= UINT16_MAX ? 2 : number <= UINT32_MAX ? 4 : 8;

    out[0] = number < SMALL ? (uint8_t)number : len == 2 ? TWO : len == 4 ? FOUR : EIGHT;
    if (number < SMALL)
        return 1;
    for (uint8_t i = 0; i < TWO - EDGE; i++)
        if (edges[i] == number) {
            out[0] = (uint8_t)(EDGE + i);
            return 1;
        }
    if (number % 4096 == 0 && number >> 12 <= UINT8_MAX) {
        out[0] = PAGES;
        out[1] = (uint8_t)(number >> 12);
        return 2;
    }
    memcpy(out + 1, &number, len);
    return 1 + len;
}
