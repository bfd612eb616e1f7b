#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""`outboard serve`: what it prints, how it ends, what it refuses."""
import contextlib
import errno
import fcntl
import os
import pathlib
import signal
import socket
import stat
import struct
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import OUTBOARD, case, main, skip
from peer import DMA_MAP, DMA_WRITE, FLAG_REPLY, HEADER, SET_IRQS, Peer, Refused
from servers import DEADLINE_S, Server, refused, serve

NULL_REGISTERS = 0  # BAR 0 of the null device keeps what is written
CONFIG = 7
ERR, REQ = 3, 4
FEATURE, MIG_DATA_READ, MIG_DATA_WRITE = 16, 17, 18


@case("start-line-says-what-and-where")
def _(tmp):
    path = tmp / "s"
    with Server("null", path) as server:
        assert server.start_line == f"serving null (4 KiB of registers, 64 KiB of mappable memory) on {path}\n"
        assert stat.S_ISSOCK(path.stat().st_mode)


@case("without-arguments-lists-the-devices")
def _(tmp):
    done = serve()
    assert done.returncode == 0 and not done.stderr
    for name in ("nvme", "gpio", "edu", "null"):
        assert f"\n  {name} " in done.stdout, done.stdout


@case("wrong-command-lines-exit-2-and-make-no-socket")
def _(tmp):
    path = tmp / "s"
    refused(2, "there is no device 'gpoi'; did you mean 'gpio'? (see outboard serve --help)", "gpoi", path)
    refused(2, "there is no device 'toaster' (", "toaster", path)
    refused(2, "which device?", "--fd", "0")
    refused(2, "on which SOCKET? Give a path, or --fd N (see outboard serve gpio --help)", "gpio")
    refused(2, "SOCKET is empty", "gpio", "")
    refused(2, "it takes nothing but SOCKET and options, not 'more'", "gpio", path, "more")
    refused(2, "there is no option '--frobnicate'", "gpio", path, "--frobnicate=1")
    refused(2, "there is no option '-x'", "gpio", path, "-x")
    refused(2, "there is no option '--loopback'", "edu", path, "--loopback")
    refused(2, "option '--loopback' takes no value", "gpio", path, "--loopback=yes")
    refused(2, "option '--toggle-ms' needs a value", "gpio", path, "--toggle-ms")
    refused(2, "--toggle-ms takes a number from 1 to 3600000, not '0'", "gpio", path, "--toggle-ms", "0")
    refused(2, "not '10x'", "gpio", path, "--toggle-ms=10x")
    refused(2, "not '-1'", "edu", path, "--latency-ms=-1")
    refused(2, "not '0x1ffffffffffffffff'", "edu", path, "--dma-mask=0x1ffffffffffffffff")
    refused(2, "--fd takes the number of an open socket, not 'three'", "gpio", "--fd", "three")
    refused(2, "not '99999999999999999999'", "gpio", "--fd", "99999999999999999999")
    refused(2, "--fd and --socket-path exclude each other", "gpio", "--fd", "0", "--socket-path", path)
    refused(2, "--socket-mode takes permissions such as 660, not '888'", "gpio", path, "--socket-mode", "888")
    refused(2, "--spin-us takes 0 to 10000 microseconds, not '10001'", "gpio", path, "--spin-us", "10001")
    refused(2, "not '-1'", "gpio", path, "--spin-us=-1")
    refused(2, "not '1777'", "gpio", path, "--socket-mode=1777")
    refused(2, "--socket-mode is for a path", "gpio", "--fd", "0", "--socket-mode=600")
    assert not path.exists()


@case("options-and-operands-come-in-any-order")
def _(tmp):
    path = tmp / "s"
    for words in (("gpio", "--toggle-ms", "1000", path), ("gpio", path, "--toggle-ms=1000"),
                  ("--socket-path", path, "gpio", "--loopback"), ("gpio", f"--socket-path={path}"),
                  ("gpio", "--", path), ("nvme", "--lba", "4096", path, "mem:1M"),
                  ("nvme", "mem:1M", "--queues=2", "--socket-path", path), ("nvme", path, "--lba=512", "--", "mem:1M")):
        with Server(*words) as server:
            assert server.start_line.endswith(f" on {path}\n")
            assert server.end(signal.SIGTERM)[0] == 0


