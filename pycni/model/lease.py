"""A lease: which subnet a node has and what its peers must know to reach it (flannel's record).

Life: a node's backend says what is to be published (``LeaseAttrs``), ``sources/etcd`` writes it under
``<prefix>/subnets/<key>`` and every node reads all of them; ``view/fabric`` turns them into peers.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import msgspec

from pycni.model.family import Address, Family, Network


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A backend a node is equipped for besides the one it wants to be reached by: it may send so, and accepts it."""

    backend_type: str
    backend_data: bytes | None = None
    backend_v6_data: bytes | None = None


class LeaseAttrs(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a lease record. Whole values are compared, so every field counts as a change.

    ``backend_data`` and ``backend_v6_data`` are canonical JSON (sorted keys, no spaces) or None: what they
    mean is the backend's own business.
    """

    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None
    backend_type: str = ""
    backend_data: bytes | None = None
    backend_v6_data: bytes | None = None
    offers: tuple[Offer, ...] = ()
    """While the network changes its backend (see backends.change), sorted by type."""

    @property
    def way(self) -> str:
        """The backend the node wants to be reached by. flannel leaves the type of its udp out."""
        return self.backend_type or "udp"

    @property
    def types(self) -> tuple[str, ...]:
        """Every backend the node is equipped for, its own first."""
        return (self.way, *(offer.backend_type for offer in self.offers))

    def by(self, backend_type: str) -> LeaseAttrs | None:
        """The attributes as they were with this backend alone; None when the node is not equipped for it."""
        if backend_type == self.way:
            return self
        for offer in self.offers:
            if offer.backend_type == backend_type:
                return LeaseAttrs(
                    public_ip=self.public_ip,
                    public_ipv6=self.public_ipv6,
                    backend_type=backend_type,
                    backend_data=offer.backend_data,
                    backend_v6_data=offer.backend_v6_data,
                )
        return None

    def public(self, family: Family) -> Address | None:
        """The node's underlay address of one family."""
        return self.public_ip if family is Family.V4 else self.public_ipv6

    def data(self, family: Family) -> bytes | None:
        """Backend data of one family."""
        return self.backend_data if family is Family.V4 else self.backend_v6_data


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """One node's subnets with its attributes. ``subnet6`` is None in an IPv4-only network.

    In an IPv6-only network flannel writes ``0.0.0.0-0`` as IPv4 part of the key; ``subnet`` is None then.
    """

    subnet: IPv4Network | None = None
    subnet6: IPv6Network | None = None
    attrs: LeaseAttrs

    def of(self, family: Family) -> Network | None:
        """The subnet of one family."""
        return self.subnet if family is Family.V4 else self.subnet6

    @property
    def key(self) -> str:
        """The record's name under ``<prefix>/subnets/``: ``10.5.34.0-24`` or ``10.5.34.0-24&fd00:1::-64``."""
        return lease_key(self.subnet, self.subnet6)


def lease_key(subnet: IPv4Network | None, subnet6: IPv6Network | None) -> str:
    """Name of a lease record, as flannel's MakeSubnetKey writes it."""
    v4 = f"{subnet.network_address}-{subnet.prefixlen}" if subnet is not None else "0.0.0.0-0"
    if subnet6 is None:
        return v4
    return f"{v4}&{subnet6.network_address}-{subnet6.prefixlen}"
