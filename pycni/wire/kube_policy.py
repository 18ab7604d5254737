"""NetworkPolicies from the API's structs to ours: what is missing resolved as the API says, nonsense refused.

Life: ``wire/kube`` calls ``network_policy`` with what it decoded; selectors and names of ports are shared with
``kube_policy_cluster``. Raises ConfigError naming object, field and value, for what the API server would refuse too:
a policy from a manifest has met no API server, and one that says something else than was meant is worse than none.

A peer that says nothing this version knows may be of a kind that a newer one knows: it becomes ``Peer.unknown`` and
matches nobody, while the policy goes on isolating its pods.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from pycni.errors import ConfigError
from pycni.model.family import Network
from pycni.model.policy import (
    NETWORK_POLICY,
    Expression,
    IpBlock,
    NetworkPolicy,
    Operator,
    Peer,
    PortRange,
    Rule,
    Selector,
)
from pycni.wire import kube_values as read
from pycni.wire.kube_convert import meta_of
from pycni.wire.kube_policy_types import (
    WireEgressRule,
    WireExpression,
    WireIngressRule,
    WireIpBlock,
    WireNetworkPolicy,
    WirePeer,
    WirePolicyPort,
    WirePolicySpec,
    WireSelector,
)

UNKNOWN_FIELD = "a field this version does not know"
"""``Peer.unknown`` of a peer without any field we know."""
_INGRESS, _EGRESS = "Ingress", "Egress"
_PORT_NAME = re.compile(r"(?=[a-z0-9-]{1,15}\Z)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*").fullmatch
"""IANA service names (RFC 6335 5.1), as the API wants names of ports."""


def network_policy(wire: WireNetworkPolicy) -> NetworkPolicy:
    """networking.k8s.io/v1 NetworkPolicy."""
    meta = meta_of(NETWORK_POLICY, wire.metadata)
    obj = f"{NETWORK_POLICY} {meta.key}"
    spec = wire.spec or WirePolicySpec()
    types = _types(obj, spec)
    return NetworkPolicy(
        meta=meta,
        pods=selector(obj, "spec.podSelector", spec.pod_selector),
        ingress=_rules(obj, "spec.ingress", "from", spec.ingress) if _INGRESS in types else None,
        egress=_rules(obj, "spec.egress", "to", spec.egress) if _EGRESS in types else None,
    )


def selector(obj: str, path: str, wire: WireSelector | None) -> Selector:
    """A selector in canonical order; missing is the empty one, which selects everything."""
    if wire is None:
        return Selector()
    expressions = [
        _expression(obj, f"{path}.matchExpressions[{index}]", each)
        for index, each in enumerate(wire.match_expressions or ())
    ]
    labels = tuple(sorted(read.texts(wire.match_labels).items()))
    for key, _ in labels:
        if not key:
            raise ConfigError(obj, f"{path}.matchLabels", key, "expected a label's name")
    unique = {(each.key, each.operator.value, each.values): each for each in expressions}
    return Selector(labels=labels, expressions=tuple(unique[order] for order in sorted(unique)))


def port_name(obj: str, path: str, name: str) -> str:
    """A container port's name."""
    if not _PORT_NAME(name):
        raise ConfigError(obj, path, name, "expected a number or the name of a container port")
    return name


def block(obj: str, path: str, text: str | None) -> Network:
    """A network in CIDR notation; host bits are dropped."""
    if not text:
        raise ConfigError(obj, path, text, "expected a network in CIDR notation")
    return ip_network(read.networks(obj, path, (text,))[0])


def _types(obj: str, spec: WirePolicySpec) -> set[str]:
    """Isolated directions. Without policyTypes an empty ``egress`` is none, as the API's defaulting has it."""
    for name in spec.policy_types or ():
        if name not in {_INGRESS, _EGRESS}:
            raise ConfigError(obj, "spec.policyTypes", name, f"expected {_INGRESS} or {_EGRESS}")
    return set(spec.policy_types or ()) or {_INGRESS, *([_EGRESS] if spec.egress else ())}


def _rules(
    obj: str, path: str, field: str, rules: Sequence[WireIngressRule | WireEgressRule] | None
) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            peers=tuple(
                _peer(obj, f"{path}[{index}].{field}[{at}]", peer) for at, peer in enumerate(rule.peers)
            )
            if rule.peers
            else None,
            ports=tuple(
                _port(obj, f"{path}[{index}].ports[{at}]", port) for at, port in enumerate(rule.ports)
            )
            if rule.ports
            else None,
        )
        for index, rule in enumerate(rules or ())
    )


def _peer(obj: str, path: str, wire: WirePeer) -> Peer:
    pods, namespaces = wire.pod_selector, wire.namespace_selector
    if wire.ip_block is not None:
        if pods is not None or namespaces is not None:
            raise ConfigError(obj, path, "ipBlock and a selector", "an ipBlock stands alone")
        return Peer(block=_ip_block(obj, f"{path}.ipBlock", wire.ip_block))
    if pods is None and namespaces is None:
        return Peer(unknown=UNKNOWN_FIELD)
    return Peer(
        pods=None if pods is None else selector(obj, f"{path}.podSelector", pods),
        namespaces=None if namespaces is None else selector(obj, f"{path}.namespaceSelector", namespaces),
    )


def _ip_block(obj: str, path: str, wire: WireIpBlock) -> IpBlock:
    cidr = block(obj, f"{path}.cidr", wire.cidr)
    excluded = [block(obj, f"{path}.except[{index}]", text) for index, text in enumerate(wire.excluded or ())]
    for network in excluded:
        if network == cidr or not _inside(network, cidr):
            raise ConfigError(obj, f"{path}.except", str(network), f"expected a smaller part of {cidr}")
    return IpBlock(cidr=cidr, excluded=tuple(sorted(set(excluded), key=lambda item: (int(item[0]), item))))


def _inside(network: Network, outer: Network) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(outer, IPv4Network) and network.subnet_of(outer)
    return isinstance(outer, IPv6Network) and network.subnet_of(outer)


def _port(obj: str, path: str, wire: WirePolicyPort) -> PortRange:
    protocol = read.protocol(obj, f"{path}.protocol", wire.protocol)
    first, last = wire.port, wire.end_port
    if first is None or isinstance(first, str):
        if last is not None:
            raise ConfigError(obj, f"{path}.endPort", last, "expected together with a number as port")
        return PortRange(
            protocol=protocol, name="" if first is None else port_name(obj, f"{path}.port", first)
        )
    if not 1 <= first <= 65535:
        raise ConfigError(obj, f"{path}.port", first, "expected 1..65535")
    if last is not None and not first <= last <= 65535:
        raise ConfigError(obj, f"{path}.endPort", last, f"expected {first}..65535")
    return PortRange(protocol=protocol, first=first, last=first if last is None else last)


def _expression(obj: str, path: str, wire: WireExpression) -> Expression:
    if not wire.key:
        raise ConfigError(obj, f"{path}.key", wire.key, "expected a label's name")
    try:
        operator = Operator(wire.operator)
    except ValueError:
        known = ", ".join(each.value for each in Operator)
        raise ConfigError(obj, f"{path}.operator", wire.operator, f"expected one of {known}") from None
    wants = operator in {Operator.IN, Operator.NOT_IN}
    if wants is not bool(wire.values):
        reason = "at least one" if wants else "none"
        raise ConfigError(obj, f"{path}.values", wire.values, f"expected {reason} with {operator.value}")
    return Expression(key=wire.key, operator=operator, values=tuple(sorted(set(wire.values or ()))))
