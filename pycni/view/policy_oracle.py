"""What Kubernetes' API says becomes of a connection: the yardstick for compilers, data planes and ``explain``. Pure.

Life: ``verdict`` is asked about the first packet of one connection, after service translation and before masquerading.
It starts from the packet and reads the objects as they are, so it shares no code with what is compiled; it is slow and
plain on purpose. Sources: API reference of networking.k8s.io/v1 NetworkPolicy, kubernetes.io "Network Policies", the
comments of policy.networking.k8s.io/v1alpha2. What they leave open is decided in docs/policy.md.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple, Protocol

from pycni.model.family import show
from pycni.model.kube import NAMESPACE, NODE, POD, PROTOCOL_NAMES, KubeNode, Pod
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    Direction,
    NetworkPolicy,
    Operator,
    Peer,
    PortRange,
    Rule,
    Selector,
    Tier,
)

COMPLETED = frozenset({"Succeeded", "Failed"})
"""Phases of pods that run no more: their addresses may be somebody else's."""
NAME_LABEL = "kubernetes.io/metadata.name"
"""Every namespace has it, with its own name, and none can lose it."""


class Objects(Protocol):
    """The part of ``store.Snapshot`` that is needed here."""

    def of(self, kind: str) -> Mapping[str, Any]:
        """The objects of one kind by their keys."""


class Cause(enum.Enum):
    """Why a direction is allowed or denied."""

    RULE = "a rule"
    NO_RULE = "isolated, and no rule allows it"
    DEFAULT = "not isolated"
    ITSELF = "a pod reaches itself"
    OWN_NODE = "a node and its own pods reach each other"
    HOST = "policies are not for nodes and pods on their network"
    OUTSIDE = "no pod"


class Reason(NamedTuple):
    """Of one direction."""

    allowed: bool
    cause: Cause
    direction: Direction
    subject: str
    """Whose policies these are: ``Pod a/x``, or an address without any."""
    policies: tuple[str, ...] = ()
    """``NetworkPolicy a/deny``. RULE: the one whose rule decided; NO_RULE: all that isolate the pod, sorted."""
    rule: int = -1
    """RULE: place in the policy's list, from 0."""
    rule_name: str = ""
    passed: tuple[str, ...] = ()
    """Policies whose Pass rules led past the rest of a tier."""

    def __str__(self) -> str:
        side = self.direction.name.lower()
        head = f"{side} of {self.subject}: {'allowed' if self.allowed else 'denied'}"
        if self.cause is Cause.RULE:
            named = f" ({self.rule_name})" if self.rule_name else ""
            why = f"by rule {side}[{self.rule}]{named} of {self.policies[0]}"
        elif self.cause is Cause.NO_RULE:
            why = f"no rule of {', '.join(self.policies)} allows it"
        elif self.cause is Cause.DEFAULT:
            why = "no policy decides about it"
        else:
            why = self.cause.value
        passed = f", passed on by {', '.join(self.passed)}" if self.passed else ""
        return f"{head}: {why}{passed}"


class Judgement(NamedTuple):
    """Allowed when both directions are."""

    allowed: bool
    egress: Reason
    ingress: Reason
    connection: str
    """``Pod a/x (10.0.0.1) -> Pod b/y (10.0.0.2), TCP port 80``."""

    def __str__(self) -> str:
        """Three lines for people."""
        head = f"{self.connection}: {'allowed' if self.allowed else 'denied'}"
        return f"{head}\n  {self.egress}\n  {self.ingress}"


class _Packet(NamedTuple):
    source: bytes
    destination: bytes
    protocol: int
    port: int
    source_pod: Pod | None
    destination_pod: Pod | None


class _Found(NamedTuple):
    """What the ClusterNetworkPolicies of one tier say."""

    action: Action | None
    """None: no rule matches."""
    policy: str = ""
    rule: int = -1
    name: str = ""


def verdict(  # noqa: PLR0917 - a connection is that many things
    objects: Objects, source: bytes, destination: bytes, protocol: int, port: int, node: str = ""
) -> Judgement:
    """Whether a connection may be made, and why.

    Addresses in network byte order, of one family (else ValueError); ``protocol`` is the IP header's number, ``port``
    the destination's (0 where there are none). ``node``: the node that sends this itself, whatever address it has
    chosen; "": told by the source address.
    """
    if len(source) != len(destination):
        raise ValueError(f"{show(source)} and {show(destination)} are of two families")
    cluster = _Cluster(objects)
    packet = _Packet(
        source,
        destination,
        protocol,
        port,
        None if node else cluster.owner(source),
        cluster.owner(destination),
    )
    egress = _direction(cluster, packet, Direction.EGRESS, node)
    ingress = _direction(cluster, packet, Direction.INGRESS, node)
    ends = [
        f"Node {node} ({show(source)})" if node else _named(packet.source_pod, source),
        _named(packet.destination_pod, destination),
    ]
    what = PROTOCOL_NAMES.get(protocol)
    service = f"{what} port {port}" if what else f"protocol {protocol}"
    return Judgement(egress.allowed and ingress.allowed, egress, ingress, f"{' -> '.join(ends)}, {service}")


