"""Policies of our model written back as the API's objects: for laws about decoding, and for suites that apply them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pycni.model.kube import PROTOCOL_NAMES, TCP
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    ClusterNetworkPolicy,
    ClusterRule,
    NetworkPolicy,
    Peer,
    PortRange,
    Rule,
    Selector,
)
from pycni.wire.kube import API_VERSIONS
from pycni.wire.kube_policy import UNKNOWN_FIELD


def manifest(policy: NetworkPolicy | ClusterNetworkPolicy) -> dict[str, Any]:
    """A document that decodes to this policy (labels and times of its metadata left out)."""
    spec: dict[str, Any]
    meta = {"name": policy.meta.name}
    if isinstance(policy, NetworkPolicy):
        kind, meta["namespace"] = NETWORK_POLICY, policy.meta.namespace
        sections = {"Ingress": policy.ingress, "Egress": policy.egress}
        spec = {
            "podSelector": selector(policy.pods),
            "policyTypes": [name for name, rules in sections.items() if rules is not None],
            "ingress": [_rule(rule, "from") for rule in policy.ingress or ()],
            "egress": [_rule(rule, "to") for rule in policy.egress or ()],
        }
    else:
        kind = CLUSTER_NETWORK_POLICY
        spec = {
            "tier": policy.tier.name.title(),
            "priority": policy.priority,
            "subject": _pods(policy.namespaces, policy.pods),
            "ingress": [_cluster_rule(rule, "from") for rule in policy.ingress],
            "egress": [_cluster_rule(rule, "to") for rule in policy.egress],
        }
    return {"apiVersion": API_VERSIONS[kind], "kind": kind, "metadata": meta, "spec": spec}


def selector(value: Selector) -> dict[str, Any]:
    expressions = [
        {"key": item.key, "operator": item.operator.value, "values": list(item.values)}
        for item in value.expressions
    ]
    return {"matchLabels": dict(value.labels), "matchExpressions": expressions}


def _rule(rule: Rule, field: str) -> dict[str, Any]:
    return {
        field: None if rule.peers is None else [_peer(peer) for peer in rule.peers],
        "ports": None if rule.ports is None else [_port(port) for port in rule.ports],
    }


def _peer(peer: Peer) -> dict[str, Any]:
    if peer.unknown:
        return {"unheardOf": {}}
    if peer.block is not None:
        return {
            "ipBlock": {"cidr": str(peer.block.cidr), "except": [str(net) for net in peer.block.excluded]}
        }
    found = {"podSelector": peer.pods, "namespaceSelector": peer.namespaces}
    return {name: selector(value) for name, value in found.items() if value is not None}


def _port(port: PortRange) -> dict[str, Any]:
    found: dict[str, Any] = {"protocol": PROTOCOL_NAMES[port.protocol]}
    if port.name:
        found["port"] = port.name
    elif port.first:
        found |= {"port": port.first, "endPort": port.last}
    return found


def _pods(namespaces: Selector | None, pods: Selector | None) -> dict[str, Any]:
    assert namespaces is not None, "a cluster policy's peers name namespaces"
    if pods is None:
        return {"namespaces": selector(namespaces)}
    return {"pods": {"namespaceSelector": selector(namespaces), "podSelector": selector(pods)}}


def _cluster_rule(rule: ClusterRule, field: str) -> dict[str, Any]:
    found: dict[str, Any] = {"action": rule.action.value, "name": rule.name}
    found[field] = [_cluster_peer(peer) for peer in rule.peers]
    if rule.ports is not None:
        found["protocols"] = _protocols(rule.ports)
    return found


def _cluster_peer(peer: Peer) -> dict[str, Any]:
    if peer.unknown:
        return {} if peer.unknown == UNKNOWN_FIELD else {peer.unknown: ["example.org"]}
    if peer.block is not None:
        return {"networks": [str(peer.block.cidr)]}
    return _pods(peer.namespaces, peer.pods)


def _protocols(ports: Sequence[PortRange]) -> list[dict[str, Any]]:
    """A name stands for three entries of ours, one per protocol."""
    found: list[dict[str, Any]] = []
    for port in ports:
        if port.name:
            if port.protocol == TCP:
                found.append({"destinationNamedPort": port.name})
            continue
        span = {"start": port.first, "end": port.last}
        number = {"number": port.first} if port.first == port.last else {"range": span}
        found.append({PROTOCOL_NAMES[port.protocol].lower(): {"destinationPort": number}})
    return found
