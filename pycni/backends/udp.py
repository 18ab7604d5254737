"""udp: pod packets in UDP by a program of ours, for where the kernel and the network allow nothing better. Slow.

Without a key the scheme is flannel's, so that both kinds of nodes form one network: the packet itself, nothing before
it, is what a datagram carries. One TUN device has both families; a program (``pycni/forwarder``) reads it and knows for
each peer's subnet where to send:

    route      <subnet> dev flannel0
    forward    <subnet> -> <PublicIP>:<Port>

With a key (``PSK``, ours alone) everything is encrypted and authenticated, and 32 bytes larger. Accepted is only
what comes from a peer's public address and has a sender in that peer's subnets. The device's addresses are the base
addresses of our own subnets, alone (/32, /128).

What differs from flannel: a route per peer instead of one for the whole cluster network; IPv6; and leases say the
type. flannel's udp leases say none: those are taken for its.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pycni.backends.base import (
    PeerEntries,
    Refusal,
    Site,
    overlay_mtu,
    own_addresses,
    peer_address,
    route_key,
    subnet_of,
)
from pycni.model.fabric import UDP_DEVICE, Link, UdpLink
from pycni.model.family import Family
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import NetConf
from pycni.model.node import Node
from pycni.model.tables import Route
from pycni.model.udp import UdpKey, UdpPeer

SECURED = 32
"""Bytes of header and authentication tag around an encrypted packet (``pycni/forwarder/seal``)."""


class Udp:
    """``Backend.Type`` "udp"."""

    name = "udp"

    def overhead(self, family: Family, conf: NetConf | None = None) -> int:
        """Outer IP (20 or 40) + UDP 8, and what encryption adds."""
        plain = conf is not None and conf.backend.psk is None
        return (28 if family is Family.V4 else 48) + (0 if plain else SECURED)

    def published(self, node: Node, conf: NetConf) -> LeaseAttrs:
        """Public addresses, nothing else."""
        for family in conf.families:
            own_addresses(node, conf, family)
        return LeaseAttrs(
            public_ip=node.public_ip if conf.network is not None else None,
            public_ipv6=node.public_ipv6 if conf.network6 is not None else None,
            backend_type=self.name,
        )

    def links(self, site: Site) -> Mapping[str, Link]:
        """The one device."""
        families = [family for family in site.conf.families if site.own.of(family)]
        ends = [own_addresses(site.node, site.conf, family) for family in families]
        psk = site.conf.backend.psk
        link = UdpLink(
            name=UDP_DEVICE,
            port=site.conf.backend.port,
            mtu=min(overlay_mtu(self, site.node, site.conf, family) for family in families),
            local=tuple(local.packed for _, local in ends),
            public=tuple(public.packed for public, _ in ends),
            psk=psk.fingerprint if psk is not None else "",
            addresses=tuple(
                (subnet_of(site.own, family).network_address.packed, family.bits) for family in families
            ),
        )
        return {link.name: link}

    def peer(self, lease: Lease, family: Family, site: Site) -> PeerEntries | Refusal:
        """A route, and the network in the forwarder's table."""
        if not lease.attrs.backend_type:  # flannel's
            attrs = msgspec.structs.replace(lease.attrs, backend_type=self.name)
            lease = msgspec.structs.replace(lease, attrs=attrs)
        public = peer_address(lease, family, site, self.name)
        if isinstance(public, Refusal):
            return public
        net = subnet_of(lease, family)
        key = UdpKey(UDP_DEVICE, net.network_address.packed, net.prefixlen)
        return PeerEntries(
            routes=((route_key(net), Route(None, UDP_DEVICE)),),
            udp=((key, UdpPeer(public.packed, site.conf.backend.port)),),
            remote=public.packed,
        )
