/* SPDX-License-Identifier: BSD-3-Clause */
/* Config space, its capabilities, MSI-X tables, and resets. */
#include "harness.h"
#include "peer.h"

#include "outboard/pci.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CONFIG OB_PCI_REGION_CONFIG

static const struct ob_pci_id id = { 0x1b36, 0x0010, 0x1af4, 0x1100, 0x010802, 2 };

struct device {
    struct ob_server *server;
    unsigned resets;
};

static int on_reset(void *opaque)
{
    ((struct device *)opaque)->resets++;
    return 0;
}

static void set_up(struct device *device, bool express, bool intx)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops), .reset = on_reset };

    device->resets = 0;
    device->server = peer_server_new(&ops, device);
    CHECK_INT(ob_pci_init(device->server, &id, express, intx), 0);
}

static void tear_down(struct device *device, struct peer *peer)
{
    peer_close(peer);
    ob_server_free(device->server);
}

static uint32_t get(struct peer *peer, uint32_t offset, uint32_t count)
{
    uint32_t value = 0;

    CHECK_INT(peer_read(peer, CONFIG, offset, &value, count), 0);
    return value;
}

static void put(struct peer *peer, uint32_t offset, uint32_t value, uint32_t count)
{
    CHECK_INT(peer_write(peer, CONFIG, offset, &value, count), 0);
}

TEST(identity, "identity-is-read-and-cannot-be-written")
{
    static uint8_t ones[4096], space[4096];
    struct device device;
    struct peer peer;

    set_up(&device, true, true);
    peer_attach(&peer, device.server);
    memset(ones, 0xff, sizeof(ones));
    CHECK_INT(peer_write(&peer, CONFIG, 0, ones, 4096), 0); /* all of it in one message */
    CHECK_INT(get(&peer, PCI_VENDOR_ID, 4), 0x00101b36);
    CHECK_INT(get(&peer, PCI_CLASS_REVISION, 4), 0x01080202);
    CHECK_INT(get(&peer, PCI_SUBSYSTEM_VENDOR_ID, 4), 0x11001af4);
    CHECK_INT(get(&peer, PCI_HEADER_TYPE, 1), 0);
    CHECK_INT(get(&peer, PCI_INTERRUPT_PIN, 1), 1);
    CHECK_INT(get(&peer, PCI_INTERRUPT_LINE, 1), 0xff);
    CHECK_INT(get(&peer, PCI_CACHE_LINE_SIZE, 1), 0xff);
    CHECK_INT(get(&peer, PCI_STATUS, 2), 0);
    CHECK_INT(peer_read(&peer, CONFIG, 0, space, 4096), 0);
    for (int i = 256; i < 4096; i++)
        CHECK_INT(space[i], 0);
    CHECK_INT(peer_read(&peer, CONFIG, 4095, space, 2), -EINVAL);
    tear_down(&device, &peer);
}

TEST(command, "command-register-takes-bytes-anywhere-and-ignores-unknown-bits")
{
    struct device device;
    struct peer peer;

    set_up(&device, false, true);
    peer_attach(&peer, device.server);
    put(&peer, PCI_COMMAND, 0xffff, 2);
    CHECK_INT(ob_pci_command(device.server), 0x547);
    put(&peer, PCI_COMMAND + 1, 0, 1);
    CHECK_INT(ob_pci_command(device.server), 0x147 & 0xff);
    put(&peer, PCI_COMMAND, 0, 1);
    CHECK_INT(ob_pci_command(device.server), 0);
    put(&peer, PCI_DEVICE_ID + 1, 0x0006ff, 3); /* straddles */
    CHECK_INT(ob_pci_command(device.server), 6);
    CHECK_INT(get(&peer, PCI_DEVICE_ID, 2), 0x0010);
    tear_down(&device, &peer);
}

