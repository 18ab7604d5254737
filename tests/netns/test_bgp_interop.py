"""Our BGP against FRR and GoBGP: what they say of what we told them, and what comes of what they tell."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pycni_bgp.model import Secret
from pycni_bgp.settings import BgpSettings
from tests.netns.bgp_nodes import Node, Switch, router, running_nodes, until
from tests.netns.bgp_routers import ROUTE, Frr, GoBgp, Seen, running

PASSWORD = "not-to-be-seen"
VIP = "198.51.100.7/32"
MARKS = frozenset({"64512:7", "no-export", "noExport", "65535:65281"})
"""As the programs write them."""


@pytest.mark.parametrize(
    ("kind", "engine"),
    [(Frr, "bird"), (GoBgp, "bird"), (Frr, "exabgp")],
    ids=["BIRD with FRR", "BIRD with GoBGP", "exabgp with FRR"],
)
def test_routes_go_both_ways_and_outlive_a_restart(
    netns_factory: Callable[[], str], tmp_path: Path, kind: type[Frr | GoBgp], engine: str
) -> None:
    """MD5, communities, a longer path, both families over one session; engine killed; a service withdrawn."""

    async def story() -> None:
        switch = Switch(netns_factory)
        one = Node(
            switch,
            1,
            tmp_path,
            engine,
            peers=(router(11, 65011, password=Secret(PASSWORD)),),
            communities=("64512:7", "no-export"),
            prepend=(64999, 2),
        )
        one.serve(VIP)
        with running(lambda: [kind(switch, 11, tmp_path, 1, 65011, PASSWORD)]) as (fabric,):
            async with running_nodes(one):
                await until(fabric.up, "a session")
                await until(lambda: one.routes() == {ROUTE: ("192.0.2.11",)}, "the router's route")
                found = await until(lambda: _when(fabric.routes(), 3), f"three routes: {fabric.routes()}")
                hops = {"10.1.1.0/24": "192.0.2.1", "2001:db8:1::/64": "2001:db8::1", VIP: "192.0.2.1"}
                assert {prefix: seen.next_hop for prefix, seen in found.items()} == hops
                for seen in found.values():
                    assert seen.as_path == (64512, 64999, 64999)
                    assert len(seen.communities) == 2
                    assert seen.communities <= MARKS
                os.kill(int(Path(one.engine.pid_file).read_text()), 9)
                starts = one.engine.starts
                while one.engine.starts == starts or not await asyncio.to_thread(fabric.up):
                    assert set(await asyncio.to_thread(fabric.routes)) == set(hops), (
                        "kept while the engine restarts"
                    )
                    assert one.routes() == {ROUTE: ("192.0.2.11",)}, "here, too"
                await until(lambda: one.routes() == {ROUTE: ("192.0.2.11",)}, "the router's route again")
                one.services.clear()
                await one.engine.put(one.plan((one,), BgpSettings()))
                await until(lambda: VIP not in fabric.routes(), "withdrawal")

    asyncio.run(story())


def _when(routes: dict[str, Seen], count: int) -> dict[str, Seen]:
    return routes if len(routes) == count else {}


@pytest.mark.parametrize("engine", ["exabgp"])
def test_two_kinds_of_routers_share_the_load(
    netns_factory: Callable[[], str], tmp_path: Path, engine: str
) -> None:
    """What both announce has two next hops, one when a router is gone for longer than it is waited for."""

    async def story() -> None:
        switch = Switch(netns_factory)
        one = Node(switch, 1, tmp_path, engine, peers=(router(11, 65011), router(12, 65012)))
        settings = BgpSettings(graceful=False)
        with running(
            lambda: [Frr(switch, 11, tmp_path, 1, 65011), GoBgp(switch, 12, tmp_path, 1, 65012)]
        ) as fabric:
            async with running_nodes(one, settings=settings):
                for item in fabric:
                    await until(item.up, f"session with {item.number}")
                await until(lambda: one.routes() == {ROUTE: ("192.0.2.11", "192.0.2.12")}, "two next hops")
                fabric[1].process.kill()
                await until(lambda: one.routes() == {ROUTE: ("192.0.2.11",)}, "the other one is left")

    asyncio.run(story())


@pytest.mark.parametrize(("kind", "engine"), [(Frr, "bird"), (GoBgp, "exabgp")])
def test_a_wrong_password_makes_no_session(
    netns_factory: Callable[[], str], tmp_path: Path, kind: type[Frr | GoBgp], engine: str
) -> None:
    async def story() -> None:
        switch = Switch(netns_factory)
        one = Node(switch, 1, tmp_path, engine, peers=(router(11, 65011, password=Secret("another")),))
        with running(lambda: [kind(switch, 11, tmp_path, 1, 65011, PASSWORD)]) as (fabric,):
            async with running_nodes(one):
                await until(lambda: one.engine.starts, "the engine")
                for _ in range(8):
                    await asyncio.sleep(0.5)
                    assert fabric.process.poll() is None
                    assert not fabric.up()
                    assert not one.routes()

    asyncio.run(story())
