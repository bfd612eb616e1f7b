/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * `outboard serve`: builds a device, offers it on a socket, and runs it until a signal.
 *
 * It keeps the conventions of QEMU's back-end programs: it stays in the foreground, takes the
 * socket as a path or as an open file descriptor, and ends cleanly on SIGTERM. The one line on
 * stdout comes when clients can connect; everything else is said on stderr.
 */
#include "serve.h"
#include "tools.h"

#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

static const struct ob_served *const devices[] = {
    &ob_served_nvme,
    &ob_served_gpio,
    &ob_served_edu,
    &ob_served_null,
};

const struct ob_served *serve_device(size_t i)
{
    return i < sizeof(devices) / sizeof(devices[0]) ? devices[i] : NULL;
}

static void print_device_list(void)
{
    printf("usage: outboard serve NAME SOCKET [...]\n"
           "Serves a PCI device over vfio-user. NAME is one of:\n\n");
    for (size_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++)
        printf("  %-6s %s\n", devices[i]->name, devices[i]->summary);
    printf("\n`outboard serve NAME --help` says more.\n");
}

static void print_device_help(const struct ob_served *device)
{
    printf("usage: outboard serve %s SOCKET%s%s [options]\n"
           "%s.\n",
           device->name, *device->operands ? " " : "", device->operands, device->summary);
    if (*device->options)
        printf("\nThis device:\n%s", device->options);
    printf(
        "\nWhere it listens:\n"
        "  SOCKET                  make a UNIX socket at this path; it is removed at the end.\n"
        "                          One that no server listens on any more is replaced\n"
        "  --socket-path PATH      the same, in place of SOCKET\n"
        "  --fd N                  use file descriptor N, a listening socket or one that is\n"
        "                          connected to the client, in place of SOCKET\n"
        "  --socket-mode MODE      permissions of the socket, in octal (default 600: whoever\n"
        "                          can connect controls the device)\n"
        "  --socket-owner USER[:GROUP]\n"
        "                          whose the socket is, by name or number; or :GROUP\n"
        "  --allow-uid USER        take clients of that user only (by name or number). More\n"
        "                          such options allow more users\n"
        "\nWhat it may do, once it is set up:\n"
        "  --sandbox on|off        hold nothing and open nothing that it does not need. Without\n"
        "                          this option: on, as far as the kernel can do it\n"
        "  --user USER[:GROUP]     become that user, by name or number, and no other group's\n"
        "                          member; for servers that root starts\n"
        "\nWhat its clients may do:\n"
        "  --max-dma-maps N        mappings of their memory at a time (1 to 65535, the default)\n"
        "  --max-dma-bytes SIZE    bytes of it that come with a file (default 64T)\n"
        "  --dma-files memory|any  which files it may be in: shared memory only (default), or\n"
        "                          also those of other file systems, for which we may wait\n"
        "\nOther:\n"
        "  --spin-us N             poll for at most N microseconds (0 to 10000, default 50)\n"
        "                          before sleeping, while requests come that fast; 0: never\n"
        "  --print-capabilities    describe the device in JSON, for programs that start servers\n"
        "  --verbose               say more on stderr\n"
        "  --help                  this text\n"
        "\nIt stays in the foreground, takes one client after the other, and prints a line to\n"
        "stdout when it is ready. SIGTERM or SIGINT ends it cleanly: data is flushed, the socket\n"
        "removed, and the exit status is 0. With a connected --fd it ends when the client leaves.\n"
        "SIGUSR1 asks the client to unplug the device (QEMU has the guest do it), SIGUSR2 reports\n"
        "an unrecoverable error of it; the server goes on after both.\n"
        "Exit status: 0 done, 1 failed, 2 wrong command line.\n");
}

