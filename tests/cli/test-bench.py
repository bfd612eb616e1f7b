#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""`outboard bench` and bench/run: that everything is measured and told. How fast, no test can say."""
import errno
import json
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, OUTBOARD, ROOT, case, main
from fakedevice import CONFIG, DMA_MAP, REGION_READ, FakeDevice, Gone, Refuse
from qtest import Serve

SHORT = ["--rounds", "2", "--round-ms", "2"]
SCALES = {"threads": "134", "share": "134", "dma-map": ["1", "10", "25"]}


def bench(*words):
    return subprocess.run([OUTBOARD, "bench", *map(str, words)], capture_output=True, text=True, timeout=50)


def measured(*words):
    """{name: measurement} and {name: why it was refused}, after a look at their form."""
    done = bench(*words, *SHORT, "--json")
    assert (done.returncode, done.stderr) == (0, ""), done
    report = json.loads(done.stdout)
    assert report["rounds"] == 2 and set(report) == {"socket", "rounds", "measurements", "refused"}, report
    for found in report["measurements"]:
        values = [value for _, value in found["quantiles"]]
        # In so short a round a thread may not run at all.
        least = 0 if found["name"].startswith("share") else 1e-9
        assert values == sorted(values) and values[0] >= least, found
        assert values[0] <= found["median"] <= found["p99"] <= values[-1], found
        assert len(found["rounds"]) == 2 and found["noise"] >= 0, found
        assert found["floor"]["median"] > 0 and found["ratio"] >= least, found
        assert found["unit"] == ("of fair" if found["name"].startswith("share") else "ns"), found
    return ({found["name"]: found for found in report["measurements"]},
            {found["name"]: found["why"] for found in report["refused"]})


def refused(status, sentence, *words):
    done = bench(*words)
    assert (done.returncode, done.stdout) == (status, ""), done
    assert done.stderr.startswith("outboard bench: ") and done.stderr.count("\n") == 1, done.stderr
    assert sentence in done.stderr, done.stderr


@case("measures-all-that-it-lists")
def _(tmp):
    listed = [line.split()[0] for line in bench("--list").stdout.splitlines()]
    wanted = set()
    for name in listed:
        kind, _, scaled = name.partition("/")
        scales = SCALES[kind.removesuffix("-spinning")] if scaled else [None]
        wanted |= {kind if scale is None else f"{kind}/{scale}" for scale in scales}
    with Serve("edu", tmp / "s"):
        found, not_offered = measured(tmp / "s", "--threads", 3, "--regions", 25)
    wanted = {name.replace("/4", "/3") for name in wanted} | {"threads/2", "threads-spinning/2", "share/2",
                                                              "share-spinning/2"}
    assert set(found) == wanted and not not_offered, set(found) ^ wanted


@case("text-has-a-line-for-each-measurement")
def _(tmp):
    with Serve("null", tmp / "s"):
        done = bench(tmp / "s", *SHORT, "--only", "[rpd]*", "--regions", 1, "--spin-us", 0)
    assert (done.returncode, done.stderr) == (0, ""), done
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["median", "p99", "floor", "ratio", "noise"]
    for name, line in zip(("read", "post", "dma-map/1"), lines[1:]):
        assert re.fullmatch(rf"{name}( +[\d.]+ (ns|us|ms)){{3}} +[\d.]+ x +[\d.]+", line), line
    assert lines[4].startswith("dma-message ") and "not offered: " in lines[4] and len(lines) == 5, lines


@case("a-chosen-register-keeps-its-value")
def _(tmp):
    with FakeDevice(tmp / "s", bars={1: 64}) as device:
        device.memory[1][8:12] = b"abcd"
        found, _ = measured(tmp / "s", "--region", 1, "--offset", 8, "--count", 4, "--only", "[rwp]*")
        assert set(found) == {"read", "write", "post", "read-spinning", "write-spinning", "post-spinning"}, found
        assert device.memory[1] == b"\0" * 8 + b"abcd" + b"\0" * 52
        assert device.count(REGION_READ) > 8


@case("what-a-server-refuses-is-told-and-the-rest-measured")
def _(tmp):
    def no_map(_device, _payload):
        raise Refuse(errno.ENOMEM)

    with FakeDevice(tmp / "s") as device:
        device.on[DMA_MAP] = no_map
        found, not_offered = measured(tmp / "s", "--regions", 10, "--spin-us", 0, "--only", "[rd]*")
    assert set(found) == {"read"} and set(not_offered) == {"dma-map/1", "dma-map/10", "dma-message"}, not_offered
    assert not_offered["dma-map/1"] == "the server answered: Cannot allocate memory"


