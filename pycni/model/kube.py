"""Kubernetes objects, cut down to the fields the data plane acts on: what ``wire/kube`` decodes and the store holds.

Store kinds are the object kinds ("Service", "EndpointSlice", "Node", "Pod", "Namespace"); keys are ``namespace/name``,
for cluster-wide objects ``name``. Addresses are canonical text (``wire/kube`` normalises them), so that equal objects
compare equal. No object refers to one that refers to it, so the cycle collector need not look at a hundred thousand of
them. Names and meanings are those of the Kubernetes API reference, v1 and discovery.k8s.io/v1.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pycni.model.family import Family

SERVICE, ENDPOINT_SLICE, NODE, POD, NAMESPACE = "Service", "EndpointSlice", "Node", "Pod", "Namespace"

TCP, UDP, SCTP = 6, 17, 132
PROTOCOLS: Mapping[str, int] = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}
"""Protocol names of the API and their numbers in IP headers."""
PROTOCOL_NAMES: Mapping[int, str] = {number: name for name, number in PROTOCOLS.items()}


class Meta(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The part of metadata that is kept."""

    name: str
    namespace: str = ""
    """"" for cluster-wide objects."""
    uid: str = ""
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    """Only those of prefixes we act on (``wire/kube.ANNOTATION_PREFIXES``)."""
    created: int = 0
    """Seconds since the epoch; 0 when unknown."""
    deleting: bool = False
    """deletionTimestamp is set."""

    @property
    def key(self) -> str:
        """Key in the store."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class ServicePortSpec(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One entry of spec.ports."""

    port: int
    name: str = ""
    protocol: int = TCP
    target_port: int | str = 0
    """Number or name of a container port; 0 when absent, which means ``port``."""
    node_port: int = 0


class Ingress(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One entry of status.loadBalancer.ingress that has an IP."""

    ip: str
    proxy: bool = False
    """ipMode Proxy: not to be intercepted."""


class Service(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """v1 Service."""

    meta: Meta
    type: str = "ClusterIP"
    cluster_ips: tuple[str, ...] = ()
    """spec.clusterIPs, else (spec.clusterIP,); ("None",) when headless, empty when not assigned yet."""
    families: tuple[Family, ...] = ()
    """spec.ipFamilies."""
    external_ips: tuple[str, ...] = ()
    ingress: tuple[Ingress, ...] = ()
    load_balancer_class: str | None = None
    load_balancer_ip: str = ""
    """Deprecated spec.loadBalancerIP: an address asked for."""
    source_ranges: tuple[str, ...] = ()
    """spec.loadBalancerSourceRanges, canonical networks."""
    ports: tuple[ServicePortSpec, ...] = ()
    selector: Mapping[str, str] = {}
    internal_local: bool = False
    """internalTrafficPolicy Local."""
    external_local: bool = False
    """externalTrafficPolicy Local."""
    affinity_s: int = 0
    """Seconds of sessionAffinity ClientIP; 0 without."""
    health_check_node_port: int = 0
    allocate_node_ports: bool = True
    publish_not_ready: bool = False
    traffic_distribution: str = ""
    """PreferClose, PreferSameZone, PreferSameNode or ""."""
    family_policy: str = "SingleStack"


class SlicePort(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One entry of an EndpointSlice's ports."""

    port: int
    """0: all ports (no number given)."""
    name: str = ""
    protocol: int = TCP


class SliceEndpoint(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One entry of an EndpointSlice's endpoints. Absent conditions are resolved as the API says (ready: true)."""

    address: str
    """The first address: consumers use that one only."""
    ready: bool = True
    serving: bool = True
    """Follows ``ready`` when absent."""
    terminating: bool = False
    node: str = ""
    zone: str = ""
    pod: str = ""
    """``namespace/name`` of targetRef when it is a pod."""
    hint_zones: tuple[str, ...] = ()
    hint_nodes: tuple[str, ...] = ()
    hostname: str = ""
    """Name in DNS below a headless service."""


class EndpointSlice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """discovery.k8s.io/v1 EndpointSlice of address type IPv4 or IPv6 (others are not kept)."""

    meta: Meta
    service: str
    """``namespace/name`` by the label kubernetes.io/service-name; "" without it."""
    family: Family
    ports: tuple[SlicePort, ...] = ()
    endpoints: tuple[SliceEndpoint, ...] = ()
    headless: bool = False
    """Label service.kubernetes.io/headless."""
    changed: float = 0.0
    """endpoints.kubernetes.io/last-change-trigger-time in seconds since the epoch; 0.0 without."""


class KubeNode(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """v1 Node."""

    meta: Meta
    pod_cidrs: tuple[str, ...] = ()
    internal_ips: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    unschedulable: bool = False
    taints: tuple[str, ...] = ()
    """Their keys."""

    @property
    def zone(self) -> str:
        """Label topology.kubernetes.io/zone."""
        return self.meta.labels.get("topology.kubernetes.io/zone", "")


class ContainerPort(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One entry of a container's ports."""

    port: int
    name: str = ""
    protocol: int = TCP
    host_port: int = 0


class Pod(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """v1 Pod."""

    meta: Meta
    node: str = ""
    ips: tuple[str, ...] = ()
    host_network: bool = False
    phase: str = ""
    ready: bool = False
    """Condition Ready is True."""
    ports: tuple[ContainerPort, ...] = ()
    grace_s: int = 30
    """terminationGracePeriodSeconds."""
    hostname: str = ""
    subdomain: str = ""
    net_admin: bool = False
    """A container of it may change the pod's network: it is privileged or has CAP_NET_ADMIN."""


class Namespace(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """v1 Namespace."""

    meta: Meta
