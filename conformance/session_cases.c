/* SPDX-License-Identifier: BSD-3-Clause */
/* Connections that come and go, and what happens on the stream of one. */
#include "conformance/test.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#define CONFIG OB_PCI_REGION_CONFIG
#define RW     (OB_DMA_READ | OB_DMA_WRITE)

static void need_config(struct test *t)
{
    if (!device_has_config(t))
        test_not_offered(t, "the device has no config space");
}

static size_t request(struct test *t, uint16_t cmd, uint32_t flags, const void *payload, size_t len,
                      uint8_t *bytes)
{
    struct ob_wire_hdr hdr = { t->next_id++, cmd, (uint32_t)(sizeof(hdr) + len), flags, 0 };

    memcpy(bytes, &hdr, sizeof(hdr));
    if (len)
        memcpy(bytes + sizeof(hdr), payload, len);
    return hdr.msg_size;
}

/* ---- Clients beside each other ------------------------------------------------------------- */

static void second_refused(struct test *t)
{
    unsigned first = t->at;

    test_connect(t);
    int got = test_version(t, 0, 0, TEST_PLAIN, sizeof(TEST_PLAIN));

    MUST(t, got != 0, "a second client was let in beside the first");
    if (got != EBUSY)
        test_deviates(t, "a second client was %s, not refused with EBUSY",
                      got < 0 ? "hung up on" : "refused otherwise");
    test_closed(t);
    t->at = first;
    test_alive(t);
}

static void next_in(struct test *t)
{
    test_hang_up(t);
    MUST(t, !t->listener->mortal, "the server ends when its client leaves");
    test_served(t);
}

static void many_clients(struct test *t)
{
    for (unsigned i = 0; i < 200; i++) {
        test_hang_up(t);
        test_connect(t);
        test_negotiate(t);
    }
    test_alive(t);
}

static void come_and_go(struct test *t)
{
    for (unsigned i = 0; i < 200; i++) {
        test_hang_up(t);
        test_connect(t);
    }
    test_negotiate(t);
    test_alive(t);
}

/* The case's own connection is the first of the silent ones. */
static void silent_ones(struct test *t)
{
    for (unsigned i = 0; i < 6; i++)
        test_connect(t);
    test_served(t);
}

static void stalled_header(struct test *t)
{
    static const uint8_t half[8] = { 0, 0, OB_CMD_VERSION };

    test_put(t, half, sizeof(half), NULL, 0);
    test_served(t);
}

static void stalled_version(struct test *t)
{
    struct ob_wire_hdr hdr = { 0, OB_CMD_VERSION, 64, 0, 0 };

    test_put(t, &hdr, sizeof(hdr), NULL, 0);
    test_served(t);
}

/* ---- Leaving ------------------------------------------------------------------------------- */

static void state_stays(struct test *t)
{
    need_config(t);
    device_write(t, CONFIG, CONFIG_LINE, 0x3a, 1);
    test_hang_up(t);
    test_served(t);
    MUST(t, device_read(t, CONFIG, CONFIG_LINE, 1) == 0x3a,
         "the device lost its state with the client");
}

static void eventfds_go(struct test *t)
{
    int fd = test_eventfd(t);
    uint32_t index = device_arm_any(t, fd);

    test_hang_up(t);
    test_served(t);
    test_is_ok(t,
               device_set_irqs(t, OB_IRQ_SET_DATA_NONE | OB_IRQ_SET_ACTION_TRIGGER, index, 0, 1,
                               NULL, NULL, 0),
               OB_CMD_DEVICE_SET_IRQS);
    MUST(t, test_signals(t, fd) == 0, "the eventfd of a client that left is signalled");
}

