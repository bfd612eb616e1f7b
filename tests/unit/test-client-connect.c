/* SPDX-License-Identifier: BSD-3-Clause */
/* Connecting to what is no server, or none that can be used: the user is told what to do. */
#include "harness.h"
#include "scripted.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const char *refusal(const char *path, int timeout_ms, int rc)
{
    static char why[300];
    struct ob_client_options opt = OB_CLIENT_OPTIONS_INIT;
    struct ob_client *client;

    opt.timeout_ms = timeout_ms;
    why[0] = 0;
    CHECK_INT(ob_client_connect(path, &opt, &client, why, sizeof(why)), rc);
    return why;
}

#define CHECK_PREFIX(text, prefix)                                                             \
    do {                                                                                       \
        const char *text_ = (text);                                                            \
        if (strncmp(text_, prefix, strlen(prefix)) != 0)                                       \
            test_fail(__FILE__, __LINE__, "\"%s\" does not begin with \"%s\"", text_, prefix); \
    } while (0)

static int listen_at(const char *path)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0);
    CHECK(strlen(path) < sizeof(addr.sun_path));
    memcpy(addr.sun_path, path, strlen(path) + 1);
    CHECK_INT(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    CHECK_INT(listen(fd, 4), 0);
    return fd;
}

TEST(no_server, "says-why-there-is-no-connection")
{
    char path[100], longest[200];
    FILE *file;

    snprintf(path, sizeof(path), "%s/sock", test_tmpdir());
    CHECK_PREFIX(refusal(path, 1000, -ENOENT), "there is no socket /tmp/");
    memset(longest, 'x', sizeof(longest));
    longest[sizeof(longest) - 1] = 0;
    CHECK_PREFIX(refusal(longest, 1000, -ENAMETOOLONG), "the path xxx");

    file = fopen(path, "w");
    CHECK(file != NULL);
    fclose(file);
    CHECK(strstr(refusal(path, 1000, -ENOTSOCK), " is not a socket") != NULL);
    CHECK_INT(unlink(path), 0);

    int fd = listen_at(path);
    int64_t start = test_now_ms();
    CHECK_PREFIX(refusal(path, 200, -ETIMEDOUT), "the server did not answer within 200 ms");
    CHECK(test_now_ms() - start < 3000);
    close(fd);
    CHECK_PREFIX(refusal(path, 1000, -ECONNREFUSED), "nobody listens on /tmp/");
}

/* What a server sends in answer to VERSION, and what the user is told. */
struct greeting {
    uint16_t cmd;
    uint32_t flags, error_no;
    uint16_t major, minor;
    const char *json;
    const char *prefix;
};

static const struct greeting greetings[] = {
    { OB_CMD_VERSION, OB_HDR_REPLY | OB_HDR_ERROR, EBUSY, 0, 0, "",
      "the server refused the connection: it is in use by another client" },
    { OB_CMD_VERSION, OB_HDR_REPLY | OB_HDR_ERROR, 0, 0, 0, "",
      "the server refused the connection: Invalid argument" },
    { OB_CMD_VERSION, OB_HDR_REPLY | OB_HDR_ERROR, 4000, 0, 0, "",
      "the server refused the connection: unknown error" },
    { OB_CMD_VERSION, OB_HDR_REPLY, 0, 1, 0, "{}", "the server cannot be used: it speaks another" },
    { OB_CMD_VERSION, OB_HDR_REPLY, 0, 0, 1, "{}", "the server cannot be used: it speaks another" },
    { OB_CMD_VERSION, OB_HDR_REPLY, 0, 0, 0, "{", "the server cannot be used: " },
    { OB_CMD_VERSION, OB_HDR_REPLY, 0, 0, 0, "{\"capabilities\":{\"max_data_xfer_size\":0}}",
      "the server cannot be used: " },
    { OB_CMD_DMA_MAP, OB_HDR_REPLY, 0, 0, 0, "{}",
      "the server answered VERSION with a reply to DMA_MAP (2) while connecting; is it a "
      "vfio-user" },
    { 0x5448, 0x20312e31, 0, 0, 0, "HTTP",
      "the server answered VERSION with a reply to command (21576) while" },
};

static void *greet(void *opaque)
{
    struct peer *peer = opaque;
    const struct greeting *g = peer->arg;
    struct ob_wire_version version = { g->major, g->minor };
    struct ob_wire_hdr hdr = { .cmd = g->cmd, .flags = g->flags, .error_no = g->error_no };
    char payload[200];

    peer_expect(peer, OB_CMD_VERSION);
    hdr.msg_id = peer->msg->hdr.msg_id;
    memcpy(payload, &version, sizeof(version));
    CHECK(strlen(g->json) < sizeof(payload) - sizeof(version));
    memcpy(payload + sizeof(version), g->json, strlen(g->json) + 1);
    peer_send(peer, &hdr, payload,
              hdr.error_no ? 0 : (uint32_t)(sizeof(version) + strlen(g->json) + 1), NULL, 0);
    close(peer->fd);
    return NULL;
}

TEST(bad_greetings, "says-why-the-negotiation-failed")
{
    struct peer peer = { .msg = malloc(sizeof(struct peer_msg)) };

    for (size_t i = 0; i < sizeof(greetings) / sizeof(greetings[0]); i++) {
        struct ob_client *client;
        char why[300];
        int fds[2];

        CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        peer.fd = fds[1];
        peer.arg = (void *)&greetings[i];
        CHECK_INT(pthread_create(&peer.thread, NULL, greet, &peer), 0);
        CHECK(ob_client_connect_fd(fds[0], NULL, &client, why, sizeof(why)) < 0);
        CHECK_PREFIX(why, greetings[i].prefix);
        CHECK_INT(pthread_join(peer.thread, NULL), 0);
    }
    free(peer.msg);
}
