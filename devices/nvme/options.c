/* SPDX-License-Identifier: BSD-3-Clause */
/* The command line of `outboard serve nvme`. docs/nvme.md explains each option. */
#include "nvme.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SERIAL_MAX     20u
#define MODEL_MAX      40u
#define QUEUES_DEFAULT 16u

const struct option nvme_long_options[] = {
    { "read-only", no_argument, NULL, 'r' },
    { "lba", required_argument, NULL, 'l' },
    { "queues", required_argument, NULL, 'q' },
    { "doorbells", required_argument, NULL, 'd' },
    { "cache", required_argument, NULL, 'c' },
    { "aio", required_argument, NULL, 'a' },
    { "interrupts", required_argument, NULL, 'i' },
    { "serial", required_argument, NULL, 's' },
    { "model", required_argument, NULL, 'm' },
    { "pci-id", required_argument, NULL, 'p' },
    { "incoming", no_argument, NULL, 'n' },
    { "state", required_argument, NULL, 't' },
    { 0 },
};

const char nvme_options_help[] =
    "  --read-only             refuse all writes; several such servers may share an image\n"
    "  --incoming              for the server that a disk moves to: the image is not locked yet,\n"
    "                          but when the disk runs\n"
    "  --state FILE            keep there what is needed to go on when the server was killed: the\n"
    "                          next one with the same FILE and options continues it\n"
    "  --lba 512|4096          bytes of a logical block (default 512)\n"
    "  --queues N              I/O queue pairs, 1 to 64 (default 16)\n"
    "  --doorbells trapped     the guest rings by message when the disk sleeps (default)\n"
    "  --doorbells mapped      the guest rings by a store to memory, and we look all the time\n"
    "  --cache writeback       a file is read and written through the page cache (default)\n"
    "  --cache none            ... is not: for images larger than memory, and shared disks\n"
    "  --aio HOW               auto (default), uring or threads\n"
    "  --interrupts KIND       the best kind to offer: msix (default), msi or intx\n"
    "  --serial TEXT           serial number, at most 20 characters (default: from the image)\n"
    "  --model TEXT            model, at most 40 characters (default: Outboard NVMe)\n"
    "  --pci-id VENDOR:DEVICE  in hexadecimal (default 4f42:0001)\n";

__attribute__((format(printf, 3, 4))) static int fail(char *errbuf, size_t size, const char *fmt,
                                                      ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(errbuf, size, fmt, ap);
    va_end(ap);
    return 2;
}

/* Identify has room for printable ASCII only. */
static int take_text(const char *name, const char *text, size_t max, const char **out, char *errbuf,
                     size_t size)
{
    size_t len = strlen(text);

    if (len == 0 || len > max)
        return fail(errbuf, size, "--%s takes 1 to %zu characters, not '%s'", name, max, text);
    for (size_t i = 0; i < len; i++)
        if (text[i] < 0x20 || text[i] > 0x7e)
            return fail(errbuf, size, "--%s takes printable ASCII characters only", name);
    *out = text;
    return 0;
}

static int take_pci_id(const char *text, struct nvme_config *cfg, char *errbuf, size_t size)
{
    static const char hex[] = "0123456789abcdefABCDEF";
    size_t vendor_len = strspn(text, hex);
    const char *device = text + vendor_len + (text[vendor_len] == ':');
    size_t device_len = strspn(device, hex);
    unsigned long vendor = strtoul(text, NULL, 16);

    if (vendor_len - 1 >= 4 || device_len - 1 >= 4 || text[vendor_len] != ':' ||
        device[device_len] || vendor == 0 || vendor == 0xffff)
        return fail(errbuf, size, "--pci-id takes VENDOR:DEVICE in hexadecimal, not '%s'", text);
    cfg->pci_vendor = (uint16_t)vendor;
    cfg->pci_device = (uint16_t)strtoul(device, NULL, 16);
    return 0;
}

