/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Capabilities: the server's list is walked and checked, and a list of our own laid over it, each
 * capability at the server's offset. What cannot work, or would give the guest control of what
 * QEMU does itself, is left out of the list. Bodies stay the server's except MSI, MSI-X, and the
 * parts of the PCI Express capability that depend on where the device is plugged in.
 */
#include "device.h"

#define CAPS_MAX     48 /* what fits between 0x40 and 0x100 */
#define EXT_CAPS_MAX 960

#define FLR_BYTE_IN_EXP 9
#define FLR_BIT_IN_EXP  0x80

static void cap_hidden(ObPci *d, const char *name, const char *why)
{
    warn_report("%s (%s): the %s capability is hidden from the guest: %s", obq_type_name(d),
                d->link.name, name, why);
}

/* Takes bytes of a capability over: they read as pdev->config, and the guest writes only what
 * wmask lets it. */
static void cap_emulate(ObPci *d, unsigned offset, unsigned len)
{
    memset(d->emulated + offset, 0xff, len);
    memset(d->forward + offset, false, len);
}

static bool cap_link(ObPci *d, uint8_t id, uint8_t pos, unsigned size)
{
    if (pci_add_capability(PCI_DEVICE(d), id, pos, size, NULL) < 0) {
        return false;
    }
    cap_emulate(d, pos, PCI_CAP_FLAGS);
    return true;
}

static void cap_msi(ObPci *d, uint8_t pos, unsigned room)
{
    uint16_t flags = lduw_le_p(d->server_config + pos + PCI_MSI_FLAGS);
    unsigned order = (flags & PCI_MSI_FLAGS_QMASK) >> 1;
    bool wide = flags & PCI_MSI_FLAGS_64BIT, mask = flags & PCI_MSI_FLAGS_MASKBIT;
    unsigned message_end = wide ? PCI_MSI_DATA_64 + 2 : PCI_MSI_DATA_32 + 2;
    unsigned size = message_end + (mask ? 0x0a : 0);
    unsigned vectors;
    Error *err = NULL;

    if (room < size || order > 5 || !d->irqs[OB_PCI_IRQ_MSI].count) {
        cap_hidden(d, "MSI",
                   d->irqs[OB_PCI_IRQ_MSI].count ? "it is malformed"
                                                 : "the server has no such interrupts");
        return;
    }
    vectors = MIN(1u << order, pow2floor(d->irqs[OB_PCI_IRQ_MSI].count));
    if (msi_init(PCI_DEVICE(d), pos, vectors, wide, mask, &err) < 0) {
        cap_hidden(d, "MSI", error_get_pretty(err));
        error_free(err);
        return;
    }
    cap_emulate(d, pos, size);
    /* Not the masks: a server that obeys them too would hold back what we have to latch. */
    memset(d->forward + pos + PCI_MSI_FLAGS, true, message_end - PCI_MSI_FLAGS);
}

/* Whether [offset, offset + size) lies in a memory BAR that exists. */
static bool in_memory_bar(ObPci *d, unsigned bar, uint64_t offset, uint64_t size)
{
    return bar < OB_BARS && !(d->bars[bar].type & PCI_BASE_ADDRESS_SPACE_IO) &&
           offset <= d->bars[bar].size && size <= d->bars[bar].size - offset;
}

static void cap_msix(ObPci *d, uint8_t pos, unsigned room)
{
    const uint8_t *cap = d->server_config + pos;
    unsigned entries = MIN((lduw_le_p(cap + PCI_MSIX_FLAGS) & PCI_MSIX_FLAGS_QSIZE) + 1u,
                           d->irqs[OB_PCI_IRQ_MSIX].count);
    uint32_t table = ldl_le_p(cap + PCI_MSIX_TABLE), pba = ldl_le_p(cap + PCI_MSIX_PBA);
    unsigned table_bar = table & PCI_MSIX_FLAGS_BIRMASK, pba_bar = pba & PCI_MSIX_FLAGS_BIRMASK;
    uint32_t table_at = table & ~PCI_MSIX_FLAGS_BIRMASK, pba_at = pba & ~PCI_MSIX_FLAGS_BIRMASK;
    Error *err = NULL;

    if (room < MSIX_CAP_LENGTH || !entries) {
        cap_hidden(d, "MSI-X", entries ? "it is malformed" : "the server has no such interrupts");
        return;
    }
    if (!in_memory_bar(d, table_bar, table_at, entries * PCI_MSIX_ENTRY_SIZE) ||
        !in_memory_bar(d, pba_bar, pba_at, QEMU_ALIGN_UP(entries, 64) / 8)) {
        cap_hidden(d, "MSI-X", "its table or pending bits lie outside of the device's BARs");
        return;
    }
    if (msix_init(PCI_DEVICE(d), entries, &d->bars[table_bar].mr, table_bar, table_at,
                  &d->bars[pba_bar].mr, pba_bar, pba_at, pos, &err) < 0) {
        cap_hidden(d, "MSI-X", error_get_pretty(err));
        error_free(err);
        return;
    }
    d->msix_table_bar = table_bar;
    d->msix_pba_bar = pba_bar;
    for (unsigned i = 0; i < entries; i++) {
        msix_vector_use(PCI_DEVICE(d), i);
    }
    cap_emulate(d, pos, MSIX_CAP_LENGTH);
    memset(d->forward + pos + PCI_MSIX_FLAGS, true, 2);
}

