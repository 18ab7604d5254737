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
from bench.rows import milliseconds, row
from tests.proxy.uml_boot import IPVS_MODULES, boot


@pytest.mark.timeout(900)
def test_ipvs_in_a_guest(benchmark: Any) -> None:
    # Not below /tmp: the guest has a /tmp of its own.
    folder = Path(tempfile.mkdtemp(prefix="pyb", dir="/var/tmp"))
    modules = f"{IPVS_MODULES} xt_statistic xt_nat"
    try:
        found = benchmark.pedantic(
            boot, args=(folder, "bench.ipvs_guest"), kwargs={"modules": modules, "timeout": 800}, rounds=1
        )
    finally:
        shutil.rmtree(folder)
    failed = [item["failed"] for item in found.values() if "failed" in item]
    assert not failed, "\n".join(failed)
    for item in found.values():
        if "sync_s" in item:
            sync_rows(item)
    connect_rows(found["connections"])


def sync_rows(item: dict[str, Any]) -> None:
    count = item["count"]
    ours, floor = statistics.median(item["sync_s"]), statistics.median(item["floor_s"])
    row(
        f"ipvs (guest): {count} services x 5, against ipvsadm -R + ipset restore + ip -batch",
        f"{ours:.2f} s",
        f"{floor:.2f} s",
        ours / floor,
        "<= 1.0",
    )
    for what, key in (("endpoint changed", "changes_s"), ("service added", "new_s")):
        row(
            f"ipvs (guest): one {what} among {count}, object to kernel, p50 / p99",
            milliseconds(item[key]),
            "",
            statistics.median(item[key]) * 1e3,
            "<= 5.0" if count == 10_000 else "",
        )


def connect_rows(items: list[dict[str, Any]]) -> None:
    median = {(item["plane"], item["count"]): statistics.median(item["through"]) for item in items}
    for item in items:
        direct = statistics.median(item["direct"])
        ours = median[item["plane"], item["count"]]
        row(
            f"{item['plane']} (guest): connect through a VIP among {item['count']}, p50, conn/s",
            f"{ours * 1e6:.0f} us, {statistics.median(item['rates']):.0f}/s",
            f"direct {direct * 1e6:.0f} us",
            ours / direct,
        )
    counts = sorted(count for plane, count in median if plane == "ipvs")
    row(
        f"ipvs (guest): connect at {counts[-1]} services against {counts[0]}",
        f"{median['ipvs', counts[-1]] * 1e6:.0f} us",
        f"{median['ipvs', counts[0]] * 1e6:.0f} us",
        median["ipvs", counts[-1]] / median["ipvs", counts[0]],
        "<= 1.05",
    )
    series = {
        plane: sorted((count, value * 1e6) for (name, count), value in median.items() if name == plane)
        for plane in {plane for plane, _ in median}
    }
    plots.curves(
        "proxy_connect_ipvs",
        "Connecting through a service, User-Mode Linux (median)",
        ("services", "microseconds"),
        series,
    )
