/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What an access to a register costs the guest: for each educational device on the bus (QEMU's own
 * beside ours) prints lines `SLOT read TICKS` and `SLOT write TICKS`, in ticks of the time stamp
 * counter for one access, ten times each. Who runs this knows how long a tick is.
 */
#include "machine.h"

#define EDU      0x11e81234u
#define LIVENESS 4u /* reads as the complement of what was written */

enum { ROUNDS = 10, OPS = 5000, WINDOW = 0xe0000000u, WINDOW_SIZE = 0x100000u };

static uint64_t ticks(void)
{
    uint32_t low, high;

    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static uint32_t per_access(uint64_t start)
{
    uint64_t elapsed = ticks() - start;

    /* There is no library for a division of 64 bits, nor need for one: a round is short. */
    return (uint32_t)(elapsed >> 3) / (OPS / 8);
}

static void report(int slot, const char *what, uint32_t value)
{
    print_hex((uint32_t)slot);
    print(what);
    print_hex(value);
    print("\n");
}

static void measure(int slot, uint32_t bar)
{
    uint64_t start = ticks();

    for (uint32_t i = 0; i < OPS; i++)
        read32(bar + LIVENESS);
    report(slot, " read ", per_access(start));
    start = ticks();
    for (uint32_t i = 0; i < OPS; i++)
        write32(bar + LIVENESS, i);
    report(slot, " write ", per_access(start));
    expect("the last value written", read32(bar + LIVENESS), ~(uint32_t)(OPS - 1));
}

void guest_main(void);
void guest_main(void)
{
    for (int round = 0; round < ROUNDS; round++)
        for (int slot = 0; slot < 32; slot++) {
            uint32_t bar = WINDOW + (uint32_t)slot * WINDOW_SIZE;

            if (pci_read(slot, PCI_ID) != EDU)
                continue;
            pci_write(slot, PCI_BAR0, bar);
            pci_write(slot, PCI_COMMAND, PCI_COMMAND_MEMORY);
            measure(slot, bar);
        }
    end(END_PASSED);
}
