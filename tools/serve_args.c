/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The command line of `outboard serve NAME SOCKET ...`. Options and operands come in any order, so
 * the words are sorted first: our options, options of the device (with their values), operands.
 * Then the first operand is SOCKET, unless an option said where to listen.
 */
#include "serve.h"
#include "tools.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OPT_FD = 256,
    OPT_SOCKET_PATH,
    OPT_SOCKET_MODE,
    OPT_SOCKET_OWNER,
    OPT_ALLOW_UID,
    OPT_SANDBOX,
    OPT_USER,
    OPT_MAX_DMA_MAPS,
    OPT_MAX_DMA_BYTES,
    OPT_DMA_FILES,
    OPT_SPIN_US,
    OPT_CAPABILITIES,
    OPT_VERBOSE,
    OPT_OF_DEVICE
};

static const struct option own_options[] = {
    { "fd", required_argument, NULL, OPT_FD },
    { "socket-path", required_argument, NULL, OPT_SOCKET_PATH },
    { "socket-mode", required_argument, NULL, OPT_SOCKET_MODE },
    { "socket-owner", required_argument, NULL, OPT_SOCKET_OWNER },
    { "allow-uid", required_argument, NULL, OPT_ALLOW_UID },
    { "sandbox", required_argument, NULL, OPT_SANDBOX },
    { "user", required_argument, NULL, OPT_USER },
    { "max-dma-maps", required_argument, NULL, OPT_MAX_DMA_MAPS },
    { "max-dma-bytes", required_argument, NULL, OPT_MAX_DMA_BYTES },
    { "dma-files", required_argument, NULL, OPT_DMA_FILES },
    { "spin-us", required_argument, NULL, OPT_SPIN_US },
    { "print-capabilities", no_argument, NULL, OPT_CAPABILITIES },
    { "verbose", no_argument, NULL, OPT_VERBOSE },
    { "help", no_argument, NULL, 'h' },
};
#define NOWN        (sizeof(own_options) / sizeof(own_options[0]))
#define OPTIONS_MAX 40

struct parser {
    struct serve_request *req;
    struct option table[OPTIONS_MAX + 1]; /* ours, then the device's, then a zero entry */
    char **operands;                      /* without NAME */
    int noperands;
};

static const char *device_name(size_t i)
{
    const struct ob_served *device = serve_device(i);

    return device ? device->name : NULL;
}

static int choose_device(struct parser *parser, const char *name)
{
    struct serve_request *req = parser->req;
    const struct option *option;
    size_t n = NOWN;

    for (size_t i = 0; serve_device(i); i++)
        if (strcmp(serve_device(i)->name, name) == 0)
            req->device = serve_device(i);
    if (!req->device) {
        const char *meant = nearest_name(name, device_name);
        if (meant)
            return fail_usage("serve", "there is no device '%s'; did you mean '%s'?", name, meant);
        return fail_usage("serve", "there is no device '%s'", name);
    }
    snprintf(req->who, sizeof(req->who), "serve %s", name);
    req->argv[req->argc++] = (char *)req->device->name;
    for (option = req->device->long_options; option && option->name && n < OPTIONS_MAX; option++) {
        parser->table[n] = *option;
        parser->table[n].flag = NULL;
        parser->table[n++].val = OPT_OF_DEVICE;
    }
    return 0;
}

static int take_operand(struct parser *parser, char *word)
{
    if (!parser->req->device)
        return choose_device(parser, word);
    parser->operands[parser->noperands++] = word;
    return 0;
}

static int take_user(struct serve_request *req, const char *text)
{
    int status = serve_parse_owner(req->who, text, &req->user);

    if (!status && req->user.uid == SERVE_NO_ID)
        return fail_usage(req->who, "--user takes USER or USER:GROUP, not '%s'", text);
    if (!status && req->user.gid == SERVE_NO_ID)
        return fail_usage(req->who, "user %s is in no list, so say which group: --user %s:GROUP",
                          text, text);
    return status;
}

