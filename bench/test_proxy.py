"""How fast do services get into the kernel, and what do connections and packets through one cost?

Floors in the same run, taking turns: ``nft -f`` of the equal ruleset; for connections and datagrams the server's own
address, and kube-proxy's iptables layout in the same kernel. IPVS is measured in a User-Mode Linux guest
(``test_proxy_uml.py``).
kube-proxy's own figures, as its authors published or as measured on the same kind of machine: one more service at
10,000 services 141 ms.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench import plots
from bench.iptables_chains import lines
from bench.proxyload import PORT, TARGET_PORT, virtual
from bench.rows import milliseconds, quantile, row
from bench.size import sized
from bench.vipnodes import SERVER, VipNode
from pycni.kernel import netns
from tests.cni.node import ROOT

SYNC_SIZES = sized({1_000: 8, 10_000: 6, 50_000: 4}, {1_000: 4})
"""Services by rounds: our full sync and the floor's take turns."""
SOCKET_SYNCS = sized({1_000: 4, 10_000: 4}, {1_000: 2})
"""The same for eBPF, which has no floor."""
CHANGES = sized(200, 50)
CONNECT_SIZES = sized((1, 1_000, 10_000), (1, 1_000))
CONNECT_ROUNDS, CONNECTS = sized(14, 4), 400
PACKET_ROUNDS, PACKETS = sized(16, 4), 5_000
IPTABLES = "iptables chains"
KUBE_PROXY_CHANGE_S = 0.141
SYNCS: dict[int, dict[str, Any]] = {}


