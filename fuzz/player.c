/* SPDX-License-Identifier: BSD-3-Clause */
#include "player.h"
#include "kinds.h"
#include "world.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct message reply;

/* ---- What the client sends ------------------------------------------------------------------ */

/* The client's own bytes are right, whatever it was sent. */
static void check_message(const struct player *p, const struct ob_channel *ch,
                          const struct ob_msg *msg)
{
    if ((msg->hdr.flags & OB_HDR_TYPE_MASK) == OB_HDR_REPLY) {
        bool error = msg->hdr.flags & OB_HDR_ERROR;

        HOLDS(error ? msg->hdr.error_no > 0 && msg->hdr.error_no < 4096
                    : ob_check_reply(&msg->hdr, msg->hdr.cmd) == OB_OK);
        return;
    }
    HOLDS(ch == &p->main);
    HOLDS(ob_check_command(&msg->hdr, OB_CLIENT_TO_SERVER,
                           msg->hdr.cmd == OB_CMD_VERSION ? OB_STATE_NEGOTIATE : OB_STATE_READY) ==
          OB_OK);
}

/* A request waits for its reply, in the place of the oldest when there are too many. */
static void keep(struct player *p, const struct ob_msg *msg)
{
    unsigned at = p->npending;

    if (at == PENDING_MAX) {
        memmove(&p->pending[0], &p->pending[1], sizeof(p->pending[0]) * --at);
        p->npending--;
    }
    p->npending++;
    p->pending[at].hdr = msg->hdr;
    memset(p->pending[at].payload, 0, sizeof(p->pending[at].payload));
    if (msg->len)
        memcpy(p->pending[at].payload, msg->payload,
               msg->len < sizeof(p->pending[at].payload) ? msg->len
                                                         : sizeof(p->pending[at].payload));
}

static void receive(struct player *p, struct ob_channel *ch)
{
    struct ob_msg *msg;

    while (ch->fd >= 0) {
        int rc = ob_channel_recv(ch, &msg);

        if (rc < 0) {
            ob_channel_fini(ch);
            ch->fd = -1;
        }
        if (rc <= 0)
            return;
        check_message(p, ch, msg);
        if ((msg->hdr.flags & OB_HDR_TYPE_MASK) == OB_HDR_COMMAND && msg->hdr.cmd != OB_CMD_VERSION)
            player_note_taken(p);
        if ((msg->hdr.flags & (OB_HDR_TYPE_MASK | OB_HDR_NO_REPLY)) == OB_HDR_COMMAND)
            keep(p, msg);
        ob_msg_free(msg);
    }
}

/* ---- What it sends -------------------------------------------------------------------------- */

static void let_client_be(void *opaque)
{
    struct player *p = opaque;

    receive(p, &p->main);
}

void player_send(struct player *p, struct message *msg)
{
    struct ob_channel *ch = (msg->how & MESSAGE_TWIN) && p->twin.fd >= 0 ? &p->twin : &p->main;
    int fds[OB_MSG_FDS_MAX];

    for (unsigned i = 0; i < msg->nfds; i++)
        fds[i] = kind_fd(msg->kinds[i < MESSAGE_KINDS ? i : MESSAGE_KINDS - 1]);
    if (ch->fd >= 0)
        message_send(ch->fd, msg, fds, let_client_be, p);
}

/* The request that is answered now, in reply's shape; it is not pending any more. */
static struct message *take_request(struct player *p, unsigned at)
{
    static struct message request;

    request.hdr = p->pending[at].hdr;
    request.len = sizeof(p->pending[at].payload);
    memcpy(request.payload, p->pending[at].payload, sizeof(p->pending[at].payload));
    p->npending--;
    memmove(&p->pending[at], &p->pending[at + 1], sizeof(p->pending[0]) * (p->npending - at));
    return &request;
}

static void answer(struct player *p, unsigned at, struct input *in)
{
    message_take(in, take_request(p, at), &reply);
    player_send(p, &reply);
}

/* What a device is that does not change: as inputs of message_take(), behind command and how. */
static const uint8_t device_info[] = { 0, 0, 0, 3, 9, 5 };
static const uint8_t region_info[] = { 0, 0, 0, 3, 0, 0, 193, 0 }; /* 256 bytes */
static const uint8_t irq_info[] = { 0, 0, 0, 3, 0, 8 };
/* The start of a config space with MSI and MSI-X, in a reply to a read of all of it. */
static const uint8_t config[] = { 0,    MESSAGE_MORE,
                                  0,    0,
                                  0,    193,
                                  1,    2,
                                  3,    4,
                                  6,    0,
                                  16,   0,
                                  1,    2,
                                  8,    1,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  5,    6,
                                  7,    8,
                                  0,    0,
                                  0,    0,
                                  0x40, 0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  5,    0x60,
                                  0x80, 1,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0,    0,
                                  0x11, 0,
                                  7 };

