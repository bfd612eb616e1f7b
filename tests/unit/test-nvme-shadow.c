/* SPDX-License-Identifier: BSD-3-Clause */
/* Shadow doorbells: Doorbell Buffer Config, and when a message is wanted. */
#include "nvme_host.h"

#include <stdio.h>
#include <unistd.h>

static const struct nvme_sqe FLUSH = { .opcode = NVME_IO_FLUSH, .nsid = 1 };

static void start(struct nvme_host *h)
{
    host_start(h, "mem:1M");
    CHECK_INT(host_shadow(h), 0);
}

/* Until the controller has said that it wants a message when the doorbell leaves this value. */
static void wait_armed(struct nvme_host *h, unsigned index, uint32_t value)
{
    int64_t deadline = test_now_ms() + 10000;

    while (__atomic_load_n(&h->events[index], __ATOMIC_ACQUIRE) != value)
        if (test_now_ms() > deadline)
            test_fail(__FILE__, __LINE__, "doorbell %u: the event index is %u, never %u", index,
                      h->events[index], value);
}

static uint16_t oacs(struct nvme_host *h)
{
    uint32_t at = host_pages(h, 1);

    CHECK_INT(host_identify(h, NVME_CNS_CTRL, 0, at), 0);
    return ((const struct nvme_id_ctrl *)(void *)(h->ram + at))->oacs;
}

TEST(offered, "offered-where-the-doorbells-are-not-mapped")
{
    struct nvme_host h = { 0 }, mapped = { 0 };

    host_start(&h, "mem:1M");
    CHECK_INT(oacs(&h), NVME_OACS_DBBUF);
    CHECK_INT(host_end(&h), 0);
    host_start(&mapped, "--doorbells=mapped", "mem:1M");
    CHECK_INT(oacs(&mapped), 0);
    CHECK_INT(host_shadow(&mapped), NVME_INVALID_OPCODE);
    CHECK_INT(host_end(&mapped), 0);
}

TEST(addresses, "pages-that-are-none-are-refused")
{
    struct nvme_host h = { 0 };
    uint64_t good, outside = HOST_RAM_BASE + HOST_RAM_SIZE;

    host_start(&h, "mem:1M");
    good = host_addr(host_pages(&h, 1));
    const uint64_t wrong[][2] = { { good + 8, good + NVME_PAGE },
                                  { good + NVME_PAGE, good + 8 },
                                  { good, good },
                                  { outside, good },
                                  { good, outside },
                                  { UINT64_MAX - 4095, good } };
    for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct nvme_sqe config = { .opcode = NVME_ADM_DBBUF_CONFIG,
                                   .prp1 = wrong[i][0],
                                   .prp2 = wrong[i][1] };
        CHECK_INT(host_do(&h, 0, config, NULL), NVME_INVALID_FIELD);
        CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0); /* messages still count */
    }
    CHECK_INT(host_end(&h), 0);
}

TEST(again, "one-that-is-refused-leaves-the-pages-before-in-use")
{
    struct nvme_sqe config = { .opcode = NVME_ADM_DBBUF_CONFIG };
    struct nvme_host h = { 0 };
    struct nvme_cqe cqe;

    start(&h);
    for (unsigned i = 0; i < 10; i++)
        CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    config.prp1 = host_addr(host_pages(&h, 1));
    config.prp2 = HOST_RAM_BASE + HOST_RAM_SIZE;
    CHECK_INT(host_do(&h, 0, config, NULL), NVME_INVALID_FIELD);
    CHECK(!host_poll(&h, 1, 0, &cqe)); /* no old command is done again */
    for (unsigned i = 0; i < 100; i++)
        CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    CHECK(!host_poll(&h, 1, 0, &cqe));
    CHECK_INT(host_end(&h), 0);
}