static int take_socket_owner(struct serve_request *req, const char *text)
{
    struct serve_owner *owner = &req->place.owner;
    int status = serve_parse_owner(req->who, text, owner);

    if (!status && !strchr(text, ':'))
        owner->gid = SERVE_NO_ID; /* the user's own group was not named */
    if (!status && owner->uid == SERVE_NO_ID && owner->gid == SERVE_NO_ID)
        return fail_usage(req->who, "--socket-owner takes USER, USER:GROUP or :GROUP, not '%s'",
                          text);
    return status;
}

/* What a client may do with its memory. */
static int take_limit(struct serve_request *req, int opt)
{
    struct serve_limits *limits = &req->limits;
    long long number;

    switch (opt) {
    case OPT_MAX_DMA_MAPS:
        if (!parse_number(optarg, 10, 1, OB_DMA_MAPS_MAX, &number))
            return fail_usage(req->who, "--max-dma-maps takes a number from 1 to %u, not '%s'",
                              OB_DMA_MAPS_MAX, optarg);
        limits->maps = (uint32_t)number;
        return 0;
    case OPT_MAX_DMA_BYTES:
        if (ob_parse_size(optarg, &limits->bytes) < 0)
            return fail_usage(req->who, "--max-dma-bytes takes a size such as 16G, not '%s'",
                              optarg);
        return 0;
    default:
        limits->files = strcmp(optarg, "any") == 0 ? OB_DMA_FILES_ANY : OB_DMA_FILES_MEMORY;
        if (limits->files == OB_DMA_FILES_MEMORY && strcmp(optarg, "memory") != 0)
            return fail_usage(req->who, "--dma-files takes memory or any, not '%s'", optarg);
        return 0;
    }
}

static int take_option(struct serve_request *req, int opt)
{
    long long number;

    switch (opt) {
    case OPT_FD:
        if (!parse_number(optarg, 10, 0, INT_MAX, &number))
            return fail_usage(req->who, "--fd takes the number of an open socket, not '%s'",
                              optarg);
        req->place.fd = (int)number;
        return 0;
    case OPT_SOCKET_PATH:
        req->place.path = optarg;
        return 0;
    case OPT_SOCKET_MODE:
        if (!parse_number(optarg, 8, 1, 0777, &number))
            return fail_usage(req->who, "--socket-mode takes permissions such as 660, not '%s'",
                              optarg);
        req->place.mode = (unsigned)number;
        return 0;
    case OPT_SOCKET_OWNER:
        return take_socket_owner(req, optarg);
    case OPT_ALLOW_UID:
        if (req->place.nallowed == SERVE_ALLOWED_MAX)
            return fail_usage(req->who, "--allow-uid can be given %u times", SERVE_ALLOWED_MAX);
        return serve_parse_user(req->who, optarg, &req->place.allowed[req->place.nallowed++], NULL);
    case OPT_SANDBOX:
        req->sandbox = strcmp(optarg, "off") == 0 ? SANDBOX_OFF : SANDBOX_ON;
        if (req->sandbox == SANDBOX_ON && strcmp(optarg, "on") != 0)
            return fail_usage(req->who, "--sandbox takes on or off, not '%s'", optarg);
        return 0;
    case OPT_USER:
        return take_user(req, optarg);
    case OPT_MAX_DMA_MAPS:
    case OPT_MAX_DMA_BYTES:
    case OPT_DMA_FILES:
        return take_limit(req, opt);
    case OPT_SPIN_US:
        if (!parse_number(optarg, 10, 0, OB_SPIN_US_MAX, &number))
            return fail_usage(req->who, "--spin-us takes 0 to %u microseconds, not '%s'",
                              OB_SPIN_US_MAX, optarg);
        req->spin_us = (unsigned)number;
        return 0;
    case OPT_CAPABILITIES:
        req->capabilities = true;
        return 0;
    case OPT_VERBOSE:
        req->verbose = true;
        return 0;
    default:
        req->help = true;
        return 0;
    }
}

