"""OSPF by BIRD beside FRR: both families, authentication, services that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pycni.errors import ConfigError
from pycni.lab.traffic import Traffic
from pycni_bgp.bird.config import config
from pycni_bgp.engine import BgpError
from pycni_bgp.model import Secret
from pycni_bgp.settings import BgpSettings, OspfSettings
from tests.netns.bgp_nodes import Node, Switch, flow, running_nodes, until
from tests.netns.bgp_ospf import FrrOspf

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
                await _restarts(one, fabric)
                one.services.clear()
                await one.engine.put(one.plan((one,), SETTINGS))
                await until(lambda: VIP not in fabric.routes(), "withdrawal")
                assert "10.1.1.0/24" in fabric.routes()
        finally:
            fabric.end()

    asyncio.run(story())


async def _restarts(one: Node, fabric: FrrOspf) -> None:
    """An agent that is killed costs nothing, as its engine lives; kills of BIRD and of FRR cost some, and heal."""
    pod = one.pod()

    async def both() -> bool:
        return "Full" in fabric.neighbours() and await _full(one)

    with flow(fabric.where, pod) as there, flow(one.where, "203.0.113.1") as back:
        assert there.wait_answered(20)
        assert back.wait_answered(20)
        old, one.engine = one.engine, one._engine()
        await one.engine.put(one.plan((one,), SETTINGS))
        successor = asyncio.create_task(one.engine.run())
        try:
            await until(both, "adjacency with a new agent")
            assert not one.engine.trouble
            assert there.wait_answered(50)
            assert back.wait_answered(50)
        finally:
            # The first one goes on watching BIRD, which is its child.
            one.engine._farewell = _silence  # type: ignore[method-assign]
            successor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await successor
            one.engine = old
    assert (there.report().lost, back.report().lost) == (0, 0), (there.report(), back.report())
    with flow(fabric.where, pod) as there, flow(one.where, "203.0.113.1") as back:
        for kill in (
            lambda: os.kill(int(Path(one.engine.pid_file).read_text()), signal.SIGKILL),
            lambda: (fabric.kill("ospfd"), fabric.begin("ospfd")),
        ):
            kill()
            # What was Full before stays so in the other's eyes for a while.
            await until(lambda: _answered(there, back), "traffic both ways again", 60)
    assert await both()


async def _silence() -> None:
    pass


async def _answered(*flows: Traffic) -> bool:
    """Whether packets of just now are answered."""
    return all([await asyncio.to_thread(item.wait_answered, 50, 1.5) for item in flows])


async def _full(one: Node) -> bool:
    with contextlib.suppress(BgpError):
        return "Full" in {item.state.partition("/")[0] for item in await one.engine.adjacencies()}
    return False


def test_an_interface_that_cannot_be_named_is_refused(
    netns_factory: Callable[[], str], tmp_path: Path
) -> None:
    one = Node(Switch(netns_factory), 1, tmp_path)
    wrong = BgpSettings(ospf=OspfSettings(interfaces=('eth"0',)))
    with pytest.raises(ConfigError, match="ospf-interfaces"):
        config(one.plan((one,), wrong), "bird.log")
    with pytest.raises(ConfigError, match="ospf-interfaces"):
        config(one.plan((one,), BgpSettings(ospf=OspfSettings())), "bird.log")
