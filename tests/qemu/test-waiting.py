#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What a server that dies, hangs or takes its time costs the machine."""
import contextlib
import pathlib
import struct
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main
from fakedevice import (CONFIG, DMA_MAP, DMA_UNMAP, GET_INFO, GET_IRQ_INFO, GET_REGION_INFO, INTX, MSIX, REGION_READ,
                        REGION_WRITE, RESET, SET_IRQS, VERSION, FakeDevice, Gone, config_space, msix_cap)
from qtest import Qemu, QmpError, Serve, device, wait_for


@case("server-that-dies-leaves-the-machine-running")
def _(tmp):
    with Serve("edu", tmp / "s") as server, Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        server.process.kill()
        wait_for(lambda: vm.get("dev", "connected") is False)
        assert pci.bar_read(0, 0, 4) == 0xFFFFFFFF
        assert pci.config_read(0, 4) == 0xFFFFFFFF
        pci.bar_write(0, 4, 4, 1)
        vm.qmp("system_reset")
        assert vm.get("dev", "last-error")
        assert vm.wait_said("lost the server").count("lost the server") == 1


@case("server-that-dies-in-the-middle-of-an-answer")
def _(tmp):
    def die(device, payload):
        if payload[8] == CONFIG:
            return device.cmd_9(payload, [])
        device.connection.sendall(b"\x01\x00\x09\x00\x24\x00\x00\x00\x01")
        raise Gone
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake:
        fake.on[REGION_READ] = die
        with Qemu(tmp, *device(tmp / "s")) as vm:
            vm.pci(4).assign(0)
            assert vm.pci(4).config_read(4, 2)
            pci = vm.pci(4)
            pci.assign(0)
            assert pci.bar_read(0, 0, 4) == 0xFFFFFFFF
            assert vm.qmp("query-status")["running"]


@case("server-that-does-not-answer-costs-one-deadline")
def _(tmp):
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake, Qemu(tmp, *device(tmp / "s", x_msg_timeout=300)) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        fake.on[REGION_READ] = lambda *_: None
        assert pci.bar_read(0, 0, 4) == 0xFFFFFFFF
        del fake.on[REGION_READ]
        fake.memory[0][0] = 0x5A
        assert pci.bar_read(0, 0, 1) == 0x5A, "the connection did not live on"
        vm.wait_said("no answer within 300 ms")


@case("server-that-answers-no-access-any-more-is-given-up")
def _(tmp):
    """Else each access of the guest would take as long as it is given."""
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake, Qemu(tmp, *device(tmp / "s", x_msg_timeout=300)) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        fake.on[REGION_READ] = lambda *_: None
        for left in (2, 1, 0):
            assert pci.bar_read(0, 0, 4) == 0xFFFFFFFF
            wait_for(lambda: vm.get("dev", "connected") == bool(left))
        vm.wait_said("it has answered no access for 3 times 300 ms")
        start = time.monotonic()
        for _ in range(100):
            assert pci.bar_read(0, 0, 4) == 0xFFFFFFFF
        assert time.monotonic() - start < 10


def slow_answers(fake, commands, seconds):
    """Each is an answer in time."""
    def answer(command):
        honest = fake.on.get(command)

        def later(device, payload):
            threading.Event().wait(seconds)
            return honest(device, payload) if honest else getattr(device, f"cmd_{command}")(payload, [])
        return later
    for command in commands:
        fake.on[command] = answer(command)


@case("server-that-makes-a-lot-of-little-delays-cannot-keep-the-machine")
def _(tmp):
    """What is done in several requests with the big lock, plugging in and resets, has one deadline."""
    with FakeDevice(tmp / "s", config_space(pin=1), {0: 4096}, {INTX: 1, MSIX: 4}) as fake, Qemu(tmp) as vm:
        slow_answers(fake, (GET_INFO, GET_IRQ_INFO, GET_REGION_INFO), 0.4)
        for version_s, timeout_ms, reconnect in ((0, 1000, 0), (0, 1000, 10), (3, 4000, 0), (3, 4000, 10)):
            slow_answers(fake, (VERSION,), version_s)
            start = time.monotonic()
            try:
                vm.qmp("device_add", driver="vfio-user-pci", id="bad", addr="4", socket=str(tmp / "s"),
                       x_msg_timeout=timeout_ms, reconnect=reconnect)
                assert False, "the device was plugged in"
            except QmpError as why:
                assert "did not answer in time" in str(why), why
            assert time.monotonic() - start < timeout_ms / 1000 + 2, f"more than one deadline (reconnect={reconnect})"
            del fake.on[VERSION]
        fake.on.clear()
        vm.qmp("device_add", driver="vfio-user-pci", id="dev", addr="4", socket=str(tmp / "s"), x_msg_timeout=1000)
        slow_answers(fake, (RESET, SET_IRQS, REGION_WRITE), 0.7)
        vm.qmp("system_reset")
        vm.wait_event("RESET")
        wait_for(lambda: vm.get("dev", "connected") is False)
        vm.wait_said("no answer within 1000 ms")


