"""Route reflectors on the wire: ours, and FRR, GoBGP and BIRD as reflectors of our nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from pycni_bgp.bird import show
from pycni_bgp.settings import BgpSettings
from tests.netns.bgp_nodes import Node, Router, Switch, flow, packed, router, running_nodes, until
from tests.netns.bgp_routers import Frr, GoBgp, running

CLUSTER = "9.9.9.9"
ALONE = BgpSettings(internal=False)
"""No sessions between nodes: all they know of each other comes from reflectors."""


def _bird(switch: Switch, number: int, folder: Path) -> Router:
    sessions = "".join(
        f"""
        protocol bgp n{packed(f"192.0.2.{node}").hex()} {{
          local as 64512; neighbor 192.0.2.{node} as 64512; connect delay time 1; graceful restart on;
          rr client; rr cluster id {CLUSTER};
          ipv4 {{ import all; export all; }}; ipv6 {{ import all; export all; }};
        }}
        """
        for node in (1, 2)
    )
    return Router(switch, number, 64512, folder, "", text=f"protocol direct {{ ipv4; ipv6; }}\n{sessions}")


def test_nodes_know_each_other_by_reflectors_of_three_kinds(
    netns_factory: Callable[[], str], tmp_path: Path
) -> None:
    """A node with each engine; two of the three reflectors are killed, and no packet is lost."""

    async def story() -> None:
        switch = Switch(netns_factory)
        peers = tuple(router(number, 64512) for number in (11, 12, 13))
        one = Node(switch, 1, tmp_path, "bird", peers=peers)
        two = Node(switch, 2, tmp_path, "exabgp", peers=peers)

        def reflectors() -> list[Frr | GoBgp | Router]:
            each = "family neighbor {node} route-reflector-client"
            return [
                Frr(
                    switch,
                    11,
                    tmp_path,
                    (1, 2),
                    64512,
                    networks=(),
                    each=each,
                    more=f"bgp cluster-id {CLUSTER}",
                ),
                GoBgp(switch, 12, tmp_path, (1, 2), 64512, network="192.0.2.12/32", cluster=CLUSTER),
                _bird(switch, 13, tmp_path),
            ]

        with running(reflectors) as (frr, gobgp, bird):
            async with running_nodes(one, two, settings=ALONE):
                for node, other in ((one, 2), (two, 1)):
                    wanted = {
                        f"10.1.{other}.0/24": (f"192.0.2.{other}",),
                        f"2001:db8:{other}::/64": (f"2001:db8::{other}",),
                    }
                    await until(
                        lambda node=node, wanted=wanted: wanted.items() <= node.routes().items(),
                        f"node {node.number} knows the other one: {node.routes()}",
                        40,
                    )
                    await until(lambda node=node: node.up(11, 12, 13), f"sessions of node {node.number}", 40)
                for item in (frr, gobgp):
                    for node in (1, 2):
                        await until(lambda item=item, node=node: item.up(node), f"session with {item.number}")
                        seen = await until(
                            lambda item=item, node=node: (
                                found if f"10.1.{node}.0/24" in (found := item.routes(node)) else None
                            ),
                            f"node {node}'s routes at {item.number}",
                        )
                        assert seen[f"10.1.{node}.0/24"].next_hop == f"192.0.2.{node}"
                        assert seen[f"10.1.{node}.0/24"].as_path == ()
                        assert seen[f"2001:db8:{node}::/64"].next_hop == f"2001:db8::{node}"
                found = {
                    (item.neighbour, str(item.prefix)) for item in show.routes(await bird.show("route all"))
                }
                assert (packed("192.0.2.1"), "10.1.1.0/24") in found
                for node, other in ((one, 2), (two, 1)):
                    await _reflected(node, other)
                with flow(one.where, two.pod()) as there, flow(two.where, one.pod(6)) as back:
                    assert there.wait_answered(20)
                    for item in (frr, gobgp):
                        item.process.kill()
                        item.process.wait()
                    await until(lambda: one.up(13), "the others are seen to be gone", 30)
                    await until(lambda: two.up(13), "the others are seen to be gone", 30)
                    assert there.wait_answered(50)
                    assert back.wait_answered(50)
                assert there.report().lost == 0, there.report()
                assert back.report().lost == 0, (
                    back.report(),
                    sorted(set(range(len(back._sent))) - set(back._answered)),
                )

    asyncio.run(story())


async def _reflected(node: Node, other: int) -> None:
    """What a node was told by every reflector: who the route comes from, and what it passed."""

    async def paths() -> dict[bytes, tuple[bytes, tuple[bytes, ...], bytes]]:
        return {
            item.neighbour: (item.attributes.originator, item.attributes.clusters, item.attributes.next_hop)
            for item in await node.engine.learned()
            if str(item.prefix) == f"10.1.{other}.0/24"
        }

    origin = packed(f"192.0.2.{other}")
    wanted = {packed(f"192.0.2.{number}"): (origin, (packed(CLUSTER),), origin) for number in (11, 12, 13)}

    async def right() -> bool:
        return await paths() == wanted

    await until(right, f"paths of node {node.number}: {await paths()}")


@pytest.mark.parametrize("engine", ["bird", "exabgp"])
def test_a_node_reflects_between_nodes_of_several_kinds(
    netns_factory: Callable[[], str], tmp_path: Path, engine: str
) -> None:
    """Clients: another node of ours, FRR and GoBGP as nodes of a cluster in the middle of a change."""

    async def story() -> None:
        switch = Switch(netns_factory)
        one = Node(switch, 5, tmp_path, engine, reflector=packed(CLUSTER))
        two = Node(switch, 2, tmp_path, "exabgp" if engine == "bird" else "bird", client=packed(CLUSTER))
        frr, gobgp = (Node(switch, number, tmp_path, client=packed(CLUSTER)) for number in (3, 4))
        nodes = (one, two, frr, gobgp)

        def others() -> list[Frr | GoBgp]:
            return [
                Frr(switch, 3, tmp_path, 5, 64512, networks=["10.1.3.0/24"], where=frr.where),
                GoBgp(switch, 4, tmp_path, 5, 64512, network="10.1.4.0/24", where=gobgp.where),
            ]

        with running(others) as clients:
            async with running_nodes(one, two, everybody=nodes):
                await until(lambda: one.up(2, 3, 4), "sessions of the reflector", 40)
                wanted = {f"10.1.{number}.0/24": (f"192.0.2.{number}",) for number in (3, 4)}
                for client in clients:
                    await until(client.up, f"session of {client.number}")
                await until(lambda: wanted.items() <= two.routes().items(), "what others announce, at node 2")
                assert await two.up(5)
                for client in clients:
                    seen = await until(
                        lambda client=client: (
                            found if {"10.1.2.0/24", "10.1.5.0/24"} <= set(found := client.routes()) else None
                        ),
                        f"routes at {client.number}: {client.routes()}",
                    )
                    assert seen["10.1.2.0/24"].next_hop == "192.0.2.2"
                    assert seen["10.1.2.0/24"].originator == "192.0.2.2"
                    assert seen["10.1.2.0/24"].clusters == (CLUSTER,)
                    assert seen["10.1.5.0/24"].clusters == ()
                    assert seen["2001:db8:2::/64"].next_hop == "2001:db8::2"
                    assert f"10.1.{7 - client.number}.0/24" in seen, "of the other client"
                    assert f"10.1.{client.number}.0/24" not in seen, "its own comes not back"
                with flow(two.where, frr.pod()) as there:
                    assert there.wait_answered(20)
                assert there.report().lost == 0, there.report()
                # A route that goes is gone everywhere.
                await two.stop_for_good()
                await until(lambda: all("10.1.2.0/24" not in item.routes() for item in clients), "withdrawal")

    asyncio.run(story())
