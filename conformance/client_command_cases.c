/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands of the server that the client refuses, and the stream around them. */
#include "conformance/client.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

static const struct ob_wire_dma_access nowhere = { NOWHERE, 8 };

/* The client is connected, and its next command unanswered. */
static void begin(struct test *t)
{
    struct answer *a = play_until(t, OB_CMD_DEVICE_GET_INFO);

    if (!play_of(t)->probes)
        test_not_offered(t, "the client takes no commands");
    play_send(t, a);
}

static void is_refused(struct test *t, uint16_t cmd, uint16_t id)
{
    int got = play_reply(t, cmd, id);

    MUST(t, got >= 0, "the client ended the connection");
    MUST(t, got > 0, "the client answered it with success");
}

static void refuses(struct test *t, uint16_t cmd, uint32_t flags, const void *payload, size_t len)
{
    begin(t);
    is_refused(t, cmd, test_send_all(t, cmd, flags, payload, len, NULL, 0));
    play_goes_on(t);
}

/* ---- Commands that are not the server's ---------------------------------------------------- */

static void not_servers(struct test *t)
{
    static const uint8_t payload[64];

    refuses(t, (uint16_t)t->entry->arg, 0, payload, sizeof(payload));
}

static void not_servers_empty(struct test *t)
{
    refuses(t, (uint16_t)t->entry->arg, 0, NULL, 0);
}

static bool all(uint32_t cmd)
{
    (void)cmd;
    return true;
}

static const struct family families[] = {
    { "command/%s-is-refused", "R-XFER-10 R-HDR-10",
      "a command that is not the server's is refused", not_servers, all, true, 0 },
    { "command/%s-is-refused-empty", "R-XFER-10 R-HDR-10", "so is one without payload",
      not_servers_empty, all, true, 0 },
};

static const char *name_of(uint32_t cmd)
{
    static char name[16];

    if (cmd > OB_CMD_LAST + 1)
        return NULL;
    if (cmd == OB_CMD_DMA_READ || cmd == OB_CMD_DMA_WRITE)
        return "";
    snprintf(name, sizeof(name), "%u", cmd);
    return name;
}

const struct family_table client_command_families = { families,
                                                      sizeof(families) / sizeof(families[0]),
                                                      name_of, 0 };

/* ---- Headers ------------------------------------------------------------------------------- */

static void number_huge(struct test *t)
{
    refuses(t, 0xffff, 0, &nowhere, sizeof(nowhere));
}

static void undefined_flags(struct test *t)
{
    refuses(t, OB_CMD_DMA_READ, 0x40000000, &nowhere, sizeof(nowhere));
}

static void undefined_type(struct test *t)
{
    begin(t);
    test_send_all(t, OB_CMD_DMA_READ, 3, &nowhere, sizeof(nowhere), NULL, 0);
    play_ends(t);
}

static void error_flag(struct test *t)
{
    begin(t);
    test_send_all(t, OB_CMD_DMA_READ, OB_HDR_ERROR, &nowhere, sizeof(nowhere), NULL, 0);
    play_either(t);
}

static void stray_reply(struct test *t)
{
    begin(t);
    test_send_all(t, OB_CMD_DMA_READ, OB_HDR_REPLY, &nowhere, sizeof(nowhere), NULL, 0);
    play_ends(t);
}

static void unknown_no_reply(struct test *t)
{
    begin(t);
    test_send_all(t, 99, OB_HDR_NO_REPLY, NULL, 0, NULL, 0);
    play_goes_on(t);
}

static void no_reply(struct test *t)
{
    begin(t);
    test_send_all(t, OB_CMD_DMA_READ, OB_HDR_NO_REPLY, &nowhere, sizeof(nowhere), NULL, 0);
    play_goes_on(t);
}

static void same_ids(struct test *t)
{
    begin(t);
    for (unsigned i = 0; i < 8; i++) {
        t->next_id = 0;
        test_send_all(t, OB_CMD_DMA_READ, 0, &nowhere, sizeof(nowhere), NULL, 0);
    }
    for (unsigned i = 0; i < 8; i++)
        is_refused(t, OB_CMD_DMA_READ, 0);
    play_goes_on(t);
}

