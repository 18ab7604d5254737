"""Backend bgp with real packets: leases by the network component, routes by component bgp, in one agent."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from pycni.agent.settings import Given, resolve
from pycni_bgp.component import BgpComponent
from tests.netns.bgp_nodes import Switch
from tests.netns.fabric_nodes import FabricNode, FabricWorld, until
from tests.netns.test_network_component import talk
from tests.netns.test_wireguard import inhabitants

COMPONENTS = "network,bgp"


@pytest.fixture
def world():
    made = FabricWorld("46", "bgp")
    try:
        yield made
    finally:
        made.close()


def agent_with_bgp(node: FabricNode):
    """An agent's network component with the BGP component beside, on one loop and one store."""
    words = {
        "iface": "eth0",
        "node-name": f"n{node.number}",
        "components": COMPONENTS,
        "state-dir": str(node.folder / "state"),
        "bgp-engine": "bird",
    }
    settings = resolve([[Given(name, (value,), "test") for name, value in words.items()]], "host")
    tasks = []

    def beside(network) -> None:
        health, store = network._report._health, network._store
        component = BgpComponent(settings, store, health=health, podnet=network.podnet, objects=False)
        tasks.append(asyncio.create_task(component.run()))

    return node.start(flags={"components": COMPONENTS}, tune=beside)


def end_engine(node: FabricNode) -> None:
    """End what may have been left in the node's namespace."""
    left = set(inhabitants(node.name)) - {os.getpid()}
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not set(inhabitants(node.name)) - {os.getpid()}, "engines end", 20)


def routes(node: FabricNode) -> dict[str, tuple[str, ...]]:
    return Switch.routes(node.name)


def test_pods_reach_each_other_by_routes_that_bgp_brings(world):
    nodes = [world.node(number) for number in (1, 2)]
    made = [agent_with_bgp(node) for node in nodes]
    one, two = nodes
    try:
        until(
            lambda: (
                routes(one).keys() >= {"10.5.2.0/24", "fd00:5:0:2::/64"}
                and routes(two).keys() >= {"10.5.1.0/24", "fd00:5:0:1::/64"}
            ),
            "both families' routes on both nodes",
            40,
        )
        for agent in made:
            until(agent.well, f"agent well: {agent.health.reason()}", 20)
        assert routes(one)["10.5.2.0/24"] == ("192.0.2.2",)
        for family in "46":
            until(lambda family=family: talk(one, two, family, 1500), f"IPv{family} at full size", 20)
            until(lambda family=family: talk(two, one, family, 1500), f"IPv{family} back", 20)
        assert one("ip -4 route show proto 112") + one("ip -6 route show proto 112") == ""
        assert world.cluster.leases["10.5.2.0-24&fd00:5:0:2::-64"].attrs.backend_type == "bgp"
    finally:
        for agent in made:
            agent.stop()
        for node in nodes:
            end_engine(node)


def test_a_node_without_the_component_is_not_ready_and_says_what_to_do(world):
    agent = world.node(1).start(flags={"components": "network"})
    words = "Backend.Type='bgp': its routes come from component bgp, which is not on: add it to components"
    until(lambda: words in agent.health.reason(), agent.health.reason(), 20)
    assert words in agent.component.not_ready_reason()
    assert agent.component.podnet() is None
    assert not world.cluster.leases
