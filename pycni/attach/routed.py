"""Attachment ``ptp``: a pod alone with its node on a link, everything it sends is routed by the node.

    pod: 10.1.2.5/32 on eth0, default via 169.254.1.1         (the same gateway in every pod)
    node: 169.254.1.1/32 on every host end, 10.1.2.5/32 dev <host end> for each pod

The gateway is link-local (RFC 3927, RFC 4291 section 2.5.6): on every link it means the other end, and it takes no
address of the subnet. Nothing is answered for others (no proxy ARP), and there is no segment to flood. Addresses
come from the same subnets and gateways stay reserved, so that a network can change its kind of attachment pod by pod.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

import msgspec

from pycni.attach.masq import Spared, spared
from pycni.attach.plan import PodAddress, PodNeighbour, PodRoute, RoutedLeg
from pycni.attach.wish import Wired, Wish, default_routes, pod_address, pod_route
from pycni.errors import ConfigError
from pycni.model.cni import RouteConf
from pycni.model.family import Address, Family, Network
from pycni.model.podnet import PodNetwork

GATEWAYS: dict[Family, Address] = {
    Family.V4: IPv4Address("169.254.1.1"),
    Family.V6: IPv6Address("fe80::1"),
}
"""What pods send by. 169.254.1.1 is other projects' choice too; clouds' services are at 169.254.169.x and 170.x."""


class _Terms(NamedTuple):
    """What the shared part depends on."""

    network: str
    bridge: str
    is_default_gateway: bool
    ipam_routes: tuple[RouteConf, ...]
    podnet: PodNetwork | None
    nets: tuple[tuple[Network, Address | None], ...]
    """Of each address the subnet and, when IPAM named one, the gateway in it."""


class _Shared(NamedTuple):
    """What every pod of a network with the same addressing shares."""

    link: RoutedLeg
    routes: tuple[PodRoute, ...]
    reported: tuple[RouteConf, ...]
    spared: tuple[Spared, ...]
    reply_by_node: frozenset[Family]


def wire(wish: Wish) -> Wired:
    """A pod on a link of its own. Raises ConfigError when it has no address or a route by anything but the node."""
    conf, podnet = wish.conf, wish.podnet
    if not wish.addresses:
        raise ConfigError(
            wish.title, "attachment", conf.attachment, "without an address nothing can be routed"
        )
    homes = tuple(
        (_home(wish, net), gateway) if net.prefixlen == net.max_prefixlen else (net, gateway)
        for net, gateway in wish.nets
    )
    shared = _share(_Terms(conf.name, conf.bridge, conf.is_default_gateway, wish.routes, podnet, homes))
    return Wired(
        link=shared.link,
        mtu=conf.mtu or (podnet.mtu if podnet is not None else 0),
        addresses=tuple(pod_address(address, address.max_prefixlen) for address in wish.addresses),
        routes=shared.routes,
        spared=shared.spared,
        reply_by_node=shared.reply_by_node,
        reported_ips=tuple(
            (type(address)((address.ip, address.max_prefixlen)), GATEWAYS[Family.of(address.ip)])
            for address in wish.addresses
        ),
        reported_routes=shared.reported,
        neighbours=tuple(
            PodNeighbour(gateway.address, wish.names.host_mac) for gateway in shared.link.gateways
        ),
    )


def _home(wish: Wish, address: Network) -> Network:
    """The subnet an address is of that is on record by itself."""
    ranges = (item.subnet for inner in wish.conf.ipam.range_sets for item in inner)
    leased = wish.podnet.subnets if wish.podnet is not None else ()
    at = address.network_address
    return next((net for net in (*ranges, *leased) if net.version == at.version and at in net), address)


@lru_cache(maxsize=256)
def _share(terms: _Terms) -> _Shared:
    """Compile what depends on the network and the addressing alone."""
    obj = f"network {terms.network}"
    podnet = terms.podnet
    homes = list(dict.fromkeys(net for net, _ in terms.nets))
    families = tuple(sorted({Family.of(net) for net in homes}))
    gateways = {family: GATEWAYS[family] for family in families}
    own = {gateway if gateway is not None else net[1] for net, gateway in terms.nets if net.num_addresses > 1}
    wanted = [_by_node(obj, route, own | set(gateways.values())) for route in terms.ipam_routes]
    if terms.is_default_gateway:
        wanted += default_routes(obj, terms.nets, gateways, wanted)
    else:
        given = {route.dst for route in wanted}
        reached = dict.fromkeys((*(podnet.networks if podnet is not None else ()), *homes))
        wanted += [
            RouteConf(dst=net, gw=gateways[Family.of(net)])
            for net in reached
            if Family.of(net) in gateways and net not in given
        ]
    link = RoutedLeg(
        gateways=tuple(
            # The node answers pods' link-local addresses too (RFC 4861), by a route to all of them.
            PodAddress(family, gateways[family].packed, 32 if family is Family.V4 else 64)
            for family in families
        ),
        subnets=tuple(
            PodAddress(Family.of(net), net.network_address.packed, net.prefixlen)
            for net in homes
            if podnet is not None and net in podnet.subnets
        ),
        bridge=terms.bridge,
    )
    default = {Family.of(route.dst) for route in wanted if route.dst.prefixlen == 0}
    return _Shared(
        link,
        tuple(pod_route(route, onlink=route.dst.version == 4) for route in wanted),
        tuple(wanted),
        spared(homes, podnet.networks if podnet is not None else ()),
        frozenset(set(families) - default),
    )


def _by_node(obj: str, route: RouteConf, gateways: Sequence[Address] | set[Address]) -> RouteConf:
    """A route by the node: the only next hop there is. Raises ConfigError for another one."""
    if route.gw is not None and route.gw not in gateways:
        reason = (
            f"the only gateway of attachment ptp is the node ({GATEWAYS[Family.of(route.dst)]} in the pod)"
        )
        raise ConfigError(obj, f"ipam route {route.dst} gw", str(route.gw), reason)
    return msgspec.structs.replace(route, gw=GATEWAYS[Family.of(route.dst)])
