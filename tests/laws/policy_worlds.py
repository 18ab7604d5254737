"""Random clusters with network policies and connections, out of few names, labels and addresses, so that they meet.

Made by ``random.Random`` of a seed that Hypothesis draws, as in ``service_worlds``. Everything here is what decoding
can produce: every selector in canonical order, a peer of an unknown kind alone in its rule. Addresses are one pod's,
except that a completed pod may still name one that is somebody else's by now.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, NamedTuple, TypeVar

from pycni.model.family import Family
from pycni.model.kube import (
    NAMESPACE,
    NODE,
    POD,
    SCTP,
    TCP,
    UDP,
    ContainerPort,
    KubeNode,
    Meta,
    Namespace,
    Pod,
)
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    Direction,
    Expression,
    IpBlock,
    NetworkPolicy,
    Operator,
    Peer,
    PortRange,
    Rule,
    Selector,
    Tier,
)
from pycni.store import Snapshot, Store
from pycni.wire.kube_policy import UNKNOWN_FIELD

V4, V6 = Family.V4, Family.V6
NODES, SPACES = ("n1", "n2", "n3"), ("a", "b", "c")
LABELS = {"app": ("web", "db"), "tier": ("front", "back")}
PORT_NAMES = ("http", "dns")
NUMBERS = (53, 80, 81, 90)
OUTSIDE = {V4: ("192.0.2.9", "198.51.100.7"), V6: ("2001:db8:9::9", "2001:db8:8::7")}
BLOCKS = (
    ("0.0.0.0/0", ("10.244.0.0/16", "192.0.2.9/32", "10.244.1.0/30")),
    ("10.244.0.0/16", ("10.244.1.0/24", "10.244.1.2/31", "10.244.2.3/32")),
    ("10.244.1.0/24", ("10.244.1.4/30",)),
    ("10.244.2.3/32", ()),
    ("192.0.2.0/24", ("192.0.2.8/29",)),
    ("192.168.0.0/24", ("192.168.0.2/32",)),
    ("::/0", ("fd00:244::/32", "2001:db8:9::9/128")),
    ("fd00:244::/32", ("fd00:244:1::/64", "fd00:244:2::3/128")),
    ("fd00:244:1::/64", ("fd00:244:1::4/126",)),
    ("2001:db8:9::/48", ()),
)
"""cidr, what may be excluded from it."""


class Connection(NamedTuple):
    """Arguments of ``verdict`` behind the objects."""

    source: bytes
    destination: bytes
    protocol: int
    port: int
    node: str = ""


class World(NamedTuple):
    """A cluster and what is tried in it."""

    objects: Mapping[str, Mapping[str, Any]]
    connections: list[Connection]

    def of(self, kind: str) -> Mapping[str, Any]:
        """As a snapshot."""
        return self.objects.get(kind, {})

    def store(self) -> Store:
        """The same in a store."""
        store = Store()
        for kind, held in self.objects.items():
            store.replace(kind, held)
        return store

    def snapshot(self) -> Snapshot:
        """The same as the agent has it."""
        return self.store().snapshot()


T = TypeVar("T")


def pack(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def net(text: str) -> Any:
    return ipaddress.ip_network(text)


def maybe(random: Random, chance: float) -> bool:
    return random.random() < chance


def some(random: Random, values: Sequence[T], most: int, least: int = 0) -> tuple[T, ...]:
    return tuple(random.choice(values) for _ in range(random.randint(least, most)))


def labels(random: Random) -> dict[str, str]:
    return {key: random.choice(values) for key, values in LABELS.items() if maybe(random, 0.7)}


# --- who there is ------------------------------------------------------------------------------------------------


def make_namespace(random: Random, name: str) -> Namespace:
    return Namespace(meta=Meta(name=name, labels={**labels(random), "kubernetes.io/metadata.name": name}))


def make_node(name: str) -> KubeNode:
    number = NODES.index(name) + 1
    return KubeNode(
        meta=Meta(name=name),
        pod_cidrs=(f"10.244.{number}.0/24", f"fd00:244:{number}::/64"),
        internal_ips=(f"192.168.0.{number}", f"fd00:a::{number}"),
    )


def make_pod(random: Random, number: int) -> Pod:
    """Pod ``number`` (0..9): its addresses follow from its number and its node, so that no two have the same."""
    node = random.choice(NODES)
    place = NODES.index(node) + 1
    host = maybe(random, 0.08)
    both = (f"10.244.{place}.{number + 2}", f"fd00:244:{place}::{number + 2:x}")
    several = (both, both, both, both[:1], both[1:], ())
    ips = make_node(node).internal_ips if host else random.choice(several)
    ports = [
        ContainerPort(port=random.choice(NUMBERS), name=name, protocol=random.choice((TCP, TCP, UDP, SCTP)))
        for name in (*PORT_NAMES, random.choice(PORT_NAMES), "")
        if maybe(random, 0.6)
    ]
    return Pod(
        meta=Meta(
            name=f"p{number}",
            namespace=random.choice(SPACES),
            labels=labels(random),
            created=random.randint(1, 3),
            deleting=maybe(random, 0.1),
        ),
        node=node,
        ips=ips,
        host_network=host,
        phase=random.choice(("Running", "Running", "Running", "Pending", "")),
        ports=tuple(ports),
    )


def make_ghost(random: Random, pods: Sequence[Pod]) -> Pod:
    """A completed pod that still names an address, most likely one that somebody else has by now."""
    other = random.choice(pods)
    return Pod(
        meta=Meta(name="ghost", namespace=random.choice(SPACES), labels=labels(random), created=9),
        node=other.node,
        ips=other.ips,
        phase=random.choice(("Succeeded", "Failed")),
        ports=(ContainerPort(port=80, name="http"),),
    )


# --- policies ----------------------------------------------------------------------------------------------------


def make_selector(random: Random, *, spaces: bool = False) -> Selector:
    """``spaces``: of namespaces, which have the label with their name too."""
    wanted = LABELS | ({"kubernetes.io/metadata.name": SPACES} if spaces else {})
    if maybe(random, 0.3):
        return Selector()
    exact, expressions = {}, {}
    for key in random.sample(sorted(wanted), random.choice((1, 1, 2))):
        if maybe(random, 0.6):
            exact[key] = random.choice(wanted[key])
            continue
        operator = random.choice(tuple(Operator))
        valued = operator in {Operator.IN, Operator.NOT_IN}
        values = tuple(sorted(set(some(random, wanted[key], 2, 1)))) if valued else ()
        expressions[key, operator.value, values] = Expression(key=key, operator=operator, values=values)
    return Selector(
        labels=tuple(sorted(exact.items())),
        expressions=tuple(expressions[order] for order in sorted(expressions)),
    )


def make_block(random: Random, *, excluding: bool = True) -> IpBlock:
    cidr, parts = random.choice(BLOCKS)
    chosen = {net(text) for text in some(random, parts, 2)} if parts and excluding else set()
    return IpBlock(cidr=net(cidr), excluded=tuple(sorted(chosen, key=lambda item: (int(item[0]), item))))


def make_peer(random: Random) -> Peer:
    kind = random.choice(("pods", "pods", "namespaces", "both", "block", "block", "unknown"))
    if kind == "unknown":
        return Peer(unknown=UNKNOWN_FIELD) if maybe(random, 0.3) else Peer(pods=Selector())
    if kind == "block":
        return Peer(block=make_block(random))
    return Peer(
        pods=make_selector(random) if kind != "namespaces" else None,
        namespaces=make_selector(random, spaces=True) if kind != "pods" else None,
    )


def make_port(random: Random) -> PortRange:
    protocol = random.choice((TCP, TCP, UDP, SCTP))
    kind = random.choice(("number", "number", "name", "name", "range", "all"))
    if kind == "name":
        return PortRange(protocol=protocol, name=random.choice(PORT_NAMES))
    if kind == "all":
        return PortRange(protocol=protocol)
    first = random.choice(NUMBERS)
    return PortRange(protocol=protocol, first=first, last=max(first, random.choice((81, 65535))) if kind == "range" else first)  # fmt: skip


def make_rule(random: Random) -> Rule:
    return Rule(
        peers=tuple(make_peer(random) for _ in range(random.randint(1, 3))) if maybe(random, 0.8) else None,
        ports=tuple(make_port(random) for _ in range(random.randint(1, 3))) if maybe(random, 0.6) else None,
    )


def make_policy(random: Random, key: str) -> NetworkPolicy:
    """``key``: ``namespace/name``."""
    namespace, name = key.split("/")
    types = random.choice(((True, False), (False, True), (True, True)))
    sections = [
        tuple(make_rule(random) for _ in range(random.choice((0, 1, 1, 2, 3)))) if wanted else None
        for wanted in types
    ]
    return NetworkPolicy(
        meta=Meta(name=name, namespace=namespace),
        pods=make_selector(random),
        ingress=sections[0],
        egress=sections[1],
    )


def _cluster_ports(random: Random, *, named: bool) -> tuple[PortRange, ...]:
    found: list[PortRange] = []
    for _ in range(random.randint(1, 2)):
        port = make_port(random)
        if port.name and named:
            found += [PortRange(protocol=number, name=port.name) for number in (TCP, UDP, SCTP)]
        elif port.first:
            found.append(port)
    return tuple(found)


def make_cluster_rule(random: Random, direction: Direction) -> ClusterRule:
    action = random.choice(tuple(Action))
    if maybe(random, 0.05):
        closed = Action.ACCEPT if action is Action.ACCEPT else Action.DENY
        return ClusterRule(action=closed, peers=(Peer(unknown="domainNames"),))
    peers = []
    for _ in range(random.randint(1, 2)):
        if direction is Direction.EGRESS and maybe(random, 0.3):
            peers.append(Peer(block=make_block(random, excluding=False)))
        else:
            pods = make_selector(random) if maybe(random, 0.5) else None
            peers.append(Peer(namespaces=make_selector(random, spaces=True), pods=pods))
    blocks = any(peer.block is not None for peer in peers)
    ports = _cluster_ports(random, named=not blocks) if maybe(random, 0.5) else ()
    return ClusterRule(action=action, peers=tuple(peers), ports=ports or None, name=random.choice(("", "r")))


def make_cluster_policy(random: Random, name: str) -> ClusterNetworkPolicy:
    return ClusterNetworkPolicy(
        meta=Meta(name=name),
        tier=random.choice((Tier.ADMIN, Tier.ADMIN, Tier.BASELINE)),
        priority=random.choice((0, 5, 5, 1000)),
        namespaces=make_selector(random, spaces=True),
        pods=make_selector(random) if maybe(random, 0.5) else None,
        ingress=tuple(make_cluster_rule(random, Direction.INGRESS) for _ in range(random.randint(0, 3))),
        egress=tuple(make_cluster_rule(random, Direction.EGRESS) for _ in range(random.randint(0, 3))),
    )


# --- all of it ---------------------------------------------------------------------------------------------------


def make_connection(random: Random, pods: Sequence[Pod]) -> Connection:
    """Mostly between two pods; also from and to nodes and the world outside."""
    family = random.choice((V4, V6))
    mine = [(text, pod) for pod in pods for text in pod.ips if (":" in text) is (family is V6)]
    place = random.randrange(len(NODES))
    gateway = f"10.244.{place + 1}.1" if family is V4 else f"fd00:244:{place + 1}::1"
    address = make_node(NODES[place]).internal_ips[family is V6]
    others: list[tuple[str, Pod | None]] = [(text, None) for text in (*OUTSIDE[family], address)]
    source, destination = (
        random.choice(mine) if mine and maybe(random, 0.88) else random.choice(others) for _ in range(2)
    )
    if source == destination and maybe(random, 0.9):
        destination = random.choice(mine or others)
    target = destination[1]
    port = random.choice(NUMBERS)
    protocol = random.choice((TCP, TCP, UDP, SCTP, 58 if family is V6 else 1))
    if target is not None and target.ports and maybe(random, 0.5):
        chosen = random.choice(target.ports)
        port, protocol = chosen.port, chosen.protocol
    node = ""
    if source[1] is None and maybe(random, 0.3):
        node, source = NODES[place], (random.choice((gateway, address)), None)
    number = port if protocol in {TCP, UDP, SCTP} else 0
    return Connection(pack(source[0]), pack(destination[0]), protocol, number, node)


def make_world(seed: int, connections: int = 12) -> World:
    """The same world for the same seed."""
    random = Random(seed)
    pods = [make_pod(random, number) for number in range(random.randint(3, 8))]
    everybody = [*pods, make_ghost(random, pods)] if maybe(random, 0.3) else pods
    keys = [f"{random.choice(SPACES)}/np{number}" for number in range(random.randint(0, 6))]
    names = [f"cnp{number}" for number in range(random.choice((0, 0, 1, 2, 4)))]
    objects: dict[str, dict[str, Any]] = {
        NAMESPACE: {name: make_namespace(random, name) for name in SPACES if maybe(random, 0.9)},
        NODE: {name: make_node(name) for name in NODES},
        POD: {pod.meta.key: pod for pod in everybody},
        NETWORK_POLICY: {key: make_policy(random, key) for key in keys},
        CLUSTER_NETWORK_POLICY: {name: make_cluster_policy(random, name) for name in names},
    }
    return World(objects, [make_connection(random, pods) for _ in range(connections)])