static bool is_config_read(const struct player *p)
{
    struct ob_wire_region_access access;

    memcpy(&access, p->pending[0].payload, sizeof(access));
    return p->pending[0].hdr.cmd == OB_CMD_REGION_READ && access.region == OB_PCI_REGION_CONFIG &&
           access.count == 256;
}

/* The reply that fits: what an empty input makes, or the device. */
static void answer_right(struct player *p)
{
    struct input in = { NULL, 0, 0 };

    if (p->greeting & GREET_DEVICE)
        switch (p->pending[0].hdr.cmd) {
        case OB_CMD_DEVICE_GET_INFO:
            in = (struct input){ device_info, sizeof(device_info), 0 };
            break;
        case OB_CMD_DEVICE_GET_REGION_INFO:
            in = (struct input){ region_info, sizeof(region_info), 0 };
            break;
        case OB_CMD_DEVICE_GET_IRQ_INFO:
            in = (struct input){ irq_info, sizeof(irq_info), 0 };
            break;
        default:
            if (is_config_read(p))
                in = (struct input){ config, sizeof(config), 0 };
        }
    answer(p, 0, &in);
}

static void answer_with(struct player *p, uint32_t flags, uint32_t error_no, uint32_t len)
{
    const struct message *request = take_request(p, 0);

    reply.hdr = (struct ob_wire_hdr){ .msg_id = request->hdr.msg_id,
                                      .cmd = request->hdr.cmd,
                                      .msg_size = (uint32_t)sizeof(reply.hdr) + len,
                                      .flags = OB_HDR_REPLY | flags,
                                      .error_no = error_no };
    reply.len = len;
    player_send(p, &reply);
}

static void set_fds(unsigned n, uint8_t kind)
{
    reply.nfds = n;
    memset(reply.kinds, kind, sizeof(reply.kinds));
}

static void answer_region(struct player *p)
{
    struct ob_region_layout layout = { .flags = (uint32_t)input_number(p->in) };
    uint32_t index = 0;
    struct ob_writer w;

    layout.size = input_number(p->in);
    layout.fd_offset = input_number(p->in);
    layout.nareas = (uint32_t)input_number(p->in) % (OB_SPARSE_AREAS_MAX + 1);
    for (uint32_t i = 0; i < layout.nareas; i++) {
        layout.areas[i].offset = input_number(p->in);
        layout.areas[i].size = input_number(p->in);
    }
    reply.how = 0;
    set_fds(1, input_u8(p->in));
    memcpy(&index, p->pending[0].payload + offsetof(struct ob_wire_region_info, index), 4);
    ob_writer_init(&w, reply.payload, OB_REGION_INFO_MAX);
    ob_encode_region_layout(&w, index, OB_REGION_INFO_MAX, &layout);
    answer_with(p, 0, 0, (uint32_t)w.len);
}

static void answer_io_fds(struct player *p)
{
    uint32_t count = (uint32_t)input_number(p->in) % (OB_IOEVENTFDS_MAX + 2);
    struct ob_wire_region_io_fds head = { .count = count };
    struct ob_writer w;

    memcpy(&head.index, p->pending[0].payload + offsetof(struct ob_wire_region_io_fds, index), 4);
    head.argsz = (uint32_t)(sizeof(head) + count * sizeof(struct ob_wire_ioeventfd));
    ob_writer_init(&w, reply.payload, sizeof(reply.payload));
    ob_writer_put(&w, &head, sizeof(head));
    for (uint32_t i = 0; i < count; i++) {
        struct ob_wire_ioeventfd e = { .offset = input_number(p->in), .size = input_number(p->in) };

        e.fd_index = (uint32_t)input_number(p->in);
        e.type = (uint32_t)input_number(p->in);
        e.flags = (uint32_t)input_number(p->in);
        e.datamatch = input_number(p->in);
        ob_writer_put(&w, &e, sizeof(e));
    }
    reply.how = 0;
    count = (uint32_t)input_number(p->in) % (OB_IOEVENTFDS_MAX + 1);
    set_fds(count, input_u8(p->in));
    answer_with(p, 0, 0, (uint32_t)w.len);
}

