/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The part of a memo that is about config space: the registers that hold what a driver wrote last.
 * They are restored on the attempt, and what was written since goes first over the new connection.
 */
#include "client/memo.h"

#include <linux/pci_regs.h>
#include <string.h>

bool ob_memo_is_config(const struct ob_memo *s, uint32_t region)
{
    return region == OB_PCI_REGION_CONFIG && (s->identity.info.flags & OB_DEVICE_PCI);
}

static void keep(struct ob_memo *s, unsigned offset, unsigned len)
{
    for (unsigned i = offset; i < offset + len && i < OB_MEMO_CONFIG; i++)
        s->config_kept[i] = true;
}

/* Where a function-level reset is asked for, by the PCI Express or the Advanced Features one. */
static void find_flr(struct ob_memo *s, const uint8_t *config, unsigned pos)
{
    if (pos + PCI_EXP_DEVCTL + 1 < OB_MEMO_CONFIG && config[pos] == PCI_CAP_ID_EXP &&
        (config[pos + PCI_EXP_DEVCAP + 3] & PCI_EXP_DEVCAP_FLR >> 24)) {
        s->flr_at = pos + PCI_EXP_DEVCTL + 1;
        s->flr_bit = PCI_EXP_DEVCTL_BCR_FLR >> 8;
    } else if (pos + PCI_AF_CTRL < OB_MEMO_CONFIG && config[pos] == PCI_CAP_ID_AF &&
               (config[pos + PCI_AF_CAP] & PCI_AF_CAP_FLR)) {
        s->flr_at = pos + PCI_AF_CTRL;
        s->flr_bit = PCI_AF_CTRL_FLR;
    }
}

/* Registers that hold what was written last, and do nothing else. Others stay as the server has
 * them: a bit written again might be a command, such as a reset. */
void ob_memo_keep_config(struct ob_memo *s)
{
    const uint8_t *config = s->identity.config;
    unsigned pos = config[PCI_STATUS] & PCI_STATUS_CAP_LIST ? config[PCI_CAPABILITY_LIST] : 0;

    keep(s, PCI_COMMAND, 2);
    keep(s, PCI_BASE_ADDRESS_0, 24);
    keep(s, PCI_ROM_ADDRESS, 4);
    keep(s, PCI_INTERRUPT_LINE, 1);
    for (unsigned i = 0; i < OB_MEMO_CONFIG / 4 && (pos &= ~3u) >= PCI_STD_HEADER_SIZEOF; i++) {
        unsigned flags = pos + 3 < OB_MEMO_CONFIG ? config[pos + 2] : 0;

        if (config[pos] == PCI_CAP_ID_MSI)
            keep(s, pos + PCI_MSI_FLAGS,
                 (flags & PCI_MSI_FLAGS_64BIT ? 12 : 8) + (flags & PCI_MSI_FLAGS_MASKBIT ? 6 : 0));
        else if (config[pos] == PCI_CAP_ID_MSIX)
            keep(s, pos + PCI_MSIX_FLAGS, 2);
        else
            find_flr(s, config, pos);
        pos = config[pos + 1];
    }
}

void ob_memo_note_write(struct ob_client *c, uint32_t region, uint64_t offset, const void *data,
                        uint32_t count)
{
    struct ob_memo *s = c->memo;
    const uint8_t *bytes = data;

    if (!s || !ob_memo_is_config(s, region))
        return;
    ob_client_lock(c);
    for (uint32_t i = 0; i < count && offset + i < OB_MEMO_CONFIG; i++) {
        s->config.bytes[offset + i] = bytes[i];
        s->config.set[offset + i] = true;
    }
    if (s->flr_at && offset <= s->flr_at && s->flr_at - offset < count &&
        (bytes[s->flr_at - offset] & s->flr_bit))
        ob_memo_forget_locked(s);
    ob_client_unlock(c);
}

/* How many bytes from there on one aligned write restores; 0: none. */
static unsigned config_run(const struct ob_memo *s, const struct ob_memo_config *config,
                           unsigned at)
{
    unsigned len = 4;

    for (; len > 0; len /= 2) {
        bool whole = at % len == 0;

        for (unsigned i = 0; i < len; i++)
            whole = whole && config->set[at + i] && s->config_kept[at + i];
        if (whole)
            break;
    }
    return len;
}

/* A server may refuse a write to a register that it does not have. */
static int restore_config_at(const struct ob_memo *s, struct ob_client *n, unsigned at,
                             unsigned len)
{
    int rc =
        len ? ob_client_region_write(n, OB_PCI_REGION_CONFIG, at, s->restored.bytes + at, len) : 0;

    return ob_err_is_final(rc) ? 0 : rc;
}

/* The command register, which lets the device work, comes last. */
int ob_memo_restore_config(struct ob_client *c, struct ob_client *n)
{
    struct ob_memo *s = c->memo;
    unsigned len;
    int rc = 0;

    ob_client_lock(c);
    s->restored = s->config;
    ob_client_unlock(c);
    for (unsigned at = PCI_COMMAND + 4; rc == 0 && at < OB_MEMO_CONFIG; at += len ? len : 1) {
        len = config_run(s, &s->restored, at);
        rc = restore_config_at(s, n, at, len);
    }
    return rc < 0 ? rc
                  : restore_config_at(s, n, PCI_COMMAND, config_run(s, &s->restored, PCI_COMMAND));
}

static void catch_up_at_locked(struct ob_client *c, unsigned at, unsigned len)
{
    const struct ob_memo *s = c->memo;
    const struct ob_wire_region_access wire = { at, OB_PCI_REGION_CONFIG, len };

    if (memcmp(s->config.bytes + at, s->restored.bytes + at, len) != 0 ||
        memcmp(s->config.set + at, s->restored.set + at, len) != 0)
        ob_client_post_locked(c, &wire, s->config.bytes + at);
}

void ob_memo_catch_up_locked(struct ob_client *c)
{
    const struct ob_memo *s = c->memo;

    for (unsigned at = PCI_COMMAND + 4, len; at < OB_MEMO_CONFIG; at += len ? len : 1) {
        len = config_run(s, &s->config, at);
        catch_up_at_locked(c, at, len);
    }
    catch_up_at_locked(c, PCI_COMMAND, config_run(s, &s->config, PCI_COMMAND));
}
