/* SPDX-License-Identifier: BSD-3-Clause */
/* `outboard check`: puts a server, or a client, through the conformance suite. */
#include "check.h"
#include "tools.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_TIMEOUT_MS 5000

static void print_help(void)
{
    printf(
        "usage: outboard check SOCKET [options]\n"
        "       outboard check --client SOCKET [--run COMMAND] [options]\n"
        "       outboard check --list [--client] [--only PATTERN]\n"
        "Puts the vfio-user server on SOCKET through cases, each tied to rules of the protocol's\n"
        "description (docs/protocol.md), each on a connection of its own. A line for each case:\n"
        "  pass           the rule is kept\n"
        "  FAIL           it is not; what was expected and the bytes exchanged follow\n"
        "  not offered    the server, or its device, has not got what the case is about\n"
        "  deviation      it is not, in a way that peers are known for and others bear\n"
        "\n"
        "The device must be free to be played with: it is reset, it gets memory of this program's\n"
        "to use, its interrupts are triggered, its regions are read, it goes through the states "
        "of\n"
        "migration and comes back to RUNNING, and in config space the interrupt line, the command\n"
        "register and the BARs are written (the BARs get their values back). Other registers are\n"
        "written only where the device is known: those of `outboard serve edu`, which is made to\n"
        "do DMA. A server that ends should be started anew by something (a loop\n"
        "in the shell will do); it is given up when three cases in a row found nobody.\n"
        "\n"
        "With --client the suite is the server, on SOCKET, and a client is tested, which connects\n"
        "anew for each case: COMMAND starts it, with the path in place of {} and in\n"
        "$OUTBOARD_SOCKET; without --run somebody else does, again and again. It should use all\n"
        "of the device and then end, with status 0 where nothing was wrong.\n"
        "\n"
        "  --run COMMAND    of the shell, starts the client of a case\n"
        "  --only PATTERN   the cases that match it, like 'dma/*'\n"
        "  --list           say which cases there are, with their rules, and stop\n"
        "  --timeout MS     for one case (default %d)\n"
        "  --seed N         repeat the random cases of an earlier run\n"
        "  --json           one JSON object: seed, summary (how many of each verdict), and cases:\n"
        "                   id, rules, says, verdict, why, bytes, seconds\n"
        "  --junit FILE     write the results to FILE, too, in the XML of JUnit\n"
        "  -h, --help       this text\n"
        "Exit status: 0 no case failed, 1 one did (or none could be run), 2 wrong command line.\n",
        DEFAULT_TIMEOUT_MS);
}

struct check_arguments {
    struct check_options opt;
    const char *junit;
    bool json, list, client;
    bool help;
};

static uint64_t fresh_seed(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)(now.tv_sec ^ now.tv_nsec) % 1000000000;
}

static int take_option(int c, struct check_arguments *args, char **argv)
{
    long long number;

    switch (c) {
    case 'o':
        args->opt.pattern = optarg;
        return 0;
    case 'l':
        args->list = true;
        return 0;
    case 't':
        if (!parse_number(optarg, 0, 1, INT_MAX, &number))
            return fail_usage("check", "--timeout takes milliseconds, not '%s'", optarg);
        args->opt.timeout_ms = (int)number;
        return 0;
    case 's':
        if (!parse_number(optarg, 0, 0, LLONG_MAX, &number))
            return fail_usage("check", "--seed takes a number, not '%s'", optarg);
        args->opt.seed = (uint64_t)number;
        return 0;
    case 'c':
        args->client = true;
        return 0;
    case 'r':
        args->opt.run = optarg;
        return 0;
    case 'j':
        args->json = true;
        return 0;
    case 'x':
        args->junit = optarg;
        return 0;
    case 'h':
        args->help = true;
        return 0;
    default:
        return fail_option("check", c, argv);
    }
}

