/* SPDX-License-Identifier: BSD-3-Clause */
/* Interrupts: which kind, when, and how many completions share one. */
#include "nvme.h"

static bool masked(const struct nvme_ctrl *c, const struct nvme_cq *cq)
{
    return cq->vector < 32 && (c->intms >> cq->vector & 1);
}

static bool is_pin(const struct nvme_ctrl *c)
{
    return ob_server_irq_armed(c->server, OB_PCI_IRQ_MSIX) == 0 &&
           ob_server_irq_armed(c->server, OB_PCI_IRQ_MSI) == 0;
}

/* Whether there is anything that the host has not taken from its queues. */
static bool pin_level(const struct nvme_ctrl *c)
{
    for (unsigned i = 0; i <= c->top; i++) {
        const struct nvme_cq *cq = &c->cq[i];
        if (cq->live && cq->irq && !masked(c, cq) && cq->head != cq->tail)
            return true;
    }
    return false;
}

bool nvme_intx(void *opaque)
{
    struct nvme_ctrl *c = opaque;

    if (nvme_running(c)) {
        nvme_doorbells_poll(c);
        c->intx = is_pin(c) && pin_level(c);
    }
    return c->intx;
}

/*
 * Interrupt coalescing: until so many completions wait, or the first of them has waited for so
 * long. Not for the admin queue, a vector that has it disabled, and the pin.
 */
static bool held_back(struct nvme_ctrl *c, struct nvme_cq *cq)
{
    uint32_t threshold = NVME_COALESCE_THRESHOLD(c->features.coalescing);
    uint32_t time = NVME_COALESCE_TIME(c->features.coalescing);
    int64_t now;

    if (cq == &c->cq[0] || time == 0 || cq->unsignalled >= threshold ||
        (c->features.vector[cq->vector] & NVME_VECTOR_NO_COALESCING))
        return false;
    now = nvme_now_ns();
    if (cq->hold_ns == 0)
        cq->hold_ns = now + time * NVME_COALESCE_UNIT_NS;
    if (now >= cq->hold_ns)
        return false;
    if (c->hold_ns == 0 || cq->hold_ns < c->hold_ns)
        c->hold_ns = cq->hold_ns;
    return true;
}

/* Message interrupts where the client has set them up, else the pin. INTMS is not for MSI-X. */
void nvme_interrupt(struct nvme_ctrl *c)
{
    bool msix = ob_server_irq_armed(c->server, OB_PCI_IRQ_MSIX) > 0, pin = is_pin(c);
    bool level = pin && pin_level(c);

    c->hold_ns = 0;
    for (unsigned i = 0; i <= c->top; i++) {
        struct nvme_cq *cq = &c->cq[i];
        if (!cq->irq_due || (!msix && masked(c, cq)) || (!pin && held_back(c, cq)))
            continue;
        if (!pin)
            ob_pci_notify(c->server, cq->vector);
        cq->irq_due = false;
        cq->unsignalled = 0;
        cq->hold_ns = 0;
    }
    if (level != c->intx) {
        c->intx = level;
        ob_server_intx(c->server, level);
    }
}
