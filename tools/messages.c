/* SPDX-License-Identifier: BSD-3-Clause */
/* How commands take numbers and operands, and tell what is wrong. */
#include "tools.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int fail(const char *command, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "outboard %s: ", command);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    return 1;
}

int fail_usage(const char *command, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "outboard %s: ", command);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, " (see outboard %s --help)\n", command);
    return 2;
}

int fail_option(const char *command, int c, char **argv)
{
    return fail_usage(command, c == ':' ? "%s needs a value" : "there is no option %s",
                      argv[optind - 1]);
}

int take_socket(const char *command, int argc, char **argv, const char **path)
{
    if (optind == argc)
        return fail_usage(command, "which SOCKET?");
    if (argc - optind > 1)
        return fail_usage(command, "one SOCKET only, not also '%s'", argv[optind + 1]);
    *path = argv[optind];
    return 0;
}

#define WORD_MAX 32

static unsigned min3(unsigned a, unsigned b, unsigned c)
{
    unsigned m = a < b ? a : b;

    return m < c ? m : c;
}

/* Letters to add, drop or replace to get from a to b. b fits in WORD_MAX. */
static unsigned edit_distance(const char *a, const char *b)
{
    size_t blen = strlen(b);
    unsigned row[WORD_MAX + 1];

    for (size_t j = 0; j <= blen; j++)
        row[j] = (unsigned)j;
    for (size_t i = 0; a[i]; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i + 1;
        for (size_t j = 0; j < blen; j++) {
            unsigned replaced = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = min3(replaced, row[j] + 1, row[j + 1] + 1);
        }
    }
    return row[blen];
}

const char *nearest_name(const char *word, const char *(*name)(size_t i))
{
    const char *best = NULL, *candidate;
    unsigned best_distance = 3; /* three letters off is another word */

    for (size_t i = 0; (candidate = name(i)); i++) {
        size_t len = strlen(candidate);
        if (len > WORD_MAX)
            continue;
        unsigned distance = edit_distance(word, candidate);
        if (distance < best_distance && distance < len) {
            best = candidate;
            best_distance = distance;
        }
    }
    return best;
}

bool parse_number(const char *text, int base, long long min, long long max, long long *out)
{
    char *end;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    *out = strtoll(text, &end, base);
    return !*end && errno == 0 && *out >= min && *out <= max;
}
