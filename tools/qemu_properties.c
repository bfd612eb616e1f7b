/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The properties of the device. QEMU answers `-device NAME,help` before it loads plug-ins, and
 * would say that there is no such device; asked over QMP it knows.
 */
#include "qemu_plugin.h"
#include "tools.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char questions[] =
    "{\"execute\":\"qmp_capabilities\"}\n"
    "{\"execute\":\"device-list-properties\",\"arguments\":{\"typename\":\"%s\"}}\n"
    "{\"execute\":\"quit\"}\n";

/* In the child: QEMU with QMP on in and out. Does not return. */
static void run_qemu(const struct ob_qemu *qemu, const char *plugin, int in, int out)
{
    char arg[2 * PATH_MAX];

    if (ob_plugin_argument(plugin, arg, sizeof(arg)) == 0 && dup2(in, STDIN_FILENO) >= 0 &&
        dup2(out, STDOUT_FILENO) >= 0)
        execl(qemu->path, qemu->path, "-plugin", arg, "-machine", "none", "-nodefaults", "-display",
              "none", "-qmp", "stdio", (char *)NULL);
    fail("qemu", "%s: %s", qemu->path, strerror(errno));
    _exit(1);
}

static void print_property(const json_t *property)
{
    const char *name = json_string_value(json_object_get(property, "name"));
    const char *type = json_string_value(json_object_get(property, "type"));
    const char *about = json_string_value(json_object_get(property, "description"));
    const json_t *preset = json_object_get(property, "default-value");

    if (!name || !type)
        return;
    printf("  %s=<%s>", name, type);
    if (about)
        printf("%*s- %s",
               (int)(strlen(name) + strlen(type) < 19 ? 19 - strlen(name) - strlen(type) : 1), "",
               about);
    if (preset) {
        char *text = json_dumps(preset, JSON_ENCODE_ANY);
        printf(" (default: %s)", text ? text : "?");
        free(text);
    }
    putchar('\n');
}

/* The answer that is a list is the one to the second question. */
static bool print_list(FILE *answers, const char *name)
{
    json_t *answer;
    json_t *property;
    size_t i;

    while ((answer = json_loadf(answers, JSON_DISABLE_EOF_CHECK, NULL)) != NULL) {
        const json_t *list = json_object_get(answer, "return");
        bool found = json_is_array(list);
        if (found) {
            printf("%s options:\n", name);
            json_array_foreach(list, i, property) print_property(property);
        }
        json_decref(answer);
        if (found)
            return true;
    }
    return false;
}

int ob_plugin_print_properties(const struct ob_qemu *qemu, const char *plugin, const char *name)
{
    int ask[2], answer[2];
    int status;

    if (pipe(ask) < 0 || pipe(answer) < 0)
        return fail("qemu", "%s", strerror(errno));
    /* Fits into an empty pipe. */
    if (dprintf(ask[1], questions, name) < 0)
        return fail("qemu", "%s", strerror(errno));
    close(ask[1]);
    pid_t child = fork();
    if (child < 0)
        return fail("qemu", "%s", strerror(errno));
    if (child == 0) {
        close(answer[0]);
        run_qemu(qemu, plugin, ask[0], answer[1]);
    }
    close(ask[0]);
    close(answer[1]);
    FILE *answers = fdopen(answer[0], "r");
    bool found = answers && print_list(answers, name);
    if (answers)
        fclose(answers);
    waitpid(child, &status, 0);
    return found ? 0 : fail("qemu", "%s did not tell the device's properties", qemu->path);
}
