"""Nodes and routers on one underlay, each a namespace; engines of ours run in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pycni.kernel import netns as namespaces
from pycni.kernel.hops import HopRoutes
from pycni.kernel.monitor import Monitor
from pycni_bgp.annotations import NodeSettings, PeerWish
from pycni_bgp.bird.control import ask
from pycni_bgp.bird.daemon import Bird
from pycni_bgp.engine import BgpError, Plan
from pycni_bgp.exabgp.daemon import ExaBgp
from pycni_bgp.exabgp.kernel import PROTOCOL, KernelRoutes
from pycni_bgp.model import Local, Prefix, prefix
from pycni_bgp.neighbours import neighbours
from pycni_bgp.settings import BgpSettings

T = TypeVar("T")


def packed(text: str) -> bytes:
    """An address in network byte order."""
    return ipaddress.ip_address(text).packed


def execute(where: str, command: str) -> str:
    """Output of a command inside a namespace."""
    done = subprocess.run(
        [*namespaces.exec_prefix(where), *command.split()], capture_output=True, text=True, check=False
    )
    assert not done.returncode, f"{command}: {done.stderr}{done.stdout}"
    return done.stdout


async def until(check: Callable[[], T | Awaitable[T]], what: str, seconds: float = 20.0) -> T:
    """Wait until ``check`` gives something true; returns it."""
    end = time.monotonic() + seconds
    while True:
        found = check()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.1)


class Switch:
    """A switch, and namespaces on it. Number n has 192.0.2.n and 2001:db8::n."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self.where = make()
        execute(self.where, "ip link add br0 type bridge")
        execute(self.where, "ip link set br0 up")

    def join(self, number: int) -> str:
        """A new namespace."""
        where = self._make()
        execute(where, "ip link set lo up")
        execute(self.where, f"ip link add v{number} type veth peer name eth0 netns {where}")
        execute(self.where, f"ip link set v{number} master br0 up")
        execute(where, "ip link set eth0 up")
        execute(where, f"ip address add 192.0.2.{number}/24 dev eth0")
        execute(where, f"ip address add 2001:db8::{number}/64 dev eth0 nodad")
        return where

    @staticmethod
    def routes(where: str) -> dict[str, tuple[str, ...]]:
        """Routes BGP brought into a namespace's kernel, with their next hops."""
        found = {}
        for family, protocol in itertools.product(("-4", "-6"), ("bird", PROTOCOL)):
            for route in json.loads(execute(where, f"ip -j {family} route show proto {protocol}") or "[]"):
                hops = [hop["gateway"] for hop in route.get("nexthops", ())] or [route.get("gateway", "")]
                found[route["dst"]] = tuple(sorted(hops))
        return found


def make_engine(kind: str, where: str, folder: Path) -> Any:
    """An engine for a node that is a namespace."""
    prefix = namespaces.exec_prefix(where)
    if kind == "bird":
        return Bird(str(folder), command=[*prefix, "bird"])

    def there(make: Callable[[], T]) -> T:
        fd = namespaces.open_netns(namespaces.path(where))
        try:
            return namespaces.run_in(fd, make)
        finally:
            os.close(fd)

    kernel = KernelRoutes(
        lambda: there(lambda: HopRoutes(PROTOCOL)), lambda deliver: there(lambda: Monitor(deliver))
    )
    return ExaBgp(str(folder), prefix=prefix, kernel=kernel)


class Node:
    """A node with an engine."""

    def __init__(
        self, switch: Switch, number: int, folder: Path, kind: str = "bird", **settings: object
    ) -> None:
        self.where = switch.join(number)
        self.number = number
        self.kind = kind
        self.folder = folder / f"node{number}"
        self.settings = msgspec.structs.replace(
            NodeSettings(
                name=f"n{number}",
                addresses=(packed(f"192.0.2.{number}"), packed(f"2001:db8::{number}")),
                pod_cidrs=(
                    ipaddress.ip_network(f"10.1.{number}.0/24"),
                    ipaddress.ip_network(f"2001:db8:{number}::/64"),
                ),
            ),
            **settings,
        )
        self.services: dict[Prefix, Local] = {}
        self._task: asyncio.Task[None] | None = None
        self.engine = self._engine()

    def _engine(self) -> Any:
        return make_engine(self.kind, self.where, self.folder)

    def plan(self, nodes: Iterable[Node], settings: BgpSettings) -> Plan:
        """What the component would make of it."""
        found = neighbours(settings, self.settings, {item.settings.name: item.settings for item in nodes})
        pods = {Prefix.of(item): Local("pod CIDR", self.settings.name) for item in self.settings.pod_cidrs}
        return Plan(
            router_id=self.settings.addresses[0],
            settings=settings,
            own=self.settings,
            sessions=found.sessions,
            local={**pods, **self.services},
        )

    async def start(self) -> None:
        """Have the engine run."""
        self._task = asyncio.create_task(self.engine.run())

    async def stop(self) -> None:
        """As an agent that ends."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def serve(self, text: str) -> None:
        """Announce an address of a service."""
        self.services[prefix(text)] = Local("LoadBalancer", "Service x/y")

    def routes(self) -> dict[str, tuple[str, ...]]:
        """Routes BGP brought into this node's kernel, with their next hops."""
        return Switch.routes(self.where)


@contextlib.asynccontextmanager
async def running_nodes(*nodes: Node, settings: BgpSettings = BgpSettings()) -> AsyncIterator[None]:  # noqa: B008
    """Nodes that know each other, with running engines."""
    try:
        for node in nodes:
            await node.engine.put(node.plan(nodes, settings))
            await node.start()
        yield
    finally:
        for node in nodes:
            await node.stop()


def router(number: int, asn: int, **more: object) -> PeerWish:
    """A router outside."""
    return msgspec.structs.replace(PeerWish(address=packed(f"192.0.2.{number}"), asn=asn), **more)


class Router:
    """A BIRD that is not ours: a router of the fabric, with a configuration of its own."""

    def __init__(
        self, switch: Switch, number: int, asn: int, folder: Path, neighbour: str, *, extra: str = ""
    ) -> None:
        self.where = switch.join(number)
        self.control = str(folder / f"router{number}.ctl")
        self._folder, self._number = folder, number
        self._conf = folder / f"router{number}.conf"
        self._conf.write_text(
            f"""
            router id 192.0.2.{number};
            protocol device {{ }}
            protocol direct {{ ipv4; ipv6; interface "eth0"; }}
            protocol static {{ ipv4; route 203.0.113.0/24 blackhole; }}
            protocol kernel {{ ipv4 {{ export where source = RTS_BGP; }}; merge paths on; }}
            protocol bgp ours {{
              local as {asn}; neighbor {neighbour}; connect delay time 1; graceful restart on;
              ipv4 {{ import all; export where net = 203.0.113.0/24; }}; ipv6 {{ import all; export none; }};
              {extra}
            }}
            """
        )
        self.process = self.begin()

    def begin(self) -> subprocess.Popen[bytes]:
        """Start it."""
        return subprocess.Popen(
            [*namespaces.exec_prefix(self.where), "bird", "-f", "-c", self._conf, "-s", self.control,
             "-P", str(self._folder / f"router{self._number}.pid")],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    async def show(self, command: str) -> str:
        """What it says itself."""
        return (await ask(self.control, f"show {command}"))[0]

    async def has(self, text: str) -> str:
        """Its routes when a text is in them."""
        with contextlib.suppress(BgpError):
            found = await self.show("route all")
            return found if text in found else ""
        return ""

    async def lacks(self, text: str) -> bool:
        """Whether a text is not in its routes."""
        return text not in await self.show("route all")

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
