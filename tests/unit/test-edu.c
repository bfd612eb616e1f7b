/* SPDX-License-Identifier: BSD-3-Clause */
/* The educational device, as its drivers see it. */
#include "harness.h"
#include "served.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define SOON_MS               5000
#define NOW                   0
#define COMMAND               4 /* in config space */
#define MEMORY_AND_BUS_MASTER 0x6

#define BUFFER      0x40000u
#define RAM_ADDRESS 0x100000u
#define RAM_BYTES   0x10000u

enum {
    IDENTIFICATION = 0x00,
    LIVENESS = 0x04,
    FACTORIAL = 0x08,
    STATUS = 0x20,
    IRQ_STATUS = 0x24,
    IRQ_RAISE = 0x60,
    IRQ_ACKNOWLEDGE = 0x64,
    DMA_SOURCE = 0x80,
    DMA_DESTINATION = 0x88,
    DMA_COUNT = 0x90,
    DMA_COMMAND = 0x98,
};
enum { START = 1, TO_RAM = 2, INTERRUPT = 4 };

static struct served card;
static uint8_t *ram; /* of the guest */

static uint32_t get(uint64_t reg)
{
    return (uint32_t)served_read(&card, 0, reg, 4);
}

static void set(uint64_t reg, uint32_t value)
{
    served_write(&card, 0, reg, 4, value);
}

/* Reads the register until the bits are clear. */
static void wait_until_clear(uint64_t reg, uint32_t bits)
{
    for (int64_t deadline = test_now_ms() + SOON_MS; get(reg) & bits;)
        CHECK(test_now_ms() < deadline);
}

static void start(const char *const *args, const struct ob_client_options *options)
{
    served_start(&card, &ob_served_edu, args, options);
    served_write(&card, OB_PCI_REGION_CONFIG, COMMAND, 2, MEMORY_AND_BUS_MASTER);
}

static void transfer(uint64_t source, uint64_t destination, uint64_t count, uint32_t command)
{
    served_write(&card, 0, DMA_SOURCE, 8, source);
    served_write(&card, 0, DMA_DESTINATION, 8, destination);
    served_write(&card, 0, DMA_COUNT, 8, count);
    set(DMA_COMMAND, START | command);
    wait_until_clear(DMA_COMMAND, START);
}

static void fill(uint8_t *place, size_t len)
{
    for (size_t i = 0; i < len; i++)
        place[i] = (uint8_t)(i * 7 + 3);
}

/* Guest memory at RAM_ADDRESS; by descriptor, or by message only. */
static void map_ram(bool by_message)
{
    int fd = memfd_create("ram", MFD_CLOEXEC);

    CHECK(fd >= 0);
    CHECK_INT(ftruncate(fd, RAM_BYTES), 0);
    ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(ram != MAP_FAILED);
    CHECK_INT(ob_client_dma_map(card.client, RAM_ADDRESS, RAM_BYTES, OB_DMA_READ | OB_DMA_WRITE,
                                by_message ? -1 : fd, 0),
              0);
    close(fd);
}

static int dma_read(void *opaque, uint64_t address, void *data, uint32_t count)
{
    (void)opaque;
    if (address < RAM_ADDRESS || address + count > RAM_ADDRESS + RAM_BYTES)
        return -EFAULT;
    memcpy(data, ram + (address - RAM_ADDRESS), count);
    return 0;
}

static int dma_write(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    (void)opaque;
    if (address < RAM_ADDRESS || address + count > RAM_ADDRESS + RAM_BYTES)
        return -EFAULT;
    memcpy(ram + (address - RAM_ADDRESS), data, count);
    return 0;
}

static void stop_and_unmap(void)
{
    served_stop(&card);
    munmap(ram, RAM_BYTES);
}

TEST(registers, "registers-do-as-specified")
{
    start(NULL, NULL);
    CHECK_INT(served_read(&card, OB_PCI_REGION_CONFIG, 0, 4), 0x11e81234);
    CHECK_INT(get(IDENTIFICATION), 0x010000ed);
    set(LIVENESS, 0x12345678);
    CHECK_INT(get(LIVENESS), (uint32_t)~0x12345678u);
    set(IDENTIFICATION, 0);
    CHECK_INT(get(IDENTIFICATION), 0x010000ed);
    CHECK_INT(get(0x0c), UINT32_MAX);
    CHECK_INT(get(IRQ_RAISE), UINT32_MAX);
    served_stop(&card);
}

