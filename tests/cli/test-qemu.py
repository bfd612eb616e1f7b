#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""`outboard qemu`: finding, building and loading the plug-in, and what it says when it cannot."""
import os
import pathlib
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, OUTBOARD, ROOT, case, main  # noqa: E402

QEMU = "qemu-system-x86_64"
QUIET = ["-machine", "none", "-nodefaults", "-display", "none"]


def run(*args, outboard=OUTBOARD, **env):
    """Runs `outboard qemu ARGS` with these changes to the environment."""
    env = {k: str(v) for k, v in {**os.environ, **env}.items() if v is not None}
    return subprocess.run([outboard, "qemu", *map(str, args)], stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)


def refused(status, words, *args, **env):
    result = run(*args, **env)
    assert result.returncode == status, result
    assert result.stdout == "", result
    for line in result.stderr.splitlines():
        assert line.startswith(("outboard qemu: ", "    | ")), line
    assert words in result.stderr, result.stderr
    return result.stderr


def plugin_path(*args, **env):
    result = run("--print-plugin", *args, **env)
    assert result.returncode == 0, result.stderr
    path = pathlib.Path(result.stdout.rstrip("\n"))
    assert path.is_file() and path.name == "vfio-user-pci.so", path
    return path, result.stderr


def cache_with_headers(directory):
    """A cache that has QEMU's headers (no network is needed), but no plug-in."""
    plugin, _ = plugin_path()
    directory.mkdir(parents=True)
    shutil.copytree(plugin.parents[3] / "headers", directory / "headers", symlinks=True)
    return directory


def compile_program(path, *flags):
    subprocess.run(["cc", *flags, "-o", path, "-x", "c", "-"], input="int main(void) { return 0; }",
                   text=True, check=True)
    return path


def monitor(command, *args, **env):
    """What a QEMU that was started through `outboard qemu` answers on its monitor."""
    result = subprocess.run([OUTBOARD, "qemu", QEMU, *QUIET, *args, "-monitor", "stdio"], text=True,
                            input=f"{command}\nquit\n", stdout=subprocess.PIPE, check=True,
                            env={**os.environ, **{k: str(v) for k, v in env.items()}})
    return result.stdout


@case("wrong-command-line-is-explained")
def _(tmp):
    refused(2, "which QEMU?")
    refused(2, "no option --frob", "--frob")
    refused(2, "no option -m", "-m", "1G", QEMU)
    refused(2, "--qemu-source needs an argument", "--qemu-source")
    assert "usage: outboard qemu" in run("--help").stdout


@case("binary-that-does-not-fit-is-explained")
def _(tmp):
    refused(1, "there is no 'qemu-system-vax' in the PATH", "qemu-system-vax")
    refused(1, "No such file", "./qemu-system-vax")
    refused(1, "is not a program", tmp)
    script = tmp / "script"
    script.write_text("#!/bin/sh\n")
    refused(1, "is not a program", script)
    script.chmod(0o755)
    refused(1, "perhaps a script", script)
    refused(1, "has no build-id", compile_program(tmp / "no-id", "-Wl,--build-id=none"))
    refused(1, "is not a QEMU", compile_program(tmp / "no-qemu", "-Wl,--build-id"))


@case("truncated-program-files-are-refused")
def _(tmp):
    whole = compile_program(tmp / "whole", "-Wl,--build-id").read_bytes()
    part = tmp / "part"
    for size in [0, 1, 4, 63, 64, 65, 120, 400, 700]:
        part.write_bytes(whole[:size])
        part.chmod(0o755)
        refused(1, str(part), part)


@case("cache-that-cannot-be-written-is-explained", timeout_s=180)
def _(tmp):
    refused(1, "cannot write to the cache directory", "--print-plugin", OUTBOARD_CACHE="/dev/null/x")
    refused(1, "Neither HOME nor OUTBOARD_CACHE", "--print-plugin",
            OUTBOARD_CACHE=None, XDG_CACHE_HOME=None, HOME=None)


@case("binary-of-no-package-needs-a-source-tree", timeout_s=180)
def _(tmp):
    own = shutil.copy(shutil.which(QEMU), tmp / "my-qemu")
    text = refused(1, "does not come from a Debian package", own, OUTBOARD_CACHE=tmp / "cache")
    assert "--qemu-source" in text
    refused(1, "no such source tree", "--qemu-source", tmp / "none", own, OUTBOARD_CACHE=tmp / "cache")
    tree = tmp / "tree"
    tree.mkdir()
    refused(1, "is not a source tree of QEMU", "--qemu-source", tree, own, OUTBOARD_CACHE=tmp / "cache")
    (tree / "VERSION").write_text("1.0\n")
    refused(1, "is QEMU 1.0, but", "--qemu-source", tree, own, OUTBOARD_CACHE=tmp / "cache")


@case("missing-build-tools-are-named", timeout_s=180)
def _(tmp):
    bare = tmp / "bin"
    bare.mkdir()
    for tool in ["sh", "dirname", "mkdir", QEMU]:
        (bare / tool).symlink_to(shutil.which(tool))
    text = refused(1, "cc ninja pkg-config", "--print-plugin", PATH=bare, OUTBOARD_CACHE=tmp / "cache")
    assert "install-dependencies build qemu" in text


