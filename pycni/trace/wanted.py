"""The same namespaces as their agents want them: what is the agents' put right, the rest as it is. Pure.

Life: ``fabric`` compiles what a node should hold of its peers from the leases alone, so that it is known also when the
node's agent is dead; ``node_space`` and ``pod_space`` put that, and what CNI gave to pods, in the place of what the
kernel has. What is nobody's business here (the underlay's addresses and routes, sockets, rules of others) stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, NamedTuple

import msgspec

from pycni.backends.base import Site
from pycni.backends.compiler import compile_fabric
from pycni.backends.table import backend
from pycni.backends.vxlan import device_name, vtep_mac
from pycni.backends.wireguard import published_key
from pycni.model.fabric import FabricState, IpipLink, Link, UdpLink, VxlanLink, WireguardLink
from pycni.model.family import Family, Network
from pycni.model.lease import Lease
from pycni.model.network import NetConf
from pycni.model.node import Node, Underlay
from pycni.model.space import (
    AddressState,
    FdbState,
    LinkState,
    NeighbourState,
    PeerState,
    RouteState,
    SpaceState,
)
from pycni.model.tables import ROUTE_PROTOCOL

_KERNEL = 2
"""RTPROT_KERNEL: routes that follow from addresses."""
_MAIN, _LOCAL = 254, 255
_BRIDGED = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")
_OTHERS = ("/rp_filter", ".rp_filter", "/forwarding", "/proxy_arp")
"""Switches of devices that are wanted as the kernel has them at first."""
_ROUTED = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")


class WantedPod(NamedTuple):
    """What CNI gave a pod."""

    space: str
    host_interface: str
    bridge: str
    result: Mapping[str, Any]
    """CNI result of ADD (CNI 1.1.0 section 5)."""


def own_lease(leases: Iterable[Lease], addresses: Iterable[bytes]) -> Lease | None:
    """The lease of the node with these underlay addresses."""
    mine = set(addresses)
    for lease in leases:
        public = (lease.attrs.public(family) for family in Family)
        if any(item is not None and item.packed in mine for item in public):
            return lease
    return None


def membership(leases: Mapping[str, Lease], addresses: Iterable[bytes]) -> str:
    """Why a node with these underlay addresses is no member of the network; "" when it is."""
    if own_lease(leases.values(), addresses) is not None:
        return ""
    return "it has no lease (any more), so that the others take their routes to it away"


class Where(NamedTuple):
    """A node on its underlay."""

    name: str
    underlay: str
    """Name of the interface."""
    addresses: tuple[bytes, ...]
    """By which peers reach it, packed."""


def fabric(conf: NetConf, leases: Mapping[str, Lease], where: Where, state: SpaceState) -> FabricState:
    """What a node should hold of its peers. Empty while it has no lease. Raises ConfigError as backends do."""
    underlay, addresses = where.underlay, where.addresses
    own = own_lease(leases.values(), addresses)
    if own is None:
        return FabricState()
    there = [ip_interface((item.address, item.prefix_len)) for item in state.of(underlay) if not item.trouble]
    # An address that is gone is still the one its peers send to.
    gone = [address for address in addresses if address not in {item.packed for item in there}]
    on_link = (*there, *(ip_interface(address) for address in gone))
    public = [ip_address(address) for address in addresses]
    link = state.links.get(underlay, LinkState(name=underlay, mtu=1500))
    node = Node(
        name=where.name,
        underlay=Underlay(
            name=underlay,
            mtu=link.mtu,
            address=next((item for item in on_link if item.version == 4 and item.ip in public), None),
            address6=next((item for item in on_link if item.version == 6 and item.ip in public), None),
            on_link=on_link,
        ),
        public_ip=own.attrs.public_ip,
        public_ipv6=own.attrs.public_ipv6,
        macs=_macs(conf, own),
        wireguard_key=published_key(own.attrs),
    )
    return compile_fabric(backend(conf.backend.type), leases, Site(node=node, conf=conf, own=own))


def _macs(conf: NetConf, own: Lease) -> dict[str, bytes]:
    """MACs of the VTEPs as the lease has them."""
    found = {}
    for family in conf.families:
        mac = vtep_mac(own.attrs.data(family), conf.backend.vni) if conf.backend.type == "vxlan" else b""
        if isinstance(mac, bytes) and mac:
            found[device_name(family, conf.backend.vni)] = mac
    return found


def node_space(
    state: SpaceState,
    want: FabricState,
    pods: Sequence[WantedPod],
    networks: Sequence[Network],
    *,
    bridged: bool = False,
) -> SpaceState:
    """A node's own namespace. ``networks``: those of all pods. ``bridged``: rules have to see bridged packets too."""
    ours = set(want.links)
    routes = [item for item in state.routes if not _replaced(item, ours, networks)]
    routes += [_route(key, value) for key, value in want.routes.items()]
    links = {**state.links, **{name: _link(state, link) for name, link in want.links.items()}}
    for name, link in want.links.items():
        if isinstance(link, WireguardLink):
            links[name] = msgspec.structs.replace(links[name], peers=_peers(name, want))
    for pod in pods:
        if pod.host_interface and pod.host_interface in links:
            links[pod.host_interface] = _host_end(links[pod.host_interface], pod)
    for bridge in {pod.bridge for pod in pods} & links.keys():
        links[bridge] = msgspec.structs.replace(links[bridge], up=True, carrier=True)
    return msgspec.structs.replace(
        state,
        links=links,
        routes=tuple(routes),
        neighbours=tuple(
            NeighbourState(key.device, key.address, value.mac, "permanent")
            for key, value in want.neighbours.items()
        ),
        fdb=tuple(FdbState(key.device, key.mac, remote=value.remote) for key, value in want.fdb.items()),
        sysctls={
            **{name: value for name, value in state.sysctls.items() if not name.endswith(_OTHERS)},
            **dict.fromkeys(_ROUTED, "1"),
            **dict.fromkeys(_BRIDGED if bridged else (), "1"),
        },
        listening=None,
    )