TEST(sizes, "access-of-a-wrong-size-reads-ones-and-writes-nothing")
{
    start(NULL, NULL);
    set(LIVENESS, 0);
    CHECK_INT(served_read(&card, 0, LIVENESS, 1), 0xff);
    CHECK_INT(served_read(&card, 0, LIVENESS, 2), 0xffff);
    CHECK_INT(served_read(&card, 0, IDENTIFICATION, 8), UINT64_MAX);
    CHECK_INT(served_read(&card, 0, DMA_SOURCE + 2, 4), UINT32_MAX);
    served_write(&card, 0, LIVENESS, 2, 0x1234);
    CHECK_INT(get(LIVENESS), UINT32_MAX);
    CHECK_INT(served_read(&card, 0, 0xa0, 8), UINT64_MAX);
    CHECK_INT(served_read(&card, 0, 0xffffc, 4), UINT32_MAX);
    served_stop(&card);
}

TEST(halves, "dma-registers-are-set-whole-or-by-halves")
{
    start(NULL, NULL);
    served_write(&card, 0, DMA_SOURCE, 8, 0x1122334455667788);
    CHECK_INT(served_read(&card, 0, DMA_SOURCE, 8), 0x1122334455667788);
    CHECK_INT(get(DMA_SOURCE + 4), 0x11223344);
    set(DMA_SOURCE, 0xaabbccdd);
    CHECK_INT(served_read(&card, 0, DMA_SOURCE, 8), 0xaabbccdd);
    set(DMA_SOURCE + 4, 0x99);
    CHECK_INT(served_read(&card, 0, DMA_SOURCE, 8), 0x99aabbccdd);
    served_stop(&card);
}

TEST(factorials, "factorial-is-computed-modulo-2^32")
{
    static const struct {
        uint32_t n, result;
    } known[] = { { 0, 1 },           { 1, 1 },  { 5, 120 },       { 12, 479001600 },
                  { 13, 1932053504 }, { 34, 0 }, { UINT32_MAX, 0 } };

    start(NULL, NULL);
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        set(FACTORIAL, known[i].n);
        wait_until_clear(STATUS, 1);
        CHECK_INT(get(FACTORIAL), known[i].result);
        CHECK_INT(get(IRQ_STATUS), 0);
    }
    served_stop(&card);
}

TEST(busy, "work-under-way-is-busy-and-not-disturbed")
{
    static const char *const args[] = { "--latency-ms", "60000", NULL };

    start(args, NULL);
    set(FACTORIAL, 5);
    CHECK_INT(get(STATUS), 0x01);
    set(FACTORIAL, 6);
    CHECK_INT(get(FACTORIAL), 5);
    set(STATUS, 0x80);
    CHECK_INT(get(STATUS), 0x81);
    set(DMA_COUNT, 100);
    set(DMA_COMMAND, START);
    set(DMA_COUNT, 1);
    set(DMA_COMMAND, 0);
    CHECK_INT(get(DMA_COUNT), 100);
    CHECK_INT(get(DMA_COMMAND), START);
    CHECK_INT(ob_client_reset(card.client), 0);
    CHECK_INT(get(STATUS), 0);
    CHECK_INT(get(DMA_COMMAND), 0);
    served_stop(&card);
}

TEST(intx, "intx-stays-asserted-until-every-bit-is-acknowledged")
{
    start(NULL, NULL);
    int irq = served_irq(&card, OB_PCI_IRQ_INTX);

    set(IRQ_RAISE, 0x3);
    CHECK(served_signalled(irq, SOON_MS));
    CHECK_INT(get(IRQ_STATUS), 0x3);
    set(IRQ_ACKNOWLEDGE, 0x1);
    CHECK_INT(ob_client_irq_mask(card.client, OB_PCI_IRQ_INTX, 0, false), 0);
    CHECK(served_signalled(irq, SOON_MS));
    set(IRQ_ACKNOWLEDGE, 0x2);
    CHECK_INT(get(IRQ_STATUS), 0);
    CHECK_INT(ob_client_irq_mask(card.client, OB_PCI_IRQ_INTX, 0, false), 0);
    CHECK(!served_signalled(irq, NOW));
    set(IRQ_RAISE, 0); /* nothing is raised */
    CHECK(!served_signalled(irq, NOW));
    close(irq);
    served_stop(&card);
}

TEST(msi, "msi-is-used-once-armed")
{
    start(NULL, NULL);
    int intx = served_irq(&card, OB_PCI_IRQ_INTX), msi = served_irq(&card, OB_PCI_IRQ_MSI);

    set(STATUS, 0x80); /* interrupt when the factorial is done */
    set(FACTORIAL, 3);
    CHECK(served_signalled(msi, SOON_MS));
    CHECK_INT(get(IRQ_STATUS), 0x1);
    CHECK_INT(get(FACTORIAL), 6);
    set(IRQ_ACKNOWLEDGE, 0x1);
    CHECK(!served_signalled(msi, NOW));
    CHECK(!served_signalled(intx, NOW));
    close(msi);
    close(intx);
    served_stop(&card);
}

