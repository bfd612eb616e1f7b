/* SPDX-License-Identifier: BSD-3-Clause */
#include "visitors.h"
#include "kinds.h"
#include "server/internal.h"
#include "world.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define ARGS_MAX 10u
#define POLL_US  20

static void no_log(void *opaque, enum ob_log_level level, const char *line)
{
    (void)opaque, (void)level;
    HOLDS(!strchr(line, '\n'));
}

/* The kernel chooses a name that is in no file system. */
static int listen_somewhere(struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t len = sizeof(*address);

    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    HOLDS(fd >= 0 && bind(fd, (struct sockaddr *)address, sizeof(sa_family_t)) == 0);
    HOLDS(getsockname(fd, (struct sockaddr *)address, &len) == 0);
    HOLDS(listen(fd, 16) == 0);
    return fd;
}

static socklen_t address_len(const struct sockaddr_un *address)
{
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(address->sun_path + 1));
}

/* ---- The server's DMA requests -------------------------------------------------------------- */

static void send_reply(struct ob_channel *ch, struct ob_wire_hdr hdr, const void *data, size_t len)
{
    struct iovec iov = { (void *)data, len };

    hdr.flags |= OB_HDR_REPLY;
    ob_channel_try(ch, &hdr, &iov, len ? 1 : 0, NULL, 0);
}

/* Copies as the client's memory is: RAM, repeated. */
static void answer_right(struct ob_channel *ch, const struct ob_wire_hdr *hdr,
                         const struct ob_wire_dma_access *access, uint32_t count)
{
    static uint8_t reply[sizeof(*access) + OB_DATA_XFER_MAX];
    uint64_t at = access->address % (RAM_BYTES / 2);
    uint32_t len = count < RAM_BYTES / 2 ? count : RAM_BYTES / 2;
    struct ob_wire_dma_access said = { access->address, count };

    memcpy(reply, &said, sizeof(said));
    if (hdr->cmd == OB_CMD_DMA_READ)
        memcpy(reply + sizeof(said), ram + at, len);
    send_reply(ch, *hdr, reply, sizeof(said) + (hdr->cmd == OB_CMD_DMA_READ ? count : 0));
}

static void send_request(struct ob_channel *ch)
{
    const struct ob_wire_region_access access = { 0, 0, 4 };
    struct ob_wire_hdr hdr = { .msg_id = 0x7777, .cmd = OB_CMD_REGION_READ };
    struct iovec iov = { (void *)&access, sizeof(access) };

    ob_channel_try(ch, &hdr, &iov, 1, NULL, 0);
}

static void put_access(struct end *ring)
{
    if (ring->ring)
        end_put(ring, &(struct ob_ring_entry){ .cmd = OB_CMD_REGION_READ, .count = 4 });
}

static void answer(struct visitors *v, struct visitor *visitor, struct ob_channel *ch,
                   const struct ob_msg *msg)
{
    unsigned how = v->answered < v->nanswers ? v->answers[v->answered++] : ANSWER_RIGHT;
    struct ob_wire_hdr hdr = msg->hdr;
    struct ob_wire_dma_access access;

    HOLDS(msg->hdr.cmd == OB_CMD_DMA_READ || msg->hdr.cmd == OB_CMD_DMA_WRITE);
    HOLDS(msg->len >= sizeof(access));
    memcpy(&access, msg->payload, sizeof(access));
    HOLDS(access.count > 0 && access.count <= OB_DATA_XFER_MAX);
    if (how % ANSWERS == ANSWER_CLOSE) {
        visitor_leave(visitor);
        return;
    }
    switch ((enum answer)(how % ANSWERS)) {
    case ANSWER_SILENCE:
        return;
    case ANSWER_ERROR:
    case ANSWER_ERROR_0:
        hdr.flags = OB_HDR_ERROR;
        hdr.error_no = how % ANSWERS == ANSWER_ERROR ? EPERM : 0;
        send_reply(ch, hdr, NULL, 0);
        return;
    case ANSWER_SHORT:
        answer_right(ch, &hdr, &access, (uint32_t)access.count / 2);
        return;
    case ANSWER_LONG:
        answer_right(ch, &hdr, &access, (uint32_t)access.count + 1);
        return;
    case ANSWER_OTHER_COUNT:
        access.count ^= 4;
        send_reply(ch, hdr, &access, sizeof(access));
        return;
    case ANSWER_OTHER_ID:
        hdr.msg_id ^= 1;
        answer_right(ch, &hdr, &access, (uint32_t)access.count);
        hdr.msg_id ^= 1;
        break;
    case ANSWER_BEHIND_REQUEST:
        send_request(&visitor->main);
        break;
    case ANSWER_BEHIND_ACCESS:
        put_access(&visitor->ring);
        break;
    default:
        break;
    }
    answer_right(ch, &hdr, &access, (uint32_t)access.count);
}

