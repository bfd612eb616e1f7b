# SPDX-License-Identifier: BSD-3-Clause
"""What is measured in guests: see host.py for the form. One boot serves all that Linux measures."""
import contextlib
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

from host import CPUS, fio_json_iops, peer_program, spdk
from sample import Skip, sample

ROOT = pathlib.Path(__file__).resolve().parents[1]
RAM = ["-m", "64", "-object", "memory-backend-memfd,id=ram,size=64M,share=on"]
PASSED = 33  # see end() in guest/baremetal/machine.h
FIRST_SLOT = 4


def test_library(tools):
    """tests/lib boots guests and has devices that misbehave."""
    os.environ["OUTBOARD_BUILD"] = str(tools.build)
    sys.path.insert(0, str(ROOT / "tests/lib"))
    import fakedevice
    import guest
    return guest, fakedevice


def boot(tools, guest, qemu_args, *devices):
    """Of the image that guest.boot() takes, with the same accelerator."""
    _, name = guest.accelerator(guest.image.build_image("cloud", tools.build))
    tools.accelerator = name.partition(",")[0].lower()
    return guest.boot(tools.tmp, *devices, qemu_args=qemu_args)


def address(slot):
    return f"0000:00:{slot:02x}.0"


def measured(vm, what, slots, count=2000, prefix="", more=""):
    """ns of each, by guest/bench-guest.c."""
    lines = vm.run(f"{prefix} bench-guest {what} {count} {' '.join(map(address, slots))} {more}", timeout_s=120)
    return list(map(float, lines.split()))


class Slots:
    """Devices for one QEMU, each in the next slot."""

    def __init__(self):
        self.args, self.next = [], FIRST_SLOT

    def add(self, text):
        slot = self.next
        self.next += 1
        self.args += ["-device", f"{text},addr=0x{slot:x}"]
        return slot

    def outboard(self, path, extra=""):
        return self.add(f"vfio-user-pci,socket={path}{extra}")


# ---- Registers, interrupts, many devices, a slow one

def from_floor(name, values, floor):
    return sample(name, "ns", values, floor["name"], [floor["median"]])


def take_access(tools, vm, slot, interrupt_too):
    spinning = tools.spinning_floor()
    yield from_floor("guest/read", measured(vm, "read", [slot]), spinning)
    yield from_floor("guest/post", measured(vm, "post", [slot]), tools.micro("sendmsg")["sendmsg"])
    if interrupt_too:
        uio = vm.run(f"echo /dev/$(ls /sys/bus/pci/devices/{address(slot)}/uio)").strip()
        yield from_floor("guest/interrupt", measured(vm, "interrupt", [slot], 100, more=uio), tools.blocking_floor())


@contextlib.contextmanager
def on_core(process, cpu):
    """All its threads."""
    def pin(cpus):
        for thread in os.listdir(f"/proc/{process.pid}/task"):
            os.sched_setaffinity(int(thread), cpus)
    pin([cpu])
    try:
        yield
    finally:
        pin(CPUS)


def take_placed(tools, vm, server, slot):
    """Nobody spins. QEMU and the server wherever the kernel likes, then on one core, then on a core each."""
    yield from_floor("guest/read-no-spinning", measured(vm, "read", [slot]), tools.blocking_floor())
    for place, cpu in zip(("one-core", "two-cores"), CPUS):
        with on_core(vm.process, CPUS[0]), on_core(server, cpu):
            values = measured(vm, "read", [slot])
        yield from_floor(f"guest/read-{place}", values, tools.placed_floor(cpu))


def bind_uio(vm):
    vm.run("modprobe uio_pci_generic && echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id")


def slow_device(fakedevice, path):
    device = fakedevice.FakeDevice(path, bars={0: 4096})

    def read(fake, payload):
        if payload[8] == 0:
            time.sleep(.1)
        return fakedevice.FakeDevice.cmd_9(fake, payload, [])

    device.on[fakedevice.REGION_READ] = read
    return device


