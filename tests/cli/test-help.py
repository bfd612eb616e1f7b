#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Help, version, mistyped commands; and that the documentation names only what is there."""
import json
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import OUTBOARD, ROOT, case, main


def outboard(*words, **run):
    return subprocess.run([OUTBOARD, *words], capture_output=True, text=True, timeout=20, **run)


def listed(text):
    """The names in a help text's list: two spaces, a word."""
    return re.findall(r"^  ([a-z]+)\b", text, re.MULTILINE)


def commands():
    return listed(outboard("--help").stdout)


def devices():
    return listed(outboard("serve").stdout)


def documents():
    return [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@case("every-command-and-device-explains-itself")
def _(tmp):
    assert "serve" in commands() and "null" in devices()
    for words in [["help"], *([name] for name in commands()), *(["serve", name] for name in devices())]:
        for ask in ([*words, "--help"], ["help", *words]):
            done = outboard(*ask)
            assert (done.returncode, done.stderr) == (0, ""), (ask, done)
            assert done.stdout.startswith("usage: outboard "), (ask, done.stdout)
            assert max(map(len, done.stdout.splitlines())) <= 100, ask
    for ask in (["-h"], ["help"], ["--help"]):
        assert outboard(*ask).stdout == outboard("help", "help").stdout, ask


@case("options-of-a-device-are-in-its-help")
def _(tmp):
    assert "--toggle-ms MS" in outboard("serve", "gpio", "--help").stdout
    assert "--dma-mask MASK" in outboard("help", "serve", "edu").stdout
    assert "--socket-mode MODE" in outboard("serve", "null", "-h").stdout


@case("version-is-that-of-the-project")
def _(tmp):
    version = re.search(r"version: '(.+?)'", (ROOT / "meson.build").read_text()).group(1)
    assert outboard("--version").stdout == f"outboard {version}\n"


@case("unknown-command-suggests-the-nearest")
def _(tmp):
    for word, answer in (("serv", "there is no command 'serv'; did you mean 'serve'?"),
                         ("hlep", "there is no command 'hlep'; did you mean 'help'?"),
                         ("xyzzy", "there is no command 'xyzzy' (outboard help lists them)"),
                         ("", "there is no command '' (outboard help lists them)"),
                         ("s" * 500, "(outboard help lists them)")):
        for words in ([word], ["help", word]):
            done = outboard(*words)
            assert (done.returncode, done.stdout) == (2, ""), done
            assert answer in done.stderr and done.stderr.count("\n") == 1, done.stderr


@case("no-command-is-a-wrong-command-line")
def _(tmp):
    done = outboard()
    assert done.returncode == 2 and not done.stdout and done.stderr.startswith("usage: outboard ")


@case("unwritable-output-is-a-failure")
def _(tmp):
    for words in (["--version"], ["help"], ["serve", "gpio", "--help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([OUTBOARD, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=20)
        assert done.returncode == 1, words
        assert done.stderr == "outboard: cannot write the output: No space left on device\n", done.stderr


@case("documentation-names-commands-and-devices-that-exist")
def _(tmp):
    for document in documents():
        text = document.read_text()
        for name, operand in re.findall(r"(?:^ {4}|`)outboard ([a-z]+)(?: ([a-z]+))?", text, re.MULTILINE):
            assert name in commands(), f"{document.name}: outboard {name}"
            if name == "serve" and operand:
                assert operand in devices(), f"{document.name}: outboard serve {operand}"
        for target in re.findall(r"(?:^ {4}|`)make ([a-z]+)", text, re.MULTILINE):
            assert re.search(f"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"make {target}"


@case("documentation-of-nvme-has-its-options-and-messages")
def _(tmp):
    text = (ROOT / "docs/nvme.md").read_text()
    table = text.partition("## Options")[2].partition("\n### ")[0]
    offered = json.loads(outboard("serve", "nvme", "--print-capabilities").stdout)["features"]
    assert sorted(re.findall(r"^\| `--([a-z-]+)", table, re.MULTILINE)) == sorted(offered), offered
    sources = "".join(path.read_text() for path in (ROOT / "devices/nvme").glob("*.c"))
    messages = re.findall(r"^\| `(.*?)` \|", text.partition("| the server says |")[2], re.MULTILINE)
    assert messages
    sources = re.sub(r'"\s*"', "", sources)
    for message in messages:
        for part in re.split(r"\.\.\.|: No such.*|: Permission.*| 512 .*", message):
            assert part.strip() in sources, part


@case("links-in-the-documentation-lead-somewhere")
def _(tmp):
    for document in documents():
        for link in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"


main()
