"""What the network component tells the CNI side: how pods of this node are to be attached."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface

import msgspec

from pycni.model.family import Family, Network


class PodNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """This node's part of the cluster network, once a lease is held. Families without a subnet are off."""

    subnets: tuple[Network, ...]
    """The node's pod subnets, IPv4 first; at most one per family."""
    networks: tuple[Network, ...]
    """The cluster networks, IPv4 first."""
    mtu: int
    """MTU of pod interfaces and the bridge in bytes."""
    ip_masq: bool = False
    """Whether the agent itself masquerades traffic that leaves the cluster network."""

    exits: tuple[str, ...] = ()
    """Interfaces by which other nodes and the outside are reached, the external one first, then the overlay's."""

    own: tuple[IPv4Interface | IPv6Interface, ...] = ()
    """The node's addresses on the external interface, with its networks."""
    services: tuple[Network, ...] = ()
    """Where Services have their addresses."""

    def subnet(self, family: Family) -> Network | None:
        """The node's subnet of one family."""
        return next((net for net in self.subnets if Family.of(net) is family), None)
