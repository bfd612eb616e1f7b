/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists of cases, of servers' and of clients'. */
#ifndef OB_CONFORMANCE_LIST_H
#define OB_CONFORMANCE_LIST_H

#include "conformance/test.h"

struct list {
    struct entry *entries;
    size_t count, room;
    const char *pattern;
    bool failed;
};

/* The cases that match pattern (NULL: all). 0 or -ENOMEM. */
int list_make(struct list *list, const char *pattern, const struct family_table *const *families,
              size_t nfamilies, const struct case_table *const *tables, size_t ntables);
void list_free(struct list *list);
/* Calls each() for every case, and frees the list. Returns the number of cases. */
int list_tell(struct list *list, void (*each)(void *opaque, const struct check_case *c),
              void *opaque);

#endif
