#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes the kernel and the initramfs of the test guest.

    guest/image.py [cloud|full] [--build DIR]

Result: DIR/guest/NAME/vmlinuz and DIR/guest/NAME/initramfs; prints the directory. `cloud` is Debian's
kernel for virtual machines, `full` the one for all hardware. Either package is downloaded once and
unpacked, never installed. The initramfs holds busybox, the tools below with their libraries, our own
programs, and the modules below. Nothing is done when nothing changed; runs at the same time are safe.
"""
import argparse
import fcntl
import hashlib
import json
import lzma
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
METAPACKAGES = {"cloud": "linux-image-cloud-amd64", "full": "linux-image-amd64"}
TOOLS = ("nvme", "fio", "sgdisk", "mkfs.ext4", "e2fsck")
PROGRAMS = ("bench-guest", "edu-guest", "gpio-guest")
MODULES = ("nvme", "ext4", "uio_pci_generic", "gpio-pci-idio-16")
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class BuildError(Exception):
    pass


def run(*command, cwd=None):
    done = subprocess.run(command, cwd=cwd, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def find_tool(name):
    found = shutil.which(name, path=SEARCH_PATH)
    if not found:
        raise BuildError(f"{name} is not installed; run scripts/install-dependencies guest")
    return pathlib.Path(found)


# The kernel

def download(metapackage, directory):
    """The .deb of the kernel image that METAPACKAGE stands for now."""
    depends = run("apt-cache", "depends", metapackage)
    image = re.search(r"Depends: (linux-image-\S+)", depends)
    if not image:
        raise BuildError(f"apt knows no kernel image behind {metapackage}")
    run("apt-get", "download", "-q", image[1], cwd=directory)
    return next(directory.glob("*.deb"))


def fetch_kernel(name, guest_dir):
    """Unpacks the kernel package into GUEST_DIR/kernel-NAME, unless it is there."""
    target = guest_dir / f"kernel-{name}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=guest_dir) as scratch:
        scratch = pathlib.Path(scratch)
        try:
            package = download(METAPACKAGES[name], scratch)
        except BuildError:
            # No package lists, or older ones than the archive's: fetch them and try again.
            run("apt-get", "update", "-q")
            package = download(METAPACKAGES[name], scratch)
        run("dpkg-deb", "-x", package, scratch / "tree")
        (scratch / "tree").rename(target)
    return target


def module_text(path):
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def modules_of(kernel):
    """{path in the guest: content} of MODULES and what they depend on, as far as the kernel has them."""
    base = next((kernel / "lib/modules").iterdir())
    by_name = {p.name.split(".ko")[0].replace("-", "_"): p for p in base.rglob("*.ko*")}
    found, wanted = {}, [name.replace("-", "_") for name in MODULES]
    while wanted:
        path = by_name.get(wanted.pop())
        if not path:
            continue  # built into this kernel, or not part of it
        inside = str(path.relative_to(kernel)).removesuffix(".xz")
        if inside not in found:
            found[inside] = module_text(path)
            depends = re.search(rb"\0depends=([^\0]*)", found[inside])
            wanted += [d.replace("-", "_") for d in depends[1].decode().split(",") if d]
    with tempfile.TemporaryDirectory() as scratch:
        for inside, content in found.items():
            target = pathlib.Path(scratch, inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        index = f"lib/modules/{base.name}/modules.dep"
        pathlib.Path(scratch, index).parent.mkdir(parents=True, exist_ok=True)
        run(find_tool("busybox"), "depmod", "-b", scratch, base.name)
        found[index] = pathlib.Path(scratch, index).read_bytes()
    return found


# The initramfs

def libraries_of(program):
    listing = run("ldd", program)
    if "not found" in listing:
        raise BuildError(f"{program} lacks libraries:\n{listing}")
    return {pathlib.Path(p) for p in re.findall(r"(/\S+) \(0x", listing)}


def host_files(build):
    """{path in the guest: path here} of everything that is copied as it is."""
    files = {"bin/busybox": find_tool("busybox"), "init": ROOT / "guest/init"}
    for name in TOOLS:
        tool = find_tool(name)
        files[f"usr/sbin/{name}"] = tool
        files.update({str(p)[1:]: p for p in libraries_of(tool)})
    for name in PROGRAMS:
        files[f"usr/bin/{name}"] = build / "guest" / name
    return files


class Cpio:
    """A newc archive, written without root and the same for the same input."""

    def __init__(self):
        self.chunks, self.known, self.inode = [], set(), 0

    def add(self, name, mode, content=b"", device=(0, 0)):
        parent = os.path.dirname(name)
        if parent and parent not in self.known:
            self.add(parent, stat.S_IFDIR | 0o755)
        self.known.add(name)
        self.inode += 1
        encoded = name.encode() + b"\0"
        fields = (self.inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % f for f in fields) + encoded
        self.chunks += [head, b"\0" * (-len(head) % 4), content, b"\0" * (-len(content) % 4)]

    def finish(self):
        self.add("TRAILER!!!", 0)
        return b"".join(self.chunks)


def make_initramfs(files, modules):
    archive = Cpio()
    for name in ("dev", "proc", "sys", "run", "tmp", "mnt", "root"):
        archive.add(name, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    for applet in run(files["bin/busybox"], "--list").split():
        if applet != "busybox":
            archive.add(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
    for name, path in sorted(files.items()):
        archive.add(name, stat.S_IFREG | 0o755, path.read_bytes())
    for name, content in sorted(modules.items()):
        archive.add(name, stat.S_IFREG | 0o644, content)
    return archive.finish()


def fingerprint(files, kernel):
    """Changes when anything changes that goes into the image."""
    inputs = {name: (str(p), p.stat().st_mtime_ns, p.stat().st_size) for name, p in files.items()}
    inputs["kernel"] = kernel.stat().st_ino, kernel.stat().st_mtime_ns
    inputs["builder"] = pathlib.Path(__file__).read_text()
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def replace(path, content):
    """In one step, because a guest may be starting from the old file."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.rename(path)


def build_image(name, build):
    """Brings DIR/guest/NAME up to date and returns it."""
    guest_dir = build / "guest"
    guest_dir.mkdir(parents=True, exist_ok=True)
    target = guest_dir / name
    with open(guest_dir / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kernel = fetch_kernel(name, guest_dir)
        files = host_files(build)
        wanted = fingerprint(files, kernel)
        stamp = target / "fingerprint"
        if stamp.exists() and stamp.read_text() == wanted:
            return target
        target.mkdir(exist_ok=True)
        vmlinuz = next((kernel / "boot").glob("vmlinuz-*")).read_bytes()
        replace(target / "vmlinuz", vmlinuz)
        replace(target / "initramfs", make_initramfs(files, modules_of(kernel)))
        replace(target / "fingerprint", wanted.encode())
    return target


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=METAPACKAGES, default="cloud")
    parser.add_argument("--build", type=pathlib.Path, metavar="DIR", default=ROOT / "build")
    args = parser.parse_args()
    try:
        print(build_image(args.name, args.build.resolve()))
    except (BuildError, OSError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")


if __name__ == "__main__":
    main()
