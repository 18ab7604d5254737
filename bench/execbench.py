"""Run CNI plugins as a runtime would and time them: many calls, several at a time, inside one node namespace.

A call is a posix_spawn of the plugin with stdin from a file and stdout to a file, as cheap as a caller can be, so
that the figures are the plugin's own. All variants are driven by the same loop and take turns.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.rows import quantile
from pycni.kernel import netns

TICK = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass
class Variant:
    """One plugin with its configuration. ``helpers``: pids whose CPU time belongs to the operations."""

    name: str
    plugin: Path
    conf: dict[str, Any]
    env: dict[str, str]
    helpers: tuple[int, ...] = ()
    add: list[float] = dataclasses.field(default_factory=list)
    delete: list[float] = dataclasses.field(default_factory=list)
    add_rates: list[float] = dataclasses.field(default_factory=list)
    delete_rates: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)
    """CPU seconds per ADD+DEL pair, plugin processes and helpers together."""

    def pair_p50(self) -> float:
        """Seconds of a median ADD plus a median DEL."""
        return statistics.median(self.add) + statistics.median(self.delete)

    def pairs_by_round(self) -> list[float]:
        """The same of each round alone."""
        return [
            one + two for one, two in zip(self.by_round(self.add), self.by_round(self.delete), strict=True)
        ]

    def by_round(self, values: list[float]) -> list[float]:
        """The median of each round's calls; every round calls for the same pods."""
        size = len(values) // len(self.add_rates)
        return [statistics.median(values[start : start + size]) for start in range(0, len(values), size)]

    def pair_p99(self) -> float:
        """Seconds of a 99th percentile ADD plus DEL."""
        return quantile(self.add, 0.99) + quantile(self.delete, 0.99)


def _helpers_cpu(pids: tuple[int, ...]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def call(
    variant: Variant, command: str, pod: str, folder: Path, prev: bytes | None
) -> tuple[float, bytes, float]:
    """One call. Returns seconds, stdout and the plugin's CPU seconds; raises when the plugin fails."""
    conf = dict(variant.conf)
    if prev is not None:
        conf["prevResult"] = json.loads(prev)
    stdin, stdout = folder / f"{pod}.in", folder / f"{pod}.out"
    stdin.write_text(json.dumps(conf))
    env = {
        **variant.env,
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod,
        "CNI_NETNS": f"/run/netns/{pod}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(variant.plugin.parent),
    }
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, str(stdin), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(stdout), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ]
    started = time.perf_counter()
    pid = os.posix_spawn(variant.plugin, [str(variant.plugin)], env, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    took = time.perf_counter() - started
    out = stdout.read_bytes()
    if status:
        raise RuntimeError(f"{variant.name} {command} {pod}: {out!r}")
    return took, out, usage.ru_utime + usage.ru_stime


def measure(
    node: str, variants: list[Variant], pods: list[str], folder: Path, *, parallel: int, rounds: int
) -> None:
    """ADD and DEL every pod with every variant in turn, ``parallel`` at a time, in the node's namespace."""
    home = netns.open_netns(f"/run/netns/{node}")

    def one_round(variant: Variant, pods: list[str], *, keep: bool) -> None:
        results: dict[str, bytes] = {}
        cpu = -_helpers_cpu(variant.helpers)

        def operate(command: str, pod: str) -> tuple[float, float]:
            prev = results.get(pod) if command == "DEL" else None
            took, out, used = netns.run_in(home, lambda: call(variant, command, pod, folder, prev))
            if command == "ADD":
                results[pod] = out
            return took, used

        with ThreadPoolExecutor(parallel) as pool:
            for command, times, rates in (
                ("ADD", variant.add, variant.add_rates),
                ("DEL", variant.delete, variant.delete_rates),
            ):
                started = time.perf_counter()
                done = list(pool.map(lambda pod, c=command: operate(c, pod), pods))
                elapsed = time.perf_counter() - started
                cpu += sum(used for _, used in done)
                if keep:
                    times.extend(took for took, _ in done)
                    rates.append(len(pods) / elapsed)
                if keep or command == "DEL":
                    time.sleep(
                        0.2
                    )  # what a plugin does in the background is finished outside the other's turn
        cpu += _helpers_cpu(variant.helpers)
        if keep:
            variant.cpu.append(cpu / len(pods))

    try:
        for index in range(rounds + 1):
            for variant in variants if index % 2 else variants[::-1]:
                # The first round warms up.
                one_round(variant, pods if index else pods[:parallel], keep=index > 0)
    finally:
        os.close(home)
