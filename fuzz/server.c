/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A whole server, with each device, behind its sockets. The first byte chooses the device; then
 * come operations (operations.h), done by up to four connections.
 */
#include "disk.h"
#include "kinds.h"
#include "kit.h"
#include "message.h"
#include "operations.h"
#include "visitors.h"
#include "world.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void let_step(void *opaque)
{
    visitors_step(opaque, 4);
}

static void do_message(struct visitors *v, struct input *in)
{
    static struct message msg;
    const struct visitor *from = v->current;
    int fds[OB_MSG_FDS_MAX], sock;

    message_take(in, NULL, &msg);
    for (unsigned i = 0; i < msg.nfds; i++)
        fds[i] = kind_fd(msg.kinds[i < MESSAGE_KINDS ? i : MESSAGE_KINDS - 1]);
    sock = (msg.how & MESSAGE_TWIN) && from->twin.fd >= 0 ? from->twin.fd : from->main.fd;
    if (sock < 0)
        return;
    message_send(sock, &msg, fds, let_step, v);
    if (!(msg.how & MESSAGE_AT_ONCE))
        visitors_step(v, 8);
}

static void do_raw(struct visitors *v, struct input *in)
{
    size_t len = input_u8(in);
    const uint8_t *bytes = input_take(in, &len);

    if (v->current->main.fd >= 0 && len)
        send(v->current->main.fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    visitors_step(v, 4);
}

static void do_connect(struct visitors *v, uint8_t how)
{
    visitor_connect(v, how);
    if (how & CONNECT_GREETED)
        visitor_greet(v, how & CONNECT_TWIN, how & CONNECT_RING);
}

static void do_leave(struct visitors *v, uint8_t how)
{
    struct visitor *visitor = &v->all[how % VISITORS];
    struct ob_channel *ch = how & 4 ? &visitor->twin : &visitor->main;

    if (!(how & 12))
        visitor_leave(visitor);
    else if (ch->fd >= 0)
        shutdown(ch->fd, how & 8 ? SHUT_WR : SHUT_RDWR);
}

static void do_memory(struct input *in)
{
    uint64_t offset = input_number(in);
    size_t len = input_u8(in);
    const uint8_t *bytes = input_take(in, &len);

    ram_write(offset, bytes, len);
}

static void do_signal(struct visitors *v, uint8_t which)
{
    const uint64_t one = 1;
    int fd = v->io_fds[which % IO_FDS];

    if (fd < 0)
        fd = kind_fd(which & 1 ? KIND_EVENTFD : KIND_EVENTFD2);
    HOLDS(write(fd, &one, sizeof(one)) == sizeof(one));
}

static void do_answers(struct visitors *v, struct input *in)
{
    v->answered = 0;
    v->nanswers = input_u8(in) % (ANSWERS_MAX + 1);
    for (unsigned i = 0; i < v->nanswers; i++)
        v->answers[i] = input_u8(in);
}

/* The server's turn, in which it polls; the input goes on meanwhile. */
static struct polling {
    struct visitors *v;
    struct input *in;
} polling;

static void operate(struct visitors *v, struct input *in);

static void go_on(void *opaque)
{
    struct polling *p = opaque;

    operate(p->v, p->in);
}

static void operate(struct visitors *v, struct input *in)
{
    uint8_t byte;

    switch ((enum server_operation)(input_u8(in) % SERVER_OPS)) {
    case OP_MESSAGE:
        do_message(v, in);
        break;
    case OP_RAW:
        do_raw(v, in);
        break;
    case OP_STEP:
        byte = input_u8(in);
        world.now_ns += byte * INT64_C(1000000);
        visitors_step(v, byte);
        break;
    case OP_DRAIN:
        visitors_drain(v);
        break;
    case OP_CONNECT:
        do_connect(v, input_u8(in));
        break;
    case OP_LEAVE:
        do_leave(v, input_u8(in));
        break;
    case OP_MEMORY:
        do_memory(in);
        break;
    case OP_CUT:
        kind_cut(input_number(in));
        break;
    case OP_SIGNAL:
        do_signal(v, input_u8(in));
        break;
    case OP_RING:
        end_act(&v->current->ring, in, true);
        break;
    case OP_POLL:
        polling = (struct polling){ v, in };
        visitors_poll(v, input_u8(in), go_on, &polling);
        break;
    default:
        do_answers(v, in);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const null_args[] = { "--ioeventfds", NULL };
    static const char *const nvme_args[] = { "mem:1M", "--queues", "4", NULL };
    static const char *const mapped_args[] = { "mem:1M", "--doorbells", "mapped", NULL };
    static const struct {
        const struct ob_served *type;
        const char *const *args;
    } devices[] = {
        { &kit_served, NULL },          { &ob_served_gpio, NULL },
        { &ob_served_edu, NULL },       { &ob_served_null, null_args },
        { &ob_served_nvme, nvme_args }, { &ob_served_nvme, mapped_args },
    };
    struct input in = { data, size, 0 };
    unsigned which = input_u8(&in) % (sizeof(devices) / sizeof(devices[0]));
    static struct visitors v;
    bool is_disk;

    is_disk = devices[which].type == &ob_served_nvme;
    kinds_open();
    world_begin();
    visitors_begin(&v, devices[which].type, devices[which].args);
    do_connect(&v, input_u8(&in));
    while (input_left(&in))
        operate(&v, &in);
    visitors_end(&v, is_disk ? disk_check : NULL);
    kinds_reset();
    world_end();
    return 0;
}