/* A good VERSION reply; the second socket's other end stays here. */
static void greet(struct player *p)
{
    bool twin = (p->greeting & GREET_TWIN) && p->twin.fd < 0;
    struct ob_wire_version version = { OB_VERSION_MAJOR, OB_VERSION_MINOR };
    const struct message *request = take_request(p, 0);
    struct ob_wire_hdr hdr = { .msg_id = request->hdr.msg_id,
                               .cmd = OB_CMD_VERSION,
                               .flags = OB_HDR_REPLY };
    struct ob_caps caps;
    int ends[2] = { -1, -1 }, fds[2];
    unsigned nfds = 0;
    char json[512];
    int len;

    ob_caps_offer(&caps);
    caps.write_multiple = p->greeting & GREET_MULTI;
    caps.twin_socket = twin;
    caps.twin_fd_index = 0;
    if (p->greeting & GREET_MIGRATION)
        ob_caps_offer_migration(&caps);
    if (p->greeting & GREET_FEW_FDS)
        caps.max_msg_fds = 1;
    if (p->greeting & GREET_SMALL)
        caps.max_data_xfer_size = 100;
    if (p->greeting & GREET_PAGES)
        caps.pgsizes = 0x10000;
    if (twin) {
        HOLDS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0 &&
              ob_channel_init(&p->twin, ends[0], OB_PAYLOAD_MAX) == 0);
        fds[nfds++] = ends[1];
    }
    if (p->offers_ring)
        nfds = player_add_ring(p, &caps, fds, nfds);
    len = ob_caps_print(&caps, true, json, sizeof(json));
    HOLDS(len > 0);
    ob_channel_try(&p->main, &hdr,
                   (struct iovec[]){ { &version, sizeof(version) }, { json, (size_t)len } }, 2, fds,
                   nfds);
    while (nfds > 0)
        close(fds[--nfds]);
}

static void send_raw(struct player *p)
{
    uint8_t first = input_u8(p->in);
    int fd = (first & 0x80) && p->twin.fd >= 0 ? p->twin.fd : p->main.fd;
    size_t len = first & 0x7f;
    const uint8_t *bytes = input_take(p->in, &len);

    if (fd >= 0 && len)
        send(fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void close_one(struct player *p, uint8_t how)
{
    struct ob_channel *ch = how & 1 ? &p->twin : &p->main;

    if (ch->fd < 0)
        return;
    if (how & 2) {
        shutdown(ch->fd, SHUT_WR);
        return;
    }
    ob_channel_fini(ch);
    ch->fd = -1;
}

/* ---- Its turn ------------------------------------------------------------------------------- */

/* Operations that need no request. False: it is another one. */
static bool act_alone(struct player *p, enum player_operation op)
{
    switch (op) {
    case PLAY_COMMAND:
        message_take(p->in, NULL, &reply);
        player_send(p, &reply);
        return true;
    case PLAY_RAW:
        send_raw(p);
        return true;
    case PLAY_CLOSE:
        close_one(p, input_u8(p->in));
        return true;
    case PLAY_ACCESS:
        if (end_has(&p->ring))
            player_serve_ring(p, 0, NULL);
        return true;
    case PLAY_RING:
        end_act(&p->ring, p->in, false);
        return true;
    case PLAY_OPEN:
        player_change_polls(p, input_u8(p->in) & 1);
        return true;
    default:
        return false;
    }
}

static void act(struct player *p, enum player_operation op)
{
    if (act_alone(p, op) || p->npending == 0)
        return;
    switch (op) {
    case PLAY_REPLY:
        answer(p, 0, p->in);
        break;
    case PLAY_NEWEST:
        answer(p, p->npending - 1, p->in);
        break;
    case PLAY_ALL:
        while (p->npending > 0)
            answer_right(p);
        break;
    case PLAY_ERROR:
        reply.how = 0;
        set_fds(0, 0);
        answer_with(p, OB_HDR_ERROR, (uint32_t)input_number(p->in), 0);
        break;
    case PLAY_REGION:
        answer_region(p);
        break;
    case PLAY_IO_FDS:
        answer_io_fds(p);
        break;
    default:
        answer_right(p);
    }
}

bool player_turn(void *opaque)
{
    struct player *p = opaque;
    enum player_operation op;

    receive(p, &p->main);
    receive(p, &p->twin);
    if (p->npending > 0 && p->pending[0].hdr.cmd == OB_CMD_VERSION &&
        (p->greeting & GREET_ITSELF) && p->main.fd >= 0) {
        greet(p);
        return true;
    }
    if (p->eager && end_has(&p->ring)) {
        player_serve_ring(p, 0, NULL);
        return true;
    }
    if (p->eager && p->npending > 0) {
        answer_right(p);
        return true;
    }
    if (!input_left(p->in))
        return false;
    op = (enum player_operation)(input_u8(p->in) % PLAY_OPERATIONS);
    if (op == PLAY_SILENCE)
        return false;
    act(p, op);
    return true;
}

int player_connect(struct player *p)
{
    int ends[2];

    close_one(p, 0);
    close_one(p, 1);
    p->npending = 0;
    end_close(&p->ring);
    p->polls = false;
    p->taken = 0;
    HOLDS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    HOLDS(ob_channel_init(&p->main, ends[1], OB_PAYLOAD_MAX) == 0);
    return ends[0];
}

void player_begin(struct player *p, struct input *in, uint8_t greeting)
{
    memset(p, 0, sizeof(*p));
    p->in = in;
    p->greeting = greeting;
    p->main.fd = p->twin.fd = -1;
    world.hook = player_turn;
    world.tick = player_tick;
    world.opaque = p;
}

void player_end(struct player *p)
{
    world.hook = NULL;
    world.tick = NULL;
    close_one(p, 0);
    close_one(p, 1);
    end_close(&p->ring);
}