TEST(bars, "bars-are-sized-by-writing-ones")
{
    struct ob_region rom = { .size = 65536, .flags = OB_REGION_READ };
    struct device device;
    struct peer peer;

    set_up(&device, true, false);
    CHECK_INT(ob_pci_add_bar(device.server, 0, 0x4000, OB_PCI_BAR_64 | OB_PCI_BAR_PREFETCH), 0);
    CHECK_INT(ob_pci_add_bar(device.server, 2, 256, OB_PCI_BAR_IO), 0);
    CHECK_INT(ob_pci_add_bar(device.server, 3, 4096, 0), 0);
    CHECK_INT(ob_pci_add_bar(device.server, 4, (uint64_t)1 << 33, OB_PCI_BAR_64), 0);
    CHECK_INT(ob_server_set_region(device.server, OB_PCI_REGION_ROM, &rom), 0);
    CHECK_INT(ob_pci_add_bar(device.server, 5, 16, OB_PCI_BAR_64), -EINVAL);
    CHECK_INT(ob_pci_add_bar(device.server, 6, 16, 0), -EINVAL);
    CHECK_INT(ob_pci_add_bar(device.server, 1, 48, 0), -EINVAL);
    CHECK_INT(ob_pci_add_bar(device.server, 1, 8, 0), -EINVAL);
    CHECK_INT(ob_pci_add_bar(device.server, 1, 512, OB_PCI_BAR_IO), -EINVAL);
    CHECK_INT(ob_pci_add_bar(device.server, 1, (uint64_t)1 << 32, 0), -EINVAL);
    peer_attach(&peer, device.server);
    for (uint32_t offset = PCI_BASE_ADDRESS_0; offset <= PCI_BASE_ADDRESS_5; offset += 4)
        put(&peer, offset, 0xffffffff, 4);
    CHECK_INT(get(&peer, PCI_BASE_ADDRESS_0, 4), 0xffffc00c);
    CHECK_INT(get(&peer, PCI_BASE_ADDRESS_1, 4), 0xffffffff);
    CHECK_INT(get(&peer, PCI_BASE_ADDRESS_2, 4), 0xffffff01);
    CHECK_INT(get(&peer, PCI_BASE_ADDRESS_3, 4), 0xfffff000);
    CHECK_INT(get(&peer, PCI_BASE_ADDRESS_4, 4), 0x00000004);
    CHECK_INT(get(&peer, PCI_BASE_ADDRESS_5, 4), 0xfffffffe);
    put(&peer, PCI_ROM_ADDRESS, 0xfffff800, 4);
    CHECK_INT(get(&peer, PCI_ROM_ADDRESS, 4), 0xffff0000);
    put(&peer, PCI_ROM_ADDRESS, 0xfebf0001, 4);
    CHECK_INT(get(&peer, PCI_ROM_ADDRESS, 4), 0xfebf0001);
    put(&peer, PCI_BASE_ADDRESS_0, 0xfebd0000, 4);
    put(&peer, PCI_BASE_ADDRESS_0 + 3, 0xfd, 1); /* a byte of it */
    CHECK_INT(get(&peer, PCI_BASE_ADDRESS_0, 4), 0xfdbd000c);
    tear_down(&device, &peer);
}

TEST(no_rom, "rom-register-without-a-rom-stays-zero")
{
    struct device device;
    struct peer peer;

    set_up(&device, false, false);
    peer_attach(&peer, device.server);
    put(&peer, PCI_ROM_ADDRESS, 0xffffffff, 4);
    CHECK_INT(get(&peer, PCI_ROM_ADDRESS, 4), 0);
    tear_down(&device, &peer);
}

