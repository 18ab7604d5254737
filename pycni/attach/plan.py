"""What one pod's attachment needs in the kernel, as values.

Life: CNI ADD reserves addresses, ``attach/compile`` turns them with the configuration and the node's part of the
cluster network into an ``AttachPlan``, ``kernel/pod`` makes it true, ``result`` reports it. CHECK and a restarted agent
compile the same plan again from what was recorded and compare. Addresses are packed bytes: what the kernel is told
needs no further conversion. ``AttachPlan.link`` says which kind of attachment it is; ``kernel/podway`` has one driver
per type of it.
"""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface
from typing import NamedTuple, Protocol

import msgspec

from pycni.attach.bandwidth import UNSHAPED, Shaping
from pycni.attach.masq import Spared
from pycni.attach.names import Names
from pycni.attach.portmap import HostPort
from pycni.model.attachment import AttachmentKind
from pycni.model.cni import CniResult, RouteConf
from pycni.model.endpoint import Owner
from pycni.model.family import Address, Family, show, show_mac

Interface = IPv4Interface | IPv6Interface


class Allocated(Protocol):
    """What IPAM hands out, ours or a delegate's."""

    @property
    def address(self) -> Interface:
        """The pod's address with its prefix length."""

    @property
    def gateway(self) -> Address | None:
        """The network's gateway; None: the first host address of the network."""


class PodAddress(NamedTuple):
    """An interface address."""

    family: Family
    address: bytes
    prefix_len: int

    def text(self) -> str:
        """``10.1.2.3/24``."""
        return f"{show(self.address)}/{self.prefix_len}"

    def overlaps(self, other: PodAddress) -> bool:
        """Whether the networks of two addresses have an address in common."""
        shift = self.family.bits - min(self.prefix_len, other.prefix_len)
        return self.family is other.family and (
            int.from_bytes(self.address, "big") >> shift == int.from_bytes(other.address, "big") >> shift
        )


class PodRoute(NamedTuple):
    """A route inside the pod; 0: not given (the kernel's default)."""

    family: Family
    destination: bytes
    prefix_len: int
    gateway: bytes | None
    onlink: bool = False
    """The gateway is outside every network of the interface."""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int = 0
    scope: int = 0

    def text(self) -> str:
        """The route in the notation of ip-route(8)."""
        words = [f"{show(self.destination)}/{self.prefix_len}" if self.prefix_len else "default"]
        if self.gateway is not None:
            words += ["via", show(self.gateway)]
        for word in ("table", "mtu", "advmss"):
            if getattr(self, word):
                words += [word, str(getattr(self, word))]
        if self.priority:
            words += ["metric", str(self.priority)]
        return " ".join(words)


class BridgePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The node's bridge as all pods of one network want it."""

    network: str
    """Network name of the configuration: whose gateway addresses these are."""
    name: str
    mtu: int = 0
    """Bytes; 0: the kernel's default."""
    mac: bytes | None = None
    """MAC for a bridge that has to be made; None: any. A bridge that exists keeps its own."""
    gateways: tuple[PodAddress, ...] = ()
    """Addresses the node answers pods under; they sit on ``gateway_device``."""
    vlan: int = 0
    """Ports are untagged members of this VLAN; 0: no VLAN filtering."""
    promisc: bool = False
    leased: bool = False
    """The gateways belong to the node's own subnets: an earlier gateway of this network is of a subnet it lost."""
    force_address: bool = False
    """Foreign addresses that conflict with the gateways are removed, not reported."""

    @property
    def gateway_device(self) -> str:
        """The device that carries the gateway addresses: the bridge, or its leg in the VLAN."""
        return f"{self.name}.{self.vlan}" if self.vlan else self.name

    @property
    def families(self) -> tuple[Family, ...]:
        """Families the node forwards for, IPv4 first."""
        return tuple(sorted({gateway.family for gateway in self.gateways}))


class BridgePort(msgspec.Struct, frozen=True, kw_only=True):
    """Attachment ``bridge``: the host end is a port of the node's bridge."""

    bridge: BridgePlan
    hairpin: bool = False
    isolated: bool = False


