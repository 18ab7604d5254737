"""ipip: pod packets inside IPv4 packets of protocol 4 (RFC 2003), 20 bytes larger and nothing else. IPv4 only.

Scheme and wire data are flannel's, so that both kinds of nodes form one network. One device without a far end
of its own carries all peers: the far end of a packet is the gateway of its route.

    route      <subnet> via <PublicIP> dev flannel.ipip onlink

With DirectRouting a peer on our own link gets a plain route via its PublicIP instead. The device's address is the
base address of our own subnet, alone (/32): what this node itself sends to pods has it as source, so that the answers
come back through the tunnel. Nothing is published but the public address.
"""

from __future__ import annotations

from collections.abc import Mapping

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
from pycni.errors import ConfigError
from pycni.model.fabric import IpipLink, Link
from pycni.model.family import Family
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import NetConf
from pycni.model.node import Node
from pycni.model.tables import Route

DEVICE = "flannel.ipip"


class Ipip:
    """``Backend.Type`` "ipip"."""

    name = "ipip"

    def overhead(self, _family: Family, _conf: NetConf | None = None) -> int:
        """One more IPv4 header (RFC 2003 section 3.1)."""
        return 20

    def published(self, node: Node, conf: NetConf) -> LeaseAttrs:
        """The public address. Raises ConfigError for a network with IPv6."""
        if conf.network6 is not None:
            reason = f"carries IPv4 only, the cluster network {conf.network6} is IPv6: take vxlan or host-gw"
            raise ConfigError("net-conf", "Backend.Type", self.name, reason)
        own_addresses(node, conf, Family.V4)
        return LeaseAttrs(public_ip=node.public_ip, backend_type=self.name)

    def links(self, site: Site) -> Mapping[str, Link]:
        """The one device."""
        _, local = own_addresses(site.node, site.conf, Family.V4)
        link = IpipLink(
            name=DEVICE,
            parent=site.node.underlay.name,
            local=local.packed,
            mtu=overlay_mtu(self, site.node, site.conf, Family.V4),
            addresses=((subnet_of(site.own, Family.V4).network_address.packed, Family.V4.bits),),
        )
        return {link.name: link}

    def peer(self, lease: Lease, family: Family, site: Site) -> PeerEntries | Refusal:
        """One route: through the device, or plain with DirectRouting on our own link."""
        if family is not Family.V4:
            return Refusal("backend ipip carries IPv4 only")
        public = peer_address(lease, family, site, self.name)
        if isinstance(public, Refusal):
            return public
        underlay = site.node.underlay
        if site.conf.backend.direct_routing and underlay.reaches_directly(public):
            route = Route(public.packed, underlay.name)
        else:
            route = Route(public.packed, DEVICE, onlink=True)
        return PeerEntries(routes=((route_key(subnet_of(lease, family)), route),), remote=public.packed)
