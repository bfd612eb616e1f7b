# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of the source look at."""
import functools
import re
import subprocess

from case import ROOT


def sources(*suffixes):
    """Files that git would commit, with one of these suffixes."""
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            stdout=subprocess.PIPE, text=True)
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.splitlines()]
    else:  # a tarball
        files = [f for f in ROOT.rglob("*") if not f.relative_to(ROOT).parts[0].startswith("build")]
    return [f for f in files if f.is_file() and f.suffix in suffixes]


def our_include(include, source):
    """The file of the tree that a source includes by this name, or None."""
    for base in (source.parent, ROOT, ROOT / "include", ROOT / "tests/lib"):
        found = (base / include).resolve()
        if found.is_file() and found.is_relative_to(ROOT):
            return found
    return None


@functools.cache
def includes(source):
    """Names that a source includes, with quotes or without."""
    return re.findall(r'^\s*#\s*include\s+["<]([^">]+)[">]', source.read_text(), re.MULTILINE)


def closure(source):
    """The source and all headers of the tree that it sees, in an order that stays."""
    seen, left = set(), [source]
    while left:
        file = left.pop()
        if file not in seen:
            seen.add(file)
            left += filter(None, (our_include(name, file) for name in includes(file)))
    return sorted(seen)
