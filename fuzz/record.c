/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Makes inputs of the target `server` from what a program sends as a client (README.md):
 *
 *   OUTBOARD_RECORD=FOLDER OUTBOARD_RECORD_DEVICE=N LD_PRELOAD=.../record.so PROGRAM
 *
 * N is the device, as server.c counts them. A connection becomes one input, or several when it is
 * long. Any program that uses our client will do: a test, QEMU with the plug-in, `outboard check`.
 */
#include "kinds.h"
#include "message.h"
#include "operations.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define FDS_MAX     1024
#define INPUT_MAX   1900u /* bytes at which the next input begins */
#define DATA_MAX    512u  /* bytes of a payload: the longer ones are not worth their room */
#define DRAIN_EVERY 8u

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct session {
    FILE *out;
    long written;
    unsigned messages;
} sessions[FDS_MAX];

static void put(struct session *s, const void *data, size_t len)
{
    fwrite(data, 1, len, s->out);
    s->written += (long)len;
}

/* greeted: the input's first connection makes its own VERSION. */
static void begin(struct session *s, bool greeted)
{
    static unsigned number;
    const char *folder = getenv("OUTBOARD_RECORD"), *device = getenv("OUTBOARD_RECORD_DEVICE");
    uint8_t head[2] = { (uint8_t)strtol(device ? device : "0", NULL, 10),
                        greeted ? CONNECT_GREETED : 0 };
    char path[4096];

    if (s->out)
        fclose(s->out);
    *s = (struct session){ 0 };
    if (!folder)
        return;
    snprintf(path, sizeof(path), "%s/%d-%u", folder, (int)getpid(), number++);
    s->out = fopen(path, "w");
    if (s->out)
        put(s, head, sizeof(head));
}

static uint8_t kind_of(const struct msghdr *mh, unsigned *nfds)
{
    const struct cmsghdr *cmsg = mh->msg_controllen ? CMSG_FIRSTHDR(mh) : NULL;
    struct stat st;
    int fd;

    *nfds = 0;
    if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS)
        return 0;
    *nfds = (unsigned)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? KIND_RAM : KIND_EVENTFD2;
}

/* Memory here is not as large as a guest's. */
static void fit_map(uint8_t *payload, uint32_t len, unsigned nfds)
{
    struct ob_wire_dma_map map;

    if (len != sizeof(map) || !nfds)
        return;
    memcpy(&map, payload, sizeof(map));
    map.offset = 0;
    map.size = map.size < RAM_BYTES ? map.size : RAM_BYTES;
    memcpy(payload, &map, sizeof(map));
}

static void record(struct session *s, const struct ob_wire_hdr *hdr, uint8_t *payload, uint32_t len,
                   unsigned nfds, uint8_t kind)
{
    static const uint8_t op = OP_MESSAGE, drain = OP_DRAIN;
    uint8_t bytes[2 * DATA_MAX];
    struct ob_writer w;

    if (s->out && s->written > (long)INPUT_MAX)
        begin(s, true);
    if (!s->out)
        return;
    if (hdr->cmd == OB_CMD_DMA_MAP)
        fit_map(payload, len, nfds);
    ob_writer_init(&w, bytes, sizeof(bytes));
    message_put(&w, hdr, payload, len, nfds, kind, 0);
    if (w.failed)
        return;
    put(s, &op, 1);
    put(s, bytes, w.len);
    if (++s->messages % DRAIN_EVERY == 0)
        put(s, &drain, 1);
}

/* All messages in what is sent with one call. */
static void look(int fd, const struct msghdr *mh)
{
    static uint8_t bytes[1 << 20];
    size_t len = 0, at = 0;
    struct ob_wire_hdr hdr;
    unsigned nfds;
    uint8_t kind = kind_of(mh, &nfds);

    for (size_t i = 0; i < mh->msg_iovlen; i++) {
        size_t n = mh->msg_iov[i].iov_len;

        if (n > sizeof(bytes) - len)
            return;
        memcpy(bytes + len, mh->msg_iov[i].iov_base, n);
        len += n;
    }
    for (; len - at >= sizeof(hdr); at += hdr.msg_size, nfds = 0) {
        const struct ob_msg_type *type;

        memcpy(&hdr, bytes + at, sizeof(hdr));
        type = ob_msg_type(hdr.cmd);
        if (!type || type->dir != OB_CLIENT_TO_SERVER || (hdr.flags & OB_HDR_TYPE_MASK) ||
            hdr.msg_size < sizeof(hdr) || hdr.msg_size > len - at ||
            hdr.msg_size - sizeof(hdr) > DATA_MAX)
            return;
        if (hdr.cmd == OB_CMD_VERSION)
            begin(&sessions[fd], false);
        record(&sessions[fd], &hdr, bytes + at + sizeof(hdr), hdr.msg_size - (uint32_t)sizeof(hdr),
               nfds, kind);
    }
}

static void look_locked(int fd, const struct msghdr *mh)
{
    if (fd < 0 || fd >= FDS_MAX)
        return;
    pthread_mutex_lock(&lock);
    look(fd, mh);
    if (sessions[fd].out)
        fflush(sessions[fd].out);
    pthread_mutex_unlock(&lock);
}

__attribute__((visibility("default"))) ssize_t sendmsg(int fd, const struct msghdr *mh, int flags)
{
    ssize_t (*real)(int, const struct msghdr *, int) =
        (ssize_t(*)(int, const struct msghdr *, int))dlsym(RTLD_NEXT, "sendmsg");

    look_locked(fd, mh);
    return real(fd, mh, flags);
}

__attribute__((visibility("default"))) ssize_t send(int fd, const void *data, size_t len, int flags)
{
    ssize_t (*real)(int, const void *, size_t, int) =
        (ssize_t(*)(int, const void *, size_t, int))dlsym(RTLD_NEXT, "send");
    struct iovec iov = { (void *)data, len };

    look_locked(fd, &(struct msghdr){ .msg_iov = &iov, .msg_iovlen = 1 });
    return real(fd, data, len, flags);
}
