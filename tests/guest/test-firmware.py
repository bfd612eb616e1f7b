#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's own firmware, SeaBIOS, drives the NVMe disk and boots from it: a driver that is not Linux's."""
import pathlib
import struct
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main  # noqa: E402
from guest import device, disk, serve  # noqa: E402
from qtest import launcher, named, shared_ram  # noqa: E402

TIMEOUT_S = 240
ENDED_WELL = 1  # what isa-debug-exit makes of 0
PACKET, TEXT = 0x7D00, 0x7E00  # at the end of the boot sector, and behind it

BOOT_SECTOR = b"".join([
    b"\xfa\x31\xc0\x8e\xd8\x8e\xd0\xbc\x00\x7c\xfb",            # all segments 0, stack below us
    b"\xb4\x42\xbe", struct.pack("<H", PACKET), b"\xcd\x13",    # read what the packet says, from the drive in DL
    b"\xba\xf8\x03\xbe", struct.pack("<H", TEXT),               # print to the serial port
    b"\xac\x84\xc0\x74\x03\xee\xeb\xf8",                        # ... until a zero byte
    b"\xe6\xf4\xf4\xeb\xfd",                                    # out 0xf4, 0: end of QEMU; hlt
])


def bootable(tmp, name, text, at):
    """A disk whose boot sector prints the text that is in block AT."""
    path = disk(tmp, f"{name}.img")
    packet = struct.pack("<BBHHHQ", 16, 0, 1, TEXT, 0, at)
    with open(path, "r+b") as out:
        out.write(BOOT_SECTOR.ljust(PACKET - 0x7C00, b"\0") + packet)
        out.seek(510)
        out.write(b"\x55\xaa")
        out.seek(512 * at)
        out.write(text.encode() + b"\0")
    return path


def printed_at_boot(ram, *devices):
    command = [*launcher(), "-accel", "tcg", *ram, "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
               "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    for text in devices:
        command += ["-device", named(text)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S / 2, text=True)
    assert done.returncode == ENDED_WELL, done
    return done.stdout


@case("boots-from-the-disk-with-the-lowest-bootindex", TIMEOUT_S)
def _(tmp):
    first, second = bootable(tmp, "first", "the first disk", 1), bootable(tmp, "second", "the second disk", 100000)
    with serve(tmp, "nvme", first, "--doorbells=mapped") as one, serve(tmp, "nvme", second) as two:
        out = printed_at_boot(["-machine", "pc", *shared_ram()], device(one, bootindex=2), device(two, bootindex=1))
        assert out == "the second disk", out


@case("boots-with-private-memory", TIMEOUT_S)
def _(tmp):
    with serve(tmp, "nvme", bootable(tmp, "disk", "by messages", 5)) as server:
        out = printed_at_boot(["-machine", "q35", "-m", "64"], device(server, bootindex=1))
        assert out == "by messages", out


main()
