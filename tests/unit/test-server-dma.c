/* SPDX-License-Identifier: BSD-3-Clause */
/* The client's memory: mapping and unmapping it, reaching it in each of the three ways. */
#include "harness.h"
#include "peer.h"
#include "server/dma_table.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define RW   (OB_DMA_READ | OB_DMA_WRITE)
#define PAGE 4096u
#define BASE (1ull << 40)

struct device {
    struct ob_server *server;
    uint64_t unmap_address, unmap_size;
    unsigned unmaps;
};

static void on_unmap(void *opaque, uint64_t address, uint64_t size)
{
    struct device *device = opaque;
    struct ob_dma_ref ref;

    device->unmaps++;
    device->unmap_address = address;
    device->unmap_size = size;
    CHECK_INT(ob_dma_get(device->server, address, 1, OB_DMA_READ, &ref), -EFAULT);
}

static struct ob_server *new_server(struct device *device)
{
    static const struct ob_server_ops ops = { .size = sizeof(ops), .dma_unmap = on_unmap };

    *device = (struct device){ 0 };
    device->server = peer_server_new(&ops, device);
    return device->server;
}

static void copies_through(struct ob_server *server, struct peer *peer, uint32_t how)
{
    uint8_t data[3000], back[3000];
    int fd = peer_memfd(8 * PAGE);
    uint8_t *file = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7);
    CHECK_INT(peer_map(peer, 0x10000, 4 * PAGE, RW | how, fd, 2 * PAGE), 0);
    CHECK_INT(ob_dma_write(server, 0x10000 + 100, data, sizeof(data)), 0);
    CHECK_MEM(file + 2 * PAGE + 100, data, sizeof(data));
    file[2 * PAGE + 101] ^= 0x55;
    data[1] ^= 0x55;
    CHECK_INT(ob_dma_read(server, 0x10000 + 100, back, sizeof(back)), 0);
    CHECK_MEM(back, data, sizeof(data));
    CHECK_INT(ob_dma_read(server, 0x10000 + 4 * PAGE - 1, back, 2), -EFAULT);
    CHECK_INT(ob_dma_write(server, 0xffff, back, 2), -EFAULT);
    CHECK_INT(ob_dma_write(server, UINT64_MAX, back, 2), -EFAULT);
    CHECK_INT(peer_unmap(peer, 0x10000, 4 * PAGE, 0), 0);
    CHECK_INT(ob_dma_read(server, 0x10000, back, 1), -EFAULT);
    munmap(file, 8 * PAGE);
    close(fd);
}

