/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What holds for each command alike: a case for every row of the message table that a client may
 * send. A refused command leaves the connection in step: the cases end with a command that must be
 * answered.
 */
#include "conformance/test.h"

#include <ctype.h>
#include <fcntl.h>
#include <unistd.h>

static uint16_t command(const struct test *t)
{
    return (uint16_t)t->entry->arg;
}

/* Makes the command legal. */
static void start(struct test *t)
{
    if (command(t) != OB_CMD_VERSION)
        test_negotiate(t);
}

/* What test_reply_or_end() said was a refusal, and nothing worse. A refused VERSION is the end of
 * the connection, but not of the server. */
static void expect_refused(struct test *t, int got)
{
    if (command(t) == OB_CMD_VERSION) {
        MUST(t, got != 0, "VERSION was answered with success");
        test_closed(t);
        test_served(t);
    } else {
        MUST(t, got >= 0, "the server closed the connection instead of refusing %s",
             ob_strcmd(command(t)));
        test_is_refused(t, got, 0, command(t));
        test_alive(t);
    }
}

/* A good request gets its answer, whatever that is for a device without what it is about. */
static void expect_answered(struct test *t, int got)
{
    MUST(t, got >= 0, "the server closed the connection instead of answering");
    if (command(t) == OB_CMD_VERSION || device_takes(t, command(t)))
        test_is_ok(t, got, command(t));
}

static int send_and_wait(struct test *t, uint32_t flags, const void *payload, size_t len)
{
    uint16_t id = test_send_all(t, command(t), flags, payload, len, NULL, 0);

    return test_reply_or_end(t, command(t), id);
}

static bool all(uint32_t cmd)
{
    (void)cmd;
    return true;
}

static bool after_version(uint32_t cmd)
{
    return cmd != OB_CMD_VERSION;
}

static bool has_payload(uint32_t cmd)
{
    return ob_msg_type((uint16_t)cmd)->request.min > 0;
}

/* Nothing may follow a request like device_request()'s. */
static bool ends_there(uint32_t cmd)
{
    return cmd != OB_CMD_VERSION && cmd != OB_CMD_DEVICE_GET_REGION_INFO &&
           cmd != OB_CMD_DEVICE_FEATURE && cmd != OB_CMD_MIG_DATA_WRITE;
}

static bool has_argsz(uint32_t cmd)
{
    const struct ob_shape *shape = &ob_msg_type((uint16_t)cmd)->request;

    return shape->nfields && strcmp(shape->fields[0].name, "argsz") == 0;
}

/* ---- Lengths and fields -------------------------------------------------------------------- */

static void answered(struct test *t)
{
    uint8_t payload[REQUEST_MAX];
    size_t len = device_request(t, command(t), 0, payload);

    start(t);
    device_prepare(t, command(t), 0);
    expect_answered(t, send_and_wait(t, OB_HDR_COMMAND, payload, len));
    test_alive(t);
}

static void one_byte_short(struct test *t)
{
    uint8_t payload[REQUEST_MAX];

    device_request(t, command(t), 0, payload);
    start(t);
    expect_refused(
        t, send_and_wait(t, OB_HDR_COMMAND, payload, ob_msg_type(command(t))->request.min - 1));
}

static void header_only(struct test *t)
{
    start(t);
    expect_refused(t, send_and_wait(t, OB_HDR_COMMAND, NULL, 0));
}

static void one_byte_long(struct test *t)
{
    uint8_t payload[REQUEST_MAX];
    size_t len = device_request(t, command(t), 0, payload);

    payload[len] = 0;
    start(t);
    device_prepare(t, command(t), 0);
    expect_refused(t, send_and_wait(t, OB_HDR_COMMAND, payload, len + 1));
}

