/* SPDX-License-Identifier: BSD-3-Clause */
/* GET_REGION_IO_FDS: writes that the server wants by eventfd. */
#include "client/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define REPLY_MAX                           \
    (sizeof(struct ob_wire_region_io_fds) + \
     OB_IOEVENTFDS_MAX * sizeof(struct ob_wire_ioeventfd_shadow))

/* L-5: libvfio-user's entries have a shadow in the middle, and so are longer. Those that are a
 * shadow are of another type; all others have none. */
static bool get_entry(struct ob_cursor *cur, bool is_long, struct ob_ioeventfd *match, uint32_t *fd)
{
    struct ob_wire_ioeventfd wire = { 0 };
    struct ob_wire_ioeventfd_shadow longer = { 0 };

    if (is_long) {
        ob_cursor_get(cur, &longer, sizeof(longer));
        memcpy(&wire, &longer, offsetof(struct ob_wire_ioeventfd, padding));
        wire.datamatch = longer.datamatch;
    } else {
        ob_cursor_get(cur, &wire, sizeof(wire));
    }
    *match = (struct ob_ioeventfd){ wire.offset, wire.size, wire.datamatch, wire.flags };
    *fd = wire.fd_index;
    return wire.type == OB_IO_FD_EVENTFD && ob_ioeventfd_valid(match, UINT64_MAX);
}

static bool clashes(const struct ob_region_io_fds *list, const struct ob_ioeventfd *match)
{
    for (unsigned i = 0; i < list->count; i++)
        if (ob_ioeventfds_clash(&list->entries[i].match, match))
            return true;
    return false;
}

/* What cannot be used is left out: the server takes a message in its place. */
static void take_entries(struct ob_msg *reply, const struct ob_wire_region_io_fds *wire,
                         struct ob_region_io_fds *out)
{
    size_t bytes = reply->len - sizeof(*wire);
    bool is_long = bytes == wire->count * sizeof(struct ob_wire_ioeventfd_shadow);
    struct ob_cursor cur;

    if (!is_long && bytes != wire->count * sizeof(struct ob_wire_ioeventfd))
        return;
    ob_cursor_init(&cur, reply->payload, reply->len);
    ob_cursor_seek(&cur, sizeof(*wire));
    for (uint32_t i = 0; i < wire->count; i++) {
        struct ob_ioeventfd match;
        uint32_t fd;

        if (get_entry(&cur, is_long, &match, &fd) && fd < out->nfds && out->fds[fd] >= 0 &&
            !clashes(out, &match)) {
            out->entries[out->count].match = match;
            out->entries[out->count++].fd = out->fds[fd];
        }
    }
}

/* Who signals must not be blocked by a counter that the server has filled to the brim. */
static int take_fd(struct ob_msg *reply, unsigned i)
{
    if (!ob_fd_is_eventfd(reply->fds[i]) || fcntl(reply->fds[i], F_SETFL, O_NONBLOCK) < 0)
        return -1;
    return ob_msg_claim_fd(reply, i);
}

static void take_fds(struct ob_msg *reply, struct ob_region_io_fds *out)
{
    for (unsigned i = 0; i < reply->nfds && i < OB_IOEVENTFDS_MAX; i++)
        out->fds[out->nfds++] = take_fd(reply, i);
}

int ob_client_region_io_fds(struct ob_client *client, uint32_t index, struct ob_region_io_fds *out)
{
    struct ob_wire_region_io_fds wire = { .argsz = REPLY_MAX, .index = index };
    struct ob_body body = { .fixed = &wire, .fixed_len = sizeof(wire) };
    struct ob_msg *reply;
    int rc;

    if (!ob_client_may_ask(client))
        return -EOPNOTSUPP;
    rc = ob_request_call(client, OB_CMD_DEVICE_GET_REGION_IO_FDS, &body, sizeof(wire), REPLY_MAX,
                         &reply);
    if (rc < 0)
        return rc;
    memcpy(&wire, reply->payload, sizeof(wire));
    if (wire.index != index) {
        ob_msg_free(reply);
        return ob_client_die(client, "the server describes the eventfds of region %u, not of %u",
                             wire.index, index);
    }
    memset(out, 0, sizeof(*out));
    if (wire.count <= OB_IOEVENTFDS_MAX && wire.argsz <= reply->len) {
        take_fds(reply, out);
        take_entries(reply, &wire, out);
    }
    ob_msg_free(reply);
    return 0;
}

int ob_region_io_fd_signal(int fd)
{
    return ob_signal_try(fd) ? 0 : -EOPNOTSUPP;
}

void ob_region_io_fds_fini(struct ob_region_io_fds *list)
{
    for (unsigned i = 0; i < list->nfds; i++)
        if (list->fds[i] >= 0)
            close(list->fds[i]);
    list->count = list->nfds = 0;
}
