/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * `outboard info`: what is behind a socket. It only asks and reads, so that it changes nothing in
 * a device. Whatever the server refuses is part of the answer; only a server that hangs or breaks
 * the protocol ends it.
 */
#include "info.h"
#include "tools.h"

#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static void print_help(void)
{
    printf(
        "usage: outboard info SOCKET [--json] [--timeout MS]\n"
        "Says what device a vfio-user server offers on SOCKET: identity, regions, interrupts,\n"
        "capabilities, and what the server takes. The device is not changed.\n"
        "\n"
        "  --json         one JSON object:\n"
        "                   socket, resettable,\n"
        "                   config_size (config_error if it cannot be read), vendor_id,\n"
        "                   device_id, subsystem_vendor_id, subsystem_id, class, class_name,\n"
        "                   revision,\n"
        "                   regions: index, name, size, read, write, type (io, memory32,\n"
        "                     memory64), prefetchable, mappable: offset, size; can_shrink,\n"
        "                   interrupts: index, name, count, eventfd, maskable, automasked,\n"
        "                   capabilities: offset, id, name, extended, version, and more by kind,\n"
        "                   capability_error: if their list is broken,\n"
        "                   limits: max_msg_fds, max_data_xfer_size, max_dma_maps, pgsizes (hex),\n"
        "                     write_multiple, migration\n"
        "  --timeout MS   give up when an answer takes longer (default 5000)\n"
        "  -h, --help     this text\n");
}

bool info_region_exists(const struct info_region *region)
{
    return !region->known || region->layout.size > 0;
}

bool info_area(const struct info_region *region, uint32_t i, struct ob_sparse_area *out)
{
    const struct ob_region_layout *layout = &region->layout;

    if (!(layout->flags & OB_REGION_MMAP) || i >= (layout->nareas ? layout->nareas : 1))
        return false;
    *out = layout->nareas ? layout->areas[i] : (struct ob_sparse_area){ 0, layout->size };
    return true;
}

/* ---- Asking -------------------------------------------------------------------------------- */

/* Whether a failure is an answer of the server: then the rest can still be asked. */
static bool is_answer(int rc)
{
    return rc >= 0 || ob_err_class(rc) == OB_ERR_PEER;
}

static int ask_region(struct ob_client *client, uint32_t index, struct info_region *out)
{
    struct ob_region_info info;

    out->error = ob_client_region_info(client, index, &info);
    out->known = out->error == 0;
    if (!out->known)
        return is_answer(out->error) ? 0 : out->error;
    out->layout = info.layout;
    if (info.fd >= 0) {
        int seals = fcntl(info.fd, F_GET_SEALS); /* fails for what cannot be sealed */
        out->sealed = seals >= 0 && (seals & F_SEAL_SHRINK);
    }
    ob_region_info_fini(&info);
    return 0;
}

static int ask_irq(struct ob_client *client, uint32_t index, struct info_irq *out)
{
    out->error = ob_client_irq_info(client, index, &out->info);
    out->known = out->error == 0;
    return is_answer(out->error) ? 0 : out->error;
}

static int read_config(struct ob_client *client, struct info_report *report)
{
    const struct info_region *region = &report->regions[OB_PCI_REGION_CONFIG];
    uint32_t size = sizeof(report->config);

    if (!region->known || region->layout.size < 64)
        return 0;
    if (region->layout.size < size)
        size = (uint32_t)region->layout.size;
    report->config_error =
        ob_client_region_read(client, OB_PCI_REGION_CONFIG, 0, report->config, size);
    if (report->config_error < 0)
        return is_answer(report->config_error) ? 0 : report->config_error;
    report->space = (struct pci_space){ report->config, size };
    pci_decode_caps(&report->space, &report->pci_caps);
    return 0;
}

static int ask_all(struct ob_client *client, struct info_report *report)
{
    int rc = ob_client_device_info(client, &report->device);

    report->caps = *ob_client_caps(client);
    for (uint32_t i = 0; rc == 0 && i < report->device.num_regions; i++)
        rc = ask_region(client, i, &report->regions[i]);
    for (uint32_t i = 0; rc == 0 && i < report->device.num_irqs; i++)
        rc = ask_irq(client, i, &report->irqs[i]);
    if (rc == 0 && report->device.num_regions > OB_PCI_REGION_CONFIG)
        rc = read_config(client, report);
    return rc;
}

/* ---- The command --------------------------------------------------------------------------- */

static int inspect(const char *path, int timeout_ms, struct info_report *report)
{
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    struct ob_client *client;
    char why[320];
    int rc;

    opt.timeout_ms = timeout_ms;
    if (ob_client_connect(path, &opt, &client, why, sizeof(why)) < 0)
        return fail("info", "%s", why);
    rc = ask_all(client, report);
    if (ob_client_error(client))
        snprintf(why, sizeof(why), "%s", ob_client_error(client));
    else
        ob_strerror(rc, why, sizeof(why));
    ob_client_free(client);
    return rc < 0 ? fail("info", "%s", why) : 0;
}

int cmd_info(int argc, char **argv)
{
    static const struct option options[] = {
        { "json", no_argument, NULL, 'j' },
        { "timeout", required_argument, NULL, 't' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    struct info_report *report;
    long long timeout_ms = 0;
    bool json = false;
    const char *path;
    int c, status;

    opterr = 0;
    while ((c = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (c) {
        case 'j':
            json = true;
            break;
        case 't':
            if (!parse_number(optarg, 0, 1, INT_MAX, &timeout_ms))
                return fail_usage("info", "--timeout takes milliseconds, not '%s'", optarg);
            break;
        case 'h':
            print_help();
            return 0;
        default:
            return fail_option("info", c, argv);
        }
    }
    status = take_socket("info", argc, argv, &path);
    if (status)
        return status;
    report = calloc(1, sizeof(*report));
    if (!report)
        return fail("info", "out of memory");
    status = inspect(path, (int)timeout_ms, report);
    if (status == 0 && !json)
        info_print_text(report, stdout);
    else if (status == 0 && info_print_json(report, stdout) < 0)
        status = fail("info", "out of memory");
    free(report);
    return status;
}
