/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device that has everything: BAR 0 with registers that make it do DMA and interrupts at once,
 * inside the access, and with MSI-X; BAR 1 of which two areas are mappable, BAR 2 that is mappable
 * as a whole, an expansion ROM, a region of its own kind; MSI, INTx, ioeventfds; migration.
 *
 * Registers of 8 bytes: 0x00 address, 0x08 length, 0x10 command (low byte enum kit_command, the
 * others its operands).
 */
#ifndef OB_FUZZ_KIT_H
#define OB_FUZZ_KIT_H

#include "devices/device.h"

enum kit_command {
    KIT_NOTHING,
    KIT_DMA_READ,
    KIT_DMA_WRITE,
    KIT_GET,     /* slot, prot: keeps a piece of memory in place */
    KIT_PUT,     /* slot */
    KIT_TOUCH,   /* slot: reads and writes all of it */
    KIT_TRIGGER, /* index, vector */
    KIT_NOTIFY,  /* vector */
    KIT_INTX,    /* level */
    KIT_FAIL,    /* errno */
    KIT_COMMANDS
};

/* What KIT_GET holds is let go when the client wants it back, or not. */
extern const struct ob_served kit_served;

#endif
