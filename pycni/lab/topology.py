"""What a lab consists of, computed from its specification. Pure.

Life: ``lab up`` turns its flags into a ``LabSpec``; everything else (namespaces, addresses of the underlay, the
net-conf for etcd) follows from it, so that a second process needs only the recorded specification to find its way.
A lab's namespaces are called ``pycni-<lab>-<role>``; ``parse_namespace`` is what finds them again when every record
of the lab is lost.

The underlay is one Ethernet segment::

    pycni-<lab>-fabric   bridge br0   172.20.255.254/16  fd20::ffff/64   etcd
    pycni-<lab>-client   eth0         172.20.255.253/16  fd20::fffe/64   with services: somebody outside the cluster
    pycni-<lab>-node<i>  eth0         172.20.0.<i>/16    fd20::<i>/64    pycnid
    pycni-<lab>-pod.<p>  eth0         from the node's lease

A pod of Kubernetes' namespace "default" is called as it is, one of another namespace ``<pod>.<namespace>``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_network
from typing import Any, NamedTuple

import msgspec

from pycni.errors import ConfigError, PycniError
from pycni.lab import attachments, backends
from pycni.model.family import Family, Network
from pycni.wire.netconf import decode_netconf

DRIVERS = ("netns", "uml")
"""What nodes are: namespaces of this kernel, or User-Mode Linux guests with one of their own each."""
MAX_NODES = 100
"""An agent takes about 50 MB, and each node knows each other."""
ETCD_PORT = 2379
HEALTH_PORT = 10246
"""Of the agent; 10256 is where load balancers ask the proxy."""
ETCD_PREFIX = "/coreos.com/network"
PROXIES = ("none", "auto", "nftables", "ipvs", "ebpf")
"""Data planes of services; without one the lab has no Services, no DNS and no outside client."""
BGP_ENGINES = ("none", "exabgp", "bird")
POLICIES = ("none", "nftables", "ebpf")
"""Data planes of network policies."""
DEFAULT_PROXY = {"netns": "nftables", "uml": "ipvs"}
"""By driver, where nothing is said."""
POD_NETWORKS: Mapping[Family, Network] = {
    Family.V4: ip_network("10.244.0.0/16"),
    Family.V6: ip_network("fd00:10:244::/48"),
}
SERVICE_NETWORKS: Mapping[Family, Network] = {
    Family.V4: ip_network("10.96.0.0/16"),
    Family.V6: ip_network("fd00:10:96::/112"),
}
"""ClusterIPs. No pod, node or balancer has an address in here."""
BALANCER_NETWORKS: Mapping[Family, Network] = {
    Family.V4: ip_network("10.98.0.0/24"),
    Family.V6: ip_network("fd00:10:98::/120"),
}
"""Addresses of Services of type LoadBalancer."""
EXTERNAL_NETWORKS: Mapping[Family, Network] = {
    Family.V4: ip_network("10.99.0.0/24"),
    Family.V6: ip_network("fd00:10:99::/120"),
}
"""spec.externalIPs that nodes accept."""
NODE_PORTS = range(30000, 32768)
DNS_HOST = 10
"""The DNS service is the tenth address of each service network."""
DNS_DOMAIN = "cluster.local"
FABRIC, CLIENT = "fabric", "client"
MANIFESTS = "manifests"
"""The folder below the lab's that every agent watches."""

_LAB_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_POD_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})?")
_NODE_NAME = re.compile(r"node[0-9]+")
_NAMESPACE = re.compile(rf"pycni-({_LAB_NAME.pattern})-(fabric|client|node[0-9]+|pod\.{_POD_NAME.pattern})")


class LabError(PycniError):
    """A lab command cannot be done. ``usage`` is true when the command itself was wrong (exit code 2, else 1)."""

    def __init__(self, message: str, *, usage: bool = False) -> None:
        self.usage = usage
        super().__init__(message)


class LabSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of ``lab up``."""

    name: str = "default"
    nodes: int = 3
    backend: str = "vxlan"
    backend_conf: Mapping[str, Any] = {}
    """Further keys of ``Backend`` in the network's configuration."""
    follow_backend: bool = False
    """Whether agents take another backend at once, or when they are restarted (``lab backend``)."""
    family: str = "ipv4"
    """``ipv4``, ``ipv6`` or ``dual``, for the underlay and the pod network alike."""
    pods: int = 2
    """Pods per node made by ``lab up``."""
    mtu: int = 1500
    """Underlay MTU in bytes."""
    chain: tuple[str, ...] = ()
    """Types of reference plugins that follow ours in the conflist."""
    driver: str = "netns"
    """What makes its nodes: one of ``DRIVERS``."""
    proxy: str = "none"
    """Data plane of services: one of ``PROXIES``."""
    policy: str = "none"
    """Data plane of network policies: one of ``POLICIES``."""
    attach: str = "bridge"
    """How pods are joined to their nodes: one of ``attachments.ATTACHMENTS``."""
    bgp: str = "none"
    """Engine by which nodes announce pods and services to each other and to a router in the client's namespace."""
    trace_tls: bool = False
    """Whether agents listen for traces over each other's nodes, with certificates of the lab's own."""

    @property
    def has_client(self) -> bool:
        """Whether there is somebody outside the cluster."""
        return self.proxy != "none" or self.bgp != "none"

    @property
    def families(self) -> tuple[Family, ...]:
        """The enabled families, IPv4 first."""
        if self.family == "dual":
            return (Family.V4, Family.V6)
        return (Family.V4,) if self.family == "ipv4" else (Family.V6,)


class PodNamespace(NamedTuple):
    """A namespace's name taken apart."""

    lab: str
    role: str
    """``fabric``, ``client``, ``node<i>`` or ``pod.<name>``."""


def check_spec(spec: LabSpec) -> LabSpec:
    """Refuse what cannot be built, naming the flag and its value."""
    check_lab_name(spec.name)
    if problem := attachments.problem(spec) or backends.problem(spec):
        raise LabError(problem, usage=True)
    if spec.driver not in DRIVERS:
        raise LabError(f"--driver {spec.driver!r}: not one of {', '.join(DRIVERS)}", usage=True)
    if spec.proxy not in PROXIES:
        raise LabError(f"--proxy {spec.proxy!r}: not one of {', '.join(PROXIES)}", usage=True)
    if spec.driver == "uml" and spec.proxy == "nftables":
        raise LabError("--proxy 'nftables': the guests' kernel has no nftables for IP; take ipvs", usage=True)
    if spec.policy not in POLICIES:
        raise LabError(f"--policy {spec.policy!r}: not one of {', '.join(POLICIES)}", usage=True)
    if spec.driver == "uml" and spec.policy != "none":
        raise LabError(f"--policy {spec.policy!r}: the guests' kernel has no nftables for IP", usage=True)
    if spec.bgp not in BGP_ENGINES:
        raise LabError(f"--bgp {spec.bgp!r}: not one of {', '.join(BGP_ENGINES)}", usage=True)
    if spec.driver == "uml" and spec.bgp != "none":
        raise LabError("--bgp: the guests have no BIRD", usage=True)
    if not 1 <= spec.nodes <= MAX_NODES:
        raise LabError(f"--nodes {spec.nodes}: must be 1 to {MAX_NODES}", usage=True)
    if not 0 <= spec.pods <= 250:
        raise LabError(f"--pods {spec.pods}: must be 0 to 250 pods per node", usage=True)
    try:
        decode_netconf(net_conf(spec).encode())
    except ConfigError as exc:
        raise LabError(f"--backend-conf: {exc}", usage=True) from exc
    return spec


def check_lab_name(name: str) -> str:
    """Lab names become part of namespace names."""
    if not _LAB_NAME.fullmatch(name):
        raise LabError(
            f"--name {name!r}: lower-case letters, digits and inner dashes only, 30 characters at most",
            usage=True,
        )
    return name


def check_pod_name(name: str) -> str:
    """Pods and nodes share the names that ``lab exec`` understands, so a pod cannot be called like a node."""
    if not _POD_NAME.fullmatch(name):
        raise LabError(
            f"pod name {name!r}: POD or POD.NAMESPACE, each of lower-case letters, digits and inner dashes, "
            "63 characters at most",
            usage=True,
        )
    if name in {FABRIC, CLIENT} or _NODE_NAME.fullmatch(name):
        raise LabError(f"pod name {name!r}: is kept for the lab's own namespaces", usage=True)
    return name


def node_name(index: int) -> str:
    """Nodes are numbered from 1."""
    return f"node{index}"


def node_index(name: str) -> int:
    """The number in a node's name."""
    return int(name.removeprefix("node"))


def fabric_namespace(lab: str) -> str:
    """Namespace of the bridge between the nodes and of etcd."""
    return f"pycni-{lab}-fabric"


