"""What does a trace cost that is made through agents, by mutual TLS: one answer of a node with 100 pods, and the whole?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.rows import milliseconds, quantile, row
from bench.size import sized
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec
from pycni.lab.tracing import LabEyes, by_agents
from pycni.tracing import speech
from pycni.tracing.course import Asked, trace

PODS = sized(100, 10)
ROUNDS = sized(12, 2)
TRACES = sized(6, 2)
ENDS = ("pod1", "pod2")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes with many pods, whose agents listen for traces."""
    made = Lab.up(LabSpec(name="bench-agents", nodes=2, pods=PODS, policy="nftables", trace_tls=True))
    yield made
    made.down()


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@pytest.mark.timeout(600)
def test_state_of_a_node(benchmark: Any, lab: Lab) -> None:
    door = by_agents(lab, ENDS).doors[0].door

    def ask() -> None:
        door.get(speech.state_query(ENDS))

    ask()
    took = benchmark.pedantic(lambda: [timed(ask) for _ in range(ROUNDS)], rounds=1)
    row(
        f"/trace/state of a node with {PODS} pods, p50 / p99 (ms)", milliseconds(took), "",
        statistics.median(took) * 1e3, "< 100 ms" if PODS >= 100 else "",
    )  # fmt: skip


@pytest.mark.timeout(600)
def test_whole_trace(benchmark: Any, lab: Lab) -> None:
    def through_agents() -> None:
        found = trace(by_agents(lab, ENDS), Asked(*ENDS), time.perf_counter())
        assert found.ok, found.fault

    def looking() -> None:
        trace(LabEyes(lab), Asked(*ENDS), time.perf_counter())

    through_agents()
    pairs = benchmark.pedantic(
        lambda: [(timed(through_agents), timed(looking)) for _ in range(TRACES)], rounds=1
    )
    took, looked = zip(*pairs, strict=True)
    row("a trace through agents, p50 / p99", milliseconds(took), "", quantile(took, 0.99), "< 2 s")
    ratios = [one / two for one, two in pairs]
    row(
        f"a trace through agents, against looking at the nodes, {PODS} pods on each",
        f"{statistics.median(took) * 1e3:.0f} ms",
        f"{statistics.median(looked) * 1e3:.0f} ms",
        statistics.median(ratios),
        better="less",
        ratios=ratios,
    )
