# SPDX-License-Identifier: BSD-3-Clause
"""`outboard serve`, running or refusing to."""
import subprocess

from case import OUTBOARD

DEADLINE_S = 20


class Server:
    """A running `outboard serve`, from its start line on."""

    def __init__(self, *words, **popen):
        self.process = subprocess.Popen([OUTBOARD, "serve", *map(str, words)], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, **popen)
        self.start_line = self.process.stdout.readline()
        if not self.start_line:
            raise AssertionError(f"it did not start: {self.process.communicate()[1]}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self, signal_number=None):
        """Sends the signal; returns exit status, the rest of stdout, and stderr."""
        if signal_number is not None:
            self.process.send_signal(signal_number)
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err

    def wait_for_line(self, text):
        """Reads stderr up to a line that has text in it."""
        for line in self.process.stderr:
            if text in line:
                return line
        raise AssertionError(f"no line with '{text}'")


def serve(*words, **run):
    """Runs `outboard serve` that is expected to end by itself."""
    return subprocess.run([OUTBOARD, "serve", *map(str, words)], capture_output=True, text=True,
                          timeout=DEADLINE_S, **run)


def refused(status, sentence, *words, **run):
    """It ends with this status and one line on stderr that has the sentence in it."""
    done = serve(*words, **run)
    assert done.returncode == status, (done.returncode, done.stderr)
    assert done.stdout == "", done.stdout
    assert done.stderr.startswith("outboard serve") and done.stderr.count("\n") == 1, done.stderr
    assert sentence in done.stderr, done.stderr
