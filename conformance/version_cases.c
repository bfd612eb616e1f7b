/* SPDX-License-Identifier: BSD-3-Clause */
/* VERSION: what the first message of a connection may say. */
#include "conformance/test.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#define VERSION_BYTES ((uint32_t)sizeof(struct ob_wire_version))

#define CAPS TEST_CAPS

static const char plain[] = TEST_PLAIN;

/* ---- What it answers ------------------------------------------------------------------------ */

static const char *reply_json(struct test *t)
{
    const struct msg *in = &t->in;

    if (in->len == VERSION_BYTES)
        return NULL;
    MUST(t, in->data[in->len - 1] == '\0', "the JSON of the reply does not end with a NUL");
    MUST(t,
         memchr(in->data + VERSION_BYTES, '\0', in->len - VERSION_BYTES) == in->data + in->len - 1,
         "there is a NUL inside the JSON of the reply");
    return (const char *)in->data + VERSION_BYTES;
}

static void accepted(struct test *t, int got)
{
    struct ob_wire_version version;

    MUST(t, got >= 0, "the server closed the connection instead of answering VERSION");
    test_is_ok(t, got, OB_CMD_VERSION);
    memcpy(&version, t->in.data, sizeof(version));
    MUST(t, version.major == OB_VERSION_MAJOR, "the reply says version %u.%u", version.major,
         version.minor);
    test_alive(t);
}

static void accept_json(struct test *t, const char *json)
{
    accepted(t, test_version(t, 0, 0, json, json ? strlen(json) + 1 : 0));
}

static void refuse_bytes(struct test *t, uint16_t major, const char *json, size_t len)
{
    MUST(t, test_version(t, major, 0, json, len) != 0, "VERSION was answered with success");
    test_closed(t);
    test_served(t);
}

static void refuse_json(struct test *t, const char *json)
{
    refuse_bytes(t, 0, json, strlen(json) + 1);
}

/* ---- Versions ------------------------------------------------------------------------------- */

static void newer_minor(struct test *t)
{
    accepted(t, test_version(t, 0, UINT16_MAX, plain, sizeof(plain)));
}

static void minor_not_raised(struct test *t)
{
    struct ob_wire_version version;
    int got = test_version(t, 0, 0, plain, sizeof(plain));

    test_is_ok(t, got, OB_CMD_VERSION);
    memcpy(&version, t->in.data, sizeof(version));
    MUST(t, version.major == 0 && version.minor == 0, "the reply to 0.0 says version %u.%u",
         version.major, version.minor);
}

static void other_major(struct test *t)
{
    refuse_bytes(t, 1, plain, sizeof(plain));
}

static void unknown_first(struct test *t)
{
    uint16_t id = test_send(t, 999, plain, sizeof(plain));

    MUST(t, test_reply_or_end(t, 999, id) != 0, "a command that nobody knows was answered");
    test_closed(t);
    test_served(t);
}

static void twice(struct test *t)
{
    MUST(t, test_version(t, 0, 0, plain, sizeof(plain)) == 0, "VERSION was refused");
    test_is_refused(t, test_version(t, 0, 0, plain, sizeof(plain)), 0, OB_CMD_VERSION);
    test_alive(t);
}

static void twice_with_capabilities(struct test *t)
{
    static const char json[] = "{\"capabilities\":{\"max_msg_fds\":1}}";

    test_negotiate(t);
    test_is_refused(t, test_version(t, 0, 0, json, sizeof(json)), 0, OB_CMD_VERSION);
    test_alive(t);
}

static void header_ids(struct test *t)
{
    static const uint16_t ids[] = { 0, 1, 0x7fff, 0x8000, UINT16_MAX, 7, 7, 7 };

    test_negotiate(t);
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        t->next_id = ids[i];
        test_alive(t);
    }
}

/* ---- JSON that is fine ---------------------------------------------------------------------- */

#define GOOD(name, json)             \
    static void name(struct test *t) \
    {                                \
        accept_json(t, json);        \
    }
#define BAD(name, json)              \
    static void name(struct test *t) \
    {                                \
        refuse_json(t, json);        \
    }