static int take_option(int opt, const char *arg, struct nvme_config *cfg, char *errbuf, size_t size)
{
    static const char *const aio[] = { "auto", "uring", "threads" };
    static const char *const interrupts[] = { "intx", "msi", "msix" };
    uint64_t number;
    int rc;

    switch (opt) {
    case 'r':
        cfg->read_only = true;
        return 0;
    case 'n':
        cfg->incoming = true;
        return 0;
    case 't':
        cfg->state = arg;
        return 0;
    case 'l':
        if (strcmp(arg, "512") != 0 && strcmp(arg, "4096") != 0)
            return fail(errbuf, size, "--lba takes 512 or 4096, not '%s'", arg);
        cfg->lba_shift = arg[0] == '5' ? 9 : 12;
        return 0;
    case 'q':
        rc = ob_option_number("queues", arg, 1, NVME_IO_QUEUES_MAX, &number, errbuf, size);
        if (rc == 0)
            cfg->queues = (unsigned)number;
        return rc;
    case 'd':
        cfg->mapped = strcmp(arg, "mapped") == 0;
        if (!cfg->mapped && strcmp(arg, "trapped") != 0)
            return fail(errbuf, size, "--doorbells takes trapped or mapped, not '%s'", arg);
        return 0;
    case 'c':
        cfg->direct = strcmp(arg, "none") == 0;
        if (!cfg->direct && strcmp(arg, "writeback") != 0)
            return fail(errbuf, size, "--cache takes writeback or none, not '%s'", arg);
        return 0;
    case 'a':
        for (int i = 0; i < 3; i++) {
            cfg->aio = (enum blk_aio)i;
            if (strcmp(arg, aio[i]) == 0)
                return 0;
        }
        return fail(errbuf, size, "--aio takes auto, uring or threads, not '%s'", arg);
    case 'i':
        for (int i = 0; i < 3; i++) {
            cfg->interrupts = (enum nvme_interrupts)i;
            if (strcmp(arg, interrupts[i]) == 0)
                return 0;
        }
        return fail(errbuf, size, "--interrupts takes msix, msi or intx, not '%s'", arg);
    case 's':
        return take_text("serial", arg, SERIAL_MAX, &cfg->serial, errbuf, size);
    case 'm':
        return take_text("model", arg, MODEL_MAX, &cfg->model, errbuf, size);
    case 'p':
        return take_pci_id(arg, cfg, errbuf, size);
    default:
        return fail(errbuf, size, "unknown option, or one without its value");
    }
}

/* What cannot be continued in another process. */
static int check_state(struct nvme_config *cfg, char *errbuf, size_t size)
{
    if (!*cfg->state)
        return fail(errbuf, size, "--state takes a file, not ''");
    if (cfg->mapped)
        return fail(errbuf, size,
                    "--state and --doorbells mapped exclude each other: those would be lost");
    if (cfg->incoming)
        return fail(errbuf, size,
                    "--state and --incoming exclude each other: a disk that has a "
                    "state file does not move");
    if (strncmp(cfg->image, "mem:", 4) == 0 || strncmp(cfg->image, "null:", 5) == 0)
        return fail(errbuf, size, "--state is for an IMAGE that outlives the server, not %s",
                    cfg->image);
    /* Requests of a killed server may still be under way in the kernel. The lock of the image lasts
     * as long, but readers share it: theirs must end with the process. */
    if (cfg->read_only && cfg->aio == BLK_AIO_URING)
        return fail(errbuf, size, "--state and --read-only need --aio threads");
    if (cfg->read_only)
        cfg->aio = BLK_AIO_THREADS;
    return 0;
}

int nvme_parse_options(int argc, char **argv, struct nvme_config *cfg, char *errbuf, size_t size)
{
    int opt, rc;

    *cfg = (struct nvme_config){ .lba_shift = 9,
                                 .queues = QUEUES_DEFAULT,
                                 .interrupts = NVME_MSIX,
                                 .model = "Outboard NVMe",
                                 .pci_vendor = 0x4f42,
                                 .pci_device = 0x0001 };
    while ((opt = getopt_long(argc, argv, "", nvme_long_options, NULL)) != -1) {
        rc = take_option(opt, optarg, cfg, errbuf, size);
        if (rc != 0)
            return rc;
    }
    if (argc - optind != 1)
        return fail(errbuf, size,
                    optind == argc ? "IMAGE is missing: a file, a block device, mem:SIZE or "
                                     "null:SIZE"
                                   : "there is one IMAGE, and no '%s' after it",
                    optind == argc ? "" : argv[optind + 1]);
    cfg->image = argv[optind];
    return cfg->state ? check_state(cfg, errbuf, size) : 0;
}
