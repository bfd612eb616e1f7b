/* SPDX-License-Identifier: BSD-3-Clause */
/* The files behind the client's memory: how they are mapped, and what a client may do to them. */
#include "harness.h"
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
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

/* A descriptor gives no more than it says, whatever another one of the file has given. */
TEST(allowed, "a-descriptor-must-allow-what-the-mapping-is-for")
{
    int fd = peer_memfd(PAGE);
    int reading = open_again(fd, O_RDONLY), writing = open_again(fd, O_WRONLY);
    int nothing = open_again(fd, O_PATH);
    struct fixture f;

    start(&f);
    for (uint64_t i = 0; i < 2; i++) { /* the second time the file is mapped already */
        CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW, reading, 0), -EACCES);
        CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW, writing, 0), -EACCES);
        CHECK_INT(peer_map(&f.peer, BASE, PAGE, OB_DMA_READ, writing, 0), -EACCES);
        CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW, nothing, 0), -EBADF);
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
TEST(on_disk, "a-file-on-a-disk-is-mapped-in-part")
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
    CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW, fd, 5 * PAGE + 100), 0);
    CHECK_INT(read_byte(&f, BASE), 'd');
    CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW, fd, 5 * PAGE + 100), 0);
    CHECK_INT(peer_map(&f.peer, BASE, PAGE, RW, fd, 5 * PAGE), -EEXIST);
    CHECK_INT(areas("file-on-disk"), 1);
    end(&f);
    CHECK_INT(areas("file-on-disk"), 0);
    close(fd);
}

/* The kernel's limit on areas, or ours just below it: refused, and what was mapped stays. */
TEST_TIMEOUT(too_many, "more-files-than-can-be-mapped-are-refused", 120)
{
    struct fixture f;
    uint64_t n;
    int rc = 0;

    start(&f);
    for (n = 0; n < OB_DMA_MAPS_MAX && rc == 0; n++) {
        int fd = peer_memfd(PAGE);

        CHECK_INT(pwrite(fd, &n, 2, 0), 2);
        rc = peer_map(&f.peer, BASE + n * 2 * PAGE, PAGE, RW, fd, 0);
        close(fd);
    }
    CHECK_INT(rc, -ENOMEM);
    CHECK(n > 1000);
    CHECK_INT(read_byte(&f, BASE + 999 * 2 * PAGE), 999 & 0xff);
    CHECK_INT(read_byte(&f, BASE + (n - 2) * 2 * PAGE + 1), (n - 2) >> 8);
    CHECK_INT(peer_unmap(&f.peer, BASE + 998 * 2 * PAGE, PAGE, 0), 0);
    CHECK_INT(peer_map(&f.peer, 2 * BASE, PAGE, RW, -1, 0), 0);
    end(&f);
}
