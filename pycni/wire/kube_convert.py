"""From the API's structs to ours: addresses canonical, absent values resolved as the API says, nonsense refused.

Life: ``wire/kube`` calls ``CONVERTERS[kind]`` with what it decoded. A converter raises ConfigError naming object, field
and value; it returns None for an object that is valid and of no concern to a data plane (an FQDN slice). Nothing here
judges what only *looks* odd to us: validation is the API server's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from pycni.errors import ConfigError
from pycni.model.family import Family
from pycni.model.kube import (
    ENDPOINT_SLICE,
    NAMESPACE,
    NODE,
    POD,
    SERVICE,
    ContainerPort,
    EndpointSlice,
    Ingress,
    KubeNode,
    Meta,
    Namespace,
    Pod,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from pycni.model.policy import CLUSTER_NETWORK_POLICY, ClusterNetworkPolicy, NetworkPolicy
from pycni.wire import kube_values as read
from pycni.wire.kube_flannel import NAMES
from pycni.wire.kube_types import (
    WireEndpoint,
    WireMeta,
    WireName,
    WireNamed,
    WireNamespace,
    WireNode,
    WireNodeSpec,
    WireNodeStatus,
    WirePod,
    WirePodSpec,
    WirePodStatus,
    WireSecurityContext,
    WireService,
    WireServicePort,
    WireServiceSpec,
    WireSlice,
)

KubeObject: TypeAlias = (
    Service | EndpointSlice | KubeNode | Pod | Namespace | NetworkPolicy | ClusterNetworkPolicy
)

ANNOTATION_PREFIXES = ("kube-router.io/", "flannel.alpha.coreos.com/", "service.kubernetes.io/", "pycni/")
"""Annotations that are kept; all others (kubectl's last-applied-configuration ...) cost no memory.

``endpoints.kubernetes.io/last-change-trigger-time`` becomes ``EndpointSlice.changed``. Of nodes those with flannel's
names are kept under whatever prefix: it can be chosen (kube-annotation-prefix).
"""
CLUSTER_WIDE = frozenset({NODE, NAMESPACE, CLUSTER_NETWORK_POLICY})
"""Kinds without namespaces."""
DEFAULT_AFFINITY_S = 10800
LONGEST_AFFINITY_S = 86400

_SLICE_SERVICE = "kubernetes.io/service-name"
_SLICE_HEADLESS = "service.kubernetes.io/headless"
_TRIGGERED = "endpoints.kubernetes.io/last-change-trigger-time"
_FAMILIES = {"IPv4": Family.V4, "IPv6": Family.V6}


def object_name(kind: str, meta: WireMeta | WireName | None) -> str:
    """``Service default/web``, as errors name an object."""
    if meta is None or not meta.name:
        return kind
    space = "" if kind in CLUSTER_WIDE else f"{meta.namespace or 'default'}/"
    return f"{kind} {space}{meta.name}"[:300]


def object_key(kind: str, meta: WireMeta | WireName | None) -> str:
    """Key in the store; "" for an object without a name."""
    if meta is None or not meta.name:
        return ""
    return meta.name if kind in CLUSTER_WIDE else f"{meta.namespace or 'default'}/{meta.name}"


def service(wire: WireService) -> Service:
    """v1 Service."""
    meta = meta_of(SERVICE, wire.metadata)
    obj = f"{SERVICE} {meta.key}"
    spec = wire.spec or WireServiceSpec()
    balancer = wire.status.load_balancer if wire.status is not None else None
    cluster_ips = _cluster_ips(obj, spec)
    wanted = spec.load_balancer_ip
    return Service(
        meta=meta,
        type=sys.intern(spec.type or "ClusterIP"),
        cluster_ips=cluster_ips,
        families=_families(obj, spec.ip_families, cluster_ips),
        external_ips=read.addresses(obj, "spec.externalIPs", spec.external_ips),
        ingress=tuple(
            Ingress(
                ip=read.address(obj, "status.loadBalancer.ingress.ip", entry.ip),
                proxy=entry.ip_mode == "Proxy",
            )
            for entry in (balancer.ingress if balancer is not None else None) or ()
            if entry.ip
        ),
        load_balancer_class=spec.load_balancer_class,
        load_balancer_ip=read.address(obj, "spec.loadBalancerIP", wanted) if wanted else "",
        source_ranges=read.networks(obj, "spec.loadBalancerSourceRanges", spec.load_balancer_source_ranges),
        ports=tuple(_service_port(obj, index, port) for index, port in enumerate(spec.ports or ())),
        selector=read.texts(spec.selector),
        internal_local=spec.internal_traffic_policy == "Local",
        external_local=spec.external_traffic_policy == "Local",
        affinity_s=_affinity(obj, spec),
        health_check_node_port=read.number(
            obj, "spec.healthCheckNodePort", spec.health_check_node_port, 0, 65535
        ),
        allocate_node_ports=spec.allocate_load_balancer_node_ports is not False,
        publish_not_ready=spec.publish_not_ready_addresses is True,
        traffic_distribution=spec.traffic_distribution or "",
        family_policy=spec.ip_family_policy or "SingleStack",
    )


def endpoint_slice(wire: WireSlice) -> EndpointSlice | None:
    """discovery.k8s.io/v1 EndpointSlice; None for address types that are no addresses (FQDN)."""
    labels = (wire.metadata.labels if wire.metadata is not None else None) or {}
    meta = meta_of(
        ENDPOINT_SLICE, wire.metadata, {key: labels[key] for key in labels if "kubernetes.io/" in key}
    )
    obj = f"{ENDPOINT_SLICE} {meta.key}"
    family = _FAMILIES.get(wire.address_type or "")
    if family is None:
        if wire.address_type == "FQDN":
            return None
        raise ConfigError(obj, "addressType", wire.address_type, "expected IPv4, IPv6 or FQDN")
    owner = labels.get(_SLICE_SERVICE)
    annotations = (wire.metadata.annotations if wire.metadata is not None else None) or {}
    return EndpointSlice(
        meta=meta,
        service=f"{meta.namespace}/{owner}" if owner else "",
        family=family,
        ports=tuple(
            SlicePort(
                port=read.number(obj, f"ports[{index}].port", port.port, 0, 65535),
                name=sys.intern(port.name or ""),
                protocol=read.protocol(obj, f"ports[{index}].protocol", port.protocol),
            )
            for index, port in enumerate(wire.ports or ())
        ),
        endpoints=tuple(
            _slice_endpoint(obj, family, meta.namespace, entry)
            for entry in wire.endpoints or ()
            if entry.addresses
        ),
        headless=_SLICE_HEADLESS in labels,
        changed=read.seconds(annotations.get(_TRIGGERED)),
    )


def node(wire: WireNode) -> KubeNode:
    """v1 Node."""
    meta = meta_of(NODE, wire.metadata)
    obj = f"{NODE} {meta.key}"
    spec = wire.spec or WireNodeSpec()
    status = wire.status or WireNodeStatus()
    ranges = spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else None)

    def addresses(kind: str) -> tuple[str, ...]:
        found = [entry.address for entry in status.addresses or () if entry.type == kind and entry.address]
        return read.addresses(obj, f"status.addresses.{kind}", found)

    return KubeNode(
        meta=meta,
        pod_cidrs=read.networks(obj, "spec.podCIDRs", ranges),
        internal_ips=addresses("InternalIP"),
        external_ips=addresses("ExternalIP"),
        unschedulable=bool(spec.unschedulable),
        taints=tuple(taint.key for taint in spec.taints or () if taint.key),
    )


def pod(wire: WirePod) -> Pod:
    """v1 Pod. Ports are those of its containers and of its sidecars (init containers that stay)."""
    meta = meta_of(POD, wire.metadata)
    obj = f"{POD} {meta.key}"
    spec = wire.spec or WirePodSpec()
    status = wire.status or WirePodStatus()
    ips = [entry.ip for entry in status.pod_ips or () if entry.ip] or (
        [status.pod_ip] if status.pod_ip else None
    )
    grace_s = spec.termination_grace_period_seconds
    return Pod(
        meta=meta,
        node=sys.intern(spec.node_name or ""),
        ips=read.addresses(obj, "status.podIPs", ips),
        host_network=spec.host_network is True,
        phase=sys.intern(status.phase or ""),
        ready=any(each.type == "Ready" and each.status == "True" for each in status.conditions or ()),
        ports=_container_ports(obj, spec),
        grace_s=30 if grace_s is None else max(grace_s, 0),
        hostname=spec.hostname or "",
        subdomain=spec.subdomain or "",
        net_admin=any(
            _may_change_network(container.security_context)
            for some in (spec.containers, spec.init_containers, spec.ephemeral_containers)
            for container in some or ()
        ),
    )


def _container_ports(obj: str, spec: WirePodSpec) -> tuple[ContainerPort, ...]:
    """Of containers and of sidecars. Equal ones are one object: pods of a workload have the same."""
    sidecars = [each for each in spec.init_containers or () if each.restart_policy == "Always"]
    found = tuple(
        ContainerPort(
            port=read.number(obj, "spec.containers.ports.containerPort", port.container_port, 1, 65535),
            name=sys.intern(port.name or ""),
            protocol=read.protocol(obj, "spec.containers.ports.protocol", port.protocol),
            host_port=read.number(obj, "spec.containers.ports.hostPort", port.host_port, 0, 65535),
        )
        for container in [*(spec.containers or ()), *sidecars]
        for port in container.ports or ()
    )
    return _one_of(found) if found else ()


@lru_cache(maxsize=1024)
def _one_of(ports: tuple[ContainerPort, ...]) -> tuple[ContainerPort, ...]:
    return ports


_OVER_NETWORK = frozenset({"ALL", "NET_ADMIN", "SYS_ADMIN", "SYS_MODULE", "BPF"})
"""Capabilities by which a process changes its network, or gets what does. The API wants them without ``CAP_``."""


def _may_change_network(context: WireSecurityContext | None) -> bool:
    if context is None:
        return False
    added = context.capabilities.add if context.capabilities is not None else None
    return context.privileged is True or any(
        name.upper().removeprefix("CAP_") in _OVER_NETWORK for name in added or ()
    )


def namespace(wire: WireNamespace) -> Namespace:
    """v1 Namespace."""
    return Namespace(meta=meta_of(NAMESPACE, wire.metadata))


CONVERTERS: Mapping[str, Callable[[Any], KubeObject | None]] = {
    SERVICE: service,
    ENDPOINT_SLICE: endpoint_slice,
    NODE: node,
    POD: pod,
    NAMESPACE: namespace,
}
"""By kind: from the struct of ``kube_types`` to the one of ``model/kube``."""


def meta_of(kind: str, wire: WireMeta | None, labels: Mapping[str, str | None] | None = None) -> Meta:
    """The part of metadata that is kept. ``labels`` replaces the object's."""
    if wire is None or not wire.name or "/" in wire.name:
        found = None if wire is None else wire.name
        raise ConfigError(kind, "metadata.name", found, "expected a name")
    space = "" if kind in CLUSTER_WIDE else (wire.namespace or "default")
    if "/" in space:
        raise ConfigError(f"{kind} {wire.name}", "metadata.namespace", space, "expected a name")
    annotations = read.NOTHING
    if wire.annotations:
        suffixes = NAMES if kind == NODE else ()
        kept = {
            key: value or ""
            for key, value in wire.annotations.items()
            if key.startswith(ANNOTATION_PREFIXES) or key.endswith(suffixes)
        }
        annotations = kept or read.NOTHING
    return Meta(
        name=wire.name,
        namespace=sys.intern(space),
        uid=wire.uid or "",
        labels=read.texts(wire.labels if labels is None else labels),
        annotations=annotations,
        created=int(read.seconds(wire.creation_timestamp)),
        deleting=wire.deletion_timestamp is not None,
    )


def _service_port(obj: str, index: int, wire: WireServicePort) -> ServicePortSpec:
    path = f"spec.ports[{index}]"
    target = wire.target_port
    if isinstance(target, int):
        target = read.number(obj, f"{path}.targetPort", target, 0, 65535)
    elif target is not None and target.isascii() and target.isdigit():
        # A number in quotes: the API takes it for a name, and no port has such a name.
        target = read.number(obj, f"{path}.targetPort", int(target[:9]), 0, 65535)
    return ServicePortSpec(
        port=read.number(obj, f"{path}.port", wire.port, 1, 65535),
        name=sys.intern(wire.name or ""),
        protocol=read.protocol(obj, f"{path}.protocol", wire.protocol),
        target_port=target or 0,
        node_port=read.number(obj, f"{path}.nodePort", wire.node_port, 0, 65535),
    )


def _slice_endpoint(obj: str, family: Family, space: str, wire: WireEndpoint) -> SliceEndpoint:
    assert wire.addresses, "the caller looks"
    conditions, target, hints = wire.conditions, wire.target_ref, wire.hints
    ready = conditions is None or conditions.ready is not False
    serving = ready if conditions is None or conditions.serving is None else conditions.serving
    return SliceEndpoint(
        address=read.address(obj, "endpoints.addresses", wire.addresses[0], family),
        ready=ready,
        serving=serving,
        terminating=conditions is not None and conditions.terminating is True,
        node=sys.intern(wire.node_name or ""),
        zone=sys.intern(wire.zone or ""),
        pod=f"{target.namespace or space}/{target.name}"
        if target is not None and target.kind == "Pod" and target.name
        else "",
        hint_zones=_names(hints.for_zones) if hints is not None else (),
        hint_nodes=_names(hints.for_nodes) if hints is not None else (),
        hostname=wire.hostname or "",
    )


def _names(found: Sequence[WireNamed] | None) -> tuple[str, ...]:
    return tuple(sys.intern(entry.name) for entry in found or () if entry.name)


def _cluster_ips(obj: str, spec: WireServiceSpec) -> tuple[str, ...]:
    if spec.type == "ExternalName":
        return ()
    found = [ip for ip in spec.cluster_ips or () if ip] or ([spec.cluster_ip] if spec.cluster_ip else [])
    if "None" in found:
        return ("None",)
    return read.addresses(obj, "spec.clusterIPs", found)


def _families(obj: str, found: Sequence[str] | None, cluster_ips: Sequence[str]) -> tuple[Family, ...]:
    """spec.ipFamilies; where it is missing, the families of the addresses."""
    if not found:
        return tuple(Family.V6 if ":" in ip else Family.V4 for ip in cluster_ips if ip != "None")
    for name in found:
        if name not in _FAMILIES:
            raise ConfigError(obj, "spec.ipFamilies", name, "expected IPv4 or IPv6")
    return tuple(_FAMILIES[name] for name in found)


def _affinity(obj: str, spec: WireServiceSpec) -> int:
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    client = config.client_ip if config is not None else None
    seconds = client.timeout_seconds if client is not None else None
    if seconds is None:
        return DEFAULT_AFFINITY_S
    path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
    return read.number(obj, path, seconds, 1, LONGEST_AFFINITY_S)
