"""Do packets travel as fast as over the same topology built by hand? They should: the kernel moves them, not we.

iperf3 (one stream) and sockperf (TCP ping-pong) between pods of one node and of two, over VXLAN and host-gw, ours and
the hand-built network taking turns.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.byhand import network
from bench.rows import row

ROUNDS = 5
SECONDS = 1
PORT = 5201
SOCKPERF_PORTS = itertools.count(11111)
Pods = dict[str, tuple[str, str]]


def lab(*words: str) -> Any:
    """Run ``pycnictl lab``; returns its JSON."""
    command = [sys.executable, "-m", "pycni.cli", "lab", words[0], "--name", LAB, *words[1:]]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout) if "--json" in words else None


LAB = f"pyb{os.getpid()}"


@contextmanager
def ours(backend: str) -> Iterator[Pods]:
    """Two nodes with two pods each: ``a`` and ``b`` share a node, ``c`` is on the other."""
    status = lab("up", "--nodes", "2", "--pods", "2", "--backend", backend, "--json")
    try:
        pods = [(p["node"], f"pycni-{LAB}-pod.{p['name']}", p["ips"][0]) for p in status["pods"]]
        first = [pod for pod in pods if pod[0] == "node1"]
        other = next(pod for pod in pods if pod[0] == "node2")
        yield {"a": first[0][1:], "b": first[1][1:], "c": other[1:]}
    finally:
        lab("down")


@contextmanager
def server(namespace: str, *command: str) -> Iterator[None]:
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{namespace}", "--", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.15)
        yield
    finally:
        process.kill()
        process.wait()


def client(namespace: str, *command: str) -> str:
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{namespace}", "--", *command],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def gigabits(pods: Pods, source: str, target: str) -> float:
    namespace, address = pods[target]
    with server(namespace, "iperf3", "-s", "-1", "-p", str(PORT)):
        out = client(pods[source][0], "iperf3", "-c", address, "-p", str(PORT), "-t", str(SECONDS), "-J")
    return float(json.loads(out)["end"]["sum_received"]["bits_per_second"]) / 1e9


def microseconds(pods: Pods, source: str, target: str) -> float:
    """Median round trip. A port of its own each time: sockperf cannot bind one in TIME_WAIT."""
    port = str(next(SOCKPERF_PORTS))
    namespace, address = pods[target]
    command = ["sockperf", "ping-pong", "--tcp", "-i", address, "-p", port, "-t", "1", "--full-rtt"]
    with server(namespace, "sockperf", "server", "--tcp", "-i", address, "-p", port):
        for _ in range(50):
            found = re.search(r"percentile 50.000 =\s+([\d.]+)", out := client(pods[source][0], *command))
            if found:
                return float(found[1])
            time.sleep(0.1)  # the server takes its time to listen
    raise RuntimeError(out)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_same_as_by_hand(benchmark: Any, backend: str) -> None:
    figures: dict[tuple[str, str, str], list[float]] = {}

    def rounds() -> None:
        with ours(backend) as mine, network(f"pyb{os.getpid()}", backend) as hand:
            for number in range(ROUNDS):
                order = [("ours", mine), ("hand", hand)]
                for path, target in (("same node", "b"), ("two nodes", "c")):
                    for name, pods in order if number % 2 else order[::-1]:
                        for what, measure in (("Gbit/s", gigabits), ("us", microseconds)):
                            figures.setdefault((path, what, name), []).append(measure(pods, "a", target))

    benchmark.pedantic(rounds, rounds=1)
    for path in ("same node", "two nodes"):
        for what in ("Gbit/s", "us"):
            mine, hand = (statistics.median(figures[path, what, name]) for name in ("ours", "hand"))
            better = mine / hand if what == "Gbit/s" else hand / mine
            label = "throughput" if what == "Gbit/s" else "round trip"
            row(
                f"{backend}, {path}: {label}",
                f"{mine:.1f} {what}",
                f"by hand {hand:.1f} {what}",
                better,
                ">= 0.97",
            )
