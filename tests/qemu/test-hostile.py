#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Every behaviour of a server (tests/lib/hostile.py) at every message of a session: what becomes of the machine."""
import contextlib
import difflib
import pathlib
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main
from fakedevice import (CONFIG, DMA_MAP, DMA_UNMAP, GET_INFO, GET_IRQ_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, INTX,
                        MSIX, REGION_READ, REGION_WRITE, RESET, SET_IRQS, VERSION, FakeDevice, config_space, msix_cap)
from hostile import BEHAVIOURS, NO_PAYLOAD, OTHER_BAR, OWN_BAR, REFUSED, HostileDevice, Message
from qtest import MASTER, MEMORY, Qemu, QmpError, device, firmware, qemu_command, shared_ram, wait_for

FEATURE, ROM = 16, 6
SLOT, OTHER_SLOT, MSIX_CAP = 6, 5, 0x40
PAM = 0x5A  # in the host bridge: whether 0xc0000 is RAM
UNTOUCHED = 0x100  # of the other device's BAR: not among the WILD addresses that a server may write to meanwhile
ALL_ONES = 0xFFFFFFFF
SHORT_MS, LONG_MS = 150, 20000
SLOWEST_S = 10  # of what takes milliseconds; whoever waited for the server would take LONG_MS

PLUGGING = [
    Message("version", VERSION, tolerated=("one-byte-more", "all-zeroes")),
    Message("info", GET_INFO),
    Message("bar-info", GET_REGION_INFO, 0),
    Message("config-info", GET_REGION_INFO, CONFIG),
    Message("rom-info", GET_REGION_INFO, ROM),
    Message("io-fds", GET_REGION_IO_FDS, tolerated=(*REFUSED, "one-byte-more", "all-zeroes")),
    Message("irq-info", GET_IRQ_INFO, tolerated=(*REFUSED, "all-zeroes")),
    Message("config", REGION_READ, CONFIG),
    Message("rom", REGION_READ, ROM),
    Message("map", DMA_MAP, tolerated=("late", *NO_PAYLOAD)),  # others follow at once
    Message("irqs", SET_IRQS, tolerated=(*REFUSED, *NO_PAYLOAD)),
]


