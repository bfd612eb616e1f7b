/* SPDX-License-Identifier: BSD-3-Clause */
/* The answer to VERSION: what the client must take, and what it must not. */
#include "conformance/client.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

typedef void outcome(struct test *t);

struct row {
    const char *id;
    uint16_t major, minor;
    const void *json; /* with the NUL, if there is one */
    size_t len;
    outcome *then;
};

#define GOOD(id, rules, says, json) X(id, rules, says, 0, 0, json "", sizeof(json), play_goes_on)
#define BAD(id, rules, says, json)  X(id, rules, says, 0, 0, json "", sizeof(json), play_ends)
#define CAPS(members)               "{\"capabilities\":{" members "}}"
#define ROWS                                                                                       \
    X("version/no-json", "R-VERSION-7", "a reply without JSON means the defaults", 0, 0, "", 0,    \
      play_goes_on)                                                                                \
    GOOD("version/nul-alone", "R-VERSION-7", "a NUL alone means an object without members", "")    \
    GOOD("version/empty-object", "R-CAPS-1", "an object without members means the defaults", "{}") \
    GOOD("version/empty-capabilities", "R-CAPS-1", "no capability means the defaults", CAPS(""))   \
    GOOD("version/behind-the-nul", "R-VERSION-7", "what is behind the NUL is ignored", "{}\0}}\"") \
    GOOD("version/white-space", "R-VERSION-7", "white space belongs to JSON",                      \
         " \n\t{ \"capabilities\" : { } }\n")                                                      \
    GOOD("version/unknown-members", "R-CAPS-3", "members that it does not know are ignored",       \
         "{\"x\":[{\"y\":null}],\"capabilities\":{\"z\":{\"max_msg_fds\":-1},\"w\":1.5}}")         \
    GOOD("version/no-twin", "R-TWIN-2", "a twin socket that is not supported is none",             \
         CAPS("\"twin_socket\":{\"supported\":false}"))                                            \
    GOOD("version/no-fds", "R-CAPS-7", "a server may take no descriptors",                         \
         CAPS("\"max_msg_fds\":0"))                                                                \
    GOOD("version/one-byte-at-a-time", "R-CAPS-8", "a server may take a page of data at a time",   \
         CAPS("\"max_data_xfer_size\":4096"))                                                      \
    GOOD("version/one-mapping", "R-DMA-11", "a server may support a single mapping",               \
         CAPS("\"max_dma_maps\":1"))                                                               \
    X("version/major", "R-VERSION-4", "another major version ends the connection", 1, 0, "{}", 3,  \
      play_ends)                                                                                   \
    X("version/minor", "R-VERSION-6", "a minor version above the proposed one ends it", 0, 1000,   \
      "{}", 3, play_ends)                                                                          \
    X("version/no-nul", "R-VERSION-7 R-CAPS-5", "JSON without a NUL ends the connection", 0, 0,    \
      "{}", 2, play_ends)                                                                          \
    BAD("version/not-json", "R-CAPS-5", "what is not JSON ends the connection", "{\"a\":")         \
    BAD("version/array", "R-CAPS-5", "what is no object ends the connection", "[]")                \
    BAD("version/two-objects", "R-VERSION-7 R-CAPS-5", "two objects end the connection", "{}{}")   \
    BAD("version/not-utf-8", "R-VERSION-7 R-CAPS-5", "JSON is UTF-8", "{\"a\":\"\xff\xfe\"}")      \
    BAD("version/capabilities-number", "R-CAPS-4", "capabilities that are no object end it",       \
        "{\"capabilities\":1}")                                                                    \
    BAD("version/fds-text", "R-CAPS-4", "max_msg_fds is a number", CAPS("\"max_msg_fds\":\"8\""))  \
    BAD("version/fds-negative", "R-CAPS-4", "max_msg_fds is not negative",                         \
        CAPS("\"max_msg_fds\":-1"))                                                                \
    BAD("version/fds-fraction", "R-CAPS-4", "max_msg_fds is an integer",                           \
        CAPS("\"max_msg_fds\":1.5"))                                                               \
    BAD("version/xfer-zero", "R-CAPS-4", "max_data_xfer_size is at least 1",                       \
        CAPS("\"max_data_xfer_size\":0"))                                                          \
    BAD("version/xfer-text", "R-CAPS-4", "max_data_xfer_size is a number",                         \
        CAPS("\"max_data_xfer_size\":true"))                                                       \
    BAD("version/maps-zero", "R-CAPS-4", "max_dma_maps is at least 1", CAPS("\"max_dma_maps\":0")) \
    BAD("version/pgsizes-zero", "R-CAPS-4", "pgsizes has a page size", CAPS("\"pgsizes\":0"))      \
    BAD("version/pgsizes-small", "R-CAPS-4", "page sizes begin at 4096", CAPS("\"pgsizes\":512"))  \
    BAD("version/multi-number", "R-CAPS-4", "write_multiple is a boolean",                         \
        CAPS("\"write_multiple\":1"))                                                              \
    BAD("version/twin-boolean", "R-CAPS-4", "twin_socket is an object",                            \
        CAPS("\"twin_socket\":true"))                                                              \
    BAD("version/twin-without-fd", "R-TWIN-3", "a twin socket has a descriptor",                   \
        CAPS("\"twin_socket\":{\"supported\":true,\"fd_index\":0}"))                               \
    BAD("version/twin-without-index", "R-TWIN-3", "a twin socket has an index",                    \
        CAPS("\"twin_socket\":{\"supported\":true}"))                                              \
    BAD("version/twin-index-outside", "R-TWIN-3", "the index of a twin socket is that of an fd",   \
        CAPS("\"twin_socket\":{\"supported\":true,\"fd_index\":7}"))                               \
    BAD("version/migration-number", "R-CAPS-4", "migration is an object", CAPS("\"migration\":1"))

