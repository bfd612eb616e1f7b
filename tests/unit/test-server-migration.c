/* SPDX-License-Identifier: BSD-3-Clause */
/* The migration of a device: its states, and the features that say so. */
#include "migrating.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* ---- States ------------------------------------------------------------------------------- */

/* By state and goal: the arcs on the way, "" nothing to do, NULL refused. */
static const char *const ways[8][8] = {
    [1] = { [1] = "", [2] = "12 ", [3] = "13 ", [4] = "14 ", [6] = "12 26 " },
    [2] = { [1] = "21 ", [2] = "", [3] = "21 13 ", [4] = "21 14 ", [6] = "26 " },
    [3] = { [1] = "31 ", [2] = "31 12 ", [3] = "", [4] = "31 14 " },
    [4] = { [1] = "41 ", [2] = "41 12 ", [3] = "41 13 ", [4] = "", [6] = "41 12 26 " },
    [6] = { [1] = "62 21 ", [2] = "62 ", [3] = "63 ", [4] = "62 21 14 ", [6] = "" },
};

TEST(states, "every-pair-of-states-goes-its-way-or-is-refused")
{
    static struct mig_device d;
    struct peer peer;

    mig_start(&d, &peer);
    for (unsigned from = 1; from < 8; from++) {
        for (unsigned to = 0; to < 9; to++) {
            if (from == 5 || from == 7)
                continue;
            CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
            CHECK_INT(mig_get_state(&peer), OB_MIG_STATE_RUNNING);
            CHECK_INT(mig_set_state(&peer, from), 0);
            d.arcs[0] = '\0';
            if (to < 8 && ways[from][to]) {
                CHECK_INT(mig_set_state(&peer, to), 0);
                CHECK_STR(d.arcs, ways[from][to]);
                CHECK_INT(mig_get_state(&peer), to);
            } else {
                CHECK_INT(mig_set_state(&peer, to), -EINVAL);
                CHECK_STR(d.arcs, "");
                CHECK_INT(mig_get_state(&peer), from);
            }
        }
    }
    mig_end(&d, &peer);
}

TEST(fails, "a-transition-that-fails-leaves-the-last-state-that-was-reached")
{
    static struct mig_device d;
    struct peer peer;
    uint8_t byte;

    mig_start(&d, &peer);
    d.fail_to = OB_MIG_STATE_STOP_COPY;
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_STOP_COPY), -EIO);
    CHECK_INT(mig_get_state(&peer), OB_MIG_STATE_STOP);
    CHECK_INT(mig_read(&peer, &byte, 1), -EINVAL);
    d.fail_to = -1;
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_STOP_COPY), 0);
    CHECK_INT(mig_read(&peer, &byte, 1), 1);
    mig_end(&d, &peer);
}

TEST(error, "only-a-reset-leads-out-of-error")
{
    static struct mig_device d;
    struct peer peer;

    mig_start(&d, &peer);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_RESUMING), 0);
    CHECK_INT(mig_write(&peer, (const uint8_t *)"no such stream..", 16), -EINVAL);
    CHECK_INT(mig_write(&peer, (const uint8_t *)"OBSTATE1\0\0\0\0\0\0\0\0", 16), -EINVAL);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_STOP), -EINVAL);
    CHECK_INT(mig_get_state(&peer), OB_MIG_STATE_ERROR);
    for (unsigned to = 0; to < 8; to++)
        CHECK_INT(mig_set_state(&peer, to), -EINVAL);
    CHECK_STR((char *)d.value, "state of a device");
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
    CHECK_INT(mig_get_state(&peer), OB_MIG_STATE_RUNNING);
    mig_end(&d, &peer);
}

