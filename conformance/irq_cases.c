/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * DEVICE_SET_IRQS. A family runs for each IRQ index of a PCI device; the eventfds are signalled by
 * the client's own triggers. The reply to a trigger comes after the signal, so that what is not
 * there then is not coming.
 */
#include "conformance/test.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define VECTORS 8u

#define NONE    OB_IRQ_SET_DATA_NONE
#define BOOL    OB_IRQ_SET_DATA_BOOL
#define EVENTFD OB_IRQ_SET_DATA_EVENTFD
#define MASK    OB_IRQ_SET_ACTION_MASK
#define UNMASK  OB_IRQ_SET_ACTION_UNMASK
#define TRIGGER OB_IRQ_SET_ACTION_TRIGGER

static uint32_t count_of(const struct test *t)
{
    return t->dev->irqs[t->entry->arg].count;
}

/* How many vectors a case uses; one message can bring their eventfds. */
static unsigned need_vectors(struct test *t, unsigned least)
{
    uint32_t n = count_of(t), fds = t->dev->caps.max_msg_fds;

    if (n == 0)
        test_not_offered(t, "the device has not got these interrupts");
    if (n < least)
        test_not_offered(t, "one vector is not enough for this");
    if (fds == 0)
        test_not_offered(t, "the server takes no file descriptors");
    n = n < VECTORS ? n : VECTORS;
    return n < fds ? n : fds;
}

static int set(struct test *t, uint32_t flags, uint32_t start, uint32_t count)
{
    return device_set_irqs(t, flags, t->entry->arg, start, count, NULL, NULL, 0);
}

static void must_set(struct test *t, uint32_t flags, uint32_t start, uint32_t count)
{
    test_is_ok(t, set(t, flags, start, count), OB_CMD_DEVICE_SET_IRQS);
}

static void must_not_set(struct test *t, uint32_t flags, uint32_t start, uint32_t count)
{
    test_is_refused(t, set(t, flags, start, count), 0, OB_CMD_DEVICE_SET_IRQS);
}

static void give(struct test *t, uint32_t action, uint32_t start, const int *fds, unsigned n)
{
    test_is_ok(t, device_set_irqs(t, EVENTFD | action, t->entry->arg, start, n, NULL, fds, n),
               OB_CMD_DEVICE_SET_IRQS);
}

static void arm(struct test *t, int *fds, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        fds[i] = test_eventfd(t);
    give(t, TRIGGER, 0, fds, n);
}

static void signalled(struct test *t, const int *fds, unsigned vector, uint64_t times)
{
    uint64_t got = test_signals(t, fds[vector]);

    MUST(t, got == times, "vector %u was signalled %llu times, not %llu", vector,
         (unsigned long long)got, (unsigned long long)times);
}

/* ---- For each index ------------------------------------------------------------------------ */

static void fires(struct test *t)
{
    unsigned n = need_vectors(t, 1);
    int fds[VECTORS];

    arm(t, fds, n);
    for (unsigned i = 0; i < n; i++) {
        must_set(t, NONE | TRIGGER, i, 1);
        for (unsigned k = 0; k < n; k++)
            signalled(t, fds, k, k == i);
    }
}

static void fires_last(struct test *t)
{
    int fd;

    need_vectors(t, 1);
    fd = test_eventfd(t);
    give(t, TRIGGER, count_of(t) - 1, &fd, 1);
    must_set(t, NONE | TRIGGER, count_of(t) - 1, 1);
    signalled(t, &fd, 0, 1);
}

static void fires_by_bool(struct test *t)
{
    static const uint8_t bools[VECTORS] = { 1, 0, 2, 0, 0xff, 0, 0x80, 0 };
    unsigned n = need_vectors(t, 1);
    int fds[VECTORS];

    arm(t, fds, n);
    test_is_ok(t, device_set_irqs(t, BOOL | TRIGGER, t->entry->arg, 0, n, bools, NULL, 0),
               OB_CMD_DEVICE_SET_IRQS);
    for (unsigned i = 0; i < n; i++)
        signalled(t, fds, i, bools[i] != 0);
}

static void replaced(struct test *t)
{
    int old, new;

    need_vectors(t, 1);
    arm(t, &old, 1);
    arm(t, &new, 1);
    must_set(t, NONE | TRIGGER, 0, 1);
    signalled(t, &old, 0, 0);
    signalled(t, &new, 0, 1);
}

static void others_stay(struct test *t)
{
    unsigned n = need_vectors(t, 2);
    int fds[VECTORS], new;

    arm(t, fds, n);
    new = test_eventfd(t);
    give(t, TRIGGER, 1, &new, 1);
    must_set(t, NONE | TRIGGER, 0, n);
    for (unsigned i = 0; i < n; i++)
        signalled(t, fds, i, i != 1);
    signalled(t, &new, 0, 1);
}

