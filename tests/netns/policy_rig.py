"""A node with real pods and a policy engine: objects of the rig of ``tests.proxy.topology``, and who reaches whom.

    a, b (namespace "shop", app=web, app=db), c ("lone") on node n1;  x ("shop"), y ("lone") on n2;  out: no pod

Only n1 enforces policies here, so what n2 would deny its own pods passes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, NamedTuple

from pycni.model.kube import NAMESPACE, NODE, POD, TCP, UDP, ContainerPort, KubeNode, Meta, Namespace, Pod
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    ClusterNetworkPolicy,
    IpBlock,
    NetworkPolicy,
    Peer,
    PortRange,
    Rule,
    Selector,
)
from pycni.policy.base import Packet
from pycni.policy.engine import PolicyEngine
from pycni.store import Store
from pycni.view.policies import KINDS
from pycni.view.policy_oracle import Judgement, verdict
from tests.proxy import topology
from tests.proxy.traffic import Dial, Outcome, Traffic

WHERE = {
    "a": ("shop", {"app": "web"}, "n1"),
    "b": ("shop", {"app": "db"}, "n1"),
    "c": ("lone", {"app": "web"}, "n1"),
    "x": ("shop", {"app": "web"}, "n2"),
    "y": ("lone", {"app": "db"}, "n2"),
}
CLIENTS, SERVERS, PORTS, PROTOCOLS = (
    ("a", "b", "c", "x", "y", "out", "node"),
    ("a", "b", "x", "y"),
    (80, 8080),
    (TCP, UDP),
)


def web(**labels: str) -> Selector:
    return Selector(labels=tuple(sorted(labels.items())))


def block(text: str, *excluded: str) -> Peer:
    return Peer(
        block=IpBlock(cidr=ipaddress.ip_network(text), excluded=tuple(map(ipaddress.ip_network, excluded)))
    )


def rule(*peers: Peer, ports: Iterable[PortRange] | None = None) -> Rule:
    return Rule(peers=peers or None, ports=None if ports is None else tuple(ports))


def policy(key: str, pods: Selector = Selector(), **sections: Any) -> NetworkPolicy:  # noqa: B008
    namespace, name = key.split("/")
    return NetworkPolicy(
        meta=Meta(name=name, namespace=namespace), pods=pods, **{"ingress": None, **sections}
    )


class Try(NamedTuple):
    """A connection."""

    client: str
    server: str
    family: int
    protocol: int
    port: int

    @property
    def ends(self) -> tuple[str, str]:
        source = topology.BRIDGE if self.client == "node" else topology.source_of(self.client)
        return source[self.family], {**topology.PODS, **topology.REMOTE}[self.server][self.family]


EVERY = [
    Try(client, server, family, protocol, port)
    for client in CLIENTS
    for server in SERVERS
    for family in (0, 1)
    for protocol in PROTOCOLS
    for port in PORTS
    # What stays outside the node says nothing.
    if client != server and (client in {"a", "b", "c", "node"} or server in {"a", "b"})
]


class Rig:
    """The node's store and engine, and connections to try."""

    def __init__(self, engine: PolicyEngine, spaces: topology.Topology, traffic: Traffic) -> None:
        self.engine, self._spaces, self._traffic = engine, spaces, traffic
        self.store = Store()
        self._tracker = self.store.track(*KINDS)
        for name in ("shop", "lone"):
            self.store.put(NAMESPACE, name, Namespace(meta=Meta(name=name, labels={"team": name[0]})))
        for number, pair in ((1, topology.NODE), (2, topology.FAR)):
            cidrs = (f"10.244.{number}.0/24", f"fd00:244:{number}::/64")
            node = KubeNode(meta=Meta(name=f"n{number}"), pod_cidrs=cidrs, internal_ips=pair)
            self.store.put(NODE, f"n{number}", node)
        for name in WHERE:
            self.put_pod(name)
        self.engine.sync(self.store.snapshot())

    def put_pod(self, name: str, **labels: str) -> None:
        namespace, own, node = WHERE[name]
        ips = {**topology.PODS, **topology.REMOTE}[name]
        port = ContainerPort(port=80 if name in {"a", "x"} else 8080, name="http")
        meta = Meta(name=name, namespace=namespace, labels={**own, **labels})
        self.store.put(POD, meta.key, Pod(meta=meta, node=node, ips=ips, ports=(port,), phase="Running"))

    def only(self, *policies: NetworkPolicy | ClusterNetworkPolicy) -> None:
        """These policies and no others."""
        for kind, cls in ((NETWORK_POLICY, NetworkPolicy), (CLUSTER_NETWORK_POLICY, ClusterNetworkPolicy)):
            self.store.replace(kind, {item.meta.key: item for item in policies if isinstance(item, cls)})
        self.sync()

    def sync(self) -> None:
        self.engine.sync(self.store.current(), self._tracker.take())

    def judged(self, one: Try) -> tuple[bool, Judgement]:
        """What the API says, of pods of n1 only."""
        source, destination = (ipaddress.ip_address(end).packed for end in one.ends)
        node = "n1" if one.client == "node" else ""
        told = verdict(self.store.snapshot(), source, destination, one.protocol, one.port, node)
        egress = told.egress.allowed or one.client not in topology.PODS
        return egress and (told.ingress.allowed or one.server not in topology.PODS), told

    def decided(self, one: Try) -> bool:
        """What the compiled tables say."""
        source, destination = (ipaddress.ip_address(end).packed for end in one.ends)
        packet = Packet(source, destination, one.protocol, one.port, local=one.client == "node")
        return self.engine.plane.compiler.decide(self.engine.tables, packet).allowed

    def dial(self, one: Try, timeout: float) -> Dial:
        source, destination = one.ends
        source = "" if one.client == "node" else source
        return Dial(self._spaces.netns_of(one.client), source, destination, one.port, one.protocol, timeout)

    def passes(self, tries: list[Try], timeout: float = 0.8) -> list[bool]:
        """Whether connections are answered. One that should be is given more time before it counts as silent."""
        found = self._traffic.dial([self.dial(one, timeout) for one in tries])
        slow = [at for at, one in enumerate(tries) if found[at].verdict != "answer" and self.judged(one)[0]]
        for at, outcome in zip(
            slow, self._traffic.dial([self.dial(tries[at], 5) for at in slow]), strict=True
        ):
            found[at] = outcome
        return [self._answered(one, outcome) for one, outcome in zip(tries, found, strict=True)]

    @staticmethod
    def _answered(one: Try, outcome: Outcome) -> bool:
        assert outcome.verdict in {"answer", "silence"}, (one, outcome)
        assert outcome.verdict == "silence" or outcome.name == one.server
        return outcome.verdict == "answer"
