"""From a network configuration and an allocation to everything one pod's attachment needs in the kernel.

Life: CNI ADD reserves addresses, ``compile_attachment`` turns them with the configuration and the node's part
of the cluster network into an ``AttachPlan``, ``kernel/pod`` makes it true, ``result`` reports it. CHECK and a
restarted agent compile the same plan again from what was recorded and compare. Addresses are packed bytes:
what the kernel is told needs no further conversion. What all pods of a network share (bridge, gateways, routes)
is compiled once and reused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Interface, IPv6Interface
from typing import NamedTuple, Protocol

import msgspec

from pycni.attach.bandwidth import UNSHAPED, Shaping, shaping
from pycni.attach.masq import Spared, spared
from pycni.attach.names import NAME_LIMIT, Names, local_mac, names
from pycni.attach.portmap import HostPort, host_ports
from pycni.errors import ConfigError
from pycni.model.cni import CniResult, PluginConf, RouteConf
from pycni.model.endpoint import Owner
from pycni.model.family import Address, Family, Network, show
from pycni.model.podnet import PodNetwork

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


class AttachPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One pod's attachment: link, addresses, routes and what the capabilities ask for."""

    owner: Owner
    names: Names
    bridge: BridgePlan
    mac: bytes
    mtu: int = 0
    """Of both ends of the veth, bytes; 0: the kernel's default."""
    addresses: tuple[PodAddress, ...] = ()
    routes: tuple[PodRoute, ...] = ()
    hairpin: bool = False
    isolated: bool = False
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
    def has_tables(self) -> bool:
        """Whether the pod has elements in nft tables."""
        return self.masquerade or self.spoof_check or bool(self.host_ports)

    def with_result(self, result: CniResult) -> AttachPlan:
        """The plan as later plugins of the chain changed it: MAC and MTU the result reports for the pod."""
        for interface in result.interfaces:
            if interface.sandbox and interface.name == self.ifname:
                mac = bytes.fromhex(interface.mac.replace(":", "")) if interface.mac else self.mac
                return msgspec.structs.replace(self, mac=mac, mtu=interface.mtu or self.mtu)
        return self


class _Terms(NamedTuple):
    """What the shared part depends on."""

    network: str
    bridge: str
    mtu: int
    vlan: int
    promisc: bool
    hairpin: bool
    force_address: bool
    is_gateway: bool
    is_default_gateway: bool
    ipam_routes: tuple[RouteConf, ...]
    podnet: PodNetwork | None
    nets: tuple[tuple[Network, Address | None], ...]
    """Network and, when IPAM named one, gateway of each of the pod's addresses."""


class _Shared(NamedTuple):
    """What every pod of a network with the same addressing shares."""

    bridge: BridgePlan
    gateways: tuple[Address | None, ...]
    """One per address of the pod."""
    routes: tuple[PodRoute, ...]
    reported: tuple[RouteConf, ...]
    spared: tuple[Spared, ...]
    reply_by_node: frozenset[Family]


def compile_attachment(
    conf: PluginConf,
    podnet: PodNetwork | None,
    addresses: Sequence[Allocated],
    owner: Owner,
    ipam_routes: Sequence[RouteConf] | None = None,
) -> AttachPlan:
    """What the kernel has to look like for one attachment.

    ``ipam_routes``: routes a delegated IPAM plugin returned; None: those of the configuration. Raises ConfigError
    for settings that contradict each other or need a gateway where there can be none.
    """
    shared = _share(
        _Terms(
            conf.name,
            conf.bridge,
            conf.mtu,
            conf.vlan,
            conf.promisc_mode,
            conf.hairpin_mode,
            conf.force_address,
            conf.is_gateway,
            conf.is_default_gateway,
            conf.ipam.routes if ipam_routes is None else tuple(ipam_routes),
            podnet,
            tuple((allocated.address.network, allocated.gateway) for allocated in addresses),
        )
    )
    own = names(owner)
    plain = tuple(
        PodAddress(
            Family.V4 if allocated.address.version == 4 else Family.V6,
            allocated.address.packed,
            allocated.address.network.prefixlen,
        )
        for allocated in addresses
    )
    ports = (
        host_ports(conf.port_mappings, [(address.family, address.address) for address in plain])
        if conf.port_mappings
        else ()
    )
    return AttachPlan(
        owner=owner,
        names=own,
        bridge=shared.bridge,
        mac=bytes.fromhex(conf.mac.replace(":", "")) if conf.mac else own.mac,
        mtu=shared.bridge.mtu,
        addresses=plain,
        routes=shared.routes,
        # A pod that reaches itself by its own mapped port comes back through the port it left by when
        # bridged packets pass the IP hooks (net.bridge.bridge-nf-call-iptables).
        hairpin=conf.hairpin_mode or (bool(ports) and not conf.promisc_mode),
        isolated=conf.port_isolation,
        enable_dad=conf.enable_dad,
        masquerade=conf.ip_masq and bool(plain),
        spared=shared.spared if conf.ip_masq else (),
        host_ports=ports,
        reply_by_node=shared.reply_by_node if ports else frozenset(),
        shaping=shaping(conf.bandwidth) if conf.bandwidth is not None else UNSHAPED,
        spoof_check=conf.mac_spoof_check,
        reported_ips=tuple(
            (allocated.address, gateway)
            for allocated, gateway in zip(addresses, shared.gateways, strict=True)
        ),
        reported_routes=shared.reported,
    )


