"""What does a packet pay for network policies, by the number of rules? New connections, round trips, throughput.

Pod to pod on one node and between two, with plain bridging and no policies, and with 1 to 10,000 rules on our planes and
on a layout like kube-router's (``policychains``). The policies are equal and the variants take turns. Shapes of "so many
rules": ``policyshapes``.

    pytest bench/test_policy_path.py -k one-same_node     one of six questions

``POLICY_PLANES`` (names, with commas) leaves planes out; ``POLICY_SIZES=1,100,1000,10000 POLICY_ROUNDS=25
POLICY_SECONDS=0.1`` asks for every plane with all numbers of rules, in all questions: minutes each.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from bench import plots
from bench.policynet import EBPF, IPTABLES, NFTABLES, PLAIN, PathNet
from bench.rows import row
from bench.size import sized

SIZES = (1, 100, 1_000, 10_000)
PLANES = [
    plane
    for plane in (NFTABLES, EBPF, IPTABLES)
    if plane in os.environ.get("POLICY_PLANES", f"{NFTABLES},{EBPF},{IPTABLES}").split(",")
]
ASKED = tuple(int(size) for size in os.environ.get("POLICY_SIZES", "").split(",") if size)
ROUNDS = int(os.environ.get("POLICY_ROUNDS", sized("15", "5")))
SECONDS = float(os.environ.get("POLICY_SECONDS", "0.05"))
"""Short measurements in many rounds: the machine's speed changes from second to second."""
FLAT = "<= 1.05"

CONNECT, RATE, TRIP, PING, STREAM = (
    "connect(2), us",
    "new connections/s",
    "round trip (sockperf), us",
    "round trip, us",
    "Gbit/s",
)
MORE_IS_BETTER = {RATE, STREAM}
FIRST_PACKETS = {CONNECT, RATE}
"""Where lists of rules are passed: packets after the first are known to connection tracking."""
LABELS = {CONNECT: "connect", RATE: "rate", TRIP: "sockperf", PING: "trip", STREAM: "stream"}


class Case(NamedTuple):
    """One question."""

    shape: str
    target: str
    """The pod that is asked; ``b`` is on the client's node."""
    every_size: bool = False
    """All numbers of rules, not only fewest and most; iptables' lists take long to load."""
    trips: int = 0
    """Rounds of sockperf, a second each."""
    streams: int = 0
    """Rounds of one stream."""

    @property
    def where(self) -> str:
        return f"{self.shape}, {'one node' if self.target == 'b' else 'two nodes'}"

    def sizes(self, plane: str) -> tuple[int, ...]:
        """Numbers of rules."""
        if ASKED:
            return ASKED
        if self.every_size:
            return SIZES
        return (1, 1_000) if plane == IPTABLES else (1, 10_000)


CASES = {
    "one-same_node": Case("one", "b", every_size=sized(True, False), trips=sized(5, 1), streams=sized(7, 2)),
    "one-two_nodes": Case("one", "c", trips=3, streams=5),
    "ports-same_node": Case("ports", "b"),
    "stacked-same_node": Case("stacked", "b"),
    "spread-same_node": Case("spread", "b"),
    "spread-two_nodes": Case("spread", "c", streams=3),
}


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

    def slower(self, metric: str, other: Variant) -> list[float]:
        """How many times as slow as another, by round."""
        pairs = zip(self.figures[metric], other.figures[metric], strict=True)
        return [then / now if metric in MORE_IS_BETTER else now / then for now, then in pairs]