/* getopt_long() returned ':' or '?'. */
static int bad_option(const struct serve_request *req, int opt, const char *word)
{
    int name_len = (int)strcspn(word, "=");

    if (opt == ':')
        return fail_usage(req->who, "option '%.*s' needs a value", name_len, word);
    if (optopt >= OPT_FD)
        return fail_usage(req->who, "option '%.*s' takes no value", name_len, word);
    if (optopt)
        return fail_usage(req->who, "there is no option '-%c'", optopt);
    return fail_usage(req->who, "there is no option '%.*s'", name_len, word);
}

/* req->argv gets the options of the device. */
static int sort_words(struct parser *parser, int argc, char **argv)
{
    struct serve_request *req = parser->req;
    int status = 0, opt;

    optind = 0;
    opterr = 0;
    for (int word = 1; !status; word = optind) {
        /* "-": operands are returned where they stand, as option 1. */
        opt = getopt_long(argc, argv, "-:h", parser->table, NULL);
        if (opt == -1)
            break;
        if (opt == ':' || opt == '?')
            return bad_option(req, opt, argv[optind - 1]);
        if (opt == 1)
            status = take_operand(parser, optarg);
        else if (opt != OPT_OF_DEVICE)
            status = take_option(req, opt);
        else
            while (word < optind)
                req->argv[req->argc++] = argv[word++];
    }
    while (!status && optind < argc) /* what follows "--" */
        status = take_operand(parser, argv[optind++]);
    return status;
}

static int settle_place(struct parser *parser)
{
    const struct serve_request *req = parser->req;
    struct serve_place *place = &parser->req->place;

    if (place->path && place->fd >= 0)
        return fail_usage(req->who, "--fd and --socket-path exclude each other");
    if (place->fd >= 0 && place->mode)
        return fail_usage(req->who, "--socket-mode is for a path; with --fd the socket exists");
    if (place->fd >= 0 && (place->owner.uid != SERVE_NO_ID || place->owner.gid != SERVE_NO_ID))
        return fail_usage(req->who, "--socket-owner is for a path; with --fd the socket exists");
    if (!place->path && place->fd < 0) {
        if (!parser->noperands)
            return fail_usage(req->who, "on which SOCKET? Give a path, or --fd N");
        place->path = *parser->operands++;
        parser->noperands--;
    }
    if (place->path && !*place->path)
        return fail_usage(req->who, "SOCKET is empty");
    return 0;
}

/* The device's command line: its options first, then its operands, which may look like options. */
static int append_operands(const struct parser *parser)
{
    static char end_of_options[] = "--";
    struct serve_request *req = parser->req;

    if (parser->noperands && !*req->device->operands)
        return fail_usage(req->who, "it takes nothing but SOCKET and options, not '%s'",
                          parser->operands[0]);
    if (parser->noperands)
        req->argv[req->argc++] = end_of_options;
    for (int i = 0; i < parser->noperands; i++)
        req->argv[req->argc++] = parser->operands[i];
    return 0;
}

int serve_parse(int argc, char **argv, struct serve_request *out)
{
    struct serve_request req = { .who = "serve",
                                 .place = { .fd = -1, .owner = { SERVE_NO_ID, SERVE_NO_ID } },
                                 .spin_us = OB_SPIN_US_DEFAULT,
                                 .limits = { OB_DMA_MAPS_MAX, OB_DMA_BYTES_DEFAULT,
                                             OB_DMA_FILES_MEMORY },
                                 .user = { SERVE_NO_ID, SERVE_NO_ID } };
    struct parser parser = { .req = &req };
    char **operands = calloc((size_t)argc, sizeof(*operands));
    int status;

    memcpy(parser.table, own_options, sizeof(own_options));
    parser.operands = operands;
    /* Every word once, "--", and NULL. */
    req.argv = calloc((size_t)argc + 2, sizeof(*req.argv));
    status =
        operands && req.argv ? sort_words(&parser, argc, argv) : fail("serve", "out of memory");
    if (!status && !req.help && !req.device)
        status = fail_usage("serve", "which device?");
    bool runs = !req.help && !req.capabilities;
    if (!status && runs)
        status = settle_place(&parser);
    if (!status && runs)
        status = append_operands(&parser);
    free(operands);
    if (status) {
        free(req.argv);
        return status;
    }
    *out = req;
    return 0;
}
