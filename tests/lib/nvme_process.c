/* SPDX-License-Identifier: BSD-3-Clause */
/* The NVMe controller in a process of its own, for tests that kill it. */
#include "nvme_host.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGS_MAX 16

static struct ob_server *served;

/* In memory that the processes share. */
static atomic_bool *die_after_send;

ssize_t __real_send(int fd, const void *data, size_t len, int flags);
ssize_t __wrap_send(int fd, const void *data, size_t len, int flags);
ssize_t __real_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags);

/* To be asked before the message can be seen: then it is not one that came earlier. */
static bool is_last(void)
{
    return served && *die_after_send;
}

static ssize_t sent(bool last, ssize_t n)
{
    if (last && n > 0)
        kill(getpid(), SIGKILL);
    return n;
}

ssize_t __wrap_send(int fd, const void *data, size_t len, int flags)
{
    bool last = is_last();

    return sent(last, __real_send(fd, data, len, flags));
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    bool last = is_last();

    return sent(last, __real_sendmsg(fd, msg, flags));
}

void host_kill_after_answer(void)
{
    *die_after_send = true;
}

static void log_line(void *opaque, enum ob_log_level level, const char *line)
{
    (void)opaque;
    if (level == OB_LOG_ERROR)
        fprintf(stderr, "server: %s\n", line);
}

static void stop(int signal)
{
    (void)signal;
    /* NOLINTNEXTLINE(bugprone-signal-handler,cert-sig30-c): it is made for that, see server.h */
    ob_server_stop(served);
}

/* Never returns. A byte into ready says that clients can come. */
static void serve(const char *path, const char *const *args, int ready)
{
    char *argv[ARGS_MAX + 2] = { "nvme" }, banner[256], why[1024] = "";
    void *device;
    int argc = 1;

    while (*args && argc <= ARGS_MAX)
        argv[argc++] = (char *)*args++;
    optind = 0;
    if (ob_served_nvme.create(argc, argv, log_line, &device, &served, banner, sizeof(banner), why,
                              sizeof(why)) != 0 ||
        ob_server_listen(served, path, 0) < 0 || ob_served_nvme.start(device) < 0) {
        fprintf(stderr, "server: %s\n", why);
        _exit(1);
    }
    signal(SIGTERM, stop);
    if (write(ready, "", 1) != 1 || ob_server_run(served) < 0)
        _exit(1);
    _exit(ob_served_nvme.destroy(device) == 0 ? 0 : 1);
}

pid_t host_fork(struct nvme_host *h, const char *const *args)
{
    pid_t parent = getpid(), pid;
    int fds[2];
    char byte;

    if (!h->ram) {
        host_ram(h);
        die_after_send = mmap(NULL, sizeof(*die_after_send), PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(die_after_send != MAP_FAILED);
    }
    *die_after_send = false;
    snprintf(h->path, sizeof(h->path), "%s/nvme.sock", test_tmpdir());
    CHECK_INT(pipe2(fds, O_CLOEXEC), 0);
    fflush(NULL);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        close(fds[0]);
        serve(h->path, args, fds[1]);
    }
    close(fds[1]);
    if (read(fds[0], &byte, 1) != 1)
        test_fail(__FILE__, __LINE__, "the server did not start");
    close(fds[0]);
    return pid;
}

int host_kill(struct nvme_host *h, pid_t pid, int signal)
{
    int status;

    CHECK_INT(kill(pid, signal), 0);
    CHECK_INT(waitpid(pid, &status, 0), pid);
    if (h->client)
        host_leave(h);
    return status;
}

void host_return(struct nvme_host *h, unsigned vectors)
{
    h->kept = true;
    host_connect(h);
    host_arm(h, OB_PCI_IRQ_MSIX, vectors);
    for (unsigned i = 0; i < HOST_QUEUES; i++)
        if (h->q[i].entries) {
            host_ring_message(h, 2 * i, h->q[i].tail);
            host_ring_message(h, 2 * i + 1, h->q[i].cq_head);
        }
}

void host_forget(struct nvme_host *h)
{
    munmap(die_after_send, sizeof(*die_after_send));
    munmap(h->ram, HOST_RAM_SIZE);
    close(h->ram_fd);
}
