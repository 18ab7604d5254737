"""Who reaches which Service: what ``lab matrix`` tries besides hosts, and what the answers mean. Pure.

Life: ``plan`` turns the lab's objects into ``Try`` values: every pod and node with every ClusterIP and port, the client
outside with every node port of every node; ``survey`` asks (``ask``), ``judge`` tells whether the right pod answered.
Only what has to work is tried: Services with a ready endpoint that a lab pod's servers stand behind, and with policy
Local only where there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from pycni.lab.ask import Answer
from pycni.lab.checks import Check
from pycni.lab.objects import Key, Mappings, decoded
from pycni.lab.serve import ServedPod
from pycni.lab.topology import CLIENT, pod_name
from pycni.model.family import Family
from pycni.model.kube import (
    ENDPOINT_SLICE,
    PROTOCOL_NAMES,
    SCTP,
    SERVICE,
    EndpointSlice,
    Service,
    ServicePortSpec,
)


class Asker(NamedTuple):
    """Where questions come from."""

    name: str
    node: str
    """"" for the client outside."""
    families: tuple[Family, ...]


class Try(NamedTuple):
    """One question."""

    check: Check
    address: str
    protocol: int
    port: int
    pods: frozenset[str]
    """Who may answer, by the lab's names."""


class _Backends(NamedTuple):
    """Who is behind one port of one Service in one family: (pod, its node)."""

    pods: frozenset[tuple[str, str]]

    def on(self, node: str | None) -> frozenset[str]:
        """Pods on a node (None: on any)."""
        return frozenset(pod for pod, place in self.pods if node in {None, place})


def plan(
    objects: Mapping[Key, Mappings],
    served: Iterable[ServedPod],
    askers: Sequence[Asker],
    nodes: Mapping[str, Mapping[Family, str]],
) -> list[Try]:
    """Everything to try. ``served``: the pods that listen; ``nodes``: their addresses by node and family."""
    listening = {pod.name for pod in served}
    slices: dict[str, list[EndpointSlice]] = {}
    for key, value in objects.items():
        if key.kind == ENDPOINT_SLICE and isinstance(item := decoded(value), EndpointSlice):
            slices.setdefault(item.service, []).append(item)
    tries: list[Try] = []
    for key, value in objects.items():
        if key.kind != SERVICE or not isinstance(service := decoded(value), Service):
            continue
        for port in service.ports:
            for family in Family:
                behind = _behind(slices.get(service.meta.key, ()), port, family, listening)
                if behind.pods and port.protocol != SCTP:
                    tries += _cluster_ip(service, port, family, behind, askers)
                    places = {name: given[family] for name, given in nodes.items() if family in given}
                    if family in service.families:
                        tries += _node_port(service, port, behind, askers, places)
    return tries


def judge(item: Try, answer: Answer) -> str:
    """What is wrong, "" when one of the right pods answered."""
    line, reason = answer
    if reason:
        return f"{item.address} port {item.port}: {reason}"
    pod = line.partition(" ")[0]
    return "" if pod in item.pods else f"{item.address} port {item.port}: answered by {pod or 'nobody'}"


def _cluster_ip(
    service: Service, port: ServicePortSpec, family: Family, behind: _Backends, askers: Sequence[Asker]
) -> Iterable[Try]:
    addresses = [ip for ip in service.cluster_ips if ip != "None" and Family.of(ip_address(ip)) is family]
    for address in addresses:
        for asker in askers:
            pods = behind.on(asker.node if service.internal_local else None)
            if asker.node and pods and family in asker.families:
                check = _check(asker, service, port, family, str(port.port))
                yield Try(check, address, port.protocol, port.port, pods)


def _node_port(
    service: Service,
    port: ServicePortSpec,
    behind: _Backends,
    askers: Sequence[Asker],
    nodes: Mapping[str, str],
) -> Iterable[Try]:
    for asker in askers:
        for node, address in nodes.items():
            pods = behind.on(node if service.external_local else None)
            if asker.name == CLIENT and pods and port.node_port:
                family = Family.of(ip_address(address))
                check = _check(asker, service, port, family, f"{port.node_port} at {node}")
                yield Try(check, address, port.protocol, port.node_port, pods)


def _check(asker: Asker, service: Service, port: ServicePortSpec, family: Family, where: str) -> Check:
    return Check(asker.name, service.meta.key, family, f"{PROTOCOL_NAMES[port.protocol].lower()} {where}")


def _behind(
    slices: Iterable[EndpointSlice], port: ServicePortSpec, family: Family, listening: set[str]
) -> _Backends:
    """Ready endpoints of a port; none when one of them is nobody the lab knows: then anything may answer."""
    found = set()
    for item in slices:
        named = any((other.name, other.protocol) == (port.name, port.protocol) for other in item.ports)
        if item.family is not family or not named:
            continue
        for endpoint in item.endpoints:
            space, _slash, name = endpoint.pod.partition("/")
            pod = pod_name(space, name)
            if endpoint.ready and pod not in listening:
                return _Backends(frozenset())
            if endpoint.ready:
                found.add((pod, endpoint.node))
    return _Backends(frozenset(found))
