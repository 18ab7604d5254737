"""alloc: a subnet for this node and its pods, and nothing between the nodes.

For networks whose fabric knows the pods' subnets by other means: routes of a cloud, a BGP speaker, static ones. Leases
are taken and kept as for every backend; no device, no route, no neighbour is made. flannel has it under this name.
"""

from __future__ import annotations

from collections.abc import Mapping

from pycni.backends.base import PeerEntries, Refusal, Site, own_addresses, peer_address
from pycni.model.fabric import Link
from pycni.model.family import Family
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import NetConf
from pycni.model.node import Node


class Alloc:
    """``Backend.Type`` "alloc"."""

    name = "alloc"

    def overhead(self, _family: Family, _conf: NetConf | None = None) -> int:
        """Whoever carries the packets, nothing is added here."""
        return 0

    def published(self, node: Node, conf: NetConf) -> LeaseAttrs:
        """The public addresses, for whoever makes the routes."""
        found = {family: own_addresses(node, conf, family) for family in conf.families}
        return LeaseAttrs(
            public_ip=node.public_ip if Family.V4 in found else None,
            public_ipv6=node.public_ipv6 if Family.V6 in found else None,
            backend_type=self.name,
        )

    def links(self, _site: Site) -> Mapping[str, Link]:
        """No devices."""
        return {}

    def peer(self, lease: Lease, family: Family, site: Site) -> PeerEntries | Refusal:
        """Nothing, but a record that cannot be a peer's is still named."""
        public = peer_address(lease, family, site, self.name)
        return public if isinstance(public, Refusal) else PeerEntries()
