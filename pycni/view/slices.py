"""EndpointSlices from Services and pods: what the Kubernetes endpoint-slice controller would write. Pure.

Life: the lab (``lab apply``) and the manifest source (without Kubernetes there is no controller) call ``derive`` for
each Service with a selector; what comes out is stored or written like slices that came from elsewhere.

The rules are the controller's (pkg/controller/endpointslice, discovery.k8s.io/v1): a pod counts when it has an
address of the slice's family and has not ended; named target ports are looked up in each pod, so pods whose numbers
differ land in different slices; ``ready`` is ready and not terminating, ``serving`` ready alone;
publishNotReadyAddresses makes everything ready. Unlike there, names and the distribution over slices follow from the
pods alone, so that the same objects give the same slices in whatever order they came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address

from pycni.model.family import Family
from pycni.model.kube import (
    EndpointSlice,
    KubeNode,
    Meta,
    Pod,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)

MAX_ENDPOINTS = 100
"""Per slice: the controller's default (--max-endpoints-per-slice)."""
MANAGER = "pycni"
"""Value of the label endpointslice.kubernetes.io/managed-by."""
SERVICE_NAME = "kubernetes.io/service-name"
HEADLESS = "service.kubernetes.io/headless"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
_ENDED = frozenset({"Succeeded", "Failed"})

_Ports = tuple[SlicePort, ...]


def derive(
    service: Service,
    pods: Iterable[Pod],
    nodes: Mapping[str, KubeNode] | None = None,
    limit: int = MAX_ENDPOINTS,
) -> tuple[EndpointSlice, ...]:
    """The slices of one Service, by family, then ports; none for a Service without selector or of type ExternalName.

    ``nodes`` (by name) tell zones. A family without any pod has one slice without endpoints, so that a consumer can
    tell "nobody" from "not known yet". ``limit``: endpoints per slice.
    """
    if not service.selector or service.type == "ExternalName":
        return ()
    chosen = sorted(
        (pod for pod in pods if _counts(service, pod)), key=lambda pod: (pod.meta.name, pod.meta.uid)
    )
    return tuple(
        item
        for family in families(service)
        for item in _of_family(service, chosen, nodes or {}, family, limit)
    )


def families(service: Service) -> tuple[Family, ...]:
    """Families a Service has slices in: spec.ipFamilies, else its addresses', else (headless) both."""
    if service.families:
        return service.families
    found = {Family.of(ip_address(ip)) for ip in service.cluster_ips if ip != "None"}
    if found:
        return tuple(sorted(found))
    return (Family.V4, Family.V6) if service.cluster_ips == ("None",) else (Family.V4,)


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether labels have every pair of a selector; an empty selector selects nothing (v1 Service)."""
    return bool(selector) and all(labels.get(name) == value for name, value in selector.items())


def _counts(service: Service, pod: Pod) -> bool:
    return (
        pod.meta.namespace == service.meta.namespace
        and pod.phase not in _ENDED
        and bool(pod.ips)
        and selects(service.selector, pod.meta.labels)
    )


def _of_family(
    service: Service, pods: Sequence[Pod], nodes: Mapping[str, KubeNode], family: Family, limit: int
) -> list[EndpointSlice]:
    groups: dict[_Ports, list[SliceEndpoint]] = {}
    for pod in pods:
        address = next((ip for ip in pod.ips if Family.of(ip_address(ip)) is family), None)
        if address is not None:
            groups.setdefault(_ports(service, pod), []).append(_endpoint(service, pod, nodes, address))
    if not groups:
        groups[_ports(service, None)] = []
    parts = [
        (ports, groups[ports][first : first + limit])
        for ports in sorted(
            groups, key=lambda ports: [(port.name, port.protocol, port.port) for port in ports]
        )
        for first in range(0, max(len(groups[ports]), 1), limit)
    ]
    return [_slice(service, family, number, ports, part) for number, (ports, part) in enumerate(parts)]


def _slice(
    service: Service, family: Family, number: int, ports: _Ports, endpoints: Sequence[SliceEndpoint]
) -> EndpointSlice:
    headless = service.cluster_ips == ("None",)
    labels = {SERVICE_NAME: service.meta.name, MANAGED_BY: MANAGER}
    if headless:
        labels[HEADLESS] = ""
    return EndpointSlice(
        meta=Meta(
            name=f"{service.meta.name}-{family.label}-{number}",
            namespace=service.meta.namespace,
            labels=labels,
        ),
        service=service.meta.key,
        family=family,
        ports=ports,
        endpoints=tuple(endpoints),
        headless=headless,
    )


def _ports(service: Service, pod: Pod | None) -> _Ports:
    """A Service's ports as one pod has them. A name the pod does not know is left out; without a pod all names are."""
    found = []
    for port in service.ports:
        number = _number(port, pod)
        if number is not None:
            found.append(SlicePort(port=number, name=port.name, protocol=port.protocol))
    return tuple(found)


def _number(port: ServicePortSpec, pod: Pod | None) -> int | None:
    if isinstance(port.target_port, int):
        return port.target_port or port.port
    for candidate in pod.ports if pod is not None else ():
        if candidate.name == port.target_port and candidate.protocol == port.protocol:
            return candidate.port
    return None


def _endpoint(service: Service, pod: Pod, nodes: Mapping[str, KubeNode], address: str) -> SliceEndpoint:
    node = nodes.get(pod.node)
    named = pod.hostname and pod.subdomain == service.meta.name
    return SliceEndpoint(
        address=address,
        ready=service.publish_not_ready or (pod.ready and not pod.meta.deleting),
        serving=pod.ready,
        terminating=pod.meta.deleting,
        node=pod.node,
        zone=node.zone if node is not None else "",
        pod=pod.meta.key,
        hostname=pod.hostname if named else "",
    )
