"""Kubernetes objects of a lab as text: the tables of ``lab get``, the histogram of ``lab ask``. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Any

from pycni.lab.ask import Tally
from pycni.lab.objects import Key, Mappings, decoded
from pycni.lab.workloads import is_ending
from pycni.model.kube import (
    ENDPOINT_SLICE,
    NAMESPACE,
    NODE,
    POD,
    PROTOCOL_NAMES,
    SERVICE,
    EndpointSlice,
    KubeNode,
    Namespace,
    Pod,
    Service,
    SliceEndpoint,
)
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    ClusterNetworkPolicy,
    NetworkPolicy,
)

NAME_LABEL = "kubernetes.io/metadata.name"
BAR = 40
"""Characters of the longest bar."""
SHOWN = 6
"""Endpoints shown by name in one cell."""
_HEADS = {
    POD: ("READY", "STATUS", "ADDRESSES", "NODE", "LABELS"),
    NAMESPACE: ("LABELS",),
    NODE: ("LABELS",),
    SERVICE: ("TYPE", "ADDRESSES", "PORTS", "ENDPOINTS"),
    ENDPOINT_SLICE: ("FAMILY", "PORTS", "ENDPOINTS"),
    NETWORK_POLICY: ("POD-SELECTOR", "INGRESS", "EGRESS", "AGE"),
    CLUSTER_NETWORK_POLICY: ("TIER", "PRIORITY", "NAMESPACES", "PODS", "INGRESS", "EGRESS", "AGE"),
    "Deployment": ("REPLICAS",),
    "ReplicaSet": ("REPLICAS",),
}


def tables(objects: Mapping[Key, Mappings], shown: Container[Key], now: float) -> str:
    """A table per kind, with the kind above it when there are several.

    ``shown``: those of the objects to show. ``now``: seconds since the epoch.
    """
    endpoints = endpoints_of(objects)
    objects = {key: value for key, value in objects.items() if key in shown}
    blocks = []
    kinds = list(dict.fromkeys(key.kind for key in objects))
    for kind in kinds:
        rows = [
            (key.namespace or "-", key.name, *_cells(key, value, endpoints, now))
            for key, value in objects.items()
            if key.kind == kind
        ]
        text = table([("NAMESPACE", "NAME", *_HEADS.get(kind, ())), *rows])
        blocks.append(text if len(kinds) == 1 else f"{kind}\n{text}")
    return "\n\n".join(blocks) if blocks else "nothing there"


def endpoints_of(objects: Mapping[Key, Mappings]) -> dict[str, list[SliceEndpoint]]:
    """Endpoints by the key of their Service, each address once."""
    found: dict[str, dict[str, SliceEndpoint]] = {}
    for key, value in objects.items():
        if key.kind == ENDPOINT_SLICE and isinstance(item := decoded(value), EndpointSlice):
            found.setdefault(item.service, {}).update({entry.address: entry for entry in item.endpoints})
    return {service: list(entries.values()) for service, entries in found.items()}


def endpoint_text(entries: Sequence[SliceEndpoint]) -> str:
    """``web-1 web-2(not ready) web-3(ending)``."""
    names: dict[str, str] = {}
    for entry in entries:
        state = "(ending)" if entry.terminating else "" if entry.ready else "(not ready)"
        names[entry.pod.partition("/")[2] or entry.address] = state
    shown = [name + state for name, state in list(names.items())[:SHOWN]]
    more = len(names) - len(shown)
    return " ".join(shown + ([f"and {more} more"] if more else [])) or "none"


def histogram(found: Tally) -> str:
    """Who answered how often, then the sum."""
    rows = sorted(
        {**found.pods, **found.failures}.items(), key=lambda row: (row[0] in found.failures, row[0])
    )
    most = max((count for _name, count in rows), default=1)
    width = max((len(name) for name, _count in rows), default=0)
    lines = [f"{name:<{width}}  {count:>5}  {'█' * max(1, count * BAR // most)}" for name, count in rows]
    failed = sum(found.failures.values())
    seen = ", ".join(found.clients) or "nobody"
    lines.append(
        f"{found.asked - failed} of {found.asked} answered, the longest took {found.longest_s * 1000:.0f} ms; "
        f"the client was seen as {seen}"
    )
    return "\n".join(lines)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def ports_text(service: Service) -> str:
    """``80/TCP 80:30080/TCP``."""
    return " ".join(
        f"{port.port}{f':{port.node_port}' if port.node_port else ''}/{PROTOCOL_NAMES[port.protocol]}"
        for port in service.ports
    )


def addresses_text(service: Service, value: Mappings) -> str:
    """ClusterIPs, external IPs, balancers' addresses; for an ExternalName the name."""
    if service.type == "ExternalName":
        return str(value["spec"]["externalName"])
    return " ".join([*service.cluster_ips, *service.external_ips, *(item.ip for item in service.ingress)])