def measure(case: Case, variants: list[Variant]) -> None:
    """All rounds; the order is another one each time."""
    for _ in range(ROUNDS):
        for item in random.sample(variants, len(variants)):
            found = item.net.times("connect", SECONDS)
            item.note(CONNECT, found.us)
            item.note(RATE, found.rate)
            item.note(PING, item.net.times("ping", SECONDS).us)
    # What takes long is asked of the fewest and the most rules only, and a second of round trips not of lists.
    ends = [item for item in variants if item.count in {0, *ends_of(case.sizes(item.plane))}]
    ours = [item for item in ends if item.plane != IPTABLES]
    for metric, take, rounds, some in (
        (TRIP, PathNet.round_trip, case.trips, ours),
        (STREAM, PathNet.throughput, case.streams, ends),
    ):
        for _ in range(rounds):
            for item in random.sample(some, len(some)):
                item.note(metric, take(item.net))


def ends_of(sizes: tuple[int, ...]) -> tuple[int, int]:
    return sizes[0], sizes[-1]


def built(stack: ExitStack, case: Case) -> Iterator[Variant]:
    """Every variant, in namespaces of its own."""
    wanted = [(PLAIN, 0), *((plane, count) for plane in PLANES for count in case.sizes(plane))]
    for number, (plane, count) in enumerate(wanted):
        net = PathNet(f"pyb{os.getpid()}v{number}", plane, case.shape, count, case.target)
        stack.callback(net.close)
        yield Variant(plane, count, net)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", list(CASES)[: sized(None, 1)])
def test_what_a_packet_pays(benchmark: Any, name: str) -> None:
    case = CASES[name]
    with ExitStack() as stack:
        variants = list(built(stack, case))
        benchmark.pedantic(measure, args=(case, variants), rounds=1)
    report(case, variants)


def report(case: Case, variants: list[Variant]) -> None:
    """Rows: flatness of each plane, each beside plain bridging and beside the other planes; a plot of each metric."""
    plain = variants[0]
    for metric in plain.figures:
        if metric == RATE and case.shape != "one":
            continue  # connect(2) and a round trip again
        mine = {
            plane: [item for item in variants if item.plane == plane and metric in item.figures]
            for plane in PLANES
        }
        planes = {plane: items for plane, items in mine.items() if items}
        most = {plane: items[-1] for plane, items in planes.items()}
        for plane, items in planes.items():
            if plane != IPTABLES or metric in FIRST_PACKETS:
                beside(
                    case, metric, items, items[0], f"{items[0].count:,}", "" if plane == IPTABLES else FLAT
                )
        for plane, item in most.items():
            if plane != IPTABLES:
                held = plane == EBPF and metric in {TRIP, PING} and case.target == "b"
                beside(case, metric, [item], plain, "no policies", "<= 1.0" if held else "")
        # The field's claim: eBPF beats netfilter.
        for one, other in ((EBPF, NFTABLES), (EBPF, IPTABLES), (NFTABLES, IPTABLES)):
            if one in most and other in most and (other != IPTABLES or metric in FIRST_PACKETS):
                beside(case, metric, [most[one]], most[other], "", "<= 1.0" if one == EBPF else "")
        series = {"no policies": [(float(count), plain.median(metric)) for count in ends_of(SIZES)]}
        for plane, items in planes.items():
            series[plane] = [(float(item.count), item.median(metric)) for item in items]
        name = f"policy_{LABELS[metric]}_{case.shape}_{case.target}"
        plots.curves(name, f"Policies: {case.where}", ("rules", metric), series)


def beside(case: Case, metric: str, mine: list[Variant], other: Variant, against: str, target: str) -> None:
    """How many times as slow the last is as the other: a row."""
    last = mine[-1]
    ratios = last.slower(metric, other)
    words = (
        f"{last.plane} with {last.count:,} rules against {against or f'{other.plane} with {other.count:,}'}"
    )
    if not against and other.count == last.count:
        words = f"{last.plane} against {other.plane}, {last.count:,} rules"
    row(
        f"{case.where}: {metric}, {words}",
        " / ".join(f"{item.median(metric):.4g}" for item in mine),
        f"{other.plane}: {other.median(metric):.4g}",
        statistics.median(ratios),
        target,
        better="less",
        ratios=ratios,
    )
