"""What follows from the objects of a lab: EndpointSlices, balancers' addresses, what each node has to serve. Pure.

Life: after every change ``settled`` completes the objects, as Kubernetes' controllers would; ``serving`` says which
pods listen on which ports of a node. What stays as it was keeps its trigger time, so that a trigger time tells when
endpoints really changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from pycni.ipam.pools import LABEL, allocate
from pycni.lab.objects import Key, Mappings, decoded, key_of
from pycni.lab.serve import ServedPod
from pycni.lab.state import PodRecord
from pycni.lab.topology import pod_key
from pycni.model.family import Family, Network
from pycni.model.kube import ENDPOINT_SLICE, NODE, POD, SERVICE, EndpointSlice, KubeNode, Pod, Service
from pycni.view import slices
from pycni.wire.manifest import TRIGGERED, encode_slice

LISTEN = "pycni/listen"
"""Annotation of a pod: ``off`` when nobody is to listen in it, as after a crash of its server."""


class Settled(NamedTuple):
    """The outcome."""

    objects: dict[Key, Mappings]
    problems: tuple[str, ...]
    """Services that cannot get what they ask for, one line each."""


def settled(objects: Mapping[Key, Mappings], pools: Sequence[Network], now: float) -> Settled:
    """The objects with the EndpointSlices of all Services with a selector, and with balancers' addresses.

    Slices that somebody else gave a Service are used as they are: such a Service gets none of ours. ``pools``: where
    Services of type LoadBalancer get their addresses from. ``now``: seconds since the epoch.
    """
    result = {key: value for key, value in objects.items() if not _is_ours(key, value)}
    kept = {key: value for key, value in objects.items() if key not in result}
    typed = {key: item for key, value in result.items() if (item := decoded(value)) is not None}
    given = {item.service for item in typed.values() if isinstance(item, EndpointSlice)}
    pods = [item for item in typed.values() if isinstance(item, Pod)]
    nodes = {key.name: item for key, item in typed.items() if key.kind == NODE and isinstance(item, KubeNode)}
    for item in typed.values():
        if isinstance(item, Service) and item.meta.key not in given:
            for derived in slices.derive(item, pods, nodes):
                value = _dated(derived, kept, now)
                result[key_of(value)] = value
    problems = _balance(result, pools)
    return Settled(dict(sorted(result.items())), problems)


def _balance(objects: dict[Key, Mappings], pools: Sequence[Network]) -> tuple[str, ...]:
    """Give Services of type LoadBalancer their addresses, take them from others. Returns what cannot be."""
    services = {
        item.meta.key: item
        for key, value in objects.items()
        if key.kind == SERVICE and isinstance(item := decoded(value), Service)
    }
    found = allocate(services, pools)
    for name, service in services.items():
        key = Key(SERVICE, *name.split("/"))
        wanted = found.ingress.get(name, () if service.type != LABEL else service.ingress)
        if wanted == service.ingress:
            continue
        entries = [{"ip": entry.ip, "ipMode": "Proxy" if entry.proxy else "VIP"} for entry in wanted]
        objects[key] = {**objects[key], "status": {"loadBalancer": {"ingress": entries}}}
    return found.problems


def pending(pod: Mappings, node: str) -> Mappings:
    """A pod that is about to be made on a node."""
    return {
        **pod,
        "spec": {**(pod.get("spec") or {}), "nodeName": node},
        "status": {"phase": "Pending"},
    }


def is_pending(value: Mappings) -> bool:
    """Whether an object is a pod that has not been made yet."""
    return value["kind"] == POD and (value.get("status") or {}).get("phase") == "Pending"


def with_status(pod: Mappings, record: PodRecord, *, ready: bool, created: str) -> Mappings:
    """A pod as it is after its ADD."""
    return {
        **pod,
        "metadata": {**pod["metadata"], "uid": record.container_id, "creationTimestamp": created},
        "spec": {**(pod.get("spec") or {}), "nodeName": record.node},
        "status": {
            "phase": "Running",
            **({"podIP": record.ips[0]} if record.ips else {}),
            "podIPs": [{"ip": ip} for ip in record.ips],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def bare(name: str) -> Mappings:
    """The manifest of a pod by the lab's name for it, as ``lab up`` and ``lab pod add`` make them."""
    space, pod = pod_key(name)
    return {
        "apiVersion": "v1",
        "kind": POD,
        "metadata": {"name": pod, "namespace": space, "labels": {"pod": pod}},
        "spec": {"containers": [{"name": "pod"}]},
    }


def with_ready(pod: Mappings, *, ready: bool, listen: bool | None) -> Mappings:
    """A pod whose readiness (and, unless None, whose listening) is another."""
    meta = dict(pod["metadata"])
    if listen is not None:
        notes = {name: text for name, text in (meta.get("annotations") or {}).items() if name != LISTEN}
        meta["annotations"] = notes if listen else {**notes, LISTEN: "off"}
    status = {**pod["status"], "conditions": [{"type": "Ready", "status": str(ready)}]}
    return {**pod, "metadata": meta, "status": status}


def ending(pod: Mappings, when: str, grace_s: float) -> Mappings:
    """A pod that is being deleted. It stays as it is when it is that already."""
    if pod["metadata"].get("deletionTimestamp"):
        return pod
    meta = {**pod["metadata"], "deletionTimestamp": when, "deletionGracePeriodSeconds": grace_s}
    return {**pod, "metadata": meta}


def serving(
    node: str, objects: Mapping[Key, Mappings], records: Sequence[PodRecord], families: Sequence[Family]
) -> tuple[ServedPod, ...]:
    """The pods of one node that have something to listen on."""
    ids = {record.name: record for record in records if record.node == node}
    found = []
    for name in sorted(ids):
        value = objects.get(Key(POD, *pod_key(name)))
        if value is None or (value["metadata"].get("annotations") or {}).get(LISTEN) == "off":
            continue
        pod = decoded(value)
        if isinstance(pod, Pod) and pod.ports:
            found.append(
                ServedPod(
                    name=name,
                    id=ids[name].container_id,
                    namespace=ids[name].namespace,
                    ports=tuple(sorted({(port.protocol, port.port) for port in pod.ports})),
                    families=tuple(int(family) for family in families),
                )
            )
    return tuple(found)


def _is_ours(key: Key, value: Mappings) -> bool:
    labels = value["metadata"].get("labels") or {}
    return key.kind == ENDPOINT_SLICE and labels.get(slices.MANAGED_BY) == slices.MANAGER


def _dated(item: EndpointSlice, kept: Mapping[Key, Mappings], now: float) -> Mappings:
    """The slice's mapping: the one there is when it says the same, else a new one of now."""
    value = encode_slice(item)
    before = kept.get(key_of(value))
    if before is not None:
        meta = {name: text for name, text in before["metadata"].items() if name != "annotations"}
        if {**before, "metadata": meta} == value and TRIGGERED in before["metadata"].get("annotations", {}):
            return before
    return encode_slice(msgspec.structs.replace(item, changed=now))
