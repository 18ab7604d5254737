"""A node that speaks BGP with routers, its engine one of ours or a BIRD configured by hand, and clocks around it.

    node 192.0.2.1, AS 64512 -- switch -- 192.0.2.11 (and .12), AS 65011 (65012): BIRDs configured by hand

Whoever is asked, the routers are the same, are configured by the same file and counted in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from pycni.kernel import netns as namespaces
from pycni_bgp.bird.control import ask
from pycni_bgp.model import Bfd, Local, Prefix
from pycni_bgp.settings import BgpSettings
from tests.netns.bgp_nodes import Node, Switch, packed, router

NODE, NODE_AS = 1, 64512
ROUTERS = {11: 65011, 12: 65012}
BARE, BIRD, EXABGP = KINDS = ("bare BIRD", "bird", "exabgp")
PATIENCE_S = 120.0
_NUMBERS = itertools.count()
_IMPORTED = re.compile(rb"Routes:\s+(\d+) imported")


class Timers(msgspec.Struct, frozen=True):
    """How soon a session notices that nobody is there."""

    hold_s: int = 90
    bfd_ms: int = 0
    """Interval, three of them lost are too many; 0: no BFD."""

    @property
    def protocol(self) -> str:
        """Of BFD, in BIRD's words."""
        pace = f"min rx interval {self.bfd_ms} ms; min tx interval {self.bfd_ms} ms; multiplier 3;"
        return f'protocol bfd {{ interface "eth0" {{ {pace} }}; }}\n' if self.bfd_ms else ""

    @property
    def words(self) -> str:
        """Of a session, in BIRD's words."""
        bfd = " bfd on;" if self.bfd_ms else ""
        return (
            f"hold time {self.hold_s}; connect delay time 1; error wait time 1, 2; graceful restart on;{bfd}"
        )


def addresses(base: str, count: int, length: int = 32, *, start: int = 0) -> list[str]:
    """So many networks of that length, one after the other."""
    first, step = int(ipaddress.IPv4Address(base)), 1 << (32 - length)
    numbers = range(start, start + count)
    return [f"{ipaddress.IPv4Address(first + number * step)}/{length}" for number in numbers]


class Underlay:
    """A folder, a switch, and namespaces that are removed by ``close``."""

    def __init__(self) -> None:
        # In memory, as an agent's: a disk would be measured with all of them.
        self.folder = Path(tempfile.mkdtemp(prefix="pyb", dir="/dev/shm"))
        self._made: list[str] = []
        self.switch = Switch(self._namespace)

    def _namespace(self) -> str:
        name = f"pyb{os.getpid()}g{next(_NUMBERS)}"
        namespaces.create(name)
        self._made.append(name)
        return name

    def close(self) -> None:
        """Remove everything; the programs in it have ended."""
        for name in self._made:
            namespaces.delete(name)
        shutil.rmtree(self.folder)


