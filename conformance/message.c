/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands and replies, and what holds for every one of them. */
#include "conformance/test.h"

#include <errno.h>

/* What the suite says of itself. pgsize is what libvfio-user wants to hear when it can migrate. */
static const char proposal[] = "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":"
                               "1048576,\"write_multiple\":true,\"migration\":{\"pgsize\":4096}}}";

uint16_t test_send_all(struct test *t, uint16_t cmd, uint32_t flags, const void *payload,
                       size_t len, const int *fds, unsigned nfds)
{
    static uint8_t whole[OB_MSG_MAX + PAGE];
    struct ob_wire_hdr hdr = { .msg_id = t->next_id++,
                               .cmd = cmd,
                               .msg_size = (uint32_t)(sizeof(hdr) + len),
                               .flags = flags };

    MUST(t, hdr.msg_size <= sizeof(whole), "out of room for a message");
    t->sent += (flags & OB_HDR_TYPE_MASK) == OB_HDR_COMMAND;
    memcpy(whole, &hdr, sizeof(hdr));
    if (len)
        memcpy(whole + sizeof(hdr), payload, len);
    test_put(t, whole, hdr.msg_size, fds, nfds);
    return hdr.msg_id;
}

uint16_t test_send(struct test *t, uint16_t cmd, const void *payload, size_t len)
{
    return test_send_all(t, cmd, OB_HDR_COMMAND, payload, len, NULL, 0);
}

void test_answer(struct test *t, const struct msg *to, uint32_t error, const void *payload,
                 size_t len)
{
    uint8_t whole[sizeof(struct ob_wire_hdr) + 2 * PAGE];
    struct ob_wire_hdr hdr = { to->hdr.msg_id, to->hdr.cmd, (uint32_t)(sizeof(hdr) + len),
                               OB_HDR_REPLY | (error ? OB_HDR_ERROR : 0), error };

    MUST(t, hdr.msg_size <= sizeof(whole), "the server asks for more than was offered");
    memcpy(whole, &hdr, sizeof(hdr));
    if (len)
        memcpy(whole + sizeof(hdr), payload, len);
    test_put(t, whole, hdr.msg_size, NULL, 0);
}

/* ---- Replies ------------------------------------------------------------------------------- */

static void serve_command(struct test *t)
{
    const struct msg *in = &t->in;
    enum ob_reason reason = ob_check_command(&in->hdr, OB_SERVER_TO_CLIENT, OB_STATE_READY);

    MUST(t, reason == OB_OK, "the server sends %s: %s", ob_strcmd(in->hdr.cmd),
         ob_strreason(reason));
    if (t->serve)
        t->serve(t, in);
    else if (!(in->hdr.flags & OB_HDR_NO_REPLY))
        test_answer(t, in, EFAULT, NULL, 0);
}

static void check_reply(struct test *t, uint16_t cmd, uint16_t id)
{
    const struct ob_wire_hdr *hdr = &t->in.hdr;
    enum ob_reason reason = ob_check_reply(hdr, cmd);

    MUST(t, hdr->msg_id == id && hdr->cmd == cmd,
         "the reply to %s with id %u comes for %s with id %u", ob_strcmd(cmd), id,
         ob_strcmd(hdr->cmd), hdr->msg_id);
    MUST(t, reason == OB_OK, "the reply to %s: %s", ob_strcmd(cmd), ob_strreason(reason));
    if (!(hdr->flags & OB_HDR_ERROR))
        return;
    MUST(t, hdr->error_no <= 4095, "the reply to %s says errno %d", ob_strcmd(cmd),
         (int)hdr->error_no);
    if (t->in.len)
        test_deviates(t, "an error reply has a payload, as libvfio-user's may have");
    if (hdr->error_no == 0)
        test_deviates(t, "an error reply has the errno 0, as those of rust-vmm's crate");
}

