/* SPDX-License-Identifier: BSD-3-Clause */
#include "scripted.h"
#include "harness.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static bool read_all(int fd, void *data, size_t len)
{
    for (size_t got = 0; got < len;) {
        ssize_t n = read(fd, (char *)data + got, len - got);
        if (n <= 0 && !(n < 0 && errno == EINTR))
            return false;
        got += n > 0 ? (size_t)n : 0;
    }
    return true;
}

/* The first bytes of a message, with the fds. */
static ssize_t read_first(struct peer *peer)
{
    char control[CMSG_SPACE(PEER_FDS_MAX * sizeof(int))];
    struct iovec iov = { &peer->msg->hdr, sizeof(peer->msg->hdr) };
    struct msghdr mh = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)
    };
    ssize_t n = recvmsg(peer->fd, &mh, MSG_CMSG_CLOEXEC);

    peer->msg->nfds = 0;
    for (struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&mh) : NULL; c; c = CMSG_NXTHDR(&mh, c)) {
        CHECK_INT(c->cmsg_type, SCM_RIGHTS);
        peer->msg->nfds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(peer->msg->fds, CMSG_DATA(c), peer->msg->nfds * sizeof(int));
    }
    return n;
}

bool peer_recv(struct peer *peer)
{
    struct ob_wire_hdr *hdr = &peer->msg->hdr;
    ssize_t n = read_first(peer);

    if (n <= 0 || !read_all(peer->fd, (char *)hdr + n, sizeof(*hdr) - (size_t)n))
        return false;
    CHECK(hdr->msg_size >= sizeof(*hdr) && hdr->msg_size <= OB_MSG_MAX);
    peer->msg->len = hdr->msg_size - (uint32_t)sizeof(*hdr);
    return read_all(peer->fd, peer->msg->payload, peer->msg->len);
}

void peer_expect(struct peer *peer, uint16_t cmd)
{
    CHECK(peer_recv(peer));
    CHECK_STR(ob_strcmd(peer->msg->hdr.cmd), ob_strcmd(cmd));
    CHECK_INT(peer->msg->hdr.flags & OB_HDR_TYPE_MASK, OB_HDR_COMMAND);
}

void peer_expect_reply(struct peer *peer, uint16_t cmd, uint16_t id)
{
    CHECK(peer_recv(peer));
    CHECK_STR(ob_strcmd(peer->msg->hdr.cmd), ob_strcmd(cmd));
    CHECK_INT(peer->msg->hdr.flags & OB_HDR_TYPE_MASK, OB_HDR_REPLY);
    CHECK_INT(peer->msg->hdr.msg_id, id);
}

void peer_close_fds(struct peer *peer)
{
    while (peer->msg->nfds > 0)
        close(peer->msg->fds[--peer->msg->nfds]);
}

void peer_write(struct peer *peer, const void *data, size_t len)
{
    for (size_t sent = 0; sent < len;) {
        ssize_t n = send(peer->fd, (const char *)data + sent, len - sent, MSG_NOSIGNAL);
        if (n < 0)
            return; /* the client has left: the test sees that on its own side */
        sent += (size_t)n;
    }
}

void peer_send(struct peer *peer, const struct ob_wire_hdr *hdr, const void *data, uint32_t len,
               const int *fds, unsigned nfds)
{
    char control[CMSG_SPACE(PEER_FDS_MAX * sizeof(int))] = { 0 };
    struct ob_wire_hdr copy = *hdr;
    struct iovec iov = { &copy, sizeof(copy) };
    struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

    copy.msg_size = (uint32_t)sizeof(copy) + len;
    if (nfds > 0) {
        mh.msg_control = control;
        mh.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
        CHECK(c);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
    }
    if (sendmsg(peer->fd, &mh, MSG_NOSIGNAL) == (ssize_t)sizeof(copy))
        peer_write(peer, data, len);
}

void peer_reply_fds(struct peer *peer, const void *data, uint32_t len, const int *fds,
                    unsigned nfds)
{
    struct ob_wire_hdr hdr = { .msg_id = peer->msg->hdr.msg_id,
                               .cmd = peer->msg->hdr.cmd,
                               .flags = OB_HDR_REPLY };

    peer_send(peer, &hdr, data, len, fds, nfds);
}

void peer_reply(struct peer *peer, const void *data, uint32_t len)
{
    peer_reply_fds(peer, data, len, NULL, 0);
}

void peer_error(struct peer *peer, uint32_t error_no)
{
    struct ob_wire_hdr hdr = { .msg_id = peer->msg->hdr.msg_id,
                               .cmd = peer->msg->hdr.cmd,
                               .flags = OB_HDR_REPLY | OB_HDR_ERROR,
                               .error_no = error_no };

    peer_send(peer, &hdr, NULL, 0, NULL, 0);
}

void peer_reply_access(struct peer *peer, const void *data)
{
    struct ob_wire_region_access access = PEER_GET(peer, struct ob_wire_region_access);

    if (data)
        memcpy(peer->msg->payload + sizeof(access), data, access.count);
    peer_reply(peer, peer->msg->payload, (uint32_t)sizeof(access) + (data ? access.count : 0));
}

