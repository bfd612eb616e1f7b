# SPDX-License-Identifier: BSD-3-Clause
"""Every measurement: its name, unit, floor, target, and what it says. N stands for each of its scale.

docs/performance.md explains each (a test holds the two together).
"""
from collections import namedtuple

# What of a result `bound` is for, with "<=" or ">=": its ratio or median; p99, by the floor's median; or, with
# `beside`, its median by that of another result of the run, (name, subject). text says it for people; only: for that N.
Target = namedtuple("Target", "field compare bound text only beside", defaults=(0, None))
Measurement = namedtuple("Measurement", "name unit floor says targets higher", defaults=((), False))


def at_most(bound, text=None):
    return (Target("ratio", "<=", bound, text or f"<= {bound} x floor"),)


def at_least(bound, text=None):
    return (Target("ratio", ">=", bound, text or f">= {bound} x floor"),)


def absolute(bound, text, compare="<=", only=0):
    return (Target("median", compare, bound, text, only),)


def beside(name, subject, bound, text, compare="<=", only=0):
    return (Target("median", compare, bound, text, only, (name, subject)),)


KIB = 1024
MEASUREMENTS = [
    Measurement("floor/ping-pong-one-core", "ns", "itself", "32 bytes there, 36 back, both processes on one core"),
    Measurement("floor/ping-pong-two-cores", "ns", "itself", "the same, each on its own core, both sleep"),
    Measurement("floor/ping-pong-spinning", "ns", "itself", "the same, neither sleeps"),
    Measurement("floor/sendmsg", "ns", "itself", "36 bytes are sent, nobody answers"),
    Measurement("floor/bulk", "ns", "itself", "32 bytes there, 1 MiB back"),
    Measurement("floor/memcpy", "ns", "itself", "1 MiB is copied within a process"),

    Measurement("region/read-one-core", "ns", "ping-pong", "a register is read, no spinning", at_most(1.25)),
    Measurement("region/write-one-core", "ns", "ping-pong", "one is written, and that acknowledged"),
    Measurement("region/read-two-cores", "ns", "ping-pong", "a register is read, no spinning", at_most(1.05)),
    Measurement("region/write-two-cores", "ns", "ping-pong", "one is written, and that acknowledged"),
    Measurement("region/read-spinning", "ns", "spinning ping-pong", "a register is read",
                at_most(1.25) + (Target("p99", "<=", 3, "p99 <= 3 x floor"),)),
    Measurement("region/write-spinning", "ns", "spinning ping-pong", "one is written, and that acknowledged"),
    Measurement("region/post-one-core", "ns", "sendmsg", "one is written, nothing waited for, no spinning"),
    Measurement("region/post-spinning", "ns", "sendmsg", "a register is written, nothing waited for", at_most(1.15)),
    Measurement("region/post-lagging", "ns", "sendmsg", "posted writes reach, in order, a device that lagged",
                absolute(500, ">= 2 M/s")),
    Measurement("threads/read/N", "ns", "spinning ping-pong", "a read when N threads read on one connection",
                beside("threads/read/1", "outboard", 1 / 1.6, "2: >= 1.6 x the reads of 1", only=2)),
    Measurement("threads/share/N", "of fair", "1", "what the slowest of N threads gets of its share", higher=True),

    Measurement("dma/map-unmap/N", "ns", "socket", "a region is mapped and unmapped, N of them pipelined",
                absolute(4000, "10,000: <= 4 us", only=10000) +
                beside("dma/map-unmap/10000", "outboard", 1.3, "65,535: <= 1.3 x that", only=65535)),
    Measurement("dma/lookup", "ns", "memcpy of a page", "an address is translated in 10,000 mappings",
                absolute(25, "<= 25 ns")),
    Measurement("dma/message-4KiB", "ns", "round trip of 4 KiB", "4 KiB read by message", at_most(1.5)),
    Measurement("dma/message-1MiB", "ns", "round trip of 1 MiB", "1 MiB read by message", at_most(1.25, ">= 0.8 x bulk")),
    Measurement("interrupt/library", "ns", "ping-pong", "from the trigger until the client's thread runs"),

    Measurement("idle/server-wake-ups", "in 1 s", "a sleeping process", "of a server, after its last request",
                absolute(0, "none")),
    Measurement("idle/client-wake-ups", "in 1 s", "a sleeping process", "of a client, after its last request",
                absolute(0, "none")),
    Measurement("idle/cpu", "ms in 1 s", "a sleeping process", "of both ends, after the last request",
                absolute(0, "none")),
    Measurement("idle/connection-memory", "KiB", "a page", "that a client needs for a connection",
                absolute(256, "<= 256 KiB")),
    Measurement("idle/server-memory", "KiB", "a sleeping process", "resident in a server without I/O buffers",
                absolute(4096, "<= 4 MiB")),

    Measurement("nvme/file-depth-1", "IOPS", "fio, io_uring", "4 KiB random reads of a file, no VM", at_least(.7),
                higher=True),
    Measurement("nvme/file-depth-32", "IOPS", "fio, io_uring", "the same, 32 at a time", at_least(.9), higher=True),
    Measurement("nvme/memory-depth-1", "IOPS", "spinning ping-pong", "4 KiB random reads of mem:, no VM",
                absolute(220e3, "> 220,000", ">="), higher=True),
    Measurement("nvme/memory-depth-32", "IOPS", "spinning ping-pong", "the same, 32 at a time",
                absolute(420e3, "> 420,000", ">="), higher=True),

    Measurement("guest/read", "ns", "spinning ping-pong", "a guest reads a register, default settings",
                at_most(1.4) + beside("guest/read", "QEMU 11", 1 / 15, "<= 1/15 of QEMU 11")),
    Measurement("guest/write", "ns", "spinning ping-pong", "a guest writes one, x-no-posted-writes"),
    Measurement("guest/read-no-spinning", "ns", "ping-pong", "a guest reads a register, spin-us=0",
                beside("guest/read-no-spinning", "QEMU 11", .4, "<= 0.4 x QEMU 11")),
    Measurement("guest/read-one-core", "ns", "ping-pong", "the same, QEMU and server on one core",
                beside("guest/read-one-core", "QEMU 11", 1, "<= QEMU 11")),
    Measurement("guest/read-two-cores", "ns", "ping-pong", "the same, on a core each"),
    Measurement("guest/post", "ns", "sendmsg", "a guest writes a register, posted", at_most(1.15)),
    Measurement("guest/interrupt", "ns", "ping-pong", "from the write that raises it to the guest's user space"),
    Measurement("guest/devices/N", "ns", "spinning ping-pong", "a guest reads N devices in turn, time of each read"),
    Measurement("guest/slow-server-monitor", "ns", "ping-pong", "QMP answers while a server takes 100 ms a reply",
                absolute(5e6, "<= 5 ms")),
    Measurement("guest/slow-server-device", "ns", "spinning ping-pong", "another device answers meanwhile",
                absolute(5e6, "<= 5 ms")),
    Measurement("guest/nvme-depth-1", "IOPS", "QEMU's own nvme", "4 KiB random reads in the guest", at_least(1),
                higher=True),
    Measurement("guest/nvme-depth-32", "IOPS", "QEMU's own nvme", "the same, 32 at a time", at_least(1), higher=True),
    Measurement("guest/nvme-memory-depth-1", "IOPS", "spinning ping-pong", "4 KiB random reads of mem: in the guest",
                beside("guest/nvme-memory-depth-1", "SPDK, QEMU 11", 1, "ahead of SPDK", ">="), higher=True),
    Measurement("guest/nvme-memory-depth-32", "IOPS", "spinning ping-pong", "the same, 32 at a time",
                beside("guest/nvme-memory-depth-32", "SPDK, QEMU 11", 1, "ahead of SPDK", ">="), higher=True),
    Measurement("kvm/read", "ns", "spinning ping-pong", "a guest under KVM reads a register"),
    Measurement("kvm/write", "ns", "spinning ping-pong", "a guest under KVM writes one, x-no-posted-writes"),
    Measurement("kvm/post", "ns", "sendmsg", "a guest under KVM writes a register, posted"),
]


def general(name):
    """The entry's name: that of a result with N for its scale."""
    head, _, tail = name.rpartition("/")
    return f"{head}/N" if tail.isdigit() else name


BY_NAME = {entry.name: entry for entry in MEASUREMENTS}


def value_of(target, result, results):
    """None: it is not for this result, or there is nothing to see it by."""
    if target.only and int(result["name"].rpartition("/")[2]) != target.only:
        return None
    if target.field == "p99":
        return result["p99"] / result["floor"]["median"]
    if not target.beside:
        return result[target.field]
    other = next((one for one in results if (one["name"], one["subject"]) == target.beside), None)
    return result["median"] / other["median"] if other and result["subject"] == "outboard" else None


def verdicts(result, results):
    """What is said of each target, and whether it is met; results: of the same run."""
    seen = ((target, value_of(target, result, results)) for target in BY_NAME[general(result["name"])].targets)
    return [(target.text, value <= target.bound if target.compare == "<=" else value >= target.bound)
            for target, value in seen if value is not None]
