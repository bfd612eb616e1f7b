# SPDX-License-Identifier: BSD-3-Clause
"""What is measured without a guest. A group sets up what it needs, and gives a function for each subject, which
takes one sample of everything there is; bench/run calls them in turns.
"""
import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from sample import Skip, sample

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/lib"))
import spdk  # noqa: E402

DEADLINE_S = 120
CPUS = sorted(os.sched_getaffinity(0))


class Tools:
    """Our programs, and processes that are ended together."""

    def __init__(self, build, tmp, short):
        self.build, self.tmp, self.short = build, tmp, short
        self.outboard = build / "tools/outboard"
        self.accelerator = None  # of the guests, once one has been booted

    def program(self, name):
        path = self.build / "bench" / name
        if not path.exists():
            raise Skip(f"bench/{name} is not built")
        return path

    def run(self, *words, cpu=None):
        """The lines of its output."""
        pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
        done = subprocess.run([*pin, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=DEADLINE_S)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip() or done.returncode}")
        return done.stdout.splitlines()

    def micro(self, name, *args, cpu=None):
        """{name: sample} of one round."""
        found = map(json.loads, self.run(self.program("micro"), name, 1, *args, cpu=cpu))
        return {one["name"]: one for one in found}

    def bench(self, path, *options, cpu=None):
        length = ["--round-ms", 3 if self.short else 20]
        lines = self.run(self.outboard, "bench", path, "--json", "--rounds", 1, *length, *options, cpu=cpu)
        return {one["name"]: one for one in json.loads("\n".join(lines))["measurements"]}

    def spinning_floor(self):
        two_cores()
        return self.micro("ping-pong", 50, CPUS[1], cpu=CPUS[0])["ping-pong"]

    def blocking_floor(self):
        return self.micro("ping-pong", 0)["ping-pong"]

    def placed_floor(self, there):
        """One end on the first CPU, the other there."""
        return self.micro("ping-pong", 0, there, cpu=CPUS[0])["ping-pong"]

    @contextlib.contextmanager
    def process(self, *words, socket_path=None, cpu=None, **options):
        """A process, once its socket is there."""
        pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
        log = options.pop("stdout", subprocess.DEVNULL)
        process = subprocess.Popen([*pin, *map(str, words)], stdout=log, stderr=subprocess.DEVNULL, **options)
        try:
            deadline = time.monotonic() + 10
            while socket_path and not os.path.exists(socket_path):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{' '.join(map(str, words))} did not start")
                time.sleep(.005)
            yield process
        finally:
            process.terminate()
            process.communicate()

    @contextlib.contextmanager
    def serve(self, name, *args, cpu=None, path=None):
        path = path or self.tmp / f"{name}{time.monotonic_ns()}.sock"
        with self.process(self.outboard, "serve", name, path, *args, socket_path=path, cpu=cpu) as process:
            yield path, process


def two_cores():
    if len(CPUS) < 2:
        raise Skip("takes two cores")


def named(found, name):
    return {**found, "name": name}


# ---- The floors

@contextlib.contextmanager
def floors(tools):
    def take():
        yield named(tools.placed_floor(CPUS[0]), "floor/ping-pong-one-core")
        if len(CPUS) > 1:
            yield named(tools.placed_floor(CPUS[1]), "floor/ping-pong-two-cores")
            yield named(tools.spinning_floor(), "floor/ping-pong-spinning")
        for name in ("sendmsg", "bulk", "memcpy"):
            yield named(tools.micro(name)[name], f"floor/{name}")
    yield {"machine": take}


# ---- Regions and threads

PLACES = {"one-core": (0, 0, 0), "two-cores": (0, 1, 0), "spinning": (0, 1, 50)}


def peer_program(variable, name):
    """The program of that name in the build that the variable names, or None."""
    build = os.environ.get(variable)
    if build and not os.access(f"{build}/{name}", os.X_OK):
        raise Skip(f"{variable}={build} has no {name}")
    return build and f"{build}/{name}"