@case("a-server-that-dies-or-refuses-is-a-failure")
def _(tmp):
    reads = []

    def dying(device, payload):
        reads.append(payload)
        if len(reads) > 50:
            raise Gone()
        return payload + bytes(device.config[:payload[12]])

    def refusing(_device, _payload):
        raise Refuse(errno.EIO)

    refused(1, "no-such", tmp / "no-such")
    with FakeDevice(tmp / "s") as device:
        device.on[REGION_READ] = dying
        refused(1, "read: ", tmp / "s", "--only", "read", "--round-ms", 10000)  # however slow the machine is
    with FakeDevice(tmp / "t") as device:
        device.on[REGION_READ] = refusing
        refused(1, "its register cannot be read: the server answered: Input/output error", tmp / "t")
        refused(1, "", tmp / "t", "--region", CONFIG)


@case("wrong-command-lines-are-refused")
def _(tmp):
    refused(2, "which SOCKET?")
    refused(2, "one SOCKET only, not also 'b'", "a", "b")
    refused(2, "--list only, not also 'a'", "--list", "a")
    refused(2, "there is no option --wrong", "a", "--wrong")
    refused(2, "--rounds needs a value", "a", "--rounds")
    refused(2, "--rounds takes 1 to 99, not '0'", "a", "--rounds", "0")
    refused(2, "--rounds takes 1 to 99, not '5x'", "a", "--rounds", "5x")
    refused(2, "--threads takes 1 to 64, not '-1'", "a", "--threads", "-1")
    refused(2, "--regions takes 1 to 65535, not '65536'", "a", "--regions", "65536")
    refused(2, "--offset and --count are for --region", "a", "--offset", "4")
    refused(2, "no measurement matches 'x*'", "a", "--only", "x*")



# ---- bench/run

def run(*words, timeout_s=500):
    return subprocess.run([ROOT / "bench/run", "--build", BUILD, *map(str, words)], capture_output=True, text=True,
                          timeout=timeout_s)


def listed_by_run():
    return [line.split()[0] for line in run("--list").stdout.splitlines()]


@case("run-measures-or-skips-all-that-it-lists", timeout_s=540)
def _(tmp):
    done = run("--short", "--json", tmp / "json", "--svg", tmp / "svg")
    assert (done.returncode, done.stderr) == (0, ""), done
    report = json.loads((tmp / "json").read_text())
    found = [*report["results"], *report["skipped"]]
    assert {re.sub(r"/\d+$", "/N", one["name"]) for one in found} == set(listed_by_run()), done.stdout
    for one in report["results"]:
        assert {"name", "subject", "unit", "median", "p99", "ratio", "noise", "quantiles", "floor"} <= set(one), one
        assert one["rounds"] == report["rounds"] == 2 and one["floor"]["name"] and one["noise"] >= 0, one
        assert f"{one['name']} " in done.stdout
    assert all(one["why"] for one in report["skipped"])
    in_guest = any(one["name"].startswith("guest/") for one in report["results"])
    assert report["machine"]["accelerator"] in (("kvm", "tcg") if in_guest else (None,)), report["machine"]
    peers = {one["subject"] for one in report["results"]} | set(re.findall("^(.*) is not measured: OUTBOARD_", done.stdout, re.M))
    assert {"libvfio-user", "QEMU 11", "SPDK"} <= peers, done.stdout
    drawing = xml.etree.ElementTree.parse(tmp / "svg").getroot()
    words = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert "region/read-one-core (outboard)" in words and "dma/map-unmap/N: cost of each against N" in words, words


def result(name, ratio, noise, subject="outboard"):
    return {"name": name, "subject": subject, "ratio": ratio, "noise": noise, "unit": "ns", "median": ratio, "p99": ratio,
            "quantiles": [], "floor": {"name": "socket", "median": 1, "p99": 1}}


@case("compare-flags-what-got-worse-than-the-noise-of-both")
def _(tmp):
    def compared(*results):
        (tmp / "new").write_text(json.dumps({"results": results}))
        done = run("--input", tmp / "new", "--compare", tmp / "old")
        return done.returncode, [line.split()[1].rstrip(":") for line in done.stdout.splitlines()]

    old = [result("region/read-one-core", 1.2, .05), result("dma/map-unmap/100", 2, .1), result("threads/share/4", .9, .1),
           result("region/post-spinning", 1, 0, "libvfio-user"), {**result("idle/cpu", 0, 0), "ratio": None}]
    (tmp / "old").write_text(json.dumps({"results": old}))
    assert compared(*old) == (0, [])
    better = [result("region/read-one-core", .5, .05), result("threads/share/4", 1.4, .1)]
    assert compared(*better) == (0, [])
    within = [result("region/read-one-core", 1.29, .05), result("threads/share/4", .75, .1)]
    assert compared(*within) == (0, [])
    mixed = [result("region/read-one-core", 1.31, .05), result("dma/map-unmap/100", 2.1, .1),
             result("threads/share/4", .69, .1), result("region/post-spinning", 9, 0, "libvfio-user"), result("kvm/read", 9, 0),
             {**result("idle/cpu", 0, 0), "ratio": None}]
    assert compared(*mixed) == (1, ["region/read-one-core", "threads/share/4"])


