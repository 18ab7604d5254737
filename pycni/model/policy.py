"""Network policies as they are written: NetworkPolicy (networking.k8s.io/v1) and ClusterNetworkPolicy (v1alpha2).

``wire/kube`` decodes them, the store holds them under the kinds below. Nothing is resolved here: who a selector means
follows from the Pods and Namespaces of a snapshot. Where the API tells missing from empty, ``None`` is missing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from pycni.model.family import Network
from pycni.model.kube import TCP, Meta

NETWORK_POLICY, CLUSTER_NETWORK_POLICY = "NetworkPolicy", "ClusterNetworkPolicy"
"""Store kinds; keys are ``namespace/name`` and ``name``."""


class Operator(enum.Enum):
    """Of a selector's expression."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class Expression(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of matchExpressions."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()
    """Sorted."""


class Selector(msgspec.Struct, frozen=True, kw_only=True):
    """A label selector: everything given must hold; the empty one selects all."""

    labels: tuple[tuple[str, str], ...] = ()
    """matchLabels, sorted."""
    expressions: tuple[Expression, ...] = ()
    """In canonical order, so that equal selectors compare equal."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected. NotIn and DoesNotExist hold without the key."""
        if any(labels.get(key) != value for key, value in self.labels):
            return False
        return all(_holds(item, labels) for item in self.expressions)

    @property
    def text(self) -> str:
        """For people, as kubectl writes it: ``app=web,tier in (a,b),!old``; ``all`` for the empty one."""
        parts = [f"{key}={value}" for key, value in self.labels]
        for item in self.expressions:
            if item.operator in {Operator.IN, Operator.NOT_IN}:
                word = "in" if item.operator is Operator.IN else "notin"
                parts.append(f"{item.key} {word} ({','.join(item.values)})")
            else:
                parts.append(item.key if item.operator is Operator.EXISTS else f"!{item.key}")
        return ",".join(parts) or "all"


def _holds(item: Expression, labels: Mapping[str, str]) -> bool:
    if item.operator is Operator.IN:
        return labels.get(item.key) in item.values if item.key in labels else False
    if item.operator is Operator.NOT_IN:
        return item.key not in labels or labels[item.key] not in item.values
    return (item.key in labels) is (item.operator is Operator.EXISTS)


class PortRange(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One entry of ports. All ports of the protocol: ``first`` 0 and no name."""

    protocol: int = TCP
    first: int = 0
    last: int = 0
    """Equal to ``first`` without endPort."""
    name: str = ""
    """A container port's name, resolved per destination pod."""


class IpBlock(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses, also those of pods."""

    cidr: Network
    excluded: tuple[Network, ...] = ()
    """``except``; each inside ``cidr``."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of from/to. Either ``block`` or selectors; both selectors must hold."""

    pods: Selector | None = None
    """None: every pod of the namespaces."""
    namespaces: Selector | None = None
    """None: the policy's own namespace (NetworkPolicy)."""
    block: IpBlock | None = None
    unknown: str = ""
    """A kind of peer this version does not know: matches nothing in an Accept rule, everything in a Deny rule.

    In a ClusterRule it stands alone, without ports, and the action is Accept or Deny: ``wire/kube_policy_cluster``.
    """


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of ingress/egress."""

    peers: tuple[Peer, ...] | None = None
    """None: everybody (missing or empty)."""
    ports: tuple[PortRange, ...] | None = None
    """None: everything, all protocols (missing or empty)."""


class NetworkPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """networking.k8s.io/v1. ``ingress``/``egress`` None: that direction is not isolated by this policy."""

    meta: Meta
    pods: Selector = Selector()
    ingress: tuple[Rule, ...] | None = ()
    egress: tuple[Rule, ...] | None = None


class Tier(enum.IntEnum):
    """Before or after NetworkPolicies."""

    ADMIN = 1
    BASELINE = 2


class Action(enum.Enum):
    """Of a ClusterNetworkPolicy's rule."""

    ACCEPT = "Accept"
    DENY = "Deny"
    PASS = "Pass"  # noqa: S105 - no password


class ClusterRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule of a ClusterNetworkPolicy."""

    action: Action
    peers: tuple[Peer, ...]
    ports: tuple[PortRange, ...] | None = None
    name: str = ""


class ClusterNetworkPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """policy.networking.k8s.io/v1alpha2. Rules in order, the first that matches decides."""

    meta: Meta
    tier: Tier
    priority: int
    """0..1000, small first; equal ones in the order of their names (the API leaves it open)."""
    namespaces: Selector = Selector()
    """Subject: pods of these namespaces,"""
    pods: Selector | None = None
    """of them these (None: all). hostNetwork pods are never subjects."""
    ingress: tuple[ClusterRule, ...] = ()
    egress: tuple[ClusterRule, ...] = ()


class Direction(enum.IntEnum):
    """Seen from the pod a policy selects."""

    INGRESS = 1
    EGRESS = 2