@case("sigterm-and-sigint-end-it-cleanly")
def _(tmp):
    path = tmp / "s"
    for number in (signal.SIGTERM, signal.SIGINT):
        for attached in (False, True):
            with Server("null", path) as server, contextlib.ExitStack() as stack:
                if attached:
                    stack.enter_context(Peer(path))
                status, out, err = server.end(number)
                assert (status, out) == (0, ""), (status, out, err)
                assert f"outboard serve null: {number.name}: stopping\n" in err, err
                assert not path.exists()


@case("sigusr1-asks-to-be-unplugged-and-sigusr2-reports-an-error")
def _(tmp):
    operands = {"nvme": ["mem:1M"]}
    for name in ("nvme", "gpio", "edu", "null"):
        path = tmp / name
        with Server(name, path, *operands.get(name, [])) as server:
            for number, index, told, nobody in (
                    (signal.SIGUSR1, REQ, "SIGUSR1: asked the client to unplug", "SIGUSR1: there is no client"),
                    (signal.SIGUSR2, ERR, "SIGUSR2: reported an unrecoverable error", "SIGUSR2: there is no client")):
                server.process.send_signal(number)
                server.wait_for_line(nobody)
                with Peer(path) as peer:
                    server.process.send_signal(number)  # it does not listen for that
                    server.wait_for_line(nobody)
                    event = os.eventfd(0, os.EFD_NONBLOCK)
                    peer.ask(SET_IRQS, struct.pack("<5I", 20, 0x24, index, 0, 1), [event])
                    server.process.send_signal(number)
                    server.wait_for_line(told)
                    assert os.eventfd_read(event) == 1
                    os.close(event)
            assert server.end(signal.SIGTERM)[0] == 0