class RoutedLeg(msgspec.Struct, frozen=True, kw_only=True):
    """Attachment ``ptp``: the host end stands alone, the node has a route by it to each of the pod's addresses."""

    gateways: tuple[PodAddress, ...]
    """Addresses the pod sends by: on every host end the same, link-local, host prefixes; one per family of the pod."""
    subnets: tuple[PodAddress, ...] = ()
    """Subnets of the node that its pods' addresses are of: what no pod has is unreachable here, not somebody else's."""
    bridge: str = ""
    """Pods of an earlier configuration may be on this bridge, in the same subnets."""

    @property
    def families(self) -> tuple[Family, ...]:
        """Families the node forwards for, IPv4 first."""
        return tuple(sorted({gateway.family for gateway in self.gateways}))


class PodNeighbour(NamedTuple):
    """What a pod knows of its link from the start, without asking; it asks again as for any neighbour."""

    address: bytes
    mac: bytes

    def text(self) -> str:
        """``169.254.1.1 lladdr 02:00:00:00:00:01``."""
        return f"{show(self.address)} lladdr {show_mac(self.mac)}"


class UnderlayChild(msgspec.Struct, frozen=True, kw_only=True):
    """Attachments ``macvlan`` and ``ipvlan``: the pod's interface is a child of the uplink, a leg leads to the node."""

    kind: AttachmentKind
    master: str
    """The uplink."""
    leg: str
    """Name of the leg's end in the pod."""
    gateways: tuple[PodAddress, ...]
    """Addresses of the leg's host end, as of ``RoutedLeg``."""
    addresses: tuple[PodAddress, ...]
    """The pod's, as host prefixes: on the leg, and what the node has routes to by it."""
    routes: tuple[PodRoute, ...]
    """What the pod reaches by the leg: the node, services, other pod networks."""
    neighbours: tuple[PodNeighbour, ...]
    sources: tuple[bytes, ...] = ()
    """The node's addresses that it sends to the pod by, one per family at most."""

    @property
    def families(self) -> tuple[Family, ...]:
        """Families the node forwards for, IPv4 first."""
        found = {gateway.family for gateway in self.gateways} if self.forwarded else ()
        return tuple(sorted(found))

    @property
    def forwarded(self) -> bool:
        """Whether the node forwards anything for the pod."""
        return any(route.prefix_len < route.family.bits for route in self.routes)


Link = BridgePort | RoutedLeg | UnderlayChild
"""How the pod is joined to its node."""


class AttachPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One pod's attachment: link, addresses, routes and what the capabilities ask for."""

    owner: Owner
    names: Names
    link: Link
    mac: bytes
    mtu: int = 0
    """Of both ends of the veth, bytes; 0: the kernel's default."""
    addresses: tuple[PodAddress, ...] = ()
    """As they are on the pod's interface."""
    routes: tuple[PodRoute, ...] = ()
    neighbours: tuple[PodNeighbour, ...] = ()
    enable_dad: bool = False
    """IPv6 addresses go through duplicate address detection before ADD returns."""
    masquerade: bool = False
    spared: tuple[Spared, ...] = ()
    """Traffic that is not masqueraded; meaningful with ``masquerade``."""
    host_ports: tuple[HostPort, ...] = ()
    reply_by_node: frozenset[Family] = frozenset()
    """Families in which the pod has no default route to the node: mapped connections need a node's source."""
    shaping: Shaping = UNSHAPED
    spoof_check: bool = False
    reported_ips: tuple[tuple[Interface, Address | None], ...] = ()
    """Addresses and their gateways as the result names them."""
    reported_routes: tuple[RouteConf, ...] = ()
    """The routes as the result names them."""

    @property
    def host(self) -> str:
        """Name of the veth's host end."""
        return self.names.host

    @property
    def ifname(self) -> str:
        """Name of the pod's interface."""
        return self.owner.ifname

    @property
    def way_in(self) -> str:
        """Device by which the node itself sends to the pod; "" when there is none."""
        if isinstance(self.link, BridgePort):
            return self.link.bridge.gateway_device if self.link.bridge.gateways else ""
        return self.host

    @property
    def has_tables(self) -> bool:
        """Whether the pod has elements in nft tables."""
        forwarded = isinstance(self.link, UnderlayChild) and self.link.forwarded
        return self.masquerade or self.spoof_check or bool(self.host_ports) or forwarded

    def with_result(self, result: CniResult) -> AttachPlan:
        """The plan as later plugins of the chain changed it: MAC and MTU the result reports for the pod."""
        for interface in result.interfaces:
            if interface.sandbox and interface.name == self.ifname:
                mac = bytes.fromhex(interface.mac.replace(":", "")) if interface.mac else self.mac
                return msgspec.structs.replace(self, mac=mac, mtu=interface.mtu or self.mtu)
        return self
