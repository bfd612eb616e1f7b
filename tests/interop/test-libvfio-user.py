#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""With libvfio-user's sample programs, taken from a build of it that OUTBOARD_LIBVFIO_USER names."""
import contextlib
import errno
import pathlib
import re
import struct
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main  # noqa: E402
from guest import boot, pci_address, serve  # noqa: E402
from peer import Peer, Refused  # noqa: E402
from peers import check, info, mortal_server, peer_server, program  # noqa: E402

GET_INFO, FEATURE, STOP_COPY = 4, 16, 3


def sample(name):
    return program("OUTBOARD_LIBVFIO_USER", f"samples/{name}")


@contextlib.contextmanager
def sample_server(tmp, name, *args):
    """Its path, and its log's."""
    path = tmp / f"{name}.sock"
    with peer_server(tmp, [sample(name), *args, path], path) as log:
        yield path, log


@case("library-describes-its-gpio")
def _(tmp):
    with sample_server(tmp, "gpio-pci-idio-16") as (path, _):
        for _ in range(3):  # it takes one client after the other
            found = info(path)
            assert (found["vendor_id"], found["device_id"]) == (0x494F, 0x0DC8), found
            assert [(r["name"], r["size"]) for r in found["regions"]] == [("BAR2", 256), ("config", 256)], found


@case("device-that-was-left-stopped-in-it-is-used-again")
def _(tmp):
    with sample_server(tmp, "gpio-pci-idio-16") as (path, _):
        with Peer(path) as peer:
            peer.ask(FEATURE, struct.pack("<IIII", 16, 1 << 17 | 2, STOP_COPY, 0))
        with Peer(path) as peer:  # L-13: its state stays, and it refuses nearly everything
            try:
                peer.ask(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
                raise AssertionError("the quirk L-13 is gone")
            except Refused as why:
                assert why.errno == errno.EINVAL, why
        assert info(path)["device_id"] == 0x0DC8
        with Peer(path) as peer:  # it runs
            assert len(peer.ask(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))) == 16


@case("library-describes-its-mappable-bar")
def _(tmp):
    path = tmp / "server.sock"
    with mortal_server([sample("server"), path], path):
        areas = info(path)["regions"][1]["mappable"]
        assert [(a["offset"], a["size"]) for a in areas] == [(0, 0x1000), (0x2000, 0x1000)], areas


@case("linux-drives-its-gpio-through-our-device", 180)
def _(tmp):
    with sample_server(tmp, "gpio-pci-idio-16") as (path, _), \
            boot(tmp, f"vfio-user-pci,socket={path}", kernel="full") as vm:
        pci_address(vm, "494f:0dc8")
        vm.run("modprobe gpio-pci-idio-16")
        # The sample counts the ones written to an output; its input is 1 at every third.
        values = vm.run("cd /sys/class/gpio && base=$(cat gpiochip*/base) && echo $base >export && "
                        "echo $((base + 16)) >export && echo out >OUT0/direction && "
                        "for i in $(seq 9); do echo 1 >OUT0/value; cat IIN0/value; done").split()
        assert sorted(values[:3]) == ["0", "0", "1"] and values == values[:3] * 3, values


@case("its-server-gets-our-memory-map-and-interrupts", 180)
def _(tmp):
    with sample_server(tmp, "server", "-v") as (path, log), boot(tmp, f"vfio-user-pci,socket={path}") as vm:
        vm.run(f"test -d /sys/bus/pci/devices/{pci_address(vm, 'dead:beef')}")
        text = log.read_text()
        assert re.search(r"mapped DMA region iova=\[0x100000, ", text), text
        assert re.search(r"setting IRQ INTx flags=0x24 range \[0, 1\)", text), text


@case("its-client-negotiates-with-every-server-of-ours", 120)
def _(tmp):
    """The sample goes on as far as its own server's identity, which it insists on. (Nor does it take a
    mappable BAR other than BAR1.)"""
    client = sample("client")
    for name, args in (("gpio", ()), ("edu", ()), ("null", ()), ("nvme", ("mem:1M", "--doorbells", "trapped"))):
        with serve(tmp, name, *args) as server:
            done = subprocess.run([client, server.path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, timeout=60)
            assert "config_space.id.vid == 0xdead" in done.stdout, (name, done.stdout)
            with Peer(server.path) as peer:  # and the next client is served
                assert len(peer.read(7, 0, 4)) == 4


for _name, _least in (("gpio-pci-idio-16", 300), ("server", 310)):
    @case(f"conformance-suite-survives-its-{_name}", 260)
    def _(tmp, name=_name, least=_least):
        with mortal_server([sample(name), tmp / "s"], tmp / "s"):
            check(tmp / "s", least)


main()
