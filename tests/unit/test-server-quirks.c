/* SPDX-License-Identifier: BSD-3-Clause */
/* Clients that exist, played byte by byte where they are not what one would expect. */
#include "harness.h"
#include "outboard/pci.h"
#include "peer.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define PAGE 4096u
#define RW   (OB_REGION_READ | OB_REGION_WRITE)

/* A PCI device with registers, 16 MSI-X vectors and a BAR of which two pages can be mapped. */
static struct ob_server *serve(int bar)
{
    static const struct ob_pci_id id = { 0x4f42, 1, 0, 0, 0, 0 };
    const struct ob_sparse_area areas[2] = { { 0, PAGE }, { 3 * PAGE, PAGE } };
    struct ob_region registers = { .size = 2 * PAGE, .flags = RW };
    struct ob_region memory = {
        .size = 4 * PAGE, .flags = RW | OB_REGION_MMAP, .fd = bar, .areas = areas, .nareas = 2
    };
    struct ob_server *server = peer_server_new(NULL, NULL);

    CHECK_INT(ob_pci_init(server, &id, false, true), 0);
    CHECK_INT(ob_server_set_region(server, 0, &registers), 0);
    CHECK_INT(ob_server_set_region(server, 2, &memory), 0);
    CHECK_INT(ob_pci_add_bar(server, 0, 2 * PAGE, 0), 0);
    CHECK_INT(ob_pci_add_bar(server, 2, 4 * PAGE, 0), 0);
    CHECK(ob_pci_add_msix(server, 16, 0, 0, 0, PAGE) > 0);
    return server;
}

static void expect_info(struct ob_msg *reply, uint32_t flags, uint64_t size, unsigned nfds)
{
    struct ob_wire_region_info info;

    memcpy(&info, reply->payload, sizeof(info));
    CHECK_INT(info.flags, flags);
    CHECK_INT(info.size, size);
    CHECK_INT(reply->nfds, nfds);
    ob_msg_free(reply);
}

/* ---- QEMU ----------------------------------------------------------------------------------- */

TEST(qemu, "qemu")
{
    int bar = peer_memfd(4 * PAGE), fd = eventfd(0, EFD_CLOEXEC);
    struct ob_server *server = serve(bar);
    struct ob_wire_region_info info = { .argsz = 32, .index = 2 };
    const struct {
        struct ob_wire_region_access access;
        uint64_t value;
    } posted = { { 0, 2, 8 }, 0x12345678 };
    struct ob_msg *reply;
    struct peer peer;

    peer_attach(&peer, server);
    /* It asks twice, and takes one fd. Q-10: no more comes than it has room for. */
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_REGION_INFO, &info, 32, &reply), 0);
    memcpy(&info, reply->payload, sizeof(info));
    CHECK_INT(reply->len, 32);
    CHECK_INT(info.argsz, 32 + 16 + 2 * 16);
    CHECK_INT(info.cap_offset, 0);
    expect_info(reply, RW | OB_REGION_MMAP, 4 * PAGE, 0);
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_REGION_INFO, &info, 32, &reply), 0);
    expect_info(reply, RW | OB_REGION_MMAP | OB_REGION_CAPS, 4 * PAGE, 1);
    /* everything at once, which the document has no flag for. */
    CHECK_INT(peer_map(&peer, 0, PAGE, OB_DMA_READ, -1, 0), 0);
    CHECK_INT(peer_map(&peer, 1u << 30, PAGE, OB_DMA_READ, -1, 0), 0);
    CHECK_INT(peer_unmap(&peer, 0, 0, OB_DMA_UNMAP_ALL), 0);
    CHECK_INT(peer_map(&peer, 0, PAGE, OB_DMA_READ | OB_DMA_WRITE, -1, 0), 0);
    /* a posted write, seen by a read behind it, and no answer to it. */
    peer_send(&peer, OB_CMD_REGION_WRITE, OB_HDR_NO_REPLY, &posted, sizeof(posted), NULL, 0);
    CHECK_INT(peer_read32(&peer, 2, 0), 0x12345678);
    /* ERR and REQ are asked for in any case. INTx with KVM: unmasked by an eventfd. */
    for (uint32_t index = OB_PCI_IRQ_ERR; index <= OB_PCI_IRQ_REQ; index++) {
        CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_IRQ_INFO,
                            &(struct ob_wire_irq_info){ 16, 0, index, 0 }, 16, NULL),
                  0);
        CHECK_INT(peer_set_irqs(&peer, index, 0x24, 0, 1, NULL, &fd, 1), 0);
    }
    CHECK_INT(peer_set_irqs(&peer, OB_PCI_IRQ_INTX, 0x14, 0, 1, NULL, &fd, 1), 0);
    CHECK_INT(peer_set_irqs(&peer, OB_PCI_IRQ_INTX, 0x21, 0, 0, NULL, NULL, 0), 0);
    /* MSI-X: one vector without eventfd, to see it enabled. */
    CHECK_INT(peer_set_irqs(&peer, OB_PCI_IRQ_MSIX, 0x24, 0, 1, NULL, NULL, 0), 0);
    peer_close(&peer);
    ob_server_free(server);
    close(bar);
    close(fd);
}