@case("run-finds-that-a-connection-and-a-server-need-little-memory")
def _(tmp):
    """Unlike time, that is the same on each machine, and so may fail a test."""
    done = run("--short", "--only", "idle/*memory")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.count(": met") == 2 and "not met" not in done.stdout, done.stdout


@case("run-says-which-targets-are-met")
def _(tmp):
    sys.path.insert(0, str(ROOT / "bench"))
    import report
    import table

    def said(one, *others):
        return [met for _, met in table.verdicts(one, [one, *others])]

    def of(name, median, p99=None, subject="outboard"):
        return {**result(name, median, 0, subject), "p99": p99 or median}

    assert said(of("region/write-spinning", 1)) == [] == said(of("dma/map-unmap/100", 1))
    assert said(of("region/read-spinning", 1.25, 3)) == [True, True]
    assert said(of("region/read-spinning", 1.26, 3.1)) == [False, False]
    assert said(of("nvme/file-depth-1", .7)) == [True] and said(of("nvme/file-depth-1", .69)) == [False]
    assert said(of("dma/lookup", 25)) == [True] and said(of("dma/lookup", 26)) == [False]
    ten_thousand = of("dma/map-unmap/10000", 4000)
    assert said(ten_thousand) == [True] and said(of("dma/map-unmap/10000", 4001)) == [False]
    assert said(of("dma/map-unmap/65535", 5200), ten_thousand) == [True]
    assert said(of("dma/map-unmap/65535", 5201), ten_thousand) == [False]
    assert said(of("threads/read/2", 62), of("threads/read/1", 100)) == [True]
    assert said(of("threads/read/2", 63), of("threads/read/1", 100)) == [False]
    assert said(of("threads/read/4", 63), of("threads/read/1", 100)) == [] == said(of("threads/read/2", 63))
    peer = of("guest/read", 60, subject="QEMU 11")
    asleep = of("guest/read-no-spinning", 60, subject="QEMU 11")
    assert said(of("guest/read-no-spinning", 24), asleep) == [True]
    assert said(of("guest/read-no-spinning", 25), asleep) == [False]
    assert said(of("guest/read", 1), peer) == [True, True] and said(of("guest/read", 1)) == [True]
    assert len(said(peer, of("guest/read", 60))) == 1  # what compares is of ours
    spdk = of("guest/nvme-memory-depth-1", 10, subject="SPDK, QEMU 11")
    assert said(of("guest/nvme-memory-depth-1", 9), spdk) == [False]
    assert said(of("guest/nvme-memory-depth-1", 10), spdk) == [True]
    line = report.line(of("region/read-spinning", 1, 4), [])
    assert line.endswith("<= 1.25 x floor: met; p99 <= 3 x floor: not met"), line


@case("make-bench-compares-when-it-is-told-to")
def _(tmp):
    for words, wanted in ([], False), ([f"COMPARE={tmp}/old one.json"], True):
        words = ["make", "-n", "bench", f"BUILD={BUILD}", *words]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "bench/run --build" in done.stdout, done
        assert (f"--compare '{tmp}/old one.json'" in done.stdout) == wanted, done.stdout
        assert wanted or "--compare" not in done.stdout, done.stdout


@case("run-refuses-wrong-command-lines")
def _(tmp):
    assert run("--only", "nothing*").returncode == 2
    assert run("--rounds", "0").returncode == 2
    (tmp / "text").write_text("{")
    (tmp / "empty").write_text("{}")
    (tmp / "other").write_text(json.dumps({"results": [{"name": "region/read-one-core"}]}))
    (tmp / "good").write_text(json.dumps({"results": [result("region/read-one-core", 1, 0)]}))
    (tmp / "peer").write_text(json.dumps({"results": [result("region/read-one-core", 1, 0, "libvfio-user")]}))

    def refused_run(path, sentence, *words):
        done = run(*words)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.startswith(f"bench/run: {path}: {sentence}") and done.stderr.count("\n") == 1, done.stderr

    for word in "--compare", "--input":
        refused_run(tmp / "none", "", word, tmp / "none")
        refused_run(tmp / "text", "", word, tmp / "text")
        refused_run(tmp / "empty", "is not what --json writes", word, tmp / "empty")
        refused_run(tmp / "other", "is not what --json writes", word, tmp / "other")
    for word in "--json", "--svg":  # before anything is measured
        refused_run(tmp / "none/x", "No such file or directory", word, tmp / "none/x")
        refused_run(tmp, "Is a directory", word, tmp)
    refused_run(tmp / "none/tools/outboard", "is not there", "--build", tmp / "none")
    refused_run(tmp / "peer", "has nothing that can be compared", "--input", tmp / "good", "--compare", tmp / "peer")


@case("documentation-has-every-measurement")
def _(tmp):
    text = (ROOT / "docs/performance.md").read_text()
    described = re.findall(r"^\| `([a-z]+/[^`]+)`", text, re.MULTILINE)
    assert sorted(described) == sorted(listed_by_run())


main()
