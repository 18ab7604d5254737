"""Agent, engine and neighbours killed, one after the other, under traffic both ways: no packet is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycni.lab.traffic import Traffic
from pycni_bgp.settings import BgpSettings
from tests.netns import bgp_agent
from tests.netns.bgp_nodes import Node, Router, Switch, execute, flow, router, until
from tests.netns.bgp_routers import Frr, GoBgp, running

SETTINGS = BgpSettings()
NUMBERS = (11, 12, 13)


class World:
    """A node whose agent is a process, and three routers, each with a network of its own behind it."""

    def __init__(self, switch: Switch, folder: Path, engine: str) -> None:
        peers = tuple(router(number, 65000 + number) for number in NUMBERS)
        self.node = Node(switch, 1, folder, engine, peers=peers)
        self.agent: subprocess.Popen[str] | None = None
        self.wanted = {f"10.3.{number}.0/24": (f"192.0.2.{number}",) for number in NUMBERS}
        self._switch, self._folder = switch, folder

    def routers(self) -> list[Any]:
        """FRR and BIRD bring routes into their kernels; GoBGP has none, a static route stands there."""
        keep = "bgp graceful-restart preserve-fw-state"
        made = [
            Frr(
                self._switch,
                11,
                self._folder,
                1,
                65011,
                networks=["10.3.11.0/24"],
                kernel=("zebra",),
                more=keep,
            ),
            Router(self._switch, 12, 65012, self._folder, "192.0.2.1 as 64512", network="10.3.12.0/24"),
            GoBgp(self._switch, 13, self._folder, 1, 65013, network="10.3.13.0/24"),
        ]
        for item, number in zip(made, NUMBERS, strict=True):
            execute(item.where, f"ip address add 10.3.{number}.1/32 dev lo")
        execute(made[2].where, "ip route add 10.1.1.0/24 via 192.0.2.1")
        return made

    def start(self) -> None:
        """The agent."""
        self.agent = bgp_agent.start(self.node, self.node.plan((self.node,), SETTINGS))

    def kill(self) -> None:
        """The agent, not what it has started."""
        assert self.agent is not None
        self.agent.kill()
        self.agent.communicate()
        self.agent = None

    def end(self) -> None:
        """As an agent that ends: it takes its engine along."""
        if self.agent is None:
            self.start()
        assert self.agent is not None
        self.agent.send_signal(signal.SIGINT)
        try:
            self.agent.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self.agent = None

    def pid(self, name: str) -> int:
        """Of the engine, or of a child of it."""
        return int((self.node.folder / f"{name}.pid").read_text())


@contextlib.contextmanager
def _world(switch: Switch, folder: Path, engine: str) -> Iterator[tuple[World, list[Any]]]:
    world = World(switch, folder, engine)
    with running(world.routers) as routers:
        try:
            world.start()
            yield world, routers
        finally:
            world.end()


@contextlib.asynccontextmanager
async def _nothing_lost(world: World, what: str, *routers: Any) -> AsyncIterator[None]:
    """Traffic between pods and every router's network, both ways, while something happens."""
    address = world.node.pod()
    with contextlib.ExitStack() as flows:
        found: list[tuple[str, Traffic]] = []
        for item, number in zip(routers, NUMBERS, strict=True):
            there = flows.enter_context(flow(world.node.where, f"10.3.{number}.1"))
            back = flows.enter_context(flow(item.where, address))
            found += [(f"to {number}", there), (f"from {number}", back)]
        for name, traffic in found:
            assert traffic.wait_answered(5), name
        yield
        for name, traffic in found:
            assert traffic.wait_answered(20), name
    lost = {name: traffic.report() for name, traffic in found if traffic.report().lost}
    assert not lost, f"{what}: {lost}"


async def _settled(world: World, *routers: Any) -> None:
    """Everybody knows everything, by sessions that stand."""
    for item in (routers[0], routers[2]):
        await until(item.up, f"session of {item.number}", 60)
        await until(lambda item=item: _fresh(item), f"pods' subnet at {item.number}", 60)
    await until(lambda: _fresh_bird(routers[1]), "pods' subnet at 12", 60)
    await until(lambda: world.node.routes() == world.wanted, f"routes: {world.node.routes()}", 60)


def _fresh(item: Frr | GoBgp) -> bool:
    found = item.routes().get("10.1.1.0/24")
    return found is not None and not found.stale


def _fresh_bird(item: Router) -> Awaitable[bool]:
    async def look() -> bool:
        text = await item.has("10.1.1.0/24")
        return bool(text) and "Established" in await item.show("protocols")

    return look()


@pytest.mark.parametrize("engine", ["bird", "exabgp"])
def test_no_packet_is_lost_whoever_is_killed(
    netns_factory: Callable[[], str], tmp_path: Path, engine: str
) -> None:
    async def story() -> None:
        switch = Switch(netns_factory)
        with _world(switch, tmp_path, engine) as (world, routers):
            await _settled(world, *routers)
            async with _nothing_lost(world, "agent", *routers):
                world.kill()
                await asyncio.sleep(0.5)
                world.start()
                await _settled(world, *routers)
            async with _nothing_lost(world, "agent that ends in good order", *routers):
                world.end()
                world.start()
                await _settled(world, *routers)
            async with _nothing_lost(world, "engine", *routers):
                # The relay's death is exabgp's, too.
                await (_engine_killed if engine == "bird" else _relay_killed)(world)
                await _settled(world, *routers)
            async with _nothing_lost(world, "neighbours", *routers):
                for item, words in zip(routers, ((), ("-R",), ("-r",)), strict=True):
                    item.process.kill()
                    item.process.wait()
                    await asyncio.sleep(0.3)
                    item.begin(*words)
                await _settled(world, *routers)

    asyncio.run(story())


async def _relay_killed(world: World) -> None:
    """What exabgp told it is forgotten with it, so exabgp is to start again, too."""
    pid = world.pid("exabgp")
    child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
    os.kill(int(child), signal.SIGKILL)
    await _another(world, "exabgp", pid)


async def _engine_killed(world: World) -> None:
    """And started again by the agent."""
    pid = world.pid("bird")
    os.kill(pid, signal.SIGKILL)
    await _another(world, "bird", pid)


async def _another(world: World, name: str, pid: int) -> None:
    def again() -> bool:
        with contextlib.suppress(OSError, ValueError):
            return world.pid(name) != pid
        return False

    await until(again, "a new engine")
