/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Descriptors, capabilities and landlock (see sandbox.h). There are no libc functions for most of
 * it. What the headers of an older kernel do not have is defined here: the running one may have it.
 */
#include "sandbox.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- Descriptors -------------------------------------------------------------------------- */

static void close_inherited(DIR *fds, int keeps_fd)
{
    struct dirent *entry;

    while ((entry = readdir(fds))) {
        int fd = (int)strtol(entry->d_name, NULL, 10), flags = fcntl(fd, F_GETFD);

        if (fd > STDERR_FILENO && fd != keeps_fd && flags >= 0 && !(flags & FD_CLOEXEC))
            close(fd);
    }
}

int sandbox_close_fds(const struct sandbox_needs *needs)
{
    DIR *fds = opendir("/proc/self/fd"); /* close-on-exec, too */
    int null, rc = 0;

    if (!fds)
        return errno == ENOENT ? -ENOSYS : -errno;
    close_inherited(fds, needs->keeps_fd);
    closedir(fds);
    if (needs->keeps_fd == STDIN_FILENO)
        return 0;
    null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null < 0 || dup2(null, STDIN_FILENO) < 0)
        rc = -errno;
    if (null >= 0)
        close(null);
    return rc;
}

/* ---- Capabilities ------------------------------------------------------------------------- */

int sandbox_bound(const struct sandbox_needs *needs)
{
    (void)needs;
    /* EPERM: it takes CAP_SETPCAP, and who has not even that gets nothing out of the set. */
    for (unsigned long cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EPERM)
            return -errno;
    return 0;
}

int sandbox_drop(const struct sandbox_needs *needs)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { 0 };

    (void)needs;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 ||
        syscall(SYS_capset, &header, none) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    return 0;
}

/* ---- Landlock ----------------------------------------------------------------------------- */

#define FS_EXECUTE_TO_MAKE_SYM  0x1fffu
#define FS_REFER                0x2000u /* since ABI 2 */
#define FS_TRUNCATE             0x4000u /* 3 */
#define NET_BIND_AND_CONNECT    0x3u    /* 4 */
#define FS_IOCTL_DEV            0x8000u /* 5 */
#define SCOPE_SOCKET_AND_SIGNAL 0x3u    /* 6 */

/* struct landlock_ruleset_attr as it is since ABI 6. */
struct ruleset {
    uint64_t handled_access_fs, handled_access_net, scoped;
};

/* What it handles is denied but for the rules. The size that an ABI knows ends with what it has. */
static size_t fill_ruleset(struct ruleset *ruleset, long abi)
{
    *ruleset = (struct ruleset){
        .handled_access_fs = FS_EXECUTE_TO_MAKE_SYM | (abi >= 2 ? FS_REFER : 0) |
                             (abi >= 3 ? FS_TRUNCATE : 0) | (abi >= 5 ? FS_IOCTL_DEV : 0),
        .handled_access_net = abi >= 4 ? NET_BIND_AND_CONNECT : 0,
        .scoped = abi >= 6 ? SCOPE_SOCKET_AND_SIGNAL : 0,
    };
    return (abi >= 6 ? 3 : abi >= 4 ? 2 : 1) * sizeof(uint64_t);
}

static int allow(int ruleset, int fd, uint64_t access)
{
    const struct landlock_path_beneath_attr rule = { .allowed_access = access, .parent_fd = fd };

    return syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0
               ? -errno
               : 0;
}

/* A file is removed from its directory, so that is what the rule is about. */
static int allow_removal(int ruleset, const char *path)
{
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int fd, rc;

    snprintf(dir, sizeof(dir), "%.*s.", slash ? (int)(slash + 1 - path) : 0, path);
    fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno == EACCES ? 0 : -errno; /* then it cannot be removed anyway */
    rc = allow(ruleset, fd, LANDLOCK_ACCESS_FS_REMOVE_FILE);
    close(fd);
    return rc;
}

int sandbox_landlock(const struct sandbox_needs *needs)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    struct ruleset attr;
    int ruleset, rc = 0;

    if (abi < 0)
        return errno == EOPNOTSUPP ? -ENOSYS : -errno; /* switched off by the boot command line */
    ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, fill_ruleset(&attr, abi), 0);
    if (ruleset < 0)
        return -errno;
    if (needs->removes)
        rc = allow_removal(ruleset, needs->removes);
    if (rc == 0 && needs->reopens_fd >= 0)
        rc = allow(ruleset, needs->reopens_fd, LANDLOCK_ACCESS_FS_READ_FILE);
    if (rc == 0 && syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
        rc = -errno;
    close(ruleset);
    return rc;
}