TEST(commands, "all-commands-work-in-all-states-but-writes-in-stop-copy")
{
    static const unsigned states[] = { 1, 2, 3, 4, 6 };
    static struct mig_device d;
    struct peer peer;

    mig_start(&d, &peer);
    for (unsigned i = 0; i < 5; i++) {
        struct ob_wire_device_info info = { .argsz = sizeof(info) };
        uint32_t value = 7;

        CHECK_INT(mig_set_state(&peer, states[i]), 0);
        CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info), NULL), 0);
        CHECK_INT(peer_map(&peer, 0x1000, 0x1000, OB_DMA_READ, -1, 0), 0);
        CHECK_INT(peer_unmap(&peer, 0x1000, 0x1000, 0), 0);
        CHECK_INT(peer_read(&peer, 0, 0, &value, 4), 0);
        CHECK_INT(peer_write(&peer, 0, 0, &value, 4), states[i] == 3 ? -EINVAL : 0);
        CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
    }
    mig_end(&d, &peer);
}

TEST(lost, "a-client-that-leaves-takes-the-transfer-along")
{
    static const struct {
        unsigned before, after;
    } cases[] = { { 1, 2 }, { 2, 2 }, { 3, 2 }, { 6, 2 }, { 4, 0 } };
    static struct mig_device d;

    for (unsigned i = 0; i < 5; i++) {
        struct peer peer;

        mig_start(&d, &peer);
        CHECK_INT(mig_set_state(&peer, cases[i].before), 0);
        peer_close(&peer);
        peer_connect(&peer, d.server);
        CHECK_INT(peer_negotiate(&peer, MIG_CLIENT), 0);
        CHECK_INT(mig_get_state(&peer), cases[i].after);
        CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
        CHECK_INT(mig_get_state(&peer), OB_MIG_STATE_RUNNING);
        mig_end(&d, &peer);
    }
}

TEST(held, "interrupts-wait-until-the-device-runs-again")
{
    static struct mig_device d;
    struct peer peer;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    mig_start(&d, &peer);
    CHECK_INT(peer_set_irqs(&peer, OB_PCI_IRQ_MSIX,
                            OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER, 3, 1, NULL, &fd,
                            1),
              0);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_PRE_COPY), 0);
    CHECK_INT(ob_server_irq_trigger(d.server, OB_PCI_IRQ_MSIX, 3), 0);
    CHECK_INT(peer_eventfd_take(fd), 1);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_STOP_COPY), 0);
    CHECK_INT(ob_server_irq_trigger(d.server, OB_PCI_IRQ_MSIX, 3), 0);
    CHECK_INT(peer_eventfd_take(fd), 0);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_RUNNING), 0);
    CHECK_INT(peer_eventfd_take(fd), 1);
    mig_end(&d, &peer);
    close(fd);
}

TEST(bell, "an-ioeventfd-waits-while-the-state-is-read")
{
    struct ob_wire_region_io_fds ask = { .argsz = 4096 };
    const uint64_t one = 1;
    static struct mig_device d;
    struct ob_msg *reply;
    struct peer peer;
    int fd;

    mig_start(&d, &peer);
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_GET_REGION_IO_FDS, &ask, sizeof(ask), &reply), 0);
    fd = ob_msg_claim_fd(reply, 0);
    ob_msg_free(reply);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_STOP_COPY), 0);
    CHECK_INT(write(fd, &one, sizeof(one)), sizeof(one));
    peer_settle(d.server);
    CHECK_INT(d.rings, 0);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_STOP), 0);
    CHECK_INT(d.rings, 1);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_RUNNING), 0);
    CHECK_INT(write(fd, &one, sizeof(one)), sizeof(one));
    peer_settle(d.server);
    CHECK_INT(d.rings, 2);
    close(fd);
    mig_end(&d, &peer);
}

/* What QEMU's client can receive is as long as what it sends. */
TEST(negotiated, "migration-is-said-to-a-client-that-said-it-in-what-qemu-can-receive")
{
    static const char all[] = "{\"capabilities\":{\"max_msg_fds\":16,\"write_multiple\":true,"
                              "\"twin_socket\":{\"supported\":true},"
                              "\"migration\":{\"pgsize\":4096,\"max_bitmap_size\":268435456}}}";
    static const char *const said[] = { all, "{\"capabilities\":{}}" };
    static struct mig_device d;
    struct peer peer;

    mig_start(&d, &peer);
    for (unsigned i = 0; i < 2; i++) {
        uint8_t payload[512] = { 0 };
        struct ob_msg *reply;
        const char *json;

        peer_close(&peer);
        peer_connect(&peer, d.server);
        memcpy(payload + 4, said[i], strlen(said[i]));
        CHECK_INT(peer_call(&peer, OB_CMD_VERSION, payload, 4 + strlen(said[i]) + 1, &reply), 0);
        json = (const char *)reply->payload + 4;
        CHECK_INT(reply->payload[reply->len - 1], 0);
        CHECK(reply->hdr.msg_size <= 214);
        CHECK_INT(strstr(json, "\"migration\":{\"pgsize\":4096,\"max_bitmap_size\":1048576}") !=
                      NULL,
                  i == 0);
        CHECK_INT(strstr(json, "migration") != NULL, i == 0);
        ob_msg_free(reply);
    }
    mig_end(&d, &peer);
}

