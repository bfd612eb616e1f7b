#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Guest memory as the server sees it: by file descriptor and by message."""
import errno
import os
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main
from fakedevice import DMA_MAP, REGION_READ, REGION_WRITE, FakeDevice, Refuse, config_space
from qtest import IO, MEMORY, Qemu, QmpError, Serve, device, shared_ram, wait_for

CARD_BUFFER = 0x40000
PRIVATE = ["-m", "64"]
TO_RAM, FROM_RAM = 3, 1


def edu_dma(pci, source, destination, count, command):
    for offset, value in ((0x80, source), (0x88, destination), (0x90, count), (0x98, command)):
        pci.bar_write(0, offset, 8, value)
    wait_for(lambda: not pci.bar_read(0, 0x98, 4) & 1, "the transfer's end")


def edu_round_trip(tmp, ram):
    data = os.urandom(4096)
    with Serve("edu", tmp / "s"), Qemu(tmp, *device(tmp / "s"), ram=ram) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        for source, destination in ((0x200000, 0x300000), (0x1FF123, 0x300FF0)):
            vm.write_bytes(source, data)
            edu_dma(pci, source, CARD_BUFFER, len(data), FROM_RAM)
            edu_dma(pci, CARD_BUFFER, destination, len(data), TO_RAM)
            assert vm.read_bytes(destination, len(data)) == data
        pci.command(MEMORY)  # no bus mastering
        vm.write_bytes(0x300000, bytes(4096))
        edu_dma(pci, CARD_BUFFER, 0x300000, 4096, TO_RAM)
        assert vm.read_bytes(0x300000, 4096) == bytes(4096)
    return vm.stderr()


@case("edu-transfers-with-shared-ram")
def _(tmp):
    assert "not shared" not in edu_round_trip(tmp, None)


@case("edu-transfers-with-private-ram")
def _(tmp):
    text = edu_round_trip(tmp, PRIVATE)
    assert text.count("not shared memory") == 1 and "share=on" in text, text


@case("ram-that-the-server-could-cut-is-warned-of-once")
def _(tmp):
    text = "guest RAM is in a file that the server could cut"
    for backend, said in (("memfd,seal=on", 0), ("memfd,seal=off", 1), (f"file,mem-path={tmp}/ram", 1)):
        ram = ["-m", "64", "-object", f"memory-backend-{backend},id=ram,size=64M,share=on",
               "-machine", "memory-backend=ram"]
        with FakeDevice(tmp / "s") as fake, Qemu(tmp, *device(tmp / "s"), ram=ram) as vm:
            assert any(m["fd"] >= 0 for m in fake.maps.values()), "it is not shared"
            if said:
                vm.wait_said(text)
            assert vm.stderr().count(text) == said, vm.stderr()


def check_handed_out(tmp, ram):
    with FakeDevice(tmp / "s") as fake, Qemu(tmp, *device(tmp / "s"), ram=ram) as vm:
        vm.write_bytes(0x100000, b"here")
        vm.write_bytes(0x2345678, b"there")
        shared = {a: m for a, m in fake.maps.items() if m["fd"] >= 0}
        assert max(a + m["size"] for a, m in shared.items()) == 64 << 20

        def file_at(address, count):
            base, m = next((a, m) for a, m in shared.items() if a <= address < a + m["size"])
            return os.pread(m["fd"], count, m["offset"] + address - base)
        assert file_at(0x100000, 4) == b"here" and file_at(0x2345678, 5) == b"there"
        assert all(a % 4096 == 0 and m["size"] % 4096 == 0 for a, m in fake.maps.items())
        firmware = [m for a, m in fake.maps.items() if a + m["size"] == 1 << 32]
        assert firmware and firmware[0]["flags"] == 1 and firmware[0]["fd"] < 0, fake.maps


@case("shared-ram-is-handed-out-at-the-right-offset")
def _(tmp):
    with Qemu(tmp) as vm:
        offset = any(p["name"] == "offset" for p in vm.qmp("qom-list-properties", typename="memory-backend-file"))
    (tmp / "ram").touch()
    os.truncate(tmp / "ram", 66 << 20)
    inside_a_file = f"memory-backend-file,id=ram,size=64M,share=on,mem-path={tmp}/ram{',offset=2M' * offset}"
    for ram in shared_ram(64), ["-m", "64", "-object", inside_a_file, "-machine", "memory-backend=ram"]:
        check_handed_out(tmp, ram)


