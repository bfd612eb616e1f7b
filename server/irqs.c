/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Interrupts. A vector is signalled through the client's eventfd. Masked, it remembers that it was
 * triggered. The INTx line is a level: signalled when it is asserted (then, as AUTOMASKED says, it
 * is masked until the client unmasks it) and at each unmasking while it still is.
 *
 * Any thread may trigger, so all of it is under irq_lock; only mask_by and unmask_by belong to the
 * server's thread. Nothing blocks under the lock, and no callback runs.
 */
#include "server/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

/* An eventfd by which the client masks or unmasks a vector. */
struct ob_irq_watch {
    struct ob_server *server;
    struct ob_source *source;
    uint32_t index, vector;
    bool mask;
    int fd;
};

/* Signals what is due. */
static void deliver_locked(struct ob_irq *irq, struct ob_irq_vector *v)
{
    if (v->fd < 0 || v->masked || irq->held || !(v->pending || (irq->level && v == irq->vectors)))
        return;
    v->pending = false;
    if (irq->flags & OB_IRQ_AUTOMASKED)
        v->masked |= OB_MASKED_BY_CLIENT;
    ob_signal_eventfd(v->fd);
}

static void set_mask_locked(struct ob_irq *irq, uint32_t vector, enum ob_irq_mask by, bool mask)
{
    struct ob_irq_vector *v = &irq->vectors[vector];

    if (mask)
        v->masked |= (uint8_t)by;
    else
        v->masked &= (uint8_t)~by;
    deliver_locked(irq, v);
}

static int trigger_locked(struct ob_irq *irq, uint32_t vector)
{
    struct ob_irq_vector *v = &irq->vectors[vector];

    if (v->fd < 0)
        return -ENOENT;
    v->pending = true;
    deliver_locked(irq, v);
    return 0;
}

static void assign_locked(struct ob_irq *irq, uint32_t vector, int fd)
{
    struct ob_irq_vector *v = &irq->vectors[vector];

    __atomic_fetch_add(&irq->armed, (fd >= 0) - (v->fd >= 0), __ATOMIC_RELAXED);
    if (v->fd >= 0)
        close(v->fd);
    v->fd = fd;
    if (fd >= 0) {
        deliver_locked(irq, v); /* the level of the line may have been waiting for this */
    } else {
        v->pending = false;
    }
}

/* ---- For devices -------------------------------------------------------------------------- */

int ob_server_set_irq(struct ob_server *server, uint32_t index, uint32_t count, uint32_t flags)
{
    struct ob_irq_vector *vectors = NULL;
    struct ob_irq *irq;

    if (index >= OB_IRQS_MAX || count > OB_IRQ_VECTORS_MAX || server->session)
        return -EINVAL;
    if (count) {
        vectors = calloc(count, sizeof(*vectors));
        if (!vectors)
            return -ENOMEM;
        for (uint32_t i = 0; i < count; i++)
            vectors[i].fd = -1;
    }
    pthread_mutex_lock(&server->irq_lock);
    irq = &server->irqs[index];
    free(irq->vectors);
    *irq = (struct ob_irq){ .flags = flags, .count = count, .vectors = vectors };
    pthread_mutex_unlock(&server->irq_lock);
    if (index >= server->num_irqs)
        server->num_irqs = index + 1;
    return 0;
}

int ob_server_irq_trigger(struct ob_server *server, uint32_t index, uint32_t vector)
{
    int rc = -EINVAL;

    if (index >= OB_IRQS_MAX)
        return rc;
    pthread_mutex_lock(&server->irq_lock);
    if (vector < server->irqs[index].count)
        rc = trigger_locked(&server->irqs[index], vector);
    pthread_mutex_unlock(&server->irq_lock);
    return rc;
}

int ob_server_intx(struct ob_server *server, bool asserted)
{
    struct ob_irq *irq = &server->irqs[OB_PCI_IRQ_INTX];
    int rc = -EINVAL;

    pthread_mutex_lock(&server->irq_lock);
    if (irq->count) {
        bool rises = asserted && !irq->level;

        irq->level = asserted;
        if (rises)
            deliver_locked(irq, &irq->vectors[0]);
        rc = 0;
    }
    pthread_mutex_unlock(&server->irq_lock);
    return rc;
}

