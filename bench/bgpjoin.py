"""How soon do all of twenty nodes know the way to a new one's pods: by BGP between them, and by leases in etcd?

BGP: a full mesh. The clock starts when all nodes, the new one too, are told that there is one more, and stops when the
last kernel has the route; the agents' part for all of them is one process's work here, one node after the other. Leases:
a lab of whole agents; the clock starts when a lease is put into its etcd.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from typing import NamedTuple

from bench.bgpnet import KernelRoutes, Underlay, until
from bench.inside import lease
from pycni.lab import inside, topology
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec
from pycni_bgp.settings import BgpSettings
from tests.netns.bgp_nodes import Node, execute

SETTINGS = BgpSettings()


class Joins(NamedTuple):
    """Seconds, one for each node that came."""

    seen: list[float]
    """Until the last of the others had the new one's route."""
    knows: list[float]
    """Until the new one had all of theirs, too."""


async def by_bgp(kind: str, count: int, times: int) -> Joins:
    """So many nodes, and so many that come one after the other."""
    net = Underlay()
    nodes: list[Node] = []
    kernels: list[KernelRoutes] = []
    joins = Joins([], [])
    try:
        for number in range(1, count + 1):
            nodes.append(Node(net.switch, number, net.folder, kind))
            kernels.append(KernelRoutes(nodes[-1].where))
        for node in nodes:
            await node.engine.put(node.plan(nodes, SETTINGS))
            await node.start()
        await until(lambda: _behind(kernels, count - 1), 0)
        for number in range(count + 1, count + 1 + times):
            new = Node(net.switch, number, net.folder, kind)
            others, all_nodes = tuple(nodes), (*nodes, new)
            nodes.append(new)
            kernels.append(KernelRoutes(new.where))
            began = time.perf_counter()
            for node in (new, *others):
                await node.engine.put(node.plan(all_nodes, SETTINGS))
                if node is new:
                    await new.start()
            await until(lambda: _behind(kernels[:-1], len(kernels) - 1), 0)
            joins.seen.append(time.perf_counter() - began)
            await until(lambda: _behind(kernels, len(kernels) - 1), 0)
            joins.knows.append(time.perf_counter() - began)
    finally:
        for node in nodes:
            await node.stop()
        for item in kernels:
            item.close()
        net.close()
    return joins


def by_leases(name: str, count: int, times: int) -> list[float]:
    """Seconds from putting a lease until the last node has its route."""
    lab = Lab.up(LabSpec(name=name, nodes=count, pods=0))
    try:
        kernels = [KernelRoutes(topology.node_namespace(name, node.name)) for node in lab.nodes()]
        try:
            taken = "".join(execute(item.where, "ip -4 route show proto 112") for item in kernels[:2])
            free = [number for number in range(256) if f"10.244.{number}.0/" not in taken]
            return [_lease(lab, kernels, count, number) for count, number in enumerate(free[:times], 1)]
        finally:
            for item in kernels:
                item.close()
    finally:
        lab.down()


def _lease(lab: Lab, kernels: Sequence[KernelRoutes], routes: int, number: int) -> float:
    key, value = lease(number)
    body = {"key": key.replace("10.100.", "10.244."), "value": value.decode()}
    raw = json.dumps({part: base64.b64encode(text.encode()).decode() for part, text in body.items()})
    place = (
        topology.fabric_namespace(lab.spec.name),
        str(topology.underlay_address(lab.spec.families[0], 0).ip),
    )
    began = time.perf_counter()
    status, answer = inside.http(*place, topology.ETCD_PORT, "/v3/kv/put", raw)
    if status != 200:
        raise RuntimeError(answer)
    while _behind(kernels, routes):
        if time.perf_counter() > began + 30:
            raise TimeoutError(f"{_behind(kernels, routes)} nodes have no route to {key}")
        time.sleep(0.001)
    return time.perf_counter() - began


def _behind(kernels: Sequence[KernelRoutes], routes: int) -> int:
    """How many have fewer."""
    return sum(item.more() < routes for item in kernels)