#define X(id, rules, says, major, minor, json, len, then) { id, major, minor, json, len, then },
static const struct row rows[] = { ROWS };
#undef X

static const struct row *row_of(const struct test *t)
{
    const struct row *row = rows;

    while (strcmp(row->id, t->entry->id) != 0)
        row++;
    return row;
}

static void reply(struct test *t)
{
    const struct row *row = row_of(t);
    struct answer *a = play_until(t, OB_CMD_VERSION);
    struct ob_wire_version version = { row->major, row->minor };

    memcpy(a->data, &version, sizeof(version));
    memcpy(a->data + sizeof(version), row->json, row->len);
    a->len = (uint32_t)(sizeof(version) + row->len);
    play_send(t, a);
    row->then(t);
}

/* ---- What takes more than a reply ------------------------------------------------------------ */

static void command_before(struct test *t)
{
    const struct ob_wire_dma_access access = { 0, 8 };
    struct answer *a = play_until(t, OB_CMD_VERSION);
    uint16_t id;
    int got;

    if (!play_of(t)->probes)
        test_not_offered(t, "the client takes no commands");
    play_of(t)->hold = true;
    id = test_send_all(t, OB_CMD_DMA_READ, 0, &access, sizeof(access), NULL, 0);
    got = play_reply(t, OB_CMD_DMA_READ, id);
    MUST(t, got != 0, "a command before VERSION was answered with success");
    if (got < 0)
        test_fail(t, "the client ended the connection");
    play_release(t, a);
    play_goes_on(t);
}

static void deep_json(struct test *t)
{
    struct answer *a = play_until(t, OB_CMD_VERSION);

    a->len = sizeof(struct ob_wire_version);
    memset(a->data + a->len, '[', 4000);
    a->len += 4000;
    a->data[a->len++] = '\0';
    play_send(t, a);
    play_ends(t);
}

/* The VERSION reply with this socket as its twin. */
static void say_twin(struct test *t, int fd)
{
    static const char json[] = CAPS("\"twin_socket\":{\"supported\":true,\"fd_index\":0}");
    struct answer *a = play_until(t, OB_CMD_VERSION);

    if (!memmem(t->in.data, t->in.len, "\"twin_socket\"", 13))
        test_not_offered(t, "the client did not ask for a second socket");
    a->len = sizeof(struct ob_wire_version) + sizeof(json);
    memcpy(a->data + sizeof(struct ob_wire_version), json, sizeof(json));
    a->fds[0] = fd;
    a->nfds = 1;
    play_send(t, a);
}

static int twin_pair(struct test *t)
{
    int pair[2];

    MUST(t, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0,
         "no sockets");
    t->links[1] = pair[0];
    t->nlinks = 2;
    say_twin(t, test_keep(t, pair[1]));
    test_close(t, pair[1]);
    return pair[0];
}

static void twin_not_a_socket(struct test *t)
{
    say_twin(t, test_memfd(t, PAGE));
    play_ends(t);
}

static void twin_used(struct test *t)
{
    const struct ob_wire_dma_access access = { NOWHERE, 8 };
    uint16_t id;

    twin_pair(t);
    play_send(t, play_until(t, OB_CMD_DEVICE_GET_INFO));
    t->at = 1;
    id = test_send_all(t, OB_CMD_DMA_READ, 0, &access, sizeof(access), NULL, 0);
    /* The client serves it while it waits, or when it has nothing else to do. */
    t->at = 0;
    play_send(t, play_until(t, OB_CMD_DEVICE_GET_REGION_INFO));
    t->at = 1;
    MUST(t, play_reply(t, OB_CMD_DMA_READ, id) > 0, "the second socket does not work");
}

static void twin_wrong_socket(struct test *t)
{
    const struct ob_wire_dma_access access = { NOWHERE, 8 };
    int got;

    twin_pair(t);
    got = play_reply(t, OB_CMD_DMA_READ,
                     test_send_all(t, OB_CMD_DMA_READ, 0, &access, sizeof(access), NULL, 0));
    MUST(t, got > 0, "a command on the wrong socket was not refused");
}

static void twin_ends(struct test *t)
{
    twin_pair(t);
    play_send(t, play_until(t, OB_CMD_DEVICE_GET_INFO));
    close(t->links[1]);
    t->links[1] = -1;
    while (test_get(t))
        ;
}

#define X(id, rules, says, major, minor, json, len, then) RAW(id, rules, says, reply),
static const struct entry entries[] = {
    ROWS RAW("version/deep", "R-CAPS-5 R-LOSS-5", "endless nesting ends the connection", deep_json),
    RAW("version/command-before", "R-VERSION-11", "a command before VERSION's reply is refused",
        command_before),
    RAW("twin/used", "R-TWIN-4", "commands on the second socket are answered there", twin_used),
    RAW("twin/wrong-socket", "R-TWIN-4", "with two, a command on the main socket is refused",
        twin_wrong_socket),
    RAW("twin/not-a-socket", "R-TWIN-3", "a second socket that is none ends the connection",
        twin_not_a_socket),
    RAW("twin/ends", "R-TWIN-6", "the end of the second socket is that of the connection",
        twin_ends),
};
#undef X
CASES(client_version_cases, entries);
