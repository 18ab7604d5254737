"""What packets and connections pay between two hosts, as screens of a report of ``bench/``.

``across.py BACKEND SECONDS ROUNDS`` measures from this node to another, over the backend that is in use: pod to pod
beside node to node, through the Service beside to its pods, to a pod that policies close beside an open one. Who is
compared takes turns in each round; a ratio is the median of the rounds' (``bench/README.md`` says how to read them).
``across.py drained BASE64`` takes what the router saw (``converge.py``) while a node was drained.

Life: each run writes its screens to a file of ``bench/`` in the state's folder; ``report.py`` makes a report of all.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from measured import GREETER_PORT, STREAM_PORT, TRIP_PORT
from pods import (
    PORT,
    SERVICE,
    STATE,
    Page,
    Pod,
    book,
    families,
    host,
    load,
    namespace,
    setting,
    underlay,
)

from pycni.kernel import netns as kernel_netns
from pycni.lab.stations import Inside
from pycni.model.family import Family

# At the end: what is installed comes before what is in the checkout.
sys.path.append(setting("PYCNI_SOURCE"))

from bench import rows
from bench.model import Screen

FOLDER = STATE / "bench"
THROUGHPUT = "throughput of one stream"
TRIES = 3
ANSWER_S = 10.0
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closed by a reset, so that no TIME_WAIT fills the tables."""
TITLES = {
    "hosts_backends": "What does a packet pay between pods of two hosts, beside the same between the hosts themselves?",
    "hosts_services": "What does a connection through the Service pay, beside one to a pod behind it?",
    "hosts_policy": "What does a connection to a pod that policies close pay, beside one to an open pod?",
    "hosts_drain": "What does it cost those outside when a node is drained (`pycnictl bgp drain`) and comes back?",
}


class End(NamedTuple):
    """Where a measurement starts, and what it goes to."""

    namespace: str
    """"": the node's."""
    addresses: Sequence[tuple[str, int]]


class Connected(NamedTuple):
    """A second or so of connections, one after another."""

    us: float
    """Median of connect(2)."""
    rate: float
    """Per second, each with a line from the server."""


Note = Callable[[str, float], None]
"""Takes a metric and a value."""
Values = dict[str, dict[str, list[float]]]
"""By metric and variant, a value per round."""


class Run(NamedTuple):
    """How it is measured."""

    backend: str
    seconds: int
    rounds: int
    inside: Inside


def main(backend: str, seconds: int, rounds: int) -> None:
    """All figures to the next host."""
    began = time.time()
    pages, mine = book(), next(pod for pod in load() if not pod.closed)
    page = next(page for name, page in pages.items() if name != host())
    with Inside() as inside:
        run = Run(backend, seconds, rounds, inside)
        _backends(run, page, mine)
        if setting("PYCNI_PROXY") != "none":
            _services(run, pages, mine)
        if setting("PYCNI_POLICY") != "none":
            _policy(run, page, mine)
    _keep(backend, began, rounds)


def _backends(run: Run, page: Page, mine: Pod) -> None:
    theirs = next(pod for pod in page.pods if not pod.closed)
    node, pod = next(iter(underlay()[page.node].values())), theirs.ips[0]
    ends = {
        "node": End("", [(node, GREETER_PORT)]),
        "pod": End(namespace(mine.name), [(pod, GREETER_PORT)]),
    }

    def measure(end: End, note: Note) -> None:
        prefix = ["ip", "netns", "exec", end.namespace] if end.namespace else []
        address = end.addresses[0][0]
        note("Gbit/s", stream(prefix, address, run.seconds))
        note("round trip", trip(prefix, address, run.seconds))
        note("connections", connections(run, end).rate)

    values = turns(run, "hosts_backends", ends, measure)
    for metric, question, unit, better in (
        ("Gbit/s", THROUGHPUT, "Gbit/s", "more"),
        ("round trip", "round trip", "us", "less"),
        ("connections", "connections per second", "/s", "more"),
    ):
        text = {name: f"{statistics.median(found):.4g} {unit}" for name, found in values[metric].items()}
        ratios = shares(values[metric], "pod", "node")
        rows.row(
            f"{run.backend}: {question}, pod to pod against node to node",
            f"{text['pod']} (MTU {page.mtu})",
            f"node to node {text['node']}",
            statistics.median(ratios),
            better=better,
            ratios=ratios,
        )


def _services(run: Run, pages: Mapping[str, Page], mine: Pod) -> None:
    family, place = families()[0], namespace(mine.name)
    pods = [pod for page in pages.values() for pod in page.pods if not pod.closed]
    behind = [(ip, PORT) for pod in pods for ip in pod.ips if (":" in ip) == (family is Family.V6)]
    one = ("through the Service", End(place, [(SERVICE[family], 80)]))
    _connections(run, "hosts_services", setting("PYCNI_PROXY"), one, ("to its pods", End(place, behind)))


def _policy(run: Run, page: Page, mine: Pod) -> None:
    ends = [
        End(namespace(mine.name), [(pod.ips[0], PORT)])
        for closed in (True, False)
        for pod in [next(pod for pod in page.pods if pod.closed is closed)]
    ]
    one, other = zip(("to a closed pod", "to an open pod"), ends, strict=True)
    _connections(run, "hosts_policy", setting("PYCNI_POLICY"), one, other)


