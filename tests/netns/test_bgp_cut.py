"""Links that are cut and come back, with FRR as the routers: what it says, and what packets do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycni_bgp.model import Bfd
from pycni_bgp.settings import BgpSettings
from tests.netns.bgp_nodes import Node, Switch, execute, flow, packed, router, running_nodes, until
from tests.netns.bgp_routers import ROUTE, Frr, running

HOLD_S = {"bird": 90, "exabgp": 3}
"""BFD notices for BIRD; exabgp has none."""
INSIDE = "203.0.113.1"


@pytest.mark.parametrize("engine", ["bird", "exabgp"])
def test_the_other_router_takes_over_when_a_link_is_cut(
    netns_factory: Callable[[], str], tmp_path: Path, engine: str
) -> None:
    """A router's cable first, then the node's own, then its interface is taken down, which empties its kernel.

    The second is left out with BFD, which makes no difference to the first.
    """

    async def story() -> None:
        switch = Switch(netns_factory)
        wish = Bfd(multiplier=3, receive_ms=100, send_ms=100) if engine == "bird" else None
        one = Node(switch, 1, tmp_path, engine, peers=tuple(router(n, 65000 + n, bfd=wish) for n in (11, 12)))
        settings = BgpSettings(hold_s=HOLD_S[engine], restart_s=5)

        def routers() -> list[Frr]:
            more: dict[str, Any] = {"hold": HOLD_S[engine]}
            if wish:
                more |= {"each": "neighbor {node} bfd 3 100 100", "kernel": ("zebra", "bfdd")}
            return [Frr(switch, number, tmp_path, 1, 65000 + number, **more) for number in (11, 12)]

        with running(routers) as (first, second):
            for item in (first, second):
                execute(item.where, f"ip address add {INSIDE}/32 dev lo")
            async with running_nodes(one, settings=settings):
                both = {ROUTE: ("192.0.2.11", "192.0.2.12")}

                async def whole() -> None:
                    await until(lambda: one.routes() == both, f"both routers: {one.routes()}", 40)
                    for item in (first, second):
                        await until(lambda item=item: item.knows("10.1.1.0/24"), "pods' subnet", 40)
                        if wish:
                            await until(lambda item=item: item.bfd() == "up", f"BFD with {item.number}", 40)

                await whole()
                switch.port(11, "down")
                await until(lambda: one.routes() == {ROUTE: ("192.0.2.12",)}, "one router is left", 30)
                with flow(one.where, INSIDE) as traffic:
                    assert traffic.wait_answered(20)
                assert traffic.report().lost == 0, "nothing goes to the router that is cut off"
                await until(lambda: not first.up(), "the router notices, too")
                assert second.up()
                if wish:
                    assert (first.bfd(), second.bfd()) == ("down", "up")
                    found = (await one.sessions())[packed("192.0.2.11")]
                    assert "BFD" in found.error
                switch.port(11, "up")
                await whole()
                if engine == "exabgp":
                    switch.port(1, "down")
                    await until(lambda: not first.up() and not second.up(), "nobody hears the node", 30)
                    switch.port(1, "up")
                    await whole()
                # Sessions may live through this, but the kernel forgets all routes by the interface.
                execute(one.where, "ip link set eth0 down")
                assert not one.routes()
                execute(one.where, "ip link set eth0 up")
                await whole()
                with flow(one.where, INSIDE) as traffic:
                    assert traffic.wait_answered(20)

    asyncio.run(story())
