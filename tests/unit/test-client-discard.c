/* SPDX-License-Identifier: BSD-3-Clause */
/* A server that sends descriptors whose close() waits delays no call of its client. */
#include "channel/channel.h"
#include "linger.h"
#include "scripted.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define COUNT 3u
#define TWIN \
    "{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{\"supported\":true,\"fd_index\":0}}}"

/* Answers peer->msg with zeroes, but so that fields repeat what was asked. */
static void answer(struct peer *peer, unsigned count)
{
    struct ob_wire_hdr hdr = peer->msg->hdr;
    uint32_t len = ob_msg_type(hdr.cmd)->reply.min;
    uint8_t bytes[sizeof(hdr) + 256] = { 0 };

    if (hdr.cmd == OB_CMD_REGION_READ)
        len = sizeof(struct ob_wire_region_access) + 4;
    hdr.msg_size = (uint32_t)sizeof(hdr) + len;
    hdr.flags = OB_HDR_REPLY;
    memcpy(bytes, &hdr, sizeof(hdr));
    memcpy(bytes + sizeof(hdr), peer->msg->payload, len < peer->msg->len ? len : peer->msg->len);
    linger_send(peer->fd, bytes, hdr.msg_size, count, 0);
}

/* Each answer has some; so has a command that nobody asked for, and what is left unread. */
static void attach_to_all(struct peer *peer)
{
    struct ob_wire_hdr dma = { 1, OB_CMD_DMA_READ, sizeof(dma), OB_HDR_NO_REPLY, 0 };

    for (int i = 0; i < 5 && peer_recv(peer); i++) {
        peer_close_fds(peer);
        linger_send(peer->fd, &dma, sizeof(dma), COUNT, 0);
        answer(peer, COUNT);
    }
    if (peer_recv(peer)) {
        answer(peer, 0);
        linger_send(peer->fd, &dma, sizeof(dma), COUNT, 0);
    }
}

static void call_all(struct ob_client *client)
{
    struct ob_region_io_fds io_fds = { 0 };
    struct ob_device_info device;
    struct ob_region_info region;
    struct ob_irq_info irq;
    uint32_t value;

    AT_ONCE(CHECK_INT(ob_client_device_info(client, &device), 0));
    AT_ONCE({
        CHECK_INT(ob_client_region_info(client, 0, &region), 0);
        CHECK_INT(region.fd, -1);
        ob_region_info_fini(&region);
    });
    AT_ONCE({
        CHECK_INT(ob_client_region_io_fds(client, 0, &io_fds), 0);
        ob_region_io_fds_fini(&io_fds);
    });
    AT_ONCE(CHECK_INT(ob_client_irq_info(client, 0, &irq), 0));
    AT_ONCE(CHECK_INT(ob_client_region_read(client, 0, 0, &value, 4), 0));
    AT_ONCE(CHECK_INT(ob_client_region_read(client, 0, 0, &value, 4), 0));
}

/* What peer_stop() does, without waiting. */
static void stop(struct peer *peer)
{
    peer_join(peer);
    AT_ONCE(ob_client_free(peer->client));
    peer->client = NULL;
    linger_release();
    peer_stop(peer);
}

TEST(every_message, "no-call-waits-for-what-comes-with-any-message")
{
    struct peer peer = { .json = "{\"capabilities\":{\"max_msg_fds\":8}}" };

    peer_start(&peer, attach_to_all, NULL);
    call_all(peer.client);
    stop(&peer);
}

/* Over both sockets, while no descriptors are expected over either. */
static void attach_to_both(struct peer *peer)
{
    struct ob_wire_hdr dma = { 1, OB_CMD_DMA_READ, sizeof(dma), OB_HDR_NO_REPLY, 0 };
    int *twin = peer->arg;

    for (int i = 0; i < 5 && peer_recv(peer); i++) {
        linger_send(*twin, &dma, sizeof(dma), COUNT, MSG_OOB);
        answer(peer, COUNT);
    }
    linger_send(*twin, &dma, sizeof(dma), COUNT, 0);
    linger_send(peer->fd, &dma, sizeof(dma), COUNT, 0);
}

static void read_with_twin(void)
{
    int pair[2];
    struct peer peer = { .json = TWIN, .version_fds = &pair[1], .version_nfds = 1, .arg = pair };
    uint32_t value;

    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    peer_start(&peer, attach_to_both, NULL);
    close(pair[1]);
    for (int i = 0; i < 5; i++)
        AT_ONCE(CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), 0));
    stop(&peer);
    close(pair[0]);
}

TEST(two_sockets, "nor-for-what-comes-over-one-of-two-sockets")
{
    read_with_twin();
}

TEST(two_sockets_old, "nor-where-the-kernel-cannot-refuse-descriptors")
{
    linger_no_passrights = true;
    read_with_twin();
}

static void expects_region_info(struct peer *peer)
{
    int fd = memfd_create("region", MFD_CLOEXEC);
    struct ob_wire_region_info info = { 0 };

    for (int i = 0; i < 6 && peer_recv(peer); i++) {
        if (peer->msg->hdr.cmd != OB_CMD_DEVICE_GET_REGION_INFO) {
            answer(peer, 0);
            continue;
        }
        info = PEER_GET(peer, struct ob_wire_region_info);
        info.argsz = sizeof(info);
        info.flags = OB_REGION_READ | OB_REGION_MMAP;
        info.size = 4096;
        peer_reply_fds(peer, &info, sizeof(info), &fd, 1);
    }
    close(fd);
    peer_serve(peer);
}

TEST(wanted, "what-is-asked-for-comes-between-reads-with-two-sockets")
{
    int pair[2];
    struct peer peer = { .json = TWIN, .version_fds = &pair[1], .version_nfds = 1 };
    struct ob_region_info info;
    uint32_t value;

    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    peer_start(&peer, expects_region_info, NULL);
    close(pair[1]);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(ob_client_region_read(peer.client, 0, 0, &value, 4), 0);
        CHECK_INT(ob_client_region_info(peer.client, 0, &info), 0);
        CHECK(info.fd >= 0);
        ob_region_info_fini(&info);
    }
    peer_stop(&peer);
    close(pair[0]);
}

static void attach_many(struct peer *peer)
{
    while (peer_recv(peer))
        answer(peer, 30);
}

TEST(bounded, "a-server-that-leaves-too-many-unclosed-is-lost-with-the-reason")
{
    struct peer peer = { 0 };
    uint32_t value;
    int rc = 0;

    peer_start(&peer, attach_many, NULL);
    for (int i = 0; i < 20 && rc == 0; i++)
        AT_ONCE(rc = ob_client_region_read(peer.client, 0, 0, &value, 4));
    CHECK_INT(rc, -ENOTCONN);
    CHECK_STR(peer.why, "more than 64 descriptors that the server sent are still not closed");
    stop(&peer);
}