/*
 * On the root complex the device is an integrated endpoint, which has no link; below a port an
 * endpoint with a link that is up. On a conventional bus there is no place for the capability.
 */
static void cap_express(ObPci *d, uint8_t pos, unsigned room)
{
    PCIDevice *pdev = PCI_DEVICE(d);
    const uint8_t *cap = d->server_config + pos;
    uint8_t *config = pdev->config + pos;
    unsigned version = lduw_le_p(cap + PCI_EXP_FLAGS) & PCI_EXP_FLAGS_VERS;
    unsigned size = version > 1 ? 0x3c : 0x14;
    bool integrated = pci_bus_is_root(pci_get_bus(pdev));

    if (!pci_is_express(pdev) || room < size || !cap_link(d, PCI_CAP_ID_EXP, pos, size)) {
        return;
    }
    pdev->exp.exp_cap = pos;
    cap_emulate(d, pos + PCI_EXP_FLAGS, 2);
    pci_set_word(config + PCI_EXP_FLAGS,
                 version | (integrated ? PCI_EXP_TYPE_RC_END : PCI_EXP_TYPE_ENDPOINT) << 4);
    cap_emulate(d, pos + PCI_EXP_LNKCAP, 4);
    cap_emulate(d, pos + PCI_EXP_LNKSTA, 2);
    if (integrated) {
        cap_emulate(d, pos + PCI_EXP_LNKCTL, 2);
        if (version > 1) {
            cap_emulate(d, pos + PCI_EXP_LNKCAP2, 8);
        }
    } else {
        uint32_t lnkcap = ldl_le_p(cap + PCI_EXP_LNKCAP);
        uint16_t lnksta = lduw_le_p(cap + PCI_EXP_LNKSTA);
        uint16_t slowest = QEMU_PCI_EXP_LNKSTA_CLS(QEMU_PCI_EXP_LNK_2_5GT) |
                           QEMU_PCI_EXP_LNKSTA_NLW(QEMU_PCI_EXP_LNK_X1);

        pci_set_long(config + PCI_EXP_LNKCAP, lnkcap ? lnkcap : slowest);
        pci_set_word(config + PCI_EXP_LNKSTA, lnksta ? lnksta : slowest);
    }
    if (ldl_le_p(cap + PCI_EXP_DEVCAP) & PCI_EXP_DEVCAP_FLR) {
        d->flr_offset = pos + FLR_BYTE_IN_EXP;
        d->flr_bit = FLR_BIT_IN_EXP;
    }
}

static void cap_advanced_features(ObPci *d, uint8_t pos, unsigned room)
{
    if (room < PCI_CAP_AF_SIZEOF || !cap_link(d, PCI_CAP_ID_AF, pos, PCI_CAP_AF_SIZEOF)) {
        return;
    }
    if ((d->server_config[pos + PCI_AF_CAP] & PCI_AF_CAP_FLR) && !d->flr_offset) {
        d->flr_offset = pos + PCI_AF_CTRL;
        d->flr_bit = PCI_AF_CTRL_FLR;
    }
}

static void cap_add(ObPci *d, uint8_t pos, unsigned room)
{
    uint8_t id = d->server_config[pos + PCI_CAP_LIST_ID];

    switch (id) {
    case PCI_CAP_ID_MSI:
        cap_msi(d, pos, room);
        break;
    case PCI_CAP_ID_MSIX:
        cap_msix(d, pos, room);
        break;
    case PCI_CAP_ID_EXP:
        cap_express(d, pos, room);
        break;
    case PCI_CAP_ID_AF:
        cap_advanced_features(d, pos, room);
        break;
    case 0x00: /* null */
    case PCI_CAP_ID_AGP:
    case PCI_CAP_ID_SLOTID:
    case PCI_CAP_ID_CHSWP:
    case PCI_CAP_ID_PCIX:
    case PCI_CAP_ID_HT:
    case PCI_CAP_ID_SHPC:
    case PCI_CAP_ID_AGP3:
    case PCI_CAP_ID_EA: /* it would replace our BARs */
        break;
    default:
        if (room >= PCI_CAP_SIZEOF) {
            cap_link(d, id, pos, room);
        }
    }
}

