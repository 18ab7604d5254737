"""Backends in a User-Mode Linux guest, for ``test_backends.py``: ``python -m bench.backends_guest ROUNDS``; JSON.

All nodes and pods are namespaces of the one guest. Agents of ours make what is between the nodes; pods are attached by
hand in both networks, so that nothing else differs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from bench import byhand
from bench.backendpath import Pods, Variant, rounds
from tests.netns.fabric_nodes import FabricWorld, until
from tests.proxy.uml_boot import answer

BACKENDS = ("vxlan", "ipip")


@contextmanager
def ours(backend: str) -> Iterator[Pods]:
    """Two nodes with agents."""
    world = FabricWorld("4", backend)
    pods: Pods = {}
    try:
        nodes = [world.node(number) for number in (1, 2)]
        agents = [node.start() for node in nodes]
        until(lambda: all(agent.well() for agent in agents), "agents are well", 60)
        until(lambda: all("10.5." in node("ip route show proto 112") for node in nodes), "routes", 60)
        for key, node, agent in zip("ac", nodes, agents, strict=True):
            name, subnet = f"{node.name}p", f"10.5.{node.number}"
            byhand.bridge(node.name, f"{subnet}.1", agent.component.podnet().mtu)
            pods[key] = (name, f"{subnet}.2")
            byhand.pod(node.name, name, f"{subnet}.2", agent.component.podnet().mtu)
        yield pods
    finally:
        for name, _ in pods.values():
            byhand.remove(name)
        world.close()


def measured() -> list[Any]:
    """All of them: backend, maker, metric, values."""
    with ExitStack() as stack:
        networks: dict[Variant, Pods] = {}
        for number, backend in enumerate(BACKENDS):
            twin = byhand.network(f"pybh{number}", backend, masquerade=False)
            networks[Variant(backend, "hand")] = stack.enter_context(twin)
            networks[Variant(backend, "ours")] = stack.enter_context(ours(backend))
        found = rounds(networks, ROUNDS)
        return [[*variant, metric, values] for (variant, metric), values in found.values.items()]


if __name__ == "__main__":
    ROUNDS = int(sys.argv.pop(1))
    answer({"measured": measured})
