/* SPDX-License-Identifier: BSD-3-Clause */
/* What may be right or wrong with the reply to any command of a client. */
#include "conformance/client.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

static uint16_t command(const struct test *t)
{
    return (uint16_t)t->entry->arg;
}

static struct answer *until(struct test *t)
{
    play_of(t)->migration.offered = command(t) >= OB_CMD_DEVICE_FEATURE;
    return play_until(t, command(t));
}

/* ---- Right --------------------------------------------------------------------------------- */

static void split(struct test *t)
{
    play_send_split(t, until(t));
    play_goes_on(t);
}

/* The reply, and two commands behind it, in one piece. */
static void merged(struct test *t)
{
    struct ob_wire_dma_access nowhere = { NOWHERE, 8 };
    struct ob_wire_hdr hdr = { 0x7001, OB_CMD_DMA_READ, sizeof(hdr) + sizeof(nowhere), 0, 0 };
    struct answer *a = until(t);
    static uint8_t bytes[OB_MSG_MAX + 128];
    size_t len = sizeof(hdr) + a->len;

    if (!play_of(t)->probes)
        test_not_offered(t, "the client takes no commands");
    a->hdr.msg_size = (uint32_t)len;
    memcpy(bytes, &a->hdr, sizeof(hdr));
    memcpy(bytes + sizeof(hdr), a->data, a->len);
    for (unsigned i = 0; i < 2; i++, hdr.msg_id++, len += sizeof(hdr) + sizeof(nowhere)) {
        memcpy(bytes + len, &hdr, sizeof(hdr));
        memcpy(bytes + len + sizeof(hdr), &nowhere, sizeof(nowhere));
    }
    test_put(t, bytes, len, a->fds, a->nfds);
    for (uint16_t id = 0x7001; id <= 0x7002; id++)
        MUST(t, play_reply(t, OB_CMD_DMA_READ, id) >= 0, "the client ended the connection");
    play_goes_on(t);
}

static void error_number_ignored(struct test *t)
{
    struct answer *a = until(t);

    a->hdr.error_no = ENOSYS;
    play_send(t, a);
    play_goes_on(t);
}

/* Commands of the server that come while its reply is waited for. */
static void crossing(struct test *t)
{
    const struct ob_wire_dma_access nowhere = { NOWHERE, 8 };
    struct play *p = play_of(t);
    struct answer *a = until(t);
    int got;

    if (!p->probes)
        test_not_offered(t, "the client takes no commands");
    p->hold = true;
    got = play_reply(t, OB_CMD_DMA_READ,
                     test_send_all(t, OB_CMD_DMA_READ, 0, &nowhere, sizeof(nowhere), NULL, 0));
    MUST(t, got >= 0, "the client ended the connection");
    MUST(t, got > 0, "memory that was never offered can be read");
    play_release(t, a);
    play_goes_on(t);
}

/* ... with the id of the client's command. */
static void same_id(struct test *t)
{
    struct play *p = play_of(t);
    struct answer *a = until(t);
    int got;

    if (!p->probes)
        test_not_offered(t, "the client takes no commands");
    p->hold = true;
    t->next_id = a->hdr.msg_id;
    got = play_reply(t, OB_CMD_DEVICE_RESET,
                     test_send_all(t, OB_CMD_DEVICE_RESET, 0, NULL, 0, NULL, 0));
    MUST(t, got >= 0, "the client ended the connection");
    MUST(t, got > 0, "the client takes a command that is not the server's");
    play_release(t, a);
    play_goes_on(t);
}

/* Whether the client closed its end of the pair that it got one of. */
static void fds_closed(struct test *t)
{
    struct answer *a = until(t);
    int pair[2];

    if (a->nfds)
        test_not_offered(t, "the reply has a descriptor of its own");
    MUST(t, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "no sockets");
    test_keep(t, pair[0]);
    test_keep(t, pair[1]);
    a->fds[a->nfds++] = pair[1];
    a->fds[a->nfds++] = pair[1];
    play_send(t, a);
    test_close(t, pair[1]);
    play_goes_on(t);
    test_await_hang_up(t, pair[0], "a descriptor that has no use");
}

/* ---- Refusals ------------------------------------------------------------------------------ */

