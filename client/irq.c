/* SPDX-License-Identifier: BSD-3-Clause */
/* SET_IRQS: eventfds for the device's interrupts, masks. */
#include "client/memo.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* One SET_IRQS message. */
struct irq_set {
    uint32_t index, flags, start, count;
    const uint8_t *bools;
    const int *fds;
};

static int send_set(struct ob_client *c, const struct irq_set *set)
{
    uint32_t len = set->bools ? set->count : 0;
    struct ob_wire_set_irqs wire = { (uint32_t)sizeof(wire) + len, set->flags, set->index,
                                     set->start, set->count };
    struct ob_body body = { &wire, sizeof(wire), set->bools,
                            len,   set->fds,     set->fds ? set->count : 0 };

    return ob_request_call(c, OB_CMD_DEVICE_SET_IRQS, &body, 0, 0, NULL);
}

static uint32_t fds_max(const struct ob_client *c)
{
    return c->caps.max_msg_fds < OB_MSG_FDS_MAX ? c->caps.max_msg_fds : OB_MSG_FDS_MAX;
}

/* Gives all vectors of the set an eventfd that nobody listens to. */
static int send_unheard(struct ob_client *c, const struct irq_set *set)
{
    int fds[OB_MSG_FDS_OFFER];
    uint32_t max = fds_max(c) < OB_MSG_FDS_OFFER ? fds_max(c) : OB_MSG_FDS_OFFER;
    uint32_t end = set->start + set->count;
    struct irq_set some = *set;
    int rc = 0;

    fds[0] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fds[0] < 0)
        return -errno;
    for (unsigned i = 1; i < OB_MSG_FDS_OFFER; i++)
        fds[i] = fds[0];
    some.fds = fds;
    for (; rc == 0 && some.start < end; some.start += some.count) {
        some.count = end - some.start < max ? end - some.start : max;
        rc = send_set(c, &some);
    }
    close(fds[0]);
    return rc;
}

/*
 * Takes eventfds back. libvfio-user ignores this for most ranges that do not begin at vector 0
 * (it takes the count for the end). So what is not at the beginning first gets an eventfd that
 * nobody listens to: whatever the server makes of the rest, the old ones are out of use.
 */
static int send_deassign(struct ob_client *c, const struct irq_set *set)
{
    int rc = 0;

    if (set->start > 0 && (set->flags & OB_IRQ_SET_ACTION_TRIGGER) && fds_max(c) > 0)
        rc = send_unheard(c, set);
    return rc < 0 ? rc : send_set(c, set);
}

/* Sends runs of vectors that all have an eventfd, or all have none: the protocol has no mixture. */
static int send_eventfds(struct ob_client *c, const struct irq_set *set)
{
    uint32_t done = 0, max = fds_max(c);
    int rc = 0;

    while (rc == 0 && done < set->count) {
        bool assign = set->fds[done] >= 0;
        uint32_t n = 1;
        while (done + n < set->count && (set->fds[done + n] >= 0) == assign && (!assign || n < max))
            n++;
        struct irq_set run = *set;
        run.start += done;
        run.count = n;
        run.fds = assign ? set->fds + done : NULL;
        if (assign && max == 0)
            return -EOPNOTSUPP;
        rc = assign ? send_set(c, &run) : send_deassign(c, &run);
        done += n;
    }
    return rc;
}

static bool one_bit(uint32_t bits)
{
    return bits && !(bits & (bits - 1));
}

int ob_client_set_irqs(struct ob_client *client, uint32_t index, uint32_t flags, uint32_t start,
                       uint32_t count, const uint8_t *bools, const int *fds)
{
    struct irq_set set = { index, flags, start, count, bools, fds };
    uint32_t data = flags & OB_IRQ_SET_DATA_MASK;
    int rc;

    if ((flags & ~(OB_IRQ_SET_DATA_MASK | OB_IRQ_SET_ACTIONS)) || !one_bit(data) ||
        !one_bit(flags & OB_IRQ_SET_ACTIONS) || count > OB_IRQ_VECTORS_MAX ||
        start > OB_IRQ_VECTORS_MAX - count)
        return -EINVAL;
    if ((bools != NULL) != (data == OB_IRQ_SET_DATA_BOOL) ||
        (fds && data != OB_IRQ_SET_DATA_EVENTFD))
        return -EINVAL;
    if (!ob_memo_enter(client))
        return -EDEADLK;
    rc = fds                               ? send_eventfds(client, &set)
         : data == OB_IRQ_SET_DATA_EVENTFD ? send_deassign(client, &set)
                                           : send_set(client, &set);
    rc = ob_memo_note_irqs(client, index, flags, start, count, bools, fds, rc);
    ob_memo_leave(client);
    return rc;
}

int ob_client_irq_eventfds(struct ob_client *client, uint32_t index, uint32_t start, uint32_t count,
                           const int *fds)
{
    return ob_client_set_irqs(client, index, OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER,
                              start, count, NULL, fds);
}

int ob_client_irq_disable(struct ob_client *client, uint32_t index)
{
    return ob_client_set_irqs(client, index, OB_IRQ_SET_DATA_NONE | OB_IRQ_SET_ACTION_TRIGGER, 0, 0,
                              NULL, NULL);
}

int ob_client_irq_mask(struct ob_client *client, uint32_t index, uint32_t vector, bool mask)
{
    uint32_t action = mask ? OB_IRQ_SET_ACTION_MASK : OB_IRQ_SET_ACTION_UNMASK;

    return ob_client_set_irqs(client, index, OB_IRQ_SET_DATA_NONE | action, vector, 1, NULL, NULL);
}
