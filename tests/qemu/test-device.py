#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The vfio-user-pci device: enumeration, BARs, plugging, reset; against our servers."""
import errno
import fcntl
import json
import os
import pathlib
import signal
import socket
import struct
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main
from fakedevice import (GET_INFO, GET_REGION_INFO, MSIX, REGION_READ, REGION_WRITE, RESET, FakeDevice, Refuse,
                        config_space, msix_cap)
from qtest import MASTER, MEMORY, Qemu, QmpError, Serve, device, wait_for


@case("gpio-enumerates-and-its-pins-work")
def _(tmp):
    with Serve("gpio", tmp / "s"), Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        assert pci.config_read(0, 4) == 0x0DC8494F
        assert pci.bar_size(2)[1] & 1, "BAR 2 is not I/O"
        pci.assign(2)
        pci.bar_write(2, 0, 1, 0x5A)
        assert pci.bar_read(2, 0, 1) == 0x5A


@case("edu-computes")
def _(tmp):
    with Serve("edu", tmp / "s"), Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        assert pci.config_read(0, 4) == 0x11E81234
        assert pci.bar_size(0) == (1 << 20, 0)
        pci.assign(0)
        assert pci.bar_read(0, 0, 4) == 0x010000ED
        pci.bar_write(0, 4, 4, 0x12345678)
        assert pci.bar_read(0, 4, 4) == 0xEDCBA987
        pci.bar_write(0, 8, 4, 10)
        wait_for(lambda: not pci.bar_read(0, 0x20, 4) & 1)
        assert pci.bar_read(0, 8, 4) == 3628800


@case("mapped-bar-needs-no-message")
def _(tmp):
    with Serve("null", tmp / "s") as server, Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0, 1)
        pci.bar_write(1, 0x1000, 8, 0x1122334455667788)
        server.process.send_signal(signal.SIGSTOP)  # nobody there to answer
        assert pci.bar_read(1, 0x1000, 4) == 0x55667788
        server.process.send_signal(signal.SIGCONT)
        pci.bar_write(0, 0x10, 4, 7)
        assert pci.bar_read(0, 0x10, 4) == 7


@case("all-access-sizes-and-alignments-arrive")
def _(tmp):
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        pci.assign(0)
        fake.memory[0][:] = bytes(i & 0xFF for i in range(4096))
        for size in (1, 2, 4, 8):
            for offset in (0, 8, 0x7F8):
                assert pci.bar_read(0, offset, size) == int.from_bytes(fake.memory[0][offset:offset + size], "little")
        pci.bar_write(0, 0x100, 8, 0x0102030405060708)
        pci.bar_read(0, 0, 1)  # a read is a barrier after the posted write
        assert fake.memory[0][0x100:0x108] == bytes(range(8, 0, -1))


@case("writes-larger-than-the-server-takes-arrive")
def _(tmp):
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake:
        fake.version["capabilities"]["max_data_xfer_size"] = 4
        with Qemu(tmp, *device(tmp / "s")) as vm:
            pci = vm.pci(4)
            pci.assign(0)
            pci.bar_write(0, 0x100, 8, 0x0102030405060708)
            assert pci.bar_read(0, 0x100, 8) == 0x0102030405060708
            assert fake.memory[0][0x100:0x108] == bytes(range(8, 0, -1))


@case("posted-writes-keep-their-order-and-do-not-wait")
def _(tmp):
    seen = []

    def slow(device, payload):
        if payload[8] == 0:
            seen.append(payload[16])
            time.sleep(0.03)
        return device.cmd_10(payload, [])
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake:
        fake.on[REGION_WRITE] = slow
        for posted in (True, False):
            seen.clear()
            with Qemu(tmp, *device(tmp / "s", x_msg_timeout=20000,
                                    x_no_posted_writes="off" if posted else "on")) as vm:
                pci = vm.pci(4)
                pci.assign(0)
                start = time.monotonic()
                for i in range(100):
                    pci.bar_write(0, 0, 1, i)
                assert (time.monotonic() - start < 2.5) == posted
                assert pci.bar_read(0, 0, 1) == 99
                assert seen == list(range(100))


@case("posted-writes-and-mapped-stores-keep-their-order")
def _(tmp):
    """Only a server that says it looks at the socket first is posted to while a BAR is mapped."""
    memory, unanswered = sealed_memory(4096), []

    def write(device, payload):
        unanswered.append(device.no_reply)
        return device.cmd_10(payload, [])
    with FakeDevice(tmp / "s", bars={0: 4096, 1: 4096}) as fake:
        fake.on[GET_REGION_INFO] = mappable(memory, 4096)
        fake.on[REGION_WRITE] = write
        for ordered in (False, True):
            fake.version["capabilities"]["mapped_order"] = ordered
            with Qemu(tmp, *device(tmp / "s")) as vm:
                pci = vm.pci(4)
                pci.assign(0)
                pci.assign(1)
                unanswered.clear()
                pci.bar_write(1, 0, 4, 7)
                assert pci.bar_read(1, 0, 4) == 7
                pci.bar_write(0, 0, 4, 9)
                assert os.pread(memory, 1, 0) == b"\x09"
                assert unanswered == [ordered], unanswered
    os.close(memory)