/* ---- SPDK ----------------------------------------------------------------------------------- */

TEST(spdk, "spdk")
{
    static uint8_t buffer[4064];
    int bar = peer_memfd(4 * PAGE), ram = peer_memfd(2 * PAGE);
    struct ob_server *server = serve(bar);
    struct ob_wire_region_info info = { .argsz = sizeof(buffer), .index = 2 };
    struct ob_wire_dma_unmap unmap = { 24, 0, 0x7f0000000000, PAGE };
    struct ob_msg *reply;
    struct peer peer;

    peer_connect(&peer, server);
    /* K-1: version 0.1, and not a word about itself. */
    CHECK_INT(peer_call(&peer, OB_CMD_VERSION, "\0\0\1\0", 4, &reply), 0);
    CHECK_INT(reply->len, 4);
    ob_msg_free(reply);
    /* K-3, K-4: its whole buffer, and an fd for each area. */
    memcpy(buffer, &info, sizeof(info));
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_REGION_INFO, buffer, sizeof(buffer), &reply), 0);
    CHECK(reply->len <= sizeof(buffer)); /* K-5 */
    expect_info(reply, RW | OB_REGION_MMAP | OB_REGION_CAPS, 4 * PAGE, 2);
    info.index = 0;
    memcpy(buffer, &info, sizeof(info));
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_REGION_INFO, buffer, sizeof(buffer), &reply), 0);
    expect_info(reply, RW, 2 * PAGE, 0);
    /* K-2: the fd of the mapping comes with its unmapping. */
    CHECK_INT(peer_map(&peer, unmap.address, PAGE, 3, ram, PAGE), 0);
    CHECK_INT(peer_call_fds(&peer, OB_CMD_DMA_UNMAP, &unmap, 24, &ram, 1, NULL), 0);
    peer_close(&peer);
    ob_server_free(server);
    close(bar);
    close(ram);
}

/* ---- cloud-hypervisor ----------------------------------------------------------------------- */

TEST(cloud_hypervisor, "cloud-hypervisor")
{
    static const char json[] = "{\"capabilities\":{\"max_msg_fds\":1,\"max_data_xfer_size\":"
                               "1048576,\"migration\":{\"pgsize\":4096}}}";
    int bar = peer_memfd(4 * PAGE), fds[16];
    struct ob_server *server = serve(bar);
    struct ob_wire_device_info info = { .argsz = 32 };
    struct ob_msg *reply;
    struct peer peer;

    for (int i = 0; i < 16; i++)
        fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    peer_connect(&peer, server);
    CHECK_INT(peer_negotiate(&peer, json), 0);
    /* argsz counts the header. */
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info), &reply), 0);
    CHECK_INT(reply->len, sizeof(info));
    ob_msg_free(reply);
    /* it waits for the whole reply, and so for ever after a refusal. */
    for (uint32_t i = 0; i < OB_PCI_REGIONS; i++) {
        struct ob_wire_region_info region = { .argsz = 32, .index = i };

        CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_REGION_INFO, &region, 32, NULL), 0);
    }
    for (uint32_t i = 0; i <= OB_PCI_IRQ_REQ; i++) {
        struct ob_wire_irq_info irq = { .argsz = 16, .index = i };

        CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_IRQ_INFO, &irq, 16, NULL), 0);
    }
    /* a device that cannot be reset is; whatever the answer is, it has no payload. */
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), -EOPNOTSUPP);
    /* 16 eventfds at once whatever was said, and BARs sized through config space. */
    CHECK_INT(peer_set_irqs(&peer, OB_PCI_IRQ_MSIX, 0x24, 0, 16, NULL, fds, 16), 0);
    CHECK_INT(ob_server_irq_trigger(server, OB_PCI_IRQ_MSIX, 15), 0);
    CHECK_INT(peer_eventfd_take(fds[15]), 1);
    peer_write32(&peer, OB_PCI_REGION_CONFIG, 0x10, 0xffffffff);
    CHECK_INT(peer_read32(&peer, OB_PCI_REGION_CONFIG, 0x10), 0u - 2 * PAGE);
    CHECK_INT(peer_set_irqs(&peer, OB_PCI_IRQ_INTX, 0x11, 0, 1, NULL, NULL, 0), 0);
    peer_close(&peer);
    ob_server_free(server);
    close(bar);
    for (int i = 0; i < 16; i++)
        close(fds[i]);
}

/* ---- Limits --------------------------------------------------------------------------------- */

TEST(read_limit, "a-read-of-more-than-the-client-takes-is-refused")
{
    int bar = peer_memfd(4 * PAGE);
    struct ob_server *server = serve(bar);
    uint8_t data[33];
    struct peer peer;

    peer_connect(&peer, server);
    CHECK_INT(peer_negotiate(&peer, "{\"capabilities\":{\"max_data_xfer_size\":32}}"), 0);
    CHECK_INT(peer_read(&peer, 0, 0, data, 32), 0);
    CHECK_INT(peer_read(&peer, 0, 0, data, 33), -EINVAL);
    CHECK_INT(peer_write(&peer, 2, 0, data, 33), 0); /* that is for the server to say */
    peer_close(&peer);
    ob_server_free(server);
    close(bar);
}
