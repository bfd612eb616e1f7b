# SPDX-License-Identifier: BSD-3-Clause
"""Programs of other projects, from builds that environment variables name; without one a case is skipped.

    with peer_server(tmp, [program("OUTBOARD_SPDK", "bin/nvmf_tgt"), ...], tmp / "cntrl") as log:
        info(tmp / "cntrl")
"""
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time

from case import OUTBOARD, skip
from vm import stop


def program(variable, name):
    build = os.environ.get(variable)
    if not build:
        skip(f"{variable} does not name a build")
    path = pathlib.Path(build, name)
    if not path.exists():
        skip(f"there is no {path}")
    return path


def wait_until(condition, timeout_s, alive=lambda: True):
    deadline = time.monotonic() + timeout_s
    while not condition():
        if not alive():
            return False
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


def listens(path):
    """It is there some time before somebody listens on it."""
    lines = [line.split() for line in pathlib.Path("/proc/net/unix").read_text().splitlines()[1:]]
    return any(words[7:] == [str(path)] and int(words[3], 16) & 0x10000 for words in lines)


@contextlib.contextmanager
def peer_server(tmp, words, path, start_timeout_s=10):
    """Runs a server; when it listens, yields the path of its log."""
    log = tmp / f"{words[0].name}.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=tmp)
    try:
        if not wait_until(lambda: listens(path), start_timeout_s, lambda: process.poll() is None):
            skip(f"{words[0].name} does not start: {log.read_text().strip().splitlines()[-1:]}")
        yield log
    finally:
        stop(process)


@contextlib.contextmanager
def mortal_server(words, path):
    """Runs a server that ends with its client, or by a case of the conformance suite, again and again."""
    loop = 'path=$1; shift; while :; do rm -f "$path"; "$@"; done'
    shell = subprocess.Popen(["sh", "-c", loop, "sh", path, *words], stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(lambda: listens(path), 10)
        yield
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


def info(path):
    return json.loads(subprocess.run([OUTBOARD, "info", path, "--json"], stdout=subprocess.PIPE, check=True,
                                     timeout=30).stdout)


def check(path, least_passes, timeout_ms=500):
    """`outboard check` puts the server through all cases, whatever that does to it. Fewer passes than before mean that
    the suite, or our side of the wire, has become stricter than known peers bear."""
    done = subprocess.run([OUTBOARD, "check", path, "--json", "--seed", "1", "--timeout", str(timeout_ms)],
                          capture_output=True, text=True, timeout=240)
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, ""), done.stderr
    listed = subprocess.run([OUTBOARD, "check", "--list"], capture_output=True, text=True, check=True).stdout
    assert sum(report["summary"].values()) == len(report["cases"]) == len(listed.splitlines()), report["summary"]
    assert not [c for c in report["cases"] if "not run" in c.get("why", "")]
    assert report["summary"]["pass"] >= least_passes, report["summary"]
    print(report["summary"])
