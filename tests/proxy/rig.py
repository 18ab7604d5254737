"""Data planes under real connections: an ``Engine`` inside the node's namespace, clients and servers all around.

Life of a case: ``apply`` gives the engine the case's objects (a change from those of the case before, so leftovers
show); ``dial`` makes connections from clients of the topology, all at once; ``facts`` other than before mean new data
planes after the old ones were removed. Everything is gone when the rig is closed.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from pycni.kernel import netns
from pycni.model.family import FAMILIES, Family
from pycni.model.kube import ENDPOINT_SLICE, SERVICE, TCP, UDP, EndpointSlice, Service
from pycni.model.service import UNTOUCHED, Decision, NodeFacts, Packet
from pycni.store import Store
from pycni_proxy.base import Dataplane
from pycni_proxy.ebpf.driver import SockDriver
from pycni_proxy.engine import Engine
from tests.proxy.topology import NODE, PODS, Topology, source_of, topology
from tests.proxy.traffic import Dial, Outcome, Traffic
from tests.unit.service_world import net, pack

T = TypeVar("T")
Make = Callable[[NodeFacts], Sequence[Dataplane]]
SILENCE_S = 0.35
"""How long nothing must be heard where nothing is expected."""
PATIENCE_S = 8.0
"""How long an expected answer may take on a busy machine."""

FACTS = NodeFacts(
    name="n1",
    zone="z1",
    addresses=tuple(map(pack, NODE)),
    cluster_networks=(net("10.244.0.0/16"), net("fd00:244::/32")),
    service_networks=(net("10.96.0.0/16"), net("fd00:96::/112")),
    external_ip_ranges=(net("203.0.113.0/24"), net("2001:db8::/64")),
    uplink="eth0",
    families=FAMILIES,
)


class Visit(NamedTuple):
    """A connection from a client of the topology to an address."""

    client: str
    address: str
    port: int
    protocol: int

    @property
    def family(self) -> Family:
        """Of its address."""
        return Family.V6 if ":" in self.address else Family.V4

    @property
    def source(self) -> str:
        """The client's address of that family."""
        return source_of(self.client)[self.family is Family.V6]

    @property
    def packet(self) -> Packet:
        """Its first packet, for evaluators."""
        return Packet(
            pack(self.source), 40000, pack(self.address), self.protocol, self.port, self.client == "node"
        )


class Rig:
    """One node with its data planes. Made by ``rig``."""

    def __init__(
        self,
        spaces: Topology,
        traffic: Traffic,
        thread: ThreadPoolExecutor,
        make: Make,
        protocols: tuple[int, ...],
    ) -> None:
        self.spaces = spaces
        self.protocols = protocols
        """What servers listen on."""
        self.traffic = traffic
        self._thread = thread
        self._make = make
        self._facts: NodeFacts | None = None
        self.engine: Engine
        self._store = Store()
        self.served: Counter[str] = Counter()
        """How many frontends each data plane was given first, over all cases; "" for those nobody serves."""

    @property
    def facts(self) -> NodeFacts:
        """What the data planes were made for."""
        assert self._facts is not None
        return self._facts

    @property
    def planes(self) -> str:
        """Who serves: the names, the wanted one first."""
        return "+".join(plane.name for plane in self.engine.planes)

    def inside(self, function: Callable[[], T]) -> T:
        """Run something on the engine's thread, in the node's namespace."""
        return self._thread.submit(function).result()

    def apply(
        self, services: Mapping[str, Service], slices: Mapping[str, EndpointSlice], facts: NodeFacts = FACTS
    ) -> None:
        """Have the kernel serve exactly these objects."""
        if facts != self._facts:
            self.close()
            planes = self.inside(lambda: self._make(facts))
            self.engine = Engine(facts, planes)
            for plane in planes:
                if isinstance(plane.driver, SockDriver):
                    for pod in PODS:
                        plane.driver.namespaces.add(self.spaces.path(pod))
            self._facts = facts
            self._store = Store()
            self._tracker = self._store.track(SERVICE, ENDPOINT_SLICE)
        self._store.replace(SERVICE, services)
        self._store.replace(ENDPOINT_SLICE, slices)
        changed = self._tracker.take()
        snapshot = self._store.snapshot()
        self.inside(lambda: self.engine.sync(snapshot, changed))
        for frontends in self.engine.frontends().values():
            for frontend in frontends:
                home = self.engine.plane_of(frontend)
                self.served["" if home is None else home.name] += 1

    def differences(self) -> list[str]:
        """What the kernel has and should not, or lacks; empty when it holds what the compilers made."""

        def compare() -> list[str]:
            found = []
            for plane in self.engine.planes:
                actual = plane.driver.read()
                for name, table in self.engine.tables(plane.name).items():
                    if actual.get(name, {}) != table:
                        found.append(f"{plane.name} {name}: {_apart(table, actual.get(name, {}))}")
            return found

        return self.inside(compare)

    def decide(self, packet: Packet) -> Decision:
        """What the compiled tables say, data plane by data plane until one has a say."""
        for plane in self.engine.planes:
            found = plane.compiler.decide(self.engine.tables(plane.name), packet)
            if found != UNTOUCHED:
                return found
        return UNTOUCHED

    def dial(self, visits: Sequence[Visit], timeout: float = PATIENCE_S) -> list[Outcome]:
        """Make connections, all at once."""
        return self.traffic.dial([self._dial(visit, timeout) for visit in visits])

    def hold(self, visits: Sequence[Visit], timeout: float = PATIENCE_S) -> list[tuple[Outcome, int]]:
        """Make connections and keep them open; see ``Traffic.hold``."""
        return self.traffic.hold([self._dial(visit, timeout) for visit in visits])

    def _dial(self, visit: Visit, timeout: float) -> Dial:
        # The node's source is the kernel's choice, as for any program; pods have one address only.
        source = "" if visit.client == "node" or visit.client in PODS else visit.source
        path = self.spaces.netns_of(visit.client)
        return Dial(path, source, visit.address, visit.port, visit.protocol, timeout)

    def close(self) -> None:
        """Take the data planes out of the kernel."""
        if self._facts is None:
            return
        self._facts = None

        def remove() -> None:
            for plane in self.engine.planes:
                plane.driver.remove()
                plane.driver.close()

        self.inside(remove)


def _apart(wanted: Mapping[object, object], actual: Mapping[object, object]) -> str:
    lacks = [key for key in wanted if key not in actual][:3]
    extra = [key for key in actual if key not in wanted][:3]
    other = [key for key in wanted if key in actual and actual[key] != wanted[key]][:3]
    return f"lacks {lacks}, has besides {extra}, has otherwise {other}"


@contextlib.contextmanager
def rig(make: Make, protocols: tuple[int, ...] = (), prefix: str = "", cgroup: str = "") -> Iterator[Rig]:
    """The whole rig; ``make`` is called on the engine's thread in the node's namespace.

    ``protocols``: what servers listen on, TCP and UDP unless told otherwise. ``cgroup``: folder of the control group
    clients and servers live in.
    """
    protocols = protocols or (TCP, UDP)
    with contextlib.ExitStack() as stack:
        spaces = stack.enter_context(topology(prefix))
        traffic = Traffic(cgroup)
        stack.callback(traffic.close)
        traffic.listen(spaces.listeners(protocols))
        fd = netns.open_netns(spaces.path("node"))
        stack.callback(os.close, fd)
        thread = stack.enter_context(
            ThreadPoolExecutor(1, thread_name_prefix="engine", initializer=netns.setns, initargs=(fd,))
        )
        made = Rig(spaces, traffic, thread, make, protocols)
        stack.callback(made.close)
        yield made
