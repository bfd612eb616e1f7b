/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists of cases: families are spelt out, and what a pattern does not match is left out. */
#include "conformance/list.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>

static void add(struct list *list, const struct entry *entry)
{
    if (list->pattern && fnmatch(list->pattern, entry->id, 0) != 0) {
        free(entry->owned);
        return;
    }
    if (list->count == list->room) {
        size_t room = list->room ? 2 * list->room : 256;
        struct entry *grown = realloc(list->entries, room * sizeof(*grown));

        if (!grown) {
            free(entry->owned);
            list->failed = true;
            return;
        }
        list->entries = grown;
        list->room = room;
    }
    list->entries[list->count++] = *entry;
}

/* The id with the name in it. */
static char *expand(const char *id, const char *name)
{
    const char *mark = strstr(id, "%s");
    char *text = NULL;

    if (asprintf(&text, "%.*s%s%s", (int)(mark - id), id, name, mark + 2) < 0)
        return NULL;
    return text;
}

static void add_family(struct list *list, const struct family_table *table)
{
    const char *name;

    for (size_t i = 0; i < table->count; i++) {
        const struct family *f = &table->families[i];

        for (uint32_t arg = table->first; (name = table->name(arg)); arg++) {
            char *id;

            if (!*name || !f->applies(arg))
                continue;
            id = expand(f->id, name);
            if (!id)
                list->failed = true;
            else
                add(list,
                    &(struct entry){ id, f->rules, f->says, f->run, f->raw, f->slow, arg, id });
        }
    }
}

void list_free(struct list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->entries[i].owned);
    free(list->entries);
}

int list_make(struct list *list, const char *pattern, const struct family_table *const *families,
              size_t nfamilies, const struct case_table *const *tables, size_t ntables)
{
    *list = (struct list){ .pattern = pattern };
    for (size_t i = 0; i < nfamilies; i++)
        add_family(list, families[i]);
    for (size_t i = 0; i < ntables; i++)
        for (size_t k = 0; k < tables[i]->count; k++)
            add(list, &tables[i]->entries[k]);
    if (!list->failed)
        return 0;
    list_free(list);
    return -ENOMEM;
}

int list_tell(struct list *list, void (*each)(void *opaque, const struct check_case *c),
              void *opaque)
{
    int count = (int)list->count;

    for (size_t i = 0; i < list->count; i++) {
        const struct entry *e = &list->entries[i];

        each(opaque, &(struct check_case){ e->id, e->rules, e->says });
    }
    list_free(list);
    return count;
}
