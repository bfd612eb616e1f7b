/* SPDX-License-Identifier: BSD-3-Clause */
/* The PC under the bare-metal guest: ports, PCI configuration, interrupts, and a way to report. */
#ifndef OB_BAREMETAL_MACHINE_H
#define OB_BAREMETAL_MACHINE_H

#include <stdint.h>

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;

    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;

    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void write32(uint32_t address, uint32_t value)
{
    *(volatile uint32_t *)address = value;
}

static inline uint32_t read32(uint32_t address)
{
    return *(volatile uint32_t *)address;
}

/* Sleeps until an interrupt was handled. They are off before and after. */
static inline void wait_for_interrupt(void)
{
    __asm__ volatile("sti; hlt; cli" : : : "memory");
}

/* ---- Reporting: a line a step on the first serial port ------------------------------------- */

void print(const char *text);
void print_hex(uint32_t value);
/* Ends QEMU through its device isa-debug-exit, whose exit status is then 2 * code + 1. */
_Noreturn void end(uint32_t code);
enum { END_PASSED = 16, END_FAILED = 17 };

/* Ends with a message when value is not what it should be. */
void expect(const char *what, uint32_t value, uint32_t wanted);

/* ---- PCI: bus 0, configuration mechanism 1 ------------------------------------------------- */

#define PCI_ID             0x00
#define PCI_COMMAND        0x04
#define PCI_BAR0           0x10
#define PCI_CAPABILITIES   0x34
#define PCI_INTERRUPT_LINE 0x3c

#define PCI_COMMAND_MEMORY       0x002u
#define PCI_COMMAND_MASTER       0x004u
#define PCI_COMMAND_INTX_DISABLE 0x400u

/* The slot (0-31) of the device with this vendor (low half) and device ID, or -1. */
int pci_find(uint32_t id);
/* Aligned four bytes. */
uint32_t pci_read(int slot, uint8_t offset);
void pci_write(int slot, uint8_t offset, uint32_t value);
/* Offset of a capability, or 0. */
uint8_t pci_capability(int slot, uint8_t id);

/* ---- Interrupts ---------------------------------------------------------------------------- */

/*
 * Defines name_entry, an interrupt entry that calls the function name. It returns without `iret`,
 * with interrupts off as wait_for_interrupt() wants them: where KVM emulates the guest's
 * instructions because it is nested in a hypervisor that gives it nothing better, protected mode
 * has no `iret`. `ret $8` takes the return address, and drops CS and EFLAGS.
 */
#define INTERRUPT_ENTRY(name)                                       \
    void name##_entry(void);                                        \
    __attribute__((used)) static void name(void);                   \
    __asm__(".text\n" #name "_entry: pushal; cld; call " #name "; " \
            "popal; ret $8")

/* Interrupts stay off until wait_for_interrupt(). Exceptions end the guest with a message. */
void interrupts_init(void);
void interrupts_set_handler(uint8_t vector, void (*entry)(void));
/* Lets a line of the old interrupt controllers through. Returns its vector. */
uint8_t line_enable(uint8_t irq);
void line_end(uint8_t irq);
/* The message that makes this vector pending at our local APIC goes to this address. */
uint32_t message_address(void);
void message_end(void);

#endif
