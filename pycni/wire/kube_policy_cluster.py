"""ClusterNetworkPolicies from the API's structs to ours, and the policy kinds' table of converters.

Life: ``wire/kube`` calls ``CONVERTERS[kind]`` with what it decoded. Source: the comments and validation rules of
policy.networking.k8s.io/v1alpha2 (network-policy-api, apis/v1alpha2/clusternetworkpolicy_types.go).

Fail closed, as that API asks of whoever finds a peer without any field it knows: an Accept rule with such a peer
matches nothing, any other rule with one becomes "deny all". A rule like that leaves here with the unknown peer as its
only one and, unless it is an Accept rule, as a Deny rule for everything; so nobody behind has to know. The experimental
peers ``nodes`` and ``domainNames`` are not known here, and a protocol without a port this version knows counts alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from pycni.errors import ConfigError
from pycni.model.kube import PROTOCOLS
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    Direction,
    IpBlock,
    NetworkPolicy,
    Peer,
    PortRange,
    Selector,
    Tier,
)
from pycni.wire.kube_convert import meta_of
from pycni.wire.kube_policy import UNKNOWN_FIELD, block, network_policy, port_name, selector
from pycni.wire.kube_policy_types import (
    WireClusterEgressRule,
    WireClusterIngressRule,
    WireClusterNetworkPolicy,
    WireClusterPeer,
    WireClusterPort,
    WireClusterSpec,
    WireNamespacedPod,
    WireProtocol,
    WireSubject,
)

MOST = 25
"""Rules per direction, peers and protocols per rule, networks per peer."""
HIGHEST_PRIORITY = 1000
LONGEST_NAME = 100
_TIERS = {"Admin": Tier.ADMIN, "Baseline": Tier.BASELINE}
_Rule: TypeAlias = WireClusterIngressRule | WireClusterEgressRule


def cluster_network_policy(wire: WireClusterNetworkPolicy) -> ClusterNetworkPolicy:
    """policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy."""
    meta = meta_of(CLUSTER_NETWORK_POLICY, wire.metadata)
    obj = f"{CLUSTER_NETWORK_POLICY} {meta.key}"
    spec = wire.spec or WireClusterSpec()
    tier = _TIERS.get(spec.tier or "")
    if tier is None:
        raise ConfigError(obj, "spec.tier", spec.tier, f"expected {' or '.join(_TIERS)}")
    if spec.priority is None or not 0 <= spec.priority <= HIGHEST_PRIORITY:
        raise ConfigError(obj, "spec.priority", spec.priority, f"expected 0..{HIGHEST_PRIORITY}")
    namespaces, pods = _subject(obj, spec.subject or WireSubject())
    return ClusterNetworkPolicy(
        meta=meta,
        tier=tier,
        priority=spec.priority,
        namespaces=namespaces,
        pods=pods,
        ingress=_rules(obj, "spec.ingress", Direction.INGRESS, spec.ingress),
        egress=_rules(obj, "spec.egress", Direction.EGRESS, spec.egress),
    )


CONVERTERS: Mapping[str, Callable[[Any], NetworkPolicy | ClusterNetworkPolicy]] = {
    NETWORK_POLICY: network_policy,
    CLUSTER_NETWORK_POLICY: cluster_network_policy,
}
"""By kind: from the struct of ``kube_policy_types`` to the one of ``model/policy``."""


def _subject(obj: str, wire: WireSubject) -> tuple[Selector, Selector | None]:
    if (wire.namespaces is None) is (wire.pods is None):
        found = "neither" if wire.pods is None else "both"
        raise ConfigError(obj, "spec.subject", found, "expected either namespaces or pods")
    if wire.pods is not None:
        return _pods(obj, "spec.subject.pods", wire.pods)
    return selector(obj, "spec.subject.namespaces", wire.namespaces), None


def _pods(obj: str, path: str, wire: WireNamespacedPod) -> tuple[Selector, Selector]:
    return (
        selector(obj, f"{path}.namespaceSelector", wire.namespace_selector),
        selector(obj, f"{path}.podSelector", wire.pod_selector),
    )


def _rules(
    obj: str, path: str, direction: Direction, rules: Sequence[_Rule] | None
) -> tuple[ClusterRule, ...]:
    _limited(obj, path, rules, 0)
    return tuple(_rule(obj, f"{path}[{index}]", direction, rule) for index, rule in enumerate(rules or ()))


def _rule(obj: str, path: str, direction: Direction, wire: _Rule) -> ClusterRule:
    try:
        action = Action(wire.action)
    except ValueError:
        known = ", ".join(each.value for each in Action)
        raise ConfigError(obj, f"{path}.action", wire.action, f"expected one of {known}") from None
    name = wire.name or ""
    if len(name) > LONGEST_NAME:
        raise ConfigError(obj, f"{path}.name", name, f"expected at most {LONGEST_NAME} characters")
    field = "from" if direction is Direction.INGRESS else "to"
    _limited(obj, f"{path}.{field}", wire.peers, 1)
    peers = [
        each
        for index, peer in enumerate(wire.peers or ())
        for each in _peers(obj, f"{path}.{field}[{index}]", direction, peer)
    ]
    ports: list[PortRange] = []
    unknown = next((peer.unknown for peer in peers if peer.unknown), "")
    if wire.protocols is not None:
        _limited(obj, f"{path}.protocols", wire.protocols, 1)
        for index, protocol in enumerate(wire.protocols):
            found = _ports(obj, f"{path}.protocols[{index}]", protocol)
            ports += found
            unknown = unknown or ("" if found else f"protocols[{index}]: {UNKNOWN_FIELD}")
    if unknown:
        closed = Action.ACCEPT if action is Action.ACCEPT else Action.DENY
        return ClusterRule(action=closed, peers=(Peer(unknown=unknown),), name=name)
    if any(port.name for port in ports) and any(peer.block is not None for peer in peers):
        raise ConfigError(
            obj, f"{path}.protocols", "destinationNamedPort", "networks have no ports with names"
        )
    return ClusterRule(action=action, peers=tuple(peers), ports=tuple(ports) or None, name=name)


def _peers(obj: str, path: str, direction: Direction, wire: WireClusterPeer) -> tuple[Peer, ...]:
    """A peer's networks are peers of their own here."""
    given = {
        "namespaces": wire.namespaces,
        "pods": wire.pods,
        "networks": wire.networks,
        "nodes": wire.nodes,
        "domainNames": wire.domain_names,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ConfigError(obj, path, " and ".join(names), "expected one of them")
    if wire.namespaces is not None:
        return (Peer(namespaces=selector(obj, f"{path}.namespaces", wire.namespaces)),)
    if wire.pods is not None:
        namespaces, pods = _pods(obj, f"{path}.pods", wire.pods)
        return (Peer(namespaces=namespaces, pods=pods),)
    if wire.networks is not None and direction is Direction.EGRESS:
        _limited(obj, f"{path}.networks", wire.networks, 1)
        return tuple(
            Peer(block=IpBlock(cidr=block(obj, f"{path}.networks[{index}]", text)))
            for index, text in enumerate(wire.networks)
        )
    return (Peer(unknown=names[0] if names else UNKNOWN_FIELD),)


def _ports(obj: str, path: str, wire: WireProtocol) -> tuple[PortRange, ...]:
    """Ports of one protocol; of a name three, as it stands for whatever protocol the port has. None: not known."""
    transports = {"TCP": wire.tcp, "UDP": wire.udp, "SCTP": wire.sctp}
    given = [name for name, value in transports.items() if value is not None]
    named = wire.destination_named_port
    several = [*given, "destinationNamedPort"] if named else given
    if len(several) > 1:
        raise ConfigError(obj, path, " and ".join(several), "expected one of them")
    if named:
        name = port_name(obj, f"{path}.destinationNamedPort", named)
        return tuple(PortRange(protocol=number, name=name) for number in PROTOCOLS.values())
    for name in given:
        transport = transports[name]
        if transport is not None and transport.destination_port is not None:
            where = f"{path}.{name.lower()}.destinationPort"
            return _numbers(obj, where, PROTOCOLS[name], transport.destination_port)
    return ()


def _numbers(obj: str, path: str, protocol: int, wire: WireClusterPort) -> tuple[PortRange, ...]:
    if wire.range is None:
        if wire.number is None:
            return ()
        first = last = wire.number
    elif wire.number is not None:
        raise ConfigError(obj, path, "number and range", "expected one of them")
    else:
        first, last = wire.range.start or 0, wire.range.end or 0
        if first >= last:
            raise ConfigError(obj, f"{path}.range", f"{first}..{last}", "expected start below end")
    if first < 1 or last > 65535:
        raise ConfigError(obj, path, first if first < 1 else last, "expected 1..65535")
    return (PortRange(protocol=protocol, first=first, last=last),)


def _limited(obj: str, path: str, entries: Sequence[object] | None, least: int) -> None:
    count = len(entries or ())
    if not least <= count <= MOST:
        raise ConfigError(obj, path, f"{count} entries", f"expected {least}..{MOST}")
