"""The IPVS part of the proxy benchmark, run inside a User-Mode Linux guest by ``test_proxy_uml.py``; one JSON answer.

There: full syncs against ``ipvsadm -R`` with ``ipset restore`` and ``ip -batch``, single changes, and connections and
datagrams through a VIP beside an iptables chain layout, all in the same guest.

    python -m bench.ipvs_guest [PART ...]      those that begin with quick- are for a quick run
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from bench.iptables_chains import lines
from bench.proxyload import PORT, TARGET_PORT, virtual
from bench.proxysync import measure
from bench.rows import quantile
from bench.vipnodes import SERVER, VipNode
from tests.proxy.uml_boot import answer

CHANGES = 60
IPVS, IPTABLES = "ipvs", "iptables chains"
CONNECTS, PACKETS = 200, 2_000


def sync(count: int, rounds: int) -> Callable[[], Any]:
    """Measure one size."""

    def job() -> Any:
        return measure("ipvs", count, Path(tempfile.mkdtemp()), rounds, CHANGES)

    return job


def paths(sizes: Mapping[str, Sequence[int]], rounds: int) -> list[dict[str, Any]]:
    """Times through a VIP and directly, by layout and number of services; medians of rounds."""
    with ExitStack() as stack:
        nodes: dict[tuple[str, int], VipNode] = {}
        for plane, counts in sizes.items():
            for count in counts:
                node = nodes[plane, count] = VipNode(f"pyb{len(nodes)}")
                stack.callback(node.close)
                if plane == IPVS:
                    node.run(node.node, f"{sys.executable} -m bench.proxyfill ipvs {count}")
                else:
                    node.run(node.node, "iptables-legacy-restore", "\n".join(lines(count)) + "\n")
        found: dict[tuple[str, int], dict[str, Any]] = {
            key: {
                "plane": key[0],
                "count": key[1],
                "rates": [],
                "slowest": [],
                "connections": [],
                "datagrams": [],
            }
            for key in nodes
        }
        for _ in range(rounds):
            for key in random.sample(list(nodes), len(nodes)):
                one_round(nodes[key], found[key], datagrams=key == (IPVS, max(sizes[IPVS])))
        return list(found.values())


def one_round(node: VipNode, found: dict[str, Any], *, datagrams: bool) -> None:
    """Note what a connection, and a datagram, takes through the VIP and directly."""
    through, direct = node.time("connections", (virtual(1), PORT), (SERVER, TARGET_PORT), CONNECTS)
    found["connections"].append([statistics.median(one.seconds) for one in (through, direct)])
    found["slowest"].append(quantile(through.seconds, 0.99))
    found["rates"].append(through.rate)
    if datagrams:
        both = node.time("datagrams", (virtual(0), PORT), (SERVER, TARGET_PORT), PACKETS)
        found["datagrams"].append([statistics.median(one.seconds) for one in both])


PARTS: dict[str, Callable[[], Any]] = {
    "paths": partial(paths, {IPVS: (1, 1_000, 10_000), IPTABLES: (1, 3_000)}, 5),
    "sync-1000": sync(1_000, 2),
    "sync-10000": sync(10_000, 1),
    "quick-paths": partial(paths, {IPVS: (1, 1_000)}, 4),
}

if __name__ == "__main__":
    answer(PARTS)
