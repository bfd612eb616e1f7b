/* SPDX-License-Identifier: BSD-3-Clause */
/* What the device is: its regions and interrupts as the server describes them, and its reset. */
#include "client/memo.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int get_info(struct ob_client *c, struct ob_wire_device_info *wire)
{
    struct ob_body body = { .fixed = wire, .fixed_len = sizeof(*wire) };
    struct ob_msg *reply;
    int rc;

    *wire = (struct ob_wire_device_info){ .argsz = sizeof(*wire) };
    rc = ob_request_call(c, OB_CMD_DEVICE_GET_INFO, &body, sizeof(*wire), sizeof(*wire), &reply);
    if (rc < 0)
        return rc;
    memcpy(wire, reply->payload, sizeof(*wire));
    ob_msg_free(reply);
    return 0;
}

int ob_client_device_info(struct ob_client *client, struct ob_device_info *out)
{
    struct ob_wire_device_info wire;
    int rc = get_info(client, &wire);

    if (ob_err_class(rc) == OB_ERR_PEER && (rc = ob_client_revive(client, rc)) == 0)
        rc = get_info(client, &wire);
    if (rc < 0)
        return rc;
    if (wire.num_regions > OB_REGIONS_MAX || wire.num_irqs > OB_IRQS_MAX)
        return ob_client_die(client,
                             "the server claims %u regions and %u interrupt indexes; "
                             "more than %u and %u are not taken",
                             wire.num_regions, wire.num_irqs, OB_REGIONS_MAX, OB_IRQS_MAX);
    *out = (struct ob_device_info){ wire.flags, wire.num_regions, wire.num_irqs };
    return 0;
}

int ob_client_irq_info(struct ob_client *client, uint32_t index, struct ob_irq_info *out)
{
    struct ob_wire_irq_info wire = { .argsz = sizeof(wire), .index = index };
    struct ob_body body = { .fixed = &wire, .fixed_len = sizeof(wire) };
    struct ob_msg *reply;
    int rc = ob_request_call(client, OB_CMD_DEVICE_GET_IRQ_INFO, &body, sizeof(wire), sizeof(wire),
                             &reply);

    if (rc < 0)
        return rc;
    memcpy(&wire, reply->payload, sizeof(wire));
    ob_msg_free(reply);
    if (wire.index != index || wire.count > OB_IRQ_VECTORS_MAX)
        return ob_client_die(client, "the server claims %u interrupts of index %u, asked for %u",
                             wire.count, wire.index, index);
    *out = (struct ob_irq_info){ wire.flags, wire.count };
    return 0;
}

static int reset(struct ob_client *c)
{
    const struct ob_body body = { 0 };

    return ob_request_call(c, OB_CMD_DEVICE_RESET, &body, 0, 0, NULL);
}

/* libvfio-user refuses a reset of a device that was stopped to migrate, and leaves the migration
 * state of others as it is (L-13): it is put to RUNNING by hand. */
static int reset_to_running(struct ob_client *client)
{
    enum ob_mig_state state;
    int rc = reset(client), rc2;

    if (!client->caps.migration || !ob_client_may_ask(client) ||
        (rc < 0 && ob_err_class(rc) != OB_ERR_PEER))
        return rc;
    rc2 = ob_client_mig_state_get(client, &state);
    if (rc2 < 0)
        return ob_err_class(rc2) == OB_ERR_PEER ? rc : rc2;
    if (state == OB_MIG_STATE_RUNNING)
        return rc;
    rc2 = ob_client_mig_state_set(client, OB_MIG_STATE_RUNNING);
    if (rc2 < 0)
        return rc < 0 ? rc : rc2;
    return rc < 0 ? reset(client) : 0;
}

int ob_client_reset(struct ob_client *client)
{
    struct ob_memo_past past;
    int rc;

    if (!ob_memo_enter(client))
        return -EDEADLK;
    ob_memo_begin_reset(client, &past);
    rc = ob_memo_note_reset(client, &past, reset_to_running(client));
    ob_memo_leave(client);
    return rc;
}

/* ---- Regions ------------------------------------------------------------------------------ */

static int ask_region_info(struct ob_client *c, uint32_t index, uint32_t argsz,
                           struct ob_msg **reply)
{
    struct ob_wire_region_info wire = { .argsz = argsz, .index = index };
    struct ob_body body = { .fixed = &wire, .fixed_len = sizeof(wire) };

    return ob_request_call(c, OB_CMD_DEVICE_GET_REGION_INFO, &body, sizeof(wire), argsz, reply);
}

/*
 * Asks for the fixed part, and again with the size that the server then says it needs: the
 * capabilities, and the fd with them, only come when there is room for all of them.
 */
static int get_region_info(struct ob_client *c, uint32_t index, struct ob_msg **out)
{
    struct ob_wire_region_info wire;
    struct ob_msg *reply;
    int rc = ask_region_info(c, index, sizeof(wire), &reply);

    if (rc < 0)
        return rc;
    memcpy(&wire, reply->payload, sizeof(wire));
    if (wire.argsz > sizeof(wire)) {
        ob_msg_free(reply);
        if (wire.argsz > OB_REGION_INFO_MAX) {
            ob_client_die(c,
                          "the server's description of region %u (%s) takes %u bytes; more than "
                          "%u are not taken",
                          index, ob_strregion(index), wire.argsz, OB_REGION_INFO_MAX);
            return -ENOTCONN;
        }
        rc = ask_region_info(c, index, wire.argsz, &reply);
        if (rc < 0)
            return rc;
    }
    *out = reply;
    return 0;
}

/* The protocol knows one fd for a region. With several nothing says which area is whose, so none is
 * trusted, and the region is accessed by message. */
static int take_region_fd(const struct ob_client *c, struct ob_region_layout *layout,
                          struct ob_msg *reply)
{
    if ((layout->flags & OB_REGION_MMAP) && reply->nfds == 1)
        return c->opt.any_files || ob_fd_is_memory(reply->fds[0]) ? ob_msg_claim_fd(reply, 0) : -1;
    layout->flags &= ~OB_REGION_MMAP;
    layout->nareas = 0;
    return -1;
}

int ob_client_region_info(struct ob_client *client, uint32_t index, struct ob_region_info *out)
{
    struct ob_region_layout layout;
    struct ob_msg *reply = NULL;
    const char *why;
    int rc;

    if (client->memo && index < client->memo->identity.info.num_regions)
        return ob_memo_region_info(client, index, out);
    rc = get_region_info(client, index, &reply);

    if (rc != 0)
        return rc;
    rc = ob_decode_region_layout(reply->payload, reply->len, index, &layout, &why);
    if (rc < 0) {
        ob_msg_free(reply);
        return ob_client_die(client, "the server's description of region %u (%s) is wrong: %s",
                             index, ob_strregion(index), why);
    }
    out->fd = take_region_fd(client, &layout, reply);
    out->layout = layout;
    ob_msg_free(reply);
    return 0;
}

void ob_region_info_fini(struct ob_region_info *info)
{
    if (info->fd >= 0)
        ob_fd_discard(info->fd, NULL);
    info->fd = -1;
}
