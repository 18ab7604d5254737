"""What an attachment is compiled from, and what the kinds of attachment decide about it.

Life: ``attach/compile`` puts configuration, addresses and the node's pod network into a ``Wish``; the kind's own module
(``bridged``, ``routed``) answers with ``Wired``; what all kinds have in common is added and makes the ``AttachPlan``.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface
from typing import NamedTuple

from pycni.attach.masq import Spared
from pycni.attach.names import Names
from pycni.attach.plan import Link, PodAddress, PodNeighbour, PodRoute
from pycni.errors import ConfigError
from pycni.model.cni import PluginConf, RouteConf
from pycni.model.family import Address, Family, Network
from pycni.model.podnet import PodNetwork

Nets = tuple[tuple[Network, Address | None], ...]
"""Network and, when IPAM named one, gateway of each of a pod's addresses."""


class Wish(NamedTuple):
    """What is known when an attachment is compiled."""

    conf: PluginConf
    podnet: PodNetwork | None
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    nets: Nets
    """Of each address."""
    routes: tuple[RouteConf, ...]
    """Of the configuration, or of a delegated IPAM plugin."""
    names: Names

    @property
    def title(self) -> str:
        """The object in messages."""
        return f"network {self.conf.name}"


class Wired(NamedTuple):
    """What a kind of attachment makes of it; the fields are those of ``AttachPlan``."""

    link: Link
    mtu: int
    addresses: tuple[PodAddress, ...]
    routes: tuple[PodRoute, ...]
    spared: tuple[Spared, ...]
    """Should the pod be masqueraded."""
    reply_by_node: frozenset[Family]
    """Should it have mapped ports."""
    reported_ips: tuple[tuple[IPv4Interface | IPv6Interface, Address | None], ...]
    reported_routes: tuple[RouteConf, ...]
    neighbours: tuple[PodNeighbour, ...] = ()


def default_routes(
    obj: str, nets: Nets, gateways: dict[Family, Address], given: Sequence[RouteConf]
) -> list[RouteConf]:
    """A default route per family of the pod, unless IPAM brought one. Raises ConfigError when a gateway lacks."""
    routes = []
    have = {Family.of(route.dst) for route in given if route.dst.prefixlen == 0 and not route.table}
    for family in dict.fromkeys(Family.of(net) for net, _ in nets):
        if family in have:
            continue
        if family not in gateways:
            subnet = next(str(net) for net, _ in nets if Family.of(net) is family)
            reason = "isDefaultGateway needs a gateway, and this subnet has room for none"
            raise ConfigError(obj, "ipam", subnet, reason)
        routes.append(RouteConf(dst=anywhere(family), gw=gateways[family]))
    return routes


def anywhere(family: Family) -> Network:
    """``0.0.0.0/0`` or ``::/0``."""
    kind = IPv4Interface if family is Family.V4 else IPv6Interface
    return kind((0, 0)).network


def pod_route(route: RouteConf, *, onlink: bool) -> PodRoute:
    """A route as the kernel is told. ``onlink``: its gateway is outside every network of the interface."""
    return PodRoute(
        Family.of(route.dst),
        route.dst.network_address.packed,
        route.dst.prefixlen,
        None if route.gw is None else route.gw.packed,
        onlink,
        route.mtu or 0,
        route.advmss or 0,
        route.priority or 0,
        route.table or 0,
        route.scope or 0,
    )


def pod_address(address: IPv4Interface | IPv6Interface, prefix_len: int | None = None) -> PodAddress:
    """An interface address, with its own or another prefix length."""
    length = address.network.prefixlen if prefix_len is None else prefix_len
    return PodAddress(Family.V4 if address.version == 4 else Family.V6, address.packed, length)
