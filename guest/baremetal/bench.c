/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Measures the edu device without an operating system, for bench/run: how many ticks of the
 * time-stamp counter a read of a register takes ("read 0x...", a line each) and a write ("post
 * 0x..."), which is posted unless QEMU is told not to. Printed after it is measured: the serial
 * port is slow.
 */
#include "machine.h"

#define EDU_ID   0x11e81234u
#define EDU_BAR  0xd0000000u /* as in edu.c */
#define LIVENESS 0x04u
#define ROUNDS   400
#define BURST    200

static uint32_t reads[ROUNDS], posts[ROUNDS];

static uint32_t ticks(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return low; /* enough for a difference */
}

static void report(const char *what, const uint32_t *values)
{
    for (int i = 0; i < ROUNDS; i++) {
        print(what);
        print_hex(values[i]);
        print("\n");
    }
}

void guest_main(void);
void guest_main(void)
{
    int slot = pci_find(EDU_ID);

    expect("the edu device, missing,", slot < 0, 0);
    pci_write(slot, PCI_COMMAND, 0);
    pci_write(slot, PCI_BAR0, EDU_BAR);
    pci_write(slot, PCI_COMMAND, PCI_COMMAND_MEMORY);
    for (int i = 0; i < ROUNDS; i++) {
        uint32_t before = ticks();

        read32(EDU_BAR + LIVENESS);
        reads[i] = ticks() - before;
    }
    for (int i = 0; i < ROUNDS; i++) {
        uint32_t before = ticks();

        write32(EDU_BAR + LIVENESS, (uint32_t)i);
        posts[i] = ticks() - before;
        if (i % BURST == BURST - 1)
            read32(EDU_BAR + LIVENESS);
    }
    report("read ", reads);
    report("post ", posts);
    end(END_PASSED);
}
