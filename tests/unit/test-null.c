/* SPDX-License-Identifier: BSD-3-Clause */
/* The smallest device. */
#include "harness.h"
#include "served.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

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

TEST(ioeventfds, "a-signal-writes-what-its-eventfd-matches")
{
    struct ob_region_io_fds list;
    struct served card;

    served_start(&card, &ob_served_null, (const char *[]){ "--ioeventfds", NULL }, NULL);
    CHECK_INT(ob_client_region_io_fds(card.client, 0, &list), 0);
    CHECK_INT(list.count, 5);
    for (uint32_t i = 0; i < list.count; i++) {
        const struct ob_ioeventfd *e = &list.entries[i].match;
        int64_t end = test_now_ms() + 20000;

        CHECK(served_read(&card, 0, e->offset, (uint32_t)e->size) != e->datamatch);
        CHECK_INT(eventfd_write(list.entries[i].fd, 1), 0);
        while (served_read(&card, 0, e->offset, (uint32_t)e->size) != e->datamatch)
            CHECK(test_now_ms() < end);
        CHECK_INT(served_read(&card, 0, e->offset + e->size, 1), 0);
    }
    ob_region_io_fds_fini(&list);
    CHECK_INT(ob_client_region_io_fds(card.client, 1, &list), 0);
    CHECK_INT(list.count, 0);
    ob_region_io_fds_fini(&list);
    served_stop(&card);
    served_start(&card, &ob_served_null, NULL, NULL);
    CHECK_INT(ob_client_region_io_fds(card.client, 0, &list), 0);
    CHECK_INT(list.count, 0); /* only who asks for them */
    ob_region_io_fds_fini(&list);
    served_stop(&card);
}

TEST(speaks_of_itself, "a-device-reports-its-failure-and-asks-to-be-unplugged")
{
    struct ob_irq_info info;
    struct served card;
    int err, req;

    served_start(&card, &ob_served_null, NULL, NULL);
    CHECK_INT(ob_client_irq_info(card.client, OB_PCI_IRQ_ERR, &info), 0);
    CHECK_INT(info.count, 1);
    CHECK_INT(ob_server_irq_trigger(card.server, OB_PCI_IRQ_REQ, 0), -ENOENT); /* nobody listens */
    err = served_irq(&card, OB_PCI_IRQ_ERR);
    req = served_irq(&card, OB_PCI_IRQ_REQ);
    CHECK_INT(ob_server_irq_trigger(card.server, OB_PCI_IRQ_ERR, 0), 0);
    CHECK(served_signalled(err, 5000));
    CHECK(!served_signalled(req, 0));
    CHECK_INT(ob_server_irq_trigger(card.server, OB_PCI_IRQ_REQ, 0), 0);
    CHECK(served_signalled(req, 5000));
    close(err);
    close(req);
    served_stop(&card);
}
