/* SPDX-License-Identifier: BSD-3-Clause */
/* The PC: an i440FX board with its old interrupt controllers, and one processor's local APIC. */
#include "machine.h"

#define SERIAL        0x3f8
#define SERIAL_STATUS (SERIAL + 5)
#define SERIAL_READY  0x20
#define DEBUG_EXIT    0xf4

#define PCI_ADDRESS 0xcf8
#define PCI_DATA    0xcfc

#define PIC_MASTER 0x20
#define PIC_SLAVE  0xa0
#define PIC_VECTOR 0x20 /* of line 0 */
#define PIC_END    0x20

#define APIC                 0xfee00000u
#define APIC_ID              (APIC + 0x20)
#define APIC_PRIORITY        (APIC + 0x80)
#define APIC_EOI             (APIC + 0xb0)
#define APIC_SPURIOUS        (APIC + 0xf0)
#define APIC_LINT0           (APIC + 0x350)
#define APIC_SPURIOUS_VECTOR 0xff
#define APIC_ENABLE          0x100u
#define APIC_EXTERNAL        0x700u /* the vector comes from the old controllers */

void print(const char *text)
{
    for (; *text; text++) {
        while (!(in8(SERIAL_STATUS) & SERIAL_READY))
            ;
        out8(SERIAL, (uint8_t)*text);
    }
}

void print_hex(uint32_t value)
{
    char text[] = "0x00000000";

    for (int i = 9; i > 1; i--, value >>= 4)
        text[i] = "0123456789abcdef"[value & 15];
    print(text);
}

_Noreturn void end(uint32_t code)
{
    out32(DEBUG_EXIT, code);
    for (;;)
        __asm__ volatile("cli; hlt");
}

void expect(const char *what, uint32_t value, uint32_t wanted)
{
    if (value == wanted)
        return;
    print("FAILED: ");
    print(what);
    print(" is ");
    print_hex(value);
    print(", not ");
    print_hex(wanted);
    print("\n");
    end(END_FAILED);
}

static void pci_select(int slot, uint8_t offset)
{
    out32(PCI_ADDRESS, 0x80000000u | (uint32_t)slot << 11 | offset);
}

uint32_t pci_read(int slot, uint8_t offset)
{
    pci_select(slot, offset);
    return in32(PCI_DATA);
}

void pci_write(int slot, uint8_t offset, uint32_t value)
{
    pci_select(slot, offset);
    out32(PCI_DATA, value);
}

int pci_find(uint32_t id)
{
    for (int slot = 0; slot < 32; slot++)
        if (pci_read(slot, PCI_ID) == id)
            return slot;
    return -1;
}

uint8_t pci_capability(int slot, uint8_t id)
{
    uint8_t at = (uint8_t)pci_read(slot, PCI_CAPABILITIES);

    for (int budget = 48; at && budget > 0; budget--) {
        uint32_t header = pci_read(slot, at);

        if ((header & 0xff) == id)
            return at;
        at = (uint8_t)(header >> 8);
    }
    return 0;
}

struct gate {
    uint16_t offset_low, selector, type, offset_high;
};

static struct gate gates[256];

void interrupts_set_handler(uint8_t vector, void (*entry)(void))
{
    uint32_t address = (uint32_t)entry;

    gates[vector] = (struct gate){ (uint16_t)address, 8, 0x8e00, (uint16_t)(address >> 16) };
}

INTERRUPT_ENTRY(unexpected);
static void unexpected(void)
{
    print("FAILED: an exception, or an interrupt that nobody asked for\n");
    end(END_FAILED);
}

/* A line went down between the processor's being told and its asking for the vector: the controller
 * then gives that of its last line, and is not in service. The slave's cascade is. */
INTERRUPT_ENTRY(spurious);
static void spurious(void)
{
}

INTERRUPT_ENTRY(spurious_slave);
static void spurious_slave(void)
{
    out8(PIC_MASTER, PIC_END);
}

/* Both controllers: start, first vector, wiring, mode. All lines masked but that of the slave. */
static void pic_init(void)
{
    static const uint8_t words[2][4] = { { 0x11, PIC_VECTOR, 4, 1 },
                                         { 0x11, PIC_VECTOR + 8, 2, 1 } };
    static const uint16_t ports[2] = { PIC_MASTER, PIC_SLAVE };

    for (int i = 0; i < 2; i++)
        for (int word = 0; word < 4; word++)
            out8((uint16_t)(ports[i] + (word > 0)), words[i][word]);
    out8(PIC_MASTER + 1, (uint8_t)~4u);
    out8(PIC_SLAVE + 1, 0xff);
}

void interrupts_init(void)
{
    struct {
        uint16_t limit;
        uint32_t base;
    } __attribute__((packed)) pointer = { sizeof(gates) - 1, (uint32_t)gates };

    for (int vector = 0; vector < 256; vector++)
        interrupts_set_handler((uint8_t)vector, unexpected_entry);
    interrupts_set_handler(APIC_SPURIOUS_VECTOR, spurious_entry);
    interrupts_set_handler(PIC_VECTOR + 7, spurious_entry);
    interrupts_set_handler(PIC_VECTOR + 15, spurious_slave_entry);
    __asm__ volatile("lidt %0" : : "m"(pointer));
    pic_init();
    write32(APIC_SPURIOUS, APIC_ENABLE | APIC_SPURIOUS_VECTOR);
    write32(APIC_PRIORITY, 0);
    write32(APIC_LINT0, APIC_EXTERNAL);
}

uint8_t line_enable(uint8_t irq)
{
    uint16_t port = irq < 8 ? PIC_MASTER + 1 : PIC_SLAVE + 1;

    out8(port, (uint8_t)(in8(port) & ~(1u << irq % 8)));
    return (uint8_t)(PIC_VECTOR + irq);
}

void line_end(uint8_t irq)
{
    if (irq >= 8)
        out8(PIC_SLAVE, PIC_END);
    out8(PIC_MASTER, PIC_END);
}

uint32_t message_address(void)
{
    return APIC | (read32(APIC_ID) >> 24) << 12;
}

void message_end(void)
{
    write32(APIC_EOI, 0);
}