@case("second-run-is-fast-and-needs-no-tools", timeout_s=180)
def _(tmp):
    plugin, _ = plugin_path()
    start = time.monotonic()
    again, said = plugin_path(shutil.which(QEMU), PATH="/nonexistent")
    assert time.monotonic() - start < 5  # building takes longer on any machine
    assert again == plugin and said == ""


@case("plug-in-is-rebuilt-on-request", timeout_s=180)
def _(tmp):
    cache = cache_with_headers(tmp / "cache")
    plugin, _ = plugin_path(OUTBOARD_CACHE=cache)
    first = plugin.stat().st_ino
    result = run("--build", OUTBOARD_CACHE=cache)
    assert result.returncode == 0 and result.stdout == f"{plugin}\n", result
    assert plugin.stat().st_ino != first


@case("paths-may-have-spaces-and-commas", timeout_s=180)
def _(tmp):
    cache = cache_with_headers(tmp / "a cache, with 'all' of it")
    plugin_path(OUTBOARD_CACHE=cache)
    (tmp / "my bin").mkdir()
    os.symlink(shutil.which(QEMU), tmp / "my bin" / "qemu")
    assert "socket=" in monitor("device_add vfio-user-pci,help", OUTBOARD_CACHE=cache)
    assert plugin_path(tmp / "my bin" / "qemu", OUTBOARD_CACHE=cache)[1] == ""


@case("concurrent-first-runs-build-once", timeout_s=240)
def _(tmp):
    cache = cache_with_headers(tmp / "cache")
    runs = [subprocess.Popen([OUTBOARD, "qemu", "--print-plugin"], text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env={**os.environ, "OUTBOARD_CACHE": str(cache)})
            for _ in range(4)]
    answers = [process.communicate() for process in runs]
    assert all(process.returncode == 0 for process in runs), answers
    assert len({out for out, _ in answers}) == 1, answers
    assert sum("building the plug-in" in err for _, err in answers) == 1, answers


@case("failed-build-leaves-nothing-behind", timeout_s=180)
def _(tmp):
    cache = cache_with_headers(tmp / "cache")
    for flags in cache.glob("headers/*/flags"):
        flags.write_text("-Dstruct=nothing\n")
    work = tmp / "work"
    work.mkdir()
    text = refused(1, "failed: building the plug-in", "--print-plugin", OUTBOARD_CACHE=cache, TMPDIR=work)
    assert "    | " in text, text
    assert not list(work.iterdir()) and not list(cache.glob("plugins/**/*.so*"))


@case("plug-in-of-another-build-refuses", timeout_s=180)
def _(tmp):
    cache = cache_with_headers(tmp / "cache")
    wrong = "0123456789" * 4
    result = subprocess.run(
        [ROOT / "qemu" / "build-plugin", "--qemu", os.path.realpath(shutil.which(QEMU)), "--build-id", wrong,
         "--cache", cache, "--plugin", tmp / "plugin.so", "--include", ROOT / "include",
         "--library", BUILD / "liboutboard.a"], text=True, stderr=subprocess.PIPE)
    assert result.returncode == 1 and "failed: trying it" in result.stderr, result
    said = [line for line in result.stderr.splitlines() if "outboard qemu" in line and line.startswith("    | ")]
    assert len(said) == 1, result.stderr
    assert not (tmp / "plugin.so").exists()


@case("arguments-and-environment-reach-qemu-unchanged", timeout_s=180)
def _(tmp):
    pidfile = tmp / "pid"
    args = [*QUIET, "-name", "a b", "-daemonize", "-pidfile", str(pidfile)]
    subprocess.run([OUTBOARD, "qemu", "--", QEMU, *args], check=True, env={**os.environ, "LEFT_ALONE": "yes"})
    pid = int(pidfile.read_text())
    try:
        command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        assert command[0] == QEMU and command[1] == "-plugin" and command[3:] == args, command
        assert b"LEFT_ALONE=yes\0" in pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    finally:
        os.kill(pid, 15)


@case("exit-status-is-that-of-qemu", timeout_s=180)
def _(tmp):
    assert run(QEMU, "-version").stdout.startswith("QEMU emulator version")
    assert run(QEMU, "-no-such-option").returncode == 1


@case("device-help-lists-the-properties", timeout_s=180)
def _(tmp):
    for name, form in [("vfio-user-pci", "help"), ("vfio-user-pci", "?"), ("outboard-pci", "help")]:
        result = run(QEMU, "-device", f"{name},{form}")
        assert result.returncode == 0, result
        assert result.stdout.startswith(f"{name} options:\n"), result.stdout
        assert "  socket=<" in result.stdout and "  x-msg-timeout=<" in result.stdout, result.stdout


@case("installed-tree-works", timeout_s=240)
def _(tmp):
    cache = cache_with_headers(tmp / "cache")
    subprocess.run(["/usr/bin/python3", "/usr/bin/meson", "install", "-C", BUILD, "--no-rebuild", "--quiet"],
                   check=True, env={**os.environ, "DESTDIR": str(tmp / "root")})
    outboard, = (tmp / "root").glob("**/bin/outboard")
    plugin, _ = plugin_path(outboard=outboard, OUTBOARD_CACHE=cache)
    # One that came with the installation is preferred.
    ready = outboard.parents[1] / "lib" / "outboard" / "qemu" / plugin.parents[1].name
    ready.mkdir(parents=True)
    shutil.copy(plugin, ready)
    assert plugin_path(outboard=outboard, OUTBOARD_CACHE=cache)[0] == (ready / plugin.name).resolve()


main()
