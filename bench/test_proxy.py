"""How fast do services get into the kernel, and what does a connection through one cost?

Floors in the same run, taking turns: ``nft -f`` of the equal ruleset; for connections the endpoint's own address, and
kube-proxy's iptables layout in the same kernel. IPVS is measured in a User-Mode Linux guest (``test_proxy_uml.py``).
kube-proxy's own figures, as its authors published or as measured on the same kind of machine: one more service at
10,000 services 141 ms, 74 MiB at 1,000.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench import plots
from bench.iptables_chains import lines
from bench.proxyload import PORT, TARGET_PORT, virtual
from bench.rows import milliseconds, quantile, row
from bench.vipnodes import SERVER, VipNode
from pycni.kernel import netns
from tests.cni.node import ROOT

SYNC_SIZES = {1_000: 5, 10_000: 4, 50_000: 3}
"""Services by rounds: our full sync and the floor's take turns."""
CHANGES = 200
CONNECT_SIZES = (1, 1_000, 10_000)
ROUNDS, CONNECTS = 8, 400
KUBE_PROXY_CHANGE_S, KUBE_PROXY_MIB = 0.141, 74
SYNCS: dict[int, dict[str, Any]] = {}


def measure(plane: str, count: int, folder: Path, rounds: int, changes: int) -> dict[str, Any]:
    """Run ``bench.proxysync``."""
    words = [plane, str(count), str(folder), str(rounds), str(changes)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.proxysync", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/proxy"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=900,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", SYNC_SIZES)
def test_services_into_the_kernel(benchmark: Any, count: int, tmp_path: Path) -> None:
    found = benchmark.pedantic(
        measure, args=("nftables", count, tmp_path, SYNC_SIZES[count], CHANGES), rounds=1
    )
    SYNCS[count] = found
    ours, floor = statistics.median(found["sync_s"]), statistics.median(found["floor_s"])
    row(
        f"nftables: {count} services x 5 into the kernel, against nft -f",
        f"{ours:.3f} s",
        f"{floor:.3f} s",
        ours / floor,
        "<= 1.0",
    )
    big = count != 10_000
    for what, key in (("endpoint changed", "changes_s"), ("service added", "new_s")):
        row(
            f"nftables: one {what} among {count}, object to kernel, p50 / p99",
            milliseconds(found[key]),
            "" if big else f"kube-proxy {KUBE_PROXY_CHANGE_S * 1e3:.0f} ms",
            statistics.median(found[key]) * 1e3,
            "" if big else "<= 5.0",
        )
    row(
        f"nftables: memory of the process at {count} services",
        f"{found['rss_mib']:.0f} MiB, peak {found['peak_mib']:.0f}; {statistics.median(found['cpu_s']):.2f} s CPU",
        "" if count != 1_000 else f"kube-proxy {KUBE_PROXY_MIB} MiB",
        found["rss_mib"],
        "<= 120" if count == 10_000 else "",
    )
    if count == max(SYNC_SIZES):
        growth_and_plots()


def growth_and_plots() -> None:
    """Linear or better, and what it looks like."""
    per_service = {n: statistics.median(found["sync_s"]) / n for n, found in SYNCS.items()}
    small, large = min(per_service), max(per_service)
    row(
        f"nftables: seconds per service, {large} against {small} services",
        f"{per_service[large] * 1e6:.0f} us",
        f"{per_service[small] * 1e6:.0f} us",
        per_service[large] / per_service[small],
        "<= 1.2",
    )
    plots.curves(
        "proxy_sync",
        "Full sync, 5 endpoints per service",
        ("services", "seconds"),
        {
            "pycni nftables": [(n, statistics.median(found["sync_s"])) for n, found in SYNCS.items()],
            "nft -f, the equal ruleset": [
                (n, statistics.median(found["floor_s"])) for n, found in SYNCS.items()
            ],
        },
    )
    plots.curves(
        "proxy_change",
        "One change, object to kernel (median)",
        ("services", "milliseconds"),
        {
            "endpoint changed": [(n, statistics.median(f["changes_s"]) * 1e3) for n, f in SYNCS.items()],
            "service added": [(n, statistics.median(f["new_s"]) * 1e3) for n, f in SYNCS.items()],
        },
    )


def load_iptables(where: VipNode, count: int) -> None:
    where.run(where.node, "iptables-restore", "\n".join(lines(count)) + "\n")


def load_nftables(where: VipNode, count: int) -> None:
    where.run(where.node, f"{sys.executable} -m bench.proxyfill nftables {count}")


def load_ebpf(where: VipNode, count: int) -> None:
    where.use_sockets()
    client = netns.path(where.client)
    where.run(
        where.node,
        f"{sys.executable} -m bench.proxyfill ebpf {count} {where.folder} {where.cgroup} {client}",
    )


PLANES: dict[str, Callable[[VipNode, int], None]] = {
    "iptables chains": load_iptables,
    "nftables": load_nftables,
    "ebpf": load_ebpf,
}


class Variant:
    """A data plane at a number of services, with what connections through it took, and around it on the same node."""

    def __init__(self, plane: str, count: int, where: VipNode) -> None:
        self.plane, self.count, self.where = plane, count, where
        self.through: list[float] = []
        self.direct: list[float] = []
        self.rates: list[float] = []

    def round(self) -> None:
        """Some connections each way."""
        found, plain = self.where.connect((virtual(1), PORT), (SERVER, TARGET_PORT), CONNECTS)
        self.through += found.seconds
        self.rates.append(found.rate)
        self.direct += plain.seconds

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.through)


@pytest.mark.timeout(900)
def test_connections_through_a_service(benchmark: Any) -> None:
    """Every variant has a node of its own; they take turns in random order, round after round."""
    variants: list[Variant] = []
    with ExitStack() as stack:
        for plane, load in PLANES.items():
            for count in CONNECT_SIZES:
                where = VipNode(f"pyb{os.getpid()}v{len(variants)}")
                stack.callback(where.close)
                load(where, count)
                variants.append(Variant(plane, count, where))

        def rounds() -> None:
            for _ in range(ROUNDS):
                for variant in random.sample(variants, len(variants)):
                    variant.round()

        benchmark.pedantic(rounds, rounds=1)
    report(variants)


def report(variants: list[Variant]) -> None:
    """A row per variant, one per plane for flatness, and the plot."""
    for item in variants:
        direct = statistics.median(item.direct)
        row(
            f"{item.plane}: connect through a VIP among {item.count}, p50 / p99 us, conn/s",
            f"{item.median * 1e6:.1f} / {quantile(item.through, 0.99) * 1e6:.0f}, {statistics.median(item.rates):.0f}/s",
            f"direct {direct * 1e6:.1f} / {quantile(item.direct, 0.99) * 1e6:.0f}",
            item.median / direct,
            "<= 1.05" if item.plane == "ebpf" else "",
        )
    series = {}
    for plane in PLANES:
        mine = sorted((item for item in variants if item.plane == plane), key=lambda item: item.count)
        series[plane] = [(item.count, item.median * 1e6) for item in mine]
        first, last = mine[0], mine[-1]
        row(
            f"{plane}: connect at {last.count} services against {first.count}",
            f"{last.median * 1e6:.1f} us",
            f"{first.median * 1e6:.1f} us",
            last.median / first.median,
            "" if plane.startswith("iptables") else "<= 1.05",
        )
    direct = statistics.median([value for item in variants for value in item.direct])
    series["direct"] = [(count, direct * 1e6) for count in CONNECT_SIZES]
    plots.curves(
        "proxy_connect", "Connecting through a service (median)", ("services", "microseconds"), series
    )
