/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Survives a client that cuts the file behind memory which is mapped here. Touching what is gone
 * raises SIGBUS; the handler puts zeroed memory in the place of the whole mapping, the access goes
 * on, and the server lets the client go when it notices (ob_guard_hit).
 *
 * The slots are for all servers of the process. They are changed under the lock; the handler, which
 * may run in any thread at any time, reads them without: base is written last and cleared first,
 * and a slot whose base changed while it was read is not the one that the faulting thread is using.
 * A SIGBUS that is not ours goes to whoever handled it before.
 */
#include "server/internal.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>

struct slot {
    uintptr_t base; /* 0: free */
    size_t length;
    bool hit;
    uint32_t next_free; /* index + 1 */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct slot slots[OB_DMA_MAPS_MAX];
static uint32_t used, first_free; /* slots ever used; index + 1 of a free one among them */
static unsigned hits;
static bool installed;
static struct sigaction previous;

static bool replace(struct slot *slot, uintptr_t at)
{
    uintptr_t base = __atomic_load_n(&slot->base, __ATOMIC_ACQUIRE);
    size_t length = __atomic_load_n(&slot->length, __ATOMIC_ACQUIRE);

    if (base == 0 || at < base || at - base >= length ||
        __atomic_load_n(&slot->base, __ATOMIC_ACQUIRE) != base)
        return false;
    /* cppcheck-suppress leakReturnValNotUsed; with MAP_FIXED it is base */
    if (mmap((void *)base, length, PROT_READ | PROT_WRITE,
             MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED)
        return false;
    __atomic_store_n(&slot->hit, true, __ATOMIC_RELAXED);
    __atomic_fetch_add(&hits, 1, __ATOMIC_RELEASE);
    return true;
}

/* syscalls: mmap(2&PROT_EXEC=0), rt_sigaction, rt_sigreturn, getpid, gettid, tgkill(0=getpid()) */
static void on_sigbus(int sig, siginfo_t *info, void *context)
{
    uint32_t count = __atomic_load_n(&used, __ATOMIC_ACQUIRE);
    int saved = errno;
    bool done = false;

    (void)context;
    if (info->si_code == BUS_ADRERR)
        for (uint32_t i = 0; i < count && !done; i++)
            done = replace(&slots[i], (uintptr_t)info->si_addr);
    if (!done) {
        /* The access is repeated, and fails as it would have without us; what somebody sent with
         * kill() has to be sent again. */
        sigaction(SIGBUS, &previous, NULL);
        if (info->si_code <= 0)
            raise(sig);
    }
    errno = saved;
}

static void install_locked(void)
{
    struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK };

    if (installed)
        return;
    sigemptyset(&action.sa_mask);
    installed = sigaction(SIGBUS, &action, &previous) == 0;
}

int ob_guard_add(void *base, size_t length)
{
    int index = -1;

    pthread_mutex_lock(&lock);
    install_locked();
    if (first_free) {
        index = (int)first_free - 1;
        first_free = slots[index].next_free;
    } else if (used < OB_DMA_MAPS_MAX) {
        index = (int)used;
        __atomic_store_n(&used, used + 1, __ATOMIC_RELEASE);
    }
    if (index >= 0) {
        struct slot *slot = &slots[index];

        __atomic_store_n(&slot->hit, false, __ATOMIC_RELAXED);
        __atomic_store_n(&slot->length, length, __ATOMIC_RELAXED);
        __atomic_store_n(&slot->base, (uintptr_t)base, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&lock);
    return index;
}

void ob_guard_del(int index)
{
    if (index < 0)
        return;
    pthread_mutex_lock(&lock);
    __atomic_store_n(&slots[index].base, 0, __ATOMIC_RELEASE);
    slots[index].next_free = first_free;
    first_free = (uint32_t)index + 1;
    pthread_mutex_unlock(&lock);
}

bool ob_guard_hit(int index)
{
    return index >= 0 && __atomic_load_n(&slots[index].hit, __ATOMIC_RELAXED);
}

unsigned ob_guard_hits(void)
{
    return __atomic_load_n(&hits, __ATOMIC_ACQUIRE);
}
