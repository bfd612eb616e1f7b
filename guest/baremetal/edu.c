/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Drives the edu device without an operating system: registers, DMA both ways, INTx and MSI. A
 * 32-bit program, because KVM nested in some hypervisors runs those only. It says each step on the
 * serial port and tells the outcome through isa-debug-exit.
 *
 * All waiting is for the device; whoever runs this has a deadline.
 */
#include "machine.h"

#define EDU_ID 0x11e81234u
#define EDU_BARS                                                                    \
    0xd0000000u /* in the PC's hole for PCI, away from where the firmware puts BARs \
                 */

#define REG_ID        0x00u
#define REG_LIVENESS  0x04u
#define REG_FACTORIAL 0x08u
#define REG_STATUS    0x20u
#define REG_IRQ       0x24u
#define REG_RAISE     0x60u
#define REG_ACK       0x64u
#define REG_DMA_FROM  0x80u
#define REG_DMA_TO    0x88u
#define REG_DMA_COUNT 0x90u
#define REG_DMA_CMD   0x98u

#define STATUS_COMPUTING 0x01u
#define DMA_START        0x1u
#define DMA_TO_RAM       0x2u
#define DMA_IRQ          0x4u
#define DMA_DONE_IRQ     0x100u
#define CARD_BUFFER      0x40000u
#define CARD_BYTES       2048u /* not all of it: QEMU's own edu takes its last byte for outside */

#define MSI_VECTOR  0x50
#define MSI_ENABLE  0x00010000u
#define MSI_64BIT   0x00800000u
#define MSI_MASKING 0x01000000u

#define ROUNDS 200

static int slot;
static uint32_t bar;
static uint8_t irq;

static uint8_t source[CARD_BYTES], target[CARD_BYTES];

/* Written by the handlers. */
static volatile uint32_t delivered, entered, last_bits;
static volatile uint32_t ignore; /* leave the device alone this many times */

static void step(const char *what)
{
    print("ok ");
    print(what);
    print("\n");
}

static uint32_t reg(uint32_t offset)
{
    return read32(bar + offset);
}

static void set_reg(uint32_t offset, uint32_t value)
{
    write32(bar + offset, value);
}

/* An interrupt line may still be up for a moment after the device was told to take it down: such
 * an interrupt finds no bits, and is not one of the device. */
static void serve_device(void)
{
    uint32_t bits;

    entered++;
    if (ignore) {
        ignore--;
        return;
    }
    bits = reg(REG_IRQ);
    if (!bits)
        return;
    set_reg(REG_ACK, bits);
    last_bits = bits;
    delivered++;
}

INTERRUPT_ENTRY(on_line);
static void on_line(void)
{
    serve_device();
    line_end(irq);
}

INTERRUPT_ENTRY(on_message);
static void on_message(void)
{
    serve_device();
    message_end();
}

static void wait_for(uint32_t count)
{
    while (delivered < count)
        wait_for_interrupt();
}

static void set_command(uint32_t bits)
{
    pci_write(slot, PCI_COMMAND, bits);
}

