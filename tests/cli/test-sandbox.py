#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What a server has given up when it serves."""
import ctypes
import errno
import os
import pathlib
import pwd
import re
import signal
import socket
import struct
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, OUTBOARD, ROOT, case, main, skip
from peer import DMA_MAP, SET_IRQS, Peer, Refused
from servers import Server, refused
from traced import call, dies_of, threads

GETPID, SOCKET, EXECVE, OPENAT, MPROTECT, IO_URING_SETUP = 39, 41, 59, 257, 10, 425
AF_INET = 2
CONFIG = 7
NOBODY = 65534
LANDLOCK_CREATE_RULESET, SECCOMP, PRCTL = 444, 317, 157

# What stays open beside standard files, by what /proc calls it.
ALL = ["anon_inode:[eventfd]"] * 4 + ["anon_inode:[eventpoll]", "anon_inode:[signalfd]"]
NVME = ["/memfd:nvme-doorbells (deleted)", "anon_inode:[timerfd]"]
HELD = {
    "gpio": [],
    "gpio --toggle-ms=1000": ["anon_inode:[timerfd]"],
    "edu": ["anon_inode:[timerfd]"],
    "null": ["/memfd:outboard-null (deleted)"],
    "nvme mem:1M": NVME,
    "nvme --aio=uring IMAGE": [*NVME, "IMAGE", "anon_inode:[io_uring]", "anon_inode:[eventfd]"],
    "nvme --aio=threads IMAGE": [*NVME, "IMAGE", "anon_inode:[eventfd]"],
    "nvme --state=STATE IMAGE": [*NVME, "IMAGE", "STATE", "anon_inode:[io_uring]", "anon_inode:[eventfd]"],
    "nvme --cache=none IMAGE": [*NVME, "IMAGE", "IMAGE", "anon_inode:[io_uring]", "anon_inode:[eventfd]"],
}


def status_of(pid, tid=None):
    """/proc/PID/status as a dictionary."""
    text = pathlib.Path(f"/proc/{pid}/task/{tid or pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines())


def files_of(pid):
    """What is behind each descriptor."""
    folder = pathlib.Path(f"/proc/{pid}/fd")
    return {int(fd.name): re.sub(r"^socket:.*", "socket", os.readlink(fd)) for fd in folder.iterdir()}


def command(words, tmp, image):
    words = words.replace("IMAGE", str(image)).replace("STATE", f"{tmp}/state")
    device, *rest = words.split()
    return [device, tmp / "s", *rest]


def make_image(tmp):
    image = tmp / "disk.img"
    image.write_bytes(bytes(1 << 20))
    return image


def dma_map(peer, address, size, fd):
    """The errno, or 0."""
    try:
        peer.ask(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, address, size), [fd])
    except Refused as why:
        return why.errno
    return 0


@case("every-device-holds-only-what-it-needs")
def _(tmp):
    image = make_image(tmp)
    for words, held in HELD.items():
        with Server(*command(words, tmp, image)) as server:
            files = files_of(server.process.pid)
            assert files.pop(0) == "/dev/null", files
            del files[1], files[2]
            names = {"IMAGE": str(image), "STATE": f"{tmp}/state"}
            expected = sorted(["socket", *ALL, *(names.get(name, name) for name in held)])
            assert sorted(files.values()) == expected, (words, files)
            assert server.end(signal.SIGTERM) == (0, "", f"outboard serve {words.split()[0]}: SIGTERM: stopping\n")


@case("every-thread-is-without-capabilities-and-behind-the-filter")
def _(tmp):
    image = make_image(tmp)
    for words in HELD:
        with Server(*command(words, tmp, image)) as server:
            tids = threads(server.process.pid)
            assert len(tids) == (10 if "threads" in words else 2), (words, tids)
            for tid in tids:
                status = status_of(server.process.pid, tid)
                for name in ("CapInh", "CapPrm", "CapEff", "CapAmb") + ("CapBnd",) * (os.geteuid() == 0):
                    assert int(status[name], 16) == 0, (words, name, status[name])
                assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), (words, status)


