"""How fast do policies reach the kernel: a full sync, one pod, one policy? And what do they take of memory?

With the fast path above nftables too. kube-router writes its whole table for each change (measured on the same kind of
machine: 1.0 s at 100 policies, 3.4 s at 1,000); ``iptables-restore`` of a layout like its own is measured beside a change
of ours over the same policies.
"""

from __future__ import annotations

import ipaddress
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import msgspec
import pytest

from bench.policychains import layout
from bench.policyload import cluster, pod, policy, relabelled
from bench.policyshapes import filled as shaped
from bench.rows import row
from bench.size import QUICK, sized
from pycni.kernel import netns
from pycni.model.kube import POD
from pycni.model.policy import NETWORK_POLICY, IpBlock, Peer
from pycni.policy import nft
from pycni.policy.engine import PolicyEngine
from pycni.store import Store, Tracker
from pycni.view.policies import KINDS
from tests.cni.node import ROOT
from tests.cni.runtimes import inside

ROUNDS = sized(40, 10)
RESTORED = 4
"""Rounds in which iptables' chains are written anew; each has several changes of ours beside it."""
SIZES = {"1,000 pods, all on this node": (1000, 1), "5,000 pods, 100 on this node": (5000, 50)}
TRIED = list(SIZES)[sized(0, 1) :]
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
    params=[(plane, size) for size in TRIED for plane in PLANES], ids=lambda it: f"{it[0]}, {it[1]}"
)
def filled(request: Any) -> Iterator[Filled]:
    plane, size = request.param
    pods, nodes = SIZES[size]
    with space("n") as name, engine(name, plane) as (made, fd):
        yield Filled(f"{plane}: 1,000 policies, {size}", made, cluster(1000, pods, nodes), nodes, fd)


@contextmanager
def engine(where: str, plane: str, node: str = "n0") -> Iterator[tuple[PolicyEngine, int]]:
    """One in a namespace, and the namespace."""
    with ExitStack() as stack:
        fd = netns.open_netns(netns.path(where))
        stack.callback(os.close, fd)
        dataplane = netns.run_in(fd, nft.make)
        stack.callback(dataplane.driver.close)
        fast = None
        if plane == "ebpf":
            from pycni.policy.ebpf import fastpath

            fast = netns.run_in(fd, lambda: fastpath.make(node))
            stack.callback(fast.close)
            stack.callback(netns.run_in, fd, fast.remove)
        yield PolicyEngine(node, dataplane, fast), fd


def test_sync_and_changes(benchmark: Any, filled: Filled) -> None:
    netns.run_in(filled.namespace, lambda: syncs_and_changes(benchmark, filled))


def syncs_and_changes(benchmark: Any, filled: Filled) -> None:
    """In the node's namespace."""
    size, engine, store, nodes, _ = filled
    tracker = store.track(*KINDS)
    tracker.take()
    first = benchmark.pedantic(lambda: engine.sync(store.snapshot()), rounds=1)
    took = first.compile_s + first.apply_s
    row(f"{size}: full sync", f"{took:.2f} s, {first.operations:,} rows", "", took, "<= 1 s")
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
            "<= 5 ms",
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


@pytest.mark.timeout(600)
@pytest.mark.skipif(QUICK, reason="half a minute of ipset and iptables")
def test_a_change_the_way_of_kube_router(benchmark: Any) -> None:
    """A thousand policies with ten rules each, all of them used by pods of this node."""
    store = shaped("spread", 10_000)
    text = layout(store.snapshot(), "n1", "b")

    def turns() -> tuple[list[float], list[float]]:
        mine, theirs = [], []
        with space("o") as here, space("r") as there, engine(here, "nftables", "n1") as (ours, fd):
            tracker = store.track(*KINDS)
            tracker.take()
            netns.run_in(fd, lambda: ours.sync(store.snapshot()))
            restored(there, "ipset restore", text.sets)
            restored(there, "iptables-restore", text.chains)
            for _ in range(RESTORED):
                theirs.append(restored(there, "iptables-restore", text.chains))
                mine.append(netns.run_in(fd, lambda: changed(ours, store, tracker)))
        return mine, theirs

    mine, theirs = benchmark.pedantic(turns, rounds=1)
    ratios = [one / other for one, other in zip(mine, theirs, strict=True)]
    row(
        "1,000 policies of 10 rules, all used here: one changes, nftables against iptables' chains written anew",
        f"{statistics.median(mine) * 1e3:.2f} ms",
        f"iptables-restore {statistics.median(theirs):.2f} s; kube-router as a whole {KUBE_ROUTER_S} s",
        statistics.median(ratios),
        better="less",
        ratios=ratios,
    )


@contextmanager
def space(letter: str) -> Iterator[str]:
    """A namespace."""
    name = f"pyb{os.getpid()}{letter}"
    netns.create(name)
    try:
        yield name
    finally:
        netns.delete(name)


def restored(where: str, program: str, words: str) -> float:
    """Seconds a tool takes to load these words."""
    started = time.perf_counter()
    command = [*inside(where), *program.split()]
    subprocess.run(command, input=words, text=True, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def changed(ours: PolicyEngine, store: Store, tracker: Tracker) -> float:
    """Seconds until a policy's other block is in the kernel: the median of some."""
    found = store.snapshot().of(NETWORK_POLICY)["bench/for-b7"]
    times = []
    for number in range(10):
        first, *others = found.ingress or ()
        block = IpBlock(cidr=ipaddress.ip_network(f"198.51.{number}.0/24"))
        other = msgspec.structs.replace(first, peers=(Peer(block=block),))
        store.put(NETWORK_POLICY, found.meta.key, msgspec.structs.replace(found, ingress=(other, *others)))
        started = time.perf_counter()
        ours.sync(store.current(), tracker.take())
        times.append(time.perf_counter() - started)
        assert not ours.aside
    return statistics.median(times)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("size", TRIED)
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