@case("sigint-ends-a-background-job-of-a-shell")
def _(tmp):
    with Server("null", tmp / "s", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as server:
        assert server.end(signal.SIGINT)[0] == 0


@case("stale-socket-is-taken-over")
def _(tmp):
    path = tmp / "s"
    with Server("null", path) as server:
        assert server.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert path.exists()
    with Server("null", path) as server:
        with Peer(path) as peer:
            peer.write(NULL_REGISTERS, 0, b"new")
            assert peer.read(NULL_REGISTERS, 0, 3) == b"new"
        assert server.end(signal.SIGTERM)[0] == 0
    assert not path.exists()


@case("live-socket-is-refused-and-goes-on")
def _(tmp):
    path = tmp / "s"
    with Server("null", path) as server, Peer(path) as peer:
        refused(1, f"process {server.process.pid} (outboard) listens on '{path}'; stop it, or choose another path",
                "gpio", path)
        assert path.exists()
        peer.write(NULL_REGISTERS, 8, b"still here")
        assert peer.read(NULL_REGISTERS, 8, 10) == b"still here"


@case("impossible-paths-say-what-to-do")
def _(tmp):
    plain = tmp / "file"
    plain.write_text("precious")
    refused(1, f"'{plain}' is there and not a socket; remove it, or choose another path", "gpio", plain)
    assert plain.read_text() == "precious"
    refused(1, f"'{plain}' is not a directory", "gpio", plain / "s")
    refused(1, f"there is no directory '{tmp}/none'; make it first: mkdir -p '{tmp}/none'", "gpio", tmp / "none/s")
    name = "n" * (108 - len(str(tmp)) - 1)
    refused(1, "the path of a socket has at most 107 bytes, not 108; use a shorter one", "gpio", tmp / name)
    with Server("gpio", tmp / name[1:]) as server:
        assert server.end(signal.SIGTERM)[0] == 0
    assert [p.name for p in tmp.iterdir()] == ["file"]


@case("directory-without-permission-is-refused")
def _(tmp):
    if os.geteuid() != 0:
        skip("only root can become another user")
    tmp.chmod(0o711)
    nobody = 65534
    if subprocess.run(["test", "-x", OUTBOARD], user=nobody).returncode != 0:
        skip(f"{OUTBOARD} is out of another user's reach")
    refused(1, f"you may not make a socket in '{tmp}'", "gpio", tmp / "s", user=nobody)


@case("socket-mode-sets-the-permissions")
def _(tmp):
    path = tmp / "s"
    for words, mode in (((), 0o600), (("--socket-mode", "660"), 0o660)):
        with Server("null", path, *words) as server:
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert server.end(signal.SIGTERM)[0] == 0


@case("connected-fd-is-served-until-its-client-leaves")
def _(tmp):
    ours, theirs = socket.socketpair()
    with theirs, Server("null", "--fd", theirs.fileno(), pass_fds=[theirs.fileno()]) as server:
        assert server.start_line.endswith(f" on file descriptor {theirs.fileno()}\n")
        theirs.close()
        with Peer(ours) as peer:
            assert len(peer.read(CONFIG, 0, 4)) == 4
        status, out, err = server.end()
        assert (status, out) == (0, ""), (status, out, err)


@case("listening-fd-serves-one-client-after-the-other")
def _(tmp):
    path = tmp / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        with Server("null", f"--fd={listener.fileno()}", pass_fds=[listener.fileno()]) as server:
            for _ in range(2):
                with Peer(path) as peer:
                    assert len(peer.read(CONFIG, 0, 4)) == 4
            assert server.end(signal.SIGTERM)[0] == 0
    assert path.exists(), "a socket it did not make is not its to remove"


@case("unusable-fd-is-refused")
def _(tmp):
    refused(1, "file descriptor 3 is not open", "gpio", "--fd", "3")  # the first that it opens itself
    refused(1, "file descriptor 77 is not open; who starts the server must pass it on", "gpio", "--fd", "77")
    with open(tmp / "file", "w") as plain:
        refused(1, f"file descriptor {plain.fileno()} is not a socket", "gpio", "--fd", plain.fileno(),
                pass_fds=[plain.fileno()])


@case("second-client-is-refused-while-the-first-is-there")
def _(tmp):
    path = tmp / "s"
    with Server("null", path), Peer(path) as first:
        try:
            Peer(path).close()
            raise AssertionError("the second client was taken")
        except Refused as why:
            assert why.errno == errno.EBUSY, why
        first.write(NULL_REGISTERS, 0, b"mine")
        assert first.read(NULL_REGISTERS, 0, 4) == b"mine"


FLOOD = """
import socket, sys
silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
for connection in silent:
    connection.connect(sys.argv[1])
silent[0].settimeout(10)
assert silent[0].recv(1) == b"", "the first of them is still open"
"""


@case("a-process-that-floods-it-with-connections-closes-nobody-elses")
def _(tmp):
    with Server("null", tmp / "s") as server, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(tmp / "s"))
        subprocess.run([sys.executable, "-c", FLOOD, tmp / "s"], check=True, timeout=DEADLINE_S)
        with Peer(connection) as peer:
            assert len(peer.read(CONFIG, 0, 4)) == 4
        assert server.end(signal.SIGTERM)[0] == 0


@case("device-outlives-its-clients-and-each-is-logged")
def _(tmp):
    path = tmp / "s"
    with Server("null", path) as server:
        with Peer(path) as peer:
            peer.write(NULL_REGISTERS, 4092, b"kept")
            server.wait_for_line("client attached")
        server.wait_for_line("client left")
        with Peer(path) as peer:
            assert peer.read(NULL_REGISTERS, 4092, 4) == b"kept"
            server.wait_for_line("client attached")


def set_state(peer, state):
    peer.ask(FEATURE, struct.pack("<IIII", 16, 1 << 17 | 2, state, 0))