@case("private-ram-is-never-handed-out")
def _(tmp):
    private_memfd = ["-m", "64", "-object", "memory-backend-memfd,id=ram,size=64M,share=off", "-machine",
                     "memory-backend=ram"]
    for ram in (PRIVATE, private_memfd):
        with FakeDevice(tmp / "s") as fake, Qemu(tmp, *device(tmp / "s"), ram=ram):
            assert fake.maps and all(m["fd"] < 0 for m in fake.maps.values())


def with_access(tmp, act, **options):
    """Runs act(device) inside the server's handling of a BAR read; returns what it returned."""
    results = []

    def handler(device, payload):
        if payload[8] == 0:
            results.append(act(device))
        return device.cmd_9(payload, [])
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake, Qemu(tmp, *device(tmp / "s"), **options) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        vm.write_bytes(0x200000, b"guest data")
        fake.on[REGION_READ] = handler
        assert pci.bar_read(0, 0, 4) == 0
        return results[0]


@case("dma-by-message-inside-a-register-access")
def _(tmp):
    assert with_access(tmp, lambda d: (d.dma_read(0x200000, 10), d.dma_write(0x200000, b"x" * 5000),
                                       d.dma_read(0x200FFE, 4))) == (b"guest data", 0, b"xxxx")


@case("dma-by-message-within-and-across-memory-regions")
def _(tmp):
    """What lies in one region is lent, what spans the firmware's ROM and the RAM above it is not."""
    read, data = [], os.urandom(1 << 20)

    def handler(device, payload):
        if payload[8] == 0:
            read.extend(device.dma_read(*part) for part in ((0x200000, 1 << 20), (0xFF000, 0x2000)))
        return device.cmd_9(payload, [])
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake, Qemu(tmp, *device(tmp / "s"), ram=PRIVATE) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        vm.write_bytes(0x200000, data)
        vm.write_bytes(0x100000, b"above")
        fake.on[REGION_READ] = handler
        assert pci.bar_read(0, 0, 4) == 0
        across = vm.read_bytes(0xFF000, 0x2000)
    assert across[0x1000:0x1005] == b"above" and across[:0x1000].strip(b"\0")
    assert read == [data, across], [len(part) if isinstance(part, bytes) else part for part in read]


@case("dma-by-message-out-of-memory-is-refused")
def _(tmp):
    results = with_access(tmp, lambda d: [d.dma_read(0x80000000, 4), d.dma_read(0xFFFFFFFFFFFFFFF0, 32),
                                          d.dma_write(0x3FFFFFC, b"across the end"), d.dma_write(0xFFFFF000, b"rom"),
                                          d.dma_read(0xE0000000, 4)])
    assert all(isinstance(r, int) and r > 0 for r in results), results


@case("dma-by-message-to-a-device-is-posted")
def _(tmp):
    """A server that writes to its own BAR in the middle of a read: no deadlock, and it arrives."""
    def handler(device, payload):
        if payload[8] == 0 and not device.memory[0][0x100]:
            assert device.dma_write(0xE0000100, b"\x5a\0\0\0") == 0
        return device.cmd_9(payload, [])
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        fake.on[REGION_READ] = handler
        pci.bar_read(0, 0, 4)
        wait_for(lambda: fake.memory[0][0x100] == 0x5A, "the write")


@case("servers-that-write-to-bars-do-not-make-the-machine-wait-for-servers")
def _(tmp):
    """To its own, and to that of another one which answers nothing either."""
    def handler(device, payload):
        if payload[8] == 0:
            for address in (0xE0000100, 0xE0001100):
                assert device.dma_write(address, b"\x5a\0\0\0") == 0
        return device.cmd_9(payload, [])

    def silent(_device, payload):
        arrived.append(payload)
    arrived = []
    with FakeDevice(tmp / "s", config_space(pin=1), {0: 4096}, {0: 1}) as fake, \
            FakeDevice(tmp / "other", bars={0: 4096}) as other, \
            Qemu(tmp, *device(tmp / "s", x_no_posted_writes="on", x_msg_timeout=20000), "-device",
                 f"vfio-user-pci,addr=5,socket={tmp}/other,x-no-posted-writes=on,x-msg-timeout=20000") as vm:
        pci = vm.pci(4)
        pci.assign(0)
        vm.pci(5).assign(0)
        fake.on[REGION_READ] = handler
        fake.on[REGION_WRITE] = other.on[REGION_WRITE] = silent
        fake.trigger(0)
        start = time.monotonic()
        for _ in range(8):
            pci.bar_read(0, 0, 4)
            assert vm.qmp("query-status")["running"]
        assert time.monotonic() - start < 10, "the machine waited"
        wait_for(lambda: len(arrived) == 16, "the writes")