static void last_words(struct test *t)
{
    struct ob_wire_region_access access = { CONFIG_LINE, CONFIG, 1 };
    uint8_t payload[sizeof(access) + 1];

    need_config(t);
    memcpy(payload, &access, sizeof(access));
    for (unsigned i = 0; i < 100; i++) {
        payload[sizeof(access)] = (uint8_t)(i + 100);
        test_send_all(t, OB_CMD_REGION_WRITE, OB_HDR_NO_REPLY, payload, sizeof(payload), NULL, 0);
    }
    test_hang_up(t);
    test_served(t);
    MUST(t, device_read(t, CONFIG, CONFIG_LINE, 1) == 199,
         "writes of a client that left were not executed");
}

static void unread_replies(struct test *t)
{
    uint8_t payload[REQUEST_MAX];
    size_t len = device_request(t, OB_CMD_DEVICE_GET_INFO, 0, payload);

    for (unsigned i = 0; i < 100; i++)
        test_send(t, OB_CMD_DEVICE_GET_INFO, payload, len);
    test_reply(t, OB_CMD_DEVICE_GET_INFO, (uint16_t)(t->next_id - 100));
    test_hang_up(t); /* with replies unread: the server's end is reset */
    test_served(t);
}

/* ---- The stream ---------------------------------------------------------------------------- */

static void size_below_header(struct test *t, uint32_t size)
{
    struct ob_wire_hdr hdr = { 0, OB_CMD_DEVICE_GET_INFO, size, 0, 0 };

    test_put(t, &hdr, sizeof(hdr), NULL, 0);
    test_closed(t);
    test_served(t);
}

static void size_zero(struct test *t)
{
    size_below_header(t, 0);
}

static void size_fifteen(struct test *t)
{
    size_below_header(t, 15);
}

/* Larger than any message that this server can take; whole. */
static void oversize(struct test *t)
{
    static uint8_t payload[OB_PAYLOAD_MAX + PAGE / 2];

    if (t->dev->caps.max_data_xfer_size > OB_DATA_XFER_MAX)
        test_not_offered(t, "the server takes more than this suite sends");
    test_refused(t, 0, OB_CMD_DEVICE_GET_INFO, payload, sizeof(payload));
    test_refused(t, 0, OB_CMD_REGION_WRITE, payload, sizeof(payload));
    test_refused(t, 0, 200, payload, sizeof(payload));
    test_alive(t);
}

static void huge_then_gone(struct test *t)
{
    struct ob_wire_hdr hdr = { 0, OB_CMD_REGION_WRITE, UINT32_MAX, 0, 0 };
    uint8_t some[PAGE] = { 0 };

    test_put(t, &hdr, sizeof(hdr), NULL, 0);
    test_put(t, some, sizeof(some), NULL, 0);
    test_hang_up(t);
    test_served(t);
}

static void unknown_command(struct test *t, uint16_t cmd)
{
    uint8_t payload[300] = { 0 };

    test_refused(t, 0, cmd, NULL, 0);
    test_refused(t, 0, cmd, payload, 1);
    test_refused(t, 0, cmd, payload, sizeof(payload));
    test_send_all(t, cmd, OB_HDR_NO_REPLY, payload, sizeof(payload), NULL, 0);
    test_alive(t);
}

static void unknown_commands(struct test *t)
{
    static const uint16_t cmds[] = { 0, 19, 20, 31, 64, 255, 256, 0x7fff, 0x8000, 0xffff };

    for (unsigned i = 0; i < sizeof(cmds) / sizeof(cmds[0]); i++)
        unknown_command(t, cmds[i]);
}

static void removed_command(struct test *t)
{
    unknown_command(t, OB_CMD_DIRTY_PAGES);
}

static void other_direction(struct test *t)
{
    struct ob_wire_dma_access access = { PAGE, 0 };

    unknown_command(t, OB_CMD_DMA_READ);
    unknown_command(t, OB_CMD_DMA_WRITE);
    test_refused(t, 0, OB_CMD_DMA_READ, &access, sizeof(access));
    test_refused(t, 0, OB_CMD_DMA_WRITE, &access, sizeof(access));
}

