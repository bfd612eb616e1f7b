/* SPDX-License-Identifier: BSD-3-Clause */
#include "bench/edu.h"

#include <errno.h>
#include <string.h>

#define PAGE        4096u
#define RAM         0x100000u /* within the 28 bits that the device reaches */
#define CARD_BUFFER 0x40000u
#define DMA_START   1u
#define COMMAND     4u /* in config space */
#define BUS_MASTER  4u

enum { DMA_SOURCE = 0x80, DMA_TARGET = 0x88, DMA_COUNT = 0x90, DMA_COMMAND = 0x98 };

int bench_edu_read(void *opaque, uint64_t address, void *data, uint32_t count)
{
    (void)opaque, (void)address;
    memset(data, 0, count);
    return 0;
}

int bench_edu_write(void *opaque, uint64_t address, const void *data, uint32_t count)
{
    (void)opaque, (void)address, (void)data, (void)count;
    return 0;
}

static int set(struct bench_target *t, uint64_t reg, uint64_t value)
{
    return ob_client_region_write(t->client, 0, reg, &value, sizeof(value));
}

static int transfer(struct bench_target *t)
{
    uint64_t command = DMA_START;
    int rc = set(t, DMA_COMMAND, command);

    while (rc == 0 && command & DMA_START)
        rc = ob_client_region_read(t->client, 0, DMA_COMMAND, &command, sizeof(command));
    return rc;
}

static int time_transfers(struct bench_target *t, struct bench_series *out,
                          const struct bench_pace *pace)
{
    int rc = transfer(t);
    double begin = bench_now_ns(), before = begin;

    while (rc == 0 && bench_series_open(out) < pace->values && before - begin < pace->ns) {
        double now;

        rc = transfer(t);
        now = bench_now_ns();
        bench_series_add(out, now - before);
        before = now;
    }
    return rc;
}

/* The memory is mapped without a file, so that there is no other way than by message. */
int bench_edu_dma(struct bench_target *target, struct bench_series *out,
                  const struct bench_pace *pace)
{
    struct ob_client *client = target->client;
    uint16_t before, master;
    int rc = ob_client_region_read(client, OB_PCI_REGION_CONFIG, COMMAND, &before, 2);

    master = before | BUS_MASTER;
    if (rc == 0)
        rc = ob_client_region_write(client, OB_PCI_REGION_CONFIG, COMMAND, &master, 2);
    if (rc == 0)
        rc = ob_client_dma_map(client, RAM, PAGE, OB_DMA_READ | OB_DMA_WRITE, -1, 0);
    if (rc < 0)
        return rc;
    if ((rc = set(target, DMA_SOURCE, RAM)) == 0 &&
        (rc = set(target, DMA_TARGET, CARD_BUFFER)) == 0 &&
        (rc = set(target, DMA_COUNT, PAGE)) == 0)
        rc = time_transfers(target, out, pace);
    bench_series_end_round(out);
    ob_client_dma_unmap(client, RAM, PAGE);
    ob_client_region_write(client, OB_PCI_REGION_CONFIG, COMMAND, &before, 2);
    return rc;
}
