"""What a packet pays between two pods: throughput of one stream with what it took of the machine, and round trips."""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.size import sized

GBIT, TRIP, CPU = METRICS = ("Gbit/s", "us", "CPU s/Gbit")
SWITCHES, RATE = "context switches/Gbit", "connections/s"
MORE_IS_BETTER = {GBIT, RATE}
TRIP_S = sized(0.3, 0.2)
PORT = 5201
TRIP_PORTS = itertools.count(11111)
TRIES = 20
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_IDLE = (3, 4)
"""Columns of /proc/stat: idle, waiting for a disk."""
_ONE_CPU = "0"
Pods = Mapping[str, tuple[str, str]]
"""By name: namespace and address."""


class Variant(NamedTuple):
    """A network by its backend and who made it."""

    backend: str
    maker: str
    """``ours``, ``hand``."""


class Spent(NamedTuple):
    """What the whole machine did meanwhile."""

    cpu_s: float
    switches: int
    """Of context."""


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
        microseconds(pods, "a", "c", 0.05)  # neighbours, keys
    backends = sorted({variant.backend for variant in networks})
    for _ in range(count):
        for backend in random.sample(backends, len(backends)):
            variants = [variant for variant in networks if variant.backend == backend]
            for variant in random.sample(variants, len(variants)):
                note_stream(found, variant, networks[variant], seconds)
            for variant in random.sample(variants, len(variants)):
                found.note(variant, TRIP, microseconds(networks[variant], "a", "c"))
    return found


def note_stream(
    found: Figures, variant: Variant, pods: Pods, seconds: int = 1, source: str = "a", target: str = "c"
) -> None:
    """One stream: how fast, and what it took."""
    gigabits, spent = stream(pods, seconds, source, target)
    found.note(variant, GBIT, gigabits)
    found.note(variant, CPU, spent.cpu_s)
    found.note(variant, SWITCHES, spent.switches)


def stream(pods: Pods, seconds: int, source: str = "a", target: str = "c") -> tuple[float, Spent]:
    """Gbit/s of one TCP stream, and what the whole machine spent per Gbit."""
    namespace, address = pods[target]
    command = ["iperf3", "-c", address, "-p", str(PORT), "-t", str(seconds), "-J"]
    for _ in range(TRIES):
        with server(namespace, "iperf3", "-s", "-1", "-p", str(PORT)):
            time.sleep(0.1)
            before = _spent()
            found = json.loads(client(pods[source][0], *command))
            after = _spent()
        if "sum_received" in found["end"]:
            end = found["end"]["sum_received"]
            gbit = end["bytes"] * 8 / 1e9
            spent = Spent(
                (after.cpu_s - before.cpu_s) / gbit, round((after.switches - before.switches) / gbit)
            )
            return end["bits_per_second"] / 1e9, spent
        time.sleep(0.1)  # the server takes its time to listen
    raise RuntimeError(found.get("error", found))


def microseconds(pods: Pods, source: str, target: str, seconds: float = TRIP_S) -> float:
    """Median round trip."""
    return trips(pods, source, target, f"trips {seconds}")[0]


def trips(pods: Pods, source: str, target: str, *lines: str) -> list[float]:
    """What ``bench.trips`` says to each line."""
    namespace, address = pods[target]
    port = str(next(TRIP_PORTS))
    command = [sys.executable, "-m", "bench.trips"]
    with server(namespace, *command, "serve", port, _ONE_CPU):
        words = client(
            pods[source][0], *command, "ask", address, port, _ONE_CPU, feed="\n".join(lines) + "\n"
        )
    return [float(word) for word in words.split()]


@contextmanager
def server(namespace: str, *command: str) -> Iterator[None]:
    """A process in a namespace, which ends with this; whoever needs it waits until it listens."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{namespace}", "--", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def client(namespace: str, *command: str, feed: str = "") -> str:
    """What a process in a namespace prints. iperf3's own errors are in there, too."""
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{namespace}", "--", *command],
        input=feed,
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.stdout:
        raise RuntimeError(f"{' '.join(command)} in {namespace}: {done.stderr}")
    return done.stdout


def _spent() -> Spent:
    lines = Path("/proc/stat").read_text().splitlines()
    columns = list(map(int, lines[0].split()[1:9]))
    switches = next(int(line.split()[1]) for line in lines if line.startswith("ctxt "))
    return Spent((sum(columns) - sum(columns[item] for item in _IDLE)) * _TICK_S, switches)
