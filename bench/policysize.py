"""Memory of a policy engine with all it holds, in a process of its own; JSON on stdout.

python -m bench.policysize POLICIES PODS NODES PLANE

objects, engine    MiB: resident memory with the objects decoded, and what the engine added to it
kernel             MiB the kernel charged for tables and maps; -1 where no memory control group says so
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from pathlib import Path

from bench.policyload import cluster
from bench.proxysync import resident_mib
from pycni.kernel import netns
from pycni.policy import nft
from pycni.policy.engine import PolicyEngine

GROUPS = Path("/sys/fs/cgroup/memory")


def charged(group: Path) -> float:
    """MiB of kernel memory of the group."""
    file = group / "memory.kmem.usage_in_bytes"
    return int(file.read_text()) / (1 << 20) if file.exists() else 0.0


def settle() -> float:
    """Resident MiB after giving back what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_mib()


def measure(name: str, policies: int, pods: int, nodes: int, plane: str) -> dict[str, float]:
    """In the namespace and the control group of that name."""
    objects = cluster(policies, pods, nodes).snapshot()
    fd = netns.open_netns(netns.path(name))
    dataplane = netns.run_in(fd, nft.make)
    fast = None
    if plane == "ebpf":
        from pycni.policy.ebpf import fastpath

        fast = netns.run_in(fd, lambda: fastpath.make("n0"))
    before, kernel = settle(), charged(GROUPS / name)
    engine = PolicyEngine("n0", dataplane, fast)
    netns.run_in(fd, lambda: engine.sync(objects))
    found = {
        "objects": before,
        "engine": settle() - before,
        "kernel": charged(GROUPS / name) - kernel if (GROUPS / name).is_dir() else -1.0,
    }
    if fast is not None:
        netns.run_in(fd, fast.remove)
        fast.close()
    dataplane.driver.close()
    os.close(fd)
    return found


def main() -> None:
    """See above."""
    policies, pods, nodes = map(int, sys.argv[1:4])
    name = f"pyb{os.getpid()}m"
    netns.create(name)
    group = GROUPS / name
    try:
        if (GROUPS / "memory.kmem.usage_in_bytes").exists():
            group.mkdir()
            (group / "cgroup.procs").write_text("0")
        print(json.dumps(measure(name, policies, pods, nodes, sys.argv[4])))
    finally:
        netns.delete(name)
        if group.is_dir():
            (GROUPS / "cgroup.procs").write_text("0")
            group.rmdir()


if __name__ == "__main__":
    main()
