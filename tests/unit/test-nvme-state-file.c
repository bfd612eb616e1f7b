/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * State files that are not what a server expects: of another disk or boot, in use, damaged, or no
 * state file at all. They are refused with a sentence, and left as they are.
 */
#include "nvme_disk.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define DAMAGED "is damaged: shut the virtual machine down, then remove it"

static struct nvme_host *const h = &disk.h;

/* create() with the disk's options and this state file says that. */
static void refused(const char *path, const char *sentence)
{
    char why[1024];

    CHECK_INT(host_try(why, sizeof(why), disk.image, "--state", path, "--queues", "2", "--serial",
                       "S", "--aio=threads", NULL),
              sentence ? 1 : 0);
    if (sentence && !strstr(why, sentence))
        test_fail(__FILE__, __LINE__, "'%s' is not in '%s'", sentence, why);
}

TEST(options, "the-state-of-another-disk-is-refused-and-says-what-differs")
{
    static const char *const others[][3] = {
        { "--queues=3", "", "'queues 2' there, 'queues 3' here" },
        { "--queues=2", "--lba=4096", "'blocks 8192' there, 'blocks 1024' here" },
        { "--queues=2", "--interrupts=msi", "'interrupts msix' there, 'interrupts msi' here" },
        { "--queues=2", "--read-only", "'access read-write' there, 'access read-only' here" },
        { "--queues=2", "--model=M", "'model Outboard NVMe' there, 'model M' here" },
        { "--queues=2", "--pci-id=1:2", "'pci-id 4f42:0001' there, 'pci-id 0001:0002' here" },
        { "--queues=2", "--serial=T", "'serial S' there, 'serial T' here" },
    };
    char why[1024], aside[160];
    const char *image;

    disk_start(8);
    disk_kill();
    for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        CHECK_INT(host_try(why, sizeof(why), disk.image, "--state", disk.path, "--serial", "S",
                           others[i][0], *others[i][1] ? others[i][1] : "--lba=512", NULL),
                  1);
        if (!strstr(why, others[i][2]))
            test_fail(__FILE__, __LINE__, "'%s' is not in '%s'", others[i][2], why);
    }
    image = disk.image;
    disk.image = host_image("other.img", DISK_SIZE, 1);
    refused(disk.path, "is the state of another disk ('image ");
    snprintf(aside, sizeof(aside), "%s.aside", image);
    CHECK_INT(rename(image, aside) | rename(disk.image, image), 0); /* a backup is restored */
    disk.image = image;
    refused(disk.path, "is the state of another disk ('file ");
    CHECK_INT(rename(aside, image), 0);
    disk_revive(); /* nothing was lost */
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    disk_end();
}

TEST(usage, "options-that-a-state-file-cannot-go-with-are-a-usage-error")
{
    static const char *const wrong[][2] = {
        { "--doorbells=mapped", "--state and --doorbells mapped exclude each other" },
        { "--incoming", "--state and --incoming exclude each other" },
        { "--state=", "--state takes a file, not ''" },
    };
    char why[1024], path[128];

    disk.image = host_image("disk.img", DISK_SIZE, 1);
    snprintf(path, sizeof(path), "%s/state", test_tmpdir());
    for (unsigned i = 0; i < 3; i++) {
        CHECK_INT(host_try(why, sizeof(why), "--state", path, wrong[i][0], disk.image, NULL), 2);
        CHECK(strstr(why, wrong[i][1]));
    }
    CHECK_INT(host_try(why, sizeof(why), "--state", path, "mem:1M", NULL), 2);
    CHECK_STR(why, "--state is for an IMAGE that outlives the server, not mem:1M");
    CHECK_INT(
        host_try(why, sizeof(why), "--state", path, "--read-only", "--aio=uring", disk.image, NULL),
        2);
    CHECK_STR(why, "--state and --read-only need --aio threads");
    CHECK(access(path, F_OK) < 0);
}

/* Makes a file with these bytes, at path. */
static void make_file(const char *path, const void *data, size_t len)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    CHECK_INT(write(fd, data, len), len);
    close(fd);
}