def _named(pod: Pod | None, address: bytes) -> str:
    return show(address) if pod is None else f"Pod {pod.meta.key} ({show(address)})"


# --- who is who ------------------------------------------------------------------------------------------------------


class _Cluster:
    """Lookups in the objects. An address on a node's network is the node's, never a pod's."""

    def __init__(self, objects: Objects) -> None:
        running = [pod for pod in objects.of(POD).values() if pod.phase not in COMPLETED]
        self._pods: Sequence[Pod] = [pod for pod in running if not pod.host_network]
        self._host_pods: Sequence[Pod] = [pod for pod in running if pod.host_network]
        self._nodes: Mapping[str, KubeNode] = objects.of(NODE)
        self._namespaces = objects.of(NAMESPACE)
        self.policies: Sequence[NetworkPolicy] = sorted(
            objects.of(NETWORK_POLICY).values(), key=lambda policy: policy.meta.key
        )
        self.cluster_policies: Sequence[ClusterNetworkPolicy] = sorted(
            objects.of(CLUSTER_NETWORK_POLICY).values(),
            key=lambda policy: (policy.priority, policy.meta.name),
        )

    def owner(self, address: bytes) -> Pod | None:
        """The pod with an address. Of several: one that is not going, the newest, the first by name."""
        text = show(address)
        claims = [pod for pod in self._pods if text in pod.ips]
        return min(claims, key=lambda pod: (pod.meta.deleting, -pod.meta.created, pod.meta.key), default=None)

    def is_own_node(self, pod: Pod, other: Pod | None, address: bytes, sender: str) -> bool:
        """Whether the other end is the node that a pod runs on: by its name as sender, else by its address."""
        if sender:
            return sender == pod.node
        return other is None and bool(pod.node) and pod.node in self.nodes_with(address)

    def nodes_with(self, address: bytes) -> Iterator[str]:
        """Names of nodes with an address: of the Node, of pods on its network, of its bridge and overlay device."""
        text, found = show(address), ip_address(address)
        for name, node in self._nodes.items():
            if text in node.internal_ips or text in node.external_ips:
                yield name
            ranges = [network for network in map(ip_network, node.pod_cidrs) if found in network]
            if any(int(found) - int(network.network_address) <= 1 for network in ranges):
                yield name
        yield from (pod.node for pod in self._host_pods if text in pod.ips)

    def namespace_labels(self, name: str) -> dict[str, str]:
        """Labels of a namespace; one nobody has told of has its name only."""
        namespace = self._namespaces.get(name)
        return {**(namespace.meta.labels if namespace is not None else {}), NAME_LABEL: name}


def _selects(selector: Selector, labels: Mapping[str, str]) -> bool:
    """API reference, LabelSelector: all requirements are ANDed, an empty selector matches all objects."""
    for key, value in selector.labels:
        if key not in labels or labels[key] != value:
            return False
    for item in selector.expressions:
        among = item.key in labels and labels[item.key] in item.values
        holds = {
            Operator.IN: among,
            Operator.NOT_IN: not among,
            Operator.EXISTS: item.key in labels,
            Operator.DOES_NOT_EXIST: item.key not in labels,
        }
        if not holds[item.operator]:
            return False
    return True


# --- one direction ---------------------------------------------------------------------------------------------------


def _direction(cluster: _Cluster, packet: _Packet, direction: Direction, node: str) -> Reason:
    """What does not depend on any policy, then the tiers."""
    egress = direction is Direction.EGRESS
    pod = packet.source_pod if egress else packet.destination_pod
    other = packet.destination_pod if egress else packet.source_pod
    address = packet.source if egress else packet.destination
    other_address = packet.destination if egress else packet.source
    if pod is None:
        if egress and node:
            return Reason(True, Cause.HOST, direction, f"Node {node}")
        nodes = sorted(cluster.nodes_with(address))
        subject = f"Node {nodes[0]}" if nodes else show(address)
        return Reason(True, Cause.HOST if nodes else Cause.OUTSIDE, direction, subject)
    subject = f"Pod {pod.meta.key}"
    if other is not None and other.meta.key == pod.meta.key:
        return Reason(True, Cause.ITSELF, direction, subject)
    if cluster.is_own_node(pod, other, other_address, "" if egress else node):
        return Reason(True, Cause.OWN_NODE, direction, subject)
    return _tiers(cluster, packet, direction, pod)


