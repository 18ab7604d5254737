"""host-gw: every peer's subnet is routed via the peer's own address; no device, no overhead.

Needs the peers on one link with us: a router between would have to know the pod subnets. A peer elsewhere is a
fault to be repaired by people (health is red and names it); the others are served all the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from pycni.backends.base import (
    PeerEntries,
    Refusal,
    Site,
    own_addresses,
    peer_address,
    route_key,
    subnet_of,
)
from pycni.errors import ConfigError
from pycni.model.fabric import Link
from pycni.model.family import Family
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import NetConf
from pycni.model.node import Node
from pycni.model.tables import Route


class HostGw:
    """``Backend.Type`` "host-gw"."""

    name = "host-gw"

    def overhead(self, _family: Family, _conf: NetConf | None = None) -> int:
        """Nothing is added to a packet."""
        return 0

    def published(self, node: Node, conf: NetConf) -> LeaseAttrs:
        """The public addresses; they must be the interface's own, or peers cannot route via them."""
        for family in conf.families:
            public, _ = own_addresses(node, conf, family)
            if all(public != own.ip for own in node.underlay.on_link):
                reason = (
                    f"not an address of {node.underlay.name}: behind NAT peers cannot route via this node"
                )
                raise ConfigError("host-gw", f"public {family.label} address", str(public), reason)
        return LeaseAttrs(
            public_ip=node.public_ip if conf.of(Family.V4) is not None else None,
            public_ipv6=node.public_ipv6 if conf.of(Family.V6) is not None else None,
            backend_type=self.name,
        )

    def links(self, _site: Site) -> Mapping[str, Link]:
        """No devices."""
        return {}

    def peer(self, lease: Lease, family: Family, site: Site) -> PeerEntries | Refusal:
        """One route via the peer."""
        public = peer_address(lease, family, site, self.name)
        if isinstance(public, Refusal):
            return public
        underlay = site.node.underlay
        if not underlay.reaches_directly(public):
            return Refusal(
                f"{public} is not on a network of {underlay.name}: host-gw needs all nodes on one link",
                fault=True,
            )
        return PeerEntries(
            routes=((route_key(subnet_of(lease, family)), Route(public.packed, underlay.name)),)
        )
