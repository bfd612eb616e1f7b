#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The README's commands do what it says. (Those with a guest in them are what tests/guest and make demo run.)"""
import os
import pathlib
import re
import shlex
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import OUTBOARD, ROOT, case, main


def commands(tmp, *names):
    """The README's command lines that begin with one of these, with their files moved into tmp."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "README.md").read_text())
    found = re.findall(rf"^ {{4}}((?:{'|'.join(names)}) .*?)(?:  +#.*)?$", text, re.MULTILINE)
    return [shlex.split(line.replace("/tmp/", f"{tmp}/"), comments=True) for line in found]


@case("serving-inspecting-and-checking-as-the-readme-says", timeout_s=90)
def _(tmp):
    env = dict(os.environ, PATH=f"{OUTBOARD.parent}:{os.environ['PATH']}")
    servers = []
    try:
        for words in commands(tmp, "truncate", "outboard serve", "outboard info", "outboard check"):
            if words[:2] != ["outboard", "serve"]:
                subprocess.run(words, cwd=tmp, env=env, check=True, timeout=60)
                continue
            server = subprocess.Popen([word for word in words if word != "&"], cwd=tmp, env=env,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            servers.append(server)
            assert server.stdout.readline().startswith("serving "), server.stderr.read()
        assert len(servers) == 2
    finally:
        for server in servers:
            server.terminate()
            server.communicate(timeout=30)
    assert [server.returncode for server in servers] == [0, 0]


main()
