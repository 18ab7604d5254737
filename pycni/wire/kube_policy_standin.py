"""What stands in for a policy that makes no sense: one that denies everything to whom it may be about. Pure.

Life: decoding has refused an object; the source that has no earlier good version of it stores this instead, so that a
policy nobody understands isolates rather than being forgotten. Whom: the selected pods, where the selector can be read,
else all pods of the namespace (of the cluster for a ClusterNetworkPolicy); in the directions it lists, else in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pycni.errors import ConfigError
from pycni.model.kube import Meta
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    NetworkPolicy,
    Peer,
    Selector,
    Tier,
)
from pycni.wire.kube_policy import selector
from pycni.wire.kube_policy_types import WireSelector

STOOD_IN = frozenset({NETWORK_POLICY, CLUSTER_NETWORK_POLICY})
UNREADABLE = "this policy cannot be read"
_GROUPS = {NETWORK_POLICY: "networking.k8s.io", CLUSTER_NETWORK_POLICY: "policy.networking.k8s.io"}
_TYPES = {"Ingress", "Egress"}
_TIERS = {"Admin": Tier.ADMIN, "Baseline": Tier.BASELINE}


def stand_in(kind: str, raw: bytes) -> NetworkPolicy | ClusterNetworkPolicy | None:
    """What to store for bytes that are no readable object; None for other kinds and without a readable name."""
    if kind not in STOOD_IN:
        return None
    try:
        tree = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return None
    return of_mapping(kind, tree)


def of_document(value: Mapping[str, Any]) -> NetworkPolicy | ClusterNetworkPolicy | None:
    """The same of a manifest's document, which says itself of what kind it is."""
    kind, group = value.get("kind"), str(value.get("apiVersion")).partition("/")[0]
    if not isinstance(kind, str) or _GROUPS.get(kind) != group:
        return None
    return of_mapping(kind, value)


def of_mapping(kind: str, tree: object) -> NetworkPolicy | ClusterNetworkPolicy | None:
    """The same of an object of a kind."""
    metadata = _get(tree, "metadata")
    name, namespace = _get(metadata, "name"), _get(metadata, "namespace")
    if not isinstance(name, str) or not name:
        return None
    spec = _get(tree, "spec")
    if kind == NETWORK_POLICY:
        space = namespace if isinstance(namespace, str) and namespace else "default"
        types = _get(spec, "policyTypes")
        known = (
            set(types) if isinstance(types, list) and types and _TYPES.issuperset(map(str, types)) else _TYPES
        )
        return NetworkPolicy(
            meta=Meta(name=name, namespace=space),
            pods=_selector(_get(spec, "podSelector")),
            ingress=() if "Ingress" in known else None,
            egress=() if "Egress" in known else None,
        )
    if kind == CLUSTER_NETWORK_POLICY:
        return _cluster(name, spec)
    return None


def _cluster(name: str, spec: object) -> ClusterNetworkPolicy:
    subject = _get(spec, "subject")
    namespaces, pods = _get(subject, "namespaces"), _get(subject, "pods")
    priority, tier = _get(spec, "priority"), _get(spec, "tier")
    deny = (ClusterRule(action=Action.DENY, peers=(Peer(unknown=UNREADABLE),)),)
    one = pods is not None and namespaces is None
    return ClusterNetworkPolicy(
        meta=Meta(name=name),
        tier=_TIERS.get(tier, Tier.ADMIN) if isinstance(tier, str) else Tier.ADMIN,
        priority=priority if type(priority) is int and 0 <= priority <= 1000 else 0,
        namespaces=_selector(
            _get(pods, "namespaceSelector") if one else namespaces if pods is None else None
        ),
        pods=_selector(_get(pods, "podSelector")) if one else None,
        ingress=deny,
        egress=deny,
    )


def _get(value: object, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _selector(value: object) -> Selector:
    """The selector as far as it can be read; one that cannot selects everything."""
    try:
        return selector("", "", msgspec.convert(value, WireSelector) if value is not None else None)
    except (msgspec.ValidationError, ConfigError):
        return Selector()