def client_namespace(lab: str) -> str:
    """Namespace of the client outside the cluster."""
    return f"pycni-{lab}-client"


def node_namespace(lab: str, node: str) -> str:
    """Namespace of a node."""
    return f"pycni-{lab}-{node}"


def pod_namespace(lab: str, pod: str) -> str:
    """Namespace of a pod."""
    return f"pycni-{lab}-pod.{pod}"


def pod_name(namespace: str, name: str) -> str:
    """What the lab calls a pod of Kubernetes' namespace."""
    return name if namespace == "default" else f"{name}.{namespace}"


def pod_key(name: str) -> tuple[str, str]:
    """Kubernetes' namespace and name of a pod of the lab."""
    pod, _dot, namespace = name.partition(".")
    return namespace or "default", pod


def parse_namespace(name: str) -> PodNamespace | None:
    """Lab and role of a namespace's name, None for a foreign one.

    Unambiguous although lab names contain dashes: the role is what follows the last dash that can begin one, and a
    dot occurs only in a pod's role.
    """
    match = _NAMESPACE.fullmatch(name)
    return PodNamespace(match[1], match[3]) if match else None


def underlay_address(family: Family, index: int) -> IPv4Interface | IPv6Interface:
    """Address of node ``index`` on the underlay; index 0 is the fabric itself."""
    if family is Family.V4:
        host = IPv4Address("172.20.255.254") if index == 0 else IPv4Address("172.20.0.0") + index
        return IPv4Interface((host, 16))
    host6 = IPv6Address("fd20::ffff") if index == 0 else IPv6Address(f"fd20::{index}")
    return IPv6Interface((host6, 64))


def client_address(family: Family) -> IPv4Interface | IPv6Interface:
    """Address of the client outside the cluster."""
    fabric = underlay_address(family, 0)
    return type(fabric)((fabric.ip - 1, fabric.network.prefixlen))


def dns_addresses(spec: LabSpec) -> tuple[str, ...]:
    """ClusterIPs of the DNS service."""
    return tuple(str(SERVICE_NETWORKS[family][DNS_HOST]) for family in spec.families)


def component_flags(spec: LabSpec, manifests: str) -> dict[str, str]:
    """Flags of an agent that gets its objects from a folder of manifests; none without a data plane for them."""
    planes = {"proxy": spec.proxy, "policy": spec.policy}
    components = [name for name, plane in planes.items() if plane != "none"] + ["bgp"] * (spec.bgp != "none")
    if not components:
        return {}
    flags = {"components": ",".join(["network", *components]), "manifest-dir": manifests}
    if spec.policy != "none":
        flags["policy"] = spec.policy
    if spec.proxy != "none":
        flags |= {
            "proxy-mode": spec.proxy,
            "cluster-cidr": _listed(spec, POD_NETWORKS),
            "service-cluster-ip-range": _listed(spec, SERVICE_NETWORKS),
            "loadbalancer-ip-range": _listed(spec, BALANCER_NETWORKS),
            "service-external-ip-range": _listed(spec, EXTERNAL_NETWORKS),
        }
    return flags


def _listed(spec: LabSpec, networks: Mapping[Family, Network]) -> str:
    return ",".join(str(networks[family]) for family in spec.families)


def underlay_addresses(spec: LabSpec, index: int) -> dict[Family, IPv4Interface | IPv6Interface]:
    """The addresses of node ``index`` (0: fabric) in the lab's families."""
    return {family: underlay_address(family, index) for family in spec.families}


def etcd_host(spec: LabSpec) -> str:
    """The address etcd listens on, as in a URL."""
    address = underlay_address(spec.families[0], 0).ip
    return f"[{address}]" if address.version == 6 else str(address)


def etcd_endpoint(spec: LabSpec) -> str:
    """URL of the lab's etcd as its nodes see it."""
    return f"http://{etcd_host(spec)}:{ETCD_PORT}"


def net_conf(spec: LabSpec) -> str:
    """The value of ``<prefix>/config``: flannel's net-conf.json for this lab."""
    conf: dict[str, object] = {}
    if Family.V4 in spec.families:
        conf |= {"Network": str(POD_NETWORKS[Family.V4]), "SubnetLen": 24}
    else:
        conf["EnableIPv4"] = False
    if Family.V6 in spec.families:
        conf |= {"EnableIPv6": True, "IPv6Network": str(POD_NETWORKS[Family.V6]), "IPv6SubnetLen": 64}
    conf["Backend"] = backends.net_conf(spec)
    return json.dumps(conf)