/* ---- What the server sends ------------------------------------------------------------------ */

/* What came with the reply to VERSION. */
static void take_version(struct visitor *visitor, struct ob_msg *msg)
{
    const uint32_t head = sizeof(struct ob_wire_version);
    struct ob_caps caps;
    const char *why;
    int fd;

    HOLDS(msg->len >= head);
    HOLDS(ob_caps_parse((char *)msg->payload + head, msg->len - head, true, &caps, &why) == 0);
    HOLDS(msg->nfds == (unsigned)caps.twin_socket + caps.ring);
    if (caps.twin_socket)
        HOLDS(ob_channel_init(&visitor->twin, ob_msg_claim_fd(msg, (unsigned)caps.twin_fd_index),
                              OB_PAYLOAD_MAX) == 0);
    if (!caps.ring)
        return;
    fd = ob_msg_claim_fd(msg, (unsigned)caps.ring_fd_index);
    end_open(&visitor->ring, fd);
    HOLDS(visitor->ring.ring && ftruncate(fd, 0) < 0);
    close(fd);
}

static void take_fds(struct visitors *v, struct visitor *visitor, struct ob_msg *msg)
{
    if (msg->nfds && msg->hdr.cmd == OB_CMD_VERSION)
        take_version(visitor, msg);
    for (unsigned i = 0; i < msg->nfds; i++) {
        int fd = ob_msg_claim_fd(msg, i);

        for (unsigned j = 0; fd >= 0 && j < IO_FDS; j++)
            if (v->io_fds[j] < 0 && msg->hdr.cmd == OB_CMD_DEVICE_GET_REGION_IO_FDS) {
                v->io_fds[j] = fd;
                fd = -1;
            }
        if (fd >= 0)
            close(fd);
    }
}

static bool is_command(const struct ob_msg *msg)
{
    return (msg->hdr.flags & OB_HDR_TYPE_MASK) == OB_HDR_COMMAND;
}

/* The server's own bytes are right, whatever it was sent. */
static void check_message(const struct ob_msg *msg)
{
    enum ob_reason reason = is_command(msg)
                                ? ob_check_command(&msg->hdr, OB_SERVER_TO_CLIENT, OB_STATE_READY)
                                : ob_check_reply(&msg->hdr, msg->hdr.cmd);

    HOLDS(reason == OB_OK);
    HOLDS(!(msg->hdr.flags & OB_HDR_ERROR) || (msg->hdr.error_no > 0 && msg->hdr.error_no < 4096));
    HOLDS((msg->hdr.flags & OB_HDR_ERROR) || msg->hdr.error_no == 0);
}

/* Takes one message. 1: a reply, which goes to *reply if that is wanted; 0: a command; or what
 * ob_channel_recv() said, -EAGAIN for nothing. */
static int take(struct visitors *v, struct visitor *visitor, struct ob_channel *ch,
                struct ob_msg **reply)
{
    struct ob_msg *msg;
    int rc = ch->fd < 0 ? 0 : ob_channel_recv(ch, &msg);

    if (rc <= 0)
        return rc < 0 ? rc : -EAGAIN;
    check_message(msg);
    take_fds(v, visitor, msg);
    rc = !is_command(msg);
    if (!rc)
        answer(v, visitor, ch, msg);
    if (rc && reply)
        *reply = msg;
    else
        ob_msg_free(msg);
    return rc;
}

