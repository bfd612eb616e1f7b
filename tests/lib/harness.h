/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The C side of the test contract (see tests/run):
 *   PROGRAM --list     prints one case a line: NAME [TIMEOUT_SECONDS]
 *   PROGRAM NAME       runs that case: exit 0 passed, 1 failed, 77 skipped
 *
 * A case is a function registered with TEST(). It runs alone in its process.
 * After it returned, the harness fails it if it left a file descriptor open.
 */
#ifndef OB_TESTS_HARNESS_H
#define OB_TESTS_HARNESS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct test_case {
    const char *name;
    void (*run)(void);
    unsigned timeout_s; /* 0: the runner's default */
    struct test_case *next;
};

void test_register(struct test_case *tc);
_Noreturn void test_fail(const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
_Noreturn void test_skip(const char *why);

/* Number of open file descriptors of this process. */
int test_count_fds(void);
/* The same, when it is that number, or 20 seconds are over: descriptors that a peer sent are
 * closed by a thread of the library (channel/discard.c). */
int test_settle_fds(int expected);
/* A number that /proc/PID/status has, which must be there: "VmHWM", "Threads". */
long test_process_status(pid_t pid, const char *field);
/* A directory for this case's sockets and files, removed after it. */
const char *test_tmpdir(void);
/* Milliseconds of a monotonic clock. */
int64_t test_now_ms(void);

/* Whether the program is built with that sanitizer, by clang or gcc. */
#ifndef __has_feature
#define __has_feature(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define TEST_ASAN 1
#else
#define TEST_ASAN 0
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define TEST_TSAN 1
#else
#define TEST_TSAN 0
#endif

/* MiB that are kept of what was freed: ASan looks for uses of it. */
#define TEST_KEPT_MIB (TEST_ASAN ? 350 : 0)

#define TEST_TIMEOUT(ident, name_, seconds)                           \
    static void ident(void);                                          \
    __attribute__((constructor)) static void register_##ident(void)   \
    {                                                                 \
        static struct test_case tc = { name_, ident, seconds, NULL }; \
        test_register(&tc);                                           \
    }                                                                 \
    static void ident(void)
#define TEST(ident, name_) TEST_TIMEOUT(ident, name_, 0)

#define CHECK(cond)                                               \
    do {                                                          \
        if (!(cond))                                              \
            test_fail(__FILE__, __LINE__, "not true: %s", #cond); \
    } while (0)
#define CHECK_INT(a, b)                                                                          \
    do {                                                                                         \
        long long a_ = (long long)(a), b_ = (long long)(b);                                      \
        if (a_ != b_)                                                                            \
            test_fail(__FILE__, __LINE__, "%s is %lld (0x%llx), not %s = %lld (0x%llx)", #a, a_, \
                      a_, #b, b_, b_);                                                           \
    } while (0)
#define CHECK_STR(a, b)                                                                            \
    do {                                                                                           \
        const char *a_ = (a), *b_ = (b);                                                           \
        if (!a_ || strcmp(a_, b_) != 0)                                                            \
            test_fail(__FILE__, __LINE__, "%s is \"%s\", not \"%s\"", #a, a_ ? a_ : "(null)", b_); \
    } while (0)
#define CHECK_MEM(a, b, len)                                             \
    do {                                                                 \
        if (memcmp((a), (b), (len)) != 0)                                \
            test_fail(__FILE__, __LINE__, "%s differs from %s", #a, #b); \
    } while (0)

#endif
