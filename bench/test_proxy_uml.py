"""The IPVS data plane on a kernel that has IPVS: a User-Mode Linux guest. Absolute times are a guest's; ratios count.

Peers in the same guest, taking turns: ``ipvsadm -R`` + ``ipset restore`` + ``ip -batch`` for the equal state, the
server's own address for connections, and kube-proxy's iptables layout.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pytest

from bench import plots
from bench.ipvs_guest import IPTABLES, IPVS
from bench.rows import milliseconds, row
from bench.size import sized
from tests.proxy.uml_boot import IPVS_MODULES, boot

PARTS = sized(("paths", "sync-1000", "sync-10000"), ("quick-paths",))


@pytest.mark.timeout(900)
def test_ipvs_in_a_guest(benchmark: Any) -> None:
    # Not below /tmp: the guest has a /tmp of its own.
    folder = Path(tempfile.mkdtemp(prefix="pyb", dir="/var/tmp"))
    modules = f"{IPVS_MODULES} xt_statistic xt_nat"
    module = " ".join(["bench.ipvs_guest", *PARTS])
    try:
        found = benchmark.pedantic(
            boot, args=(folder, module), kwargs={"modules": modules, "timeout": 800}, rounds=1
        )
    finally:
        shutil.rmtree(folder)
    failed = [item["failed"] for item in found.values() if "failed" in item]
    assert not failed, "\n".join(failed)
    paths, *syncs = (found[name] for name in PARTS)
    for item in syncs:
        sync_rows(item)
    if len(syncs) > 1:
        growth_row(syncs[0], syncs[-1])
    path_rows(paths)


def sync_rows(item: dict[str, Any]) -> None:
    """Into the kernel: everything, one endpoint, one service."""
    count = item["count"]
    ours, floor = statistics.median(item["sync_s"]), statistics.median(item["floor_s"])
    ratios = [one / other for one, other in zip(item["sync_s"], item["floor_s"], strict=True)]
    row(
        f"ipvs (guest): {count} services x 5, against ipvsadm -R + ipset restore + ip -batch",
        f"{ours:.2f} s",
        f"{floor:.2f} s",
        statistics.median(ratios),
        "<= 1.0",
        ratios=ratios,
    )
    for what, key in (("endpoint changed", "changes_s"), ("service added", "new_s")):
        row(
            f"ipvs (guest): one {what} among {count}, object to kernel, p50 / p99",
            milliseconds(item[key]),
            "",
            statistics.median(item[key]) * 1e3 if count == 10_000 else None,
            "<= 5 ms" if count == 10_000 else "",
        )


def growth_row(small: dict[str, Any], large: dict[str, Any]) -> None:
    """Linear or better."""
    per_small, per_large = (statistics.median(item["sync_s"]) / item["count"] for item in (small, large))
    row(
        f"ipvs (guest): seconds per service, {large['count']} against {small['count']} services",
        f"{per_large * 1e6:.0f} us",
        f"{per_small * 1e6:.0f} us",
        per_large / per_small,
        "<= 1.2",
    )


def path_rows(items: list[dict[str, Any]]) -> None:
    """What goes through the VIP beside what goes around it; flat or not; the plot."""
    for item in items:
        ours, direct = middles(item["connections"])
        ratios = [one / other for one, other in item["connections"]]
        row(
            f"{item['plane']} (guest): connect through a VIP among {item['count']}, p50 / p99, conn/s",
            f"{ours * 1e6:.0f} / {statistics.median(item['slowest']) * 1e6:.0f} us, {statistics.median(item['rates']):.0f}/s",
            f"direct {direct * 1e6:.0f} us",
            statistics.median(ratios),
            better="less" if item["plane"] == IPVS else "",
            ratios=ratios,
        )
        if item["datagrams"]:
            ours, direct = middles(item["datagrams"])
            ratios = [one / other for one, other in item["datagrams"]]
            row(
                f"ipvs (guest): processor time of a datagram through a VIP among {item['count']}, client to server",
                f"{ours * 1e6:.1f} us",
                f"direct {direct * 1e6:.1f} us",
                statistics.median(ratios),
                better="less",
                ratios=ratios,
            )
    series = {}
    for plane in (IPVS, IPTABLES):
        mine = sorted((item for item in items if item["plane"] == plane), key=lambda item: item["count"])
        if not mine:
            continue
        series[plane] = [(item["count"], middles(item["connections"])[0] * 1e6) for item in mine]
        flat_row(plane, mine[0], mine[-1])
    plots.curves(
        "proxy_connect_ipvs",
        "Connecting through a service, User-Mode Linux (median)",
        ("services", "microseconds"),
        series,
    )


def middles(pairs: list[list[float]]) -> tuple[float, float]:
    """Medians of the rounds: through the VIP, around it."""
    through, direct = zip(*pairs, strict=True)
    return statistics.median(through), statistics.median(direct)


def flat_row(plane: str, first: dict[str, Any], last: dict[str, Any]) -> None:
    """Does connecting depend on the number of services? (Of chains only told: a guest's system calls outweigh them.)"""
    ratios = [one[0] / other[0] for one, other in zip(last["connections"], first["connections"], strict=True)]
    row(
        f"{plane} (guest): connect at {last['count']} services against {first['count']}",
        f"{middles(last['connections'])[0] * 1e6:.0f} us",
        f"{middles(first['connections'])[0] * 1e6:.0f} us",
        statistics.median(ratios),
        "<= 1.05" if plane == IPVS else "",
        better="less",
        ratios=ratios,
    )