static int parse(int argc, char **argv, struct check_arguments *args)
{
    static const struct option options[] = {
        { "only", required_argument, NULL, 'o' },    { "list", no_argument, NULL, 'l' },
        { "timeout", required_argument, NULL, 't' }, { "seed", required_argument, NULL, 's' },
        { "json", no_argument, NULL, 'j' },          { "junit", required_argument, NULL, 'x' },
        { "client", no_argument, NULL, 'c' },        { "run", required_argument, NULL, 'r' },
        { "help", no_argument, NULL, 'h' },          { NULL, 0, NULL, 0 },
    };
    int c, status;

    opterr = 0;
    while ((c = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        status = take_option(c, args, argv);
        if (status || args->help)
            return status;
    }
    if (args->opt.run && !args->client)
        return fail_usage("check", "--run is for --client");
    if (args->list)
        return optind == argc ? 0 : fail_usage("check", "--list only, not also '%s'", argv[optind]);
    return take_socket("check", argc, argv, &args->opt.path);
}

/* ---- Running ------------------------------------------------------------------------------- */

struct run {
    struct check_report report;
    const struct check_arguments *args;
    int rc;
};

static void print_case(void *opaque, const struct check_case *c)
{
    (void)opaque;
    printf("%-44s %s (%s)\n", c->id, c->says, c->rules);
}

static void case_done(void *opaque, const struct check_result *result)
{
    struct run *run = opaque;

    if (run->rc == 0)
        run->rc = check_report_add(&run->report, result);
    if (!run->args->json) {
        check_print_result(result, stdout);
        fflush(stdout);
    }
}

/* A person, or a script, has to start the client now. */
static void print_instructions(void *opaque)
{
    const struct run *run = opaque;
    const char *path = run->args->opt.path;

    if (run->args->opt.run)
        return;
    fprintf(
        stderr,
        "outboard check: waiting for the client on %s; it has to connect anew for each case.\n"
        "For the device in QEMU, for example, in another terminal, until this ends:\n"
        "  while test -S %s; do outboard qemu -- timeout 10 qemu-system-x86_64 -accel tcg -S \\\n"
        "    -nodefaults -display none -device vfio-user-pci,socket=%s; done\n"
        "(or give that with --run and {} for the path: then each case starts its own)\n",
        path, path, path);
}

static int write_junit(const struct check_report *report, FILE *out, const char *path)
{
    int failed;

    check_print_junit(report, out);
    failed = ferror(out);
    if (fclose(out) != 0 || failed)
        return fail("check", "%s: cannot write it", path);
    return 0;
}

static int run_all(const struct check_arguments *args, FILE *junit)
{
    struct run run = { .report = { .path = args->opt.path, .seed = args->opt.seed }, .args = args };
    char why[256];
    int status = 0;
    int rc = args->client ? check_client_run(&args->opt, print_instructions, case_done, &run, why,
                                             sizeof(why))
                          : check_run(&args->opt, case_done, &run, why, sizeof(why));

    if (rc > 0 && run.rc == 0 && args->json)
        run.rc = check_print_json(&run.report, stdout);
    else if (rc > 0 && run.rc == 0)
        check_print_summary(&run.report, stdout);
    if (junit)
        status = write_junit(&run.report, junit, args->junit);
    if (rc == -ENOTCONN)
        status = fail("check", "%s: %s", args->opt.path, why);
    else if (rc < 0 || run.rc < 0)
        status = fail("check", "out of memory");
    else if (rc == 0)
        status = fail_usage("check", "no case matches '%s'", args->opt.pattern);
    else if (run.report.verdicts[CHECK_FAIL])
        status = 1;
    check_report_fini(&run.report);
    return status;
}

int cmd_check(int argc, char **argv)
{
    struct check_arguments args = { .opt = { .timeout_ms = DEFAULT_TIMEOUT_MS,
                                             .seed = fresh_seed() } };
    int status = parse(argc, argv, &args);
    FILE *junit = NULL;

    if (status)
        return status;
    if (args.help) {
        print_help();
        return 0;
    }
    if (args.list) {
        int count = args.client ? check_client_list(args.opt.pattern, print_case, NULL)
                                : check_list(args.opt.pattern, print_case, NULL);

        return count < 0    ? fail("check", "out of memory")
               : count == 0 ? fail_usage("check", "no case matches '%s'", args.opt.pattern)
                            : 0;
    }
    if (args.junit) {
        junit = fopen(args.junit, "we");
        if (!junit)
            return fail("check", "%s: %s", args.junit, strerror(errno));
    }
    return run_all(&args, junit);
}
