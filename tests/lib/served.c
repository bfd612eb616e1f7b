/* SPDX-License-Identifier: BSD-3-Clause */
#include "served.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"

#define ARGS_MAX 16

static void *run(void *opaque)
{
    struct served *served = opaque;

    CHECK_INT(ob_server_run(served->server), 0);
    return NULL;
}

static void no_log(void *opaque, enum ob_log_level level, const char *line)
{
    (void)opaque, (void)level, (void)line;
}

static int create(struct served *served, const char *const *args, char *sentence, size_t size)
{
    char *argv[ARGS_MAX + 2] = { (char *)served->type->name };
    char banner[160];
    int argc = 1;

    while (args && *args && argc <= ARGS_MAX)
        argv[argc++] = (char *)*args++;
    optind = 0;
    return served->type->create(argc, argv, no_log, &served->device, &served->server, banner,
                                sizeof(banner), sentence, size);
}

void served_start(struct served *served, const struct ob_served *type, const char *const *args,
                  const struct ob_client_options *options)
{
    char sentence[256] = "";
    int fds[2];

    served->type = type;
    if (create(served, args, sentence, sizeof(sentence)))
        test_fail(__FILE__, __LINE__, "%s: %s", type->name, sentence);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_INT(ob_server_listen_fd(served->server, fds[0]), 0);
    if (type->start)
        CHECK_INT(type->start(served->device), 0);
    CHECK_INT(pthread_create(&served->thread, NULL, run, served), 0);
    if (ob_client_connect_fd(fds[1], options, &served->client, sentence, sizeof(sentence)) < 0)
        test_fail(__FILE__, __LINE__, "%s", sentence);
}

void served_stop(struct served *served)
{
    ob_client_free(served->client);
    CHECK_INT(pthread_join(served->thread, NULL), 0);
    CHECK_INT(served->type->destroy(served->device), 0);
}

void served_refuses(const struct ob_served *type, const char *const *args, int status,
                    const char *sentence)
{
    struct served served = { .type = type };
    char said[256] = "";

    CHECK_INT(create(&served, args, said, sizeof(said)), status);
    CHECK_STR(said, sentence);
}

uint64_t served_read(struct served *served, uint32_t region, uint64_t offset, uint32_t count)
{
    uint64_t value = 0;

    CHECK_INT(ob_client_region_read(served->client, region, offset, &value, count), 0);
    return value;
}

void served_write(struct served *served, uint32_t region, uint64_t offset, uint32_t count,
                  uint64_t value)
{
    CHECK_INT(ob_client_region_write(served->client, region, offset, &value, count), 0);
}

int served_irq(struct served *served, uint32_t index)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    CHECK(fd >= 0);
    CHECK_INT(ob_client_irq_eventfds(served->client, index, 0, 1, &fd), 0);
    return fd;
}

bool served_signalled(int fd, int timeout_ms)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };
    uint64_t count;

    return poll(&pfd, 1, timeout_ms) == 1 && read(fd, &count, sizeof(count)) == sizeof(count);
}