class BareBird:
    """A BIRD with a configuration written by hand."""

    def __init__(self, where: str, folder: Path, name: str, text: str) -> None:
        self.where = where
        self.control = str(folder / f"{name}.ctl")
        self._conf = folder / f"{name}.conf"
        self._conf.write_text(text)
        self._talk: socket.socket | None = None
        self._process = subprocess.Popen(
            [*namespaces.exec_prefix(where), "bird", "-f", "-c", self._conf, "-s", self.control,
             "-P", str(folder / f"{name}.pid")],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    async def configure(self, text: str) -> None:
        """Go by this from now on."""
        self._conf.write_text(text)
        await ask(self.control, "configure")

    def imported(self, protocol: str) -> int:
        """Routes a session of it brought; -1 while it does not say."""
        with contextlib.suppress(OSError):
            found = _IMPORTED.findall(self._ask(f"show protocols all {protocol}\n".encode()))
            return sum(map(int, found)) if found else -1
        return -1

    def up(self, *, bfd: bool) -> bool:
        """Whether the node is there."""
        with contextlib.suppress(OSError):
            if b"Established" in self._ask(b"show protocols node\n"):
                return not bfd or b" Up " in self._ask(b"show bfd sessions\n")
        return False

    def _ask(self, command: bytes) -> bytes:
        """On a connection that stays, as it is asked a thousand times a second."""
        if self._talk is None:
            talk = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                talk.connect(self.control)
                _answer(talk)
            except OSError:
                talk.close()
                raise
            self._talk = talk
        self._talk.sendall(command)
        return _answer(self._talk)

    def end(self) -> None:
        """Kill it."""
        if self._talk is not None:
            self._talk.close()
        self._process.kill()
        self._process.wait()


def _answer(talk: socket.socket) -> bytes:
    """Up to the line that begins with a code and a space."""
    text = b""
    while not re.search(rb"^\d{4} .*\n\Z", text, re.MULTILINE):
        more = talk.recv(1 << 16)
        if not more:
            raise ConnectionResetError
        text += more
    return text


def router_conf(number: int, announced: Sequence[str], timers: Timers, *, prepend: bool = False) -> str:
    """A router that announces networks and takes what it is told; with a longer path when ``prepend``."""
    export = f"{{ bgp_path.prepend({ROUTERS[number]}); accept; }}" if prepend else "all"
    export = export if export == "all" else f"filter {export}"
    return (
        f"router id 192.0.2.{number};\nprotocol device {{ }}\n{timers.protocol}"
        f"protocol static {{ ipv4;\n{_blackholes(announced)}}}\n"
        f"protocol bgp node {{ local as {ROUTERS[number]}; neighbor 192.0.2.{NODE} as {NODE_AS}; {timers.words}\n"
        f"  ipv4 {{ import all; export {export}; }}; ipv6 {{ import all; export none; }}; }}\n"
    )


def node_conf(routers: Sequence[int], announced: Sequence[str], timers: Timers) -> str:
    """A node as one writes it by hand: what it announces, what it learns to the kernel."""
    text = (
        f"router id 192.0.2.{NODE};\nprotocol device {{ }}\n{timers.protocol}"
        f"protocol static {{ ipv4;\n{_blackholes(announced)}}}\n"
        "protocol kernel { ipv4 { export where source = RTS_BGP; }; merge paths on; }\n"
    )
    for number in routers:
        text += (
            f"protocol bgp r{number} {{ local as {NODE_AS}; neighbor 192.0.2.{number} as {ROUTERS[number]};"
            f" {timers.words}\n  ipv4 {{ import all; export where source = RTS_STATIC; }};"
            " ipv6 { import all; export none; }; }\n"
        )
    return text


def _blackholes(networks: Sequence[str]) -> str:
    return "".join(f"  route {item} blackhole;\n" for item in networks)


class KernelRoutes:
    """How many IPv4 routes a namespace has."""

    def __init__(self, where: str) -> None:
        self.where = where
        fd = namespaces.open_netns(namespaces.path(where))
        try:
            self._file = namespaces.run_in(
                fd, lambda: os.open("/proc/thread-self/net/fib_triestat", os.O_RDONLY)
            )
        finally:
            os.close(fd)
        self._before = self._count()

    def _count(self) -> int:
        text = os.pread(self._file, 1 << 16, 0)
        # Once for each table, which are one while there are no rules.
        found = re.search(rb"\tPrefixes:\s+(\d+)", text)
        return int(found[1]) if found else 0

    def more(self) -> int:
        """Than at first."""
        return self._count() - self._before

    def close(self) -> None:
        """Look no more."""
        os.close(self._file)


class Subject:
    """The node. ``kind``: one of ``KINDS``."""

    def __init__(self, net: Underlay, kind: str, routers: Sequence[int], timers: Timers) -> None:
        self._kind, self._routers, self._timers = kind, routers, timers
        self._bare: BareBird | None = None
        self._node: Node | None = None
        self._settings = BgpSettings(hold_s=timers.hold_s)
        if kind == BARE:
            self.where = net.switch.join(NODE)
            self._bare = BareBird(self.where, net.folder, "node", node_conf(routers, (), timers))
            return
        bfd = Bfd(receive_ms=timers.bfd_ms, send_ms=timers.bfd_ms) if timers.bfd_ms else None
        peers = tuple(router(number, ROUTERS[number], bfd=bfd) for number in routers)
        self._node = Node(net.switch, NODE, net.folder, kind, peers=peers, pod_cidrs=())
        self.where = self._node.where

    async def start(self) -> None:
        """Begin to speak."""
        if self._node is not None:
            await self._node.engine.put(self._node.plan((self._node,), self._settings))
            await self._node.start()

    async def announce(self, networks: Sequence[str]) -> float:
        """Announce these and nothing else; returns when it was told so."""
        if self._bare is not None:
            told = time.perf_counter()
            await self._bare.configure(node_conf(self._routers, networks, self._timers))
            return told
        assert self._node is not None
        self._node.services = {
            Prefix.of(ipaddress.ip_network(item)): Local("LoadBalancer", "Service x/y") for item in networks
        }
        told = time.perf_counter()
        await self._node.engine.put(self._node.plan((self._node,), self._settings))
        return told

    def abandon(self) -> None:
        """End what there is before it was started."""
        if self._bare is not None:
            self._bare.end()

    async def stop(self) -> None:
        """End it."""
        self.abandon()
        if self._node is not None:
            await self._node.stop()


class BgpNet:
    """A node of one kind with its routers, sessions up."""

    def __init__(self, kind: str, routers: Sequence[int], timers: Timers) -> None:
        self.kind, self.timers = kind, timers
        self.routers: dict[int, BareBird] = {}
        with contextlib.ExitStack() as unless_done:
            self.net = Underlay()
            unless_done.callback(self.net.close)
            self.node = Subject(self.net, kind, routers, timers)
            unless_done.callback(self.node.abandon)
            unless_done.callback(self._end_routers)
            for number in routers:
                where, conf = self.net.switch.join(number), self.router_conf(number, ())
                self.routers[number] = BareBird(where, self.net.folder, f"r{number}", conf)
            self.kernel = KernelRoutes(self.node.where)
            unless_done.pop_all()

    def _end_routers(self) -> None:
        for item in self.routers.values():
            item.end()

    async def close(self) -> None:
        """End everything."""
        try:
            await self.node.stop()
        finally:
            self.kernel.close()
            self._end_routers()
            self.net.close()

    def router_conf(self, number: int, networks: Sequence[str]) -> str:
        """The second router's paths are longer."""
        return router_conf(number, networks, self.timers, prepend=number == max(ROUTERS))

    async def announce(self, networks: Sequence[str]) -> float:
        """Seconds until the first router has exactly what the node was told to announce."""
        first = next(iter(self.routers.values()))
        told = await self.node.announce(networks)
        await until(lambda: first.imported("node"), len(networks))
        return time.perf_counter() - told

    async def learn(self, networks: Sequence[str]) -> float:
        """Seconds until the node's kernel has exactly what the first router was told to announce."""
        number, first = next(iter(self.routers.items()))
        told = time.perf_counter()
        await first.configure(self.router_conf(number, networks))
        await until(self.kernel.more, len(networks))
        return time.perf_counter() - told

    async def all_up(self) -> None:
        """Until all sessions are established, and BFD's too."""
        for item in self.routers.values():
            await until(lambda item=item: item.up(bfd=bool(self.timers.bfd_ms)), True)


async def until(count: Callable[[], object], wanted: int) -> None:
    """Look every millisecond until a count is what is wanted."""
    end = time.monotonic() + PATIENCE_S
    while True:
        found = count()
        if asyncio.iscoroutine(found):
            found = await found
        if found == wanted:
            return
        assert time.monotonic() < end, f"{found} of {wanted} after {PATIENCE_S:g} s"
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def bgp_net(
    kind: str,
    routers: Sequence[int] = (11,),
    timers: Timers = Timers(),  # noqa: B008
) -> AsyncIterator[BgpNet]:
    """A net whose sessions are up; everything ends with it."""
    made = BgpNet(kind, routers, timers)
    try:
        await made.node.start()
        for item in made.routers.values():
            await until(lambda item=item: item.imported("node"), 0)
        await made.all_up()
        yield made
    finally:
        await made.close()


__all__ = ["BARE", "BIRD", "EXABGP", "KINDS", "BgpNet", "Timers", "addresses", "bgp_net", "packed", "until"]
