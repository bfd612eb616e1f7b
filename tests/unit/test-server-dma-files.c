/* SPDX-License-Identifier: BSD-3-Clause */
/* The files behind the client's memory: how they are mapped, and what a client may do to them. */
#include "harness.h"
#include "peer.h"
#include "server/dma_table.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define RW   (OB_DMA_READ | OB_DMA_WRITE)
#define PAGE 4096u
#define BASE (1ull << 40)

/* How many areas of files by that name this process has mapped. */
static unsigned areas(const char *name)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    unsigned n = 0;

    CHECK(maps);
    while (fgets(line, sizeof(line), maps))
        n += strstr(line, name) != NULL;
    fclose(maps);
    return n;
}

struct fixture {
    struct ob_server *server;
    struct peer peer;
};

static void start(struct fixture *f)
{
    f->server = peer_server_new(NULL, NULL);
    peer_attach(&f->peer, f->server);
}

static void end(struct fixture *f)
{
    peer_close(&f->peer);
    ob_server_free(f->server);
    CHECK_INT(areas("memfd:test"), 0);
}

static uint8_t read_byte(struct fixture *f, uint64_t address)
{
    uint8_t byte = 0;

    CHECK_INT(ob_dma_read(f->server, address, &byte, 1), 0);
    return byte;
}

static int open_again(int fd, int flags)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    fd = open(path, flags | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

TEST_TIMEOUT(most, "as-many-pieces-of-a-file-as-are-advertised", 60)
{
    int fd = peer_memfd((uint64_t)OB_DMA_MAPS_MAX * PAGE);
    struct fixture f;

    start(&f);
    for (uint64_t i = 0; i < OB_DMA_MAPS_MAX; i++)
        CHECK_INT(peer_map(&f.peer, BASE + 2 * i * PAGE, PAGE, RW, fd, i * PAGE), 0);
    CHECK_INT(pwrite(fd, "x", 1, 40000LL * PAGE + 5), 1);
    CHECK_INT(read_byte(&f, BASE + 80000ull * PAGE + 5), 'x');
    CHECK_INT(peer_unmap(&f.peer, BASE + 80000ull * PAGE, PAGE, 0), 0);
    CHECK_INT(areas("memfd:test"), 1);
    CHECK_INT(peer_unmap(&f.peer, 0, 0, OB_DMA_UNMAP_ALL), 0);
    CHECK_INT(areas("memfd:test"), 0);
    end(&f);
    close(fd);
}

TEST(one_area, "a-file-is-mapped-once-for-each-protection")
{
    int fd = peer_memfd(64 * PAGE), other = peer_memfd(64 * PAGE);
    struct fixture f;

    start(&f);
    for (uint64_t i = 0; i < 32; i++) {
        CHECK_INT(peer_map(&f.peer, BASE + i * PAGE, PAGE, RW, fd, (31 - i) * PAGE), 0);
        CHECK_INT(peer_map(&f.peer, 2 * BASE + i * PAGE, PAGE, RW, other, (i % 4) * PAGE), 0);
    }
    CHECK_INT(areas("memfd:test"), 2);
    CHECK_INT(peer_map(&f.peer, 3 * BASE, PAGE, OB_DMA_READ, fd, 0), 0);
    CHECK_INT(areas("memfd:test"), 3);
    for (uint64_t i = 0; i < 32; i++)
        CHECK_INT(peer_unmap(&f.peer, BASE + i * PAGE, PAGE, 0), 0);
    CHECK_INT(areas("memfd:test"), 2);
    end(&f);
    close(fd);
    close(other);
}

static void refuses_access(struct fixture *f, uint32_t how, int reading, int writing, int nothing)
{
    CHECK_INT(peer_map(&f->peer, BASE, PAGE, RW | how, reading, 0), -EACCES);
    CHECK_INT(peer_map(&f->peer, BASE, PAGE, RW | how, writing, 0), -EACCES);
    CHECK_INT(peer_map(&f->peer, BASE, PAGE, OB_DMA_READ | how, writing, 0), -EACCES);
    CHECK_INT(peer_map(&f->peer, BASE, PAGE, RW | how, nothing, 0), -EBADF);
}

/* A descriptor gives no more than it says, whatever another one of the file has given. */
TEST(allowed, "a-descriptor-must-allow-what-the-mapping-is-for")
{
    int fd = peer_memfd(PAGE);
    int reading = open_again(fd, O_RDONLY), writing = open_again(fd, O_WRONLY);
    int nothing = open_again(fd, O_PATH);
    struct fixture f;

    start(&f);
    for (uint64_t i = 0; i < 2; i++) { /* the second time the file is mapped already */
        refuses_access(&f, 0, reading, writing, nothing);
        refuses_access(&f, OB_DMA_ACCESS_FILE, reading, writing, nothing);
        CHECK_INT(peer_map(&f.peer, (2 + i) * BASE, PAGE, RW, fd, 0), 0);
        CHECK_INT(peer_map(&f.peer, (4 + i) * BASE, PAGE, OB_DMA_READ, reading, 0), 0);
    }
    end(&f);
    close(fd);
    close(reading);
    close(writing);
    close(nothing);
}

TEST(grows, "a-file-may-grow-while-it-is-mapped")
{
    int fd = peer_memfd(PAGE);
    struct fixture f;

    start(&f);
    CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW, fd, 0), 0);
    CHECK_INT(peer_map(&f.peer, BASE + PAGE, PAGE, RW, fd, PAGE), -EINVAL);
    CHECK_INT(ftruncate(fd, 10 * PAGE), 0);
    CHECK_INT(pwrite(fd, "old", 3, 0), 3);
    CHECK_INT(pwrite(fd, "new", 3, 9 * PAGE), 3);
    CHECK_INT(peer_map(&f.peer, BASE + PAGE, 9 * PAGE, RW, fd, PAGE), 0);
    CHECK_INT(read_byte(&f, BASE), 'o');
    CHECK_INT(read_byte(&f, BASE + 9 * PAGE), 'n');
    CHECK_INT(peer_unmap(&f.peer, BASE, PAGE, 0), 0);
    CHECK_INT(read_byte(&f, BASE + 9 * PAGE), 'n');
    end(&f);
    close(fd);
}

