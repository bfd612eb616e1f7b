# SPDX-License-Identifier: BSD-3-Clause
"""How a broken server (broken.py) becomes a test: `outboard check` blames it for the rule that it breaks."""
import json
import subprocess

from broken import Unbroken, broken_server
from case import OUTBOARD, case


def check(path, pattern, timeout_ms=3000):
    done = subprocess.run([OUTBOARD, "check", path, "--json", "--only", pattern, "--timeout", str(timeout_ms)],
                          capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout)


def mutant(rule, name, cases, device="null"):
    """Registers a test: check finds the server that the decorated class makes of ours."""
    def register(cls):
        @case(f"{rule}-{name}")
        def _(tmp):
            with broken_server(tmp, device, cls()) as path:
                status, report = check(path, cases)
            blamed = [c["id"] for c in report["cases"] if c["verdict"] == "fail" and rule in c["rules"]]
            assert status == 1 and blamed, report
            print(*(c["why"] for c in report["cases"] if c["id"] in blamed), sep="\n")
        return cls
    return register


def on_request(rule, name, cases, device="null"):
    """The same, of a function(link, message) for what goes to the server."""
    return lambda function: mutant(rule, name, cases, device)(
        type(name, (Unbroken,), {"request": lambda self, link, m: function(link, m)}))


def on_reply(rule, name, cases, device="null"):
    """The same, of a function(request, reply) for what goes to the client."""
    return lambda function: mutant(rule, name, cases, device)(
        type(name, (Unbroken,), {"reply": lambda self, link, request, m: function(request, m)}))
