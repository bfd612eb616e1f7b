/* SPDX-License-Identifier: BSD-3-Clause */
/* DMA by message: with the educational device (`outboard serve edu`), which does it when told to.
 */
#ifndef OB_BENCH_EDU_H
#define OB_BENCH_EDU_H

#include "bench/access.h"

/* For struct ob_client_options: a page of memory, wherever the device looks for it. */
int bench_edu_read(void *opaque, uint64_t address, void *data, uint32_t count);
int bench_edu_write(void *opaque, uint64_t address, const void *data, uint32_t count);

/* Adds a round: the time from the command for 4 KiB until the device says that it is done. */
int bench_edu_dma(struct bench_target *target, struct bench_series *out,
                  const struct bench_pace *pace);

#endif