/* Whether there was anything. */
static bool take_all(struct visitors *v, struct visitor *visitor, unsigned *replies)
{
    struct ob_channel *channels[2] = { &visitor->main, &visitor->twin };
    bool any = false;

    for (unsigned i = 0; i < 2; i++) {
        int rc;

        while ((rc = take(v, visitor, channels[i], NULL)) >= 0) {
            any = true;
            *replies += (unsigned)rc;
        }
        if (rc != -EAGAIN && channels[i]->fd >= 0)
            ob_channel_fini(channels[i]);
        if (rc != -EAGAIN)
            channels[i]->fd = -1;
    }
    return any;
}

unsigned visitors_drain(struct visitors *v)
{
    unsigned replies = 0;

    for (unsigned i = 0; i < VISITORS; i++)
        take_all(v, &v->all[i], &replies);
    return replies;
}

/* The server looks at the clock. */
static void server_polls(void *opaque)
{
    struct visitors *v = opaque;

    if (v->polls == 0)
        return;
    v->turn(v->turn_opaque);
    if (--v->polls == 0)
        ob_server_stop(v->server);
}

/* The server waits for the answer to a DMA request, or for anything. */
static bool server_waits(void *opaque)
{
    struct visitors *v = opaque;
    unsigned replies;
    bool any = false;

    for (unsigned i = 0; i < VISITORS; i++)
        any |= take_all(v, &v->all[i], &replies);
    if (!v->polls)
        return any;
    server_polls(v);
    return true;
}

/* ---- Coming and going ----------------------------------------------------------------------- */

static bool build(struct visitors *v, const char *const *args)
{
    char *argv[ARGS_MAX + 2] = { (char *)v->type->name }, banner[256], why[512] = "";
    int argc = 1;

    for (; args && *args; args++)
        argv[argc++] = (char *)*args;
    optind = 0;
    if (v->type->create(argc, argv, no_log, &v->device, &v->server, banner, sizeof(banner), why,
                        sizeof(why)) != 0) {
        HOLDS(why[0] && !strchr(why, '\n'));
        return false;
    }
    ob_server_set_spin(v->server, 0);
    ob_spin_init(&v->server->spin, POLL_US, 0);
    ob_server_set_timeout(v->server, 10);
    return true;
}

bool visitors_try(struct visitors *v, const struct ob_served *type, const char *const *args)
{
    static struct sockaddr_un address;

    memset(v, 0, sizeof(*v));
    v->type = type;
    v->address = &address;
    for (unsigned i = 0; i < VISITORS; i++)
        v->all[i].main.fd = v->all[i].twin.fd = -1;
    for (unsigned i = 0; i < IO_FDS; i++)
        v->io_fds[i] = -1;
    v->current = &v->all[0];
    world.hook = server_waits;
    world.opaque = v;
    if (!build(v, args))
        return false;
    HOLDS(ob_server_listen_fd(v->server, listen_somewhere(&address)) == 0);
    return true;
}

void visitors_begin(struct visitors *v, const struct ob_served *type, const char *const *args)
{
    HOLDS(visitors_try(v, type, args));
}

void visitor_leave(struct visitor *visitor)
{
    if (visitor->main.fd >= 0)
        ob_channel_fini(&visitor->main);
    if (visitor->twin.fd >= 0)
        ob_channel_fini(&visitor->twin);
    visitor->main.fd = visitor->twin.fd = -1;
    end_close(&visitor->ring);
}

void visitor_connect(struct visitors *v, unsigned number)
{
    struct visitor *visitor = &v->all[number % VISITORS];
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    visitor_leave(visitor);
    v->current = visitor;
    HOLDS(fd >= 0);
    if (connect(fd, (struct sockaddr *)v->address, address_len(v->address)) == 0)
        HOLDS(ob_channel_init(&visitor->main, fd, OB_PAYLOAD_MAX) == 0);
    else
        close(fd);
}

void visitors_step(struct visitors *v, unsigned most)
{
    struct pollfd p = { .fd = ob_server_fd(v->server), .events = POLLIN };

    while (!v->polls && most-- > 0 && poll(&p, 1, 0) == 1)
        HOLDS(ob_server_step(v->server) == 0);
}

void visitors_poll(struct visitors *v, unsigned turns, void (*turn)(void *opaque), void *opaque)
{
    if (v->polls || turns == 0)
        return;
    v->polls = turns;
    v->turn = turn;
    v->turn_opaque = opaque;
    ob_spin_init(&v->server->spin, POLL_US, 0); /* as if it had paid lately */
    world.tick = server_polls;
    HOLDS(ob_server_run(v->server) == 0);
    world.tick = NULL;
    HOLDS(v->polls == 0);
}