@case("a-server-that-was-taken-over-ends-at-the-first-forbidden-call")
def _(tmp):
    image = make_image(tmp)
    with Server("null", tmp / "s") as server:  # the call can be made at all
        assert call(server.process.pid, GETPID) == server.process.pid
        assert server.end(signal.SIGTERM)[0] == 0
    for words in ("null", "nvme --aio=threads IMAGE"):
        for number, *arguments in ((SOCKET, AF_INET, 1, 0), (OPENAT, -100, b"/etc/passwd", 0), (EXECVE, b"/bin/sh"),
                                   (MPROTECT, 0, 4096, 5), (IO_URING_SETUP, 8)):
            with Server(*command(words, tmp, image)) as server:
                tid = threads(server.process.pid)[-1]  # a worker, where there are some
                assert dies_of(tid, number, *arguments) == signal.SIGSYS, (words, number)


@case("sandbox-off-leaves-everything-as-it-was")
def _(tmp):
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing), \
            Server("null", tmp / "s", "--sandbox=off", pass_fds=[writing]) as server:
        status, ours = status_of(server.process.pid), status_of(os.getpid())
        for name in ("CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"):
            assert status[name] == ours[name], name
        assert files_of(server.process.pid)[writing].startswith("pipe:")
        assert server.end(signal.SIGTERM) == (0, "", "outboard serve null: SIGTERM: stopping\n")


@case("inherited-descriptors-are-closed-and-the-one-of-fd-stays")
def _(tmp):
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair()
    with os.fdopen(reading) as pipe, ours, theirs:
        with Server("null", "--fd", theirs.fileno(), pass_fds=[theirs.fileno(), writing]) as server:
            os.close(writing)
            assert pipe.read() == ""  # nobody has its other end any more
            assert files_of(server.process.pid)[theirs.fileno()] == "socket"
            theirs.close()
            with Peer(ours) as peer:
                assert len(peer.read(CONFIG, 0, 4)) == 4
            assert server.end()[0] == 0


@case("a-socket-as-standard-input-is-served")
def _(tmp):
    ours, theirs = socket.socketpair()
    with ours, Server("null", "--fd", "0", stdin=theirs) as server:
        theirs.close()
        with Peer(ours) as peer:
            assert len(peer.read(CONFIG, 0, 4)) == 4
        assert server.end()[0] == 0


@case("a-client-that-cuts-its-memory-is-let-go-and-the-next-is-served")
def _(tmp):
    ram, buffer = 1 << 20, 0x40000
    with Server("edu", tmp / "s") as server:
        memory = os.memfd_create("memory")
        os.truncate(memory, 1 << 20)
        with Peer(tmp / "s") as peer:
            assert dma_map(peer, ram, 1 << 20, memory) == 0
            os.truncate(memory, 0)
            peer.write(CONFIG, 4, struct.pack("<H", 6))  # memory, bus master
            for register, value in ((0x80, buffer), (0x88, ram), (0x90, 64), (0x98, 3)):  # from the device to memory
                peer.write(0, register, struct.pack("<Q", value))
            server.wait_for_line("client left: it cut the file behind its memory at 0x100000")
        os.close(memory)
        with Peer(tmp / "s") as peer:
            assert len(peer.read(CONFIG, 0, 4)) == 4
        assert server.end(signal.SIGTERM)[0] == 0


# ---- Kernels that cannot do all of it -------------------------------------------------------------------------------

class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def older_kernel(*missing):
    """For preexec_fn: from now on the kernel does not know these system calls, nor a filter by prctl()."""
    libc = ctypes.CDLL(None, use_errno=True)
    lines = [(0x20, 0, 0, 0)]  # load the number
    for number in missing:
        lines += [(0x15, 0, 1, number), (0x06, 0, 0, 0x50026)]  # if it is that: return ENOSYS
    if SECCOMP in missing:
        lines += [(0x15, 0, 3, PRCTL), (0x20, 0, 0, 16), (0x15, 0, 1, 22), (0x06, 0, 0, 0x50026)]  # PR_SET_SECCOMP
    lines += [(0x06, 0, 0, 0x7fff0000)]
    program = Program(len(lines), b"".join(struct.pack("<HBBI", *line) for line in lines))

    def install():
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program)):
            raise OSError(ctypes.get_errno(), "no filter")
    return install