/* ---- Features ----------------------------------------------------------------------------- */

TEST(probe, "probe-tells-which-methods-there-are")
{
    static const uint32_t there[] = {
        OB_FEATURE_MIGRATION | OB_FEATURE_GET,
        OB_FEATURE_MIG_DEVICE_STATE | OB_FEATURE_GET | OB_FEATURE_SET,
        OB_FEATURE_DMA_LOGGING_START | OB_FEATURE_SET,
        OB_FEATURE_DMA_LOGGING_STOP | OB_FEATURE_SET,
        OB_FEATURE_DMA_LOGGING_REPORT | OB_FEATURE_GET,
    };
    static struct mig_device d;
    struct peer peer;
    uint64_t flags = 0;
    uint8_t none;

    mig_start(&d, &peer);
    for (uint32_t f = 0; f < 12; f++)
        for (uint32_t methods = 1; methods < 4; methods++) {
            uint32_t asked = f | methods << 16;
            bool has = false;

            for (unsigned i = 0; i < 5; i++)
                has |= (there[i] & OB_FEATURE_MASK) == f && !(asked & ~there[i]);
            CHECK_INT(mig_feature(&peer, asked | OB_FEATURE_PROBE, "", 0, &none, 0),
                      has ? 0 : -EINVAL);
        }
    CHECK_INT(mig_feature(&peer, OB_FEATURE_MIGRATION | OB_FEATURE_GET, "", 0, &flags, 8), 0);
    CHECK_INT(flags, OB_MIG_STOP_COPY | OB_MIG_PRE_COPY);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_STOP), 0);
    mig_end(&d, &peer);
}

/* QEMU's client sends as much as it wants to receive (Q-7 of its quirks). */
TEST(padded, "a-get-may-come-with-room-for-its-answer")
{
    static struct mig_device d;
    struct peer peer;
    uint64_t flags = 0, room = 0;

    mig_start(&d, &peer);
    CHECK_INT(mig_feature(&peer, OB_FEATURE_MIGRATION | OB_FEATURE_GET, &room, 8, &flags, 8), 0);
    CHECK_INT(flags, OB_MIG_STOP_COPY | OB_MIG_PRE_COPY);
    CHECK_INT(peer_call(&peer, OB_CMD_DEVICE_FEATURE,
                        &(struct ob_wire_feature){ 15, OB_FEATURE_MIGRATION | OB_FEATURE_GET }, 8,
                        NULL),
              -EINVAL);
    mig_end(&d, &peer);
}

TEST(without, "a-device-that-cannot-migrate-says-so")
{
    struct memory_device memory;
    struct ob_server *server = memory_device_listen(&memory);
    struct ob_wire_mig_data wire = { 9, 1 };
    struct peer peer;
    uint64_t flags;
    uint8_t byte = 0;

    peer_connect(&peer, server);
    CHECK_INT(peer_negotiate(&peer, MIG_CLIENT), 0);
    CHECK_INT(mig_feature(&peer, OB_FEATURE_MIGRATION | OB_FEATURE_GET, "", 0, &flags, 8), -EINVAL);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_STOP), -EINVAL);
    CHECK_INT(peer_call(&peer, OB_CMD_MIG_DATA_READ, &wire, sizeof(wire), NULL), -EINVAL);
    CHECK_INT(mig_write(&peer, &byte, 1), -EINVAL);
    peer_close(&peer);
    ob_server_free(server);
}