/* As docs/backend.schema.json has it. */
static int print_capabilities(const struct serve_request *req)
{
    const struct ob_served *device = req->device;
    json_t *features = json_array(), *operands = json_array(), *all;

    for (const struct option *o = device->long_options; o && o->name; o++)
        json_array_append_new(features, json_string(o->name));
    if (*device->operands)
        json_array_append_new(operands, json_string(device->operands));
    all = json_pack("{s:s, s:o, s:o}", "type", device->name, "features", features, "operands",
                    operands);
    if (!all)
        return fail(req->who, "out of memory");
    json_dumpf(all, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(all);
    return 0;
}

/* ob_log_fn has no room for who says it; a process serves one device. */
static const struct serve_request *running;

/* Nobody may read what we say: then a line is lost, rather than the device stopped by a full pipe.
 */
/* syscalls: poll, ppoll, write */
void serve_log(void *opaque, enum ob_log_level level, const char *line)
{
    struct pollfd pfd = { .fd = STDERR_FILENO, .events = POLLOUT };

    (void)opaque;
    if (level == OB_LOG_DEBUG && !running->verbose)
        return;
    if (poll(&pfd, 1, 0) == 1 && pfd.revents == POLLOUT)
        fprintf(stderr, "outboard %s: %s\n", running->who, line);
}

struct signals {
    struct ob_server *server;
    int fd;
};

/* A client that has armed neither learns nothing; QEMU arms both. */
static void tell_client(struct ob_server *server, uint32_t index)
{
    bool told = ob_server_irq_trigger(server, index, 0) == 0;

    if (index == OB_PCI_IRQ_REQ)
        serve_log(NULL, OB_LOG_INFO,
                  told ? "SIGUSR1: asked the client to unplug the device"
                       : "SIGUSR1: there is no client that takes requests to unplug the device");
    else
        serve_log(NULL, OB_LOG_INFO,
                  told ? "SIGUSR2: reported an unrecoverable error to the client"
                       : "SIGUSR2: there is no client that takes reports of errors");
}

/* syscalls: read */
static void signal_came(void *opaque, uint32_t events)
{
    struct signals *signals = opaque;
    struct signalfd_siginfo info;

    (void)events;
    if (read(signals->fd, &info, sizeof(info)) != sizeof(info))
        return;
    if (info.ssi_signo == SIGUSR1 || info.ssi_signo == SIGUSR2) {
        tell_client(signals->server, info.ssi_signo == SIGUSR1 ? OB_PCI_IRQ_REQ : OB_PCI_IRQ_ERR);
        return;
    }
    serve_log(NULL, OB_LOG_INFO,
              info.ssi_signo == SIGTERM ? "SIGTERM: stopping" : "SIGINT: stopping");
    ob_server_stop(signals->server);
}

/*
 * Signals come through the returned fd, from now on and in every thread: nothing is
 * interrupted half-way. A shell starts background jobs with SIGINT ignored; they shall stop too.
 */
static int catch_signals(void)
{
    static const int caught[] = { SIGTERM, SIGINT, SIGUSR1, SIGUSR2 };
    sigset_t set;

    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file at its size limit is an error of one request */
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(caught) / sizeof(caught[0]); i++) {
        signal(caught[i], SIG_DFL);
        sigaddset(&set, caught[i]);
    }
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

/* syscalls: fstat, newfstatat, ioctl(1=TCGETS), write */
static void say_ready(const struct serve_request *req, const char *banner)
{
    printf("serving %s (%s) on ", req->device->name, banner);
    if (req->place.path)
        printf("%s\n", req->place.path);
    else
        printf("file descriptor %d\n", req->place.fd);
    fflush(stdout);
}

/* Serves until a signal, or until an adopted connection ended. */
static int run_server(const struct serve_request *req, void *device, struct ob_server *server,
                      int signal_fd, const char *banner)
{
    struct signals signals = { server, signal_fd };
    int rc = ob_server_watch(server, signal_fd, EPOLLIN, signal_came, &signals);

    if (rc < 0)
        return fail(req->who, "cannot watch for signals: %s", strerror(-rc));
    ob_server_set_spin(server, req->spin_us);
    ob_server_set_dma_limits(server, req->limits.maps, req->limits.bytes); /* checked before */
    ob_server_set_dma_files(server, req->limits.files);
    int status = serve_offer(req->who, server, &req->place);
    if (!status)
        status = serve_start(req, device);
    if (!status) {
        say_ready(req, banner);
        rc = ob_server_run(server);
        if (rc < 0)
            status = fail(req->who, "the server failed: %s", strerror(-rc));
    }
    ob_server_watch(server, signal_fd, 0, NULL, NULL);
    return status;
}

static int serve_request(const struct serve_request *req)
{
    char banner[512] = "", sentence[512] = "it does not say why";
    struct ob_server *server;
    void *device;

    running = req;
    if (serve_check_place(req->who, &req->place) || serve_check_user(req))
        return 1;
    int signal_fd = catch_signals();
    if (signal_fd < 0)
        return fail(req->who, "cannot catch signals: %s", strerror(-signal_fd));
    optind = 0; /* the device starts getopt_long() afresh */
    int status = req->device->create(req->argc, req->argv, serve_log, &device, &server, banner,
                                     sizeof(banner), sentence, sizeof(sentence));
    if (status) {
        close(signal_fd);
        return status == 2 ? fail_usage(req->who, "%s", sentence) : fail(req->who, "%s", sentence);
    }
    status = run_server(req, device, server, signal_fd, banner);
    close(signal_fd);
    int rc = req->device->destroy(device);
    if (rc < 0)
        status = fail(req->who, "data could not be saved: %s", strerror(-rc));
    return status;
}

int cmd_serve(int argc, char **argv)
{
    struct serve_request req;
    int status;

    if (argc < 2) {
        print_device_list();
        return 0;
    }
    status = serve_parse(argc, argv, &req);
    if (status)
        return status;
    if (req.help && req.device)
        print_device_help(req.device);
    else if (req.help)
        print_device_list();
    else if (req.capabilities)
        status = print_capabilities(&req);
    else
        status = serve_request(&req);
    free(req.argv);
    return status;
}
