/* SPDX-License-Identifier: BSD-3-Clause */
/* The sandbox of servers, part by part, each in a child that goes into it. */
#include "tools/sandbox.h"
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct sandbox_needs nothing = { .keeps_fd = -1, .reopens_fd = -1 };

/* What became of a child that ran this: its wait status. It ends without libc's help. */
static int in_child(void (*run)(void *), void *opaque)
{
    pid_t pid = fork();
    int status;

    CHECK(pid >= 0);
    if (pid == 0) {
        run(opaque);
        syscall(SYS_exit_group, 0);
    }
    CHECK_INT(waitpid(pid, &status, 0), pid);
    return status;
}

static void expect(const char *what, long got, long wanted)
{
    char line[120];
    int len = snprintf(line, sizeof(line), "%s: %ld, not %ld\n", what, got, wanted);

    if (got == wanted)
        return;
    (void)!write(STDERR_FILENO, line, (size_t)len);
    syscall(SYS_exit_group, 1);
}

static long rc_of(long rc)
{
    return rc < 0 ? -errno : rc;
}

/* Where the kernel has neither there is nothing to be tested. */
static void enter(int (*step)(const struct sandbox_needs *), const struct sandbox_needs *needs)
{
    int rc = step(needs);

    if (rc == -ENOSYS)
        syscall(SYS_exit_group, 77);
    expect("into the sandbox", rc, 0);
}

static void expect_exit_0(int status)
{
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        test_skip("this kernel has no such sandbox");
    CHECK_INT(status, 0);
}

/* ---- System calls ------------------------------------------------------------------------- */

struct call {
    const char *name;
    long number, args[6];
};

#define X32 0x40000000

static const struct call forbidden[] = {
    { "open", SYS_open, { (long)"/dev/null", O_RDONLY } },
    { "openat", SYS_openat, { AT_FDCWD, (long)"/dev/null", O_RDONLY } },
    { "openat2", SYS_openat2, { AT_FDCWD, (long)"/dev/null" } },
    { "creat", SYS_creat, { (long)"/dev/null" } },
    { "socket of IPv4", SYS_socket, { AF_INET, SOCK_STREAM } },
    { "socket of UNIX", SYS_socket, { AF_UNIX, SOCK_STREAM } },
    { "socketpair of another family", SYS_socketpair, { AF_INET, SOCK_STREAM } },
    { "socketpair that can send elsewhere",
      SYS_socketpair,
      { AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC } },
    { "connect", SYS_connect, { -1 } },
    { "bind", SYS_bind, { -1 } },
    { "execve", SYS_execve, { (long)"/bin/true" } },
    { "execveat", SYS_execveat, { -1 } },
    { "fork", SYS_fork, { 0 } },
    { "vfork", SYS_vfork, { 0 } },
    { "clone of a process", SYS_clone, { SIGCHLD } },
    { "clone of a thread", SYS_clone, { 0x10f00 } },
    { "clone3", SYS_clone3, { 0 } },
    { "kill", SYS_kill, { 0, 0 } },
    { "tgkill of another process", SYS_tgkill, { 1, 1, 0 } },
    { "ptrace", SYS_ptrace, { 0 } },
    { "process_vm_readv", SYS_process_vm_readv, { 1 } },
    { "pidfd_getfd", SYS_pidfd_getfd, { -1 } },
    { "prctl", SYS_prctl, { PR_GET_DUMPABLE } },
    { "seccomp", SYS_seccomp, { 0 } },
    { "io_uring_setup", SYS_io_uring_setup, { 1 } },
    { "io_uring_register", SYS_io_uring_register, { -1 } },
    { "bpf", SYS_bpf, { -1 } },
    { "userfaultfd", SYS_userfaultfd, { 0 } },
    { "memfd_create without seals", SYS_memfd_create, { (long)"x" } },
    { "memfd_create of huge pages",
      SYS_memfd_create,
      { (long)"x", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB } },
    { "ftruncate", SYS_ftruncate, { -1, 0 } },
    { "setuid", SYS_setuid, { 0 } },
    { "unshare", SYS_unshare, { 0 } },
    { "mount", SYS_mount, { 0 } },
    { "unlink", SYS_unlink, { (long)"/none" } },
    { "unlinkat", SYS_unlinkat, { -1, (long)"/none" } },
    { "renameat2", SYS_renameat2, { -1 } },
    { "chmod", SYS_chmod, { (long)"/none" } },
    { "mprotect", SYS_mprotect, { 0, 0, PROT_READ } },
    { "mmap of code",
      SYS_mmap,
      { 0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1 } },
    { "ioctl of a terminal", SYS_ioctl, { 0, TIOCSTI } },
    { "fcntl that sets an owner", SYS_fcntl, { 0, F_SETOWN, 1 } },
    { "sched_setaffinity of another thread", SYS_sched_setaffinity, { 1, 0 } },
    { "a call of x32", X32 | SYS_getpid, { 0 } },
    { "a call that there is not", 100000, { 0 } },
};

