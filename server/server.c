/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The server object and its loop. One epoll fd holds everything: the listener, connections, the
 * client's mask eventfds, the embedder's fds. A source that is taken out while the loop walks a
 * batch of events is only buried, and freed when the batch is done.
 */
#include "channel/ring.h"
#include "server/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define EVENTS_PER_STEP   32
#define SPIN_EVENTS_EVERY 64      /* looks at the socket, between two at everything */
#define SPIN_EVENTS_NS    1000000 /* or so long, where requests take their time */
#define UNHOOK_AFTER      32      /* waits in a row that were spent polling */
#define RING_LOOKS        32      /* between two looks at the socket, while the ring is in use */

/* syscalls: epoll_ctl */
struct ob_source *ob_source_add(struct ob_server *server, int fd, uint32_t events,
                                void (*ready)(void *opaque, uint32_t events), void *opaque)
{
    struct ob_source *source = calloc(1, sizeof(*source));
    struct epoll_event ev = { .events = events, .data.ptr = source };

    if (!source)
        return NULL;
    source->fd = fd;
    source->events = events;
    source->ready = ready;
    source->opaque = opaque;
    if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, fd, &ev) != 0) {
        free(source);
        return NULL;
    }
    return source;
}

void ob_source_mod(struct ob_server *server, struct ob_source *source, uint32_t events)
{
    struct epoll_event ev = { .events = events, .data.ptr = source };

    if (source->events == events)
        return;
    source->events = events;
    epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, source->fd, &ev); /* in vain while unhooked */
}

void ob_source_del(struct ob_server *server, struct ob_source *source)
{
    if (!source)
        return;
    epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    source->ready = NULL;
    source->next = server->buried;
    server->buried = source;
}

static void free_buried(struct ob_server *server)
{
    while (server->buried) {
        struct ob_source *source = server->buried;

        server->buried = source->next;
        free(source);
    }
}

static void set_awake(struct ob_server *server, bool awake)
{
    if (server->awake == awake)
        return;
    server->awake = awake;
    ob_source_mod(server, server->wake, awake ? EPOLLIN : 0);
}

void ob_server_kick(struct ob_server *server)
{
    set_awake(server, true);
}

static void wake_ready(void *opaque, uint32_t events)
{
    (void)opaque, (void)events;
}

/* syscalls: read */
static void stop_ready(void *opaque, uint32_t events)
{
    struct ob_server *server = opaque;
    uint64_t count;

    (void)events;
    if (read(server->stop_fd, &count, sizeof(count)) == sizeof(count))
        server->stop = true;
}

static int open_fds(struct ob_server *server)
{
    struct ob_source *stop;

    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    server->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    server->wake_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    if (server->epoll_fd < 0 || server->stop_fd < 0 || server->wake_fd < 0)
        return -errno;
    server->spare_fd = fcntl(server->wake_fd, F_DUPFD_CLOEXEC, 0);
    server->wake = ob_source_add(server, server->wake_fd, 0, wake_ready, server);
    stop = ob_source_add(server, server->stop_fd, EPOLLIN, stop_ready, server);
    if (!server->wake || !stop) {
        free(stop);
        return -errno;
    }
    stop->next = server->watches;
    server->watches = stop;
    return 0;
}

struct ob_server *ob_server_new(const struct ob_server_ops *ops, void *opaque)
{
    struct ob_server *server;
    int rc;

    if (ops && ops->size == 0) {
        errno = EINVAL;
        return NULL;
    }
    server = calloc(1, sizeof(*server));
    if (!server)
        return NULL;
    if (ops)
        memcpy(&server->ops, ops, ops->size < sizeof(*ops) ? ops->size : sizeof(*ops));
    server->opaque = opaque;
    server->epoll_fd = server->stop_fd = server->wake_fd = server->spare_fd = -1;
    server->listen_fd = -1;
    server->socket_uid = (uid_t)-1;
    server->socket_gid = (gid_t)-1;
    server->num_regions = OB_PCI_REGIONS;
    server->num_irqs = OB_PCI_IRQS;
    server->timeout_ms = OB_DMA_TIMEOUT_MS;
    ob_server_set_spin(server, OB_SPIN_US_DEFAULT);
    for (unsigned i = 0; i < OB_REGIONS_MAX; i++)
        server->regions[i].fd = -1;
    ob_signal_init();
    ob_dma_table_init(&server->dma);
    pthread_mutex_init(&server->irq_lock, NULL);
    ob_dirty_init(&server->dirty);
    ob_caps_init();
    rc = open_fds(server);
    if (rc == 0)
        rc = ob_dma_init(server);
    if (rc < 0) {
        ob_server_free(server);
        errno = -rc;
        return NULL;
    }
    return server;
}

