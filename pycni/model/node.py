"""This node as its backends see it: identity, underlay interface and what persists of it over restarts."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import msgspec

from pycni.model.family import Address, Family


class Underlay(msgspec.Struct, frozen=True, kw_only=True):
    """The external interface: traffic between nodes leaves by it."""

    name: str
    mtu: int
    """Underlay MTU in bytes."""
    address: IPv4Interface | None = None
    """The interface's own address that is used as VTEP source (``local``)."""
    address6: IPv6Interface | None = None
    on_link: tuple[IPv4Interface | IPv6Interface, ...] = ()
    """Every address of the interface: a peer inside one of these networks is on-link."""

    def of(self, family: Family) -> IPv4Interface | IPv6Interface | None:
        """The interface address of one family."""
        return self.address if family is Family.V4 else self.address6

    def reaches_directly(self, peer: Address) -> bool:
        """Whether the peer is on one of the interface's own networks (no router between)."""
        return any(peer.version == own.version and peer in own.network for own in self.on_link)


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """This node. ``macs`` are the VTEP MACs by device name: chosen once, then stable (see agent.identity)."""

    name: str
    underlay: Underlay
    public_ip: IPv4Address | None = None
    """What peers are told; differs from the interface address behind NAT (``--public-ip``)."""
    public_ipv6: IPv6Address | None = None
    macs: Mapping[str, bytes] = {}
    wireguard_key: bytes = b""
    """Our public key, in networks that need one (see agent.wireguard_key)."""
    following_key: bytes = b""
    """The one that peers are to go by from now on, while the key is changed."""
    extension_output: str = ""
    """What PreStartupCommand wrote, in networks that have one (see kernel.extension)."""

    def public(self, family: Family) -> Address | None:
        """The address published to peers."""
        return self.public_ip if family is Family.V4 else self.public_ipv6
