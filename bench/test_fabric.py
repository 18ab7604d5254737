"""How fast does a node join a large fabric, follow it, and how much memory does it take?

Floors and peers: ``ip -batch`` and ``bridge -batch`` for the same entries; flanneld's figures as measured on the same
kind of machine (start with 1,000 leases 1.0 s, one more lease 3 ms, 42 MiB).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.rows import milliseconds, row
from bench.size import sized
from pycni.kernel import netns
from pycni.kernel.fabric import FabricDriver
from pycni.model.fabric import FabricState, VxlanLink
from pycni.model.family import Family, show, show_mac
from pycni.model.tables import FdbEntry, FdbKey, Neighbour, NeighbourKey, Route, RouteKey
from tests.cni.node import ROOT, AgentNode
from tests.cni.runtimes import inside

ROUNDS = sized(7, 3)
STARTS = sized(3, 1)
SIZES = sized((1000, 5000), (1000,))
NETCONF = {"Network": "10.0.0.0/8", "SubnetLen": 24}
FLANNELD_START_S, FLANNELD_LEASE_S, FLANNELD_MIB = 1.0, 0.003, 42


def peers(count: int) -> FabricState:
    """A fabric of ``count`` peers on one VXLAN device."""
    link = VxlanLink(
        name="flannel.1",
        vni=1,
        port=8472,
        parent="eth0",
        local=bytes([192, 168, 50, 1]),
        mac=b"\x02\0\0\0\xff\x01",
        mtu=1450,
    )
    subnets = [bytes([10, 100 + n // 256, n % 256, 0]) for n in range(count)]
    macs = [bytes([2, 0, 0, 0, n // 256, n % 256]) for n in range(count)]
    remotes = [bytes([192, 168, 60 + n // 250, 1 + n % 250]) for n in range(count)]
    return FabricState(
        links={link.name: link},
        routes={RouteKey(Family.V4, 254, s, 24, 0): Route(s, link.name, onlink=True) for s in subnets},
        neighbours={NeighbourKey(link.name, s): Neighbour(m) for s, m in zip(subnets, macs, strict=True)},
        fdb={FdbKey(link.name, m): FdbEntry(r) for m, r in zip(macs, remotes, strict=True)},
    )


@contextmanager
def node(leases: int) -> Iterator[AgentNode]:
    """A node whose etcd knows ``leases`` others; the agent is not started."""
    folder = Path(tempfile.mkdtemp(prefix="pyt"))
    made = AgentNode(f"pyb{os.getpid()}f", folder, {**NETCONF, "Backend": {"Type": "vxlan"}})
    try:
        run_inside(made, "fill", made.etcd.endpoint, str(leases))
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def run_inside(where: AgentNode, *words: str) -> Any:
    done = subprocess.run(
        [*inside(where.name), sys.executable, "-m", "bench.inside", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return json.loads(done.stdout) if done.stdout.strip() else None


def memory_mib(where: AgentNode) -> float:
    assert where.agent is not None
    status = Path(f"/proc/{where.agent.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) / 1024


@pytest.mark.timeout(600)
def test_thousand_peers_against_batch_tools(benchmark: Any) -> None:
    name = f"pyb{os.getpid()}k"
    netns.create(name)
    fd = netns.open_netns(netns.path(name))
    desired = peers(1000)
    empty = FabricState(links=desired.links)
    ip_lines = "\n".join(
        [f"neigh add {show(k.address)} lladdr {show_mac(v.mac)} dev flannel.1 nud permanent" for k, v in desired.neighbours.items()]
        + [f"route add {show(k.destination)}/24 via {show(k.destination)} dev flannel.1 onlink" for k in desired.routes]
    )  # fmt: skip
    fdb_lines = "\n".join(
        f"fdb add {show_mac(k.mac)} dev flannel.1 dst {show(v.remote)} self permanent"
        for k, v in desired.fdb.items()
    )
    ours: list[float] = []
    floor: list[float] = []

    def batch() -> None:
        for tool, lines in (("ip", ip_lines), ("bridge", fdb_lines)):
            subprocess.run([*inside(name), tool, "-batch", "-"], input=lines, text=True, check=True)

    def rounds() -> None:
        driver = netns.run_in(fd, FabricDriver)
        netns.run_in(fd, lambda: driver.apply(empty, driver.read()))
        both = [(lambda: driver.apply(desired, empty), ours), (batch, floor)]
        for _ in range(ROUNDS):
            both.reverse()
            for program, times in both:
                started = time.perf_counter()
                netns.run_in(fd, program)
                times.append(time.perf_counter() - started)
                netns.run_in(fd, lambda: driver.apply(empty, driver.read(["flannel.1"])))
        driver.close()

    try:
        for line in (
            "link set lo up",
            "link add eth0 type veth peer name eth1",
            "addr add 192.168.50.1/16 dev eth0",
            "link set eth0 up",
            "link set eth1 up",
        ):
            subprocess.run(["ip", "-n", name, *line.split()], check=True)
        benchmark.pedantic(rounds, rounds=1)
    finally:
        os.close(fd)
        netns.delete(name)
    row(
        "1,000 leases into the kernel, against ip -batch + bridge -batch",
        milliseconds(ours),
        milliseconds(floor),
        statistics.median(ours) / statistics.median(floor),
        "<= 1.0",
        ratios=[one / two for one, two in zip(ours, floor, strict=True)],
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("leases", SIZES)
def test_start_follow_and_memory(benchmark: Any, leases: int) -> None:
    starts: list[float] = []
    with node(leases) as where:

        def rounds() -> None:
            for _ in range(STARTS):
                started = time.monotonic()
                where.start_agent()
                starts.append(run_inside(where, "wait", str(leases)) - started)
                where.kill_agent()
                subprocess.run(["ip", "-n", where.name, "link", "del", "flannel.1"], check=True)

        benchmark.pedantic(rounds, rounds=1)
        where.start_agent()
        run_inside(where, "wait", str(leases))
        more = run_inside(where, "latency", where.etcd.endpoint, str(leases), str(sized(60, 20)))
        memory = memory_mib(where)
    big = leases != 1000
    start = statistics.median(starts)
    row(
        f"process start until {leases} leases are in the kernel",
        f"{start:.2f} s",
        "" if big else f"flanneld {FLANNELD_START_S:.1f} s",
        start,
        "" if big else "<= 1.0 s",
    )
    row(
        f"one more lease among {leases}: put to kernel, p50 / p99",
        milliseconds(more),
        "" if big else "flanneld 3 ms",
        statistics.median(more) * 1e3,
        "" if big else f"<= {FLANNELD_LEASE_S * 1e3:g} ms",
    )
    row(
        f"agent memory at {leases} leases",
        f"{memory:.0f} MiB",
        "" if big else f"flanneld {FLANNELD_MIB} MiB",
        memory,
    )
