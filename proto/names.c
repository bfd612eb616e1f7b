/* SPDX-License-Identifier: BSD-3-Clause */
/* Printable names of numbers on the wire. Constant data: any thread may use it. */
#include "outboard/proto.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

const char *ob_strreason(enum ob_reason reason)
{
    switch (reason) {
    case OB_OK:
        return "no error";
    case OB_BAD_TYPE:
        return "neither a command nor the expected reply";
    case OB_BAD_CMD:
        return "unknown or unexpected command number";
    case OB_BAD_DIRECTION:
        return "a command of the other side";
    case OB_BAD_STATE:
        return "a command that is not allowed at this point of the connection";
    case OB_BAD_FLAGS:
        return "undefined header flags";
    case OB_TOO_SHORT:
        return "message too short";
    case OB_TOO_LONG:
        return "message too long";
    case OB_TOO_MANY_FDS:
        return "too many file descriptors";
    }
    return "unknown reason";
}

const char *ob_strcmd(uint16_t cmd)
{
    const struct ob_msg_type *type = ob_msg_type(cmd);

    return type ? type->name : "command";
}

const char *ob_strirq(unsigned index)
{
    static const char *const names[] = { "INTx", "MSI", "MSI-X", "ERR", "REQ" };

    _Static_assert(COUNT(names) == OB_PCI_IRQS, "an IRQ index has no name");
    return index < COUNT(names) ? names[index] : "IRQ";
}

const char *ob_strregion(unsigned index)
{
    static const char *const names[] = { "BAR0", "BAR1", "BAR2",   "BAR3", "BAR4",
                                         "BAR5", "ROM",  "config", "VGA" };

    _Static_assert(COUNT(names) == OB_PCI_REGIONS, "a region index has no name");
    return index < COUNT(names) ? names[index] : "region";
}

const char *ob_strfeature(unsigned feature)
{
    switch (feature) {
    case OB_FEATURE_MIGRATION:
        return "MIGRATION";
    case OB_FEATURE_MIG_DEVICE_STATE:
        return "MIG_DEVICE_STATE";
    case OB_FEATURE_DMA_LOGGING_START:
        return "DMA_LOGGING_START";
    case OB_FEATURE_DMA_LOGGING_STOP:
        return "DMA_LOGGING_STOP";
    case OB_FEATURE_DMA_LOGGING_REPORT:
        return "DMA_LOGGING_REPORT";
    default:
        return "feature";
    }
}
