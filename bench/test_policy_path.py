"""What does a packet pay for network policies, by the number of rules? New connections, round trips, throughput.

Pod to pod on one node and between two, with plain bridging and no policies, and with 1 to 10,000 rules on our planes and
on a layout like kube-router's (``policychains``). The policies are equal and the variants take turns. Shapes of "so many
rules": ``policyshapes``.

    pytest bench/test_policy_path.py -k one-same_node     one of six questions; each takes four to five minutes

``POLICY_PLANES`` (names, with commas) leaves planes out.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from bench import plots
from bench.policynet import EBPF, IPTABLES, NFTABLES, PLAIN, PathNet
from bench.rows import row

SIZES = (1, 100, 1_000, 10_000)
PLANES = [
    plane
    for plane in (NFTABLES, EBPF, IPTABLES)
    if plane in os.environ.get("POLICY_PLANES", f"{NFTABLES},{EBPF},{IPTABLES}").split(",")
]
ROUNDS, SECONDS = 25, 0.1
TRIP_ROUNDS, STREAM_ROUNDS = 5, 3
"""Short measurements in many rounds, those of a second in few: the machine's speed changes from second to second."""
FLAT = "<= 1.05"


class Variant:
    """A data plane with so many rules, and what was measured on it."""

    def __init__(self, plane: str, count: int, net: PathNet) -> None:
        self.plane, self.count, self.net = plane, count, net
        self.figures: dict[str, list[float]] = {}
        """By metric, one per round."""

    def note(self, metric: str, value: float) -> None:
        """One round's."""
        self.figures.setdefault(metric, []).append(value)

    def median(self, metric: str) -> float:
        """Of all rounds."""
        return statistics.median(self.figures[metric])

    def worse(self, metric: str, other: Variant) -> float:
        """How many times as slow as another: the median of the rounds' ratios."""
        pairs = zip(self.figures[metric], other.figures[metric], strict=True)
        return statistics.median(
            then / now if metric in MORE_IS_BETTER else now / then for now, then in pairs
        )


CONNECT, RATE, TRIP, PING, STREAM = (
    "connect(2), us",
    "new connections/s",
    "round trip (sockperf), us",
    "round trip, us",
    "Gbit/s",
)
MORE_IS_BETTER = {RATE, STREAM}


def measure(variants: list[Variant]) -> None:
    """All rounds; the order is another one each time."""
    for _ in range(ROUNDS):
        for item in random.sample(variants, len(variants)):
            found = item.net.times("connect", SECONDS)
            item.note(CONNECT, found.us)
            item.note(RATE, found.rate)
            item.note(PING, item.net.times("ping", SECONDS).us)
    for metric, take, rounds in (
        (TRIP, PathNet.round_trip, TRIP_ROUNDS),
        (STREAM, PathNet.throughput, STREAM_ROUNDS),
    ):
        for _ in range(rounds):
            for item in random.sample(variants, len(variants)):
                item.note(metric, take(item.net))


def built(stack: ExitStack, shape: str, target: str) -> Iterator[Variant]:
    """Every variant, in namespaces of its own."""
    wanted = [(PLAIN, 0), *((plane, count) for plane in PLANES for count in SIZES)]
    for number, (plane, count) in enumerate(wanted):
        net = PathNet(f"pyb{os.getpid()}v{number}", plane, shape, count, target)
        stack.callback(net.close)
        yield Variant(plane, count, net)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("shape", "target"),
    [("one", "b"), ("one", "c"), ("ports", "b"), ("stacked", "b"), ("spread", "b"), ("spread", "c")],
    ids=[
        "one-same_node",
        "one-two_nodes",
        "ports-same_node",
        "stacked-same_node",
        "spread-same_node",
        "spread-two_nodes",
    ],
)
def test_what_a_packet_pays(benchmark: Any, shape: str, target: str) -> None:
    with ExitStack() as stack:
        variants = list(built(stack, shape, target))
        benchmark.pedantic(measure, args=(variants,), rounds=1)
    report(variants, f"{shape}, {'one node' if target == 'b' else 'two nodes'}", f"{shape}_{target}")


def report(variants: list[Variant], where: str, name: str) -> None:
    """Rows: flatness of each plane in each metric, and each plane beside plain bridging; a plot per metric."""
    plain, *rest = variants
    for metric in plain.figures:
        series = {"no policies": [(float(count), plain.median(metric)) for count in SIZES]}
        for plane in PLANES:
            mine = [item for item in rest if item.plane == plane]
            series[plane] = [(float(item.count), item.median(metric)) for item in mine]
            first, last = mine[0], mine[-1]
            row(
                f"{where}: {metric}, {plane} with 1 / 100 / 1,000 / 10,000 rules, most against 1",
                " / ".join(f"{item.median(metric):.4g}" for item in mine),
                "",
                max(item.worse(metric, first) for item in mine[1:]),
                "" if plane == IPTABLES else FLAT,
            )
            row(
                f"{where}: {metric}, {plane} with 10,000 rules against no policies",
                f"{last.median(metric):.4g}",
                f"plain {plain.median(metric):.4g}",
                last.worse(metric, plain),
                "<= 1.0"
                if plane == EBPF and metric in {TRIP, PING} and variants[0].net.target == "b"
                else "",
            )
        label = {CONNECT: "connect", RATE: "rate", TRIP: "sockperf", PING: "trip", STREAM: "stream"}[metric]
        plots.curves(f"policy_{label}_{name}", f"Policies: {where}", ("rules", metric), series)
