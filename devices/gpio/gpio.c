/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * ACCES PCI-IDIO-16: sixteen outputs, sixteen inputs, an interrupt when an input changes. Linux
 * drives it with gpio-pci-idio-16. Byte-wide registers in BAR 2 (I/O ports):
 *
 *        read                          write
 *   +0   outputs 0-7                   outputs 0-7
 *   +1   inputs 0-7                    clear the interrupt
 *   +2   enable the interrupt          disable the interrupt
 *   +3   filter all inputs             filter none
 *   +4   outputs 8-15                  outputs 8-15
 *   +5   inputs 8-15                   -
 *   +6   interrupt status              -
 *   +7   inputs 0-7 that are filtered  filter these of inputs 0-7
 *
 * Nothing is wired to a card that exists in software only, so options say what moves the inputs:
 * --loopback ties each to the output of its number, --toggle-ms turns input 0 over by a timer.
 * Filters keep what is written and have no further effect: these inputs do not bounce.
 *
 * Everything runs in the server's thread.
 */
#include "devices/device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define BAR       2
#define BAR_BYTES 8

/* Interrupt status: which half of the inputs has changed, and that the line is asserted. */
#define STATUS_IN0_7   0x1u
#define STATUS_IN8_15  0x2u
#define STATUS_PENDING 0x4u

#define TOGGLE_MS_MAX 3600000u

struct gpio {
    struct ob_server *server;
    int timer_fd; /* -1 without --toggle-ms */
    uint64_t toggle_ms;
    bool loopback;
    uint16_t outputs;
    uint16_t levels; /* what drives the inputs from outside */
    uint16_t inputs;
    bool irq_enabled;
    uint8_t irq_status;
    uint8_t filters;
    bool filter_all;
};

/* The line is a level: it stays until the driver clears the status, however often we say so. */
static void update_line(struct gpio *gpio)
{
    ob_server_intx(gpio->server, gpio->irq_enabled && gpio->irq_status);
}

/* To be called after whatever may move an input. */
static void update_inputs(struct gpio *gpio)
{
    uint16_t inputs = gpio->loopback ? gpio->levels ^ gpio->outputs : gpio->levels;
    uint16_t changed = inputs ^ gpio->inputs;

    gpio->inputs = inputs;
    if (!changed || !gpio->irq_enabled)
        return;
    gpio->irq_status |= STATUS_PENDING | (changed & 0x00ff ? STATUS_IN0_7 : 0) |
                        (changed & 0xff00 ? STATUS_IN8_15 : 0);
    update_line(gpio);
}

static uint8_t read_register(struct gpio *gpio, uint64_t offset)
{
    switch (offset) {
    case 0:
        return gpio->outputs & 0xff;
    case 1:
        return gpio->inputs & 0xff;
    case 2:
        gpio->irq_enabled = true;
        update_line(gpio);
        return 0;
    case 3:
        gpio->filter_all = true;
        return 0;
    case 4:
        return gpio->outputs >> 8;
    case 5:
        return gpio->inputs >> 8;
    case 6:
        return gpio->irq_status;
    case 7:
        return gpio->filter_all ? 0xff : gpio->filters;
    default:
        return 0xff;
    }
}

static void write_register(struct gpio *gpio, uint64_t offset, uint8_t value)
{
    switch (offset) {
    case 0:
        gpio->outputs = (gpio->outputs & 0xff00) | value;
        update_inputs(gpio);
        break;
    case 1:
        gpio->irq_status = 0;
        update_line(gpio);
        break;
    case 2:
        gpio->irq_enabled = false;
        update_line(gpio);
        break;
    case 3:
        gpio->filter_all = false;
        gpio->filters = 0;
        break;
    case 4:
        gpio->outputs = (gpio->outputs & 0x00ff) | (uint16_t)(value << 8);
        update_inputs(gpio);
        break;
    case 7:
        gpio->filters = value;
        break;
    default:
        break;
    }
}

/* The registers are bytes; a wider access is several of them, as on the bus. The library has
 * checked that offset + count lies in the region. */
static int access_bar(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    struct gpio *gpio = opaque;
    uint8_t *bytes = data;

    for (uint32_t i = 0; i < count; i++) {
        if (is_write)
            write_register(gpio, offset + i, bytes[i]);
        else
            bytes[i] = read_register(gpio, offset + i);
    }
    return 0;
}

/* The card forgets what it was told; what is wired to its inputs stays as it is. */
static int reset(void *opaque)
{
    struct gpio *gpio = opaque;

    gpio->irq_enabled = false;
    gpio->irq_status = 0;
    gpio->filter_all = false;
    gpio->filters = 0;
    gpio->outputs = 0;
    update_inputs(gpio);
    update_line(gpio);
    return 0;
}

