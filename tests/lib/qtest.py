# SPDX-License-Identifier: BSD-3-Clause
"""A QEMU with the plug-in loaded, driven from outside: qtest plays the guest's accesses, QMP the user.

    with Qemu(tmp, "-device", f"vfio-user-pci,id=dev,addr=4,socket={path}") as vm:
        pci = vm.pci(4)
        pci.config_read(0, 4); pci.assign(0); pci.bar_read(0, 0x20, 4)
        vm.qmp("device_del", id="dev")
"""
import json
import os
import pathlib
import socket
import subprocess
import threading
import time

from case import OUTBOARD, skip

DEADLINE_S = 30
COMMAND, STATUS, BAR0, ROM_BAR, CAP_POINTER, INTERRUPT_PIN = 0x04, 0x06, 0x10, 0x30, 0x34, 0x3D
IO, MEMORY, MASTER, INTX_DISABLE = 1, 2, 4, 0x400

# A firmware that stops the processor: the machine runs, and nobody but qtest touches it.
HALT = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp -3

# The device's name in the tests. Where QEMU has a device of that name itself (10.1 and later),
# OUTBOARD_DRIVER=outboard-pci has them try ours.
NAME = "vfio-user-pci"
DRIVER = os.environ.get("OUTBOARD_DRIVER", NAME)

_plugin = None