static void pipelined(struct test *t)
{
    uint8_t payload[REQUEST_MAX];
    size_t len = device_request(t, OB_CMD_DEVICE_GET_INFO, 0, payload);
    enum { BATCH = 200 };

    for (unsigned round = 0; round < 20; round++) {
        uint16_t first = t->next_id;

        for (unsigned i = 0; i < BATCH; i++)
            test_send(t, OB_CMD_DEVICE_GET_INFO, payload, len);
        for (unsigned i = 0; i < BATCH; i++)
            test_is_ok(t, test_reply(t, OB_CMD_DEVICE_GET_INFO, (uint16_t)(first + i)),
                       OB_CMD_DEVICE_GET_INFO);
    }
}

/* Good, bad, posted, unknown and oversize commands in one piece. */
static void mixture(struct test *t)
{
    uint8_t bytes[8192], payload[REQUEST_MAX];
    uint16_t cmds[OB_CMD_LAST * 2], ids[OB_CMD_LAST * 2];
    unsigned expected = 0;
    size_t len = 0;

    for (unsigned cmd = OB_CMD_VERSION; cmd <= OB_CMD_LAST; cmd++)
        for (uint32_t posted = 0; posted < 2; posted++) {
            if (!posted) {
                cmds[expected] = cmd;
                ids[expected++] = t->next_id;
            }
            len += request(t, cmd, posted ? OB_HDR_NO_REPLY : 0, payload,
                           device_request(t, cmd, cmd, payload), bytes + len);
        }
    test_put(t, bytes, len, NULL, 0);
    for (unsigned i = 0; i < expected; i++)
        test_reply(t, cmds[i], ids[i]);
    test_alive(t);
}

/* The server must stop taking commands when nobody reads its answers, and go on when somebody
 * does. */
static void reads_nothing(struct test *t)
{
    enum { LIMIT = 200000 };
    uint8_t bytes[sizeof(struct ob_wire_hdr) + REQUEST_MAX], payload[REQUEST_MAX];
    size_t payload_len = device_request(t, OB_CMD_DEVICE_GET_INFO, 0, payload);
    uint16_t first = t->next_id;
    unsigned sent = 0, part = 0;
    size_t len = 0;

    for (; sent < LIMIT; sent++) {
        ssize_t n;

        len = request(t, OB_CMD_DEVICE_GET_INFO, 0, payload, payload_len, bytes);
        n = send(t->links[t->at], bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n != (ssize_t)len) {
            part = n > 0 ? (unsigned)n : 0;
            break;
        }
    }
    MUST(t, sent < LIMIT, "%u commands were taken though no reply was read", sent);
    t->next_id--;
    for (unsigned i = 0; i < sent; i++)
        test_is_ok(t, test_reply(t, OB_CMD_DEVICE_GET_INFO, (uint16_t)(first + i)),
                   OB_CMD_DEVICE_GET_INFO);
    if (part) {
        test_put(t, bytes + part, len - part, NULL, 0);
        test_reply(t, OB_CMD_DEVICE_GET_INFO, t->next_id++);
    }
    test_alive(t);
}

/* The fd comes with the payload. */
static void fd_with_later_byte(struct test *t)
{
    struct ob_wire_dma_map map = { sizeof(map), RW | OB_DMA_ACCESS_MMAP, 0, PAGE, PAGE };
    uint8_t bytes[sizeof(struct ob_wire_hdr) + sizeof(map)];
    int fd = test_memfd(t, PAGE);
    uint16_t id = t->next_id;

    request(t, OB_CMD_DMA_MAP, 0, &map, sizeof(map), bytes);
    test_put(t, bytes, sizeof(struct ob_wire_hdr), NULL, 0);
    test_put(t, bytes + sizeof(struct ob_wire_hdr), sizeof(map), &fd, 1);
    test_is_ok(t, test_reply(t, OB_CMD_DMA_MAP, id), OB_CMD_DMA_MAP);
}

