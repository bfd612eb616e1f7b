/* SPDX-License-Identifier: BSD-3-Clause */
/* Eventfds in place of writes, from the server to a real client of it. */
#include "harness.h"
#include "outboard/client.h"
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define MATCH OB_IOEVENTFD_DATAMATCH

static const struct ob_ioeventfd entries[] = { { 0x10, 4, 1, MATCH },
                                               { 0x10, 4, 2, MATCH },
                                               { 0x20, 0, 0, 0 },
                                               { 0xffe, 2, 0, OB_IOEVENTFD_PIO } };

static atomic_int rung[2];

static void ring(void *opaque)
{
    ++*(atomic_int *)opaque;
}

/* A device with those entries: the first two ring bell 0, the others bell 1. */
static struct ob_server *serve(struct memory_device *device)
{
    struct ob_server *server = memory_device_server(device);

    rung[0] = rung[1] = 0;
    for (unsigned i = 0; i < 4; i++)
        CHECK_INT(ob_server_add_ioeventfd(server, 0, &entries[i], ring, &rung[i / 2]), 0);
    return server;
}

static void *run(void *opaque)
{
    CHECK_INT(ob_server_run(opaque), 0);
    return NULL;
}

static void expect_rung(unsigned bell, int times)
{
    for (int64_t end = test_now_ms() + 20000; rung[bell] < times && test_now_ms() < end;)
        usleep(1000);
    CHECK_INT(rung[bell], times);
}

TEST(rings, "an-eventfd-of-the-client-rings-at-the-server")
{
    struct ob_region_io_fds list;
    struct memory_device device;
    struct ob_server *server = serve(&device);
    struct ob_client *client;
    pthread_t thread;
    int fds[2];

    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_INT(ob_server_listen_fd(server, fds[0]), 0);
    CHECK_INT(pthread_create(&thread, NULL, run, server), 0);
    CHECK_INT(ob_client_connect_fd(fds[1], NULL, &client, NULL, 0), 0);
    CHECK_INT(ob_client_region_io_fds(client, 0, &list), 0);
    CHECK_INT(list.count, 4);
    CHECK_INT(list.nfds, 2);
    for (unsigned i = 0; i < 4; i++) {
        CHECK_MEM(&list.entries[i].match, &entries[i], offsetof(struct ob_ioeventfd, flags) + 4);
        CHECK_INT(list.entries[i].fd, list.fds[i / 2]);
    }
    for (int i = 1; i <= 3; i++) {
        CHECK_INT(eventfd_write(list.fds[0], 1), 0);
        expect_rung(0, i);
    }
    CHECK_INT(eventfd_write(list.fds[1], 1), 0);
    expect_rung(1, 1);
    CHECK_INT(rung[0], 3);
    ob_region_io_fds_fini(&list);
    CHECK_INT(ob_client_region_io_fds(client, 1, &list), -4096 - EINVAL); /* no such region */
    ob_client_free(client);
    CHECK_INT(pthread_join(thread, NULL), 0);
    ob_server_free(server);
}

/* Asks with room for so many bytes; the reply, the caller's. */
static struct ob_msg *ask(struct peer *peer, uint32_t argsz)
{
    struct ob_wire_region_io_fds request = { .argsz = argsz };
    struct ob_msg *reply;

    CHECK_INT(peer_call(peer, OB_CMD_DEVICE_GET_REGION_IO_FDS, &request, 16, &reply), 0);
    return reply;
}

static void expect_head(const struct ob_msg *reply, uint32_t len, uint32_t argsz, uint32_t count,
                        unsigned nfds)
{
    struct ob_wire_region_io_fds head;

    CHECK_INT(reply->len, len);
    CHECK_INT(reply->nfds, nfds);
    memcpy(&head, reply->payload, sizeof(head));
    CHECK_INT(head.argsz, argsz);
    CHECK_INT(head.flags, 0);
    CHECK_INT(head.index, 0);
    CHECK_INT(head.count, count);
}

