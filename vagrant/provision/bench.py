"""What a packet pays between pods of two hosts: streams (iperf3) and round trips (sockperf), beside node to node.

``bench.py BACKEND SECONDS ROUNDS`` prints a row per figure and puts them into ``report.json``. Node and pod take turns;
the ratio is the median of the rounds' ratios (``bench/README.md`` says how to read such figures).
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys

from pods import STATE, Page, book, host, load, namespace, nodes, underlay

GBIT, TRIP = "Gbit/s", "round trip, us"
TRIES = 3
REPORT = STATE / "report.json"


def main(backend: str, seconds: int, rounds: int) -> None:
    """All figures to the next host."""
    peer = next(name for name in nodes() if name != host())
    page: Page = book()[peer]
    pod = next(item for item in page.pods if not item.closed)
    mine = next(item for item in load() if not item.closed)
    places = {
        "node": ([], next(iter(underlay()[peer].values()))),
        "pod": (["ip", "netns", "exec", namespace(mine.name)], pod.ips[0]),
    }
    found: dict[str, dict[str, list[float]]] = {GBIT: {}, TRIP: {}}
    for number in range(rounds):
        for name, (prefix, address) in list(places.items())[:: -1 if number % 2 else 1]:
            found[GBIT].setdefault(name, []).append(stream(prefix, address, seconds))
            found[TRIP].setdefault(name, []).append(trip(prefix, address, seconds))
    rows = []
    for metric, values in found.items():
        ratios = [pod / node for pod, node in zip(values["pod"], values["node"], strict=True)]
        rows.append({
            "backend": backend,
            "metric": metric,
            "node": statistics.median(values["node"]),
            "pod": statistics.median(values["pod"]),
            "ratio": statistics.median(ratios),
            "spread": max(ratios) - min(ratios),
            "rounds": rounds,
            "mtu": page.mtu,
        })  # fmt: skip
    report = {"kernel": os.uname().release, "processors": os.cpu_count(), "rows": [*_others(backend), *rows]}
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        print(
            f"{backend:<10} {row['metric']:<15} node to node {row['node']:8.2f}  pod to pod {row['pod']:8.2f}"
            f"  ratio {row['ratio']:.2f} (spread {row['spread']:.2f}, {rounds} rounds), MTU {page.mtu}"
        )


def _others(backend: str) -> list[dict[str, object]]:
    """Rows of the other backends, measured before."""
    try:
        return [row for row in json.loads(REPORT.read_text())["rows"] if row["backend"] != backend]
    except FileNotFoundError:
        return []


def stream(prefix: list[str], address: str, seconds: int) -> float:
    """One TCP stream, Gbit/s."""
    answer = json.loads(run([*prefix, "iperf3", "-c", address, "-t", str(seconds), "-J"], seconds + 60))
    return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9


def trip(prefix: list[str], address: str, seconds: int) -> float:
    """Half a round trip is what sockperf calls latency: p50, microseconds, times two."""
    words = ["sockperf", "ping-pong", "--tcp", "-i", address, "-p", "5202", "-t", str(seconds)]
    text = run([*prefix, *words], seconds + 60)
    match = re.search(r"percentile 50\.000 =\s*([\d.]+)", text)
    if match is None:
        raise SystemExit(f"sockperf says nothing of percentiles:\n{text[-800:]}")
    return 2 * float(match[1])


def run(words: list[str], timeout: float) -> str:
    """A program's output; servers that are busy with the last one get another try."""
    for attempt in range(TRIES):
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=timeout)
        if done.returncode == 0:
            return done.stdout
        if attempt == TRIES - 1:
            raise SystemExit(f"{' '.join(words)}: {done.stdout[-500:]}{done.stderr[-500:]}")
    raise AssertionError


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
