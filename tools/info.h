/* SPDX-License-Identifier: BSD-3-Clause */
/* What `outboard info` finds out about a device, and its two ways to print it. */
#ifndef OB_TOOLS_INFO_H
#define OB_TOOLS_INFO_H

#include <stdio.h>

#include "outboard/client.h"
#include "pcidump.h"

struct info_region {
    bool known; /* else: the server refused to describe it, error says why */
    int error;
    bool sealed; /* mappable, and the server cannot cut the file */
    struct ob_region_layout layout;
};

struct info_irq {
    bool known;
    int error;
    struct ob_irq_info info;
};

struct info_report {
    struct ob_caps caps;
    struct ob_device_info device;
    struct info_region regions[OB_REGIONS_MAX];
    struct info_irq irqs[OB_IRQS_MAX];
    uint8_t config[4096];
    struct pci_space space; /* of config; empty when there is none */
    int config_error;       /* why it is empty */
    struct pci_caps pci_caps;
};

/* Whether there is anything in the region. */
bool info_region_exists(const struct info_region *region);
/* Number i of the areas that may be mapped; false after the last. */
bool info_area(const struct info_region *region, uint32_t i, struct ob_sparse_area *out);

void info_print_text(const struct info_report *report, FILE *out);
/* 0, or -1 without memory. */
int info_print_json(const struct info_report *report, FILE *out);

#endif