static void no_json(struct test *t)
{
    test_is_ok(t, test_version(t, 0, 0, NULL, 0), OB_CMD_VERSION);
    if (t->in.len > VERSION_BYTES)
        test_deviates(t, "a VERSION without JSON is answered with JSON, as by libvfio-user");
    test_alive(t);
}

GOOD(only_nul, "")
GOOD(empty_object, "{}")
GOOD(no_capabilities, CAPS(""))
GOOD(unknown_keys, "{\"capabilities\":{\"x-new\":[1,{\"y\":null}]},\"z\":1.5}")
GOOD(spaces, " {\n\t\"capabilities\" : { \"max_msg_fds\" : 8 } }\r\n ")
GOOD(everything,
     CAPS("\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,\"max_dma_maps\":65535,"
          "\"pgsizes\":4096,\"write_multiple\":true,\"twin_socket\":{\"supported\":false}"))
GOOD(no_fds, CAPS("\"max_msg_fds\":0"))
GOOD(small_transfers, CAPS("\"max_data_xfer_size\":4096"))

BAD(not_json, "{\"capabilities\":")
BAD(binary, "\xff\xfe\x01")
BAD(array, "[]")
BAD(capabilities_number, "{\"capabilities\":1}")
BAD(fds_string, CAPS("\"max_msg_fds\":\"8\""))
BAD(fds_negative, CAPS("\"max_msg_fds\":-1"))
BAD(transfers_zero, CAPS("\"max_data_xfer_size\":0"))
BAD(transfers_string, CAPS("\"max_data_xfer_size\":\"big\""))
BAD(maps_zero, CAPS("\"max_dma_maps\":0"))
BAD(pages_small, CAPS("\"pgsizes\":512"))
BAD(multiple_number, CAPS("\"write_multiple\":1"))
BAD(twin_boolean, CAPS("\"twin_socket\":true"))
BAD(migration_string, CAPS("\"migration\":\"23\""))
BAD(migration_page_string, CAPS("\"migration\":{\"pgsize\":\"big\"}"))
BAD(trailing_text, "{} {}")

static void no_nul(struct test *t)
{
    refuse_bytes(t, 0, "{}", 2);
}

static void nul_within(struct test *t)
{
    accepted(t, test_version(t, 0, 0, "{}\0{", 4));
}

/* So deep that a parser which recurses without a limit falls over. */
static void deep(struct test *t)
{
    char json[OB_VERSION_JSON_MAX];

    memset(json, '[', sizeof(json) - 1);
    json[sizeof(json) - 1] = '\0';
    refuse_bytes(t, 0, json, sizeof(json));
}

static void long_json(struct test *t, size_t len)
{
    char json[OB_VERSION_JSON_MAX + 1];

    memset(json, ' ', len);
    memcpy(json, plain, sizeof(plain) - 1);
    json[len - 1] = '\0';
    if (len <= OB_VERSION_JSON_MAX)
        accepted(t, test_version(t, 0, 0, json, len));
    else
        refuse_bytes(t, 0, json, len);
}

static void longest(struct test *t)
{
    long_json(t, OB_VERSION_JSON_MAX);
}

static void past_longest(struct test *t)
{
    long_json(t, OB_VERSION_JSON_MAX + 1);
}

/* ---- What the reply says -------------------------------------------------------------------- */

static json_t *said(struct test *t)
{
    const char *json = reply_json(t);
    json_t *root;

    if (!json)
        test_not_offered(t, "the server says nothing of itself");
    root = json_loads(json, 0, NULL);
    MUST(t, root, "the reply has no valid JSON: %.100s", json);
    if (!json_is_object(root)) {
        json_decref(root);
        test_fail(t, "the JSON of the reply is no object: %.100s", json);
    }
    return root;
}

/* What is wrong with a capability, or NULL. */
static const char *wrong_number(const json_t *caps, const char *key, json_int_t min)
{
    const json_t *value = json_object_get(caps, key);

    return value && (!json_is_integer(value) || json_integer_value(value) < min) ? key : NULL;
}

