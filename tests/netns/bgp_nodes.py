"""Nodes and routers on one underlay, each a namespace; engines of ours run in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from pycni.kernel import netns as namespaces
from pycni_bgp.annotations import NodeSettings, PeerWish
from pycni_bgp.bird.daemon import Bird
from pycni_bgp.engine import Plan
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


class Underlay:
    """A switch, and namespaces on it. Number n has 192.0.2.n and 2001:db8::n."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self.switch = make()
        execute(self.switch, "ip link add br0 type bridge")
        execute(self.switch, "ip link set br0 up")

    def join(self, number: int) -> str:
        """A new namespace."""
        where = self._make()
        execute(where, "ip link set lo up")
        execute(self.switch, f"ip link add v{number} type veth peer name eth0 netns {where}")
        execute(self.switch, f"ip link set v{number} master br0 up")
        execute(where, "ip link set eth0 up")
        execute(where, f"ip address add 192.0.2.{number}/24 dev eth0")
        execute(where, f"ip address add 2001:db8::{number}/64 dev eth0 nodad")
        return where


class Node:
    """A node with BIRD as its engine."""

    def __init__(self, underlay: Underlay, number: int, folder: Path, **settings: object) -> None:
        self.where = underlay.join(number)
        self.number = number
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

    def _engine(self) -> Bird:
        return Bird(str(self.folder), command=[*namespaces.exec_prefix(self.where), "bird"])

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
        found = {}
        for family in ("-4", "-6"):
            for route in json.loads(execute(self.where, f"ip -j {family} route show proto bird") or "[]"):
                hops = [hop["gateway"] for hop in route.get("nexthops", ())] or [route.get("gateway", "")]
                found[route["dst"]] = tuple(sorted(hops))
        return found


def router(number: int, asn: int, **more: object) -> PeerWish:
    """A router outside."""
    return msgspec.structs.replace(PeerWish(address=packed(f"192.0.2.{number}"), asn=asn), **more)