@case("bars-of-all-kinds")
def _(tmp):
    space = config_space(bars={0: 0x4, 2: 0x1, 3: 0x8, 4: 0xC})
    with FakeDevice(tmp / "s", space, {0: 1 << 16, 2: 64, 3: 4096, 4: 1 << 20}), Qemu(tmp, *device(tmp / "s")) as vm:
        pci = vm.pci(4)
        assert [pci.bar_size(i) for i in (0, 2, 3, 4)] == [(1 << 16, 4), (64, 1), (4096, 8), (1 << 20, 12)]
        pci.assign(0, 2, 3, 4)
        for bar in (0, 2, 3, 4):
            pci.bar_write(bar, 4, 4, 0xA0 + bar)
            assert pci.bar_read(bar, 4, 4) == 0xA0 + bar


@case("command-register-is-told-to-the-server")
def _(tmp):
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        fake.log.clear()
        vm.pci(4).command(MEMORY | MASTER | 0x140)
        writes = [p for c, p in fake.log if c == REGION_WRITE]
        assert writes[-1][0:8] == (4).to_bytes(8, "little") and writes[-1][16:] == b"\x06\x00", writes


@case("server-that-refuses-registers-is-used-on")
def _(tmp):
    def refuse(fake, payload):
        offset, region, count = struct.unpack_from("<QII", payload)
        if region == 7:
            raise Refuse(errno.EINVAL)  # L-18
        return fake.cmd_10(payload, [])

    with FakeDevice(tmp / "s", bars={0: 4096}) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        fake.on[REGION_WRITE] = refuse
        pci = vm.pci(4)
        pci.assign(0)
        pci.config_write(5, 1, 1)
        pci.bar_write(0, 0x10, 4, 0x5A5A)
        assert pci.bar_read(0, 0x10, 4) == 0x5A5A
        assert pci.config_read(4, 2) & 0x102 == 0x102


@case("unmapped-registers-are-the-servers")
def _(tmp):
    with FakeDevice(tmp / "s") as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        fake.config[0x80:0x84] = b"live"
        assert vm.pci(4).config_read(0x80, 4).to_bytes(4, "little") == b"live"
        vm.pci(4).config_write(0x82, 2, 0xBEEF)
        assert fake.log[-1][1][16:] == b"\xef\xbe"


@case("capability-list-of-a-liar-is-bounded")
def _(tmp):
    """A loop, a pointer into the header, an MSI-X table outside of its BAR, a repeated MSI-X."""
    caps = [(0x40, b"\x11\x50\x03\x00\x00\xff\xff\xff\x00\x00\x00\x00"), (0x50, b"\x09\x60\x08\x00abcd"),
            (0x60, b"\x11\x70\x03\x00\x06\x00\x00\x00\x06\x00\x00\x00"), (0x70, b"\x05\x50\xff\xff")]
    with FakeDevice(tmp / "s", config_space(caps=caps), {0: 4096}, {1: 4, 2: 4}), Qemu(tmp, *device(tmp / "s")) as vm:
        assert vm.pci(4).capabilities() == {0x09: 0x50}


@case("identity-can-be-overridden")
def _(tmp):
    with FakeDevice(tmp / "s"), Qemu(tmp, *device(
            tmp / "s", x_pci_vendor_id="0x1111", x_pci_device_id="0x2222", x_pci_sub_vendor_id="0x3333",
            x_pci_sub_device_id="0x4444", x_pci_class_code="0x010802")) as vm:
        pci = vm.pci(4)
        assert pci.config_read(0, 4) == 0x22221111 and pci.config_read(0x2C, 4) == 0x44443333
        assert pci.config_read(8, 4) >> 8 == 0x010802


@case("expansion-rom-is-read-and-served")
def _(tmp):
    image = b"\x55\xaa" + bytes(range(250)) * 20
    with FakeDevice(tmp / "s", bars={6: len(image)}) as fake:
        fake.memory[6][:] = image
        with Qemu(tmp, *device(tmp / "s")) as vm:
            pci = vm.pci(4)
            pci.config_write(0x30, 4, 0xE1000001)
            pci.command(MEMORY)
            assert vm.read_bytes(0xE1000000, len(image)) == image
        with Qemu(tmp, *device(tmp / "s", rombar=0)) as vm:
            vm.pci(4).config_write(0x30, 4, 0xFFFFFFFF)
            assert vm.pci(4).config_read(0x30, 4) == 0


