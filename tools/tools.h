/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the subcommands of `outboard` share.
 *
 * Exit status of every command: 0 done, 1 it failed, 2 the command line is wrong. Results go to
 * stdout, everything else to stderr.
 */
#ifndef OB_TOOLS_TOOLS_H
#define OB_TOOLS_TOOLS_H

#include <stdbool.h>
#include <stddef.h>

/*
 * A subcommand. argv[0] is its name, so that getopt_long() works on it as it is. Returns the exit
 * status. Prints its own help to stdout for --help. main() flushes stdout and checks for errors.
 */
struct command {
    const char *name;
    const char *operands; /* "SOCKET [--json]" */
    const char *summary;  /* half a line for `outboard help` */
    int (*run)(int argc, char **argv);
};

int cmd_bench(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_qemu(int argc, char **argv);

/*
 * Print "outboard COMMAND: sentence" to stderr, the second with "(see outboard COMMAND --help)"
 * after it, and return the exit status for it: 1 and 2.
 */
int fail(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int fail_usage(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The same for what getopt_long() returned: ':', or '?'. */
int fail_option(const char *command, int c, char **argv);
/* The one operand that is left is *path; or the exit status for another number of them. */
int take_socket(const char *command, int argc, char **argv, const char **path);

/* A number from min to max, in that base (0: decimal, or hexadecimal after 0x). */
bool parse_number(const char *text, int base, long long min, long long max, long long *out);

/*
 * The name that a mistyped word was probably meant to be, or NULL when none comes close.
 * name(i) gives the candidates, and NULL after the last.
 */
const char *nearest_name(const char *word, const char *(*name)(size_t i));

#endif
