/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Drives a GPIO chip with sixteen outputs, tied to sixteen inputs that follow them, through
 * Linux's character device: `gpio-guest LABEL CHECK`. Exit status 0 when all is well.
 */
#include "guest.h"

#include <fcntl.h>
#include <linux/gpio.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define LINES 16 /* outputs 0-15, inputs 16-31 */

static int open_chip(const char *label)
{
    for (int i = 0; i < 16; i++) {
        struct gpiochip_info info;
        char path[32];
        int fd;

        snprintf(path, sizeof(path), "/dev/gpiochip%d", i);
        fd = open(path, O_RDWR);
        if (fd < 0)
            continue;
        FAIL_IF(ioctl(fd, GPIO_GET_CHIPINFO_IOCTL, &info) < 0);
        if (!strcmp(info.label, label)) {
            EXPECT(info.lines, 2 * LINES);
            return fd;
        }
        close(fd);
    }
    printf("no GPIO chip is called %s\n", label);
    exit(1);
}

static int request_lines(int chip, unsigned first, unsigned count, uint64_t flags)
{
    struct gpio_v2_line_request request = { .num_lines = count,
                                            .config.flags = flags,
                                            .consumer = "gpio-guest" };

    for (unsigned i = 0; i < count; i++)
        request.offsets[i] = first + i;
    FAIL_IF(ioctl(chip, GPIO_V2_GET_LINE_IOCTL, &request) < 0);
    return request.fd;
}

static void put(int lines, uint64_t bits)
{
    struct gpio_v2_line_values values = { .bits = bits, .mask = (1u << LINES) - 1 };

    FAIL_IF(ioctl(lines, GPIO_V2_LINE_SET_VALUES_IOCTL, &values) < 0);
}

static uint64_t get(int lines)
{
    struct gpio_v2_line_values values = { .mask = (1u << LINES) - 1 };

    FAIL_IF(ioctl(lines, GPIO_V2_LINE_GET_VALUES_IOCTL, &values) < 0);
    return values.bits;
}

static void check_lines(int chip)
{
    static const uint16_t patterns[] = { 0xa5c3, 0x0000, 0xffff, 0x00ff, 0xff00, 0x0001, 0x8000 };
    int outputs = request_lines(chip, 0, LINES, GPIO_V2_LINE_FLAG_OUTPUT);
    int inputs = request_lines(chip, LINES, LINES, GPIO_V2_LINE_FLAG_INPUT);

    for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
        put(outputs, patterns[i]);
        EXPECT(get(outputs), patterns[i]);
        EXPECT(get(inputs), patterns[i]);
    }
}

/* Each change of an output moves an input, which interrupts: every one has to arrive. */
static void check_interrupts(int chip)
{
    int outputs = request_lines(chip, 0, LINES, GPIO_V2_LINE_FLAG_OUTPUT);
    int input = request_lines(chip, LINES, 1,
                              GPIO_V2_LINE_FLAG_INPUT | GPIO_V2_LINE_FLAG_EDGE_RISING |
                                  GPIO_V2_LINE_FLAG_EDGE_FALLING);
    struct pollfd pfd = { .fd = input, .events = POLLIN };
    struct gpio_v2_line_event event;

    for (uint32_t i = 1; i <= 50; i++) {
        put(outputs, i & 1);
        EXPECT(poll(&pfd, 1, 10000), 1);
        FAIL_IF(read(input, &event, sizeof(event)) != sizeof(event));
        EXPECT(event.line_seqno, i);
        EXPECT(event.offset, LINES);
    }
    EXPECT(poll(&pfd, 1, 300), 0);
}

int main(int argc, char **argv)
{
    int chip;

    if (argc != 3) {
        printf("usage: gpio-guest LABEL lines|interrupts\n");
        return 2;
    }
    chip = open_chip(argv[1]);
    if (!strcmp(argv[2], "lines"))
        check_lines(chip);
    else if (!strcmp(argv[2], "interrupts"))
        check_interrupts(chip);
    else
        return 2;
    printf("%s: all is well\n", argv[2]);
    return 0;
}