@case("both-forms-of-socket")
def _(tmp):
    path = str(tmp / "s")
    with FakeDevice(path) as fake:
        for words in (["-device", json.dumps({"driver": "vfio-user-pci", "id": "dev", "addr": "4",
                                              "socket": {"type": "unix", "path": path}})],
                      ["-device", json.dumps({"driver": "vfio-user-pci", "id": "dev", "addr": "4", "socket": path})],
                      ["-device", f"vfio-user-pci,id=dev,addr=4,socket.type=unix,socket.path={path}"],
                      ["-global", f"vfio-user-pci.socket={path}", "-device", "vfio-user-pci,id=dev,addr=4"]):
            before = fake.connections
            with Qemu(tmp, *words) as vm:
                assert vm.pci(4).config_read(0, 4) == 0x77774F42
                assert vm.get("dev", "socket") == {"type": "unix", "path": path}
                assert vm.get("dev", "connected") is True
            assert fake.connections == before + 1


@case("has-a-name-that-qemu-never-takes")
def _(tmp):
    with Serve("edu", tmp / "s"), Qemu(tmp, "-device", f"outboard-pci,id=dev,addr=4,socket={tmp}/s") as vm:
        assert vm.pci(4).config_read(0, 4) == 0x11E81234
        ours = {found["name"] for found in vm.qmp("qom-list-types", implements="outboard-pci")}
        taken = "has a vfio-user-pci of its own" in vm.stderr()
        assert ours == ({"outboard-pci"} if taken else {"outboard-pci", "vfio-user-pci"}), (ours, vm.stderr())


@case("connected-descriptor-as-socket")
def _(tmp):
    with FakeDevice(tmp / "s"), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(tmp / "s"))
        address = {"type": "fd", "str": str(connection.fileno())}
        words = json.dumps({"driver": "vfio-user-pci", "id": "dev", "addr": "4", "socket": address})
        with Qemu(tmp, "-device", words, pass_fds=[connection.fileno()]) as vm:
            assert vm.pci(4).config_read(0, 4) == 0x77774F42


@case("hot-plug-and-unplug-again-and-again", timeout_s=180)
def _(tmp):
    space = config_space(bars={0: 0, 1: 0}, caps=[(0x40, b"\x11\x00\x03\x00\x00\x08\x00\x00\x00\x0c\x00\x00")], pin=1)
    with FakeDevice(tmp / "s", space, {0: 4096}, {0: 1, 2: 4}), Qemu(tmp) as vm:
        def round_trip():
            vm.qmp("device_add", driver="vfio-user-pci", id="dev", addr="5", socket=str(tmp / "s"))
            pci = vm.pci(5)
            pci.assign(0)
            pci.config_write(0x42, 2, 0x8000)  # MSI-X is enabled when the device goes
            vm.qmp("device_del", id="dev")
            vm.port_write(0xAE08, 4, 1 << 5)  # the guest's ACPI ejects the slot
            vm.wait_event("DEVICE_DELETED", device="dev")
            vm.events.clear()
            vm.base["mem"] = 0xE0000000
        for _ in range(5):
            round_trip()
        fds = pathlib.Path(f"/proc/{vm.process.pid}/fd")
        before = len(list(fds.iterdir()))
        for _ in range(60):
            round_trip()
        wait_for(lambda: len(list(fds.iterdir())) <= before + 1, "the number of open files")


@case("reset-reaches-the-server")
def _(tmp):
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake, Qemu(tmp, *device(tmp / "s")) as vm:
        before = fake.count(RESET)
        vm.pci(4).assign(0)
        vm.qmp("system_reset")
        wait_for(lambda: fake.count(RESET) == before + 1)
        wait_for(lambda: vm.pci(4).config_read(4, 2) == 0, "the cleared command register")


MIGRATES = {"capabilities": {"max_msg_fds": 1, "max_data_xfer_size": 1048576, "migration": {"pgsize": 4096}}}
FEATURE = 16


@case("reset-asks-nothing-of-a-server-that-would-lose-the-stream")
def _(tmp):
    with FakeDevice(tmp / "s", bars={0: 4096}) as fake:
        fake.version = MIGRATES  # as the vfio-user crate's, which knows no DEVICE_FEATURE
        with Qemu(tmp, *device(tmp / "s")) as vm:
            before = fake.count(RESET)
            vm.qmp("system_reset")
            wait_for(lambda: fake.count(RESET) > before)
            pci = vm.pci(4)
            pci.assign(0)
            pci.bar_write(0, 0, 4, 0x77)
            assert pci.bar_read(0, 0, 4) == 0x77 and not fake.count(FEATURE)