int ob_server_start_closer(void)
{
    return ob_discard_init();
}

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

void ob_server_free(struct ob_server *server)
{
    if (!server)
        return;
    if (server->session) {
        ob_session_doom(server->session, "the server ends");
        ob_session_end(server->session);
    }
    ob_lobby_fini(server);
    ob_dma_fini(server);
    ob_migration_fini(server);
    ob_irqs_fini(server);
    ob_io_fini(server);
    ob_regions_fini(server);
    ob_pci_fini(server);
    while (server->watches) {
        struct ob_source *source = server->watches;

        server->watches = source->next;
        ob_source_del(server, source);
    }
    ob_source_del(server, server->wake);
    free_buried(server);
    close_fd(server->epoll_fd);
    close_fd(server->stop_fd);
    close_fd(server->wake_fd);
    close_fd(server->spare_fd);
    pthread_mutex_destroy(&server->irq_lock);
    free(server);
}

int ob_server_fd(const struct ob_server *server)
{
    return server->epoll_fd;
}

bool ob_server_caught_up(const struct ob_server *server)
{
    return !ob_server_attached(server) || ob_session_caught_up(server->session);
}

void ob_server_set_mapped_order(struct ob_server *server)
{
    server->mapped_order = true;
}

bool ob_server_attached(const struct ob_server *server)
{
    return server->session && !server->session->doomed;
}

/* What the end of a step has to look after. */
static void look_after_sessions(struct ob_server *server)
{
    unsigned hits = ob_guard_hits();

    if (server->session && hits != server->guard_hits)
        ob_dma_check_guards(server->session);
    server->guard_hits = hits;
    if (server->session && server->session->doomed) {
        ob_ring_drop(server->session);
        ob_session_end(server->session);
    }
    if (!server->session)
        ob_lobby_admit(server);
}

/* What follows whatever a step has handled. */
static int end_step(struct ob_server *server)
{
    bool busy = false;

    if (server->poller)
        busy = server->poller(server->poller_opaque);
    look_after_sessions(server);
    free_buried(server);
    set_awake(server, busy || (server->session && ob_session_has_work(server->session)));
    server->stepping = false;
    server->waited_ns = 0;
    return server->ended ? 1 : 0;
}

/* The number of events, or a negative errno. */
/* syscalls: epoll_wait, epoll_pwait */
static int wait_events(struct ob_server *server, struct epoll_event *events, int timeout_ms)
{
    int n = epoll_wait(server->epoll_fd, events, EVENTS_PER_STEP, timeout_ms);

    return n < 0 ? errno == EINTR ? 0 : -errno : n;
}

static int handle_events(struct ob_server *server, const struct epoll_event *events, int n)
{
    server->stepping = true;
    server->has_read = false;
    for (int i = 0; i < n; i++) {
        struct ob_source *source = events[i].data.ptr;

        if (source->ready)
            source->ready(source->opaque, events[i].events);
    }
    if (!server->has_read && server->session && ob_session_has_work(server->session))
        ob_session_read(server->session);
    return end_step(server);
}

static int step(struct ob_server *server, int timeout_ms)
{
    struct epoll_event events[EVENTS_PER_STEP];
    int n;

    if (server->stepping)
        return -EBUSY;
    n = wait_events(server, events, timeout_ms);
    return n < 0 ? n : handle_events(server, events, n);
}

int ob_server_step(struct ob_server *server)
{
    return step(server, 0);
}

/* While the client's socket is polled all the time it is kept out of the epoll, which would cost
 * whoever sends to it 0.1 us for each message. */
static void unhook_session(struct ob_server *server)
{
    struct ob_source *source = server->session ? server->session->source : NULL;

    if (source && !source->unhooked)
        source->unhooked = epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL) == 0;
}

static void hook_session(struct ob_server *server)
{
    struct ob_source *source = server->session ? server->session->source : NULL;
    struct epoll_event ev = { .data.ptr = source };

    if (!source || !source->unhooked)
        return;
    ev.events = source->events;
    source->unhooked = epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, source->fd, &ev) != 0;
    if (source->unhooked)
        ob_session_broken(server->session, -errno);
}

static void look_at_ring(const struct ob_session *session)
{
    for (unsigned i = 0; i < RING_LOOKS && session->ring_hot && !ob_ring_has(session); i++)
        ob_ring_relax();
}

/*
 * Waits by polling, as long as that pays: mostly the client's socket, now and then everything.
 * Returns whether something was handled, else the caller sleeps.
 */