TEST(places, "what-is-no-state-file-is-left-as-it-is")
{
    static const char text[] = "somebody's letter", zeroes[100000];
    struct rlimit limit = { 100000, RLIM_INFINITY }, none = { RLIM_INFINITY, RLIM_INFINITY };
    char path[160], other[160], data[100];
    struct stat st;
    int fd;

    disk.image = host_image("disk.img", DISK_SIZE, 1);
    snprintf(path, sizeof(path), "%s/state", test_tmpdir());
    refused(test_tmpdir(), "Is a directory");
    refused("/dev/null", "is no file: --state takes one that is new, or that it made");
    refused("/nowhere/state", "No such file or directory");
    make_file(path, text, sizeof(text));
    refused(path, "is not a state file: it is left as it is");
    fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK_INT(read(fd, data, sizeof(data)), sizeof(text));
    CHECK_STR(data, text);
    close(fd);
    make_file(path, zeroes, sizeof(zeroes)); /* like an image that nothing was written to */
    refused(path, "is not a state file: it is left as it is");
    snprintf(other, sizeof(other), "%s/link", test_tmpdir());
    CHECK_INT(symlink(path, other), 0);
    refused(other, "it must not be a symbolic link");
    signal(SIGXFSZ, SIG_IGN);
    CHECK_INT(unlink(path), 0);
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &limit), 0);
    refused(path, "there is no room for the state file");
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &none), 0);
    CHECK_INT(stat(path, &st), 0);
    CHECK_INT(st.st_size, 0);
    refused(path, NULL); /* an empty one will do */
    refused(path, NULL);
}

TEST(lock, "a-state-file-has-one-server")
{
    disk_start(8);
    refused(disk.path, "is in use by another server: each disk has a state file of its own");
    disk_kill();
    refused(disk.path, NULL);
    disk_revive();
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    disk_end();
}

TEST(memfd, "a-parent-can-keep-the-state-in-a-memfd")
{
    int fd = memfd_create("state", MFD_CLOEXEC);

    disk.image = host_image("disk.img", DISK_SIZE, 1);
    snprintf(disk.path, sizeof(disk.path), "/dev/fd/%d", fd);
    disk_serve();
    disk_map_state();
    refused(disk.path, "is in use by another server");
    host_connect(h);
    host_arm(h, OB_PCI_IRQ_MSIX, DISK_QUEUES + 1);
    host_enable(h);
    disk_kill();
    disk_revive();
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    disk_end();
    close(fd);
}

/* Nobody survives the end of the machine, whatever the file says. */
TEST(boot, "a-state-of-before-the-machine-was-started-begins-anew")
{
    struct nvme_file_head *head;
    const uint8_t *bytes;
    uint64_t sum = 0xcbf29ce484222325u;

    disk_start(8);
    disk_kill();
    head = &disk.map->head;
    head->boot[0] ^= 1;
    head->about[0] ^= 1; /* and of another disk */
    bytes = (const uint8_t *)head->boot;
    for (size_t i = 0; i < sizeof(*head) - offsetof(struct nvme_file_head, boot); i++)
        sum = (sum ^ bytes[i]) * 0x100000001b3u;
    head->sum = sum;
    memset(disk.map->checkpoints, 0xff, sizeof(disk.map->checkpoints)); /* lost with the power */
    disk_serve();
    h->kept = false;
    host_connect(h);
    CHECK_INT(host_read32(h, NVME_REG_CC), 0);
    disk_end();
}

/* ---- Damage -------------------------------------------------------------------------------- */