@case("a-kernel-without-landlock-or-seccomp-is-warned-of")
def _(tmp):
    for missing, said in (([LANDLOCK_CREATE_RULESET], "landlock (Function not implemented)"),
                          ([SECCOMP], "seccomp (Function not implemented)"),
                          ([LANDLOCK_CREATE_RULESET, SECCOMP],
                           "landlock (Function not implemented), seccomp (Function not implemented)")):
        with Server("null", tmp / "s", preexec_fn=older_kernel(*missing)) as server:
            assert int(status_of(server.process.pid)["CapEff"], 16) == 0
            with Peer(tmp / "s") as peer:
                assert len(peer.read(CONFIG, 0, 4)) == 4
            status, _, err = server.end(signal.SIGTERM)
            assert status == 0 and err.startswith(f"outboard serve null: warning: the sandbox is without {said}\n"), err
        name = said.partition(" ")[0]
        refused(1, f"--sandbox=on: {name}: Function not implemented (without the option the server does without it)",
                "null", tmp / "s", "--sandbox=on", preexec_fn=older_kernel(*missing))
        assert not (tmp / "s").exists()


@case("wrong-sandbox-options-are-refused")
def _(tmp):
    refused(2, "--sandbox takes on or off, not 'maybe'", "null", tmp / "s", "--sandbox=maybe")
    refused(2, "there is no user 'no-such-user'", "null", tmp / "s", "--user=no-such-user")
    refused(2, "there is no group 'no-such-group'", "null", tmp / "s", "--user=root:no-such-group")
    refused(2, "--user takes USER or USER:GROUP, not ':0'", "null", tmp / "s", "--user=:0")
    refused(2, "user 4000000000 is in no list, so say which group: --user 4000000000:GROUP", "null", tmp / "s",
            "--user=4000000000")
    refused(2, "there is no user '4294967295'", "null", tmp / "s", "--user=4294967295:0")  # (uid_t)-1
    assert not (tmp / "s").exists()


# ---- Another user ---------------------------------------------------------------------------------------------------

def need_root():
    if os.geteuid() != 0:
        skip("only root can become another user")


@case("user-becomes-another-one-and-goes-on")
def _(tmp):
    need_root()
    tmp.chmod(0o755)
    image = make_image(tmp)
    image.chmod(0o600)
    nobody = pwd.getpwuid(NOBODY)
    for user, gid in ((nobody.pw_name, nobody.pw_gid), (f"{NOBODY}:0", 0), ("12345:54321", 54321)):
        for sandbox in ("on", "off"):
            with Server("nvme", tmp / "s", "--sandbox", sandbox, "--user", user, "--aio=threads", image) as server:
                for tid in threads(server.process.pid):
                    status = status_of(server.process.pid, tid)
                    uid = 12345 if user.startswith("1") else NOBODY
                    assert status["Uid"].split() == [str(uid)] * 4, status["Uid"]
                    assert (status["Gid"].split(), status["Groups"].split()) == ([str(gid)] * 4, []), status
                    assert int(status["CapEff"], 16) == 0
                    assert sandbox == "off" or int(status["CapBnd"], 16) == 0
                with Peer(tmp / "s") as peer:  # /proc/self is still ours: it tells eventfds
                    event = os.eventfd(0)
                    peer.ask(SET_IRQS, struct.pack("<5I", 20, 0x24, 4, 0, 1), [event])
                    os.close(event)
                status, _, err = server.end(signal.SIGTERM)
                assert status == 0 and "will stay behind at the end: this user may not remove it" in err, err
            assert (tmp / "s").exists()  # and the next server replaces it


@case("socket-is-removed-where-the-new-user-may")
def _(tmp):
    need_root()
    tmp.chmod(0o777)
    with Server("null", tmp / "s", "--user", NOBODY) as server:
        assert server.end(signal.SIGTERM) == (0, "", "outboard serve null: SIGTERM: stopping\n")
    assert not (tmp / "s").exists()


@case("who-is-not-root-becomes-nobody-else")
def _(tmp):
    need_root()
    tmp.chmod(0o777)
    if subprocess.run(["test", "-x", OUTBOARD], user=NOBODY).returncode != 0:
        skip(f"{OUTBOARD} is out of another user's reach")
    refused(1, "only root can become another user; start it as root, or without --user", "null", tmp / "s",
            "--user=root", user=NOBODY, group=NOBODY, extra_groups=[])
    assert not (tmp / "s").exists()
    with Server("null", tmp / "s", "--sandbox=on", f"--user={NOBODY}", user=NOBODY, group=NOBODY,
                extra_groups=[]) as server:
        status = status_of(server.process.pid)
        assert (int(status["CapEff"], 16), status["NoNewPrivs"], status["Seccomp"]) == (0, "1", "2"), status
        assert server.end(signal.SIGTERM)[0] == 0
    assert not (tmp / "s").exists()


