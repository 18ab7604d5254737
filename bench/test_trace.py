"""What does a trace cost: the whole of it, its prediction alone, and everybody else's traffic on the same nodes?

Beside it how fast the commands start that people type most: ``pycnictl --help`` against a bare interpreter, and
``status``. Traffic is measured in rounds that take turns in random order: as it is, as it is once more (the noise), with
a trace every second, and with one trace after the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.rows import milliseconds, quantile, row
from bench.size import QUICK, sized
from bench.traceworld import MadeUp
from pycni.cli_agent import SOCKET
from pycni.lab.apply import Cluster
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec
from pycni.lab.tracing import LabEyes
from pycni.trace.model import Trace
from pycni.tracing.course import Asked, trace

TRACES = sized(15, 2)
PREDICTIONS = sized(30, 5)
STARTS = sized(20, 4)
ROUNDS = int(os.environ.get("TRACE_ROUNDS", "5"))
SECONDS = float(os.environ.get("TRACE_SECONDS", "1"))
TOGETHER = 300
"""Connections that are open and talk while traffic is measured."""
ROOT = Path(__file__).parents[1]
WAYS = PLAIN, AGAIN, NOW_AND_THEN, ALWAYS = (
    "no trace", "no trace, again", "a trace a second", "one after the other",
)  # fmt: skip
UNITS = GBIT, ONE_WAY = "Gbit/s", "us one way"
OBJECTS: list[dict[str, Any]] = [
    {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"nodeName": "node2", "containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]},
    },
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "shop"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    },
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "web"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 8080}]}],
        },
    },
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes, VXLAN, services and policies by nftables, two pods each and a server on the second."""
    spec = LabSpec(name=f"pyb{os.getpid()}-t", nodes=2, pods=2, proxy="nftables", policy="nftables")
    made = Lab.up(spec)
    try:
        Cluster(made).apply([("bench", value) for value in OBJECTS])
        yield made
    finally:
        made.down()


def traced(lab: Lab, *, predict: bool = False) -> Trace:
    """pod1 to the Service, whose only endpoint is on the other node."""
    found = trace(LabEyes(lab), Asked("pod1", "shop", predict=predict), time.perf_counter())
    assert found.ok, found.fault
    assert {"service", "policy", "overlay"} <= {hop.component for hop in found.hops}
    return found


def timed(count: int, job: Callable[[], object]) -> list[float]:
    took = []
    for _ in range(count):
        started = time.perf_counter()
        job()
        took.append(time.perf_counter() - started)
    return took


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pycni.cli", *words]


def run(words: list[str]) -> None:
    subprocess.run(words, check=True, capture_output=True, cwd=ROOT)


