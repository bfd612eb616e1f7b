#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""How much a client can make `outboard serve` say."""
import pathlib
import struct
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import case, main
from peer import Peer
from servers import Server

WRITE_MULTI, CC, ENTRIES, LINES_A_SECOND = 15, 0x14, 1000, 1


@case("a-guest-that-breaks-its-controller-again-and-again-fills-no-log")
def _(tmp):
    enable_and_reset = b"".join(struct.pack("<QIIQ", CC, 0, 4, enabled) for enabled in (1, 0))
    with Server("nvme", tmp / "s", "mem:1M") as server:
        start = time.monotonic()
        with Peer(tmp / "s") as guest:
            for _ in range(10):  # there is no admin queue
                guest.ask(WRITE_MULTI, struct.pack("<Q", ENTRIES) + enable_and_reset * (ENTRIES // 2))
        seconds = time.monotonic() - start
        server.process.terminate()
        said = [line for line in server.end()[2].splitlines() if "controller fatal status" in line]
    assert 1 <= len(said) <= (seconds + 1) * LINES_A_SECOND, said[:20]


main()
