"""Attachments ``macvlan`` and ``ipvlan``: pods on the underlay's own subnet, with a leg to their node beside.

    pod   eth0  192.0.2.20/24, child of the node's uplink: other pods, other nodes, the world, all without the node
          leg.. 192.0.2.20/32, the node's addresses, Services and pod networks via 169.254.1.1
    node  169.254.1.1/32 on the leg's host end, 192.0.2.20/32 dev <host end>

The kernel does not let an uplink talk to its own children: hence the leg. What a node forwards for such a pod leaves
with the node's address, because the answer would come to the pod past it. Addresses come from ``ipam.ranges``, of
which every node has its own part of the subnet, or from the node's lease when that is a part of the underlay's subnet.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Interface
from typing import NamedTuple

import msgspec

from pycni.attach.plan import PodAddress, PodNeighbour, PodRoute, UnderlayChild
from pycni.attach.routed import GATEWAYS
from pycni.attach.wish import Wired, Wish, default_routes, pod_address, pod_route
from pycni.errors import ConfigError
from pycni.model.cni import RouteConf
from pycni.model.family import Address, Family, Network
from pycni.model.podnet import PodNetwork

_NOBODY = PodNetwork(subnets=(), networks=(), mtu=0)
LEG_PREFIX = "leg"
_LEG_DIGITS = 8


class _Home(NamedTuple):
    """An address of the pod in the underlay's subnet."""

    address: IPv4Interface | IPv6Interface
    gateway: Address | None
    """The subnet's router, as far as it is known."""


def wire(wish: Wish) -> Wired:
    """A pod on the underlay. Raises ConfigError for what cannot be had there."""
    conf, podnet = wish.conf, wish.podnet or _NOBODY
    _check(wish)
    homes = tuple(
        _home(wish, address, gateway) for address, (_, gateway) in zip(wish.addresses, wish.nets, strict=True)
    )
    master = conf.master or (podnet.exits[0] if podnet.exits else "")
    if not master:
        reason = "the uplink is not known before the node's network is: name it"
        raise ConfigError(wish.title, "master", "", reason)
    gateways: dict[Family, Address] = {}
    for home in homes:
        if home.gateway is not None:
            gateways.setdefault(Family.of(home.gateway), home.gateway)
    wanted = [
        msgspec.structs.replace(route, gw=gateways.get(Family.of(route.dst))) if route.gw is None else route
        for route in wish.routes
    ]
    if conf.is_default_gateway:
        nets = tuple((home.address.network, home.gateway) for home in homes)
        wanted += default_routes(wish.title, nets, gateways, wanted)
    families = tuple(sorted({Family.of(home.address.ip) for home in homes}))
    link = UnderlayChild(
        kind=conf.attachment,
        master=master,
        leg=LEG_PREFIX + wish.names.host[-_LEG_DIGITS:],
        gateways=tuple(
            PodAddress(family, GATEWAYS[family].packed, 32 if family is Family.V4 else 64)
            for family in families
        ),
        addresses=tuple(pod_address(home.address, home.address.max_prefixlen) for home in homes),
        routes=tuple(_by_node(podnet, families)),
        neighbours=tuple(PodNeighbour(GATEWAYS[family].packed, wish.names.host_mac) for family in families),
        sources=tuple(_sources(podnet, families)),
    )
    return Wired(
        link=link,
        mtu=conf.mtu,
        addresses=tuple(pod_address(home.address) for home in homes),
        routes=tuple(pod_route(route, onlink=_is_apart(route, homes)) for route in wanted),
        spared=(),
        reply_by_node=frozenset(families),
        reported_ips=homes,
        reported_routes=tuple(wanted),
    )


def _check(wish: Wish) -> None:
    conf = wish.conf
    if not wish.addresses:
        raise ConfigError(
            wish.title, "attachment", conf.attachment, "a pod on the underlay needs an address there"
        )
    if conf.bandwidth is not None:
        reason = f"not possible with attachment={conf.attachment}: the pod's packets pass the node by"
        raise ConfigError(wish.title, "runtimeConfig.bandwidth", "given", reason)
    if conf.mac and conf.attachment == "ipvlan":
        raise ConfigError(
            wish.title, "mac", conf.mac, "with attachment=ipvlan pods have the MAC of the uplink"
        )


def _home(wish: Wish, address: IPv4Interface | IPv6Interface, gateway: Address | None) -> _Home:
    """The address with the length of the underlay's subnet, and that subnet's router."""
    conf, podnet = wish.conf, wish.podnet or _NOBODY
    if conf.ipam.type:
        return _Home(address, gateway)
    for inner in conf.ipam.range_sets:
        for item in inner:
            if item.subnet.version == address.version and address.ip in item.subnet:
                net = item.subnet
                given = item.gateway if item.gateway is not None else gateway
                return _Home(
                    _with_length(address, net), given if given is not None else net.network_address + 1
                )
    for own in podnet.own:
        if own.version == address.version and address.ip in own.network:
            # Of a lease nobody knows the router: ipam.routes names it.
            return _Home(_with_length(address, own.network), None)
    here = ", ".join(str(own.network) for own in podnet.own) or "none known"
    reason = (
        f"attachment={conf.attachment} needs an address of the underlay's subnet ({here}): give ipam.ranges"
    )
    raise ConfigError(wish.title, "ipam", str(address), reason)


def _with_length(address: IPv4Interface | IPv6Interface, net: Network) -> IPv4Interface | IPv6Interface:
    return type(address)((int(address.ip), net.prefixlen))


def _by_node(podnet: PodNetwork, families: tuple[Family, ...]) -> Iterator[PodRoute]:
    """What is reached by the leg: the node, Services, pods behind nodes."""
    own = tuple(type(item)((int(item.ip), item.max_prefixlen)).network for item in podnet.own)
    underlay = tuple(item.network for item in podnet.own)
    behind = tuple(net for net in podnet.networks if not any(_within(net, home) for home in underlay))
    for net in dict.fromkeys((*own, *podnet.services, *behind)):
        family = Family.of(net)
        if family in families:
            yield pod_route(RouteConf(dst=net, gw=GATEWAYS[family]), onlink=family is Family.V4)


def _within(net: Network, home: Network) -> bool:
    return net.version == home.version and net.prefixlen >= home.prefixlen and net.network_address in home


def _sources(podnet: PodNetwork, families: tuple[Family, ...]) -> Iterator[bytes]:
    for family in families:
        found = next((own.ip for own in podnet.own if Family.of(own.ip) is family), None)
        if found is not None:
            yield found.packed


def _is_apart(route: RouteConf, homes: tuple[_Home, ...]) -> bool:
    """Whether a route's gateway is outside every network of the interface."""
    gateway = route.gw
    if gateway is None or (gateway.version == 6 and gateway.is_link_local):
        return False
    return not any(
        home.address.version == gateway.version and gateway in home.address.network for home in homes
    )
