#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark's NVMe driver runs, with each kind of doorbell. How fast is not judged."""
import json
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, case, main  # noqa: E402
from guest import disk, serve  # noqa: E402


def drive(server, *words):
    """What the driver says, or its message on stderr."""
    done = subprocess.run([BUILD / "bench/nvme-driver", server.path, "--seconds", "0.1", *words], capture_output=True,
                          text=True, timeout=60)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


def check(result, doorbells):
    assert result["doorbells"] == doorbells and result["ios"] > 0, result
    assert 0 < result["p50_ns"] <= result["p99_ns"], result
    return result


@case("reads-and-writes-by-each-kind-of-doorbell", timeout_s=120)
def _(tmp):
    with serve(tmp, "nvme", "mem:16M") as server:
        check(drive(server), "shadow")
        trapped = check(drive(server, "--doorbells", "trapped", "--depth", "4"), "trapped")
        assert trapped["rings"] > 0, trapped
    with serve(tmp, "nvme", disk(tmp), "--doorbells=mapped", "--cache=none") as server:
        mapped = check(drive(server, "--rw", "randwrite", "--depth", "32", "--block", "16384"), "mapped")
        assert mapped["rings"] == 0, mapped
        assert "no such doorbells" in drive(server, "--doorbells", "shadow")


main()
