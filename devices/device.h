/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What `outboard serve NAME` needs of a device. A device uses the public headers only.
 */
#ifndef OB_DEVICES_DEVICE_H
#define OB_DEVICES_DEVICE_H

#include <getopt.h>

#include "outboard/pci.h"
#include "outboard/server.h"

/* Same as ob_server_ops.log. */
typedef void (*ob_log_fn)(void *opaque, enum ob_log_level level, const char *line);

struct ob_served {
    const char *name;     /* "nvme" */
    const char *operands; /* "IMAGE", or "" */
    const char *summary;  /* one line for --help */
    const char *options;  /* the device's own options, as --help prints them; or "" */
    /* The same for getopt_long(), ended by a zero entry; NULL: none. `serve` needs it to tell an
     * option's value from SOCKET. There are no short options. */
    const struct option *long_options;
    /*
     * Builds the device. argv[0] is the device's name; what follows is the command line without
     * SOCKET and without serve's own options. getopt_long() can start on it (optind is 0, opterr
     * too): no option is unknown or lacks its value, and without `operands` there are none.
     * On success *opaque and *server are set, and banner gets what the start line says about the
     * device. On failure a sentence is in errbuf, and the return is 2 for a wrong command line,
     * 1 for anything else.
     */
    int (*create)(int argc, char **argv, ob_log_fn log, void **opaque, struct ob_server **server,
                  char *banner, size_t banner_size, char *errbuf, size_t errbuf_size);
    /* Starts the device's threads. Called once, before the server runs, and after the process has
     * given up its privileges: threads that were there before would keep theirs. NULL: it has no
     * threads. 0 or a negative errno. */
    int (*start)(void *opaque);
    /* The fd of a file that the device will open again (through /proc/self/fd), or -1. It opens
     * nothing else after create(). NULL: nothing at all. */
    int (*reopens)(const void *opaque);
    /* Stops, writes back what is volatile, frees the device, started or not, and its server. 0, or
     * a negative errno when data could not be saved. */
    int (*destroy)(void *opaque);
};

/* The value of a numeric option (decimal, or hexadecimal after 0x). 0, or 2 with a sentence in
 * errbuf. */
int ob_option_number(const char *name, const char *text, uint64_t min, uint64_t max, uint64_t *out,
                     char *errbuf, size_t errbuf_size);

/* A number with one of the suffixes K, M, G, T (powers of 1024), or none. 0 or -EINVAL. */
int ob_parse_size(const char *text, uint64_t *out);

/* Puts why a device cannot be built (a negative errno) into errbuf, and returns 1. */
int ob_create_failed(int rc, char *errbuf, size_t errbuf_size);

extern const struct ob_served ob_served_nvme, ob_served_gpio, ob_served_edu, ob_served_null;

#endif