def take_beside_slow(tools, vm, slow, other):
    """One vCPU waits for the slow device all the while."""
    vm.run(f"taskset 1 bench-guest read 10000 {address(slow)} >/dev/null & echo $! >/tmp/slow")
    try:
        answers = []
        for _ in range(20):
            before = time.monotonic()
            vm.qmp("query-status")
            answers.append((time.monotonic() - before) * 1e9)
        yield from_floor("guest/slow-server-monitor", answers, tools.blocking_floor())
        yield from_floor("guest/slow-server-device", measured(vm, "read", [other], prefix="taskset 2"),
                         tools.spinning_floor())
    finally:
        vm.run("kill $(cat /tmp/slow)")


@contextlib.contextmanager
def linux(tools):
    guest, fakedevice = test_library(tools)
    counts = (1, 2, 4) if tools.short else (1, 2, 4, 8, 16)
    with contextlib.ExitStack() as stack:
        slots = Slots()
        paths = [stack.enter_context(tools.serve("edu"))[0] for _ in range(counts[-1] + 2)]
        plain = [slots.outboard(path) for path in paths[:-2]]
        acknowledged = slots.outboard(paths[-2], ",x-no-posted-writes=on")
        sleepy_path, sleepy_server = stack.enter_context(tools.serve("edu", "--spin-us", "0"))
        sleepy = slots.outboard(sleepy_path, ",spin-us=0")
        inside = slots.add("edu")
        slow_path = tools.tmp / "slow.sock"
        stack.enter_context(slow_device(fakedevice, slow_path))
        slow = slots.outboard(slow_path)
        vm = stack.enter_context(boot(tools, guest, slots.args))
        bind_uio(vm)

        def take():
            yield from take_access(tools, vm, plain[0], True)
            spinning = tools.spinning_floor()
            yield from_floor("guest/write", measured(vm, "write", [acknowledged]), spinning)
            yield from take_placed(tools, vm, sleepy_server, sleepy)
            for count in counts:
                yield from_floor(f"guest/devices/{count}", measured(vm, "read", plain[:count]), spinning)
            yield from take_beside_slow(tools, vm, slow, plain[0])

        subjects = {"outboard": take, "QEMU's own edu": lambda: take_access(tools, vm, inside, True)}
        if os.environ.get("OUTBOARD_QEMU11"):
            subjects["QEMU 11"] = stack.enter_context(boot_peer(tools, guest))
        yield subjects


def peer_vm(tools, guest, *paths):
    """A QEMU that has a vfio-user-pci of its own, with servers."""
    command = shlex.split(os.environ["OUTBOARD_QEMU11"])
    image_dir = guest.image.build_image("cloud", tools.build)
    device = '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"%s"},"addr":"0x%x"}'
    devices = [word for i, path in enumerate(paths) for word in ("-device", device % (path, FIRST_SLOT + i))]
    accel, _ = guest.accelerator(image_dir)
    return guest.Vm(image_dir, devices, accel=accel, command=command, log=tools.tmp / "peer.log")


@contextlib.contextmanager
def boot_peer(tools, guest):
    """It, with our servers."""
    with tools.serve("edu") as (path, _), tools.serve("edu", "--spin-us", "0") as (sleepy, sleepy_server), \
            peer_vm(tools, guest, path, sleepy) as vm:
        bind_uio(vm)

        def take():
            yield from take_access(tools, vm, FIRST_SLOT, True)
            yield from take_placed(tools, vm, sleepy_server, FIRST_SLOT + 1)
        yield take


# ---- NVMe in the guest

def guest_iops(vm, serial, depth, seconds):
    """Random reads a second of the disk with that serial number."""
    controller = vm.run(f"cd /sys/class/nvme && grep -l {serial} */serial").split("/")[0]
    return fio_json_iops(vm.run(f"fio --name=x --filename=/dev/{controller}n1 --rw=randread --bs=4k --ioengine=libaio "
                                f"--iodepth={depth} --direct=1 --time_based --runtime={seconds} --output-format=json"))


def of_memory(vm, serial, spinning, seconds):
    for depth in (1, 32):
        yield sample(f"guest/nvme-memory-depth-{depth}", "IOPS", [guest_iops(vm, serial, depth, seconds)],
                     "spinning ping-pong", [1e9 / spinning["median"]])