static void taken_back(struct test *t)
{
    unsigned n = need_vectors(t, 1), last = n - 1;
    int fds[VECTORS];

    arm(t, fds, n);
    must_set(t, EVENTFD | TRIGGER, last, 1);
    must_set(t, EVENTFD | TRIGGER, last, 1); /* there is nothing any more: no error */
    must_set(t, NONE | TRIGGER, 0, n);
    for (unsigned i = 0; i < n; i++)
        signalled(t, fds, i, i != last);
}

static void all_taken_back(struct test *t)
{
    unsigned n = need_vectors(t, 1);
    int fds[VECTORS];

    arm(t, fds, n);
    must_set(t, NONE | TRIGGER, 0, 0);
    must_set(t, NONE | TRIGGER, 0, n);
    for (unsigned i = 0; i < n; i++)
        signalled(t, fds, i, 0);
}

/* Also where there is nothing to take back. */
static void disable_always(struct test *t)
{
    if (t->entry->arg >= t->dev->info.num_irqs)
        test_not_offered(t, "the device has not got this index");
    must_set(t, NONE | TRIGGER, 0, 0);
    must_set(t, NONE | TRIGGER, 0, 0);
}

static void not_remembered(struct test *t)
{
    int fd;

    need_vectors(t, 1);
    must_set(t, NONE | TRIGGER, 0, 1);
    arm(t, &fd, 1);
    test_alive(t);
    signalled(t, &fd, 0, 0);
}

static void mask_holds(struct test *t)
{
    int fd;

    need_vectors(t, 1);
    arm(t, &fd, 1);
    must_set(t, NONE | MASK, 0, 1);
    must_set(t, NONE | TRIGGER, 0, 1);
    must_set(t, NONE | TRIGGER, 0, 1);
    signalled(t, &fd, 0, 0);
    must_set(t, NONE | UNMASK, 0, 1);
    signalled(t, &fd, 0, 1);
}

static void mask_by_bool(struct test *t)
{
    static const uint8_t odd[VECTORS] = { 0, 1, 0, 1, 0, 1, 0, 1 };
    unsigned n = need_vectors(t, 2);
    int fds[VECTORS];

    arm(t, fds, n);
    test_is_ok(t, device_set_irqs(t, BOOL | MASK, t->entry->arg, 0, n, odd, NULL, 0),
               OB_CMD_DEVICE_SET_IRQS);
    must_set(t, NONE | TRIGGER, 0, n);
    for (unsigned i = 0; i < n; i++)
        signalled(t, fds, i, !odd[i]);
}

static void unmask_by_eventfd(struct test *t)
{
    int fd, unmask;

    need_vectors(t, 1);
    arm(t, &fd, 1);
    unmask = test_eventfd(t);
    give(t, UNMASK, 0, &unmask, 1);
    must_set(t, NONE | MASK, 0, 1);
    must_set(t, NONE | TRIGGER, 0, 1);
    signalled(t, &fd, 0, 0);
    MUST(t, eventfd_write(unmask, 1) == 0, "an eventfd cannot be signalled");
    test_await_signal(t, fd);
}

static void past_count(struct test *t)
{
    uint32_t count = count_of(t);
    const struct {
        uint32_t start, count;
    } bad[] = {
        { count, 1 }, { 0, count + 1 }, { 1, UINT32_MAX }, { UINT32_MAX, 1 }, { UINT32_MAX, 2 }
    };
    int fd;

    need_vectors(t, 1);
    arm(t, &fd, 1);
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        must_not_set(t, NONE | TRIGGER, bad[i].start, bad[i].count);
        must_not_set(t, EVENTFD | TRIGGER, bad[i].start, bad[i].count);
        must_not_set(t, NONE | MASK, bad[i].start, bad[i].count);
    }
    signalled(t, &fd, 0, 0);
    must_set(t, NONE | TRIGGER, 0, 1);
    signalled(t, &fd, 0, 1);
}