def plugin():
    """The plug-in for the installed QEMU, built when missing. OUTBOARD_PLUGIN names another one."""
    global _plugin
    if _plugin is None:
        _plugin = os.environ.get("OUTBOARD_PLUGIN")
    if _plugin is None:
        run = subprocess.run([OUTBOARD, "qemu", "--print-plugin", qemu()], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
        assert run.returncode == 0, run.stderr
        _plugin = run.stdout.strip()
    return _plugin


def qemu():
    for directory in os.environ["PATH"].split(":"):
        path = os.path.join(directory, "qemu-system-x86_64")
        if os.access(path, os.X_OK):
            return path
    return skip("qemu-system-x86_64 is not installed")


def named(word):
    """An argument of QEMU's, with the name that our device has here."""
    return str(word).replace(NAME, DRIVER)


def qemu_command(*args):
    """A QEMU with the plug-in and nothing else."""
    return [qemu(), "-plugin", plugin(), "-nodefaults", "-display", "none", *map(named, args)]


def launcher():
    """QEMU with the plug-in as users run it, where OUTBOARD_PLUGIN names no other."""
    return [qemu(), "-plugin", plugin()] if "OUTBOARD_PLUGIN" in os.environ else [OUTBOARD, "qemu", "--", qemu()]


def wait_for(condition, what="the condition"):
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not become true"
        time.sleep(0.005)
    return value


def firmware(tmp, code=HALT):
    """A 64 KiB firmware that runs code (16-bit, at most 4 KiB) at 0xf000:0xe000."""
    image = bytearray(b"\xf4" * 65536)
    image[0xE000:0xE000 + len(code)] = code
    image[0xFFF0:0xFFF5] = b"\xea\x00\xe0\x00\xf0"  # ljmp 0xf000:0xe000
    path = tmp / "firmware.bin"
    path.write_bytes(image)
    return path


def shared_ram(size_mib=64):
    return ["-m", f"{size_mib}", "-object", f"memory-backend-memfd,id=ram,size={size_mib}M,share=on",
            "-machine", "memory-backend=ram"]


class Serve:
    """A running `outboard serve`."""

    def __init__(self, kind, path, *options):
        self.process = subprocess.Popen([OUTBOARD, "serve", kind, path, *options], stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout.readline(), f"serve {kind} did not start"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def device(path, **properties):
    extra = "".join(f",{name.replace('_', '-')}={value}" for name, value in properties.items())
    return ["-device", f"vfio-user-pci,id=dev,addr=4,socket={path}{extra}"]


class QmpError(Exception):
    pass


class Qemu:
    def __init__(self, tmp, *args, code=HALT, machine="pc", ram=None, accel="tcg", pass_fds=()):
        listeners = {}
        for name in ("qtest", "qmp"):
            listeners[name] = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            path = tmp / f"{name}.sock"
            path.unlink(missing_ok=True)
            listeners[name].bind(str(path))
            listeners[name].listen(1)
            listeners[name].settimeout(DEADLINE_S)
        self.process = subprocess.Popen(
            qemu_command("-machine", machine, "-accel", accel, "-bios", code if isinstance(code, pathlib.Path) else firmware(tmp, code),
                         "-qtest", f"unix:{tmp}/qtest.sock", "-qtest-log", "/dev/null", "-qmp", f"unix:{tmp}/qmp.sock",
                         *(ram or shared_ram()), *args),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            pass_fds=pass_fds)
        self.errors = []
        self.reader = threading.Thread(target=self._read_errors, daemon=True)
        self.reader.start()
        self.events = []
        self.base = {"mem": 0xE0000000, "io": 0xC000}
        self.qtest_in = self.qmp_in = None
        try:
            self.qmp_out, self.qmp_in = self._accept(listeners["qmp"])
            self.qtest_out, self.qtest_in = self._accept(listeners["qtest"])
            self._receive()
            self.qmp("qmp_capabilities")
        except BaseException:
            self.process.kill()
            self.process.wait()
            self.reader.join()
            print(self.stderr())
            raise
        finally:
            for listener in listeners.values():
                listener.close()

    def _accept(self, listener):
        """QEMU connects early, but a device that fails ends it: then this times out quickly."""
        listener.settimeout(0.1)
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                connection, _ = listener.accept()
                connection.settimeout(DEADLINE_S)
                return connection, connection.makefile("rb")
            except TimeoutError:
                assert self.process.poll() is None, f"QEMU ended: {self.stderr()}"
                assert time.monotonic() < end, "QEMU does not connect"

    def _read_errors(self):
        for line in self.process.stderr:
            self.errors.append(line)

    def wait_said(self, text):
        """QEMU's messages, once text is among them."""
        wait_for(lambda: text in self.stderr(), f"message '{text}'")
        return self.stderr()

    def stderr(self):
        return "".join(self.errors)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None and self.process.poll() is None:
            self.process.terminate()
        else:
            self.process.kill()
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        for item in (self.qmp_in, self.qtest_in, self.qmp_out, self.qtest_out):
            item.close()
        if kind is not None:
            print(f"--- QEMU's messages:\n{self.stderr()}---")
        assert kind is not None or self.process.returncode == 0, (self.process.returncode, self.stderr())

    # QMP

    def _receive(self):
        line = self.qmp_in.readline()
        assert line, f"QEMU closed QMP: {self.stderr()}"
        return json.loads(line)

    def qmp(self, command, **arguments):
        arguments = {name.replace("_", "-") if name != "qom_path" else name: value for name, value in arguments.items()}
        message = json.dumps({"execute": command, "arguments": arguments}).replace(NAME, DRIVER)
        self.qmp_out.sendall(message.encode())
        while True:
            answer = self._receive()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(answer["error"]["desc"])
            else:
                return answer["return"]

    def wait_event(self, name, **data):
        def found():
            return any(e["event"] == name and data.items() <= e.get("data", {}).items() for e in self.events)
        while not found():
            answer = self._receive()
            assert "event" in answer, answer
            self.events.append(answer)

    def hmp(self, line):
        return self.qmp("human-monitor-command", command_line=line)

    def get(self, device, name):
        return self.qmp("qom-get", path=f"/machine/peripheral/{device}", property=name)

    # qtest

    def qtest(self, line):
        self.qtest_out.sendall(line.encode() + b"\n")
        while True:
            words = self.qtest_in.readline().decode().split()
            assert words, f"QEMU closed qtest: {self.stderr()}"
            if words[0] != "IRQ":
                break
        assert words[0] == "OK", (line, words)
        return words[1] if len(words) > 1 else None

    def read(self, address, size):
        return int(self.qtest(f"read{ {1: 'b', 2: 'w', 4: 'l', 8: 'q'}[size] } {address:#x}"), 16)

    def write(self, address, size, value):
        self.qtest(f"write{ {1: 'b', 2: 'w', 4: 'l', 8: 'q'}[size] } {address:#x} {value:#x}")

    def port_read(self, port, size):
        return int(self.qtest(f"in{ {1: 'b', 2: 'w', 4: 'l'}[size] } {port:#x}"), 16)

    def port_write(self, port, size, value):
        self.qtest(f"out{ {1: 'b', 2: 'w', 4: 'l'}[size] } {port:#x} {value:#x}")

    def read_bytes(self, address, size):
        return bytes.fromhex(self.qtest(f"read {address:#x} {size:#x}")[2:])

    def write_bytes(self, address, data):
        self.qtest(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def pci(self, slot, bus=0):
        return Pci(self, bus, slot)


class Pci:
    """One function, through the ports 0xcf8 and 0xcfc."""

    def __init__(self, vm, bus, slot):
        self.vm, self.address, self.bars = vm, 0x80000000 | bus << 16 | slot << 11, {}

    def config_read(self, offset, size):
        self.vm.port_write(0xCF8, 4, self.address | offset & ~3)
        return self.vm.port_read(0xCFC + (offset & 3), size)

    def config_write(self, offset, size, value):
        self.vm.port_write(0xCF8, 4, self.address | offset & ~3)
        self.vm.port_write(0xCFC + (offset & 3), size, value)

    def command(self, bits):
        self.config_write(COMMAND, 2, bits)

    def bar_size(self, bar):
        """Sizes a BAR as firmware does: (size, flag bits)."""
        at = BAR0 + 4 * bar
        old = self.config_read(at, 4)
        self.config_write(at, 4, 0xFFFFFFFF)
        mask = self.config_read(at, 4)
        self.config_write(at, 4, old)
        flags = mask & (3 if mask & 1 else 15)
        return (-(mask & ~flags) & (0xFFFF if mask & 1 and mask < 0x10000 else 0xFFFFFFFF)), flags

    def assign(self, *bars):
        """Gives the BARs addresses, and enables the device."""
        for bar in bars:
            size, flags = self.bar_size(bar)
            kind = "io" if flags & 1 else "mem"
            base = (self.vm.base[kind] + size - 1) & ~(size - 1)
            self.vm.base[kind] = base + size
            self.config_write(BAR0 + 4 * bar, 4, base)
            if flags & 4:
                self.config_write(BAR0 + 4 * bar + 4, 4, 0)
            self.bars[bar] = (kind, base)
        self.command(IO | MEMORY | MASTER)

    def bar_read(self, bar, offset, size):
        kind, base = self.bars[bar]
        return self.vm.port_read(base + offset, size) if kind == "io" else self.vm.read(base + offset, size)

    def bar_write(self, bar, offset, size, value):
        kind, base = self.bars[bar]
        if kind == "io":
            self.vm.port_write(base + offset, size, value)
        else:
            self.vm.write(base + offset, size, value)

    def capabilities(self):
        """{id: offset}, in list order; the walk is bounded."""
        found, at = {}, self.config_read(CAP_POINTER, 1)
        while at:
            assert len(found) < 64, "the capability list has a loop"
            found[self.config_read(at, 1)] = at
            at = self.config_read(at + 1, 1)
        return found

    def intx(self):
        return bool(self.config_read(STATUS, 2) & 8)