/* Finds how large BAR 0 is, and puts it at address. */
static void place_bar(uint32_t address)
{
    set_command(0);
    pci_write(slot, PCI_BAR0, 0xffffffffu);
    expect("the size of BAR 0", ~(pci_read(slot, PCI_BAR0) & ~0xfu) + 1, 0x100000);
    pci_write(slot, PCI_BAR0, address);
    expect("BAR 0", pci_read(slot, PCI_BAR0), address);
    bar = address;
    set_command(PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

static void test_registers(void)
{
    for (int move = 0; move < 3; move++) {
        place_bar(EDU_BARS + (uint32_t)move * 0x100000u);
        expect("the identification", reg(REG_ID), 0x010000ed);
    }
    step("bar-moves");
    set_reg(REG_LIVENESS, 0x12345678);
    expect("the liveness register", reg(REG_LIVENESS), ~0x12345678u);
    set_reg(REG_FACTORIAL, 10);
    while (reg(REG_STATUS) & STATUS_COMPUTING)
        ;
    expect("10!", reg(REG_FACTORIAL), 3628800);
    step("registers");
}

static void start_dma(uint32_t from, uint32_t to, uint32_t command)
{
    set_reg(REG_DMA_FROM, from);
    set_reg(REG_DMA_TO, to);
    set_reg(REG_DMA_COUNT, CARD_BYTES);
    set_reg(REG_DMA_CMD, command | DMA_START);
}

static void wait_for_dma(void)
{
    while (reg(REG_DMA_CMD) & DMA_START)
        ;
}

static void test_dma(void)
{
    for (uint32_t i = 0; i < CARD_BYTES; i++)
        source[i] = (uint8_t)(i * 7 + (i >> 8));
    start_dma((uint32_t)source, CARD_BUFFER, 0);
    wait_for_dma();
    start_dma(CARD_BUFFER, (uint32_t)target, DMA_TO_RAM);
    wait_for_dma();
    __asm__ volatile("" : : : "memory");
    for (uint32_t i = 0; i < CARD_BYTES; i++)
        expect("a byte that went through the card", target[i], source[i]);
    step("dma");
}

static void raise_and_wait(void)
{
    for (uint32_t i = 1; i <= ROUNDS; i++) {
        set_reg(REG_RAISE, i);
        wait_for(i);
        expect("the bits of the interrupt", last_bits, i);
    }
    delivered = 0;
    start_dma(CARD_BUFFER, (uint32_t)target, DMA_TO_RAM | DMA_IRQ);
    wait_for(1);
    expect("the bits of the interrupt", last_bits, DMA_DONE_IRQ);
    expect("the interrupts still asserted", reg(REG_IRQ), 0);
    delivered = 0;
}

static void test_line(void)
{
    irq = (uint8_t)pci_read(slot, PCI_INTERRUPT_LINE);
    expect("the interrupt line, which the firmware assigned,", irq >= 3 && irq < 16, 1);
    interrupts_set_handler(line_enable(irq), on_line_entry);
    raise_and_wait();
    step("intx");

    /* A level stays until the device is served: the handler is entered again and again. */
    entered = 0;
    ignore = 3;
    set_reg(REG_RAISE, 1);
    wait_for(1);
    expect("the handler, entered less than four times,", entered < 4, 0);
    delivered = 0;
    step("intx-is-a-level");
}

/* Returns the offset of the mask register, or 0. */
static uint8_t enable_messages(void)
{
    uint8_t cap = pci_capability(slot, 5);
    uint32_t header = pci_read(slot, cap);

    expect("the MSI capability, missing,", cap == 0, 0);
    pci_write(slot, cap + 4, message_address());
    if (header & MSI_64BIT)
        pci_write(slot, cap + 8, 0);
    pci_write(slot, (uint8_t)(cap + (header & MSI_64BIT ? 12 : 8)), MSI_VECTOR);
    pci_write(slot, cap, header | MSI_ENABLE);
    if (!(header & MSI_MASKING))
        return 0;
    return (uint8_t)(cap + (header & MSI_64BIT ? 16 : 12));
}

static void test_messages(void)
{
    uint8_t mask;

    interrupts_set_handler(MSI_VECTOR, on_message_entry);
    set_command(PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
    mask = enable_messages();
    entered = 0;
    raise_and_wait();
    expect("the count of messages", entered, ROUNDS + 1);
    step("msi");
    if (!mask)
        return;

    pci_write(slot, mask, 1);
    set_reg(REG_RAISE, 1);
    while (!(pci_read(slot, mask + 4) & 1))
        ;
    expect("the count of messages while masked", entered, ROUNDS + 1);
    pci_write(slot, mask, 0);
    wait_for(1);
    expect("the pending bit", pci_read(slot, mask + 4), 0);
    expect("the count of messages once unmasked", entered, ROUNDS + 2);
    step("msi-mask");
}

void guest_main(void);
void guest_main(void)
{
    slot = pci_find(EDU_ID);
    expect("the edu device, missing,", slot < 0, 0);
    interrupts_init();
    test_registers();
    test_dma();
    test_line();
    test_messages();
    end(END_PASSED);
}