int test_reply_or_end(struct test *t, uint16_t cmd, uint16_t id)
{
    do {
        if (!test_get(t))
            return -1;
        if ((t->in.hdr.flags & OB_HDR_TYPE_MASK) == OB_HDR_COMMAND)
            serve_command(t);
    } while ((t->in.hdr.flags & OB_HDR_TYPE_MASK) == OB_HDR_COMMAND);
    check_reply(t, cmd, id);
    if (!(t->in.hdr.flags & OB_HDR_ERROR))
        return 0;
    return t->in.hdr.error_no ? (int)t->in.hdr.error_no : EINVAL;
}

int test_reply(struct test *t, uint16_t cmd, uint16_t id)
{
    int got = test_reply_or_end(t, cmd, id);

    MUST(t, got >= 0, "the server closed the connection instead of answering %s", ob_strcmd(cmd));
    return got;
}

int test_ask_fds(struct test *t, uint16_t cmd, const void *payload, size_t len, const int *fds,
                 unsigned nfds)
{
    return test_reply(t, cmd, test_send_all(t, cmd, OB_HDR_COMMAND, payload, len, fds, nfds));
}

int test_ask(struct test *t, uint16_t cmd, const void *payload, size_t len)
{
    return test_ask_fds(t, cmd, payload, len, NULL, 0);
}

void test_is_ok(struct test *t, int got, uint16_t cmd)
{
    MUST(t, got >= 0, "the server closed the connection instead of answering %s", ob_strcmd(cmd));
    MUST(t, got == 0, "%s was refused: %s", ob_strcmd(cmd), strerror(got));
}

void test_is_refused(struct test *t, int got, int err, uint16_t cmd)
{
    MUST(t, got != 0, "%s was answered with success", ob_strcmd(cmd));
    if (err && got != err)
        test_deviates(t, "%s was refused with \"%s\", not with \"%s\"", ob_strcmd(cmd),
                      strerror(got), strerror(err));
}

const struct msg *test_ok(struct test *t, uint16_t cmd, const void *payload, size_t len)
{
    test_is_ok(t, test_ask(t, cmd, payload, len), cmd);
    return &t->in;
}

void test_refused(struct test *t, int err, uint16_t cmd, const void *payload, size_t len)
{
    test_is_refused(t, test_ask(t, cmd, payload, len), err, cmd);
}

/* ---- The state of a connection ------------------------------------------------------------- */

void test_alive(struct test *t)
{
    struct ob_wire_device_info info = { .argsz = sizeof(info) };

    memcpy(&info, test_ok(t, OB_CMD_DEVICE_GET_INFO, &info, sizeof(info))->data, sizeof(info));
    if (t->dev->known)
        MUST(t, memcmp(&info, &t->dev->info, sizeof(info)) == 0,
             "DEVICE_GET_INFO is not answered as before");
}

void test_closed(struct test *t)
{
    while (test_get(t))
        ;
}

void test_served(struct test *t)
{
    test_connect(t);
    test_negotiate(t);
    test_alive(t);
}

int test_version(struct test *t, uint16_t major, uint16_t minor, const char *json, size_t len)
{
    struct ob_wire_version version = { major, minor };
    uint8_t payload[sizeof(version) + 2 * OB_VERSION_JSON_MAX];

    MUST(t, len <= sizeof(payload) - sizeof(version), "out of room for a VERSION");
    memcpy(payload, &version, sizeof(version));
    if (len)
        memcpy(payload + sizeof(version), json, len);
    return test_reply_or_end(t, OB_CMD_VERSION,
                             test_send(t, OB_CMD_VERSION, payload, sizeof(version) + len));
}

static int propose(struct test *t)
{
    return test_version(t, OB_VERSION_MAJOR, OB_VERSION_MINOR, proposal, sizeof(proposal));
}

void test_negotiate(struct test *t)
{
    int got = propose(t);

    if (got < 0 && test_server_died(t, END_MS)) {
        MUST(t, t->connections == 1, "the server has ended");
        t->connections = 0; /* the case before was its end */
        test_hang_up(t);
        test_connect(t);
        got = propose(t);
    }
    MUST(t, got >= 0, "the server closed the connection instead of answering VERSION");
    MUST(t, got == 0, "VERSION was refused: %s", strerror(got));
}
