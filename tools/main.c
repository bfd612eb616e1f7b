/* SPDX-License-Identifier: BSD-3-Clause */
/* The command `outboard`: finds the subcommand and runs it. */
#include "tools.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int cmd_help(int argc, char **argv);

/* One line a command. Its function is declared in tools.h. */
static const struct command commands[] = {
    { "serve", "NAME SOCKET [...]", "serve a PCI device on a socket", cmd_serve },
    { "qemu", "[options] [--] QEMU ...", "run QEMU with the device vfio-user-pci in it", cmd_qemu },
    { "info", "SOCKET [--json]", "say what device is behind a socket", cmd_info },
    { "check", "SOCKET [...]", "test whether a server or client keeps to the protocol", cmd_check },
    { "bench", "SOCKET [...]", "measure a server, each thing beside its floor", cmd_bench },
    { "help", "[COMMAND]", "say what a command does", cmd_help },
};
#define NCOMMANDS (sizeof(commands) / sizeof(commands[0]))

static const char *command_name(size_t i)
{
    return i < NCOMMANDS ? commands[i].name : NULL;
}

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; i < NCOMMANDS; i++)
        if (strcmp(name, commands[i].name) == 0)
            return &commands[i];
    return NULL;
}

static int unknown_command(const char *name)
{
    const char *meant = nearest_name(name, command_name);

    fprintf(stderr, "outboard: there is no command '%s'", name);
    if (meant)
        fprintf(stderr, "; did you mean '%s'?\n", meant);
    else
        fprintf(stderr, " (outboard help lists them)\n");
    return 2;
}

static void print_overview(FILE *out)
{
    fprintf(out, "usage: outboard COMMAND [...]\n"
                 "       outboard --version\n"
                 "PCI devices in a process of their own, over the vfio-user protocol.\n\n");
    for (size_t i = 0; i < NCOMMANDS; i++) {
        char synopsis[80];
        snprintf(synopsis, sizeof(synopsis), "%s %s", commands[i].name, commands[i].operands);
        fprintf(out, "  %-34s %s\n", synopsis, commands[i].summary);
    }
    fprintf(out, "\n`outboard COMMAND --help` says more.\n"
                 "Exit status: 0 done, 1 failed, 2 wrong command line.\n");
}

static int cmd_help(int argc, char **argv)
{
    char ask[] = "--help";

    if (argc < 2 || argv[1][0] == '-') {
        print_overview(stdout);
        return 0;
    }
    const struct command *command = find_command(argv[1]);
    if (!command)
        return unknown_command(argv[1]);
    if (argc == 2 && command->run == cmd_help) {
        print_overview(stdout);
        return 0;
    }
    /* `outboard help serve gpio` is `outboard serve gpio --help`. */
    char *forward[4] = { argv[1], argc > 2 ? argv[2] : ask, argc > 2 ? ask : NULL, NULL };
    return command->run(argc > 2 ? 3 : 2, forward);
}

static int dispatch(int argc, char **argv)
{
    if (argc < 2) {
        print_overview(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("outboard %s\n", OUTBOARD_VERSION);
        return 0;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_overview(stdout);
        return 0;
    }
    const struct command *command = find_command(argv[1]);
    return command ? command->run(argc - 1, argv + 1) : unknown_command(argv[1]);
}

/* A socket must not become number 1 and be printed to because the parent closed stdout. */
static void open_standard_fds(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

int main(int argc, char **argv)
{
    open_standard_fds();
    int status = dispatch(argc, argv);

    /* What could not be written was not done: a full disk must not look like success. */
    if (fflush(stdout) != 0 && status == 0) {
        fprintf(stderr, "outboard: cannot write the output: %s\n", strerror(errno));
        return 1;
    }
    return status;
}
