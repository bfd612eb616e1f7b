/* SPDX-License-Identifier: BSD-3-Clause */
/* The smallest device. */
#include "harness.h"
#include "served.h"

#include <sys/mman.h>

TEST(registers, "registers-keep-what-is-written-until-reset")
{
    struct served card;

    served_start(&card, &ob_served_null, NULL, NULL);
    served_write(&card, 0, 0, 8, 0x0123456789abcdef);
    served_write(&card, 0, 4095, 1, 0x5a);
    CHECK_INT(served_read(&card, 0, 2, 4), 0x456789ab);
    CHECK_INT(served_read(&card, 0, 4095, 1), 0x5a);
    CHECK_INT(ob_client_reset(card.client), 0);
    CHECK_INT(served_read(&card, 0, 0, 8), 0);
    served_stop(&card);
}

TEST(memory, "mapped-memory-is-what-messages-read-and-write")
{
    struct ob_region_info info;
    struct served card;
    uint64_t size;
    void *memory;

    served_start(&card, &ob_served_null, NULL, NULL);
    CHECK_INT(ob_client_region_info(card.client, 1, &info), 0);
    CHECK_INT(ob_region_map(&info, 0, &memory, &size), 0);
    CHECK_INT(size, 65536);
    memcpy((uint8_t *)memory + 4096, "mapped", 6);
    CHECK_INT(served_read(&card, 1, 4096, 6), 0x64657070616d);
    served_write(&card, 1, 65528, 8, 0x0807060504030201);
    CHECK_MEM((uint8_t *)memory + 65528, "\1\2\3\4\5\6\7\10", 8);
    munmap(memory, size);
    ob_region_info_fini(&info);
    served_stop(&card);
}