/* ---- Payloads ------------------------------------------------------------------------------ */

static void read_short(struct test *t)
{
    refuses(t, OB_CMD_DMA_READ, 0, &nowhere, sizeof(nowhere) - 1);
}

static void read_empty(struct test *t)
{
    refuses(t, OB_CMD_DMA_READ, 0, NULL, 0);
}

static void read_long(struct test *t)
{
    struct ob_wire_dma_access access[2] = { nowhere, nowhere };

    refuses(t, OB_CMD_DMA_READ, 0, access, sizeof(nowhere) + 1);
}

static void read_huge(struct test *t)
{
    const struct ob_wire_dma_access access = { 0, UINT64_MAX };

    refuses(t, OB_CMD_DMA_READ, 0, &access, sizeof(access));
}

static void read_wraps(struct test *t)
{
    const struct ob_wire_dma_access access = { UINT64_MAX - 7, 16 };

    refuses(t, OB_CMD_DMA_READ, 0, &access, sizeof(access));
}

static void write_refused(struct test *t, uint64_t address, uint64_t count, size_t len)
{
    uint8_t payload[sizeof(struct ob_wire_dma_access) + 64] = { 0 };
    const struct ob_wire_dma_access access = { address, count };

    memcpy(payload, &access, sizeof(access));
    refuses(t, OB_CMD_DMA_WRITE, 0, payload, len);
}

static void write_short(struct test *t)
{
    write_refused(t, 0, 8, sizeof(struct ob_wire_dma_access) + 7);
}

static void write_long(struct test *t)
{
    write_refused(t, 0, 8, sizeof(struct ob_wire_dma_access) + 9);
}

static void write_cut(struct test *t)
{
    write_refused(t, 0, 8, 15);
}

static void write_huge(struct test *t)
{
    write_refused(t, 0, UINT64_MAX, sizeof(struct ob_wire_dma_access) + 8);
}

static void write_wraps(struct test *t)
{
    write_refused(t, UINT64_MAX - 3, 8, sizeof(struct ob_wire_dma_access) + 8);
}

static void write_nowhere(struct test *t)
{
    write_refused(t, NOWHERE, 8, sizeof(struct ob_wire_dma_access) + 8);
}

static void read_nowhere(struct test *t)
{
    refuses(t, OB_CMD_DMA_READ, 0, &nowhere, sizeof(nowhere));
}

/* Its payload is read to the end, and dropped. */
static void oversize(struct test *t)
{
    static uint8_t payload[OB_PAYLOAD_MAX + 64];
    const struct ob_wire_dma_access access = { 0, sizeof(payload) - sizeof(access) };

    memcpy(payload, &access, sizeof(access));
    refuses(t, OB_CMD_DMA_WRITE, 0, payload, sizeof(payload));
}

/* ---- The stream ---------------------------------------------------------------------------- */

static void with_fds(struct test *t, unsigned nfds)
{
    int pair[2], fds[OB_MSG_FDS_MAX];

    begin(t);
    MUST(t, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "no sockets");
    test_keep(t, pair[0]);
    test_keep(t, pair[1]);
    for (unsigned i = 0; i < nfds; i++)
        fds[i] = pair[1];
    is_refused(t, OB_CMD_DMA_READ,
               test_send_all(t, OB_CMD_DMA_READ, 0, &nowhere, sizeof(nowhere), fds, nfds));
    test_close(t, pair[1]);
    play_goes_on(t);
    test_await_hang_up(t, pair[0], "a descriptor of a command");
}

static void one_fd(struct test *t)
{
    with_fds(t, 1);
}

static void many_fds(struct test *t)
{
    with_fds(t, OB_MSG_FDS_MAX);
}

