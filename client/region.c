/* SPDX-License-Identifier: BSD-3-Clause */
/* Access to a region: by message, or by mapping what the server shares. */
#include "client/memo.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* One message's worth of an access. */
struct piece {
    uint32_t region;
    uint64_t offset;
    uint8_t *data;
    uint32_t count;
};

/* Takes the reply to an access apart. data: where to put what was read, or NULL. */
static int take_reply(struct ob_client *c, uint16_t cmd, struct ob_msg *reply, uint32_t count,
                      void *data)
{
    struct ob_wire_region_access wire;
    int rc = 0;

    memcpy(&wire, reply->payload, sizeof(wire));
    if (wire.count != count)
        rc = ob_client_die(c, "the server answered %s of %u bytes with a count of %u",
                           ob_strcmd(cmd), count, wire.count);
    else if (data)
        memcpy(data, reply->payload + sizeof(wire), count);
    ob_channel_recycle(&c->main.channel, reply);
    return rc;
}

static int read_piece(struct ob_client *c, const struct piece *p)
{
    struct ob_wire_region_access wire = { p->offset, p->region, p->count };
    struct ob_body body = { .fixed = &wire, .fixed_len = sizeof(wire) };
    uint32_t len = sizeof(wire) + p->count;
    struct ob_msg *reply;
    int rc = ob_request_call(c, OB_CMD_REGION_READ, &body, len, len, &reply);

    return rc < 0 ? rc : take_reply(c, OB_CMD_REGION_READ, reply, p->count, p->data);
}

static int write_piece(struct ob_client *c, const struct piece *p)
{
    struct ob_wire_region_access wire = { p->offset, p->region, p->count };
    struct ob_body body = { &wire, sizeof(wire), p->data, p->count, NULL, 0 };
    struct ob_msg *reply;
    int rc = ob_request_call(c, OB_CMD_REGION_WRITE, &body, sizeof(wire), sizeof(wire), &reply);

    return rc < 0 ? rc : take_reply(c, OB_CMD_REGION_WRITE, reply, p->count, NULL);
}

static int in_pieces(struct ob_client *c, struct piece p, uint32_t total,
                     int (*access)(struct ob_client *c, const struct piece *p))
{
    uint32_t max = ob_client_xfer_max(c);
    int rc = total > 0 && p.offset > UINT64_MAX - (total - 1) ? -EINVAL : 0;

    while (rc == 0 && total > 0) {
        p.count = total < max ? total : max;
        rc = access(c, &p);
        p.offset += p.count;
        p.data += p.count;
        total -= p.count;
    }
    return rc;
}

int ob_client_region_read(struct ob_client *client, uint32_t region, uint64_t offset, void *data,
                          uint32_t count)
{
    struct piece p = { .region = region, .offset = offset, .data = data };

    return in_pieces(client, p, count, read_piece);
}

int ob_client_region_write(struct ob_client *client, uint32_t region, uint64_t offset,
                           const void *data, uint32_t count)
{
    struct piece p = { .region = region, .offset = offset, .data = (uint8_t *)data };

    ob_memo_note_write(client, region, offset, data, count);
    return in_pieces(client, p, count, write_piece);
}

/* ---- Mapping ------------------------------------------------------------------------------ */

/* Area number `area` of the region; false when there is none. */
static bool find_area(const struct ob_region_info *info, uint32_t area, struct ob_sparse_area *out)
{
    const struct ob_region_layout *layout = &info->layout;

    if (info->fd < 0 || !(layout->flags & OB_REGION_MMAP) ||
        area >= (layout->nareas ? layout->nareas : 1))
        return false;
    *out = layout->nareas ? layout->areas[area] : (struct ob_sparse_area){ 0, layout->size };
    return true;
}

/* Whether the file behind the region reaches to `end`: beyond it an access would be SIGBUS. Of a
 * character device the kernel knows better. */
static bool file_reaches(int fd, uint64_t end)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return false;
    return S_ISCHR(st.st_mode) || (S_ISREG(st.st_mode) && end <= (uint64_t)st.st_size);
}

int ob_region_map(const struct ob_region_info *info, uint32_t area, void **out, uint64_t *size)
{
    uint64_t page_mask = (uint64_t)sysconf(_SC_PAGESIZE) - 1;
    uint32_t flags = info->layout.flags;
    int prot =
        (flags & OB_REGION_READ ? PROT_READ : 0) | (flags & OB_REGION_WRITE ? PROT_WRITE : 0);
    struct ob_sparse_area a;
    uint64_t at, end;
    void *ptr;

    if (!find_area(info, area, &a))
        return -ENOENT;
    if (a.size == 0 || ((a.offset | a.size | info->layout.fd_offset) & page_mask))
        return -EINVAL;
    if (__builtin_add_overflow(info->layout.fd_offset, a.offset, &at) ||
        __builtin_add_overflow(at, a.size, &end) || end > INT64_MAX || a.size > SIZE_MAX ||
        !file_reaches(info->fd, end))
        return -EINVAL;
    ptr = mmap(NULL, (size_t)a.size, prot, MAP_SHARED, info->fd, (off_t)at);
    if (ptr == MAP_FAILED)
        return -errno;
    *out = ptr;
    *size = a.size;
    return 0;
}

/* A hole in huge pages is filled again only as long as the system has some to spare. Called only
 * with what has seals, and so is the kernel's own: another file system could make us wait. */
static bool of_huge_pages(int fd)
{
    struct statfs st;

    return fstatfs(fd, &st) < 0 || st.f_type == HUGETLBFS_MAGIC;
}

bool ob_fd_can_shrink(int fd)
{
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_SEAL)) == F_SEAL_SEAL)
        return true;
    if (!(seals & F_SEAL_SHRINK)) {
        ob_fd_seal(fd);
        seals = fcntl(fd, F_GET_SEALS);
    }
    return seals < 0 || !(seals & F_SEAL_SHRINK) || of_huge_pages(fd);
}

bool ob_region_can_shrink(const struct ob_region_info *info)
{
    return ob_fd_can_shrink(info->fd);
}
