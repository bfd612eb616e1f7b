/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Drives the educational device from a guest's user space: `edu-guest ADDRESS CHECK`, ADDRESS as in
 * /sys/bus/pci/devices. Exit status 0 when the device did all that the check asks of it.
 *
 * Registers are mapped through sysfs. For DMA, locked pages of this process serve as the driver's
 * memory; /proc/self/pagemap has their addresses (so no vIOMMU). Interrupts come through
 * uio_pci_generic: its handler masks the line in the command register, we open it again.
 */
#include "guest.h"

#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE          4096
#define CARD_BUFFER   0x40000
#define DMA_START     0x1
#define DMA_TO_RAM    0x2
#define DMA_IRQ       0x4
#define IRQ_FACTORIAL 0x001
#define IRQ_DMA       0x100
#define INTX_DISABLE  0x400
#define BUS_MASTER    0x4

enum { ID = 0, LIVENESS = 4, FACTORIAL = 8, STATUS = 0x20, IRQ_STATUS = 0x24, IRQ_RAISE = 0x60 };
enum { IRQ_ACK = 0x64, DMA_SOURCE = 0x80, DMA_TARGET = 0x88, DMA_COUNT = 0x90, DMA_COMMAND = 0x98 };

static volatile uint8_t *bar;
static int config_fd;

static uint32_t get(unsigned reg)
{
    return *(volatile uint32_t *)(bar + reg);
}

static void set(unsigned reg, uint32_t value)
{
    *(volatile uint32_t *)(bar + reg) = value;
}

static void set_wide(unsigned reg, uint64_t value)
{
    *(volatile uint64_t *)(bar + reg) = value;
}

/* Reads the register until none of BITS is set. */
static void wait_clear(unsigned reg, uint32_t bits)
{
    for (time_t end = time(NULL) + 20; get(reg) & bits;) {
        if (time(NULL) > end) {
            printf("register 0x%x keeps bits of 0x%x set\n", reg, bits);
            exit(1);
        }
    }
}

static void change_command(uint16_t clear, uint16_t or)
{
    uint16_t command;

    FAIL_IF(pread(config_fd, &command, 2, 4) != 2);
    command = (uint16_t)((command & ~clear) | or);
    FAIL_IF(pwrite(config_fd, &command, 2, 4) != 2);
}

static void check_registers(void)
{
    EXPECT(get(ID), 0x010000ed);
    set(LIVENESS, 0x12345678);
    EXPECT(get(LIVENESS), 0xedcba987);
    set(FACTORIAL, 10);
    wait_clear(STATUS, 1);
    EXPECT(get(FACTORIAL), 3628800);
}

/* Pages that stay where they are, as DMA needs it. */
static uint8_t *lock_pages(unsigned count)
{
    uint8_t *pages = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);

    FAIL_IF(pages == MAP_FAILED);
    return pages;
}

static uint64_t physical_address(const void *page)
{
    uint64_t entry;
    int fd = open("/proc/self/pagemap", O_RDONLY);

    FAIL_IF(fd < 0);
    FAIL_IF(pread(fd, &entry, 8, (off_t)((uintptr_t)page / PAGE * 8)) != 8);
    close(fd);
    EXPECT(entry >> 63, 1); /* present */
    return (entry & ((1ull << 55) - 1)) * PAGE;
}

static void transfer(uint64_t source, uint64_t target, uint32_t count, uint32_t flags)
{
    set_wide(DMA_SOURCE, source);
    set_wide(DMA_TARGET, target);
    set_wide(DMA_COUNT, count);
    set_wide(DMA_COMMAND, DMA_START | flags);
    wait_clear(DMA_COMMAND, DMA_START);
}

/* Out to the card and back into another page, for sizes and offsets of all kinds. */
static void check_dma(void)
{
    static const struct {
        unsigned offset, count;
    } shapes[] = { { 0, 4096 }, { 0, 1 }, { 4095, 1 }, { 1, 4094 }, { 123, 77 }, { 2048, 2048 } };
    uint8_t *out = lock_pages(2), *in = out + PAGE;

    change_command(0, BUS_MASTER);
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        unsigned offset = shapes[i].offset, count = shapes[i].count;

        for (int k = 0; k < PAGE; k++)
            out[k] = (uint8_t)(random() >> 8);
        memset(in, 0xee, PAGE);
        transfer(physical_address(out) + offset, CARD_BUFFER, count, 0);
        transfer(CARD_BUFFER, physical_address(in) + offset, count, DMA_TO_RAM);
        EXPECT(memcmp(in + offset, out + offset, count), 0);
        for (unsigned k = 0; k < PAGE; k++) {
            if (k < offset || k >= offset + count)
                EXPECT(in[k], 0xee);
        }
    }
}

static int wait_uio(int uio, int timeout_ms)
{
    struct pollfd pfd = { .fd = uio, .events = POLLIN };
    uint32_t count;

    if (poll(&pfd, 1, timeout_ms) != 1)
        return 0;
    FAIL_IF(read(uio, &count, 4) != 4);
    return 1;
}

/* The line is a level: open and not acknowledged it fires again, acknowledged it is silent. */
static void check_interrupts(void)
{
    int uio = open("/dev/uio0", O_RDWR);

    FAIL_IF(uio < 0);
    change_command(INTX_DISABLE, BUS_MASTER);
    for (uint32_t i = 1; i <= 50; i++) {
        set(IRQ_RAISE, i);
        EXPECT(wait_uio(uio, 10000), 1);
        EXPECT(get(IRQ_STATUS), i);
        change_command(INTX_DISABLE, 0);
        EXPECT(wait_uio(uio, 10000), 1);
        set(IRQ_ACK, i);
        EXPECT(get(IRQ_STATUS), 0);
        change_command(INTX_DISABLE, 0);
    }
    EXPECT(wait_uio(uio, 300), 0);

    set(STATUS, 0x80);
    set(FACTORIAL, 5);
    EXPECT(wait_uio(uio, 10000), 1);
    EXPECT(get(IRQ_STATUS), IRQ_FACTORIAL);
    EXPECT(get(FACTORIAL), 120);
    set(IRQ_ACK, IRQ_FACTORIAL);
    change_command(INTX_DISABLE, 0);

    transfer(physical_address(lock_pages(1)), CARD_BUFFER, 16, DMA_IRQ);
    EXPECT(wait_uio(uio, 10000), 1);
    EXPECT(get(IRQ_STATUS), IRQ_DMA);
    set(IRQ_ACK, IRQ_DMA);
    close(uio);
}

static int open_of_device(const char *address, const char *file)
{
    char path[128];
    int fd;

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", address, file);
    fd = open(path, O_RDWR | O_SYNC);
    FAIL_IF(fd < 0);
    return fd;
}

int main(int argc, char **argv)
{
    int fd;

    if (argc != 3) {
        printf("usage: edu-guest ADDRESS registers|dma|interrupts\n");
        return 2;
    }
    config_fd = open_of_device(argv[1], "config");
    fd = open_of_device(argv[1], "resource0");
    change_command(0, 2); /* memory space */
    bar = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    FAIL_IF(bar == MAP_FAILED);
    if (!strcmp(argv[2], "registers"))
        check_registers();
    else if (!strcmp(argv[2], "dma"))
        check_dma();
    else if (!strcmp(argv[2], "interrupts"))
        check_interrupts();
    else
        return 2;
    printf("%s: all is well\n", argv[2]);
    return 0;
}