static void refuse(struct test *t, uint32_t error, uint32_t len)
{
    struct answer *a = until(t);

    a->hdr.flags |= OB_HDR_ERROR;
    a->hdr.error_no = error;
    a->len = len;
    a->nfds = 0;
    play_send(t, a);
    play_either(t);
}

static void refused(struct test *t)
{
    refuse(t, EINVAL, 0);
}

static void refused_zero(struct test *t)
{
    refuse(t, 0, 0);
}

static void refused_huge(struct test *t)
{
    refuse(t, 0xfffffffe, 0);
}

static void refused_with_payload(struct test *t)
{
    refuse(t, EIO, 1000);
}

/* ---- Wrong --------------------------------------------------------------------------------- */

static void wrong_id(struct test *t)
{
    struct answer *a = until(t);

    a->hdr.msg_id ^= 0x4000;
    play_send(t, a);
    play_ends(t);
}

static void wrong_cmd(struct test *t)
{
    struct answer *a = until(t);

    a->hdr.cmd = command(t) == OB_CMD_DEVICE_RESET ? OB_CMD_DEVICE_SET_IRQS : OB_CMD_DEVICE_RESET;
    a->len = a->nfds = 0;
    play_send(t, a);
    play_ends(t);
}

static void unknown_cmd(struct test *t)
{
    struct answer *a = until(t);

    a->hdr.cmd = 4711;
    a->nfds = 0;
    play_send(t, a);
    play_ends(t);
}

static void one_byte_short(struct test *t)
{
    struct answer *a = until(t);
    const struct ob_msg_type *type = ob_msg_type(command(t));

    a->len = type->reply.min - 1;
    a->nfds = 0;
    play_send(t, a);
    play_ends(t);
}

static void too_long(struct test *t)
{
    const struct ob_msg_type *type = ob_msg_type(command(t));
    struct answer *a = until(t);

    a->len = type->reply.max + 1;
    play_send(t, a);
    play_ends(t);
}

static void shorter_than_header(struct test *t)
{
    struct answer *a = until(t);

    a->hdr.msg_size = sizeof(a->hdr) - 1;
    a->nfds = 0;
    play_send(t, a);
    play_ends(t);
}

static void with_flags(struct test *t, uint32_t flags)
{
    struct answer *a = until(t);

    a->hdr.flags = flags;
    a->nfds = 0;
    play_send(t, a);
    play_ends(t);
}

static void undefined_type(struct test *t)
{
    with_flags(t, 2);
}

static void undefined_flags(struct test *t)
{
    with_flags(t, OB_HDR_REPLY | 0x40000000);
}

static void no_reply_flag(struct test *t)
{
    with_flags(t, OB_HDR_REPLY | OB_HDR_NO_REPLY);
}

static void twice(struct test *t)
{
    struct answer *a = until(t);

    play_send(t, a);
    a->nfds = 0;
    play_send(t, a);
    play_ends(t);
}

/* ---- The end ------------------------------------------------------------------------------- */

/* Closes the connection behind so many bytes of the answer. */
static void torn_at(struct test *t, size_t at)
{
    struct answer *a = until(t);
    static uint8_t bytes[OB_MSG_MAX];

    a->hdr.msg_size = (uint32_t)(sizeof(a->hdr) + a->len);
    memcpy(bytes, &a->hdr, sizeof(a->hdr));
    memcpy(bytes + sizeof(a->hdr), a->data, a->len);
    if (at > a->hdr.msg_size - 1)
        at = a->hdr.msg_size - 1;
    if (at)
        test_put(t, bytes, at, NULL, 0);
    shutdown(t->links[t->at], SHUT_WR);
    while (test_get(t))
        ;
}

static void left_unanswered(struct test *t)
{
    torn_at(t, 0);
}

static void torn_header(struct test *t)
{
    torn_at(t, 9);
}

static void torn_payload(struct test *t)
{
    torn_at(t, sizeof(struct ob_wire_hdr) + 1);
}

/* ---- The table ----------------------------------------------------------------------------- */

static bool all(uint32_t cmd)
{
    (void)cmd;
    return true;
}

static bool after_version(uint32_t cmd)
{
    return cmd != OB_CMD_VERSION;
}

/* Writes and unmappings may be answered by servers in the field with nothing but a header. */
static bool has_structure(uint32_t cmd)
{
    return ob_msg_type((uint16_t)cmd)->reply.min > 0;
}

