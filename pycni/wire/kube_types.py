"""The Kubernetes API's JSON, cut down to the fields the data plane acts on.

Life: ``wire/kube`` decodes bytes into these structs and ``wire/kube_convert`` turns them into ``model/kube`` at once;
nobody else sees them. Every field may be absent or null, as Go writes empty lists, maps and pointers. Unknown fields
are skipped without being built, which is what makes a listing of 10,000 objects cheap.

Names are those of the API reference (v1, discovery.k8s.io/v1) in snake case; where camel case does not lead back to
the API's spelling, the name is written out.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import field


class Wire(msgspec.Struct, kw_only=True, gc=False, rename="camel"):
    """Base of what is decoded. Short-lived trees without cycles: the collector need not look at them."""


class WireMeta(Wire):
    """ObjectMeta."""

    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    labels: dict[str, str | None] | None = None
    annotations: dict[str, str | None] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class WireServicePort(Wire):
    """ServicePort."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    target_port: int | str | None = None
    node_port: int | None = None


class WireClientIp(Wire):
    """ClientIPConfig."""

    timeout_seconds: int | None = None


class WireAffinity(Wire):
    """SessionAffinityConfig."""

    client_ip: WireClientIp | None = field(default=None, name="clientIP")


class WireServiceSpec(Wire):
    """ServiceSpec."""

    type: str | None = None
    cluster_ip: str | None = field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    ip_families: list[str] | None = None
    ip_family_policy: str | None = None
    external_ips: list[str] | None = field(default=None, name="externalIPs")
    load_balancer_ip: str | None = field(default=None, name="loadBalancerIP")
    load_balancer_class: str | None = None
    load_balancer_source_ranges: list[str] | None = None
    ports: list[WireServicePort] | None = None
    selector: dict[str, str | None] | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    session_affinity: str | None = None
    session_affinity_config: WireAffinity | None = None
    health_check_node_port: int | None = None
    allocate_load_balancer_node_ports: bool | None = None
    publish_not_ready_addresses: bool | None = None
    traffic_distribution: str | None = None


class WireIngress(Wire):
    """LoadBalancerIngress."""

    ip: str | None = None
    ip_mode: str | None = None


class WireLoadBalancer(Wire):
    """LoadBalancerStatus."""

    ingress: list[WireIngress] | None = None


class WireServiceStatus(Wire):
    """ServiceStatus."""

    load_balancer: WireLoadBalancer | None = None


class WireService(Wire):
    """v1 Service."""

    metadata: WireMeta | None = None
    spec: WireServiceSpec | None = None
    status: WireServiceStatus | None = None


class WireConditions(Wire):
    """EndpointConditions."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class WireReference(Wire):
    """ObjectReference."""

    kind: str | None = None
    namespace: str | None = None
    name: str | None = None


class WireNamed(Wire):
    """ForZone, ForNode."""

    name: str | None = None


class WireHints(Wire):
    """EndpointHints."""

    for_zones: list[WireNamed] | None = None
    for_nodes: list[WireNamed] | None = None


class WireEndpoint(Wire):
    """Endpoint of discovery.k8s.io/v1."""

    addresses: list[str] | None = None
    conditions: WireConditions | None = None
    target_ref: WireReference | None = None
    node_name: str | None = None
    zone: str | None = None
    hostname: str | None = None
    hints: WireHints | None = None


class WireSlicePort(Wire):
    """EndpointPort of discovery.k8s.io/v1."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class WireSlice(Wire):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: WireMeta | None = None
    address_type: str | None = None
    endpoints: list[WireEndpoint] | None = None
    ports: list[WireSlicePort] | None = None


class WireTaint(Wire):
    """Taint."""

    key: str | None = None


class WireNodeSpec(Wire):
    """NodeSpec."""

    pod_cidr: str | None = field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = field(default=None, name="podCIDRs")
    unschedulable: bool | None = None
    taints: list[WireTaint] | None = None


class WireNodeAddress(Wire):
    """NodeAddress."""

    type: str | None = None
    address: str | None = None


class WireNodeStatus(Wire):
    """NodeStatus."""

    addresses: list[WireNodeAddress] | None = None


class WireNode(Wire):
    """v1 Node."""

    metadata: WireMeta | None = None
    spec: WireNodeSpec | None = None
    status: WireNodeStatus | None = None


class WireContainerPort(Wire):
    """ContainerPort."""

    name: str | None = None
    protocol: str | None = None
    container_port: int | None = None
    host_port: int | None = None


class WireCapabilities(Wire):
    """Capabilities."""

    add: list[str] | None = None


class WireSecurityContext(Wire):
    """SecurityContext of a container."""

    privileged: bool | None = None
    capabilities: WireCapabilities | None = None


class WireContainer(Wire):
    """Container."""

    ports: list[WireContainerPort] | None = None
    restart_policy: str | None = None
    security_context: WireSecurityContext | None = None


class WirePodSpec(Wire):
    """PodSpec."""

    node_name: str | None = None
    host_network: bool | None = None
    hostname: str | None = None
    subdomain: str | None = None
    termination_grace_period_seconds: int | None = None
    containers: list[WireContainer] | None = None
    init_containers: list[WireContainer] | None = None
    ephemeral_containers: list[WireContainer] | None = None


class WirePodIp(Wire):
    """PodIP."""

    ip: str | None = None


class WireCondition(Wire):
    """PodCondition."""

    type: str | None = None
    status: str | None = None


class WirePodStatus(Wire):
    """PodStatus."""

    phase: str | None = None
    pod_ip: str | None = field(default=None, name="podIP")
    pod_ips: list[WirePodIp] | None = field(default=None, name="podIPs")
    conditions: list[WireCondition] | None = None


class WirePod(Wire):
    """v1 Pod."""

    metadata: WireMeta | None = None
    spec: WirePodSpec | None = None
    status: WirePodStatus | None = None


class WireNamespace(Wire):
    """v1 Namespace."""

    metadata: WireMeta | None = None


WireObject: TypeAlias = WireService | WireSlice | WireNode | WirePod | WireNamespace


class WireName(Wire):
    """The part of ObjectMeta that names an object: readable where others (labels ...) are of the wrong type."""

    name: str | None = None
    namespace: str | None = None
    resource_version: str | None = None


class WireHead(Wire):
    """What says which object it is."""

    api_version: str | None = None
    kind: str | None = None
    metadata: WireName | None = None


class WireListMeta(Wire):
    """ListMeta."""

    resource_version: str | None = None
    continue_: str | None = field(default=None, name="continue")


class WireStatusDetails(Wire):
    """StatusDetails."""

    retry_after_seconds: int | None = None


class WireStatus(Wire):
    """v1 Status: what the API says instead of an object."""

    kind: str | None = None
    code: int | None = None
    reason: str | None = None
    message: str | None = None
    details: WireStatusDetails | None = None


class WireEvent(Wire):
    """WatchEvent."""

    type: str | None = None
    object: msgspec.Raw = msgspec.Raw(b"null")
