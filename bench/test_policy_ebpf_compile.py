"""How long do policies take to become rows of the maps that judge connections, and how much memory do these take?"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from bench.policyload import cluster, pod, policy, relabelled
from bench.rows import row
from bench.size import sized
from pycni.model.kube import POD
from pycni.model.policy import NETWORK_POLICY
from pycni.policy.ebpf import classes
from pycni.policy.ebpf.compile import Maps
from pycni.reconcile.collection import no_collection
from pycni.view.policies import KINDS, PolicyView
from pycni.view.policy_stages import ABSENT, RowDiff

ROUNDS = sized(40, 10)
SIZES = {
    "5,000 pods, 100 on this node": (5000, 50),
    "5,000 pods, 1,000 on this node": (5000, 5),
    "1,000 pods, all on this node": (1000, 1),
}


def compiled(rows: list[RowDiff]) -> Maps:
    """Everything anew, with nothing left from last time."""
    classes.prefixes.cache_clear()
    classes.ports_of.cache_clear()
    maps = Maps()
    maps.update(rows, full=True)
    maps.take()
    return maps


@pytest.mark.parametrize("size", list(SIZES)[: sized(None, 2)])
def test_compile(benchmark: Any, size: str) -> None:
    pods, nodes = SIZES[size]
    what = f"1,000 policies over {size}, eBPF maps"
    store = cluster(1000, pods, nodes)
    tracker = store.track(*KINDS)
    tracker.take()
    view = PolicyView("n0")
    view.update(store.snapshot())
    rows = [
        RowDiff(name, key, ABSENT, held) for name in view.tables for key, held in view.tables[name].items()
    ]

    def full() -> float:
        with no_collection():
            started = time.perf_counter()
            compiled(rows)
            return time.perf_counter() - started

    took = benchmark.pedantic(lambda: min(full() for _ in range(sized(5, 2))), rounds=1)
    tracemalloc.start()
    maps = compiled(rows)
    held = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    count = sum(len(table) for table in maps.tables.values())
    row(f"{what}: full", f"{took:.2f} s, {count:,} rows, {held:.1f} MB", "", took, "<= 0.3 s")
    here = next(item for item in store.snapshot().of(POD).values() if item.node == "n0")
    comes = pod(50 * nodes * 100, nodes)

    def toggle(number: int) -> None:
        if number % 2:
            store.delete(POD, comes.meta.key)
        else:
            store.put(POD, comes.meta.key, comes)

    changes: dict[str, Callable[[int], object]] = {
        "a pod comes or goes": toggle,
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
    for name, change in changes.items():
        times = []
        for number in range(ROUNDS):
            change(number)
            differing = view.update(store.current(), tracker.take())
            started = time.perf_counter()
            maps.update(differing, full=False)
            maps.take()
            times.append((time.perf_counter() - started) * 1e3)
        median = statistics.median(times)
        row(f"{what}: {name}", f"{median:.2f} ms, worst {max(times):.1f}", "", median, "<= 1 ms")
