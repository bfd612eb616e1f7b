#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The vfio-user-pci device with `reconnect`: its server is killed, and another one takes over."""
import contextlib
import pathlib
import signal
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main  # noqa: E402
from fakedevice import (DMA_MAP, GET_INFO, GET_REGION_IO_FDS, INTX, MSIX, REGION_WRITE, RESET, VERSION,  # noqa: E402
                        Bells, FakeDevice, Gone, config_space, msix_cap)
from qtest import Qemu, QmpError, Serve, device, wait_for  # noqa: E402

IO_BASE = 0xC000
# Reads the byte at port 0xc000 again and again: the bits that ever came are at 0x500, how often at 0x504.
READ_PORT = bytes.fromhex("ba00c0" "ec" "08060005" "66ff060405" "ebf4")


def connected(vm):
    return vm.get("dev", "connected")


def wait_back(vm, times):
    wait_for(lambda: vm.get("dev", "reconnects") == times and connected(vm), f"reconnect {times}")
    wait_for(lambda: vm.stderr().count("the server is back after") == times, "word of it")


def wait_gone(vm):
    wait_for(lambda: not connected(vm), "loss of the server")


@case("a-killed-server-is-found-again")
def _(tmp):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Serve("edu", tmp / "s"))
        vm = stack.enter_context(Qemu(tmp, *device(tmp / "s", reconnect=30)))
        pci = vm.pci(4)
        pci.assign(0)
        assert vm.get("dev", "last-error") == ""
        requests = vm.get("dev", "requests")
        for times in range(1, 4):
            server.process.kill()
            server.process.wait()
            wait_gone(vm)
            assert pci.bar_read(0, 0, 4) == 0xFFFFFFFF  # the main loop does not wait
            assert pci.config_read(0, 4) == 0x11E81234  # the device has not gone
            vm.wait_event("__outboard_SERVER_LOST", device="dev", path="/machine/peripheral/dev", reconnect=True,
                          reason="the server closed the connection")
            vm.wait_said("lost the server: the server closed the connection; looking for it for 30 s (reconnect)")
            server = stack.enter_context(Serve("edu", tmp / "s"))
            wait_back(vm, times)
            vm.wait_event("__outboard_SERVER_REGAINED", device="dev", path="/machine/peripheral/dev")
            vm.events.clear()
            assert vm.get("dev", "last-error") == "the server closed the connection"
            assert pci.bar_read(0, 0, 4) == 0x010000ED
            pci.bar_write(0, 8, 4, 5)
            wait_for(lambda: not pci.bar_read(0, 0x20, 4) & 1)
            assert pci.bar_read(0, 8, 4) == 120
        assert vm.get("dev", "requests") > requests
        assert vm.stderr().count("lost the server") == 3


@case("a-vcpu-waits-for-the-server-and-sees-no-all-ones")
def _(tmp):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Serve("gpio", tmp / "s"))
        vm = stack.enter_context(Qemu(tmp, *device(tmp / "s", reconnect=30, x_msg_timeout=20000), code=READ_PORT))
        pci = vm.pci(4)
        pci.assign(2)
        assert pci.bars[2] == ("io", IO_BASE)
        for times in range(1, 6):
            vm.write(0x500, 8, 0)
            wait_for(lambda: vm.read(0x504, 4) > 100)
            vm.write(0x500, 1, 0)
            server.process.kill()
            server.process.wait()
            wait_gone(vm)
            assert vm.qmp("query-status")["running"]
            server = stack.enter_context(Serve("gpio", tmp / "s"))
            wait_back(vm, times)
            count = vm.read(0x504, 4)
            wait_for(lambda: vm.read(0x504, 4) > count + 100)
            assert vm.read(0x500, 1) == 0
        pci.command(0)  # else the processor would wait for the server again, and QEMU's end for it


@case("a-vcpu-that-waits-for-long-goes-on-with-all-ones")
def _(tmp):
    with Serve("gpio", tmp / "s") as server, \
            Qemu(tmp, *device(tmp / "s", reconnect=600, x_msg_timeout=1000), code=READ_PORT) as vm:
        vm.pci(4).assign(2)
        vm.write(0x500, 8, 0)
        wait_for(lambda: vm.read(0x504, 4) > 100)
        vm.write(0x500, 1, 0)
        server.process.kill()
        wait_for(lambda: vm.read(0x500, 1) == 0xFF)
        assert not connected(vm)
        vm.qmp("system_reset")
        vm.wait_event("RESET")