def _replaced(item: RouteState, ours: set[str], networks: Sequence[Network]) -> bool:
    """Routes that are the agent's, or that lead pods' packets elsewhere than it wants."""
    if item.protocol == ROUTE_PROTOCOL or (item.device in ours and item.protocol != _KERNEL):
        return True
    if item.protocol == _KERNEL or item.table == _LOCAL or not item.prefix_len:
        return False
    target = ip_address(item.destination)
    return item.table == _MAIN and any(target.version == net.version and target in net for net in networks)


def _route(key: Any, value: Any) -> RouteState:
    return RouteState(
        table=key.table,
        destination=key.destination,
        prefix_len=key.prefix_len,
        kind=value.kind,
        device=value.device or "",
        gateway=value.gateway or b"",
        source=value.source or b"",
        metric=key.metric,
        onlink=value.onlink,
        protocol=ROUTE_PROTOCOL,
    )


def _link(state: SpaceState, link: Link) -> LinkState:
    there = state.links.get(link.name)
    found = LinkState(
        name=link.name, kind=_kind(link, there), mtu=link.mtu, index=there.index if there is not None else 0
    )
    if isinstance(link, VxlanLink):
        return msgspec.structs.replace(found, mac=link.mac, vni=link.vni, port=link.port, local=link.local)
    if isinstance(link, IpipLink):
        return msgspec.structs.replace(found, local=link.local)
    return found


def _peers(device: str, want: FabricState) -> tuple[PeerState, ...]:
    found = want.wireguard.items()
    return tuple(
        PeerState(key=key.public_key, endpoint=peer.endpoint, port=peer.port, allowed=peer.allowed)
        for key, peer in found
        if key.device == device
    )


def _kind(link: Link, there: LinkState | None) -> str:
    if isinstance(link, VxlanLink):
        return "vxlan"
    if isinstance(link, IpipLink):
        return "ipip"
    if isinstance(link, UdpLink):
        return "tun"
    assert isinstance(link, WireguardLink)
    return there.kind if there is not None else "wireguard"


def _host_end(link: LinkState, pod: WantedPod) -> LinkState:
    mtu = next((item.get("mtu", 0) for item in pod.result.get("interfaces", ()) if item.get("sandbox")), 0)
    return msgspec.structs.replace(
        link,
        up=True,
        carrier=True,
        master=pod.bridge,
        isolated=False,
        port_state="forwarding",
        mtu=mtu or link.mtu,
    )


def pod_space(state: SpaceState, pod: WantedPod) -> SpaceState:
    """A pod's namespace as CNI made it."""
    interfaces = [item for item in pod.result.get("interfaces", ()) if item.get("sandbox")]
    if not interfaces:
        return state
    name = interfaces[0]["name"]
    there = state.links.get(name, LinkState(name=name, kind="veth"))
    mac = bytes.fromhex(interfaces[0].get("mac", "").replace(":", "")) or there.mac
    mtu = interfaces[0].get("mtu", 0) or there.mtu
    addresses, routes = [], []
    for item in pod.result.get("ips", ()):
        own = ip_interface(item["address"])
        net = own.network
        addresses.append(AddressState(name, own.packed, net.prefixlen))
        routes.append(
            RouteState(
                table=_LOCAL, destination=own.packed, prefix_len=own.max_prefixlen, kind="local", device="lo"
            )
        )
        routes.append(
            RouteState(
                table=_MAIN, destination=net.network_address.packed, prefix_len=net.prefixlen, device=name,
                protocol=_KERNEL,
            )
        )  # fmt: skip
    gateways = {
        ip_interface(item["address"]).version: item.get("gateway") for item in pod.result.get("ips", ())
    }
    for item in pod.result.get("routes", ()):
        net = ip_network(item["dst"])
        via = item.get("gw") or gateways.get(net.version)
        routes.append(
            RouteState(
                table=_MAIN, destination=net.network_address.packed, prefix_len=net.prefixlen, device=name,
                gateway=ip_address(via).packed if via else b"", onlink=True,
            )
        )  # fmt: skip
    loopback = {key: value for key, value in state.links.items() if key != name}
    link = msgspec.structs.replace(there, mac=mac, mtu=mtu, up=True, carrier=True)
    return msgspec.structs.replace(
        state,
        links={**loopback, name: link},
        addresses=(*addresses, *(item for item in state.addresses if item.device != name)),
        routes=(
            *routes,
            *(item for item in state.routes if item.device not in {name, ""} and item.kind != "local"),
        ),
        rules=(),
        neighbours=(),
        listening=None,
    )
