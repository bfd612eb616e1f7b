/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of `outboard check` share. */
#ifndef OB_TOOLS_CHECK_H
#define OB_TOOLS_CHECK_H

#include <stdio.h>

#include "conformance/conformance.h"

/* The results so far. Strings are copied. */
struct check_report {
    const char *path;
    uint64_t seed;
    struct check_result *results;
    size_t count, room;
    size_t verdicts[CHECK_VERDICTS];
};

/* -ENOMEM, or 0. */
int check_report_add(struct check_report *report, const struct check_result *result);
void check_report_fini(struct check_report *report);

void check_print_result(const struct check_result *result, FILE *out);
void check_print_summary(const struct check_report *report, FILE *out);
/* -ENOMEM, or 0. */
int check_print_json(const struct check_report *report, FILE *out);
void check_print_junit(const struct check_report *report, FILE *out);

#endif