static void split(struct test *t)
{
    uint8_t bytes[sizeof(struct ob_wire_hdr) + sizeof(nowhere)];
    const struct ob_wire_hdr hdr = { 0x5151, OB_CMD_DMA_READ, sizeof(bytes), 0, 0 };

    begin(t);
    memcpy(bytes, &hdr, sizeof(hdr));
    memcpy(bytes + sizeof(hdr), &nowhere, sizeof(nowhere));
    test_put(t, bytes, 1, NULL, 0);
    test_settle(t);
    for (size_t i = 1; i < sizeof(bytes); i++)
        test_put(t, bytes + i, 1, NULL, 0);
    is_refused(t, OB_CMD_DMA_READ, hdr.msg_id);
    play_goes_on(t);
}

static void pipelined(struct test *t)
{
    uint16_t first;

    begin(t);
    first = t->next_id;
    for (unsigned i = 0; i < 100; i++)
        test_send_all(t, OB_CMD_DMA_READ, 0, &nowhere, sizeof(nowhere), NULL, 0);
    for (unsigned i = 0; i < 100; i++)
        is_refused(t, OB_CMD_DMA_READ, (uint16_t)(first + i));
    play_goes_on(t);
}

static void torn(struct test *t)
{
    const struct ob_wire_hdr hdr = { 1, OB_CMD_DMA_WRITE, 1000, 0, 0 };

    begin(t);
    test_put(t, &hdr, sizeof(hdr), NULL, 0);
    shutdown(t->links[0], SHUT_WR);
    while (test_get(t))
        ;
}

#define REFUSED "R-HDR-11 R-HDR-14"
#define XFER    "R-XFER-3"
static const struct entry entries[] = {
    RAW("command/65535-is-refused", "R-HDR-10", "a number that no command has is refused",
        number_huge),
    RAW("command/undefined-flags", "R-HDR-4", "an undefined flag is refused", undefined_flags),
    RAW("command/undefined-type", "R-HDR-3",
        "what is neither command nor reply ends the connection", undefined_type),
    RAW("command/error-flag", "R-HDR-4", "Error in a command does not hang or kill", error_flag),
    RAW("command/stray-reply", "R-HDR-12", "a reply to nothing ends the connection", stray_reply),
    RAW("command/unknown-no-reply", "R-HDR-7", "an unknown command with No_reply is not answered",
        unknown_no_reply),
    RAW("command/no-reply", "R-HDR-7", "a command with No_reply is not answered", no_reply),
    RAW("command/same-ids", "R-HDR-1", "ids may repeat", same_ids),
    RAW("dma-read/short", REFUSED, "a payload one byte short is refused", read_short),
    RAW("dma-read/empty", REFUSED, "no payload is refused", read_empty),
    RAW("dma-read/long", REFUSED, "a payload one byte long is refused", read_long),
    RAW("dma-read/huge", "R-XFER-4", "a count of 2^64 - 1 is refused", read_huge),
    RAW("dma-read/wraps", "R-XFER-4", "a range beyond 2^64 is refused", read_wraps),
    RAW("dma-read/nowhere", XFER, "memory that is not mapped is refused", read_nowhere),
    RAW("dma-write/nowhere", XFER, "memory that is not mapped is refused", write_nowhere),
    RAW("dma-write/short", "R-XFER-4", "less data than count says is refused", write_short),
    RAW("dma-write/long", "R-XFER-4", "more data than count says is refused", write_long),
    RAW("dma-write/cut", REFUSED, "a payload shorter than its structure is refused", write_cut),
    RAW("dma-write/huge", "R-XFER-4", "a count of 2^64 - 1 is refused", write_huge),
    RAW("dma-write/wraps", "R-XFER-4", "a range beyond 2^64 is refused", write_wraps),
    RAW("dma-write/oversize", "R-FRAME-6", "more than can be taken is dropped, and refused",
        oversize),
    RAW("command/one-fd", "R-FD-5", "a command with a descriptor is refused, and that closed",
        one_fd),
    RAW("command/many-fds", "R-FD-3 R-FD-5", "253 descriptors are closed", many_fds),
    RAW("command/split", "R-FRAME-4", "a command that comes a byte at a time is put together",
        split),
    RAW("command/pipelined", "R-FRAME-4 R-HDR-6", "100 commands are answered, each", pipelined),
    RAW("command/torn", "R-FRAME-7 R-LOSS-5", "a server may die within its command", torn),
};
CASES(client_command_cases, entries);
