"""Nodes that are drained or leave, and sessions with all that can be asked of them: FRR says what it sees."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pycni.agent.health import Health
from pycni.model.kube import NODE, KubeNode, Meta
from pycni.store import Store
from pycni_bgp.component import BgpComponent
from pycni_bgp.settings import BgpSettings
from pycni_bgp.status import Status
from tests.netns.bgp_nodes import (
    Node,
    Switch,
    execute,
    flow,
    make_engine,
    packed,
    router,
    running_nodes,
    until,
)
from tests.netns.bgp_routers import Frr, running
from tests.netns.test_bgp_component import VIP, _node, _running, _service, _settings, _underlay

SETTINGS = BgpSettings()
PODS = "10.1.1.0/24"
PEERS = "[{remoteip: 192.0.2.11, remoteasn: 65011}]"


class Agent:
    """The component of one agent after the other, on one node with one state folder."""

    def __init__(self, where: str, folder: Path, engine: str) -> None:
        self._where, self._folder, self._engine = where, folder, engine
        self.store = Store()
        self.store.replace(NODE, {"a": _node("a", 1, peers=PEERS)})
        _service(self.store, at="a")

    def component(self, **settings: str) -> BgpComponent:
        """A new one."""
        found = _settings(self._folder, advertise_loadbalancer_ip="true", **settings)
        engine = make_engine(self._engine, self._where, self._folder / "bgp")
        return BgpComponent(found, self.store, health=Health(), find_underlay=_underlay, engine=engine)


async def _said(component: BgpComponent, target: str = "/bgp") -> str:
    found = await component.routes()[target]("")
    assert found.status == 200, found.body
    return found.body


@pytest.mark.parametrize("engine", ["bird", "exabgp"])
def test_services_are_withdrawn_at_a_drain_and_everything_when_a_node_leaves(
    netns_factory: Callable[[], str], tmp_path: Path, engine: str
) -> None:
    async def story() -> None:
        switch = Switch(netns_factory)
        agent = Agent(switch.join(1), tmp_path, engine)
        with running(lambda: [Frr(switch, 11, tmp_path, 1, 65011)]) as (frr,):
            component = agent.component()
            async with _running(component):
                await until(lambda: frr.knows(VIP) and frr.knows(PODS), "routes at the router", 40)
                assert (await _said(component, "/bgp/drain")).startswith(
                    "node a is drained (pycnictl bgp drain)"
                )
                await until(lambda: not frr.knows(VIP), "withdrawal by a drain")
                assert frr.knows(PODS)
            # An agent that stops leaves routes at its neighbours, and a drain outlives it.
            assert frr.routes()[PODS].stale or not frr.up()
            component = agent.component(bgp_at_stop="withdraw")
            async with _running(component):
                await until(lambda: _fresh(frr), "the pods' subnet again", 40)
                assert not frr.knows(VIP)
                found = msgspec.json.decode(await _said(component), type=Status)
                assert found.drained == ("pycnictl bgp drain",)
                assert (await _said(component, "/bgp/undrain")).startswith("node a announces 1 addresses")
                await until(lambda: frr.knows(VIP), "the address again")
                # What the cluster autoscaler says is a drain, too.
                node = msgspec.structs.replace(
                    _node("a", 1, peers=PEERS), taints=("ToBeDeletedByClusterAutoscaler",)
                )
                agent.store.put(NODE, "a", node)
                await until(lambda: not frr.knows(VIP), "withdrawal by a taint")
            await until(lambda: not frr.knows(PODS), "nothing is left of a node that leaves", 5)
            # Nor of one whose Node is being deleted.
            agent.store.put(NODE, "a", _node("a", 1, peers=PEERS))
            async with _running(agent.component()):
                await until(lambda: frr.knows(VIP), "once more", 40)
                deleted = KubeNode(
                    meta=Meta(name="a", deleting=True, annotations={"kube-router.io/peers": PEERS}),
                    pod_cidrs=(PODS,),
                    internal_ips=("192.0.2.1",),
                )
                agent.store.put(NODE, "a", deleted)
                await until(lambda: not frr.knows(VIP), "withdrawal by deletion")
                assert frr.knows(PODS)
            await until(lambda: not frr.knows(PODS), "nothing is left of a deleted node", 5)

    asyncio.run(story())


def _fresh(frr: Frr) -> bool:
    found = frr.routes().get(PODS)
    return found is not None and not found.stale


@pytest.mark.parametrize("engine", ["bird", "exabgp"])
def test_a_session_over_ipv6_with_all_that_can_be_asked_of_it(
    netns_factory: Callable[[], str], tmp_path: Path, engine: str
) -> None:
    """From an address of its own, with TTL security, large communities, and networks that are not accepted."""

    async def story() -> None:
        switch = Switch(netns_factory)
        one = Node(
            switch, 1, tmp_path, engine,
            listen=(packed("2001:db8::99"),),
            communities=("64512:1:2", "64512:7"),
            reject=(ipaddress.ip_network("2001:db8:204::/46"),),
            peers=(router(11, 65011, address=packed("2001:db8::11")),),
        )  # fmt: skip
        execute(one.where, "ip address add 2001:db8::99/64 dev eth0 nodad")
        networks = ["2001:db8:203::/48", "2001:db8:205::/48"]
        each = "neighbor {node} ttl-security hops 1"
        settings = msgspec.structs.replace(SETTINGS, ttl_security=True)
        with running(
            lambda: [Frr(switch, 11, tmp_path, "2001:db8::99", 65011, networks=networks, each=each)]
        ) as (frr,):
            execute(frr.where, "ip address add 2001:db8:203::1/128 dev lo")
            async with running_nodes(one, settings=settings):
                await until(lambda: "2001:db8:1::/64" in frr.routes(), "the pods' subnet at the router", 40)
                seen = frr.routes()["2001:db8:1::/64"]
                assert seen.next_hop == "2001:db8::1"
                assert seen.large == {"64512:1:2"}
                assert seen.communities == {"64512:7"}
                await until(lambda: bool(one.routes()), "the router's route")
                assert one.routes() == {"2001:db8:203::/48": ("2001:db8::11",)}
                listening = execute(one.where, "ss -Hltn sport = 179").split()
                assert [word for word in listening if word.endswith(":179")] == ["[2001:db8::99]:179"]
                with flow(one.where, "2001:db8:203::1") as traffic:
                    assert traffic.wait_answered(20)

    asyncio.run(story())