TEST(chain, "capabilities-are-chained-in-order")
{
    static const uint8_t body[] = { 5, 0xaa }, writable[] = { 0, 0x0f };
    struct device device;
    struct peer peer;
    int at[5];

    set_up(&device, true, false);
    at[0] = ob_pci_add_pm(device.server);
    at[1] = ob_pci_add_cap(device.server, PCI_CAP_ID_VNDR, body, sizeof(body), writable);
    at[2] = ob_pci_add_pcie(device.server);
    at[3] = ob_pci_add_msi(device.server, 4);
    at[4] = ob_pci_add_msix(device.server, 5, 0, 0x2000, 0, 0x3000);
    CHECK_INT(at[0], 0x40);
    peer_attach(&peer, device.server);
    CHECK_INT(get(&peer, PCI_STATUS, 2), PCI_STATUS_CAP_LIST);
    CHECK_INT(get(&peer, PCI_CAPABILITY_LIST, 1), at[0]);
    for (int i = 0; i < 5; i++) {
        static const uint8_t ids[] = { PCI_CAP_ID_PM, PCI_CAP_ID_VNDR, PCI_CAP_ID_EXP,
                                       PCI_CAP_ID_MSI, PCI_CAP_ID_MSIX };

        CHECK(at[i] >= 0x40 && at[i] % 4 == 0);
        CHECK_INT(get(&peer, (uint32_t)at[i], 1), ids[i]);
        CHECK_INT(get(&peer, (uint32_t)at[i] + 1, 1), i < 4 ? at[i + 1] : 0);
    }
    put(&peer, (uint32_t)at[1], 0, 4);
    CHECK_INT(get(&peer, (uint32_t)at[1] + 2, 2), 0xa005);
    CHECK_INT(get(&peer, (uint32_t)at[3] + PCI_MSI_FLAGS, 2), 0x0184);
    CHECK_INT(get(&peer, (uint32_t)at[4] + PCI_MSIX_FLAGS, 2), 4);
    CHECK_INT(get(&peer, (uint32_t)at[4] + PCI_MSIX_TABLE, 4), 0x2000);
    CHECK_INT(get(&peer, (uint32_t)at[4] + PCI_MSIX_PBA, 4), 0x3000);
    put(&peer, (uint32_t)at[4] + PCI_MSIX_FLAGS, 0xffff, 2);
    CHECK_INT(get(&peer, (uint32_t)at[4] + PCI_MSIX_FLAGS, 2), 0xc004);
    tear_down(&device, &peer);
}

TEST(full, "capabilities-that-do-not-fit-are-refused")
{
    uint8_t body[256] = { 0 };
    struct device device;

    set_up(&device, false, false);
    CHECK_INT(ob_pci_add_pcie(device.server), -EINVAL); /* not express */
    CHECK_INT(ob_pci_add_msi(device.server, 3), -EINVAL);
    CHECK_INT(ob_pci_add_msix(device.server, 2049, 0, 0, 1, 0), -EINVAL);
    CHECK_INT(ob_pci_add_msix(device.server, 4, 0, 0, 0, 56), -EINVAL); /* PBA in the table */
    CHECK_INT(ob_pci_add_cap(device.server, PCI_CAP_ID_VNDR, body, 191, NULL), -ENOSPC);
    CHECK_INT(ob_pci_add_cap(device.server, PCI_CAP_ID_VNDR, body, 190, NULL), 0x40);
    CHECK_INT(ob_pci_add_cap(device.server, PCI_CAP_ID_VNDR, body, 1, NULL), -ENOSPC);
    ob_server_free(device.server);
}

TEST(power, "power-state-knows-d0-and-d3-only")
{
    struct device device;
    struct peer peer;
    uint32_t pm;

    set_up(&device, false, false);
    pm = (uint32_t)ob_pci_add_pm(device.server) + PCI_PM_CTRL;
    peer_attach(&peer, device.server);
    put(&peer, pm, 3, 2);
    CHECK_INT(get(&peer, pm, 2), 3 | PCI_PM_CTRL_NO_SOFT_RESET);
    put(&peer, pm, 1, 2);
    CHECK_INT(get(&peer, pm, 2) & 3, 3);
    put(&peer, pm, 0, 1);
    CHECK_INT(get(&peer, pm, 2) & 3, 0);
    CHECK_INT(device.resets, 0);
    tear_down(&device, &peer);
}