static void with_argsz(struct test *t, uint32_t argsz, bool good)
{
    uint8_t payload[REQUEST_MAX];
    size_t len = device_request(t, command(t), 0, payload);
    int got;

    memcpy(payload, &argsz, sizeof(argsz));
    start(t);
    device_prepare(t, command(t), 0);
    got = send_and_wait(t, OB_HDR_COMMAND, payload, len);
    if (good)
        expect_answered(t, got);
    else
        expect_refused(t, got);
}

static void argsz_one_short(struct test *t)
{
    with_argsz(t, ob_msg_type(command(t))->request.min - 1, false);
}

/* Commands whose replies say how long they are themselves; others repeat the request. */
static bool says_size(uint16_t cmd)
{
    return cmd >= OB_CMD_DEVICE_GET_INFO && cmd <= OB_CMD_DEVICE_GET_IRQ_INFO;
}

static void argsz_larger(struct test *t)
{
    uint32_t argsz;

    with_argsz(t, 2 * PAGE, true);
    if (says_size(command(t)) && !(t->in.hdr.flags & OB_HDR_ERROR)) {
        memcpy(&argsz, t->in.data, sizeof(argsz));
        MUST(t, argsz == t->in.len, "argsz of the reply is %u, it has %u bytes", argsz, t->in.len);
    }
    test_alive(t);
}

/* ---- The header ---------------------------------------------------------------------------- */

static void undefined_flags(struct test *t)
{
    uint8_t payload[REQUEST_MAX];
    size_t len = device_request(t, command(t), 0, payload);

    start(t);
    for (unsigned bit = 5; bit < 32; bit++)
        test_is_refused(t, send_and_wait(t, 1u << bit, payload, len), 0, command(t));
    test_alive(t);
}

static void undefined_types(struct test *t)
{
    uint8_t payload[REQUEST_MAX];
    size_t len = device_request(t, command(t), 0, payload);

    start(t);
    for (uint32_t type = 2; type <= OB_HDR_TYPE_MASK; type++)
        test_is_refused(t, send_and_wait(t, type, payload, len), 0, command(t));
    test_alive(t);
}

static void stray_reply(struct test *t)
{
    uint8_t payload[REQUEST_MAX];
    size_t len = device_request(t, command(t), 0, payload);

    test_negotiate(t);
    test_send_all(t, command(t), OB_HDR_REPLY, payload, len, NULL, 0);
    test_send_all(t, command(t), OB_HDR_REPLY | OB_HDR_ERROR, NULL, 0, NULL, 0);
    test_alive(t);
}

static void error_number_ignored(struct test *t)
{
    uint8_t bytes[sizeof(struct ob_wire_hdr) + REQUEST_MAX];
    struct ob_wire_hdr hdr = { .msg_id = 0xabcd, .cmd = command(t), .error_no = UINT32_MAX };

    hdr.msg_size = (uint32_t)(sizeof(hdr) + device_request(t, command(t), 0, bytes + sizeof(hdr)));
    memcpy(bytes, &hdr, sizeof(hdr));
    start(t);
    device_prepare(t, command(t), 0);
    test_put(t, bytes, hdr.msg_size, NULL, 0);
    expect_answered(t, test_reply_or_end(t, command(t), hdr.msg_id));
}

static void no_reply(struct test *t)
{
    uint8_t payload[REQUEST_MAX];
    size_t len = device_request(t, command(t), 0, payload);

    start(t);
    device_prepare(t, command(t), 0);
    test_send_all(t, command(t), OB_HDR_NO_REPLY, payload, len, NULL, 0);
    test_alive(t);
}

static void no_reply_refused(struct test *t)
{
    uint8_t payload[REQUEST_MAX] = { 0 };
    uint32_t min = ob_msg_type(command(t))->request.min;

    start(t);
    test_send_all(t, command(t), OB_HDR_NO_REPLY, payload, min ? min - 1 : 1, NULL, 0);
    test_alive(t);
}

static void before_version(struct test *t)
{
    uint8_t payload[REQUEST_MAX];
    size_t len = device_request(t, command(t), 0, payload);

    MUST(t, send_and_wait(t, OB_HDR_COMMAND, payload, len) != 0,
         "%s was answered with success before VERSION", ob_strcmd(command(t)));
    test_closed(t);
    test_served(t);
}

