"""Nodes for tests of the network component: namespaces on one underlay, agents in threads, etcd in memory.

An agent's thread enters its namespace before it starts a loop, so everything it does happens there. ``Cluster`` has
the records; ``FakeSource`` is the component's way to them and can be cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import tempfile
import threading
import time
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from pycni.agent.health import Health
from pycni.agent.metrics import Registry
from pycni.agent.network import NetworkComponent
from pycni.agent.network_report import NetworkReport
from pycni.agent.settings import Given, resolve
from pycni.kernel import netns as namespaces
from pycni.model.lease import Lease
from pycni.sources.leases import LeaseLostError
from pycni.store import Store
from pycni.wire.lease import HeldLease
from tests.unit.fabric_world import conf

_NUMBERS = itertools.count()


def run(where: str, command: str, *, ok: bool = True) -> str:
    """Output of a command inside a namespace."""
    done = subprocess.run(
        [*namespaces.exec_prefix(where), *command.split()], capture_output=True, text=True, check=False
    )
    if ok and done.returncode:
        raise AssertionError(f"{command}: {done.stderr}{done.stdout}")
    return done.stdout


PATIENCE_S = 15.0


def until(check, what: str = "", seconds: float = 5.0):
    """Wait until ``check`` gives something true; returns it. A busy machine gets ``PATIENCE_S`` at least."""
    seconds = max(seconds, PATIENCE_S)
    end = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what or check}")
        time.sleep(0.01)


class Cluster:
    """Records and net-conf, with the agents that follow them."""

    def __init__(self, network) -> None:
        self.lock = threading.Lock()
        self.conf = network
        self.leases: dict[str, Lease] = {}
        self.permanent = False
        self.sources: list[FakeSource] = []

    def put(self, lease: Lease) -> None:
        with self.lock:
            self.leases[lease.key] = lease
        self.tell()

    def delete(self, key: str) -> None:
        with self.lock:
            del self.leases[key]
        self.tell()

    def set_conf(self, network) -> None:
        self.conf = network
        self.tell()

    def tell(self) -> None:
        for source in list(self.sources):
            source.wake()


class FakeSource:
    """One node's view of the cluster. ``online`` False: etcd does not answer."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.waiting = ""
        self.on_held = lambda held: None
        self.online = True
        self.listing = True
        self.lost = False
        self.expires_in = 86400.0
        self.acquired: list[tuple] = []
        self.published: list = []
        self.loop: asyncio.AbstractEventLoop | None = None
        self.changed: asyncio.Event | None = None
        self.lease: Lease | None = None

    def wake(self) -> None:
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.changed.set)

    async def _ready(self) -> None:
        self.waiting = "" if self.online else "etcd does not answer"
        while not self.online:
            await asyncio.sleep(0.01)
        self.waiting = ""

    async def netconf(self):
        await self._ready()
        return self.cluster.conf

    async def acquire(self, attrs, previous, remembered):
        await self._ready()
        self.acquired.append((attrs, previous, remembered))
        network, number = self.cluster.conf, self.number
        subnet, subnet6 = previous
        if subnet is None and network.network is not None:
            subnet = IPv4Network((int(network.network.network_address) + number * 256, 24))
        if subnet6 is None and network.network6 is not None:
            subnet6 = IPv6Network((int(network.network6.network_address) + (number << 64), 64))
        self.lease = Lease(
            subnet=subnet if network.network else None,
            subnet6=subnet6 if network.network6 else None,
            attrs=attrs,
        )
        self.cluster.put(self.lease)
        return self.held()

    async def publish(self, attrs):
        await self._ready()
        self.published.append(attrs)
        self.lease = Lease(subnet=self.lease.subnet, subnet6=self.lease.subnet6, attrs=attrs)
        self.cluster.put(self.lease)
        return self.held()

    def held(self) -> HeldLease:
        return HeldLease(lease=self.lease, expires=time.time() + self.expires_in)

    async def run(self, store: Store):
        self.loop, self.changed = asyncio.get_running_loop(), asyncio.Event()
        self.cluster.sources.append(self)
        try:
            while True:
                if self.lost:
                    raise LeaseLostError(self.lease.key, "192.0.2.99")
                if self.online and self.listing:
                    store.put("netconf", "config", self.cluster.conf)
                    store.mark_listed("netconf")
                    with self.cluster.lock:
                        leases = dict(self.cluster.leases)
                    store.replace("lease", leases)
                await self.changed.wait()
                self.changed.clear()
        finally:
            self.cluster.sources.remove(self)


class Agent:
    """A NetworkComponent in a thread of its own, in a namespace."""

    def __init__(self, node: FabricNode, cluster: Cluster, flags: dict[str, str], **options) -> None:
        self.source = options.pop("source", None) or FakeSource(cluster, node.number)
        self._tune = options.pop("tune", lambda component: None)
        self.store = Store()
        self.health = Health()
        self.metrics = Registry()
        self.error: BaseException | None = None
        given = {
            "iface": "eth0",
            "node-name": f"n{node.number}",
            "state-dir": str(node.folder / "state"),
            "subnet-file": str(node.folder / "run/subnet.env"),
        } | flags
        settings = resolve([[Given(name, (value,), "flag") for name, value in given.items()]], "host")
        self._node = node
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task | None = None
        self.component: NetworkComponent | None = None
        self._thread = threading.Thread(
            target=self._main, args=(settings, options), name=f"agent {node.number}"
        )
        self._thread.start()
        assert self._ready.wait(10), "agent did not start"

    def _main(self, settings, options) -> None:
        fd = namespaces.open_netns(namespaces.path(self._node.name))
        try:
            namespaces.setns(fd)
        finally:
            os.close(fd)

        async def main() -> None:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            report = NetworkReport(self.health, self.metrics)
            self.component = NetworkComponent(settings, self.source, self.store, report=report, **options)
            self._tune(self.component)
            self._ready.set()
            await self.component.run()

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    def stop(self) -> None:
        """End it as it is; nothing in the kernel is taken down."""
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it ended meanwhile
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)
        assert not self._thread.is_alive(), "agent does not stop"

    def call(self, coroutine_function):
        """Run a coroutine function on the agent's loop; its result."""
        return asyncio.run_coroutine_threadsafe(coroutine_function(), self._loop).result(20)

    def well(self) -> bool:
        return self.health.ready


