/* SPDX-License-Identifier: BSD-3-Clause */
/* What does the I/O of an image, without a controller around it. */
#include "devices/nvme/blk.h"
#include "nvme_host.h"

#include <stdio.h>
#include <unistd.h>

#define DISK 65536u

static struct blk *open_blk(enum blk_aio aio)
{
    struct blk *blk;
    char why[5000];

    if (blk_open(host_image("disk.img", DISK, 0), false, false, aio, &blk, why, sizeof(why)) < 0)
        test_fail(__FILE__, __LINE__, "%s", why);
    return blk;
}

/* ---- Threads ------------------------------------------------------------------------------- */

static int result = 1;

static void done(struct blk_req *req, int rc)
{
    (void)req;
    result = rc;
}

static int threads_of_process(void)
{
    char line[256];
    int n = 0;
    FILE *status = fopen("/proc/self/status", "re");

    CHECK(status);
    while (fgets(line, sizeof(line), status))
        sscanf(line, "Threads: %d", &n);
    fclose(status);
    return n;
}

static void write_some(struct blk *blk, const char *text)
{
    struct iovec iov = { (void *)text, strlen(text) };
    struct blk_req req = { .op = BLK_WRITE, .len = iov.iov_len, .iov = &iov, .niov = 1 };
    char back[16] = "";

    req.done = done;
    result = 1;
    blk->ops->submit(blk, &req);
    for (int64_t end = test_now_ms() + 10000; result == 1 && test_now_ms() < end;)
        blk->ops->poll(blk);
    CHECK_INT(result, 0);
    CHECK_INT(pread(blk->fd, back, strlen(text), 0), strlen(text));
    CHECK_STR(back, text);
}

/* A server that fails before it has started them still writes back what it has. */
TEST(threads, "threads-start-when-told-and-io-works-before")
{
    struct blk *blk = open_blk(BLK_AIO_THREADS);

    CHECK_INT(threads_of_process(), 1);
    write_some(blk, "before");
    CHECK_INT(threads_of_process(), 1);
    CHECK_INT(blk->ops->start(blk), 0);
    CHECK(threads_of_process() > 1);
    write_some(blk, "after!");
    blk_close(blk);
    CHECK_INT(threads_of_process(), 1);
}