/* Walks the server's list; a loop or a pointer out of the space ends it. */
static unsigned caps_walk(ObPci *d, uint8_t *found)
{
    bool seen[PCI_CONFIG_SPACE_SIZE] = { false };
    unsigned n = 0;
    uint8_t pos;

    if (!(d->server_config[PCI_STATUS] & PCI_STATUS_CAP_LIST)) {
        return 0;
    }
    pos = d->server_config[PCI_CAPABILITY_LIST] & ~3;
    while (pos >= PCI_CONFIG_HEADER_SIZE && !seen[pos] && n < CAPS_MAX) {
        seen[pos] = true;
        found[n++] = pos;
        pos = d->server_config[pos + PCI_CAP_LIST_NEXT] & ~3;
    }
    return n;
}

/* Bytes from pos to the next capability, or to the end of the space. */
static unsigned cap_room(const uint8_t *found, unsigned n, uint8_t pos)
{
    unsigned end = PCI_CONFIG_SPACE_SIZE;

    for (unsigned i = 0; i < n; i++) {
        if (found[i] > pos) {
            end = MIN(end, found[i]);
        }
    }
    return end - pos;
}

/* Only the vendor's own capability may be there more than once. */
static bool cap_repeated(ObPci *d, const uint8_t *found, unsigned which)
{
    uint8_t id = d->server_config[found[which]];

    for (unsigned i = 0; i < which; i++) {
        if (d->server_config[found[i]] == id && id != PCI_CAP_ID_VNDR) {
            return true;
        }
    }
    return false;
}

static bool ext_cap_usable(uint16_t id)
{
    switch (id) {
    case PCI_EXT_CAP_ID_ARI:
    case PCI_EXT_CAP_ID_ATS:
    case PCI_EXT_CAP_ID_SRIOV:
    case PCI_EXT_CAP_ID_MRIOV:
    case PCI_EXT_CAP_ID_PRI:
    case PCI_EXT_CAP_ID_REBAR:
    case PCI_EXT_CAP_ID_PASID:
    case 0x24: /* VF resizable BAR */
        return false;
    default:
        return true;
    }
}

static void ext_cap_set(ObPci *d, unsigned pos, uint32_t header)
{
    PCIDevice *pdev = PCI_DEVICE(d);

    pci_set_long(pdev->config + pos, header);
    pci_set_long(pdev->wmask + pos, 0);
    cap_emulate(d, pos, 4);
}

/* The extended list begins at 0x100, whatever is there: what is left out at its head stays as an
 * entry with an id that nobody knows. */
static void ext_caps_init(ObPci *d)
{
    bool seen[PCIE_CONFIG_SPACE_SIZE] = { false };
    unsigned last = PCI_CONFIG_SPACE_SIZE, pos = PCI_CONFIG_SPACE_SIZE;
    uint32_t last_header = 0;

    for (unsigned n = 0; pos >= PCI_CONFIG_SPACE_SIZE && !seen[pos] && n < EXT_CAPS_MAX; n++) {
        uint32_t header = ldl_le_p(d->server_config + pos);

        seen[pos] = true;
        if (header == 0 || header == UINT32_MAX) {
            break;
        }
        if (ext_cap_usable(PCI_EXT_CAP_ID(header))) {
            if (pos != last) {
                last_header = last_header ? last_header : 0xffff;
                ext_cap_set(d, last, last_header | (uint32_t)pos << 20);
            }
            last = pos;
            last_header = header & 0x000fffff;
        }
        pos = header >> 20 & 0xffc;
    }
    ext_cap_set(d, last, last_header);
}

void obq_caps_init(ObPci *d)
{
    uint8_t found[CAPS_MAX];
    unsigned n = caps_walk(d, found);

    d->flr_offset = 0;
    for (unsigned i = n; i-- > 0;) { /* each is put at the head of the list */
        if (!cap_repeated(d, found, i)) {
            cap_add(d, found[i], cap_room(found, n, found[i]));
        }
    }
    if (pci_is_express(PCI_DEVICE(d))) {
        ext_caps_init(d);
    }
}

void obq_caps_fini(ObPci *d)
{
    PCIDevice *pdev = PCI_DEVICE(d);

    if (msix_present(pdev)) {
        msix_uninit(pdev, &d->bars[d->msix_table_bar].mr, &d->bars[d->msix_pba_bar].mr);
    }
    msi_uninit(pdev);
}
