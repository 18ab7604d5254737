"""How fast do policies reach the kernel: a full sync, one pod, one policy? (kube-router: 3.4 s per change at 1,000.)"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.policyload import cluster, pod, policy, relabelled
from bench.rows import row
from pycni.kernel import netns
from pycni.model.kube import POD
from pycni.model.policy import NETWORK_POLICY
from pycni.policy import nft
from pycni.policy.engine import PolicyEngine
from pycni.store import Store
from pycni.view.policies import KINDS

ROUNDS = 40
SIZES = {"1,000 pods, all on this node": (1000, 1), "5,000 pods, 100 on this node": (5000, 50)}


@pytest.fixture(params=SIZES)
def filled(request: Any) -> Iterator[tuple[str, PolicyEngine, Store, int]]:
    pods, nodes = SIZES[request.param]
    name = f"pyb{os.getpid()}n"
    netns.create(name)
    try:
        fd = netns.open_netns(netns.path(name))
        try:
            plane = netns.run_in(fd, nft.make)
        finally:
            os.close(fd)
        yield (
            f"1,000 policies over {request.param}",
            PolicyEngine("n0", plane),
            cluster(1000, pods, nodes),
            nodes,
        )
        plane.driver.close()
    finally:
        netns.delete(name)


def test_sync_and_changes(benchmark: Any, filled: tuple[str, PolicyEngine, Store, int]) -> None:
    size, engine, store, nodes = filled
    tracker = store.track(*KINDS)
    tracker.take()
    first = benchmark.pedantic(lambda: engine.sync(store.snapshot()), rounds=1)
    took = first.compile_s + first.apply_s
    row(f"{size}: full sync", f"{took:.2f} s, {first.operations:,} rows", "", took, "<= 1.0")
    again = engine.sync(store.snapshot())
    row(f"{size}: full sync of what is there", f"{again.compile_s + again.apply_s:.2f} s")
    here = next(item for item in store.snapshot().of(POD).values() if item.node == "n0")
    comes = pod(50 * nodes * 100, nodes)

    def toggle(number: int) -> None:
        if number % 2:
            store.delete(POD, comes.meta.key)
        else:
            store.put(POD, comes.meta.key, comes)

    changes: dict[str, Callable[[int], object]] = {
        "a pod of this node comes or goes": toggle,
        "a pod's label changes": lambda number: store.put(
            POD, here.meta.key, relabelled(here, f"a{number % 10}")
        ),
        "a policy's block changes": lambda number: store.put(
            NETWORK_POLICY, "ns0/np1", policy(100, change=1 + number)
        ),
        "a policy's ports change": lambda number: store.put(
            NETWORK_POLICY, "ns0/np1", policy(100, ports=80 + number)
        ),
    }
    for what, change in changes.items():
        times = []
        for number in range(ROUNDS):
            change(number)
            started = time.perf_counter()
            engine.sync(store.current(), tracker.take())
            times.append((time.perf_counter() - started) * 1e3)
        median = statistics.median(times)
        row(f"{size}: {what}", f"{median:.2f} ms, worst {max(times):.1f}", "", median, "<= 5.0")