def take_spdk(tools, guest, target, spinning, seconds):
    """Its target under the client that it is made for. It takes a core, so it runs only meanwhile."""
    where = pathlib.Path(tempfile.mkdtemp(dir=tools.tmp))
    with tools.process(*spdk.target(target, where, 64), cwd=where, socket_path=where / "cntrl"), \
            peer_vm(tools, guest, where / "cntrl") as vm:
        yield from of_memory(vm, "SPDK0", spinning, seconds)


@contextlib.contextmanager
def nvme(tools):
    guest, _ = test_library(tools)
    images, seconds = [tools.tmp / name for name in ("ours.img", "theirs.img")], 1 if tools.short else 2
    for image in images:
        with open(image, "wb") as out:
            for _ in range(16 if tools.short else 128):
                out.write(os.urandom(1 << 20))
    own = ["-drive", f"file={images[1]},if=none,id=d,format=raw,aio=io_uring", "-device", "nvme,drive=d,serial=own"]
    target = os.environ.get("OUTBOARD_QEMU11") and peer_program("OUTBOARD_SPDK", "bin/nvmf_tgt")
    with tools.serve("nvme", images[0], "--serial=outboard") as (path, _), \
            tools.serve("nvme", "mem:64M", "--serial=memory") as (memory_path, _), \
            boot(tools, guest, own, *(f"vfio-user-pci,socket={where}" for where in (path, memory_path))) as vm:
        def take():
            for depth in (1, 32):
                floor = guest_iops(vm, "own", depth, seconds)
                yield sample(f"guest/nvme-depth-{depth}", "IOPS", [guest_iops(vm, "outboard", depth, seconds)],
                             "QEMU's own nvme", [floor])
            yield from of_memory(vm, "memory", tools.spinning_floor(), seconds)

        subjects = {"outboard": take}
        if target:
            subjects["SPDK, QEMU 11"] = lambda: take_spdk(tools, guest, target, tools.spinning_floor(), seconds)
        yield subjects


# ---- Without an operating system, under KVM

def boot_baremetal(tools, command, device):
    args = [*command, "-machine", "pc,memory-backend=ram", "-accel", "kvm", *RAM, "-nodefaults", "-no-reboot",
            "-display", "none", "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
            "-kernel", tools.build / "guest/bench.elf", "-device", device]
    try:
        done = subprocess.run(list(map(str, args)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=100, text=True)
    except subprocess.TimeoutExpired:
        raise Skip("KVM does not run the bare-metal guest on this machine") from None
    if done.returncode != PASSED:
        raise Skip(f"KVM does not run the bare-metal guest on this machine: {done.stdout.strip()[-80:]}")
    found = {"read": [], "post": []}
    for line in done.stdout.splitlines():
        what, _, value = line.partition(" ")
        if what in found:
            found[what].append(int(value, 16))
    return found


@contextlib.contextmanager
def kvm(tools):
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise Skip("no /dev/kvm")
    qemu = "qemu-system-x86_64"
    with tools.serve("edu") as (path, _):
        def take(command, device, names):
            tick = tools.micro("ticks")["ticks"]["ns"]
            found = boot_baremetal(tools, command, device)
            for what, name in names.items():
                floor = tools.micro("sendmsg")["sendmsg"] if name == "post" else tools.spinning_floor()
                yield from_floor(f"kvm/{name}", [value * tick for value in found[what]], floor)

        def take_own():
            command, device = [tools.outboard, "qemu", "--", qemu], f"vfio-user-pci,socket={path}"
            yield from take(command, device, {"read": "read", "post": "post"})
            yield from take(command, f"{device},x-no-posted-writes=on", {"post": "write"})
        yield {"outboard": take_own, "QEMU's own edu": lambda: take([qemu], "edu", {"read": "read", "post": "post"})}


GROUPS = [(linux, "guest/[rwpids]*"), (nvme, "guest/nvme-*"), (kvm, "kvm/*")]