/* The rest of the space is for JSON, and for capabilities. */
static bool is_bounded(uint32_t cmd)
{
    return ob_msg_type((uint16_t)cmd)->reply.max < 4096;
}

#define F(id, rules, says, run, applies)       \
    {                                          \
        id, rules, says, run, applies, true, 0 \
    }
static const struct family families[] = {
    F("reply/%s-split", "R-FRAME-4", "a reply that comes a byte at a time is put together", split,
      all),
    F("reply/%s-merged", "R-FRAME-4 R-ORDER-3", "commands in one piece with a reply are answered",
      merged, after_version),
    F("reply/%s-error-number", "R-HDR-5", "error_no of a success is ignored", error_number_ignored,
      all),
    F("reply/%s-crossing-dma", "R-ORDER-3 R-ORDER-4",
      "a command of the server is answered while a reply is awaited", crossing, after_version),
    F("reply/%s-crossing-same-id", "R-HDR-1 R-ORDER-3",
      "a command of the server is no reply, whatever its id", same_id, after_version),
    F("reply/%s-closes-fds", "R-FD-5", "descriptors that a reply has no use for are closed",
      fds_closed, all),
    F("refusal/%s-refused", "R-HDR-9 R-LOSS-5", "a refusal neither hangs nor kills", refused, all),
    F("refusal/%s-errno-0", "R-HDR-9 R-LOSS-5", "errno 0 neither hangs nor kills", refused_zero,
      all),
    F("refusal/%s-errno-huge", "R-HDR-9 R-LOSS-5", "a nonsensical errno neither hangs nor kills",
      refused_huge, all),
    F("refusal/%s-with-payload", "R-HDR-9", "the payload of an error reply is dropped",
      refused_with_payload, all),
    F("reply/%s-wrong-id", "R-HDR-12", "a reply with another id ends the connection", wrong_id,
      all),
    F("reply/%s-wrong-command", "R-HDR-2 R-HDR-12",
      "a reply with the number of another command ends the connection", wrong_cmd, all),
    F("reply/%s-unknown-command", "R-HDR-2 R-HDR-12",
      "a reply with a number that no command has ends the connection", unknown_cmd, all),
    F("reply/%s-one-byte-short", "R-HDR-12",
      "a reply shorter than its structure ends the connection", one_byte_short, has_structure),
    F("reply/%s-too-long", "R-HDR-12", "a reply longer than it can be ends the connection",
      too_long, is_bounded),
    F("reply/%s-shorter-than-header", "R-FRAME-5",
      "a msg_size below that of the header ends the connection", shorter_than_header, all),
    F("reply/%s-undefined-type", "R-HDR-3", "what is neither command nor reply ends the connection",
      undefined_type, all),
    F("reply/%s-undefined-flags", "R-HDR-4", "an undefined flag ends the connection",
      undefined_flags, all),
    F("reply/%s-no-reply-flag", "R-HDR-4", "No_reply in a reply ends the connection", no_reply_flag,
      all),
    F("reply/%s-twice", "R-HDR-12", "a reply to nothing ends the connection", twice, all),
    F("loss/%s-unanswered", "R-LOSS-4 R-LOSS-5", "a server may die before its answer",
      left_unanswered, all),
    F("loss/%s-torn-header", "R-FRAME-7 R-LOSS-5", "a server may die within a header", torn_header,
      all),
    F("loss/%s-torn-payload", "R-FRAME-7 R-LOSS-5", "a server may die within its answer",
      torn_payload, has_structure),
};

/* "DMA_MAP" as "dma-map"; empty for what is not part of using a device. */
static const char *name_of(uint32_t cmd)
{
    static char name[32];
    const struct ob_msg_type *type = ob_msg_type((uint16_t)cmd);
    size_t i;

    if (cmd > OB_CMD_LAST)
        return NULL;
    if (!type || !type->live || type->dir != OB_CLIENT_TO_SERVER ||
        cmd == OB_CMD_DEVICE_GET_REGION_IO_FDS || cmd == OB_CMD_REGION_WRITE_MULTI)
        return "";
    for (i = 0; i < sizeof(name) - 1 && type->name[i]; i++)
        name[i] = (char)(type->name[i] == '_' ? '-' : tolower(type->name[i]));
    name[i] = '\0';
    return name;
}

const struct family_table client_reply_families = { families,
                                                    sizeof(families) / sizeof(families[0]), name_of,
                                                    OB_CMD_VERSION };