class FabricNode:
    """A namespace with eth0 on the underlay; number n has 192.0.2.n and 2001:db8::n."""

    def __init__(self, world: FabricWorld, number: int) -> None:
        self.world = world
        self.number = number
        self.name = f"{world.prefix}n{number}"
        self.folder = Path(world.folder) / f"n{number}"
        self.folder.mkdir()
        self.agents: list[Agent] = []
        namespaces.create(self.name)
        self("ip link set lo up")
        self(
            "sysctl -qw net.ipv6.conf.default.accept_dad=0"
        )  # no second of waiting for eth0's link-local address
        self.plug()

    def plug(self) -> None:
        """Make eth0."""
        self.world.plug(self)

    def __call__(self, command: str, *, ok: bool = True) -> str:
        return run(self.name, command, ok=ok)

    def socket(self, address: str = "", port: int = 0, device: str = "") -> socket.socket:
        """A UDP socket of this namespace, bound when an address is given; timeout 1 s."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def make() -> socket.socket:
            made = socket.socket(family, socket.SOCK_DGRAM)
            made.settimeout(1)
            if device:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            if address:
                made.bind((address, port))
            return made

        fd = namespaces.open_netns(namespaces.path(self.name))
        try:
            return namespaces.run_in(fd, make)
        finally:
            os.close(fd)

    def start(self, **options) -> Agent:
        flags = {name.replace("_", "-"): value for name, value in options.pop("flags", {}).items()}
        agent = Agent(self, self.world.cluster, flags, **options)
        self.agents.append(agent)
        return agent

    def tables(self) -> str:
        """Everything of ours as ip(8) and bridge(8) show it, sorted."""
        lines = []
        for command in ("ip -4 route show proto 112", "ip -6 route show proto 112"):
            lines += self(command).splitlines()
        for device in ("flannel.1", "flannel-v6.1"):
            link = self(f"ip -o link show dev {device}", ok=False).split()
            if not link:
                continue
            mtu, mac = link[link.index("mtu") + 1], link[link.index("link/ether") + 1]
            lines.append(f"{device} mtu {mtu} mac {mac} {'up' if 'UP' in link[2] else 'down'}")
            lines += self(f"ip neigh show dev {device} nud permanent", ok=False).splitlines()
            fdb = self(f"bridge fdb show dev {device}", ok=False).splitlines()
            lines += [f"{device} {line}" for line in fdb if "dst" in line]
            addresses = self(f"ip -o addr show dev {device} scope global", ok=False).splitlines()
            lines += [f"{device} {line.split()[3]}" for line in addresses]
        return "\n".join(sorted(line.strip() for line in lines))


class FabricWorld:
    """An underlay switch and its nodes; everything is removed by ``close``."""

    def __init__(self, families: str = "4", kind: str = "vxlan", **backend_keys) -> None:
        self.prefix = f"pyt{os.getpid()}x{next(_NUMBERS)}"
        self.families = families
        self.cluster = Cluster(conf(families, kind, **backend_keys))
        self.folder = tempfile.mkdtemp(prefix=self.prefix)
        self.nodes: dict[int, FabricNode] = {}
        self.switch = f"{self.prefix}sw"
        namespaces.create(self.switch)
        run(self.switch, "ip link add br0 type bridge")
        run(self.switch, "ip link set br0 up")

    def plug(self, node: FabricNode, port: str = "") -> None:
        port = port or f"p{node.number}"
        run(self.switch, f"ip link del {port}", ok=False)
        run(self.switch, f"ip link add {port} type veth peer name eth0 netns /run/netns/{node.name}")
        run(self.switch, f"ip link set {port} master br0 up")
        self.address(node, node.number)
        node("ip link set eth0 up")

    def address(self, node: FabricNode, number: int) -> None:
        if "4" in self.families:
            node(f"ip addr add 192.0.2.{number}/24 dev eth0")
        if "6" in self.families:
            node(f"ip addr add 2001:db8::{number:x}/64 dev eth0 nodad")

    def node(self, number: int) -> FabricNode:
        self.nodes[number] = FabricNode(self, number)
        return self.nodes[number]

    def close(self) -> None:
        errors = []
        for node in self.nodes.values():
            for agent in node.agents:
                try:
                    agent.stop()
                except AssertionError as error:
                    errors.append(error)
            namespaces.delete(node.name)
        namespaces.delete(self.switch)
        subprocess.run(["rm", "-rf", self.folder], check=True)
        if errors:
            raise errors[0]


def routes(node) -> list[str]:
    """Routes of the agents' protocol, IPv4's first."""
    text = node("ip -4 route show proto 112") + node("ip -6 route show proto 112")
    return [line.replace(" linkdown", "").strip() for line in text.splitlines()]


def start(world, *numbers, **options):
    """Nodes of a world and their agents, each with a route to every other one."""
    nodes = [world.node(number) for number in numbers]
    agents = [node.start(**options) for node in nodes]
    until(lambda: all(agent.well() for agent in agents), "agents well", 20)
    for node in nodes:
        until(lambda node=node: len(routes(node)) == (len(nodes) - 1) * len(world.families), "routes", 20)
    return nodes, agents
