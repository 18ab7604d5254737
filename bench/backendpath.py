"""What a packet pays between two pods: throughput of one stream with the processor time it took, and round trips."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bench.test_wire import PORT, Pods, client, microseconds, server

GBIT, TRIP, CPU = METRICS = ("Gbit/s", "us", "CPU s/Gbit")
RATE = "connections/s"
MORE_IS_BETTER = {GBIT, RATE}
TRIES = 10
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_IDLE = (3, 4)
"""Columns of /proc/stat: idle, waiting for a disk."""


class Variant(NamedTuple):
    """A network by its backend and who made it."""

    backend: str
    maker: str
    """``ours``, ``hand``."""


class Figures:
    """What was measured, by variant and metric, one value per round."""

    def __init__(self) -> None:
        self.values: dict[tuple[Variant, str], list[float]] = {}

    def note(self, variant: Variant, metric: str, value: float) -> None:
        """One round's."""
        self.values.setdefault((variant, metric), []).append(value)

    def median(self, variant: Variant, metric: str) -> float:
        """Of all rounds."""
        return statistics.median(self.values[variant, metric])

    def makers(self, backend: str) -> list[str]:
        """Who made one, ours first."""
        return sorted({item.maker for item, _ in self.values if item.backend == backend}, reverse=True)

    def ratios(self, one: Variant, other: Variant, metric: str) -> list[float]:
        """How many times as good one is as another, by round."""
        pairs = zip(self.values[one, metric], self.values[other, metric], strict=True)
        return [a / b if metric in MORE_IS_BETTER else b / a for a, b in pairs]

    def ratio(self, one: Variant, other: Variant, metric: str) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios(one, other, metric))


def rounds(networks: Mapping[Variant, Pods], count: int, seconds: int = 1) -> Figures:
    """All networks in each round: backends in random order, who is compared with whom next to each other."""
    found = Figures()
    for pods in networks.values():
        microseconds(pods, "a", "c")  # neighbours, keys
    backends = sorted({variant.backend for variant in networks})
    for _ in range(count):
        for backend in random.sample(backends, len(backends)):
            variants = [variant for variant in networks if variant.backend == backend]
            for variant in random.sample(variants, len(variants)):
                gigabits, cpu = stream(networks[variant], seconds)
                found.note(variant, GBIT, gigabits)
                found.note(variant, CPU, cpu)
            for variant in random.sample(variants, len(variants)):
                found.note(variant, TRIP, microseconds(networks[variant], "a", "c"))
    return found


def stream(pods: Pods, seconds: int) -> tuple[float, float]:
    """Gbit/s of one TCP stream, and seconds of processor time the whole machine spent per Gbit."""
    namespace, address = pods["c"]
    command = ["iperf3", "-c", address, "-p", str(PORT), "-t", str(seconds), "-J"]
    for _ in range(TRIES):
        with server(namespace, "iperf3", "-s", "-1", "-p", str(PORT)):
            before = _busy_s()
            found = json.loads(client(pods["a"][0], *command))
            spent = _busy_s() - before
        if "sum_received" in found["end"]:
            end = found["end"]["sum_received"]
            return end["bits_per_second"] / 1e9, spent / (end["bytes"] * 8 / 1e9)
        time.sleep(0.2)  # the server takes its time to listen
    raise RuntimeError(found.get("error", found))


def _busy_s() -> float:
    columns = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    return (sum(columns) - sum(columns[item] for item in _IDLE)) * _TICK_S