/* ---- File descriptors ---------------------------------------------------------------------- */

/* The request with so many fds, all the same end of a pipe; nothing can be done with it. The other
 * end tells when the server has closed them. */
static void fds_closed(struct test *t, unsigned nfds)
{
    uint8_t payload[REQUEST_MAX];
    size_t len = device_request(t, command(t), 0, payload);
    int ends[2], fds[OB_MSG_FDS_MAX];
    uint16_t id;

    start(t);
    device_prepare(t, command(t), 0);
    MUST(t, pipe2(ends, O_CLOEXEC) == 0, "no pipe");
    test_keep(t, ends[0]);
    test_keep(t, ends[1]);
    for (unsigned i = 0; i < nfds; i++)
        fds[i] = ends[1];
    id = test_send_all(t, command(t), OB_HDR_COMMAND, payload, len, fds, nfds);
    test_close(t, ends[1]);
    if (test_reply_or_end(t, command(t), id) < 0) {
        MUST(t, command(t) == OB_CMD_VERSION, "the server closed the connection");
        test_deviates(t, "VERSION with a file descriptor ends the connection, as libvfio-user's");
    } else {
        test_alive(t);
    }
    test_await_hang_up(t, ends[0], "file descriptors that it was sent for nothing");
}

static void one_fd_closed(struct test *t)
{
    fds_closed(t, 1);
}

static void many_fds_closed(struct test *t)
{
    fds_closed(t, OB_MSG_FDS_MAX);
}

/* ---- The stream ---------------------------------------------------------------------------- */

static size_t whole_request(struct test *t, unsigned n, uint8_t *bytes)
{
    struct ob_wire_hdr hdr = { .msg_id = t->next_id++, .cmd = command(t) };

    hdr.msg_size = (uint32_t)(sizeof(hdr) + device_request(t, command(t), n, bytes + sizeof(hdr)));
    memcpy(bytes, &hdr, sizeof(hdr));
    return hdr.msg_size;
}

static void split_anywhere(struct test *t)
{
    uint8_t bytes[sizeof(struct ob_wire_hdr) + REQUEST_MAX];
    size_t total = whole_request(t, 0, bytes);

    start(t);
    for (size_t at = 1; at < total; at++) {
        uint16_t id;

        device_prepare(t, command(t), (unsigned)at);
        id = t->next_id;
        whole_request(t, (unsigned)at, bytes);
        test_put(t, bytes, at, NULL, 0);
        test_settle(t);
        test_put(t, bytes + at, total - at, NULL, 0);
        expect_answered(t, test_reply_or_end(t, command(t), id));
        if (command(t) == OB_CMD_VERSION) {
            test_hang_up(t);
            test_connect(t);
        }
    }
}

static void merged(struct test *t)
{
    enum { COPIES = 16 };
    uint8_t bytes[COPIES * (sizeof(struct ob_wire_hdr) + REQUEST_MAX)];
    uint16_t ids[COPIES];
    size_t len = 0;

    start(t);
    for (unsigned i = 0; i < COPIES; i++)
        device_prepare(t, command(t), i);
    for (unsigned i = 0; i < COPIES; i++) {
        ids[i] = t->next_id;
        len += whole_request(t, i, bytes + len);
    }
    test_put(t, bytes, len, NULL, 0);
    for (unsigned i = 0; i < COPIES; i++)
        expect_answered(t, test_reply_or_end(t, command(t), ids[i]));
    test_alive(t);
}

static void torn(struct test *t)
{
    uint8_t bytes[sizeof(struct ob_wire_hdr) + REQUEST_MAX];
    size_t total = whole_request(t, 0, bytes);

    start(t);
    test_put(t, bytes, total - 1, NULL, 0);
    test_hang_up(t);
    test_served(t);
}

