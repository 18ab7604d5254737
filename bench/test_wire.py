"""Do packets travel as fast as over the same topology built by hand? They should: the kernel moves them, not we.

One stream (iperf3) and round trips between pods of one node and of two, over VXLAN and host-gw, ours and the hand-built
network taking turns.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.backendpath import CPU, GBIT, TRIP, Figures, Pods, Variant, microseconds, note_stream
from bench.byhand import network
from bench.rows import row
from bench.size import sized
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec, pod_namespace

ROUNDS = int(os.environ.get("WIRE_ROUNDS", str(sized(9, 1))))
PATHS = sized((("same node", "b"), ("two nodes", "c")), (("two nodes", "c"),))
WORDS = {GBIT: "throughput", TRIP: "round trip", CPU: "processor time per Gbit"}


@contextmanager
def ours(backend: str) -> Iterator[Pods]:
    """Two nodes with two pods each: ``a`` and ``b`` share a node, ``c`` is on the other."""
    name = f"pyb{os.getpid()}"
    lab = Lab.up(LabSpec(name=name, nodes=2, pods=2, backend=backend))
    try:
        pods = [(pod.node, (pod_namespace(name, pod.name), pod.ips[0])) for pod in lab.pods()]
        first, second = (place for node, place in pods if node == "node1")
        yield {"a": first, "b": second, "c": next(place for node, place in pods if node == "node2")}
    finally:
        lab.down()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_same_as_by_hand(benchmark: Any, backend: str) -> None:
    found = Figures()

    def rounds() -> None:
        with ours(backend) as mine, network(f"pyb{os.getpid()}", backend) as hand:
            makers = {"ours": mine, "hand": hand}
            for pods in makers.values():
                for _, target in PATHS:
                    microseconds(pods, "a", target, 0.05)  # neighbours
            for _ in range(ROUNDS):
                for path, target in PATHS:
                    for maker in random.sample(list(makers), 2):
                        note_stream(found, Variant(path, maker), makers[maker], target=target)
                    for maker in random.sample(list(makers), 2):
                        found.note(Variant(path, maker), TRIP, microseconds(makers[maker], "a", target))

    benchmark.pedantic(rounds, rounds=1)
    for path, _ in PATHS:
        mine, hand = Variant(path, "ours"), Variant(path, "hand")
        for metric, words in WORDS.items():
            row(
                f"{backend}, {path}: {words}",
                f"{found.median(mine, metric):.3g} {metric}",
                f"by hand {found.median(hand, metric):.3g} {metric}",
                found.ratio(mine, hand, metric),
                "" if metric == CPU else ">= 0.97",
                better="more",
                ratios=found.ratios(mine, hand, metric),
            )