@contextlib.contextmanager
def region(tools):
    """Each round has servers of its own: libvfio-user's sample ends with its client, and ours shall not be better off."""
    def taken(found, place, spinning):
        suffix = "-spinning" if spinning else ""
        for kind in ("read", "write", "post"):
            if kind + suffix in found:
                yield named(found[kind + suffix], f"region/{kind}-{place}")

    def take(peer):
        for place, (here, there, spin) in PLACES.items():
            if there >= len(CPUS) or (peer and spin):
                continue
            only = "[rwp]*-spinning" if spin else "[rwp]*" if place == "one-core" else "[rw]*"
            spinning = ["--spin-us", spin]
            words = [peer, tools.tmp / "peer.sock"] if peer else \
                [tools.outboard, "serve", "gpio", tools.tmp / "own.sock", *spinning]
            path = words[1] if peer else words[3]
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            with tools.process(*words, socket_path=path, cpu=CPUS[there]):
                yield from taken(tools.bench(path, "--region", 2, "--count", 1, "--only", only, *spinning,
                                             cpu=CPUS[here]), place, spin)
    subjects = {"outboard": lambda: take(None)}
    peer = peer_program("OUTBOARD_LIBVFIO_USER", "samples/gpio-pci-idio-16")
    if peer:
        subjects["libvfio-user"] = lambda: take(peer)
    yield subjects


@contextlib.contextmanager
def lagging(tools):
    def take():
        yield named(tools.micro("lag")["lag"], "region/post-lagging")
    yield {"outboard": take}


@contextlib.contextmanager
def threads(tools):
    two_cores()
    with tools.serve("null") as (path, _):
        def take():
            found = tools.bench(path, "--region", 0, "--threads", 16, "--only", "[ts]h*-spinning/*")
            for name, one in found.items():
                kind, _, scale = name.partition("-spinning/")
                yield named(one, f"threads/{'read' if kind == 'threads' else 'share'}/{scale}")
        yield {"outboard": take}


# ---- DMA

@contextlib.contextmanager
def dma_map(tools):
    most = 1000 if tools.short else 65535
    with tools.serve("null") as (path, _):
        def take():
            for name, one in tools.bench(path, "--only", "dma-map-spinning/*", "--regions", most).items():
                yield named(one, f"dma/map-unmap/{name.rpartition('/')[2]}")
        yield {"outboard": take}


@contextlib.contextmanager
def dma_lookup(tools):
    program = tools.program("dma")

    def take():
        found = json.loads(tools.run(program, "--json", 10000)[0])
        floor = tools.micro("memcpy")["memcpy"]["median"] / 256
        yield sample("dma/lookup", "ns", [found["get_ns"]], "memcpy of a page", [floor])
    yield {"outboard": take}


@contextlib.contextmanager
def dma_message(tools):
    def take():
        args = (50, CPUS[1]) if len(CPUS) > 1 else (0,)
        for name, one in tools.micro("dma-message", *args, cpu=CPUS[0]).items():
            yield named(one, f"dma/message-{name.partition('/')[2]}")
    yield {"outboard": take}


@contextlib.contextmanager
def interrupt(tools):
    def take():
        yield named(tools.micro("interrupt")["interrupt"], "interrupt/library")
    yield {"outboard": take}


# ---- Doing nothing

def usage(pid):
    """Context switches and milliseconds of CPU that the process has had."""
    switches = ticks = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        switches += sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text())))
        ticks += sum(map(int, (task / "stat").read_text().rpartition(")")[2].split()[11:13]))
    return switches, ticks * 1000 / os.sysconf("SC_CLK_TCK")


def resident_kib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1])


