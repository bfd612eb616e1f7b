/* SPDX-License-Identifier: BSD-3-Clause */
#include "message.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

static const struct ob_shape *shape_of(uint16_t cmd, bool is_reply)
{
    static const struct ob_shape none;
    const struct ob_msg_type *type = ob_msg_type(cmd);

    return !type ? &none : is_reply ? &type->reply : &type->request;
}

static uint32_t fixed_len(const struct ob_shape *shape)
{
    uint32_t len = 0;

    for (unsigned i = 0; i < shape->nfields; i++)
        len = (uint32_t)shape->fields[i].offset + shape->fields[i].size;
    return len;
}

static uint64_t get_field(const uint8_t *payload, const struct ob_field *field)
{
    uint64_t value = 0;

    memcpy(&value, payload + field->offset, field->size);
    return value;
}

/* How much of what follows the fixed part a count stands for. */
static uint64_t fitting_count(uint16_t cmd, uint32_t more)
{
    return cmd == OB_CMD_REGION_WRITE_MULTI ? more / sizeof(struct ob_wire_write_multi_entry)
                                            : more;
}

/* What a field has to be, or 0. */
static uint64_t fitting(const struct message *msg, const struct message *request,
                        const struct ob_field *field, uint32_t more)
{
    const struct ob_shape *asked = shape_of(msg->hdr.cmd, false);
    bool is_count = strcmp(field->name, "count") == 0 ||
                    (msg->hdr.cmd >= OB_CMD_MIG_DATA_READ && strcmp(field->name, "size") == 0);

    if (strcmp(field->name, "argsz") == 0)
        return msg->len;
    if (is_count && more)
        return fitting_count(msg->hdr.cmd, more);
    if (!request || request->hdr.cmd != msg->hdr.cmd)
        return 0;
    for (unsigned i = 0; i < asked->nfields; i++)
        if (strcmp(asked->fields[i].name, field->name) == 0 && asked->fields[i].size == field->size)
            return get_field(request->payload, &asked->fields[i]);
    return 0;
}

/* Takes a length and so many bytes to the end of the payload; zeros where the input ends. */
static void take_more(struct input *in, struct message *msg)
{
    uint64_t len = input_number(in);
    uint32_t room = (uint32_t)sizeof(msg->payload) - msg->len;
    size_t have;
    const uint8_t *bytes;

    len = have = len < room ? (uint32_t)len : room;
    bytes = input_take(in, &have);
    if (have)
        memcpy(msg->payload + msg->len, bytes, have);
    memset(msg->payload + msg->len + have, 0, len - have);
    msg->len += (uint32_t)len;
}

static void take_fields(struct input *in, const struct message *request, struct message *msg)
{
    const struct ob_shape *shape = shape_of(msg->hdr.cmd, request != NULL);
    uint32_t fixed = fixed_len(shape);

    memset(msg->payload, 0, fixed);
    for (unsigned i = 0; i < shape->nfields; i++) {
        uint64_t value = input_number(in);

        memcpy(msg->payload + shape->fields[i].offset, &value, shape->fields[i].size);
    }
    msg->len = fixed;
    if (msg->how & MESSAGE_MORE)
        take_more(in, msg);
    for (unsigned i = 0; i < shape->nfields; i++)
        if (get_field(msg->payload, &shape->fields[i]) == 0) {
            uint64_t value = fitting(msg, request, &shape->fields[i], msg->len - fixed);

            memcpy(msg->payload + shape->fields[i].offset, &value, shape->fields[i].size);
        }
}

/* The data that a read was for, where the reply does not say otherwise. */
static void add_data(const struct message *request, struct message *msg)
{
    struct ob_wire_region_access access;

    if (!request || (msg->how & (MESSAGE_MORE | MESSAGE_RAW)) ||
        msg->hdr.cmd != OB_CMD_REGION_READ || msg->len != sizeof(access))
        return;
    memcpy(&access, msg->payload, sizeof(access));
    if (access.count <= OB_DATA_XFER_MAX) {
        memset(msg->payload + msg->len, 0x5a, access.count);
        msg->len += access.count;
    }
}

