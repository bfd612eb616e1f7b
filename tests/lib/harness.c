/* SPDX-License-Identifier: BSD-3-Clause */
#include "harness.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static struct test_case *cases;
static char tmpdir[64];
static pid_t main_pid;

void test_register(struct test_case *tc)
{
    struct test_case **p = &cases;

    while (*p)
        p = &(*p)->next;
    *p = tc;
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st, (void)kind, (void)ftw;
    return remove(path);
}

static void remove_tmpdir(void)
{
    if (tmpdir[0] && getpid() == main_pid)
        nftw(tmpdir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

const char *test_tmpdir(void)
{
    if (!tmpdir[0]) {
        strcpy(tmpdir, "/tmp/outboard-test-XXXXXX");
        if (!mkdtemp(tmpdir))
            test_fail(__FILE__, __LINE__, "mkdtemp: %s", strerror(errno));
    }
    return tmpdir;
}

void test_fail(const char *file, int line, const char *fmt, ...)
{
    va_list ap;

    fflush(stdout);
    fprintf(stderr, "%s:%d: ", file, line);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    remove_tmpdir();
    _exit(1);
}

void test_skip(const char *why)
{
    printf("%s\n", why);
    fflush(stdout);
    remove_tmpdir();
    _exit(77);
}

int test_count_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;

    if (!dir)
        test_fail(__FILE__, __LINE__, "/proc/self/fd: %s", strerror(errno));
    while (readdir(dir))
        count++;
    closedir(dir);
    return count - 3; /* ".", ".." and the directory itself */
}

int test_settle_fds(int expected)
{
    int64_t end_ms = test_now_ms() + 20000;
    int count;

    while ((count = test_count_fds()) != expected && test_now_ms() < end_ms)
        poll(NULL, 0, 1);
    return count;
}

long test_process_status(pid_t pid, const char *field)
{
    size_t len = strlen(field);
    char path[32], line[256];
    long number = -1;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    f = fopen(path, "re");
    CHECK(f);
    while (fgets(line, sizeof(line), f))
        if (strncmp(line, field, len) == 0 && line[len] == ':')
            number = strtol(line + len + 1, NULL, 10);
    fclose(f);
    CHECK(number >= 0);
    return number;
}

int64_t test_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static int run_case(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (struct test_case *tc = cases; tc; tc = tc->next)
            tc->timeout_s ? printf("%s %u\n", tc->name, tc->timeout_s) : printf("%s\n", tc->name);
        return 0;
    }
    for (struct test_case *tc = cases; argc == 2 && tc; tc = tc->next) {
        if (strcmp(argv[1], tc->name) != 0)
            continue;
        main_pid = getpid();
        int before = test_count_fds();
        tc->run();
        int after = test_settle_fds(before);
        if (after != before)
            test_fail(__FILE__, __LINE__, "%s left %d file descriptors open", tc->name,
                      after - before);
        remove_tmpdir();
        return 0;
    }
    fprintf(stderr, "usage: %s --list | CASE\n", argv[0]);
    return 2;
}

int main(int argc, char **argv)
{
    return run_case(argc, argv);
}