class Machine:
    """A VM with an honest vfio-user device, in which a hostile one comes and goes."""

    def __init__(self, vm, tmp):
        self.vm, self.tmp, self.pci, self.other = vm, tmp, vm.pci(SLOT), vm.pci(OTHER_SLOT)
        self.pci.bars[0], self.other.bars[0] = ("mem", OWN_BAR), ("mem", OTHER_BAR)

    def state(self):
        return [self.vm.hmp(f"info {what}") for what in ("mtree", "qtree", "pci")]

    def fds(self):
        return len(list(pathlib.Path(f"/proc/{self.vm.process.pid}/fd").iterdir()))

    def rss_kib(self):
        status = pathlib.Path(f"/proc/{self.vm.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def works(self):
        start = time.monotonic()
        assert self.vm.qmp("query-status")["running"]
        self.enable(self.other)
        self.other.bar_write(0, UNTOUCHED, 4, 0x12345678)
        assert self.other.bar_read(0, UNTOUCHED, 4) == 0x12345678
        assert time.monotonic() - start < SLOWEST_S

    def enable(self, pci):
        pci.config_write(0x10, 4, pci.bars[0][1])
        pci.command(MEMORY | MASTER)

    def plug(self, timeout_ms=LONG_MS, posted=False, reconnect=0):
        """None, or the reason why not."""
        self.vm.errors.clear()
        try:
            self.vm.qmp("device_add", driver="vfio-user-pci", id="dev", addr=str(SLOT), socket=str(self.tmp / "s"),
                        x_msg_timeout=timeout_ms, x_no_posted_writes=not posted, reconnect=reconnect)
        except QmpError as why:
            return str(why)
        return None

    def unplug(self):
        self.vm.events.clear()
        self.vm.qmp("device_del", id="dev")
        self.vm.port_write(0xAE08, 4, 1 << SLOT)
        self.vm.wait_event("DEVICE_DELETED", device="dev")

    def connected(self):
        return self.vm.get("dev", "connected")

    def settle(self):
        self.vm.pci(0).config_write(PAM, 1, 0)
        self.reset()
        self.works()

    # what reaches the server

    def reset(self):
        self.vm.events.clear()
        self.vm.qmp("system_reset")
        self.vm.wait_event("RESET")

    def change_memory_map(self):
        self.vm.pci(0).config_write(PAM, 1, self.vm.pci(0).config_read(PAM, 1) ^ 0x33)

    def enable_msix(self):
        self.pci.config_write(MSIX_CAP + 2, 2, 0x8000)

    def read_config(self):
        return self.pci.config_read(0x80, 4)

    def write_config(self):
        self.pci.config_write(0x80, 4, 7)

    def read_bar(self):
        return self.pci.bar_read(0, 0, 4)

    def write_bar(self):
        self.pci.bar_write(0, 0, 4, 7)


def no_io_fds(_device, payload):
    return struct.pack("<IIII", 16, 0, payload[8], 0)


def hostile_device(tmp):
    fake = HostileDevice(tmp / "s", config_space(bars={0: 0}, caps=[(MSIX_CAP, msix_cap(4, 0x800, 0xC00))], pin=1),
                         {0: 4096, ROM: 2048}, {INTX: 1, MSIX: 4})
    fake.version = {"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1048576, "migration": {"pgsize": 4096}}}
    fake.on[FEATURE] = lambda _, payload: payload[:8] + struct.pack("<II", 2, 0)  # it runs
    fake.on[GET_REGION_IO_FDS] = no_io_fds
    return fake


@contextlib.contextmanager
def machine(tmp):
    """With nothing left behind in the end."""
    with hostile_device(tmp) as fake, FakeDevice(tmp / "other", bars={0: 4096}) as other, \
            Qemu(tmp, "-device", f"vfio-user-pci,addr={OTHER_SLOT},socket={tmp}/other") as vm:
        other.log = fake.log = type("Nothing", (), {"append": lambda *_: None})()
        m = Machine(vm, tmp)
        assert not m.plug()
        m.unplug()
        m.settle()
        before, fds, memory = m.state(), m.fds(), m.rss_kib()
        yield m, fake
        fake.disarm()
        assert not m.plug()
        m.unplug()
        m.settle()
        now = m.state()
        assert now == before, list(difflib.unified_diff(''.join(before).split('\n'), ''.join(now).split('\n'), n=0))
        wait_for(lambda: m.fds() <= fds + 1, "the number of open files")
        assert m.rss_kib() < memory + 16384, f"{m.rss_kib() - memory} KiB more"


def one_clear_line(lines, word):
    """QEMU's messages: no more than what was wrong and what came of it."""
    lines = [line for line in lines if line.strip()]
    assert len(lines) <= 2 and sum(word in line for line in lines) == 1, lines


def check_plugging(m, fake, message, name):
    behaviour = BEHAVIOURS[name]
    fake.arm(message, behaviour)
    why = m.plug(SHORT_MS if behaviour.silent else LONG_MS)
    if not fake.hit.is_set():
        if why is None:
            m.unplug()
        raise NotReached(why)
    m.works()
    if why is not None:
        assert not behaviour.harmless and name not in message.tolerated, why
        assert len(why) > 20 and "\n" not in why and "Success" not in why, why
        assert m.pci.config_read(0, 4) == ALL_ONES and not m.vm.errors, m.vm.errors
        return
    if behaviour.harmless or name in message.tolerated:
        assert m.connected() and m.pci.config_read(0, 4) == 0x77774F42
    else:
        check_lost(m)
    m.unplug()


def check_lost(m):
    wait_for(lambda: not m.connected(), "the loss of the server")
    m.vm.wait_said("lost the server")
    m.vm.wait_event("__outboard_SERVER_LOST", device="dev", reconnect=False, reason=m.vm.get("dev", "last-error"))
    one_clear_line(m.vm.errors, "lost the server")
    assert len(m.vm.get("dev", "last-error")) > 20
    m.enable(m.pci)
    assert m.read_bar() == m.read_config() == m.pci.config_read(0, 4) == ALL_ONES


class NotReached(Exception):
    """The message was not sent: an honest answer before it may be later than SHORT_MS, on a machine that is busy."""


def with_every_behaviour(tmp, message, check, *args):
    with machine(tmp) as (m, fake):
        for name in BEHAVIOURS:
            try:
                reach(5 if BEHAVIOURS[name].silent else 1, lambda: check(m, fake, message, *args, name))
            except BaseException:
                print(f"at {message.name}: {name}")
                raise


def reach(tries, check):
    for left in reversed(range(tries)):
        try:
            return check()
        except NotReached:
            if not left:
                raise


def plugging_case(message):
    @case(f"any-behaviour-at-{message.name}-leaves-the-machine-as-before-plugging", timeout_s=120)
    def _(tmp):
        with_every_behaviour(tmp, message, check_plugging)


for each in PLUGGING:
    plugging_case(each)

# The message, what makes QEMU send it, and whether the answer is waited for without the device being given up.
RUNNING = [
    (Message("bar-read", REGION_READ, 0, REFUSED), Machine.read_bar, True),
    (Message("bar-write", REGION_WRITE, 0, REFUSED), Machine.write_bar, True),
    (Message("posted-write", REGION_WRITE, 0), Machine.write_bar, True),
    (Message("config-read", REGION_READ, CONFIG, REFUSED), Machine.read_config, True),
    (Message("config-write", REGION_WRITE, CONFIG, REFUSED), Machine.write_config, True),
    (Message("irqs", SET_IRQS, tolerated=(*REFUSED, *NO_PAYLOAD)), Machine.enable_msix, False),
    (Message("map", DMA_MAP, tolerated=("late", *NO_PAYLOAD)), Machine.change_memory_map, False),
    (Message("unmap", DMA_UNMAP, tolerated=("late", *NO_PAYLOAD)), Machine.change_memory_map, False),
    (Message("reset", RESET, tolerated=(*REFUSED, *NO_PAYLOAD)), Machine.reset, False),
    (Message("state", FEATURE, tolerated=(*REFUSED, "all-zeroes")), Machine.reset, False),
]


def plug_for(m, fake, behaviour, **options):
    fake.disarm()
    why = m.plug(SHORT_MS if behaviour.silent else LONG_MS, **options)
    if why is not None:
        raise NotReached(why)
    m.enable(m.pci)
    m.vm.errors.clear()
    m.vm.events.clear()


def check_running(m, fake, message, act, waits, name):
    behaviour, posted = BEHAVIOURS[name], message.name == "posted-write"
    plug_for(m, fake, behaviour, posted=posted)
    fake.arm(message, behaviour)
    value = act(m)
    if not fake.hit.is_set() and message.cmd in (DMA_MAP, DMA_UNMAP):
        act(m)  # there and back: one of both
    if not fake.hit.wait(10):
        m.unplug()
        raise NotReached(m.vm.stderr())
    m.works()
    if posted:  # what is sent here was never asked for
        assert m.vm.stderr().count("\n") < 2, m.vm.errors
    elif behaviour.harmless or name in message.tolerated:
        assert m.connected() and value in (None, 0, ALL_ONES), value
    elif behaviour.silent and waits and m.connected():
        assert value in (None, ALL_ONES), value
        m.vm.wait_said("no answer within")
        one_clear_line(m.vm.errors, "no answer within")
    else:
        check_lost(m)
        assert value in (None, ALL_ONES) or name in ("twice", "answer-then-close"), value
    m.enable_msix()
    m.change_memory_map()
    m.reset()
    m.works()
    m.unplug()


def running_case(message, act, waits):
    @case(f"any-behaviour-at-{message.name}-leaves-the-machine-running", timeout_s=120)
    def _(tmp):
        with_every_behaviour(tmp, message, check_running, act, waits)


for each in RUNNING:
    running_case(*each)


def check_returning(m, fake, message, name):
    behaviour = BEHAVIOURS[name]
    plug_for(m, fake, behaviour, reconnect=60)
    fake.arm(message, behaviour)
    fake.drop()
    if not fake.hit.wait(10):
        m.unplug()
        raise NotReached(m.vm.stderr())
    m.works()
    wait_for(lambda: m.connected() or "until the device is unplugged" in m.vm.stderr(), "the end of the search")
    if behaviour.harmless:
        wait_for(m.connected, "the return")
    m.enable(m.pci)
    assert m.read_bar() in (0, ALL_ONES)
    m.enable_msix()
    m.change_memory_map()
    m.reset()
    m.works()
    m.unplug()


def returning_case(message):
    @case(f"any-behaviour-at-{message.name}-of-a-server-that-comes-back-leaves-the-machine-running", timeout_s=120)
    def _(tmp):
        with_every_behaviour(tmp, message, check_returning)


for each in PLUGGING:
    if each.name in ("version", "config", "map"):
        returning_case(each)


def start(tmp, fake, message, behaviour):
    """QEMU with the device, which it refuses."""
    fake.arm(message, behaviour)
    done = subprocess.run(qemu_command("-bios", firmware(tmp), "-accel", "tcg", "-S", *shared_ram(8),
                                       *device(tmp / "s", x_msg_timeout=SHORT_MS)),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, (message.name, behaviour, done)
    if not fake.hit.is_set():
        raise NotReached(done)
    return done


@case("any-behaviour-at-the-start-ends-qemu-with-one-clear-line", timeout_s=180)
def _(tmp):
    """Each behaviour at one message, and each message with one behaviour; arming interrupts comes after the start."""
    bar_info = PLUGGING[2]
    tried = [(bar_info, name) for name, b in BEHAVIOURS.items() if not b.harmless]
    tried += [(message, "close") for message in PLUGGING[:-1]]
    with hostile_device(tmp) as fake:
        for message, name in tried:
            done = reach(5, lambda: start(tmp, fake, message, BEHAVIOURS[name]))
            lines = [line for line in done.stderr.splitlines() if ": info: " not in line]
            assert len(lines) == 1 and str(tmp / "s") in lines[0], (message.name, name, done.stderr)


main()