uint32_t ob_server_irq_armed(const struct ob_server *server, uint32_t index)
{
    return index < OB_IRQS_MAX ? __atomic_load_n(&server->irqs[index].armed, __ATOMIC_RELAXED) : 0;
}

/* ---- For config space --------------------------------------------------------------------- */

void ob_irq_config_mask(struct ob_server *server, uint32_t index, uint32_t vector, bool mask)
{
    pthread_mutex_lock(&server->irq_lock);
    if (vector < server->irqs[index].count)
        set_mask_locked(&server->irqs[index], vector, OB_MASKED_BY_CONFIG, mask);
    pthread_mutex_unlock(&server->irq_lock);
}

bool ob_irq_pending(struct ob_server *server, uint32_t index, uint32_t vector)
{
    bool pending;

    pthread_mutex_lock(&server->irq_lock);
    pending = vector < server->irqs[index].count && server->irqs[index].vectors[vector].pending;
    pthread_mutex_unlock(&server->irq_lock);
    return pending;
}

bool ob_irq_level(struct ob_server *server)
{
    bool level;

    pthread_mutex_lock(&server->irq_lock);
    level = server->irqs[OB_PCI_IRQ_INTX].level;
    pthread_mutex_unlock(&server->irq_lock);
    return level;
}

void ob_irq_set_pending(struct ob_server *server, uint32_t index, uint32_t vector, bool pending)
{
    pthread_mutex_lock(&server->irq_lock);
    server->irqs[index].vectors[vector].pending = pending;
    pthread_mutex_unlock(&server->irq_lock);
}

void ob_irqs_hold(struct ob_server *server, bool hold)
{
    pthread_mutex_lock(&server->irq_lock);
    for (uint32_t i = 0; i < server->num_irqs; i++) {
        struct ob_irq *irq = &server->irqs[i];

        irq->held = hold;
        for (uint32_t k = 0; k < irq->count; k++)
            deliver_locked(irq, &irq->vectors[k]);
    }
    pthread_mutex_unlock(&server->irq_lock);
}

void ob_irqs_reset(struct ob_server *server)
{
    pthread_mutex_lock(&server->irq_lock);
    for (uint32_t i = 0; i < server->num_irqs; i++)
        for (uint32_t k = 0; k < server->irqs[i].count; k++) {
            server->irqs[i].vectors[k].pending = false;
            server->irqs[i].vectors[k].masked &= (uint8_t)~OB_MASKED_BY_CONFIG;
        }
    pthread_mutex_unlock(&server->irq_lock);
}

/* Before an UNMASK: a level that has fallen meanwhile is no reason to signal again. */
static void ask_level(struct ob_server *server, uint32_t index)
{
    if (index == OB_PCI_IRQ_INTX && server->ops.intx)
        ob_server_intx(server, server->ops.intx(server->opaque));
}

/* ---- Masking by eventfd ------------------------------------------------------------------- */

static void drop_watch(struct ob_irq_watch **slot)
{
    struct ob_irq_watch *watch = *slot;

    if (!watch)
        return;
    ob_source_del(watch->server, watch->source);
    close(watch->fd);
    free(watch);
    *slot = NULL;
}

static void watch_ready(void *opaque, uint32_t events)
{
    struct ob_irq_watch *watch = opaque;
    struct ob_server *server = watch->server;

    (void)events;
    if (!watch->mask)
        ask_level(server, watch->index);
    pthread_mutex_lock(&server->irq_lock);
    set_mask_locked(&server->irqs[watch->index], watch->vector, OB_MASKED_BY_CLIENT, watch->mask);
    pthread_mutex_unlock(&server->irq_lock);
}

/*
 * Edge-triggered, so that the counter need not be read: each signal is an event of its own, and a
 * read could block when the client, which has the same eventfd, was faster. fd is taken.
 */