def measure(plane: str, count: int, folder: Path, rounds: int, changes: int) -> dict[str, Any]:
    """Run ``bench.proxysync``. When the time is up, it is told to take its namespaces away."""
    words = [plane, str(count), str(folder), str(rounds), str(changes)]
    with subprocess.Popen(
        [sys.executable, "-m", "bench.proxysync", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/proxy"},
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            told, _ = child.communicate()
        except BaseException:
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(60)
            child.kill()
            raise
    if child.returncode:
        raise RuntimeError(f"bench.proxysync {' '.join(words)}: exit code {child.returncode}, see stderr")
    found: dict[str, Any] = json.loads(told)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", SYNC_SIZES)
def test_services_into_the_kernel(benchmark: Any, count: int, tmp_path: Path) -> None:
    found = benchmark.pedantic(
        measure, args=("nftables", count, tmp_path, SYNC_SIZES[count], CHANGES), rounds=1
    )
    SYNCS[count] = found
    ours, floor = statistics.median(found["sync_s"]), statistics.median(found["floor_s"])
    ratios = [one / other for one, other in zip(found["sync_s"], found["floor_s"], strict=True)]
    row(
        f"nftables: {count} services x 5 into the kernel, against nft -f",
        f"{ours:.3f} s",
        f"{floor:.3f} s",
        statistics.median(ratios),
        "<= 1.0",
        ratios=ratios,
    )
    change_rows("nftables", found)
    row(
        f"nftables: memory of the process at {count} services",
        f"{found['rss_mib']:.0f} MiB, peak {found['peak_mib']:.0f}; {statistics.median(found['cpu_s']):.2f} s CPU",
        "",
        found["rss_mib"] if count == 10_000 else None,
        "<= 120 MiB" if count == 10_000 else "",
    )
    if count == max(SYNC_SIZES) and len(SYNCS) > 1:
        small = min(SYNC_SIZES)
        again = measure("nftables", small, tmp_path, SYNC_SIZES[small], 1)
        growth_row(again["sync_s"])
        sync_plots()


def change_rows(plane: str, found: dict[str, Any]) -> None:
    """One endpoint, one service: the issue names 10,000."""
    asked = found["count"] == 10_000
    for what, key in (("endpoint changed", "changes_s"), ("service added", "new_s")):
        row(
            f"{plane}: one {what} among {found['count']}, object to kernel, p50 / p99",
            milliseconds(found[key]),
            f"kube-proxy {KUBE_PROXY_CHANGE_S * 1e3:.0f} ms" if asked else "",
            statistics.median(found[key]) * 1e3 if asked else None,
            "<= 5 ms" if asked else "",
        )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", SOCKET_SYNCS)
def test_services_into_the_maps(benchmark: Any, count: int, tmp_path: Path) -> None:
    """eBPF with nftables behind it, as in an agent: both are told of each service."""
    found = benchmark.pedantic(
        measure, args=("ebpf", count, tmp_path, SOCKET_SYNCS[count], CHANGES), rounds=1
    )
    row(
        f"ebpf, nftables behind it: {count} services x 5 into the kernel",
        f"{statistics.median(found['sync_s']):.3f} s",
    )
    change_rows("ebpf, nftables behind it", found)


def growth_row(again: list[float]) -> None:
    """Linear or better? ``again``: the smallest size after the largest, as a machine's speed changes between minutes."""
    small, large = min(SYNCS), max(SYNCS)
    few = [value / small for value in [*SYNCS[small]["sync_s"], *again]]
    many = [value / large for value in SYNCS[large]["sync_s"]]
    ratios = [one / statistics.median(few) for one in many]
    row(
        f"nftables: seconds per service, {large} against {small} services",
        f"{statistics.median(many) * 1e6:.0f} us",
        f"{statistics.median(few) * 1e6:.0f} us",
        statistics.median(ratios),
        "<= 1.2",
        ratios=ratios,
    )


def sync_plots() -> None:
    """What it looks like."""
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
    place = where.use_sockets()
    client = netns.path(where.client)
    where.run(
        where.node,
        f"{sys.executable} -m bench.proxyfill ebpf {count} {place.bpffs} {place.cgroup} {client}",
    )


PLANES: dict[str, Callable[[VipNode, int], None]] = {
    IPTABLES: load_iptables,
    "nftables": load_nftables,
    "ebpf": load_ebpf,
}


class Variant:
    """A data plane at a number of services, with what connections through it took, and around it on the same node."""

    def __init__(self, plane: str, count: int, where: VipNode) -> None:
        self.plane, self.count, self.where = plane, count, where
        self.through: list[list[float]] = []
        """Seconds of each connection, by round."""
        self.direct: list[list[float]] = []
        self.rates: list[float] = []
        self.packets: list[float] = []
        """Seconds of a datagram, by round."""
        self.packets_direct: list[float] = []

    def connect(self) -> None:
        """Some connections each way."""
        found, plain = self.where.time("connections", (virtual(1), PORT), (SERVER, TARGET_PORT), CONNECTS)
        self.through.append(found.seconds)
        self.rates.append(found.rate)
        self.direct.append(plain.seconds)

    def send(self) -> None:
        """Some datagrams each way."""
        found, plain = self.where.time("datagrams", (virtual(0), PORT), (SERVER, TARGET_PORT), PACKETS)
        self.packets.append(statistics.median(found.seconds))
        self.packets_direct.append(statistics.median(plain.seconds))

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(itertools.chain(*self.through))

    def against(self, other: Variant) -> list[float]:
        """How many times as long a connection takes as through another one, by round."""
        return ratios_of(self.through, other.through)


def ratios_of(values: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> list[float]:
    """Of medians, round by round."""
    pairs = zip(values, others, strict=True)
    return [statistics.median(one) / statistics.median(other) for one, other in pairs]


@pytest.mark.timeout(900)
def test_connections_and_datagrams_through_a_service(benchmark: Any) -> None:
    """Every variant has a node of its own; they take turns in random order, round after round."""
    variants: list[Variant] = []
    with ExitStack() as stack:
        for plane, load in PLANES.items():
            for count in CONNECT_SIZES:
                where = VipNode(f"pyb{os.getpid()}v{len(variants)}")
                stack.callback(where.close)
                load(where, count)
                variants.append(Variant(plane, count, where))
        ours = [item for item in variants if item.plane != IPTABLES and item.count == max(CONNECT_SIZES)]

        def rounds() -> None:
            for _ in range(CONNECT_ROUNDS):
                for variant in random.sample(variants, len(variants)):
                    variant.connect()
            for _ in range(PACKET_ROUNDS):
                for variant in random.sample(ours, len(ours)):
                    variant.send()

        benchmark.pedantic(rounds, rounds=1)
    for item in variants:
        connect_row(item)
    for item in ours:
        packet_row(item)
    flat_rows(variants)


def connect_row(item: Variant) -> None:
    """A variant beside what goes around it."""
    through, direct = (list(itertools.chain(*values)) for values in (item.through, item.direct))
    ratios = ratios_of(item.through, item.direct)
    row(
        f"{item.plane}: connect through a VIP among {item.count}, p50 / p99 us, conn/s",
        f"{item.median * 1e6:.1f} / {quantile(through, 0.99) * 1e6:.0f}, {statistics.median(item.rates):.0f}/s",
        f"direct {statistics.median(direct) * 1e6:.1f} / {quantile(direct, 0.99) * 1e6:.0f}",
        statistics.median(ratios),
        "<= 1.05" if item.plane == "ebpf" else "",
        better="" if item.plane == IPTABLES else "less",
        ratios=ratios,
    )


def packet_row(item: Variant) -> None:
    """What each packet after the first costs."""
    ratios = [one / other for one, other in zip(item.packets, item.packets_direct, strict=True)]
    row(
        f"{item.plane}: processor time of a datagram through a VIP among {item.count}, client to server",
        f"{statistics.median(item.packets) * 1e6:.2f} us",
        f"direct {statistics.median(item.packets_direct) * 1e6:.2f} us",
        statistics.median(ratios),
        "<= 1.05" if item.plane == "ebpf" else "",
        better="less",
        ratios=ratios,
    )


def flat_rows(variants: list[Variant]) -> None:
    """A row per plane: flat, or how much it grows; and the plot."""
    series = {}
    for plane in PLANES:
        mine = sorted((item for item in variants if item.plane == plane), key=lambda item: item.count)
        series[plane] = [(item.count, item.median * 1e6) for item in mine]
        first, last = mine[0], mine[-1]
        ratios = last.against(first)
        row(
            f"{plane}: connect at {last.count} services against {first.count}",
            f"{last.median * 1e6:.1f} us",
            f"{first.median * 1e6:.1f} us",
            statistics.median(ratios),
            "<= 1.05" if plane != IPTABLES else ">= 2.0" if last.count == 10_000 else "",
            ratios=ratios,
        )
    direct = statistics.median(value for item in variants for values in item.direct for value in values)
    series["direct"] = [(count, direct * 1e6) for count in CONNECT_SIZES]
    plots.curves(
        "proxy_connect", "Connecting through a service (median)", ("services", "microseconds"), series
    )
