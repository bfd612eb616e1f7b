/* SPDX-License-Identifier: BSD-3-Clause */
/* What the controller keeps for commands whose data is in many pieces: so much, and no more. */
#include "nvme_host.h"

#include <unistd.h>

#define MIB      (1u << 20)
#define PAGES    256u /* of a command */
#define QUEUES   32u
#define ENTRIES  128u /* as many as are fetched from a queue at a time, but one */
#define KEPT_MIB 32

/* A MiB in pages of which no two are neighbours: each is a piece of its own. */
static struct nvme_sqe scattered(struct nvme_host *h)
{
    uint32_t pages = host_pages(h, 2 * PAGES), list = host_pages(h, 1);
    uint64_t *entry = (void *)(h->ram + list);

    for (uint32_t i = 1; i < PAGES; i++)
        *entry++ = host_addr(pages + 2 * i * NVME_PAGE);
    return (struct nvme_sqe){ .opcode = NVME_IO_READ,
                              .nsid = 1,
                              .prp1 = host_addr(pages),
                              .prp2 = host_addr(list),
                              .dw12 = MIB / 512 - 1 };
}

/* The most that there are: the ranges go when they have been dealt with. */
static struct nvme_sqe discarding(struct nvme_host *h)
{
    struct nvme_sqe sqe = { .opcode = NVME_IO_DSM,
                            .nsid = 1,
                            .prp1 = host_addr(host_pages(h, 1)),
                            .dw10 = 255,
                            .dw11 = NVME_DSM_DEALLOCATE };
    struct nvme_dsm_range *range = (void *)(h->ram + (sqe.prp1 - HOST_RAM_BASE));

    for (uint32_t i = 0; i < 256; i++)
        range[i] = (struct nvme_dsm_range){ .blocks = 8, .slba = 8ull * i };
    return sqe;
}

TEST(lists, "commands-of-many-pieces-wait-in-their-queues-for-room-and-all-complete")
{
    struct nvme_host h = { .posts = true };
    struct nvme_sqe what[2];
    struct nvme_cqe cqe;
    long before_kib;

    host_serve(&h, "mem:2M", "--queues=32", NULL);
    host_connect(&h);
    host_enable(&h);
    for (uint16_t q = 1; q <= QUEUES; q++)
        host_add_queue(&h, q, ENTRIES, q);
    what[0] = scattered(&h);
    what[1] = discarding(&h);
    before_kib = test_process_status(getpid(), "VmHWM");
    for (uint16_t q = 1; q <= QUEUES; q++)
        for (uint32_t i = 0; i < ENTRIES - 1; i++)
            host_put(&h, q, what[i % 8 == 7]);
    for (uint16_t q = 1; q <= QUEUES; q++)
        host_ring(&h, q);
    for (uint16_t q = 1; q <= QUEUES; q++)
        for (uint32_t i = 0; i < ENTRIES - 1; i++)
            CHECK_INT(host_wait(&h, q, &cqe), 0);
    CHECK(test_process_status(getpid(), "VmHWM") - before_kib < (KEPT_MIB + TEST_KEPT_MIB) * 1024);
    CHECK_INT(host_end(&h), 0);
}
