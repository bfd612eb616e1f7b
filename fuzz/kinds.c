/* SPDX-License-Identifier: BSD-3-Clause */
#include "kinds.h"
#include "world.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

uint8_t *ram;

static int fds[KINDS], pair_end;

void *__real_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset);
int __real_timerfd_create(int clock, int flags);

static int memory(uint64_t size, unsigned seals)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    HOLDS(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    HOLDS(seals == 0 || fcntl(fd, F_ADD_SEALS, seals) == 0);
    return fd;
}

void kinds_open(void)
{
    char path[64];
    int ends[2];

    if (ram)
        return;
    fds[KIND_RAM] = memory(RAM_BYTES, 0);
    fds[KIND_SEALED] = memory(RAM_BYTES, F_SEAL_SHRINK);
    fds[KIND_CUT] = memory(RAM_BYTES, 0);
    fds[KIND_EMPTY] = memory(0, 0);
    fds[KIND_EVENTFD] = eventfd(0, EFD_CLOEXEC);
    fds[KIND_EVENTFD2] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fds[KIND_SEALED]);
    fds[KIND_READ_ONLY] = open(path, O_RDONLY | O_CLOEXEC);
    HOLDS(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
    fds[KIND_PIPE_READ] = ends[0];
    fds[KIND_PIPE_WRITE] = ends[1];
    HOLDS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
    fds[KIND_SOCKET] = ends[0];
    pair_end = ends[1];
    fds[KIND_DIRECTORY] = open("/", O_RDONLY | O_CLOEXEC);
    fds[KIND_NULL] = open("/dev/null", O_RDWR | O_CLOEXEC);
    fds[KIND_ZERO] = open("/dev/zero", O_RDWR | O_CLOEXEC);
    fds[KIND_EPOLL] = epoll_create1(EPOLL_CLOEXEC);
    fds[KIND_PATH] = open("/", O_PATH | O_CLOEXEC);
    fds[KIND_TIMER] = __real_timerfd_create(1, 0);
    for (unsigned i = 0; i < KINDS; i++)
        HOLDS(fds[i] >= 0);
    ram = __real_mmap64(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fds[KIND_RAM], 0);
    HOLDS(ram != MAP_FAILED);
}

int kind_fd(uint8_t kind)
{
    return fds[kind % KINDS];
}

void kind_cut(uint64_t size)
{
    HOLDS(ftruncate(fds[KIND_CUT], (off_t)(size % (RAM_BYTES + 4096))) == 0);
}

void ram_write(uint64_t offset, const void *data, size_t len)
{
    offset %= RAM_BYTES;
    if (len > RAM_BYTES - offset)
        len = RAM_BYTES - offset;
    if (len)
        memcpy(ram + offset, data, len);
}

/* Gives the pages of a file back, if it has any: most runs touch none. */
static void clear_file(int fd)
{
    if (lseek(fd, 0, SEEK_DATA) >= 0)
        HOLDS(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, RAM_BYTES) == 0);
}

void kinds_reset(void)
{
    uint64_t count;
    char byte;

    HOLDS(read(fds[KIND_PIPE_READ], &byte, 1) < 0);
    HOLDS(recv(pair_end, &byte, 1, MSG_DONTWAIT) < 0);
    HOLDS(lseek(fds[KIND_EMPTY], 0, SEEK_END) == 0);
    if (fcntl(fds[KIND_EVENTFD], F_SETFL, O_RDWR | O_NONBLOCK) == 0)
        while (read(fds[KIND_EVENTFD], &count, sizeof(count)) > 0)
            ;
    HOLDS(fcntl(fds[KIND_EVENTFD], F_SETFL, O_RDWR) == 0);
    while (read(fds[KIND_EVENTFD2], &count, sizeof(count)) > 0)
        ;
    memset(ram, 0, RAM_BYTES); /* its pages are in use in every run */
    clear_file(fds[KIND_SEALED]);
    clear_file(fds[KIND_CUT]);
    HOLDS(ftruncate(fds[KIND_CUT], RAM_BYTES) == 0);
}