@pytest.mark.timeout(600)
def test_whole_trace(benchmark: Any, lab: Lab) -> None:
    traced(lab)
    inside = benchmark.pedantic(lambda: timed(TRACES, lambda: traced(lab)), rounds=1)
    typed = timed(max(TRACES // 3, 1), lambda: run(command("trace", "--name", lab.spec.name, "pod1", "shop")))
    row(
        "trace across VXLAN, Service and policy, p50 / p99",
        milliseconds(inside),
        "",
        quantile(inside, 0.99),
        "< 2 s",
    )
    row("  the command as typed, p50 / p99", milliseconds(typed), "", quantile(typed, 0.99), "< 2 s")  # fmt: skip


@pytest.mark.timeout(600)
def test_prediction(benchmark: Any, lab: Lab) -> None:
    def all_of_it() -> list[float]:
        return [traced(lab, predict=True).predicted_ms for _ in range(PREDICTIONS)]

    small = benchmark.pedantic(all_of_it, rounds=1)
    big = MadeUp(100, 10)
    asked = Asked("default/pod1-0", "default/s7", predict=True)

    def predicted() -> None:
        found = trace(big, asked, time.perf_counter())
        assert found.ok, found.fault
        assert {"service", "policy", "overlay"} <= {hop.component for hop in found.hops}

    took = timed(PREDICTIONS, predicted)
    worst = quantile(small, 0.99)
    row(
        "prediction in this lab, p50 / p99",
        f"{statistics.median(small):.1f} / {worst:.1f} ms",
        "",
        worst,
        "< 100 ms",
    )
    row(
        "prediction with 100 nodes, 1,000 pods, 300 Services, 100 policies, p50 / p99",
        milliseconds(took),
        "",
        quantile(took, 0.99) * 1e3,
        "< 100 ms",
    )


@pytest.mark.timeout(600)
def test_commands_start(benchmark: Any, lab: Lab) -> None:
    """They take turns with the bare interpreter: what is left of the machine's moods is in both."""
    bare, helped, told = [], [], []
    # As on a node: the agent's control socket, whose file name is the default's.
    socket = str(Path(lab.node("node1").socket).with_name(Path(SOCKET).name))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(words: list[str]) -> float:
        return timed(1, lambda: subprocess.run(words, check=True, capture_output=True, env=env))[0]

    def all_of_it() -> None:
        for _ in range(STARTS):
            bare.append(start([sys.executable, "-c", "pass"]))
            helped.append(start(command("--help")))
            told.append(start(command("status", "--socket", socket)))

    start(command("--help"))
    benchmark.pedantic(all_of_it, rounds=1)
    more = [(one - two) * 1e3 for one, two in zip(helped, bare, strict=True)]
    row(
        "pycnictl --help, more than a bare interpreter (ms)",
        milliseconds(helped),
        milliseconds(bare),
        statistics.median(more),
        "< 60 ms",
    )
    row("pycnictl status (ms)", milliseconds(told), "", statistics.median(told) * 1e3, "< 300 ms")


class Traffic:
    """A busy stream and hundreds of talking connections between pods of both nodes, beside those that are traced."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack) -> None:
        self._lab, self._stack = lab, stack
        self.address = lab.pod("pod4").ips[0]
        self._daemon("pod4", "iperf3", "-s", "-p", "5201")
        self._daemon("pod4", "sockperf", "server", "--tcp", "-p", "5202")
        self._daemon("pod4", sys.executable, "-m", "bench.tracetalk", "serve", "5203")
        time.sleep(0.5)
        self._daemon(
            "pod3", sys.executable, "-m", "bench.tracetalk", "talk", self.address, "5203", str(TOGETHER)
        )
        time.sleep(1.0)  # fmt: skip
        self.measures = {GBIT: self.gigabits, ONE_WAY: self.microseconds}

    def _daemon(self, pod: str, *words: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(self._lab.exec_argv(pod, words), stdout=quiet, stderr=quiet, env=env)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)

    def gigabits(self) -> float:
        """Of one TCP stream, per second."""
        words = ["iperf3", "-c", self.address, "-p", "5201", "-t", str(SECONDS), "-J"]
        done = self._lab.exec("pod3", words)
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9

    def microseconds(self) -> float:
        """Of one way, the median."""
        words = [
            "sockperf",
            "ping-pong",
            "--tcp",
            "-i",
            self.address,
            "-p",
            "5202",
            "-t",
            str(max(int(SECONDS), 1)),
        ]
        done = self._lab.exec("pod3", words)
        line = next(line for line in done.stdout.splitlines() if "percentile 50.000" in line)
        return float(line.rpartition("=")[2])


@contextlib.contextmanager
def tracing(lab: Lab, how: str) -> Iterator[list[float]]:
    """Traces meanwhile, by this process: those who talk are others. Yields how long each took."""
    took: list[float] = []
    over = threading.Event()

    def work() -> None:
        over.wait(0.2)  # the traffic has begun
        while not over.is_set():
            took.extend(timed(1, lambda: traced(lab)))
            if how == NOW_AND_THEN:
                over.wait(max(0.0, 1.0 - took[-1]))

    thread = threading.Thread(target=work, name="tracing")
    if how in {NOW_AND_THEN, ALWAYS}:
        thread.start()
    try:
        yield took
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()


@pytest.mark.skipif(QUICK, reason="a quick run is too short to tell it from noise")
@pytest.mark.timeout(1800)
def test_effect_on_other_traffic(benchmark: Any, lab: Lab) -> None:
    found: dict[str, dict[str, list[float]]] = {unit: {} for unit in UNITS}
    times: list[float] = []
    seed = random.Random(7)

    def all_of_it() -> None:
        with contextlib.ExitStack() as stack:
            traffic = Traffic(lab, stack)
            for measure in traffic.measures.values():
                measure()  # it warms up
            for number in range(ROUNDS):
                ways = WAYS if number % 2 == 0 else WAYS[:-1]  # nobody is promised anything of the last
                for how in seed.sample(ways, len(ways)):
                    for unit, measure in traffic.measures.items():
                        with tracing(lab, how) as took:
                            found[unit].setdefault(how, []).append(measure())
                        times.extend(took)

    benchmark.pedantic(all_of_it, rounds=1)
    for unit, by in found.items():
        effects(unit, by)
    row("  a trace beside that traffic, p50 / p99", milliseconds(times), "", quantile(times, 0.99), "< 2 s")


def effects(unit: str, by: dict[str, list[float]]) -> None:
    """What each way of tracing does to one figure of the traffic."""
    plain = {ALWAYS: by[PLAIN][::2]}
    ratios = {
        how: [
            (one / two) if unit == GBIT else (two / one)
            for one, two in zip(values, plain.get(how, by[PLAIN]), strict=True)
        ]
        for how, values in by.items()
    }
    # How far two rounds without any trace are apart, in nine of ten cases.
    apart = quantile([abs(1 - ratio) for ratio in ratios[AGAIN]], 0.9)
    for how in (AGAIN, NOW_AND_THEN, ALWAYS):
        row(
            f"other traffic, {how}: {unit}",
            f"{statistics.median(by[how]):.3g}",
            f"{statistics.median(by[PLAIN]):.3g}" + (f", noise {apart:.3f}" if how == NOW_AND_THEN else ""),
            statistics.median(ratios[how]),
            f">= {1 - apart:.3f}" if how == NOW_AND_THEN else "",
            better="more",
            ratios=ratios[how],
        )