static void try_call(void *opaque)
{
    const struct call *call = opaque;
    const long *a = call->args;

    enter(sandbox_seccomp, &nothing);
    syscall(call->number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

TEST(forbidden_calls, "each-forbidden-call-ends-the-process-with-sigsys")
{
    for (size_t i = 0; i < sizeof(forbidden) / sizeof(forbidden[0]); i++) {
        int status = in_child(try_call, (void *)&forbidden[i]);

        if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
            test_skip("this kernel has no seccomp");
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS)
            test_fail(__FILE__, __LINE__, "%s: status 0x%x", forbidden[i].name, (unsigned)status);
    }
}

static void use_allowed(void *opaque)
{
    int fds[2], unread = -1;
    struct stat st;

    (void)opaque;
    enter(sandbox_seccomp, &nothing);
    expect("socketpair", rc_of(socketpair(AF_UNIX, SOCK_STREAM, 0, fds)), 0);
    expect("write", rc_of(write(fds[0], "abc", 3)), 3);
    expect("FIONREAD", rc_of(ioctl(fds[1], FIONREAD, &unread)), 0);
    expect("unread", unread, 3);
    expect("fstat", rc_of(fstat(fds[0], &st)), 0);
    expect("dup", rc_of(fcntl(fds[0], F_DUPFD_CLOEXEC, 0)) > fds[1], true);
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    expect("mmap", memory != MAP_FAILED, true);
    expect("munmap", rc_of(munmap(memory, 4096)), 0);
    expect("fdatasync", rc_of(fdatasync(fds[0])), -EINVAL);
}

TEST(allowed_calls, "annotated-calls-work-as-before")
{
    expect_exit_0(in_child(use_allowed, NULL));
}

static void *wait_and_open(void *opaque)
{
    uint64_t count;

    (void)!read(*(int *)opaque, &count, sizeof(count));
    syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY);
    return NULL;
}

static void open_in_a_thread(void *opaque)
{
    static int event;
    uint64_t one = 1;
    pthread_t thread;

    (void)opaque;
    event = eventfd(0, 0);
    expect("thread", pthread_create(&thread, NULL, wait_and_open, &event), 0);
    enter(sandbox_seccomp, &nothing);
    (void)!write(event, &one, sizeof(one));
    pthread_join(thread, NULL);
}

TEST(all_threads, "threads-that-were-there-before-are-held-to-it-too")
{
    int status = in_child(open_in_a_thread, NULL);

    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        test_skip("this kernel has no seccomp");
    CHECK(WIFSIGNALED(status));
    CHECK_INT(WTERMSIG(status), SIGSYS);
}

/* ---- Files -------------------------------------------------------------------------------- */

struct files {
    char dir[120], inside[160], outside[160], image[160];
    int image_fd;
};

static void make_file(char *path, size_t size, const char *dir, const char *name)
{
    int fd;

    snprintf(path, size, "%s/%s", dir, name);
    fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK_INT(write(fd, "x", 1), 1);
    close(fd);
}

static void make_files(struct files *f)
{
    snprintf(f->dir, sizeof(f->dir), "%s/d", test_tmpdir());
    CHECK_INT(mkdir(f->dir, 0700), 0);
    make_file(f->inside, sizeof(f->inside), f->dir, "inside");
    make_file(f->outside, sizeof(f->outside), test_tmpdir(), "outside");
    make_file(f->image, sizeof(f->image), test_tmpdir(), "image");
    f->image_fd = open(f->image, O_RDWR | O_CLOEXEC);
}

static void connect_abstract(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "\0outboard-no-such" };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    long rc = rc_of(connect(fd, (struct sockaddr *)&address, sizeof(address)));

    expect("connect to nobody", rc == -ECONNREFUSED || rc == -EPERM, true);
    close(fd);
}