static void left_unanswered(struct test *t)
{
    uint8_t payload[REQUEST_MAX];
    size_t len = device_request(t, command(t), 0, payload);

    start(t);
    test_send(t, command(t), payload, len);
    test_hang_up(t);
    test_served(t);
}

/* ---- The table ----------------------------------------------------------------------------- */

static const struct family families[] = {
    { "message/%s-is-answered", "R-HDR-1 R-HDR-2 R-HDR-6", "a good request is answered, once",
      answered, all, true, 0 },
    { "message/%s-one-byte-short", "R-HDR-11 R-HDR-14",
      "a payload shorter than the command's structure is refused", one_byte_short, has_payload,
      true, 0 },
    { "message/%s-header-only", "R-HDR-11", "a request without its payload is refused", header_only,
      has_payload, true, 0 },
    { "message/%s-one-byte-long", "R-HDR-11", "a payload longer than what it says is refused",
      one_byte_long, ends_there, true, 0 },
    { "message/%s-argsz-one-short", "R-HDR-16", "an argsz below the command's structure is refused",
      argsz_one_short, has_argsz, true, 0 },
    { "message/%s-argsz-larger", "R-HDR-16",
      "an argsz beyond what is needed is taken, and not returned", argsz_larger, has_argsz, true,
      0 },
    { "header/%s-undefined-flags", "R-HDR-4", "a command with an undefined flag is refused",
      undefined_flags, after_version, true, 0 },
    { "header/%s-undefined-types", "R-HDR-3", "what is neither command nor reply is refused",
      undefined_types, after_version, true, 0 },
    { "header/%s-stray-reply", "R-HDR-13", "a reply that nobody waits for is dropped", stray_reply,
      all, true, 0 },
    { "header/%s-error-number", "R-HDR-5", "a command's error_no is reserved, and ignored",
      error_number_ignored, all, true, 0 },
    { "header/%s-no-reply", "R-HDR-7", "a command with No_reply is not answered", no_reply,
      after_version, true, 0 },
    { "header/%s-no-reply-refused", "R-HDR-7", "a bad command with No_reply is not answered either",
      no_reply_refused, after_version, true, 0 },
    { "header/%s-before-version", "R-VERSION-2", "a command before VERSION ends the connection",
      before_version, after_version, true, 0 },
    { "fds/%s-closes-one", "R-FD-4", "a file descriptor that has no use is closed", one_fd_closed,
      all, true, 0 },
    { "fds/%s-closes-253", "R-FD-3 R-FD-4", "as many file descriptors as fit are closed",
      many_fds_closed, all, true, 0 },
    { "stream/%s-split", "R-FRAME-4", "a message that comes in two pieces is put together",
      split_anywhere, all, true, 2 },
    { "stream/%s-merged", "R-FRAME-4 R-ORDER-1",
      "messages that come in one piece are answered each, in order", merged, after_version, true,
      0 },
    { "stream/%s-torn", "R-FRAME-7 R-LOSS-3", "a client may die within a message", torn, all, true,
      0 },
    { "stream/%s-unanswered", "R-LOSS-2 R-LOSS-3", "a client may die before its answer",
      left_unanswered, all, true, 0 },
};

/* "DMA_MAP" as "dma-map"; empty for what no client sends. */
static const char *name_of(uint32_t cmd)
{
    static char name[32];
    const struct ob_msg_type *type = ob_msg_type((uint16_t)cmd);
    size_t i;

    if (!type)
        return NULL;
    if (!type->live || type->dir != OB_CLIENT_TO_SERVER)
        return "";
    for (i = 0; i < sizeof(name) - 1 && type->name[i]; i++)
        name[i] = (char)(type->name[i] == '_' ? '-' : tolower(type->name[i]));
    name[i] = '\0';
    return name;
}

const struct family_table message_families = { families, sizeof(families) / sizeof(families[0]),
                                               name_of, OB_CMD_VERSION };