@contextlib.contextmanager
def idle(tools):
    """A server and a client that have exchanged something, and a process that sleeps."""
    with tools.serve("null") as (path, server), \
            tools.process(tools.program("micro"), "client", path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as client, \
            tools.process("sleep", 1000) as sleeper:
        connection = json.loads(client.stdout.readline())["connection_kib"]
        processes = (server, client, sleeper)

        def take():
            time.sleep(.1)  # what is over after a request is over by now
            before = [usage(process.pid) for process in processes]
            start = time.monotonic()
            time.sleep(.5 if tools.short else 3)  # the measurement itself
            seconds = time.monotonic() - start
            after = [usage(process.pid) for process in processes]
            wakes, cpu = zip(*(((b[0] - a[0]) / seconds, (b[1] - a[1]) / seconds) for a, b in zip(before, after)))
            floor = "a sleeping process"
            yield sample("idle/server-wake-ups", "in 1 s", [wakes[0]], floor, [wakes[2]])
            yield sample("idle/client-wake-ups", "in 1 s", [wakes[1]], floor, [wakes[2]])
            yield sample("idle/cpu", "ms in 1 s", [cpu[0] + cpu[1]], floor, [cpu[2]])
            yield sample("idle/connection-memory", "KiB", [connection], "a page", [4])
            yield sample("idle/server-memory", "KiB", [resident_kib(server.pid)], floor, [resident_kib(sleeper.pid)])
        yield {"outboard": take}


# ---- NVMe without a VM

def fio_json_iops(text):
    """From fio's output, which may begin with other lines."""
    return json.loads(text[text.index("{"):])["jobs"][0]["read"]["iops"]


def fio_iops(tools, image, depth, seconds):
    lines = tools.run("fio", "--name=x", f"--filename={image}", "--rw=randread", "--bs=4k", "--ioengine=io_uring",
                      f"--iodepth={depth}", "--direct=1", "--time_based", f"--runtime={seconds}", "--output-format=json")
    return fio_json_iops("\n".join(lines))


@contextlib.contextmanager
def nvme(tools):
    driver = tools.program("nvme-driver")
    if not shutil.which("fio"):
        raise Skip("fio is not installed")
    image, seconds = tools.tmp / "nvme.img", 1 if tools.short else 2
    with open(image, "wb") as out:  # blocks that are there: reading a hole costs nothing
        for _ in range(64 if tools.short else 512):
            out.write(os.urandom(1 << 20))
        os.fsync(out.fileno())

    def iops(path, depth, *more, cpu=None):
        return json.loads(tools.run(driver, path, "--depth", depth, "--seconds", seconds, *more, cpu=cpu)[-1])["iops"]

    def memory(path):
        for depth in (1, 32):
            floor = 1e9 / tools.spinning_floor()["median"]
            yield sample(f"nvme/memory-depth-{depth}", "IOPS", [iops(path, depth, cpu=CPUS[0])], "spinning ping-pong",
                         [floor])

    def take_target():
        """A core of its own, as we have, but only while it is measured."""
        where = pathlib.Path(tempfile.mkdtemp(dir=tools.tmp))
        with tools.process(*spdk.target(target, where, 256, CPUS[-1]), cwd=where, socket_path=where / "cntrl"):
            yield from memory(where / "cntrl")

    target = peer_program("OUTBOARD_SPDK", "bin/nvmf_tgt")
    with tools.serve("nvme", image, "--cache", "none") as (file_path, _), \
         tools.serve("nvme", "mem:256M", cpu=CPUS[-1]) as (memory_path, _):
        def take():
            for depth in (1, 32):
                floor = fio_iops(tools, image, depth, seconds)
                yield sample(f"nvme/file-depth-{depth}", "IOPS", [iops(file_path, depth, "--interrupts")], "fio, io_uring",
                             [floor])
            yield from memory(memory_path)
        yield {"outboard": take, **({"SPDK": take_target} if target else {})}


# What each group measures, as patterns of the table's names.
GROUPS = [(floors, "floor/*"), (region, "region/[rw]* region/post-[os]*"), (lagging, "region/post-lagging"),
          (threads, "threads/*"), (dma_map, "dma/map-unmap/*"), (dma_lookup, "dma/lookup"),
          (dma_message, "dma/message-*"), (interrupt, "interrupt/*"), (idle, "idle/*"), (nvme, "nvme/*")]
