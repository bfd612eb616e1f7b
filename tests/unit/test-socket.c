/* SPDX-License-Identifier: BSD-3-Clause */
/* Connecting and listening by path. */
#include "channel/channel.h"
#include "harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *path_of(const char *name)
{
    static char path[200];

    snprintf(path, sizeof(path), "%s/%s", test_tmpdir(), name);
    return path;
}

/* Entries of the test's directory. */
static int count_entries(void)
{
    DIR *dir = opendir(test_tmpdir());
    int count = -2;

    CHECK(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

static void connect_and_close(const char *path)
{
    int fd = ob_socket_connect(path, ob_deadline_ns(5000));

    CHECK(fd >= 0);
    CHECK_INT(fcntl(fd, F_GETFD), FD_CLOEXEC);
    close(fd);
}

/* What a server that was killed leaves behind. */
static void make_stale(const char *path)
{
    int fd = ob_socket_listen(path, 0600, 1);

    CHECK_INT(fd < 0 ? fd : 0, 0);
    close(fd);
}

/* What the files of sockets may be used for, and by whom, when they come into being. */
static unsigned modes_at_bind, binds;

int bind(int fd, const struct sockaddr *addr, socklen_t len)
{
    long rc = syscall(SYS_bind, fd, addr, len);
    struct stat st;

    if (rc == 0 && addr->sa_family == AF_UNIX &&
        stat(((const struct sockaddr_un *)addr)->sun_path, &st) == 0) {
        modes_at_bind |= st.st_mode & 07777;
        binds++;
    }
    return (int)rc;
}

TEST(never_open, "a-socket-is-nobodys-before-it-has-its-owner-and-permissions")
{
    const char *path = path_of("s");
    struct stat st;

    umask(0);
    for (unsigned mode = 0600; mode <= 0666; mode += 066) {
        int fd = ob_socket_listen_owned(path, mode, getuid(), getgid(), 4);
        CHECK(fd >= 0);
        CHECK_INT(stat(path, &st), 0);
        CHECK_INT(st.st_mode & 07777, mode);
        close(fd);
    }
    CHECK_INT(binds, 2);
    CHECK_INT(modes_at_bind, 0);
}

TEST(owner, "a-socket-gets-the-owner-that-is-asked-for-or-is-not-made")
{
    const char *path = path_of("s");
    struct stat st;
    int fd;

    if (geteuid() != 0)
        test_skip("only root can give files away");
    fd = ob_socket_listen_owned(path, 0660, 12345, (gid_t)-1, 4);
    CHECK(fd >= 0);
    CHECK_INT(stat(path, &st), 0);
    CHECK_INT(st.st_uid, 12345);
    CHECK_INT(st.st_gid, getegid());
    CHECK_INT(st.st_mode & 07777, 0660);
    close(fd);
    CHECK_INT(chmod(test_tmpdir(), 0777), 0);
    CHECK_INT(seteuid(12345), 0);
    CHECK_INT(unlink(path), 0);
    CHECK_INT(ob_socket_listen_owned(path, 0660, 0, (gid_t)-1, 4), -EPERM);
    CHECK_INT(seteuid(0), 0);
    CHECK_INT(count_entries(), 0);
}

TEST(listens, "listens-with-the-mode-and-nothing-else-left")
{
    const char *path = path_of("s");
    struct stat st;

    umask(077);
    for (unsigned mode = 0600; mode <= 0666; mode += 066) {
        int fd = ob_socket_listen(path, mode, 4);
        CHECK(fd >= 0);
        CHECK_INT(stat(path, &st), 0);
        CHECK(S_ISSOCK(st.st_mode));
        CHECK_INT(st.st_mode & 07777, mode);
        CHECK_INT(count_entries(), 1);
        CHECK_INT(fcntl(fd, F_GETFD), FD_CLOEXEC);
        CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
        connect_and_close(path);
        close(fd); /* the next round finds a stale file */
    }
}

TEST(relative, "path-without-a-directory")
{
    CHECK_INT(chdir(test_tmpdir()), 0);
    int fd = ob_socket_listen("here", 0600, 4);
    CHECK(fd >= 0);
    connect_and_close("here");
    connect_and_close(path_of("here"));
    CHECK_INT(count_entries(), 1);
    close(fd);
}

TEST(live, "live-server-is-left-alone")
{
    const char *path = path_of("s");
    int fd = ob_socket_listen(path, 0600, 0), queued;

    CHECK(fd >= 0);
    CHECK_INT(ob_socket_listen(path, 0600, 4), -EADDRINUSE);
    /* Also one whose backlog is full. */
    CHECK_INT(ob_socket_listen(path, 0600, 4), -EADDRINUSE);
    CHECK_INT(ob_socket_listen(path, 0600, 4), -EADDRINUSE);
    while ((queued = accept(fd, NULL, NULL)) >= 0)
        close(queued);
    connect_and_close(path);
    CHECK_INT(count_entries(), 1);
    close(fd);
}

TEST(other_kinds, "what-is-no-stream-socket-is-left-alone")
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    const char *path = path_of("s");
    struct stat st;

    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    close(fd);
    CHECK_INT(ob_socket_listen(path, 0600, 4), -ENOTSOCK);
    CHECK_INT(lstat(path, &st), 0);
    CHECK(S_ISREG(st.st_mode));
    unlink(path);
    CHECK_INT(mkdir(path, 0700), 0);
    CHECK_INT(ob_socket_listen(path, 0600, 4), -ENOTSOCK);
    rmdir(path);
    CHECK_INT(symlink("nowhere", path), 0);
    CHECK_INT(ob_socket_listen(path, 0600, 4), -ENOTSOCK);
    unlink(path);
    /* A datagram socket that somebody has open. */
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(strlen(path) < sizeof(addr.sun_path));
    memcpy(addr.sun_path, path, strlen(path) + 1);
    CHECK_INT(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    CHECK_INT(ob_socket_listen(path, 0600, 4), -EADDRINUSE);
    close(fd);
    CHECK_INT(count_entries(), 1);
}

TEST(bad_paths, "bad-paths-are-errors")
{
    char path[300];
    int64_t soon = ob_deadline_ns(5000);

    memset(path, 'x', sizeof(path));
    path[108] = '\0';
    CHECK_INT(ob_socket_listen(path, 0600, 4), -ENAMETOOLONG);
    CHECK_INT(ob_socket_connect(path, soon), -ENAMETOOLONG);
    CHECK_INT(ob_socket_listen("", 0600, 4), -ENOENT);
    CHECK_INT(ob_socket_connect("", soon), -ENOENT);
    CHECK_INT(ob_socket_listen(path_of(""), 0600, 4), -EISDIR);
    CHECK_INT(ob_socket_listen(path_of("no/s"), 0600, 4), -ENOENT);
    CHECK_INT(ob_socket_connect(path_of("s"), soon), -ENOENT);
    CHECK_INT(ob_socket_connect(test_tmpdir(), soon), -ECONNREFUSED);
    make_stale(path_of("stale"));
    CHECK_INT(ob_socket_connect(path_of("stale"), soon), -ECONNREFUSED);
    CHECK_INT(count_entries(), 1);
}

/* The longest path there can be, its length in its directory or in its name. */
TEST(longest_path, "longest-path-fits")
{
    char path[108];

    for (int in_name = 0; in_name < 2; in_name++) {
        memset(path, 'd', sizeof(path));
        memcpy(path, test_tmpdir(), strlen(test_tmpdir()));
        path[strlen(test_tmpdir())] = '/';
        path[107] = '\0';
        if (!in_name) {
            path[105] = '\0';
            CHECK_INT(mkdir(path, 0700), 0);
            path[105] = '/';
        }
        for (int round = 0; round < 2; round++) {
            int fd = ob_socket_listen(path, 0600, 4);
            CHECK(fd >= 0);
            CHECK_INT(ob_socket_listen(path, 0600, 4), -EADDRINUSE);
            connect_and_close(path);
            close(fd);
        }
        CHECK_INT(unlink(path), 0);
    }
}

/* Many processes start at the same path at once, where a dead server left its file: exactly one
 * stays, and it is the one that a client reaches. */
TEST_TIMEOUT(take_over, "one-of-many-takes-over", 120)
{
    enum { SERVERS = 8, ROUNDS = 40 };
    const char *path = path_of("s");

    for (int round = 0; round < ROUNDS; round++) {
        int start[2], results[2], done[2], winners = 0;
        pid_t pids[SERVERS];
        char byte;

        if (round % 2)
            make_stale(path);
        else
            unlink(path);
        CHECK_INT(pipe(start) | pipe(results) | pipe(done), 0);
        for (int i = 0; i < SERVERS; i++) {
            pids[i] = fork();
            if (pids[i] == 0) {
                close(start[1]);
                close(done[1]);
                (void)!read(start[0], &byte, 1);
                int rc = ob_socket_listen(path, 0600, 100); /* room for all probes */
                byte = (char)(rc >= 0 ? 'y' : rc == -EADDRINUSE ? 'n' : '?');
                (void)!write(results[1], &byte, 1);
                (void)!read(done[0], &byte, 1);
                _exit(0);
            }
        }
        close(start[0]);
        close(start[1]); /* all start now */
        for (int i = 0; i < SERVERS; i++) {
            CHECK_INT(read(results[0], &byte, 1), 1);
            CHECK(byte != '?');
            winners += byte == 'y';
        }
        CHECK_INT(winners, 1);
        connect_and_close(path);
        CHECK_INT(count_entries(), 1);
        close(done[1]);
        for (int i = 0; i < SERVERS; i++)
            CHECK_INT(waitpid(pids[i], NULL, 0), pids[i]);
        close(done[0]);
        close(results[0]);
        close(results[1]);
    }
}

TEST(connect_deadline, "connect-keeps-its-deadline-with-a-full-backlog")
{
    const char *path = path_of("s");
    int fd = ob_socket_listen(path, 0600, 0);
    int first = ob_socket_connect(path, ob_deadline_ns(5000));

    CHECK(fd >= 0 && first >= 0);
    int64_t start = test_now_ms();
    CHECK_INT(ob_socket_connect(path, ob_deadline_ns(100)), -ETIMEDOUT);
    CHECK(test_now_ms() - start >= 100);
    CHECK_INT(ob_socket_connect(path, ob_deadline_ns(0)), -ETIMEDOUT);
    CHECK_INT(ob_socket_connect(path, ob_now_ns() - 1), -ETIMEDOUT);
    CHECK(test_now_ms() - start < 10000);
    close(first);
    close(fd);
}

TEST(connect_waits, "connect-waits-for-room-in-the-backlog")
{
    const char *path = path_of("s");
    int fd = ob_socket_listen(path, 0600, 0);
    int first = ob_socket_connect(path, OB_NO_DEADLINE);

    CHECK(fd >= 0 && first >= 0);
    pid_t pid = fork();
    if (pid == 0)
        _exit(ob_socket_connect(path, ob_deadline_ns(20000)) >= 0 ? 0 : 1);
    /* Whether it already waits does not matter: it must come through. */
    int accepted = accept(fd, NULL, NULL), status;
    CHECK(accepted >= 0);
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
    close(accepted);
    close(first);
    close(fd);
}