static bool spin_step(struct ob_server *server, int64_t start_ns, int *rc)
{
    struct ob_session *session = server->session;
    struct epoll_event events[EVENTS_PER_STEP];
    int64_t limit_ns;
    int n = 0;

    if (!session || session->doomed || server->awake || session->ch.out_head || server->stepping)
        return false;
    limit_ns = ob_spin_begin(&server->spin);
    if (limit_ns == 0)
        return false;
    ob_ring_open(session);
    for (unsigned i = server->spun; n == 0; i++) {
        if (i % SPIN_EVENTS_EVERY == 0 || start_ns - server->looked_ns > SPIN_EVENTS_NS) {
            *rc = n = wait_events(server, events, 0);
            server->looked_ns = start_ns;
        }
        if (n == 0) {
            server->stepping = true;
            look_at_ring(session);
            if (ob_session_read(session)) {
                n = -1;
                *rc = end_step(server);
            }
            server->stepping = false;
        }
        if (n == 0) {
            if (ob_now_ns() - start_ns >= limit_ns)
                break;
            ob_spin_relax(&server->spin, i, false);
        }
    }
    server->spun++;
    ob_spin_end();
    if (n > 0)
        *rc = handle_events(server, events, n);
    return n != 0;
}

/* Nothing is polled any more. Whether commands are left that no fd tells of. */
static bool stop_polling(struct ob_server *server)
{
    struct ob_session *session = server->session;

    hook_session(server);
    if (!session)
        return false;
    ob_ring_close(session);
    return ob_session_has_work(session);
}

int ob_server_run(struct ob_server *server)
{
    int64_t start_ns = ob_now_ns();
    unsigned polled = 0;
    int rc = 0;

    while (rc >= 0 && !server->stop && !server->ended) {
        bool waits = !server->awake;
        int64_t now_ns;

        if (spin_step(server, start_ns, &rc)) {
            if (++polled == UNHOOK_AFTER)
                unhook_session(server);
        } else {
            polled = 0;
            rc = step(server, stop_polling(server) ? 0 : -1);
        }
        now_ns = ob_now_ns();
        if (waits && rc >= 0)
            ob_spin_learn(&server->spin, now_ns - start_ns);
        start_ns = now_ns;
    }
    if (stop_polling(server))
        ob_server_kick(server);
    if (rc < 0)
        return rc;
    server->stop = false;
    return 0;
}

/* syscalls: write */
void ob_server_stop(struct ob_server *server)
{
    static const uint64_t one = 1;
    int saved = errno; /* this runs in signal handlers */

    /* A full counter means that it was stopped often enough. */
    if (write(server->stop_fd, &one, sizeof(one)) < 0)
        errno = saved;
}

int ob_server_watch(struct ob_server *server, int fd, uint32_t events,
                    void (*ready)(void *opaque, uint32_t events), void *opaque)
{
    struct ob_source **p = &server->watches, *source;

    while (*p && (*p)->fd != fd)
        p = &(*p)->next;
    source = *p;
    if (source && events) {
        source->ready = ready;
        source->opaque = opaque;
        ob_source_mod(server, source, events);
        return 0;
    }
    if (source) {
        *p = source->next;
        ob_source_del(server, source);
        return 0;
    }
    if (!events)
        return -ENOENT;
    source = ob_source_add(server, fd, events, ready, opaque);
    if (!source)
        return -errno;
    source->next = server->watches;
    server->watches = source;
    return 0;
}

void ob_server_set_poller(struct ob_server *server, bool (*poll)(void *opaque), void *opaque)
{
    server->poller = poll;
    server->poller_opaque = opaque;
    if (poll)
        ob_server_kick(server); /* its first call needs a step */
}

void ob_server_set_spin(struct ob_server *server, unsigned us)
{
    if (us > OB_SPIN_US_MAX)
        us = OB_SPIN_US_MAX;
    ob_spin_init(&server->spin, us, OB_SPIN_MOVES | OB_SPIN_COMPARES);
    ob_spin_init(&server->dma_spin, us, 0);
    ob_spin_init(&server->poller_spin, us, OB_SPIN_MOVES);
}

int64_t ob_server_poll_begin(struct ob_server *server)
{
    return ob_spin_begin(&server->poller_spin);
}

void ob_server_poll_relax(struct ob_server *server, unsigned looks)
{
    ob_spin_relax(&server->poller_spin, looks, false);
}

void ob_server_poll_end(struct ob_server *server)
{
    (void)server;
    ob_spin_end();
}

void ob_server_poll_learn(struct ob_server *server, int64_t idle_ns)
{
    ob_spin_learn(&server->poller_spin, idle_ns);
}

void ob_server_set_timeout(struct ob_server *server, int timeout_ms)
{
    server->timeout_ms = timeout_ms;
}
