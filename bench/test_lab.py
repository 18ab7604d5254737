"""From `make lab` to a proven network, and what killing an agent costs its pods."""

from __future__ import annotations

import re
import statistics
import subprocess
import time
from typing import Any

import pytest

from bench.rows import row
from bench.size import sized
from tests.cni.node import ROOT


@pytest.mark.timeout(600)
def test_demo(benchmark: Any) -> None:
    """The very command of `make lab`, once everything is installed."""
    outputs: list[tuple[float, str]] = []

    def demo() -> None:
        started = time.perf_counter()
        done = subprocess.run(["make", "lab"], cwd=ROOT, check=True, capture_output=True, text=True)
        outputs.append((time.perf_counter() - started, done.stdout))

    benchmark.pedantic(demo, rounds=sized(3, 1))
    seconds = statistics.median(took for took, _ in outputs)
    lost = [int(n) for _, text in outputs for n in re.findall(r"sent, (\d+) lost", text)]
    checks = re.findall(r"all (\d+) checks pass", outputs[0][1])
    row(
        "make lab: three nodes, everybody reaches everybody, one agent killed, all removed",
        f"{seconds:.1f} s, {checks[0]} checks",
        "",
        seconds,
        "<= 10 s",
    )
    row(
        "pings lost (one every 5 ms) while an agent is killed and started again",
        str(sum(lost)),
        "",
        float(sum(lost)),
        "<= 0 pings",
    )
