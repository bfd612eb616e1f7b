/* SPDX-License-Identifier: BSD-3-Clause */
/* The results of `outboard check`: a line each, JSON, and JUnit's XML. */
#include "check.h"

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static const char *const verdict_names[CHECK_VERDICTS] = { "pass", "FAIL", "not offered",
                                                           "deviation" };
static const char *const verdict_keys[CHECK_VERDICTS] = { "pass", "fail", "not_offered",
                                                          "deviation" };

/* ---- Keeping ------------------------------------------------------------------------------- */

static void result_free(struct check_result *result)
{
    free((char *)result->id);
    free((char *)result->rules);
    free((char *)result->says);
    free((char *)result->why);
    free((char *)result->bytes);
}

int check_report_add(struct check_report *report, const struct check_result *result)
{
    struct check_result copy = *result;

    if (report->count == report->room) {
        size_t room = report->room ? 2 * report->room : 256;
        struct check_result *grown = realloc(report->results, room * sizeof(*grown));

        if (!grown)
            return -ENOMEM;
        report->results = grown;
        report->room = room;
    }
    copy.id = strdup(result->id);
    copy.rules = strdup(result->rules);
    copy.says = strdup(result->says);
    copy.why = result->why ? strdup(result->why) : NULL;
    copy.bytes = result->bytes ? strdup(result->bytes) : NULL;
    if (!copy.id || !copy.rules || !copy.says || !copy.why != !result->why ||
        !copy.bytes != !result->bytes) {
        result_free(&copy);
        return -ENOMEM;
    }
    report->results[report->count++] = copy;
    report->verdicts[copy.verdict]++;
    return 0;
}

void check_report_fini(struct check_report *report)
{
    for (size_t i = 0; i < report->count; i++)
        result_free(&report->results[i]);
    free(report->results);
}

/* ---- Text ---------------------------------------------------------------------------------- */

static void print_indented(const char *text, FILE *out)
{
    for (const char *end; (end = strchr(text, '\n')); text = end + 1)
        fprintf(out, "    %.*s\n", (int)(end - text), text);
}

void check_print_result(const struct check_result *result, FILE *out)
{
    fprintf(out, "%-12s %s", verdict_names[result->verdict], result->id);
    if (result->why)
        fprintf(out, ": %s", result->why);
    fputc('\n', out);
    if (result->verdict == CHECK_FAIL)
        fprintf(out, "    must be: %s (%s)\n", result->says, result->rules);
    if (result->bytes)
        print_indented(result->bytes, out);
}

void check_print_summary(const struct check_report *report, FILE *out)
{
    fprintf(out,
            "%zu cases: %zu passed, %zu failed, %zu not offered, %zu known deviations"
            " (seed %llu)\n",
            report->count, report->verdicts[CHECK_PASS], report->verdicts[CHECK_FAIL],
            report->verdicts[CHECK_NOT_OFFERED], report->verdicts[CHECK_DEVIATION],
            (unsigned long long)report->seed);
}

/* ---- JSON ---------------------------------------------------------------------------------- */

static json_t *json_rules(const char *rules)
{
    json_t *array = json_array();

    while (*rules) {
        size_t len = strcspn(rules, " ");

        if (json_array_append_new(array, json_stringn(rules, len)) < 0) {
            json_decref(array);
            return NULL;
        }
        rules += len + strspn(rules + len, " ");
    }
    return array;
}

/* Without what is NULL: a pass has no reason. */
static json_t *json_result(const struct check_result *result)
{
    return json_pack("{s:s, s:o, s:s, s:s, s:s*, s:s*, s:f}", "id", result->id, "rules",
                     json_rules(result->rules), "says", result->says, "verdict",
                     verdict_keys[result->verdict], "why", result->why, "bytes", result->bytes,
                     "seconds", result->seconds);
}

int check_print_json(const struct check_report *report, FILE *out)
{
    json_t *summary = json_object(), *cases = json_array(), *root;
    bool failed = false;

    for (size_t i = 0; i < CHECK_VERDICTS; i++)
        failed |= json_object_set_new(summary, verdict_keys[i],
                                      json_integer((json_int_t)report->verdicts[i])) < 0;
    for (size_t i = 0; i < report->count; i++)
        failed |= json_array_append_new(cases, json_result(&report->results[i])) < 0;
    root = json_pack("{s:I, s:o, s:o}", "seed", (json_int_t)report->seed, "summary", summary,
                     "cases", cases);
    failed = failed || !root || json_dumpf(root, out, JSON_INDENT(2)) < 0;
    json_decref(root);
    fputc('\n', out);
    return failed ? -ENOMEM : 0;
}

/* ---- JUnit --------------------------------------------------------------------------------- */

static void print_escaped(const char *text, FILE *out)
{
    for (; *text; text++) {
        if (*text == '<')
            fputs("&lt;", out);
        else if (*text == '>')
            fputs("&gt;", out);
        else if (*text == '&')
            fputs("&amp;", out);
        else if (*text == '"')
            fputs("&quot;", out);
        else
            fputc(*text, out);
    }
}

static void print_element(const char *name, const struct check_result *result, FILE *out)
{
    fprintf(out, "    <%s message=\"", name);
    print_escaped(result->why, out);
    fputs("\">", out);
    print_escaped(result->says, out);
    fprintf(out, " (%s)\n", result->rules);
    if (result->bytes)
        print_escaped(result->bytes, out);
    fprintf(out, "</%s>\n", name);
}

/* A class is what comes before the slash of the id. A deviation is a pass that says something. */
void check_print_junit(const struct check_report *report, FILE *out)
{
    fprintf(out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<testsuite name=\"outboard check\" tests=\"%zu\" failures=\"%zu\" skipped=\"%zu\">\n",
            report->count, report->verdicts[CHECK_FAIL], report->verdicts[CHECK_NOT_OFFERED]);
    for (size_t i = 0; i < report->count; i++) {
        const struct check_result *result = &report->results[i];
        size_t group = strcspn(result->id, "/");

        fprintf(out, "  <testcase classname=\"%.*s\" name=\"%s\" time=\"%.3f\">\n", (int)group,
                result->id, result->id + group + 1, result->seconds);
        if (result->verdict == CHECK_FAIL)
            print_element("failure", result, out);
        else if (result->verdict == CHECK_NOT_OFFERED)
            print_element("skipped", result, out);
        else if (result->verdict == CHECK_DEVIATION)
            print_element("system-out", result, out);
        fputs("  </testcase>\n", out);
    }
    fputs("</testsuite>\n", out);
}