static void expect_closed_files(const struct files *f)
{
    char data;

    expect("open for reading", rc_of(open(f->outside, O_RDONLY)), -EACCES);
    expect("open for writing", rc_of(open(f->outside, O_WRONLY)), -EACCES);
    expect("open a directory", rc_of(open("/", O_RDONLY)), -EACCES);
    expect("open a device", rc_of(open("/dev/null", O_RDWR)), -EACCES);
    expect("remove elsewhere", rc_of(unlink(f->outside)), -EACCES);
    expect("truncate", rc_of(truncate(f->outside, 0)) < 0, true);
    expect("read what was open before", rc_of(pread(f->image_fd, &data, 1, 0)), 1);
    expect("write it", rc_of(pwrite(f->image_fd, "y", 1, 0)), 1);
}

static void open_nothing(void *opaque)
{
    const struct files *f = opaque;
    char path[170];

    expect("no new privileges", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    enter(sandbox_landlock, &nothing);
    expect_closed_files(f);
    snprintf(path, sizeof(path), "%s/new", f->dir);
    expect("create", rc_of(open(path, O_CREAT | O_WRONLY, 0600)), -EACCES);
    expect("make a directory", rc_of(mkdir(path, 0700)), -EACCES);
    expect("remove", rc_of(unlink(f->inside)), -EACCES);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", f->image_fd);
    expect("open again", rc_of(open(path, O_RDONLY)), -EACCES);
    connect_abstract();
}

TEST(no_files, "landlock-alone-leaves-nothing-to-be-opened")
{
    struct files f = { .image_fd = -1 };

    make_files(&f);
    expect_exit_0(in_child(open_nothing, &f));
    CHECK_INT(access(f.inside, F_OK), 0);
    close(f.image_fd);
}

static void open_what_is_needed(void *opaque)
{
    const struct files *f = opaque;
    const struct sandbox_needs needs = { .keeps_fd = -1,
                                         .reopens_fd = f->image_fd,
                                         .removes = f->inside };
    char path[64];

    expect("no new privileges", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    enter(sandbox_landlock, &needs);
    enter(sandbox_seccomp, &needs);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", f->image_fd);
    expect("open again", rc_of(open(path, O_RDONLY)) >= 0, true);
    expect("open another one", rc_of(open(f->outside, O_RDONLY)), -EACCES);
    expect("remove elsewhere", rc_of(unlink(f->outside)), -EACCES);
    expect("remove", rc_of(unlink(f->inside)), 0);
}

TEST(needed_files, "the-image-is-opened-again-and-the-socket-removed-where-that-is-needed")
{
    struct files f = { .image_fd = -1 };

    make_files(&f);
    expect_exit_0(in_child(open_what_is_needed, &f));
    CHECK(access(f.inside, F_OK) != 0);
    CHECK_INT(access(f.outside, F_OK), 0);
    close(f.image_fd);
}

/* ---- Descriptors and capabilities --------------------------------------------------------- */

static void close_files(void *opaque)
{
    const int *fds = opaque;
    const struct sandbox_needs needs = { .keeps_fd = fds[1], .reopens_fd = -1 };
    struct stat st, null;

    expect("another stdin", dup2(fds[2], STDIN_FILENO), STDIN_FILENO);
    expect("closing", sandbox_close_fds(&needs), 0);
    expect("inherited", rc_of(fcntl(fds[0], F_GETFD)), -EBADF);
    expect("needed", rc_of(fcntl(fds[1], F_GETFD)), 0);
    expect("ours", rc_of(fcntl(fds[2], F_GETFD)), FD_CLOEXEC);
    expect("stdin", fstat(0, &st), 0);
    expect("null", stat("/dev/null", &null), 0);
    expect("is null", st.st_rdev == null.st_rdev, true);
}

TEST(inherited, "inherited-descriptors-are-closed-but-the-one-that-is-needed")
{
    int fds[] = { eventfd(0, 0), eventfd(0, 0), eventfd(0, EFD_CLOEXEC) };

    expect_exit_0(in_child(close_files, fds));
    for (size_t i = 0; i < 3; i++)
        close(fds[i]);
}

static void drop_capabilities(void *opaque)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[2];

    (void)opaque;
    expect("bounds", sandbox_bound(&nothing), 0);
    expect("dropping", sandbox_drop(&nothing), 0);
    expect("capget", syscall(SYS_capget, &header, data), 0);
    for (size_t i = 0; i < 2; i++)
        expect("capabilities", data[i].effective | data[i].permitted | data[i].inheritable, 0);
    expect("no new privileges", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
    if (geteuid() == 0)
        expect("bound", prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN, 0, 0, 0), 0);
}

TEST(capabilities, "no-capability-is-left")
{
    expect_exit_0(in_child(drop_capabilities, NULL));
}