static int add_watch(struct ob_server *server, uint32_t index, uint32_t vector, bool mask, int fd)
{
    struct ob_irq_vector *v = &server->irqs[index].vectors[vector];
    struct ob_irq_watch **slot = mask ? &v->mask_by : &v->unmask_by;
    struct ob_irq_watch *watch = calloc(1, sizeof(*watch));

    if (watch)
        watch->source = ob_source_add(server, fd, EPOLLIN | EPOLLET, watch_ready, watch);
    if (!watch || !watch->source) {
        free(watch);
        close(fd);
        return -ENOMEM;
    }
    watch->server = server;
    watch->index = index;
    watch->vector = vector;
    watch->mask = mask;
    watch->fd = fd;
    drop_watch(slot);
    *slot = watch;
    return 0;
}

/* ---- SET_IRQS ----------------------------------------------------------------------------- */

static void disable(struct ob_server *server, struct ob_irq *irq)
{
    for (uint32_t i = 0; i < irq->count; i++) {
        drop_watch(&irq->vectors[i].mask_by);
        drop_watch(&irq->vectors[i].unmask_by);
    }
    pthread_mutex_lock(&server->irq_lock);
    for (uint32_t i = 0; i < irq->count; i++) {
        assign_locked(irq, i, -1);
        irq->vectors[i].masked &= (uint8_t)~OB_MASKED_BY_CLIENT;
    }
    pthread_mutex_unlock(&server->irq_lock);
}

void ob_irqs_detach(struct ob_server *server)
{
    for (uint32_t i = 0; i < server->num_irqs; i++)
        disable(server, &server->irqs[i]);
}

void ob_irqs_fini(struct ob_server *server)
{
    ob_irqs_detach(server);
    for (uint32_t i = 0; i < server->num_irqs; i++)
        free(server->irqs[i].vectors);
}

static int set_eventfds(struct ob_server *server, const struct ob_wire_set_irqs *request,
                        uint32_t action, struct ob_msg *msg)
{
    struct ob_irq *irq = &server->irqs[request->index];

    for (unsigned i = 0; i < msg->nfds; i++)
        if (!ob_fd_is_eventfd(msg->fds[i]))
            return -EINVAL;
    for (uint32_t i = 0; i < request->count; i++) {
        uint32_t vector = request->start + i;
        bool mask = action == OB_IRQ_SET_ACTION_MASK;
        int fd = ob_msg_claim_fd(msg, i), rc = 0;

        if (action == OB_IRQ_SET_ACTION_TRIGGER) {
            pthread_mutex_lock(&server->irq_lock);
            assign_locked(irq, vector, fd);
            pthread_mutex_unlock(&server->irq_lock);
        } else if (fd < 0) {
            drop_watch(mask ? &irq->vectors[vector].mask_by : &irq->vectors[vector].unmask_by);
        } else {
            rc = add_watch(server, request->index, vector, mask, fd);
        }
        if (rc < 0)
            return rc;
    }
    return 0;
}

int ob_irqs_set(struct ob_server *server, const struct ob_wire_set_irqs *request,
                const uint8_t *bools, struct ob_msg *msg)
{
    uint32_t action = request->flags & OB_IRQ_SET_ACTIONS;
    uint32_t data = request->flags & OB_IRQ_SET_DATA_MASK;
    struct ob_irq *irq;

    if (request->index >= server->num_irqs)
        return -EINVAL;
    irq = &server->irqs[request->index];
    if (request->start > irq->count || request->count > irq->count - request->start)
        return -EINVAL;
    if (data == OB_IRQ_SET_DATA_EVENTFD)
        return set_eventfds(server, request, action, msg);
    if (action == OB_IRQ_SET_ACTION_TRIGGER && request->count == 0) {
        disable(server, irq);
        return 0;
    }
    if (action == OB_IRQ_SET_ACTION_UNMASK)
        ask_level(server, request->index);
    pthread_mutex_lock(&server->irq_lock);
    for (uint32_t i = 0; i < request->count; i++) {
        if (bools && !bools[i])
            continue;
        if (action == OB_IRQ_SET_ACTION_TRIGGER)
            trigger_locked(irq, request->start + i);
        else
            set_mask_locked(irq, request->start + i, OB_MASKED_BY_CLIENT,
                            action == OB_IRQ_SET_ACTION_MASK);
    }
    pthread_mutex_unlock(&server->irq_lock);
    return 0;
}
