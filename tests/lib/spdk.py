# SPDX-License-Identifier: BSD-3-Clause
"""How SPDK's programs are started, by tests/interop and bench/."""
import json

MIB = 1 << 20
NQN = "nqn.2026-01.example:disk"
MEMORY = ("--no-huge", "-s", "1024")


def config(path, **subsystems):
    """A file that SPDK's programs start with, of the calls that each subsystem gets."""
    path.write_text(json.dumps({"subsystems": [
        {"subsystem": name, "config": [{"method": method, "params": params} for method, params in calls]}
        for name, calls in subsystems.items()]}))
    return path


def target(program, tmp, mib, core=0):
    """The command of its NVMe target with a disk in memory, on tmp/cntrl. It polls: the core is busy while it runs."""
    return [program, *MEMORY, "--no-pci", "--disable-cpumask-locks", "-m", hex(1 << core), "-r", tmp / "rpc.sock", "-c", config(
        tmp / "target.json",
        bdev=[("bdev_malloc_create", {"name": "Malloc0", "num_blocks": mib * MIB // 512, "block_size": 512})],
        nvmf=[("nvmf_create_transport", {"trtype": "VFIOUSER"}),
              ("nvmf_create_subsystem", {"nqn": NQN, "allow_any_host": True, "serial_number": "SPDK0"}),
              ("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "Malloc0"}}),
              ("nvmf_subsystem_add_listener",
               {"nqn": NQN, "listen_address": {"trtype": "VFIOUSER", "traddr": str(tmp)}})])]