def _tiers(cluster: _Cluster, packet: _Packet, direction: Direction, pod: Pod) -> Reason:
    """Admin, then NetworkPolicies, which decide about every pod they isolate, then Baseline, then allowed."""
    subject = f"Pod {pod.meta.key}"
    passed: list[str] = []
    for tier in (Tier.ADMIN, Tier.BASELINE):
        if tier is Tier.BASELINE:
            found = _network_policies(cluster, packet, direction, pod)
            if found is not None:
                return found._replace(passed=tuple(passed))
        said = _tier(cluster, tier, packet, direction, pod)
        if said.action is Action.PASS:
            passed.append(said.policy)
        elif said.action is not None:
            return Reason(
                said.action is Action.ACCEPT,
                Cause.RULE,
                direction,
                subject,
                (said.policy,),
                said.rule,
                said.name,
                tuple(passed),
            )
    return Reason(True, Cause.DEFAULT, direction, subject, passed=tuple(passed))


def _network_policies(cluster: _Cluster, packet: _Packet, direction: Direction, pod: Pod) -> Reason | None:
    """The union of what the policies of its namespace that select a pod allow; None when none isolates it."""
    isolating: list[tuple[str, Sequence[Rule]]] = []
    for policy in cluster.policies:
        section = policy.egress if direction is Direction.EGRESS else policy.ingress
        at_home = policy.meta.namespace == pod.meta.namespace
        if section is not None and at_home and _selects(policy.pods, pod.meta.labels):
            isolating.append((f"{NETWORK_POLICY} {policy.meta.key}", section))
    subject = f"Pod {pod.meta.key}"
    for name, rules in isolating:
        for number, rule in enumerate(rules):
            if _matches(cluster, packet, direction, rule, pod.meta.namespace):
                return Reason(True, Cause.RULE, direction, subject, (name,), number)
    if not isolating:
        return None
    return Reason(False, Cause.NO_RULE, direction, subject, tuple(name for name, _ in isolating))


def _tier(cluster: _Cluster, tier: Tier, packet: _Packet, direction: Direction, pod: Pod) -> _Found:
    """The first rule that matches, of the policies in the order of their priorities."""
    namespace = cluster.namespace_labels(pod.meta.namespace)
    for policy in cluster.cluster_policies:
        if policy.tier is not tier or not _selects(policy.namespaces, namespace):
            continue
        if policy.pods is not None and not _selects(policy.pods, pod.meta.labels):
            continue
        for number, rule in enumerate(policy.egress if direction is Direction.EGRESS else policy.ingress):
            action = _action(cluster, packet, direction, rule)
            if action is not None:
                return _Found(action, f"{CLUSTER_NETWORK_POLICY} {policy.meta.name}", number, rule.name)
    return _Found(None)


def _action(cluster: _Cluster, packet: _Packet, direction: Direction, rule: ClusterRule) -> Action | None:
    """What a rule does to the packet. One with a peer nobody knows fails closed as a whole."""
    if any(peer.unknown for peer in rule.peers):
        return None if rule.action is Action.ACCEPT else Action.DENY
    return rule.action if _matches(cluster, packet, direction, rule, None) else None


# --- one rule --------------------------------------------------------------------------------------------------------


def _matches(
    cluster: _Cluster,
    packet: _Packet,
    direction: Direction,
    rule: Rule | ClusterRule,
    home: str | None,
) -> bool:
    """Whether one of the peers and one of the ports match. ``home``: the policy's namespace, None without."""
    for peer in (None,) if rule.peers is None else rule.peers:
        if peer is not None and not _is_peer(cluster, packet, direction, peer, home):
            continue
        # At egress a name is resolved on the peers; a block of addresses has no pods.
        nameless = direction is Direction.EGRESS and peer is not None and peer.block is not None
        if rule.ports is None or any(_is_port(port, packet, nameless=nameless) for port in rule.ports):
            return True
    return False


def _is_peer(cluster: _Cluster, packet: _Packet, direction: Direction, peer: Peer, home: str | None) -> bool:
    egress = direction is Direction.EGRESS
    if peer.unknown:
        return False
    if peer.block is not None:
        address = ip_address(packet.destination if egress else packet.source)
        return address in peer.block.cidr and not any(address in net for net in peer.block.excluded)
    pod = packet.destination_pod if egress else packet.source_pod
    if pod is None:
        return False
    if peer.namespaces is None:
        in_namespace = pod.meta.namespace == home
    else:
        in_namespace = _selects(peer.namespaces, cluster.namespace_labels(pod.meta.namespace))
    return in_namespace and (peer.pods is None or _selects(peer.pods, pod.meta.labels))


def _is_port(port: PortRange, packet: _Packet, *, nameless: bool) -> bool:
    if port.protocol != packet.protocol:
        return False
    if not port.name:
        return port.first == 0 or port.first <= packet.port <= port.last
    if nameless or packet.destination_pod is None:
        return False
    return any(
        (found.name, found.protocol, found.port) == (port.name, packet.protocol, packet.port)
        for found in packet.destination_pod.ports
    )