@case("device-that-was-left-stopped-in-a-migration-is-used")
def _(tmp):
    state = [3]  # L-13: STOP_COPY, in which libvfio-user refuses even GET_INFO

    def info(fake, payload):
        if state[0] != 2:
            raise Refuse(errno.EINVAL)
        return fake.cmd_4(payload, [])

    def feature(_fake, payload):
        argsz, flags = struct.unpack_from("<II", payload)
        if flags == 1 << 17 | 2:
            state[0], = struct.unpack_from("<I", payload, 8)
            return payload
        return struct.pack("<IIII", argsz, flags, state[0], 0)

    with FakeDevice(tmp / "s", bars={0: 4096}) as fake:
        fake.version = {"capabilities": {**MIGRATES["capabilities"], "max_msg_fds": 8}}
        fake.on[GET_INFO], fake.on[FEATURE] = info, feature
        with Qemu(tmp, *device(tmp / "s")) as vm:
            assert state == [2] and vm.pci(4).config_read(0, 2) == 0x4F42


@case("migration-and-snapshots-are-refused-with-the-reason")
def _(tmp):
    with FakeDevice(tmp / "s"), Qemu(tmp, *device(tmp / "s")) as vm:
        try:
            vm.qmp("migrate", uri=f"exec:cat > {tmp}/state")
            assert False, "migration started"
        except QmpError as why:
            assert "server's process" in str(why), why
        assert "server's process" in vm.hmp("savevm a")


def mappable(memory, size):
    """A handler of GET_REGION_INFO: BAR 0 is all of the file memory."""
    def region_info(device, payload):
        if payload[8] != 0:
            return device.cmd_5(payload, [])
        return struct.pack("<IIIIQQ", 32, 7, 0, 0, size, 0), [memory]
    return region_info


def sealed_memory(size):
    memory = os.memfd_create("bar", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return memory


@case("file-that-can-shrink-is-not-mapped")
def _(tmp):
    with open(tmp / "bar", "w+b") as memory, FakeDevice(tmp / "s", bars={0: 8192}) as fake:
        memory.truncate(8192)
        fake.on[GET_REGION_INFO] = mappable(memory.fileno(), 8192)
        for unsealed in ("off", "on"):
            with Qemu(tmp, *device(tmp / "s", x_mmap_unsealed=unsealed)) as vm:
                pci = vm.pci(4)
                pci.assign(0)
                pci.bar_write(0, 0, 4, 7)
                pci.bar_read(0, 0, 4)
                assert (os.pread(memory.fileno(), 1, 0) == b"\x07") == (unsealed == "on")
            assert ("could shrink" in vm.stderr()) == (unsealed == "off")


@case("msix-table-lies-over-the-mapped-bar")
def _(tmp):
    memory = sealed_memory(8192)
    with FakeDevice(tmp / "s", config_space(caps=[(0x40, msix_cap(4, 0x800, 0xC00))]), {0: 8192}, {MSIX: 4}) as fake:
        fake.on[GET_REGION_INFO] = mappable(memory, 8192)
        with Qemu(tmp, *device(tmp / "s")) as vm:
            pci = vm.pci(4)
            pci.assign(0)
            for offset in (0x7FC, 0x800, 0x840):
                pci.bar_write(0, offset, 4, 0x11111111)
            assert pci.bar_read(0, 0x800, 4) == 0x11111111
            assert os.pread(memory, 4, 0x800) == bytes(4), "the server saw the table"
            assert os.pread(memory, 4, 0x7FC) == os.pread(memory, 4, 0x840) == b"\x11" * 4
            os.pwrite(memory, b"\xff", 0xC00)
            assert pci.bar_read(0, 0xC00, 4) == 0, "the pending bits are the server's"
    os.close(memory)


@case("mapped-areas-come-back-after-intx")
def _(tmp):
    """While the line is asserted an access must be seen; then the areas are mapped again."""
    memory = sealed_memory(8192)
    with FakeDevice(tmp / "s", config_space(pin=1), {0: 8192}, {0: 1}) as fake:
        fake.on[GET_REGION_INFO] = mappable(memory, 8192)
        with Qemu(tmp, *device(tmp / "s", x_intx_mmap_timeout_ms=50)) as vm:
            pci = vm.pci(4)
            pci.assign(0)
            pci.bar_write(0, 0x100, 4, 0xCAFE)
            assert fake.count(REGION_WRITE) and os.pread(memory, 2, 0x100) == b"\xfe\xca"
            reads = fake.count(REGION_READ)
            fake.trigger(0)
            wait_for(pci.intx)
            reads = fake.count(REGION_READ)
            pci.bar_read(0, 0, 4)
            assert fake.count(REGION_READ) == reads + 1 and not pci.intx()

            def mapped():
                reads = fake.count(REGION_READ)
                pci.bar_read(0, 0, 4)
                return fake.count(REGION_READ) == reads
            wait_for(mapped, "the mapped area")
    os.close(memory)


main()