# ---- Who may connect ------------------------------------------------------------------------------------------------

CONNECT = """
import sys
sys.path.insert(0, sys.argv[1])
from peer import Peer
with Peer(sys.argv[2]) as peer:
    peer.read(7, 0, 4)
"""


def connects(path, uid, gid=None):
    """Whether that user's process becomes a client; else what its connection fails with."""
    done = subprocess.run([sys.executable, "-c", CONNECT, ROOT / "tests/lib", path], user=uid, group=gid or uid,
                          extra_groups=[], stderr=subprocess.PIPE, text=True)
    return done.returncode == 0 or done.stderr.splitlines()[-1].partition(":")[0]


def need_reachable_tests():
    need_root()
    if subprocess.run(["test", "-r", ROOT / "tests/lib/peer.py"], user=NOBODY).returncode != 0:
        skip("the tests are out of another user's reach")


@case("socket-owner-may-connect-and-others-may-not")
def _(tmp):
    need_reachable_tests()
    tmp.chmod(0o755)
    for words, owner, mode in ((["--socket-owner=12345"], (12345, os.getegid()), 0o600),
                               (["--socket-owner=12345:54321", "--socket-mode=660"], (12345, 54321), 0o660),
                               (["--socket-owner=:54321", "--socket-mode=060"], (os.geteuid(), 54321), 0o060)):
        with Server("null", tmp / "s", *words) as server:
            there = (tmp / "s").stat()
            assert ((there.st_uid, there.st_gid), there.st_mode & 0o7777) == (owner, mode), words
            assert connects(tmp / "s", 12345) == (True if owner[0] == 12345 else "PermissionError"), words
            assert connects(tmp / "s", 777, 54321) == (True if mode & 0o060 else "PermissionError"), words
            assert connects(tmp / "s", 777) == "PermissionError", words
            assert server.end(signal.SIGTERM)[0] == 0


@case("allow-uid-takes-clients-of-these-users-only")
def _(tmp):
    need_reachable_tests()
    tmp.chmod(0o755)
    with Server("null", tmp / "s", "--socket-mode=666", "--allow-uid=12345", "--allow-uid", "root") as server:
        assert connects(tmp / "s", 12345) is True
        assert connects(tmp / "s", 0) is True
        assert connects(tmp / "s", 777) in ("ConnectionError", "ConnectionResetError", "BrokenPipeError")
        said = server.wait_for_line(" refused: ")
        assert re.fullmatch(r"outboard serve null: process \d+ refused: its user 777 is not allowed\n", said), said
        assert server.end(signal.SIGTERM)[0] == 0


@case("wrong-owners-and-users-are-refused")
def _(tmp):
    refused(2, "there is no user 'no-such-user'", "null", tmp / "s", "--socket-owner=no-such-user")
    refused(2, "there is no group ''", "null", tmp / "s", "--socket-owner=root:")
    refused(2, "--socket-owner takes USER, USER:GROUP or :GROUP, not ''", "null", tmp / "s", "--socket-owner=")
    refused(2, "--socket-owner is for a path", "null", "--fd", "0", "--socket-owner=root")
    refused(2, "there is no user '-1'", "null", tmp / "s", "--allow-uid=-1")
    refused(2, "--allow-uid can be given 16 times", "null", tmp / "s", *["--allow-uid=1"] * 17)
    if os.geteuid() == 0 and subprocess.run(["test", "-x", OUTBOARD], user=NOBODY).returncode == 0:
        tmp.chmod(0o777)
        refused(1, "you may not give a socket to that user or group: only root may", "null", tmp / "s",
                "--socket-owner=root", user=NOBODY, group=NOBODY, extra_groups=[])
    assert not list(tmp.iterdir())


# ---- What clients may do --------------------------------------------------------------------------------------------

