/* SPDX-License-Identifier: BSD-3-Clause */
/* What the embedder's loop is told of, and when: the two epolls and the timer of internal.h. */
#include "client/internal.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

int ob_client_loop_init(struct ob_client *c)
{
    struct epoll_event disarmed = { .events = 0 }, timer = { .events = EPOLLIN };

    c->socket_epoll = epoll_create1(EPOLL_CLOEXEC);
    c->loop_epoll = epoll_create1(EPOLL_CLOEXEC);
    c->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (c->socket_epoll < 0 || c->loop_epoll < 0 || c->timer_fd < 0 ||
        epoll_ctl(c->loop_epoll, EPOLL_CTL_ADD, c->socket_epoll, &disarmed) < 0 ||
        epoll_ctl(c->loop_epoll, EPOLL_CTL_ADD, c->timer_fd, &timer) < 0)
        return -errno;
    return ob_client_watch(c, &c->main);
}

static int watch(struct ob_client *c, struct ob_socket *s, int fd)
{
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = s };

    return epoll_ctl(c->socket_epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int ob_client_watch(struct ob_client *c, struct ob_socket *s)
{
    return watch(c, s, s->channel.fd);
}

/* To close a socket is not enough while a process that was forked has it as well. */
static void unwatch(struct ob_client *c, const struct ob_client *whose)
{
    epoll_ctl(c->socket_epoll, EPOLL_CTL_DEL, whose->main.channel.fd, NULL);
    if (whose->twin.channel.fd >= 0)
        epoll_ctl(c->socket_epoll, EPOLL_CTL_DEL, whose->twin.channel.fd, NULL);
}

int ob_client_rewatch(struct ob_client *c, const struct ob_client *n)
{
    int rc = watch(c, &c->main, n->main.channel.fd);

    if (rc == 0 && n->twin.channel.fd >= 0)
        rc = watch(c, &c->twin, n->twin.channel.fd);
    unwatch(c, rc == 0 ? c : n);
    c->unhooked = c->unhooked && rc < 0;
    return rc;
}

void ob_client_unhook_locked(struct ob_client *c, bool slept)
{
    c->polled = slept ? 0 : c->polled + 1;
    if (c->polled < OB_CLIENT_UNHOOK || c->unhooked || c->armed || c->main.wants_output)
        return;
    c->unhooked = epoll_ctl(c->socket_epoll, EPOLL_CTL_DEL, c->main.channel.fd, NULL) == 0;
}

void ob_client_hook_locked(struct ob_client *c)
{
    if (!c->unhooked)
        return;
    c->unhooked = false;
    c->polled = 0;
    if (watch(c, &c->main, c->main.channel.fd) < 0)
        ob_client_die_locked(c, "there is no memory to wait for the server");
}

static void arm_locked(struct ob_client *c, bool armed)
{
    struct epoll_event event = { .events = armed ? EPOLLIN : 0 };

    if (c->armed == armed)
        return;
    c->armed = armed;
    if (armed)
        ob_client_hook_locked(c);
    epoll_ctl(c->loop_epoll, EPOLL_CTL_MOD, c->socket_epoll, &event);
}

void ob_client_quiet_locked(struct ob_client *c)
{
    arm_locked(c, false);
}

void ob_client_rearm_locked(struct ob_client *c)
{
    arm_locked(c, !c->role_taken && !c->told);
}

/* Whether the loop may be left disarmed, with the timer running. */
static bool stays_quiet_locked(struct ob_client *c)
{
    const struct itimerspec soon = { .it_value = { 0, OB_CLIENT_HOT_NS } };

    if (c->role_taken || ob_client_dead(c) || c->armed || c->eager || c->main.wants_output ||
        c->twin.wants_output)
        return false;
    if (!c->ticking)
        c->ticking = timerfd_settime(c->timer_fd, 0, &soon, NULL) == 0;
    return c->ticking;
}

void ob_client_wait_ended_locked(struct ob_client *c, int64_t now_ns)
{
    bool hot = now_ns - c->waited_ns < OB_CLIENT_HOT_NS;

    c->waited_ns = now_ns;
    if (c->eager)
        c->eager--;
    if (!hot || !stays_quiet_locked(c))
        ob_client_rearm_locked(c);
}

void ob_client_tick_locked(struct ob_client *c)
{
    uint64_t expirations;

    if (!c->ticking || read(c->timer_fd, &expirations, sizeof(expirations)) < 0)
        return;
    c->ticking = false;
    if (ob_now_ns() - c->waited_ns >= OB_CLIENT_HOT_NS || !stays_quiet_locked(c))
        ob_client_rearm_locked(c);
}

void ob_client_want_output_locked(struct ob_client *c, struct ob_socket *s)
{
    bool wanted = s->channel.out_head || (s == &c->main && c->nbatch > 0);
    struct epoll_event event = { .events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = s };

    if (s->wants_output == wanted)
        return;
    s->wants_output = wanted;
    ob_client_hook_locked(c);
    epoll_ctl(c->socket_epoll, EPOLL_CTL_MOD, s->channel.fd, &event);
    if (wanted && c->ticking) /* nobody else would look before the timer */
        ob_client_rearm_locked(c);
}