TEST(copies, "memory-is-copied-mapped-and-by-file-io")
{
    struct device device;
    struct ob_server *server = new_server(&device);
    struct peer peer;

    peer_attach(&peer, server);
    copies_through(server, &peer, 0);
    copies_through(server, &peer, OB_DMA_ACCESS_MMAP);
    copies_through(server, &peer, OB_DMA_ACCESS_FILE);
    CHECK_INT(device.unmaps, 3);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(adjacent, "copy-crosses-adjacent-mappings-of-different-kinds")
{
    uint8_t data[2 * PAGE], back[2 * PAGE];
    struct device device;
    struct ob_server *server = new_server(&device);
    int fd = peer_memfd(4 * PAGE);
    struct ob_dma_ref ref;
    struct peer peer;

    memset(data, 0x3c, sizeof(data));
    peer_attach(&peer, server);
    CHECK_INT(peer_map(&peer, 0x3000, PAGE, RW, fd, PAGE), 0);
    CHECK_INT(peer_map(&peer, 0x1000, PAGE, RW | OB_DMA_ACCESS_FILE, fd, 3 * PAGE), 0);
    CHECK_INT(peer_map(&peer, 0x2000, PAGE, RW, fd, 0), 0);
    CHECK_INT(ob_dma_write(server, 0x1800, data, sizeof(data)), 0);
    CHECK_INT(ob_dma_read(server, 0x1800, back, sizeof(back)), 0);
    CHECK_MEM(back, data, sizeof(data));
    CHECK_INT(ob_dma_get(server, 0x2800, 0x1000, RW, &ref), -EOPNOTSUPP); /* two pieces */
    CHECK_INT(ob_dma_get(server, 0x1000, 1, RW, &ref), -EOPNOTSUPP);      /* a file */
    CHECK_INT(ob_dma_get(server, 0x3800, 0x1000, RW, &ref), -EFAULT);
    CHECK_INT(ob_dma_get(server, 0x2000, 0, RW, &ref), -EINVAL);
    CHECK_INT(ob_dma_get(server, 0x2000, PAGE, RW, &ref), 0);
    CHECK_MEM((uint8_t *)ref.ptr, data, PAGE);
    ob_dma_put(server, &ref);
    peer_close(&peer);
    close(fd);
    ob_server_free(server);
}

TEST(unaligned, "file-offset-need-not-be-aligned")
{
    struct device device;
    struct ob_server *server = new_server(&device);
    int fd = peer_memfd(3 * PAGE);
    struct ob_dma_ref ref;
    struct peer peer;
    char back[6];

    CHECK_INT(pwrite(fd, "inside", 6, PAGE + 123), 6);
    peer_attach(&peer, server);
    CHECK_INT(peer_map(&peer, 0x777, PAGE, OB_DMA_READ, fd, PAGE + 123), 0);
    CHECK_INT(ob_dma_read(server, 0x777, back, 6), 0);
    CHECK_MEM(back, "inside", 6);
    CHECK_INT(ob_dma_get(server, 0x777, PAGE, OB_DMA_READ, &ref), 0);
    CHECK_MEM((char *)ref.ptr, "inside", 6);
    ob_dma_put(server, &ref);
    peer_close(&peer);
    close(fd);
    ob_server_free(server);
}

TEST(protected, "permissions-are-kept")
{
    struct device device;
    struct ob_server *server = new_server(&device);
    int fd = peer_memfd(PAGE), readonly;
    struct ob_dma_ref ref;
    struct peer peer;
    char path[64], byte = 0;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    readonly = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(readonly >= 0);
    peer_attach(&peer, server);
    CHECK_INT(peer_map(&peer, 0x1000, PAGE, OB_DMA_READ, readonly, 0), 0);
    CHECK_INT(peer_map(&peer, 0x2000, PAGE, RW, readonly, 0), -EACCES);
    CHECK_INT(peer_map(&peer, 0x3000, PAGE, OB_DMA_WRITE, fd, 0), 0);
    CHECK_INT(peer_map(&peer, 0x4000, PAGE, 0, fd, 0), 0);
    CHECK_INT(ob_dma_write(server, 0x1000, &byte, 1), -EACCES);
    CHECK_INT(ob_dma_read(server, 0x3000, &byte, 1), -EACCES);
    CHECK_INT(ob_dma_read(server, 0x4000, &byte, 1), -EACCES);
    CHECK_INT(ob_dma_get(server, 0x1000, 1, RW, &ref), -EACCES);
    CHECK_INT(ob_dma_get(server, 0x1000, 1, OB_DMA_READ, &ref), 0);
    ob_dma_put(server, &ref);
    peer_close(&peer);
    close(fd);
    close(readonly);
    ob_server_free(server);
}

TEST(overlap, "overlap-is-refused-and-the-same-again-is-not")
{
    struct device device;
    struct ob_server *server = new_server(&device);
    int fd = peer_memfd(16 * PAGE), other = peer_memfd(16 * PAGE);
    struct peer peer;

    peer_attach(&peer, server);
    CHECK_INT(peer_map(&peer, 0x10000, 4 * PAGE, RW, fd, 0), 0);
    CHECK_INT(peer_map(&peer, 0x10000, 4 * PAGE, RW, fd, 0), 0);
    CHECK_INT(peer_map(&peer, 0x10000, 4 * PAGE, RW, other, 0), -EEXIST);
    CHECK_INT(peer_map(&peer, 0x10000, 4 * PAGE, RW, fd, PAGE), -EEXIST);
    CHECK_INT(peer_map(&peer, 0x10000, 4 * PAGE, OB_DMA_READ, fd, 0), -EEXIST);
    CHECK_INT(peer_map(&peer, 0x10000, 4 * PAGE, RW, -1, 0), -EEXIST);
    CHECK_INT(peer_map(&peer, 0xf000, 2 * PAGE, RW, fd, 0), -EEXIST);
    CHECK_INT(peer_map(&peer, 0x13000, 2 * PAGE, RW, fd, 0), -EEXIST);
    CHECK_INT(peer_map(&peer, 0x11000, PAGE, RW, fd, 0), -EEXIST);
    CHECK_INT(peer_map(&peer, 0xf000, 8 * PAGE, RW, fd, 0), -EEXIST);
    CHECK_INT(peer_map(&peer, 0xf000, PAGE, RW, fd, 0), 0);
    CHECK_INT(peer_map(&peer, 0x14000, PAGE, RW, fd, 0), 0);
    CHECK_INT(peer_map(&peer, UINT64_MAX - PAGE + 1, PAGE, RW, fd, 0), 0);
    CHECK_INT(peer_unmap(&peer, 0x10000, 4 * PAGE, 0), 0);
    CHECK_INT(peer_unmap(&peer, 0x10000, 4 * PAGE, 0), -ENOENT);
    peer_close(&peer);
    close(fd);
    close(other);
    ob_server_free(server);
}

/* Where a mapping goes in the table changes as others before and behind it come and go. */
TEST(over_the_edge, "mapping-is-found-where-others-ended-and-began")
{
    uint8_t byte;
    struct device device;
    struct ob_server *server = new_server(&device);
    int fd = peer_memfd(2 * PAGE);
    struct peer peer;

    peer_attach(&peer, server);
    for (uint64_t i = 0; i < 300; i++)
        CHECK_INT(peer_map(&peer, i * PAGE, PAGE, RW, fd, 0), 0);
    for (uint64_t i = 0; i + 1 < 300; i++) {
        CHECK_INT(peer_unmap(&peer, i * PAGE, PAGE, 0), 0);
        CHECK_INT(peer_unmap(&peer, (i + 1) * PAGE, PAGE, 0), 0);
        CHECK_INT(peer_map(&peer, i * PAGE, 2 * PAGE, RW, fd, 0), 0);
        CHECK_INT(ob_dma_read(server, i * PAGE, &byte, 1), 0);
        CHECK_INT(ob_dma_read(server, (i + 1) * PAGE, &byte, 1), 0);
        CHECK_INT(peer_map(&peer, (i + 1) * PAGE, PAGE, RW, fd, 0), -EEXIST);
        CHECK_INT(peer_unmap(&peer, i * PAGE, 2 * PAGE, 0), 0);
        CHECK_INT(peer_map(&peer, i * PAGE, PAGE, RW, fd, 0), 0);
        CHECK_INT(peer_map(&peer, (i + 1) * PAGE, PAGE, RW, fd, 0), 0);
    }
    peer_close(&peer);
    close(fd);
    ob_server_free(server);
}

/* Each time it is mapped anew, and what was mapped before stays for the mappings that it has. */
TEST(growing, "file-that-grows-all-the-time-is-mapped-up-to-the-limit")
{
    struct device device;
    struct ob_server *server = new_server(&device);
    int fd = peer_memfd(PAGE);
    struct peer peer;

    peer_attach(&peer, server);
    for (uint64_t i = 0; i <= OB_DMA_FILES_MAX; i++) {
        CHECK_INT(ftruncate(fd, (off_t)((i + 1) * PAGE)), 0);
        CHECK_INT(peer_map(&peer, 2 * i * PAGE, PAGE, RW, fd, i * PAGE),
                  i < OB_DMA_FILES_MAX ? 0 : -ENOSPC);
    }
    CHECK_INT(peer_unmap(&peer, 0, PAGE, 0), 0);
    CHECK_INT(peer_map(&peer, 0, PAGE, RW, fd, 0), 0);
    CHECK_INT(peer_map(&peer, BASE, PAGE, RW, fd, 0), 0); /* which is mapped now */
    peer_close(&peer);
    close(fd);
    ob_server_free(server);
}

/* Against an array that says for each page where the mapping there begins. */
TEST(random_maps, "random-mappings-are-found-refused-and-forgotten-as-they-should")
{
    enum { SPACE = 4096 };
    static uint16_t begins[SPACE], sizes[SPACE]; /* 1 + the first page; of a first page */
    struct device device;
    struct ob_server *server = new_server(&device);
    uint32_t state = 12345;
    struct ob_dma_ref ref;
    struct peer peer;

    peer_attach(&peer, server);
    for (unsigned i = 0; i < 60000; i++) {
        uint32_t at, size, probe;
        bool is_free = true;

        state = state * 1664525 + 1013904223;
        at = state >> 8 & (SPACE - 1);
        size = 1 + (state >> 20 & (state >> 23 & 7 ? 3 : 63));
        size = at + size > SPACE ? SPACE - at : size;
        for (uint32_t k = at; k < at + size; k++)
            is_free = is_free && !begins[k];
        if (begins[at] && (i / 8000 % 2 || state >> 28 < 3)) {
            at = begins[at] - 1u;
            size = sizes[at];
            CHECK_INT(peer_unmap(&peer, at * PAGE, size * PAGE, 0), 0);
            memset(begins + at, 0, size * sizeof(*begins));
        } else if (begins[at] != at + 1 || sizes[at] != size) { /* else the same again */
            CHECK_INT(peer_map(&peer, at * PAGE, size * PAGE, RW, -1, 0), is_free ? 0 : -EEXIST);
            for (uint32_t k = at; is_free && k < at + size; k++)
                begins[k] = (uint16_t)(at + 1);
            if (is_free)
                sizes[at] = (uint16_t)size;
        }
        for (unsigned k = 0; k < 8; k++) {
            probe = (at + k * (state >> 26)) & (SPACE - 1);
            CHECK_INT(ob_dma_get(server, (uint64_t)probe * PAGE, 1, RW, &ref),
                      begins[probe] ? -EOPNOTSUPP : -EFAULT);
        }
    }
    peer_close(&peer);
    ob_server_free(server);
}

TEST(bad_maps, "maps-that-cannot-be-are-refused")
{
    struct device device;
    struct ob_server *server = new_server(&device);
    int fd = peer_memfd(4 * PAGE), pipes[2];
    struct peer peer;

    CHECK_INT(pipe(pipes), 0);
    peer_attach(&peer, server);
    CHECK_INT(peer_map(&peer, 0, 0, RW, fd, 0), -EINVAL);
    CHECK_INT(peer_map(&peer, 0, 0, RW, -1, 0), -EINVAL);
    CHECK_INT(peer_map(&peer, UINT64_MAX - 10, PAGE, RW, -1, 0), -EINVAL);
    CHECK_INT(peer_map(&peer, 0, 5 * PAGE, RW, fd, 0), -EINVAL);
    CHECK_INT(peer_map(&peer, 0, 4 * PAGE, RW, fd, 1), -EINVAL);
    CHECK_INT(peer_map(&peer, 0, PAGE, RW, fd, UINT64_MAX - PAGE + 1), -EINVAL);
    CHECK_INT(peer_map(&peer, 0, PAGE, RW | OB_DMA_ACCESS_FILE, fd, 4 * PAGE), -EINVAL);
    CHECK_INT(peer_map(&peer, 0, PAGE, RW | OB_DMA_ACCESS_MMAP, -1, 0), -EINVAL);
    CHECK_INT(peer_map(&peer, 0, PAGE, RW | OB_DMA_ACCESS_FILE, -1, 0), -EINVAL);
    CHECK_INT(peer_map(&peer, 0, PAGE, RW | 0x10, -1, 0), -EINVAL);
    CHECK_INT(peer_map(&peer, 0, PAGE, RW, pipes[0], 0), -EPERM);
    CHECK_INT(peer_unmap(&peer, 0, 0, OB_DMA_UNMAP_ALL), 0); /* nothing was mapped */
    CHECK_INT(device.unmaps, 0);
    peer_close(&peer);
    close(fd);
    close(pipes[0]);
    close(pipes[1]);
    ob_server_free(server);
}

TEST(unmaps, "unmap-wants-exactly-one-mapping-or-all")
{
    struct device device;
    struct ob_server *server = new_server(&device);
    struct peer peer;
    int fd = peer_memfd(PAGE);

    peer_attach(&peer, server);
    for (uint64_t i = 0; i < 100; i++)
        CHECK_INT(peer_map(&peer, (99 - i) * 2 * PAGE, PAGE, RW, i % 2 ? fd : -1, 0), 0);
    CHECK_INT(peer_unmap(&peer, 0, 3 * PAGE, 0), -ENOENT);
    CHECK_INT(peer_unmap(&peer, 0, PAGE / 2, 0), -ENOENT);
    CHECK_INT(peer_unmap(&peer, PAGE, PAGE, 0), -ENOENT);
    CHECK_INT(device.unmaps, 0);
    CHECK_INT(peer_unmap(&peer, 2 * PAGE, PAGE, 0), 0);
    CHECK_INT(device.unmap_address, 2 * PAGE);
    CHECK_INT(device.unmap_size, PAGE);
    CHECK_INT(peer_unmap(&peer, 0, PAGE, OB_DMA_UNMAP_ALL), -EINVAL);
    CHECK_INT(peer_unmap(&peer, 0, PAGE, OB_DMA_UNMAP_GET_DIRTY), -EINVAL);
    CHECK_INT(peer_unmap(&peer, 0, 0, OB_DMA_UNMAP_ALL), 0);
    CHECK_INT(device.unmaps, 100);
    peer_close(&peer);
    close(fd);
    ob_server_free(server);
}

TEST(limit, "more-mappings-than-advertised-are-refused")
{
    struct device device;
    struct ob_server *server = new_server(&device);
    struct peer peer;

    peer_attach(&peer, server);
    for (uint64_t i = 0; i < OB_DMA_MAPS_MAX; i++)
        CHECK_INT(peer_map(&peer, i * PAGE, PAGE, RW, -1, 0), 0);
    CHECK_INT(peer_map(&peer, (uint64_t)OB_DMA_MAPS_MAX * PAGE, PAGE, RW, -1, 0), -ENOSPC);
    CHECK_INT(peer_unmap(&peer, 7 * PAGE, PAGE, 0), 0);
    CHECK_INT(peer_map(&peer, (uint64_t)OB_DMA_MAPS_MAX * PAGE, PAGE, RW, -1, 0), 0);
    peer_close(&peer);
    ob_server_free(server);
}

TEST(fewer_maps, "fewer-mappings-are-advertised-and-taken-where-that-is-asked-for")
{
    struct ob_server *server = ob_server_new(NULL, NULL);
    struct ob_caps caps;
    struct ob_msg *reply;
    struct peer peer;
    const char *why;

    CHECK_INT(ob_server_set_dma_limits(server, 0, PAGE), -EINVAL);
    CHECK_INT(ob_server_set_dma_limits(server, OB_DMA_MAPS_MAX + 1, PAGE), -EINVAL);
    CHECK_INT(ob_server_set_dma_limits(server, 3, PAGE), 0);
    CHECK_INT(ob_server_listen(server, peer_socket_path(), 0), 0);
    peer_connect(&peer, server);
    CHECK_INT(peer_call(&peer, OB_CMD_VERSION, "\0\0\0\0{}", 7, &reply), 0);
    CHECK_INT(ob_caps_parse(reply->payload + 4, reply->len - 4, true, &caps, &why), 0);
    CHECK_INT(caps.max_dma_maps, 3);
    ob_msg_free(reply);
    for (uint64_t i = 0; i < 4; i++)
        CHECK_INT(peer_map(&peer, i * PAGE, PAGE, RW, -1, 0), i < 3 ? 0 : -ENOSPC);
    CHECK_INT(peer_map(&peer, PAGE, PAGE, RW, -1, 0), 0); /* the same again */
    CHECK_INT(peer_unmap(&peer, PAGE, PAGE, 0), 0);
    CHECK_INT(peer_map(&peer, 3 * PAGE, PAGE, RW, -1, 0), 0);
    CHECK_INT(ob_server_set_dma_limits(server, 4, PAGE), -EINVAL); /* it is told already */
    peer_close(&peer);
    ob_server_free(server);
}

TEST(bytes, "a-client-maps-no-more-bytes-of-files-than-it-may")
{
    struct memory_device device;
    struct ob_server *server = memory_device_server(&device);
    int fd = peer_memfd(10 * PAGE);
    struct ob_dma_ref ref;
    struct peer peer;

    CHECK_INT(ob_server_set_dma_limits(server, OB_DMA_MAPS_MAX, 4 * PAGE), 0);
    CHECK_INT(ob_server_listen(server, peer_socket_path(), 0), 0);
    peer_attach(&peer, server);
    CHECK_INT(peer_map(&peer, 0, 5 * PAGE, RW, fd, 0), -ENOSPC);
    CHECK_STR(device.log, "memory of the client at 0x0 is refused: it is more than this server "
                          "keeps");
    CHECK_INT(peer_map(&peer, 0, 3 * PAGE, RW, fd, 0), 0);
    CHECK_INT(peer_map(&peer, 0, 3 * PAGE, RW, fd, 0), 0); /* the same again */
    CHECK_INT(peer_map(&peer, BASE, PAGE, RW | OB_DMA_ACCESS_FILE, fd, 0), 0);
    CHECK_INT(peer_map(&peer, 2 * BASE, 1, RW, fd, 0), -ENOSPC);
    CHECK_INT(peer_map(&peer, 2 * BASE, BASE, RW, -1, 0), 0); /* costs nothing */
    CHECK_INT(ob_dma_get(server, 0, 1, OB_DMA_READ, &ref), 0);
    peer_close(&peer);
    peer_settle(server);
    peer_attach(&peer, server); /* what the last one had is still in use */
    CHECK_INT(peer_map(&peer, 0, 2 * PAGE, RW, fd, 0), -ENOSPC);
    CHECK_INT(peer_map(&peer, 0, PAGE, RW, fd, 0), 0);
    ob_dma_put(server, &ref);
    peer_settle(server);
    CHECK_INT(peer_map(&peer, BASE, 3 * PAGE, RW, fd, 0), 0);
    CHECK_INT(peer_map(&peer, 2 * BASE, PAGE, RW, fd, 0), -ENOSPC);
    peer_close(&peer);
    close(fd);
    ob_server_free(server);
}
