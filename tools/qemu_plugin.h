/* SPDX-License-Identifier: BSD-3-Clause */
/* The vfio-user-pci plug-in of one QEMU binary: where it is, and getting it built. */
#ifndef OB_TOOLS_QEMU_PLUGIN_H
#define OB_TOOLS_QEMU_PLUGIN_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#define OB_BUILD_ID_MAX 32 /* bytes; 20 is usual */

struct ob_qemu {
    char path[PATH_MAX];                    /* of the binary, absolute, no symbolic links */
    char build_id[2 * OB_BUILD_ID_MAX + 1]; /* in hexadecimal */
};

/* Finds the binary that a shell would run for name, and what it was built as. Errors are told on
 * stderr. Returns 0 or the exit status. */
int ob_qemu_find(const char *name, struct ob_qemu *qemu);

struct ob_plugin_options {
    bool rebuild;            /* also when there is one */
    const char *qemu_source; /* source tree to take the headers from, or NULL */
};

/* Gives the plug-in for that binary, built when there is none. Errors and progress are told on
 * stderr. Returns 0 or the exit status. */
int ob_plugin_get(const struct ob_qemu *qemu, const struct ob_plugin_options *opt,
                  char path[PATH_MAX]);

/* The argument of QEMU's option -plugin for that file: commas are doubled. */
int ob_plugin_argument(const char *path, char *arg, size_t size);

/* Prints the properties of the device NAME, as `-device NAME,help` would if it knew the device. */
int ob_plugin_print_properties(const struct ob_qemu *qemu, const char *plugin, const char *name);

#endif