@case("limits-of-the-clients-memory-are-kept-and-said")
def _(tmp):
    memory = os.memfd_create("memory")
    os.truncate(memory, 1 << 20)
    with Server("null", tmp / "s", "--max-dma-maps=2", "--max-dma-bytes=64K") as server:
        with Peer(tmp / "s") as peer:
            assert peer.capabilities["max_dma_maps"] == 2
            assert [dma_map(peer, 1 << 40, 65537, memory), dma_map(peer, 0, 65536, memory),
                    dma_map(peer, 1 << 40, 1, memory)] == [errno.ENOSPC, 0, errno.ENOSPC]
            said = server.wait_for_line(" is refused: ")
            assert said == ("outboard serve null: memory of the client at 0x10000000000 is refused: it is more than "
                            "this server keeps\n"), said
        assert server.end(signal.SIGTERM)[0] == 0
    os.close(memory)


@case("memory-in-a-file-of-a-disk-is-taken-with-dma-files-any")
def _(tmp):
    if subprocess.run(["stat", "-f", "-c", "%T", tmp], capture_output=True, text=True).stdout == "tmpfs\n":
        skip("here, temporary files are memory")
    for kind, expected in (("memory", errno.EPERM), ("any", 0)):
        with open(tmp / "memory", "wb+") as file, Server("null", tmp / "s", "--dma-files", kind) as server:
            file.truncate(1 << 20)
            with Peer(tmp / "s") as peer:
                assert dma_map(peer, 0, 65536, file.fileno()) == expected, kind
                if expected:
                    server.wait_for_line(": its file is not shared memory (tmpfs, hugetlbfs)")
            assert server.end(signal.SIGTERM)[0] == 0


@case("wrong-limits-are-refused")
def _(tmp):
    refused(2, "--max-dma-maps takes a number from 1 to 65535, not '0'", "null", tmp / "s", "--max-dma-maps=0")
    refused(2, "--max-dma-maps takes a number from 1 to 65535, not '65536'", "null", tmp / "s", "--max-dma-maps=65536")
    refused(2, "--max-dma-bytes takes a size such as 16G, not '16X'", "null", tmp / "s", "--max-dma-bytes=16X")
    refused(2, "--dma-files takes memory or any, not 'all'", "null", tmp / "s", "--dma-files=all")


# ---- The list of system calls ---------------------------------------------------------------------------------------

def annotated(folders):
    """The names of calls in the comments of the sources in these folders."""
    names = set()
    for folder in folders:
        for source in (ROOT / folder).rglob("*.c"):
            for comment in re.findall(r"/\* syscalls\S*: (.*?)\*/", source.read_text(), re.DOTALL):
                names |= set(re.findall(r"\b([a-z]\w+)\b(?!\(\)\))(?:\([^,]*?\)+)?(?:,|\s*$)", comment))
    return names


@case("the-list-of-calls-is-what-the-sources-say")
def _(tmp):
    listed = set(re.findall(r"^CALL\((\w+),", (BUILD / "tools/syscalls.inc").read_text(), re.MULTILINE))
    said = annotated(["proto", "channel", "server", "devices", "tools"])
    assert listed == said and {"recvmsg", "io_uring_enter", "mmap", "openat"} <= listed, listed ^ said


@case("annotations-that-mean-nothing-stop-the-build")
def _(tmp):
    source = tmp / "a.c"
    for text, sentence in (("/* syscalls: read, two words */", "no system call: 'two words'"),
                           ("/* syscalls: ioctl(1) */", "no system call: 'ioctl(1)'"),
                           ("/* syscalls: ioctl(1=X) */ /* syscalls: ioctl */", "ioctl is named with a condition and")):
        source.write_text(text)
        done = subprocess.run([ROOT / "tools/syscalls.py", source], capture_output=True, text=True)
        assert done.returncode == 1 and sentence in done.stderr, done
    source.write_text("/* syscalls[removes]: a(1&M=V),\n * b(0=f() 2&M=V) */ /* syscalls: read */")
    done = subprocess.run([ROOT / "tools/syscalls.py", source], capture_output=True, text=True, check=True)
    assert [line.partition(" /*")[0] for line in done.stdout.splitlines()[1:]] == [
        "CALL(a, NEED_REMOVES, 1, ARG(1, M, V))", "CALL(b, NEED_REMOVES, 2, ARG(0, UINT64_MAX, f()), ARG(2, M, V))",
        "CALL(read, NEED_ALWAYS, 0)"]


main()
