"""What a backend is: how a node announces itself, and what one peer needs in the kernel.

Life: the agent asks ``published`` once and writes it into its lease; for each peer ``peer`` gives the entries
by which its pods are reached, or says why there are none; ``links`` are the devices all peers share.
``backends/compiler`` puts them together. Backends are pure: no kernel, no clock, no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import msgspec

from pycni.errors import ConfigError
from pycni.model.extension import ExtensionKey, ExtensionPeer
from pycni.model.fabric import Link
from pycni.model.family import Address, Family, Network
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import NetConf
from pycni.model.node import Node
from pycni.model.tables import (
    FdbEntry,
    FdbKey,
    Neighbour,
    NeighbourKey,
    Route,
    RouteKey,
)
from pycni.model.udp import UdpKey, UdpPeer
from pycni.model.wireguard import WireguardKey, WireguardPeer

MAIN_TABLE = 254
"""RT_TABLE_MAIN."""

IPV6_MIN_MTU = 1280
"""RFC 8200 section 5."""


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """This node in this network: what a backend depends on besides the peer."""

    node: Node
    conf: NetConf
    own: Lease
    """Our own lease: its subnets are ours, its attributes are what peers see."""


class PeerEntries(NamedTuple):
    """What one peer needs in the hot tables, for one family."""

    routes: tuple[tuple[RouteKey, Route], ...] = ()
    neighbours: tuple[tuple[NeighbourKey, Neighbour], ...] = ()
    fdb: tuple[tuple[FdbKey, FdbEntry], ...] = ()
    remote: bytes | None = None
    """Underlay address encapsulated packets may come from."""
    wireguard: tuple[tuple[WireguardKey, WireguardPeer], ...] = ()
    udp: tuple[tuple[UdpKey, UdpPeer], ...] = ()
    extension: tuple[tuple[ExtensionKey, ExtensionPeer], ...] = ()


class Refusal(NamedTuple):
    """Why a peer has no entries. ``fault``: something is wrong that somebody has to repair (health is red)."""

    reason: str
    fault: bool = False


class Backend(Protocol):
    """One way to carry pod traffic between nodes."""

    name: str
    """``Backend.Type`` of the net-conf and ``BackendType`` of leases."""

    def overhead(self, family: Family, conf: NetConf | None = None, /) -> int:
        """Bytes an underlay packet is larger than the pod's packet in it, for pods of this family.

        Without a net-conf: the most it can be.
        """
        ...

    def published(self, node: Node, conf: NetConf) -> LeaseAttrs:
        """What peers must know of us. Raises ConfigError when the node lacks what the network needs."""
        ...

    def links(self, site: Site) -> Mapping[str, Link]:
        """Devices, by name. Raises ConfigError when they cannot be made on this underlay."""
        ...

    def peer(self, lease: Lease, family: Family, site: Site) -> PeerEntries | Refusal:
        """Entries for one peer. Depends on its arguments only; the lease has a subnet of the family."""
        ...


def overlay_mtu(backend: Backend, node: Node, conf: NetConf, family: Family) -> int:
    """MTU of packets of one family inside the fabric.

    ``Backend.MTU`` is flannel's: the size of underlay packets, used in place of the interface's when smaller (the
    kernel refuses a larger one). Raises ConfigError below what IPv6 demands.
    """
    underlay_mtu = min(conf.backend.mtu or node.underlay.mtu, node.underlay.mtu)
    mtu = underlay_mtu - backend.overhead(family, conf)
    if family is Family.V6 and mtu < IPV6_MIN_MTU:
        least = IPV6_MIN_MTU + backend.overhead(family, conf)
        raise ConfigError(
            f"underlay {node.underlay.name}", "mtu", underlay_mtu, f"IPv6 pods need {least} at least"
        )
    return mtu


def pod_mtu(backend: Backend, node: Node, conf: NetConf) -> int:
    """MTU of pod interfaces: what fits through the fabric in every family the network has."""
    return min(overlay_mtu(backend, node, conf, family) for family in conf.families)


def own_addresses(node: Node, conf: NetConf, family: Family) -> tuple[Address, Address]:
    """The node's public address and its interface's own one. Raises ConfigError when one is missing."""
    public, local = node.public(family), node.underlay.of(family)
    if public is None or local is None:
        raise ConfigError(
            f"underlay {node.underlay.name}",
            f"{family.label} address",
            None,
            f"the cluster network {conf.of(family)} needs one",
        )
    return public, local.ip


def peer_address(lease: Lease, family: Family, site: Site, backend_type: str) -> Address | Refusal:
    """The peer's underlay address, or why the peer cannot be one of ours: common to all backends."""
    attrs = lease.attrs
    if attrs.backend_type != backend_type:
        return Refusal(f"its backend is {attrs.backend_type!r}, this network's is {backend_type!r}")
    public = attrs.public(family)
    if public is None:
        return Refusal(f"it publishes no {family.label} address")
    if public == site.node.public(family) or any(public == own.ip for own in site.node.underlay.on_link):
        return Refusal(f"its public address {public} is this node's own")
    return public


def subnet_of(lease: Lease, family: Family) -> Network:
    """The lease's subnet of a family it is known to have."""
    net = lease.of(family)
    assert net is not None, f"lease {lease.key} has no {family.label} subnet"
    return net


def route_key(net: Network) -> RouteKey:
    """Key of our route to a subnet, metric 0: the kernel's default."""
    return RouteKey(Family.of(net), MAIN_TABLE, net.network_address.packed, net.prefixlen, 0)