# 16-bit code: reads the I/O BAR at 0xc000 for ever, counting at 0x500.
READ_PORT_FOREVER = bytes.fromhex("31c0 8ed8 ba00c0 ed ff060005 ebf9".replace(" ", ""))


def stalling_read():
    """An event that is set when a BAR is read, and a handler that never answers such a read."""
    blocked = threading.Event()

    def stall(device, payload):
        if payload[8] == CONFIG:
            return device.cmd_9(payload, [])
        blocked.set()
        return None
    return blocked, stall


@case("vcpu-waits-without-stopping-the-machine")
def _(tmp):
    """The server never answers, and a vCPU reads it again and again: the monitor is as fast as ever."""
    blocked, stall = stalling_read()
    space = config_space(bars={0: 1})
    with FakeDevice(tmp / "s", space, {0: 64}) as fake:
        fake.on[REGION_READ] = stall
        with Qemu(tmp, *device(tmp / "s", x_msg_timeout=20000), "-S", code=READ_PORT_FOREVER) as vm:
            vm.pci(4).assign(0)
            vm.qmp("cont")
            assert blocked.wait(30)
            start = time.monotonic()
            for _ in range(20):
                vm.qmp("query-status")
                vm.pci(4).config_read(0, 4)
            assert time.monotonic() - start < 5, "the monitor waited with the vCPU"
            vm.process.kill()
            vm.process.wait()
            vm.process.returncode = 0


@case("vcpu-waits-in-config-space-without-barring-others-from-it")
def _(tmp):
    """Also below an expander bridge, whose root bus is not the one that the guest's ports belong to."""
    blocked = threading.Event()

    def stall(device, payload):
        offset, region = struct.unpack_from("<QI", payload)
        if region == CONFIG and offset == 0x40:
            blocked.set()
            return None
        return device.cmd_9(payload, [])
    expander = ["-device", "pxb-pcie,id=pxb,bus_nr=64", "-device", "pcie-root-port,id=rp,bus=pxb,chassis=1,addr=0"]
    for bus, slot, place in ((0, 4, "pcie.0"), (65, 0, "rp")):
        blocked.clear()
        # out 0xcf8, address; in eax, 0xcfc; hlt
        address = struct.pack("<I", 1 << 31 | bus << 16 | slot << 11 | 0x40)
        code = b"\x66\xb8" + address + bytes.fromhex("baf80c 66ef b2fc 66ed f4ebfd")
        with FakeDevice(tmp / "s") as fake:
            fake.on[REGION_READ] = stall
            with Qemu(tmp, *expander, "-device",
                      f"vfio-user-pci,bus={place},addr={slot},x-msg-timeout=20000,socket={tmp}/s", "-S",
                      machine="q35", code=code) as vm:
                vm.pci(0, 64).config_write(0x18, 4, 65 << 16 | 65 << 8 | 64)
                vm.qmp("cont")
                assert blocked.wait(30)
                assert vm.pci(0).config_read(0, 2) == 0x8086, f"the host bridge cannot be asked ({place})"
                fake.drop()


@case("vcpu-that-changes-interrupts-or-resets-waits-without-stopping-the-machine")
def _(tmp):
    """For a server that answers nothing at all any more."""
    for cap, offset, value in ((msix_cap(4, 0x800, 0xC00), 0x42, 0x8000), (b"\x13\0\x06\x03\0\0", 0x44, 1)):
        blocked = threading.Event()
        # out 0xcf8, address; out 0xcfc + (offset & 3), value; hlt
        code = (b"\x66\xb8" + struct.pack("<I", 1 << 31 | 4 << 11 | offset & ~3) + bytes.fromhex("baf80c 66ef ba") +
                struct.pack("<HBH", 0xCFC + (offset & 3), 0xB8, value) + bytes.fromhex("ef f4ebfd"))
        space = config_space(bars={0: 0}, caps=[(0x40, cap)])
        with FakeDevice(tmp / "s", space, {0: 4096}, {MSIX: 4}) as fake, \
                Qemu(tmp, *device(tmp / "s", x_msg_timeout=20000), "-S", code=code) as vm:
            for command in (RESET, SET_IRQS, REGION_WRITE, REGION_READ):
                fake.on[command] = lambda *_, blocked=blocked: blocked.set()
            start = time.monotonic()
            vm.qmp("cont")
            assert blocked.wait(30)
            for _ in range(20):
                vm.qmp("query-status")
            assert time.monotonic() - start < 15, "the monitor waited with the vCPU"
            # Either way the vCPU goes on; it has not begun to write.
            if value == 1:
                fake.drop()
                wait_for(lambda vm=vm: vm.get("dev", "connected") is False)
                continue
            vm.qmp("device_del", id="dev")
            vm.port_write(0xAE08, 4, 1 << 4)
            vm.qmp("stop")
            vm.wait_event("DEVICE_DELETED", device="dev")