@case("what-the-server-shares-is-mapped-anew")
def _(tmp):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Serve("null", tmp / "s"))
        vm = stack.enter_context(Qemu(tmp, *device(tmp / "s", reconnect=30)))
        pci = vm.pci(4)
        pci.assign(0, 1)
        for times in range(1, 4):
            pci.bar_write(1, 0x1000, 8, 0x1122334455667788)
            server.process.kill()
            server.process.wait()
            wait_gone(vm)
            wait_for(lambda: pci.bar_read(1, 0x1000, 8) == 0xFFFFFFFFFFFFFFFF)
            server = stack.enter_context(Serve("null", tmp / "s"))
            wait_back(vm, times)
            assert pci.bar_read(1, 0x1000, 8) == 0  # the memory of the new one
            pci.bar_write(1, 0x2000, 4, times)
            server.process.send_signal(signal.SIGSTOP)  # nobody there to answer: it is mapped
            assert pci.bar_read(1, 0x2000, 4) == times
            server.process.send_signal(signal.SIGCONT)
            pci.bar_write(0, 0x10, 4, 7)
            assert pci.bar_read(0, 0x10, 4) == 7


@case("interrupts-memory-and-the-command-register-are-set-up-again")
def _(tmp):
    config = config_space(caps=[(0x40, msix_cap(4, 0, 0x800))], pin=1)
    with FakeDevice(tmp / "s", config=config, bars={0: 4096}, irqs={INTX: 1, MSIX: 4}) as fake:
        with Qemu(tmp, *device(tmp / "s", reconnect=30)) as vm:
            pci = vm.pci(4)
            pci.assign(0)
            before = dict(fake.maps)
            armed = set(fake.eventfds)
            assert before and armed
            fake.log.clear()
            fake.drop()
            wait_back(vm, 1)
            assert {k: (m["size"], m["flags"]) for k, m in fake.maps.items()} == \
                {k: (m["size"], m["flags"]) for k, m in before.items()}
            assert set(fake.eventfds) == armed
            # Memory comes first, and the command register, with which the device may use it, last.
            kinds = [entry[0] for entry in fake.log if entry[0] in (DMA_MAP, REGION_WRITE)]
            assert kinds.index(REGION_WRITE) > max(i for i, kind in enumerate(kinds) if kind == DMA_MAP)
            fake.trigger(INTX)
            wait_for(pci.intx)


@case("a-server-may-use-memory-while-it-is-asked-who-it-is")
def _(tmp):
    seen = []

    def read_memory(fake, payload):
        seen.append(fake.dma_read(0x1000, 8))
        return fake.cmd_4(payload, [])
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake, Qemu(tmp, *device(tmp / "s", reconnect=30)) as vm:
        vm.pci(4).assign(0)
        vm.write_bytes(0x1000, b"in there")
        fake.on[GET_INFO] = read_memory
        for times in range(1, 4):
            fake.drop()
            wait_back(vm, times)
            assert seen.pop() == b"in there"


@case("eventfds-for-writes-are-taken-anew")
def _(tmp):
    with Bells(tmp / "s", (0x10, 4, 0, 0)) as fake, Qemu(tmp, *device(tmp / "s", reconnect=30)) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        pci.bar_write(0, 0x10, 4, 1)
        assert fake.rung() == [1]
        fake.renew()
        fake.drop()
        wait_back(vm, 1)
        pci.bar_write(0, 0x10, 4, 1)
        assert fake.rung() == [1]


@case("a-server-that-is-back-and-slow-keeps-the-machine-for-one-deadline")
def _(tmp):
    slowest = 0
    with Bells(tmp / "s", (0x10, 4, 0, 0), bars=4) as fake, \
            Qemu(tmp, *device(tmp / "s", reconnect=30, x_msg_timeout=2000)) as vm:
        def later(device, payload):
            threading.Event().wait(1.8)
            return device.describe(payload)
        fake.on[GET_REGION_IO_FDS] = later
        fake.drop()
        while "the server is back after" not in vm.stderr():
            start = time.monotonic()
            vm.qmp("query-status")
            slowest = max(slowest, time.monotonic() - start)
        assert slowest < 4, slowest


