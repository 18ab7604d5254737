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
from pycni.lab.traffic import Traffic
from pycni_bgp.annotations import NodeSettings, PeerWish
from pycni_bgp.bird.control import ask
from pycni_bgp.bird.daemon import Bird
from pycni_bgp.engine import BgpError, Plan, Session
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


async def until(check: Callable[[], T | Awaitable[T]], what: str, seconds: float = 60.0) -> T:
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


def flow(where: str, address: str) -> Traffic:
    """Pings from a namespace, a hundred per second; a context manager that counts what is lost."""
    return Traffic(namespaces.path(where), address, 0.01)


class Switch:
    """A switch, and namespaces on it. Number n has 192.0.2.n and 2001:db8::n.

    They know each other's MAC addresses: the kernel's neighbour tables are the whole machine's, and may be full.
    """

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self._joined: dict[int, str] = {}
        self.where = make()
        execute(self.where, "ip link add br0 type bridge")
        execute(self.where, "ip link set br0 up")

    def join(self, number: int) -> str:
        """A new namespace."""
        where = self._make()
        execute(where, "ip link set lo up")
        execute(
            self.where,
            f"ip link add v{number} type veth peer name eth0 netns {where} address {_mac(number)}",
        )
        execute(self.where, f"ip link set v{number} master br0 up")
        execute(where, "ip link set eth0 up")
        execute(where, f"ip address add 192.0.2.{number}/24 dev eth0")
        execute(where, f"ip address add 2001:db8::{number}/64 dev eth0 nodad")
        for other, there in self._joined.items():
            self._introduce(where, other)
            self._introduce(there, number)
        self._joined[number] = where
        return where

    @staticmethod
    def _introduce(where: str, number: int) -> None:
        for address in (f"192.0.2.{number}", f"2001:db8::{number}"):
            execute(where, f"ip neigh replace {address} lladdr {_mac(number)} dev eth0 nud permanent")

    def port(self, number: int, state: str) -> None:
        """Pull the cable of a namespace, and put it in again: "down", "up"."""
        execute(self.where, f"ip link set v{number} {state}")

    @staticmethod
    def routes(where: str) -> dict[str, tuple[str, ...]]:
        """Routes BGP brought into a namespace's kernel, with their next hops."""
        found = {}
        for family, protocol in itertools.product(("-4", "-6"), ("bird", PROTOCOL)):
            for route in json.loads(execute(where, f"ip -j {family} route show proto {protocol}") or "[]"):
                hops = [hop["gateway"] for hop in route.get("nexthops", ())] or [route.get("gateway", "")]
                found[route["dst"]] = tuple(sorted(hops))
        return found


def _mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


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

    async def stop_for_good(self) -> None:
        """As an agent of a node that goes down."""
        self.engine.leaving = lambda: True
        await self.stop()

    def serve(self, text: str) -> None:
        """Announce an address of a service."""
        self.services[prefix(text)] = Local("LoadBalancer", "Service x/y")

    def pod(self, family: int = 4) -> str:
        """An address out of its pods' subnet that answers."""
        address = f"10.1.{self.number}.1/32" if family == 4 else f"2001:db8:{self.number}::1/128"
        execute(self.where, f"ip address replace {address} dev lo")
        return address.partition("/")[0]

    async def sessions(self) -> dict[bytes, Session]:
        """As its engine sees them; {} while it does not answer."""
        try:
            return {item.address: item for item in await self.engine.sessions()}
        except BgpError:
            return {}

    async def up(self, *numbers: int) -> bool:
        """Whether these sessions, and no others, are established."""
        found = {address for address, item in (await self.sessions()).items() if item.up}
        return found == {packed(f"192.0.2.{number}") for number in numbers}

    def routes(self) -> dict[str, tuple[str, ...]]:
        """Routes BGP brought into this node's kernel, with their next hops."""
        return Switch.routes(self.where)


@contextlib.asynccontextmanager
async def running_nodes(
    *nodes: Node,
    settings: BgpSettings = BgpSettings(),  # noqa: B008
    everybody: Iterable[Node] = (),
) -> AsyncIterator[None]:
    """Nodes that know each other (``everybody``: these), with running engines."""
    try:
        for node in nodes:
            await node.engine.put(node.plan(everybody or nodes, settings))
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
        self,
        switch: Switch,
        number: int,
        asn: int,
        folder: Path,
        neighbour: str,
        *,
        extra: str = "",
        network: str = "203.0.113.0/24",
        text: str = "",
    ) -> None:
        """``extra``: more lines within the session; ``text``: all but the identifier and the devices."""
        self.where = switch.join(number)
        self.control = str(folder / f"router{number}.ctl")
        self._folder, self._number = folder, number
        self._conf = folder / f"router{number}.conf"
        self._conf.write_text(
            f"""
            router id 192.0.2.{number};
            protocol device {{ }}
            """
            + (
                text
                or f"""
            protocol direct {{ ipv4; ipv6; interface "eth0"; }}
            protocol static {{ ipv4; route {network} blackhole; }}
            protocol kernel {{ ipv4 {{ export where source = RTS_BGP; }}; merge paths on; persist; graceful restart; }}
            protocol bgp ours {{
              local as {asn}; neighbor {neighbour}; connect delay time 1; graceful restart on;
              ipv4 {{ import all; export where net = {network}; }}; ipv6 {{ import all; export none; }};
              {extra}
            }}
            """
            )
        )
        self.process = self.begin()

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """Start it; ``-R``: it has been there before."""
        self.process = subprocess.Popen(
            [*namespaces.exec_prefix(self.where), "bird", "-f", *words, "-c", self._conf, "-s", self.control,
             "-P", str(self._folder / f"router{self._number}.pid")],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return self.process

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