static void round_trip(bool by_message)
{
    const struct ob_client_options options = { .size = sizeof(options),
                                               .dma_read = dma_read,
                                               .dma_write = dma_write };

    start(NULL, &options);
    map_ram(by_message);
    fill(ram + 100, 4096);
    transfer(RAM_ADDRESS + 100, BUFFER, 4096, 0);
    transfer(BUFFER, RAM_ADDRESS + 0x8001, 4096, TO_RAM);
    CHECK_MEM(ram + 0x8001, ram + 100, 4096);
    transfer(BUFFER + 4095, RAM_ADDRESS, 1, TO_RAM);
    CHECK_INT(ram[0], ram[100 + 4095]);
    stop_and_unmap();
}

TEST(dma_shared, "dma-moves-data-through-shared-memory")
{
    round_trip(false);
}

TEST(dma_message, "dma-moves-data-by-message")
{
    round_trip(true);
}

TEST(dma_interrupt, "dma-interrupts-when-done")
{
    start(NULL, NULL);
    map_ram(false);
    int irq = served_irq(&card, OB_PCI_IRQ_INTX);

    set(DMA_SOURCE, RAM_ADDRESS);
    set(DMA_DESTINATION, BUFFER);
    set(DMA_COUNT, 16);
    set(DMA_COMMAND, START | INTERRUPT);
    CHECK(served_signalled(irq, SOON_MS));
    CHECK_INT(get(IRQ_STATUS), 0x100);
    CHECK_INT(get(DMA_COMMAND), INTERRUPT);
    close(irq);
    stop_and_unmap();
}

TEST(dma_bounds, "dma-past-the-buffer-moves-nothing")
{
    start(NULL, NULL);
    map_ram(false);
    memset(ram, 0x55, RAM_BYTES);
    transfer(RAM_ADDRESS, BUFFER, 4096, 0);
    memset(ram, 0xaa, RAM_BYTES);
    transfer(BUFFER + 1, RAM_ADDRESS, 4096, TO_RAM);
    transfer(BUFFER - 1, RAM_ADDRESS, 1, TO_RAM);
    transfer(BUFFER + 4096, RAM_ADDRESS, 1, TO_RAM);
    transfer(BUFFER, RAM_ADDRESS, 4097, TO_RAM);
    transfer(BUFFER, RAM_ADDRESS, UINT64_MAX, TO_RAM);
    transfer(UINT64_MAX, RAM_ADDRESS, 2, TO_RAM);
    for (size_t i = 0; i < RAM_BYTES; i++)
        CHECK_INT(ram[i], 0xaa);
    stop_and_unmap();
}

TEST(dma_unmapped, "dma-from-nowhere-reads-ones")
{
    start(NULL, NULL);
    map_ram(false);
    transfer(RAM_ADDRESS + RAM_BYTES, BUFFER, 8, 0);
    transfer(BUFFER, RAM_ADDRESS, 16, TO_RAM);
    CHECK_MEM(ram, "\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0", 16);
    stop_and_unmap();
}

TEST(dma_master, "dma-needs-bus-mastering")
{
    start(NULL, NULL);
    map_ram(false);
    memset(ram, 0xaa, 8);
    served_write(&card, OB_PCI_REGION_CONFIG, COMMAND, 2, 0x2);
    transfer(BUFFER, RAM_ADDRESS, 8, TO_RAM);
    CHECK_INT(ram[0], 0xaa);
    served_write(&card, OB_PCI_REGION_CONFIG, COMMAND, 2, MEMORY_AND_BUS_MASTER);
    transfer(BUFFER, RAM_ADDRESS, 8, TO_RAM);
    CHECK_INT(ram[0], 0);
    stop_and_unmap();
}

TEST(dma_mask, "dma-addresses-are-cut-to-the-mask")
{
    static const char *const args[] = { "--dma-mask=0x1fffff", NULL };

    start(args, NULL);
    map_ram(false);
    fill(ram, 64);
    transfer(0xf00000000u + RAM_ADDRESS, BUFFER, 64, 0);
    transfer(BUFFER, RAM_ADDRESS + 0x1000, 64, TO_RAM);
    CHECK_MEM(ram + 0x1000, ram, 64);
    stop_and_unmap();
}

TEST(options, "wrong-option-values-are-refused")
{
    served_refuses(&ob_served_edu, (const char *const[]){ "--dma-mask=mask", NULL }, 2,
                   "--dma-mask takes a number from 0 to 18446744073709551615, not 'mask'");
    served_refuses(&ob_served_edu, (const char *const[]){ "--latency-ms", "60001", NULL }, 2,
                   "--latency-ms takes a number from 0 to 60000, not '60001'");
}