void message_take(struct input *in, const struct message *request, struct message *out)
{
    uint64_t grown = 0;

    out->hdr = (struct ob_wire_hdr){ .cmd = input_u8(in) };
    out->how = input_u8(in);
    out->len = out->split = out->nfds = 0;
    if (request) {
        out->hdr.msg_id = request->hdr.msg_id;
        out->hdr.cmd = out->hdr.cmd ? out->hdr.cmd : request->hdr.cmd;
        out->hdr.flags = OB_HDR_REPLY;
    } else {
        out->hdr.flags = out->how & MESSAGE_POSTED ? OB_HDR_NO_REPLY : 0;
    }
    if (out->how & MESSAGE_LIES) {
        out->hdr.flags = (uint32_t)input_number(in);
        out->hdr.msg_id ^= (uint16_t)input_number(in);
        grown = input_number(in);
        out->hdr.error_no = out->hdr.flags & OB_HDR_ERROR ? (uint32_t)input_number(in) : 0;
    }
    if (out->how & MESSAGE_FDS) {
        uint64_t n = input_number(in);

        out->nfds = n < OB_MSG_FDS_MAX ? (unsigned)n : OB_MSG_FDS_MAX;
        for (unsigned i = 0; i < MESSAGE_KINDS; i++)
            out->kinds[i] = i < out->nfds ? input_u8(in) : i ? out->kinds[i - 1] : 0;
    }
    if (out->how & MESSAGE_SPLIT)
        out->split = (uint32_t)input_number(in);
    if (out->how & MESSAGE_RAW)
        take_more(in, out);
    else
        take_fields(in, request, out);
    add_data(request, out);
    out->hdr.msg_size = (uint32_t)(sizeof(out->hdr) + out->len + grown);
}

/* ---- Writing one ---------------------------------------------------------------------------- */

static void put_number(struct ob_writer *w, uint64_t number)
{
    uint8_t bytes[9];

    ob_writer_put(w, bytes, input_put_number(bytes, number));
}

void message_put(struct ob_writer *w, const struct ob_wire_hdr *hdr, const uint8_t *payload,
                 uint32_t len, unsigned nfds, uint8_t kind, uint8_t how)
{
    bool is_reply = (hdr->flags & OB_HDR_TYPE_MASK) == OB_HDR_REPLY;
    const struct ob_shape *shape = shape_of(hdr->cmd, is_reply);
    uint32_t fixed = fixed_len(shape);
    uint8_t cmd = (uint8_t)hdr->cmd;

    how |= nfds ? MESSAGE_FDS : 0;
    how |= len < fixed ? MESSAGE_RAW : len > fixed ? MESSAGE_MORE : 0;
    how |= is_reply && (hdr->flags & OB_HDR_ERROR) ? MESSAGE_LIES : 0;
    how |= !is_reply && (hdr->flags & OB_HDR_NO_REPLY) ? MESSAGE_POSTED : 0;
    ob_writer_put(w, &cmd, 1);
    ob_writer_put(w, &how, 1);
    if (how & MESSAGE_LIES) {
        put_number(w, hdr->flags);
        put_number(w, 0);
        put_number(w, 0);
        put_number(w, hdr->error_no);
    }
    if (nfds)
        put_number(w, nfds);
    for (unsigned i = 0; i < nfds && i < MESSAGE_KINDS; i++)
        ob_writer_put(w, &kind, 1);
    if (how & MESSAGE_RAW) {
        put_number(w, len);
        ob_writer_put(w, payload, len);
        return;
    }
    for (unsigned i = 0; i < shape->nfields; i++)
        put_number(w, get_field(payload, &shape->fields[i]));
    if (how & MESSAGE_MORE) {
        put_number(w, len - fixed);
        ob_writer_put(w, payload + fixed, len - fixed);
    }
}

/* ---- Sending one ---------------------------------------------------------------------------- */

static size_t send_part(int sock, const struct message *msg, size_t from, size_t to, const int *fds,
                        unsigned nfds)
{
    size_t hdr = sizeof(msg->hdr), body = from > hdr ? from : hdr, head = from < hdr ? from : hdr;
    struct iovec iov[2] = {
        { (uint8_t *)&msg->hdr + head, (to < hdr ? to : hdr) - head },
        { (uint8_t *)msg->payload + (body - hdr), to > body ? to - body : 0 },
    };
    static union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int) * OB_MSG_FDS_MAX)];
    } control;
    struct msghdr mh = { .msg_iov = iov, .msg_iovlen = 2 };
    ssize_t n;

    if (nfds) {
        control.align.cmsg_len = CMSG_LEN(sizeof(int) * nfds);
        control.align.cmsg_level = SOL_SOCKET;
        control.align.cmsg_type = SCM_RIGHTS;
        memcpy(CMSG_DATA(&control.align), fds, sizeof(int) * nfds);
        mh.msg_control = &control;
        mh.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
    }
    n = sendmsg(sock, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
    return n < 0 ? 0 : (size_t)n;
}

void message_send(int sock, struct message *msg, const int *fds, void (*turn)(void *opaque),
                  void *opaque)
{
    size_t all = sizeof(msg->hdr) + msg->len, done = 0;
    size_t first = (msg->how & MESSAGE_SPLIT) && msg->split < all ? msg->split : all;

    if (first > 0)
        done = send_part(sock, msg, 0, first, fds, msg->nfds);
    for (unsigned i = 0; done < all && i < 16; i++) {
        turn(opaque);
        done += send_part(sock, msg, done, all, NULL, 0);
    }
}