/* More than a process has address space for, of which a little is used. */
TEST(sparse, "a-file-too-large-to-be-mapped-is-mapped-in-part")
{
    const uint64_t size = INT64_MAX - PAGE + 1;
    int fd = peer_memfd(size);
    struct fixture f;

    start(&f);
    CHECK_INT(pwrite(fd, "far", 3, (off_t)(size - PAGE)), 3);
    CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW, fd, size - PAGE), 0);
    CHECK_INT(peer_map(&f.peer, 2 * BASE, 2 * PAGE, RW, fd, 0), 0);
    CHECK_INT(peer_map(&f.peer, 1ull << 62, 1ull << 61, RW, fd, 0), -ENOMEM);
    CHECK_INT(read_byte(&f, BASE), 'f');
    CHECK_INT(areas("memfd:test"), 2);
    CHECK_INT(peer_unmap(&f.peer, BASE, PAGE, 0), 0);
    CHECK_INT(areas("memfd:test"), 1);
    end(&f);
    close(fd);
}

/* Many of these would leave a process no address space, if all were mapped whole. */
TEST(many_large, "large-files-leave-address-space-to-others")
{
    struct fixture f;

    start(&f);
    for (uint64_t i = 0; i < 64; i++) {
        int fd = peer_memfd(4ull << 40);

        CHECK_INT(peer_map(&f.peer, BASE + i * PAGE, PAGE, RW, fd, 0), 0);
        close(fd);
    }
    CHECK_INT(peer_unmap(&f.peer, 0, 0, OB_DMA_UNMAP_ALL), 0);
    end(&f);
}

/* A file of a disk, which may not be told apart from others by its number. */
TEST(on_disk, "a-file-on-a-disk-is-taken-only-if-that-is-allowed-and-mapped-in-part")
{
    char path[200];
    struct fixture f;
    int fd;

    snprintf(path, sizeof(path), "%s/file-on-disk", test_tmpdir());
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK_INT(ftruncate(fd, 16 * PAGE), 0);
    CHECK_INT(pwrite(fd, "disk", 4, 5 * PAGE + 100), 4);
    start(&f);
    CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW, fd, 5 * PAGE + 100), -EPERM);
    CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW | OB_DMA_ACCESS_FILE, fd, 0), -EPERM);
    CHECK_INT(areas("file-on-disk"), 0);
    ob_server_set_dma_files(f.server, OB_DMA_FILES_ANY);
    CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW, fd, 5 * PAGE + 100), 0);
    CHECK_INT(read_byte(&f, BASE), 'd');
    CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW, fd, 5 * PAGE + 100), 0);
    CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW, fd, 5 * PAGE), -EEXIST);
    CHECK_INT(areas("file-on-disk"), 1);
    end(&f);
    CHECK_INT(areas("file-on-disk"), 0);
    close(fd);
}

TEST(too_many, "more-files-than-are-let-go-in-time-are-refused")
{
    struct fixture f;

    start(&f);
    for (uint64_t n = 0; n <= OB_DMA_FILES_MAX; n++) {
        int fd = peer_memfd(PAGE);

        CHECK_INT(pwrite(fd, &n, 2, 0), 2);
        CHECK_INT(peer_map(&f.peer, BASE + n * 2 * PAGE, PAGE, RW, fd, 0),
                  n < OB_DMA_FILES_MAX ? 0 : -ENOSPC);
        close(fd);
    }
    CHECK_INT(read_byte(&f, BASE + 999 * 2 * PAGE), 999 & 0xff);
    CHECK_INT(read_byte(&f, BASE + 4095 * 2 * PAGE + 1), 4095 >> 8);
    CHECK_INT(peer_unmap(&f.peer, BASE + 998 * 2 * PAGE, PAGE, 0), 0);
    CHECK_INT(peer_map(&f.peer, 2 * BASE, PAGE, RW, -1, 0), 0);
    end(&f);
}

/* ---- Kept descriptors --------------------------------------------------------------------- */

