"""How fast do policies reach the kernel: a full sync, one pod, one policy? And what do they take of memory?

With the fast path above nftables too. kube-router writes its whole table for each change (measured on the same kind of
machine: 1.0 s at 100 policies, 3.4 s at 1,000); ``iptables-restore`` of a layout like its own is measured in the same run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from bench.policychains import layout
from bench.policyload import cluster, pod, policy, relabelled
from bench.policyshapes import cluster as shaped
from bench.rows import row
from pycni.kernel import netns
from pycni.model.kube import POD
from pycni.model.policy import NETWORK_POLICY
from pycni.policy import nft
from pycni.policy.engine import PolicyEngine
from pycni.store import Store
from pycni.view.policies import KINDS
from tests.cni.node import ROOT
from tests.cni.runtimes import inside

ROUNDS = 40
SIZES = {"1,000 pods, all on this node": (1000, 1), "5,000 pods, 100 on this node": (5000, 50)}
PLANES = ("nftables", "ebpf")
KUBE_ROUTER_S = 3.4
KUBE_ROUTER_MIB = "64-98 MiB"


class Filled(NamedTuple):
    """An engine in a namespace of its own, and objects."""

    title: str
    engine: PolicyEngine
    store: Store
    nodes: int
    namespace: int


@pytest.fixture(
    params=[(plane, size) for size in SIZES for plane in PLANES], ids=lambda it: f"{it[0]}, {it[1]}"
)
def filled(request: Any) -> Iterator[Filled]:
    plane, size = request.param
    pods, nodes = SIZES[size]
    name = f"pyb{os.getpid()}n"
    netns.create(name)
    try:
        fd = netns.open_netns(netns.path(name))
        try:
            dataplane = netns.run_in(fd, nft.make)
            fast = None
            if plane == "ebpf":
                from pycni.policy.ebpf import fastpath

                fast = netns.run_in(fd, lambda: fastpath.make("n0"))
            engine = PolicyEngine("n0", dataplane, fast)
            yield Filled(f"{plane}: 1,000 policies, {size}", engine, cluster(1000, pods, nodes), nodes, fd)
            if fast is not None:
                netns.run_in(fd, fast.remove)
                fast.close()
            dataplane.driver.close()
        finally:
            os.close(fd)
    finally:
        netns.delete(name)


def test_sync_and_changes(benchmark: Any, filled: Filled) -> None:
    netns.run_in(filled.namespace, lambda: syncs_and_changes(benchmark, filled))


def syncs_and_changes(benchmark: Any, filled: Filled) -> None:
    """In the node's namespace."""
    size, engine, store, nodes, _ = filled
    tracker = store.track(*KINDS)
    tracker.take()
    first = benchmark.pedantic(lambda: engine.sync(store.snapshot()), rounds=1)
    took = first.compile_s + first.apply_s
    row(f"{size}: full sync", f"{took:.2f} s, {first.operations:,} rows", "", took, "<= 1.0")
    again = engine.sync(store.snapshot())
    row(f"{size}: full sync of what is there", f"{again.compile_s + again.apply_s:.2f} s")
    for what, change in changes(store, nodes).items():
        times = []
        for number in range(ROUNDS):
            change(number)
            started = time.perf_counter()
            engine.sync(store.current(), tracker.take())
            times.append((time.perf_counter() - started) * 1e3)
            assert not engine.aside
        median = statistics.median(times)
        row(
            f"{size}: {what}",
            f"{median:.2f} ms, worst {max(times):.1f}",
            f"kube-router {KUBE_ROUTER_S} s" if "policy" in what else "",
            median,
            "<= 5.0",
        )


def changes(store: Store, nodes: int) -> dict[str, Callable[[int], object]]:
    """What may happen, again and again."""
    here = next(item for item in store.snapshot().of(POD).values() if item.node == "n0")
    comes = pod(50 * nodes * 100, nodes)
    name = policy(100).meta.key

    def toggle(kind: str, key: str, found: object) -> Callable[[int], object]:
        return lambda number: store.delete(kind, key) if number % 2 else store.put(kind, key, found)

    def put(number: int, **changed: int) -> object:
        return store.put(NETWORK_POLICY, name, policy(100, **changed))

    return {
        "a pod of this node comes or goes": toggle(POD, comes.meta.key, comes),
        "a pod's label changes": lambda number: store.put(
            POD, here.meta.key, relabelled(here, f"a{number % 10}")
        ),
        "a policy's block changes": lambda number: put(number, change=1 + number),
        "a policy's ports change": lambda number: put(number, ports=80 + number),
        "a policy goes or comes": toggle(NETWORK_POLICY, name, policy(100)),
    }


def test_a_change_the_way_of_kube_router(benchmark: Any) -> None:
    """A thousand policies with ten rules each, all of them used by pods of this node."""
    text = layout(shaped("spread", 10_000), "n1", "b")
    name = f"pyb{os.getpid()}r"

    def restore(program: str, words: str) -> float:
        started = time.perf_counter()
        subprocess.run(
            [*inside(name), *program.split()], input=words, text=True, check=True, stdout=subprocess.DEVNULL
        )
        return time.perf_counter() - started

    netns.create(name)
    try:
        restore("ipset restore", text.sets)
        restore("iptables-restore", text.chains)
        times = benchmark.pedantic(
            lambda: [restore("iptables-restore", text.chains) for _ in range(2)], rounds=1
        )
    finally:
        netns.delete(name)
    row(
        "iptables+ipset, 1,000 policies of 10 rules: the chains written anew, as for each change",
        f"{statistics.median(times):.2f} s, worst {max(times):.2f}",
        f"kube-router as a whole {KUBE_ROUTER_S} s",
    )


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("size", SIZES)
def test_memory(benchmark: Any, size: str, plane: str) -> None:
    command = [sys.executable, "-m", "bench.policysize", "1000", *map(str, SIZES[size]), plane]

    def run() -> Any:
        return json.loads(
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        )

    found = benchmark.pedantic(run, rounds=1)
    kernel = f"{found['kernel']:.0f} MiB in the kernel" if found["kernel"] >= 0 else "the kernel's not known"
    row(
        f"{plane}: 1,000 policies, {size}: memory of the engine, of the process",
        f"{found['engine']:.0f}, {found['objects'] + found['engine']:.0f} MiB; {kernel}",
        f"kube-router {KUBE_ROUTER_MIB}",
    )