@case("unplug-wakes-a-waiting-vcpu")
def _(tmp):
    blocked, stall = stalling_read()
    with FakeDevice(tmp / "s", config_space(bars={0: 1}), {0: 64}) as fake:
        fake.on[REGION_READ] = stall
        with Qemu(tmp, *device(tmp / "s", x_msg_timeout=20000), "-S", code=READ_PORT_FOREVER) as vm:
            pci = vm.pci(4)
            pci.assign(0)
            vm.qmp("cont")
            assert blocked.wait(30)
            vm.qmp("device_del", id="dev")
            vm.port_write(0xAE08, 4, 1 << 4)
            count = vm.read(0x500, 2)
            wait_for(lambda: vm.read(0x500, 2) != count, "the vCPU's progress")
            assert pci.config_read(0, 4) == 0xFFFFFFFF
            vm.qmp("stop")  # TCG's vCPU holds on to what it may use (RCU) until it stops
            vm.wait_event("DEVICE_DELETED", device="dev")


@case("server-that-does-not-answer-a-reset-is-dropped")
def _(tmp):
    """The machine waits for it once, and not at unplugging."""
    with FakeDevice(tmp / "s", config_space(pin=1), irqs={INTX: 1}) as fake, \
            Qemu(tmp, *device(tmp / "s", x_msg_timeout=4000)) as vm:
        for command in (RESET, SET_IRQS, REGION_WRITE, REGION_READ):
            fake.on[command] = lambda *_: None
        start = time.monotonic()
        vm.qmp("system_reset")
        wait_for(lambda: vm.get("dev", "connected") is False)
        vm.qmp("device_del", id="dev")
        vm.port_write(0xAE08, 4, 1 << 4)
        vm.wait_event("DEVICE_DELETED", device="dev")
        assert time.monotonic() - start < 8, "waited more than once"
        vm.wait_said("no answer within 4000 ms")


@case("several-servers-that-hang-cost-a-reset-or-a-change-of-memory-one-deadline")
def _(tmp):
    ram = ["-m", "64M,slots=2,maxmem=1G", "-object", "memory-backend-memfd,id=ram,size=64M,share=on", "-machine",
           "memory-backend=ram", "-object", "memory-backend-memfd,id=more,size=128M,share=on"]
    for change in (lambda vm: vm.qmp("system_reset"), lambda vm: vm.qmp("device_add", driver="pc-dimm", memdev="more")):
        with contextlib.ExitStack() as stack:
            fakes = [stack.enter_context(FakeDevice(tmp / f"s{i}", config_space(pin=1), irqs={INTX: 1}))
                     for i in range(8)]
            plugs = [word for i in range(8) for word in
                     ("-device", f"vfio-user-pci,id=d{i},addr={4 + i},socket={tmp}/s{i},x-msg-timeout=4000")]
            vm = stack.enter_context(Qemu(tmp, *plugs, ram=ram))
            for fake in fakes[1:]:
                for command in (RESET, SET_IRQS, REGION_WRITE, REGION_READ, DMA_MAP, DMA_UNMAP):
                    fake.on[command] = lambda *_: None
            start = time.monotonic()
            change(vm)
            wait_for(lambda vm=vm: not any(vm.get(f"d{i}", "connected") for i in range(1, 8)))
            assert time.monotonic() - start < 16, "each of them made the machine wait"
            assert vm.get("d0", "connected"), "a server that answers was given up"


@case("unplugging-does-not-wait-for-a-silent-server")
def _(tmp):
    with FakeDevice(tmp / "s", config_space(pin=1), irqs={INTX: 1}) as fake, \
            Qemu(tmp, *device(tmp / "s", x_msg_timeout=20000)) as vm:
        for command in (RESET, SET_IRQS, REGION_WRITE, REGION_READ, DMA_UNMAP):
            fake.on[command] = lambda *_: None
        start = time.monotonic()
        vm.qmp("device_del", id="dev")
        vm.port_write(0xAE08, 4, 1 << 4)
        vm.wait_event("DEVICE_DELETED", device="dev")
        assert time.monotonic() - start < 5


main()