def move_disk(tmp, image):
    """From one server to another, with a change of mind on the way."""
    running, stop_copy, resuming = 2, 3, 4
    with Server("nvme", tmp / "a", image) as a, Server("nvme", tmp / "b", "--incoming", image) as b:
        with Peer(tmp / "a") as source, Peer(tmp / "b") as target:
            set_state(source, stop_copy)
            state = b""
            while True:
                reply = source.ask(MIG_DATA_READ, struct.pack("<II", 4104, 4096))
                state += reply[8:]
                if len(reply) < 4104:
                    break
            set_state(target, resuming)
            for at in range(0, len(state), 4096):
                piece = state[at:at + 4096]
                target.ask(MIG_DATA_WRITE, struct.pack("<II", 8 + len(piece), len(piece)) + piece)
            set_state(source, running)  # called off
            try:
                set_state(target, running)
                raise AssertionError("both run")
            except Refused as why:
                assert why.errno == errno.EBUSY, why
            b.wait_for_line(f"{image} is in use by another process")
            set_state(source, stop_copy)
            set_state(target, running)
        refused(1, "is in use by another process", "nvme", tmp / "c", image)
        assert b.end(signal.SIGTERM)[0] == 0
        assert a.end(signal.SIGTERM)[0] == 0


def make_disk(tmp):
    image = tmp / "disk.img"
    image.write_bytes(bytes(1 << 20))
    return image


@case("disk-moves-between-two-processes-with-one-image")
def _(tmp):
    move_disk(tmp, make_disk(tmp))


@case("disk-moves-between-two-processes-with-one-block-device")
def _(tmp):
    made = subprocess.run(["losetup", "--find", "--show", make_disk(tmp)], capture_output=True, text=True)
    if made.returncode != 0:
        skip(f"no loop device: {made.stderr.strip()}")
    try:
        move_disk(tmp, made.stdout.strip())
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@case("unread-stderr-does-not-stop-the-device")
def _(tmp):
    path = tmp / "s"
    with Server("null", path, "--verbose") as server:
        capacity = fcntl.fcntl(server.process.stderr, fcntl.F_GETPIPE_SZ)
        with Peer(path) as peer:
            for _ in range(capacity // len("outboard serve null: REGION_READ refused: .\n") + 1):
                try:
                    peer.read(CONFIG, 1 << 20, 4)
                except Refused:
                    continue
                raise AssertionError("there is no such place")
            assert len(peer.read(CONFIG, 0, 4)) == 4
        assert server.end(signal.SIGTERM)[0] == 0


@case("sigterm-ends-a-disk-whose-guest-has-many-commands-and-answers-no-dma", 120)
def _(tmp):
    queue, entries, identify = 0x10000, 64, 6
    command = struct.pack("<BBHI16xQQI20x", identify, 0, 1, 0, 0x40000, 0, 1)  # the controller; data to 0x40000
    with Server("nvme", tmp / "s", "mem:1M") as server, Peer(tmp / "s") as guest:
        guest.ask(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, 1 << 20))  # by message
        guest.write(CONFIG, 4, struct.pack("<H", 6))  # memory, bus master
        for register, value in ((0x24, 63 << 16 | 63), (0x28, queue), (0x30, queue * 2), (0x14, 1)):
            guest.write(0, register, struct.pack("<I", value))
        guest.write(0, 0x1000, struct.pack("<I", entries - 1))
        while True:  # it gets its commands, and no answer to what they write
            msg_id, cmd, size, _, _ = HEADER.unpack(guest.receive(HEADER.size))
            payload = guest.receive(size - HEADER.size)
            if cmd == DMA_WRITE:
                break
            guest.socket.sendall(HEADER.pack(msg_id, cmd, HEADER.size + 16 + 64, FLAG_REPLY, 0) + payload[:16] + command)
        assert server.end(signal.SIGTERM)[0] == 0


@case("closed-stdout-is-not-mistaken-for-a-socket")
def _(tmp):
    ours, theirs = socket.socketpair()
    with subprocess.Popen([OUTBOARD, "serve", "null", "--fd", str(theirs.fileno())], stderr=subprocess.PIPE,
                          pass_fds=[theirs.fileno()], preexec_fn=lambda: os.close(1)) as process:
        theirs.close()
        with Peer(ours) as peer:
            assert len(peer.read(CONFIG, 0, 4)) == 4
        _, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, err


main()
