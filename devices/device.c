/* SPDX-License-Identifier: BSD-3-Clause */
/* What the create() functions of devices share. */
#include "devices/device.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int ob_create_failed(int rc, char *errbuf, size_t errbuf_size)
{
    snprintf(errbuf, errbuf_size, "cannot build the device: %s", strerror(-rc));
    return 1;
}

int ob_option_number(const char *name, const char *text, uint64_t min, uint64_t max, uint64_t *out,
                     char *errbuf, size_t errbuf_size)
{
    char *end;

    errno = 0;
    bool hex = text[0] == '0' && (text[1] | 0x20) == 'x';
    uint64_t value = strtoull(text, &end, hex ? 16 : 10); /* 010 is ten to everybody */
    /* strtoull() itself takes a sign and leading space. */
    if (!isdigit((unsigned char)*text) || *end || errno || value < min || value > max) {
        snprintf(errbuf, errbuf_size,
                 "--%s takes a number from %" PRIu64 " to %" PRIu64 ", not '%s'", name, min, max,
                 text);
        return 2;
    }
    *out = value;
    return 0;
}

int ob_parse_size(const char *text, uint64_t *out)
{
    static const char suffixes[] = "KkMmGgTt";
    unsigned shift = 0;
    char *end;

    if (text[0] < '0' || text[0] > '9')
        return -EINVAL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno)
        return -EINVAL;
    if (*end) {
        const char *suffix = strchr(suffixes, *end);
        if (!suffix || end[1])
            return -EINVAL;
        shift = 10 * (unsigned)((suffix - suffixes) / 2 + 1);
    }
    if (value > (uint64_t)INT64_MAX >> shift)
        return -EINVAL;
    *out = value << shift;
    return 0;
}
