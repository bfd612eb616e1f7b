/* SPDX-License-Identifier: BSD-3-Clause */
/* `outboard qemu`: runs an unmodified QEMU with the vfio-user-pci device loaded into it. */
#include "qemu_plugin.h"
#include "tools.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_QEMU "qemu-system-x86_64"

static void print_help(void)
{
    printf("usage: outboard qemu [options] [--] QEMU [QEMU's arguments]\n"
           "Runs QEMU (a name or a path, like " DEFAULT_QEMU ") with the device vfio-user-pci\n"
           "in it: `-plugin FILE` is put before its arguments, and nothing else is changed.\n"
           "\n"
           "The device is a plug-in that fits one build of QEMU. It is built when that build is\n"
           "met for the first time, with the headers of its source package (about 30 seconds, and\n"
           "25 MB from the network), and kept in $OUTBOARD_CACHE or ~/.cache/outboard.\n"
           "\n"
           "  --print-plugin      print the plug-in's path, do not run QEMU\n"
           "  --build             the same, but build it anew\n"
           "  --qemu-source DIR   take the headers from this source tree; for a QEMU that does\n"
           "                      not come from a Debian package\n"
           "  --help              this text\n"
           "\n"
           "example:\n"
           "  outboard qemu qemu-system-x86_64 -m 1G \\\n"
           "      -object memory-backend-memfd,id=m,size=1G,share=on -machine q35,memory-backend=m "
           "\\\n"
           "      -device vfio-user-pci,socket=/tmp/nvme.sock\n");
}

struct request {
    bool print_only;
    struct ob_plugin_options plugin;
    char *default_argv[2];
    char **qemu_argv;
};

/* Returns 0, or a negative number when there is nothing left to do but exit with *status. */
static int parse(int argc, char **argv, struct request *request, int *status)
{
    static const struct option options[] = {
        { "print-plugin", no_argument, NULL, 'p' },
        { "build", no_argument, NULL, 'b' },
        { "qemu-source", required_argument, NULL, 's' },
        { "help", no_argument, NULL, 'h' },
        { 0 },
    };
    int c;

    optind = 0;
    opterr = 0;
    /* '+': what follows the first operand is QEMU's. ':': we tell the errors. */
    while ((c = getopt_long(argc, argv, "+:h", options, NULL)) != -1) {
        switch (c) {
        case 'p':
            request->print_only = true;
            break;
        case 'b':
            request->print_only = request->plugin.rebuild = true;
            break;
        case 's':
            request->plugin.qemu_source = optarg;
            break;
        case 'h':
            print_help();
            *status = 0;
            return -1;
        case ':':
            *status = fail_usage("qemu", "%s needs an argument", argv[optind - 1]);
            return -1;
        default:
            *status = fail_usage("qemu",
                                 "there is no option %s here; QEMU's own options come "
                                 "after its name",
                                 argv[optind - 1]);
            return -1;
        }
    }
    request->qemu_argv = argv + optind;
    if (optind == argc && request->print_only) {
        request->qemu_argv = request->default_argv;
    } else if (optind == argc) {
        *status = fail_usage("qemu", "which QEMU? For example: outboard qemu " DEFAULT_QEMU);
        return -1;
    }
    return 0;
}

/* The NAME of a `-device NAME,help`, if it is one of the device's two; else NULL. */
static const char *asks_for_properties(char **argv)
{
    static const struct {
        const char *help, *short_help, *name;
    } forms[] = {
        { "vfio-user-pci,help", "vfio-user-pci,?", "vfio-user-pci" },
        { "outboard-pci,help", "outboard-pci,?", "outboard-pci" },
    };

    for (int i = 1; argv[i] && argv[i + 1]; i++) {
        if (strcmp(argv[i], "-device") != 0 && strcmp(argv[i], "--device") != 0)
            continue;
        for (size_t k = 0; k < sizeof(forms) / sizeof(*forms); k++)
            if (strcmp(argv[i + 1], forms[k].help) == 0 ||
                strcmp(argv[i + 1], forms[k].short_help) == 0)
                return forms[k].name;
    }
    return NULL;
}

/* Returns only when it failed. */
static int run(const struct ob_qemu *qemu, const char *plugin, char **argv)
{
    char arg[2 * PATH_MAX];
    size_t count = 0;

    if (ob_plugin_argument(plugin, arg, sizeof(arg)) < 0)
        return fail("qemu", "the path of the plug-in is too long");
    while (argv[count])
        count++;
    char **with_plugin = calloc(count + 3, sizeof(*with_plugin));
    if (!with_plugin)
        return fail("qemu", "%s", strerror(ENOMEM));
    with_plugin[0] = argv[0];
    with_plugin[1] = (char *)"-plugin";
    with_plugin[2] = arg;
    memcpy(with_plugin + 3, argv + 1, (count - 1) * sizeof(*argv));
    execv(qemu->path, with_plugin);
    int why = errno;
    free(with_plugin);
    return fail("qemu", "%s: %s", qemu->path, strerror(why));
}

int cmd_qemu(int argc, char **argv)
{
    static char default_name[] = DEFAULT_QEMU;
    struct request request = { .default_argv = { default_name, NULL } };
    struct ob_qemu qemu;
    char plugin[PATH_MAX];
    const char *name;
    int status;

    if (parse(argc, argv, &request, &status) < 0)
        return status;
    if ((status = ob_qemu_find(request.qemu_argv[0], &qemu)) != 0 ||
        (status = ob_plugin_get(&qemu, &request.plugin, plugin)) != 0)
        return status;
    if (request.print_only) {
        puts(plugin);
        return 0;
    }
    if ((name = asks_for_properties(request.qemu_argv)) != NULL)
        return ob_plugin_print_properties(&qemu, plugin, name);
    return run(&qemu, plugin, request.qemu_argv);
}
