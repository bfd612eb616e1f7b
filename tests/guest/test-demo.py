#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""`make demo` and `make shell`, that is guest/demo."""
import codecs
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import termios

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, ROOT, case, main  # noqa: E402

DEMO = ROOT / "guest/demo"
TIMEOUT_S = 240


def start(tmp, *args, build=BUILD):
    return subprocess.Popen([DEMO, "--build", build, *args], text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ, TMPDIR=str(tmp)))


def read_until(stream, pattern):
    text = ""
    while not re.search(pattern, text):
        character = stream.read(1)
        assert character, text
        text += character
    return text


@case("demo-finds-one-checksum-everywhere", TIMEOUT_S)
def _(tmp):
    process = start(tmp)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "All is well" in output and "the same checksum in the image" in output, output
    assert not list(tmp.iterdir())


@case("interrupted-demo-leaves-nothing", TIMEOUT_S)
def _(tmp):
    process = start(tmp)
    output = read_until(process.stdout, r"partition, format")
    server = int(re.search(r"process (\d+)", output)[1])
    assert os.path.exists(f"/proc/{server}")
    process.send_signal(signal.SIGINT)
    output += process.communicate()[0]
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert not os.path.exists(f"/proc/{server}")
    assert not list(tmp.iterdir())


@case("failed-demo-says-why", TIMEOUT_S)
def _(tmp):
    (tmp / "tools").mkdir()
    (tmp / "guest").symlink_to(BUILD / "guest")
    outboard = tmp / "tools/outboard"
    outboard.write_text(f'#!/bin/sh\n[ "$1" != serve ] || {{ echo the disk is gone; exit 1; }}\n'
                        f'exec "{BUILD}/tools/outboard" "$@"\n')
    outboard.chmod(0o755)
    process = start(tmp, build=tmp)
    output, _ = process.communicate()
    assert process.returncode == 1, output
    assert "outboard serve nvme did not start" in output and "the disk is gone" in output, output
    assert not list(tmp.glob("outboard-demo-*"))


@case("shell-runs-what-it-is-given", TIMEOUT_S)
def _(tmp):
    process = start(tmp, "--shell")
    output, _ = process.communicate("nvme list-ns /dev/nvme0\necho six times seven is $((6 * 7))\n")
    assert process.returncode == 0, output
    assert "six times seven is 42" in output and "0x1" in output, output
    assert not list(tmp.iterdir())


@case("shell-on-a-terminal-ends-with-its-key", TIMEOUT_S)
def _(tmp):
    ours, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    process = subprocess.Popen([DEMO, "--build", BUILD, "--shell"], stdin=terminal, stdout=terminal,
                               stderr=subprocess.PIPE, env=dict(os.environ, TMPDIR=str(tmp)))
    os.close(terminal)  # so that the demo's end is seen
    with open(ours, "rb+", buffering=0) as keyboard:
        screen = codecs.getreader("utf-8")(keyboard, errors="replace")
        read_until(screen, "guest# ")
        keyboard.write(b"echo six times seven is $((6*7))\r")
        read_until(screen, "six times seven is 42")
        keyboard.write(b"\x1d")  # Ctrl-]
        read_until(screen, "The guest is gone")
        assert process.wait(30) == 0, process.stderr.read()
        assert termios.tcgetattr(ours) == before
    assert not list(tmp.iterdir())


main()
