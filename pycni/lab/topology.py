"""What a lab consists of, computed from its specification. Pure.

Life: ``lab up`` turns its flags into a ``LabSpec``; everything else (namespaces, addresses of the underlay, the
net-conf for etcd) follows from it, so that a second process needs only the recorded specification to find its way.
A lab's namespaces are called ``pycni-<lab>-<role>``; ``parse_namespace`` is what finds them again when every record
of the lab is lost.

The underlay is one Ethernet segment::

    pycni-<lab>-fabric   bridge br0   172.20.255.254/16  fd20::ffff/64   etcd
    pycni-<lab>-node<i>  eth0         172.20.0.<i>/16    fd20::<i>/64    pycnid
    pycni-<lab>-pod.<p>  eth0         from the node's lease
"""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import NamedTuple

import msgspec

from pycni.errors import PycniError
from pycni.model.family import Family

BACKENDS = ("vxlan", "host-gw")
DRIVERS = ("netns", "uml")
"""What nodes are: namespaces of this kernel, or User-Mode Linux guests with one of their own each."""
FAMILY_CHOICES = ("ipv4", "ipv6", "dual")
MAX_NODES = 100
"""An agent takes about 50 MB, and each node knows each other."""
ETCD_PORT = 2379
HEALTH_PORT = 10256
ETCD_PREFIX = "/coreos.com/network"
NETWORK_NAME = "pycni"
MIN_MTU = 1350
"""The smallest underlay MTU that leaves IPv6 its minimum of 1280 bytes (RFC 8200 section 5) inside VXLAN."""
MAX_MTU = 65000

_LAB_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?")
_POD_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?")
_NODE_NAME = re.compile(r"node[0-9]+")
_NAMESPACE = re.compile(rf"pycni-({_LAB_NAME.pattern})-(fabric|node[0-9]+|pod\.{_POD_NAME.pattern})")


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
    """``fabric``, ``node<i>`` or ``pod.<name>``."""


def check_spec(spec: LabSpec) -> LabSpec:
    """Refuse what cannot be built, naming the flag and its value."""
    check_lab_name(spec.name)
    if spec.backend not in BACKENDS:
        raise LabError(f"--backend {spec.backend!r}: not one of {', '.join(BACKENDS)}", usage=True)
    if spec.driver not in DRIVERS:
        raise LabError(f"--driver {spec.driver!r}: not one of {', '.join(DRIVERS)}", usage=True)
    if spec.family not in FAMILY_CHOICES:
        raise LabError(f"--family {spec.family!r}: not one of {', '.join(FAMILY_CHOICES)}", usage=True)
    if not 1 <= spec.nodes <= MAX_NODES:
        raise LabError(f"--nodes {spec.nodes}: must be 1 to {MAX_NODES}", usage=True)
    if not 0 <= spec.pods <= 250:
        raise LabError(f"--pods {spec.pods}: must be 0 to 250 pods per node", usage=True)
    if not MIN_MTU <= spec.mtu <= MAX_MTU:
        raise LabError(f"--mtu {spec.mtu}: must be {MIN_MTU} to {MAX_MTU} bytes", usage=True)
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
            f"pod name {name!r}: lower-case letters, digits and inner dashes only, 30 characters at most",
            usage=True,
        )
    if name == "fabric" or _NODE_NAME.fullmatch(name):
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


def node_namespace(lab: str, node: str) -> str:
    """Namespace of a node."""
    return f"pycni-{lab}-{node}"


def pod_namespace(lab: str, pod: str) -> str:
    """Namespace of a pod."""
    return f"pycni-{lab}-pod.{pod}"


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
        conf |= {"Network": "10.244.0.0/16", "SubnetLen": 24}
    else:
        conf["EnableIPv4"] = False
    if Family.V6 in spec.families:
        conf |= {"EnableIPv6": True, "IPv6Network": "fd00:10:244::/48", "IPv6SubnetLen": 64}
    conf["Backend"] = {"Type": spec.backend}
    return json.dumps(conf)


def conflist(spec: LabSpec, data_dir: str) -> str:
    """The node's network configuration list; ``data_dir`` is its own IPAM folder."""
    ours: dict[str, object] = {
        "type": "pycni",
        "ipam": {"type": "pycni", "dataDir": data_dir},
        "capabilities": dict.fromkeys(("portMappings", "bandwidth", "ips", "ipRanges", "mac", "dns"), True),
    }
    if "portmap" in spec.chain:
        ours["capabilities"] = {"bandwidth": True, "ips": True, "mac": True}
    plugins = [ours, *(_chained(kind) for kind in spec.chain)]
    listing = {
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": NETWORK_NAME,
        "plugins": plugins,
    }
    if spec.chain:
        # Debian's reference plugins are of specification 1.0.0.
        listing["cniVersions"] = ["0.3.1", "0.4.0", "1.0.0"]
    return json.dumps(listing, indent=2) + "\n"


def _chained(kind: str) -> dict[str, object]:
    extra: dict[str, dict[str, object]] = {
        "portmap": {"capabilities": {"portMappings": True}, "snat": True},
        "bandwidth": {"capabilities": {"bandwidth": True}},
    }
    return {"type": kind, **extra.get(kind, {})}
