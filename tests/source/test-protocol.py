#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""docs/protocol.md: its tables come from the code, its rules are what others refer to."""
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, ROOT, case, main, skip

DOCUMENT = ROOT / "docs" / "protocol.md"
RULE = r"R-[A-Z]+-[0-9]+"


def fill(text):
    return subprocess.run([BUILD / "docs" / "protocol-tables"], input=text, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)


def rules():
    """(number, who it binds) of each rule, in order."""
    return re.findall(rf"^\*\*({RULE})\*\* (?:\((\w+)\) )?", DOCUMENT.read_text(), re.MULTILINE)


def byte_tables():
    """Each table of fields, as rows of (offset, size)."""
    tables = re.findall(r"^\| offset \| size \|.*\n(?:\|.*\n)+", DOCUMENT.read_text(), re.MULTILINE)
    return [[(int(offset), int(size)) for offset, size in re.findall(r"^\| (\d+) \| (\d+) \| `", table, re.MULTILINE)]
            for table in tables]


@case("tables-are-up-to-date")
def _(tmp):
    done = fill(DOCUMENT.read_text())
    assert done.returncode == 0, done.stderr
    assert done.stdout == DOCUMENT.read_text(), "run `make docs`"


@case("byte-tables-have-no-gaps")
def _(tmp):
    assert len(byte_tables()) > 20
    for table in byte_tables():
        end = 0
        for offset, size in table:
            assert offset == end, table
            end += size


@case("document-shows-every-command")
def _(tmp):
    header = (ROOT / "include/outboard/proto.h").read_text()
    blocks = re.findall(r"^<!-- generated: (.*) -->$", DOCUMENT.read_text(), re.MULTILINE)
    commands = re.findall(r"^    OB_CMD_(\w+) = \d+,", header, re.MULTILINE)
    assert len(commands) == 18 and len(set(blocks)) == len(blocks)
    assert set(commands) - set(blocks) == {"DIRTY_PAGES"}


@case("tables-program-refuses-a-broken-document")
def _(tmp):
    for text in ("<!-- generated: nonsense -->\n<!-- end -->\n", "<!-- generated: header -->\n",
                 "<!-- generated: header -->\n<!-- generated: VERSION -->\n<!-- end -->\n"):
        done = fill(text)
        assert done.returncode == 1 and done.stderr, text


@case("rules-have-numbers-of-their-own-and-bind-someone")
def _(tmp):
    numbers = [number for number, _ in rules()]
    assert len(numbers) > 150
    assert len(set(numbers)) == len(numbers), "a number occurs twice"
    for number, who in rules():
        assert who in ("client", "server", "both"), number


@case("rules-that-are-referred-to-exist")
def _(tmp):
    known = {number for number, _ in rules()}
    listed = subprocess.run(["git", "grep", "-IoEw", "--untracked", RULE], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if listed.returncode == 128:
        skip("the sources are not a git repository")
    found = [line.rsplit(":", 1) for line in listed.stdout.splitlines()]
    wrong = [f"{place}: {number}" for place, number in found if number not in known]
    assert not wrong, wrong


@case("links-lead-somewhere")
def _(tmp):
    text = DOCUMENT.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]*)\)", text)
    assert links and set(links) <= anchors, set(links) - anchors


main()