struct peer_access peer_keep(struct peer *peer)
{
    return (struct peer_access){ peer->msg->hdr, PEER_GET(peer, struct ob_wire_region_access) };
}

void peer_answer(struct peer *peer, const struct peer_access *kept, const void *data)
{
    peer->msg->hdr = kept->hdr;
    peer->msg->len = sizeof(kept->access);
    memcpy(peer->msg->payload, &kept->access, sizeof(kept->access));
    peer_reply_access(peer, data);
}

void peer_dma(struct peer *peer, uint16_t id, uint16_t cmd, uint64_t address, uint64_t count,
              const void *data, uint32_t flags)
{
    struct ob_wire_hdr hdr = { .msg_id = id, .cmd = cmd, .flags = OB_HDR_COMMAND | flags };
    struct ob_wire_dma_access access = { address, count };
    uint8_t *payload = malloc(sizeof(access) + (data ? count : 0));

    CHECK(payload != NULL);
    memcpy(payload, &access, sizeof(access));
    if (data)
        memcpy(payload + sizeof(access), data, count);
    peer_send(peer, &hdr, payload, (uint32_t)(sizeof(access) + (data ? count : 0)), NULL, 0);
    free(payload);
}

void peer_serve(struct peer *peer)
{
    while (peer_recv(peer)) {
        struct peer_msg *msg = peer->msg;

        peer_close_fds(peer);
        if (msg->hdr.flags & (OB_HDR_NO_REPLY | OB_HDR_REPLY))
            continue;
        if (msg->hdr.cmd == OB_CMD_REGION_READ) {
            struct ob_wire_region_access access = PEER_GET(peer, struct ob_wire_region_access);
            memset(msg->payload + sizeof(access), 0, access.count);
            peer_reply_access(peer, msg->payload + sizeof(access));
        } else if (msg->hdr.cmd == OB_CMD_REGION_WRITE) {
            peer_reply_access(peer, NULL);
        } else {
            peer_reply(peer, msg->payload, ob_msg_type(msg->hdr.cmd)->reply.min);
        }
    }
}

/* False when the client has left before. */
static bool negotiate(struct peer *peer)
{
    struct ob_wire_version version = { 0, 0 };
    const char *json = peer->json ? peer->json : "{}";
    char payload[512];

    if (!peer_recv(peer))
        return false;
    CHECK_INT(peer->msg->hdr.cmd, OB_CMD_VERSION);
    memcpy(payload, &version, sizeof(version));
    CHECK(strlen(json) < sizeof(payload) - sizeof(version));
    memcpy(payload + sizeof(version), json, strlen(json) + 1);
    peer_reply_fds(peer, payload, (uint32_t)(sizeof(version) + strlen(json) + 1), peer->version_fds,
                   peer->version_nfds);
    return true;
}

static void *run(void *opaque)
{
    struct peer *peer = opaque;

    if (negotiate(peer))
        peer->script(peer);
    close(peer->fd);
    return NULL;
}

static void lost(void *opaque, const char *why)
{
    struct peer *peer = opaque;

    peer->lost++;
    snprintf(peer->why, sizeof(peer->why), "%s", why);
}

int peer_try_start(struct peer *peer, void (*script)(struct peer *peer),
                   const struct ob_client_options *opt)
{
    struct ob_client_options full = OB_CLIENT_OPTIONS_INIT;
    int fds[2];

    if (opt)
        full = *opt;
    if (full.timeout_ms == 0)
        full.timeout_ms = 20000; /* who is to be late says so */
    full.lost = lost;
    full.opaque = peer;
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    peer->fd = fds[1];
    peer->script = script;
    peer->msg = malloc(sizeof(*peer->msg));
    CHECK(peer->msg != NULL);
    CHECK_INT(pthread_create(&peer->thread, NULL, run, peer), 0);
    peer->client = NULL;
    if (peer->before_connect)
        peer->before_connect(peer);
    return ob_client_connect_fd(fds[0], &full, &peer->client, peer->why, sizeof(peer->why));
}

void peer_start(struct peer *peer, void (*script)(struct peer *peer),
                const struct ob_client_options *opt)
{
    if (peer_try_start(peer, script, opt) < 0)
        test_fail(__FILE__, __LINE__, "no connection: %s", peer->why);
}

void peer_join(struct peer *peer)
{
    CHECK_INT(pthread_join(peer->thread, NULL), 0);
    peer->thread = 0;
}

void peer_stop(struct peer *peer)
{
    ob_client_free(peer->client);
    if (peer->thread)
        peer_join(peer);
    free(peer->msg);
}

void peer_take_no_answers(struct peer *peer)
{
    struct pollfd pfd = { peer->fd, 0, 0 };

    peer_expect(peer, OB_CMD_REGION_READ);
    for (int i = 0; i < 100; i++)
        peer_dma(peer, 1, OB_CMD_DMA_READ, 0, OB_DATA_XFER_MAX, NULL, 0);
    CHECK_INT(poll(&pfd, 1, 20000), 1);
}