TEST(room, "without-room-the-reply-says-what-it-takes")
{
    struct memory_device device;
    struct ob_server *server = serve(&device);
    struct ob_msg *reply;
    struct peer peer;

    CHECK_INT(ob_server_listen(server, peer_socket_path(), 0), 0);
    peer_attach(&peer, server);
    reply = ask(&peer, 175);
    expect_head(reply, 16, 176, 4, 0);
    ob_msg_free(reply);
    reply = ask(&peer, 176);
    expect_head(reply, 176, 176, 4, 2);
    CHECK_MEM(reply->payload + 16,
              "\x10\0\0\0\0\0\0\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0",
              40);
    CHECK_INT(reply->payload[16 + 3 * 40 + 16], 1); /* fd_index of the last */
    ob_msg_free(reply);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(few_fds, "a-client-that-takes-few-fds-gets-what-they-are-for")
{
    struct memory_device device;
    struct ob_server *server = serve(&device);
    struct ob_msg *reply;
    struct peer peer;

    CHECK_INT(ob_server_listen(server, peer_socket_path(), 0), 0);
    peer_connect(&peer, server);
    CHECK_INT(peer_negotiate(&peer, "{}"), 0); /* one */
    reply = ask(&peer, 4096);
    expect_head(reply, 96, 96, 2, 1);
    ob_msg_free(reply);
    peer_close(&peer);
    peer_connect(&peer, server);
    CHECK_INT(peer_negotiate(&peer, "{\"capabilities\":{\"max_msg_fds\":0}}"), 0);
    reply = ask(&peer, 4096);
    expect_head(reply, 16, 16, 0, 0);
    ob_msg_free(reply);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(successor, "an-eventfd-does-not-outlive-its-client")
{
    struct memory_device device;
    struct ob_server *server = serve(&device);
    struct ob_msg *reply;
    struct peer peer;
    int old;

    CHECK_INT(ob_server_listen(server, peer_socket_path(), 0), 0);
    peer_attach(&peer, server);
    reply = ask(&peer, 4096);
    old = ob_msg_claim_fd(reply, 0);
    ob_msg_free(reply);
    peer_close(&peer);
    peer_attach(&peer, server);
    reply = ask(&peer, 4096);
    CHECK_INT(eventfd_write(old, 1), 0);
    peer_settle(server);
    CHECK_INT(rung[0], 0);
    CHECK_INT(eventfd_write(reply->fds[0], 1), 0);
    peer_settle(server);
    CHECK_INT(rung[0], 1);
    ob_msg_free(reply);
    close(old);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(invalid, "what-kvm-would-refuse-cannot-be-offered")
{
    static const struct ob_ioeventfd bad[] = {
        { 0, 3, 0, 0 },      { 0, 16, 0, 0 },    { 0, 0, 0, MATCH },      { 0, 4, 0, 4 },
        { 0x1000, 0, 0, 0 }, { 0xffd, 4, 0, 0 }, { UINT64_MAX, 8, 0, 0 },
    };
    struct memory_device device;
    struct ob_server *server = serve(&device);
    struct ob_ioeventfd e = { 0x10, 4, 2, MATCH };

    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        CHECK_INT(ob_server_add_ioeventfd(server, 0, &bad[i], ring, NULL), -EINVAL);
    CHECK_INT(ob_server_add_ioeventfd(server, 1, &e, ring, NULL), -EINVAL);
    CHECK_INT(ob_server_add_ioeventfd(server, 0, &e, ring, NULL), -EEXIST);
    e.flags = 0; /* any value */
    CHECK_INT(ob_server_add_ioeventfd(server, 0, &e, ring, NULL), -EEXIST);
    e.size = 2;
    CHECK_INT(ob_server_add_ioeventfd(server, 0, &e, ring, NULL), 0);
    e.offset = 0x20;
    CHECK_INT(ob_server_add_ioeventfd(server, 0, &e, ring, NULL), -EEXIST);
    for (unsigned i = 5; i < OB_IOEVENTFDS_MAX; i++) {
        e.offset = 0x100 + i;
        CHECK_INT(ob_server_add_ioeventfd(server, 0, &e, ring, NULL), 0);
    }
    e.offset = 0x100;
    CHECK_INT(ob_server_add_ioeventfd(server, 0, &e, ring, NULL), -ENOSPC);
    ob_server_free(server);
}
