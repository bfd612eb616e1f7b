/* SPDX-License-Identifier: BSD-3-Clause */
/* A client that sends descriptors whose close() waits delays no other use of its server. */
#include "linger.h"
#include "peer.h"
#include "wire.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define NEWCOMERS 10u /* two more than may wait */
#define STRANGERS 8u

/* A request with that payload and count of them; returns the error of its answer. */
static int call_with(struct peer *peer, uint16_t cmd, const void *payload, size_t len,
                     unsigned count)
{
    uint8_t bytes[256];
    struct ob_wire_hdr hdr = { ++peer->next_id, cmd, (uint32_t)(sizeof(hdr) + len), 0, 0 };
    struct ob_msg *reply;
    int error;

    memcpy(bytes, &hdr, sizeof(hdr));
    if (len)
        memcpy(bytes + sizeof(hdr), payload, len);
    linger_send(peer->ch.fd, bytes, hdr.msg_size, count, 0);
    AT_ONCE(reply = peer_receive(peer));
    error = (int)reply->hdr.error_no;
    ob_msg_free(reply);
    return -error;
}

static int map_with(struct peer *peer, uint32_t flags)
{
    const struct ob_wire_dma_map map = { sizeof(map), flags, 0, 0x10000, 4096 };

    return call_with(peer, OB_CMD_DMA_MAP, &map, sizeof(map), 1);
}

static void send_everywhere(struct ob_server *server, struct peer *peer)
{
    const struct ob_wire_set_irqs irqs = { sizeof(irqs),
                                           OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER,
                                           OB_PCI_IRQ_MSIX, 0, 1 };
    const struct ob_wire_region_access access = { 0, 0, 4 };

    CHECK_INT(map_with(peer, OB_DMA_READ), -EPERM);
    CHECK_INT(map_with(peer, OB_DMA_READ | OB_DMA_ACCESS_FILE), -EPERM);
    CHECK_INT(call_with(peer, OB_CMD_DEVICE_SET_IRQS, &irqs, sizeof(irqs), 1), -EINVAL);
    call_with(peer, OB_CMD_REGION_READ, &access, sizeof(access), 3);
    CHECK_INT(call_with(peer, 99, NULL, 0, 3), -EINVAL);
    ob_server_set_dma_files(server, OB_DMA_FILES_ANY);
    CHECK_INT(map_with(peer, OB_DMA_READ), -EINVAL);
}

TEST(every_message, "no-request-waits-for-what-comes-with-it")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct peer peer;

    CHECK_INT(ob_server_set_irq(server, OB_PCI_IRQ_MSIX, 1, OB_IRQ_EVENTFD), 0);
    peer_attach(&peer, server);
    send_everywhere(server, &peer);
    linger_send(peer.ch.fd, "unread", 6, 1, 0);
    AT_ONCE(peer_close(&peer));
    ob_server_free(server);
    linger_release();
}

TEST(newcomers, "nor-do-newcomers-who-are-refused-or-never-accepted")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct peer peer, others[NEWCOMERS], last;

    peer_attach(&peer, server);
    for (unsigned i = 0; i < NEWCOMERS; i++) {
        peer_connect(&others[i], server);
        linger_send(others[i].ch.fd, "half a header", 13, 1, 0);
        AT_ONCE(peer_settle(server));
    }
    peer_connect(&last, server);
    linger_send(last.ch.fd, "x", 1, 1, 0);
    AT_ONCE(ob_server_free(server));
    peer.server = NULL;
    for (unsigned i = 0; i < NEWCOMERS; i++)
        ob_channel_fini(&others[i].ch);
    ob_channel_fini(&last.ch);
    ob_channel_fini(&peer.ch);
    linger_release();
}

TEST(bounded, "a-client-that-leaves-too-many-unclosed-is-let-go-and-nobody-comes-in-until-they-are")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct peer peer;
    int fds;

    peer_attach(&peer, server);
    fds = test_count_fds();
    CHECK_INT(call_with(&peer, 99, NULL, 0, 100), -EINVAL);
    while (!device.left) { /* from when on it counts as hanging */
        CHECK(send(peer.ch.fd, "x", 1, MSG_NOSIGNAL) == 1 || errno == EPIPE);
        AT_ONCE(peer_settle(server));
    }
    CHECK(strstr(device.log, "more than 64 descriptors that it sent are still not closed"));
    peer_close(&peer);
    peer_connect(&peer, server);
    AT_ONCE(peer_settle(server));
    CHECK(strstr(device.log, "nobody can connect"));
    linger_release();
    CHECK_INT(test_settle_fds(fds - 1), fds - 1); /* it is not accepted yet */
    CHECK_INT(peer_negotiate(&peer, NULL), 0);
    peer_close(&peer);
    ob_server_free(server);
}

/* Else eight of them would have the server out of descriptors, and its client refused. */
TEST(kept, "descriptors-of-who-has-not-negotiated-are-closed-as-they-come")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct peer strangers[STRANGERS];
    int fds[OB_MSG_FDS_MAX], before;

    for (unsigned i = 0; i < OB_MSG_FDS_MAX; i++)
        fds[i] = eventfd(0, EFD_CLOEXEC);
    for (unsigned i = 0; i < STRANGERS; i++) {
        peer_connect(&strangers[i], server);
        peer_settle(server);
    }
    before = test_count_fds();
    for (unsigned i = 0; i < STRANGERS; i++) {
        send_raw(strangers[i].ch.fd, "x", 1, fds, OB_MSG_FDS_MAX);
        peer_settle(server);
    }
    CHECK_INT(test_settle_fds(before), before);
    for (unsigned i = 0; i < STRANGERS; i++)
        peer_close(&strangers[i]);
    for (unsigned i = 0; i < OB_MSG_FDS_MAX; i++)
        close(fds[i]);
    ob_server_free(server);
}

TEST(strangers, "what-others-leave-unclosed-does-not-end-the-client")
{
    struct memory_device device;
    struct ob_server *server = memory_device_listen(&device);
    struct peer peer, stranger;
    uint32_t value;

    peer_attach(&peer, server);
    while (!strstr(device.log, "nobody can connect")) { /* from when on they count as hanging */
        peer_connect(&stranger, server);
        linger_send(stranger.ch.fd, "x", 1, 100, 0);
        AT_ONCE(peer_settle(server));
        ob_channel_fini(&stranger.ch);
        peer_settle(server);
    }
    for (unsigned i = 0; i < 10; i++)
        AT_ONCE(CHECK_INT(peer_read(&peer, 0, 0, &value, sizeof(value)), 0));
    CHECK_INT(device.left, 0);
    peer_close(&peer);
    ob_server_free(server);
    linger_release();
}