TEST(resets, "reset-and-flr-put-config-space-back")
{
    struct device device;
    struct peer peer;
    uint32_t control;
    uint64_t one;
    int fd = eventfd(0, EFD_NONBLOCK);

    set_up(&device, true, true);
    CHECK_INT(ob_pci_add_bar(device.server, 0, 0x1000, 0), 0);
    control = (uint32_t)ob_pci_add_pcie(device.server) + PCI_EXP_DEVCTL;
    peer_attach(&peer, device.server);
    CHECK_INT(get(&peer, control - 4 + 3, 1) & 0x10, 0x10); /* FLR is advertised */
    CHECK_INT(peer_set_irqs(&peer, OB_PCI_IRQ_INTX,
                            OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER, 0, 1, NULL, &fd,
                            1),
              0);
    for (unsigned i = 1; i <= 2; i++) {
        put(&peer, PCI_COMMAND, 6, 2);
        put(&peer, PCI_BASE_ADDRESS_0, 0xfebd0000, 4);
        put(&peer, control, 0x5000, 2);
        CHECK_INT(get(&peer, control, 2), 0x5000);
        if (i == 1)
            CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
        else
            put(&peer, control, PCI_EXP_DEVCTL_BCR_FLR, 2);
        CHECK_INT(device.resets, i);
        CHECK_INT(get(&peer, PCI_COMMAND, 2), 0);
        CHECK_INT(get(&peer, PCI_BASE_ADDRESS_0, 4), 0);
        CHECK_INT(get(&peer, control, 2), 0x2810);
    }
    CHECK_INT(ob_server_intx(device.server, true), 0); /* the eventfd is still there */
    CHECK_INT(read(fd, &one, sizeof(one)), sizeof(one));
    tear_down(&device, &peer);
    close(fd);
}

TEST(intx_disable, "intx-obeys-the-disable-bit-and-shows-in-status")
{
    struct device device;
    struct peer peer;
    int fd = eventfd(0, EFD_NONBLOCK);

    set_up(&device, false, true);
    peer_attach(&peer, device.server);
    CHECK_INT(peer_set_irqs(&peer, OB_PCI_IRQ_INTX,
                            OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER, 0, 1, NULL, &fd,
                            1),
              0);
    put(&peer, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, 2);
    CHECK_INT(ob_server_intx(device.server, true), 0);
    CHECK_INT(peer_eventfd_take(fd), 0);
    CHECK_INT(get(&peer, PCI_STATUS, 2), PCI_STATUS_INTERRUPT);
    put(&peer, PCI_COMMAND, 0, 2);
    CHECK_INT(peer_eventfd_take(fd), 1);
    CHECK_INT(ob_server_intx(device.server, false), 0);
    CHECK_INT(get(&peer, PCI_STATUS, 2), 0);
    tear_down(&device, &peer);
    close(fd);
}

static void arm(struct peer *peer, uint32_t index, int *fds, uint32_t count)
{
    CHECK_INT(peer_set_irqs(peer, index, OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER, 0,
                            count, NULL, fds, count),
              0);
}

TEST(notify, "notify-takes-msix-before-msi")
{
    struct device device;
    struct peer peer;
    int fds[2] = { eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK) };

    set_up(&device, false, true);
    CHECK(ob_pci_add_msi(device.server, 8) > 0);
    CHECK(ob_pci_add_msix(device.server, 8, 0, 0, 0, 0x800) > 0);
    peer_attach(&peer, device.server);
    CHECK_INT(ob_pci_notify(device.server, 0), -ENOENT);
    arm(&peer, OB_PCI_IRQ_MSI, fds, 2);
    CHECK_INT(ob_pci_notify(device.server, 5), OB_PCI_IRQ_MSI); /* wraps to the two */
    CHECK_INT(peer_eventfd_take(fds[1]), 1);
    arm(&peer, OB_PCI_IRQ_MSIX, fds, 1);
    CHECK_INT(ob_pci_notify(device.server, 0), OB_PCI_IRQ_MSIX);
    CHECK_INT(peer_eventfd_take(fds[0]), 1);
    CHECK_INT(ob_pci_notify(device.server, 5), -ENOENT);
    tear_down(&device, &peer);
    close(fds[0]);
    close(fds[1]);
}