TEST(damage, "a-damaged-state-file-is-refused-and-says-so")
{
    static const struct {
        size_t at;
        uint32_t value;
        const char *sentence;
    } wrong[] = {
        { 0, 0x12345678, "is not a state file" },
        { offsetof(struct nvme_file_head, version), 2,
          "another version of this program (format 2" },
        { offsetof(struct nvme_file_head, sum), 1, DAMAGED },
        { offsetof(struct nvme_file_head, about), 0x41414141, DAMAGED },
        { offsetof(struct nvme_file_map, current), 2, "as the server was out of memory" },
        { offsetof(struct nvme_file_map, current), 3, DAMAGED },
        { offsetof(struct nvme_file_map, armed), 4, DAMAGED },
        { offsetof(struct nvme_file_map, cq[1].head), 8, DAMAGED },
        { offsetof(struct nvme_file_map, sq[0].tail), 8, DAMAGED },
        { offsetof(struct nvme_file_map, sq[0].number[2]), 1000, DAMAGED },
        { offsetof(struct nvme_file_map, sq[0].number[100]), 1, DAMAGED },
    };
    uint8_t *bytes, before[4];
    const struct nvme_checkpoint *last;
    size_t at;

    disk_start(8);
    disk_kill();
    bytes = (uint8_t *)disk.map;
    for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        memcpy(before, bytes + wrong[i].at, 4);
        memcpy(bytes + wrong[i].at, &wrong[i].value, 4);
        refused(disk.path, wrong[i].sentence);
        memcpy(bytes + wrong[i].at, before, 4);
    }
    last = &disk.map->checkpoints[disk.map->current];
    at = (size_t)(last->data - bytes);
    for (size_t i = 0; i < last->len; i += 47) {
        bytes[at + i] ^= 4;
        refused(disk.path, DAMAGED);
        bytes[at + i] ^= 4;
    }
    disk.map->sq[0].number[1] = disk.map->sq[0].number[2] = disk.map->sq[0].fetched;
    refused(disk.path, DAMAGED);
    disk.map->sq[0].number[1] = disk.map->sq[0].number[2] = 0;
    CHECK_INT(truncate(disk.path, DISK_STATE_SIZE - 1), 0);
    refused(disk.path, "is damaged (it does not have its");
    CHECK_INT(truncate(disk.path, DISK_STATE_SIZE), 0);
    disk_revive();
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    disk_end();
}

/* A server goes on with that, whatever it is, until the host resets it; then all is well. */
static void use_and_reset(void)
{
    const uint16_t command = 6;

    disk_serve();
    h->kept = true;
    host_connect(h);
    host_arm(h, OB_PCI_IRQ_MSIX, DISK_QUEUES + 1);
    for (uint16_t q = 0; q <= DISK_QUEUES; q++)
        host_ring_message(h, 2u * q, q);
    for (unsigned i = 0; i < 10; i++)
        host_read32(h, NVME_REG_CSTS);
    CHECK_INT(ob_client_reset(h->client), 0);
    CHECK_INT(ob_client_region_write(h->client, OB_PCI_REGION_CONFIG, 4, &command, 2), 0);
    h->used = 0;
    host_enable(h);
    CHECK_INT(host_identify(h, 1, 0, host_pages(h, 1)), 0);
    disk_kill();
}

/* What is noted of commands changes all the time and has no checksum. */
TEST_TIMEOUT(random_damage, "a-state-file-with-any-wrong-bytes-is-refused-or-harmless", 90)
{
    uint8_t *bytes, *good = malloc(DISK_STATE_SIZE);
    uint32_t seed = 7, taken = 0;
    char why[1024];

    disk_start(8);
    disk_kill();
    bytes = (uint8_t *)disk.map;
    CHECK(good != NULL);
    disk.map->sq[0].number[0] = disk.map->sq[0].fetched; /* with a command that is under way */
    memcpy(good, bytes, DISK_STATE_SIZE);
    for (unsigned round = 0; round < 300; round++) {
        for (unsigned i = 0; i < 4; i++) {
            size_t from = round % 2 ? offsetof(struct nvme_file_map, sq[0].sqe[0]) : NVME_FILE_HEAD;
            size_t room = round % 2 ? sizeof(struct nvme_sqe) : 4096 + 64;
            seed = seed * 1664525u + 1013904223u;
            bytes[from + (seed >> 8) % room] = (uint8_t)(seed >> 4) % 12;
        }
        if (host_try(why, sizeof(why), disk.image, "--state", disk.path, "--queues", "2",
                     "--serial", "S", "--aio=threads", NULL) == 0) {
            use_and_reset();
            taken++;
        } else {
            CHECK(strstr(why, DAMAGED));
        }
        memcpy(bytes, good, DISK_STATE_SIZE);
    }
    printf("%u of 300 were taken\n", taken);
    CHECK(taken > 0 && taken < 300);
    free(good);
    disk_forget();
}