int visitor_call(struct visitors *v, uint16_t cmd, const void *payload, uint32_t len, int fd,
                 struct ob_msg **reply)
{
    struct ob_wire_hdr hdr = { .msg_id = 0x5555, .cmd = cmd };
    struct iovec iov = { (void *)payload, len };
    struct ob_msg *msg = NULL;
    int rc = 1;

    visitors_drain(v);
    if (v->current->main.fd < 0 ||
        ob_channel_try(&v->current->main, &hdr, &iov, len ? 1 : 0, &fd, fd >= 0) < 0)
        return 1;
    for (unsigned i = 0; i < 64 && !msg; i++) {
        visitors_step(v, 16);
        while (take(v, v->current, &v->current->main, &msg) == 0)
            ;
    }
    if (!msg)
        return 1;
    if (msg->hdr.msg_id == hdr.msg_id && msg->hdr.cmd == cmd)
        rc = msg->hdr.flags & OB_HDR_ERROR ? -(int)msg->hdr.error_no : 0;
    if (rc == 0 && reply)
        *reply = msg;
    else
        ob_msg_free(msg);
    return rc;
}

static int greet(struct visitors *v, bool twin, bool ring)
{
    uint8_t payload[512] = { 0 };
    int len = snprintf((char *)payload + 4, sizeof(payload) - 4, "%s%s%s}}",
                       VISITOR_JSON ",\"migration\":{\"pgsize\":4096}",
                       twin ? ",\"twin_socket\":{\"supported\":true}" : "",
                       ring ? ",\"access_ring\":{\"supported\":true}" : "");

    return visitor_call(v, OB_CMD_VERSION, payload, 4 + (uint32_t)len + 1, -1, NULL);
}

void visitor_greet(struct visitors *v, bool twin, bool ring)
{
    greet(v, twin, ring);
}

static void look_at_accepts(void *opaque)
{
    const struct ob_ring *ring = opaque;
    uint32_t accepts = atomic_load(&ring->accepts);

    HOLDS(!(accepts & OB_RING_OPEN) || accepts == (2 << 1 | OB_RING_OPEN));
}

/* The ring of one that behaves, after two messages: the server executes what is in it, polls when
 * it says so, and has counted them. */
static void check_ring(struct visitors *v, uint32_t id)
{
    struct ob_ring_entry *e = &v->current->ring.ring->entries[0];

    end_put(&v->current->ring, &(struct ob_ring_entry){ .cmd = OB_CMD_REGION_READ,
                                                        .region = OB_PCI_REGION_CONFIG,
                                                        .count = 4 });
    visitors_poll(v, 2, look_at_accepts, v->current->ring.ring);
    HOLDS(atomic_load(&e->state) == OB_RING_TURN && atomic_load(&e->done) == OB_RING_TURN);
    HOLDS(e->error == 0 && e->result == id);
}

void visitors_end(struct visitors *v, void (*check)(struct visitors *v))
{
    struct ob_wire_device_info info = { .argsz = sizeof(info) };
    uint64_t id = 0;
    int rc;

    v->nanswers = 0;
    for (unsigned i = 0; i < VISITORS; i++)
        visitor_leave(&v->all[i]);
    visitors_step(v, 1024);
    visitor_connect(v, 0);
    HOLDS(greet(v, false, true) == 0);
    HOLDS(visitor_call(v, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info), -1, NULL) == 0);
    HOLDS(visitor_read(v, OB_PCI_REGION_CONFIG, 0, &id, 4) == 0);
    HOLDS(id != 0 && (uint32_t)id != UINT32_MAX);
    check_ring(v, (uint32_t)id);
    if (check)
        check(v);
    visitor_leave(v->current);
    visitors_step(v, 64);
    for (unsigned i = 0; i < IO_FDS; i++)
        if (v->io_fds[i] >= 0)
            close(v->io_fds[i]);
    world.hook = NULL;
    rc = v->type->destroy(v->device);
    HOLDS(rc == 0 || rc == -EIO); /* a state from elsewhere may say that data was lost */
}
