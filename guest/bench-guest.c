/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Measures devices from a guest's user space, for bench/run:
 *
 *   bench-guest read|write|post COUNT ADDRESS...      ADDRESS as in /sys/bus/pci/devices
 *   bench-guest interrupt COUNT ADDRESS UIO           the educational device, with its UIO file
 *
 * Prints how many nanoseconds each took, a line each. Several devices are read in turns. `post` is
 * for writes that the device does not answer: after 200 of them a read waits for all. The clock is
 * the time-stamp counter, since reading another one may be an exit of the guest.
 */
#include "guest.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define PAGE         4096
#define DEVICES_MAX  32
#define COUNT_MAX    10000
#define BURST        200
#define LIVENESS     4 /* a register of the educational device; others keep what is written */
#define IRQ_RAISE    0x60
#define IRQ_ACK      0x64
#define COMMAND      4 /* in config space */
#define MEMORY       0x2
#define INTX_DISABLE 0x400

static volatile uint8_t *bars[DEVICES_MAX];
static int config_fd; /* of the last device */
static int ndevices;
static uint64_t ticks[COUNT_MAX];
static unsigned count;

static void change_command(uint16_t clear, uint16_t set)
{
    uint16_t command;

    FAIL_IF(pread(config_fd, &command, 2, COMMAND) != 2);
    command = (uint16_t)((command & ~clear) | set);
    FAIL_IF(pwrite(config_fd, &command, 2, COMMAND) != 2);
}

static void open_device(const char *address)
{
    char path[128];
    int fd;

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", address);
    config_fd = open(path, O_RDWR);
    FAIL_IF(config_fd < 0);
    change_command(0, MEMORY);
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource0", address);
    fd = open(path, O_RDWR | O_SYNC);
    FAIL_IF(fd < 0);
    bars[ndevices] = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    FAIL_IF(bars[ndevices] == MAP_FAILED);
    ndevices++;
}

static volatile uint32_t *reg(int device, unsigned offset)
{
    return (volatile uint32_t *)(bars[device] + offset);
}

static void measure_reads(void)
{
    for (unsigned i = 0; i < count; i++) {
        uint64_t before = __rdtsc();

        (void)*reg((int)i % ndevices, LIVENESS);
        ticks[i] = __rdtsc() - before;
    }
}

static void measure_writes(int posted)
{
    for (unsigned i = 0; i < count; i++) {
        uint64_t before = __rdtsc();

        *reg((int)i % ndevices, LIVENESS) = i;
        ticks[i] = __rdtsc() - before;
        if (posted && i % BURST == BURST - 1)
            (void)*reg((int)i % ndevices, LIVENESS);
    }
}

static void measure_interrupts(const char *uio_path)
{
    int uio = open(uio_path, O_RDWR);

    FAIL_IF(uio < 0);
    change_command(INTX_DISABLE, 0);
    for (unsigned i = 0; i < count; i++) {
        uint32_t seen;
        uint64_t before = __rdtsc();

        *reg(0, IRQ_RAISE) = 1;
        FAIL_IF(read(uio, &seen, 4) != 4);
        ticks[i] = __rdtsc() - before;
        *reg(0, IRQ_ACK) = 1;
        (void)*reg(0, LIVENESS); /* the line is down before it is opened again */
        change_command(INTX_DISABLE, 0);
    }
}

static double ns_per_tick(void)
{
    struct timespec begin, end;
    uint64_t first = __rdtsc();

    clock_gettime(CLOCK_MONOTONIC, &begin);
    do
        clock_gettime(CLOCK_MONOTONIC, &end);
    while ((end.tv_sec - begin.tv_sec) * 1000000000LL + end.tv_nsec - begin.tv_nsec < 50000000);
    return ((double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec)) /
           (double)(__rdtsc() - first);
}

int main(int argc, char **argv)
{
    int interrupt = argc == 5 && !strcmp(argv[1], "interrupt");
    double scale;

    if (argc < 4 || argc > DEVICES_MAX + 3)
        return 2;
    count = (unsigned)strtoul(argv[2], NULL, 10);
    if (count < 1 || count > COUNT_MAX)
        return 2;
    for (int i = 3; i < (interrupt ? 4 : argc); i++)
        open_device(argv[i]);
    if (interrupt)
        measure_interrupts(argv[4]);
    else if (!strcmp(argv[1], "read"))
        measure_reads();
    else if (!strcmp(argv[1], "write") || !strcmp(argv[1], "post"))
        measure_writes(argv[1][0] == 'p');
    else
        return 2;
    scale = ns_per_tick();
    for (unsigned i = 0; i < count; i++)
        printf("%.0f\n", (double)ticks[i] * scale);
    return 0;
}