static const char *wrong_key(const json_t *caps)
{
    static const struct {
        const char *key;
        json_int_t min;
    } numbers[] = { { "max_msg_fds", 0 },
                    { "max_data_xfer_size", 1 },
                    { "max_dma_maps", 1 },
                    { "pgsizes", 4096 } };
    const json_t *value;

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (wrong_number(caps, numbers[i].key, numbers[i].min))
            return numbers[i].key;
    value = json_object_get(caps, "write_multiple");
    if (value && !json_is_boolean(value))
        return "write_multiple";
    value = json_object_get(caps, "twin_socket");
    return value && !json_is_object(value) ? "twin_socket" : NULL;
}

static void reply_values(struct test *t)
{
    json_t *root;
    const char *wrong;

    test_negotiate(t);
    root = said(t);
    wrong = wrong_key(json_object_get(root, "capabilities"));
    json_decref(root);
    MUST(t, !wrong, "the reply has a wrong %s", wrong);
}

/* QEMU's client has no room for more than its own request is long. */
static void reply_fits_qemu(struct test *t)
{
    test_negotiate(t);
    MUST(t, t->in.len <= VERSION_BYTES + OB_VERSION_JSON_QEMU,
         "the reply has %u bytes of JSON, QEMU takes %u", t->in.len - VERSION_BYTES,
         OB_VERSION_JSON_QEMU);
}

/* Only what the client proposed may be in the reply; the limits are a server's own. */
static void reply_is_subset(struct test *t)
{
    json_t *root;
    bool multiple, twin;

    test_is_ok(t, test_version(t, 0, 0, plain, sizeof(plain)), OB_CMD_VERSION);
    root = said(t);
    const json_t *caps = json_object_get(root, "capabilities");
    multiple = json_is_true(json_object_get(caps, "write_multiple"));
    twin = json_is_true(json_object_get(json_object_get(caps, "twin_socket"), "supported"));
    json_decref(root);
    MUST(t, !multiple, "the server turns write_multiple on, which was not proposed");
    MUST(t, !twin, "the server turns twin_socket on, which was not proposed");
}

int test_came_along(struct test *t, const char *key)
{
    json_t *root = said(t);
    const json_t *said = json_object_get(json_object_get(root, "capabilities"), key);
    const json_t *index = json_object_get(said, "fd_index");
    bool on = json_is_true(json_object_get(said, "supported"));
    json_int_t at = json_is_integer(index) ? json_integer_value(index) : -1;

    json_decref(root);
    MUST(t, !on || (at >= 0 && at < t->in.nfds), "fd_index of %s is %lld, and %u fds came", key,
         (long long)at, t->in.nfds);
    return on ? (int)at : -1;
}