def _connections(run: Run, screen: str, plane: str, one: tuple[str, End], other: tuple[str, End]) -> None:
    """``one``, ``other``: in words, and where."""

    def measure(end: End, note: Note) -> None:
        found = connections(run, end)
        note("us", found.us)
        note("rate", found.rate)

    values = turns(run, screen, dict((one, other)), measure)
    first, second = one[0], other[0]
    for metric, question, unit, better in (
        ("us", "connect(2)", "us", "less"),
        ("rate", "connections per second", "/s", "more"),
    ):
        ratios = shares(values[metric], first, second)
        mine, theirs = (statistics.median(values[metric][name]) for name in (first, second))
        rows.row(
            f"{run.backend}, {plane}: {question} {first} against {second}",
            f"{mine:.4g} {unit}",
            f"{second} {theirs:.4g} {unit}",
            statistics.median(ratios),
            better=better,
            ratios=ratios,
        )


def turns(run: Run, screen: str, ends: Mapping[str, End], measure: Callable[[End, Note], None]) -> Values:
    """All ends in each round, the order reversed from round to round; the time it takes is the screen's."""
    rows.open_screen(screen, TITLES[screen])
    values: Values = {}
    began = time.monotonic()
    for number in range(run.rounds):
        for name, end in list(ends.items())[:: -1 if number % 2 else 1]:

            def note(metric: str, value: float, name: str = name) -> None:
                values.setdefault(metric, {}).setdefault(name, []).append(value)

            measure(end, note)
    rows.screen().took_s += time.monotonic() - began
    return values


def shares(values: Mapping[str, Sequence[float]], one: str, other: str) -> list[float]:
    """The rounds' ratios."""
    return [a / b for a, b in zip(values[one], values[other], strict=True)]


def connections(run: Run, end: End) -> Connected:
    """One after another for half the time, to each address in turn. Raises OSError: one is not answered."""
    path = kernel_netns.path(end.namespace) if end.namespace else ""
    return run.inside(path, lambda: _connect(end.addresses, run.seconds / 2))


def _connect(addresses: Sequence[tuple[str, int]], seconds: float) -> Connected:
    took: list[int] = []
    family = socket.AF_INET6 if ":" in addresses[0][0] else socket.AF_INET
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or len(took) < len(addresses):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.settimeout(ANSWER_S)
            before = time.perf_counter_ns()
            sock.connect(addresses[len(took) % len(addresses)])
            took.append(time.perf_counter_ns() - before)
            sock.recv(256)
    return Connected(statistics.median(took) / 1e3, len(took) / spent)


def stream(prefix: list[str], address: str, seconds: int) -> float:
    """One TCP stream, Gbit/s."""
    words = [*prefix, "iperf3", "-c", address, "-p", str(STREAM_PORT), "-t", str(seconds), "-J"]
    answer = json.loads(said(words, seconds + 60))
    return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9


def trip(prefix: list[str], address: str, seconds: int) -> float:
    """There and back, the median, microseconds."""
    words = [
        "sockperf",
        "ping-pong",
        "--tcp",
        "-i",
        address,
        "-p",
        str(TRIP_PORT),
        "-t",
        str(seconds),
        "--full-rtt",
    ]
    text = said([*prefix, *words], seconds + 60)
    match = re.search(r"percentile 50\.000 =\s*([\d.]+)", text)
    if match is None:
        raise SystemExit(f"sockperf says nothing of percentiles:\n{text[-800:]}")
    return float(match[1])


def said(words: list[str], timeout: float) -> str:
    """A program's output; servers that are busy with the last one get another try."""
    for attempt in range(TRIES):
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=timeout)
        if done.returncode == 0:
            return done.stdout
        if attempt == TRIES - 1:
            raise SystemExit(f"{' '.join(words)}: {done.stdout[-500:]}{done.stderr[-500:]}")
        time.sleep(0.5)
    raise AssertionError


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """What ``converge.py`` tells."""

    asked: int
    failed: int
    longest_ms: float
    seconds: float
    by: dict[str, int]


def drained(text: str) -> None:
    """A screen of it."""
    found = msgspec.json.decode(base64.b64decode(text), type=Drained)
    rows.open_screen("hosts_drain", TITLES["hosts_drain"])
    rows.row("connections without an answer", f"{found.failed} of {found.asked}", "", found.failed, "<= 0")
    rows.row(
        "longest time without an answer", f"{found.longest_ms:.0f} ms", "", found.longest_ms, better="less"
    )
    rows.screen().took_s = found.seconds
    _keep("drained", time.time() - found.seconds, 0)


class Kept(msgspec.Struct, kw_only=True):
    """A run's screens."""

    began: float
    """Unix time."""
    rounds: int
    """0: there are none."""
    screens: list[Screen]


def _keep(name: str, began: float, rounds: int) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    kept = Kept(began=began, rounds=rounds, screens=list(rows.SCREENS.values()))
    (FOLDER / f"{name}.json").write_bytes(msgspec.json.encode(kept))
    print("\n".join(rows.table()))


if __name__ == "__main__":
    if sys.argv[1] == "drained":
        drained(sys.argv[2])
    else:
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