TEST(kept, "a-file-for-file-io-is-kept-once-and-not-too-many-are")
{
    int fd = peer_memfd(64 * PAGE), fds;
    struct fixture f;

    start(&f);
    fds = test_count_fds();
    for (uint64_t i = 0; i < 64; i++)
        CHECK_INT(peer_map(&f.peer, i * PAGE, PAGE, RW | OB_DMA_ACCESS_FILE, fd, i * PAGE), 0);
    CHECK_INT(test_count_fds(), fds + 1);
    CHECK_INT(pwrite(fd, "x", 1, 40 * PAGE + 5), 1);
    CHECK_INT(read_byte(&f, 40 * PAGE + 5), 'x');
    for (uint64_t n = 1; n <= OB_DMA_FDS_MAX; n++) {
        int other = peer_memfd(PAGE);

        CHECK_INT(peer_map(&f.peer, BASE + n * PAGE, PAGE, RW | OB_DMA_ACCESS_FILE, other, 0),
                  n < OB_DMA_FDS_MAX ? 0 : -EMFILE);
        close(other);
    }
    CHECK_INT(test_count_fds(), fds + (int)OB_DMA_FDS_MAX);
    CHECK_INT(peer_unmap(&f.peer, 0, 0, OB_DMA_UNMAP_ALL), 0);
    CHECK_INT(test_count_fds(), fds);
    end(&f);
    close(fd);
}

TEST(wrong_kinds, "what-is-no-file-of-memory-is-refused")
{
    int sockets[2], pipes[2], dir, proc, zero, event;
    struct fixture f;

    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
    CHECK_INT(pipe2(pipes, O_CLOEXEC), 0);
    dir = open("/", O_RDONLY | O_CLOEXEC);
    proc = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    zero = open("/dev/zero", O_RDWR | O_CLOEXEC);
    event = eventfd(0, EFD_CLOEXEC);
    start(&f);
    for (int any = 0; any < 2; any++) {
        const int fds[] = { sockets[0], pipes[0], dir, proc, zero, event };

        ob_server_set_dma_files(f.server, any ? OB_DMA_FILES_ANY : OB_DMA_FILES_MEMORY);
        for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
            CHECK(fds[i] >= 0);
            CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW, fds[i], 0), any ? -EINVAL : -EPERM);
            CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW | OB_DMA_ACCESS_FILE, fds[i], 0),
                      any ? -EINVAL : -EPERM);
        }
    }
    end(&f);
    for (int i = 0; i < 2; i++) {
        close(sockets[i]);
        close(pipes[i]);
    }
    close(dir);
    close(proc);
    close(zero);
    close(event);
}

/* ---- Files that shrink -------------------------------------------------------------------------
 */

TEST(cut_file, "client-that-cuts-the-file-of-its-memory-is-dropped")
{
    struct ob_server *server = peer_server_new(NULL, NULL);
    struct ob_dma_ref ref;
    struct peer peer;
    uint8_t byte;
    int fd;

    for (int how = 0; how < 3; how++) {
        fd = peer_memfd(4 * PAGE);
        peer_attach(&peer, server);
        CHECK_INT(peer_map(&peer, 0x10000, 4 * PAGE,
                           RW | (how == 2 ? OB_DMA_ACCESS_FILE : OB_DMA_ACCESS_MMAP), fd, 0),
                  0);
        CHECK_INT(ob_dma_read(server, 0x12000, &byte, 1), 0);
        CHECK_INT(ob_dma_get(server, 0x12000, 1, RW, &ref), how == 2 ? -EOPNOTSUPP : 0);
        CHECK_INT(ftruncate(fd, PAGE), 0);
        if (how == 0) {
            CHECK_INT(*(volatile uint8_t *)ref.ptr, 0);
            *(volatile uint8_t *)ref.ptr = 1;
        } else {
            CHECK_INT(ob_dma_write(server, 0x12000, &byte, 1), how == 2 ? 0 : -EFAULT);
        }
        if (how < 2) {
            ob_dma_put(server, &ref);
            CHECK_INT(ob_server_step(server), 0);
            peer_expect_close(&peer);
        }
        peer_close(&peer);
        close(fd);
    }
    ob_server_free(server);
}

/* The threads race for the client's memory, as they may. */
__attribute__((no_sanitize("thread"))) static void *touch(void *opaque)
{
    for (int i = 0; i < 1000; i++)
        ((volatile uint8_t *)opaque)[i % 4 * PAGE]++;
    return NULL;
}

TEST(cut_under_threads, "threads-that-touch-cut-memory-go-on")
{
    struct fixture f;
    struct ob_dma_ref ref;
    pthread_t threads[4];
    int fd = peer_memfd(4 * PAGE);

    start(&f);
    CHECK_INT(peer_map(&f.peer, 0x10000, 4 * PAGE, RW, fd, 0), 0);
    CHECK_INT(ob_dma_get(f.server, 0x10000, 4 * PAGE, RW, &ref), 0);
    CHECK_INT(ftruncate(fd, 0), 0);
    for (int i = 0; i < 4; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, touch, ref.ptr), 0);
    for (int i = 0; i < 4; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    ob_dma_put(f.server, &ref);
    end(&f);
    close(fd);
}
