"""OSPF by BIRD beside FRR: both families, authentication, services that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from pycni.errors import ConfigError
from pycni_bgp.bird.config import config
from pycni_bgp.model import Secret
from pycni_bgp.settings import BgpSettings, OspfSettings
from tests.netns.bgp_nodes import Node, Switch, running_nodes, until
from tests.netns.bgp_routers import FrrOspf

PASSWORD = "not-to-be-seen"
VIP = "198.51.100.7"
SETTINGS = BgpSettings(
    internal=False, ospf=OspfSettings(hello_s=1, dead_s=4, interfaces=("eth0",), password=Secret(PASSWORD))
)


def test_subnets_and_services_go_to_a_router_and_its_networks_come(
    netns_factory: Callable[[], str], tmp_path: Path
) -> None:
    async def story() -> None:
        switch = Switch(netns_factory)
        one = Node(switch, 1, tmp_path)
        one.serve(f"{VIP}/32")
        fabric = FrrOspf(switch, 11, PASSWORD)
        try:
            async with running_nodes(one, settings=SETTINGS):
                mine = {"10.1.1.0/24", "2001:db8:1::/64", VIP}
                await until(lambda: fabric.routes() >= mine, "routes at the router", 40)
                assert "Full" in fabric.neighbours()
                states = {item.state.partition("/")[0] for item in await one.engine.adjacencies()}
                assert states == {"Full"}
                theirs = {"203.0.113.1": ("192.0.2.11",)}
                await until(lambda: theirs.items() <= one.routes().items(), "the router's network", 20)
                await until(
                    lambda: any(item.startswith("2001:db8:203:") for item in one.routes()), "IPv6", 20
                )
                assert not {"192.0.2.0/24", "2001:db8::/64"} & set(one.routes()), "its own networks"
                one.services.clear()
                await one.engine.put(one.plan((one,), SETTINGS))
                await until(lambda: VIP not in fabric.routes(), "withdrawal")
                assert "10.1.1.0/24" in fabric.routes()
        finally:
            fabric.end()

    asyncio.run(story())


def test_an_interface_that_cannot_be_named_is_refused(
    netns_factory: Callable[[], str], tmp_path: Path
) -> None:
    one = Node(Switch(netns_factory), 1, tmp_path)
    wrong = BgpSettings(ospf=OspfSettings(interfaces=('eth"0',)))
    with pytest.raises(ConfigError, match="ospf-interfaces"):
        config(one.plan((one,), wrong), "bird.log")
    with pytest.raises(ConfigError, match="ospf-interfaces"):
        config(one.plan((one,), BgpSettings(ospf=OspfSettings())), "bird.log")
