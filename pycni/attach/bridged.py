"""Attachment ``bridge``: what all pods of a network share (bridge, gateways, routes), compiled once and reused.

Pods of a network are ports of one bridge, which carries the gateway of the node's subnet; the pod's address has the
subnet's length, so that pods of a node reach each other without the node's routing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from pycni.attach.masq import Spared, spared
from pycni.attach.names import NAME_LIMIT, local_mac
from pycni.attach.plan import BridgePlan, BridgePort, PodAddress, PodRoute
from pycni.attach.wish import Nets, Wired, Wish, default_routes, pod_address, pod_route
from pycni.errors import ConfigError
from pycni.model.cni import RouteConf
from pycni.model.family import Address, Family, Network
from pycni.model.podnet import PodNetwork


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
    nets: Nets


class _Shared(NamedTuple):
    """What every pod of a network with the same addressing shares."""

    bridge: BridgePlan
    gateways: tuple[Address | None, ...]
    """One per address of the pod."""
    routes: tuple[PodRoute, ...]
    reported: tuple[RouteConf, ...]
    spared: tuple[Spared, ...]
    reply_by_node: frozenset[Family]


def wire(wish: Wish) -> Wired:
    """A pod as a port of its network's bridge. Raises ConfigError for settings that contradict each other."""
    conf = wish.conf
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
            wish.routes,
            wish.podnet,
            wish.nets,
        )
    )
    plain = tuple(pod_address(address) for address in wish.addresses)
    return Wired(
        link=BridgePort(
            bridge=shared.bridge,
            # A pod that reaches itself by its own mapped port comes back through the port it left by when
            # bridged packets pass the IP hooks (net.bridge.bridge-nf-call-iptables).
            hairpin=conf.hairpin_mode or (bool(conf.port_mappings and plain) and not conf.promisc_mode),
            isolated=conf.port_isolation,
        ),
        mtu=shared.bridge.mtu,
        addresses=plain,
        routes=shared.routes,
        spared=shared.spared,
        reply_by_node=shared.reply_by_node,
        reported_ips=tuple(zip(wish.addresses, shared.gateways, strict=True)),
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
        wanted += default_routes(obj, terms.nets, first, wanted)
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
    routes = tuple(pod_route(route, onlink=not _reachable(route.gw, ours)) for route in wanted)
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


def _reachable(gateway: Address | None, ours: Sequence[Network]) -> bool:
    """Whether a gateway is inside a network of the interface."""
    return (
        gateway is None
        or (gateway.version == 6 and gateway.is_link_local)
        or any(net.version == gateway.version and gateway in net for net in ours)
    )


def _bridge_mac(gateways: Sequence[PodAddress]) -> bytes | None:
    """A MAC that follows from the first gateway: stable over ports, restarts and re-creation."""
    if not gateways:
        return None
    return local_mac(hashlib.sha256(b"bridge\0" + gateways[0].address).digest())