def rules_text(rules: Sequence[object] | None) -> str:
    """How many rules a policy has for a direction; ``-`` when it has nothing to say about it."""
    if rules is None:
        return "-"
    return f"{len(rules)} rule{'' if len(rules) == 1 else 's'}" if rules else "nothing"


def services(objects: Mapping[Key, Mappings]) -> list[dict[str, Any]]:
    """Every Service with its addresses and endpoints, for ``lab status``."""
    by_service = endpoints_of(objects)
    found = []
    for key, value in objects.items():
        if key.kind == SERVICE and isinstance(service := decoded(value), Service):
            entries = by_service.get(service.meta.key, [])
            found.append(
                {
                    "name": key.name,
                    "namespace": key.namespace,
                    "type": service.type,
                    "addresses": addresses_text(service, value).split(),
                    "ports": ports_text(service).split(),
                    "endpoints": [
                        {
                            name: getattr(entry, name)
                            for name in ("address", "pod", "node", "ready", "serving", "terminating")
                        }
                        for entry in entries
                    ],
                    "summary": endpoint_text(entries),
                }
            )
    return found


def labels_text(value: Mappings) -> str:
    """``app=web,tier=front``; without the name that every namespace has as a label."""
    labels = value["metadata"].get("labels") or {}
    return ",".join(f"{name}={text}" for name, text in labels.items() if name != NAME_LABEL) or "-"


def age_text(value: Mappings, now: float) -> str:
    """``42s``, ``7m``, ``3h``, ``2d`` since an object was made, at ``now`` (seconds since the epoch)."""
    created = value["metadata"].get("creationTimestamp")
    if not created:
        return "-"
    seconds = max(0, int(now - datetime.fromisoformat(created).timestamp()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _cells(
    key: Key, value: Mappings, endpoints: Mapping[str, Sequence[SliceEndpoint]], now: float
) -> tuple[str, ...]:
    if key.kind in {"Deployment", "ReplicaSet"}:
        return (str(value["spec"].get("replicas", 1)),)
    item = decoded(value)
    if isinstance(item, Pod):
        status = "Ending" if is_ending(value) else item.phase
        return "yes" if item.ready else "no", status, " ".join(item.ips), item.node, labels_text(value)
    if isinstance(item, Namespace | KubeNode):
        return (labels_text(value),)
    if isinstance(item, Service):
        return (
            item.type,
            addresses_text(item, value),
            ports_text(item),
            endpoint_text(endpoints.get(item.meta.key, ())),
        )
    if isinstance(item, EndpointSlice):
        ports = " ".join(f"{port.port}/{PROTOCOL_NAMES[port.protocol]}" for port in item.ports)
        return item.family.label, ports, endpoint_text(item.endpoints)
    if isinstance(item, NetworkPolicy):
        return item.pods.text, rules_text(item.ingress), rules_text(item.egress), age_text(value, now)
    if isinstance(item, ClusterNetworkPolicy):
        subject = (item.namespaces.text, "all" if item.pods is None else item.pods.text)
        sections = (rules_text(item.ingress or None), rules_text(item.egress or None))
        return item.tier.name.title(), str(item.priority), *subject, *sections, age_text(value, now)
    return ()
