"""Links that are cut and come back, with FRR as the routers: what it says, and what packets do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pycni_bgp.model import Bfd
from pycni_bgp.settings import BgpSettings
from tests.netns.bgp_nodes import Node, Switch, execute, flow, router, running_nodes, until
from tests.netns.bgp_routers import ROUTE, Frr, running

QUICK = BgpSettings(hold_s=3, restart_s=5)
INSIDE = "203.0.113.1"


@pytest.mark.parametrize("engine", ["bird", "exabgp"])
def test_the_other_router_takes_over_when_a_link_is_cut(
    netns_factory: Callable[[], str], tmp_path: Path, engine: str
) -> None:
    """A router's cable first, then the node's own, then its interface is taken down, which empties its kernel."""

    async def story() -> None:
        switch = Switch(netns_factory)
        one = Node(switch, 1, tmp_path, engine, peers=(router(11, 65011), router(12, 65012)))

        def routers() -> list[Frr]:
            return [Frr(switch, number, tmp_path, 1, 65000 + number, hold=3) for number in (11, 12)]

        with running(routers) as (first, second):
            for item in (first, second):
                execute(item.where, f"ip address add {INSIDE}/32 dev lo")
            async with running_nodes(one, settings=QUICK):
                both = {ROUTE: ("192.0.2.11", "192.0.2.12")}

                async def whole() -> None:
                    await until(lambda: one.routes() == both, f"both routers: {one.routes()}", 40)
                    for item in (first, second):
                        await until(lambda item=item: "10.1.1.0/24" in item.routes(), "pods' subnet", 40)

                await whole()
                switch.port(11, "down")
                await until(lambda: one.routes() == {ROUTE: ("192.0.2.12",)}, "one router is left", 30)
                with flow(one.where, INSIDE) as traffic:
                    assert traffic.wait_answered(20)
                assert traffic.report().lost == 0, "nothing goes to the router that is cut off"
                await until(lambda: not first.up(), "the router notices, too")
                assert second.up()
                switch.port(11, "up")
                await whole()
                switch.port(1, "down")
                await until(lambda: not first.up() and not second.up(), "nobody hears the node", 30)
                switch.port(1, "up")
                await whole()
                # Sessions live through this, but the kernel forgets all routes by the interface.
                execute(one.where, "ip link set eth0 down")
                assert not one.routes()
                execute(one.where, "ip link set eth0 up")
                execute(one.where, "ip address replace 2001:db8::1/64 dev eth0 nodad")
                await whole()
                with flow(one.where, INSIDE) as traffic:
                    assert traffic.wait_answered(20)

    asyncio.run(story())


def test_frr_and_bird_notice_a_dead_link_by_bfd(netns_factory: Callable[[], str], tmp_path: Path) -> None:
    """Sessions would hold for 90 s; FRR names the BFD session, and packets are lost for less than a second."""

    async def story() -> None:
        switch = Switch(netns_factory)
        wish = Bfd(multiplier=3, receive_ms=100, send_ms=100)
        peers = (router(11, 65011, bfd=wish), router(12, 65012, bfd=wish))
        one = Node(switch, 1, tmp_path, "bird", peers=peers)

        def routers() -> list[Frr]:
            each = "neighbor {node} bfd 3 100 100"
            return [
                Frr(switch, number, tmp_path, 1, 65000 + number, hold=90, each=each, kernel=("zebra", "bfdd"))
                for number in (11, 12)
            ]

        with running(routers) as fabric:
            for item in fabric:
                execute(item.where, f"ip address add {INSIDE}/32 dev lo")
            async with running_nodes(one):
                for item in fabric:
                    await until(
                        lambda item=item: item.bfd() == "up", f"BFD with {item.number}: {item.bfd()}", 40
                    )
                await until(lambda: one.routes() == {ROUTE: ("192.0.2.11", "192.0.2.12")}, "both routers", 40)
                with flow(one.where, INSIDE) as traffic:
                    assert traffic.wait_answered(20)
                    # The one that these packets take.
                    used = 11 if "192.0.2.11" in execute(one.where, f"ip route get {INSIDE}") else 12
                    switch.port(used, "down")
                    cut = time.monotonic()
                    await until(
                        lambda: one.routes() == {ROUTE: (f"192.0.2.{23 - used}",)}, "the other one", 30
                    )
                    noticed = time.monotonic() - cut
                    assert traffic.wait_answered(20)
                left = fabric[used - 11]
                await until(lambda: left.bfd() == "down", "FRR's BFD")
                await until(lambda: not left.up(), "FRR's session")
                # The hold time is 90 s: no machine is so slow that BFD would not be needed.
                assert noticed < 30
                assert traffic.report().lost > 0

    asyncio.run(story())