/* The second socket, proposed: it is there and is a socket, or it is not on. */
static void twin_socket(struct test *t)
{
    static const char ask[] = CAPS("\"max_msg_fds\":8,\"twin_socket\":{\"supported\":true}");
    int type = 0, at;
    socklen_t len = sizeof(type);

    test_is_ok(t, test_version(t, 0, 0, ask, sizeof(ask)), OB_CMD_VERSION);
    at = test_came_along(t, "twin_socket");
    if (at < 0)
        test_not_offered(t, "the server has no twin socket");
    MUST(t, getsockopt(t->in.fds[at], SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_STREAM,
         "the twin socket is no stream socket");
    test_keep(t, dup(t->in.fds[at])); /* its end would be the end of the connection */
    test_alive(t);
}

static const struct entry entries[] = {
    RAW("version/answers-own-version", "R-VERSION-4 R-VERSION-5", "0.0 is answered with 0.0",
        minor_not_raised),
    RAW("version/newer-minor", "R-VERSION-5", "a newer minor version is answered with the server's",
        newer_minor),
    RAW("version/other-major", "R-VERSION-4", "another major version ends the connection",
        other_major),
    RAW("version/unknown-command-first", "R-VERSION-2",
        "a command that nobody knows, before VERSION, ends the connection", unknown_first),
    RAW("version/twice", "R-VERSION-3", "a second VERSION is refused, the connection stays", twice),
    RAW("version/twice-other-capabilities", "R-VERSION-3", "a second VERSION changes nothing",
        twice_with_capabilities),
    RAW("header/any-id", "R-HDR-1", "a reply has the id of its command, whichever that is",
        header_ids),
    RAW("version/no-json", "R-VERSION-7 R-VERSION-8 R-CAPS-1", "VERSION without JSON is accepted",
        no_json),
    RAW("version/empty-object", "R-CAPS-1", "JSON without capabilities is accepted", empty_object),
    RAW("version/no-capabilities", "R-CAPS-1", "empty capabilities are accepted", no_capabilities),
    RAW("version/unknown-keys", "R-CAPS-3", "keys that are not known are ignored", unknown_keys),
    RAW("version/spaces", "R-VERSION-7", "white space around JSON is accepted", spaces),
    RAW("version/all-keys", "R-CAPS-1", "all capabilities together are accepted", everything),
    RAW("version/client-without-fds", "R-CAPS-7", "a client that takes no fds is accepted", no_fds),
    RAW("version/client-with-small-transfers", "R-CAPS-8",
        "a client with small transfers is accepted", small_transfers),
    RAW("version/longest-json", "R-VERSION-7", "4096 bytes of JSON are accepted", longest),
    RAW("version/too-long-json", "R-VERSION-7", "more than 4096 bytes of JSON end the connection",
        past_longest),
    RAW("version/not-json", "R-CAPS-5", "text that is no JSON ends the connection", not_json),
    RAW("version/binary", "R-CAPS-5", "bytes that are no text end the connection", binary),
    RAW("version/array", "R-CAPS-5", "JSON that is no object ends the connection", array),
    RAW("version/trailing-text", "R-CAPS-5", "text after the JSON ends the connection",
        trailing_text),
    RAW("version/no-nul", "R-CAPS-5", "JSON without its NUL ends the connection", no_nul),
    RAW("version/nul-within", "R-VERSION-7", "what is behind the NUL is ignored", nul_within),
    RAW("version/only-nul", "R-VERSION-7", "a NUL alone says nothing", only_nul),
    RAW("version/deep", "R-CAPS-5", "JSON nested 4095 deep ends the connection, not the server",
        deep),
    RAW("version/capabilities-number", "R-CAPS-4",
        "capabilities that are no object end the connection", capabilities_number),
    RAW("version/max-msg-fds-string", "R-CAPS-4",
        "a max_msg_fds of the wrong type ends the connection", fds_string),
    RAW("version/max-msg-fds-negative", "R-CAPS-4", "a negative max_msg_fds ends the connection",
        fds_negative),
    RAW("version/max-data-xfer-size-zero", "R-CAPS-4",
        "a max_data_xfer_size of 0 ends the connection", transfers_zero),
    RAW("version/max-data-xfer-size-string", "R-CAPS-4",
        "a max_data_xfer_size of the wrong type ends the connection", transfers_string),
    RAW("version/max-dma-maps-zero", "R-CAPS-4", "a max_dma_maps of 0 ends the connection",
        maps_zero),
    RAW("version/pgsizes-small", "R-CAPS-4", "page sizes below 4096 end the connection",
        pages_small),
    RAW("version/write-multiple-number", "R-CAPS-4",
        "a write_multiple of the wrong type ends the connection", multiple_number),
    RAW("version/twin-socket-boolean", "R-CAPS-4",
        "a twin_socket of the wrong type ends the connection", twin_boolean),
    RAW("version/migration-string", "R-CAPS-4", "a migration of the wrong type ends the connection",
        migration_string),
    RAW("version/migration-pgsize-string", "R-CAPS-4",
        "a page size of migration of the wrong type ends the connection", migration_page_string),
    RAW("version/reply-values", "R-CAPS-4",
        "the capabilities in the reply have their types and ranges", reply_values),
    RAW("version/reply-fits-qemu", "R-VERSION-8", "the reply fits what QEMU's client has room for",
        reply_fits_qemu),
    RAW("version/reply-is-subset", "R-CAPS-6", "nothing is turned on that was not proposed",
        reply_is_subset),
    RAW("version/twin-socket", "R-TWIN-1", "a twin socket that is on comes along", twin_socket),
};

CASES(version_cases, entries);