static void count_zero(struct test *t)
{
    static const uint32_t flags[] = { NONE | MASK, NONE | UNMASK, BOOL | TRIGGER, EVENTFD | TRIGGER,
                                      EVENTFD | MASK };

    need_vectors(t, 1);
    for (unsigned i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
        must_not_set(t, flags[i], 0, 0);
    must_not_set(t, NONE | TRIGGER, 1, 0);
    test_alive(t);
}

/* A counter that is full would make a careless server wait for who reads it. */
static void full_counter(struct test *t)
{
    int fd;

    need_vectors(t, 1);
    fd = test_keep(t, eventfd(0, EFD_CLOEXEC));
    MUST(t, eventfd_write(fd, UINT64_MAX - 1) == 0, "an eventfd cannot be filled");
    give(t, TRIGGER, 0, &fd, 1);
    must_set(t, NONE | TRIGGER, 0, 1);
    must_set(t, NONE | UNMASK, 0, 1);
    must_set(t, NONE | TRIGGER, 0, 1);
    test_alive(t);
}

static void no_eventfd(struct test *t)
{
    int ends[2], fd;

    need_vectors(t, 1);
    MUST(t, pipe2(ends, O_CLOEXEC) == 0, "no pipe");
    test_keep(t, ends[0]);
    test_keep(t, ends[1]);
    fd = test_memfd(t, PAGE);
    for (unsigned i = 0; i < 2; i++) {
        int got =
            device_set_irqs(t, EVENTFD | TRIGGER, t->entry->arg, 0, 1, NULL, i ? &ends[1] : &fd, 1);

        test_is_refused(t, got, 0, OB_CMD_DEVICE_SET_IRQS);
    }
    test_close(t, ends[1]);
    test_await_hang_up(t, ends[0], "what is no eventfd");
}

static void indexes_apart(struct test *t)
{
    uint32_t other = 0;
    int mine, others;

    need_vectors(t, 1);
    while (other < OB_IRQS_MAX && (other == t->entry->arg || !t->dev->irqs[other].count))
        other++;
    if (other == OB_IRQS_MAX)
        test_not_offered(t, "the device has one kind of interrupts only");
    arm(t, &mine, 1);
    others = test_eventfd(t);
    test_is_ok(t, device_set_irqs(t, EVENTFD | TRIGGER, other, 0, 1, NULL, &others, 1),
               OB_CMD_DEVICE_SET_IRQS);
    must_set(t, NONE | TRIGGER, 0, 1);
    signalled(t, &mine, 0, 1);
    signalled(t, &others, 0, 0);
}

/* ---- Malformed ----------------------------------------------------------------------------- */

static uint32_t any_index(struct test *t)
{
    for (uint32_t i = 0; i < OB_IRQS_MAX; i++)
        if (t->dev->irqs[i].count)
            return i;
    test_not_offered(t, "the device has no interrupts");
}

static bool one_bit(uint32_t bits)
{
    return bits && !(bits & (bits - 1));
}

static void flag_combinations(struct test *t)
{
    uint32_t index = any_index(t);

    for (uint32_t flags = 0; flags < 64; flags++) {
        if (one_bit(flags & OB_IRQ_SET_DATA_MASK) && one_bit(flags & OB_IRQ_SET_ACTIONS))
            continue;
        test_is_refused(t, device_set_irqs(t, flags, index, 0, 1, NULL, NULL, 0), 0,
                        OB_CMD_DEVICE_SET_IRQS);
    }
    test_alive(t);
}

static void undefined_flags(struct test *t)
{
    uint32_t index = any_index(t);

    for (unsigned bit = 6; bit < 32; bit++)
        test_is_refused(t,
                        device_set_irqs(t, NONE | TRIGGER | 1u << bit, index, 0, 1, NULL, NULL, 0),
                        0, OB_CMD_DEVICE_SET_IRQS);
    test_alive(t);
}

static void no_such_index(struct test *t)
{
    const uint32_t indexes[] = { t->dev->info.num_irqs, UINT32_MAX };

    for (unsigned i = 0; i < 2; i++) {
        test_is_refused(t, device_set_irqs(t, NONE | TRIGGER, indexes[i], 0, 0, NULL, NULL, 0), 0,
                        OB_CMD_DEVICE_SET_IRQS);
        test_is_refused(t, device_set_irqs(t, NONE | TRIGGER, indexes[i], 0, 1, NULL, NULL, 0), 0,
                        OB_CMD_DEVICE_SET_IRQS);
    }
    test_alive(t);
}

/* A payload with so many bytes behind the structure. */
static void with_bytes(struct test *t, uint32_t flags, uint32_t bytes)
{
    uint8_t payload[sizeof(struct ob_wire_set_irqs) + 4] = { 0 };
    struct ob_wire_set_irqs irqs = { sizeof(irqs) + bytes, flags, any_index(t), 0, 1 };

    memcpy(payload, &irqs, sizeof(irqs));
    test_refused(t, 0, OB_CMD_DEVICE_SET_IRQS, payload, sizeof(irqs) + bytes);
}

static void data_differs(struct test *t)
{
    with_bytes(t, BOOL | TRIGGER, 0);
    with_bytes(t, BOOL | TRIGGER, 2);
    with_bytes(t, NONE | TRIGGER, 1);
    with_bytes(t, EVENTFD | TRIGGER, 1);
    test_alive(t);
}

static void fds_differ(struct test *t)
{
    static const uint8_t one = 1;
    uint32_t index = any_index(t);
    int fds[2] = { test_eventfd(t), test_eventfd(t) };

    test_is_refused(t, device_set_irqs(t, NONE | TRIGGER, index, 0, 1, NULL, fds, 1), 0,
                    OB_CMD_DEVICE_SET_IRQS);
    test_is_refused(t, device_set_irqs(t, BOOL | TRIGGER, index, 0, 1, &one, fds, 1), 0,
                    OB_CMD_DEVICE_SET_IRQS);
    test_is_refused(t, device_set_irqs(t, EVENTFD | TRIGGER, index, 0, 1, NULL, fds, 2), 0,
                    OB_CMD_DEVICE_SET_IRQS);
    if (t->dev->irqs[index].count > 2)
        test_is_refused(t, device_set_irqs(t, EVENTFD | TRIGGER, index, 0, 3, NULL, fds, 2), 0,
                        OB_CMD_DEVICE_SET_IRQS);
    MUST(t, test_signals(t, fds[0]) == 0 && test_signals(t, fds[1]) == 0,
         "an eventfd was signalled though it was refused");
    test_alive(t);
}

static bool every(uint32_t index)
{
    (void)index;
    return true;
}

/* Indexes that have more than one vector. */
static bool many(uint32_t index)
{
    return index == OB_PCI_IRQ_MSI || index == OB_PCI_IRQ_MSIX;
}

static const struct family families[] = {
    { "irq/%s-fires", "R-IRQ-9 R-IRQ-16", "a trigger signals the vector's eventfd, and no other",
      fires, every, false, 0 },
    { "irq/%s-fires-last", "R-IRQ-9 R-IRQ-16", "the last vector can be used", fires_last, every,
      false, 0 },
    { "irq/%s-fires-by-bool", "R-IRQ-8 R-IRQ-16", "a trigger with BOOL signals where it is not 0",
      fires_by_bool, every, false, 0 },
    { "irq/%s-replaced", "R-IRQ-9", "an eventfd takes the place of the one before", replaced, every,
      false, 0 },
    { "irq/%s-others-stay", "R-IRQ-9", "setting one vector leaves the others", others_stay, many,
      false, 0 },
    { "irq/%s-taken-back", "R-IRQ-10", "EVENTFD without fds takes exactly those vectors back",
      taken_back, every, false, 0 },
    { "irq/%s-all-taken-back", "R-IRQ-6", "NONE without vectors takes all of them back",
      all_taken_back, every, false, 0 },
    { "irq/%s-nothing-to-take-back", "R-IRQ-6", "taking back nothing succeeds", disable_always,
      every, false, 0 },
    { "irq/%s-not-remembered", "R-IRQ-14", "a trigger without an eventfd is lost", not_remembered,
      every, false, 0 },
    { "irq/%s-mask-holds", "R-IRQ-14 R-IRQ-20", "a masked vector is signalled once, when unmasked",
      mask_holds, every, false, 0 },
    { "irq/%s-mask-by-bool", "R-IRQ-8 R-IRQ-20", "MASK with BOOL masks where it is not 0",
      mask_by_bool, many, false, 0 },
    { "irq/%s-unmask-by-eventfd", "R-IRQ-17", "an eventfd given with UNMASK unmasks",
      unmask_by_eventfd, every, false, 0 },
    { "irq/%s-past-count", "R-IRQ-5", "vectors past the last are refused", past_count, every, false,
      0 },
    { "irq/%s-count-zero", "R-IRQ-6", "no vectors are refused where they mean nothing", count_zero,
      every, false, 0 },
    { "irq/%s-full-counter", "R-IRQ-13", "a full eventfd does not stop the server", full_counter,
      every, false, 0 },
    { "irq/%s-no-eventfd", "R-IRQ-12", "what is no eventfd is refused, and closed", no_eventfd,
      every, false, 0 },
    { "irq/%s-apart-from-others", "R-IRQ-9", "each index has eventfds of its own", indexes_apart,
      every, false, 0 },
};

static const char *name_of(uint32_t index)
{
    static const char *const names[] = { "intx", "msi", "msi-x", "err", "req" };

    return index < OB_PCI_IRQS ? names[index] : NULL;
}

const struct family_table irq_families = { families, sizeof(families) / sizeof(families[0]),
                                           name_of, OB_PCI_IRQ_INTX };

static const struct entry entries[] = {
    CASE("irq/flag-combinations", "R-IRQ-4", "one kind of data and one action, or it is refused",
         flag_combinations),
    CASE("irq/undefined-flags", "R-IRQ-4", "undefined flags are refused", undefined_flags),
    CASE("irq/set-no-such", "R-IRQ-5", "an index past the IRQs cannot be set", no_such_index),
    CASE("irq/data-differs-from-count", "R-IRQ-7", "other data than it says is refused",
         data_differs),
    CASE("irq/fds-differ-from-count", "R-IRQ-11", "another number of fds is refused", fds_differ),
};

CASES(irq_cases, entries);