@lru_cache(maxsize=256)
def _share(terms: _Terms) -> _Shared:
    """Compile what depends on the network and the addressing alone."""
    obj = f"network {terms.network}"
    _check(obj, terms)
    podnet = terms.podnet
    gateways = [(net, _gateway(net, given)) for net, given in terms.nets]
    first: dict[Family, Address] = {}
    for _, gateway in gateways:
        if gateway is not None:
            first.setdefault(Family.of(gateway), gateway)
    ours = [net for net, _ in terms.nets]
    wanted = [_with_gateway(route, first) for route in terms.ipam_routes]
    if terms.is_default_gateway:
        wanted += _default_routes(obj, terms.nets, first, wanted)
    elif terms.is_gateway and podnet is not None:
        given = {route.dst for route in wanted}
        wanted += [
            RouteConf(dst=net, gw=first[Family.of(net)])
            for net in podnet.networks
            if Family.of(net) in first and net not in given and net not in ours
        ]
    placed = tuple(
        PodAddress(Family.of(gateway), gateway.packed, net.prefixlen)
        for net, gateway in dict.fromkeys(gateways)
        if gateway is not None and (terms.is_gateway or terms.is_default_gateway)
    )
    bridge = BridgePlan(
        network=terms.network,
        name=terms.bridge,
        mtu=terms.mtu or (podnet.mtu if podnet is not None else 0),
        mac=_bridge_mac(placed),
        gateways=placed,
        vlan=terms.vlan,
        promisc=terms.promisc,
        leased=podnet is not None and bool(ours) and all(net in podnet.subnets for net in ours),
        force_address=terms.force_address,
    )
    routes = tuple(_route(route, ours) for route in wanted)
    default = {route.family for route in routes if route.prefix_len == 0 and route.gateway is not None}
    return _Shared(
        bridge,
        tuple(gateway for _, gateway in gateways),
        routes,
        tuple(wanted),
        spared(ours, podnet.networks if podnet is not None else ()),
        frozenset({Family.of(net) for net in ours} - default),
    )


def _check(obj: str, terms: _Terms) -> None:
    """Refuse settings that contradict each other."""
    if terms.promisc and terms.hairpin:
        raise ConfigError(obj, "promiscMode", terms.promisc, "contradicts hairpinMode true: choose one")
    if terms.vlan and len(f"{terms.bridge}.{terms.vlan}") > NAME_LIMIT:
        device = f"{terms.bridge}.{terms.vlan}"
        reason = f"with vlan {terms.vlan} the gateway's device {device} has more than {NAME_LIMIT} characters"
        raise ConfigError(obj, "bridge", terms.bridge, reason)


def _gateway(net: Network, given: Address | None) -> Address | None:
    """The gateway of a pod subnet: as IPAM says, else its first host address (flannel's choice)."""
    if given is not None:
        return given
    return net.network_address + 1 if net.prefixlen < net.max_prefixlen else None


def _with_gateway(route: RouteConf, gateways: dict[Family, Address]) -> RouteConf:
    """A route without gateway goes by its family's gateway, when there is one (reference ``ipam`` package)."""
    gateway = gateways.get(Family.of(route.dst)) if route.gw is None else None
    return route if gateway is None else msgspec.structs.replace(route, gw=gateway)


def _default_routes(
    obj: str,
    nets: tuple[tuple[Network, Address | None], ...],
    gateways: dict[Family, Address],
    given: Sequence[RouteConf],
) -> list[RouteConf]:
    """A default route per family of the pod, unless IPAM brought one."""
    routes = []
    have = {Family.of(route.dst) for route in given if route.dst.prefixlen == 0 and not route.table}
    for family in dict.fromkeys(Family.of(net) for net, _ in nets):
        if family in have:
            continue
        if family not in gateways:
            subnet = next(str(net) for net, _ in nets if Family.of(net) is family)
            reason = "isDefaultGateway needs a gateway, and this subnet has room for none"
            raise ConfigError(obj, "ipam", subnet, reason)
        routes.append(RouteConf(dst=_anywhere(family), gw=gateways[family]))
    return routes


def _anywhere(family: Family) -> Network:
    kind = IPv4Interface if family is Family.V4 else IPv6Interface
    return kind((0, 0)).network


def _route(route: RouteConf, ours: Sequence[Network]) -> PodRoute:
    gateway = route.gw
    reachable = (
        gateway is None
        or (gateway.version == 6 and gateway.is_link_local)
        or any(net.version == gateway.version and gateway in net for net in ours)
    )
    return PodRoute(
        Family.of(route.dst),
        route.dst.network_address.packed,
        route.dst.prefixlen,
        None if gateway is None else gateway.packed,
        not reachable,
        route.mtu or 0,
        route.advmss or 0,
        route.priority or 0,
        route.table or 0,
        route.scope or 0,
    )


def _bridge_mac(gateways: Sequence[PodAddress]) -> bytes | None:
    """A MAC that follows from the first gateway: stable over ports, restarts and re-creation."""
    if not gateways:
        return None
    return local_mac(hashlib.sha256(b"bridge\0" + gateways[0].address).digest())
