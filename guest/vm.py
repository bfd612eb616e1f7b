# SPDX-License-Identifier: BSD-3-Clause
"""A QEMU with the test guest in it, and a server process beside it.

    with Server("nvme", socket, image) as server, Vm(image_dir, ["-device", ...], log=path) as vm:
        print(vm.run("nvme list"))
        vm.qmp("device_del", id="disk")

QEMU inherits one end of a socket pair for each of its monitor, the guest's console and the channel to the guest's
init (see guest/init), so there are no paths to collide and its end is seen at once.
"""
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import time

TCG = ["-accel", "tcg,thread=multi", "-cpu", "max"]
KVM = ["-accel", "kvm", "-cpu", "max"]


class GuestError(Exception):
    """Something that had to work did not; says what, and shows the log's end."""


def tail(path, lines=25):
    try:
        text = pathlib.Path(path).read_text(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join("  | " + line.rstrip() for line in text.splitlines()[-lines:]) or "  | (empty)"


def stop(process, timeout_s=10):
    """Asks the process to end, then makes it. Returns its exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


class Server:
    """`outboard serve ...`, ready to be connected to. Its output is in the file LOG."""

    def __init__(self, outboard, name, path, *args, log):
        self.path, self.log = path, log
        with open(log, "ab") as out:
            start = out.tell()
            self.process = subprocess.Popen([outboard, "serve", name, path, *args], stdin=subprocess.DEVNULL,
                                            stdout=out, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 10
        while os.path.getsize(log) == start or not os.path.exists(path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise GuestError(f"outboard serve {name} did not start:\n{tail(log)}")
            time.sleep(0.01)

    def close(self):
        return stop(self.process)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Link:
    """A byte stream from QEMU, read with deadlines."""

    def __init__(self, vm, what):
        self.vm, self.what, self.buffer = vm, what, b""
        self.socket, self.inherited = socket.socketpair()

    def fill(self, deadline):
        ready = select.select([self.socket], [], [], max(0, deadline - time.monotonic()))[0]
        if not ready:
            raise TimeoutError(self.what)
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            raise self.vm.error(f"QEMU ended while it was used ({self.what})")
        self.buffer += data

    def send(self, data):
        try:
            self.socket.sendall(data)
        except BrokenPipeError:
            raise self.vm.error(f"QEMU ended before it was used ({self.what})") from None

    def line(self, deadline):
        while b"\n" not in self.buffer:
            self.fill(deadline)
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.decode(errors="replace").strip()

    def exactly(self, count, deadline):
        while len(self.buffer) < count:
            self.fill(deadline)
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data


class Vm:
    def __init__(self, image_dir, qemu_args=(), *, command=("qemu-system-x86_64",), log, accel=TCG, machine="q35",
                 cpus=2, memory_mib=512, shared_memory=True, append="", console=None, pass_fds=(),
                 boot_timeout_s=60):
        """COMMAND is what QEMU's options are appended to. LOG gets QEMU's messages and, unless CONSOLE names
        a chardev backend, the guest's console."""
        self.log, self.events, self.process = log, [], None
        self.agent, self.monitor = Link(self, "guest"), Link(self, "monitor")
        image_dir = pathlib.Path(image_dir)
        memory = (["-object", f"memory-backend-memfd,id=ram,size={memory_mib}M,share=on",
                   "-machine", f"{machine},memory-backend=ram"] if shared_memory else ["-machine", machine])
        fds = [link.inherited.fileno() for link in (self.agent, self.monitor)]
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [*command, *memory, *accel, "-m", f"{memory_mib}M", "-smp", str(cpus),
                 "-nodefaults", "-display", "none", "-no-reboot",
                 "-kernel", image_dir / "vmlinuz", "-initrd", image_dir / "initramfs",
                 "-append", f"console=ttyS0 panic=-1 quiet {append}".rstrip(),
                 "-chardev", console or f"file,id=console,path={log},append=on", "-serial", "chardev:console",
                 "-chardev", f"socket,id=agent,fd={fds[0]}", "-serial", "chardev:agent",
                 "-chardev", f"socket,id=qmp,fd={fds[1]}", "-mon", "chardev=qmp,mode=control", *qemu_args],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, pass_fds=[*fds, *pass_fds])
        for link in (self.agent, self.monitor):
            link.inherited.close()
        try:
            self._await_boot(time.monotonic() + boot_timeout_s)
        except BaseException:
            self.close()
            raise

    def _await_agent(self, deadline):
        try:
            while self.agent.line(deadline) != "ready":
                pass
        except TimeoutError:
            raise self.error("the guest did not boot in time") from None

    def _await_boot(self, deadline):
        try:
            self.monitor.line(deadline)  # the greeting
        except TimeoutError:
            raise self.error("QEMU did not start in time") from None
        self.qmp("qmp_capabilities")
        self._await_agent(deadline)

    def error(self, what):
        return GuestError(f"{what}\n{tail(self.log)}")

    def run(self, script, *, timeout_s=60, check=True):
        """Runs a shell script in the guest. Returns what it printed, or with check=False (status, output)."""
        deadline = time.monotonic() + timeout_s
        encoded = script.encode()
        self.agent.send(b"%d\n%s" % (len(encoded), encoded))
        try:
            status, length = map(int, self.agent.line(deadline).split())
            output = self.agent.exactly(length, deadline).decode(errors="replace")
        except TimeoutError:
            raise self.error(f"no answer from the guest within {timeout_s} s to: {script}") from None
        if not check:
            return status, output
        if status:
            raise self.error(f"in the guest, exit status {status}: {script}\n{output}")
        return output

    def qmp(self, command, timeout_s=20, **arguments):
        """Runs a command of QEMU's monitor. Returns its answer; an error answer raises GuestError."""
        deadline = time.monotonic() + timeout_s
        request = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self.monitor.send(json.dumps(request).encode() + b"\n")
        try:
            while True:
                message = json.loads(self.monitor.line(deadline))
                if "event" in message:
                    self.events.append(message)
                elif "error" in message:
                    raise GuestError(f"{command}: {message['error']['desc']}")
                else:
                    return message["return"]
        except TimeoutError:
            raise self.error(f"no answer from the monitor within {timeout_s} s to {command}") from None

    def wait_event(self, name, timeout_s=30):
        """The next event NAME of the monitor that was not returned before."""
        deadline = time.monotonic() + timeout_s
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            try:
                message = json.loads(self.monitor.line(deadline))
            except TimeoutError:
                raise self.error(f"no event {name} within {timeout_s} s") from None
            self.events.append(message)

    def reset(self, timeout_s=60):
        """Presses the machine's reset button, and waits until the guest is up again."""
        self.qmp("set-action", reboot="reset")
        self.qmp("system_reset")
        self._await_agent(time.monotonic() + timeout_s)
        self.qmp("set-action", reboot="shutdown")  # so that a panic ends QEMU

    def power_off(self, timeout_s=30):
        """Shuts the guest down and returns QEMU's exit status."""
        self.agent.send(b"11\npoweroff -f")
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self.error("the guest did not power off") from None

    def close(self):
        stop(self.process)
        for link in (self.agent, self.monitor):
            link.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