/* syscalls: read */
static void toggle(void *opaque, uint32_t events)
{
    struct gpio *gpio = opaque;
    uint64_t expirations;

    (void)events;
    if (read(gpio->timer_fd, &expirations, sizeof(expirations)) != sizeof(expirations))
        return;
    gpio->levels ^= expirations & 1; /* an even number of them came back to where it was */
    update_inputs(gpio);
}

static int start_timer(struct gpio *gpio)
{
    const struct timespec interval = { (time_t)(gpio->toggle_ms / 1000),
                                       (long)(gpio->toggle_ms % 1000) * 1000000 };
    const struct itimerspec spec = { interval, interval };

    gpio->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (gpio->timer_fd < 0 || timerfd_settime(gpio->timer_fd, 0, &spec, NULL) < 0)
        return -errno;
    return ob_server_watch(gpio->server, gpio->timer_fd, EPOLLIN, toggle, gpio);
}

static int build(struct gpio *gpio, ob_log_fn log)
{
    const struct ob_server_ops ops = { .size = sizeof(ops), .reset = reset, .log = log };
    const struct ob_pci_id id = { .vendor = 0x494f,
                                  .device = 0x0dc8,
                                  .subsystem_vendor = 0x494f,
                                  .subsystem = 0x0dc8,
                                  .class_code = 0xff0000 };
    const struct ob_region bar = { .size = BAR_BYTES,
                                   .flags = OB_REGION_READ | OB_REGION_WRITE,
                                   .access = access_bar,
                                   .opaque = gpio,
                                   .fd = -1 };
    int rc;

    gpio->server = ob_server_new(&ops, gpio);
    if (!gpio->server)
        return -errno;
    if ((rc = ob_pci_init(gpio->server, &id, false, true)) < 0 ||
        (rc = ob_pci_add_bar(gpio->server, BAR, BAR_BYTES, OB_PCI_BAR_IO)) < 0 ||
        (rc = ob_server_set_region(gpio->server, BAR, &bar)) < 0)
        return rc;
    return gpio->toggle_ms ? start_timer(gpio) : 0;
}

static int destroy(void *opaque)
{
    struct gpio *gpio = opaque;

    if (gpio->timer_fd >= 0) {
        if (gpio->server)
            ob_server_watch(gpio->server, gpio->timer_fd, 0, NULL, NULL);
        close(gpio->timer_fd);
    }
    ob_server_free(gpio->server);
    free(gpio);
    return 0;
}

static const struct option long_options[] = { { "loopback", no_argument, NULL, 'l' },
                                              { "toggle-ms", required_argument, NULL, 't' },
                                              { 0 } };

static int parse_options(struct gpio *gpio, int argc, char **argv, char *errbuf, size_t errbuf_size)
{
    int status = 0;

    for (int opt; !status && (opt = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        if (opt == 'l')
            gpio->loopback = true;
        else
            status = ob_option_number("toggle-ms", optarg, 1, TOGGLE_MS_MAX, &gpio->toggle_ms,
                                      errbuf, errbuf_size);
    }
    return status;
}

static int create(int argc, char **argv, ob_log_fn log, void **opaque, struct ob_server **server,
                  char *banner, size_t banner_size, char *errbuf, size_t errbuf_size)
{
    struct gpio *gpio = calloc(1, sizeof(*gpio));
    int rc, status;

    if (!gpio)
        return ob_create_failed(-ENOMEM, errbuf, errbuf_size);
    gpio->timer_fd = -1;
    status = parse_options(gpio, argc, argv, errbuf, errbuf_size);
    if (!status && (rc = build(gpio, log)) < 0)
        status = ob_create_failed(rc, errbuf, errbuf_size);
    if (status) {
        destroy(gpio);
        return status;
    }
    snprintf(banner, banner_size, "ACCES PCI-IDIO-16, 16 outputs, 16 inputs%s",
             gpio->loopback ? " looped back" : "");
    *opaque = gpio;
    *server = gpio->server;
    return 0;
}

const struct ob_served ob_served_gpio = {
    .name = "gpio",
    .operands = "",
    .summary = "ACCES PCI-IDIO-16, a digital I/O card (Linux: gpio-pci-idio-16)",
    .options = "  --loopback              wire each input to the output of its number\n"
               "  --toggle-ms MS          turn input 0 over every MS milliseconds\n",
    .long_options = long_options,
    .create = create,
    .destroy = destroy,
};