TEST(msi_masks, "msi-mask-bits-hold-back-and-show-pending")
{
    struct device device;
    struct peer peer;
    int fds[2] = { eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK) };
    uint32_t msi;

    set_up(&device, false, false);
    msi = (uint32_t)ob_pci_add_msi(device.server, 2);
    peer_attach(&peer, device.server);
    arm(&peer, OB_PCI_IRQ_MSI, fds, 2);
    put(&peer, msi + PCI_MSI_MASK_64, 0xffffffff, 4);
    CHECK_INT(get(&peer, msi + PCI_MSI_MASK_64, 4), 3);
    CHECK_INT(ob_pci_notify(device.server, 1), OB_PCI_IRQ_MSI);
    CHECK_INT(peer_eventfd_take(fds[1]), 0);
    CHECK_INT(get(&peer, msi + PCI_MSI_PENDING_64, 4), 2);
    put(&peer, msi + PCI_MSI_MASK_64, 1, 1);
    CHECK_INT(peer_eventfd_take(fds[1]), 1);
    CHECK_INT(get(&peer, msi + PCI_MSI_PENDING_64, 4), 0);
    tear_down(&device, &peer);
    close(fds[0]);
    close(fds[1]);
}

static int on_access(void *opaque, uint64_t offset, void *data, uint32_t count, bool is_write)
{
    (void)opaque;
    CHECK(offset + count <= 0x800 || (offset >= 0x830 && offset + count <= 0x900) ||
          offset >= 0x908);
    if (!is_write)
        memset(data, 0xdd, count);
    return 0;
}

TEST(msix_table, "msix-table-and-pba-are-served-inside-the-region")
{
    struct ob_region region = { .size = 0x1000,
                                .flags = OB_REGION_READ | OB_REGION_WRITE,
                                .access = on_access };
    uint8_t block[0x1000];
    struct device device;
    struct peer peer;
    int fds[3] = { eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK) };

    set_up(&device, true, false);
    CHECK_INT(ob_pci_add_bar(device.server, 1, 0x1000, 0), 0);
    CHECK_INT(ob_server_set_region(device.server, 1, &region), 0);
    CHECK(ob_pci_add_msix(device.server, 3, 1, 0x800, 1, 0x900) > 0);
    peer_attach(&peer, device.server);
    CHECK_INT(peer_read32(&peer, 1, 0x80c), PCI_MSIX_ENTRY_CTRL_MASKBIT);
    peer_write32(&peer, 1, 0x810, 0xfee01000);
    peer_write32(&peer, 1, 0x818, 0x4041);
    peer_write32(&peer, 1, 0x900, 0xffffffff);
    CHECK_INT(peer_read(&peer, 1, 0, block, sizeof(block)), 0); /* over all borders */
    CHECK(block[0x7ff] == 0xdd && block[0x800] == 0 && block[0x830] == 0xdd);
    CHECK_MEM(block + 0x810, "\x00\x10\xe0\xfe\0\0\0\0\x41\x40\0\0\1\0\0\0", 16);
    CHECK(block[0x900] == 0 && block[0x907] == 0 && block[0x908] == 0xdd);
    CHECK_INT(peer_write(&peer, 1, 0, block, sizeof(block)), 0);
    arm(&peer, OB_PCI_IRQ_MSIX, fds, 3);
    CHECK_INT(peer_set_irqs(&peer, OB_PCI_IRQ_MSIX, OB_IRQ_SET_DATA_NONE | OB_IRQ_SET_ACTION_MASK,
                            2, 1, NULL, NULL, 0),
              0);
    CHECK_INT(ob_pci_notify(device.server, 2), OB_PCI_IRQ_MSIX);
    CHECK_INT(peer_read32(&peer, 1, 0x900), 4);
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
    CHECK_INT(peer_read32(&peer, 1, 0x900), 0);
    CHECK_INT(peer_read32(&peer, 1, 0x810), 0);
    CHECK_INT(peer_read32(&peer, 1, 0x81c), PCI_MSIX_ENTRY_CTRL_MASKBIT);
    tear_down(&device, &peer);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
}
