# SPDX-License-Identifier: BSD-3-Clause
"""Joins the terminal (or a pipe) at our standard input and output to a guest's console."""
import contextlib
import os
import select
import sys
import termios
import tty

LEAVE = b"\x1d"  # Ctrl-]
END_OF_INPUT = b"exit\n"  # Ctrl-D is lost when the shell changes the mode of its terminal


@contextlib.contextmanager
def raw_terminal():
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def join(console):
    """Returns when the guest is gone (True) or the person at the terminal pressed Ctrl-] (False)."""
    sources = [console, 0]
    with raw_terminal():
        while True:
            for source in select.select(sources, [], [])[0]:
                if source == 0:
                    data = os.read(0, 4096)
                    if LEAVE in data and sys.stdin.isatty():
                        return False
                    if not data:
                        sources.remove(0)
                    console.sendall(data or END_OF_INPUT)
                else:
                    data = console.recv(1 << 16)
                    if not data:
                        return True
                    os.write(1, data)
