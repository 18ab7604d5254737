"""The IPVS part of the proxy benchmark, run inside a User-Mode Linux guest by ``test_proxy_uml.py``; one JSON answer.

There: full syncs against ``ipvsadm -R`` with ``ipset restore`` and ``ip -batch``, single changes, and connections
through a VIP beside an iptables chain layout, all in the same guest.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.iptables_chains import lines
from bench.proxyload import PORT, TARGET_PORT, virtual
from bench.proxysync import measure
from bench.vipnodes import SERVER, VipNode
from tests.proxy.uml_boot import answer

SYNCS = {1_000: 4, 10_000: 2}
CHANGES = 60
CONNECT_SIZES = {"ipvs": (1, 1_000, 10_000), "iptables chains": (1, 1_000)}
ROUNDS, CONNECTS = 4, 200


def sync(count: int) -> Callable[[], Any]:
    """Measure one size."""

    def job() -> Any:
        return measure("ipvs", count, Path(tempfile.mkdtemp()), SYNCS[count], CHANGES)

    return job


def connections() -> list[dict[str, Any]]:
    """Times through a VIP and directly, by layout and number of services."""
    with ExitStack() as stack:
        nodes: dict[tuple[str, int], VipNode] = {}
        for plane, counts in CONNECT_SIZES.items():
            for count in counts:
                node = nodes[plane, count] = VipNode(f"pyb{len(nodes)}")
                stack.callback(node.close)
                if plane == "ipvs":
                    node.run(node.node, f"{sys.executable} -m bench.proxyfill ipvs {count}")
                else:
                    node.run(node.node, "iptables-legacy-restore", "\n".join(lines(count)) + "\n")
        found: dict[tuple[str, int], dict[str, Any]] = {
            key: {"plane": key[0], "count": key[1], "through": [], "direct": [], "rates": []} for key in nodes
        }
        for _ in range(ROUNDS):
            for key in random.sample(list(nodes), len(nodes)):
                through, direct = nodes[key].connect((virtual(1), PORT), (SERVER, TARGET_PORT), CONNECTS)
                found[key]["through"] += through.seconds
                found[key]["direct"] += direct.seconds
                found[key]["rates"].append(through.rate)
        return list(found.values())


if __name__ == "__main__":
    answer({"connections": connections, **{f"sync {count}": sync(count) for count in SYNCS}})
