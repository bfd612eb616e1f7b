/* SPDX-License-Identifier: BSD-3-Clause */
/* The migration of a device: its state as a stream. */
#include "migrating.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "outboard/pci.h"

static uint8_t stream[MIG_STREAM_MAX], copy[MIG_STREAM_MAX];

/* Saves d's state into stream. */
static uint32_t save(struct peer *peer, uint32_t piece)
{
    CHECK_INT(mig_set_state(peer, OB_MIG_STATE_STOP_COPY), 0);
    return mig_read_all(peer, stream, piece);
}

TEST_TIMEOUT(carried, "state-config-space-and-pending-interrupts-are-carried-over", 60)
{
    static struct mig_device a, b;
    uint32_t len, command = 6, entry[4] = { 1, 2, 3, 0 };
    struct peer pa, pb;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    mig_start(&a, &pa);
    unlink(peer_socket_path());
    mig_start(&b, &pb);
    memset(a.value + 4096, 0x5a, MIG_VALUE_BYTES - 4096);
    CHECK_INT(peer_write(&pa, OB_PCI_REGION_CONFIG, 4, &command, 2), 0);
    CHECK_INT(peer_write(&pa, 0, 0x800 + 16 * 5, entry, 16), 0);
    CHECK_INT(peer_set_irqs(&pa, OB_PCI_IRQ_MSIX,
                            OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER, 5, 1, NULL, &fd,
                            1),
              0);
    CHECK_INT(mig_set_state(&pa, OB_MIG_STATE_STOP), 0);
    CHECK_INT(ob_server_irq_trigger(a.server, OB_PCI_IRQ_MSIX, 5), 0);
    len = save(&pa, 7777);

    CHECK_INT(mig_set_state(&pb, OB_MIG_STATE_RESUMING), 0);
    for (uint32_t at = 0, n; at < len; at += n) {
        n = len - at < 1001 ? len - at : 1001;
        CHECK_INT(mig_write(&pb, stream + at, n), 0);
    }
    CHECK_INT(peer_eventfd_take(fd), 0);
    CHECK_INT(peer_set_irqs(&pb, OB_PCI_IRQ_MSIX,
                            OB_IRQ_SET_DATA_EVENTFD | OB_IRQ_SET_ACTION_TRIGGER, 5, 1, NULL, &fd,
                            1),
              0);
    CHECK_INT(mig_set_state(&pb, OB_MIG_STATE_STOP), 0);
    CHECK_INT(peer_eventfd_take(fd), 0);
    CHECK_INT(mig_set_state(&pb, OB_MIG_STATE_RUNNING), 0);
    CHECK_INT(peer_eventfd_take(fd), 1);
    CHECK_MEM(a.value, b.value, MIG_VALUE_BYTES);
    CHECK_INT(ob_pci_command(b.server), 6);
    memset(entry, 0, sizeof(entry));
    CHECK_INT(peer_read(&pb, 0, 0x800 + 16 * 5, entry, 16), 0);
    CHECK_INT(entry[2], 3);
    mig_end(&a, &pa);
    mig_end(&b, &pb);
    close(fd);
}

TEST(precopy, "what-was-read-while-it-ran-is-the-start-of-the-stream")
{
    static struct mig_device d;
    uint32_t len = 0;
    struct peer peer;
    int64_t n;

    mig_start(&d, &peer);
    d.pre_len = 100000;
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_PRE_COPY), 0);
    while ((n = mig_read(&peer, stream + len, 3000)) == 3000)
        len += 3000;
    CHECK(n >= 0);
    len += (uint32_t)n;
    CHECK(len > 100000 && len < 101000);
    CHECK_INT(mig_read(&peer, stream + len, 3000), 0);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_STOP_COPY), 0);
    len += mig_read_all(&peer, stream + len, 3000);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_RESUMING), 0);
    memset(d.value, 0, MIG_VALUE_BYTES);
    CHECK_INT(mig_write(&peer, stream, len), 0);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_RUNNING), 0);
    CHECK_STR((char *)d.value, "state of a device");
    mig_end(&d, &peer);
}

/* Writes len bytes of copy[], and whether they were taken as a state. */
static bool loads(struct peer *peer, uint32_t len)
{
    int rc;

    CHECK_INT(peer_call(peer, OB_CMD_DEVICE_RESET, NULL, 0, NULL), 0);
    CHECK_INT(mig_set_state(peer, OB_MIG_STATE_RESUMING), 0);
    rc = mig_write(peer, copy, len);
    if (mig_set_state(peer, OB_MIG_STATE_STOP) == 0)
        return rc == 0;
    CHECK_INT(mig_get_state(peer), OB_MIG_STATE_ERROR);
    return false;
}

TEST_TIMEOUT(damaged, "a-stream-that-is-cut-or-changed-anywhere-is-refused", 60)
{
    static struct mig_device d;
    struct peer peer;
    uint32_t len;

    mig_start(&d, &peer);
    len = save(&peer, 65536);
    memcpy(copy, stream, len);
    CHECK(loads(&peer, len));
    CHECK_STR((char *)d.value, "state of a device");
    for (uint32_t at = 0; at < len; at += at < 100 || at + 5000 > len ? 1 + at / 50 : 997) {
        memcpy(copy, stream, len);
        copy[at] ^= (uint8_t)(1 + at % 255);
        CHECK(!loads(&peer, len));
        CHECK_INT(d.value[0], 0);
        copy[at] = stream[at];
        if (at > 0)
            CHECK(!loads(&peer, at));
    }
    CHECK(!loads(&peer, len + 1));
    CHECK(loads(&peer, len));
    mig_end(&d, &peer);
}

TEST(sizes, "reads-and-writes-obey-the-sizes-that-were-agreed")
{
    static struct mig_device d;
    struct ob_wire_mig_data wire;
    struct peer peer;

    mig_start(&d, &peer);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_STOP_COPY), 0);
    wire = (struct ob_wire_mig_data){ OB_DATA_XFER_MAX + 9, OB_DATA_XFER_MAX + 1 };
    CHECK_INT(peer_call(&peer, OB_CMD_MIG_DATA_READ, &wire, sizeof(wire), NULL), -EINVAL);
    wire = (struct ob_wire_mig_data){ 17, 10 };
    CHECK_INT(peer_call(&peer, OB_CMD_MIG_DATA_READ, &wire, sizeof(wire), NULL), -EINVAL);
    wire = (struct ob_wire_mig_data){ 8, 0 };
    CHECK_INT(peer_call(&peer, OB_CMD_MIG_DATA_READ, &wire, sizeof(wire), NULL), 0);
    CHECK_INT(mig_set_state(&peer, OB_MIG_STATE_RESUMING), 0);
    wire = (struct ob_wire_mig_data){ 9, 1 };
    CHECK_INT(peer_call(&peer, OB_CMD_MIG_DATA_WRITE, &wire, sizeof(wire), NULL), -EINVAL);
    CHECK_INT(peer_call(&peer, OB_CMD_MIG_DATA_READ, &wire, sizeof(wire), NULL), -EINVAL);
    mig_end(&d, &peer);
}
