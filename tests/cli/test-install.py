#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""`make install`: what is installed can be used."""
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from case import BUILD, ROOT, case, main

PROGRAM = r"""
#include <outboard/client.h>
#include <outboard/pci.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    struct ob_client *client;
    struct ob_device_info info;
    char why[256];

    if (argc != 2 || ob_client_connect(argv[1], NULL, &client, why, sizeof(why)) < 0)
        return 1;
    if (ob_client_device_info(client, &info) < 0)
        return 1;
    printf("%u regions\n", info.num_regions);
    ob_client_free(client);
    return 0;
}
"""


def install(tmp):
    """Installs under tmp/root; returns that and the prefix in it."""
    subprocess.run(["make", "-s", "install", f"BUILD={BUILD}", f"DESTDIR={tmp}/root"], cwd=ROOT, check=True)
    found = list((tmp / "root").rglob("bin/outboard"))
    assert len(found) == 1, found
    return tmp / "root", found[0].parents[1]


@case("installed-library-builds-a-program-that-talks-to-an-installed-server", timeout_s=120)
def _(tmp):
    root, prefix = install(tmp)
    (tmp / "program.c").write_text(PROGRAM)
    pc = next(prefix.rglob("outboard.pc"))
    env = dict(os.environ, PKG_CONFIG_PATH=str(pc.parent), PKG_CONFIG_SYSROOT_DIR=str(root))
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "outboard"], env=env, stdout=subprocess.PIPE,
                           text=True, check=True).stdout.split()
    subprocess.run(["gcc", "-std=c99", "-Wall", "-Werror", "-o", tmp / "program", tmp / "program.c", *flags],
                   check=True)
    library = next(prefix.rglob("liboutboard.so.0"))
    env = dict(os.environ, LD_LIBRARY_PATH=str(library.parent))
    with subprocess.Popen([prefix / "bin/outboard", "serve", "null", tmp / "s"], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout.readline()
            out = subprocess.run([tmp / "program", tmp / "s"], env=env, stdout=subprocess.PIPE, text=True, check=True)
            assert out.stdout == "9 regions\n", out.stdout
        finally:
            server.terminate()


@case("installed-command-runs", timeout_s=120)
def _(tmp):
    _, prefix = install(tmp)
    done = subprocess.run([prefix / "bin/outboard", "--version"], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.startswith("outboard ")


@case("shared-library-exports-only-its-prefix", timeout_s=120)
def _(tmp):
    _, prefix = install(tmp)
    library = next(prefix.rglob("liboutboard.so.0"))
    out = subprocess.run(["nm", "-D", "--defined-only", library], stdout=subprocess.PIPE, text=True, check=True).stdout
    names = [line.split()[2].split("@")[0] for line in out.splitlines()]
    assert "ob_client_connect" in names
    assert all(name.startswith(("ob_", "OUTBOARD_")) for name in names), names


main()