/* Three commands with fds, sent before the first is answered: none gets another's. */
static void fds_of_neighbours(struct test *t)
{
    int file = test_memfd(t, PAGE), event = test_eventfd(t);
    struct ob_wire_dma_map map = { sizeof(map), RW | OB_DMA_ACCESS_MMAP, 0, PAGE, PAGE };
    uint16_t ids[3];

    ids[0] = test_send_all(t, OB_CMD_DMA_MAP, 0, &map, sizeof(map), &file, 1);
    map.address = 3 * PAGE;
    ids[1] = test_send_all(t, OB_CMD_DMA_MAP, 0, &map, sizeof(map), &event, 1);
    map.address = 5 * PAGE;
    ids[2] = test_send_all(t, OB_CMD_DMA_MAP, 0, &map, sizeof(map), &file, 1);
    test_is_ok(t, test_reply(t, OB_CMD_DMA_MAP, ids[0]), OB_CMD_DMA_MAP);
    test_is_refused(t, test_reply(t, OB_CMD_DMA_MAP, ids[1]), 0, OB_CMD_DMA_MAP);
    test_is_ok(t, test_reply(t, OB_CMD_DMA_MAP, ids[2]), OB_CMD_DMA_MAP);
}

static const struct entry entries[] = {
    CASE("session/second-client-refused", "R-VERSION-9", "there is one client at a time",
         second_refused),
    CASE("session/next-client", "R-LOSS-1 R-VERSION-9", "when a client left the next gets in",
         next_in),
    CASE("session/many-clients", "R-LOSS-1 R-LOSS-3", "200 clients one after another get in",
         many_clients),
    RAW("session/come-and-go", "R-LOSS-3", "connections that say nothing do no harm", come_and_go),
    RAW("session/silent-ones", "R-VERSION-10", "silent connections delay nobody", silent_ones),
    RAW("session/stalled-header", "R-FRAME-8", "half a header delays only its sender",
        stalled_header),
    RAW("session/stalled-version", "R-FRAME-8", "half a VERSION delays only its sender",
        stalled_version),
    CASE("session/state-stays", "R-LOSS-1", "the device keeps its state between clients",
         state_stays),
    CASE("session/eventfds-go", "R-LOSS-1", "a client's eventfds go with it", eventfds_go),
    CASE("session/last-words", "R-LOSS-2", "what a client sent before it left is executed",
         last_words),
    CASE("session/unread-replies", "R-LOSS-6", "a client may leave with replies unread",
         unread_replies),
    CASE("stream/size-0", "R-FRAME-5", "a message of 0 bytes ends the connection", size_zero),
    CASE("stream/size-15", "R-FRAME-5", "a message of 15 bytes ends the connection", size_fifteen),
    CASE("stream/oversize", "R-FRAME-6", "a message too large to take is refused", oversize),
    CASE("stream/huge-then-gone", "R-FRAME-7 R-LOSS-3", "4 GiB announced, and gone",
         huge_then_gone),
    CASE("stream/unknown-commands", "R-HDR-10", "commands that nobody knows are refused",
         unknown_commands),
    CASE("stream/removed-command", "R-HDR-10", "DIRTY_PAGES is refused", removed_command),
    CASE("stream/other-direction", "R-HDR-10", "the server's own commands are refused",
         other_direction),
    CASE("stream/pipelined", "R-ORDER-1", "replies come in the order of the commands", pipelined),
    CASE("stream/mixture", "R-FRAME-4 R-HDR-6 R-HDR-7",
         "good, bad and posted commands in one piece are answered as they should", mixture),
    SLOW("stream/reads-nothing", "R-ORDER-6", "who does not read is not answered without bound",
         reads_nothing),
    CASE("fds/with-later-byte", "R-FD-3", "fds that come with the payload count",
         fd_with_later_byte),
    CASE("fds/of-neighbours", "R-FD-1 R-FD-3", "fds stay with their command", fds_of_neighbours),
};

CASES(session_cases, entries);
