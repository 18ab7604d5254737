"""Nine pods in three namespaces on three nodes, policies as YAML, and truth tables written as exceptions.

Pods a, b and c are in each of the namespaces x, y and z; a runs on n1, b on n2, c on n3. Every pod serves 80 and 81 by
TCP, UDP and SCTP under names such as ``serve-80-tcp``, and has an IPv4 and an IPv6 address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import Any

import yaml

from pycni.model.family import FAMILIES, Family
from pycni.model.kube import NAMESPACE, NODE, POD, PROTOCOLS
from pycni.view.policy_oracle import Judgement, verdict
from pycni.wire.kube import from_mapping

SPACES, NAMES = ("x", "y", "z"), ("a", "b", "c")
PODS = tuple(f"{space}/{name}" for space in SPACES for name in NAMES)
NODES = ("n1", "n2", "n3")

World = dict[str, dict[str, Any]]


class Snapshot(dict[str, dict[str, Any]]):
    """Objects by kind and key."""

    def of(self, kind: str) -> Mapping[str, Any]:
        return self.get(kind, {})


def address(pod: str, family: Family = Family.V4) -> str:
    """``x/a`` is 10.244.1.11 and fd00:244:1::11; the node gives the third octet, the namespace the tens."""
    space, name = pod.split("/")
    node, last = NAMES.index(name) + 1, f"{SPACES.index(space) + 1}{NAMES.index(name) + 1}"
    return f"10.244.{node}.{last}" if family is Family.V4 else f"fd00:244:{node}::{last}"


def pod_object(pod: str, labels: Mapping[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    """A pod as the API has it. ``changes``: of its spec (``hostNetwork``, ``nodeName``) and ``phase``, ``ips``, ``deleting``, ``ports``."""
    space, name = pod.split("/")
    served = [
        {"containerPort": number, "protocol": protocol, "name": f"serve-{number}-{protocol.lower()}"}
        for number in (80, 81)
        for protocol in PROTOCOLS
    ]
    ips = changes.pop("ips", None) or [address(pod, family) for family in FAMILIES]
    status = {"phase": changes.pop("phase", "Running"), "podIPs": [{"ip": ip} for ip in ips]}
    meta = {"name": name, "namespace": space, "labels": {"pod": name} if labels is None else dict(labels)}
    if changes.pop("deleting", False):
        meta["deletionTimestamp"] = "2024-01-01T00:00:00Z"
    if "created" in changes:
        meta["creationTimestamp"] = changes.pop("created")
    containers = [{"ports": changes.pop("ports", served)}]
    spec = {
        "nodeName": NODES[NAMES.index(name)] if name in NAMES else "n1",
        "containers": containers,
        **changes,
    }
    return {"apiVersion": "v1", "kind": POD, "metadata": meta, "spec": spec, "status": status}


def base() -> list[dict[str, Any]]:
    """The nine pods, their namespaces and nodes."""
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": NAMESPACE, "metadata": {"name": space, "labels": {"ns": space}}}
        for space in SPACES
    ]
    for number, node in enumerate(NODES, 1):
        status = {"addresses": [{"type": "InternalIP", "address": text} for text in node_addresses(number)]}
        spec = {"podCIDRs": [f"10.244.{number}.0/24", f"fd00:244:{number}::/64"]}
        objects.append(
            {"apiVersion": "v1", "kind": NODE, "metadata": {"name": node}, "spec": spec, "status": status}
        )
    return objects + [pod_object(pod) for pod in PODS]


def node_addresses(number: int) -> tuple[str, str]:
    """Of node ``number``, from 1."""
    return f"192.168.0.{number}", f"fd00:a::{number}"


def world(policies: str = "", *others: dict[str, Any]) -> Snapshot:
    """The base with policies (YAML documents) and with ``others`` added to or in place of its objects."""
    found = Snapshot()
    for document in [*base(), *others, *filter(None, yaml.safe_load_all(policies))]:
        decoded = from_mapping(document)
        assert decoded is not None, document
        kind, item = decoded
        found.setdefault(kind, {})[item.meta.key] = item
    return found


def policy(name: str, spec: str, space: str = "x") -> str:
    """A NetworkPolicy; ``spec`` in flow style."""
    return f"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: {space}}}\nspec: {{{spec}}}\n"


def cluster(
    name: str, spec: str, *, tier: str = "Admin", priority: int = 10, subject: str = "namespaces: {}"
) -> str:
    """A ClusterNetworkPolicy; ``spec`` in flow style."""
    return (
        "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n"
        f"metadata: {{name: {name}}}\n"
        f"spec: {{tier: {tier}, priority: {priority}, subject: {{{subject}}}, {spec}}}\n"
    )


def ask(
    snapshot: Snapshot,
    source: str,
    destination: str,
    what: str = "80/TCP",
    node: str = "",
    family: Family = Family.V4,
) -> Judgement:
    """The verdict between two pods or addresses, ``what`` being ``80/TCP``, or ``icmp``."""
    ends = [ip_address(address(end, family) if end in PODS else end).packed for end in (source, destination)]
    if what == "icmp":
        return verdict(snapshot, *ends, 1 if family is Family.V4 else 58, 0, node)
    number, _, protocol = what.partition("/")
    return verdict(snapshot, *ends, PROTOCOLS[protocol], int(number), node)


def table(snapshot: Snapshot, what: str, family: Family) -> set[tuple[str, str]]:
    """All pairs of pods that may connect."""
    return {
        (one, other)
        for one in PODS
        for other in PODS
        if ask(snapshot, one, other, what, family=family).allowed
    }


def truth(
    into: Mapping[str, str] | None = None, out: Mapping[str, str] | None = None
) -> set[tuple[str, str]]:
    """Everybody reaches everybody, except: ``into`` pods only those named come, ``out`` of pods only to those named.

    Pods and names are patterns (``x/*``), names separated by blanks. Every pod reaches itself.
    """
    return {
        (one, other)
        for one in PODS
        for other in PODS
        if one == other or (_permits(into or {}, other, one) and _permits(out or {}, one, other))
    }


def _permits(limits: Mapping[str, str], pod: str, peer: str) -> bool:
    return all(
        _named(peer, allowed.split()) for limited, allowed in limits.items() if fnmatchcase(pod, limited)
    )


def _named(pod: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(pod, pattern) for pattern in patterns)