TEST(by_message, "refused-where-memory-is-reached-by-messages")
{
    struct nvme_host h = { .by_message = true };

    host_start(&h, "mem:1M");
    CHECK_INT(host_shadow(&h), NVME_INVALID_FIELD);
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(wakes, "a-sleeping-controller-wants-one-message")
{
    struct nvme_host h = { 0 };
    struct nvme_cqe cqe;
    unsigned before;

    start(&h);
    for (unsigned i = 0; i < 200; i++) { /* over the end of the queue, too */
        wait_armed(&h, 2, h.q[1].tail);
        before = h.rings;
        host_submit(&h, 1, FLUSH);
        CHECK_INT(h.rings, before + 1);
        CHECK_INT(host_wait(&h, 1, &cqe), 0);
        CHECK_INT(h.rings, before + 1); /* nobody waits for the head */
    }
    CHECK_INT(host_end(&h), 0);
}

/* The write says what was true before another command came: it must not turn the time back. */
TEST(stale, "the-value-of-a-message-is-not-used")
{
    struct nvme_host h = { 0 };
    struct nvme_cqe cqe;

    start(&h);
    for (unsigned i = 0; i < 20; i++) {
        uint32_t before = h.q[1].tail;
        host_submit(&h, 1, FLUSH);
        host_submit(&h, 1, FLUSH);
        host_ring_message(&h, 2, (before + 1) % 64);
        host_ring_message(&h, 2, 63);
        CHECK_INT(host_wait(&h, 1, &cqe), 0);
        CHECK_INT(host_wait(&h, 1, &cqe), 0);
        CHECK(!host_poll(&h, 1, 0, &cqe));
    }
    CHECK_INT(host_end(&h), 0);
}

TEST(wrong_value, "a-wrong-value-is-reported-and-ignored")
{
    struct nvme_host h = { 0 };
    struct nvme_cqe cqe;

    start(&h);
    host_submit(&h, 0, (struct nvme_sqe){ .opcode = NVME_ADM_ASYNC_EVENT });
    wait_armed(&h, 2, 0);
    h.shadow[2] = 64; /* one past the last entry */
    host_ring_message(&h, 2, 0);
    CHECK_INT(host_wait(&h, 0, &cqe), 0);
    CHECK_INT(cqe.result, NVME_EVENT_BAD_DOORBELL_VALUE);
    h.shadow[2] = 0;
    host_ring_message(&h, 2, 0);
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(full, "a-full-completion-queue-wants-to-hear-of-room")
{
    struct nvme_host h = { 0 };
    struct nvme_cqe cqe;
    unsigned rings;

    host_serve(&h, "mem:1M", NULL);
    host_connect(&h);
    host_enable(&h);
    host_add_queue(&h, 1, 4, 1);
    CHECK_INT(host_shadow(&h), 0);
    for (unsigned round = 0; round < 20; round++) {
        for (unsigned i = 0; i < 3; i++)
            host_put(&h, 1, FLUSH);
        host_ring(&h, 1);
        wait_armed(&h, 2, h.q[1].tail);
        host_put(&h, 1, FLUSH); /* there is room for three completions */
        host_ring(&h, 1);
        wait_armed(&h, 3, h.q[1].cq_head);
        rings = h.rings;
        CHECK_INT(host_wait(&h, 1, &cqe), 0);
        CHECK_INT(h.rings, rings + 1);
        for (unsigned i = 0; i < 3; i++)
            CHECK_INT(host_wait(&h, 1, &cqe), 0);
    }
    CHECK_INT(host_end(&h), 0);
}

TEST(new_queue, "a-new-queue-begins-at-zero")
{
    struct nvme_host h = { 0 };
    struct nvme_sqe delete = { .opcode = NVME_ADM_DELETE_SQ, .dw10 = 1 };

    start(&h);
    for (unsigned round = 0; round < 5; round++) {
        for (unsigned i = 0; i < 5; i++)
            CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
        CHECK(h.shadow[2] != 0 && h.shadow[3] != 0);
        delete.opcode = NVME_ADM_DELETE_SQ;
        CHECK_INT(host_do(&h, 0, delete, NULL), 0);
        delete.opcode = NVME_ADM_DELETE_CQ;
        CHECK_INT(host_do(&h, 0, delete, NULL), 0);
        host_add_queue(&h, 1, 16, 1);
        CHECK_INT(h.shadow[2] | h.shadow[3], 0);
    }
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(midway, "doorbells-that-were-rung-before-are-carried-over")
{
    struct nvme_host h = { 0 };

    host_start(&h, "mem:1M");
    for (unsigned i = 0; i < 5; i++)
        CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    CHECK_INT(host_shadow(&h), 0);
    CHECK_INT(h.shadow[2], 5);
    CHECK_INT(h.shadow[3], 5);
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(reset, "a-reset-ends-them")
{
    struct nvme_host h = { 0 };
    volatile uint32_t *events;

    start(&h);
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    events = h.events;
    host_disable(&h);
    for (unsigned i = 0; i < 1024; i++)
        events[i] = 0x5a5a;
    host_enable(&h);
    host_add_queue(&h, 1, 64, 1);
    for (unsigned i = 0; i < 100; i++)
        CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    for (unsigned i = 0; i < 1024; i++)
        CHECK_INT(events[i], 0x5a5a);
    CHECK_INT(host_end(&h), 0);
}

/* While the memory is away the host writes; nothing tells but its coming back. */
TEST(remap, "memory-that-is-taken-back-and-given-again-is-read-again")
{
    struct nvme_host h = { 0 };
    struct nvme_cqe cqe;

    start(&h);
    for (unsigned round = 0; round < 10; round++) {
        CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
        CHECK_INT(ob_client_dma_unmap(h.client, HOST_RAM_BASE, HOST_RAM_SIZE), 0);
        host_put(&h, 1, FLUSH);
        h.shadow[2] = h.q[1].tail;
        CHECK_INT(ob_client_dma_map(h.client, HOST_RAM_BASE, HOST_RAM_SIZE, 3, h.ram_fd, 0), 0);
        CHECK_INT(host_wait(&h, 1, &cqe), 0);
    }
    CHECK_INT(host_end(&h), 0);
}

/* Nobody would look at the doorbells, nor be told of them: the driver must learn of it. */
TEST(out_of_reach, "memory-that-comes-back-without-a-file-is-fatal")
{
    struct nvme_host h = { 0 };

    start(&h);
    CHECK_INT(ob_client_dma_unmap(h.client, HOST_RAM_BASE, HOST_RAM_SIZE), 0);
    CHECK_INT(ob_client_dma_map(h.client, HOST_RAM_BASE, HOST_RAM_SIZE, 3, -1, 0), 0);
    host_wait_reg(&h, NVME_REG_CSTS, NVME_CSTS_CFS, NVME_CSTS_CFS);
    h.by_message = true;
    host_disable(&h);
    host_enable(&h);
    CHECK_INT(host_shadow(&h), NVME_INVALID_FIELD);
    host_add_queue(&h, 1, 64, 1);
    CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    CHECK_INT(host_end(&h), 0);
}

TEST(reconnect, "they-outlive-the-client")
{
    struct nvme_host h = { 0 };
    struct nvme_cqe cqe;

    start(&h);
    for (unsigned round = 0; round < 10; round++) {
        wait_armed(&h, 2, h.q[1].tail);
        host_leave(&h);
        host_put(&h, 1, FLUSH);
        h.shadow[2] = h.q[1].tail;
        host_connect(&h);
        host_arm(&h, OB_PCI_IRQ_MSIX, 2);
        CHECK_INT(host_wait(&h, 1, &cqe), 0);
        CHECK_INT(host_do(&h, 1, FLUSH, NULL), 0);
    }
    CHECK_INT(host_end(&h), 0);
}
