#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""With rust-vmm's crate vfio-user: its example gpio, which serves one client and ends, and a client of ours that is
linked to it. OUTBOARD_RUST_VFIO_USER names cargo's folder of the build (target/release)."""
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main, skip  # noqa: E402
from guest import boot, disk, pci_address, serve  # noqa: E402
from peers import check, info, mortal_server, peer_server, program  # noqa: E402


def words(path):
    return [program("OUTBOARD_RUST_VFIO_USER", "examples/gpio"), "--socket-path", path]


@case("library-describes-its-gpio")
def _(tmp):
    path = tmp / "s"
    with mortal_server(words(path), path):
        found = info(path)
        assert (found["vendor_id"], found["device_id"]) == (0x494F, 0x0DC8), found
        assert [(r["name"], r["size"]) for r in found["regions"]] == [("BAR2", 256), ("config", 256)], found


@case("linux-drives-its-gpio-through-our-device", 180)
def _(tmp):
    path = tmp / "s"
    with peer_server(tmp, words(path), path), boot(tmp, f"vfio-user-pci,socket={path}", kernel="full") as vm:
        card = f"/sys/bus/pci/devices/{pci_address(vm, '494f:0dc8')}"
        vm.run(f"modprobe gpio-pci-idio-16 && test -e {card}/driver && test -e /sys/class/gpio/gpiochip*/base")
        # Its first register, which Linux's driver does not read, is 1 at every third reading.
        values = vm.run(f"for i in $(seq 9); do dd if={card}/resource2 bs=1 count=1 2>/dev/null | od -An -tu1; done")
        values = values.split()
        assert sorted(values[:3]) == ["0", "0", "1"] and values == values[:3] * 3, values


@case("conformance-suite-survives-its-gpio", 260)
def _(tmp):
    with mortal_server(words(tmp / "s"), tmp / "s"):
        check(tmp / "s", 130)


@case("its-client-uses-every-server-of-ours", 120)
def _(tmp):
    crate = program("OUTBOARD_RUST_VFIO_USER", "libvfio_user.rlib")
    if not shutil.which("rustc"):
        skip("there is no rustc")
    client = tmp / "client"
    subprocess.run(["rustc", "--edition=2021", "-o", client, pathlib.Path(__file__).with_name("rust_client.rs"),
                    "--extern", f"vfio_user={crate}", "-L", f"dependency={crate.parent}/deps"], check=True)
    memory = disk(tmp, "memory", size_mib=1)
    for name, args, identity in (("gpio", (), "494f:0dc8"), ("edu", (), "1234:11e8"), ("null", (), "4f42:0002"),
                                 ("nvme", ("mem:1M",), "4f42:0001")):
        with serve(tmp, name, "--dma-files=any", *args) as server:
            for _ in range(2):  # the second finds what the first left
                done = subprocess.run([client, server.path, memory], stdin=subprocess.DEVNULL, timeout=20,
                                      capture_output=True, text=True)
                assert (done.returncode, done.stdout.strip()) == (0, identity), (name, done)


main()