@case("bus-mastering-gates-dma-by-message")
def _(tmp):
    results = []

    def handler(device, payload):
        if payload[8] == 0:
            results.append(device.dma_read(0x200000, 4))
        return device.cmd_9(payload, [])
    with FakeDevice(tmp / "s", config_space(bars={0: 1}), {0: 64}) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        fake.on[REGION_READ] = handler
        pci.command(IO)
        pci.bar_read(0, 0, 4)
        pci.assign()
        pci.bar_read(0, 0, 4)
        assert isinstance(results[0], int) and results[1] == bytes(4), results


@case("flood-of-dma-starves-neither-the-monitor-nor-other-devices")
def _(tmp):
    stop, started, answered = threading.Event(), threading.Event(), []

    def handler(device, payload):
        if payload[8] == 0:
            started.set()
            answered.append(device.flood(stop))
        return device.cmd_10(payload, [])
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake, FakeDevice(tmp / "other", bars={0: 4096}) as other, \
            Qemu(tmp, *device(tmp / "s"), "-device", f"vfio-user-pci,addr=5,socket={tmp}/other") as vm:
        pci = vm.pci(4)
        pci.assign(0)
        quiet = vm.pci(5)
        quiet.assign(0)
        fake.on[REGION_WRITE] = handler
        other.memory[0][0] = 0x5A
        pci.bar_write(0, 0, 4, 1)  # posted: nobody waits while the server does what it likes
        assert started.wait(30)
        slowest = 0
        for _ in range(50):
            start = time.monotonic()
            vm.qmp("query-status")
            assert quiet.bar_read(0, 0, 1) == 0x5A
            slowest = max(slowest, time.monotonic() - start)
        stop.set()
        wait_for(lambda: answered, "the end of the flood")
        assert vm.get("dev", "connected") and answered[0] > 64, answered
        assert slowest < 2, slowest


DIMM = ["-m", "64,slots=2,maxmem=1G"]


def add_dimm(vm):
    vm.qmp("object-add", qom_type="memory-backend-memfd", id="more", size=128 << 20, share=True)
    vm.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more")


@case("memory-plugged-in-later-is-mapped")
def _(tmp):
    with FakeDevice(tmp / "s") as fake, Qemu(tmp, *device(tmp / "s"), ram=DIMM) as vm:
        before = set(fake.maps)
        add_dimm(vm)
        added = [fake.maps[a] for a in set(fake.maps) - before]
        assert len(added) == 1 and added[0]["size"] == 128 << 20 and added[0]["fd"] >= 0


@case("memory-plugged-in-after-the-server-died")
def _(tmp):
    with Serve("edu", tmp / "s") as server, Qemu(tmp, *device(tmp / "s"), ram=DIMM) as vm:
        server.process.kill()
        wait_for(lambda: vm.get("dev", "connected") is False)
        add_dimm(vm)
        assert vm.qmp("query-status")["running"]


@case("refused-map-takes-the-device-down-not-the-machine")
def _(tmp):
    def refuse(*_):
        raise Refuse(errno.ENOSPC)
    with FakeDevice(tmp / "s") as fake, Qemu(tmp, *device(tmp / "s"), ram=DIMM) as vm:
        fake.on[DMA_MAP] = refuse
        add_dimm(vm)
        wait_for(lambda: vm.get("dev", "connected") is False)
        vm.wait_said("does not map guest memory")
        assert vm.pci(4).config_read(0, 4) == 0xFFFFFFFF


@case("balloon-and-virtio-mem-cannot-take-memory-away")
def _(tmp):
    with FakeDevice(tmp / "s"), Qemu(tmp, *device(tmp / "s"), ram=DIMM) as vm:
        vm.qmp("object-add", qom_type="memory-backend-memfd", id="more", size=128 << 20, share=True)
        try:
            vm.qmp("device_add", driver="virtio-mem-pci", id="vmem", memdev="more", addr="7")
            assert False, "virtio-mem came up"
        except QmpError as why:
            assert "discard" in str(why).lower(), why
        vm.qmp("device_del", id="dev")
        vm.port_write(0xAE08, 4, 1 << 4)
        vm.wait_event("DEVICE_DELETED", device="dev")
        vm.qmp("device_add", driver="virtio-mem-pci", id="vmem", memdev="more", addr="7")


main()
