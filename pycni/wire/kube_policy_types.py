"""The policy kinds' JSON: NetworkPolicy (networking.k8s.io/v1) and ClusterNetworkPolicy (policy.networking.k8s.io).

Life: as in ``kube_types``: ``wire/kube`` decodes bytes into these, ``kube_policy`` turns them into ``model/policy``. In
policies a missing part often means more than an empty one, so null and missing stay None here.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from msgspec import field

from pycni.wire.kube_types import Wire, WireMeta


class WireExpression(Wire):
    """LabelSelectorRequirement."""

    key: str | None = None
    operator: str | None = None
    values: list[str] | None = None


class WireSelector(Wire):
    """LabelSelector."""

    match_labels: dict[str, str | None] | None = None
    match_expressions: list[WireExpression] | None = None


# --- NetworkPolicy ---------------------------------------------------------------------------------------------------


class WireIpBlock(Wire):
    """IPBlock."""

    cidr: str | None = None
    excluded: list[str] | None = field(default=None, name="except")


class WirePeer(Wire):
    """NetworkPolicyPeer."""

    pod_selector: WireSelector | None = None
    namespace_selector: WireSelector | None = None
    ip_block: WireIpBlock | None = None


class WirePolicyPort(Wire):
    """NetworkPolicyPort."""

    protocol: str | None = None
    port: int | str | None = None
    end_port: int | None = None


class WireIngressRule(Wire):
    """NetworkPolicyIngressRule."""

    peers: list[WirePeer] | None = field(default=None, name="from")
    ports: list[WirePolicyPort] | None = None


class WireEgressRule(Wire):
    """NetworkPolicyEgressRule."""

    peers: list[WirePeer] | None = field(default=None, name="to")
    ports: list[WirePolicyPort] | None = None


class WirePolicySpec(Wire):
    """NetworkPolicySpec."""

    pod_selector: WireSelector | None = None
    policy_types: list[str] | None = None
    ingress: list[WireIngressRule] | None = None
    egress: list[WireEgressRule] | None = None


class WireNetworkPolicy(Wire):
    """networking.k8s.io/v1 NetworkPolicy."""

    metadata: WireMeta | None = None
    spec: WirePolicySpec | None = None


# --- ClusterNetworkPolicy --------------------------------------------------------------------------------------------


class WireNamespacedPod(Wire):
    """NamespacedPod: either selector missing is the empty one."""

    namespace_selector: WireSelector | None = None
    pod_selector: WireSelector | None = None


class WireSubject(Wire):
    """ClusterNetworkPolicySubject."""

    namespaces: WireSelector | None = None
    pods: WireNamespacedPod | None = None


class WireClusterPeer(Wire):
    """ClusterNetworkPolicyIngressPeer and ...EgressPeer; which kinds of peer a direction knows is the reader's."""

    namespaces: WireSelector | None = None
    pods: WireNamespacedPod | None = None
    networks: list[str] | None = None
    nodes: Any = None
    domain_names: Any = None


class WireRange(Wire):
    """PortRange."""

    start: int | None = None
    end: int | None = None


class WireClusterPort(Wire):
    """Port."""

    number: int | None = None
    range: WireRange | None = None


class WireTransport(Wire):
    """ClusterNetworkPolicyProtocolTCP, ...UDP, ...SCTP."""

    destination_port: WireClusterPort | None = None


class WireProtocol(Wire):
    """ClusterNetworkPolicyProtocol."""

    tcp: WireTransport | None = None
    udp: WireTransport | None = None
    sctp: WireTransport | None = None
    destination_named_port: str | None = None


class WireClusterIngressRule(Wire):
    """ClusterNetworkPolicyIngressRule."""

    name: str | None = None
    action: str | None = None
    peers: list[WireClusterPeer] | None = field(default=None, name="from")
    protocols: list[WireProtocol] | None = None


class WireClusterEgressRule(Wire):
    """ClusterNetworkPolicyEgressRule."""

    name: str | None = None
    action: str | None = None
    peers: list[WireClusterPeer] | None = field(default=None, name="to")
    protocols: list[WireProtocol] | None = None


class WireClusterSpec(Wire):
    """ClusterNetworkPolicySpec."""

    tier: str | None = None
    priority: int | None = None
    subject: WireSubject | None = None
    ingress: list[WireClusterIngressRule] | None = None
    egress: list[WireClusterEgressRule] | None = None


class WireClusterNetworkPolicy(Wire):
    """policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy."""

    metadata: WireMeta | None = None
    spec: WireClusterSpec | None = None


WirePolicy: TypeAlias = WireNetworkPolicy | WireClusterNetworkPolicy
