#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The descriptions by which a management layer finds and starts our servers."""
import json
import pathlib
import subprocess
import sys

import jsonschema

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, OUTBOARD, ROOT, case, main

SCHEMA = json.loads((ROOT / "docs" / "backend.schema.json").read_text())


def descriptions():
    """Those of the build, as they will be installed."""
    found = sorted((BUILD / "tools").glob("50-outboard-*.json"))
    assert found
    return [json.loads(path.read_text()) for path in found]


def capabilities(device):
    done = subprocess.run([OUTBOARD, "serve", device, "--print-capabilities"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


@case("descriptions-keep-to-the-schema-and-name-what-serve-has")
def _(tmp):
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    listed = subprocess.run([OUTBOARD, "serve"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    for description in descriptions():
        jsonschema.validate(description, SCHEMA)
        assert description["arguments"] == ["serve", description["type"]]
        assert f"  {description['type']:6} {description['description']}" in listed, description


@case("capabilities-keep-to-the-schema-and-to-the-help")
def _(tmp):
    schema = dict(SCHEMA["definitions"]["capabilities"], definitions=SCHEMA["definitions"])
    for device in [description["type"] for description in descriptions()] + ["null"]:
        said = capabilities(device)
        jsonschema.validate(said, schema)
        assert said["type"] == device
        words = subprocess.run([OUTBOARD, "serve", device, "--help"], stdout=subprocess.PIPE, text=True,
                               check=True).stdout.split()
        assert all(f"--{feature}" in words for feature in said["features"]), device
        assert all(operand in words for operand in said["operands"]), device


@case("schema-refuses-what-cannot-be-started")
def _(tmp):
    good = {"description": "a disk", "type": "nvme", "binary": "/bin/true"}
    jsonschema.validate(good, SCHEMA)
    for wrong in ({"binary": "true"}, {"type": "NVMe disk"}, {"arguments": "serve"}, {"option": 1}, {"description": ""}):
        try:
            jsonschema.validate({**good, **wrong}, SCHEMA)
        except jsonschema.ValidationError:
            continue
        raise AssertionError(wrong)
    for key in good:
        assert list(jsonschema.Draft7Validator(SCHEMA).iter_errors({k: v for k, v in good.items() if k != key})), key


@case("server-starts-as-its-installed-description-says", timeout_s=120)
def _(tmp):
    root = tmp / "root"
    subprocess.run(["make", "-s", "install", f"BUILD={BUILD}", f"DESTDIR={root}"], cwd=ROOT, check=True)
    files = list(root.rglob("share/vfio-user/*.json"))
    assert len(files) == len(descriptions())
    said = next(d for d in (json.loads(f.read_text()) for f in files) if d["type"] == "gpio")
    command = [root / said["binary"].lstrip("/"), *said["arguments"], f"--socket-path={tmp}/s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout.readline()
        assert (tmp / "s").is_socket()
        server.terminate()
        assert server.wait(10) == 0


main()