@case("resets-and-memory-while-the-server-is-away-are-made-up-for")
def _(tmp):
    with contextlib.ExitStack() as stack:
        fake = stack.enter_context(FakeDevice(tmp / "s", bars={0: 4096}))
        vm = stack.enter_context(Qemu(tmp, *device(tmp / "s", reconnect=30), "-m", "64,slots=2,maxmem=1G",
                                      ram=["-object", "memory-backend-memfd,id=ram,size=64M,share=on",
                                           "-machine", "memory-backend=ram"]))
        vm.pci(4).assign(0)
        maps = len(fake.maps)

        def leave(_device, _payload):
            raise Gone
        fake.on[VERSION] = leave
        fake.drop()
        wait_gone(vm)
        resets = fake.count(RESET)
        vm.qmp("object-add", qom_type="memory-backend-memfd", id="more", size=64 << 20, share=True)
        vm.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more")
        vm.qmp("system_reset")
        vm.wait_event("RESET")
        del fake.on[VERSION]
        wait_back(vm, 1)
        assert len(fake.maps) == maps + 1
        assert fake.count(RESET) == resets + 1


@case("a-server-that-hangs-on-a-change-of-memory-is-replaced-by-one-that-does-not")
def _(tmp):
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake, \
            Qemu(tmp, *device(tmp / "s", reconnect=30, x_msg_timeout=500), "-m", "64,slots=2,maxmem=1G",
                 ram=["-object", "memory-backend-memfd,id=ram,size=64M,share=on",
                      "-machine", "memory-backend=ram"]) as vm:
        vm.pci(4).assign(0)
        maps = len(fake.maps)
        fake.on[DMA_MAP] = lambda _device, _payload: fake.on.pop(DMA_MAP) and None
        vm.qmp("object-add", qom_type="memory-backend-memfd", id="more", size=64 << 20, share=True)
        vm.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more")
        wait_back(vm, 1)
        assert "does not map guest memory" in vm.get("dev", "last-error"), vm.get("dev", "last-error")
        assert len(fake.maps) == maps + 1


@case("unplugging-works-while-the-server-is-away")
def _(tmp):
    with Serve("edu", tmp / "s") as server, Qemu(tmp, *device(tmp / "s", reconnect=600)) as vm:
        server.process.kill()
        wait_gone(vm)
        vm.qmp("device_del", id="dev")
        vm.qmp("system_reset")  # nobody there to agree to it
        vm.wait_event("DEVICE_DELETED", device="dev")
        with Serve("edu", tmp / "t"):
            vm.qmp("device_add", driver="vfio-user-pci", id="dev", addr="4", socket=str(tmp / "t"))
            assert connected(vm)


@case("another-device-is-refused-and-named")
def _(tmp):
    with Serve("edu", tmp / "s") as server, Qemu(tmp, *device(tmp / "s", reconnect=600)) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        server.process.kill()
        server.process.wait()
        wait_gone(vm)
        with Serve("null", tmp / "s"):
            said = vm.wait_said("the guest reads all-ones")
            assert "another device answers: its vendor ID is 0x4f42, not 0x1234" in said, said
            assert pci.config_read(0, 4) == 0xFFFFFFFF
            assert "another device answers" in vm.get("dev", "last-error")


@case("a-server-that-comes-and-goes-fills-no-log", 120)
def _(tmp):
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake, Qemu(tmp, *device(tmp / "s", reconnect=30)) as vm:
        for times in range(1, 46):
            fake.drop()
            wait_for(lambda: vm.get("dev", "reconnects") == times, f"reconnect {times}")
        assert 20 <= vm.stderr().count("\n") <= 80, vm.stderr()  # that took less than two minutes
        assert sum(e["event"] == "__outboard_SERVER_REGAINED" for e in vm.events) >= 40


@case("a-server-that-stays-away-is-given-up")
def _(tmp):
    with Serve("edu", tmp / "s") as server, Qemu(tmp, *device(tmp / "s", reconnect=1)) as vm:
        server.process.kill()
        said = vm.wait_said("the guest reads all-ones")
        assert "it did not come back within 1000 ms: nobody listens on" in said, said
        assert vm.stderr().count("lost the server") == 2, vm.stderr()
        assert not connected(vm)
        assert vm.get("dev", "reconnects") == 0


@case("reconnect-needs-a-path-and-a-sane-number")
def _(tmp):
    with Serve("edu", tmp / "s"), Qemu(tmp) as vm:
        for properties, what in (({"reconnect": 2147484}, "reconnect is 2147484: it is seconds, at most 2147483"),
                                 ({"reconnect": -1}, "reconnect")):
            try:
                vm.qmp("device_add", driver="vfio-user-pci", socket=str(tmp / "s"), **properties)
            except QmpError as error:
                assert what in str(error), error
            else:
                raise AssertionError("accepted")


main()
